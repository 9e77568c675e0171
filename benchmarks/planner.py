"""How right is the planner, and how fast?

    python -m benchmarks.planner

The first table sets it beside torch's MemTracker and accelerate's rule (`accelerate estimate-memory`: training with Adam takes four
times the weights) for steps that are run on this CPU, where the truth is what the allocator's own events add up to. The second sets it
beside peaks that others measured on real cards and published; there, what their run did is known only as far as they say. The third
holds plans for sd-scripts to its own U-Nets, networks and optimizers, recorded on the meta device by `benchmarks.record_memory`. The last
is the planner's time for real models: a cold plan, then another optimizer, then another card.

On a GPU, `python -m benchmarks.gpu` compares it with what CUDA's allocator counts.

Takes about two minutes on two cores.
"""

import csv
import json
import time
from pathlib import Path

import numpy as np
import torch

from sdnb import Recipe, training
from sdnb.checkpointing import choices
from sdnb.memory.trace import GIB, MIB
from sdnb.models import skeletons
from sdnb.planner import measurements, planning
from sdnb.planner.measurements import Configuration
from sdnb.planner.report import MemoryPlan

from . import record_memory, report

ADAMW = dict(optimizer_type="AdamW", optimizer_args=())
RECIPES = {
    "AdamW": ADAMW,
    "Adafactor": {},
    "Adafactor, fused": dict(fused_backward_pass=True),
    "AdamW, checkpointing": dict(**ADAMW, gradient_checkpointing=True),
    "AdamW, LoRA of rank 8": dict(**ADAMW, others={"network_dim": 8, "network_train_unet_only": True}),
}
SIDE = 128
PUBLISHED = Path(__file__).resolve().parent / "published_memory.csv"
"""Peaks that others published, 478 rows. `mark` says which are planned: a `figure`; a `bound`, which says that a run fits; or `no`, and
`why` says why not. Of a figure `reading` is the counter that was read: what torch allocated, what it reserved, or the card's use."""
CARDS = {"Tesla T4 16GB": "t4", "T4 (Colab)": "t4", "H100 80GB": "h100", "L40S 48GB": 48 * GIB}
CONTEXT = GIB // 2
"""Bytes of a card in use that torch does not count: the context of the process. 0.3 to 0.6 GiB on most cards."""


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


def planned_as_published(row: dict) -> MemoryPlan:
    """Plan of a row that is marked as a figure or a bound."""
    recipe = Recipe.parse(row["settings"])
    card = CARDS.get(row["card"], "rtx4090" if row["card"].startswith("24GB") else None)
    return planning.plan(MODELS[row["model"]], recipe, resolution=int(row["side"].split()[0]), gpu=card, trainer=row["trainer"])


MODELS = {"SD 1.4": "sd15", "SD 1.x": "sd15", "SDXL": "sdxl"}


def published() -> list[dict]:
    """Plans beside published peaks, the furthest off first; then those that only say that a run fits; then what sums it up."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        marked = [row for row in csv.DictReader(file) if row["mark"] != "no"]
    figures, bounds, errors = [], [], []
    for row in marked:
        made = planned_as_published(row)
        sizes = {"allocated": made.allocated_bytes, "reserved": made.reserved_bytes, "card": made.reserved_bytes + CONTEXT}
        size, limit = sizes[row["reading"]] / GIB, float(row["gib"].lstrip("<="))
        shown = {
            "published": f"{row['program']}, {row['model']}, {row['batch']} × {row['side']}, {row['card']}",
            "GiB": row["gib"],
            "planned": f"{size:.2f}",
            "off": f"{size / limit - 1:+.1%}",
            "allocated": f"{sizes['allocated'] / GIB:.2f}",
            "reserved": f"{sizes['reserved'] / GIB:.2f}",
            "reading": row["reading"],
            "SimpleTuner's formula": f"{simpletuner_formula(made.size[0], made.recipe.train_batch_size, made.recipe.wants_lora):.0f} GiB",
            "settings": row["settings"].replace("--", ""),
        }
        if row["mark"] == "figure":
            errors.append(abs(size / limit - 1))
            figures.append((errors[-1], shown))
        else:
            bounds.append({**shown, "off": "fits" if size <= limit else "does not"})
    ordered = [shown for _, shown in sorted(figures, key=lambda pair: -pair[0])]
    median, most = np.median(errors), np.quantile(errors, 0.9)
    return [*ordered, *bounds, {"published": f"{len(errors)} figures: |off| {median:.1%} in the median, {most:.1%} for 90%"}]


def planned_for_sd_scripts(row: dict) -> MemoryPlan:
    """Plan of a row of `record_memory`."""
    recipe = Recipe.parse(f"--cache_latents --train_batch_size={row['batch']} {row['flags']}")
    return planning.plan(row["model"], recipe, resolution=row["side"], trainer="sd-scripts", attention="flash")


def of_sd_scripts() -> list[dict]:
    """`plan(trainer="sd-scripts")` beside its own U-Nets, networks and optimizers, run on the meta device."""
    rows = []
    for row in json.loads(record_memory.FACTS.read_text(encoding="utf-8"))["rows"]:
        start = time.perf_counter()
        made = planned_for_sd_scripts(row)
        peak, took = made.peak_bytes - made._workspace, time.perf_counter() - start
        peaks = {name: size - made._workspace for name, size in made.peaks.items()}
        if made.recipe.fused_backward_pass:  # recorded is what ran in backward, the optimizer's steps included
            peaks["backward"] = max(peaks["backward"], peaks["optimizer"])
        phases = {name: peaks[name] / size - 1 for name, size in row["phases"].items()}
        rows.append(
            {
                "sd-scripts on meta": f"{row['script']} {row['side']} × {row['batch']}",
                "GiB": f"{row['peak'] / GIB:.2f}",
                "planned": f"{peak / row['peak'] - 1:+.2%}",
                **{name: f"{phases[name]:+.2%}" for name in phases},
                "between steps": f"{(made.static_bytes - made._workspace) / row['static'] - 1:+.2%}",
                "reserved": f"{made.reserved_bytes / row['reserved'] - 1:+.1%}",
                "s": f"{took:.1f}",
                "flags": row["flags"].replace("--", ""),
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
    parser.add_argument("--only", choices=["beside", "published", "sd-scripts", "speed"])
    arguments = parser.parse_args()
    tables = {"beside": beside, "published": published, "sd-scripts": of_sd_scripts, "speed": speed}
    rows = [row for name, table in tables.items() if arguments.only in (None, name) for row in table()]
    report.show(rows, arguments.json)


if __name__ == "__main__":
    main()
