"""Files and folders that are whole on the disk or not there at all: written under another name, flushed, and renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

WINDOWS = os.name == "nt"
"""Whether this is Windows, where files that are open can be neither replaced nor deleted, and some names are forbidden."""
WAITS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between attempts to rename something on Windows."""
NO_NAME = re.compile(r"""(?ix) .*[<>:"|?*\x00-\x1f].* | .*[ .] | (con | prn | aux | nul | com[1-9] | lpt[1-9]) (\..*)?""")
"""Names that Windows forbids or misreads: `a:b` is a hidden stream of the file `a`."""
PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the installed package, or of `sdnb/` in a checkout."""
PARTIAL = ".partial"
"""Ending of the names of unfinished files and folders."""


def write(path: Path, content: bytes | str) -> Path:
    """Write a file, and the folder for it, in place of an older file of that name, which stays until the new one is complete.

    Text becomes UTF-8. When it fails, such as on a full disk, nothing is left behind. Raises `PermissionError` for an older file that
    another program has open on Windows, and `ValueError` for a name that is forbidden there.
    """
    check_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = unfinished(path)
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        rename(partial, path)
    finally:
        with contextlib.suppress(PermissionError):  # a virus scanner's look at it must not hide what has happened
            partial.unlink(missing_ok=True)
    sync(path.parent)
    return path


def unfinished(path: Path) -> Path:
    """The name of a file or folder until it is complete: hidden, and of this process, as another may write the same."""
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


def sweep(folder: Path, names: str, *, seconds: float = 0) -> None:
    """Delete what processes that live no more left unfinished in a folder: files and folders whose names match the pattern `names`.

    Where several machines write to one folder, those of the others are not known: give the age in `seconds` from which nobody is writing.
    """
    import psutil

    ours = re.compile(rf"\.(?:{names})\.(?P<process>\d{{1,9}}){re.escape(PARTIAL)}")
    with contextlib.suppress(OSError):  # a folder that is not there or not ours, or another process sweeps as well
        for path in list(folder.iterdir()):
            match = ours.fullmatch(path.name)
            if match and not psutil.pid_exists(int(match["process"])) and time.time() - path.lstat().st_mtime >= seconds:
                remove(path)


def permit(path: Path) -> None:
    """Give a file the permissions of a new one, as the umask has them. Libraries give others: safetensors lets only the owner read."""
    if not WINDOWS and path.is_file():
        mask = os.umask(0o077)  # it is read by setting it
        os.umask(mask)
        path.chmod(0o666 & ~mask)


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Raise what safetensors could not write as an `OSError`, with the system's own number, such as that of a full disk."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), None, code) from error  # the last: Windows has its own numbers


def checksum(content: Path | bytes) -> str:
    """CRC-32 of a file's content or of bytes, as 8 hexadecimal digits: the check that costs least beside writing them."""
    crc = 0
    with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def check_name(path: Path) -> None:
    """Raise `ValueError` for the name of a file or folder that Windows, if this is Windows, does not take."""
    if WINDOWS and NO_NAME.fullmatch(path.name):
        raise ValueError(
            f"{path.name!r} can be no file's name on Windows: give one without < > : \" | ? *, without a space or dot at its end, "
            "and none of the reserved names, such as con or nul"
        )


def rename(path: Path, new: Path) -> Path:
    """Give a file or folder a new name, in place of an older file of that name.

    On Windows a virus scanner or an indexer may have what was just written open for a moment, so it is tried several times. Then it
    raises `PermissionError`, which says so.
    """
    for seconds in WAITS if WINDOWS else ():
        with contextlib.suppress(PermissionError):
            return path.replace(new)
        time.sleep(seconds)
    try:
        return path.replace(new)
    except PermissionError as error:
        if not WINDOWS:
            raise
        raise PermissionError(
            error.errno,
            f"{path.name} cannot become {new}: one of them is read-only, or open in a program. Close that program, or give another name",
        ) from error


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk. On Windows folders need no such wait."""
    if WINDOWS and path.is_dir():
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


def bundled(name: str = "") -> Path:
    """A folder or file of the data that travels with the package; without a name, the folder that holds all of it.

    Raises `FileNotFoundError` when the data did not come with the package; that there is a `name` in it is not checked.
    """
    package = PACKAGE
    for root in (package / "data", package.parent / "data"):  # installed, or in a checkout
        if (root / "SOURCES.md").exists():
            return root / name
    raise FileNotFoundError("the package's data folder is missing: install sdnb again")


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of `parts` and their lengths, in hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little") + part)
    return sha.hexdigest()
