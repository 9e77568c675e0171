"""Slides from the lessons, and turning them."""

import pytest

from sdnb.__main__ import main
from sdnb.course import execution, slides

from .test_pages import CHROMIUM, in_a_browser


def test_slides_are_headings_questions_and_figures(repository):
    first, second = execution.stored()
    made = list(slides.slides(first, "You "))
    assert [kind for kind, _ in made] == ["title", "figure", "question", "heading"]
    assert "You know SD 1.5 by | heart." in made[0][1]
    assert "What is <code>a</code>?" in made[2][1]
    assert not any("secret" in body or "import sdnb" in body for _, body in made)  # no solution, no code
    assert [kind for kind, _ in slides.slides(second)] == ["title"]


def test_each_lesson_is_one_file_that_needs_nothing(repository, capsys):
    assert main(["course", "--stored", "--to", "slides", "--out", str(repository / "out")]) == 0
    files = sorted(path.relative_to(repository / "out").as_posix() for path in (repository / "out").rglob("*.html"))
    assert files == ["00_first.slides.html", "01_second.slides.html", "zh/00_first.slides.html"]
    text = (repository / "out" / files[0]).read_text(encoding="utf-8")
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "2 as stored" in capsys.readouterr().out


@in_a_browser
def test_the_arrow_keys_turn_the_slides(repository):
    playwright = pytest.importorskip("playwright.sync_api")
    address = slides.write(repository / "out", execution.stored())[0].as_uri()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(viewport=dict(width=1280, height=720), offline=True).new_page()
        page.goto(address)
        for keys, number in (("ArrowLeft", 1), ("ArrowRight", 2), ("Space", 3), ("End", 4), ("ArrowRight", 4), ("ArrowUp", 3), ("Home", 1)):
            page.keyboard.press(keys)
            assert page.locator("section:visible").count() == 1
            assert page.locator("output").inner_text().startswith(f"{number} / 4")
        page.goto(f"{address}#3")
        assert page.locator("section:visible").get_attribute("class") == "question now"
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        browser.close()
