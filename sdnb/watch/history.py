"""`History`: one record per step of a run, and figures over all of them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..memory import NOTHING, Reading
from ..system import files

if TYPE_CHECKING:
    from ..training import Step

FIELDS = (
    "index",
    "loss",
    "validation_loss",
    "learning_rate",
    "seconds",
    "waited_seconds",
    "pictures",
    "forward_peak_bytes",
    "backward_peak_bytes",
    "optimizer_peak_bytes",
    "allocated_bytes",
    "reserved_bytes",
    *Reading.__slots__,
)
INTEGER_FIELDS = {"index", "pictures", *(name for name in FIELDS if name.endswith("_bytes"))}
PHASES = ("forward", "backward", "optimizer")
_ROWS = {name: row for row, name in enumerate(FIELDS)}
_SMOOTHED_ROW = len(FIELDS)
CLEAR = 3.5
"""Standard errors by which the loss must have changed to be called rising or falling: losses without a trend do so about once in 1,000
looks."""
FEW = 10
"""Fewest steps in each of the two thirds."""
_MAX_PENDING = 256
"""Most steps whose loss is not yet read: on a GPU it is a tensor, and reading it waits for the card."""


class History:
    """Steps and the gauges' readings, as columns of numbers. A step may be any object with the fields of `Step`."""

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self._table = np.full((len(FIELDS) + 1, 64), np.nan)  # a row for each field, a column for each step
        self._count = 0  # columns in use
        self._pending: list[tuple[Step, Reading]] = []
        self._smoothed_loss = 0.0
        self._finite_losses = 0
        self.planned: int | None = None
        """Length of the whole run in steps; None if unknown."""
        for step in steps:
            self.add(step)

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, float | None]]) -> History:
        """History from records like those of `records`."""
        history = cls()
        for record in records:
            history._append([math.nan if (value := record.get(name)) is None else value for name in FIELDS])
        return history

    def add(self, step: Step, reading: Reading = NOTHING) -> None:
        """Append a step. Its loss is not read before the history is."""
        self._pending.append((step, reading))
        self.planned = getattr(step, "steps", None) or self.planned
        if len(self._pending) == _MAX_PENDING:
            self._read_pending()

    def __len__(self) -> int:
        return self._count + len(self._pending)

    def __getitem__(self, name: str) -> np.ndarray:
        """Values of one of `FIELDS`, or of the `"smoothed"` loss: (steps,) float64, NaN for missing ones."""
        self._read_pending()
        return self._table[_SMOOTHED_ROW if name == "smoothed" else _ROWS[name], : self._count]

    def has(self, name: str) -> bool:
        """Whether any step has a number for a field."""
        return bool(len(self)) and not np.isnan(self[name]).all()

    def records(self) -> list[dict[str, float | int | None]]:
        """One dict per step, by `FIELDS`, with None for missing values. A loss that is NaN or infinite stays so."""
        self._read_pending()
        is_integer = [name in INTEGER_FIELDS for name in FIELDS]
        return [
            {
                name: (None if math.isnan(value) and name != "loss" else int(value) if integer else value)
                for name, integer, value in zip(FIELDS, is_integer, column, strict=False)
            }
            for column in self._table[:, : self._count].T.tolist()
        ]

    @classmethod
    def from_csv(cls, path: str | Path, run: str | None = None) -> History:
        """History from a file of `to_csv`; `run` selects one of several runs. Raises `ValueError` for another file or name."""
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"index", "loss", "learning_rate"} <= set(rows[0]):
            raise ValueError(f"{path} holds no steps: give a file that to_csv wrote")
        names = list(dict.fromkeys(row.get("run", "") for row in rows))
        if (run is None and len(names) > 1) or (run is not None and run not in names):
            raise ValueError(f"{path} holds the runs {', '.join(names)}: say run= one of them")
        own_rows = [row for row in rows if run is None or row["run"] == run]
        return cls.from_records({name: float(row[name]) if row.get(name) else None for name in FIELDS} for row in own_rows)

    def to_csv(self, path: str | Path) -> Path:
        """Write the records under a line of names; returns the path. An existing file is replaced once the new one is complete."""
        return write_csv(path, FIELDS, self.records())

    # figures over all steps

    @property
    def not_finite(self) -> list[int]:
        """Indices of the steps whose loss was NaN or infinite."""
        return [int(step) for step in self["index"][~np.isfinite(self["loss"])]]

    @property
    def peak(self) -> tuple[float, str, int] | None:
        """Highest peak in bytes, its phase, and its step's index; None if no peak was measured."""
        peaks = [(float(np.nanmax(self[f"{phase}_peak_bytes"])), phase) for phase in PHASES if self.has(f"{phase}_peak_bytes")]
        if not peaks:
            return None
        highest, phase = max(peaks)
        return highest, phase, int(self["index"][int(np.nanargmax(self[f"{phase}_peak_bytes"]))])

    def mean_loss(self, part: slice) -> float:
        """Mean of the finite losses of some steps; NaN without any."""
        losses = self["loss"][part]
        losses = losses[np.isfinite(losses)]
        return float(losses.mean()) if len(losses) else math.nan

    def quarters(self) -> tuple[float, float]:
        """Mean loss over the first quarter of the steps and over the last."""
        quarter = max(1, len(self) // 4)
        return self.mean_loss(slice(0, quarter)), self.mean_loss(slice(-quarter, None))

    @property
    def validations(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the steps after which the model was tried on the pictures held out, and its losses on them."""
        tried = np.isfinite(self["validation_loss"])
        return self["index"][tried], self["validation_loss"][tried]

    @property
    def trend(self) -> str:
        """Trend of the loss over the last two thirds of the steps: `"falling"`, `"rising"` or `"no clear trend"`; empty for too few steps.

        It falls or rises if the means of these two thirds differ by more than `CLEAR` standard errors of their difference, and by more
        than one percent.
        """
        losses = self["loss"]
        losses = losses[np.isfinite(losses)]
        part = len(losses) // 3
        if part < FEW:
            return ""
        before, now = losses[-2 * part : -part], losses[-part:]
        change = now.mean() - before.mean()
        error = math.sqrt((before.var(ddof=1) + now.var(ddof=1)) / part)
        if abs(change) <= max(CLEAR * error, 0.01 * abs(before.mean())):
            return "no clear trend"
        return "falling" if change < 0 else "rising"

    # the table

    def _read_pending(self) -> None:
        pending, self._pending = self._pending, []
        for step, reading in pending:
            peaks = getattr(step, "peaks", None) or {}
            values = (
                step.index,
                step.loss,
                getattr(step, "validation_loss", None),
                step.learning_rate,
                getattr(step, "seconds", None),
                getattr(step, "waited_seconds", None),
                getattr(step, "pictures", None),
                *(peaks.get(phase) for phase in PHASES),
                getattr(step, "allocated_bytes", None),
                getattr(step, "reserved_bytes", None),
                *(getattr(reading, name) for name in Reading.__slots__),
            )
            self._append([math.nan if value is None else value for value in values])

    def _append(self, values: list[float]) -> None:
        if self._count == self._table.shape[1]:
            self._table = np.concatenate([self._table, np.full_like(self._table, np.nan)], axis=1)
        self._table[:-1, self._count] = values
        self._table[_SMOOTHED_ROW, self._count] = self._smoothed(values[1])
        self._count += 1

    def _smoothed(self, loss: float) -> float:
        """Running mean of the finite losses, over about the last tenth of them and at least eight."""
        if not math.isfinite(loss):
            return math.nan
        self._finite_losses += 1
        self._smoothed_loss += (loss - self._smoothed_loss) / min(self._finite_losses, max(8.0, self._finite_losses / 10))
        return self._smoothed_loss


def write_csv(path: str | Path, fields: Iterable[str], rows: Iterable[Mapping]) -> Path:
    """Write rows under a line of field names; returns the path. An existing file is replaced once the new one is complete."""
    path, text = Path(path), io.StringIO(newline="")
    writer = csv.DictWriter(text, list(fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return files.write(path, text.getvalue())


def thinned(x: np.ndarray, y: np.ndarray, points: int, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a curve to at most `points` points, each for a group of neighbours. A group of NaN stays a gap.

    `how` selects the value of a group: `"range"` (two points, the smallest and the largest, so that no spike is lost), `"max"`, `"mean"`
    or `"last"`. The size of a group is a power of two, so that a growing curve does not wander.
    """
    if len(y) <= points:
        return x, y
    size = 2 ** math.ceil(math.log2(len(y) / (points // 2 if how == "range" else points)))
    starts = np.arange(0, len(y), size)
    if how == "last":
        ends = np.minimum(starts + size, len(y)) - 1
        return x[ends], y[ends]
    if how == "mean":
        finite = np.isfinite(y)
        count = np.add.reduceat(finite, starts, dtype=float)
        total = np.add.reduceat(np.where(finite, y, 0.0), starts)
        return x[starts], np.divide(total, count, out=np.full(len(starts), np.nan), where=count > 0)
    top = np.fmax.reduceat(y, starts)
    if how == "max":
        return x[starts], top
    return np.repeat(x[starts], 2), np.column_stack([np.fmin.reduceat(y, starts), top]).ravel()
