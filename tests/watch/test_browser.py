"""The first lesson in JupyterLab in a real browser: the picture moves while it trains, Stop stops it, and what it leaves is saved."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
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


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that reads no settings of this machine's user, and serves the lessons, the first one shortened."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "course")
    shorten(home / "course" / "00_start_here.ipynb")
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
def page(lab):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport=dict(width=1280, height=1000))
        page.goto(f"{lab.address}/lab/tree/00_start_here.ipynb?token=test")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        page.wait_for_selector(IDLE, timeout=60_000, state="attached")
        # the status bar says so only once the kernel is connected: before that JupyterLab would ask which one to take
        page.get_by_text(re.compile(r"\| Idle$")).first.wait_for(timeout=60_000)
        no_news = page.get_by_role("button", name="No", exact=True)
        if no_news.count():
            no_news.click()
        yield page
        picture(page, "last")
        browser.close()


def menu(page, name, *items):
    page.get_by_role("menuitem", name=name, exact=True).first.click()
    for item in items:
        entry = page.locator(".lm-Menu-itemLabel:visible").get_by_text(item, exact=True).first
        entry.wait_for(timeout=20_000)
        entry.hover()
        if item == items[-1]:
            entry.click()


def picture(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def watched(page, seconds):
    """The addresses that the first panel's picture had, one after the other, until the run is over."""
    seen, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        image = page.locator(".sdnb-live img.jupyter-widgets").first
        try:
            source = image.get_attribute("src", timeout=500) if image.count() else None
        except Exception:  # the widget went away in between
            source = None
        if source is None and seen:
            return seen
        if source and source not in seen:
            seen.append(source)
            if len(seen) == 3:
                image.scroll_into_view_if_needed()
                time.sleep(1.0)
                picture(page, "live-light")
                page.locator(".sdnb-live").screenshot(path=SCREENSHOTS / "live.png")
        time.sleep(0.1)
    raise AssertionError(f"not over after {seconds} seconds; the picture had changed {len(seen)} times")


def stored(lab, name):
    """The outputs of the training cell as they are in the file."""
    notebook = json.loads((lab.folder / name).read_text(encoding="utf-8"))
    return next(cell["outputs"] for cell in notebook["cells"] if "sdnb.live(" in "".join(cell["source"]) and cell["cell_type"] == "code")


def test_the_first_lesson(lab, page):
    menu(page, "Run", "Run All Cells")
    page.wait_for_selector(".sdnb-live", timeout=120_000)
    page.locator(".sdnb-live").scroll_into_view_if_needed()
    assert len(watched(page, 180)) > 2  # how many depends on how long a frame takes: they keep to a share of the time
    training = page.locator(".jp-CodeCell", has_text="sdnb.live(").first
    training.locator(".jp-OutputArea-output img").wait_for(timeout=30_000)
    training.locator(".jp-OutputArea").evaluate("output => output.scrollIntoView()")
    picture(page, "left-light")
    page.wait_for_selector(IDLE, timeout=120_000, state="attached")

    # a second run, in the dark theme and a narrow window
    menu(page, "Settings", "Theme", "JupyterLab Dark")
    page.set_viewport_size(dict(width=760, height=1000))
    training.locator(".cm-content").click()
    menu(page, "Run", "Run Selected Cell")
    page.wait_for_selector(".sdnb-live", timeout=60_000)
    stop = page.locator(".sdnb-live button").first
    stop.wait_for(state="visible", timeout=60_000)
    time.sleep(4)
    page.locator(".sdnb-live").evaluate("box => box.scrollIntoView()")
    picture(page, "live-dark-narrow")
    stop.click()
    page.locator(".sdnb-live").wait_for(state="detached", timeout=30_000)
    training.locator(".jp-OutputArea").evaluate("output => output.scrollIntoView()")
    picture(page, "left-dark-narrow")

    menu(page, "File", "Save Notebook")
    page.wait_for_selector(".jp-mod-current:not(.jp-mod-dirty)", timeout=30_000, state="attached")
    time.sleep(1)
    (output,) = [output for output in stored(lab, "00_start_here.ipynb") if "data" in output]
    alt = output["metadata"]["image/png"]["alt"]
    assert 0 < int(re.search(r"Stopped on request after (\d+) of 200 steps", alt)[1]) < 200
    assert "application/vnd.jupyter.widget-view+json" not in output["data"]

    page.reload()
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    shown = page.locator(".jp-CodeCell", has_text="sdnb.live(").first.locator(".jp-OutputArea-output img")
    shown.wait_for(timeout=60_000)
    assert shown.get_attribute("src").endswith("".join(output["data"]["image/png"].split())[-200:])
    shown.evaluate("image => image.scrollIntoView()")
    picture(page, "reloaded")
