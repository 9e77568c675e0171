"""LyCORIS beside diffusers' models, against LyCORIS beside sd-scripts' own: layers, names and shapes; training, files, merging."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import sdnb
from benchmarks.record_networks import digest
from sdnb import Recipe, prepare
from sdnb.lora import adapters, files, lycoris
from sdnb.models import skeletons
from sdnb.sd_scripts import supported

from ..conftest import ROOT
from .test_adapters import drawn
from .test_files import copied

RECORDED = json.loads((ROOT / "tests" / "recorded" / "networks_of_sd_scripts.json").read_text(encoding="utf-8"))
ALGOS = {
    "locon": ["algo=locon", "conv_dim=2", "rank_dropout=0.1", "module_dropout=0.1"],
    "loha": ["algo=loha", "conv_dim=2", "conv_alpha=1"],
    "lokr": ["algo=lokr", "factor=4", "preset=full", "train_norm=True"],
    "dora": ["algo=lora", "dora_wd=True", "preset=attn-mlp"],
}


def recipe(args, **others):
    others = {"network_module": "lycoris.kohya", "network_dim": 4, "network_alpha": 2.0, "network_args": args, **others}
    quick = {"optimizer_type": "AdamW", "optimizer_args": (), "learning_rate": 1e-2, "lr_scheduler": "constant", "lr_warmup_steps": 0}
    return Recipe(**quick, others=others)


@pytest.fixture(scope="module")
def full_size():
    return {name: skeletons.skeleton(name) for name in ("sd15", "sdxl")}


def test_without_the_library_the_way_out_is_told(monkeypatch):
    monkeypatch.setattr(lycoris, "find_spec", lambda name: None)
    assert any("pip install 'lycoris-lora>=3.2,<4'" in line for line in prepare.refusals(recipe(["algo=loha"])))
    assert any("algo='lorra': there are lora," in line for line in prepare.refusals(recipe(["algo=lorra"])))


@pytest.mark.parametrize(
    "row", [row for row in RECORDED["lycoris"] if row["tensors"]], ids=lambda row: f"{row['model']} {' '.join(row['args'].values())}"
)
def test_layers_names_and_shapes_are_those_beside_sd_scripts(row, full_size):
    pytest.importorskip("lycoris.kohya")
    sd = full_size[row["model"]]
    try:
        lycoris.add(sd, rank=8, alpha=4.0, dropout=None, args=row["args"], text_encoder=True)
        lines = [f"{key} {tuple(value.shape)}" for part in adapters.parts(sd).values() for key, value in lycoris.tensors(part).items()]
    finally:
        adapters.remove(sd)
    assert (len(lines), digest(lines)) == (row["tensors"], row["digest"])


@pytest.mark.parametrize("args", ALGOS.values(), ids=ALGOS)
def test_they_are_trained_saved_and_read(args, ink, tiny, tmp_path):
    kohya = pytest.importorskip("lycoris.kohya")
    sd = copied(tiny)
    before = {name: value.clone() for name, value in sd.unet.state_dict().items()}
    steps = list(sdnb.train(sd, ink[:2], recipe(args), steps=2, save_to=tmp_path / "saves", save_every=1))
    assert len(steps) == 2
    assert all(torch.equal(value, before[name]) for name, value in sd.unet.state_dict().items() if name in before)
    path = files.save(sd, tmp_path / "x.safetensors")
    trained = drawn(sd)
    plain = copied(tiny)
    assert not torch.equal(trained[0], drawn(plain)[0])

    # the library reads the file beside the plain model; before SDXL, diffusers' names are sd-scripts'
    text = lycoris.mirror(plain, "text_encoder")
    network, found = kohya.create_network_from_weights(1.0, str(path), None, text, plain.unet)
    assert {key.partition(".")[0] for key in found} == {one.lora_name for one in network.unet_loras + network.text_encoder_loras}
    for one in network.unet_loras + network.text_encoder_loras:
        one.apply_to()
    for one, other in zip(drawn(plain), trained, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)

    # a run that was interrupted goes on with the same losses, also where blocks are recomputed
    again = copied(tiny)
    list(sdnb.train(again, ink[:2], recipe(args), steps=1, save_to=tmp_path / "other", save_every=1))
    anew = copied(tiny)
    on = list(sdnb.train(anew, ink[:2], recipe(args), steps=2, save_to=tmp_path / "other", save_every=1))
    assert [step.loss for step in on] == [steps[1].loss]
    checkpointed = list(sdnb.train(copied(tiny), ink[:2], recipe(args, gradient_checkpointing=True), steps=2))
    assert [step.loss for step in checkpointed] == pytest.approx([step.loss for step in steps], rel=1e-4)

    with pytest.raises(ValueError, match="not merged here"):
        files.merge(sd)
    adapters.remove(sd)
    assert torch.equal(drawn(sd)[0], drawn(tiny)[0])
    assert not adapters.has_adapters(sd) and not any("forward" in vars(module) for module in sd.unet.modules())


def test_a_run_goes_on_from_its_file(ink, tiny, tmp_path):
    pytest.importorskip("lycoris.kohya")
    first = copied(tiny)
    list(sdnb.train(first, ink[:2], recipe(ALGOS["loha"]), steps=1))
    path = files.save(first, tmp_path / "x.safetensors", metadata={"ss_network_module": "lycoris.kohya"})
    second = copied(tiny)
    prepare.make_trainable(second, recipe(ALGOS["loha"], network_weights=str(path)))
    found = load_file(files.save(second, tmp_path / "y.safetensors"))
    assert all(torch.equal(value, found[key]) for key, value in load_file(path).items())
    with pytest.raises(ValueError, match="is of another size"):
        prepare.make_trainable(copied(tiny), recipe(ALGOS["loha"], network_weights=str(path), network_dim=3))


def randomized(sd, seed=0):
    """The same model, what its adapters train made random."""
    generator = torch.Generator().manual_seed(seed)
    for part in adapters.parts(sd).values():
        for one in lycoris.adapters(part).values():
            for parameter in one.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return sd


@pytest.mark.parametrize(
    "args", [ALGOS["locon"], ["algo=lora", "use_scalar=True"], ALGOS["loha"], ALGOS["lokr"], ["algo=diag-oft"]], ids=str
)
def test_they_are_held_to_a_norm_as_the_library_holds_them(args, tiny):
    kohya = pytest.importorskip("lycoris.kohya")
    ours, theirs = copied(tiny), copied(tiny)
    for sd in (ours, theirs):
        prepare.make_trainable(sd, recipe(args))
        randomized(sd)
    network = SimpleNamespace(text_encoder_loras=[], unet_loras=[])
    for part in adapters.parts(theirs).values():
        network.unet_loras += lycoris.adapters(part).values()
    scaled, mean, largest = kohya.LycorisNetworkKohya.apply_max_norm_regularization(network, 0.02, "cpu")
    norms = sdnb.lora.limit_norms(ours, 0.02)
    assert norms.scaled == scaled > 0
    assert (norms.mean, norms.largest) == pytest.approx((float(mean), float(largest)))
    for part, other in zip(adapters.parts(ours).values(), adapters.parts(theirs).values(), strict=True):
        expected = lycoris.tensors(other)
        assert all(torch.equal(value, expected[key]) for key, value in lycoris.tensors(part).items())


def test_a_run_held_to_a_norm_goes_on_as_if_uninterrupted(ink, tiny, tmp_path):
    pytest.importorskip("lycoris.kohya")
    held = recipe(["algo=lora"], scale_weight_norms=0.02, network_train_unet_only=True)
    whole, again = copied(tiny), copied(tiny)
    steps = list(sdnb.train(whole, ink[:2], held, steps=2))
    assert steps[0].norms.scaled
    list(sdnb.train(copied(tiny), ink[:2], held, steps=1, save_to=tmp_path, save_every=1))
    assert [step.loss for step in sdnb.train(again, ink[:2], held, steps=2, save_to=tmp_path)] == [steps[1].loss]
    expected = lycoris.tensors(whole.unet)
    assert all(torch.equal(value, expected[key]) for key, value in lycoris.tensors(again.unet).items())


@pytest.mark.parametrize(
    ("args", "others", "why"),
    [
        (["algo=dylora"], {"scale_weight_norms": 1.0}, "LyCORIS limits no norm of algo=dylora"),
        (["algo=full"], {}, "train all weights instead"),
        (["algo=ia3"], {}, "LyCORIS 3 does not make it"),
        (["algo=loha", "conv_dim=2"], {"dim_from_weights": True, "network_weights": "x.safetensors"}, "read for networks.lora alone"),
    ],
    ids=str,
)
def test_what_is_refused(args, others, why, monkeypatch):
    monkeypatch.setattr(lycoris, "find_spec", lambda name: True)
    assert any(why in line for line in prepare.refusals(recipe(args, **others)))


def test_a_preset_cannot_bring_in_what_is_refused(tiny, tmp_path):
    pytest.importorskip("lycoris.kohya")
    preset = tmp_path / "preset.toml"
    preset.write_text("[module_algo_map.ResnetBlock2D]\nalgo = 'full'\n", encoding="utf-8")
    with pytest.raises(ValueError, match="algo=full: LyCORIS 3 takes the weights"):
        prepare.make_trainable(tiny, recipe(["algo=lora", f"preset={preset}"]))
    assert not adapters.has_adapters(tiny)


def test_arguments_that_the_library_does_not_read_change_nothing(tiny):
    pytest.importorskip("lycoris.kohya")
    sd, given = copied(tiny), recipe(["algo=lora", "down_lr_weight=sine"])
    assert [len(group["params"]) for group in prepare.groups(sd, given, prepare.make_trainable(sd, given))] == [290]
    assert supported.ignored(given) == ["network_args down_lr_weight: lycoris.kohya does not read it"]


def test_a_plan_counts_them():
    pytest.importorskip("lycoris.kohya")
    plan = sdnb.plan("tiny", recipe(ALGOS["loha"], network_train_unet_only=True), resolution=64)
    sd = sdnb.load("tiny", device="cpu")
    chosen = prepare.make_trainable(sd, recipe(ALGOS["loha"], network_train_unet_only=True))
    assert plan.trained == sum(p.numel() for p in chosen.values()) > 0
