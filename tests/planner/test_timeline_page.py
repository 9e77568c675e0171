"""The timeline's page: at every moment it says what Python says, whatever is chosen, for everybody, from a file alone."""

import itertools
import re

import pytest

import sdnb
from sdnb import __main__
from sdnb.memory import GIB, MIB
from sdnb.planner import page as pages
from sdnb.planner import timeline_page
from sdnb.planner.playback import CATEGORIES, KINDS, Playback, cell
from sdnb.planner.timeline_page import OPTIONS, Variant, recorded

from .conftest import CONTRASTS, UNNAMED, in_a_browser
from .test_playback import traced

VARIANTS = [Variant(**dict(zip(OPTIONS, options, strict=True))) for options in itertools.product(*OPTIONS.values())]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("timeline") / "page.html"
    assert __main__.main(["timeline", "--html", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("timeline") / "own.html"
    path.write_text(sdnb.timeline(traced(True, steps=2)).page(), encoding="utf-8")
    return path


# without a browser


def test_the_page_is_small_and_asks_nobody(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.encode()) < 10**6
    assert re.findall(r"\b(?:src|href)=|@import|url\(|fetch\(|https?://", text) == []


def test_every_word_is_said_and_has_both_languages():
    texts = pages.texts("timeline_page")
    for name, row in texts.items():
        assert list(row) == list(pages.LANGUAGES), name
        assert {*re.findall(r"\{\w+\}", row["en"])} == {*re.findall(r"\{\w+\}", row["zh"])}, name
    script = "".join((pages.FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in ("page", "timeline_page"))
    content = "".join((pages.FOLDER / f"{name}.html").read_text(encoding="utf-8") for name in ("page", "timeline_page"))
    families = {*re.findall(r"say\(`([\w.]+)\.\$\{", script)}
    used = {*re.findall(r'"([\w.]+)"', script), *re.findall(r'data-say="(\w+)"', content), "noscript"}
    assert {name for name in texts if name not in used and name.rpartition(".")[0] not in families} == set()
    for key in re.findall(r'say\("([\w.]+)"', script):
        assert key in texts
    assert all(f"kind.{kind}" in texts for kind in KINDS)
    assert all(f"category.{name}" in texts for name in CATEGORIES)


def test_where_nobody_can_play_the_curves_are_drawn():
    shown = sdnb.timeline(fused=True)
    _, metadata = shown._repr_png_()
    assert metadata["alt"] == repr(shown)
    assert repr(shown).startswith("AdamW: checkpointing saves nothing on its own, 1.3 GiB beside a fused backward. Peaks: no switch")
    peaks = {
        switches: recorded(Variant(checkpointing=switches[0], fused=switches[1])) for switches in itertools.product((False, True), repeat=2)
    }
    names = {(False, False): "no switch", (True, False): "gradient checkpointing", (False, True): "fused backward", (True, True): "both"}
    for switches, name in names.items():
        played = peaks[switches]
        parts = played.by_category(played.peak)
        where = "the optimizer's step" if played.peak_kind == "optimizer" else "backward"
        size = f"{name}: peak in {where}: {played.peak_bytes / GIB:.2f} GiB, of which weights {parts['weights'] / GIB:.2f}, optimizer state"
        assert size in repr(shown)
    assert "Adafactor: checkpointing saves 0.2 GiB on its own, " in repr(sdnb.timeline(optimizer="Adafactor"))
    assert shown._repr_html_() is None


def test_of_a_trace_the_blocks_are_drawn_where_nobody_can_play():
    shown = sdnb.timeline(traced())
    held = shown.playback.by_block(shown.playback.peak)["mid_block.0"]
    assert repr(shown).startswith("At the peak, in the optimizer's step, ")
    assert f"mid_block.0 {sum(held.values()) / MIB:,.2f} MiB: weights" in repr(shown)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.key)
def test_state_belongs_to_the_step_itself_with_every_switch(variant):
    played = recorded(variant)
    state = played.by_block(played.peak)[""]["optimizer state"]
    assert state == played.by_category(played.peak)["optimizer state"] > 0


def test_in_a_notebook_the_page_is_shown(monkeypatch):
    for name in ("attended", "plays"):
        monkeypatch.setattr(pages, name, lambda: True)
    shown = sdnb.timeline(traced(), language="zh")
    assert shown._repr_html_().startswith('<iframe title="')
    assert shown._repr_png_() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(model="sdxl"), "model='sdxl': there are sd15, tiny"),
        (dict(optimiser="AdamW"), r"no setting 'optimiser' \(did you mean 'optimizer'\?\)"),
        (dict(language="de"), "language='de': there are en, zh"),
        (dict(trace=None, fused=2), "fused=2: there are False, True"),
    ],
)
def test_what_there_is_not_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sdnb.timeline(**arguments)


def test_a_trace_is_one_step():
    with pytest.raises(ValueError, match="fused: a trace is one step"):
        sdnb.timeline(traced(), fused=True)


# in a browser

SUMS = """() => step.frames.map((_, frame) => ({
    sums: step.sums[frame], kind: kindAt(frame), module: moduleAt(frame), cell: cellOf(moduleAt(frame)),
    largest: largest(frame).map(row => row[0]),
}))"""


def same(page, played):
    """Compare all frames of what the page plays with Python's."""
    there, modules = page.evaluate(SUMS), played.names.modules.list()
    assert len(there) == len(played.frames)
    assert page.evaluate("step.peak") == played.peak
    for frame, row in enumerate(there):
        kind, module, _ = played.frames[frame]
        assert row["sums"] == list(played.by_category(frame).values())
        assert (row["kind"], row["module"], row["cell"]) == (KINDS[kind], modules[module], cell(modules[module]))
        assert row["largest"] == [size for size, *_ in played.largest(frame)]


@in_a_browser
def test_every_switch_plays_its_step(opened):
    page = opened()
    for variant in VARIANTS:
        page.locator("#choice-model").select_option(variant.model)
        page.locator("#choice-optimizer").select_option(variant.optimizer)
        page.locator("#choice-checkpointing").set_checked(variant.checkpointing)
        page.locator("#choice-fused").set_checked(variant.fused)
        played = recorded(variant)
        assert page.evaluate("step.totals") == played.totals.tolist(), variant.key
        page.locator("#to-peak").click()
        total = page.evaluate("sized(step.totals[now])")
        assert f"{total} alive: this is the peak." in page.locator("#where").inner_text()
        assert total in page.locator("#peak-title").inner_text()
        shown = page.locator("body").inner_text()
        assert not re.search(r"undefined|NaN|Infinity|\{", shown), variant.key


@in_a_browser
def test_the_page_says_what_python_says(opened, own):
    same(opened(), recorded(Variant()))
    trace = traced(True, steps=2)
    page = opened(path=own)
    same(page, Playback.of(trace))
    assert page.evaluate("step.totals[step.peak]") == trace.peak_bytes
    assert page.locator("#choices").is_hidden()


@in_a_browser
def test_blocks_hold_what_python_says(opened):
    page, played = opened(), recorded(Variant())
    for frame in (0, played.peak // 2, played.peak, len(played.frames) - 1):
        held = {name: sum(sizes.values()) for name, sizes in played.by_block(frame).items()}
        page.evaluate("frame => go(frame)", frame)
        names = page.locator(".block").evaluate_all("all => all.map(one => one.dataset.block)")
        said = dict(zip(names, page.locator(".block .size").all_text_contents(), strict=True))
        for name, size in said.items():
            number, _, unit = size.partition(" ")
            scale = {"": 1, "KiB": 1024, "MiB": MIB, "GiB": 1024 * MIB}[unit]
            assert float(number or 0) * scale == pytest.approx(held[name], abs=0.06 * scale if unit != "KiB" else scale), name


@in_a_browser
def test_it_is_used_by_keyboard(opened):
    page = opened()
    controls = ["language", *(f"choice-{name}" for name in OPTIONS), "time", "back", "play", "on", "to-peak"]
    for name in controls:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", name
    page.locator("#time").focus()
    page.keyboard.press("Home")
    assert page.evaluate("now") == 0
    page.keyboard.press("ArrowRight")
    assert page.evaluate("now") == 1
    blocks = []
    for _ in range(4):
        page.keyboard.press("PageUp")
        blocks.append(page.evaluate("blockOf(cellOf(moduleAt(now)))"))
    assert "down_blocks.0" in blocks
    page.keyboard.press("PageDown")
    assert page.evaluate("blockOf(cellOf(moduleAt(now)))") == blocks[-2]
    page.keyboard.press("p")
    assert page.evaluate("now === step.peak")
    page.keyboard.press("End")
    assert page.evaluate("now === step.frames.length - 1")
    page.keyboard.press(" ")
    assert page.locator("#play").inner_text() == "Pause"
    page.keyboard.press("ArrowRight")
    assert page.locator("#play").inner_text() == "Play"


@in_a_browser
def test_a_pointer_drags_through_the_step(opened):
    page = opened()
    box = page.locator("#plot").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.up()
    assert page.evaluate("now / (step.frames.length - 1)") == pytest.approx(0.5, abs=0.01)


@in_a_browser
def test_a_screen_reader_is_told_what_is_where(opened):
    page, played = opened(), recorded(Variant())
    page.locator("#time").focus()
    page.keyboard.press("Home")
    for _ in range(5):
        page.keyboard.press("PageUp")
    page.wait_for_function("document.getElementById('live').textContent.startsWith('Forward, ')")
    frame = page.evaluate("now")
    kind, module, _ = played.frames[frame]
    place = cell(played.names.modules.list()[module])
    assert KINDS[kind] == "forward"
    told = page.locator("#live").text_content()
    assert told.startswith(f"Forward, {place}. ")
    assert f"activations {played.by_category(frame)['activations'] / MIB:.1f} MiB" in told
    assert "The largest tensor is " in told
    value = page.locator("#time").get_attribute("aria-valuetext")
    assert value == f"Forward, {place}. {played.totals[frame] / 2**30:.2f} GiB"


@in_a_browser
def test_switching_shows_the_peak_before(opened):
    page = opened()
    assert page.locator("#before").is_hidden()
    page.locator("#choice-fused").check()
    assert page.locator("#before").inner_text() == "peak before: 16.80 GiB"
    assert page.evaluate("now === step.peak")


@in_a_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_the_marks_lie_at_the_height_of_their_numbers(opened, width):
    page = opened(viewport=dict(width=width, height=1000))
    before = recorded(Variant()).totals.max()
    page.locator("#choice-fused").check()
    plot, line, mark = (page.locator(name).bounding_box() for name in ("#plot", "#before", "#peak"))
    border = 1  # below the plot; the bytes are counted from above it
    room = plot["height"] - border
    assert line["y"] == pytest.approx(plot["y"] + room * (1 - before / page.evaluate("axis()")), abs=2.5)
    peak = plot["y"] + room * (1 - page.evaluate("step.totals[step.peak] / axis()"))
    assert mark["y"] + mark["height"] == pytest.approx(peak, abs=2.5)


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(opened, scheme):
    page = opened(color_scheme=scheme)
    page.locator("#choice-checkpointing").check()
    for kind in KINDS:
        page.evaluate("kind => go(step.frames.findIndex((_, frame) => kindAt(frame) === kind && moduleAt(frame)) || 0)", kind)
        assert page.evaluate(CONTRASTS) == [], kind
    assert page.evaluate(UNNAMED) == []
    assert page.locator("#peak-title").inner_text() == "The peak is 16.80 GiB, in the optimizer's step"
    page.locator("#language").select_option("zh")
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    assert not re.search(r"\b(?:peak|alive|weights|backward)\b", page.locator("main").inner_text())
    page.locator("#language").select_option("en")
    assert re.search("[一-鿿]", page.locator("main").inner_text().replace("中文", "")) is None


@in_a_browser
@pytest.mark.parametrize("width", [320, 768, 1920])
def test_it_fits_every_width(opened, own, width):
    for path in (None, own):
        page = opened(**({"path": path} if path else {}), viewport=dict(width=width, height=800), has_touch=True)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("#plot").bounding_box()["width"] > width / 4


def test_the_command_writes_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["timeline", "--html", "--language", "zh"]) == 0
    assert capsys.readouterr().out == "sdnb-timeline.html: open it in a browser\n"
    assert 'lang="zh' in (tmp_path / "sdnb-timeline.html").read_text(encoding="utf-8")
    assert timeline_page.timeline(language="zh").language == "zh"
