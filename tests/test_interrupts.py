"""An interrupt, or several in a row, leaves a run between two steps, with everything that belongs to them."""

import signal

import pytest
import torch

import sdnb
from benchmarks import reliability
from sdnb import training


@pytest.fixture(autouse=True)
def one_thread():
    """Small sums take longer on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", reliability.INTERRUPTED)
def test_interrupts_at_random_tear_no_step(tiny, kind):
    runs = reliability.Interrupted(tiny, kind)
    left = [runs.once() for _ in range(8)]
    assert None not in left


@pytest.mark.parametrize("fused", [False, True])
def test_a_loop_by_hand_is_left_whole_as_well(tiny, ink, monkeypatch, fused):
    """An interrupt in the middle of backward: a plain one is forgotten, a fused one is finished."""
    sd, recipe = reliability.miniature(tiny), reliability.QUICK.replace(fused_backward_pass=fused, lr_warmup_steps=0)
    optimizer = sdnb.optim.optimizer(recipe, sd.unet.parameters())
    batch, parameters = training.Cache(sd, ink[:2], recipe).batch(0), list(sd.unet.parameters())
    before = [p.detach().clone() for p in parameters]
    handle = parameters[len(parameters) // 2].register_hook(lambda gradient: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        sdnb.training_step(sd, batch, recipe, optimizer)
    handle.remove()
    assert all(p.grad is None for p in parameters)
    moved = [not torch.equal(p, old) for p, old in zip(parameters, before, strict=True)]
    assert sum(moved) > 100 if fused else not any(moved)
