"""Which operators to recompute: the chain of choices from keeping everything to recomputing everything.

The results in a block take about as many bytes each, but not as long to make again: a convolution takes many FLOPs, a norm or an
activation hardly any. So there are better choices than all or nothing, and this is how they are found.

**One run is measured.** `Survey` runs one forward and backward on the meta device. For each block it notes the operators with their FLOPs
and storages, what the block saves for backward, and when its forward ran and backward came to it.

**The peak of any choice is then a sum.** Time is cut into stretches wherever a block begins or ends (`Moments`). What is alive in a
stretch is a constant, and what the *waiting* blocks hold, whose forward has run and whose backward has not begun. Recomputing changes
only the second part. Take 10 MiB of weights and two blocks A and B that save 8 and 6 MiB; backward takes 2 MiB more:

    stretch             constant          waiting    nothing recomputed    A recomputed    A and B
    forward of A        10 + 8            -                          18              18         18
    forward of B        10 + 6            A                          24              16         16
    B is run again      10 + 6            A                           -               -         16
    backward of B       10 + 6 + 2        A                          26              18         18
    A is run again      10 + 8            -                           -              18         18
    backward of A       10 + 8 + 2        -                          20              20         20
    peak                                                             26              20         20

Recomputing A lowers the peak from 26 to 20 MiB. Recomputing B too would gain nothing: at 20 MiB no block waits.

**The chain gives up one result at a time.** It starts with everything kept. Each step takes the change with the fewest FLOPs for each
byte that it frees: recompute a block but keep the results of all its operators with arithmetic, or give up one of these. It ends when no
block can give up any more of what is alive at the peak. Each choice contains the one before, so a smaller budget never ends at a higher
peak. `choices.solve` takes the first one below the budget and has it traced with `verify`, since the sum is an estimate.

**Not all of a block need run again.** `_Run.again` goes backward through the operators, from the tensors that backward needs to what they
are made from, and stops at what is kept. In `conv1, norm, silu, conv2` backward needs x, the result of conv1, and that of silu. If
conv1's is kept, norm and silu run again; conv2 does not in any case.
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
from .recompute import Again, Recomputed, on_meta, requires, units

if TYPE_CHECKING:
    from torch.nn import Module


Choice = dict[str, Again]


@dataclass(frozen=True)
class Operator:
    """One operator of a block that carries arithmetic."""

    kind: str
    """One of `operators.KINDS`."""
    flops: int
    """FLOPs of running it again."""
    bytes: int
    """Bytes of its result."""


@dataclass(frozen=True)
class Block:
    """One block that can be recomputed, as measured for the inputs at hand."""

    name: str
    kind: str
    """Name of its class."""
    saved_bytes: int
    """Bytes that its forward leaves alive for backward, beside its inputs and its output."""
    recompute_flops: int
    """FLOPs of running it again as far as backward needs it."""
    operators: tuple[Operator, ...] = field(repr=False)
    """Operators with arithmetic, in the order in which they run."""


@dataclass(frozen=True)
class Point:
    """One choice of the chain."""

    choice: Choice = field(repr=False)
    """Name of every recomputed block -> how it is run again."""
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
class Moments:
    """Most bytes alive in each of the `m` stretches of one forward and backward of `k` blocks.

    Three stretches of the table above, forward of A, forward of B and backward of B; nothing is recomputed, and then A:

    >>> moments = Moments(np.array([18, 16, 18]), np.array([[0, 0], [1, 0], [1, 0]]), np.array([-1, -1, -1]))
    >>> moments.peak(np.array([8, 6]), np.array([False, False]))
    (26, 2)
    >>> moments.peak(np.array([0, 6]), np.array([True, False]))
    (18, 0)
    """

    constant: np.ndarray
    """Bytes that no choice changes, (m)."""
    pending: np.ndarray
    """1 for each block that waits between its forward and its backward, else 0, (m, k)."""
    owner: np.ndarray
    """Block that is run again in the stretch, which exists only if that block is recomputed; -1 for the others, (m)."""

    def peak(self, held: np.ndarray, recomputed: np.ndarray) -> tuple[int, int]:
        """Peak in bytes, and its stretch, when waiting blocks hold `held` bytes each, (k); `recomputed` says which are run again, (k)."""
        peaks = self.constant + self.pending @ held
        peaks[(self.owner >= 0) & ~recomputed[self.owner]] = 0
        return int(peaks.max()), int(peaks.argmax())


@dataclass(frozen=True)
class _Step:
    """One operator as it ran in a block: the storages it read and those it wrote."""

    kind: str | None
    flops: int
    reads: set[int]
    writes: set[int]


class _Run:
    """One block as it ran."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.steps: list[_Step] = []
        self.packed: set[int] = set()
        """Storages that it saved for backward."""
        self.outputs: set[int] = set()
        """Storages that it returned."""
        self.gradients: tuple[bool, ...] = ()
        self.stop = 0
        """Recomputing ends before this step: the last tensor that backward needs is there."""
        self.forward = range(0)
        """Events of its forward."""
        self.made = range(0)
        """Storages that were made in its forward."""
        self.backward: int | None = None
        """Event with which backward comes to it."""

    def waits(self, event: int, last: int) -> bool:
        """Whether its forward has ended at an event, and its backward not begun; `last` is the end of all."""
        return self.forward.stop <= event < (last if self.backward is None else self.backward)

    @property
    def heavy(self) -> list[_Step]:
        return [step for step in self.steps if step.kind]

    def as_chosen(self, keep: frozenset[int], skip: frozenset[int]) -> Again:
        if not keep and not skip:
            return Again()
        return Again(keep, skip, tuple(str(step.kind) for step in self.heavy), self.gradients)

    def again(self, keep: frozenset[int], skipping: bool = True) -> tuple[int, frozenset[int]]:
        """FLOPs of recomputing when the results at the places `keep` are kept, and the places whose results nothing needs.

        An operator is needed when something that backward needs is made from what it writes. torch runs the others too, up to
        the last tensor that is needed; they can be skipped.
        """
        needed, flops, skip = set(self.packed), 0, set()
        place = sum(1 for step in self.steps[: self.stop] if step.kind)
        for step in reversed(self.steps[: self.stop]):
            wanted = not needed.isdisjoint(step.writes)
            if step.kind:
                place -= 1
                if place in keep:
                    continue
                if not wanted and skipping:
                    skip.add(place)
                    continue
                flops += step.flops
            if wanted or not skipping:
                needed |= step.reads
        return flops, frozenset(skip)


class _Watched:
    """A block's `forward` that tells the survey where it begins and ends, and what it saves."""

    def __init__(self, block: Module, run: _Run, survey: Survey) -> None:
        self.block, self.forward, self.run, self.survey = block, block.forward, run, survey

    def __call__(self, *args, **kwargs):
        self.run.gradients = requires(self.block, args, kwargs)
        with saved_tensors_hooks(self.survey.packed, lambda tensor: tensor):
            self.survey.begin(self.run)
            out = self.forward(*args, **kwargs)
            self.survey.end(self.run, out)
        return out


class Survey(Observer):
    """One forward and backward of a model on the meta device, block by block. Raises `ValueError` for a model without blocks."""

    def __init__(self, model: Module, inputs: dict, *, fused_backward_pass: bool = False) -> None:
        twin = on_meta(model)
        blocks = units(twin, inputs)
        if not blocks:
            raise ValueError(
                f"{type(model).__name__} has no block that can be recomputed: diffusers and transformers mark none in it. "
                "Wrap its parts with torch.utils.checkpoint yourself"
            )
        self.flops = 0
        self._inside: _Run | None = None
        self._runs = [_Run(name, type(block).__name__) for name, block in blocks.items()]
        for block, run in zip(blocks.values(), self._runs, strict=True):
            block.forward = _Watched(block, run, self)
        self._trace = MemoryTrace(twin, kernels=_kernels(model))
        self._trace.observe(self)
        self._ledger = self._trace.ledger
        with self._trace:
            forward_and_backward(twin, inputs, fused_backward_pass)
        self.peak_bytes, self.saved_bytes = self._trace.peak_bytes, self._trace.saved_bytes
        self._kept = [self._trace.saved & set(run.made) - run.outputs - set(self._ledger.base) for run in self._runs]
        """Storages that each block leaves alive for backward, beside its inputs and its output."""
        elsewhere = self._trace.saved.difference(*self._kept)
        self._elsewhere = sum(b.bytes for b in (self._ledger.blocks[n] for n in elsewhere) if b.category == "activations")
        self.moments = self._moments()
        self.blocks = self._blocks()
        self._saved = np.array([block.saved_bytes for block in self.blocks], dtype=float)

    # told by the blocks and the trace

    def begin(self, run: _Run) -> None:
        """A block begins its forward."""
        self._inside = run
        run.forward, run.made = range(len(self._ledger.events), 0), range(len(self._ledger.blocks), 0)

    def end(self, run: _Run, out: object) -> None:
        """It has ended, with `out`: whatever the block returns."""
        self._inside = None
        run.forward = range(run.forward.start, len(self._ledger.events))
        run.made = range(run.made.start, len(self._ledger.blocks))

        def turned(_) -> None:
            """There is a gradient of a result: backward has come to the block."""
            if run.backward is None:
                run.backward = len(self._ledger.events)

        for tensor in tensors_in(out):
            run.outputs.add(self._ledger.number(tensor))
            if tensor.requires_grad:
                tensor.register_hook(turned)

    def packed(self, tensor: Tensor) -> Tensor:
        """A tensor of any shape is saved for backward; it is returned as it is."""
        if self._inside is not None:
            self._inside.packed.add(self._ledger.number(tensor))
            self._inside.stop = len(self._inside.steps)
        return tensor

    def ran(self, func, args: tuple, kwargs: dict, out: object) -> None:
        flops = operators.flops(func, args, kwargs, out)
        self.flops += flops
        if self._inside is not None and self._ledger.phase == "forward":
            reads = {self._ledger.number(tensor) for tensor in tensors_in((args, kwargs))}
            writes = {self._ledger.number(tensor) for tensor in tensors_in(out)}
            self._inside.steps.append(_Step(operators.kind(func), flops, reads, writes))

    # what follows from it

    def _curves(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes alive after each of the `e` events: what no block keeps (e), and what each of the `k` blocks keeps (k, e)."""
        events, blocks = self._ledger.events, self._ledger.blocks
        owner = np.full(len(blocks) + 1, -1)  # the last is that of scratch, whose number is -1
        for number, kept in enumerate(self._kept):
            owner[list(kept)] = number
        owners = owner[[event.block for event in events]]
        changes = np.array([event.bytes for event in events])
        curves = [np.cumsum(np.where(owners == number, changes, 0)) for number in range(-1, len(self._runs))]
        return curves[0] + sum(blocks[number].bytes for number in self._ledger.base), np.array(curves[1:])

    def _moments(self) -> Moments:
        """One stretch wherever a block begins or ends its forward or begins its backward; and one for each block that is run again."""
        rest, own = self._curves()
        last, runs = len(rest), self._runs
        edges = {edge for run in runs for edge in (run.forward.start, run.forward.stop, run.backward)}
        rows = []
        for start, stop in itertools.pairwise(sorted({0, last, *edges} - {None})):
            running = [start in run.forward or (run.backward is not None and run.backward <= start) for run in runs]
            alive = rest[start:stop] + own[running, start:stop].sum(axis=0)
            rows.append((alive.max(), [run.waits(start, last) for run in runs], -1))
        for number, run in enumerate(runs):
            if not run.forward or run.backward in (None, last):
                continue
            begin, end = run.forward.start, run.forward.stop
            before = [rest[event - 1 if event else 0] for event in (begin, run.backward)]
            more = (rest[begin:end] + own[number, begin:end]).max() - before[0]  # than at its beginning: as in forward, so again
            rows.append((before[1] + more, [other.waits(run.backward, last) and other is not run for other in runs], number))
        constant, pending, owner = zip(*rows, strict=True)
        return Moments(np.array(constant), np.array(pending, dtype=float), np.array(owner))

    def _blocks(self) -> list[Block]:
        """Blocks as `choices.blocks` lists them."""
        ledger, blocks = self._ledger.blocks, []
        for run, kept in zip(self._runs, self._kept, strict=True):
            made = [sum(ledger[n].bytes for n in step.writes - run.outputs - step.reads) for step in run.heavy]
            heavy = tuple(Operator(str(step.kind), step.flops, size) for step, size in zip(run.heavy, made, strict=True))
            blocks.append(Block(run.name, run.kind, sum(ledger[n].bytes for n in kept), run.again(frozenset())[0], heavy))
        return blocks

    def policy(self, kinds: frozenset[str]) -> Choice:
        """Recompute every block but keep what these kinds of operators made, as far as that saves running any of them."""
        choice = {}
        for block, run in zip(self.blocks, self._runs, strict=True):
            keep = frozenset(place for place, operator in enumerate(block.operators) if operator.kind in kinds)
            for place in sorted(keep, reverse=True):
                if run.again(keep - {place})[0] == run.again(keep)[0]:
                    keep -= {place}
            choice[block.name] = run.as_chosen(keep, run.again(keep)[1])
        return choice

    def chain(self, *, operators_too: bool = True) -> list[Point]:
        """Choices from keeping everything to the smallest peak: each step gives up what frees bytes for the least recomputing.

        Without `operators_too` a block is recomputed whole or not at all.
        """
        held, again = self._saved.copy(), 0
        states: list[_State | None] = [None] * len(self.blocks)  # None: not recomputed
        options = [_first(block, run, operators_too) for block, run in zip(self.blocks, self._runs, strict=True)]
        points = []
        while True:
            peak, where = self.moments.peak(held, np.array([state is not None for state in states]))
            chosen = [(run, state) for run, state in zip(self._runs, states, strict=True) if state]
            choice = {run.name: run.as_chosen(state.keep, state.skip) for run, state in chosen}
            points.append(Point(choice, peak, int(self._elsewhere + held.sum()), 1 + again / self.flops))
            waiting = self.moments.pending[where]
            if not any(options[number] for number in np.flatnonzero(waiting)):
                return points  # no block holds any more of what is alive at this moment
            number, option = min(
                ((n, option) for n, option in enumerate(options) if option is not None),
                key=lambda pair: (
                    (pair[1].flops - _flops(states[pair[0]])) / (held[pair[0]] - pair[1].held),
                    not waiting[pair[0]],
                    pair[1].held - held[pair[0]],
                ),
            )
            again += option.flops - _flops(states[number])
            states[number], held[number] = option, option.held
            options[number] = _next(self.blocks[number], self._runs[number], option)


@dataclass(frozen=True)
class _State:
    """A recomputed block: places that it keeps and skips, bytes that it holds between forward and backward, and FLOPs to run it again."""

    keep: frozenset[int]
    skip: frozenset[int]
    held: int
    flops: int


def _flops(state: _State | None) -> int:
    return state.flops if state else 0


def _state(block: Block, run: _Run, keep: frozenset[int], skipping: bool = True) -> _State:
    flops, skip = run.again(keep, skipping)
    return _State(keep, skip, sum(block.operators[place].bytes for place in keep), flops)


def _first(block: Block, run: _Run, operators_too: bool) -> _State | None:
    """Recompute the block, but nothing with arithmetic in it; or, if only whole blocks are asked for, all of it."""
    state = _state(block, run, frozenset(range(len(block.operators))) if operators_too else frozenset(), operators_too)
    while operators_too and (free := _next(block, run, state)) is not None and free.flops == state.flops:
        state = free
    return state if state.held < block.saved_bytes else _next_below(block, run, state)


def _next_below(block: Block, run: _Run, state: _State | None) -> _State | None:
    """Where keeping every result would take more than not recomputing at all."""
    while state is not None and state.held >= block.saved_bytes:
        state = _next(block, run, state)
    return state


def _next(block: Block, run: _Run, state: _State) -> _State | None:
    """Give up the kept result that costs the least recomputing for its bytes."""
    states = (_state(block, run, state.keep - {place}) for place in sorted(state.keep))
    return min((s for s in states if s.held < state.held), key=lambda s: (s.flops - state.flops) / (state.held - s.held), default=None)


def forward_and_backward(model: Module, inputs: dict, fused_backward_pass: bool = False) -> None:
    """One call, its mean squared distance from a target, and the gradients, which are thrown away in the end; or each at once."""
    if fused_backward_pass:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with torch.enable_grad():
        out = next(tensors_in(model(**inputs)))
        held = [torch.empty_like(out, dtype=torch.float32) for _ in range(4)]  # the target, and the batch that it was made from
        loss = torch.nn.functional.mse_loss(out.float(), held[0])
        del out
        loss.backward()
    model.zero_grad(set_to_none=True)


class _Flops(Observer):
    count = 0

    def ran(self, func, args: tuple, kwargs: dict, out: object) -> None:
        self.count += operators.flops(func, args, kwargs, out)


def verify(model: Module, inputs: dict, choice: Choice, *, fused_backward_pass: bool = False) -> Cost:
    """Trace one forward and backward of a twin of `model` on the meta device with these blocks recomputed."""
    twin = on_meta(model)
    for name, again in choice.items():
        block = twin.get_submodule(name)
        block.forward = Recomputed(block, again)
    trace, flops = MemoryTrace(twin, kernels=_kernels(model)), _Flops()
    trace.observe(flops)
    with trace:
        forward_and_backward(twin, inputs, fused_backward_pass)
    return Cost(trace.peak_bytes, trace.saved_bytes, flops.count)


def _kernels(model: Module) -> str:
    return "cpu" if next(model.parameters()).device.type == "cpu" else "cuda"
