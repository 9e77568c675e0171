"""What a model is built of: a configuration for each part, from shipped facts, a folder, or a file's header."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..system import files, suggest
from . import weights
from .family import Family, families, fitting, known_parts, named

if TYPE_CHECKING:
    from torch.nn import Module

NAMES = {"tiny": "tiny-sd"}
"""Models known by name that are bundled -> their folder in the bundled data."""
DENOISERS = ("unet", "transformer", "prior")
"""What the part that is trained is called in models of any kind, known here or not."""
SCHEDULER = dict(
    num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
    clip_sample=False, set_alpha_to_one=False, steps_offset=1,
)  # fmt: skip
"""The noise of all Stable Diffusions, as their scheduler_config.json has it."""
METADATA = "sdnb.configurations"
"""Where a single file that was saved here keeps its configurations, for models of other shapes than the shipped ones."""


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
        return shipped(str(name))
    hint = suggest(name, known, aside=True, key=str.lower, cutoff=0.4)
    raise ValueError(
        f"no model {str(name)!r}{hint}: known by name are {', '.join(known)}; otherwise give a folder in diffusers' format, "
        "or one .safetensors file"
    )


def build(facts: dict, part: str, source: str) -> Module:
    """One part with its parameters on the meta device; what is no parameter is real. `source` is what errors call the model.

    Raises `ValueError` for a class that is none of its family's, and for values no part can be made of.
    """
    from accelerate import init_empty_weights

    config, wanted = facts[part], named(facts["family"]).parts[part]
    kind = config.get("_class_name") or next(iter(config.get("architectures") or ()), None) or wanted.cls
    if kind != wanted.cls:
        raise ValueError(f"{source}: its {part} is a {kind}, and the training step here is of {wanted.cls}")
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        cls = getattr(importlib.import_module(wanted.library), kind)
        with init_empty_weights(include_buffers=False):
            if wanted.library == "transformers":
                return cls(cls.config_class(**{k: v for k, v in own.items() if k not in ("dtype", "torch_dtype")}))
            return cls.from_config(own)
    except Exception as error:  # whatever a library says of a value that it cannot use
        raise ValueError(f"{source}: no {kind} can be made of its configuration of {part}: {error}") from error


def scheduler(facts: dict):
    """The noise that a model was trained with."""
    return named(facts["family"]).scheduler(facts)


def family_in(folder: Path) -> Family:
    """The family of the model in a folder, whole or not: that of its configurations, or else the one of which least is missing."""

    def lacking(family: Family) -> int:
        return sum(not (folder / name).is_dir() for name in family.folders)

    return fitting(_configs(folder)) or min(families(), key=lacking)


@functools.cache
def _text_of(name: str) -> str:
    return (files.bundled("architectures") / f"{name}.json").read_text(encoding="utf-8")


def shipped(name: str) -> dict:
    """The configurations of a model that is in `data/architectures`."""
    return json.loads(_text_of(name))


def _configs(folder: Path) -> dict:
    """What there is of configurations of parts, by their names."""
    return {part: _json(folder / part / "config.json") for part in known_parts() if (folder / part / "config.json").is_file()}


def _of_folder(folder: Path) -> dict:
    facts = _configs(folder)
    family = fitting(facts)
    if family is None:
        raise _unknown(folder, facts)
    missing = [part for part in family.parts if part not in facts]
    if missing:
        raise FileNotFoundError(f"{folder / missing[0] / 'config.json'} is missing: give a Stable Diffusion in diffusers' format")
    facts = {part: facts[part] for part in family.parts}
    path = folder / "scheduler" / "scheduler_config.json"
    facts["scheduler"] = {key: value for key, value in _json(path).items() if not key.startswith("_")} if path.is_file() else {}
    facts["prediction_type"] = facts["scheduler"].get("prediction_type", "epsilon")
    facts["family"] = family.name
    return facts


def _unknown(folder: Path, facts: dict) -> Exception:
    """What is wrong with a folder whose configurations are of no family."""
    for part in DENOISERS:
        known = {family.parts[part].cls for family in families() if part in family.parts}
        if part in facts:
            kind = facts[part].get("_class_name")
            return ValueError(f"{folder}: its {part} is a {kind}, and the training step here is of {' and '.join(sorted(known))}")
        if not known and (folder / part).is_dir():
            return ValueError(f"{folder} holds a {part} instead of a U-Net: the training step here, and so its plan, is of U-Nets")
    return FileNotFoundError(f"{folder / 'unet' / 'config.json'} is missing: give a Stable Diffusion in diffusers' format")


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
            family = fitting(facts)
            if family is None:
                raise ValueError("they are of no family that is known here")
            return facts | {part: facts[part] for part in family.parts} | {"family": family.name}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: the configurations in its metadata are damaged. Give config=, a folder with them") from error
    marks = {family.mark: family for family in reversed(families()) if family.mark}
    family = next((family for mark, family in marks.items() if any(key.startswith(mark) for key in header.shapes)), None)
    if family is None:
        raise ValueError(
            f"{path.name} holds no whole Stable Diffusion 1, 2 or XL: it has neither {', nor '.join(marks)}…. "
            "A LoRA or a single part has to be planned with the model it belongs to"
        )
    return family.facts_of_file(path, header)
