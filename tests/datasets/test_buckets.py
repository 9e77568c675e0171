"""Buckets against those that sd-scripts' own code made, recorded once."""

import json

import pytest

import sdnb
from sdnb.datasets import buckets

from ..conftest import ROOT

RECORDED = json.loads((ROOT / "tests" / "recorded" / "buckets.json").read_text(encoding="utf-8"))


def size(pair):
    return tuple(pair)


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: f"{case['resolution']}-{case['step']}-{case['no_upscale']}")
def test_the_sizes_are_those_of_sd_scripts(case):
    made = buckets.Buckets(
        resolution=size(case["resolution"]),
        min_side=case["min_side"],
        max_side=case["max_side"],
        step=case["step"],
        no_upscale=case["no_upscale"],
    )
    assert made.sizes == tuple(map(size, case["sizes"]))
    assert case["placed"]
    for picture, bucket, resized in case["placed"]:
        place = made.place(*picture)
        assert (place.size, place.resized) == (size(bucket), size(resized)), picture


def test_what_is_cut_lies_in_the_picture():
    place = buckets.Buckets(resolution=(512, 512)).place(333, 777)
    assert place.resized[0] >= place.size[0] and place.resized[1] >= place.size[1]
    assert 0 <= place.resized[0] - place.size[0] - 2 * place.left <= 1
    assert 0 <= place.resized[1] - place.size[1] - 2 * place.top <= 1


def test_a_small_picture_is_refused_only_where_it_may_not_grow():
    with pytest.raises(ValueError, match="bucket_no_upscale"):
        buckets.Buckets(resolution=(512, 512), no_upscale=True).place(1, 1)
    assert buckets.Buckets(resolution=(512, 512)).place(1, 1).size == (512, 512)


def test_a_recipe_asks_for_buckets():
    recipe = sdnb.Recipe(resolution=768, others={"enable_bucket": True, "bucket_reso_steps": 128})
    made = buckets.of(recipe, resolution=512, multiple=64)
    assert (made.enabled, made.resolution, made.step, made.max_side) == (True, (768, 768), 128, 1024)
    assert buckets.of(sdnb.Recipe(), resolution=64, multiple=16).sizes == ((64, 64),)
    with pytest.raises(ValueError, match="multiple of 64"):
        buckets.of(recipe.replace(others={"enable_bucket": True, "bucket_reso_steps": 32}), resolution=512, multiple=64)
    with pytest.raises(ValueError, match="min_bucket_reso"):
        buckets.of(recipe.replace(resolution=512, others={"enable_bucket": True, "min_bucket_reso": 768}), resolution=512, multiple=64)


@pytest.mark.parametrize("wrong", [{"resolution": (0, 64)}, {"resolution": (10**9, 64)}, {"resolution": (512, 512), "max_side": 10**12}])
def test_absurd_sides_are_refused(wrong):
    with pytest.raises(ValueError, match="16,384"):
        buckets.Buckets(**wrong, step=1)


def test_sides_of_buckets_do_not_matter_where_pictures_have_their_own():
    """sd-scripts looks at neither limit with `bucket_no_upscale`."""
    place = buckets.Buckets(resolution=(128, 128), enabled=True, min_side=0, no_upscale=True).place(100, 70)
    assert place == buckets.Buckets(resolution=(128, 128), enabled=True, min_side=64, no_upscale=True).place(100, 70)
    with pytest.raises(ValueError, match="or more"):
        buckets.Buckets(resolution=(128, 128), enabled=True, min_side=0)
