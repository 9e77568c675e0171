"""Files and folders that are whole on the disk or not there at all: written under another name, flushed, and renamed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

PARTIAL = ".partial"
"""How the names end of what is not finished."""


def write(path: Path, content: bytes | str) -> Path:
    """Write a file, and the folder for it, in place of an older file of that name, which stays until the new one is complete.

    Text becomes UTF-8. When it fails, such as on a full disk, nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")  # another process may write the same file
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)
    return path


def text(path: Path) -> str:
    """What a text file holds. Raises `ValueError` for one that is not in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows' editors put a mark before it
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}): save it again in that encoding") from error


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk. Windows opens no folders, and needs not."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        # some network drives sync no folders, and those that a program mounts (FUSE), such as Colab's Drive, need not know how
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
