"""A training step as a tape of allocations, recorded once on the meta device and joined with the tape of any optimizer.

A tape is what an allocator sees of a program: the blocks it asked for, and the events that made and freed them, in order. `record` runs
the package's own `training_step` on the meta device, where tensors have shapes and no contents, and writes down every storage. So there
is no formula for the memory of a model: whatever the step does is on the tape.

The step and the optimizer are recorded apart. In the step the optimizer is a `Marker`, which allocates nothing and leaves a mark: before
which event it was called, and for which parameters. What an optimizer allocates depends on the shapes of the parameters alone, so
`optimizer_tape` records its first two steps without any model. `join` puts them in at the marks. To compare ten optimizers, forward and
backward are recorded once.

The joined tape has two steps. The first makes the optimizer's state, after the activations are gone. The second finds the state there
from its first event on, and often peaks higher. An example in MiB: a layer with a weight w of 8, an activation a of 20, a gradient g of
8, and SGD with momentum, whose first step makes a momentum m of 8 and whose second takes a temporary t of 8:

    step          w was there   +20 a   +8 g   -20 a   mark   -8 g
    optimizer     first step    +8 m
                  second step   +8 t    -8 t

    joined        +20 a   +8 g   -20 a   +8 m   -8 g      +20 a   +8 g   -20 a   +8 t   -8 t   -8 g
    alive    8       28     36      16     24     16         36     44      24     32     24     16

The peak is 44 MiB, in the second backward. One step would have said 36.

Both steps of the optimizer keep the numbers of their blocks, as the second frees or reads what the first made. The blocks of the training
step are taken in twice, since the second a is another storage than the first. A block that the step made and never freed stays alive and
is not made again.

In a fused backward each gradient is stepped and freed as it comes. The marks then lie within backward, each for one parameter, and every
parameter has an optimizer tape of its own:

    step          +20 a   +8 g1   mark 1   -8 g1   +8 g2   mark 2   -8 g2   -20 a
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from .. import training
from ..memory import CATEGORIES, PHASES, MemoryTrace, Observer, card_scratch_bytes, operators
from .meta_step import Accelerator, answers

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

    from ..datasets import Batch
    from ..models import Model
    from ..recipe import Recipe

BACKWARD = "backward"
"""Owner of blocks that backward makes outside of any module."""


@dataclass
class Tape:
    """Blocks, and the events that made and freed them: n blocks, m events."""

    sizes: np.ndarray
    """Bytes of each block, (n)."""
    categories: np.ndarray
    """Place in `CATEGORIES` of each block, (n)."""
    owners: list[str]
    """Module that each block belongs to, (n)."""
    base: np.ndarray
    """Numbers of the blocks that were there before."""
    blocks: np.ndarray
    """Block of each event, or -1 for what a kernel holds for itself, (m)."""
    changes: np.ndarray
    """Bytes of each event, negative where the block is freed, (m)."""
    phases: np.ndarray
    """Place in `PHASES` of each event, (m)."""
    names: list[str]
    """Operator of each event, or an empty text, (m)."""
    marks: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """Calls of the optimizer: the event that follows, and the numbers of the parameters."""
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
        """Context that is recorded."""

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
        self.owners.append(self._homes.get(tensor) or running or (BACKWARD if self.ledger.phase == "backward" else ""))

    def gradient(self, block: int, parameter: Parameter) -> None:
        self.owners[block] = self._homes.get(parameter, "")

    def ran(self, func, args: tuple, kwargs: dict, out: object) -> None:
        self.last = str(func)
        self.flops += operators.flops(func, args, kwargs, out)
        if self._on_card and (size := card_scratch_bytes(func, args)):
            self.ledger.scratch(size, self.last)

    def mark(self, parameters: tuple[int, ...]) -> None:
        """Note a call of the optimizer for these parameters."""
        self.marks.append((len(self.ledger.events), parameters))

    def tape(self) -> Tape:
        """Tape of what was recorded, once that has ended."""
        blocks, events = self.ledger.blocks, self.ledger.events
        phases = np.array([PHASES.index(event.phase) for event in events], dtype=np.int8)
        backward = np.flatnonzero(phases == PHASES.index("backward"))
        if len(backward):  # clipping and looking for what is not finite belong to the optimizer's part of a step
            phases[backward[-1] + 1 :] = PHASES.index("optimizer")
        return Tape(
            sizes=np.array([block.bytes for block in blocks], dtype=np.int64),
            categories=np.array([CATEGORIES.index(block.category) for block in blocks], dtype=np.int8),
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
    with accelerator.prepared(list(sd.learners.values()), kernels), recorder.recording():
        for last in (False, True)[-min(rounds, 2) :]:
            accelerator.sync_gradients = last
            training.training_step(sd, batch, recipe, optimizer, accelerator=cast("Any", accelerator))
    return recorder.tape()


@dataclass
class Steps:
    """Tape of two steps of an optimizer, and the event with which the second begins."""

    tape: Tape
    second: int

    @property
    def halves(self) -> tuple[slice, slice]:
        """Events of the first step, and of the second."""
        return slice(0, self.second), slice(self.second, None)


@dataclass
class Timeline:
    """Tape of two training steps, and the event with which the second begins."""

    tape: Tape
    second: int


class _Joined:
    """Blocks and events of several tapes, put together."""

    def __init__(self) -> None:
        self.sizes: list[np.ndarray] = []
        self.categories: list[np.ndarray] = []
        self.owners: list[str] = []
        self.pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]] = []
        self.count = self.length = 0
        """Blocks and events so far."""

    def add(self, tape: Tape, chosen: slice | np.ndarray = slice(None), *, owner: str | None = None) -> int:
        """Take in the chosen blocks of a tape, all of one owner if that is given. Returns the number of the first."""
        first, self.count = self.count, self.count + len(tape.sizes[chosen])
        self.sizes.append(tape.sizes[chosen])
        self.categories.append(tape.categories[chosen])
        self.owners += tape.owners if owner is None else [owner] * (self.count - first)
        return first

    def play(self, tape: Tape, part: slice, first: int, without: np.ndarray | None = None) -> None:
        """The events of a part of a tape, whose block 0 is number `first` here; not those of blocks for which `without` is true."""
        blocks, changes, phases, names = tape.blocks[part], tape.changes[part], tape.phases[part], tape.names[part]
        if without is not None and (dropped := without[blocks]).any():
            blocks, changes, phases = blocks[~dropped], changes[~dropped], phases[~dropped]
            names = list(itertools.compress(names, ~dropped))
        self.pieces.append((np.where(blocks >= 0, blocks + first, blocks), changes, phases, names))
        self.length += len(blocks)


def join(step: Tape, optimizer: list[Steps]) -> Timeline:
    """The step twice, with the optimizer's steps at its marks: see the example at the top.

    `optimizer` has one `Steps` for all parameters, or one for each.
    """
    joined = _Joined()
    joined.add(step)
    base = [step.base]
    for steps in {id(steps): steps for steps in optimizer}.values():
        there = steps.tape.base[steps.tape.categories[steps.tape.base] == CATEGORIES.index("optimizer state")]
        base.append(joined.add(steps.tape, there, owner="optimizer") + np.arange(len(there)))
    own = [joined.add(steps.tape, owner="optimizer") for steps in optimizer]
    again = joined.add(step)
    lasting = np.zeros(len(step.sizes) + 1, dtype=bool)  # not made again in the second step; the last is scratch, number -1
    lasting[step.blocks[step.changes > 0]] = True
    lasting[step.blocks[step.changes < 0]] = False
    lasting[step.base] = True

    for turn, first, without in ((0, 0, None), (1, again, lasting)):
        second, at = joined.length, 0
        for mark, parameters in [*step.marks, (len(step.blocks), ())]:
            joined.play(step, slice(at, mark), first, without)
            at = mark
            if parameters:  # none at the end, nor in the call that follows a fused backward
                for number in (0,) if len(optimizer) == 1 else parameters:
                    joined.play(optimizer[number].tape, optimizer[number].halves[turn], own[number])
    blocks, changes, phases, names = zip(*joined.pieces, strict=True)
    return Timeline(
        Tape(
            sizes=np.concatenate(joined.sizes),
            categories=np.concatenate(joined.categories),
            owners=joined.owners,
            base=np.concatenate(base),
            blocks=np.concatenate(blocks),
            changes=np.concatenate(changes),
            phases=np.concatenate(phases),
            names=list(itertools.chain.from_iterable(names)),
            flops=step.flops,
        ),
        second,
    )


def with_block(timeline: Timeline, size: int, category: str, owner: str) -> Timeline:
    """Timeline with one more block, of `size` bytes, that was there before."""
    one = timeline.tape
    more = replace(
        one,
        sizes=np.append(one.sizes, size),
        categories=np.append(one.categories, np.int8(CATEGORIES.index(category))),
        owners=[*one.owners, owner],
        base=np.append(one.base, len(one.sizes)),
    )
    return Timeline(more, timeline.second)
