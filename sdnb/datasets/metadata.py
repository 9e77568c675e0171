"""Metadata files of sd-scripts' fine-tuning (`in_json`): the captions and tags of pictures, by their paths.

A JSON file has an object `{path: {"caption": …, "tags": …}}`, a file ending in `.jsonl` a line `{"image_path": …, "caption": …, "tags": …}`
for each picture. Sizes and latents that such files may tell of are not taken: the pictures themselves are looked at and encoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..system import shown, untrusted

MOST = 1_000_000_000
"""Bytes of the largest file that is read."""


def read(path: Path, *, separator: str = ",", by_line: bool = False) -> dict[str, tuple[str, str]]:
    """The caption of each picture, with its tags (see `joined`), and the tags alone, by the path that the file names.

    Raises `FileNotFoundError` for a missing file, `ValueError` for one that is no such metadata.
    """
    entries = {}
    for name, row in _rows(path):
        texts = [row.get(key) for key in ("caption", "tags")]
        if not all(isinstance(text, str | None) for text in texts):
            raise ValueError(f"{untrusted.named(path)}: caption and tags of {shown(name, 200)!r} must be texts")
        entries[name] = (joined(texts[0] or "", texts[1], separator=separator, by_line=by_line), texts[1] or "")
    if not entries:
        raise ValueError(f"{untrusted.named(path)} names no pictures")
    return entries


def joined(caption: str, tags: str | None, *, separator: str = ",", by_line: bool = False) -> str:
    """The caption, then its tags after a separator without spaces; `by_line`, as with wildcards, after each line of the caption.

    >>> joined("a fox", "red, snow"), joined("", "red, snow"), joined("a fox\\na cat", "red", by_line=True)
    ('a fox,red, snow', 'red, snow', 'a fox,red\\na cat,red')
    """
    if not by_line:
        return separator.join(text for text in (caption, tags) if text)
    if tags is None:
        return caption
    tags = tags.replace("\n", separator)
    return "\n".join(f"{line}{separator}{tags}" for line in caption.split("\n") if line.strip())


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The pictures' paths and what stands beside them, in the file's order."""
    name = untrusted.named(path)
    if path.suffix != ".jsonl":
        rows = list(untrusted.read_json(path, most=MOST).items())
        if wrong := next((key for key, row in rows if not isinstance(row, dict)), None):
            raise ValueError(f'{name}: {shown(wrong, 200)!r} must be an object, {{"caption": "…", "tags": "…"}}')
        return rows
    rows = {}
    for number, line in enumerate(untrusted.read_text(path, MOST).split("\n"), start=1):
        if not line.strip():
            continue
        row = untrusted.parse_json(line, f"{name}, line {number},")
        if not isinstance(row.get("image_path"), str):
            raise ValueError(f'{name}, line {number}: it must read {{"image_path": "…", "caption": "…"}}')
        rows[row["image_path"]] = row
    return list(rows.items())
