"""A LoRA's file read into settings: sd-scripts writes those that it was trained with into the metadata, as `ss_` and the name.

    ss_learning_rate = "0.0001"    ss_network_args = '{"conv_dim": "4"}'    ss_optimizer = "torch.optim.adamw.AdamW(weight_decay=0.1)"

All values are texts. The files that a run reads are not named, or without their folders: such settings are `held`, to be asked for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..system import shown, untrusted
from . import arguments, families
from .findings import Finding
from .printing import as_toml
from .settings import Settings

MOST = 10_000_000
"""Bytes of a header that are read."""
LONGEST = 10_000
"""Letters of the optimizer's arguments."""
OTHER_NAMES = {"batch_size_per_device": "train_batch_size", "debiased_estimation": "debiased_estimation_loss"}
"""Names in the metadata -> the settings'; all others are the same."""
PAIRS = ("resolution", "face_crop_aug_range")
"""Settings whose two numbers are written as Python prints them."""
FOLDERS = {"sd_model_name": "pretrained_model_name_or_path", "vae_name": "vae"}
"""Names of models, of which the folder is not kept -> the settings."""


def from_file(path: Path, script: str | None = None) -> Settings:
    """Settings in the metadata of a LoRA; none for a file that has no such metadata, or is no safetensors."""
    try:
        header = _header(path)
        notes = header.pop("__metadata__", {})
    except (OSError, ValueError) as error:
        what = f"{shown(path, 200)} cannot be read: {getattr(error, 'strerror', None) or error}."
        fix = "Check the name, or paste the text."
        return Settings("none", findings=(Finding(rule="file-not-read", effect="raises", what=what, why="", fix=fix),))
    entries = {name.removeprefix("ss_"): value for name, value in notes.items() if name.startswith("ss_") and value != "None"}
    if "network_module" not in entries:
        what = f"{shown(path.name)} does not say how it was trained."
        return Settings.nothing(what, "Give the command, or the file of --config_file.")
    script = script or _script(entries)
    given, held = _given(entries, script)
    if notes.get("modelspec.prediction_type") == "v" and "sdxl" not in entries.get("base_model_version", ""):
        given["v_parameterization"] = True
    begins = {key[:7] for key in header}
    if "lora_un" in begins and "lora_te" not in begins:
        given["network_train_unet_only"] = True
    elif "lora_te" in begins and "lora_un" not in begins:
        given["network_train_text_encoder_only"] = True
    gaps = Finding(
        rule="metadata-gaps", effect="note",
        what="These are the settings that the LoRA's file keeps; the others stay at sd-scripts' defaults.",
        why="It keeps no folders, and not lr_scheduler_num_cycles, caption_extension or bucket_reso_steps, for example.",
        fix="Add what you know of them.", source="train_network.py:1003",
    )  # fmt: skip
    return replace(Settings("toml", script, True, given, findings=(gaps,), held=held), original=as_toml(given))


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file. Raises `OSError`, and `ValueError` for any other file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= MOST else b""
    if not text.startswith(b"{"):
        raise ValueError("it is not a safetensors file")
    header = untrusted.parse_json(text.decode("utf-8", "replace"), "header")
    notes = header.get("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise ValueError("its metadata is not text")
    return header


def _script(entries: Mapping[str, str]) -> str:
    """The script that trained a LoRA for its kind of model."""
    version = entries.get("base_model_version", "").replace("-", "_")
    beginning = next((one for one in families.SCRIPTS if version.startswith(one.strip("_"))), "")
    return f"{beginning}train_network.py"


def _given(entries: Mapping[str, str], script: str) -> tuple[dict[str, object], dict[str, str]]:
    """Settings by name, and the texts in place of those that are to be asked for."""
    known, given, held = arguments.arguments(script), {}, {}
    for entry, text in entries.items():
        name = OTHER_NAMES.get(entry, entry)
        if name in known and entry not in ("network_args", "datasets"):
            try:
                given[name] = _value(known[name], text)
            except (ValueError, OverflowError):
                held[name] = shown(text)
    for read in (_optimizer, _network_args, _datasets):
        try:
            given |= read(entries)
        except ValueError as error:
            name = {_optimizer: "optimizer_type", _network_args: "network_args", _datasets: "dataset_config"}[read]
            held[name] = shown(error, 200)
    for entry, name in FOLDERS.items():
        text = entries.get(entry)
        if text and "/" in text:  # a repository of the Hub
            given[name] = text
        elif text:
            held[name] = shown(text)
    if entries.get("reg_dataset_dirs", "{}") != "{}":
        held["reg_data_dir"] = f"a folder with {shown(entries['reg_dataset_dirs'])}"
    return {name: value for name, value in given.items() if value is not False}, held


def _value(argument: arguments.Argument, text: str) -> object:
    """A value with its type. Raises `ValueError` for a text that is none."""
    if argument.type == "flag":
        if text not in ("True", "False"):
            raise ValueError
        return text == "True"
    if argument.name in PAIRS:
        return text.strip("()[]").replace(" ", "")
    read = arguments.TYPES[argument.type]
    if argument.many:
        return [read(part) for part in text.strip("()[]").split(",")]
    return int(float(text)) if argument.type == "int" and text.endswith(".0") else read(text)


def _optimizer(entries: Mapping[str, str]) -> dict[str, object]:
    """`optimizer_type` and `optimizer_args`. The class stands there as Python names it, with its arguments."""
    text = entries.get("optimizer", "")
    if len(text) > LONGEST:
        raise ValueError(f"{shown(text)}, of {len(text):,} letters")
    name, _, rest = text.partition("(")
    if not name:
        return {}
    args = [
        f"{key}={_literal(value.replace(', ', ','))}" for key, _, value in (part.partition("=") for part in _parts(rest.removesuffix(")")))
    ]
    classes = arguments.facts()["optimizers"]["classes"]
    names = [one for one, row in classes.items() if name == row["class"]]
    last = name.rpartition(".")[2]
    kind = names[0] if names else last if classes.get(last, {}).get("package") == name.partition(".")[0] else name
    if kind == "SGDNesterov" and not any(arg.startswith("momentum=") for arg in args):
        kind = "SGD"
    return {"optimizer_type": kind, **({"optimizer_args": args} if args else {})}


def _parts(text: str) -> Iterator[str]:
    """The parts between the commas that are in no brackets."""
    depth, start = 0, 0
    for place, letter in enumerate(f"{text},"):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            if part := text[start:place].strip():
                yield part
            start = place + 1


def _literal(text: str) -> str:
    """A value as sd-scripts reads it; a text has lost its quotes."""
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return repr(text)
    return text


def _network_args(entries: Mapping[str, str]) -> dict[str, object]:
    """`network_args`; network_dropout stands among them as `dropout`."""
    args = untrusted.parse_json(entries.get("network_args", "{}"), "ss_network_args")
    if str(args.get("dropout")) == entries.get("network_dropout", "None"):
        args.pop("dropout", None)
    return {"network_args": [f"{name}={value}" for name, value in args.items()]} if args else {}


def _datasets(entries: Mapping[str, str]) -> dict[str, object]:
    """What a dataset file said, where all its datasets and subsets agree. Raises `ValueError` where they do not."""
    datasets = untrusted.parse_json(entries.get("datasets", "[]"), "ss_datasets", list)
    subsets = [dataset.get("subsets", []) if isinstance(dataset, dict) else None for dataset in datasets]
    if not all(isinstance(some, list) and all(isinstance(one, dict) for one in some) for some in subsets):
        raise ValueError("datasets that cannot be read")
    rows = []
    for dataset in datasets:
        sides = ",".join(map(str, dataset["resolution"])) if isinstance(dataset.get("resolution"), list) else dataset.get("resolution")
        own = {OTHER_NAMES.get(name, name): value for name, value in {**dataset, "resolution": sides}.items()}
        rows += [{**own, **subset} for subset in dataset.get("subsets", [])]
    known = arguments.arguments(arguments.DEFAULT_SCRIPT).keys()
    found = [{name: value for name, value in row.items() if name in known and value is not None} for row in rows]
    if any(row != found[0] for row in found):
        raise ValueError(f"a dataset file with {len(datasets)} datasets and {len(rows)} folders of different settings")
    return dict(found[0]) if found else {}
