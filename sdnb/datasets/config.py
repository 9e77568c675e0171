"""sd-scripts' dataset file: `[general]`, `[[datasets]]` and `[[datasets.subsets]]`, in TOML or JSON."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..recipe import Recipe
from ..sections import named
from ..system import shown, untrusted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NUMBER = (int, float)
OF_DATASETS: dict[str, Any] = {
    "batch_size": int,
    "resolution": (int, list),
    "enable_bucket": bool,
    "min_bucket_reso": int,
    "max_bucket_reso": int,
    "bucket_reso_steps": int,
    "bucket_no_upscale": bool,
    "network_multiplier": NUMBER,
    "validation_seed": int,
    "validation_split": NUMBER,
}
"""Settings of a whole dataset, and their kinds: they stand in `[general]` or `[[datasets]]`."""
ANYWHERE: dict[str, Any] = {
    "num_repeats": int,
    "class_tokens": str,
    "caption_extension": str,
    "cache_info": bool,
    "custom_attributes": dict,
    "color_aug": bool,
    "face_crop_aug_range": list,
    "flip_aug": bool,
    "random_crop": bool,
    "resize_interpolation": str,
    "shuffle_caption": bool,
    "keep_tokens": int,
    "keep_tokens_separator": str,
    "secondary_separator": str,
    "caption_separator": str,
    "enable_wildcard": bool,
    "caption_prefix": str,
    "caption_suffix": str,
    "token_warmup_min": int,
    "token_warmup_step": NUMBER,
    "caption_dropout_rate": NUMBER,
    "caption_dropout_every_n_epochs": int,
    "caption_tag_dropout_rate": NUMBER,
}
"""Settings of a subset that may also stand above it."""
OF_SUBSETS: dict[str, Any] = {"image_dir": str, "metadata_file": str, "conditioning_data_dir": str, "is_reg": bool, "alpha_mask": bool}
"""Settings that stand in a subset alone."""
KINDS = OF_DATASETS | ANYWHERE | OF_SUBSETS
LISTED = ("image_dir", "metadata_file", "conditioning_data_dir", "is_reg", "num_repeats", "class_tokens", "caption_extension")
"""Settings that say which pictures there are."""
IDLE = {"cache_info": (True, False), "custom_attributes": None, "network_multiplier": None}
"""Settings with values that change nothing in a run; None for any value."""
ACTING = "diff_output_preservation"
"""The only custom attribute that sd-scripts acts on: of such pictures a LoRA learns what the model draws without it."""
NAMES = {"batch_size": "train_batch_size"}
"""Settings that a recipe has under another name."""


@dataclass(frozen=True)
class Subset:
    """One folder of pictures, or one file of fine-tuning metadata, and the settings of its pictures."""

    folder: Path | None
    repeats: int = 1
    class_tokens: str = ""
    """The caption of a picture without one."""
    caption_extension: str = ".caption"
    is_reg: bool = False
    """Whether its pictures are for regularization."""
    dataset: int = 0
    """Index of the file's dataset that it belongs to."""
    settings: tuple[tuple[str, Any], ...] = ()
    """What the file says about its pictures, as (name, value) under the names of `Recipe`."""
    metadata_file: Path | None = None
    masks: Path | None = None
    """Folder of a mask for each picture, `conditioning_data_dir`."""
    of_dataset: str | None = None
    """The dataset's `resize_interpolation`, whatever the subset says for itself."""


def read(path: Path, recipe: Recipe | None = None) -> tuple[Subset, ...]:
    """The file's subsets; no picture is opened, and folders are taken from the working directory, as sd-scripts does.

    A setting is looked for in the subset, then in its dataset, in `[general]`, and at last in `recipe`. Raises `FileNotFoundError` for a
    missing file, `ValueError` that names every setting which is unknown here, of a wrong kind, or out of range.
    """
    content = _content(path)
    general, sets = content.get("general", {}), content.get("datasets", [])
    if not isinstance(general, dict) or not _tables(sets) or not all(_tables(table.get("subsets", [])) for table in sets):
        raise _error(path, "it must have a [general] table, [[datasets]] and [[datasets.subsets]]")
    _check(path, content, general, sets)
    if any(table.get("network_multiplier") not in (None, 1) for table in (general, *sets)):
        warnings.warn(f"{untrusted.named(path)}: network_multiplier changes nothing, as in sd-scripts, which uses it nowhere", stacklevel=3)
    recipe, subsets = recipe or Recipe(), []
    for number, table in enumerate(sets):
        rows = [_subset(_merged(general, table, inner), number, recipe) for inner in table["subsets"]]
        above = _merged(general, table).get("resize_interpolation")
        rows = [replace(row, of_dataset=above) for row in rows if row.repeats >= 1]  # sd-scripts leaves the others out
        subsets += _without_repeated(rows)
    if not subsets:
        raise _error(path, "it names no folder with num_repeats of 1 or more")
    if not recipe.masked_loss and any(subset.masks for subset in subsets):
        raise _error(path, "conditioning_data_dir holds masks, which only masked_loss uses: set it, or leave the folder out")
    try:
        for settings in dict.fromkeys(subset.settings for subset in subsets):
            recipe.replace(**dict(settings))
    except ValueError as error:
        raise _error(path, str(error)) from error
    return tuple(subsets)


def _content(path: Path) -> dict[str, Any]:
    try:
        return untrusted.read_json(path, most=300_000) if path.suffix.lower() == ".json" else untrusted.read_toml(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no dataset file {untrusted.named(repr(str(path)))}") from None


def _error(path: Path, wrong: str) -> ValueError:
    return ValueError(f"{untrusted.named(path)}: {wrong}")


def _merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of tables, of which the later win. JSON's null says nothing."""
    return {name: value for table in tables for name, value in table.items() if value is not None and name != "subsets"}


def _subset(values: dict[str, Any], dataset: int, recipe: Recipe) -> Subset:
    ending = values.get("caption_extension", recipe.caption_extension or ".caption")
    folder, metadata, masks = (values.get(name) for name in ("image_dir", "metadata_file", "conditioning_data_dir"))
    own = {_name(name): _setting(value) for name, value in values.items() if _is_of_recipe(name)}
    return Subset(
        None if folder is None else Path(folder).expanduser(),
        values.get("num_repeats", recipe.dataset_repeats),
        values.get("class_tokens", ""),
        ending if ending.startswith(".") else f".{ending}",
        values.get("is_reg", False),
        dataset,
        tuple(sorted(own.items())),
        None if metadata is None else Path(metadata).expanduser(),
        None if masks is None else Path(masks).expanduser(),
    )


def _without_repeated(subsets: Iterable[Subset]) -> list[Subset]:
    """The subsets without those whose folder, or metadata, an earlier one has: sd-scripts takes the first."""
    found: dict[Path | None, Subset] = {}
    for subset in subsets:
        place = subset.metadata_file or subset.folder
        if place in found:
            warnings.warn(
                f"{untrusted.named(str(place))} stands twice in one dataset: only the first counts, as in sd-scripts", stacklevel=4
            )
        else:
            found[place] = subset
    return list(found.values())


def _name(name: str) -> str:
    return NAMES.get(name, name)


def _is_of_recipe(name: str) -> bool:
    return name in KINDS and name not in (*LISTED, *IDLE) and _name(name) in named(Recipe)


def _setting(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(table, dict) for table in value)


def _check(path: Path, content: dict, general: dict, sets: list[dict]) -> None:
    """Raise `ValueError` that names everything in the file which is not supported here."""
    wrong = [f"[{shown(name)}]" for name in content if name not in ("general", "datasets")]
    for where, table in [("general", general), *(("datasets", table) for table in sets)]:
        wrong += _wrong(table, where, OF_DATASETS | ANYWHERE | ({"subsets": list} if where == "datasets" else {}))
    for table in sets:
        subsets = table.get("subsets", [])
        if not subsets:
            wrong.append("[[datasets]] without [[datasets.subsets]]")
        for inner in subsets:
            wrong += _wrong(inner, "subsets", ANYWHERE | OF_SUBSETS)
            if "image_dir" not in inner and "metadata_file" not in inner:
                wrong.append("a subset without image_dir")
        for name in ("metadata_file", "conditioning_data_dir"):
            if len({name in inner for inner in subsets}) > 1:
                wrong.append(f"a dataset in which some subsets have a {name} and some have none")
        if any("conditioning_data_dir" in inner and ("metadata_file" in inner or inner.get("is_reg")) for inner in subsets):
            wrong.append("conditioning_data_dir beside metadata_file or is_reg")
    tables = (general, *sets, *(inner for table in sets for inner in table.get("subsets", [])))
    attributes = [said for table in tables if isinstance(said := table.get("custom_attributes"), dict)]
    wrong += [f"custom_attributes with {ACTING}" for said in attributes if said.get(ACTING)]
    if wrong:
        first, more = list(dict.fromkeys(wrong))[:20], "; …" if len(set(wrong)) > 20 else ""
        raise _error(path, f"not supported here: {'; '.join(first)}{more}. Take it out, or train with sd-scripts")


def _wrong(table: dict, where: str, known: Mapping[str, Any]) -> list[str]:
    """The settings of a table that are unknown or of a wrong kind. A switch that is off asks for nothing."""
    said = {name: value for name, value in table.items() if value is not None and name != "subsets"}
    good = {name for name, value in said.items() if name in known and (name in LISTED or _is_of_recipe(name) or _is_idle(name, value))}
    wrong = [f"{shown(name)} in {where}" for name, value in said.items() if name not in good and value not in (False, "")]
    return wrong + [f"{name} = {shown(repr(said[name]))} in {where}" for name in said if name in good and not _fits(name, said[name])]


def _is_idle(name: str, value: Any) -> bool:
    return name in IDLE and (IDLE[name] is None or value in (IDLE[name] or ()))


def _fits(name: str, value: Any) -> bool:
    kind = KINDS[name]
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if isinstance(value, list):
        numbers = int if name == "resolution" else NUMBER
        fits = fits and len(value) == 2 and all(isinstance(side, numbers) and not isinstance(side, bool) for side in value)
    return fits
