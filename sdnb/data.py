"""Image-caption folders, and where the bundled data lies."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
BUNDLED = ("emoji", "emoji-ink", "emoji-ink/train", "emoji-ink/held_out")


def bundled(name: str = "") -> Path:
    """A folder or file of the data that travels with the package; without a name, the folder that holds all of it."""
    package = Path(__file__).resolve().parent
    for root in (package / "data", package.parent / "data"):  # installed, or in a checkout
        if (root / "SOURCES.md").exists():
            return root / name
    raise FileNotFoundError("the package's data folder is missing: install sdnb again")


@dataclass(frozen=True)
class Picture:
    """One picture with its caption. `path` is where it came from."""

    path: Path
    caption: str

    def open(self) -> Image.Image:
        """The picture in RGB, transparency on white, turned as its EXIF data says. Raises `ValueError` if it cannot be read."""
        from PIL import Image, ImageOps

        try:
            with Image.open(self.path) as file:
                image = ImageOps.exif_transpose(file).convert("RGBA")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.path} does not open as a picture ({error}): mend it or take it out of the folder") from error
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image)
        return page.convert("RGB")

    def pixels(self, size: int) -> Tensor:
        """The largest square in the middle, resized: (3, size, size) in [-1, 1]."""
        import numpy
        import torch
        from PIL import Image, ImageOps

        square = ImageOps.fit(self.open(), (size, size), method=Image.Resampling.LANCZOS)
        return torch.from_numpy(numpy.array(square)).permute(2, 0, 1).float() / 127.5 - 1


@dataclass(frozen=True)
class Pictures(Sequence[Picture]):
    """A sequence of captioned pictures. `skipped` names the files that were left out, each with the reason."""

    items: tuple[Picture, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Pictures(self.items[index], self.skipped)
        return self.items[index]

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.items)

    @property
    def captions(self) -> list[str]:
        return [picture.caption for picture in self.items]

    @property
    def empty_captions(self) -> int:
        """How many pictures have no caption. They are allowed: the model then learns to draw them unasked."""
        return sum(not caption.strip() for caption in self.captions)

    def __repr__(self) -> str:
        notes = [f"{len(self)} pictures"]
        notes += [f"{self.empty_captions} without a caption"] if self.empty_captions else []
        notes += [f"{len(self.skipped)} skipped"] if self.skipped else []
        return f"<Pictures: {', '.join(notes)}>"


def pictures(name_or_folder: str | Path, *, on_bad: str = "raise") -> Pictures:
    """The pictures of a folder with their captions.

    `name_or_folder` is one of the bundled sets (`emoji`, `emoji-ink`, which is its `train` part, `emoji-ink/held_out`) or a folder.
    Captions stand in `metadata.jsonl` (`file_name`, `text`), or else in a `.txt` or `.caption` file beside each picture; a picture
    without one gets the empty caption, and `empty_captions` counts them. Every picture is opened once, here, so that a bad one
    is found before a run and not in the middle of it; with `on_bad="skip"` it is left out, warned of and named in `skipped`.

    Raises `FileNotFoundError` for a folder that does not exist, `ValueError` for a folder without pictures, captions of missing
    pictures, or a file that is no picture.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f'on_bad={on_bad!r}: it must be "raise" or "skip"')
    folder = _find(name_or_folder)
    metadata = folder / "metadata.jsonl"
    found = _from_metadata(metadata) if metadata.exists() else _from_sidecars(folder)
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(ENDINGS)})")

    good, skipped = [], []
    for picture in found:
        try:
            picture.open()
        except ValueError as error:
            if on_bad == "raise":
                raise ValueError(f'{error}, or say on_bad="skip"') from error
            skipped.append(str(error))
        else:
            good.append(picture)
    if skipped:
        warnings.warn(f"{len(skipped)} of {len(found)} pictures skipped: " + "; ".join(skipped), stacklevel=2)
    if not good:
        raise ValueError(f"none of the {len(found)} pictures in {folder} opens")
    return Pictures(tuple(good), tuple(skipped))


def _find(name_or_folder: str | Path) -> Path:
    folder = Path(name_or_folder).expanduser()
    if str(name_or_folder) in BUNDLED and not folder.is_dir():
        folder = bundled(str(name_or_folder))
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(name_or_folder)!r}: give a folder of pictures, or one of {', '.join(BUNDLED)}")
    if not (folder / "metadata.jsonl").exists() and (folder / "train" / "metadata.jsonl").exists():
        return folder / "train"
    return folder


def _from_metadata(metadata: Path) -> list[Picture]:
    found, missing = [], []
    for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, caption = row["file_name"], row.get("text") or ""
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{metadata}, line {number}: it must read {{"file_name": "…", "text": "…"}}') from error
        path = metadata.parent / str(name)
        (found if path.is_file() else missing).append(Picture(path, str(caption)))
    if missing:
        names = ", ".join(picture.path.name for picture in missing[:5]) + (", …" if len(missing) > 5 else "")
        raise ValueError(f"{metadata} names {len(missing)} pictures that are not there: {names}")
    return found


def _from_sidecars(folder: Path) -> list[Picture]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS and path.is_file():
            sidecars = [path.with_suffix(ending) for ending in (".txt", ".caption")]
            texts = [sidecar.read_text(encoding="utf-8").strip() for sidecar in sidecars if sidecar.is_file()]
            found.append(Picture(path, texts[0] if texts else ""))
    return found
