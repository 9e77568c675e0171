"""Grader of `adafactor_step(X, G, state, t, lr, …)` for tensors of any shape, held to the same step in double precision.

A wrong result is compared with what common slips would give, so that the fault can name the slip.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .grading import Fault

Step = Callable[..., Any]
STEPS = 6


@dataclass(frozen=True)
class Reference:
    """Adafactor's step, in letters of the paper. Each setting but the last three is a slip if it is not the default."""

    root: bool = True
    """Divide by the root of V, not by V itself."""
    over_mean: bool = True
    """Divide R C by the mean of R."""
    decay: str = "paper"
    """beta2: 1 - t^-0.8 (`paper`), the same with t + 1 (`late`), or 0.999 (`fixed`)."""
    clip: str = "update"
    """What is limited to d: the update's RMS (`update`), the gradient's (`gradient`), the update's norm (`norm`), each of its numbers
    (`values`), or nothing (`none`)."""
    up: bool = False
    """Scale small updates up to an RMS of d, too."""
    factoring: str = "matrix"
    """A convolution's rows and columns: out and everything else (`matrix`), or the last two dimensions (`last-two`)."""
    factored: bool = True
    """Keep row and column means, not V in full."""
    transposed: bool = False
    """Rebuild V with a row for each column of the gradient."""
    factored_vectors: bool = False
    """Replace V of a vector by its mean."""
    forgets: bool = False
    """Begin each step with an empty state."""
    uphill: bool = False
    """Add the update instead of subtracting it."""
    scale_from: float = 1e-3
    """Least size of X with `scale_parameter`."""
    d: float = 1.0
    scale_parameter: bool = False
    lr: float = 1e-2

    def run(self, X: Tensor, gradients: list[Tensor]) -> Tensor:
        """Weights (float64) after one step for each gradient."""
        X, means = X.double(), {}
        for t, gradient in enumerate(gradients, 1):
            G = gradient.double()
            if self.clip == "gradient":
                G = G / max(1, _rms(G) / self.d)
            U = G / self._second_moment(G, means, t)
            size = _rms(U) * math.sqrt(U.numel()) if self.clip == "norm" else _rms(U)
            if self.clip in ("update", "norm"):
                U = U / (size / self.d if self.up else max(1, size / self.d))
            elif self.clip == "values":
                U = U.clamp(-self.d, self.d)
            scale = max(self.scale_from, _rms(X)) if self.scale_parameter else 1
            X = X + (1 if self.uphill else -1) * self.lr * scale * U
        return X

    def _second_moment(self, G: Tensor, means: dict[str, Tensor], t: int) -> Tensor:
        """Root of V, (the gradient's shape)."""
        beta2 = {"paper": 1 - t**-0.8, "late": 1 - (t + 1) ** -0.8, "fixed": 0.999}[self.decay]
        if self.forgets:
            means.clear()
        M = self._as_matrices(G)
        squares = M.square() + 1e-30
        sides = {"R": squares.mean(-1), "C": squares.mean(-2)} if M.ndim > 1 and self.factored else {"V": squares}
        if self.factored_vectors and M.ndim == 1:
            sides = {"V": squares.mean().expand_as(squares)}
        for name, side in sides.items():
            means[name] = beta2 * means.get(name, torch.zeros_like(side)) + (1 - beta2) * side
        V = means.get("V")
        if V is None:
            R, C = means["R"], means["C"]
            V = R[..., :, None] * C[..., None, :] / (R.mean(-1)[..., None, None] if self.over_mean else 1)
            V = V.mT if self.transposed else V
        V = V.reshape(G.shape)
        return V.sqrt() if self.root else V

    def _as_matrices(self, G: Tensor) -> Tensor:
        return G.reshape(G.shape[0], -1) if G.ndim > 1 and self.factoring == "matrix" else G


SLIPS = {
    "no_root": Reference(root=False),
    "no_mean": Reference(over_mean=False),
    "beta_fixed": Reference(decay="fixed"),
    "beta_late": Reference(decay="late"),
    "no_clip": Reference(clip="none"),
    "gradient_clipped": Reference(clip="gradient"),
    "norm_clipped": Reference(clip="norm"),
    "values_clipped": Reference(clip="values"),
    "scaled_up": Reference(up=True),
    "last_two": Reference(factoring="last-two"),
    "not_factored": Reference(factored=False),
    "transposed": Reference(transposed=True),
    "vector_mean": Reference(factored_vectors=True),
    "state_lost": Reference(forgets=True),
    "uphill": Reference(uphill=True),
    "scale_unbounded": Reference(scale_from=0.0),
}


def matrix(step: Step) -> None:
    """A matrix that is not square, over gradients of very different sizes. Raises `Fault`."""
    X, G = _tensors((7, 5), 1)
    before, gradient = X.clone(), G.clone()
    step(X, G, {}, 1, lr=1e-2)
    if not torch.equal(G, gradient):
        raise Fault("gradient_changed")
    if torch.equal(X, before):
        raise Fault("not_in_place")
    _compare(step, (7, 5))


def spike(step: Step) -> None:
    """Gradients of one size, and then one that is a thousand times as large, with two thresholds. Raises `Fault`."""
    for d in (1.0, 0.5):
        _compare(step, (5, 8), sizes=(1.0, 1.0, 1.0, 1.0, 1000.0, 1.0), d=d)


def convolution(step: Step) -> None:
    """Convolutions with windows of 3×3 and 1×1, as matrices, with as few numbers in the state. Raises `Fault`."""
    for shape in ((6, 4, 3, 3), (8, 6, 1, 1)):
        _compare(step, shape)
        _grade_state(step, shape, shape[0] + math.prod(shape[1:]))


def vector(step: Step) -> None:
    """A bias: V in full. Raises `Fault`."""
    _compare(step, (9,))
    _grade_state(step, (9,), 9)


def scaled(step: Step) -> None:
    """`scale_parameter`, for weights of some size and for zeros. Raises `Fault`."""
    _compare(step, (6, 5), scale_parameter=True)
    _compare(step, (6, 5), scale_parameter=True, zeros=True)


def silent_row(step: Step) -> None:
    """A row without any gradient, as that of a word which no caption has, must not become NaN. Raises `Fault`."""
    X, G = _tensors((4, 3), 1)
    G[2] = 0
    step(X, G, {}, 1, lr=1e-2)
    if not X.isfinite().all():
        raise Fault("nan")


CHECKS = (matrix, vector, convolution, spike, scaled, silent_row)


def _tensors(shape: tuple[int, ...], steps: int, sizes: tuple[float, ...] = ()) -> list[Tensor]:
    """Weights of RMS 0.1 about 0, and gradients whose sizes differ by a factor of a hundred thousand."""
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    sizes = sizes or tuple(10.0 ** (2 - t % 5) for t in range(steps))
    rows = torch.rand(shape[0], generator=generator).add_(0.1).view(-1, *[1] * (len(shape) - 1))
    gradients = [torch.randn(shape, generator=generator) * rows * size for size in sizes]
    return [torch.randn(shape, generator=generator) / 10, *gradients]


def _compare(step: Step, shape: tuple[int, ...], sizes: tuple[float, ...] = (), zeros: bool = False, **settings: Any) -> None:
    """Raise `Fault` where a few steps of `shape` do not end where the reference does; named by the slip that ends there."""
    X, *gradients = _tensors(shape, STEPS, sizes)
    X = torch.zeros_like(X) if zeros else X
    theirs, state = X.clone(), {}
    for t, gradient in enumerate(gradients, 1):
        step(theirs, gradient.clone(), state, t, lr=1e-2, **settings)
    right = Reference(**settings)
    if _close(theirs, right.run(X, gradients), X):
        return
    if not theirs.isfinite().all():
        raise Fault("not_finite", shape=str([*shape]))
    for name, slip in SLIPS.items():
        if _close(theirs, replace(slip, **settings).run(X, gradients), X):
            raise Fault(name, shape=str([*shape]))
    if "d" in settings and _close(theirs, Reference(**{**settings, "d": 1.0}).run(X, gradients), X):
        raise Fault("d_ignored")
    if "scale_parameter" in settings and _close(theirs, Reference().run(X, gradients), X):
        raise Fault("scale_ignored")
    first = X.clone()
    step(first, gradients[0].clone(), {}, 1, lr=1e-2, **settings)
    raise Fault("later_step" if _close(first, right.run(X, gradients[:1]), X) else "first_step", shape=str([*shape]))


def _grade_state(step: Step, shape: tuple[int, ...], wanted: int) -> None:
    X, G = _tensors(shape, 1)
    state: dict[str, Any] = {}
    step(X, G, state, 1, lr=1e-2)
    numbers = sum(value.numel() for value in state.values() if isinstance(value, Tensor))
    if numbers > wanted:
        raise Fault("state_too_large", shape=str([*shape]), numbers=numbers, wanted=wanted)


def _close(theirs: Tensor, ours: Tensor, start: Tensor) -> bool:
    """Whether the way from `start` is the same, to a thousandth."""
    way = ours - start.double()
    return bool((theirs.double() - ours).norm() <= 1e-3 * way.norm())


def _rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()
