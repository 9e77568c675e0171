"""Learning-rate schedules, by name."""

from __future__ import annotations

import inspect
import math
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import LRScheduler

from .sd_scripts import HANDED, Malformed, Outcome, of_schedule
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
"""Where each schedule's function lives. What it is given stands in `outcome.HANDED`, beside lr_scheduler_args."""
HALVED = ("cosine_with_min_lr", "warmup_stable_decay")
"""Those that count whole waves, so that lr_scheduler_num_cycles=1, one way down, is half of one."""


class RelativeStep(LRScheduler):
    """Sets nothing, and reports what an Adafactor with relative_step chose itself."""

    def get_lr(self) -> list:
        """What the groups hold already."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """The rates of the last optimizer step, not of the next as with every other schedule; NaN before the first."""
        return [math.nan if rate is None else rate for rate in self.optimizer.learning_rates()]


def schedule(recipe: Recipe, optimizer: Optimizer, *, steps: int) -> LRScheduler:
    """The recipe's schedule over `steps` optimizer steps; `.step()` it once after each of them.

    Warmup and decay are counted in those same steps, however many processes and accumulated batches make up one; a number below 1
    is a share of `steps`. A schedule-free optimizer gets a schedule that leaves its learning rate alone, and `adafactor` with
    relative_step one that only reports.

    Raises `ValueError` for a warmup that would be ignored, settings that the schedule refuses, and a schedule that does not go with the
    optimizer; `ImportError` for an `lr_scheduler_type` whose package is missing. Warns of a warmup that does not end within the run.
    """
    outcome = Outcome(recipe.replace(max_train_steps=steps).settings())
    if outcome.is_schedule_free:
        if recipe.lr_warmup_steps or recipe.lr_scheduler != "constant" or outcome["lr_scheduler_type"]:
            warnings.warn(f"{outcome.optimizer} needs no schedule: lr_scheduler and lr_warmup_steps are ignored", stacklevel=2)
        return _function("constant")(optimizer)
    if reason := relative_step_refused(outcome):
        raise ValueError(reason)
    given = arguments_of(outcome, "lr_scheduler_args")
    if refusal := of_schedule(outcome):
        raise ValueError(f"lr_scheduler={recipe.lr_scheduler!r}: {refusal[0]}")
    kind, name = outcome["lr_scheduler_type"], recipe.lr_scheduler
    takes_warmup = not kind and "num_warmup_steps" in HANDED.get(name, ())
    if recipe.lr_warmup_steps and not takes_warmup:
        what = f'lr_scheduler_type="{kind}"' if kind else f'lr_scheduler="{name}"'
        raise ValueError(f'{what} has no warmup: set lr_warmup_steps=0, or use "constant_with_warmup"')
    if kind:
        return _made(f"lr_scheduler_type={kind!r}", _scheduler_class(kind), optimizer, given)
    if name.startswith("adafactor"):
        return _adafactor(outcome, optimizer)
    numbers = _numbers(outcome, steps)
    if takes_warmup:
        _warn_of_length(recipe, numbers)
    return _made(f"lr_scheduler={name!r}", _function(name), optimizer, {key: numbers[key] for key in HANDED[name]} | given)


def relative_step_refused(outcome: Outcome) -> str | None:
    """Why an Adafactor that chooses its own learning rate does not go with the rest of the recipe."""
    automatic = outcome["lr_scheduler"].startswith("adafactor") and not outcome["lr_scheduler_type"]
    if not outcome.relative_step or (automatic and not outcome["lr_warmup_steps"]):
        return None
    manual = '"relative_step=False"' + (' and "warmup_init=False"' if outcome.argument("warmup_init") else "")
    return (
        "Adafactor with relative_step=True chooses its own learning rate and ignores learning_rate and lr_scheduler: "
        f'add {manual} to optimizer_args, or set lr_scheduler="adafactor" and lr_warmup_steps=0'
    )


def arguments_of(outcome: Outcome, name: str) -> dict[str, object]:
    """`optimizer_args` or `lr_scheduler_args` as keywords, their values read as Python literals, never run. Raises `ValueError`."""
    found = outcome.optimizer_args if name == "optimizer_args" else outcome.scheduler_args
    if isinstance(found, Malformed):
        raise ValueError(f"{name} has {found.text!r}: {found}; write key=value with numbers, True, False, None, or quoted text")
    return dict(found)


def find_class(field: str, name: str, home: str, base: type) -> type:
    """The class that `name` stands for: one of the module `home`, or a dotted path of its own.

    Raises `ImportError` when its package is missing, `ValueError` when there is no such class or it is none of `base`.
    """
    path = name if "." in name else f"{home}.{name}"
    if not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(f"{field}={name!r}: it must be a name of {home}, or the dotted path of a class")
    module, _, attribute = path.rpartition(".")
    try:
        classes = {key: value for key, value in vars(import_module(module)).items() if inspect.isclass(value)}
    except ImportError as error:
        raise ImportError(f"{field}={name!r}: {error}; pip install the package that has it, or mend the path") from error
    found = classes.get(attribute)
    if found is None or not issubclass(found, base) or found is base:
        fitting = [key for key, value in classes.items() if issubclass(value, base) and value is not base and key[0] != "_"]
        hint = suggest(attribute, fitting, aside=True)
        raise ValueError(f"{field}={name!r}: {module} has no {base.__name__} of that name{hint}: there are {', '.join(fitting) or 'none'}")
    return found


def _function(name: str):
    module, _, attribute = SCHEDULES[name].rpartition(".")
    return getattr(import_module(module), attribute)


def _made(what: str, make, optimizer: Optimizer, given: dict[str, object]) -> LRScheduler:
    try:
        return make(optimizer, **given)
    except Exception as error:  # classes that anyone may name raise anything
        raise ValueError(f"{what} with {given}: {error!r}") from error


def _scheduler_class(kind: str) -> type:
    found = find_class("lr_scheduler_type", kind, "torch.optim.lr_scheduler", LRScheduler)
    wanted = list(inspect.signature(found.step).parameters.values())[1:]
    if wanted and wanted[0].default is inspect.Parameter.empty and wanted[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        raise ValueError(f"lr_scheduler_type={kind!r} wants {wanted[0].name} at each step, and nothing hands it over")
    return found


def _adafactor(outcome: Outcome, optimizer: Optimizer) -> LRScheduler:
    """What goes by `adafactor` or `adafactor:1e-3`: a report of the optimizer's own rate, or without relative_step that number."""
    name = outcome.scheduler
    if not outcome.is_adafactor:
        raise ValueError(f'lr_scheduler="{name}" reports what Adafactor chose: {outcome.optimizer} goes with another, such as "constant"')
    if outcome.relative_step:
        return RelativeStep(optimizer)
    rate = outcome.schedule_rate
    if rate is None or not 0 < rate < math.inf:
        raise ValueError(
            f'lr_scheduler="{name}" reports what relative_step=True chose, and with relative_step=False it needs a learning rate to set: '
            'write "adafactor:1e-4", or take "constant_with_warmup", which uses learning_rate'
        )
    if outcome.argument("scale_parameter", True):
        raise ValueError(
            f'lr_scheduler="{name}" sets a rate that sd-scripts scales by the size of the weights once more at each step, until nothing '
            'moves: add "scale_parameter=False" to optimizer_args, or take "constant", which uses learning_rate'
        )
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = rate
    return _function("constant")(optimizer)


def _numbers(outcome: Outcome, steps: int) -> dict[str, object]:
    """Every keyword that a schedule may be handed, from the recipe's other settings or sd-scripts' defaults for them."""
    decay, ratio, cycles = outcome["lr_decay_steps"], outcome["lr_scheduler_min_lr_ratio"], outcome["lr_scheduler_num_cycles"]
    if type(decay) not in (int, float) or decay < 0 or (type(decay) is float and decay >= 1):
        raise ValueError(f"lr_decay_steps={decay!r}: it must be 0 or more whole steps, or a share below 1")
    warmup, decay = int(outcome.warmup_steps), int(outcome.decay_steps)
    return {
        "num_warmup_steps": warmup,
        "num_training_steps": steps,
        "num_decay_steps": decay,
        "num_stable_steps": steps - warmup - decay,
        "num_cycles": cycles / 2 if outcome.scheduler in HALVED else cycles,
        "power": outcome["lr_scheduler_power"],
        "timescale": outcome["lr_scheduler_timescale"],
        "min_lr_rate": ratio,
        "min_lr_ratio": ratio or 0.0,
    }


def _warn_of_length(recipe: Recipe, numbers: dict) -> None:
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
