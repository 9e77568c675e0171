"""One full fine-tune of tiny after another, from the same weights: what the benchmarks of learning compare."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch.nn.utils import clip_grad_norm_

import sdnb
from sdnb import optim, training

SPIKE = 1000
"""How many times as large the gradients of a spike are."""


@dataclass(frozen=True)
class Clipping:
    """Gradients are scaled down to a norm: of all of them together (`global`), or of each (`tensor`)."""

    kind: str = "off"
    norm: float = 0.0

    def __call__(self, parameters: list[torch.nn.Parameter]) -> None:
        if self.kind == "global":
            clip_grad_norm_(parameters, self.norm)
        elif self.kind == "tensor":
            for parameter in parameters:
                clip_grad_norm_([parameter], self.norm)

    def __str__(self) -> str:
        return self.kind if self.kind == "off" else f"{self.kind} {self.norm:g}"


@dataclass(frozen=True)
class Result:
    """What came of one run."""

    held_out: float
    """Mean loss over pictures that were not trained on, at noise and levels common to all runs."""
    losses: list[float]
    norms: list[float]
    """Global gradient norms, before clipping."""
    over: float
    """The share of weight tensors and steps whose own norm was above 1."""


class Bench:
    """The model, the pictures and the judge, loaded once."""

    def __init__(self) -> None:
        self.sd = sdnb.load("tiny")
        self.sd.unet.train()
        self.start = copy.deepcopy(self.sd.unet.state_dict())
        self.pictures = sdnb.pictures("emoji-ink")
        judge = training.Cache(self.sd, sdnb.pictures("emoji-ink/held_out"), sdnb.Recipe(train_batch_size=32, seed=99))
        self._judges = [judge.batch(number) for number in range(8)]
        self._cache = training.Cache(self.sd, self.pictures, sdnb.Recipe())

    @torch.no_grad()
    def held_out_loss(self) -> float:
        recipe = sdnb.Recipe()
        return sum(training.denoising_loss(self.sd, batch, recipe).item() for batch in self._judges) / len(self._judges)

    def run(
        self,
        recipe: sdnb.Recipe,
        clipping: Clipping | None = None,
        make: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
        spike_at: int | None = None,
    ) -> Result:
        """Train from the start by `recipe`, its clipping replaced by `clipping` and its optimizer by what `make` makes.

        In the step `spike_at`, counted from 0, all gradients are `SPIKE` times as large.
        """
        self.sd.unet.load_state_dict(self.start)
        parameters = list(self.sd.unet.parameters())
        optimizer = make(parameters) if make else optim.optimizer(recipe, parameters)
        schedule = optim.schedule(recipe, optimizer, steps=recipe.max_train_steps)
        self._cache.recipe = replace(recipe)
        losses, norms, over = [], [], 0
        for step in range(recipe.max_train_steps):
            loss = training.denoising_loss(self.sd, self._cache.batch(step), recipe)
            (loss * (SPIKE if step == spike_at else 1)).backward()
            own = torch.stack(torch._foreach_norm([p.grad for p in parameters]))
            norms.append(own.norm().item())
            over += int((own > 1).sum())
            (clipping or Clipping())(parameters)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return Result(self.held_out_loss(), losses, norms, over / (len(parameters) * recipe.max_train_steps))
