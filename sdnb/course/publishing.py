"""`publish`: write the repository's address on GitHub into the notebooks and the package's metadata."""

from __future__ import annotations

import re
from pathlib import Path

import tomlkit

from ..system import files
from . import lessons
from .editions import LANGUAGES

ADDRESS = re.compile(r"git\+(https://github\.com/[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?/(?!\.)[\w.-]+(?<!\.git)(?<!\.))", re.ASCII)
_LINE = re.compile(r'(?<="REPOSITORY = \\")[^"\\]*(?=\\")')
"""Address in the set-up cell's line, as a notebook's file has it."""


def publish(address: str) -> list[Path]:
    """Write `git+https://github.com/OWNER/REPOSITORY` into this checkout's notebooks and pyproject.toml; returns the files that changed.

    In Kaggle, and for copies in Drive, pip installs from that address; the README's links on a package index lead there. Raises
    `ValueError`, before anything is written, for another address, outside a checkout, or for a notebook without the line.
    """
    if not (match := ADDRESS.fullmatch(address)):
        raise ValueError(f"{address!r} is no address of a repository: give git+https://github.com/OWNER/REPOSITORY")
    home = lessons.notebooks()[0].parent
    project = home.parent / "pyproject.toml"
    if home.is_relative_to(files.PACKAGE) or not project.exists():
        raise ValueError("--publish writes into the notebooks of a checkout, and this is an installed package")
    contents = {project: _with_urls(project.read_text(encoding="utf-8"), match[1])}
    recorder = [path for path in [home / lessons.RECORDER] if path.exists()]
    for path in [*lessons.notebooks(), *recorder, *(path for language in LANGUAGES for path in lessons.notebooks(language))]:
        contents[path], lines = _LINE.subn(address, path.read_text(encoding="utf-8"))
        if lines != 1:
            raise ValueError(f'{path} has {lines} lines REPOSITORY = "", and not one: copy the set-up cell from another lesson')
    changed = [path for path, content in contents.items() if path.read_bytes() != content.encode()]
    return [files.write(path, contents[path]) for path in changed]


def _with_urls(pyproject: str, url: str) -> str:
    document = tomlkit.parse(pyproject)
    document["project"]["urls"].update({"Repository": url, "Issues": f"{url}/issues"})
    return tomlkit.dumps(document)
