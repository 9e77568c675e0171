"""Safetensors files, looked at before anything of their weights is read: the header, the length, where a part's files lie."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .family import known_parts

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
HALF = "fp16"
"""What diffusers calls the variant of a file whose numbers are in fp16."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    @property
    def numbers(self) -> int:
        """How many weights there are, without tables of positions, which older files keep among them."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if not name.endswith("position_ids"))


def refuse_pickle(path: Path) -> None:
    """Raise `ValueError` for a file that would be unpickled."""
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"{path.name} is a pickle, which can run any code when it is opened: "
            "only safetensors are loaded. Ask for the .safetensors file of the same model"
        )


def header(path: Path) -> Header:
    """Read the header, and compare the length that it promises with that of the file: the weights themselves are left alone.

    Raises `FileNotFoundError` for a missing file, `ValueError` for one that is damaged, cut off or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give an existing .safetensors file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if length > size:
                raise ValueError("the header does not fit")
            table = json.loads(file.read(length))
            metadata = table.pop("__metadata__", None) or {}
            shapes = {name: tuple(row["shape"]) for name, row in table.items()}
            expected = 8 + length + max((row["data_offsets"][1] for row in table.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no safetensors file, or its beginning is damaged: fetch it again") from error
    if size != expected:
        raise ValueError(f"{path} is damaged: {size:,} bytes where its header promises {expected:,}. Fetch it again")
    return Header(shapes, metadata)


def variants(folder: Path, part: str, *, half: bool = False) -> Iterator[tuple[str | None, Path]]:
    """The variants of a part that a folder in diffusers' format holds, the better one first: `(None or "fp16", its file or index)`.

    `half` says that fp16 is better, which saves half of the reading where the weights end up in 16 bits.
    """
    stem = known_parts()[part].stem
    for variant in (HALF, None) if half else (None, HALF):
        dot = f".{variant}" if variant else ""
        for name in (f"{stem}{dot}.safetensors", f"{stem}.safetensors.index{dot}.json"):
            if (folder / part / name).is_file():
                yield variant, folder / part / name


def check_part(folder: Path, part: str, *, half: bool = False, numbers: int | None = None) -> str | None:
    """The variant to load of a part, after a look at its files. `numbers` is how many weights its configuration describes.

    Raises `FileNotFoundError` where there are no safetensors or one piece is missing, `ValueError` where one is damaged or there is
    less in them than the configuration describes.
    """
    variant, path = next(variants(folder, part, half=half), (None, None))
    if path is None:
        expected = folder / part / f"{known_parts()[part].stem}.safetensors"
        pickles = [other.name for other in expected.parent.iterdir() if other.suffix.lower() in PICKLES]
        hint = f": {pickles[0]} is a pickle, which can run any code when it is opened" if pickles else ""
        raise FileNotFoundError(f"{expected} is missing{hint}. Only safetensors are loaded: get the model's safetensors version")
    found = sum(header(piece).numbers for piece in _pieces(path))
    if numbers is not None and found < numbers:
        raise ValueError(
            f"{path} holds {found:,} weights and the configuration beside it describes {numbers:,}: "
            "they are of different models, or the file is not whole. Fetch both again"
        )
    return variant


def _pieces(path: Path) -> list[Path]:
    """The files of an index, or the one file itself."""
    if path.suffix == ".safetensors":
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of safetensors files: fetch it again") from error
    for name in names:
        refuse_pickle(path.parent / name)
        if not (path.parent / name).is_file():
            raise FileNotFoundError(
                f"{path.parent / name} is missing, one of the {len(names)} pieces that {path.name} lists: fetch it again"
            )
    return [path.parent / name for name in names]
