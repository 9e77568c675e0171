"""`sdnb lab`, `sdnb course`, `sdnb grade` and `sdnb editions`: open, execute, copy, publish, grade and translate the course."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..system import files, requirements
from . import editions, lessons

if TYPE_CHECKING:
    from .overview import Lesson


FORMATS = ("pages", "slides", "epub", "pdf")
"""What `sdnb course` can write."""


def add_lab(commands) -> None:
    """Add `sdnb lab` to the parsers of argparse."""
    command = commands.add_parser("lab", help="open the course in JupyterLab")
    command.add_argument(
        "--folder",
        type=Path,
        help="where your copy of the notebooks goes (default: sdnb-course, in a checkout beside its notebooks; "
        "authors open the originals with --folder notebooks)",
    )
    command.add_argument("--language", choices=("en", *editions.LANGUAGES), default="en", help="of the course (default: en)")
    command.add_argument("--no-browser", action="store_true", help="print the address instead of opening it")
    command.set_defaults(run=run_lab)


def add_course(commands) -> None:
    """Add `sdnb course` to the parsers of argparse."""
    command = commands.add_parser(
        "course",
        help="execute every notebook and write pages for a browser, or copy the notebooks without the solutions, or publish them",
        description="Executes every notebook and writes the results as pages for a browser, which need no network; open index.html. "
        "The status is 1 when a cell raised.",
    )
    command.add_argument("--out", type=Path, metavar="FOLDER", help="where the pages go (default: build/course), or the copies")
    instead = command.add_mutually_exclusive_group()
    instead.add_argument(
        "--without-solutions",
        action="store_true",
        help="execute nothing, and copy the notebooks for students: no solutions, and no output of exercises",
    )
    instead.add_argument("--store", action="store_true", help="write no pages, but the outputs into the notebooks of this checkout")
    instead.add_argument(
        "--publish",
        metavar="ADDRESS",
        help="execute nothing, and write the repository's address, git+https://github.com/OWNER/REPOSITORY, into this checkout's notebooks "
        "and into pyproject.toml",
    )
    command.add_argument("--to", choices=FORMATS, default="pages", help="what to write: pages, slides, or a book (default: pages)")
    command.add_argument("--stored", action="store_true", help="execute nothing, and take the outputs that the notebooks have")
    command.add_argument("--overwrite", action="store_true", help="with --without-solutions: replace copies that differ")
    command.add_argument(
        "--nbgrader", action="store_true", help="with --without-solutions: add a test after each exercise that nbgrader grades"
    )
    command.add_argument("--jobs", type=int, metavar="N", help="notebooks at a time (default: 2, where there are two cores)")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run_course)


def add_grade(commands) -> None:
    """Add `sdnb grade` to the parsers of argparse."""
    command = commands.add_parser(
        "grade",
        help="check the exercises of notebooks that were handed in, and write a table",
        description="Runs the cells of each notebook below FOLDER in a process of its own, and checks the answers with this package, "
        "whatever the notebook shows. Each student has a folder, or the file is called by the student and the lesson. The status is 1 "
        "when a cell raised, or a notebook could not be read.",
    )
    command.add_argument("folder", type=Path, metavar="FOLDER", help="with the notebooks")
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="where the table goes, as CSV (default: grades.csv; with --json: nowhere)"
    )
    command.add_argument("--seconds", type=int, default=600, help="that a notebook may take (default: 600)")
    command.add_argument("--memory", type=float, default=4, metavar="GIB", help="that its processes may use together (default: 4)")
    command.add_argument("--processes", type=int, default=64, help="and threads that it may have (default: 64)")
    command.add_argument("--jobs", type=int, metavar="N", help="notebooks at a time (default: one for each core, at most four)")
    command.add_argument("--json", action="store_true", help="print the result as JSON, with what the checks said")
    command.set_defaults(run=run_grade)


def add_editions(commands) -> None:
    """Add `sdnb editions` to the parsers of argparse."""
    command = commands.add_parser("editions", help="in a checkout: make the translated notebooks anew from the English ones")
    command.add_argument(
        "--execute", action="store_true", help="also execute those whose code is translated, where the English one changed"
    )
    command.set_defaults(run=run_editions)


def run_lab(options: argparse.Namespace) -> int:
    """Start JupyterLab on the reader's copy of the lessons, or, if the folder is the checkout's own, on the originals."""
    _need("jupyterlab")
    checkout = lessons.notebooks()[0].parent
    installed = checkout.parent == files.PACKAGE
    folder = (options.folder or (Path() if installed else checkout.parent) / "sdnb-course").expanduser()
    if folder.resolve() != checkout:
        _tell(lessons.unpack(folder, options.language), folder)
    elif not installed:
        print(f"{folder} has the course's own files, not copies: whatever you save changes them")
    opened = lessons.notebooks(options.language)[0].relative_to(checkout).as_posix()
    first = f"/lab/tree/{opened}"  # also in the address that is printed where no browser opens
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder.resolve()}", f"--LabApp.default_url={first}"]
    command += ["--no-browser"] if options.no_browser else []
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # in a container the user is usually root
    return subprocess.call(command)


def _tell(copies: lessons.Copies, folder: Path) -> None:
    """Say what became of the reader's copies."""

    def names(paths: list[Path]) -> str:
        return ", ".join(path.relative_to(folder).as_posix() for path in paths)

    print(f"{len(copies.pages)} files in {folder}" + (f"; yours, left as they are: {names(copies.yours)}" if copies.yours else ""))
    if copies.renewed:
        print(f"newer now, as you had not changed them: {names(copies.renewed)}")
    if copies.behind:
        print(f"the course has newer ones than yours: {names(copies.behind)}; to get them, rename yours and run this again")


def run_course(options: argparse.Namespace) -> int:
    """Execute every notebook and write pages, copy them for students, or publish them; the status is 1 when a cell raised.

    Raises `ValueError` for options that exclude each other.
    """
    if options.publish is not None:
        return _publish(options)
    _need("nbconvert")
    from . import book, execution

    if (options.overwrite or options.nbgrader) and not options.without_solutions:
        raise ValueError("--overwrite and --nbgrader belong to --without-solutions")
    if options.without_solutions:
        if options.out is None:
            raise ValueError("--without-solutions needs a folder for the copies: --out FOLDER")
        copies = [str(copy) for copy in execution.without_solutions(options.out, options.overwrite, for_nbgrader=options.nbgrader)]
        print(json.dumps(copies, indent=1) if options.json else f"{len(copies)} notebooks without solutions in {options.out}")
        return 0
    if options.store and (options.out or options.stored or options.to != "pages"):
        raise ValueError("--store writes into the notebooks themselves: leave out --out, --stored and --to")
    folder = None if options.store else options.out or Path("build/course")
    execution.may_write(folder)  # an error comes now rather than after minutes of work
    if options.to == "pdf":
        book.browser()
    tell = (lambda lesson: None) if options.json else (lambda lesson: print(lesson, flush=True))
    start = time.perf_counter()
    try:
        executed = execution.stored() if options.stored else execution.executed(options.jobs, tell, for_pages=folder is not None)
    except KeyboardInterrupt:
        print("sdnb: interrupted; nothing was written", file=sys.stderr)
        return 130
    seconds = 0.0 if options.stored else time.perf_counter() - start
    written = _written(options.to, folder, executed, seconds) if folder else execution.store(executed)
    if options.json:
        print(json.dumps([lesson.as_dict() for lesson in executed], indent=1))
    else:
        passed = sum(lesson.error is None for lesson in executed)
        ran = f"{len(executed)} as stored" if options.stored else f"{passed} of {len(executed)} passed in {seconds:.0f} s"
        print(ran + (f": {written}" if written else ""))
        if off := [lesson.path.stem[:2] for lesson in executed if lesson.off]:
            print(f"more than twice or less than half of the running time that the lesson says: {', '.join(off)}")
    return int(any(lesson.error for lesson in executed))


def _written(form: str, folder: Path, executed: list[Lesson], seconds: float) -> str:
    """Write lessons in a form of `FORMATS`, and say where."""
    from . import book, execution, slides

    if form == "pages":
        return str(execution.show(folder, executed, seconds))
    write = {"slides": slides.write, "epub": book.write_epub, "pdf": book.write_pdf}[form]
    return ", ".join(map(str, write(folder, executed)))


def run_grade(options: argparse.Namespace) -> int:
    """Grade handed-in notebooks; the status is 1 when a cell raised, or a notebook could not be read.

    Raises `ValueError` for a folder without notebooks, and for limits that allow nothing.
    """
    _need("IPython")
    from . import grading

    if min(options.seconds, options.memory, options.processes) <= 0:
        raise ValueError("--seconds, --memory and --processes are above 0")
    limits = grading.Limits(options.seconds, int(options.memory * 2**30), options.processes)
    tell = (lambda grade: None) if options.json else (lambda grade: print(grade, flush=True))
    graded = grading.grades(options.folder, limits, options.jobs, tell)
    if table := options.out or (None if options.json else Path("grades.csv")):
        files.write(table, grading.as_csv(graded))
    if options.json:
        print(
            json.dumps({"barrier": grading.barrier().text, "notebooks": [asdict(grade) for grade in graded]}, indent=1, ensure_ascii=False)
        )
    else:
        right, number = sum(grade.right for grade in graded), sum(len(grade.exercises) for grade in graded)
        print(f"{grading.barrier().text}\n{len(graded)} notebooks, {right} of {number} answers right: {table}")
    return int(any(grade.error for grade in graded))


def _publish(options: argparse.Namespace) -> int:
    from .publishing import publish

    if options.out or options.overwrite:
        raise ValueError("--publish writes into this checkout: leave out --out and --overwrite")
    changed = [str(path) for path in publish(options.publish)]
    print(json.dumps(changed, indent=1) if options.json else f"{len(changed)} files now name {options.publish}: commit them")
    return 0


def run_editions(options: argparse.Namespace) -> int:
    """Write the translated notebooks, execute those that ask for it; the status is 1 when a translation is out of date or a cell raised.

    A notebook whose translation is out of date stays as it was. Raises `ValueError` outside a checkout.
    """
    folder, lines, built = lessons.notebooks()[0].parent, [], {}
    if folder.parent == files.PACKAGE:
        raise ValueError("editions are made in a checkout of the repository, not in an installed package")
    for language in editions.LANGUAGES:
        for lesson in lessons.notebooks():
            if editions.translation_of(lesson, language).exists():
                try:
                    files.write(folder / language / lesson.name, editions.build(lesson, language))
                    built[folder / language / lesson.name] = lesson, language
                except ValueError as error:
                    lines.append(str(error))
        for english, page in editions.pages(folder, language).items():
            behind = editions.behind(editions.sections(english), editions.translated(page))
            lines += [f"{page}: {line}" for line in behind]
    if pending := [notebook for notebook, edition in built.items() if editions.unexecuted(*edition)]:
        lines += _execute(pending, built) if options.execute else [f"{path} is to be executed: sdnb editions --execute" for path in pending]
    print("\n".join(lines) or "every edition is up to date")
    return int(bool(lines))


def _execute(notebooks: list[Path], built: dict[Path, tuple[Path, str]]) -> list[str]:
    """Execute translated notebooks, and store the outputs of those that pass; returns a line for each that does not."""
    _need("nbconvert")
    from . import execution

    executed = execution.executed(tell=lambda lesson: print(lesson, flush=True), notebooks=notebooks)
    for lesson in executed:
        if lesson.error is None:
            lesson.notebook.metadata[editions.EXECUTED] = editions.state(built[lesson.path][0])
    execution.store(executed)
    return [f"{lesson.path}: {lesson.error}" for lesson in executed if lesson.error]


def _need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"this needs {module}: {requirements.extra('lab')}")
