"""Front ends of the live plot: widgets in a notebook, a line in a terminal, one still picture where nobody is watching."""

from __future__ import annotations

import base64
import io
import os
import sys
import time
from abc import abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..system import notebook
from .frames import packed
from .panels import Scene
from .widget import live_plot, page

if TYPE_CHECKING:
    from IPython.display import DisplayHandle
    from PIL import Image

    from ..plots import Chart

COLUMNS = 16
"""Most steps whose pictures the plot keeps."""


class Watched(Protocol):
    """A run as a front end sees it, such as `sdnb.Live`."""

    status: str
    words: str
    step: int | None
    place: str
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
    if not notebook.attended():
        return Still()
    return Notebook() if find_spec("anywidget") else Line()


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


class Line(FrontEnd):
    """Front end of a notebook without anywidget: a line of words, and one picture at the end."""

    moving = True

    def open(self, live: Watched) -> None:
        from IPython.display import display

        self._handle = cast("DisplayHandle", display({"text/plain": live.status}, raw=True, display_id=True))

    def frame(self, live: Watched) -> None:
        self._handle.update({"text/plain": live.status}, raw=True)

    def close(self, live: Watched, chart: Chart | None) -> None:
        if chart is None:
            self.frame(live)
        else:
            self._handle.update(chart)


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
    """Front end of a notebook: a progress bar, a Stop button, a line of words and the panels, drawn by the browser (`live.js`).

    The words and the curves are sent together, so they are always of the same step. Between frames only the progress moves on.

    The button appears once the browser has sent a message while the cell was running, since only then would a click arrive: in
    JupyterLab 4.4 and Notebook 7.4 or newer, with ipykernel 7. Elsewhere the text beside the bar names the notebook's own interrupt,
    which does the same.

    At the end the output becomes a page that needs no kernel, with a picture for where scripts do not run. JupyterLab loses sight of a
    running cell's output when its page is reloaded; the widget then puts itself back, which is why it stays open after the run.
    """

    moving = True
    _handle: DisplayHandle | None = None

    def open(self, live: Watched) -> None:
        from IPython.display import display

        cell, code = _cell()
        self._place = cell or code
        self._heard = False
        self._shown_previews = 0
        before = _left.get(self._place) if len(live.scene().runs) == 1 else None
        if (old := _open.pop(self._place, None)) is not None:
            old.close()  # its output is gone
        self._ghost: dict[str, Any] = dict(ghost=before[0], ghost_numbers=before[1]) if before else {}
        self._widget: Any = live_plot()(cell=cell, code=code, **self._ghost)
        self._widget.view = _view(self._widget)
        self._widget.on_msg(lambda widget, content, buffers: self._hear(content, live))
        self.frame(live)
        self._handle = cast("DisplayHandle", display(self._widget.view, raw=True, display_id=True))

    def frame(self, live: Watched) -> None:
        scene = live.scene()
        panels, numbers = packed(scene)
        words = ": ".join(filter(None, (live.place, live.words)))
        with self._widget.hold_sync():
            self._widget.frame = dict(step=live.step, words=words, panels=panels)
            self._widget.numbers = numbers
            self._show_progress(live)
            if len(live.previews) != self._shown_previews:
                self._shown_previews = len(live.previews)
                self._widget.previews = _strip(live.previews)
        self._free_replies()

    def tick(self, live: Watched) -> None:
        with self._widget.hold_sync():
            self._show_progress(live)
        self._free_replies()

    def _show_progress(self, live: Watched) -> None:
        self._widget.can_stop = self._heard
        hint = "" if self._heard else "To stop: the notebook's interrupt (■)."
        self._widget.progress = dict(share=live.progress, text=live.progress_text, hint=hint)

    def _free_replies(self) -> None:
        """Let messages of the browser arrive: ipykernel 7.4 sends them to the thread that wrote last, which is busy with the cell."""
        vars(self._widget.comm).pop("_reply_subshell_id", None)

    def _hear(self, content: dict[str, object], live: Watched) -> None:
        """Take a message of the browser: that it shows the plot, or that Stop was clicked."""
        self._heard = True
        if content.get("stop"):
            live.stop()

    def close(self, live: Watched, chart: Chart | None) -> None:
        if self._handle is None:  # it could not be opened
            Still().close(live, chart)
            return
        data: dict[str, object] = {"text/plain": live.words}
        metadata: dict[str, object] = {}
        if chart is not None:
            self._heard = True  # no more hints
            self.frame(live)
            png, metadata["image/png"] = chart._repr_png_()
            content = {name: getattr(self._widget, name) for name in ("frame", "numbers", "previews")} | self._ghost
            data["image/png"] = base64.b64encode(png).decode()
            data["text/html"] = page(f"sdnb-{self._widget.model_id}", chart.html(), content)
            _left[self._place] = (self._widget.frame, self._widget.numbers)
        self._handle.update(data, raw=True, metadata=metadata)
        self._widget.left = dict(data=data, metadata=metadata)
        _open[self._place] = self._widget


_left: dict[str, tuple[dict, bytes]] = {}
"""Last frame of the last run, by the cell that it ran in: the ghost behind the next one."""
_open: dict[str, Any] = {}
"""Widgets of finished runs, by cell."""


def _cell() -> tuple[str, str]:
    """Id and code of the running cell. The id is empty where the front end does not tell it."""
    get_parent = getattr(notebook.running(), "get_parent", None)
    request = get_parent("shell") if get_parent else {}
    return request.get("metadata", {}).get("cellId") or "", request.get("content", {}).get("code") or ""


def _view(widget) -> dict[str, object]:
    """MIME bundle that shows a widget. ipywidgets 7, which Colab has, would publish it without an id for later updates."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"text/plain": "A live plot. Its picture appears here when the run has ended.", "application/vnd.jupyter.widget-view+json": view}


def _strip(previews: dict[str, list[Image.Image]]) -> list[dict[str, object]]:
    """Pictures drawn on the way, for the browser: at most `COLUMNS` steps, the first and the last among them."""
    names = list(previews)
    if len(names) > COLUMNS:
        names = [names[round(i * (len(names) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]
    return [dict(step=int(name.removeprefix("step ")), pictures=[_data_url(picture) for picture in previews[name]]) for name in names]


def _data_url(picture: Image.Image) -> str:
    """Data URL of a picture, at most 128 pixels wide and high."""
    small = picture.copy()
    small.thumbnail((128, 128))
    buffer = io.BytesIO()
    small.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
