"""Advice for a run that does not fit its card: a warning beforehand, and a cheaper recipe when memory ran out."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..memory import GIB
from ..system import TIGHT, Card, cards
from . import changes, planning, report, smallest

if TYPE_CHECKING:
    from ..models import Model
    from ..recipe import Recipe


class OutOfMemory(torch.OutOfMemoryError):
    """The card's memory is full. The message says what was requested, what was free, and which recipe would fit."""


def usable_bytes(device: torch.device) -> int:
    """Bytes of the card that this process can use: free ones and those that torch has reserved."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def card(device: torch.device) -> Card:
    """Card of a device, with the bytes that this process can use now, and its compute capability."""
    if device.type != "cuda":
        return cards.card(usable_bytes(device))
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    multiprocessors = getattr(torch.cuda.get_device_properties(device), "multi_processor_count", 0)
    return Card(name, usable_bytes(device), capability, multiprocessors, context_bytes=0)


def warn_if_too_large(sd: Model, recipe: Recipe, checkpointing=None, *, size: tuple[int, int] | None = None) -> None:
    """Warn of a run that is not expected to fit the card, and say what would need less.

    `size` is the (width, height) of its largest pictures. A plan is only advice: if it fails, that becomes a warning, and the run goes on.
    """
    try:
        weight_bytes = sum(p.numel() * p.element_size() for part in sd.parts.values() for p in part.parameters())
        if weight_bytes < GIB // 4 and usable_bytes(sd.device) > 4 * GIB:
            return  # a toy: the plan would take longer than the run
        gpu = card(sd.device)
        # the plan includes this model; anything else that torch holds, such as another model, takes room from the run
        others = max(0, torch.cuda.memory_allocated(sd.device) - weight_bytes) if sd.device.type == "cuda" else 0
        foresee(sd, recipe, replace(gpu, total_bytes=gpu.total_bytes - others), checkpointing=checkpointing, size=size)
    except Exception as error:
        warnings.warn(f"whether this run fits could not be predicted: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)


def foresee(sd: Model, recipe: Recipe, gpu: Card | int, *, checkpointing=None, size: tuple[int, int] | None = None) -> report.MemoryPlan:
    """Plan a run, and warn if it needs more than `gpu`, a card or bytes; the warning says what would need less."""
    plan = planning.plan(sd, recipe, resolution=size, gpu=gpu, checkpointing=checkpointing)
    if plan.gpu is not None and not plan.fits:
        spare = plan.spare_bytes or 0
        rest = f"{report.in_units(abs(spare)).strip()} {'less' if spare >= 0 else 'more'} than there are"
        rest += ", which is tight" if plan.verdict == TIGHT else ""
        savings = [options[0].code for options in changes.topics(smallest.run_of(plan)) if options[0].planned]
        warnings.warn(
            f"this run is predicted to need {report.in_units(plan.reserved_bytes).strip()}, {rest}. Less: {', '.join(savings)}",
            RuntimeWarning,  # Python does not show a ResourceWarning
            stacklevel=2,
        )
    return plan


def advice(sd: Model, recipe: Recipe, *, checkpointing=None, size: tuple[int, int] | None = None) -> list[str]:
    """Sentences that name the smallest changes with which a run that has filled its card is expected to fit."""
    try:
        plan = planning.plan(sd, recipe, resolution=size, gpu=card(sd.device), checkpointing=checkpointing)
        found = smallest.advice(plan, count=1, is_full=True)
        if found.variants:
            variant = found.variants[0]
            texts = ", ".join(change.code for change in variant.changes)
            return [f"expected to fit: {texts}; as flags {variant.plan.recipe.to_flags()}"]
        tried = (
            f"not even {', '.join(change.code for change in found.closest.changes)} is" if found.closest else "no change of the recipe is"
        )
        return [f"{tried} expected to fit: a smaller model needs less"]
    except Exception as problem:
        return [f"what would fit could not be predicted ({type(problem).__name__}: {problem})"]


def what_happened(error: str) -> str:
    """Sentence on a CUDA error: how much was requested and how much was free, in the error's own numbers."""
    sizes = r"([\d.]+ [KMGT]?i?B)"
    requested, free = re.search(f"Tried to allocate {sizes}", error), re.search(f"{sizes} is free", error)
    text = "the card's memory is full"
    text += f": {requested[1]} more were asked for" if requested else ""
    return text + (f", and {free[1]} were free" if free else "")
