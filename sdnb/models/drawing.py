"""`Drawing`: pictures to draw, in three stages, each of which needs other parts of a model: text encoders, denoiser, autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .family import TextEncoding, family_of

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from .model import Model


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """B pictures to draw, as `Model.draw` is asked for them."""

    prompts: tuple[str, ...]
    seed: int = 0
    steps: int = 25
    guidance: float = 3.0
    size: tuple[int, int] | None = None
    """(width, height) in pixels. None: the model's own resolution."""
    negative: str | None = None
    sampler: str | None = None
    clip_skip: int | None = None

    def sides(self, sd: Model) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.size or (sd.resolution, sd.resolution)

    def encode(self, sd: Model) -> dict[str, Tensor]:
        """The text encoders' part: the prompts as arguments of the pipeline."""
        import torch

        more = {} if self.negative is None else {"negative": self.negative}
        with torch.no_grad():
            return family_of(sd).prompts(sd, self.prompts, TextEncoding(clip_skip=self.clip_skip), **more)

    def denoise(self, sd: Model, told: Mapping[str, Tensor]) -> Tensor:
        """The denoiser's part: what `encode` returned -> latents (B, C, h, w)."""
        import torch

        family, denoiser = family_of(sd), sd.denoiser
        # the pipeline sees the denoiser alone: what it does with the others supposes one device and one precision for all
        with quietly():
            scheduler = family.sampler(sd) if self.sampler is None else family.sampler(sd, self.sampler)
            pipeline = family.pipeline(scheduler, **{family.denoiser: denoiser})
        pipeline.vae_scale_factor = sd.downscale
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(self.seed) for _ in self.prompts]
        width, height = self.sides(sd)
        how: dict[str, Any] = dict(height=height, width=width, num_inference_steps=self.steps, guidance_scale=self.guidance)
        training = denoiser.training
        denoiser.eval()
        try:
            told = {name: tensor.to(sd.device, sd.dtype) for name, tensor in told.items()}
            return pipeline(**told, **how, generator=generators, output_type="latent").images
        finally:
            denoiser.train(training)

    def decode(self, sd: Model, latents: Tensor) -> list[Image.Image]:
        """The autoencoder's part: latents (B, C, h, w) -> pictures."""
        from diffusers.image_processor import VaeImageProcessor

        return VaeImageProcessor().postprocess(sd.decode(latents).float())  # pyright: ignore[reportReturnType]


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
