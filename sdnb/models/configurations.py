"""Configurations of a model's parts: from shipped facts, a folder, or a file's header."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system import files, shown, suggest, untrusted
from . import weights
from .family import Family, families, fitting, known_parts, named

if TYPE_CHECKING:
    from torch.nn import Module

NAMES = {"tiny": "tiny-sd"}
"""Models known by name that are bundled -> their folder in the bundled data."""
DENOISERS = ("unet", "transformer", "prior")
"""Names of the trained part in models of any kind, known here or not."""
SCHEDULER = dict(
    num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
    clip_sample=False, set_alpha_to_one=False, steps_offset=1,
)  # fmt: skip
"""The noise of all Stable Diffusions, as their scheduler_config.json has it."""
METADATA = "sdnb.configurations"
"""Where a single file that was saved here keeps its configurations, for models of other shapes than the shipped ones."""
MOST = {"num_train_timesteps": 10_000, "sample_size": 16_384, "layers_per_block": 64, "_layers": 256}
"""The largest number that is read of settings whose names end so. FLUX and SD 3.5 have 38 layers, and all have 1,000 timesteps."""
MOST_OF_OTHERS = 2**20
MOST_ENTRIES = 1_000
"""Most entries of a list, unless it has one number for each timestep."""
MOST_TENSORS, MOST_WEIGHTS = 2_500, 10**11
"""Most tensors and weights of one part. SDXL's U-Net has 1,680 tensors, and FLUX 12 billion weights."""
ABOVE_0 = {
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels", "sample_size", "num_train_timesteps", "vocab_size"), int),
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "max_position_embeddings"), int),
    "scaling_factor": float,
}
"""Settings that are one number above 0, whole or not, wherever they are given."""


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

    Raises `ValueError` for a class that is none of its family's, for values no part can be made of, and for a part that would be larger
    than `MOST_TENSORS` and `MOST_WEIGHTS` say.
    """
    from accelerate import init_empty_weights

    config, wanted, where = facts[part], named(facts["family"]).parts[part], _where(source, f"{part}/config.json")
    kinds = config.get("architectures")
    kind = config.get("_class_name") or (kinds[0] if isinstance(kinds, list) and kinds else kinds) or wanted.cls
    if kind != wanted.cls:
        raise ValueError(f"{where} is of a {shown(kind)}, and the training step here is of {wanted.cls}")
    if config.get("quantization_config"):
        raise ValueError(f"{where} says that the weights are quantized, and such are not loaded: get those in full precision")
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    cls = getattr(importlib.import_module(wanted.library), wanted.cls)
    settings = cls.config_class if wanted.library == "transformers" else cls
    _check_types(own, settings, where)
    try:
        with init_empty_weights(include_buffers=False), _counted():
            if wanted.library == "transformers":
                return cls(settings(**{k: v for k, v in own.items() if k not in ("dtype", "torch_dtype")}))
            return cls.from_config(own)
    except Exception as error:  # whatever a library says of a value that it cannot use
        raise ValueError(f"{where}: no {kind} can be made of this configuration: {_said(error)}") from error


@contextmanager
def _counted() -> Iterator[None]:
    """Raise `ValueError` when more is built inside than a part may have."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    tensors = numbers = 0

    def count(module: Module, name: str, parameter: Any) -> None:
        nonlocal tensors, numbers
        tensors, numbers = tensors + 1, numbers + parameter.numel()
        if tensors > MOST_TENSORS or numbers > MOST_WEIGHTS:
            raise ValueError(f"it describes more than the {MOST_TENSORS:,} tensors and {MOST_WEIGHTS:,} weights that are read")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def scheduler(facts: dict, source: str = "this model"):
    """The noise that a model was trained with. Raises `ValueError` for values that no scheduler can be made of, or that are no noise."""
    where = _where(source, "scheduler/scheduler_config.json")
    try:
        noise = named(facts["family"]).scheduler(facts)
    except Exception as error:
        raise ValueError(f"{where}: no scheduler can be made of this configuration: {_said(error)}") from error
    _check_types({key: value for key, value in noise.config.items() if not key.startswith("_")}, type(noise), where)
    alphas, steps = getattr(noise, "alphas_cumprod", None), noise.config["num_train_timesteps"]
    if alphas is not None and not (alphas.shape == (steps,) and bool(((alphas >= 0) & (alphas <= 1)).all())):
        raise ValueError(f"{where} describes no noise: there must be num_train_timesteps betas between 0 and 1")
    return noise


def _where(source: str, name: str) -> str:
    """Name of one configuration in errors: its file, where there is one."""
    path = Path(source).expanduser() / name
    return untrusted.named(path) if path.is_file() else f"{source}: its configuration of {name.partition('/')[0]}"


def _said(error: Exception) -> str:
    return shown(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}", 300)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(each)
    else:
        yield value


def _check_sizes(config: Mapping, where: str) -> None:
    """Raise `ValueError` for a configuration that holds larger numbers or longer lists than any model has."""
    for key, value in config.items():
        if hasattr(dict, key):
            raise ValueError(f"{where} has {key!r}, which is no setting: diffusers' configurations have a method of that name")
        most = next((most for name, most in MOST.items() if key.endswith(name)), MOST_OF_OTHERS)
        entries = MOST["num_train_timesteps"] if key == "trained_betas" else MOST_ENTRIES
        for number, leaf in enumerate(_leaves(value), 1):
            if number > entries:
                raise ValueError(f"{where}: {shown(key)} has more than the {entries:,} entries that are read")
            # diffusers' own schedulers say that something has no limit with an infinity
            if isinstance(leaf, int | float) and not (-most <= leaf <= most or abs(leaf) == math.inf):
                raise ValueError(f"{where}: {shown(key)} is {shown(value)}, and numbers up to {most:,} are read")


def _check_types(config: Mapping, cls: Callable, where: str) -> None:
    """Raise `ValueError` for a setting of another type than its default in `cls`, and for one that hides a method of it."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    if "sample_size" in defaults and config.get("sample_size", defaults["sample_size"]) is None:
        raise ValueError(f"{where} has no sample_size, the side of the latents that it was made for")
    for key, value in config.items():
        if callable(getattr(cls, key, None)):
            raise ValueError(f"{where} has {shown(key)}, which is no setting")
        like, leaves = next(_leaves(defaults.get(key)), None), [leaf for leaf in _leaves(value) if leaf is not None]
        numbers = all(isinstance(leaf, int | float) and not isinstance(leaf, bool) and math.isfinite(leaf) for leaf in leaves)
        if key in ABOVE_0:
            fits = numbers and leaves == [value] and value > 0 and value == ABOVE_0[key](value)
            fits = fits or (value is None and defaults.get(key, 0) is None)
            wanted = f"one {'whole ' if ABOVE_0[key] is int else ''}number above 0"
        elif isinstance(like, bool | str):
            fits = all(isinstance(leaf, type(like)) for leaf in leaves)
            wanted = "a text" if isinstance(like, str) else "true or false"
        elif isinstance(like, int | float):
            fits, wanted = numbers and (key.endswith("_id") or all(leaf >= 0 for leaf in leaves)), "a number, 0 or more"
        else:
            continue
        if not fits:
            raise ValueError(f"{where}: {key} is {shown(value)}, and it must be {wanted}")


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
    """Configurations of the parts that have one, by name."""
    return {part: _read(folder / part / "config.json") for part in known_parts() if (folder / part / "config.json").is_file()}


def of_part(path: Path) -> dict:
    """The configuration of one part in a folder of its own. Raises `ValueError` for one that is none."""
    return _read(path)


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
    facts["scheduler"] = {key: value for key, value in _read(path).items() if not key.startswith("_")} if path.is_file() else {}
    facts["prediction_type"] = facts["scheduler"].get("prediction_type", "epsilon")
    facts["family"] = family.name
    return facts


def _unknown(folder: Path, facts: dict) -> Exception:
    """Reason why a folder's configurations belong to no family."""
    for part in DENOISERS:
        known = {family.parts[part].cls for family in families() if part in family.parts}
        if part in facts:
            kind = facts[part].get("_class_name")
            return ValueError(f"{folder}: its {part} is a {shown(kind)}, and the training step here is of {' and '.join(sorted(known))}")
        if not known and (folder / part).is_dir():
            return ValueError(f"{folder} holds a {part} instead of a U-Net: the training step here, and so its plan, is of U-Nets")
    return FileNotFoundError(f"{folder / 'unet' / 'config.json'} is missing: give a Stable Diffusion in diffusers' format")


def _read(path: Path) -> dict:
    config = untrusted.read_json(path, most=1_000_000)
    _check_sizes(config, untrusted.named(path))
    return config


def _of_file(path: Path) -> dict:
    """From the configurations that a file saved here carries, or else from the names in its header and what it says of itself."""
    header = weights.header(path)
    if METADATA in header.metadata:
        try:
            facts = untrusted.parse_json(header.metadata[METADATA][:1_000_000], "its metadata")
            family = fitting(facts)
            if family is None:
                raise ValueError("they are of no family that is known here")
            for part in family.parts:
                _check_sizes(facts[part], f"its {part}")
            _check_sizes(facts.get("scheduler", {}), "its scheduler")
            return facts | {"family": family.name}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            damage = "the configurations in its metadata are damaged"
            raise ValueError(f"{path}: {damage} ({_said(error)}). Give config=, a folder with them") from error
    marks = {family.mark: family for family in reversed(families()) if family.mark}
    family = next((family for mark, family in marks.items() if any(key.startswith(mark) for key in header.shapes)), None)
    if family is None:
        raise ValueError(
            f"{path.name} holds no whole Stable Diffusion 1, 2 or XL: it has neither {', nor '.join(marks)}…. "
            "A LoRA or a single part has to be planned with the model it belongs to"
        )
    return family.facts_of_file(path, header)
