"""Pictures with captions: `Picture`, and the folders that hold many."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..recipe import Recipe
from ..system import bundled as bundled
from ..system import files, untrusted
from . import config, images, metadata, resampling
from .buckets import Buckets
from .views import place_of

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL import Image
    from torch import Tensor


LONGEST = 100_000
"""Letters of the longest caption."""
MOST_SHOWN = 10_000_000
"""Pictures that an epoch shows at most, each counted as often as it comes."""


@dataclass(frozen=True)
class Picture:
    """One picture with its caption. `path` is where it came from.

    Raises `ValueError` for a caption that is no text or absurdly long, and for absurdly many repeats.
    """

    path: Path
    caption: str
    repeats: int = 1
    """Times that an epoch shows it."""
    is_reg: bool = False
    """Whether it is there for regularization: its loss weighs `prior_loss_weight`."""
    folder: Path | None = None
    """The dataset's folder, as it was given; None for a picture that belongs to none."""
    follow_links: bool = False
    """Whether it may lie outside `folder`."""
    max_pixels: int = images.MAX_PIXELS
    """Pixels of the largest file that is opened."""
    subset: config.Subset | None = None
    """The subset of a dataset file that it belongs to."""
    mask: Picture | None = None
    """The picture whose red says where the loss counts, with `masked_loss`."""
    tags: str | None = None
    """Its tags in fine-tuning metadata, which `caption` has, too; None without such metadata."""

    def __post_init__(self) -> None:
        _check_caption(self.caption, self.path)
        if self.repeats > MOST_SHOWN:
            raise ValueError(
                f"{untrusted.named(self.path)}: an epoch would show it {self.repeats:,} times, and at most {MOST_SHOWN:,} are possible: "
                "lower num_repeats, or N in its folder's name N_words"
            )

    @property
    def settings(self) -> tuple[tuple[str, Any], ...]:
        """A dataset file's settings of this picture, (name, value) under the names of `Recipe`; all others are the recipe's."""
        return self.subset.settings if self.subset else ()

    @property
    def dataset(self) -> int:
        """Index of the dataset file's dataset that it belongs to; 0 without a file. A batch has pictures of one dataset."""
        return self.subset.dataset if self.subset else 0

    def open(self) -> Image.Image:
        """The picture in RGB, 8 bits per colour, transparency on white, turned as its EXIF data says; of a moving one the first frame.

        Raises `ValueError` if it cannot be read, lies outside its `folder`, or has more than `max_pixels`.
        """
        from PIL import ImageOps

        with self._opened() as file:
            return images.in_rgb(ImageOps.exif_transpose(file))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, turned as the EXIF data says; only the file's header is read. Raises as `open` does."""
        with self._opened() as file:
            turned = file.getexif().get(274) in (5, 6, 7, 8)  # Orientation: those lie on their side
            return (file.height, file.width) if turned else (file.width, file.height)

    @property
    def marks(self) -> set[str]:
        """Which of "transparent", "turned" (by EXIF data) and "deep" (of 16 bits) its file is; only the header is read. Raises as `open`
        does."""
        with self._opened() as file:
            found = {
                "transparent": file.mode in ("PA", "LA", "La", "RGBa", "RGBA") or "transparency" in file.info,
                "turned": file.getexif().get(274, 1) not in (0, 1),
                "deep": file.mode.startswith("I"),
            }
            return {name for name, holds in found.items() if holds}

    def _opened(self):
        if self.folder and not self.follow_links:
            check_inside(self.path, self.folder)
        return images.opened(self.path, self.max_pixels)

    def array(self, *, transparent: bool = False) -> ndarray:
        """Pixels of 8 bits (h, w, 3) of `open`; `transparent` ones (h, w, 4) have the colours under what cannot be seen."""
        import numpy
        from PIL import ImageOps

        with self._opened() as file:
            image = ImageOps.exif_transpose(file)
            return numpy.asarray(images.in_rgba(image) if transparent else images.in_rgb(image))

    def pixels(self, size: int | tuple[int, int]) -> Tensor:
        """Resized, and the middle cut out: (3, size, size) in [-1, 1]; or (3, height, width) of a (width, height).

        Raises as `open` does, and `ValueError` for one so long and narrow that it would be resized to a huge one.
        """
        import numpy
        import torch

        width, height = (size, size) if isinstance(size, int) else size
        place = place_of(self, Buckets(resolution=(width, height), enabled=False))
        shown = resampling.resized(self.array(), place.resized)[place.top : place.top + height, place.left : place.left + width]
        return torch.from_numpy(numpy.array(shown)).permute(2, 0, 1).float() / 127.5 - 1


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path stays in a dataset's folder, whatever `..` and symbolic links it has."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def check_inside(path: Path, folder: Path) -> None:
    """Raise `ValueError` for a path that leads out of a dataset's folder."""
    if not is_inside(path, folder):
        raise ValueError(
            f"{untrusted.named(path)} leads out of its dataset's folder {untrusted.named(folder)}: "
            "copy it into the folder, or say follow_links=True (sdnb train --follow-links) if you trust it"
        )


def _check_caption(text: str, path: Path) -> None:
    wrong = f"of {type(text).__name__}, not a text" if not isinstance(text, str) else ""
    if not wrong and len(text) > LONGEST:
        wrong = f"of {len(text):,} letters, and at most {LONGEST:,} are read"
    elif not wrong and "\0" in text:
        wrong = "with a zero byte, so it is no text"
    elif not wrong and not text.isascii() and re.search("[\ud800-\udfff]", text):
        wrong = "with half a letter, a lone surrogate such as \\ud800"
    if wrong:
        raise ValueError(f"{untrusted.named(path)} has a caption {wrong}: write it again")


ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl")
TEXTS = (".txt", ".caption")
"""Endings of the files with captions."""
BUNDLED = ("emoji", "emoji-ink", "emoji-ink/train", "emoji-ink/held_out")


@dataclass(frozen=True)
class Pictures(Sequence[Picture]):
    """A sequence of captioned pictures. `skipped` names the files that were left out, each with the reason."""

    items: tuple[Picture, ...]
    skipped: tuple[str, ...] = ()
    groups: tuple[tuple[Picture, ...], ...] = ()
    """The pictures as they were found, before `balanced`: a group for each dataset of a file, else one. Empty for some of a set."""

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
        """The caption of each picture, in their order."""
        return [picture.caption for picture in self.items]

    @property
    def empty_captions(self) -> int:
        """Number of pictures without a caption. They are allowed: the model then learns to draw them unasked."""
        return sum(not caption.strip() for caption in self.captions)

    @property
    def settings(self) -> tuple[tuple[str, Any], ...]:
        """What a dataset file says about all of them, as (name, value) under the names of `Recipe`."""
        distinct = list(dict.fromkeys(picture.settings for picture in self.items)) or [()]
        return tuple(pair for pair in distinct[0] if all(pair in others for others in distinct[1:]))

    def recipe(self, recipe: Recipe) -> Recipe:
        """`recipe` with what the dataset file says about all pictures, which wins, as in sd-scripts; unchanged without a file."""
        settings = self.settings
        return recipe.replace(**dict(settings)) if settings else recipe

    def __repr__(self) -> str:
        notes = [f"{len(self)} pictures"]
        regular = sum(picture.is_reg for picture in self.items)
        notes += [f"{regular} of them for regularization"] if regular else []
        notes += [f"{self.empty_captions} without a caption"] if self.empty_captions else []
        notes += [f"{len(self.skipped)} skipped"] if self.skipped else []
        return f"<Pictures: {', '.join(notes)}>"


def pictures(
    name_or_folder: str | Path,
    *,
    on_bad: str = "raise",
    caption_extension: str | None = None,
    reg_data_dir: str | Path | None = None,
    recipe: Recipe | None = None,
    follow_links: bool = False,
    max_pixels: int = images.MAX_PIXELS,
) -> Pictures:
    """The pictures of a folder with their captions.

    Captions come from `metadata.jsonl` (`file_name`, `text`), or else from a `.txt` or `.caption` file beside each picture. A picture
    without one has the empty caption; `empty_captions` counts these. Every picture is opened once here, so that a bad one is found before
    a run and not in the middle of it.

    - `name_or_folder`: a bundled set (`emoji`, `emoji-ink`, which is its `train` part, or `emoji-ink/held_out`), a folder, a folder of
      folders named `N_words` as in sd-scripts (its pictures are shown N times an epoch, and `words` is the caption of those without one),
      or sd-scripts' dataset file (`dataset.toml`; what it says about a picture is in `Picture.settings`)
    - `on_bad`: `"raise"`, or `"skip"` to leave bad pictures out, with a warning and their names in `skipped`
    - `caption_extension`: the file extension of captions, if it is neither of the two
    - `reg_data_dir`: a folder of regularization pictures, like a dataset file's subsets with `is_reg`. An epoch shows as many of them as of
      the others; see `balanced`
    - `recipe`: has `caption_extension`, `reg_data_dir` and `dataset_repeats`, for what neither an argument nor the dataset file sets. With
      `in_json`, a file of fine-tuning metadata, that file names the pictures in the folder and their captions
    - `follow_links`: whether to follow symbolic links, `..` and absolute names that lead out of the folder. Without it nothing outside is
      read, because whoever made a folder decides what is in it; the folder itself may be a link
    - `max_pixels`: pixels of the largest picture that is opened

    Raises `FileNotFoundError` for a folder that does not exist; `ValueError` for a folder without pictures, captions of missing pictures,
    captions that are not text, files that are not pictures or cannot be read, a picture outside, and too many pixels or repeats.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f'on_bad={on_bad!r}: it must be "raise" or "skip"')
    if reg_data_dir is not None and _is_dataset_file(name_or_folder):
        raise ValueError("reg_data_dir does not go with a dataset file: give that folder a subset with is_reg = true there")
    given = {"caption_extension": caption_extension, "reg_data_dir": None if reg_data_dir is None else str(reg_data_dir)}
    asked = (recipe or Recipe()).replace(**{name: value for name, value in given.items() if value is not None})
    try:
        folder, groups = _listed(name_or_folder, asked, follow_links, max_pixels)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError) as error:  # the latter for ~ of a user that is not there
        name, reason = getattr(error, "filename", None) or name_or_folder, getattr(error, "strerror", None) or error
        raise ValueError(f"{untrusted.named(name)} cannot be read: {reason}") from error
    listed = [picture for group in groups for picture in group]
    _warn_of_shared_captions(listed)
    if not listed:
        raise ValueError(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    if (shown := sum(picture.repeats for picture in listed)) > MOST_SHOWN:
        raise ValueError(f"{folder}: an epoch would show {shown:,} pictures, and at most {MOST_SHOWN:,} are possible: lower num_repeats")

    bad, skipped = set(), []
    for picture in listed:
        try:
            picture.open()
            if picture.mask:
                picture.mask.open()
        except ValueError as error:
            if on_bad == "raise":
                raise ValueError(f'{error}, or say on_bad="skip"') from error
            skipped.append(str(error))
            bad.add(id(picture))
    if skipped:
        warnings.warn(f"{len(skipped)} of {len(listed)} pictures skipped: " + "; ".join(skipped), stacklevel=2)
    opened = tuple(tuple(picture for picture in group if id(picture) not in bad) for group in groups)
    good = [one for group in opened for one in balanced(group)]
    if not good and all(picture.is_reg for picture in listed):
        raise ValueError(f"{folder} holds regularization pictures alone: give it a folder of pictures to learn from, too")
    if not good:
        raise ValueError(f"none of the {len(listed)} pictures in {folder} opens")
    return Pictures(tuple(good), tuple(skipped), opened)


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


def _listed(name_or_folder: str | Path, recipe: Recipe, follow_links: bool, max_pixels: int) -> tuple[Path, list[list[Picture]]]:
    """The folder or dataset file, and its pictures, in groups to be balanced each."""
    if _is_dataset_file(name_or_folder) and str(name_or_folder) != recipe.in_json:
        path = Path(name_or_folder).expanduser()
        subsets = config.read(path, recipe)
        by_dataset = groupby(subsets, key=lambda subset: subset.dataset)
        return path, [[one for subset in group for one in _of_subset(subset, recipe, follow_links, max_pixels)] for _, group in by_dataset]
    if recipe.in_json is not None:
        file = Path(recipe.in_json).expanduser()
        folder = None if str(name_or_folder) == recipe.in_json else _find(name_or_folder)[0]
        return folder or file, [_of_metadata(file, folder, recipe, recipe.dataset_repeats, follow_links, max_pixels)]

    endings = (f".{recipe.caption_extension.lstrip('.')}",) if recipe.caption_extension else TEXTS

    def found(name: str | Path) -> tuple[Path, list[Picture]]:
        folder, is_ours = _find(name)
        return folder, _Reader(folder, endings, follow_links or is_ours, max_pixels).pictures()

    folder, group = found(name_or_folder)
    if recipe.reg_data_dir is not None:
        _, regular = found(recipe.reg_data_dir)
        if not regular:
            raise ValueError(f"reg_data_dir={recipe.reg_data_dir!r} holds no pictures ({', '.join(ENDINGS)})")
        group += [replace(picture, is_reg=True) for picture in regular]
    return folder, [group]


def _is_dataset_file(name: str | Path) -> bool:
    return Path(name).suffix.lower() in (".toml", ".json")


def _of_subset(subset: config.Subset, recipe: Recipe, follow_links: bool, max_pixels: int) -> list[Picture]:
    """The pictures of a dataset file's subset. Raises `FileNotFoundError` for a folder or a file that does not exist."""
    if subset.metadata_file is not None:
        own = recipe.replace(**dict(subset.settings))
        listed = _of_metadata(subset.metadata_file, subset.folder, own, subset.repeats, follow_links, max_pixels)
        return [replace(picture, subset=subset) for picture in listed]
    if subset.folder is None or not subset.folder.is_dir():
        raise FileNotFoundError(f"image_dir={str(subset.folder)!r}: there is no such folder")
    reader = _Reader(subset.folder, (subset.caption_extension,), follow_links, max_pixels)
    listed = reader.sidecars(subset.folder, subset.class_tokens, subset.repeats)
    if subset.masks is not None:
        listed = _with_masks(listed, subset.folder, subset.masks)
    return [replace(picture, is_reg=subset.is_reg, subset=subset) for picture in listed]


def _with_masks(pictures: list[Picture], folder: Path, masks: Path) -> list[Picture]:
    """The pictures with those of the same name in `masks`. Raises `ValueError` where a picture or a mask is alone."""
    if not masks.is_dir():
        raise FileNotFoundError(f"conditioning_data_dir={str(masks)!r}: there is no such folder")
    paths = sorted((path for path in masks.iterdir() if path.suffix.lower() in ENDINGS and not path.is_dir()), reverse=True)
    by_name = {path.stem: path for path in paths}  # of several the first, as in sd-scripts
    names = {picture.path.stem for picture in pictures}
    alone = [*sorted(names - by_name.keys()), *sorted(by_name.keys() - names)]
    if alone:
        raise ValueError(
            f"Each picture in {untrusted.named(folder)} needs one of the same name in conditioning_data_dir, {untrusted.named(masks)}, and "
            f"the other way round; these {len(alone)} are alone: {', '.join(map(untrusted.named, alone[:5]))}{', …' if alone[5:] else ''}"
        )
    return [replace(one, mask=replace(one, path=by_name[one.path.stem], caption="", folder=masks)) for one in pictures]


def _of_metadata(file: Path, folder: Path | None, recipe: Recipe, repeats: int, follow_links: bool, max_pixels: int) -> list[Picture]:
    """The pictures that a file of fine-tuning metadata names, in `folder` where it gives no whole paths.

    Raises `FileNotFoundError` for a file that does not exist, `ValueError` for pictures that do not.
    """
    if not file.exists():
        raise FileNotFoundError(f"in_json or metadata_file={str(file)!r}: there is no such file")
    pictures, missing = [], []
    read = metadata.read(file, separator=recipe.caption_separator, by_line=recipe.enable_wildcard)
    for name, (caption, tags) in read.items():
        if folder is None and not Path(name).is_absolute():
            raise ValueError(
                f"{untrusted.named(file)} names {untrusted.named(name)}, no whole path: give its folder, train_data_dir or image_dir"
            )
        root = folder or file.parent
        # older files give names without an ending
        paths = [root / name, *(root / f"{name}{ending}" for ending in ENDINGS)]
        path = next((path for path in paths if os.path.lexists(path) and not path.is_dir()), None)
        if path is None:
            missing.append(name)
        else:
            pictures.append(Picture(path, caption, repeats, False, root, follow_links, max_pixels, tags=tags))
    if missing:
        names = ", ".join(map(untrusted.named, missing[:5])) + (", …" if missing[5:] else "")
        raise ValueError(
            f"{untrusted.named(file)} names {len(missing)} pictures that are not there: {names}. "
            "They were renamed, moved or deleted after it was written"
        )
    return pictures


def _find(name_or_folder: str | Path) -> tuple[Path, bool]:
    """The folder, and whether it is one of those that come with the package."""
    folder = Path(name_or_folder).expanduser()
    is_ours = str(name_or_folder) in BUNDLED and not folder.is_dir()
    if is_ours:
        folder = files.bundled(str(name_or_folder))
    if not folder.is_dir():
        name = untrusted.named(repr(str(name_or_folder)))
        raise FileNotFoundError(f"no folder {name}: give a folder of pictures, or one of {', '.join(BUNDLED)}")
    return folder, is_ours


@dataclass(frozen=True)
class _Reader:
    """Lists the pictures of a folder that was given, and reads their captions."""

    root: Path
    endings: Sequence[str]
    """Endings of the caption files."""
    follow_links: bool
    max_pixels: int

    def __post_init__(self) -> None:
        for ending in self.endings:
            if not re.fullmatch(r"\.[^/\\\0]*[^/\\\0.]", ending):
                raise ValueError(f"caption_extension={untrusted.named(ending)!r}: it must be an ending such as .txt")

    def pictures(self) -> list[Picture]:
        """Pictures named by `metadata.jsonl`, here or in `train`; else those in folders `N_words`; else those in the folder itself."""
        for rows in (self.root / "metadata.jsonl", self.root / "train" / "metadata.jsonl"):
            if os.path.lexists(rows):
                return self._from_metadata(rows)
        return self._from_repeats() or self.sidecars(self.root)

    def sidecars(self, folder: Path, words: str = "", repeats: int = 1) -> list[Picture]:
        """The pictures in `folder`, with the captions beside them; `words` is the caption of those without."""
        self._check(folder)
        pictures = []
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in ENDINGS and not path.is_dir():
                names = [
                    path.stem,
                    *(["_".join(parts[:-4])] if len(parts := path.stem.split("_")) >= 5 else []),
                ]  # the face's place is left out
                texts = (path.with_name(f"{name}{ending}") for name in names for ending in self.endings)
                text = next((text for text in texts if os.path.lexists(text)), None)
                pictures.append(self._picture(path, _lines(self._text(text, 4 * LONGEST)) if text else words, repeats))
        return pictures

    def _from_metadata(self, rows: Path) -> list[Picture]:
        pictures, missing = [], []
        for number, line in enumerate(self._text(rows, 100_000_000).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = untrusted.parse_json(line, "it")
                name, caption = row.get("file_name"), row.get("text")
                if not isinstance(name, str) or not isinstance(caption, (str, type(None))):
                    raise ValueError("both are texts")
            except ValueError as error:
                raise ValueError(
                    f'{untrusted.named(rows)}, line {number}: it must read {{"file_name": "…", "text": "…"}} ({error})'
                ) from error
            path = rows.parent / name
            (pictures if os.path.lexists(path) else missing).append(self._picture(path, caption or ""))
        if missing:
            names = ", ".join(untrusted.named(picture.path.name) for picture in missing[:5]) + (", …" if len(missing) > 5 else "")
            raise ValueError(f"{untrusted.named(rows)} names {len(missing)} pictures that are not there: {names}")
        return pictures

    def _from_repeats(self) -> list[Picture]:
        """sd-scripts' `train_data_dir`: folders named with how often an epoch shows their pictures and what is in them."""
        pictures = []
        for inner in sorted(self.root.iterdir()):
            number, _, words = inner.name.partition("_")
            if inner.is_dir() and number.isdecimal() and int(number) > 0:
                pictures += self.sidecars(inner, words, int(number))
        return pictures

    def _picture(self, path: Path, caption: str, repeats: int = 1) -> Picture:
        return Picture(path, caption, repeats, False, self.root, self.follow_links, self.max_pixels)

    def _text(self, path: Path, most: int) -> str:
        self._check(path)
        try:
            return untrusted.read_text(path, most)
        except FileNotFoundError:
            raise ValueError(f"{untrusted.named(path)} is a link to a file that is not there: take it out of the folder") from None

    def _check(self, path: Path) -> None:
        if not self.follow_links:
            check_inside(path, self.root)


def _lines(text: str) -> str:
    """The lines of a caption file, without spaces around them and empty ones at the end."""
    return "\n".join(line.strip() for line in re.split(r"\r\n|\r|\n", text)).rstrip("\n")


def _warn_of_shared_captions(pictures: list[Picture]) -> None:
    stems = Counter(path.with_suffix("") for path in {picture.path for picture in pictures})
    shared = [untrusted.named(stem.name) for stem, count in stems.items() if count > 1]
    if shared:
        warnings.warn(
            f"{len(shared)} names belong to several pictures, which share a caption file: {', '.join(shared[:5])}",
            stacklevel=3,
        )
