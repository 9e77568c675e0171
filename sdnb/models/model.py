"""`Model`: the parts of a model, with methods to encode pictures and captions, draw and save."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..system import files
from . import singlefile, weights
from .drawing import Drawing, quietly
from .family import config_of, family_of

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, ConfigMixin
    from PIL import Image
    from torch import Tensor
    from torch.nn import Module


class Model:
    """The parts of one model, each a field; which there are is said by its family. Pixels are in [-1, 1]; latents are scaled, so that
    their variance is about 1.

    Each family has a dataclass of its own, with `vae`, `noise_scheduler`, `family` and a field for each other part and tokenizer.
    """

    family: str
    vae: AutoencoderKL
    noise_scheduler: ConfigMixin

    @property
    def denoiser(self) -> Module:
        """The part that is trained, by whatever name its family has it: `unet` or another."""
        return getattr(self, family_of(self).denoiser)

    @property
    def device(self) -> torch.device:
        """Where the denoiser lies; the other parts may lie elsewhere."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's precision; the other parts may have others."""
        return next(self.denoiser.parameters()).dtype

    @property
    def downscale(self) -> int:
        """How many pixels one latent position stands for, along each side: 8 for SD 1.5, 4 for tiny."""
        return family_of(self).downscale(self)

    @property
    def resolution(self) -> int:
        """The side in pixels of the pictures this model was made for: 512 for SD 1.5, 1024 for SDXL, 64 for tiny."""
        return family_of(self).resolution(self)

    @property
    def multiple(self) -> int:
        """Pixels: the sides of pictures have to be multiples of this, which a U-Net halves down to whole numbers."""
        return family_of(self).multiple(self)

    @property
    def parts(self) -> dict[str, Module]:
        """The parts with weights, by name."""
        return {name: module for name in family_of(self).parts if (module := getattr(self, name)) is not None}

    @property
    def encoders(self) -> dict[str, Module]:
        """The text encoders, by name."""
        return {name: module for name, module in self.parts.items() if name in family_of(self).encoders}

    @property
    def tokenizers(self) -> dict:
        """The text encoders' tokenizers, by name."""
        return {name: getattr(self, name) for name in family_of(self).tokenizers}

    @property
    def encoders_in_training(self) -> dict[str, Module]:
        """The text encoders that are trained, whole or by their adapters, by name."""
        return {name: part for name, part in self.encoders.items() if any(p.requires_grad for p in part.parameters())}

    @property
    def learners(self) -> dict[str, Module]:
        """The parts that may have parameters in training, by name: the denoiser and `encoders_in_training`."""
        return {family_of(self).denoiser: self.denoiser, **self.encoders_in_training}

    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> latents (B, C, H/f, W/f), drawn from the posterior, or its mean if there is no generator."""
        import torch

        with torch.no_grad():
            posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype), return_dict=False)[0]
            latents = posterior.sample(generator) if generator else posterior.mean
        return latents * self.vae.config["scaling_factor"]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pixels (B, 3, h·f, w·f) in [-1, 1]."""
        import torch

        with torch.no_grad():
            latents = latents.to(self.vae.device, self.vae.dtype) / self.vae.config["scaling_factor"]
            pixels = self.vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType]  # it means any floats
        return pixels.clamp(-1, 1)

    def tokens(self, captions: Sequence[str]) -> tuple[Tensor, ...]:
        """B captions -> (B, 77) numbers of tokens from each tokenizer; the two of SDXL differ in how they pad."""
        return family_of(self).tokens(self, captions)

    def draw(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int = 0,
        steps: int = 25,
        guidance: float = 3.0,
        size: int | tuple[int, int] | None = None,
        negative: str | None = None,
        sampler: str | None = None,
        clip_skip: int | None = None,
    ) -> Image.Image | list[Image.Image]:
        """Draw one prompt, or a list of them; the same seed gives the same picture, whatever is drawn beside it.

        `guidance` is the scale of classifier-free guidance; 1 turns it off. `size` is the side in pixels, or (width, height).
        `negative` is what shall not be seen. `sampler` is one of `samplers.SAMPLERS`, unless given DDIM with the model's own noise levels.
        `clip_skip` is that of the training, as `TextEncoding` has it. The parts may lie on different devices and be in different
        precisions.
        """
        drawing = Drawing(
            prompts=(prompt,) if isinstance(prompt, str) else tuple(prompt),
            seed=seed,
            steps=steps,
            guidance=guidance,
            size=size if isinstance(size, tuple) else (size, size) if size else None,
            negative=negative,
            sampler=sampler,
            clip_skip=clip_skip,
        )
        pictures = drawing.decode(self, drawing.denoise(self, drawing.encode(self)))
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
        adapted = [part for part, module in self.parts.items() if has_adapters(module)]
        if adapted:
            raise ValueError(
                f"the {' and '.join(adapted)} has adapters beside its weights: merge them first, or save them alone with lora.save"
            )
        files.sweep(path.parent, re.escape(path.name))
        partial = files.unfinished(path)
        files.remove(partial)
        made = partial / path.name
        try:
            partial.mkdir()
            with files.system_errors(), quietly():
                if single:
                    singlefile.write(made, self, self._facts(), dtype=dtype)
                else:
                    pipeline = family_of(self).pipeline(self.noise_scheduler, **self.parts, **self.tokenizers)
                    pipeline.save_pretrained(made, safe_serialization=True)
            for file in [made, *made.rglob("*")]:
                files.permit(file)
                files.sync(file)
            files.rename(made, path)
        finally:
            files.remove(partial)
        files.sync(path.parent)
        return path

    def _facts(self) -> dict:
        """As `configurations.configurations` has them."""
        facts = {}
        for name, module in self.parts.items():
            facts[name] = {key: value for key, value in config_of(module).items() if not key.startswith("_")}
        for name in self.encoders:
            facts[name]["_class_name"] = type(getattr(self, name)).__name__
        noise = {key: value for key, value in self.noise_scheduler.config.items() if not key.startswith("_")}
        return {**facts, "scheduler": noise, "prediction_type": noise.get("prediction_type", "epsilon"), "family": self.family}


def has_adapters(part: Module) -> bool:
    """Whether a part has adapters: peft's, or LyCORIS'."""
    return bool(getattr(part, "peft_config", None)) or "lycoris" in part._modules
