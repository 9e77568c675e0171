"""`prepare`: what comes before the first step of a run, and before a plan of it.

It refuses recipes that cannot run, chooses the parameters to train (the whole denoiser, or adapters beside it and the text encoders), makes
the optimizer and decides what is recomputed. `train`, `plan` and jobs begin here, so they refuse the same things in the same words.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch

from . import checkpointing as recomputing
from . import fused, lora, losses, optim
from .datasets import Batch, cache
from .models import family_of
from .sd_scripts import FIRST_RATE_ALONE
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
    fused_groups: tuple[int, ...]
    """Number of parameters of each group that is stepped during backward; empty where each parameter is stepped alone."""
    optimizer_checks_gradients: bool
    """Whether the optimizer of a fused backward checks the gradients itself."""
    resident: tuple[str, ...]
    """Names of the parts that stay on the GPU."""
    encoder_checkpointing: bool
    """Whether the layers of trained text encoders are recomputed."""
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
    any_precision: bool = False,
) -> Prepared:
    """Check the recipe, make `sd` ready to be trained, in place (see `make_trainable`), and make its optimizer.

    `size`: (width, height) of the largest pictures, in pixels.
    `pictures`: how many are in one forward pass. Default: the recipe's `train_batch_size`.
    `planned`: nothing will be computed, so an optimizer whose package is missing may have a stand-in.
    `card`: the GPU that is planned for.
    `chosen`: what `make_trainable` returned earlier.
    `any_precision`: do not refuse weights too coarse to train, as another trainer would not.
    Raises `ValueError` like `check` and like `optim.optimizer`, which may also raise `ImportError`.
    """
    check(sd, recipe, size=size, processes=processes, card=card)
    if chosen is None:
        chosen = make_trainable(sd, recipe)
    made = groups(sd, recipe, chosen)
    if recipe.fused_optimizer_groups:
        made = fused.divided(made, recipe.fused_optimizer_groups)
    optimizer = optim.optimizer(recipe, made, planned=planned)
    if not any_precision:
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
        fused=recipe.steps_in_backward,
        fused_groups=tuple(len(group["params"]) for group in made) if recipe.fused_optimizer_groups else (),
        optimizer_checks_gradients=recipe.steps_in_backward and getattr(optimizer, "checks_gradients", False),
        resident=resident(sd, recipe),
        encoder_checkpointing=recipe.gradient_checkpointing and bool(sd.encoders_in_training),
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
    in_backward = [partial(fused.check, processes=processes)] if recipe.steps_in_backward else []
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
    if recipe.caches_texts and trains_encoders(sd, recipe):
        alone = "leave train_text_encoder out" if recipe.trains_text_encoders else "set network_train_unet_only"
        raise ValueError(
            "the outputs of text encoders that are trained change with every step and cannot be cached: "
            f"{alone}, or leave cache_text_encoder_outputs out"
        )
    if not recipe.wants_lora:
        _check_parts(sd, recipe)
    for side in size or ():
        if side % sd.multiple:
            raise ValueError(f"resolution={side}: this model halves its latents down to whole numbers only at multiples of {sd.multiple}")
    lacks = None if card is None or card.has_bf16 else card.name
    if sd.device.type == "cuda" and torch.cuda.get_device_capability(sd.device) < (8, 0):
        lacks = torch.cuda.get_device_name(sd.device)
    if lacks and (recipe.mixed_precision == "bf16" or recipe.full_bf16 or sd.dtype == torch.bfloat16):
        raise ValueError(f'{lacks} has no bf16 of its own: use mixed_precision="fp16" and weights in fp32')


def _check_parts(sd: Model, recipe: Recipe) -> None:
    """Raise `ValueError` for rates of parts that this model does not have."""
    several = len(sd.encoders) > 1
    if several and recipe.learning_rate_te is not None:
        raise ValueError("learning_rate_te: this model has two text encoders: set learning_rate_te1 and learning_rate_te2 instead")
    if not several and (recipe.learning_rate_te1, recipe.learning_rate_te2) != (None, None):
        raise ValueError("learning_rate_te1 and learning_rate_te2 are for SDXL: this model has one text encoder, set learning_rate_te")
    if not several and recipe.block_lr:
        raise ValueError("block_lr is for SDXL's U-Net, which has other blocks than this model's: leave it out")


def trains_encoders(sd: Model, recipe: Recipe) -> bool:
    """Whether the recipe trains text encoders of this model, whole or by adapters, which may be there already."""
    if lora.has_adapters(sd):
        return any(lora.is_added(encoder) for encoder in sd.encoders_in_training.values())
    return recipe.wants_lora_in_text_encoders or recipe.trains_text_encoders


def make_trainable(sd: Model, recipe: Recipe) -> dict[str, Parameter]:
    """Make `sd` ready to be trained, in place, and return its parameters to train, by names such as `unet.conv_in.weight`.

    Without adapters the whole denoiser is trained, and with `train_text_encoder` the text encoders, but for layers that no caption is read
    from. `network_module` or `network_dim` add adapters where the model has none; to the text encoders too, as in sd-scripts, unless
    `network_train_unet_only` is set. A part whose rate is 0 is not trained (see `rates`). `full_bf16` turns all weights but adapters into
    bf16, `fp8_base` rounds those beside adapters to 8 bits. `v_parameterization` and `zero_terminal_snr` change `sd.noise_scheduler`, as
    the model is another one from then on.
    Raises `ValueError` like `check`, and where nothing is left to train.
    """
    check(sd, recipe)
    sd.noise_scheduler = family_of(sd).noise(sd, recipe)
    if recipe.full_bf16:
        for part in sd.parts.values():
            for name, parameter in part.named_parameters():
                if not lora.is_of_adapter(name):
                    parameter.data = parameter.data.bfloat16()
    for encoder in sd.encoders.values():
        if not lora.is_added(encoder):
            encoder.requires_grad_(False)
    if lora.asked(recipe) and not lora.has_adapters(sd):
        # adapters begin at random: the recipe's seed says how, and the caller's own generator does not notice
        with torch.random.fork_rng(devices=[]) if recipe.seed is not None else nullcontext():
            if recipe.seed is not None:
                torch.default_generator.manual_seed(recipe.seed)  # torch.manual_seed would set those of all GPUs, too
            lora.start(sd, recipe)
    elif not _trains_adapters(sd, recipe):
        _train_whole(sd, recipe)
    for part, rate in rates(sd, recipe).items():
        if rate == 0:
            getattr(sd, part).requires_grad_(False)
    if rounds_to_8_bits(recipe):
        for part in (sd.denoiser, *(() if recipe.fp8_base_unet else sd.encoders.values())):
            for name, parameter in part.named_parameters():
                if not parameter.requires_grad and not lora.is_of_adapter(name):
                    parameter.data = parameter.data.to(torch.float8_e4m3fn).to(parameter.dtype)
    chosen = {f"{part}.{name}": p for part, module in sd.learners.items() for name, p in module.named_parameters() if p.requires_grad}
    if not chosen:
        raise ValueError("nothing is left to train, as parts whose rate is 0 are left out: set a learning_rate above 0")
    return chosen


def _train_whole(sd: Model, recipe: Recipe) -> None:
    """Let all weights learn: those of the denoiser, and of the text encoders where the recipe trains them."""
    sd.denoiser.requires_grad_(True)
    if recipe.block_rates:
        for name, parameter in sd.denoiser.named_parameters():
            parameter.requires_grad_(recipe.block_rates[_block(sd, name)] > 0)
    if recipe.trains_text_encoders:
        for encoder in sd.encoders.values():
            encoder.requires_grad_(True)
        family = family_of(sd)
        for module in family.unread(sd, family.text_encoding(sd, recipe)):
            module.requires_grad_(False)


def rates(sd: Model, recipe: Recipe) -> dict[str, float]:
    """The learning rate of the denoiser and of each text encoder, by name. 0 for those that sd-scripts would leave out for their rate."""
    denoiser, *encoders = family_of(sd).denoiser, *sd.encoders
    if _trains_adapters(sd, recipe):
        own = [recipe.unet_lr] + [recipe.text_encoder_lr[0] if recipe.text_encoder_lr else None] * len(encoders)
        if recipe.network_train_text_encoder_only:
            own[0] = 0.0
    else:
        several = recipe.learning_rate_te1, recipe.learning_rate_te2
        own = [None, *(several if len(encoders) > 1 else [recipe.learning_rate_te])]
        if recipe.block_rates and recipe.learning_rate:  # without it the U-Net is left out
            own[0] = max(recipe.block_rates)
    return {part: recipe.learning_rate if rate is None else rate for part, rate in zip((denoiser, *encoders), own, strict=True)}


def rounds_to_8_bits(recipe: Recipe) -> bool:
    """Whether the frozen weights beside adapters are rounded to float8_e4m3fn."""
    return recipe.wants_lora and (recipe.fp8_base or recipe.fp8_base_unet)


def groups(sd: Model, recipe: Recipe, chosen: dict[str, Parameter]) -> list[dict]:
    """Parameter groups for the optimizer: one, or with rates of their own one for each part, and with `block_lr` for each block.

    `network_args` may give more rates to the adapters of a part; see `lora.groups`. As in sd-scripts, an Adafactor that chooses its own
    rate has no others, and some optimizers have one for all (`FIRST_RATE_ALONE`).
    """
    own = (recipe.unet_lr, *recipe.text_encoder_lr, recipe.learning_rate_te, recipe.learning_rate_te1, recipe.learning_rate_te2)
    if not lora.has_rates(recipe) and all(rate is None for rate in (*own, recipe.block_lr)):
        return [{"params": list(chosen.values())}]
    parts: dict[str, dict[str, Parameter]] = {}
    for name, parameter in chosen.items():
        parts.setdefault(name.partition(".")[0], {})[name] = parameter
    made, of_part = {}, lora.groups if _trains_adapters(sd, recipe) else _whole_groups
    for part, rate in rates(sd, recipe).items():
        made[part] = of_part(sd, recipe, part, parts[part], rate) if part in parts else []
    flat = [group for some in made.values() for group in some]
    if optim.has_relative_step(recipe):
        return [{"params": group["params"]} for group in flat]
    if recipe.optimizer_type in FIRST_RATE_ALONE:
        denoiser = made.pop(family_of(sd).denoiser)
        encoders = [group for some in made.values() for group in some] if _trains_adapters(sd, recipe) else []  # there they come first
        flat = [group | {"lr": [*encoders, *denoiser, *flat][0]["lr"]} for group in flat]
    return flat


def _trains_adapters(sd: Model, recipe: Recipe) -> bool:
    return recipe.wants_lora or lora.has_adapters(sd)


def _whole_groups(sd: Model, recipe: Recipe, part: str, parameters: dict[str, Parameter], lr: float) -> list[dict]:
    """One group of a part that is trained whole, or one for each block."""
    if part != family_of(sd).denoiser or not recipe.block_rates:
        return [{"params": list(parameters.values()), "lr": lr}]
    blocks: dict[int, list[Parameter]] = {}
    for name, parameter in parameters.items():
        blocks.setdefault(_block(sd, name.removeprefix(f"{part}.")), []).append(parameter)
    return [{"params": blocks[block], "lr": recipe.block_rates[block]} for block in sorted(blocks)]


def _block(sd: Model, name: str) -> int:
    """Place in `block_lr` of the block that a parameter of SDXL's U-Net belongs to."""
    kind, number, *_ = family_of(sd).original_name(sd, name).split(".")
    first = {"time_embed": 0, "label_emb": 0, "input_blocks": 1, "middle_block": 10, "output_blocks": 13, "out": 22}[kind]
    return first + int(number) if kind.endswith(("blocks", "block")) else first


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


def recomputed_encoders(sd: Model, recipe: Recipe) -> ExitStack:
    """A context in which trained text encoders recompute their layers, if the recipe has `gradient_checkpointing`."""
    applied = ExitStack()
    for encoder in sd.encoders_in_training.values() if recipe.gradient_checkpointing else ():
        applied.enter_context(recomputing.Applied(encoder, recomputing.encoder_layers(encoder)))
    return applied


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
