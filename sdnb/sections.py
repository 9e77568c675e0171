"""The settings of a training run in sd-scripts' words, by topic. Each section is a dataclass, and a `Recipe` is all of them together.

To support another of sd-scripts' settings, add a field to its section and use it where the run acts on it. The field checks type and
range; that the setting is supported follows from it, and with `in_metadata` so does its line in a LoRA's metadata. None means "not set".
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Self, get_args, get_origin, get_type_hints

from .system import quoted

PRECISIONS = ("no", "fp16", "bf16")
LOSS_TYPES = ("l2", "l1", "huber", "smooth_l1")
HUBER_SCHEDULES = ("snr", "exponential", "constant")
SAMPLERS = tuple(
    "ddim pndm lms euler euler_a heun dpm_2 dpm_2_a dpmsolver dpmsolver++ dpmsingle k_lms k_euler k_euler_a k_dpm_2 k_dpm_2_a".split()
)
FILTERS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box")
"""Filters by which pictures are resized, made by `datasets.resampling`."""
UNET_BLOCKS = 23
"""Blocks of SDXL's U-Net that `block_lr` tells apart."""


def setting(default: Any = None, wanted: str = "", holds: Callable[[Any], bool] | None = None, *, in_metadata: bool = False) -> Any:
    """A field whose value is None or satisfies `holds`; `wanted` completes the error "it must be …".

    With `in_metadata` the value is written into a LoRA's metadata.
    """
    return field(default=default, metadata={"wanted": wanted, "holds": holds, "in_metadata": in_metadata})


def one_of(choices: tuple, default: Any = None, *, in_metadata: bool = False) -> Any:
    """A field with one of these values."""
    return setting(default, f"one of {', '.join(map(str, choices))}", lambda value: value in choices, in_metadata=in_metadata)


def positive(default: Any = None, such_as: str = "", *, in_metadata: bool = False) -> Any:
    """A field above 0."""
    return setting(default, f"above 0{such_as and f', such as {such_as}'}", lambda value: value > 0, in_metadata=in_metadata)


def not_negative(default: Any = None, wanted: str = "0 or above", *, in_metadata: bool = False) -> Any:
    """A field that is 0 or above."""
    return setting(default, wanted, lambda value: value >= 0, in_metadata=in_metadata)


def count(default: Any = None, *, in_metadata: bool = False) -> Any:
    """A field of 1 or more."""
    return setting(default, "1 or more", lambda value: value >= 1, in_metadata=in_metadata)


def texts(wanted: str = "without a leading -, which sd-scripts would take for a flag", holds: Callable[[str], bool] | None = None) -> Any:
    """A field with a list of texts, each of which satisfies `holds`."""
    return setting((), wanted, lambda values: all(map(holds or (lambda text: not text.startswith("-")), values)))


class Secret(str):
    """A text that is not shown: its `repr` is three dots."""

    def __repr__(self) -> str:
        return "'…'"


def secret() -> Any:
    """A field whose value no error, save or `repr` shows."""
    return field(default=None, repr=False, metadata={"secret": True})


class Section:
    """Base of all sections. Construction checks types and ranges, and raises one `ValueError` that names every wrong value."""

    def __post_init__(self) -> None:
        wrong = []
        for name, one in named(type(self)).items():
            given = getattr(self, name)
            value = typed(given, types_of(type(self))[name])
            if value is WRONG:
                wanted = ", ".join(filter(None, [in_words(types_of(type(self))[name]), one.metadata.get("wanted")]))
                wrong.append(f"{name}={'…' if one.metadata.get('secret') else quoted(given, 200)}: it must be {wanted}")
                continue
            if one.metadata.get("secret") and value is not None:
                value = Secret(value)

            value = None if value == "" and type(None) in types_of(type(self))[name] else value  # an empty text sets nothing
            object.__setattr__(self, name, value)
            holds = one.metadata.get("holds")
            if holds and value is not None and not holds(value):
                wrong.append(f"{name}={quoted(value, 200)}: it must be {one.metadata['wanted']}")
        if wrong:
            raise ValueError("; ".join(wrong))

    @classmethod
    def of(cls, recipe: Section, **more: Any) -> Self:
        """This section alone out of a recipe; `more` are the fields that a subclass adds."""
        return cls(**{name: getattr(recipe, name) for name in named(cls) if hasattr(recipe, name)} | more)


@dataclass(frozen=True, kw_only=True)
class Loss(Section):
    """How the loss is computed, by `losses.Loss`."""

    loss_type: str = one_of(LOSS_TYPES, "l2", in_metadata=True)
    huber_schedule: str = one_of(HUBER_SCHEDULES, "snr", in_metadata=True)
    huber_c: float = not_negative(0.1, in_metadata=True)
    huber_scale: float = not_negative(1.0, in_metadata=True)
    min_snr_gamma: float | None = not_negative(None, "above 0, such as 5, or 0 or None for none", in_metadata=True)
    zero_terminal_snr: bool = setting(False, in_metadata=True)
    """Noise levels up to pure noise (Lin et al. 2023). As in sd-scripts, the weights of the loss are those of the levels before."""
    debiased_estimation_loss: bool = False
    scale_v_pred_loss_like_noise_pred: bool = False
    v_pred_like_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Noise(Section):
    """Which noise is drawn for each batch, by `losses.Noises`."""

    noise_offset: float | None = not_negative(None, "0 or above, such as 0.05, or None", in_metadata=True)
    noise_offset_random_strength: bool = setting(False, in_metadata=True)
    adaptive_noise_scale: float | None = setting(in_metadata=True)
    multires_noise_iterations: int | None = not_negative(None, "0 or more", in_metadata=True)
    multires_noise_discount: float = setting(0.3, in_metadata=True)
    ip_noise_gamma: float | None = setting(in_metadata=True)
    ip_noise_gamma_random_strength: bool = setting(False, in_metadata=True)
    v_parameterization: bool = False
    """Train to predict v, whatever the model's files say. Without it, what they say."""
    min_timestep: int | None = setting(in_metadata=True)
    max_timestep: int | None = setting(in_metadata=True)


@dataclass(frozen=True, kw_only=True)
class Pictures(Section):
    """How pictures are shown: their sizes (see `datasets.buckets`), mirrored or not, and their weight in the loss."""

    enable_bucket: bool = False
    min_bucket_reso: int | None = None
    """Pixels. Default: 256, or half the model's own side if that is smaller."""
    max_bucket_reso: int | None = None
    """Pixels. Default: 1024, or twice the model's own side if that is smaller."""
    bucket_reso_steps: int | None = None
    """Pixels. Default: 64, or what the U-Net needs if the model is smaller."""
    bucket_no_upscale: bool = False
    resize_interpolation: str | None = one_of(FILTERS, in_metadata=True)
    """Filter by which pictures are resized. Default: area where a picture shrinks, lanczos where a side grows."""
    flip_aug: bool = setting(False, in_metadata=True)
    """Show each picture mirrored half of the time."""
    random_crop: bool = setting(False, in_metadata=True)
    """Cut each picture at another place each time: of the resized one with buckets, else of the picture as it is."""
    color_aug: bool = setting(False, in_metadata=True)
    """Show a third of the pictures in slightly other colours each time."""
    face_crop_aug_range: str | None = setting(None, "two numbers above 0 in order, such as 2.0,4.0", lambda text: _range(text) is not None)
    """Without buckets, cut each picture around the face that its file's name ends with (`_X_Y_WIDTH_HEIGHT`), the cut between so many
    times as long as the face."""
    alpha_mask: bool = False
    """Weigh the loss by the picture's own transparency: what cannot be seen counts nothing."""
    masked_loss: bool = False
    """Weigh the loss by the masks of the dataset file's `conditioning_data_dir`: black counts nothing."""
    prior_loss_weight: float = not_negative(1.0, "0 or more", in_metadata=True)
    """Factor on the loss of regularization pictures."""

    @property
    def varies(self) -> bool:
        """Whether a picture may be another one each time, so that nothing of it can be cached."""
        return self.color_aug or self.random_crop or (self.face_range is not None and not self.enable_bucket)

    @property
    def face_range(self) -> tuple[float, float] | None:
        """`face_crop_aug_range` as numbers."""
        return _range(self.face_crop_aug_range) if self.face_crop_aug_range else None


def _range(text: str) -> tuple[float, float] | None:
    """The two numbers of "2.0,4.0"; None for anything else."""
    try:
        least, most = (float(part) for part in text.split(","))
    except ValueError:
        return None
    return (least, most) if 0 < least <= most < math.inf else None


@dataclass(frozen=True, kw_only=True)
class Captions(Section):
    """Which caption a picture gets, and how it is encoded, by `datasets.captions`."""

    caption_dropout_rate: float = setting(0.0, "between 0 and 1", lambda value: 0 <= value <= 1, in_metadata=True)
    """Share of pictures shown without their caption."""
    shuffle_caption: bool = setting(False, in_metadata=True)
    keep_tokens: int = not_negative(0, in_metadata=True)
    """Number of comma-separated parts at the beginning that keep their place when a caption is shuffled."""
    keep_tokens_separator: str = ""
    """A mark in the caption: the parts before it, and those after a second one, keep their place. Wins over `keep_tokens`."""
    caption_separator: str = setting(",", "a text that is not empty", bool)
    secondary_separator: str | None = None
    """A mark for parts that stay together; in the end it becomes `caption_separator`."""
    enable_wildcard: bool = False
    """Take one word of `{red|blue}`, and one of a caption's lines; without it, the first line."""
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    caption_dropout_every_n_epochs: int = setting(0, in_metadata=True)
    """Leave all captions out in every N-th epoch; 0 for never."""
    caption_tag_dropout_rate: float = setting(0.0, "between 0 and 1", lambda value: 0 <= value <= 1, in_metadata=True)
    """Share of the comma-separated parts that are left out."""
    token_warmup_min: int = 1
    """Number of parts that a run begins with."""
    token_warmup_step: float = not_negative(0.0, "0 or more steps, or a share below 1 of the run")
    """The optimizer step from which on all parts are shown."""
    weighted_captions: bool = False
    """Weigh the words in brackets: `(more)`, `[less]`, `(this:1.3)`."""
    max_token_length: int | None = setting(None, "75 or more, such as 150 or 225", lambda value: value >= 75, in_metadata=True)
    clip_skip: int | None = setting(in_metadata=True)
    """Layer of the text encoder to take, counted from the last, which is 1."""


@dataclass(frozen=True, kw_only=True)
class Lora(Section):
    """Train adapters instead of all weights, if `network_module` or `network_dim` is set; `lora.asked` parses them."""

    network_module: str | None = None
    network_dim: int | None = None
    """Rank. Default: 4."""
    network_alpha: float = 1.0
    network_dropout: float | None = setting(in_metadata=True)
    network_args: tuple[str, ...] = texts()
    network_weights: str | None = None
    """A LoRA's file to go on from."""
    dim_from_weights: bool = False
    """Take ranks and alphas from that file."""
    base_weights: tuple[str, ...] = texts()
    """LoRA files to merge into the model before the training."""
    base_weights_multiplier: tuple[float, ...] = ()
    """Their strengths, in the same order; 1 where there are too few."""
    network_train_unet_only: bool = False
    network_train_text_encoder_only: bool = False
    unet_lr: float | None = setting(in_metadata=True)
    text_encoder_lr: tuple[float, ...] = setting((), in_metadata=True)
    """Of sd-scripts' LoRAs only the first counts, for all text encoders."""
    scale_weight_norms: float | None = not_negative(in_metadata=True)
    """Largest norm of what an adapter adds to a layer's weights, to which it is scaled down after each batch. 0 or None: none."""

    @property
    def wants_lora(self) -> bool:
        """Whether adapters are trained."""
        return self.network_module is not None or self.network_dim is not None

    @property
    def wants_lora_in_text_encoders(self) -> bool:
        """Whether the text encoders get adapters, too."""
        return self.wants_lora and not self.network_train_unet_only and (not self.text_encoder_lr or any(self.text_encoder_lr))


@dataclass(frozen=True, kw_only=True)
class Parts(Section):
    """Which parts train whole, and at which rates; of adapters that is said by `Lora`."""

    train_text_encoder: bool = False
    """Train the text encoders beside the U-Net. `Recipe.parse` sets it for train_db.py, which trains them by default."""
    stop_text_encoder_training: int | None = None
    """Optimizer steps after which the text encoder of train_db.py is frozen; negative: from the beginning. None: never."""
    learning_rate_te: float | None = not_negative()
    """Of the text encoder, where there is one. Default: `learning_rate`. A part whose rate is 0 is not trained."""
    learning_rate_te1: float | None = not_negative()
    """Of SDXL's first text encoder."""
    learning_rate_te2: float | None = not_negative()
    """Of SDXL's second."""
    block_lr: str | None = setting(None, f"{UNET_BLOCKS} numbers, 0 or above, with commas between them", lambda text: bool(_rates(text)))
    """Rates of the blocks of SDXL's U-Net, in their order: embeddings, 9 input blocks, 3 middle, 9 output, and the last layers."""

    @property
    def block_rates(self) -> tuple[float, ...]:
        """`block_lr` as numbers; empty if it is not set."""
        return _rates(self.block_lr) if self.block_lr else ()


def _rates(text: str) -> tuple[float, ...]:
    """The rates in `block_lr`; empty where they are not as they must be."""
    try:
        rates = tuple(map(float, text.split(",")))
    except ValueError:
        return ()
    return rates if len(rates) == UNET_BLOCKS and all(0 <= rate < math.inf for rate in rates) else ()


@dataclass(frozen=True, kw_only=True)
class Caching(Section):
    """Which frozen parts run once, before the first step, and then leave the GPU. `_to_disk` keeps their outputs for later runs."""

    cache_latents: bool = False
    cache_latents_to_disk: bool = False
    cache_text_encoder_outputs: bool = False
    cache_text_encoder_outputs_to_disk: bool = False

    @property
    def caches_latents(self) -> bool:
        """Whether the autoencoder leaves the GPU."""
        return self.cache_latents or self.cache_latents_to_disk

    @property
    def caches_texts(self) -> bool:
        """Whether the text encoders leave the GPU."""
        return self.cache_text_encoder_outputs or self.cache_text_encoder_outputs_to_disk


@dataclass(frozen=True, kw_only=True)
class Saves(Section):
    """When to save and to draw samples, by `saves.timing`. Needs a folder to save to."""

    save_every_n_steps: int | None = count()
    save_every_n_epochs: int | None = count()
    save_n_epoch_ratio: int | None = None
    """At least so many files of whole epochs. Wins over `save_every_n_epochs`; 0 or less says nothing."""
    save_last_n_steps: int | None = None
    """Delete files older than this many steps."""
    save_last_n_epochs: int | None = None
    """Keep the files of the last epochs, so many of them."""
    save_last_n_steps_state: int | None = None
    """The same for the saves that a run resumes from."""
    save_last_n_epochs_state: int | None = None
    save_state: bool = False
    """Keep the saves of the run for as long as sd-scripts keeps its states; else the last two are kept."""
    initial_step: int | None = not_negative()
    """Begin as if so many steps were done; `saves.timing` says which."""
    initial_epoch: int | None = count()
    """The same, at the beginning of this epoch, the first being 1. `initial_step` wins over it."""
    skip_until_initial_step: bool = False
    """Begin inside the epoch, rather than at its beginning."""
    resume: str | None = None
    """A save to begin with, where a job has none of its own: ours, or the state of sd-scripts."""
    sample_every_n_steps: int | None = None
    """0 or less: never."""
    sample_every_n_epochs: int | None = None
    """Wins over `sample_every_n_steps`. 0 or less: never."""
    sample_at_first: bool = False
    """Draw samples before the first step, too."""
    sample_prompts: str | None = None
    """Path of a file of prompts, which `saves.samples` reads."""
    sample_sampler: str = one_of(SAMPLERS, "ddim")
    """How to draw where a prompt says nothing else."""

    @property
    def drawn_every_epochs(self) -> int | None:
        """Epochs from one drawing of samples to the next."""
        every = self.sample_every_n_epochs
        return every if every and every > 0 else None

    @property
    def drawn_every_steps(self) -> int | None:
        """Steps from one drawing of samples to the next, where they are not drawn by epochs."""
        every = self.sample_every_n_steps
        return every if every and every > 0 and not self.drawn_every_epochs else None


@dataclass(frozen=True, kw_only=True)
class Validation(Section):
    """Which pictures are held out from training, and when the model is tried on them, by `datasets.validation`."""

    validation_split: float = setting(0.0, "0 or above and below 1, such as 0.1", lambda share: 0 <= share < 1, in_metadata=True)
    """Share of the pictures of each folder. Regularization pictures are not held out."""
    validation_seed: int | None = setting(None, "from 0 to 4294967295", lambda seed: 0 <= seed < 2**32, in_metadata=True)
    """Seed of the choice of pictures and of the noise. Default: `seed`."""
    validate_every_n_steps: int | None = count(in_metadata=True)
    """In optimizer steps; the ends of epochs come on top."""
    validate_every_n_epochs: int | None = count(in_metadata=True)
    """Default: 1."""
    max_validation_steps: int | None = count(in_metadata=True)
    """Most batches of one validation. Default: all."""


@dataclass(frozen=True, kw_only=True)
class Logs(Section):
    """Where a run's numbers go besides the live plot, by `watch.trackers`."""

    log_with: str | None = one_of(("tensorboard", "wandb", "all"))
    """Default: `tensorboard` if there is a `logging_dir`."""
    logging_dir: str | None = None
    """Folder for the logs; each run has one of its own in it, named by the time."""
    log_prefix: str | None = None
    """Beginning of that folder's name."""
    log_tracker_name: str | None = None
    """Name that the tracker knows the run by; with W&B the project."""
    log_tracker_config: str | None = None
    """TOML file with arguments for the trackers."""
    wandb_run_name: str | None = None
    wandb_api_key: str | None = secret()
    log_config: bool = False
    """Show the recipe's settings, without folders and keys, to the trackers."""


@dataclass(frozen=True, kw_only=True)
class Precision(Section):
    """Number formats of computation and weights."""

    mixed_precision: str = one_of(PRECISIONS, "no", in_metadata=True)
    """Precision of the forward pass: `no`, `fp16` or `bf16`. The trained weights stay in fp32."""
    full_bf16: bool = False
    """Keep the weights in bf16, too, but not adapters."""
    full_fp16: bool = setting(False, in_metadata=True)
    """sd-scripts' weights in fp16. Here the trained ones stay in fp32, as with `mixed_precision="fp16"` alone."""
    fp8_base: bool = setting(False, in_metadata=True)
    """Round the frozen weights beside adapters to 8 bits (float8_e4m3fn)."""
    fp8_base_unet: bool = setting(False, in_metadata=True)
    """The same, of the denoiser alone."""


@dataclass(frozen=True, kw_only=True)
class Compiling(Section):
    """torch.compile, by `system.compiling`."""

    torch_compile: bool = False
    dynamo_backend: str = "inductor"
    """Any of torch's, in any capitals; `no` turns it off."""

    @property
    def compiles(self) -> bool:
        """Whether blocks are compiled."""
        return self.torch_compile and self.dynamo_backend.lower() not in ("", "no", "none")


@dataclass(frozen=True, kw_only=True)
class Schedule(Section):
    """The learning-rate schedule, made by `schedules`."""

    lr_scheduler: str = setting("constant_with_warmup", in_metadata=True)
    lr_warmup_steps: int | float = setting(
        100,
        "0 or more whole steps, or a share up to 1.0",
        lambda value: value >= 0 and (type(value) is int or value <= 1),
        in_metadata=True,
    )
    """In optimizer steps, however many processes run and however many batches are accumulated; as a fraction, a share of the run. A
    percentage as text, such as "10%", becomes such a share."""
    lr_decay_steps: int | float = setting(
        0, "0 or more whole steps, or a share up to 1.0", lambda value: value >= 0 and (type(value) is int or value <= 1)
    )
    lr_scheduler_num_cycles: int = 1
    lr_scheduler_power: float = 1.0
    lr_scheduler_timescale: int | None = None
    lr_scheduler_min_lr_ratio: float | None = None
    lr_scheduler_type: str = ""
    """A class of torch.optim.lr_scheduler, or the dotted path of one, in place of `lr_scheduler`."""
    lr_scheduler_args: tuple[str, ...] = texts()
    max_train_epochs: int | None = count()
    """Passes over the pictures. Wins over `max_train_steps`."""


@dataclass(frozen=True, kw_only=True)
class Metadata(Section):
    """What a LoRA's file says of itself, as `modelspec.title` and so on."""

    no_metadata: bool = False
    """Leave out how it was trained: settings, folders, words of the captions."""
    metadata_title: str | None = None
    metadata_author: str | None = None
    metadata_description: str | None = None
    metadata_license: str | None = None
    metadata_tags: str | None = None
    metadata_usage_hint: str | None = None
    metadata_trigger_phrase: str | None = None
    metadata_merged_from: str | None = None
    metadata_thumbnail: str | None = None
    metadata_preprocessor: str | None = None
    metadata_is_negative_embedding: str | None = None

    @property
    def of_model(self) -> dict[str, str]:
        """The entries that a recipe gives itself, by their names in the file."""
        names = [name for name in named(Metadata) if name.startswith("metadata_")]
        values = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {f"modelspec.{name.removeprefix('metadata_')}": value for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class Files(Section):
    """Files that `sdnb train` reads and writes. From Python, you load and save them yourself."""

    pretrained_model_name_or_path: str | None = None
    vae: str | None = None
    """Another autoencoder: a folder, a repository of the Hub, or a .safetensors file."""
    no_half_vae: bool = False
    """Keep the autoencoder in fp32."""
    train_data_dir: str | None = None
    in_json: str | None = None
    """Metadata of fine-tuning: the captions of the pictures in `train_data_dir`."""
    reg_data_dir: str | None = None
    dataset_config: str | None = None
    caption_extension: str | None = None
    dataset_repeats: int = 1
    """Times that an epoch shows the pictures of a dataset file's subset without `num_repeats`."""
    output_dir: str | None = None
    output_name: str | None = None
    save_model_as: str | None = None
    save_precision: str | None = one_of(("float", "fp16", "bf16"))
    training_comment: str | None = setting(in_metadata=True)
    huggingface_token: str | None = secret()
    """Not used, as nothing is uploaded."""


WRONG = object()
"""Returned by `typed` for a value of another type."""


@cache
def named(section: type) -> Mapping[str, Any]:
    """Dataclass fields of a section, by name."""
    return {one.name: one for one in fields(section)}


@cache
def types_of(section: type) -> Mapping[str, tuple[Any, ...]]:
    """Allowed types of each setting, by name."""
    hints = get_type_hints(section)
    return {name: get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],) for name in named(section)}


def typed(value: Any, allowed: tuple[Any, ...]) -> Any:
    """The value as the first of these types that takes it, or `WRONG`. A list becomes a tuple, and a whole number a float.

    >>> typed(1, (float,)), typed(["a"], (tuple[str, ...],)), typed(None, (int, type(None))), typed("1", (int,)) is WRONG
    (1.0, ('a',), None, True)
    """
    for kind in allowed:
        if kind is Any:
            return value
        if get_origin(kind) is tuple:
            parts = tuple(typed(part, get_args(kind)[:1]) for part in (value if isinstance(value, list | tuple) else [value]))
            if WRONG not in parts:
                return parts
        elif kind is float:
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
                return float(value)
        elif kind is type(value) or (kind is str and isinstance(value, Secret)):
            return value
    return WRONG


def in_words(allowed: tuple[Any, ...]) -> str:
    """The types in words, for an error."""
    if int in allowed and float in allowed:
        return "a number"
    words = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text", tuple[str, ...]: "a list of texts"}
    words |= {tuple[float, ...]: "a list of numbers"}
    return " or ".join(words[kind] for kind in allowed if kind in words)
