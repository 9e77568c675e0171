"""`Playback`: a traced training step, thinned to the moments that a reader can tell apart.

A step of Stable Diffusion 1.5 makes and frees tens of thousands of storages. A playback keeps some thousand of the moments between these
events, its *frames*: the last of each run of events of one cell, every move of the total by `STRIDE` of the peak, and the peak of each
kind of work. What it says of a frame is exact to the byte:

    names      of modules, operators and cells, for which the numbers below stand
    frames     a row for each: kind of work (index in `KINDS`), module and operator that ran last
    changes    a row for each frame: pairs, code and bytes, that changed since the frame before; the first row is all that was there. The
               code is cell × (number of categories) + category
    tensors    the largest that are alive in any frame: bytes, category, module, operator, shape, dtype, first frame, first frame without it

A *block* is a top-level piece of a network such as `down_blocks.0`, a *cell* a piece of a block such as `down_blocks.0.resnets.1`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..memory import CATEGORIES as TENSORS
from ..memory import SCRATCH

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..memory import Event, MemoryTrace

KINDS = ("forward", "recompute", "backward", "optimizer")
"""Kinds of work: the phases, and what backward does to compute activations again."""
CATEGORIES = (*TENSORS, "workspaces")
LASTING = ("weights", "optimizer state", "workspaces")
"""Categories that outlive a step, whose tensors are not listed."""
STRIDE = 1 / 400
"""Move of the total, as a share of the peak, that gets a frame of its own."""
SHOWN = 6
"""Most tensors that are listed in one frame."""


class Numbered:
    """Numbers for names, in the order in which they come."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._numbers = {name: number for number, name in enumerate(names)}

    def __getitem__(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def list(self) -> list[str]:
        """The names, that with number 0 first."""
        return [*self._numbers]


@dataclass(frozen=True)
class Names:
    """Names for which the numbers of playbacks stand; several may share them."""

    modules: Numbered = field(default_factory=Numbered)
    operators: Numbered = field(default_factory=Numbered)
    cells: Numbered = field(default_factory=Numbered)

    @classmethod
    def of(cls, lists: dict[str, list[str]]) -> Names:
        """Names as `as_dict` gave them."""
        return cls(**{kind: Numbered(names) for kind, names in lists.items()})

    def as_dict(self) -> dict[str, list[str]]:
        """The names as JSON has them."""
        return {kind: numbered.list() for kind, numbered in vars(self).items()}


@dataclass(frozen=True)
class Playback:
    """Frames of a step, as described above. F frames, C cells, K categories."""

    names: Names
    frames: list[list[int]]
    changes: list[list[int]]
    tensors: list[list[Any]]

    @classmethod
    def of(
        cls, trace: MemoryTrace, *, start: int = 0, changes: Sequence[int] | None = None, unit: int = 1, workspaces: int = 0,
        names: Names | None = None,
    ) -> Playback:  # fmt: skip
        """Playback of a trace that has ended.

        - `start`: first event to play; what was made before is there in the first frame
        - `changes`: bytes of each event, where they are not the trace's own
        - `unit`: bytes to a multiple of which an allocator rounds every storage
        - `workspaces`: bytes that are always there
        - `names`: those that it shares with other playbacks

        Raises `ValueError` for a trace without operators.
        """
        if len(trace.ledger.events) <= start:
            raise ValueError("nothing to show: no operator ran inside this trace")
        return _Thinning(trace, start, changes, unit, workspaces, names or Names()).playback()

    def as_dict(self) -> dict[str, list]:
        """The playback as JSON has it, without its names."""
        return {"frames": self.frames, "changes": self.changes, "tensors": self.tensors}

    @cached_property
    def held(self) -> np.ndarray:
        """Bytes of each cell and category in each frame, (F, C, K)."""
        cells = len(self.names.cells.list())
        moves = np.zeros((len(self.changes), cells * len(CATEGORIES)), dtype=np.int64)
        for row, pairs in zip(moves, self.changes, strict=True):
            np.add.at(row, pairs[::2], pairs[1::2])
        return moves.cumsum(axis=0).reshape(len(moves), cells, len(CATEGORIES))

    @property
    def totals(self) -> np.ndarray:
        """Bytes in each frame, (F)."""
        return self.held.sum(axis=(1, 2))

    @property
    def peak(self) -> int:
        """Frame with the most bytes, the first of several."""
        return int(self.totals.argmax())

    @property
    def peak_bytes(self) -> int:
        """Bytes in the frame with the most."""
        return int(self.totals.max())

    @property
    def peak_kind(self) -> str:
        """Kind of work at the peak, one of `KINDS`."""
        return KINDS[self.frames[self.peak][0]]

    def by_category(self, frame: int) -> dict[str, int]:
        """Bytes of a frame by category."""
        return dict(zip(CATEGORIES, self.held[frame].sum(axis=0).tolist(), strict=True))

    def by_block(self, frame: int) -> dict[str, dict[str, int]]:
        """Bytes of a frame by block and category: the blocks in the order in which they work, then the others."""
        modules = self.names.modules.list()
        sizes: dict[str, dict[str, int]] = {block(modules[row[1]]): dict.fromkeys(CATEGORIES, 0) for row in self.frames}
        for name, row in zip(self.names.cells.list(), self.held[frame].tolist(), strict=True):
            held = sizes.setdefault(block(name), dict.fromkeys(CATEGORIES, 0))
            for category, size in zip(CATEGORIES, row, strict=True):
                held[category] += size
        return sizes

    def largest(self, frame: int) -> list[list[Any]]:
        """Rows of the largest tensors of a frame, besides those of `LASTING`."""
        alive = [row for row in self.tensors if row[-2] <= frame < row[-1]]
        return sorted(alive, key=lambda row: -row[0])[:SHOWN]


def block(module: str) -> str:
    """Block that a module belongs to.

    >>> block("down_blocks.0.resnets.1.conv1"), block("mid_block.attentions.0.proj_in"), block("AutoencoderKL.encoder.conv_in")
    ('down_blocks.0', 'mid_block', 'AutoencoderKL')
    """
    words = module.split(".")
    return ".".join(words[: 2 if len(words) > 1 and words[1].isdigit() else 1])


def cell(module: str) -> str:
    """Cell that a module belongs to: a numbered piece of its block, or the whole block.

    >>> cell("down_blocks.0.resnets.1.conv1"), cell("mid_block.attentions.0.proj_in"), cell("time_embedding.linear_1")
    ('down_blocks.0.resnets.1', 'mid_block.attentions.0', 'time_embedding')
    """
    outer = block(module)
    words = module[len(outer) + 1 :].split(".")
    named = "_block" in outer and len(words) > 1 and words[1].isdigit()
    return ".".join([outer, *words[:2]]) if named else outer


def kinds(events: Iterable[Event]) -> list[str]:
    """Kind of work of each event.

    What runs between backward and the optimizer's step, such as clipping and the search for gradients that are not finite, is counted as
    the optimizer's, and so is what is freed after it.
    """
    runs = [(phase, list(run)) for phase, run in itertools.groupby(events, key=lambda event: event.phase)]
    found: list[str] = []
    for place, (phase, run) in enumerate(runs):
        around = [runs[other][0] if 0 <= other < len(runs) else "" for other in (place - 1, place + 1)]
        if phase == "forward" and around == ["backward", "optimizer"] and not any(event.module for event in run):
            phase = "optimizer"
        freed = len([*itertools.takewhile(lambda event: event.bytes < 0, run)]) if around[0] == "optimizer" else 0
        found += ["optimizer"] * freed + ["recompute" if event.recomputing else phase for event in run[freed:]]
    return found


class _Thinning:
    """A trace on its way to a playback. m events, n storages."""

    def __init__(self, trace: MemoryTrace, start: int, changes: Sequence[int] | None, unit: int, workspaces: int, names: Names) -> None:
        ledger = trace.ledger
        self.events, self.storages, self.base, self.unit = ledger.events, ledger.storages, ledger.base, unit
        self.start, self.workspaces, self.names = start, workspaces, names
        self.kinds = kinds(self.events)
        self.operators = [event.operator.removesuffix(".default") for event in self.events]
        plain = np.array([event.bytes for event in self.events] if changes is None else changes, dtype=np.int64)
        self.changes = np.sign(plain) * self._rounded(np.abs(plain))
        self.totals = self.changes.cumsum() + sum(int(self._rounded(self.storages[number].bytes)) for number in self.base) + workspaces

    def _rounded(self, size: Any) -> Any:
        return -(-size // self.unit) * self.unit

    def playback(self) -> Playback:
        """The playback: its frames first, then what each of them says."""
        kept, names = self._kept(), self.names
        frames = [[KINDS.index(self.kinds[at]), names.modules[self.events[at].module], names.operators[self._operator(at)]] for at in kept]
        changes, at = [], 0
        for number, last in enumerate(kept):
            moves: dict[int, int] = {}
            if not number:
                moves[names.cells[""] * len(CATEGORIES) + CATEGORIES.index("workspaces")] = self.workspaces
                for storage in self.base:
                    code = self._code(storage, "")
                    moves[code] = moves.get(code, 0) + int(self._rounded(self.storages[storage].bytes))
            for event, change in zip(self.events[at : last + 1], self.changes[at : last + 1].tolist(), strict=True):
                code = self._code(event.storage, event.module)
                moves[code] = moves.get(code, 0) + change
            at = last + 1
            changes.append([value for pair in moves.items() if pair[1] for value in pair])
        return Playback(names, frames, changes, self._tensors(np.array(kept)))

    def _kept(self) -> list[int]:
        """Events after which there is a frame."""
        last = len(self.events) - 1
        peak = int(self.totals[self.start :].max())
        highest: dict[str, int] = {}
        for at in range(self.start, last + 1):
            best = highest.setdefault(self.kinds[at], at)
            if self.totals[at] > self.totals[best]:
                highest[self.kinds[at]] = at
        kept, shown = {self.start, last, *highest.values()}, self.totals[self.start]
        for at in range(self.start, last + 1):
            ends = at < last and self._place(at) != self._place(at + 1)
            if ends or at in kept or abs(self.totals[at] - shown) > STRIDE * peak:
                kept.add(at)
                shown = self.totals[at]
        return sorted(kept)

    def _place(self, at: int) -> tuple[str, str]:
        """Kind and cell of an event. In a fused backward the optimizer takes turns with backward, in the same cell."""
        kind, where = self.kinds[at], cell(self.events[at].module)
        return ("backward" if kind == "optimizer" and where else kind), where

    def _operator(self, at: int) -> str:
        """Operator that ran last at an event."""
        return next((self.operators[before] for before in range(at, -1, -1) if self.operators[before]), "")

    def _code(self, storage: int, module: str) -> int:
        """Code of a change; scratch memory, which is no storage, is a temporary of the module at work."""
        if storage <= SCRATCH:
            return self.names.cells[cell(module)] * len(CATEGORIES) + CATEGORIES.index("temporaries")
        row = self.storages[storage]
        # a fused backward makes the optimizer's state inside the modules: for it to stay in one place, it is the step's own in every step
        where = "" if row.category == "optimizer state" else cell(row.module)
        return self.names.cells[where] * len(CATEGORIES) + CATEGORIES.index(str(row.category))

    def _tensors(self, kept: np.ndarray) -> list[list[Any]]:
        """Rows of the tensors that are among the `SHOWN` largest of any frame."""
        made, freed, by = dict.fromkeys(self.base, -1), {}, {}
        for at, event in enumerate(self.events):
            if event.storage >= 0:
                (made if event.bytes > 0 else freed)[event.storage] = at
                by.setdefault(event.storage, self.operators[at])
        count, rows = np.zeros(len(kept), dtype=int), []
        for number in sorted(made, key=lambda number: -self.storages[number].bytes):
            row = self.storages[number]
            first, end = (int(np.searchsorted(kept, at)) for at in (made[number], freed.get(number, len(self.events))))
            if first == end or row.category in LASTING or count[first:end].min() >= SHOWN:
                continue
            count[first:end] += 1
            dtype, category = str(row.dtype).removeprefix("torch."), CATEGORIES.index(str(row.category))
            size, module, operator = int(self._rounded(row.bytes)), self.names.modules[row.module], self.names.operators[by.get(number, "")]
            rows.append([size, category, module, operator, list(row.shape), dtype, first, end])
        return rows
