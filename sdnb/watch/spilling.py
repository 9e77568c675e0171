"""Spilling: what has no room on the card lies in the computer's memory, and the run goes on slowly instead of failing.

NVIDIA's drivers for Windows do so from 536.40 on (nvidia.custhelp.com, answer 5490), also under WSL (microsoft/WSL, issue 11050). torch
is not told. Two things show it: the allocator has reserved more than the card has, or the card is full and steps take several times as
long as before. A slow step alone shows nothing, nor does a full card: the allocator keeps what it once reserved.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

import numpy as np

from ..system import sized
from .history import History

FULL = 0.97
"""Share of the card in use, by all processes, from which it counts as full."""
SLOWER = 3.0
"""How many times as long steps must take as before."""
BLOCK = 10
"""Steps that are looked at together. Python runs ahead of a card, so a single step's duration says little."""


@dataclass(frozen=True)
class Spill:
    """The card's memory began to spill in this step."""

    step: int
    slower: float | None = None
    """How many times as long steps take as before; None where that is not known."""
    reserved_bytes: int | None = None
    """Most bytes that the allocator reserved, where they are more than the card has."""

    def words(self, capacity_bytes: int) -> str:
        """The finding in a sentence, without a full stop."""
        text = f"The card's memory spilled into the computer's from step {self.step} on"
        if self.reserved_bytes:
            text += f": {sized(self.reserved_bytes)} are reserved, and the card has {sized(capacity_bytes)}"
        return text + (f"; steps take {self.slower:.0f} times as long" if self.slower else "")


def find(run: History, capacity_bytes: int | None, *, slow: bool) -> Spill | None:
    """Where a run began to spill; None if it did not, or nothing shows it.

    `slow`: whether a full card and slow steps show it, which they do only where the driver may spill.
    """
    if capacity_bytes is None or not len(run):
        return None
    over = run["reserved_bytes"] > capacity_bytes
    pace = (run["seconds"] - np.nan_to_num(run["waited_seconds"])) / (run["pictures"] if run.has("pictures") else 1)
    if over.any():
        first = int(over.argmax())
        before, since = pace[1:first], pace[max(first, 1) :]
        known = len(before) >= BLOCK and len(since) >= BLOCK
        slower = float(np.nanmedian(since) / np.nanmedian(before)) if known else 0.0
        return Spill(int(run["index"][first]), slower if slower > 1.5 else None, int(np.nanmax(run["reserved_bytes"])))
    full = np.fmax(run["gpu_bytes"], run["reserved_bytes"]) >= FULL * capacity_bytes
    if slow and full.any():
        return _slowed(run["index"][1:], pace[1:], full[1:])  # the first step sets things up
    return None


def _slowed(steps: np.ndarray, pace: np.ndarray, full: np.ndarray) -> Spill | None:
    """First `BLOCK` steps on a full card that took `SLOWER` times as long as the median of the blocks before: all arguments (steps,)."""
    earlier: list[float] = []
    for start in range(0, len(pace) - BLOCK + 1, BLOCK):
        block = slice(start, start + BLOCK)
        mean = float(np.sort(pace[block])[:-1].mean())  # without the slowest, which may have waited for something else
        if len(earlier) > 1 and full[block].all() and mean > SLOWER * earlier[len(earlier) // 2]:
            return Spill(int(steps[start]), mean / earlier[len(earlier) // 2])
        insort(earlier, mean)
    return None
