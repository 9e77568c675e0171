"""Notebooks as HTML: prose with drawn formulas, coloured code, and outputs. The pages, the slides and the book are made of it."""

from __future__ import annotations

import base64
import functools
import html
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .links import CODE

if TYPE_CHECKING:
    from nbformat import NotebookNode

FORMULA = re.compile(CODE + r"|\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^\s$](?:[^$]*[^\s$])?)\$(?!\w)", re.DOTALL)
PICTURES = {"image/png": ".png", "image/jpeg": ".jpg"}
"""Kinds of pictures among the outputs, with the endings of their files."""


@dataclass(frozen=True)
class Piece:
    """HTML of one cell or output: `prose`, `code`, `text`, `figure`, `error`, or `page` for HTML that an output brings along."""

    kind: str
    html: str
    source: str = ""
    """Markdown of prose, code, text, or a picture's text alternative."""


def inline(content: bytes, ending: str) -> str:
    """Address of a picture that holds the picture itself."""
    kind = next(kind for kind, known in PICTURES.items() if known == ending)
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def pieces(
    notebook: NotebookNode, *, relinked: Callable[[str], str] = str, address: Callable[[bytes, str], str] = inline, plays: bool = True
) -> Iterator[Piece]:
    """HTML of a notebook's cells in their order.

    - `relinked`: rewrites the links of Markdown
    - `address`: says where the page finds a picture, given its content and its file's ending
    - `plays`: whether an output's own HTML, which may play, goes before its picture
    """
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield Piece("prose", prose(relinked(cell.source)), cell.source)
        elif cell.cell_type == "code":
            code = coloured(cell.source)
            if cell.metadata.get("jupyter", {}).get("source_hidden"):
                first = html.escape(cell.source.partition("\n")[0].lstrip("# "))
                code = f"<details><summary>{first}</summary>{code}</details>"
            yield Piece("code", code, cell.source)
            for output in cell.outputs:
                yield from _output(output, address, plays)


def prose(text: str) -> str:
    """HTML of Markdown."""
    from nbconvert.filters import markdown2html

    return markdown2html(drawn(text))


def coloured(code: str) -> str:
    """HTML of Python code."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(code, PythonLexer(), HtmlFormatter(cssclass="highlight"))


def _output(output: NotebookNode, address: Callable[[bytes, str], str], plays: bool) -> Iterator[Piece]:
    from nbconvert.filters import ansi2html, strip_ansi

    if output.output_type == "stream":
        words = "" if "  " in output.text else ' class="words"'  # columns stay columns
        yield Piece("text", f"<pre{words}>{ansi2html(output.text)}</pre>", strip_ansi(output.text))
        return
    if output.output_type == "error":
        text = "\n".join(output.traceback)
        yield Piece("error", f'<pre class="error">{ansi2html(text)}</pre>', strip_ansi(text))
        return
    data = output.data
    picture = next((kind for kind in PICTURES if kind in data), None)
    if "text/html" in data and (plays or not (picture or "text/plain" in data)):
        yield Piece("page", f'<div class="page">{data["text/html"]}</div>')
    elif picture:
        alt = output.metadata.get(picture, {}).get("alt", "")
        source = address(base64.b64decode(data[picture]), PICTURES[picture])
        yield Piece("figure", f'<figure><img src="{source}" alt="{html.escape(alt)}"/></figure>', alt)
    elif "text/markdown" in data:
        yield Piece("text", prose(data["text/markdown"]), data["text/markdown"])
    elif "text/plain" in data:
        yield Piece("text", f"<pre>{html.escape(data['text/plain'])}</pre>", data["text/plain"])


def headings(text: str) -> list[tuple[int, str, str]]:
    """Headings in HTML down to the third level: (level, id, HTML without its anchor)."""
    found = re.findall(r'<h([123])[^>]*\bid="([^"]*)"[^>]*>(.*?)</h\1>', text, re.DOTALL)
    return [(int(level), name, re.sub(r'<a class="anchor-link".*?</a>', "", words)) for level, name, words in found]


def plain(text: str) -> str:
    """Words of HTML."""
    text = re.sub(r"<(style|script)\b.*?</\1>|</?(?:a|b|code|em|i|small|span|strong)\b[^>]*>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).replace("¶", "").split())


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
    return f'<img class="formula" style="{style}" alt="{html.escape(tex)}" src="data:image/svg+xml;base64,{code}"/>'
