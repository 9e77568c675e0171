"""`Ledger`: the storages that a `MemoryTrace` has met, and when each came and went.

`y = x @ w` of two tensors of 400 bytes makes three blocks: x and w, which were there before, and y. One event tells of y,
`Event(2, 400, "forward", "aten.mm")`, and a second one follows when the last reference to y is gone, `Event(2, -400, "forward", "")`.
Views share a storage, and so a block.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

CATEGORIES = ("weights", "optimizer state", "gradients", "activations", "inputs", "temporaries")
"""`activations` are what forward leaves alive for backward, and what backward recomputes; `temporaries` are all the rest."""
PHASES = ("forward", "backward", "optimizer")
SCRATCH = -1
"""In the place of a block: what a kernel takes for itself while it runs."""


class Observer:
    """Watches a `MemoryTrace`, given to its `observe`. Override the events you need; blocks go by their numbers in `trace.ledger`."""

    def made(self, block: int, tensor: Tensor) -> None:
        """A storage was met for the first time, as that of `tensor`; before its event is written."""

    def freed(self, block: int) -> None:
        """The last reference to a block is gone. Runs inside a weakref's callback, where an error is printed and not raised."""

    def ran(self, func, args: tuple, kwargs: dict, out: object) -> None:
        """An operator has returned `out`, and all its tensors are in the ledger."""

    def gradient(self, block: int, parameter: Parameter) -> None:
        """Backward has completed the gradient of `parameter`, which lies in `block`; other hooks have not seen it yet."""


class Block:
    """One storage that was met."""

    __slots__ = ("bytes", "category", "phase", "recomputed")

    def __init__(self, size: int, category: str | None, phase: str, recomputed: bool) -> None:
        self.bytes = size
        self.category = category
        """One of `CATEGORIES`; None until the end for what an operator makes."""
        self.phase = phase
        """One of `PHASES`, in which it was met."""
        self.recomputed = recomputed


class Event(NamedTuple):
    """One change of what is alive."""

    block: int
    """Number of the block, or `SCRATCH`."""
    bytes: int
    """Negative when it is freed."""
    phase: str
    """One of `PHASES`."""
    operator: str
    """Name such as `aten.convolution`; empty where something is freed."""


class Ledger:
    """Blocks, numbered in the order in which they were met, and the events in the order in which they happened.

    `cpu_tensors=False` leaves out tensors on the CPU, such as an optimizer's step counts beside parameters on a GPU.
    """

    def __init__(self, observers: list[Observer], *, cpu_tensors: bool = True) -> None:
        self.blocks: list[Block] = []
        self.base: list[int] = []
        """Numbers of the blocks that no operator made: they were there before, or came where no operator is seen."""
        self.events: list[Event] = []
        self.phase = PHASES[0]
        """One of `PHASES`, in which the last operator ran."""
        self._observers, self._cpu_tensors = observers, cpu_tensors
        self._alive: dict[int, tuple[int, weakref.ref]] = {}  # address of a storage -> block

    @property
    def alive(self) -> set[int]:
        """Numbers of the blocks that are alive."""
        return {number for number, _ in self._alive.values()}

    def number(self, tensor: Tensor) -> int | None:
        """Block of a tensor's storage; None if it was never met."""
        known = self._alive.get(tensor.untyped_storage()._cdata)
        return None if known is None else known[0]

    def given(self, tensor: Tensor, category: str) -> None:
        """Meet a tensor that no operator made: a block of the base, unless its storage is known."""
        if (number := self._meet(tensor, category, False)) is not None:
            self.base.append(number)

    def made(self, tensor: Tensor, operator: str, *, recomputed: bool = False) -> None:
        """Meet a tensor that an operator has just made: an event, unless its storage is known."""
        if (number := self._meet(tensor, None, recomputed)) is not None:
            self.events.append(Event(number, self.blocks[number].bytes, self.phase, operator))

    def scratch(self, size: int, operator: str) -> None:
        """A kernel took `size` bytes for itself and gave them back."""
        self.events += [Event(SCRATCH, size, self.phase, operator), Event(SCRATCH, -size, self.phase, operator)]

    def close(self, saved: set[int]) -> None:
        """Count no more, and give every block its category, now that its lifetime is known. `saved` are those alive after a forward."""
        self._alive.clear()
        dead = {event.block for event in self.events if event.bytes < 0}
        for number, block in enumerate(self.blocks):
            if block.category is not None:
                continue
            if block.phase == "optimizer" and number not in dead:
                block.category = "optimizer state"
            else:
                block.category = "activations" if block.recomputed or number in saved else "temporaries"

    def _meet(self, tensor: Tensor, category: str | None, recomputed: bool) -> int | None:
        """The number of a new block, or None for a known storage and for one that is not counted."""
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse, or a wrapper without a storage
            return None
        key = storage._cdata
        if key in self._alive or (tensor.device.type == "cpu" and not self._cpu_tensors):
            return None
        number, size = len(self.blocks), storage.nbytes()

        def gone(_) -> None:
            del self._alive[key]
            self.events.append(Event(number, -size, self.phase, ""))
            for observer in self._observers:
                observer.freed(number)

        self.blocks.append(Block(size, category, self.phase, recomputed))
        self._alive[key] = number, weakref.ref(storage, gone)
        for observer in self._observers:
            observer.made(number, tensor)
        return number
