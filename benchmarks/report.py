"""What every benchmark prints: its rows, and the machine and versions they come from."""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "matplotlib", "livelossplot", "fastprogress")


def machine() -> dict[str, str]:
    """The machine and the library versions of this run."""
    import torch

    facts = {"python": platform.python_version(), "cpu": f"{_processor()}, {os.cpu_count()} cores", "threads": str(torch.get_num_threads())}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    for library in LIBRARIES:
        try:
            facts[library] = version(library)
        except PackageNotFoundError:
            continue
    return facts


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the `--json FILE` that every benchmark has."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write the same numbers here")
    return arguments


def show(rows: list[dict], path: Path | None = None, **more: object) -> None:
    """Print `rows` as tables, the machine below them, and write both to `path` if there is one, with whatever else is given.

    Of that, `notes` is a list of sentences that the table of all benchmarks repeats. `seconds` are those since the process began.
    """
    import psutil

    for table in tables(rows):
        _print(table)
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for note in more.get("notes", []):
        print(note)
    if path:
        seconds = round(time.time() - psutil.Process().create_time(), 1)
        content = {"command": _command(), "machine": facts, "seconds": seconds, "rows": rows, **more}
        write(path, _lines(content) + "\n")


STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t for a 95% interval, by the number of values."""


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the values, and both ends of its 95% interval. Raises `KeyError` for fewer than 2 or more than 10 values."""
    mean = statistics.mean(values)
    half = STUDENT_T[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def write(path: Path, text: str) -> None:
    """A whole file, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def tables(rows: list[dict]) -> list[list[dict]]:
    """Rows that begin alike make one table."""
    return [[row for row in rows if next(iter(row)) == first] for first in dict.fromkeys(next(iter(row)) for row in rows)]


def markdown(rows: list[dict]) -> str:
    """One table as Markdown, its numbers to the right."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    body = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]
    right = [all(re.match(r"[-+]?[0-9]|1/|$", line[i]) for line in lines[1:]) for i in range(len(columns))]
    return "\n".join([body[0], "|" + "|".join("--:" if number else ":--" for number in right) + "|", *body[1:]])


def _print(rows: list[dict]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _lines(content: dict) -> str:
    """JSON with a line for each item of its lists."""
    parts = []
    for name, value in content.items():
        body = "[\n" + ",\n".join(f"  {json.dumps(item)}" for item in value) + "\n ]" if isinstance(value, list) else json.dumps(value)
        parts.append(f" {json.dumps(name)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}"


def _command() -> str:
    """What was typed, without what Python makes of it."""
    return " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
