"""What a LoRA's file says about the pictures that it was trained on, entry for entry as train_network.py writes it.

Words are counted over the pictures that were found, also those for regularization that were not needed, once each. A file of datasets has
`ss_datasets`, where each says it for itself; a folder has `ss_bucket_info` and the like.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from ..datasets import cache

if TYPE_CHECKING:
    from ..datasets import Buckets, Picture, Pictures
    from ..recipe import Recipe

OF_SUBSETS = (
    "color_aug", "flip_aug", "random_crop", "shuffle_caption", "keep_tokens", "keep_tokens_separator", "secondary_separator",
    "enable_wildcard", "caption_prefix", "caption_suffix", "resize_interpolation",
)  # fmt: skip
"""Settings of a subset that are told."""


def notes(
    recipe: Recipe, pictures: Pictures, datasets: Mapping[int, tuple[Recipe, Buckets]], *, processes: int = 1, held_out: int = 0
) -> dict[str, object]:
    """The entries. `datasets` are the recipe and the sizes of each; `held_out` counts the pictures of the validation."""
    found = [picture for group in getattr(pictures, "groups", ()) or (tuple(pictures),) for picture in group]
    by_number = {number: [one for one in found if one.dataset == number] for number in datasets}
    told: dict[str, object] = {
        "ss_num_train_images": _shown(pictures, is_reg=False),
        "ss_num_reg_images": _shown(found, is_reg=True),
        "ss_num_validation_images": held_out,
    }
    infos = {number: bucket_info([one for one in pictures if one.dataset == number], sizes) for number, (_, sizes) in datasets.items()}
    if any(picture.subset for picture in pictures):
        rows, words = [], {}
        for number, (own, sizes) in datasets.items():
            of_dataset = tag_frequency(by_number[number], recipe)
            trained = [one for one in pictures if one.dataset == number]
            rows.append(
                _dataset(own, sizes, trained, by_number[number], recipe) | {"tag_frequency": of_dataset, "bucket_info": infos[number]}
            )
            words = of_dataset | words  # of datasets with a folder of one name, the first counts
        dirs = _folders([one for one in found if not one.is_reg], recipe)
        return told | {"ss_datasets": json.dumps(rows), "ss_tag_frequency": json.dumps(words), "ss_dataset_dirs": json.dumps(dirs)}
    ((number, (_, sizes)),) = datasets.items()
    return told | {
        "ss_batch_size_per_device": recipe.train_batch_size,
        "ss_total_batch_size": recipe.train_batch_size * processes * recipe.gradient_accumulation_steps,
        "ss_resolution": sizes.resolution,
        "ss_enable_bucket": sizes.enabled,
        "ss_bucket_no_upscale": sizes.enabled and sizes.no_upscale,
        **{f"ss_{name}": value for name, value in _sides(sizes).items()},
        "ss_dataset_dirs": json.dumps(_folders([one for one in found if not one.is_reg], recipe)),
        "ss_reg_dataset_dirs": json.dumps(_folders([one for one in found if one.is_reg], recipe)),
        "ss_tag_frequency": json.dumps(tag_frequency(found, recipe)),
        "ss_bucket_info": json.dumps(infos[number]),
    }


def bucket_info(pictures: Sequence[Picture], sizes: Buckets) -> dict[str, object] | None:
    """How many pictures an epoch shows at each size, and by how much their ratios differ from it on average; None without buckets."""
    if not sizes.enabled:
        return None
    shown, errors = Counter(), []
    for picture in pictures:
        width, height = picture.size
        size = sizes.place(width, height).size
        shown[size] += picture.repeats
        errors.append(abs(size[0] / size[1] - width / height))
    buckets = {str(place): {"resolution": size, "count": shown[size]} for place, size in enumerate(sorted(shown))}
    return {"buckets": buckets, "mean_img_ar_error": fmean(errors)}


def tag_frequency(pictures: Sequence[Picture], recipe: Recipe) -> dict[str, dict[str, int]]:
    """How often each part of the captions comes, of each folder; of fine-tuning metadata the parts of its tags."""
    words: dict[str, Counter[str]] = {}
    for picture in pictures:
        own = cache.recipe_of(picture, recipe)
        if picture.tags is not None:
            text = picture.tags.replace("\n", own.caption_separator) if own.enable_wildcard else picture.tags
        else:
            text = picture.caption if own.enable_wildcard else picture.caption.split("\n")[0]
        tags = (tag.strip().lower() for tag in text.split(","))
        words.setdefault(_name(picture, recipe), Counter()).update(tag for tag in tags if tag)
    return {name: dict(counts) for name, counts in words.items()}


def _dataset(own: Recipe, sizes: Buckets, trained: Sequence[Picture], found: Sequence[Picture], recipe: Recipe) -> dict[str, object]:
    """What is told of a dataset, and of each of its subsets; `found` are its pictures before those of regularization are balanced."""
    subsets = []
    for subset in dict.fromkeys(one.subset for one in found):
        some = [one for one in found if one.subset == subset]
        settings = cache.recipe_of(some[0], recipe)
        row: dict[str, object] = {"img_count": len(some), "num_repeats": some[0].repeats}
        row |= {name: getattr(settings, name) for name in OF_SUBSETS}
        if subset and subset.folder:
            row["image_dir"] = subset.folder.name
        if subset and subset.metadata_file:
            row["metadata_file"] = subset.metadata_file.name
        elif subset:
            row |= {"class_tokens": subset.class_tokens or None, "is_reg": subset.is_reg}
        subsets.append(row)
    return {
        "is_dreambooth": not any(one.subset and one.subset.metadata_file for one in found),
        "batch_size_per_device": own.train_batch_size,
        "num_train_images": _shown(trained, is_reg=False),
        "num_reg_images": _shown(found, is_reg=True),
        "resolution": sizes.resolution,
        "enable_bucket": sizes.enabled,
        **_sides(sizes),
        "resize_interpolation": (found[0].subset and found[0].subset.of_dataset) or recipe.resize_interpolation,
        "subsets": subsets,
    }


def _folders(pictures: Sequence[Picture], recipe: Recipe) -> dict[str, dict[str, int]]:
    """Repeats and number of pictures of each folder; a second one of the same name has a (2) after it."""
    found: dict[object, list[Picture]] = {}
    for picture in pictures:
        found.setdefault(picture.subset or _name(picture, recipe), []).append(picture)
    told: dict[str, dict[str, int]] = {}
    for some in found.values():
        name, place = _name(some[0], recipe), 1
        while (key := name if place == 1 else f"{name} ({place})") in told:
            place += 1
        told[key] = {"n_repeats": some[0].repeats, "img_count": len(some)}
    return told


def _name(picture: Picture, recipe: Recipe) -> str:
    """The folder, or the file of fine-tuning metadata, that a picture comes from."""
    metadata = picture.subset.metadata_file if picture.subset else recipe.in_json
    return Path(metadata).name if metadata else picture.path.parent.name


def _sides(sizes: Buckets) -> dict[str, int | None]:
    """The shortest and the longest side of buckets; None without them."""
    return {
        "min_bucket_reso": sizes.min_side if sizes.enabled else None,
        "max_bucket_reso": sizes.max_side if sizes.enabled else None,
    }


def _shown(pictures: Sequence[Picture], *, is_reg: bool) -> int:
    """How many pictures an epoch shows, of those for regularization or of the others."""
    return sum(picture.repeats for picture in pictures if picture.is_reg == is_reg)
