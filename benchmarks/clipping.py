"""Does clipping harm Adafactor, or help it?

    python -m benchmarks.clipping --json data/recorded/clipping-tiny.json

Full fine-tunes of tiny on emoji-ink, from the same weights, with the same pictures, levels and noise for one seed: gradients left
alone, clipped to a global norm as `max_grad_norm` does, and clipped tensor by tensor, which is what is left to a fused backward. A
norm of 1 clips some steps, 0.1 nearly all. AdamW beside Adafactor. The judge is the loss on pictures that were not trained on; the
table has its mean over the seeds, and the change against the same seed without clipping, in percent, with its 95% interval.

A second table has runs with a spike: halfway, the loss of one step is multiplied by a thousand. They are compared with the same run
without the spike.

One thread is used, so that two of these can run side by side. A run that was interrupted goes on where it stopped.

Takes about ninety minutes on two cores.
"""

import itertools
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

import sdnb

from . import report
from .fine_tune import Bench, Clipping

ARMS = {
    "Adafactor": [Clipping(), *(Clipping(kind, norm) for norm in (1.0, 0.1) for kind in ("global", "tensor"))],
    "AdamW": [Clipping(), Clipping("global", 1.0)],
}
SPIKED = [Clipping(), Clipping("global", 1.0), Clipping("tensor", 1.0)]
SHORT = 30
"""Steps of the short runs, those of lesson 05. A spike comes halfway through a run."""
RATES = {"Adafactor": 3e-4, "AdamW": 3e-4}


def against(changes: list[float]) -> str:
    """The mean of paired changes in percent, and its 95% interval where there is more than one."""
    if len(changes) < 2:
        return f"{changes[0]:+.2f}"
    middle, low, high = report.interval(changes)
    return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"


def key(run: dict) -> tuple:
    """What tells one run from the others."""
    return run["optimizer"], run["clipping"], run["seed"], run["steps"], run.get("spike_at")


def spiked(runs: list[dict]) -> list[dict]:
    """The runs with a spike, each with the held-out loss of the same run without it."""
    losses = {key(run): run["held_out"] for run in runs}
    return [run | {"no_spike": losses[*key(run)[:-1], None]} for run in runs if run.get("spike_at") is not None]


def spike_rows(runs: list[dict]) -> list[dict]:
    """How a spike changes the held-out loss, for each number of steps, optimizer and clipping."""
    groups: dict[tuple, list[float]] = {}
    for run in runs:
        change = 100 * (run["held_out"] / run["no_spike"] - 1)
        groups.setdefault((run["steps"], run["optimizer"], run["clipping"]), []).append(change)
    return [
        {
            "with a spike": kind,
            "clipping": clipping,
            "steps": steps,
            "seeds": len(changes),
            "against no spike, %": against(changes) if len(changes) > 2 else ", ".join(f"{change:+.2f}" for change in changes),
        }
        for (steps, kind, clipping), changes in groups.items()
    ]


def rows(runs: list[dict]) -> list[dict]:
    table = []
    for kind, arms in ARMS.items():
        off = {run["seed"]: run["held_out"] for run in runs if run["optimizer"] == kind and run["clipping"] == "off"}
        for arm in arms:
            mine = [run for run in runs if run["optimizer"] == kind and run["clipping"] == str(arm)]
            if not mine:
                continue
            losses = [run["held_out"] for run in mine]
            change = [100 * (run["held_out"] / off[run["seed"]] - 1) for run in mine]
            clipped = [norm > arm.norm for run in mine for norm in run["norms"]] if arm.kind == "global" else []
            table.append(
                {
                    "optimizer": kind,
                    "clipping": str(arm),
                    "seeds": len(mine),
                    "held-out loss": f"{statistics.mean(losses):.4f}",
                    "against off, %": against(change) if arm.kind != "off" else "",
                    "better in": f"{sum(value < 0 for value in change)} of {len(mine)}" if arm.kind != "off" else "",
                    "steps clipped": f"{sum(clipped) / len(clipped):.0%}" if clipped else "",
                }
            )
    return table


def plan(seeds: int, steps: int) -> Iterator[tuple[str, Clipping, int, int, int | None]]:
    """Optimizer, clipping, seed, steps and the step of the spike (None: no spike) of each run."""
    for seed in range(seeds):
        for kind, arms in ARMS.items():
            yield from ((kind, arm, seed, steps, None) for arm in arms)
    for seed in range(min(seeds, 4)):
        for kind, arm, spike_at in itertools.product(ARMS, SPIKED, (None, SHORT // 2)):
            yield kind, arm, seed, SHORT, spike_at
    for seed in range(min(seeds, 2)):
        yield from (("Adafactor", arm, seed, steps, steps // 2) for arm in SPIKED if arm.kind != "global")


def one_run(bench: Bench, kind: str, arm: Clipping, seed: int, steps: int, spike_at: int | None) -> dict:
    """The settings of one run, its held-out loss, and its gradient norms before clipping."""
    args = sdnb.Recipe().optimizer_args if kind == "Adafactor" else ()
    recipe = sdnb.Recipe(optimizer_type=kind, optimizer_args=args, learning_rate=RATES[kind])
    recipe = recipe.replace(seed=seed, lr_warmup_steps=8 if steps == SHORT else 50, max_train_steps=steps)
    result = bench.run(recipe, arm, spike_at=spike_at)
    norms = [round(norm, 2) for norm in result.norms]
    run = {"optimizer": kind, "clipping": str(arm), "seed": seed, "steps": steps, "spike_at": spike_at, "learning_rate": RATES[kind]}
    return run | {"held_out": result.held_out, "tensors_over_1": result.over, "norms": norms}


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--progress", type=Path, default=Path("build/clipping.jsonl"), help="where each finished run is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.progress.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.progress.read_text().splitlines() if arguments.progress.exists() else []
    done = {key(run): run for run in map(json.loads, lines)}
    bench = Bench()
    before = bench.held_out_loss()
    runs = []
    for kind, arm, seed, steps, spike_at in plan(arguments.seeds, arguments.steps):
        run = done.get((kind, str(arm), seed, steps, spike_at))
        if run is None:
            run = one_run(bench, kind, arm, seed, steps, spike_at) | {"before": before}
            with arguments.progress.open("a") as file:
                file.write(json.dumps(run) + "\n")
            print(*key(run), f"{run['held_out']:.4f}", flush=True)
        runs.append(run)
    calm = [run for run in runs if run["steps"] == arguments.steps and run.get("spike_at") is None]
    spikes = spiked(runs)
    report.show([*rows(calm), *spike_rows(spikes)], arguments.json, runs=calm, spikes=spikes)


if __name__ == "__main__":
    main()
