"""Small line drawings as SVG inside HTML, in the colours of the page that shows them, light or dark."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 96, 26, 44
"""Margins for the axes' labels and, on the right, for the names of the curves."""
GUESS_COLOUR = "var(--jp-brand-color1, #1976d2)"


@dataclass(frozen=True)
class Curve:
    """One line of a drawing: a name, a height for each position, and whether it is dashed."""

    name: str
    y: Sequence[float]
    dashed: bool = False


def sketch(x: Sequence[float], curves: Sequence[Curve], x_label: str, y_label: str, limits: tuple[float, float], alt: str) -> str:
    """SVG of `curves` over the positions `x`; heights beyond `limits`, the lowest and the highest of the axis, widen it.

    Each curve has its name at its end, and a dashed one has round marks, the others square ones. `alt` is the text alternative.
    """
    low = min(limits[0], *(height for curve in curves for height in curve.y))
    high = max(limits[1], *(height for curve in curves for height in curve.y))

    def across(value: float) -> float:
        return LEFT + (value - x[0]) / (x[-1] - x[0]) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    floor = HEIGHT - BOTTOM
    parts = [f'<path d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}" fill="none" stroke="currentColor" opacity=".5"/>']
    parts += [_text(across(value), floor + 16, f"{value:g}", "middle") for value in _spaced(x)]
    parts += [_text(LEFT - 6, down(value) + 4, f"{value:.3g}", "end") for value in (low, high)]
    parts += [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle"), _text(4, 14, y_label, "start")]
    ends = _apart([down(curve.y[-1]) for curve in curves], floor)
    for curve, end in zip(curves, ends, strict=True):
        points = [(across(place), down(height)) for place, height in zip(x, curve.y, strict=True)]
        colour = GUESS_COLOUR if curve.dashed else "currentColor"
        line = " ".join(f"{left:.1f},{top:.1f}" for left, top in points)
        dash = ' stroke-dasharray="6 4"' if curve.dashed else ""
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [_mark(left, top, colour, round_=curve.dashed) for left, top in points]
        parts.append(_text(WIDTH - RIGHT + 10, end + 4, curve.name, "start", colour))
    label = html.escape(alt, quote=True)
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}" style="display:block;width:100%;max-width:{WIDTH}px" '
        f'font-family="sans-serif" font-size="12">{"".join(parts)}</svg>'
    )


def _text(left: float, top: float, text: str, anchor: str, colour: str = "currentColor") -> str:
    return f'<text x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'


def _mark(left: float, top: float, colour: str, *, round_: bool) -> str:
    if round_:
        return f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4" fill="{colour}"/>'
    return f'<rect x="{left - 3.5:.1f}" y="{top - 3.5:.1f}" width="7" height="7" fill="{colour}"/>'


def _spaced(x: Sequence[float]) -> Sequence[float]:
    """At most eight of the positions, the first among them."""
    return x[:: -(-len(x) // 8)]


def _apart(tops: list[float], floor: float) -> list[float]:
    """Heights of the curves' names: their ends, moved until two names do not overlap."""
    if len(tops) < 2 or abs(tops[0] - tops[1]) >= 15:
        return tops
    middle = min(max(sum(tops) / 2, TOP + 8), floor - 8)
    return [middle - 8, middle + 8] if tops[0] <= tops[1] else [middle + 8, middle - 8]
