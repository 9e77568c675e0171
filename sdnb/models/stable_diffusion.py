"""`StableDiffusion`: the model of the families with a U-Net, Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .family import TextEncoding, family_of, named
from .model import Model

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


@dataclass
class StableDiffusion(Model):
    """The parts of one Stable Diffusion. `family` is `sd1`, which tiny is of too, `sd2` or `sdxl`."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    noise_scheduler: DDPMScheduler
    family: str = "sd1"
    text_encoder_2: CLIPTextModelWithProjection | None = None
    """SDXL's second; None in others, like the next."""
    tokenizer_2: CLIPTokenizer | None = None

    def embed(self, captions: Sequence[str]) -> Tensor:
        """B captions -> (B, 77, D). A caption of more than 75 tokens is cut."""
        return self.conditioning(captions)[0]

    def conditioning(self, captions: Sequence[str], *, clip_skip: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The encoded captions: context (B, 77, D) and, for SDXL, pooled embeddings (B, P), else None.

        Computed without gradients. A caption of more than 75 tokens is cut.
        """
        import torch

        with torch.no_grad():
            condition = family_of(self).condition(self, captions, TextEncoding(clip_skip=clip_skip))
        return condition["context"], condition.get("pooled")

    def read(self, tokens: tuple[Tensor, ...], *, clip_skip: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The text encoders: `tokens` -> `conditioning`, with gradients where the caller allows them."""
        condition = family_of(self).encode_tokens(self, tokens, clip_skip=clip_skip)
        return condition["context"], condition.get("pooled")

    def time_ids(self, original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]) -> Tensor:
        """SDXL's size conditioning of one picture, (6,) in fp32; `Family.sizes` says of what."""
        return named("sdxl").sizes(original, crop, target)["time_ids"]
