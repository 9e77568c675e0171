"""`plan`: what a training run will hold in memory, found by running its training step on the meta device.

There is no formula for the model in here. The step is `sdnb.training.training_step` itself, on tensors that have shapes and no
contents; every storage is counted when it comes and when it goes. For CUDA the requests are then played to a model of its caching
allocator. Figures for CUDA are predictions: they have not been compared with a real card yet.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch

from .. import checkpointing, lora, optim, prepare
from ..checkpointing import on_meta
from ..datasets import Batch
from ..models import Model, skeletons
from ..recipe import Recipe
from ..system import cards
from . import allocator, optimizer_tape, tape
from .report import MemoryPlan

if TYPE_CHECKING:
    from torch.nn import Parameter

    from ..system import Card

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def plan(
    model: str | Path | Model,
    recipe: Recipe | None = None,
    *,
    resolution: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    gpu: str | int | Card | None = None,
    checkpointing=None,
    dtype: str | None = None,
    device: str = "cuda",
    attention: str = "auto",
    processes: int = 1,
) -> MemoryPlan:
    """The memory that training `model` by `recipe` needs. Loads no weights and uses no GPU.

    `model`: a name of `models.architectures()`, a folder in diffusers' format, a safetensors file, a repository `owner/name` in the
        local cache of the Hub, or a loaded model, whose weights are left alone.
    `resolution`: a side in pixels or (width, height); the recipe's unless given. `batch_size`: the recipe's `train_batch_size`.
    `gpu`: a card's name, or its usable bytes.
    `checkpointing`: any choice of `checkpointing.apply`.
    `dtype`: precision of the weights, `fp32`, `bf16` or `fp16`. Default: bf16 with `full_bf16`, `mixed_precision` for the frozen
        weights of a LoRA, else fp32.
    `device`: `cuda`, or `cpu` to predict for the kernels of a CPU.
    `attention`: `flash`, `efficient` or `math`; `auto` is what CUDA chooses on that card.
    `processes`: above 1 adds the buffers in which gradients are averaged.

    It trains what `prepare.make_trainable` chooses: the whole denoiser, or with `network_dim` a LoRA, also beside the text encoders unless
    `network_train_unet_only` is set. Parts leave the card with `cache_latents` and `cache_text_encoder_outputs`.

    Raises `ValueError` for an unknown model or card, sizes the model cannot halve, and whatever `train` refuses, with its message.
    """
    recipe = recipe or Recipe()
    if batch_size is not None:
        recipe = recipe.replace(train_batch_size=batch_size)
    if device not in ("cuda", "cpu"):
        raise ValueError(f'device={device!r}: there are "cuda" and "cpu"')
    if attention not in ATTENTION:
        raise ValueError(f"attention={attention!r}: there are {', '.join(ATTENTION)}")
    card = None if gpu is None else cards.card(gpu)
    if attention == "auto" and card is not None and card.capability < (8, 0):
        attention = "efficient"  # torch has no flash attention for it
    name, made = _model(model, recipe, dtype)
    sd = made.sd
    size = _size_of(resolution if resolution is not None else recipe.resolution, sd)
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes={processes!r}: it must be 1 or more")
    ready = prepare.prepare(
        sd, recipe, size=size, checkpointing=checkpointing, processes=processes, planned=True, card=card, chosen=made.chosen
    )
    kernels = _Kernels(device, attention)
    if (ready.key, kernels) not in made.steps:
        made.steps[ready.key, kernels] = _step(ready, kernels)
    step, how = made.steps[ready.key, kernels]
    settings = _Optimizer.of(ready, device)
    if settings not in made.optimizers:
        made.optimizers[settings] = _optimizer_steps(ready.optimizer, recipe, device)
    timeline = tape.join(step, made.optimizers[settings])
    if processes > 1:
        bucket = sum(p.numel() * p.element_size() for p in made.chosen.values())
        timeline = tape.with_block(timeline, bucket, "gradients", "gradient reduction")
    workspace = 0
    if device == "cuda":
        workspace = allocator.WORKSPACES["Hopper" if card is not None and card.capability >= (9, 0) else "other"]
    return MemoryPlan(
        model=name, recipe=recipe, size=size, device=device, dtype=_short(sd.denoiser),
        trained=sum(p.numel() for p in made.chosen.values()),
        flops=step.flops * recipe.gradient_accumulation_steps // ready.key.rounds,
        gpu=card, checkpointing=how, note=optim.missing(ready.optimizer), _timeline=timeline, _workspace=workspace,
    )  # fmt: skip


def least_bytes(model: str | Path | Model, recipe: Recipe, *, dtype: str | None = None) -> int:
    """What `plan` would find at the very least: the weights that stay on the card, and the optimizer's state where its size is known.

    From numbers of parameters alone, in no time. Raises like `plan` for the model and for what is to be trained.
    """
    _, made = _model(model, recipe, dtype)
    weights = sum(p.numel() * p.element_size() for part in prepare.resident(made.sd, recipe) for p in getattr(made.sd, part).parameters())
    row, state = optim.row(recipe.optimizer_type), 0
    if row is not None and not recipe.optimizer_type.startswith("Paged"):  # those may leave the card
        for p in made.chosen.values():
            share = 1.0 if row.eight_bit else p.element_size() / 4  # of an optimizer in 32 bits, the state has the parameter's precision
            state += int(share * (row.state_bytes(p.numel()) or 0))
    return weights + state


ATTENTION = ("auto", "flash", "efficient", "math")


@dataclass
class _Made:
    """A model without weights, ready to be trained, and its recorded tapes."""

    sd: Model
    chosen: dict[str, Parameter]
    """What is trained, as `prepare.make_trainable` has it."""
    steps: dict = field(default_factory=dict)
    optimizers: dict = field(default_factory=dict)

    @classmethod
    def of(cls, sd: Model, recipe: Recipe, dtype: torch.dtype | None) -> _Made:
        if dtype is not None:
            _in(sd, dtype)
        made = cls(sd, prepare.make_trainable(sd, recipe))
        for part in sd.learners.values():
            part.train()
        return made


@dataclass(frozen=True)
class _Kernels:
    """The kernels that a plan is for."""

    device: str
    attention: str


@dataclass(frozen=True)
class _Optimizer:
    """Everything that the memory of the optimizer's steps depends on."""

    kind: str
    arguments: tuple[str, ...]
    in_backward: bool
    scaled: bool
    """Whether gradients in fp16 are unscaled before."""
    device: str
    groups: tuple[int, ...]
    """The number of parameters of each group; each is stepped on its own."""

    @classmethod
    def of(cls, ready: prepare.Prepared, device: str) -> _Optimizer:
        """The key of a run."""
        recipe, groups = ready.recipe, tuple(len(group["params"]) for group in ready.optimizer.param_groups)
        fused, scaled = recipe.fused_backward_pass, recipe.mixed_precision == "fp16"
        return cls(recipe.optimizer_type, recipe.optimizer_args, fused, scaled, device, groups)


@dataclass(frozen=True)
class _Trained:
    """Everything that `prepare.make_trainable` depends on."""

    dtype: torch.dtype | None
    adapters: lora.Asked | None
    text: bool
    text_alone: bool
    full_bf16: bool

    @classmethod
    def of(cls, recipe: Recipe, dtype: torch.dtype | None) -> _Trained:
        """The key of a recipe and the precision of the weights."""
        text, alone = recipe.wants_lora_in_text_encoders, recipe.wants_lora and recipe.network_train_text_encoder_only
        return cls(dtype, lora.asked(recipe), text, alone, recipe.full_bf16)


_made: dict[tuple, _Made] = {}
_loaded: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""Models made for plans, by the denoiser of the loaded model."""


def _model(model: str | Path | Model, recipe: Recipe, dtype: str | None) -> tuple[str, _Made]:
    """Name of the model in a plan, and the model as `recipe` trains it."""
    kind = _dtype(recipe, dtype, model)
    trained = _Trained.of(recipe, kind)
    if not isinstance(model, str | Path):
        known = _loaded.setdefault(model.denoiser, {})
        key = trained, tuple((p.dtype, p.requires_grad) for part in model.parts.values() for p in part.parameters())
        if key not in known:
            parts = {part: on_meta(module) for part, module in model.parts.items()}
            twin = replace(model, **parts, **dict.fromkeys(model.tokenizers))
            known[key] = _Made.of(twin, recipe, kind)
        return "this model", known[key]
    text = str(model)
    where = Path(text).expanduser()
    key = trained, text, where.stat().st_mtime_ns if where.exists() else 0
    if key not in _made:
        found = _Made.of(skeletons.skeleton(model), recipe, kind)
        while len(_made) >= 8:  # a recorded SDXL is a few tens of megabytes
            _made.pop(next(iter(_made)))
        _made[key] = found
    return (where.name if where.exists() else text), _made[key]


def _in(sd: Model, dtype: torch.dtype) -> None:
    """Turn weights into `dtype`; adapters stay in fp32, as `lora.add` makes them."""
    for part in sd.parts.values():
        for name, tensor in part.named_parameters():
            if ".lora_" not in name:
                tensor.data = tensor.data.to(dtype)


def _dtype(recipe: Recipe, asked: str | None, model) -> torch.dtype | None:
    """Precision of the weights. None: that of the loaded model, or fp32."""
    if asked is not None:
        if asked not in DTYPES:
            raise ValueError(f"dtype={asked!r}: there are {', '.join(DTYPES)}")
        return DTYPES[asked]
    if recipe.full_bf16:
        return torch.bfloat16
    if isinstance(model, Model):
        return None
    return DTYPES[recipe.mixed_precision] if recipe.wants_lora and recipe.mixed_precision != "no" else None


def _short(denoiser) -> str:
    dtype = next(denoiser.parameters()).dtype
    return next((name for name, one in DTYPES.items() if one == dtype), str(dtype))


def _size_of(resolution, sd: Model) -> tuple[int, int]:
    """(width, height) in pixels, which the model must be able to halve."""
    sides = resolution if isinstance(resolution, (tuple, list)) else (resolution or sd.resolution,) * 2
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"resolution={resolution!r}: give a side in pixels, such as 512, or (width, height)")
    return tuple(sides)


example_batch = Batch.example


def unet_inputs(sd: Model, batch: Batch) -> dict:
    """Keyword arguments of the denoiser for a batch that has a condition, as `Batch.inputs`."""
    return batch.inputs(sd)


class _Tokenizer:
    """Stand-in for any tokenizer: token ids of the length asked for, on the meta device."""

    model_max_length, pad_token_id, eos_token_id = 77, 0, 0

    def __call__(self, texts, *, max_length: int, **_) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.empty(len(texts), max_length, dtype=torch.long, device="meta"))


def _step(ready: prepare.Prepared, kernels: _Kernels) -> tuple[tape.Tape, str]:
    sd, recipe, key = ready.sd, ready.recipe, ready.key
    chosen, trains_encoders = ready.recomputed, bool(sd.encoders_in_training)
    parts = {part: getattr(sd, part) for part in key.resident}
    batch = Batch.example(sd, key.pictures, key.size, tokens=key.tokens, trains_encoders=trains_encoders)
    if trains_encoders:
        sd = replace(sd, **dict.fromkeys(sd.tokenizers, _Tokenizer()))
    with checkpointing.Applied(sd.denoiser, chosen):
        step = tape.record(
            sd, batch, recipe, parts, list(ready.chosen.values()),
            kernels=kernels.device, guarded=key.guarded, attention=kernels.attention,
        )  # fmt: skip
    named = "nothing" if not chosen else "every block" if key.recompute == "full" else f"by choice ({len(chosen)} blocks)"
    return step, named


def _optimizer_steps(optimizer, recipe: Recipe, device: str) -> list[tape.Steps]:
    if device == "cuda":
        for group in optimizer.param_groups:
            if "foreach" in group and group["foreach"] is None and not group.get("fused"):
                group["foreach"] = True  # what torch takes on CUDA, and not on meta
    try:
        return optimizer_tape.record(optimizer, kernels=device, fused=recipe.fused_backward_pass)
    except (ValueError, RuntimeError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{recipe.optimizer_type} does not run on the meta device ({error}): plan with another optimizer") from error
