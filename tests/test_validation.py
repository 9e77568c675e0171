"""Validation: the same pictures held out as by sd-scripts, and training that does not notice."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import sdnb
from sdnb import Recipe
from sdnb.datasets import validation
from sdnb.datasets.folders import Pictures
from sdnb.memory import MemoryTrace
from sdnb.saves import folders
from sdnb.watch import History, summary

RECORDED = json.loads((Path(__file__).parent / "recorded" / "loop_of_sd_scripts.json").read_text())
QUICK = Recipe(train_batch_size=2, lr_warmup_steps=0, lr_scheduler="constant", seed=3)
SPLIT = {"validation_split": 0.25, "validation_seed": 1}


def twin(tiny):
    return dataclasses.replace(tiny, **{part: copy.deepcopy(module) for part, module in tiny.parts.items()})


def run(tiny, pictures, recipe, steps=4, **more):
    return list(sdnb.train(twin(tiny), pictures, recipe, steps=steps, **more))


def test_the_halves_are_those_of_sd_scripts():
    """Recorded from its split_train_val by benchmarks/record_loop.py."""
    for row in RECORDED["splits"]:
        assert validation.halves(row["count"], row["share"], row["seed"]) == (row["trained"], row["held_out"]), row


def test_each_folder_is_split_and_regularization_is_not(ink):
    def picture(place, folder, **more):
        return dataclasses.replace(ink[place], path=Path(folder) / f"{place}.png", **more)

    group = [picture(i, "a", repeats=3) for i in range(4)] + [picture(i, "b") for i in range(8)]
    regular = [picture(i, "r", is_reg=True) for i in range(16)]
    kept, held_out = validation.split(Pictures(tuple(group), groups=((*group, *regular),)), Recipe(**SPLIT))
    assert [one.path.parent.name for one in held_out] == ["a", "b", "b"]
    assert {one.repeats for one in held_out} == {1}
    assert not {one.path for one in kept} & {one.path for one in held_out}
    assert len([one for one in kept if one.is_reg]) == 3 * 3 + 6  # as many as are shown of the others
    assert validation.split(group, Recipe()) == (group, ())
    kept, held_out = validation.split(group, Recipe(**SPLIT, in_json="meta.json"))  # sd-scripts does not split metadata
    assert len(kept) == len(held_out) == len(group)
    with pytest.raises(ValueError, match=r"validation_split=0\.9 leaves no picture"):
        validation.split(group[:0] + regular, Recipe(validation_split=0.9))


def test_when_it_is_due():
    def due(steps, each, **settings):
        recipe = Recipe(validation_split=0.1, **settings)
        return [done for done in range(1, steps + 1) if validation.is_due(recipe, done, steps, each)]

    assert due(7, 3) == [3, 6, 7]  # each epoch, and the end of the last, which breaks off
    assert due(7, 3, validate_every_n_epochs=2) == [6]
    assert due(7, 3, validate_every_n_epochs=3) == [7]
    assert due(7, 3, validate_every_n_steps=2, validate_every_n_epochs=9) == [2, 4, 6]


def test_training_does_not_notice_it(tiny, ink, tmp_path):
    recipe = QUICK.replace(**SPLIT, validate_every_n_steps=1, caption_dropout_rate=0.5)
    kept, _ = validation.split(ink[:8], recipe)
    with_it = run(tiny, ink[:8], recipe, save_to=tmp_path, save_every=2)
    without = run(tiny, kept, QUICK.replace(caption_dropout_rate=0.5))
    assert [step.loss for step in with_it] == [step.loss for step in without]
    assert all(math.isfinite(step.validation_loss) for step in with_it) and without[0].validation_loss is None
    # and a run that goes on has the same validations
    folders.remove(tmp_path / "step-00000004")
    rest = run(tiny, ink[:8], recipe.replace(validate_every_n_epochs=7), save_to=tmp_path, save_every=2)
    assert [(step.loss, step.validation_loss) for step in rest] == [(step.loss, step.validation_loss) for step in with_it[2:]]


@pytest.mark.parametrize("settings", [{}, {"network_dim": 2}, {"network_dim": 2, "network_train_unet_only": True, "cache_latents": True}])
def test_it_is_the_mean_loss_at_four_levels(tiny, ink, settings):
    """Computed by hand from noise as sd-scripts draws it: one seed, then a draw for each batch and level."""
    recipe = QUICK.replace(**SPLIT, **settings, learning_rate=1e-30)
    validated = run(tiny, ink[:12], recipe, steps=1)[0].validation_loss
    _, held_out = validation.split(ink[:12], recipe)
    tried = validation.Validation(tiny, held_out, recipe)
    assert [len(group) for group in tried.groups] == [2, 1] and tried.levels == np.linspace(0, 1000, 6, dtype=int)[1:-1].tolist()
    torch.manual_seed(1)
    losses = []
    for number, group in enumerate(tried.groups):
        batch = tried.cache.of(group, number)
        for level in (200, 400, 600, 800):
            noise, t = torch.randn(batch.latents.shape), torch.full((len(group),), level)
            noisy = tiny.noise_scheduler.add_noise(batch.latents, noise, t)
            with torch.no_grad():
                found = tiny.unet(noisy, t, batch.context).sample
            losses.append(torch.nn.functional.mse_loss(found, noise).item())
    assert validated == pytest.approx(np.mean(losses), rel=1e-5)
    assert validated == pytest.approx(run(tiny, ink[:12], recipe, steps=1)[0].validation_loss, rel=1e-6)


def test_its_settings(tiny, ink):
    recipe = QUICK.replace(validation_split=0.5, max_validation_steps=1, min_timestep=100, max_timestep=150)
    _, held_out = validation.split(ink[:8], recipe)
    tried = validation.Validation(tiny, held_out, recipe)
    assert len(tried.groups) == 1 and tried.levels == [110, 120, 130, 140] and tried.seed == 3
    first, second = list(tried.batches()), list(tried.batches())
    assert all(torch.equal(a.noise, b.noise) and torch.equal(a.latents, b.latents) for a, b in zip(first, second, strict=True))
    with pytest.raises(ValueError, match=r"validation_split=1\.5: it must be 0 or above and below 1"):
        Recipe(validation_split=1.5)


def test_it_needs_less_memory_than_a_step(tiny, ink):
    """So a plan of a step holds with it."""
    recipe = QUICK.replace(**SPLIT)
    sd = twin(tiny)
    tried = validation.Validation(sd, validation.split(ink[:8], recipe)[1], recipe)
    with MemoryTrace(sd.unet) as trace, torch.no_grad():
        for batch in tried.batches():
            sdnb.training.denoising_loss(sd, batch, recipe)
    planned = sdnb.plan(sd, recipe.replace(gradient_checkpointing=True)).by_category
    assert trace.peak.bytes["activations"] < 0.5 * planned["activations"]


def test_it_is_drawn_and_told():
    steps = [sdnb.Step(i, 0.2 - i / 1000, 1e-4, 0.1, validation_loss=0.3 - i / 500 if i % 5 == 4 else None) for i in range(20)]
    run = History(steps)
    assert run.validations[0].tolist() == [4, 9, 14, 19]
    assert run.records()[3]["validation_loss"] is None and run.records()[4]["validation_loss"] == pytest.approx(0.292)
    chart = summary.history(run)
    assert "The validation loss ends at 0.262 and was lowest after step 19, 0.262." in chart.alt
    assert [text.get_text() for text in chart.figure.axes[0].get_legend().get_texts()] == ["each step", "smoothed", "validation"]
    line = chart.figure.axes[0].lines[-1]
    assert line.get_marker() == "D" and line.get_linestyle() == "--"
    both = summary.history({"one": run, "two": History(steps)})
    assert [text.get_text() for text in both.figure.axes[0].get_legend().get_texts()] == ["one", "two", "validation"]
