"""Safetensors files, looked at before anything of their weights is read: the header, the length, where a part's files lie."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ..system import shown, untrusted
from .family import known_parts

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
HALF = "fp16"
"""Diffusers' name for the variant of a file in fp16."""
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""The precisions of weights, in the words of safetensors -> torch's. Integers, booleans and complex numbers are no weights."""
LONGEST_HEADER = 10_000_000
"""Bytes. SDXL's is 0.3 MB, and the tags of a large data set in a LoRA's are a few MB."""
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Header:
    """Header of a safetensors file."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    precisions: dict[str, str]
    """In the words of safetensors, such as F16."""

    @property
    def numbers(self) -> int:
        """How many weights there are, without tables of positions, which older files keep among them."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if not name.endswith("position_ids"))


def refuse_pickle(path: Path) -> None:
    """Raise `ValueError` for a file that would be unpickled, and for a name that is too long for any file."""
    try:
        path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"{untrusted.named(path)}: no file has so long a name") from error
        raise
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"{path.name} is a pickle, which can run any code when it is opened: "
            "only safetensors are loaded. Ask for the .safetensors file of the same model"
        )


def header(path: Path) -> Header:
    """Read the header; safetensors compares it with the length of the file. The weights themselves are left alone.

    Raises `FileNotFoundError` for a missing file, `ValueError` for a pickle and for a file that is damaged, cut off or something else.
    """
    refuse_pickle(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give an existing .safetensors file")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if LONGEST_HEADER < length <= path.stat().st_size:
        raise ValueError(f"{path} has a header of {length:,} bytes, and at most {LONGEST_HEADER:,} are read: fetch it again")
    try:
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
            precisions = {name: piece.get_dtype() for name, piece in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or it is damaged or cut off ({shown(error, 200)}): fetch it again") from error
    for name, shape in shapes.items():  # one that is 0 hides how large the others are
        if len(shape) > MOST_DIMENSIONS or math.prod(max(1, size) for size in shape) >= 2**48:
            raise ValueError(f"{path}: {shown(name)} has a shape of {shape[:MOST_DIMENSIONS]}…, as no weight has: fetch it again")
    return Header(shapes, metadata, precisions)


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


def check_part(folder: Path, part: str, module: Module, *, half: bool = False) -> str | None:
    """The variant to load of a part, after a look at its files. `module` is the part as its configuration describes it.

    Raises `FileNotFoundError` where there are no safetensors or one piece is missing, `ValueError` where one is damaged, is not of
    floating point, or does not hold what the configuration describes.
    """
    variant, path = next(variants(folder, part, half=half), (None, None))
    if path is None:
        expected = folder / part / f"{known_parts()[part].stem}.safetensors"
        pickles = [other.name for other in expected.parent.iterdir() if other.suffix.lower() in PICKLES]
        hint = f": {pickles[0]} is a pickle, which can run any code when it is opened" if pickles else ""
        raise FileNotFoundError(f"{expected} is missing{hint}. Only safetensors are loaded: get the model's safetensors version")
    headers = {piece: header(piece) for piece in _pieces(path)}
    found, numbers = sum(each.numbers for each in headers.values()), sum(parameter.numel() for parameter in module.parameters())
    if found < numbers:
        raise ValueError(
            f"{path} holds {found:,} weights and the configuration beside it describes {numbers:,}: "
            "they are of different models, or the file is not whole. Fetch both again"
        )
    expected = {name.removeprefix("text_model."): tuple(tensor.shape) for name, tensor in module.state_dict().items()}  # either spelling
    for piece, each in headers.items():
        for name, shape in each.shapes.items():
            if each.precisions[name] not in FLOATS and not name.endswith("position_ids"):
                raise ValueError(f"{piece}: {name} is in {each.precisions[name]}, and weights are floating-point numbers. {_FETCH}")
            if expected.get(name.removeprefix("text_model."), shape) != shape:
                wanted = expected[name.removeprefix("text_model.")]
                raise ValueError(f"{piece}: {name} is {shape}, where the configuration beside it says {wanted}. {_FETCH}")
    return variant


_FETCH = "Fetch both again, the model's weights and its configuration"


def check_finite(module: Module, what: str) -> None:
    """Raise `ValueError` for weights that are NaN or infinite; `what` is what the error calls the module."""
    import torch

    # NaN is both the least and the greatest of its tensor. This reads at 20 GB/s, where `isfinite().all()` reads at 1
    found = {name: tensor for name, tensor in module.named_parameters() if tensor.numel() and tensor.dtype.itemsize > 1}
    ends = [torch.stack(tensor.detach().aminmax()).float() for tensor in found.values()]
    finite = torch.stack(ends).isfinite().all(1).tolist() if ends else []
    broken = [name for name, fine in zip(found, finite, strict=True) if not fine]
    if broken:
        raise ValueError(
            f"{what}: {len(broken)} of {len(found)} weights hold NaN or infinity, {broken[0]} among them: "
            "its training diverged, or the file is damaged. Take an earlier save, or fetch it again"
        )


def _pieces(path: Path) -> list[Path]:
    """The files of an index, or the one file itself."""
    if path.suffix == ".safetensors":
        return [path]
    table = untrusted.read_json(path).get("weight_map")
    names = set(table.values()) if isinstance(table, dict) and all(isinstance(name, str) for name in table.values()) else set()
    if not names or any(Path(name).name != name for name in names):
        raise ValueError(f"{path} is no index of safetensors files in its folder: fetch it again")
    for name in sorted(names):
        refuse_pickle(path.parent / name)
        if not (path.parent / name).is_file():
            raise FileNotFoundError(
                f"{path.parent / name} is missing, one of the {len(names)} pieces that {path.name} lists: fetch it again"
            )
    return [path.parent / name for name in sorted(names)]


def on_cpu(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None, *, copy: bool = False) -> dict[str, Tensor]:
    """The tensors in the computer's memory, in `dtype` or as they are. A GPU casts one at a time and keeps none.

    `copy`: what is there already is copied, too.
    """
    return {name: tensor.detach().to("cpu", dtype or tensor.dtype, copy=copy).contiguous() for name, tensor in tensors.items()}
