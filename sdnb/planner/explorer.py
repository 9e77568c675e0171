"""The explorer: what a training needs beside every card at once, and its command, as a page that computes in the browser.

The page holds the numbers of `parts`, the commands of `train_command` and the cards, and needs no network, no Python and no kernel: a
notebook shows the very same page, and every move is answered at once. `explorer.js` is the twin of `parts.estimate` and of
`Card.verdict`; `tests/planner/test_explorer.py` compares them in a browser. The words of the page, in each language, are in
`explorer.toml`.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import tomllib
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from .. import plots
from ..models import skeletons
from ..system import CARDS, GIB, MARGIN, Card, card, suggest
from . import parts, trainers
from .page import FOLDER, STOPS, Page, check_language
from .page import texts as page_texts
from .parts import OPTIONS, Choice
from .trainers import train_command

if TYPE_CHECKING:
    from .report import MemoryPlan

KINDS = ("model", "method", "trainer", "optimizer", "precision", "attention", "recompute")
"""Fields of a `Choice` that are no numbers."""
NUMBERS = {
    "train_batch_size": "batch_size",
    "resolution": "resolution",
    "network_dim": "rank",
    "network_alpha": "rank",
    "rank": "rank",
}
"""Fields of the numbers in commands, by the names of the flags."""
FLAG = re.compile(rf"--({'|'.join(NUMBERS)})=\d+")
LEVERS = ("recompute", "attention", "optimizer", "precision", "rank", "batch_size", "resolution")
"""Settings that may change to make a run fit, first those that change the result least."""
NEAREST = ("precision", "optimizer", "attention", "recompute", "trainer", "resolution", "method", "model")
"""Settings that may change where a combination does not exist, first those that matter least to the question."""
SCALES = (12, 16, 24, 32, 48, 64, 80, 100, 160, 240, 400, 800)
"""Ends of the page's axis, in GiB."""


@dataclass(frozen=True, repr=False)
class Explorer(Page):
    """The page with a first choice. Displayed when it is the last value of a notebook cell; elsewhere a picture of that choice."""

    choice: Choice
    card: Card
    language: str | None = None

    name = "explorer"

    def data(self) -> dict[str, Any]:
        return _data(self)

    def chart(self) -> plots.Chart | None:
        """Picture of the choice; None for a combination that does not exist."""
        memory = parts.estimate(self.choice)
        if memory.refusal:
            return None
        verdict = self.card.verdict(memory.peak_bytes, memory.reserved_bytes)
        model, method = (texts()[f"{name}.{getattr(self.choice, name)}"]["en"] for name in ("model", "method"))
        title = f"{model}, batch {self.choice.batch_size}: {memory.reserved_bytes / GIB:.2f} GiB reserved, {verdict} on {self.card.name}"
        case = f"{method}, {self.choice.resolution} pixels"
        reserved = {case: memory.reserved_bytes}
        return plots.bars({case: memory.categories}, title=title, capacity_bytes=self.card.usable_bytes, reserved=reserved)

    def __repr__(self) -> str:
        return str(self.chart() or parts.estimate(self.choice).refusal)


def explore(gpu: str | int | Card = "rtx4060", *, language: str | None = None, **choice: Any) -> Explorer:
    """Show what a training needs beside all cards, and the command for it, to be played with.

    - `gpu`: as for `plan`
    - `language`: `en` or `zh` (default: the browser's)
    - `choice`: the first choice, by the fields of `parts.Choice`, such as `model="sdxl", method="full"`

    Raises `ValueError` for an unknown card, language, field or option.
    """
    check_language(language)
    for name, value in choice.items():
        if name not in OPTIONS:
            raise ValueError(f"no setting {name!r}{suggest(name, OPTIONS, aside=True)}: there are {', '.join(OPTIONS)}")
        if value not in OPTIONS[name]:
            known = [str(option) for option in OPTIONS[name]]
            raise ValueError(f"{name}={value!r}{suggest(value, known, aside=True)}: there are {', '.join(known)}")
    model = choice.get("model", Choice.model)
    return Explorer(Choice(**{"resolution": _resolution(model), **choice}), card(gpu), language)


# the page's data


def texts() -> dict[str, dict[str, str]]:
    """Words of the page by name and language."""
    return page_texts("explorer")


def refusal(words: str) -> dict[str, str]:
    """A refusal of `parts` in each language, without the nearest combination, which the page offers as a button."""
    known = {row["en"]: row for row in _refusals()}
    sentences = [known.get(sentence, {"en": sentence}) for sentence in words.partition(". Nearest")[0].split(". ")]
    return {code: "".join(row.get(code, row["en"]) + stop for row in sentences).strip() for code, stop in STOPS.items()}


@functools.cache
def _refusals() -> list[dict[str, str]]:
    return tomllib.loads((FOLDER / "explorer.toml").read_text(encoding="utf-8"))["refusals"]


def _data(explorer: Explorer) -> dict[str, Any]:
    """All that `explorer.js` knows beside what every page does."""
    planned = json.loads(parts.FILE.read_text(encoding="utf-8"))
    cards = {**CARDS, **({} if explorer.card in CARDS.values() else {"mine": explorer.card})}
    chosen = next(key for key, known in cards.items() if known == explorer.card)
    return {
        "choice": {**asdict(explorer.choice), "card": chosen},
        "usual": asdict(Choice()),
        "options": OPTIONS,
        "native": {model: _resolution(model) for model in OPTIONS["model"]},
        "cards": [
            {"key": key, "name": known.name, "usable": known.usable_bytes, "bf16": known.has_bf16, "needs": known.needs}
            for key, known in sorted(cards.items(), key=lambda row: row[1].usable_bytes)
        ],
        "margin": MARGIN,
        "levers": LEVERS,
        "nearest": NEAREST,
        "scales": SCALES,
        "parts": {**planned, "refusals": {entry: refusal(words) for entry, words in planned["refusals"].items()}},
        "cell": parts.CELL,
        "fused": parts.FUSED,
        "kinds": KINDS,
        **_commands(),
        "width": trainers.WIDTH,
    }


@functools.cache
def _commands() -> dict[str, Any]:
    """The commands in words: their beginnings and flags, with {names} for numbers.

    - `flags`: all that occur
    - `commands`: which of them are a command's, for each combination of `KINDS` in the order of `itertools.product`; maybe none
    - `omitted`: those that a trainer's command does not have where the number is 1
    """
    numbers: dict[str, int] = {}
    commands = []
    for options in itertools.product(*(OPTIONS[name] for name in KINDS)):
        choice = Choice(**dict(zip(KINDS, options, strict=True)), batch_size=2)
        commands.append([numbers.setdefault(word, len(numbers)) for word in _words_of(choice)])
    omitted = {}
    for trainer in OPTIONS["trainer"]:
        two, one = (_words_of(Choice(trainer=trainer, batch_size=number, rank=number)) for number in (2, 1))
        omitted[trainer] = [word for word in two if word not in one]
    return {"flags": list(numbers), "commands": commands, "omitted": omitted}


def _words_of(choice: Choice) -> list[str]:
    """Beginning and flags of a choice's command, with {names} for numbers."""
    text = FLAG.sub(lambda flag: f"--{flag[1]}={{{NUMBERS[flag[1]]}}}", command(choice))
    return [word for word in re.split(r" \\\n +| (?=--)", text) if word]


def command(choice: Choice) -> str:
    """Command of a choice; empty for a combination that does not exist, and for one that its trainer cannot be asked for."""
    recipe, other, script = choice.recipe(), trainers.OTHERS.get(choice.trainer), ""
    if other:
        script = other.script(recipe, skeletons.configurations(choice.model)["family"])
    size = (choice.resolution, choice.resolution)
    run = SimpleNamespace(model=choice.model, trainer=choice.trainer, script=script, size=size, recipe=recipe)
    try:
        return "" if parts.estimate(choice).refusal else train_command(cast("MemoryPlan", run))
    except ValueError:
        return ""


def _resolution(model: str) -> int:
    """Side of the pictures that a model was made for, in pixels."""
    return skeletons.configurations(model)["vae"]["sample_size"]
