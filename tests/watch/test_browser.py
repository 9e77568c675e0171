"""The live plot in JupyterLab in a real browser: the first lesson, and a run of made-up steps that is read, zoomed and reloaded.

Screenshots go to build/screenshots.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from ..conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = ROOT / "build" / "screenshots"
IDLE = ".jp-Notebook-ExecutionIndicator[data-status='idle']"
QUIET = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run".split()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium or Chrome on the PATH"),
]


def shorten(path):
    """Leave of a lesson what comes before its training and the training itself; what is drawn before is drawn in one step."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    last = next(place for place, cell in enumerate(cells) if cell["cell_type"] == "code" and "sdnb.live(" in "".join(cell["source"]))
    for cell in cells[:last]:
        cell["source"] = [line.replace("seed=1)", "seed=1, steps=1)") for line in cell["source"]]
    path.write_text(json.dumps({**notebook, "cells": cells[: last + 1]}), encoding="utf-8")


RUN = (
    """
import math, random, time
import sdnb
from PIL import Image
from sdnb.training import Step
def steps(count, seconds=0.03):
    for i in range(count):
        time.sleep(seconds)
        peaks = dict(forward=9e7, backward=1.1e8, optimizer=1e8) if i % 100 == 1 else None
        loss = 0.2 + math.exp(-3 * i / count) + random.gauss(0, 0.05)
        yield Step(i, loss, 2e-4 * min(1, i / 100), seconds, peaks=peaks, pictures=4, steps=count)
def preview():
    return [Image.new("RGB", (64, 64), colour) for colour in ("tomato", "steelblue")]
""",
    """
run = sdnb.live(steps(200), preview=preview)
for step in run:
    pass
""",
)


def made_up(path):
    """Write a notebook with a run of made-up steps."""
    cells = [
        dict(cell_type="code", id=f"cell{i}", metadata={}, source=code.strip(), outputs=[], execution_count=None)
        for i, code in enumerate(RUN)
    ]
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
    path.write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)), encoding="utf-8")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that reads no settings of this machine's user, and serves the lessons, the first one shortened."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "course")
    shorten(home / "course" / "00_start_here.ipynb")
    made_up(home / "course" / "run.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
        "IPYTHONDIR",
    )
    settings = {name: str(home / name.lower()) for name in folders}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={home / 'course'}"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=test", "--LabApp.news_url="]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(home / "log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **settings, "PYTHONPATH": str(ROOT)})
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"{address}/api?token=test", timeout=1)
                    break
                except OSError:
                    assert server.poll() is None, (home / "log").read_text()
                    time.sleep(0.5)
            yield SimpleNamespace(address=address, folder=home / "course")
        finally:
            server.terminate()
            server.wait(timeout=20)


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@contextmanager
def opened(browser, lab, name, width=1280):
    """Page with a notebook whose kernel is ready. JupyterLab's questions are answered with yes."""
    page = browser.new_page(viewport=dict(width=width, height=1000))
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{lab.address}/lab/tree/{name}?token=test&reset")  # without the tabs and widths of the test before
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.wait_for_selector(IDLE, timeout=120_000, state="attached")
    # the status bar says so only once the kernel is connected: before that JupyterLab would ask which one to take
    page.get_by_text(re.compile(r"\| Idle$")).first.wait_for(timeout=120_000)
    no_news = page.get_by_role("button", name="No", exact=True)
    if no_news.count():
        no_news.click()
    try:
        yield page
        assert errors == []
    finally:
        picture(page, "last")
        page.close()


def reload(page):
    page.reload()
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)


def menu(page, name, *items):
    page.get_by_role("menuitem", name=name, exact=True).first.click()
    for item in items:
        entry = page.locator(".lm-Menu-itemLabel:visible").get_by_text(item, exact=True).first
        entry.wait_for(timeout=120_000)
        entry.hover()
        if item == items[-1]:
            entry.click()


def picture(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def watched(page, seconds):
    """The words beside the curves, one after the other, until the run is over."""
    seen, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        words = page.evaluate("(document.querySelector('.sdnb-live:has(.sdnb-controls:not([hidden])) .sdnb-words') || {}).textContent")
        if words is None and seen:
            return seen
        if words and words not in seen:
            seen.append(words)
        time.sleep(0.05)
    raise AssertionError(f"not over after {seconds} seconds; the words had changed {len(seen)} times")


def stored(lab, name):
    """The outputs of the training cell as they are in the file."""
    notebook = json.loads((lab.folder / name).read_text(encoding="utf-8"))
    return next(cell["outputs"] for cell in notebook["cells"] if "sdnb.live(" in "".join(cell["source"]) and cell["cell_type"] == "code")


def cell(page, text):
    return page.locator(".jp-CodeCell", has_text=text).first


def run_cell(page, text):
    cell(page, text).locator(".cm-content").click()
    menu(page, "Run", "Run Selected Cell")


def plot(page):
    """The plot of the made-up run, once it has curves."""
    board = cell(page, "sdnb.live(").locator(".sdnb-live")
    board.locator("path.sdnb-curve").first.wait_for(timeout=120_000, state="attached")
    return board


def left(page):
    """What the made-up run left, once it has ended."""
    board = cell(page, "sdnb.live(").locator(".sdnb-live:has(.sdnb-controls[hidden])")
    board.wait_for(timeout=90_000)
    return board


def columns(board):
    """How many panels lie side by side."""
    return board.evaluate("b => new Set([...b.querySelectorAll('.sdnb-board')[0].children].map(p => p.getBoundingClientRect().left)).size")


def shot(board, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    board.evaluate("board => board.scrollIntoView()")
    board.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_the_first_lesson(lab, browser):
    with opened(browser, lab, "00_start_here.ipynb") as page:
        menu(page, "Run", "Run All Cells")
        training = cell(page, "sdnb.live(")
        training.locator(".sdnb-live").wait_for(timeout=120_000)
        training.locator(".sdnb-live").scroll_into_view_if_needed()
        page.wait_for_function("[...document.querySelectorAll('.sdnb-film img')].length >= 6", timeout=120_000)
        picture(page, "lesson-live")
        shot(training.locator(".sdnb-live"), "live")
        assert len(watched(page, 180)) > 2  # how many depends on how long a frame takes: they keep to a share of the time
        shot(left(page), "lesson-left")
        page.wait_for_selector(IDLE, timeout=120_000, state="attached")

        # a second run, in the dark theme and a narrow window
        theme(page, "Dark")
        page.set_viewport_size(dict(width=760, height=1000))
        run_cell(page, "sdnb.live(")
        stop = training.locator(".sdnb-stop")
        stop.wait_for(state="visible", timeout=120_000)
        time.sleep(4)
        shot(training.locator(".sdnb-live"), "lesson-live-dark-narrow")
        stop.click()
        assert "Stopped on request" in left(page).locator(".sdnb-words").inner_text()
        shot(left(page), "lesson-left-dark-narrow")

        menu(page, "File", "Save Notebook")
        page.wait_for_selector(".jp-mod-current:not(.jp-mod-dirty)", timeout=120_000, state="attached")
        time.sleep(1)
        (output,) = [output for output in stored(lab, "00_start_here.ipynb") if "data" in output]
        alt = output["metadata"]["image/png"]["alt"]
        assert 0 < int(re.search(r"Stopped on request after (\d+) of 200 steps", alt)[1]) < 200
        assert "Stopped on request" in "".join(output["data"]["text/plain"])
        assert "application/vnd.jupyter.widget-view+json" not in output["data"]

        reload(page)
        assert "Stopped on request" in left(page).locator(".sdnb-words").text_content()


def theme(page, name):
    menu(page, "Settings", "Theme", f"JupyterLab {name}")
    page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {name}']", timeout=120_000, state="attached")
    time.sleep(1)


@pytest.mark.parametrize(("width", "side_by_side"), [(1920, 2), (600, 2), (390, 1)])
def test_panels_lie_two_by_two(lab, browser, width, side_by_side):
    with opened(browser, lab, "run.ipynb", width) as page:
        if width < 700:  # there the list of files takes most of the page
            page.locator(".jp-SideBar [data-id='filebrowser']").click()
        run_cell(page, "def steps")
        run_cell(page, "sdnb.live(")
        board = plot(page)
        assert columns(board) == side_by_side
        shot(board, f"run-{width}")
        board = left(page)
        assert columns(board) == side_by_side
        shot(board, f"left-{width}")


def test_the_plot_and_the_figures_follow_the_theme(lab, browser):
    with opened(browser, lab, "run.ipynb") as page:
        theme(page, "Light")
        run_cell(page, "def steps")
        run_cell(page, "sdnb.live(")
        board, dark = plot(page), "board => board.classList.contains('sdnb-dark')"
        assert board.get_by_role("status").inner_text().startswith(("Step ", "Getting ready"))
        assert not board.evaluate(dark)
        shot(board, "run-light")
        theme(page, "Dark")
        board = left(page)
        assert board.evaluate(dark)
        shot(board, "left-dark")
        figure = "image => getComputedStyle(image).backgroundImage.slice(0, 9)"
        picture = cell(page, "sdnb.live(").locator("img[alt^='Mean']")
        assert picture.evaluate(figure) == 'url("data'
        theme(page, "Light")
        assert not board.evaluate(dark)
        assert picture.evaluate(figure) == "none"


def test_a_step_is_read_by_mouse_and_by_keyboard(lab, browser):
    with opened(browser, lab, "run.ipynb") as page:
        run_cell(page, "def steps")
        run_cell(page, "sdnb.live(")
        board = left(page)
        readout, panel = board.locator(".sdnb-readout"), board.locator("[data-panel='Loss'] .sdnb-panel-svg")
        panel.hover(position=dict(x=150, y=100))
        step = int(re.match(r"Step (\d+) ", readout.inner_text())[1])
        assert 0 < step < 199
        assert board.locator(".sdnb-tip:visible b").inner_text() == f"step {step}"
        crosses = board.locator(".sdnb-board").first.locator(".sdnb-cross")
        assert crosses.count() == 4
        told = board.locator("[data-panel='Learning rate'] .sdnb-panel-svg").get_attribute("aria-label")
        assert told == "Learning rate: 2e-4, between 0 and 2e-4."
        assert f"Learning rate: {rate(step)}" in readout.inner_text()
        assert board.locator(".sdnb-caption").inner_text() == f"drawn at step {step // 50 * 50}"
        shot(board, "hover")
        page.mouse.move(5, 5)
        assert crosses.count() == 0

        board.locator(".sdnb-board").first.focus()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert readout.inner_text().startswith("Step 2 ")
        assert f"Learning rate: {rate(2)}" in readout.inner_text()
        page.keyboard.press("End")
        assert readout.inner_text().startswith("Step 199 ")

        page.keyboard.press("+")
        assert board.get_by_role("button", name="Show all steps").is_visible()
        shot(board, "zoomed")
        page.keyboard.press("Escape")
        assert not board.get_by_role("button", name="Show all steps").is_visible()

        board.get_by_role("slider").fill("1")
        assert board.locator(".sdnb-caption").inner_text() == "drawn at step 50"


def rate(step):
    """The learning rate of the made-up run as the plot writes it."""
    digits, exponent = f"{2e-4 * min(1, step / 100):.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def test_a_reloaded_page_shows_the_run_again(lab, browser):
    with opened(browser, lab, "run.ipynb") as page:
        run_cell(page, "def steps")
        run_cell(page, "sdnb.live(")
        plot(page)
        reload(page)  # nothing was saved, so the page does not even know that there was an output
        assert "Done, 200 of 200 steps" in left(page).locator(".sdnb-words").inner_text()

        # once more, saved during the run; the run before is its ghost
        page.wait_for_selector(IDLE, timeout=120_000, state="attached")
        run_cell(page, "sdnb.live(")
        board = plot(page)
        assert board.locator(".sdnb-ghost").count() >= 2
        shot(board, "ghost")
        menu(page, "File", "Save Notebook")
        time.sleep(1)
        reload(page)
        assert "Done, 200 of 200 steps" in left(page).locator(".sdnb-words").inner_text()
        reload(page)  # what was saved is the plot during the run
        assert "Done, 200 of 200 steps" in left(page).locator(".sdnb-words").inner_text()
        assert page.get_by_text("model not found").count() == 0
        output = page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea-output")
        assert output.count() == 1
        assert output.locator("img[alt]").first.get_attribute("alt").startswith("Mean training loss")
