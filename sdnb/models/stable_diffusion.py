"""A Stable Diffusion as its parts: what it says to pictures and captions, drawing with it, saving it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..system import files
from . import configurations, singlefile, weights

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from PIL import Image
    from torch import Tensor
    from torch.nn import Module
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass
class StableDiffusion:
    """The parts of one Stable Diffusion. Pixels are in [-1, 1]; latents are scaled, so that their variance is about 1.

    `family` is `sd1`, which tiny is of too, `sd2` or `sdxl`.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    noise_scheduler: DDPMScheduler
    family: str = "sd1"
    text_encoder_2: CLIPTextModelWithProjection | None = None
    """SDXL's second; None in others, like the next."""
    tokenizer_2: CLIPTokenizer | None = None

    @property
    def device(self) -> torch.device:
        """Where the U-Net lies; the other parts may lie elsewhere."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's precision; the other parts may have others."""
        return self.unet.dtype

    @property
    def downscale(self) -> int:
        """How many pixels one latent position stands for, along each side: 8 for SD 1.5, 4 for tiny."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """The side in pixels of the pictures this model was made for: 512 for SD 1.5, 1024 for SDXL, 64 for tiny."""
        return self.unet.config.sample_size * self.downscale

    @property
    def multiple(self) -> int:
        """Pixels: the U-Net halves its latents down to whole numbers only at sides that are multiples of this."""
        return self.downscale * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def parts(self) -> dict[str, Module]:
        """The parts with weights, by name; `text_encoder_2` only where there is one."""
        return {part: module for part in configurations.PARTS if (module := getattr(self, part)) is not None}

    @property
    def encoders_in_training(self) -> dict[str, Module]:
        """The text encoders whose adapters are trained, by name."""
        found = {name: part for name, part in self.parts.items() if name in ENCODERS and getattr(part, "peft_config", None)}
        return {name: part for name, part in found.items() if any(p.requires_grad for p in part.parameters())}

    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> latents (B, C, H/f, W/f), drawn from the posterior, or its mean if there is no generator."""
        import torch

        with torch.no_grad():
            posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
            latents = posterior.sample(generator) if generator else posterior.mean
        return latents * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pixels (B, 3, h·f, w·f) in [-1, 1]."""
        import torch

        with torch.no_grad():
            latents = latents.to(self.vae.device, self.vae.dtype) / self.vae.config.scaling_factor
            return self.vae.decode(latents).sample.clamp(-1, 1)

    def embed(self, captions: Sequence[str]) -> Tensor:
        """B captions -> (B, 77, D). A caption of more than 75 tokens is cut."""
        return self.conditioning(captions)[0]

    def conditioning(self, captions: Sequence[str], *, clip_skip: int | None = None) -> tuple[Tensor, Tensor | None]:
        """What the U-Net is told of B captions: context (B, 77, D) and, for SDXL, pooled embeddings (B, P), else None.

        Computed without gradients. A caption of more than 75 tokens is cut.
        """
        import torch

        with torch.no_grad():
            return self.read(self.tokens(captions), clip_skip=clip_skip)

    def tokens(self, captions: Sequence[str]) -> tuple[Tensor, ...]:
        """B captions -> (B, 77) numbers of tokens from each tokenizer; the two of SDXL differ in how they pad."""
        tokenizers = [tokenizer for tokenizer in (self.tokenizer, self.tokenizer_2) if tokenizer is not None]
        return tuple(
            tokenizer(
                list(captions), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer in tokenizers
        )

    def read(self, tokens: tuple[Tensor, ...], *, clip_skip: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The text encoders: `tokens` -> `conditioning`, with gradients where the caller allows them.

        `clip_skip` is sd-scripts': 2 reads the layer before the last, which is diffusers' 1. SDXL always reads both encoders one layer
        before the last, side by side, and pools the second (Podell et al. 2023).
        """
        import torch

        if self.text_encoder_2 is None:
            ids = tokens[0].to(self.text_encoder.device)
            if clip_skip is None:
                return self.text_encoder(ids).last_hidden_state, None
            states = self.text_encoder(ids, output_hidden_states=True).hidden_states[-clip_skip]
            inner = getattr(self.text_encoder, "module", self.text_encoder)  # of several processes' wrapper
            norm = getattr(inner, "text_model", inner).final_layer_norm
            return norm(states.to(norm.weight.dtype)), None  # under autocast the states are in fp32
        first = self.text_encoder(tokens[0].to(self.text_encoder.device), output_hidden_states=True)
        second = self.text_encoder_2(tokens[1].to(self.text_encoder_2.device), output_hidden_states=True)
        context = torch.cat([first.hidden_states[-2].to(second.hidden_states[-2]), second.hidden_states[-2]], dim=-1)
        return context, second.text_embeds  # (B, 77, D1 + D2), (B, P)

    def time_ids(self, original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]) -> Tensor:
        """SDXL's size conditioning of one picture, (6,) in fp32: its size before resizing, where it was cropped, its size in training.

        Each is a pair in pixels: (height, width), (top, left), (height, width).
        """
        import torch

        return torch.tensor([*original, *crop, *target], dtype=torch.float32)

    def draw(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int = 0,
        steps: int = 25,
        guidance: float = 3.0,
        size: int | None = None,
        clip_skip: int | None = None,
    ) -> Image.Image | list[Image.Image]:
        """Draw one prompt, or a list of them, with DDIM; the same seed gives the same picture, whatever is drawn beside it.

        `guidance` is the scale of classifier-free guidance; 1 turns it off. `size` is the side in pixels. `clip_skip` is
        that of the training, as `read` has it. The parts may lie on different devices and be in different precisions.
        """
        import torch
        from diffusers import DDIMScheduler

        noise = dict(self.noise_scheduler.config)
        if noise.get("rescale_betas_zero_snr"):
            noise["timestep_spacing"] = "trailing"  # Lin et al. 2023: begin where there is nothing but noise, or it was for nothing
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        told = self._told(prompts, clip_skip)
        # the pipeline sees the U-Net alone: what it does with the others supposes one device and one precision for all
        pipeline = self._pipeline(DDIMScheduler.from_config(noise), unet=self.unet)
        pipeline.vae_scale_factor = self.downscale
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for _ in prompts]
        size = size or self.resolution
        settings = dict(height=size, width=size, num_inference_steps=steps, guidance_scale=guidance, generator=generators)
        training = self.unet.training
        self.unet.eval()
        try:
            latents = pipeline(**told, **settings, output_type="latent").images
        finally:
            self.unet.train(training)
        pictures = pipeline.image_processor.postprocess(self.decode(latents).float())
        return pictures[0] if isinstance(prompt, str) else pictures

    def save(self, path: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Write the whole model: as a diffusers folder, or in the original layout if `path` ends in `.safetensors`.

        `load` reads both, diffusers' `from_pretrained` and `from_single_file` one each, ComfyUI and A1111 the single file, in which
        fp16 is usual: `dtype` is the precision of a single file, that of the parts unless given. The file or folder is complete or not
        there at all. Raises `FileExistsError` rather than write over anything, `FileNotFoundError` without
        a folder to write into, `ValueError` for adapters that are not merged, and `OSError` when the disk is full.
        """
        path = Path(path).expanduser()
        weights.refuse_pickle(path)
        single = path.suffix.lower() == ".safetensors"
        if dtype is not None and not single:
            raise ValueError(f"dtype={dtype} is for single files, and {path.name} would be a folder: let its name end in .safetensors")
        if path.exists():
            raise FileExistsError(f"{path} exists: give a new name, or move the old one away")
        files.check_name(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} is missing: make that folder first")
        adapted = [part for part, module in self.parts.items() if getattr(module, "peft_config", None)]
        if adapted:
            raise ValueError(
                f"the {' and '.join(adapted)} has adapters beside its weights: merge them first, or save them alone with lora.save"
            )
        partial = path.with_name(path.name + files.PARTIAL)
        files.remove(partial)
        try:
            if single:
                singlefile.write(partial, self.parts, self._facts(), dtype=dtype)
            else:
                pipeline = self._pipeline(self.noise_scheduler, **self.parts, **self._tokenizers())
                with quietly():
                    pipeline.save_pretrained(partial, safe_serialization=True)
            for file in [partial] if single else partial.rglob("*"):
                files.sync(file)
            files.rename(partial, path)
        except BaseException:
            files.remove(partial)
            raise
        files.sync(path.parent)
        return path

    def _facts(self) -> dict:
        """As `configurations.configurations` has them."""
        facts = {
            part: dict(module.config if part in configurations.CLASSES else module.config.to_dict()) for part, module in self.parts.items()
        }
        facts = {part: {key: value for key, value in config.items() if not key.startswith("_")} for part, config in facts.items()}
        for part in facts.keys() - configurations.CLASSES.keys():
            facts[part]["_class_name"] = type(getattr(self, part)).__name__
        noise = {key: value for key, value in self.noise_scheduler.config.items() if not key.startswith("_")}
        return {**facts, "scheduler": noise, "prediction_type": noise.get("prediction_type", "epsilon"), "family": self.family}

    def _told(self, prompts: list[str], clip_skip: int | None = None) -> dict[str, Tensor]:
        """What a pipeline is given instead of `prompts` and of the empty one that it is guided away from."""
        import torch

        context, pooled = self.conditioning(prompts, clip_skip=clip_skip)
        if pooled is None:
            empty, nothing = self.conditioning([""], clip_skip=clip_skip)[0].expand_as(context), None
        else:
            empty, nothing = torch.zeros_like(context), torch.zeros_like(pooled)  # as SDXL's pipeline has it
        told = {
            "prompt_embeds": context,
            "negative_prompt_embeds": empty,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": nothing,
        }
        return {name: tensor.to(self.device, self.dtype) for name, tensor in told.items() if tensor is not None}

    def _tokenizers(self) -> dict:
        return {"tokenizer": self.tokenizer} | ({"tokenizer_2": self.tokenizer_2} if self.family == "sdxl" else {})

    def _pipeline(self, scheduler, **parts):
        """Diffusers' pipeline of this family around those parts, and nothing where others would be."""
        with quietly():
            from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        nothing = dict.fromkeys((*configurations.PARTS[:3], "tokenizer"))
        if self.family == "sdxl":
            nothing |= dict.fromkeys(("text_encoder_2", "tokenizer_2"))
            return StableDiffusionXLPipeline(**{**nothing, **parts}, scheduler=scheduler, add_watermarker=False)
        return StableDiffusionPipeline(
            **{**nothing, **parts}, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )


@contextmanager
def quietly():
    """Without transformers' progress bars, and its word about image processors that nothing here uses."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
