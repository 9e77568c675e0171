"""Which parts train, at which rates, and what becomes of them: as sd-scripts has it, by its own functions where it has some."""

import json
import shlex

import pytest
import torch

import sdnb
from sdnb import Recipe, prepare
from sdnb.lora import adapters
from sdnb.models import skeletons
from sdnb.sd_scripts import differences, ignored

from .conftest import ROOT
from .tools import narrow

FACTS = json.loads((ROOT / "tests" / "recorded" / "parts_of_sd_scripts.json").read_text())
ADAMW = {"optimizer_type": "AdamW", "optimizer_args": (), "lr_warmup_steps": 0}
SETTINGS = {**ADAMW, "train_batch_size": 1, "resolution": 32, "learning_rate": 1e-3}
QUICK = Recipe(**SETTINGS)
WHOLE = {"train_text_encoder": True}
LORA = {"network_module": "networks.lora", "network_dim": 2}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A narrow SDXL's folder."""
    return narrow.make("sdxl", tmp_path_factory.mktemp("sdxl") / "model")


def weights(sd):
    return {f"{part}.{name}": p.detach().clone() for part, module in sd.parts.items() for name, p in module.named_parameters()}


def moved(sd, before):
    """The first words of the names of all parameters that changed."""
    return {name for name, p in weights(sd).items() if not torch.equal(p, before[name])}


def parts_of(names):
    return {name.partition(".")[0] for name in names}


# adapters, as LoRANetwork.prepare_optimizer_params has them


@pytest.mark.parametrize("row", FACTS["groups"], ids=lambda row: "-".join(str(row[name]) for name in list(row)[:3]))
def test_adapters_have_the_groups_of_sd_scripts(fresh, row):
    named = {name: row[name] for name in ("unet_lr", "text_encoder_lr") if row[name] is not None}
    recipe = QUICK.replace(learning_rate=row["learning_rate"], others={**LORA, **named})
    if not row["groups"]:
        with pytest.raises(ValueError, match="nothing is left to train"):
            prepare.make_trainable(fresh, recipe)
        return
    chosen = prepare.make_trainable(fresh, recipe)
    made = prepare.groups(fresh, recipe, chosen)
    names = {id(p): name.partition(".")[0].replace("_", "") for name, p in chosen.items()}
    rates = {names[id(p)]: group.get("lr", recipe.learning_rate) for group in made for p in group["params"]}
    assert rates == dict(row["groups"])


def test_only_the_first_rate_of_text_encoders_counts(wide):
    recipe = QUICK.replace(others={**LORA, "text_encoder_lr": [2e-4, 3e-4]})
    sd = sdnb.load(wide, device="cpu")
    assert [group["lr"] for group in prepare.groups(sd, recipe, prepare.make_trainable(sd, recipe))] == [1e-3, 2e-4, 2e-4]
    assert ignored(recipe) == ["text_encoder_lr: of several rates only the first is used, for all text encoders"]


@pytest.mark.parametrize("row", FACTS["norms"], ids=lambda row: str(row["scale_weight_norms"]))
def test_adapters_are_held_to_a_norm_as_there(row):
    """Linear layers, convolutions of one pixel and of nine, some above the norm and some below."""
    part = torch.nn.Module()
    sizes = {}
    for place, one in enumerate(row["adapters"]):
        down, up = torch.tensor(one["down"]), torch.tensor(one["up"])
        kernel = down.shape[2:]
        layer = torch.nn.Conv2d(down.shape[1], len(up), tuple(kernel)) if kernel else torch.nn.Linear(down.shape[1], len(up))
        part.add_module(f"layer{place}", layer)
        sizes[f"layer{place}"] = len(down), one["alpha"]
    adapters.put(part, sizes)
    for layer, one in zip(adapters.layers(part).values(), row["adapters"], strict=True):
        for matrix, name in zip(adapters.matrices(layer), ("down", "up"), strict=True):
            matrix.data = torch.tensor(one[name])
    sd = type("Holder", (), {"family": "sd1", "denoiser": part, "encoders": {}})()
    norms = sdnb.lora.limit_norms(sd, row["scale_weight_norms"])
    assert norms.scaled == row["scaled"]
    assert (norms.mean, norms.largest) == pytest.approx((row["mean"], row["largest"]), rel=1e-6)
    for layer, one in zip(adapters.layers(part).values(), row["adapters"], strict=True):
        for matrix, name in zip(adapters.matrices(layer), ("down_after", "up_after"), strict=True):
            torch.testing.assert_close(matrix.detach(), torch.tensor(one[name]), rtol=1e-6, atol=0)


def test_a_run_says_how_many_adapters_were_scaled(fresh, ink):
    recipe = QUICK.replace(others={**LORA, "scale_weight_norms": 1e-3})
    steps = list(sdnb.train(fresh, ink[:2], recipe, steps=2))
    count = sum(len(adapters.layers(part)) for part in fresh.parts.values())
    assert 0 < steps[-1].norms.scaled <= count
    assert steps[-1].norms.mean <= steps[-1].norms.largest <= 1e-3 * (1 + 1e-5)
    after = [layer.get_delta_weight("default").norm() for part in fresh.parts.values() for layer in adapters.layers(part).values()]
    assert max(after) <= 1e-3 * (1 + 1e-5)
    plain = sdnb.train(sdnb.load("tiny", device="cpu"), ink[:2], QUICK.replace(others={**LORA, "scale_weight_norms": 0.0}), steps=1)
    assert next(plain).norms is None


# text encoders


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["unet"]),
        ({"learning_rate_te": 1e-4}, ["unet"]),
        (WHOLE, ["text_encoder", "unet"]),
        ({**WHOLE, "learning_rate_te": 0.0}, ["unet"]),
        ({"stop_text_encoder_training": 1}, ["text_encoder", "unet"]),
        ({"stop_text_encoder_training": 0}, ["unet"]),
        ({"stop_text_encoder_training": -1}, ["unet"]),
        ({**WHOLE, "learning_rate": 0.0, "learning_rate_te": 1e-4}, ["text_encoder"]),
    ],
    ids=str,
)
def test_what_trains(fresh, ink, settings, expected):
    before = weights(fresh)
    list(sdnb.train(fresh, ink[:2], Recipe(**SETTINGS | settings), steps=2))
    assert sorted(parts_of(moved(fresh, before))) == expected


def test_an_encoder_that_stops_learns_until_then(fresh, ink):
    """As one that goes on, and not at all from that step on."""
    forever = sdnb.load("tiny", device="cpu")
    for run in zip(
        sdnb.train(forever, ink[:2], QUICK.replace(others=WHOLE), steps=3),
        sdnb.train(fresh, ink[:2], QUICK.replace(others={"stop_text_encoder_training": 2}), steps=3),
        strict=True,
    ):
        assert run[0].loss == run[1].loss
        if run[0].index == 1:
            after = weights(fresh)
            assert not moved(forever, after)
    assert parts_of(moved(fresh, after)) == {"unet"}
    assert parts_of(moved(forever, after)) == {"unet", "text_encoder"}


def test_layers_that_no_caption_is_read_from_are_left_out(fresh, wide):
    recipe = QUICK.replace(others={**WHOLE, "clip_skip": 2})
    names = [name for name in prepare.make_trainable(fresh, recipe) if name.startswith("text_encoder")]
    assert any(".layers.0." in name for name in names) and not any(".layers.1." in name for name in names)
    sd = sdnb.load(wide, device="cpu")
    chosen = prepare.make_trainable(sd, QUICK.replace(others=WHOLE))
    left_out = {f"{part}.{name}" for part, encoder in sd.encoders.items() for name, _ in encoder.named_parameters()} - chosen.keys()
    first = [name.removeprefix("text_encoder.").removeprefix("text_model.") for name in left_out]
    assert all(name.startswith(("encoder.layers.1.", "final_layer_norm.")) for name in first) and len(first) == 16 + 2


def test_recomputed_encoders_learn_the_same(ink):
    found = []
    for recompute in (False, True):
        sd = sdnb.load("tiny", device="cpu")
        list(sdnb.train(sd, ink[:2], QUICK.replace(gradient_checkpointing=recompute, others=WHOLE), steps=2))
        found.append(weights(sd))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


RATES = ",".join(["0", *(f"{place}e-4" for place in range(1, 23))])


def test_sdxl_goes_on_bit_for_bit_and_is_saved_with_its_encoders(wide, ink, tmp_path):
    """With a rate for each block and each text encoder: what trained is in the folder and in the single file."""
    others = {**WHOLE, "block_lr": RATES, "learning_rate_te1": 1e-4, "learning_rate_te2": 2e-4}
    recipe = QUICK.replace(resolution=64, gradient_checkpointing=True, others=others)
    sd = sdnb.load(wide, device="cpu")
    before = weights(sd)
    whole = [step.loss for step in sdnb.train(sd, ink[:2], recipe, steps=2)]
    run = sdnb.train(sdnb.load(wide, device="cpu"), ink[:2], recipe, steps=2, save_to=tmp_path / "saves", save_every=1)
    first = next(run)
    run.close()
    again = sdnb.load(wide, device="cpu")
    (second,) = sdnb.train(again, ink[:2], recipe, steps=2, save_to=tmp_path / "saves")
    assert [first.loss, second.loss] == whole
    assert not moved(again, weights(sd))
    changed = moved(sd, before)
    assert parts_of(changed) == {"unet", "text_encoder", "text_encoder_2"}
    assert not any(name.startswith(("unet.time_embedding", "unet.add_embedding")) for name in changed)  # the first block's rate is 0
    for path in (tmp_path / "folder", tmp_path / "file.safetensors"):
        assert not moved(sdnb.load(sd.save(path), device="cpu", tokenizer=wide), weights(sd)), path


def test_blocks_are_those_of_sd_scripts():
    """Of SDXL in full size: each block has as many parameters and numbers."""
    recipe = QUICK.replace(others={"block_lr": ",".join(str(1 + place) for place in range(23))})
    sd = skeletons.skeleton("sdxl")
    made = prepare.groups(sd, recipe, prepare.make_trainable(sd, recipe))
    assert [group["lr"] for group in made] == [1.0 + place for place in range(23)]
    assert [[len(group["params"]), sum(p.numel() for p in group["params"])] for group in made] == FACTS["blocks"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({**WHOLE, "cache_text_encoder_outputs": True}, "cannot be cached: leave train_text_encoder out"),
        ({**WHOLE, "learning_rate_te1": 1e-4}, "are for SDXL: this model has one text encoder, set learning_rate_te"),
        ({"block_lr": RATES}, "block_lr is for SDXL's U-Net"),
        ({"learning_rate": 0.0}, "nothing is left to train"),
    ],
    ids=str,
)
def test_parts_that_cannot_be_are_refused(fresh, settings, said):
    with pytest.raises(ValueError, match=said):
        prepare.make_trainable(fresh, Recipe(**SETTINGS | settings))


def test_rates_that_do_nothing_are_named():
    adaptive = {"optimizer_type": "Adafactor", "optimizer_args": (), "lr_scheduler": "adafactor", "lr_warmup_steps": 0}
    assert any("unet_lr" in line.partition(":")[0] for line in ignored(Recipe(**adaptive, others={**LORA, "unet_lr": 1e-4})))
    assert ignored(QUICK.replace(others={"learning_rate_te": 1e-4}))[0].startswith("learning_rate_te: the text encoders are not trained")
    assert ignored(QUICK.replace(others={**LORA, "learning_rate_te": 1e-4}))[0].startswith("learning_rate_te: it is for training all")
    assert ignored(QUICK.replace(others={"unet_lr": 1e-4}))[0].startswith("unet_lr: it is for adapters")
    assert not ignored(QUICK.replace(others={**LORA, "unet_lr": 1e-4, "text_encoder_lr": 1e-5, "scale_weight_norms": 1.0}))
    clipped = QUICK.replace(max_grad_norm=1.0, others={**LORA, "text_encoder_lr": 0.0})
    assert [line.partition(":")[0] for line in differences(clipped)] == ["max_grad_norm"]
    assert not differences(clipped.replace(max_grad_norm=0.0))


@pytest.mark.filterwarnings("ignore:.*its own step size")
def test_optimizers_with_one_rate_for_all(fresh):
    """Adafactor with relative_step drops the parts' rates, D-Adaptation takes the first of sd-scripts' order or refuses others."""
    adaptive = {"optimizer_args": (), "lr_scheduler": "constant", "lr_warmup_steps": 0, "learning_rate": 1.0}
    named = {**LORA, "unet_lr": 1.0, "text_encoder_lr": 0.5}
    recipe = Recipe(**{**adaptive, "lr_scheduler": "adafactor"}, optimizer_type="Adafactor", others=named)
    chosen = prepare.make_trainable(fresh, recipe)
    assert all("lr" not in group for group in prepare.groups(fresh, recipe, chosen))
    first = recipe.replace(**adaptive, optimizer_type="DAdaptAdan")
    assert [group["lr"] for group in prepare.groups(fresh, first, chosen)] == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"refuses several learning rates.*the same value, or 0"):
        prepare.prepare(fresh, recipe.replace(**adaptive, optimizer_type="Prodigy"), size=(32, 32))


# which script a recipe is for


COMMON = "--pretrained_model_name_or_path=m --train_data_dir=d --output_dir=o --learning_rate=1e-6 --optimizer_type=AdamW"


@pytest.mark.parametrize(
    ("text", "trains"),
    [
        (f"accelerate launch train_db.py {COMMON}", True),
        (f"accelerate launch train_db.py {COMMON} --stop_text_encoder_training=100", True),
        (f"accelerate launch train_db.py {COMMON} --stop_text_encoder_training=-1", False),
        (f"accelerate launch fine_tune.py {COMMON}", False),
        (f"accelerate launch fine_tune.py {COMMON} --train_text_encoder", True),
        (f"accelerate launch sdxl_train.py {COMMON} --train_text_encoder", True),
        (f"accelerate launch train_network.py {COMMON} --network_module=networks.lora", False),
        (f"{COMMON} --learning_rate_te=1e-6", True),
        (COMMON, False),
    ],
)
def test_train_db_trains_its_text_encoder(text, trains):
    recipe = Recipe.parse(text)
    assert recipe.trains_text_encoders is trains
    assert Recipe.parse(recipe.to_flags()).trains_text_encoders is trains


def test_a_file_that_names_no_script_says_what_is_done():
    toml = "\n".join(
        f"{name} = {value if name == 'learning_rate' else json.dumps(value)}"
        for name, value in (word.removeprefix("--").split("=") for word in shlex.split(COMMON))
    )
    with pytest.warns(UserWarning, match="the settings name no script.*train_db.py would train them"):
        assert not Recipe.parse(toml).trains_text_encoders
    assert Recipe.parse(toml + "\nlearning_rate_te = 1e-6").trains_text_encoders
