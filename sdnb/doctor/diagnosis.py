"""`Diagnosis`: findings about settings for sd-scripts or about a training log, and the settings that were meant."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..recipe import Recipe
from ..sd_scripts import (
    EFFECTS,
    FATAL,
    LEFT_OUT,
    Finding,
    Outcome,
    Settings,
    arguments,
    findings,
    in_brief,
    to_text,
    versions,
    without_middle,
)
from ..sd_scripts import read as read_settings
from ..system import number, printable, shown
from . import languages, logs, report, rules, savings

SCHEMA = 1
"""Version of `Diagnosis.as_dict`, which `diagnosis.schema.json` describes: another number means that programs have to be adapted."""
RUINOUS = ("rate-of-one", "not-finite")
"""Rules after whose cases nothing of the model is left."""
ROUNDS = 40
"""No settings need more repairs than this."""
PASTED_LINES, PASTED_LETTERS = 12, 1500
"""A longer command is not shown mended, but where to get it."""


def diagnose(
    source: Recipe | Settings | str | Path | list[str], *, script: str | None = None, version: str = "", language: str = "en"
) -> Diagnosis:
    """Diagnose settings for sd-scripts, or a training log.

    - `source`: a recipe, a command line (or only its flags), the text or path of a TOML file or of the kohya_ss GUI's JSON, or a
      training log or traceback; of a log above 10 MB the two ends are looked at
    - `script`: the training script, where the text does not say; otherwise the first one that knows all arguments
    - `version`: of sd-scripts, such as `0.11`, or a commit; otherwise the one that a log's traceback fits, or 0.10.1, from which the
      rules were taken
    - `language`: of the report, `en` or `zh`

    Raises `ValueError` for another language or a version that is not known, and never for anything in the text. Nothing in it is run,
    and no file it names is opened.
    """
    try:
        version = versions.chosen(version) if version else ""
    except ValueError as error:
        raise ValueError(languages.language(language).text(str(error))) from error
    languages.language(language)
    settings = _diagnosis(source, script).settings
    settings = replace(settings, version=version) if version else settings
    return Diagnosis(settings, language, str(source) if isinstance(source, Path) else "")


def _diagnosis(source: Recipe | Settings | str | Path | list[str], script: str | None) -> Diagnosis:
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
    """Diagnosis of a log, and of the command in it, if it holds one."""
    found = logs.explained(text)
    if left_out := LEFT_OUT.search(text):
        found = (*found, replace(_MIDDLE, what=f"{left_out[1]} in the middle of this log were not read."))
    command, version = logs.command_in(text), versions.guess(text) or ""
    if command and (read := read_settings(command, script)).form == "command":
        ranks, foretold = list(EFFECTS), {finding.rule: finding.effect for finding in Diagnosis(read)._of_rules}
        found = tuple(
            one
            for one in found
            if ranks.index(foretold.get(SAID_BY_RULES.get(one.rule, one.rule), "note")) > ranks.index(one.effect)
            or SAID_BY_RULES.get(one.rule, one.rule) not in foretold
        )
        found = (*savings.for_these(read, found), *read.findings)
        return Diagnosis(replace(read, notebook=notebook, findings=found, version=version))
    found = savings.for_log(text, found)
    return Diagnosis(Settings("log", findings=found or (_NOTHING_KNOWN,), original=text, version=version))


SAID_BY_RULES = {
    "adafactor-learning-rate-ignored": "adafactor-ignores-learning-rate",
    "adafactor-group-rates-ignored": "adafactor-drops-group-rates",
    "adafactor-scheduler-replaced": "adafactor-replaces-schedule",
    "adafactor-relative-step-on": "relative-step-unsaid",
    "adafactor-relative-step-forced": "warmup-init-wins",
    "adafactor-clipping-on": "adafactor-clips",
    "adafactor-wants-constant-with-warmup": "adafactor-schedule-hint",
    "adafactor-clip-threshold": "adafactor-threshold",
    "adafactor-scheduler-without-adafactor": "adafactor-schedule-without-adafactor",
    "adafactor-scheduler-without-relative-step": "adafactor-schedule-by-hand",
    "automatic-rate-too-low": "adaptive-needs-one",
    "automatic-rate-only-one": "adaptive-wants-one-rate",
    "automatic-rate-refuses-several": "adaptive-refuses-several",
    "optimizer-said-twice": "two-old-flags",
    "optimizer-refuses-argument": "optimizer-refuses",
    "scheduler-refuses-warmup": "needless-warmup",
    "fused-backward-needs-adafactor": "fused-needs-adafactor",
    "fused-backward-refuses-accumulation": "fused-accumulation",
    "unscaled-twice": "fused-clips-fp16",
    "fp8-needs-mixed-precision": "fp8-base",
    "latent-cache-refuses-augmentation": "cached-latents-augmented",
    "latent-cache-switched-on": "latents-to-disk",
    "text-cache-refuses-caption-changes": "cached-text-changed",
    "text-cache-refuses-weighted-captions": "cached-text-weighted",
    "text-cache-switched-on": "text-to-disk",
    "accumulation-with-two-models": "accumulates-two-models",
    "clip-skip-with-v2": "v2-clip-skip",
    "clip-skip-with-sdxl": "sdxl-clip-skip",
    "v2-with-sdxl": "sdxl-is-not-v2",
    "zero-terminal-snr-without-v": "zero-terminal-snr",
    "scale-v-without-v": "scale-v-pred",
    "v-like-loss-with-v": "v-pred-like-loss",
    "adaptive-noise-without-offset": "adaptive-noise-scale",
    "block-swap-with-cpu-offload": "swap-and-offload",
    "cpu-offload-unsupported": "offload-unsupported",
    "bucket-steps-not-divisible": "bucket-steps",
    "persistent-workers-of-none": "persistent-without-workers",
    "logging-dir-missing": "tensorboard-folder",
    "resume-is-no-folder": "resume-from-weights",
}
"""Messages of a log that a rule of another name foretells: where the rule applies to the command in the log, it alone is told."""
_MIDDLE = Finding(rule="log-cut", effect="note", what="", why="A log has its settings at the beginning and a traceback at the end.")
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
    language: str = "en"
    """Language of the report, and of the errors of the methods; `findings` are in English."""
    name: str = ""
    """Argument of `sdnb doctor` that asks for the same again: a file, or `-` for the standard input; empty for a text in Python."""

    @property
    def is_log(self) -> bool:
        """Whether a log was read rather than settings."""
        return self.settings.form == "log"

    @cached_property
    def outcome(self) -> Outcome:
        """Optimizer, schedule and learning rates that come of the settings."""
        return Outcome(self.settings)

    @cached_property
    def matches(self) -> tuple[tuple[rules.Rule, Mapping[str, object]], ...]:
        """Rules that apply, in the order of `RULES`, each with the values for its texts."""
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
        """Findings in English: errors in the order a run would meet them, then silent changes, warnings and notes.

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

    @property
    def can_be_planned(self) -> bool:
        """Whether `planned` may say more: a GPU of known size was full, and the settings are there."""
        return any(savings.can_be_planned(self.settings, one) for one in self.settings.findings)

    def planned(self, *, seconds: float = 60) -> Diagnosis:
        """Diagnosis of an out-of-memory log with the smallest changes that are planned to fit this model, batch, size and GPU.

        Itself where that cannot be planned: without torch, without the command, or for another kind of model. Plans some variants, which
        takes ten seconds for SD 1.5 and half a minute for SDXL; `seconds` is when it stops looking for smaller changes.
        """
        if not self.can_be_planned:
            return self
        findings = savings.planned(self.settings, self.settings.findings, seconds=seconds)
        return replace(self, settings=replace(self.settings, findings=findings))

    def fixed(self) -> Recipe:
        """Recipe that was meant: every error and silent change mended. Raises `ValueError` where only the reader can decide."""
        return Recipe.from_settings(self._mended())

    def fixed_text(self) -> str:
        """Mended settings in the form they came in: a TOML file keeps its comments, a command its launcher, a GUI file its fields.

        Text that is not understood whole stays as it is where there is nothing to mend. Raises `ValueError` where only the reader can
        decide, and where mending could do harm: there is no repair unless the mended text, read again, says just what was meant.
        """
        mended, original = self._mended(), self.settings.original
        changed = _changed(self.settings, mended)
        is_right = not changed and not any(one.effect in (*FATAL, "overrides") for one in self.settings.findings)
        if is_right and isinstance(original, str) and not (self.settings.whole and self.settings.encoding):
            return self.settings.notebook or original
        if why := self._unmendable(changed):
            raise ValueError(self._say("fix this by hand: {why:t}", why=why))
        try:
            text = to_text(mended)
        except ValueError as error:
            raise ValueError(self._language.text(str(error))) from error
        if text.strip():
            self._check(text, mended)
        return text

    def _unmendable(self, changed: Iterable[str]) -> str:
        """Why this text cannot be mended without harm; empty where it can."""
        if not self.settings.encoding:
            return "the file is neither UTF-8 nor in a known code page, so letters of it would be lost; save it as UTF-8"
        if listed := sorted(set(changed) & self.settings.in_lists):
            return f"{', '.join(listed)} {'are' if len(listed) > 1 else 'is'} in an array of the shell"
        return self.settings.unmendable

    def _check(self, text: str, mended: Settings) -> None:
        """Raise `ValueError` unless mended text holds no error, says what was meant, and lost nothing of what it was made from."""
        again = read_settings(text, self.settings.script)
        if left := [one for one in Diagnosis(again).findings if one.effect in FATAL]:
            raise ValueError(self._say("only you can decide this: {what}", what=self._sentences(left)))
        kept = all(getattr(again, name) == getattr(mended, name) for name in ("form", "prefix", "launch", "unknown"))
        kept = kept and (mended.form, len(mended.prefix)) == (self.settings.form, len(self.settings.prefix))
        same = mended.form == "gui" or not _changed(again, mended)
        if not (kept and same and sorted(again.unread) == sorted(mended.unread)):
            why = "the doctor does not understand all of this text, so a fixed version could mean something else"
            raise ValueError(self._say("fix this by hand: {why:t}", why=why))

    def changes(self) -> list[str]:
        """Changes that `fixed` makes, one line a setting. Raises `ValueError` where only the reader can decide."""
        mended = self._mended()
        before, after = self.settings.given, mended.given
        unsaid = self._say("(not set)")
        changed = _changed(self.settings, mended)
        lines = [f"{name}: {_value(before.get(name), unsaid)} -> {_value(after.get(name), unsaid)}" for name in changed]
        moved = [(old, name) for old, name, _ in self.settings.renamed if old.lstrip("-—–").partition("=")[0] != name and name in after]
        lines += [self._say("{old}: renamed to {name}", old=shown(old, 60), name=name) for old, name in moved][: findings.OF_ALL]
        oddities = [one for one in self.settings.findings if one.rule in _MENDED_BY_PRINTING]
        lines += [self._language.finding(one).what for one in oddities[: findings.OF_ALL]]
        strange = [one for one in self.settings.findings if one.rule in ("unknown-argument", "stray-words")]
        gone = [one for one in strange if not any(shown(old) in one.what for old, *_ in self.settings.renamed)]
        lines += [self._say("left out: {what}", what=one.what.rpartition(": ")[2]) for one in gone[: findings.OF_ALL]]
        return lines + ([self._say("left out: {count:,} more", count=len(gone) - findings.OF_ALL)] if len(gone) > findings.OF_ALL else [])

    def effective(self) -> dict[str, Any]:
        """Optimizer, schedule, learning rates and steps of a run; nothing if it stops before."""
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

    def as_dict(self) -> dict[str, Any]:
        """Diagnosis for a program, plain enough for JSON; `diagnosis.schema.json` beside this module describes each field."""
        names = ("rule", "effect", "what", "why", "fix", "source", "lesson", "repair")
        return {
            "schema": SCHEMA,
            "language": self.language,
            "verdict": self.summary(),
            "raises": self.raises,
            "fails": self.fails,
            "form": self.settings.form,
            "script": None if self.settings.form in ("log", "none") else self.settings.script,
            "version": self.settings.version or None,
            "effective": {name: _finite(value) for name, value in self.effective().items()},
            "findings": [{name: getattr(one, name) for name in names} for one in map(self._language.finding, self.findings)],
        }

    def table(self, *, colour: bool = False, width: int = 100, why: bool = False) -> str:
        """Report for a terminal: the verdict, the mended command, and the causes, each with what to type first.

        - `width`: columns
        - `why`: with every reason and where it was read; else a report of one screen, with the first cause's reason alone
        """
        lines = [self.summary(), "", *self._to_paste()]
        room = max(report.SCREEN - len(lines), report.SCREEN // 2)
        lines += report.table(self.findings, self._language, colour=colour, width=width, why=why, room=room, ask=self._ask("why"))
        return "\n".join(lines).rstrip("\n")

    def _to_paste(self) -> list[str]:
        """Lines with the mended settings, or how to get them; none where nothing is to be changed or only the reader can do it."""
        try:
            is_calm = all(one.effect == "note" for one in self._all_findings)
            text = "" if is_calm or not self.changes() else self.fixed_text()
        except ValueError:
            return []
        lines = text.strip().splitlines()
        is_short = len(lines) <= PASTED_LINES and len(text) <= PASTED_LETTERS and all(map(str.isprintable, lines))
        if self.settings.form in ("flags", "command") and lines and is_short:
            return [self._say("Fixed, to paste:"), *lines, ""]
        return [self._say("Fixed: {ask}", ask=self._ask("fix")), ""] if lines else []

    def _ask(self, option: str) -> str:
        """How to ask for more: a command, or a method."""
        if self.name:
            return f"sdnb doctor --{option} {printable(shlex.quote(self.name))}"
        return {"why": "table(why=True)", "fix": "fixed_text()"}[option]

    def summary(self) -> str:
        """Verdict in one line: how many of each, and what a run would use."""
        return printable(self._summary())

    def _summary(self) -> str:
        said = report.count(self._all_findings, self._language)
        if self.settings.form not in ("log", "none") and all(finding.effect == "note" for finding in self._all_findings):
            said = self._say("No problems found, {count}", count=said) if said else self._say("No problems found")
        effective, script = self.effective(), self.settings.script
        if self._depends and not self.raises:
            return self._say("{count}. The rest depends on what is not in this text: {where:t}.", count=said, where=self._depends)
        if self.settings.form in ("log", "none"):
            return self._say("{count}.", count=said)
        if not self.settings.script_named:
            script = self._say("{script} (no script was named)", script=script)
        if not effective:
            return self._say("{count}. {script} would not train with this.", count=said, script=script)
        settings = self._language.text(", ").join(self._in_words(effective))
        if self.settings.script not in arguments.STABLE_DIFFUSION:
            text = "{count}, as far as it was checked. {script} would begin with {settings}; the rules of its own model were not checked."
        elif any(finding.rule in RUINOUS for finding in self._all_findings):
            text = "{count}. {script} would run with {settings}, and ruin the weights."
        else:
            text = "{count}. {script} would train with {settings}."
        return self._say(text, count=said, script=script, settings=settings)

    def _in_words(self, effective: Mapping[str, Any]) -> list[str]:
        rates, warmup = effective["learning_rates"], effective["warmup_steps"]
        return [
            str(effective["optimizer"]).rpartition(".")[2],
            self._say("a learning rate of its own choice") if rates is None else self._say("learning rate {rates}", rates=_rates(rates)),
            effective["scheduler"],
            self._say("a share of the steps as warmup")
            if warmup is None
            else self._say("{count:,} warmup steps", count=warmup)
            if warmup
            else self._say("no warmup"),
        ]

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

    @property
    def _language(self) -> languages.Language:
        return languages.language(self.language)

    def _say(self, english: str, **values: object) -> str:
        return self._language.say(english, **values)

    def _sentences(self, found: Iterable[Finding]) -> str:
        return " ".join(self._language.finding(finding).in_short for finding in in_brief(list(found)))

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<{self.summary()}>"

    def _repr_html_(self) -> str:
        import html

        return f"<p>{html.escape(self.summary())}</p>{report.page(self.findings, self._language)}"

    def _mended(self) -> Settings:
        """Settings after every repair that a rule knows."""
        if self.is_log:
            raise ValueError(self._say("a log has no settings to fix"))
        if self.settings.form == "none":
            raise ValueError(self._sentences(self.settings.findings))
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
            raise ValueError(self._say("only you can decide this: {what}", what=self._sentences(stuck)))
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


def _value(value: object, unsaid: str) -> str:
    if isinstance(value, (list, tuple)):
        return shown(" ".join(map(str, value)), 300)
    return unsaid if value is None else number(value) if isinstance(value, float) else shown(value, 300)


def wants_colour(stream: Any) -> bool:
    """Whether a terminal is there that shows colours, and nobody asked to leave them out."""
    return hasattr(stream, "isatty") and stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _rates(rates: Mapping[str, float]) -> str:
    if len(set(rates.values())) == 1:
        return number(float(next(iter(rates.values()))))
    return ", ".join(f"{number(float(rate))} ({name})" for name, rate in rates.items())


def _finite(value: object) -> object:
    """The value without NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
