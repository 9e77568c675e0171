"""The panels of a run: loss, learning rate, memory, speed, and what only some readers need. As curves, and drawn into a still picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from ..system import GIB, MIB, short
from .history import PHASES, History, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, BLACK, SKY)
STYLES = ("-", "--", "-.", ":")
POINTS = 500
"""Most points of a curve: a panel some 500 pixels wide cannot show more."""


@dataclass
class Scene:
    """Runs to draw, by name, and two lines across the memory panel."""

    runs: Mapping[str, History]
    capacity_bytes: int | None = None
    """Memory of the card, in bytes."""
    predicted_bytes: int | None = None
    """Peak that a plan predicted, in bytes."""

    @property
    def last_step(self) -> float:
        """Step at which the axis ends."""
        reached = max((float(run["index"][-1]) for run in self.runs.values() if len(run)), default=0.0)
        planned = max((run.planned or 0 for run in self.runs.values()), default=0)
        return max(reached, planned - 1.0, 1.0)

    @property
    def only(self) -> History | None:
        """The run, if there is only one; None for several."""
        return next(iter(self.runs.values())) if len(self.runs) == 1 else None


@dataclass(frozen=True)
class Curve:
    """One line of a panel: x and y, each (points,), with NaN for gaps."""

    name: str
    """Name in the legend; empty for none. Curves with one name share an entry."""
    x: np.ndarray
    y: np.ndarray
    colour: str
    style: str = "-"
    width: float = 1.6
    marker: str = ""
    marked: int = -1
    """Number of points with the marker, from the first; negative for all."""
    counts: bool = True
    """Whether the scale has to include the curve."""


@dataclass(frozen=True)
class Panel:
    """One panel: a title, and functions of the scene."""

    title: str
    has: Callable[[Scene], bool]
    """Whether there is data for the panel."""
    unit: Callable[[Scene], str]
    """Unit beside the title; may be empty."""
    curves: Callable[[Scene], Iterator[Curve]]
    more: bool = False
    """Whether the live plot shows the panel only to who asks for more."""
    still: bool = True
    """Whether the final picture has the panel."""


def shown(scene: Scene) -> list[Panel]:
    """Panels that have data; loss and learning rate are always shown."""
    return [panel for panel in PANELS if panel.has(scene)]


def _any(*names: str) -> Callable[[Scene], bool]:
    """Function that says whether any run has numbers for one of these fields."""
    return lambda scene: any(run.has(name) for run in scene.runs.values() for name in names)


def group(name: str) -> str:
    """Name of a run without its seed: runs that differ only in the seed look alike."""
    return re.sub(r",? *seed \d+$", "", name)


def _looks(scene: Scene) -> Iterator[tuple[str, History, str, str]]:
    """Yield each run with its group's name, colour and line style: (name, run, colour, style)."""
    groups = list(dict.fromkeys(map(group, scene.runs)))
    for name, run in scene.runs.items():
        index = groups.index(group(name))
        yield group(name), run, COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]


def _loss(scene: Scene) -> Iterator[Curve]:
    if (run := scene.only) is not None:
        loss = np.where(np.isfinite(run["loss"]), run["loss"], np.nan)
        yield Curve("each step", *thinned(run["index"], loss, POINTS, "range"), "#B0B0B0", width=0.8, counts=False)
        yield Curve("smoothed", *thinned(run["index"], run["smoothed"], POINTS, "last"), BLUE, width=2)
    else:
        for name, run, colour, style in _looks(scene):
            yield Curve(name, *thinned(run["index"], run["smoothed"], POINTS, "last"), colour, style)
    for _, run, colour, _ in _looks(scene):
        steps, losses = run.validations
        if len(steps):
            look = (ORANGE, "--") if scene.only is not None else (colour, ":")
            yield Curve("validation", *thinned(steps, losses, POINTS, "last"), *look, marker="D" if len(steps) < 30 else "")
    bad = np.array(sorted({step for run in scene.runs.values() for step in run.not_finite}), dtype=float)
    if len(bad):
        yield Curve("no number", bad[:POINTS], np.zeros(len(bad[:POINTS])), ORANGE, "", marker="x")


def _learning_rate(scene: Scene) -> Iterator[Curve]:
    for _, run, colour, style in _looks(scene):
        look = (ORANGE, "--") if scene.only is not None else (colour, style)
        yield Curve("", *thinned(run["index"], run["learning_rate"], POINTS, "last"), *look)


def _memory_scale(scene: Scene) -> int:
    """Bytes of the memory panel's unit: `GIB` or `MIB`."""
    names = [f"{phase}_peak_bytes" for phase in PHASES] + ["reserved_bytes"]
    highest = max((float(np.nanmax(run[name])) for run in scene.runs.values() for name in names if run.has(name)), default=0)
    return GIB if highest > 2 * GIB else MIB


def _memory_unit(scene: Scene) -> str:
    unit = "GiB" if _memory_scale(scene) == GIB else "MiB"
    has_gaps = any(run.has("forward_peak_bytes") and np.isnan(run["forward_peak_bytes"]).any() for run in scene.runs.values())
    return f"{unit} (dots: measured)" if has_gaps else unit


def _memory(scene: Scene) -> Iterator[Curve]:
    scale = _memory_scale(scene)
    if (run := scene.only) is not None:
        for phase, colour, style in zip(PHASES, (SKY, BLUE, GREEN), (":", "-", "-."), strict=True):
            if run.has(f"{phase}_peak_bytes"):
                yield _peaks(phase, run, run[f"{phase}_peak_bytes"] / scale, colour, style)
        for name, label, style in (("reserved_bytes", "reserved", "--"), ("allocated_bytes", "in use between steps", "-")):
            if run.has(name):
                yield Curve(label, *thinned(run["index"], run[name] / scale, POINTS, "max"), GREY, style, 1.0)
    else:
        for _, run, colour, style in _looks(scene):
            peaks = np.fmax.reduce([run[f"{phase}_peak_bytes"] for phase in PHASES]) / scale
            yield _peaks("", run, peaks, colour, style)
    across = np.array([0.0, scene.last_step])
    if scene.predicted_bytes:
        yield Curve("predicted", across, np.full(2, scene.predicted_bytes / scale), PURPLE, "--", 1.2)
    if scene.capacity_bytes and _near(scene.capacity_bytes, scene):
        yield Curve("the card", across, np.full(2, scene.capacity_bytes / scale), BLACK, "-", 2.2)


def _near(capacity_bytes: int, scene: Scene) -> bool:
    """Whether a card's size is near the runs' peaks; the line of a far larger card would flatten all others."""
    peaks = [run.peak[0] for run in scene.runs.values() if run.peak]
    return bool(peaks) and capacity_bytes < 4 * max(peaks)


def _peaks(name: str, run: History, peaks: np.ndarray, colour: str, style: str) -> Curve:
    """Curve of a phase's peaks. If only some steps were measured, these are marked, and the last value continues to the last step."""
    measured = ~np.isnan(peaks)
    x, y = run["index"][measured], peaks[measured]
    if measured.all() or not len(y):
        return Curve(name, *thinned(x, y, POINTS, "max"), colour, style)
    x, y = np.append(x, run["index"][-1]), np.append(y, y[-1])
    return Curve(name, *thinned(x, y, POINTS, "max"), colour, style, marker="o" if len(x) < 30 else "", marked=len(x) - 1)


def _speed(scene: Scene) -> Iterator[Curve]:
    for _, run, colour, style in _looks(scene):
        with np.errstate(divide="ignore"):
            speed = (run["pictures"] if run.has("pictures") else 1) / run["seconds"]
        x, y = thinned(run["index"][1:], speed[1:], 100, "mean")  # the first step sets things up
        yield Curve("", x, y, *((GREEN, "-") if scene.only is not None else (colour, style)))


def _card(scene: Scene) -> Iterator[Curve]:
    if (run := scene.only) is not None:
        yield Curve("busy, %", *thinned(run["index"], run["gpu_percent"], 200, "mean"), BLUE)
        yield Curve("power, % of limit", *thinned(run["index"], run["power_percent"], 200, "mean"), ORANGE, "--")
        yield Curve("°C", *thinned(run["index"], run["temperature"], 200, "mean"), PURPLE, ":")
    else:
        for _, run, colour, style in _looks(scene):
            yield Curve("", *thinned(run["index"], run["gpu_percent"], 200, "mean"), colour, style)


def _process(scene: Scene) -> Iterator[Curve]:
    for _, run, colour, style in _looks(scene):
        look = (BLUE, "-") if scene.only is not None else (colour, style)
        yield Curve("", *thinned(run["index"], run["process_bytes"] / GIB, 200, "max"), *look)


PANELS = (
    Panel("Loss", lambda scene: True, lambda scene: "" if scene.only is not None else "smoothed", _loss),
    Panel("Learning rate", lambda scene: True, lambda scene: "", _learning_rate),
    Panel(
        "Memory",
        _any(*(f"{phase}_peak_bytes" for phase in PHASES), "reserved_bytes"),
        _memory_unit,
        _memory,
    ),
    Panel(
        "Speed",
        _any("seconds"),
        lambda scene: "pictures a second" if all(run.has("pictures") for run in scene.runs.values() if len(run)) else "steps a second",
        _speed,
    ),
    Panel("Card", _any("gpu_percent"), lambda scene: "% or °C" if scene.only is not None else "% busy", _card, more=True),
    Panel("Computer's memory", _any("process_bytes"), lambda scene: "GiB held by Python", _process, more=True, still=False),
)


def draw(panel: Panel, scene: Scene, axes: Axes) -> None:
    """Draw a panel into axes, for a still picture."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7.5, length=3)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("step", fontsize=8, labelpad=1)
    if panel.title == "Learning rate":
        axes.yaxis.set_major_formatter(lambda rate, position: short(rate))
    unit = panel.unit(scene)
    axes.set_title(f"{panel.title}, {unit}" if unit else panel.title, fontsize=9, loc="left", fontweight="bold")
    curves = list(panel.curves(scene))
    for curve in curves:
        marks: dict[str, Any] = dict(marker=curve.marker, markersize=4, markevery=slice(0, curve.marked) if curve.marked >= 0 else None)
        axes.plot(curve.x, curve.y, color=curve.colour, linestyle=curve.style or "None", linewidth=curve.width, label=curve.name, **marks)
    rows = _add_legend(axes, [curve.name for curve in curves])
    axes.set(xlim=(0, scene.last_step), ylim=(0, _highest(curves) * (1.08 + 0.12 * rows)))


def _add_legend(axes: Axes, names: list[str]) -> int:
    """Add a legend; a name that several lines share has one entry. Returns the rows it needs inside the panel: 0 where it is above."""
    entries = {name: line for name, line in zip(reversed(names), reversed(axes.lines), strict=True) if name}
    lines = list(entries.values())[::-1]
    if not lines:
        return 0
    look: dict[str, Any] = dict(frameon=False, fontsize=7, handlelength=1.7, columnspacing=0.9, handletextpad=0.4)
    look |= dict(borderpad=0, borderaxespad=0.2)
    # on the line of the title where there is room, else over the top of the panel
    longest = max(map(len, entries)) + 5
    columns = len(lines) if longest * len(lines) < 40 else max(1, min((len(lines) + 1) // 2, 72 // longest))
    rows = 0 if columns == len(lines) else -(-len(lines) // columns)
    look |= dict(loc="upper right") if rows else dict(loc="lower right", bbox_to_anchor=(1.0, 1.0))
    axes.legend(handles=lines, ncols=columns, **look)
    return rows


def _highest(curves: list[Curve]) -> float:
    """Value that the scale has to reach: the highest of the curves that count, and nearly the highest of a noisy one."""
    tops = []
    for curve in curves:
        y = curve.y[np.isfinite(curve.y)]
        if len(y):
            tops.append(float(y.max()) if curve.counts else float(np.quantile(y, 0.97)) if curve.name == "each step" else 0.0)
    return max([top for top in tops if top > 0], default=0.8)
