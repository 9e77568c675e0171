"""`train`: a whole run, from the check of its recipe to its last save."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from . import checkpointing as recomputing
from . import fused, lora, models, optim, prepare, saves, training
from .datasets import cache, validation
from .memory import MemoryTrace, PhasePeaks, room
from .models import Model
from .planner import OutOfMemory, advice
from .recipe import Recipe
from .saves import Keeper, packing
from .sections import Saves
from .system import check_model, compiling, devices, pages, processes, signals
from .training import Diverged, Step, training_step
from .watch import trackers

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from torch.optim.lr_scheduler import LRScheduler

    from .datasets import Epochs, Picture


def train(
    sd: Model,
    pictures: Sequence[Picture],
    recipe: Recipe | None = None,
    *,
    steps: int | None = None,
    checkpointing=None,
    save_to: str | Path | None = None,
    save_every: int | None = None,
    keep: int | None = None,
    resume: bool | str | Path = "auto",
    samples: Sequence[str] | saves.Samples = (),
    sample_every: int | None = None,
) -> Iterator[Step]:
    """Fine-tune `sd` in place, yielding a `Step` after each optimizer step.

    It trains the U-Net, or adapters if the model has some or the recipe asks for them (`network_dim`; see `prepare.make_trainable`). The
    recipe is checked when `train` is called; the pictures are encoded when the first step is asked for. Every random number depends only
    on `recipe.seed` and the step. As in sd-scripts, the last batches of an epoch may be smaller, and its last step may have fewer of them.
    Several processes (`accelerate launch`) take turns with the batches (see `datasets.Epochs`). You may close the generator at any time:
    the weights are then those of the last step. An interrupt waits for the end of an update, so the weights are always those of a whole
    step.

    - `steps`: number of optimizer steps; by default `recipe.max_train_steps`, or the steps of `max_train_epochs`
    - `checkpointing`: any choice of `sdnb.checkpointing.apply` for the U-Net; by default `"full"` or `"none"`, as
      `recipe.gradient_checkpointing` says
    - `save_to`: a folder for saves: one after every `save_every` steps (by default the recipe's `save_every_n_steps`), one after every
      `save_every_n_epochs` epochs, and one after the last step
    - `keep`: how many saves to keep (by default what the recipe's `save_last_n_…` and `save_state` say, or else two)
    - `resume`: `"auto"` continues from the last save in `save_to`, with the losses that the run would have had; True insists on a save
      there; False starts over, and replaces the old saves once there is a new one; a path is a save elsewhere, from which to begin if there
      is none in `save_to`
    - `samples`: prompts that are drawn every `sample_every` steps into `save_to/samples`; by default the recipe's `sample_prompts`, if its
      `sample_…` settings ask for them. Where a GPU has no room for a whole picture, it is decoded in tiles, with a warning

    A full disk is a warning, and an error only at the last step. On CUDA, a run that is not expected to fit is a warning before the first
    step. With `cache_latents` or `cache_text_encoder_outputs`, the parts that are idle leave the GPU until the run ends or is closed;
    `sd.draw` needs them there, so draw with `samples`. With `validation_split`, some pictures are held out and the model is tried on them
    after each epoch, or as `validate_every_n_steps` and `validate_every_n_epochs` say; those steps have a `validation_loss`.

    Raises `ValueError` for a recipe (`sd_scripts.supported` says which settings work here), a choice or a model that cannot be trained, for
    the saves of another run, a damaged save and a folder that another run is writing to; `FileExistsError` for a `save_to` that contains
    other things; `Diverged` when the loss or a gradient is no longer finite; `OutOfMemory` when the card is full.
    """
    recipe, count = cache.with_dataset_settings(pictures, recipe or Recipe()), processes.processes()
    processes.check()
    check_model(sd)
    if not len(pictures):
        raise ValueError("no pictures to train on")
    prepare.check(sd, recipe, processes=count)
    trackers.check(recipe)
    cache.check_regularization(pictures, recipe)
    pictures, held_out = validation.split(pictures, recipe)
    size, each = cache.largest(sd, pictures, recipe)
    if steps is None:
        steps = cache.steps(sd, pictures, recipe, count)
    if steps < 1:
        raise ValueError(f"steps={steps}: it must be 1 or more")
    if recipe.resume is not None:
        raise ValueError("the setting resume is for sdnb train: here give resume=Path(…) and save_to")
    epochs = cache.epochs(sd, pictures, recipe, count)
    timing = saves.Timing.of(Saves.of(recipe), steps, epochs.steps)
    keeper = Keeper.made(recipe, save_to, save_every, keep, resume, samples, sample_every, timing)
    try:
        ready = prepare.prepare(sd, recipe, size=size, pictures=each, checkpointing=checkpointing, processes=count)
        schedule = optim.schedule(recipe, ready.optimizer, steps=steps)
        run = _Run(ready, pictures, timing, schedule, keeper, ready.recomputed, epochs, held_out)
        if keeper:
            keeper.find(run)
    except BaseException:
        if keeper:
            keeper.release()
        raise
    return _in_whole_steps(_steps(run))


@dataclass
class _Run:
    """One run that passed all checks."""

    ready: prepare.Prepared
    pictures: Sequence[Picture]
    timing: saves.Timing
    schedule: LRScheduler
    keeper: Keeper | None
    recomputed: recomputing.RecomputePlan
    epochs: Epochs
    """Batches and steps of an epoch."""
    held_out: Sequence[Picture] = ()
    """Pictures of the validation."""

    def __post_init__(self) -> None:
        ready = self.ready
        self.sd, self.recipe, self.chosen, self.optimizer = ready.sd, ready.recipe, ready.chosen, ready.optimizer
        self.clip_skip, self.steps = ready.key.clip_skip, self.timing.steps

    @property
    def kept(self) -> dict[str, torch.Tensor]:
        """The tensors that a save holds: what is trained, and what else a step changes."""
        return {**self.chosen, **lora.scaled(self.sd, self.recipe)}

    @property
    def of_largest_batch(self) -> Recipe:
        """The recipe with the pictures of the largest batch, where a dataset file has several sizes."""
        return self.recipe.replace(train_batch_size=self.ready.key.pictures)

    @property
    def shown_otherwise(self) -> int:
        """Number of pictures that are not shown as in saves of earlier versions."""
        return cache.shown_otherwise(self.sd, self.pictures, self.recipe)

    def progress(self, accelerator: Accelerator | None) -> dict:
        """Everything to save besides the weights: optimizer, schedule, fp16's scaler, random generators."""
        states = [packing.random_states()]
        if accelerator is not None and accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            states = gather_object(states)
        scaler = accelerator.scaler.state_dict() if accelerator is not None and accelerator.scaler is not None else None
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(), "scaler": scaler, "random": states}

    def go_on(self, save: saves.Save, accelerator: Accelerator) -> None:
        """Restore weights, optimizer, schedule, scaler and random generators from a save."""
        progress = save.progress()
        try:
            save.put(self.kept)
            self.optimizer.load_state_dict(progress["optimizer"])
            self.schedule.load_state_dict(progress["schedule"])
            if accelerator.scaler is not None and progress["scaler"] is not None:
                accelerator.scaler.load_state_dict(progress["scaler"])
            packing.set_random_states(progress["random"][accelerator.process_index])
        except saves.DAMAGE as error:
            if save.has_checksums or isinstance(error, torch.OutOfMemoryError):
                raise
            raise save.damaged(repr(error)) from error


def _in_whole_steps(steps: Generator[Step]) -> Iterator[Step]:
    """Yield the same steps, and let interrupts wait in them except where they are welcome; after the first the others wait as well."""
    try:
        while True:
            with signals.held():
                step = next(steps, None)
            if step is None:
                return
            yield step
    finally:
        with signals.held():
            steps.close()


def _steps(run: _Run) -> Generator[Step]:
    """The loop over steps. When the GPU is full, it frees everything first and then raises an error that says what would fit."""
    full = None
    try:
        with _Session(run) as session:
            for index in range(session.start, run.steps):
                yield session.step(index)
    except torch.OutOfMemoryError as error:
        full = str(error)  # the error itself holds the whole step alive
    finally:
        if run.keeper:
            run.keeper.release()
    if full is not None:
        raise OutOfMemory(_what_now(run, full))


def _what_now(run: _Run, full: str) -> str:
    """Message of an out-of-memory error: what happened, which save is safe, and which recipe would fit."""
    if run.sd.device.type == "cuda":
        torch.cuda.empty_cache()
    for part in run.sd.parts.values():  # those that were idle come back only now that there is room
        part.to(run.sd.device)
    lines = [advice.what_happened(full)]
    if run.keeper:
        kept = saves.found(run.keeper.folder)
        lines.append(f"the last save is {kept[-1]}; it is as it was" if kept else f"nothing was saved in {run.keeper.folder} yet")
    # say what is known at once: planning what would fit takes a while
    warnings.warn(f"{'. '.join(lines)}. Looking for what would fit …", RuntimeWarning, stacklevel=3)
    with signals.welcome():
        lines += advice.advice(run.sd, run.of_largest_batch, size=run.ready.key.size)
    return ". ".join(lines) + "."


class _Session:
    """A run under way: model, batches and optimizer on their device. `step` works within `with session:`."""

    def __init__(self, run: _Run) -> None:
        sd, keeper = run.sd, run.keeper
        self.run, self.trains_encoders = run, bool(sd.encoders_in_training)
        self.most_norm = run.recipe.scale_weight_norms if lora.has_adapters(sd) else None
        self.accelerator = processes.accelerator(
            sd,
            run.recipe,
            trains_encoders=self.trains_encoders,
            log_with=trackers.kind(run.recipe),
            logging_dir=trackers.folder(run.recipe),
        )
        if run.recipe.steps_in_backward:
            fused.check(run.recipe, processes=self.accelerator.num_processes)
        self.start = keeper.save.steps if keeper and keeper.save else run.timing.first
        self.drawn_before: tuple[Path, ...] = ()
        """Samples drawn before the first step."""

    def __enter__(self) -> _Session:
        run, sd, accelerator = self.run, self.run.sd, self.accelerator
        self._move_to_own_device()
        self._agree_on_seed()
        with signals.welcome():
            if sd.device.type == "cuda" and accelerator.is_main_process:
                advice.warn_if_too_large(sd, run.of_largest_batch, run.ready.checkpointing, size=run.ready.key.size)
            if self.start < run.steps:  # a finished run only needs its weights
                self.batches = cache.Cache(sd, run.pictures, run.recipe, embeds=not self.trains_encoders, steps=run.steps)
                if run.held_out:
                    self.held_out = validation.Validation(sd, run.held_out, run.recipe, embeds=not self.trains_encoders)
        self.phases = PhasePeaks(sd.device)
        with ExitStack() as opened:
            opened.enter_context(_idle_parts_elsewhere(run, self.trains_encoders))
            if accelerator.device.type == "cpu":
                opened.enter_context(pages.kept())
            if run.recipe.compiles:  # within what is recomputed
                opened.enter_context(compiling.Compiled(sd.denoiser, run.recipe.dynamo_backend))
            opened.enter_context(recomputing.Applied(sd.denoiser, run.recomputed))
            opened.enter_context(prepare.recomputed_encoders(sd, run.recipe))
            self.sd, self.optimizer = opened.enter_context(training.training_mode(sd, accelerator, run.optimizer))
            if run.keeper and run.keeper.save:
                run.go_on(run.keeper.save, accelerator)
            self.trackers = None
            if accelerator.log_with and accelerator.is_main_process and self.start < run.steps:
                self.trackers = trackers.Trackers(run.recipe, accelerator, run.optimizer, run.chosen, run.epochs.steps)
                opened.callback(self.trackers.close)
            if run.keeper:
                with signals.welcome():
                    self.drawn_before = run.keeper.draw_missing(run, self.start, accelerator)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error) -> bool | None:
        return self._opened.__exit__(*error)

    def _move_to_own_device(self) -> None:
        """Move the model to this process's own GPU."""
        sd, device = self.run.sd, self.accelerator.device
        elsewhere = sd.device.type == "cuda" and sd.device != device
        for part in sd.parts.values():
            part.to(device)
        if elsewhere:
            torch.cuda.empty_cache()

    def _agree_on_seed(self) -> None:
        """Choose a seed where the recipe has none: the save's, or a new one, the same in all processes."""
        from accelerate.utils import broadcast_object_list

        run = self.run
        if run.recipe.seed is None:
            save = run.keeper.save if run.keeper else None
            drawn = save.state["owner"]["settings"]["seed"] if save else secrets.randbelow(2**32)
            run.recipe = run.recipe.replace(seed=broadcast_object_list([drawn])[0])

    def step(self, index: int) -> Step:
        """One optimizer step, and the save and the samples that are due after it. Raises `Diverged`."""
        run, keeper, begun, waited = self.run, self.run.keeper, time.perf_counter(), self.batches.waited_seconds
        trace = self._trace(index)
        self.phases.begin_step()
        with self._first_of_unchecked_save(index):
            learning_rate = float(run.schedule.get_last_lr()[0])
            try:
                loss, limited = self._update(index, trace)
            except Diverged as error:
                raise Diverged(f"step {index}: {error} {_likely_cause(run.ready.key.mixed_precision, index, learning_rate)}") from None
        if isinstance(run.schedule, optim.RelativeStep):
            learning_rate = float(run.schedule.get_last_lr()[0])  # known only now
        seconds, done = time.perf_counter() - begun, index + 1
        peaks = trace.peaks if trace else self.phases.end_step()
        allocated, reserved = self.phases.allocated_bytes, self.phases.reserved_bytes
        with signals.welcome():
            saved = keeper.store(run, done, self.accelerator) if keeper and keeper.timing.is_saved(done) else None
            drawn = keeper.draw(run, done, self.accelerator) if keeper else ()
            tried = self._validation_loss() if self._tries(done) else None
        step = Step(
            index, loss, learning_rate, seconds,  # pyright: ignore[reportArgumentType]  # the loss is read late
            peaks=peaks, allocated_bytes=allocated, reserved_bytes=reserved, steps=run.steps,
            pictures=self.pictures,
            saved=saved, drawn=(*self.drawn_before, *drawn) if index == self.start else drawn,
            waited_seconds=self.batches.waited_seconds - waited, validation_loss=tried, norms=limited,
        )  # fmt: skip
        if self.trackers:
            every = run.recipe.validate_every_n_steps
            self.trackers.add(step, run.schedule, is_step_validation=bool(every and done % every == 0))
        return step

    def _tries(self, done: int) -> bool:
        """Whether a validation is due after `done` steps."""
        return bool(self.run.held_out) and validation.is_due(self.run.recipe, done, self.run.steps, self.run.epochs.steps)

    def _validation_loss(self) -> float:
        """Mean loss on the pictures held out, of all processes. No gradient is computed and no random generator moves."""
        sd, accelerator = self.run.sd, self.accelerator
        parts, total = sd.learners.values(), torch.zeros((), device=accelerator.device)
        try:
            for part in parts:
                part.eval()
            with torch.no_grad():
                for batch in self.held_out.batches(accelerator.process_index, accelerator.num_processes):
                    total += training.denoising_loss(sd, batch, self.run.recipe)
        finally:
            for part in parts:
                part.train()
        count = len(self.held_out.groups) * len(self.held_out.levels)
        return float(cast("Tensor", accelerator.reduce(total, "sum"))) / count

    @contextmanager
    def _first_of_unchecked_save(self, index: int):
        """Raise as damage of a save without checksums whatever goes wrong in the first step after it."""
        save = self.run.keeper.save if self.run.keeper else None
        try:
            yield
        except saves.DAMAGE as error:
            if not save or save.has_checksums or index != self.start or isinstance(error, torch.OutOfMemoryError):
                raise
            raise save.damaged(f"it has no checksums, and its first step failed: {error!r}") from error

    def _update(self, index: int, trace: MemoryTrace | None) -> tuple[Tensor, lora.Norms | None]:
        """Train on all batches of one optimizer step; return the mean of their losses, and the adapters' norms if they are limited."""
        run, accelerator, total, limited = self.run, self.accelerator, 0.0, None
        epochs = self.batches.epochs(accelerator.num_processes)
        numbers = epochs.numbers(index)
        # an epoch's last step may have fewer batches. Accelerate counts up to the last, and divides by the whole number, as in sd-scripts
        accelerator.step = epochs.rounds - len(numbers)
        models = [getattr(self.sd, name) for name in run.sd.learners]
        self.pictures = 0
        try:
            training.optimizer_mode(self.optimizer, "train")
            with trace or nullcontext(), _chance(run.recipe.seed or 0, index, accelerator):
                self._freeze_encoders_when_due(index)
                for number in numbers:
                    with signals.welcome():
                        batch = self.batches.batch(number, accelerator.process_index, accelerator.num_processes)
                    self.pictures += sum(map(len, epochs.shares(number)))
                    with accelerator.accumulate(*models):
                        total = total + training_step(
                            self.sd, batch, run.recipe, self.optimizer, run.schedule, accelerator=accelerator, on_phase=self.phases.enter
                        )
                    if self.most_norm:  # after each batch, as in sd-scripts, also where no step was made
                        limited = lora.limit_norms(run.sd, self.most_norm)
            with signals.welcome():
                return cast("Tensor", accelerator.reduce(total / len(numbers), "mean")), limited
        finally:
            training.optimizer_mode(self.optimizer, "eval")

    def _freeze_encoders_when_due(self, index: int) -> None:
        """Freeze the text encoders from `stop_text_encoder_training` on, for the rest of the run."""
        stop = self.run.recipe.stop_text_encoder_training
        if self.trains_encoders and stop is not None and index >= stop and not self.run.recipe.wants_lora:
            for encoder in self.run.sd.encoders.values():
                encoder.requires_grad_(False)

    def _trace(self, index: int) -> MemoryTrace | None:
        """A memory trace for one step in `TRACED_EVERY` on a CPU; none inside another trace or with several processes."""
        every, sd = training.TRACED_EVERY, self.run.sd
        now = self.run.steps >= every // 2 and index % every == 1  # the first has no optimizer state yet
        if (
            not now
            or self.run.recipe.compiles
            or sd.device.type != "cpu"
            or self.accelerator.num_processes > 1
            or torch._C._len_torch_dispatch_stack()
        ):
            return None
        return MemoryTrace(sd.denoiser)


@contextmanager
def _chance(seed: int, index: int, accelerator: Accelerator):
    """Seed the random generators from the recipe's seed and the step alone, for dropout and the like; restore the caller's afterwards."""
    generators = [torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in devices.gpus(accelerator.device))]
    before = [generator.get_state() for generator in generators]
    for generator in generators:  # torch.manual_seed keeps a note of each call until CUDA is first used
        generator.manual_seed(((seed * 1_000_003 + index) * 1_009 + accelerator.process_index) % 2**63)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


@contextmanager
def _idle_parts_elsewhere(run: _Run, trains_encoders: bool):
    """Keep the parts whose outputs are cached in the computer's memory, not the GPU's, during training.

    Where the GPU has no room for them at the end, as the optimizer is still there, they stay.
    """
    sd, stays = run.sd, {*run.ready.key.resident, *(run.sd.encoders if trains_encoders else ())}
    away = {name: part for name, part in sd.parts.items() if name not in stays}
    home, full = sd.device, False
    try:
        for part in away.values():
            part.to("cpu")
        if away and home.type == "cuda":
            torch.cuda.empty_cache()
        yield
    except torch.OutOfMemoryError:
        full = True  # what the step had is alive as long as its error is
        raise
    finally:
        for name, part in () if full else away.items():
            free = room(home)
            if free is None or models.room.weight_bytes(part) <= free:
                part.to(home)
            else:
                warnings.warn(
                    f"the card has no room for the {name} beside the optimizer, so it stays in the computer's memory: before you draw, "
                    f'delete the run, then sd.{name}.to("{home}")',
                    RuntimeWarning,
                    stacklevel=2,
                )


def _likely_cause(precision: str, index: int, learning_rate: float) -> str:
    if precision == "fp16":
        return 'Likely cause: a number beyond fp16\'s range; try mixed_precision="bf16" or "no".'
    if index == 0:
        return "Likely cause: weights or pictures that were not finite to begin with; load the model again."
    return f"Likely cause: the learning rate, {learning_rate:g} at this step; try a tenth of it, or a longer warmup."
