"""Execute every lesson of the course, or copy the lessons for students without the solutions."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .. import __version__
from ..system import PAGES, files
from . import lessons, pages
from .links import Folder
from .overview import Lesson

if TYPE_CHECKING:
    from nbformat import NotebookNode

EXERCISE_CALL = re.compile(
    r"^(?:sdnb\.check|(?:\w+ = )?capstone\.(?:diagnose|plan|choose|train|export|defend|certificate))\(", re.MULTILINE
)
"""Call that checks an answer: the cell's output goes when solutions do."""
_LOCKED_TEST = {"grade": True, "locked": True, "points": 1, "schema_version": 3, "solution": False, "task": False}
SOLUTION = re.compile(r"<details>.*?</details>\s*", re.DOTALL)


def executed(
    jobs: int | None = None,
    tell: Callable[[Lesson], None] = lambda lesson: None,
    *,
    for_pages: bool = False,
    notebooks: Iterable[Path] = (),
) -> list[Lesson]:
    """Execute `notebooks` (default: every lesson), `jobs` at a time (default: two where there are two cores), and `tell` each result.

    The kernels share the cores, unless OMP_NUM_THREADS is set. A lesson stops at the first cell that raises; the other lessons go on. Each
    runs in an empty folder of its own, away from the reader's runs, and its file is not changed. With `for_pages` what can play in a
    browser without Python brings its page along.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"{jobs} notebooks at a time: give 1 or more")
    cores = os.cpu_count() or 1
    jobs = jobs or min(2, cores)
    environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ, **({PAGES: "1"} if for_pages else {})}

    async def execute_all() -> list[Lesson]:
        slots = asyncio.Semaphore(jobs)

        async def execute(path: Path) -> Lesson:
            async with slots:
                lesson = await _execute(path, environment)
            tell(lesson)
            return lesson

        return await asyncio.gather(*map(execute, notebooks or lessons.notebooks()))

    loop = asyncio.new_event_loop()
    running = loop.create_task(execute_all())
    with ThreadPoolExecutor(1) as executor:  # in the main thread nbclient would catch an interrupt, and stop one kernel only
        result = executor.submit(loop.run_until_complete, running)
        try:
            return result.result()
        except KeyboardInterrupt:
            loop.call_soon_threadsafe(running.cancel)  # which ends the kernels
            raise
        finally:
            executor.submit(loop.close)


def stored() -> list[Lesson]:
    """Lessons with the outputs that their files have; nothing is executed, and no time is known."""
    import nbformat

    return [Lesson(path, nbformat.read(path, as_version=4), 0.0) for path in lessons.notebooks()]


async def _execute(path: Path, environment: dict[str, str]) -> Lesson:
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=1200, kernel_name="python3", record_timing=False, coalesce_streams=True, extra_arguments=["--log-level=ERROR"]
    )
    start, error = time.perf_counter(), None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            await client.async_execute(env=environment, cwd=folder)
        except CellExecutionError as raised:
            error = f"{raised.ename}: {raised.evalue}"
        except (CellTimeoutError, DeadKernelError) as raised:
            error = f"{type(raised).__name__}: {raised}"
    return Lesson(path, notebook, time.perf_counter() - start, error)


def may_write(folder: Path | None) -> None:
    """Raise `ValueError` for a folder that holds the notebooks themselves, or, with None, if the course is an installed package."""
    home = lessons.notebooks()[0].parent
    if folder is None and home.is_relative_to(files.PACKAGE):
        raise ValueError("--store writes into the notebooks of a checkout, and this is an installed package")
    if folder and folder.resolve() == home.resolve():
        raise ValueError(f"{folder} is where the notebooks themselves lie: give another folder, or, to keep their outputs there, --store")


def show(folder: Path, executed: list[Lesson], seconds: float) -> Path:
    """Write executed lessons as pages to `folder`; returns the start page. `seconds` is the time that all of them took, 0 if none ran."""
    may_write(folder)
    folder.mkdir(parents=True, exist_ok=True)
    passed = sum(lesson.error is None for lesson in executed)
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "accelerate", "peft"))
    ran = f"{passed} of {len(executed)} lessons passed, in {seconds / 60:.1f} minutes on {os.cpu_count()} cores"
    summary = (
        f"{ran}: sdnb {__version__}, Python {platform.python_version()}, {names}." if seconds else f"Outputs as stored: sdnb {__version__}."
    )
    return pages.write(folder, executed, summary)


def store(executed: list[Lesson]) -> None:
    """Write the outputs of lessons that passed into the notebooks of a checkout."""
    import nbformat

    may_write(None)
    for lesson in executed:
        if lesson.error is None:
            files.write(lesson.path, nbformat.writes(lesson.notebook) + "\n")


def without_solutions(folder: Path, overwrite: bool = False, *, for_nbgrader: bool = False) -> list[Path]:
    """Write the notebooks to `folder` without solutions, with the files that they link to; returns the notebooks.

    Exercises lose their output too; everything else stays as stored. Nothing is executed. Raises `ValueError`, before anything is written,
    for a file that exists and differs, unless `overwrite`. With `for_nbgrader` a locked test of one point follows each exercise.
    """
    import nbformat

    may_write(folder)
    originals = lessons.notebooks()
    copy = Folder(originals[0].parent)
    contents: dict[PurePosixPath, bytes] = {}

    def make(file: Path, path: PurePosixPath) -> None:
        if file.suffix == ".ipynb":
            notebook = stripped(nbformat.read(file, as_version=4), file.name)
            if for_nbgrader:
                notebook.cells = [each for cell in notebook.cells for each in (cell, *_nbgrader_tests(cell))]
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = copy.relinked(cell.source, file)
            contents[path] = (nbformat.writes(notebook) + "\n").encode()
        elif file.suffix == ".md":
            contents[path] = copy.relinked(file.read_text(encoding="utf-8"), file).encode()
        else:
            contents[path] = file.read_bytes()

    for file in originals:
        copy.add(file)
    copy.follow(make)
    differing = [str(path) for path, content in contents.items() if (folder / path).exists() and (folder / path).read_bytes() != content]
    if differing and not overwrite:
        raise ValueError(f"{folder} has files that differ: {', '.join(differing)}; give another folder, or --overwrite")
    for path, content in contents.items():
        files.write(folder / path, content)
    return [folder / copy.paths[file] for file in originals]


def _nbgrader_tests(cell: NotebookNode) -> list[NotebookNode]:
    """Cells that nbgrader locks and grades, for the exercises that a cell checks."""
    import nbformat

    if cell.cell_type != "code" or not EXERCISE_CALL.search(cell.source):
        return []
    tests = []
    for line in ast.parse(cell.source).body:
        if isinstance(line, ast.Expr) and isinstance(call := line.value, ast.Call) and ast.unparse(call.func) == "sdnb.check":
            exercise, answer = call.args[0], ast.unparse(call.args[1])
            name = "exercise-" + str(ast.literal_eval(exercise)).replace(".", "-")  # nbgrader takes no dot
            test = nbformat.v4.new_code_cell(
                f"from sdnb.course import handin\n\nassert handin.is_right({ast.unparse(exercise)}, {answer})",
                metadata={"nbgrader": {**_LOCKED_TEST, "grade_id": name}},
            )
            test.id = hashlib.sha256(name.encode()).hexdigest()[:8]  # the same each time
            tests.append(test)
    return tests


def stripped(notebook: NotebookNode, name: str = "the notebook") -> NotebookNode:
    """Remove the solutions, the `<details>` after the first exercise, and the outputs of exercises; returns the notebook.

    Raises `ValueError` for a notebook with exercises and no such `<details>`, since the solutions would then be somewhere else.
    """
    solutions = exercises = 0
    for cell in notebook.cells:
        if cell.cell_type == "code" and EXERCISE_CALL.search(cell.source):
            exercises += 1
            cell.outputs, cell.execution_count = [], None
        elif cell.cell_type == "markdown" and exercises:
            cell.source, number = SOLUTION.subn("", cell.source)
            solutions += number
            if "<details>" in cell.source:
                raise ValueError(f"{name}: <details> without </details> after the exercises")
    if exercises and not solutions:
        raise ValueError(f"{name} has exercises, and no solution between <details> and </details> after them")
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "markdown" or cell.source.strip()]
    return notebook
