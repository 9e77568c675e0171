"""Seconds a step with compiled blocks beside those without, and the seconds that compiling takes.

    python -m benchmarks.compiling [--json FILE] [--backends eager aot_eager]

Trains tiny, all weights and a LoRA, with and without recomputing. The runs without compiling and with each backend take turns, and the
table has the ratio of their median steps. Run it where nothing else runs. With `--backends inductor` a C++ compiler makes the
kernels, for minutes; a second run finds them on the disk.

Takes about six minutes on two cores.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
import warnings

import sdnb
from sdnb import Recipe

from . import report

KINDS = {
    "all weights": {},
    "all weights, recomputed": {"gradient_checkpointing": True},
    "LoRA": {"network_dim": 8, "network_train_unet_only": True},
}
ADAMW = Recipe(optimizer_type="AdamW", optimizer_args=(), lr_scheduler="constant", lr_warmup_steps=0, cache_latents=True)


def main() -> None:
    """Measure, and print the table."""
    parser = report.parser(__doc__)
    parser.add_argument("--backends", nargs="+", default=["eager", "aot_eager"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    model, pictures, rows = sdnb.load("tiny"), sdnb.pictures("emoji-ink")[:8], []
    for kind, settings in KINDS.items():
        recipe = ADAMW.replace(resolution=arguments.size, train_batch_size=4, others=settings)
        for backend in arguments.backends:
            compiled = recipe.replace(others={**settings, "cache_latents": True, "torch_compile": True, "dynamo_backend": backend})
            plain, first, steps = [], 0.0, []
            for turn in range(2):
                plain += seconds(model, pictures, recipe, arguments.steps)[1:]
                before, *later = seconds(model, pictures, compiled, arguments.steps)
                first, steps = first if turn else before, steps + later
            ratio = statistics.median(steps) / statistics.median(plain)
            rows.append({"trained": kind, "backend": backend, "time of a step": f"{ratio:.2f}×", "first step": f"{first:.1f} s"})
    report.show(rows, arguments.json)


def seconds(model, pictures, recipe: Recipe, steps: int) -> list[float]:
    """Seconds of each step of one run."""
    parts = {name: copy.deepcopy(part) for name, part in model.parts.items()}
    run = sdnb.train(dataclasses.replace(model, **parts), pictures, recipe, steps=steps)
    found, begun = [], time.perf_counter()
    for step in run:
        float(step.loss)  # on a GPU, wait for it
        found.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    return found


if __name__ == "__main__":
    main()
