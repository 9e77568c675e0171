"""LoRA: small trained matrices beside frozen ones. peft does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Module

    from .models import StableDiffusion
    from .recipe import Recipe

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The attention's projections, which is what diffusers' own LoRA scripts train."""
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
NAME = "default"


def add(sd: StableDiffusion, *, rank: int, alpha: float, text_encoder: bool = False) -> StableDiffusion:
    """Freeze the U-Net and put adapters of this rank beside its attention's projections, in place; only they train from now on.

    The adapters are in fp32, whatever precision the frozen weights have. With `text_encoder` the text encoders get some too. Works on
    the meta device. Raises `ValueError` for a rank below 1 or a model that has adapters, `ImportError` without peft.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError('LoRA needs peft: pip install "peft>=0.18"') from error
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank={rank!r}: it must be a whole number, 1 or more")
    if not alpha > 0:
        raise ValueError(f"alpha={alpha!r}: it must be above 0; rank is a usual value")
    if is_added(sd.unet):
        raise ValueError("this U-Net has adapters already: load the model again for others")
    parts = [(sd.unet, TARGETS)]
    if text_encoder:
        parts += [(part, TEXT_TARGETS) for part in (sd.text_encoder, sd.text_encoder_2) if part is not None]
    for part, targets in parts:
        part.requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights=True)
        part.add_adapter(config, NAME)
        for name, parameter in part.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
    return sd


def is_added(model: Module) -> bool:
    """Whether `model` has adapters."""
    return bool(getattr(model, "peft_config", None))


def settings(recipe: Recipe) -> tuple[int, float] | None:
    """The rank and alpha that a recipe asks for in sd-scripts' words, or None if it trains all weights.

    It asks for a LoRA with `network_module` or `network_dim`; sd-scripts' defaults are a rank of 4 and an alpha of 1.
    """
    others = dict(recipe.others)
    if "network_module" not in others and "network_dim" not in others:
        return None
    module = others.get("network_module", "networks.lora")
    if module != "networks.lora":
        raise ValueError(f"network_module={module!r}: only networks.lora is known here")
    return int(others.get("network_dim", 4)), float(others.get("network_alpha", 1.0))
