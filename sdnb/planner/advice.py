"""Advice for a run that does not fit its card: a warning beforehand, and a cheaper recipe when memory ran out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .. import lora, prepare
from ..memory import GIB
from ..recipe import Recipe
from ..system import TIGHT, Card, cards
from . import planning, report

if TYPE_CHECKING:
    from ..models import Model


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
        savings = [text for text, _ in _savings(sd, recipe, plan.gpu)] + _last_resorts(recipe, sd)
        warnings.warn(
            f"this run is predicted to need {report.in_units(plan.reserved_bytes).strip()}, {rest}. Less: {', '.join(savings)}",
            RuntimeWarning,  # Python does not show a ResourceWarning
            stacklevel=2,
        )
    return plan


def advice(sd: Model, recipe: Recipe, *, size: tuple[int, int] | None = None) -> list[str]:
    """Sentences that name a cheaper variant of the recipe that is expected to fit.

    The savings of `_savings` are added one after another until a plan fits: a few plans, where `fit` would make dozens. A variant whose
    weights and optimizer's state alone are too large is not planned.
    """
    try:
        gpu = card(sd.device)
        texts, dtype = [], None
        for text, change in _savings(sd, recipe, gpu):
            texts.append(text)
            if isinstance(change, str):
                dtype = change
            else:
                recipe = change(recipe)
            if planning.least_bytes(sd, recipe, dtype=dtype) > gpu.usable_bytes:
                continue
            if planning.plan(sd, recipe, resolution=size, gpu=gpu, dtype=dtype).fits:
                return [f"expected to fit: {', '.join(texts)}; as flags {recipe.to_flags()}"]
        tried = f"not even {', '.join(texts)} is expected to fit" if texts else "this recipe leaves nothing out that could be"
        return [f"{tried}: {' or '.join(_last_resorts(recipe, sd))} needs less"]
    except Exception as problem:
        return [f"what would fit could not be predicted ({type(problem).__name__}: {problem})"]


def what_happened(error: str) -> str:
    """Sentence on a CUDA error: how much was requested and how much was free, in the error's own numbers."""
    sizes = r"([\d.]+ [KMGT]?i?B)"
    requested, free = re.search(f"Tried to allocate {sizes}", error), re.search(f"{sizes} is free", error)
    text = "the card's memory is full"
    text += f": {requested[1]} more were asked for" if requested else ""
    return text + (f", and {free[1]} were free" if free else "")


def _savings(sd: Model, recipe: Recipe, card: Card) -> list[tuple[str, Callable[[Recipe], Recipe] | str]]:
    """Ways to need less memory, cheapest in time first: text for the reader, and a function that changes the recipe, or a dtype."""
    ways = []

    def way(name: str, value: object) -> None:
        text = f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
        ways.append((text, lambda recipe: recipe.replace(**{name: value})))

    half = "bf16" if card.has_bf16 else "fp16"
    adapters = _has_adapters(recipe, sd)
    trains_encoders = prepare.trains_encoders(sd, recipe)
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
        arguments = Recipe().optimizer_args
        ways.append(('optimizer_type="Adafactor"', lambda recipe: recipe.replace(optimizer_type="Adafactor", optimizer_args=arguments)))
    clips = recipe.max_grad_norm > 0 or recipe.gradient_accumulation_steps > 1
    if not (adapters or recipe.fused_backward_pass or clips or precision == "fp16"):
        way("fused_backward_pass", True)
    batch_size = recipe.train_batch_size
    while batch_size > 1:
        batch_size //= 2
        way("train_batch_size", batch_size)
    return ways


def _has_adapters(recipe: Recipe, sd: Model) -> bool:
    return lora.asked(recipe) is not None or any(lora.is_added(part) for part in sd.parts.values())


def _last_resorts(recipe: Recipe, sd: Model) -> list[str]:
    """Ways to need less memory that change the training itself."""
    return ["a smaller resolution", "a smaller model" if _has_adapters(recipe, sd) else "a LoRA"]
