"""The panels of a run's picture: loss, learning rate, memory, speed and card.

A panel is drawn anew only when its scales or names change. Otherwise only its lines are, over a saved picture of the rest.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from ..system import GIB, MIB, short
from .history import PHASES, History, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, BLACK, SKY)
STYLES = ("-", "--", "-.", ":")
POINTS = 500
"""Most points of a line: a picture 480 pixels wide cannot show more."""


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
    return GIB if max(highest, *(_growth(run).max(initial=0) for run in scene.runs.values())) > 2 * GIB else MIB


def _memory_unit(scene: Scene) -> str:
    unit = "GiB" if _memory_scale(scene) == GIB else "MiB"
    has_gaps = any(run.has("forward_peak_bytes") and np.isnan(run["forward_peak_bytes"]).any() for run in scene.runs.values())
    return f"{unit} (dots: measured)" if has_gaps else unit


def _growth(run: History) -> np.ndarray:
    """Growth of the process since the first step, (steps,) in bytes; empty for a run on a GPU."""
    if run.has("reserved_bytes") or not run.has("process_bytes"):
        return np.zeros(0)
    process = run["process_bytes"]
    return np.nan_to_num(process - process[0]).clip(0)


def _memory(scene: Scene) -> Iterator[Curve]:
    scale = _memory_scale(scene)
    if (run := scene.only) is not None:
        for phase, colour, style in zip(PHASES, (SKY, BLUE, GREEN), (":", "-", "-."), strict=True):
            if run.has(f"{phase}_peak_bytes"):
                yield _peaks(phase, run, run[f"{phase}_peak_bytes"] / scale, colour, style)
        for name, label, style in (("reserved_bytes", "reserved", "--"), ("allocated_bytes", "in use between steps", "-")):
            if run.has(name):
                yield Curve(label, *thinned(run["index"], run[name] / scale, POINTS, "max"), GREY, style, 1.0)
        if len(growth := _growth(run)):
            yield Curve("growth of the whole process", *thinned(run["index"], growth / scale, POINTS, "max"), GREY, "--", 1.0)
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


PANELS = (
    Panel("Loss", lambda scene: True, lambda scene: "" if scene.only is not None else "smoothed", _loss),
    Panel("Learning rate", lambda scene: True, lambda scene: "", _learning_rate),
    Panel(
        "Memory",
        lambda scene: (
            _any(*(f"{phase}_peak_bytes" for phase in PHASES), "reserved_bytes")(scene)
            or (scene.only is not None and len(_growth(scene.only)) > 0)
        ),
        _memory_unit,
        _memory,
    ),
    Panel(
        "Speed",
        _any("seconds"),
        lambda scene: "pictures a second" if all(run.has("pictures") for run in scene.runs.values() if len(run)) else "steps a second",
        _speed,
    ),
    Panel("Card", _any("gpu_percent"), lambda scene: "% or °C" if scene.only is not None else "% busy", _card),
)


class View:
    """A panel on its axes. Most updates only move its lines; a new scale, name or unit needs a full redraw."""

    def __init__(self, panel: Panel, axes: Axes, *, moving: bool) -> None:
        self.panel, self.axes = panel, axes
        self._moving = moving
        self._names: list[str] | None = None
        self.lines: list[Line2D] = []
        """Lines as drawn last, from back to front."""
        self._title = None
        self._legend_rows = 0  # 0 for a legend above the axes
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7.5, length=3)
        axes.grid(axis="y", color="#E6E6E6", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_xlabel("step", fontsize=8, labelpad=1)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        if panel.title == "Learning rate":
            axes.yaxis.set_major_formatter(lambda rate, position: short(rate))

    def update(self, scene: Scene) -> bool:
        """Update the lines; returns whether the panel needs a full redraw."""
        unit = self.panel.unit(scene)
        title = f"{self.panel.title}, {unit}" if unit else self.panel.title
        redraw = title != self._title
        if redraw:
            self.axes.set_title(title, fontsize=9, loc="left", fontweight="bold")
            self._title = title
        curves = list(self.panel.curves(scene))
        names = [curve.name for curve in curves]
        if names != self._names:
            self._names = names
            redraw = True
            for line in self.lines:
                line.remove()
            self.lines = [self.axes.add_line(self._line(curve)) for curve in curves]
            self._add_legend(names)
        for curve, line in zip(curves, self.lines, strict=True):
            line.set_data(curve.x, curve.y)
            line.set_marker(curve.marker or "None")
            line.set_markevery(slice(0, curve.marked) if curve.marked >= 0 else None)
        return self._rescale(scene, curves) or redraw

    def _line(self, curve: Curve) -> Line2D:
        from matplotlib.lines import Line2D

        look: dict[str, Any] = dict(color=curve.colour, linestyle=curve.style or "None", linewidth=curve.width)
        return Line2D([], [], label=curve.name, animated=self._moving, marker=curve.marker, markersize=4, **look)

    def _add_legend(self, names: list[str]) -> None:
        """Replace the legend; a name that several lines share has one entry."""
        entries = {name: line for name, line in zip(reversed(names), reversed(self.lines), strict=True) if name}
        lines = list(entries.values())[::-1]
        if legend := self.axes.get_legend():
            legend.remove()
        if lines:
            look: dict[str, Any] = dict(frameon=False, fontsize=7, handlelength=1.7, columnspacing=0.9, handletextpad=0.4)
            look |= dict(borderpad=0, borderaxespad=0.2)
            # on the line of the title where there is room, else over the top of the panel
            longest = max(map(len, entries)) + 5
            columns = len(lines) if longest * len(lines) < 40 else max(1, min((len(lines) + 1) // 2, 72 // longest))
            self._legend_rows = 0 if columns == len(lines) else -(-len(lines) // columns)
            look |= dict(loc="upper right") if self._legend_rows else dict(loc="lower right", bbox_to_anchor=(1.0, 1.0))
            self.axes.legend(handles=lines, ncols=columns, **look)

    def _rescale(self, scene: Scene, curves: list[Curve]) -> bool:
        """Set the scales; returns whether they changed.

        A scale grows in leaps and shrinks only when most of it is empty, so that it seldom moves. A still picture gets the scales that fit.
        """
        end, right = scene.last_step, self.axes.get_xlim()[1]
        highest, top = self._highest(curves), self.axes.get_ylim()[1]
        if not self._moving:
            self.axes.set(xlim=(0, end), ylim=(0, highest * (1.08 + 0.12 * self._legend_rows)))
            return True
        planned = any(run.planned for run in scene.runs.values())
        new_right = right if end <= right and (not planned or end == right) else end * (1 if planned else 1.5)
        room = 1.25 + 0.13 * self._legend_rows
        new_top = top if 0.45 * top < highest * room / 1.25 <= top else highest * room
        if (new_right, new_top) == (right, top):
            return False
        self.axes.set(xlim=(0, new_right), ylim=(0, new_top))
        return True

    def _highest(self, curves: list[Curve]) -> float:
        """Value that the scale has to reach: the highest of the curves that count, and nearly the highest of a noisy one."""
        tops = []
        for curve in curves:
            y = curve.y[np.isfinite(curve.y)]
            if len(y):
                tops.append(float(y.max()) if curve.counts else float(np.quantile(y, 0.97)) if curve.name == "each step" else 0.0)
        return max([top for top in tops if top > 0], default=0.8)


class Drawing:
    """One panel as a picture of its own, which takes a few milliseconds to redraw."""

    def __init__(self, panel: Panel, *, width: float = 4.8, height: float = 2.5, dpi: float = 144) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
        self._canvas = FigureCanvasAgg(self.figure)
        axes = self.figure.add_axes((0.105, 0.155, 0.875, 0.735))
        self.view = View(panel, axes, moving=True)
        self._background = None

    def png(self, scene: Scene) -> bytes:
        """PNG of the panel, for the scene at this moment."""
        if self.view.update(scene) or self._background is None:
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self.figure.bbox)
        else:
            self._canvas.restore_region(self._background)
        for line in self.view.lines:
            self.view.axes.draw_artist(line)
        return encoded(np.asarray(self._canvas.buffer_rgba()))


def encoded(pixels: np.ndarray) -> bytes:
    """Encode (height, width, 4) uint8 as a PNG. Unfiltered lines suit drawings and take a third of the usual time."""
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 4 * width), np.uint8)  # each line begins with its filter: 0 is none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)  # 8 bits, red green blue alpha

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.data, 1)) + chunk(b"IEND", b"")
