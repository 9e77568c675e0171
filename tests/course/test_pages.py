"""Pages for a browser: complete, in both languages, without a network; search, themes and a phone's width in a browser."""

import html
import re
import shutil
from urllib.parse import unquote

import pytest

import sdnb
from sdnb.course import execution, lessons

from .conftest import code, prose

nbformat = pytest.importorskip("nbformat")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium or Chrome on the PATH")


def hrefs(page):
    return [unquote(html.unescape(target)) for target in re.findall(r'(?:href|src)="([^"]*)"', page.read_text(encoding="utf-8"))]


def ids(page):
    return [unquote(html.unescape(name)) for name in re.findall(r'\bid="([^"]*)"', page.read_text(encoding="utf-8"))]


def words(text):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"</(?:h2|p)>", " ", text))).split())


def test_the_start_page_lists_title_question_idea_times_and_result(shown):
    text = shown.read_text(encoding="utf-8")
    first, second = [words(row) for row in re.findall(r"<li id=.*?</li>", text, re.DOTALL)]
    assert first.startswith("00 The first: a=1 It asks: Six times seven. What is a? After it you know SD 1.5 by | heart.")
    assert first.endswith("7 min to read, ½ to run · ran here in 1 s · passed")
    assert second.endswith("After it you rest. ran here in 61 s · failed: ZeroDivisionError: <b>| · Builds on 00")
    assert "1 of 2 lessons passed" in text
    assert f"sdnb {sdnb.__version__}" in text
    assert 'aria-label="Map of the course' in shown.read_text(encoding="utf-8")


def test_every_link_of_every_page_leads_somewhere(shown, repository):
    names = sorted(path.relative_to(shown.parent).as_posix() for path in shown.parent.rglob("*") if path.is_file())
    figures = [name for name in names if name.startswith("figures/")]
    assert 1 <= len(figures) <= 2  # the picture, and its thumbnail unless that is the same; both editions share them
    assert [name for name in names if name not in figures] == [
        "00_first.html", "01_second.html", "LICENSE", "README.html", "data/SOURCES.html", "docs/a.png", "glossary.html", "index.html",
        "site/script.js", "site/search.en.js", "site/search.zh.js", "site/style.css", "zh/00_first.html",
        "zh/glossary.html", "zh/index.html",
    ]  # fmt: skip
    for page in shown.parent.rglob("*.html"):
        for target in hrefs(page):
            file, _, anchor = target.partition("#")
            if not target.startswith(("https://", "data:")):
                assert not file or (page.parent / file).is_file(), (page, target)
                assert not anchor or file or anchor in ids(page), (page, target)
    first = (shown.parent / "00_first.html").read_text(encoding="utf-8")
    assert 'href="glossary.html#latent"' in first
    assert ", nothing, " in first  # a link to what is not there is none
    assert "<code>[no](link.md)</code>" in first
    assert 'href="https://x.invalid/a.md"' in first
    assert "../index.html" in hrefs(shown.parent / "data" / "SOURCES.html")


def test_pages_fetch_nothing_and_keep_text_alternatives(shown):
    for page in [*shown.parent.rglob("*.html"), *shown.parent.rglob("site/*")]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?:http|//)|@import|url\(["\']?http|import\(|fetch\(', text)
    first = (shown.parent / "00_first.html").read_text(encoding="utf-8")
    assert 'alt="two &quot;lines&quot;"' in first
    assert re.search(r'<img class="formula"[^>]* alt="\\sqrt V" src="data:image/svg', first)
    assert "<title>The first: a=1</title>" in first


def test_each_page_leads_to_its_translation_and_its_neighbours(shown):
    pages = {name: hrefs(shown.parent / name) for name in ("00_first.html", "zh/00_first.html", "01_second.html", "zh/glossary.html")}
    assert {"zh/00_first.html", "01_second.html", "#Exercise"} <= set(pages["00_first.html"])
    assert {"../00_first.html", "../01_second.html", "glossary.html"} <= set(pages["zh/00_first.html"])
    assert "zh/index.html" in pages["01_second.html"]  # which is not translated
    assert "../01_second.html" in pages["zh/glossary.html"]
    chinese = words((shown.parent / "zh" / "index.html").read_text(encoding="utf-8"))
    assert "00 第一课" in chinese
    assert "01 The second" in chinese
    assert '<html lang="zh">' in (shown.parent / "zh" / "00_first.html").read_text(encoding="utf-8")


# in a browser


@pytest.fixture
def opened(shown):
    """A function that opens a page in a browser without a network."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])

        def open_page(name, **options):
            page = browser.new_context(**{"viewport": dict(width=1280, height=900), "offline": True} | options).new_page()
            page.on("pageerror", lambda error: pytest.fail(str(error)))
            page.goto((shown.parent / name).as_uri())
            return page

        yield open_page
        browser.close()


@in_a_browser
def test_search_finds_words_of_prose_code_and_outputs_in_the_pages_language(opened):
    page = opened("data/SOURCES.html")
    for asked, found in {"secret EVERYTHING": "The first: a=1", "latent": "Words", "print(": "The first: a=1", "zero": None}.items():
        page.keyboard.press("/")
        page.fill(".search input", asked)
        rows = page.locator(".search li").all_inner_texts()
        assert rows[0].startswith(found) if found else rows == ["Nothing found"], (asked, rows)
    page.fill(".search input", "secret")
    page.keyboard.press("Enter")
    page.wait_for_url("**/00_first.html#Exercise")
    page = opened("zh/glossary.html")
    page.fill(".search input", "会背")
    assert page.locator(".search mark").all_inner_texts() == ["会背"]
    page.locator(".search a").first.click()
    page.wait_for_url("**/zh/00_first.html*")


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_systems_until_the_reader_chooses(opened, scheme):
    page = opened("00_first.html", color_scheme=scheme)
    look = "(() => getComputedStyle(document.body).backgroundColor)()"
    white, other = ("rgb(255, 255, 255)", "dark") if scheme == "light" else ("rgb(20, 24, 29)", "light")
    assert page.evaluate(look) == white
    page.click(".theme")
    assert page.evaluate(look) != white
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == other
    without = opened("00_first.html", color_scheme=scheme, java_script_enabled=False)
    assert without.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == white


@in_a_browser
def test_a_phone_needs_no_sideways_scrolling(opened):
    for name in ("index.html", "00_first.html", "zh/index.html", "glossary.html"):
        page = opened(name, viewport=dict(width=360, height=700))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        assert not page.locator("nav ol").first.is_visible()  # folded
        page.fill(".search input", "a")
        box = page.locator(".search ol").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


@in_a_browser
def test_the_explorer_plays_in_a_page(repository, monkeypatch):
    pytest.importorskip("ipykernel")
    cells = [prose("# Cards\n\nAfter this notebook you know."), code('import sdnb\nsdnb.explore("rtx4080", method="full")')]
    path = repository / "notebooks" / "00_first.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    monkeypatch.setattr(lessons, "notebooks", lambda: [path])
    (stored,) = execution.executed(1)
    assert "text/html" not in stored.notebook.cells[1].outputs[0].data  # a page in every notebook would be too much
    (lesson,) = execution.executed(1, for_pages=True)
    assert {"text/html", "image/png"} <= set(lesson.notebook.cells[1].outputs[0].data)
    start = execution.show(repository / "out", [lesson], 1.0)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(offline=True, color_scheme="dark").new_page()
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.goto(start.with_name("00_first.html").as_uri())
        frame = page.frame_locator(".page iframe")
        before = frame.locator("body").inner_text()
        picked = frame.locator("select").first
        picked.select_option(index=(picked.evaluate("select => select.selectedIndex") + 1) % picked.locator("option").count())
        assert frame.locator("body").inner_text() != before
        browser.close()
