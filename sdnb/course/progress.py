"""The reader's progress, in a file of the reader's folder: the exercises that are done, and the guesses that were written down."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..system import files
from . import lessons
from .languages import LANGUAGES


@dataclass
class Progress:
    """What a reader has done: `exercises` by name, and `guesses`, the last answer to each, by name."""

    exercises: set[str] = field(default_factory=set)
    guesses: dict[str, Any] = field(default_factory=dict)

    def add(self, other: Progress) -> None:
        """Add what `other` has; of two answers to one guess that of `other` stays."""
        self.exercises |= other.exercises
        self.guesses |= other.guesses


_session = Progress()


def path() -> Path:
    """File of the progress: in Colab in Drive, if that is mounted, elsewhere beside the English lessons, for every language."""
    folder = Path("..") if Path.cwd().name in LANGUAGES else Path()
    return (lessons.DRIVE if lessons.DRIVE.is_dir() else folder) / ".sdnb-progress.json"


def load() -> Progress:
    """Progress of this session and of earlier ones."""
    progress = _read()
    progress.add(_session)
    return progress


def record(new: Progress) -> None:
    """Add to the progress, and save it for later sessions. In a folder that is read-only, only this session remembers it."""
    _session.add(new)
    progress = load()
    content = {"exercises": sorted(progress.exercises), "guesses": dict(sorted(progress.guesses.items()))}
    with contextlib.suppress(OSError):
        files.write(path(), json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _read() -> Progress:
    """Progress in the file, also in that of version 0.2.0, a list of exercises; none if it cannot be read."""
    try:
        saved = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return Progress()
    if isinstance(saved, list):
        saved = {"exercises": saved}
    if not isinstance(saved, dict):
        return Progress()
    exercises, guesses = saved.get("exercises"), saved.get("guesses")
    return Progress(
        {name for name in exercises if isinstance(name, str)} if isinstance(exercises, list) else set(),
        guesses if isinstance(guesses, dict) else {},
    )
