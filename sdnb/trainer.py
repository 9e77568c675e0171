"""`train`: a whole run, from the check of its recipe to its last save."""

from __future__ import annotations

import math
import secrets
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import checkpointing as recomputing
from . import fused, losses, optim, planner, prepare, saves, training
from .datasets import cache, captions
from .inputs import example
from .memory import MemoryTrace, PhasePeaks
from .models import ENCODERS, StableDiffusion
from .planner import OutOfMemory, advice
from .recipe import Recipe
from .saves import Keeper, gpus, packing
from .system import check_model, processes
from .training import Diverged, Step, training_step

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.nn import Parameter
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from .datasets import Picture


def train(
    sd: StableDiffusion,
    pictures: Sequence[Picture],
    recipe: Recipe | None = None,
    *,
    steps: int | None = None,
    checkpointing=None,
    save_to: str | Path | None = None,
    save_every: int | None = None,
    keep: int | None = None,
    resume: bool | str = "auto",
    samples: Sequence[str] = (),
    sample_every: int | None = None,
) -> Iterator[Step]:
    """Fine-tune `sd` in place, yielding a `Step` after each optimizer step.

    `steps` is `recipe.max_train_steps` unless given, or what `max_train_epochs` comes to where the recipe has that. The recipe is checked
    when `train` is called, the pictures are encoded when the first step is asked for. Every random number depends on `recipe.seed` and the
    step alone, and several processes (`accelerate launch`) share one global batch of `train_batch_size` times their number. The generator
    may be closed at any time; the weights are then those of the last step.

    What trains is the U-Net, or adapters if the model has some or the recipe asks for them (`network_dim`; see `prepare.choose`).

    `checkpointing` is any choice of `sdnb.checkpointing.apply` for the U-Net; unless given, `"full"` or `"none"`, as
    `recipe.gradient_checkpointing` says.

    `save_to` is a folder for saves: one after every `save_every` steps (the recipe's `save_every_n_steps`) and one after the last step, of
    which the last `keep` are kept (the recipe's `save_last_n_steps_state` or `save_last_n_steps`, both in steps, or else two). A run goes
    on from the last save there, with the losses it would have had; `resume=True` insists on one, and `resume=False` starts anew
    and replaces what is there once there is something to replace it. A disk that is full is warned of, and is an error at the last step.

    With `cache_latents` or `cache_text_encoder_outputs` the parts that are then idle leave a GPU until the run ends or is closed; `sd.draw`
    needs them back, so draw with `samples`.

    `samples` are prompts that are drawn every `sample_every` steps (the recipe's `sample_every_n_steps`) into `save_to/samples`.

    On CUDA a run that is not expected to fit is warned of before its first step.

    Raises `ValueError` for a recipe (`sd_scripts.supported` says which of sd-scripts' settings are acted on), a choice or a model that
    cannot be trained, for the saves of another run and for a folder that another run is writing to, `FileExistsError` for a `save_to`
    that holds other things, `Diverged` when the loss or a gradient stops being finite, `OutOfMemory` when the card is full.
    """
    recipe = cache.folded(pictures, recipe or Recipe())
    processes.check()
    check_model(sd)
    cache.check(recipe)
    if not len(pictures):
        raise ValueError("no pictures to train on")
    cache.check_regularization(pictures, recipe)
    _check_settings(sd, recipe)
    size = _largest(sd, pictures, recipe)
    if steps is None:
        steps = cache.steps(sd, pictures, recipe, processes.processes())
    if steps < 1:
        raise ValueError(f"steps={steps}: it must be 1 or more")
    if recipe.fused_backward_pass:
        fused.check(recipe)
    keeper = Keeper.made(recipe, save_to, save_every, keep, resume, samples, sample_every)
    try:
        chosen = prepare.choose(sd, recipe)
        optimizer = optim.optimizer(recipe, prepare.groups(recipe, chosen))
        prepare.check_precision(sd, recipe, optimizer)
        schedule = optim.schedule(recipe, optimizer, steps=steps)
        if recipe.fused_backward_pass:
            fused.FusedBackward(optimizer)  # refuses what it cannot step
        run = _Run(sd, pictures, recipe, steps, chosen, optimizer, schedule, size, _plan(sd, recipe, checkpointing, size), keeper)
        if keeper:
            keeper.find(run)
    except BaseException:
        if keeper:
            keeper.release()
        raise
    return _guarded(run, checkpointing)


@dataclass
class _Run:
    """One run, once everything that can be refused has been."""

    sd: StableDiffusion
    pictures: Sequence[Picture]
    recipe: Recipe
    steps: int
    chosen: dict[str, Parameter]
    optimizer: Optimizer
    schedule: LRScheduler
    size: tuple[int, int]
    """(width, height) in pixels of its largest pictures."""
    plan: recomputing.Choice
    keeper: Keeper | None

    @property
    def clip_skip(self) -> int | None:
        """Which layer of the text encoder is read, as `captions.skip` says."""
        return captions.skip(self.sd, self.recipe)

    def progress(self, accelerator: Accelerator | None) -> dict:
        """What has to be saved besides the weights."""
        states = [packing.random_states()]
        if accelerator is not None and accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            states = gather_object(states)
        scaler = accelerator.scaler.state_dict() if accelerator is not None and accelerator.scaler is not None else None
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(), "scaler": scaler, "random": states}

    def go_on(self, save: saves.Save, accelerator: Accelerator) -> None:
        """Put weights, optimizer, schedule, scaler and random generators where they were."""
        weights, progress = save.weights(), save.progress()
        if weights.keys() != self.chosen.keys():
            raise ValueError(f"{save.path} holds other weights than this run trains: start anew with resume=False")
        with torch.no_grad():
            for name, parameter in self.chosen.items():
                parameter.copy_(weights[name])
        self.optimizer.load_state_dict(progress["optimizer"])
        self.schedule.load_state_dict(progress["schedule"])
        if accelerator.scaler is not None and progress["scaler"] is not None:
            accelerator.scaler.load_state_dict(progress["scaler"])
        packing.set_random_states(progress["random"][accelerator.process_index])


def _guarded(run: _Run, checkpointing) -> Iterator[Step]:
    """The loop; once the card's memory is full, and everything that can be given back has been, with what to do about it."""
    full = None
    try:
        yield from _loop(run, checkpointing)
    except torch.OutOfMemoryError as error:
        full = str(error)  # the error itself holds the whole step alive
    finally:
        if run.keeper:
            run.keeper.release()
    if full is not None:
        if run.sd.device.type == "cuda":
            torch.cuda.empty_cache()
        for part in run.sd.parts.values():  # those that were idle come back only now that there is room
            part.to(run.sd.device)
        lines = [advice.what_happened(full)]
        if run.keeper:
            kept = saves.found(run.keeper.folder)
            lines.append(f"the last save is {kept[-1]}; it is as it was" if kept else f"nothing was saved in {run.keeper.folder} yet")
        # what is known is said at once; what would fit is planned first
        warnings.warn(f"{'. '.join(lines)}. Looking for what would fit …", RuntimeWarning, stacklevel=2)
        lines += advice.advice(run.sd, run.recipe, size=run.size)
        raise OutOfMemory(". ".join(lines) + ".")


def _loop(run: _Run, checkpointing) -> Iterator[Step]:
    from accelerate.utils import broadcast_object_list

    sd, recipe, optimizer, schedule, keeper = run.sd, run.recipe, run.optimizer, run.schedule, run.keeper
    accelerator = processes.accelerator(sd, recipe, reads=bool(sd.encoders_in_training))
    if recipe.fused_backward_pass:
        fused.check(recipe, processes=accelerator.num_processes)
    elsewhere = sd.device.type == "cuda" and sd.device != accelerator.device
    for part in sd.parts.values():
        part.to(accelerator.device)  # with several GPUs, this process's own
    if elsewhere:
        torch.cuda.empty_cache()
    start = keeper.save.steps if keeper and keeper.save else 0
    if recipe.seed is None:
        drawn = keeper.save.state["owner"]["settings"]["seed"] if start else secrets.randbelow(2**32)
        recipe = run.recipe = recipe.replace(seed=broadcast_object_list([drawn])[0])  # one for all processes
    if sd.device.type == "cuda" and accelerator.is_main_process:
        advice.warn_if_too_large(sd, recipe, checkpointing, size=run.size)
    reads = bool(sd.encoders_in_training)
    # of a finished run only the weights are wanted
    batches = cache.Cache(sd, run.pictures, recipe, embeds=not reads) if start < run.steps else None
    phases = PhasePeaks(sd.device)
    rounds = recipe.gradient_accumulation_steps
    pictures_each = recipe.train_batch_size * rounds * accelerator.num_processes
    with (
        _idle_parts_elsewhere(sd, recipe, reads),
        recomputing.Applied(sd.unet, run.plan),
        training.training_mode(sd, accelerator, optimizer) as (prepared, optimizer),
    ):
        if keeper and keeper.save:
            run.go_on(keeper.save, accelerator)
        models = [prepared.unet, *(getattr(prepared, name) for name in sd.encoders_in_training)]
        for index in range(start, run.steps):
            begun, waited = time.perf_counter(), batches.waited_seconds
            learning_rate = schedule.get_last_lr()[0]
            training.optimizer_mode(optimizer, "train")
            total, trace = 0.0, _trace(sd, index, run.steps, accelerator)
            phases.begin_step()
            with trace or nullcontext(), _chance(recipe.seed, index, accelerator):
                for round in range(rounds):
                    batch = batches.batch(index * rounds + round, accelerator.process_index, accelerator.num_processes)
                    with accelerator.accumulate(*models):
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
            training.optimizer_mode(optimizer, "eval")
            seconds, done = time.perf_counter() - begun, index + 1
            peaks, held = trace.peaks if trace else phases.end_step(), (phases.allocated_bytes, phases.reserved_bytes)
            saved = keeper.store(run, done, accelerator) if keeper and keeper.is_due(done, run.steps) else None
            yield Step(
                index,
                loss,
                learning_rate,
                seconds,
                peaks=peaks,
                allocated_bytes=held[0],
                reserved_bytes=held[1],
                pictures=pictures_each,
                steps=run.steps,
                saved=saved,
                drawn=keeper.draw(run, done, accelerator) if keeper else (),
                waited_seconds=batches.waited_seconds - waited,
            )


@contextmanager
def _chance(seed: int, index: int, accelerator: Accelerator):
    """What is random in a step, such as dropout, depends on the seed and the step alone, and the caller's generator does not notice."""
    generators = [torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in gpus(accelerator.device))]
    before = [generator.get_state() for generator in generators]
    for generator in generators:  # torch.manual_seed keeps a note of each call until CUDA is first used
        generator.manual_seed(((seed * 1_000_003 + index) * 1_009 + accelerator.process_index) % 2**63)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def _trace(sd: StableDiffusion, index: int, steps: int, accelerator: Accelerator) -> MemoryTrace | None:
    """What counts the step's tensors on a CPU, now and then; not beside another that watches, nor where gradients are exchanged."""
    every = training.TRACED_EVERY
    now = steps >= every // 2 and index % every == 1  # the first has no optimizer state yet
    if not now or sd.device.type != "cpu" or accelerator.num_processes > 1 or torch._C._len_torch_dispatch_stack():
        return None
    return MemoryTrace(sd.unet)


@contextmanager
def _idle_parts_elsewhere(sd: StableDiffusion, recipe: Recipe, reads: bool):
    """While it trains, what is needed no more is in the computer's memory instead of the card's, if the recipe says so."""
    stays = {"unet", *planner.resident(sd, recipe), *(ENCODERS if reads else ())}
    away = [part for name, part in sd.parts.items() if name not in stays]
    home, full = sd.device, False
    try:
        for part in away:
            part.to("cpu")
        if away and home.type == "cuda":
            torch.cuda.empty_cache()
        yield
    except torch.OutOfMemoryError:
        full = True  # what the step had is alive as long as its error is
        raise
    finally:
        for part in () if full else away:
            part.to(home)


# what train refuses or explains


def _check_settings(sd: StableDiffusion, recipe: Recipe) -> None:
    """Raises `ValueError` for values of settings that mean nothing, or nothing for this model, before anything is changed."""
    predicts = sd.noise_scheduler.config.prediction_type
    if dict(recipe.others).get("v_parameterization") and predicts != "v_prediction":
        raise ValueError(f"v_parameterization: this model's files say that it predicts {predicts}; leave it out, or correct the files")
    captions.length(sd, recipe)
    captions.skip(sd, recipe)
    losses.Loss.of(recipe, predicts)
    losses.Noises.of(recipe, sd.noise_scheduler.config.num_train_timesteps)


def _largest(sd: StableDiffusion, pictures: Sequence[Picture], recipe: Recipe) -> tuple[int, int]:
    """(width, height) in pixels of the run's largest pictures. A size that the U-Net cannot halve is refused here, at once."""
    sizes = cache.sizes_of(sd, recipe)
    if not sizes.enabled:
        return sizes.resolution
    return max((sizes.place(*picture.size).size for picture in pictures), key=math.prod)


def _plan(sd: StableDiffusion, recipe: Recipe, choice, size: tuple[int, int]) -> recomputing.Choice:
    """What is to be recomputed. A name that is unknown and a budget that is too small are refused here, at once."""
    if choice is None:
        choice = "full" if recipe.gradient_checkpointing else "none"
    if isinstance(choice, recomputing.Budget):
        training.check_budget(recipe)
    width, height = (side // sd.downscale for side in size)
    inputs = example(sd.unet, batch=recipe.train_batch_size, tokens=(captions.length(sd, recipe) or 75) + 2)
    inputs["sample"] = inputs["sample"].new_empty(*inputs["sample"].shape[:2], height, width)
    return recomputing.resolve(sd.unet, choice, inputs)


def _likely_cause(recipe: Recipe, index: int, learning_rate: float) -> str:
    if recipe.mixed_precision == "fp16":
        return 'Likely cause: a number beyond fp16\'s range; try mixed_precision="bf16" or "no".'
    if index == 0:
        return "Likely cause: weights or pictures that were not finite to begin with; load the model again."
    return f"Likely cause: the learning rate, {learning_rate:g} at this step; try a tenth of it, or a longer warmup."
