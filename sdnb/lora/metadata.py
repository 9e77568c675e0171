"""Metadata of a LoRA file: sd-scripts' entries and hashes, and diffusers' settings of the adapters."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..models import family_of
from ..sd_scripts import OF_THEIR_OWN, pairs
from ..sections import named
from ..system import shown, untrusted
from .adapters import NAME, matrices

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from torch import Tensor

    from ..models import Model
    from ..recipe import Recipe


def _sizes(layers: Mapping[str, LoraLayer]) -> dict[str, tuple[int, float]]:
    return {where: (layer.r[NAME], float(layer.lora_alpha[NAME])) for where, layer in layers.items()}


def kohya(sd: Model, layers: Mapping[str, Mapping[str, LoraLayer]], title: str) -> dict[str, str]:
    """The metadata by which A1111 and others know what the file is; names and values as sd-scripts writes them."""
    wide, narrow = Counter(), Counter()
    for found in layers.values():
        for where, size in _sizes(found).items():
            (narrow if _is_wide_kernel(found[where]) else wide)[size] += 1
    notes = family_of(sd).notes(sd)
    size = (wide or narrow).most_common(1)
    if size:
        notes |= {"ss_network_dim": str(size[0][0][0]), "ss_network_alpha": str(size[0][0][1])}
    notes |= {
        "ss_network_module": "networks.lora",
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{notes['modelspec.architecture']}/lora",
        "modelspec.implementation_version": f"sdnb/{__version__}",
        "modelspec.title": title,
        "modelspec.date": datetime.datetime.now().replace(microsecond=0).isoformat(),
        "modelspec.resolution": f"{sd.resolution}x{sd.resolution}",
    }
    if wide and narrow:
        conv_rank, conv_alpha = narrow.most_common(1)[0][0]
        notes["ss_network_args"] = json.dumps({"conv_dim": str(conv_rank), "conv_alpha": str(conv_alpha)})
    return notes


def settings_of(recipe: type[Recipe]) -> tuple[str, ...]:
    """Names of the settings that go into the metadata as they are, after `ss_`."""
    return tuple(name for name, field in named(recipe).items() if field.metadata.get("in_metadata"))


def of_training(
    recipe: Recipe,
    *,
    of_data: Mapping[str, object],
    resolution: tuple[int, int],
    batches: int,
    processes: int,
    steps: int,
    done: int,
    epoch: int,
    started: float,
) -> dict[str, object]:
    """sd-scripts' entries about the training: settings, data and progress. `of_data` are those of `dataset_notes`; `resolution` is the
    first dataset's; `batches` counts one epoch; `epoch` is the number of those that are whole after `done` steps; `started` is in seconds,
    as `time.time` returns.
    """
    settings = recipe.settings()
    updates = max(1, math.ceil(batches / processes / recipe.gradient_accumulation_steps))
    width, height = resolution
    return {
        **{f"ss_{name}": settings[name] for name in settings_of(type(recipe))},
        **_of_network(recipe),
        "ss_face_crop_aug_range": recipe.face_range,
        "ss_debiased_estimation": bool(settings["debiased_estimation_loss"]),
        "ss_optimizer": recipe.optimizer_type + (f"({','.join(recipe.optimizer_args)})" if recipe.optimizer_args else ""),
        "ss_max_train_steps": steps,
        "ss_steps": done,
        "ss_num_epochs": math.ceil(steps / updates),
        "ss_epoch": epoch,
        "ss_num_batches_per_epoch": batches,
        **of_data,
        "ss_sd_model_name": Path(str(settings["pretrained_model_name_or_path"])).name,
        "ss_training_started_at": started,
        "ss_training_finished_at": time.time(),
        "modelspec.resolution": f"{width}x{height}",
    }


def _of_network(recipe: Recipe) -> dict[str, object]:
    """What the recipe says of the adapters, as sd-scripts writes it; the rest is told by the adapters themselves."""
    notes: dict[str, object] = {"ss_network_module": recipe.network_module} if recipe.network_module else {}
    if recipe.network_module in OF_THEIR_OWN:  # of others the adapters tell it
        notes |= {"ss_network_dim": recipe.network_dim, "ss_network_alpha": recipe.network_alpha}
    if recipe.network_args:
        notes["ss_network_args"] = json.dumps(pairs(recipe) | {"dropout": pairs(recipe).get("dropout", recipe.network_dropout)})
    return notes


def _is_wide_kernel(layer: LoraLayer) -> bool:
    return matrices(layer)[0].shape[2:].numel() > 1


def diffusers(layers: Mapping[str, Mapping[str, LoraLayer]]) -> dict[str, str]:
    """The settings of peft by which diffusers adds the adapters again, alphas and all."""
    told = {}
    for part, found in layers.items():
        if not found:
            continue
        sizes = {where.removeprefix("text_model."): size for where, size in _sizes(found).items()}
        rank, alpha = Counter(sizes.values()).most_common(1)[0][0]
        told |= {
            f"{part}.r": rank,
            f"{part}.lora_alpha": alpha,
            f"{part}.rank_pattern": {where: size[0] for where, size in sizes.items() if size[0] != rank},
            f"{part}.alpha_pattern": {where: size[1] for where, size in sizes.items() if size[1] != alpha},
            f"{part}.target_modules": sorted(sizes),
        }
    return {"format": "pt", "lora_adapter_metadata": json.dumps(told, indent=2, sort_keys=True)}


def hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The two hashes by which A1111's extension knows a LoRA, over a file of these tensors that has the `ss_` metadata alone.

    `sshs_model_hash` is the SHA-256 of all after the header; `sshs_legacy_hash` 8 digits of that of the 64 KiB from the second MiB on.
    """
    import safetensors.torch

    content = safetensors.torch.save(dict(tensors), {key: value for key, value in metadata.items() if key.startswith("ss_")})
    start = 8 + int.from_bytes(content[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(content)[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    }


def alphas(metadata: Mapping[str, str]) -> Callable[[str, str, int], float]:
    """Alpha of a layer by diffusers' metadata, as a function of (part, path of the layer, its rank).

    Without an entry it is the rank, so that nothing is scaled. Raises `ValueError` for metadata that is damaged, or that names
    layers by a regular expression.

    >>> alphas({"lora_adapter_metadata": '{"unet.lora_alpha": 4}'})("unet", "mid_block", 8), alphas({})("unet", "mid_block", 8)
    (4.0, 8.0)
    """
    told = untrusted.parse_json(metadata.get("lora_adapter_metadata", "{}"), "its lora_adapter_metadata")
    usual = {key: _number(value, key) for key, value in told.items() if key.endswith(".lora_alpha")}
    patterns = {key: _by_name(value, key) for key, value in told.items() if key.endswith(".alpha_pattern") and value is not None}

    def alpha(part: str, where: str, rank: int) -> float:
        by_name, pieces = patterns.get(f"{part}.alpha_pattern", {}), where.split(".")
        spellings = [f"^{where}", *(".".join(pieces[start:]) for start in range(len(pieces)))]
        found = [by_name[spelling] for spelling in spellings if spelling in by_name]
        return min(found)[1] if found else usual.get(f"{part}.lora_alpha", float(rank))

    return alpha


_NAMES = re.compile(r"\^?(?:\w|\\?[.-])+")


def _by_name(patterns: object, what: str) -> dict[str, tuple[int, float]]:
    r"""A pattern of peft -> its place and value, by the names in it.

    To peft each is a regular expression for the end of a path, after a dot; the first that fits counts. In the files that peft, diffusers
    and this package write they are names, with `\.` or `.` for a dot, and several are joined by `|`. A stranger's expression could take
    for ever, so none is ever used as one. After `^` stands a whole path.
    """
    if not isinstance(patterns, dict):
        raise ValueError(f"its {what} is {shown(patterns)}, where names of layers and numbers belong: the file is damaged")
    found: dict[str, tuple[int, float]] = {}
    for place, (pattern, value) in enumerate(patterns.items()):
        for name in pattern.split("|"):
            if not _NAMES.fullmatch(name):
                raise ValueError(f"its {what} has {shown(pattern)!r}, and only names of layers are read there, no regular expressions")
            found.setdefault(name.replace("\\", ""), (place, _number(value, what)))
    return found


def _number(value: object, what: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30:
        return float(value)
    raise ValueError(f"its {what} has the alpha {shown(value)}: it must be one number above 0")
