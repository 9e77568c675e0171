"""Memory that the C library keeps for the next step instead of giving it back to the system.

glibc gives the memory of a large tensor back as soon as it is freed. When the next step wants as much, the system hands it out anew, page
by page, and writes zeros to each. For the U-Net of SD 1.5 on a CPU that takes a tenth to a quarter of a step's time. Kept, the same pages
serve in each step; numbers and peak are the same.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# numbers of mallopt's settings, from glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MOST = 2**31 - 1
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}
"""Where glibc's settings end up by themselves once a process has freed a large tensor."""


@contextmanager
def kept() -> Iterator[bool]:
    """Keep freed memory within this context, and give back what is free at its end. Yields whether that is possible here.

    Only glibc can be told so. It is left alone where the environment has settings for it (`MALLOC_…`, `GLIBC_TUNABLES`).
    """
    library = None if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ) else _glibc()
    if library is None:
        yield False
        return
    # all large tensors go where freed memory can stay, and it stays however much it is
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _MOST)
    try:
        yield True
    finally:
        for setting, value in _USUAL.items():
            library.mallopt(setting, value)
        library.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library; None where it is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
