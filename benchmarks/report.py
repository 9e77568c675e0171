"""What every benchmark prints: its rows, and the machine and versions they come from."""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft")


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
    """Print `rows` as a table, the machine below it, and write both to `path` if there is one, with whatever else is given."""
    for first in dict.fromkeys(next(iter(row)) for row in rows):  # rows that begin alike make one table
        _print([row for row in rows if next(iter(row)) == first])
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        content = {"command": _command(), "machine": facts, "rows": rows, **more}
        partial.write_text(_lines(content) + "\n", encoding="utf-8")
        partial.replace(path)


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
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
