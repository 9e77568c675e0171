"""Claims: one run at a time writes to a folder, and a run that was killed leaves nothing behind that would stop the next."""

from __future__ import annotations

import weakref
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
"""The file in the folder that is locked. It may stay there: a lock ends with the process that holds it, whatever ends that."""

_held: weakref.WeakValueDictionary[tuple[int, int], Claim] = weakref.WeakValueDictionary()
"""The claims of this process, by device and inode of the folder."""


class Claimed(ValueError):
    """Another process writes to the folder."""


class Claim:
    """A lock of the system's on a folder, held until it is released, forgotten, or its process ends.

    A later claim in the same process takes over: a notebook's cell is run again while the traceback of the first attempt still holds that
    run. `is_lost` then says so to the earlier one. On a drive without such locks nothing is refused. Raises `Claimed` if another process
    has the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.is_lost = folder, False
        place = folder.stat()
        self._place = place.st_dev, place.st_ino
        if (earlier := _held.get(self._place)) is not None:
            earlier.is_lost = True
            earlier.release()
        # no soft lock in place of one that the drive has not: it would outlive its process
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise Claimed(
                f"another run writes to {folder} at this moment: wait for it to end or stop it, or give another folder for save_to"
            ) from None
        except OSError:  # a drive without locks
            pass
        _held[self._place] = self

    def release(self) -> None:
        """Let others write there. A second time changes nothing."""
        self._lock.release()
        if _held.get(self._place) is self:
            del _held[self._place]
