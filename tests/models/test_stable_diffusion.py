"""Loading and drawing, and what `load` refuses."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

import sdnb
from benchmarks.tiny_sd import nearest, pixels

from ..conftest import ROOT

TINY = ROOT / "data" / "tiny-sd"


def copy_of_tiny(tmp_path):
    return shutil.copytree(TINY, tmp_path / "model")


def test_tiny_is_small_and_safe():
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    assert json.loads((TINY / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


@pytest.mark.long  # below the same with the package there
def test_plain_diffusers_loads_it_and_draws():
    code = (
        "import sys; sys.modules['sdnb'] = None\n"
        "from diffusers import StableDiffusionPipeline\n"
        f"pipeline = StableDiffusionPipeline.from_pretrained({str(TINY)!r})\n"
        "print(pipeline('a red apple', num_inference_steps=2).images[0].size)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(64, 64)"


def test_its_parts_have_the_names_of_stable_diffusion_15(tiny):
    with torch.device("meta"):
        sd15 = UNet2DConditionModel(cross_attention_dim=768)  # the class's other defaults are Stable Diffusion 1.5's
    assert sum(p.numel() for p in sd15.parameters()) == 859_520_964
    theirs = {name: type(module) for name, module in sd15.named_modules()}
    for name, module in tiny.unet.named_modules():
        if not name.startswith(("down_blocks", "up_blocks")):
            assert theirs[name] is type(module), name
    # inside the blocks only the level's number can differ, because there are three levels instead of four
    kinds = {(name.split(".", 2)[2], type(module)) for name, module in sd15.named_modules() if name.count(".") >= 2}
    ours = {(name.split(".", 2)[2], type(module)) for name, module in tiny.unet.named_modules() if name.count(".") >= 2}
    assert ours <= kinds
    for blocks in ("down_blocks", "up_blocks"):
        assert {type(block) for block in getattr(tiny.unet, blocks)} == {type(block) for block in getattr(sd15, blocks)}
    flagged = {type(module) for module in sd15.modules() if hasattr(module, "gradient_checkpointing")}
    assert {type(module) for module in tiny.unet.modules() if hasattr(module, "gradient_checkpointing")} == flagged


def test_it_draws_what_it_is_asked_for(tiny):
    emoji = sdnb.pictures("emoji")
    chosen = range(0, len(emoji), 16)
    drawings = tiny.draw([emoji.captions[i] for i in chosen], seed=1)
    right = nearest(pixels(drawings), pixels([picture.open() for picture in emoji])) == torch.tensor(chosen)
    assert right.float().mean() >= 0.8


def test_drawing_is_diffusers_own(tiny):
    pipeline = StableDiffusionPipeline.from_pretrained(TINY)
    generator = torch.Generator().manual_seed(5)
    theirs = pipeline("a cat", num_inference_steps=4, guidance_scale=3.0, generator=generator, height=64, width=64).images[0]
    np.testing.assert_array_equal(np.asarray(tiny.draw("a cat", seed=5, steps=4, guidance=3.0)), np.asarray(theirs))


def test_a_drawing_depends_on_its_seed_and_not_on_its_neighbours(tiny):
    alone = np.asarray(tiny.draw("a cat", seed=1, steps=4)).astype(int)
    beside = [np.asarray(picture).astype(int) for picture in tiny.draw(["a dog", "a cat"], seed=1, steps=4)]
    assert np.abs(alone - beside[1]).max() <= 1  # rounding: other batch sizes sum in another order
    assert np.abs(alone - np.asarray(tiny.draw("a cat", seed=2, steps=4)).astype(int)).max() > 10


def test_drawing_leaves_the_model_as_it_was(fresh):
    fresh.unet.train()
    fresh.draw("a cat", steps=1)
    assert fresh.unet.training


def test_encode_and_decode(tiny):
    x = torch.stack([picture.pixels(64) for picture in sdnb.pictures("emoji")[:16]])
    latents = tiny.encode(x)
    assert latents.shape == (16, 4, 16, 16)
    error = (tiny.decode(latents) - x).square().mean() / 4
    assert -10 * error.log10() >= 25  # dB
    drawn = tiny.encode(x, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(drawn, latents)
    torch.testing.assert_close(drawn, tiny.encode(x, generator=torch.Generator().manual_seed(0)))


def test_latents_are_standardised(tiny):
    x = torch.stack([picture.pixels(64) for picture in sdnb.pictures("emoji")])
    latents = tiny.encode(x)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)


def test_embed(tiny):
    assert tiny.embed(["a cat", "", "word " * 200]).shape == (3, 77, 128)


def test_save_and_load(fresh, tmp_path):
    with torch.no_grad():
        fresh.unet.conv_in.bias += 1
    folder = fresh.save(tmp_path / "mine")
    again = sdnb.load(folder, device="cpu")
    for (name, mine), theirs in zip(fresh.unet.named_parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(FileExistsError, match="new name"):
        fresh.save(folder)


def test_half_precision(tmp_path):
    sd = sdnb.load("tiny", device="cpu", dtype=torch.bfloat16)
    assert {sd.unet.dtype, sd.vae.dtype, sd.text_encoder.dtype} == {torch.bfloat16}


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"did you mean 'tiny'.*known by name are tiny"):
        sdnb.load("tinny")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="no Stable Diffusion in diffusers' format: it lacks unet, vae"):
        sdnb.load(tmp_path)


def test_a_missing_file(tmp_path):
    folder = copy_of_tiny(tmp_path)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"vae.diffusion_pytorch_model\.safetensors is missing"):
        sdnb.load(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_truncated_file(tmp_path, keep):
    folder = copy_of_tiny(tmp_path)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"unet.diffusion_pytorch_model\.safetensors (is damaged|is no safetensors).*[Ff]etch it again"):
        sdnb.load(folder)


def test_a_pickle_by_name():
    with pytest.raises(ValueError, match="pickle, which can run any code"):
        sdnb.load("models/v1-5-pruned.ckpt")


def test_a_pickle_in_a_folder(tmp_path):
    folder = copy_of_tiny(tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        sdnb.load(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_where_there_is_none():
    with pytest.raises(ValueError, match="finds no GPU here"):
        sdnb.load("tiny", device="cuda")


@pytest.mark.gpu
def test_on_a_gpu_it_draws_the_same():
    on_gpu, on_cpu = (sdnb.load("tiny", device=device).draw("a cat", seed=1) for device in ("cuda", "cpu"))
    assert np.abs(np.asarray(on_gpu).astype(int) - np.asarray(on_cpu).astype(int)).mean() < 2
