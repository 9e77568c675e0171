"""Notebooks of Jupyter: the cell that starts a training run, what it printed, and the same notebook with another command."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from typing import Any

from . import arguments

FORMS: list[dict[str, Any]] = [{"indent": indent, "ensure_ascii": ascii} for indent in (1, 2, 4, None) for ascii in (False, True)]
"""Ways in which programs write a notebook's JSON, Jupyter's first."""


def run_in(text: str) -> str | None:
    """Last cell of a notebook that names a training script, and its output; else every output. None where it is no notebook."""
    if not text.lstrip().startswith("{") or '"cells"' not in text:
        return None
    try:
        cells = json.loads(text)["cells"]
        cells = [cell for cell in cells if cell.get("cell_type") == "code"]
        shown = [(_typed(cell), _printed(cell)) for cell in cells]
        values = _values([_text(cell.get("source")) for cell in cells])
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
    runs = [cell for cell in shown if any(script in cell[0] for script in arguments.facts()["scripts"])]
    used = [f'{name}="{value}"' for name, value in values.items() if re.search(rf"(?<!\w)(\$|\{{){name}\b", runs[-1][0])] if runs else []
    return "\n".join([*used, *runs[-1]] if runs else [printed for _, printed in shown])


def _values(cells: list[str]) -> dict[str, str]:
    """Texts and numbers that the Python of a notebook gives to names, each once and under no condition."""
    values, times = {}, Counter()
    for cell in cells:
        lines = cell.split("\n")
        python = [
            re.sub(r"\S.*", "pass", line) if line.lstrip().startswith(("!", "%")) else "" if of_shell else line
            for line, of_shell in zip(lines, _of_shell(lines), strict=True)
        ]
        try:
            tree = ast.parse("\n".join(python))
        except (SyntaxError, ValueError, RecursionError):
            continue
        times.update(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Constant):
                values[node.targets[0].id] = node.value.value
    plain = {name: str(value) for name, value in values.items() if isinstance(value, str | int | float) and times[name] == 1}
    return {name: value for name, value in plain.items() if not re.search(r'["$`%\\\n]', value)}


def with_command(notebook: str, old: str, new: str) -> str:
    """Notebook with a command changed, and nothing else, in the form of its JSON.

    Raises `ValueError` where the old command does not stand in just one place.
    """
    data = json.loads(notebook)
    cells = [cell for cell in data["cells"] if cell.get("cell_type") == "code" and old in _text(cell.get("source"))]
    if sum(_text(cell["source"]).count(old) for cell in cells) != 1:
        raise ValueError("fix this by hand: this notebook does not have the command in one place, as it was read")
    form = next((form for form in FORMS if json.dumps(data, **form) == notebook.strip("\ufeff\r\n")), FORMS[0])
    text = _text(cells[0]["source"]).replace(old, new)
    cells[0]["source"] = text if isinstance(cells[0]["source"], str) else text.splitlines(keepends=True)
    return json.dumps(data, **form) + "\n"


def _typed(cell: dict) -> str:
    """Lines of a cell for the shell; all of its code where there are none."""
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
    """Output of a cell, its traceback included."""
    outputs = cell.get("outputs") or []
    return "\n".join(_text(each.get("text")) + _text(each.get("traceback"), "\n") for each in outputs)


def _text(lines: object, between: str = "") -> str:
    """Lines as a notebook stores them, in a list or in one text."""
    return lines if isinstance(lines, str) else between.join(map(str, lines)) if isinstance(lines, list) else ""
