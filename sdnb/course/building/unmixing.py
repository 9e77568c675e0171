"""Grader of a function `(x_t, v, alpha_t, sigma_t)` that computes the clean latents from a velocity, v = alpha_t noise - sigma_t x_0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .grading import Fault

Unmix = Callable[..., Any]


def one_level(unmix: Unmix) -> None:
    """One noise level, as plain numbers. Raises `Fault`."""
    _compare(unmix, torch.tensor(0.8), torch.tensor(0.6), (2, 4, 3, 5))


def levels(unmix: Unmix) -> None:
    """A noise level for each picture, the clean and the pure noise among them. Raises `Fault`."""
    alpha_t = torch.tensor([1, 0.96, 0.5**0.5, 0.28, 0]).view(-1, 1, 1, 1)
    _compare(unmix, alpha_t, alpha_t.flip(0), (5, 4, 3, 3))


CHECKS = (one_level, levels)


def _compare(unmix: Unmix, alpha_t: Tensor, sigma_t: Tensor, shape: tuple[int, ...]) -> None:
    x_0, noise = torch.randn(shape), torch.randn(shape)
    x_t, v = alpha_t * x_0 + sigma_t * noise, alpha_t * noise - sigma_t * x_0
    result = unmix(x_t.clone(), v.clone(), alpha_t, sigma_t)
    if not isinstance(result, Tensor) or result.shape != x_0.shape:
        raise Fault("shape", got=str([*result.shape]) if isinstance(result, Tensor) else type(result).__name__, wanted=str([*shape]))
    if _close(result, x_0):
        return
    slips = {
        "the_noise": noise,
        "as_from_noise": (x_t - sigma_t * v) / alpha_t,
        "plus": alpha_t * x_t + sigma_t * v,
        "negative": -x_0,
    }
    if not result.isfinite().all():
        raise Fault("not_finite")
    raise Fault(next((name for name, wrong in slips.items() if _close(result, wrong)), "other"))


def _close(theirs: Tensor, ours: Tensor) -> bool:
    return torch.allclose(theirs, ours, rtol=1e-4, atol=1e-4)
