"""What makes a picture another one each time it is shown: cuts at random, cuts around a face, and colours.

The rules, and the order in which chance is asked, are sd-scripts'. Each function takes the generator it asks, so that a batch is the same
whenever it is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .buckets import Place

if TYPE_CHECKING:
    from random import Random

    from numpy import ndarray

    from .buckets import Size

HUES = 8
"""Largest turn of a hue, out of 180."""
SHARE = 0.33
"""Share of pictures that get other colours: half of them another hue, the others another brightness."""


@dataclass(frozen=True)
class Face:
    """Where a face lies in a picture, in pixels: its middle, and the longer of its sides."""

    x: int
    y: int
    side: int

    @classmethod
    def named(cls, stem: str) -> Face | None:
        """The face that a file's name ends with, as `anything_X_Y_WIDTH_HEIGHT`; None where it names none.

        >>> Face.named("ann_120_80_60_70"), Face.named("a_red_fox_in_snow")
        (Face(x=120, y=80, side=70), None)
        """
        parts = stem.split("_")
        if len(parts) < 5 or not all(part.isascii() and part.isdecimal() and len(part) < 7 for part in parts[-4:]):
            return None
        x, y, width, height = map(int, parts[-4:])
        return cls(x, y, max(width, height)) if x > 0 and max(width, height) > 0 else None


def cut(place: Place, chance: Random) -> Place:
    """The place with another cut of the resized picture, at random."""
    corner = []
    for resized, size in zip(place.resized, place.size, strict=True):
        corner.append(chance.randint(0, resized - size) if resized > size else 0)
    return replace(place, corner=tuple(corner))


def cut_whole(picture: Size, size: Size, chance: Random) -> Place:
    """A cut of `size` out of a picture that is not resized, at random: the higher side is drawn first. The picture is at least `size`."""
    top = chance.randint(0, picture[1] - size[1]) if picture[1] > size[1] else 0
    left = chance.randint(0, picture[0] - size[0]) if picture[0] > size[0] else 0
    return Place(size, picture, (left, top))


def cut_around(face: Face, picture: Size, size: Size, sides: tuple[float, float], at_random: bool, chance: Random) -> Place:
    """A cut of `size` around a face: the picture, which is at least `size`, is shrunk until `size` is between `sides[0]` and `sides[1]`
    times as long as the face; `at_random` moves it as far as the picture's edges, else a little.
    """
    if picture == size:
        return Place(size, picture)
    short = min(size)
    least = min(1.0, max(size[1] / picture[1], size[0] / picture[0], short / (face.side * sides[1])))
    most = min(1.0, max(least, short / (face.side * sides[0])))
    scale = least if least >= most else chance.uniform(least, most)
    resized = (int(picture[0] * scale + 0.5), int(picture[1] * scale + 0.5))
    middle = (int(face.x * scale + 0.5), int(face.y * scale + 0.5))
    corner = {}
    for axis in (1, 0):  # the height first
        start = middle[axis] - size[axis] // 2
        if at_random:
            reach = max(resized[axis] - middle[axis], middle[axis])
            start += chance.randint(0, reach) + chance.randint(0, reach) - reach
        elif sides[0] != sides[1] and face.side > short // 10 and face.side >= 40:
            start += chance.randint(-face.side // 20, face.side // 20)
        corner[axis] = max(0, min(start, resized[axis] - size[axis]))
    return Place(size, resized, (corner[0], corner[1]))


def coloured(pixels: ndarray, chance: Random) -> ndarray:
    """Pixels of 8 bits (h, w, 3), in one of three cases in other colours."""
    if chance.random() > SHARE:
        return pixels
    if chance.random() > 0.5:
        turn = chance.uniform(-HUES, HUES)
        return turned(pixels, 180 + turn if turn < 0 else turn)
    return lightened(pixels, chance.uniform(0.95, 1.05))


def lightened(pixels: ndarray, power: float) -> ndarray:
    """Each of the 255 levels to a power; those above white are white."""
    import numpy

    return numpy.clip(pixels.astype(numpy.float64) ** power, 0, 255).astype(numpy.uint8)


def turned(pixels: ndarray, turn: float) -> ndarray:
    """Hues turned by `turn` out of 180: (h, w, 3), by OpenCV's conversion of 8 bits, which sd-scripts hands red in blue's place.

    The hue, in whole numbers, is cut down to one after the turn. Of 1,000 values about 3 differ from OpenCV's, by one level.
    """
    import numpy

    first, green, last = (pixels[..., c].astype(numpy.int32) for c in range(3))  # to OpenCV blue, green and red
    value = pixels.max(-1).astype(numpy.int32)
    span = value - pixels.min(-1)
    levels = numpy.maximum(numpy.arange(256), 1)
    by_value = numpy.rint((255 << 12) / levels).astype(numpy.int32)[value] * (value > 0)
    by_span = numpy.rint((180 << 12) / (6.0 * levels)).astype(numpy.int32)[span] * (span > 0)
    hue = numpy.where(value == last, green - first, numpy.where(value == green, first - last + 2 * span, last - green + 4 * span))
    hue = (hue * by_span + (1 << 11)) >> 12
    hue = ((hue + 180 * (hue < 0)).astype(numpy.float64) + turn) % 180
    return _in_colours(hue.astype(numpy.uint8), (span * by_value + (1 << 11)) >> 12, value)


def _in_colours(hue: ndarray, saturation: ndarray, value: ndarray) -> ndarray:
    """Hue out of 180, saturation and value out of 255 -> (h, w, 3)."""
    import numpy

    one, level = numpy.float32(1), numpy.float32(255)
    sixths = hue.astype(numpy.float32) * numpy.float32(6 / 180)
    full, share = value.astype(numpy.float32) / level, saturation.astype(numpy.float32) / level
    sector = numpy.floor(sixths)
    rest = sixths - sector
    levels = [full, full * (one - share), full * (one - share * rest), full * (one - share * (one - rest))]
    places = numpy.array([[1, 3, 0], [1, 0, 2], [3, 0, 1], [0, 2, 1], [0, 1, 3], [2, 1, 0]])[sector.astype(int) % 6]
    return (numpy.take_along_axis(numpy.stack(levels, -1), places, -1) * level).clip(0, 255).astype(numpy.uint8)
