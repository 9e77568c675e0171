"""Headroom: whether a run will have the memory it needs, and what to do when it had not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from . import fitting, planner
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


def warn_if_too_large(sd: StableDiffusion, recipe: Recipe, checkpointing=None, *, size: tuple[int, int] | None = None) -> None:
    """Warn, with what would need less, of a run that is not expected to fit the card. `size` is that of its largest pictures."""
    there = sum(p.numel() * p.element_size() for part in sd.parts.values() for p in part.parameters())
    if there < GIB // 4 and usable_bytes(sd.device) > 4 * GIB:
        return  # a toy: the plan would take longer than the run
    try:
        planner.warn_if_too_large(sd, recipe, usable_bytes(sd.device), resolution=size, checkpointing=checkpointing)
    except ValueError as error:
        warnings.warn(f"whether this run fits could not be foreseen: {error}", RuntimeWarning, stacklevel=2)


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
        usable_bytes(sd.device),
        resolution=size or recipe.resolution,
        method=method,
        batch_size=recipe.train_batch_size,
        rank=rank,
    )
