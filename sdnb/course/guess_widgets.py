"""Widgets of guesses, in a notebook that somebody sits at; they work with ipywidgets 7, which Colab has, and 8.

A notebook is saved with a widget's place but without the widget. When it is opened again, JupyterLab says "model not found" there. So each
widget comes as two outputs of its cell (`Place`): above it is a frame, which holds the same as text, hidden, and a style sheet that swaps
the two as long as no widget is there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from .languages import say
from .questions import Choice, Curve, Number, Question, as_html

if TYPE_CHECKING:
    import ipywidgets
    from IPython.display import DisplayHandle

VIEW = "application/vnd.jupyter.widget-view+json"
PLACE = ".jp-OutputArea-child > .jp-OutputArea-output:is(.lm-Panel, .p-Panel)"
"""Selector of a widget's place in JupyterLab. Where the widget is gone, it holds a message, and no elements."""
FRAME = ".jp-OutputArea-child:has(.sdnb-guess-frame)"
GONE = f":has(+ {PLACE}):not(:has(+ {PLACE} > *))"
STYLE = f"""
{FRAME} {{ display: none; }}
{FRAME}{GONE} {{ display: flex; }}
{FRAME}{GONE} .sdnb-guess-still {{ display: block !important; }}
{FRAME}{GONE} + .jp-OutputArea-child {{ display: none; }}
.sdnb-guess .widget-radio, .sdnb-guess .widget-text {{ width: auto; height: auto; max-width: 100%; }}
.sdnb-guess .widget-radio-box {{ width: auto; height: auto; max-width: 100%; }}
.sdnb-guess .widget-radio-box label {{
  display: flex; flex-direction: row-reverse; justify-content: flex-end; align-items: flex-start;
  width: auto; height: auto; max-width: none; margin: 0; padding: 5px 4px;
  white-space: normal; font-size: 14px; line-height: 20px; cursor: pointer;
}}
.sdnb-guess input[type=radio] {{ flex: none; width: 16px; height: 16px; margin: 2px 10px 0 2px; }}
.sdnb-guess input:focus-visible, .sdnb-guess button:focus-visible, .sdnb-guess .noUi-handle:focus-visible {{
  outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 2px;
}}
.sdnb-guess .widget-label, .sdnb-guess .widget-html-content {{ color: inherit; }}
"""
BOX = "border-left:4px solid var(--jp-brand-color1, #1976d2);padding:2px 12px;margin:4px 0;max-width:760px;line-height:1.45"


class Place:
    """Place of a widget in a cell's output, which holds a text instead where the widget is gone."""

    def __init__(self, widget: ipywidgets.DOMWidget, page: str, text: str) -> None:
        self._frame = _display(_frame(page))
        self._view = _display({**_still(page, text), VIEW: _model(widget)})

    def keep(self, page: str) -> None:
        """Change what stays when the widget is gone."""
        self._frame.update(_frame(page), raw=True)

    def settle(self, page: str, text: str) -> None:
        """Replace the widget by a page and its text, for good."""
        self._frame.update({"text/plain": "", "text/html": ""}, raw=True)
        self._view.update(_still(page, text), raw=True)

    @staticmethod
    def still(page: str, text: str) -> None:
        """Display a page that has no widget."""
        _display(_still(page, text))


class Waiting(Place):
    """Place of a comparison that waits for the reader's answer."""

    def __init__(self, text: str) -> None:
        import ipywidgets

        page = f'<p role="status">{as_html(text)}</p>'
        self._widget = ipywidgets.HTML(_boxed(page), layout=dict(width="100%"))
        super().__init__(self._widget, page, text)

    def settle(self, page: str, text: str) -> None:
        """Show a comparison instead."""
        self._widget.value = _boxed(page)  # reaches a browser that has reloaded the page, unlike the next line
        super().settle(page, text)


class Board:
    """Widgets that take the reader's answer to a question, and a line that repeats it."""

    def __init__(self, name: str, question: Question, answer: Any, fix: Callable[[Any], None]) -> None:
        """Show the widgets, set to `answer` unless it is None. `fix` gets each answer that the reader gives."""
        import ipywidgets

        self._question, self._fix = question, fix
        self._answered, self._settled = answer is not None, False
        self._input: Input = _INPUTS[type(question)](question, answer, self._changed, self._press)
        self._button = ipywidgets.Button(description=say("fix"), button_style="primary", layout=dict(width="auto", min_width="150px"))
        self._button.on_click(lambda _: self._press())
        self._line = ipywidgets.HTML()
        foot = ipywidgets.HBox([self._button, self._line], layout=dict(align_items="center", flex_flow="row wrap", grid_gap="4px 12px"))
        box = ipywidgets.VBox([self._input.widget, foot], layout=dict(max_width="760px", padding="2px 4px", overflow="visible"))
        box.add_class("sdnb-guess")
        self._place = Place(box, self._page(answer), question.prompt)
        if answer is not None:
            self._say(self._fixed(answer))

    def settle(self, answer: Any) -> None:
        """Show the answer as text: it cannot be changed any more."""
        self._settled = True
        self._button.disabled = True
        self._input.disable()
        self._say(self._question.repeated(answer))
        self._place.settle(self._page(answer), self._question.prompt)

    def _press(self) -> None:
        """Take the answer that the widgets hold, or say what is missing."""
        if self._settled:
            return
        try:
            answer = self._question.answer(self._input.value())
        except ValueError as error:
            self._say(str(error))
            return
        self._answered = True
        self._say(self._fixed(answer))
        self._place.keep(self._page(answer))
        self._fix(answer)

    def _changed(self) -> None:
        """Take a changed answer where there is one already; a slider's last move may also arrive after the button's click."""
        if self._answered:
            self._press()
        else:
            self._line.value = ""

    def _fixed(self, answer: Any) -> str:
        return say("fixed", answer=self._question.repeated(answer))

    def _say(self, text: str) -> None:
        self._line.value = f'<div role="status" style="line-height:1.4">{as_html(text)}</div>'

    def _page(self, answer: Any) -> str:
        if answer is None:
            return f"<p>{as_html(self._question.prompt)}</p><p><small>{as_html(say('run_again'))}</small></p>"
        sketch = self._question.sketch(answer) if isinstance(self._question, Curve) else ""
        return f"<p><b>{as_html(self._question.repeated(answer))}</b></p>{sketch}"


class Input(ABC):
    """Widgets of one kind of question. `widget` shows them."""

    widget: Any

    @abstractmethod
    def value(self) -> Any:
        """What the reader has entered so far."""

    @abstractmethod
    def disable(self) -> None:
        """Take no more answers."""


class NumberInput(Input):
    """A text field, which answers with Enter, or when it is left: only then is its text sent, whole."""

    def __init__(self, question: Number, answer: float | None, changed: Callable[[], None], press: Callable[[], None]) -> None:
        import ipywidgets

        label = say("your_guess_in", unit=question.unit) if question.unit else say("your_guess")
        self.widget = ipywidgets.Text(
            value="" if answer is None else question.shown(answer),
            description=label,
            continuous_update=False,
            style=dict(description_width="initial"),
            layout=dict(width="auto", max_width="360px"),
        )
        self.widget.observe(lambda _: press(), "value")

    def value(self) -> str:
        """The text in the field."""
        return self.widget.value

    def disable(self) -> None:
        """Take no more answers."""
        self.widget.disabled = True


class ChoiceInput(Input):
    """Radio buttons."""

    def __init__(self, question: Choice, answer: str | None, changed: Callable[[], None], press: Callable[[], None]) -> None:
        import ipywidgets

        options = [(text.replace("`", ""), name) for name, text in question.texts.items()]
        self.widget = ipywidgets.RadioButtons(options=options, value=answer, layout=dict(width="auto"))
        self.widget.observe(lambda _: changed(), "value")

    def value(self) -> str | None:
        """Name of the choice."""
        return self.widget.value

    def disable(self) -> None:
        """Take no more answers."""
        self.widget.disabled = True


class CurveInput(Input):
    """A slider for each position, and a picture of the curve that follows them."""

    def __init__(self, question: Curve, answer: list[float] | None, changed: Callable[[], None], press: Callable[[], None]) -> None:
        import ipywidgets

        self._question, self._tell = question, changed
        heights = answer or [(question.low + question.high) / 2] * len(question.x)
        self._sliders = [self._slider(place, height) for place, height in zip(question.x, heights, strict=True)]
        self._picture = ipywidgets.HTML(layout=dict(flex="1 1 340px", min_width="260px", max_width="460px"))
        row = ipywidgets.HBox(self._sliders, layout=dict(flex="0 1 auto", flex_flow="row wrap", overflow="visible"))
        drawing = ipywidgets.HBox([row, self._picture], layout=dict(flex_flow="row wrap", align_items="center", overflow="visible"))
        self.widget = ipywidgets.VBox([ipywidgets.HTML(as_html(question.prompt)), drawing], layout=dict(overflow="visible"))
        self._draw()
        for slider in self._sliders:
            slider.observe(lambda _: self._moved(), "value")

    def _slider(self, place: float, height: float) -> ipywidgets.FloatSlider:
        import ipywidgets

        low, high = self._question.low, self._question.high
        return ipywidgets.FloatSlider(
            value=min(max(height, low), high),
            min=low,
            max=high,
            step=(high - low) / 50,
            description=f"{place:g}",
            orientation="vertical",
            readout_format=".3g",
            layout=dict(height="200px", width="46px", min_width="0", margin="2px 0"),
        )

    def _draw(self) -> None:
        self._picture.value = self._question.sketch(self.value())

    def _moved(self) -> None:
        self._draw()
        self._tell()

    def value(self) -> list[float]:
        """Heights of the sliders."""
        return [slider.value for slider in self._sliders]

    def disable(self) -> None:
        """Take no more answers."""
        for slider in self._sliders:
            slider.disabled = True


_INPUTS: dict[type, Callable[..., Input]] = {Number: NumberInput, Choice: ChoiceInput, Curve: CurveInput}


def _display(bundle: dict[str, object]) -> DisplayHandle:
    from IPython.display import display

    return cast("DisplayHandle", display(bundle, raw=True, display_id=True))


def _model(widget: ipywidgets.DOMWidget) -> dict[str, object]:
    return {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}


def _boxed(page: str) -> str:
    return f'<div class="sdnb-guess-result" style="{BOX}">{page}</div>'


def _still(page: str, text: str) -> dict[str, object]:
    return {"text/plain": text, "text/html": _boxed(f'<div role="status">{page}</div>')}


def _frame(page: str) -> dict[str, object]:
    still = f'<div class="sdnb-guess-still" style="display:none">{_boxed(page)}</div>'
    return {"text/plain": "", "text/html": f'<div class="sdnb-guess-frame"><style>{STYLE}</style>{still}</div>'}
