"""What `network_args` asks for, against sd-scripts' own networks: layers, ranks, alphas, learning rates and forward passes."""

import json

import pytest
import torch

import sdnb
from benchmarks.record_networks import digest, example
from sdnb import Recipe, prepare
from sdnb.lora import adapters, arguments, files, names
from sdnb.lora.blocks import Blocks, Layout
from sdnb.models import family_of, skeletons
from sdnb.sd_scripts import supported

from ..conftest import ROOT

RECORDED = json.loads((ROOT / "tests" / "recorded" / "networks_of_sd_scripts.json").read_text(encoding="utf-8"))
LAYOUTS = {"sd15": Layout(12, 1), "sdxl": Layout(9, 3, 1)}


def rows(kind):
    return [pytest.param(row, id=f"{row['model']} {' '.join(row['args'])}") for row in RECORDED[kind]]


def recipe(args, **others):
    texts = [f"{name}={value}" for name, value in args.items()]
    return Recipe(others={"network_module": "networks.lora", "network_dim": 8, "network_alpha": 4.0, "network_args": texts, **others})


@pytest.fixture(scope="module")
def full_size():
    return {name: skeletons.skeleton(name) for name in LAYOUTS}


def layers(sd, asked):
    """Part, path, rank and alpha of every layer that gets an adapter, without putting any there."""
    found, family = [], family_of(sd)
    conv = None if asked.conv_dim is None else (asked.conv_dim, asked.conv_alpha)
    for part, module in adapters.parts(sd).items():
        classes, sizes = adapters.TEXT_BLOCKS, adapters.Sizes([(asked.rank, asked.alpha)], [conv] if conv else None)
        if part == family.denoiser:
            sizes = adapters.sizes_of(family, sizes, asked.blocks)
            classes = adapters.classes_of(family, sizes)
        found += [(part, path, *size) for path, size in adapters.chosen(module, classes, "sd-scripts", sizes).items()]
    return found


@pytest.mark.parametrize("row", rows("rates"))
def test_rates_of_blocks_are_those_of_sd_scripts(row):
    blocks = Blocks.of(row["args"])
    assert (blocks.rates(LAYOUTS[row["model"]]) if blocks else None) == (row["factors"] and tuple(row["factors"]))


@pytest.mark.parametrize("row", rows("sizes"))
def test_layers_ranks_and_alphas_are_those_of_sd_scripts(row, full_size):
    sd = full_size[row["model"]]
    lines = [
        f"{names.kohya(sd, part, path)} {rank} {alpha:g}" for part, path, rank, alpha in layers(sd, arguments.asked(recipe(row["args"])))
    ]
    assert (len(lines), digest(lines)) == (row["layers"], row["digest"])


@pytest.mark.parametrize("row", rows("groups"))
def test_groups_and_their_rates_are_those_of_sd_scripts(row, full_size):
    sd = full_size[row["model"]]
    rates = {name: row[name] for name in ("unet_lr", "text_encoder_lr") if row[name] is not None}
    asked_for, chosen, told = recipe(row["args"], **rates), {}, {}
    for part, path, _, _ in layers(sd, arguments.asked(asked_for)):
        for matrix, kind in (("lora_A", "lora_down"), ("lora_B", "lora_up")):
            name = f"{part}.{path}.{matrix}.default.weight"
            chosen[name] = torch.nn.Parameter(torch.empty(0))
            told[id(chosen[name])] = f"{names.kohya(sd, part, path)}.{kind}.weight"
    found = {}
    for group in prepare.groups(sd, asked_for, chosen):
        found.setdefault(group.get("lr", asked_for.learning_rate), []).extend(told[id(p)] for p in group["params"])
    assert [[rate, len(keys), digest(keys)] for rate, keys in sorted(found.items())] == row["rates"]


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row['kind']} {' '.join(row['dropouts'])}") for row in RECORDED["forward"]])
def test_dropouts_draw_as_in_sd_scripts(row):
    layer, x = example(row["kind"])
    part = torch.nn.Sequential(layer)
    adapters.put(part, {"0": (4, 2.0)}, adapters.Dropouts(**row["dropouts"]))
    adapted = next(iter(adapters.layers(part).values()))
    for matrix in adapters.matrices(adapted):
        matrix.data = torch.sin(torch.arange(matrix.numel(), dtype=torch.float32)).reshape(matrix.shape)
    torch.manual_seed(7)
    for expected in row["added"]:
        added = (part.train()(x) - layer(x)).flatten()
        torch.testing.assert_close(added, torch.tensor(expected), atol=2e-5, rtol=0)
    whole = part.eval()(x)
    assert torch.equal(part(x), whole)


def test_a_run_trains_each_block_at_its_rate(ink):
    args = ("down_lr_weight=zeros+.5", "mid_lr_weight=0", "loraplus_unet_lr_ratio=4", "module_dropout=0.2", "rank_dropout=0.1")
    others = {"network_dim": 2, "network_args": args, "network_train_unet_only": True}
    sd = sdnb.load("tiny", device="cpu")
    settings = Recipe(
        optimizer_type="AdamW", optimizer_args=(), learning_rate=1e-3, lr_scheduler="constant", lr_warmup_steps=0, others=others
    )
    assert len(list(sdnb.train(sd, ink[:2], settings, steps=3))) == 3
    found = adapters.layers(sd.unet)
    assert found and not any(path.startswith("mid_block") for path in found)
    moved = {way: max(adapters.matrices(layer)[1].abs().max().item() for path, layer in found.items() if path.startswith(way))
             for way in ("down", "up")}  # fmt: skip
    assert moved["down"] < 0.7 * moved["up"]  # AdamW's first updates are the learning rate: 2e-3 and 4e-3


@pytest.mark.parametrize(("args", "said"), [
    ({"block_dims": "1,2"}, "block_dims has 2 numbers"),
    ({"block_dims": "1,a"}, "block_dims='1,a': it must be whole numbers"),
    ({"block_dims": ",".join(["-1"] * 25)}, "has -1"),
    ({"down_lr_weight": "0.5"}, "or one of sine, linear"),
    ({"up_lr_weight": "sine+x"}, "or one of sine, linear"),
    ({"mid_lr_weight": "cosine"}, "mid_lr_weight='cosine': it must be numbers"),
    ({"down_lr_weight": "zeros", "mid_lr_weight": "0", "up_lr_weight": "zeros"}, "nothing to train"),
    ({"rank_dropout": "1.5"}, "rank_dropout=1.5: it is a share"),
    ({"loraplus_lr_ratio": "much"}, "loraplus_lr_ratio must be a number"),
])  # fmt: skip
def test_what_means_nothing_is_refused(args, said, fresh):
    with pytest.raises(ValueError, match=said):
        prepare.make_trainable(fresh, recipe(args, network_train_unet_only=True))
    assert not files.is_added(fresh.unet)
    assert all(p.requires_grad for p in fresh.unet.parameters())


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            {"block_alphas": 1, "conv_block_dims": 1},
            "network_args block_alphas, network_args conv_block_dims: it only acts with block_dims",
        ),
        ({"conv_alpha": 2}, "network_args conv_alpha: it only acts with conv_dim"),
        (
            {"block_lr_zero_threshold": 0.1, "block_dims": ",".join(["2"] * 25)},
            "network_args block_lr_zero_threshold: it only acts with down_lr_weight/mid_lr_weight/up_lr_weight",
        ),
        ({"conv_block_dims": 1, "up_lr_weight": "sine", "block_lr_zero_threshold": 0.1, "conv_dim": 2, "conv_alpha": 1}, None),
    ],
)
def test_arguments_that_do_nothing_alone_are_named(args, line):
    assert supported.ignored(recipe(args)) == ([line] if line else [])
