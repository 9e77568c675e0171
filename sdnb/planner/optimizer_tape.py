"""The first two steps of an optimizer as a tape of allocations, recorded on the meta device.

Most optimizers do the same to every parameter. So one parameter of each shape, its *representative*, is recorded, and its events are
copied for the others: a U-Net of 1,680 parameters has 44 shapes. Say that a and c have one shape, b another, and that SGD makes a
momentum m for each:

    a and b are recorded      +m(a)  +m(b)
    copied for c too          +m(a)  +m(b)  +m(c)

A run of events in which the parameters come in order is a *sweep*. An optimizer with a loop over its parameters steps in one sweep. One
with lists (`foreach=True`) makes a sweep for every operator, and a sweep from the last parameter to the first when Python frees a list.
Here the list holds a temporary t for each:

    a and b are recorded      +t(a)  +t(b)         | -t(b)  -t(a)
    copied for c too          +t(a)  +t(b)  +t(c)  | -t(c)  -t(b)  -t(a)

`_Attribution` finds the parameter that each storage belongs to: the one whose tensors the operator read. Events cannot be copied if an
operator reads tensors of several parameters (Prodigy's sum over all of them), or if a storage is freed during another parameter's turn.
Such an optimizer is recorded with all of its parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..adafactor import META_DEVICE_TYPE, Adafactor
from ..memory import CATEGORIES, PHASES, Ledger, Observer, tensors_in
from .tape import OptimizerSteps, Recorder, Tape

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer

SHARED = -1
"""Stands for a parameter's index: belongs to no parameter in particular."""
LIST = -2
"""Stands for a parameter's index: an operator on lists, with an entry for each parameter."""


def record(optimizer: Optimizer, *, kernels: str, fused: bool, by_group: bool = False) -> list[OptimizerSteps]:
    """Record the first two steps with a gradient for every parameter: one `OptimizerSteps`, or with `fused` one for each parameter, or with
    `by_group` one for each group.

    The optimizer must not have stepped yet; its parameters are on the meta device. `kernels` is `cuda` or `cpu`.
    """
    train_mode = getattr(optimizer, "train", None)
    if callable(train_mode):  # a schedule-free optimizer
        train_mode()
    if by_group:
        all_groups, steps = optimizer.param_groups, []
        for group in all_groups:
            optimizer.param_groups = [group]
            steps += record(optimizer, kernels=kernels, fused=False)
        optimizer.param_groups = all_groups
        return steps
    representatives = _representatives(optimizer)
    if fused:
        by_representative = {index: _record_parameters(optimizer, [index], kernels) for index in dict.fromkeys(representatives)}
        return [by_representative[index] for index in representatives]
    if not isinstance(optimizer, Adafactor):  # which steps the parameters of one shape together
        steps = _record_one_of_each_shape(optimizer, representatives, kernels)
        if steps is not None:
            return [steps]
    return [_record_parameters(optimizer, range(len(representatives)), kernels)]


def _representatives(optimizer: Optimizer) -> list[int]:
    """Index of each parameter's representative: the first parameter with its group, shape and dtype."""
    firsts: dict[tuple, int] = {}
    keys = [(number, p.shape, p.dtype) for number, group in enumerate(optimizer.param_groups) for p in group["params"]]
    return [firsts.setdefault(key, index) for index, key in enumerate(keys)]


def _record_parameters(optimizer: Optimizer, indices: Sequence[int], kernels: str) -> OptimizerSteps:
    """Record both steps with only the parameters of these indices."""
    with _only_parameters(optimizer, indices) as parameters:
        return _record_steps(optimizer, _recorder(parameters, kernels), kernels)


def _recorder(parameters: list[Parameter], kernels: str) -> Recorder:
    return Recorder({"optimizer": torch.nn.ParameterList(parameters)}, kernels=kernels)


@contextmanager
def _only_parameters(optimizer: Optimizer, indices: Sequence[int]) -> Iterator[list[Parameter]]:
    """Leave the optimizer only the parameters of these indices inside this context, each with a gradient. Yields them."""
    all_groups = optimizer.param_groups
    optimizer.param_groups = []
    start = 0
    for group in all_groups:
        selected = [p for index, p in enumerate(group["params"], start) if index in indices]
        start += len(group["params"])
        if selected:
            optimizer.param_groups.append({**group, "params": selected})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        p.grad = torch.empty_like(p)
    try:
        yield parameters
    finally:
        for p in parameters:
            p.grad = None
        optimizer.param_groups = all_groups


def _record_steps(optimizer: Optimizer, recorder: Recorder, kernels: str) -> OptimizerSteps:
    token = META_DEVICE_TYPE.set(kernels)
    try:
        with recorder.recording():
            optimizer.step()
            second = len(recorder.ledger.events)
            optimizer.step()
    finally:
        META_DEVICE_TYPE.reset(token)
    tape = recorder.tape()
    tape.phases[:] = PHASES.index("optimizer")
    alive = np.zeros(len(tape.sizes), dtype=np.int64)
    np.add.at(alive, tape.storages[tape.storages >= 0], np.sign(tape.changes[tape.storages >= 0]))
    tape.categories[alive > 0] = CATEGORIES.index("optimizer state")
    return OptimizerSteps(tape, second)


class _Attribution(Observer):
    """Parameter that each storage of a recording belongs to. Parameters go by their index among the recorded ones."""

    def __init__(self, ledger: Ledger, parameters: list[Parameter]) -> None:
        self.ledger = ledger
        self.indices = {p: index for index, p in enumerate(parameters)}
        self.parameter_of: list[int] = []
        """Parameter of each storage, or `SHARED`."""
        self.scratch_of: dict[int, int] = {}
        """Parameter of each event of a kernel's scratch memory."""
        self.sweep_starts: set[int] = set()
        """Events with which an operator on lists begins or ends."""
        self.inseparable = False
        """Whether an event was met that cannot be copied for each parameter."""
        self.state_read = SHARED
        """Parameter whose state the optimizer read last; operators on scalars alone count as its own."""
        self._own_storages = {t.untyped_storage()._cdata: i for p, i in self.indices.items() for t in (p, p.grad) if t is not None}
        self._new_storages: list[int] = []
        """Storages made since the last operator."""
        self._last_parameter = SHARED
        self._last_end = 0
        """Event with which the last operator ended."""

    def storage_made(self, storage: int, tensor: Tensor) -> None:
        index = self._own_storages.pop(tensor.untyped_storage()._cdata, None)
        self.parameter_of.append(SHARED if index is None else index)
        if index is None:
            self._new_storages.append(storage)

    def storage_freed(self, storage: int) -> None:
        index = self.parameter_of[storage]
        self.inseparable |= self._last_parameter >= 0 and index >= 0 and self._last_parameter != index

    def operator_ran(self, func, args: tuple, kwargs: dict, out: Any) -> None:
        end = len(self.ledger.events)
        if "_foreach_" in func._schema.name:
            index = LIST
            one_result_each = isinstance(out, (list, tuple)) and len(out) == len(args[0]) == len(self._new_storages)
            self.inseparable |= bool(self._new_storages) and not one_result_each
            self.sweep_starts |= {self._last_end, end}
            for storage, tensor in zip(self._new_storages, args[0], strict=False):
                self.parameter_of[storage] = self._parameter_read((tensor,))
        else:
            index = self._parameter_read(args)
            for storage in self._new_storages:
                self.parameter_of[storage] = index
        scratch = [event for event in range(self._last_end, end) if self.ledger.events[event].storage < 0]
        self.scratch_of |= dict.fromkeys(scratch, index)
        self._new_storages.clear()
        self._last_parameter, self._last_end = index, end

    def _parameter_read(self, args: tuple) -> int:
        """Parameter whose tensors an operator reads; scalars count only where there is no larger tensor."""
        tensors = list(tensors_in(args))
        large = [tensor for tensor in tensors if tensor.numel() > 1]
        storages = [self.ledger.number(tensor) for tensor in large or tensors]
        indices = {self.parameter_of[storage] for storage in storages if storage is not None} - {SHARED}
        self.inseparable |= len(indices) > 1
        return min(indices) if indices else SHARED if large else self.state_read


class _WatchedState(defaultdict):
    """An optimizer's state that reports to an `_Attribution` which parameter's state is read."""

    def __init__(self, attribution: _Attribution, state: dict) -> None:
        super().__init__(dict, state)
        self._attribution = attribution

    def __getitem__(self, parameter):
        self._attribution.state_read = self._attribution.indices.get(parameter, SHARED)
        return super().__getitem__(parameter)


def _record_one_of_each_shape(optimizer: Optimizer, representatives: list[int], kernels: str) -> OptimizerSteps | None:
    """Record both steps with the representatives alone, and copy their events for all parameters; None where that is impossible."""
    recorded = sorted(set(representatives))
    if len(recorded) == len(representatives):
        return None
    if len(recorded) == 1:  # two are needed to see where a sweep begins
        recorded = [0, 1]
        representatives = [0, *[1] * (len(representatives) - 1)]
    with _only_parameters(optimizer, recorded) as parameters:
        recorder = _recorder(parameters, kernels)
        attribution = _Attribution(recorder.ledger, parameters)
        recorder.trace.observe(attribution)
        optimizer.state = _WatchedState(attribution, optimizer.state)
        try:
            steps = _record_steps(optimizer, recorder, kernels)
        finally:
            optimizer.state = defaultdict(dict, optimizer.state)
    tape, parameter_of = steps.tape, np.array(attribution.parameter_of, dtype=np.int64)
    owner_of_event = parameter_of[np.maximum(tape.storages, SHARED)]
    for event, index in attribution.scratch_of.items():
        owner_of_event[event] = index
    if attribution.inseparable or LIST in attribution.scratch_of.values():
        optimizer.state.clear()
        return None
    like = np.searchsorted(recorded, representatives).tolist()
    events, copies = _copy_events(owner_of_event.tolist(), like, attribution.sweep_starts | {steps.second})
    storages = tape.storages[events]
    copy_counts = np.append(np.bincount(like), 1)[parameter_of]  # copies of each storage; the last entry, index -1, is for SHARED
    sources = np.repeat(np.arange(len(parameter_of)), copy_counts)
    whole = Tape(
        sizes=tape.sizes[sources],
        categories=tape.categories[sources],
        owners=[tape.owners[number] for number in sources.tolist()],
        base=np.flatnonzero(np.isin(sources, tape.base)),
        storages=np.where(storages < 0, storages, (np.cumsum(copy_counts) - copy_counts)[np.maximum(storages, 0)] + copies),
        changes=tape.changes[events],
        phases=tape.phases[events],
        names=[tape.names[number] for number in events.tolist()],
    )
    return OptimizerSteps(whole, int((events < steps.second).sum()))


def _copy_events(parameter_of: list[int], like: list[int], sweep_starts: set[int]) -> tuple[np.ndarray, np.ndarray]:
    """Order of the events for all parameters: the recorded event, (n), and for which of its copies it stands, (n).

    - `parameter_of`: recorded parameter of each recorded event, or `SHARED`
    - `like`: for every parameter, the recorded one that it is a copy of
    - `sweep_starts`: events that begin a sweep

    A `SHARED` event is not copied: it occurs once, with the parameter before it.

    The second example above: events 0 and 1 make t(a) and t(b), 2 and 3 free t(b) and t(a); c is like a. In the result c comes after
    b, and first when the list is freed. It is copy 1 of a, and a itself is copy 0:

    >>> events, copies = _copy_events([0, 1, 1, 0], like=[0, 1, 0], sweep_starts={2})
    >>> events.tolist(), copies.tolist()
    ([0, 1, 0, 3, 2, 3], [0, 0, 1, 1, 0, 0])
    """
    turns, turn = [], 0  # the parameter whose turn it is at each event
    for index in parameter_of:
        turn = turn if index == SHARED else index
        turns.append(turn)
    order, copy_counts = [], [0] * (max(like) + 1)
    for index in like:
        order.append((index, copy_counts[index]))
        copy_counts[index] += 1
    events, copies = [], []
    for start, stop, backwards in _sweeps(turns, sweep_starts):
        all_events, copied_events = defaultdict(list), defaultdict(list)  # of each parameter in this sweep
        for event in range(start, stop):
            all_events[turns[event]].append(event)
            if parameter_of[event] != SHARED:
                copied_events[turns[event]].append(event)
        for index, copy in reversed(order) if backwards else order:
            own_events = (copied_events if copy else all_events)[index]
            events += own_events
            copies += [copy] * len(own_events)
    return np.array(events, dtype=np.int64), np.array(copies, dtype=np.int64)


def _sweeps(turns: list[int], sweep_starts: set[int]) -> Iterator[tuple[int, int, bool]]:
    """Yield each sweep: first event, end, and whether it goes from the last parameter to the first.

    A sweep ends at an event in `sweep_starts`, and where the order of the parameters turns round.

    >>> list(_sweeps([0, 1, 1, 0], sweep_starts={2}))
    [(0, 2, False), (2, 4, True)]
    """
    start = direction = 0
    for event, (previous, index) in enumerate(pairwise(turns), 1):
        step = (index > previous) - (index < previous)
        if event in sweep_starts or step * direction < 0:
            yield start, event, direction < 0
            start, direction = event, 0
        elif step:
            direction = step
    yield start, len(turns), direction < 0
