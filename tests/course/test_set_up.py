"""The set-up: the notebooks' first cell where sdnb is missing, the packages it needs, and `make` on a bare machine."""

import contextlib
import email.message
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from importlib import metadata

import pytest

import sdnb
from sdnb.__main__ import main
from sdnb.course import editions, lessons, publishing
from sdnb.system import requirements

from ..conftest import ROOT

PUBLISHED = "git+https://github.com/published/course"

# The first cell, in a Python of its own that finds no packages but the stubs below.

PIP = """
import json, os, sys, pathlib
here = pathlib.Path(__file__).parent.parent
with open(here / "asked", "a") as asked:
    print(json.dumps(sys.argv[1:]), file=asked)
if sys.argv[1] == "install":
    if os.environ.get("STUB") == "offline":
        sys.exit("fatal: Could not resolve host: github.com")
    (here / "later" / "sdnb").mkdir(parents=True, exist_ok=True)
    (here / "later" / "sdnb" / "__init__.py").write_text("print('installed')")
"""


def cell():
    notebook = json.loads((ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8"))
    return "".join(next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")["source"])


@pytest.fixture
def machine(tmp_path):
    """Run the cell on a machine with a stub of pip; returns what came out, and what pip was asked to install."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(PIP)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch-2.11.0+cu128.dist-info").mkdir()
    (tmp_path / "torch-2.11.0+cu128.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0+cu128\n")
    (tmp_path / "later").mkdir()  # where pip installs to

    def run(published="", **environment):
        source = re.sub('REPOSITORY = "[^"]*"', f'REPOSITORY = "{published}"', cell(), count=1)
        (tmp_path / "asked").unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-S", "-c", source], capture_output=True, text=True, timeout=50, cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}{os.pathsep}{tmp_path / 'later'}", **environment},
        )  # fmt: skip
        asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()] if (tmp_path / "asked").exists() else []
        return done, [words[1:] for words in asked if words[0] == "install"]

    run.folder = tmp_path
    return run


@contextlib.contextmanager
def colab(*paths):
    """A server of Colab's sessions, and the environment by which a kernel finds it."""

    class Sessions(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/api/sessions" else 404)
            self.end_headers()
            self.wfile.write(json.dumps([{"path": path, "name": "x.ipynb"} for path in paths]).encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Sessions) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield {"COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": str(server.server_port)}
        finally:
            server.shutdown()  # a thread that is left would spin on the closed socket, through all tests that follow


@pytest.mark.parametrize("scheme", ["https%3A//github.com/", "https%3A%2F%2Fgithub.com%2F"])
@pytest.mark.parametrize("published", ["", PUBLISHED])
@pytest.mark.parametrize(
    ("branch", "file"),
    [
        ("main", "00_start_here.ipynb"),
        ("main", "zh/00_start_here.ipynb"),
        ("feature/x", "00_start_here.ipynb"),
        ("feature/notebooks/x", "zh/03_gradient_checkpointing.ipynb"),
    ],
)
def test_in_colab_it_installs_the_fork_and_the_branch_it_was_opened_from(machine, scheme, published, branch, file):
    with colab(f"fileId={scheme}someone/a-course/blob/{branch}/notebooks/{file}") as environment:
        done, asked = machine(published, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "installed\n", "")
    assert asked == [["torch==2.11.0+cu128", f"git+https://github.com/someone/a-course@{branch}"]]


def test_another_notebook_in_the_same_runtime_is_not_mixed_up(machine):
    with colab("fileId=1aBcD", "fileId=https%3A//github.com/someone/a-course/blob/main/notebooks/00_start_here.ipynb") as environment:
        _, asked = machine(**environment)
    assert asked[0][-1] == "git+https://github.com/someone/a-course@main"


@pytest.mark.parametrize(
    "path", ["fileId=1aBcD", "fileId=https%3A//gist.github.com/someone/0123", "fileId=https%3A//github.com/a/b/blob/main/00.ipynb"]
)
def test_a_copy_in_drive_comes_from_the_published_address(machine, path):
    with colab(path) as environment:
        done, asked = machine(PUBLISHED, **environment)
        assert (done.returncode, asked) == (0, [["torch==2.11.0+cu128", PUBLISHED]])
        shutil.rmtree(machine.folder / "later" / "sdnb")
        done, asked = machine(**environment)
    assert asked == []
    assert done.returncode == 1
    assert done.stderr.endswith("No sdnb here. In a clone run `make lab`; elsewhere write the repository's address above\n")


def test_in_kaggle_it_comes_from_the_published_address(machine):
    done, asked = machine(PUBLISHED, KAGGLE_KERNEL_RUN_TYPE="Interactive")
    assert (done.returncode, asked) == (0, [["torch==2.11.0+cu128", PUBLISHED]])


def test_without_a_torch_pip_chooses_one(machine):
    shutil.rmtree(machine.folder / "torch-2.11.0+cu128.dist-info")
    assert machine(PUBLISHED)[1] == [[PUBLISHED]]


@pytest.mark.parametrize("answers", [True, False])
def test_a_server_that_refuses_or_never_answers_does_not_hold_it_up(machine, answers):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {"COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": str(silent.getsockname()[1])}
        if answers:
            silent.close()  # the connection is refused
        done, asked = machine(PUBLISHED, **environment)
    assert (done.returncode, asked) == (0, [["torch==2.11.0+cu128", PUBLISHED]])


def test_without_a_network_the_last_line_says_what_to_do(machine):
    done, _ = machine(PUBLISHED, STUB="offline")
    assert done.returncode == 1
    assert "Could not resolve host" in done.stderr
    assert done.stderr.splitlines()[-1] == "No sdnb: pip says why. Is the internet on? (Kaggle: Settings)"


def test_a_package_that_is_there_is_taken(machine):
    (machine.folder / "sdnb").mkdir()
    (machine.folder / "sdnb" / "__init__.py").write_text("print('mine')")
    done, asked = machine(PUBLISHED)
    assert (done.returncode, done.stdout, asked) == (0, "mine\n", [])


def test_a_folder_called_sdnb_is_no_package(machine):
    """What an uninstallation leaves, or a clone of the repository beside the notebook."""
    (machine.folder / "sdnb" / "notebooks").mkdir(parents=True)
    done, asked = machine(PUBLISHED)
    assert (done.returncode, done.stdout) == (0, "installed\n")
    assert asked == [["torch==2.11.0+cu128", PUBLISHED]]


def test_the_cell_is_short():
    lines = cell().splitlines()
    assert len(lines) <= 13
    assert max(map(len, lines)) <= 110


# What sdnb needs, as its metadata states it.


@pytest.fixture
def installed(monkeypatch):
    """sdnb as if installed from this checkout, with other versions of packages, or without them (None)."""
    requirements.check.cache_clear()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = email.message.Message()
    ours["Requires-Python"] = project["requires-python"]
    for line in [*project["dependencies"], *(f"{line}; extra == 'lab'" for line in project["optional-dependencies"]["lab"])]:
        ours["Requires-Dist"] = line
    monkeypatch.setattr(metadata, "metadata", lambda name: ours)
    real = metadata.version

    def pretend(**versions):
        def version(name):
            if versions.get(name, "") is None:
                raise metadata.PackageNotFoundError(name)
            return versions.get(name) or real(name)

        monkeypatch.setattr(metadata, "version", version)

    yield pretend
    requirements.check.cache_clear()


def test_what_is_installed_here_is_in_range(installed):
    requirements.check()


@pytest.mark.parametrize("name", ["load", "plan", "fit", "train"])
@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"torch": "2.6.0+cu124"}, r'this needs torch>=2\.8, but 2\.6\.0\+cu124 is installed: pip install "torch>=2\.8", then restart'),
        ({"tomlkit": None}, r'this needs tomlkit>=[\d.]+, which is not installed: pip install "tomlkit>='),
        ({"peft": "0.1", "diffusers": None}, r'diffusers>=.*, which is not installed; peft>=.*, but 0\.1 is.*: pip install "diff.*" "peft'),
    ],
)
def test_a_package_out_of_range_is_named_with_the_command(installed, name, versions, message):
    installed(**versions)
    with pytest.raises(ImportError, match=message):
        getattr(sdnb, name)


def test_builds_of_a_release_count_as_that_release(installed):
    installed(torch="2.8.0a0+5228986c39.nv25.6", peft="1.0.dev0")
    requirements.check()


def test_another_python_is_refused(installed, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 12, "final", 0))
    with pytest.raises(ImportError, match=r"needs Python >=3\.11, and runs on 3\.10\.12: install it in a newer one"):
        requirements.check()


def test_without_packaging_it_says_so_too(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    with pytest.raises(ImportError, match=r'packaging among them: pip install "packaging" "torch>=2\.8'):
        requirements.check()


def test_a_checkout_that_is_not_installed_is_not_checked(installed, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    requirements.check()


def test_the_command_line_names_the_package_too(installed, capsys):
    installed(torch="2.6.0")
    for words in (["plan", "tiny"], ["fit", "tiny", "t4"], ["train"]):
        assert main(words) == 2
        assert "sdnb: this needs torch>=" in capsys.readouterr().err
    assert main(["doctor", "--seed=1"]) == 0  # which needs no torch


@pytest.mark.parametrize("lost", ["faces.py", "requirements.py"])
def test_half_an_installation_names_the_repair(tmp_path, lost):
    shutil.copytree(ROOT / "sdnb" / "system", tmp_path / "sdnb" / "system")
    shutil.copy(ROOT / "sdnb" / "__init__.py", tmp_path / "sdnb")
    (tmp_path / "sdnb" / "system" / lost).unlink()
    code = "try:\n    import sdnb\n    sdnb.load\nexcept ImportError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert f"not whole, sdnb.system.{lost[:-3]} is missing: pip install --force-reinstall" in done.stdout


# The repository's address.


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with all notebooks; its lessons are those that sdnb finds."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    real = lessons.notebooks

    def notebooks(language="en"):
        return [tmp_path / path.relative_to(ROOT) for path in real(language)]

    monkeypatch.setattr(lessons, "notebooks", notebooks)
    return tmp_path


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_publishing_writes_the_address_everywhere_and_nothing_else(checkout, capsys):
    before = files(checkout)
    assert main(["course", "--publish", "git+https://github.com/someone/a-course"]) == 0
    after = files(checkout)
    notebooks = sorted(checkout.rglob("*.ipynb"))
    assert len(notebooks) > 10
    assert capsys.readouterr().out.startswith(f"{len(notebooks) + 1} files now name git+https://github.com/someone/a-course")
    assert {path for path in after if after[path] != before[path]} == {*notebooks, checkout / "pyproject.toml"}
    for path in notebooks:
        line = b'REPOSITORY = \\"git+https://github.com/someone/a-course\\"'
        assert after[path] == re.sub(rb'REPOSITORY = \\"[^"]*"', lambda _, line=line: line, before[path])
    urls = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert urls == {"Repository": "https://github.com/someone/a-course", "Issues": "https://github.com/someone/a-course/issues"}
    for lesson in lessons.notebooks():
        if editions.translation_of(lesson, "zh").exists():
            assert (lesson.parent / "zh" / lesson.name).read_text(encoding="utf-8") == editions.build(lesson, "zh")


def test_publishing_again_changes_nothing_and_elsewhere_only_the_address(checkout):
    assert publishing.publish("git+https://github.com/someone/a-course")
    once = files(checkout)
    assert publishing.publish("git+https://github.com/someone/a-course") == []
    publishing.publish("git+https://github.com/Other/b.c_d")
    assert publishing.publish("git+https://github.com/someone/a-course")
    assert files(checkout) == once


@pytest.mark.parametrize(
    "address",
    [
        "", "https://github.com/o/r", "git+https://github.com/o", "git+https://github.com/o/r.git", "git+https://github.com/o/r/",
        "git+https://github.com/o/r@main", "git+https://github.com/o/r/blob/main", "git+http://github.com/o/r", "git+https://gitlab.com/o/r",
        'git+https://github.com/o/r"', "git+https://github.com/o/..", "git+https://github.com/-o/r", "git+https://github.com/o/r\n",
        "git+https://github.com/o/r#egg=x", "git+https://user:secret@github.com/o/r", "git+https://github.com/ö/r",
    ],
)  # fmt: skip
def test_publishing_refuses_what_is_no_address(checkout, address, capsys):
    before = files(checkout)
    assert main(["course", "--publish", address]) == 2
    assert "give git+https://github.com/OWNER/REPOSITORY" in capsys.readouterr().err
    assert files(checkout) == before


def test_publishing_writes_nothing_when_a_notebook_lacks_the_line(checkout):
    lesson = lessons.notebooks("zh")[-1]
    lesson.write_text(lesson.read_text(encoding="utf-8").replace("REPOSITORY = ", "REPO = "), encoding="utf-8")
    before = files(checkout)
    with pytest.raises(ValueError, match=rf'{lesson.name} has 0 lines REPOSITORY = ""'):
        publishing.publish(PUBLISHED)
    assert files(checkout) == before


def test_an_installed_course_is_not_published(monkeypatch):
    monkeypatch.setattr(lessons, "notebooks", lambda *_: [ROOT / "sdnb" / "notebooks" / "00_x.ipynb"])
    with pytest.raises(ValueError, match="of a checkout"):
        publishing.publish(PUBLISHED)


@pytest.mark.parametrize("other", [["--out", "x"], ["--overwrite"], ["--store"]])
def test_publishing_goes_with_nothing_else(checkout, other):
    before = files(checkout)
    try:
        assert main(["course", "--publish", PUBLISHED, *other]) == 2
    except SystemExit as left:  # argparse
        assert left.code == 2
    assert files(checkout) == before


# make, where Python is too old or cannot make environments.

FAKE = """#!/bin/sh
# {name}: version {version}, ensurepip {ensurepip}, venv {venv}
case "$*" in
  "-c import sys; sys.exit(sys.version_info < (3, 11))") exit {old} ;;
  "-c import ensurepip, venv") exit {missing} ;;
  "-c import pip") [ -e .venv/pip ] || [ ! -e .venv/by-uv ] ;;
  "-m ensurepip") touch .venv/pip ;;
  "-m venv --clear "*) mkdir -p $4/bin; touch $4/pyvenv.cfg; [ {venv} = fails ] && exit 1; cp "$0" $4/bin/python; echo {name} > $4/made ;;
  "-m pip "*) echo "$*" >> pip-was-asked ;;
esac
"""


@pytest.fixture
def bare(tmp_path):
    """A folder with the Makefile and Pythons of the given kinds on the path; runs make and returns what came out."""
    if not (make := shutil.which("make")):
        pytest.skip("needs make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "mkdir", "touch", "cp", "rm", "test", "echo"):
        (programs / name).symlink_to(shutil.which(name))

    def python(name, version=(3, 12), ensurepip=True, venv="works"):
        text = FAKE.format(
            name=name, version=version, ensurepip=ensurepip, venv=venv, old=int(version < (3, 11)), missing=int(not ensurepip)
        )
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(*words):
        return subprocess.run(
            [make, ".venv/.ready", *words], cwd=tmp_path, capture_output=True, text=True, env={"PATH": str(programs)}
        )  # fmt: skip

    run.python, run.folder = python, tmp_path
    return run


def made(bare):
    return (bare.folder / ".venv" / "made").read_text().strip()


def test_make_takes_python3_where_it_is_new_enough(bare):
    bare.python("python3")
    bare.python("python3.13", (3, 13))
    assert bare().returncode == 0
    assert made(bare) == "python3"
    assert (bare.folder / ".venv" / ".ready").exists()


def test_make_takes_the_newest_other_python_where_python3_is_old(bare):
    bare.python("python3", (3, 10))
    bare.python("python3.11", (3, 11))
    bare.python("python3.12", (3, 12))
    assert bare().returncode == 0
    assert made(bare) == "python3.12"


def test_make_says_what_to_do_without_a_python_that_is_new_enough(bare):
    bare.python("python3", (3, 10))
    done = bare()
    assert done.returncode
    assert "sdnb needs Python 3.11 or newer, and none of python3," in done.stdout
    assert "make PYTHON=/path/to/python" in done.stdout
    assert not (bare.folder / ".venv").exists()
    assert "python3 is not: make PYTHON=" in bare("PYTHON=python3").stdout


def test_make_says_what_to_install_where_environments_cannot_be_made(bare):
    bare.python("python3", (3, 10))
    bare.python("python3.12", ensurepip=False)
    done = bare()
    assert done.returncode
    assert "sudo apt install python3.12-venv" in done.stdout
    assert not (bare.folder / ".venv").exists()


def test_make_leaves_no_half_made_environment(bare):
    bare.python("python3", venv="fails")
    assert bare().returncode
    assert not (bare.folder / ".venv").exists()
    (bare.folder / ".venv" / "bin").mkdir(parents=True)  # left by an interrupted run
    (bare.folder / ".venv" / "pyvenv.cfg").touch()
    (bare.folder / ".venv" / "rest").touch()
    bare.python("python3")
    assert bare().returncode == 0
    assert made(bare) == "python3"


def test_make_keeps_an_environment_that_is_whole(bare):
    """The reader's own, with a torch for their GPU; but not one of an old Python."""
    bare.python("python3")
    (bare.folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(bare.folder / "programs" / "python3", bare.folder / ".venv" / "bin" / "python")
    assert bare().returncode == 0
    assert not (bare.folder / ".venv" / "made").exists()
    assert "--editable .[lab,dev]" in (bare.folder / "pip-was-asked").read_text()
    (bare.folder / ".venv" / ".ready").unlink()
    bare.python("python3.10", (3, 10))
    shutil.copy(bare.folder / "programs" / "python3.10", bare.folder / ".venv" / "bin" / "python")
    done = bare()
    assert done.returncode
    assert "older than 3.11: make clean" in done.stdout
    assert (bare.folder / ".venv" / "bin" / "python").exists()


def test_make_puts_pip_into_an_environment_without(bare):
    bare.python("python3")
    (bare.folder / ".venv" / "bin").mkdir(parents=True)
    (bare.folder / ".venv" / "by-uv").touch()
    shutil.copy(bare.folder / "programs" / "python3", bare.folder / ".venv" / "bin" / "python")
    assert bare().returncode == 0
    assert (bare.folder / ".venv" / "by-uv").exists()
    assert (bare.folder / ".venv" / "pip").exists()


def test_make_does_not_clear_a_folder_that_is_no_environment(bare):
    bare.python("python3")
    (bare.folder / ".venv").mkdir()
    (bare.folder / ".venv" / "thesis.txt").touch()
    done = bare()
    assert done.returncode
    assert ".venv is there and is no environment" in done.stdout
    assert (bare.folder / ".venv" / "thesis.txt").exists()
