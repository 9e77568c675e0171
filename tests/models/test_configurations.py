"""Configurations from strangers: absurd numbers, other types and damaged files end in one error, before anything is built."""

import json
import os
import shutil
import time

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig

import sdnb
from sdnb.models import configurations, skeletons

from ..conftest import ROOT

TINY = ROOT / "data" / "tiny-sd"
FILES = {"scheduler": "scheduler/scheduler_config.json"}


def folder_with(tmp_path, part, content):
    """Tiny's folder; one configuration has `content` instead, or these settings besides. The other files are links to tiny's own."""
    folder = shutil.copytree(TINY, tmp_path / "model", copy_function=os.link)
    path = folder / FILES.get(part, f"{part}/config.json")
    old = json.loads(path.read_text())
    path.unlink()
    path.write_text(content if isinstance(content, str) else json.dumps({**old, **content}))
    return folder, path


REFUSED = [
    ("scheduler", {"num_train_timesteps": 10**8}, "num_train_timesteps is 100000000, and numbers up to 10,000 are read"),
    ("scheduler", {"num_train_timesteps": 10**12}, "numbers up to 10,000 are read"),
    ("scheduler", {"num_train_timesteps": 10**400}, "a number of more than 100 digits"),
    ("scheduler", {"num_train_timesteps": -1000}, "no scheduler can be made|must be one whole number"),
    ("scheduler", {"num_train_timesteps": None}, "no scheduler can be made"),
    ("scheduler", {"num_train_timesteps": True}, "no scheduler can be made"),
    ("scheduler", {"num_train_timesteps": "1000"}, "no scheduler can be made"),
    ("scheduler", {"trained_betas": "x"}, "no scheduler can be made"),
    ("scheduler", {"trained_betas": 0.5}, "describes no noise"),
    ("scheduler", {"trained_betas": [0.1] * 5}, "describes no noise"),
    ("scheduler", {"trained_betas": [0.1] * 10_001}, "more than the 10,000 entries that are read"),
    ("scheduler", {"beta_start": "x"}, "no scheduler can be made"),
    ("scheduler", {"beta_end": 50}, "describes no noise"),
    ("scheduler", {"beta_end": float("nan")}, "beta_end is nan"),
    ("scheduler", {"beta_schedule": "none"}, "no scheduler can be made"),
    ("scheduler", {"prediction_type": "image"}, "prediction_type must be one of epsilon"),
    ("scheduler", {"prediction_type": ["epsilon"]}, "prediction_type must be one of epsilon"),
    ("scheduler", {"steps_offset": "1"}, "steps_offset is 1, and it must be a number"),
    ("scheduler", {"items": 1}, "'items', which is no setting"),
    ("unet", {"layers_per_block": 20_000}, "layers_per_block is 20000, and numbers up to 64 are read"),
    ("unet", {"layers_per_block": [64, 64, 64]}, "more than the 2,500 tensors"),
    ("unet", {"layers_per_block": -1}, "layers_per_block is -1"),
    ("unet", {"transformer_layers_per_block": [[64] * 3] * 3}, "no UNet2DConditionModel can be made|more than the 2,500 tensors"),
    ("unet", {"block_out_channels": [10**9] * 3}, "numbers up to 1,048,576 are read"),
    ("unet", {"block_out_channels": [2**20] * 3}, "no UNet2DConditionModel can be made"),
    ("unet", {"block_out_channels": [1] * 1001}, "block_out_channels has more than the 1,000 entries that are read"),
    ("unet", {"block_out_channels": [1] * 10**6}, "at most 1,000,000 are read"),
    ("unet", {"block_out_channels": [-48, -96, -192]}, "block_out_channels is"),
    ("unet", {"block_out_channels": "wide"}, "block_out_channels is wide, and it must be a number"),
    ("unet", {"block_out_channels": None}, "no UNet2DConditionModel can be made of this configuration: TypeError"),
    ("unet", {"block_out_channels": {"0": 48}}, "no UNet2DConditionModel can be made"),
    ("unet", {"sample_size": None}, "has no sample_size"),
    ("unet", {"sample_size": [16, 16]}, "sample_size is .*one whole number above 0"),
    ("unet", {"sample_size": 0}, "sample_size is 0"),
    ("unet", {"in_channels": True}, "in_channels is True"),
    ("unet", {"in_channels": 4.5}, "in_channels is 4.5"),
    ("unet", {"norm_eps": "x"}, "norm_eps is x, and it must be a number"),
    ("unet", {"norm_num_groups": 0}, "no UNet2DConditionModel can be made of this configuration: ZeroDivisionError"),
    ("unet", {"flip_sin_to_cos": "yes"}, "flip_sin_to_cos is yes, and it must be true or false"),
    ("unet", {"act_fn": 5}, "act_fn is 5, and it must be a text"),
    ("unet", {"from_config": 5}, "from_config, which is no setting"),
    ("unet", {"_class_name": ["x"]}, "unet is a"),
    ("unet", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
    ("vae", {"scaling_factor": None}, "scaling_factor is None"),
    ("vae", {"scaling_factor": -1}, "scaling_factor is -1, and it must be one number above 0"),
    ("vae", {"block_out_channels": [16]}, "no AutoencoderKL can be made of this configuration: IndexError"),
    ("text_encoder", {"num_hidden_layers": 10**6}, "numbers up to 256 are read"),
    ("text_encoder", {"num_hidden_layers": 256}, "more than the 2,500 tensors"),
    ("text_encoder", {"vocab_size": "1363"}, "vocab_size is 1363, and it must be one whole number"),
    ("text_encoder", {"hidden_act": "none"}, "no CLIPTextModel can be made of this configuration: KeyError"),
    ("text_encoder", {"architectures": 5}, "is of a 5"),
    ("text_encoder", {"to_dict": 5}, "to_dict, which is no setting"),
    ("text_encoder", {"id2label": 5}, "no CLIPTextModel can be made"),
    *((part, text, message) for part in ("unet", "scheduler") for text, message in (
        ("[" * 100_000, "nested too deeply"), ("{}}", "is no JSON"), ("[]", "must be an object"), ("null", "must be an object"),
        ('{"in_channels": 4, "in_channels": 5}', "there twice"), ('{"x": ' + '{"x": ' * 150 + "1" + "}" * 151, "nested too deeply"),
    )),
]  # fmt: skip


@pytest.mark.parametrize("part, content, message", REFUSED, ids=lambda value: str(value)[:40])
def test_an_absurd_configuration_is_one_error(part, content, message, tmp_path):
    """By the name of its file, from both doors; the planner's is the same as that of skeletons."""
    folder, path = folder_with(tmp_path, part, content)
    began = time.process_time()
    for door in (lambda: sdnb.load(folder, device="cpu"), lambda: skeletons.skeleton(folder)):
        with pytest.raises(ValueError, match=message) as raised:
            door()
        assert str(path) in str(raised.value) or str(folder) in str(raised.value)
        assert len(str(raised.value)) < 800
    assert time.process_time() - began < 20


@pytest.mark.parametrize("change", [
    {"x": 5}, {"unet": []}, {"unet": {"layers_per_block": 20_000}}, {"scheduler": [1]}, {"scheduler": {"num_train_timesteps": 10**12}},
    {"scheduler": {"trained_betas": "x"}}, {"prediction_type": None}, {"vae": {"block_out_channels": "x"}},
])  # fmt: skip
def test_the_configurations_in_a_single_file_are_checked_likewise(change, tiny, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    path = tiny.save(tmp_path / "tiny.safetensors")
    facts = {**tiny._facts(), **change}
    if "x" in change:
        facts = [facts]
    save_file(load_file(path), path, metadata={configurations.METADATA: json.dumps(facts)})
    for door in (lambda: sdnb.load(path, device="cpu", tokenizer=TINY), lambda: skeletons.skeleton(path)):
        with pytest.raises(ValueError, match=r"tiny\.safetensors"):
            door()


def test_real_configurations_are_far_within_the_bounds():
    """FLUX's transformer and the encoder of SD 3 and FLUX are of families that others may register."""
    from accelerate import init_empty_weights
    from transformers import T5Config, T5EncoderModel

    for name in configurations.architectures():
        facts = configurations.configurations(name)
        for part in ("unet", "vae", "text_encoder"):
            configurations._check_sizes(facts[part], name)
            configurations.build(facts, part, name)
    t5 = T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=32128, feed_forward_proj="gated-gelu")
    with init_empty_weights(), configurations._counted():
        flux, encoder = FluxTransformer2DModel(guidance_embeds=True), T5EncoderModel(t5)
    for part, kind in ((flux, FluxTransformer2DModel), (encoder, T5Config)):
        config = {key: value for key, value in sdnb.models.family.config_of(part).items() if not key.startswith("_")}
        configurations._check_sizes(config, "real")
        configurations._check_types(config, kind, "real")
    # what diffusers' own schedulers say of no limit, and SDXL's of what its class has as true or false
    configurations._check_sizes({"lambda_min_clipped": -float("inf")}, "real")
    unusual = {"sample_size": 64, "upcast_attention": None, "only_cross_attention": [True, False], "norm_num_groups": None}
    configurations._check_types(unusual, UNet2DConditionModel, "real")
    configurations._check_types({"pad_token_id": -1, "bos_token_id": None}, CLIPTextConfig, "real")


def test_what_is_built_elsewhere_is_not_counted():
    with pytest.raises(ZeroDivisionError), configurations._counted():
        torch.nn.Linear(1, 1)
        raise ZeroDivisionError
    assert len(torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(configurations.MOST_TENSORS))) == configurations.MOST_TENSORS


@pytest.mark.parametrize("name", ["x" * 5000, "someone/" + "x" * 5000, "x/" * 5000, "x" * 5000 + ".safetensors"])
def test_a_name_that_no_file_has_is_one_error(name, tiny):
    for door in (sdnb.load, skeletons.skeleton, configurations.configurations, lambda name: sdnb.lora.load(tiny, name)):
        with pytest.raises(ValueError, match="no file has so long a name"):
            door(name)
