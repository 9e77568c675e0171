"""`Recipe`: the settings of a training run, in the words of kohya-ss/sd-scripts."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from . import sections
from .sd_scripts import Settings, arguments, as_toml, flags, in_brief, read
from .sections import count, named, not_negative, setting
from .system import files, quoted

OLD_FLAGS = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
"""Flags from before `optimizer_type`, and what they stand for."""
ORDER = (
    "optimizer_type optimizer_args learning_rate max_grad_norm lr_scheduler lr_warmup_steps max_train_steps train_batch_size "
    "gradient_accumulation_steps gradient_checkpointing fused_backward_pass mixed_precision resolution caption_dropout_rate min_snr_gamma "
    "noise_offset seed"
).split()
"""Order in which settings are printed; all others follow by name."""
PRECISIONS = ("float", "fp16", "bf16")
"""Of a saved file."""
PASSED_OVER = ("toml-unknown", "toml-nested")
"""Findings about names in a file that sd-scripts ignores."""
TOKENS = 75
"""Tokens of a caption that a text encoder takes at a time."""


NO_SCRIPT = (
    "the settings name no script, so the text encoders keep their weights, as with fine_tune.py; train_db.py would train them: "
    "set train_text_encoder for that, or stop_text_encoder_training=-1 against it"
)


def _is_argument(text: str) -> bool:
    key, equals, _ = text.partition("=")
    return bool(equals) and key.isidentifier()


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe(
    sections.Files,
    sections.Metadata,
    sections.Saves,
    sections.Validation,
    sections.Logs,
    sections.Caching,
    sections.Pictures,
    sections.Captions,
    sections.Noise,
    sections.Loss,
    sections.Lora,
    sections.Parts,
    sections.Precision,
    sections.Compiling,
    sections.Schedule,
):
    """The settings of one training run. Field names and meanings are sd-scripts'; the defaults are the recipe this course is about.

    `Recipe()` is Adafactor at a fixed learning rate, without clipping, warmed up over 100 steps. sd-scripts' own defaults differ
    (its Adafactor chooses the learning rate itself unless `relative_step=False` is said); `Recipe.parse` takes those for what a text
    leaves out. Besides the fields below it has those of every section (`sdnb.sections`), such as `network_dim` and `cache_latents`.

    Raises `ValueError` at construction, naming each field that is wrong, its value and what would do, and `TypeError` for a name that is
    no field.
    """

    optimizer_type: str = "Adafactor"
    optimizer_args: tuple[str, ...] = setting(
        ("relative_step=False", "scale_parameter=False", "warmup_init=False"),
        '"key=value" texts without spaces around "="',
        lambda values: all(map(_is_argument, values)),
    )
    learning_rate: float = not_negative(1e-4, "0 or above, such as 1e-4", in_metadata=True)
    """Of all parts that have no rate of their own; 0 leaves them as they are."""
    max_grad_norm: float = not_negative(0.0, "0 (no clipping) or above, such as 1.0", in_metadata=True)
    """Largest global norm of the gradients, which are scaled down to it; 0 leaves them alone."""
    max_train_steps: int = count(1600)
    """Optimizer steps of a whole run. `train(steps=…)` wins over it."""
    train_batch_size: int = count(2)
    """Pictures in one forward pass of one process."""
    gradient_accumulation_steps: int = count(1, in_metadata=True)
    gradient_checkpointing: bool = setting(False, in_metadata=True)
    fused_backward_pass: bool = False
    """Step each parameter during backward, as soon as its gradient is complete, and free the gradient. `max_grad_norm` then clips each
    gradient alone."""
    fused_optimizer_groups: int | None = not_negative(None, "0 or more groups")
    """Step the parameters during backward in so many groups, each when its last gradient is complete. Clips as `fused_backward_pass`."""
    resolution: int | tuple[int, ...] | None = setting(
        None, "a multiple of 8, or (width, height)", lambda side: side > 0 and side % 8 == 0 if isinstance(side, int) else len(side) == 2
    )
    """Side of the square training pictures in pixels, or (width, height). None: the size the model was made for."""
    seed: int | None = setting(0, "from 0 to 4294967295, or None", lambda seed: 0 <= seed < 2**32, in_metadata=True)
    """None: a new one for each run."""
    others: Any = ()
    """Further settings of sd-scripts, as a dict or pairs; those that have a field are moved there. Reading it gives pairs of all settings
    outside `ORDER`. `sd_scripts.supported` lists which settings without a field are ignored here, and which are refused."""

    @classmethod
    def parse(cls, source: str | Path) -> Recipe:
        """The recipe in a command line (with or without its launcher), a TOML file, a JSON file of the kohya_ss GUI, or a LoRA's metadata.

        Takes the text itself or the path of a file. Settings it leaves out get sd-scripts' defaults. Raises `ValueError`, with the
        reason and what to type instead, for whatever sd-scripts would refuse while reading it, and warns of names in a file that it
        would ignore; `diagnose` explains both at length.

        >>> recipe = Recipe.parse('--optimizer_type="Lion" --learning_rate=1e-5')
        >>> recipe.optimizer_type, recipe.learning_rate, recipe.max_grad_norm
        ('Lion', 1e-05, 1.0)
        """
        return cls.from_settings(readable(source))

    @classmethod
    def from_settings(cls, settings: Settings) -> Recipe:
        """The recipe that sd-scripts would make of `settings`, whose values may have the types of a file: see `taken`.

        Raises `ValueError` for values out of range.
        """
        others = {name: value for name, value in settings.given.items() if value is not None}
        for name in others.keys() & named(cls).keys():
            others[name] = taken(others[name], sections.types_of(cls)[name], named(cls)[name].metadata.get("holds"))
        others = {name: value for name, value in others.items() if value is not None}
        if others.get("save_precision") not in PRECISIONS:
            others.pop("save_precision", None)  # saved as trained
        norm = others.get("max_grad_norm")
        if isinstance(norm, str) and _is_number(norm):
            others["max_grad_norm"] = float(norm)  # torch reads it, be it a text
        is_known = settings.script_named or settings.form == "gui" or others.get("network_module")
        if is_known and settings.script != "sdxl_train.py" and others.get("max_grad_norm", 1.0):
            others.pop("fused_backward_pass", None)  # it does nothing there, and the whole gradient is clipped
        if others.get("max_train_epochs") and not others.get("max_train_steps"):
            others.pop("max_train_steps", None)  # it is computed from the epochs
        if isinstance(length := others.get("max_token_length"), int) and length > TOKENS:
            others["max_token_length"] = length // TOKENS * TOKENS  # what does not fill another part is cut off
        if settings.script == "train_db.py" and settings["stop_text_encoder_training"] is None:  # it trains them by default
            if settings.script_named or settings.form == "gui" or {"learning_rate_te", "no_token_padding"} & others.keys():
                others.setdefault("train_text_encoder", True)
            elif settings.form == "toml" and "train_text_encoder" not in others:
                warnings.warn(NO_SCRIPT, stacklevel=3)
        # what is not said has sd-scripts' default, also where the course has another
        fields = [(name, field.default) for name, field in named(cls).items() if name != "others"]
        values = {name: others.pop(name, settings[name]) for name, ours in fields if ours not in (None, (), arguments.default(name))}
        if not values["optimizer_type"]:
            values["optimizer_type"] = next((kind for flag, kind in OLD_FLAGS.items() if others.pop(flag, False)), "AdamW")
        values["optimizer_args"] = values["optimizer_args"] or ()
        if isinstance(values["lr_warmup_steps"], str):  # a command line's percentages are numbers by now
            raise ValueError(f"lr_warmup_steps={quoted(values['lr_warmup_steps'])}: in a file it must be a number, 0.1 rather than '10%'")
        return cls(**values, others=others)

    @property
    def steps_in_backward(self) -> bool:
        """Whether parameters are stepped during backward, each alone or in groups."""
        return self.fused_backward_pass or bool(self.fused_optimizer_groups)

    @property
    def trains_text_encoders(self) -> bool:
        """Whether the text encoders are trained whole; in train_db.py's recipes for a time, or not at all, if that is said."""
        stop = self.stop_text_encoder_training
        return not self.wants_lora and (self.train_text_encoder if stop is None else stop > 0)

    def settings(self, script: str | None = None) -> Settings:
        """The recipe as sd-scripts' settings, without those at sd-scripts' defaults."""
        given = {}
        for name, field in named(type(self)).items():
            value = getattr(self, name)
            if name == "others" or value in (None, ()):
                continue
            if value == arguments.default(name) and field.default is not None:  # where it is None, sd-scripts' number was asked for
                continue
            given[name] = list(value) if isinstance(value, tuple) else value
        if self.resolution is not None:
            sides = self.resolution if isinstance(self.resolution, tuple) else (self.resolution,)
            given["resolution"] = ",".join(map(str, sides))
        given |= {name: list(value) if isinstance(value, tuple) else value for name, value in self.extras}
        given = {name: given[name] for name in [*ORDER, *sorted(given.keys() - set(ORDER))] if name in given}
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
        given = dict(self.settings().given)
        # train_db.py trains the text encoder unasked, and has another setting for it
        if script == "train_db.py" and not self.wants_lora and not given.pop("train_text_encoder", False):
            given.setdefault("stop_text_encoder_training", -1)
        return between.join([f"accelerate launch {script}", *flags(given, _mark())])

    def replace(self, **changes: Any) -> Recipe:
        """A copy of the recipe with some settings changed.

        `others` replaces all settings outside `ORDER`: those that it does not name go back to their defaults.
        """
        if "others" in changes:
            changes = {name: field.default for name, field in named(type(self)).items() if name not in ORDER} | changes
        return dataclasses.replace(self, **{"others": self.extras} | changes)

    @property
    def extras(self) -> tuple[tuple[str, Any], ...]:
        """The pairs of `others` that have no field."""
        return tuple((name, value) for name, value in self.others if name not in named(type(self)))

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in [*ORDER, *(named(type(self)).keys() - set(ORDER))]} | {"others": self.extras}
        shown = [f"{name}={values[name]!r}" for name in values if name in ORDER[:6] or values[name] != named(type(self))[name].default]
        return f"Recipe({', '.join(shown)})"

    def __new__(cls, **given: Any) -> Recipe:
        """Refuse unknown names with a suggestion, which the dataclass's own error would not have."""
        known = arguments.facts()["arguments"]
        for name in given.keys() - named(cls).keys():
            if name in known:
                raise TypeError(f"{name} is among a recipe's other settings: write others={{{name!r}: {quoted(given[name])}}}")
            near = arguments.closest(name, named(cls)) or arguments.closest(name, known)
            raise TypeError(f"a recipe has no setting {quoted(name)}" + (f": did you mean {near!r}?" if near else ""))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        others = self._checked_others()
        if (ending := others.pop("caption_extention", None)) is not None:  # an older spelling, which wins in sd-scripts
            object.__setattr__(self, "caption_extension", ending)
            others.pop("caption_extension", None)
        for name in others.keys() & named(type(self)).keys():
            value, said = others.pop(name), _hidden(name, getattr(self, name))
            said = tuple(said) if isinstance(said, list) else said
            if said not in (value, named(type(self))[name].default):
                raise ValueError(f"{name} is given twice, as {quoted(said)} and in others as {quoted(value)}: give it once")
            object.__setattr__(self, name, value)
        if isinstance(self.optimizer_args, str):
            raise ValueError(f'optimizer_args is a list of "key=value" texts: write optimizer_args=({quoted(self.optimizer_args)},)')
        object.__setattr__(self, "lr_warmup_steps", _share("lr_warmup_steps", self.lr_warmup_steps))
        object.__setattr__(self, "resolution", _sides(self.resolution))
        if isinstance(self.face_crop_aug_range, list | tuple):  # a dataset file's
            object.__setattr__(self, "face_crop_aug_range", ",".join(map(str, self.face_crop_aug_range)))
        object.__setattr__(self, "others", tuple(sorted(others.items())))
        super().__post_init__()
        self._check_names()
        values = {name: getattr(self, name) for name in named(type(self)).keys() - {*ORDER, "others"}}
        others |= {name: value for name, value in values.items() if value != named(type(self))[name].default}
        object.__setattr__(self, "others", tuple(sorted(others.items())))

    def _checked_others(self) -> dict[str, Any]:
        """`others`, checked as far as sd-scripts would check them, without settings at its defaults."""
        known, kept = arguments.facts()["arguments"], {}
        try:
            others = {name: _hidden(name, value) for name, value in dict(self.others).items()}
        except (TypeError, ValueError):
            raise ValueError(f"others={quoted(self.others)}: it must be a dict, or pairs of a name and a value") from None
        for name, value in others.items():
            if name not in known:
                near = arguments.closest(str(name), known)
                raise ValueError(f"{quoted(name)} is no other setting of sd-scripts" + (f": did you mean {near!r}?" if near else ""))
            parts = list(value) if isinstance(value, list | tuple) else [value]
            for part in parts:
                if not isinstance(part, str | int | float) or (not isinstance(part, str) and not abs(part) < 1e300):
                    raise ValueError(f"{name}={quoted(value)}: it must be text, a finite number, True or False, or a list of them")
                if len(parts) > 1 and str(part).startswith("-"):
                    raise ValueError(f"{name}={quoted(value)}: in a list, sd-scripts would take {quoted(part)} for a flag")
            if parts and (value != arguments.default(name) or name in named(type(self))):
                kept[name] = tuple(parts) if isinstance(value, list | tuple) else value
        return kept

    def _check_names(self) -> None:
        """Check the names of optimizer and schedule, and write them with sd-scripts' capitals."""
        if any(OLD_FLAGS.get(name, self.optimizer_type) != self.optimizer_type for name, _ in self.extras):
            kind = quoted(self.optimizer_type)
            raise ValueError(f"use_8bit_adam and use_lion_optimizer exclude optimizer_type={kind}: leave one of them out")
        classes = arguments.facts()["optimizers"]["classes"]
        capitals = {name.lower(): name for name, row in classes.items() if row.get("named")}
        # its help names AdEMAMix8bit, its code finds that only by the whole path
        capitals |= {name.rpartition(".")[2].lower(): name for name in classes if name.startswith("bitsandbytes.optim.")}
        name = capitals.get(self.optimizer_type.lower(), self.optimizer_type)
        object.__setattr__(self, "optimizer_type", name)
        if name not in classes and "." not in name:
            _refuse("optimizer_type", name, classes)
        schedules = [*arguments.facts()["schedulers"]["names"], "adafactor"]
        if self.lr_scheduler not in schedules and not self.lr_scheduler.startswith("adafactor:"):
            _refuse("lr_scheduler", self.lr_scheduler, schedules)


def readable(source: str | Path) -> Settings:
    """The settings in a text or a file, as `read` has them.

    Raises `ValueError` for whatever sd-scripts would refuse while reading, and warns of what it would ignore.
    """
    settings = read(source)
    if wrong := [finding for finding in settings.findings if finding.effect == "raises"]:
        raise ValueError("\n".join(finding.in_short for finding in in_brief(wrong)))
    for finding in in_brief([finding for finding in settings.findings if finding.rule in PASSED_OVER]):
        warnings.warn(finding.in_short, UserWarning, stacklevel=3)
    return settings


def _hidden(name: str, value: Any) -> Any:
    """The value of a setting; a secret's as a text that no error shows."""
    is_secret = name in named(Recipe) and named(Recipe)[name].metadata.get("secret")
    return sections.Secret(value) if is_secret and value is not None else value


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


def taken(value: Any, types: tuple[Any, ...], holds: Callable[[Any], bool] | None = None) -> Any:
    """A value out of a file, whose types sd-scripts does not check, as its code would take it for a setting of these types.

    What is asked for its truth has it; an empty text, false or 0 is no text; a whole number may be written 64.0; 0 is off where only
    numbers that satisfy `holds` mean something and None is the default. Anything else stays as it is.

    >>> taken("yes", (bool,)), taken("", (str, type(None))), taken(64.0, (int,)), taken(0, (int, type(None)), lambda number: number > 0)
    (True, None, 64, None)
    """
    optional = type(None) in types
    if types == (bool,):
        return bool(value) if isinstance(value, str | int | float) else value
    if value == "" and any(get_origin(kind) is tuple for kind in types):
        return ()
    if str in types:
        return None if optional and value in ("", 0) else value
    if int in types or float in types:
        if isinstance(value, bool):
            value = int(value)
        if optional and value == 0 and holds is not None and not holds(0):
            return None
        if float not in types and isinstance(value, float) and value.is_integer():
            return int(value)
    return value


def _refuse(field: str, name: str, names) -> None:
    near = arguments.closest(name, names) or next((one for one in names if one.lower() == name.lower()), None)
    hint = f" (did you mean {near!r}?)" if near else ""
    raise ValueError(f"{field}={quoted(name)} is not known{hint}: there are {', '.join(one for one in names if '.' not in one)}")


def _share(name: str, value: Any) -> Any:
    """A percentage as its share of the run; anything else as it is."""
    if not isinstance(value, str):
        return value
    number = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*", value)
    if number is None or float(number[1]) >= 100:
        raise ValueError(f'{name}={quoted(value)}: it must be a number, or a percentage below 100 such as "10%"')
    return float(number[1]) / 100


def _sides(value: Any) -> Any:
    """The sides in sd-scripts' text, such as "512,768", as numbers; a square is one number. Anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)?", value):
        value = tuple(map(int, value.split(",")))
    if isinstance(value, list | tuple) and 1 <= len(value) <= 2 and value[0] == value[-1]:
        return value[0]
    return value


def _mark() -> str:
    """The escape character of the shell that flags are printed for; on Windows' shells, only double quotes are common to all."""
    return "^" if files.WINDOWS else "\\"
