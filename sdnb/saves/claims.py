"""Claims: one run at a time writes to a folder, and a run that was killed leaves nothing behind that would stop the next."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path

_held: weakref.WeakValueDictionary[tuple[int, int], Claim] = weakref.WeakValueDictionary()
"""The claims of this process, by device and inode of the folder."""


class Claimed(ValueError):
    """Another process writes to the folder."""


class Claim:
    """A lock of the system's on a folder, which ends with the process, whatever ends that.

    A later claim in the same process takes over: a notebook's cell is run again while the traceback of the first attempt still holds that
    run. `is_lost` then says so to the earlier one. Where the system has no such locks (Windows, some network drives) nothing is refused.
    Raises `Claimed` if another process has the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.is_lost = folder, False
        place = folder.stat()
        self._place = place.st_dev, place.st_ino
        if (earlier := _held.get(self._place)) is not None:
            earlier.is_lost = True
            earlier.release()
        self._end = weakref.finalize(self, _unlock, _locked(folder), os.getpid())
        _held[self._place] = self

    def release(self) -> None:
        """Let others write there. A second time changes nothing."""
        self._end()
        if _held.get(self._place) is self:
            del _held[self._place]


def _locked(folder: Path) -> int | None:
    """An open handle that holds the lock, or None where there are none."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise Claimed(
            f"another run writes to {folder} at this moment: wait for it to end or stop it, or give another folder for save_to"
        ) from None
    except OSError:  # a drive without locks
        os.close(handle)
        return None
    return handle


def _unlock(handle: int | None, process: int) -> None:
    if handle is None:
        return
    if os.getpid() == process:  # a process that was forked off has the handle too, but it is not its lock
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
