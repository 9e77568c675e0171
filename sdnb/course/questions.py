"""Questions of the course's guesses, of three kinds: a number, a choice, a curve. They read answers, and say how one compares.

A question is a table of a lesson's TOML file in `texts/`, such as `[guess.a]` for `sdnb.guess("02.a")`:

- `kind = "number"`, with `unit` and `within`, the factor that counts as close; `why`, if given, is said with the measurement
- `kind = "choice"`, with rows `[[guess.a.choices]]` of `name`, the choice's text in each language, and `why`: for a wrong one why it is
  tempting and what it forgets, for the right one why it is right
- `kind = "curve"`, with `x`, a list of positions, `x_label`, `y_label`, and the axis from `low` to `high`; `why` as for a number

Wrong tables raise `ValueError`; `tests/course/test_texts.py` reads them all.
"""

from __future__ import annotations

import html
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..system import suggest
from . import answers, languages
from .languages import LANGUAGES, said, say
from .sketches import Curve as Drawn
from .sketches import sketch

KEYS = {
    "number": {"unit", "within", "why"},
    "choice": {"choices"},
    "curve": {"x", "x_label", "y_label", "low", "high", "why"},
}
"""Keys of a question's table besides `kind`, by kind. All must be there, apart from `unit` and `why`."""
OPTIONAL = {"unit", "why"}
CHOICE_KEYS = {"name", "why", "en", *LANGUAGES}


def names() -> list[str]:
    """Names of all guesses of the course, such as `02.a`."""
    return [f"{number}.{letter}" for number in languages.numbers() for letter in languages.lesson(number).get("guess", {})]


def question(name: str) -> Question:
    """The question of a guess, in the course's language. Raises `ValueError` for an unknown name, and for a table with a fault."""
    number, _, letter = str(name).partition(".")
    row = languages.lesson(number).get("guess", {}).get(letter) if number in languages.numbers() else None
    if row is None:
        known = names()
        raise ValueError(f"no guess {name!r}" + (suggest(str(name), known) or f": there are {', '.join(known) or 'none'}"))
    kind = row.get("kind")
    if kind not in KEYS:
        raise ValueError(f"guess {name} has the kind {kind!r}: there are {', '.join(KEYS)}")
    keys = {key for key in row if key != "kind"}
    if wrong := sorted((keys - KEYS[kind]) | (KEYS[kind] - OPTIONAL - keys)):
        raise ValueError(f"guess {name}, a {kind}, has missing or unknown keys: {', '.join(wrong)}")
    return {"number": Number.read, "choice": Choice.read, "curve": Curve.read}[kind](row)


class Question(ABC):
    """A question, in the course's language."""

    prompt: str
    """What the reader is asked to do."""

    @abstractmethod
    def answer(self, value: Any) -> Any:
        """A reader's answer, read. Raises `ValueError` with what to tell the reader for what is none."""

    @abstractmethod
    def measured(self, value: Any) -> Any:
        """What an experiment found. Raises `ValueError` for what cannot answer the question."""

    @abstractmethod
    def shown(self, value: Any) -> str:
        """An answer as text."""

    def repeated(self, answer: Any) -> str:
        """Line that repeats a reader's answer."""
        return say("guessed", answer=self.shown(answer))

    @abstractmethod
    def comparison(self, answer: Any, measured: Any) -> str:
        """HTML that compares a reader's answer with what an experiment found."""

    @abstractmethod
    def outcome(self, measured: Any) -> str:
        """Text on what an experiment found, for somebody whose answer is not known."""


@dataclass(frozen=True)
class Number(Question):
    """A question whose answer is one number."""

    unit: str
    """Unit of the answer; empty if it has none."""
    within: float
    """Factor by which a close answer may differ."""
    why: str = ""
    """What to say with the measurement; may be empty."""

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Number:
        """Question of a table. Raises `ValueError` for a factor that is not above 1."""
        if not row["within"] > 1:
            raise ValueError(f"within = {row['within']}: the factor that counts as close is above 1")
        return cls(said(row.get("unit")), float(row["within"]), said(row.get("why")))

    @property
    def prompt(self) -> str:
        """What the reader is asked to do."""
        return say("prompt_number", unit=self.unit) if self.unit else say("prompt_number_without_unit")

    def answer(self, value: Any) -> float:
        """A reader's answer as a number. Raises `ValueError` with what to tell the reader for what is none."""
        try:
            number = answers.number(value, self.unit)
        except (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
            name = "other_unit" if "is not in" in str(error) else "no_number"
            raise ValueError(say(name, unit=self.unit)) from error
        if not math.isfinite(number):
            raise ValueError(say("no_number"))
        return number

    def measured(self, value: Any) -> float:
        """A measurement. Raises `ValueError` for one that is no finite number."""
        return _finite(value)

    def shown(self, value: float) -> str:
        """A number with the unit."""
        return f"{figures(value)}{'' if self.unit in ('', '%') else ' '}{self.unit}"

    def verdict(self, answer: float, measured: float) -> tuple[bool, str]:
        """Whether an answer is close, and a sentence that says so."""
        if answer == measured:
            return True, say("exact")
        direction = "too_low" if answer < measured else "too_high"
        if answer * measured <= 0:
            return False, say(f"{direction}_plainly")
        factor = max(answer / measured, measured / answer)
        if factor <= self.within:
            return True, say("close", within=figures(self.within))
        return False, say(direction, factor=figures(factor))

    def comparison(self, answer: float, measured: float) -> str:
        """HTML that compares a reader's answer with the measurement."""
        close, sentence = self.verdict(answer, measured)
        return _beside(self.shown(answer), self.shown(measured)) + _marked(close, sentence) + _paragraph(self.why)

    def outcome(self, measured: float) -> str:
        """Text that says the measurement to somebody whose answer is not known."""
        return "\n".join(filter(None, [say("measured_line", answer=self.shown(measured)), self.why]))


@dataclass(frozen=True)
class Choice(Question):
    """A question whose answer is one of several texts."""

    texts: dict[str, str]
    """Text of each choice, by name."""
    whys: dict[str, str]
    """For each wrong choice why it is tempting and what it forgets, for the right one why it is right."""

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Choice:
        """Question of a table. Raises `ValueError` for fewer than two choices, and for one that is not whole or occurs twice."""
        rows = row["choices"]
        for one in rows:
            if wrong := sorted(CHOICE_KEYS ^ set(one)):
                raise ValueError(f"choice {one.get('name')!r} has missing or unknown keys: {', '.join(wrong)}")
        texts = {one["name"]: said({key: one[key] for key in ("en", *LANGUAGES)}) for one in rows}
        if len(rows) < 2 or len(texts) < len(rows) or len({*texts.values()}) < len(rows):
            raise ValueError("a choice needs two or more rows, each with a name and a text of its own")
        return cls(texts, {one["name"]: said(one["why"]) for one in rows})

    @property
    def prompt(self) -> str:
        """What the reader is asked to do, and the choices."""
        return "\n".join([say("prompt_choice"), *(f"- {text}" for text in self.texts.values())])

    def answer(self, value: Any) -> str:
        """A reader's answer: the name of a choice. Raises `ValueError` with what to tell the reader for anything else."""
        if not isinstance(value, str) or value not in self.texts:
            raise ValueError(say("choose_first"))
        return value

    def measured(self, value: Any) -> str:
        """The right choice. Raises `ValueError` for a name that is none."""
        if value not in self.texts:
            raise ValueError(f"no choice {value!r}" + (suggest(str(value), self.texts) or f": there are {', '.join(self.texts)}"))
        return value

    def shown(self, value: str) -> str:
        """Text of a choice."""
        return self.texts[value].rstrip(".。")

    def comparison(self, answer: str, measured: str) -> str:
        """HTML that says why a reader's answer is right, or why it is wrong and which one is right."""
        page = _beside(self.shown(answer), self.shown(measured)) + _marked(answer == measured, self.whys[answer])
        return page if answer == measured else page + _marked(True, self._line("right_choice", measured)[2:])

    def outcome(self, measured: str) -> str:
        """Text that says about each choice why it is wrong or right to somebody whose answer is not known."""
        return "\n".join(self._line("right_choice" if name == measured else "wrong_choice", name) for name in self.texts)

    def _line(self, line: str, name: str) -> str:
        return say(line, choice=self.shown(name), why=self.whys[name])


@dataclass(frozen=True)
class Curve(Question):
    """A question whose answer is a curve, by its heights at given positions."""

    x: tuple[float, ...]
    x_label: str
    y_label: str
    low: float
    high: float
    why: str = ""

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Curve:
        """Question of a table. Raises `ValueError` for positions that do not rise, and for an axis without a length."""
        x = tuple(map(_finite, row["x"]))
        if len(x) < 2 or list(x) != sorted({*x}) or not row["low"] < row["high"]:
            raise ValueError("a curve needs two or more rising positions x, and low below high")
        return cls(x, said(row["x_label"]), said(row["y_label"]), float(row["low"]), float(row["high"]), said(row.get("why")))

    @property
    def prompt(self) -> str:
        """What the reader is asked to do."""
        return say("prompt_curve", x=self.x_label, y=self.y_label)

    def answer(self, value: Any) -> list[float]:
        """A reader's answer, a height for each position. Raises `ValueError` for anything else."""
        return self.measured(value)

    def measured(self, value: Any) -> list[float]:
        """A measured curve. Raises `ValueError` unless it has one finite number for each position."""
        heights = [_finite(height) for height in value]
        if len(heights) != len(self.x):
            raise ValueError(f"{len(heights)} heights: the curve has {len(self.x)} positions")
        return heights

    def shown(self, value: Iterable[float]) -> str:
        """Heights of a curve, in the order of the positions."""
        return say("comma").join(map(figures, value))

    def repeated(self, answer: Any) -> str:
        """Line that says that there is an answer; the picture shows it."""
        return say("curve_drawn")

    def sketch(self, answer: Sequence[float], measured: Sequence[float] | None = None) -> str:
        """SVG of a reader's curve, beside the measured one if that is given."""
        curves = [Drawn(say("curve_guessed"), answer, dashed=True)]
        curves += [Drawn(say("curve_measured"), measured)] if measured is not None else []
        points = say("separator").join(say("curve_points", name=curve.name, points=self.shown(curve.y)) for curve in curves)
        alt = say("curve_of", x=self.x_label, y=self.y_label, curves=points)
        return sketch(self.x, curves, self.x_label, self.y_label, (self.low, self.high), alt)

    def comparison(self, answer: Sequence[float], measured: Sequence[float]) -> str:
        """HTML of both curves in one picture."""
        return self.sketch(answer, measured) + _paragraph(self.why)

    def outcome(self, measured: Sequence[float]) -> str:
        """Text of the measured curve for somebody whose answer is not known."""
        places = say("comma").join(map(figures, self.x))
        line = say("measured_curve", x=self.x_label, y=self.y_label, places=places, values=self.shown(measured))
        return "\n".join(filter(None, [line, self.why]))


def figures(value: float) -> str:
    """A number as text, with three significant figures.

    >>> figures(62), figures(0.2345), figures(1234.5), figures(16384)
    ('62', '0.234', '1,234', '16,384')
    """
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_html(text: str) -> str:
    """HTML of a text, in which backticks enclose code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text)).replace("\n", "<br>")


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no finite number")
    return number


def _paragraph(text: str) -> str:
    return f"<p>{as_html(text)}</p>" if text else ""


def _marked(good: bool, text: str) -> str:
    return _paragraph(f"{'✓' if good else '✗'} {text}")


def _beside(answer: str, measured: str) -> str:
    lines = say("guessed", answer=f"{answer}"), say("measured", answer=f"{measured}")
    return f"<p><b>{as_html(lines[0])}</b><br><b>{as_html(lines[1])}</b></p>"
