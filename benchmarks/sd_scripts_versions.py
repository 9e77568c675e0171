"""Differences between versions of sd-scripts, taken from a checkout of each: the table `sdnb/sd_scripts/versions.json`.

    python -m benchmarks.sd_scripts_versions FOLDER

FOLDER holds one checkout a version: `git worktree add FOLDER/0.11.1 6721028`, and so on for all of `VERSIONS`. Runs each version's own
parsers, in an environment with sd-scripts' requirements, and follows the lines that the doctor cites from the recorded version to where
the same lines stand in the others. What it keeps are names, defaults and line numbers, no code.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

from sdnb.doctor.messages import MESSAGES
from sdnb.doctor.rules import RULES

from . import sd_scripts
from .report import parser as command_line
from .report import write

HERE = Path(__file__).resolve().parent.parent
RECORDED = "0.10.1"
VERSIONS = {
    "0.9.1": ("8f4ee8f", "2025-03-21"),
    "0.10.0": ("966e9d7", "2026-01-19"),
    RECORDED: ("48d368f", "2026-02-16"),
    "0.10.2": ("1dae34b", "2026-03-30"),
    "0.10.3": ("51435f1", "2026-04-02"),
    "0.10.4": ("706a95e", "2026-05-07"),
    "0.10.5": ("a1b48df", "2026-05-08"),
    "0.10.6": ("6e14642", "2026-06-12"),
    "0.11.0": ("b8d1eb0", "2026-06-12"),
    "0.11.1": ("6721028", "2026-06-16"),
}
"""The commit of main that brought each version, and its day; the recorded one is three days younger than its release."""
OLD = re.compile(r"_XTI|_old|train_controlnet\b")
"""Scripts that are kept for old commands."""
NEAR = 6
"""Lines on each side that are compared, too, where a line is looked for in another file."""


def arguments_of(folder: Path) -> dict[str, dict[str, dict]]:
    """The arguments of each training script of one checkout, by name."""
    checkout = sd_scripts.Checkout(folder)
    names = sorted(path.stem for path in folder.glob("*.py") if "def setup_parser" in path.read_text(encoding="utf-8"))
    names = [name for name in names if ("train" in name or name == "fine_tune") and not OLD.search(name)]
    return {f"{name}.py": {row.pop("name"): row for row in map(sd_scripts.argument, _actions(checkout, name))} for name in names}


def _actions(checkout: sd_scripts.Checkout, name: str):
    return [action for action in checkout.parser(f"{name}.py")._actions if not isinstance(action, argparse._HelpAction)]


def table(folder: Path, arguments: dict[str, dict]) -> dict:
    """The differences, each with the version that brought it; what the first version has is left out."""
    names = sorted({name for script in arguments[RECORDED].values() for name in script})
    old = {name: [script[name] for script in arguments[RECORDED].values() if name in script] for name in names}
    new, like = _arguments(arguments, old)
    return {
        "recorded": RECORDED,
        "versions": {version: list(commit) for version, commit in VERSIONS.items()},
        "scripts": _since({version: set(arguments[version]) for version in VERSIONS}),
        "modules": _since({version: _modules(folder / version) for version in VERSIONS}),
        "files": _since({version: _library(folder / version) for version in VERSIONS}),
        "arguments": new,
        "like": like,
        "ends": _ends(folder),
        "places": {place: found for place in _cited(folder / RECORDED) if (found := _followed(folder, place))},
    }


def _arguments(arguments: dict[str, dict], old: dict[str, list[dict]]) -> tuple[dict[str, list[dict]], dict[str, list[str]]]:
    """The arguments that scripts got, and for each script that is newer than the recorded version those that it shares with older ones."""
    rows: dict[str, list[dict]] = {}
    like: dict[str, list[str]] = {}
    known: dict[str, set[str]] = {script: set(given) for script, given in arguments[next(iter(VERSIONS))].items()}
    for version in list(VERSIONS)[1:]:
        for script, given in arguments[version].items():
            for name, row in given.items():
                if name in known.get(script, ()):
                    continue
                recorded = script in arguments[RECORDED] and name in arguments[RECORDED][script]
                if script not in known and (recorded or row == old.get(name, [None])[0]):
                    if not recorded:
                        like.setdefault(script, []).append(name)
                    continue
                wanted = {"since": version} if recorded else {"since": version, **row}
                variants = rows.setdefault(name, [])
                if found := next((one for one in variants if {**one, "scripts": None} == {**wanted, "scripts": None}), None):
                    found["scripts"].append(script)
                else:
                    variants.append({**wanted, "scripts": [script]})
        for script, given in arguments[version].items():
            known.setdefault(script, set()).update(given)
    return dict(sorted(rows.items())), like


def _since(known: dict[str, set[str]]) -> dict[str, str]:
    """Each name that came after the first version, and the version that brought it."""
    first, *later = known
    names = sorted(set().union(*known.values()) - known[first])
    return {name: next(version for version in later if name in known[version]) for name in names}


def _modules(folder: Path) -> set[str]:
    files = (folder / "networks").glob("*.py")
    return {f"networks.{file.stem}" for file in files if "\ndef create_network(" in file.read_text(encoding="utf-8")}


def _library(folder: Path) -> set[str]:
    return {f"library/{file.name}" for file in (folder / "library").glob("*.py")}


def _ends(folder: Path) -> dict[str, dict[str, int]]:
    """The last line of code of each script, which a traceback begins with, and of train_util.py, where a version moved it."""
    ends: dict[str, dict[str, int]] = {}
    for version in VERSIONS:
        for path in [*sorted((folder / version).glob("*.py")), folder / version / "library" / "train_util.py"]:
            lines = path.read_text(encoding="utf-8").rstrip().splitlines()
            if "train(args)" in lines[-1] or path.name == "train_util.py":
                known = ends.setdefault(path.name, {})
                if not known or [*known.values()][-1] != len(lines):
                    known[version] = len(lines)
    return ends


def _cited(recorded: Path) -> list[str]:
    """The lines of sd-scripts that rules and messages cite, such as `library/train_util.py:5049`."""
    sources = [rule.source.place for rule in RULES] + [message.source for message in MESSAGES]
    places = {place for source in sources for place in re.findall(r"(?<![\w/])(?:\w+/)?\w+\.py:\d+", source)}
    return sorted(place for place in places if (recorded / place.partition(":")[0]).is_file())


def _followed(folder: Path, place: str) -> dict[str, str | None]:
    """Places of a cited line by version, where they differ from the version before; None where it is missing."""
    found: dict[str, str | None] = {}
    for version in VERSIONS:
        there = place if version == RECORDED else _in_version(folder, place, version)
        if not found or there != [*found.values()][-1]:
            found[version] = there
    return {} if [*found.values()] == [place] else found


def _in_version(folder: Path, place: str, version: str) -> str | None:
    file, line = place.rsplit(":", 1)
    number = int(line) - 1
    lines = _lines(folder / RECORDED / file)
    if (same := folder / version / file).is_file() and (moved := _moved(folder / RECORDED / file, same).get(number)) is not None:
        return f"{file}:{moved + 1}"
    around = {text for text in lines[max(0, number - NEAR) : number + NEAR + 1] if text}
    best = (0, "")
    for path in [*(folder / version / "library").glob("*.py"), *(folder / version).glob("*.py")]:
        there = _lines(path)
        for place_there, text in enumerate(there):
            if text == lines[number]:
                shared = around & set(there[max(0, place_there - NEAR) : place_there + NEAR + 1])
                best = max(best, (len(shared), f"{path.relative_to(folder / version).as_posix()}:{place_there + 1}"))
    return best[1] if best[0] * 2 > len(around) else None


@functools.cache
def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]


@functools.cache
def _moved(before: Path, after: Path) -> dict[int, int]:
    """The number of each line in the second file that is the same as in the first."""
    blocks = difflib.SequenceMatcher(None, _lines(before), _lines(after), autojunk=False).get_matching_blocks()
    return {block.a + offset: block.b + offset for block in blocks for offset in range(block.size)}


def main() -> None:
    parser = command_line(str(__doc__))
    parser.add_argument("folder", type=Path, help="a folder with a checkout of each version, by its number")
    parser.add_argument("--one", action="store_true", help="print the arguments of the one checkout that FOLDER is")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.one:
        print(json.dumps(arguments_of(folder), default=str))
        return
    arguments = {}
    for version in VERSIONS:
        command = [sys.executable, "-m", "benchmarks.sd_scripts_versions", str(folder / version), "--one"]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE)
        arguments[version] = json.loads(ran.stdout.splitlines()[-1])
    rows = [f"{json.dumps(name)}: {_printed(part)}" for name, part in table(folder, arguments).items()]
    write(HERE / "sdnb" / "sd_scripts" / "versions.json", "{\n " + ",\n ".join(rows) + "\n}\n")


def _printed(part: object) -> str:
    """A part as JSON, one row a line."""
    if not isinstance(part, dict):
        return json.dumps(part)
    return "{\n  " + ",\n  ".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in part.items()) + "\n }"


if __name__ == "__main__":
    main()
