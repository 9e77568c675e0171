"""Aspect-ratio buckets: which size a picture is trained at. The rule is sd-scripts' (`enable_bucket` and the settings beside it)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..recipe import Recipe

Size = tuple[int, int]
"""(width, height) in pixels."""
LONGEST = 16_384
"""Pixels of the longest side that is trained at."""


@dataclass(frozen=True)
class Place:
    """How one picture becomes a training picture: resized, then a part cut out."""

    size: Size
    """Size of the bucket, which is trained at."""
    resized: Size
    """The whole picture before the cut; at least `size`."""
    corner: Size | None = field(default=None, repr=False)
    """(left, top) of the cut in pixels of `resized`; None cuts out the middle."""

    @property
    def left(self) -> int:
        """Pixels of `resized` that are cut off on the left; on the right of a middle it is as many, or one more."""
        return self.corner[0] if self.corner else (self.resized[0] - self.size[0]) // 2

    @property
    def top(self) -> int:
        """Pixels of `resized` that are cut off at the top; below a middle it is as many, or one more."""
        return self.corner[1] if self.corner else (self.resized[1] - self.size[1]) // 2


def margins(picture: Size, size: Size, flipped: bool = False) -> tuple[int, int]:
    """(top, left) that SDXL is told as the corner of a cut, in pixels, as sd-scripts says it: not where the picture was cut, but what would
    stay empty above it and on its left if the whole of it were fitted into `size`.

    >>> margins((900, 600), (640, 384)), margins((900, 600), (512, 512))
    ((0, 32), (85, 0))
    """
    ratio, (width, height) = picture[0] / picture[1], size
    fitted = (height * ratio, height) if width / height > ratio else (width, width / ratio)
    left, top = (width - fitted[0]) // 2, (height - fitted[1]) // 2
    return int(top), int(width - (left + fitted[0]) if flipped else left)


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """The sizes that pictures are sorted into, all of about the area of `resolution`.

    With `no_upscale` a small picture is never made larger: its bucket is its own size, cut down to multiples of `step`.
    Raises `ValueError` for sides that do not go together.
    """

    resolution: Size
    enabled: bool = True
    min_side: int = 256
    max_side: int = 1024
    step: int = 64
    no_upscale: bool = False

    def __post_init__(self) -> None:
        if not all(1 <= side <= LONGEST for side in self.resolution):
            raise ValueError(f"resolution={self.resolution}: each side must be from 1 to {LONGEST:,}")
        if not self.enabled:
            return
        if self.step < 1:
            raise ValueError(f"bucket_reso_steps={self.step}: it must be 1 or more")
        # sd-scripts rounds outwards to whole steps
        object.__setattr__(self, "min_side", self.min_side - self.min_side % self.step)
        object.__setattr__(self, "max_side", self.max_side + -self.max_side % self.step)
        if self.min_side < self.step and not self.no_upscale:  # that one takes the pictures' own sizes
            raise ValueError(f"min_bucket_reso={self.min_side}: it must be bucket_reso_steps={self.step} or more")
        if not self.min_side <= min(self.resolution):
            raise ValueError(f"min_bucket_reso={self.min_side} is above the resolution {self.resolution}: lower it")
        if self.max_side > LONGEST:
            raise ValueError(f"max_bucket_reso={self.max_side}: it must be {LONGEST:,} or less")
        if not max(self.resolution) <= self.max_side:
            raise ValueError(f"max_bucket_reso={self.max_side} is below the resolution {self.resolution}: raise it")

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes to choose from, in order; with `no_upscale` they follow from the pictures and none are listed."""
        if not self.enabled:
            return (self.resolution,)
        if self.no_upscale:
            return ()
        area, step = self.resolution[0] * self.resolution[1], self.step
        square = int(math.sqrt(area) // step) * step
        found = {(square, square)}
        for long in range(self.min_side, self.max_side + 1, step):
            short = min(self.max_side, area // long // step * step)
            if short >= self.min_side:
                found |= {(long, short), (short, long)}
        return tuple(sorted(found))

    def place(self, width: int, height: int) -> Place:
        """Where a picture of `width` × `height` pixels goes: the bucket of the nearest ratio, or with `no_upscale` one of its own.

        Raises `ValueError` for one that is smaller than a step, with `no_upscale`, and one so long and narrow that it would be
        resized to a huge one.

        >>> Buckets(resolution=(512, 512)).place(900, 600)
        Place(size=(640, 384), resized=(640, 427))
        """
        ratio = width / height
        if self.enabled and self.no_upscale:
            return self._shrunk(width, height)
        size = (width, height)
        if size not in self.sizes:
            size = min(self.sizes, key=lambda one: abs(one[0] / one[1] - ratio))
        scale = size[1] / height if ratio > size[0] / size[1] else size[0] / width
        resized = (int(width * scale + 0.5), int(height * scale + 0.5))
        if resized[0] * resized[1] > LONGEST**2:
            raise ValueError(
                f"a picture of {width} × {height} would be resized to {resized[0]} × {resized[1]} first: cut it to another shape"
            )
        return Place(size, resized)

    def _shrunk(self, width: int, height: int) -> Place:
        area, ratio = self.resolution[0] * self.resolution[1], width / height
        resized = (width, height)
        if width * height > area:
            wide = math.sqrt(area * ratio)
            # one side becomes a whole number of steps: the one that changes the ratio less
            by_width, by_height = self._whole(wide), self._whole(area / wide)
            other_height, other_width = self._whole(by_width / ratio), self._whole(by_height * ratio)
            width_error = abs(by_width / other_height - ratio) if other_height else math.inf
            height_error = abs(other_width / by_height - ratio) if by_height else math.inf
            if width_error >= height_error:
                by_width = int(by_height * ratio + 0.5)
            else:
                by_height = int(by_width / ratio + 0.5)
            resized = (by_width, by_height)
        size = (resized[0] - resized[0] % self.step, resized[1] - resized[1] % self.step)
        if not all(size):
            raise ValueError(
                f"a picture of {width} × {height} has a side below bucket_reso_steps={self.step}: "
                "take it out, or leave out bucket_no_upscale"
            )
        return Place(size, resized)

    def _whole(self, side: float) -> int:
        side = int(side + 0.5)
        return side - side % self.step


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def of(recipe: Recipe, *, resolution: int, multiple: int) -> Buckets:
    """The buckets a recipe asks for, of a model made for pictures of side `resolution` that halves sides down to whole numbers only at
    multiples of `multiple`.

    sd-scripts' defaults (256 to 1024 in steps of 64) are for sides from 256; for a smaller model they are half and twice its side in
    steps of `multiple`. Raises `ValueError` for sides the model cannot halve.
    """
    sides = recipe.resolution or resolution
    width, height = sides if isinstance(sides, tuple) else (sides, sides)
    enabled, small = recipe.enable_bucket, min(width, height) < 256
    step = _or(recipe.bucket_reso_steps, multiple if small else 64)
    if enabled and step % multiple:
        raise ValueError(f"bucket_reso_steps={step}: this model needs a multiple of {multiple}")
    if not enabled and (width % multiple or height % multiple):
        said = width if width == height else f"{width},{height}"
        raise ValueError(f"resolution={said}: this model halves its latents down to whole numbers only at multiples of {multiple}")
    return Buckets(
        resolution=(width, height),
        enabled=enabled,
        min_side=_or(recipe.min_bucket_reso, min(width, height) // 2 if small else 256),
        max_side=_or(recipe.max_bucket_reso, 2 * max(width, height) if small else max(1024, width, height)),
        step=step,
        no_upscale=recipe.bucket_no_upscale,
    )
