"""Two plans beside each other."""

import json

import pytest

from sdnb import Recipe, __main__
from sdnb.planner import plan


@pytest.fixture(scope="module")
def compared():
    recipe = Recipe(train_batch_size=2, cache_latents=True, optimizer_type="AdamW", optimizer_args=())
    return plan("tiny", recipe).compare(plan("tiny", recipe.replace(optimizer_type="SGD"), trainer="sd-scripts"))


def test_the_differences_add_up(compared):
    before, after = compared.sizes["at the peak"]
    assert (before, after) == (compared.first.peak_bytes, compared.second.peak_bytes) and before > after
    for table in (compared.categories, compared.modules):
        assert list(table.values()) == sorted(table.values(), key=lambda pair: -abs(pair[1] - pair[0]))
    assert sum(pair[1] - pair[0] for pair in compared.categories.values()) == after - before


def test_settings_that_differ_are_named(compared):
    assert compared.settings["trainer"] == ("sdnb", "sd-scripts")
    assert compared.settings["optimizer_type"] == ("AdamW", "SGD")
    assert "train_batch_size" not in compared.settings
    assert "optimizer_type: AdamW → SGD" in str(compared)
    assert not compared.first.compare(compared.first).settings


def test_files_and_flags_are_compared_each_with_its_trainer(capsys, tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('optimizer_type = "AdamW"\ncache_latents = true\n', encoding="utf-8")
    assert __main__.main(["plan", "tiny", "--json", "--compare", str(file), f"sd-scripts:{file}"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["settings"]["trainer"] == ["sdnb", "sd-scripts"] and made["sizes"]["reserved"][0] > 0
    assert __main__.main(["plan", "tiny", "--compare", str(file), "--", "--optimizer_type=SGD", "--cache_latents"]) == 0
    assert "settings that differ" in capsys.readouterr().out
    assert __main__.main(["plan", "tiny", "--compare", str(file)]) == 2
    assert "needs two, and there are 1" in capsys.readouterr().err
