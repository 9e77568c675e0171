"""What a LoRA's file says about its pictures is what sd-scripts' own file said, entry for entry."""

import json
import shlex

import pytest

import sdnb
from benchmarks import record_metadata
from sdnb.datasets import cache, validation
from sdnb.lora import dataset_notes

from ..conftest import ROOT

ROWS = json.loads((ROOT / "tests" / "recorded" / "metadata_of_sd_scripts.json").read_text(encoding="utf-8"))["rows"]


def plain(value):
    """The entry as a file has it, JSON opened, and what is rounded rounded."""
    try:
        return json.loads(str(value), parse_float=lambda text: round(float(text), 12))
    except ValueError:
        return str(value)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_the_entries_are_those_of_sd_scripts(tiny, tmp_path, row):
    record_metadata.write(tmp_path, row["pictures"], row["files"])
    words = [word.replace("PLACE", str(tmp_path)) for word in shlex.split(row["flags"])]
    recipe = sdnb.Recipe.parse(shlex.join([*words, "--seed=7"]))
    found = sdnb.pictures(recipe.dataset_config or recipe.train_data_dir, recipe=recipe)
    recipe = cache.with_dataset_settings(found, recipe)
    pictures, held_out = validation.split(found, recipe)
    told = dataset_notes.notes(recipe, pictures, cache.datasets(tiny, pictures, recipe), held_out=len(held_out))
    told["ss_num_batches_per_epoch"] = cache.batches(tiny, pictures, recipe)
    ours = {name: plain(value) for name, value in told.items()}
    assert ours == {name: plain(value) for name, value in row["told"].items()}
