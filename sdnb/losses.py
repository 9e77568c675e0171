"""Noising, targets and loss weights as pure functions of tensors; then a recipe's loss and noise, and a model's diffusion process.

The letters are those of Salimans & Ho 2022: x_t = alpha_t * x_0 + sigma_t * noise, where alpha_t² = alphas_cumprod[t], which DDPM (Ho et
al. 2020) writes with a bar, and sigma_t² = 1 - alphas_cumprod[t].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Generator, Tensor

from . import sections

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def alpha_sigma(alphas_cumprod: Tensor, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Share of picture and share of noise at steps `t` (B,): two tensors (B, 1, …, 1) that multiply `like` (B, …)."""
    signal = alphas_cumprod.to(like.device)[t].view(-1, *[1] * (like.ndim - 1))  # alpha_t²
    return signal.sqrt().to(like.dtype), (1 - signal).sqrt().to(like.dtype)


def add_noise(x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t, the picture `x_0` at noise level `t`: (B, …), (B, …), (B,) -> (B, …).

    >>> import torch
    >>> add_noise(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([1]), alphas_cumprod=torch.tensor([1.0, 0.25]))
    tensor([[0.5000, 0.5000]])
    """
    alpha_t, sigma_t = alpha_sigma(alphas_cumprod, t, x_0)
    return alpha_t * x_0 + sigma_t * noise


def target(x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor, prediction_type: str = "epsilon") -> Tensor:
    """The U-Net's target: the noise (SD 1.5, SDXL), v = alpha_t * noise - sigma_t * x_0 (SD 2.1 at 768), or x_0.

    Raises `ValueError` for any other `prediction_type`.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":  # Salimans & Ho 2022
        alpha_t, sigma_t = alpha_sigma(alphas_cumprod, t, x_0)
        return alpha_t * noise - sigma_t * x_0
    if prediction_type == "sample":
        return x_0
    raise ValueError(f"prediction_type={prediction_type!r}: it must be one of {', '.join(PREDICTIONS)}")


def snr(t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Signal-to-noise ratio alpha_t² / sigma_t² at steps `t`: (B,) -> (B,)."""
    signal = alphas_cumprod.to(t.device)[t]
    return signal / (1 - signal)


def min_snr_weights(t: Tensor, alphas_cumprod: Tensor, gamma: float, prediction_type: str = "epsilon") -> Tensor:
    """Loss weights min(SNR, gamma) / SNR, or … / (SNR + 1) for v, of Hang et al. 2023: (B,) -> (B,).

    They weigh down the almost clean steps, whose easy loss would otherwise drown the others.
    """
    ratio = snr(t, alphas_cumprod)
    capped = ratio.clamp(max=gamma)
    if prediction_type == "epsilon":
        return (gamma / ratio).clamp(max=1)  # the same, and no 0 / 0 where a schedule ends without any signal
    return capped / (ratio + 1) if prediction_type == "v_prediction" else capped


def snr_share(t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """SNR / (SNR + 1), the SNR at most 1000, as sd-scripts has it: (B,) -> (B,). That is alpha_t² where there is noise at all."""
    ratio = snr(t, alphas_cumprod).clamp(max=1000)
    return ratio / (ratio + 1)


def debiased_weights(t: Tensor, alphas_cumprod: Tensor, prediction_type: str = "epsilon") -> Tensor:
    """Loss weights 1 / sqrt(SNR) of Yu et al. 2024, or 1 / (SNR + 1) for v, the SNR at most 1000, as in sd-scripts: (B,) -> (B,)."""
    ratio = snr(t, alphas_cumprod).clamp(max=1000)
    return 1 / (ratio + 1) if prediction_type == "v_prediction" else ratio.rsqrt()


def huber_widths(t: Tensor, alphas_cumprod: Tensor, schedule: str = "snr", c: float = 0.1, scale: float = 1.0) -> Tensor:
    """Error below which Huber's loss is a square, at steps `t`: (B,) -> (B,), by one of sd-scripts' three schedules.

    `snr` falls from 1, without noise, to `c` and ignores `scale`; `exponential` falls from `scale` to `scale * c`, evenly in the logarithm.
    """
    if schedule == "constant":
        return torch.full_like(t, c * scale, dtype=torch.float32)
    if schedule == "exponential":
        return torch.exp(math.log(c) / len(alphas_cumprod) * t) * scale
    sigmas = snr(t, alphas_cumprod).rsqrt()
    return (1 - c) / (1 + sigmas) ** 2 + c


class Loss(sections.Loss):
    """The loss of a recipe. Raises `ValueError` where the error below which Huber's loss is a square would be 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        factors = {"snr": (), "exponential": (self.huber_c, self.huber_scale), "constant": (self.huber_c, self.huber_scale)}
        if self.loss_type in ("huber", "smooth_l1") and not all(factors[self.huber_schedule]):
            raise ValueError(f"huber_c and huber_scale must be above 0 with huber_schedule={self.huber_schedule}, such as 0.1 and 1.0")

    @classmethod
    def of_any(cls, recipe: sections.Section) -> Loss:
        """The loss of `recipe` for a model whose prediction is not known yet."""
        found = super().of(recipe)
        return replace(found, min_snr_gamma=found.min_snr_gamma or None, v_pred_like_loss=found.v_pred_like_loss or None)  # 0 is none

    @classmethod
    def of(cls, recipe: sections.Section, prediction_type: str = "epsilon") -> Loss:
        """The loss of `recipe`. Raises `ValueError` for a setting that does not fit the model's `prediction_type`."""
        found = cls.of_any(recipe)
        if found.scale_v_pred_loss_like_noise_pred and prediction_type != "v_prediction":
            raise ValueError(f"scale_v_pred_loss_like_noise_pred is for models that predict v, and this one predicts {prediction_type}")
        if found.v_pred_like_loss and prediction_type != "epsilon":
            raise ValueError(f"v_pred_like_loss is for models that predict the noise, and this one predicts {prediction_type}")
        if found.debiased_estimation_loss and prediction_type == "sample":
            raise ValueError("debiased_estimation_loss is for models that predict the noise or v, and this one predicts the picture")
        return found

    def __call__(
        self, prediction: Tensor, target: Tensor, t: Tensor, process: DDPM, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, …), (B, …), (B,) -> a scalar; `weights` (B,) multiply each picture's loss, `mask` (B, 1, h, w) that of each place.

        The mean is over all places, as in sd-scripts: what a mask leaves out makes a picture's loss smaller.
        """
        prediction, target = prediction.float(), target.float()
        if self == Loss() and weights is None and mask is None:
            return torch.nn.functional.mse_loss(prediction, target)
        errors = self._errors(prediction - target, t, process.alphas_cumprod)
        each = (errors if mask is None else errors * mask).mean(tuple(range(1, prediction.ndim)))
        alphas_cumprod, prediction_type = process.alphas_cumprod, process.prediction_type
        if self.zero_terminal_snr and process.unscaled is not None:
            alphas_cumprod = process.unscaled
        if weights is not None:
            each = each * weights
        if self.min_snr_gamma is not None:
            each = each * min_snr_weights(t, alphas_cumprod, self.min_snr_gamma, prediction_type)
        if self.scale_v_pred_loss_like_noise_pred:
            each = each * snr_share(t, alphas_cumprod)
        if self.v_pred_like_loss:
            each = each + each / snr_share(t, alphas_cumprod) * self.v_pred_like_loss
        if self.debiased_estimation_loss:
            each = each * debiased_weights(t, alphas_cumprod, prediction_type)
        return each.mean()

    def _errors(self, difference: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
        """Loss of each element: (B, …) -> (B, …)."""
        if self.loss_type == "l2":
            return difference.square()
        if self.loss_type == "l1":
            return difference.abs()
        width = huber_widths(t, alphas_cumprod, self.huber_schedule, self.huber_c, self.huber_scale).view(-1, *[1] * (difference.ndim - 1))
        cost = 2 * ((difference.square() + width**2).sqrt() - width)
        return cost * width if self.loss_type == "huber" else cost


@dataclass(frozen=True, kw_only=True)
class Noises(sections.Noise):
    """Draws noise levels and noise for each batch. Raises `ValueError` for a setting without another that it needs."""

    levels: int = 1000
    """Number of noise levels of the model's scheduler."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least, most = self.range
        if not 0 <= least <= most <= self.levels or least == self.levels:
            raise ValueError(
                f"min_timestep={self.min_timestep}, max_timestep={self.max_timestep}: they must lie between 0 and {self.levels}, in order"
            )
        if self.adaptive_noise_scale is not None and self.noise_offset is None:
            raise ValueError("adaptive_noise_scale needs noise_offset, such as 0.1")

    @property
    def range(self) -> tuple[int, int]:
        """Levels to draw from: (first, last + 1); (t, t) means level t alone."""
        return self.min_timestep or 0, self.levels if self.max_timestep is None else self.max_timestep

    def t(self, pictures: int, generator: Generator) -> Tensor:
        """Noise levels (B,)."""
        least, most = self.range
        return torch.randint(least, most if least < most else most + 1, (pictures,), generator=generator)

    def offsets(self, shape: tuple[int, ...], generator: Generator) -> tuple[float | Tensor, Tensor] | None:
        """Offsets that make a channel's noise lighter or darker: a strength, and directions (B, C, 1, 1) to multiply by it."""
        if not self.noise_offset:
            return None
        strength = self.noise_offset
        if self.noise_offset_random_strength:
            strength = strength * torch.rand(1, generator=generator)
        return strength, torch.randn((*shape[:2], 1, 1), generator=generator)

    def finished(
        self, noise: Tensor, offsets: tuple[float | Tensor, Tensor] | None, latents: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor | None]:
        """The noise to predict, and the noise to add to the latents or None if that is the same: (B, C, h, w) each.

        With `multires_noise_iterations` the noise is scaled to a variance of 1 over the whole batch of all processes.
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


class DiffusionProcess(Protocol):
    """How a model's pictures become noise, and what the model predicts. `Family.process` makes it."""

    prediction_type: str
    """What the model predicts: one of `PREDICTIONS`, or another word in another process."""

    def noises(self, recipe: sections.Section) -> Noises:
        """Draws a recipe's noise levels and noise. Raises `ValueError` for a setting that does not fit the process."""
        ...

    def loss(self, recipe: sections.Section) -> Loss:
        """The loss of a recipe. Raises `ValueError` for a setting that does not fit the prediction."""
        ...

    def noised(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t, the latents `x_0` at noise levels `t`: (B, …), (B, …), (B,) -> (B, …)."""
        ...

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The target of the prediction: (B, …), (B, …), (B,) -> (B, …)."""
        ...


@dataclass(frozen=True, eq=False)
class DDPM(DiffusionProcess):
    """The process of DDPM: x_t = alpha_t * x_0 + sigma_t * noise."""

    alphas_cumprod: Tensor
    """alpha_t² of each level, (1000,) for Stable Diffusion."""
    prediction_type: str = "epsilon"
    unscaled: Tensor | None = None
    """alpha_t² before the levels were scaled up to pure noise; None if they were not."""

    def noises(self, recipe: sections.Section) -> Noises:
        return Noises.of(recipe, levels=len(self.alphas_cumprod))

    def loss(self, recipe: sections.Section) -> Loss:
        return Loss.of(recipe, self.prediction_type)

    def noised(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return add_noise(x_0, noise, t, self.alphas_cumprod)

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return target(x_0, noise, t, self.alphas_cumprod, self.prediction_type)


def pyramid(noise: Tensor, iterations: int, discount: float, generator: Generator) -> Tensor:
    """Noise of several scales (Whitaker 2023), scaled to a variance of 1: each scale is two to four times coarser than the one before, to
    a growing power, and weighs `discount` times as much.
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
