"""Plans in parts are what `plan` says: the stored ones, and how they are recorded."""

import itertools
from dataclasses import replace
from functools import partial

import pytest

from benchmarks import record_plans
from sdnb import Recipe
from sdnb.planner import plan
from sdnb.planner.parts import FUSED, OPTIONS, SIZES, Choice, estimate

KINDS = [name for name in OPTIONS if name not in SIZES]
ALL = [Choice(**dict(zip(KINDS, options, strict=True))) for options in itertools.product(*(OPTIONS[name] for name in KINDS))]
STALE = "the planner has changed: run python -m benchmarks.record_plans"


def planned(choice):
    return plan(choice.model, choice.recipe(), resolution=choice.resolution, trainer=choice.trainer)


@pytest.mark.parametrize(
    "choice",
    [
        Choice(trainer="sd-scripts", attention="none", batch_size=3, resolution=448, rank=32),
        Choice(method="full", optimizer="AdamW8bit", recompute=True, batch_size=1, resolution=640),
        Choice(method="full", optimizer=FUSED, precision="full bf16", batch_size=4),
    ],
    ids=lambda choice: f"{choice.trainer}-{choice.optimizer}",
)
def test_the_stored_parts_are_what_is_planned(choice):
    stored, made = estimate(choice), planned(choice)
    assert stored.peak_bytes == pytest.approx(made.peak_bytes, rel=5e-4), STALE
    for name, size in made.by_category.items():
        assert stored.categories[name] == pytest.approx(size, abs=1e-3 * made.peak_bytes), f"{name}: {STALE}"
    assert stored.flops == pytest.approx(made.flops, rel=1e-3), STALE
    assert stored.reserved_bytes == pytest.approx(made.reserved_bytes, rel=0.05), STALE
    assert sum(stored.categories.values()) == stored.peak_bytes
    assert Recipe.parse(stored.recipe.to_flags()) == stored.recipe


def test_formulas_of_two_plans_are_a_third_plan_to_the_byte():
    structure = record_plans.Structure("tiny", "full", "sd-scripts", "bf16", "none", True)
    formula = record_plans.Formula.of(partial(structure.planned, "AdamW"), one=False)
    made, told = structure.planned("AdamW", 5, 192, 16), formula.at(5, 192, 16)
    assert told.peak_bytes == made.peak_bytes
    assert told.by_category == made.by_category
    assert told.reserved_bytes == made.reserved_bytes


def test_every_choice_has_an_answer_and_every_refusal_a_reason():
    refused = 0
    for choice in ALL:
        answer = estimate(choice)
        refused += bool(answer.refusal)
        assert (answer.peak_bytes > 0) == (answer.refusal == "")
        assert answer.reserved_bytes >= answer.peak_bytes
        assert not answer.refusal or "Nearest that runs: " in answer.refusal
    assert 0 < refused < len(ALL) / 2


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (
            Choice(trainer="sd-scripts", optimizer=FUSED),
            "train_network.py takes fused_backward_pass and does nothing with it. Nearest that",
        ),
        (Choice(method="full", optimizer=FUSED, precision="fp16"), "fp16 needs a gradient scaler"),
        (Choice(method="full", trainer="diffusers", precision="full bf16"), "have no full_bf16. Nearest that runs: precision bf16"),
    ],
    ids=lambda value: value.trainer if isinstance(value, Choice) else "",
)
def test_refusals_are_the_planners(choice, words):
    assert words in estimate(choice).refusal


def test_more_of_anything_needs_more():
    for sizes in itertools.product(*(OPTIONS[name][:-1:3] for name in SIZES)):
        choice = Choice(**dict(zip(SIZES, sizes, strict=True)))
        for name in SIZES:
            larger = OPTIONS[name][OPTIONS[name].index(getattr(choice, name)) + 1]
            assert estimate(replace(choice, **{name: larger})).peak_bytes > estimate(choice).peak_bytes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "Adam"}, "optimizer='Adam': there are AdamW, "),
        ({"batch_size": 0}, "batch_size=0: give 1 to 16"),
        ({"resolution": 500}, "resolution=500: give a multiple of 64"),
    ],
    ids=str,
)
def test_what_is_no_choice_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        estimate(Choice(**change))
