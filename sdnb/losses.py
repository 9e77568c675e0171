"""Noising, targets and loss weights: pure functions of tensors.

The letters are those of Salimans & Ho 2022: x_t = alpha_t * x_0 + sigma_t * noise, where alpha_t² = alphas_cumprod[t], which DDPM (Ho et
al. 2020) writes with a bar, and sigma_t² = 1 - alphas_cumprod[t].
"""

from __future__ import annotations

from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def alpha_sigma(alphas_cumprod: Tensor, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """How much picture and how much noise step `t` (B,) holds: two tensors (B, 1, …, 1) that multiply `like` (B, …)."""
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
    """What the U-Net is to predict: the noise (SD 1.5, SDXL), v = alpha_t * noise - sigma_t * x_0 (SD 2.1 at 768), or x_0.

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

    They hold back the almost clean steps, whose loss is easy and would otherwise drown the others.
    """
    ratio = snr(t, alphas_cumprod)
    capped = ratio.clamp(max=gamma)
    if prediction_type == "epsilon":
        return (gamma / ratio).clamp(max=1)  # the same, and no 0 / 0 where a schedule ends without any signal
    return capped / (ratio + 1) if prediction_type == "v_prediction" else capped
