"""Exercises of the course: checks of answers, by name. Their texts (praise, hints, explained slips) are in `texts/`.

An exercise is a row of `EXERCISES`: a function that gets the reader's answer and returns

- True for a right answer, and False for a wrong one,
- or a text, which makes the answer wrong and says what is wrong with it: the property that fails, and what was found instead,
- or None for code that is not written yet; the check then waits, as it does for the answer None.

The answer may be anything, also a function or a class that the reader wrote. Errors of the wrong type count as a wrong answer (see
`ANSWER_ERRORS`); checks that call the reader's own code are in `building`, which catches what it raises. Texts that a check returns
are rows of the lesson's TOML file as well, under `[exercise.1.says]`, and come from `languages.reply`.

The table `[exercise.1]` of `texts/02.toml` belongs to exercise 02.1: `praise`; `hints` in the order in which they are shown, each of more
help, none the answer; and `slips`, tempting wrong answers, each with its explanation. A slip has `answer`, a number or arithmetic such as
`"3 * 64 * 64"`, or `words`, one of which occurs in the wrong answer. A hint for code may have `at`, the names of the grader's checks that
it helps with: an answer that fails at one of them gets these hints, and no others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from ..system import suggest
from . import languages, progress
from .answers import calculated, number
from .languages import reply, said, say

if TYPE_CHECKING:
    from ..checkpointing import Point

ANSWER_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)
"""Errors that an answer of the wrong type may cause in a check; it then counts as wrong."""
RECOMPUTING_BUDGET = 48 * 2**20
"""Budget of exercise 03.1 in bytes, for tiny's U-Net with four pictures: recomputing nothing peaks at 68 MiB, everything at 41."""
_points: dict[str, Point] = {}
_tries: dict[tuple[str, str], int] = {}
"""Wrong tries of each exercise, by the check that they failed at if it has hints of its own."""


def check(exercise: str, answer: object) -> None:
    """Print whether `answer` is right; each wrong try shows one more hint, as long as there are any.

    Raises `ValueError` for an unknown exercise.
    """
    if exercise not in EXERCISES:
        raise ValueError(f"no exercise {exercise!r}" + (suggest(exercise, EXERCISES) or f": there are {', '.join(EXERCISES)}"))
    if answer is None:
        print(say("waits", exercise=exercise))
        return
    try:
        verdict = EXERCISES[exercise](answer)
    except ANSWER_ERRORS:
        verdict = say("answer_is_a_number")
    if verdict is None:  # code that is not written yet
        print(say("waits", exercise=exercise))
        return
    if verdict and not isinstance(verdict, str):
        _forget(exercise)
        print(say("right", praise=said(languages.exercise(exercise)["praise"])) + "\n" + _recorded(exercise))
        return
    remark = languages.joined(verdict if isinstance(verdict, str) else "", _slip(exercise, answer))
    print(say("wrong", text=(f"{remark}\n" if remark else "") + _hint(exercise, getattr(verdict, "check", ""))))


def done() -> set[str]:
    """Exercises done so far, in this session and in earlier ones that the reader's folder records."""
    return progress.load().exercises.intersection(EXERCISES)


def _recorded(exercise: str) -> str:
    """Count an exercise as done, save that for later sessions, and return a line about the progress."""
    progress.record(progress.Progress(exercises={exercise}))
    finished, of_lesson = done(), {name for name in EXERCISES if name[:2] == exercise[:2]}
    return say("done", lesson=len(finished & of_lesson), of_lesson=len(of_lesson), course=len(finished), of_course=len(EXERCISES))


def _hint(exercise: str, check: str) -> str:
    """Next hint for an answer that fails at this check of its grader, or where the solution is once all have been shown."""
    hints = languages.exercise(exercise)["hints"]
    own = [hint for hint in hints if check in hint.get("at", [])]
    series = own or [hint for hint in hints if "at" not in hint]
    key = exercise, check if own else ""
    _tries[key] = tries = _tries.get(key, 0) + 1
    return said(series[tries - 1]) if tries <= len(series) else say("no_more_hints")


def _forget(exercise: str) -> None:
    """Let the hints of an exercise begin anew."""
    for key in [key for key in _tries if key[0] == exercise]:
        del _tries[key]


def _slip(exercise: str, answer: object) -> str:
    """Explanation of a tempting wrong answer, of two similar ones the nearer; empty for any other answer."""
    slips = languages.exercise(exercise).get("slips", [])
    if isinstance(answer, str):
        named = [slip for slip in slips if any(word in answer.lower() for word in slip.get("words", ()))]
        if named:
            return said(named[0])
    with contextlib.suppress(*ANSWER_ERRORS):
        given = number(answer)
        wrong = [(calculated(slip["answer"]), said(slip)) for slip in slips if "answer" in slip]
        near = [(abs(given - value), text) for value, text in wrong if abs(given - value) <= 5e-3 * abs(value)]
        return min(near)[1] if near else ""
    return ""


# Checks of numbers and words


def _near(value: float, tolerance: float = 0.0) -> Callable[[object], bool]:
    """Check for a number that may differ by `tolerance`."""
    return lambda answer: abs(number(answer) - value) <= tolerance


def _names_gradients(answer: object) -> bool | str:
    """Check of exercise 02.1: the gradients, and nothing else."""
    if not isinstance(answer, str):
        return reply("02.1", "one_word")
    text = answer.lower()
    if not any(word in text for word in ("gradient", "梯度")):
        return False
    others = ("weight", "activation", "state", "optimizer", "权重", "激活", "状态", "优化器")
    return reply("02.1", "one_word") if any(word in text for word in others) else True


# Checks that measure: the choice of exercise 03.1, and the settings of lessons 06 and 07


@cache
def _unet():
    from ..models import load

    return load("tiny", device="cpu").unet


def _point_of(answer: object) -> Point:
    """Cost of an answer to exercise 03.1. Raises `ValueError` for an answer of the solver."""
    from .. import checkpointing
    from ..inputs import example

    if isinstance(answer, (checkpointing.Budget, checkpointing.Point)):
        raise ValueError(reply("03.1", "by_hand"))
    if (key := repr(answer)) not in _points:
        _points[key] = checkpointing.price(_unet(), answer, example(_unet(), batch=4), fused_backward_pass=True)
    return _points[key]


def _keeps_to_the_budget(answer: object) -> bool | str:
    """Check of exercise 03.1: a choice within the budget, for less than half of the extra arithmetic (recomputing everything: 1.23)."""
    try:
        point = _point_of(answer)
    except (TypeError, ValueError) as error:
        return str(error)
    if point.peak_bytes <= RECOMPUTING_BUDGET and point.flops_ratio < 1.115:
        return True
    return reply("03.1", "cost", mib=f"{point.peak_bytes / 2**20:.1f}", ratio=f"{point.flops_ratio:.3f}")


def _warms_up_for(steps: float, *, processes: int, of_steps: int) -> Callable[[Any], bool | str]:
    """Check for a `lr_warmup_steps` of sd-scripts that lasts this many optimizer steps; each process moves the schedule on."""
    from ..sd_scripts import int_or_float

    def check_length(answer: Any) -> bool | str:
        try:
            value = int_or_float(answer.strip()) if isinstance(answer, str) else answer
            length = value * of_steps if isinstance(value, float) else int(value) / processes
            return abs(length - steps) < 1e-6 or reply("06.1", "length", steps=f"{length:,.4g}")
        except (TypeError, ValueError):
            return reply("06.1", "as_typed")

    return check_length


def _mended(**settings: object) -> Callable[[object], bool | str]:
    """Check for a text that sd-scripts would train with unchanged, and with these settings."""
    return lambda answer: _fault(answer, settings) or True


def _fault(answer: object, settings: dict[str, object]) -> str:
    """First fault of an answer that should be flags with these settings, by the doctor; empty if there is none."""
    from ..doctor import diagnose

    if not isinstance(answer, str):
        return say("should_be_text")
    diagnosis = diagnose(answer, language=languages.language())
    worst = next((finding for finding in diagnosis.as_dict()["findings"] if finding["effect"] in ("raises", "ruins", "overrides")), None)
    if worst:
        return say("doctor", what=worst["what"], why=worst["why"])
    recipe = diagnosis.fixed()
    for name, value in settings.items():
        if (own := getattr(recipe, name)) != value:
            return say("other_setting", name=name, own=own, value=value)
    return ""


def _fits(answer: object) -> bool | str:
    """Check of exercise 09.3: settings that fit a card."""
    from . import levers

    return levers.check(answer)


# Checks of code that the reader writes


def _written(exercise: str) -> Callable[[object], bool | str | None]:
    """Check for code; None as long as it only raises NotImplementedError."""

    def grade(answer: object) -> bool | str | None:
        from . import building

        return building.verdict(exercise, answer)

    return grade


_MANUAL = dict(optimizer_type="Adafactor", learning_rate=1e-4, lr_scheduler="constant_with_warmup", lr_warmup_steps=100)
_COSINE = dict(optimizer_type="AdamW", lr_scheduler="cosine", lr_warmup_steps=100, max_grad_norm=0, learning_rate=1e-4)
EXERCISES: dict[str, Callable[[Any], bool | str | None]] = {
    "00.1": _near(2e-4 * 25 / 100, 1e-9),
    "01.1": _near(4 * 64 * 64),
    "01.2": _near(1.0, 0.05),
    "01.3": _written("01.3"),
    "02.1": _names_gradients,
    "02.2": _near(859.5e6 * 16 / 2**30, 0.25),
    "02.3": _written("02.3"),
    "03.1": _keeps_to_the_budget,
    "03.2": _written("03.2"),
    "03.3": _written("03.3"),
    "04.1": _written("04.1"),
    "04.2": _written("04.2"),
    "05.1": _near(0.8, 0.005),
    "05.2": _near(1392, 2),
    "06.1": _warms_up_for(50, processes=4, of_steps=400),
    "06.2": _near(2),
    "07.1": _mended(**_MANUAL, max_grad_norm=0),
    "07.2": _mended(**_COSINE),
    "07.3": _mended(**_MANUAL),
    "08.1": _written("08.1"),
    "08.2": _near(2, 0.01),
    "09.1": _near(20, 0.01),
    "09.2": _near(2, 0.05),
    "09.3": _fits,
}
"""Check of each exercise, by name."""
