"""`Ledger`: every storage that a `MemoryTrace` sees, and when each was made and freed.

`y = x @ w` of two tensors of 400 bytes makes three storages: x and w, which existed before, and y. One event records y,
`Event(2, 400, "forward", "aten.mm")`, and a second one follows when the last reference to y is gone, `Event(2, -400, "forward", "")`.
Views share a storage, and count once.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

CATEGORIES = ("weights", "optimizer state", "gradients", "activations", "inputs", "temporaries")
"""Kinds of storages. `activations` outlive forward for backward's sake, or are recomputed in backward; `temporaries` are all the rest."""
PHASES = ("forward", "backward", "optimizer")
SCRATCH = -1
"""Storage number of the scratch memory that a kernel allocates and frees while it runs. Lower numbers are scratch memory, too, and free
for whoever adds it."""


class Observer:
    """Callbacks of a `MemoryTrace`, registered with `observe`. Override those you need; `storage` is a number in `trace.ledger`."""

    def storage_made(self, storage: int, tensor: Tensor) -> None:
        """Called when a storage is first seen, with the tensor that showed it; its event is written afterwards."""

    def storage_freed(self, storage: int) -> None:
        """Called when the last reference to a storage is gone, inside a weakref's callback, where errors are printed and not raised."""

    def operator_ran(self, func, args: tuple, kwargs: dict, out: object) -> None:
        """Called when an operator has returned `out`, and all its tensors are in the ledger."""

    def gradient_ready(self, storage: int, parameter: Parameter) -> None:
        """Called when backward has completed the gradient of `parameter`, which lies in `storage`; other hooks have not seen it yet."""


class Storage:
    """Size and kind of one storage."""

    __slots__ = ("bytes", "category", "dtype", "module", "phase", "recomputed", "shape")

    def __init__(self, tensor: Tensor, size: int, category: str | None, phase: str, recomputed: bool, module: str) -> None:
        self.bytes = size
        self.shape = tuple(tensor.shape)
        """Shape of the tensor that showed it first."""
        self.dtype = tensor.dtype
        self.category = category
        """Category, one of `CATEGORIES`; None for an operator's result until the trace ends."""
        self.phase = phase
        """Phase in which it was first seen, one of `PHASES`."""
        self.recomputed = recomputed
        """Whether checkpointing made it in backward, by running a forward again."""
        self.module = module
        """Name of the module that it belongs to: of a weight or a gradient the one that has it, of a result the one it was made for."""


class Event(NamedTuple):
    """Record of one storage that was made or freed."""

    storage: int
    """Number of the storage; `SCRATCH` or below for scratch memory."""
    bytes: int
    """Size of the storage, negative where it is freed."""
    phase: str
    """Phase in which it happened, one of `PHASES`."""
    operator: str
    """Name such as `aten.convolution`; empty where a storage is freed."""
    module: str = ""
    """Name of the module at work, by `Modules`; empty outside of all."""
    recomputing: bool = False
    """Whether backward was running a forward again, for checkpointing."""


class Ledger:
    """Storages, numbered in the order in which they were first seen, and the events in the order in which they happened.

    `cpu_tensors=False` leaves out tensors on the CPU, such as an optimizer's step counts beside parameters on a GPU.
    """

    def __init__(self, observers: list[Observer], *, cpu_tensors: bool = True) -> None:
        self.storages: list[Storage] = []
        self.base: list[int] = []
        """Numbers of the storages that no traced operator made: they existed before, or were made where no operator is seen."""
        self.events: list[Event] = []
        self.phase = PHASES[0]
        """Phase in which the last operator ran, one of `PHASES`."""
        self.module = ""
        """Name of the module for which it ran."""
        self.recomputing = False
        """Whether it ran to recompute, in backward."""
        self._observers = observers
        self._cpu_tensors = cpu_tensors
        self._alive: dict[int, tuple[int, weakref.ref]] = {}  # address of a storage -> its number

    @property
    def alive(self) -> set[int]:
        """Numbers of the storages that are alive."""
        return {number for number, _ in self._alive.values()}

    def number(self, tensor: Tensor) -> int | None:
        """Number of a tensor's storage; None if the ledger has never seen it."""
        entry = self._alive.get(tensor.untyped_storage()._cdata)
        return None if entry is None else entry[0]

    def add_existing(self, tensor: Tensor, category: str) -> None:
        """Add a tensor that no traced operator made to the base, unless its storage is there already."""
        if (number := self._add(tensor, category)) is not None:
            self.base.append(number)

    def add_result(self, tensor: Tensor, operator: str) -> None:
        """Add a tensor that an operator has just made, with its event, unless its storage is there already."""
        if (number := self._add(tensor, None, recomputed=self.recomputing)) is not None:
            self.events.append(self._event(number, self.storages[number].bytes, operator))

    def add_scratch(self, size: int, operator: str, *, number: int = SCRATCH, before: int = 0) -> None:
        """Add the two events of a kernel that allocated `size` bytes for itself and freed them, before the last `before` events."""
        place = len(self.events) - before
        self.events[place:place] = [self._event(number, change, operator) for change in (size, -size)]

    def close(self, saved: set[int]) -> None:
        """Stop counting, and give every storage its category, now that its lifetime is known.

        `saved` are the numbers of the storages that were alive at the end of any forward.
        """
        self._alive.clear()
        freed = {event.storage for event in self.events if event.bytes < 0}
        for number, storage in enumerate(self.storages):
            if storage.category is not None:
                continue
            if storage.phase == "optimizer" and number not in freed:
                storage.category = "optimizer state"
            else:
                storage.category = "activations" if storage.recomputed or number in saved else "temporaries"

    def _event(self, storage: int, change: int, operator: str) -> Event:
        return Event(storage, change, self.phase, operator, self.module, self.recomputing)

    def _add(self, tensor: Tensor, category: str | None, recomputed: bool = False) -> int | None:
        """Number of the storage if it is new; None if it is known, or is not counted."""
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse, or a wrapper without a storage
            return None
        address = storage._cdata
        if address in self._alive or (tensor.device.type == "cpu" and not self._cpu_tensors):
            return None
        number, size = len(self.storages), storage.nbytes()

        def on_free(_) -> None:
            del self._alive[address]
            self.events.append(self._event(number, -size, ""))
            for observer in self._observers:
                observer.storage_freed(number)

        self.storages.append(Storage(tensor, size, category, self.phase, recomputed, self.module))
        self._alive[address] = number, weakref.ref(storage, on_free)
        for observer in self._observers:
            observer.storage_made(number, tensor)
        return number
