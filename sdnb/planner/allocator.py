"""PyTorch's caching allocator for CUDA, replayed: what a stretch of allocations makes it ask the driver for.

Asking the driver for memory is slow, so torch asks for large *segments*, cuts *blocks* from them, and keeps what is freed for later
requests. Two numbers follow. `allocated` is what the blocks in use amount to; `reserved` is what the segments amount to, and what a
card must have free. Both exceed the bytes that tensors ask for.

The rules are those of c10/cuda/CUDACachingAllocator.cpp with its default settings:

- A request is rounded up to 512 bytes.
- Requests of up to 1 MiB are cut from segments of 2 MiB, larger ones below 10 MiB from segments of 20 MiB. From 10 MiB on a segment is
  as large as the request, rounded up to 2 MiB. The small ones and the large ones are two pools, which never mix.
- The smallest free block that is large enough is taken. It is split if what is left is worth keeping: 512 bytes in the small pool, more
  than 1 MiB in the large one.
- A freed block joins its free neighbours in the segment.
- Segments that are wholly free go back to the driver only when the capacity is exceeded. If that is not enough, memory is out.

An example, in MiB:

    request     block     where it comes from                                  allocated  reserved
    100 bytes   512 bytes a new segment of 2                                         0.0         2
    3           3         a new segment of 20                                        3.0        22
    12          12        the 17 that are left of it                                15.0        22
    11          12        a new segment of 12: 1 is too little to split off         27.0        34
    free the 3                                                                      24.0        34
    9           9         a new segment of 20: the free 3 and 5 do not touch        33.0        54

    >>> allocator = Allocator()
    >>> tiny, three, twelve, eleven = (allocator.malloc(size) for size in (100, 3 * MIB, 12 * MIB, 11 * MIB))
    >>> allocator.free(three)
    >>> nine = allocator.malloc(9 * MIB)
    >>> allocator.allocated // MIB, allocator.reserved // MIB
    (33, 54)

The last request shows *fragmentation*: 10 MiB were reserved and unused, but no free block had 9.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from ..system import MIB

STEP = 512
SMALL = MIB
"""Largest request of the small pool."""
SMALL_SEGMENT, LARGE_SEGMENT = 2 * MIB, 20 * MIB
TO_MEASURE = 10 * MIB
"""Smallest request with a segment of its own size, rounded up to `ROUND`."""
ROUND = 2 * MIB
WORKSPACES = {"Hopper": 2 * 32 * MIB, "other": 2 * (2 * 4096 + 8 * 16) * 1024}
"""Bytes that cuBLAS keeps for itself, once for forward's thread and once for backward's: ATen/cuda/CUDABlas.cpp."""


class OutOfMemory(RuntimeError):
    """A request that the card has no room for, even after everything unused was given back."""


def rounded(size: int) -> int:
    """Bytes that a request of `size` bytes counts as."""
    return max(STEP, -(-size // STEP) * STEP)


def segment_bytes(size: int) -> int:
    """Bytes of the segment that is made for a rounded request when no free block is large enough."""
    if size <= SMALL:
        return SMALL_SEGMENT
    if size < TO_MEASURE:
        return LARGE_SEGMENT
    return -(-size // ROUND) * ROUND


@dataclass(slots=True, eq=False)
class _Block:
    address: int
    size: int
    pool: int
    free: bool
    before: _Block | None = None
    after: _Block | None = None


class Allocator:
    """Counts `allocated` and `reserved` bytes, and their peaks. `capacity` is the most that it may reserve, in bytes.

    `malloc` returns a handle for `free`. Raises `OutOfMemory` when the capacity is exceeded.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self._free: tuple[list, list] = ([], [])  # (size, address, block), sorted
        self._next = 0

    def malloc(self, size: int) -> _Block:
        """A block of at least `size` bytes."""
        size = rounded(size)
        pool = int(size > SMALL)
        free = self._free[pool]
        place = bisect_left(free, (size, -1))
        block = free.pop(place)[2] if place < len(free) else self._segment(size, pool)
        block.free = False
        left = block.size - size
        if left > SMALL if pool else left >= STEP:
            rest = _Block(block.address + size, left, pool, True, block, block.after)
            if block.after is not None:
                block.after.before = rest
            block.size, block.after = size, rest
            insort(free, (left, rest.address, rest))
        self.allocated += block.size
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return block

    def free(self, block: _Block) -> None:
        """Free a block."""
        self.allocated -= block.size
        free = self._free[block.pool]
        block.free = True
        before, after = block.before, block.after
        if before is not None and before.free:
            self._take(free, before)
            block.address, block.size, block.before = before.address, block.size + before.size, before.before
            if block.before is not None:
                block.before.after = block
        if after is not None and after.free:
            self._take(free, after)
            block.size, block.after = block.size + after.size, after.after
            if block.after is not None:
                block.after.before = block
        insort(free, (block.size, block.address, block))

    def release(self) -> None:
        """Give every segment that is wholly free back to the driver, as torch does before it says that memory is out."""
        for free in self._free:
            whole = [entry for entry in free if entry[2].before is None and entry[2].after is None]
            for entry in whole:
                free.remove(entry)
                self.reserved -= entry[0]

    def _segment(self, size: int, pool: int) -> _Block:
        wanted = segment_bytes(size)
        if self.capacity is not None and self.reserved + wanted > self.capacity:
            self.release()
            if self.reserved + wanted > self.capacity:
                raise OutOfMemory(
                    f"{size / MIB:,.1f} MiB more than fit: {self.reserved / MIB:,.1f} of {self.capacity / MIB:,.1f} MiB are in use"
                )
        self.reserved += wanted
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        address, self._next = self._next, self._next + wanted
        return _Block(address, wanted, pool, True)

    @staticmethod
    def _take(free: list, block: _Block) -> None:
        del free[bisect_left(free, (block.size, block.address))]


def replay(before: list[int], events, *, capacity: int | None = None) -> Allocator:
    """Allocator after a stretch of events.

    - `before`: bytes of the blocks that are there first, numbered from 0
    - `events`: pairs of the number of a block and the change in bytes; -1 is what a kernel takes for itself
    - `capacity`: bytes of the card

    Raises `OutOfMemory` where the capacity is exceeded.
    """
    allocator = Allocator(capacity)
    malloc, free = allocator.malloc, allocator.free
    held = {number: malloc(size) for number, size in enumerate(before)}
    scratch = []
    for number, change in events:
        if number < 0:
            if change > 0:
                scratch.append(malloc(change))
            else:
                free(scratch.pop())
        elif change > 0:
            held[number] = malloc(change)
        elif number in held:
            free(held.pop(number))
    return allocator
