"""`WholeRun`: the memory that a run needs beside its training step: to encode pictures and captions, draw previews, validate and save.

Each phase is the trainer's own code, run on the meta device like the step. What differs is which parts lie on the card. `sdnb.train` loads
all of them. Where the card has no room for all, parts leave it while others work, and previews are decoded in tiles (`models.room`,
`saves.previews`), so its phases have two figures: with room for all, and the least.

sd-scripts moves its parts at fixed places, and has no tiles for these models (commit 48d368f):

    caching latents    the VAE alone, as the others are loaded to the CPU: train_network.py 612, sdxl_train.py 272, train_db.py 157
    caching captions   SDXL alone, the text encoders alone: sdxl_train_network.py 99, sdxl_train.py 330
    preview            what trains and the VAE, from before the prompts until after the pictures: library/train_util.py 6402, 6488. Text
                       encoders whose outputs are cached encode the prompts on the CPU: library/sdxl_lpw_stable_diffusion.py 585
    save               one tensor is copied on the card at a time: networks/lora.py 1264, library/sdxl_model_util.py 498

diffusers' example scripts draw and save by pipelines that differ from script to script; only their steps are planned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from .. import training
from ..datasets import Batch, latents
from ..memory import CATEGORIES
from ..models import Drawing, family_of, room, weights
from ..saves import samples
from ..sd_scripts import supported
from . import tape
from .meta_step import MetaAccelerator

if TYPE_CHECKING:
    from torch import Tensor

    from ..models import Model
    from ..prepare import Prepared
    from ..system import Card
    from .report import MemoryPlan

CAPTIONS = 32
"""Captions that are encoded at once."""


@dataclass(frozen=True)
class Phase:
    """One phase of a run."""

    name: str
    peak_bytes: int
    """Most bytes alive at once, where the card has room for all parts that may be there."""
    least_bytes: int
    """The same where parts take turns and previews are decoded in tiles; equal to `peak_bytes` where the trainer does neither."""
    reserved_bytes: int
    """What the allocator reserves for `least_bytes`, when it has given back what other phases left unused."""
    what: str
    """What lies on the card, in words."""


@dataclass(frozen=True, repr=False)
class WholeRun:
    """The phases of a run, in the order in which they come. Prints as a table."""

    phases: tuple[Phase, ...]
    gpu: Card | None
    note: str

    @property
    def verdict(self) -> str | None:
        """Whether all phases have room, as `MemoryPlan.verdict` says it of the step; None without a card."""
        if self.gpu is None:
            return None
        return self.gpu.verdict(self.largest.least_bytes, max(phase.reserved_bytes for phase in self.phases))

    @property
    def largest(self) -> Phase:
        """The phase that needs most, where parts take turns as far as the trainer lets them."""
        return max(self.phases, key=lambda phase: phase.least_bytes)

    def __getitem__(self, name: str) -> Phase:
        """The phase of this name. Raises `KeyError` for one that the run does not have."""
        return {phase.name: phase for phase in self.phases}[name]

    def as_dict(self) -> dict:
        """The phases by name, for JSON. All sizes are in bytes."""
        sizes = ("peak_bytes", "least_bytes", "reserved_bytes", "what")
        phases = {phase.name: {size: getattr(phase, size) for size in sizes} for phase in self.phases}
        return {"phases": phases, "largest": self.largest.name, "verdict": self.verdict, "note": self.note}

    def __str__(self) -> str:
        from .report import in_units

        rows = [f"{'the whole run':18}{'peak':>12}   {'at least':>12}"]
        for phase in self.phases:
            least = in_units(phase.least_bytes) if phase.least_bytes < phase.peak_bytes else ""
            rows.append(f"{phase.name:18}{in_units(phase.peak_bytes)}   {least:12}   {phase.what}")
        rows.append(f"the largest: {self.largest.name}, {in_units(self.largest.least_bytes).strip()}")
        rows += [f"the whole run {self.verdict} on {self.gpu.name}"] if self.gpu else []
        return "\n".join([*rows, *([self.note] if self.note else [])])

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Setting:
    """What a plan was made with, to plan the rest of its run."""

    ready: Prepared
    sd: Model
    """The model, with stand-ins for its tokenizers."""
    capability: tuple[int, int]
    """Compute capability of the card."""
    threads: int
    """Threads that the card runs at once."""
    step: Callable[[], AbstractContextManager]
    """Context in which the denoiser computes as the trainer's own."""


def whole_run(plan: MemoryPlan, setting: Setting) -> WholeRun:
    """The phases of the run that was planned."""
    alone = plan.trainer == "diffusers"
    note = "previews, saves and caches of diffusers' scripts are not planned" if alone else ""
    return WholeRun(tuple(_steps(plan) if alone else _Run(plan, setting).phases()), plan.gpu, note)


def _steps(plan: MemoryPlan) -> Iterator[Phase]:
    totals, second, spare = plan._totals, plan._timeline.second, plan._workspace
    for name, part in (("first step", totals[:second]), ("later steps", totals[second:])):
        peak = int(part.max(initial=plan._start)) + spare
        yield Phase(name, peak, peak, plan.reserved_bytes, "")


class _Run:
    """The phases of one run."""

    def __init__(self, plan: MemoryPlan, setting: Setting) -> None:
        self.plan, self.setting, self.sd = plan, setting, setting.sd
        self.recipe, self.key = setting.ready.recipe, setting.ready.key
        self.is_ours = plan.trainer == "sdnb"
        self.everything = tuple(self.sd.parts)
        self.resident = self.key.resident
        self.encoders = tuple(self.sd.encoders)
        self.held = self._held()

    def phases(self) -> Iterator[Phase]:
        """All phases, in order."""
        recipe, trained = self.recipe, bool(self.sd.encoders_in_training)
        if self.is_ours:
            yield self._phase("loading", "all parts", [(self.everything, None)], before=True)
        if not trained and (self.is_ours or recipe.caches_texts):
            yield self._caching("caching captions", self.encoders, self._captions)
        if recipe.caches_latents or (self.is_ours and not self.key.encodes):
            yield self._caching("caching latents", ("vae",), self._latents)
        yield from _steps(self.plan)
        yield self._preview()
        if recipe.validation_split and self.is_ours:
            yield self._phase("validation", "", [(self.resident, self._validation)])
        yield self._phase("save", "", [(self.resident, run) for run in self._saves()])
        if self.is_ours and len(self.resident) < len(self.everything):
            least = [(self.resident, None)]
            yield self._phase(
                "after the run", "all parts; at least without those that were elsewhere", [(self.everything, None)], least=least
            )

    def _held(self) -> list[Tensor]:
        """Stand-ins for what stays between two steps beside the weights: the optimizer's state, buffers of gradients."""
        timeline = self.plan._timeline.tape
        alive = self.plan._alive(len(timeline.storages) - 1)
        stays = timeline.categories == CATEGORIES.index("optimizer state")
        stays[timeline.base[timeline.categories[timeline.base] == CATEGORIES.index("gradients")]] = True
        return [torch.empty(size, dtype=torch.uint8, device="meta") for size in alive[stays & (alive > 0)].tolist()]

    def _caching(self, name: str, parts: tuple[str, ...], run: Callable[[], object]) -> Phase:
        """Parts encode while the others lie beside them, or elsewhere."""
        what = " and ".join(parts)
        if not self.is_ours:
            return self._phase(name, f"{what} alone", [(parts, run)], before=True)
        return self._phase(name, f"all parts; at least {what} alone", [(self.everything, run)], least=[(parts, run)], before=True)

    def _preview(self) -> Phase:
        """A preview of the largest size."""
        size = self._preview_size()
        drawing = Drawing(prompts=("",), steps=1, guidance=7.5, size=size, negative="")
        shape = self._latent_shape(size)
        told = drawing.encode(self.sd)

        def decode(tile: int | None) -> Callable[[], object]:
            def run() -> None:
                with room.tiled(self.sd, tile):
                    self.sd.decode(torch.empty(shape, device="meta")).float()

            return run

        def encode() -> None:
            drawing.encode(self.sd)

        def denoise() -> None:
            with self._as_trained():
                drawing.denoise(self.sd, told)

        sides = f"{size[0]}×{size[1]}"
        if not self.is_ours:
            parts = tuple({*self.resident, "vae"})
            runs = [denoise, decode(None), *([encode] if {*self.encoders} <= {*parts} else [])]
            return self._phase("preview", f"{sides}, the VAE throughout", [(parts, run) for run in runs])
        with_text, with_vae = tuple({*self.resident, *self.encoders}), tuple({*self.resident, "vae"})
        tile = room.tile_sides(self.sd, size)[-1]
        return self._phase(
            "preview",
            f"{sides}; at least with the denoiser elsewhere, in tiles of {tile} pixels" if tile else sides,
            [(with_text, encode), (self.resident, denoise), (with_vae, decode(None))],
            least=[(self.encoders, encode), (self.resident, denoise), (("vae",), decode(tile))],
        )

    def _preview_size(self) -> tuple[int, int]:
        """The largest size among the recipe's prompts; that of training where it names no file of them."""
        path = self.recipe.sample_prompts
        if not supported.is_file(path):
            return self.plan.size
        sizes = [prompt.drawing(sampler="ddim").sides(self.sd) for prompt in samples.read(Path(str(path)).expanduser())]
        return max(sizes, key=lambda size: size[0] * size[1], default=self.plan.size)

    def _latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        width, height = (side // self.sd.downscale for side in size)
        return 1, self.sd.vae.config["latent_channels"], height, width

    def _captions(self) -> None:
        family = family_of(self.sd)
        count = CAPTIONS if self.is_ours else self.key.pictures
        with self._autocast(not self.is_ours, self.encoders):
            family.condition(self.sd, [""] * count, family.text_encoding(self.sd, self.recipe))

    def _latents(self) -> None:
        size, others = self.plan.size, dict(self.recipe.others)
        alone = self.recipe.cache_latents_to_disk
        count = latents.together(size, alone=alone) if self.is_ours else int(others.get("vae_batch_size") or 1)
        latents.encoded(self.sd.vae, torch.empty(count, 3, *size[::-1], device="meta"))

    def _validation(self) -> None:
        key, trained = self.key, bool(self.sd.encoders_in_training)
        batch = Batch.example(self.sd, key.pictures, key.size, tokens=key.tokens, trains_encoders=trained, masked=key.masked)
        with self._as_trained():
            training.denoising_loss(self.sd, batch, self.recipe)

    def _saves(self) -> Iterator[Callable[[], object]]:
        """What is copied for a save, one after another: the weights, the optimizer's state, the model for others."""
        chosen, whole = self.setting.ready.chosen, not self.recipe.wants_lora
        if not self.is_ours:
            tensors = [p for part in self.resident for p in getattr(self.sd, part).parameters()] if whole else [*chosen.values()]
            yield lambda: [tensor.detach().clone() is None for tensor in tensors]  # each is gone before the next
            return
        yield lambda: weights.on_cpu(chosen, copy=True)
        yield lambda: weights.on_cpu({str(place): tensor for place, tensor in enumerate(self.held)}, copy=True)
        if whole:
            dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.recipe.save_precision or "")
            there = self.resident if self.plan.device == "cuda" else self.everything
            model = {f"{part}.{name}": p for part in there for name, p in getattr(self.sd, part).named_parameters()}
            yield lambda: weights.on_cpu(model, dtype)

    def _as_trained(self) -> ExitStack:
        """The parts that train as accelerate prepares them, and the denoiser as the trainer computes it."""
        stack = self._autocast(True, self.sd.learners)
        stack.enter_context(self.setting.step())
        return stack

    def _autocast(self, is_on: bool, parts: Collection[str]) -> ExitStack:
        stack = ExitStack()
        accelerator = MetaAccelerator(self.key.mixed_precision if is_on else "no", 1)
        stack.enter_context(accelerator.prepared([getattr(self.sd, part) for part in parts], self.plan.device))
        return stack

    def _phase(self, name: str, what: str, runs: list[tuple], *, least: list[tuple] | None = None, before: bool = False) -> Phase:
        """A phase of several stages, each with the parts on the card and what is run; `before` the optimizer has a state."""
        peak = [self._stage(parts, run, before) for parts, run in runs]
        fewest = peak if least is None else [self._stage(parts, run, before) for parts, run in least]
        reserved = max(stage.reserved_bytes for stage in fewest)
        return Phase(name, max(stage.peak_bytes for stage in peak), max(stage.peak_bytes for stage in fewest), reserved, what)

    def _stage(self, parts: Collection[str], run: Callable[[], object] | None, before: bool) -> MemoryPlan:
        """The plan with the timeline of one stage."""
        device = self.plan.device
        recorder = tape.Recorder({part: getattr(self.sd, part) for part in parts}, kernels=device, capability=self.setting.capability)
        with recorder.recording(), torch.no_grad(), _OffCard(device):
            for tensor in () if before else self.held:
                recorder.ledger.add_existing(tensor, "optimizer state")
            if run is not None:
                run()
        timeline = tape.Timeline(recorder.tape(), 0)
        if device == "cuda":
            timeline = tape.on_card(timeline, self.setting.threads)
        return replace(self.plan, _timeline=timeline, _workspace=self.plan._workspace // (2 if before else 1))


class _OffCard(TorchFunctionMode):
    """Copies to the computer's memory, of tensors on the meta device: a card only casts them; on a CPU they are made there."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.is_cpu = device == "cpu"

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != "to" or len(args) < 2 or args[1] != "cpu" or not args[0].is_meta:
            return func(*args, **kwargs)
        tensor, _, *rest = args
        dtype = next(iter(rest), kwargs.get("dtype", tensor.dtype))
        cast = tensor.to(dtype, copy=self.is_cpu and kwargs.get("copy", False))
        return cast if self.is_cpu else torch.zeros((), dtype=dtype).expand(tensor.shape)
