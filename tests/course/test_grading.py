"""Handed-in notebooks: whose they are, what their answers are worth, and what a notebook cannot do about it."""

import csv
import io
import json
import re
import socket
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from sdnb.__main__ import main
from sdnb.checkpointing import Keep
from sdnb.course import grading, handin, lessons
from sdnb.course.grading import Limits, grades

from .conftest import code

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("IPython")
QUICK = Limits(seconds=100)
LATENTS = "numbers_in_latents = {}\nsdnb.check('01.1', numbers_in_latents)"
LOSS = "loss = {}\nsdnb.check('01.2', loss)"


def hand_in(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[code(cell) for cell in cells]), path)


def states(grade):
    return list(grade.exercises.values())


def test_notebooks_find_their_students_and_lessons(tmp_path):
    for name in (
        "alice/01_one_training_step.ipynb", "bob/02/02_where_memory_goes.ipynb", "01_one_training_step_carol.ipynb",
        "dan-01_one_training_step (2).ipynb", "01_one_training_step.ipynb", "eve/mine.ipynb", "eve/.ipynb_checkpoints/01_x.ipynb",
    ):  # fmt: skip
        hand_in(tmp_path / "class" / name, 'sdnb.check("04.2", 1)')
    found = {grade.file: (grade.student, grade.lesson) for grade in grading.handed_in(tmp_path / "class")}
    assert found == {
        "alice/01_one_training_step.ipynb": ("alice", "01"),
        "bob/02/02_where_memory_goes.ipynb": ("bob", "02"),
        "01_one_training_step_carol.ipynb": ("carol", "01"),
        "dan-01_one_training_step (2).ipynb": ("dan- (2)", "01"),
        "01_one_training_step.ipynb": ("class", "01"),
        "eve/mine.ipynb": ("eve", "04"),  # by its first exercise
    }
    with pytest.raises(ValueError, match="no notebooks in"):
        list(grading.handed_in(tmp_path / "nothing"))


def test_answers_are_right_wrong_or_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "01_one_training_step.ipynb"
    hand_in(tmp_path / "a" / "=alice" / name, "import math", "side = 64", LATENTS.format("4 * side**2"), LOSS.format("math.pi"))
    hand_in(tmp_path / "a" / "bob" / name, LATENTS.format("None"), "loss = 1 / 0\nsdnb.check('01.2', loss)")
    (tmp_path / "a" / "carol").mkdir()
    (tmp_path / "a" / "carol" / name).write_text('{"cells": 3}')
    assert main(["grade", "a", "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert "3 notebooks, 1 of 9 answers right: grades.csv" in said
    alice, bob, carol = csv.DictReader(io.StringIO((tmp_path / "grades.csv").read_text(encoding="utf-8")))
    assert (alice["student"], alice["1"], alice["2"], alice["right"], alice["of"], alice["error"]) == (
        "'=alice",
        "right",
        "wrong",
        "1",
        "3",
        "",
    )
    assert (bob["1"], bob["2"], bob["error"]) == ("missing", "missing", "code cell 2: ZeroDivisionError: division by zero")
    assert (carol["1"], carol["error"]) == ("missing", "no notebook")
    hand_in(tmp_path / "a" / "carol" / name, LATENTS.format("64 * 64"))
    (tmp_path / "grades.csv").unlink()
    assert main(["grade", "a", "--json"]) == 1  # bob's
    found = json.loads(capsys.readouterr().out)
    assert found["barrier"] == grading.barrier().text
    assert found["notebooks"][2]["exercises"] == {"01.1": "wrong", "01.2": "missing", "01.3": "missing"}
    assert "four numbers" in found["notebooks"][2]["said"]["01.1"]
    assert not (tmp_path / "grades.csv").exists()


CHEATS = {
    "prints what a check prints": "print('✓ Right')",
    "another check": "sdnb.check = lambda *given: print('✓ Right')",
    "other checks in the package": "import sdnb.course.exercises as e\ne.EXERCISES['01.1'] = e.EXERCISES['01.2'] = lambda answer: True\n"
    "e.check = lambda *given: print('✓ Right')",
    "a record of what is done": "import json, pathlib\npathlib.Path('.sdnb-progress.json').write_text(json.dumps(['01.1', '01.2']))",
    "its own result": 'import os\nfor number in range(3, 64):\n    try:\n        os.write(number, b\'{"01.1": "\\xe2\\x9c\\x93"}\')\n'
    "    except OSError:\n        pass",
    "another package": "import os\nos.makedirs('sdnb/course')\nopen('sdnb/__init__.py', 'w').close()",
}


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS)
def test_only_the_answers_count(cheat, tmp_path):
    hand_in(
        tmp_path / "a" / "01_one_training_step.ipynb", "import sdnb", cheat, LATENTS.format("here"), "here = 5", LOSS.format("0"), cheat
    )
    hand_in(
        tmp_path / "b" / "01_one_training_step.ipynb", "import sdnb", cheat, "here = 5", LATENTS.format("lambda: here"), LOSS.format("0")
    )
    for grade in grades(tmp_path, QUICK):
        assert "right" not in states(grade)


def test_code_is_checked_beside_the_code_and_said_to_be(tmp_path):
    hand_in(tmp_path / "01_one_training_step.ipynb", LATENTS.format("lambda: 16384"), LOSS.format("1"))
    (grade,) = grades(tmp_path, QUICK)
    assert states(grade) == ["wrong", "right", "missing"]
    assert grade.beside == ["01.1"]


@pytest.mark.parametrize(
    ("cell", "limits", "error"),
    [
        ("while True: pass", Limits(seconds=8), "not finished after 8 s|ended with status"),
        ("x = bytearray(3 * 2**30)\nwhile True: pass", Limits(seconds=60, memory_bytes=2**30), "more than 1.0 GiB of memory"),
        ("import os\nos._exit(3)", QUICK, "ended with status"),
        ("import os\nos.kill(os.getpid(), 9)", QUICK, "ended with status"),
        ("raise SystemExit", QUICK, "SystemExit"),
        ("sdnb.check('01.1', 'x' * 10**7)", QUICK, "too large"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="limits of other systems differ")
def test_a_notebook_that_takes_too_much_or_ends_its_process_harms_only_itself(cell, limits, error, tmp_path):
    hand_in(tmp_path / "01_one_training_step_a.ipynb", LATENTS.format("16384"), cell + "\nsdnb.check('01.2', 1)")
    hand_in(tmp_path / "01_one_training_step_b.ipynb", LATENTS.format("16384"))
    bad, good = grades(tmp_path, limits)
    assert re.search(error, bad.error)
    assert states(good) == ["right", "missing", "missing"]


def test_a_notebook_gets_no_secrets_no_network_and_no_place_to_write(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    server = socket.create_server(("127.0.0.1", 0))
    asks = f"""import os, pathlib, socket
answer = 16384
if "HF_TOKEN" in os.environ: answer = "it saw a secret"
if pathlib.Path.home() != pathlib.Path.cwd() or set(os.listdir()) - {{"profile_default", ".ipython"}}: answer = "not an empty home"
if {grading.barrier().name != ""}:
    try:
        socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), timeout=5)
        answer = "it has the network"
    except OSError:
        pass
if {grading.barrier().name == "bwrap"}:
    if pathlib.Path({str(tmp_path)!r}).exists() and list(pathlib.Path({str(tmp_path)!r}).iterdir()): answer = "it sees the others"
    try:
        pathlib.Path({str(lessons.notebooks()[0])!r}).write_text("mine")
        answer = "it writes"
    except OSError:
        pass
sdnb.check("01.1", answer)"""
    hand_in(tmp_path / "01_one_training_step.ipynb", asks)
    with server:
        (grade,) = grades(tmp_path, QUICK)
    assert grade.exercises["01.1"] == "right", grade
    assert all(name in grading.Barrier("bwrap").text + grading.Barrier("unshare").text for name in ("bwrap", "unshare"))
    assert "can use the network" in grading.Barrier("").text


@pytest.mark.parametrize(
    "answer",
    [3, 0.5, "3/4", None, True, [1, "two"], {"down.0": "full", 3: [Keep("attention")]}, Keep("convolution", "attention")],
    ids=lambda answer: type(answer).__name__,
)
def test_data_comes_back_as_it_was(answer):
    assert handin.from_data(json.loads(json.dumps(handin.as_data(answer)))) == answer


def test_numbers_of_libraries_are_data_and_code_is_not():
    assert handin.as_data([torch.tensor(2.0), np.int64(3), Fraction(1, 3)]) == [2.0, 3, "1/3"]
    for answer in (len, Keep, Path(), torch.nn.Linear(1, 1), [print]):
        with pytest.raises(TypeError):
            handin.as_data(answer)


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--memory", "-1"], ["--jobs", "0"]])
def test_limits_that_allow_nothing_are_refused(words, tmp_path, capsys):
    assert main(["grade", str(tmp_path), *words]) == 2
    assert re.search("above 0|give 1 or more", capsys.readouterr().err)
