"""`Outcome`: the optimizer, schedule and learning rates that sd-scripts would end up with, worked out without running it.

Follows `get_optimizer` and `get_scheduler_fix` of library/train_util.py in the order of their steps, because the order decides
which of several mistakes is the one that is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

from . import arguments
from .keywords import Malformed, take_apart
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
"""Arguments that sd-scripts itself gives to each schedule, beside lr_scheduler_args."""


class Outcome:
    """The optimizer, schedule and learning rates of `settings`. Every property answers for any values, however odd."""

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
        """The optimizer's name that was asked for, the old flags included."""
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
        """The facts about its class."""
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
    def wants_equal_rates(self) -> bool:
        """Whether its first step refuses groups of several learning rates, as those of Prodigy and of most of D-Adaptation do."""
        alone = "DAdaptation DAdaptAdamPreprint DAdaptAdam DAdaptLion DAdaptSGD"
        return self.optimizer == "Prodigy" or self.optimizer in alone.split()

    @property
    def is_schedule_free(self) -> bool:
        """Whether sd-scripts takes it for one that needs no schedule. It looks at `optimizer_type` alone."""
        return str(self["optimizer_type"]).lower().endswith("schedulefree")

    @cached_property
    def optimizer_args(self) -> dict[str, object] | Malformed:
        """The arguments taken apart."""
        return take_apart(self["optimizer_args"])

    def argument(self, name: str, otherwise: object = None) -> object:
        """One of the optimizer's arguments."""
        return self.optimizer_args.get(name, otherwise) if isinstance(self.optimizer_args, dict) else otherwise

    @property
    def relative_step(self) -> bool:
        """Whether Adafactor chooses its learning rate itself: also when nothing is said, and whenever warmup_init is true."""
        if not self.is_adafactor or not isinstance(self.optimizer_args, dict):
            return False
        return bool(self.argument("relative_step", True) or self.argument("warmup_init", False))

    @property
    def rate_is_placeholder(self) -> bool:
        """Whether the learning rates are 0.1 or more, as they are written for an optimizer that finds its own; none was written small."""
        rates = [self[name] for name in ("learning_rate", "unet_lr", "text_encoder_lr") if self.said(name)]
        flat = [rate for one in rates for rate in (one if isinstance(one, (list, tuple)) else [one])]
        return bool(flat) and all(isinstance(rate, (int, float)) and rate >= 0.1 for rate in flat)

    @cached_property
    def groups(self) -> dict[str, object]:
        """The parameter groups by what they train, each with its learning rate; one group `all` where there is no such division."""
        lr = self["learning_rate"]
        if self.script in NETWORK:
            text = self["text_encoder_lr"]
            text = (text[0] if text else None) if isinstance(text, (list, tuple)) else text
            unet = self["unet_lr"]
            groups = {}
            for part, rate, other in (("text encoder", text, "unet"), ("U-Net", unet, "text_encoder")):
                if self.is_rank_0 or self.has(f"network_train_{other}_only"):
                    continue
                groups[part] = rate = lr if rate is None else rate
                if (ratio := self.loraplus(part)) is not None and isinstance(rate, (int, float)):
                    groups[f"{part}'s lora_up"] = rate * ratio
            if self["network_module"] == "networks.lora_fa":
                return groups  # it leaves nothing out
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
    def is_rank_0(self) -> bool:
        """Whether a LoRA of rank 0 was asked for, which sd-scripts' own modules take for no LoRA."""
        own = str(self["network_module"] or "networks.").startswith("networks.")
        return own and "network_dim" in arguments.arguments(self.script) and self["network_dim"] == 0

    def loraplus(self, part: str) -> float | None:
        """LoRA+'s ratio for `text encoder`, `U-Net`, or both in one (an empty text); None where lora_up learns like lora_down."""
        texts = self["network_args"] if self.script in NETWORK or self.script.endswith("train_network.py") else ()
        given = dict(text.split("=", 1) for text in texts if "=" in str(text)) if isinstance(texts, (list, tuple)) else {}
        own = {"text encoder": "text_encoder_", "U-Net": "unet_"}.get(part, "")
        if self.script in NETWORK and self["network_module"] not in (None, "networks.lora", "networks.dylora"):
            return None
        ratios = [_number(given.get(f"loraplus_{name}lr_ratio")) for name in (own, "")]
        return ratios[0] or ratios[1]

    @property
    def names_rates(self) -> bool:
        """Whether the groups have learning rates of their own; LoRA-FA gives them only those of the parts."""
        parts = self["unet_lr"] is not None or self["text_encoder_lr"] is not None
        return self.in_groups and bool(self.groups) and (parts or self["network_module"] != "networks.lora_fa")

    @property
    def has_several_rates(self) -> bool:
        """Whether the groups have learning rates that differ."""
        first, *others = [*self.groups.values()] or [0]
        return any(rate is not first and rate != first for rate in others)

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
    def warms_in_proportion(self) -> bool:
        """Whether the warmup is a share of the run's steps."""
        return isinstance(self["lr_warmup_steps"], float) and self["lr_warmup_steps"] != 0

    @property
    def decay_steps(self) -> float:
        """Decay in steps of the schedule; NaN if it is no number."""
        return self._steps("lr_decay_steps")

    @cached_property
    def scheduler_args(self) -> dict[str, object] | Malformed:
        """The schedule's own arguments taken apart."""
        return take_apart(self["lr_scheduler_args"])

    @property
    def scheduler(self) -> str:
        """The schedule in the end: `adafactor:1e-4` when Adafactor replaced it, `none` for a schedule-free optimizer."""
        if self.is_schedule_free:
            return "none"
        if self.relative_step:
            rate = self["learning_rate"]
            name = f"adafactor:{self.settings.held.get('learning_rate', rate)}"
            return str(self["lr_scheduler_type"] or name)
        return str(self["lr_scheduler_type"] or self["lr_scheduler"])

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


def _number(text: object) -> float | None:
    try:
        return None if text is None else float(str(text))
    except ValueError:
        return None


def _classes() -> Mapping[str, Mapping]:
    return arguments.facts()["optimizers"]["classes"]
