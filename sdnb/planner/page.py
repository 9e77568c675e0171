"""Pages that compute in the browser: the same in a notebook and as a file, without a network, in English and Chinese.

A page NAME is made of `page.html`, in which NAME.html is the content, of `page.css` and NAME.css, `page.js` and NAME.js, and of the words
in `page.toml` and NAME.toml. Its data is JSON. The scripts are one program: what `page.js` defines, NAME.js uses.
"""

from __future__ import annotations

import functools
import html
import json
import re
import tomllib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .. import plots
from ..system import attended, plays

if TYPE_CHECKING:
    from ..plots import Chart

STOPS = {"en": ". ", "zh": "。"}
"""Ends of sentences, by language."""
LANGUAGES = tuple(STOPS)
HATCHES = {
    "": "none",
    "..": "radial-gradient(#0005 20%, #0000 22%) 0 0 / 6px 6px",
    "//": "repeating-linear-gradient(-45deg, #0004 0 1px, #0000 1px 6px)",
    "\\\\": "repeating-linear-gradient(45deg, #0004 0 1px, #0000 1px 6px)",
    "++": "repeating-linear-gradient(#0004 0 1px, #0000 1px 6px)",
    "xx": "repeating-linear-gradient(90deg, #0003 0 1px, #0000 1px 6px)",
}
"""Hatches of the categories as backgrounds in CSS."""
STYLES = {**plots.CATEGORY_STYLES, "workspaces": ("#FFFFFF", "")}
"""Colour and hatch of each category of memory."""
FOLDER = Path(__file__).parent


class Page(ABC):
    """A page. Displayed when it is the last value of a notebook cell; where nobody can play with it, `chart()` is shown instead."""

    name: ClassVar[str]
    """Name of its files."""
    height: ClassVar[str] = "60rem"
    """Height in a notebook until the page has made itself as high as its content."""
    language: str | None
    """Language of the words; None for the browser's."""

    @abstractmethod
    def data(self) -> dict[str, Any]:
        """What the page's script knows beside words, language and looks."""

    @abstractmethod
    def chart(self) -> Chart | None:
        """Picture of what the page shows first; None if there is nothing to draw."""

    def page(self) -> str:
        """The page as HTML, less than a megabyte."""
        from .. import __version__

        words, code = texts(self.name), self.language or LANGUAGES[0]
        looks = {name: {"fill": fill, "hatch": HATCHES[hatch]} for name, (fill, hatch) in STYLES.items()}
        data = {"words": words, "language": self.language, "version": __version__, "looks": looks, **self.data()}
        fill = {name: words[name][code] for name in ("title", "noscript", "language.code")}
        fill |= {kind: _read(f"page.{kind}") + _read(f"{self.name}.{kind}") for kind in ("css", "js")}
        fill |= {"content": _read(f"{self.name}.html"), "data": _packed(data).replace("</", "<\\/")}
        return re.sub(r"\{([\w.]+)\}", lambda place: fill[place[1]], _read("page.html"))

    def _repr_html_(self) -> str | None:
        if not plays():
            return None
        title = texts(self.name)["title"][self.language or LANGUAGES[0]]
        style = f"width: 100%; height: {self.height}; border: 0"
        return f'<iframe title="{title}" style="{style}" srcdoc="{html.escape(self.page())}"></iframe>'

    def _repr_png_(self) -> tuple[bytes, dict[str, str]] | None:
        chart = None if attended() else self.chart()
        return chart and chart._repr_png_()


def check_language(language: str | None) -> None:
    """Raise `ValueError` for a language that the pages do not speak."""
    if language not in (None, *LANGUAGES):
        raise ValueError(f"language={language!r}: there are {', '.join(LANGUAGES)}")


@functools.cache
def texts(name: str) -> dict[str, dict[str, str]]:
    """Words of a page by name and language; those that all pages share come first."""
    files = [tomllib.loads(_read(f"{which}.toml")) for which in ("page", name)]
    return {key: row for words in files for key, row in words.items() if isinstance(row, dict)}


def _read(file: str) -> str:
    return (FOLDER / file).read_text(encoding="utf-8")


def _packed(data: object) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))
