"""Configurations to measure and plan: a model, a recipe and what is recomputed. `CONFIGURATIONS` are the ones recorded on a card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import checkpointing
from ..memory import GIB
from ..recipe import Recipe

CHOICES = {"none": "none", "full": "full", "CHEAP": checkpointing.CHEAP}


@dataclass(frozen=True)
class Configuration:
    """One training run to measure and plan."""

    model: str
    """Name of `models.architectures()`, or a folder in diffusers' format."""
    size: tuple[int, int]
    """Width and height of the pictures, in pixels."""
    recipe: Recipe
    dtype: str = "fp32"
    """Dtype of the weights on the card: `fp32`, `bf16` or `fp16`. Adapters are in fp32."""
    recompute: str | int = "none"
    """`none`, `full` (every block), `CHEAP`, or the bytes of a `Budget`."""

    @property
    def choice(self) -> str | checkpointing.Keep | checkpointing.Budget:
        """Choice for `checkpointing.apply`."""
        if isinstance(self.recompute, int):
            return checkpointing.Budget(self.recompute, fused_backward_pass=self.recipe.fused_backward_pass)
        return CHOICES[self.recompute]

    @property
    def name(self) -> str:
        """Description in a few words: `sdxl 1024×1024, batch 1, LoRA of rank 16, AdamW, mixed bf16, recomputing everything`."""
        recipe, rank = self.recipe, self.recipe.network_dim
        parts = [f"{Path(self.model).name} {self.size[0]}×{self.size[1]}", f"batch {recipe.train_batch_size}"]
        if recipe.gradient_accumulation_steps > 1:
            parts[-1] += f" × {recipe.gradient_accumulation_steps} accumulated"
        parts.append(f"LoRA of rank {rank}" if rank else "whole U-Net")
        if recipe.wants_lora_in_text_encoders:
            parts[-1] += " with text encoders"
        parts.append(recipe.optimizer_type + (", fused backward" if recipe.fused_backward_pass else ""))
        mixed = "" if recipe.mixed_precision == "no" else f", mixed {recipe.mixed_precision}"
        parts.append(f"weights in {self.dtype}{mixed}")
        if recipe.max_grad_norm:
            parts.append("clipped")
        if not recipe.cache_latents:
            parts.append("nothing cached")
        words = {"none": "recomputing nothing", "full": "recomputing every block", "CHEAP": "recomputing what is cheap"}
        recompute = self.recompute
        parts.append(f"recomputed for {recompute / GIB:.2f} GiB" if isinstance(recompute, int) else words[recompute])
        return ", ".join(parts)

    def as_dict(self) -> dict:
        """Dictionary for a JSON file; its `settings` are the recipe's that differ from their defaults."""
        settings = {}
        for field in dataclasses.fields(Recipe):
            value = self.recipe.extras if field.name == "others" else getattr(self.recipe, field.name)
            if value != field.default:
                settings[field.name] = dict(value) if field.name == "others" else list(value) if isinstance(value, tuple) else value
        return {"model": self.model, "size": list(self.size), "dtype": self.dtype, "recompute": self.recompute, "settings": settings}

    @classmethod
    def from_dict(cls, row: Mapping) -> Configuration:
        """Configuration from the result of `as_dict`; other keys are ignored."""
        return cls(row["model"], tuple(row["size"]), Recipe(**row["settings"]), row["dtype"], row["recompute"])


def configuration(
    model: str,
    size: int | tuple[int, int],
    batch: int,
    trains: str,
    precision: str,
    optimizer: str,
    recompute: str | int = "none",
    *,
    cached: bool = True,
    **settings,
) -> Configuration:
    """Make a `Configuration` from words.

    - `trains`: `whole`, `lora`, or `lora+text` with adapters in the text encoders too
    - `precision`: `fp32`; `bf16` or `fp16`, mixed; `full bf16`, mixed with weights in bf16; `bf16 weights`, without mixed precision
    - `optimizer`: a name of the recipe's, or `fused` for Adafactor in a fused backward pass
    - `cached`: whether latents and, unless text encoders train, captions are cached, so that the frozen parts are off the card
    """
    settings |= {"cache_latents": True, "cache_text_encoder_outputs": trains != "lora+text"} if cached else {}
    mixed = {"full bf16": "bf16", "bf16": "bf16", "fp16": "fp16"}.get(precision, "no")
    dtype = "bf16" if precision in ("full bf16", "bf16 weights") else "fp32"
    if trains == "whole":
        settings |= {"full_bf16": True} if dtype == "bf16" else {}
    else:
        settings |= {"network_module": "networks.lora", "network_dim": 16, "network_alpha": 16.0}
        settings |= {"network_train_unet_only": True} if trains == "lora" else {}
        dtype = mixed if mixed != "no" else dtype
    if optimizer not in ("Adafactor", "fused"):
        settings |= {"optimizer_type": optimizer, "optimizer_args": ()}
    settings |= {"train_batch_size": batch, "mixed_precision": mixed, "fused_backward_pass": optimizer == "fused"}
    return Configuration(model, size if isinstance(size, tuple) else (size, size), Recipe(**settings), dtype, recompute)


CONFIGURATIONS = tuple(
    configuration(*row[:7], **(row[7] if len(row) > 7 else {}))  # pyright: ignore[reportArgumentType]  # rows of two lengths
    for row in (
        ("sdxl", 1024, 1, "lora", "bf16", "AdamW", "none"),
        ("sd15", 512, 1, "lora", "fp16", "AdamW", "none"),
        ("sdxl", 1024, 1, "whole", "full bf16", "fused", "full"),
        ("sd15", 512, 4, "whole", "fp32", "Adafactor", "CHEAP"),
        ("sd15", 512, 1, "whole", "bf16", "AdamW", "none", dict(cached=False)),
        ("sdxl", 1024, 1, "lora", "fp16", "AdamW", "full"),
        ("sdxl", 1024, 1, "whole", "bf16 weights", "fused", 6 * GIB),
        ("sd15", 512, 4, "whole", "fp32", "AdamW", "none"),
        ("sd15", 512, 4, "whole", "bf16 weights", "fused", 3 * GIB),
        ("sd15", 768, 2, "lora", "fp16", "AdamW", "full", dict(cached=False)),
        ("sdxl", 1024, 1, "whole", "bf16", "Adafactor", "full"),
        ("sd15", 512, 1, "whole", "fp16", "Adafactor", "none"),
        ("sdxl", 1024, 1, "lora", "bf16", "AdamW", "full"),
        ("sd15", 512, 1, "whole", "fp32", "fused", "full"),
        ("sdxl", 1024, 2, "lora", "bf16", "AdamW", "CHEAP"),
        ("sd15", 512, 2, "lora+text", "fp16", "AdamW", "none", dict(cached=False)),
        ("sdxl", 1024, 1, "whole", "fp32", "AdamW", "none"),
        ("sd15", 512, 1, "whole", "full bf16", "fused", "full"),
        ("sd15", 512, 2, "whole", "fp32", "AdamW", "full", dict(gradient_accumulation_steps=2, max_grad_norm=1.0)),
        ("sdxl", 1024, 1, "lora", "fp16", "AdamW", "CHEAP"),
        ("sdxl", 768, 4, "whole", "bf16", "Adafactor", "CHEAP"),
        ("sd15", 1024, 1, "whole", "bf16", "Adafactor", "none"),
        ("sd15", 512, 4, "lora", "fp32", "AdamW", "full"),
        ("sdxl", 1024, 1, "lora+text", "bf16", "AdamW", "full", dict(cached=False)),
        ("sdxl", 1024, 1, "whole", "fp32", "fused", "full"),
        ("sd15", (768, 512), 2, "whole", "fp16", "AdamW", "full"),
        ("sdxl", 1024, 2, "whole", "bf16", "Adafactor", "full", dict(gradient_accumulation_steps=2)),
        ("sd15", 768, 4, "whole", "full bf16", "Adafactor", "CHEAP"),
        ("sdxl", 1024, 4, "whole", "full bf16", "fused", "full"),
        ("sd15", 512, 2, "whole", "fp32", "AdamW", "CHEAP", dict(cached=False)),
        ("sd15", 512, 4, "lora", "bf16", "Adafactor", "none"),
        ("sdxl", 1024, 1, "whole", "full bf16", "fused", "none"),
        ("sd15", 512, 3, "whole", "bf16", "AdamW", "full"),
        ("sdxl", 768, 1, "whole", "fp16", "Adafactor", "full"),
        ("sd15", 512, 4, "lora", "fp16", "AdamW", "CHEAP"),
        ("sdxl", 1024, 1, "lora", "fp32", "AdamW", "full"),
        ("sd15", 1024, 4, "whole", "bf16", "fused", "full"),
        ("sdxl", 512, 4, "lora", "bf16", "Adafactor", "none"),
        ("sd15", 512, 4, "whole", "bf16 weights", "fused", 2 * GIB),
        ("sd15", 512, 1, "whole", "fp32", "Adafactor", "none"),
        ("sdxl", 1024, 4, "lora", "bf16", "AdamW", "full"),
        ("sd15", 1024, 1, "lora", "bf16", "AdamW", "none", dict(cached=False)),
        ("sdxl", 1024, 2, "whole", "bf16 weights", "fused", 8 * GIB),
        ("sd15", 768, 1, "lora", "fp16", "Adafactor", "none"),
    )
)
"""Configurations to record on a card, the most telling first, so that a recording cut short has some of everything."""
