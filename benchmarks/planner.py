"""How right is the planner, and how fast?

    python -m benchmarks.planner
    python -m benchmarks.planner --record      # on a GPU

The first table sets it beside torch's MemTracker and accelerate's rule (`accelerate estimate-memory`: training with Adam takes four
times the weights) for steps that are run on this CPU, where the truth is what the allocator's own events add up to. The second sets it
beside peaks that others measured on real cards and published; there, what their run did is known only as far as they say. The third is
the planner's time for real models: a cold plan, then another optimizer, then another card.

With `--record` it trains SD 1.5 and SDXL with random weights on the GPU at hand, a few steps of each recipe, and stores what CUDA's
allocator counted in data/recorded/, where the tests compare the planner with it.

Takes about two minutes on two cores.
"""

import gc
import json
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import sdnb
from sdnb import Recipe, checkpointing, launching, lora, optim, planner, skeletons, training
from sdnb.memory import GIB, MIB

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


def filled(batch: training.Batch, device: str) -> training.Batch:
    """Real tensors in the shapes of a batch on the meta device."""

    def real(tensor):
        return torch.randn(tensor.shape, device=device) if tensor.is_floating_point() else torch.full(tensor.shape, 500, device=device)

    added = batch.added and {name: real(value) for name, value in batch.added.items()}
    return training.Batch(real(batch.latents), real(batch.context), real(batch.noise), real(batch.t), added)


def ready(sd, recipe: Recipe):
    """Puts a recipe's adapters in and returns its optimizer."""
    adapters = lora.asked(recipe)
    if adapters:
        lora.add(sd, **vars(adapters))
    else:
        sd.unet.requires_grad_(True)
    return optim.optimizer(recipe, [p for p in sd.unet.parameters() if p.requires_grad])


def run(sd, recipe: Recipe, optimizer, batch: training.Batch, choice: dict, steps: int) -> None:
    accelerator = launching.accelerator(sd, recipe)
    with checkpointing.Applied(sd.unet, choice), training.training_mode(sd, accelerator, optimizer) as (prepared, stepped):
        for _ in range(steps * recipe.gradient_accumulation_steps):
            with accelerator.accumulate(prepared.unet):
                training.training_step(prepared, batch, recipe, stepped, accelerator=accelerator)


def choice_of(sd, recipe: Recipe, size: tuple[int, int]) -> dict:
    shapes = planner.example_batch(sd, recipe.train_batch_size, size)
    dtype = next(sd.unet.parameters()).dtype
    inputs = {"sample": shapes.latents.to(dtype), "timestep": shapes.t, "encoder_hidden_states": shapes.context.to(dtype)}
    if shapes.added:
        inputs["added_cond_kwargs"] = {name: value.to(dtype) for name, value in shapes.added.items()}
    return checkpointing.resolve(sd.unet, "full" if recipe.gradient_checkpointing else "none", inputs)


def truth(recipe: Recipe) -> int:
    """Bytes that were there, and what the CPU allocator handed out at most on top, over two steps of tiny."""
    sd = sdnb.load("tiny", device="cpu")
    optimizer = ready(sd, recipe)
    batch = filled(planner.example_batch(sd, recipe.train_batch_size, (SIDE, SIDE)), "cpu")
    there = [*(t for part in (sd.unet, sd.vae, sd.text_encoder) for t in (*part.parameters(), *part.buffers()))]
    there += [batch.latents, batch.context, batch.noise, batch.t, sd.noise_scheduler.alphas_cumprod]
    choice = choice_of(sd, recipe, (SIDE, SIDE))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run(sd, recipe, optimizer, batch, choice, 2)
    live = most = 0
    for event in sorted((e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return sum(t.numel() * t.element_size() for t in there) + most


def mem_tracker(recipe: Recipe) -> tuple[int, float]:
    """torch's own tracker around two steps on real tensors of tiny, and the seconds they took."""
    from torch.distributed._tools.mem_tracker import MemTracker

    sd = sdnb.load("tiny", device="cpu")
    optimizer = ready(sd, recipe)
    batch = filled(planner.example_batch(sd, recipe.train_batch_size, (SIDE, SIDE)), "cpu")
    choice = choice_of(sd, recipe, (SIDE, SIDE))
    tracker = MemTracker()
    tracker.track_external(sd.unet, sd.vae, sd.text_encoder, optimizer, batch.latents, batch.context, batch.noise, batch.t)
    start = time.perf_counter()
    with tracker, checkpointing.Applied(sd.unet, choice):
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
        planner._made.clear()
        start = time.perf_counter()
        ours = planner.plan("tiny", recipe, resolution=SIDE, device="cpu").peak_bytes
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
        lora.add(sd, rank=16, alpha=16, targets="attention")
        made = planner.plan(sd, recipe, resolution=side, gpu=ROOMS[card])
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
    planner.plan("tiny", Recipe())  # imports
    for name in ("sd15", "sdxl"):
        seconds = []
        eight_bits = {**ADAMW, "optimizer_type": "AdamW8bit"}
        for settings, gpu in ((ADAMW, "rtx4090"), (eight_bits, "rtx4090"), ({}, "rtx4090"), (ADAMW, "t4"), ({}, "t4")):
            start = time.perf_counter()
            peak = planner.plan(name, Recipe(**settings, train_batch_size=1), gpu=gpu).peak_bytes
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


def recorded_recipes() -> list[tuple[str, int, dict]]:
    """Model, resolution and settings of every run that `--record` makes."""
    runs = []
    for name, sides in (("sd15", (512, 768)), ("sdxl", (768, 1024))):
        for side in sides:
            for more in (dict(), dict(gradient_checkpointing=True)):
                runs += [
                    (name, side, dict(**more, mixed_precision="bf16", train_batch_size=1)),
                    (name, side, dict(**more, mixed_precision="bf16", train_batch_size=2, fused_backward_pass=True)),
                    (
                        name,
                        side,
                        dict(**more, mixed_precision="bf16", train_batch_size=1, fused_backward_pass=True, others={"full_bf16": True}),
                    ),
                    (
                        name,
                        side,
                        dict(
                            **more,
                            **ADAMW,
                            mixed_precision="bf16",
                            train_batch_size=2,
                            others={"network_dim": 16, "network_train_unet_only": True},
                        ),
                    ),
                    (name, side, dict(**more, **ADAMW, mixed_precision="bf16", train_batch_size=1)),
                ]
    return runs


def record(folder: Path) -> Path:
    """Run them on the GPU and store what its allocator counted."""
    if not torch.cuda.is_available():
        raise SystemExit("--record trains on a GPU, and torch finds none here")
    rows = []
    for name, side, settings in recorded_recipes():
        recipe = Recipe(**settings)
        gc.collect()
        torch.cuda.empty_cache()
        try:
            sd = skeletons.skeleton(name, dtype=planner._dtype(recipe, lora.asked(recipe), None, name))
            sd.unet.to_empty(device="cuda")
            with torch.no_grad():
                for parameter in sd.unet.parameters():
                    parameter.normal_(std=0.02)
            optimizer = ready(sd, recipe)
            batch = filled(planner.example_batch(sd, recipe.train_batch_size, (side, side)), "cuda")
            choice = choice_of(sd, recipe, (side, side))
            torch.cuda.reset_peak_memory_stats()
            run(sd, recipe, optimizer, batch, choice, 3)
            torch.cuda.synchronize()
            counted = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        except torch.cuda.OutOfMemoryError:
            counted = None
        sd = optimizer = batch = None
        rows.append({"model": name, "resolution": side, "settings": settings, "counted": counted})
        print(rows[-1], flush=True)
    gpu = torch.cuda.get_device_name()
    path = folder / f"planner-{''.join(c if c.isalnum() else '-' for c in gpu.lower())}.json"
    content = {"command": "python -m benchmarks.planner --record", "gpu": gpu, "machine": report.machine(), "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--record", action="store_true", help="train on the GPU at hand and store what its allocator counts")
    parser.add_argument("--only", choices=["beside", "published", "speed"])
    arguments = parser.parse_args()
    if arguments.record:
        print(record(sdnb.data.bundled("recorded")))
        return
    tables = {"beside": beside, "published": published, "speed": speed}
    rows = [row for name, table in tables.items() if arguments.only in (None, name) for row in table()]
    report.show(rows, arguments.json)


if __name__ == "__main__":
    main()
