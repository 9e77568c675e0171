"""Resizing of pictures, by the names of sd-scripts' `resize_interpolation`.

Without a name, a picture that shrinks is resized by `area`, and one with a side that grows by `lanczos`, as there.

There `lanczos` and `box` are Pillow's filters, the others OpenCV's. Of those only `area` smooths what it shrinks: a pixel becomes the mean
of the part of the picture that it covers. Here the same sums are made without OpenCV. Pillow's filters, `nearest` and an `area` that
shrinks give the same bits; the others differ by one of 255 levels at most, where a sum is rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

PILLOWS = ("lanczos", "box")
TORCHS = {"bilinear": "bilinear", "linear": "bilinear", "bicubic": "bicubic", "cubic": "bicubic"}
"""sd-scripts' names of OpenCV's filters, and torch's names of the same."""
FILTERS = (*PILLOWS, *TORCHS, "area", "nearest")


def resized(pixels: ndarray, size: tuple[int, int], how: str | None = None) -> ndarray:
    """Pixels of 8 bits (h, w, C) at another `size`, (width, height), by one of `FILTERS`, or by sd-scripts' default.

    >>> import numpy
    >>> resized(numpy.arange(8, dtype=numpy.uint8).reshape(2, 4, 1), (2, 1), "area").ravel()
    array([3, 5], dtype=uint8)
    """
    width, height = size
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = pixels.shape[0] >= height and pixels.shape[1] >= width
    how = how or ("area" if shrinks else "lanczos")
    if how in PILLOWS:
        return _by_pillow(pixels, size, how)
    if how == "nearest":
        return pixels[_nearest(len(pixels), height)][:, _nearest(pixels.shape[1], width)]
    if how == "area" and shrinks:
        whole = pixels.shape[0] % height == 0 and pixels.shape[1] % width == 0
        return _blocks(pixels, size) if whole else _rounded(_covered(_covered(pixels, width, axis=1), height, axis=0))
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


def _blocks(pixels: ndarray, size: tuple[int, int]) -> ndarray:
    """The mean of each block of whole pixels: (h, w, C) -> (height, width, C). OpenCV rounds halves up in blocks of 2 × 2, else to even."""
    import numpy

    (height, width, channels), (wide, high) = pixels.shape, size
    across, down = width // wide, height // high
    sums = pixels.reshape(high, down, wide, across, channels).sum((1, 3), dtype=numpy.int32)
    if across == down == 2:
        return ((sums + 2) >> 2).astype(numpy.uint8)
    return _rounded(sums.astype(numpy.float32) * numpy.float32(1 / (across * down)))


def _covered(pixels: ndarray, count: int, axis: int) -> ndarray:
    """`count` rows (axis 0) or columns (axis 1), each the mean of those that it covers, in fp32 and added one by one, as OpenCV does."""
    import numpy

    places, shares = _shares(pixels.shape[axis], count)
    wide = (-1, 1) if axis else (-1, 1, 1)
    made = numpy.zeros((*pixels.shape[:axis], count, *pixels.shape[axis + 1 :]), dtype=numpy.float32)
    for place, share in zip(places.T, shares.T, strict=True):
        made += share.reshape(wide) * pixels.take(place, axis)
    return made


def _shares(length: int, count: int) -> tuple[ndarray, ndarray]:
    """Places among `length` pixels that each of `count` covers, and their shares in its mean, (count, n) both; edges count from 0.001."""
    import numpy

    scale = 1 / (count / length)
    first = numpy.arange(count) * scale
    last, size = first + scale, numpy.minimum(scale, length - first)[:, None]
    stop = numpy.minimum(numpy.floor(last).astype(int), length - 1)
    start = numpy.minimum(numpy.ceil(first).astype(int), stop)
    before, after = (start - first)[:, None], (last - stop)[:, None]
    places = start[:, None] + numpy.arange(-1, (stop - start).max() + 1)
    shares = numpy.where((places >= start[:, None]) & (places < stop[:, None]), 1 / size, 0.0)
    shares = numpy.where((places < start[:, None]) & (before > 1e-3), before / size, shares)
    shares = numpy.where((places == stop[:, None]) & (after > 1e-3), numpy.minimum(numpy.minimum(after, 1), size) / size, shares)
    return places.clip(0, length - 1), shares.astype(numpy.float32)


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
