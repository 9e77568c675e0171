"""The owner of a save: which run it belongs to, told from settings, model and pictures, so that no other goes on from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system import digest

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

    from ..models import Model
    from ..recipe import Recipe

VARYING = ("transformers_version", "dtype", "torch_dtype", "architectures")
"""Entries of configurations that may differ between a run and its continuation."""
FREE = ("max_train_steps", "max_train_epochs", "output_dir", "output_name", "logging_dir", "log_prefix", "resume", "config_file")
FREE_BEGINNINGS = (
    "save_",
    "sample_",
    "metadata_",
    "no_metadata",
    "huggingface_",
    "async_",
    "validate_",
    "max_validation_",
    "log_",
    "wandb_",
)
"""Settings that may differ between a run and its continuation, and beginnings of such."""


def owner(
    recipe: Recipe,
    sd: Model,
    trained: Mapping[str, Parameter],
    pictures: Sequence,
    *,
    processes: int = 1,
    are_whole: bool = True,
    shown_otherwise: int = 0,
) -> dict:
    """The identity of a run, which its continuation must share: settings, model, pictures and the number of processes.

    `are_whole`: whether all batches of an epoch have one size (see `Epochs`); others came in another order before saves said so.

    Of a model the configurations are compared, and of frozen weights the first and last numbers of each and the sum of all its bits, of
    trained ones only names and shapes; of a picture its name, caption, repeats, size in bytes and first 64 KiB. `shown_otherwise`
    pictures are not shown as in earlier versions, whose saves do not have this number.
    """
    given = dict(recipe.settings().given)
    settings = {name: value for name, value in sorted(given.items()) if name not in FREE and not name.startswith(FREE_BEGINNINGS)}
    settings |= {"seed": recipe.seed}
    return {
        "settings": json.loads(json.dumps(settings)),
        "model": digest(_model_bytes(sd.parts, trained)),
        "frozen": digest(_frozen_sums(sd.parts, trained)),
        "configurations": json.loads(json.dumps(_configurations(sd), default=str), parse_constant=str),
        "pictures": digest(_picture_bytes(pictures)),
        "processes": processes,
        "are_whole": are_whole,
        "shown_otherwise": shown_otherwise,
    }


def differences(saved: Mapping, now: Mapping) -> list[str]:
    """Differences between two owners, in words; a seed that was drawn agrees with None, and what is not in an older save with anything."""
    lines = []
    before, after = saved["settings"], now["settings"]
    was_drawn = after["seed"] is None and before["seed"] is not None
    for name in sorted({*before, *after}):
        if _plain(before.get(name)) != _plain(after.get(name)) and not (name == "seed" and was_drawn):
            lines.append(f"{name} was {before.get(name)!r} and is {after.get(name)!r}")
    for part, configuration in saved.get("configurations", {}).items():
        here = now["configurations"].get(part, {})
        changed = [name for name in configuration.keys() & here.keys() if configuration[name] != here[name]]
        lines += [f"the {part}'s {name} was {configuration[name]!r} and is {here[name]!r}" for name in sorted(changed)]
    same = saved["model"] == now["model"] and saved.get("frozen", now["frozen"]) == now["frozen"]
    lines += [] if same else ["the model is another"]
    lines += ["the pictures or captions are others"] if saved["pictures"] != now["pictures"] else []
    if (changed := now.get("shown_otherwise", 0)) and "shown_otherwise" not in saved:
        lines.append(
            f"an earlier version wrote it, which showed {changed} of its pictures otherwise: "
            "they are resized, and SDXL is told their sizes, as in sd-scripts now"
        )
    if saved["processes"] != now["processes"]:
        lines.append(f"it ran in {saved['processes']} processes and now in {now['processes']}")
    if not lines and saved.get("are_whole", True) != now["are_whole"]:
        lines.append("an older sdnb filled up the last batches of its epochs from the next, where they are smaller now, as in sd-scripts")
    return lines


def _plain(value: object) -> object:
    """A list of one value as that value: older saves have a single learning rate of the text encoder so."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _model_bytes(parts: Mapping[str, Module], trained: Mapping[str, Parameter]) -> Iterable[bytes]:
    import torch

    for part, module in parts.items():
        for name, parameter in module.named_parameters():
            yield f"{part}.{name} {tuple(parameter.shape)} {f'{part}.{name}' in trained}".encode()
            if f"{part}.{name}" not in trained and parameter.device.type != "meta" and parameter.numel():
                flat = parameter.detach().reshape(-1)
                ends = torch.cat([flat[:16], flat[-16:]]).float().cpu()
                yield ends.numpy().tobytes()


def _frozen_sums(parts: Mapping[str, Module], trained: Mapping[str, Parameter]) -> Iterable[bytes]:
    """The sum of each frozen parameter's bits, taken as whole numbers: the same on every device, and another after any single change."""
    import torch

    for part, module in parts.items():
        for name, parameter in module.named_parameters():
            if f"{part}.{name}" not in trained and parameter.device.type != "meta":
                flat = parameter.detach().reshape(-1)
                flat = flat.clone() if flat.storage_offset() or flat.data_ptr() % 8 else flat
                whole = flat[: len(flat) - len(flat) % (8 // min(8, flat.element_size()))]
                yield str(int(whole.view(torch.int64).sum())).encode()


def _configurations(sd: Model) -> dict[str, dict]:
    """Configurations of the parts and the scheduler, without folders, versions and precisions."""
    found = {}
    for part, holder in {**sd.parts, "scheduler": sd.noise_scheduler}.items():
        config: Any = getattr(holder, "config", {})  # a dict of diffusers', or an object of transformers'
        entries = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        found[part] = {name: value for name, value in entries.items() if not name.startswith("_") and name not in VARYING}
        found[part]["class"] = type(holder).__name__
    return found


def _picture_bytes(pictures: Sequence) -> Iterable[bytes]:
    common = getattr(pictures, "settings", ())  # those are in the recipe
    for picture in pictures:
        yield picture.caption.encode("utf-8", errors="surrogatepass")
        if (repeats := getattr(picture, "repeats", 1)) != 1:
            yield f"shown {repeats} times".encode()
        if getattr(picture, "is_reg", False):
            yield b"for regularization"
        if own := [pair for pair in getattr(picture, "settings", ()) if pair not in common]:
            yield f"dataset {picture.dataset}, {own}".encode()
        path = getattr(picture, "path", None)
        if path is not None and Path(path).is_file():
            yield f"{Path(path).name} {Path(path).stat().st_size}".encode("utf-8", errors="surrogatepass")
            with open(path, "rb") as file:
                yield file.read(65_536)
