"""`Timing`: after which steps of a run a model is saved, an older file of it deleted, and samples drawn, as sd-scripts counts them.

An epoch is a whole number of optimizer steps, as the last batches of an epoch make a step of their own. A run may end inside its last
epoch. The model of the end has a file of its own, so it gets none as the model of its last epoch; as that of its last step it does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..sections import Saves


@dataclass(frozen=True)
class Timing:
    """The calendar of one run, in steps of a run from the very beginning."""

    settings: Saves
    steps: int
    """The last step."""
    per_epoch: int
    """Optimizer steps of an epoch."""
    first: int = 0
    """Steps that count as done before the first."""
    uncounted: int = 0
    """Steps before the one that files call the first: sd-scripts counts from the epoch in which a run begins."""

    @classmethod
    def of(cls, settings: Saves, steps: int, per_epoch: int) -> Timing:
        """The calendar of a run that begins as `settings` say; without them, `steps` steps from the beginning.

        A run that begins later begins with its epoch, or with `skip_until_initial_step` inside it, and ends with its last epoch. Raises
        `ValueError` for one that would begin after its end.
        """
        initial = settings.initial_step
        if initial is None:
            initial = ((settings.initial_epoch or 1) - 1) * per_epoch
        if initial >= steps:
            raise ValueError(f"the run would begin after step {initial} and has {steps}: raise max_train_steps, or lower initial_step")
        epoch = initial // per_epoch
        last = math.ceil(steps / per_epoch) * per_epoch if epoch else steps
        first = initial if settings.skip_until_initial_step else epoch * per_epoch
        return cls(settings, last, per_epoch, first, epoch * per_epoch)

    @property
    def epochs(self) -> int:
        """The number of the last epoch."""
        return math.ceil(self.steps / self.per_epoch)

    def number(self, done: int) -> int:
        """Step `done` as files call it."""
        return done - self.uncounted

    @property
    def every_n_epochs(self) -> int | None:
        """Epochs between two saved models. `save_n_epoch_ratio`, the least number of files, wins over `save_every_n_epochs`."""
        ratio = self.settings.save_n_epoch_ratio
        if ratio is not None and ratio > 0:
            return self.epochs // ratio or 1
        return self.settings.save_every_n_epochs

    def epoch_ended(self, done: int) -> int | None:
        """The number, from 1, of the epoch that ends with step `done`; None inside an epoch."""
        if done == self.steps:
            return self.epochs
        return done // self.per_epoch if done and done % self.per_epoch == 0 else None

    def saved_step(self, done: int) -> int | None:
        """The number of the step as whose model the model is saved after step `done`."""
        every, number = self.settings.save_every_n_steps, self.number(done)
        return number if every and number > 0 and number % every == 0 else None

    def saved_epoch(self, done: int) -> int | None:
        """The number of the epoch as whose model the model is saved after step `done`."""
        every, epoch = self.every_n_epochs, self.epoch_ended(done)
        return epoch if every and epoch and epoch < self.epochs and epoch % every == 0 else None

    def removed_step(self, number: int) -> int | None:
        """The number of the step whose file is deleted once that of step `number` is written."""
        every, last = self.settings.save_every_n_steps, self.settings.save_last_n_steps
        if last is None or not every:
            return None
        oldest = number - last - 1
        return oldest - oldest % every if oldest >= 0 else None

    def removed_epoch(self, epoch: int) -> int | None:
        """The epoch whose file is deleted once that of `epoch` is written."""
        every, last = self.every_n_epochs, self.settings.save_last_n_epochs
        if last is None or not every:
            return None
        return epoch - every * last if epoch >= every * last else None

    def is_saved(self, done: int) -> bool:
        """Whether the run is saved after step `done`."""
        return done == self.steps or self.saved_step(done) is not None or self.saved_epoch(done) is not None

    @property
    def says_what_is_kept(self) -> bool:
        """Whether the settings say which saves of the run are kept: how many of them, or that sd-scripts' states are wanted."""
        return self.settings.save_state or any(last is not None for _, last in self._kept())

    def keeps(self, step: int, done: int) -> bool:
        """Whether the save of an earlier step is kept once that of step `done` is there, as sd-scripts keeps its states.

        With `save_state` a save is kept for ever where no setting says how long; without it, until the next.
        """
        (_, steps), (every, epochs) = self._kept()
        epoch, default = self.saved_epoch(step), self.settings.save_state
        if self.saved_step(step):
            newest = done - self.number(done) % (self.settings.save_every_n_steps or 1)
            if default if steps is None else step >= newest - steps:
                return True
        if epoch and every:
            newest = min(done // self.per_epoch, self.epochs - 1) // every * every
            return default if epochs is None else epochs < 0 or epoch > newest - every * epochs
        return False

    def _kept(self) -> tuple[tuple[int | None, int | None], tuple[int | None, int | None]]:
        """For steps and for epochs: how many lie between two saves, and how many of them back saves are kept."""
        it = self.settings
        steps, epochs = it.save_last_n_steps_state or it.save_last_n_steps, it.save_last_n_epochs_state or it.save_last_n_epochs
        every, every_epochs = it.save_every_n_steps, self.every_n_epochs
        return (every, steps if every else None), (every_epochs, epochs if every_epochs else None)

    def is_drawn(self, done: int) -> bool:
        """Whether samples are drawn after step `done`, or before the first. Epochs win over steps, and 0 or less is never."""
        if done == self.first:
            return self.settings.sample_at_first
        if every := self.settings.drawn_every_epochs:
            return bool((epoch := self.epoch_ended(done)) and epoch % every == 0)
        return bool((every := self.settings.drawn_every_steps) and self.number(done) % every == 0)
