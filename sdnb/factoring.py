"""The arithmetic of Adafactor (Shazeer & Stern 2018): what of a tensor is a matrix, and the update, as functions of tensors.

The running mean V of squared gradients of a matrix (n, m) is kept as the means of its rows R (n) and of its columns C (m), and
rebuilt as R C / mean(R). The paper knows matrices only. A convolution [out, in, kh, kw] is a matrix too, of `out` rows and
in·kh·kw columns; factored by its last two dimensions instead, as PyTorch's Adafactors do it, a 3×3 one keeps two thirds of V.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

FACTORINGS = ("matrix", "two-largest", "last-two")
ROUNDED_AT_ONCE = 2**24
"""Elements that get their random bits at a time: they take four bytes each."""
STANDS_FOR: ContextVar[str] = ContextVar("STANDS_FOR", default="cuda")
"""The device that a tensor on meta is taken for: a CPU sums squares otherwise than a GPU, with other memory."""
CACHED = 2**18
"""Elements that a CPU squares and sums before they leave its cache."""


@dataclass(frozen=True)
class Layout:
    """How a parameter is seen as matrices (groups, n, m), or as one vector (N)."""

    order: tuple[int, ...]
    """The parameter's dimensions in the order they are taken in."""
    shape: tuple[int, ...]
    """(groups, n, m): V is factored in each group; or (N)."""
    rows: tuple[int, ...] = ()
    """The shape of the row means in `state`."""
    columns: tuple[int, ...] = ()
    """And of the column means. A vector has neither."""

    @property
    def in_order(self) -> bool:
        """Whether a parameter's numbers are taken as they lie."""
        return self.order == tuple(range(len(self.order)))

    def view(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape -> `shape`."""
        return (tensor if self.in_order else tensor.permute(self.order)).reshape(self.shape)

    def restore(self, stacked: Tensor, shape: Sequence[int]) -> Tensor:
        """k tensors of `shape` of this layout, (k, …) -> (k, *shape), `shape` being the parameter's own."""
        taken = stacked.view(-1, *(shape[dim] for dim in self.order))
        if self.in_order:
            return taken
        return taken.permute(0, *(1 + self.order.index(dim) for dim in range(len(self.order))))


def layout(shape: Sequence[int], factoring: str = "matrix") -> Layout:
    """How a parameter of this shape is factored: as one matrix (`matrix`), or by two of its dimensions, each group of them apart."""
    shape = tuple(shape)
    dims = tuple(range(len(shape)))
    if len(shape) < 2:
        return Layout(dims, (math.prod(shape),))
    if factoring == "matrix":
        rest = math.prod(shape[1:])
        return Layout(dims, (1, shape[0], rest), (shape[0],), (rest,))
    chosen = dims[-2:] if factoring == "last-two" else tuple(sorted(sorted(dims, key=lambda dim: shape[dim])[-2:]))
    others = tuple(dim for dim in dims if dim not in chosen)
    groups, (n, m) = tuple(shape[dim] for dim in others), (shape[dim] for dim in chosen)
    return Layout((*others, *chosen), (math.prod(groups), n, m), (*groups, n), (*groups, m))


def matrix_direction(
    gradient: Tensor,
    rows: Tensor,
    columns: Tensor,
    weight: float | Tensor,
    eps: Tensor,
    clip_threshold: float = 1.0,
    scale: Tensor | None = None,
) -> Tensor:
    """The update of k matrices before the learning rate: the gradient over the root of V, held to a root mean square of `clip_threshold`.

    `gradient` (k, groups, n, m) is overwritten with the result; `rows` (k, groups, n) and `columns` (k, groups, m) move towards this
    gradient's by `weight`, which is 1 - beta2, a number or a tensor (k, 1, 1). `eps` is a scalar tensor, `scale` (k) a factor for each.
    """
    rows.lerp_(_mean_squares(gradient, -1, eps), weight)
    columns.lerp_(_mean_squares(gradient, -2, eps), weight)
    r = (rows / rows.mean(-1, keepdim=True)).rsqrt_()
    gradient.mul_(columns.rsqrt().unsqueeze(-2))
    norms = _norms(gradient, -1).mul_(r)  # those of the update's rows, before it is finished
    rms = vector_norm(norms, dim=(-2, -1), keepdim=True).div_(math.sqrt(gradient[0].numel()) * clip_threshold)
    r.div_(rms.clamp_(min=1))
    if scale is not None:
        r.mul_(scale.view(-1, 1, 1))
    return gradient.mul_(r.unsqueeze(-1))


def vector_direction(
    gradient: Tensor, squares: Tensor, weight: float | Tensor, eps: Tensor, clip_threshold: float = 1.0, scale: Tensor | None = None
) -> Tensor:
    """The same for k vectors (k, N), whose second moment `squares` (k, N) is kept in full; `weight` is a number or (k, 1)."""
    squares.lerp_(torch.addcmul(eps, gradient, gradient), weight)
    gradient.mul_(squares.rsqrt())
    rms = vector_norm(gradient, dim=-1, keepdim=True).div_(math.sqrt(gradient[0].numel()) * clip_threshold)
    factor = rms.clamp_(min=1).reciprocal_()
    if scale is not None:
        factor.mul_(scale.view(-1, 1))
    return gradient.mul_(factor)


def round_stochastically(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Numbers in fp32 of any shape, each overwritten with one of its two neighbours in bf16, as often as makes the mean right.

    `values` has to be contiguous; it is returned, still in fp32.
    """
    bits = values.view(torch.int32).view(-1)
    for part in bits.split(ROUNDED_AT_ONCE):
        part.add_(torch.empty_like(part).random_(0, 1 << 16, generator=generator))
    bits.bitwise_and_(-1 << 16)  # bf16 is fp32 without its last 16 bits
    return values


def _mean_squares(tensor: Tensor, dim: int, eps: Tensor) -> Tensor:
    """The mean of squares along `dim`, plus eps."""
    size = tensor.shape[dim]
    on_cpu = (tensor.device.type if tensor.device.type != "meta" else STANDS_FOR.get()) == "cpu"
    if on_cpu and size < 16:  # nor is it made for short rows
        return tensor.square().mean(dim).add_(eps)
    if on_cpu and dim == -2:  # there torch takes ten times as long for a norm across rows
        rows = max(1, CACHED * size // tensor.numel())
        return sum(part.square().sum(dim) for part in tensor.split(rows, dim)).div_(size).add_(eps)
    norms = _norms(tensor, dim)
    return torch.addcmul(eps, norms, norms, value=1 / size)


def _norms(tensor: Tensor, dim: int) -> Tensor:
    """2-norms along one dimension, which is gone. Told to drop one of size 1, torch up to 2.11 keeps it on the meta device."""
    return vector_norm(tensor, dim=dim, keepdim=True).squeeze(dim)
