"""One training step: loss, gradients, update. The loop around it is in `trainer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import fused
from .adafactor import NonFiniteGradient
from .datasets import Batch as Batch
from .datasets import Cache as Cache
from .models import family_of
from .recipe import Recipe
from .system import signals

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from .lora import Norms
    from .models import Model


TRACED_EVERY = 100
"""Steps between two traced ones on a CPU, whose allocator keeps no count. A traced step takes two to three times as long; a run of fewer
than half as many steps has none."""


class _ReadLate:
    """A field that takes a tensor and becomes a number when it is read, because on a GPU that waits for the step to end."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, step, owner: type):
        if step is None:
            raise AttributeError(self._name)  # so that the field has no default
        value = step.__dict__[self._name]
        if not isinstance(value, float):
            value = step.__dict__[self._name] = float(value)
        return value

    def __set__(self, step, value: float | Tensor) -> None:
        step.__dict__[self._name] = value


@dataclass(frozen=True)
class Step:
    """The result of one optimizer step."""

    index: int
    """From 0."""
    loss: float = _ReadLate()  # pyright: ignore[reportAssignmentType]  # it gives a float
    """Mean over the step's pictures, on all processes and accumulated batches."""
    learning_rate: float  # pyright: ignore[reportGeneralTypeIssues]  # the loss has no default
    """The learning rate that this step used."""
    seconds: float  # pyright: ignore[reportGeneralTypeIssues]  # the same
    """Duration of the step. Python runs ahead of a GPU, so there only the mean over many steps is right."""
    peaks: Mapping[str, int] | None = None
    """Peak bytes in each phase: `"forward"`, `"backward"`, `"optimizer"`. On CUDA they count all tensors on the device; on a CPU the
    step's own tensors, in one step out of `TRACED_EVERY`, and None in the others."""
    allocated_bytes: int | None = None
    """Bytes of all tensors on the GPU after the step; None on a CPU."""
    reserved_bytes: int | None = None
    """Reserved bytes of the CUDA allocator after the step, in use or not; None on a CPU."""
    pictures: int | None = None
    """Number of pictures that the step learned from, on all processes."""
    steps: int | None = None
    """Number of optimizer steps in the whole run."""
    saved: Path | None = None
    """Folder of the save made after this step, if one was due."""
    drawn: tuple[Path, ...] = ()
    """Files of the samples drawn after this step."""
    waited_seconds: float | None = None
    """Seconds of the step spent waiting for its batches."""
    validation_loss: float | None = None
    """Mean loss on the pictures held out, after the step, if it was due."""
    norms: Norms | None = None
    """Norms of the adapters, and how many were scaled down, with `scale_weight_norms`."""

    @property
    def peak_bytes(self) -> int | None:
        """The largest of `peaks`."""
        return max(self.peaks.values()) if self.peaks else None


class Diverged(RuntimeError):
    """The loss or a gradient is no longer a finite number. The weights are those before the step named in the message; in a fused
    backward pass the parameters whose gradients were finite may have been stepped."""


def denoising_loss(sd: Model, batch: Batch, recipe: Recipe) -> Tensor:
    """Noise the latents, predict, compare: the scalar loss to call `backward` on.

    A batch without a condition has captions; they are encoded here, so that the text encoders get gradients too.
    """
    family, process = family_of(sd), family_of(sd).process(sd)
    x_t = process.noised(batch.latents, batch.noise if batch.perturbed is None else batch.perturbed, batch.t)
    condition = batch.condition
    if condition is None:
        with nullcontext() if sd.encoders_in_training else torch.no_grad():  # frozen for the rest of a run, they need no graph
            condition = family.condition(sd, batch.captions, family.text_encoding(sd, recipe))
    prediction = family.denoise(sd, x_t, batch.t, condition | batch.sizes)
    target = process.target(batch.latents, batch.noise, batch.t)
    return process.loss(recipe)(prediction, target, batch.t, process, batch.weights, batch.mask)


def training_step(
    sd: Model,
    batch: Batch,
    recipe: Recipe,
    optimizer: Optimizer,
    schedule: LRScheduler | None = None,
    *,
    accelerator: Accelerator | None = None,
    on_phase: Callable[[str], None] | None = None,
) -> Tensor:
    """One step: loss, gradients, clipping if the recipe asks for it, update. Returns the loss, detached.

    With an `accelerator` that accumulates, the update happens only in its last call of a round (`accelerator.sync_gradients`).
    `on_phase` is called with `"forward"`, `"backward"` and `"optimizer"` as each begins. An interrupt waits for the end of the update,
    of which a fused backward is a part.
    Raises `Diverged` when the loss or a gradient is not finite, before anything is updated; in a fused backward only the parameters
    without a finite gradient are left alone.
    """
    begin = on_phase or (lambda phase: None)
    updates = accelerator is None or accelerator.sync_gradients
    in_backward = recipe.steps_in_backward and updates
    with signals.held():
        try:
            with signals.welcome():
                begin("forward")
                loss = denoising_loss(sd, batch, recipe)
                begin("backward")
                backward = loss.backward if accelerator is None else partial(accelerator.backward, loss)
                if not in_backward:
                    backward()
        except BaseException:
            _unwrapped(optimizer).zero_grad(set_to_none=True)  # half a backward must not count in the next step
            raise
        if in_backward:
            _step_in_backward(loss, backward, recipe, optimizer)
            begin("optimizer")
        elif updates:
            with _finite_or_diverged(loss, optimizer, accelerator):
                if recipe.max_grad_norm > 0:
                    trained = [p for group in optimizer.param_groups for p in group["params"]]
                    clip = torch.nn.utils.clip_grad_norm_ if accelerator is None else accelerator.clip_grad_norm_
                    clip(trained, recipe.max_grad_norm)
                begin("optimizer")
                optimizer.step()
        if updates:
            if schedule is not None and not getattr(optimizer, "step_was_skipped", False):  # by fp16's scaler
                schedule.step()
            optimizer.zero_grad(set_to_none=True)
    return loss.detach()


@contextmanager
def training_mode(sd: Model, accelerator: Accelerator, optimizer: Optimizer):
    """Yields the model and the optimizer as accelerate prepares them; afterwards both are as before."""
    parts = sd.learners
    before = {name: (part.training, vars(part).get("forward")) for name, part in parts.items()}
    for part in parts.values():
        part.train()
        vars(part).pop("_is_accelerate_prepared", None)  # else, as in a copy of a trained model, it would be left without autocast
    *prepared, stepped = accelerator.prepare(*parts.values(), optimizer)
    if accelerator.scaler is None:
        stepped = optimizer  # accelerate's wrapper would do no more than call it
    try:
        yield replace(sd, **dict(zip(parts, prepared, strict=True))), stepped
    finally:
        for name, part in parts.items():
            was_training, forward = before[name]
            # accelerate puts its autocast over `forward`; its own unwrapping takes diffusers' decorators off as well
            for patched in ("forward", "_original_forward", "_is_accelerate_prepared"):
                vars(part).pop(patched, None)
            if forward is not None:
                part.forward = forward
            part.train(was_training)
        optimizer.zero_grad(set_to_none=True)  # accelerate's wrapper would do nothing in the middle of a round


def optimizer_mode(optimizer: Optimizer, name: str) -> None:
    """A schedule-free optimizer trains on other weights than those it has for result: `train` puts in the first, `eval` the second."""
    method = getattr(_unwrapped(optimizer), name, None)  # accelerate's is a wrapper
    if callable(method):
        method()


def _step_in_backward(loss: Tensor, backward: Callable[[], None], recipe: Recipe, optimizer: Optimizer) -> None:
    fused.check(recipe)
    plain = _unwrapped(optimizer)
    if not loss.isfinite():
        raise Diverged("the loss is not a finite number; training stopped and the weights of the step before are kept.")
    skipped = plain.skipped if _checks_gradients(plain) else 0
    try:
        with fused.FusedBackward(plain, max_grad_norm=recipe.max_grad_norm, by_group=bool(recipe.fused_optimizer_groups)):
            backward()
    except NonFiniteGradient as error:
        raise Diverged(f"{error}. Others had been by then, as their gradients came.") from None
    if _checks_gradients(plain) and (bad := plain.skipped - skipped):
        raise Diverged(f"the gradients of {bad} parameters were not finite numbers; those kept their weights, the others were stepped.")


def _unwrapped(optimizer: Optimizer) -> Any:
    """The optimizer inside accelerate's wrapper, if it has one."""
    return getattr(optimizer, "optimizer", optimizer)


def _checks_gradients(optimizer: Optimizer) -> bool:
    """Whether an optimizer looks for gradients that are not finite by itself, as `Adafactor` does."""
    return getattr(optimizer, "checks_gradients", False)


@contextmanager
def _finite_or_diverged(loss: Tensor, optimizer: Optimizer, accelerator: Accelerator | None):
    """Within it the optimizer steps. Raises `Diverged`, before it has changed anything, if the loss or a gradient is not finite."""
    plain = _unwrapped(optimizer)
    if accelerator is not None and accelerator.scaler is not None:  # fp16: the scaler itself looks for overflow, and skips the step
        if not loss.isfinite():
            raise Diverged("the loss is not a finite number.")
        yield
        return
    checks = _checks_gradients(plain)  # it looks at every gradient anyway
    gradients = [] if checks else [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # a sum of squares is finite only if every summand is: one number to look at
    total = torch.stack(torch._foreach_norm(gradients)).sum() if gradients else loss
    bad = None if (loss + total).isfinite() else "a gradient" if loss.isfinite() else "the loss"
    try:
        if bad is None:
            with plain.refusing() if checks else nullcontext():
                yield
    except NonFiniteGradient:
        bad = "a gradient"
    if bad is not None:
        optimizer.zero_grad(set_to_none=True)
        raise Diverged(f"{bad} is not a finite number; training stopped and the weights of the step before are kept.")
