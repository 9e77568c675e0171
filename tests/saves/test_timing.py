"""When a run is saved, an old file deleted and a sample drawn: as sd-scripts' own functions did in 220 recorded runs."""

import json
import re

import pytest

from sdnb.saves import Timing
from sdnb.sections import Saves, named

from ..conftest import ROOT

RECORDED = json.loads((ROOT / "tests" / "recorded" / "saves_of_sd_scripts.json").read_text(encoding="utf-8"))
NAME = re.compile(r"(?P<epoch>(?:fox|epoch)-(?P<number>\d{6,}))|(?:fox|at)-step(?P<step>\d{8,})")


def timing(row):
    given = {name: value for name, value in row.items() if name in named(Saves)}
    return Timing(Saves(**given), row["steps"], row["per_epoch"])


def numbers(names):
    """What sd-scripts' names say: ("step" or "epoch", number)."""
    found = [NAME.match(name) for name in names if "-state" not in name]
    return [("epoch", int(one["number"])) if one["epoch"] else ("step", int(one["step"])) for one in found if one]


def drawn(when, done):
    if not when.is_drawn(done):
        return []
    return [(when.epoch_ended(done) or 0) if done == 0 or when.settings.drawn_every_epochs else -1]


@pytest.mark.parametrize("row", RECORDED["runs"], ids=lambda row: f"{row['steps']} by {row['per_epoch']}")
def test_a_run_is_saved_pruned_and_drawn_as_by_sd_scripts(row):
    when, there, states = timing(row), set(), set()
    for done, (saved, gone, samples) in enumerate(row["log"]):
        due = {"step": when.saved_step(done), "epoch": when.saved_epoch(done)}
        ours = [(kind, number) for kind, number in due.items() if number is not None]
        assert ours == numbers(saved)
        removed = {"step": when.removed_step, "epoch": when.removed_epoch}
        before = set(there)
        for kind, number in ours:
            there.add((kind, number))
            there.discard((kind, removed[kind](number)))
        assert before - there == set(numbers(gone)) & before
        assert drawn(when, done) == samples
        assert when.is_saved(done) == (bool(ours) or done == when.steps)
        if ours:
            states = {step for step in states if when.keeps(step, done)} | {done}
    assert there == set(numbers(row["left"]))
    if row.get("save_state"):
        kept = [name.removesuffix("-state") for name in row["left"] if name.endswith("-state")]
        assert states - {max(states, default=0)} == {
            number * (row["per_epoch"] if kind == "epoch" else 1) for kind, number in numbers(kept)
        } - {max(states, default=0)}


def test_a_dataset_that_is_one_batch_has_an_epoch_in_each_step():
    when = Timing(Saves(save_every_n_epochs=2), 5, 1)
    assert [when.saved_epoch(done) for done in range(6)] == [None, None, 2, None, 4, None]
    assert not Timing(Saves(), 5, 1).says_what_is_kept
