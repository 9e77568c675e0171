"""Final picture of a run, or of several runs over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..plots import Chart
from ..system import short, sized
from .history import History
from .panels import Scene, draw, group, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from ..training import Step


def history(
    runs: Sequence[Step] | History | Mapping[str, History],
    *,
    title: str | None = None,
    note: str = "",
    previews: Mapping[str, Sequence[Image.Image]] | None = None,
    capacity_bytes: int | None = None,
    predicted_bytes: int | None = None,
) -> Chart:
    """Draw a run, or several over each other: loss, learning rate, memory, speed and the card's sensors, where there is data.

    - `title`: by default the finding
    - `note`: small text at the foot
    - `previews`: columns of pictures, by the name above each column
    - `capacity_bytes`, `predicted_bytes`: the card's memory and a plan's peak, drawn as lines over the memory

    Raises `ValueError` without any step.
    """
    from matplotlib.figure import Figure

    if not isinstance(runs, Mapping):
        runs = {"this run": runs if isinstance(runs, History) else History(runs)}
    scene = Scene({name: run for name, run in runs.items() if len(run)}, capacity_bytes, predicted_bytes)
    if not scene.runs:
        raise ValueError("no steps to show: the run has not begun")
    panels = [panel for panel in shown(scene) if panel.still]
    rows = -(-len(panels) // 2)
    strip = 1.0 * max(map(len, previews.values())) + 0.3 if previews else 0
    foot = 0.2 if note else 0
    height = 0.35 + 2.25 * rows + strip + foot
    figure = Figure(figsize=(9.0, height), facecolor="white")
    above, below = 1 - 0.55 / height, (strip + foot + 0.45) / height
    axes = figure.subplots(
        rows, 2, squeeze=False, gridspec_kw=dict(left=0.055, right=0.985, top=above, bottom=below, wspace=0.15, hspace=0.42)
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for panel, axis in zip(panels, axes.flat, strict=False):
        draw(panel, scene, axis)
    if previews:
        _strip(figure, previews, strip, foot, height)
    finding = _finding(scene)
    figure.suptitle(title or finding, fontsize=10.5, y=1 - 0.06 / height, va="top")
    if note:
        figure.text(0.985, 0.04 / height, note, fontsize=7.5, color="#555555", ha="right", va="bottom")
    alt = f"{title + '. ' if title else ''}{_description(scene)}"
    if previews:
        alt += f" Below, pictures drawn on the way: {', '.join(previews)}."
    return Chart(figure, alt + (f" {note}" if note else ""))


def _strip(figure: Figure, previews: Mapping[str, Sequence[Image.Image]], strip: float, foot: float, height: float) -> None:
    """Draw columns of pictures under the panels, each an inch wide, at most eight. `strip`, `foot` and `height` are in inches."""
    names = list(previews)
    if len(names) > 8:
        names = [names[round(i * (len(names) - 1) / 7)] for i in range(8)]
    rows = max(map(len, previews.values()))
    for column, name in enumerate(names):
        for row, picture in enumerate(previews[name]):
            side = 0.97
            left, bottom = 0.5 + 1.02 * column, foot + 0.04 + (rows - 1 - row) * 1.0
            axis = figure.add_axes((left / 9.0, bottom / height, side / 9.0, side / height))
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name, fontsize=8, pad=3)


def _finding(scene: Scene) -> str:
    """Title of the picture: the mean losses."""
    if (run := scene.only) is not None:
        first, last = run.quarters()
        return f"Mean training loss {first:.3f} over the first quarter, {last:.3f} over the last"
    last_quarters: dict[str, list[float]] = {}
    for name, run in scene.runs.items():
        last_quarters.setdefault(group(name), []).append(run.quarters()[1])
    means = {name: sum(values) / len(values) for name, values in last_quarters.items()}
    if len(means) < 4:
        losses = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    else:
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        losses = f"from {means[low]:.3f}, {low}, to {means[high]:.3f}, {high}"
    return f"Mean training loss over the last quarter: {losses}"


def _description(scene: Scene) -> str:
    """Text alternative of the panels."""
    groups: dict[str, list[History]] = {}
    for name, run in scene.runs.items():
        groups.setdefault(group(name), []).append(run)
    sentences = []
    for name, runs in groups.items():
        quarters = [run.quarters() for run in runs]
        first, last = (sum(values) / len(runs) for values in zip(*quarters, strict=True))
        text = "" if scene.only is not None else f"{name}, {len(runs)} runs: " if len(runs) > 1 else f"{name}: "
        steps = sum(map(len, runs)) // len(runs)
        text += f"Mean training loss {first:.3f} over the first quarter, {last:.3f} over the last, {steps} steps."
        if tried := [run.validations for run in runs if len(run.validations[0])]:
            text += f" The validation loss ends at {sum(losses[-1] for _, losses in tried) / len(tried):.3f}"
            if len(tried) == 1 and len(tried[0][0]) > 1:
                steps_tried, losses = tried[0]
                text += f" and was lowest after step {steps_tried[losses.argmin()]:.0f}, {losses.min():.3f}"
            text += "."
        text += f" The learning rate reaches {short(max(run['learning_rate'].max() for run in runs))}."
        if peaks := [run.peak for run in runs if run.peak]:
            highest, phase, step = max(peaks)
            text += f" Memory peaks at {sized(highest)}, in {phase} of step {step}."
        if bad := sorted(step for run in runs for step in run.not_finite):
            text += f" The loss was no number in {len(bad)} steps, first in step {bad[0]}."
        sentences.append(text)
    if scene.capacity_bytes:
        sentences.append(f"The card has {sized(scene.capacity_bytes)}.")
    return " ".join(sentences)
