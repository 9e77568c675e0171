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

    from .frontier import Point
    from .memory import MemoryTrace
    from .training import Step

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"  # Okabe & Ito: told apart with every common colour blindness
DPI = 90
MIB, GIB = 2**20, 2**30
LOOKS = {  # of what memory holds: colour, hatch
    "weights": ("#BBBBBB", ""),
    "optimizer state": ("#56B4E9", ".."),
    "gradients": (BLUE, "//"),
    "activations": (ORANGE, "\\\\"),
    "inputs": ("#009E73", "++"),
    "temporaries": ("#F0E442", "xx"),
}


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


def anatomy(trace: MemoryTrace, *, title: str | None = None) -> Chart:
    """What memory held over the operators of a trace, by category. Raises `ValueError` for a trace that saw none."""
    from matplotlib.figure import Figure

    moments = trace.timeline
    if len(moments) < 2:
        raise ValueError("nothing to show: no operator ran inside this trace")
    peak = max(range(len(moments)), key=lambda i: moments[i].total)
    every = max(1, len(moments) // 1200)
    shown = sorted({*range(0, len(moments), every), peak, len(moments) - 1})
    unit, scale = ("GiB", GIB) if moments[peak].total > 2 * GIB else ("MiB", MIB)
    layers = {name: [moments[i].bytes[name] / scale for i in shown] for name in LOOKS}
    layers = {name: layer for name, layer in layers.items() if max(layer) > 0.003 * moments[peak].total / scale}

    figure = Figure(figsize=(7.2, 3.0), layout="constrained", facecolor="white")
    axis = figure.subplots()
    colours, hatches = zip(*(LOOKS[name] for name in layers), strict=True)
    axis.stackplot(shown, layers.values(), labels=layers, colors=colours, hatch=list(hatches), edgecolor="white", linewidth=0)
    top = moments[peak].total / scale
    for start, phase in _phases(moments):
        axis.axvline(start, color="black", linewidth=0.8, linestyle=":")
        axis.text(start, 1.17 * top, f" {phase}", fontsize=8, va="top")
    axis.plot(peak, top, "v", color="black", markersize=5)
    axis.annotate(f"peak {top:,.1f} {unit}", (peak, top), (7, 0), textcoords="offset points", fontsize=8)
    axis.set(xlabel="moments at which something was allocated or freed", ylabel=unit, xlim=(0, shown[-1]), ylim=(0, 1.18 * top))
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8, reverse=True)
    held = moments[peak].bytes
    finding = f"At the peak, in {moments[peak].phase}, {held['activations'] / moments[peak].total:.0%} are activations"
    axis.set_title(title or finding, fontsize=10)
    parts = ", ".join(f"{name} {size / scale:,.1f}" for name, size in held.items() if name in layers)
    return Chart(figure, f"{title + '. ' if title else ''}{finding}. Peak {top:,.1f} {unit}: {parts}.")


def _phases(moments) -> list[tuple[int, str]]:
    """Where each phase first begins."""
    starts: dict[str, int] = {}
    for index, moment in enumerate(moments):
        starts.setdefault(moment.phase, index)
    return sorted((index, phase) for phase, index in starts.items())


def frontier(points: Sequence[Point], marks: Mapping[str, tuple[int, float]], *, title: str) -> Chart:
    """Peak over the price in FLOPs: the solver's points as a line, and single choices, peak bytes and FLOPs ratio, as marks beside it.

    Raises `ValueError` without points.
    """
    from matplotlib.figure import Figure

    if not points:
        raise ValueError("no points to show")
    unit, scale = ("GiB", GIB) if points[0].peak_bytes > 2 * GIB else ("MiB", MIB)
    figure = Figure(figsize=(6.4, 3.2), layout="constrained", facecolor="white")
    axis = figure.subplots()
    axis.plot(
        [point.flops_ratio for point in points],
        [point.peak_bytes / scale for point in points],
        "o-",
        color=BLUE,
        markersize=4,
        label="the solver's choices",
    )
    for (name, (peak, ratio)), marker in zip(marks.items(), "sD^vP*", strict=False):
        axis.plot(ratio, peak / scale, marker, color=ORANGE, markersize=8, label=name)
    axis.set(xlabel="FLOPs of forward and backward, beside recomputing nothing", ylabel=f"peak, {unit}")
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    ends = f"from {points[0].peak_bytes / scale:,.1f} {unit} at {points[0].flops_ratio:.2f} times the FLOPs"
    ends += f" to {points[-1].peak_bytes / scale:,.1f} at {points[-1].flops_ratio:.2f}"
    beside = "; ".join(f"{name}: {peak / scale:,.1f} at {ratio:.2f}" for name, (peak, ratio) in marks.items())
    return Chart(figure, f"{title}. The solver's choices go {ends}. {beside}.")


def smoothed(values: Sequence[float], weight: float = 0.95) -> list[float]:
    """An exponential moving average, corrected for its start."""
    average, total, out = 0.0, 0.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        out.append(average / total)
    return out


def bars(plans: Mapping[str, object], *, title: str, limit: int | None = None) -> Chart:
    """What is alive at the peak of each `MemoryPlan`, as stacked bars; `limit` is a line, such as what a card has, in bytes.

    Raises `ValueError` without plans.
    """
    from matplotlib.figure import Figure

    if not plans:
        raise ValueError("no plans to show")
    most = max(plan.peak_bytes for plan in plans.values())
    unit, scale = ("GiB", GIB) if most > 2 * GIB else ("MiB", MIB)
    figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(plans)), layout="constrained", facecolor="white")
    axis = figure.subplots()
    names = list(plans)
    left = [0.0] * len(names)
    for category, (colour, hatch) in LOOKS.items():
        widths = [plan.by_category[category] / scale for plan in plans.values()]
        if max(widths) > 0.003 * most / scale:
            axis.barh(names, widths, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=category)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, plan in enumerate(plans.values()):
        axis.text(plan.peak_bytes / scale, place, f" {plan.peak_bytes / scale:,.1f}", va="center", fontsize=8)
    if limit is not None:
        axis.axvline(limit / scale, color="black", linestyle="--", linewidth=1)
        axis.annotate(
            "usable", (limit / scale, 1.0), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8, va="top"
        )
    axis.invert_yaxis()
    axis.set(xlabel=f"alive at the peak, {unit}", xlim=(0, 1.12 * max(most, limit or 0) / scale))
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=10)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    rows = "; ".join(
        f"{name}: {plan.peak_bytes / scale:,.1f} ("
        + ", ".join(f"{part} {size / scale:,.1f}" for part, size in plan.by_category.items() if size > 0.003 * most)
        + ")"
        for name, plan in plans.items()
    )
    return Chart(figure, f"{title}. Peaks in {unit}: {rows}." + (f" The line is at {limit / scale:,.1f}." if limit else ""))
