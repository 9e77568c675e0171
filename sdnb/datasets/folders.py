"""Pictures with captions: `Picture`, and the folders that hold many."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from ..system import bundled as bundled
from ..system import files, untrusted
from . import config

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..recipe import Recipe
    from .buckets import Place


@dataclass(frozen=True)
class Picture:
    """One picture with its caption. `path` is where it came from."""

    path: Path
    caption: str
    repeats: int = 1
    """Times that an epoch shows it."""
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

        Raises `ValueError` if it cannot be read.
        """
        from PIL import Image

        try:
            with Image.open(self.path) as file:
                turned = file.getexif().get(274) in (5, 6, 7, 8)  # Orientation: those lie on their side
                return (file.height, file.width) if turned else (file.width, file.height)
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


ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TEXTS = (".txt", ".caption")
"""Endings of the files with captions."""
BUNDLED = ("emoji", "emoji-ink", "emoji-ink/train", "emoji-ink/held_out")


@dataclass(frozen=True)
class Pictures(Sequence[Picture]):
    """A sequence of captioned pictures. `skipped` names the files that were left out, each with the reason."""

    items: tuple[Picture, ...]
    skipped: tuple[str, ...] = ()
    settings: tuple[tuple[str, object], ...] = ()
    """A dataset file's settings of the run, (name, value) pairs under the names of `Recipe`."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Pictures(self.items[index], self.skipped, self.settings)
        return self.items[index]

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.items)

    @property
    def captions(self) -> list[str]:
        """The caption of each picture, in their order."""
        return [picture.caption for picture in self.items]

    @property
    def empty_captions(self) -> int:
        """Number of pictures without a caption. They are allowed: the model then learns to draw them unasked."""
        return sum(not caption.strip() for caption in self.captions)

    def recipe(self, recipe: Recipe) -> Recipe:
        """`recipe` with the dataset file's settings, which win, as in sd-scripts; unchanged without a file."""
        return recipe.replace(**dict(self.settings)) if self.settings else recipe

    def __repr__(self) -> str:
        notes = [f"{len(self)} pictures"]
        regular = sum(picture.is_reg for picture in self.items)
        notes += [f"{regular} of them for regularization"] if regular else []
        notes += [f"{self.empty_captions} without a caption"] if self.empty_captions else []
        notes += [f"{len(self.skipped)} skipped"] if self.skipped else []
        return f"<Pictures: {', '.join(notes)}>"


def pictures(
    name_or_folder: str | Path, *, on_bad: str = "raise", caption_extension: str | None = None, reg_data_dir: str | Path | None = None
) -> Pictures:
    """The pictures of a folder with their captions.

    `name_or_folder` is one of the bundled sets (`emoji`, `emoji-ink`, which is its `train` part, `emoji-ink/held_out`) or a folder.
    Captions stand in `metadata.jsonl` (`file_name`, `text`), or else in a `.txt` or `.caption` file beside each picture; a picture
    without one gets the empty caption, and `empty_captions` counts them. A folder of folders named `N_words` is sd-scripts'
    `train_data_dir`: their pictures are shown N times an epoch, and `words` is the caption of those without one. Its dataset file
    (`dataset.toml`) is read too; what it says about the run is in `settings`. Every picture is opened once, here, so that a bad one
    is found before a run and not in the middle of it; with `on_bad="skip"` it is left out, warned of and named in `skipped`.
    `caption_extension` is the ending of the files with captions, if it is neither of the two.

    `reg_data_dir` is another folder, of regularization pictures, as are a dataset file's subsets with `is_reg`: an epoch shows as many of
    them as of the others, see `balanced`.

    Raises `FileNotFoundError` for a folder that does not exist, `ValueError` for a folder without pictures, captions of missing
    pictures, or a file that is no picture.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f'on_bad={on_bad!r}: it must be "raise" or "skip"')
    settings: tuple[tuple[str, object], ...] = ()
    if Path(name_or_folder).suffix.lower() == ".toml":
        folder = Path(name_or_folder).expanduser()
        dataset = config.read(folder)
        settings = dataset.settings
        if reg_data_dir is not None:
            raise ValueError("reg_data_dir does not go with a dataset file: give that folder a subset with is_reg = true there")
        groups = [
            [picture for subset in subsets for picture in _from_subset(subset)]
            for _, subsets in groupby(dataset.subsets, key=lambda subset: subset.dataset)
        ]
    else:
        folder = _find(name_or_folder)
        endings = (f".{caption_extension.lstrip('.')}",) if caption_extension else TEXTS
        groups = [_from_folder(folder, endings)]
        if reg_data_dir is not None:
            regular = _from_folder(_find(reg_data_dir), endings)
            if not regular:
                raise ValueError(f"reg_data_dir={str(reg_data_dir)!r} holds no pictures ({', '.join(ENDINGS)})")
            groups[0] += [replace(picture, is_reg=True) for picture in regular]
    listed = [picture for group in groups for picture in group]
    _warn_of_shared_captions(listed)
    if not listed:
        raise ValueError(f"{folder} holds no pictures ({', '.join(ENDINGS)})")

    bad, skipped = set(), []
    for picture in listed:
        try:
            picture.open()
        except ValueError as error:
            if on_bad == "raise":
                raise ValueError(f'{error}, or say on_bad="skip"') from error
            skipped.append(str(error))
            bad.add(id(picture))
    if skipped:
        warnings.warn(f"{len(skipped)} of {len(listed)} pictures skipped: " + "; ".join(skipped), stacklevel=2)
    good = [shown for group in groups for shown in balanced([picture for picture in group if id(picture) not in bad])]
    if not good and all(picture.is_reg for picture in listed):
        raise ValueError(f"{folder} holds regularization pictures alone: give it a folder of pictures to learn from, too")
    if not good:
        raise ValueError(f"none of the {len(listed)} pictures in {folder} opens")
    return Pictures(tuple(good), tuple(skipped), settings)


def balanced(found: Sequence[Picture]) -> list[Picture]:
    """The pictures with repeats that show as many regularization pictures as others, as sd-scripts counts them.

    Those for regularization are taken in order, each as often as it says, until there are enough; what is missing then is made up by
    showing one after the other once more. Those that are not needed are left out, with a warning.
    """
    own = [picture for picture in found if not picture.is_reg]
    regular = [picture for picture in found if picture.is_reg]
    wanted, taken, count = sum(picture.repeats for picture in own), [], 0
    for picture in regular:
        if count < wanted:
            taken.append(picture)
            count += picture.repeats
    if taken:
        rounds, more = divmod(max(0, wanted - count), len(taken))
        taken = [replace(picture, repeats=picture.repeats + rounds + (place < more)) for place, picture in enumerate(taken)]
    if own and len(taken) < len(regular):
        warnings.warn(f"{len(regular) - len(taken)} of {len(regular)} regularization pictures are not needed and left out", stacklevel=3)
    return [*own, *taken]


def _find(name_or_folder: str | Path) -> Path:
    folder = Path(name_or_folder).expanduser()
    if str(name_or_folder) in BUNDLED and not folder.is_dir():
        folder = files.bundled(str(name_or_folder))
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(name_or_folder)!r}: give a folder of pictures, or one of {', '.join(BUNDLED)}")
    if not (folder / "metadata.jsonl").exists() and (folder / "train" / "metadata.jsonl").exists():
        return folder / "train"
    return folder


def _from_folder(folder: Path, endings: Sequence[str]) -> list[Picture]:
    metadata = folder / "metadata.jsonl"
    return _from_metadata(metadata) if metadata.exists() else _from_sidecars(folder, endings=endings) or _from_repeats(folder, endings)


def _from_metadata(metadata: Path) -> list[Picture]:
    pictures, missing = [], []
    for number, line in enumerate(untrusted.read_text(metadata).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, caption = row["file_name"], row.get("text") or ""
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{metadata}, line {number}: it must read {{"file_name": "…", "text": "…"}}') from error
        path = metadata.parent / str(name)
        (pictures if path.is_file() else missing).append(Picture(path, str(caption)))
    if missing:
        names = ", ".join(picture.path.name for picture in missing[:5]) + (", …" if len(missing) > 5 else "")
        raise ValueError(f"{metadata} names {len(missing)} pictures that are not there: {names}")
    return pictures


def _from_sidecars(folder: Path, *, endings: Sequence[str], words: str = "", repeats: int = 1) -> list[Picture]:
    pictures = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS and path.is_file():
            texts = [untrusted.read_text(path.with_suffix(ending)).strip() for ending in endings if path.with_suffix(ending).is_file()]
            pictures.append(Picture(path, texts[0] if texts else words, repeats))
    return pictures


def _from_repeats(folder: Path, endings: Sequence[str]) -> list[Picture]:
    """sd-scripts' `train_data_dir`: folders named with how often an epoch shows their pictures and what is in them."""
    pictures = []
    for inner in sorted(folder.iterdir()):
        number, _, words = inner.name.partition("_")
        if inner.is_dir() and number.isdecimal() and int(number) > 0:
            pictures += _from_sidecars(inner, endings=endings, words=words, repeats=int(number))
    return pictures


def _from_subset(subset: config.Subset) -> list[Picture]:
    if not subset.folder.is_dir():
        raise FileNotFoundError(f"image_dir={str(subset.folder)!r}: there is no such folder")
    pictures = _from_sidecars(subset.folder, endings=[subset.caption_extension], words=subset.class_tokens, repeats=subset.repeats)
    return [replace(picture, is_reg=subset.is_reg) for picture in pictures]


def _warn_of_shared_captions(pictures: list[Picture]) -> None:
    stems = Counter(picture.path.with_suffix("") for picture in pictures)
    shared = [stem.name for stem, count in stems.items() if count > 1]
    if shared:
        warnings.warn(
            f"{len(shared)} names belong to several pictures, which share a caption file: {', '.join(shared[:5])}",
            stacklevel=3,
        )
