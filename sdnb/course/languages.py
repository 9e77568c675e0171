"""The course's language, and its texts: what guesses and exercises say to the reader, in `texts/`, one TOML file for each lesson.

`texts/course.toml` has the lines that every lesson shares. Each text is a table of languages, `{ en = "steps", zh = "步" }`, or a plain
string where it is the same in all of them, such as `"GiB"`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .. import plots

LANGUAGES = {"zh": "*[English]({english}) · 本页只翻译文字；代码和图表与英文版相同。*"}
"""Line below the first cell of each translated notebook, by the language's folder."""
FOLDER = Path(__file__).parent / "texts"
VARIABLE = "SDNB_LANGUAGE"
"""Environment variable that sets the language where no notebook does."""
_spoken: list[str] = []


def language() -> str:
    """Language of the course in this process: `en`, or a key of `LANGUAGES`.

    The first of these that says one: `speak`, which the set-up cell of a translated notebook calls; the environment variable
    `SDNB_LANGUAGE`; and a working directory that has a language's name, such as `notebooks/zh`.
    """
    folder = Path.cwd().name
    said = [*_spoken, os.environ.get(VARIABLE, ""), folder if folder in LANGUAGES else ""]
    return next((name for name in said if name in ("en", *LANGUAGES)), "en")


def speak(language: str) -> None:
    """Set the language of what guesses and exercises say, and let figures be written in it.

    Raises `ValueError` for a language that the course does not have.
    """
    if language not in (known := ("en", *LANGUAGES)):
        raise ValueError(f"the course does not speak {language!r}: there are {', '.join(known)}")
    _spoken[:] = [language]
    if language == "zh":
        plots.write_chinese()


def lesson(number: str) -> dict[str, Any]:
    """Texts of a lesson, such as `"02"`: its tables `guess` and `exercise`, empty for a lesson without a file."""
    return _read(FOLDER / f"{number}.toml")


@cache
def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def numbers() -> list[str]:
    """Numbers of the lessons that have texts, such as `"02"`, in order."""
    return sorted(path.stem for path in FOLDER.glob("[0-9][0-9].toml"))


def said(text: str | Mapping[str, str] | None) -> str:
    """A text in the course's language, or in English where it is not translated; empty for None."""
    if text is None or isinstance(text, str):
        return text or ""
    return text.get(language()) or text["en"]


def say(line: str, /, **values: object) -> str:
    """A line of `course.toml`, with the values put in for the names in braces. Raises `KeyError` for a line that it does not have."""
    return said(lesson("course")[line]).format(**values)


def exercise(name: str) -> dict[str, Any]:
    """Texts of an exercise, such as `"02.1"`. Raises `KeyError` for one that has none."""
    number, _, key = name.partition(".")
    return lesson(number)["exercise"][key]


def reply(exercise_name: str, text: str, /, **values: object) -> str:
    """A text that the check of an exercise returns, from its table `says`, with the values put in for the names in braces.

    Raises `KeyError` for a text that is not there.
    """
    return said(exercise(exercise_name)["says"][text]).format(**values)


def joined(*sentences: str) -> str:
    """Sentences one after the other, with a space between them where the language has one."""
    return ("" if language() == "zh" else " ").join(filter(None, sentences))
