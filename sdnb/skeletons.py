"""Stable Diffusions without weights: every shape, on the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import shapes
from .models import StableDiffusion
from .shapes import PARTS, architectures, configurations

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel

__all__ = ["PARTS", "architectures", "configurations", "skeleton", "skeleton_unet"]


def skeleton(name: str | Path, *, dtype: torch.dtype | None = None) -> StableDiffusion:
    """A whole Stable Diffusion on the meta device: one of `architectures()`, a folder in diffusers' format, or one safetensors file.

    Only configurations and headers are read. `dtype` is that of the U-Net, fp32 unless given; the frozen parts are in fp32. There
    is no tokenizer. Raises like `shapes.configurations`, and `ValueError` for a configuration that no part can be made of.
    """
    facts = configurations(name)
    parts = {part: shapes.build(part, facts[part], str(name)).to("meta") for part in PARTS if part in facts}
    _cast(parts["unet"].train(), dtype)
    for part, module in parts.items():
        if part != "unet":
            module.requires_grad_(False).eval()
    return StableDiffusion(**parts, tokenizer=None, noise_scheduler=shapes.scheduler(facts), family=facts["family"])


def skeleton_unet(name: str | Path, *, dtype: torch.dtype | None = None) -> UNet2DConditionModel:
    """The U-Net of any model that `skeleton` takes, alone: on the meta device, in training mode; fp32 by default."""
    return _cast(shapes.build("unet", configurations(name)["unet"], str(name)).train(), dtype)


def _cast(unet, dtype):
    import torch

    for parameter in unet.parameters():
        parameter.data = parameter.data.to(dtype or torch.float32)
    return unet
