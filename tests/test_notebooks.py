"""What every notebook keeps to. nbval runs them; this looks at what is stored."""

import json
import re

import pytest

from sdnb.course.execution import EXERCISE_CALL
from sdnb.sd_scripts import arguments

from .conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
RECORDER = ROOT / "notebooks" / "record_your_gpu.ipynb"
COMPARED = "nbval-check-output"


def source(cell):
    return "".join(cell["source"])


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


@pytest.fixture
def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and source(cell).strip()]


FREE = {10}
"""Numbers that no lesson has yet."""


def test_there_are_notebooks_in_order():
    assert [int(path.stem[:2]) for path in NOTEBOOKS] == [number for number in range(12) if number not in FREE]


def test_at_least_three_outputs_are_compared(code_cells):
    compared = [cell for cell in code_cells if COMPARED in cell["metadata"].get("tags", []) and cell["outputs"]]
    assert len(compared) >= 3


def test_the_set_up_is_folded(code_cells):
    """Who opened the lesson with the package there need not read how Colab comes by it; Colab itself shows the cell."""
    assert [cell["metadata"].get("jupyter", {}).get("source_hidden", False) for cell in code_cells] == [
        True,
        *[False] * (len(code_cells) - 1),
    ]


def test_it_was_run_from_top_to_bottom(code_cells):
    assert [cell["execution_count"] for cell in code_cells] == list(range(1, len(code_cells) + 1))


def test_outputs_are_stored_and_none_is_an_error(code_cells):
    outputs = [output for cell in code_cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert [output for output in outputs if output["output_type"] == "error"] == []
    assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []


def test_it_holds_no_widget_state_and_is_not_huge(notebook):
    assert "widgets" not in notebook["metadata"]
    assert len(json.dumps(notebook)) < 1_000_000


def test_every_picture_has_a_text_alternative(code_cells):
    for cell in code_cells:
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                assert len(output["metadata"].get("image/png", {}).get("alt", "")) > 20, source(cell)


def test_no_paths_and_no_timings_in_what_is_compared(notebook, code_cells):
    assert not re.search(r"/(root|home|tmp|Users|work)/", json.dumps(notebook))
    for cell in code_cells:
        if COMPARED in cell["metadata"].get("tags", []):
            assert not re.search(r"\d (s|ms|seconds)\b", json.dumps(cell["outputs"]))


def test_the_first_cell_is_the_same_everywhere(code_cells):
    first = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    assert source(code_cells[0]) == source(next(cell for cell in first["cells"] if cell["cell_type"] == "code"))


def test_it_opens_and_ends_as_a_lesson_does(notebook):
    cells = notebook["cells"]
    assert source(cells[0]).startswith("# ")
    assert "After this notebook you" in source(cells[0])
    assert EXERCISE_CALL.search("\n".join(source(cell) for cell in cells[-4:]))
    assert "<details>" in source(cells[-1])


@pytest.mark.parametrize("place", range(len(NOTEBOOKS)), ids=lambda place: NOTEBOOKS[place].stem)
def test_it_leads_to_the_lesson_before_and_to_the_one_after(place):
    cells = json.loads(NOTEBOOKS[place].read_text(encoding="utf-8"))["cells"]
    linked = re.findall(r"\]\(([^)]+)", source(cells[0]) + source(cells[-1]))
    neighbours = NOTEBOOKS[max(0, place - 1) : place] + NOTEBOOKS[place + 1 : place + 2]
    assert {lesson.name for lesson in neighbours} <= set(linked)
    assert "glossary.md" in linked


def test_the_time_it_takes_to_read_is_counted(notebook, code_cells):
    """As lesson 00 says: 150 words and 20 lines of code a minute."""
    opening = source(notebook["cells"][0])
    words = sum(len(source(cell).split()) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    lines = sum(len(source(cell).splitlines()) for cell in code_cells[1:])
    minutes = words / 150 + lines / 20
    said = re.search(r"About (\d+) minutes to read", opening)
    assert abs(int(said[1]) - minutes) <= max(3, 0.15 * minutes), minutes


def test_links_lead_somewhere(notebook):
    text = "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (ROOT / "notebooks" / target).exists(), target


# The notebook that is no lesson


def test_the_recorder_is_three_cells_and_says_without_a_gpu_what_it_needs():
    text = RECORDER.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lessons_first = next(cell for cell in json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code")
    assert [source(cells[0]), cells[0]["metadata"]] == [source(lessons_first), lessons_first["metadata"]]
    assert [cell["execution_count"] for cell in cells] == [1, 2, 3]
    said = ["".join("".join(output["text"]) for output in cell["outputs"]) for cell in cells[1:]]
    assert [words.count("\n") for words in said] == [1, 1]
    assert said[0].startswith("Nothing to record: torch finds no GPU here.")
    assert not re.search(r"/(root|home|tmp|Users|work)/", text)


# The glossary


@pytest.fixture(scope="module")
def glossary():
    """Its rows: the word, what it is, its names in sd-scripts, the file of its lesson."""
    lines = (ROOT / "notebooks" / "glossary.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    return [(*row[:3], re.fullmatch(r"\[\d\d\]\((.*)\)", row[3])[1]) for row in rows]


def test_the_glossary_is_in_order_and_knows_every_lesson(glossary):
    words = [word.lower() for word, *_ in glossary]
    assert words == sorted(set(words))
    assert {lesson for *_, lesson in glossary} == {path.name for path in NOTEBOOKS}


def test_every_setting_in_the_glossary_is_one_of_sd_scripts(glossary):
    named = " ".join(names for _, _, names, _ in glossary)
    flags, scripts = re.findall(r"--(\w+)", named), re.findall(r"\w+\.py", named)
    assert len(flags) > 20
    assert [flag for flag in flags if not arguments.scripts_with(flag)] == []
    assert set(scripts) <= set(arguments.STABLE_DIFFUSION)
    assert set(re.findall(r"--optimizer_type=(\w+)", named)) <= set(arguments.facts()["optimizers"]["classes"])


def test_the_lesson_of_a_word_uses_it(glossary):
    def plain(text):
        return " ".join(re.sub(r"[*_]", " ", text).lower().split())

    lessons = {path.name: json.loads(path.read_text(encoding="utf-8"))["cells"] for path in NOTEBOOKS}
    texts = {name: plain(" ".join(map(source, cells))) for name, cells in lessons.items()}
    assert [(word, lesson) for word, *_, lesson in glossary if plain(word) not in texts[lesson]] == []
