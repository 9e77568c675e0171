"""Links between the course's files, and the files' places in a copy of the course."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

CODE = r"(?P<code>```.*?```|`[^`\n]*`)"
"""Code in Markdown, where nothing is a link or a formula."""
LINK = re.compile(CODE + r"|(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]*)(?P<rest>[^)]*)\)", re.DOTALL)


class Folder:
    """A flat copy of the course: what lies in notebooks/ comes to its top, and the other files of the repository keep their places.

    `suffixes` maps those that change, such as `{".ipynb": ".html"}`. `wanted` are the files of the copy so far, with their places in it.
    """

    def __init__(self, notebooks: Path, suffixes: Mapping[str, str] | None = None) -> None:
        self.notebooks, self.root, self.suffixes = notebooks, notebooks.parent, dict(suffixes or {})
        self.wanted: dict[Path, PurePosixPath] = {}

    def place(self, file: Path) -> PurePosixPath | None:
        """A file's place in the copy; None for what is no file of the course."""
        home = self.notebooks if file.is_relative_to(self.notebooks) else self.root
        if not file.is_file() or not file.is_relative_to(home):
            return None
        return PurePosixPath(file.relative_to(home).with_suffix(self.suffixes.get(file.suffix, file.suffix)).as_posix())

    def add(self, file: Path) -> PurePosixPath | None:
        """Take a file into the copy and return its place there; None for what is no file of the course."""
        place = self.place(file)
        if place is not None:
            self.wanted[file] = place
        return place

    def relinked(self, text: str, source: Path) -> str:
        """The Markdown of `source` with its links as they are in the copy. A link to a missing file becomes plain text."""

        def relink(match: re.Match) -> str:
            target = match["target"]
            if match["code"] or not target or re.match(r"[a-z]+:", target):
                return match[0]
            place = self.add(Path(os.path.normpath(source.parent / target)))
            if place is None:
                return match["text"]
            start = self.place(source)
            address = os.path.relpath(place, start.parent if start else ".")
            return f"{match['picture']}[{match['text']}]({PurePosixPath(address).as_posix()}{match['rest']})"

        return LINK.sub(relink, text)

    def follow(self, make: Callable[[Path, PurePosixPath], None]) -> None:
        """Call `make(file, place)` for each file of the copy, and for those that `make` adds in turn."""
        made: set[Path] = set()
        while missing := [file for file in self.wanted if file not in made]:
            for file in missing:
                make(file, self.wanted[file])
                made.add(file)
