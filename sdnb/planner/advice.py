"""Headroom: whether a run will have the memory it needs, and what to do when it had not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .. import lora
from ..memory import GIB
from ..recipe import Recipe
from ..system import Card, cards
from . import planning, report

if TYPE_CHECKING:
    from ..models import Model


class OutOfMemory(torch.OutOfMemoryError):
    """The card's memory is full. The message says what was asked for, what was free, and which recipe would fit."""


def usable_bytes(device: torch.device) -> int:
    """Bytes of the card that this process can use: the free ones, and those that torch has reserved."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def card(device: torch.device) -> Card:
    """The card at hand, with the bytes that this process can use now and its capability, such as bf16 or not."""
    if device.type != "cuda":
        return cards.card(usable_bytes(device))
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return Card(name, usable_bytes(device), capability, context_bytes=0)


def warn_if_too_large(sd: Model, recipe: Recipe, checkpointing=None, *, size: tuple[int, int] | None = None) -> None:
    """Warn of a run that is not expected to fit the card, and say what would need less. `size` is that of its largest pictures.

    A plan is advice: whatever goes wrong in it becomes a warning, and the run goes on.
    """
    try:
        there = sum(p.numel() * p.element_size() for part in sd.parts.values() for p in part.parameters())
        if there < GIB // 4 and usable_bytes(sd.device) > 4 * GIB:
            return  # a toy: the plan would take longer than the run
        gpu = card(sd.device)
        # of what torch holds, the model is in the plan; what else is alive, such as another model, stays where it is
        others = max(0, torch.cuda.memory_allocated(sd.device) - there) if sd.device.type == "cuda" else 0
        foresee(sd, recipe, replace(gpu, total_bytes=gpu.total_bytes - others), checkpointing=checkpointing, size=size)
    except Exception as error:
        warnings.warn(f"whether this run fits could not be predicted: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)


def foresee(sd: Model, recipe: Recipe, gpu: Card | int, *, checkpointing=None, size: tuple[int, int] | None = None) -> report.MemoryPlan:
    """Plan a run, and warn if it needs more than `gpu`, a card or bytes; the warning says what would need less."""
    made = planning.plan(sd, recipe, resolution=size, gpu=gpu, checkpointing=checkpointing)
    if made.gpu is not None and not made.fits:
        missing = max(0, made.allocated_bytes - made.gpu.usable_bytes)
        warnings.warn(
            f"this run is predicted to need {report.said(made.allocated_bytes).strip()}, {report.said(missing).strip()} more than there "
            f"are. Less: {', '.join([words for words, _ in _less(sd, recipe, made.gpu)] + _other(recipe, sd))}",
            RuntimeWarning,  # Python does not show a ResourceWarning
            stacklevel=2,
        )
    return made


def advice(sd: Model, recipe: Recipe, *, size: tuple[int, int] | None = None) -> list[str]:
    """Sentences that name a cheaper variant of the recipe that is expected to fit.

    Variants are planned in `_less`'s order until one fits: a few plans, where `fit` would make dozens. A variant whose weights and
    optimizer's state alone are too large is not planned.
    """
    try:
        gpu, said, dtype = card(sd.device), [], None
        for words, changes in _less(sd, recipe, gpu):
            said.append(words)
            if isinstance(changes, str):
                dtype = changes
            else:
                recipe = changes(recipe)
            if planning.least_bytes(sd, recipe, dtype=dtype) > gpu.usable_bytes:
                continue
            if planning.plan(sd, recipe, resolution=size, gpu=gpu, dtype=dtype).fits:
                return [f"expected to fit: {', '.join(said)}; as flags {recipe.to_flags()}"]
        tried = f"not even {', '.join(said)} is expected to fit" if said else "this recipe leaves nothing out that could be"
        return [f"{tried}: {' or '.join(_other(recipe, sd))} needs less"]
    except Exception as problem:
        return [f"what would fit could not be predicted ({type(problem).__name__}: {problem})"]


def what_happened(error: str) -> str:
    """How much CUDA was asked for and how much was free, in its own numbers."""
    sizes = r"([\d.]+ [KMGT]?i?B)"
    asked, free = re.search(f"Tried to allocate {sizes}", error), re.search(f"{sizes} is free", error)
    text = "the card's memory is full"
    text += f": {asked[1]} more were asked for" if asked else ""
    return text + (f", and {free[1]} were free" if free else "")


def _less(sd: Model, recipe: Recipe, card: Card) -> list[tuple[str, Callable[[Recipe], Recipe] | str]]:
    """Ways to need less memory, the cheapest in time first: the text for the reader, and the changed settings or dtype."""
    ways = []

    def way(name: str, value: object) -> None:
        shown = f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
        ways.append((shown, lambda one: one.replace(**{name: value})))

    half = "bf16" if card.has_bf16 else "fp16"
    adapters = _has_adapters(recipe, sd)
    trains_encoders = bool(sd.encoders_in_training) or (adapters and not lora.is_added(sd.denoiser) and recipe.wants_lora_in_text_encoders)
    if not recipe.caches_latents:
        way("cache_latents", True)
    if not (trains_encoders or recipe.shuffle_caption or recipe.caches_texts):
        way("cache_text_encoder_outputs", True)
    precision = recipe.mixed_precision
    if precision == "no" and sd.dtype == torch.float32:
        precision = half
        way("mixed_precision", half)
    if adapters and sd.dtype == torch.float32:
        ways.append((f"the model loaded with dtype=torch.{'bfloat16' if half == 'bf16' else 'float16'}", half))
    if not recipe.gradient_checkpointing:
        way("gradient_checkpointing", True)
    if recipe.optimizer_type != "Adafactor" and not adapters:  # beside adapters its state is small in any case
        ours = Recipe().optimizer_args
        ways.append(('optimizer_type="Adafactor"', lambda one: one.replace(optimizer_type="Adafactor", optimizer_args=ours)))
    clips = recipe.max_grad_norm > 0 or recipe.gradient_accumulation_steps > 1
    if not (adapters or recipe.fused_backward_pass or clips or precision == "fp16"):
        way("fused_backward_pass", True)
    each = recipe.train_batch_size
    while each > 1:
        each //= 2
        way("train_batch_size", each)
    return ways


def _has_adapters(recipe: Recipe, sd: Model) -> bool:
    return lora.asked(recipe) is not None or any(lora.is_added(part) for part in sd.parts.values())


def _other(recipe: Recipe, sd: Model) -> list[str]:
    """Ways that would change the training itself."""
    return ["a smaller resolution", "a smaller model" if _has_adapters(recipe, sd) else "a LoRA"]
