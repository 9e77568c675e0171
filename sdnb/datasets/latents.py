"""Pictures as the distributions of their latents: encoded once, or for each batch where a picture is another one each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models import family_of
from .store import Stored, fingerprint, key
from .views import View, mask_of, pixels_of

if TYPE_CHECKING:
    from numpy import ndarray

    from ..models import Model

LARGE = 256 * 256
"""Pictures with more pixels than this are encoded one at a time: an autoencoder's activations are large."""


def together(size: tuple[int, int], *, alone: bool = False) -> int:
    """How many pictures of (width, height) are encoded at once; one of those that are kept `alone`."""
    return 1 if alone or size[0] * size[1] > LARGE else 8


@torch.no_grad()
def encoded(vae: Any, pixels: Tensor) -> Tensor:
    """Mean and standard deviation of the latents of pixels in [-1, 1], scaled: (B, 3, H, W) -> (B, 2, C, h, w) in fp32."""
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return torch.stack([posterior.mean, posterior.std], 1).float() * vae.config.scaling_factor


class Latents:
    """The latents of a set of pictures, and the masks of their losses.

    A picture that is the same each time is encoded here, and kept in `stored` if that is given. Of one that varies the pixels are kept in
    memory, and each batch encodes what it shows of them. `on_progress` is called with how many are ready and how many there are.

    Raises `ValueError` for latents that are not finite, a picture that does not open, and a mask of another size.
    """

    def __init__(
        self, sd: Model, views: Sequence[View], *, stored: Stored | None = None, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        self.vae, self.views, self.stored = sd.vae, views, stored
        self.downscale, self.channels = sd.downscale, family_of(sd).channels(sd)
        self.known: list[Tensor] = [torch.empty(0)] * len(views)
        """Mean and standard deviation of each picture's latents (F, 2, C, h, w), as it is and mirrored; empty for one that varies."""
        self.wholes: dict[int, ndarray] = {}
        """Pixels of the pictures that vary."""
        self.masks: dict[int, Tensor] = {}
        """Masks (1, h, w) that are the same each time."""
        self.masked = any(view.masked for view in views)
        """Whether a batch has a mask."""
        self._encode(on_progress)

    def shape(self, picture: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latents."""
        width, height = self.views[picture].size
        return self.channels, height // self.downscale, width // self.downscale

    def of(self, picture: int, flipped: bool, seed: str, needed: bool = True) -> Tensor:
        """Mean and deviation of a picture's latents (2, C, h, w); of one that varies they depend on the seed.

        One that varies and is not `needed` is not encoded: its latents are zeros.
        """
        view = self.views[picture]
        if not view.varies:
            return self.known[picture][int(flipped)]
        if not needed:
            return torch.zeros(2, *self.shape(picture))
        shown = view.shown(self.wholes[picture], Random(seed))
        return self._checked(self._turned(pixels_of(shown), flipped)[None], [picture])[0]

    def mask(self, picture: int, flipped: bool, seed: str) -> Tensor:
        """Weights of a picture's loss (1, h, w), of ones where it has no mask; the same seed gives those of the latents."""
        view, mask = self.views[picture], self.masks.get(picture)
        if mask is None:
            size = self.shape(picture)[1:]
            levels = view.mask(view.shown(self.wholes[picture], Random(seed))) if view.masked else None
            mask = torch.ones(1, *size) if levels is None else mask_of(levels, size)
        return self._turned(mask, flipped)

    def _encode(self, on_progress: Callable[[int, int], None] | None) -> None:
        from tqdm import tqdm

        done, model = 0, fingerprint(self.vae) if self.stored else ""
        with tqdm(total=len(self.views), desc="pictures", disable=True if on_progress else None) as bar:
            for some in self._together():
                if self.views[some[0]].varies:
                    self._keep_whole(some[0])
                else:
                    for i, latents in zip(some, self._known(some, model), strict=True):
                        self.known[i] = latents
                done += len(some)
                bar.update(len(some))
                if on_progress:
                    on_progress(done, len(self.views))

    def _together(self) -> list[list[int]]:
        """The pictures in groups that the autoencoder gets at once."""

        def kind(i: int) -> tuple:
            view = self.views[i]
            return view.picture.dataset, view.size, view.recipe.flip_aug, view.varies

        groups = []
        for (_, size, _, varies), members in groupby(sorted(range(len(self.views)), key=kind), key=kind):
            alike = list(members)
            # kept ones are encoded alone, so that their bits do not depend on their company
            each = together(size, alone=bool(self.stored or varies))
            groups += [alike[start : start + each] for start in range(0, len(alike), each)]
        return groups

    def _keep_whole(self, i: int) -> None:
        view = self.views[i]
        self.wholes[i] = view.whole()
        if view.mask_picture:
            self._keep_mask(i, view.mask(self.wholes[i]))

    def _keep_mask(self, i: int, levels: ndarray | None) -> None:
        if levels is not None:
            self.masks[i] = mask_of(levels, self.shape(i)[1:])

    def _known(self, some: list[int], model: str) -> list[Tensor]:
        """Mean and deviation of `some` pictures' latents (F, 2, C, h, w); their masks are kept."""
        first, names = self.views[some[0]], []
        flips = (False, True) if first.recipe.flip_aug else (False,)
        if self.stored:
            names = [self._name(first, flipped, model) for flipped in flips]
            found = [self.stored.get(name, ("mean", "deviation")) for name in names]
            kept = [one for one in found if one]
            if len(kept) == len(found):
                if first.masked:
                    self._keep_mask(some[0], first.mask(first.shown(first.whole())))
                return [torch.stack([torch.stack([one["mean"], one["deviation"]]) for one in kept])]
        shown = [self.views[i].shown(self.views[i].whole()) for i in some]
        for i, pixels in zip(some, shown, strict=True):
            self._keep_mask(i, self.views[i].mask(pixels))
        pixels = torch.stack([pixels_of(one) for one in shown])
        made = torch.stack([self._checked(self._turned(pixels, flipped), some) for flipped in flips], 1)  # (B, F, 2, C, h, w)
        if self.stored:
            for name, one in zip(names, made[0], strict=True):
                self.stored.put(name, {"mean": one[0], "deviation": one[1]})
        return list(made)

    def _name(self, view: View, flipped: bool, model: str) -> str:
        """The name under which a picture's latents are kept."""
        how = view.recipe.resize_interpolation
        ways = (
            [f"by {how}"] if how else ["by area or lanczos"] if view.size != view.whole_size else []
        )  # without a name they were all by lanczos once
        ways += ["with what is transparent"] if view.recipe.alpha_mask else []
        return key(view.picture.path.read_bytes(), repr(view.place), repr(view.buckets.enabled), repr(flipped), model, *ways)

    def _turned(self, pixels: Tensor, flipped: bool) -> Tensor:
        return pixels.flip(-1) if flipped else pixels

    def _checked(self, pixels: Tensor, some: Sequence[int]) -> Tensor:
        """The latents of pixels of `some` pictures, on the CPU. Raises `ValueError` for such as are not finite."""
        latents = encoded(self.vae, pixels)
        for i, finite in zip(some, latents.isfinite().flatten(1).all(1).tolist(), strict=True):
            if not finite:
                raise ValueError(
                    f"the latents of {self.views[i].picture.path} are not finite numbers in {self.vae.dtype}: "
                    "keep the autoencoder in fp32 (no_half_vae), or load one repaired for fp16"
                )
        return latents.cpu()
