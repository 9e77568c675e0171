"""Guesses in JupyterLab in a real browser: answered before and after the measurement, reloaded, without a kernel, on a dark page.

Screenshots go to build/screenshots.
"""

import json
import re

import pytest

from ..watch.test_browser import (  # noqa: F401  # browser and lab are fixtures
    CHROMIUM,
    IDLE,
    browser,
    cell,
    lab,
    menu,
    opened,
    picture,
    reload,
)
from .test_guesses import ROWS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium or Chrome on the PATH"),
]
MEASURED = {"a": "62", "b": '"colour"', "c": "[1, 0.5, 0.1]"}
ANSWERED = {"a": "Too low, by a factor of 1.55.", "b": "The words are new to it.", "c": ""}
KINDS = "abc"


@pytest.fixture
def notebook(lab, tmp_path, request):  # noqa: F811
    """Name of a notebook with a guess of each kind, each followed by its measurement."""
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "00.toml").write_text(ROWS, encoding="utf-8")
    cells = [
        "import pathlib, shutil, sdnb\nfrom sdnb.course import languages\n"
        f"texts = pathlib.Path({str(texts)!r})\n"
        "_ = shutil.copy(languages.FOLDER / 'course.toml', texts)\nlanguages.FOLDER = texts"
    ]
    for kind, measured in MEASURED.items():
        cells += [f'guess = sdnb.guess("00.{kind}")', f"print('{kind} is measured')\nguess.reveal({measured})"]
    rows = [
        dict(cell_type="code", id=f"cell{i}", metadata={}, source=code, outputs=[], execution_count=None) for i, code in enumerate(cells)
    ]
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
    path = lab.folder / f"{request.node.name}.ipynb"
    path.write_text(json.dumps(dict(cells=rows, metadata=kernel, nbformat=4, nbformat_minor=5)), encoding="utf-8")
    (lab.folder / ".sdnb-progress.json").unlink(missing_ok=True)
    return path.name


def alone(name):
    """Address of a notebook without the tabs of earlier tests, whose kernels might be asked instead of its own."""
    return f"{name}?token=test&reset&rest="


def seen(locator):
    """Those that are shown: beside each widget its text is hidden."""
    return locator.locator("visible=true")


def question(page, kind):
    return cell(page, f'sdnb.guess("00.{kind}")')


def result(page, kind):
    return cell(page, f"{kind} is measured").locator(".jp-OutputArea")


def run_all(page):
    menu(page, "Run", "Run All Cells")
    seen(result(page, "c").get_by_text("not written down")).wait_for(timeout=120_000)
    page.wait_for_selector(IDLE, timeout=120_000, state="attached")


def answer(page, kind):
    """Answer a question, the number by the keyboard alone."""
    widgets = question(page, kind).locator(".sdnb-guess")
    widgets.wait_for(timeout=120_000)
    widgets.scroll_into_view_if_needed()
    if kind == "a":
        widgets.get_by_label("Your guess, in steps").fill("40")
        page.keyboard.press("Enter")
        page.wait_for_timeout(5_000)
        if seen(result(page, kind).get_by_text("not written down")).count():  # a busy front end may lose the key
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
        return
    if kind == "b":
        widgets.get_by_label("In ink.").check()
    else:
        sliders = widgets.get_by_role("slider")
        assert sliders.count() == 3
        sliders.first.focus()
        for _ in range(10):
            page.keyboard.press("ArrowUp")
        widgets.locator("svg[aria-label*='0.7, 0.5, 0.5']").wait_for(timeout=120_000)
    widgets.get_by_role("button", name="That is my guess").click()


def compared(page, kind):
    """Wait for the comparison, and return its text."""
    shown = result(page, kind)
    drawn = shown.locator("svg[aria-label*='measured: 1, 0.5, 0.1']")
    seen(drawn if kind == "c" else shown.get_by_text(ANSWERED[kind])).first.wait_for(timeout=120_000)
    return shown.inner_text()


def save(page):
    menu(page, "File", "Save Notebook")
    page.wait_for_selector(".jp-mod-current:not(.jp-mod-dirty)", timeout=120_000, state="attached")


def saved_outputs(lab, name):  # noqa: F811
    cells = json.loads((lab.folder / name).read_text(encoding="utf-8"))["cells"]
    return [output for one in cells for output in one["outputs"]]


@pytest.mark.long  # it waits for keys and for the kernel, and has lost a key on a busy machine
def test_before_the_measurement_and_after_it(browser, lab, notebook):  # noqa: F811
    with opened(browser, lab, alone(notebook)) as page:
        run_all(page)
        picture(page, "guesses-waiting-light")
        for kind in KINDS:  # the measurements wait
            answer(page, kind)
            assert "not written down" not in compared(page, kind)
        picture(page, "guesses-light")

        # once more, in the dark theme and a narrow window: the answers are there before the measurement
        menu(page, "Settings", "Theme", "JupyterLab Dark")
        page.set_viewport_size(dict(width=700, height=1000))
        menu(page, "Kernel", "Restart Kernel and Run All Cells…")
        page.get_by_role("button", name=re.compile("Confirm")).click()
        for kind in KINDS:
            compared(page, kind)
        assert seen(page.get_by_text("not written down")).count() == 0
        picture(page, "guesses-dark-narrow")
        box = result(page, "a").locator(".sdnb-guess-result")
        colours = box.evaluate("box => [getComputedStyle(box).color, getComputedStyle(box).backgroundColor]")
        assert min(map(int, re.findall(r"\d+", colours[0])[:3])) > 150, colours  # light on the page's own dark ground
        assert colours[1] == "rgba(0, 0, 0, 0)"

        save(page)
        assert not any("widget-view" in kind for output in saved_outputs(lab, notebook) for kind in output.get("data", {}))
        reload(page)
        for kind in KINDS:
            compared(page, kind)
        picture(page, "guesses-reloaded")
        menu(page, "Settings", "Theme", "JupyterLab Light")


def test_after_the_page_was_reloaded(browser, lab, notebook):  # noqa: F811
    """Widgets come back while the kernel lives, and comparisons find their place."""
    with opened(browser, lab, alone(notebook)) as page:
        run_all(page)
        save(page)
        reload(page)
        for kind in KINDS:
            answer(page, kind)
            compared(page, kind)


def test_without_its_kernel_a_question_is_text(browser, lab, notebook):  # noqa: F811
    with opened(browser, lab, alone(notebook)) as page:
        run_all(page)
        save(page)
        menu(page, "Kernel", "Restart Kernel…")
        page.get_by_role("button", name=re.compile("Confirm")).click()
        page.wait_for_selector(IDLE, timeout=120_000, state="attached")
        reload(page)
        for kind, text in (("a", "Write down a number, in steps"), ("b", "In colour, with"), ("c", "Draw the curve")):
            question(page, kind).locator(".sdnb-guess-still").get_by_text(text).wait_for(timeout=120_000)
            result(page, kind).locator(".sdnb-guess-still").get_by_text("not written down").wait_for(timeout=120_000)
        gone = page.get_by_text("model not found")
        gone.first.wait_for(state="attached", timeout=120_000)
        assert not any(one.is_visible() for one in gone.all())
        picture(page, "guesses-without-kernel")
