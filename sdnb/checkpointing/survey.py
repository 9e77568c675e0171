"""Which operators to recompute: the chain of choices from keeping everything to recomputing everything.

One forward and backward on the meta device (`Survey`) tells, for every block, what it saves, what each of its operators would cost
to keep and to run again, and what else is alive at every moment. From there the peak of any choice is a sum, and the chain is
walked by giving up, again and again, whatever lowers the peak of that moment for the least recomputing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..memory import CATEGORIES, MemoryTrace, operators, tensors_in
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
    """To run it again; 0 where recomputing stops before it."""
    bytes: int
    """To keep its result."""


@dataclass(frozen=True)
class Block:
    """One block that can be recomputed, as measured for the inputs at hand."""

    name: str
    kind: str
    """The name of its class."""
    saved_bytes: int
    """What its forward leaves alive for backward, beside its inputs and its output."""
    recompute_flops: int
    """To run it again as far as backward needs it."""
    operators: tuple[Operator, ...] = field(repr=False)
    """Those with arithmetic, in the order in which they run."""


@dataclass(frozen=True)
class Point:
    """One choice of the chain."""

    choice: Choice = field(repr=False)
    """For every recomputed block, how it is run again. Blocks that are not named save as ever."""
    peak_bytes: int
    """The most alive at once in one forward and backward, weights included."""
    saved_bytes: int
    """Activations alive between forward and backward."""
    flops_ratio: float
    """Floating-point operations of forward and backward, beside those without recomputing."""


class Counted(MemoryTrace):
    """A `MemoryTrace` that counts FLOPs too, and may free each gradient as soon as it is there, as a fused backward does."""

    def __init__(self, model: Module, *, kernels: str, fused_backward_pass: bool = False) -> None:
        super().__init__(model, kernels=kernels)
        self.flops = 0
        self._fused = fused_backward_pass

    def operator(self, func, args: tuple, kwargs: dict, out: object) -> None:
        self.flops += operators.flops(func, args, kwargs, out)

    def _gradient_is_there(self, parameter: Tensor) -> None:
        super()._gradient_is_there(parameter)
        if self._fused:
            parameter.grad = None


class _Noted:
    """A block's `forward` that tells the survey where it begins and ends, and what it saves."""

    def __init__(self, block: Module, number: int, survey: Survey) -> None:
        self.block, self.forward, self.number, self.survey = block, block.forward, number, survey

    def __call__(self, *args, **kwargs):
        self.survey._ran[self.number].gradients = requires(self.block, args, kwargs)
        with saved_tensors_hooks(self.survey.packed, lambda tensor: tensor):
            self.survey.begin(self.number)
            out = self.forward(*args, **kwargs)
            self.survey.end(self.number, out)
        return out


@dataclass(frozen=True)
class _Step:
    """One operator as it ran in a block: the storages it read and those it wrote."""

    kind: str | None
    flops: int
    reads: set[int]
    writes: set[int]


class _Ran:
    """The operators of one block, and the storages that it saved for backward."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.packed: set[int] = set()
        self.gradients: tuple[bool, ...] = ()
        self.stop = 0
        """Recomputing ends before this step: the last tensor that backward needs is there."""

    @property
    def heavy(self) -> list[_Step]:
        return [step for step in self.steps if step.kind]

    def as_chosen(self, keep: frozenset[int], skip: frozenset[int]) -> Again:
        if not keep and not skip:
            return Again()
        return Again(keep, skip, tuple(step.kind for step in self.heavy), self.gradients)

    def again(self, keep: frozenset[int], skipping: bool = True) -> tuple[int, frozenset[int]]:
        """The FLOPs of recomputing when the results at these places are kept, and the places whose results nothing needs.

        An operator is needed when something that backward needs is made from what it writes. torch runs the others all the
        same, up to the last tensor that is needed; they can be skipped.
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


class Survey(Counted):
    """One forward and backward of a model on the meta device, block by block. Raises `ValueError` for a model without blocks."""

    def __init__(self, model: Module, inputs: dict, *, fused_backward_pass: bool = False) -> None:
        twin = on_meta(model)
        blocks = units(twin, inputs)
        if not blocks:
            raise ValueError(
                f"{type(model).__name__} has no block that can be recomputed: diffusers and transformers mark none in it. "
                "Wrap its parts with torch.utils.checkpoint yourself"
            )
        super().__init__(twin, kernels=_kernels(model), fused_backward_pass=fused_backward_pass)
        self.names, self.kinds = list(blocks), [type(block).__name__ for block in blocks.values()]
        self._inside: int | None = None
        self._forward = [(0, 0)] * len(blocks)  # where each block's forward lies in the list of events, and which storages it made
        self._born = [(0, 0)] * len(blocks)
        self._backward_from: dict[int, int] = {}
        self._outputs: list[set[int]] = [set() for _ in blocks]
        self._ran = [_Ran() for _ in blocks]
        for number, block in enumerate(blocks.values()):
            block.forward = _Noted(block, number, self)
        with self:
            forward_and_backward(twin, inputs)
        self._measure()

    # told by the blocks

    def begin(self, number: int) -> None:
        """Block `number` begins its forward."""
        self._inside = number
        self._forward[number] = (len(self._events), 0)
        self._born[number] = (len(self._blocks), 0)

    def end(self, number: int, out: object) -> None:
        """It has ended, with `out`: whatever the block returns."""
        self._inside = None
        self._forward[number] = (self._forward[number][0], len(self._events))
        self._born[number] = (self._born[number][0], len(self._blocks))
        for tensor in tensors_in(out):
            self._outputs[number].add(self._number(tensor))
            if tensor.requires_grad:
                tensor.register_hook(lambda _: self.turned(number))

    def turned(self, number: int) -> None:
        """Backward has come to it: there is a gradient of one of its results."""
        self._backward_from.setdefault(number, len(self._events))

    def packed(self, tensor: Tensor) -> Tensor:
        """A tensor of any shape is saved for backward; it is returned as it is."""
        if self._inside is not None:
            ran = self._ran[self._inside]
            ran.packed.add(self._number(tensor))
            ran.stop = len(ran.steps)
        return tensor

    def operator(self, func, args: tuple, kwargs: dict, out: object) -> None:
        count = operators.flops(func, args, kwargs, out)
        self.flops += count
        if self._inside is not None and self._phase == 0:
            reads = {self._number(tensor) for tensor in tensors_in((args, kwargs))}
            writes = {self._number(tensor) for tensor in tensors_in(out)}
            self._ran[self._inside].steps.append(_Step(operators.kind(func), count, reads, writes))

    def _number(self, tensor: Tensor) -> int:
        return self._known[tensor.untyped_storage()._cdata][0]

    # what follows from it

    def _measure(self) -> None:
        count = len(self.names)
        sizes = np.array([block.bytes for block in self._blocks] + [0])
        internals = [
            {n for n in self._saved if first <= n < last} - outputs - set(self._base)
            for (first, last), outputs in zip(self._born, self._outputs, strict=True)
        ]
        self.saved = np.array([sum(sizes[n] for n in inside) for inside in internals])
        owner = np.full(len(sizes), -1)
        for number, inside in enumerate(internals):
            owner[list(inside)] = number
        numbers = np.array([event[0] for event in self._events])
        changes = np.array([event[1] for event in self._events])
        base = sum(sizes[n] for n in self._base)
        owned = owner[numbers]  # of scratch, -1 looks up the last, which belongs to no block
        rest = base + np.cumsum(np.where(owned < 0, changes, 0))
        own = [np.cumsum(np.where(owned == number, changes, 0)) for number in range(count)]

        last = len(self._events)
        backward = [self._backward_from.get(number, last) for number in range(count)]
        cuts = sorted({0, last, *(edge for span in self._forward for edge in span), *backward})
        constants, pending, owners = [], [], []
        for start, stop in itertools.pairwise(cuts):
            if start == stop:
                continue
            current = [n for n in range(count) if self._forward[n][0] <= start < self._forward[n][1] or backward[n] <= start < last]
            constants.append(max(rest[start:stop] + sum((own[n][start:stop] for n in current), np.zeros(stop - start))))
            pending.append([self._forward[n][1] <= start < backward[n] for n in range(count)])
            owners.append(-1)
        for number in range(count):  # the moment a block has been run again
            begin, end = self._forward[number]
            if begin == end or backward[number] == last:
                continue
            at = backward[number]
            transient = max(rest[begin:end] + own[number][begin:end]) - rest[begin - 1 if begin else 0]
            before = rest[at - 1 if at else 0]
            constants.append(before + transient)
            pending.append([self._forward[n][1] <= at < backward[n] and n != number for n in range(count)])
            owners.append(number)
        self.constants, self.pending, self.owners = np.array(constants), np.array(pending, dtype=float), np.array(owners)
        self.elsewhere = sum(sizes[n] for n in self._saved if owner[n] < 0 and self._blocks[n].category == CATEGORIES.index("activations"))
        self.blocks = []
        for name, kind, saved, ran, outputs in zip(self.names, self.kinds, self.saved, self._ran, self._outputs, strict=True):
            made = [int(sum(sizes[n] for n in step.writes - outputs - step.reads)) for step in ran.heavy]
            heavy = tuple(Operator(step.kind, step.flops, size) for step, size in zip(ran.heavy, made, strict=True))
            self.blocks.append(Block(name, kind, int(saved), ran.again(frozenset())[0], heavy))

    def policy(self, kinds: frozenset[str]) -> Choice:
        """Recompute every block but keep what these kinds of operators made, as far as that saves running any of them."""
        choice = {}
        for block, ran in zip(self.blocks, self._ran, strict=True):
            keep = frozenset(place for place, operator in enumerate(block.operators) if operator.kind in kinds)
            for place in sorted(keep, reverse=True):
                if ran.again(keep - {place})[0] == ran.again(keep)[0]:
                    keep -= {place}
            choice[block.name] = ran.as_chosen(keep, ran.again(keep)[1])
        return choice

    def peak(self, held: np.ndarray, recomputed: np.ndarray) -> tuple[int, int]:
        """The estimated peak when the blocks hold `held` bytes each between forward and backward, and where it lies."""
        peaks = self.constants + self.pending @ held
        peaks[(self.owners >= 0) & ~recomputed[self.owners]] = 0
        return int(peaks.max()), int(peaks.argmax())

    def chain(self, *, operators_too: bool = True) -> list[Point]:
        """From keeping everything to the smallest peak: each step gives up what frees bytes for the least recomputing.

        Every choice is contained in the next, so a smaller budget never ends at a higher peak.

        Without `operators_too` a block is recomputed whole or not at all.
        """
        held, again = self.saved.astype(float), 0
        states: list[_State | None] = [None] * len(self.blocks)  # None: not recomputed
        options = [_first(block, ran, operators_too) for block, ran in zip(self.blocks, self._ran, strict=True)]
        points = []
        while True:
            on = np.array([state is not None for state in states])
            peak, where = self.peak(held, on)
            blocks = zip(self.blocks, self._ran, states, strict=True)
            choice = {block.name: ran.as_chosen(state.keep, state.skip) for block, ran, state in blocks if state}
            points.append(Point(choice, peak, int(self.elsewhere + held.sum()), 1 + again / self.flops))
            if not any(options[number] for number in np.flatnonzero(self.pending[where])):
                return points  # what is alive at this moment is no longer in any block's hands
            number = min(
                (n for n in range(len(options)) if options[n] is not None),
                key=lambda n: (
                    (options[n].flops - _flops(states[n])) / (held[n] - options[n].held),
                    not self.pending[where][n],
                    options[n].held - held[n],
                ),
            )
            again += options[number].flops - _flops(states[number])
            states[number], held[number] = options[number], options[number].held
            options[number] = _next(self.blocks[number], self._ran[number], states[number])


@dataclass(frozen=True)
class _State:
    """A recomputed block: what it keeps, what it holds for that, and what it computes again."""

    keep: frozenset[int]
    skip: frozenset[int]
    held: int
    flops: int


def _flops(state: _State | None) -> int:
    return state.flops if state else 0


def _state(block: Block, ran: _Ran, keep: frozenset[int], skipping: bool = True) -> _State:
    flops, skip = ran.again(keep, skipping)
    return _State(keep, skip, sum(block.operators[place].bytes for place in keep), flops)


def _first(block: Block, ran: _Ran, operators_too: bool) -> _State | None:
    """Recompute the block, but nothing with arithmetic in it; or, if only whole blocks are asked for, all of it."""
    state = _state(block, ran, frozenset(range(len(block.operators))) if operators_too else frozenset(), operators_too)
    while operators_too and (free := _next(block, ran, state)) is not None and free.flops == state.flops:
        state = free
    return state if state.held < block.saved_bytes else _next_below(block, ran, state)


def _next_below(block: Block, ran: _Ran, state: _State) -> _State | None:
    """Where keeping every result would take more than not recomputing at all."""
    while state is not None and state.held >= block.saved_bytes:
        state = _next(block, ran, state)
    return state


def _next(block: Block, ran: _Ran, state: _State) -> _State | None:
    """Give up the kept result that costs the least recomputing for its bytes."""
    states = (_state(block, ran, state.keep - {place}) for place in sorted(state.keep))
    return min((s for s in states if s.held < state.held), key=lambda s: (s.flops - state.flops) / (state.held - s.held), default=None)


def forward_and_backward(model: Module, inputs: dict) -> None:
    """One call, its mean squared distance from a target, and the gradients, which are thrown away in the end."""
    with torch.enable_grad():
        out = next(tensors_in(model(**inputs)))
        held = [torch.empty_like(out, dtype=torch.float32) for _ in range(4)]  # the target, and the batch that it was made from
        loss = torch.nn.functional.mse_loss(out.float(), held[0])
        del out
        loss.backward()
    model.zero_grad(set_to_none=True)


def verify(model: Module, inputs: dict, choice: Choice, *, fused_backward_pass: bool = False) -> Counted:
    """Trace one forward and backward of a twin of `model` on the meta device with these blocks recomputed."""
    twin = on_meta(model)
    for name, again in choice.items():
        block = twin.get_submodule(name)
        block.forward = Recomputed(block, again)
    with Counted(twin, kernels=_kernels(model), fused_backward_pass=fused_backward_pass) as trace:
        forward_and_backward(twin, inputs)
    return trace


def _kernels(model: Module) -> str:
    return "cpu" if next(model.parameters()).device.type == "cpu" else "cuda"
