"""Versions of sd-scripts: what each one brought, where the code that the doctor cites stands in it, and which one wrote a log.

The rules and `facts.json` were taken at 0.10.1 (commit 48d368f); `versions.json` holds what differs in the others, written by
`benchmarks/sd_scripts_versions.py` from their own code. Nothing is known of versions that it does not list.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

_PLACE = re.compile(r"(?<![\w/])(?:(?:library|networks|finetune|tools)/)?\w+\.py:\d+")
"""A file and line of sd-scripts."""
_FRAME = re.compile(r"(?:^|[\\/\"'\s│])(?:(library)[\\/])?(\w+\.py)(?:\"?, line |:)(\d+)(,? in <module>)?")
"""A frame of a traceback, as Python or rich writes it."""


@cache
def table() -> dict:
    """All of `versions.json`."""
    return json.loads((Path(__file__).parent / "versions.json").read_text(encoding="utf-8"))


def recorded() -> str:
    """The version that the rules were taken from."""
    return table()["recorded"]


def chosen(text: str) -> str:
    """The newest known version that a text such as `0.11`, `v0.10.2` or a commit names. Raises `ValueError`."""
    wanted, known = text.strip().removeprefix("v"), table()["versions"]
    found = [version for version in known if f"{version}.".startswith(f"{wanted.rstrip('.')}.")]
    found = found or [version for version, (commit, _) in known.items() if len(wanted) >= 7 and wanted.startswith(commit)]
    if not wanted or not found:
        raise ValueError(f"the doctor does not know sd-scripts {text}: it knows {', '.join(known)}")
    return found[-1]


def is_older(version: str, other: str) -> bool:
    """Whether a version came before another one."""
    order = list(table()["versions"])
    return order.index(version) < order.index(other)


def since(script: str, name: str = "") -> str:
    """The version that brought a script, or an argument of it."""
    first = next(iter(table()["versions"]))
    came = table()["scripts"].get(script, first)
    for row in table()["arguments"].get(name, ()):
        if script in row["scripts"] and is_older(came, row["since"]):
            came = row["since"]
    return came


def module_since(module: str) -> str:
    """The version that brought a network module."""
    return table()["modules"].get(module, next(iter(table()["versions"])))


def reference(source: str, version: str) -> str:
    """A source with its lines of sd-scripts as they are numbered in a version, which is named."""
    cited = _PLACE.findall(source)
    if not cited:
        return source
    if any(place(one, version) is None for one in cited):
        return f"{source} (sd-scripts {recorded()}; not found in {version})"
    return f"{_PLACE.sub(lambda found: str(place(found[0], version)), source)} (sd-scripts {version})"


def place(cited: str, version: str) -> str | None:
    """The file and line of a version where the recorded version's `library/train_util.py:5049` stands; None where it is missing."""
    rows = table()["places"].get(cited)
    return _at(rows, version) if rows else cited


def guess(log: str) -> str | None:
    """The newest version that a traceback in a log fits: by the files of its frames, and by the line that starts the script."""
    order, files = list(table()["versions"]), table()["files"]
    fitting, told = set(order), False
    for folder, file, line, outermost in _FRAME.findall(log):
        came = files.get(f"library/{file}") if folder else table()["scripts"].get(file)
        if came:
            fitting &= {version for version in order if not is_older(version, came)}
            told = True
        ends = table()["ends"].get(file, {})
        fitting = {version for version in fitting if (_at(ends, version) or int(line)) >= int(line)} or fitting
        if outermost and (exact := {version for version in order if str(_at(ends, version)) == line}):
            fitting, told = fitting & exact, True
    return max(fitting, key=order.index) if told and fitting else None


def _at(rows: dict[str, Any], version: str) -> Any:
    """The row of a version: of the last one up to it that has one."""
    found = None
    for known, row in rows.items():
        if known == version or is_older(known, version):
            found = row
    return found
