"""Pages for a browser from the executed course, in every language, with a map, contents and search. They need no network.

They are our own rather than a documentation generator's: the lessons' links, alternatives for pictures and formulas, playable outputs
and two languages would each need a plugin or a patch, and the search has to work from a folder that no server serves.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import os
import re
import textwrap
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePosixPath
from string import Template

from ..system import files
from . import markup
from .editions import LANGUAGES
from .links import Folder
from .overview import Lesson

SITE = Path(__file__).parent / "site"
"""Template, style and script of the pages, and their words in each language."""
THUMBNAIL = (360, 240)
"""Most pixels of a lesson's picture on the start page: width, height."""


@cache
def words(language: str) -> dict[str, str]:
    """Words around the lessons in a language."""
    return tomllib.loads((SITE / "words.toml").read_text(encoding="utf-8"))[language]


def write(folder: Path, lessons: list[Lesson], summary: str) -> Path:
    """Write pages for every lesson in every language, for the files they link to, and a start page in each; returns the English one."""
    return _Site(folder, lessons, summary).write()


class _Site:
    """Folder of pages that is being written."""

    def __init__(self, folder: Path, lessons: list[Lesson], summary: str) -> None:
        self.folder, self.summary = folder, summary
        self.files = Folder(lessons[0].path.parent, {".ipynb": ".html", ".md": ".html"})
        self.lessons = {"en": lessons}
        """Lessons by language; English ones where there is no translation."""
        for language in LANGUAGES:
            translations = [lesson.translated(language) for lesson in lessons]
            if any(translations):
                self.lessons[language] = [there or lesson for there, lesson in zip(translations, lessons, strict=True)]
        self.sections: dict[str, list[list[str]]] = {language: [] for language in self.lessons}
        """Rows of the search by language: page, heading, address, text."""

    def write(self) -> Path:
        """Write everything; returns the start page."""
        for lesson in [lesson for edition in self.lessons.values() for lesson in edition]:
            self.files.add(lesson.path)
        for language in self.lessons:
            self.files.add(self._glossary(language))
        self.files.follow(self._write_file)
        for language in self.lessons:
            self._write_start(language)
            rows = json.dumps(self.sections[language], ensure_ascii=False, separators=(",", ":"))
            files.write(self.folder / "site" / f"search.{language}.js", f"SEARCH = {rows}\n")
        for name in ("style.css", "script.js"):
            files.write(self.folder / "site" / name, (SITE / name).read_bytes())
        return self.folder / "index.html"

    def _write_file(self, file: Path, path: PurePosixPath) -> None:
        import nbformat

        if file.suffix not in self.files.suffixes:
            files.write(self.folder / path, file.read_bytes())
            return
        language = self._language(file)
        lesson = next((lesson for lesson in self.lessons[language] if lesson.path == file), None)
        relative = _root(path)

        def relinked(text: str) -> str:
            return self.files.relinked(text, file)

        if file.suffix == ".md":
            text = file.read_text(encoding="utf-8")
            body = markup.prose(relinked(text))
        else:
            notebook = lesson.notebook if lesson else nbformat.read(file, as_version=4)
            made = markup.pieces(notebook, relinked=relinked, address=lambda *picture: relative + self._picture(*picture))
            body = "\n".join(f'<div class="{piece.kind}">{piece.html}</div>' for piece in made)
        self._write_page(path, language, body, file)

    def _write_start(self, language: str) -> None:
        lessons, said = self.lessons[language], words(language)
        path = PurePosixPath("index.html" if language == "en" else f"{language}/index.html")
        cards = "\n".join(self._card(lesson, language, path) for lesson in lessons)
        body = (
            f"<h1>{said['course']}</h1>\n<p>{said['intro']}</p>\n{self._map(language, path)}\n"
            f'<ol class="lessons">{cards}</ol>\n<p class="summary">{html.escape(self.summary)}</p>'
        )
        self._write_page(path, language, body)

    def _write_page(self, path: PurePosixPath, language: str, body: str, file: Path | None = None) -> None:
        found = markup.headings(body)
        title = markup.plain(found[0][2]) if found else (words(language)["course"] if file is None else file.stem)
        if file is not None:
            self.sections[language] += _sections(body, title, path.as_posix())
        fill = {
            **words(language),
            "language": language,
            "title": html.escape(title),
            "root": _root(path),
            "home": self._start(language, path),
            "switch": self._switch(language, path, file),
            "sidebar": self._sidebar(language, path, file, found),
            "body": body,
            "neighbours": self._neighbours(language, path, file),
        }
        files.write(self.folder / path, Template((SITE / "page.html").read_text(encoding="utf-8")).substitute(fill))

    # parts of a page

    def _card(self, lesson: Lesson, language: str, path: PurePosixPath) -> str:
        """A lesson on the start page: picture, title, times, question, what it is for, and whether it ran."""
        said, address = words(language), self._to(lesson.path, path)
        english = self._english(lesson)
        thumbnail = self._thumbnail(lesson)
        picture = (
            f'<a href="{address}" tabindex="-1"><img src="{_root(path)}{thumbnail}" alt="" loading="lazy"></a>' if thumbnail else "<i></i>"
        )
        times = [said["took"].format(seconds=f"{lesson.seconds:.0f}")] if lesson.seconds else []
        if english.minutes:
            times.insert(0, said["times"].format(read=_halves(english.minutes[0]), run=_halves(english.minutes[1])))
        result = [f'<b class="passed">{said["passed"]}</b>'] if lesson.seconds else []
        if lesson.error is not None:
            shown = html.escape(textwrap.shorten(lesson.error, 200, placeholder=" …"))
            result = [f'<b class="failed">{said["failed"]}</b>: <code>{shown}</code>']
        before = [self._lesson(name, language) for name in english.builds_on]
        links = " ".join(f'<a href="{self._to(one.path, path)}">{one.path.stem[:2]}</a>' for one in before if one)
        facts = [*times, *result, *([f"{said['builds_on']} {links}"] if links else [])]
        lines = [
            f'<h2><a href="{address}">{lesson.path.stem[:2]} {_text(lesson.title)}</a></h2>',
            f'<p class="question">{said["question"]} {_text(lesson.question)}</p>' if lesson.question else "",
            f"<p>{said['after']}{_text(lesson.idea)}</p>" if lesson.idea else "",
            f'<p class="times">{" · ".join(facts)}</p>',
        ]
        return f'<li id="{lesson.path.stem[:2]}">{picture}<div>{"".join(lines)}</div></li>'

    def _map(self, language: str, path: PurePosixPath) -> str:
        """Drawing of the lessons in a row, each joined to those it builds on."""
        lessons, step = self.lessons[language], 100
        place = {self._english(lesson).path.name: step // 2 + index * step for index, lesson in enumerate(lessons)}
        pairs = [
            (place[before], x) for name, x in place.items() for before in self._english(self._named(name)).builds_on if before in place
        ]
        top = 26 + max((0.23 * (x - before) for before, x in pairs if x - before > step), default=0)
        lines = [
            f'<path d="M{before} {top} C{before} {top - 0.3 * (x - before):.0f} {x} {top - 0.3 * (x - before):.0f} {x} {top}"/>'
            if x - before > step else f'<path d="M{before} {top} H{x}"/>'
            for before, x in pairs
        ]  # fmt: skip
        nodes = []
        for lesson, x in zip(lessons, place.values(), strict=True):
            title = re.split("[:：]", lesson.title.replace("`", ""))[0]
            label = textwrap.wrap(title, 14) if title.isascii() else textwrap.wrap(title, 7)
            rows = "".join(f'<tspan x="{x}" dy="14">{html.escape(row)}</tspan>' for row in label[:4])
            nodes.append(
                f'<a href="{self._to(lesson.path, path)}"><circle cx="{x}" cy="{top}" r="17"/>'
                f'<text x="{x}" y="{top + 5}" class="number">{lesson.path.stem[:2]}</text><text x="{x}" y="{top + 24}">{rows}</text></a>'
            )
        size = f"0 0 {step * len(lessons)} {top + 84:.0f}"
        opening = f'<svg viewBox="{size}" role="group" aria-label="{words(language)["map"]}">'
        return f'<div class="map">{opening}{"".join(lines + nodes)}</svg></div>'

    def _sidebar(self, language: str, path: PurePosixPath, file: Path | None, found: Iterable[tuple[int, str, str]]) -> str:
        """Lessons and glossary, and below the page's own line its sections."""
        rows = []
        for lesson in self.lessons[language]:
            label = f"<span>{lesson.path.stem[:2]}</span> {_text(lesson.title)}"
            rows.append(
                (
                    lesson.path,
                    label + (f' <small lang="en">{words("en")["name"]}</small>' if self._language(lesson.path) != language else ""),
                )
            )
        rows.append((self._glossary(language), words(language)["glossary"]))
        lines = []
        for target, label in rows:
            if target not in self.files.paths:
                continue
            here = ' aria-current="page"' if target == file else ""
            below = "".join(f'<li><a href="#{name}">{text}</a></li>' for level, name, text in found if level == 2) if here else ""
            lines.append(f'<li><a href="{self._to(target, path)}"{here}>{label}</a>' + (f"<ol>{below}</ol>" if below else "") + "</li>")
        return f"<ol>{''.join(lines)}</ol>"

    def _switch(self, language: str, path: PurePosixPath, file: Path | None) -> str:
        """Links to the page in the other languages, or to their start pages."""
        links = []
        for other in self.lessons:
            if other != language:
                there = self._counterpart(file, other) if file else None
                address = self._to(there, path) if there in self.files.paths and there else self._start(other, path)
                links.append(f'<a class="language" href="{address}" lang="{other}" hreflang="{other}">{words(other)["name"]}</a>')
        return " ".join(links)

    def _neighbours(self, language: str, path: PurePosixPath, file: Path | None) -> str:
        """Links to the lessons before and after."""
        order = self.lessons[language]
        index = next((index for index, lesson in enumerate(order) if lesson.path == file), None)
        if index is None:
            return ""
        before = [f'<a rel="prev" href="{self._to(one.path, path)}">← {_text(one.title)}</a>' for one in order[max(0, index - 1) : index]]
        after = [f'<a rel="next" href="{self._to(one.path, path)}">{_text(one.title)} →</a>' for one in order[index + 1 : index + 2]]
        return " ".join(before + after)

    # files and addresses

    def _language(self, file: Path) -> str:
        """Language of a file of the course."""
        folder = file.parent.name
        return folder if folder in self.lessons and file.parent.parent == self.files.notebooks else "en"

    def _english(self, lesson: Lesson) -> Lesson:
        return self._named(lesson.path.name)

    def _named(self, name: str) -> Lesson:
        return next(lesson for lesson in self.lessons["en"] if lesson.path.name == name)

    def _lesson(self, name: str, language: str) -> Lesson | None:
        return next((lesson for lesson in self.lessons[language] if lesson.path.name == name), None)

    def _glossary(self, language: str) -> Path:
        return self.files.notebooks / ("" if language == "en" else language) / "glossary.md"

    def _counterpart(self, file: Path, language: str) -> Path:
        """The same page in another language; it need not exist."""
        name = file.name
        if file.is_relative_to(self.files.notebooks):
            return self.files.notebooks / ("" if language == "en" else language) / name
        return file

    def _start(self, language: str, path: PurePosixPath) -> str:
        return _root(path) + ("" if language == "en" else f"{language}/") + "index.html"

    def _to(self, file: Path, path: PurePosixPath) -> str:
        """Address of a file's page from the page at `path`."""
        return PurePosixPath(os.path.relpath(self.files.path(file) or "", path.parent)).as_posix()

    def _picture(self, content: bytes, ending: str) -> str:
        """Write a picture, once, and return its address from the folder."""
        name = f"figures/{hashlib.sha256(content).hexdigest()[:12]}{ending}"
        if not (self.folder / name).exists():
            files.write(self.folder / name, content)
        return name

    def _thumbnail(self, lesson: Lesson) -> str | None:
        """Address of a small copy of the lesson's first picture; None without pictures."""
        from PIL import Image

        shown: list[tuple[bytes, str]] = []
        for _ in markup.pieces(lesson.notebook, address=lambda *picture: shown.append(picture) or ""):
            if shown:
                picture = Image.open(io.BytesIO(shown[0][0])).convert("RGB")
                picture.thumbnail(THUMBNAIL)
                file = io.BytesIO()
                picture.save(file, "PNG", optimize=True)
                return self._picture(file.getvalue(), ".png")
        return None


def _sections(body: str, title: str, address: str) -> list[list[str]]:
    """Rows of the search for a page: one for each heading."""
    rows = []
    for part in re.split(r"(?=<h[123]\b)", body):
        found = markup.headings(part)
        heading, place = (markup.plain(found[0][2]), f"#{found[0][1]}") if found else ("", "")
        if text := markup.plain(part):
            rows.append([title, "" if heading == title else heading, address + place, text])
    return rows


def _root(path: PurePosixPath) -> str:
    """Way from a page to the folder of all pages."""
    return "../" * (len(path.parts) - 1)


def _text(line: str) -> str:
    """HTML of a line of Markdown, without its links."""
    code = markup.prose(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line)).strip()
    return code.removeprefix("<p>").removesuffix("</p>")


def _halves(minutes: float) -> str:
    """Minutes as lessons write them: 12, 1½, ½."""
    return (f"{minutes:.0f}" if minutes % 1 == 0 else f"{int(minutes) or ''}½") if minutes * 2 % 1 == 0 else f"{minutes:.1f}"
