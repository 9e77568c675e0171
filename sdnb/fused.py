"""Fused backward: each parameter is stepped as soon as its gradient is complete, and the gradient is freed at once.

The gradients of a whole model then never exist together, so nothing can be computed from all of them: no global norm to clip by, no
sum over several batches.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from .adafactor import NonFiniteGradient

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from .recipe import Recipe


class FusedBackward:
    """Context in which `loss.backward()` also steps `optimizer`, parameter by parameter, and leaves no gradient.

        with FusedBackward(optimizer):
            for batch in batches:
                loss(batch).backward()
                schedule.step()

    Works with any optimizer that steps each parameter on its own; the result equals that of the plain step, up to rounding. Changes to the
    optimizer's groups, such as a new learning rate, count from the next gradient on. Raises `ValueError` for an optimizer that keeps
    values common to all parameters (Prodigy, D-Adaptation, the schedule-free ones), and, in backward, `NonFiniteGradient` before it would
    step a parameter by such a gradient, unless the optimizer is an `Adafactor`, which skips them.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._optimizer_checks_gradients = getattr(optimizer, "checks_gradients", False)
        if not self._optimizer_checks_gradients:
            _probe(optimizer)
        self._handles: list = []

    def __enter__(self) -> FusedBackward:
        if self._handles:
            raise RuntimeError("this FusedBackward is entered already: each parameter would be stepped twice")
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    self._handles.append(parameter.register_post_accumulate_grad_hook(self._hook(group)))
        return self

    def __exit__(self, *error) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, group: dict):
        """Function that steps one parameter of `group` and frees its gradient."""

        def step(parameter: Tensor) -> None:
            if not self._optimizer_checks_gradients and parameter.grad is not None and not parameter.grad.isfinite().all():
                shape = tuple(parameter.shape)
                raise NonFiniteGradient(f"the gradient of a parameter of shape {shape} holds NaN or infinity; it was not stepped")
            all_groups = self.optimizer.param_groups
            self.optimizer.param_groups = [{**group, "params": [parameter]}]
            try:
                self.optimizer.step()
            finally:
                self.optimizer.param_groups = all_groups
            parameter.grad = None

        return step


def check(recipe: Recipe, *, processes: int = 1) -> None:
    """Raise `ValueError`, with the reason, for a recipe that asks for what fused backward cannot do."""
    rounds = recipe.gradient_accumulation_steps
    if rounds > 1:
        raise ValueError(
            f"fused backward frees each gradient at once, so gradients of {rounds} batches cannot be accumulated: "
            "set gradient_accumulation_steps=1"
        )
    if recipe.max_grad_norm > 0:
        raise ValueError(
            f"max_grad_norm={recipe.max_grad_norm:g} needs the norm of all gradients, and in fused backward they never exist together: "
            "set max_grad_norm=0"
        )
    if recipe.mixed_precision == "fp16":
        raise ValueError(
            "fp16 needs a gradient scaler, which looks at all gradients before the step: fused backward has none left by then; "
            'set mixed_precision="bf16" or "no"'
        )
    if processes > 1:
        raise ValueError(
            f"{processes} processes average their gradients after backward, and fused backward has stepped by then: run one process"
        )


def _probe(optimizer: Optimizer) -> None:
    """Step a trial parameter with a copy of the optimizer, and raise `ValueError` where more changes than the parameter and its state."""
    group = optimizer.param_groups[0]
    like = group["params"][0]
    parameter = torch.nn.Parameter(torch.ones(2, 2, dtype=like.dtype, device=like.device))
    parameter.grad = torch.ones_like(parameter)
    settings = {name: value for name, value in group.items() if name != "params"}
    trial = object.__new__(type(optimizer))
    vars(trial).update(
        {name: value for name, value in vars(optimizer).items() if name != "step"}
    )  # a learning-rate schedule replaces `step`
    trial.state, trial.param_groups = defaultdict(dict), [{**copy.deepcopy(settings), "params": [parameter]}]
    trial.step()
    changed = [name for name, value in settings.items() if trial.param_groups[0][name] != value]
    changed += [name for name in trial.param_groups[0] if name not in group]
    if changed:
        raise ValueError(
            f"{type(optimizer).__name__} keeps {', '.join(changed)} for all parameters together, and fused backward steps each alone: "
            "use Adafactor, AdamW, Lion or SGD"
        )
