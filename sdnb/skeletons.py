"""Stable Diffusions without weights: every shape, on the meta device, from shipped facts, a folder's configurations or a file's header."""

from __future__ import annotations

import difflib
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from . import data
from .models import NAMES, PICKLES, StableDiffusion

if TYPE_CHECKING:
    import torch
    from torch.nn import Module

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
KEYS = {  # what the names in a single file say about the model in it; the first that is found
    "conditioner.embedders.1.model.": "sdxl",
    "cond_stage_model.model.": "sd21",
    "cond_stage_model.transformer.": "sd15",
}


def architectures() -> list[str]:
    """The names of the models whose shapes are known here."""
    return [*NAMES, *sorted(path.stem for path in data.bundled("architectures").glob("*.json"))]


def skeleton(name: str | Path, *, dtype: torch.dtype | None = None) -> StableDiffusion:
    """A whole Stable Diffusion on the meta device: one of `architectures()`, a folder in diffusers' format, or one safetensors file.

    Only configurations and headers are read. `dtype` is that of the U-Net, fp32 unless given; the frozen parts are in fp32. There
    is no tokenizer. Raises `ValueError` for an unknown name (with the nearest), a configuration that is none, a model that is no
    Stable Diffusion with a U-Net, and a pickle; `FileNotFoundError` for a missing file.
    """
    import torch
    from diffusers import DDPMScheduler

    facts = configurations(name)
    parts = {}
    for part in PARTS:
        if part in facts:
            parts[part] = _build(part, facts[part], str(name))
    parts["unet"].train()
    for part, module in parts.items():
        if part != "unet":
            module.requires_grad_(False).eval()
    for parameter in parts["unet"].parameters():
        parameter.data = parameter.data.to(dtype or torch.float32)
    scheduler = DDPMScheduler(prediction_type=facts["prediction_type"], beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return StableDiffusion(**parts, tokenizer=None, noise_scheduler=scheduler, family=facts["family"])


def configurations(name: str | Path) -> dict:
    """What `skeleton` builds from: a configuration for each part, `prediction_type` and `family`. Raises like it."""
    path = Path(name).expanduser()
    if path.suffix.lower() in PICKLES:
        raise ValueError(f"{path.name} is a pickle, which can run any code when it is opened: ask for the model's .safetensors file")
    if path.is_dir():
        return _of_folder(path)
    if path.suffix.lower() == ".safetensors":
        return _shipped(_of_file(path))
    if str(name) in NAMES:
        return _of_folder(data.bundled(NAMES[str(name)]))
    known = architectures()
    if str(name) in known:
        return _shipped(str(name))
    close = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.4)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError(
        f"no model {str(name)!r}{hint}: known by name are {', '.join(known)}; otherwise give a folder in diffusers' format, "
        "or one .safetensors file"
    )


@functools.cache
def _text_of(name: str) -> str:
    return (data.bundled("architectures") / f"{name}.json").read_text(encoding="utf-8")


def _shipped(name: str) -> dict:
    return json.loads(_text_of(name))


def _of_folder(folder: Path) -> dict:
    if not (folder / "unet" / "config.json").is_file():
        other = next((part for part in ("transformer", "prior") if (folder / part).is_dir()), None)
        if other:
            raise ValueError(f"{folder} holds a {other} instead of a U-Net: the training step here, and so its plan, is of U-Nets")
        raise FileNotFoundError(f"{folder / 'unet' / 'config.json'} is missing: give a Stable Diffusion in diffusers' format")
    facts = {part: _json(folder / part / "config.json") for part in PARTS if (folder / part / "config.json").is_file()}
    missing = [part for part in ("vae", "text_encoder") if part not in facts]
    if missing:
        raise FileNotFoundError(f"{folder / missing[0] / 'config.json'} is missing: give a Stable Diffusion in diffusers' format")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    facts["prediction_type"] = _json(scheduler).get("prediction_type", "epsilon") if scheduler.is_file() else "epsilon"
    width = facts["unet"].get("cross_attention_dim")
    facts["family"] = "sdxl" if "text_encoder_2" in facts else "sd2" if width == 1024 else "sd1"
    return facts


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no configuration: it holds a {type(content).__name__}. Fetch it again")
    return content


def _of_file(path: Path) -> str:
    """Which of the shipped architectures a single file holds, by the names in its header."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give an existing .safetensors file")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if length > path.stat().st_size:
                raise ValueError("the header does not fit")
            names = json.loads(file.read(length)).keys()
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no safetensors file, or its beginning is damaged: fetch it again") from error
    for start, name in KEYS.items():
        if any(key.startswith(start) for key in names):
            return name
    raise ValueError(
        f"{path.name} holds no whole Stable Diffusion 1, 2 or XL: it has neither {', nor '.join(KEYS)}…. "
        "A LoRA or a single part has to be planned with the model it belongs to"
    )


def _build(part: str, config: dict, source: str) -> Module:
    """One part on the meta device."""
    import diffusers
    import torch
    import transformers

    kind = config.get("_class_name") or next(iter(config.get("architectures") or ()), None) or CLASSES.get(part, TEXT_ENCODERS[0])
    allowed = (CLASSES[part],) if part in CLASSES else TEXT_ENCODERS
    if kind not in allowed:
        raise ValueError(f"{source}: its {part} is a {kind}, and the training step here is of {' and '.join(allowed)}")
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):
            if part in CLASSES:
                return getattr(diffusers, kind).from_config(own)
            return getattr(transformers, kind)(
                transformers.CLIPTextConfig(**{k: v for k, v in own.items() if k not in ("dtype", "torch_dtype")})
            )
    except Exception as error:  # whatever a library says of a value that it cannot use
        raise ValueError(f"{source}: no {kind} can be made of its configuration of {part}: {error}") from error
