"""Another autoencoder in a model's place, from each form of file that people have."""

import copy
import dataclasses

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from sdnb import jobs
from sdnb.models import autoencoder, singlefile


@pytest.fixture(scope="module")
def other(tiny):
    """Tiny's autoencoder with other weights, and another scale."""
    torch.manual_seed(1)
    return AutoencoderKL.from_config({**tiny.vae.config, "scaling_factor": 0.5})


def files(tiny, other, folder):
    """The same weights in each form: diffusers' folder, a model's folder, one file alone in either naming, a whole model in one file."""
    other.save_pretrained(folder / "alone", safe_serialization=True)
    other.save_pretrained(folder / "model" / "vae", safe_serialization=True)
    whole = singlefile.to_original({**tiny.parts, "vae": other}, "sd1")
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, folder / "whole.safetensors")
    own = {name.removeprefix(singlefile.VAE): tensor.contiguous() for name, tensor in whole.items() if name.startswith(singlefile.VAE)}
    save_file(own, folder / "original.safetensors")
    save_file(load_file(folder / "alone" / "diffusion_pytorch_model.safetensors"), folder / "diffusers.safetensors")
    return ("alone", "model", "whole.safetensors", "original.safetensors", "diffusers.safetensors")


def test_every_form_gives_the_same_autoencoder_at_the_models_own_scale(tiny, other, tmp_path):
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = other.encode(pixels).latent_dist.mean * tiny.vae.config["scaling_factor"]
    for name in files(tiny, other, tmp_path):
        sd = dataclasses.replace(tiny, vae=autoencoder(tmp_path / name, tiny, dtype=torch.float32))
        torch.testing.assert_close(sd.encode(pixels), expected, msg=name)
        assert not any(p.requires_grad for p in sd.vae.parameters())


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("vae.pt", ValueError, "is a pickle"),
        ("vae.ckpt", ValueError, "is a pickle"),
        ("vae.safetensors", FileNotFoundError, "no such .safetensors file"),
        ("no name", ValueError, "a repository of the Hub"),
        (".", FileNotFoundError, "holds no config.json"),
    ],
)
def test_what_is_no_autoencoder_is_refused(tiny, tmp_path, monkeypatch, name, error, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        autoencoder(name, tiny, dtype=torch.float32)


def test_latents_of_another_shape_are_refused(tiny, tmp_path):
    AutoencoderKL.from_config({**tiny.vae.config, "latent_channels": 8}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="latents of 8 channels"):
        autoencoder(tmp_path, tiny, dtype=torch.float32)


def test_a_job_encodes_with_it(tiny, other, tmp_path):
    other.save_pretrained(tmp_path / "vae", safe_serialization=True)
    model, out = tmp_path / "model", tmp_path / "out"
    dataclasses.replace(tiny, vae=copy.deepcopy(tiny.vae)).save(model)
    flags = f'--pretrained_model_name_or_path="{model}" --train_data_dir=emoji-ink --output_dir="{out}" --network_module=networks.lora'
    half = " --mixed_precision=bf16"
    job = jobs.Job(jobs.Recipe.parse(f'{flags}{half} --no_half_vae --vae="{tmp_path / "vae"}"'))
    sd, _, _ = job.load()
    assert (sd.vae.dtype, sd.unet.dtype, sd.text_encoder.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    assert torch.equal(sd.vae.encoder.conv_in.weight, other.encoder.conv_in.weight)
    assert jobs.Job(jobs.Recipe.parse(flags + half)).load()[0].vae.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"vae: .* is a pickle"):
        jobs.Job(jobs.Recipe.parse(flags + " --vae=a.pt"))


def test_a_job_says_where_the_files_and_the_recipe_differ(tiny, tmp_path):
    def lines(**others):
        return list(jobs._of_model(tiny, jobs.Recipe(others=others)))

    assert lines() == []
    assert "trained to predict v, though" in lines(v_parameterization=True)[0]
    assert "learns nothing at the last level" in lines(zero_terminal_snr=True)[0]
    noise = type(tiny.noise_scheduler).from_config(
        {**tiny.noise_scheduler.config, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    )
    sd = dataclasses.replace(tiny, noise_scheduler=noise)
    assert list(jobs._of_model(sd, jobs.Recipe(others={"v_parameterization": True, "zero_terminal_snr": True}))) == []
    assert len(list(jobs._of_model(sd, jobs.Recipe()))) == 2
