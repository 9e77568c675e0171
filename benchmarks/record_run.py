"""Record a training run, to be played again with `sdnb.replay`.

    python -m benchmarks.record_run --name tiny-cpu --json data/recorded/run-tiny-cpu.json

Each step's record holds what the live plot draws: loss, learning rate, seconds, the peaks of each phase, the allocator's counts and what
the card says of itself. On a GPU, name the recording after it. The model's weights are not kept.
"""

import time

import sdnb

from . import report


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--pictures", default="emoji-ink")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--name", default="tiny", help="what `sdnb.replay` will call it")
    arguments = parser.parse_args()

    sd, pictures = sdnb.load(arguments.model), sdnb.pictures(arguments.pictures)
    recipe = sdnb.Recipe(train_batch_size=arguments.batch, learning_rate=2e-4)
    start = time.perf_counter()
    run = sdnb.live(sdnb.train(sd, pictures, recipe, steps=arguments.steps), save=f"build/run-{arguments.name}.png")
    for _ in run:
        pass
    seconds = time.perf_counter() - start
    rows = [{field: value for field, value in record.items() if value is not None} for record in run.history]
    report.show(
        rows if arguments.json else rows[-1:],
        arguments.json,
        title=f"{arguments.model} on {arguments.pictures}, batch {arguments.batch}",
        recipe=recipe.to_flags(),
        capacity_bytes=run.scene().capacity_bytes,
        seconds=round(seconds, 1),
        frames=run.frames,
        share_of_time_spent_drawing=round(run.drawing_seconds / seconds, 4),
    )


if __name__ == "__main__":
    main()
