"""What an executed lesson says of itself: title, idea, question, times, and the lessons that it builds on."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import editions

if TYPE_CHECKING:
    from nbformat import NotebookNode

_IDEA = re.compile(r"(?:After this notebook you |学完本课，)(.+?(?:[.!?](?=\s|$)|[。！？]))", re.DOTALL)
_BUILDS_ON = re.compile(r"Before this: (.+?)(?=After it:|\n\n|$)", re.DOTALL)
_GUESS = re.compile(r"^\*\*(?:Guess|猜一猜)[^*]*\*\*(.+?[?？])", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((\w+\.ipynb)[)#]")
_TIMES = re.compile(r"About (?P<read>[\d½]+|half a) minutes? to read, (?P<run>[\d½]+|half a)(?: minutes?)? to run")
FACTOR = 2.0
"""Factor by which a running time may differ from the one that its lesson says, either way."""


@dataclass(frozen=True)
class Lesson:
    """One executed notebook, with the seconds that it took, and its error if a cell raised."""

    path: Path
    """File of the notebook."""
    notebook: NotebookNode
    seconds: float
    """Time that it took; 0 if it did not run, but has the outputs of its file."""
    error: str | None = None

    @property
    def title(self) -> str:
        """First heading of the notebook."""
        return self._opening.splitlines()[0].lstrip("# ")

    @property
    def idea(self) -> str:
        """Sentence of the lesson on what a reader can do after it; empty if there is none."""
        match = _IDEA.search(self._opening)
        return " ".join(match[1].split()) if match else ""

    @property
    def question(self) -> str:
        """First question that the lesson asks the reader to guess; empty if there is none."""
        texts = (cell.source for cell in self.notebook.cells if cell.cell_type == "markdown")
        found = next((match[1] for text in texts if (match := _GUESS.search(text))), "").strip(" :：\n")
        return " ".join((found[:1].upper() + found[1:]).split())

    @property
    def builds_on(self) -> list[str]:
        """Names of the notebooks that come before this one, from its first cell."""
        match = _BUILDS_ON.search(self._opening)
        return _LINK.findall(match[1]) if match else []

    @property
    def minutes(self) -> tuple[float, float] | None:
        """Minutes to read and to run, as the lesson says them; None if it does not.

        >>> import nbformat
        >>> cell = nbformat.v4.new_markdown_cell("About 12 minutes to read, 1½ to run.")
        >>> Lesson(Path("00_a.ipynb"), nbformat.v4.new_notebook(cells=[cell]), 80.0).minutes
        (12.0, 1.5)
        """
        match = _TIMES.search(self._opening)
        return (_number(match["read"]), _number(match["run"])) if match else None

    @property
    def off(self) -> str:
        """Sentence on a running time that is not the one the lesson says, within `FACTOR`; empty if it is, or none is said."""
        said = self.minutes and self.minutes[1] * 60
        if not said or not self.seconds or self.error or said / FACTOR <= self.seconds <= said * FACTOR:
            return ""
        return f"says {said:.0f} s to run"

    @property
    def _opening(self) -> str:
        return self.notebook.cells[0].source

    def translated(self, language: str) -> Lesson | None:
        """This lesson in another language, None if it is not translated.

        Its outputs are those stored with it, in its language. Those that it lacks come from this run, and so do pages that play.
        """
        import nbformat

        path = editions.translation_of(self.path, language).with_suffix(".ipynb")
        if not path.exists():
            return None
        notebook = nbformat.read(path, as_version=4)
        outputs = {cell.id: cell.outputs for cell in self.notebook.cells if cell.cell_type == "code"}
        for cell in notebook.cells:
            if cell.cell_type == "code":
                mine = outputs.get(cell.id, [])
                if not cell.outputs or any({"text/html", "image/png"} <= set(output.get("data", ())) for output in mine):
                    cell.outputs = mine
        return replace(self, path=path, notebook=notebook)

    def as_dict(self) -> dict[str, object]:
        """Fields for JSON; `error` is None if every cell ran, `said_seconds` if the lesson says no time."""
        said = self.minutes and self.minutes[1] * 60
        return {
            "notebook": self.path.name, "title": self.title, "seconds": round(self.seconds, 1), "said_seconds": said, "error": self.error,
        }  # fmt: skip

    def __str__(self) -> str:
        return "  ".join(filter(None, (self.path.name, f"{self.seconds:.1f} s", self.error or "ok", self.off)))


def _number(text: str) -> float:
    """Minutes as lessons write them: 12, 1½, half a."""
    return 0.5 if text == "half a" else float(text.replace("½", "") or 0) + 0.5 * ("½" in text)
