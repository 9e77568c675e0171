"""Errors of the operating system, in words that have a way out."""

from __future__ import annotations

import errno
import os

from . import files

_NO_FOLDER = "{name} cannot be a folder, as a file is there, or above it: give another place"
_NOT_ALLOWED = "{name}: {reason}: give a place that you may use"
_WAYS_OUT = {
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: _NOT_ALLOWED,
    errno.ENOSPC: "{place}: {reason}: make room on the disk, or give another place",
}


def explained(error: Exception) -> str:
    """The error's text; with a way out, where the operating system's own words have none."""
    name, number = getattr(error, "filename", None), getattr(error, "errno", None)
    if isinstance(error, OSError) and number and name is None and error.strerror not in (None, os.strerror(number)):
        return error.strerror  # in words of our own
    if number in _WAYS_OUT:
        return _WAYS_OUT[number].format(name=name, place=name or "writing", reason=os.strerror(number))
    return str(error)


def is_closed_pipe(error: Exception) -> bool:
    """Whether the reader of the standard output has left. Windows has another error for it, without a file's name."""
    if isinstance(error, BrokenPipeError):
        return True
    return files.WINDOWS and isinstance(error, OSError) and error.errno == errno.EINVAL and error.filename is None
