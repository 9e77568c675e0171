"""A training step as a tape of allocations, recorded once on the meta device and joined with the tape of any optimizer.

`record` runs the package's own `training_step`, with an optimizer that does nothing but leave a mark where it was called. `join` puts
the steps of an optimizer, which `optimizer_tape` records alone, in at the marks, twice: the first step makes the optimizer's state, the
second finds it there. So another optimizer needs no new forward and backward.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import training
from ..adafactor import Adafactor
from ..memory import CATEGORIES, MemoryTrace, card_scratch_bytes, operators
from .meta_step import Accelerator, answers

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

    from ..models import Model
    from ..recipe import Recipe
    from ..training import Batch

BACKWARD = "backward"
"""Owner of what backward makes outside of any module."""


@dataclass
class Tape:
    """Storages, and when each came and went. All arrays of one group are equally long."""

    sizes: np.ndarray
    """Bytes of each block."""
    categories: np.ndarray
    """Its place in `CATEGORIES`."""
    owners: list[str]
    """The module it belongs to."""
    base: np.ndarray
    """Numbers of the blocks that were there before."""
    blocks: np.ndarray
    """Of each event: the block, or -1 for what a kernel holds for itself."""
    changes: np.ndarray
    """Bytes, negative where it is freed."""
    phases: np.ndarray
    """Place in `PHASES`."""
    names: list[str]
    """The operator, or an empty text."""
    marks: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """Before which event the optimizer was called, and for which parameters."""
    flops: int = 0


class Recorder(MemoryTrace):
    """A `MemoryTrace` that also keeps who made each block, the FLOPs and the calls of an optimizer.

    With `kernels="cuda"` tensors on the CPU, such as an optimizer's counts of steps, are not on the card and not counted.
    """

    def __init__(self, parts: dict[str, Module], *, kernels: str, attention: str = "auto") -> None:
        super().__init__(*parts.values(), kernels=kernels, attention=attention)
        self._on_card = kernels == "cuda"
        self._names = {module: _stage(part, name) for part, model in parts.items() for name, module in model.named_modules()}
        self._homes = {
            tensor: _stage(part, name.rpartition(".")[0])
            for part, model in parts.items()
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        self._inside: list[str] = []
        self.owners: list[str] = []
        self.marks: list[tuple[int, tuple[int, ...]]] = []
        self.last, self.flops = "", 0

    def _open(self) -> None:
        super()._open()
        hooks = torch.nn.modules.module
        for handle in (
            hooks.register_module_forward_pre_hook(lambda module, _: self._inside.append(self._names.get(module, ""))),
            hooks.register_module_forward_hook(lambda *_: self._inside.pop() and None, always_call=True),
        ):
            self._stack.callback(handle.remove)
        self._stack.enter_context(answers(lambda: self.last))

    def operator(self, func, args: tuple, kwargs: dict, out: object) -> None:
        self.last = str(func)
        self.flops += operators.flops(func, args, kwargs, out)
        if self._on_card and (size := card_scratch_bytes(func, args)):
            self._events += [(-1, size, self._phase, self.last), (-1, -size, self._phase, self.last)]

    def mark(self, parameters: tuple[int, ...]) -> None:
        """The optimizer is called here."""
        self.marks.append((len(self._events), parameters))

    def _add_base(self, tensor: Tensor, category: str) -> None:
        before = len(self._blocks)
        super()._add_base(tensor, category)
        if len(self._blocks) > before and tensor in self._homes:
            self.owners[before] = self._homes[tensor]

    def _add(self, storage, category, recomputed) -> int:
        self.owners.append(self._inside[-1] if self._inside and self._inside[-1] else BACKWARD if self._was_backward else "")
        return super()._add(storage, category, recomputed)

    def _see(self, tensor: Tensor, operator: str, given: bool, recomputed: bool) -> None:
        if not (self._on_card and tensor.device.type == "cpu"):
            super()._see(tensor, operator, given, recomputed)

    def _gradient_is_there(self, parameter: Tensor) -> None:
        super()._gradient_is_there(parameter)
        known = self._known.get(parameter.grad.untyped_storage()._cdata)
        if known is not None:
            self.owners[known[0]] = self._homes.get(parameter, "")

    def tape(self) -> Tape:
        """What was recorded, once it has ended."""
        phases = np.array([event[2] for event in self._events], dtype=np.int8)
        backward = np.flatnonzero(phases == 1)
        if len(backward):  # clipping and looking for what is not finite belong to the optimizer's part of a step
            phases[backward[-1] + 1 :] = 2
        temporaries = CATEGORIES.index("temporaries")
        return Tape(
            sizes=np.array([block.bytes for block in self._blocks], dtype=np.int64),
            categories=np.array([temporaries if b.category is None else b.category for b in self._blocks], dtype=np.int8),
            owners=self.owners,
            base=np.array(self._base, dtype=np.int64),
            blocks=np.array([event[0] for event in self._events], dtype=np.int64),
            changes=np.array([event[1] for event in self._events], dtype=np.int64),
            phases=phases,
            names=[event[3] for event in self._events],
            marks=self.marks,
            flops=self.flops,
        )


def _stage(part: str, name: str) -> str:
    """`unet`, `down_blocks.1.attentions.0` -> `unet.down_blocks.1`."""
    words = [part, *name.split(".")] if name else [part]
    return ".".join(words[: 3 if len(words) > 2 and words[2].isdigit() else 2])


class Marker(torch.optim.Optimizer):
    """Steps nothing: tells the recorder that it was called."""

    recorder: Recorder
    places: dict[Tensor, int]

    def __init__(self, parameters: list, recorder: Recorder) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self._listen(recorder)

    def _listen(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.places = {p: place for place, p in enumerate(p for group in self.param_groups for p in group["params"])}

    def step(self, closure=None) -> None:
        given = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if all(p in self.places for p in given):  # a fused backward tries it on a parameter of its own first
            self.recorder.mark(tuple(self.places[p] for p in given))


class AdafactorMarker(Adafactor):
    """The same, for a fused backward, which leaves it to Adafactor to look for gradients that are not finite."""

    step = Marker.step
    _listen = Marker._listen

    def __init__(self, parameters: list, recorder: Recorder) -> None:
        super().__init__(parameters, lr=0.0, relative_step=False)
        self._listen(recorder)


def record(
    sd: Model,
    batch: Batch,
    recipe: Recipe,
    parts: dict[str, Module],
    parameters: list[Parameter],
    *,
    kernels: str,
    guarded: bool,
    attention: str = "auto",
) -> Tape:
    """One optimizer step of `recipe` on the meta device, of two batches if it accumulates more than one.

    `guarded` says that an Adafactor steps in a fused backward. `parts` are the modules that stay on the card, `parameters` what is trained.
    """
    recorder = Recorder(parts, kernels=kernels, attention=attention)
    optimizer = (AdafactorMarker if guarded else Marker)(parameters, recorder)
    rounds = recipe.gradient_accumulation_steps
    accelerator = Accelerator(recipe.mixed_precision, rounds)
    with accelerator.prepared(list(sd.learners.values()), kernels), recorder:
        for last in (False, True)[-min(rounds, 2) :]:
            accelerator.sync_gradients = last
            training.training_step(sd, batch, recipe, optimizer, accelerator=accelerator)
    return recorder.tape()


@dataclass
class Steps:
    """Two steps of an optimizer: the tape, and where its second step begins."""

    tape: Tape
    second: int


@dataclass
class Timeline:
    """Two steps, one after the other, event by event."""

    tape: Tape
    second: int
    """The event with which the second step begins."""


def join(step: Tape, optimizer: list[Steps]) -> Timeline:
    """The step with the optimizer in it, twice."""
    sizes, categories, owners = [step.sizes], [step.categories], list(step.owners)
    base, count = [step.base], len(step.sizes)
    for steps in {id(steps): steps for steps in optimizer}.values():
        tape = steps.tape
        before = tape.base[tape.categories[tape.base] == CATEGORIES.index("optimizer state")]
        sizes.append(tape.sizes[before])
        categories.append(tape.categories[before])
        owners += ["optimizer"] * len(before)
        base.append(np.arange(count, count + len(before)))
        count += len(before)
    offsets = []
    for steps in optimizer:
        offsets.append(count)
        sizes.append(steps.tape.sizes)
        categories.append(steps.tape.categories)
        owners += ["optimizer"] * len(steps.tape.sizes)
        count += len(steps.tape.sizes)
    made = np.unique(step.blocks[step.changes > 0])
    freed = np.unique(step.blocks[(step.changes < 0) & (step.blocks >= 0)])
    stays = np.setdiff1d(made[made >= 0], freed)  # made for good: not again in the second step
    stays = np.append(stays, step.base)
    again = count
    sizes.append(step.sizes)
    categories.append(step.categories)
    owners += step.owners

    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]] = []
    second = 0
    for turn in (0, 1):
        if turn:
            second = sum(len(piece[0]) for piece in pieces)
        at = 0
        for where, parameters in [*step.marks, (len(step.blocks), None)]:
            pieces.append(_events(step, at, where, again if turn else 0, stays if turn else ()))
            at = where
            if not parameters:  # the end, or a fused backward's own call, when all has been stepped
                continue
            for number in range(len(optimizer)) if len(optimizer) == 1 else parameters:
                steps = optimizer[number]
                first, last = (steps.second, len(steps.tape.blocks)) if turn else (0, steps.second)
                pieces.append(_events(steps.tape, first, last, offsets[number], ()))
    joined = Tape(
        sizes=np.concatenate(sizes),
        categories=np.concatenate(categories),
        owners=owners,
        base=np.concatenate(base),
        blocks=np.concatenate([piece[0] for piece in pieces]),
        changes=np.concatenate([piece[1] for piece in pieces]),
        phases=np.concatenate([piece[2] for piece in pieces]),
        names=[name for piece in pieces for name in piece[3]],
        flops=step.flops,
    )
    return Timeline(joined, second)


def with_block(timeline: Timeline, size: int, category: str, owner: str) -> Timeline:
    """The same with one more block that was there before."""
    one = timeline.tape
    more = replace(
        one,
        sizes=np.append(one.sizes, size),
        categories=np.append(one.categories, np.int8(CATEGORIES.index(category))),
        owners=[*one.owners, owner],
        base=np.append(one.base, len(one.sizes)),
    )
    return Timeline(more, timeline.second)


def _events(tape: Tape, first: int, last: int, offset: int, dropped) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    blocks, changes, phases, names = (part[first:last] for part in (tape.blocks, tape.changes, tape.phases, tape.names))
    if len(dropped) and np.isin(blocks, dropped).any():
        kept = ~np.isin(blocks, dropped)
        blocks, changes, phases = blocks[kept], changes[kept], phases[kept]
        names = [name for name, keep in zip(names, kept, strict=True) if keep]
    return np.where(blocks >= 0, blocks + offset, blocks), changes, phases, names
