"""What guesses and exercises have said in a stored notebook, in another language: their texts are known in each.

The English notebooks are executed; the translated ones get their outputs. So the lines of `sdnb.guess`, `reveal` and `sdnb.check` are
translated here, by the rows of `texts/` that they were made of.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from . import languages
from .languages import LANGUAGES

CALL = re.compile(r"sdnb\.(?:guess|check)\(|\.reveal\(")
"""Code whose output this module can translate."""
FIELD = re.compile(r"\{(\w+)\}")
UNTRANSLATED = re.compile(r"[-\d.,/ %]*[\d%]|\d\d\.[a-z\d]|[-\d.,]+ ?(?:[KMGT]i?B|%)")
"""Values that are the same in every language: numbers, names of guesses and exercises, amounts of memory."""


def translated(output: str, lesson: str, language: str) -> str:
    """Text output of a cell in another language; as it is, if a line of it is not known. `lesson` is a number such as `"02"`.

    >>> print(translated("… 01.1 waits for your answer.\\nand 3 more\\n", "01", "zh"), end="")
    … 01.1 waits for your answer.
    and 3 more
    >>> print(translated("… 01.1 waits for your answer.\\n", "01", "zh"), end="")
    … 01.1 等着你来回答。
    """
    rows = [*_rows(languages.lesson("course"), language), *_rows(languages.lesson(lesson), language)]
    try:
        return "".join(_line(line, rows) for line in output.splitlines(keepends=True))
    except LookupError:
        return output


def _rows(table: Any, language: str) -> Iterator[tuple[str, str]]:
    """English texts of a table with their translations."""
    if isinstance(table, dict) and "en" in table and language in table:
        yield table["en"], table[language]
        yield table["en"].rstrip("."), table[language].rstrip("。")  # as a choice is shown within a line
    inner = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    for key, value in inner:
        if key == "en" or key in LANGUAGES:
            continue
        yield from [(value, value)] if isinstance(value, str) else _rows(value, language)  # one string for all languages, such as GiB


def _line(line: str, rows: list[tuple[str, str]]) -> str:
    text = line.rstrip("\n")
    listed = "- " if text.startswith("- ") else ""
    return listed + _text(text.removeprefix(listed), rows) + line[len(text) :]


def _text(english: str, rows: list[tuple[str, str]]) -> str:
    """Translation of a text, whose parts may be texts, too. Raises `LookupError` where there is none."""
    if not english or UNTRANSLATED.fullmatch(english):
        return english
    for text, translation in rows:
        if english == text:
            return translation
    for text, translation in rows:
        parts = FIELD.split(text)
        if len(parts) > 1 and parts != ["", parts[1], ""]:
            for colons in range(4):  # within the first part
                some = {1: f"(?:[^:]*:){{{colons}}}[^:]*?"}
                pattern = "".join(f"(?P<{part}>{some.get(n, '.+?')})" if n % 2 else re.escape(part) for n, part in enumerate(parts))
                if match := re.fullmatch(pattern, english):
                    with contextlib.suppress(LookupError):
                        return translation.format(**{name: _text(value, rows) for name, value in match.groupdict().items()})
    if match := re.fullmatch(r"([-\d.,]+) (.+)", english):  # a number with its unit
        return f"{match[1]} {_text(match[2], rows)}"
    raise LookupError(english)
