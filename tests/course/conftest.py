"""A little course of two lessons, one of them in Chinese too, and its pages."""

import pytest

from sdnb.course import execution, lessons
from sdnb.course.overview import Lesson

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
            "About 7 minutes to read, half a minute to run.\n\n"
            "See [words](glossary.md#latent), [nothing](gone.md), [there](https://x.invalid/a.md) and `[no](link.md)`; $\\sqrt V$."
        ),
        code("import sdnb\nprint(6 * 7)", printed("42\n")),
        code("show()", image('two "lines"'), count=2),
        prose("**Guess:** six\ntimes *seven*. What is `a`? Wait.\n\n## Exercise"),
        code('answer = None\nsdnb.check("00.1", answer)', printed("… waits\n"), count=3),
        prose(LAST),
    ]
    second = [
        prose(
            "# The second\n\nAfter this notebook you rest.\n\n"
            "Before this: [00, the first](00_first.ipynb). After it: [01](01_second.ipynb)."
        ),
        code("1 / 0"),
    ]
    paths = [tmp_path / "notebooks" / name for name in ("00_first.ipynb", "01_second.ipynb")]
    for path, cells in zip(paths, (first, second), strict=True):
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    (tmp_path / "notebooks" / "zh").mkdir()
    chinese = nbformat.v4.new_notebook(cells=[prose("# 第一课\n\n学完本课，你会背。\n\n见[词汇](glossary.md)。"), *first[1:]])
    nbformat.write(chinese, tmp_path / "notebooks" / "zh" / "00_first.ipynb")
    (tmp_path / "notebooks" / "zh" / "glossary.md").write_text("# 词汇\n\n[第二课](../01_second.ipynb)", encoding="utf-8")
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
