"""Pictures drawn during a run, of which each stage has on the card only what it needs, where that is short of room."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..models import room

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from ..models import Drawing, Model


def previews(sd: Model, drawings: Sequence[Drawing], device: torch.device) -> Iterator[Image.Image]:
    """Draw one after another on `device`: first all prompts are encoded, then all latents made, then each picture is decoded.

    The parts that are elsewhere come for their stage alone. Where the card has no room to decode a whole picture, the denoiser leaves it
    meanwhile, and where that is not enough the picture is decoded in tiles, with a warning.
    """
    with room.on_card(sd, sd.encoders, device):
        told = [drawing.encode(sd) for drawing in drawings]
    latents = [drawing.denoise(sd, each) for drawing, each in zip(drawings, told, strict=True)]
    del told
    with room.on_card(sd, ["vae"], device, work=lambda: max(room.decode_bytes(sd, each.shape) for each in latents)):
        for drawing, each in zip(drawings, latents, strict=True):
            tile = room.tile_for(sd, each.shape, device)
            if tile is not None:
                warnings.warn(
                    f"the card has no room to decode a whole preview: it is decoded in tiles of {tile} pixels, whose colours may differ a "
                    "little from those of a whole picture",
                    RuntimeWarning,
                    stacklevel=2,
                )
            with room.tiled(sd, tile):
                pictures = drawing.decode(sd, each)
            yield from pictures
