"""`Job`: a whole training run as sd-scripts' settings describe it, from the model's name to the file it leaves."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import saves
from .recipe import Recipe
from .sections import Saves
from .system import devices, files, processes

if TYPE_CHECKING:
    from .datasets import Picture, Pictures
    from .models import Model
    from .training import Step

PRECISIONS = {"float": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""sd-scripts' words for the precision of a file, and torch's."""
FORMS = {
    "safetensors": "safetensors",
    "ckpt": "safetensors",
    "pt": "safetensors",
    "diffusers": "diffusers",
    "diffusers_safetensors": "diffusers",
}
"""What is written for sd-scripts' `save_model_as`: never a pickle."""


class Refused(ValueError):
    """The error of a job that cannot begin, with all its `reasons`."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True)
class Job:
    """One run. Raises `ValueError` at construction for whatever it does not support, all of it at once."""

    recipe: Recipe
    follow_links: bool = False
    """Whether pictures and captions may lie outside their folder, as with `sdnb.pictures`."""

    def __post_init__(self) -> None:
        from . import prepare
        from .models import refuse_pickle
        from .watch import trackers

        wrong = prepare.refusals(self.recipe, processes=processes.processes())
        for tried in (self._samples, self._begun, _steppable, trackers.check):  # without the model, whose loading may take long
            try:
                tried(self.recipe)
            except (ValueError, ImportError) as error:
                wrong.append(str(error))
        if self.recipe.save_model_as is not None and self.recipe.save_model_as not in FORMS:
            wrong.append(f"save_model_as={self.recipe.save_model_as}: there are {', '.join(FORMS)}")
        if self.recipe.vae:
            try:
                refuse_pickle(Path(self.recipe.vae).expanduser())
            except ValueError as error:
                wrong.append(f"vae: {error}")
        for name, what in {
            "pretrained_model_name_or_path": "the model to start from, such as sd15, or a file",
            "output_dir": "the folder for the result",
        }.items():
            if not getattr(self.recipe, name):
                wrong.append(f"{name} is missing: {what}")
        if not (self.recipe.train_data_dir or self.recipe.dataset_config or self.recipe.in_json):
            wrong.append("train_data_dir is missing: the folder of pictures, or dataset_config, a dataset file")
        folders = ("train_data_dir", "reg_data_dir", "in_json")
        for name in ("dataset_config",) if self.recipe.dataset_config else folders:
            place = getattr(self.recipe, name)
            if place and not _exists(place) and place not in _bundled():
                wrong.append(f"{name}={place!r} does not exist: give a folder or file that does")
        if wrong:
            raise Refused(wrong)
        files.check_name(self.result)
        if file := next((one for one in (self.folder, *self.folder.parents) if one.exists() and not one.is_dir()), None):
            raise ValueError(f"output_dir={self.recipe.output_dir!r} cannot be a folder, as {file} is a file: give another place")
        if not self.is_lora and self.result.exists() and not self._is_finished(self.recipe.max_train_steps):
            raise ValueError(f"{self.result} exists: give another output_name, or move the old one away")
        if self.is_lora and (file := self._of_others()):
            raise ValueError(
                f"{file} exists, and no save of this job lies beside it: this would write over it, as sd-scripts does. Give another "
                "output_name, or move the old one away"
            )

    def _of_others(self) -> Path | None:
        """A file that this job would write over and that no run of it has written; None where there is none.

        A job of its own has saves, and may be started again as often as one likes.
        """
        if saves.found(self.saves) or not self.folder.is_dir():
            return None
        names = re.compile(f"({'|'.join([re.escape(self.name), *self._numbered])})\\.safetensors")
        return next((path for path in sorted(self.folder.iterdir()) if names.fullmatch(path.name)), None)

    @property
    def _numbered(self) -> list[str]:
        """Patterns for the names of the models that are saved on the way, without their ending."""
        return [rf"{re.escape(self.of_step(0).stem[:-8])}\d{{8,}}", rf"{re.escape(self.of_epoch(0).stem[:-6])}\d{{6,}}"]

    def _is_finished(self, steps: int) -> bool:
        """Whether a run of so many steps, or of epochs whose number is not known yet, came to its end."""
        last = saves.latest(self.saves)
        return last is not None and (bool(self.recipe.max_train_epochs) or last.steps >= steps)

    @property
    def is_lora(self) -> bool:
        """Whether adapters are trained."""
        return self.recipe.wants_lora

    @property
    def is_single(self) -> bool:
        """Whether the result is one file, rather than a folder in diffusers' format."""
        form = FORMS.get(self.recipe.save_model_as or "")
        begins_as_file = str(self.recipe.pretrained_model_name_or_path).endswith(".safetensors")
        return self.is_lora or form == "safetensors" or (form is None and begins_as_file)

    @property
    def folder(self) -> Path:
        """Folder of everything that the job writes."""
        return Path(self.recipe.output_dir or ".").expanduser()

    @property
    def name(self) -> str:
        """Name of the result, without its ending."""
        return self.recipe.output_name or "last"  # sd-scripts' own word for it

    @property
    def saves(self) -> Path:
        """Folder of the saves, from which an interrupted job goes on."""
        return self.folder / f"{self.name}-saves"

    @property
    def result(self) -> Path:
        """Path of the result: a LoRA's file, or the whole model as a folder or one file."""
        return self._named(self.name)

    def of_step(self, step: int) -> Path:
        """Path of the model after so many steps, by sd-scripts' name for it."""
        return self._named(f"{self.recipe.output_name or 'at'}-step{step:08d}")

    def of_epoch(self, epoch: int) -> Path:
        """Path of the model at the end of epoch `epoch`, the first being 1, by sd-scripts' name for it."""
        return self._named(f"{self.recipe.output_name or 'epoch'}-{epoch:06d}")

    def _named(self, name: str) -> Path:
        return self.folder / (f"{name}.safetensors" if self.is_single else name)

    def _samples(self, recipe: Recipe) -> saves.Samples | None:
        """The samples, which go where sd-scripts puts them, as tools that show them look there."""
        return saves.samples.of(recipe, self.folder / "sample", recipe.output_name or "")

    def _begun(self, recipe: Recipe) -> tuple[Recipe, saves.states.State | None]:
        """The recipe with the step and the adapters of the state that it resumes, and that state. Raises `ValueError` for a bad one."""
        if not recipe.resume:
            return recipe, None
        state, changes = saves.states.find(recipe.resume), {}
        if not state.is_ours and recipe.initial_step is None and recipe.initial_epoch is None and state.step:
            changes["initial_step"] = state.step
        if not state.is_ours and self.is_lora:
            if len(state.files) != 1:
                raise ValueError(f"resume={recipe.resume!r} has the weights of several models, not of one LoRA")
            changes["network_weights"] = str(state.files[0])
        return recipe.replace(resume=None, **changes), state

    def load(self) -> tuple[Model, Pictures, Recipe]:
        """The model, the pictures, and the recipe as the dataset file changes it. Raises `ValueError` where they do not go together."""
        import torch

        from .datasets import cache, pictures
        from .models import autoencoder, find_autoencoder, known_parts, load

        found = pictures(
            self.recipe.dataset_config or self.recipe.train_data_dir or self.recipe.in_json,
            recipe=self.recipe,
            follow_links=self.follow_links,
        )
        if processes.is_first() and not self.recipe.caption_extension and any(map(_reads_txt, found)):
            warnings.warn(
                "unlike sd-scripts, .txt files are read without caption_extension=.txt: there, .caption files alone are", stacklevel=3
            )
        recipe = cache.with_dataset_settings(found, self.recipe)
        cache.check_regularization(found, recipe)
        device, dtype = devices.default(), torch.float32
        precision = devices.computes_in(recipe.mixed_precision, device)
        if self.recipe.full_bf16 or (self.is_lora and precision == "bf16"):
            dtype = torch.bfloat16  # frozen weights need no more than what they are computed with
        elif self.is_lora and precision == "fp16":
            dtype = torch.float16
        dtypes = dict.fromkeys(known_parts(), dtype) | {"vae": torch.float32} if recipe.no_half_vae else dtype
        vae = find_autoencoder(recipe.vae) if recipe.vae else None
        sd = load(self.recipe.pretrained_model_name_or_path, device=device, dtype=dtypes)
        if vae is not None:
            sd.vae = autoencoder(vae, sd, dtype=sd.vae.dtype)
        for line in _of_model(sd, recipe):
            warnings.warn(line, stacklevel=2)
        return sd, found, recipe

    def run(self, *, resume: bool | str = "auto") -> Iterator[Step]:
        """Load, and return the steps, which train and write `result`. `resume` is that of `sdnb.train`.

        Raises, at once, what `load` and `sdnb.train` do, and `ValueError` for a model at `result` that this run would have to write over.
        """
        from .datasets import cache, validation
        from .lora import dataset_notes, metadata
        from .trainer import train

        processes.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        sd, found, recipe = self.load()
        recipe, state = self._begun(recipe)
        if state and state.is_ours and resume == "auto":
            resume = state.path
        elif state and not state.is_ours and not self.is_lora:
            state.put(sd)
        count, (pictures, held_out) = processes.processes(), validation.split(found, recipe)
        steps, started = cache.steps(sd, pictures, recipe, count), time.time()
        if (differing := cache.differences(pictures, recipe)) and processes.is_first():
            warnings.warn(f"unlike sd-scripts: {'; '.join(differing)}", stacklevel=2)

        timing = saves.Timing.of(Saves.of(recipe), steps, cache.epoch_steps(sd, pictures, recipe, count))
        before = saves.latest(self.saves) if resume is not False else None

        def notes(done: int, epoch: int) -> dict[str, object]:
            if recipe.no_metadata:
                return {**recipe.of_model}
            sizes, each = cache.datasets(sd, pictures, recipe), cache.batches(sd, pictures, recipe)
            found = metadata.of_training(
                recipe,
                of_data=dataset_notes.notes(recipe, pictures, sizes, processes=count, held_out=len(held_out)),
                resolution=next(iter(sizes.values()))[1].resolution,
                batches=each,
                processes=count,
                steps=steps,
                done=timing.number(done),
                epoch=epoch,
                started=started,
            )
            return found | recipe.of_model

        if not self.is_lora and self.result.exists() and (before is None or before.steps < timing.steps):
            raise ValueError(f"{self.result} exists: give another output_name, or move the old one away")
        self._check_room(timing, before.steps if before else 0)
        run = train(sd, found, recipe, steps=steps, save_to=self.saves, resume=resume, samples=self._samples(recipe) or ())
        return self._stored(sd, run, timing, notes, before)

    def _stored(
        self,
        sd: Model,
        run: Iterator[Step],
        timing: saves.Timing,
        notes: Callable[[int, int], dict[str, object]],
        before: saves.Save | None,
    ) -> Iterator[Step]:
        if processes.is_first():
            ending = r"\.safetensors" if self.is_single else ""
            files.sweep(self.folder, f"({'|'.join([re.escape(self.name), *self._numbered])}){ending}")
            if before:
                self._catch_up(sd, before, timing, notes)
        for step in run:
            if step.saved is not None:
                self._store_due(sd, self._due(timing, step.index + 1), step.index + 1, notes)
            yield step
        if processes.is_first():
            self._store(sd, self.result, notes(timing.steps, timing.epochs))

    def _due(self, timing: saves.Timing, done: int) -> list[tuple[Path, int, Path | None]]:
        """The models to write after step `done`: path, number of the epoch for its metadata, and the older one to delete."""
        due: list[tuple[Path, int, Path | None]] = []
        if step := timing.saved_step(done):
            old = timing.removed_step(step)
            due.append((self.of_step(step), (done - 1) // timing.per_epoch, None if old is None else self.of_step(old)))
        if epoch := timing.saved_epoch(done):
            old = timing.removed_epoch(epoch)
            due.append((self.of_epoch(epoch), epoch, None if old is None else self.of_epoch(old)))
        return due

    def _catch_up(self, sd: Model, before: saves.Save, timing: saves.Timing, notes: Callable[[int, int], dict[str, object]]) -> None:
        """Write the models that are due with a save, and delete the older ones, where the run was killed before it had."""
        from . import lora

        due = self._due(timing, before.steps)
        missing = [row for row in due if not row[0].exists()]
        if missing:
            parameters = {f"{part}.{name}": p for part, module in sd.parts.items() for name, p in module.named_parameters()}
            before.put(parameters | lora.scaled(sd, self.recipe))
            self._store_due(sd, missing, before.steps, notes)
        for *_, old in due:
            if old is not None:
                _delete(old)

    def _store_due(
        self, sd: Model, due: list[tuple[Path, int, Path | None]], done: int, notes: Callable[[int, int], dict[str, object]]
    ) -> None:
        for path, epoch, old in due:
            self._store(sd, path, notes(done, epoch))
            if old is not None:
                _delete(old)

    def _store(self, sd: Model, path: Path, notes: dict[str, object]) -> None:
        from . import lora

        if self.is_lora:
            lora.save(sd, path, form="kohya", dtype=self.recipe.save_precision, metadata=notes)
        elif not path.exists():
            import torch

            precision = self.recipe.save_precision if self.is_single else None
            sd.save(path, dtype=getattr(torch, PRECISIONS[precision]) if precision else None)

    def _check_room(self, timing: saves.Timing, done: int) -> None:
        """Raise `ValueError` for a whole model where this run, which goes on after step `done`, would write another."""
        ahead = [path for step in range(done + 1, timing.steps + 1) for path, *_ in self._due(timing, step)]
        if not self.is_lora and (there := next((path for path in ahead if path.exists()), None)):
            raise ValueError(f"{there} exists: give another output_name, or move the old one away")


def _steppable(recipe: Recipe) -> None:
    """Make the optimizer and its schedule for one number; what they refuse is raised, and what they warn of is left to the run."""
    import torch

    from . import optim

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = optim.optimizer(recipe, [torch.nn.Parameter(torch.zeros(1))])
        if not recipe.max_train_epochs:
            optim.schedule(recipe, optimizer, steps=recipe.max_train_steps)


def _delete(path: Path) -> None:
    """Delete a model if it is there. One that cannot be deleted stays, with a warning."""
    try:
        files.remove(path)
    except OSError as error:  # on Windows, when a program has it open
        warnings.warn(f"{path} was not deleted: {error.strerror}. Training goes on", RuntimeWarning, stacklevel=2)


def _of_model(sd: Model, recipe: Recipe) -> Iterator[str]:
    """What the model's files say of its noise and the recipe does not, or the other way around, in words."""
    said = sd.noise_scheduler.config["prediction_type"]
    if said == "v_prediction" and not recipe.v_parameterization:
        yield "this model's files say that it predicts v, and so it is trained; sd-scripts does so with v_parameterization only"
    if said != "v_prediction" and recipe.v_parameterization:
        yield f"v_parameterization: the model is trained to predict v, though its files say {said}"
    if recipe.zero_terminal_snr and said != "v_prediction" and not recipe.v_parameterization:
        yield "zero_terminal_snr: this model predicts the noise, and learns nothing at the last level; add v_parameterization"
    if sd.noise_scheduler.config.get("rescale_betas_zero_snr") and not recipe.zero_terminal_snr:
        yield "this model's files have noise levels up to pure noise, and so it is trained; sd-scripts does so with zero_terminal_snr only"


def _reads_txt(picture: Picture) -> bool:
    """Whether a picture's caption is in a .txt file that sd-scripts would not look for."""
    return not picture.subset and picture.path.with_suffix(".txt").exists() and not picture.path.with_suffix(".caption").exists()


def _exists(place: str) -> bool:
    try:
        return Path(place).expanduser().exists()
    except (OSError, RuntimeError):  # a name too long, or the ~ of a user that is not there
        return False


def _bundled() -> tuple[str, ...]:
    from .datasets import BUNDLED

    return BUNDLED
