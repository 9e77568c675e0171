"""Check of exercise 09.3: settings with which a fine-tune of SD 1.5 fits a card of 8 GB, and recomputes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from ..memory import GIB
from ..recipe import Recipe
from .languages import reply

if TYPE_CHECKING:
    from ..planner import MemoryPlan

START = Recipe(
    optimizer_type="AdamW", optimizer_args=(), train_batch_size=4, mixed_precision="bf16", resolution=512, others={"cache_latents": True}
)
"""Recipe that the exercise begins with."""
CARD = "rtx3070"


def check(answer: Any) -> bool | str:
    """Whether `answer`, settings by name or a whole recipe, makes `START` fit without another job or more FLOPs; a text says what fails."""
    if not isinstance(answer, (Mapping, Recipe)):
        return reply("09.3", "settings")
    try:
        recipe = answer if isinstance(answer, Recipe) else START.replace(**{str(name): value for name, value in answer.items()})
        if why := _another_job(recipe):
            return why
        plan = _planned(recipe)
    except (ValueError, TypeError) as error:
        return reply("09.3", "refused", error=error)
    assert plan.gpu is not None
    part = max(plan.by_category, key=plan.by_category.__getitem__)
    sizes = dict(
        reserved=f"{plan.reserved_bytes / GIB:.2f}",
        usable=f"{plan.gpu.usable_bytes / GIB:.2f}",
        phase=plan.peak.phase,
        part=part,
        size=f"{plan.by_category[part] / GIB:.2f}",
    )
    return True if plan.fits else reply("09.3", "tight" if plan.verdict == "tight" else "too_large", **sizes)


def _another_job(recipe: Recipe) -> str:
    """What makes a recipe another job than `START`'s; empty if it is the same."""
    if recipe.wants_lora or recipe.resolution != START.resolution:
        return reply("09.3", "another_job")
    if recipe.gradient_checkpointing:
        return reply("09.3", "recomputes")
    pictures = recipe.train_batch_size * recipe.gradient_accumulation_steps
    return "" if pictures == START.train_batch_size else reply("09.3", "pictures", pictures=pictures)


@cache
def _planned(recipe: Recipe) -> MemoryPlan:
    import warnings

    from .. import planner

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # only memory is asked for here
        return planner.plan("sd15", recipe, gpu=CARD)
