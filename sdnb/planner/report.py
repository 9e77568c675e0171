"""`MemoryPlan`: the memory that a training run needs, as numbers, a table and a picture; `planning` makes it."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..memory import CATEGORIES, GIB, MIB, PHASES, Moment
from ..memory import attention as attentions
from ..recipe import Recipe
from ..system import DOES_NOT_FIT, FITS, MARGIN, SPILLS, TIGHT
from . import allocator, tape, trainers

if TYPE_CHECKING:
    from ..plots import Chart
    from ..system import Card
    from . import phases
    from .comparison import Comparison
    from .planning import Question
    from .smallest import Advice

MEASURED = ("H200",)
"""Cards that have confirmed the planner: `data/recorded/gpu-*.json`."""
KERNELS = {
    "aten._scaled_dot_product_cudnn_attention": "cudnn",
    "aten._scaled_dot_product_flash_attention": "flash",
    "aten._scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten._scaled_dot_product_efficient_attention": "efficient",
    "aten._softmax": "whole matrices",
    "aten._safe_softmax": "whole matrices",
}
"""Attention by the operator that tells it."""
HOW_RIGHT = "Figures for CUDA are predicted. 36 such predictions for an H200 were within 0.3% of what it allocated, 5% of what it reserved."
TIGHT_MEANS = (
    f"tight: the tensors have room, but less than {MARGIN:.0%} of what is reserved is left, which is how far predictions can be off. "
    "It may stop"
)

WITHOUT_ROOM = (
    'Without room a run stops on Linux with "out of memory". On Windows the driver spills: it moves memory to the computer\'s, and steps '
    f"take many times as long.\n{SPILLS}"
)


@dataclass(frozen=True, repr=False)
class MemoryPlan:
    """Memory of a run over its first two steps; in the second the optimizer's state exists from the start. Prints as a table."""

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
    """Card that the run is planned for, if any."""
    checkpointing: str
    """Words for what is recomputed, such as `every block`."""
    note: str
    """Remark on how it was planned; empty if there is none."""
    trainer: str
    """Trainer whose run was planned: `sdnb`, `sd-scripts` or `diffusers`."""
    script: str
    """The other trainer's script; empty for `sdnb`."""
    question: Question
    """What was asked beside the recipe."""
    _timeline: tape.Timeline = field(repr=False)
    _workspace: int = 0
    _setting: phases.Setting | None = field(default=None, repr=False, compare=False)

    # sizes

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at once. On CUDA each request is rounded as its allocator does, and cuBLAS' workspaces are included."""
        return int(self._totals.max(initial=self._start)) + self._workspace

    @property
    def peaks(self) -> dict[str, int]:
        """Most bytes alive at once in each phase."""
        phases = self._timeline.tape.phases
        by_phase = {name: self._totals[phases == number] for number, name in enumerate(PHASES)}
        return {name: int(totals.max()) + self._workspace for name, totals in by_phase.items() if len(totals)}

    @property
    def static_bytes(self) -> int:
        """Bytes that stay throughout: weights, the optimizer's state, inputs, workspaces."""
        return int(self._totals[self._timeline.second - 1]) + self._workspace if len(self._totals) else self._start

    @property
    def dynamic_bytes(self) -> int:
        """Bytes at the peak that are made and freed within a step: gradients, activations, temporaries."""
        return self.peak_bytes - self.static_bytes

    @functools.cached_property
    def _replayed(self) -> allocator.Allocator | None:
        """Allocator after both steps. Storages are numbered anew: the base first, then the workspace, then all others."""
        if self.device != "cuda":
            return None
        tape = self._timeline.tape
        new_numbers = {number: index for index, number in enumerate(tape.base.tolist())}
        offset = len(new_numbers) + 1
        sizes = [*tape.sizes[tape.base].tolist(), self._workspace or 1]
        storages = [new_numbers.get(number, number + offset) if number >= 0 else -1 for number in tape.storages.tolist()]
        return allocator.replay(sizes, zip(storages, tape.changes.tolist(), strict=True))

    @property
    def allocated_bytes(self) -> int:
        """Expected `torch.cuda.max_memory_allocated()`: `peak_bytes` and the unused rest of each allocated block. On a CPU `peak_bytes`."""
        return self._replayed.peak_allocated if self._replayed else self.peak_bytes

    @property
    def reserved_bytes(self) -> int:
        """Expected `torch.cuda.max_memory_reserved()` on a card with room to spare. On a CPU `peak_bytes`."""
        return self._replayed.reserved if self._replayed else self.peak_bytes

    @property
    def verdict(self) -> str | None:
        """One of `system.VERDICTS`, by `Card.verdict`; None without a card."""
        if self.gpu is None:
            return None
        if self.peak_bytes > self.gpu.usable_bytes:
            return DOES_NOT_FIT  # known without the allocator
        return self.gpu.verdict(self.allocated_bytes, self.reserved_bytes)

    @property
    def fits(self) -> bool | None:
        """Whether the verdict is that it fits, and not only tightly. None without a card."""
        return None if self.gpu is None else self.verdict == FITS

    @property
    def spare_bytes(self) -> int | None:
        """Bytes of the card beyond what is reserved; negative if the card is too small. None without a card."""
        return None if self.gpu is None else self.gpu.usable_bytes - self.reserved_bytes

    @functools.cached_property
    def attention(self) -> str:
        """Kernels that the step's attention runs, those of most calls first, such as `cudnn, flash`: see `memory.attention`.

        `whole matrices` is torch's `math`, or a trainer's own; `chunks` is that of sd-scripts' `mem_eff_attn`.
        """
        found = Counter(KERNELS[name] for name in self._timeline.tape.names if name in KERNELS)
        chunks = ["chunks"] if self.trainer == "sd-scripts" and trainers.flag(self.recipe) == "mem_eff_attn" else []
        return ", ".join(chunks + [kernel for kernel, _ in found.most_common()])

    @property
    def _attention_words(self) -> str:
        dtype = self.dtype if self.recipe.mixed_precision == "no" else self.recipe.mixed_precision
        major, minor = self.gpu.capability if self.gpu else attentions.DEFAULT
        return f"{self.attention}, in {dtype}" + (f" on sm_{major}{minor}" if self.device == "cuda" else "")

    def advice(self, *, count: int = 2, seconds: float | None = None, is_full: bool = False) -> Advice:
        """The smallest changes of this recipe with which it fits its card, by its own trainer.

        - `count`: most sets of changes to name
        - `seconds`: time after which the search stops with what it has found
        - `is_full`: the run has filled its card, whatever the plan says, so its changes have to save something

        Plans up to some twenty variants: about a second each for SD 1.5, five for SDXL. Raises `ValueError` without a card, and where the
        plan's model was a loaded one that is gone.
        """
        from .smallest import advice

        return advice(self, count=count, seconds=seconds, is_full=is_full)

    def compare(self, other: MemoryPlan) -> Comparison:
        """Where the bytes of `other` differ from those of this plan, by category and by module, and by which settings."""
        from .comparison import Comparison

        return Comparison(self, other)

    # categories and modules

    @functools.cached_property
    def _changes(self) -> np.ndarray:
        """Rounded bytes of each event, (m)."""
        changes = self._timeline.tape.changes
        return np.sign(changes) * _rounded(np.abs(changes), self.device)

    @functools.cached_property
    def _start(self) -> int:
        """Rounded bytes alive before the first event."""
        tape = self._timeline.tape
        return int(_rounded(tape.sizes[tape.base], self.device).sum())

    @functools.cached_property
    def _totals(self) -> np.ndarray:
        """Rounded bytes alive after each event, (m)."""
        return self._start + np.cumsum(self._changes)

    @functools.cached_property
    def _peak_event(self) -> int:
        return int(self._totals.argmax()) if len(self._totals) else 0

    def _alive(self, event: int) -> np.ndarray:
        """Bytes of each storage that are alive after an event, (n); 0 for freed ones."""
        tape = self._timeline.tape
        alive = np.zeros(len(tape.sizes), dtype=np.int64)
        alive[tape.base] = _rounded(tape.sizes[tape.base], self.device)
        storages, changes = tape.storages[: event + 1], self._changes[: event + 1]
        np.add.at(alive, storages[storages >= 0], changes[storages >= 0])
        return alive

    @functools.cached_property
    def by_category(self) -> dict[str, int]:
        """Bytes alive at the peak by category, in the order of `memory.CATEGORIES`, then the workspaces."""
        alive = self._alive(self._peak_event)
        sizes = np.bincount(self._timeline.tape.categories, weights=alive, minlength=len(CATEGORIES)).astype(np.int64)
        by_category = dict(zip(CATEGORIES, sizes.tolist(), strict=True))
        by_category["temporaries"] += int(self._totals[self._peak_event] - alive.sum())  # scratch memory of a kernel
        return {**by_category, "workspaces": self._workspace} if self._workspace else by_category

    @functools.cached_property
    def by_module(self) -> dict[str, int]:
        """Bytes alive at the peak by module, the largest first."""
        by_owner: dict[str, int] = {}
        for owner, size in zip(self._timeline.tape.owners, self._alive(self._peak_event).tolist(), strict=True):
            if size:
                module = owner or "the step itself"
                by_owner[module] = by_owner.get(module, 0) + size
        return dict(sorted(by_owner.items(), key=lambda item: -item[1]))

    @property
    def peak(self) -> Moment:
        """Moment of the peak, without the workspaces."""
        tape, by_category = self._timeline.tape, dict(self.by_category)
        by_category.pop("workspaces", None)
        return Moment(tape.names[self._peak_event], PHASES[tape.phases[self._peak_event]], by_category)

    @property
    def peak_step(self) -> int:
        """Step of the peak: 1, or 2, in which the optimizer's state exists from the start."""
        return 1 + int(self._peak_event >= self._timeline.second)

    @functools.cached_property
    def timeline(self) -> list[Moment]:
        """Bytes alive after each event of both steps, without the workspaces."""
        tape = self._timeline.tape
        categories = np.where(tape.storages >= 0, tape.categories[np.maximum(tape.storages, 0)], CATEGORIES.index("temporaries"))
        base_sizes = _rounded(tape.sizes[tape.base], self.device)
        changes = np.zeros((len(categories) + 1, len(CATEGORIES)), dtype=np.int64)  # row 0 is the start
        changes[0] = np.bincount(tape.categories[tape.base], weights=base_sizes, minlength=len(CATEGORIES))
        changes[np.arange(1, len(categories) + 1), categories] = self._changes
        rows = np.cumsum(changes, axis=0).tolist()
        names = ["", *tape.names]
        phases = [PHASES[0], *(PHASES[number] for number in tape.phases.tolist())]
        return [Moment(n, p, dict(zip(CATEGORIES, row, strict=True))) for n, p, row in zip(names, phases, rows, strict=True)]

    @functools.cached_property
    def whole_run(self) -> phases.WholeRun:
        """The phases of the run beside its step, such as previews and saves. Planned when it is asked for, which takes seconds.

        Raises `ValueError` for a plan that `plan` did not make.
        """
        from . import phases

        if self._setting is None:
            raise ValueError("this plan was not made by plan(), which knows the rest of the run")
        return phases.whole_run(self, self._setting)

    # as text and as a picture

    def as_dict(self) -> dict:
        """The plan without its timeline, for JSON. All sizes are in bytes."""
        card = None
        if self.gpu is not None:
            card = {"name": self.gpu.name, "usable_bytes": self.gpu.usable_bytes, "needs": self.gpu.needs or None}
            card |= {"verdict": self.verdict, "fits": self.fits, "spare_bytes": self.spare_bytes}
        return {
            "model": self.model,
            "flags": self.recipe.to_flags(),
            "width": self.size[0],
            "height": self.size[1],
            "batch_size": self.recipe.train_batch_size,
            "checkpointing": self.checkpointing,
            "attention": self.attention,
            "note": self.note,
            "trainer": self.trainer,
            "script": self.script or None,
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
            "confirmed": self.device == "cpu" or (self.gpu is not None and self.gpu.name.removeprefix("NVIDIA ") in MEASURED),
        }

    def __str__(self) -> str:
        width, height = self.size
        there = "" if self.trainer == "sdnb" else f"trained by {self.trainer}: "
        run = f"{there}{self.model} in {self.dtype}, {width}×{height}, {_batch(self.recipe)}, {self.recipe.optimizer_type}"
        mixed = "" if self.recipe.mixed_precision == "no" else f", mixed {self.recipe.mixed_precision}"
        lines = [
            f"{run}{mixed}{', fused backward' if self.recipe.fused_backward_pass else ''}, recomputing {self.checkpointing}",
            f"{self.trained / 1e6:,.1f} million numbers trained, {self.flops / 1e12:,.2f} TFLOPs a step",
            f"attention by {self._attention_words}",
            "",
            f"peak        {in_units(self.peak_bytes)}   in {self.peak.phase} of step {self.peak_step}",
        ]
        if self.device == "cuda":
            lines.append(f"allocated   {in_units(self.allocated_bytes)}   by the allocator's count")
            lines.append(f"reserved    {in_units(self.reserved_bytes)}   from the driver")
        lines.append(f"static      {in_units(self.static_bytes)}   dynamic {in_units(self.dynamic_bytes).strip()}")
        lines += ["", "alive at the peak"]
        lines += [f"  {name:17}{in_units(size)}  {size / self.peak_bytes:6.1%}" for name, size in self.by_category.items() if size]
        lines += ["", "the most in each phase"]
        lines += [f"  {name:17}{in_units(size)}" for name, size in self.peaks.items()]
        lines += ["", "at the peak, by module"]
        lines += [f"  {name:24}{in_units(size)}" for name, size in list(self.by_module.items())[:6]]
        if self.gpu is not None:
            spare = self.spare_bytes or 0
            rest = f"{in_units(abs(spare)).strip()} {'to spare' if spare >= 0 else 'missing'}"
            lines += ["", f"{self.verdict} on {self.gpu.name} ({in_units(self.gpu.usable_bytes).strip()} usable): {rest}"]
            lines += [TIGHT_MEANS] if self.verdict == TIGHT else []
            lines += [WITHOUT_ROOM] if self.verdict != FITS and self.gpu.spills else []
            lines += [f"{self.gpu.name} needs {self.gpu.needs}"] if self.gpu.needs else []
        lines += ["", self.note] if self.note else []
        if self.device == "cuda":
            lines += ["", HOW_RIGHT]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def draw(self) -> Chart:
        """Picture of both steps' timeline. `plots.bars` compares the `by_category` of several plans."""
        from .. import plots

        return plots.anatomy(self)


def _rounded(sizes: np.ndarray, device: str) -> np.ndarray:
    """Bytes of storages as the allocator of `device` rounds them; a CPU's does not."""
    return sizes if device == "cpu" else -(-sizes // allocator.REQUEST_MULTIPLE) * allocator.REQUEST_MULTIPLE


def _batch(recipe: Recipe) -> str:
    rounds = recipe.gradient_accumulation_steps
    return f"batch {recipe.train_batch_size}" + (f" × {rounds} accumulated" if rounds > 1 else "")


def in_units(size: int) -> str:
    """Bytes as text, in GiB or MiB."""
    return f"{size / GIB:8,.2f} GiB" if size >= GIB else f"{size / MIB:8,.1f} MiB"
