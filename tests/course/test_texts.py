"""The course's texts: whole in every language, and each belongs to an exercise, or to a guess of its notebook."""

import json
import re
import string

import pytest

from sdnb.course import answers, exercises, languages, lessons, questions

EXERCISE_KEYS = {"praise", "hints", "slips", "says"}
BOTH = ["en", *languages.LANGUAGES]


def texts(table, place=""):
    """Every table of languages in a file, by its place."""
    if isinstance(table, list):
        for index, row in enumerate(table):
            yield from texts(row, f"{place}[{index}]")
    elif isinstance(table, dict):
        if "en" in table or "zh" in table:
            yield place, {key: table.get(key) for key in BOTH}
        for key, value in table.items():
            if key not in BOTH:
                yield from texts(value, f"{place}.{key}")


def fields(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def lesson_files():
    return [path for path in sorted(languages.FOLDER.iterdir()) if path.stem != "course"]


def sources(number):
    path = next(path for path in lessons.notebooks() if path.stem.startswith(number))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", sorted(languages.FOLDER.iterdir()), ids=lambda path: path.name)
def test_every_text_is_there_in_every_language(path):
    found = dict(texts(languages.lesson(path.stem)))
    assert found
    for place, versions in found.items():
        assert all(isinstance(text, str) and text.strip() for text in versions.values()), place
        assert re.search("[一-鿿]", versions["zh"]) or not re.search("[A-Za-z]", re.sub(r"\{\w+\}", "", versions["en"])), place
        if path.stem == "course" or ".says" in place:
            assert fields(versions["en"]) >= fields(versions["zh"]), place


@pytest.mark.parametrize("path", lesson_files(), ids=lambda path: path.name)
def test_a_file_belongs_to_a_lesson_and_has_known_tables(path):
    assert re.fullmatch(r"\d\d\.toml", path.name)
    assert any(lesson.stem.startswith(path.stem) for lesson in lessons.notebooks())
    assert set(languages.lesson(path.stem)) <= {"exercise", "guess"}


@pytest.mark.parametrize("number", [path.stem for path in lesson_files()])
def test_exercises_have_exactly_what_they_need(number):
    rows = languages.lesson(number).get("exercise", {})
    assert [f"{number}.{key}" for key in rows] == [name for name in exercises.EXERCISES if name.startswith(f"{number}.")]
    for key, row in rows.items():
        assert {"praise", "hints"} <= set(row) <= EXERCISE_KEYS, key
        assert row["hints"], key
        for slip in row.get("slips", []):
            assert {*slip} in ({"answer", *BOTH}, {"words", *BOTH}), slip
            assert "words" in slip or isinstance(answers.calculated(slip["answer"]), float)


@pytest.mark.parametrize("name", questions.names())
def test_a_guess_is_whole(name):
    number, _, letter = name.partition(".")
    assert re.fullmatch("[a-z]", letter)
    assert questions.question(name).prompt
    row = languages.lesson(number)["guess"][letter]
    assert [key for key in row if isinstance(row[key], dict) and {*row[key]} != {*BOTH}] == []


@pytest.mark.parametrize("path", lessons.notebooks(), ids=lambda path: path.stem)
def test_each_guess_of_a_notebook_has_a_row_and_is_revealed_and_each_row_is_used(path):
    """In order of the letters, alone in its cell, and revealed once below."""
    cells = sources(path.stem[:2])
    asked = re.findall(r'sdnb\.guess\("(.*?)"\)', "\n".join(cells))
    rows = [f"{path.stem[:2]}.{letter}" for letter in languages.lesson(path.stem[:2]).get("guess", {})]
    assert asked == sorted(asked) == rows
    variables = []
    for place, cell in enumerate(cells):
        for variable, name in re.findall(r'^(\w+) = sdnb\.guess\("(.*?)"\)', cell, re.MULTILINE):
            assert cell.strip() == f'{variable} = sdnb.guess("{name}")'
            later = cells[place + 1 :]
            until = next((at for at, text in enumerate(later) if f"{variable} = sdnb.guess(" in text), len(later))
            assert sum(text.count(f"{variable}.reveal(") for text in later[:until]) == 1, name
            variables.append(name)
    assert variables == asked
