"""Validation: the pictures held out from training, and the batches on which the model is tried.

The pictures and the noise levels are those of sd-scripts' train_network.py: a share of each folder, the same for the same seed, each batch
at four levels evenly spaced over those that training draws from. The noise is the same every time, so that the losses can be compared.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .cache import Batch, Cache, recipe_of
from .folders import Picture, Pictures, balanced

if TYPE_CHECKING:
    from ..models import Model
    from ..recipe import Recipe

LEVELS = 4
"""Noise levels at which each batch is tried."""


def seed_of(recipe: Recipe) -> int:
    """Seed of the split and of validation's noise: `validation_seed`, or else the run's; 0 where that is drawn."""
    return recipe.validation_seed if recipe.validation_seed is not None else recipe.seed or 0


def halves(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Which of `count` pictures are trained on, and which are held out. Each half is rounded on its own, so one picture may be in both.

    >>> halves(6, 0.4, seed=1)
    ([2, 3, 5, 0], [4, 1])
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order[: math.ceil(count * (1 - share))], order[count - round(count * share) :]


def split(pictures: Sequence[Picture], recipe: Recipe) -> tuple[Sequence[Picture], tuple[Picture, ...]]:
    """The pictures to train on, and those held out by `validation_split`: a share of each folder. The first keep their order.

    Regularization pictures are not held out; fewer of them are shown where there are fewer others. sd-scripts does not split fine-tuning
    metadata: all its pictures are trained on, and the model is tried on all of them. Raises `ValueError` if no picture is left to train on.
    """
    if not any(recipe_of(picture, recipe).validation_split for picture in pictures):
        return pictures, ()
    kept, held_out, groups = [], [], []
    for group in getattr(pictures, "groups", ()) or (tuple(pictures),):
        folders: dict[Path, list[Picture]] = {}
        for picture in group:
            if not picture.is_reg:
                folders.setdefault(picture.path.parent, []).append(picture)
        trained = set()
        for found in folders.values():
            own = recipe_of(found[0], recipe)
            everything = list(range(len(found)))
            first, second = halves(len(found), own.validation_split, seed_of(own)) if own.validation_split else (everything, [])
            if own.validation_split and _is_metadata(found[0], own):
                first, second = everything, everything
            trained |= {id(found[place]) for place in first}
            held_out += [replace(found[place], repeats=1) for place in second]
        groups.append(tuple(picture for picture in group if picture.is_reg or id(picture) in trained))
        kept += balanced(groups[-1])
    if not any(not picture.is_reg for picture in kept):
        raise ValueError(f"validation_split={recipe.validation_split:g} leaves no picture to train on: lower it")
    return Pictures(tuple(kept), groups=tuple(groups)), tuple(held_out)


def _is_metadata(picture: Picture, recipe: Recipe) -> bool:
    """Whether a picture comes from fine-tuning metadata."""
    return picture.subset.metadata_file is not None if picture.subset else recipe.in_json is not None


def is_due(recipe: Recipe, done: int, steps: int, each: int) -> bool:
    """Whether the model is tried after `done` of `steps` steps, of which an epoch has `each`.

    That is after every `validate_every_n_steps`, and after each epoch or each `validate_every_n_epochs` of them, the last and unfinished
    one included.
    """
    if recipe.validate_every_n_steps and done % recipe.validate_every_n_steps == 0:
        return True
    ends = done % each == 0 or done == steps
    return ends and math.ceil(done / each) % (recipe.validate_every_n_epochs or 1) == 0


class Validation:
    """The batches on which a model is tried, the same every time."""

    def __init__(self, sd: Model, pictures: Sequence[Picture], recipe: Recipe, *, embeds: bool = True) -> None:
        self.seed = seed_of(recipe)
        self.cache = Cache(sd, pictures, recipe.replace(seed=self.seed), embeds=embeds)
        groups = []
        for members in self.cache.members.values():
            each = self.cache.recipe_of(members[0]).train_batch_size
            groups += [members[start : start + each] for start in range(0, len(members), each)]
        self.groups = groups[: recipe.max_validation_steps]
        """The pictures of each batch, all of one size."""
        least, most = self.cache.noises.range
        self.levels = [int(least + (most - least) * place / (LEVELS + 1)) for place in range(1, LEVELS + 1)]

    def batches(self, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """One process's share of the batches, each at every level."""
        noises, generator = self.cache.noises, torch.Generator().manual_seed(self.seed)
        for number, group in enumerate(self.groups):
            batch = self.cache.of(group, number)
            shape, latents = tuple(batch.latents.shape), batch.latents.cpu()
            for level in self.levels:  # all processes draw all noise, so that it does not depend on their number
                noise, offsets = torch.randn(shape, generator=generator), noises.offsets(shape, generator)
                noise, perturbed = noises.finished(noise, offsets, latents, generator)
                if number % processes == process:
                    t = torch.full((len(group),), level)
                    yield replace(batch, noise=noise, perturbed=perturbed, t=t).to(batch.latents.device)
