"""LoRA-FA, sd-scripts' `networks.lora_fa`: A stays as it began, and B alone is trained."""

import math

import pytest
import torch

import sdnb
from sdnb import Recipe, prepare
from sdnb.lora import adapters, files
from sdnb.models import skeletons
from sdnb.sd_scripts import supported

from .test_files import copied


def recipe(*args, **others):
    others = {"network_module": "networks.lora_fa", "network_dim": 4, "network_alpha": 2.0, "network_args": list(args), **others}
    quick = {"optimizer_type": "AdamW", "optimizer_args": (), "learning_rate": 1e-2, "lr_scheduler": "constant", "lr_warmup_steps": 0}
    return Recipe(**quick, others=others)


def matrices(sd):
    """All A and all B."""
    pairs = [adapters.matrices(layer) for part in adapters.parts(sd).values() for layer in adapters.layers(part).values()]
    return [down.detach().clone() for down, _ in pairs], [up.detach().clone() for _, up in pairs]


def same(some, others):
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_a_begins_as_sd_scripts_draws_it(tiny):
    sd = copied(tiny)
    chosen = prepare.make_trainable(sd, recipe("conv_dim=2"))
    assert all(".lora_B." in name for name in chosen)
    drawn = [down.flatten() * math.sqrt((down.shape[1] + len(down)) / 2) for down in matrices(sd)[0]]
    assert torch.cat(drawn).std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("others", [{}, {"scale_weight_norms": 0.02}], ids=str)
def test_b_alone_is_trained_and_a_run_goes_on(others, ink, tiny, tmp_path):
    begun, whole, again = copied(tiny), copied(tiny), copied(tiny)
    prepare.make_trainable(begun, recipe(**others))
    steps = list(sdnb.train(whole, ink[:2], recipe(**others), steps=2))
    assert same(matrices(whole)[0], matrices(begun)[0]) == (not others)  # sd-scripts limits A as well
    assert all(up.any() for up in matrices(whole)[1])

    list(sdnb.train(copied(tiny), ink[:2], recipe(**others), steps=1, save_to=tmp_path / "saves", save_every=1))
    on = list(sdnb.train(again, ink[:2], recipe(**others), steps=2, save_to=tmp_path / "saves"))
    assert [step.loss for step in on] == [steps[1].loss]
    assert all(same(*pair) for pair in zip(matrices(again), matrices(whole), strict=True))

    read = files.load(copied(tiny), files.save(whole, tmp_path / "x.safetensors"))
    assert all(same(*pair) for pair in zip(matrices(read), matrices(whole), strict=True))


@pytest.mark.parametrize("others", [{}, {"dim_from_weights": True}], ids=str)
def test_a_file_that_a_run_begins_with_brings_its_a(others, tiny, tmp_path):
    sd = files.add(copied(tiny), rank=4, alpha=2, text_encoder=True)
    begun = copied(tiny)
    path = files.save(sd, tmp_path / "x.safetensors")
    chosen = prepare.make_trainable(begun, recipe(network_weights=str(path), **others))
    assert same(matrices(begun)[0], matrices(sd)[0])
    assert all(".lora_B." in name for name in chosen)


def test_blocks_are_known_before_sdxl_alone():
    with pytest.raises(ValueError, match="does not know the blocks of"):
        prepare.make_trainable(skeletons.skeleton("sdxl"), recipe("down_lr_weight=sine"))


def test_what_sd_scripts_does_not_read_changes_nothing(tiny):
    sd, given = copied(tiny), recipe("loraplus_lr_ratio=16")
    assert len(prepare.groups(sd, given, prepare.make_trainable(sd, given))) == 1
    assert supported.ignored(given) == ["network_args loraplus_lr_ratio: networks.lora_fa does not read it"]


def test_it_is_told_that_sd_scripts_counts_gradients_of_a():
    told = {most: " ".join(supported.differences(recipe(max_grad_norm=most))) for most in (0.0, 1.0)}
    assert "gradients" not in told[0.0] and "max_grad_norm: the norm is of B's gradients" in told[1.0]
