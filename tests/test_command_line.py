"""`sdnb …` as a reader types it."""

import json
import subprocess
import sys

import pytest

from sdnb import __main__, lessons

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
    monkeypatch.setattr(__main__.os, "geteuid", lambda: 1000, raising=False)
    folder = tmp_path / "course"
    assert __main__.main(["lab", "--folder", str(folder), "--no-browser"]) == 0
    assert calls[0][1:] == ["-m", "jupyterlab", f"--ServerApp.root_dir={folder}", FIRST, "--no-browser"]
    (folder / "00_start_here.ipynb").write_text("mine", encoding="utf-8")
    capsys.readouterr()
    __main__.main(["lab", "--folder", str(folder)])
    assert "yours, left as they are: 00_start_here.ipynb" in capsys.readouterr().out
    assert (folder / "00_start_here.ipynb").read_text(encoding="utf-8") == "mine"


def test_lab_in_a_checkout_opens_the_notebooks_in_place(monkeypatch):
    calls = []
    monkeypatch.setattr(subprocess, "call", lambda command: calls.append(command) or 0)
    monkeypatch.setattr(__main__.os, "geteuid", lambda: 0, raising=False)
    __main__.main(["lab"])
    assert calls[0][-3:] == [f"--ServerApp.root_dir={ROOT / 'notebooks'}", FIRST, "--allow-root"]


def test_lab_without_jupyterlab_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(__main__.importlib.util, "find_spec", lambda name: None)
    assert __main__.main(["lab"]) == 2
    assert 'pip install "sdnb[lab]"' in capsys.readouterr().err


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
        (["--overwrite"], "belongs to --without-solutions"),
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
    assert found["fits"][0]["gpu"]["name"] == "Tesla T4"
    for arguments, message in (
        (["plan", "sdl"], "did you mean"),
        (["plan", "tiny", "--resolution", "big"], "WIDTHxHEIGHT"),
        (["plan", "tiny", "--batch-size", "0"], "1 or more"),
        (["fit", "tiny", "gtx"], "there are t4"),
        (["fit", "tiny", "t4", "--method", "half"], "full, lora"),
    ):
        assert __main__.main(arguments) == 2
        assert message in capsys.readouterr().err
