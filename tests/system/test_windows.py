"""What is different on Windows, as far as that can be imitated: files in use cannot be replaced, some names are none.

None of this has run on Windows itself.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sdnb
from sdnb import Recipe, jobs, train_command
from sdnb.saves import folders
from sdnb.system import errors, files

from ..conftest import ROOT

FLAGS = ["--pretrained_model_name_or_path=tiny", "--train_data_dir=emoji-ink", "--network_dim=2", "--optimizer_type=AdamW"]


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)


@pytest.fixture
def in_use(monkeypatch):
    """Let the files of these names be open somewhere; returns how often each was tried."""

    def use(*names, attempts=10**6):
        tried = dict.fromkeys(names, 0)
        real = {name: getattr(Path, name) for name in ("replace", "rename", "unlink")}

        def refusing(action):
            def act(path, *arguments, **keywords):
                for name in {path.name, *(Path(each).name for each in arguments)} & tried.keys():
                    tried[name] += 1
                    if tried[name] <= attempts:
                        raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))
                return real[action](path, *arguments, **keywords)

            return act

        for action in real:
            monkeypatch.setattr(Path, action, refusing(action))
        return tried

    return use


def test_a_file_that_a_scanner_looks_at_is_tried_again(tmp_path, windows, in_use):
    tried = in_use("a.txt", attempts=3)
    assert files.write(tmp_path / "a.txt", "new").read_text(encoding="utf-8") == "new"
    assert tried["a.txt"] == 4


def test_a_file_that_stays_open_stays_as_it_is(tmp_path, windows, in_use, tiny):
    files.write(tmp_path / "a.txt", "old")
    in_use("a.txt", "whole")
    with pytest.raises(PermissionError, match=r"open in a program\. Close that program"):
        files.write(tmp_path / "a.txt", "new")
    with pytest.raises(PermissionError, match="Close that program"):
        tiny.save(tmp_path / "whole")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


def test_elsewhere_nothing_is_tried_twice(tmp_path, in_use):
    tried = in_use("a.txt")
    with pytest.raises(PermissionError, match="The process cannot access"):
        files.write(tmp_path / "a.txt", "new")
    assert tried["a.txt"] == 1


def test_a_save_that_cannot_be_deleted_does_not_end_the_run(tmp_path, windows, in_use, fresh, ink):
    recipe = Recipe(train_batch_size=1, resolution=32, lr_scheduler="constant", lr_warmup_steps=0, others={"network_dim": 2})
    run = sdnb.train(fresh, ink[:2], recipe, steps=3, save_to=tmp_path, save_every=1, keep=1)
    next(run)
    in_use("step-00000001")
    with pytest.warns(RuntimeWarning, match=r"an old save was not deleted: .*step-00000001"):
        done = list(run)
    assert [path.name for path in folders.found(tmp_path)] == ["step-00000001", "step-00000003"]
    assert done[-1].saved == folders.found(tmp_path)[-1]


def test_an_older_step_of_a_job_that_is_open_does_not_end_it(tmp_path, windows, in_use):
    in_use("last-step00000001.safetensors")
    tmp_path.joinpath("last-step00000001.safetensors").touch()
    with pytest.warns(RuntimeWarning, match=r"last-step00000001\.safetensors was not deleted.*Training goes on"):
        jobs._delete(tmp_path / "last-step00000001.safetensors")


def test_what_is_loaded_from_a_save_does_not_keep_its_file(tmp_path, windows, monkeypatch):
    mapped, load = [], folders._load
    monkeypatch.setattr(folders, "_load", lambda path: mapped.append(load(path)) or mapped[-1])
    path = folders.write(tmp_path, steps=1, weights={"w": torch.ones(3)}, progress={"state": torch.arange(3.0)}, owner={})
    state = folders.read(path).progress()["state"]
    assert state.equal(torch.arange(3.0))
    assert state.data_ptr() not in {tensor.data_ptr() for tensor in mapped[0].values()}


@pytest.mark.parametrize("name", ["a:b", "what?", "con", "NUL", "com1.txt", "ends with a dot.", "ends with a space ", "a\tb"])
def test_a_name_that_is_none(tmp_path, windows, name):
    with pytest.raises(ValueError, match="no file's name on Windows: give"):
        files.write(tmp_path / name, "")
    if "." not in name.rstrip(".") and not name.endswith((".", " ")):  # a result has an ending of its own
        with pytest.raises(ValueError, match="no file's name on Windows: give"):
            jobs.Job(train_command.parse(None, [*FLAGS, f"--output_dir={tmp_path}", f"--output_name={name}"]))
    assert list(tmp_path.iterdir()) == []


def test_usual_names_are_none_of_those(windows):
    for name in ("last.safetensors", ".sdnb-progress.json", "icon", "com10", "猫.png", "console.txt", "a b"):
        files.check_name(Path(name))


def test_folders_are_not_synced(tmp_path, windows, monkeypatch):
    real = os.open

    def refuse(path, *arguments):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    assert files.write(tmp_path / "a.txt", "a").exists()
    assert folders.write(tmp_path, steps=1, weights={"w": torch.ones(3)}, progress={}, owner={}).is_dir()


def test_flags_are_quoted_for_shells_that_know_double_quotes_alone(windows):
    flags = ["--train_data_dir=C:\\Users\\me\\my pictures", "--seed=1", "--optimizer_args", "weight_decay=0.1"]
    recipe = train_command.parse(None, flags)
    printed = recipe.to_flags()
    assert '--train_data_dir="C:\\Users\\me\\my pictures"' in printed and "'" not in printed
    assert "\n" not in recipe.to_command()
    assert Recipe.parse(printed).to_flags() == printed


def test_paths_between_double_quotes_in_toml(tmp_path):
    """`\\U` and `\\t` are letters there, in a path of Windows."""
    settings, pictures = tmp_path / "a.toml", tmp_path / "b.toml"
    settings.write_text('train_data_dir = "C:\\Users\\me"\n', encoding="utf-8")
    pictures.write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "C:\\Users\\me"\n', encoding="utf-8")
    for read in (lambda: Recipe.parse(settings), lambda: sdnb.pictures(pictures)):
        with pytest.raises(ValueError, match="write paths in single quotes, or with / instead"):
            read()


def test_a_pipe_whose_reader_has_left(windows, monkeypatch):
    ended = OSError(errno.EINVAL, "Invalid argument")
    assert errors.is_closed_pipe(ended) and errors.is_closed_pipe(BrokenPipeError())
    assert not errors.is_closed_pipe(OSError(errno.EINVAL, "Invalid argument", "a file"))
    monkeypatch.setattr(files, "WINDOWS", False)
    assert not errors.is_closed_pipe(ended)


def test_the_package_works_where_there_are_no_posix_modules(tmp_path):
    """Every module imports, and a folder is claimed, without what only Unix has."""
    code = """
import sys, os
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("geteuid", "getuid", "fork", "umask", "chmod", "statvfs", "sysconf", "sched_getaffinity"):
    if hasattr(os, name): delattr(os, name)
import sdnb, importlib, pathlib, pkgutil
for module in pkgutil.walk_packages(sdnb.__path__, "sdnb."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from sdnb.saves.claims import Claim
one = Claim(pathlib.Path(sys.argv[1])); one.release(); one.release()
print("done")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300)
    assert result.stdout == "done\n", result.stderr
