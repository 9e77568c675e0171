"""The translated course: it says what the English one says now, and its code is the same, apart from the line that sets the language."""

import json
import re
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest

from sdnb import __main__
from sdnb.course import editions, languages, lessons

from ..conftest import ROOT

PAGES = {language: sorted((ROOT / "notebooks" / language).glob("[0-9]*.md")) for language in editions.LANGUAGES}
LESSONS = [(language, ROOT / "notebooks" / f"{page.stem}.ipynb") for language, pages in PAGES.items() for page in pages]
TRANSLATED = [
    (language, page, english) for language in editions.LANGUAGES for english, page in editions.pages(ROOT / "notebooks", language).items()
]
each_lesson = pytest.mark.parametrize(("language", "lesson"), LESSONS, ids=lambda value: getattr(value, "stem", value))
each_page = pytest.mark.parametrize(("language", "page", "original"), TRANSLATED, ids=lambda value: getattr(value, "name", value))


def stored(lesson, language):
    return (lesson.parent / language / lesson.name).read_text(encoding="utf-8")


def cells(text, kind):
    return [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == kind]


def fences(text):
    return re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)


def unfenced(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def code_spans(text):
    return Counter(re.findall(r"`[^`\n]+`", unfenced(text)))


def links(text):
    return Counter(re.findall(r"\]\(([^)\s]+)\)", text))


def shape(text):
    """How many headings, rows of tables and points of lists it has."""
    return Counter(re.findall(r"^(?:#+ |\||- |\d+\. )", unfenced(text), re.MULTILINE))


def numbers(text):
    """All that is written in digits; 1,000 and 1000 are the same."""
    return set(re.findall(r"\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d{3})", "", text)))


def unpaired_stars(text):
    """The asterisks that CommonMark shows as they are: beside punctuation one needs a space, and Chinese puts none by itself."""

    def solid(mark):
        return mark == "`" or unicodedata.category(mark)[0] in "PS"

    text, opened, found = " " + re.sub(r"`[^`\n]+`", "`code`", unfenced(text)) + " ", [], []
    for run in re.finditer(r"\*+", text):
        before, after = text[run.start() - 1], text[run.end()]
        inner, outer = (before, after) if (closes := opened[-1:] == [run[0]]) else (after, before)
        if inner.isspace() or (solid(inner) and not (outer.isspace() or solid(outer))):
            found.append(text[max(0, run.start() - 10) : run.end() + 10])
        opened = opened[:-1] if closes else [*opened, run[0]]
    return found + opened


def test_there_is_something_to_test():
    assert {lesson.stem[:2] for language, lesson in LESSONS if language == "zh"} >= {"00", "03", "04", "06", "07"}


@pytest.mark.parametrize("language", editions.LANGUAGES)
def test_every_translation_has_an_english_lesson_and_every_notebook_a_translation(language):
    names = {page.stem for page in PAGES[language]}
    assert names <= {lesson.stem for lesson in lessons.notebooks()}
    assert names == {path.stem for path in (ROOT / "notebooks" / language).glob("*.ipynb")}


@each_lesson
def test_every_cell_is_translated_from_the_english_as_it_is(language, lesson):
    assert editions.behind(editions.english(lesson), editions.translated(editions.translation_of(lesson, language))) == []


@each_lesson
def test_the_notebook_is_what_is_built_now(language, lesson):
    if stored(lesson, language) != editions.build(lesson, language):
        pytest.fail(f"{language}/{lesson.name} is out of date: run `python -m sdnb editions`")


@each_lesson
def test_nothing_differs_but_the_prose_the_language_and_what_it_says(language, lesson):
    english, translation = json.loads(lesson.read_text(encoding="utf-8")), json.loads(stored(lesson, language))
    set_up = next(cell for cell in translation["cells"] if cell["cell_type"] == "code")
    assert set_up["source"].pop() == f'sdnb.course.speak("{language}")'
    set_up["source"][-1] = set_up["source"][-1].rstrip("\n")
    words = editions.translated(editions.translation_of(lesson, language)).get(editions.STRINGS, ("", ""))[1]
    for ours, theirs in zip(translation["cells"], english["cells"], strict=True):
        if ours["cell_type"] == "markdown":
            ours["source"] = theirs["source"] = []
        elif words:
            assert "".join(ours["source"]).count("\n") == "".join(theirs["source"]).count("\n")
            assert [output for output in ours["outputs"] if output["output_type"] == "error" or output.get("name") == "stderr"] == []
            ours["source"], ours["outputs"] = theirs["source"], theirs["outputs"]
        elif re.search(r"sdnb\.(guess|check)\(|\.reveal\(", "".join(ours["source"])):
            assert [output["output_type"] for output in ours["outputs"]] == [output["output_type"] for output in theirs["outputs"]]
            for output, original in zip(ours["outputs"], theirs["outputs"], strict=True):
                said, there = ("".join(one.pop("text", "")) for one in (output, original))
                assert said.count("\n") == there.count("\n")
                assert re.search("[一-鿿]", said) or said == there
                assert numbers(there) - numbers(said) == set()
    translation["metadata"].pop(editions.EXECUTED, None)
    assert translation == english


@each_lesson
def test_exercises_that_wait_do_so_in_the_language(language, lesson):
    """The pattern of the English text, whatever the notebooks say: no reply but the doctor's stays English."""
    for cell in cells(stored(lesson, language), "code"):
        text = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        if re.search(r"sdnb\.(guess|check)\(", "".join(cell["source"])):
            assert re.search("[一-鿿]", text) or "The doctor: " in text


@each_lesson
def test_what_the_code_shows_was_executed_in_the_language(language, lesson):
    assert not editions.unexecuted(lesson, language), "run `python -m sdnb editions --execute`"
    words = editions.quotes(editions.translated(editions.translation_of(lesson, language)).get(editions.STRINGS, ("", ""))[1])
    code = "\n".join("".join(cell["source"]) for cell in cells(lesson.read_text(encoding="utf-8"), "code"))
    assert [text for text in words if f'"{text}"' not in code] == []
    for text, ours in words.items():  # what the code fills in must be filled in
        assert set(re.findall(r"\{[^{}]*\}", text)) == set(re.findall(r"\{[^{}]*\}", ours)) or not ours, text


@each_lesson
def test_from_its_set_up_on_a_translated_notebook_speaks_its_language(language, lesson, tmp_path, monkeypatch):
    """Wherever it is opened: the folder in which it lies, as in Colab, need not have the language's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(languages.VARIABLE, raising=False)
    monkeypatch.setattr(languages, "_spoken", [])
    assert languages.language() == "en"
    exec("".join(cells(stored(lesson, language), "code")[0]["source"]), {})
    assert languages.language() == language


@each_lesson
def test_numbers_code_and_links_are_those_of_the_english(language, lesson):
    translation = editions.translated(editions.translation_of(lesson, language))
    for name, text in editions.prose(lesson).items():
        ours = translation[name][1]
        assert (code_spans(ours), links(ours), fences(ours), shape(ours)) == (code_spans(text), links(text), fences(text), shape(text)), (
            name
        )
        assert numbers(text) - numbers(ours) == set(), name
        assert unpaired_stars(ours) == [], name


@each_lesson
def test_links_stay_in_the_language_where_they_can(language, lesson):
    folder = lesson.parent / language
    for cell in cells(stored(lesson, language), "markdown"):
        for target in links("".join(cell["source"])):
            if not target.startswith("https://"):
                assert (folder / target).exists(), target
                assert not target.startswith("../") or target == f"../{lesson.name}" or not (folder / target[3:]).exists(), target


@each_page
def test_a_page_says_what_the_english_says_now(language, page, original):
    english, translation = editions.sections(original), editions.translated(page)
    assert editions.behind(english, translation) == []
    assert list(translation) == list(english)
    for heading, text in english.items():
        ours = translation[heading][1]
        assert (code_spans(ours), fences(ours), shape(ours)) == (code_spans(text), fences(text), shape(text)), heading
        assert numbers(text) - numbers(ours) == set(), heading
        assert unpaired_stars(ours) == [], heading


@each_page
def test_a_page_leads_where_the_english_does_in_the_language_where_it_can(language, page, original):
    here, there = (path.read_text(encoding="utf-8") for path in (page, original))
    at_home = {lesson: lesson.parent / language / lesson.name for known, lesson in LESSONS if known == language}
    at_home |= {english: translation for known, translation, english in TRANSLATED if known == language}

    def targets(path, text, without):
        found = Counter(
            link if link.startswith("https:") else (path.parent / link).resolve() for link in links(text).elements() if link[0] != "#"
        )
        found.pop(without, None)
        return found

    assert targets(page, here, original) == Counter(at_home.get(link, link) for link in targets(original, there, page).elements())
    files = [link for link in targets(page, here, original) if not isinstance(link, str)]
    assert [file for file in files if not file.with_name(file.name.partition("#")[0]).exists()] == []
    headings = {re.sub(r"[^\w\- ]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in re.findall(r"^#.*", here, re.MULTILINE)}
    anchors, theirs = ([link for link in links(text).elements() if link[0] == "#"] for text in (here, there))
    assert len(anchors) == len(theirs)
    assert {link[1:] for link in anchors} <= headings


@pytest.mark.parametrize("language", editions.LANGUAGES)
def test_each_readme_opens_with_a_link_to_the_other(language):
    def opening(name):
        return "".join((ROOT / name).read_text(encoding="utf-8").splitlines(keepends=True)[:6])

    assert f"(README.{language}.md)" in opening("README.md")
    assert "(README.md)" in opening(f"README.{language}.md")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("**猜：** 四", 0),
        ("**猜**：四", 0),
        ("把*它*用好", 0),
        ("是 **`x`** 的", 0),
        ("`a*b`", 0),
        ("**猜：**四", 1),
        ("是**`x`**的", 2),
        ("*一", 1),
    ],
)
def test_stars_that_would_be_seen(text, found):
    assert len(unpaired_stars(text)) == found


# The gate itself, on a course of one lesson


ENGLISH = {"a1": "# One\n\nTwo `three`, see [two](01_two.ipynb)\nand [three](02_three.ipynb).", "c3": "The end."}
CHINESE = {"a1": "# 一\n\n二 `three`，见[二](01_two.ipynb)和[三](02_three.ipynb)。", "c3": "完。"}


def notebook(texts, code="print(1)"):
    markdown = [
        {"cell_type": "markdown", "id": name, "metadata": {}, "source": text.splitlines(keepends=True)} for name, text in texts.items()
    ]
    outputs = [{"name": "stdout", "output_type": "stream", "text": ["1\n"]}]
    between = {"cell_type": "code", "execution_count": 1, "id": "b2", "metadata": {}, "outputs": outputs, "source": [code]}
    return {"cells": [markdown[0], between, *markdown[1:]], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def little(tmp_path):
    """Writes lesson 01 of a course whose lesson 02 is translated, too; returns its path."""
    (tmp_path / "zh").mkdir()
    (tmp_path / "zh" / "02_three.md").touch()

    def write(english=ENGLISH, chinese=CHINESE, read=ENGLISH, code="print(1)"):
        lesson = tmp_path / "01_two.ipynb"
        lesson.write_text(json.dumps(notebook(english, code), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        parts = [f"<!-- {name}, English {editions.digest(read[name])} -->\n{text}\n\n" for name, text in chinese.items()]
        editions.translation_of(lesson, "zh").write_text("".join(parts), encoding="utf-8")
        return lesson

    return write


def test_building_replaces_the_prose_alone(little):
    lesson = little()
    built = json.loads(editions.build(lesson, "zh"))
    assert ["".join(cell["source"]) for cell in built["cells"]] == [
        "# 一\n\n二 `three`，见[二](01_two.ipynb)和[三](02_three.ipynb)。\n\n" + editions.LANGUAGES["zh"].format(english="../01_two.ipynb"),
        "print(1)",
        "完。",
    ]
    editions.translation_of(lesson.parent / "02_three.ipynb", "zh").unlink()
    assert "[二](01_two.ipynb)和[三](../02_three.ipynb)" in editions.build(lesson, "zh")


STRINGS = """The mean
→ 平均值

{count} steps
→ {count} 步
"""


def test_quotes_in_the_code_are_translated_and_shown_as_executed(little):
    code = 'show("The mean", f"{count} steps", "mean", title=\'"The mean"\')'
    lesson = little(chinese={**CHINESE, "strings": STRINGS}, read={**ENGLISH, "strings": "The mean\n{count} steps"}, code=code)
    assert editions.english(lesson) == {**ENGLISH, "strings": "The mean\n{count} steps"}
    translation = editions.translation_of(lesson, "zh").with_suffix(".ipynb")
    translation.write_text(editions.build(lesson, "zh"), encoding="utf-8")
    built = json.loads(translation.read_text(encoding="utf-8"))
    assert "".join(built["cells"][1]["source"]) == 'show("平均值", f"{count} 步", "mean", title=\'"平均值"\')'
    assert built["cells"][1]["outputs"] == [] and editions.unexecuted(lesson, "zh")

    built["cells"][1] |= {"execution_count": 1, "outputs": [{"name": "stdout", "output_type": "stream", "text": ["平均值"]}]}
    built["metadata"][editions.EXECUTED] = editions.state(lesson)
    translation.write_text(json.dumps(built), encoding="utf-8")
    assert json.loads(editions.build(lesson, "zh")) == built and not editions.unexecuted(lesson, "zh")

    lesson.write_text(lesson.read_text(encoding="utf-8").replace("count", "number"), encoding="utf-8")  # the English code changes
    assert editions.unexecuted(lesson, "zh")
    with pytest.raises(ValueError, match="strings was translated from another text"):
        editions.build(lesson, "zh")


def test_a_quote_without_its_translation_is_found():
    assert editions.quotes(STRINGS) == {"The mean": "平均值", "{count} steps": "{count} 步"}
    assert editions.quotes("One\n→\n") == {"One": ""}
    for text in ("One\nTwo\n→ 二", "→ 二", "One"):
        with pytest.raises(ValueError, match="has no other half"):
            editions.quotes(text)


def test_english_put_for_its_own_translation_gives_back_the_very_file(tmp_path, monkeypatch):
    monkeypatch.setitem(editions.LANGUAGES, "xx", "See {english}")
    (tmp_path / "xx").mkdir()
    (tmp_path / "xx" / "glossary.md").touch()
    for original in lessons.notebooks():
        parts = [f"<!-- {name}, English {editions.digest(text)} -->\n{text}\n\n" for name, text in editions.prose(original).items()]
        (tmp_path / "xx" / f"{original.stem}.md").write_text("".join(parts), encoding="utf-8")
        shutil.copyfile(original, tmp_path / original.name)
    for lesson in tmp_path.glob("*.ipynb"):
        notice = f',\n    "\\n",\n    "See ../{lesson.name}"'
        built = editions.build(lesson, "xx")
        assert notice in built
        built = built.replace(f"../{lessons.RECORDER}", lessons.RECORDER)  # it has no edition of its own
        line = '\\n",\n    "sdnb.course.speak(\\"xx\\")"'
        assert built.count(line) == 1
        assert built.replace(line, '"').replace("\\n" + '"' + notice, '"') == lesson.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("english", "message"),
    [
        ({**ENGLISH, "c3": "The very end."}, "c3 was translated from another text"),
        ({**ENGLISH, "d4": "After the end."}, "d4 is not translated"),
        ({"a1": ENGLISH["a1"]}, "c3 is not in the English any more"),
    ],
)
def test_an_edition_that_fell_behind_is_found_and_not_built(little, english, message):
    lesson = little(english)
    assert message in "\n".join(editions.behind(editions.prose(lesson), editions.translated(editions.translation_of(lesson, "zh"))))
    with pytest.raises(ValueError, match=message):
        editions.build(lesson, "zh")


def test_changed_code_makes_another_notebook_and_a_moved_line_break_does_not(little):
    before = editions.build(little(), "zh")
    assert editions.build(little(code="print(2)"), "zh") != before
    assert editions.build(little({**ENGLISH, "a1": ENGLISH["a1"].replace("\nand", " and")}), "zh") == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("# 一\n\n<!-- a1, English 00000000 -->\n一", "begins with text of no cell"), ("<!-- a, English 00000000 -->\n一\n" * 2, "twice")],
)
def test_a_damaged_translation_is_refused(tmp_path, text, message):
    page = tmp_path / "00.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        editions.translated(page)


def test_sections_of_a_page(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("# One\na\n\n```sh\n# no heading\n```\n## Two\n### in two\nb\n", encoding="utf-8")
    assert editions.sections(page) == {"One": "# One\na\n\n```sh\n# no heading\n```\n", "Two": "## Two\n### in two\nb\n"}


def test_the_command_writes_what_is_up_to_date_and_names_what_is_not(little, monkeypatch, capsys):
    lesson = little()
    built = lesson.parent / "zh" / lesson.name
    monkeypatch.setattr(lessons, "notebooks", lambda: [lesson])
    monkeypatch.setattr(editions, "LANGUAGES", {"zh": "{english}"})
    assert __main__.main(["editions"]) == 0
    assert built.read_text(encoding="utf-8") == editions.build(lesson, "zh")
    assert "up to date" in capsys.readouterr().out
    before = built.read_bytes()
    little({**ENGLISH, "c3": "The very end."})
    assert __main__.main(["editions"]) == 1
    assert "01_two.md: c3 was translated from another text" in capsys.readouterr().out
    assert built.read_bytes() == before


# Opening them


def test_lab_brings_the_english_lessons_along(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(subprocess, "call", lambda command: calls.append(command) or 0)
    folder = tmp_path / "course"
    assert __main__.main(["lab", "--folder", str(folder), "--language", "zh"]) == 0
    assert "--LabApp.default_url=/lab/tree/zh/00_start_here.ipynb" in calls[0]
    names = {*(lesson.name for lesson in lessons.notebooks()), "glossary.md", lessons.RECORDER}
    translated = {f"zh/{lesson.name}" for language, lesson in LESSONS if language == "zh"} | {"zh/glossary.md"}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*.*")} == names | translated
    (folder / "zh" / "00_start_here.ipynb").write_text("mine", encoding="utf-8")
    capsys.readouterr()
    __main__.main(["lab", "--folder", str(folder), "--language", "zh"])
    assert "yours, left as they are: zh/00_start_here.ipynb" in capsys.readouterr().out
    assert (folder / "zh" / "00_start_here.ipynb").read_text(encoding="utf-8") == "mine"


def test_the_english_course_is_the_english_course(tmp_path):
    assert lessons.notebooks() == sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    lessons.unpack(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    with pytest.raises(ValueError, match="there are en, zh"):
        lessons.notebooks("cn")


def test_pytest_does_not_run_the_same_code_twice():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "notebooks"]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "notebooks/00_start_here.ipynb::" in collected
    assert not any(f"notebooks/{language}/" in collected for language in editions.LANGUAGES)
