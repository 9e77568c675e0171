"""Example inputs of a model: tensors of the right shapes on the meta device, to measure it without running it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def example(model: Module, *, batch: int = 1, size: int | None = None, tokens: int = 77) -> dict[str, Tensor]:
    """Keyword arguments for one call of `model`, on the meta device, in its precision: for a U-Net `sample` (B, C, size, size) and more.

    `size` is the side of what the model is given, in latent positions for a denoiser (64 for SD 1.5 at 512 pixels) and in pixels
    for an autoencoder; the model's own sample size unless given. `tokens` is the length of a caption.

    Raises `ValueError` for a model of another kind than those of Stable Diffusion 1 to 3 and FLUX, and for a `batch` below 1.
    """
    make = _KINDS.get(_name(model))
    if make is None:
        raise ValueError(
            f"what a {_name(model)} is called with is not known: give inputs={{...}}, "
            f"the keyword arguments of one call. Known are {', '.join(sorted(_KINDS))}"
        )
    if batch < 1:
        raise ValueError(f"batch={batch}: it must be 1 or more")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def whole(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.long, device="meta")

    return make(model.config, floats, whole, batch, size, tokens)


def _name(model: Module) -> str:
    return next((base.__name__ for base in type(model).__mro__ if base.__name__ in _KINDS), type(model).__name__)


def _unet(config, floats, whole, batch, size, tokens):
    size = size or config.sample_size
    width = config.cross_attention_dim
    inputs = {
        "sample": floats(batch, config.in_channels, size, size),
        "timestep": whole(batch),
        "encoder_hidden_states": floats(batch, tokens, width if isinstance(width, int) else width[-1]),
    }
    if config.addition_embed_type == "text_time":  # SDXL
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": floats(batch, pooled), "time_ids": floats(batch, 6)}
    return inputs


def _autoencoder(config, floats, whole, batch, size, tokens):
    size = size or config.sample_size
    return {"sample": floats(batch, config.in_channels, size, size)}


def _text(config, floats, whole, batch, size, tokens):
    return {"input_ids": whole(batch, min(tokens, getattr(config, "max_position_embeddings", tokens)))}


def _sd3(config, floats, whole, batch, size, tokens):
    size = size or config.sample_size
    return {
        "hidden_states": floats(batch, config.in_channels, size, size),
        "encoder_hidden_states": floats(batch, 2 * tokens, config.joint_attention_dim),
        "pooled_projections": floats(batch, config.pooled_projection_dim),
        "timestep": whole(batch),
    }


def _flux(config, floats, whole, batch, size, tokens):
    size = size or 128  # 1024 pixels
    places = math.ceil(size / 2) ** 2
    inputs = {
        "hidden_states": floats(batch, places, config.in_channels),
        "encoder_hidden_states": floats(batch, 512, config.joint_attention_dim),
        "pooled_projections": floats(batch, config.pooled_projection_dim),
        "timestep": floats(batch),
        "img_ids": floats(places, 3),
        "txt_ids": floats(512, 3),
    }
    if config.guidance_embeds:
        inputs["guidance"] = floats(batch)
    return inputs


_KINDS = {
    "UNet2DConditionModel": _unet,
    "AutoencoderKL": _autoencoder,
    "CLIPTextModel": _text,
    "CLIPTextModelWithProjection": _text,
    "T5EncoderModel": _text,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
