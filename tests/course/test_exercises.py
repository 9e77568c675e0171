"""Exercises that check themselves: what is right, what is wrong, the hints, and the note of what is done."""

import json
import re
from pathlib import Path

import pytest
import torch

import sdnb
from sdnb.checkpointing.choices import CHEAP, Budget, Keep
from sdnb.course import answers, building, exercises, languages, lessons, levers, progress

TRANSFORMERS = [
    "down_blocks.0.attentions.0.transformer_blocks.0",
    "down_blocks.1.attentions.0.transformer_blocks.0",
    "mid_block.attentions.0.transformer_blocks.0",
    *(f"up_blocks.{level}.attentions.{place}.transformer_blocks.0" for level in (1, 2) for place in (0, 1)),
]
FIXED = 'relative_step=False" "scale_parameter=False'
COMMON = "--learning_rate=1e-4 --max_grad_norm=0 --lr_scheduler=constant_with_warmup --lr_warmup_steps=100"
SMALL = dict(optimizer_type="Adafactor", optimizer_args=sdnb.Recipe().optimizer_args, full_bf16=True)
RIGHT = {
    "00.1": [5e-5, "5e-5", "0.00005", torch.tensor(5e-5)],
    "01.1": [16384, 4 * 64 * 64, 16384.0, "16,384", "16384 numbers"],
    "01.2": [1, 1.0, 0.99, torch.tensor(1.01)],
    "02.1": ["gradients", "The gradients.", "梯度"],
    "02.2": [12.8, 859.5e6 * 16 / 2**30, "12.81", "12.8 GiB", 13],
    "03.1": [Keep("convolution", "attention"), dict.fromkeys(TRANSFORMERS, "full"), [*TRANSFORMERS]],
    "05.1": [0.8, 4 / 5, torch.tensor(0.8)],
    "05.2": [1392, 1391, "1,393"],
    "06.1": [200, 0.125, "12.5%", "200"],
    "06.2": [2, "2", 2.0],
    "07.1": [f'--optimizer_type="Adafactor" --optimizer_args "{FIXED}" {COMMON}', sdnb.Recipe().to_flags()],
    "07.2": [
        'optimizer_type = "AdamW"\nlearning_rate = 1e-4\nmax_grad_norm = 0\nlr_scheduler = "cosine"\nlr_warmup_steps = 100',
        "--optimizer_type=AdamW --learning_rate=1e-4 --max_grad_norm=0 --lr_scheduler=cosine --lr_warmup_steps=100",
    ],
    "07.3": [f'--optimizer_type=adafactor --optimizer_args "{FIXED}" {COMMON}', sdnb.Recipe().to_toml()],
    "08.2": [2, 2.0, "2", 16 / 8],
    "09.1": [20, "20", 4 + 4 + 8 + 4, torch.tensor(20.0)],
    "09.2": [2, 2.0, "2", 1e9 * 2 / 1e9],
    "09.3": [
        dict(SMALL, train_batch_size=2, gradient_accumulation_steps=2),
        levers.START.replace(**SMALL, train_batch_size=1, gradient_accumulation_steps=4),
    ],
}
WRONG = {
    "00.1": [2e-4, 1e-4, 5.2e-5, 25, 0, "a quarter", "0,00005"],
    "01.1": [4096, 786432, 1024, 16384.5, float("inf"), float("nan")],
    "01.2": [0, 0.5, 2, [1], True, torch.ones(2)],
    "02.1": ["weights", "activations and gradients", "optimizer state", "activations", 3],
    "02.2": [13.75, 6.4, 3.2, 9.6, 16, "a lot"],
    "03.1": ["none", "full", CHEAP, ["conv_in"], Budget(48 * 2**20), 3],
    "05.1": [1, 4, 0.5, 0.6],
    "05.2": [1389, 1492, 118, "never"],
    "06.1": [50, 13, 12.5, 0.5, 200.0, "200.0", "a quarter", [200]],
    "06.2": [1, 3, 4, "4", "all of them"],
    "07.1": [COMMON, f'--optimizer_type=Adafactor --optimizer_args "{FIXED.lower()}" {COMMON}', 3, ""],
    "07.2": ["max_grad_nrom = 0", 'optimizer_type = "AdamW"\nlr_scheduler = "cosine"\nlr_warmup_steps = 100.0'],
    "07.3": ["--optimizer_type=Adafactor --lr_scheduler=adafactor", f'--optimizer_type=Adafactor --optimizer_args "{FIXED}"'],
    "08.2": [0.5, 1, 4, 8, [2]],
    "09.1": [16, 12, 8, 4, "all"],
    "09.2": [4, 1, 8, 0, [2]],
    "09.3": [
        {},
        SMALL | {"fused_backward_pass": True},
        SMALL | {"train_batch_size": 2},
        {"gradient_checkpointing": True},
        {"network_dim": 16, "network_module": "networks.lora"},
        {"optimiser": "Adafactor"},
        "full_bf16",
    ],
}


@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    """Somebody who begins, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(languages.VARIABLE, raising=False)
    monkeypatch.setattr(languages, "_spoken", [])
    monkeypatch.setattr(progress, "_session", progress.Progress())
    monkeypatch.setattr(exercises, "_tries", {})


def another_kernel(monkeypatch):
    monkeypatch.setattr(progress, "_session", progress.Progress())


def hints(name, language="en"):
    return [hint[language] for hint in languages.exercise(name)["hints"]]


def test_every_exercise_is_tried():
    """Here, or, where the answer is code, in `building`."""
    assert set(RIGHT) == set(WRONG) == set(exercises.EXERCISES) - set(building.GRADERS)


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, answers in RIGHT.items() for answer in answers])
def test_right_answers(name, answer, capsys):
    sdnb.check(name, answer)
    assert capsys.readouterr().out.startswith("✓")


@pytest.mark.parametrize("path", [path for path in lessons.notebooks() if path.stem != "11_capstone"], ids=lambda path: path.stem)
def test_the_solutions_in_the_notebook_are_right(path, capsys):
    """Each fold has Python that sets what the exercises ask about, and needs nothing else of the notebook but torch and their cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = {kind: ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind] for kind in ("markdown", "code")}
    fold = re.search(r"<details><summary>Solutions?</summary>(.*?)</details>", sources["markdown"][-1], re.DOTALL)[1]
    checks = re.findall(r"^sdnb\.check\(.*$", "\n".join(sources["code"]), re.MULTILINE)
    names = [name for name in exercises.EXERCISES if name.startswith(path.stem[:2])]
    assert [re.search(r'"(.*?)"', check)[1] for check in checks] == names == re.findall(r"\*\*(\d\d\.\d)\*\*", fold)
    known = {"sdnb": sdnb, "torch": torch}
    for cell in sources["code"]:
        if "raise NotImplementedError" in cell:  # with what is to be written, the cell may define what it builds on
            exec(cell.partition("\nsdnb.check(")[0], known)
    for code in re.findall(r"```python\n(.*?)```", fold, re.DOTALL):
        exec(code, known)
    for check in checks:
        exec(check, known)
    said = capsys.readouterr().out.splitlines()
    assert [line[0] for line in said if line[0] in "✓✗…"] == ["✓"] * len(names)


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, answers in WRONG.items() for answer in answers])
def test_wrong_answers_bring_hints_one_by_one(name, answer, capsys):
    sdnb.check(name, None)  # brings none, and counts as no try
    assert capsys.readouterr().out == f"… {name} waits for your answer.\n"
    for expected in (*hints(name), *2 * ["There are no more hints. The solution is folded up at the end of the lesson."]):
        sdnb.check(name, answer)
        said = capsys.readouterr().out
        assert said.startswith("✗ Not yet. ")
        assert said.endswith(f"{expected}\n")


@pytest.mark.parametrize(
    ("name", "answer", "explained"),
    [
        ("00.1", 2e-4, "which step 100 reaches"),
        ("00.1", "1e-4", "the rate of step 50"),
        ("01.1", 64 * 64, "how many positions"),
        ("01.1", 131072, "not only one"),
        ("01.2", 0, "exactly right"),
        ("05.1", 1, "clipped alone"),
        ("05.1", "4/7", "do not simply add up"),
        ("05.1", 0.16, "5, not 25"),
        ("05.2", 1812, "Its root is asked for"),
        ("05.2", 356, "more and more slowly"),
        ("02.1", "the optimizer state", "two numbers for each weight"),
        ("02.1", "权重", "always there"),
        ("02.1", "activations", "lies in backward"),
        ("02.2", "3.2 GiB", "weights alone"),
        ("02.2", 13.75, "thousand million"),
        ("02.2", 13115, "in MiB"),
        ("02.3", lambda weights, activations: 5 * weights + activations, "activations are gone"),
        ("02.3", lambda weights, activations: 4 * weights + activations, "but with gradients"),
        ("02.3", lambda weights, activations: max(4 * weights + activations, 5 * weights), "not made any by then"),
        ("06.1", 50, "last 12.5 optimizer steps. That would be right on one GPU"),
        ("06.1", "200.0", "two hundred times"),
        ("06.2", 1, "only postpones"),
        ("06.2", "4", "No run of this lesson"),
        ("06.1", 12, "would last 3 optimizer steps"),
        ("06.1", 400, "would last 100 optimizer steps"),
        ("08.2", 0.5, "halve it again"),
        ("09.1", 16, "for all weights at once"),
        ("09.2", 4, "two bytes"),
        ("09.3", {}, "in optimizer, optimizer state take 6.40 GiB"),
        ("09.3", SMALL | {"fused_backward_pass": True}, "that is tight"),
        ("09.3", SMALL | {"train_batch_size": 2}, "each update: 2"),
        ("09.3", {"gradient_checkpointing": True}, "it recomputes"),
        (
            "09.3",
            SMALL | dict(fused_backward_pass=True, train_batch_size=1, gradient_accumulation_steps=4),
            "That is refused: fused backward",
        ),
        ("07.1", 3, "corrected text"),
        ("07.3", COMMON, "optimizer_type is AdamW, not Adafactor"),
    ],
)
def test_a_common_slip_is_explained_before_the_hint(name, answer, explained, capsys):
    sdnb.check(name, answer)
    assert explained in capsys.readouterr().out.splitlines()[0]


def test_every_slip_is_wrong_and_explained(capsys):
    for name in exercises.EXERCISES:
        for slip in languages.exercise(name).get("slips", []):
            answer = slip["words"][0] if "words" in slip else answers.calculated(slip["answer"])
            sdnb.check(name, answer)
            said = capsys.readouterr().out
            assert said.startswith("✗ Not yet. "), (name, answer)
            assert slip["en"] in said.splitlines()[0], (name, answer)


def test_a_check_may_say_itself_what_is_wrong(capsys, monkeypatch):
    """As one for a function that the reader wrote."""

    def doubles(function):
        return function(2) == 4 or f"Your function makes 2 into {function(2)}."

    monkeypatch.setitem(exercises.EXERCISES, "00.1", doubles)
    sdnb.check("00.1", lambda number: number + 1)
    assert capsys.readouterr().out == f"✗ Not yet. Your function makes 2 into 3.\n{hints('00.1')[0]}\n"
    sdnb.check("00.1", lambda number: number * number)
    assert capsys.readouterr().out.startswith("✓")


def test_everything_is_said_in_chinese(capsys, monkeypatch):
    monkeypatch.setattr(languages, "_spoken", ["zh"])
    sdnb.check("01.1", None)
    sdnb.check("01.1", 4096)
    sdnb.check("07.3", COMMON)
    sdnb.check("01.1", 16384)
    said = capsys.readouterr().out
    assert [line[0] for line in said.splitlines() if line[0] in "…✗✓"] == ["…", "✗", "✗", "✓"]
    assert hints("01.1", "zh")[0] in said
    assert all(re.search("[一-鿿]", line) for line in said.splitlines())


def test_what_is_done_is_counted_in_the_next_notebook_too(capsys, monkeypatch):
    sdnb.check("01.1", 16384)
    sdnb.check("01.1", 16384)
    sdnb.check("01.2", 0)
    assert f"Done: 1 of 3 in this lesson, 1 of {len(exercises.EXERCISES)} in the course." in capsys.readouterr().out
    another_kernel(monkeypatch)
    sdnb.check("02.1", "gradients")
    assert f"Done: 1 of 3 in this lesson, 2 of {len(exercises.EXERCISES)} in the course." in capsys.readouterr().out
    assert exercises.done() == {"01.1", "02.1"}
    assert [file.name for file in Path().iterdir()] == [".sdnb-progress.json"]


def test_a_translated_lesson_counts_where_the_others_do(capsys, monkeypatch):
    sdnb.check("01.1", 16384)
    Path("zh").mkdir()
    monkeypatch.chdir("zh")
    another_kernel(monkeypatch)
    sdnb.check("05.1", 4 / 5)
    assert exercises.done() == {"01.1", "05.1"}
    assert list(Path().iterdir()) == []


def test_where_drive_is_mounted_it_is_noted_there(tmp_path, monkeypatch):
    monkeypatch.setattr(lessons, "DRIVE", tmp_path / "MyDrive")
    lessons.DRIVE.mkdir()
    sdnb.check("01.1", 16384)
    assert [file.name for file in lessons.DRIVE.iterdir()] == [".sdnb-progress.json"]
    assert [file.name for file in tmp_path.iterdir()] == ["MyDrive"]


def test_no_answer_and_a_wrong_one_write_nothing(capsys):
    sdnb.check("01.1", None)
    sdnb.check("01.1", 5)
    assert "Done" not in capsys.readouterr().out
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "noted",
    ["", "{", "3", '{"01.1": true}', '[["01.2"], 4]', '{"exercises": 1, "guesses": []}', '{"exercises": [["a"]]}', "[" * 100_000, "\udcff"],
)
def test_a_note_that_cannot_be_read_is_as_none(noted, capsys):
    Path(".sdnb-progress.json").write_bytes(noted.encode("utf-8", "surrogateescape"))
    sdnb.check("01.1", 16384)
    assert "3 in this lesson, 1 of" in capsys.readouterr().out
    assert json.loads(Path(".sdnb-progress.json").read_text(encoding="utf-8")) == {"exercises": ["01.1"], "guesses": {}}


@pytest.mark.parametrize("noted", ['["01.2", "99.9"]', '{"exercises": ["01.2", "99.9"], "guesses": {"99.a": 3}}'])
def test_what_another_version_noted_is_kept(noted, capsys):
    """Version 0.2.0 wrote a list of exercises; a later version may have exercises and guesses that this one does not know."""
    Path(".sdnb-progress.json").write_text(noted, encoding="utf-8")
    sdnb.check("01.1", 16384)
    assert "Done: 2 of 3 in this lesson, 2 of" in capsys.readouterr().out
    saved = json.loads(Path(".sdnb-progress.json").read_text(encoding="utf-8"))
    assert saved["exercises"] == ["01.1", "01.2", "99.9"]
    assert saved["guesses"] == ({"99.a": 3} if "guesses" in noted else {})


def test_two_notebooks_that_run_at_once_do_not_lose_each_others_progress(capsys, monkeypatch):
    sdnb.check("01.1", 16384)
    first = progress._session
    another_kernel(monkeypatch)
    sdnb.check("02.1", "gradients")
    monkeypatch.setattr(progress, "_session", first)
    sdnb.check("01.2", 1)
    assert exercises.done() == {"01.1", "01.2", "02.1"}


def test_where_nothing_can_be_written_the_session_remembers(capsys):
    Path(".sdnb-progress.json").mkdir()
    sdnb.check("01.1", 16384)
    sdnb.check("01.2", 1)
    assert "Done: 2 of 3 in this lesson" in capsys.readouterr().out


@pytest.mark.parametrize("name", exercises.EXERCISES)
def test_an_answer_of_any_kind_is_wrong_at_worst(name, capsys):
    for answer in (object(), {}, [], "", "?", float("inf"), -1, 1j, len, torch.zeros(3), {"a": object()}, ["none"], b"\xff", True):
        sdnb.check(name, answer)
        assert capsys.readouterr().out.startswith("✗ Not yet. ")


def test_one_part_is_asked_for_in_a_word(capsys):
    sdnb.check("02.1", "gradients, and not the weights")
    assert "Name one part" in capsys.readouterr().out


def test_an_unknown_exercise():
    with pytest.raises(ValueError, match=r"did you mean '01\.2'"):
        sdnb.check("1.2", 1)
