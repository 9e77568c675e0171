"""Exercises of the course: checks of answers, hints, and the reader's progress, saved in the reader's folder."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system import files, suggest
from . import lessons
from .editions import LANGUAGES

if TYPE_CHECKING:
    from ..checkpointing import Point


@dataclass(frozen=True)
class Exercise:
    """One exercise."""

    right: Callable[[Any], bool]
    """Whether an answer is right."""
    hints: tuple[str, ...]
    """Hints in the order in which they are shown, each of more help; none is the answer."""
    praise: str
    """Text for a right answer."""
    remark: Callable[[Any], str] | None = None
    """Explanation of a wrong answer, shown before the hint."""


NUMBER = re.compile(r"([-+]?\d[\d.,]*(?:/\d+|e[-+]?\d+)?)\s*[a-z]*", re.IGNORECASE)
"""Number or fraction, with or without a unit after it."""


def _number(answer: Any) -> float:
    """Read a number as people write it: 0.75, "3/4", "1,024", "12.8 GiB", or from a tensor. Raises `ValueError` for other text."""
    if isinstance(answer, str):
        if not (match := NUMBER.fullmatch(answer.strip())):
            raise ValueError(f"{answer!r} is no number")
        return float(Fraction(re.sub(r",(?=\d{3}\b)", "", match[1])))
    if isinstance(answer, bool):
        raise TypeError("True is no number")
    return float(answer.item() if hasattr(answer, "item") else answer)


def _slips(of: Mapping[float, str]) -> Callable[[object], str]:
    """Function that explains a wrong number, by common wrong numbers; empty for all others."""
    return lambda answer: next((why for slip, why in of.items() if abs(_number(answer) - slip) <= 1e-3 * abs(slip)), "")


def _is_mended(**settings: object) -> Callable[[object], bool]:
    """Function that says whether sd-scripts would train with an answer unchanged, and with these settings."""

    return lambda answer: not _fault(answer, settings)


def _remark_on_fault(**settings: object) -> Callable[[object], str]:
    """Function that says what is still wrong with an answer."""
    return lambda answer: _fault(answer, settings)


def _fault(answer: object, settings: dict[str, object]) -> str:
    """First fault of an answer that should be flags with these settings, by the doctor; empty if there is none."""
    from ..doctor import diagnose

    if not isinstance(answer, str):
        return "Your answer should be the corrected text."
    diagnosis = diagnose(answer)
    worst = next((finding for finding in diagnosis.findings if finding.effect in ("raises", "ruins", "overrides")), None)
    if worst:
        return f"The doctor: {worst.what} {worst.why}"
    recipe = diagnosis.fixed()
    for name, value in settings.items():
        if (own := getattr(recipe, name)) != value:
            return f"It runs, but {name} is {own}, not {value}."
    return ""


EXERCISES = {
    "00.1": Exercise(
        lambda answer: abs(_number(answer) - 2e-4 * 25 / 100) < 1e-9,
        (
            "During the warmup the learning rate grows in a straight line, starting from 0.",
            "Halfway through lr_warmup_steps it has reached half of learning_rate. Step 25 is only half as far.",
        ),
        "Right: after a quarter of the warmup, a quarter of the learning rate.",
        _slips(
            {
                2e-4: "That is the full rate, which step 100 reaches.",
                1e-4: "That is the rate of step 50.",
                0.25: "That is how much of the warmup is over. How much of the full rate is that?",
            }
        ),
    ),
    "01.1": Exercise(
        lambda answer: _number(answer) == 4 * 64 * 64,
        (
            "Each side becomes eight times shorter, and the latents hold four numbers for each position.",
            "512 pixels become 64 positions on each side. How many positions is that, and how many numbers?",
        ),
        "Right: the pixels are 786,432 numbers, 48 times as many as the latents.",
        _slips(
            {
                64 * 64: "That is how many positions there are. Each holds four numbers.",
                3 * 64 * 64: "Pixels have three channels, but latents have four.",
                3 * 512 * 512: "That is how many numbers the pixels hold.",
                512 * 512 * 4: "The sides have not been shortened yet.",
                512 * 512 * 4 / 8: "Both sides become eight times shorter, not only one.",
                4 * 16 * 16: "That is for the pictures of tiny, above.",
            }
        ),
    ),
    "01.2": Exercise(
        lambda answer: abs(_number(answer) - 1.0) < 0.05,
        (
            "The noise has mean 0 and variance 1. How far from it is a prediction of zero, squared and averaged?",
            "mse_loss(zeros, noise) is the mean of noise², and the noise is standard normal. What is that mean?",
        ),
        "Right: a loss near 1 is no better than predicting zeros, and a loss above 1 is worse.",
        lambda answer: "A loss of 0 would mean that every prediction is exactly right." if _number(answer) == 0 else "",
    ),
}
EXERCISES |= {
    "02.1": Exercise(
        lambda answer: isinstance(answer, str) and "activation" in answer.lower() and not _others(answer),
        (
            "Which parts have the same size whatever the pictures are?",
            "Weights, gradients and state are counted per weight. What is left?",
        ),
        "Right. Only what the forward pass keeps depends on the number of pictures.",
        lambda answer: "Name one part, in a word." if not isinstance(answer, str) or "activation" in answer.lower() else "",
    ),
    "02.2": Exercise(
        lambda answer: abs(_number(answer) - 859.5e6 * 16 / 2**30) < 0.25,
        (
            "How many bytes does one weight need: itself, its gradient, and AdamW's two numbers?",
            "Sixteen bytes for each weight. A GiB has 2**30 bytes, not a thousand million.",
        ),
        "Right: nearly 13 GiB, of the 16 GB that a T4 is sold with.",
    ),
}


def _others(answer: str) -> bool:
    return any(word in answer.lower() for word in ("weight", "gradient", "state", "optimizer"))


RECOMPUTING_BUDGET = 48 * 2**20
"""Budget of exercise 03.1 in bytes, for tiny's U-Net with four pictures: recomputing nothing peaks at 68 MiB, everything at 41."""


_points: dict[str, Point] = {}


@cache
def _unet():
    from ..models import load

    return load("tiny", device="cpu").unet


def _point_of(answer: object) -> Point:
    """Cost of an answer to exercise 03.1. Raises `ValueError` for an answer of the solver."""
    from .. import checkpointing
    from ..inputs import example

    if isinstance(answer, (checkpointing.Budget, checkpointing.Point)):
        raise ValueError("Please choose by hand: the solver gets its turn below.")
    if (key := repr(answer)) not in _points:
        _points[key] = checkpointing.price(_unet(), answer, example(_unet(), batch=4), fused_backward_pass=True)
    return _points[key]


def _keeps_to_the_budget(answer: object) -> bool:
    point = _point_of(answer)
    return point.peak_bytes <= RECOMPUTING_BUDGET and point.flops_ratio < 1.115  # recomputing everything: 1.23


def _cost_as_text(answer: object) -> str:
    try:
        point = _point_of(answer)
    except (TypeError, ValueError) as error:
        return str(error)
    return f"Your choice peaks at {point.peak_bytes / 2**20:.1f} MiB, at {point.flops_ratio:.3f} times the FLOPs."


EXERCISES |= {
    "03.1": Exercise(
        _keeps_to_the_budget,
        (
            "A few blocks hold most of the bytes, and convolutions, which do most of the arithmetic, hold few: look at both lists above.",
            "Give a list of the transformer blocks' names to recompute only those, or Keep(...) to say which results every block keeps.",
            "The results of convolutions and attention are few bytes and much arithmetic: keep them. Matrix products are cheaper to rerun.",
        ),
        "Right: it fits, for less than half of the extra arithmetic that recomputing everything costs.",
        _cost_as_text,
    ),
    "03.2": Exercise(
        lambda answer: abs(_number(answer) - 4 / 3) < 0.004,
        (
            "A step is one forward and one backward. If forward counts as 1, what does the step count as?",
            "Recomputing everything adds one more forward. Divide the new total by the old one.",
        ),
        "Right: 4/3. In practice it is less, because results that backward does not need are not computed again.",
        _slips(
            {
                4: "That is the new total, counted in forwards. Divide it by the old one.",
                2: "One more forward does not double the step: backward counts too.",
                1.5: "That would be right if backward cost as much as forward. It costs twice as much.",
                1 / 3: "That is the extra arithmetic. How large is the whole step, beside what it was?",
                3 / 4: "Turn it over: how large is the new step beside the old one?",
                5 / 3: "Only forward runs again, not backward.",
            }
        ),
    ),
}
EXERCISES |= {
    "04.1": Exercise(
        lambda answer: _number(answer) == 640 + 320 * 3 * 3,
        (
            "As a matrix it has one row for each output channel. Everything else makes the columns.",
            "Adafactor stores one number for each row and one for each column.",
        ),
        "Right: 3,520 numbers for 1,843,200 weights.",
    ),
    "04.2": Exercise(
        lambda answer: abs(_number(answer) - 2 / 7) < 0.005,
        (
            "Each 7×7 window counts as a matrix of its own. How many weights, rows and columns does it have?",
            "Seven row means and seven column means stand in for seven times seven weights.",
        ),
        "Right: 2/7. The larger the window, the smaller the waste. Stable Diffusion's windows are at most 3×3.",
    ),
    "05.1": Exercise(
        lambda answer: abs(_number(answer) - 0.8) < 0.005,
        (
            "The norm of both together is that of a right-angled triangle's longest side.",
            "Both are divided by the same number, so that the norm of both together becomes 1.",
        ),
        "Right: 4/5, and the first is 3/5. Their proportion stays the same.",
        _slips(
            {
                1: "That is right if each tensor is clipped alone. Here both share one limit.",
                3 / 5: "That is the first tensor's norm.",
                4 / 7: "Norms do not simply add up: the norm of both together is not 3 + 4.",
                5: "That is the norm of both together before clipping.",
                4: "That is its norm before clipping.",
            }
        ),
    ),
    "05.2": Exercise(
        lambda answer: abs(_number(answer) - 2**0.5) < 0.01,
        (
            "Each has a norm above 1, so each is scaled down to 1.",
            "Combine the two norms as in 05.1: square, add, take the root.",
        ),
        "Right: the root of 2. With a thousand tensors it can be 32: a limit for each tensor does not limit the whole.",
        _slips(
            {
                1: "That is right if both share one limit. Here each tensor has its own.",
                2: "Two norms of 1 do not add up to 2: square them, add, and take the root.",
                5: "That is the norm of both together before clipping.",
            }
        ),
    ),
}


def _optimizer_steps(answer: Any, processes: int = 4, steps: int = 400) -> float:
    """Length in optimizer steps of a warmup setting in sd-scripts, where each process moves the schedule on."""
    from ..sd_scripts import int_or_float

    value = int_or_float(answer.strip()) if isinstance(answer, str) else answer
    return value * steps if isinstance(value, float) else int(value) / processes


def _length_as_text(answer: object) -> str:
    try:
        return f"That would last {_optimizer_steps(answer):,.4g} optimizer steps."
    except (TypeError, ValueError):
        return "The answer is what you would type: a number of steps, a share, or a percentage."


EXERCISES |= {
    "06.1": Exercise(
        lambda answer: abs(_optimizer_steps(answer) - 50) < 1e-6,
        (
            "How often is the schedule moved on in one optimizer step?",
            "A whole number counts those moves; a share is one of the run, and needs no counting.",
        ),
        "Right. As a share it would be so on any number of GPUs.",
        _length_as_text,
    ),
    "06.2": Exercise(
        lambda answer: abs(_number(answer) - 119.5) < 0.05,
        (
            "Over the warmup the rate is half of the full one on average, a little less.",
            "Subtract from the run what the warmup loses: half of it, and half a step.",
        ),
        "Right: a fifth of the run is lost.",
        lambda answer: "Nearly: look at the rate of the very first step." if _number(answer) in (119, 120, 121) else "",
    ),
}
_MANUAL = dict(optimizer_type="Adafactor", learning_rate=1e-4, lr_scheduler="constant_with_warmup", lr_warmup_steps=100)
_COSINE = dict(optimizer_type="AdamW", lr_scheduler="cosine", lr_warmup_steps=100, max_grad_norm=0, learning_rate=1e-4)
EXERCISES |= {
    "07.1": Exercise(
        _is_mended(**_MANUAL, max_grad_norm=0),
        (
            "The values of optimizer_args are read as Python. How does Python spell true and false?",
            'Put each argument in quotes of its own: "relative_step=…" "scale_parameter=…".',
        ),
        "Right: each argument has its own quotes, and False has a capital F.",
        _remark_on_fault(**_MANUAL, max_grad_norm=0),
    ),
    "07.2": Exercise(
        _is_mended(**_COSINE),
        (
            "Read each name in the file letter by letter.",
            "sd-scripts reads 100.0 as a share of the run, and 100 as a number of steps.",
        ),
        "Right. sd-scripts would have reported neither slip, and clipping would have stayed on.",
        _remark_on_fault(**_COSINE),
    ),
    "07.3": Exercise(
        _is_mended(**_MANUAL),
        (
            "Two of these settings belong to the automatic learning rate. One is warmup_init; the other is a schedule.",
            "A fixed rate needs warmup_init=False, and a schedule that can have a warmup.",
        ),
        "Right: the fixed and the automatic learning rate need different settings, and the two sets do not mix.",
        _remark_on_fault(**_MANUAL),
    ),
}
EXERCISES |= {
    "08.1": Exercise(
        lambda answer: _number(answer) == 16 * (320 + 320),
        (
            "An adapter has two matrices. One turns 320 numbers into 16, the other turns 16 into 320.",
            "Each of the two matrices has 16 times 320 weights.",
        ),
        "Right: 10,240 weights beside 102,400, a tenth as many.",
    ),
    "08.2": Exercise(
        lambda answer: abs(_number(answer) - 2) < 0.01,
        (
            "What the two matrices add is multiplied by alpha / rank, and then by the strength.",
            "With an alpha of 8, alpha / rank is half of what it was. What makes up for a half?",
        ),
        "Right: at 2. The strength multiplies alpha / rank, so the alphas in a file decide how strong it is.",
    ),
    "08.3": Exercise(
        lambda answer: _number(answer) == 1700,
        (
            "Which was the last save before the first session ended?",
            "The second session continues after step 1,000, but the first session had computed more than that.",
        ),
        "Right: 1,100 and then 600. A hundred steps ran twice, with the same losses.",
    ),
}
EXERCISES |= {
    "09.1": Exercise(
        lambda answer: abs(_number(answer) - 20) < 0.01,
        (
            "A number in fp32 takes four bytes. Which numbers exist for each weight during AdamW's step?",
            "Besides the weight: what backward computed, what AdamW keeps between steps, and what its step computes for all weights "
            "at once.",
        ),
        "Right: 20 bytes, of which one in five is the weight itself.",
    ),
    "09.2": Exercise(
        lambda answer: abs(_number(answer) - 2) < 0.05,
        (
            "Which part of the peak disappears if each weight is updated during backward?",
            "Without a fused backward pass all gradients exist at once: one for each weight, in the weights' precision.",
        ),
        "Right. With Adafactor this was half of what remained, apart from the activations.",
    ),
}
_tries: dict[str, int] = {}
_done: set[str] = set()


def done() -> set[str]:
    """Exercises done so far, in this session and in earlier ones that the reader's folder records."""
    try:
        saved = json.loads(_progress_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        saved = []
    if isinstance(saved, list):
        _done.update(exercise for exercise in EXERCISES if exercise in saved)
    return set(_done)


def _progress_file() -> Path:
    folder = Path("..") if Path.cwd().name in LANGUAGES else Path()  # the English lessons' folder, above a translation's
    return (lessons.DRIVE if lessons.DRIVE.is_dir() else folder) / ".sdnb-progress.json"


def _record(exercise: str) -> str:
    """Count an exercise as done, save that for later sessions, and return a line about the progress."""
    before = done()
    _done.add(exercise)
    if exercise not in before:
        with contextlib.suppress(OSError):  # in a folder that is read-only, only this session counts it
            files.write(_progress_file(), json.dumps(sorted(_done)))
    of_lesson = [name for name in EXERCISES if name[:2] == exercise[:2]]
    return f"Done: {len(_done.intersection(of_lesson))} of {len(of_lesson)} in this lesson, {len(_done)} of {len(EXERCISES)} in the course."


ANSWER_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)
"""Errors that an answer of the wrong type may cause in a check; it then counts as wrong."""


def check(exercise: str, answer: object) -> None:
    """Print whether `answer` is right; each wrong try shows one more hint. Raises `ValueError` for an unknown exercise."""
    if exercise not in EXERCISES:
        raise ValueError(f"no exercise {exercise!r}" + (suggest(exercise, EXERCISES) or f": there are {', '.join(EXERCISES)}"))
    row = EXERCISES[exercise]
    tries = _tries[exercise] = max(1, _tries.get(exercise, 0) + (answer is not None))
    if answer is None:
        print(f"… {exercise} waits for your answer. {row.hints[0]}")
        return
    try:
        right, remark = row.right(answer), ""
    except ANSWER_ERRORS:
        right, remark = False, "The answer is a number."
    if right:
        _tries.pop(exercise)
        print(f"✓ {row.praise}\n{_record(exercise)}")
        return
    if row.remark:
        with contextlib.suppress(*ANSWER_ERRORS):
            remark = row.remark(answer)
    hint = row.hints[min(tries, len(row.hints)) - 1]
    preface = "That was the last hint: " if tries > len(row.hints) else ""
    print("✗ Not yet. " + (f"{remark}\n" if remark else "") + preface + hint)
