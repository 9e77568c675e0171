"""The script that makes tiny-sd: an interrupted run ends where an uninterrupted one does."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

import sdnb

from .conftest import ROOT


@pytest.fixture(scope="module")
def script():
    sys.dont_write_bytecode = True  # data/ travels in the wheel as it lies there
    spec = importlib.util.spec_from_file_location("train_tiny_sd", ROOT / "data" / "train_tiny_sd.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = False
    return module


def test_a_killed_run_goes_on(script, tmp_path):
    def run(state, dies_at=None):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        calls = []

        def loss(generator):
            calls.append(1)
            if len(calls) == dies_at:
                raise KeyboardInterrupt
            x = torch.randn(16, 4, generator=generator)
            return (model(x).squeeze(1) - x.prod(1)).square().mean()

        script.fit(state, model, loss, steps=30, learning_rate=1e-2, ema=0.9, save_every=0)
        return model, len(calls)

    whole, calls = run(tmp_path / "whole.safetensors")
    assert calls == 30
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.safetensors", dies_at=13)
    resumed, calls = run(tmp_path / "killed.safetensors")
    assert calls == 18
    for mine, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not list(tmp_path.glob("*.partial"))


def test_every_word_is_one_token(script, tiny):
    captions = [*sdnb.pictures("emoji").captions, *sdnb.pictures("emoji-ink").captions]
    for tokenizer in (script.make_tokenizer(captions), tiny.tokenizer):
        for caption in captions:
            assert len(tokenizer.tokenize(caption)) == len(caption.replace(",", " ,").split()), caption
        assert tokenizer.tokenize("A Red APPLE") == tokenizer.tokenize("a red apple")
        assert tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(tokenizer.tokenize("猫 naïve zebrafish! 42"))
        assert len(tokenizer) == len(tiny.tokenizer)


def test_the_tokenizer_is_the_same_in_every_process(script):
    """A run that goes on in a new process must number the words as the old one did, which hashed its strings otherwise."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'data')!r})\n"
        "import json, train_tiny_sd as script\n"
        "print(json.dumps(script.make_tokenizer(script.pictures(script.HERE / 'emoji')[1]).get_vocab()))"
    )
    seed = str(hash("a seed that this process does not have") % 2**32)
    other = {**os.environ, "PYTHONHASHSEED": seed}
    there = subprocess.run([sys.executable, "-B", "-c", code], env=other, capture_output=True, text=True, check=True).stdout
    assert json.loads(there) == script.make_tokenizer(script.pictures(script.HERE / "emoji")[1]).get_vocab()


def test_standardising_latents_changes_no_picture(script):
    torch.manual_seed(0)
    vae = script.AutoencoderKL(**script.AUTOENCODER).eval()
    pixels = torch.rand(8, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before, spread = vae.encode(pixels).latent_dist, vae.decode(vae.encode(pixels).latent_dist.mean).sample
        script.standardise(vae, pixels)
        after = vae.encode(pixels).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, spread, atol=1e-4, rtol=1e-4)
    latents = after.mean * vae.config.scaling_factor
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.std / after.mean.std((0, 2, 3), keepdim=True), before.std / before.mean.std((0, 2, 3), keepdim=True))
