"""Picture files from strangers: the one place where they are opened, by the formats named here, after a look at their size."""

from __future__ import annotations

import importlib
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..system import untrusted, words

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JXL")
"""Formats that Pillow may open, whatever a file is called. Others are dangerous: for EPS it starts Ghostscript."""
MAX_PIXELS = 100_000_000
"""Pixels of the largest picture that is opened, unless `max_pixels` says another number."""
SCANS = 100
"""Times that a JPEG may make its decoder go through all pixels, with a few bytes each; programs write about ten."""
_SCAN = re.compile(rb"\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
"""The mark that begins a scan, its length, and its number of components."""
_LOCK = threading.RLock()


@contextmanager
def opened(path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """A picture file, open; nothing is decoded until it is asked for.

    Raises `ValueError` that names the file, whatever is wrong with it, also for what goes wrong inside the block.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    Image.init()
    with _LOCK:
        pillows = Image.MAX_IMAGE_PIXELS
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):
                raise ValueError("it is no regular file")
            if about.st_size > (most := 8 * max_pixels + 2**20):
                raise ValueError(f"it has {about.st_size:,} bytes, and at most {most:,} are read for max_pixels={max_pixels}")
            if path.suffix.lower() == ".jxl":
                _load_plugin()
            Image.MAX_IMAGE_PIXELS = None  # Pillow only warns of some, and has no word for the way out
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as file:
                if file.width * file.height > max_pixels:
                    raise ValueError(
                        f"{file.width} × {file.height} are {file.width * file.height:,} pixels, and at most {max_pixels:,} are decoded: "
                        "make it smaller, or give sdnb.pictures a larger max_pixels"
                    )
                if file.format in ("JPEG", "MPO") and (scans := len(_SCAN.findall(path.read_bytes()))) > SCANS:
                    raise ValueError(f"its pixels come in {scans:,} scans, and at most {SCANS} are decoded")
                Image.MAX_IMAGE_PIXELS = max_pixels  # for the tiles of a TIFF
                yield file
        except Exception as error:  # decoders raise all kinds
            if isinstance(error, UnidentifiedImageError):
                reason = f"it is none of {', '.join(FORMATS)}, or damaged"
            else:
                reason = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
            raise ValueError(
                f"{untrusted.named(path)} does not open as a picture ({words.shown(reason, 300)}): mend it or take it out of the folder"
            ) from error
        finally:
            Image.MAX_IMAGE_PIXELS = pillows


def _load_plugin() -> None:
    """Teach Pillow JPEG XL. Raises `ValueError` where its plugin is not installed."""
    try:
        importlib.import_module("pillow_jxl")
    except ImportError:
        raise ValueError("JPEG XL needs a plugin of Pillow: pip install pillow-jxl-plugin") from None


def in_rgb(image: Image.Image) -> Image.Image:
    """Any kind of picture in RGB with 8 bits, transparency on white."""
    from PIL import Image

    image = in_rgba(image)
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return page.convert("RGB")


def in_rgba(image: Image.Image) -> Image.Image:
    """Any kind of picture in RGBA with 8 bits; Pillow itself would cut the values of more bits off at white."""
    from PIL import Image

    if image.mode.startswith("I"):
        import numpy

        return Image.fromarray((numpy.asarray(image).clip(0, 65535) / 257).round().astype("uint8")).convert("RGBA")
    if image.mode in ("P", "PA", "LA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("RGB").convert("RGBA")
