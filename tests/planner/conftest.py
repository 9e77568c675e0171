"""Pages in a browser, for the tests of the explorer and of the timeline."""

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run".split()
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium or Chrome on the PATH")
CONTRASTS = """() => {
    const channels = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const low = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join("");
        if (!own || !element.checkVisibility()) continue;
        let behind = element;
        while (behind && (channels(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
        const colours = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        const [a, b] = colours.map(colour => light(channels(colour))).sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) low.push(own);
    }
    return low;
}"""


UNNAMED = """[...document.querySelectorAll("input, select, button")]
    .filter(one => !(one.labels?.[0] || one).textContent && !one.ariaLabel).map(one => one.id)"""


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, file):
    """Function that opens the page of the fixture `file`; no error of it goes unseen, nor anything that it asks of the network."""
    faults, contexts = [], []

    def open_page(fragment="", path=file, **options):
        contexts.append(browser.new_context(**{"viewport": dict(width=1280, height=1000), "offline": True} | options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if not request.url.startswith("file:") else None)
        page.goto(f"{path.as_uri()}{fragment}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
