"""Recorded runs, played again through the live plot."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from ..memory import Gauges, Reading
from ..system import files
from ..training import Step
from .frontends import find
from .history import PHASES
from .watching import Live


def recordings() -> dict[str, Path]:
    """Files of the recorded runs, by the name that `replay` takes."""
    return {path.stem.removeprefix("run-"): path for path in sorted((files.bundled() / "recorded").glob("run-*.json"))}


class Recording(Gauges):
    """Steps of a recorded run, one after another over `seconds`; also the gauges, with the readings of that time."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__()
        content = json.loads(path.read_text(encoding="utf-8"))
        self.machine, self.command = content["machine"], content["command"]
        self.title = content.get("title", path.stem)
        self.capacity_bytes = content.get("capacity_bytes")
        self.may_spill = content.get("may_spill", False)
        self._rows = content["rows"]
        self._pause = seconds / len(self._rows)

    @property
    def label(self) -> str:
        """Note for the picture: the title, the card or CPU, and torch's version."""
        hardware = self.machine.get("gpu") or f"{self.machine['cpu']}, no GPU"
        return f"Recording: {self.title}, on {hardware}, torch {self.machine['torch']}"

    def __iter__(self) -> Iterator[Step]:
        for row in self._rows:
            time.sleep(self._pause)
            self.latest = Reading(**{name: row.get(name) for name in Reading.__slots__})
            peaks = {phase: row[f"{phase}_peak_bytes"] for phase in PHASES if row.get(f"{phase}_peak_bytes")}
            yield Step(
                row["index"],
                row["loss"],
                row["learning_rate"],
                row["seconds"],
                peaks=peaks or None,
                allocated_bytes=row.get("allocated_bytes"),
                reserved_bytes=row.get("reserved_bytes"),
                pictures=row.get("pictures"),
                steps=len(self._rows),
                validation_loss=row.get("validation_loss"),
            )


def replay(name: str, *, seconds: float = 15.0) -> Live:
    """Play a recorded run through the live plot, in `seconds` where somebody watches and at once elsewhere.

    Every picture says that it is a recording, and names the machine. Raises `ValueError` for an unknown name.
    """
    paths = recordings()
    if name not in paths:
        raise ValueError(f"no recording {name!r}: there are {', '.join(paths) or 'none'}")
    front_end = find()
    recording = Recording(paths[name], seconds if front_end.moving else 0)
    return Live({"this run": recording}, note=recording.label, gauges=recording, front_end=front_end)
