"""`Keeper`: where and when a run is saved and drawn with, and what it goes on from."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..system import devices, files, processes
from . import folders, owners, packing
from .claims import Claim
from .previews import previews
from .samples import Plain, Samples
from .samples import of as samples_of
from .timing import Timing

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..recipe import Recipe

KEPT = 2
"""Saves, where neither the caller nor the recipe says how many."""


@dataclass
class Keeper:
    """Where and when a run is saved, and drawn with."""

    folder: Path
    timing: Timing
    keep: int | None
    resume: bool | str | Path
    samples: Samples | None
    owner: dict[str, Any] = field(default_factory=dict)
    save: folders.Save | None = None
    replaced: tuple[Path, ...] = ()
    claim: Claim | None = None
    """Held by the process that writes."""

    @classmethod
    def made(cls, recipe: Recipe, folder, every, keep, resume, samples, sample_every, timing: Timing) -> Keeper | None:
        """The keeper for `train`'s arguments; None without `save_to`. Raises `ValueError` for bad values, `OSError` for a bad folder."""
        if resume not in (True, False, "auto") and not isinstance(resume, Path):
            raise ValueError(f'resume={resume!r}: it must be True, False, "auto", or the Path of a save')
        if folder is None:
            for name, value in {"resume": resume is True, "save_every": every, "keep": keep, "samples": samples}.items():
                if value:
                    raise ValueError(f"{name} needs save_to, the folder for the saves")
            return None
        for name, value in {"save_every": every, "keep": keep, "sample_every": sample_every}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}: it must be 1 or more, or None")
        settings = timing.settings
        if every is not None:
            settings = replace(settings, save_every_n_steps=every)
        if sample_every is not None:
            settings = replace(settings, sample_every_n_steps=sample_every, sample_every_n_epochs=None)
        place = Path(folder).expanduser() / folders.SAMPLES
        if not isinstance(samples, Samples):
            samples = Samples(tuple(map(Plain, samples)), place) if samples else samples_of(settings, place)
        claim = None
        folder = folders.prepare(folder) if processes.is_first() else Path(folder).expanduser()
        if processes.is_first():
            claim = Claim(folder)
            folders.clear(folder)
        return cls(folder, replace(timing, settings=settings), keep, resume, samples, claim=claim)

    def release(self) -> None:
        """Let another run have the folder."""
        if self.claim is not None:
            self.claim.release()

    def find(self, run) -> None:
        """The save to go on from. Raises `ValueError` for one that is damaged or of another run, and where the state could not be saved."""
        packing.pack(run.progress(None), "progress", {})
        self.owner = owners.owner(
            run.recipe,
            run.sd,
            run.chosen,
            run.pictures,
            processes=processes.processes(),
            are_whole=run.epochs.are_whole,
            shown_otherwise=run.shown_otherwise,
        )
        if self.resume is False:
            self.replaced = tuple(folders.found(self.folder))
            return
        self.save = folders.latest(self.folder)
        if self.save is None and isinstance(self.resume, Path):
            self.save = folders.read(self.resume)
        if self.save is None:
            if self.resume is True:
                raise ValueError(f'{self.folder} holds no save to go on from: leave resume="auto"')
            return
        try:
            others = owners.differences(self.save.state["owner"], self.owner)
        except folders.DAMAGE as error:
            raise self.save.damaged(f"its run is not known, {error!r}") from error
        if others:
            raise ValueError(
                f"{self.save.path.parent} holds the saves of another run: {'; '.join(others)}. Give another folder for save_to, or start "
                "anew there, replacing them, with resume=False"
            )
        if self.save.steps > run.steps:
            raise ValueError(
                f"{self.save.path} is beyond the {run.steps} steps asked for: ask for {self.save.steps} or more, give another folder "
                "for save_to, or start anew with resume=False"
            )
        self.save.check(run.kept)
        if not self.save.has_checksums and processes.is_first():
            warnings.warn(f"{self.save.path} was written before saves had checksums: this run goes on from it unchecked", stacklevel=3)
        if self.save.steps == run.steps and processes.is_first():
            warnings.warn(f"{self.save.path} is of the last step: nothing is left to train", stacklevel=3)

    def store(self, run, done: int, accelerator: Accelerator) -> Path | None:
        """Save after `done` steps, and return where. A failure is warned of, and raised after the last step.

        Raises `RuntimeError` for a folder that a later run of this process has taken.
        """
        if self.claim is not None and self.claim.is_lost:
            raise RuntimeError(f"a later run of this process writes to {self.folder} now, and this one can save nothing there any more")
        progress = run.progress(accelerator)
        path, failure = None, None
        if accelerator.is_main_process:
            owner = {**self.owner, "settings": {**self.owner["settings"], "seed": run.recipe.seed}}
            try:
                path = folders.write(self.folder, steps=done, weights=run.kept, progress=progress, owner=owner)
            except folders.SaveFailed as error:
                failure = error
            else:
                for old in self.replaced:
                    if old != path and old.exists():
                        folders.remove(old)
                self.replaced = ()
                keeps = partial(self.timing.keeps, done=done) if self.keep is None and self.timing.says_what_is_kept else None
                folders.prune(self.folder, keep=self.keep or KEPT, keeps=keeps)
        accelerator.wait_for_everyone()
        if failure is not None:
            if done == run.steps:
                raise failure
            warnings.warn(f"{failure.strerror}. Training goes on", RuntimeWarning, stacklevel=2)
        return path

    def draw(self, run, done: int, accelerator: Accelerator) -> tuple[Path, ...]:
        """The samples after `done` steps, if they are due."""
        if self.samples is None or not self.timing.is_drawn(done) or not accelerator.is_main_process:
            return ()
        pictures, paths = [], []
        with torch.random.fork_rng(devices=devices.gpus(accelerator.device)):
            try:
                drawings = [prompt.drawing(sampler=self.samples.sampler, clip_skip=run.clip_skip) for prompt in self.samples.prompts]
                for picture in previews(run.sd, drawings, accelerator.device):
                    pictures.append(picture)
            except torch.OutOfMemoryError:
                warnings.warn(f"no memory for the samples of step {done}: ask for fewer. Training goes on", RuntimeWarning, stacklevel=2)
        for place, picture in enumerate(pictures):
            content = io.BytesIO()
            picture.save(content, format="PNG")
            try:
                path = self.samples.path(place, self.timing.number(done), self._drawn_epoch(done))
                paths.append(files.write(path, content.getvalue()))
            except OSError as error:
                warnings.warn(f"a sample of step {done} was not kept: {error}. Training goes on", RuntimeWarning, stacklevel=2)
        return tuple(paths)

    def draw_missing(self, run, done: int, accelerator: Accelerator) -> tuple[Path, ...]:
        """The samples after `done` steps that are due and not there: before the first step, or when the run was killed before them."""
        if self.samples is None or self.samples.is_there(self.timing.number(done), self._drawn_epoch(done)):
            return ()
        return self.draw(run, done, accelerator)

    def _drawn_epoch(self, done: int) -> int | None:
        """The epoch that samples are named after, if they are drawn by epochs; 0 before the first step."""
        if done == self.timing.first:
            return 0
        return self.timing.epoch_ended(done) if self.timing.settings.drawn_every_epochs else None
