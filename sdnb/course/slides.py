"""Slides from each executed lesson: its headings, questions and figures, for a teacher who explains the rest.

They are a page of our own rather than reveal.js, which would have to be shipped and kept up to date for turning pages by the arrow keys.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from ..system import files
from . import markup
from .book import editions_of
from .overview import Lesson
from .pages import SITE, words

LINES = 9
"""Most lines of an output that is shown on a slide."""
_QUESTION = re.compile(r"^\*\*(?:Guess|Prediction|Question|猜一猜|预测|问题)[^*]*\*\*.*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r"^\$\$.*?\$\$$", re.MULTILINE | re.DOTALL)


def write(folder: Path, lessons: list[Lesson]) -> list[Path]:
    """Write a file of slides for each lesson and language, which needs nothing else; returns the files."""
    style, script = ((SITE / f"slides.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    written = []
    for language, edition in editions_of(lessons).items():
        for lesson in edition:
            if language != "en" and lesson in lessons:
                continue  # not translated
            shown = "\n".join(f'<section class="{kind}">{body}</section>' for kind, body in slides(lesson, words(language)["after"]))
            title = html.escape(markup.plain(markup.prose(lesson.title)))
            page = (
                f'<!doctype html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
                f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
                f"<style>\n{style}</style>\n</head>\n"
                f'<body data-help="{words(language)["keys"]}">\n{shown}\n<script>\n{script}</script>\n</body>\n</html>\n'
            )
            place = folder if language == "en" else folder / language
            written.append(files.write(place / f"{lesson.path.stem}.slides.html", page))
    return written


def slides(lesson: Lesson, after: str = "") -> Iterator[tuple[str, str]]:
    """Slides of a lesson: (kind, HTML). Kinds are `title`, `heading`, `question`, `figure` and `output`; `after` goes before the idea."""
    yield "title", markup.prose(f"# {lesson.title}\n\n{after}{lesson.idea}")
    heading = ""
    for piece in markup.pieces(lesson.notebook, relinked=_unlinked, plays=False):
        if piece.kind == "prose":
            text = _unlinked(re.sub(r"<details>.*?</details>", "", piece.source, flags=re.DOTALL))
            for part in re.split(r"(?=^##+ )", text, flags=re.MULTILINE):
                if match := re.match(r"##+ (.+)\n*", part):
                    heading = match[1]
                    yield "heading", markup.prose(f"## {heading}\n\n{_first(part[match.end() :])}")
                for question in _QUESTION.findall(part):
                    yield "question", markup.prose(question)
                for formula in _FORMULA.findall(part):
                    yield "figure", markup.prose(f"### {heading}\n\n{formula}")
        elif piece.kind == "figure":
            yield "figure", (markup.prose(f"### {heading}") if heading else "") + piece.html
        elif piece.kind == "text" and heading and 1 < len(piece.source.strip().splitlines()) <= LINES:
            yield "output", markup.prose(f"### {heading}") + piece.html


def _unlinked(text: str) -> str:
    """Markdown without its links."""
    return re.sub(r"(?<!!)\[([^\]]*)\]\([^)]*\)", r"\1", text)


def _first(text: str) -> str:
    """List at the beginning of Markdown, or else its first sentences, up to two."""
    block = text.strip().partition("\n\n")[0]
    if re.match(r"[-*\d]", block) and not block.startswith("**"):
        return block
    if block.startswith(("**Guess", "**猜一猜", "|", "```", "$$", "<")):
        return ""
    sentences = re.split(r"(?<=[.!?:])\s+(?=[A-Z`*])|(?<=[。！？])", " ".join(block.split()))
    return " ".join(sentences[:2])
