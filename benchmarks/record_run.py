"""Record a training run, to be played again with `sdnb.replay`.

    python -m benchmarks.record_run --name tiny-cpu --json data/recorded/run-tiny-cpu.json

Each step's record holds what the live plot draws: loss, learning rate, seconds, the peaks of each phase, the allocator's counts and what
the card says of itself. `python -m benchmarks.gpu` records one, too, named after the card. The model's weights are not kept.
"""

import time
from pathlib import Path

import sdnb
from sdnb.memory import Gauges
from sdnb.planner import measurements

from . import report


def recorded(model: str, pictures: str, steps: int, batch: int, save: str | None = None) -> tuple[list[dict], dict]:
    """Train and watch: the steps' records, and what else a recording holds."""
    sd, there = sdnb.load(model), sdnb.pictures(pictures)
    recipe = sdnb.Recipe(train_batch_size=batch, learning_rate=2e-4)
    start = time.perf_counter()
    run = sdnb.live(sdnb.train(sd, there, recipe, steps=steps), save=save)
    for _ in run:
        pass
    seconds = time.perf_counter() - start
    rows = [{field: _short(value) for field, value in record.items() if value is not None} for record in run.history]
    return rows, dict(
        title=f"{model} on {pictures}, batch {batch}",
        recipe=recipe.to_flags(),
        capacity_bytes=run.scene().capacity_bytes,
        may_spill=Gauges().may_spill,
        seconds=round(seconds, 1),
        frames=run.frames,
        share_of_time_spent_drawing=round(run.drawing_seconds / seconds, 4),
    )


def _short(value: object) -> object:
    """Six digits are enough for a plot."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write(path: Path, command: str, rows: list[dict], facts: dict) -> Path:
    """The file that `sdnb.replay` reads."""
    return measurements.write(path, {"command": command, "machine": report.machine(), "rows": rows, **facts})


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--pictures", default="emoji-ink")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--name", default="tiny", help="what `sdnb.replay` will call it")
    arguments = parser.parse_args()
    save = f"build/run-{arguments.name}.png"
    rows, facts = recorded(arguments.model, arguments.pictures, arguments.steps, arguments.batch, save)
    report.show(rows if arguments.json else rows[-1:], arguments.json, **facts)


if __name__ == "__main__":
    main()
