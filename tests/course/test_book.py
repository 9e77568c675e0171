"""The course as an EPUB and as a PDF."""

import re
import shutil
import zipfile
from xml.etree import ElementTree

import pytest

from sdnb.__main__ import main
from sdnb.course import book, execution

in_a_browser = pytest.mark.skipif(not any(map(shutil.which, book.BROWSERS)), reason="needs a Chromium or Chrome on the PATH")


@pytest.fixture
def epub(repository):
    english, chinese = book.write_epub(repository / "out", execution.stored())
    assert (english.name, chinese.name) == ("sdnb-course.epub", "sdnb-course.zh.epub")
    return english


def test_an_epub_is_a_whole_book(epub):
    archive = zipfile.ZipFile(epub)
    first = archive.infolist()[0]
    assert (first.filename, first.compress_type, archive.read("mimetype")) == ("mimetype", zipfile.ZIP_STORED, b"application/epub+zip")
    names = {name.removeprefix("book/") for name in archive.namelist() if name.startswith("book/")}
    package = ElementTree.fromstring(archive.read("book/book.opf"))
    listed = {item.get("href") for item in package.iter("{http://www.idpf.org/2007/opf}item")}
    assert listed == names - {"book.opf"}
    assert {"00_first.xhtml", "01_second.xhtml", "glossary.xhtml", "nav.xhtml", "book.css"} < listed
    for name in names:
        if name.endswith(".xhtml"):
            page = ElementTree.fromstring(archive.read(f"book/{name}"))  # which is well-formed
            for element in page.iter():
                target = element.get("href") or element.get("src") or "https:"
                assert target.startswith(("https:", "data:")) or target in names, (name, target)
    text = archive.read("book/00_first.xhtml").decode()
    assert 'alt="two &quot;lines&quot;"' in text or "alt='two \"lines\"'" in text
    assert '<a href="glossary.xhtml">words</a>, nothing,' in text
    assert "Solution" in text


def test_the_same_course_makes_the_same_epub(epub, repository):
    before = epub.read_bytes()
    book.write_epub(repository / "out", execution.stored())
    assert epub.read_bytes() == before


@in_a_browser
def test_a_browser_prints_the_pdf(repository):
    english, chinese = book.write_pdf(repository / "out", execution.stored())
    assert english.read_bytes().startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", english.read_bytes())) >= 4  # title, contents, two lessons
    assert chinese.name == "sdnb-course.zh.pdf"


def test_without_a_browser_the_way_out_is_named_before_anything_runs(repository, monkeypatch, capsys):
    monkeypatch.setattr(book.shutil, "which", lambda name: None)
    monkeypatch.setattr(execution, "executed", lambda *arguments, **kwargs: pytest.fail("it ran"))
    assert main(["course", "--to", "pdf", "--out", str(repository / "out")]) == 2
    assert "install one, or take --to epub" in capsys.readouterr().err
