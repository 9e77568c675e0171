"""`Rule`: when sd-scripts does something that its user may not expect, what it does, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ...sd_scripts import Finding, Outcome
from ...system import number, quoted, shown

FULL = ("sdxl_train.py", "train_db.py", "fine_tune.py")
"""The scripts that train a whole model."""
Effect = Literal["raises", "ruins", "overrides", "warns", "note"]


@dataclass(frozen=True)
class Source:
    """Where sd-scripts does what a rule says, and the lesson about it."""

    place: str
    """File and line at commit 48d368f (16 February 2026) of kohya-ss/sd-scripts, such as `library/train_util.py:5049`."""
    lesson: str
    ran: bool
    """Whether sd-scripts' own code was run on the rule's case (`benchmarks/doctor_against_sd_scripts.py`), or only read."""


def ran(place: str, lesson: str = "") -> Source:
    """The source of a rule for which sd-scripts' own code was run."""
    return Source(place, lesson, ran=True)


def read(place: str, lesson: str = "") -> Source:
    """The source of a rule that was read in sd-scripts' code; no place if it follows from no single line."""
    return Source(place, lesson, ran=False)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule. Every row gives its fields in this order."""

    name: str
    effect: Effect | Callable[[Outcome], Effect]
    log: str = ""
    """A piece of the warning that sd-scripts logs."""
    scripts: tuple[str, ...] = ()
    """The training scripts it is about; all if empty."""
    when: Callable[[Outcome], Mapping[str, object] | None]
    """None where the rule does not apply, else the values for the `{names}` in `what`, `why` and `fix`. A setting that is only shown
    is read from `conditions.shown(outcome)`, so that the rule also applies where its value is unknown."""
    what: str
    """What happens; names the exception where sd-scripts raises one."""
    why: str
    fix: str = ""
    changes: Callable[[Outcome], Mapping[str, object]] | None = None
    """The settings that mend it; None takes one back."""
    source: Source

    def effect_on(self, outcome: Outcome) -> Effect:
        """The effect, which may depend on the settings."""
        return self.effect(outcome) if callable(self.effect) else self.effect

    def finding(self, outcome: Outcome, values: Mapping[str, object]) -> Finding:
        """The rule with its texts filled in; `values` is what `when` returned, and a float in it is written as one would type it."""
        typed = {name: number(value) if isinstance(value, float) else _cut(value) for name, value in values.items()}
        changes = self.changes(outcome) if self.changes else {}
        what, why, fix = (text.format_map(typed) for text in (self.what, self.why, self.fix))
        return Finding(
            rule=self.name,
            effect=self.effect_on(outcome),
            what=what,
            why=why,
            fix=fix,
            source=self.source.place,
            lesson=self.source.lesson,
            repair=", ".join(_repair(name, changes[name]) for name in sorted(changes)),
            values=typed,
        )


def _repair(name: str, value: object) -> str:
    return f"{name} left out" if value is None else f"{name}={shown(value, 100)}"


def _cut(value: object) -> object:
    """A value as it is shown: texts, and what stands in a text as Python writes it, are cut where they are very long."""
    if isinstance(value, str):
        return shown(value, 200)
    return value if len(short := quoted(value, 200)) < 200 else short
