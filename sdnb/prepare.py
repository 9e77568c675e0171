"""What of a model is trained, as a recipe says: all of the U-Net, or adapters beside it and beside the text encoders."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from . import lora
from .adafactor import Adafactor

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer

    from .models import StableDiffusion
    from .recipe import Recipe


def choose(sd: StableDiffusion, recipe: Recipe) -> dict[str, Parameter]:
    """Make `sd` ready to be trained, in place, and return what will be, by names such as `unet.conv_in.weight`.

    A recipe with `network_module` or `network_dim` gets adapters where the model has none; those of the text encoders too, as in
    sd-scripts, unless it says `network_train_unet_only`. With `full_bf16` all weights but adapters become bf16. Without adapters the
    whole U-Net is trained. Raises `ValueError` for settings that exclude each other.
    """
    others = dict(recipe.others)
    check(sd, recipe)
    if others.get("full_bf16"):
        for part in sd.parts.values():
            for name, parameter in part.named_parameters():
                if ".lora_" not in name:
                    parameter.data = parameter.data.bfloat16()
    adapters = lora.asked(recipe)
    if adapters and not any(lora.is_added(part) for part in sd.parts.values()):
        # adapters begin at random: the recipe's seed says how, and the caller's own generator does not notice
        with torch.random.fork_rng(devices=[]) if recipe.seed is not None else nullcontext():
            if recipe.seed is not None:
                torch.default_generator.manual_seed(recipe.seed)  # torch.manual_seed would set those of all GPUs, too
            lora.add(sd, **vars(adapters), text_encoder=adapts_text(recipe))
        if others.get("network_train_text_encoder_only"):
            sd.unet.requires_grad_(False)
    elif not lora.is_added(sd.unet):
        sd.unet.requires_grad_(True)
    return {f"{part}.{name}": p for part, module in _learners(sd).items() for name, p in module.named_parameters() if p.requires_grad}


def groups(recipe: Recipe, chosen: dict[str, Parameter]) -> list[dict]:
    """The parameters for the optimizer, in one group or, where the recipe has `unet_lr` or `text_encoder_lr`, in one for each part."""
    others = dict(recipe.others)
    rates = {"unet": others.get("unet_lr")}
    given = others.get("text_encoder_lr")
    given = given if isinstance(given, tuple) else (given,)
    rates |= {"text_encoder": given[0], "text_encoder_2": given[-1]}
    parts: dict[str, list[Parameter]] = {}
    for name, parameter in chosen.items():
        part = name.partition(".")[0]
        parts.setdefault(part if any(rate is not None for rate in rates.values()) else "all", []).append(parameter)
    return [{"params": some, **({"lr": float(rates[part])} if rates.get(part) is not None else {})} for part, some in parts.items()]


def check(sd: StableDiffusion, recipe: Recipe) -> None:
    """Raises `ValueError`, with the reason, for what a recipe asks to train and cannot be trained, before anything is changed."""
    others = dict(recipe.others)
    adapters = lora.asked(recipe)
    if others.get("full_fp16"):
        raise ValueError('full_fp16 trains weights too coarse for small updates: use mixed_precision="fp16", or full_bf16 with Adafactor')
    if others.get("network_train_unet_only") and others.get("network_train_text_encoder_only"):
        raise ValueError("network_train_unet_only and network_train_text_encoder_only exclude each other: leave one of them out")
    cached = others.get("cache_text_encoder_outputs") or others.get("cache_text_encoder_outputs_to_disk")
    if cached and (sd.encoders_in_training or (adapters and adapts_text(recipe) and not lora.is_added(sd.unet))):
        raise ValueError(
            "the outputs of text encoders that are trained change with every step and cannot be cached: "
            "set network_train_unet_only, or leave cache_text_encoder_outputs out"
        )
    bf16 = recipe.mixed_precision == "bf16" or others.get("full_bf16") or sd.dtype == torch.bfloat16
    if bf16 and sd.device.type == "cuda" and torch.cuda.get_device_capability(sd.device) < (8, 0):
        raise ValueError(f'{torch.cuda.get_device_name(sd.device)} has no bf16 of its own: use mixed_precision="fp16" and weights in fp32')


def check_precision(sd: StableDiffusion, recipe: Recipe, optimizer: Optimizer) -> None:
    """Raise `ValueError` for weights too coarse to be trained, and for fp16 on a CPU. Adafactor rounds bf16 stochastically."""
    rounds_stochastically = isinstance(optimizer, Adafactor) and optimizer.defaults["stochastic_rounding"]
    learning = (p for part in _learners(sd).values() for p in part.parameters() if p.requires_grad)
    dtype = next((p.dtype for p in learning), sd.dtype)  # of a LoRA, the adapters'
    if dtype != torch.float32 and not (dtype == torch.bfloat16 and rounds_stochastically):
        raise ValueError(
            f"the weights to train are in {dtype}, too coarse for small updates: load the model with dtype=torch.float32"
            + (", or let Adafactor round them stochastically" if dtype == torch.bfloat16 else "")
        )
    if recipe.mixed_precision == "fp16" and sd.device.type == "cpu":
        raise ValueError('mixed_precision="fp16" needs a GPU: on a CPU use "no" or "bf16"')


def adapts_text(recipe: Recipe) -> bool:
    """Whether the recipe's LoRA is to have adapters in the text encoders."""
    others = dict(recipe.others)
    rates = others.get("text_encoder_lr")
    rates = rates if isinstance(rates, tuple) else (rates,)
    return not others.get("network_train_unet_only") and any(rate != 0 for rate in rates)


def _learners(sd: StableDiffusion) -> dict[str, Module]:
    return {"unet": sd.unet, **sd.encoders_in_training}
