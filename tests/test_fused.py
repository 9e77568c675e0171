"""Fused backward: the plain step's result, without all gradients at once, within an 8 GB card's memory."""

import copy
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from sdnb import Recipe, optim
from sdnb.adafactor import Adafactor, NonFiniteGradient
from sdnb.checkpointing import choices
from sdnb.fused import FusedBackward, check, divided
from sdnb.inputs import example
from sdnb.memory.trace import GIB, MIB, MemoryTrace
from sdnb.models.skeletons import skeleton_unet

from .memory.test_trace import filled

MANUAL = dict(lr=1e-2, relative_step=False, scale_parameter=False)
KINDS = {
    "Adafactor": lambda params: Adafactor(params, **MANUAL),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "AdamW, foreach": lambda params: torch.optim.AdamW(params, lr=1e-2, foreach=True),
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9, nesterov=True),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=1e-2),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=1e-2),
    "Lion": lambda params: import_module("lion_pytorch").Lion(params, lr=1e-2),
    "AdamW8bit": lambda params: import_module("bitsandbytes.optim").AdamW8bit(params, lr=1e-2),
}


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 96), nn.SiLU(), nn.Linear(96, 96))
    model.append(model[-1])  # a layer used twice gets one gradient
    return model


def train(model, optimizer, fused, steps=6, **settings):
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        loss = model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean()
        if fused:
            with FusedBackward(optimizer, **settings):
                loss.backward()
            assert all(p.grad is None for p in model.parameters())
        else:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_plain_step(kind):
    """With a schedule that halves the learning rate: it arrives as well."""
    model = net()
    other = copy.deepcopy(model)
    plain = train(model, KINDS[kind](model.parameters()), fused=False)
    fused = train(other, KINDS[kind](other.parameters()), fused=True)
    for p, q in zip(plain, fused, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_the_plain_step_too(kind):
    model = net()
    other = copy.deepcopy(model)
    plain = train(model, KINDS[kind](model.parameters()), fused=False)
    groups = divided([{"params": list(other.parameters())}], 3)
    assert [len(group["params"]) for group in groups] == [3, 3, 2]
    fused = train(other, KINDS[kind](groups), fused=True, by_group=True)
    for p, q in zip(plain, fused, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by_group", [False, True])
def test_each_gradient_is_clipped_alone(by_group):
    """As sdxl_train.py's hooks do it, and not as the whole gradient is clipped."""
    models = net(), net(), net()
    batch = torch.randn(4, 3, 8, 8)
    for model, alone in zip(models[:2], (True, False), strict=True):
        model(batch).square().mean().backward()
        for each in [[p] for p in model.parameters()] if alone else [list(model.parameters())]:
            torch.nn.utils.clip_grad_norm_(each, 0.01)
        torch.optim.SGD(model.parameters(), lr=1.0).step()
    groups = divided([{"params": list(models[2].parameters())}], 3)
    with FusedBackward(torch.optim.SGD(groups, lr=1.0), max_grad_norm=0.01, by_group=by_group):
        models[2](batch).square().mean().backward()
    assert all(map(torch.equal, models[0].parameters(), models[2].parameters()))
    assert not torch.allclose(models[0][2].weight, models[1][2].weight, rtol=0, atol=1e-4)


def test_a_group_waits_for_its_last_gradient_and_is_one_optimizer():
    """Prodigy, which finds one rate for all that it has, finds one for each group; a weight without a gradient holds nobody up."""
    model, other = net(), net()
    recipe = Recipe(optimizer_type="Prodigy", optimizer_args=(), learning_rate=1.0, lr_warmup_steps=0)
    groups = divided([{"params": list(other.parameters())}], 2)
    halves = divided([{"params": list(model.parameters())}], 2)
    apart = [optim.optimizer(recipe, [half]) for half in halves]
    together = optim.optimizer(recipe, groups)
    for _ in range(4):
        batch = torch.randn(4, 3, 8, 8)
        model[:4](batch).square().mean().backward()
        for one in apart:
            one.step()
            one.zero_grad()
        with FusedBackward(together, by_group=True):
            other[:4](batch).square().mean().backward()
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert together.param_groups[0]["d"] == apart[0].param_groups[0]["d"] != together.param_groups[1]["d"]


def test_groups_keep_their_settings():
    model = net()
    other = copy.deepcopy(model)
    results = []
    for each, fused in ((model, False), (other, True)):
        groups = [{"params": each[0].parameters(), "lr": 0.0}, {"params": [*each[2].parameters(), *each[4].parameters()], "lr": 1e-2}]
        each[6].requires_grad_(False)
        results.append(train(each, Adafactor(groups, **MANUAL), fused=fused)[:4])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q)
    assert torch.equal(results[1][0], net()[0].weight)
    assert not torch.equal(results[1][2], net()[2].weight)


def test_groups_are_divided_as_in_sd_scripts():
    """Recorded from sdxl_train.py by benchmarks/record_updates.py: the parameters and the rate of each group."""
    recorded = json.loads((Path(__file__).parent / "recorded" / "updates_of_sd_scripts.json").read_text())["divisions"]
    assert len(recorded) == 9
    for row in recorded:
        groups = divided([{"params": [object()] * count, "lr": rate} for count, rate in row["before"]], row["number"])
        assert [[len(group["params"]), group["lr"]] for group in groups] == row["after"]


def test_it_leaves_the_model_as_it_was():
    model = net()
    optimizer = Adafactor(model.parameters(), **MANUAL)
    before = optimizer.param_groups
    train(model, optimizer, fused=True, steps=1)
    assert optimizer.param_groups is before
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_gradients_are_never_all_there(fresh):
    """At most the largest one at a time, as MemoryTrace counts them."""
    inputs = filled(fresh.unet, batch=2)
    largest = max(p.numel() * p.element_size() for p in fresh.unet.parameters())
    seen = {}
    for fused in (False, True):
        optimizer = Adafactor(fresh.unet.parameters(), **MANUAL)
        with MemoryTrace(fresh.unet) as trace:
            loss = fresh.unet(**inputs).sample.square().mean()
            if fused:
                with FusedBackward(optimizer):
                    loss.backward()
            else:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        seen[fused] = max(moment.bytes["gradients"] for moment in trace.timeline)
    assert seen[True] <= largest + 0.1 * MIB
    assert seen[False] > 10 * seen[True]


@pytest.mark.parametrize(("name", "most"), [pytest.param("sd15", 2.05, marks=pytest.mark.long), ("sdxl", 5.7)])  # lesson 04 holds it, too
def test_a_full_fine_tune_fits(name, most):
    """Two steps of the U-Net at its own resolution, batch 1, weights in bf16, all blocks recomputed: everything that is alive at once."""
    unet = skeleton_unet(name, dtype=torch.bfloat16)
    inputs = example(unet, batch=1)
    optimizer = Adafactor(unet.parameters(), lr=1e-5, relative_step=False, scale_parameter=False)
    with choices.apply(unet, "full"), FusedBackward(optimizer), MemoryTrace(unet) as trace:
        for _ in range(2):
            unet(**inputs).sample.float().square().mean().backward()
    weights = sum(p.numel() * 2 for p in unet.parameters())
    assert weights < trace.peak_bytes <= most * GIB
    assert all(optimizer.state[p]["step"] == 2 for p in unet.parameters())


@pytest.mark.parametrize("kind", [name for name, row in optim.OPTIMIZERS.items() if not row.alone])
def test_what_all_parameters_share_is_refused(kind):
    model = net()
    recipe = Recipe(optimizer_type=kind, optimizer_args=(), learning_rate=1.0, lr_warmup_steps=0, lr_scheduler="constant")
    optimizer = optim.optimizer(recipe, model.parameters())
    with pytest.raises(ValueError, match=r"for all parameters together.*use Adafactor"):
        FusedBackward(optimizer)
    assert not any(optimizer.state.values())


@pytest.mark.parametrize("kind", [name for name, row in optim.OPTIMIZERS.items() if row.alone])
@pytest.mark.filterwarnings("ignore:.*[Pp]aged")
def test_every_other_optimizer_is_taken(kind):
    model = net()
    recipe = Recipe(optimizer_type=kind, optimizer_args=Recipe().optimizer_args if kind == "Adafactor" else (), learning_rate=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optim.optimizer(recipe, model.parameters()), fused=True, steps=2)
    assert not any(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_gradient_that_is_no_number_stops_it(kind):
    model = net()
    optimizer = KINDS[kind](model.parameters())
    train(model, optimizer, fused=True, steps=1)
    model[2].weight.register_hook(lambda gradient: gradient * float("nan"))
    kept = model[2].weight.detach().clone()
    with pytest.raises(NonFiniteGradient, match=r"\(8, 8, 3, 3\)"), FusedBackward(optimizer):
        model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert torch.equal(model[2].weight, kept)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def test_adafactor_skips_it():
    model = net()
    optimizer = Adafactor(model.parameters(), **MANUAL)
    model[2].weight.register_hook(lambda gradient: gradient * float("nan"))
    kept = model[2].weight.detach().clone()
    train(model, optimizer, fused=True, steps=3)
    assert torch.equal(model[2].weight, kept)
    assert optimizer.skipped == 3
    assert all(p.isfinite().all() for p in model.parameters())


def test_it_cannot_be_entered_twice():
    fused = FusedBackward(Adafactor(net().parameters(), **MANUAL))
    with fused, pytest.raises(RuntimeError, match="stepped twice"), fused:
        pass


@pytest.mark.parametrize(
    ("settings", "processes", "message"),
    [
        (dict(gradient_accumulation_steps=4), 1, "gradients of 4 batches cannot be accumulated: set gradient_accumulation_steps=1"),
        (dict(fused_optimizer_groups=4), 1, "only the first of fused_optimizer_groups=4"),
        (dict(mixed_precision="fp16"), 1, "gradient scaler.*bf16"),
        ({}, 2, "2 processes.*run one process"),
    ],
)
def test_what_it_cannot_do_is_refused(settings, processes, message):
    recipe = Recipe(fused_backward_pass=True)
    check(recipe.replace(max_grad_norm=1.0))
    check(Recipe(fused_optimizer_groups=4, gradient_accumulation_steps=2))
    with pytest.raises(ValueError, match=message):
        check(recipe.replace(**settings), processes=processes)
