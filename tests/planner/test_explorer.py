"""The explorer's page: it says what Python says, whatever is chosen, for everybody, in both languages, from a file alone."""

import itertools
import json
import random
import re

import pytest

import sdnb
from sdnb import __main__
from sdnb.planner import explorer, page, parts
from sdnb.planner.parts import OPTIONS, Choice
from sdnb.system import CARDS, VERDICTS

from .conftest import CONTRASTS, UNNAMED, in_a_browser


def pairs():
    """Choices with every two options together."""
    for first, second in itertools.combinations(OPTIONS, 2):
        for one, two in itertools.product(OPTIONS[first], OPTIONS[second]):
            yield Choice(**{first: one, second: two})


def draws(count):
    """Choices of anything, the same each time."""
    generator = random.Random(0)
    return [Choice(**{name: generator.choice(options) for name, options in OPTIONS.items()}) for _ in range(count)]


def as_dict(choice):
    return {name: getattr(choice, name) for name in OPTIONS}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    assert __main__.main(["explore", "--html", str(path)]) == 0
    return path


# without a browser


def test_the_page_is_small_and_asks_nobody(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.encode()) < 3 * 10**6
    assert re.findall(r"\b(?:src|href)=|@import|url\(|fetch\(|https?://", text) == []


def test_every_word_has_both_languages_and_the_same_names():
    texts = explorer.texts()
    for name, row in texts.items():
        assert list(row) == list(page.LANGUAGES), name
        assert {*re.findall(r"\{\w+\}", row["en"])} == {*re.findall(r"\{\w+\}", row["zh"])}, name
    script = "".join((page.FOLDER / f"{file}.js").read_text(encoding="utf-8") for file in ("page", "explorer"))
    content = "".join((page.FOLDER / f"{file}.html").read_text(encoding="utf-8") for file in ("page", "explorer"))
    asked = {*re.findall(r'say\("([\w.]+)"', script), *re.findall(r'data-say="(\w+)"', content)}
    families = {*re.findall(r"say\(`([\w.]+)\.\$\{", script)}
    assert asked <= set(texts)
    for family in families | {"model", "method"}:
        assert any(name.startswith(f"{family}.") for name in texts), family
    used = {*asked, *re.findall(r'"([\w.]+)"', script), "noscript"}
    assert {name for name in texts if name not in used and name.rpartition(".")[0] not in families | {*OPTIONS}} == set()


def test_every_refusal_is_in_both_languages():
    for words in {*json.loads(parts.FILE.read_text(encoding="utf-8"))["refusals"].values()}:
        said = explorer.refusal(words)
        assert words.startswith(said["en"].removesuffix("."))
        assert all(re.search("[一-鿿]", sentence) for sentence in said["zh"].split("。") if sentence), said["zh"]


def test_where_nobody_can_play_the_first_choice_is_drawn():
    shown = sdnb.explore("rtx4090", method="full", recompute=True)
    assert shown.choice == Choice(method="full", recompute=True)
    assert "512 pixels" in repr(shown)
    assert "fits on RTX 4090" in repr(shown)
    _, metadata = shown._repr_png_()
    assert metadata["alt"] == repr(shown)
    assert shown._repr_html_() is None


def test_in_a_notebook_the_page_is_shown(monkeypatch):
    for name in ("attended", "plays"):
        monkeypatch.setattr(page, name, lambda: True)
    shown = sdnb.explore(language="zh")._repr_html_()
    assert shown.startswith('<iframe title="')
    assert "</script>" not in shown
    assert sdnb.explore()._repr_png_() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(model="sdlx"), r"model='sdlx' \(did you mean 'sdxl'\?\): there are sd15, sdxl"),
        (dict(batch=2), r"no setting 'batch' \(did you mean 'batch_size'\?\)"),
        (dict(rank=3), "rank=3.*: there are 1, 2, 4"),
        (dict(language="de"), "language='de': there are en, zh"),
        (dict(gpu="rtx9999"), "no card 'rtx9999'"),
    ],
)
def test_what_there_is_not_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sdnb.explore(**arguments)


def test_a_refused_choice_is_told_in_words():
    choice, refusal = next((choice, refusal) for choice in pairs() if (refusal := parts.estimate(choice).refusal))
    assert repr(sdnb.explore(**as_dict(choice))) == refusal
    assert sdnb.explore(**as_dict(choice))._repr_png_() is None


def test_the_command_writes_a_file_and_says_where_it_cannot(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["explore", "--html", "--language", "zh", "--gpu", "6GB"]) == 0
    assert capsys.readouterr().out == "sdnb-explorer.html: open it in a browser\n"
    assert 'lang="zh' in (tmp_path / "sdnb-explorer.html").read_text(encoding="utf-8")
    (tmp_path / "file").write_text("")
    assert __main__.main(["explore", "--html", "file/page.html"]) == 2
    assert "file" in capsys.readouterr().err
    assert __main__.main(["explore", "--html", "--language", "de"]) == 2
    assert "there are en, zh" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        __main__.main(["explore"])
    assert "--html" in capsys.readouterr().err


# in a browser


NUMBERS = """choices => choices.map(choice => {
    const memory = estimate(choice);
    if (memory.refusal) return memory;
    return { ...memory, command: command(choice), verdicts: DATA.cards.map(({ usable }) => verdict(memory, usable)) };
})"""


@in_a_browser
def test_the_page_says_what_python_says(opened):
    page, cards = opened(), sorted(CARDS.values(), key=lambda card: card.usable_bytes)
    drawn = draws(300)
    choices = [*drawn, *pairs()]
    shown = page.evaluate(NUMBERS, [as_dict(choice) for choice in choices])
    for place, (choice, there) in enumerate(zip(choices, shown, strict=True)):
        memory = parts.estimate(choice)
        assert bool(memory.refusal) == ("refusal" in there), choice
        if memory.refusal:
            assert there["refusal"] == explorer.refusal(memory.refusal)
            continue
        assert there["peak"] == pytest.approx(memory.peak_bytes, abs=16), choice
        assert there["reserved"] == pytest.approx(memory.reserved_bytes, abs=64), choice
        assert there["categories"] == pytest.approx(memory.categories, abs=2), choice
        names = dict(zip(("fits", "tight", "none"), VERDICTS, strict=True))
        assert [names[word] for word in there["verdicts"]] == [card.verdict(memory.peak_bytes, memory.reserved_bytes) for card in cards]
        if place < len(drawn):
            assert there["command"] == explorer.command(choice), choice


@in_a_browser
def test_every_move_is_answered(opened):
    page, cards = opened(), list(CARDS)
    moves = [as_dict(choice) | {"card": cards[place % len(cards)]} for place, choice in enumerate(draws(60))]
    texts = page.evaluate("moves => moves.map(one => { move(one); return [$('status').textContent, $('changes').textContent]; })", moves)
    for said, (status, changes) in zip(moves, texts, strict=True):
        refusal = parts.estimate(Choice(**{name: said[name] for name in OPTIONS})).refusal
        assert (explorer.refusal(refusal)["en"] if refusal else CARDS[said["card"]].name) in status
        assert changes or status.startswith("✓"), status
        assert not re.search(r"undefined|NaN|Infinity|\{", status + changes), (status, changes)


@in_a_browser
def test_what_it_offers_fits(opened):
    page = opened("#card=rtx4060&trainer=sd-scripts&resolution=1024&batch_size=4")
    assert page.locator("#status").inner_text().startswith("✗ Does not fit on RTX 4060 8 GB")
    page.locator("#changes button").first.click()
    assert page.locator("#status").inner_text().startswith("✓ Fits on RTX 4060 8 GB")
    assert page.locator("#choice-recompute").is_checked()
    assert "--gradient_checkpointing" in page.locator("#command").inner_text()
    assert page.locator("#cards [aria-current]").inner_text().startswith("RTX 4060 8 GB")


@in_a_browser
def test_a_card_without_bf16_says_so(opened):
    page = opened("#card=t4")
    assert page.locator("#status strong").inner_text() == "✓ Fits on Tesla T4, which has no bf16"
    assert "emulates it slowly: choose fp16" in page.locator("#status").inner_text()
    rows = [row for row in page.locator("#cards li").all_inner_texts() if "no bf16" in row]
    assert len(rows) == sum(not card.has_bf16 for card in CARDS.values())
    page.locator("#choice-precision").select_option("fp16")
    assert "bf16" not in page.locator("#answer").inner_text() + page.locator("#status").inner_text()


@in_a_browser
def test_it_is_used_by_keyboard(opened):
    page = opened("#trainer=sd-scripts")
    fields = [f"choice-{name}" for name in page.evaluate("FIELDS")]
    for name in ("language", "copy", *fields, "command"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", name
    page.locator("#choice-batch_size").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#choice-batch_size").get_attribute("aria-valuetext") == "2"
    assert "--train_batch_size=2" in page.locator("#command").inner_text()


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(opened, scheme):
    page = opened("#card=t4&model=sdxl&resolution=1024&language=zh", color_scheme=scheme)
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(CONTRASTS) == []
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    assert not re.search(r"\b(?:fits?|missing|spare|reserves)\b", page.locator("main").inner_text())
    page.locator("#language").select_option("en")
    assert re.search("[一-鿿]", page.locator("main").inner_text().replace("中文", "")) is None


@in_a_browser
@pytest.mark.parametrize("fragment", ["#model=sdxl&resolution=1024", "#precision=full+bf16"])
def test_it_fits_a_phone(opened, fragment):
    page = opened(fragment, viewport=dict(width=320, height=640), has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
