"""The names that a LoRA's file has for the layers of a model: kohya's and diffusers'."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..models import Family, families, family_of
from . import adapters

if TYPE_CHECKING:
    from ..models import Model

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


def kohya(sd: Model, part: str, path: str) -> str:
    """The name that sd-scripts gives to a layer.

    The denoiser is `lora_unet`, and its layers have their original names or, before SDXL, diffusers'. A text encoder is `lora_te`, or
    `lora_te1`, `lora_te2` and so on where there are several.
    """
    family = family_of(sd)
    if part == family.denoiser:
        return flat("lora_unet", family.original_name(sd, path) if family.lora_names_are_original else path)
    number = family.encoders.index(part) + 1 if len(family.encoders) > 1 else ""
    return flat(f"lora_te{number}", nested(family, part, path))


def flat(prefix: str, path: str) -> str:
    """A path as kohya's names have it."""
    return f"{prefix}_{path}".replace(".", "_")


def diffusers(sd: Model, part: str, path: str) -> str:
    """The name that diffusers gives to a layer; both of a text encoder's spellings are read there, and the longer one elsewhere too."""
    return f"{part}.{nested(family_of(sd), part, path)}"


def nested(family: Family, part: str, path: str) -> str:
    """A path in a part; in CLIP as it was before transformers 5.6, which left a level out of one of its classes."""
    return f"text_model.{path}" if family.parts[part].is_clip and not path.startswith("text_model.") else path


def spellings(sd: Model) -> dict[str, tuple[str, str]]:
    """Every name under which a file may have a layer of this model -> its part and path there."""
    import torch

    found, family = {}, family_of(sd)
    for part, module in adapters.parts(sd).items():
        for path, layer in module.named_modules():
            if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                continue
            names = [kohya(sd, part, path), diffusers(sd, part, path), f"{part}.{path}"]
            if part == family.denoiser:
                names += [flat("lora_unet", path), flat("lora_unet", family.original_name(sd, path))]
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
    """Kind of a file whose adapters are not LoRA; None for a LoRA."""
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
    known = families()
    widths = {family.context_width: family.title for family in known if family.context_width}
    for key, shape in shapes.items():
        if re.search(r"attn2[._](processor\.)?to_[kv]", key) and (split(key) or key)[1] == "down" and len(shape) > 1:
            return widths.get(shape[1], f"a model whose context is {shape[1]} wide")
    said = metadata.get("ss_base_model_version", "")
    second = any(key.startswith(("lora_te2_", "text_encoder_2.")) for key in shapes)
    named = [family for family in known if family.version and said.startswith(family.version)]
    named += [family for family in known if second and "text_encoder_2" in family.parts]
    return named[0].title if named else None
