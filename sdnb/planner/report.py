"""`MemoryPlan`: the memory that a training run needs, as numbers, a table and a picture; `planning` makes it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..memory import CATEGORIES, GIB, MIB, PHASES, Moment
from ..recipe import Recipe
from . import allocator, tape

if TYPE_CHECKING:
    from ..plots import Chart
    from ..system import Card

UNCONFIRMED = "Figures for CUDA are predicted, and not yet confirmed on a real card."


@dataclass(frozen=True, repr=False)
class MemoryPlan:
    """Memory of a run over its first two steps; the second has the optimizer's state from its start. Prints as a table."""

    model: str
    recipe: Recipe
    size: tuple[int, int]
    """Width and height of the pictures, in pixels."""
    device: str
    """Device whose kernels and allocator are planned: `cuda` or `cpu`."""
    dtype: str
    """Precision of the model's weights: `fp32`, `bf16` or `fp16`."""
    trained: int
    """Number of trained parameters (scalars)."""
    flops: int
    """FLOPs of forward and backward in one optimizer step."""
    gpu: Card | None
    checkpointing: str
    note: str
    """A remark on how it was planned; empty if there is none."""
    _timeline: tape.Timeline = field(repr=False)
    _workspace: int = 0

    # how much

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at once. On CUDA each request is rounded as its allocator does, and cuBLAS' workspaces are included."""
        return int(self._totals.max(initial=self._start)) + self._workspace

    @property
    def peaks(self) -> dict[str, int]:
        """Most bytes alive at once in each phase."""
        phases = self._timeline.tape.phases
        found = {name: self._totals[phases == number] for number, name in enumerate(PHASES)}
        return {name: int(totals.max()) + self._workspace for name, totals in found.items() if len(totals)}

    @property
    def static_bytes(self) -> int:
        """Bytes that stay throughout: weights, the optimizer's state, inputs, workspaces."""
        return int(self._totals[self._timeline.second - 1]) + self._workspace if len(self._totals) else self._start

    @property
    def dynamic_bytes(self) -> int:
        """Bytes at the peak that come and go in a step: gradients, activations, temporaries."""
        return self.peak_bytes - self.static_bytes

    @functools.cached_property
    def _replayed(self) -> allocator.Allocator | None:
        if self.device != "cuda":
            return None
        return self._play(None)

    @property
    def allocated_bytes(self) -> int:
        """Expected `torch.cuda.max_memory_allocated()`: `peak_bytes` and the unused rest of each block. On a CPU `peak_bytes`."""
        return self._replayed.peak_allocated if self._replayed else self.peak_bytes

    @property
    def reserved_bytes(self) -> int:
        """Expected `torch.cuda.max_memory_reserved()` on a card with room to spare. On a CPU `peak_bytes`."""
        return self._replayed.peak_reserved if self._replayed else self.peak_bytes

    @functools.cached_property
    def fits(self) -> bool | None:
        """Whether it runs on the card, where the allocator may have to give unused segments back. None without a card."""
        if self.gpu is None:
            return None
        if self.peak_bytes > self.gpu.usable_bytes:
            return False
        try:
            self._play(self.gpu.usable_bytes)
        except allocator.OutOfMemory:
            return False
        return True

    @property
    def spare_bytes(self) -> int | None:
        """Bytes of the card beyond the peak; negative if the card is too small. None without a card."""
        return None if self.gpu is None else self.gpu.usable_bytes - self.allocated_bytes

    def _play(self, capacity: int | None) -> allocator.Allocator:
        one = self._timeline.tape
        base = one.base.tolist()
        places = {number: place for place, number in enumerate(base)}
        offset = len(base) + 1
        sizes = [*one.sizes[one.base].tolist(), self._workspace or 1]
        blocks = [places.get(number, number + offset) if number >= 0 else -1 for number in one.blocks.tolist()]
        return allocator.replay(sizes, zip(blocks, one.changes.tolist(), strict=True), capacity=capacity)

    # what and where

    @functools.cached_property
    def _changes(self) -> np.ndarray:
        changes = self._timeline.tape.changes
        return np.sign(changes) * _rounded(np.abs(changes), self.device)

    @functools.cached_property
    def _start(self) -> int:
        one = self._timeline.tape
        return int(_rounded(one.sizes[one.base], self.device).sum())

    @functools.cached_property
    def _totals(self) -> np.ndarray:
        return self._start + np.cumsum(self._changes)

    @functools.cached_property
    def _peak_place(self) -> int:
        return int(self._totals.argmax()) if len(self._totals) else 0

    def _alive(self, place: int) -> np.ndarray:
        """Bytes of each block that is alive after the event at `place`."""
        one = self._timeline.tape
        alive = np.zeros(len(one.sizes), dtype=np.int64)
        alive[one.base] = _rounded(one.sizes[one.base], self.device)
        blocks, changes = one.blocks[: place + 1], self._changes[: place + 1]
        np.add.at(alive, blocks[blocks >= 0], changes[blocks >= 0])
        return alive

    @functools.cached_property
    def by_category(self) -> dict[str, int]:
        """Bytes alive at the peak by category, in the order of `memory.CATEGORIES`, then the workspaces."""
        one, alive = self._timeline.tape, self._alive(self._peak_place)
        parts = np.bincount(one.categories, weights=alive, minlength=len(CATEGORIES)).astype(np.int64)
        held = dict(zip(CATEGORIES, parts.tolist(), strict=True))
        held["temporaries"] += int(self._totals[self._peak_place] - alive.sum())  # what the kernel itself holds
        return {**held, "workspaces": self._workspace} if self._workspace else held

    @functools.cached_property
    def by_module(self) -> dict[str, int]:
        """Bytes alive at the peak by module, the largest first."""
        held: dict[str, int] = {}
        for owner, size in zip(self._timeline.tape.owners, self._alive(self._peak_place).tolist(), strict=True):
            if size:
                held[owner or "the step itself"] = held.get(owner or "the step itself", 0) + size
        return dict(sorted(held.items(), key=lambda item: -item[1]))

    @property
    def peak(self) -> Moment:
        """The moment of the peak."""
        one = self._timeline.tape
        held = dict(self.by_category)
        held.pop("workspaces", None)
        return Moment(one.names[self._peak_place], PHASES[one.phases[self._peak_place]], held)

    @property
    def peak_step(self) -> int:
        """The step in which the peak lies: 1, or 2, which has the optimizer's state from its start."""
        return 1 + int(self._peak_place >= self._timeline.second)

    @functools.cached_property
    def timeline(self) -> list[Moment]:
        """Bytes alive after each event of both steps, without the workspaces."""
        one = self._timeline.tape
        kinds = np.where(one.blocks >= 0, one.categories[one.blocks], CATEGORIES.index("temporaries"))
        start = np.bincount(one.categories[one.base], weights=_rounded(one.sizes[one.base], self.device), minlength=len(CATEGORIES))
        changes = np.zeros((len(kinds) + 1, len(CATEGORIES)), dtype=np.int64)
        changes[0] = start
        changes[np.arange(1, len(kinds) + 1), kinds] = self._changes
        rows = np.cumsum(changes, axis=0).tolist()
        phases, names = [PHASES[0], *(PHASES[number] for number in one.phases.tolist())], ["", *one.names]
        return [Moment(n, p, dict(zip(CATEGORIES, row, strict=True))) for n, p, row in zip(names, phases, rows, strict=True)]

    # said and shown

    def as_dict(self) -> dict:
        """Everything but the timeline, for programs. All sizes are in bytes."""
        card = None
        if self.gpu is not None:
            card = {"name": self.gpu.name, "usable_bytes": self.gpu.usable_bytes, "fits": self.fits, "spare_bytes": self.spare_bytes}
            card["needs"] = self.gpu.needs or None
        return {
            "model": self.model,
            "flags": self.recipe.to_flags(),
            "width": self.size[0],
            "height": self.size[1],
            "batch_size": self.recipe.train_batch_size,
            "checkpointing": self.checkpointing,
            "note": self.note,
            "device": self.device,
            "dtype": self.dtype,
            "trained": self.trained,
            "flops": self.flops,
            "peak_bytes": self.peak_bytes,
            "allocated_bytes": self.allocated_bytes,
            "reserved_bytes": self.reserved_bytes,
            "static_bytes": self.static_bytes,
            "dynamic_bytes": self.dynamic_bytes,
            "peak_step": self.peak_step,
            "peak_phase": self.peak.phase,
            "phases": self.peaks,
            "categories": self.by_category,
            "modules": self.by_module,
            "gpu": card,
            "confirmed": self.device == "cpu",
        }

    def __str__(self) -> str:
        width, height = self.size
        what = f"{self.model} in {self.dtype}, {width}×{height}, {_batch(self.recipe)}, {self.recipe.optimizer_type}"
        mixed = "" if self.recipe.mixed_precision == "no" else f", mixed {self.recipe.mixed_precision}"
        lines = [
            f"{what}{mixed}{', fused backward' if self.recipe.fused_backward_pass else ''}, recomputing {self.checkpointing}",
            f"{self.trained / 1e6:,.1f} million numbers trained, {self.flops / 1e12:,.2f} TFLOPs a step",
            "",
            f"peak        {said(self.peak_bytes)}   in {self.peak.phase} of step {self.peak_step}",
        ]
        if self.device == "cuda":
            lines.append(f"allocated   {said(self.allocated_bytes)}   by the allocator's count")
            lines.append(f"reserved    {said(self.reserved_bytes)}   from the driver")
        lines.append(f"static      {said(self.static_bytes)}   dynamic {said(self.dynamic_bytes).strip()}")
        lines += ["", "alive at the peak"]
        lines += [f"  {name:17}{said(size)}  {size / self.peak_bytes:6.1%}" for name, size in self.by_category.items() if size]
        lines += ["", "the most in each phase"]
        lines += [f"  {name:17}{said(size)}" for name, size in self.peaks.items()]
        lines += ["", "at the peak, by module"]
        lines += [f"  {name:24}{said(size)}" for name, size in list(self.by_module.items())[:6]]
        if self.gpu is not None:
            verdict = "fits" if self.fits else "does not fit"
            spare = self.spare_bytes or 0
            rest = f"{said(abs(spare)).strip()} {'to spare' if spare >= 0 else 'missing'}"
            lines += ["", f"{verdict} on {self.gpu.name} ({said(self.gpu.usable_bytes).strip()} usable): {rest}"]
            lines += [f"{self.gpu.name} needs {self.gpu.needs}"] if self.gpu.needs else []
        lines += ["", self.note] if self.note else []
        if self.device == "cuda":
            lines += ["", UNCONFIRMED]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def draw(self) -> Chart:
        """The timeline of both steps as a picture. `plots.bars` compares the `by_category` of several plans."""
        from .. import plots

        return plots.anatomy(self)


def _rounded(sizes: np.ndarray, device: str) -> np.ndarray:
    return sizes if device == "cpu" else -(-sizes // allocator.STEP) * allocator.STEP


def _batch(recipe: Recipe) -> str:
    rounds = recipe.gradient_accumulation_steps
    return f"batch {recipe.train_batch_size}" + (f" × {rounds} accumulated" if rounds > 1 else "")


def said(size: int) -> str:
    """Bytes in words, in a fitting unit."""
    return f"{size / GIB:8,.2f} GiB" if size >= GIB else f"{size / MIB:8,.1f} MiB"
