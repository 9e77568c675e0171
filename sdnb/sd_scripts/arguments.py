"""Arguments, optimizers and schedules that sd-scripts' training scripts accept, as its own code told them.

The facts in `facts.json` were taken from running code by `benchmarks/doctor_against_sd_scripts.py --facts`; its first line
names the commit and the library versions. Arguments and scripts that later versions brought are added from `versions.json`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..system import nearest
from . import families, versions

DEFAULT_SCRIPT = "train_network.py"
STABLE_DIFFUSION = (
    "train_network.py",
    "sdxl_train_network.py",
    "sdxl_train.py",
    "train_db.py",
    "fine_tune.py",
    "train_textual_inversion.py",
    "sdxl_train_textual_inversion.py",
)
"""The scripts whose rules are known; of the others only the arguments are, and a few rules."""
TRAINED = STABLE_DIFFUSION[:5]
"""The scripts whose runs are done here."""
CONTROL_NETS = ("train_control_net.py", "sdxl_train_control_net.py", "sdxl_train_control_net_lllite.py")
CALCULATED = ("learning_rate", "max_train_steps", "lr_warmup_steps", "lr_decay_steps", "gradient_accumulation_steps", "max_grad_norm")
"""Numbers that sd-scripts calculates with as soon as it makes the optimizer and the schedule."""
DATASET = tuple(
    "train_batch_size dataset_repeats keep_tokens bucket_reso_steps min_bucket_reso max_bucket_reso max_token_length prior_loss_weight "
    "caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate token_warmup_min token_warmup_step".split()
)
"""Numbers whose type is checked when the data set is made."""
USED = tuple(
    "unet_lr text_encoder_lr learning_rate_te learning_rate_te1 learning_rate_te2 network_dim network_alpha network_dropout seed "
    "max_train_epochs max_data_loader_n_workers save_every_n_epochs save_every_n_steps sample_every_n_epochs sample_every_n_steps "
    "min_snr_gamma noise_offset ip_noise_gamma".split()
)
"""Numbers that every run calculates with, before its first step or in it."""


@dataclass(frozen=True)
class Argument:
    """One argument of one script."""

    name: str
    type: str
    """`flag`, `str`, `int`, `float`, or `int_or_float`: a ratio below 1, a whole number from 1, or a percentage."""
    default: object = None
    choices: tuple[object, ...] = ()
    many: bool = False
    """Whether it takes a list."""

    @property
    def wanted(self) -> str:
        """Advice for its value on a command line."""
        if self.choices:
            return f"One of {', '.join(str(choice) for choice in self.choices if choice is not None)}."
        return {
            "flag": f"Give --{self.name} alone, without a value.",
            "int": "Give a whole number, such as 100.",
            "float": "Give a number, such as 1e-4.",
            "int_or_float": "Give whole steps (100), a ratio below 1 (0.05), or a percentage (5%).",
        }.get(self.type, f"Give a value: --{self.name}=….")

    @property
    def wanted_in_toml(self) -> str:
        """Advice for its line in a TOML file."""
        if self.many:
            return f'{self.name} = ["…", "…"]'
        if self.type == "flag":
            return f"{self.name} = true"
        return self.wanted if self.type != "str" or self.choices else f'{self.name} = "…"'


@cache
def facts() -> dict:
    """All of `facts.json`, with the scripts and arguments of later versions."""
    facts = json.loads((Path(__file__).parent / "facts.json").read_text(encoding="utf-8"))
    scripts = facts["scripts"]
    scripts += [script for script in versions.table()["scripts"] if script not in scripts]
    for script, names in versions.table()["like"].items():
        for name in names:
            facts["arguments"][name][0]["scripts"].append(scripts.index(script))
    for name, rows in versions.table()["arguments"].items():
        for row in rows:
            if "type" in row:
                facts["arguments"].setdefault(name, []).append({**row, "scripts": [scripts.index(script) for script in row["scripts"]]})
    return facts


@cache
def arguments(script: str) -> dict[str, Argument]:
    """The arguments of one script by name. Raises `KeyError` for a script that sd-scripts does not have."""
    if script not in facts()["scripts"]:
        raise KeyError(script)
    number, found = facts()["scripts"].index(script), {}
    for name, variants in facts()["arguments"].items():
        for row in variants:
            if number in row["scripts"]:
                default = row.get("default", False if row["type"] == "flag" else None)
                found[name] = Argument(name, row["type"], default, tuple(row.get("choices", ())), row.get("many", False))
    return found


@cache
def scripts_with(name: str) -> tuple[str, ...]:
    """The scripts that have this argument."""
    numbers = sorted({number for row in facts()["arguments"].get(name, ()) for number in row["scripts"]})
    return tuple(facts()["scripts"][number] for number in numbers)


def type_of(name: str) -> str:
    """The type of an argument, in the first script that has it."""
    return arguments(scripts_with(name)[0])[name].type


def script_for(names: Iterable[str], model: object = None) -> str:
    """Script that knows the most of `names`.

    The family that the model's name speaks of weighs as much as a name and a half; a model without any `network_` setting is trained whole.
    """
    names, family = list(names), families.of_model(model)
    known = Counter(script for name in names for script in scripts_with(name))
    trains_all = bool(model) and not any(name.startswith("network_") for name in names)
    against = trains_all * (0.5 if {"unet_lr", "text_encoder_lr"} & set(names) else len(names))

    def worth(script: str) -> tuple[float, bool]:
        is_own, is_network = families.of_script(script) == family, "network_module" in arguments(script)
        acts = script == "sdxl_train.py" and "fused_backward_pass" in names  # of the scripts for Stable Diffusion none else does
        return known[script] + 0.5 * acts + 1.5 * is_own - against * is_network, trains_all and script == "train_db.py"

    return max(facts()["scripts"], key=worth)


def default(name: str) -> object:
    """The value of an argument that is not said, in the first script that has it."""
    return arguments(scripts_with(name)[0])[name].default


NICKNAMES = {
    "lr": "learning_rate",
    "batch_size": "train_batch_size",
    "steps": "max_train_steps",
    "epochs": "max_train_epochs",
    "optimizer": "optimizer_type",
    "scheduler": "lr_scheduler",
    "warmup_steps": "lr_warmup_steps",
    "dim": "network_dim",
    "rank": "network_dim",
    "alpha": "network_alpha",
}
"""Names of arguments in other trainers, and among people."""


def closest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, if any is near."""
    names = list(names)
    if (meant := NICKNAMES.get(name.lower())) in names:
        return meant
    return next(iter(nearest(name, names, key=str.lower, cutoff=0.75)), None)


def is_slip(name: str, near: str) -> bool:
    """Whether an unknown name is so near to a known one that it can only be a slip of the pen; a nickname is none."""
    return NICKNAMES.get(name.lower()) == near or (abs(len(name) - len(near)) <= 2 and near in nearest(name, [near], cutoff=0.85))


def unknown(name: str, script: str) -> tuple[str, str]:
    """The reason for which a script does not know a name, and advice."""
    if others := scripts_with(name):
        return f"It is an argument of {', '.join(others[:3])}, not of {script}.", f"Leave --{name} out, or run {others[0]}."
    if near := closest(name, arguments(script)):
        return f"{script} has no such argument.", f"Did you mean --{near}?"
    if near := closest(name, facts()["arguments"]):
        return f"{script} has no such argument.", f"Did you mean --{near}, of {scripts_with(near)[0]}?"
    return "None of sd-scripts' training scripts has such an argument.", "Leave it out."


def full_name(name: str, script: str) -> tuple[str, ...]:
    """The arguments that `--name` may stand for: itself, or all that begin with it, as argparse completes names."""
    known = arguments(script)
    return (name,) if name in known else tuple(sorted(other for other in known if name and other.startswith(name)))


class UsageError(Exception):
    """The message that argparse would have printed before it left the process."""

    def __init__(self, message: str, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


class Parser(argparse.ArgumentParser):
    """The parser of one script; it raises `UsageError` where sd-scripts' leaves the process with status 2."""

    def __init__(self, script: str) -> None:
        super().__init__(prog=script, add_help=False, exit_on_error=False)
        for argument in arguments(script).values():
            options: dict[str, Any] = {"default": argparse.SUPPRESS}  # so that only what was said comes out
            if argument.type == "flag":
                options["action"] = "store_true"
            else:
                options["type"] = TYPES[argument.type]
                options |= {"choices": argument.choices} if argument.choices else {}
                options |= {"nargs": "*"} if argument.many else {}
            self.add_argument(f"--{argument.name}", **options)

    def error(self, message: str):
        """Raises `UsageError` where argparse would end the program."""
        raise UsageError(message)

    def read(self, tokens: list[str]) -> tuple[dict[str, object], list[str]]:
        """The settings in `tokens`, and the tokens that belong to none. Raises `UsageError`."""
        try:
            namespace, extra = self.parse_known_args(tokens)
        except argparse.ArgumentError as error:
            name = (error.argument_name or "").removeprefix("--") or None
            raise UsageError(error.message, name) from error
        return vars(namespace), extra


@cache
def parser(script: str) -> Parser:
    """The parser of one script."""
    return Parser(script)


def int_or_float(text: str) -> int | float:
    """A percentage, a ratio below 1, or a whole number from 1, as sd-scripts reads `--lr_warmup_steps`."""
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return _whole(text) if float(text) >= 1 else float(text)


def _whole(text: str) -> int:
    return ordinary(int(text))


_whole.__name__ = "int"  # argparse says it in its message


def ordinary(value: Any, depth: int = 8) -> Any:
    """The value itself. Raises `ValueError` where it is nested more deeply, or has a whole number beyond every float in it."""
    if isinstance(value, list | tuple | set | dict):
        if not depth:
            raise ValueError("it is nested more than 8 levels deep")
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            ordinary(part, depth - 1)
    elif isinstance(value, int) and value.bit_length() > 1000:
        raise ValueError("a number in it has more than 300 digits")
    return value


TYPES = {"str": str, "int": _whole, "float": float, "int_or_float": int_or_float}
