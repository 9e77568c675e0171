"""Notebooks: the cell that starts a training run, and what it printed."""

from __future__ import annotations

import json

from . import arguments


def run_in(text: str) -> str | None:
    """The last cell of a notebook that names a training script, and its output; else every output. None where it is no notebook."""
    if not text.lstrip().startswith("{") or '"cells"' not in text:
        return None
    try:
        cells = json.loads(text)["cells"]
        shown = [(_typed(cell), _printed(cell)) for cell in cells if cell.get("cell_type") == "code"]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
    runs = [cell for cell in shown if any(script in cell[0] for script in arguments.facts()["scripts"])]
    return "\n".join(runs[-1] if runs else (printed for _, printed in shown))


def _typed(cell: dict) -> str:
    """The code of a cell, without the Python before its first line for the shell."""
    lines = _text(cell.get("source")).split("\n")
    if any(line.startswith("%%") for line in lines):
        return "\n".join(line for line in lines if not line.startswith("%%"))
    return "\n".join(line for line, is_shell in zip(lines, _of_shell(lines), strict=True) if is_shell) or "\n".join(lines)


def _of_shell(lines: list[str]) -> list[bool]:
    """Whether each line is one for the shell: it begins with !, or goes on with such a line."""
    found: list[bool] = []
    for number, line in enumerate(lines):
        goes_on = bool(found) and found[-1] and lines[number - 1].rstrip().endswith("\\")
        found.append(goes_on or line.lstrip().startswith("!"))
    return found


def _printed(cell: dict) -> str:
    """What a cell has printed, its traceback included."""
    outputs = cell.get("outputs") or []
    return "\n".join(_text(each.get("text")) + _text(each.get("traceback"), "\n") for each in outputs)


def _text(lines: object, between: str = "") -> str:
    """Lines as a notebook stores them, in a list or in one text."""
    return lines if isinstance(lines, str) else between.join(map(str, lines)) if isinstance(lines, list) else ""
