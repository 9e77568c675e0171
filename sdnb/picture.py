"""`Picture`: one picture with its caption, opened as a model is trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from .buckets import Place


@dataclass(frozen=True)
class Picture:
    """One picture with its caption. `path` is where it came from."""

    path: Path
    caption: str
    repeats: int = 1
    """How often an epoch shows it."""
    is_reg: bool = False
    """Whether it is there for regularization: its loss weighs `prior_loss_weight`."""

    def open(self) -> Image.Image:
        """The picture in RGB, 8 bits per colour, transparency on white, turned as its EXIF data says; of a moving one the first frame.

        Raises `ValueError` if it cannot be read.
        """
        from PIL import Image, ImageOps

        try:
            with Image.open(self.path) as file:
                image = _rgba(ImageOps.exif_transpose(file))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.path} does not open as a picture ({error}): mend it or take it out of the folder") from error
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image)
        return page.convert("RGB")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, turned as the EXIF data says; only the file's header is read.

        Raises `ValueError` if that cannot be.
        """
        from PIL import Image

        try:
            with Image.open(self.path) as file:
                turned = file.getexif().get(274) in (5, 6, 7, 8)  # Orientation: those lie on their side
                return file.size[::-1] if turned else file.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.path} does not open as a picture ({error}): mend it or take it out of the folder") from error

    def placed(self, place: Place) -> Tensor:
        """Resized and cut as its bucket says: (3, h, w) in [-1, 1]."""
        import numpy
        import torch
        from PIL import Image

        left, top, (width, height) = place.left, place.top, place.size
        image = self.open().resize(place.resized, Image.Resampling.LANCZOS).crop((left, top, left + width, top + height))
        return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 127.5 - 1

    def pixels(self, size: int | tuple[int, int]) -> Tensor:
        """The largest square in the middle, resized: (3, size, size) in [-1, 1]; or the largest oblong of a (width, height)."""
        import numpy
        import torch
        from PIL import Image, ImageOps

        sides = (size, size) if isinstance(size, int) else size
        square = ImageOps.fit(self.open(), sides, method=Image.Resampling.LANCZOS)
        return torch.from_numpy(numpy.array(square)).permute(2, 0, 1).float() / 127.5 - 1


def _rgba(image: Image.Image) -> Image.Image:
    """Any kind of picture in RGBA with 8 bits; Pillow itself would cut the values of more bits off at white."""
    from PIL import Image

    if image.mode.startswith("I"):
        import numpy

        return Image.fromarray((numpy.asarray(image).clip(0, 65535) / 257).round().astype("uint8")).convert("RGBA")
    if image.mode in ("P", "PA", "LA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("RGB").convert("RGBA")
