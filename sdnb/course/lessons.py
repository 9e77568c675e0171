"""Lessons: the notebooks' files and copies of them, and the folder of a reader's runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ..system import files
from .editions import LANGUAGES


def notebooks(language: str = "en") -> list[Path]:
    """Files of the lessons in reading order, from the package or a checkout; in another language, only the translated lessons.

    Raises `ValueError` for an unknown language, and `FileNotFoundError` without any lessons.
    """
    if language not in (known := ("en", *LANGUAGES)):
        raise ValueError(f"no lessons in {language!r}: there are {', '.join(known)}")
    package = files.PACKAGE
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if lessons := sorted((folder if language == "en" else folder / language).glob("[0-9][0-9]_*.ipynb")):
            return lessons
    raise FileNotFoundError("the notebooks are missing: install sdnb again")


RECORDER = "record_your_gpu.ipynb"
"""Notebook beside the lessons that measures the reader's card for the planner."""


def pages(language: str = "en") -> list[Path]:
    """Files that a reader needs in one folder: the lessons, the glossary that they link to, and the recorder.

    Pages of another language are in a folder of their own below the English ones, which they link to as well.
    """
    english = [*notebooks(), *(notebooks()[0].with_name(name) for name in ("glossary.md", RECORDER))]
    if language == "en":
        return english
    translated = notebooks(language)
    return [*english, *translated, *translated[0].parent.glob("glossary.md")]


@dataclass(frozen=True)
class Copies:
    """A reader's copies of the course's pages."""

    pages: list[Path]
    """All copies."""
    renewed: list[Path]
    """Those that the reader had not changed, replaced by the course's newer pages."""
    yours: list[Path]
    """Those that the reader changed, left as they are."""
    behind: list[Path]
    """Of the reader's, those whose page in the course is newer than the one they were copied from."""


RECORD = ".sdnb-copies.json"
"""File beside the copies: the digest of the page that each was copied from."""


def unpack(folder: str | Path, language: str = "en") -> Copies:
    """Copy the course's pages to `folder`, also newer ones over copies that nobody changed. What the reader changed stays."""
    folder = Path(folder).expanduser()
    copies, record = _copies(folder, language), _record(folder)
    found = Copies(list(copies), [], [], [])
    for copy, page in copies.items():
        name, content = copy.relative_to(folder).as_posix(), page.read_bytes()
        known, newest = record.get(name), _digest(content)
        present = _digest(copy.read_bytes()) if copy.exists() else None
        if present in (None, newest, known):
            record[name] = newest
            if present != newest:
                files.write(copy, content)
            if present == known != newest and present:
                found.renewed.append(copy)
        else:
            found.yours.append(copy)
            if known not in (None, newest):
                found.behind.append(copy)
    if record != _record(folder):
        files.write(folder / RECORD, json.dumps(record, indent=1))
    return found


def _record(folder: Path) -> dict[str, str]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _copies(folder: Path, language: str) -> dict[Path, Path]:
    """Pages of the course, by the paths of their copies."""
    root = notebooks()[0].parent
    return {folder / page.relative_to(root): page for page in pages(language)}


DRIVE = Path("/content/drive/MyDrive")
"""Colab's folder for Google Drive, which exists once Drive is mounted."""


def run_folder(*names: str | Path) -> Path:
    """Path of a folder for a run's saves and files, named after the last parts of `names`, such as a model's and a folder's.

    In Colab, whose disk is lost with the connection, it is in Drive's `sdnb-runs` once Drive is mounted; elsewhere in `runs`, in the
    working directory. The folder itself is not made. Raises `ValueError` for a name without letters, such as `/`.
    """
    words = [Path(name).expanduser().absolute().name for name in names]
    if not words or not all(words):
        raise ValueError(f"a run is called after {', '.join(map(repr, map(str, names))) or 'nothing'}: give each a name")
    return (DRIVE / "sdnb-runs" if DRIVE.is_dir() else Path("runs")) / "-".join(words)
