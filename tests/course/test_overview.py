"""What the lessons say of themselves."""

from dataclasses import replace
from pathlib import Path

import pytest

from sdnb.course import lessons
from sdnb.course.editions import LANGUAGES
from sdnb.course.overview import Lesson

from .conftest import PICTURE, printed, prose

nbformat = pytest.importorskip("nbformat")


def lesson(*cells, seconds=1.0, error=None):
    return Lesson(Path("00_a.ipynb"), nbformat.v4.new_notebook(cells=list(cells)), seconds, error)


@pytest.mark.parametrize("path", lessons.notebooks(), ids=lambda path: path.stem)
def test_every_lesson_says_its_idea_its_times_and_what_it_builds_on(path):
    each = Lesson(path, nbformat.read(path, as_version=4), 0.0)
    assert 20 < len(each.idea) < 300
    assert each.minutes or "an hour or two to do" in each.notebook.cells[0].source  # the capstone
    assert each.minutes is None or (5 <= each.minutes[0] <= 45 and each.minutes[1] <= 5)
    names = [other.name for other in lessons.notebooks()]
    assert set(each.builds_on) <= set(names[: names.index(path.name)])
    assert bool(each.builds_on) == (path != lessons.notebooks()[0])
    for language in LANGUAGES:
        if (translation := each.translated(language)) is not None:
            assert translation.idea
            assert translation.idea != each.idea


@pytest.mark.parametrize(
    ("said", "minutes"),
    [
        ("12 minutes to read, 2 to run", (12, 2)),
        ("1 minute to read, half a minute to run", (1, 0.5)),
        ("9 minutes to read, ½ to run", (9, 0.5)),
    ],
)
def test_the_times_as_lessons_write_them(said, minutes):
    assert lesson(prose(f"# A\n\nAbout {said}.")).minutes == minutes
    assert lesson(prose("# A\n\nIt takes a while.")).minutes is None


def test_a_running_time_that_is_not_the_one_said_is_told():
    cell = prose("# A\n\nAbout 9 minutes to read, 1 to run.")
    assert [bool(lesson(cell, seconds=seconds).off) for seconds in (29, 31, 119, 121)] == [True, False, False, True]
    assert str(lesson(cell, seconds=121)) == "00_a.ipynb  121.0 s  ok  says 60 s to run"
    assert lesson(cell, seconds=1, error="E").off == ""
    assert lesson(prose("# A"), seconds=999).off == ""


def test_the_question_is_the_first_guess():
    cells = prose("# A\n\nWhy?"), prose("Text.\n\n**Guess:** the `U-Net`\nhas 7. How many? Two?")
    assert lesson(*cells).question == "The `U-Net` has 7. How many?"
    assert lesson(prose("# 一"), prose("**猜一猜：** 有多少？再想。")).question == "有多少？"
    assert lesson(cells[0]).question == ""


def test_a_translation_keeps_its_own_outputs_and_gets_what_it_lacks_or_what_plays(repository):
    path = repository / "notebooks" / "00_first.ipynb"
    ran = Lesson(path, nbformat.read(path, as_version=4), 3.0)
    page = nbformat.v4.new_output("execute_result", data={"text/html": "<b>", "image/png": PICTURE}, execution_count=1)
    ran.notebook.cells[1].outputs, ran.notebook.cells[2].outputs = [printed("43\n")], [page]
    translation = ran.translated("zh")
    assert translation.title == "第一课"
    assert translation.seconds == 3.0
    assert translation.notebook.cells[1].outputs[0].text == "42\n"
    assert translation.notebook.cells[2].outputs == [page]
    stored = nbformat.read(translation.path, as_version=4)
    stored.cells[1].outputs = []
    nbformat.write(stored, translation.path)
    assert ran.translated("zh").notebook.cells[1].outputs[0].text == "43\n"
    assert replace(ran, path=path.with_name("01_second.ipynb")).translated("zh") is None
