"""Refusals: the arguments that an optimizer or a schedule does not take, and the exception.

Follows `get_optimizer` and `get_scheduler_fix` of library/train_util.py in the order of their steps, because the order decides
which of several mistakes is the one that is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..system import quoted
from . import arguments
from .outcome import HANDED, Outcome

Refusal = tuple[str, str]
"""The refused argument, as the beginning of a sentence, and the exception."""
HANDED_OTHERWISE = ("num_warmup_steps", "num_training_steps", "num_decay_steps")
"""Arguments that sd-scripts gives to a schedule that `HANDED` does not list."""


def of_optimizer(outcome: Outcome) -> Refusal | None:
    """The argument that the optimizer's constructor does not take."""
    row, name = outcome.row, outcome.optimizer
    if row is None or not isinstance(outcome.optimizer_args, dict):
        return None
    given, is_nesterov = dict(outcome.optimizer_args), name.startswith("SGDNesterov")
    for key in given:
        if key in ("lr", "params", "self") or (is_nesterov and key == "nesterov"):
            return f"{key} is set by sd-scripts itself", "TypeError"
        if key not in row["keywords"] and not row.get("any"):
            return f"{name} takes no {quoted(key)}{_instead(key, outcome)}", "TypeError"
    if is_nesterov:
        given.setdefault("momentum", 0.9)
        if not given["momentum"] and name.endswith("8bit"):
            return "bitsandbytes' SGD needs a momentum", "NotImplementedError"
        if not given["momentum"] or given.get("dampening"):
            return "Nesterov needs a momentum and no dampening", "ValueError"
    if outcome.is_adafactor:
        given.pop("warmup_init", None)
    else:
        given = {"lr": outcome["learning_rate"], **given}
    return _by_probe(row, "refused", given)


def of_step(outcome: Outcome) -> Refusal | None:
    """The argument that makes the optimizer's first two steps raise."""
    row = outcome.row
    if row is None or not isinstance(outcome.optimizer_args, dict):
        return None
    return _by_probe(row, "failing", {"lr": outcome["learning_rate"], **outcome.optimizer_args})


def _by_probe(row: Mapping, table: str, given: Mapping) -> Refusal | None:
    """The first of `given`, in the order in which a constructor looks at them, whose kind of value raised when it was tried."""
    for key in ("lr", *row["keywords"]):
        pattern = row[table].get(key) if key in given else None
        errors = arguments.facts()["optimizers"]["refusals"][pattern] if pattern is not None else {}
        if error := errors.get(_kind(given.get(key))):
            return f"{'learning_rate' if key == 'lr' else key}={quoted(given[key])} is out of its range", error
    return None


def of_schedule(outcome: Outcome) -> Refusal | None:
    """The reason for which the schedule cannot be made."""
    given, kind, name = outcome.scheduler_args, outcome["lr_scheduler_type"], outcome.scheduler
    if not isinstance(given, dict) or outcome.is_schedule_free:
        return None
    if kind:
        return _by_class(outcome, str(kind), given)
    row = arguments.facts()["schedulers"]["names"].get(name)
    if row is None:
        return None
    handed = HANDED.get(name, HANDED_OTHERWISE)
    for key in given:
        if key in handed or key == "optimizer":
            return f"{key} is set by sd-scripts itself", "TypeError"
    if name not in HANDED:
        return f"{name} takes no num_decay_steps, which sd-scripts passes to it", "TypeError"
    for key in given:
        if key not in row["keywords"]:
            return f"{name} takes no {quoted(key)}", "TypeError"
    for key in row["required"]:
        if key not in handed and key not in given:
            return f"{name} needs {key}: --lr_scheduler_args {key}=…", "TypeError"
    return _by_value(outcome, name, given)


def _by_class(outcome: Outcome, kind: str, given: Mapping) -> Refusal | None:
    row = arguments.facts()["schedulers"]["classes"].get(kind)
    if row is None:
        return None
    for key in given:
        if key not in row["keywords"] or key == "optimizer":
            return f"{kind} takes no {quoted(key)}", "TypeError"
    if missing := [key for key in row["required"] if key not in given]:
        return f"{kind} needs {', '.join(missing)}", "TypeError"
    if outcome.relative_step and row.get("multiplies"):
        return f"{kind} multiplies the learning rate, and with relative_step there is none", "TypeError"
    return None


def _by_value(outcome: Outcome, name: str, given: Mapping) -> Refusal | None:
    ratio, end = outcome["lr_scheduler_min_lr_ratio"], given.get("lr_end", 1e-7)
    if name == "cosine_with_min_lr":
        if ratio is None and given.get("min_lr") is None:
            return "cosine_with_min_lr needs lr_scheduler_min_lr_ratio", "ValueError"
        if ratio is not None and given.get("min_lr") is not None:
            return "min_lr and lr_scheduler_min_lr_ratio exclude each other", "ValueError"
    if name == "polynomial" and not isinstance(end, (int, float)):
        return f"lr_end={quoted(end)} is not a number", "TypeError"
    if name == "polynomial" and not outcome.number("learning_rate") > end:
        return f"polynomial ends at {end}, which must be below learning_rate", "ValueError"
    if name == "inverse_sqrt" and (error := _root_refused(outcome)):
        return "inverse_sqrt cannot divide by this warmup or timescale", error
    if name == "piecewise_constant" and (error := _steps_refused(given.get("step_rules"))):
        return "step_rules reads like '1:100,0.1:1000,0.01'", error
    return None


def _root_refused(outcome: Outcome) -> str | None:
    warmup, timescale = outcome.warmup_steps, outcome["lr_scheduler_timescale"]
    timescale = (warmup or 10_000) if timescale is None else timescale
    if warmup > 0 or not isinstance(timescale, (int, float)):
        return None  # the first steps are the warmup's
    if timescale == 0 or timescale == warmup:
        return "ZeroDivisionError"
    return "ValueError" if (timescale - warmup) / timescale < 0 else None


def _steps_refused(rules: object) -> str | None:
    """The exception for a malformed `step_rules`, such as `1:100,0.1`."""
    if not isinstance(rules, str):
        return "AttributeError"
    *steps, last = rules.split(",")
    try:
        for step in steps:
            factor, until = step.split(":")
            _ = float(factor), int(until)
        float(last)
    except ValueError:
        return "ValueError"
    return None


def _instead(key: str, outcome: Outcome) -> str:
    if key == "betas" and outcome.is_adafactor:
        return ", it has beta1"
    return f": that is a separate flag, --{key}" if key in arguments.arguments(outcome.script) else ""


def _kind(value: object) -> str:
    """The kind of a value, in the words of the recorded refusals."""
    if value is None or isinstance(value, bool):
        return "none" if value is None else "true" if value else "zero"
    if isinstance(value, (int, float)):
        if math.isnan(value):
            return "nan"
        if value < 0 or value == math.inf:
            return "negative" if value < 0 else "inf"
        return "zero" if value == 0 else "fraction" if value < 1 else "one" if value == 1 else "many"
    if isinstance(value, (tuple, list)):
        if len(value) == 2:
            within = all(isinstance(part, (int, float)) and 0 <= part < 1 for part in value)
            return "pair" if within else "pair beyond"
        return "single" if len(value) < 2 else "triple"
    return "mapping" if isinstance(value, dict) else "text"
