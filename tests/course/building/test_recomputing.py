"""`recompute(block, *inputs)`: what a reader may write, and what the grader says of it."""

import pytest
import torch
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from sdnb.course.building import grade

# Right ones


class Tape(Function):
    """A backward inside the backward, made to run by an extra input that requires a gradient."""

    @staticmethod
    def forward(ctx, _, block, *inputs):
        ctx.block, ctx.state = block, torch.get_rng_state()
        ctx.save_for_backward(*inputs)
        with torch.no_grad():
            return block(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        inputs = [x.detach().requires_grad_(needed) for x, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)]
        with torch.random.fork_rng(), torch.enable_grad():
            torch.set_rng_state(ctx.state)
            y = ctx.block(*inputs)
        y.backward(gradient)
        return None, None, *(x.grad for x in inputs)


def with_an_extra_input(block, *inputs):
    return Tape.apply(torch.zeros((), requires_grad=True), block, *inputs)


def torchs_own(block, *inputs):
    return checkpoint(block, *inputs, use_reentrant=False)


RIGHT = [with_an_extra_input, torchs_own]


@pytest.mark.parametrize("answer", RIGHT)
def test_right_ones(answer):
    assert grade("03.3", answer) is None


# Wrong ones


def nothing_saved(block, *inputs):
    return block(*inputs)


def no_return(block, *inputs):
    block(*inputs)


def without_gradients(block, *inputs):
    with torch.no_grad():
        return block(*inputs)


class Lesson(Function):
    """As the lesson has it, for one input."""

    @staticmethod
    def forward(ctx, block, x):
        ctx.block = block
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.block(x)
        y.backward(gradient)
        return None, x.grad


def as_in_the_lesson(block, *inputs):
    return Lesson.apply(block, *inputs)


def others_in_a_closure(block, x, *others):
    return Lesson.apply(lambda x: block(x, *(other.detach() for other in others)), x)


class Several(Function):
    """For several inputs, with settings for what is left out."""

    @staticmethod
    def forward(ctx, settings, block, *inputs):
        ctx.settings, ctx.block, ctx.state = settings, block, torch.get_rng_state()
        ctx.save_for_backward(*inputs)
        with torch.no_grad():
            result = block(*inputs)
        if "kept" in settings:
            ctx.inner = block.first(block.norm(inputs[0]))
        return result

    @staticmethod
    def backward(ctx, gradient):
        inputs = [x.detach() for x in ctx.saved_tensors]
        for x in inputs:
            x.requires_grad_("any" in ctx.settings or x.is_floating_point())
        if "state" in ctx.settings:
            torch.set_rng_state(ctx.state)
        with torch.enable_grad():
            y = ctx.block(*inputs)
        if "grad only" in ctx.settings:
            return None, None, *torch.autograd.grad(y, inputs, gradient)
        y.backward(gradient)
        if "twice" in ctx.settings:
            with torch.enable_grad():
                ctx.block(*inputs).backward(gradient)
        return None, None, *(x.grad for x in inputs)


def attempt(*settings):
    return lambda block, *inputs: Several.apply(settings, block, *inputs)


def frozen_inputs_unseen(block, *inputs):
    return Forked.apply(block, *inputs)


class Forked(Function):
    forward = staticmethod(lambda ctx, block, *inputs: Tape.forward(ctx, None, block, *inputs))

    @staticmethod
    def backward(ctx, gradient):
        inputs = [x.detach().requires_grad_(needed) for x, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)]
        with torch.random.fork_rng(), torch.enable_grad():
            torch.set_rng_state(ctx.state)
            ctx.block(*inputs).backward(gradient)
        return None, *(x.grad for x in inputs)


WRONG = {
    "plain": (nothing_saved, "kept", "still there after forward"),
    "no return": (no_return, "returns", "returned a NoneType"),
    "a class": (Lesson, "a_class", "return Lesson.apply"),
    "no gradients": (without_gradients, "no_graph", "no way back"),
    "one input": (as_in_the_lesson, "raised", "takes 3 positional arguments"),
    "others in a closure": (others_in_a_closure, "input_missing", "gradient of input 2 is missing"),
    "parameters left out": (attempt("grad only"), "parameter_missing", "gradient of first.weight is missing"),
    "backward twice": (attempt("twice"), "input_twice", "twice as large"),
    "kept": (attempt("kept"), "kept", "still there after forward"),
    "other dropout": (attempt(), "dropout", "dropped other numbers"),
    "state not put back": (attempt("state"), "stream", "put the generator back"),
    "frozen inputs": (frozen_inputs_unseen, "frozen", "never called your backward"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_ones(name, told):
    answer, fault, text = WRONG[name]
    assert grade("03.3", answer).name == fault
    assert text in told("03.3", answer)
