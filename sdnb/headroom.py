"""Headroom: whether a run will have the memory it needs, and what to do when it had not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from . import cards, planner, plans
from .cards import Card
from .memory import GIB

if TYPE_CHECKING:
    from .models import StableDiffusion
    from .recipe import Recipe


class OutOfMemory(torch.OutOfMemoryError):
    """The card's memory is full. The message says what was asked for, what was free, and which recipe would fit."""


def usable_bytes(device: torch.device) -> int:
    """What of the card this process can have: what is free, and what torch holds of it."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def card(device: torch.device) -> Card:
    """The card at hand, with what of it this process can have now; what it cannot compute, such as bf16, is not planned for it."""
    if device.type != "cuda":
        return cards.card(usable_bytes(device))
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return Card(name, usable_bytes(device), capability, context_bytes=0)


def warn_if_too_large(sd: StableDiffusion, recipe: Recipe, checkpointing=None, *, size: tuple[int, int] | None = None) -> None:
    """Warn, with what would need less, of a run that is not expected to fit the card. `size` is that of its largest pictures."""
    there = sum(p.numel() * p.element_size() for part in sd.parts.values() for p in part.parameters())
    if there < GIB // 4 and usable_bytes(sd.device) > 4 * GIB:
        return  # a toy: the plan would take longer than the run
    try:
        foresee(sd, recipe, card(sd.device), checkpointing=checkpointing, size=size)
    except ValueError as error:
        warnings.warn(f"whether this run fits could not be foreseen: {error}", RuntimeWarning, stacklevel=2)


def foresee(
    sd: StableDiffusion, recipe: Recipe, gpu: Card | int, *, checkpointing=None, size: tuple[int, int] | None = None
) -> plans.MemoryPlan:
    """Plan a run and warn before its first step when it needs more than `gpu` or that many bytes, saying what would need less."""
    made = planner.plan(sd, recipe, resolution=size, gpu=gpu, checkpointing=checkpointing)
    if not made.fits:
        missing = max(0, made.allocated_bytes - made.gpu.usable_bytes)
        warnings.warn(
            f"this run is predicted to need {plans.said(made.allocated_bytes).strip()}, {plans.said(missing).strip()} more than there are. "
            f"Less: {', '.join([words for words, _ in _less(sd, recipe, made.gpu)] + ['a smaller resolution', 'a LoRA'])}",
            ResourceWarning,
            stacklevel=2,
        )
    return made


def advice(sd: StableDiffusion, recipe: Recipe, *, size: tuple[int, int] | None = None) -> list[str]:
    """Sentences about an error of CUDA's: which recipe is expected to fit, of those that change ever more of this one.

    Each is planned, in `_less`'s order, until one fits: that takes a second or a few for each, where `fit` would try dozens.
    """
    try:
        gpu, said = card(sd.device), []
        for words, changes in _less(sd, recipe, gpu):
            said.append(words)
            recipe = changes(recipe)
            if planner.least_bytes(sd, recipe) > gpu.usable_bytes:
                continue  # even without its activations
            if planner.plan(sd, recipe, resolution=size, gpu=gpu).fits:
                return [f"expected to fit: {', '.join(said)}, which is {recipe.to_flags()}"]
        tried = f"not even {', '.join(said)} is expected to fit" if said else "this recipe leaves nothing out that could be"
        return [f"{tried}: a smaller resolution, or a LoRA instead of the whole U-Net, needs less"]
    except (ValueError, RuntimeError) as problem:
        return [f"what would fit could not be foreseen ({problem})"]


def what_happened(error: str) -> str:
    """What CUDA was asked for and what it had, in its own numbers."""
    sizes = r"([\d.]+ [KMGT]?i?B)"
    asked, free = re.search(f"Tried to allocate {sizes}", error), re.search(f"{sizes} is free", error)
    text = "the card's memory is full"
    text += f": {asked[1]} more were asked for" if asked else ""
    return text + (f", and {free[1]} were free" if free else "")


def _less(sd: StableDiffusion, recipe: Recipe, card: Card) -> list[tuple[str, Callable[[Recipe], Recipe]]]:
    """What this recipe could do without on that card, the cheapest in time first: how it is written, and the change."""
    others, ways = dict(recipe.others), []

    def way(name: str, value: object, shown: str | None = None) -> None:
        ways.append((shown or f"{name}={value!r}".replace("'", '"'), lambda one: one.replace(**{name: value})))

    if not (others.get("cache_latents") or others.get("cache_latents_to_disk")):
        ways.append(("cache_latents", lambda one: one.replace(others={**dict(one.others), "cache_latents": True})))
    precision = recipe.mixed_precision
    if precision == "no" and sd.dtype == torch.float32:
        precision = "bf16" if card.has_bf16 else "fp16"
        way("mixed_precision", precision)
    if not recipe.gradient_checkpointing:
        way("gradient_checkpointing", True)
    if recipe.optimizer_type != "Adafactor":
        own = type(recipe)()
        ways.append(('optimizer_type="Adafactor"', lambda one: one.replace(optimizer_type="Adafactor", optimizer_args=own.optimizer_args)))
    if not recipe.fused_backward_pass and recipe.gradient_accumulation_steps == 1 and recipe.max_grad_norm == 0 and precision != "fp16":
        way("fused_backward_pass", True)
    each = recipe.train_batch_size
    while each > 1:
        each = each // 2
        way("train_batch_size", each)
    return ways
