"""Messages of training logs, read from `messages.toml`."""

from __future__ import annotations

import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message a log may hold."""

    name: str
    pattern: str
    """Regular expressions in verbose form, separated by ` | `: one per language or wording, each beginning with fixed text.

    They are searched in the text *without any white space*, because a terminal breaks a line anywhere, in Japanese even inside a
    name. White space in a pattern means nothing for the same reason. Every gap has a bound, so that no text can make it slow.
    Named groups are values; several alternatives may have the same one.
    """
    effect: str
    """One of `findings.EFFECTS`."""
    what: str
    """Event in the log, with `{values}`. Clauses are separated by `; `, and one whose value the text lacks is left out."""
    why: str
    fix: str = ""
    """Remedy; empty where nothing has to be done."""
    source: str
    lesson: str = ""


def read(table: str) -> tuple[Message, ...]:
    """Messages of a table in TOML."""
    rows = tomllib.loads(table)["message"]
    return tuple(Message(pattern=" | ".join(row.pop("patterns")), **row) for row in rows)


def filled(
    template: str, values: Mapping[str, object], between: str = "; ", end: str = ".", formatter: string.Formatter | None = None
) -> str:
    """`template` with its values, without the clauses that need one that is missing.

    - `between`, `end`: marks between the clauses and at the end, which differ in other languages
    """
    clauses = [clause for clause in template.split(between) if _needs(clause) <= values.keys()]
    text = (formatter or string.Formatter()).vformat(between.join(clauses), (), values)
    return text if text.endswith(end) or not template.endswith(end) else text + end


def _needs(clause: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(clause) if name}


MESSAGES = read(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
