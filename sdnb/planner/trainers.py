"""Other trainers whose runs `plan` predicts: what each does with the settings, and what it keeps on the card.

sd-scripts is described in `sd_scripts_step`. The example scripts of diffusers (commit 58eb52c) train the same U-Net as we do, recompute the
same blocks and step torch's or bitsandbytes' optimizers. What differs is what they hold, and where adapters go:

                       train_text_to_image, train_dreambooth      the same with _lora
    U-Net              fp32                                       the mixed precision
    adapters                                                      beside the attention's four projections alone; fp32, but for bf16
    frozen text encoders and the VAE: the mixed precision, on the card unless what they return is cached

Lines: train_dreambooth.py 1158, 1161 (VAE, text encoder), 1040 (optimizers), 998 (xformers); train_text_to_image_lora.py 540 (U-Net),
536 (where adapters go), 546 (peft gives them the U-Net's precision, and only for fp16 they are cast), 866 (each batch is encoded anew).
SDXL's scripts keep the VAE in fp32, which `no_half_vae` says here. `benchmarks.record_diffusers` runs them, and the tests hold plans to
that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch

from .. import checkpointing, lora
from ..models import architectures, skeletons
from ..sd_scripts import flags
from ..system import files
from . import sd_scripts_step

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from ..models import Model
    from ..recipe import Recipe
    from .report import MemoryPlan

PLACES = {"pretrained_model_name_or_path": "MODEL", "train_data_dir": "PICTURES", "output_dir": "RESULT"}
"""Settings that the reader of a command fills in."""
WIDTH = 100
"""Columns that a line of a command fills."""
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTION = ("mem_eff_attn", "xformers", "sdpa")
"""Flags for attention. The first one given counts, as in sd-scripts (library/train_util.py 3362)."""


class SdScripts:
    """kohya-ss/sd-scripts."""

    name = "sd-scripts"
    pictures = "PICTURES holds folders such as 10_name"
    kernels: ClassVar[dict[str, str]] = {"sdpa": "auto", "xformers": "efficient", "mem_eff_attn": "math", "": "math"}
    """Kernel of torch's attention by the flag that counts."""

    def script(self, recipe: Recipe, family: str) -> str:
        """Name of the script that trains such a recipe."""
        return sd_scripts_step.script_for(recipe, family)

    def adopt(self, recipe: Recipe, family: str) -> tuple[Recipe, tuple[str, ...]]:
        """The recipe without the settings that the scripts do not act on, and what was left out, in sentences."""
        return sd_scripts_step.adopt(recipe, family)

    def asked(self, recipe: Recipe, family: str, prediction: str = "") -> Recipe:
        """A recipe of ours as the scripts would be asked for it: with torch's attention, and told of the model as by `told`."""
        return self.told(replace(recipe, others={"sdpa": True}), family, prediction)

    def told(self, recipe: Recipe, family: str, prediction: str) -> Recipe:
        """The recipe with what the scripts do not read from a model's files: its kind, and what it predicts."""
        others = dict(recipe.extras) | ({"v2": True} if family in sd_scripts_step.V2 else {})
        learns_v = recipe.v_parameterization or prediction == "v_prediction"
        return replace(recipe, v_parameterization=learns_v, others=others)  # Recipe.replace would take those for all settings

    def command(self, recipe: Recipe, script: str, size: tuple[int, int]) -> list[str]:
        """Words of the command that trains the recipe. The scripts do not start without a resolution."""
        resolution = size[0] if size[0] == size[1] else size
        if script == "train_db.py" and recipe.optimizer_type == "AdamW8bit":  # by this name it is made twice, from one iterator
            recipe = recipe.replace(optimizer_type="bitsandbytes.optim.AdamW8bit")
        return _words(recipe.replace(**PLACES, resolution=resolution).to_command(script))

    def adapters_in_fp32(self, recipe: Recipe) -> bool:
        """Whether the adapters' weights are in fp32; else they have the mixed precision."""
        return not recipe.full_bf16

    def add_adapters(self, sd: Model, recipe: Recipe) -> None:
        """Put adapters where other layers than ours get them: nowhere, as ours are sd-scripts'."""

    def optimizer(self, recipe: Recipe, groups: Iterable[dict]) -> Optimizer:
        """The trainer's optimizer, over groups of parameters."""
        return sd_scripts_step.optimizer(recipe, groups)

    def least_bytes(self, recipe: Recipe, parameters: Iterable[Parameter], state_bytes: int) -> int:
        """Least bytes of gradients and the optimizer's state together; `state_bytes`: those of our optimizer of this name."""
        return sd_scripts_step.least_bytes(recipe, parameters, state_bytes)

    def step(self, sd: Model, recipe: Recipe, recomputed: checkpointing.RecomputePlan) -> AbstractContextManager:
        """Context in which the denoiser computes as the trainer's own."""
        inputs_learn = recipe.wants_lora and not recipe.network_train_text_encoder_only
        return sd_scripts_step.Dressed(
            sd.denoiser, sd.family, attention=flag(recipe), recompute=recipe.gradient_checkpointing, inputs_learn=inputs_learn
        )


class Diffusers:
    """The example scripts of huggingface/diffusers."""

    name = "diffusers"
    pictures = "PICTURES holds pictures, and metadata.jsonl with a file_name and a text for each"
    kernels: ClassVar[dict[str, str]] = {"sdpa": "auto", "xformers": "efficient", "mem_eff_attn": "auto", "": "auto"}
    endings: ClassVar[dict[str, str]] = {"sdxl": "_sdxl"}
    """What the names of a family's own scripts end with."""

    def script(self, recipe: Recipe, family: str) -> str:
        """As `SdScripts.script`."""
        return f"train_text_to_image{'_lora' * recipe.wants_lora}{self.endings.get(family, '')}.py"

    def adopt(self, recipe: Recipe, family: str) -> tuple[Recipe, tuple[str, ...]]:
        """As `SdScripts.adopt`."""
        absent = {"fused_backward_pass": False, "fused_optimizer_groups": None, "full_bf16": False}
        ignored = {name: without for name, without in absent.items() if getattr(recipe, name)}
        lacking = [*ignored] + ([recipe.optimizer_type] if recipe.optimizer_type not in OPTIMIZERS else [])
        return recipe.replace(**ignored), tuple(f"diffusers' example scripts have no {name}" for name in lacking)

    def asked(self, recipe: Recipe, family: str, prediction: str = "") -> Recipe:
        """As `SdScripts.asked`: cached only where the script does so by itself, and clipped, as a norm of 0 would be taken at its word."""
        cached = self.script(recipe, family) == "train_text_to_image_sdxl.py"
        return recipe.replace(
            cache_latents=cached, cache_text_encoder_outputs=cached, max_grad_norm=1.0, no_half_vae=family in self.endings
        )

    def told(self, recipe: Recipe, family: str, prediction: str) -> Recipe:
        """As `SdScripts.told`: they read everything."""
        return recipe

    def command(self, recipe: Recipe, script: str, size: tuple[int, int]) -> list[str]:
        """As `SdScripts.command`. Raises `ValueError` for what the scripts cannot be asked for."""
        if size[0] != size[1] or recipe.optimizer_type not in OPTIMIZERS or recipe.max_grad_norm <= 0:
            raise ValueError(
                f"diffusers' {script} trains squares with {' or '.join(OPTIMIZERS)}, and clips to any max_grad_norm, 0 too: "
                "plan it with such settings"
            )
        if recipe.wants_lora and recipe.network_alpha != recipe.network_dim:
            raise ValueError(f"diffusers' {script} has no alpha other than the rank: set network_alpha={recipe.network_dim}")
        given = PLACES | {
            "resolution": size[0],
            "train_batch_size": recipe.train_batch_size,
            "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
            "gradient_checkpointing": recipe.gradient_checkpointing,
            "mixed_precision": recipe.mixed_precision,
            "use_8bit_adam": recipe.optimizer_type == "AdamW8bit",
            "enable_xformers_memory_efficient_attention": flag(recipe) == "xformers",
            "rank": recipe.network_dim if recipe.wants_lora else None,
            "learning_rate": recipe.learning_rate,
            "lr_scheduler": recipe.lr_scheduler,
            "lr_warmup_steps": recipe.lr_warmup_steps,
            "max_grad_norm": recipe.max_grad_norm,
            "seed": recipe.seed,
        }  # fmt: skip
        return [f"accelerate launch {script}", *flags(given)]

    def adapters_in_fp32(self, recipe: Recipe) -> bool:
        """As `SdScripts.adapters_in_fp32`."""
        return recipe.mixed_precision != "bf16"

    def add_adapters(self, sd: Model, recipe: Recipe) -> None:
        """Put adapters beside the attention's projections."""
        if recipe.network_dim and recipe.network_module in (None, "networks.lora") and not lora.has_adapters(sd):
            texts = recipe.wants_lora_in_text_encoders
            lora.add(sd, rank=recipe.network_dim, alpha=recipe.network_alpha, targets="attention", text_encoder=texts)

    def optimizer(self, recipe: Recipe, groups: Iterable[dict]) -> Optimizer:
        """As `SdScripts.optimizer`; there is no Adafactor among theirs, so transformers' is taken."""
        return sd_scripts_step.optimizer(recipe, groups)

    def least_bytes(self, recipe: Recipe, parameters: Iterable[Parameter], state_bytes: int) -> int:
        """As `SdScripts.least_bytes`."""
        return sd_scripts_step.least_bytes(recipe, parameters, state_bytes)

    def step(self, sd: Model, recipe: Recipe, recomputed: checkpointing.RecomputePlan) -> AbstractContextManager:
        """As `SdScripts.step`."""
        return checkpointing.Applied(sd.denoiser, recomputed)


OPTIMIZERS = ("AdamW", "AdamW8bit")
"""Optimizers of diffusers' scripts."""
Trainer = SdScripts | Diffusers
OTHERS: dict[str, Trainer] = {trainer.name: trainer for trainer in (SdScripts(), Diffusers())}
NAMES = ("sdnb", *OTHERS)


def find(name: str, *, checkpointing: object, dtype: str | None) -> Trainer | None:
    """The trainer of this name, None for our own. Raises `ValueError` for an unknown one, and for choices that it does not have."""
    if name not in NAMES:
        raise ValueError(f"trainer={name!r}: there are {', '.join(NAMES)}")
    if name != "sdnb" and checkpointing is not None:
        raise ValueError(f"{name} recomputes by gradient_checkpointing=True alone: leave checkpointing= out, or plan with trainer='sdnb'")
    if name != "sdnb" and dtype is not None:
        raise ValueError(f"{name} holds its weights by mixed_precision and full_bf16: leave dtype= out, or plan with trainer='sdnb'")
    return OTHERS.get(name)


def train_command(plan: MemoryPlan) -> str:
    """Command that trains a plan's recipe by its trainer, on lines of up to `WIDTH` columns; the reader fills in the words in capitals.

    That of sd-scripts has the flag for attention that was planned for, and none of the settings that only `sdnb train` acts on.
    Raises `ValueError` for a recipe that diffusers' scripts cannot be asked for.
    """
    if other := OTHERS.get(plan.trainer):
        recipe = plan.recipe
        if plan.model in architectures():
            facts = skeletons.configurations(plan.model)
            recipe = other.told(recipe, facts["family"], facts["prediction_type"])
        return _wrapped(other.command(recipe, plan.script, plan.size))
    model = plan.model if plan.model in architectures() else "MODEL"  # a plan knows only the last part of a path
    words = _words(plan.recipe.replace(**PLACES | {"pretrained_model_name_or_path": model}).to_command())
    return _wrapped(["sdnb train --", *words[1:]])


def _words(command: str) -> list[str]:
    """A command of sd-scripts as its beginning and its flags, each with its values."""
    return re.split(r" \\\n +| (?=--)", command)


def _wrapped(words: list[str]) -> str:
    """A command in lines that go on to the next, first the flags that are to be filled in. On Windows it is one line."""
    places = [word for name in PLACES for word in words if word.startswith(f"--{name}=")]
    lines = words[:1]
    for word in [*places, *(word for word in words[1:] if word not in places)]:
        if files.WINDOWS or len(f"{lines[-1]} {word}") <= WIDTH - 2:
            lines[-1] += f" {word}"
        else:
            lines.append(f"  {word}")
    return " \\\n".join(lines)


def flag(recipe: Recipe) -> str:
    """Flag of `ATTENTION` that counts in this recipe, or an empty text."""
    given = dict(recipe.extras)
    return next((name for name in ATTENTION if given.get(name)), "")


def cast(sd: Model, recipe: Recipe, trainer: Trainer) -> None:
    """Cast the parts of `sd`, on the meta device, to the precision in which the trainer holds them; see the tables."""
    low = DTYPES[recipe.mixed_precision]
    for part, module in sd.parts.items():
        is_whole = part in sd.learners and not recipe.wants_lora
        dtype = torch.float32 if (is_whole and not recipe.full_bf16) or (part == "vae" and recipe.no_half_vae) else low
        for name, tensor in module.named_parameters():
            is_fp32 = ".lora_" in name and trainer.adapters_in_fp32(recipe)
            tensor.data = tensor.data.to(torch.float32 if is_fp32 else dtype)
