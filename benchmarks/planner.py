"""How right is the planner, and how fast?

    python -m benchmarks.planner

The first table sets it beside torch's MemTracker and accelerate's rule (`accelerate estimate-memory`: training with Adam takes four
times the weights) for steps that are run on this CPU, where the truth is what the allocator's own events add up to. The second sets it
beside peaks that others measured on real cards and published; there, what their run did is known only as far as they say. The third is
the planner's time for real models: a cold plan, then another optimizer, then another card.

On a GPU, `python -m benchmarks.gpu` compares it with what CUDA's allocator counts.

Takes about two minutes on two cores.
"""

import time

import torch

from sdnb import Recipe, training
from sdnb.checkpointing import choices
from sdnb.lora import files
from sdnb.memory.trace import GIB, MIB
from sdnb.models import skeletons
from sdnb.planner import measurements, planning
from sdnb.planner.measurements import Configuration

from . import report

ADAMW = dict(optimizer_type="AdamW", optimizer_args=())
RECIPES = {
    "AdamW": ADAMW,
    "Adafactor": {},
    "Adafactor, fused": dict(fused_backward_pass=True),
    "AdamW, checkpointing": dict(**ADAMW, gradient_checkpointing=True),
    "AdamW, LoRA of rank 8": dict(**ADAMW, others={"network_dim": 8, "network_train_unet_only": True}),
}
SIDE = 128
CACHED = {"cache_latents": True, "cache_text_encoder_outputs": True, "network_train_unet_only": True}
PUBLISHED = [  # what was run, where, GiB, the model, the side in pixels, the recipe
    ("SD 1.x, LoRA of rank 16", "H100", 2.87, "sd15", 512, dict(others={**CACHED, "network_dim": 16})),
    ("SD 1.x, LoRA of rank 16", "L40S", 2.83, "sd15", 512, dict(others={**CACHED, "network_dim": 16})),
    ("the same, checkpointing", "H100", 1.98, "sd15", 512, dict(others={**CACHED, "network_dim": 16}, gradient_checkpointing=True)),
    ("the same, checkpointing", "L40S", 1.93, "sd15", 512, dict(others={**CACHED, "network_dim": 16}, gradient_checkpointing=True)),
    ("SDXL, LoKr", "H100", 13.03, "sdxl", 1024, dict(others={**CACHED, "network_dim": 16})),
    ("SDXL, LoKr", "L40S", 12.98, "sdxl", 1024, dict(others={**CACHED, "network_dim": 16})),
    ("the same, checkpointing", "H100", 6.53, "sdxl", 1024, dict(others={**CACHED, "network_dim": 16}, gradient_checkpointing=True)),
    ("the same, checkpointing", "L40S", 6.48, "sdxl", 1024, dict(others={**CACHED, "network_dim": 16}, gradient_checkpointing=True)),
]
"""SimpleTuner, documentation/experimental/SEGMENTED_CHECKPOINTING.md at commit bc8e6ab, the rows in bf16: batch 1, AdamW, latents and
captions cached. Which of the allocator's counters they read is not said. Planned is a LoRA, on the attention's projections, throughout."""
ROOMS = {"H100": "h100", "L40S": 48 * 2**30}


def configuration(recipe: Recipe) -> Configuration:
    """Tiny, trained by `recipe`."""
    return Configuration("tiny", (SIDE, SIDE), recipe, recompute="full" if recipe.gradient_checkpointing else "none")


def truth(recipe: Recipe) -> int:
    """Bytes that the CPU allocator handed out at most, for model, batch and two steps of tiny."""
    return measurements.measure(configuration(recipe), device="cpu", steps=2)["counted"]["allocated"]


def mem_tracker(recipe: Recipe) -> tuple[int, float]:
    """torch's own tracker around two steps on real tensors of tiny, and the seconds they took."""
    from torch.distributed._tools.mem_tracker import MemTracker

    run = measurements.Run.of(configuration(recipe), "cpu")
    sd, batch, optimizer = run.sd, run.batch, run.optimizer
    tracker = MemTracker()
    tracker.track_external(sd.unet, sd.vae, sd.text_encoder, optimizer, batch.latents, batch.context, batch.noise, batch.t)
    start = time.perf_counter()
    with tracker, choices.Applied(sd.unet, run.choice):
        for _ in range(2):
            training.training_step(sd, batch, recipe, optimizer)
            tracker.reset_mod_stats()  # it follows one step of a module only
    took = time.perf_counter() - start
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"], took


def beside() -> list[dict]:
    """The planner, MemTracker and accelerate's rule beside the truth."""
    rows = []
    for name, settings in RECIPES.items():
        recipe = Recipe(**settings)
        real = truth(recipe)
        planning._by_name.clear()
        start = time.perf_counter()
        ours = planning.plan("tiny", recipe, resolution=SIDE, device="cpu").peak_bytes
        took = time.perf_counter() - start
        try:
            theirs, seconds = mem_tracker(recipe)
            tracked = f"{theirs / real - 1:+.2%} in {seconds:.1f} s"
        except RuntimeError as error:  # it registers hooks on weights that are frozen
            tracked = f"cannot: {str(error).splitlines()[0][:60]}"
        rule = 4 * sum(p.numel() * p.element_size() for p in skeletons.skeleton("tiny").unet.parameters())
        rows.append(
            {
                "tiny, 128 pixels, batch 2": name,
                "truth": f"{real / MIB:,.1f} MiB",
                "planner": f"{ours / real - 1:+.2%} in {took:.1f} s",
                "MemTracker": tracked,
                "accelerate's rule": f"{rule / real - 1:+.0%}",
            }
        )
    return rows


def simpletuner_formula(side: int, batch_size: int, is_lora: bool) -> float:
    """GiB, as SimpleTuner's configuration page estimates them (validation_service.py at the same commit), whatever the model."""
    return (12 if is_lora else 24) * batch_size * (side / 512) ** 2


def published() -> list[dict]:
    """The planner, SimpleTuner's formula and accelerate's rule beside published peaks."""
    rows = []
    for what, card, measured, name, side, settings in PUBLISHED:
        recipe = Recipe(**ADAMW, mixed_precision="bf16", train_batch_size=1, **settings)
        sd = skeletons.skeleton(name, dtype=torch.bfloat16)
        weights = sum(p.numel() for p in sd.unet.parameters())
        files.add(sd, rank=16, alpha=16, targets="attention")
        made = planning.plan(sd, recipe, resolution=side, gpu=ROOMS[card])
        rows.append(
            {
                "published run": what,
                "card": card,
                "measured": f"{measured:.2f} GiB",
                "planned, allocated": f"{made.allocated_bytes / GIB / measured - 1:+.1%}",
                "planned, reserved": f"{made.reserved_bytes / GIB / measured - 1:+.1%}",
                "SimpleTuner's formula": f"{simpletuner_formula(side, 1, True) / measured - 1:+.0%}",
                "accelerate's rule, bf16": f"{4 * 2 * weights / GIB / measured - 1:+.0%}",
            }
        )
    return rows


def speed() -> list[dict]:
    """Seconds for plans of real models, on the meta device."""
    rows = []
    planning.plan("tiny", Recipe())  # imports
    for name in ("sd15", "sdxl"):
        seconds = []
        eight_bits = {**ADAMW, "optimizer_type": "AdamW8bit"}
        for settings, gpu in ((ADAMW, "rtx4090"), (eight_bits, "rtx4090"), ({}, "rtx4090"), (ADAMW, "t4"), ({}, "t4")):
            start = time.perf_counter()
            peak = planning.plan(name, Recipe(**settings, train_batch_size=1), gpu=gpu).peak_bytes
            seconds.append((time.perf_counter() - start, peak))
        rows.append(
            {
                "model": name,
                "cold plan": f"{seconds[0][0]:.2f} s",
                "then AdamW8bit": f"{seconds[1][0]:.3f} s",
                "then Adafactor": f"{seconds[2][0]:.3f} s",
                "another card": f"{seconds[3][0]:.3f} s",
                "both seen before": f"{seconds[4][0]:.3f} s",
                "AdamW": f"{seconds[0][1] / GIB:.2f} GiB",
                "Adafactor": f"{seconds[2][1] / GIB:.2f} GiB",
            }
        )
    return rows


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--only", choices=["beside", "published", "speed"])
    arguments = parser.parse_args()
    tables = {"beside": beside, "published": published, "speed": speed}
    rows = [row for name, table in tables.items() if arguments.only in (None, name) for row in table()]
    report.show(rows, arguments.json)


if __name__ == "__main__":
    main()
