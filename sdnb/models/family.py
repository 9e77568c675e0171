"""`Family`: everything that the rest of the package asks about a kind of model. A family is one file in this folder.

To add one, write a file with a subclass of `Family` and a dataclass for its `Model`, and `register` an instance; the file is found by
itself. The methods without a default must be written: the diffusion process, how captions are encoded, how the denoiser is called.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from . import samplers

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from ..losses import DiffusionProcess
    from ..recipe import Recipe
    from .model import Model
    from .weights import Header


@dataclass(frozen=True)
class Part:
    """A part of a model that has weights."""

    cls: str
    """Name of its class."""
    library: str = "diffusers"
    """Package of the class."""
    tokenizer: str | None = None
    """For a text encoder: the field of the model that holds its tokenizer."""
    tokenizer_cls: str = "CLIPTokenizer"
    original: str = ""
    """Prefix of its weights' names in a single file; empty where there are no such files."""

    @property
    def stem(self) -> str:
        """Beginning of the name of its weights file in diffusers' format."""
        return "model" if self.library == "transformers" else "diffusion_pytorch_model"

    @property
    def is_clip(self) -> bool:
        """Whether its class is transformers' CLIP."""
        return self.cls.startswith("CLIP")

    @property
    def is_open_clip(self) -> bool:
        """Whether it is OpenCLIP: its names in a single file, and its padding."""
        return self.original.endswith(".model.")


@dataclass(frozen=True)
class TextEncoding:
    """How captions are encoded."""

    length: int | None = None
    """Tokens of a caption that are used; None for 75."""
    clip_skip: int | None = None
    """Layer of the text encoder to take, counted from the last, which is 1, as in sd-scripts; None for the last."""
    weighted: bool = False
    """Whether brackets weigh the words in them, as `prompts` has it."""

    @classmethod
    def of(cls, recipe: Recipe, clip_skip: int | None = None) -> Self:
        """What a recipe says. Captions are read in parts of 75 tokens, so of `max_token_length` only whole ones count."""
        length = recipe.max_token_length
        return cls(length and length - length % 75, clip_skip, recipe.weighted_captions)


PLAIN = TextEncoding()


def config_of(part: Module) -> dict[str, Any]:
    """Configuration of a part, as diffusers or transformers keep it."""
    config: Any = part.config
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


class Family(ABC):
    """One kind of model. Methods that depend on the model itself take it: a `Model` of this family.

    A *condition* is the denoiser's input besides the noisy latents: tensors by name, whose first dimension is the batch.
    """

    name: ClassVar[str]
    """`Model.family`, such as `sdxl`."""
    title: ClassVar[str]
    """The name in messages, such as Stable Diffusion XL."""
    model: ClassVar[Callable[..., Model]]
    """The dataclass whose fields are the parts, the tokenizers, `noise_scheduler` and `family`."""
    parts: ClassVar[Mapping[str, Part]]
    """The parts by name: the denoiser, `vae`, and the text encoders in their order."""
    denoiser: ClassVar[str] = "unet"
    """Name of the part that is trained."""
    base: ClassVar[str | None] = None
    """Name of the family's first model, whose shapes are in `data/architectures`; None if there is none."""
    repositories: ClassVar[tuple[tuple[str, str | None], ...]] = ()
    """Repositories on the Hub that have `base`, in the order to ask them, each with its pinned commit or None for the newest."""
    full_precision: ClassVar[tuple[str, ...]] = ()
    """Parts that stay in fp32 when fp16 is asked for, because they would overflow."""
    caches_captions: ClassVar[bool] = True
    """Whether sd-scripts can cache the encoded captions."""
    longest_caption: ClassVar[int | None] = 75
    """Tokens, without beginning and end; None for any number."""
    lora_blocks: ClassVar[tuple[str, ...]]
    """Classes of the denoiser's modules in which sd-scripts adapts every Linear and 1×1 convolution."""
    lora_conv_blocks: ClassVar[tuple[str, ...]] = ()
    """Classes in which it does so only with `conv_dim`."""
    lora_layout: ClassVar[tuple[int, int, int] | None] = None
    """Blocks that sd-scripts counts: on the way down, and as many up; in the middle; before the first, and as many after the last."""
    lora_names_are_original: ClassVar[bool] = True
    """Whether sd-scripts names the denoiser's layers as the original model does; if not, as diffusers does."""
    version: ClassVar[str] = ""
    """Beginning of `ss_base_model_version` in the metadata of its LoRAs."""

    # the parts

    @property
    def context_width(self) -> int | None:
        """Width of the context in cross-attention, if that tells a LoRA of this family; else None."""
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
        """Prefix of names by which a single file of this family is recognised: that of its last text encoder."""
        return list(self.parts.values())[-1].original

    def fits(self, facts: Mapping[str, Mapping]) -> bool:
        """Whether these configurations, by part, are of this family. Some may be missing."""
        cls = self.parts[self.denoiser].cls
        return self.denoiser in facts and facts[self.denoiser].get("_class_name", cls) == cls

    def facts_of_file(self, path: Path, header: Header) -> dict:
        """Configurations for a single file that has `mark` but brings none. Raises `ValueError` where they are not known."""
        raise ValueError(f"{path.name} has no configurations, and those of {self.title} are not known here: give config=, a folder")

    @abstractmethod
    def scheduler(self, facts: Mapping) -> Any:
        """Diffusers' scheduler with the noise levels that the model was trained with; `facts` are its configurations."""

    def downscale(self, model: Model) -> int:
        """Pixels per latent position, along each side."""
        return 2 ** (len(model.vae.config["block_out_channels"]) - 1)

    def channels(self, model: Model) -> int:
        """Channels of the latents that the denoiser is given."""
        return config_of(model.vae)["latent_channels"]

    def resolution(self, model: Model) -> int:
        """Side in pixels of the pictures that the model was made for."""
        return config_of(model.denoiser)["sample_size"] * self.downscale(model)

    @abstractmethod
    def multiple(self, model: Model) -> int:
        """Pixels that the sides of pictures must be a multiple of."""

    # captions

    def text_encoding(self, model: Model, recipe: Recipe) -> TextEncoding:
        """How `recipe` wants captions encoded. Raises `ValueError` for what the model cannot do."""
        if self.longest_caption and (recipe.max_token_length or 75) > self.longest_caption:
            raise ValueError(f"max_token_length={recipe.max_token_length}: {self.title} sees {self.longest_caption}; leave it out")
        if recipe.clip_skip not in (None, 1):
            raise ValueError(f"clip_skip={recipe.clip_skip}: which layers {self.title} reads is fixed; leave it out")
        if recipe.weighted_captions:
            raise ValueError(f"weighted_captions: {self.title} reads captions as they are; leave it out")
        return TextEncoding.of(recipe)

    def tokens(self, model: Model, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """B texts -> token ids (B, 77) from each tokenizer. Longer texts are cut."""
        return tuple(
            tokenizer(
                list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer in model.tokenizers.values()
        )

    @abstractmethod
    def encode_tokens(self, model: Model, tokens: Sequence[Tensor], *, clip_skip: int | None = None) -> dict[str, Tensor]:
        """Encode `tokens`, (B, T) for each tokenizer -> the condition, with gradients if the caller has them enabled.

        `context` (B, T, D) is the sequence; `pooled` (B, P), where a family has it, is the whole caption as one vector.
        """

    def condition(self, model: Model, texts: Sequence[str], encoding: TextEncoding = PLAIN) -> dict[str, Tensor]:
        """Encode B texts, as `encode_tokens` does."""
        return self.encode_tokens(model, self.tokens(model, texts), clip_skip=encoding.clip_skip)

    def unread(self, model: Model, encoding: TextEncoding) -> tuple[Module, ...]:
        """The modules of the text encoders whose outputs the condition does not depend on, so that they cannot be trained."""
        return ()

    @abstractmethod
    def example(self, model: Model, batch: int, *, tokens: int = 77) -> dict[str, Tensor]:
        """The result of `condition` for `batch` captions of `tokens` tokens, on the meta device in fp32."""

    def sizes(self, original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]) -> dict[str, Tensor]:
        """The part of a picture's condition that comes from its sizes, without a batch dimension.

        Original size (height, width), crop (top, left) and size in training (height, width), in pixels.
        """
        return {}

    # the step

    def noise(self, model: Model, recipe: Recipe) -> Any:
        """The scheduler with the noise levels and the prediction that `recipe` trains for; the model's own unless it says otherwise.

        Raises `ValueError` for `v_parameterization` and `zero_terminal_snr` in a family that has neither.
        """
        asked = [name for name in ("v_parameterization", "zero_terminal_snr") if getattr(recipe, name)]
        if asked:
            raise ValueError(f"{', '.join(asked)}: {self.title} has no such noise; leave it out")
        return model.noise_scheduler

    @abstractmethod
    def process(self, model: Model) -> DiffusionProcess:
        """The diffusion process: how pictures become noise, and what the model predicts."""

    @abstractmethod
    def arguments(self, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> dict:
        """Keyword arguments of the denoiser for noisy latents (B, C, h, w) at noise levels (B,)."""

    def inputs(self, model: Model, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> dict:
        """`arguments` in the precision of the denoiser's weights."""
        dtype = model.dtype
        return self.arguments(x_t.to(dtype), t, {name: value.to(dtype) for name, value in condition.items()})

    def denoise(self, model: Model, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The denoiser's prediction: (B, C, h, w), (B,) -> (B, C, h, w)."""
        return model.denoiser(**self.inputs(model, x_t, t, condition)).sample

    # drawing and saving

    def sampler(self, model: Model, name: str | None = None) -> Any:
        """Diffusers' scheduler to draw with: DDIM with the model's own noise levels, or the one of sd-scripts' name."""
        from diffusers import DDIMScheduler

        if name is not None:
            return samplers.sampler(name, model.noise_scheduler.config.get("prediction_type", "epsilon"))
        noise = dict(model.noise_scheduler.config)
        if noise.get("rescale_betas_zero_snr"):
            noise["timestep_spacing"] = "trailing"  # Lin et al. 2023: sampling has to begin at pure noise
        return DDIMScheduler.from_config(noise)

    def prompts(self, model: Model, texts: Sequence[str], encoding: TextEncoding = PLAIN, negative: str | None = None) -> dict[str, Tensor]:
        """Arguments for the pipeline in place of B prompts and a negative prompt, by default the empty one."""
        context = self.condition(model, texts, encoding)["context"]
        unwanted = self.condition(model, [negative or ""], encoding)["context"]
        return {"prompt_embeds": context, "negative_prompt_embeds": unwanted.expand_as(context)}

    @abstractmethod
    def pipeline(self, scheduler, **parts) -> Any:
        """Diffusers' pipeline of these parts and tokenizers; None for those left out."""

    def original_name(self, model: Model, path: str) -> str:
        """Name of a denoiser's module in the original model. `path` is diffusers' name within the denoiser."""
        return path

    def to_original(self, model: Model) -> dict[str, Tensor]:
        """All weights under their names in a single file. Raises `ValueError` for a family without such files."""
        raise ValueError(f"{self.title} is saved as a folder: give a name that does not end in .safetensors")

    def from_original(self, part: str, tensors: Mapping[str, Tensor], facts: Mapping, module: Module) -> dict[str, Tensor]:
        """Weights of one part out of a single file's `tensors`, under the names of `module`. Raises `ValueError` like `to_original`."""
        raise ValueError(f"{self.title} is loaded from a folder")

    def notes(self, model: Model) -> dict[str, str]:
        """Entries about the model for a LoRA's metadata."""
        return {"ss_base_model_version": self.version, "modelspec.architecture": self.name}


_families: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Register a family, in place of one of the same name, and return it."""
    _families[family.name] = family
    return family


def unregister(name: str) -> None:
    """Remove a family from the register. Raises `KeyError` for one that is not there."""
    del _families[name]


@cache
def _look() -> None:
    """Import each file of this folder once, so that its families register themselves."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(import_module(package).__path__):
        import_module(f"{package}.{module.name}")


def families() -> tuple[Family, ...]:
    """All registered families."""
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
    """The family that these configurations, by part, belong to; None if no family fits."""
    return next((family for family in families() if family.fits(facts)), None)


def known_parts() -> dict[str, Part]:
    """All parts of all families, by name."""
    return {name: part for family in families() for name, part in family.parts.items()}
