"""`Finding`: one thing noticed about settings or in a log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace


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
    "ruins": Effect("ruins", "error", "sd-scripts trains, but destroys the model", "31;1", "#b3261e"),
    "overrides": Effect("differs", "difference", "sd-scripts uses something else than you gave", "35;1", "#7b3fa0"),
    "warns": Effect("warns", "warning", "sd-scripts logs a warning", "33", "#8a6100"),
    "note": Effect("note", "note", "worth knowing", "2", "#5f6368"),
}
"""Effects, the worst first."""
FATAL = ("raises", "ruins")
"""Effects of errors: what stops a run, and what runs and ruins the model."""
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

    values: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)
    """Values in the texts, by the names that the templates of the rule or message give them."""

    def __post_init__(self) -> None:
        for name in ("what", "why", "fix"):
            object.__setattr__(self, name, cut(getattr(self, name)))

    @property
    def in_short(self) -> str:
        """Consequence and remedy, as sentences."""
        parts = [part for part in (self.what, self.fix) if part]
        return " ".join(part if part.endswith((".", "!", "?", "…", "。")) else f"{part}." for part in parts)


def cut(text: str) -> str:
    """`text`, or the beginning of one that is longer than `LONGEST`, and how much is missing."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 40]}… ({len(text) - LONGEST + 40:,} more characters)"


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
        what = f"And {len(brief) - OF_ALL:,} more, which appear once these are fixed."
        brief[OF_ALL:] = [replace(brief[OF_ALL], rule="more", what=what, why="", fix="", source="", lesson="")]
    return tuple(brief)
