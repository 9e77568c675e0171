"""The figures of the course. Each states its finding in its title and again, for those who cannot see it, in a text alternative."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from .training import Step

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"  # Okabe & Ito: told apart with every common colour blindness
DPI = 90


@dataclass(frozen=True, repr=False)
class Chart:
    """A matplotlib figure with its text alternative. Shows itself as the last value of a notebook cell."""

    figure: Figure
    alt: str

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return buffer.getvalue(), {"alt": self.alt}

    def __repr__(self) -> str:
        return self.alt

    def save(self, path: str | Path) -> None:
        """Write the figure; the ending says the format (`.png`, `.svg`, `.pdf`)."""
        self.figure.savefig(path, dpi=DPI)


def grid(rows: Mapping[str, Sequence[Image.Image]], *, titles: Sequence[str] = (), title: str = "", alt: str | None = None) -> Chart:
    """Rows of pictures, each row with its name on the left; `titles` stand above the columns.

    Without `alt` the text alternative is made of the title and the names. Raises `ValueError` when there is nothing to show.
    """
    from matplotlib.figure import Figure

    columns = max((len(row) for row in rows.values()), default=0)
    if not columns:
        raise ValueError("no pictures to show")
    head = (0.26 if title else 0) + (0.2 if titles else 0)
    width, height = 1.1 + 1.05 * columns, 1.05 * len(rows) + head
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, picture in zip(line, pictures, strict=False):
            axis.imshow(picture, interpolation="nearest")
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    for axis, text in zip(axes[0], titles, strict=False):
        axis.set_title(text, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10, y=0.99, va="top")
    figure.subplots_adjust(left=1.1 / width, right=0.995, bottom=0.005, top=1 - head / height, wspace=0.04, hspace=0.04)
    described = f"{title or 'Pictures'}. Rows: {', '.join(rows)}." + (f" Columns: {', '.join(titles)}." if titles else "")
    return Chart(figure, alt or described)


def history(steps: Sequence[Step], *, title: str | None = None) -> Chart:
    """Loss, raw and smoothed, and learning rate over the steps of a run. Raises `ValueError` without any step."""
    from matplotlib.figure import Figure

    if not steps:
        raise ValueError("no steps to show: the run has not begun")
    index = [step.index for step in steps]
    loss = [step.loss for step in steps]
    smooth = smoothed(loss)
    quarter = max(1, len(loss) // 4)
    first, last = sum(loss[:quarter]) / quarter, sum(loss[-quarter:]) / quarter
    finding = f"Mean loss {first:.3f} over the first quarter, {last:.3f} over the last"

    figure = Figure(figsize=(7.2, 2.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.plot(index, loss, color=GREY, linewidth=0.7, alpha=0.7, label="each step")
    left.plot(index, smooth, color=BLUE, linewidth=2, label="smoothed")
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    right.plot(index, [step.learning_rate for step in steps], color=ORANGE, linestyle="--", linewidth=2)
    right.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title or finding, fontsize=10)
    top = max(step.learning_rate for step in steps)
    return Chart(figure, f"{finding}, {len(steps)} steps. The learning rate reaches {top:.3g}.")


def smoothed(values: Sequence[float], weight: float = 0.95) -> list[float]:
    """An exponential moving average, corrected for its start."""
    average, total, out = 0.0, 0.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        out.append(average / total)
    return out
