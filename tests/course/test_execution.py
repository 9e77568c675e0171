"""The course as a whole: pages that need no network, links that lead somewhere, and copies without solutions."""

import base64
import html
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest

import sdnb
from sdnb.__main__ import main
from sdnb.course import execution, lessons, pages
from sdnb.course.links import Folder
from sdnb.course.pages import Lesson

nbformat = pytest.importorskip("nbformat")
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
GLOSSARY = """# Words

A **latent** is [compressed](00_first.ipynb "first"), says [the README](../README.md#top)."""
README = "# Readme\n\n[first](notebooks/00_first.ipynb) ![picture](docs/a.png) [licence](LICENSE) [the tests](tests/)"
LAST = """<details><summary>Solution</summary>

```python
answer = 6 * 7
```

The secret of everything.

</details>

**Next:** [the second](01_second.ipynb), and [where it comes from](../data/SOURCES.md)."""


def code(source, *outputs, count=1):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=count)


def prose(source):
    return nbformat.v4.new_markdown_cell(source)


def printed(text):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def image(alt):
    return nbformat.v4.new_output("display_data", data={"image/png": PICTURE, "text/plain": "a"}, metadata={"image/png": {"alt": alt}})


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Two little lessons, and what they link to."""
    files = {"README.md": README, "data/SOURCES.md": "# Sources", "docs/a.png": "x", "LICENSE": "free", "notebooks/glossary.md": GLOSSARY}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    first = [
        prose(
            "# The first: `a=1`\n\nAfter this notebook you know SD 1.5\nby | heart. It takes a second.\n\n"
            "See [words](glossary.md#latent), [nothing](gone.md), [there](https://x.invalid/a.md) and `[no](link.md)`; $\\sqrt V$."
        ),
        code("import sdnb\nprint(6 * 7)", printed("42\n")),
        code("show()", image('two "lines"'), count=2),
        prose("## Exercise"),
        code('answer = None\nsdnb.check("00.1", answer)', printed("… waits\n"), count=3),
        prose(LAST),
    ]
    second = [prose("# The second\n\nAfter this notebook you rest."), code("1 / 0")]
    paths = [tmp_path / "notebooks" / name for name in ("00_first.ipynb", "01_second.ipynb")]
    for path, cells in zip(paths, (first, second), strict=True):
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    monkeypatch.setattr(lessons, "notebooks", lambda: paths)
    return tmp_path


@pytest.fixture
def shown(repository):
    """The start page of the little course, whose second lesson failed."""
    first, second = (nbformat.read(path, as_version=4) for path in lessons.notebooks())
    done = [
        Lesson(lessons.notebooks()[0], first, 1.2),
        Lesson(lessons.notebooks()[1], second, 61.4, "ZeroDivisionError: <b>|"),
    ]
    return execution.show(repository / "out", done, 62.6)


def hrefs(page):
    return [unquote(html.unescape(target)) for target in re.findall(r'(?:href|src)="([^"]*)"', page.read_text(encoding="utf-8"))]


def test_the_start_page_lists_title_idea_time_and_result(shown):
    text = re.sub(r"<[^>]+>", "", shown.read_text(encoding="utf-8").split("</style>")[-1])
    assert "1 of 2 lessons passed" in text
    assert f"sdnb {sdnb.__version__}" in text
    rows = [" ".join(html.unescape(row).split()) for row in re.split(r"\n(?=0\d )", text)[1:]]
    assert rows[0] == "00 The first: a=1 know SD 1.5 by | heart. 1 s passed"
    assert rows[1] == "01 The second rest. 61 s failed: ZeroDivisionError: <b>|"


def test_every_link_of_every_page_leads_somewhere(shown, repository):
    assert sorted(path.relative_to(shown.parent).as_posix() for path in shown.parent.rglob("*") if path.is_file()) == [
        "00_first.html", "01_second.html", "LICENSE", "README.html", "data/SOURCES.html", "docs/a.png", "glossary.html", "index.html",
    ]  # fmt: skip
    for page in shown.parent.rglob("*.html"):
        for target in hrefs(page):
            if not target.startswith(("https://", "data:", "#")):
                assert (page.parent / target.partition("#")[0]).is_file(), (page, target)
    assert "../index.html" in hrefs(shown.parent / "data" / "SOURCES.html")
    first = (shown.parent / "00_first.html").read_text(encoding="utf-8")
    assert 'href="glossary.html#latent"' in first
    assert "See <a" in first
    assert ", nothing, " in first  # a link to what is not there is none
    assert "<code>[no](link.md)</code>" in first
    assert 'href="https://x.invalid/a.md"' in first


def test_pages_fetch_nothing_and_keep_text_alternatives(shown):
    for page in shown.parent.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<script[^>]*src=|<link[^>]*href="http|@import|url\(["\']?http|import\(', text)
    first = (shown.parent / "00_first.html").read_text(encoding="utf-8")
    assert 'alt="two &quot;lines&quot;"' in first or "alt='two \"lines\"'" in first
    assert "No description has been provided" not in first
    assert re.search(r'<img alt="\\sqrt V" src="data:image/svg', first)
    assert "<title>The first: a=1</title>" in first


def test_a_formula_that_cannot_be_drawn_stays_as_it_is():
    assert (
        pages.drawn(r"so $\begin{cases}1\end{cases}$ and `$x$`, for $5 or $6") == r"so $\begin{cases}1\end{cases}$ and `$x$`, for $5 or $6"
    )
    svg = base64.b64decode(re.search(r"base64,([^\"]+)", pages.drawn("$x^2$"))[1])
    assert b"<svg" in svg


@pytest.mark.parametrize("path", lessons.notebooks(), ids=lambda path: path.stem)
def test_every_formula_of_the_lessons_can_be_drawn(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert "$" not in re.sub(r"```.*?```|`[^`]*`", "", pages.drawn(cell.source), flags=re.DOTALL)


@pytest.mark.parametrize("path", lessons.notebooks(), ids=lambda path: path.stem)
def test_every_lesson_says_its_idea(path):
    lesson = Lesson(path, nbformat.read(path, as_version=4), 0.0)
    assert 20 < len(lesson.idea) < 300


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
        if execution.EXERCISE.search(cell.source):
            cell.source = solution + cell.source[cell.source.index("sdnb.check(") :]
    nbformat.write(notebook, copy)
    monkeypatch.setattr(lessons, "notebooks", lambda: [copy])
    (lesson,) = execution.executed()
    assert lesson.error is None
    said = [cell.outputs[0].text for cell in lesson.notebook.cells if cell.cell_type == "code" and execution.EXERCISE.search(cell.source)]
    assert len(said) == 2
    assert all(text.startswith("✓") for text in said)


def test_links_out_of_the_course_are_plain_text(tmp_path):
    notebooks = tmp_path / "course" / "notebooks"
    notebooks.mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("x")
    assert Folder(notebooks).relinked("[a](../../secret.txt) [b](..)", notebooks / "00_x.ipynb") == "a b"
