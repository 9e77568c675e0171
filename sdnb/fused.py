"""Fused backward: each parameter is stepped as soon as its gradient is complete, and the gradient is freed at once.

The gradients of a whole model then never exist together, so nothing can be computed from all of them: no sum over several batches, and no
global norm to clip by. `max_grad_norm` then clips the gradient of each parameter alone, as sdxl_train.py does.

Between the two extremes are groups: `fused_optimizer_groups` divides the parameters, and each group is stepped and its gradients are freed
when the last of them is complete.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable
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

    `max_grad_norm`: each gradient is scaled down to this norm by itself; 0 leaves them alone.
    `by_group`: step each of the optimizer's parameter groups when its last gradient is complete. Each is then like an optimizer of its own,
    so that any optimizer will do.
    """

    def __init__(self, optimizer: Optimizer, *, max_grad_norm: float = 0.0, by_group: bool = False) -> None:
        self.optimizer, self.max_grad_norm, self.by_group = optimizer, max_grad_norm, by_group
        self._optimizer_checks_gradients = getattr(optimizer, "checks_gradients", False)
        if not (self._optimizer_checks_gradients or by_group):
            _probe(optimizer)
        self._handles: list = []
        self._begun: list[dict] = []
        """Groups of which some gradients have come."""

    def __enter__(self) -> FusedBackward:
        if self._handles:
            raise RuntimeError("this FusedBackward is entered already: each parameter would be stepped twice")
        for group in self.optimizer.param_groups:
            hook = self._hook(group)
            for parameter in group["params"]:
                if parameter.requires_grad:
                    self._handles.append(parameter.register_post_accumulate_grad_hook(hook))
        return self

    def __exit__(self, kind: type[BaseException] | None, *error) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for group in self._begun if kind is None else ():  # the others of its parameters had no part in the loss
            self._step(group)
        self._begun.clear()

    def _hook(self, group: dict):
        """Function that takes a complete gradient of `group`, and steps what can be stepped by then."""
        waiting: set[Tensor] = set()

        def step(parameter: Tensor) -> None:
            if not self._optimizer_checks_gradients and parameter.grad is not None and not parameter.grad.isfinite().all():
                shape = tuple(parameter.shape)
                raise NonFiniteGradient(f"the gradient of a parameter of shape {shape} holds NaN or infinity; it was not stepped")
            if self.max_grad_norm > 0:
                torch.nn.utils.clip_grad_norm_(parameter, self.max_grad_norm)
            if not self.by_group:
                self._step({**group, "params": [parameter]})
                return
            if not waiting:
                waiting.update(one for one in group["params"] if one.requires_grad)
                self._begun.append(group)
            waiting.remove(parameter)
            if not waiting:
                self._begun = [one for one in self._begun if one is not group]
                self._step(group)

        return step

    def _step(self, group: dict) -> None:
        """Step the parameters of one group alone, and free their gradients."""
        all_groups = self.optimizer.param_groups
        self.optimizer.param_groups = [group]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = all_groups
        for parameter in group["params"]:
            parameter.grad = None


def divided(groups: Iterable[dict], number: int) -> list[dict]:
    """Parameter groups of at most a `number`-th of all parameters each, in the same order; there may be more where their settings differ.

    >>> divided([{"params": [1, 2, 3], "lr": 1e-3}, {"params": [4, 5], "lr": 1e-4}], 2)
    [{'params': [1, 2, 3], 'lr': 0.001}, {'params': [4, 5], 'lr': 0.0001}]
    >>> [group["params"] for group in divided([{"params": [1, 2]}, {"params": [3, 4, 5]}], 2)]
    [[1, 2, 3], [4, 5]]
    """
    groups = list(groups)
    most = math.ceil(sum(len(group["params"]) for group in groups) / number)
    made, before = [], None
    for group in groups:
        settings = {name: value for name, value in group.items() if name != "params"}
        for parameter in group["params"]:
            if settings != before or len(made[-1]["params"]) == most:
                made.append({"params": [], **settings})
                before = settings
            made[-1]["params"].append(parameter)
    return made


def check(recipe: Recipe, *, processes: int = 1) -> None:
    """Raise `ValueError`, with the reason, for a recipe that asks for what fused backward cannot do."""
    rounds, groups = recipe.gradient_accumulation_steps, recipe.fused_optimizer_groups
    if recipe.fused_backward_pass and groups:
        raise ValueError(
            f"fused_backward_pass would step only the first of fused_optimizer_groups={groups}, in sd-scripts, too: leave one of them out"
        )
    if rounds > 1 and not groups:
        raise ValueError(
            f"fused backward frees each gradient at once, so gradients of {rounds} batches cannot be accumulated: "
            "set gradient_accumulation_steps=1"
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
