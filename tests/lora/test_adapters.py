"""LoRA: only the adapters train, on the layers that sd-scripts trains, and a merged model is the one they were trained beside."""

import builtins
import copy
import json
import math
import sys

import pytest
import torch

import sdnb
from sdnb import Recipe
from sdnb.lora import adapters, files
from sdnb.models import family_of

from ..conftest import ROOT


def randomized(sd, *, seed=0):
    """Adapters as after a training: no zeros."""
    generator = torch.Generator().manual_seed(seed)
    for part in adapters.parts(sd).values():
        for layer in adapters.layers(part).values():
            for matrix in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
                matrix.data = torch.randn(matrix.shape, generator=generator) * 0.2
    return sd


def drawn(sd):
    """What the U-Net predicts and the text encoder says for one made-up batch."""
    generator = torch.Generator().manual_seed(1)
    config = sd.unet.config
    latents = torch.randn(2, config.in_channels, 16, 16, generator=generator).to(sd.dtype)
    context = torch.randn(2, 77, config.cross_attention_dim, generator=generator).to(sd.dtype)
    with torch.no_grad():
        return sd.unet(latents, torch.tensor([10, 900]), context).sample, sd.embed(["a red apple"])


def test_training_moves_the_adapters_and_nothing_else(ink):
    sd = files.add(sdnb.load("tiny", device="cpu"), rank=2, alpha=2)
    before = {name: value.clone() for name, value in sd.unet.state_dict().items()}
    trained = [name for name, parameter in sd.unet.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    steps = list(sdnb.train(sd, ink[:4], Recipe(learning_rate=1e-2, lr_warmup_steps=0, lr_scheduler="constant"), steps=2))
    assert len(steps) == 2
    moved = {name for name, value in sd.unet.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= set(trained)
    assert {name for name in trained if ".lora_B" in name} <= moved


def test_adapters_stay_in_full_precision():
    sd = files.add(sdnb.load("tiny", device="cpu", dtype=torch.bfloat16), rank=2, alpha=1)
    assert {p.dtype for p in sd.unet.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in sd.unet.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_text_encoders_get_theirs_when_asked():
    sd = files.add(sdnb.load("tiny", device="cpu"), rank=2, alpha=1, text_encoder=True)
    assert files.is_added(sd.text_encoder)
    assert any(p.requires_grad for p in sd.text_encoder.parameters())
    assert {path.rpartition(".")[2] for path in adapters.layers(sd.text_encoder)} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "out_proj",
        "fc1",
        "fc2",
    }


def test_attention_alone_is_the_choice_of_diffusers():
    sd = files.add(sdnb.load("tiny", device="cpu"), rank=2, alpha=1, targets="attention")
    assert {path.rpartition("attn")[2][2:] for path in adapters.layers(sd.unet)} == {"to_q", "to_k", "to_v", "to_out.0"}


def test_they_begin_as_in_sd_scripts():
    torch.manual_seed(0)
    sd = files.add(sdnb.load("tiny", device="cpu"), rank=64, alpha=1, conv_dim=16)
    for path, layer in adapters.layers(sd.unet).items():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        bound = 1 / math.sqrt(down[0].numel())  # kaiming_uniform_ with a = √5, for the inputs of one output
        assert not up.any(), path
        assert down.abs().max() <= bound, path
        assert down.abs().max() > 0.95 * bound, path
        assert down.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), path


def test_convolutions_have_a_rank_and_an_alpha_of_their_own():
    sd = files.add(sdnb.load("tiny", device="cpu"), rank=4, alpha=8, conv_dim=2, conv_alpha=1)
    sizes = {}
    for layer in adapters.layers(sd.unet).values():
        sizes.setdefault(tuple(layer.lora_A["default"].weight.shape[2:]), set()).add((layer.r["default"], layer.scaling["default"]))
    assert sizes == {(): {(4, 2.0)}, (1, 1): {(4, 2.0)}, (3, 3): {(2, 0.5)}}


def test_dropout_is_between_the_matrices():
    sd = randomized(files.add(sdnb.load("tiny", device="cpu"), rank=4, alpha=4, dropout=0.5))
    layer = next(iter(adapters.layers(sd.unet).values()))
    down = layer.lora_A["default"]
    x = torch.ones(200, *([down.weight.shape[1], 1, 1] if down.weight.ndim == 4 else [down.weight.shape[1]]))
    whole = down.eval()(x)
    torch.manual_seed(0)
    dropped = down.train()(x)
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    copy.deepcopy(sd.unet)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_model_predicts_the_same(dtype):
    plain = drawn(sdnb.load("tiny", device="cpu", dtype=dtype))
    sd = randomized(files.add(sdnb.load("tiny", device="cpu", dtype=dtype), rank=3, alpha=2, text_encoder=True, conv_dim=2))
    names = list(sdnb.load("tiny", device="cpu").unet.state_dict())
    before = drawn(sd)
    files.merge(sd)
    after = drawn(sd)
    for with_adapters, merged, without in zip(before, after, plain, strict=True):
        change = (with_adapters - without).abs().mean()
        assert (with_adapters - merged).abs().mean() < (1e-5 if dtype == torch.float32 else 0.05) * change
    assert list(sd.unet.state_dict()) == names
    assert not files.is_added(sd.unet)
    assert not files.is_added(sd.text_encoder)
    assert {p.dtype for p in sd.unet.parameters()} == {dtype}
    assert all(p.requires_grad for p in sd.unet.parameters())


def test_a_merged_model_is_saved_as_a_whole(tmp_path):
    sd = randomized(files.add(sdnb.load("tiny", device="cpu"), rank=3, alpha=2))
    expected = drawn(files.merge(sd))
    sd.save(tmp_path / "merged")
    again = drawn(sdnb.load(tmp_path / "merged", device="cpu"))
    assert all(torch.equal(one, other) for one, other in zip(expected, again, strict=True))


def test_removing_gives_the_model_back(tiny):
    sd = randomized(files.add(sdnb.load("tiny", device="cpu"), rank=3, alpha=2, text_encoder=True))
    assert not torch.equal(drawn(sd)[0], drawn(tiny)[0])
    files.remove(sd)
    assert all(torch.equal(one, other) for one, other in zip(drawn(sd), drawn(tiny), strict=True))
    assert list(sd.text_encoder.state_dict()) == list(tiny.text_encoder.state_dict())
    files.add(sd, rank=1, alpha=1)


def test_strength_scales_and_is_put_back(tiny):
    sd = randomized(files.add(sdnb.load("tiny", device="cpu"), rank=3, alpha=2))
    whole = drawn(sd)[0]
    with files.strength(sd, 0):
        assert torch.equal(drawn(sd)[0], drawn(tiny)[0])
        with files.strength(sd, 1):
            assert torch.equal(drawn(sd)[0], whole)
    assert torch.equal(drawn(sd)[0], whole)
    with files.strength(sd, 0.5):
        half = drawn(sd)[0]
        merged = drawn(files.merge(sd))[0]
    torch.testing.assert_close(half, merged, atol=2e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="no adapters"), files.strength(sd, 1):
        pass


def test_bad_use_is_refused(monkeypatch):
    sd = sdnb.load("tiny", device="cpu")
    for arguments, message in (
        (dict(rank=0, alpha=1), "rank=0"),
        (dict(rank=True, alpha=1), "rank=True"),
        (dict(rank=4, alpha=0), "alpha=0"),
        (dict(rank=4, alpha=math.nan), "alpha=nan"),
        (dict(rank=4, alpha=4, conv_dim=-1), "conv_dim=-1"),
        (dict(rank=4, alpha=4, conv_dim=2, conv_alpha=-1), "conv_alpha=-1"),
        (dict(rank=4, alpha=4, conv_alpha=1), "needs conv_dim"),
        (dict(rank=4, alpha=4, targets="attention", conv_dim=4), "leave one"),
        (dict(rank=4, alpha=4, targets="all"), "sd-scripts, attention"),
        (dict(rank=4, alpha=4, dropout=1.0), "a share"),
    ):
        with pytest.raises(ValueError, match=message):
            files.add(sd, **arguments)
        assert not files.is_added(sd.unet)
    with pytest.raises(ValueError, match="no adapters"):
        files.merge(sd)
    files.add(sd, rank=1, alpha=1)
    with pytest.raises(ValueError, match="has adapters already"):
        files.add(sd, rank=1, alpha=1)
    files.remove(sd)

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "peft":
            raise ImportError("no peft")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install"):
        files.add(sd, rank=1, alpha=1)


@pytest.fixture
def old_torchao(tmp_path, monkeypatch):
    """The torchao of Colab and Kaggle, as far as peft looks at it before it refuses it."""
    import_utils = pytest.importorskip("peft.import_utils")
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("import torch\nclass Quantized(torch.Tensor): ...\n", encoding="utf-8")
    facts = tmp_path / "torchao-0.10.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n", encoding="utf-8")
    import_utils.is_torchao_available.cache_clear()  # it remembers what it found, but no error
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        yield
    sys.modules.pop("torchao", None)
    import_utils.is_torchao_available.cache_clear()


@pytest.mark.usefixtures("old_torchao")
def test_a_torchao_that_peft_refuses_does_not_matter(tmp_path, fresh):
    """peft only looks for it, and nothing here uses it."""
    from peft.tuners.lora import model as injecting

    theirs = injecting.dispatch_torchao
    files.add(fresh, rank=1, alpha=1, text_encoder=True)
    files.save(fresh, tmp_path / "one.safetensors")
    files.remove(fresh)
    files.load(fresh, tmp_path / "one.safetensors")
    assert files.is_added(fresh.unet) and files.is_added(fresh.text_encoder)
    assert injecting.dispatch_torchao is theirs

    pipeline = family_of(fresh).pipeline(fresh.noise_scheduler, **files.remove(fresh).parts, **fresh.tokenizers)
    with pytest.raises(ImportError, match=r"torchao.*0\.10\.0"):  # so peft still refuses it where it is left alone
        pipeline.load_lora_weights(tmp_path, weight_name="one.safetensors")
    with files.beside_any_torchao(), files.beside_any_torchao(), pytest.raises(ZeroDivisionError):
        1 / 0  # noqa: B018
    assert injecting.dispatch_torchao is theirs


@pytest.mark.usefixtures("old_torchao")
def test_weights_that_torchao_quantized_get_pefts_own_error(fresh):
    import torchao

    layer = fresh.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(torchao.Quantized))
    before = {name: type(module) for name, module in fresh.unet.named_modules()}
    for _ in range(2):
        with pytest.raises(ImportError, match=r"torchao that quantized these weights: .*0\.10\.0") as raised:
            files.add(fresh, rank=1, alpha=1)
        assert isinstance(raised.value.__cause__, ImportError)
        assert {name: type(module) for name, module in fresh.unet.named_modules()} == before
        assert all(parameter.requires_grad for parameter in fresh.unet.parameters())


def test_a_recipe_asks_in_sd_scripts_words():
    assert files.settings(Recipe()) is None
    assert files.settings(Recipe(others={"network_module": "networks.lora"})) == (4, 1.0)
    assert files.settings(Recipe(others={"network_dim": 32, "network_alpha": 16.0})) == (32, 16.0)
    assert files.settings(Recipe(others={"network_dim": 32, "network_alpha": 0.0})) == (32, 32.0)  # networks/lora.py: 0 is the rank
    conv = files.asked(Recipe(others={"network_dim": 4, "network_args": ("conv_dim=8", "conv_alpha=0")}))
    assert (conv.conv_dim, conv.conv_alpha) == (8, 8)  # and so for convolutions
    asked = files.asked(Recipe.parse("--network_module=networks.lora --network_dim=8 --network_args conv_dim=4 conv_alpha=2"))
    assert asked == files.Asked(rank=8, alpha=1.0, conv_dim=4, conv_alpha=2.0)
    with pytest.raises(ValueError, match=r"only networks\.lora"):
        files.asked(Recipe(others={"network_module": "networks.lora_flux"}))


def test_a_plan_counts_the_adapters_that_a_recipe_asks_for():
    facts = json.loads((ROOT / "tests" / "recorded" / "lora_of_sd_scripts.json").read_text(encoding="utf-8"))
    scripts = {kind: values(rows, "lora_unet") for kind, rows in facts["models"]["sd15"].items()}  # of rank 8, and 2 for 3×3 convolutions
    others = {"network_module": "networks.lora", "network_dim": 8}
    both = scripts["modules"] + values(facts["models"]["sd15"]["modules"], "lora_te")
    assert sdnb.plan("sd15", Recipe(others=others), resolution=64).trained == both > scripts["modules"]
    others["network_train_unet_only"] = True
    assert sdnb.plan("sd15", Recipe(others=others), resolution=64).trained == scripts["modules"]
    others["network_args"] = ("conv_dim=2",)
    assert sdnb.plan("sd15", Recipe(others=others), resolution=64).trained == scripts["modules"] + scripts["conv"]


def values(rows, part):
    return sum(math.prod(shape) for name, shapes in rows.items() if name.startswith(part) for shape in shapes)
