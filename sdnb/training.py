"""One training step, and the loop around it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import checkpointing as recomputing
from . import fused, lora, losses, optim
from .adafactor import Adafactor, NonFiniteGradient
from .cache import Batch, Cache
from .gauges import PhasePeaks
from .inputs import example
from .memory import MemoryTrace
from .recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from .data import Picture
    from .models import StableDiffusion


TRACED_EVERY = 100
"""On a CPU, whose allocator keeps no count, one step in so many is traced, which makes it take two or three times as long; in a run of
fewer than half as many steps none is."""


class _ReadLate:
    """A field that may be given as a tensor and is turned into a number when it is read: on a GPU that waits for the step to end."""

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
    """What one optimizer step did."""

    index: int
    """From 0."""
    loss: float = _ReadLate()
    """Mean over the step's pictures, on all processes and accumulated batches."""
    learning_rate: float
    """The one this step used."""
    seconds: float
    """On a GPU, which works on while Python goes ahead, a single one says little and their mean is right."""
    peaks: Mapping[str, int] | None = None
    """The most bytes alive at once in each phase, `"forward"`, `"backward"`, `"optimizer"`: of all tensors on the device as the CUDA
    allocator counts them; on a CPU of the tensors of the step, in one step of `TRACED_EVERY`, and None in the others."""
    allocated_bytes: int | None = None
    """What the CUDA allocator has handed out when the step is over; None on a CPU, like the next."""
    reserved_bytes: int | None = None
    """What it holds of the card, in use or not."""
    pictures: int | None = None
    """How many pictures the step learned from, on all processes."""
    steps: int | None = None
    """How many steps the run was asked for."""

    @property
    def peak_bytes(self) -> int | None:
        """The largest of `peaks`."""
        return max(self.peaks.values()) if self.peaks else None


class Diverged(RuntimeError):
    """The loss or a gradient is no longer a finite number. The weights are those before the step named in the message."""


def denoising_loss(sd: StableDiffusion, batch: Batch, recipe: Recipe) -> Tensor:
    """Noise the latents, predict, compare: a scalar that the gradients of `sd.unet` come from."""
    scheduler = sd.noise_scheduler
    alphas_cumprod, prediction_type = scheduler.alphas_cumprod, scheduler.config.prediction_type
    x_t = losses.add_noise(batch.latents, batch.noise, batch.t, alphas_cumprod)
    dtype = next(sd.unet.parameters()).dtype
    added = {} if batch.added is None else {"added_cond_kwargs": {name: value.to(dtype) for name, value in batch.added.items()}}
    prediction = sd.unet(x_t.to(dtype), batch.t, encoder_hidden_states=batch.context.to(dtype), **added).sample
    target = losses.target(batch.latents, batch.noise, batch.t, alphas_cumprod, prediction_type)
    if recipe.min_snr_gamma is None:
        return torch.nn.functional.mse_loss(prediction.float(), target.float())
    weights = losses.min_snr_weights(batch.t, alphas_cumprod, recipe.min_snr_gamma, prediction_type)
    return (weights * (prediction.float() - target.float()).square().mean((1, 2, 3))).mean()


def training_step(
    sd: StableDiffusion,
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
    `on_phase` is called with `"forward"`, `"backward"` and `"optimizer"` as each begins.
    Raises `Diverged`, before anything is updated, when the loss or a gradient is not finite; with `recipe.fused_backward_pass` those
    parameters are left alone that have no finite gradient.
    """
    begin = on_phase or (lambda phase: None)
    begin("forward")
    loss = denoising_loss(sd, batch, recipe)
    begin("backward")
    backward = loss.backward if accelerator is None else partial(accelerator.backward, loss)
    if recipe.fused_backward_pass:
        _step_in_backward(loss, backward, recipe, optimizer)
    else:
        backward()
    if accelerator is None or accelerator.sync_gradients:
        _refuse_non_finite(loss, optimizer, accelerator)
        if recipe.max_grad_norm > 0:
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            clip = torch.nn.utils.clip_grad_norm_ if accelerator is None else accelerator.clip_grad_norm_
            clip(trained, recipe.max_grad_norm)
        begin("optimizer")
        optimizer.step()
        if schedule is not None:
            schedule.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def train(
    sd: StableDiffusion, pictures: Sequence[Picture], recipe: Recipe | None = None, *, steps: int | None = None, checkpointing=None
) -> Iterator[Step]:
    """Fine-tune `sd.unet` in place, yielding a `Step` after each optimizer step.

    `steps` is `recipe.max_train_steps` unless given. The recipe is checked when `train` is called, the pictures are encoded when
    the first step is asked for. Every random number depends on `recipe.seed` and the step alone, and several processes
    (`accelerate launch`) share one global batch of `train_batch_size` times their number. The generator may be closed at any
    time; the weights are then those of the last step.

    `checkpointing` is any choice of `sdnb.checkpointing.apply` for the U-Net; unless given, `"full"` or `"none"`, as
    `recipe.gradient_checkpointing` says.

    Raises `ValueError` for a recipe, a choice or a model that cannot be trained, `Diverged` when the loss or a gradient stops being finite.
    """
    recipe = recipe or Recipe()
    steps = recipe.max_train_steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps={steps}: it must be 1 or more")
    if not len(pictures):
        raise ValueError("no pictures to train on")
    if recipe.fused_backward_pass:
        fused.check(recipe)
    if not lora.is_added(sd.unet):
        sd.unet.requires_grad_(True)
    optimizer = optim.optimizer(recipe, [p for p in sd.unet.parameters() if p.requires_grad])
    _check_trainable(sd, recipe, isinstance(optimizer, Adafactor) and optimizer.defaults["stochastic_rounding"])
    schedule = optim.schedule(recipe, optimizer, steps=steps)
    if recipe.fused_backward_pass:
        fused.FusedBackward(optimizer)  # refuses what it cannot step
    return _loop(sd, pictures, recipe, steps, optimizer, schedule, _plan(sd, recipe, checkpointing))


def _loop(
    sd: StableDiffusion, pictures: Sequence[Picture], recipe: Recipe, steps: int, optimizer: Optimizer, schedule: LRScheduler, plan
) -> Iterator[Step]:
    from accelerate.utils import broadcast_object_list

    accelerator = _accelerator(sd, recipe)
    if recipe.fused_backward_pass:
        fused.check(recipe, processes=accelerator.num_processes)
    for part in (sd.unet, sd.vae, sd.text_encoder):
        part.to(accelerator.device)  # with several GPUs, this process's own
    if recipe.seed is None:
        recipe = recipe.replace(seed=broadcast_object_list([secrets.randbelow(2**32)])[0])  # one for all processes
    cache = Cache(sd, pictures, recipe)
    phases = PhasePeaks(sd.device)
    rounds = recipe.gradient_accumulation_steps
    pictures_each = recipe.train_batch_size * rounds * accelerator.num_processes
    with recomputing.Applied(sd.unet, plan), _training_mode(sd, accelerator, optimizer) as (prepared, optimizer):
        for index in range(steps):
            start = time.perf_counter()
            learning_rate = schedule.get_last_lr()[0]
            _mode(optimizer, "train")
            total, trace = 0.0, _trace(sd, index, steps, accelerator)
            phases.begin_step()
            with trace or nullcontext():
                for round in range(rounds):
                    batch = cache.batch(index * rounds + round, accelerator.process_index, accelerator.num_processes)
                    with accelerator.accumulate(prepared.unet):
                        try:
                            loss = training_step(
                                prepared, batch, recipe, optimizer, schedule, accelerator=accelerator, on_phase=phases.enter
                            )
                        except Diverged as error:
                            raise Diverged(f"step {index}: {error} {_likely_cause(recipe, index, learning_rate)}") from None
                    total = total + loss
            loss = accelerator.reduce(total / rounds, "mean")
            if isinstance(schedule, optim.RelativeStep):
                learning_rate = schedule.get_last_lr()[0]  # known only now
            _mode(optimizer, "eval")
            yield Step(
                index,
                loss,
                learning_rate,
                time.perf_counter() - start,
                peaks=trace.peaks if trace else phases.end_step(),
                allocated_bytes=phases.allocated_bytes,
                reserved_bytes=phases.reserved_bytes,
                pictures=pictures_each,
                steps=steps,
            )


def _trace(sd: StableDiffusion, index: int, steps: int, accelerator: Accelerator) -> MemoryTrace | None:
    """What counts the step's tensors on a CPU, now and then; not beside another that watches, nor where gradients are exchanged."""
    now = steps >= TRACED_EVERY // 2 and index % TRACED_EVERY == 1  # the first has no optimizer state yet
    if not now or sd.device.type != "cpu" or accelerator.num_processes > 1 or torch._C._len_torch_dispatch_stack():
        return None
    return MemoryTrace(sd.unet)


@contextmanager
def _training_mode(sd: StableDiffusion, accelerator: Accelerator, optimizer: Optimizer):
    """The model as accelerate prepares it, and as it was before afterwards."""
    from dataclasses import replace

    was_training = sd.unet.training
    forward = vars(sd.unet).get("forward")
    sd.unet.train()
    unet, prepared = accelerator.prepare(sd.unet, optimizer)
    try:
        yield replace(sd, unet=unet), prepared
    finally:
        # accelerate puts its autocast over `forward`; its own unwrapping takes diffusers' decorators off as well
        for name in ("forward", "_original_forward"):
            vars(sd.unet).pop(name, None)
        if forward is not None:
            sd.unet.forward = forward
        optimizer.zero_grad(set_to_none=True)
        sd.unet.train(was_training)


def _mode(optimizer: Optimizer, name: str) -> None:
    """A schedule-free optimizer trains on other weights than those it has for result: `train` puts in the first, `eval` the second."""
    switch = getattr(getattr(optimizer, "optimizer", optimizer), name, None)  # accelerate's is a wrapper
    if callable(switch):
        switch()


def _step_in_backward(loss: Tensor, backward: Callable[[], None], recipe: Recipe, optimizer: Optimizer) -> None:
    fused.check(recipe)
    plain = getattr(optimizer, "optimizer", optimizer)
    if not loss.isfinite():
        raise Diverged("the loss is not a finite number; training stopped and the weights of the step before are kept.")
    skipped = plain.skipped if isinstance(plain, Adafactor) else 0
    try:
        with fused.FusedBackward(plain):
            backward()
    except NonFiniteGradient as error:
        raise Diverged(f"{error}. Others had been by then, as their gradients came.") from None
    if isinstance(plain, Adafactor) and (bad := plain.skipped - skipped):
        raise Diverged(f"the gradients of {bad} parameters were not finite numbers; those kept their weights, the others were stepped.")


def _plan(sd: StableDiffusion, recipe: Recipe, choice) -> recomputing.Choice:
    """What is to be recomputed. A name that is unknown and a budget that is too small are refused here, at once."""
    if choice is None:
        choice = "full" if recipe.gradient_checkpointing else "none"
    if isinstance(choice, recomputing.Budget):
        _check_budget(recipe)
    size = (recipe.resolution or sd.resolution) // sd.downscale
    return recomputing.resolve(sd.unet, choice, example(sd.unet, batch=recipe.train_batch_size, size=size))


def _check_budget(recipe: Recipe) -> None:
    if recipe.mixed_precision != "no":
        raise ValueError(
            f"a Budget is solved for the precision of the model, and mixed_precision={recipe.mixed_precision!r} computes in another: "
            "give a Keep or a point of the frontier instead"
        )


def _accelerator(sd: StableDiffusion, recipe: Recipe) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # accelerate keeps the first precision and device of a process for good; in a notebook one run follows another
    state = AcceleratorState._shared_state
    if state and (state.get("_mixed_precision") != recipe.mixed_precision or state["device"].type != sd.device.type):
        AcceleratorState._reset_state(reset_partial_state=state["num_processes"] == 1)
    return Accelerator(
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        cpu=sd.device.type == "cpu",
        step_scheduler_with_optimizer=False,
    )


def _check_trainable(sd: StableDiffusion, recipe: Recipe, rounds_stochastically: bool, *, size: int | None = None) -> None:
    dtype = next((p.dtype for p in sd.unet.parameters() if p.requires_grad), sd.dtype)  # of a LoRA, the adapters'
    if dtype != torch.float32 and not (dtype == torch.bfloat16 and rounds_stochastically):
        raise ValueError(
            f"the U-Net is in {dtype}, too coarse for small updates: load it with dtype=torch.float32"
            + (", or let Adafactor round them stochastically" if dtype == torch.bfloat16 else "")
        )
    if recipe.mixed_precision == "fp16" and sd.device.type == "cpu":
        raise ValueError('mixed_precision="fp16" needs a GPU: on a CPU use "no" or "bf16"')
    size = size or recipe.resolution or sd.resolution
    step = sd.downscale * 2 ** (len(sd.unet.config.block_out_channels) - 1)
    if size % step:
        raise ValueError(f"resolution={size}: this U-Net halves its latents down to whole numbers only at multiples of {step}")


def _refuse_non_finite(loss: Tensor, optimizer: Optimizer, accelerator: Accelerator | None) -> None:
    if accelerator is not None and accelerator.scaler is not None:  # fp16: the scaler itself looks for overflow, and skips the step
        if loss.isfinite():
            return
        raise Diverged("the loss is not a finite number.")
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # a sum of squares is finite only if every summand is: one number to look at
    total = torch.stack(torch._foreach_norm(gradients)).sum() if gradients else loss
    if not (loss + total).isfinite():
        what = "a gradient" if loss.isfinite() else "the loss"
        optimizer.zero_grad(set_to_none=True)
        raise Diverged(f"{what} is not a finite number; training stopped and the weights of the step before are kept.")


def _likely_cause(recipe: Recipe, index: int, learning_rate: float) -> str:
    if recipe.mixed_precision == "fp16":
        return 'Likely cause: a number beyond fp16\'s range; try mixed_precision="bf16" or "no".'
    if index == 0:
        return "Likely cause: weights or pictures that were not finite to begin with; load the model again."
    return f"Likely cause: the learning rate, {learning_rate:g} at this step; try a tenth of it, or a longer warmup."
