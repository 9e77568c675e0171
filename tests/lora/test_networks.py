"""DyLoRA and OFT against sd-scripts' own: layers, names, forward passes and gradients; training, files, resuming."""

import json

import pytest
import torch
from safetensors.torch import load_file

import sdnb
from benchmarks.record_networks import digest
from benchmarks.record_other_networks import example, waves
from sdnb import Recipe, prepare
from sdnb.lora import adapters, files, lycoris, networks
from sdnb.models import skeletons
from sdnb.sd_scripts import supported

from ..conftest import ROOT
from .test_adapters import drawn
from .test_files import copied

RECORDED = json.loads((ROOT / "tests" / "recorded" / "other_networks_of_sd_scripts.json").read_text(encoding="utf-8"))


def recipe(module, args=(), **others):
    others = {"network_module": module, "network_dim": 4, "network_alpha": 2.0, "network_args": tuple(args), **others}
    quick = {"optimizer_type": "AdamW", "optimizer_args": (), "learning_rate": 1e-2, "lr_scheduler": "constant", "lr_warmup_steps": 0}
    return Recipe(**quick, others=others)


@pytest.fixture(scope="module")
def full_size():
    return {name: skeletons.skeleton(name) for name in ("sd15", "sdxl")}


@pytest.mark.parametrize(
    "row",
    [row for row in RECORDED["layers"] if row["args"].get("use_tucker") != "True"],
    ids=lambda row: f"{row['model']} {row['module']} {row['args']}",
)
def test_layers_names_and_shapes_are_those_of_sd_scripts(row, full_size):
    sd, of_text = full_size[row["model"]], row["model"] == "sd15" or row["module"] in ("networks.loha", "networks.lokr")
    try:
        networks.add(sd, module=row["module"], rank=8, alpha=4.0, args=row["args"], text_encoder=of_text)
        lines = [f"{key} {tuple(value.shape)}" for part in adapters.parts(sd).values() for key, value in lycoris.tensors(part).items()]
    finally:
        adapters.remove(sd)
    assert (len(lines), digest(lines)) == (row["tensors"], row["digest"])


def close(tensor, numbers):
    return torch.allclose(tensor.detach().flatten(), torch.tensor(numbers), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("row", RECORDED["dylora"], ids=lambda row: f"{row['kind']} {row['unit']} {row['drawn']}")
def test_dylora_trains_the_ranks_that_are_drawn(row, monkeypatch):
    layer, x = example(row["kind"])
    module = networks.DyLora("name", layer, 4, 2.0, row["unit"])
    assert [list(parameter.shape) for parameter in (module.lora_A[0], module.lora_B[0])] == row["shapes"]
    for place, parameter in enumerate([*module.lora_A, *module.lora_B]):
        parameter.data = waves(parameter.shape, place)
    module.apply_to()
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: torch.tensor(row["drawn"]))
    result = layer(x)
    result.square().sum().backward()
    assert close(result, row["result"])
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert gradients.keys() == row["gradients"].keys()
    assert all(close(gradient, row["gradients"][name]) for name, gradient in gradients.items())
    assert {key: list(value.shape) for key, value in module.saved().items()} == row["saved"]


@pytest.mark.parametrize("row", RECORDED["products"], ids=lambda row: f"{row['kind']} {row['class']} {row['rank']} {row['settings']}")
def test_products_are_those_of_sd_scripts(row):
    layer, x = example(row["kind"])
    rest = (0.0, 0.0, row["settings"].get("use_tucker", False))
    more = {"factor": row["settings"].get("factor", -1)} if row["class"] == "LoKr" else {}
    module = getattr(networks, row["class"])("name", layer, row["rank"], 2.0, *rest, **more)
    assert {key: list(parameter.shape) for key, parameter in module.named_parameters()} == row["shapes"]
    assert float(module.alpha) == row["alpha"]
    for place, key in enumerate(sorted(row["shapes"])):
        module.get_parameter(key).data = waves(row["shapes"][key], place)
    module.apply_to()
    result = layer(x)
    result.square().sum().backward()
    assert close(result, row["result"])
    if row["class"] == "LoKr" or not module.tucker:  # of LoHa's, sd-scripts computes others, so it is refused
        assert all(close(module.get_parameter(key).grad, numbers) for key, numbers in row["gradients"].items())


def test_each_text_encoder_has_a_rate_of_its_own_and_lora_plus_its_part(full_size):
    sd = full_size["sdxl"]
    try:
        given = recipe("networks.loha", ["loraplus_unet_lr_ratio=4"], text_encoder_lr=(1e-3, 2e-3), unet_lr=1e-4)
        found = prepare.groups(sd, given, prepare.make_trainable(sd, given))
    finally:
        adapters.remove(sd)
    assert sorted({group["lr"] for group in found}) == [1e-4, 4e-4, 1e-3, 2e-3]
    plus = next(group for group in found if group["lr"] == 4e-4)
    assert len(plus["params"]) * 4 == sum(len(group["params"]) for group in found if group["lr"] < 1e-3)


@pytest.mark.parametrize("row", RECORDED["oft"], ids=lambda row: f"{row['kind']} {row['alpha']}")
def test_oft_turns_weights_as_sd_scripts_does(row):
    layer, x = example(row["kind"])
    module = networks.Oft("name", layer, 2, row["alpha"])
    module.oft_blocks.data = waves(module.oft_blocks.shape, 1)
    module.apply_to()
    result = layer(x)
    result.square().sum().backward()
    assert close(result, row["result"])
    assert close(module.oft_blocks.grad, row["gradient"])


@pytest.mark.parametrize(
    ("module", "args"), [("networks.dylora", ["conv_dim=4", "unit=2", "loraplus_lr_ratio=4"]), ("networks.oft", ["enable_conv=True"])]
)
def test_they_are_trained_saved_and_resumed(module, args, ink, tiny, tmp_path):
    given = recipe(module, args, network_train_unet_only=True)
    whole, again = copied(tiny), copied(tiny)
    plain = drawn(whole)
    steps = list(sdnb.train(whole, ink[:2], given, steps=2))
    list(sdnb.train(copied(tiny), ink[:2], given, steps=1, save_to=tmp_path / "saves", save_every=1))
    assert [step.loss for step in sdnb.train(again, ink[:2], given, steps=2, save_to=tmp_path / "saves")] == [steps[1].loss]
    expected = lycoris.tensors(whole.unet)
    assert all(torch.equal(value, expected[key]) for key, value in lycoris.tensors(again.unet).items())
    whole.unet.eval()
    trained = drawn(whole)
    assert not torch.equal(trained[0], plain[0])
    path = files.save(whole, tmp_path / "x.safetensors")
    found = load_file(path)
    assert found.keys() == expected.keys()
    begun = copied(tiny)
    prepare.make_trainable(begun, recipe(module, args, network_train_unet_only=True, network_weights=str(path)))
    assert all(torch.equal(value, found[key]) for key, value in lycoris.tensors(begun.unet).items())
    assert not adapters.has_adapters(adapters.remove(whole))
    if module == "networks.dylora":  # its file is a LoRA's
        loaded = files.load(copied(tiny), path)
        assert torch.allclose(drawn(loaded)[0], trained[0], atol=1e-5)


def test_recomputing_draws_the_same_ranks(ink, tiny):
    losses = []
    for checkpointing in (False, True):
        sd = copied(tiny)
        given = recipe("networks.dylora", network_train_unet_only=True).replace(gradient_checkpointing=checkpointing)
        losses.append([step.loss for step in sdnb.train(sd, ink[:2], given, steps=3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("module", "args", "others", "why"),
    [
        ("networks.dylora", ["unit=3"], {}, "network_dim=4 must be a multiple"),
        ("networks.dylora", ["conv_dim=2"], {}, "wants it to be network_dim, 4"),
        ("networks.dylora", ["unit=x"], {}, "it must be a whole number"),
        ("networks.oft", [], {"network_dim": 7}, "give a divisor of"),
        ("networks.loha", [], {}, "is for SDXL alone, in sd-scripts as well: take network_module=lycoris.kohya"),
    ],
)
def test_what_is_refused(module, args, others, why, tiny):
    with pytest.raises(ValueError, match=why):
        prepare.make_trainable(tiny, recipe(module, args, **others))
    assert not adapters.has_adapters(tiny)


def test_what_sd_scripts_cannot_do_is_refused_by_name(full_size):
    alone = recipe("networks.oft", network_train_text_encoder_only=True)
    assert any("networks.oft is for the U-Net alone" in line for line in prepare.refusals(alone))
    with pytest.raises(ValueError, match="add network_train_unet_only"):
        networks.add(full_size["sdxl"], module="networks.dylora", rank=4, alpha=1.0, args={}, text_encoder=True)


def test_what_changes_nothing_is_told():
    lines = supported.ignored(recipe("networks.oft", ["unit=2"], scale_weight_norms=1.0, text_encoder_lr=(1e-4,)))
    assert lines == [
        "scale_weight_norms: of sd-scripts' modules only networks.lora and networks.lora_fa act on it",
        "text_encoder_lr: networks.oft is for the U-Net alone",
        "network_args unit: networks.oft does not read it",
    ]
