"""The doctor: what sd-scripts will do with somebody's settings, what is wrong with them, and the settings that were meant."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..recipe import Recipe
from ..sd_scripts import FATAL, LEFT_OUT, Finding, Outcome, Settings, arguments, findings, in_brief, to_text, versions, without_middle
from ..sd_scripts import read as read_settings
from ..system import number, printable, shown
from . import logs, rules, savings

RUINOUS = ("rate-of-one", "not-finite")
"""Rules after whose cases nothing of the model is left."""
ROUNDS = 40
"""No settings need more repairs than this."""


def diagnose(source: Recipe | Settings | str | Path | list[str], *, script: str | None = None, version: str = "") -> Diagnosis:
    """What sd-scripts will do with these settings.

    `source` is a recipe, a command line (or only its flags), the text or path of a TOML file or of the kohya_ss GUI's JSON, or a
    training log or traceback; of a log above 10 MB the two ends are looked at. `script` is the training script, where the text does not
    say; otherwise the first one that knows all arguments. `version` is the version of sd-scripts, such as `0.11` or a commit; otherwise
    the one that a log's traceback fits, or 0.10.1, from which the rules were taken. Raises `ValueError` for a version that is not
    known, and never for anything in the text; nothing in it is run, and no file it names is opened.
    """
    if version:
        version = versions.chosen(version)
        found = diagnose(source, script=script)
        return Diagnosis(replace(found.settings, version=version))
    if isinstance(source, Recipe):
        source = source.settings(script)
    if isinstance(source, Settings):
        return Diagnosis(source)
    if isinstance(source, str):
        source = without_middle(source)
    if isinstance(source, str) and logs.looks_like_log(source):
        return _of_log(source, script)
    read = read_settings(source, script)
    is_toml = read.form == "toml" and all(finding.rule != "toml-syntax" for finding in read.findings)
    pasted = read.original if isinstance(read.original, str) and not is_toml else ""
    if pasted != source and logs.looks_like_log(pasted):
        return _of_log(read.original, script, read.notebook)
    return Diagnosis(read)


def _of_log(text: str, script: str | None, notebook: str = "") -> Diagnosis:
    """What a log says, and what is to be said of the command in it, if it holds one."""
    found = logs.explained(text)
    if left_out := LEFT_OUT.search(text):
        found = (*found, replace(_MIDDLE, what=f"{left_out[1]} in the middle of this log were not looked at."))
    command, version = logs.command_in(text), versions.guess(text) or ""
    if command and (read := read_settings(command, script)).form == "command":
        found = (*savings.for_these(read, found), *read.findings)
        return Diagnosis(replace(read, notebook=notebook, findings=found, version=version))
    found = savings.for_log(text, found)
    return Diagnosis(Settings("log", findings=found or (_NOTHING_KNOWN,), original=text, version=version))


_MIDDLE = Finding(rule="log-cut", effect="note", what="", why="A traceback stands at the end of a log, and the settings at its beginning.")
_NOTHING_KNOWN = Finding(
    rule="log-unknown",
    effect="note",
    what="None of the known messages is in this log.",
    why="The doctor knows errors and warnings about models, data sets, memory, the installation, optimizers, schedules and precision.",
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
    def matches(self) -> tuple[tuple[rules.Rule, Mapping[str, object]], ...]:
        """The rules that apply, in the order of `RULES`, each with the values for its texts."""
        if self.settings.form in ("log", "none"):
            return ()
        matches = []
        for rule in rules.RULES:
            if rule.scripts and self.settings.script not in rule.scripts:
                continue
            outcome = Outcome(self.settings) if self.settings.unknown else self.outcome
            values = rule.when(outcome)
            if values is not None and not any(self.settings.is_unknown(name) for name in outcome.asked if self.settings.unknown):
                matches.append((rule, values))  # a rule that asks for what stands elsewhere cannot say anything
        return tuple(matches)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What was noticed: errors in the order a run would meet them, then silent changes, warnings and notes.

        Of very many, the first few of each kind, and how many more there are.
        """
        return in_brief(self._all_findings)

    @cached_property
    def _all_findings(self) -> tuple[Finding, ...]:
        version = self.settings.version or versions.recorded()
        found = findings.worst_first([*self.settings.findings, *self._of_rules])
        return tuple(replace(one, source=versions.reference(one.source, version)) for one in found)

    @property
    def _of_rules(self) -> list[Finding]:
        return [rule.finding(self.outcome, values) for rule, values in self.matches]

    @property
    def raises(self) -> bool:
        """Whether training stops with an error (or, for a log, did)."""
        return any(finding.effect == "raises" for finding in self._all_findings)

    @property
    def fails(self) -> bool:
        """Whether there is an error: training stops, or runs and ruins the model."""
        return any(finding.effect in FATAL for finding in self._all_findings)

    def fixed(self) -> Recipe:
        """The recipe that was meant: every error and silent change mended. Raises `ValueError` where only the reader can decide."""
        return Recipe.from_settings(self._mended())

    def fixed_text(self) -> str:
        """The mended settings in the form they came in: a TOML file keeps its comments, a command its launcher, a GUI file its fields.

        Text that is not understood whole stays as it is where there is nothing to mend. Raises `ValueError` where only the reader can
        decide, and where mending could do harm: there is no repair unless the mended text, read again, says just what was meant.
        """
        mended, original = self._mended(), self.settings.original
        changed = _changed(self.settings, mended)
        is_right = not changed and not any(one.effect in (*FATAL, "overrides") for one in self.settings.findings)
        if is_right and isinstance(original, str) and not (self.settings.whole and self.settings.encoding):
            return self.settings.notebook or original
        if why := self._unmendable(changed):
            raise ValueError(f"mend this by hand: {why}")
        text = to_text(mended)
        if text.strip():
            self._check(text, mended)
        return text

    def _unmendable(self, changed: Iterable[str]) -> str:
        """Why this text cannot be mended without harm; empty where it can."""
        if not self.settings.encoding:
            return "the file is neither UTF-8 nor in a known code page, so letters of it would be lost; save it as UTF-8"
        if listed := sorted(set(changed) & self.settings.in_lists):
            return f"{', '.join(listed)} {'stand' if len(listed) > 1 else 'stands'} in a list of the shell"
        return self.settings.unmendable

    def _check(self, text: str, mended: Settings) -> None:
        """Raise `ValueError` unless mended text holds no error, says what was meant, and lost nothing of what it was made from."""
        again = read_settings(text, self.settings.script)
        if left := [one for one in Diagnosis(again).findings if one.effect in FATAL]:
            raise ValueError("only you can decide this: " + _sentences(left))
        kept = all(getattr(again, name) == getattr(mended, name) for name in ("form", "prefix", "launch", "unknown"))
        kept = kept and (mended.form, len(mended.prefix)) == (self.settings.form, len(self.settings.prefix))
        same = mended.form == "gui" or not _changed(again, mended)
        if not (kept and same and sorted(again.unread) == sorted(mended.unread)):
            raise ValueError("mend this by hand: not all of this text is understood, and the mended one would not say the same")

    def changes(self) -> list[str]:
        """What `fixed` changes, one line a setting. Raises `ValueError` where only the reader can decide."""
        mended = self._mended()
        before, after = self.settings.given, mended.given
        lines = [f"{name}: {_value(before.get(name))} -> {_value(after.get(name))}" for name in _changed(self.settings, mended)]
        moved = [(old, name) for old, name, _ in self.settings.renamed if old.lstrip("-—–").partition("=")[0] != name and name in after]
        lines += [f"{shown(old, 60)}: renamed to {name}" for old, name in moved][: findings.OF_ALL]
        lines += [one.what for one in self.settings.findings if one.rule in _MENDED_BY_PRINTING][: findings.OF_ALL]
        strange = [one for one in self.settings.findings if one.rule in ("unknown-argument", "stray-words")]
        gone = [one for one in strange if not any(shown(old) in one.what for old, *_ in self.settings.renamed)]
        lines += [f"left out: {one.what.rpartition(': ')[2]}" for one in gone[: findings.OF_ALL]]
        return lines + ([f"left out: {len(gone) - findings.OF_ALL:,} more"] if len(gone) > findings.OF_ALL else [])

    def effective(self) -> dict[str, Any]:
        """What a run would use: optimizer, schedule, learning rates, warmup; nothing if it stops before."""
        outcome = self.outcome
        if self.raises or self.settings.form in ("log", "none") or self._depends:
            return {}
        by_epochs = bool(outcome["max_train_epochs"])  # the steps are known once the pictures are counted
        return {
            "optimizer": shown(outcome.optimizer_class or outcome.wanted, 200),
            "scheduler": shown(outcome.scheduler, 200),
            "learning_rates": outcome.learning_rates,
            "warmup_steps": 0 if outcome.is_schedule_free else None if by_epochs and outcome.warms_in_proportion else outcome.warmup_steps,
            "total_steps": None if by_epochs else outcome.total_steps,
        }

    def as_dict(self) -> dict[str, object]:
        """The same for a program: `raises`, `script`, `version`, `effective`, `findings`."""
        return {
            "raises": self.raises,
            "form": self.settings.form,
            "script": None if self.is_log else self.settings.script,
            "version": self.settings.version or None,
            "effective": self.effective(),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def table(self, *, colour: bool = False, width: int = 100) -> str:
        """A readable table: the verdict, then one cause below the other, each with what to type first."""
        return f"{self.summary()}\n\n{findings.table(self.findings, colour=colour, width=width)}".rstrip("\n")

    def summary(self) -> str:
        """One line: how many of each, and what a run would use."""
        return printable(self._summary())

    def _summary(self) -> str:
        said = findings.count(self._all_findings)
        if self.settings.form not in ("log", "none") and all(finding.effect == "note" for finding in self._all_findings):
            said = f"No problems found, {said}" if said else "No problems found"
        effective = self.effective()
        if self._depends and not self.raises:
            return f"{said}. The rest depends on what is not in this text: {self._depends}."
        script = self.settings.script
        if not self.settings.script_named and self.settings.form not in ("log", "none"):
            script += " (no script was named)"
        if not effective:
            return f"{said}." + ("" if self.settings.form in ("log", "none") else f" {script} would not train with this.")
        rates = effective["learning_rates"]
        rate = "a learning rate of its own choice" if rates is None else "learning rate " + _rates(rates)
        steps = effective["warmup_steps"]
        warmup = ", a share of the steps as warmup" if steps is None else f", {steps:,} warmup steps" if steps else ", no warmup"
        kind = str(effective["optimizer"]).rpartition(".")[2]
        outcome = f"{kind}, {rate}, {effective['scheduler']}{warmup}"
        if self.settings.script not in arguments.STABLE_DIFFUSION:
            return f"{said}, as far as it was checked. {script} would begin with {outcome}; the rules of its own model were not checked."
        if any(finding.rule in RUINOUS for finding in self._all_findings):
            return f"{said}. {script} would run with {outcome}, and ruin the weights."
        return f"{said}. {script} would train with {outcome}."

    @property
    def _depends(self) -> str:
        """Where the settings stand that decide about optimizer and schedule, if it is not here."""
        if self.settings.given.get("config_file"):
            return f"the file {shown(self.settings.given['config_file'])}"
        if self.settings.held.get("config_file"):
            return f"the file of --config_file, {shown(self.settings.held['config_file'])}"
        decisive = ("optimizer_type", "optimizer_args", "learning_rate", "lr_scheduler", "lr_warmup_steps")
        unknown = [name for name in decisive if self.settings.is_unknown(name)]
        return f"the variables of {', '.join(unknown)}" if unknown else ""

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<{self.summary()}>"

    def _repr_html_(self) -> str:
        import html

        return f"<p>{html.escape(self.summary())}</p>{findings.page(self.findings)}"

    def _mended(self) -> Settings:
        """The settings after every repair that a rule knows."""
        if self.is_log:
            raise ValueError("a log holds no settings to mend")
        if self.settings.form == "none":
            raise ValueError(_sentences(self.settings.findings))
        start = self.settings.spelt_right()
        current = Diagnosis(replace(start, findings=()))
        for _ in range(ROUNDS):
            repair = current._next_repair()
            if not repair:
                break
            current = Diagnosis(current.settings.change(repair))
        unreadable = [one for one in start.findings if one.effect == "raises" and one.rule in _UNREADABLE]
        stuck = [finding for finding in current._of_rules if finding.effect in FATAL] + unreadable
        if stuck:
            raise ValueError("only you can decide this: " + _sentences(stuck))
        return current.settings

    def _next_repair(self) -> Mapping[str, object]:
        for rule, _ in self.matches:
            if rule.changes is not None and (rule.effect_on(self.outcome) != "warns" or rule.name in _WORTH_MENDING):
                changes = rule.changes(self.outcome)
                elsewhere = {name for name in changes if self.settings.is_unknown(name) and name not in self.settings.given}
                if any(changes[name] is not None for name in elsewhere):
                    continue  # it would win over what stands elsewhere
                changes = {name: value for name, value in changes.items() if name not in elsewhere}
                if any(repr(self.settings.given.get(name)) != repr(value) for name, value in changes.items()):  # 100 is not 100.0
                    return changes
        return {}


_UNREADABLE = ("usage", "toml-syntax", "no-settings", "file-not-read", "unclosed-quote", "bad-value", "ambiguous-argument", "stray-words")
_MENDED_BY_PRINTING = (
    "abbreviated-argument",
    "broken-line",
    "curly-quotes",
    "duplicate-argument",
    "single-quotes-in-cmd",
    "backslash-before-quote",
)
"""Findings that no setting changes for."""
_WORTH_MENDING = ("adaptive-needs-one", "adaptive-wants-one-rate")
"""Warnings that are not a matter of taste."""


def _changed(before: Settings, after: Settings) -> list[str]:
    """The names with other values, in order; 100 is not 100.0, but a tuple is as good as a list."""
    texts = [
        {name: repr(list(value) if isinstance(value, tuple) else value) for name, value in one.given.items()} for one in (before, after)
    ]
    return sorted(name for name in {*texts[0], *texts[1]} if texts[0].get(name) != texts[1].get(name))


def _sentences(found: Iterable[Finding]) -> str:
    return " ".join(finding.in_short for finding in in_brief(list(found)))


def _value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return shown(" ".join(map(str, value)), 300)
    return "(unsaid)" if value is None else number(value) if isinstance(value, float) else shown(value, 300)


def wants_colour(stream: Any) -> bool:
    """Whether a terminal is there that shows colours, and nobody asked to leave them out."""
    return hasattr(stream, "isatty") and stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _rates(rates: Mapping[str, float]) -> str:
    if len(set(rates.values())) == 1:
        return number(float(next(iter(rates.values()))))
    return ", ".join(f"{number(float(rate))} ({name})" for name, rate in rates.items())
