"""When does warmup decide whether a model learns?

    python -m benchmarks.warmup --json data/recorded/warmup-tiny.json

Each run has 160 steps of AdamW with 8 pictures in a batch and no clipping, with a warmup of 50 steps and without, from two starts:
random weights, trained on seven of eight colour emoji and judged by the eighth; and tiny's own weights, fine-tuned on the ink drawings
and judged by those that are held out. Runs of one seed have the same weights at the start, pictures, levels and noise.

The table has the mean of the held-out loss over the seeds, and how the warmup changes the loss of the same seed, in percent, with its 95%
interval. What is called small or nothing was fixed before the runs (`SMALL`, `NOTHING`). Both rates were chosen by runs of seeds 0 and
100, which are not among those that count. The recording has four seeds from random weights and three from trained ones.

One thread is used, so that two of these can run side by side. A run that was interrupted goes on where it stopped.

Takes about half an hour on two cores.
"""

import copy
import json
import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

import sdnb
from sdnb import optim, training
from sdnb.datasets import Cache, Pictures
from sdnb.models import Model

from . import report
from .clipping import against

STARTS = {"random": "random weights, emoji", "trained": "tiny, emoji-ink"}
RATES = (3e-3, 1e-3)
WARMUP = 50
BATCH = 8
SMALL = 5.0
"""A change of the held-out loss is small if its whole interval is within this many percent of 0."""
NOTHING = 0.9
"""A run that ends with at least this held-out loss has learned nothing: a prediction of zeros has 1."""
EACH = 10
"""Steps of which the recorded training losses are the means."""


class Bench:
    """One start: the model, the batches that it is trained on, and those that judge it."""

    def __init__(self, start: str) -> None:
        self.sd, self.start = sdnb.load("tiny"), start
        emoji = sdnb.pictures("emoji").items
        if start == "random":
            shown, held_out = Pictures(tuple(p for place, p in enumerate(emoji) if place % 8), ()), Pictures(emoji[::8], ())
        else:
            shown, held_out = sdnb.pictures("emoji-ink"), sdnb.pictures("emoji-ink/held_out")
        self._cache = Cache(self.sd, shown, sdnb.Recipe(train_batch_size=BATCH))
        judge = Cache(self.sd, held_out, sdnb.Recipe(train_batch_size=32, seed=99))
        self._judges = [judge.batch(number) for number in range(4)]

    def model(self, seed: int) -> Model:
        """The model with a U-Net of its own: the trained one, or random weights drawn from `seed`."""
        unet = copy.deepcopy(self.sd.unet)
        if self.start == "random":
            torch.manual_seed(seed)
            unet = type(unet).from_config(unet.config)
        return replace(self.sd, unet=unet.train())

    def run(self, recipe: sdnb.Recipe) -> dict:
        """Train once, and return the held-out loss, how large the numbers before the last normalisation are, and the training losses."""
        model, sizes, losses = self.model(recipe.seed or 0), [], []
        model.unet.conv_norm_out.register_forward_pre_hook(lambda _, args: sizes.append(args[0].std().item()))
        self._cache.recipe = recipe
        weights = list(model.unet.parameters())
        optimizer = optim.optimizer(recipe, weights)
        schedule = optim.schedule(recipe, optimizer, steps=recipe.max_train_steps)
        for step in range(recipe.max_train_steps):
            loss = training.denoising_loss(model, self._cache.batch(step), recipe)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        inside = round(sizes[-1], 2)
        with torch.no_grad():
            held_out = statistics.mean(training.denoising_loss(model, batch, recipe).item() for batch in self._judges)
        means = [round(statistics.mean(losses[first : first + EACH]), 3) for first in range(0, len(losses), EACH)]
        return {"held_out": held_out, "inside": inside, "losses": means}


def lost(losses: Iterable[float]) -> int:
    """How many of the runs learned nothing."""
    return sum(loss >= NOTHING for loss in losses)


def rows(runs: list[dict]) -> list[dict]:
    """One row for each start and rate that has runs with and without warmup."""
    table = []
    for start, name in STARTS.items():
        for rate in RATES:
            mine = [run for run in runs if run["start"] == start and run["learning_rate"] == rate]
            cold, warm = ({run["seed"]: run["held_out"] for run in mine if bool(run["warmup"]) == kind} for kind in (False, True))
            seeds = sorted(cold.keys() & warm.keys())
            if not seeds:
                continue
            table.append(
                {
                    "start": name,
                    "learning rate": f"{rate:g}",
                    "seeds": len(seeds),
                    "without warmup": f"{statistics.mean(cold[seed] for seed in seeds):.3f}",
                    "with": f"{statistics.mean(warm[seed] for seed in seeds):.3f}",
                    "change by warmup, %": against([100 * (warm[seed] / cold[seed] - 1) for seed in seeds]),
                    "learned nothing": f"{lost(cold.values())} without, {lost(warm.values())} with",
                }
            )
    return table


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--progress", type=Path, default=Path("build/warmup.jsonl"), help="where each finished run is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.progress.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in arguments.progress.read_text().splitlines()] if arguments.progress.exists() else []
    done = [run for run in done if run["steps"] == arguments.steps and run["seed"] <= arguments.seeds]
    finished = {(run["start"], run["learning_rate"], run["warmup"], run["seed"]) for run in done}
    benches = {start: Bench(start) for start in STARTS}
    for seed in range(1, arguments.seeds + 1):
        for start, rate, warmup in [(start, rate, warmup) for start in STARTS for rate in RATES for warmup in (0, WARMUP)]:
            if (start, rate, warmup, seed) in finished:
                continue
            recipe = sdnb.Recipe(optimizer_type="AdamW", optimizer_args=(), learning_rate=rate, lr_warmup_steps=warmup)
            recipe = recipe.replace(lr_scheduler="constant_with_warmup" if warmup else "constant", train_batch_size=BATCH)
            result = benches[start].run(recipe.replace(seed=seed, max_train_steps=arguments.steps))
            run = {"start": start, "learning_rate": rate, "warmup": warmup, "seed": seed, "steps": arguments.steps, **result}
            done.append(run)
            with arguments.progress.open("a") as file:
                file.write(json.dumps(run) + "\n")
            print(start, f"{rate:g}", warmup, seed, f"{result['held_out']:.4f}", flush=True)
    report.show(rows(done), arguments.json, runs=done, small_percent=SMALL, nothing=NOTHING, each=EACH)


if __name__ == "__main__":
    main()
