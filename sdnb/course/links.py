"""Links between the course's files, and the files' paths in a copy of the course."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

CODE = r"(?P<code>```.*?```|`[^`\n]*`)"
"""Code in Markdown, where nothing is a link or a formula."""
LINK = re.compile(CODE + r"|(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]*)(?P<rest>[^)]*)\)", re.DOTALL)


class Folder:
    """A flat copy of the course: the files of notebooks/ come to its top, the repository's other files keep their paths.

    `suffixes` maps file endings that change, such as `{".ipynb": ".html"}`.
    """

    def __init__(self, notebooks: Path, suffixes: Mapping[str, str] | None = None) -> None:
        self.notebooks, self.root = notebooks, notebooks.parent
        self.suffixes = dict(suffixes or {})
        self.paths: dict[Path, PurePosixPath] = {}
        """Files of the copy so far, with their paths in it."""

    def path(self, file: Path) -> PurePosixPath | None:
        """Path of a file in the copy; None if it is no file of the course."""
        home = self.notebooks if file.is_relative_to(self.notebooks) else self.root
        if not file.is_file() or not file.is_relative_to(home):
            return None
        return PurePosixPath(file.relative_to(home).with_suffix(self.suffixes.get(file.suffix, file.suffix)).as_posix())

    def add(self, file: Path) -> PurePosixPath | None:
        """Add a file to the copy and return its path there; None if it is no file of the course."""
        path = self.path(file)
        if path is not None:
            self.paths[file] = path
        return path

    def relinked(self, text: str, source: Path) -> str:
        """Rewrite the links in `text`, the Markdown of `source`, for the copy. A link to a missing file becomes plain text."""

        def relink(match: re.Match) -> str:
            target = match["target"]
            if match["code"] or not target or re.match(r"[a-z]+:", target):
                return match[0]
            path = self.add(Path(os.path.normpath(source.parent / target)))
            if path is None:
                return match["text"]
            start = self.path(source)
            address = os.path.relpath(path, start.parent if start else ".")
            return f"{match['picture']}[{match['text']}]({PurePosixPath(address).as_posix()}{match['rest']})"

        return LINK.sub(relink, text)

    def follow(self, make: Callable[[Path, PurePosixPath], None]) -> None:
        """Call `make(file, path)` for each file of the copy, also for files that `make` adds."""
        finished: set[Path] = set()
        while missing := [file for file in self.paths if file not in finished]:
            for file in missing:
                make(file, self.paths[file])
                finished.add(file)
