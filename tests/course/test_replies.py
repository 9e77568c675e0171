"""Stored replies of guesses and exercises in another language: as if they had been said in it."""

import io
from contextlib import redirect_stdout

import pytest

import sdnb
from sdnb.course import exercises, guesses, languages, progress, questions, replies

from .test_guesses import ROWS


@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(languages.VARIABLE, raising=False)
    monkeypatch.setattr(languages, "_spoken", [])
    monkeypatch.setattr(progress, "_session", progress.Progress())
    monkeypatch.setattr(guesses, "_guesses", {})


def said(language, call):
    """What is printed in a language by somebody who has just begun."""
    languages.speak(language)
    exercises._tries.clear()
    with redirect_stdout(io.StringIO()) as text:
        call()
    return text.getvalue()


def same_in_both(lesson, call):
    english, chinese = said("en", call), said("zh", call)
    assert english != chinese
    assert replies.translated(english, lesson, "zh") == chinese


@pytest.mark.parametrize("name", [name for name in exercises.EXERCISES if name[:2] != "07"])
def test_an_exercise_that_waits_that_is_wrong_and_that_is_right(name, monkeypatch):
    same_in_both(name[:2], lambda: sdnb.check(name, None))
    for right in (False, True):
        monkeypatch.setitem(exercises.EXERCISES, name, lambda answer, right=right: right)
        same_in_both(name[:2], lambda: sdnb.check(name, object()))


@pytest.mark.parametrize(("name", "measured"), [("00.a", 62), ("00.b", "ink"), ("00.b", "colour"), ("00.d", 11.5)])
def test_a_guess_and_what_was_measured(name, measured, tmp_path, monkeypatch):
    (tmp_path / "00.toml").write_text(ROWS, encoding="utf-8")
    (tmp_path / "course.toml").write_bytes((languages.FOLDER / "course.toml").read_bytes())
    monkeypatch.setattr(languages, "FOLDER", tmp_path)
    same_in_both("00", lambda: sdnb.guess(name))
    same_in_both("00", lambda: sdnb.guess(name).reveal(measured))


@pytest.mark.parametrize("name", questions.names())
def test_the_guesses_of_the_course(name):
    same_in_both(name[:2], lambda: sdnb.guess(name))
    question = questions.question(name)
    for measured in getattr(question, "texts", [12.5] if isinstance(question, questions.Number) else []):
        same_in_both(name[:2], lambda measured=measured: sdnb.guess(name).reveal(measured))


@pytest.mark.parametrize(
    "output", ["A figure\n", "Measured: 3 of them and more.\n… 01.1 waits for your answer.\n", "✗ Not yet. The doctor: no.\n"]
)
def test_what_is_not_all_known_stays_as_it_is(output):
    assert replies.translated(output, "01", "zh") == output


def test_another_language_is_not_made_up():
    assert replies.translated("… 01.1 waits for your answer.\n", "01", "xx") == "… 01.1 waits for your answer.\n"
