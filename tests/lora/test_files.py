"""A LoRA's file, against what others make of it: sd-scripts' names, ComfyUI's, diffusers' own reader; and what is refused."""

import copy
import dataclasses
import json
import re
import time

import pytest
import safetensors.torch
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import sdnb
from sdnb.lora import adapters, files
from sdnb.lora import metadata as loranotes
from sdnb.models import skeletons
from sdnb.models.stable_diffusion import StableDiffusion

from ..conftest import ROOT
from ..lora.test_adapters import randomized
from ..planner.test_planning import NARROW

SCRIPTS = json.loads((ROOT / "tests" / "recorded" / "lora_of_sd_scripts.json").read_text(encoding="utf-8"))
NAMES = ("sd15", "sd21", "sdxl")


def text_encoder(kind, width, seed):
    torch.manual_seed(seed)
    return kind(
        CLIPTextConfig(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2, projection_dim=64)
    ).eval()


def narrow(name):
    """A whole model with random weights and the blocks of SD 1.5, 2.1 or XL; the same each time."""
    facts = skeletons.configurations(name)
    torch.manual_seed(0)
    width = dict(cross_attention_dim=64) | NARROW[name]
    unet = UNet2DConditionModel.from_config({**facts["unet"], "sample_size": 16, "norm_num_groups": 16, **width})
    xl = name == "sdxl"
    return StableDiffusion(
        unet=unet.eval(),
        vae=AutoencoderKL(block_out_channels=(32,), norm_num_groups=16),
        text_encoder=text_encoder(CLIPTextModel, 32 if xl else 64, 1),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, 32, 2) if xl else None,
        tokenizer=sdnb.load("tiny", device="cpu").tokenizer,
        noise_scheduler=DDPMScheduler(prediction_type=facts["prediction_type"], steps_offset=1, clip_sample=False),
        family=facts["family"],
    )


@pytest.fixture(scope="module", params=NAMES)
def clean(request):
    """Not to be changed."""
    return narrow(request.param)


def copied(sd):
    return dataclasses.replace(sd, **{name: copy.deepcopy(part) for name, part in adapters.parts(sd).items()})


def outputs(sd):
    """What the U-Net and each text encoder give for one made-up batch."""
    generator = torch.Generator().manual_seed(1)
    added = None
    if sd.family == "sdxl":
        wide = sd.unet.config.projection_class_embeddings_input_dim - 6 * sd.unet.config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(2, wide, generator=generator), "time_ids": torch.full((2, 6), 64.0)}
    latents, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 64, generator=generator)
    ids = torch.randint(0, 49000, (2, 77), generator=generator)
    with torch.no_grad():
        found = [sd.unet(latents, torch.tensor([10, 900]), context, added_cond_kwargs=added).sample]
        return found + [part(ids)[0] for name, part in adapters.parts(sd).items() if name != "unet"]


def pipeline(sd):
    parts = dict(vae=sd.vae, text_encoder=sd.text_encoder, tokenizer=sd.tokenizer, unet=sd.unet, scheduler=sd.noise_scheduler)
    if sd.family == "sdxl":
        return StableDiffusionXLPipeline(**parts, text_encoder_2=sd.text_encoder_2, tokenizer_2=sd.tokenizer)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def shapes(path):
    with safe_open(path, framework="pt") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}, file.metadata()  # noqa: SIM118 - it is no dict


@pytest.fixture(scope="module", params=[*((name, False) for name in NAMES), ("sd15", True), ("sdxl", True)], ids=str)
def full_size(request, tmp_path_factory):
    """The file of the adapters of a full-size model, whose own weights are nowhere."""
    name, conv = request.param
    source = SCRIPTS["source"]
    sizes = {"conv_dim": source["conv_dim"], "conv_alpha": source["conv_alpha"]} if conv else {}
    sd = files.add(skeletons.skeleton(name), rank=source["rank"], alpha=source["alpha"], text_encoder=True, **sizes)
    for part in adapters.parts(sd).values():
        for layer in adapters.layers(part).values():
            for matrix in (layer.lora_A["default"], layer.lora_B["default"]):
                matrix.weight = torch.nn.Parameter(torch.zeros(matrix.weight.shape, dtype=torch.bfloat16))
    path = files.save(sd, tmp_path_factory.mktemp("lora") / "title.safetensors", dtype="bf16")
    return name, conv, path


def test_the_keys_and_shapes_are_those_of_sd_scripts(full_size):
    name, conv, path = full_size
    expected = {}
    for module, (down, up) in (SCRIPTS["models"][name]["modules"] | (SCRIPTS["models"][name]["conv"] if conv else {})).items():
        expected |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up, f"{module}.alpha": []}
    found, metadata = shapes(path)
    assert found == expected
    assert SCRIPTS["modelspec"][name].items() <= metadata.items()
    with safe_open(path, framework="pt") as file:
        alphas = {(file.get_slice(f"{module}.lora_down.weight").get_shape()[0], file.get_tensor(f"{module}.alpha").item())
                  for module in {key.partition(".")[0] for key in found}}  # fmt: skip
    assert alphas == ({(8, 4.0), (2, 1.0)} if conv else {(8, 4.0)})
    assert ("ss_network_args" in metadata) == conv
    assert metadata["ss_base_model_version"] == {"sd15": "sd_v1", "sd21": "sd_v2_v", "sdxl": "sdxl_base_v1-0"}[name]
    assert (metadata["ss_v2"], metadata["ss_network_module"]) == (str(name == "sd21"), "networks.lora")
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("8", "4.0")


# The names that ComfyUI's comfy/lora.py looks for, written out anew from what its two maps cover: U-Net layers by their original
# names or diffusers', and the text encoders' six layers. Each block's input or output number -> how many transformer blocks it has.
ORIGINAL = {"input_blocks_4": 2, "input_blocks_5": 2, "input_blocks_7": 10, "input_blocks_8": 10, "middle_block": 10}
ORIGINAL |= {f"output_blocks_{n}": 10 if n < 3 else 2 for n in range(6)}
DIFFUSERS = [f"down_blocks_{i}_attentions_{j}" for i in (0, 1, 2) for j in (0, 1)] + ["mid_block_attentions_0"]
DIFFUSERS += [f"up_blocks_{i}_attentions_{j}" for i in (1, 2, 3) for j in (0, 1, 2)]
ATTENTION = [f"attn{n}_to_{x}" for n in (1, 2) for x in ("q", "k", "v", "out_0")] + ["ff_net_0_proj", "ff_net_2"]
CLIP = ["mlp_fc1", "mlp_fc2", *(f"self_attn_{x}_proj" for x in ("k", "q", "v", "out"))]


def comfyui(name):
    blocks = {f"{block}_1": depth for block, depth in ORIGINAL.items()} if name == "sdxl" else dict.fromkeys(DIFFUSERS, 1)
    names = {f"lora_unet_{block}_{end}" for block in blocks for end in ("proj_in", "proj_out")}
    names |= {f"lora_unet_{block}_transformer_blocks_{t}_{x}" for block, depth in blocks.items() for t in range(depth) for x in ATTENTION}
    text = {"sd15": {"te": 12}, "sd21": {"te": 23}, "sdxl": {"te1": 12, "te2": 32}}[name]
    return names | {f"lora_{te}_text_model_encoder_layers_{b}_{x}" for te, many in text.items() for b in range(many) for x in CLIP}


def test_comfyui_finds_every_key(full_size):
    name, conv, path = full_size
    found, _ = shapes(path)
    wanted = {f"{module}.{kind}" for module in comfyui(name) for kind in ("lora_up.weight", "lora_down.weight", "alpha")}
    assert wanted <= set(found)
    assert conv or wanted == set(found)  # the table is of the layers that are trained by default


READ = [("kohya", False), ("kohya", True), pytest.param("diffusers", False, marks=pytest.mark.long), ("diffusers", True)]


@pytest.mark.parametrize(("form", "text"), READ)
def test_diffusers_and_we_read_the_same(clean, form, text, tmp_path):
    sd = randomized(files.add(copied(clean), rank=4, alpha=1.5, text_encoder=text))
    expected = outputs(sd)
    plain = outputs(clean)
    path = files.save(sd, tmp_path / "a b ü.safetensors", form=form)
    theirs = copied(clean)
    pipeline(theirs).load_lora_weights(path.parent, weight_name=path.name)
    ours = files.load(copied(clean), path)
    assert all(p.requires_grad == (".lora_" in key) for key, p in ours.unet.named_parameters())
    for number, (one, untouched, theirs_, ours_) in enumerate(zip(expected, plain, outputs(theirs), outputs(ours), strict=True)):
        torch.testing.assert_close(theirs_, one, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours_, one, atol=0, rtol=0)
        assert ((one - untouched).abs().max() > 0.01) == (number == 0 or text)


@pytest.mark.parametrize("form", files.FORMS)
def test_ranks_may_differ(clean, form, tmp_path):
    sd = randomized(files.add(copied(clean), rank=4, alpha=2, text_encoder=True, conv_dim=2, conv_alpha=3))
    path = files.save(sd, tmp_path / "x.safetensors", form=form)
    again = files.load(copied(clean), path)
    for one, other in zip(outputs(sd), outputs(again), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    second = files.save(again, tmp_path / "y.safetensors", form=form)
    one, other = load_file(path), load_file(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_form_of_diffusers_is_what_its_own_writer_writes(clean, tmp_path):
    sd = randomized(files.add(copied(clean), rank=4, alpha=1.5, text_encoder=True))
    layers = {f"{name}_lora_layers": get_peft_model_state_dict(part, adapter_name="default") for name, part in adapters.parts(sd).items()}
    type(pipeline(sd)).save_lora_weights(tmp_path, **layers, weight_name="theirs.safetensors")
    theirs = load_file(tmp_path / "theirs.safetensors")
    theirs = {re.sub(r"^(text_encoder\w*)\.(?!text_model)", r"\1.text_model.", key): value for key, value in theirs.items()}
    ours = load_file(files.save(sd, tmp_path / "ours.safetensors", form="diffusers"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    loaded = files.load(copied(clean), tmp_path / "theirs.safetensors")  # says nothing of alpha, so it is the rank
    assert {layer.scaling["default"] for layer in adapters.layers(loaded.unet).values()} == {1.0}


def test_other_spellings_are_read(clean, tmp_path):
    """diffusers' block names under kohya's prefix, the names of diffusers before peft, 1×1 convolutions for Linears, no alpha."""
    sd = randomized(files.add(copied(clean), rank=2, alpha=2))
    expected = outputs(sd)
    kohya, old = {}, {}
    for where, layer in adapters.layers(sd.unet).items():
        for kind, matrix in (("down", layer.lora_A["default"].weight), ("up", layer.lora_B["default"].weight)):
            value = matrix.detach().clone()
            kohya[f"lora_unet_{where.replace('.', '_')}.lora_{kind}.weight"] = value if value.ndim == 4 else value[..., None, None]
            if ".to_" in where:
                name = where.replace(".to_", ".processor.to_").removesuffix(".0")
                old[f"unet.{name}_lora.{kind}.weight"] = value
            else:
                old[f"unet.{where}.lora.{kind}.weight"] = value
    for number, tensors in enumerate((kohya, old)):
        path = tmp_path / f"{number}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        torch.testing.assert_close(outputs(files.load(copied(clean), path))[0], expected[0], atol=0, rtol=0)


def test_the_hashes_are_those_of_sd_scripts():
    tensors = {"b": torch.arange(400_000, dtype=torch.float32), "a": torch.arange(6, dtype=torch.float32).reshape(2, 3)}
    assert loranotes.hashes(tensors, {"ss_network_dim": "2", "modelspec.title": "another"}) == SCRIPTS["hashes"]


def test_metadata_of_the_training_is_kept(tiny, tmp_path):
    sd = files.add(copied(tiny), rank=2, alpha=1)
    path = files.save(sd, tmp_path / "new folder" / "x.safetensors", metadata={"ss_steps": 12, "ss_output_name": "mine", "ss_seed": None})
    _, metadata = shapes(path)
    assert (metadata["ss_steps"], metadata["ss_output_name"], metadata["ss_seed"]) == ("12", "mine", "None")
    assert metadata["sshs_model_hash"] == loranotes.hashes(load_file(path), metadata)["sshs_model_hash"]


def test_a_save_that_fails_leaves_the_old_file(tiny, tmp_path, monkeypatch):
    sd = files.add(copied(tiny), rank=2, alpha=1)
    path = files.save(sd, tmp_path / "x.safetensors")
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.save(randomized(sd), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_what_cannot_be_saved_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="no adapters to save"):
        files.save(tiny, tmp_path / "x.safetensors")
    sd = files.add(copied(tiny), rank=2, alpha=1)
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        files.save(sd, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="kohya, diffusers"):
        files.save(sd, tmp_path / "x.safetensors", form="a1111")
    with pytest.raises(ValueError, match="fp16, bf16"):
        files.save(sd, tmp_path / "x.safetensors", dtype="int8")
    layer = next(iter(adapters.layers(sd.unet).values()))
    layer.lora_B["default"].weight.data[:] = 1e6
    with pytest.raises(ValueError, match="save it in bf16"):
        files.save(sd, tmp_path / "x.safetensors", dtype="fp16")
    files.save(sd, tmp_path / "x.safetensors", dtype="bf16")
    layer.lora_B["default"].weight.data[:] = torch.nan
    with pytest.raises(ValueError, match="diverged"):
        files.save(sd, tmp_path / "y.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    "name, other, form",
    [("sd15", "sdxl", "kohya"), ("sdxl", "sd15", "diffusers"), ("sd21", "sd15", "kohya"), ("sd15", "sd21", "diffusers")],
)
def test_a_lora_for_another_base_is_refused_with_its_name(name, other, form, tmp_path):
    sd = files.add(skeletons.skeleton(name), rank=1, alpha=1)
    for layer in adapters.layers(sd.unet).values():
        for matrix in (layer.lora_A["default"], layer.lora_B["default"]):
            matrix.weight = torch.nn.Parameter(torch.zeros(matrix.weight.shape))
    path = files.save(sd, tmp_path / "x.safetensors", form=form)
    said = {"sd15": "Stable Diffusion 1.x", "sd21": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
    model = skeletons.skeleton(other)
    with pytest.raises(ValueError, match=rf"does not fit this model \({re.escape(said[other])}\).*it is for {re.escape(said[name])}"):
        files.load(model, path)
    assert not files.is_added(model.unet)


def test_strength_is_asked_for_when_loading(tiny, tmp_path):
    path = files.save(randomized(files.add(copied(tiny), rank=2, alpha=1)), tmp_path / "x.safetensors")
    sd = files.load(copied(tiny), path, strength=-0.5)
    assert {layer.scaling["default"] for layer in adapters.layers(sd.unet).values()} == {-0.25}
    assert load_file(files.save(sd, tmp_path / "y.safetensors")).keys() == load_file(path).keys()
    with pytest.raises(ValueError, match="finite"):
        files.load(copied(tiny), path, strength=float("nan"))


@pytest.mark.parametrize("key, kind", [
    ("lora_unet_x.hada_w1_a", "LoHa"), ("lora_unet_x.lokr_w1", "LoKr"), ("lora_unet_x.dora_scale", "DoRA"),
    ("unet.x.lora_magnitude_vector", "DoRA"), ("lora_unet_x.lora_mid.weight", "Tucker"), ("lora_unet_x.diff", "differences"),
    ("lora_unet_x.a1.weight", "GLoRA"), ("lora_unet_x.oft_blocks", "OFT"),
])  # fmt: skip
def test_adapters_of_other_kinds_are_refused_by_name(tiny, tmp_path, key, kind):
    save_file({key: torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=kind):
        files.load(copied(tiny), tmp_path / "x.safetensors")


def test_damaged_files_are_refused(tiny, tmp_path):
    sd = randomized(files.add(copied(tiny), rank=2, alpha=1))
    good = load_file(files.save(sd, tmp_path / "good.safetensors"))
    down = next(key for key in good if key.endswith("lora_down.weight"))
    name = down.partition(".")[0]
    cases = {
        "no layer of this model": {**good, "lora_unet_nothing.alpha": torch.tensor(1.0)},
        "no up matrix": {key: value for key, value in good.items() if key != f"{name}.lora_up.weight"},
        "has the alpha 0.0": {**good, f"{name}.alpha": torch.tensor(0.0)},
        "not finite": {**good, down: good[down] * torch.inf},
        "matrix of": {**good, down: good[down][:, :-1].contiguous()},
        "it is empty": {},
    }
    fresh = copied(tiny)
    for message, tensors in cases.items():
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(ValueError, match=message):
            files.load(fresh, tmp_path / "bad.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"):
        files.load(fresh, tmp_path / "cut.safetensors")
    (tmp_path / "x.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="pickle"):
        files.load(fresh, tmp_path / "x.pt")
    with pytest.raises(FileNotFoundError, match="missing"):
        files.load(fresh, tmp_path / "none.safetensors")
    assert not files.is_added(fresh.unet)
    files.load(fresh, tmp_path / "good.safetensors")
    with pytest.raises(ValueError, match="adapters already"):
        files.load(fresh, tmp_path / "good.safetensors")


# files from strangers


def state(sd):
    """All that a refused file must leave as it is."""
    return {
        part: (
            {path: (type(layer), layer.training, len(layer._forward_hooks)) for path, layer in module.named_modules()},
            {name: (id(parameter), parameter.requires_grad, parameter.dtype) for name, parameter in module.named_parameters()},
            {name: module.__dict__.get(name, "none") for name in ("peft_config", adapters.LOADED)},
        )
        for part, module in sd.parts.items()
    }


def written(path, tensors, metadata=None, *, precisions=None):
    """A file with these tensors; `precisions` says otherwise of some in the header, as no library would write it."""
    content = safetensors.torch.save(tensors, metadata)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for key, precision in (precisions or {}).items():
        header[key]["dtype"] = precision
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return path


@pytest.fixture(scope="module")
def adapted(tiny, tmp_path_factory):
    """A whole file in kohya's form, of U-Net and text encoder."""
    sd = randomized(files.add(copied(tiny), rank=2, alpha=1, text_encoder=True))
    return load_file(files.save(sd, tmp_path_factory.mktemp("adapted") / "x.safetensors"))


NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
DOWN, UP, ALPHA = f"{NAME}.lora_down.weight", f"{NAME}.lora_up.weight", f"{NAME}.alpha"


def rank(tensors, rank):
    return {DOWN: tensors[DOWN][:1].repeat(rank, 1), UP: tensors[UP][:, :1].repeat(1, rank)}


REFUSED = {
    "rank 0": (lambda t: rank(t, 0), "rank 0: from 1 to 1,024"),
    "rank 1025": (lambda t: rank(t, 1025), "rank 1,025: from 1 to 1,024"),
    "ranks that differ": (lambda t: {DOWN: rank(t, 3)[DOWN]}, "up matrix of"),
    "0-d down": (lambda t: {DOWN: torch.tensor(1.0)}, "down matrix of"),
    "0-d up": (lambda t: {UP: torch.tensor(1.0)}, "up matrix of"),
    "five dimensions": (lambda t: {DOWN: t[DOWN][..., None, None, None]}, "down matrix of"),
    "empty": (lambda t: {DOWN: torch.empty(0)}, "down matrix of"),
    "int8": (lambda t: {UP: t[UP].to(torch.int8)}, "up matrix in I8"),
    "bool": (lambda t: {UP: t[UP] > 0}, "up matrix in BOOL"),
    "complex": (lambda t: {UP: t[UP].to(torch.complex64)}, "up matrix in C64"),
    "NaN": (lambda t: {UP: t[UP] * torch.nan}, "not finite"),
    "too large for fp32": (lambda t: {UP: t[UP].double() * 1e300}, "not finite"),
    "alpha NaN": (lambda t: {ALPHA: torch.tensor(torch.nan)}, "has the alpha nan"),
    "alpha infinite": (lambda t: {ALPHA: torch.tensor(torch.inf)}, "has the alpha inf"),
    "alpha negative": (lambda t: {ALPHA: torch.tensor(-1.0)}, "has the alpha -1"),
    "two alphas": (lambda t: {ALPHA: torch.ones(2)}, r"has the alpha F32 \(2,\)"),
    "no alpha": (lambda t: {ALPHA: torch.empty(0)}, r"has the alpha F32 \(0,\)"),
    "alpha bool": (lambda t: {ALPHA: torch.tensor(True)}, "has the alpha BOOL"),
    "alpha complex": (lambda t: {ALPHA: torch.tensor(1j)}, "has the alpha C64"),
    "half": (lambda t: {UP: None}, "no up matrix"),
    "alpha alone": (lambda t: {UP: None, DOWN: None}, "no down matrix"),
    "twice": (lambda t: {f"unet.{adapters_path()}.lora_A.weight": t[DOWN].clone()}, "twice"),
    "another adapter": (lambda t: {f"unet.{adapters_path()}.lora_A.second.weight": t[DOWN].clone()}, "name no layer"),
    "text encoder": (lambda t: {first(t, "lora_te"): torch.tensor(1.0)}, "down matrix of"),
}


def adapters_path():
    return "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def first(tensors, start):
    return next(key for key in tensors if key.startswith(start) and "down" in key)


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_file_leaves_the_model_as_it_was(case, adapted, fresh, tmp_path):
    change, message = REFUSED[case]
    tensors = {key: value.contiguous() for key, value in {**adapted, **change(adapted)}.items() if value is not None}
    before = state(fresh)
    with pytest.raises(ValueError, match=rf"^x\.safetensors.*{message}"):
        files.load(fresh, written(tmp_path / "x.safetensors", tensors))
    assert state(fresh) == before
    files.add(fresh, rank=1, alpha=1, text_encoder=True)


@pytest.mark.parametrize("precision", ["F8_E8M0", "F8_E4M3FNUZ", "U8"])
def test_numbers_of_one_byte_that_are_no_weights_are_refused(precision, adapted, fresh, tmp_path):
    tensors = {**adapted, UP: adapted[UP].to(torch.float8_e4m3fn)}
    assert files.is_added(files.load(copied(fresh), written(tmp_path / "fp8.safetensors", tensors)).unet)
    before = state(fresh)
    with pytest.raises(ValueError, match=f"up matrix in {precision}"):
        files.load(fresh, written(tmp_path / "x.safetensors", tensors, precisions={UP: precision}))
    assert state(fresh) == before


def test_a_failure_in_the_middle_leaves_the_model_as_it_was(adapted, fresh, tmp_path, monkeypatch):
    """The U-Net has its adapters already when the text encoder's fail."""
    path = written(tmp_path / "x.safetensors", adapted)
    fresh.text_encoder.train()
    before = state(fresh)
    copy_ = adapters.matrices

    def failing(layer):
        if files.is_added(fresh.text_encoder):
            raise MemoryError("no more")
        return copy_(layer)

    monkeypatch.setattr(adapters, "matrices", failing)
    for load in (lambda: files.load(fresh, path), lambda: files.add(fresh, rank=1, alpha=1, text_encoder=True)):
        with pytest.raises(MemoryError, match="no more"):
            load()
        assert state(fresh) == before
    monkeypatch.undo()
    files.load(fresh, path)


def test_a_rank_that_adds_nothing_is_refused(fresh, monkeypatch):
    before = state(fresh)
    with pytest.raises(ValueError, match=r"rank 10,000,000,000: from 1 to 1,024 can be used for a layer of \(48, 48, 1, 1\)"):
        files.add(fresh, rank=10**10, alpha=1)
    assert state(fresh) == before
    files.add(fresh, rank=1024, alpha=1, targets="attention")


def test_an_alpha_for_each_layer(adapted, fresh, tmp_path):
    """peft would try the pattern of each on every layer."""
    alphas = {key: torch.tensor(1.0 + number / 100) for number, key in enumerate(key for key in adapted if key.endswith(".alpha"))}
    files.load(fresh, written(tmp_path / "x.safetensors", {**adapted, **alphas}))
    again = load_file(files.save(fresh, tmp_path / "y.safetensors"))
    assert len(set(map(float, alphas.values()))) == len(alphas) > 50
    assert {key: float(again[key]) for key in alphas} == {key: float(alpha) for key, alpha in alphas.items()}
    for part in (fresh.unet, fresh.text_encoder):
        config = part.peft_config["default"]
        for path, layer in adapters.layers(part).items():
            key = get_pattern_key(config.alpha_pattern, path)
            assert layer.scaling["default"] == layer.lora_alpha["default"] / 2 == config.alpha_pattern.get(key, config.lora_alpha) / 2


def told(**notes):
    return {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in notes.items()})}


def test_alphas_are_those_that_peft_would_find():
    """By the end of a path after a dot, the first pattern that fits; and with the signs that its own patterns have."""
    paths = ["mid.attn1.to_q", "mid.attn1.to_k", "down.attn1.to_q", "down.xattn1.to_q", "to_q", "up.0.to_out.0", "mid-b.c_d"]
    for patterns in (
        {"attn1.to_q": 2, "to_q": 3},
        {"to_q": 3, "attn1.to_q": 2},
        {r"mid\.attn1\.to_q|mid\.attn1\.to_k": 5, "to_out.0": 7},
        {"^to_q": 2, r"^mid\.attn1\.to_k": 4, r"mid\-b\.c_d": 6},
        {"down.attn1.to_q": 1.5, "o_q": 9},
    ):
        alpha = loranotes.alphas(told(alpha_pattern=patterns, lora_alpha=11))
        for path in paths:
            assert alpha("unet", path, 1) == patterns.get(get_pattern_key(patterns, path), 11), (patterns, path)
    assert loranotes.alphas(told(alpha_pattern={"to_q": 2}))("text_encoder", "to_q", 4) == 4


@pytest.mark.parametrize("text, message", {
    '{"unet.alpha_pattern": {"(([a-z_0-9.]+)+)+X": 2}}': "no regular expressions",
    '{"unet.alpha_pattern": {"a|(b+)+": 2}}': "no regular expressions",
    '{"unet.alpha_pattern": {"": 2}}': "no regular expressions",
    '{"unet.alpha_pattern": [2]}': "alpha_pattern is",
    '{"unet.alpha_pattern": {"to_q": "x"}}': "has the alpha x",
    '{"unet.alpha_pattern": {"to_q": true}}': "has the alpha True",
    '{"unet.alpha_pattern": {"to_q": NaN}}': "has the alpha nan",
    '{"unet.lora_alpha": [1]}': "has the alpha",
    '{"unet.lora_alpha": 1e999}': "has the alpha inf",
    '{"unet.lora_alpha": ' + "9" * 400 + "}": "a number of more than 100 digits",
    '{"unet.lora_alpha": ' + "9" * 9000 + "}": "lora_adapter_metadata is no JSON",
    "[]": "lora_adapter_metadata must be an object",
    "no": "lora_adapter_metadata is no JSON",
    "[" * 100_000: "lora_adapter_metadata is nested too deeply",
}.items())  # fmt: skip
def test_metadata_that_is_damaged_or_takes_for_ever(text, message, adapted, fresh, tmp_path):
    tensors = {key: value for key, value in adapted.items() if not key.endswith(".alpha")}
    path = written(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": text})
    before, began = state(fresh), time.process_time()
    with pytest.raises(ValueError, match=rf"^x\.safetensors: its .*{message}"):
        files.load(fresh, path)
    assert state(fresh) == before
    assert time.process_time() - began < 20


def test_a_pattern_in_the_metadata_reaches_no_library(adapted, fresh, tmp_path):
    metadata = told(rank_pattern={"(a+)+": 3}, target_modules="(a+)+", exclude_modules="(a+)+", r=10**9, lora_alpha=1)
    files.load(fresh, written(tmp_path / "x.safetensors", adapted, metadata))
    for part in (fresh.unet, fresh.text_encoder):
        config = part.peft_config["default"]
        assert (config.r, config.rank_pattern, config.alpha_pattern, config.exclude_modules) == (2, {}, {}, None)
        paths = [path.removesuffix(".base_layer") for path, _ in part.named_modules()]
        assert all(any(path.endswith(target) for path in paths) for target in config.target_modules)
