"""The norm that adapters are held to, sd-scripts' `scale_weight_norms`: the max-norm regularization of Srivastava et al. 2014."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import adapters, lycoris

if TYPE_CHECKING:
    from torch import Tensor

    from ..models import Model
    from ..recipe import Recipe


@dataclass(frozen=True)
class Norms:
    """Norms of what the adapters add to their layers' weights, after they were limited. Reading one waits for a GPU."""

    norms: Tensor
    """Of each adapter (N,)."""
    were_scaled: Tensor
    """Whether each adapter was scaled down (N,)."""

    @property
    def scaled(self) -> int:
        """How many adapters were scaled down."""
        return int(self.were_scaled.sum())

    @property
    def mean(self) -> float:
        """The mean of the norms."""
        return float(self.norms.mean())

    @property
    def largest(self) -> float:
        """The largest of the norms."""
        return float(self.norms.max())


def limit_norms(sd: Model, most: float) -> Norms | None:
    """Scale down each adapter that adds more than the norm `most` to its layer, A and B alike, in place.

    The norm is that of alpha / rank · B·A. LyCORIS' adapters are limited as its own code does it, and those of a kind that it does not
    limit are passed over; None if the model has no others.
    """
    import torch

    parts = adapters.parts(sd).values()
    layers = [layer for part in parts for layer in adapters.layers(part).values()]
    limited = [pair for part in parts for pair in lycoris.limit_norms(part, most)]
    norms, were_scaled = [norm for norm, _ in limited], [was for _, was in limited]
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
            were_scaled.append(ratio != 1)
    return Norms(torch.stack(norms), torch.stack(were_scaled)) if norms else None


def scaled(sd: Model, recipe: Recipe) -> dict[str, Tensor]:
    """What `limit_norms` scales besides the parameters that a recipe trains, by name: a frozen A, and the scalars of LyCORIS."""
    if not recipe.scale_weight_norms:
        return {}
    return {
        f"{name}.{path}": tensor
        for name, part in adapters.parts(sd).items()
        for path, tensor in (*part.named_parameters(), *part.named_buffers())
        if ".lora_" in path and not tensor.requires_grad and (path.endswith(".scalar") or tensor.__class__.__name__ == "Parameter")
    }
