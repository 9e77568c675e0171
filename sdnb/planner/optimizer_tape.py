"""The first two steps of an optimizer as a tape of allocations, recorded on the meta device.

Most optimizers treat each parameter apart, and those of one shape alike. Of these one parameter of each shape is recorded, and the rest
of the tape written down from it: a U-Net of 1,680 parameters has 44 shapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..adafactor import STANDS_FOR, Adafactor
from ..memory import CATEGORIES, PHASES, tensors_in
from .tape import Recorder, Steps, Tape

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer

SHARED, LIST = -1, -2
"""In the place of a parameter's: for none in particular; for each of a list."""


def record(optimizer: Optimizer, *, kernels: str, fused: bool) -> list[Steps]:
    """Its first two steps, with gradients for all of its parameters: one `Steps`, or with `fused` one for each parameter.

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
    """For each parameter the number of the first that is stepped as it is."""
    firsts: dict[tuple, int] = {}
    keys = [(number, p.shape, p.dtype) for number, group in enumerate(optimizer.param_groups) for p in group["params"]]
    return [firsts.setdefault(key, place) for place, key in enumerate(keys)]


def _two_steps(optimizer: Optimizer, chosen: Sequence[int], kernels: str) -> Steps:
    """Both steps, of the parameters with the numbers `chosen` alone."""
    with _only(optimizer, chosen) as parameters:
        recorder = Recorder({"optimizer": torch.nn.ParameterList(parameters)}, kernels=kernels)
        return _recorded(optimizer, recorder, kernels)


@contextmanager
def _only(optimizer: Optimizer, chosen: Sequence[int]) -> Iterator[list[Parameter]]:
    """The optimizer with no other parameters, each with a gradient."""
    everything, start, chosen = optimizer.param_groups, 0, set(chosen)
    optimizer.param_groups = []
    for group in everything:
        some = [p for place, p in enumerate(group["params"], start) if place in chosen]
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
        with recorder:
            optimizer.step()
            second = len(recorder._events)
            optimizer.step()
    finally:
        STANDS_FOR.reset(token)
    tape = recorder.tape()
    tape.phases[:] = PHASES.index("optimizer")
    alive = np.bincount(tape.blocks[tape.changes > 0], minlength=len(tape.sizes))
    alive -= np.bincount(tape.blocks[(tape.changes < 0) & (tape.blocks >= 0)], minlength=len(tape.sizes))
    tape.categories[alive > 0] = CATEGORIES.index("optimizer state")
    return Steps(tape, second)


class _Noting(defaultdict):
    """An optimizer's state that tells a recorder whose it was last asked for."""

    def __init__(self, recorder: _Attributing, state: dict) -> None:
        super().__init__(dict, state)
        self._recorder = recorder

    def __getitem__(self, parameter):
        self._recorder.at = self._recorder.places.get(parameter, SHARED)
        return super().__getitem__(parameter)


class _Attributing(Recorder):
    """A recorder that also says for which parameter each block was made."""

    def __init__(self, parameters: list[Parameter], kernels: str) -> None:
        super().__init__({"optimizer": torch.nn.ParameterList(parameters)}, kernels=kernels)
        self.places = {p: place for place, p in enumerate(parameters)}
        self.at = SHARED
        """The place of the parameter whose state was asked for last."""
        self.served: list[int] = []
        """Of each block: the place of its parameter among them, or `SHARED`."""
        self.during: list[tuple[int, int]] = []
        """Of each operator: the number of events there were when it had run, and the place of its parameter."""
        self.mixes = False
        """Whether an operator took several parameters together, other than in lists of one tensor for each."""

    def _open(self) -> None:
        super()._open()
        homes = {t.untyped_storage()._cdata: place for p, place in self.places.items() for t in (p, p.grad)}
        self.served = [homes[key] for key in self._known]  # weights and gradients, in the order of the blocks

    def _saw(self, func, args: tuple, kwargs: dict, out: object) -> None:
        before = len(self._blocks)
        together = "_foreach_" in func._schema.name
        place = LIST if together else self._place_of(args)
        super()._saw(func, args, kwargs, out)
        made = range(before, len(self._blocks))
        self.served += [place] * len(made)
        if together and made:
            whole = isinstance(out, (list, tuple)) and len(out) == len(args[0]) == len(made)
            self.mixes |= not whole
            for number, tensor in zip(made, args[0], strict=False):
                self.served[number] = self._place_of((tensor,))
        self.during.append((len(self._events), place))

    def _place_of(self, args) -> int:
        tensors = [tensor for tensor in tensors_in(args) if tensor.numel() > 1] or list(tensors_in(args))
        found = {self._of_storage(tensor.untyped_storage()._cdata) for tensor in tensors} - {SHARED}
        self.mixes |= len(found) > 1
        if found:
            return min(found)
        return SHARED if any(tensor.numel() > 1 for tensor in tensors) else self.at

    def _of_storage(self, key: int) -> int:
        known = self._known.get(key)
        return SHARED if known is None else self.served[known[0]]

    def place_of_events(self) -> np.ndarray | None:
        """Of each event the place of its parameter; None where one parameter's block goes while the next is at work."""
        blocks = np.array([event[0] for event in self._events], dtype=np.int64)
        ends, places = np.array(self.during, dtype=np.int64).reshape(-1, 2).T
        at = np.searchsorted(ends, np.arange(len(blocks)), side="right")  # the operator that has not ended yet
        working = np.append(places, SHARED)[at]
        served = np.where(blocks >= 0, np.array(self.served, dtype=np.int64)[blocks], working)
        lately = np.concatenate([[SHARED], places])[at]  # the one that ran last
        freed = (blocks >= 0) & (np.array([event[1] for event in self._events]) < 0)
        late = freed & (lately >= 0) & (served >= 0) & (lately != served)
        return None if late.any() else served


def _written_out(optimizer: Optimizer, places: list[int], kernels: str) -> Steps | None:
    """Both steps of all parameters, from those of one of each shape; None where they cannot be told apart.

    In an optimizer that treats each parameter apart, and as well in one that takes lists of them, the tape is made of sweeps: a stretch
    for the first parameter, one for the second, and so on. What is alike in a sweep is repeated in the order of the parameters.
    """
    firsts = sorted(set(places))
    if len(firsts) == len(places):
        return None
    if len(firsts) == 1:  # two are needed to see where a sweep begins
        firsts, places = [0, 1], [0, *[1] * (len(places) - 1)]
    with _only(optimizer, firsts) as parameters:
        recorder = _Attributing(parameters, kernels)
        optimizer.state = _Noting(recorder, optimizer.state)
        try:
            steps = _recorded(optimizer, recorder, kernels)
        finally:
            optimizer.state = defaultdict(dict, optimizer.state)
    served = recorder.place_of_events()
    if recorder.mixes or served is None:
        optimizer.state.clear()
        return None
    tape, like = steps.tape, np.searchsorted(firsts, places)
    around = _filled(served)
    sweeps, backwards = _sweeps(around, recorder.during, steps.second)
    times = np.append(np.bincount(like), 1)  # how many parameters are like each; SHARED is the last
    events = np.repeat(np.arange(len(served)), times[served])
    copies = np.arange(len(events)) - np.repeat(np.cumsum(times[served]) - times[served], times[served])
    members, begin = np.argsort(like, kind="stable"), np.cumsum(times) - times
    parameters = members[begin[around[events]] + copies]
    order = np.lexsort((events, np.where(backwards[events], -parameters, parameters), sweeps[events]))
    events, copies = events[order], copies[order]

    of_block = np.array(recorder.served, dtype=np.int64)
    first = np.cumsum(times[of_block]) - times[of_block]
    blocks = tape.blocks[events]
    sources = np.repeat(np.arange(len(of_block)), times[of_block])
    whole = Tape(
        sizes=tape.sizes[sources],
        categories=tape.categories[sources],
        owners=[tape.owners[number] for number in sources.tolist()],
        base=np.flatnonzero(np.isin(sources, tape.base)),
        blocks=np.where(blocks >= 0, first[blocks] + copies, -1),
        changes=tape.changes[events],
        phases=tape.phases[events],
        names=[tape.names[number] for number in events.tolist()],
    )
    return Steps(whole, int((events < steps.second).sum()))


def _sweeps(served: np.ndarray, during: list[tuple[int, int]], second: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each event the number of its sweep, and whether that goes from the last parameter to the first, as when a list is given up.

    Operators on lists and the second step begin sweeps of their own.
    """
    breaks, before = {second}, 0
    for end, place in during:
        if place == LIST:
            breaks |= {before, end}
        before = end
    sweeps, backwards = np.zeros(len(served), dtype=np.int64), np.zeros(len(served), dtype=bool)
    number, start, direction, last = 0, 0, 0, SHARED
    for event, place in enumerate(served.tolist()):
        turn = (place > last) - (place < last)
        if event in breaks or (turn and direction and turn != direction):
            backwards[start:event] = direction < 0
            number, start, direction = number + 1, event, 0
        elif turn:
            direction = turn
        sweeps[event], last = number, place
    backwards[start:] = direction < 0
    return sweeps, backwards


def _filled(served: np.ndarray) -> np.ndarray:
    """The same, with what is shared given to the parameter before it, or the first."""
    last = np.maximum.accumulate(np.where(served >= 0, np.arange(len(served)), -1))
    return np.where(last >= 0, served[last], 0)
