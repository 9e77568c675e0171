"""Compiled blocks: the same training, and a model left as it was."""

import copy
import dataclasses

import pytest
import torch

import sdnb
from sdnb import Recipe, prepare
from sdnb.sd_scripts import supported
from sdnb.system import compiling

PLAIN = Recipe(
    optimizer_type="AdamW", optimizer_args=(), learning_rate=1e-3, lr_scheduler="constant", lr_warmup_steps=0, resolution=32, seed=0
)


def trained(tiny, ink, others, recipe=PLAIN, **how):
    sd = dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet), text_encoder=copy.deepcopy(tiny.text_encoder))
    before = [vars(module).get("forward") for module in sd.unet.modules()]
    losses = [step.loss for step in sdnb.train(sd, ink[:4], recipe.replace(others=others), steps=3, **how)]
    after = [vars(module).get("forward") for module in sd.unet.modules()]
    assert others.get("network_dim") or before == after
    return losses


@pytest.fixture
def counted(monkeypatch):
    """How often torch.compile is asked for."""
    real, asked = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: asked.append(kwargs) or real(*args, **kwargs))
    return asked


@pytest.mark.parametrize(
    ("backend", "others", "checkpointing"),
    [
        ("EAGER", {}, "none"),
        ("aot_eager", {"network_dim": 2, "network_dropout": 0.3}, "full"),
        ("eager", {"fused_backward_pass": True}, "full"),
    ],
)
def test_losses_are_those_without_compiling(tiny, ink, counted, backend, others, checkpointing):
    plain = trained(tiny, ink, others, checkpointing=checkpointing)
    assert not counted
    compiled = trained(tiny, ink, {**others, "torch_compile": True, "dynamo_backend": backend}, checkpointing=checkpointing)
    assert len(counted) > 4
    assert {one["backend"] for one in counted} == {backend.lower()}
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_no_backend_compiles_nothing(tiny, ink, counted):
    trained(tiny, ink, {"torch_compile": True, "dynamo_backend": "NO"})
    trained(tiny, ink, {"dynamo_backend": "inductor"})
    assert not counted
    off = Recipe(others={"torch_compile": True, "dynamo_backend": "no"})
    assert supported.ignored(off) == ["torch_compile: dynamo_backend=no turns it off"]
    assert supported.ignored(Recipe(others={"dynamo_backend": "eager"})) == ["dynamo_backend: it only acts with torch_compile"]


def test_what_cannot_be_compiled_is_refused(tiny, monkeypatch):
    with pytest.raises(ValueError, match=r"dynamo_backend='fx2trt': torch .* has .*inductor"):
        prepare.check(tiny, Recipe(others={"torch_compile": True, "dynamo_backend": "fx2trt"}))
    recipe = Recipe(others={"torch_compile": True, "dynamo_backend": "eager"})
    sd = dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet))
    with pytest.raises(ValueError, match='recompute "full", "none" or whole blocks'):
        _ = prepare.prepare(sd, recipe, size=(32, 32), checkpointing=sdnb.checkpointing.CHEAP).recomputed

    def none():
        raise RuntimeError

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler"):
        compiling.check("inductor", torch.device("cpu"))


def test_an_error_leaves_the_blocks_as_they_were(tiny):
    unet = copy.deepcopy(tiny.unet)
    with pytest.raises(KeyError), compiling.Compiled(unet, "eager") as compiled:
        assert len(compiled.blocks) == sum(type(block).__name__ in compiling.REPEATED for block in unet.modules()) > 4
        assert all("forward" in vars(block) for block in compiled.blocks)
        raise KeyError
    assert not any("forward" in vars(block) for block in unet.modules())
