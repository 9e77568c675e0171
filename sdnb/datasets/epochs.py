"""`Epochs`: which pictures are in which batch of a run.

An epoch shows each bucket's pictures in a new order, `train_batch_size` at a time. What is left over makes a smaller batch, which may come
anywhere among the bucket's, and the buckets take turns at random, as in sd-scripts. So 5 pictures in batches of 2 are, for example, batches
of 2, 1 and 2, and in the next epoch all 5 come again. With `gradient_accumulation_steps` an epoch's last step may have fewer batches.

Several processes take an epoch's batches in turns. Where they cannot share them evenly, the first ones are shown again. Both is what
accelerate does for sd-scripts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Epochs:
    """An endless sequence of epochs, the same for the same seed."""

    buckets: Sequence[Sequence[int]]
    """The pictures that an epoch shows, of each bucket."""
    sizes: Sequence[int]
    """Pictures in a whole batch, of each bucket."""
    seed: int = 0
    processes: int = 1
    """Processes that share the batches."""
    rounds: int = 1
    """Batches of a process in one optimizer step (`gradient_accumulation_steps`)."""

    @cached_property
    def counts(self) -> list[int]:
        """Batches in an epoch, of each bucket."""
        return [math.ceil(len(shown) / size) for shown, size in zip(self.buckets, self.sizes, strict=True)]

    @property
    def batches(self) -> int:
        """One process's batches in an epoch."""
        return math.ceil(sum(self.counts) / self.processes)

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return math.ceil(self.batches / self.rounds)

    @property
    def are_whole(self) -> bool:
        """Whether all batches and all steps of an epoch are of one size, and shared evenly."""
        left = [len(shown) % size for shown, size in zip(self.buckets, self.sizes, strict=True)]
        alike = self.processes == 1 or len(self.buckets) == 1
        return alike and not any(left) and not sum(self.counts) % (self.processes * self.rounds)

    def numbers(self, step: int) -> range:
        """The numbers of the batches that optimizer step `step` of the run learns from, the first step being 0."""
        epoch, place = divmod(step, self.steps)
        first, end = epoch * self.batches, (epoch + 1) * self.batches
        return range(first + place * self.rounds, min(first + (place + 1) * self.rounds, end))

    def step(self, number: int) -> int:
        """The optimizer step that learns from batch `number`."""
        epoch, place = divmod(number, self.batches)
        return epoch * self.steps + place // self.rounds

    def shares(self, number: int) -> list[list[int]]:
        """The pictures of batch `number` of the run, for each process."""
        epoch, place = divmod(number, self.batches)
        return [self._batch(epoch, (place * self.processes + process) % sum(self.counts)) for process in range(self.processes)]

    def _batch(self, epoch: int, place: int) -> list[int]:
        """The pictures of the batch at this place of an epoch."""
        turns = torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts))
        if len(self.buckets) > 1:
            turns = turns[torch.randperm(len(turns), generator=torch.Generator().manual_seed(self.seed * 6_007 + epoch))]
        bucket = int(turns[place])
        turn = int((turns[:place] == bucket).sum())
        shown, size = self.buckets[bucket], self.sizes[bucket]
        generator = torch.Generator().manual_seed(self.seed * 7_919 + epoch + bucket * 15_485_863)
        order, start, left = torch.randperm(len(shown), generator=generator), turn * size, len(shown) % size
        if left:  # one batch has no more than what is left
            smaller = int(torch.randint(self.counts[bucket], (1,), generator=generator))
            start -= size - left if turn > smaller else 0
            size = left if turn == smaller else size
        return [shown[i] for i in order[start : start + size].tolist()]
