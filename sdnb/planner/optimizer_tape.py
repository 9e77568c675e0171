"""The first two steps of an optimizer as a tape of allocations, recorded on the meta device.

Most optimizers do the same to every parameter, so one parameter of each shape is recorded and the tape of all is written out from that:
a U-Net of 1,680 parameters has 44 shapes. Say that a and c are of one shape, b of another, and that SGD makes a momentum for each:

    a and b are recorded      +m(a)  +m(b)
    written out for c too     +m(a)  +m(b)  +m(c)

Such a stretch, in which the parameters come in their order, is a *sweep*. An optimizer with a loop over its parameters steps in one
sweep. One with lists (`foreach=True`) makes a sweep of every operator, and a sweep from the last parameter to the first when Python
frees a list. Here the list holds a temporary t for each:

    a and b are recorded      +t(a)  +t(b)         | -t(b)  -t(a)
    written out for c too     +t(a)  +t(b)  +t(c)  | -t(c)  -t(b)  -t(a)

`_Attribution` says whose each block is: that of the parameter whose tensors the operator read. An operator that reads those of several
parameters (Prodigy's sum over all of them), or a block that goes while another parameter has its turn, cannot be written out. Such an
optimizer is recorded with all of its parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..adafactor import STANDS_FOR, Adafactor
from ..memory import CATEGORIES, PHASES, Ledger, Observer, tensors_in
from .tape import Recorder, Steps, Tape

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer

SHARED, LIST = -1, -2
"""In the place of a parameter's number: of none in particular; one of each parameter in a list."""


def record(optimizer: Optimizer, *, kernels: str, fused: bool) -> list[Steps]:
    """The first two steps with a gradient for every parameter: one `Steps`, or with `fused` one for each parameter.

    The optimizer must not have stepped yet; its parameters are on the meta device. `kernels` is `cuda` or `cpu`.
    """
    mode = getattr(optimizer, "train", None)
    if callable(mode):  # the schedule-free ones
        mode()
    places = _places(optimizer)
    if fused:
        known = {first: _two_steps(optimizer, [first], kernels) for first in dict.fromkeys(places)}
        return [known[first] for first in places]
    if not isinstance(optimizer, Adafactor) and (steps := _written_out(optimizer, places, kernels)) is not None:
        return [steps]  # ours steps those of one shape together
    return [_two_steps(optimizer, range(len(places)), kernels)]


def _places(optimizer: Optimizer) -> list[int]:
    """For each parameter the number of the first one with its group, shape and dtype."""
    firsts: dict[tuple, int] = {}
    keys = [(number, p.shape, p.dtype) for number, group in enumerate(optimizer.param_groups) for p in group["params"]]
    return [firsts.setdefault(key, place) for place, key in enumerate(keys)]


def _two_steps(optimizer: Optimizer, chosen: Sequence[int], kernels: str) -> Steps:
    """Both steps, of the parameters with the numbers `chosen` alone."""
    with _only(optimizer, chosen) as parameters:
        return _recorded(optimizer, _recorder(parameters, kernels), kernels)


def _recorder(parameters: list[Parameter], kernels: str) -> Recorder:
    return Recorder({"optimizer": torch.nn.ParameterList(parameters)}, kernels=kernels)


@contextmanager
def _only(optimizer: Optimizer, chosen: Sequence[int]) -> Iterator[list[Parameter]]:
    """The optimizer with no other parameters, each with a gradient."""
    everything, start, wanted = optimizer.param_groups, 0, set(chosen)
    optimizer.param_groups = []
    for group in everything:
        some = [p for place, p in enumerate(group["params"], start) if place in wanted]
        start += len(group["params"])
        if some:
            optimizer.param_groups.append({**group, "params": some})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        p.grad = torch.empty_like(p)
    try:
        yield parameters
    finally:
        for p in parameters:
            p.grad = None
        optimizer.param_groups = everything


def _recorded(optimizer: Optimizer, recorder: Recorder, kernels: str) -> Steps:
    token = STANDS_FOR.set(kernels)
    try:
        with recorder.recording():
            optimizer.step()
            second = len(recorder.ledger.events)
            optimizer.step()
    finally:
        STANDS_FOR.reset(token)
    tape = recorder.tape()
    tape.phases[:] = PHASES.index("optimizer")
    alive = np.bincount(tape.blocks[tape.changes > 0], minlength=len(tape.sizes))
    alive -= np.bincount(tape.blocks[(tape.changes < 0) & (tape.blocks >= 0)], minlength=len(tape.sizes))
    tape.categories[alive > 0] = CATEGORIES.index("optimizer state")
    return Steps(tape, second)


class _Attribution(Observer):
    """For which parameter each block of a recording was made, by the parameter's place among those that are recorded."""

    def __init__(self, ledger: Ledger, parameters: list[Parameter]) -> None:
        self.ledger = ledger
        self.places = {p: place for place, p in enumerate(parameters)}
        self.served: list[int] = []
        """Of each block the place of its parameter, or `SHARED`."""
        self.breaks: set[int] = set()
        """Events with which an operator on lists begins or ends."""
        self.mixes = False
        """Whether something was met that cannot be written out for each parameter apart."""
        self.asked = SHARED
        """The parameter whose state the optimizer asked for last: what it does with single numbers is for that one."""
        self._given = {t.untyped_storage()._cdata: place for p, place in self.places.items() for t in (p, p.grad) if t is not None}
        self._new: list[int] = []  # blocks since the last operator
        self._last, self._end = SHARED, 0  # parameter and end of the last operator

    def made(self, block: int, tensor: Tensor) -> None:
        place = self._given.pop(tensor.untyped_storage()._cdata, None)
        self.served.append(SHARED if place is None else place)
        if place is None:
            self._new.append(block)

    def freed(self, block: int) -> None:
        self.mixes |= self._last >= 0 and self.served[block] >= 0 and self._last != self.served[block]

    def ran(self, func, args: tuple, kwargs: dict, out: Any) -> None:
        end = len(self.ledger.events)
        if "_foreach_" in func._schema.name:
            place, lists = LIST, isinstance(out, (list, tuple))
            self.mixes |= bool(self._new) and not (lists and len(out) == len(args[0]) == len(self._new))
            self.breaks |= {self._end, end}
            for number, tensor in zip(self._new, args[0], strict=False):
                self.served[number] = self._place_of((tensor,))
        else:
            place = self._place_of(args)
            for number in self._new:
                self.served[number] = place
        self._new.clear()
        self._last, self._end = place, end

    def _place_of(self, args: tuple) -> int:
        """The parameter whose tensors an operator reads; single numbers count only where there is nothing larger."""
        tensors = list(tensors_in(args))
        large = [tensor for tensor in tensors if tensor.numel() > 1]
        numbers = [self.ledger.number(tensor) for tensor in large or tensors]
        places = {self.served[number] for number in numbers if number is not None} - {SHARED}
        self.mixes |= len(places) > 1
        return min(places) if places else SHARED if large else self.asked


class _NotedState(defaultdict):
    """An optimizer's state that tells an `_Attribution` whose it was last asked for."""

    def __init__(self, attribution: _Attribution, state: dict) -> None:
        super().__init__(dict, state)
        self._attribution = attribution

    def __getitem__(self, parameter):
        self._attribution.asked = self._attribution.places.get(parameter, SHARED)
        return super().__getitem__(parameter)


def _written_out(optimizer: Optimizer, places: list[int], kernels: str) -> Steps | None:
    """Both steps of all parameters, from those of one of each shape; None where the parameters cannot be told apart."""
    firsts = sorted(set(places))
    if len(firsts) == len(places):
        return None
    if len(firsts) == 1:  # two are needed to see where a sweep begins
        firsts, places = [0, 1], [0, *[1] * (len(places) - 1)]
    with _only(optimizer, firsts) as parameters:
        recorder = _recorder(parameters, kernels)
        attribution = _Attribution(recorder.ledger, parameters)
        recorder.trace.observe(attribution)
        optimizer.state = _NotedState(attribution, optimizer.state)
        try:
            steps = _recorded(optimizer, recorder, kernels)
        finally:
            optimizer.state = defaultdict(dict, optimizer.state)
    tape, served = steps.tape, np.array(attribution.served, dtype=np.int64)
    if attribution.mixes or (tape.blocks < 0).any():  # nor does any optimizer run a kernel with scratch of its own
        optimizer.state.clear()
        return None
    like = np.searchsorted(firsts, places).tolist()
    events, copies = _repeated(served[tape.blocks].tolist(), like, attribution.breaks | {steps.second})
    times = np.append(np.bincount(like), 1)[served]  # how many copies of each block there are; of what is SHARED, -1, one
    sources = np.repeat(np.arange(len(served)), times)
    whole = Tape(
        sizes=tape.sizes[sources],
        categories=tape.categories[sources],
        owners=[tape.owners[number] for number in sources.tolist()],
        base=np.flatnonzero(np.isin(sources, tape.base)),
        blocks=(np.cumsum(times) - times)[tape.blocks[events]] + copies,
        changes=tape.changes[events],
        phases=tape.phases[events],
        names=[tape.names[number] for number in events.tolist()],
    )
    return Steps(whole, int((events < steps.second).sum()))


def _repeated(served: list[int], like: list[int], breaks: set[int]) -> tuple[np.ndarray, np.ndarray]:
    """The order of events for all parameters: which recorded event comes, (n), and for which of the parameters like its own, (n).

    `served` has the recorded parameter of each event, `like` for every parameter the recorded one that it is like, and `breaks` are
    events that begin a sweep. Of what is `SHARED` there is one, beside the parameter before it.

    The second example above: events 0 and 1 make t(a) and t(b), 2 and 3 free t(b) and t(a); c is like a. In the result c comes after
    b, and first when the list is freed, with a 1 as the second that is like a:

    >>> events, copies = _repeated([0, 1, 1, 0], like=[0, 1, 0], breaks={2})
    >>> events.tolist(), copies.tolist()
    ([0, 1, 0, 3, 2, 3], [0, 0, 1, 1, 0, 0])
    """
    turns, turn = [], 0  # whose turn it is at each event
    for place in served:
        turn = turn if place == SHARED else place
        turns.append(turn)
    order, copies_of = [], [0] * (max(like) + 1)
    for place in like:
        order.append((place, copies_of[place]))
        copies_of[place] += 1
    events, copies = [], []
    for start, stop, backwards in _sweeps(turns, breaks):
        once, again = defaultdict(list), defaultdict(list)
        for event in range(start, stop):
            once[turns[event]].append(event)
            if served[event] != SHARED:
                again[turns[event]].append(event)
        for place, copy in reversed(order) if backwards else order:
            mine = (again if copy else once)[place]
            events += mine
            copies += [copy] * len(mine)
    return np.array(events, dtype=np.int64), np.array(copies, dtype=np.int64)


def _sweeps(turns: list[int], breaks: set[int]) -> Iterator[tuple[int, int, bool]]:
    """First event, end, and whether it goes from the last parameter to the first, of each sweep.

    >>> list(_sweeps([0, 1, 1, 0], breaks={2}))
    [(0, 2, False), (2, 4, True)]
    """
    start = direction = 0
    for event, (before, place) in enumerate(pairwise(turns), 1):
        turn = (place > before) - (place < before)
        if event in breaks or turn * direction < 0:
            yield start, event, direction < 0
            start, direction = event, 0
        elif turn:
            direction = turn
    yield start, len(turns), direction < 0
