"""Guesses: the reader's prediction beside the measurement, as widgets where somebody sits at the notebook, and as text elsewhere."""

import json
import re
from pathlib import Path

import pytest

import sdnb
from sdnb.course import guess_widgets, guesses, languages, progress, questions

ROWS = """
[guess.a]
kind = "number"
unit = { en = "steps", zh = "步" }
within = 1.5
why = { en = "The sky of `tiny` falls first.", zh = "天空先暗。" }

[guess.b]
kind = "choice"

[[guess.b.choices]]
name = "ink"
en = "In ink."
zh = "水墨。"
why = { en = "The words are new to it.", zh = "它没见过这些词。" }

[[guess.b.choices]]
name = "colour"
en = "In colour, with `tiny`"
zh = "彩色"
why = { en = "It has only seen colour.", zh = "它只见过彩色。" }

[guess.c]
kind = "curve"
x = [0, 100, 999]
x_label = { en = "noise level t", zh = "噪声水平 t" }
y_label = { en = "loss", zh = "损失" }
low = 0
high = 1

[guess.d]
kind = "number"
unit = "GiB"
within = 2
"""


class Handle:
    """An output of a notebook: what it showed, one after the other."""

    def __init__(self, bundle):
        self.shown = [bundle]

    def update(self, bundle, raw):
        assert raw
        self.shown.append(bundle)

    @property
    def html(self):
        return self.shown[-1]["text/html"]

    @property
    def is_widget(self):
        return guess_widgets.VIEW in self.shown[-1]


@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    """Somebody who begins, in a folder of their own, a course that has four guesses."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "00.toml").write_text(ROWS, encoding="utf-8")
    (folder / "course.toml").write_bytes((languages.FOLDER / "course.toml").read_bytes())
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr(languages, "FOLDER", folder)
    monkeypatch.delenv(languages.VARIABLE, raising=False)
    monkeypatch.setattr(languages, "_spoken", [])
    monkeypatch.setattr(progress, "_session", progress.Progress())
    monkeypatch.setattr(guesses, "_guesses", {})


@pytest.fixture
def outputs(monkeypatch):
    """Outputs of a notebook that somebody sits at."""
    shown = []

    def display(bundle):
        shown.append(Handle(bundle))
        return shown[-1]

    monkeypatch.setattr(guesses, "attended", lambda: True)
    monkeypatch.setattr(guess_widgets, "_display", display)
    return shown


def press(guess, value=None):
    """Enter a value into the widgets, and press the button."""
    board = guess._board
    if isinstance(value, list):
        for slider, height in zip(board._input._sliders, value, strict=True):
            slider.value = height
    elif value is not None:
        board._input.widget.value = value
    board._button.click()
    return re.sub("<.*?>", "", board._line.value)


# As text


def test_a_number_as_text(capsys):
    guess = sdnb.guess("00.a")
    assert capsys.readouterr().out == "Write down a number, in steps, before you go on.\n"
    assert guess.reveal(62) is None
    assert capsys.readouterr().out == "Measured: 62 steps.\nThe sky of `tiny` falls first.\n"


def test_a_choice_as_text_explains_every_choice(capsys):
    guess = sdnb.guess("00.b")
    assert capsys.readouterr().out == "Choose one before you go on:\n- In ink.\n- In colour, with `tiny`\n"
    guess.reveal("colour")
    assert capsys.readouterr().out == "✗ In ink: The words are new to it.\n✓ In colour, with `tiny`: It has only seen colour.\n"


def test_a_curve_as_text(capsys):
    guess = sdnb.guess("00.c")
    assert capsys.readouterr().out == "Draw the curve before you go on: loss over noise level t.\n"
    guess.reveal([1, 0.51234, 0.05])
    assert capsys.readouterr().out == "Measured, loss at noise level t = 0, 100, 999: 1, 0.512, 0.05.\n"


def test_as_text_it_does_not_depend_on_what_was_answered_before(capsys):
    Path(".sdnb-progress.json").write_text('{"guesses": {"00.a": 40}}', encoding="utf-8")
    sdnb.guess("00.a").reveal(62)
    assert "40" not in capsys.readouterr().out


def test_it_speaks_the_language_of_the_course(capsys):
    languages.speak("zh")
    sdnb.guess("00.a").reveal(62)
    sdnb.guess("00.b").reveal("colour")
    assert capsys.readouterr().out == (
        "先写下一个数再往下看，单位是步。\n实测：62 步。\n天空先暗。\n"
        "先选一个再往下看：\n- 水墨。\n- 彩色\n✗ 水墨：它没见过这些词。\n✓ 彩色：它只见过彩色。\n"
    )


# What is refused


@pytest.mark.parametrize("name", ["00.x", "a", "7", "99.a", "", "../00.a"])
def test_an_unknown_guess_is_refused(name):
    with pytest.raises(ValueError, match=r"no guess .*(did you mean|there are) "):
        sdnb.guess(name)


def test_the_nearest_is_named():
    with pytest.raises(ValueError, match=r"did you mean '00\.a'"):
        sdnb.guess("0.a")


@pytest.mark.parametrize(
    ("name", "measured", "message"),
    [
        ("00.b", "color", "did you mean 'colour'"),
        ("00.b", 3, "there are ink, colour"),
        ("00.a", "many", "could not convert"),
        ("00.a", float("nan"), "no finite number"),
        ("00.c", [1, 2], "2 heights: the curve has 3 positions"),
        ("00.c", [1, 2, float("inf")], "no finite number"),
    ],
)
def test_what_cannot_answer_the_question_is_refused(name, measured, message, capsys):
    with pytest.raises(ValueError, match=message):
        sdnb.guess(name).reveal(measured)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('kind = "word"', "has the kind 'word'"),
        ('kind = "number"', "unknown keys: within"),
        ('kind = "number"\nwithin = 1.0', "above 1"),
        ('kind = "number"\nwithin = 2\nunits = "GiB"', "unknown keys: units"),
        ('kind = "choice"\nchoices = []', "two or more"),
        ('kind = "choice"\nchoices = [{ name = "a", en = "A", zh = "A" }]', "'a' has missing or unknown keys: why"),
        ('kind = "curve"\nx = [1, 1]\nx_label = "t"\ny_label = "y"\nlow = 0\nhigh = 1', "rising positions"),
        ('kind = "curve"\nx = [1, 2]\nx_label = "t"\ny_label = "y"\nlow = 1\nhigh = 1', "low below high"),
    ],
)
def test_a_table_with_a_fault_is_refused(row, message):
    (languages.FOLDER / "01.toml").write_text(f"[guess.a]\n{row}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        questions.question("01.a")


# With widgets


@pytest.mark.parametrize(
    ("name", "answer", "line", "measured", "said"),
    [
        ("00.a", "about 40 steps", "Your guess: 40 steps. You can still change it.", 62, "✗ Too low, by a factor of 1.55."),
        ("00.a", "50", "Your guess: 50 steps. You can still change it.", 62, "✓ Close: within a factor of 1.5."),
        ("00.a", "62", "Your guess: 62 steps. You can still change it.", 62, "✓ Exactly right."),
        ("00.a", "0", "Your guess: 0 steps. You can still change it.", 62, "✗ Too low."),
        ("00.a", "-3", "Your guess: -3 steps. You can still change it.", -30, "✗ Too high, by a factor of 10."),
        ("00.b", "ink", "Your guess: In ink. You can still change it.", "colour", "✗ The words are new to it."),
        ("00.b", "colour", "Your guess: In colour, with tiny. You can still change it.", "colour", "✓ It has only seen colour."),
        ("00.c", [0.5, 0.3, 0.1], "Your curve is drawn. You can still change it.", [1, 0.5, 0.1], "<svg "),
    ],
)
@pytest.mark.parametrize("waits", [False, True], ids=["answered first", "revealed first"])
def test_the_answer_is_compared_with_the_measurement(waits, name, answer, line, measured, said, outputs):
    guess = sdnb.guess(name)
    assert outputs[-1].is_widget
    if waits:
        assert guess.reveal(measured) is None
        assert outputs[-1].is_widget
        assert f"You have not written down your guess {name} yet." in outputs[-1].html
    assert press(guess, answer) == (line if not waits else line.removesuffix(" You can still change it.").removesuffix("."))
    if not waits:
        guess.reveal(measured)
    assert said in outputs[-1].html
    assert not any(output.is_widget for output in outputs)  # nothing is left that a notebook without a kernel cannot show
    assert "The sky" in outputs[-1].html or name != "00.a"


def test_a_wrong_choice_is_followed_by_the_right_one(outputs):
    guess = sdnb.guess("00.b")
    press(guess, "ink")
    guess.reveal("colour")
    assert "✓ In colour, with <code>tiny</code>: It has only seen colour." in outputs[-1].html


@pytest.mark.parametrize(
    ("name", "entered", "line"),
    [
        ("00.a", "", "That is no number. Write it in digits, such as 12.5."),
        ("00.a", "many", "That is no number. Write it in digits, such as 12.5."),
        ("00.d", "500 MiB", "Please give the number in GiB."),
        ("00.b", None, "Choose one of them first."),
    ],
)
def test_what_is_no_answer_is_said_and_not_kept(name, entered, line, outputs):
    guess = sdnb.guess(name)
    assert press(guess, entered) == line
    assert guess.answer is None
    assert not Path(".sdnb-progress.json").exists()


def test_it_can_be_changed_until_the_measurement(outputs):
    guess = sdnb.guess("00.a")
    press(guess, "40")
    press(guess, "50")
    guess.reveal(62)
    assert guess.answer == 50
    assert guess._board._button.disabled and guess._board._input.widget.disabled
    assert "Your guess: 50 steps" in outputs[0].html + outputs[1].html


def test_after_the_first_press_each_change_counts(outputs):
    """Also one that arrives after the click, as a slider's last move may."""
    guess = sdnb.guess("00.c")
    press(guess, [0.5, 0.3, 0.1])
    guess._board._input._sliders[0].value = 0.9
    assert guess.answer == [0.9, 0.3, 0.1]
    guess.reveal([1, 0.5, 0.1])
    guess._board._input._sliders[0].value = 0.2
    press(guess)
    assert guess.answer == [0.9, 0.3, 0.1]


def test_enter_is_enough_for_a_number(outputs):
    guess = sdnb.guess("00.a")
    guess._board._input.widget.value = "40"  # it is sent with Enter, or when the field is left
    assert guess.answer == 40


def test_an_answer_is_there_again_in_the_next_session(outputs, monkeypatch):
    press(sdnb.guess("00.b"), "ink")
    press(sdnb.guess("00.c"), [0.5, 0.3, 0.1])
    assert json.loads(Path(".sdnb-progress.json").read_text(encoding="utf-8"))["guesses"] == {"00.b": "ink", "00.c": [0.5, 0.3, 0.1]}
    monkeypatch.setattr(progress, "_session", progress.Progress())
    monkeypatch.setattr(guesses, "_guesses", {})
    guess = sdnb.guess("00.b")
    assert guess._board._input.value() == "ink"
    assert "Your guess: In ink." in guess._board._line.value
    guess.reveal("colour")
    assert "The words are new to it." in outputs[-1].html
    assert sdnb.guess("00.c")._board._input.value() == [0.5, 0.3, 0.1]


@pytest.mark.parametrize("saved", ["green", 3, None, {"a": 1}, []])
def test_an_answer_that_is_none_any_more_is_forgotten(saved, outputs):
    Path(".sdnb-progress.json").write_text(json.dumps({"guesses": {"00.b": saved, "00.c": saved, "00.a": [saved]}}), encoding="utf-8")
    assert [sdnb.guess(name).answer for name in ("00.b", "00.c", "00.a")] == [None] * 3


def test_the_question_may_be_asked_again_before_the_answer(outputs):
    """The comparison that waits below belongs to the new widgets as well."""
    guess = sdnb.guess("00.a")
    guess.reveal(62)
    waiting = outputs[-1]
    again = sdnb.guess("00.a")
    press(again, "50")
    assert "Close" in waiting.html


def test_what_the_notebook_keeps_of_a_widget_is_text(outputs):
    """For a page that is opened without a kernel: the prompt, and later the answer, beside each widget."""
    guess = sdnb.guess("00.b")
    frame, view = outputs
    assert "In colour, with <code>tiny</code>" in frame.html
    assert "In colour, with <code>tiny</code>" in view.html
    assert view.shown[-1]["text/plain"].startswith("Choose one before you go on:")
    press(guess, "ink")
    assert "Your guess: In ink" in frame.html


def test_a_result_is_announced_and_has_no_colours_of_its_own(outputs):
    guess = sdnb.guess("00.c")
    press(guess, [0.5, 0.3, 0.1])
    guess.reveal([1, 0.5, 0.1])
    page = outputs[-1].html
    assert 'role="status"' in page
    assert "white" not in page and "#fff" not in page.lower()
    assert 'role="img" aria-label="loss over noise level t: your guess: 0.5, 0.3, 0.1; measured: 1, 0.5, 0.1."' in page
    assert page.count("stroke-dasharray") == 1  # told apart without colour


@pytest.mark.parametrize(
    ("value", "text"),
    [(62, "62"), (62.0, "62"), (0.2346, "0.235"), (1234.5, "1,234"), (16384, "16,384"), (-0.5, "-0.5"), (2e-4, "0.0002"), (123.456, "123")],
)
def test_figures(value, text):
    assert questions.figures(value) == text
