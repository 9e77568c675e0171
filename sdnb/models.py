"""Loading a Stable Diffusion as its parts, and drawing with it."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import data

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from PIL import Image
    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

NAMES = {"tiny": "tiny-sd"}
"""Models known by name -> their folder in the bundled data."""
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
UNETS = {
    "sd15": dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    "sdxl": dict(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
}
"""The shapes of the U-Nets of Stable Diffusion 1.5 and XL, as their config.json has them."""
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def skeleton_unet(name: str, *, dtype: torch.dtype | None = None) -> UNet2DConditionModel:
    """The U-Net of `tiny`, `sd15` or `sdxl` on the meta device: every shape and no weights, in training mode; fp32 by default."""
    import torch
    from diffusers import UNet2DConditionModel

    if name not in (known := (*NAMES, *UNETS)):
        raise ValueError(f"no shapes of a model {name!r} are kept here: there are {', '.join(known)}")
    config = UNETS.get(name)
    if config is None:
        config = json.loads((data.bundled(NAMES[name]) / "unet" / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config) if name in NAMES else UNet2DConditionModel(**config)
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(dtype or torch.float32)
    return unet.train()


@dataclass
class StableDiffusion:
    """The parts of one Stable Diffusion. Pixels are in [-1, 1]; latents are scaled, so that their variance is about 1.

    `family` is `sd1` for models with Stable Diffusion 1.x's parts, which tiny has.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    noise_scheduler: DDPMScheduler
    family: str = "sd1"
    text_encoder_2: CLIPTextModelWithProjection | None = None
    """SDXL's second; None in others."""

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def downscale(self) -> int:
        """How many pixels one latent position stands for, along each side: 8 for SD 1.5, 4 for tiny."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """The side in pixels of the pictures this model was made for: 512 for SD 1.5, 64 for tiny."""
        return self.unet.config.sample_size * self.downscale

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
        import torch

        ids = self.tokenizer(
            list(captions), padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            return self.text_encoder(ids.to(self.text_encoder.device)).last_hidden_state

    def draw(
        self, prompt: str | Sequence[str], *, seed: int = 0, steps: int = 25, guidance: float = 3.0, size: int | None = None
    ) -> Image.Image | list[Image.Image]:
        """Draw one prompt, or a list of them, with DDIM; the same seed gives the same picture, whatever is drawn beside it.

        `guidance` is the scale of classifier-free guidance; 1 turns it off. `size` is the side in pixels.
        """
        import torch
        from diffusers import DDIMScheduler

        pipeline = self._pipeline(DDIMScheduler.from_config(self.noise_scheduler.config))
        pipeline.set_progress_bar_config(disable=True)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        generators = [torch.Generator().manual_seed(seed) for _ in prompts]
        size = size or self.resolution
        training = self.unet.training
        self.unet.eval()
        try:
            pictures = pipeline(
                prompts, height=size, width=size, num_inference_steps=steps, guidance_scale=guidance, generator=generators
            ).images
        finally:
            self.unet.train(training)
        return pictures[0] if isinstance(prompt, str) else pictures

    def save(self, folder: str | Path) -> Path:
        """Write the whole model as a diffusers folder, which `load` and `StableDiffusionPipeline.from_pretrained` read.

        The folder is complete or not there at all. Raises `FileExistsError` rather than write over anything.
        """
        folder = Path(folder).expanduser()
        if folder.exists():
            raise FileExistsError(f"{folder} exists: give a new name, or move the old one away")
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        self._pipeline(self.noise_scheduler).save_pretrained(partial, safe_serialization=True)
        for path in partial.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        partial.rename(folder)
        return folder

    def _pipeline(self, scheduler):
        with _quietly():
            from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def load(name: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> StableDiffusion:
    """The parts of a Stable Diffusion: `"tiny"`, which is bundled, or a folder in diffusers' format.

    `device` is the GPU if there is one, else the CPU. `dtype` is fp32 unless said otherwise, which is what training wants.

    Raises `ValueError` for a name that is neither, a folder that is no Stable Diffusion, a damaged file, a pickle, or CUDA where
    there is none; `FileNotFoundError` for a missing file. All of it before any weights are read.
    """
    folder = _find(name)
    _check_folder(folder)
    device = _device(device)

    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    dtype = dtype or torch.float32
    kwargs = {"use_safetensors": True, "local_files_only": True}
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype, **kwargs)
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype, **kwargs)
    with _quietly():
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype, **kwargs)
    for frozen in (vae, text_encoder):
        frozen.requires_grad_(False).eval()
    return StableDiffusion(
        unet=unet.to(device),
        vae=vae.to(device),
        text_encoder=text_encoder.to(device),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        noise_scheduler=DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True),
    )


@contextmanager
def _quietly():
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


def _find(name: str | Path) -> Path:
    folder = Path(name).expanduser()
    if folder.suffix.lower() in PICKLES:
        raise ValueError(
            f"{folder.name} is a pickle, which can run any code when it is opened: "
            "only safetensors are loaded. Ask for the .safetensors file of the same model"
        )
    if folder.is_dir():
        return folder
    if str(name) in NAMES:
        return data.bundled(NAMES[str(name)])
    close = difflib.get_close_matches(str(name), NAMES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError(f"no model {str(name)!r}{hint}: known by name are {', '.join(NAMES)}; otherwise give a folder in diffusers' format")


def _check_folder(folder: Path) -> None:
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        pickles = [path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES]
        hint = f" (it holds the pickle {pickles[0]}, which is not loaded)" if pickles else ""
        raise ValueError(f"{folder} is no Stable Diffusion in diffusers' format{hint}: it lacks {', '.join(missing)}")
    for part, weights in WEIGHTS.items():
        path = folder / part / weights
        if not path.exists():
            pickles = [other.name for other in path.parent.iterdir() if other.suffix.lower() in PICKLES]
            hint = f": {pickles[0]} is a pickle, which can run any code when it is opened" if pickles else ""
            raise FileNotFoundError(f"{path} is missing{hint}. Only safetensors are loaded: get the model's safetensors version")
        _check_safetensors(path)


def _check_safetensors(path: Path) -> None:
    """Compare the length the header promises with the length of the file, without reading the weights."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
        try:
            if header > size:
                raise ValueError("the header does not fit")
            table = json.loads(file.read(header))
            expected = 8 + header + max((row["data_offsets"][1] for key, row in table.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no safetensors file, or its beginning is damaged: fetch it again") from error
    if size != expected:
        raise ValueError(f"{path} is damaged: {size:,} bytes where its header promises {expected:,}. Fetch it again")


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError('device="cuda", but torch finds no GPU here: leave device out, or install a torch build with CUDA')
    return device
