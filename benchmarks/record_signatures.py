"""What the oldest libraries that pyproject allows take, of all that the course calls in them.

    python -m benchmarks.record_signatures [--python FILE]

Makes a virtual environment in a temporary folder, installs the lowest versions into it beside the torch that is installed here, and
asks each for its parameters. `--python` names an interpreter that has them already. The names go to `tests/recorded/signatures.json`,
with which `tests/test_drift.py` compares the calls.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

from tests.tools import drift

ROOT = Path(__file__).resolve().parent.parent
FACTS = ROOT / "tests" / "recorded" / "signatures.json"


def main() -> None:
    """Record, and say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="an interpreter with the oldest libraries (default: install them)")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        json.dump(answer(json.load(sys.stdin)), sys.stdout)
        return
    paths = sorted({use.path for use in drift.in_the_course(ROOT)})
    paths = [path for path in paths if path.partition(".")[0] in lowest()]
    if arguments.python:
        facts = ask(arguments.python, paths)
    else:
        with tempfile.TemporaryDirectory() as folder:
            facts = ask(install(Path(folder)), paths)
    write(facts, FACTS)
    missing = [path for path, words in facts["signatures"].items() if words == "missing"]
    print(f"{len(paths)} recorded with {facts['versions']}; missing there: {', '.join(missing) or 'none'}")


def lowest() -> dict[str, str]:
    """The lowest versions in pyproject of the libraries that are recorded."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    floors = dict(match.groups() for line in lines if (match := re.match(r"([\w-]+)>=([\d.]+)", line)))
    return {library: floors[library] for library in drift.LIBRARIES if library != "torch"}


def install(folder: Path) -> str:
    """The interpreter of a new environment with the lowest versions."""
    venv.create(folder, with_pip=True)
    python = str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    wanted = [f"{library}=={floor}" for library, floor in lowest().items()]
    torch = f"torch=={version('torch').partition('+')[0]}"
    subprocess.run([python, "-m", "pip", "install", "--quiet", torch, *wanted, "pillow"], check=True)
    return python


def ask(python: str, paths: list[str]) -> dict:
    """What that interpreter answers about those paths."""
    command = [python, "-W", "ignore", "-m", "benchmarks.record_signatures", "--answer"]
    return json.loads(subprocess.run(command, input=json.dumps(paths), stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout)


def answer(paths: list[str]) -> dict:
    """The signatures of those paths as they are installed here."""
    signatures = {}
    for path in paths:
        try:
            signatures[path] = drift.written(drift.describe(path))
        except LookupError:
            signatures[path] = "missing"
    return {"versions": {library: version(library) for library in lowest()}, "signatures": signatures}


def write(facts: dict, path: Path) -> None:
    """One signature a line, so that a change shows as changed lines."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(words)}" for name, words in facts["signatures"].items())
    note = json.dumps("null: what is there does not say how it is called, or is no function")
    text = f'{{\n "made by": "python -m benchmarks.record_signatures",\n "note": {note},\n "versions": {json.dumps(facts["versions"])},\n'
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + f' "signatures": {{\n{rows}\n }}\n}}\n', encoding="utf-8")
    json.loads(partial.read_text(encoding="utf-8"))
    partial.replace(path)


if __name__ == "__main__":
    main()
