"""Files from strangers: read within bounds, or refused with one `ValueError` that names the file."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from .words import BACKSLASHES, WINDOWS_PATH, shown

NESTED = 100
"""Levels of lists and tables in one another that are read."""
LARGEST = 10**100
"""Above every whole number that is read: larger ones can be neither printed nor made a float."""
_DOTS = 32
"""Dots of one line of TOML that are read, several in a row being one: a key's cost grows with the square of its parts."""
_NOUNS = {dict: "an object {…}", list: "a list […]", str: "a text", int: "a whole number"}


def read_bytes(path: Path, most: int = 10_000_000) -> bytes:
    """Content of a regular file, after symbolic links, of at most so many bytes.

    A named pipe, device or socket is not waited for. Raises `FileNotFoundError` for a file that is not there, `ValueError` for any other
    that cannot be read.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ValueError("it is no regular file")
            content = file.read(most + 1) if about.st_size <= most else b""
            if about.st_size > most or len(content) > most:
                raise ValueError(f"it has {max(about.st_size, len(content)):,} bytes, and at most {most:,} are read")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{named(path)}: {error.strerror if isinstance(error, OSError) else error}") from error
    return content


def read_text(path: Path, most: int = 10_000_000) -> str:
    """Content of a text file in UTF-8, with or without a mark before it. Raises as `read_bytes` does."""
    try:
        text = read_bytes(path, most).decode("utf-8-sig")  # Windows' editors put a mark before it
    except UnicodeDecodeError as error:
        raise ValueError(f"{named(path)} is not UTF-8 ({error.reason}): save it again in that encoding") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, kind: type = dict, most: int = 10_000_000) -> Any:
    """Content of a JSON file whose outermost value is of `kind`. Raises as `read_bytes` and `parse_json` do."""
    return parse_json(read_text(path, most), named(path), kind)


def read_toml(path: Path, most: int = 300_000) -> dict[str, Any]:
    """Content of a TOML file.

    Raises as `read_bytes` does, and `ValueError` for a text that is no TOML, has a key twice, a number of more than 100 digits, or more
    than `NESTED` levels.
    """
    import tomllib

    text, name = read_text(path, most), named(path)
    for number, line in enumerate(text.split("\n"), start=1):
        if len(re.findall(r"\.+", line)) > _DOTS:
            raise ValueError(f"{name} is no TOML that is read here: line {number} has more than {_DOTS} dots")
    try:
        content = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply, more than {NESTED} levels") from None
    except ValueError as error:
        raise ValueError(f"{name} is no TOML: {shown(error, 200)}" + (f". {BACKSLASHES}" if WINDOWS_PATH.search(text) else "")) from error
    _check_values(content, name)
    return content


def parse_json(text: str, name: str, kind: type = dict) -> Any:
    """The value of a JSON text, which must be of `kind`. `name` is what a message calls the text, such as its file.

    Raises `ValueError` for a text that is no JSON, has a key twice, half a letter (a lone surrogate), a number of more than 100 digits,
    another outermost value, or more than `NESTED` levels.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        if r"\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply, more than {NESTED} levels") from None
    except UnicodeEncodeError:
        raise ValueError(f"{name} has half a letter, a lone surrogate such as \\ud800: write the letter whole") from None
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {shown(error, 200)}") from error
    _check_values(value, name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} must be {_NOUNS.get(kind, kind.__name__)}, not {_NOUNS.get(type(value), shown(value))}")
    return value


def named(path: str | Path) -> str:
    """A file's name as it stands in a message: safe to print, and cut where it is very long."""
    return shown(path, 300)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError(f"{shown(Counter(name for name, _ in pairs).most_common(1)[0][0])!r} stands there twice")
    return table


def _check_values(value: Any, name: str) -> None:
    level = [value]
    for _ in range(NESTED + 1):
        if any(isinstance(one, int) and not -LARGEST < one < LARGEST for one in level):
            raise ValueError(f"{name} has a number of more than 100 digits")
        level = [inner for one in level if isinstance(one, (dict, list)) for inner in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return
    raise ValueError(f"{name} is nested too deeply, more than {NESTED} levels")
