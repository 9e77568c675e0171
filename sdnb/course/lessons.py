"""Lessons: the notebooks' files and copies of them, and the folder of a reader's runs."""

from __future__ import annotations

import filecmp
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


def unpack(folder: str | Path, language: str = "en") -> list[Path]:
    """Copy the course's pages to `folder` and return the copies. Existing files are the reader's work, and stay."""
    copies = _copies(folder, language)
    for copy, page in copies.items():
        if not copy.exists():
            files.write(copy, page.read_bytes())
    return list(copies)


def changed(folder: str | Path, language: str = "en") -> list[Path]:
    """Copies in `folder` that differ from their original pages."""
    return [copy for copy, page in _copies(folder, language).items() if not filecmp.cmp(copy, page, shallow=False)]


def _copies(folder: str | Path, language: str) -> dict[Path, Path]:
    """Pages of the course, by the paths of their copies."""
    root = notebooks()[0].parent
    return {Path(folder).expanduser() / page.relative_to(root): page for page in pages(language)}


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
