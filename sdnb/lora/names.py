"""The names that a LoRA's file has for the layers of a model: kohya's and diffusers'."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..models import singlefile
from . import adapters

if TYPE_CHECKING:
    from torch.nn import Module

    from ..models import StableDiffusion

FAMILIES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Width of the context that the cross-attention sees -> family."""
FOREIGN = {
    r"\.hada_w": "a LoHa of LyCORIS",
    r"\.lokr_w": "a LoKr of LyCORIS",
    r"\.(dora_scale|lora_magnitude_vector)": "a DoRA, whose rows have magnitudes of their own",
    r"\.[ab][12]\.weight$": "a GLoRA of LyCORIS",
    r"\.oft_": "an OFT",
    r"\.lora_mid": "a LoCon of LyCORIS in Tucker's form",
    r"\.on_input$": "an (IA)³ of LyCORIS",
    r"\.(diff|diff_b|w_norm|b_norm)$": "whole differences of weights beside adapters",
}
"""Adapters of other kinds, by what is only in their names."""


def original(path: str, unet: Module) -> str:
    """A layer's path in diffusers' U-Net as the original has it: `down_blocks.1.attentions.0.proj_in` -> `input_blocks.4.1.proj_in`."""
    layers = unet.config.layers_per_block
    return singlefile.unet_name(path, layers=layers, attended=lambda block: hasattr(unet.up_blocks[block], "attentions"))


def kohya(sd: StableDiffusion, part: str, path: str) -> str:
    """The name that sd-scripts gives to a layer: the original block names for SDXL, diffusers' for the others.

    The text encoder is `lora_te`, or `lora_te1` and `lora_te2` for SDXL; its layers are below `text_model`, a level that transformers
    left out of one of its classes since.
    """
    xl = sd.family == "sdxl"
    if part == "unet":
        return "lora_unet_" + (original(path, sd.unet) if xl else path).replace(".", "_")
    prefix = {"text_encoder": "lora_te1_" if xl else "lora_te_", "text_encoder_2": "lora_te2_"}[part]
    return prefix + nested(path).replace(".", "_")


def diffusers(part: str, path: str) -> str:
    """The name that diffusers gives to a layer; both of a text encoder's spellings are read there, and the longer one elsewhere too."""
    return f"{part}.{path if part == 'unet' else nested(path)}"


def nested(path: str) -> str:
    """A path in a text encoder as it was before transformers 5.6."""
    return path if path.startswith("text_model.") else f"text_model.{path}"


def spellings(sd: StableDiffusion) -> dict[str, tuple[str, str]]:
    """Every name under which a file may have a layer of this model -> its part and path there."""
    import torch

    found = {}
    for part, module in adapters.parts(sd).items():
        for path, layer in module.named_modules():
            if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                continue
            names = [kohya(sd, part, path), diffusers(part, path)]
            if part == "unet":
                names += [f"lora_unet_{path}".replace(".", "_"), f"lora_unet_{original(path, module)}".replace(".", "_")]
            else:
                names += [f"{part}.{path}"]
            found |= dict.fromkeys(names, (part, path))
    return found


KINDS = {"lora_down": "down", "lora_A": "down", "lora.down": "down", "lora_linear_layer.down": "down", "_lora.down": "down"}
KINDS |= {name.replace("down", "up").replace("lora_A", "lora_B"): "up" for name in KINDS}
_KEY = re.compile(rf"^(.+?)(\.alpha|(?:\.|(?=_lora))({'|'.join(map(re.escape, KINDS))})(?:\.default)?\.weight)$")


def split(key: str) -> tuple[str, str] | None:
    """A key of a file -> the layer's name, and `down`, `up` or `alpha`; None for a key that is neither form's."""
    found = _KEY.match(key)
    if found is None:
        return None
    name, kind = found[1], KINDS[found[3]] if found[3] else "alpha"
    name = name.replace(".processor.", ".")  # as diffusers wrote it before it used peft
    return (f"{name}.0" if name.endswith(".to_out") else name), kind


def foreign(keys: Iterable[str]) -> str | None:
    """What a file of adapters of another kind is, or None."""
    for key in keys:
        for pattern, kind in FOREIGN.items():
            if re.search(pattern, key):
                return f"{kind} (its {key} says so)"
    return None


def base(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str | None:
    """For which kind of model a file seems to be, by its shapes, names and metadata; None if nothing says so."""
    if any(
        re.match(r"(lora_unet_|transformer\.)?(double|single)_blocks|lora_unet_(double|single)|transformer\.single_", key) for key in shapes
    ):
        return "FLUX"
    if any("joint_blocks" in key or key.startswith("transformer.") for key in shapes):
        return "a transformer, such as Stable Diffusion 3"
    for key, shape in shapes.items():
        if re.search(r"attn2[._](processor\.)?to_[kv]", key) and (split(key) or key)[1] == "down" and len(shape) > 1:
            return FAMILIES.get(WIDTHS.get(shape[1]), f"a model whose context is {shape[1]} wide")
    said = metadata.get("ss_base_model_version", "")
    for start, family in (("sdxl", "sdxl"), ("sd_v2", "sd2"), ("sd_v1", "sd1")):
        if said.startswith(start):
            return FAMILIES[family]
    if any(key.startswith(("lora_te2_", "text_encoder_2.")) for key in shapes):
        return FAMILIES["sdxl"]
    return None
