"""Front ends of the live plot: widgets in a notebook, a line in a terminal, one still picture where nobody is watching."""

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

    status: str
    progress_text: str
    progress: float
    previews: dict[str, list[Image.Image]]
    saved: Path | None

    @abstractmethod
    def scene(self) -> Scene:
        """Runs so far, to be drawn."""

    @abstractmethod
    def stop(self) -> None:
        """End the run after its current step."""


def find() -> FrontEnd:
    """Choose the front end for this process. Of several processes that train together only the first shows anything."""
    if os.environ.get("RANK", "0") != "0":
        return Nowhere()
    if notebook.running() is None:
        return Terminal()
    return Notebook() if notebook.attended() else Still()


class FrontEnd:
    """Display of a run: opened before the first step, called for frames, and closed with the final picture."""

    moving = False
    """Whether the front end shows frames during the run."""

    def open(self, live: Watched) -> None:
        """Prepare the display."""

    def frame(self, live: Watched) -> None:
        """Show the run in its present state."""

    def tick(self, live: Watched) -> None:
        """Show the progress, without reading a loss: on a GPU that would wait for the step."""

    def close(self, live: Watched, chart: Chart | None) -> None:
        """Show the final picture; `chart` is None if there was no step."""


class Nowhere(FrontEnd):
    """Front end that shows nothing."""


class Still(FrontEnd):
    """Front end that shows one picture, at the end."""

    def close(self, live: Watched, chart: Chart | None) -> None:
        from IPython.display import display

        if chart is None:
            print(live.status)
        else:
            display(chart)


class Terminal(FrontEnd):
    """Front end of a terminal: a line that is overwritten, or in a file a new line every ten seconds; at the end a PNG."""

    moving = True

    def __init__(self) -> None:
        self._overwrites = sys.stdout.isatty()
        self._next_time = 0.0
        self._width = 0

    def frame(self, live: Watched) -> None:
        now = time.monotonic()
        if now >= self._next_time:
            self._print(live.status)
            self._next_time = now + (0.2 if self._overwrites else 10.0)

    def _print(self, line: str) -> None:
        if not self._overwrites:
            print(line, flush=True)
            return
        columns = os.get_terminal_size().columns if sys.stdout.isatty() else 80
        line = line[: columns - 1]
        print(f"\r{line.ljust(self._width)}", end="", flush=True)
        self._width = len(line)

    def close(self, live: Watched, chart: Chart | None) -> None:
        self._print(live.status)
        if self._overwrites:
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
    """Front end of a notebook: a status line, a progress bar, a Stop button, and the panels, side by side where there is room.

    The button appears once the browser has sent a message while the cell was running, since only then would a click arrive: in
    JupyterLab 4.4 and Notebook 7.4 or newer, with ipykernel 7. Elsewhere the status names the notebook's own interrupt, which does the
    same.
    """

    moving = True

    def open(self, live: Watched) -> None:
        import ipywidgets
        from IPython.display import display

        self._widgets = ipywidgets
        self._status = ipywidgets.HTML()
        self._bar = ipywidgets.FloatProgress(max=1.0, layout=dict(width="auto", flex="1 1 auto", height="14px"))
        self._button = None
        self._button_works = False
        self._controls = ipywidgets.HBox([self._bar], layout=dict(align_items="center", width="100%"))
        self._last_status = ""
        # made now, while no step waits; which panels are shown depends on the steps' data
        self._panels = {panel.title: self._make_panel(panel) for panel in PANELS[:4]}
        self._board = ipywidgets.Box(layout=dict(flex_flow="row wrap", width="100%"))
        self._strip = ipywidgets.HTML()
        self._shown_previews = 0
        self._frames = 0
        self._box = ipywidgets.VBox([self._status, self._controls, self._board, self._strip], layout=dict(width="100%", max_width="1120px"))
        self._box.add_class("sdnb-live")
        self.frame(live)
        self._handle = cast("DisplayHandle", display(_view(self._box), raw=True, display_id=True))

    def frame(self, live: Watched) -> None:
        self._update_button(live)
        self._last_status = live.status
        self._show_status(self._last_status)
        self._bar.value = live.progress
        scene = live.scene()
        panels = shown(scene)
        for panel in panels:
            if panel.title not in self._panels:
                self._panels[panel.title] = self._make_panel(panel)
            drawing, image = self._panels[panel.title]
            image.value = drawing.png(scene)
        images = tuple(self._panels[panel.title][1] for panel in panels)
        if self._board.children != images:
            self._board.children = images
        if len(live.previews) != self._shown_previews:
            self._shown_previews = len(live.previews)
            self._strip.value = _strip(live.previews)
        self._frames += 1

    def tick(self, live: Watched) -> None:
        self._bar.value = live.progress
        self._show_status(live.progress_text + self._last_status[self._last_status.find(":") :])

    def _make_panel(self, panel: Panel) -> tuple[Drawing, ipywidgets.Image]:
        """Make a panel's drawing, and the widget that shows it."""
        layout = dict(flex="1 1 330px", min_width="0", max_width="560px", object_fit="contain")
        drawing = Drawing(panel)
        drawing.png(Scene({"": History()}))
        return drawing, self._widgets.Image(format="png", layout=layout)

    def _show_status(self, status: str) -> None:
        hint = "" if self._button_works else " To stop: the notebook's interrupt (■)."
        first, colon, rest = html.escape(status).partition(":")
        self._status.value = f'<div role="status" style="line-height:1.35"><b>{first}</b>{colon}{rest}<small>{hint}</small></div>'

    def _update_button(self, live: Watched) -> None:
        """Make the Stop button after the first frame, and show it once the browser has sent a message."""
        if self._button is None and self._frames >= 1:  # the browser needs a moment before it can send anything while a cell runs
            self._button = self._widgets.Button(
                description="Stop",
                icon="stop",
                tooltip="End the run after this step",
                layout=dict(visibility="hidden", width="110px"),
                _view_count=0,
            )
            self._button.on_click(lambda button: self._pressed(button, live))
            self._controls.children = (self._bar, self._button)
            # ipykernel 7.4 sends a widget's messages to the thread that used it last, which is busy with the cell
            vars(self._button.comm).pop("_reply_subshell_id", None)
        elif self._button is not None and not self._button_works and self._button._view_count:
            self._button_works = True
            self._button.layout.visibility = "visible"
            vars(self._button.comm).pop("_reply_subshell_id", None)

    @staticmethod
    def _pressed(button, live: Watched) -> None:
        live.stop()
        button.disabled, button.description = True, "Stopping …"

    def close(self, live: Watched, chart: Chart | None) -> None:
        if chart is None:
            self._handle.update(_Text(live.status))
        else:
            self._handle.update(chart)
        for _, image in self._panels.values():
            image.close()
        for widget in (self._button, self._status, self._bar, self._controls, self._board, self._strip, self._box):
            if widget is not None:
                widget.close()


def _view(widget) -> dict[str, object]:
    """MIME bundle that shows a widget. ipywidgets 7, which Colab has, would publish it without an id for later updates."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"text/plain": type(widget).__name__, "application/vnd.jupyter.widget-view+json": view}


class _Text:
    """Text that IPython shows without quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/plain": self._text}


def _strip(previews: dict[str, list[Image.Image]]) -> str:
    """HTML of the last eight columns of pictures."""
    figures = []
    for name, pictures in list(previews.items())[-8:]:
        tags = "".join(
            f'<img src="{_data_url(picture)}" alt="drawn at {html.escape(name)}" style="display:block;width:88px">' for picture in pictures
        )
        figures.append(
            f'<figure style="margin:4px 8px 0 0"><figcaption style="font-size:80%">{html.escape(name)}</figcaption>{tags}</figure>'
        )
    return f'<div style="display:flex;flex-wrap:wrap">{"".join(figures)}</div>'


def _data_url(picture: Image.Image) -> str:
    """Data URL of a picture, at most 128 pixels wide and high."""
    small = picture.copy()
    small.thumbnail((128, 128))
    buffer = io.BytesIO()
    small.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
