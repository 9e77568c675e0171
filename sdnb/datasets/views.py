"""`View`: one picture as a recipe shows it, always the same or another each time, with the mask of its loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from . import augmentation, resampling
from .augmentation import Face
from .buckets import Place, margins

if TYPE_CHECKING:
    from random import Random

    from numpy import ndarray
    from torch import Tensor

    from ..recipe import Recipe
    from .buckets import Buckets, Size
    from .folders import Picture


def place_of(picture: Picture, buckets: Buckets, size: Size | None = None) -> Place:
    """Where a picture goes, whose size may be given. Raises `ValueError` that names the file of one which goes nowhere."""
    try:
        return buckets.place(*(size or picture.size))
    except ValueError as error:
        raise ValueError(f"{picture.path}: {error}") from error


@dataclass(frozen=True)
class View:
    """One picture as a recipe shows it. Raises `ValueError` that names the file of a picture which has no place."""

    picture: Picture
    recipe: Recipe
    buckets: Buckets

    def __post_init__(self) -> None:
        whole, size = self.whole_size, self.size
        if self.cuts_whole and (whole[0] < size[0] or whole[1] < size[1]):
            raise ValueError(
                f"{self.picture.path} has {whole[0]} × {whole[1]} pixels, too few for a cut of {size[0]} × {size[1]}: "
                "without enable_bucket, random_crop and face_crop_aug_range cut pictures and enlarge none"
            )
        if self.recipe.random_crop and self.mask_picture:
            raise ValueError(
                "random_crop does not go with conditioning_data_dir, whose masks would not follow the cut: leave one of them out"
            )

    @cached_property
    def whole_size(self) -> Size:
        """(width, height) of the picture's file in pixels."""
        return self.picture.size

    @cached_property
    def place(self) -> Place:
        """Where the picture goes when its middle is cut out."""
        return place_of(self.picture, self.buckets, self.whole_size)

    @property
    def size(self) -> Size:
        """(width, height) in pixels that it is trained at."""
        return self.place.size

    def told(self, flipped: bool) -> tuple[Size, Size, Size]:
        """(height, width) of the picture, the corner (top, left) of its cut, and (height, width) of the cut, as SDXL is told.

        They do not depend on chance. Of a picture that is cut as it is, the cut is the whole, as in sd-scripts.
        """
        whole = self.size if self.cuts_whole else self.whole_size
        (width, height), (wide, high) = whole, self.size
        return (height, width), margins(whole, self.size, flipped), (high, wide)

    # what changes

    @cached_property
    def face(self) -> Face | None:
        """The face that it is cut around. With buckets and cached latents there is no such cut, as in sd-scripts."""
        without = self.buckets.enabled or self.recipe.caches_latents or not self.recipe.face_range
        return None if without else Face.named(self.picture.path.stem)

    @property
    def cuts_whole(self) -> bool:
        """Whether it is cut out of the picture as it is, not out of one that was resized for its bucket."""
        return not self.buckets.enabled and (self.recipe.random_crop or self.face is not None)

    @property
    def varies(self) -> bool:
        """Whether the picture is another one each time."""
        whole = self.whole_size if self.cuts_whole else self.place.resized
        return self.recipe.color_aug or ((self.recipe.random_crop or self.face is not None) and whole != self.size)

    def cut(self, chance: Random) -> Place:
        """Where the picture is cut this time."""
        sides = self.recipe.face_range
        if self.face and sides:
            return augmentation.cut_around(self.face, self.whole_size, self.size, sides, self.recipe.random_crop, chance)
        if not self.recipe.random_crop:
            return self.place
        return augmentation.cut(self.place, chance) if self.buckets.enabled else augmentation.cut_whole(self.whole_size, self.size, chance)

    # pixels

    def whole(self) -> ndarray:
        """Pixels of 8 bits before what changes: (h, w, 3), or with `alpha_mask` (h, w, 4)."""
        pixels = self.picture.array(transparent=self.recipe.alpha_mask)
        return pixels if self.cuts_whole else self._resized(pixels, self.place)

    def shown(self, whole: ndarray, chance: Random | None = None) -> ndarray:
        """The pixels that are trained on (h, w, C); without `chance` always the same."""
        place = self.cut(chance) if chance else self.place
        (width, height), pixels = place.size, whole
        if whole.shape[:2] != (height, width) or place.corner:
            pixels = self._resized(whole, place)[place.top : place.top + height, place.left : place.left + width]
        if chance and self.recipe.color_aug:
            pixels = pixels.copy()
            pixels[..., :3] = augmentation.coloured(pixels[..., :3], chance)
        return pixels

    def _resized(self, pixels: ndarray, place: Place) -> ndarray:
        return resampling.resized(pixels, place.resized, self.recipe.resize_interpolation)

    @property
    def was_otherwise(self) -> bool:
        """Whether earlier versions showed other pixels: they shrank by Lanczos' filter, and without buckets cut before they resized."""
        if self.recipe.resize_interpolation or self.whole_size == self.size:
            return False
        if self.cuts_whole:
            return self.face is not None
        shrinks = self.place.resized != self.whole_size and all(
            after <= before for after, before in zip(self.place.resized, self.whole_size, strict=True)
        )
        return shrinks or not (self.buckets.enabled or self.recipe.alpha_mask or self.place.resized == self.size)

    # the mask

    @property
    def mask_picture(self) -> Picture | None:
        """The picture of its mask, if the dataset file names one."""
        return self.picture.mask if self.recipe.masked_loss else None

    @property
    def masked(self) -> bool:
        """Whether its loss has a mask."""
        return self.recipe.alpha_mask or self.mask_picture is not None

    def mask(self, shown: ndarray) -> ndarray | None:
        """Weights of the loss from 0 to 255 (h, w) for pixels of `shown`: a mask's red, or what can be seen; None without one.

        A mask is resized to the size that is trained at, whatever its shape, as in sd-scripts. Raises `ValueError` for one of another
        size than the picture, with buckets.
        """
        if self.mask_picture is None:
            return shown[..., 3] if self.recipe.alpha_mask else None
        levels = self.mask_picture.array(transparent=True)[..., :3]
        if self.buckets.enabled and self.mask_picture.size != self.whole_size:
            raise ValueError(f"{self.mask_picture.path} has another size than its picture {self.picture.path}: make them alike")
        return resampling.resized(levels, self.size, self.recipe.resize_interpolation)[..., 0]


def pixels_of(shown: ndarray) -> Tensor:
    """Pixels of 8 bits (h, w, C) as the autoencoder takes them: (3, h, w) in [-1, 1]."""
    import numpy
    import torch

    return torch.from_numpy(numpy.array(shown[..., :3])).permute(2, 0, 1).float() / 127.5 - 1


def mask_of(levels: ndarray, size: tuple[int, int]) -> Tensor:
    """Weights from 0 to 255 (H, W) as those of latents of `size`, (height, width): means of areas, (1, h, w) in [0, 1]."""
    import numpy
    import torch

    weights = torch.from_numpy(numpy.array(levels)).float() / 255
    return torch.nn.functional.interpolate(weights[None, None], size, mode="area")[0]
