"""`Modules`: which module an operator works for, in forward, in recomputation and in backward.

In a forward it is the innermost module whose `forward` runs. Backward runs no modules, but autograd numbers the operations of a forward in
order, and says in backward which of them it is undoing. So it is enough to note the number at which each module begins and ends:

    forward     conv1 begins at 7, ends at 9      norm begins at 9, ends at 14
    backward    autograd undoes operation 12: norm; operation 7: conv1
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class Modules:
    """Names of the modules of `models`, and which is at work inside `watching()`.

    The first model's are called as in `named_modules()`; those of the others begin with the class of their model.
    """

    def __init__(self, models: Sequence[Module]) -> None:
        self._names: dict[Module, str] = {}
        self._owners: dict[Tensor, str] = {}
        for place, model in enumerate(models):
            start = type(model).__name__ if place else ""
            for name, module in model.named_modules():
                self._names.setdefault(module, ".".join(filter(None, (start, name))))
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                self._owners.setdefault(tensor, ".".join(filter(None, (start, name.rpartition(".")[0]))))
        self._running: list[Module] = []
        self._starts: list[int] = [-1]  # numbers of autograd's operations, ascending …
        self._modules: list[str] = [""]  # … and the module at work from each of them on

    @property
    def running(self) -> Module | None:
        """Innermost module whose forward runs; None outside of one."""
        return self._running[-1] if self._running else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the modules inside this context."""

        def enter(module: Module, _) -> None:
            self._running.append(module)
            self._note()

        def leave(*_) -> None:
            self._running.pop()
            self._note()

        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(enter).remove)
            stack.callback(register_module_forward_hook(leave, always_call=True).remove)
            yield

    def owner(self, tensor: Tensor) -> str | None:
        """Name of the module that has a parameter or buffer; None for other tensors."""
        return self._owners.get(tensor)

    def at_work(self, backward: bool) -> str:
        """Name of the module that the current operator works for; empty if it is none's. `backward`: whether a backward runs."""
        if self._running:
            return self._name()
        node = torch._C._current_autograd_node() if backward else None
        if node is None:
            return ""
        if (parameter := getattr(node, "variable", None)) is not None:  # the node that accumulates a gradient
            return self._owners.get(parameter, "")
        return self._modules[bisect_right(self._starts, node._sequence_nr()) - 1]

    def _name(self) -> str:
        """Name of the innermost module that has one."""
        return next((self._names[module] for module in reversed(self._running) if module in self._names), "")

    def _note(self) -> None:
        number = torch.autograd._get_sequence_nr()
        if number == self._starts[-1]:
            self._modules[-1] = self._name()
        elif number > self._starts[-1]:  # another thread counts anew
            self._starts.append(number)
            self._modules.append(self._name())
