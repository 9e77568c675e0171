"""The doctor: what sd-scripts will do with somebody's settings, what is wrong with them, and the settings that were meant."""

from __future__ import annotations

import html
import os
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from . import logs, settings
from .findings import EFFECTS, Finding
from .outcome import Outcome
from .recipe import Recipe
from .rules import RULES, Rule, text
from .settings import Settings, number

COUNTED = {"raises": "error", "overrides": "silent change", "warns": "warning", "note": "note"}
WORDS = {"raises": "raises", "overrides": "silent", "warns": "warns", "note": "note"}
MEANINGS = {
    "raises": "sd-scripts stops with an error",
    "overrides": "another value is used without a word",
    "warns": "sd-scripts logs a warning",
    "note": "worth knowing",
}
COLOURS = {"raises": "31;1", "overrides": "35;1", "warns": "33", "note": "2"}
SHADES = {"raises": "#b3261e", "overrides": "#7b3fa0", "warns": "#8a6100", "note": "#5f6368"}
ROUNDS = 40
"""No settings need more repairs than this."""


def diagnose(source: Recipe | Settings | str | Path | list[str], *, script: str | None = None) -> Diagnosis:
    """What sd-scripts will do with these settings.

    `source` is a recipe, a command line (or only its flags), the text or path of a TOML file or of the kohya_ss GUI's JSON, or a
    training log or traceback. `script` is the training script, where the text does not say; otherwise the first one that knows all
    arguments. Never raises for anything in the text; nothing in it is run, and no file it names is opened.
    """
    if isinstance(source, Recipe):
        source = source.settings(script)
    if isinstance(source, Settings):
        return Diagnosis(source)
    if isinstance(source, str) and logs.looks_like_log(source):
        return Diagnosis(Settings("log", findings=logs.read(source) or (_NOTHING_KNOWN,), original=source))
    read = settings.read(source, script)
    if isinstance(read.original, str) and read.form != "toml" and logs.looks_like_log(read.original):
        return Diagnosis(Settings("log", findings=logs.read(read.original) or (_NOTHING_KNOWN,), original=read.original))
    return Diagnosis(read)


_NOTHING_KNOWN = Finding(
    rule="log-unknown",
    effect="note",
    what="None of the known messages is in this log.",
    why="The doctor knows those about checkpointing, Adafactor, schedules, precision, memory and caching.",
)


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """Findings, worst first, and the settings they are about."""

    settings: Settings

    @property
    def is_log(self) -> bool:
        """Whether a log was read rather than settings."""
        return self.settings.form == "log"

    @cached_property
    def outcome(self) -> Outcome:
        """The optimizer, schedule and learning rates that come of the settings."""
        return Outcome(self.settings)

    @cached_property
    def matches(self) -> tuple[tuple[Rule, object], ...]:
        """The rules that hold, in the order of a run, each with what its test returned."""
        if self.settings.form in ("log", "none"):
            return ()
        found = ((rule, rule.when(self.outcome)) for rule in RULES if not rule.scripts or self.settings.script in rule.scripts)
        return tuple((rule, it) for rule, it in found if it)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Everything noticed: errors in the order a run would meet them, then silent changes, warnings and notes."""
        found = [*self.settings.findings, *(self._finding(rule, it) for rule, it in self.matches)]
        return tuple(sorted(found, key=lambda finding: EFFECTS.index(finding.effect)))

    @property
    def raises(self) -> bool:
        """Whether training stops with an error (or, for a log, did)."""
        return any(finding.effect == "raises" for finding in self.findings)

    def fixed(self) -> Recipe:
        """The recipe that was meant: every error and silent change mended. Raises `ValueError` where only the reader can decide."""
        return Recipe.from_settings(self._mended())

    def fixed_text(self) -> str:
        """The mended settings in the form they came in. Raises `ValueError` where only the reader can decide."""
        return settings.to_text(self._mended())

    def effective(self) -> dict[str, object]:
        """What a run would use: optimizer, schedule, learning rates, warmup; nothing if it stops before."""
        outcome = self.outcome
        if self.raises or self.settings.form in ("log", "none"):
            return {}
        return {
            "optimizer": outcome.optimizer_class or outcome.wanted,
            "scheduler": outcome.scheduler,
            "learning_rates": outcome.learning_rates,
            "warmup_steps": 0 if outcome.is_schedule_free else outcome.warmup_steps,
            "total_steps": outcome.total_steps,
        }

    def as_dict(self) -> dict[str, object]:
        """The same for a program: `raises`, `script`, `effective`, `findings`."""
        return {
            "raises": self.raises,
            "form": self.settings.form,
            "script": None if self.is_log else self.settings.script,
            "effective": self.effective(),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def table(self, *, colour: bool = False, width: int = 100) -> str:
        """A readable table, one finding below the other."""
        lines, indent, last = [], " " * 9, ""
        for finding in self.findings:
            head = WORDS[finding.effect].ljust(len(indent))
            body = textwrap.wrap(_printable(finding.what), width, initial_indent=head, subsequent_indent=indent) or [head]
            if colour:
                body[0] = f"\033[{COLOURS[finding.effect]}m{body[0][: len(indent)]}\033[0m\033[1m{body[0][len(indent) :]}\033[0m"
            body += textwrap.wrap(_printable(finding.why), width, initial_indent=indent, subsequent_indent=indent)
            if finding.fix:
                fix, last = "the same mends this" if finding.fix == last else _printable(finding.fix), finding.fix
                body += textwrap.wrap(f"→ {fix}", width, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
            if origin := _origin(finding):
                body.append(f"{indent}\033[2m{origin}\033[0m" if colour else indent + origin)
            lines += [*body, ""]
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """One line: how many of each, and what a run would use."""
        counts = {effect: sum(finding.effect == effect for finding in self.findings) for effect in EFFECTS}
        said = ", ".join(f"{count} {COUNTED[effect]}{'s' * (count > 1)}" for effect, count in counts.items() if count)
        said = said or "Nothing to complain of"
        effective = self.effective()
        if not effective:
            return (
                f"{said}." if self.is_log or self.settings.form == "none" else f"{said}. {self.settings.script} would not train with this."
            )
        rates = effective["learning_rates"]
        rate = "a learning rate of its own choice" if rates is None else "learning rate " + _rates(rates)
        warmup = f", {effective['warmup_steps']:,} warmup steps" if effective["warmup_steps"] else ", no warmup"
        kind = str(effective["optimizer"]).rpartition(".")[2]
        return f"{said}. {self.settings.script} would train with {kind}, {rate}, {effective['scheduler']}{warmup}."

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<{self.summary()}>"

    def _repr_html_(self) -> str:
        rows, last = [], ""
        for finding in self.findings:
            why = f"<br><span>{html.escape(_printable(finding.why))}</span>" if finding.why else ""
            fix = f"<br>→ <code>{html.escape(_printable(finding.fix))}</code>" if finding.fix else ""
            fix, last = "<br>→ the same mends this" if fix and finding.fix == last else fix, finding.fix or last
            origin = f'<br><small style="opacity:.7">{html.escape(_origin(finding))}</small>' if _origin(finding) else ""
            rows.append(
                f'<tr><td style="vertical-align:top;color:{SHADES[finding.effect]};font-weight:bold" title="{MEANINGS[finding.effect]}">'
                f'{WORDS[finding.effect]}</td><td style="text-align:left"><b>{html.escape(_printable(finding.what))}</b>'
                f"{why}{fix}{origin}</td></tr>"
            )
        return f"<table>{''.join(rows)}</table><p>{html.escape(self.summary())}</p>"

    def _finding(self, rule: Rule, it: object) -> Finding:
        return Finding(
            rule=rule.name,
            effect=rule.effect,
            what=text(rule.what, self.outcome, it),
            why=text(rule.why, self.outcome, it),
            fix=text(rule.fix, self.outcome, it),
            source=rule.source,
            lesson=rule.lesson,
        )

    def _mended(self) -> Settings:
        """The settings after every repair that a rule knows."""
        if self.settings.form in ("log", "none"):
            raise ValueError("there are no settings here to mend")
        start = self.settings.spelt_right()
        current = Diagnosis(replace(start, findings=()))
        for _ in range(ROUNDS):
            repair = current._next_repair()
            if not repair:
                break
            current = Diagnosis(current.settings.change(repair))
        unreadable = [one for one in start.findings if one.effect == "raises" and one.rule in _UNREADABLE]
        stuck = [current._finding(rule, it) for rule, it in current.matches if rule.effect == "raises"] + unreadable
        if stuck:
            raise ValueError("only you can decide this: " + " ".join(f"{one.what} {one.fix}" for one in stuck))
        return current.settings

    def _next_repair(self) -> Mapping[str, object]:
        for rule, _ in self.matches:
            if rule.changes is not None and (rule.effect != "warns" or rule.name in _WORTH_MENDING):
                changes = rule.changes(self.outcome)
                if any(repr(self.settings.given.get(name)) != repr(value) for name, value in changes.items()):  # 100 is not 100.0
                    return changes
        return {}


_UNREADABLE = ("usage", "toml-syntax", "no-settings", "file-not-read", "unclosed-quote", "bad-value")
_WORTH_MENDING = ("adaptive-needs-one", "adaptive-wants-one-rate")
"""Warnings that are not a matter of taste."""


def wants_colour(stream: object) -> bool:
    """Whether a terminal is there that shows colours, and nobody asked to leave them out."""
    return hasattr(stream, "isatty") and stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _origin(finding: Finding) -> str:
    return " · ".join(part for part in (finding.source, f"lesson {finding.lesson}" if finding.lesson else "") if part)


def _rates(rates: Mapping[str, float]) -> str:
    if len(set(rates.values())) == 1:
        return number(float(next(iter(rates.values()))))
    return ", ".join(f"{number(float(rate))} ({name})" for name, rate in rates.items())


def _printable(words: str) -> str:
    """Without anything that could steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in words)
