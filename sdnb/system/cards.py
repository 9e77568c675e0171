"""Graphics cards by name, with their memory and the part of it that is usable for training."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from . import devices
from .words import GIB, MIB, sized, suggest

FITS, TIGHT, DOES_NOT_FIT = VERDICTS = ("fits", "tight", "does not fit")
"""What is said of a run on a card, by `Card.verdict`."""
MARGIN = 0.05
"""Share of the reserved bytes that a run should leave free: predictions for an H200 were within 5% of what it reserved."""

SPILLS = (
    "Task Manager shows it as shared GPU memory. For an error instead: NVIDIA Control Panel, Manage 3D settings, "
    "CUDA - Sysmem Fallback Policy, Prefer No Sysmem Fallback"
)
"""How Windows users see that memory spills, and how they turn it off, from driver 546.01 on: nvidia.custhelp.com, answer 5490."""


@dataclass(frozen=True)
class Card:
    """One model of graphics card."""

    name: str
    total_bytes: int
    """Memory as the driver reports it, a little less than printed on the box."""
    capability: tuple[int, int]
    """CUDA compute capability, (major, minor): from (8, 0) on a card computes in bf16 and has flash attention."""
    multiprocessors: int = 0
    """Number of multiprocessors; 0 where it is not known."""
    context_bytes: int = 500 * MIB
    """Estimated memory of CUDA's kernels and libraries before the first tensor."""

    @property
    def usable_bytes(self) -> int:
        """Memory left for the allocator when nothing else uses the card."""
        return self.total_bytes - self.context_bytes

    def verdict(self, allocated_bytes: int, reserved_bytes: int) -> str:
        """One of `VERDICTS` on a run with these peaks.

        It fits if the card has room for what the allocator reserves and for `MARGIN` beside it, and does not fit if the tensors alone
        have no room. Between the two it is tight: the allocator has to give unused memory back, or has nothing left to spare.
        """
        if allocated_bytes > self.usable_bytes:
            return DOES_NOT_FIT
        return FITS if (1 + MARGIN) * reserved_bytes <= self.usable_bytes else TIGHT

    @property
    def spills(self) -> bool:
        """Whether its driver for Windows moves memory off a full card, as those for GeForce and RTX do from 536.40 on.

        A card that is known by its size alone counts as one of these.
        """
        return self.name.startswith(("GeForce", "GTX", "RTX", "NVIDIA GeForce", "NVIDIA RTX", OF_SIZE))

    @property
    def resident_threads(self) -> int:
        """Threads that the card runs at once: CUDA C++ Programming Guide, technical specifications per compute capability."""
        major, minor = self.capability
        of_each = 1024 if self.capability == (7, 5) else 2048 if minor == 0 and major < 12 else 1536
        return self.multiprocessors * of_each

    @property
    def has_bf16(self) -> bool:
        """Whether the card computes in bf16 natively, rather than by slow emulation."""
        return self.capability >= (8, 0)

    @property
    def needs(self) -> str:
        """Build of torch that the card needs, if the newest has no kernels for it; else empty."""
        return devices.needed_build(self.capability)


CARDS = {
    "t4": Card("Tesla T4", 15_095 * MIB, (7, 5), 40),
    "p100": Card("Tesla P100 16 GB", 16_276 * MIB, (6, 0), 56),
    "v100-16": Card("Tesla V100 16 GB", 16_149 * MIB, (7, 0), 80),  # 15.77
    "v100-32": Card("Tesla V100 32 GB", 32_492 * MIB, (7, 0), 80),  # 31.73
    "rtx2080ti": Card("RTX 2080 Ti", 10_824 * MIB, (7, 5), 68),  # 10.57
    "l4": Card("L4", 22_563 * MIB, (8, 9), 58),
    "a10": Card("A10", 22_515 * MIB, (8, 6), 72),
    "rtx3060": Card("RTX 3060 12 GB", 12_044 * MIB, (8, 6), 28),
    "rtx3070": Card("RTX 3070", 7_946 * MIB, (8, 6), 46),  # 7.76 GiB: github.com/sshan-zhao/GASDA/issues/19
    "rtx3080": Card("RTX 3080 10 GB", 10_014 * MIB, (8, 6), 68),  # 9.78: github.com/zai-org/CogVideo/issues/34
    "rtx3090": Card("RTX 3090", 24_135 * MIB, (8, 6), 82),
    "rtx4060": Card("RTX 4060 8 GB", 7_940 * MIB, (8, 9), 24),
    "rtx4060ti-16": Card("RTX 4060 Ti 16 GB", 15_943 * MIB, (8, 9), 34),  # 15.57
    "rtx4070": Card("RTX 4070", 11_981 * MIB, (8, 9), 46),  # nvidia-smi reports the same number as for the next card
    "rtx4070ti": Card("RTX 4070 Ti", 11_981 * MIB, (8, 9), 60),  # 11.70: github.com/Kwai-Kolors/Kolors/issues/11
    "rtx4070ti-super": Card("RTX 4070 Ti SUPER", 15_933 * MIB, (8, 9), 66),  # 15.56
    "rtx4080": Card("RTX 4080", 15_943 * MIB, (8, 9), 76),  # 15.57
    "rtx4090": Card("RTX 4090", 24_081 * MIB, (8, 9), 128),  # 23.52: github.com/pytorch/torchchat/issues/1341
    "rtx5060ti-16": Card("RTX 5060 Ti 16 GB", 15_841 * MIB, (12, 0), 36),  # 15.47, also for the 5070 Ti and 5080
    "rtx5070": Card("RTX 5070", 11_765 * MIB, (12, 0), 48),  # 11.49
    "rtx5070ti": Card("RTX 5070 Ti", 15_841 * MIB, (12, 0), 70),
    "rtx5080": Card("RTX 5080", 15_841 * MIB, (12, 0), 84),
    "rtx5090": Card("RTX 5090", 32_112 * MIB, (12, 0), 170),  # 31.36: github.com/TrajectoryCrafter/TrajectoryCrafter/issues/20
    "rtxa6000": Card("RTX A6000", 48_681 * MIB, (8, 6), 84),  # 47.54
    "l40s": Card("L40S", 45_496 * MIB, (8, 9), 142),  # 44.43
    "a100-40": Card("A100 40 GB", 40_442 * MIB, (8, 0), 108),
    "a100-80": Card("A100 80 GB", 81_154 * MIB, (8, 0), 108),
    "h100": Card("H100 80 GB", 81_079 * MIB, (9, 0), 132),
    "h200": Card("H200", 143_156 * MIB, (9, 0), 132),
}
"""Cards by the names that users type. Capabilities are from developer.nvidia.com/cuda-gpus. Memory is the total capacity in torch's error
messages on Linux, as users quote them: in the thread beside a row, or in logs in public repositories where a row has only a number. Rows
without either are from memory, as are the numbers of multiprocessors, which NVIDIA's data sheets give. Drivers differ by up to 0.2 GiB,
and Windows reports nearly all of the card, the desktop's share included. For the card at hand `planner.card` asks the driver."""


OF_SIZE = "a card of"
"""Beginning of the name of a card that is known by its size."""
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:g|gb|gib)?\s*", re.IGNORECASE)
SOLD_AS = 1024
"""Largest number that is a card's size in GB; a larger one is its usable bytes."""
LEFT_OF_SIZE = 0.97
"""What the driver reports of the size that a card is sold with: 0.957 to 0.982 over the GeForce cards of `CARDS`."""
USED = re.compile(r"(.+?),\s*(\d+(?:\.\d+)?)\s*([mg])i?b? used\s*", re.IGNORECASE)
VARIANT = re.compile(r"(sxm\d?|pcie|hbm\d?e?|nvl)")
"""Words in nvidia-smi's names that say nothing of the memory."""


def card(name: str | Card | int) -> Card:
    """Card by a name, a size or its usable bytes.

    A name is one of `CARDS`, as people or `nvidia-smi` write it. A size such as `12` or `"12GB"` is what a card is sold with; its compute
    capability is taken to be 8.0. A number above 1024 is the bytes that are left for training. `"RTX 4060, 900MB used"` is a card on which
    others, such as the desktop, hold as much: `nvidia-smi` says it.

    >>> (card("RTX 4060").usable_bytes - card("RTX 4060, 900MB used").usable_bytes) // MIB
    900

    Raises `ValueError` for an unknown name, with the nearest, for a size that no card has, and where more is used than there is.
    """
    if isinstance(name, Card):
        return name
    if not isinstance(name, str):
        return _of_size(name, float(name))
    if used := USED.fullmatch(name):
        return _less(card(used[1]), int(float(used[2]) * (GIB if used[3].lower() == "g" else MIB)))
    plain = _plain(str(name))
    for key, candidate in CARDS.items():
        if plain in (_plain(key), _plain(candidate.name)):
            return candidate
    short = {_plain(key).removeprefix("rtx"): candidate for key, candidate in CARDS.items()}
    if plain in short:
        return short[plain]
    size = SIZE.fullmatch(name)
    if size and float(size[1]) <= SOLD_AS:
        return _of_size(name, float(size[1]))
    hint = suggest(name, CARDS, aside=True, key=_plain, count=2, cutoff=0.5)
    raise ValueError(f"no card {name!r}{hint}: there are {', '.join(CARDS)}; or give its memory, such as 12GB")


def _less(whole: Card, used_bytes: int) -> Card:
    """Card on which others hold `used_bytes`. Raises `ValueError` if it has not as many."""
    if used_bytes >= whole.usable_bytes:
        raise ValueError(f"{sized(used_bytes)} used: {whole.name} has {sized(whole.usable_bytes)} for a run in all")
    return replace(whole, name=f"{whole.name}, {sized(used_bytes)} used", total_bytes=whole.total_bytes - used_bytes)


def _of_size(given: object, size: float) -> Card:
    """Card with as many GB, or usable bytes. Raises `ValueError` for what is neither."""
    if 1 <= size <= SOLD_AS and not isinstance(given, bool):
        return Card(f"{OF_SIZE} {size:g} GB", int(LEFT_OF_SIZE * size * GIB), (8, 0))
    if not MIB <= size < 2**50:
        raise ValueError(f"gpu={given!r}: give a card's name, its memory, such as 12GB, or the bytes left for training, such as 8 * 2**30")
    return Card(f"{size / GIB:.1f} GiB", int(size), (8, 0), context_bytes=0)


def _plain(name: str) -> str:
    """Name in lower case, with only letters and digits, without the maker's prefixes and the kind of slot and memory."""
    plain = VARIANT.sub("", "".join(letter for letter in name.lower() if letter.isalnum()))
    for maker in ("nvidia", "geforce", "tesla", "quadro"):
        plain = plain.removeprefix(maker)
    return plain.removesuffix("gb")
