"""Blocks of a U-Net as sd-scripts counts them, with the rank, alpha and learning rate that `network_args` gives to each.

They are counted from the input to the output: in SD 1 and 2 there are 25, 12 on the way down, one in the middle and 12 on the way up; in
SDXL 23, namely 9, 3 and 9 between an input and an output that have no adapters.

    block_dims=4,4,…        a rank for each of them; `block_alphas`, `conv_block_dims` and `conv_block_alphas` likewise
    down_lr_weight=sine+.2  factors on the learning rate on the way down: numbers, or a curve with something added to it
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..system import quoted

CURVES: dict[str, Callable[[float], float]] = {
    "sine": lambda x: math.sin(math.pi * x / 2),
    "linear": lambda x: x,
    "zeros": lambda x: 0.0,
}
"""Factors on the learning rate as functions of the place, from 0 at the first block to 1 at the last."""
FALLING = {"cosine": "sine", "reverse_linear": "linear"}
"""Curves that are another one backwards."""
PATH = re.compile(r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")


class Layout(NamedTuple):
    """How many blocks of a U-Net are counted."""

    down: int
    """On the way down, and as many on the way up."""
    middle: int
    ends: int = 0
    """Before the first, and as many after the last; they have no adapters."""

    @property
    def total(self) -> int:
        """All of them."""
        return 2 * (self.ends + self.down) + self.middle

    def index(self, path: str) -> int:
        """Place of the block that a layer belongs to. `path` is diffusers' name of the layer in the U-Net.

        >>> Layout(12, 1).index("down_blocks.1.attentions.0.proj_in"), Layout(9, 3, 1).index("down_blocks.1.attentions.0.proj_in")
        (4, 5)

        Raises `ValueError` for a layer that is in none.
        """
        found = PATH.match(path)
        if found is None:
            raise ValueError(f"{path} is in no block with a rank of its own: leave block_dims and the lr weights out")
        way, stage, kind, number = found.groups()
        place = 3 * int(stage or 0) + (2 if kind.endswith("samplers") else int(number))
        if way == "mid":
            place = (1 if kind == "attentions" else 2 * int(number)) if self.middle == 3 else 0
            return self.ends + self.down + place
        return (1 + self.ends + place) if way == "down" else (self.ends + self.down + self.middle + place)


@dataclass(frozen=True)
class Blocks:
    """What `network_args` says of single blocks. None: not said."""

    dims: tuple[int, ...] | None = None
    alphas: tuple[float, ...] | None = None
    conv_dims: tuple[int, ...] | None = None
    conv_alphas: tuple[float, ...] | None = None
    down: tuple[float, ...] | str | None = None
    middle: tuple[float, ...] | None = None
    up: tuple[float, ...] | str | None = None
    zero_threshold: float = 0.0
    """Factors up to this are 0."""

    @classmethod
    def of(cls, args: Mapping[str, str]) -> Blocks | None:
        """Those in `network_args`; None where neither `block_dims` nor an lr weight is given, without which the others mean nothing.

        Raises `ValueError` for what is no number and no curve.
        """
        if not {"block_dims", "down_lr_weight", "mid_lr_weight", "up_lr_weight"} & args.keys():
            return None
        found = cls(
            _numbers(args, "block_dims", int),
            _numbers(args, "block_alphas", float),
            _numbers(args, "conv_block_dims", int),
            _numbers(args, "conv_block_alphas", float),
            _factors(args, "down_lr_weight"),
            _numbers(args, "mid_lr_weight", float, empty="0"),
            _factors(args, "up_lr_weight"),
            (_numbers(args, "block_lr_zero_threshold", float) or (0.0,))[0],
        )
        for name, values in {"block_dims": found.dims, "conv_block_dims": found.conv_dims}.items():
            if values and min(values) < 0:
                raise ValueError(f"network_args: {name} has {min(values)}: a rank is 1 or more, and 0 leaves a block out")
        return found

    def rates(self, layout: Layout) -> tuple[float, ...] | None:
        """Factor on the learning rate of each block; None where none is given."""
        given = self.down, self.middle, self.up
        if given == (None, None, None):
            return None
        ways = zip(given, (layout.down, layout.middle, layout.down), strict=True)
        down, middle, up = (self._filled(factors, count) for factors, count in ways)
        return (1.0,) * layout.ends + down + middle + up + (1.0,) * layout.ends

    def sizes(
        self, layout: Layout, size: tuple[int, float], conv: tuple[int, float] | None
    ) -> tuple[list[tuple[int, float]], list[tuple[int, float]] | None]:
        """(rank, alpha) of each block, and of its 3×3 convolutions or None; `size` and `conv` where nothing else is said.

        A block without a learning rate has rank 0. Raises `ValueError` unless each list has a number for each block.
        """
        lists = {"block_dims": self.dims, "block_alphas": self.alphas}
        lists |= {"conv_block_dims": self.conv_dims, "conv_block_alphas": self.conv_alphas if self.conv_dims else None}
        for name, values in lists.items():
            if values is not None and len(values) != layout.total:
                raise ValueError(f"network_args: {name} has {len(values)} numbers: this kind of model has {layout.total} blocks")
        own = self._pairs(layout, self.dims, self.alphas, size)
        wide = self._pairs(layout, self.conv_dims, self.conv_alphas, conv or (0, 1.0)) if self.conv_dims or conv else None
        return own, wide

    def _pairs(self, layout: Layout, dims, alphas, usual: tuple[int, float]) -> list[tuple[int, float]]:
        dims, alphas = dims or (usual[0],) * layout.total, alphas or (usual[1],) * layout.total
        rates = self.rates(layout) or (1.0,) * layout.total
        return [(rank if rate else 0, alpha or float(rank)) for rank, alpha, rate in zip(dims, alphas, rates, strict=True)]

    def _filled(self, factors: tuple[float, ...] | str | None, count: int) -> tuple[float, ...]:
        """One factor for each of `count` blocks: those too many are left out, those missing are 1."""
        if factors is None:
            return (1.0,) * count
        if isinstance(factors, str):
            name, _, added = factors.partition("+")
            factors = tuple(CURVES[FALLING.get(name, name)](place / (count - 1)) + float(added or 0) for place in range(count))
            factors = factors[::-1] if name in FALLING else factors
        factors = (factors + (1.0,) * count)[:count]
        return tuple(factor if factor > self.zero_threshold else 0.0 for factor in factors)


def _numbers(args: Mapping[str, str], name: str, kind: type, *, empty: str = "") -> tuple | None:
    """The numbers in an argument, separated by commas; `empty` stands for what is left out between two."""
    if name not in args:
        return None
    try:
        found = tuple(kind(part.strip() or empty) for part in args[name].split(","))
    except ValueError:
        found = ()
    if not found or not all(map(math.isfinite, found)):
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"network_args: {name}={quoted(args[name])}: it must be {what} with commas between them")
    return found


def _factors(args: Mapping[str, str], name: str) -> tuple[float, ...] | str | None:
    """The numbers of an lr weight, or the name of a curve with what is added to it."""
    text = args.get(name)
    if text is None or "," in text:
        return _numbers(args, name, float, empty="0")
    curve, _, added = text.partition("+")
    try:
        if curve in (*CURVES, *FALLING) and math.isfinite(float(added or 0)):
            return text
    except ValueError:
        pass
    raise ValueError(
        f"network_args: {name}={quoted(text)}: it must be a number for each block, with commas between them, or one of "
        f"{', '.join([*CURVES, *FALLING])}, such as sine+.25"
    )
