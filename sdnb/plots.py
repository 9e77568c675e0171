"""Figures of the course. Each states its finding in its title and, for those who cannot see it, in a text alternative."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .system import GIB, MIB, attended, files, short, sized

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from .checkpointing import Point
    from .memory import MemoryTrace

DPI = 90
# Okabe & Ito: distinct under every common colour blindness
BLUE, ORANGE, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
PURPLE, GREY, BLACK = "#CC79A7", "#8C8C8C", "#000000"
CATEGORY_STYLES = {  # category of memory: colour, hatch
    "weights": ("#BBBBBB", ""),
    "optimizer state": ("#56B4E9", ".."),
    "gradients": (BLUE, "//"),
    "activations": (ORANGE, "\\\\"),
    "inputs": ("#009E73", "++"),
    "temporaries": ("#F0E442", "xx"),
}
DARK_PAGES = ('[data-jp-theme-light="false"]', ".vscode-dark", 'html[theme="dark"]')
"""CSS selectors of a dark JupyterLab (also of a page that nbconvert made for it), VS Code and Colab."""
PAPER, INK = 17, 232
"""Grey of the paper and of the letters on a dark page, from 0 to 255."""


@dataclass(frozen=True, repr=False)
class Chart:
    """Matplotlib figure with its text alternative. Displayed when it is the last value of a notebook cell."""

    figure: Figure
    alt: str

    def __post_init__(self) -> None:
        _apply_style(self.figure)

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return _small(buffer), {"alt": self.alt}

    def html(self) -> str:
        """HTML of the picture with its text alternative, and of its dark twin, which shows on the dark pages of `DARK_PAGES`."""
        png, metadata = self._repr_png_()
        name = f"sdnb-{hashlib.sha256(png).hexdigest()[:12]}"
        dark = f"object-fit: none; object-position: -9999px; background: url({_address(self._dark(png))}) 0 0 / 100% 100%"
        return (
            f"<style>{', '.join(f'{page} .{name}' for page in DARK_PAGES)} {{ {dark} }}</style>"
            f'<img class="{name}" src="{_address(png)}" alt="{html.escape(metadata["alt"])}" style="max-width: 100%">'
        )

    def _dark(self, png: bytes) -> bytes:
        """PNG of the figure for a dark page: lightness is turned over and hues stay. Pictures inside the figure stay as they are."""
        import numpy as np
        from matplotlib.transforms import Bbox
        from PIL import Image

        light = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int16)  # (height, width, 3)
        turned = light + (255 - light.max(-1, keepdims=True) - light.min(-1, keepdims=True))
        dark = (PAPER + turned * (INK - PAPER) / 255).astype(np.uint8)
        height, width = light.shape[:2]
        for picture in (image for axes in self.figure.axes for image in axes.images):
            part = Bbox.intersection(picture.get_window_extent(), picture.axes.bbox)
            if part is None:
                continue
            part = part.transformed(self.figure.transFigure.inverted())
            rows = slice(round((1 - part.y1) * height), round((1 - part.y0) * height))
            columns = slice(round(part.x0 * width), round(part.x1 * width))
            dark[rows, columns] = light[rows, columns]
        buffer = io.BytesIO()
        Image.fromarray(dark).save(buffer, format="png")
        return buffer.getvalue()

    def _repr_html_(self) -> str | None:
        return self.html() if attended() else None  # JupyterLab 4.6 shows a PNG without its text alternative

    def __repr__(self) -> str:
        return self.alt

    def save(self, path: str | Path) -> Path:
        """Write the figure to `path`, whose ending selects the format (`.png`, `.svg`, `.pdf`); returns the path."""
        path = Path(path)
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format=path.suffix.removeprefix(".") or "png", dpi=DPI)
        return files.write(path, buffer.getvalue())


def _address(png: bytes) -> str:
    """Data URL of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _small(png: io.BytesIO) -> bytes:
    """The same PNG in a tenth less bytes: without its alpha channel, which is opaque, and with the filters that pack best."""
    from PIL import Image

    image = Image.open(png)
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        return png.getvalue()
    packed = io.BytesIO()
    image.convert("RGB").save(packed, format="png", optimize=True)
    return packed.getvalue()


def _apply_style(figure: Figure) -> None:
    """Give a figure the course's style: no box around the axes, and text of at most these sizes."""
    for axes in figure.axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for text, size in ((axes.title, 10), (axes.xaxis.label, 9), (axes.yaxis.label, 9)):
            text.set_fontsize(min(size, text.get_fontsize()))
        legend = axes.get_legend()
        for text in legend.get_texts() if legend else ():
            text.set_fontsize(min(8, text.get_fontsize()))
        for axis in (axes.xaxis, axes.yaxis):
            if "labelsize" not in axis.get_tick_params():
                axis.set_tick_params(labelsize=8)


def write_chinese() -> None:
    """Let matplotlib take Chinese characters, which its own font lacks, from `data/font`, in all figures from now on."""
    from matplotlib import font_manager, rcParams

    file = files.bundled("font") / "chinese.ttf"
    name = font_manager.get_font(file).family_name
    if name not in rcParams["font.family"]:
        font_manager.fontManager.addfont(file)
        rcParams["font.family"] = [*rcParams["font.family"], name]


def grid(rows: Mapping[str, Sequence[Image.Image]], *, titles: Sequence[str] = (), title: str = "", alt: str | None = None) -> Chart:
    """Draw rows of pictures, each row with its name on the left, and `titles` above the columns.

    Default for `alt`, the text alternative: the title and the names. Raises `ValueError` without pictures.
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


def anatomy(trace: MemoryTrace, *, title: str | None = None) -> Chart:
    """Draw the memory over the operators of a trace, by category. Raises `ValueError` for a trace without operators."""
    from matplotlib.figure import Figure

    moments = trace.timeline
    if len(moments) < 2:
        raise ValueError("nothing to show: no operator ran inside this trace")
    peak = max(range(len(moments)), key=lambda i: moments[i].total)
    stride = max(1, len(moments) // 1200)
    shown = sorted({*range(0, len(moments), stride), peak, len(moments) - 1})
    unit, scale = ("GiB", GIB) if moments[peak].total > 2 * GIB else ("MiB", MIB)
    layers = {name: [moments[i].bytes[name] / scale for i in shown] for name in CATEGORY_STYLES}
    layers = {name: layer for name, layer in layers.items() if max(layer) > 0.003 * moments[peak].total / scale}

    figure = Figure(figsize=(7.2, 3.0), layout="constrained", facecolor="white")
    axis = figure.subplots()
    colours, hatches = zip(*(CATEGORY_STYLES[name] for name in layers), strict=True)
    axis.stackplot(shown, *layers.values(), labels=layers, colors=colours, hatch=list(hatches), edgecolor="white", linewidth=0)
    top = moments[peak].total / scale
    phases = _phases(moments)
    ends = [start for start, _ in phases[1:]] + [len(moments)]
    # a fused backward has hundreds of phases
    wide = [(start, phase) for (start, phase), end in zip(phases, ends, strict=True) if end - start > 0.02 * len(moments)]
    for number, (start, phase) in enumerate(wide):
        axis.axvline(start, color="black", linewidth=0.8, linestyle=":")
        height = (1.27, 1.19)[number % 2] * top  # on two lines, as a phase may be narrower than its name
        axis.text(start, height, f" {phase}", fontsize=7, va="top")
    axis.plot(peak, top, "v", color="black", markersize=5)
    axis.annotate(f"peak {top:,.1f} {unit}", (peak, top), (7, 0), textcoords="offset points", fontsize=8)
    axis.set(xlabel="moments at which something was allocated or freed", ylabel=unit, xlim=(0, shown[-1]), ylim=(0, 1.28 * top))
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8, reverse=True)
    by_category = moments[peak].bytes
    finding = f"At the peak, in {moments[peak].phase}, {by_category['activations'] / moments[peak].total:.0%} are activations"
    axis.set_title(title or finding, fontsize=10)
    parts = ", ".join(f"{name} {size / scale:,.1f}" for name, size in by_category.items() if name in layers)
    return Chart(figure, f"{title + '. ' if title else ''}{finding}. Peak {top:,.1f} {unit}: {parts}.")


def curves(steps: Mapping[str, Mapping[str, Sequence[int]]], *, title: str) -> Chart:
    """Draw the memory of several steps side by side, on one scale: for each its bytes by category, moment by moment.

    Raises `ValueError` without any step.
    """
    from matplotlib.figure import Figure

    if not steps:
        raise ValueError("no steps to show")
    totals = {name: [sum(sizes) for sizes in zip(*layers.values(), strict=True)] for name, layers in steps.items()}
    top = max(max(sizes) for sizes in totals.values())
    unit, scale = ("GiB", GIB) if top > 2 * GIB else ("MiB", MIB)
    categories = [name for name in CATEGORY_STYLES if max(max(layers[name]) for layers in steps.values()) > 0.003 * top]
    rows = -(-len(steps) // 2)
    figure = Figure(figsize=(7.2, 0.9 + 1.75 * rows), layout="constrained", facecolor="white")
    axes = [*figure.subplots(rows, 2, sharey=True, squeeze=False).flat]
    described = []
    for axis, (name, layers) in zip(axes, steps.items(), strict=False):
        _stack(axis, {category: [size / scale for size in layers[category]] for category in categories})
        highest = max(totals[name])
        peak = totals[name].index(highest)
        label = f"{highest / scale:,.2f} {unit}"
        _mark_peak(axis, peak, highest / scale, label, late=peak > 0.6 * len(totals[name]))
        axis.set(xlim=(0, len(totals[name]) - 1), ylim=(0, 1.15 * top / scale), xticks=[])
        axis.set_title(name, fontsize=8, loc="left")
        parts = ", ".join(f"{part} {layers[part][peak] / scale:,.2f}" for part in categories if layers[part][peak] > 0.003 * top)
        described.append(f"{name}: {label}, of which {parts}")
    for axis in axes[len(steps) :]:
        axis.set_axis_off()
    figure.supylabel(unit, fontsize=8)
    figure.supxlabel("moments of the step, in their order; how long each takes is not shown", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8, reverse=True)
    figure.suptitle(title, fontsize=10)
    return Chart(figure, f"{title}. Peaks: {'; '.join(described)}.")


def _stack(axis: Any, layers: Mapping[str, Sequence[float]]) -> None:
    """Draw categories of memory above each other, in their colours and hatches."""
    colours, hatches = zip(*(CATEGORY_STYLES[name] for name in layers), strict=True)
    length = len(next(iter(layers.values())))
    style: dict[str, Any] = dict(labels=layers, colors=colours, hatch=list(hatches), edgecolor="white", linewidth=0)
    axis.stackplot(range(length), *layers.values(), **style)


def _mark_peak(axis: Any, place: int, height: float, label: str, *, late: bool) -> None:
    """Mark a peak, with its label to the right, or to the left of one that is late."""
    axis.plot(place, height, "v", color="black", markersize=5)
    side, shift = ("right", -6) if late else ("left", 6)
    axis.annotate(label, (place, height), (shift, 1), textcoords="offset points", ha=side, va="bottom", fontsize=8)


WHISKER: dict[str, Any] = dict(fmt="none", ecolor="black", elinewidth=1.2, capsize=4, zorder=4)


def bars(
    cases: Mapping[str, Mapping[str, int]], *, title: str, capacity_bytes: int | None = None, reserved: Mapping[str, int] = {},
    card: str = "the card",
) -> Chart:  # fmt: skip
    """Draw a bar for each case, stacked from its bytes by category, as in `trace.peak.bytes` or `plan(…).by_category`.

    - `capacity_bytes`: drawn as a line across, with the words `card`
    - `reserved`: bytes that the allocator reserves, by case, each drawn as a whisker beyond the bar

    Raises `ValueError` without any case.
    """
    from matplotlib.figure import Figure

    if not cases:
        raise ValueError("no cases to show")
    totals = {name: sum(parts.values()) for name, parts in cases.items()}
    unit, scale = ("GiB", GIB) if max(totals.values()) > 2 * GIB else ("MiB", MIB)
    figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(cases)), layout="constrained", facecolor="white")
    axis = figure.subplots()
    left = dict.fromkeys(cases, 0.0)
    for category, (colour, hatch) in {**CATEGORY_STYLES, "workspaces": ("#4D4D4D", "")}.items():
        widths = {name: parts.get(category, 0) / scale for name, parts in cases.items()}
        if max(widths.values()) < 0.003 * max(totals.values()) / scale:
            continue
        style: dict[str, Any] = dict(color=colour, hatch=hatch, edgecolor="white", linewidth=0, height=0.66)
        axis.barh(list(cases), list(widths.values()), left=list(left.values()), label=category, **style)
        left = {name: left[name] + widths[name] for name in cases}
    paper = dict(facecolor="white", edgecolor="none", alpha=0.85, pad=1)  # something may pass behind the words
    for row, name in enumerate(cases):
        end = reserved.get(name, totals[name])
        if name in reserved:
            axis.errorbar(totals[name] / scale, row, xerr=[[0], [(end - totals[name]) / scale]], **WHISKER)
        label = f"{totals[name] / scale:,.2f}" + (f", reserved {end / scale:,.2f}" if name in reserved else "")
        axis.annotate(label, (end / scale, row), (4, 0), textcoords="offset points", va="center", fontsize=8, bbox=paper)
    if capacity_bytes:
        axis.axvline(capacity_bytes / scale, color="black", linewidth=2)
        position: dict[str, Any] = dict(xycoords=("data", "axes fraction"), textcoords="offset points")
        axis.annotate(card, (capacity_bytes / scale, 1.0), (4, -2), **position, fontsize=8, va="top", bbox=paper)
    axis.invert_yaxis()
    room = 1.28 if reserved else 1.12
    axis.set(xlabel=unit, xlim=(0, room * max(*totals.values(), *reserved.values(), capacity_bytes or 0) / scale))
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_title(title, fontsize=10)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    described = []
    for name, parts in cases.items():
        sizes = ", ".join(f"{category} {size / scale:,.2f}" for category, size in parts.items() if size > 0.003 * totals[name])
        beyond = f", reserved {reserved[name] / scale:,.2f}" if name in reserved else ""
        described.append(f"{name} {totals[name] / scale:,.2f} {unit}{beyond}: {sizes}")
    line = f" {card[0].upper()}{card[1:]} has {sized(capacity_bytes)}." if capacity_bytes else ""
    return Chart(figure, f"{title}. {'; '.join(described)}.{line}")


def waterfall(
    levers: Mapping[str, int],
    *,
    title: str,
    cards: Mapping[str, int] = {},
    reserved: Mapping[str, int] = {},
    parts: Mapping[str, Mapping[str, int]] = {},
    phases: Mapping[str, str] = {},
) -> Chart:
    """Draw the peak after each further lever, and the bytes that the lever saved.

    - `levers`: peak bytes by name; the first is the start
    - `cards`: usable bytes by name, each drawn as a line across
    - `reserved`: bytes that the allocator reserves, by name, each drawn as a whisker above the bar
    - `parts`: bytes of each category at the peak, by name; with them the bars are stacked
    - `phases`: phase of the peak, by name, written below the bar

    Raises `ValueError` without levers.
    """
    from matplotlib.figure import Figure

    if not levers:
        raise ValueError("no levers to show")
    sizes = [size / GIB for size in levers.values()]
    previous = [sizes[0], *sizes[:-1]]
    figure = Figure(figsize=(8.4, 4.0), layout="constrained", facecolor="white")
    axis = figure.subplots()
    positions = range(len(sizes))
    if parts:
        _stacked_bars(axis, [parts[name] for name in levers])
    else:
        axis.bar(positions, sizes, color=BLUE, width=0.62, label="peak")
    saved = [max(0.0, before - now) for before, now in zip(previous, sizes, strict=True)]
    axis.bar(
        positions, saved, bottom=sizes, color="white", edgecolor=GREY if parts else ORANGE, hatch="" if parts else "//", linewidth=0.8,
        linestyle="--" if parts else "-", width=0.62, label="saved by the lever",
    )  # fmt: skip
    top = max(*sizes, *(size / GIB for size in (*cards.values(), *reserved.values())), 0)
    beyond = {position: reserved[name] / GIB - sizes[position] for position, name in enumerate(levers) if name in reserved}
    if beyond:
        ends = [[0] * len(beyond), list(beyond.values())]
        axis.errorbar(list(beyond), [sizes[position] for position in beyond], yerr=ends, label="reserved by the allocator", **WHISKER)
    described = []
    for position, (name, before, now) in enumerate(zip(levers, previous, sizes, strict=True)):
        change = "" if not position else "±0" if abs(now - before) < 0.005 else f"{now - before:+,.2f}".replace("-", "−")
        label = f"{now:,.2f}" + (f"\n{change}" if change else "")
        paper = dict(facecolor="white", edgecolor="none", pad=2)
        axis.annotate(
            label,
            (position, max(before, now, reserved.get(name, 0) / GIB)),
            (0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            zorder=5,
            bbox=paper,
        )
        described.append(f"{name} {now:,.2f} GiB" + (f" ({change})" if change else ""))
        described[-1] += f", reserved {reserved[name] / GIB:,.2f}" if name in reserved else ""
        described[-1] += f", in {phases[name]}" if name in phases else ""
        shown = {part: size for part, size in parts.get(name, {}).items() if size >= 0.05 * GIB}
        described[-1] += "".join(f", {part} {size / GIB:,.2f}" for part, size in shown.items())
    for name, size in cards.items():
        axis.axhline(size / GIB, color="black", linewidth=1, linestyle="--", zorder=0)
        axis.annotate(f"{name}: {size / GIB:,.1f}", (len(sizes) - 0.45, size / GIB), va="center", fontsize=8, annotation_clip=False)
    below = [
        name.replace(" ", "\n", 1) + ("\n" * (2 - name.count(" ")) + f"in {phases[name]}" if name in phases else "") for name in levers
    ]
    axis.set_xticks(positions, below, fontsize=8)
    axis.set(ylabel="peak, GiB", xlim=(-0.5, len(sizes) - 0.5), ylim=(0, 1.14 * top))
    axis.tick_params(axis="x", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, ncols=2 if parts else 1)
    axis.set_title(title, fontsize=10)
    lines = f" Cards: {', '.join(f'{name} {size / GIB:,.2f} GiB' for name, size in cards.items())}." if cards else ""
    return Chart(figure, f"{title}. {'; '.join(described)}.{lines}")


def _stacked_bars(axis: Any, rows: Sequence[Mapping[str, int]]) -> None:
    """Draw a bar for each row of bytes by category, the categories on top of each other."""
    bottoms = [0.0] * len(rows)
    for name, (colour, hatch) in CATEGORY_STYLES.items():
        sizes = [row.get(name, 0) / GIB for row in rows]
        if max(sizes) >= 0.05:
            axis.bar(
                range(len(rows)), sizes, bottom=bottoms, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3, width=0.62, label=name
            )
        bottoms = [bottom + size for bottom, size in zip(bottoms, sizes, strict=True)]


def schedules(curves: Mapping[str, Sequence[float]], *, title: str, dashed: Sequence[str] = (), alt: str | None = None) -> Chart:
    """Draw learning rates over the steps of a run, each in a small panel, as a share of the highest rate of all.

    Names in `dashed` get a dashed line. Raises `ValueError` without any curve.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise ValueError("no schedules to show")
    columns = min(5, len(curves))
    rows = -(-len(curves) // columns)
    top = max(max(curve) for curve in curves.values()) or 1.0
    figure = Figure(figsize=(1.2 + 1.25 * columns, 0.7 + 1.1 * rows), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axis, (name, curve) in zip(axes, curves.items(), strict=False):
        colour, line = (ORANGE, "--") if name in dashed else (BLUE, "-")
        axis.plot([rate / top for rate in curve], line, color=colour, linewidth=2)
        axis.set_title(name, fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    figure.supxlabel("optimizer step", fontsize=8)
    figure.supylabel("share of the highest rate", fontsize=8)
    figure.suptitle(title, fontsize=10)
    rates = "; ".join(f"{name} from {short(curve[0])} to {short(curve[-1])}, at most {short(max(curve))}" for name, curve in curves.items())
    return Chart(figure, alt or f"{title}. Learning rates: {rates}.")


def _phases(moments) -> list[tuple[int, str]]:
    """Index at which each phase of every step begins, with the phase's name.

    Operators outside of all three phases, such as the check of the gradients before the optimizer, count to the phase before, as in
    `training_step`; a trace calls them forward, and they leave no activations.
    """
    few = 0.01 * max(moment.bytes["activations"] for moment in moments)
    phases: list[tuple[int, str]] = []
    for i, moment in enumerate(moments):
        outside = moment.phase == "forward" and moment.bytes["activations"] <= few
        if not phases or (moment.phase != phases[-1][1] and not outside):
            phases.append((i, moment.phase))
    return phases


def frontier(points: Sequence[Point], marks: Mapping[str, tuple[int, float]], *, title: str) -> Chart:
    """Draw the peak over the price in FLOPs: the solver's points as a line, other choices as marks.

    `marks`: (peak bytes, FLOPs ratio) by name. Raises `ValueError` without points.
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
    axis.set(xlabel="FLOPs of forward and backward, relative to recomputing nothing", ylabel=f"peak, {unit}")
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    ends = f"from {points[0].peak_bytes / scale:,.1f} {unit} at {points[0].flops_ratio:.2f} times the FLOPs"
    ends += f" to {points[-1].peak_bytes / scale:,.1f} at {points[-1].flops_ratio:.2f}"
    beside = "; ".join(f"{name}: {peak / scale:,.1f} at {ratio:.2f}" for name, (peak, ratio) in marks.items())
    return Chart(figure, f"{title}. The solver's choices go {ends}. {beside}.")
