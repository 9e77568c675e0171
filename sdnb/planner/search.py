"""`fit`: the recipes that run on a card, fewest FLOPs first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import lora
from ..memory import GIB
from ..models import Model, named, skeletons
from ..recipe import Recipe
from ..system import DOES_NOT_FIT, TIGHT, cards
from . import trainers
from .planning import least_bytes, plan
from .report import HOW_RIGHT, TIGHT_MEANS, MemoryPlan

if TYPE_CHECKING:
    from ..system import Card

METHODS = ("full", "lora")
ADAFACTOR = Recipe().optimizer_args


@dataclass(frozen=True)
class Fits(Sequence):
    """Plans that fit a card, fewest FLOPs first, then those that are tight. Prints as a table."""

    card: Card
    plans: tuple[MemoryPlan, ...]
    closest: MemoryPlan
    """Plan that needs the least memory of all that were tried."""
    tried: int
    """Number of recipes."""
    skipped: int = 0
    """Number of recipes not planned because their weights and optimizer's state alone exceed the card."""

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, index):
        return self.plans[index]

    def __iter__(self) -> Iterator[MemoryPlan]:
        return iter(self.plans)

    @property
    def missing_bytes(self) -> int:
        """Bytes that the card lacks for the closest plan; 0 when something fits, if only tightly."""
        return 0 if self.plans else max(1, self.closest.reserved_bytes - self.card.usable_bytes)

    def as_dict(self) -> dict:
        """The result for JSON. All sizes are in bytes."""
        return {
            "card": self.card.name,
            "usable_bytes": self.card.usable_bytes,
            "needs": self.card.needs or None,
            "tried": self.tried,
            "skipped": self.skipped,
            "fits": [plan.as_dict() for plan in self.plans],
            "closest": self.closest.as_dict(),
            "missing_bytes": self.missing_bytes,
        }

    def __str__(self) -> str:
        head = f"{self.closest.model} on {self.card.name}, {self.card.usable_bytes / GIB:.2f} GiB usable: "
        if self.plans:
            fewest_flops = min(plan.flops for plan in self.plans)
            tight = sum(not plan.fits for plan in self.plans)
            fit = f"{len(self.plans) - tight} of {self.tried} recipes fit" + (f", {tight} are tight" if tight else "")
            lines = [f"{head}{fit}, fewest FLOPs first", "    FLOPs     peak  reserved     spare"]
            lines += [_row(plan, fewest_flops) for plan in self.plans]
            lines += ["", TIGHT_MEANS] if tight else []
        else:
            lines = [f"{head}none of {self.tried} recipes fits. The closest lacks {self.missing_bytes / GIB:.2f} GiB:", _row(self.closest)]
        if self.card.needs:
            lines += ["", f"{self.card.name} needs {self.card.needs}"]
        if self.skipped:
            lines += ["", f"{self.skipped} were not planned: their weights and optimizer's state alone are more than the card has"]
        first = self.plans[0] if self.plans else self.closest
        lines += ["", *notes] if (notes := sorted({plan.note for plan in self.plans or (first,)} - {""})) else []
        command = trainers.train_command(first).replace(" \\\n ", "")
        lines += ["", f"flags{' of the first' if self.plans else ''}: {first.recipe.to_flags()}"]
        lines += [f"to train with them here: {command}", "", HOW_RIGHT]
        return "\n".join(lines)


def _row(plan: MemoryPlan, fewest_flops: int | None = None) -> str:
    """Line for one plan in the table of `Fits`."""
    words = [*([TIGHT] if plan.verdict == TIGHT else []), how(plan)]
    ratio = f"{plan.flops / fewest_flops:8.2f}x" if fewest_flops else " " * 9
    sizes = (plan.peak_bytes, plan.reserved_bytes, plan.spare_bytes)
    columns = "".join(f"{size / GIB:9.2f}" if size is not None else "" for size in sizes)
    return f"{ratio}{columns}  {'; '.join(words)}"


def how(plan: MemoryPlan) -> str:
    """Words for a plan's optimizer, its precision and what it recomputes."""
    recipe = plan.recipe
    optimizer = recipe.optimizer_type + (", fused backward" if recipe.fused_backward_pass else "")
    precision = f"weights in {plan.dtype}" + ("" if recipe.mixed_precision == "no" else f", mixed {recipe.mixed_precision}")
    return f"{optimizer}; {precision}; recomputing {plan.checkpointing}"


def fit(
    model: str | Path | Model,
    gpu: str | int | Card,
    *,
    resolution: int | tuple[int, int] | None = None,
    method: str = "full",
    batch_size: int = 1,
    rank: int = 16,
) -> Fits:
    """Find the recipes for `model` that fit the card, fewest FLOPs first; among equals, fewest compromises first. Tight ones come last.

    The search tries gradient checkpointing or none, mixed precision or weights in bf16, AdamW, AdamW8bit and Adafactor, and a fused
    backward, all with cached latents, for SDXL also with cached captions; on a card without bf16 only mixed fp16. Recipes whose weights
    and optimizer's state alone are too large are counted, not planned.

    - `model`: as for `plan`, a loaded one included
    - `method`: `full`, or `lora` with this `rank`, which leaves the text encoders alone unless a loaded model has adapters there

    Raises `ValueError` for an unknown method, and like `plan`.
    """
    card, *_, recipes = _question(model, gpu, resolution, method, batch_size, rank)
    bounds = [(recipe, least_bytes(model, recipe)) for recipe in recipes]

    def plan_recipe(recipe: Recipe) -> MemoryPlan:
        return plan(model, recipe, resolution=resolution, gpu=card)

    plans = [plan_recipe(recipe) for recipe, least in bounds if least <= card.usable_bytes]
    if all(planned.verdict == DOES_NOT_FIT for planned in plans):  # then a recipe that was skipped may be the closest
        too_large = [(recipe, least) for recipe, least in bounds if least > card.usable_bytes]
        for recipe, least in sorted(too_large, key=lambda bound: bound[1]):
            if least < min((planned.peak_bytes for planned in plans), default=least + 1):
                plans.append(plan_recipe(recipe))
    fitting = [planned for planned in plans if planned.verdict != DOES_NOT_FIT]
    fitting.sort(key=lambda planned: (planned.verdict == TIGHT, planned.flops))  # keeps the order of equals
    closest = min(plans, key=lambda planned: planned.peak_bytes)
    return Fits(card, tuple(fitting), closest, len(recipes), skipped=len(recipes) - len(plans))


def fastest(
    model: str | Path | Model,
    gpu: str | int | Card,
    *,
    trainer: str = "sdnb",
    resolution: int | tuple[int, int] | None = None,
    method: str = "full",
    batch_size: int = 1,
    rank: int = 16,
) -> MemoryPlan:
    """The plan that `fit` would name first if this trainer ran it: fewest FLOPs, and among equals fewest compromises.

    A tight one if none fits, and where all are too large the one that needs the least: look at its `verdict`. Of other trainers only
    recipes are tried all of whose settings their scripts act on. Plans no more than it must, so it is faster than `fit`. Raises like `fit`.
    """
    card, family, prediction, recipes = _question(model, gpu, resolution, method, batch_size, rank)
    other = trainers.find(trainer, checkpointing=None, dtype=None)
    if other:
        recipes = [
            recipe for recipe in (other.asked(recipe, family, prediction) for recipe in recipes) if not other.adopt(recipe, family)[1]
        ]
    bounds = [(recipe, least_bytes(model, recipe, trainer=trainer)) for recipe in recipes]
    plans: list[MemoryPlan] = []
    for recipe, _ in [bound for bound in bounds if bound[1] <= card.usable_bytes] or [min(reversed(bounds), key=lambda bound: bound[1])]:
        planned = plan(model, recipe, resolution=resolution, gpu=card, trainer=trainer)
        if planned.fits:  # fewest FLOPs come first, as only checkpointing costs any
            return planned
        plans.append(planned)
    return next((planned for planned in plans if planned.verdict == TIGHT), min(plans, key=lambda planned: planned.reserved_bytes))


def _question(
    model: str | Path | Model, gpu: str | int | Card, resolution: int | tuple[int, int] | None, method: str, batch_size: int, rank: int
) -> tuple[Card, str, str, list[Recipe]]:
    """The card, the model's family, what it predicts, and the recipes to try. Raises `ValueError` for an unknown method or card."""
    if method not in METHODS:
        raise ValueError(f"method={method!r}: there are {', '.join(METHODS)}")
    card = cards.card(gpu)
    is_loaded = not isinstance(model, str | Path)
    facts = {} if is_loaded else skeletons.configurations(model)
    family = model.family if is_loaded else facts["family"]
    prediction = model.noise_scheduler.config.get("prediction_type", "") if is_loaded else facts["prediction_type"]
    trains_encoders = is_loaded and any(lora.is_added(encoder) for encoder in model.encoders.values())
    return (
        card,
        family,
        prediction,
        [_sized(recipe, resolution) for recipe in _candidates(card, family, method, batch_size, rank, trains_encoders)],
    )


def _sized(recipe: Recipe, resolution: int | tuple[int, int] | None) -> Recipe:
    """Copy of `recipe` with the resolution, if there is one."""
    return recipe if resolution is None else recipe.replace(resolution=resolution)


def _candidates(card: Card, family: str, method: str, batch_size: int, rank: int, trains_encoders: bool) -> Iterator[Recipe]:
    """Yield the recipes to try, fewest compromises first. `trains_encoders`: the model has adapters beside its text encoders."""
    base = Recipe(
        train_batch_size=batch_size, cache_latents=True, cache_text_encoder_outputs=named(family).caches_captions and not trains_encoders
    )
    if method == "lora":
        base = base.replace(
            network_module="networks.lora", network_dim=rank, network_alpha=float(rank), network_train_unet_only=not trains_encoders
        )
    mixed = "bf16" if card.has_bf16 else "fp16"
    optimizers = [("AdamW", (), False), ("AdamW8bit", (), False), ("Adafactor", ADAFACTOR, False)]
    if method == "full" and mixed == "bf16":  # fp16 needs a gradient scaler, which excludes a fused backward
        optimizers.append(("Adafactor", ADAFACTOR, True))
    precisions = [(mixed, {})]
    if method == "full" and mixed == "bf16":
        precisions.append((mixed, {"full_bf16": True}))
    for checkpointing in (False, True):
        for precision, settings in precisions:
            for name, arguments, fused in optimizers:
                if settings and name != "Adafactor":
                    continue  # only Adafactor rounds weights in bf16 stochastically here
                yield base.replace(
                    optimizer_type=name, optimizer_args=arguments, gradient_checkpointing=checkpointing,
                    mixed_precision=precision, fused_backward_pass=fused, **settings,
                )  # fmt: skip
