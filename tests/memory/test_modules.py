"""The module at work is known in forward, in backward and in recomputation."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sdnb.memory import MemoryTrace


class Net(torch.nn.Module):
    def __init__(self, reentrant=None):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x):
        x = self.first(x)
        x = self.second(x) if self.reentrant is None else checkpoint(self.second, x, use_reentrant=self.reentrant)
        return (x * x).mean()


def work(net, *others):
    """Phase and module of each event that makes something, without repetitions in a row."""
    with MemoryTrace(net, *others) as trace:
        net(torch.ones(2, 4)).backward()
    rows = [(event.phase, event.module, event.recomputing) for event in trace.ledger.events if event.bytes > 0]
    return trace, [row for place, row in enumerate(rows) if not place or row != rows[place - 1]]


def test_backward_is_told_whose_operation_it_undoes():
    trace, rows = work(Net())
    assert rows == [
        ("forward", "", False), ("forward", "first", False), ("forward", "second.0", False), ("forward", "second.1", False),
        ("forward", "", False), ("backward", "", False), ("backward", "second.1", False), ("backward", "second.0", False),
        ("backward", "first", False),
    ]  # fmt: skip
    owners = {(storage.category, storage.module, storage.shape) for storage in trace.ledger.storages}
    for module in ("first", "second.0"):
        for category in ("weights", "gradients"):
            assert (category, module, (4, 4)) in owners
    assert {storage.dtype for storage in trace.ledger.storages} == {torch.float32}


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_recomputed_is_told_apart(reentrant):
    _, rows = work(Net(reentrant))
    assert ("backward", "second.0", True) in rows
    after = rows[rows.index(("backward", "second.0", True)) :]
    assert ("backward", "second.0", False) in after
    assert rows[-1] == ("backward", "first", False)
    assert not any(recomputing for phase, _, recomputing in rows if phase == "forward")


def test_modules_of_other_models_begin_with_their_class():
    other = torch.nn.Sequential(torch.nn.Linear(4, 4))
    net = Net()
    with MemoryTrace(net, other) as trace:
        net.first(other(torch.ones(2, 4)))
    assert [event.module for event in trace.ledger.events if event.operator == "aten.addmm"] == ["Sequential.0", "first"]


def test_a_module_that_fails_is_left():
    class Failing(torch.nn.Module):
        def forward(self, x):
            raise ArithmeticError

    net = torch.nn.ModuleDict({"fails": Failing(), "works": torch.nn.Linear(4, 4)})
    with MemoryTrace(net) as trace:
        with pytest.raises(ArithmeticError):
            net["fails"](torch.ones(4))
        assert trace.modules.running is None
        torch.ones(4) + 1
        net["works"](torch.ones(1, 4))
    assert [event.module for event in trace.ledger.events if event.operator in ("aten.add", "aten.addmm")] == ["", "works"]
