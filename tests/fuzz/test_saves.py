"""Saves: of a damaged one a run says so before its first step; of one without checksums nothing worse comes out."""

import random

import hypothesis
import pytest
from hypothesis import strategies as st

from benchmarks import reliability

from .doors import fuzz, only


@pytest.fixture(scope="module")
def saves(tiny, tmp_path_factory):
    return reliability.Damaged(tiny, tmp_path_factory.mktemp("saves"))


@fuzz(seed=st.integers(0, 2**32))
def test_damage_is_told(saves, seed):
    why = saves.once(random.Random(seed))
    hypothesis.note(saves.what)
    assert why, saves.what
    if saves.what == "swap of state.json" and "the saves of another run: seed was 1 and is 0" in why:
        return
    assert "step-00000003 is a damaged save" in why or "update sdnb, or start anew. If no later version wrote it, it is damaged" in why
    assert "delete that folder to go on from the one before, step-00000002" in why


@fuzz(seed=st.integers(0, 2**32))
@pytest.mark.filterwarnings("ignore:.*written before saves had checksums")
def test_damage_without_checksums_is_told_or_not_seen(saves, seed):
    with only(ValueError, seconds=20):
        saves.once(random.Random(seed), checksums=False)
