"""Pages for a browser from the executed course, which need no network."""

from __future__ import annotations

import base64
import copy
import functools
import html
import io
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..system import files
from .links import CODE, Folder

if TYPE_CHECKING:
    from nbformat import NotebookNode

FORMULA = re.compile(CODE + r"|\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^\s$](?:[^$]*[^\s$])?)\$(?!\w)", re.DOTALL)
TEMPLATE = """{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}
<style type="text/css">
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
.jp-InputPrompt, .jp-OutputPrompt { display: none; }
.jp-InputArea-editor { min-width: 0; }
.jp-InputArea-editor pre, .jp-OutputArea-output { overflow-x: auto; }
.jp-RenderedHTMLCommon table { margin-left: 0; }
</style>
{%- endblock -%}
{%- block data_png scoped -%}
{%- set alt = output | get_metadata('alt', 'image/png') -%}
{{ super() | replace('<img ', '<img alt="' ~ (alt | escape_html) ~ '" ', 1) if alt else super() }}
{%- endblock -%}"""
"""nbconvert's own template, plus the pictures' text alternatives, minus the scripts that it fetches from elsewhere: require.js, MathJax
and mermaid."""


@dataclass(frozen=True)
class Lesson:
    """One executed notebook, with the seconds that it took, and its error if a cell raised."""

    path: Path
    """File of the notebook."""
    notebook: NotebookNode
    seconds: float
    error: str | None = None

    @property
    def title(self) -> str:
        """First heading of the notebook."""
        return self.notebook.cells[0].source.splitlines()[0].lstrip("# ")

    @property
    def idea(self) -> str:
        """Sentence of the lesson on what a reader can do after it; empty if there is none."""
        match = re.search(r"After this notebook you (.+?[.!?])(?=\s|$)", self.notebook.cells[0].source, re.DOTALL)
        return " ".join(match[1].split()) if match else ""

    def as_dict(self) -> dict[str, object]:
        """Fields for JSON; `error` is None if every cell ran."""
        return {"notebook": self.path.name, "title": self.title, "seconds": round(self.seconds, 1), "error": self.error}

    def __str__(self) -> str:
        return f"{self.path.name}  {self.seconds:.1f} s  {self.error or 'ok'}"


def write(folder: Path, lessons: list[Lesson], summary: str) -> Path:
    """Write a page for every lesson, for the files they link to, and a start page that lists them; returns the start page."""
    import nbformat

    pages = Folder(lessons[0].path.parent, {".ipynb": ".html", ".md": ".html"})
    executed = {lesson.path: lesson.notebook for lesson in lessons}

    def make(file: Path, path: PurePosixPath) -> None:
        page = folder / path
        if file.suffix not in pages.suffixes:
            files.write(page, file.read_bytes())
            return
        if file.suffix == ".md":
            notebook = _prose(file.read_text(encoding="utf-8"))
        else:
            notebook = executed.get(file) or nbformat.read(file, as_version=4)
        start = "/".join([*[".."] * (len(path.parts) - 1), "index.html"])
        neighbours = [f"[The course]({start})", *(_neighbours(executed, file, pages) if file in executed else [])]
        files.write(page, _page(notebook, lambda text: pages.relinked(text, file), " · ".join(neighbours)))

    for lesson in lessons:
        pages.add(lesson.path)
    pages.follow(make)
    rows = [
        f"| [{lesson.path.stem[:2]} {_cell(lesson.title)}]({pages.path(lesson.path)}) | {_cell(lesson.idea)} | {lesson.seconds:.0f}&nbsp;s "
        f"| {'passed' if lesson.error is None else _failure(lesson.error)} |"
        for lesson in lessons
    ]
    table = ["| Lesson | After it you … | Took | Result |", "|:--|:--|--:|:--|", *rows]
    index = folder / "index.html"
    files.write(index, _page(_prose("\n".join(["# The course", "", summary, "", *table])), str, ""))
    return index


def _prose(text: str) -> NotebookNode:
    """Notebook of one Markdown cell; its title is the text's first heading."""
    import nbformat

    heading = re.search(r"^# (.+)$", text, re.MULTILINE)
    metadata = {"title": heading[1]} if heading else {}
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)], metadata=metadata)


def _neighbours(lessons: dict[Path, NotebookNode], file: Path, pages: Folder) -> list[str]:
    """Links to the lessons before and after `file`."""
    order = list(lessons)
    index = order.index(file)
    before = [f"[← {lesson.stem[:2]}]({pages.path(lesson)})" for lesson in order[max(0, index - 1) : index]]
    after = [f"[{lesson.stem[:2]} →]({pages.path(lesson)})" for lesson in order[index + 1 : index + 2]]
    return before + after


def _page(notebook: NotebookNode, relinked, navigation: str) -> str:
    """Convert a notebook to HTML, with links rewritten, formulas drawn, and a line of links above and below."""
    import nbformat
    from nbconvert import HTMLExporter

    page = copy.deepcopy(notebook)
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = drawn(relinked(cell.source))
    if navigation:
        page.cells = [nbformat.v4.new_markdown_cell(navigation), *page.cells, nbformat.v4.new_markdown_cell(navigation)]
    if not page.metadata.get("title"):
        page.metadata["title"] = notebook.cells[0].source.splitlines()[0].lstrip("# ").replace("`", "")
    page.metadata.pop("widgets", None)  # pictures of the widgets are among the outputs
    return HTMLExporter(raw_template=TEMPLATE, template_name="lab").from_notebook_node(page)[0]


def drawn(text: str) -> str:
    """Replace each formula in Markdown by a picture with its TeX as text alternative. Formulas that matplotlib cannot set stay."""

    def draw(match: re.Match) -> str:
        if match["code"]:
            return match[0]
        block = match["block"] is not None
        try:
            picture = _formula(" ".join((match["block"] or match["inline"]).split()))
        except ValueError:
            return match[0]
        return f'<p style="text-align: center">{picture}</p>' if block else picture

    return FORMULA.sub(draw, text) if "$" in text else text


@functools.cache
def _formula(tex: str) -> str:
    """HTML `img` element of a formula. Raises `ValueError` for TeX that matplotlib cannot set."""
    from matplotlib import rc_context
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser, math_to_image

    size = 9
    plain = re.sub(r"\\sqrt\s+(\w)", r"\\sqrt{\1}", tex)  # matplotlib needs the braces
    with rc_context({"svg.fonttype": "path", "mathtext.fontset": "cm", "svg.hashsalt": "sdnb"}):
        depth = MathTextParser("path").parse(f"${plain}$", dpi=72, prop=FontProperties(size=size)).depth
        file = io.BytesIO()
        math_to_image(f"${plain}$", file, prop=FontProperties(size=size), dpi=72, format="svg")
    svg = file.getvalue()
    width, height = (float(re.findall(rb"<svg[^>]*\b" + side + rb'="([\d.]+)pt"', svg)[0]) for side in (b"width", b"height"))
    style = f"width: {width / size:.3f}em; height: {height / size:.3f}em; vertical-align: {-depth / size:.3f}em; display: inline"
    code = base64.b64encode(svg).decode("ascii")
    return f'<img style="{style}" alt="{html.escape(tex)}" src="data:image/svg+xml;base64,{code}">'


def _failure(error: str) -> str:
    return f"**failed**: <code>{_cell(html.escape(textwrap.shorten(error, 200, placeholder=' …')))}</code>"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
