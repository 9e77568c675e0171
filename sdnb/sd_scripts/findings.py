"""`Finding`: one thing noticed about settings or a log, and lists of findings as tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..system import printable


@dataclass(frozen=True)
class Effect:
    """Meaning of a finding for the run, and its looks."""

    word: str
    """Its name in a table."""
    counted: str
    meaning: str
    colour: str
    """In a terminal."""
    shade: str
    """On a page."""


EFFECTS = {
    "raises": Effect("raises", "error", "sd-scripts stops with an error", "31;1", "#b3261e"),
    "ruins": Effect("ruins", "error", "sd-scripts trains, and nothing of the model is left", "31;1", "#b3261e"),
    "overrides": Effect("differs", "difference", "something else is used than what was given", "35;1", "#7b3fa0"),
    "warns": Effect("warns", "warning", "sd-scripts logs a warning", "33", "#8a6100"),
    "note": Effect("note", "note", "worth knowing", "2", "#5f6368"),
}
"""Effects, the worst first."""
FATAL = ("raises", "ruins")
"""Effects of errors: what stops a run, and what runs and ruins the model."""
SAME = "The same mends this:"
OF_A_KIND, OF_ALL = 8, 40
"""Findings of one rule, and of all rules together, that are shown."""
LONGEST = 1000
"""Characters of each text of a finding; longer ones are cut."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing noticed about settings or in a log."""

    rule: str
    """The name of the row it comes from, such as `adafactor-refuses-warmup`."""
    effect: str
    """One of `EFFECTS`."""
    what: str
    """Consequence for the run, with the values at hand."""
    why: str
    fix: str = ""
    """Text to type or thing to do; empty where nothing has to be done."""
    source: str = ""
    """The file and line it was read in or ran in, such as `library/train_util.py:5049`."""
    lesson: str = ""
    """The number of the lesson that explains it, such as `07`."""
    repair: str = ""
    """Repair, setting by setting; findings with the same one have one cause. Empty where only the reader can decide."""

    def __post_init__(self) -> None:
        for name in ("what", "why", "fix"):
            if len(text := getattr(self, name)) > LONGEST:
                object.__setattr__(self, name, f"{text[: LONGEST - 40]}… ({len(text) - LONGEST + 40:,} more characters)")

    @property
    def in_short(self) -> str:
        """Consequence and remedy, as sentences."""
        parts = [part for part in (self.what, self.fix) if part]
        return " ".join(part if part.endswith((".", "!", "?", "…")) else f"{part}." for part in parts)

    @property
    def origin(self) -> str:
        """Source and lesson, to read on."""
        return " · ".join(part for part in (self.source, f"lesson {self.lesson}" if self.lesson else "") if part)


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings in the order of `EFFECTS`; those of one effect stay in their order."""
    ranks = list(EFFECTS)
    return tuple(sorted(findings, key=lambda finding: ranks.index(finding.effect)))


def in_brief(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """First few findings of each rule and of all, and in place of the others their number."""
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.rule, []).append(finding)
    first = {id(finding) for kind in kinds.values() for finding in kind[:OF_A_KIND]}
    last = {id(kind[OF_A_KIND]): len(kind) - OF_A_KIND for kind in kinds.values() if len(kind) > OF_A_KIND}
    brief = [
        replace(finding, what=f"And {last[id(finding)]:,} more of this kind.", why="", fix="") if id(finding) in last else finding
        for finding in findings
        if id(finding) in first or id(finding) in last
    ]
    if len(brief) > OF_ALL:
        what = f"And {len(brief) - OF_ALL:,} more, which are shown when these are mended."
        brief[OF_ALL:] = [replace(brief[OF_ALL], rule="more", what=what, why="", fix="", source="", lesson="")]
    return tuple(brief)


def count(findings: Sequence[Finding]) -> str:
    """Number of findings of each effect: `1 error, 2 warnings`."""
    words = [row.counted for effect, row in EFFECTS.items() for finding in findings if finding.effect == effect]
    counts = {word: words.count(word) for word in words}
    return ", ".join(f"{number} {word}{'s' * (number > 1)}" for word, number in counts.items() if number)


def table(findings: Iterable[Finding], *, colour: bool, width: int) -> str:
    """One finding below the other, each with an empty line after it."""
    lines, indent = [], " " * 9

    def wrapped(text: str, first: str = indent, rest: str = indent) -> list[str]:
        return textwrap.wrap(printable(text), width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)

    for finding, *others in _by_cause(findings):
        effect = EFFECTS[finding.effect]
        head = effect.word.ljust(len(indent))
        body = wrapped(finding.what, head) or [head]
        if colour:
            body[0] = f"\033[{effect.colour}m{body[0][: len(indent)]}\033[0m\033[1m{body[0][len(indent) :]}\033[0m"
        if finding.fix:
            body += wrapped(f"→ {finding.fix}", rest=indent + "  ")
        body += wrapped(finding.why)
        if others:
            body += [indent + SAME, *(line for other in others for line in wrapped(f"· {_named(other)}", rest=indent + "  "))]
        if finding.origin:
            origin = wrapped(finding.origin)
            body += [f"{indent}\033[2m{line[len(indent) :]}\033[0m" for line in origin] if colour else origin
        lines += [*body, ""]
    return "".join(f"{line}\n" for line in lines)


def page(findings: Iterable[Finding]) -> str:
    """Findings as an HTML table."""
    import html

    rows = []
    for finding, *others in _by_cause(findings):
        effect = EFFECTS[finding.effect]
        what, why, fix, origin = (html.escape(printable(text)) for text in (finding.what, finding.why, finding.fix, finding.origin))
        cell = f"<b>{what}</b>"
        cell += f"<br>→ <code>{fix}</code>" if fix else ""
        cell += f"<br><span>{why}</span>" if why else ""
        cell += f"<br>{SAME}" if others else ""
        cell += "".join(f"<br>· {html.escape(printable(_named(other)))}" for other in others)
        cell += f'<br><small style="opacity:.7">{origin}</small>' if origin else ""
        style = f"vertical-align:top;color:{effect.shade};font-weight:bold"
        rows.append(f'<tr><td style="{style}" title="{effect.meaning}">{effect.word}</td><td style="text-align:left">{cell}</td></tr>')
    return f"<table>{''.join(rows)}</table>"


def _named(finding: Finding) -> str:
    """Consequence, and how bad it is."""
    return f"{finding.what} ({EFFECTS[finding.effect].counted})"


def _by_cause(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Groups of findings that one change mends; each begins with the worst, which stays in its place."""
    groups: list[list[Finding]] = []
    for finding in findings:
        group = next((group for group in groups if _is_one_cause(group[0], finding)), None)
        if group is None:
            groups.append([finding])
        else:
            group.append(finding)
    return groups


def _is_one_cause(first: Finding, other: Finding) -> bool:
    """Whether the same change mends both; a fix that names no value is no change."""
    return bool(first.repair and first.repair == other.repair) or ("=" in first.fix and other.fix.startswith(first.fix))
