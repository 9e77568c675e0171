"""The survey of a model, and its chain of plans from keeping everything to recomputing as much as helps.

The results in a block take about as many bytes each, but not as long to recompute: a convolution takes many FLOPs, a norm or an
activation hardly any. So there are better choices than all or nothing, and this module finds them.

**One run is measured.** `Survey` runs one forward and backward on the meta device. For each block it records the operators with their
FLOPs and storages, what the block saves for backward, when its forward ran and when backward reached it.

**The peak of any plan is then a sum.** `PeakModel` cuts time into intervals wherever a block begins or ends. The bytes alive in an
interval are a constant plus what the *waiting* blocks hold, those whose forward has run and whose backward has not begun. Recomputing
changes only the second part. Take 10 MiB of weights and two blocks A and B that save 8 and 6 MiB; backward takes 2 MiB more:

    interval            constant          waiting    nothing recomputed    A recomputed    A and B
    forward of A        10 + 8            -                          18              18         18
    forward of B        10 + 6            A                          24              16         16
    B is run again      10 + 6            A                           -               -         16
    backward of B       10 + 6 + 2        A                          26              18         18
    A is run again      10 + 8            -                           -              18         18
    backward of A       10 + 8 + 2        -                          20              20         20
    peak                                                             26              20         20

Recomputing A lowers the peak from 26 to 20 MiB. Recomputing B too would gain nothing: at 20 MiB no block waits.

**The chain gives up one result at a time.** It starts with everything kept. Each step takes the change with the fewest FLOPs per byte
freed: start to recompute a block but keep the results of all its counted operators, or give up one of these results. It ends when no
block can give up any more of what is alive at the peak. Each plan recomputes all that the one before does, so a smaller budget never ends
at a higher peak. `choices.solve` takes the first plan below the budget and traces it with `verify`, since the sum is an estimate.

**A block need not run again as a whole.** `_BlockTrace.recompute_cost` goes back through the operators, from the tensors that backward
needs to what they are made from, and stops at what is kept. In `conv1, norm, silu, conv2` backward needs x and the results of conv1 and
silu. If conv1's is kept, norm and silu run again; conv2 does not in any case.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..memory import MemoryTrace, Observer, operators, tensors_in
from .recompute import BlockPlan, RecomputedForward, find_blocks, on_meta, requires_grad

if TYPE_CHECKING:
    from torch.nn import Module


RecomputePlan = dict[str, BlockPlan]
"""Plan of each recomputed block, by the block's name."""


@dataclass(frozen=True)
class Operator:
    """One counted operator of a block: a matrix product, a convolution or an attention."""

    kind: str
    """Kind, one of `operators.KINDS`."""
    flops: int
    """FLOPs of running it again."""
    bytes: int
    """Bytes of its result."""


@dataclass(frozen=True)
class Block:
    """One block that can be recomputed, as measured for the inputs at hand."""

    name: str
    """Name of the module in its model."""
    kind: str
    """Name of the module's class."""
    saved_bytes: int
    """Bytes that the block's forward leaves alive for backward, without its inputs and its output."""
    recompute_flops: int
    """FLOPs of running the block again as far as backward needs it."""
    operators: tuple[Operator, ...] = field(repr=False)
    """Counted operators, in the order in which they run."""


@dataclass(frozen=True)
class Point:
    """Plan for a model, with its peak and its FLOPs."""

    choice: RecomputePlan = field(repr=False)
    """Plan of each recomputed block, by its name."""
    peak_bytes: int
    """Most bytes alive at once in one forward and backward, weights included."""
    saved_bytes: int
    """Bytes of activations alive between forward and backward."""
    flops_ratio: float
    """FLOPs of forward and backward, divided by those without recomputing."""


@dataclass(frozen=True)
class Cost:
    """Bytes and FLOPs of one forward and backward, as in `Point`."""

    peak_bytes: int
    saved_bytes: int
    flops: int


@dataclass(frozen=True)
class PeakModel:
    """Most bytes alive in each of the `m` intervals of one forward and backward of `k` blocks.

    Three intervals of the table above, forward of A, forward of B and backward of B. First nothing is recomputed, then A:

    >>> model = PeakModel(np.array([18, 16, 18]), np.array([[0, 0], [1, 0], [1, 0]]), np.array([-1, -1, -1]))
    >>> model.peak(np.array([8, 6]), np.array([False, False]))
    (26, 2)
    >>> model.peak(np.array([0, 6]), np.array([True, False]))
    (18, 0)
    """

    constant: np.ndarray
    """Bytes that no plan changes, (m)."""
    waiting: np.ndarray
    """1 for each block that waits between its forward and its backward, else 0, (m, k)."""
    recomputes: np.ndarray
    """Block that runs again in the interval, which exists only if that block is recomputed; -1 for the other intervals, (m)."""

    def peak(self, held: np.ndarray, recomputed: np.ndarray) -> tuple[int, int]:
        """Peak in bytes, and the interval it is in.

        - `held`: bytes that each block holds while it waits, (k)
        - `recomputed`: which blocks are recomputed, (k)
        """
        peaks = self.constant + self.waiting @ held
        peaks[(self.recomputes >= 0) & ~recomputed[self.recomputes]] = 0
        return int(peaks.max()), int(peaks.argmax())


@dataclass(frozen=True)
class _OperatorCall:
    """One operator as it ran in a block's forward."""

    kind: str | None
    """Kind, one of `operators.KINDS`; None for an operator that is not counted."""
    flops: int
    reads: set[int]
    """Numbers of the storages that it read."""
    writes: set[int]
    """Numbers of the storages that hold its results."""


class _BlockTrace:
    """Record of one block's forward. Storages and events go by their numbers in the ledger."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.calls: list[_OperatorCall] = []
        self.saved: set[int] = set()
        """Storages that the block saved for backward."""
        self.outputs: set[int] = set()
        """Storages that the block returned."""
        self.requires_grad: tuple[bool, ...] = ()
        self.recomputed_calls = 0
        """Number of calls after which recomputing stops: all tensors that backward needs exist by then."""
        self.forward_events = range(0)
        """Events during the block's forward."""
        self.forward_storages = range(0)
        """Storages that were made in the block's forward."""
        self.backward_event: int | None = None
        """Event with which backward reaches the block; None if it never does."""

    def waits(self, event: int, last: int) -> bool:
        """Whether at `event` the block's forward has ended and its backward has not begun; `last` is the number of events."""
        return self.forward_events.stop <= event < (last if self.backward_event is None else self.backward_event)

    @property
    def counted_calls(self) -> list[_OperatorCall]:
        return [call for call in self.calls if call.kind]

    def plan(self, keep: frozenset[int], skip: frozenset[int]) -> BlockPlan:
        """Plan that keeps and skips the results of the counted operators with these indices."""
        if not keep and not skip:
            return BlockPlan()
        return BlockPlan(keep, skip, tuple(str(call.kind) for call in self.counted_calls), self.requires_grad)

    def recompute_cost(self, keep: frozenset[int], skipping: bool = True) -> tuple[int, frozenset[int]]:
        """FLOPs of recomputing when the results with the indices `keep` are kept, and the indices of operators that can be skipped.

        An operator is needed if backward needs something that is made from its result. torch runs the others too, up to the last tensor
        that is needed, unless they are skipped.
        """
        flops, skip = 0, set()
        needed = set(self.saved)  # storages that backward needs, or that a needed operator reads
        calls = self.calls[: self.recomputed_calls]
        index = sum(1 for call in calls if call.kind)
        for call in reversed(calls):
            is_needed = not needed.isdisjoint(call.writes)
            if call.kind:
                index -= 1
                if index in keep:
                    continue
                if not is_needed and skipping:
                    skip.add(index)
                    continue
                flops += call.flops
            if is_needed or not skipping:
                needed |= call.reads
        return flops, frozenset(skip)


class _TracedForward:
    """Replacement for a block's `forward` that reports to the survey where it begins and ends, and what it saves."""

    def __init__(self, block: Module, trace: _BlockTrace, survey: Survey) -> None:
        self.block, self.trace, self.survey = block, trace, survey
        self.forward = block.forward

    def __call__(self, *args, **kwargs):
        self.trace.requires_grad = requires_grad(self.block, args, kwargs)
        with saved_tensors_hooks(self.survey.tensor_saved, lambda tensor: tensor):
            self.survey.block_begins(self.trace)
            out = self.forward(*args, **kwargs)
            self.survey.block_ended(self.trace, out)
        return out


class Survey(Observer):
    """One forward and backward of a model on the meta device, block by block. Raises `ValueError` for a model without blocks."""

    def __init__(self, model: Module, inputs: dict, *, fused_backward_pass: bool = False) -> None:
        twin = on_meta(model)
        blocks = find_blocks(twin, inputs)
        if not blocks:
            raise ValueError(
                f"{type(model).__name__} has no block that can be recomputed: diffusers and transformers mark none in it. "
                "Wrap its parts with torch.utils.checkpoint yourself"
            )
        self.flops = 0
        self._running: _BlockTrace | None = None
        self._traces = [_BlockTrace(name, type(block).__name__) for name, block in blocks.items()]
        for block, trace in zip(blocks.values(), self._traces, strict=True):
            block.forward = _TracedForward(block, trace, self)
        memory = MemoryTrace(twin, kernels=_kernels(model))
        memory.observe(self)
        self._ledger = memory.ledger
        with memory:
            forward_and_backward(twin, inputs, fused_backward_pass)
        self.peak_bytes, self.saved_bytes = memory.peak_bytes, memory.saved_bytes
        base = set(self._ledger.base)
        self._held = [memory.saved & set(trace.forward_storages) - trace.outputs - base for trace in self._traces]
        """Storages that each block leaves alive for backward, without its inputs and its output."""
        elsewhere = [self._ledger.storages[number] for number in memory.saved.difference(*self._held)]
        self._saved_elsewhere = sum(storage.bytes for storage in elsewhere if storage.category == "activations")
        self.peaks = self._peak_model()
        self.blocks = self._blocks()
        self._saved = np.array([block.saved_bytes for block in self.blocks], dtype=float)

    # called by the blocks and the memory trace

    def block_begins(self, trace: _BlockTrace) -> None:
        """Note where a block's forward begins."""
        self._running = trace
        trace.forward_events = range(len(self._ledger.events), 0)
        trace.forward_storages = range(len(self._ledger.storages), 0)

    def block_ended(self, trace: _BlockTrace, out: object) -> None:
        """Note where a block's forward ended; `out` is whatever it returned."""
        self._running = None
        trace.forward_events = range(trace.forward_events.start, len(self._ledger.events))
        trace.forward_storages = range(trace.forward_storages.start, len(self._ledger.storages))

        def note_backward(_) -> None:
            if trace.backward_event is None:
                trace.backward_event = len(self._ledger.events)

        for tensor in tensors_in(out):
            trace.outputs.add(self._ledger.number(tensor))
            if tensor.requires_grad:
                tensor.register_hook(note_backward)  # called with the tensor's gradient, when backward reaches the block

    def tensor_saved(self, tensor: Tensor) -> Tensor:
        """Note that the running block saves a tensor, of any shape, for backward; returns it unchanged."""
        if self._running is not None:
            self._running.saved.add(self._ledger.number(tensor))
            self._running.recomputed_calls = len(self._running.calls)
        return tensor

    def operator_ran(self, func, args: tuple, kwargs: dict, out: object) -> None:
        flops = operators.flops(func, args, kwargs, out)
        self.flops += flops
        if self._running is not None and self._ledger.phase == "forward":
            reads = {self._ledger.number(tensor) for tensor in tensors_in((args, kwargs))}
            writes = {self._ledger.number(tensor) for tensor in tensors_in(out)}
            self._running.calls.append(_OperatorCall(operators.kind(func), flops, reads, writes))

    # computed from the trace

    def _bytes_alive(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes alive after each of the `e` events: those that no block holds, (e), and those that each of the `k` blocks holds, (k, e)."""
        events, storages = self._ledger.events, self._ledger.storages
        holder = np.full(len(storages) + 1, -1)  # the last entry is for scratch, whose number is -1
        for block, held in enumerate(self._held):
            holder[list(held)] = block
        holders = holder[[event.storage for event in events]]
        changes = np.array([event.bytes for event in events])
        curves = [np.cumsum(np.where(holders == block, changes, 0)) for block in range(-1, len(self._traces))]
        return curves[0] + sum(storages[number].bytes for number in self._ledger.base), np.array(curves[1:])

    def _peak_model(self) -> PeakModel:
        """Peak model of the run. Intervals end where a forward begins or ends or a backward begins; each second run has one."""
        others, own = self._bytes_alive()
        last, traces = len(others), self._traces
        edges = {edge for trace in traces for edge in (trace.forward_events.start, trace.forward_events.stop, trace.backward_event)}
        intervals = []
        for start, stop in itertools.pairwise(sorted({0, last, *edges} - {None})):
            running = [start in t.forward_events or (t.backward_event is not None and t.backward_event <= start) for t in traces]
            alive = others[start:stop] + own[running, start:stop].sum(axis=0)
            intervals.append((alive.max(), [trace.waits(start, last) for trace in traces], -1))
        for block, trace in enumerate(traces):
            if not trace.forward_events or trace.backward_event in (None, last):
                continue
            begin, end, backward = trace.forward_events.start, trace.forward_events.stop, trace.backward_event
            before_forward, before_backward = (others[event - 1 if event else 0] for event in (begin, backward))
            added = (others[begin:end] + own[block, begin:end]).max() - before_forward  # the second run adds as much as the first
            waiting = [other.waits(backward, last) and other is not trace for other in traces]
            intervals.append((before_backward + added, waiting, block))
        constant, waiting, recomputes = zip(*intervals, strict=True)
        return PeakModel(np.array(constant), np.array(waiting, dtype=float), np.array(recomputes))

    def _blocks(self) -> list[Block]:
        """Blocks as `choices.blocks` lists them."""
        storages, blocks = self._ledger.storages, []
        for trace, held in zip(self._traces, self._held, strict=True):
            counted = []
            for call in trace.counted_calls:
                size = sum(storages[number].bytes for number in call.writes - trace.outputs - call.reads)
                counted.append(Operator(str(call.kind), call.flops, size))
            flops, _ = trace.recompute_cost(frozenset())
            blocks.append(Block(trace.name, trace.kind, sum(storages[number].bytes for number in held), flops, tuple(counted)))
        return blocks

    def policy(self, kinds: frozenset[str]) -> RecomputePlan:
        """Plan that recomputes every block but keeps the results of these kinds of operators, where that saves running any of them."""
        plan = {}
        for block, trace in zip(self.blocks, self._traces, strict=True):
            keep = frozenset(index for index, operator in enumerate(block.operators) if operator.kind in kinds)
            for index in sorted(keep, reverse=True):
                if trace.recompute_cost(keep - {index})[0] == trace.recompute_cost(keep)[0]:
                    keep -= {index}
            plan[block.name] = trace.plan(keep, trace.recompute_cost(keep)[1])
        return plan

    def chain(self, *, operators_too: bool = True) -> list[Point]:
        """Points from keeping everything to the smallest peak; each step frees bytes for the fewest FLOPs per byte.

        Without `operators_too` a block is recomputed whole or not at all.
        """
        held = self._saved.copy()  # (k) bytes that each block holds while it waits
        recompute_flops = 0
        current: list[_Option | None] = [None] * len(self.blocks)  # None: not recomputed
        following = [_first_option(block, trace, operators_too) for block, trace in zip(self.blocks, self._traces, strict=True)]
        points = []
        while True:
            peak, interval = self.peaks.peak(held, np.array([option is not None for option in current]))
            recomputed = [(trace, option) for trace, option in zip(self._traces, current, strict=True) if option]
            plan = {trace.name: trace.plan(option.keep, option.skip) for trace, option in recomputed}
            points.append(Point(plan, peak, int(self._saved_elsewhere + held.sum()), 1 + recompute_flops / self.flops))
            waiting = self.peaks.waiting[interval]
            if not any(following[block] for block in np.flatnonzero(waiting)):
                return points  # no block holds anything at the peak that it could give up

            block, option = _cheapest_step(current, following, held, waiting)
            recompute_flops += option.flops - _flops(current[block])
            current[block] = option
            held[block] = option.held_bytes
            following[block] = _next_option(self.blocks[block], self._traces[block], option)


@dataclass(frozen=True)
class _Option:
    """Option for recomputing a block."""

    keep: frozenset[int]
    """Indices of the counted operators whose results it keeps."""
    skip: frozenset[int]
    """Indices of the counted operators that it skips."""
    held_bytes: int
    """Bytes that the block then holds between forward and backward."""
    flops: int
    """FLOPs of running the block again."""


def _flops(option: _Option | None) -> int:
    return option.flops if option else 0


def _cheapest_step(
    current: list[_Option | None], following: list[_Option | None], held: np.ndarray, waiting: np.ndarray
) -> tuple[int, _Option]:
    """Block whose following option frees bytes for the fewest FLOPs per byte, and that option. Arguments as in `Survey.chain`."""

    def rank(step: tuple[int, _Option]) -> tuple:
        block, option = step
        freed_bytes = held[block] - option.held_bytes
        flops_per_byte = (option.flops - _flops(current[block])) / freed_bytes
        return flops_per_byte, not waiting[block], -freed_bytes  # of equals, one that lowers the peak, then the one that frees most

    return min(((block, option) for block, option in enumerate(following) if option is not None), key=rank)


def _option(block: Block, trace: _BlockTrace, keep: frozenset[int], skipping: bool = True) -> _Option:
    flops, skip = trace.recompute_cost(keep, skipping)
    return _Option(keep, skip, sum(block.operators[index].bytes for index in keep), flops)


def _first_option(block: Block, trace: _BlockTrace, operators_too: bool) -> _Option | None:
    """Option with the fewest FLOPs: recompute no counted operator; or, without `operators_too`, all of the block."""
    keep = frozenset(range(len(block.operators))) if operators_too else frozenset()
    option = _option(block, trace, keep, operators_too)
    while operators_too and (smaller := _next_option(block, trace, option)) is not None and smaller.flops == option.flops:
        option = smaller
    return option if option.held_bytes < block.saved_bytes else _next_below(block, trace, option)


def _next_below(block: Block, trace: _BlockTrace, option: _Option | None) -> _Option | None:
    """First option from `option` on that holds less than not recomputing at all; None if there is none."""
    while option is not None and option.held_bytes >= block.saved_bytes:
        option = _next_option(block, trace, option)
    return option


def _next_option(block: Block, trace: _BlockTrace, option: _Option) -> _Option | None:
    """Option without one more kept result, the one that costs the fewest FLOPs per byte freed; None if no bytes are left to free."""
    candidates = (_option(block, trace, option.keep - {index}) for index in sorted(option.keep))
    return min(
        (smaller for smaller in candidates if smaller.held_bytes < option.held_bytes),
        key=lambda smaller: (smaller.flops - option.flops) / (option.held_bytes - smaller.held_bytes),
        default=None,
    )


def forward_and_backward(model: Module, inputs: dict, fused_backward_pass: bool = False) -> None:
    """Run one call, a mean squared error and backward. Gradients are freed in the end; with `fused_backward_pass`, each at once."""
    if fused_backward_pass:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with torch.enable_grad():
        out = next(tensors_in(model(**inputs)))
        batch = [torch.empty_like(out, dtype=torch.float32) for _ in range(4)]  # the target, and what a training step made it from
        loss = torch.nn.functional.mse_loss(out.float(), batch[0])
        del out
        loss.backward()
    model.zero_grad(set_to_none=True)


class _FlopCounter(Observer):
    count = 0

    def operator_ran(self, func, args: tuple, kwargs: dict, out: object) -> None:
        self.count += operators.flops(func, args, kwargs, out)


def verify(model: Module, inputs: dict, plan: RecomputePlan, *, fused_backward_pass: bool = False) -> Cost:
    """Trace one forward and backward of a copy of `model` on the meta device, with blocks recomputed by `plan`."""
    twin = on_meta(model)
    for name, block_plan in plan.items():
        block = twin.get_submodule(name)
        block.forward = RecomputedForward(block, block_plan)
    trace, counter = MemoryTrace(twin, kernels=_kernels(model)), _FlopCounter()
    trace.observe(counter)
    with trace:
        forward_and_backward(twin, inputs, fused_backward_pass)
    return Cost(trace.peak_bytes, trace.saved_bytes, counter.count)


def _kernels(model: Module) -> str:
    return "cpu" if next(model.parameters()).device.type == "cpu" else "cuda"
