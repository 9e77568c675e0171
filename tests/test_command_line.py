"""`sdnb …` as a reader types it."""

import errno
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from sdnb import __main__
from sdnb.course import lessons
from sdnb.doctor import command
from sdnb.system import files

from .conftest import ROOT

FIRST = "--LabApp.default_url=/lab/tree/00_start_here.ipynb"


def sdnb(*arguments, **kwargs):
    return subprocess.run([sys.executable, "-m", "sdnb", *arguments], capture_output=True, text=True, cwd=ROOT, **kwargs)


def test_help_names_every_command():
    result = sdnb("--help")
    assert result.returncode == 0
    assert "lab" in result.stdout
    assert "course" in result.stdout


def test_without_a_command_it_says_which_there_are():
    result = sdnb()
    assert result.returncode == 2
    assert "COMMAND" in result.stderr


def test_lab_opens_a_copy_that_is_the_readers(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(subprocess, "call", lambda command: calls.append(command) or 0)
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    folder = tmp_path / "course"
    assert __main__.main(["lab", "--folder", str(folder), "--no-browser"]) == 0
    assert calls[0][1:] == ["-m", "jupyterlab", f"--ServerApp.root_dir={folder}", FIRST, "--no-browser"]
    (folder / "00_start_here.ipynb").write_text("mine", encoding="utf-8")
    capsys.readouterr()
    __main__.main(["lab", "--folder", str(folder)])
    assert "yours, left as they are: 00_start_here.ipynb" in capsys.readouterr().out
    assert (folder / "00_start_here.ipynb").read_text(encoding="utf-8") == "mine"


def test_lab_in_a_checkout_opens_copies_too(tmp_path, monkeypatch, capsys):
    calls = []
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / "sdnb").mkdir()
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "sdnb")
    monkeypatch.setattr(subprocess, "call", lambda command: calls.append(command) or 0)
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    first = tmp_path / "notebooks" / "00_start_here.ipynb"
    __main__.main(["lab"])
    assert calls[0][-3:] == [f"--ServerApp.root_dir={tmp_path / 'sdnb-course'}", FIRST, "--allow-root"]
    assert (tmp_path / "sdnb-course" / "00_start_here.ipynb").read_bytes() == first.read_bytes()
    first.write_text("new", encoding="utf-8")
    (tmp_path / "sdnb-course" / "01_one_training_step.ipynb").write_text("mine", encoding="utf-8")
    (tmp_path / "notebooks" / "01_one_training_step.ipynb").write_text("new", encoding="utf-8")
    capsys.readouterr()
    __main__.main(["lab"])
    said = capsys.readouterr().out
    assert "newer now, as you had not changed them: 00_start_here.ipynb\n" in said
    assert "the course has newer ones than yours: 01_one_training_step.ipynb; to get them, rename yours" in said
    __main__.main(["lab", "--folder", str(tmp_path / "notebooks")])
    assert calls[2][-3] == f"--ServerApp.root_dir={tmp_path / 'notebooks'}"
    assert "the course's own files" in capsys.readouterr().out
    assert "sdnb-course/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_lab_without_jupyterlab_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert __main__.main(["lab"]) == 2
    assert f'pip install "{ROOT}[lab]"' in capsys.readouterr().err


@pytest.fixture
def little(tmp_path, monkeypatch):
    """A course of one lesson; returns how to make it."""
    nbformat = pytest.importorskip("nbformat")

    def make(*cells):
        lesson = tmp_path / "notebooks" / "00_little.ipynb"
        lesson.parent.mkdir()
        cells = [nbformat.v4.new_markdown_cell("# Little"), *map(nbformat.v4.new_code_cell, cells)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), lesson)
        monkeypatch.setattr(lessons, "notebooks", lambda: [lesson])
        return lesson

    return make


@pytest.mark.parametrize("broken", [False, True])
def test_course_executes_and_reports(tmp_path, little, capsys, broken):
    lesson = little("print(6 * 7)", "1 / 0" if broken else "pass")
    before = lesson.read_bytes()
    assert __main__.main(["course", "--out", str(tmp_path / "out")]) == int(broken)
    assert ">42\n<" in (tmp_path / "out" / "00_little.html").read_text(encoding="utf-8")
    start = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    said = capsys.readouterr().out
    for text in (start, said):
        assert ("ZeroDivisionError" in text) == broken
    assert f"{int(not broken)} of 1 passed" in said
    assert lesson.read_bytes() == before


def test_course_stores_outputs_in_the_notebooks(little, capsys):
    nbformat = pytest.importorskip("nbformat")
    lesson = little("print(6 * 7)")
    assert __main__.main(["course", "--store", "--jobs", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["error"] is None
    assert nbformat.read(lesson, as_version=4).cells[1].outputs[0].text == "42\n"


def test_course_copies_without_solutions(tmp_path, little, capsys):
    lesson = little("1 / 0")  # not executed
    command = ["course", "--without-solutions", "--out", str(tmp_path / "out")]
    assert __main__.main(command) == 0
    copy = tmp_path / "out" / lesson.name
    assert copy.read_bytes() == lesson.read_bytes()
    copy.write_text("mine", encoding="utf-8")
    assert __main__.main(command) == 2
    assert "00_little.ipynb; give another folder, or --overwrite" in capsys.readouterr().err
    assert __main__.main([*command, "--overwrite"]) == 0
    assert copy.read_bytes() == lesson.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--without-solutions"], "needs a folder"),
        (["--overwrite"], "belong to --without-solutions"),
        (["--store", "--out", "x"], "leave out --out"),
        (["--jobs", "0"], "give 1 or more"),
        (["--out", str(ROOT / "notebooks"), "--without-solutions", "--overwrite"], "another folder"),
        (["--out", str(ROOT / "notebooks")], "another folder"),
    ],
)
def test_course_refuses_what_does_not_go_together(options, message, capsys):
    assert __main__.main(["course", *options]) == 2
    assert message in capsys.readouterr().err


def test_plan_and_fit_print_for_people_and_for_programs(capsys):
    assert __main__.main(["plan", "tiny", "--gpu", "t4", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["gpu"]["fits"] is True
    assert made["confirmed"] is False
    assert (
        __main__.main(
            ["plan", "tiny", "--resolution", "64x128", "--batch-size", "3", "--", "--optimizer_type=AdamW", "--mixed_precision=bf16"]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert "64×128, batch 3, AdamW, mixed bf16" in text
    assert __main__.main(["fit", "tiny", "t4", "--method", "lora", "--rank", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["trainers"]) == ["sdnb", "sd-scripts", "diffusers"]
    assert all(answer["gpu"]["name"] == "Tesla T4" and answer["command"] for answer in found["trainers"].values())
    assert __main__.main(["fit", "tiny", "t4", "--rank", "4"]) == 0
    text = capsys.readouterr().out
    assert text.index("A LoRA of rank 4") < text.index("accelerate launch train_network.py") < text.index("The whole U-Net")
    assert text.index("The whole U-Net") < text.index("sdnb train -- ", text.index("The whole U-Net")) < text.index("train_db.py")
    assert text.index("train_db.py") < text.index("accelerate launch train_text_to_image.py")
    assert __main__.main(["fit", "tiny", "t4", "--method", "lora", "--rank", "4", "--trainer", "sdnb", "--all"]) == 0
    text = capsys.readouterr().out
    assert "6 of 6 recipes fit" in text and "accelerate" not in text
    assert __main__.main(["plan", "tiny", "--gpu", "t4", "--whole-run", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)["whole_run"]
    assert whole["phases"].keys() >= {"caching latents", "first step", "preview", "save"} and whole["verdict"] == "fits"
    assert __main__.main(["plan", "tiny", "--gpu", "t4", "--whole-run"]) == 0
    assert "the largest: " in capsys.readouterr().out.partition("the whole run  ")[2]
    assert __main__.main(["plan", "tiny", "--trainer", "sd-scripts", "--", "--sdpa", "--fused_backward_pass", "--max_grad_norm=0"]) == 0
    assert "trained by sd-scripts: tiny" in capsys.readouterr().out
    for arguments, message in (
        (["plan", "sdl"], "did you mean"),
        (["plan", "tiny", "--resolution", "big"], "WIDTHxHEIGHT"),
        (["plan", "tiny", "--batch-size", "0"], "1 or more"),
        (["fit", "tiny", "gtx"], "there are t4"),
        (["fit", "tiny", "t4", "--method", "half"], "full, lora"),
    ):
        assert __main__.main(arguments) == 2
        assert message in capsys.readouterr().err


def said(arguments, capsys):
    """The exit status, and the last line on the standard error."""
    try:
        status = __main__.main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    return status, capsys.readouterr().err.splitlines()[-1]


JOB = "train -- --pretrained_model_name_or_path=tiny --train_data_dir=folder"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "docter --seed=1",
            r"no command 'docter' \(did you mean doctor\?\): there are lab, course, grade, doctor, plan, fit, explore, timeline, train",
        ),
        ("Ü", "no command 'Ü': there are lab"),
        ("--json", "the following arguments are required: COMMAND"),
        ("lab --bogus", "unrecognized arguments: --bogus: leave it out"),
        ("plan tiny --optimizer_type=AdamW", "after --, as in: sdnb plan MODEL -- --optimizer_type=AdamW"),
        ("plan tiny settings.toml", "after --, as in: sdnb plan MODEL -- settings.toml"),
        ("plan", "required: model"),
        ("plan missing.safetensors", "is missing: give an existing .safetensors file"),
        ("plan rubbish.safetensors", "is no safetensors file"),
        ("plan folder", "give a Stable Diffusion in diffusers' format"),
        ("plan модель", "no model 'модель': known by name are tiny"),
        ("plan tiny --gpu rtx9999", "(did you mean 'rtx5090' or 'rtx4090'?)"),
        ("plan tiny --resolution 0", "give a side in pixels"),
        ("plan tiny --resolution -64", "give a side in pixels"),
        ("plan tiny --resolution 16000000000000", "give a side in pixels"),
        ("plan tiny --batch-size 99999999999999999999", "no more than a million"),
        ("plan tiny --batch-size two", "invalid int value: 'two'"),
        ("plan tiny -- missing.toml", "cannot be read: No such file or directory. Check the name"),
        ("plan tiny -- folder", "cannot be read: Is a directory"),
        ("plan tiny -- empty.toml", "The text is empty. Give a command line, a TOML file"),
        ("plan tiny -- rubbish.safetensors", "rubbish.safetensors cannot be read: it is not a safetensors file."),
        ("plan tiny -- --optimizer_type=AdamWW", "there are AdamW"),
        ("fit tiny", "required: card"),
        ("fit tiny t4 --rank 0", "--rank 0: give a whole number, 1 or more"),
        ("fit tiny t4 --seed=1", "for settings of yours there is sdnb plan"),
        ("doctor --script nope --seed=1", "sd-scripts has"),
        ("doctor empty.toml --seed=1", "one thing at a time"),
        ("train", "give a FILE with settings, or sd-scripts' flags after --"),
        ("train nothing.toml", "nothing.toml: there is no such file"),
        ("train nothing.toml --config nothing.toml", "not allowed with argument"),
        ("train --config missing.toml", "there is no such file"),
        ("train --config folder", "folder is a folder: give the file in it"),
        ("train --config empty.toml", "The text is empty"),
        (f"{JOB} --output_dir=empty.toml", "output_dir='empty.toml' cannot be a folder, as empty.toml is a file"),
        (f"{JOB} --output_dir=empty.toml/out", "output_dir='empty.toml/out' cannot be a folder, as empty.toml is a file"),
        ("train -- --bogus=1", "unrecognized arguments: --bogus=1"),
        ("train -- --pretrained_model_name_or_path=tiny", "output_dir is missing: the folder for the result"),
        ("train --resume maybe", "invalid choice: 'maybe'"),
        ("lab --folder empty.toml", "empty.toml cannot be a folder, as a file is there, or above it: give another place"),
        ("lab --folder empty.toml/course", "empty.toml/course cannot be a folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_the_way_out(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "call", lambda command: pytest.fail("it went on"))
    (tmp_path / "empty.toml").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "rubbish.safetensors").write_bytes(b"\x00\x01\xff\xfe" * 10)
    status, line = said(arguments.split(), capsys)
    assert status == 2
    assert line.startswith("sdnb")
    assert re.search(message if "\\" in message else re.escape(message), line)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "denied", "/course"), "/course: Permission denied: give a place that you may use"),
        (OSError(errno.ENOSPC, "full", "/course"), "/course: No space left on device: make room on the disk"),
        (OSError(errno.EIO, "Input/output error", "/course"), "/course"),
        (FileExistsError("x exists: give a new name"), "sdnb: x exists: give a new name"),
        (OSError(errno.EACCES, "nothing can be written to /course: give another folder"), "sdnb: nothing can be written to /course: give"),
    ],
)
def test_the_operating_systems_errors_get_a_way_out(error, message, tmp_path, monkeypatch, capsys):
    def unpack(folder, language):
        raise error

    monkeypatch.setattr(lessons, "unpack", unpack)
    status, line = said(["lab", "--folder", str(tmp_path / "course")], capsys)
    assert status == 2
    assert message in line


@pytest.mark.parametrize("text", ["[1]", "[]", '["a"]', "{}", "null"])
def test_a_file_without_settings_is_nothing_to_look_at(text, tmp_path, capsys):
    (tmp_path / "list.json").write_text(text)
    assert __main__.main(["doctor", str(tmp_path / "list.json")]) == 2
    assert "1 error." in capsys.readouterr().out


def test_an_interruption_is_no_traceback(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    assert said(["doctor", "--seed=1"], capsys) == (130, "sdnb: interrupted")


def test_a_terminal_that_does_not_know_a_letter_gets_another():
    result = sdnb("doctor", "--optimizer_type=Adafactor", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert "relative_step is not set" in result.stdout
    assert result.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise on Windows")
def test_a_pipe_that_is_closed_early_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "sdnb", "doctor", "--seed=1"], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")
