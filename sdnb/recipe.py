"""`Recipe`: the settings of a training run, in the words of kohya-ss/sd-scripts."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path

from .sd_scripts import Settings, arguments, as_toml, flags, read
from .system import files

PRECISIONS = ("no", "fp16", "bf16")
OLD_FLAGS = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
"""Flags from before `optimizer_type`, and what they stand for."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of one training run. Field names and meanings are sd-scripts'; the defaults are the recipe this course is about.

    `Recipe()` is Adafactor at a fixed learning rate, without clipping, warmed up over 100 steps. sd-scripts' own defaults differ
    (its Adafactor chooses the learning rate itself unless `relative_step=False` is said); `Recipe.parse` takes those for what a text
    leaves out.

    Raises `ValueError` at construction, naming the field, the value and what would do, and `TypeError` for a name that is no field.
    """

    optimizer_type: str = "Adafactor"
    optimizer_args: tuple[str, ...] = ("relative_step=False", "scale_parameter=False", "warmup_init=False")
    learning_rate: float = 1e-4
    max_grad_norm: float = 0.0
    """Gradients are scaled down to this global norm; 0 leaves them alone."""
    lr_scheduler: str = "constant_with_warmup"
    lr_warmup_steps: int | float = 100
    """In optimizer steps, however many processes run and however many batches are accumulated; below 1, a share of the run. A
    percentage as text, such as "10%", becomes such a share."""
    max_train_steps: int = 1600
    """Optimizer steps of a whole run; `train(steps=…)` wins over it."""
    train_batch_size: int = 2
    """Pictures in one forward pass of one process."""
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    fused_backward_pass: bool = False
    """Each parameter is stepped in backward, as soon as its gradient is complete, and the gradient is freed."""
    mixed_precision: str = "no"
    """`no`, `fp16` or `bf16`: the precision of the forward pass. The trained weights stay in fp32."""
    resolution: int | None = None
    """Side of the square training pictures in pixels; None is the size the model was made for."""
    caption_dropout_rate: float = 0.0
    """The share of pictures shown without their caption."""
    min_snr_gamma: float | None = None
    noise_offset: float | None = None
    seed: int | None = 0
    """None draws one anew for each run."""
    others: tuple[tuple[str, object], ...] = ()
    """Other settings of sd-scripts, as (name, value) pairs; a dict will do. `sd_scripts.supported` lists which are acted on, which
    change nothing, and which are refused."""

    @classmethod
    def parse(cls, source: str | Path) -> Recipe:
        """The recipe in a command line (with or without its launcher), a TOML file, or a JSON file of the kohya_ss GUI.

        Takes the text itself or the path of a file. What it does not say has sd-scripts' defaults. Raises `ValueError`, saying why
        and what to type instead, for whatever sd-scripts would refuse or ignore; `diagnose` explains it at length.

        >>> recipe = Recipe.parse('--optimizer_type="Lion" --learning_rate=1e-5')
        >>> recipe.optimizer_type, recipe.learning_rate, recipe.max_grad_norm
        ('Lion', 1e-05, 1.0)
        """
        settings = read(source)
        wrong = [one for one in settings.findings if one.effect == "raises" or one.rule.startswith("toml-")]
        if wrong:
            raise ValueError("\n".join(one.in_short for one in wrong))
        return cls.from_settings(settings)

    @classmethod
    def from_settings(cls, settings: Settings) -> Recipe:
        """The recipe that sd-scripts would make of `settings`. Raises `ValueError` for values out of range."""
        own = {field.name for field in dataclasses.fields(cls)} - {"others"}
        values = {name: settings[name] for name in own}
        others = {name: value for name, value in settings.given.items() if name not in own}
        if not values["optimizer_type"]:
            values["optimizer_type"] = next((kind for flag, kind in OLD_FLAGS.items() if others.pop(flag, False)), "AdamW")
        values["optimizer_args"] = values["optimizer_args"] or ()
        if isinstance(values["lr_warmup_steps"], str):  # a command line's percentages are numbers by now
            raise ValueError(f"lr_warmup_steps={values['lr_warmup_steps']!r}: in a file it must be a number, 0.1 rather than '10%'")
        size = values["resolution"]
        if size is not None:
            sides = re.fullmatch(r"\s*(\d{1,9})\s*(?:,\s*(\d{1,9})\s*)?", str(size))
            if sides and sides[2] in (None, sides[1]):
                values["resolution"] = int(sides[1])
            else:  # not a square: kept as it is
                values["resolution"], others["resolution"] = None, size
        return cls(**values, others=others)

    def settings(self, script: str | None = None) -> Settings:
        """The same as sd-scripts' own settings, without those that have its defaults."""
        given = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "others" and value != arguments.default(field.name) and value != ():
                given[field.name] = str(value) if field.name == "resolution" else value
        given |= {name: value for name, value in self.others if not isinstance(value, tuple)}
        given = {**given, **{name: list(value) for name, value in [*given.items(), *self.others] if isinstance(value, tuple)}}
        if script is None:
            script = next((one for one in arguments.facts()["scripts"] if given.keys() <= arguments.arguments(one).keys()), None)
        return Settings("flags", script or arguments.DEFAULT_SCRIPT, script is not None, given)

    def to_flags(self) -> str:
        """The flags for sd-scripts, in one line.

        >>> Recipe.parse("--max_grad_norm=0 --seed=7").to_flags()
        '--optimizer_type=AdamW --max_grad_norm=0 --seed=7'
        """
        return " ".join(flags(self.settings().given, _mark()))

    def to_toml(self) -> str:
        """The text of a file for sd-scripts' `--config_file`."""
        return as_toml(self.settings().given)

    def to_command(self, script: str = arguments.DEFAULT_SCRIPT) -> str:
        """A command to paste into a terminal in sd-scripts' folder. Raises `ValueError` for a script that sd-scripts does not have."""
        if script not in arguments.facts()["scripts"]:
            raise ValueError(f"{script!r} is no training script of sd-scripts: there are {', '.join(arguments.facts()['scripts'])}")
        between = " " if files.WINDOWS else " \\\n  "  # cmd and PowerShell go on to the next line each in a way of its own
        return between.join([f"accelerate launch {script}", *flags(self.settings().given, _mark())])

    def __new__(cls, **named) -> Recipe:
        """Says what was meant by a name that is no field, before the dataclass would only say that it is none."""
        own = {field.name for field in dataclasses.fields(cls)}
        for name in named.keys() - own:
            if name in arguments.facts()["arguments"]:
                raise TypeError(f"{name} is among a recipe's other settings: write others={{{name!r}: {named[name]!r}}}")
            near = arguments.closest(name, own) or arguments.closest(name, arguments.facts()["arguments"])
            raise TypeError(f"a recipe has no setting {name!r}" + (f": did you mean {near!r}?" if near else ""))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if isinstance(self.optimizer_args, str):
            raise ValueError(f'optimizer_args is a list of "key=value" texts: write optimizer_args=({self.optimizer_args!r},)')
        object.__setattr__(self, "optimizer_args", tuple(self.optimizer_args))
        object.__setattr__(self, "others", self._kept(self.others))
        if isinstance(self.lr_warmup_steps, str):
            object.__setattr__(self, "lr_warmup_steps", self._share("lr_warmup_steps"))
        for field in dataclasses.fields(self):
            if field.name != "others":
                self._check_type(field)
        self._check_names()
        for name in ("max_train_steps", "train_batch_size", "gradient_accumulation_steps"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        warmup = self.lr_warmup_steps
        self._require("lr_warmup_steps", warmup >= 0 and (type(warmup) is int or warmup < 1), "0 or more whole steps, or a share below 1")
        self._require("seed", self.seed is None or 0 <= self.seed < 2**32, "from 0 to 4294967295, or None")
        self._require("learning_rate", self.learning_rate > 0, "above 0, such as 1e-4")
        self._require("max_grad_norm", self.max_grad_norm >= 0, "0 (no clipping) or above, such as 1.0")
        self._require("caption_dropout_rate", 0 <= self.caption_dropout_rate <= 1, "between 0 and 1")
        self._require("min_snr_gamma", self.min_snr_gamma is None or self.min_snr_gamma > 0, "above 0, such as 5, or None")
        self._require("noise_offset", self.noise_offset is None or self.noise_offset >= 0, "0 or above, such as 0.05, or None")
        self._require("resolution", self.resolution is None or (self.resolution > 0 and self.resolution % 8 == 0), "a multiple of 8")
        self._require("mixed_precision", self.mixed_precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        for argument in self.optimizer_args:
            key, equals, _ = argument.partition("=")
            self._require("optimizer_args", bool(equals) and key.isidentifier(), '"key=value" texts without spaces around "="')

    def replace(self, **changes) -> Recipe:
        """The same recipe with some settings changed."""
        return dataclasses.replace(self, **changes)

    def _check_type(self, field: dataclasses.Field) -> None:
        value = getattr(self, field.name)
        kinds = {kind.strip() for kind in field.type.split("|")}
        if value is None and "None" in kinds:
            return
        if kinds == {"int", "float"}:
            self._require(field.name, type(value) in (int, float) and math.isfinite(value), "a number")
        elif "float" in kinds and type(value) in (int, float):
            self._require(field.name, abs(value) < 1e300, "a finite number")
            object.__setattr__(self, field.name, float(value))
        elif "int" in kinds:
            self._require(field.name, type(value) is int, "a whole number")
        elif "float" in kinds:
            self._require(field.name, False, "a number")
        elif "bool" in kinds:
            self._require(field.name, type(value) is bool, "True or False")
        elif "str" in kinds:
            self._require(field.name, type(value) is str, "a text")
        else:
            self._require(field.name, all(type(part) is str for part in value), 'a list of "key=value" texts')

    def _check_names(self) -> None:
        """Optimizer and schedule by the names sd-scripts knows, in the capitals it prints them with."""
        classes = arguments.facts()["optimizers"]["classes"]
        capitals = {name.lower(): name for name, row in classes.items() if row.get("named")}
        # its help names AdEMAMix8bit, its code finds that only by the whole path
        capitals |= {name.rpartition(".")[2].lower(): name for name in classes if name.startswith("bitsandbytes.optim.")}
        name = capitals.get(self.optimizer_type.lower(), self.optimizer_type)
        object.__setattr__(self, "optimizer_type", name)
        if name not in classes and "." not in name:
            self._refuse_name("optimizer_type", name, classes)
        schedules = [*arguments.facts()["schedulers"]["names"], "adafactor"]
        if self.lr_scheduler not in schedules and not self.lr_scheduler.startswith("adafactor:"):
            self._refuse_name("lr_scheduler", self.lr_scheduler, schedules)

    def _refuse_name(self, field: str, name: str, names) -> None:
        near = arguments.closest(name, names) or next((one for one in names if one.lower() == name.lower()), None)
        hint = f" (did you mean {near!r}?)" if near else ""
        raise ValueError(f"{field}={name!r} is not known{hint}: there are {', '.join(one for one in names if '.' not in one)}")

    def _kept(self, others) -> tuple[tuple[str, object], ...]:
        """Other settings of sd-scripts, checked as far as it would, without those that have its defaults; in one order."""
        known, own, kept = arguments.facts()["arguments"], {field.name for field in dataclasses.fields(self)}, {}
        for name, value in dict(others).items():
            if name not in known or (name in own and name != "resolution"):
                near = arguments.closest(str(name), known)
                raise ValueError(f"{name!r} is no other setting of sd-scripts" + (f": did you mean {near!r}?" if near else ""))
            parts = list(value) if isinstance(value, (list, tuple)) else [value]
            for part in parts:
                if not isinstance(part, (str, int, float)) or (isinstance(part, float) and not math.isfinite(part)):
                    raise ValueError(f"{name}={value!r}: it must be text, a finite number, True or False, or a list of them")
                if len(parts) > 1 and str(part).startswith("-"):
                    raise ValueError(f"{name}={value!r}: in a list, sd-scripts would take {part!r} for a flag")
            if value != arguments.default(name) and parts:
                kept[name] = tuple(parts) if isinstance(value, (list, tuple)) else value
        return tuple(sorted(kept.items()))

    def _share(self, name: str) -> float:
        """A percentage -> its share of the run."""
        number = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*", getattr(self, name))
        self._require(name, number is not None and float(number[1]) < 100, 'a number, or a percentage below 100 such as "10%"')
        return float(number[1]) / 100

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ValueError(f"{name}={getattr(self, name)!r}: it must be {wanted}")


def _mark() -> str:
    """Of the shell that the printed flags are for, as `flags` has it: Windows' shells share no quotes but double ones."""
    return "^" if files.WINDOWS else "\\"
