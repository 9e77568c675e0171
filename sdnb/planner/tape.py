"""A training step as a tape of allocations, recorded once on the meta device and joined with the tape of any optimizer.

A tape is what an allocator sees of a program: the storages it asked for, and the events that made and freed them, in order. `record` runs
the package's own `training_step` on the meta device, where tensors have shapes and no contents, and writes down every storage. So there
is no formula for the memory of a model: whatever the step does is on the tape.

The training step and the optimizer are recorded separately. In the training step the optimizer is a `Marker`, which allocates nothing and
leaves a mark: before which event it was called, and for which parameters. An optimizer's allocations depend only on the shapes of the
parameters, so `optimizer_tape` records its first two steps without any model. `join` inserts them at the marks. To compare ten optimizers,
forward and backward are recorded once.

The joined tape has two steps. The first makes the optimizer's state, after the activations are gone. In the second the state exists
from the first event on, so it often peaks higher. An example in MiB: a layer with a weight w of 8, an activation a of 20, a gradient g of
8, and SGD with momentum, whose first step makes a momentum m of 8 and whose second takes a temporary t of 8:

    step          w exists      +20 a   +8 g   -20 a   mark   -8 g
    optimizer     first step    +8 m
                  second step   +8 t    -8 t

    joined        +20 a   +8 g   -20 a   +8 m   -8 g      +20 a   +8 g   -20 a   +8 t   -8 t   -8 g
    alive    8       28     36      16     24     16         36     44      24     32     24     16

The peak is 44 MiB, in the second backward. One step would have said 36.

Both steps of the optimizer share their storages, as the second frees or reads what the first made. The storages of the training step are
added twice, since the second a is another storage than the first. A storage that the step made and never freed stays alive and is not
made again.

In a fused backward each gradient is used and freed as soon as it is complete. The marks then lie within backward, each for one parameter,
and every parameter has an optimizer tape of its own (with `fused_optimizer_groups` every group of parameters):

    step          +20 a   +8 g1   mark 1   -8 g1   +8 g2   mark 2   -8 g2   -20 a
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from .. import training
from ..datasets import latents
from ..memory import CATEGORIES, PHASES, SCRATCH, MemoryTrace, Observer, cuda_scratch, operators, tensors_in
from ..memory import attention as attentions
from .meta_step import MetaAccelerator, answers

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

    from ..datasets import Batch
    from ..models import Model
    from ..recipe import Recipe

REDUCTIONS: dict[cuda_scratch.Reduction, int] = {}
"""Numbers that stand for the scratch memory of reductions in a tape, below `SCRATCH`. One tape serves cards of any size."""
BACKWARD = "backward"
"""Owner of storages that backward makes outside of any module."""


@dataclass
class Tape:
    """n storages, numbered from 0, and the m events that made and freed them."""

    sizes: np.ndarray
    """Bytes of each storage, (n)."""
    categories: np.ndarray
    """Index in `CATEGORIES` of each storage, (n)."""
    owners: list[str]
    """Module that each storage belongs to, (n)."""
    base: np.ndarray
    """Numbers of the storages that exist before the first event."""
    storages: np.ndarray
    """Storage of each event, or -1 for the scratch memory of a kernel, (m). Below -1 its size depends on the card: see `on_card`."""
    changes: np.ndarray
    """Bytes of each event, negative where the storage is freed, (m)."""
    phases: np.ndarray
    """Index in `PHASES` of each event, (m)."""
    names: list[str]
    """Operator of each event, or an empty text, (m)."""
    marks: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """Calls of the optimizer: the event that follows, and the indices of the parameters."""
    flops: int = 0


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python's garbage collector from running inside this context.

    Of the many small objects of a tape it finds none to free, and looks at them over and over: a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Recorder(Observer):
    """Records a `Tape`: the storages of a `MemoryTrace`, with their owners, the FLOPs and the calls of an optimizer.

    With `kernels="cuda"` tensors on the CPU, such as an optimizer's step counts, are not counted.
    """

    def __init__(
        self, parts: dict[str, Module], *, kernels: str, attention: str = "auto", capability: tuple[int, int] = attentions.DEFAULT
    ) -> None:
        self._on_card = kernels == "cuda"
        self.trace = MemoryTrace(
            *parts.values(), kernels=kernels, attention=attention, capability=capability, cpu_tensors=not self._on_card
        )
        self.ledger = self.trace.ledger
        self.trace.observe(self)
        self._module_stages = {module: _stage(part, name) for part, model in parts.items() for name, module in model.named_modules()}
        self._tensor_stages = {
            tensor: _stage(part, name.rpartition(".")[0])
            for part, model in parts.items()
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        self.owners: list[str] = []
        self.marks: list[tuple[int, tuple[int, ...]]] = []
        self.last_operator = ""
        self.flops = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record inside this context."""
        with self.trace, answers(lambda: self.last_operator):
            yield

    def storage_made(self, storage: int, tensor: Tensor) -> None:
        running = self._module_stages.get(self.trace.modules.running, "")
        self.owners.append(self._tensor_stages.get(tensor) or running or (BACKWARD if self.ledger.phase == "backward" else ""))

    def gradient_ready(self, storage: int, parameter: Parameter) -> None:
        self.owners[storage] = self._tensor_stages.get(parameter, "")

    def operator_ran(self, func, args: tuple, kwargs: dict, out: object) -> None:
        self.last_operator = str(func)
        self.flops += operators.flops(func, args, kwargs, out)
        if self._on_card:
            for results, size in cuda_scratch.scratch(func, args):
                before = max(0, sum(1 for _ in tensors_in(out)) - results)
                if isinstance(size, cuda_scratch.Reduction):
                    number = REDUCTIONS.setdefault(size, SCRATCH - 1 - len(REDUCTIONS))
                    self.ledger.add_scratch(1, self.last_operator, number=number, before=before)
                else:
                    self.ledger.add_scratch(size, self.last_operator, before=before)

    def mark(self, parameters: tuple[int, ...]) -> None:
        """Record a call of the optimizer for the parameters with these indices."""
        self.marks.append((len(self.ledger.events), parameters))

    def tape(self) -> Tape:
        """Tape of the context that was recorded, after its end."""
        storages, events = self.ledger.storages, self.ledger.events
        phases = np.array([PHASES.index(event.phase) for event in events], dtype=np.int8)
        backward = np.flatnonzero(phases == PHASES.index("backward"))
        if len(backward):  # clipping and the search for non-finite gradients belong to the optimizer's part of a step
            phases[backward[-1] + 1 :] = PHASES.index("optimizer")
        return Tape(
            sizes=np.array([storage.bytes for storage in storages], dtype=np.int64),
            categories=np.array([CATEGORIES.index(storage.category) for storage in storages], dtype=np.int8),
            owners=self.owners,
            base=np.array(self.ledger.base, dtype=np.int64),
            storages=np.array([event.storage for event in events], dtype=np.int64),
            changes=np.array([event.bytes for event in events], dtype=np.int64),
            phases=phases,
            names=[event.operator for event in events],
            marks=self.marks,
            flops=self.flops,
        )


def _stage(part: str, name: str) -> str:
    """Stage of a model that a module belongs to: `unet`, `down_blocks.1.attentions.0` -> `unet.down_blocks.1`."""
    words = [part, *name.split(".")] if name else [part]
    return ".".join(words[: 3 if len(words) > 2 and words[2].isdigit() else 2])


class Marker(torch.optim.Optimizer):
    """Optimizer that changes nothing and reports each call to the recorder.

    `checks_gradients`: as for `Adafactor`, a fused backward leaves the search for non-finite gradients to the optimizer.
    """

    skipped = 0

    def __init__(self, parameters: list, recorder: Recorder, *, checks_gradients: bool = False, by_group: bool = False) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self.recorder, self.checks_gradients = recorder, checks_gradients
        groups = [group["params"] for group in self.param_groups]
        self.indices = {p: index for index, p in enumerate(itertools.chain(*groups))}
        if by_group:
            self.indices = {p: index for index, group in enumerate(groups) for p in group}

    def step(self, closure=None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if all(p in self.indices for p in parameters):  # a fused backward first tries the optimizer on a parameter of its own
            self.recorder.mark(tuple(dict.fromkeys(self.indices[p] for p in parameters)))


def record(
    sd: Model,
    batch: Batch,
    recipe: Recipe,
    parts: dict[str, Module],
    groups: list[list[Parameter]],
    *,
    kernels: str,
    checks_gradients: bool,
    attention: str = "auto",
    capability: tuple[int, int] = attentions.DEFAULT,
    encoded: tuple[int, int] | None = None,
    encoded_at_once: int = 1,
) -> Tape:
    """Record one optimizer step of `recipe` on the meta device, with two batches if it accumulates more than one.

    - `parts`: modules that stay on the card, by name
    - `groups`: the trained parameters, as the optimizer has them
    - `kernels`: `cuda` or `cpu`; `attention` and `capability` as in `MemoryTrace`
    - `checks_gradients`: whether the optimizer of a fused backward itself looks for non-finite gradients
    - `encoded`: (width, height) of pictures that are encoded for each batch, `encoded_at_once` together
    """
    recorder = Recorder(parts, kernels=kernels, attention=attention, capability=capability)
    by_group = bool(recipe.fused_optimizer_groups)
    optimizer = Marker([{"params": group} for group in groups], recorder, checks_gradients=checks_gradients, by_group=by_group)
    rounds = recipe.gradient_accumulation_steps
    accelerator = MetaAccelerator(recipe.mixed_precision, rounds)
    with accelerator.prepared(list(sd.learners.values()), kernels), recorder.recording():
        for last in (False, True)[-min(rounds, 2) :]:
            accelerator.sync_gradients = last
            if encoded:
                latents.encoded(sd.vae, torch.empty(encoded_at_once, 3, *encoded[::-1], device="meta"))
            training.training_step(sd, batch, recipe, optimizer, accelerator=cast("Any", accelerator))
    return recorder.tape()


@dataclass
class OptimizerSteps:
    """Tape of an optimizer's first two steps."""

    tape: Tape
    second: int
    """Event with which the second step begins."""

    @property
    def halves(self) -> tuple[slice, slice]:
        """Events of the first step, and those of the second."""
        return slice(0, self.second), slice(self.second, None)


@dataclass
class Timeline:
    """Tape of the first two training steps, the optimizer's included."""

    tape: Tape
    second: int
    """Event with which the second step begins."""
    calls: Sequence[tuple[int, int]] = ()
    """First event and end of each call of the optimizer, in both steps."""


class _Joined:
    """Storages and events of several tapes, put together."""

    def __init__(self) -> None:
        self.sizes: list[np.ndarray] = []
        self.categories: list[np.ndarray] = []
        self.owners: list[str] = []
        self.pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]] = []
        self.storage_count = 0
        self.event_count = 0

    def add(self, tape: Tape, selected: slice | np.ndarray = slice(None), *, owner: str | None = None) -> int:
        """Add storages of a tape, all of them or those selected; returns the new number of the first. `owner` replaces their owners."""
        first, count = self.storage_count, len(tape.sizes[selected])
        self.storage_count += count
        self.sizes.append(tape.sizes[selected])
        self.categories.append(tape.categories[selected])
        self.owners += tape.owners if owner is None else [owner] * count
        return first

    def append(self, tape: Tape, part: slice, first: int, without: np.ndarray | None = None) -> None:
        """Append events of a tape.

        - `part`: which events
        - `first`: the number that storage 0 of the tape has here
        - `without`: True for storages whose events are left out, (n + 1); the last entry is for scratch
        """
        storages, changes, phases, names = tape.storages[part], tape.changes[part], tape.phases[part], tape.names[part]
        if without is not None and (dropped := without[np.maximum(storages, SCRATCH)]).any():
            storages, changes, phases = storages[~dropped], changes[~dropped], phases[~dropped]
            names = list(itertools.compress(names, ~dropped))
        self.pieces.append((np.where(storages >= 0, storages + first, storages), changes, phases, names))
        self.event_count += len(storages)


def join(step: Tape, optimizer: list[OptimizerSteps]) -> Timeline:
    """Timeline of the training step twice, with the optimizer's two steps at its marks: see the example at the top.

    `optimizer` has one entry for all parameters, or one for each of those, or of the groups, that the marks name.
    """
    joined = _Joined()
    joined.add(step)
    base = [step.base]
    for steps in {id(steps): steps for steps in optimizer}.values():
        state = steps.tape.base[steps.tape.categories[steps.tape.base] == CATEGORIES.index("optimizer state")]
        base.append(joined.add(steps.tape, state, owner="optimizer") + np.arange(len(state)))
    optimizer_firsts = [joined.add(steps.tape, owner="optimizer") for steps in optimizer]
    second_copy = joined.add(step)
    lasting = np.zeros(len(step.sizes) + 1, dtype=bool)  # True: the second step does not make it anew; the last entry is for scratch
    numbers = np.maximum(step.storages, SCRATCH)
    lasting[numbers[step.changes > 0]] = True
    lasting[numbers[step.changes < 0]] = False
    lasting[step.base] = True
    calls: list[tuple[int, int]] = []

    for turn, first, without in ((0, 0, None), (1, second_copy, lasting)):
        second, position = joined.event_count, 0
        for mark, parameters in [*step.marks, (len(step.storages), ())]:
            joined.append(step, slice(position, mark), first, without)
            position = mark
            if parameters:  # none at the end, nor in the call that follows a fused backward
                start = joined.event_count
                for index in (0,) if len(optimizer) == 1 else parameters:
                    joined.append(optimizer[index].tape, optimizer[index].halves[turn], optimizer_firsts[index])
                calls.append((start, joined.event_count))
    storages, changes, phases, names = zip(*joined.pieces, strict=True)
    return Timeline(
        Tape(
            sizes=np.concatenate(joined.sizes),
            categories=np.concatenate(joined.categories),
            owners=joined.owners,
            base=np.concatenate(base),
            storages=np.concatenate(storages),
            changes=np.concatenate(changes),
            phases=np.concatenate(phases),
            names=list(itertools.chain.from_iterable(names)),
            flops=step.flops,
        ),
        second,
        calls,
    )


def on_card(timeline: Timeline, resident_threads: int) -> Timeline:
    """Timeline with the scratch memory of reductions as large as on a card that runs `resident_threads` at once.

    Their events keep the numbers that say which reduction each is for.
    """
    tape, sizes = timeline.tape, np.array([reduction.scratch_bytes(resident_threads) for reduction in REDUCTIONS], dtype=np.int64)
    places = np.flatnonzero(tape.storages < SCRATCH)
    changes = tape.changes.copy()
    changes[places] *= sizes[SCRATCH - 1 - tape.storages[places]]
    return replace(timeline, tape=replace(tape, changes=changes))


def with_storage(timeline: Timeline, size: int, category: str, owner: str) -> Timeline:
    """Timeline with one more storage in its base, of `size` bytes."""
    tape = timeline.tape
    longer = replace(
        tape,
        sizes=np.append(tape.sizes, size),
        categories=np.append(tape.categories, np.int8(CATEGORIES.index(category))),
        owners=[*tape.owners, owner],
        base=np.append(tape.base, len(tape.sizes)),
    )
    return replace(timeline, tape=longer)
