"""Example inputs of a model: tensors of the right shapes on the meta device, to measure the model without running it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def example(model: Module, *, batch: int = 1, size: int | None = None, tokens: int = 77) -> dict[str, Tensor]:
    """Keyword arguments for one call of `model`, on the meta device, in its dtype: for a U-Net `sample` (B, C, size, size) and more.

    - `size`: side of the input, in latent positions for a denoiser (64 for SD 1.5 at 512 pixels), in pixels for an autoencoder. Default:
      the model's own sample size
    - `tokens`: length of a caption

    Raises `ValueError` for a model that is not of Stable Diffusion 1 to 3 or FLUX, and for a `batch` below 1.
    """
    make_inputs = _MAKERS.get(_class_name(model))
    if make_inputs is None:
        raise ValueError(
            f"what a {_class_name(model)} is called with is not known: give inputs={{...}}, "
            f"the keyword arguments of one call. Known are {', '.join(sorted(_MAKERS))}"
        )
    if batch < 1:
        raise ValueError(f"batch={batch}: it must be 1 or more")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.long, device="meta")

    return make_inputs(model.config, floats, integers, batch, size, tokens)


def _class_name(model: Module) -> str:
    """Name of the model's class, or of the base class that is in `_MAKERS`."""
    return next((base.__name__ for base in type(model).__mro__ if base.__name__ in _MAKERS), type(model).__name__)


def _unet(config, floats, integers, batch, size, tokens):
    size = size or config.sample_size
    width = config.cross_attention_dim
    inputs = {
        "sample": floats(batch, config.in_channels, size, size),
        "timestep": integers(batch),
        "encoder_hidden_states": floats(batch, tokens, width if isinstance(width, int) else width[-1]),
    }
    if config.addition_embed_type == "text_time":  # SDXL
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": floats(batch, pooled), "time_ids": floats(batch, 6)}
    return inputs


def _autoencoder(config, floats, integers, batch, size, tokens):
    size = size or config.sample_size
    return {"sample": floats(batch, config.in_channels, size, size)}


def _text(config, floats, integers, batch, size, tokens):
    return {"input_ids": integers(batch, min(tokens, getattr(config, "max_position_embeddings", tokens)))}


def _sd3(config, floats, integers, batch, size, tokens):
    size = size or config.sample_size
    return {
        "hidden_states": floats(batch, config.in_channels, size, size),
        "encoder_hidden_states": floats(batch, 2 * tokens, config.joint_attention_dim),
        "pooled_projections": floats(batch, config.pooled_projection_dim),
        "timestep": integers(batch),
    }


def _flux(config, floats, integers, batch, size, tokens):
    size = size or 128  # 1024 pixels
    patches = math.ceil(size / 2) ** 2
    inputs = {
        "hidden_states": floats(batch, patches, config.in_channels),
        "encoder_hidden_states": floats(batch, 512, config.joint_attention_dim),
        "pooled_projections": floats(batch, config.pooled_projection_dim),
        "timestep": floats(batch),
        "img_ids": floats(patches, 3),
        "txt_ids": floats(512, 3),
    }
    if config.guidance_embeds:
        inputs["guidance"] = floats(batch)
    return inputs


_MAKERS = {
    "UNet2DConditionModel": _unet,
    "AutoencoderKL": _autoencoder,
    "CLIPTextModel": _text,
    "CLIPTextModelWithProjection": _text,
    "T5EncoderModel": _text,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
