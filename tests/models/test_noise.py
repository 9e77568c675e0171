"""Noise levels and predictions that a recipe asks for, beside figures of sd-scripts' own functions."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch

import sdnb
from sdnb import Recipe, losses, prepare
from sdnb.models import family_of

THEIRS = json.loads((Path(__file__).parent.parent / "recorded" / "noise_of_sd_scripts.json").read_text(encoding="utf-8"))
SETTINGS = {
    "min_snr": ({"min_snr_gamma": THEIRS["gamma"]}, False),
    "min_snr_v": ({"min_snr_gamma": THEIRS["gamma"]}, True),
    "like_noise": ({"scale_v_pred_loss_like_noise_pred": True}, True),
    "v_like": ({"v_pred_like_loss": THEIRS["v_like"]}, False),
    "debiased": ({"debiased_estimation_loss": True}, False),
    "debiased_v": ({"debiased_estimation_loss": True}, True),
}


def model(tiny):
    return dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet))


@pytest.mark.parametrize("zero", [False, True])
def test_levels_and_weights_are_those_of_sd_scripts(tiny, zero):
    """Its weights are those of the levels before they were scaled."""
    theirs, levels = THEIRS["zero" if zero else "plain"], torch.tensor(THEIRS["levels"])
    for name, (settings, v) in SETTINGS.items():
        sd, recipe = model(tiny), Recipe(others={**settings, "v_parameterization": v, "zero_terminal_snr": zero})
        prepare.make_trainable(sd, recipe)
        process = family_of(sd).process(sd)
        assert process.prediction_type == ("v_prediction" if v else "epsilon")
        torch.testing.assert_close(process.alphas_cumprod[levels], torch.tensor(theirs["alphas_cumprod"]), rtol=1e-6, atol=1e-9)
        loss = process.loss(recipe)
        weights = [loss(torch.ones(1, 2), torch.zeros(1, 2), level[None], process).item() for level in levels]
        assert weights == pytest.approx(theirs[name], rel=1e-5), name


def test_what_a_recipe_asks_for_is_trained_drawn_and_saved(tiny, ink, tmp_path):
    recipe = Recipe(train_batch_size=2, resolution=32, seed=1)
    both = {"v_parameterization": True, "zero_terminal_snr": True}
    found = {}
    for name, others in {"plain": {}, "v": {"v_parameterization": True}, "zero": {"zero_terminal_snr": True}, "both": both}.items():
        sd = model(tiny)
        found[name] = [step.loss for step in sdnb.train(sd, ink[:2], recipe.replace(others=others), steps=1)]
    assert len({loss for one in found.values() for loss in one}) == 4
    assert tiny.noise_scheduler.config["prediction_type"] == "epsilon"  # the caller's other models are left alone
    again = sdnb.load(sd.save(tmp_path / "model"), device="cpu")
    assert again.noise_scheduler.config["prediction_type"] == "v_prediction"
    assert again.noise_scheduler.alphas_cumprod[-1] == 0
    assert family_of(again).sampler(again).config["timestep_spacing"] == "trailing"


def test_the_last_level_has_no_signal_and_finite_weights(tiny):
    sd, last = model(tiny), torch.tensor([999])
    recipe = Recipe(min_snr_gamma=5.0, others={"zero_terminal_snr": True, "debiased_estimation_loss": True})
    prepare.make_trainable(sd, recipe)
    process = family_of(sd).process(sd)
    assert torch.equal(losses.add_noise(torch.ones(1, 3), torch.zeros(1, 3), last, process.alphas_cumprod), torch.zeros(1, 3))
    assert process.loss(recipe)(torch.ones(1, 3), torch.zeros(1, 3), last, process).isfinite()
