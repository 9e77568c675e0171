"""`Outcome`: the optimizer, schedule and learning rates that sd-scripts would end up with, worked out without running it.

Follows `get_optimizer` and `get_scheduler_fix` of library/train_util.py in the order of their steps, because the order decides
which of several mistakes is the one that is reported.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from functools import cached_property

from . import arguments
from .settings import Settings

NETWORK = ("train_network.py", "sdxl_train_network.py")
TEXTUAL_INVERSION = ("train_textual_inversion.py", "sdxl_train_textual_inversion.py")
SDXL = ("sdxl_train_network.py", "sdxl_train.py", "sdxl_train_textual_inversion.py")
HANDED = {
    "constant": (),
    "constant_with_warmup": ("num_warmup_steps",),
    "inverse_sqrt": ("num_warmup_steps", "timescale"),
    "cosine_with_restarts": ("num_warmup_steps", "num_training_steps", "num_cycles"),
    "polynomial": ("num_warmup_steps", "num_training_steps", "power"),
    "cosine_with_min_lr": ("num_warmup_steps", "num_training_steps", "num_cycles", "min_lr_rate"),
    "linear": ("num_warmup_steps", "num_training_steps"),
    "cosine": ("num_warmup_steps", "num_training_steps"),
    "warmup_stable_decay": ("num_warmup_steps", "num_stable_steps", "num_decay_steps", "num_cycles", "min_lr_ratio"),
    "piecewise_constant": (),
}
"""What each schedule is given by sd-scripts itself, beside lr_scheduler_args."""
HANDED_OTHERWISE = ("num_warmup_steps", "num_training_steps", "num_decay_steps")


class Malformed(Exception):
    """A `key=value` text that sd-scripts cannot take apart; `error` is the exception it raises."""

    def __init__(self, text: object, error: str, why: str) -> None:
        super().__init__(why)
        self.text, self.error = text, error


class Outcome:
    """What would come of `settings`. Every property answers for any values, however odd."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.script = settings.script
        self.asked: set[str] = set()
        """The names that were looked at."""

    def __getitem__(self, name: str) -> object:
        self.asked.add(name)
        return self.settings[name]

    def said(self, *names: str) -> bool:
        """Whether any of these was given."""
        self.asked.update(names)
        return any(self.settings.said(name) for name in names)

    @property
    def is_readable(self) -> bool:
        """Whether all of the text could be read, so that what is not there was not said."""
        return not any(finding.effect == "raises" for finding in self.settings.findings)

    def has(self, name: str) -> bool:
        """Whether the script has this argument and it is set to something that counts as true."""
        return name in arguments.arguments(self.script) and bool(self[name])

    def number(self, name: str) -> float:
        """The value as a number, NaN if it is none."""
        value = self[name]
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan

    # the optimizer

    @cached_property
    def wanted(self) -> str:
        """The name that was asked for, the old flags included."""
        if self["use_8bit_adam"]:
            return "AdamW8bit"
        if self["use_lion_optimizer"]:
            return "Lion"
        return str(self["optimizer_type"]) or "AdamW"

    @cached_property
    def optimizer(self) -> str:
        """The optimizer in its usual capitals; the wanted name itself where it is not known."""
        capitals = {name.lower(): name for name, row in _classes().items() if row.get("named")}
        return capitals.get(self.wanted.lower(), self.wanted)

    @property
    def row(self) -> Mapping | None:
        """What is known of its class."""
        return _classes().get(self.optimizer) or (_classes().get(self.wanted[12:]) if self.wanted.startswith("torch.optim.") else None)

    @property
    def optimizer_class(self) -> str | None:
        """The full path of its class."""
        return self.row["class"] if self.row else None

    @property
    def is_adafactor(self) -> bool:
        """Whether it is transformers' Adafactor."""
        return self.optimizer == "Adafactor"

    @property
    def is_adaptive(self) -> bool:
        """Whether it finds its own step size, and wants a learning rate of about 1."""
        return self.wanted.lower().startswith("dadapt") or self.optimizer == "Prodigy"

    @property
    def is_schedule_free(self) -> bool:
        """Whether sd-scripts takes it for one that needs no schedule. It looks at `optimizer_type` alone."""
        return str(self["optimizer_type"]).lower().endswith("schedulefree")

    @cached_property
    def optimizer_args(self) -> dict[str, object] | Malformed:
        """The arguments taken apart."""
        return _take_apart(self["optimizer_args"])

    def argument(self, name: str, otherwise: object = None) -> object:
        """One of the optimizer's arguments."""
        return self.optimizer_args.get(name, otherwise) if isinstance(self.optimizer_args, dict) else otherwise

    @property
    def relative_step(self) -> bool:
        """Whether Adafactor chooses its learning rate itself: also when nothing is said, and whenever warmup_init is true."""
        if not self.is_adafactor or not isinstance(self.optimizer_args, dict):
            return False
        return bool(self.argument("relative_step", True) or self.argument("warmup_init", False))

    @cached_property
    def refused(self) -> tuple[str, str] | None:
        """The argument that the optimizer's constructor does not take, and the exception."""
        if self.row is None or not isinstance(self.optimizer_args, dict):
            return None
        given = dict(self.optimizer_args)
        taken = {"lr", "params", "self"} | ({"nesterov"} if self.optimizer.startswith("SGDNesterov") else set())
        for key in given:
            if key in taken:
                return f"{key} is set by sd-scripts itself", "TypeError"
            if key not in self.row["keywords"] and not self.row.get("any"):
                return f"{self.optimizer} takes no {key!r}{_instead(key, self.optimizer, self.script)}", "TypeError"
        if self.optimizer.startswith("SGDNesterov"):
            given.setdefault("momentum", 0.9)
            if not given["momentum"] and self.optimizer.endswith("8bit"):
                return "bitsandbytes' SGD needs a momentum", "NotImplementedError"
            if not given["momentum"] or given.get("dampening"):
                return "Nesterov needs a momentum and no dampening", "ValueError"
        if self.is_adafactor:
            given.pop("warmup_init", None)
        else:
            given = {"lr": self["learning_rate"], **given}
        order = {name: place for place, name in enumerate(["lr", *self.row["keywords"]])}
        for key, value in sorted(given.items(), key=lambda item: order.get(item[0], len(order))):  # as the constructor looks at them
            pattern = self.row["refused"].get(key)
            errors = arguments.facts()["optimizers"]["refusals"][pattern] if pattern is not None else {}
            if error := errors.get(_kind(value)):
                name = "learning_rate" if key == "lr" else key
                return f"{name}={value!r} is out of its range", error
        return None

    @cached_property
    def groups(self) -> dict[str, object]:
        """The parameter groups by what they train, each with its learning rate; one group `all` where there is no such division."""
        lr = self["learning_rate"]
        if self.script in NETWORK:
            text = self["text_encoder_lr"]
            text = (text[0] if text else None) if isinstance(text, (list, tuple)) else text
            unet = self["unet_lr"]
            groups = {"text encoder": lr if text is None else text} if not self.has("network_train_unet_only") else {}
            groups |= {"U-Net": lr if unet is None else unet} if not self.has("network_train_text_encoder_only") else {}
            return {name: value for name, value in groups.items() if value is not None and value != 0}
        if self.script == "sdxl_train.py":
            groups = {"U-Net": lr} if lr != 0 else {}
            for number in (1, 2) if self.has("train_text_encoder") else ():
                own = self[f"learning_rate_te{number}"]
                if (lr if own is None else own) != 0:
                    groups[f"text encoder {number}"] = own or lr
            return groups
        own = self["learning_rate_te"] if self.script in ("train_db.py", "fine_tune.py") else None
        stop = self["stop_text_encoder_training"] if self.script == "train_db.py" else None
        trains_text = self.has("train_text_encoder") if self.script == "fine_tune.py" else not (isinstance(stop, int) and stop < 0)
        return {"U-Net": lr, "text encoder": own} if own is not None and trains_text else {"all": lr}

    @property
    def in_groups(self) -> bool:
        """Whether the script hands over groups with learning rates of their own."""
        return "all" not in self.groups

    # the schedule

    @property
    def processes(self) -> int:
        """How many `accelerate launch` starts."""
        return self.settings.processes

    @property
    def total_steps(self) -> float:
        """Steps of the schedule: optimizer steps times processes, since each process moves the schedule on. NaN if not a number."""
        return self.number("max_train_steps") * self.processes

    def _steps(self, name: str) -> float:
        value = self[name]
        if isinstance(value, float):
            share = value * self.total_steps
            return int(share) if math.isfinite(share) else math.nan
        return self.number(name) if not isinstance(value, bool) else int(value)

    @property
    def warmup_steps(self) -> float:
        """Warmup in steps of the schedule; NaN if it is no number."""
        return self._steps("lr_warmup_steps")

    @property
    def decay_steps(self) -> float:
        """Decay in steps of the schedule; NaN if it is no number."""
        return self._steps("lr_decay_steps")

    @cached_property
    def scheduler_args(self) -> dict[str, object] | Malformed:
        """The schedule's own arguments taken apart."""
        return _take_apart(self["lr_scheduler_args"])

    @property
    def scheduler(self) -> str:
        """The schedule in the end: `adafactor:1e-4` when Adafactor replaced it, `none` for a schedule-free optimizer."""
        if self.is_schedule_free:
            return "none"
        if self.relative_step:
            return f"adafactor:{self['learning_rate']}" if not self["lr_scheduler_type"] else str(self["lr_scheduler_type"])
        return str(self["lr_scheduler_type"] or self["lr_scheduler"])

    @cached_property
    def scheduler_refused(self) -> tuple[str, str] | None:
        """Why the schedule cannot be made, and the exception."""
        given, kind = self.scheduler_args, self["lr_scheduler_type"]
        if not isinstance(given, dict):
            return None
        if kind:
            return self._class_refused(str(kind), given)
        name = self.scheduler
        row = arguments.facts()["schedulers"]["names"].get(name)
        if row is None:
            return None
        handed = HANDED.get(name, HANDED_OTHERWISE)
        for key in given:
            if key in handed or key == "optimizer":
                return f"{key} is set by sd-scripts itself", "TypeError"
        if name not in HANDED:
            return f"{name} takes no num_decay_steps, which sd-scripts hands to it", "TypeError"
        for key in given:
            if key not in row["keywords"]:
                return f"{name} takes no {key!r}", "TypeError"
        for key in row["required"]:
            if key not in handed and key not in given:
                return f"{name} needs {key}: --lr_scheduler_args {key}=…", "TypeError"
        return self._value_refused(name, given)

    def _value_refused(self, name: str, given: Mapping) -> tuple[str, str] | None:
        lr = self.number("learning_rate")
        ratio = self["lr_scheduler_min_lr_ratio"]
        if name == "cosine_with_min_lr":
            if ratio is None and given.get("min_lr") is None:
                return "cosine_with_min_lr needs lr_scheduler_min_lr_ratio", "ValueError"
            if ratio is not None and given.get("min_lr") is not None:
                return "min_lr and lr_scheduler_min_lr_ratio exclude each other", "ValueError"
        if name == "polynomial" and not lr > given.get("lr_end", 1e-7):
            return f"polynomial ends at {given.get('lr_end', 1e-7)}, which must be below learning_rate", "ValueError"
        if name == "inverse_sqrt" and (error := self._root_refused()):
            return "inverse_sqrt cannot divide by this warmup or timescale", error
        if name == "piecewise_constant" and (error := _steps_refused(given.get("step_rules"))):
            return "step_rules reads like '1:100,0.1:1000,0.01'", error
        return None

    def _root_refused(self) -> str | None:
        warmup, timescale = self.warmup_steps, self["lr_scheduler_timescale"]
        timescale = (warmup or 10_000) if timescale is None else timescale
        if warmup > 0 or not isinstance(timescale, (int, float)):
            return None  # the first steps are the warmup's
        if timescale == 0 or timescale == warmup:
            return "ZeroDivisionError"
        return "ValueError" if (timescale - warmup) / timescale < 0 else None

    def _class_refused(self, kind: str, given: Mapping) -> tuple[str, str] | None:
        row = arguments.facts()["schedulers"]["classes"].get(kind)
        if row is None:
            return None
        for key in given:
            if key not in row["keywords"] or key == "optimizer":
                return f"{kind} takes no {key!r}", "TypeError"
        if missing := [key for key in row["required"] if key not in given]:
            return f"{kind} needs {', '.join(missing)}", "TypeError"
        if self.relative_step and row.get("multiplies"):
            return f"{kind} multiplies the learning rate, and with relative_step there is none", "TypeError"
        return None

    @property
    def schedule_rate(self) -> float | None:
        """The learning rate that a schedule such as `adafactor:1e-3` sets by itself, when Adafactor does not choose it."""
        name, _, value = self.scheduler.partition(":")
        if not self.is_adafactor or self.relative_step or self["lr_scheduler_type"] or not name.startswith("adafactor"):
            return None
        try:
            return float(value)
        except ValueError:
            return None

    @property
    def learning_rates(self) -> dict[str, float] | None:
        """The peak learning rate of each group; None where the optimizer chooses it itself."""
        if self.relative_step:
            return None
        if self.schedule_rate is not None:
            return dict.fromkeys(self.groups, self.schedule_rate)
        return {name: value for name, value in self.groups.items() if isinstance(value, (int, float))}


def _instead(key: str, optimizer: str, script: str) -> str:
    if key == "betas" and optimizer == "Adafactor":
        return ", it has beta1"
    return f": that is a flag of its own, --{key}" if key in arguments.arguments(script) else ""


def _classes() -> Mapping[str, Mapping]:
    return arguments.facts()["optimizers"]["classes"]


def _take_apart(texts: object) -> dict[str, object] | Malformed:
    """`["key=value", …]` -> keywords, as sd-scripts does it: split at every =, the value read as a Python literal."""
    found = {}
    if isinstance(texts, str) and texts:
        return Malformed(texts, "ValueError", 'it is one text, which is taken letter by letter; TOML wants a list, ["a=1", "b=2"]')
    try:
        texts = list(texts) if texts else []
    except TypeError:
        return Malformed(texts, "TypeError", "it is no list")
    for text in texts:
        if not isinstance(text, str):
            return Malformed(text, "AttributeError", "it is no text")
        parts = text.split("=")
        if len(parts) != 2:
            return Malformed(text, "ValueError", "there has to be exactly one = in each")
        try:
            found[parts[0]] = ast.literal_eval(parts[1])
        except ValueError:
            return Malformed(text, "ValueError", f"{parts[1]!r} is no Python literal")
        except SyntaxError:
            return Malformed(text, "SyntaxError", f"{parts[1]!r} is no Python literal")
        except (TypeError, MemoryError, RecursionError) as error:
            return Malformed(text, type(error).__name__, f"{parts[1]!r} is no Python literal")
    return found


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


def _steps_refused(rules: object) -> str | None:
    """The exception for a malformed `step_rules`, such as `1:100,0.1`."""
    if not isinstance(rules, str):
        return "AttributeError"
    *steps, last = rules.split(",")
    try:
        for step in steps:
            factor, colon, until = step.partition(":")
            if not colon or ":" in until:
                return "ValueError"
            float(factor), int(until)
        float(last)
    except ValueError:
        return "ValueError"
    return None
