"""Where a live plot is shown: widgets in a notebook, a line in a terminal, one still picture where nobody is watching."""

from __future__ import annotations

import base64
import html
import io
import os
import sys
import time
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from ..system import notebook
from .history import History
from .panels import PANELS, Drawing, Panel, Scene, shown

if TYPE_CHECKING:
    import ipywidgets
    from IPython.display import DisplayHandle
    from PIL import Image

    from ..plots import Chart


class Watched(Protocol):
    """A run as a front end sees it, such as `sdnb.Live`."""

    words: str
    place: str
    progress: float
    previews: dict[str, list[Image.Image]]
    saved: Path | None

    @abstractmethod
    def scene(self) -> Scene:
        """The runs so far, to be drawn."""

    @abstractmethod
    def stop(self) -> None:
        """End the run after the step it is at."""


def find() -> FrontEnd:
    """The front end for where this runs. Of several processes that train together only the first shows anything."""
    if os.environ.get("RANK", "0") != "0":
        return Nowhere()
    if notebook.running() is None:
        return Terminal()
    return Notebook() if notebook.attended() else Still()


class FrontEnd:
    """A display of a run: opened before the first step, asked for frames, and closed with the picture that stays."""

    moving = False
    """Whether there are frames to draw while it runs."""

    def open(self, live: Watched) -> None:
        """Get ready."""

    def frame(self, live: Watched) -> None:
        """Show the run as it is now."""

    def tick(self, live: Watched) -> None:
        """Show how far the run is, without reading a loss: on a GPU that would wait for the step."""

    def close(self, live: Watched, chart: Chart | None) -> None:
        """Leave the picture that stays; `chart` is None where there was no step."""


class Nowhere(FrontEnd):
    """Shows nothing."""


class Still(FrontEnd):
    """One picture, at the end."""

    def close(self, live: Watched, chart: Chart | None) -> None:
        from IPython.display import display

        if chart is None:
            print(live.words)
        else:
            display(chart)


class Terminal(FrontEnd):
    """A line that is written over, or a new one every ten seconds where the output goes to a file; at the end a PNG."""

    moving = True

    def __init__(self) -> None:
        self._over = sys.stdout.isatty()
        self._next = 0.0
        self._width = 0

    def frame(self, live: Watched) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._say(live.words)
            self._next = now + (0.2 if self._over else 10.0)

    def _say(self, words: str) -> None:
        if not self._over:
            print(words, flush=True)
            return
        columns = os.get_terminal_size().columns if sys.stdout.isatty() else 80
        words = words[: columns - 1]
        print(f"\r{words.ljust(self._width)}", end="", flush=True)
        self._width = len(words)

    def close(self, live: Watched, chart: Chart | None) -> None:
        self._say(live.words)
        if self._over:
            print()
        if chart is not None and not live.saved:
            path = Path(time.strftime("sdnb-%Y%m%d-%H%M%S.png"))
            number = 1
            while path.exists():
                number += 1
                path = Path(time.strftime(f"sdnb-%Y%m%d-%H%M%S-{number}.png"))
            live.saved = chart.save(path)
        if live.saved:
            print(f"The picture: {live.saved}")


class Notebook(FrontEnd):
    """Words, a progress bar, a Stop button, and the panels side by side or, in a narrow window, below each other.

    The button appears once the front end has answered while the cell was running, for only then would anybody hear it pressed: in
    JupyterLab 4.4 and Notebook 7.4 or newer, with ipykernel 7. Elsewhere the words name the notebook's own interrupt, which does the same.
    """

    moving = True

    def open(self, live: Watched) -> None:
        import ipywidgets
        from IPython.display import display

        self._widgets = ipywidgets
        self._words = ipywidgets.HTML()
        self._bar = ipywidgets.FloatProgress(max=1.0, layout=dict(width="auto", flex="1 1 auto", height="14px"))
        self._button = None
        self._heard = False
        self._controls = ipywidgets.HBox([self._bar], layout=dict(align_items="center", width="100%"))
        self._last_words = ""
        # made ready now, since no step waits yet; which of them are shown is seen by what the steps bring
        self._panels = {panel.title: self._ready(panel) for panel in PANELS[:4]}
        self._board = ipywidgets.Box(layout=dict(flex_flow="row wrap", width="100%"))
        self._strip = ipywidgets.HTML()
        self._drawn, self._frames = 0, 0
        self._box = ipywidgets.VBox([self._words, self._controls, self._board, self._strip], layout=dict(width="100%", max_width="1120px"))
        self._box.add_class("sdnb-live")
        self.frame(live)
        self._handle = cast("DisplayHandle", display(_view(self._box), raw=True, display_id=True))

    def frame(self, live: Watched) -> None:
        self._offer_to_stop(live)
        self._last_words = live.words
        self._say(self._last_words)
        self._bar.value = live.progress
        scene = live.scene()
        panels = shown(scene)
        for panel in panels:
            if panel.title not in self._panels:
                self._panels[panel.title] = self._ready(panel)
            drawing, image = self._panels[panel.title]
            image.value = drawing.png(scene)
        images = tuple(self._panels[panel.title][1] for panel in panels)
        if self._board.children != images:
            self._board.children = images
        if len(live.previews) != self._drawn:
            self._drawn = len(live.previews)
            self._strip.value = _strip(live.previews)
        self._frames += 1

    def tick(self, live: Watched) -> None:
        self._bar.value = live.progress
        self._say(live.place + self._last_words[self._last_words.find(":") :])

    def _ready(self, panel: Panel) -> tuple[Drawing, ipywidgets.Image]:
        """A panel's drawing, and the widget that shows it."""
        layout = dict(flex="1 1 330px", min_width="0", max_width="560px", object_fit="contain")
        drawing = Drawing(panel)
        drawing.png(Scene({"": History()}))
        return drawing, self._widgets.Image(format="png", layout=layout)

    def _say(self, words: str) -> None:
        hint = "" if self._heard else " To stop: the notebook's interrupt (■)."
        first, colon, rest = html.escape(words).partition(":")
        self._words.value = f'<div role="status" style="line-height:1.35"><b>{first}</b>{colon}{rest}<small>{hint}</small></div>'

    def _offer_to_stop(self, live: Watched) -> None:
        if self._button is None and self._frames >= 1:  # the front end needs a moment before it can send anything while a cell runs
            self._button = self._widgets.Button(
                description="Stop",
                icon="stop",
                tooltip="End the run after this step",
                layout=dict(visibility="hidden", width="110px"),
                _view_count=0,
            )
            self._button.on_click(lambda button: self._pressed(button, live))
            self._controls.children = (self._bar, self._button)
            # ipykernel 7.4 sends what a widget says to the thread that used it last: the one that is busy with the cell
            vars(self._button.comm).pop("_reply_subshell_id", None)
        elif self._button is not None and not self._heard and self._button._view_count:
            self._heard = True
            self._button.layout.visibility = "visible"
            vars(self._button.comm).pop("_reply_subshell_id", None)

    @staticmethod
    def _pressed(button, live: Watched) -> None:
        live.stop()
        button.disabled, button.description = True, "Stopping …"

    def close(self, live: Watched, chart: Chart | None) -> None:
        if chart is None:
            self._handle.update(_Words(live.words))
        else:
            self._handle.update(chart)
        for _, image in self._panels.values():
            image.close()
        for widget in (self._button, self._words, self._bar, self._controls, self._board, self._strip, self._box):
            if widget is not None:
                widget.close()


def _view(widget) -> dict[str, object]:
    """The MIME bundle that shows a widget. ipywidgets 7, which Colab has, would publish it without an id by which it can be replaced."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"text/plain": type(widget).__name__, "application/vnd.jupyter.widget-view+json": view}


class _Words:
    """Text that IPython shows without quotes."""

    def __init__(self, words: str) -> None:
        self._words = words

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/plain": self._words}


def _strip(previews: dict[str, list[Image.Image]]) -> str:
    """The last eight columns of pictures, as HTML."""
    figures = []
    for name, pictures in list(previews.items())[-8:]:
        tags = "".join(
            f'<img src="{_address(picture)}" alt="drawn at {html.escape(name)}" style="display:block;width:88px">' for picture in pictures
        )
        figures.append(
            f'<figure style="margin:4px 8px 0 0"><figcaption style="font-size:80%">{html.escape(name)}</figcaption>{tags}</figure>'
        )
    return f'<div style="display:flex;flex-wrap:wrap">{"".join(figures)}</div>'


def _address(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((128, 128))
    buffer = io.BytesIO()
    small.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
