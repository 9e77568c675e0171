"""What sd-scripts' own functions make of pictures: buckets, sizes, cuts, colours, masks and metadata, recorded by running them.

    python -m benchmarks.record_pictures FOLDER

FOLDER is a checkout of sd-scripts, whose libraries the environment has; `benchmarks.sd_scripts` says which. The pictures are made by a
formula, so that a test has the same, and the figures go to `tests/recorded/pictures.json`. Nothing of its code is kept.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib
import inspect
import itertools
import json
import random
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from .sd_scripts import Checkout

FACTS = Path(__file__).resolve().parent.parent / "tests" / "recorded" / "pictures.json"
BUCKETS = [
    {"resolution": [512, 512], "min_side": 256, "max_side": 1024, "step": 64, "no_upscale": False},
    {"resolution": [1024, 1024], "min_side": 512, "max_side": 2048, "step": 64, "no_upscale": False},
    {"resolution": [768, 512], "min_side": 320, "max_side": 1536, "step": 32, "no_upscale": False},
    {"resolution": [512, 512], "min_side": 256, "max_side": 1024, "step": 64, "no_upscale": True},
    {"resolution": [1024, 1024], "min_side": 256, "max_side": 2048, "step": 32, "no_upscale": True},
    {"resolution": [640, 960], "min_side": 256, "max_side": 1024, "step": 8, "no_upscale": True},
]
SIZES = 3000
RESIZED = [((61, 47), (13, 9)), ((64, 48), (16, 12)), ((9, 6), (13, 11)), ((40, 12), (14, 13)), ((24, 18), (12, 9)), ((33, 31), (32, 15))]
DEFAULTS = 200
"""Pictures at other sizes by the default filter, kept as one digest."""
FILTERS = (None, "lanczos", "nearest", "bilinear", "bicubic", "area", "box")
FACES = [
    (800, 600, 300, 200, 120),
    (640, 640, 100, 600, 300),
    (512, 700, 256, 350, 40),
    (512, 512, 100, 100, 90),
    (2000, 900, 1900, 20, 33),
]
RANGES = [(2.0, 4.0), (1.0, 1.0), (3.0, 3.0), (0.5, 8.0)]
WHOLE = [(150, 70), (61, 97), (64, 64), (40, 30), (333, 100), (65, 64), (96, 96), (128, 192), (30, 90)]
METADATA = {
    "a.png": {"caption": "a fox", "tags": "red, snow"},
    "b.png": {"caption": "a cat\na dog\n\n", "tags": "grey,\nsmall"},
    "c.png": {"tags": "red"},
    "d.png": {"caption": "", "tags": ""},
    "e.png": {"caption": "alone", "train_resolution": [512, 512]},
    "f.png": {},
}


def main() -> None:
    """Record, and say where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a checkout of sd-scripts")
    parser.add_argument("--commit", help="its commit, where there is no .git")
    arguments = parser.parse_args()
    checkout = Checkout(arguments.folder)
    util = checkout.train_util
    facts = {
        "source": {"repository": "kohya-ss/sd-scripts", "commit": checkout.commit(arguments.commit)},
        "buckets": [buckets(util, case) for case in BUCKETS],
        "resized": resized(),
        "resized_by_default": resized_by_default(),
        "whole": whole_pictures(util),
        "cuts": cuts(util),
        "cuts_without_buckets": cuts_without_buckets(util),
        "faces": faces(util),
        "colours": colours(util),
        "masks": masks(),
        "mask_pictures": mask_pictures(util),
        "metadata": metadata(util),
    }
    rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(part)}" for name, part in facts.items())
    FACTS.write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
    print(f"{FACTS}: {FACTS.stat().st_size:,} bytes")


def picture(width: int, height: int, channels: int = 3) -> np.ndarray:
    """A picture of 8 bits (h, w, C) with smooth and rough parts, the same on every machine."""
    x, y, c = np.meshgrid(np.arange(width), np.arange(height), np.arange(channels))
    return ((7 * x + 3 * y + 80 * c + (x * y * (c + 1)) % 17 * 6 + x // 8 % 2 * 90) % 256).astype(np.uint8)


def places(width: int, height: int) -> np.ndarray:
    """A picture whose 24 bits say where each pixel lies, 12 for x and 12 for y (h, w, 3)."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x >> 4, (x & 15) << 4 | y >> 8, y & 255], -1).astype(np.uint8)


def corner(pixels: np.ndarray) -> list[int]:
    """(left, top) of a part of `places`."""
    first, middle, last = pixels[0, 0].astype(int).tolist()
    return [first << 4 | middle >> 4, (middle & 15) << 8 | last]


def packed(pixels: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode()


def sizes() -> list[tuple[int, int]]:
    """Sizes of pictures, from small to large and of many shapes."""
    chance = random.Random(7)
    found = []
    while len(found) < SIZES:
        area, shape = 10 ** chance.uniform(4.6, 7.3), 2 ** chance.uniform(-1.7, 1.7)
        width, height = round((area * shape) ** 0.5), round((area / shape) ** 0.5)
        found.append((width, height))
    return found


def digest(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def buckets(util, case: dict) -> dict:
    """The bucket and the size before the cut of each of `sizes`; all of them as a digest."""
    manager = util.BucketManager(case["no_upscale"], tuple(case["resolution"]), case["min_side"], case["max_side"], case["step"])
    if not case["no_upscale"]:
        manager.make_buckets()
    rows = []
    for width, height in sizes():
        bucket, whole, _ = manager.select_bucket(width, height)
        rows.append([*map(int, bucket), *map(int, whole)])
    return {**case, "first": rows[:5], "digest": digest(rows)}


def resized() -> list[dict]:
    """Small pictures at other sizes, by each filter."""
    utils, rows = importlib.import_module("library.utils"), []
    for (width, height), size in RESIZED:
        for how in FILTERS:
            for channels in (3, 4) if how in (None, "lanczos", "area") else (3,):
                made = utils.resize_image(picture(width, height, channels), width, height, *size, how)
                rows.append({"from": [width, height], "to": size, "how": how, "channels": channels, "pixels": packed(made)})
    return rows


def new_sizes() -> list[tuple[tuple[int, int], tuple[int, int], int]]:
    """Sizes before and after, and channels: some shrink by whole numbers, more by others, and some have a side that grows."""
    chance = random.Random(11)
    found = []
    for number in range(DEFAULTS):
        before = (chance.randint(2, 90), chance.randint(2, 90))
        after = (chance.randint(1, before[0]), chance.randint(1, before[1]))
        if number % 4 == 0:
            after = (chance.randint(1, 20), chance.randint(1, 20))
            before = (after[0] * chance.randint(1, 5), after[1] * chance.randint(1, 5))
        elif number % 4 == 1:
            after = (chance.randint(1, 90), chance.randint(1, 90))
        found.append((before, after, 3 + number % 2))
    return found


def resized_by_default() -> dict:
    """All of `new_sizes` as a digest, and those that shrink."""
    utils, made, shrunk = importlib.import_module("library.utils"), [], 0
    for (width, height), size, channels in new_sizes():
        made.append(packed(utils.resize_image(picture(width, height, channels), width, height, *size)))
        shrunk += width >= size[0] and height >= size[1] and (width, height) != size
    return {"shrunk": shrunk, "digest": digest(made)}


def whole_pictures(util) -> list[dict]:
    """Pictures that are the same each time, with buckets and without: their pixels as a digest, and what SDXL is told of their sizes."""
    rows = []
    for bucketed, (width, height) in itertools.product((True, False), WHOLE):
        manager = util.BucketManager(False, (64, 64), 32, 128, 16)
        if bucketed:
            manager.make_buckets()
        else:
            manager.set_predefined_resos([(64, 64)])
        bucket, resized, _ = manager.select_bucket(width, height)
        pixels, original, corners = util.trim_and_resize_if_required(False, picture(width, height), bucket, resized)
        assert util.trim_and_resize_if_required(True, picture(width, height), bucket, resized)[1:] == (original, corners)
        row = {"picture": [width, height], "bucketed": bucketed, "size": [*map(int, bucket)], "digest": digest(packed(pixels))}
        rows.append(row | {"told": [told(util, bucket, original, corners, flipped) for flipped in (False, True)]})
    return rows


def told(util, size: tuple[int, int], original: tuple[int, int], corners: tuple[float, ...], flipped: bool) -> list[int]:
    """What SDXL is told of a picture with cached latents: its size, the cut's corner and the bucket's size, each the height first."""
    import torch

    latents = torch.zeros(4, size[1] // 8, size[0] // 8)
    known = {"latents": latents, "latents_flipped": latents, "latents_original_size": original, "latents_crop_ltrb": corners}
    dataset = object.__new__(util.BaseDataset)
    dataset.bucket_manager = SimpleNamespace(buckets=[["a"]])
    dataset.buckets_indices = [SimpleNamespace(bucket_index=0, bucket_batch_size=1, batch_index=0)]
    dataset.image_data = {"a": SimpleNamespace(is_reg=False, alpha_mask=None, caption="", text_encoder_outputs=[], **known)}
    dataset.image_to_subset = {"a": SimpleNamespace(custom_attributes={}, flip_aug=flipped)}
    dataset.caching_mode, dataset.debug_dataset, dataset.network_multiplier = None, False, 1.0
    dataset.text_encoder_output_caching_strategy = SimpleNamespace(is_partial=False)
    random.seed(1)  # the first number is below a half
    example = util.BaseDataset.__getitem__(dataset, 0)
    assert example["flippeds"] == [flipped]
    return [number for name in ("original_sizes_hw", "crop_top_lefts", "target_sizes_hw") for number in example[name][0].tolist()]


def cuts(util) -> list[list[int]]:
    """Cuts of a resized picture by chance, by the seed: the part's left and top."""
    rows = []
    for seed, (whole, size) in enumerate([((600, 400), (512, 384)), ((512, 700), (512, 512)), ((300, 300), (256, 256))] * 5):
        random.seed(seed)
        part, _, _ = util.trim_and_resize_if_required(True, places(*whole), size, whole)
        rows.append([*whole, *size, seed, *corner(part)])
    return rows


class Shown(Exception):
    """Ends sd-scripts' work on a picture where its pixels are done."""


def shown(
    util, whole: tuple[int, int], size: tuple[int, int], face: tuple[int, int, int, int] = (0, 0, 0, 0), **settings: Any
) -> np.ndarray:
    """The part of `places` that a dataset without buckets shows."""
    dataset, usual = object.__new__(util.BaseDataset), {"alpha_mask": False, "color_aug": False, "flip_aug": False, "random_crop": False}
    subset = SimpleNamespace(**{**usual, "face_crop_aug_range": None, "resize_interpolation": None, "custom_attributes": {}, **settings})
    dataset.bucket_manager = SimpleNamespace(buckets=[["a"]])
    dataset.buckets_indices = [SimpleNamespace(bucket_index=0, bucket_batch_size=1, batch_index=0)]
    dataset.image_data = {"a": SimpleNamespace(absolute_path="a.png", is_reg=False, latents=None, latents_npz=None)}
    dataset.image_to_subset = {"a": subset}
    dataset.caching_mode, dataset.prior_loss_weight, dataset.enable_bucket = None, 1.0, False
    dataset.width, dataset.height = size
    dataset.aug_helper = util.AugHelper()
    dataset.load_image_with_face_info = lambda *_: (places(*whole), *face)

    def done(pixels):
        raise Shown(pixels)

    dataset.image_transforms = done
    try:
        util.BaseDataset.__getitem__(dataset, 0)
    except Shown as end:
        return end.args[0]
    raise AssertionError("no pixels were shown")


def cuts_without_buckets(util) -> list[list[int]]:
    """The same without buckets, out of the picture as it is."""
    rows = []
    for seed, (whole, size) in enumerate([((600, 400), (512, 384)), ((512, 700), (512, 512)), ((300, 300), (256, 256))] * 5):
        random.seed(seed)
        rows.append([*whole, *size, seed, *corner(shown(util, whole, size, random_crop=True))])
    return rows


def faces(util) -> list[dict]:
    """Cuts around a face, without buckets: the size before the cut, and the part's left and top."""
    rows, plain = [], util.resize_image
    for seed, (face, sides, at_random) in enumerate(itertools.product(FACES, RANGES, (False, True))):
        width, height, x, y, side = face
        sized = []

        def resize(_pixels, _width, _height, wide, high, _how, sized=sized):
            sized.append([wide, high])
            return places(wide, high)

        util.resize_image = resize
        try:
            random.seed(seed)
            part = shown(util, (width, height), (512, 448), (x, y, side - 7, side), random_crop=at_random, face_crop_aug_range=sides)
        finally:
            util.resize_image = plain
        rows.append({"picture": face, "range": sides, "random": at_random, "seed": seed, "whole": sized[0], "corner": corner(part)})
    return rows


def colours(util) -> list[dict]:
    """A picture in other colours, or in its own, by the seed."""
    rows = []
    for seed in range(10):
        random.seed(seed)
        rows.append({"seed": seed, "pixels": packed(util.AugHelper().color_aug(picture(64, 6).copy())["image"])})
    return rows


def masks() -> list[dict]:
    """A loss of ones under a mask, from a picture's red or from transparency."""
    import torch

    masked, rows = importlib.import_module("library.custom_train_functions").apply_masked_loss, []
    for width, height in ((64, 48), (40, 56)):
        mask = torch.from_numpy(picture(width, height)[..., 0].copy()).float() / 255
        ones = torch.ones(1, 4, height // 8, width // 8)
        for kind, batch in {
            "conditioning_images": {"conditioning_images": (mask * 2 - 1).expand(1, 3, -1, -1)},
            "alpha_masks": {"alpha_masks": mask[None]},
        }.items():
            rows.append({"kind": kind, "picture": [width, height], "loss": masked(ones, batch)[0, 0].double().numpy().round(6).tolist()})
    return rows


def mask_pictures(util) -> list[dict]:
    """The red of the mask that a picture gets from `conditioning_data_dir`, as it is and mirrored."""
    import torch

    rows, dataset = [], object.__new__(util.ControlNetDataset)
    dataset.resize_interpolation = None
    dataset.conditioning_image_transforms = lambda pixels: torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        for (width, height), size in [((60, 45), (24, 16)), ((20, 30), (32, 40)), ((24, 16), (24, 16))]:
            path = Path(folder) / "mask.png"
            Image.fromarray(picture(width, height)).save(path)
            for flipped in (False, True):
                told = {"target_sizes_hw": [size[::-1]], "original_sizes_hw": [(height, width)], "crop_top_lefts": [(0, 0)]}
                dataset.dreambooth_dataset_delegate = _Delegate(told | {"flippeds": [flipped]}, str(path))
                red = dataset[0]["conditioning_images"][0, 0].numpy().astype(np.uint8)
                rows.append({"picture": [width, height], "size": size, "flipped": flipped, "red": packed(red)})
    return rows


class _Delegate:
    """The dataset inside sd-scripts' dataset of masks, with one picture."""

    enable_bucket = True

    def __init__(self, example: dict, path: str) -> None:
        self.example = example
        self.bucket_manager = SimpleNamespace(buckets=[["a"]])
        self.buckets_indices = [SimpleNamespace(bucket_index=0, bucket_batch_size=1, batch_index=0)]
        self.image_data = {"a": SimpleNamespace(cond_img_path=path, absolute_path=path)}

    def __getitem__(self, index: int) -> dict:
        return dict(self.example)


def metadata(util) -> list[dict]:
    """The captions of a metadata file's pictures."""
    util.LatentsCachingStrategy.set_strategy(SimpleNamespace(cache_suffix="_none.npz"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in METADATA:
            Image.fromarray(picture(8, 8)).save(Path(folder) / name)
        for ending, separator, wildcard in itertools.product((".json", ".jsonl"), (",", " | "), (False, True)):
            path = Path(folder) / f"meta{ending}"
            lines = [json.dumps({"image_path": name, **row}) for name, row in METADATA.items()]
            path.write_text(json.dumps(METADATA) if ending == ".json" else "\n".join(lines), encoding="utf-8")
            words = dict.fromkeys(inspect.signature(util.FineTuningSubset).parameters) | {"num_repeats": 2, "caption_dropout_rate": 0.0}
            words |= {"image_dir": folder, "metadata_file": str(path), "caption_separator": separator, "enable_wildcard": wildcard}
            dataset = util.FineTuningDataset(
                [util.FineTuningSubset(**words)], 1, (64, 64), 1.0, False, 64, 64, 64, False, False, 0, 0.0, None
            )
            captions = {name: info.caption for name, info in sorted(dataset.image_data.items())}
            rows.append({"ending": ending, "separator": separator, "wildcard": wildcard, "captions": captions})
    return rows


if __name__ == "__main__":
    main()
