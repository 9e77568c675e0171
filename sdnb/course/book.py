"""The executed course as a book: an EPUB, or a PDF that a browser prints, in each language."""

from __future__ import annotations

import hashlib
import html
import os
import re
import shutil
import subprocess
import tempfile
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..system import files
from . import markup
from .editions import LANGUAGES
from .links import LINK
from .overview import Lesson
from .pages import SITE, words

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge", "microsoft-edge")
"""Programs that can print a page to a PDF, by the names under which systems have them."""
DATE = "2026-01-01T00:00:00Z"
"""Date in every EPUB: the same course makes the same file."""


@dataclass(frozen=True)
class Chapter:
    """One lesson, or the glossary."""

    name: str
    """Name within the book, such as `02_where_memory_goes`."""
    title: str
    """HTML of its first heading."""
    body: str
    """HTML of all of it."""


def write_epub(folder: Path, lessons: list[Lesson]) -> list[Path]:
    """Write the course as an EPUB for each language; returns the files."""
    return [_write_epub(folder, edition, language) for language, edition in editions_of(lessons).items()]


def write_pdf(folder: Path, lessons: list[Lesson]) -> list[Path]:
    """Write the course as a PDF for each language; returns the files. Raises `FileNotFoundError` without a browser."""
    return [_write_pdf(folder, edition, language) for language, edition in editions_of(lessons).items()]


def browser() -> str:
    """Program that prints. Raises `FileNotFoundError` if there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise FileNotFoundError("a PDF is printed by Chromium, Chrome or Edge, and none is on the PATH: install one, or take --to epub")
    return found


def editions_of(lessons: list[Lesson]) -> dict[str, list[Lesson]]:
    """Lessons by language; English ones where there is no translation."""
    editions = {"en": lessons}
    for language in LANGUAGES:
        translations = [lesson.translated(language) for lesson in lessons]
        if any(translations):
            editions[language] = [there or lesson for there, lesson in zip(translations, lessons, strict=True)]
    return editions


def _chapters(lessons: list[Lesson], language: str, address: Callable[[bytes, str], str], link: str) -> list[Chapter]:
    """Lessons and glossary. `link` is how one chapter finds another, such as `{}.xhtml`."""
    home = next(lesson.path.parent for lesson in lessons if lesson.path.parent.name not in LANGUAGES or language == "en")
    glossary = home / ("" if language == "en" else language) / "glossary.md"
    names = {lesson.path.stem for lesson in lessons} | ({"glossary"} if glossary.exists() else set())

    def relinked(text: str) -> str:
        def relink(match: re.Match) -> str:
            if match["code"] or re.match(r"[a-z]+:", match["target"]):
                return match[0]
            name = Path(match["target"]).stem
            return f"[{match['text']}]({link.format(name)})" if name in names else match["text"]

        return LINK.sub(relink, text)

    chapters = []
    for lesson in lessons:
        made = markup.pieces(lesson.notebook, relinked=relinked, address=address, plays=False)
        parts = [f'<div class="{piece.kind}">{piece.html}</div>' for piece in made if not _is_set_up(piece)]
        chapters.append(_chapter(lesson.path.stem, "".join(parts)))
    if glossary.exists():
        chapters.append(_chapter("glossary", markup.prose(relinked(glossary.read_text(encoding="utf-8")))))
    return chapters


def _is_set_up(piece: markup.Piece) -> bool:
    return piece.kind == "code" and piece.html.startswith("<details>")


def _chapter(name: str, body: str) -> Chapter:
    """Chapter as XHTML, without the headings' anchors, whose names may occur twice in a book."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(body, "html.parser")
    for anchor in soup.select(".anchor-link"):
        anchor.decompose()
    for heading in soup.select("h1, h2, h3, h4"):
        del heading["id"]
    for fold in soup.select("details"):
        fold["open"] = "open"  # paper cannot be clicked
    first = soup.find("h1")
    number = name[:2] + " " if name[:2].isdigit() else ""
    return Chapter(name, number + (first.decode_contents() if first else name), soup.decode(formatter="minimal"))


def _name(language: str) -> str:
    return "sdnb-course" + ("" if language == "en" else f".{language}")


def _write_pdf(folder: Path, lessons: list[Lesson], language: str) -> Path:
    program, said = browser(), words(language)
    chapters = _chapters(lessons, language, markup.inline, "#{}")
    contents = "".join(f'<li><a href="#{chapter.name}">{chapter.title}</a></li>' for chapter in chapters)
    body = "".join(f'<section id="{chapter.name}">{chapter.body}</section>' for chapter in chapters)
    style = (SITE / "book.css").read_text(encoding="utf-8")
    page = (
        f'<!doctype html><html lang="{language}"><head><meta charset="utf-8"><title>sdnb: {said["course"]}</title>'
        f"<style>{style}</style></head>"
        f'<body><div class="title"><h1>sdnb</h1><p>{said["course"]} · {__version__}</p></div>'
        f"<nav><h1>{said['contents']}</h1><ol>{contents}</ol></nav>{body}</body></html>"
    )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_name(language)}.pdf"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        (source := Path(place) / "book.html").write_text(page, encoding="utf-8")
        printed = Path(place) / "book.pdf"
        command = [program, "--headless", "--disable-gpu", f"--user-data-dir={place}/profile", "--no-first-run", "--no-pdf-header-footer"]
        command += ["--generate-pdf-document-outline", f"--print-to-pdf={printed}", source.as_uri()]
        command[1:1] = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if not printed.exists():
            raise OSError(f"{program} printed no PDF: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
        return files.write(target, printed.read_bytes())


# EPUB

_CONTAINER = (
    '<?xml version="1.0"?><container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="book/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)
_NAVIGATION = ' properties="nav"'
_TYPES = {".xhtml": "application/xhtml+xml", ".css": "text/css", ".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}


def _write_epub(folder: Path, lessons: list[Lesson], language: str) -> Path:
    said = words(language)
    contents: dict[str, bytes] = {"book.css": (SITE / "book.css").read_bytes()}

    def address(picture: bytes, ending: str) -> str:
        name = f"figures/{hashlib.sha256(picture).hexdigest()[:12]}{ending}"
        contents[name] = picture
        return name

    chapters = _chapters(lessons, language, address, "{}.xhtml")
    for chapter in chapters:
        contents[f"{chapter.name}.xhtml"] = _xhtml(language, markup.plain(chapter.title), chapter.body)
    entries = "".join(f'<li><a href="{chapter.name}.xhtml">{_plain(chapter.title)}</a></li>' for chapter in chapters)
    navigation = f'<nav epub:type="toc" id="toc"><h1>{said["contents"]}</h1><ol>{entries}</ol></nav>'
    contents["nav.xhtml"] = _xhtml(language, said["contents"], navigation)
    items = "".join(
        f'<item id="i{index}" href="{name}" media-type="{_TYPES[Path(name).suffix]}"{_NAVIGATION if name == "nav.xhtml" else ""}/>'
        for index, name in enumerate(contents)
    )
    order = {name: f"i{index}" for index, name in enumerate(contents)}
    spine = "".join(f'<itemref idref="{order[name]}"/>' for name in ("nav.xhtml", *(f"{chapter.name}.xhtml" for chapter in chapters)))
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"sdnb {__version__} {language}")
    package = (
        '<?xml version="1.0" encoding="utf-8"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id">'
        '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f'<dc:identifier id="id">urn:uuid:{identity}</dc:identifier><dc:title>sdnb: {said["course"]}</dc:title>'
        f"<dc:language>{language}</dc:language><dc:creator>sdnb maintainers</dc:creator>"
        f'<meta property="dcterms:modified">{DATE}</meta></metadata>'
        f"<manifest>{items}</manifest><spine>{spine}</spine></package>"
    )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_name(language)}.epub"
    with tempfile.SpooledTemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            first = zipfile.ZipInfo("mimetype")  # stored first and plain, so that the file can be recognized
            archive.writestr(first, "application/epub+zip", zipfile.ZIP_STORED)
            for name, content in {"META-INF/container.xml": _CONTAINER, "book/book.opf": package}.items():
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
            for name, content in contents.items():
                archive.writestr(zipfile.ZipInfo(f"book/{name}"), content, zipfile.ZIP_DEFLATED)
        file.seek(0)
        return files.write(target, file.read())


def _plain(title: str) -> str:
    return html.escape(markup.plain(title), quote=False)


def _xhtml(language: str, title: str, body: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html>'
        f'<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops" lang="{language}" xml:lang="{language}">'
        f'<head><title>{html.escape(title, quote=False)}</title><link rel="stylesheet" href="book.css" type="text/css"/></head>'
        f"<body>{body}</body></html>"
    ).encode()
