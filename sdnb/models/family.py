"""`Family`: all that the rest of the package asks about a kind of model. A family is one file in this folder.

To add one, write a file that subclasses `Family`, with a dataclass for its `Model`, and `register` an instance of it there; the file is
found by itself. What has no default here has to be written: the process, what captions become, how the denoiser is called.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from ..losses import Process
    from ..recipe import Recipe
    from .model import Model
    from .weights import Header


@dataclass(frozen=True)
class Part:
    """A part of a model that has weights."""

    cls: str
    """The name of its class."""
    library: str = "diffusers"
    """Where the class is."""
    tokenizer: str | None = None
    """Of a text encoder: what its tokenizer is called in the model."""
    tokenizer_cls: str = "CLIPTokenizer"
    original: str = ""
    """How the names of its weights begin in a single file; empty where there are no such files."""

    @property
    def stem(self) -> str:
        """The beginning of the name of its file of weights, in diffusers' format."""
        return "model" if self.library == "transformers" else "diffusion_pytorch_model"

    @property
    def is_clip(self) -> bool:
        """Whether it is transformers' CLIP."""
        return self.cls.startswith("CLIP")

    @property
    def is_open_clip(self) -> bool:
        """Whether it has OpenCLIP's names in a single file, and pads as OpenCLIP does."""
        return self.original.endswith(".model.")


@dataclass(frozen=True)
class Reading:
    """How captions are read."""

    length: int | None = None
    """How many tokens of a caption are seen, None for 75."""
    clip_skip: int | None = None
    """Which layer from the back of the text encoder is read, as sd-scripts counts them; None for the last, which is 1."""


PLAIN = Reading()


def config_of(part: Module) -> dict[str, Any]:
    """The configuration that diffusers or transformers keep with a part of a model."""
    config: Any = part.config
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


class Family(ABC):
    """One kind of model. Its methods are given the model, a `Model` of this family, as far as they depend on it.

    A *condition* is what the denoiser is told beside the noisy latents: tensors by name, whose first dimension is the batch.
    """

    name: ClassVar[str]
    """`Model.family`, such as `sdxl`."""
    title: ClassVar[str]
    """The name in messages, such as Stable Diffusion XL."""
    model: ClassVar[Callable[..., Model]]
    """The dataclass whose fields are the parts, the tokenizers, `noise_scheduler` and `family`."""
    parts: ClassVar[Mapping[str, Part]]
    """The parts by name: the denoiser, `vae`, and the text encoders in the order in which they are read."""
    denoiser: ClassVar[str] = "unet"
    """The name of the part that is trained."""
    base: ClassVar[str | None] = None
    """The name of the model that the family began with; its shapes are in `data/architectures`, if there is one."""
    repositories: ClassVar[tuple[tuple[str, str | None], ...]] = ()
    """Where the Hub has `base`, in the order in which they are asked, each with the commit that it is pinned to or None for the newest."""
    full_precision: ClassVar[tuple[str, ...]] = ()
    """The parts that stay in fp32 where fp16 is asked for all, because their numbers overflow in it."""
    caches_captions: ClassVar[bool] = True
    """Whether sd-scripts can cache what the text encoders make of captions."""
    longest_caption: ClassVar[int] = 75
    """Tokens, without beginning and end."""
    lora_blocks: ClassVar[tuple[str, ...]]
    """Classes of the denoiser's modules in which sd-scripts puts an adapter beside every Linear and 1×1 convolution."""
    lora_conv_blocks: ClassVar[tuple[str, ...]] = ()
    """And those where it also does with `conv_dim`."""
    lora_names_are_original: ClassVar[bool] = True
    """Whether sd-scripts calls the denoiser's layers what the original model calls them; else as diffusers does."""
    version: ClassVar[str] = ""
    """How `ss_base_model_version` begins in the metadata of its LoRAs."""

    # the parts

    @property
    def context_width(self) -> int | None:
        """How wide the context is that a cross-attention of its LoRAs sees, if that tells the family."""
        return None

    @property
    def encoders(self) -> tuple[str, ...]:
        """The names of the text encoders."""
        return tuple(name for name, part in self.parts.items() if part.tokenizer)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The names of their tokenizers."""
        return tuple(part.tokenizer for part in self.parts.values() if part.tokenizer)

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of a model in diffusers' format."""
        return (*self.parts, *self.tokenizers, "scheduler")

    @property
    def mark(self) -> str:
        """How names begin by which a single file of this family is known: those of its last text encoder."""
        return list(self.parts.values())[-1].original

    def fits(self, facts: Mapping[str, Mapping]) -> bool:
        """Whether these configurations, by part, are of this family. They may lack some."""
        cls = self.parts[self.denoiser].cls
        return self.denoiser in facts and facts[self.denoiser].get("_class_name", cls) == cls

    def facts_of_file(self, path: Path, header: Header) -> dict:
        """The configurations of a single file that has `mark` and brings none. Raises `ValueError` where that is not known."""
        raise ValueError(f"{path.name} has no configurations, and those of {self.title} are not known here: give config=, a folder")

    @abstractmethod
    def scheduler(self, facts: Mapping) -> Any:
        """Diffusers' scheduler with the noise that a model was trained with; `facts` are its configurations."""

    def downscale(self, model: Model) -> int:
        """How many pixels one latent position stands for, along each side."""
        return 2 ** (len(model.vae.config["block_out_channels"]) - 1)

    def channels(self, model: Model) -> int:
        """Channels of the latents that the denoiser is given."""
        return config_of(model.vae)["latent_channels"]

    def resolution(self, model: Model) -> int:
        """The side in pixels of the pictures it was made for."""
        return config_of(model.denoiser)["sample_size"] * self.downscale(model)

    @abstractmethod
    def multiple(self, model: Model) -> int:
        """Pixels: the sides of pictures have to be multiples of this."""

    # captions

    def reading(self, model: Model, recipe: Recipe) -> Reading:
        """How `recipe` has captions read. Raises `ValueError` for what the model cannot do."""
        if (recipe.max_token_length or 75) > self.longest_caption:
            raise ValueError(f"max_token_length={recipe.max_token_length}: {self.title} sees {self.longest_caption}; leave it out")
        if recipe.clip_skip not in (None, 1):
            raise ValueError(f"clip_skip={recipe.clip_skip}: which layers {self.title} reads is fixed; leave it out")
        return Reading(recipe.max_token_length)

    def tokens(self, model: Model, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """B texts -> (B, 77) numbers of tokens from each tokenizer. What is longer is cut."""
        return tuple(
            tokenizer(
                list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer in model.tokenizers.values()
        )

    @abstractmethod
    def read(self, model: Model, tokens: Sequence[Tensor], *, clip_skip: int | None = None) -> dict[str, Tensor]:
        """What the text encoders make of `tokens`, (B, T) each -> the condition, with gradients where the caller allows them.

        `context` (B, T, D) is the sequence, and `pooled` (B, P), where there is one, the caption as one vector.
        """

    def condition(self, model: Model, texts: Sequence[str], reading: Reading = PLAIN) -> dict[str, Tensor]:
        """What the text encoders make of B texts: as `read`."""
        return self.read(model, self.tokens(model, texts), clip_skip=reading.clip_skip)

    @abstractmethod
    def example(self, model: Model, batch: int, *, tokens: int = 77) -> dict[str, Tensor]:
        """What `condition` has for `batch` captions of so many tokens, on the meta device in fp32."""

    def sizes(self, original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]) -> dict[str, Tensor]:
        """The condition of one picture, without a batch dimension, that follows from its size before resizing, where it was cropped and
        its size in training: (height, width), (top, left), (height, width) in pixels.
        """
        return {}

    # the step

    @abstractmethod
    def process(self, model: Model) -> Process:
        """How its pictures become noise, and what it predicts."""

    @abstractmethod
    def arguments(self, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> dict:
        """The keyword arguments of the denoiser for noisy latents (B, C, h, w) at noise levels (B,)."""

    def inputs(self, model: Model, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> dict:
        """The same in the precision of its weights."""
        dtype = model.dtype
        return self.arguments(x_t.to(dtype), t, {name: value.to(dtype) for name, value in condition.items()})

    def denoise(self, model: Model, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """What the denoiser predicts: (B, C, h, w), (B,) -> (B, C, h, w)."""
        return model.denoiser(**self.inputs(model, x_t, t, condition)).sample

    # drawing and saving

    def sampler(self, model: Model) -> Any:
        """Diffusers' scheduler to draw with."""
        from diffusers import DDIMScheduler

        noise = dict(model.noise_scheduler.config)
        if noise.get("rescale_betas_zero_snr"):
            noise["timestep_spacing"] = "trailing"  # Lin et al. 2023: begin where there is nothing but noise, or it was for nothing
        return DDIMScheduler.from_config(noise)

    def prompts(self, model: Model, texts: Sequence[str], reading: Reading = PLAIN) -> dict[str, Tensor]:
        """What its pipeline is given instead of B prompts, and of the empty one that it is guided away from."""
        context = self.condition(model, texts, reading)["context"]
        return {"prompt_embeds": context, "negative_prompt_embeds": self.condition(model, [""], reading)["context"].expand_as(context)}

    @abstractmethod
    def pipeline(self, scheduler, **parts) -> Any:
        """Diffusers' pipeline around those parts and tokenizers, with None for the others."""

    def original_name(self, model: Model, path: str) -> str:
        """What the original model calls a module of the denoiser. `path` is diffusers' name, without the part's."""
        return path

    def to_original(self, model: Model) -> dict[str, Tensor]:
        """All weights under their names in a single file. Raises `ValueError` for a family of which there are none."""
        raise ValueError(f"{self.title} is saved as a folder: give a name that does not end in .safetensors")

    def from_original(self, part: str, tensors: Mapping[str, Tensor], facts: Mapping, module: Module) -> dict[str, Tensor]:
        """One part's weights out of those of a single file, under the names that `module` has. Raises `ValueError` like `to_original`."""
        raise ValueError(f"{self.title} is loaded from a folder")

    def notes(self, model: Model) -> dict[str, str]:
        """What the metadata of a LoRA says of the model."""
        return {"ss_base_model_version": self.version, "modelspec.architecture": self.name}


_families: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make a family known, in place of one of the same name, and return it."""
    _families[family.name] = family
    return family


def unregister(name: str) -> None:
    """Forget a family. Raises `KeyError` for one that is not known."""
    del _families[name]


@cache
def _look() -> None:
    """Import each file of this folder once: those that hold a family register it."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(import_module(package).__path__):
        import_module(f"{package}.{module.name}")


def families() -> tuple[Family, ...]:
    """All that are known."""
    _look()
    return tuple(_families.values())


def named(name: str) -> Family:
    """The family of this name. Raises `ValueError` for one that is not known."""
    _look()
    if name not in _families:
        raise ValueError(f"family={name!r}: there are {', '.join(_families)}")
    return _families[name]


def family_of(model: Model) -> Family:
    """The family of a model. Raises `ValueError` for one that is not known."""
    return named(model.family)


def fitting(facts: Mapping[str, Mapping]) -> Family | None:
    """The family of these configurations, by part, if it is known."""
    return next((family for family in families() if family.fits(facts)), None)


def known_parts() -> dict[str, Part]:
    """Every part that a model of any family may have, by name."""
    return {name: part for family in families() for name, part in family.parts.items()}
