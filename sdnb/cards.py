"""Graphics cards by name: how much memory each has, and what of it is left for training."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True)
class Card:
    """One model of graphics card."""

    name: str
    total_bytes: int
    """As the driver reports it, which is a little less than the box says."""
    capability: tuple[int, int]
    """Of CUDA: from (8, 0) on a card computes in bf16 and has flash attention."""
    context_bytes: int = 500 * MIB
    """What CUDA itself takes for kernels and libraries before the first tensor; an estimate."""

    @property
    def usable_bytes(self) -> int:
        """What is left for the allocator when nothing else uses the card."""
        return self.total_bytes - self.context_bytes

    @property
    def has_bf16(self) -> bool:
        """Whether it computes in bf16 itself, rather than through slow emulation."""
        return self.capability >= (8, 0)


CARDS = {
    "t4": Card("Tesla T4", 15_095 * MIB, (7, 5)),
    "p100": Card("Tesla P100 16 GB", 16_276 * MIB, (6, 0)),
    "l4": Card("L4", 22_563 * MIB, (8, 9)),
    "a10": Card("A10", 22_515 * MIB, (8, 6)),
    "rtx3060": Card("RTX 3060 12 GB", 12_044 * MIB, (8, 6)),
    "rtx4060": Card("RTX 4060 8 GB", 7_940 * MIB, (8, 9)),
    "rtx3090": Card("RTX 3090", 24_135 * MIB, (8, 6)),
    "rtx4090": Card("RTX 4090", 24_081 * MIB, (8, 9)),
    "a100-40": Card("A100 40 GB", 40_442 * MIB, (8, 0)),
    "a100-80": Card("A100 80 GB", 81_154 * MIB, (8, 0)),
    "h100": Card("H100 80 GB", 81_079 * MIB, (9, 0)),
    "h200": Card("H200", 143_156 * MIB, (9, 0)),
}
"""From memory of what drivers report: within a few dozen MiB. On the machine itself `torch.cuda.mem_get_info()` knows."""


def card(name: str | Card | int) -> Card:
    """A card by its name in `CARDS`, or one with this many usable bytes. Raises `ValueError` for an unknown name, with the nearest."""
    if isinstance(name, Card):
        return name
    if isinstance(name, (int, float)) and not isinstance(name, bool):
        if not 0 < name < 2**50:
            raise ValueError(f"gpu={name!r}: give the usable bytes, such as 8 * 2**30, or a card's name")
        return Card(f"{name / GIB:.1f} GiB", int(name), (8, 0), context_bytes=0)
    plain = _plain(str(name))
    for key, one in CARDS.items():
        if plain in (_plain(key), _plain(one.name)):
            return one
    short = {_plain(key).removeprefix("rtx"): one for key, one in CARDS.items()}
    if plain in short:
        return short[plain]
    names = {_plain(key): key for key in CARDS}
    close = difflib.get_close_matches(plain, names, n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(repr(names[one]) for one in close)}?)" if close else ""
    raise ValueError(f"no card {name!r}{hint}: there are {', '.join(CARDS)}; or give its usable bytes as a number")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum()).removeprefix("nvidia").removeprefix("geforce")
