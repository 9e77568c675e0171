"""`sdnb grade`: the checks of handed-in notebooks, each in a process of its own, as a table.

Nothing that a notebook shows, prints or stores counts: its cells are run, and the checks are those of the installed package. SECURITY.md
says what that stops, and what not.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..system import files
from . import lessons

STATES = {"✓": "right", "✗": "wrong"}
"""What a check's first letter means; an exercise without an answer is missing."""


@dataclass
class Grade:
    """What the checks say of one handed-in notebook."""

    student: str
    lesson: str
    """Number of the lesson, such as `02`; empty for a notebook that belongs to none."""
    file: str
    exercises: dict[str, str] = field(default_factory=dict)
    """Each exercise of the lesson: `right`, `wrong` or `missing`."""
    said: dict[str, str] = field(default_factory=dict)
    """What the check printed, by exercise."""
    beside: list[str] = field(default_factory=list)
    """Exercises whose answer is code, and was checked in the process in which the student's code ran."""
    error: str = ""
    seconds: float = 0.0

    @property
    def right(self) -> int:
        """Number of right answers."""
        return list(self.exercises.values()).count("right")

    def __str__(self) -> str:
        states = "  ".join(f"{name} {state}" for name, state in self.exercises.items())
        return "  ".join(filter(None, (self.student, self.lesson, states, self.error, f"{self.seconds:.0f} s")))


@dataclass(frozen=True)
class Limits:
    """What a handed-in notebook may use."""

    seconds: int = 600
    memory_bytes: int = 4 * 2**30
    processes: int = 64


def handed_in(folder: Path) -> Iterator[Grade]:
    """Notebooks below `folder` with their students and lessons, without results.

    The student is the first folder below `folder`, or else what the file is called besides the lesson's name, or else `folder` itself.
    Raises `ValueError` if there are none.
    """
    files = sorted(
        path for path in folder.rglob("*.ipynb") if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )  # no checkpoints of Jupyter's
    if not files:
        raise ValueError(
            f"no notebooks in {folder}: give the folder with the notebooks that were handed in, or with a folder for each student"
        )
    for path in files:
        relative = path.relative_to(folder)
        stem = next((lesson.stem for lesson in lessons.notebooks() if lesson.stem in path.stem), "")
        rest = path.stem.replace(stem, "").strip(" _-.") if stem else path.stem
        student = relative.parts[0] if len(relative.parts) > 1 else rest or folder.resolve().name
        yield Grade(student, (stem or _asked(path))[:2], relative.as_posix())


def _asked(path: Path) -> str:
    """Exercise that a notebook of another name asks first; empty if none."""
    calls = re.findall(r"\bcheck\(\s*[\"'](\d\d\.\d)[\"']", "\n".join(_cells(path) or ()))
    return calls[0] if calls else ""


def _cells(path: Path) -> list[str] | None:
    """Code cells of a notebook; None for a file that is none."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def grades(folder: Path, limits: Limits, jobs: int | None = None, tell: Callable[[Grade], None] = lambda grade: None) -> list[Grade]:
    """Grade every notebook below `folder`, `jobs` at a time (default: one for each core, at most four), and call `tell` with each.

    Raises `ValueError` for a folder without notebooks, and for fewer than one at a time.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"{jobs} notebooks at a time: give 1 or more")
    found = list(handed_in(folder))
    barrier()

    def grade(each: Grade) -> None:
        start = time.perf_counter()
        _grade(each, folder, limits)
        each.seconds = round(time.perf_counter() - start, 1)
        tell(each)

    with ThreadPoolExecutor(jobs or min(4, os.cpu_count() or 1)) as executor:
        list(executor.map(grade, found))
    return found


def _grade(each: Grade, folder: Path, limits: Limits) -> None:
    from .exercises import EXERCISES

    each.exercises = {name: "missing" for name in EXERCISES if name[:2] == each.lesson}
    cells = _cells(folder / each.file)
    if cells is None or not each.exercises:
        each.error = "no notebook" if cells is None else "belongs to no lesson: its name has none, and it checks no exercise"
        return
    if not any("check(" in cell for cell in cells):
        each.error = "no cell calls sdnb.check"
        return
    try:
        found = _in_a_process("collect", cells, folder, limits)
        answers = {name: data for name, data in found["data"].items() if name in each.exercises}
        each.error = str(found["error"] or "")
        each.beside = [name for name in found["code"] if name in each.exercises]
        each.said = {name: str(found["code"][name]) for name in each.beside}
        each.said |= _in_a_process("check", answers, folder, limits) if answers else {}
    except (RuntimeError, LookupError, AttributeError, TypeError) as error:  # or a notebook that wrote something else instead
        each.error = str(error)
    each.exercises |= {name: STATES.get(text[:1], "missing") for name, text in each.said.items()}


def _in_a_process(what: str, given: object, folder: Path, limits: Limits) -> dict[str, Any]:
    """Result of `handin` in a process with a home of its own, behind the `barrier`. Raises `RuntimeError` if it fails."""
    with tempfile.TemporaryDirectory(prefix="sdnb-grade-", ignore_cleanup_errors=True) as home:
        reserved = 4 * limits.memory_bytes  # torch reserves much that it does not use
        bounds = map(str, (limits.seconds, reserved, _processes(limits)))
        own = [sys.executable, "-P", "-m", "sdnb.course.handin", what, *bounds]
        process = subprocess.Popen(
            [*barrier().command(Path(home), folder), *own], cwd=home, env=_environment(home), start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = _output(process, json.dumps(given).encode(), limits)
        finally:
            _end(process)
    try:
        result = json.loads(out)
    except ValueError:
        last = err.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"ended with status {process.returncode}" + (f": {last[0][:300]}" if last else "")) from None
    if not isinstance(result, dict):
        raise RuntimeError("wrote something else than its result")
    return result


def _output(process: subprocess.Popen, given: bytes, limits: Limits) -> tuple[bytes, bytes]:
    """What a process prints. Raises `RuntimeError` if it, with those that it started, takes more time or memory than it may."""
    import psutil

    deadline = time.monotonic() + limits.seconds
    while True:
        try:
            return process.communicate(given, timeout=0.3)
        except subprocess.TimeoutExpired:
            given = b""  # it has been sent
        if time.monotonic() > deadline:
            raise RuntimeError(f"not finished after {limits.seconds} s")
        resident = 0
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(process.pid)
            for one in [own, *own.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    resident += one.memory_info().rss
        if resident > limits.memory_bytes:
            raise RuntimeError(f"used more than {limits.memory_bytes / 2**30:.1f} GiB of memory")


def _end(process: subprocess.Popen) -> None:
    """End a process and those that it started and that stayed in its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):  # Windows has no groups
        process.kill()
    process.communicate()


def _environment(home: str) -> dict[str, str]:
    """Environment of a handed-in notebook: no secrets of the teacher's."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "SYSTEMROOT") if name in os.environ}
    temporary = dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "IPYTHONDIR"), home)
    return {**kept, **temporary, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8"}


def _processes(limits: Limits) -> int:
    """Limit for the user's processes and threads, which the system counts together: those there are, and the notebook's."""
    import psutil

    user, there = psutil.Process().username(), 0
    for process in psutil.process_iter(["username", "num_threads"]):
        there += (process.info["num_threads"] or 0) if process.info["username"] == user else 0
    return there + limits.processes


@dataclass(frozen=True)
class Barrier:
    """What keeps handed-in notebooks apart from the rest of the machine, besides processes and limits."""

    name: str
    """`bwrap`, `unshare`, or empty for nothing."""

    @property
    def text(self) -> str:
        """What it does, in a sentence."""
        return {
            "bwrap": "No network, and nothing to write to but an empty home; your own home is hidden (bwrap).",
            "unshare": "No network (unshare), but the notebooks can read and write what you can: install bubblewrap for that.",
        }.get(self.name, "The notebooks can use the network, and read and write what you can: install bubblewrap, or use a machine for it.")

    def command(self, home: Path, folder: Path) -> list[str]:
        """Words before a command that runs it inside, with `home` writable and `folder` hidden."""
        if self.name == "unshare":
            return ["unshare", "--user", "--map-current-user", "--net", "--pid", "--fork", "--kill-child"]
        if self.name != "bwrap":
            return []
        hidden = [Path.home().resolve(), folder.resolve(), Path(tempfile.gettempdir()).resolve()]
        own = {Path(name).resolve() for name in (sys.prefix, sys.base_prefix, files.PACKAGE.parent)}
        covered = sorted(path for path in own if any(path.is_relative_to(place) for place in hidden))
        words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
        for place in hidden:
            words += ["--tmpfs", str(place)]
        for path in covered:
            words += ["--ro-bind", str(path), str(path)]
        return [*words, "--bind", str(home.resolve()), str(home.resolve()), "--chdir", str(home.resolve())]


@cache
def barrier() -> Barrier:
    """The best barrier that works on this machine."""
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as folder:
        for name in ("bwrap", "unshare"):
            if shutil.which(name):
                command = [*Barrier(name).command(Path(home), Path(folder)), sys.executable, "-c", "import sdnb"]
                if subprocess.run(command, capture_output=True, timeout=60, env=_environment(home)).returncode == 0:
                    return Barrier(name)
    return Barrier("")


def as_csv(graded: list[Grade]) -> str:
    """Table of the grades, a line for each notebook; `1`, `2`, … are the lesson's exercises."""
    most = max((len(each.exercises) for each in graded), default=0)
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(["student", "lesson", *range(1, most + 1), "right", "of", "checked beside own code", "error", "seconds", "file"])
    for each in graded:
        states = [*each.exercises.values(), *[""] * (most - len(each.exercises))]
        row = [
            each.student,
            each.lesson,
            *states,
            each.right,
            len(each.exercises),
            " ".join(each.beside),
            each.error,
            each.seconds,
            each.file,
        ]
        table.writerow([f"'{cell}" if str(cell)[:1] in tuple("=+-@\t\r") else cell for cell in row])  # no formula of a student's
    return out.getvalue()
