"""What docs/contributing.md promises: each thing is added in the one place that it names.

A rule is in tests/doctor/test_rules.py, a model family in tests/models/test_family.py, a language in tests/course/test_editions.py.
"""

import shutil
from dataclasses import dataclass

import pytest
import torch

import sdnb
from sdnb import Recipe, optim
from sdnb.course import exercises, languages, lessons
from sdnb.doctor import logs, messages
from sdnb.lora import metadata
from sdnb.sd_scripts import supported
from sdnb.sections import setting
from sdnb.system import cards, files

from .conftest import ROOT

MINE = """
import torch


class Signs(torch.optim.SGD):
    def __init__(self, params, lr, momentum=0.9):
        super().__init__(params, lr=lr, momentum=momentum)


class Halving(torch.optim.lr_scheduler.LambdaLR):
    def __init__(self, optimizer, every):
        super().__init__(optimizer, lambda step: 0.5 ** (step // every))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_of_a_test.py").write_text(MINE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_an_optimizer_and_a_schedule_are_named_by_their_paths(tiny, ink, mine, monkeypatch):
    recipe = Recipe(
        optimizer_type="mine_of_a_test.Signs", optimizer_args=("momentum=0.5",), learning_rate=1e-3, resolution=32,
        lr_scheduler_type="mine_of_a_test.Halving", lr_scheduler_args=("every=2",), lr_warmup_steps=0, network_dim=2,
    )  # fmt: skip
    built = optim.optimizer(recipe, [torch.nn.Parameter(torch.ones(3))])
    schedule, rates = optim.schedule(recipe, built, steps=4), []
    for _ in range(4):
        rates += schedule.get_last_lr()
        built.step()
        schedule.step()
    assert rates == [1e-3, 1e-3, 5e-4, 5e-4]
    before = sdnb.planner.least_bytes("tiny", recipe)
    row = optim.Row("mine_of_a_test.Signs", "torch>=2.8", optim.UNKNOWN, slots=1)
    monkeypatch.setitem(optim.OPTIMIZERS, "mine_of_a_test.Signs", row)  # a row: what is known of it besides
    trained = sdnb.plan("tiny", recipe, device="cpu").trained
    assert sdnb.planner.least_bytes("tiny", recipe) == before + 4 * trained


def test_a_setting_is_a_field():
    @dataclass(frozen=True, kw_only=True, repr=False)
    class More(Recipe):
        debug_dataset: bool = setting(False, in_metadata=True)

    flags = "--debug_dataset --network_dim=4"
    assert supported.refusals(Recipe.parse(flags))
    recipe = More.parse(flags)
    assert recipe.debug_dataset
    assert supported.refusals(recipe) == []
    assert More.parse(recipe.to_flags()) == recipe
    with pytest.raises(ValueError, match="debug_dataset='yes': it must be True or False"):
        More(debug_dataset="yes")
    assert "debug_dataset" in metadata.settings_of(More)
    assert "debug_dataset" not in metadata.settings_of(Recipe)


def test_a_card_is_a_row(monkeypatch, capsys):
    monkeypatch.setitem(cards.CARDS, "mine", cards.Card("Mine 1 GB", 2**30, (8, 0)))
    assert sdnb.plan("tiny", gpu="mine").gpu.name == "Mine 1 GB"
    assert sdnb.fit("tiny", "mine")[0].gpu.name == "Mine 1 GB"


def test_a_log_message_is_a_table(monkeypatch):
    table = """
        [[message]]
        name = "made-up"
        patterns = ['MadeUpError:the(?P<what>\\w{1,20})isgone']
        effect = "raises"
        what = "The {what} is gone."
        why = "A test wants it."
        source = "mine.py:1"
    """
    monkeypatch.setattr(logs, "MESSAGES", (*logs.MESSAGES, *messages.read(table)))
    found = {finding.rule: finding.what for finding in sdnb.diagnose("MadeUpError: the moon is gone").findings}
    assert found["made-up"] == "The moon is gone."


TEXTS = """
[guess.a]
kind = "number"
unit = { en = "steps", zh = "步" }
within = 2

[exercise.1]
praise = { en = "Right: three.", zh = "对了：三。" }
hints = [{ en = "Count.", zh = "数一数。" }]
"""


def test_a_lesson_is_a_notebook_its_texts_and_its_exercises(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "notebooks" / "09_your_gpu.ipynb", tmp_path / "notebooks" / "10_mine.ipynb")
    (tmp_path / "sdnb").mkdir()
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "sdnb")
    assert [path.name for path in lessons.notebooks()][-3:-1] == ["09_your_gpu.ipynb", "10_mine.ipynb"]
    assert tmp_path / "copy" / "10_mine.ipynb" in lessons.unpack(tmp_path / "copy").pages
    texts = shutil.copytree(languages.FOLDER, tmp_path / "texts")
    (texts / "10.toml").write_text(TEXTS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(languages, "FOLDER", texts)
    monkeypatch.setitem(exercises.EXERCISES, "10.1", lambda answer: answer == 3)
    sdnb.check("10.1", 4)
    sdnb.check("10.1", 3)
    sdnb.guess("10.a").reveal(62)
    said = capsys.readouterr().out
    assert said.startswith("✗ Not yet. Count.\n✓ Right: three.\n")
    assert said.endswith("Write down a number, in steps, before you go on.\nMeasured: 62 steps.\n")
