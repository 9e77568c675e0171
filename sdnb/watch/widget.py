"""A widget with its own JavaScript, as anywidget makes them, and the live plot's."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def widget_class(script: Path, style: Path, **values: object) -> type:
    """Class of widgets that run `script`, an ES module whose default has `render`, with `style`, a CSS file.

    Each of `values` is shared with the browser, and begins with its value. Nothing is loaded from a network; in Colab the page itself
    loads anywidget's own part. Raises `ImportError` without anywidget.
    """
    import anywidget
    import traitlets

    kinds = {
        bool: traitlets.Bool,
        int: traitlets.Int,
        bytes: traitlets.Bytes,
        str: traitlets.Unicode,
        dict: traitlets.Dict,
        list: traitlets.List,
    }
    shared: dict[str, Any] = {name: kinds[type(value)](value).tag(sync=True) for name, value in values.items()}
    texts = dict(_esm=script.read_text(encoding="utf-8"), _css=style.read_text(encoding="utf-8"))
    return type(script.stem, (anywidget.AnyWidget,), texts | shared)


@cache
def live_plot() -> type:
    """Class of the live plot's widget. Raises `ImportError` without anywidget.

    - `frame`, `numbers`: what is drawn, all of one step; `ghost`, `ghost_numbers`: the run before it in the same cell
    - `progress`, `previews`, `can_stop`: the bar, the pictures drawn on the way, whether the Stop button works
    - `cell`, `code`: id and text of the cell that runs, to find it again in a page that was reloaded
    - `view`, `left`: the cell's output during the run and after it; `kept`: whether a page has had the latter
    """
    moving: dict[str, Any] = dict(frame={}, numbers=b"", progress={}, previews=[], can_stop=False)
    fixed: dict[str, Any] = dict(ghost={}, ghost_numbers=b"", cell="", code="", view={}, left={}, kept=False)
    return widget_class(HERE / "live.js", HERE / "live.css", **moving, **fixed)


def page(name: str, picture: str, content: Mapping[str, object]) -> str:
    """HTML that shows `picture`, an `img` element, and turns it into the live plot of a finished run where scripts may run.

    `content` has the widget's values by name, with the numbers as bytes.
    """
    data = {key: base64.b64encode(value).decode() if isinstance(value, bytes) else value for key, value in content.items()}
    script = base64.b64encode((HERE / "live.js").read_bytes()).decode()
    style = (HERE / "live.css").read_text(encoding="utf-8")
    told = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no end of the script inside it
    return (
        f'<div id="{name}"><style>{style}</style>{picture}<div></div></div>'
        f'<script>import("data:text/javascript;base64,{script}").then((live) => '
        f'live.leave(document.getElementById("{name}"), {told})).catch(() => undefined)</script>'
    )
