"""Grader of `peak(weights, activations)`: the peak of a plain step with AdamW in fp32, as the larger of two moments."""

from __future__ import annotations

from collections.abc import Callable

from .grading import Fault

Peak = Callable[[float, float], float]
SIZES = ((1.0, 0.25), (1.0, 4.0), (3.2, 1.7), (0.5, 1.0), (2.0, 10.0))
"""GiB of weights and of activations that it is called with."""
TEMPTING: dict[str, Peak] = {
    "sum": lambda weights, activations: 5 * weights + activations,
    "early_gradients": lambda weights, activations: max(4 * weights + activations, 5 * weights),
    "forward_with_gradients": lambda weights, activations: 4 * weights + activations,
    "forward": lambda weights, activations: 3 * weights + activations,
    "optimizer": lambda weights, activations: 5 * weights,
}
"""Wrong answers that have a text of their own, by its name."""


def larger_moment(peak: Peak) -> None:
    """Forward's end has weights, state and activations, AdamW's step weights, state, gradients and temporaries. Raises `Fault`."""
    found = [float(peak(*size)) for size in SIZES]
    if all(_near(size, max(3 * weights + activations, 5 * weights)) for size, (weights, activations) in zip(found, SIZES, strict=True)):
        return
    for name, tempting in TEMPTING.items():
        if all(_near(size, tempting(*given)) for size, given in zip(found, SIZES, strict=True)):
            raise Fault(name)
    for size, (weights, activations) in zip(found, SIZES, strict=True):
        if not _near(size, max(3 * weights + activations, 5 * weights)):
            raise Fault("differs", weights=f"{weights:g}", activations=f"{activations:g}", found=f"{size:g}")


CHECKS = (larger_moment,)


def _near(one: float, other: float) -> bool:
    return abs(one - other) < 1e-6
