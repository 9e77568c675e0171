"""`Result`: points for one part of the capstone, and the reader's tries, one file each in a folder beside the note of exercises."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..system import files

FOLDER = ".sdnb-capstone"
"""Folder of the tries. A try is a file of its own, written once, so that no later one can damage it."""
PARTS = {"diagnose": 18, "plan": 30, "choose": 12, "train": 20, "export": 8, "defend": 12}
"""Points of each part, 100 in all."""
UNITS = {"reserved": "GiB", "flops_per_picture": "TFLOPs", "held_out": "", "flops": "GFLOPs"}
WORDS = {
    "reserved": "memory reserved, planned",
    "flops_per_picture": "arithmetic for a picture",
    "held_out": "held-out loss of tiny",
    "flops": "arithmetic of the run on tiny",
}


@dataclass(frozen=True)
class Item:
    """One thing that earns points, and why it did or did not."""

    points: float
    of: float
    text: str

    def __str__(self) -> str:
        mark = "✓" if self.points >= 0.995 * self.of else "✗" if not self.points else "~"
        return f"  {mark} {self.points:4.1f} of {self.of:<4g} {self.text}"


@dataclass(frozen=True, repr=False)
class Result:
    """Points for one part; prints as a table. While the part waits for an answer it has none, and says what it waits for."""

    part: str
    items: tuple[Item, ...] = ()
    waits: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Measured or planned values by name, in the units of `UNITS`. All are better when smaller."""
    settings: str = ""
    """The reader's settings as text; empty for a part of questions."""
    answers: Mapping[str, object] = field(default_factory=dict)
    """The reader's answers by question."""

    @property
    def points(self) -> float:
        """Points earned, rounded to a tenth."""
        return round(sum(item.points for item in self.items), 1)

    def __str__(self) -> str:
        if self.waits:
            return f"… {self.part} waits: {self.waits}"
        return "\n".join([f"{self.part}: {self.points:g} of {PARTS[self.part]} points", *map(str, self.items)])

    __repr__ = __str__


def share(value: float, best: float, worst: float) -> float:
    """Place of `value` between `worst`, which is 0, and `best`, which is 1; 0 for what is not finite.

    >>> share(7.0, best=6.0, worst=8.0)
    0.5
    """
    return min(1.0, max(0.0, (worst - value) / (worst - best))) if math.isfinite(value) else 0.0


def comparison(result: Result, reference: Mapping[str, float], folder: Path) -> str:
    """Lines that compare a result's measures with the reference and with the best of the earlier tries in `folder`."""
    earlier = [one["measures"] for one in read(folder) if one["part"] == result.part]
    lines = []
    for name, value in result.measures.items():
        before = [measures[name] for measures in earlier if name in measures]
        best = f", your best so far {min(before):.4g}" if before else ", your first try"
        lines.append(f"    {WORDS[name]}: {value:.4g}{UNITS[name] and ' ' + UNITS[name]}; the reference {reference[name]:.4g}{best}")
    return "\n".join(lines)


def record(result: Result, folder: Path) -> None:
    """Write a try to `folder`, unless the same is there already. In a folder that is read-only nothing is kept."""
    content = {
        "part": result.part,
        "points": result.points,
        "items": [[item.points, item.of, item.text] for item in result.items],
        "measures": dict(result.measures),
        "settings": result.settings,
        "answers": {name: answer if isinstance(answer, int) else answer and str(answer) for name, answer in result.answers.items()},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / FOLDER / f"{result.part}-{digest}.json"
    if not path.exists():
        with contextlib.suppress(OSError):
            when = datetime.datetime.now().isoformat(timespec="seconds")
            files.write(path, json.dumps({**content, "when": when}, indent=1, ensure_ascii=False))


def read(folder: Path) -> list[dict]:
    """Tries in `folder`, the oldest first. A file that is no try is passed over, and stays."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            one = json.loads(path.read_text(encoding="utf-8"))
            if _is_try(one):
                found.append(one)
    return sorted(found, key=lambda one: one["when"])


def best(folder: Path) -> dict[str, dict]:
    """The try with the most points for each part; of equals the later one."""
    found: dict[str, dict] = {}
    for one in read(folder):
        if one["part"] not in found or one["points"] >= found[one["part"]]["points"]:
            found[one["part"]] = one
    return found


def _is_try(one: object) -> bool:
    return (
        isinstance(one, dict)
        and one.get("part") in PARTS
        and isinstance(one.get("points"), (int, float))
        and 0 <= one["points"] <= PARTS[one["part"]]
        and isinstance(one.get("when"), str)
        and isinstance(one.get("settings"), str)
        and isinstance(one.get("answers"), dict)
        and isinstance(one.get("measures"), dict)
        and all(isinstance(value, (int, float)) for value in one["measures"].values())
    )
