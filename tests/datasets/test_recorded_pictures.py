"""Pictures as sd-scripts' own functions show them, recorded by `benchmarks.record_pictures`."""

import base64
import hashlib
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

import sdnb
from benchmarks import record_pictures
from benchmarks.record_pictures import picture
from sdnb.datasets import augmentation, buckets, metadata, resampling, views

RECORDED = json.loads(record_pictures.FACTS.read_text(encoding="utf-8"))


def pixels(text, *shape):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


@pytest.mark.parametrize("case", RECORDED["buckets"], ids=lambda case: f"{case['resolution']}-{case['step']}-{case['no_upscale']}")
def test_thousands_of_sizes_go_into_the_same_buckets(case):
    made = buckets.Buckets(
        resolution=tuple(case["resolution"]),
        min_side=case["min_side"],
        max_side=case["max_side"],
        step=case["step"],
        no_upscale=case["no_upscale"],
    )
    rows = [[*place.size, *place.resized] for place in (made.place(*size) for size in record_pictures.sizes())]
    assert rows[:5] == case["first"]
    assert len(rows) >= 3000
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == case["digest"]


def test_every_filter_makes_the_same_pixels_but_for_rounding():
    assert {row["how"] for row in RECORDED["resized"]} >= set(resampling.FILTERS) - {"linear", "cubic"}
    for row in RECORDED["resized"]:
        size, channels = tuple(row["to"]), row["channels"]
        theirs = pixels(row["pixels"], size[1], size[0], channels).astype(int)
        shrinks = all(before >= after for before, after in zip(row["from"], size, strict=True))
        ours = resampling.resized(picture(*row["from"], channels), size, row["how"])
        exact = row["how"] in (None, "lanczos", "box", "nearest") or (row["how"] == "area" and shrinks)
        assert np.abs(ours - theirs).max() <= (0 if exact else 1), row


def test_hundreds_of_sizes_have_the_same_pixels_by_default():
    made = [
        record_pictures.packed(resampling.resized(picture(*before, channels), after))
        for before, after, channels in record_pictures.new_sizes()
    ]
    assert 120 < RECORDED["resized_by_default"]["shrunk"] < len(made)
    assert record_pictures.digest(made) == RECORDED["resized_by_default"]["digest"]


@pytest.mark.parametrize("row", RECORDED["whole"], ids=lambda row: f"{row['picture']}-{row['bucketed']}")
def test_a_picture_that_is_resized_and_cut_has_the_same_pixels_and_tells_the_same_sizes(row, tmp_path):
    Image.fromarray(picture(*row["picture"])).save(tmp_path / "a.png")
    one = sdnb.datasets.Picture(tmp_path / "a.png", "")
    sizes = buckets.Buckets(resolution=(64, 64), enabled=row["bucketed"], min_side=32, max_side=128, step=16)
    view = views.View(one, sdnb.Recipe(enable_bucket=row["bucketed"]), sizes)
    shown = view.shown(view.whole())
    assert (list(view.size), record_pictures.digest(record_pictures.packed(shown))) == (row["size"], row["digest"])
    assert [[number for pair in view.told(flipped) for number in pair] for flipped in (False, True)] == row["told"]
    if not row["bucketed"]:
        assert torch.equal(one.pixels(64), views.pixels_of(shown))


@pytest.mark.parametrize("name", ["cuts", "cuts_without_buckets"])
def test_the_same_chance_cuts_the_same_part(name):
    corners = set()
    for *numbers, seed, left, top in RECORDED[name]:
        whole, size = tuple(numbers[:2]), tuple(numbers[2:])
        chance = random.Random(seed)
        bucket = buckets.Place(size, whole)
        place = augmentation.cut(bucket, chance) if name == "cuts" else augmentation.cut_whole(whole, size, chance)
        assert (place.left, place.top) == (left, top)
        corners.add((left, top))
    assert len(corners) > 10


def test_the_same_chance_cuts_the_same_part_around_a_face():
    for row in RECORDED["faces"]:
        width, height, *face = row["picture"]
        size, chance = (512, 448), random.Random(row["seed"])
        place = augmentation.cut_around(
            augmentation.Face(face[0], face[1], face[2]), (width, height), size, tuple(row["range"]), row["random"], chance
        )
        assert (list(place.resized), [place.left, place.top]) == (row["whole"], row["corner"]), row


def test_the_same_chance_gives_the_same_colours():
    before, changed = picture(64, 6), 0
    for row in RECORDED["colours"]:
        ours, theirs = augmentation.coloured(before, random.Random(row["seed"])), pixels(row["pixels"], 6, 64, 3)
        assert np.abs(ours.astype(int) - theirs).max() <= 1
        assert (ours == theirs).mean() > 0.98
        changed += not np.array_equal(theirs, before)
    assert 3 <= changed < len(RECORDED["colours"])


@pytest.mark.parametrize("row", RECORDED["metadata"], ids=lambda row: f"{row['ending']}-{row['separator']}-{row['wildcard']}")
def test_metadata_makes_the_same_captions(row, tmp_path):
    path, rows = tmp_path / f"meta{row['ending']}", record_pictures.METADATA
    lines = [json.dumps({"image_path": name, **entry}) for name, entry in rows.items()]
    path.write_text(json.dumps(rows) if row["ending"] == ".json" else "\n".join(lines), encoding="utf-8")
    read = metadata.read(path, separator=row["separator"], by_line=row["wildcard"])
    assert {name: caption for name, (caption, _) in read.items()} == row["captions"]
    assert {name: tags for name, (_, tags) in read.items()} == {name: entry.get("tags") or "" for name, entry in rows.items()}
