"""A playback says of every frame what its trace says, and the recorded ones what is planned today."""

import numpy as np
import pytest
import torch

from benchmarks import record_steps
from sdnb.memory import MIB, MemoryTrace
from sdnb.planner import plan
from sdnb.planner.playback import CATEGORIES, KINDS, SHOWN, Playback, kinds
from sdnb.planner.timeline_page import FILE, Variant, recorded

STALE = "the planner has changed: run python -m benchmarks.record_steps"
LINEAR = 4 * 64 * 64


class Net(torch.nn.Module):
    """Two blocks, the second of which can be recomputed."""

    def __init__(self, checkpointing=False):
        super().__init__()
        self.down_blocks = torch.nn.ModuleList([torch.nn.Linear(64, 64, bias=False)])
        self.mid_block = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.GELU())
        self.checkpointing = checkpointing

    def forward(self, x):
        x = self.down_blocks[0](x)
        return torch.utils.checkpoint.checkpoint(self.mid_block, x, use_reentrant=False) if self.checkpointing else self.mid_block(x)


def traced(checkpointing=False, steps=1):
    net, x = Net(checkpointing), torch.ones(8, 64)
    optimizer = torch.optim.AdamW(net.parameters(), foreach=False)
    with MemoryTrace(net) as trace:
        for _ in range(steps):
            net(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return trace


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_frame_is_a_moment_of_the_trace(checkpointing):
    trace = traced(checkpointing, steps=2)
    played = Playback.of(trace)
    moments = [[moment.bytes[name] for name in CATEGORIES[:-1]] for moment in trace.timeline[1:]]
    at = -1
    for row in played.held.sum(axis=1)[:, :-1].tolist():
        at = moments.index(row, at + 1)  # in the same order
    assert at == len(moments) - 1
    assert played.totals.max() == max(moment.total for moment in trace.timeline) == played.totals[played.peak]
    for number, kind in enumerate(KINDS):
        frames = [frame for frame, row in enumerate(played.frames) if row[0] == number]
        events = [total for total, event in zip(map(sum, moments), kinds(trace.ledger.events), strict=True) if event == kind]
        assert max(played.totals[frames], default=0) == max(events, default=0), kind


def test_it_names_the_module_at_work_in_forward_recomputation_and_backward():
    played = Playback.of(traced(checkpointing=True))
    modules = played.names.modules.list()
    seen = [(KINDS[kind], modules[module]) for kind, module, _ in played.frames]
    order = [one for place, one in enumerate(seen) if one not in seen[:place]]
    assert [one for one in order if one[1]] == [
        ("forward", "down_blocks.0"), ("forward", "mid_block.0"), ("forward", "mid_block.1"), ("recompute", "mid_block.0"),
        ("backward", "mid_block.1"), ("backward", "mid_block.0"), ("backward", "down_blocks.0"),
    ]  # fmt: skip
    assert KINDS[played.frames[-1][0]] == "optimizer"


def test_what_each_block_holds_adds_up():
    trace = traced()
    played = Playback.of(trace)
    held = dict(zip(played.names.cells.list(), played.held[-1].tolist(), strict=True))
    for cell in ("down_blocks.0", "mid_block.0"):
        assert held[cell][CATEGORIES.index("weights")] == LINEAR
    assert sum(row[CATEGORIES.index("optimizer state")] for row in held.values()) == trace.timeline[-1].bytes["optimizer state"]
    gradients = max(played.held.sum(axis=1)[:, CATEGORIES.index("gradients")])
    assert gradients == 2 * LINEAR


def test_the_largest_tensors_are_those_of_the_trace():
    trace = traced()
    played = Playback.of(trace)
    names = played.names
    for frame in range(len(played.frames)):
        rows = played.largest(frame)
        assert len(rows) <= SHOWN
        by_category = played.by_category(frame)
        listed = np.zeros(len(CATEGORIES), dtype=int)
        for row in rows:
            listed[row[1]] += row[0]
        assert all(size <= by_category[name] for name, size in zip(CATEGORIES, listed, strict=True))
        if len(rows) < SHOWN:  # then there are no others
            there = {name: size for name, size in by_category.items() if name not in ("weights", "optimizer state", "workspaces")}
            assert sum(there.values()) - listed.sum() in (0, 8, 16)  # step counts of AdamW
    gradient = next(row for row in played.tensors if CATEGORIES[row[1]] == "gradients")
    assert (gradient[0], gradient[4], gradient[5]) == (LINEAR, [64, 64], "float32")
    assert names.modules.list()[gradient[2]] in ("down_blocks.0", "mid_block.0")


def test_a_trace_of_nothing_is_refused():
    with MemoryTrace() as trace:
        pass
    with pytest.raises(ValueError, match="no operator ran"):
        Playback.of(trace)


# what is recorded

VARIANTS = [
    Variant("sd15"),
    Variant("sd15", "Adafactor", True, True),
    Variant("tiny", "AdamW", True),
    Variant("tiny", "Adafactor", False, True),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.key)
def test_the_recorded_peaks_are_what_is_planned(variant):
    planned = plan(variant.model, variant.recipe(), device="cuda" if variant.model == "sd15" else "cpu")
    played = recorded(variant)
    # the planner joins a step and an optimizer that it has recorded apart: scalars differ
    assert played.totals.max() == pytest.approx(planned.peak_bytes, abs=MIB / 4), STALE
    by_category = played.by_category(played.peak)
    for name, size in planned.by_category.items():
        assert by_category[name] == pytest.approx(size, abs=MIB / 4), f"{name}: {STALE}"
    assert KINDS[played.frames[played.peak][0]] == planned.peak.phase
    if not variant.fused:
        assert played.totals.max() == planned.peak_bytes, STALE


def test_a_recorded_step_is_what_is_recorded_today():
    variant = Variant("tiny", "Adafactor", True)
    made, stored = record_steps.record(variant), recorded(variant)
    assert np.array_equal(made.totals, stored.totals), STALE
    names, kept = made.names.modules.list(), stored.names.modules.list()
    assert [names[row[1]] for row in made.frames] == [kept[row[1]] for row in stored.frames], STALE


def test_the_recorded_steps_are_small():
    assert FILE.stat().st_size < 650_000
