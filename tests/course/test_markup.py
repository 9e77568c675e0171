"""Notebooks as HTML."""

import base64
import re

import pytest

from sdnb.course import lessons, markup

from .conftest import PICTURE, code, image, printed, prose

nbformat = pytest.importorskip("nbformat")


def made(*cells, **kwargs):
    return [(piece.kind, piece.html) for piece in markup.pieces(nbformat.v4.new_notebook(cells=list(cells)), **kwargs)]


def test_cells_become_pieces_in_their_order():
    folded = code("# Set-up: a & b\nx = 1")
    folded.metadata["jupyter"] = {"source_hidden": True}
    first, second, third, output, picture = made(
        prose("## A **word**"), folded, code("y < 2", printed("\x1b[31m3\x1b[0m <\n"), image("it's"))
    )
    assert first[0] == "prose"
    assert markup.headings(first[1]) == [(2, "A-word", "A <strong>word</strong>")]
    assert second[1].startswith("<details><summary>Set-up: a &amp; b</summary>")
    assert third[0] == "code"
    assert "&lt;" in third[1]
    assert output == ("text", '<pre class="words"><span class="ansi-red-fg">3</span> &lt;\n</pre>')
    assert picture == ("figure", f'<figure><img src="data:image/png;base64,{PICTURE}" alt="it&#x27;s"/></figure>')


def test_printed_words_wrap_and_columns_do_not():
    words, columns = made(code("x", printed("a long sentence\n")), code("y", printed("a  1\nb  2\n")))[1::2]
    assert words[1].startswith('<pre class="words">')
    assert columns[1].startswith("<pre>")


def test_what_plays_is_preferred_only_where_it_can_play():
    both = {"text/html": "<b>play</b>", "image/png": PICTURE, "text/plain": "x"}
    cell = code("x", nbformat.v4.new_output("execute_result", data=both, execution_count=1))
    assert made(cell)[1] == ("page", '<div class="page"><b>play</b></div>')
    assert made(cell, plays=False, address=lambda content, ending: ending)[1][1] == '<figure><img src=".png" alt=""/></figure>'
    table = code("x", nbformat.v4.new_output("execute_result", data={"text/html": "<b>1</b>"}, execution_count=1))
    assert made(table, plays=False)[1][0] == "page"  # there is nothing better


def test_an_error_is_shown_without_control_characters():
    error = nbformat.v4.new_output("error", ename="E", evalue="no", traceback=["\x1b[1;31mE\x1b[0m: <no>"])
    kind, text = made(code("x", error))[1]
    assert kind == "error"
    assert "\x1b" not in text
    assert "&lt;no&gt;" in text


def test_a_formula_that_cannot_be_drawn_stays_as_it_is():
    text = r"so $\begin{cases}1\end{cases}$ and `$x$`, for $5 or $6"
    assert markup.drawn(text) == text
    svg = base64.b64decode(re.search(r"base64,([^\"]+)", markup.drawn("$x^2$"))[1])
    assert b"<svg" in svg


@pytest.mark.parametrize("path", lessons.notebooks(), ids=lambda path: path.stem)
def test_every_formula_of_the_lessons_can_be_drawn(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert "$" not in re.sub(r"```.*?```|`[^`]*`", "", markup.drawn(cell.source), flags=re.DOTALL)
