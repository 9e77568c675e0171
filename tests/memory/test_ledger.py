"""What a `MemoryTrace` tells those who watch it."""

import torch

from sdnb.memory import Event, MemoryTrace, Observer


class Diary(Observer):
    def __init__(self, trace):
        self.trace, self.lines = trace, []
        trace.observe(self)

    def storage_made(self, storage, tensor):
        self.lines.append(("made", storage, tuple(tensor.shape)))

    def storage_freed(self, storage):
        self.lines.append(("freed", storage))

    def operator_ran(self, func, args, kwargs, out):
        self.lines.append(("ran", str(func.overloadpacket), self.trace.ledger.number(out)))

    def gradient_ready(self, storage, parameter):
        self.lines.append(("gradient", storage, parameter.grad is not None))


def test_an_observer_is_told_in_the_order_in_which_it_happens():
    x, w = torch.ones(5, 10), torch.ones(10, 20)
    trace = MemoryTrace()
    diary = Diary(trace)
    with trace:
        y = x @ w
        z = y.t()
        del y, z
    assert diary.lines == [
        ("made", 0, (5, 10)), ("made", 1, (10, 20)), ("made", 2, (5, 20)), ("ran", "aten.mm", 2), ("ran", "aten.t", 2), ("freed", 2),
    ]  # fmt: skip
    assert trace.ledger.base == [0, 1]
    assert trace.ledger.events == [Event(2, 400, "forward", "aten.mm"), Event(2, -400, "forward", "")]


def test_a_gradient_is_told_before_anybody_frees_it():
    layer = torch.nn.Linear(4, 4, bias=False)
    layer.weight.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    trace = MemoryTrace(layer)
    diary = Diary(trace)
    with trace:
        layer(torch.ones(2, 4)).sum().backward()
    ((_, storage, there),) = told = [line for line in diary.lines if line[0] == "gradient"]
    assert there
    assert diary.lines.index(*told) < diary.lines.index(("freed", storage))
    assert trace.ledger.storages[storage].category == "gradients"
    lines = len(diary.lines)
    layer(torch.ones(2, 4))  # after the end
    assert len(diary.lines) == lines


def test_tensors_on_the_cpu_can_be_left_out():
    for cpu_tensors, counted in ((True, 4 + 64), (False, 64)):
        with MemoryTrace(kernels="cuda", cpu_tensors=cpu_tensors) as trace:
            made = torch.zeros(()), torch.zeros(16, device="meta")
        assert trace.peak_bytes == counted
        del made
