"""`plan`: what a training run will hold in memory, found by running its training step on the meta device.

There is no formula for the model in here. The step is `sdnb.training.training_step` itself, on tensors that have shapes and no
contents; every storage is counted when it comes and when it goes. For CUDA the requests are then played to a model of its caching
allocator. Figures for CUDA are predictions: they have not been compared with a real card yet.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import allocator, cards, checkpointing, fused, lora, optim, skeletons, tape, training
from .adafactor import Adafactor
from .memory import CATEGORIES, GIB, MIB, PHASES, Moment
from .models import StableDiffusion
from .recipe import Recipe
from .recompute import on_meta
from .training import Batch

if TYPE_CHECKING:
    from .cards import Card
    from .plots import Chart

UNCONFIRMED = "Figures for CUDA are predicted, and not yet confirmed on a real card."
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, repr=False)
class MemoryPlan:
    """What a run holds, over its first two steps; the second has the optimizer's state from the start. Printed, it is a table."""

    model: str
    recipe: Recipe
    size: tuple[int, int]
    """Width and height of the pictures, in pixels."""
    device: str
    """Whose kernels and allocator: `cuda` or `cpu`."""
    dtype: str
    """Of the model's weights: `fp32`, `bf16` or `fp16`."""
    trained: int
    """Numbers that are trained."""
    flops: int
    """Of forward and backward, for one optimizer step."""
    gpu: Card | None
    checkpointing: str
    _timeline: tape.Timeline = field(repr=False)
    _workspace: int = 0

    # how much

    @property
    def peak_bytes(self) -> int:
        """The most that is alive at once. On CUDA with every request rounded as its allocator does, and cuBLAS' workspaces."""
        return int(self._totals.max(initial=self._start)) + self._workspace

    @property
    def peaks(self) -> dict[str, int]:
        """The same for each phase."""
        phases = self._timeline.tape.phases
        found = {name: self._totals[phases == number] for number, name in enumerate(PHASES)}
        return {name: int(totals.max()) + self._workspace for name, totals in found.items() if len(totals)}

    @property
    def static_bytes(self) -> int:
        """What is there at any time: weights, the optimizer's state, inputs, workspaces."""
        return int(self._totals[self._timeline.second - 1]) + self._workspace if len(self._totals) else self._start

    @property
    def dynamic_bytes(self) -> int:
        """What comes and goes in a step: gradients, activations, temporaries."""
        return self.peak_bytes - self.static_bytes

    @functools.cached_property
    def _replayed(self) -> allocator.Allocator | None:
        if self.device != "cuda":
            return None
        return self._play(None)

    @property
    def allocated_bytes(self) -> int:
        """What `torch.cuda.max_memory_allocated()` would say: `peak_bytes`, and what lies unused within blocks. On a CPU `peak_bytes`."""
        return self._replayed.peak_allocated if self._replayed else self.peak_bytes

    @property
    def reserved_bytes(self) -> int:
        """What `torch.cuda.max_memory_reserved()` would say with room to spare: it is what a card has to have. On a CPU `peak_bytes`."""
        return self._replayed.peak_reserved if self._replayed else self.peak_bytes

    @functools.cached_property
    def fits(self) -> bool | None:
        """Whether it runs on the card, giving unused segments back when it has to. None without a card."""
        if self.gpu is None:
            return None
        if self.peak_bytes > self.gpu.usable_bytes:
            return False
        try:
            self._play(self.gpu.usable_bytes)
        except allocator.OutOfMemory:
            return False
        return True

    @property
    def spare_bytes(self) -> int | None:
        """What the card has beyond the peak; negative is what is missing. None without a card."""
        return None if self.gpu is None else self.gpu.usable_bytes - self.allocated_bytes

    def _play(self, capacity: int | None) -> allocator.Allocator:
        one = self._timeline.tape
        base = one.base.tolist()
        places = {number: place for place, number in enumerate(base)}
        offset = len(base) + 1
        sizes = [*one.sizes[one.base].tolist(), self._workspace or 1]
        blocks = [places.get(number, number + offset) if number >= 0 else -1 for number in one.blocks.tolist()]
        return allocator.replay(sizes, zip(blocks, one.changes.tolist(), strict=True), capacity=capacity)

    # what and where

    @functools.cached_property
    def _changes(self) -> np.ndarray:
        changes = self._timeline.tape.changes
        return np.sign(changes) * _rounded(np.abs(changes), self.device)

    @functools.cached_property
    def _start(self) -> int:
        one = self._timeline.tape
        return int(_rounded(one.sizes[one.base], self.device).sum())

    @functools.cached_property
    def _totals(self) -> np.ndarray:
        return self._start + np.cumsum(self._changes)

    @functools.cached_property
    def _peak_place(self) -> int:
        return int(self._totals.argmax()) if len(self._totals) else 0

    def _alive(self, place: int) -> np.ndarray:
        """Bytes of each block after the event at `place`."""
        one = self._timeline.tape
        alive = np.zeros(len(one.sizes), dtype=np.int64)
        alive[one.base] = _rounded(one.sizes[one.base], self.device)
        blocks, changes = one.blocks[: place + 1], self._changes[: place + 1]
        np.add.at(alive, blocks[blocks >= 0], changes[blocks >= 0])
        return alive

    @functools.cached_property
    def by_category(self) -> dict[str, int]:
        """What is alive at the peak, by what it is, in the order of `memory.CATEGORIES`, and the workspaces."""
        one, alive = self._timeline.tape, self._alive(self._peak_place)
        parts = np.bincount(one.categories, weights=alive, minlength=len(CATEGORIES)).astype(np.int64)
        held = dict(zip(CATEGORIES, parts.tolist(), strict=True))
        held["temporaries"] += int(self._totals[self._peak_place] - alive.sum())  # what the kernel itself holds
        return {**held, "workspaces": self._workspace} if self._workspace else held

    @functools.cached_property
    def by_module(self) -> dict[str, int]:
        """What is alive at the peak, by the module it belongs to, the largest first."""
        held: dict[str, int] = {}
        for owner, size in zip(self._timeline.tape.owners, self._alive(self._peak_place).tolist(), strict=True):
            if size:
                held[owner or "the step itself"] = held.get(owner or "the step itself", 0) + size
        return dict(sorted(held.items(), key=lambda item: -item[1]))

    @property
    def peak(self) -> Moment:
        """The moment of the peak."""
        one = self._timeline.tape
        held = dict(self.by_category)
        held.pop("workspaces", None)
        return Moment(one.names[self._peak_place], PHASES[one.phases[self._peak_place]], held)

    @property
    def peak_step(self) -> int:
        """The step in which the peak lies: 1, or 2, which has the optimizer's state from its start."""
        return 1 + int(self._peak_place >= self._timeline.second)

    @functools.cached_property
    def timeline(self) -> list[Moment]:
        """What is alive after each event of two steps, without the workspaces."""
        one = self._timeline.tape
        kinds = np.where(one.blocks >= 0, one.categories[one.blocks], CATEGORIES.index("temporaries"))
        start = np.bincount(one.categories[one.base], weights=_rounded(one.sizes[one.base], self.device), minlength=len(CATEGORIES))
        changes = np.zeros((len(kinds) + 1, len(CATEGORIES)), dtype=np.int64)
        changes[0] = start
        changes[np.arange(1, len(kinds) + 1), kinds] = self._changes
        rows = np.cumsum(changes, axis=0).tolist()
        phases, names = [PHASES[0], *(PHASES[number] for number in one.phases.tolist())], ["", *one.names]
        return [Moment(n, p, dict(zip(CATEGORIES, row, strict=True))) for n, p, row in zip(names, phases, rows, strict=True)]

    # said and shown

    def as_dict(self) -> dict:
        """Everything but the timeline, for programs. Bytes throughout."""
        card = None
        if self.gpu is not None:
            card = {"name": self.gpu.name, "usable_bytes": self.gpu.usable_bytes, "fits": self.fits, "spare_bytes": self.spare_bytes}
        return {
            "model": self.model,
            "flags": self.recipe.to_flags(),
            "width": self.size[0],
            "height": self.size[1],
            "batch_size": self.recipe.train_batch_size,
            "checkpointing": self.checkpointing,
            "device": self.device,
            "dtype": self.dtype,
            "trained": self.trained,
            "flops": self.flops,
            "peak_bytes": self.peak_bytes,
            "allocated_bytes": self.allocated_bytes,
            "reserved_bytes": self.reserved_bytes,
            "static_bytes": self.static_bytes,
            "dynamic_bytes": self.dynamic_bytes,
            "peak_step": self.peak_step,
            "peak_phase": self.peak.phase,
            "phases": self.peaks,
            "categories": self.by_category,
            "modules": self.by_module,
            "gpu": card,
            "confirmed": self.device == "cpu",
        }

    def __str__(self) -> str:
        width, height = self.size
        what = f"{self.model} in {self.dtype}, {width}×{height}, {_batch(self.recipe)}, {self.recipe.optimizer_type}"
        mixed = "" if self.recipe.mixed_precision == "no" else f", mixed {self.recipe.mixed_precision}"
        lines = [
            f"{what}{mixed}{', fused backward' if self.recipe.fused_backward_pass else ''}, recomputing {self.checkpointing}",
            f"{self.trained / 1e6:,.1f} million numbers trained, {self.flops / 1e12:,.2f} TFLOPs a step",
            "",
            f"peak        {_size(self.peak_bytes)}   in {self.peak.phase} of step {self.peak_step}",
        ]
        if self.device == "cuda":
            lines.append(f"allocated   {_size(self.allocated_bytes)}   by the allocator's count")
            lines.append(f"reserved    {_size(self.reserved_bytes)}   from the driver")
        lines.append(f"static      {_size(self.static_bytes)}   dynamic {_size(self.dynamic_bytes).strip()}")
        lines += ["", "alive at the peak"]
        lines += [f"  {name:17}{_size(size)}  {size / self.peak_bytes:6.1%}" for name, size in self.by_category.items() if size]
        lines += ["", "the most in each phase"]
        lines += [f"  {name:17}{_size(size)}" for name, size in self.peaks.items()]
        lines += ["", "at the peak, by module"]
        lines += [f"  {name:24}{_size(size)}" for name, size in list(self.by_module.items())[:6]]
        if self.gpu is not None:
            verdict = "fits" if self.fits else "does not fit"
            spare = self.spare_bytes
            rest = f"{_size(abs(spare)).strip()} {'to spare' if spare >= 0 else 'missing'}"
            lines += ["", f"{verdict} on {self.gpu.name} ({_size(self.gpu.usable_bytes).strip()} usable): {rest}"]
        if self.device == "cuda":
            lines += ["", UNCONFIRMED]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def draw(self) -> Chart:
        """The timeline of both steps as a picture; `plots.bars` sets the `by_category` of several side by side."""
        from . import plots

        return plots.anatomy(self)


def plan(
    model: str | Path | StableDiffusion,
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
    """What training `model` by `recipe` will need: nothing is loaded and no GPU is asked.

    `model` is a name of `skeletons.architectures()`, a folder in diffusers' format, a safetensors file, or a loaded model, whose
    weights are left alone. `resolution` is a side in pixels or (width, height), the recipe's unless given, and `batch_size` its
    `train_batch_size`. `gpu` is a card's name or its usable bytes. `checkpointing` is any choice of `checkpointing.apply`.

    The recipe asks for a LoRA with `network_dim` and `network_alpha`, for weights in 16 bits with `full_bf16`, and for frozen parts that
    leave the card with `cache_latents` and `cache_text_encoder_outputs`, all in `others`. `dtype` wins over that: of a LoRA's frozen
    weights it is otherwise that of `mixed_precision`.

    `device="cpu"` predicts for the kernels of a CPU instead. `attention` is `flash`, `efficient` or `math`, or what CUDA would take by
    itself. `processes` above 1 adds the buffers in which gradients are averaged.

    Raises `ValueError` for an unknown model or card, sizes the U-Net cannot halve, and whatever `train` refuses, with its message.
    """
    recipe = recipe or Recipe()
    chosen = {}
    if batch_size is not None:
        chosen["train_batch_size"] = batch_size
    recipe = recipe.replace(**chosen) if chosen else recipe
    if device not in ("cuda", "cpu"):
        raise ValueError(f'device={device!r}: there are "cuda" and "cpu"')
    if attention not in ATTENTION:
        raise ValueError(f"attention={attention!r}: there are {', '.join(ATTENTION)}")
    card = None if gpu is None else cards.card(gpu)
    adapters = lora.asked(recipe)
    name, made = _model(model, _dtype(recipe, adapters, dtype, model), adapters)
    sd = made.sd
    size = _size_of(resolution if resolution is not None else recipe.resolution, sd)
    optimizer = _checked(sd, recipe, size, processes)
    guarded = isinstance(optimizer, Adafactor)
    key = (size, recipe.train_batch_size, min(recipe.gradient_accumulation_steps, 2), recipe.mixed_precision, recipe.max_grad_norm > 0)
    key += (recipe.fused_backward_pass, guarded if recipe.fused_backward_pass else None, recipe.min_snr_gamma is None)
    key += (device, attention, _key(checkpointing, recipe), _resident(sd, recipe))
    if key not in made.steps:
        made.steps[key] = _step(sd, recipe, size, checkpointing, device, attention, guarded)
    step, how = made.steps[key]
    settings = (recipe.optimizer_type, recipe.optimizer_args, recipe.fused_backward_pass, recipe.mixed_precision == "fp16", device)
    if settings not in made.optimizers:
        made.optimizers[settings] = _optimizer_steps(sd, optimizer, recipe, device)
    timeline = tape.join(step, made.optimizers[settings])
    trained = sum(p.numel() for p in sd.unet.parameters() if p.requires_grad)
    if processes > 1:
        bucket = sum(p.numel() * p.element_size() for p in sd.unet.parameters() if p.requires_grad)
        timeline = tape.with_block(timeline, bucket, "gradients", "gradient reduction")
    workspace = 0
    if device == "cuda":
        workspace = allocator.WORKSPACES["Hopper" if card is not None and card.capability >= (9, 0) else "other"]
    return MemoryPlan(
        model=name, recipe=recipe, size=size, device=device, dtype=_short(sd.unet), trained=trained,
        flops=step.flops * recipe.gradient_accumulation_steps // min(recipe.gradient_accumulation_steps, 2),
        gpu=card, checkpointing=how, _timeline=timeline, _workspace=workspace,
    )  # fmt: skip


ATTENTION = ("auto", "flash", "efficient", "math")


@dataclass
class _Made:
    """A model without weights, and what was recorded of it."""

    sd: StableDiffusion
    steps: dict = field(default_factory=dict)
    optimizers: dict = field(default_factory=dict)


_made: dict[tuple, _Made] = {}
_loaded: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""The U-Net of a loaded model -> what was made of it."""


def _model(model, dtype: torch.dtype | None, adapters) -> tuple[str, _Made]:
    if isinstance(model, StableDiffusion):
        known = _loaded.setdefault(model.unet, {})
        key = (dtype, adapters, model.dtype, tuple(p.requires_grad for p in model.unet.parameters()))
        if key in known:
            return "this model", known[key]
        twin = StableDiffusion(
            **{part: module and on_meta(module) for part in skeletons.PARTS for module in [getattr(model, part)]},
            tokenizer=None, noise_scheduler=model.noise_scheduler, family=model.family,
        )  # fmt: skip
        if dtype is not None:
            _in(twin, dtype)
        if adapters and not lora.is_added(twin.unet):
            lora.add(twin, **vars(adapters))
        elif not lora.is_added(twin.unet):
            twin.unet.requires_grad_(True)
        twin.unet.train()
        made = known[key] = _Made(twin)
        return "this model", made
    text = str(model)
    where = Path(text).expanduser()
    stamp = where.stat().st_mtime_ns if where.exists() else 0
    key = (text, stamp, dtype, adapters)
    if key not in _made:
        sd = skeletons.skeleton(model)
        if dtype is not None:
            _in(sd, dtype)
        if adapters:
            lora.add(sd, **vars(adapters))
        while len(_made) >= 8:  # a recorded SDXL is a few tens of megabytes
            _made.pop(next(iter(_made)))
        _made[key] = _Made(sd)
    return (where.name if where.exists() else text), _made[key]


def _in(sd: StableDiffusion, dtype: torch.dtype) -> None:
    for part in skeletons.PARTS:
        if (module := getattr(sd, part)) is not None:
            for tensor in module.parameters():
                tensor.data = tensor.data.to(dtype)


def _dtype(recipe: Recipe, adapters, asked: str | None, model) -> torch.dtype | None:
    """That of the weights; None is that of a model that is there, or fp32."""
    if asked is not None:
        if asked not in DTYPES:
            raise ValueError(f"dtype={asked!r}: there are {', '.join(DTYPES)}")
        return DTYPES[asked]
    others = dict(recipe.others)
    for name, dtype in (("full_bf16", torch.bfloat16), ("full_fp16", torch.float16)):
        if others.get(name):
            return dtype
    if isinstance(model, StableDiffusion):
        return None
    return DTYPES[recipe.mixed_precision] if adapters and recipe.mixed_precision != "no" else None


def _short(unet) -> str:
    dtype = next(unet.parameters()).dtype
    return next((name for name, one in DTYPES.items() if one == dtype), str(dtype))


def _size_of(resolution, sd: StableDiffusion) -> tuple[int, int]:
    """Width and height, checked against what the U-Net can halve."""
    sides = resolution if isinstance(resolution, (tuple, list)) else (resolution or sd.resolution,) * 2
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"resolution={resolution!r}: give a side in pixels, such as 512, or (width, height)")
    return tuple(sides)


def _checked(sd: StableDiffusion, recipe: Recipe, size: tuple[int, int], processes: int) -> torch.optim.Optimizer:
    """The recipe's optimizer on the parameters, once everything that `train` refuses has been refused."""
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes={processes!r}: it must be 1 or more")
    if recipe.fused_backward_pass:
        fused.check(recipe, processes=processes)
    optimizer = optim.optimizer(recipe, [p for p in sd.unet.parameters() if p.requires_grad])
    rounds = isinstance(optimizer, Adafactor) and optimizer.defaults["stochastic_rounding"]
    training._check_trainable(sd, recipe, rounds)
    multiple = sd.downscale * 2 ** (len(sd.unet.config.block_out_channels) - 1)
    for side in size:
        if side % multiple:
            raise ValueError(f"resolution={side}: this U-Net halves its latents down to whole numbers only at multiples of {multiple}")
    if recipe.fused_backward_pass:
        fused.FusedBackward(optimizer)
    return optimizer


def _key(choice, recipe: Recipe):
    if choice is None:
        return "full" if recipe.gradient_checkpointing else "none"
    if isinstance(choice, checkpointing.Point):
        choice = choice.choice
    if isinstance(choice, Mapping):
        return tuple(choice.items())
    return tuple(choice) if isinstance(choice, Iterable) and not isinstance(choice, str) else choice


def _resident(sd: StableDiffusion, recipe: Recipe) -> tuple[str, ...]:
    """The parts that stay on the card."""
    others = dict(recipe.others)
    gone = {"vae"} if others.get("cache_latents") or others.get("cache_latents_to_disk") else set()
    if others.get("cache_text_encoder_outputs") or others.get("cache_text_encoder_outputs_to_disk"):
        gone |= {"text_encoder", "text_encoder_2"}
    return tuple(part for part in skeletons.PARTS if part not in gone and getattr(sd, part) is not None)


def example_batch(sd: StableDiffusion, batch_size: int, size: tuple[int, int]) -> Batch:
    """What a step trains on, on the meta device; `size` is width and height in pixels."""
    width, height = (side // sd.downscale for side in size)
    config = sd.unet.config

    def floats(*shape: int):
        return torch.empty(shape, device="meta")

    context = config.cross_attention_dim if isinstance(config.cross_attention_dim, int) else config.cross_attention_dim[-1]
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": floats(batch_size, pooled), "time_ids": floats(batch_size, 6)}
    latents = (batch_size, config.in_channels, height, width)
    t = torch.empty(batch_size, dtype=torch.long, device="meta")
    return Batch(floats(*latents), floats(batch_size, 77, context), floats(*latents), t, added)


def _step(sd, recipe: Recipe, size, choice, device: str, attention: str, guarded: bool) -> tuple[tape.Tape, str]:
    how = _key(choice, recipe)
    batch = example_batch(sd, recipe.train_batch_size, size)
    if isinstance(choice, checkpointing.Budget):
        training._check_budget(recipe)
    dtype = next(sd.unet.parameters()).dtype
    inputs = {"sample": batch.latents.to(dtype), "timestep": batch.t, "encoder_hidden_states": batch.context.to(dtype)}
    if batch.added is not None:
        inputs["added_cond_kwargs"] = {name: value.to(dtype) for name, value in batch.added.items()}
    chosen = checkpointing.resolve(sd.unet, how if choice is None else choice, inputs)
    parts = {part: getattr(sd, part) for part in _resident(sd, recipe)}
    with checkpointing.Applied(sd.unet, chosen):
        step = tape.record(sd, batch, recipe, parts, kernels=device, guarded=guarded, attention=attention)
    named = "nothing" if not chosen else "every block" if how == "full" else f"by choice ({len(chosen)} blocks)"
    return step, named


def _optimizer_steps(sd: StableDiffusion, optimizer, recipe: Recipe, device: str) -> list[tape.Steps]:
    if device == "cuda":
        for group in optimizer.param_groups:
            if "foreach" in group and group["foreach"] is None and not group.get("fused"):
                group["foreach"] = True  # what torch takes on CUDA, and not on meta
    try:
        return tape.record_optimizer(optimizer, {"unet": sd.unet}, kernels=device, fused=recipe.fused_backward_pass)
    except (ValueError, RuntimeError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{recipe.optimizer_type} does not run on the meta device ({error}): plan with another optimizer") from error


def _rounded(sizes: np.ndarray, device: str) -> np.ndarray:
    return sizes if device == "cpu" else -(-sizes // allocator.STEP) * allocator.STEP


def _batch(recipe: Recipe) -> str:
    rounds = recipe.gradient_accumulation_steps
    return f"batch {recipe.train_batch_size}" + (f" × {rounds} accumulated" if rounds > 1 else "")


def _size(size: int) -> str:
    return f"{size / GIB:8,.2f} GiB" if size >= GIB else f"{size / MIB:8,.1f} MiB"


def warn_if_too_large(sd: StableDiffusion, recipe: Recipe, usable_bytes: int, *, resolution=None, checkpointing=None) -> MemoryPlan:
    """Plan a run and warn before its first step when it needs more than `usable_bytes`, saying what would need less."""
    made = plan(sd, recipe, gpu=usable_bytes, resolution=resolution, checkpointing=checkpointing)
    if not made.fits:
        missing = max(0, made.allocated_bytes - usable_bytes)
        warnings.warn(
            f"this run is predicted to need {_size(made.allocated_bytes).strip()}, {_size(missing).strip()} more than there are. "
            f"Less: {', '.join(_less(recipe))}",
            ResourceWarning,
            stacklevel=2,
        )
    return made


def _less(recipe: Recipe) -> list[str]:
    """What else this recipe could give up."""
    ways = []
    if not recipe.gradient_checkpointing:
        ways.append("gradient_checkpointing=True")
    if recipe.optimizer_type != "Adafactor":
        ways.append('optimizer_type="Adafactor"')
    elif not recipe.fused_backward_pass and recipe.gradient_accumulation_steps == 1 and recipe.mixed_precision != "fp16":
        ways.append("fused_backward_pass=True")
    if recipe.mixed_precision == "no":
        ways.append('mixed_precision="bf16"')
    if recipe.train_batch_size > 1:
        ways.append(f"train_batch_size={recipe.train_batch_size // 2}")
    return [*ways, "a smaller resolution", "a LoRA"]
