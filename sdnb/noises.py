"""Noise and noise levels as a recipe asks for them, in sd-scripts' settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    from .recipe import Recipe


@dataclass(frozen=True)
class Noises:
    """What is drawn for each batch. Raises `ValueError` for values that mean nothing."""

    noise_offset: float | None = None
    noise_offset_random_strength: bool = False
    adaptive_noise_scale: float | None = None
    multires_noise_iterations: int | None = None
    multires_noise_discount: float = 0.3
    ip_noise_gamma: float | None = None
    ip_noise_gamma_random_strength: bool = False
    min_timestep: int | None = None
    max_timestep: int | None = None
    levels: int = 1000
    """How many noise levels the model's scheduler has."""

    def __post_init__(self) -> None:
        least, most = self.range
        if not 0 <= least <= most <= self.levels or least == self.levels:
            raise ValueError(
                f"min_timestep={self.min_timestep}, max_timestep={self.max_timestep}: they must lie between 0 and {self.levels}, in order"
            )
        if self.noise_offset_random_strength and not self.noise_offset:
            raise ValueError("noise_offset_random_strength needs noise_offset, such as 0.1")
        if self.adaptive_noise_scale is not None and not self.noise_offset:
            raise ValueError("adaptive_noise_scale needs noise_offset, such as 0.1")
        if self.ip_noise_gamma_random_strength and not self.ip_noise_gamma:
            raise ValueError("ip_noise_gamma_random_strength needs ip_noise_gamma, such as 0.1")
        if (self.multires_noise_iterations or 0) < 0:
            raise ValueError(f"multires_noise_iterations={self.multires_noise_iterations}: it must be 1 or more")

    @classmethod
    def of(cls, recipe: Recipe, levels: int = 1000) -> Noises:
        """What `recipe` asks for."""
        said = {name: value for name, value in recipe.others if name in cls.__dataclass_fields__}
        return cls(**said, noise_offset=recipe.noise_offset, levels=levels)

    @property
    def range(self) -> tuple[int, int]:
        """The levels that are drawn from: the first, and the one after the last; twice the same is that level alone."""
        return self.min_timestep or 0, self.levels if self.max_timestep is None else self.max_timestep

    def t(self, pictures: int, generator: Generator) -> Tensor:
        """Noise levels (B,)."""
        least, most = self.range
        return torch.randint(least, most if least < most else most + 1, (pictures,), generator=generator)

    def offsets(self, shape: tuple[int, ...], generator: Generator) -> tuple[float | Tensor, Tensor] | None:
        """How much lighter or darker the noise of each channel is made: a strength, and (B, C, 1, 1) that it multiplies."""
        if not self.noise_offset:
            return None
        strength = self.noise_offset
        if self.noise_offset_random_strength:
            strength = strength * torch.rand(1, generator=generator)
        return strength, torch.randn((*shape[:2], 1, 1), generator=generator)

    def finished(
        self, noise: Tensor, offsets: tuple[float | Tensor, Tensor] | None, latents: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor | None]:
        """The noise that is to be predicted, and that which the latents get, if it is another: (B, C, h, w) each.

        With `multires_noise_iterations` it is brought back to a variance of 1 over the whole batch, that of all processes.
        """
        if offsets is not None:
            strength, directions = offsets
            if self.adaptive_noise_scale is not None:
                lightness = latents.mean((2, 3), keepdim=True).abs()
                strength = (strength + self.adaptive_noise_scale * lightness).clamp(min=0)
            noise = noise + strength * directions
        if self.multires_noise_iterations:
            noise = pyramid(noise, self.multires_noise_iterations, self.multires_noise_discount, generator)
        if not self.ip_noise_gamma:
            return noise, None
        strength = self.ip_noise_gamma
        if self.ip_noise_gamma_random_strength:
            strength = strength * torch.rand(1, generator=generator)
        return noise, noise + strength * torch.randn(noise.shape, generator=generator)


def pyramid(noise: Tensor, iterations: int, discount: float, generator: Generator) -> Tensor:
    """Noise of several scales (Whitaker 2023): each is two to four times coarser than the one before, to a power that grows, and weighs
    `discount` times as much; brought back to a variance of 1.
    """
    height, width = noise.shape[2:]
    for power in range(iterations):
        ratio = 2 + 2 * torch.rand(1, generator=generator).item()
        size = max(1, int(height / ratio**power)), max(1, int(width / ratio**power))
        coarse = torch.randn((*noise.shape[:2], *size), generator=generator)
        noise = noise + discount**power * torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        if 1 in size:
            break
    return noise / noise.std()
