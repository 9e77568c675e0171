"""Variables of shells: those that a text sets itself, and words with their values filled in."""

from __future__ import annotations

import re

from .shell import BASH, closing, split
from .shell_patterns import VARIABLE

REFERENCE = re.compile(r"\$(\w+)|\$\{(\w+)\}|%(\w+)%|\{(\w+)\}")
"""A variable of a shell or, in a notebook, of Python."""
ASSIGNMENT = re.compile(
    r"""^([ \t]*+) (?: export[ \t]++ | set[ \t]++(")? | \$(?:env:)? )? ([A-Za-z_]\w{0,80}+) [ \t]*+ = [ \t]*+
    (?: "([^"\n$`%]{0,500}+)" | '([^'\n]{0,500}+)' | (?(2) ([^"\n$`%]{1,500}+) | ([^\s"'\#$`%;&|()]{1,500}+) ) ) "?
    [ \t]*+ (?: \#[^\n]* | ; )? \r?$""",
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
"""Line that sets a variable in bash, cmd.exe or PowerShell."""
ARRAY = re.compile(r"^([A-Za-z_]\w*+)(\+?)=\(", re.MULTILINE)
"""The beginning of a list in bash."""
SETS = re.compile(
    r"""(?: ^ | [;&|({] | \b(?: then | do | else | export | declare | local | set (?:[ \t]++/[ap])? )\b ) [ \t]*+ "? \$?(?:env:)?
    ([A-Za-z_]\w{0,80}+) [ \t]*+ (?: \+?= | \+\+ ) | \b(?: for | foreach | read ) [ \t(]++ (?: -\w+[ \t]++ )? [$%]* (\w{1,80}+)""",
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
"""Any text that may set a variable."""
CONTROL = re.compile(
    r"""^ [ \t}]*+ (?: [$\w]++ [ \t]*+ = [ \t]*+ )?+ (?:
      (?P<word> if | for | while | until | case | foreach | switch )
      (?= [ \t]*+ [(\[{"!%$] | [ \t]++ (?: not | exist | defined | errorlevel ) [ \t]
        | [ \t]++ [^\n]* (?: \b(?: then | do | in )\b | == | [;(\[] ) )
    | (?P<function> function [ \t]++ \w | \w++ [ \t]*+ \([ \t]*+\) [ \t\r\n]*+ \{ ) )""",
    re.VERBOSE | re.MULTILINE,
)
"""A line whose commands run not at all, several times or later."""
MOST = 20
"""Variables in one word that are filled in."""


def assignments(code: str) -> dict[str, str]:
    """Variables that a text sets to plain values, without those that may be set to several: only running it would tell which counts."""
    found: dict[str, set[str]] = {}
    times: dict[str, int] = {}
    depends = CONTROL.search(code)
    for indent, _, name, *values in ASSIGNMENT.findall(code):
        found.setdefault(name, set()).add(next((value for value in values if value), ""))
        times[name] = times.get(name, 0) + (not (depends and indent))
    for names in SETS.findall(code):
        name = names[0] or names[1]
        times[name] = times.get(name, 0) - 1
    once = {name: values.pop() for name, values in found.items() if len(values) == 1 and times[name] >= 0}
    return {name.lower(): value for name, value in once.items()} | once


def arrays(code: str) -> dict[str, list[str]]:
    """Lists of plain words that a text for bash sets and nothing else in it may change."""
    found: dict[str, list[str] | None] = {}
    starts = list(ARRAY.finditer(code))
    if CONTROL.search(code) or len(starts) > MOST:
        return {}
    for start in starts:
        name, more = start.groups()
        end = closing(code, start.end() - 1, BASH)
        inside = split(code[start.end() : end - 1]).commands if end > 0 else []
        plain = end > 0 and not any(one.variables or one.substitutions or one.spelt for one in inside)
        before = found.get(name) if more else []
        found[name] = [*before, *(word for one in inside for word in one.words)] if plain and before is not None else None
    once = {name: len(re.findall(rf"(?<![\w$]){name}(?:\[[^\]]*\])?\+?=", code)) for name in found}
    seen = [start[1] for start in starts]
    return {name: words for name, words in found.items() if words is not None and once[name] == seen.count(name)}


def filled(word: str, assigned: dict[str, str]) -> str | None:
    """Word with its variables' values; None if one of them is not known, or they are too many."""
    names = [next(name for name in match if name) for match in REFERENCE.findall(word)]
    if not 0 < len(names) <= MOST or not all(name in assigned for name in names):
        return None
    word = REFERENCE.sub(lambda match: assigned[next(name for name in match.groups() if name)], word)
    return None if VARIABLE.search(word) else word
