"""What the notebooks need beside the package itself: where they lie, and exercises that check themselves."""

from __future__ import annotations

import difflib
import filecmp
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def notebooks() -> list[Path]:
    """The lessons in reading order, as they travel with the package or lie in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if found := sorted(folder.glob("[0-9][0-9]_*.ipynb")):
            return found
    raise FileNotFoundError("the notebooks are missing: install sdnb again")


def unpack(folder: str | Path) -> list[Path]:
    """Copy the lessons to `folder` and return the copies. One that is there already and differs is the reader's work: it stays."""
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for lesson in notebooks():
        copy = folder / lesson.name
        if not copy.exists():
            partial = copy.with_suffix(".partial")
            shutil.copyfile(lesson, partial)
            partial.replace(copy)
        copies.append(copy)
    return copies


def changed(copy: Path) -> bool:
    """Whether a copy differs from the lesson it came from."""
    originals = {lesson.name: lesson for lesson in notebooks()}
    return not filecmp.cmp(copy, originals[copy.name], shallow=False)


@dataclass(frozen=True)
class Exercise:
    """`right` looks at an answer; `hints` are given one by one, each further than the last, and none gives the answer away."""

    right: Callable[[object], bool]
    hints: tuple[str, ...]
    praise: str


def _number(answer: object) -> float:
    return float(answer.item() if hasattr(answer, "item") else answer)


EXERCISES = {
    "00.1": Exercise(
        lambda answer: abs(_number(answer) - 2e-4 * 25 / 100) < 1e-9,
        (
            "Over the warmup the learning rate grows in a straight line from 0.",
            "After half of lr_warmup_steps it is at half of learning_rate; step 25 is not there yet.",
        ),
        "Right: a quarter of the warmup, a quarter of the learning rate.",
    ),
    "01.1": Exercise(
        lambda answer: int(_number(answer)) == 4 * 64 * 64,
        (
            "SD 1.5's autoencoder shrinks each side eight times, and its latents have four channels.",
            "512 pixels become 64 latent positions a side. How many numbers are four such squares?",
        ),
        "Right: a 512-pixel picture of 786,432 numbers is trained on as 48 times fewer.",
    ),
    "01.2": Exercise(
        lambda answer: abs(_number(answer) - 1.0) < 0.05,
        (
            "The noise has variance 1, and a prediction of zero misses all of it.",
            "mse_loss(zeros, noise) is the mean of noise²: what is that for a standard normal?",
        ),
        "Right: so a loss near 1 means nothing was learned, and one above 1 is worse than saying nothing.",
    ),
}
_tries: dict[str, int] = {}


def check(exercise: str, answer: object) -> None:
    """Print whether `answer` is right; each wrong try gives one more hint. Raises `ValueError` for an unknown exercise."""
    if exercise not in EXERCISES:
        close = difflib.get_close_matches(exercise, EXERCISES, n=1)
        raise ValueError(
            f"no exercise {exercise!r}" + (f": did you mean {close[0]!r}?" if close else f": there are {', '.join(EXERCISES)}")
        )
    row = EXERCISES[exercise]
    try:
        right = answer is not None and row.right(answer)
    except (TypeError, ValueError):
        right = False
    if right:
        _tries.pop(exercise, None)
        print(f"✓ {row.praise}")
        return
    tries = _tries[exercise] = _tries.get(exercise, 0) + 1
    if answer is None:
        print(f"… {exercise} waits for your answer. {row.hints[0]}")
    else:
        print(f"✗ Not yet. {row.hints[min(tries, len(row.hints)) - 1]}")
