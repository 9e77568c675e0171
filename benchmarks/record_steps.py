"""The steps that `sdnb.timeline` plays: sdnb/planner/playbacks.json.

    python -m benchmarks.record_steps

Takes about half a minute on two cores.

Each is the second of two training steps on the meta device, by the package's own `training_step` and the real optimizer: `tiny` with a
CPU's kernels, as lesson 02 runs it, and Stable Diffusion 1.5 at 512 pixels with a GPU's, with the allocator's rounding and cuBLAS'
workspaces. `plan` joins a step and an optimizer that it has recorded apart, so that the two can be held to each other.
"""

from __future__ import annotations

import argparse
import itertools
import json

from sdnb import checkpointing, prepare, training
from sdnb.adafactor import META_DEVICE_TYPE
from sdnb.datasets import Batch
from sdnb.models import skeletons
from sdnb.planner import allocator, tape
from sdnb.planner.meta_step import MetaAccelerator
from sdnb.planner.playback import Names, Playback
from sdnb.planner.timeline_page import FILE, OPTIONS, Variant
from sdnb.system import cards
from sdnb.system.files import write

ON_CARD = {"sd15": True, "tiny": False}
THREADS = cards.CARDS["rtx3090"].resident_threads
"""Threads that run at once on the card that `plan` supposes without one."""


def record(variant: Variant, names: Names | None = None) -> Playback:
    """Playback of the second step. `names`: those that it shares with others."""
    recipe, on_card = variant.recipe(), ON_CARD[variant.model]
    kernels = "cuda" if on_card else "cpu"
    sd = skeletons.skeleton(variant.model)
    ready = prepare.prepare(sd, recipe, size=(sd.resolution, sd.resolution), planned=True)
    for part in sd.learners.values():
        part.train()
    for group in ready.optimizer.param_groups if on_card else ():
        if group.get("foreach", 0) is None:
            group["foreach"] = True  # as torch does on CUDA, but not on meta
    batch = Batch.example(sd, ready.key.pictures, ready.key.size, tokens=ready.key.tokens)
    recorder = tape.Recorder({part: getattr(sd, part) for part in ready.key.resident}, kernels=kernels)
    accelerator = MetaAccelerator(recipe.mixed_precision, 1)
    token, second = META_DEVICE_TYPE.set(kernels), 0
    with (
        checkpointing.Applied(sd.denoiser, ready.recomputed),
        accelerator.prepared(list(sd.learners.values()), kernels),
        recorder.recording(),
    ):
        for _ in range(2):
            second = len(recorder.ledger.events)
            training.training_step(sd, batch, recipe, ready.optimizer, accelerator=accelerator)
    META_DEVICE_TYPE.reset(token)
    changes = tape.on_card(tape.Timeline(recorder.tape(), second), THREADS).tape.changes.tolist()
    unit, workspaces = (allocator.REQUEST_MULTIPLE, allocator.WORKSPACES["other"]) if on_card else (1, 0)
    return Playback.of(recorder.trace, start=second, changes=changes, unit=unit, workspaces=workspaces, names=names)


def main() -> None:
    """Record every variant."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    names, steps = Names(), {}
    for choice in itertools.product(*OPTIONS.values()):
        variant = Variant(**dict(zip(OPTIONS, choice, strict=True)))
        played = record(variant, names)
        steps[variant.key] = played.as_dict()
        print(f"{variant.key:40}{len(played.frames):6} frames{played.totals.max() / 2**20:12,.2f} MiB", flush=True)
    rows = [f"{_packed(key)}: {_packed(step)}" for key, step in steps.items()]
    path = write(FILE, f'{{"names": {_packed(names.as_dict())},\n"steps": {{\n' + ",\n".join(rows) + "\n}}\n")
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def _packed(data: object) -> str:
    return json.dumps(data, separators=(",", ":"))


if __name__ == "__main__":
    main()
