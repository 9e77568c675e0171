"""Headroom: whether a run will have the memory it needs, and what to do when it had not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from . import cards, fitting, planner, plans
from .cards import Card
from .memory import GIB

if TYPE_CHECKING:
    from torch.nn import Parameter

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
            f"Less: {', '.join(_less(recipe, made.gpu))}",
            ResourceWarning,
            stacklevel=2,
        )
    return made


def advice(
    sd: StableDiffusion, recipe: Recipe, chosen: Mapping[str, Parameter], error: str, *, size: tuple[int, int] | None = None
) -> list[str]:
    """Sentences about an error of CUDA's: what was asked for, what was free, and which recipe is expected to fit."""
    sizes = r"([\d.]+ [KMGT]?i?B)"
    asked, free = re.search(f"Tried to allocate {sizes}", error), re.search(f"{sizes} is free", error)
    lines = ["the card's memory is full"]
    lines[0] += f": {asked[1]} more were asked for" if asked else ""
    lines[0] += f", and {free[1]} were free" if free else ""
    try:
        found = _fits(sd, recipe, chosen, size)
        if found:
            lines.append(f"expected to fit: {found[0].recipe.to_flags()}")
        else:
            lines.append(
                f"no recipe that was tried fits; the closest lacks {found.missing_bytes / GIB:.2f} GiB: a smaller resolution, or a LoRA"
            )
    except (ValueError, RuntimeError) as problem:
        lines.append(f"what would fit could not be foreseen ({problem})")
    return lines


def _fits(sd: StableDiffusion, recipe: Recipe, chosen: Mapping[str, Parameter], size: tuple[int, int] | None) -> fitting.Fits:
    method = "full" if all(".lora_" not in name for name in chosen) else "lora"
    rank = next((p.shape[0] for name, p in chosen.items() if ".lora_A" in name), 16)
    return fitting.fit(
        sd,
        card(sd.device),
        resolution=size or recipe.resolution,
        method=method,
        batch_size=recipe.train_batch_size,
        rank=rank,
    )


def _less(recipe: Recipe, card: Card) -> list[str]:
    """What else this recipe could give up on that card."""
    ways = []
    if not recipe.gradient_checkpointing:
        ways.append("gradient_checkpointing=True")
    if recipe.optimizer_type != "Adafactor":
        ways.append('optimizer_type="Adafactor"')
    elif not recipe.fused_backward_pass and recipe.gradient_accumulation_steps == 1 and recipe.mixed_precision != "fp16":
        ways.append("fused_backward_pass=True")
    if recipe.mixed_precision == "no":
        ways.append(f'mixed_precision="{"bf16" if card.has_bf16 else "fp16"}"')
    if recipe.train_batch_size > 1:
        ways.append(f"train_batch_size={recipe.train_batch_size // 2}")
    return [*ways, "a smaller resolution", "a LoRA"]
