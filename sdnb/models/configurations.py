"""What a Stable Diffusion is built of: a configuration for each part, from shipped facts, a folder, or a file's header."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..system import files, suggest
from . import weights

if TYPE_CHECKING:
    from diffusers import DDPMScheduler
    from torch.nn import Module

NAMES = {"tiny": "tiny-sd"}
"""Models known by name that are bundled -> their folder in the bundled data."""
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
KEYS = {  # what the names in a single file say about the model in it; the first that is found
    "conditioner.embedders.1.model.": "sdxl",
    "cond_stage_model.model.": "sd21",
    "cond_stage_model.transformer.": "sd15",
}
SCHEDULER = dict(
    num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
    clip_sample=False, set_alpha_to_one=False, steps_offset=1,
)  # fmt: skip
"""The noise of all Stable Diffusions, as their scheduler_config.json has it."""
METADATA = "sdnb.configurations"
"""Where a single file that was saved here keeps its configurations, for models of other shapes than the shipped ones."""
V_BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_SPREAD = 0.09
"""The spread of this bias tells SD 2 that predicts v, above it, from SD 2 that predicts noise. ComfyUI decides by it too."""


def architectures() -> list[str]:
    """The names of the models whose shapes are known here."""
    return [*NAMES, *sorted(path.stem for path in files.bundled("architectures").glob("*.json"))]


def configurations(name: str | Path) -> dict:
    """A configuration for each part, `prediction_type`, `family`, and what else is known of the `scheduler`.

    `name` is one of `architectures()`, a folder in diffusers' format or one safetensors file. Raises `ValueError` for an unknown name
    (with the nearest), a configuration that is none, a file or folder with no Stable Diffusion, and a pickle; `FileNotFoundError` for a
    missing file.
    """
    path = Path(name).expanduser()
    weights.refuse_pickle(path)
    if path.is_dir():
        return _of_folder(path)
    if path.suffix.lower() == ".safetensors":
        return _of_file(path)
    if str(name) in NAMES:
        return _of_folder(files.bundled(NAMES[str(name)]))
    known = architectures()
    if str(name) in known:
        return _shipped(str(name))
    hint = suggest(name, known, aside=True, key=str.lower, cutoff=0.4)
    raise ValueError(
        f"no model {str(name)!r}{hint}: known by name are {', '.join(known)}; otherwise give a folder in diffusers' format, "
        "or one .safetensors file"
    )


def build(part: str, config: dict, source: str) -> Module:
    """One part with its parameters on the meta device; what is no parameter is real. `source` is what errors call the model.

    Raises `ValueError` for a class that is none of a Stable Diffusion, and for values no part can be made of.
    """
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    kind = config.get("_class_name") or next(iter(config.get("architectures") or ()), None) or CLASSES.get(part, TEXT_ENCODERS[0])
    allowed = (CLASSES[part],) if part in CLASSES else TEXT_ENCODERS
    if kind not in allowed:
        raise ValueError(f"{source}: its {part} is a {kind}, and the training step here is of {' and '.join(allowed)}")
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with init_empty_weights(include_buffers=False):
            if part in CLASSES:
                return getattr(diffusers, kind).from_config(own)
            return getattr(transformers, kind)(
                transformers.CLIPTextConfig(**{k: v for k, v in own.items() if k not in ("dtype", "torch_dtype")})
            )
    except Exception as error:  # whatever a library says of a value that it cannot use
        raise ValueError(f"{source}: no {kind} can be made of its configuration of {part}: {error}") from error


def scheduler(facts: dict) -> DDPMScheduler:
    """The noise that a model was trained with."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config({**(facts.get("scheduler") or SCHEDULER), "prediction_type": facts["prediction_type"]})


def family(facts: dict) -> str:
    """`sdxl`, `sd2` or `sd1`: SDXL has two text encoders, and SD 2 projects with linear layers where SD 1 has convolutions."""
    if "text_encoder_2" in facts:
        return "sdxl"
    return "sd2" if facts["unet"].get("use_linear_projection") else "sd1"


@functools.cache
def _text_of(name: str) -> str:
    return (files.bundled("architectures") / f"{name}.json").read_text(encoding="utf-8")


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
    path = folder / "scheduler" / "scheduler_config.json"
    facts["scheduler"] = {key: value for key, value in _json(path).items() if not key.startswith("_")} if path.is_file() else {}
    facts["prediction_type"] = facts["scheduler"].get("prediction_type", "epsilon")
    facts["family"] = family(facts)
    return facts


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no configuration: it holds a {type(content).__name__}. Fetch it again")
    return content


def _of_file(path: Path) -> dict:
    """From the configurations that a file saved here carries, or else from the names in its header and what it says of itself."""
    header = weights.header(path)
    if METADATA in header.metadata:
        try:
            facts = json.loads(header.metadata[METADATA])
            return {**facts, "family": family(facts)}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: the configurations in its metadata are damaged. Give config=, a folder with them") from error
    name = next((name for start, name in KEYS.items() if any(key.startswith(start) for key in header.shapes)), None)
    if name is None:
        raise ValueError(
            f"{path.name} holds no whole Stable Diffusion 1, 2 or XL: it has neither {', nor '.join(KEYS)}…. "
            "A LoRA or a single part has to be planned with the model it belongs to"
        )
    facts = _shipped(name)
    said = header.metadata.get("modelspec.prediction_type")
    if said in ("v", "epsilon"):
        facts["prediction_type"] = "v_prediction" if said == "v" else said
    elif "v_pred" in header.shapes:  # an empty tensor of this name is how SDXL files say it
        facts["prediction_type"] = "v_prediction"
    elif name == "sd21" and V_BIAS in header.shapes and _spread(path) <= V_SPREAD:
        facts["prediction_type"] = "epsilon"
    if name == "sd21" and facts["prediction_type"] == "epsilon":
        facts["unet"]["sample_size"] = 64  # SD 2's base was made for 512 × 512
    if "ztsnr" in header.shapes:
        facts["scheduler"] = {**SCHEDULER, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return facts


def _spread(path: Path) -> float:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(V_BIAS).float().std(correction=0).item()
