"""Room on the card: parts that come to it for a while, others that leave for them, and pictures that are decoded in tiles.

A training step needs the denoiser, and what else comes before, between and after steps needs other parts: the autoencoder for latents and
previews, the text encoders for captions and prompts. Where the card has room for all of them, nothing moves. Else they take turns. Moving
is exact: what comes back has the same bits. Decoding in tiles is not, as the autoencoder normalizes each tile by itself, so that is done
only where the whole picture has no room.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch

from ..checkpointing import on_meta
from ..memory import MemoryTrace, room

if TYPE_CHECKING:
    from torch.nn import Module

    from .model import Model

SHARE = 0.9
"""Share of the room that is counted on: a prediction leaves out the workspaces of convolutions."""
TILES = (1, 2, 4)
"""Tiles along the longer side of a picture, by preference."""


@contextmanager
def on_card(
    sd: Model, names: Collection[str], device: torch.device | None = None, *, work: Callable[[], int] = lambda: 0
) -> Iterator[None]:
    """The parts `names` on `device` inside this context, by default where the first of them is.

    Other parts leave for the computer's memory, the largest first, while a GPU has no room for these and for the `work()` bytes that they
    allocate. All are back where they were afterwards.
    """
    parts = sd.parts
    if device is None:
        device = next((_device(parts[name]) for name in names), torch.device("cpu"))
    free = room(device)
    coming = [part for name, part in parts.items() if name in names and _device(part).type != device.type]
    homes = {part: _device(part) for part in parts.values()}
    leaving: list[Module] = []
    if free is not None:
        missing = sum(map(weight_bytes, coming)) + work() - SHARE * free
        others = [part for name, part in parts.items() if name not in names and _device(part).type == device.type]
        for part in sorted(others, key=weight_bytes, reverse=True):
            if missing > 0:
                leaving.append(part)
                missing -= weight_bytes(part)
    try:
        for part in leaving:
            part.to("cpu")
        for part in coming:
            part.to(device)
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # what they hold is in the way of those that come back
        raise
    finally:
        for part in (*coming, *leaving):
            part.to(homes[part])


def weight_bytes(part: Module) -> int:
    """Bytes of a part's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*part.parameters(), *part.buffers()))


def encode_bytes(sd: Model, batch: int, size: tuple[int, int]) -> int:
    """Bytes that the autoencoder allocates on a GPU to encode `batch` pictures of (width, height) pixels."""
    pixels = torch.empty(batch, 3, *size[::-1], device="meta")
    return _work_bytes(sd, lambda twin: twin.encode(pixels))


def decode_bytes(sd: Model, shape: Collection[int], tile: int | None = None) -> int:
    """Bytes that the autoencoder allocates on a GPU to decode latents of `shape`, (B, C, h, w), whole or in tiles of that many pixels."""
    latents = torch.empty(*shape, device="meta")

    def decode(twin: Model) -> None:
        with tiled(twin, tile):
            twin.decode(latents)

    return _work_bytes(sd, decode)


def tile_sides(sd: Model, size: tuple[int, int]) -> list[int | None]:
    """Sides in pixels of the tiles that a picture of (width, height) may be decoded in, by preference; None is the whole picture."""
    if not hasattr(sd.vae, "use_tiling"):
        return [None]
    return [None, *(-(-max(size) // (parts * sd.downscale)) * sd.downscale for parts in TILES[1:])]


def tile_for(sd: Model, shape: Collection[int], device: torch.device) -> int | None:
    """Side of the largest tiles that the room on a GPU is enough for, else of the smallest; None where the whole picture is decoded."""
    *_, height, width = shape
    sides, free = tile_sides(sd, (width * sd.downscale, height * sd.downscale)), room(device)
    if free is None:
        return None
    return next((side for side in sides if decode_bytes(sd, shape, side) <= SHARE * free), sides[-1])


@contextmanager
def tiled(sd: Model, side: int | None) -> Iterator[None]:
    """Decode in tiles of `side` pixels inside this context, blended where they overlap; None changes nothing."""
    if side is None:
        yield
        return
    vae = cast("Any", sd.vae)
    names = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size")
    before = {name: getattr(vae, name) for name in names}
    vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = True, side, side // sd.downscale
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


def _work_bytes(sd: Model, run: Callable[[Any], object]) -> int:
    """Bytes that `run` allocates with a twin of the model on the meta device whose autoencoder has no weights."""
    vae = on_meta(sd.vae)
    with MemoryTrace(vae) as trace:
        run(replace(cast("Any", sd), vae=vae))
    return trace.peak_bytes - weight_bytes(vae)


def _device(part: Module) -> torch.device:
    return next(part.parameters()).device
