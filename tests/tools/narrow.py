"""Stable Diffusions of each family's own kinds of blocks and text encoders, narrow enough to be run, with random weights."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdnb.datasets import folders
from sdnb.models import configurations

FAMILIES = {"sd1": "sd15", "sd2": "sd21", "sdxl": "sdxl"}
"""Family -> the shipped architecture that it is cut down from."""
UNETS = {
    "sd1": dict(block_out_channels=[16, 32, 48, 48], cross_attention_dim=32, attention_head_dim=2),
    "sd2": dict(block_out_channels=[16, 32, 48, 48], cross_attention_dim=48, attention_head_dim=[1, 2, 3, 3]),
    "sdxl": dict(
        block_out_channels=[16, 32, 48], cross_attention_dim=32 + 48, attention_head_dim=[1, 2, 3], transformer_layers_per_block=[1, 2, 3],
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 40,
    ),
}  # fmt: skip
WIDTHS = {"sd1": (32,), "sd2": (48,), "sdxl": (32, 48)}
"""Of the text encoders. SDXL's second projects to 40, so that a transposed projection cannot pass."""
LAYERS = (2, 3)


def make(
    family: str, folder: Path, *, prediction_type: str | None = None, zero_snr: bool = False, variant: str | None = None, seed: int = 0
) -> Path:
    """Write a model of `family`, `sd1`, `sd2` or `sdxl`, as diffusers' folder, with tiny's tokenizer. Returns `folder`.

    `prediction_type` is the family's own unless given; `variant="fp16"` writes only files of that variant, in fp16.
    """
    torch.manual_seed(seed)
    facts = configurations.configurations(FAMILIES[family])
    unet = UNet2DConditionModel.from_config({**facts["unet"], **UNETS[family], "sample_size": 8, "norm_num_groups": 8})
    vae = AutoencoderKL.from_config({**facts["vae"], "block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4, "sample_size": 64})
    tokenizer = CLIPTokenizer.from_pretrained(folders.bundled("tiny-sd") / "tokenizer")
    parts = dict(unet=unet, vae=vae, tokenizer=tokenizer, text_encoder=text_encoder(family, 0))
    noise = {**configurations.SCHEDULER, "prediction_type": prediction_type or facts["prediction_type"], "rescale_betas_zero_snr": zero_snr}
    scheduler = DDPMScheduler.from_config(noise)
    if family == "sdxl":
        second = CLIPTokenizer.from_pretrained(folders.bundled("tiny-sd") / "tokenizer", pad_token="!")
        pipeline = StableDiffusionXLPipeline(
            **parts, text_encoder_2=text_encoder(family, 1), tokenizer_2=second, scheduler=scheduler, add_watermarker=False
        )
    else:
        pipeline = StableDiffusionPipeline(
            **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    if variant == "fp16":
        pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True, variant=variant)
    return Path(folder)


def text_encoder(family: str, number: int) -> CLIPTextModel | CLIPTextModelWithProjection:
    width, layers = WIDTHS[family][number], LAYERS[number]
    config = json.loads((folders.bundled("tiny-sd") / "text_encoder" / "config.json").read_text())
    words = {key: config[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(
        **words,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=(32, 40)[number],
        hidden_act="gelu" if family == "sd2" or number else "quick_gelu",
    )
    return (CLIPTextModelWithProjection if number else CLIPTextModel)(config)


def configurations_only(folder: Path, to: Path) -> Path:
    """A copy of a model without its weights."""
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors")))
