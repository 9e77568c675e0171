"""Resizing of pictures, by the names of sd-scripts' `resize_interpolation`.

There `lanczos` and `box` are Pillow's filters, the others OpenCV's. Of those only `area` smooths what it shrinks: a pixel becomes the mean
of the part of the picture that it covers. Here the same sums are made without OpenCV, and differ by one of 255 levels at most, where a sum
is rounded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

PILLOWS = ("lanczos", "box")
TORCHS = {"bilinear": "bilinear", "linear": "bilinear", "bicubic": "bicubic", "cubic": "bicubic"}
"""sd-scripts' names of OpenCV's filters, and torch's names of the same."""
FILTERS = (*PILLOWS, *TORCHS, "area", "nearest")


def resized(pixels: ndarray, size: tuple[int, int], how: str = "lanczos") -> ndarray:
    """Pixels of 8 bits (h, w, C) at another `size`, (width, height), by one of `FILTERS`.

    >>> import numpy
    >>> resized(numpy.arange(8, dtype=numpy.uint8).reshape(2, 4, 1), (2, 1), "area").ravel()
    array([2, 4], dtype=uint8)
    """
    width, height = size
    if pixels.shape[:2] == (height, width):
        return pixels
    if how in PILLOWS:
        return _by_pillow(pixels, size, how)
    if how == "nearest":
        return pixels[_nearest(len(pixels), height)][:, _nearest(pixels.shape[1], width)]
    shrinks = pixels.shape[0] >= height and pixels.shape[1] >= width
    if how == "area" and shrinks:
        return _rounded(_covered(_covered(pixels, height).swapaxes(0, 1), width).swapaxes(0, 1))
    if how == "area":
        return _rounded(_stretched(_stretched(pixels, height).swapaxes(0, 1), width).swapaxes(0, 1))
    return _by_torch(pixels, size, TORCHS[how])


def _by_pillow(pixels: ndarray, size: tuple[int, int], how: str) -> ndarray:
    import numpy
    from PIL import Image

    return numpy.asarray(Image.fromarray(pixels).resize(size, getattr(Image.Resampling, how.upper())))


def _by_torch(pixels: ndarray, size: tuple[int, int], how: str) -> ndarray:
    import torch

    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()  # (1, C, h, w)
    planes = torch.nn.functional.interpolate(planes, size[::-1], mode=how, align_corners=False)
    return _rounded(planes[0].permute(1, 2, 0).numpy())


def _covered(rows: ndarray, count: int) -> ndarray:
    """`count` rows, each the mean of those that it covers: (n, …) -> (count, …)."""
    import numpy

    scale, made = len(rows) / count, numpy.empty((count, *rows.shape[1:]), dtype=numpy.float32)
    for i in range(count):
        first, last = i * scale, min((i + 1) * scale, len(rows))
        places = numpy.arange(int(first), min(math.ceil(last), len(rows)))
        shares = numpy.minimum(places + 1, last) - numpy.maximum(places, first)
        made[i] = numpy.tensordot((shares / shares.sum()).astype(numpy.float32), rows[places[0] : places[-1] + 1], axes=1)
    return made


def _stretched(rows: ndarray, count: int) -> ndarray:
    """`count` rows as OpenCV's `area` makes them where another side grows: between two rows only where a new one covers both."""
    import numpy

    scale, places = len(rows) / count, numpy.arange(count)
    first = numpy.floor(places * scale).astype(int)
    share = (places + 1) - (first + 1) / scale
    share = numpy.where(share <= 0, 0, share - numpy.floor(share)).astype(numpy.float32)
    share = numpy.where(first >= len(rows) - 1, 0, share).reshape(-1, *[1] * (rows.ndim - 1))
    first = first.clip(max=len(rows) - 1)
    return rows[first] * (1 - share) + rows[(first + 1).clip(max=len(rows) - 1)] * share


def _nearest(length: int, count: int) -> ndarray:
    """Places of `count` pixels among `length`, in OpenCV's own whole numbers: one that lies between two is decided as it does."""
    import numpy

    step = ((length << 16) + count // 2) // count
    return ((step * numpy.arange(count) + step // 2 - length % 2) >> 16).clip(0, length - 1)


def _rounded(pixels: ndarray) -> ndarray:
    import numpy

    return numpy.rint(pixels).clip(0, 255).astype(numpy.uint8)
