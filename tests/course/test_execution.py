"""The course as a whole: pages that need no network, links that lead somewhere, and copies without solutions."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from sdnb.__main__ import main
from sdnb.course import execution, lessons
from sdnb.course.links import Folder
from sdnb.course.overview import Lesson

from .conftest import code, prose

nbformat = pytest.importorskip("nbformat")


def test_execution_goes_on_after_a_lesson_that_fails(repository, monkeypatch):
    pytest.importorskip("ipykernel")
    monkeypatch.setattr(execution.files, "write", None)  # nothing is written
    quick = nbformat.v4.new_notebook(cells=[prose("# Late"), code("import os\nprint(os.listdir())")])
    failing, late = repository / "notebooks" / "01_second.ipynb", repository / "notebooks" / "02_late.ipynb"
    nbformat.write(quick, late)
    monkeypatch.setattr(lessons, "notebooks", lambda: [failing, late])
    told = []
    done = execution.executed(2, told.append)
    assert [lesson.path for lesson in done] == [failing, late]
    assert sorted(lesson.path for lesson in told) == [failing, late]
    assert [lesson.error for lesson in done] == ["ZeroDivisionError: division by zero", None]
    assert done[1].notebook.cells[1].outputs[0].text == "[]\n"  # a folder of its own
    assert done[0].notebook.cells[1].outputs[0].ename == "ZeroDivisionError"


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_an_interrupt_ends_every_kernel(repository, monkeypatch, capsys):
    pytest.importorskip("ipykernel")
    paths = []
    for name in ("00_a", "01_b"):
        paths.append(repository / f"{name}.ipynb")
        text = f"import os, pathlib, time\npathlib.Path({str(repository / name)!r}).write_text(str(os.getpid()))\ntime.sleep(100)"
        nbformat.write(nbformat.v4.new_notebook(cells=[prose("# Slow"), code(text)]), paths[-1])
    monkeypatch.setattr(lessons, "notebooks", lambda: paths)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def interrupt():
        while not all(path.with_suffix("").is_file() and path.with_suffix("").read_text() for path in paths):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        assert main(["course", "--jobs", "2", "--out", str(repository / "out")]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "sdnb: interrupted; nothing was written\n"
    for path in paths:
        assert not psutil.pid_exists(int(path.with_suffix("").read_text()))


def test_what_failed_is_not_stored(repository):
    passed, failed = lessons.notebooks()
    before = failed.read_bytes()
    done = [Lesson(path, nbformat.v4.new_notebook(cells=[prose("# New")]), 1.0) for path in (passed, failed)]
    execution.store([done[0], Lesson(failed, done[1].notebook, 1.0, "no")])
    assert nbformat.read(passed, as_version=4).cells[0].source == "# New"
    assert failed.read_bytes() == before


def test_an_installed_course_is_not_written_to(monkeypatch):
    monkeypatch.setattr(lessons, "notebooks", lambda: [Path(execution.__file__).resolve().parent / "notebooks" / "00.ipynb"])
    with pytest.raises(ValueError, match="of a checkout"):
        execution.may_write(None)


# Copies for students.


def test_students_get_everything_but_the_solutions(repository):
    first, second = execution.without_solutions(repository / "out")
    assert second.read_bytes() == lessons.notebooks()[1].read_bytes()
    original, copy = (json.loads(path.read_text(encoding="utf-8")) for path in (lessons.notebooks()[0], first))
    assert "Solution" not in first.read_text(encoding="utf-8")
    assert "6 * 7" not in "".join(copy["cells"][4]["source"] + copy["cells"][5]["source"])
    assert copy["cells"][4]["outputs"] == []
    assert copy["cells"][4]["execution_count"] is None
    assert "".join(copy["cells"][5]["source"]).startswith("**Next:** [the second](01_second.ipynb), and [where")
    assert "](data/SOURCES.md)" in "".join(copy["cells"][5]["source"])
    copy["cells"][4], copy["cells"][5] = original["cells"][4], original["cells"][5]
    copy["cells"][0]["source"] = original["cells"][0]["source"]  # its link to what is not there
    assert copy == original
    assert "[compressed](00_first.ipynb" in (repository / "out" / "glossary.md").read_text(encoding="utf-8")
    assert "![picture](docs/a.png)" in (repository / "out" / "README.md").read_text(encoding="utf-8")


def test_for_nbgrader_a_locked_test_follows_each_exercise(repository):
    first, _ = execution.without_solutions(repository / "out", for_nbgrader=True)
    exercise, test = nbformat.read(first, as_version=4).cells[4:6]
    assert exercise.source.endswith('sdnb.check("00.1", answer)')
    assert (
        test.metadata["nbgrader"] | {"grade": True, "locked": True, "points": 1, "grade_id": "exercise-00-1"} == test.metadata["nbgrader"]
    )
    exec(test.source, {"answer": 5e-5})
    with pytest.raises(AssertionError):
        exec(test.source, {"answer": 1})
    assert execution.without_solutions(repository / "out", for_nbgrader=True)[0] == first  # nothing differs


def test_students_work_is_not_overwritten_unless_asked(repository):
    out = repository / "out"
    first, second = execution.without_solutions(out)
    assert execution.without_solutions(out) == [first, second]  # nothing differs
    first.write_text("mine", encoding="utf-8")
    second.unlink()
    with pytest.raises(ValueError, match=r"differ: 00_first\.ipynb; .*--overwrite"):
        execution.without_solutions(out)
    assert first.read_text(encoding="utf-8") == "mine"
    assert not second.exists()
    execution.without_solutions(out, overwrite=True)
    assert "mine" not in first.read_text(encoding="utf-8")
    assert second.exists()


@pytest.mark.parametrize(
    "write", [lambda folder: execution.without_solutions(folder, overwrite=True), lambda folder: execution.show(folder, [], 0)]
)
def test_the_notebooks_own_folder_is_refused(repository, write):
    before = lessons.notebooks()[0].read_bytes()
    with pytest.raises(ValueError, match="notebooks themselves lie"):
        write(repository / "notebooks")
    assert lessons.notebooks()[0].read_bytes() == before


@pytest.mark.parametrize("fold", ["The answer is 42.", "<details><summary>Solution</summary>42"])
def test_a_solution_that_is_not_found_is_an_error(fold):
    notebook = nbformat.v4.new_notebook(cells=[code('sdnb.check("00.1", 1)'), prose(fold)])
    with pytest.raises(ValueError, match=r"x\.ipynb.*</details>"):
        execution.stripped(notebook, "x.ipynb")


def test_a_fold_before_the_exercises_is_no_solution():
    aside = "<details><summary>Why?</summary>Because.</details>"
    cells = [prose(aside), code('sdnb.check("00.1", 1)'), prose("<details><summary>答案</summary>42</details>")]
    left = execution.stripped(nbformat.v4.new_notebook(cells=cells)).cells
    assert [cell.source for cell in left] == [aside, 'sdnb.check("00.1", 1)']


def test_no_lesson_keeps_its_solutions(tmp_path):
    for original, copy in zip(lessons.notebooks(), execution.without_solutions(tmp_path), strict=True):
        before, after = (nbformat.read(path, as_version=4) for path in (original, copy))
        fold = next(cell.source for cell in before.cells if "<summary>Solution" in cell.source)
        prose_after = "\n".join(cell.source for cell in after.cells if cell.cell_type == "markdown")
        for line in fold.partition("</details>")[0].splitlines():
            if len(line) > 20:  # a line of it, not a word
                assert line not in prose_after
        sources = {cell.id: cell.source for cell in after.cells}
        kept = [cell for cell in before.cells if cell.cell_type == "code"]
        assert [sources[cell.id] for cell in kept] == [cell.source for cell in kept]


@pytest.mark.long
def test_a_students_notebook_with_the_solutions_put_in_passes(tmp_path, monkeypatch):
    """Lesson 03: it goes on after its exercises."""
    original = lessons.notebooks()[3]
    monkeypatch.setattr(lessons, "notebooks", lambda: [original])
    (copy,) = execution.without_solutions(tmp_path)
    fold = nbformat.read(original, as_version=4).cells[-1].source
    solution = "\n".join(re.findall(r"```python\n(.*?)```", fold, re.DOTALL))
    notebook = nbformat.read(copy, as_version=4)
    for cell in notebook.cells:
        if execution.EXERCISE_CALL.search(cell.source):
            cell.source = solution + cell.source[cell.source.index("sdnb.check(") :]
    nbformat.write(notebook, copy)
    monkeypatch.setattr(lessons, "notebooks", lambda: [copy])
    (lesson,) = execution.executed()
    assert lesson.error is None
    said = [
        cell.outputs[0].text for cell in lesson.notebook.cells if cell.cell_type == "code" and execution.EXERCISE_CALL.search(cell.source)
    ]
    assert len(said) == 2
    assert all(text.startswith("✓") for text in said)


def test_links_out_of_the_course_are_plain_text(tmp_path):
    notebooks = tmp_path / "course" / "notebooks"
    notebooks.mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("x")
    assert Folder(notebooks).relinked("[a](../../secret.txt) [b](..)", notebooks / "00_x.ipynb") == "a b"
