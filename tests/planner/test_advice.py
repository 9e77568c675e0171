"""The smallest change that makes a recipe fit, and the messages about a full card."""

import dataclasses
import itertools
import json
import math
import random
import shlex

import pytest

import sdnb
from sdnb import Recipe
from sdnb.__main__ import main
from sdnb.planner import advice, changes, planning, smallest, trainers
from sdnb.planner.planning import plan
from sdnb.system import FITS, MARGIN

ADAMW = dict(optimizer_type="AdamW", optimizer_args=())
MIB = 2**20


@pytest.fixture
def fresh():
    return sdnb.load("tiny", device="cpu")


@pytest.mark.parametrize("seed", range(60))
def test_the_search_finds_what_trying_all_sets_finds(seed):
    """For a run with weights, gradients and activations, of which each change leaves a share of its own."""
    numbers = random.Random(seed)
    sizes = [sorted(numbers.choice([10, 11, 15, 20]) for _ in range(numbers.randint(1, 2))) for _ in range(4)]
    sizes += [[100], [20, 150]]
    shares = [[sorted((numbers.choice([1.0, numbers.uniform(0.3, 1)]) for _ in topic), reverse=True) for topic in sizes] for _ in range(3)]
    parts, asked = [numbers.uniform(20, 100) for _ in shares], []

    def needs(choice):
        asked.append(choice)
        kept = [math.prod(of[option - 1] for of, option in zip(share, choice, strict=True) if option) for share in shares]
        weights, gradients, activations = (part * left for part, left in zip(parts, kept, strict=True))
        return weights + max(gradients, activations)

    def size(choice):
        return sum(topic[option - 1] for topic, option in zip(sizes, choice, strict=True) if option)

    def large(choice):
        return sum(of for topic, option in zip(sizes, choice, strict=True) if option and (of := topic[option - 1]) >= changes.LARGE_CHANGE)

    every = list(itertools.product(*(range(len(topic) + 1) for topic in sizes)))
    room = numbers.uniform(0.2, 1) * needs((0,) * len(sizes))
    fitting = [choice for choice in every if needs(choice) <= room]
    asked.clear()
    found = list(itertools.islice(smallest.smallest(sizes, lambda choice: choice != (1,) * len(choice), needs, room), 1))
    if not fitting:
        assert found == []
    else:
        assert min((large(choice), size(choice)) for choice in fitting) == (large(found[0]), size(found[0]))
    assert len(set(asked)) < len(every) / 3


FEW = Recipe.parse(
    "--network_module=networks.lora --network_dim=4 --network_train_unet_only --train_batch_size=2 --cache_latents --mixed_precision=bf16 "
    "--sdpa"
)
"""A recipe that leaves few changes to make, each of which is planned soon."""
ROOM = 48 * MIB


def planned(recipe, room=ROOM):
    return plan("tiny", recipe, gpu=room, trainer="sd-scripts")


def test_each_variant_fits_and_none_of_its_changes_can_be_left_out():
    asked = planned(FEW)
    found = asked.advice()
    assert not asked.fits and found.variants
    for variant in found.variants:
        assert variant.plan.verdict == FITS
        assert variant.saved_bytes == asked.reserved_bytes - variant.plan.reserved_bytes
        assert planned(smallest.applied(FEW, variant.changes)).reserved_bytes == variant.plan.reserved_bytes
        for change in variant.changes:
            assert not planned(smallest.applied(FEW, [one for one in variant.changes if one is not change])).fits
        assert f"add or change: {variant.flags}" in str(found)
    assert json.loads(json.dumps(found.as_dict()))["variants"][0]["verdict"] == FITS


def test_a_plan_that_fits_needs_no_change():
    assert "nothing has to change" in str(planned(FEW, 2**32).advice())


def test_advice_needs_a_card(capsys):
    with pytest.raises(ValueError, match="advice needs a card"):
        plan("tiny", FEW, trainer="sd-scripts").advice()
    assert main(["plan", "sdxl", "--advise"]) == 2
    assert "--advise needs a card" in capsys.readouterr().err


def test_where_nothing_fits_it_names_what_comes_closest():
    found = planned(FEW, 2 * MIB).advice()
    assert found.variants == () and found.closest is not None
    assert str(found).startswith("not even all of these fit: does not fit,")


def test_without_time_for_the_search_what_fits_is_named(monkeypatch):
    times = iter((0, 0, 0, 9))  # of the start and of the plans
    monkeypatch.setattr(smallest.time, "monotonic", lambda: next(times, 9))
    found = planned(FEW).advice(seconds=1)
    assert not found.finished and found.variants[0].plan.fits
    assert "there may be smaller ones" in str(found)


def test_the_command_line_advises(capsys):
    words = ["plan", "tiny", "--gpu", "t4", "--trainer", "sd-scripts", "--advise"]
    flags = ["--", *shlex.split(FEW.to_flags().replace("bf16", "fp16"))]
    assert main([*words, *flags]) == 0
    assert "nothing has to change" in capsys.readouterr().out
    assert main([*words, "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["advice"]["verdict"] == FITS


WHOLE, LORA = dict(train_batch_size=2), dict(train_batch_size=2, network_module="networks.lora", network_dim=32)


@pytest.mark.parametrize("settings", [WHOLE, LORA], ids=["whole", "LoRA"])
@pytest.mark.parametrize("trainer", ["sdnb", "sd-scripts", "diffusers"])
@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_each_change_is_one_that_the_trainer_acts_on(model, trainer, settings):
    like, recipe = planned(FEW), Recipe(**ADAMW, **settings)
    other = trainers.find(trainer, checkpointing=None, dtype=None)
    question = dataclasses.replace(like.question, source=model, trainer=trainer)
    script = other.script(recipe, model) if other else ""
    search = smallest._Search(dataclasses.replace(like, recipe=recipe, trainer=trainer, script=script, question=question), like.gpu, None)
    singles = [tuple(int(place == topic) for place in range(len(search.topics))) for topic in range(len(search.topics))]
    acted = {name for choice in singles if search.is_valid(choice) for change in search.taken(choice) for name in change.settings}
    assert ("sdpa" in acted) == (trainer == "sd-scripts")
    assert ("cache_text_encoder_outputs" in acted) <= (trainer == "sdnb" or (model == "sdxl" and trainer == "sd-scripts"))
    assert ("full_bf16" in acted) <= (trainer == "sd-scripts" and model == "sdxl")
    assert ("fused_backward_pass" in acted) <= (trainer == "sdnb")  # sd-scripts' needs Adafactor beside it


# messages about a full card


def test_before_the_first_step_it_says_what_will_not_fit(fresh):
    with pytest.warns(RuntimeWarning, match=r"cache_latents=True, .*gradient_checkpointing=True, .*optimizer_type=\"AdamW8bit\".*a LoRA"):
        advice.foresee(fresh, Recipe(**ADAMW), 64 * MIB)


@pytest.mark.parametrize("raised", [ImportError("no bitsandbytes"), RuntimeError("a kernel is there already"), KeyError("step")])
def test_a_plan_that_fails_stops_no_run(fresh, monkeypatch, raised):
    def fails(*args, **kwargs):
        raise raised

    monkeypatch.setattr(planning, "plan", fails)
    monkeypatch.setattr(advice, "usable_bytes", lambda device: 2**30)
    with pytest.warns(RuntimeWarning, match=f"could not be predicted: {type(raised).__name__}"):
        advice.warn_if_too_large(fresh, Recipe(**ADAMW))
    assert "could not be predicted" in advice.advice(fresh, Recipe(**ADAMW))[0]


def test_after_a_full_card_it_says_what_fits(fresh, monkeypatch):
    recipe = FEW.replace(cache_text_encoder_outputs=True, optimizer_type="AdamW8bit", gradient_checkpointing=True)
    need = plan(fresh, recipe).reserved_bytes
    for room in (need * 9 // 10, 4 * need):  # it did not fit, whatever the plan says
        monkeypatch.setattr(advice, "usable_bytes", lambda device, room=room: room)
        (line,) = advice.advice(fresh, recipe)
        assert line.startswith("expected to fit: ")
        changed, dtype = Recipe.parse(line.partition("as flags ")[2]), "bf16" if "dtype=torch.bfloat16" in line else None
        assert (1 + MARGIN) * plan(fresh, changed, dtype=dtype).reserved_bytes <= min(room, need)
    monkeypatch.setattr(advice, "usable_bytes", lambda device: MIB)
    (line,) = advice.advice(fresh, recipe)
    assert line.startswith("not even ") and line.endswith("a smaller model needs less")
