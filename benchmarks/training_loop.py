"""What does the loop cost beside the training itself?

    python -m benchmarks.training_loop

The same steps twice: by `sdnb.train`, and by a loop written by hand with torch, diffusers and the same optimizer. Blocks of both alternate
in one process, so that whatever else the machine does meets both; the ratio is that of the medians. Also the time that `import sdnb`
takes in a fresh interpreter, beside an interpreter that imports nothing.
"""

import copy
import dataclasses
import statistics
import subprocess
import sys
import time

import torch.nn.functional as F
from transformers.optimization import get_constant_schedule_with_warmup

import sdnb

from . import report


def by_hand(sd: sdnb.StableDiffusion, recipe: sdnb.Recipe, cache: sdnb.training.Cache):
    """The seconds of each step of the plainest loop that does the same work."""
    unet = sd.unet.train()
    optimizer = sdnb.Adafactor(unet.parameters(), lr=recipe.learning_rate, relative_step=False, scale_parameter=False, warmup_init=False)
    schedule = get_constant_schedule_with_warmup(optimizer, recipe.lr_warmup_steps)
    number = 0
    while True:
        start = time.perf_counter()
        batch = cache.batch(number)
        x_t = sd.noise_scheduler.add_noise(batch.latents, batch.noise, batch.t)
        loss = F.mse_loss(unet(x_t, batch.t, encoder_hidden_states=batch.context).sample, batch.noise)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        number += 1
        yield time.perf_counter() - start


def seconds(command: list[str], runs: int = 7) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="blocks of each loop")
    parser.add_argument("--block", type=int, default=6, help="steps in a block")
    parser.add_argument("--batch", type=int, default=sdnb.Recipe().train_batch_size)
    arguments = parser.parse_args()

    sd = sdnb.load("tiny")
    pictures = sdnb.pictures("emoji-ink")
    recipe = sdnb.Recipe(train_batch_size=arguments.batch)
    hand = by_hand(dataclasses.replace(sd, unet=copy.deepcopy(sd.unet)), recipe, sdnb.training.Cache(sd, pictures, recipe))
    loop = sdnb.train(sd, pictures, recipe)
    timed = {"sdnb.train": [], "by hand": []}
    next(loop), next(hand)  # the first step of each sets things up
    for round in range(arguments.rounds):
        for name in sorted(timed, reverse=bool(round % 2)):
            for _ in range(arguments.block):
                start = time.perf_counter()
                next(loop if name == "sdnb.train" else hand)
                timed[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in timed.items()}
    nothing, package = seconds([sys.executable, "-c", "pass"]), seconds([sys.executable, "-c", "import sdnb"])
    report.show(
        [
            {"measured": "a step by hand", "value": f"{medians['by hand'] * 1e3:.1f} ms", "ratio": "1.00", "target": ""},
            {
                "measured": "a step of sdnb.train",
                "value": f"{medians['sdnb.train'] * 1e3:.1f} ms",
                "ratio": f"{medians['sdnb.train'] / medians['by hand']:.3f}",
                "target": "at most 1.05",
            },
            {"measured": "python alone", "value": f"{nothing:.3f} s", "ratio": "", "target": ""},
            {"measured": "import sdnb", "value": f"{package - nothing:.3f} s more", "ratio": "", "target": "under 0.3 s"},
        ],
        arguments.json,
    )


if __name__ == "__main__":
    main()
