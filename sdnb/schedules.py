"""Learning-rate schedules, by name."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import LRScheduler

from .sd_scripts import HANDED, Malformed, take_apart
from .sections import named
from .system import suggest

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from .recipe import Recipe

SCHEDULES = {
    "constant": "transformers.optimization.get_constant_schedule",
    "constant_with_warmup": "transformers.optimization.get_constant_schedule_with_warmup",
    "linear": "transformers.optimization.get_linear_schedule_with_warmup",
    "cosine": "transformers.optimization.get_cosine_schedule_with_warmup",
    "cosine_with_restarts": "transformers.optimization.get_cosine_with_hard_restarts_schedule_with_warmup",
    "cosine_with_min_lr": "transformers.optimization.get_cosine_with_min_lr_schedule_with_warmup",
    "polynomial": "transformers.optimization.get_polynomial_decay_schedule_with_warmup",
    "inverse_sqrt": "transformers.optimization.get_inverse_sqrt_schedule",
    "warmup_stable_decay": "transformers.optimization.get_wsd_schedule",
    "piecewise_constant": "diffusers.optimization.get_piecewise_constant_schedule",
}
"""Path of each schedule's function. It is called with lr_scheduler_args and the keywords of `sd_scripts.HANDED`, as in sd-scripts."""
FULL_PERIODS = ("cosine_with_min_lr", "warmup_stable_decay")
"""Schedules whose num_cycles counts full periods, where sd-scripts' cycles are half periods."""


PACKAGES = {"pytorch_optimizer": "pytorch-optimizer", "prodigyplus": "prodigy-plus-schedule-free", "came_pytorch": "came-pytorch"}
"""Modules of optimizers that people name by their path, and pip's names for them."""


class RelativeStep(LRScheduler):
    """Schedule for an Adafactor with relative_step: sets nothing, and reports the rate that the optimizer chose."""

    def get_lr(self) -> list:
        """Learning rates of the groups, unchanged."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """Learning rates of the last optimizer step (every other schedule gives those of the next); NaN before the first."""
        rates = self.optimizer.learning_rates()  # pyright: ignore[reportAttributeAccessIssue]  # the optimizer is an Adafactor
        return [math.nan if rate is None else rate for rate in rates]


def schedule(recipe: Recipe, optimizer: Optimizer, *, steps: int) -> LRScheduler:
    """Make the recipe's schedule over `steps` optimizer steps; call its `.step()` once after each of them.

    Warmup and decay count optimizer steps, however many processes and accumulated batches make up one; a number below 1 is a share of
    `steps`. A schedule-free optimizer gets a schedule that leaves its learning rate alone, and an Adafactor with relative_step one that
    only reports.

    Raises `ValueError` for a warmup that would be ignored, settings that the schedule refuses, and a schedule that does not go with the
    optimizer; `ImportError` for an `lr_scheduler_type` whose package is missing. Warns of a warmup that does not end within the run.
    """
    kind, name = recipe.lr_scheduler_type, recipe.lr_scheduler
    if is_schedule_free(recipe):
        if recipe.lr_warmup_steps or name != "constant" or kind:
            warnings.warn(f"{recipe.optimizer_type} needs no schedule: lr_scheduler and lr_warmup_steps are ignored", stacklevel=2)
        return _function("constant")(optimizer)
    if reason := relative_step_refused(recipe):
        raise ValueError(reason)
    if has_relative_step(recipe):
        return RelativeStep(optimizer)
    arguments = keywords("lr_scheduler_args", recipe.lr_scheduler_args)
    takes_warmup = not kind and "num_warmup_steps" in HANDED.get(name, ())
    if recipe.lr_warmup_steps and not kind and name == "piecewise_constant":
        warnings.warn("piecewise_constant has no warmup: lr_warmup_steps is ignored, as in sd-scripts", stacklevel=2)
    elif recipe.lr_warmup_steps and not takes_warmup:
        setting = f'lr_scheduler_type="{kind}"' if kind else f'lr_scheduler="{name}"'
        raise ValueError(f'{setting} has no warmup: set lr_warmup_steps=0, or use "constant_with_warmup"')
    if kind:
        return _make(f"lr_scheduler_type={kind!r}", _scheduler_class(kind), optimizer, {}, arguments)
    if name.startswith("adafactor"):
        return _adafactor(recipe, optimizer)
    if name not in SCHEDULES:
        raise ValueError(
            f"lr_scheduler={name!r}: sd-scripts hands it num_decay_steps, which it does not take: there are {', '.join(SCHEDULES)}"
        )
    numbers = _numbers(recipe, steps)
    if takes_warmup:
        _check_length(recipe, numbers)
    return _make(f"lr_scheduler={name!r}", _function(name), optimizer, {key: numbers[key] for key in HANDED[name]}, arguments)


def is_schedule_free(recipe: Recipe) -> bool:
    """Whether the optimizer needs no schedule, by its name, as sd-scripts decides it."""
    return recipe.optimizer_type.lower().endswith("schedulefree")


def has_relative_step(recipe: Recipe) -> bool:
    """Whether the optimizer is an Adafactor that chooses its own learning rate: by default, and whenever warmup_init is true."""
    if recipe.optimizer_type != "Adafactor":
        return False
    arguments = keywords("optimizer_args", recipe.optimizer_args)
    return bool(arguments.get("relative_step", True) or arguments.get("warmup_init", False))


def relative_step_refused(recipe: Recipe) -> str | None:
    """Reason why an Adafactor that chooses its own learning rate does not go with the rest of the recipe; None if it does.

    As in sd-scripts, `lr_scheduler` does not matter then, but a warmup and an `lr_scheduler_type` do not go with it.
    """
    if not has_relative_step(recipe) or not (recipe.lr_scheduler_type or recipe.lr_warmup_steps):
        return None
    warmup_init = keywords("optimizer_args", recipe.optimizer_args).get("warmup_init")
    manual = '"relative_step=False"' + (' and "warmup_init=False"' if warmup_init else "")
    return (
        "Adafactor with relative_step=True chooses its own learning rate and ignores learning_rate and lr_scheduler: "
        f"add {manual} to optimizer_args, or set lr_warmup_steps=0 and leave lr_scheduler_type out"
    )


def keywords(name: str, texts: tuple[str, ...]) -> dict[str, object]:
    """Parse `optimizer_args` or `lr_scheduler_args` as keywords; values are read as Python literals, never run. Raises `ValueError`."""
    parsed = take_apart(texts)
    if isinstance(parsed, Malformed):
        raise ValueError(f"{name} has {parsed.text!r}: {parsed}; write key=value with numbers, True, False, None, or quoted text")
    return parsed


def refuse_keywords(name: str, make: Callable, arguments: Iterable[str], *, own: Iterable[str]) -> None:
    """Raise `ValueError` for keywords that `make` does not take, or that are in `own`, as other settings of the recipe set those."""
    from .recipe import Recipe

    parameters = inspect.signature(make).parameters
    for key in arguments:
        if key in own:
            raise ValueError(f"{key} is set by the recipe itself")
        if key not in parameters and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            hint = f": that is a setting of its own, {key}" if key in named(Recipe) else ""
            hint = ", it has beta1" if key == "betas" and "beta1" in parameters else hint
            raise ValueError(f"{name} takes no {key!r}{hint}: there are {', '.join(other for other in parameters if other not in own)}")


def find_class(field: str, name: str, home: str, base: type) -> type:
    """Class called `name` in the module `home`, or at a dotted path; `field` is the setting that names it.

    Raises `ImportError` when its package is missing, `ValueError` when there is no such class or it does not derive from `base`.
    """
    path = name if "." in name else f"{home}.{name}"
    if not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(f"{field}={name!r}: it must be a name of {home}, or the dotted path of a class")
    module, _, attribute = path.rpartition(".")
    try:
        classes = {key: value for key, value in vars(import_module(module)).items() if inspect.isclass(value)}
    except ImportError as error:
        package = PACKAGES.get(module.partition(".")[0])
        way_out = f"pip install {package}" if package else "pip install the package that has it, or mend the path"
        raise ImportError(f"{field}={name!r}: {error}; {way_out}") from error
    kind = classes.get(attribute)
    if kind is None or not issubclass(kind, base) or kind is base:
        fitting = [key for key, value in classes.items() if issubclass(value, base) and value is not base and key[0] != "_"]
        hint = suggest(attribute, fitting, aside=True)
        raise ValueError(f"{field}={name!r}: {module} has no {base.__name__} of that name{hint}: there are {', '.join(fitting) or 'none'}")
    return kind


def _function(name: str):
    """Function that makes a schedule of `SCHEDULES`."""
    module, _, attribute = SCHEDULES[name].rpartition(".")
    return getattr(import_module(module), attribute)


def _make(setting: str, make: Callable, optimizer: Optimizer, handed: dict[str, object], arguments: dict[str, object]) -> LRScheduler:
    """Call `make` with what sd-scripts hands it and the recipe's own arguments. Raises `ValueError` that names the setting."""
    try:
        refuse_keywords(setting.partition("=")[2].strip("'"), make, arguments, own=("optimizer", *handed))
        return make(optimizer, **handed, **arguments)
    except Exception as error:  # a recipe may name any class, which may raise anything
        raise ValueError(f"{setting} with {handed | arguments}: {error if type(error) is ValueError else repr(error)}") from error


def _scheduler_class(kind: str) -> type:
    """Class of a scheduler of torch, or at a dotted path. Raises `ValueError` for one whose `step` needs an argument."""
    scheduler = find_class("lr_scheduler_type", kind, "torch.optim.lr_scheduler", LRScheduler)
    parameters = list(inspect.signature(scheduler.step).parameters.values())[1:]
    if parameters and parameters[0].default is inspect.Parameter.empty and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        raise ValueError(f"lr_scheduler_type={kind!r} wants {parameters[0].name} at each step, and nothing hands it over")
    return scheduler


def _adafactor(recipe: Recipe, optimizer: Optimizer) -> LRScheduler:
    """Make the schedule `adafactor:1e-3`, which sets the rate of an Adafactor without relative_step."""
    name = recipe.lr_scheduler
    if recipe.optimizer_type != "Adafactor":
        raise ValueError(
            f'lr_scheduler="{name}" reports what Adafactor chose: {recipe.optimizer_type} goes with another, such as "constant"'
        )
    try:
        rate = float(name.partition(":")[2])
    except ValueError:
        rate = None
    if rate is None or not 0 < rate < math.inf:
        raise ValueError(
            f'lr_scheduler="{name}" reports what relative_step=True chose, and with relative_step=False it needs a learning rate to set: '
            'write "adafactor:1e-4", or take "constant_with_warmup", which uses learning_rate'
        )
    if keywords("optimizer_args", recipe.optimizer_args).get("scale_parameter", True):
        raise ValueError(
            f'lr_scheduler="{name}" sets a rate that sd-scripts scales by the size of the weights once more at each step, until nothing '
            'moves: add "scale_parameter=False" to optimizer_args, or take "constant", which uses learning_rate'
        )
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = rate
    return _function("constant")(optimizer)


def _numbers(recipe: Recipe, steps: int) -> dict[str, object]:
    """Values from the recipe for every keyword in `HANDED`."""

    def in_steps(setting: float) -> int:
        return int(setting * steps) if isinstance(setting, float) else setting

    warmup, decay = in_steps(recipe.lr_warmup_steps), in_steps(recipe.lr_decay_steps)
    cycles, ratio = recipe.lr_scheduler_num_cycles, recipe.lr_scheduler_min_lr_ratio
    return {
        "num_warmup_steps": warmup,
        "num_training_steps": steps,
        "num_decay_steps": decay,
        "num_stable_steps": steps - warmup - decay,
        "num_cycles": cycles / 2 if recipe.lr_scheduler in FULL_PERIODS else cycles,
        "power": recipe.lr_scheduler_power,
        "timescale": recipe.lr_scheduler_timescale,
        "min_lr_rate": ratio,
        "min_lr_ratio": ratio or 0.0,
    }


def _check_length(recipe: Recipe, numbers: dict) -> None:
    """Warn of a warmup or decay that does not fit into the run. Raises `ValueError` where the schedule would divide by zero."""
    warmup, steps = numbers["num_warmup_steps"], numbers["num_training_steps"]
    if warmup == steps and recipe.lr_scheduler == "polynomial":
        raise ValueError(
            f'lr_scheduler="polynomial" divides by what the warmup leaves of the run, nothing: set lr_warmup_steps below {steps}'
        )
    if warmup >= steps:
        reached = (steps - 1) / warmup
        warnings.warn(
            f"the warmup takes {warmup:,} steps and the run has {steps:,}: the learning rate only reaches {reached:.0%} of "
            f"{recipe.learning_rate:g}. Run longer, or set a shorter lr_warmup_steps",
            stacklevel=3,
        )
    elif recipe.lr_scheduler == "warmup_stable_decay" and numbers["num_stable_steps"] < 0:
        warnings.warn(
            f"warmup and decay take {warmup + numbers['num_decay_steps']:,} steps and the run has {steps:,}: "
            "the learning rate jumps down after the warmup. Set a smaller lr_decay_steps",
            stacklevel=3,
        )
