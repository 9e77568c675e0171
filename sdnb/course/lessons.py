"""Lessons: the notebooks' files and their copies, the folder of a reader's runs, and sliders."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..system import files
from .editions import LANGUAGES

if TYPE_CHECKING:
    from ..plots import Chart


def notebooks(language: str = "en") -> list[Path]:
    """The lessons' files in reading order, in the package or a checkout; in another language, those that are translated.

    Raises `ValueError` for an unknown language, and `FileNotFoundError` without any lessons.
    """
    if language not in (known := ("en", *LANGUAGES)):
        raise ValueError(f"no lessons in {language!r}: there are {', '.join(known)}")
    package = files.PACKAGE
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if found := sorted((folder if language == "en" else folder / language).glob("[0-9][0-9]_*.ipynb")):
            return found
    raise FileNotFoundError("the notebooks are missing: install sdnb again")


RECORDER = "record_your_gpu.ipynb"
"""The notebook that is no lesson: it measures the reader's card for the planner."""


def pages(language: str = "en") -> list[Path]:
    """The pages that a reader needs in one folder: the lessons, the glossary that they link to, and the recorder.

    Those of another language lie in a folder of their own below the English ones, which they link to as well.
    """
    english = [*notebooks(), *(notebooks()[0].with_name(name) for name in ("glossary.md", RECORDER))]
    if language == "en":
        return english
    translated = notebooks(language)
    return [*english, *translated, *translated[0].parent.glob("glossary.md")]


def unpack(folder: str | Path, language: str = "en") -> list[Path]:
    """Copy the course's pages to `folder` and return the copies. One that is there already and differs is the reader's work: it stays."""
    copies = _copies(folder, language)
    for copy, page in copies.items():
        if not copy.exists():
            files.write(copy, page.read_bytes())
    return list(copies)


def changed(folder: str | Path, language: str = "en") -> list[Path]:
    """The copies in `folder` that differ from the pages they came from."""
    return [copy for copy, page in _copies(folder, language).items() if not filecmp.cmp(copy, page, shallow=False)]


def _copies(folder: str | Path, language: str) -> dict[Path, Path]:
    """The pages, by the paths of their copies."""
    root = notebooks()[0].parent
    return {Path(folder).expanduser() / page.relative_to(root): page for page in pages(language)}


DRIVE = Path("/content/drive/MyDrive")
"""Colab's folder for Google Drive, there once it is mounted."""


def run_folder(*names: str | Path) -> Path:
    """A folder for a run's saves and files, named after the last parts of `names`, such as a model's and a folder's.

    In Colab, whose disk is lost with the connection, it is in Drive's `sdnb-runs` once that is mounted; elsewhere in `runs`, in the
    working directory. The folder itself is not made. Raises `ValueError` for a name without letters, such as `/`.
    """
    words = [Path(name).expanduser().absolute().name for name in names]
    if not words or not all(words):
        raise ValueError(f"a run is called after {', '.join(map(repr, map(str, names))) or 'nothing'}: give each a name")
    return (DRIVE / "sdnb-runs" if DRIVE.is_dir() else Path("runs")) / "-".join(words)


def explore(draw: Callable[..., Chart], **choices: tuple) -> object:
    """Sliders for the arguments of `draw`, which returns a `Chart`; where nobody can move one, the chart of the first choices.

    Each chart is drawn once and kept. The chart's text alternative goes with its picture, and is read out when a slider has changed it.
    """
    from ..watch import Notebook, find

    first = {name: options[0] for name, options in choices.items()}
    if not isinstance(find(), Notebook):
        return draw(**first)
    import ipywidgets

    drawn: dict[tuple, str] = {}
    sliders = {
        name: ipywidgets.SelectionSlider(options=options, value=options[0], description=name, continuous_update=False)
        for name, options in choices.items()
    }
    view = ipywidgets.HTML()  # not Image, which has no place for a text alternative

    def redraw(_=None) -> None:
        chosen = {name: slider.value for name, slider in sliders.items()}
        key = tuple(chosen.values())
        if key not in drawn:
            view.value = f'<div style="opacity: 0.4">{view.value}</div>'  # it may take seconds
            drawn[key] = f'<div role="status">{draw(**chosen).html()}</div>'
        view.value = drawn[key]

    redraw()
    for slider in sliders.values():
        slider.observe(redraw, "value")
    return ipywidgets.VBox([ipywidgets.HBox(list(sliders.values()), layout=dict(flex_flow="row wrap")), view])
