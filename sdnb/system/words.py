"""Numbers, sizes and users' text, worded for messages."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

MIB, GIB = 2**20, 2**30
BACKSLASHES = "In double quotes a backslash begins a special letter: write paths in single quotes, or with / instead."
WINDOWS_PATH = re.compile(r'"(?:[A-Za-z]:)?\\')
"""Start of a Windows path in double quotes, where TOML takes a backslash for an escape."""


def printable(text: object) -> str:
    """Replace characters that could control a terminal by spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def shown(text: object, length: int = 80) -> str:
    """Make a user's text safe to print, and cut it to `length`."""
    text = str(text)
    return printable(text if len(text) <= length else text[: length - 1] + "…")


def quoted(value: object, length: int = 80) -> str:
    """Write a user's value as Python would, make it safe to print, and cut it to `length`."""
    try:
        return shown(repr(value), length)
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        return f"a very large {type(value).__name__}"


def on_one_line(text: str) -> str:
    """Replace each run of white space by one space."""
    return " ".join(printable(text).split())


def number(value: float) -> str:
    """Write a number as people type it: `1e-4` rather than `0.0001`."""
    if isinstance(value, float) and math.isfinite(value) and value and not 1e-2 <= abs(value) < 1e6:
        digits, _, exponent = (repr(value) if "e" in repr(value) else _scientific(value)).partition("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _scientific(value: float) -> str:
    """Shortest text with an exponent that reads as this number; 17 digits are enough for any."""
    return next(text for text in (f"{value:.{digits}e}" for digits in range(17)) if float(text) == value)


def sized(size: float) -> str:
    """Write bytes with a unit: `68.2 MiB`, `5.48 GiB`."""
    return f"{size / GIB:.2f} GiB" if size > 2 * GIB else f"{size / MIB:.1f} MiB"


def short(rate: float) -> str:
    """Write a learning rate as people do: `1e-4`, `1.25e-4`, `0`."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if rate else "0"


def nearest(name: object, known: Iterable[str], *, key: Callable[[str], str] = str, count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Known names that are most similar to an unknown one, nearest first, at most `count`.

    - `key`: function that gives the spelling to compare, such as `str.lower`
    - `cutoff`: least similarity, from 0 to 1
    """
    import difflib  # only needed for unknown names

    by_spelling = {key(known_name): known_name for known_name in known}
    return [by_spelling[spelling] for spelling in difflib.get_close_matches(key(str(name))[:64], by_spelling, count, cutoff)]


def suggest(
    name: object, known: Iterable[str], *, aside: bool = False, key: Callable[[str], str] = str, count: int = 1, cutoff: float = 0.6
) -> str:
    """Suggestion for an unknown name, from `nearest`; empty if no known name is similar.

    >>> suggest("sdlx", ["sd15", "sdxl"])
    ": did you mean 'sdxl'?"
    >>> suggest("sdlx", ["sd15", "sdxl"], aside=True)  # within a sentence
    " (did you mean 'sdxl'?)"
    """
    near = " or ".join(map(repr, nearest(name, known, key=key, count=count, cutoff=cutoff)))
    if not near:
        return ""
    return f" (did you mean {near}?)" if aside else f": did you mean {near}?"
