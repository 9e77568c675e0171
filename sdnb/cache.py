"""Pictures and captions as a model trains on them: encoded once, and dealt out in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .data import Picture
    from .models import StableDiffusion
    from .recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """What a step trains on. Made by `Cache`, or by hand."""

    latents: Tensor
    """Scaled latents x_0 (B, C, h, w)."""
    context: Tensor
    """Text embeddings (B, 77, D)."""
    noise: Tensor
    """(B, C, h, w)"""
    t: Tensor
    """Noise levels (B,), from 0, almost clean, to 999, almost pure noise."""
    added: dict[str, Tensor] | None = None
    """What SDXL's U-Net is told besides: `text_embeds` (B, 1280) and `time_ids` (B, 6)."""

    def __getitem__(self, part: slice) -> Batch:
        added = self.added and {name: value[part] for name, value in self.added.items()}
        return Batch(self.latents[part], self.context[part], self.noise[part], self.t[part], added)


class Cache:
    """The pictures as latent distributions and the captions as embeddings, both computed once: the parts that make them are frozen."""

    def __init__(self, sd: StableDiffusion, pictures: Sequence[Picture], recipe: Recipe) -> None:
        size = recipe.resolution or sd.resolution
        means, deviations = [], []
        with torch.no_grad():
            for start in range(0, len(pictures), 8):
                pixels = torch.stack([picture.pixels(size) for picture in pictures[start : start + 8]])
                posterior = sd.vae.encode(pixels.to(sd.vae.device, sd.vae.dtype)).latent_dist
                means.append(posterior.mean.float() * sd.vae.config.scaling_factor)
                deviations.append(posterior.std.float() * sd.vae.config.scaling_factor)
        self.mean, self.deviation = torch.cat(means), torch.cat(deviations)  # (N, C, h, w)
        captions = [picture.caption for picture in pictures]
        unique = sorted({*captions, ""})
        rows = {caption: row for row, caption in enumerate(unique)}
        self.embeddings = torch.cat([sd.embed(unique[start : start + 32]) for start in range(0, len(unique), 32)])
        self.rows = torch.tensor([rows[caption] for caption in captions])
        self.empty = rows[""]
        self.recipe = recipe
        self.levels = sd.noise_scheduler.config.num_train_timesteps

    def batch(self, number: int, process: int = 0, processes: int = 1) -> Batch:
        """Batch `number` of the run, or one process's share of it. The same number gives the same batch, on any number of processes
        that share it."""
        recipe, each = self.recipe, self.recipe.train_batch_size
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
        chosen = self._order(number * each * processes, each * processes)
        shape = (len(chosen), *self.mean.shape[1:])
        t = torch.randint(self.levels, (len(chosen),), generator=generator)
        noise = torch.randn(shape, generator=generator)
        jitter = torch.randn(shape, generator=generator)
        if recipe.noise_offset:
            noise = noise + recipe.noise_offset * torch.randn((*shape[:2], 1, 1), generator=generator)
        rows = self.rows[chosen]
        if recipe.caption_dropout_rate:
            rows = rows.where(torch.rand(len(chosen), generator=generator) >= recipe.caption_dropout_rate, self.empty)
        share = slice(process * each, (process + 1) * each)
        device, chosen = self.mean.device, chosen[share]
        return Batch(
            latents=self.mean[chosen.to(device)] + self.deviation[chosen.to(device)] * jitter[share].to(device),
            context=self.embeddings[rows[share].to(device)].float(),
            noise=noise[share].to(device),
            t=t[share].to(device),
        )

    def _order(self, start: int, count: int) -> Tensor:
        """The pictures at positions start, start + 1, … of an endless sequence of epochs, each shuffled anew."""
        size, chosen = len(self.rows), []
        for position in range(start, start + count):
            epoch, place = divmod(position, size)
            if not chosen or place == 0:
                shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(self.recipe.seed * 7_919 + epoch))
            chosen.append(shuffled[place])
        return torch.stack(chosen)
