"""A frame of the live plot: the curves of all panels, as numbers for a browser."""

from __future__ import annotations

import numpy as np

from ..system import short
from .panels import Curve, Panel, Scene, shown


def packed(scene: Scene) -> tuple[list[dict[str, object]], bytes]:
    """Panels as JSON, and their numbers: for each curve in turn its x and then its y, float32, as many as its `points`."""
    panels, columns = [], []
    for panel in shown(scene):
        curves = list(panel.curves(scene))
        for curve in curves:
            columns += [curve.x, curve.y]
        panels.append(
            dict(
                title=panel.title,
                unit=panel.unit(scene),
                more=panel.more,
                end=scene.last_step,
                alt=described(panel, scene, curves),
                curves=[_look(curve) for curve in curves],
            )
        )
    return panels, np.concatenate(columns).astype("<f4").tobytes() if columns else b""


def _look(curve: Curve) -> dict[str, object]:
    """Everything about a curve but its numbers."""
    return dict(
        name=curve.name,
        points=len(curve.x),
        colour=curve.colour,
        style=curve.style,
        width=curve.width,
        marker=curve.marker,
        marked=curve.marked,
        counts=curve.counts,
    )


def described(panel: Panel, scene: Scene, curves: list[Curve]) -> str:
    """Text alternative of a panel: each curve's last value, and the lowest and highest."""
    unit = panel.unit(scene)
    head = f"{panel.title}, {unit}" if unit else panel.title
    parts = []
    for curve in curves:
        values = curve.y[np.isfinite(curve.y)]
        if not len(values) or curve.name == "no number":
            continue
        low, high, last = (
            short(value) if panel.title == "Learning rate" else f"{value:.3g}" for value in (min(values), max(values), values[-1])
        )
        parts.append(f"{curve.name} {last}".strip() + (f", between {low} and {high}" if low != high else ""))
    return f"{head}: {'; '.join(parts)}." if parts else f"{head}: no step yet."
