"""`Advice`: the smallest changes of a recipe with which it fits its card.

The changes are those of `changes.topics`. Each has a size, from 10 for one that alters nothing to 400 for a LoRA instead of all weights.
The search looks for the set with the least sum that fits:

    all small changes together          do they fit? If not, the least set of large ones beside them that does
    all of them but one, for each       a change that cannot be left out belongs to every answer
    sets with all of those, by size     the first that fits is the smallest, the next one without it the next smallest

A set is not planned if its weights and state alone are too large, if it is part of one that did not fit, or if it would have to save far
more than its changes save at the end. Recorded steps are shared between the plans.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import lora, prepare
from ..memory import GIB
from ..recipe import Recipe
from ..sections import named
from ..system import FITS, MARGIN
from . import changes, planning, trainers
from .changes import Change

if TYPE_CHECKING:
    from ..system import Card
    from .report import MemoryPlan

Choice = tuple[int, ...]
"""Number of the option taken of each topic, from 1; 0 for none."""
SLACK = 1.25
"""How far an estimate of a set may lie above the card and the set still be planned."""
LONGEST = max(map(len, changes.ALTERS))
MOST_CLOSEST = 3
"""Most plans that are made to say what comes closest."""
MOST_LEFT_OUT = 4
"""Most changes that are left out of a set whose changes do not go together."""


@dataclass(frozen=True)
class Variant:
    """A recipe with some changes, planned."""

    changes: tuple[Change, ...]
    plan: MemoryPlan
    before: MemoryPlan

    @property
    def saved_bytes(self) -> int:
        """Bytes that it reserves less."""
        return self.before.reserved_bytes - self.plan.reserved_bytes

    @property
    def flops_ratio(self) -> float:
        """FLOPs for each picture, as a multiple of those before."""
        return _flops(self.plan) / _flops(self.before)

    @property
    def alters(self) -> str:
        """The most that one of the changes alters: `nothing`, `rounding` or `the training itself`."""
        return max((change.alters for change in self.changes), key=changes.ALTERS.index)

    @property
    def flags(self) -> str:
        """Flags to add or change."""
        return changes.flags_of({name: value for change in self.changes for name, value in change.settings.items()})

    def as_dict(self) -> dict:
        """The variant for JSON. All sizes are in bytes."""
        return {
            "flags": self.flags,
            "alters": self.alters,
            "changes": [{"flags": one.flags or one.text, "alters": one.alters, "note": one.note} for one in self.changes],
            "reserved_bytes": self.plan.reserved_bytes,
            "saved_bytes": self.saved_bytes,
            "spare_bytes": self.plan.spare_bytes,
            "verdict": self.plan.verdict,
            "flops_ratio": self.flops_ratio,
        }

    def __str__(self) -> str:
        spare = self.plan.spare_bytes or 0
        lines = [
            f"{self.plan.verdict}, {abs(spare) / GIB:.2f} GiB {'to spare' if spare >= 0 else 'missing'}: "
            f"reserves {self.plan.reserved_bytes / GIB:.2f} GiB, {self.saved_bytes / GIB:.2f} less, at {self.flops_ratio:.2f}x the FLOPs"
        ]
        lines += [f"  alters {one.alters + ':':{LONGEST + 1}} {one.flags or one.text}  ({one.note})" for one in self.changes]
        return "\n".join([*lines, f"  to add or change: {self.flags}"])


@dataclass(frozen=True)
class Advice:
    """The smallest sets of changes with which a recipe fits its card, the smallest first. Prints as a table."""

    plan: MemoryPlan
    """The recipe as it is."""
    variants: tuple[Variant, ...]
    closest: Variant | None
    """Where nothing fits, the variant that needs least; None if there is no change to make."""
    finished: bool = True
    """Whether the search had the time to find the smallest ones."""

    def as_dict(self) -> dict:
        """The advice for JSON."""
        return {
            "verdict": self.plan.verdict,
            "reserved_bytes": self.plan.reserved_bytes,
            "spare_bytes": self.plan.spare_bytes,
            "variants": [variant.as_dict() for variant in self.variants],
            "closest": self.closest and self.closest.as_dict(),
            "finished": self.finished,
        }

    def __str__(self) -> str:
        card, spare = self.plan.gpu, self.plan.spare_bytes or 0
        if card is None or (self.plan.verdict == FITS and not self.variants):
            return f"nothing has to change: {spare / GIB:.2f} GiB to spare"
        lines = []
        for number, variant in enumerate(self.variants, start=1):
            first, *rest = str(variant).splitlines()
            lines += ["", f"{number}. {first}", *(f" {line}" for line in rest)]
        if lines:
            how = "The smallest changes with which it fits:" if self.finished else "With these changes it fits; there may be smaller ones:"
            return "\n".join([how, *lines[1:]])
        if self.closest is None:
            return "no setting is left that would save memory: take a smaller model or a larger card"
        return f"not even all of these fit: {self.closest}"


def advice(plan: MemoryPlan, *, count: int = 2, seconds: float | None = None, is_full: bool = False) -> Advice:
    """Advice for a plan; see `MemoryPlan.advice`.

    `is_full`: the run has filled its card, whatever the plan says, so its changes have to save the margin at least. Raises `ValueError`
    without a card.
    """
    if plan.gpu is None:
        raise ValueError('advice needs a card: plan(…, gpu="RTX 3060"), or --gpu')
    if plan.verdict == FITS and not is_full:
        return Advice(plan, (), None)
    search = _Search(plan, plan.gpu, None if seconds is None else time.monotonic() + seconds)
    finished = True
    try:
        found = list(itertools.islice(smallest(search.sizes, search.is_valid, search.needs, search.room), count))
    except TimeoutError:
        found, finished = search.fitting()[:1], False
    return Advice(plan, tuple(map(search.variant, found)), None if found else search.closest(), finished)


def smallest(
    sizes: Sequence[Sequence[int]],
    is_valid: Callable[[Choice], bool],
    needs: Callable[[Choice], float],
    room: float,
) -> Iterator[Choice]:
    """Yield the choices that need at most `room`, the smallest first, none of them a part of another.

    - `sizes`: of each topic the sizes of its options, the least saving first
    - `is_valid`: whether the options of a choice go together
    - `needs`: bytes of a choice, which is expensive to ask; a later option of a topic never needs more than an earlier one
    """
    failed: list[Choice] = [(0,) * len(sizes)]
    small = tuple(sum(size < changes.LARGE_CHANGE for size in topic) for topic in sizes)

    def size(choice: Choice) -> int:
        return sum(sizes[topic][option - 1] for topic, option in enumerate(choice) if option)

    def fits(choice: Choice) -> bool:
        if any(_is_part(choice, other) for other in failed):
            return False
        if needs(choice) <= room:
            return True
        failed.append(choice)
        return False

    def candidates(top: Choice, fixed: set[int]) -> Iterator[tuple[int, float, Choice]]:
        """Parts of `top` that may fit, with their sizes and estimates. `fixed`: topics whose option stays."""
        without = {topic: _with(top, topic, 0) for topic, option in enumerate(top) if option and topic not in fixed}
        costs = {topic: needs(choice) - needs(top) for topic, choice in without.items() if fits(choice)}
        options = [
            [option] if topic in fixed else range(bool(option) and topic not in costs, option + 1) for topic, option in enumerate(top)
        ]
        for choice in filter(is_valid, itertools.product(*options)):
            estimate = needs(top) + sum(cost for topic, cost in costs.items() if not choice[topic])
            if estimate <= SLACK * room:
                yield size(choice), estimate, choice

    choices = itertools.product(*(range(few, len(topic) + 1) for few, topic in zip(small, sizes, strict=True)))
    by_large: dict[tuple[int, Choice], list[Choice]] = {}
    for start in choices:
        large = tuple(option if option > few else 0 for option, few in zip(start, small, strict=True))
        by_large[size(large), large] = _valid_parts(start, {topic for topic, option in enumerate(large) if option}, is_valid)
    for number, ((_, large), tops) in enumerate(sorted(by_large.items())):
        if number == 1:  # what fails with all large changes fails with some of them, too
            for top in _valid_parts(tuple(map(len, sizes)), set(), is_valid):
                fits(top)
        fixed, found = {topic for topic, option in enumerate(large) if option}, []
        for _, _, choice in sorted(one for top in tops if fits(top) for one in candidates(top, fixed)):
            if not any(_is_part(other, choice) for other in found) and fits(choice):
                found.append(choice)
                yield choice
        if found:
            return


def _is_part(choice: Choice, other: Choice) -> bool:
    """Whether `other` takes at least as saving an option of each topic."""
    return all(one <= more for one, more in zip(choice, other, strict=True))


def _with(choice: Choice, topic: int, option: int) -> Choice:
    return (*choice[:topic], option, *choice[topic + 1 :])


def _valid_parts(choice: Choice, fixed: set[int], is_valid: Callable[[Choice], bool]) -> list[Choice]:
    """The choice, or if its options do not go together, the largest parts of it that do. `fixed`: topics whose option stays."""
    found: list[Choice] = []
    free = [topic for topic, option in enumerate(choice) if option and topic not in fixed]
    for count in range(len(free) + 1):
        for gone in itertools.combinations(free, count):
            part = tuple(0 if topic in gone else option for topic, option in enumerate(choice))
            if not any(_is_part(part, other) for other in found) and is_valid(part):
                found.append(part)
        if count >= MOST_LEFT_OUT:
            break
    return found


class _Search:
    """Variants of a plan by their choices."""

    def __init__(self, plan: MemoryPlan, card: Card, deadline: float | None) -> None:
        self.plan, self.question, self.deadline = plan, plan.question, deadline
        self.model = plan.question.model()
        self.other = trainers.find(plan.trainer, checkpointing=None, dtype=None)
        self.family = planning.family(self.model)
        self.topics = changes.topics(run_of(plan))
        self.sizes = [[change.size for change in options] for options in self.topics]
        self.room = plan.reserved_bytes if plan.verdict == FITS else card.usable_bytes
        self.ignored = self._ignored(plan.recipe)
        self.valid: dict[Choice, bool] = {}
        self.bounds: dict[Choice, int] = {}
        """Lower bounds of what the choices that were not planned need."""
        self.variants: dict[Choice, Variant] = {}

    def taken(self, choice: Choice) -> tuple[Change, ...]:
        """The changes that a choice takes."""
        return tuple(options[option - 1] for options, option in zip(self.topics, choice, strict=True) if option)

    def is_valid(self, choice: Choice) -> bool:
        """Whether the trainer acts on all of these changes together."""
        if choice not in self.valid:
            self.valid[choice] = self._is_valid(choice)
        return self.valid[choice]

    def _is_valid(self, choice: Choice) -> bool:
        taken = self.taken(choice)
        recipe = applied(self.plan.recipe, taken)
        if prepare.refusals(recipe, processes=self.question.processes) or self._ignored(recipe) != self.ignored:
            return False
        if recipe.wants_lora and any(change.of_whole for change in taken):
            return False
        if self.other:
            return not recipe.fused_backward_pass or recipe.optimizer_type == "Adafactor"
        return not any("full_bf16" in change.settings for change in taken) or recipe.optimizer_type == "Adafactor"  # it rounds by chance

    def _ignored(self, recipe: Recipe) -> tuple[str, ...]:
        return self.other.adopt(recipe, self.family)[1] if self.other else ()

    def needs(self, choice: Choice) -> float:
        """Bytes that the choice needs, with the margin; a lower bound where that is too much for the card already."""
        if choice in self.variants:
            return self.variants[choice].plan.reserved_bytes * (1 + MARGIN)
        if choice not in self.bounds:
            recipe, dtype = applied(self.plan.recipe, self.taken(choice)), self._dtype(choice)
            self.bounds[choice] = planning.least_bytes(self.model, recipe, dtype=dtype, trainer=self.plan.trainer)
        if self.bounds[choice] * (1 + MARGIN) > self.room:
            return self.bounds[choice] * (1 + MARGIN)
        return self.variant(choice).plan.reserved_bytes * (1 + MARGIN)

    def variant(self, choice: Choice) -> Variant:
        """The plan of a choice. Raises `TimeoutError` after the deadline."""
        if choice not in self.variants:
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise TimeoutError
            taken = self.taken(choice)
            recipe = applied(self.plan.recipe, taken)
            resized = any("resolution" in change.settings for change in taken)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a change loses is said in its note
                planned = self.question.plan(recipe, size=None if resized else self.plan.size, dtype=self._dtype(choice))
            self.variants[choice] = Variant(taken, planned, self.plan)
        return self.variants[choice]

    def _dtype(self, choice: Choice) -> str | None:
        return next((str(change.settings["dtype"]) for change in self.taken(choice) if "dtype" in change.settings), self.question.dtype)

    def fitting(self) -> list[Choice]:
        """Planned choices that fit, the smallest first."""
        fitting = [choice for choice, variant in self.variants.items() if variant.plan.verdict == FITS]
        return sorted(fitting, key=lambda choice: sum(change.size for change in self.taken(choice)))

    def closest(self) -> Variant | None:
        """The variant that needs least; those that were not planned for their lower bound are, where that is the least."""
        self.deadline = None
        for _ in range(MOST_CLOSEST):
            least = {choice: bound for choice, bound in self.bounds.items() if choice not in self.variants}
            planned = [variant.plan.reserved_bytes for variant in self.variants.values()]
            if not least or min(least.values()) >= min(planned, default=math.inf):
                break
            self.variant(min(least, key=lambda choice: least[choice]))
        return min(self.variants.values(), key=lambda variant: variant.plan.reserved_bytes, default=None)


def applied(recipe: Recipe, taken: Sequence[Change]) -> Recipe:
    """The recipe with some changes."""
    settings: dict[str, Any] = {}
    for change in taken:
        settings |= {name: tuple(value) if isinstance(value, list) else value for name, value in change.settings.items()}
    settings.pop("dtype", None)
    own = {name: value for name, value in settings.items() if name in named(Recipe)}
    others = dict(recipe.extras) | {name: value for name, value in settings.items() if name not in own}
    return dataclasses.replace(recipe, **own, others=others)


def run_of(plan: MemoryPlan) -> changes.Run:
    """What the list of changes has to know of a planned run."""
    question, model = plan.question, plan.question.model()
    half = "bf16" if plan.gpu is None or plan.gpu.has_bf16 else "fp16"
    recipe, trains_adapters = plan.recipe, plan.recipe.wants_lora
    trains_encoders = recipe.wants_lora_in_text_encoders or recipe.trains_text_encoders
    if loaded := not isinstance(model, str | Path):
        trains_adapters = trains_adapters or lora.has_adapters(model)
        trains_encoders = prepare.trains_encoders(model, recipe)
    return changes.Run(
        recipe.settings(plan.script if plan.trainer == "sd-scripts" else None),
        plan.trainer,
        half,
        part="LoRA" if trains_adapters else "the whole model",
        side=plan.size,
        fp32=loaded and plan.dtype == "fp32",
        trains_encoders=trains_encoders,
        fixed=frozenset({"gradient_checkpointing"} if question.checkpointing is not None else ()),
    )


def _flops(plan: MemoryPlan) -> float:
    """FLOPs for each picture."""
    return plan.flops / (plan.recipe.train_batch_size * plan.recipe.gradient_accumulation_steps)
