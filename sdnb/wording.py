"""How numbers and pieces of somebody's text stand in a message."""

from __future__ import annotations

import math
import re

BACKSLASHES = "In double quotes a backslash begins a special letter: write paths in single quotes, or with / instead."
WINDOWS_PATH = re.compile(r'"(?:[A-Za-z]:)?\\')
"""Where a text between double quotes begins like a path of Windows, which is no text in TOML."""


def printable(text: object) -> str:
    """Without anything that could steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def shown(text: object, length: int = 80) -> str:
    """A piece of somebody's text, safe to print and cut to a length."""
    clean = printable(text)
    return clean if len(clean) <= length else clean[: length - 1] + "…"


def on_one_line(text: str) -> str:
    """With one blank for every stretch of white space."""
    return " ".join(printable(text).split())


def number(value: float) -> str:
    """A number as one would type it: `1e-4` rather than `0.0001`."""
    if isinstance(value, float) and math.isfinite(value) and value and not 1e-2 <= abs(value) < 1e6:
        digits, _, exponent = (repr(value) if "e" in repr(value) else _scientific(value)).partition("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _scientific(value: float) -> str:
    """The shortest text with an exponent that reads as this number; 17 digits are enough for any."""
    return next(text for text in (f"{value:.{digits}e}" for digits in range(17)) if float(text) == value)
