"""Models of each family in each format, against diffusers' own loaders, pipelines and schedulers; and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import compute_snr
from safetensors.torch import load_file, save_file

import sdnb
from sdnb import losses
from sdnb.datasets import folders as data
from sdnb.models import configurations, hub, loading, singlefile, skeletons, weights
from sdnb.models.sd import V_BIAS
from sdnb.training import Batch, denoising_loss

from ..conftest import ROOT
from ..tools import narrow

FAMILIES = list(narrow.FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> a narrow model in diffusers' format; not to be changed."""
    base = tmp_path_factory.mktemp("narrow")
    return {family: narrow.make(family, base / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def files(folders):
    """Family -> the same model in one file."""
    return {f: sdnb.load(folder, device="cpu").save(folder.with_suffix(".safetensors")) for f, folder in folders.items()}


def pipeline_of(family):
    return StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline


def same(ours, theirs, what=""):
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys(), what
    assert [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])] == [], what


# folders


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_what_diffusers_loads(family, folders):
    sd = sdnb.load(folders[family], device="cpu")
    theirs = pipeline_of(family).from_pretrained(folders[family])
    assert sd.family == family
    assert set(sd.parts) == {name for name, part in theirs.components.items() if isinstance(part, torch.nn.Module)}
    for part, module in sd.parts.items():
        same(module, getattr(theirs, part), part)
    assert [part for part, module in sd.parts.items() if any(p.requires_grad for p in module.parameters())] == ["unet"]


@pytest.mark.parametrize("family", FAMILIES)
def test_drawing_and_conditioning_are_diffusers_own(family, folders):
    """Its pipeline given a prompt, and ours given what `conditioning` makes of it: with guidance, and for v as well as noise."""
    sd = sdnb.load(folders[family], device="cpu")
    theirs = pipeline_of(family).from_pretrained(folders[family])
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    prompts = ["a red apple", "word " * 100]
    settings = dict(num_inference_steps=3, guidance_scale=4.0, height=64, width=64)
    expected = theirs(prompts, generator=generators, **settings).images
    for ours, other in zip(sd.draw(prompts, seed=3, steps=3, guidance=4.0), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(other))
    context, pooled = sd.conditioning(prompts)
    encoded = theirs.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    assert torch.equal(context, encoded[0])
    assert (pooled is None) if family != "sdxl" else torch.equal(pooled, encoded[2])
    assert torch.equal(sd.embed(prompts), context)
    assert not context.requires_grad


def test_size_conditioning_is_diffusers_own(folders):
    sd = sdnb.load(folders["sdxl"], device="cpu")
    theirs = StableDiffusionXLPipeline.from_pretrained(folders["sdxl"])
    args = ((600, 800), (8, 16), (512, 768))
    expected = theirs._get_add_time_ids(*args, dtype=torch.float32, text_encoder_projection_dim=40)[0]
    assert torch.equal(sd.time_ids(*args), expected)


def test_sdxl_is_trained_with_what_it_is_told(folders):
    """One step's loss with the pooled and size conditioning, against the U-Net called by hand."""
    sd = sdnb.load(folders["sdxl"], device="cpu")
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=generator)
    context, pooled = sd.conditioning(["a cat", "a dog"])
    ids = torch.stack([sd.time_ids((64, 64), (0, 0), (64, 64))] * 2)
    added = {"text_embeds": pooled, "time_ids": ids}
    t = torch.tensor([10, 900])
    loss = denoising_loss(sd, Batch(latents, {"context": context, "pooled": pooled}, noise, t, {"time_ids": ids}), sdnb.Recipe())
    x_t = sd.noise_scheduler.add_noise(latents, noise, t)
    prediction = sd.unet(x_t, t, encoder_hidden_states=context, added_cond_kwargs=added).sample
    torch.testing.assert_close(loss, (prediction - noise).square().mean())


def test_the_fp16_variant_is_found_and_preferred_for_half_precision(tmp_path, folders):
    folder = narrow.make("sd1", tmp_path / "half", variant="fp16")
    assert not (folder / "unet" / "diffusion_pytorch_model.safetensors").exists()
    sd = sdnb.load(folder, device="cpu")  # there is nothing else
    assert sd.dtype == torch.float32
    assert torch.equal(sd.unet.conv_in.weight, sdnb.load(folders["sd1"], device="cpu").unet.conv_in.weight.half().float())
    for part in ("unet", "vae", "text_encoder"):  # now both are there: the full ones are other weights
        shutil.copytree(narrow.make("sd1", tmp_path / "full", seed=1) / part, folder / part, dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "full")
    assert not torch.equal(sdnb.load(folder, device="cpu").unet.conv_in.weight, sd.unet.conv_in.weight)
    half = sdnb.load(folder, device="cpu", dtype=torch.float16)
    assert torch.equal(half.unet.conv_in.weight.float(), sd.unet.conv_in.weight)


def test_weights_in_several_pieces(tmp_path, folders):
    folder = shutil.copytree(folders["sd1"], tmp_path / "pieces")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="2MB")
    pieces = sorted((folder / "unet").glob("*.safetensors"))
    assert len(pieces) > 1
    same(sdnb.load(folder, device="cpu").unet, unet)
    pieces[1].unlink()
    with pytest.raises(FileNotFoundError, match=rf"{pieces[1].name} is missing, one of the {len(pieces)} pieces"):
        sdnb.load(folder, device="cpu")


def test_a_folder_as_they_were_published_in_2022(tmp_path, folders):
    """SD 1.5's has the autoencoder's attention under names that diffusers gave up, tables of positions among the weights, configurations
    with keys of their time, and the scheduler of another class."""
    folder = shutil.copytree(folders["sd1"], tmp_path / "old")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"group_norm": "group_norm", "to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for name in [name for name in tensors if ".attentions.0." in name]:
        head, tail = name.split(".attentions.0.")
        own, kind = tail.rsplit(".", 1)
        tensors[f"{head}.attentions.0.{old[own]}.{kind}"] = tensors.pop(name)
    save_file(tensors, path, metadata={"format": "pt"})
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {name if name.startswith("text_model") else f"text_model.{name}": tensor for name, tensor in load_file(path).items()}
    save_file({**tensors, "text_model.embeddings.position_ids": torch.arange(77)[None]}, path, metadata={"format": "pt"})
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    config.pop("dtype", None)
    config |= {
        "architectures": ["CLIPTextModel"],
        "_name_or_path": "openai/clip-vit-large-patch14",
        "dropout": 0.0,
        "torch_dtype": "float32",
    }
    config |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "transformers_version": "4.22.0.dev0"}
    path.write_text(json.dumps(config))
    path = folder / "scheduler" / "scheduler_config.json"
    noise = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "trained_betas": None, **configurations.SCHEDULER}
    path.write_text(json.dumps(noise))
    sd, today = (sdnb.load(one, device="cpu") for one in (folder, folders["sd1"]))
    for part, module in sd.parts.items():
        same(module, today.parts[part], part)
    assert torch.equal(sd.noise_scheduler.alphas_cumprod, today.noise_scheduler.alphas_cumprod)
    assert torch.equal(sd.embed(["a cat"]), today.embed(["a cat"]))
    assert sd.noise_scheduler.config.prediction_type == "epsilon"
    assert sd.draw("a cat", steps=1).size == (64, 64)


def test_precision_by_part(folders):
    sd = sdnb.load(folders["sdxl"], device="cpu", dtype={"unet": torch.float32, "vae": torch.bfloat16, "text_encoder": torch.float16})
    assert [module.dtype for module in sd.parts.values()] == [torch.float32, torch.bfloat16, torch.float16, torch.float16]
    assert sd.draw("a cat", steps=1).size == (64, 64)
    half = sdnb.load(folders["sdxl"], device={"vae": "cpu"}, dtype=torch.float16)
    assert [module.dtype for module in half.parts.values()] == [torch.float16, torch.float32, torch.float16, torch.float16]
    with pytest.raises(ValueError, match="dtype of u-net: the parts of a model are unet, vae"):
        sdnb.load(folders["sd1"], dtype={"u-net": torch.float16})


# single files


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_comes_back_bit_for_bit(family, folders, files):
    sd = sdnb.load(folders[family], device="cpu")
    again = sdnb.load(files[family], device="cpu", tokenizer=folders[family])
    assert (again.family, again.resolution) == (family, 64)
    for part, module in sd.parts.items():
        same(again.parts[part], module, part)
        assert again.parts[part].training == module.training
    theirs = {key: value for key, value in again.noise_scheduler.config.items() if not key.startswith("_")}
    assert theirs == {key: value for key, value in sd.noise_scheduler.config.items() if not key.startswith("_")}
    assert torch.equal(again.conditioning(["a cat"])[0], sd.conditioning(["a cat"])[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_our_single_file(family, folders, files, tmp_path):
    bare = narrow.configurations_only(folders[family], tmp_path / "bare")
    kwargs = dict(config=str(bare), local_files_only=True)
    pipeline = pipeline_of(family).from_single_file(str(files[family]), **kwargs)
    for part, module in sdnb.load(folders[family], device="cpu").parts.items():
        same(module, getattr(pipeline, part).float(), part)
    unet = UNet2DConditionModel.from_single_file(str(files[family]), subfolder="unet", **kwargs)
    vae = AutoencoderKL.from_single_file(str(files[family]), subfolder="vae", **kwargs)
    same(unet, pipeline.unet)
    same(vae, pipeline.vae)


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_a_full_size_model_fits_the_original_layout(name):
    """On meta: what is written of the real architectures is read again by diffusers' converters with every shape in its place; the
    names that other programs tell the families apart by are there."""
    sd = skeletons.skeleton(name)
    facts = configurations.configurations(name)
    original = singlefile.to_original(sd.parts, sd.family)
    for part, module in sd.parts.items():
        found = singlefile.from_original(part, original, facts, module)
        expected = module.state_dict()
        assert {n: found[n].shape for n in expected} == {n: tensor.shape for n, tensor in expected.items()}, part
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    assert infer_diffusers_model_type(original) == {"sd15": "v1", "sd21": "v2", "sdxl": "xl_base"}[name]
    # tensors in the published files, without tables of positions and of noise: U-Net, autoencoder, text encoders
    assert len(original) == {"sd15": 686 + 248 + 196, "sd21": 686 + 248 + 294, "sdxl": 1680 + 248 + 196 + 390}[name]


def test_the_names_are_those_of_the_original_models():
    """A few, as they stand in the published files."""
    for name, original in {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
        "up_blocks.2.resnets.2.conv_shortcut": "output_blocks.8.0.skip_connection",
        "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
        "time_embedding.linear_2.bias": "time_embed.2.bias",
        "conv_norm_out.weight": "out.0.weight",
    }.items():
        assert singlefile.unet_name(name, layers=2) == original
    assert singlefile.unet_name("up_blocks.0.upsamplers.0.conv", layers=2, attended=lambda block: block > 0) == "output_blocks.2.1.conv"
    assert singlefile.vae_name("decoder.up_blocks.0.resnets.2.conv1.weight", blocks=4) == "decoder.up.3.block.2.conv1.weight"
    assert singlefile.vae_name("encoder.mid_block.attentions.0.to_out.0.bias", blocks=4) == "encoder.mid.attn_1.proj_out.bias"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_saved_here_can_be_planned(family, files):
    sd = skeletons.skeleton(files[family])
    assert sd.family == family
    assert {module.device.type for module in sd.parts.values()} == {"meta"}


def test_a_foreign_file_of_a_narrow_model_needs_its_configurations(folders, files, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file(load_file(files["sd2"]), foreign)  # without our metadata
    with pytest.raises(ValueError, match=r"foreign\.safetensors.*config="):
        sdnb.load(foreign, device="cpu")
    bare = narrow.configurations_only(folders["sd2"], tmp_path / "bare")
    sd = sdnb.load(foreign, device="cpu", config=bare)  # the tokenizer is there too
    same(sd.unet, sdnb.load(folders["sd2"], device="cpu").unet)
    assert sd.noise_scheduler.config.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match="is for single files"):
        sdnb.load(folders["sd2"], config=bare)


def test_a_single_file_of_half_the_precision(files, folders, tmp_path):
    small = sdnb.load(folders["sd2"], device="cpu").save(tmp_path / "half.safetensors", dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(small).values()} == {torch.float16}
    again, there = (sdnb.load(path, device="cpu", tokenizer=folders["sd2"]) for path in (small, files["sd2"]))
    assert torch.equal(again.unet.conv_in.weight, there.unet.conv_in.weight.half().float())
    sd = sdnb.load(files["sdxl"], device="cpu", tokenizer=folders["sdxl"], dtype=torch.float16)
    assert {part: module.dtype for part, module in sd.parts.items()} == {
        "unet": torch.float16, "vae": torch.float32, "text_encoder": torch.float16, "text_encoder_2": torch.float16,
    }  # fmt: skip


def test_what_a_file_says_of_its_prediction(tmp_path):
    beginning = {"conditioner.embedders.1.model.ln_final.weight": torch.zeros(1)}
    path = tmp_path / "xl.safetensors"
    save_file(beginning, path)
    assert configurations.configurations(path)["prediction_type"] == "epsilon"
    save_file({**beginning, "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}, path)
    scheduler = configurations.scheduler(configurations.configurations(path))
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.alphas_cumprod[-1] == 0
    save_file(beginning, path, metadata={"modelspec.prediction_type": "v"})
    assert configurations.configurations(path)["prediction_type"] == "v_prediction"
    beginning = {"cond_stage_model.model.ln_final.weight": torch.zeros(1)}
    for bias, side, kind in ((torch.tensor([-0.2, 0.2]), 96, "v_prediction"), (torch.tensor([-0.02, 0.02]), 64, "epsilon")):
        save_file({**beginning, V_BIAS: bias}, path)
        facts = configurations.configurations(path)
        assert (facts["prediction_type"], facts["unet"]["sample_size"]) == (kind, side)


def test_v_prediction_and_zero_terminal_snr_survive_both_formats(tmp_path):
    folder = narrow.make("sdxl", tmp_path / "v", prediction_type="v_prediction", zero_snr=True)
    sd = sdnb.load(folder, device="cpu")
    path = sd.save(tmp_path / "v.safetensors")
    names = weights.header(path).shapes
    assert {"v_pred", "ztsnr"} <= names.keys()
    for again in (sdnb.load(path, device="cpu", tokenizer=folder), sdnb.load(sd.save(tmp_path / "again"), device="cpu")):
        assert again.noise_scheduler.config.prediction_type == "v_prediction"
        assert again.noise_scheduler.alphas_cumprod[-1] == 0
        drawn, expected = (np.asarray(one.draw("a cat", steps=2)).astype(int) for one in (again, sd))
        assert np.abs(drawn - expected).max() <= 1  # a mapped file's weights are aligned otherwise, and so rounded otherwise


def test_targets_and_weights_under_zero_terminal_snr():
    scheduler = DDPMScheduler.from_config({**configurations.SCHEDULER, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    alphas, t = scheduler.alphas_cumprod, torch.tensor([0, 500, 998, 999])
    x_0, noise = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(losses.add_noise(x_0, noise, t, alphas), scheduler.add_noise(x_0, noise, t))
    torch.testing.assert_close(losses.target(x_0, noise, t, alphas, "v_prediction"), scheduler.get_velocity(x_0, noise, t))
    assert torch.equal(losses.add_noise(x_0, noise, t, alphas)[-1], noise[-1])
    assert torch.equal(losses.target(x_0, noise, t, alphas, "v_prediction")[-1], -x_0[-1])
    snr = compute_snr(scheduler, t)
    expected = torch.minimum(snr, torch.full_like(snr, 5.0)) / (snr + 1)  # diffusers' example for v
    torch.testing.assert_close(losses.min_snr_weights(t, alphas, 5.0, "v_prediction"), expected)
    for kind in losses.PREDICTIONS:
        assert losses.min_snr_weights(t, alphas, 5.0, kind).isfinite().all(), kind


# the tokenizer


def test_the_bundled_tokenizer_is_clips(tmp_path):
    """Numbers as OpenAI's own tokenizer gives them, and as transformers' documentation and models print them."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(data.bundled("clip-tokenizer"))
    assert len(tokenizer) == tokenizer.vocab_size == loading.CLIP_WORDS
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("Hello, WORLD").input_ids == [49406, 3306, 267, 1002, 49407]
    assert tokenizer("", padding="max_length").input_ids == [49406] + [49407] * 76


def test_which_tokenizer_a_single_file_gets(files, folders):
    with pytest.raises(FileNotFoundError, match=r"CLIP's, has 49,408 tokens where this model knows 1,363. Give tokenizer="):
        sdnb.load(files["sd1"], device="cpu")
    for name, pads in {"sd15": (49407,), "sd21": (0,), "sdxl": (49407, 0)}.items():
        found = loading._load_tokenizers(files["sd1"], configurations.configurations(name), None, None)
        assert tuple(tokenizer("a cat", padding="max_length").input_ids[-1] for tokenizer in found.values()) == pads
    with pytest.raises(ValueError, match=r"49,408 tokens and the model knows 1,363"):
        sdnb.load(files["sd1"], device="cpu", tokenizer=data.bundled("clip-tokenizer"))


# refusals


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_truncated_single_file(tmp_path, files, keep):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(files["sd1"].read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cut\.safetensors (is damaged|is no safetensors).*[Ff]etch it again"):
        sdnb.load(path, device="cpu")


@pytest.mark.parametrize(
    "lost",
    ["first_stage_model.quant_conv.weight", "conditioner.embedders.1.model.text_projection", "model.diffusion_model.label_emb.0.0.bias"],
)
def test_a_single_file_that_lacks_a_weight(tmp_path, files, folders, lost, monkeypatch):
    path = tmp_path / "lacking.safetensors"
    tensors = load_file(files["sdxl"])
    del tensors[lost]
    save_file(tensors, path)
    bare = narrow.configurations_only(folders["sdxl"], tmp_path / "bare")
    monkeypatch.setattr("safetensors.safe_open", None)  # the weights are not looked at
    with pytest.raises(ValueError, match=r"lacking\.safetensors (lacks|holds no whole)"):
        sdnb.load(path, device="cpu", config=bare)


def test_a_folder_whose_file_is_of_another_model(tmp_path, folders):
    folder = shutil.copytree(folders["sd1"], tmp_path / "mixed")
    shutil.copy(folders["sd1"] / "text_encoder" / "model.safetensors", folder / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"vae.diffusion_pytorch_model\.safetensors holds .* and the configuration beside it describes"):
        sdnb.load(folder, device="cpu")


def test_a_folder_that_holds_a_single_file(tmp_path, files):
    shutil.copy(files["sd1"], tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"it holds model\.safetensors: give that file itself"):
        sdnb.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"other\.safetensors is missing"):
        sdnb.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is a pickle"):
        sdnb.load(tmp_path / "model.PT")


def test_saving_is_all_or_nothing(tmp_path, folders, monkeypatch):
    sd = sdnb.load(folders["sd1"], device="cpu")
    with pytest.raises(ValueError, match="is a pickle"):
        sd.save(tmp_path / "model.ckpt")
    with pytest.raises(FileNotFoundError, match="make that folder first"):
        sd.save(tmp_path / "none" / "model.safetensors")

    def full(*args, **kwargs):
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("safetensors.torch.save_file", full)
        sd.save(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
    path = sd.save(tmp_path / "model.safetensors")
    with pytest.raises(FileExistsError, match="new name"):
        sd.save(path)
    with pytest.raises(ValueError, match="is for single files"):
        sd.save(tmp_path / "folder", dtype=torch.float16)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    sdnb.lora.add(sd, rank=2, alpha=2)
    with pytest.raises(ValueError, match="the unet has adapters beside its weights: merge them first"):
        sd.save(tmp_path / "adapted")


# the Hub


class Shelf:
    """A stand-in for the Hub: serves one folder as `snapshot_download` would, by the patterns asked for."""

    def __init__(self, monkeypatch, folder, cache, *, gone=()):
        self.folder, self.cache, self.gone, self.cached, self.asked = folder, cache, gone, False, []
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self)
        monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda _, repository, **kwargs: self.refuse(repository))

    def refuse(self, repository):
        if repository in self.gone:
            raise ConnectionError(f"404: no repository {repository}")

    def __call__(self, repository, *, revision, allow_patterns, local_files_only):
        from fnmatch import fnmatch

        self.asked.append((repository, revision, local_files_only))
        self.refuse(repository)
        if local_files_only:
            if not self.cached:
                raise huggingface_hub.errors.LocalEntryNotFoundError("nothing here")
            return str(self.cache)
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.cache / name)
        self.cached = True
        return str(self.cache)


@pytest.fixture
def repository(tmp_path, folders):
    """SDXL as repositories have it: with much besides that is not to be fetched."""
    folder = shutil.copytree(folders["sdxl"], tmp_path / "repository")
    besides = (
        "unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.non_ema.safetensors unet/model.onnx unet/x.msgpack "
        "text_encoder/model.fp16.safetensors vae_1_0/config.json sd_xl_base_1.0.safetensors README.md"
    )
    for name in besides.split():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not to be fetched")
    return folder


def test_from_the_hub_only_what_is_needed_and_only_once(tmp_path, repository, monkeypatch):
    shelf = Shelf(monkeypatch, repository, tmp_path / "cache")
    sd = sdnb.load("sdxl", device="cpu")
    same(sd.unet, UNet2DConditionModel.from_pretrained(repository / "unet"))
    assert sd.family == "sdxl"
    fetched = {path.relative_to(shelf.cache).as_posix() for path in shelf.cache.rglob("*") if path.is_file()}
    assert fetched == {path.relative_to(repository).as_posix() for path in repository.rglob("*")
                       if path.is_file() and "not to be" not in path.read_text(errors="ignore") and path.suffix != ".md"}  # fmt: skip
    pinned = hub.repositories()["sdxl"][0]
    assert shelf.asked == [(*pinned, True), (*pinned, False)]
    shelf.asked.clear()
    sdnb.load("sdxl", device="cpu")
    assert shelf.asked == [(*pinned, True)]


def test_a_repository_by_its_id_and_revision(tmp_path, folders, monkeypatch):
    shelf = Shelf(monkeypatch, narrow.make("sd2", tmp_path / "repository", variant="fp16"), tmp_path / "cache")
    sd = sdnb.load("someone/something", device="cpu", revision="v2")  # which has only the fp16 variant
    assert (sd.family, sd.dtype) == ("sd2", torch.float32)
    assert {(name, revision) for name, revision, _ in shelf.asked} == {("someone/something", "v2")}


def test_the_mirror_is_asked_when_the_first_is_gone(tmp_path, folders, monkeypatch):
    (first, pin), (second, none) = hub.repositories()["sd15"]
    shelf = Shelf(monkeypatch, folders["sd1"], tmp_path / "cache", gone={first})
    sdnb.load("sd15", device="cpu")
    assert shelf.asked[-1] == (second, None, False)
    assert (first, pin, True) in shelf.asked
    assert none is None
    shelf = Shelf(monkeypatch, folders["sd1"], tmp_path / "cache", gone={first, second})
    with pytest.raises(ConnectionError, match=rf"{first}@{pin[:10]} \(ConnectionError: 404.*{second} \(.*HF_HOME"):
        sdnb.load("sd15", device="cpu")


def test_a_repository_of_pickles(tmp_path, folders, monkeypatch):
    folder = shutil.copytree(folders["sd1"], tmp_path / "repository")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    Shelf(monkeypatch, folder, tmp_path / "cache")
    with pytest.raises(ConnectionError, match=r"someone/old \(it has no safetensors of unet\)"):
        sdnb.load("someone/old", device="cpu")
    assert not (tmp_path / "cache" / "unet" / "diffusion_pytorch_model.bin").exists()


def test_without_a_network(tmp_path):
    """With the real client, against a port where nothing listens."""
    code = (
        "import sdnb\n"
        "for name in ('sd15', 'someone/something'):\n"
        "    try: sdnb.load(name)\n"
        "    except ConnectionError as error: print(error)"
    )
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **settings}, timeout=120
    )
    first, second = run.stdout.strip().splitlines()
    for repository, _ in hub.repositories()["sd15"]:
        assert repository in first
    for hint in (str(tmp_path), 'load("path/to/model.safetensors")', 'load("tiny")', "HF_HOME", "HF_ENDPOINT"):
        assert hint in first and hint in second
    assert "no folder 'someone/something' here either" in second


def test_the_pins_are_commits():
    assert set(hub.repositories()) == set(configurations.architectures()) - {"tiny"}
    for places in hub.repositories().values():
        for name, revision in places:
            assert hub.HUB_ID.fullmatch(name)
            assert revision is None or (len(revision) == 40 and set(revision) <= set("0123456789abcdef"))


# memory


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux' own count")
def test_loading_holds_the_weights_once(tmp_path):
    """133 MiB in fp16 on disk, loaded in fp16 and in fp32 from a folder and from a file: what the process held at most."""
    folder = narrow.make("sd1", tmp_path / "model")
    config = (
        configurations.configurations("sd15")["unet"] | narrow.UNETS["sd1"] | {"block_out_channels": [64, 128, 256, 512], "sample_size": 8}
    )
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config(config).half().save_pretrained(folder / "unet")
    path = sdnb.load(folder, device="cpu", dtype=torch.float16).save(tmp_path / "model.safetensors")
    code = (
        "import gc, json, sys, torch, sdnb\n"
        "folder, file = sys.argv[1:]\n"
        "sdnb.load('tiny', device='cpu').embed(['a'])\n"
        "def most(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024\n"
        "for path in (folder, file):\n"
        "    for dtype in (torch.float16, torch.float32):\n"
        "        open('/proc/self/clear_refs', 'w').write('5')  # the most so far is what there is now\n"
        "        before = most()\n"
        "        sd = sdnb.load(path, device='cpu', dtype=dtype, tokenizer=folder)\n"
        "        size = sum(p.numel() * p.element_size() for m in sd.parts.values() for p in m.parameters())\n"
        "        print(json.dumps([path == file, str(dtype), (most() - before) / size]))\n"
        "        del sd; gc.collect()\n"
    )
    run = subprocess.run([sys.executable, "-c", code, folder, path], capture_output=True, text=True, cwd=ROOT, check=True)
    print(run.stdout)
    shares = [json.loads(line)[-1] for line in run.stdout.splitlines()]
    assert len(shares) == 4
    assert max(shares) <= 1.7  # of the weights' size: once, and the pages of the file, which the system may take back
