"""`plan`: the memory that a training run will need, predicted by running its training step on the meta device.

No formula for the model is needed. The step is `sdnb.training.training_step` itself, on tensors that have shapes and no contents, and
every storage is counted from when it is made until it is freed. For CUDA the requests then go to a model of its caching allocator.
Figures for CUDA are predictions; an H200 has confirmed them, `data/recorded/gpu-nvidia-h200.json`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch

from .. import checkpointing, lora, optim, prepare
from ..checkpointing import on_meta
from ..datasets import Batch
from ..memory import attention as attentions
from ..models import Model, skeletons
from ..recipe import Recipe
from ..system import cards, devices
from . import allocator, optimizer_tape, phases, tape, trainers
from .report import MemoryPlan

if TYPE_CHECKING:
    from torch.nn import Parameter

    from ..system import Card

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@tape.uncollected()
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
    trainer: str = "sdnb",
) -> MemoryPlan:
    """Predict the memory that training `model` by `recipe` needs. Loads no weights and uses no GPU.

    - `model`: a name of `models.architectures()`, a folder in diffusers' format, a safetensors file, a repository `owner/name` in the
      local cache of the Hub, or a loaded model, whose weights are left alone
    - `resolution`: a side in pixels or (width, height). Default: the recipe's
    - `batch_size`: pictures in one forward pass. Default: the recipe's `train_batch_size`
    - `gpu`: a card's name, or its usable bytes
    - `checkpointing`: any choice of `checkpointing.apply`
    - `dtype`: precision of the weights, `fp32`, `bf16` or `fp16`. Default: bf16 with `full_bf16`, `mixed_precision` for the frozen
      weights of a LoRA, else fp32
    - `device`: `cuda`, or `cpu` to predict for the kernels of a CPU
    - `attention`: `cudnn`, `flash`, `efficient` or `math`; `auto` is what torch chooses on that card, see `memory.attention`
    - `processes`: above 1 adds the buffers in which gradients are averaged
    - `trainer`: `sdnb`; `sd-scripts` or `diffusers` to plan the run of its own scripts with these settings, see `trainers`. Their
      attention is that of `sdpa`, `xformers` or `mem_eff_attn` among the recipe's other settings; without any of them sd-scripts
      computes whole matrices

    The plan trains the parameters of `prepare.make_trainable`: the whole denoiser, or with `network_dim` a LoRA, also beside the text
    encoders unless `network_train_unet_only` is set. Parts leave the card with `cache_latents` and `cache_text_encoder_outputs`.

    Raises `ValueError` for an unknown model or card, sizes the model cannot halve, and every run that `train` refuses, with its message.
    """
    recipe = recipe or Recipe()
    if batch_size is not None:
        recipe = recipe.replace(train_batch_size=batch_size)
    if device not in ("cuda", "cpu"):
        raise ValueError(f'device={device!r}: there are "cuda" and "cpu"')
    recipe = recipe.replace(mixed_precision=devices.computes_in(recipe.mixed_precision, torch.device(device)))
    if attention not in ATTENTION:
        raise ValueError(f"attention={attention!r}: there are {', '.join(ATTENTION)}")
    card = None if gpu is None else cards.card(gpu)
    other = trainers.find(trainer, checkpointing=checkpointing, dtype=dtype)
    source = model if isinstance(model, str | Path) else weakref.ref(model)
    question = Question(source, card, checkpointing, dtype, device, attention, processes, trainer)
    notes: tuple[str, ...] = ()
    if other:
        recipe, notes = other.adopt(recipe, family(model))
    name, planned = _planned_model(model, recipe, dtype, other)
    sd = planned.sd
    size = _size(resolution if resolution is not None else recipe.resolution, sd)
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes={processes!r}: it must be 1 or more")
    ready = prepare.prepare(
        sd, recipe, size=size, checkpointing=checkpointing, processes=processes, planned=True, card=card, chosen=planned.chosen,
        any_precision=other is not None,
    )  # fmt: skip
    capability = attentions.alike(card.capability) if card and device == "cuda" else attentions.DEFAULT
    kernels = _Kernels(device, attention, capability)
    if other:
        ready = replace(
            ready,
            optimizer=other.optimizer(recipe, [{"params": group["params"]} for group in ready.optimizer.param_groups]),
            # theirs looks at no gradients, so nothing does; and what is not cached is encoded anew for each batch
            key=replace(ready.key, optimizer_checks_gradients=ready.key.fused, encodes=not recipe.caches_latents),
        )
        kernel = other.kernels[trainers.flag(recipe)]
        kernels = _Kernels(device, attention if kernel == "auto" else kernel, capability, (other.name, trainers.flag(recipe)))
    step_key = ready.key, kernels
    if step_key not in planned.steps:
        planned.steps[step_key] = _record_step(ready, kernels, other)
    step, recomputed = planned.steps[step_key]
    optimizer_key = _OptimizerKey.of(ready, device)
    if optimizer_key not in planned.optimizers:
        planned.optimizers[optimizer_key] = _record_optimizer(ready.optimizer, recipe, device)
    timeline = tape.join(step, planned.optimizers[optimizer_key])
    threads = (card and card.resident_threads) or cards.CARDS["rtx3090"].resident_threads
    if processes > 1:
        buffer = sum(p.numel() * p.element_size() for p in planned.chosen.values())
        timeline = tape.with_storage(timeline, buffer, "gradients", "gradient reduction")
    workspace = 0
    if device == "cuda":
        timeline = tape.on_card(timeline, threads)
        workspace = allocator.WORKSPACES["Hopper" if card is not None and card.capability >= (9, 0) else "other"]
    return MemoryPlan(
        model=name, recipe=recipe, size=size, device=device, dtype=_dtype_name(sd.denoiser),
        trained=sum(p.numel() for p in planned.chosen.values()),
        flops=step.flops * recipe.gradient_accumulation_steps // ready.key.rounds,
        gpu=card, checkpointing=recomputed, note=_note(ready, notes), trainer=trainer,
        script=other.script(recipe, sd.family) if other else "", question=question, _timeline=timeline, _workspace=workspace,
        _setting=phases.Setting(ready, _readable(sd), capability, threads, lambda: _computing(ready, other)),
    )  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What a plan was asked for beside the recipe, so that others can be planned for it."""

    source: str | Path | weakref.ref[Model]
    gpu: Card | None
    checkpointing: object
    dtype: str | None
    device: str
    attention: str
    processes: int
    trainer: str

    def model(self) -> str | Path | Model:
        """The model. Raises `ValueError` if it was a loaded one that is gone."""
        model = self.source() if isinstance(self.source, weakref.ref) else self.source
        if model is None:
            raise ValueError("the model of this plan is gone: plan again")
        return model

    def plan(self, recipe: Recipe, *, size: tuple[int, int] | None, dtype: str | None) -> MemoryPlan:
        """Plan another recipe. `size`: (width, height) in pixels; default: the recipe's."""
        return plan(
            self.model(), recipe, resolution=size, gpu=self.gpu, checkpointing=self.checkpointing, dtype=dtype, device=self.device,
            attention=self.attention, processes=self.processes, trainer=self.trainer,
        )  # fmt: skip


def least_bytes(model: str | Path | Model, recipe: Recipe, *, dtype: str | None = None, trainer: str = "sdnb") -> int:
    """Lower bound of a plan's `peak_bytes`: the weights that stay on the card, and the optimizer's state where its size is known.

    For other trainers the gradients count, too, unless each is freed at once. Takes no time, as it only counts parameters. Raises like
    `plan` for the model and the trained parameters.
    """
    other = trainers.find(trainer, checkpointing=None, dtype=dtype)
    if other:
        recipe, _ = other.adopt(recipe, family(model))
    _, planned = _planned_model(model, recipe, dtype, other)
    resident = [getattr(planned.sd, part) for part in prepare.resident(planned.sd, recipe)]
    weight_bytes = sum(p.numel() * p.element_size() for module in resident for p in module.parameters())
    row, state_bytes = optim.row(recipe.optimizer_type), 0
    if row is not None and not recipe.optimizer_type.startswith("Paged"):  # a paged state may leave the card
        for p in planned.chosen.values():
            share = 1.0 if row.eight_bit else p.element_size() / 4  # the state of a 32-bit optimizer has the parameter's precision
            state_bytes += int(share * (row.state_bytes(p.numel()) or 0))
    return weight_bytes + (other.least_bytes(recipe, planned.chosen.values(), state_bytes) if other else state_bytes)


ATTENTION = ("auto", *attentions.KERNELS)


@dataclass
class _PlannedModel:
    """A model without weights, ready to be trained, and its recorded tapes."""

    sd: Model
    chosen: dict[str, Parameter]
    """Trained parameters by name, from `prepare.make_trainable`."""
    steps: dict[tuple[prepare.MemoryKey, _Kernels], tuple[tape.Tape, str]] = field(default_factory=dict)
    """Recorded training steps, each with the words for what it recomputes."""
    optimizers: dict[_OptimizerKey, list[tape.OptimizerSteps]] = field(default_factory=dict)
    """Recorded optimizers."""

    @classmethod
    def of(cls, sd: Model, recipe: Recipe, dtype: torch.dtype | None, other: trainers.Trainer | None) -> _PlannedModel:
        """Cast `sd`, a model on the meta device, to `dtype`, and put the parts that `recipe` trains into training mode.

        `other`: a trainer with adapters and precisions of its own.
        """
        if dtype is not None:
            _cast(sd, dtype)
        if other:
            other.add_adapters(sd, recipe)
        planned = cls(sd, prepare.make_trainable(sd, recipe))
        if other:
            trainers.cast(sd, recipe, other)
        for part in sd.learners.values():
            part.train()
        return planned


@dataclass(frozen=True)
class _Kernels:
    """Device type and attention whose kernels a plan assumes."""

    device: str
    attention: str
    capability: tuple[int, int]
    """Compute capability of the card, or of another that has the same kernels."""
    flag: tuple[str, str] | None = None
    """Another trainer's name and its flag for attention."""


@dataclass(frozen=True)
class _OptimizerKey:
    """Cache key of an optimizer's tape: everything that the memory of its steps depends on."""

    kind: str
    arguments: tuple[str, ...]
    in_backward: tuple[bool, tuple[int, ...]]
    """Whether it steps during backward, and the groups in which it does."""
    scaled: bool
    """Whether gradients in fp16 are unscaled before the step."""
    device: str
    groups: tuple[int, ...]
    """Number of parameters of each group."""
    made_by: str
    """Module of the optimizer's class: other trainers have optimizers of the same name."""

    @classmethod
    def of(cls, ready: prepare.Prepared, device: str) -> _OptimizerKey:
        """Key of a prepared run."""
        recipe, groups = ready.recipe, tuple(len(group["params"]) for group in ready.optimizer.param_groups)
        fused, scaled = (ready.key.fused, ready.key.fused_groups), recipe.mixed_precision == "fp16"
        made_by = type(ready.optimizer).__module__
        return cls(recipe.optimizer_type, recipe.optimizer_args, fused, scaled, device, groups, made_by)


@dataclass(frozen=True)
class _TrainedKey:
    """Cache key of a planned model: everything that `prepare.make_trainable` depends on."""

    dtype: torch.dtype | None
    adapters: lora.Asked | None
    text: bool
    text_alone: bool
    full_bf16: bool
    noise: tuple[bool, bool]
    """Whether `v_parameterization` and `zero_terminal_snr` change it."""
    files: tuple
    """The adapters' files that the recipe names."""
    encoders: tuple[bool, int | None]
    """Whether the text encoders are trained whole, and the `clip_skip` that says which of their layers are."""
    at_rest: tuple[bool, ...]
    """Of each learning rate, whether it is 0."""
    other: tuple[str, str, bool] | None
    """Another trainer's name, and what decides the precision of its parts: `mixed_precision` and `no_half_vae`."""

    @classmethod
    def of(cls, recipe: Recipe, dtype: torch.dtype | None, other: trainers.Trainer | None = None) -> _TrainedKey:
        """Key of a recipe and a dtype of the weights; `other`: the trainer, if not ours."""
        text, alone = recipe.wants_lora_in_text_encoders, recipe.wants_lora and recipe.network_train_text_encoder_only
        noise = recipe.v_parameterization, recipe.zero_terminal_snr
        files = recipe.network_weights, recipe.dim_from_weights, recipe.base_weights
        encoders = recipe.trains_text_encoders, recipe.clip_skip if recipe.trains_text_encoders else None
        parts = recipe.unet_lr, *(recipe.text_encoder_lr[:1] or (None,)), recipe.learning_rate_te1, recipe.learning_rate_te2
        rates = recipe.learning_rate, *parts, recipe.learning_rate_te, *recipe.block_rates
        at_rest = tuple(rate == 0 for rate in rates)
        held = (other.name, recipe.mixed_precision, recipe.no_half_vae) if other else None
        return cls(dtype, lora.asked(recipe), text, alone, recipe.full_bf16, noise, files, encoders, at_rest, held)


_by_name: dict[tuple, _PlannedModel] = {}
"""Planned models that were given by name, file or folder."""
_by_denoiser: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""Planned models that were given loaded, as dictionaries by the loaded model's denoiser."""
MODELS_KEPT = 8
"""Most planned models to keep by name: a recorded SDXL takes a few tens of megabytes."""


def _planned_model(
    model: str | Path | Model, recipe: Recipe, dtype: str | None, other: trainers.Trainer | None = None
) -> tuple[str, _PlannedModel]:
    """Name of the model in a plan, and the model as `recipe` trains it; `other`: the trainer, if not ours."""
    cast_to = _dtype(recipe, dtype, model)
    trained_key = _TrainedKey.of(recipe, cast_to, other)
    if not isinstance(model, str | Path):
        variants = _by_denoiser.setdefault(model.denoiser, {})
        key = trained_key, tuple((p.dtype, p.requires_grad) for part in model.parts.values() for p in part.parameters())
        if key not in variants:
            parts = {part: on_meta(module) for part, module in model.parts.items()}
            twin = replace(model, **parts, **dict.fromkeys(model.tokenizers))
            variants[key] = _PlannedModel.of(twin, recipe, cast_to, other)
        return "this model", variants[key]
    name = str(model)
    path = Path(name).expanduser()
    key = trained_key, name, path.stat().st_mtime_ns if path.exists() else 0
    if key not in _by_name:
        planned = _PlannedModel.of(skeletons.skeleton(model), recipe, cast_to, other)
        while len(_by_name) >= MODELS_KEPT:
            _by_name.pop(next(iter(_by_name)))
        _by_name[key] = planned
    return (path.name if path.exists() else name), _by_name[key]


def _cast(sd: Model, dtype: torch.dtype) -> None:
    """Cast the weights to `dtype`; adapters stay in fp32, as `lora.add` makes them."""
    for part in sd.parts.values():
        for name, tensor in part.named_parameters():
            if not lora.is_of_adapter(name):
                tensor.data = tensor.data.to(dtype)


def _dtype(recipe: Recipe, name: str | None, model) -> torch.dtype | None:
    """Dtype to plan the weights in. None: keep a loaded model's dtype; otherwise fp32."""
    if name is not None:
        if name not in DTYPES:
            raise ValueError(f"dtype={name!r}: there are {', '.join(DTYPES)}")
        return DTYPES[name]
    if recipe.full_bf16:
        return torch.bfloat16
    if isinstance(model, Model):
        return None
    return DTYPES[recipe.mixed_precision] if recipe.wants_lora and recipe.mixed_precision != "no" else None


def family(model: str | Path | Model) -> str:
    """Family of a model, by name, file, folder or loaded."""
    return skeletons.configurations(model)["family"] if isinstance(model, str | Path) else model.family


def _note(ready: prepare.Prepared, notes: tuple[str, ...] = ()) -> str:
    """What the plan supposes, in sentences; `notes` come last."""
    compiled = "planned for blocks that are not compiled: torch_compile changes what they keep" if ready.recipe.compiles else ""
    return ". ".join(filter(None, (optim.missing(ready.optimizer), compiled, *notes)))


def _dtype_name(denoiser) -> str:
    dtype = next(denoiser.parameters()).dtype
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))


def _size(resolution, sd: Model) -> tuple[int, int]:
    """(width, height) in pixels. Raises `ValueError` unless `resolution` is a side or such a pair."""
    sides = resolution if isinstance(resolution, (tuple, list)) else (resolution or sd.resolution,) * 2
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"resolution={resolution!r}: give a side in pixels, such as 512, or (width, height)")
    return tuple(sides)


example_batch = Batch.example


def unet_inputs(sd: Model, batch: Batch) -> dict:
    """Keyword arguments of the denoiser for a batch that has a condition: `Batch.inputs` as a function."""
    return batch.inputs(sd)


class _Tokenizer:
    """Stand-in for any tokenizer: token ids (B, max_length) on the meta device."""

    model_max_length, pad_token_id, eos_token_id = 77, 0, 0

    def __call__(self, texts, *, max_length: int, **_) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.empty(len(texts), max_length, dtype=torch.long, device="meta"))


def _record_step(ready: prepare.Prepared, kernels: _Kernels, other: trainers.Trainer | None = None) -> tuple[tape.Tape, str]:
    """Tape of one training step, and words for what it recomputes; `other`: the trainer, if not ours."""
    sd, recipe, key = ready.sd, ready.recipe, ready.key
    trains_encoders = bool(sd.encoders_in_training)
    parts = {part: getattr(sd, part) for part in key.resident}
    batch = Batch.example(sd, key.pictures, key.size, tokens=key.tokens, trains_encoders=trains_encoders, masked=key.masked)
    if trains_encoders:
        sd = _readable(sd)
    with _computing(ready, other):
        step = tape.record(
            sd, batch, recipe, parts, [group["params"] for group in ready.optimizer.param_groups],
            kernels=kernels.device, checks_gradients=key.optimizer_checks_gradients, attention=kernels.attention,
            capability=kernels.capability, encoded=key.size if key.encodes else None, encoded_at_once=key.pictures if other else 1,
        )  # fmt: skip
    if not ready.recomputed:
        return step, "nothing"
    return step, "every block" if key.recompute == "full" else f"by choice ({len(ready.recomputed)} blocks)"


def _readable(sd: Model) -> Model:
    """The model with stand-ins for its tokenizers."""
    return replace(sd, **dict.fromkeys(sd.tokenizers, _Tokenizer()))


@contextmanager
def _computing(ready: prepare.Prepared, other: trainers.Trainer | None) -> Iterator[None]:
    """Context in which the parts compute as the trainer's own and recompute what the recipe says; `other`: the trainer, if not ours."""
    sd, recipe, recomputed = ready.sd, ready.recipe, ready.recomputed
    own = checkpointing.Applied(sd.denoiser, recomputed) if other is None else other.step(sd, recipe, recomputed)
    with own, prepare.recomputed_encoders(sd, recipe):
        yield


def _record_optimizer(optimizer, recipe: Recipe, device: str) -> list[tape.OptimizerSteps]:
    """Tape of the optimizer's first two steps. Raises `ValueError` for an optimizer that does not run on the meta device."""
    if device == "cuda":
        for group in optimizer.param_groups:
            if "foreach" in group and group["foreach"] is None and not group.get("fused"):
                group["foreach"] = True  # as torch does on CUDA, but not on meta
    try:
        by_group = bool(recipe.fused_optimizer_groups)
        return optimizer_tape.record(optimizer, kernels=device, fused=recipe.fused_backward_pass, by_group=by_group)
    except (ValueError, RuntimeError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{recipe.optimizer_type} does not run on the meta device ({error}): plan with another optimizer") from error
