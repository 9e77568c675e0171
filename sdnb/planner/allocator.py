"""A model of PyTorch's caching allocator for CUDA: what a sequence of allocations makes it reserve.

Asking the driver for memory is slow, so torch asks for large *segments*, cuts *chunks* from them (torch calls these blocks), and keeps
what is freed for later requests. Two numbers follow. `allocated` is the total of the chunks in use; `reserved` is the total of the
segments, which the card must have free. Both exceed the bytes that tensors ask for.

The rules are those of c10/cuda/CUDACachingAllocator.cpp with its default settings:

- A request is rounded up to 512 bytes.
- Requests of up to 1 MiB are cut from segments of 2 MiB, larger ones below 10 MiB from segments of 20 MiB. From 10 MiB on a segment is
  as large as the request, rounded up to 2 MiB. Small and large requests have a pool each, and the pools never mix.
- A request takes the smallest free chunk that is large enough. The chunk is split if the rest is worth keeping: 512 bytes in the small
  pool, more than 1 MiB in the large one.
- A freed chunk merges with its free neighbours in the segment.
- Segments that are wholly free go back to the driver only when the card is full. Here it never is: the peaks are those with room to spare.

An example, in MiB:

    request     chunk     where it comes from                                  allocated  reserved
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

The last request shows *fragmentation*: 10 MiB were reserved and unused, but no free chunk had 9.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from ..system import MIB

REQUEST_MULTIPLE = 512
"""Bytes to a multiple of which requests are rounded up."""
SMALL_REQUEST = MIB
"""Largest request of the small pool."""
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
OWN_SEGMENT_REQUEST = 10 * MIB
"""Smallest request that gets a segment of its own size, rounded up to a multiple of `SEGMENT_MULTIPLE`."""
SEGMENT_MULTIPLE = 2 * MIB
WORKSPACES = {"Hopper": 2 * 32 * MIB, "other": 2 * (2 * 4096 + 8 * 16) * 1024}
"""Bytes of cuBLAS' workspaces by card generation, one for forward's thread and one for backward's: ATen/cuda/CUDABlas.cpp."""


def rounded(size: int) -> int:
    """Bytes of a request of `size` bytes after rounding."""
    return max(REQUEST_MULTIPLE, -(-size // REQUEST_MULTIPLE) * REQUEST_MULTIPLE)


def segment_bytes(size: int) -> int:
    """Bytes of the segment that torch requests for a rounded request when no free chunk is large enough."""
    if size <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if size < OWN_SEGMENT_REQUEST:
        return LARGE_SEGMENT
    return -(-size // SEGMENT_MULTIPLE) * SEGMENT_MULTIPLE


@dataclass(slots=True, eq=False)
class _Chunk:
    """A piece of a segment, with its neighbours there."""

    address: int
    size: int
    pool: int
    """0 for small requests, 1 for large ones."""
    free: bool
    before: _Chunk | None = None
    after: _Chunk | None = None


class Allocator:
    """Counts `allocated` bytes and their peak, and `reserved` ones, which never become fewer. `malloc` returns a handle for `free`."""

    def __init__(self) -> None:
        self.allocated = self.reserved = self.peak_allocated = 0
        self._free: tuple[list, list] = ([], [])  # by pool: (size, address, chunk), sorted
        self._next_address = 0

    def malloc(self, size: int) -> _Chunk:
        """Allocate a chunk of at least `size` bytes."""
        size = rounded(size)
        pool = int(size > SMALL_REQUEST)
        free = self._free[pool]
        index = bisect_left(free, (size, -1))
        chunk = free.pop(index)[2] if index < len(free) else self._segment(size, pool)
        chunk.free = False
        rest_size = chunk.size - size
        if rest_size > SMALL_REQUEST if pool else rest_size >= REQUEST_MULTIPLE:
            rest = _Chunk(chunk.address + size, rest_size, pool, True, chunk, chunk.after)
            if chunk.after is not None:
                chunk.after.before = rest
            chunk.size = size
            chunk.after = rest
            insort(free, (rest_size, rest.address, rest))
        self.allocated += chunk.size
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return chunk

    def free(self, chunk: _Chunk) -> None:
        """Free a chunk, and merge it with free neighbours."""
        self.allocated -= chunk.size
        free = self._free[chunk.pool]
        chunk.free = True
        before, after = chunk.before, chunk.after
        if before is not None and before.free:
            self._remove(free, before)
            chunk.address = before.address
            chunk.size += before.size
            chunk.before = before.before
            if chunk.before is not None:
                chunk.before.after = chunk
        if after is not None and after.free:
            self._remove(free, after)
            chunk.size += after.size
            chunk.after = after.after
            if chunk.after is not None:
                chunk.after.before = chunk
        insort(free, (chunk.size, chunk.address, chunk))

    def _segment(self, size: int, pool: int) -> _Chunk:
        """Reserve a new segment for a rounded request, as one free chunk."""
        segment_size = segment_bytes(size)
        self.reserved += segment_size
        address = self._next_address
        self._next_address += segment_size
        return _Chunk(address, segment_size, pool, True)

    @staticmethod
    def _remove(free: list, chunk: _Chunk) -> None:
        del free[bisect_left(free, (chunk.size, chunk.address))]


def replay(before: list[int], events) -> Allocator:
    """Allocator after a sequence of allocations.

    - `before`: bytes of the storages that exist first, numbered from 0
    - `events`: pairs (number of a storage, change in bytes); -1 is the scratch memory of a kernel
    """
    allocator = Allocator()
    malloc, free = allocator.malloc, allocator.free
    chunks = {number: malloc(size) for number, size in enumerate(before)}
    scratch = []
    for number, change in events:
        if number < 0:
            if change > 0:
                scratch.append(malloc(change))
            elif change < 0:
                free(scratch.pop())
        elif change > 0:
            chunks[number] = malloc(change)
        elif number in chunks:
            free(chunks.pop(number))
    return allocator
