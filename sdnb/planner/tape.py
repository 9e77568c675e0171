"""A training step as a tape of allocations, recorded once on the meta device and joined with the tape of any optimizer.

`record` runs the package's own `training_step`, with an optimizer that does nothing but leave a mark where it was called. `join` puts
the steps of an optimizer, which `optimizer_tape` records alone, in at the marks, twice: the first step makes the optimizer's state, the
second finds it there. So another optimizer needs no new forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from .. import training
from ..memory import CATEGORIES, PHASES, MemoryTrace, Observer, card_scratch_bytes, operators
from .meta_step import Accelerator, answers

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

    from ..models import StableDiffusion
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


class Recorder(Observer):
    """Records a `Tape`: the storages of a `MemoryTrace`, with their owners, the FLOPs and the calls of an optimizer.

    With `kernels="cuda"` tensors on the CPU, such as an optimizer's counts of steps, are not on the card and not counted.
    """

    def __init__(self, parts: dict[str, Module], *, kernels: str, attention: str = "auto") -> None:
        self._on_card = kernels == "cuda"
        self.trace = MemoryTrace(*parts.values(), kernels=kernels, attention=attention, cpu_tensors=not self._on_card)
        self.ledger = self.trace.ledger
        self.trace.observe(self)
        self._names = {module: _stage(part, name) for part, model in parts.items() for name, module in model.named_modules()}
        self._homes = {
            tensor: _stage(part, name.rpartition(".")[0])
            for part, model in parts.items()
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        self._inside: list[str] = []  # the modules whose forward runs, outermost first
        self.owners: list[str] = []
        self.marks: list[tuple[int, tuple[int, ...]]] = []
        self.last, self.flops = "", 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Everything that runs within it is recorded."""

        def entered(module: Module, _) -> None:
            self._inside.append(self._names.get(module, ""))

        def left(*_) -> None:
            self._inside.pop()

        with ExitStack() as stack:
            stack.enter_context(self.trace)
            stack.callback(register_module_forward_pre_hook(entered).remove)
            stack.callback(register_module_forward_hook(left, always_call=True).remove)
            stack.enter_context(answers(lambda: self.last))
            yield

    def made(self, block: int, tensor: Tensor) -> None:
        running = self._inside[-1] if self._inside else ""
        self.owners.append(self._homes.get(tensor) or running or (BACKWARD if self.trace.phase == "backward" else ""))

    def gradient(self, block: int, parameter: Parameter) -> None:
        self.owners[block] = self._homes.get(parameter, "")

    def ran(self, func, args: tuple, kwargs: dict, out: object) -> None:
        self.last = str(func)
        self.flops += operators.flops(func, args, kwargs, out)
        if self._on_card and (size := card_scratch_bytes(func, args)):
            self.ledger.scratch(size, self.last)

    def mark(self, parameters: tuple[int, ...]) -> None:
        """The optimizer is called here."""
        self.marks.append((len(self.ledger.events), parameters))

    def tape(self) -> Tape:
        """What was recorded, once it has ended."""
        blocks, events = self.ledger.blocks, self.ledger.events
        phases = np.array([event.phase for event in events], dtype=np.int8)
        backward = np.flatnonzero(phases == PHASES.index("backward"))
        if len(backward):  # clipping and looking for what is not finite belong to the optimizer's part of a step
            phases[backward[-1] + 1 :] = PHASES.index("optimizer")
        return Tape(
            sizes=np.array([block.bytes for block in blocks], dtype=np.int64),
            categories=np.array([block.category for block in blocks], dtype=np.int8),
            owners=self.owners,
            base=np.array(self.ledger.base, dtype=np.int64),
            blocks=np.array([event.block for event in events], dtype=np.int64),
            changes=np.array([event.bytes for event in events], dtype=np.int64),
            phases=phases,
            names=[event.operator for event in events],
            marks=self.marks,
            flops=self.flops,
        )


def _stage(part: str, name: str) -> str:
    """`unet`, `down_blocks.1.attentions.0` -> `unet.down_blocks.1`."""
    words = [part, *name.split(".")] if name else [part]
    return ".".join(words[: 3 if len(words) > 2 and words[2].isdigit() else 2])


class Marker(torch.optim.Optimizer):
    """An optimizer that steps nothing and tells the recorder that it was called.

    With `checks_gradients`, which an optimizer such as `Adafactor` has, a fused backward leaves it to the optimizer to look for gradients
    that are not finite.
    """

    skipped = 0

    def __init__(self, parameters: list, recorder: Recorder, *, checks_gradients: bool = False) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self.recorder, self.checks_gradients = recorder, checks_gradients
        self.places = {p: place for place, p in enumerate(p for group in self.param_groups for p in group["params"])}

    def step(self, closure=None) -> None:
        given = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if all(p in self.places for p in given):  # a fused backward tries it on a parameter of its own first
            self.recorder.mark(tuple(self.places[p] for p in given))


def record(
    sd: StableDiffusion,
    batch: Batch,
    recipe: Recipe,
    parts: dict[str, Module],
    parameters: list[Parameter],
    *,
    kernels: str,
    guarded: bool,
    attention: str = "auto",
) -> Tape:
    """Tape of one optimizer step of `recipe` on the meta device, of two batches if it accumulates more than one.

    - `parts`: the modules that stay on the card, by name
    - `parameters`: what is trained
    - `kernels`: `cuda` or `cpu`, and `attention` as in `MemoryTrace`
    - `guarded`: whether a fused backward leaves it to the optimizer to look for gradients that are not finite
    """
    recorder = Recorder(parts, kernels=kernels, attention=attention)
    optimizer = Marker(parameters, recorder, checks_gradients=guarded)
    rounds = recipe.gradient_accumulation_steps
    accelerator = Accelerator(recipe.mixed_precision, rounds)
    with accelerator.prepared([sd.unet, *sd.encoders_in_training.values()], kernels), recorder.recording():
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
