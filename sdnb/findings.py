"""`Finding`: one thing a doctor noticed, and how a list of them is shown."""

from __future__ import annotations

from dataclasses import dataclass

EFFECTS = ("raises", "overrides", "warns", "note")
"""Worst first: training stops with an error; something else is used than what was given; a warning is logged; worth knowing."""
LESSONS = ("00", "01", "02", "03", "04", "05", "06", "07", "08", "09")
"""The lessons there are: a finding names no other."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing noticed about settings or in a log."""

    rule: str
    """The name of the row it comes from, such as `adafactor-refuses-warmup`."""
    effect: str
    """One of `EFFECTS`."""
    what: str
    """What happens, with the values at hand."""
    why: str
    fix: str = ""
    """What to type or to do; empty where nothing has to be done."""
    source: str = ""
    """The file and line it was read in or ran in, such as `library/train_util.py:5049`."""
    lesson: str = ""
    """The number of the lesson that explains it, such as `07`."""
