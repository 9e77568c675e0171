"""Events copied from one parameter of each shape, against a recording of all parameters."""

import warnings

import numpy as np
import pytest
import torch

from sdnb import Recipe, optim, prepare
from sdnb.memory import SCRATCH
from sdnb.memory.cuda_scratch import Reduction
from sdnb.memory.trace import CATEGORIES
from sdnb.models import skeletons
from sdnb.planner import optimizer_tape, tape

COPIED = ("AdamW", "AdamW8bit", "AdEMAMix8bit", "Lion", "Lion8bit", "SGDNesterov", "SGDNesterov8bit", "AdamWScheduleFree")
TOGETHER = ("Prodigy", "DAdaptAdam", "DAdaptLion")
OTHERS = ("torch.optim.NAdam", "torch.optim.RMSprop", "RAdamScheduleFree", "SGDScheduleFree", "DAdaptSGD")


def made(name):
    """The optimizer over tiny's U-Net on the meta device, as for a card."""
    sd = skeletons.skeleton("tiny")
    recipe = Recipe(optimizer_type=name, optimizer_args=(), lr_scheduler="constant", lr_warmup_steps=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of learning rates
        optimizer = optim.optimizer(recipe, prepare.groups(sd, recipe, prepare.make_trainable(sd, recipe)))
    for group in optimizer.param_groups:
        if "foreach" in group and group["foreach"] is None:
            group["foreach"] = True
    return optimizer


def whole(optimizer, kernels):
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    return optimizer_tape._record_parameters(optimizer, range(count), kernels)


def copied(optimizer, kernels):
    return optimizer_tape._record_one_of_each_shape(optimizer, optimizer_tape._representatives(optimizer), kernels)


def lifetimes(steps):
    """The storage of each event, numbered in the order of their first events."""
    numbers = {-1: -1}
    return [numbers.setdefault(storage, len(numbers)) for storage in steps.storages.tolist()]


@pytest.mark.parametrize("kernels", ["cuda", "cpu"])
@pytest.mark.parametrize("name", [*COPIED, *OTHERS])
def test_copied_events_equal_recorded_ones(name, kernels):
    found = copied(made(name), kernels)
    if found is None and name in OTHERS:
        pytest.skip("steps its parameters in a way that is recorded whole")
    expected = whole(made(name), kernels)
    assert found.second == expected.second
    assert np.array_equal(found.tape.changes, expected.tape.changes)
    assert found.tape.names == expected.tape.names
    assert lifetimes(found.tape) == lifetimes(expected.tape)
    state = CATEGORIES.index("optimizer state")
    for steps in (found, expected):
        steps.held = steps.tape.sizes[steps.tape.categories == state].sum()
    assert found.held == expected.held > 0


@pytest.mark.parametrize("name", TOGETHER)
def test_an_optimizer_that_sums_over_its_parameters_is_recorded_whole(name):
    optimizer = made(name)
    assert copied(optimizer, "cuda") is None
    assert not optimizer.state
    places = [p for group in optimizer.param_groups for p in group["params"]]
    (steps,) = optimizer_tape.record(optimizer, kernels="cuda", fused=False)
    assert len(optimizer.state) == len(places)
    assert len(steps.tape.storages) > steps.second > 0


def test_one_shape_is_enough():
    def optimizer():
        return torch.optim.AdamW([torch.nn.Parameter(torch.empty(5, 7, device="meta")) for _ in range(9)], foreach=True)

    found, expected = copied(optimizer(), "cuda"), whole(optimizer(), "cuda")
    assert np.array_equal(found.tape.changes, expected.tape.changes)


def test_nothing_stays_behind():
    optimizer = made("AdamW")
    groups = [list(group["params"]) for group in optimizer.param_groups]
    optimizer_tape.record(optimizer, kernels="cuda", fused=False)
    assert [group["params"] for group in optimizer.param_groups] == groups
    assert all(p.grad is None for group in groups for p in group)


def test_reductions_that_other_plans_know_do_not_matter(monkeypatch):
    from transformers.optimization import Adafactor

    def sizes():
        parameters = [torch.nn.Parameter(torch.empty(640 * wide, 1280, device="meta")) for wide in (1, 1, 2)]
        (steps,) = optimizer_tape.record(Adafactor(parameters, lr=1.0, relative_step=False), kernels="cuda", fused=False)
        assert (steps.tape.storages < SCRATCH).any()
        return steps.tape.sizes.tolist()

    expected = sizes()
    monkeypatch.setattr(tape, "REDUCTIONS", {Reduction(outputs, 1, 1): SCRATCH - 1 - outputs for outputs in range(5000)})
    assert sizes() == expected
