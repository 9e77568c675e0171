"""LoRA: only the adapters train, and they do."""

import builtins

import pytest
import torch

import sdnb
from sdnb import Recipe, lora


def test_training_moves_the_adapters_and_nothing_else(ink):
    sd = lora.add(sdnb.load("tiny", device="cpu"), rank=2, alpha=2)
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
    sd = lora.add(sdnb.load("tiny", device="cpu", dtype=torch.bfloat16), rank=2, alpha=1)
    assert {p.dtype for p in sd.unet.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in sd.unet.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_text_encoders_get_theirs_when_asked():
    sd = lora.add(sdnb.load("tiny", device="cpu"), rank=2, alpha=1, text_encoder=True)
    assert lora.is_added(sd.text_encoder)
    assert any(p.requires_grad for p in sd.text_encoder.parameters())


def test_bad_use_is_refused(monkeypatch):
    sd = sdnb.load("tiny", device="cpu")
    for arguments, message in (
        (dict(rank=0, alpha=1), "rank=0"),
        (dict(rank=True, alpha=1), "rank=True"),
        (dict(rank=4, alpha=0), "alpha=0"),
    ):
        with pytest.raises(ValueError, match=message):
            lora.add(sd, **arguments)
    lora.add(sd, rank=1, alpha=1)
    with pytest.raises(ValueError, match="has adapters already"):
        lora.add(sd, rank=1, alpha=1)

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "peft":
            raise ImportError("no peft")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install"):
        lora.add(sd, rank=1, alpha=1)


def test_a_recipe_asks_in_sd_scripts_words():
    assert lora.settings(Recipe()) is None
    assert lora.settings(Recipe(others={"network_module": "networks.lora"})) == (4, 1.0)
    assert lora.settings(Recipe(others={"network_dim": 32, "network_alpha": 16.0})) == (32, 16.0)
