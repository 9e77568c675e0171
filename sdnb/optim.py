"""Optimizers and learning-rate schedules, by name."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from .recipe import Recipe


@dataclass(frozen=True)
class Row:
    """Where an optimizer's class lives, and what has to be installed for it."""

    path: str
    package: str


OPTIMIZERS = {
    "Adafactor": Row("transformers.optimization.Adafactor", "transformers"),
    "AdamW": Row("torch.optim.AdamW", "torch"),
}
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


def optimizer(recipe: Recipe, parameters: Iterable[Parameter]) -> Optimizer:
    """The recipe's optimizer over `parameters`.

    Raises `ValueError` for an unknown name or malformed arguments, and for an Adafactor that would choose its own learning rate.
    """
    row = OPTIMIZERS[_known("optimizer_type", recipe.optimizer_type, OPTIMIZERS)]
    arguments = parse_arguments(recipe.optimizer_args)
    if recipe.optimizer_type == "Adafactor" and arguments.get("relative_step", True):
        raise ValueError(
            "Adafactor with relative_step=True chooses its own learning rate and ignores learning_rate and lr_scheduler: "
            'add "relative_step=False" to optimizer_args'
        )
    module, _, name = row.path.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except ImportError as error:
        raise ImportError(f"{recipe.optimizer_type} needs {row.package}: pip install {row.package}") from error
    try:
        return kind(parameters, lr=recipe.learning_rate, **arguments)
    except TypeError as error:
        raise ValueError(f"optimizer_args={recipe.optimizer_args!r}: {error}") from error


def schedule(recipe: Recipe, optimizer: Optimizer, *, steps: int) -> LRScheduler:
    """The recipe's learning-rate schedule over `steps` optimizer steps; `.step()` it once after each of them.

    Raises `ValueError` for an unknown name, and for `constant` with a warmup, which would be ignored.
    """
    name = _known("lr_scheduler", recipe.lr_scheduler, SCHEDULES)
    if name == "constant" and recipe.lr_warmup_steps:
        raise ValueError('lr_scheduler="constant" has no warmup: set lr_warmup_steps=0, or use "constant_with_warmup"')
    from diffusers.optimization import get_scheduler

    warmup = recipe.lr_warmup_steps
    warmup = int(warmup * steps) if isinstance(warmup, float) else warmup
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


def parse_arguments(arguments: Iterable[str]) -> dict[str, object]:
    """`"key=value"` texts -> keywords, the values read as Python literals, never run."""
    parsed = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        try:
            parsed[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"optimizer_args: {argument!r} is no literal: write numbers, True, False, None, or quoted text") from error
    return parsed


def _known(field: str, name: str, names: Iterable[str]) -> str:
    if name not in names:
        close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{field}={name!r} is not known{hint}: there are {', '.join(names)}")
    return name
