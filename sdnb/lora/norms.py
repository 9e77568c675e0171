"""The norm that adapters are held to, sd-scripts' `scale_weight_norms`: the max-norm regularization of Srivastava et al. 2014."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import adapters

if TYPE_CHECKING:
    from torch import Tensor

    from ..models import Model


@dataclass(frozen=True)
class Norms:
    """Norms of what the adapters add to their layers' weights, after they were limited. Reading one waits for a GPU."""

    norms: Tensor
    """Of each adapter (N,)."""
    ratios: Tensor
    """The share of each norm that was left (N,)."""

    @property
    def scaled(self) -> int:
        """How many adapters were scaled down."""
        return int((self.ratios != 1).sum())

    @property
    def mean(self) -> float:
        """The mean of the norms."""
        return float(self.norms.mean())

    @property
    def largest(self) -> float:
        """The largest of the norms."""
        return float(self.norms.max())


def limit_norms(sd: Model, most: float) -> Norms:
    """Scale down each adapter that adds more than the norm `most` to its layer, A and B alike, in place.

    The norm is that of alpha / rank · B·A. The model must have adapters.
    """
    import torch

    layers = [layer for part in adapters.parts(sd).values() for layer in adapters.layers(part).values()]
    norms, ratios = [], []
    with torch.no_grad():
        for layer in layers:
            down, up = adapters.matrices(layer)  # (r, in, …), (out, r, …)
            norm = (up.flatten(1) @ down.flatten(1) * layer.scaling[adapters.NAME]).norm()
            # as there: a norm of at least half the limit, so that an adapter that adds nothing yet divides by no 0
            bounded = norm.clamp(min=most / 2)
            ratio = bounded.clamp(max=most) / bounded
            for matrix in (down, up):
                matrix.mul_(ratio.sqrt())
            norms.append(norm * ratio)
            ratios.append(ratio)
    return Norms(torch.stack(norms), torch.stack(ratios))
