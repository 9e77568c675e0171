"""Runs that start from LoRA files: `network_weights`, `dim_from_weights` and `base_weights`."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import sdnb
from benchmarks.record_networks import merged_example
from sdnb import Recipe, prepare
from sdnb.lora import adapters, files
from sdnb.sd_scripts import ignored

from ..conftest import ROOT
from .test_adapters import drawn, randomized
from .test_files import copied

RECORDED = json.loads((ROOT / "tests" / "recorded" / "networks_of_sd_scripts.json").read_text(encoding="utf-8"))
SIZE = {"network_module": "networks.lora", "network_dim": 2, "network_alpha": 1.0}


def recipe(**others):
    return Recipe(others={**SIZE, **others})


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory):
    """A LoRA of rank 2 and alpha 1, of the U-Net with its convolutions, of rank 3, and of the text encoder."""
    sd = randomized(files.add(copied(tiny), rank=2, alpha=1, text_encoder=True, conv_dim=3, conv_alpha=2))
    return str(files.save(sd, tmp_path_factory.mktemp("weights") / "before.safetensors"))


def state(sd, path):
    return load_file(files.save(sd, path))


def test_a_run_goes_on_from_a_file(file, fresh, tmp_path):
    """The layers that both have; the others begin as ever, and what is in the file alone is left out."""
    prepare.make_trainable(fresh, recipe(network_weights=file))
    found, before = state(fresh, tmp_path / "x.safetensors"), load_file(file)
    assert found.keys() < before.keys()  # without convolutions
    assert all(torch.equal(value, before[key]) for key, value in found.items())


def test_ranks_and_alphas_come_from_the_file(file, fresh, tmp_path):
    others = recipe(network_weights=file, dim_from_weights=True, network_dim=7, network_dropout=0.1)
    chosen = prepare.make_trainable(fresh, others)
    found, before = state(fresh, tmp_path / "x.safetensors"), load_file(file)
    assert found.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in found.items())
    assert len(chosen) == 2 * len(before) / 3
    assert not any(layer.lora_A["default"]._forward_hooks for layer in adapters.layers(fresh.unet).values())
    assert ignored(others) == ["network_dim, network_dropout: network_weights and dim_from_weights say it"]


def test_parts_that_are_not_trained_are_left_out(file, fresh):
    with pytest.warns(RuntimeWarning, match="before.safetensors has for the text_encoder is left out"):
        prepare.make_trainable(fresh, recipe(network_weights=file, dim_from_weights=True, network_train_unet_only=True))
    assert files.is_added(fresh.unet) and not files.is_added(fresh.text_encoder)


def test_a_run_trains_and_writes_what_it_began_with(file, ink, fresh, tmp_path):
    quick = recipe(network_weights=file, dim_from_weights=True).replace(learning_rate=1e-3, lr_warmup_steps=0, lr_scheduler="constant")
    assert len(list(sdnb.train(fresh, ink[:2], quick, steps=2))) == 2
    found, before = state(fresh, tmp_path / "x.safetensors"), load_file(file)
    assert found.keys() == before.keys()
    assert {key.rpartition(".")[2] for key, value in found.items() if torch.equal(value, before[key])} == {"alpha"}


def test_base_weights_are_merged_before(file, fresh, tiny):
    by_hand = files.merge(files.load(files.merge(files.load(copied(tiny), file, strength=0.5)), file))
    sd = fresh
    prepare.make_trainable(sd, recipe(base_weights=[file, file], base_weights_multiplier=[0.5]))
    for one, other in zip(drawn(sd), drawn(by_hand), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    assert not torch.equal(drawn(sd)[0], drawn(tiny)[0])


@pytest.mark.parametrize("row", RECORDED["merged"], ids=lambda row: f"{row['kind']} {row['dtype']}")
def test_merged_weights_are_those_of_sd_scripts(row):
    layer, down, up, alpha, multiplier = merged_example(row["kind"], row["dtype"])
    part = torch.nn.Sequential(layer)
    adapters.put(part, {"0": (len(down), alpha)})
    adapted = adapters.layers(part)["0"]
    for matrix, value in zip(adapters.matrices(adapted), (down, up), strict=True):
        matrix.data = value
    adapted.set_scale("default", multiplier)
    adapters.merge_layer(adapted)
    torch.testing.assert_close(layer.weight.float().flatten(), torch.tensor(row["weight"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("others", "said"), [
    ({"network_dim": 4}, "has rank 2 at .* and the recipe 4: set network_dim"),
    ({"network_alpha": 2.0}, "alpha 1 at .* the recipe says 2, .* set network_alpha"),
    ({"network_args": ["conv_dim=2", "conv_alpha=2"]}, "has rank 3 at .* conv_dim"),
])  # fmt: skip
def test_a_file_of_another_size_is_refused(others, said, file, fresh, tiny):
    with pytest.raises(ValueError, match=said):
        prepare.make_trainable(fresh, recipe(network_weights=file, **others))
    assert not adapters.has_adapters(fresh)
    assert torch.equal(drawn(fresh)[0], drawn(tiny)[0])


def test_files_that_cannot_be_used_are_refused_before_a_model_is_loaded(tmp_path, fresh):
    (tmp_path / "x.pt").write_bytes(b"\x80\x04.")
    save_file({"lora_unet_x.alpha": torch.tensor(1.0)}, tmp_path / "other.safetensors")
    for others, said in (
        ({"network_weights": str(tmp_path / "none.safetensors")}, "does not exist"),
        ({"network_weights": str(tmp_path / "x.pt")}, "network_weights: x.pt is a pickle.*convert it"),
        ({"base_weights": [str(tmp_path / "x.pt")]}, "base_weights: x.pt is a pickle"),
        ({"dim_from_weights": True}, "takes the ranks from network_weights"),
    ):
        assert any(said.partition(".*")[0] in line for line in prepare.refusals(recipe(**others))), said
    with pytest.raises(ValueError, match="does not fit this model"):
        prepare.make_trainable(fresh, recipe(base_weights=[str(tmp_path / "other.safetensors")]))


def test_a_plan_knows_the_ranks_of_the_file(file):
    found = sdnb.plan("tiny", recipe(network_weights=file, dim_from_weights=True, network_train_unet_only=True), resolution=64)
    before = load_file(file)
    assert found.trained == sum(value.numel() for key, value in before.items() if key.startswith("lora_unet") and value.ndim)
