"""One handed-in notebook, in a process that `grading` starts and limits: `collect` runs its cells, `check` only looks at answers.

`collect` reads the notebook's code cells from standard input and writes what stood in their calls of `sdnb.check`, whatever the notebook
made of that function. Answers that are data go to `check`, which runs in another process, where none of the notebook's code has run. An
answer that is code, such as a class of the student's, cannot go there: it is checked beside the student's code, by a package that is
imported anew.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

LIMIT = 10**6
"""Most characters of an answer."""
SEEN = "_sdnb_answer"
"""Name in the notebook that takes the answers."""


class _Redirected(ast.NodeTransformer):
    """Turns `sdnb.check("02.1", answer)` into `_sdnb_answer("02.1", answer)`."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "check" and len(node.args) == 2 and isinstance(node.args[0], ast.Constant):
            node.func = ast.copy_location(ast.Name(SEEN, ast.Load()), node.func)
        return node


def collect(cells: list[str]) -> dict[str, Any]:
    """Answers of a notebook: `data` by exercise, what the checks said to `code` by exercise, and the first errors of cells.

    The cells of the exercises run on their own first, after the imports of all cells. Where that is not enough, because they use what
    other cells make, or because an answer is code, the notebook runs from its beginning.
    """
    path, asks = list(sys.path), [index for index, cell in enumerate(cells) if "check(" in cell]
    data, code, error = _run([*((None, _imports(cell)) for cell in cells), *((index, cells[index]) for index in asks)])
    if code or "NameError" in error:
        data, code, error = _run(enumerate(cells[: asks[-1] + 1]))
    checked = {}
    if code:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.partition(".")[0] == "sdnb"]:
            del sys.modules[name]  # whatever the notebook made of the package
        checked = {exercise: said(exercise, lambda answer=answer: answer) for exercise, answer in code.items()}
    return {"data": data, "code": checked, "error": error}


def _run(cells: Iterable[tuple[int | None, str]]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Run cells in a new notebook; an error of a cell without a number does not count."""
    from IPython.core.interactiveshell import InteractiveShell

    data: dict[str, Any] = {}
    code: dict[str, Any] = {}

    def take(exercise: object, answer: object) -> None:
        if answer is None or not isinstance(exercise, str):
            return
        data.pop(exercise, None)
        code.pop(exercise, None)
        try:
            data[exercise] = as_data(answer)
        except TypeError:
            code[exercise] = answer

    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(colors="NoColor", history_length=0)
    shell.ast_transformers.append(_Redirected())
    errors = []
    for number, cell in cells:
        shell.user_ns[SEEN] = take
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ran = shell.run_cell(cell, store_history=False)
        raised = ran.error_before_exec or ran.error_in_exec
        if raised and number is not None:
            errors.append(f"code cell {number + 1}: {type(raised).__name__}: {raised}")
    return data, code, " ".join("; ".join(errors[:3]).split())[:500]


def _imports(cell: str) -> str:
    """Import statements of a cell; empty for a cell that is no plain Python."""
    try:
        lines = ast.parse(cell).body
    except (SyntaxError, ValueError, RecursionError):
        return ""
    return "\n".join(ast.unparse(line) for line in lines if isinstance(line, (ast.Import, ast.ImportFrom)))


def as_data(answer: Any) -> Any:
    """An answer as JSON has it. Raises `TypeError` for one that is no data, such as a function."""
    from ..checkpointing import Keep

    if isinstance(answer, Keep):
        return {"Keep": sorted(answer.kinds)}
    if isinstance(answer, dict):
        return {"dict": [[as_data(key), as_data(value)] for key, value in answer.items()]}
    if isinstance(answer, (list, tuple, set, frozenset)):
        return [as_data(value) for value in answer]
    if isinstance(answer, Fraction):
        return str(answer)
    if not isinstance(answer, (str, int, float, type(None))):
        if callable(answer) or not hasattr(answer, "tolist"):
            raise TypeError(f"{type(answer).__name__} is no data")
        answer = answer.tolist()  # of a tensor or an array
    return answer


def from_data(data: Any) -> Any:
    """The answer that `as_data` wrote. Raises `ValueError` for anything else."""
    from ..checkpointing import Keep

    if isinstance(data, list):
        return [from_data(value) for value in data]
    if not isinstance(data, dict):
        return data
    if set(data) == {"Keep"}:
        return Keep(*data["Keep"])
    return {from_data(key): from_data(value) for key, value in data["dict"]}


def said(exercise: str, answer: Callable[[], object]) -> str:
    """What `sdnb.check` prints for an answer; an error of the check, or of making the answer, is part of it."""
    check = importlib.import_module("sdnb.course.exercises").check
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            check(exercise, answer())
    except Exception as error:
        return f"✗ {type(error).__name__}: {error}"
    return out.getvalue().strip()


def is_right(exercise: str, answer: object) -> bool:
    """Whether an answer is right, for the tests of nbgrader. An unknown exercise has no right answer."""
    return said(exercise, lambda: answer).startswith("✓")


def check(answers: dict[str, Any]) -> dict[str, str]:
    """What the checks say to answers that are data, by exercise."""
    return {exercise: said(exercise, lambda data=data: from_data(data)) for exercise, data in answers.items()}


def limit(seconds: int, memory_bytes: int, processes: int) -> None:
    """Limit this process and those it starts, where the system can: CPU time, memory, processes, and the size of a file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_DATA: memory_bytes, resource.RLIMIT_FSIZE: 2**30, resource.RLIMIT_CORE: 0}
    if hasattr(resource, "RLIMIT_NPROC"):
        limits[resource.RLIMIT_NPROC] = processes
    for kind, value in limits.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def main(arguments: Iterable[str]) -> None:
    """Read JSON from standard input, `collect` or `check` it, and write JSON to standard output, to which nothing else can print."""
    what, *limits = arguments
    limit(*map(int, limits))
    given = json.load(sys.stdin)
    with open(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        result = json.dumps({"collect": collect, "check": check}[what](given))
        out.write(result if len(result) < LIMIT else json.dumps({"data": {}, "code": {}, "error": "the answers are too large"}))
        out.flush()
        os._exit(0)  # whatever threads and exit handlers the notebook left


if __name__ == "__main__":
    main(sys.argv[1:])
