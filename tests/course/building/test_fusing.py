"""`fuse(model, update, max_norm)`: what a reader may write, and what the grader says of it."""

import pytest
import torch

from sdnb.course.building import grade
from sdnb.course.building.fusing import _loss, _Model
from sdnb.fused import FusedBackward


def hooked(model, act):
    return [p.register_post_accumulate_grad_hook(act) for p in model.parameters() if p.requires_grad]


def clip(p, max_norm):
    if max_norm:
        p.grad.mul_(min(1.0, max_norm / p.grad.norm().item()))


# A right one


def fuse(model, update, max_norm=0.0):
    def act(p):
        if max_norm:
            torch.nn.utils.clip_grad_norm_(p, max_norm)
        update(p)
        p.grad = None

    return hooked(model, act)


RIGHT = [fuse]


def test_a_right_one():
    assert grade("04.2", fuse) is None


def test_it_does_what_fused_backward_does():
    torch.manual_seed(0)
    ours, theirs, x = _Model(), _Model(), torch.randn(4, 4)
    theirs.load_state_dict(ours.state_dict())
    fuse(ours, lambda p: p.data.sub_(0.1 * p.grad))
    _loss(ours, x).backward()
    with FusedBackward(torch.optim.SGD(theirs.parameters(), lr=0.1)):
        _loss(theirs, x).backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


# Wrong ones


def on_tensors(model, update, max_norm=0.0):
    """A hook of the tensor, which runs before the gradient is in `grad`."""
    return [p.register_hook(lambda gradient, p=p: update(p)) for p in model.parameters() if p.requires_grad]


def on_modules(model, update, max_norm=0.0):
    """A hook of the module, which runs at each of its uses."""

    def act(module, _, __):
        for p in module.parameters(recurse=False):
            if p.grad is not None:
                update(p)
                p.grad = None

    return [module.register_full_backward_hook(act) for module in model.modules() if any(True for _ in module.parameters(recurse=False))]


def held(model, update, max_norm=0.0):
    return hooked(model, update)


def the_last_one_steps_all(model, update, max_norm=0.0):
    waiting = [p for name, p in model.named_parameters() if p.requires_grad and "unused" not in name]
    come = []

    def act(p):
        come.append(p)
        if len(come) == len(waiting):
            for other in waiting:
                update(other)
                other.grad = None
            come.clear()

    return hooked(model, act)


def every_parameter(model, update, max_norm=0.0):
    def act(p):
        update(p)
        p.grad = None

    return [p.register_post_accumulate_grad_hook(act) for p in model.parameters()]


def one_loop_variable(model, update, max_norm=0.0):
    """Each hook has the parameter of the last turn of the loop."""
    handles = []
    for p in model.parameters():
        if p.requires_grad:
            handles.append(p.register_post_accumulate_grad_hook(lambda _: update(p)))  # noqa: B023 - this is what is wrong
    return handles


def right_away(model, update, max_norm=0.0):
    for name, p in model.named_parameters():
        if "shared" in name:
            p.grad = torch.zeros_like(p)
            update(p)
    return []


def freed_before(model, update, max_norm=0.0):
    def act(p):
        p.grad = None
        update(p)

    return hooked(model, act)


def scaled_up(model, update, max_norm=0.0):
    def act(p):
        if max_norm:
            p.grad.mul_(max_norm / p.grad.norm())
        update(p)
        p.grad = None

    return hooked(model, act)


def clipped_too_late(model, update, max_norm=0.0):
    def act(p):
        update(p)
        clip(p, max_norm)
        p.grad = None

    return hooked(model, act)


def no_handles(model, update, max_norm=0.0):
    fuse(model, update, max_norm)


def one_handle(model, update, max_norm=0.0):
    return fuse(model, update, max_norm)[:1]


def once(model, update, max_norm=0.0):
    handles = []

    def act(p):
        if any(p is other for other in done):
            return
        done.append(p)
        update(p)
        p.grad = None

    done = []
    handles += hooked(model, act)
    return handles


WRONG = {
    "hooks of tensors": (on_tensors, "no_gradient_yet", "had no gradient yet"),
    "hooks of modules": (on_modules, "never_updated", "was never called for"),
    "gradients held": (held, "together", "alive at once"),
    "the last one steps all": (the_last_one_steps_all, "together", "alive at once"),
    "frozen ones too": (every_parameter, "raised", "doesn't require gradient"),
    "one loop variable": (one_loop_variable, "without_gradient", "not the variable of a loop"),
    "right away": (right_away, "too_early", "before backward"),
    "freed before the update": (freed_before, "no_gradient_yet", "had no gradient yet"),
    "small ones scaled up": (scaled_up, "clipped_wrong", "should have"),
    "clipped too late": (clipped_too_late, "clipped_wrong", "should have"),
    "no handles": (no_handles, "no_handles", "a list of handles"),
    "one handle": (one_handle, "still_there", "after every handle was removed"),
    "once": (once, "only_once", "second backward"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_ones(name, told):
    answer, fault, text = WRONG[name]
    assert grade("04.2", answer).name == fault
    assert text in told("04.2", answer)
