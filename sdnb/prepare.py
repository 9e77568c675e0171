"""`prepare`: what comes before the first step of a run, and before a plan of it.

It refuses recipes that cannot run, chooses the parameters to train (the whole denoiser, or adapters beside it and the text encoders), makes
the optimizer and decides what is recomputed. `train`, `plan` and jobs begin here, so they refuse the same things in the same words.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch

from . import checkpointing as recomputing
from . import fused, lora, losses, optim
from .datasets import Batch, cache
from .models import family_of
from .system import compiling, devices

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from .models import Model
    from .recipe import Recipe
    from .system import Card


@dataclass(frozen=True)
class MemoryKey:
    """Everything that a step's memory depends on, as a hashable value: equal keys need equal memory."""

    size: tuple[int, int]
    """(width, height) of the pictures in pixels."""
    pictures: int
    """Number of pictures in one forward pass."""
    rounds: int
    """Forward passes per optimizer step: 1, or 2 if gradients are accumulated."""
    tokens: int
    """Length of a caption, with its begin and end tokens."""
    clip_skip: int | None
    loss: losses.Loss
    mixed_precision: str
    clips: bool
    """Whether gradients are clipped to a norm."""
    fused: bool
    """Whether parameters are stepped during backward."""
    optimizer_checks_gradients: bool
    """Whether the optimizer of a fused backward checks the gradients itself."""
    resident: tuple[str, ...]
    """Names of the parts that stay on the GPU."""
    recompute: object
    """What `checkpointing.apply` is given, as a value that can be compared."""
    encodes: bool = False
    """Whether pictures are encoded for each batch."""
    masked: bool = False
    """Whether the loss has a mask."""


@dataclass(frozen=True)
class Prepared:
    """A run that passed all checks."""

    sd: Model
    recipe: Recipe
    chosen: dict[str, Parameter]
    """The parameters to train, by names such as `unet.conv_in.weight`."""
    optimizer: Optimizer
    key: MemoryKey
    checkpointing: object
    """The choice as the caller gave it."""

    @cached_property
    def recomputed(self) -> recomputing.RecomputePlan:
        """What is recomputed. Raises `ValueError` for an unknown name and for a `Budget` that is too small."""
        if isinstance(self.checkpointing, recomputing.Budget) and self.key.mixed_precision != "no":
            raise ValueError(
                f"a Budget is solved for the precision of the model, and mixed_precision={self.key.mixed_precision!r} computes in "
                "another: give a Keep or a point of the frontier instead"
            )
        example = Batch.example(self.sd, self.key.pictures, self.key.size, tokens=self.key.tokens)
        plan = recomputing.resolve(self.sd.denoiser, _asked(self.recipe, self.checkpointing), example.inputs(self.sd))
        if self.recipe.compiles and any(block.keep or block.skip for block in plan.values()):
            raise ValueError(
                "torch_compile makes one kernel of many operators, of which Keep and Budget could keep none: "
                'recompute "full", "none" or whole blocks by name, or leave torch_compile out'
            )
        return plan


def prepare(
    sd: Model,
    recipe: Recipe,
    *,
    size: tuple[int, int],
    pictures: int | None = None,
    checkpointing=None,
    processes: int = 1,
    planned: bool = False,
    card: Card | None = None,
    chosen: dict[str, Parameter] | None = None,
) -> Prepared:
    """Check the recipe, make `sd` ready to be trained, in place (see `make_trainable`), and make its optimizer.

    `size`: (width, height) of the largest pictures, in pixels.
    `pictures`: how many are in one forward pass. Default: the recipe's `train_batch_size`.
    `planned`: nothing will be computed, so an optimizer whose package is missing may have a stand-in.
    `card`: the GPU that is planned for.
    `chosen`: what `make_trainable` returned earlier.
    Raises `ValueError` like `check` and like `optim.optimizer`, which may also raise `ImportError`.
    """
    check(sd, recipe, size=size, processes=processes, card=card)
    if chosen is None:
        chosen = make_trainable(sd, recipe)
    optimizer = optim.optimizer(recipe, groups(sd, recipe, chosen), planned=planned)
    check_precision(sd, recipe, optimizer)
    if recipe.fused_backward_pass:
        fused.FusedBackward(optimizer)  # refuses what it cannot step
    family = family_of(sd)
    encoding = family.text_encoding(sd, recipe)
    key = MemoryKey(
        size=size,
        pictures=pictures or recipe.train_batch_size,
        rounds=min(recipe.gradient_accumulation_steps, 2),
        tokens=(encoding.length or 75) + 2,
        clip_skip=encoding.clip_skip,
        loss=family.process(sd).loss(recipe),
        mixed_precision=devices.computes_in(recipe.mixed_precision, sd.device),
        clips=recipe.max_grad_norm > 0,
        fused=recipe.fused_backward_pass,
        optimizer_checks_gradients=recipe.fused_backward_pass and getattr(optimizer, "checks_gradients", False),
        resident=resident(sd, recipe),
        recompute=_comparable(_asked(recipe, checkpointing)),
        encodes=recipe.varies and not recipe.caches_latents,
        masked=recipe.alpha_mask or recipe.masked_loss,
    )
    return Prepared(sd, recipe, chosen, optimizer, key, checkpointing)


def refusals(recipe: Recipe, *, processes: int = 1) -> list[str]:
    """Reasons why no model could be trained with this recipe; empty if there are none."""
    wrong = []
    if recipe.compiles:
        try:
            compiling.check(recipe.dynamo_backend)
        except ValueError as error:
            wrong.append(str(error))
    in_backward = [partial(fused.check, processes=processes)] if recipe.fused_backward_pass else []
    for tried in (cache.check, lora.asked, lora.check_files, losses.Noises.of, losses.Loss.of_any, *in_backward):
        try:
            tried(recipe)
        except ValueError as error:
            wrong.append(str(error))
    excluding = ("network_train_unet_only", "network_train_text_encoder_only"), ("scale_v_pred_loss_like_noise_pred", "v_pred_like_loss")
    both = [pair for pair in excluding if all(getattr(recipe, name) for name in pair)]
    if recipe.full_fp16 and recipe.mixed_precision != "fp16":
        wrong.append("full_fp16 needs mixed_precision=fp16, in sd-scripts, too: add it, or leave full_fp16 out")
    if rounds_to_8_bits(recipe) and recipe.mixed_precision == "no":
        wrong.append("fp8_base needs mixed_precision=bf16 or fp16, in sd-scripts, too: add it, or leave fp8_base out")
    return wrong + [f"{one} and {other} exclude each other: leave one of them out" for one, other in both]


def check(sd: Model, recipe: Recipe, *, size: tuple[int, int] | None = None, processes: int = 1, card: Card | None = None) -> None:
    """Raise `ValueError`, with the reason, if this model cannot be trained with this recipe. Nothing is changed."""
    if wrong := refusals(recipe, processes=processes):
        raise ValueError("; ".join(wrong))
    family = family_of(sd)
    diffusion = family.process(replace(sd, noise_scheduler=family.noise(sd, recipe)))
    if recipe.compiles:
        compiling.check(recipe.dynamo_backend, sd.device)
    family.text_encoding(sd, recipe)
    diffusion.loss(recipe)
    diffusion.noises(recipe)
    if recipe.caches_texts and (sd.encoders_in_training or (recipe.wants_lora_in_text_encoders and not lora.is_added(sd.denoiser))):
        raise ValueError(
            "the outputs of text encoders that are trained change with every step and cannot be cached: "
            "set network_train_unet_only, or leave cache_text_encoder_outputs out"
        )
    for side in size or ():
        if side % sd.multiple:
            raise ValueError(f"resolution={side}: this model halves its latents down to whole numbers only at multiples of {sd.multiple}")
    lacks = None if card is None or card.has_bf16 else card.name
    if sd.device.type == "cuda" and torch.cuda.get_device_capability(sd.device) < (8, 0):
        lacks = torch.cuda.get_device_name(sd.device)
    if lacks and (recipe.mixed_precision == "bf16" or recipe.full_bf16 or sd.dtype == torch.bfloat16):
        raise ValueError(f'{lacks} has no bf16 of its own: use mixed_precision="fp16" and weights in fp32')


def make_trainable(sd: Model, recipe: Recipe) -> dict[str, Parameter]:
    """Make `sd` ready to be trained, in place, and return its parameters to train, by names such as `unet.conv_in.weight`.

    Without adapters the whole denoiser is trained. `network_module` or `network_dim` add adapters where the model has none; to the text
    encoders too, as in sd-scripts, unless `network_train_unet_only` is set. `full_bf16` turns all weights but adapters into bf16,
    `fp8_base` rounds those beside adapters to 8 bits.
    `v_parameterization` and `zero_terminal_snr` change `sd.noise_scheduler`, as the model is another one from then on.
    Raises `ValueError` like `check`.
    """
    check(sd, recipe)
    sd.noise_scheduler = family_of(sd).noise(sd, recipe)
    if recipe.full_bf16:
        for part in sd.parts.values():
            for name, parameter in part.named_parameters():
                if ".lora_" not in name:
                    parameter.data = parameter.data.bfloat16()
    if lora.asked(recipe) and not lora.has_adapters(sd):
        # adapters begin at random: the recipe's seed says how, and the caller's own generator does not notice
        with torch.random.fork_rng(devices=[]) if recipe.seed is not None else nullcontext():
            if recipe.seed is not None:
                torch.default_generator.manual_seed(recipe.seed)  # torch.manual_seed would set those of all GPUs, too
            lora.start(sd, recipe)
    elif not lora.is_added(sd.denoiser) and not recipe.wants_lora:
        sd.denoiser.requires_grad_(True)
    if rounds_to_8_bits(recipe):
        for part in (sd.denoiser, *(() if recipe.fp8_base_unet else sd.encoders.values())):
            for name, parameter in part.named_parameters():
                if not parameter.requires_grad and ".lora_" not in name:
                    parameter.data = parameter.data.to(torch.float8_e4m3fn).to(parameter.dtype)
    return {f"{part}.{name}": p for part, module in sd.learners.items() for name, p in module.named_parameters() if p.requires_grad}


def rounds_to_8_bits(recipe: Recipe) -> bool:
    """Whether the frozen weights beside adapters are rounded to float8_e4m3fn."""
    return recipe.wants_lora and (recipe.fp8_base or recipe.fp8_base_unet)


def groups(sd: Model, recipe: Recipe, chosen: dict[str, Parameter]) -> list[dict]:
    """Parameter groups for the optimizer: one, or with `unet_lr` or `text_encoder_lr` one for each part.

    `network_args` may give more rates to the adapters of a part; see `lora.groups`.
    """
    encoders = recipe.text_encoder_lr or (None,)
    has_rates = lora.has_rates(recipe)
    if not has_rates and all(rate is None for rate in (recipe.unet_lr, *encoders)):
        return [{"params": list(chosen.values())}]
    parts: dict[str, dict[str, Parameter]] = {}
    for name, parameter in chosen.items():
        parts.setdefault(name.partition(".")[0], {})[name] = parameter
    rates = {part: encoders[-1] if part.startswith("text_encoder") else recipe.unet_lr for part in parts} | {"text_encoder": encoders[0]}
    if has_rates:
        usual = recipe.learning_rate
        ordered = ((part, some, usual if rates[part] is None else rates[part]) for part, some in parts.items())
        return [group for part, some, rate in ordered for group in lora.groups(sd, recipe, part, some, rate)]
    return [{"params": [*some.values()], **({} if rates[part] is None else {"lr": rates[part]})} for part, some in parts.items()]


def check_precision(sd: Model, recipe: Recipe, optimizer: Optimizer) -> None:
    """Raise `ValueError` for weights too coarse to train. bf16 is fine where Adafactor rounds stochastically.

    With `full_bf16` other optimizers train such weights, as in sd-scripts, and a warning says what is lost.
    """
    learning = (p for part in sd.learners.values() for p in part.parameters() if p.requires_grad)
    dtype = next((p.dtype for p in learning), sd.dtype)  # of a LoRA, the adapters'
    if dtype == torch.float32 or (dtype == torch.bfloat16 and optimizer.defaults.get("stochastic_rounding")):
        return
    if dtype == torch.bfloat16 and recipe.full_bf16:
        warnings.warn(
            f"full_bf16 with {recipe.optimizer_type} rounds each update to the nearest bf16 number, as in sd-scripts. Of AdamW's way, "
            "a small model kept 53% at learning_rate=1e-4, 7% at 1e-5 and 1% at 1e-6. Adafactor rounds stochastically here and loses "
            "nothing; without full_bf16 the weights are in fp32",
            stacklevel=3,
        )
    else:
        raise ValueError(
            f"the weights to train are in {dtype}, too coarse for small updates: load the model with dtype=torch.float32"
            + (", or let Adafactor round them stochastically" if dtype == torch.bfloat16 else "")
        )


def resident(sd: Model, recipe: Recipe) -> tuple[str, ...]:
    """Names of the parts that stay on the GPU. Those whose outputs are cached leave it, unless they are trained."""
    gone = {*({"vae"} if recipe.caches_latents else ()), *(sd.encoders if recipe.caches_texts else ())}
    return tuple(part for part in sd.parts if part not in gone - sd.encoders_in_training.keys())


def _asked(recipe: Recipe, checkpointing):
    """The caller's choice of what to recompute, or else the recipe's."""
    return ("full" if recipe.gradient_checkpointing else "none") if checkpointing is None else checkpointing


def _comparable(choice):
    """A choice of what to recompute, as a value that can be compared."""
    if isinstance(choice, recomputing.Point):
        choice = choice.choice
    if isinstance(choice, Mapping):
        return tuple(choice.items())
    return tuple(choice) if isinstance(choice, Iterable) and not isinstance(choice, str) else choice
