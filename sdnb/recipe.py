"""`Recipe`: the settings of a training run, in the words of kohya-ss/sd-scripts."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of one training run. Field names and meanings are sd-scripts'; the defaults are the recipe this course is about.

    `Recipe()` is Adafactor at a fixed learning rate, without clipping, warmed up over 100 steps. sd-scripts' own defaults differ
    (its Adafactor chooses the learning rate itself unless `relative_step=False` is said).

    Raises `ValueError` at construction, naming the field, the value and what would do.
    """

    optimizer_type: str = "Adafactor"
    optimizer_args: tuple[str, ...] = ("relative_step=False", "scale_parameter=False", "warmup_init=False")
    learning_rate: float = 1e-4
    max_grad_norm: float = 0.0
    """Gradients are scaled down to this global norm; 0 leaves them alone and computes no norm."""
    lr_scheduler: str = "constant_with_warmup"
    lr_warmup_steps: int = 100
    """In optimizer steps, however many processes run and however many batches are accumulated."""
    max_train_steps: int = 1600
    """Optimizer steps of a whole run; `train(steps=…)` wins over it."""
    train_batch_size: int = 2
    """Pictures in one forward pass of one process."""
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"
    """`no`, `fp16` or `bf16`: the precision of the forward pass. The trained weights stay in fp32."""
    resolution: int | None = None
    """Side of the square training pictures in pixels; None is the size the model was made for."""
    caption_dropout_rate: float = 0.0
    """The share of pictures shown without their caption."""
    min_snr_gamma: float | None = None
    noise_offset: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.optimizer_args, str):
            raise ValueError(f'optimizer_args is a list of "key=value" texts: write optimizer_args=({self.optimizer_args!r},)')
        object.__setattr__(self, "optimizer_args", tuple(self.optimizer_args))
        for field in dataclasses.fields(self):
            self._check_type(field)
        for name in ("max_train_steps", "train_batch_size", "gradient_accumulation_steps"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        self._require("lr_warmup_steps", self.lr_warmup_steps >= 0, "0 or more steps")
        self._require("learning_rate", self.learning_rate > 0, "above 0, such as 1e-4")
        self._require("max_grad_norm", self.max_grad_norm >= 0, "0 (no clipping) or above, such as 1.0")
        self._require("caption_dropout_rate", 0 <= self.caption_dropout_rate <= 1, "between 0 and 1")
        self._require("min_snr_gamma", self.min_snr_gamma is None or self.min_snr_gamma > 0, "above 0, such as 5, or None")
        self._require("noise_offset", self.noise_offset is None or self.noise_offset >= 0, "0 or above, such as 0.05, or None")
        self._require("resolution", self.resolution is None or (self.resolution > 0 and self.resolution % 8 == 0), "a multiple of 8")
        self._require("mixed_precision", self.mixed_precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        for argument in self.optimizer_args:
            key, equals, _ = argument.partition("=")
            self._require("optimizer_args", bool(equals) and key.isidentifier(), '"key=value" texts without spaces around "="')

    def replace(self, **changes) -> Recipe:
        """The same recipe with some settings changed."""
        return dataclasses.replace(self, **changes)

    def _check_type(self, field: dataclasses.Field) -> None:
        value = getattr(self, field.name)
        kinds = {kind.strip() for kind in field.type.split("|")}
        if value is None and "None" in kinds:
            return
        if "float" in kinds and type(value) in (int, float):
            object.__setattr__(self, field.name, float(value))
            self._require(field.name, math.isfinite(value), "a finite number")
        elif "int" in kinds:
            self._require(field.name, type(value) is int, "a whole number")
        elif "float" in kinds:
            self._require(field.name, False, "a number")
        elif "bool" in kinds:
            self._require(field.name, type(value) is bool, "True or False")
        elif "str" in kinds:
            self._require(field.name, type(value) is str, "a text")
        else:
            self._require(field.name, all(type(part) is str for part in value), 'a list of "key=value" texts')

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ValueError(f"{name}={getattr(self, name)!r}: it must be {wanted}")
