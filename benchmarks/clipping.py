"""Does clipping harm Adafactor, or help it?

    python -m benchmarks.clipping --json data/recorded/clipping-tiny.json

Full fine-tunes of tiny on emoji-ink, from the same weights, with the same pictures, levels and noise for one seed: gradients left
alone, clipped to a global norm as `max_grad_norm` does, and clipped tensor by tensor, which is what is left to a fused backward. A
norm of 1 clips some steps, 0.1 nearly all. AdamW beside Adafactor. The judge is the loss on pictures that were not trained on; the
table has its mean over the seeds, and the change against the same seed without clipping, in percent, with its 95% interval.

One thread is used, so that two of these can run side by side. A run that was interrupted goes on where it stopped.

Takes about an hour on two cores.
"""

import json
import statistics
from pathlib import Path

import torch

import sdnb

from . import report
from .fine_tune import Bench, Clipping

ARMS = {
    "Adafactor": [Clipping(), *(Clipping(kind, norm) for norm in (1.0, 0.1) for kind in ("global", "tensor"))],
    "AdamW": [Clipping(), Clipping("global", 1.0)],
}
RATES = {"Adafactor": 3e-4, "AdamW": 3e-4}


def against(changes: list[float]) -> str:
    """The mean of paired changes in percent, and its 95% interval where there is more than one."""
    if len(changes) < 2:
        return f"{changes[0]:+.2f}"
    middle, low, high = report.interval(changes)
    return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"


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


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--progress", type=Path, default=Path("build/clipping.jsonl"), help="where each finished run is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.progress.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in arguments.progress.read_text().splitlines()] if arguments.progress.exists() else []
    done = [run for run in done if run["steps"] == arguments.steps and run["seed"] < arguments.seeds]
    finished = {(run["optimizer"], run["clipping"], run["seed"]) for run in done}
    bench = Bench()
    before = bench.held_out_loss()
    for seed in range(arguments.seeds):
        for kind, arms in ARMS.items():
            for arm in arms:
                if (kind, str(arm), seed) in finished:
                    continue
                args = sdnb.Recipe().optimizer_args if kind == "Adafactor" else ()
                recipe = sdnb.Recipe(optimizer_type=kind, optimizer_args=args, learning_rate=RATES[kind])
                recipe = recipe.replace(seed=seed, lr_warmup_steps=50, max_train_steps=arguments.steps)
                result = bench.run(recipe, arm)
                run = {"optimizer": kind, "clipping": str(arm), "seed": seed, "steps": arguments.steps, "learning_rate": RATES[kind]}
                norms = [round(norm, 2) for norm in result.norms]
                run |= {"before": before, "held_out": result.held_out, "tensors_over_1": result.over, "norms": norms}
                done.append(run)
                with arguments.progress.open("a") as file:
                    file.write(json.dumps(run) + "\n")
                print(kind, arm, seed, f"{result.held_out:.4f}", flush=True)
    report.show(rows(done), arguments.json, runs=done)


if __name__ == "__main__":
    main()
