"""Numbers, sizes and pieces of somebody's text, as they stand in a message."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

MIB, GIB = 2**20, 2**30
BACKSLASHES = "In double quotes a backslash begins a special letter: write paths in single quotes, or with / instead."
WINDOWS_PATH = re.compile(r'"(?:[A-Za-z]:)?\\')
"""Where a text between double quotes begins like a path of Windows, which is no text in TOML."""


def printable(text: object) -> str:
    """The text without anything that could steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def shown(text: object, length: int = 80) -> str:
    """A piece of somebody's text, safe to print and cut to a length."""
    clean = printable(text)
    return clean if len(clean) <= length else clean[: length - 1] + "…"


def on_one_line(text: str) -> str:
    """The text with one blank for every stretch of white space."""
    return " ".join(printable(text).split())


def number(value: float) -> str:
    """A number as people type it: `1e-4` rather than `0.0001`."""
    if isinstance(value, float) and math.isfinite(value) and value and not 1e-2 <= abs(value) < 1e6:
        digits, _, exponent = (repr(value) if "e" in repr(value) else _scientific(value)).partition("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _scientific(value: float) -> str:
    """The shortest text with an exponent that reads as this number; 17 digits are enough for any."""
    return next(text for text in (f"{value:.{digits}e}" for digits in range(17)) if float(text) == value)


def sized(size: float) -> str:
    """Bytes in words: `68.2 MiB`, `5.48 GiB`."""
    return f"{size / GIB:.2f} GiB" if size > 2 * GIB else f"{size / MIB:.1f} MiB"


def short(rate: float) -> str:
    """A learning rate as people write it: `1e-4`, `1.25e-4`, `0`."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if rate else "0"


def nearest(name: object, known: Iterable[str], *, key: Callable[[str], str] = str, count: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names most like one that is not known, the nearest first.

    `key` gives the spelling in which names are compared, such as `str.lower`. `cutoff`, from 0 to 1, is how like it they have to be.
    """
    import difflib  # only slips need it

    spelled = {key(each): each for each in known}
    return [spelled[each] for each in difflib.get_close_matches(key(str(name))[:64], spelled, count, cutoff)]


def suggest(
    name: object, known: Iterable[str], *, aside: bool = False, key: Callable[[str], str] = str, count: int = 1, cutoff: float = 0.6
) -> str:
    """What may have been meant by a name that is not known, as `nearest` finds it; empty where nothing is like it.

    >>> suggest("sdlx", ["sd15", "sdxl"])
    ": did you mean 'sdxl'?"
    >>> suggest("sdlx", ["sd15", "sdxl"], aside=True)  # where the sentence goes on
    " (did you mean 'sdxl'?)"
    """
    near = " or ".join(map(repr, nearest(name, known, key=key, count=count, cutoff=cutoff)))
    if not near:
        return ""
    return f" (did you mean {near}?)" if aside else f": did you mean {near}?"
