"""sd-scripts' dataset file: a TOML of `[general]`, `[[datasets]]` and `[[datasets.subsets]]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..recipe import Recipe
from ..system import shown, untrusted

RUN = {
    "resolution": "resolution",
    "batch_size": "train_batch_size",
    "enable_bucket": "enable_bucket",
    "min_bucket_reso": "min_bucket_reso",
    "max_bucket_reso": "max_bucket_reso",
    "bucket_reso_steps": "bucket_reso_steps",
    "bucket_no_upscale": "bucket_no_upscale",
    "flip_aug": "flip_aug",
    "shuffle_caption": "shuffle_caption",
    "keep_tokens": "keep_tokens",
    "caption_dropout_rate": "caption_dropout_rate",
}
"""Settings of the whole run: the file's name -> a recipe's."""
OF_SUBSETS = ("image_dir", "is_reg", "num_repeats", "class_tokens", "caption_extension")
KINDS = {
    **dict.fromkeys(("enable_bucket", "bucket_no_upscale", "flip_aug", "shuffle_caption", "is_reg"), bool),
    **dict.fromkeys(("batch_size", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "keep_tokens", "num_repeats"), int),
    **dict.fromkeys(("image_dir", "class_tokens", "caption_extension"), str),
    "caption_dropout_rate": (int, float),
    "resolution": (int, list),
}


@dataclass(frozen=True)
class Subset:
    """One folder of pictures."""

    folder: Path
    repeats: int = 1
    class_tokens: str = ""
    """The caption of a picture without one."""
    caption_extension: str = ".caption"
    is_reg: bool = False
    """Whether its pictures are for regularization."""
    dataset: int = 0
    """Index of the file's dataset that it belongs to."""


@dataclass(frozen=True)
class Dataset:
    """The folders of a dataset file, and its settings of the run, under the names of `Recipe`."""

    subsets: tuple[Subset, ...]
    settings: tuple[tuple[str, object], ...]


def read(path: Path) -> Dataset:
    """The file's folders and settings; no picture is opened, and folders are taken from the working directory, as sd-scripts does.

    A setting is looked for in the subset, then in its dataset, then in `[general]`. Raises `FileNotFoundError` for a missing file,
    `ValueError` that names every setting which is unknown here, of a wrong kind, out of range, or not the same for all
    pictures.
    """
    try:
        content = untrusted.read_toml(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no dataset file {untrusted.named(repr(str(path)))}") from None
    general, sets = content.get("general", {}), content.get("datasets", [])
    if not isinstance(general, dict) or not _tables(sets) or not all(_tables(table.get("subsets", [])) for table in sets):
        raise _error(path, "it must have a [general] table, [[datasets]] and [[datasets.subsets]]")
    _check(path, content, general, sets)

    subsets, runs = [], []
    for number, table in enumerate(sets):
        for inner in table["subsets"]:
            values = {**general, **table, **inner}
            if values.get("num_repeats", 1) >= 1:  # sd-scripts leaves the others out
                subsets.append(_subset(values, number))
                runs.append({RUN[name]: _setting(name, values[name]) for name in RUN if name in values})
    if not subsets:
        raise _error(path, "it names no folder with num_repeats of 1 or more")
    try:
        Recipe(**runs[0])
    except ValueError as error:
        raise _error(path, str(error)) from error
    differing = sorted({name for run in runs for name in RUN.values() if run.get(name) != runs[0].get(name)})
    if differing:
        raise _error(path, f"{', '.join(differing)} must be the same for all subsets here; train on one of them at a time")
    return Dataset(tuple(subsets), tuple(sorted(runs[0].items())))


def _error(path: Path, wrong: str) -> ValueError:
    return ValueError(f"{untrusted.named(path)}: {wrong}")


def _subset(values: dict, dataset: int) -> Subset:
    return Subset(
        Path(values["image_dir"]).expanduser(),
        values.get("num_repeats", 1),
        values.get("class_tokens", ""),
        values.get("caption_extension", ".caption"),
        values.get("is_reg", False),
        dataset,
    )


def _setting(name: str, value):
    if name != "resolution":
        return value
    sides = value if isinstance(value, list) else [value, value]
    return sides[0] if sides[0] == sides[1] else f"{sides[0]},{sides[1]}"


def _tables(value) -> bool:
    return isinstance(value, list) and all(isinstance(table, dict) for table in value)


def _check(path: Path, content: dict, general: dict, sets: list[dict]) -> None:
    """Raise `ValueError` that names everything in the file which is not supported here."""
    wrong = [f"[{shown(name)}]" for name in content if name not in ("general", "datasets")]
    for where, table in [("general", general), *(("datasets", table) for table in sets)]:
        wrong += _wrong(table, where, (*RUN, *OF_SUBSETS[2:], *(["subsets"] if where == "datasets" else [])))
    for table in sets:
        if not table.get("subsets"):
            wrong.append("[[datasets]] without [[datasets.subsets]]")
        for inner in table.get("subsets", []):
            wrong += _wrong(inner, "subsets", (*OF_SUBSETS, "flip_aug", "shuffle_caption", "keep_tokens", "caption_dropout_rate"))
            if "image_dir" not in inner:
                wrong.append("a subset without image_dir")
    if wrong:
        first, more = list(dict.fromkeys(wrong))[:20], "; …" if len(set(wrong)) > 20 else ""
        raise _error(path, f"not supported here: {'; '.join(first)}{more}. Take it out, or train with sd-scripts")


def _wrong(table: dict, where: str, known) -> list[str]:
    """The settings of a table that are unknown or of a wrong kind. A switch that is off asks for nothing."""
    wrong = [f"{shown(name)} in {where}" for name, value in table.items() if name not in known and value not in (False, None)]
    for name, value in table.items():
        if name not in known or name == "subsets" or name not in KINDS:
            continue
        fits = isinstance(value, KINDS[name]) and (KINDS[name] is bool or not isinstance(value, bool))
        if isinstance(value, list):
            fits = fits and len(value) == 2 and all(type(side) is int for side in value)
        if not fits:
            wrong.append(f"{name} = {shown(repr(value))} in {where}")
    return wrong
