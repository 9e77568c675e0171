"""Links between the course's files, and where these lie once they are copied to another folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

CODE = r"(?P<code>```.*?```|`[^`\n]*`)"
"""What looks like a link or a formula in code is none."""
LINK = re.compile(CODE + r"|(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]*)(?P<rest>[^)]*)\)", re.DOTALL)


class Folder:
    """A flat copy of the course: what lies in notebooks/ comes to its top, and the other files of the repository keep their places.

    `suffixes` says which files get another one, such as `{".ipynb": ".html"}`. `wanted` are the files that texts linked to.
    """

    def __init__(self, notebooks: Path, suffixes: Mapping[str, str] | None = None) -> None:
        self.notebooks, self.root, self.suffixes = notebooks, notebooks.parent, dict(suffixes or {})
        self.wanted: dict[Path, PurePosixPath] = {}

    def place(self, file: Path) -> PurePosixPath | None:
        """Where a file comes to lie in the copy; None for what is no file of the course."""
        home = self.notebooks if file.is_relative_to(self.notebooks) else self.root
        if not file.is_file() or not file.is_relative_to(home):
            return None
        return PurePosixPath(file.relative_to(home).with_suffix(self.suffixes.get(file.suffix, file.suffix)).as_posix())

    def relinked(self, text: str, source: Path) -> str:
        """The Markdown of `source` with its links as they are in the copy. A link to nothing that is there becomes plain text."""

        def one(match: re.Match) -> str:
            target = match["target"]
            if match["code"] or not target or re.match(r"[a-z]+:", target):
                return match[0]
            file = Path(os.path.normpath(source.parent / target))
            place = self.place(file)
            if place is None:
                return match["text"]
            self.wanted[file] = place
            start = self.place(source)
            address = os.path.relpath(place, start.parent if start else ".")
            return f"{match['picture']}[{match['text']}]({PurePosixPath(address).as_posix()}{match['rest']})"

        return LINK.sub(one, text)

    def follow(self, make: Callable[[Path, PurePosixPath], None]) -> None:
        """Call `make(file, place)` for each file that is linked to, and for those that they link to in turn."""
        made: set[Path] = set()
        while missing := [file for file in self.wanted if file not in made]:
            for file in missing:
                make(file, self.wanted[file])
                made.add(file)
