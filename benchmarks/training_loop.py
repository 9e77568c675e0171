"""What does the loop cost beside the training itself?

    python -m benchmarks.training_loop

The same steps four times, with the same model, pictures, precision and optimizer: by `sdnb.train`; by a loop written by hand with torch and
diffusers; by one that has accelerate do what it does for everyone; and by one that goes the way of diffusers' own text-to-image example
(examples/text_to_image/train_text_to_image.py), which encodes pictures and captions in every step. Blocks of all alternate in one process,
so that whatever else the machine does meets all; a ratio is the median, over rounds, of that of two blocks of one round. The peaks are
what the CPU allocator handed out during one step, by torch.profiler's memory events. Also the share of a step in which `sdnb.train` waits
for its batch, the time that `import sdnb` takes in a fresh interpreter, and what the planner predicts for full fine-tunes with everything
the package has against memory.

Takes about a minute on two cores.
"""

import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from transformers.optimization import get_constant_schedule_with_warmup

import sdnb
from sdnb.memory.trace import GIB, MIB

from . import report


def optimizer_and_schedule(unet, recipe: sdnb.Recipe):
    """The recipe's, made without the package's factories."""
    optimizer = sdnb.Adafactor(unet.parameters(), lr=recipe.learning_rate, relative_step=False, scale_parameter=False, warmup_init=False)
    return optimizer, get_constant_schedule_with_warmup(optimizer, recipe.lr_warmup_steps)


def by_hand(sd: sdnb.StableDiffusion, pictures, recipe: sdnb.Recipe):
    """The plainest loop that does the same work, on the same cache."""
    cache = sdnb.training.Cache(sd, pictures, recipe)
    unet = sd.unet.train()
    optimizer, schedule = optimizer_and_schedule(unet, recipe)
    number = 0
    while True:
        batch = cache.batch(number)
        x_t = sd.noise_scheduler.add_noise(batch.latents, batch.noise, batch.t)
        loss = F.mse_loss(unet(x_t, batch.t, encoder_hidden_states=batch.context).sample, batch.noise)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        number += 1
        yield loss.item()


def by_accelerate(sd: sdnb.StableDiffusion, pictures, recipe: sdnb.Recipe):
    """The same with accelerate around model, optimizer and schedule."""
    from accelerate import Accelerator

    cache = sdnb.training.Cache(sd, pictures, recipe)
    accelerator = Accelerator(cpu=sd.device.type == "cpu")
    unet, optimizer, schedule = accelerator.prepare(sd.unet.train(), *optimizer_and_schedule(sd.unet, recipe))
    number = 0
    while True:
        batch = cache.batch(number)
        with accelerator.accumulate(unet):
            x_t = sd.noise_scheduler.add_noise(batch.latents, batch.noise, batch.t)
            loss = F.mse_loss(unet(x_t, batch.t, encoder_hidden_states=batch.context).sample, batch.noise)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        number += 1
        yield accelerator.gather(loss.detach().repeat(recipe.train_batch_size)).mean().item()


def as_the_example(sd: sdnb.StableDiffusion, pictures, recipe: sdnb.Recipe):
    """The order of work of diffusers' example: nothing is cached but the pictures' pixels, which it opens in other processes."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=sd.device.type == "cpu")
    unet, optimizer, schedule = accelerator.prepare(sd.unet.train(), *optimizer_and_schedule(sd.unet, recipe))
    pixels = torch.stack([picture.pixels(sd.resolution) for picture in pictures])
    tokens = sd.tokens([picture.caption for picture in pictures])[0]
    while True:
        chosen = torch.randint(len(pictures), (recipe.train_batch_size,))
        with accelerator.accumulate(unet):
            latents = sd.vae.encode(pixels[chosen]).latent_dist.sample() * sd.vae.config.scaling_factor
            noise = torch.randn_like(latents)
            t = torch.randint(0, sd.noise_scheduler.config.num_train_timesteps, (len(latents),))
            context = sd.text_encoder(tokens[chosen], return_dict=False)[0]
            prediction = unet(sd.noise_scheduler.add_noise(latents, noise, t), t, context, return_dict=False)[0]
            loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
            told = accelerator.gather(loss.repeat(recipe.train_batch_size)).mean().item()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        yield told


def peak(step) -> int:
    """The most bytes that the CPU allocator handed out at once, on top of what was there, while `step()` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    live = most = 0
    for event in sorted((e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def levers() -> list[dict]:
    """What the planner predicts for whole U-Nets with Adafactor, bf16, a fused backward and cached inputs, batch 1."""
    rows = []
    recipe = sdnb.Recipe(
        train_batch_size=1, mixed_precision="bf16", fused_backward_pass=True, gradient_checkpointing=True,
        others={"full_bf16": True, "cache_latents": True, "cache_text_encoder_outputs": True},
    )  # fmt: skip
    for name, side in (("sd15", 512), ("sd15", 1024), ("sdxl", 512), ("sdxl", 1024)):
        made = sdnb.plan(name, recipe, resolution=side, gpu="rtx4090")
        published = "10 GB by sd-scripts' fused backward (its pull request 1259)" if (name, side) == ("sdxl", 1024) else ""
        rows.append(
            {
                "full fine-tune, predicted": f"{name} at {side}",
                "peak": f"{made.peak_bytes / GIB:.2f} GiB",
                "reserved": f"{made.reserved_bytes / GIB:.2f} GiB",
                "published": published,
            }
        )
    return rows


def seconds(command: list[str], runs: int = 7) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="blocks of each loop")
    parser.add_argument("--block", type=int, default=4, help="steps in a block")
    parser.add_argument("--batch", type=int, default=sdnb.Recipe().train_batch_size)
    arguments = parser.parse_args()

    pictures = sdnb.pictures("emoji-ink")
    recipe = sdnb.Recipe(train_batch_size=arguments.batch)
    makers = {"by hand": by_hand, "sdnb.train": sdnb.train, "plain accelerate": by_accelerate, "as diffusers' example": as_the_example}
    loops, models = {}, {name: sdnb.load("tiny", device="cpu") for name in makers}
    for name, make in makers.items():
        loops[name] = make(models[name], pictures, recipe)
        next(loops[name])  # the first step of each sets things up
    timed = {name: [] for name in makers}
    waited = []
    for round in range(arguments.rounds):
        for name in sorted(timed, reverse=bool(round % 2)):
            start = time.perf_counter()
            for _ in range(arguments.block):
                step = next(loops[name])
                if name == "sdnb.train":
                    waited.append(step.waited_seconds / step.seconds)
            timed[name].append((time.perf_counter() - start) / arguments.block)
    peaks = {name: peak(lambda name=name: next(loops[name])) for name in makers}
    ours = timed["sdnb.train"]
    ratios = {name: statistics.median(a / b for a, b in zip(times, ours, strict=True)) for name, times in timed.items()}
    nothing, package = seconds([sys.executable, "-c", "pass"]), seconds([sys.executable, "-c", "import sdnb"])
    rows = [
        {
            "a step": name,
            "time": f"{statistics.median(timed[name]) * 1e3:.1f} ms",
            "of sdnb.train's": f"{ratios[name]:.3f}",
            "peak": f"{peaks[name] / MIB:.1f} MiB",
            "of its peak": f"{peaks[name] / peaks['sdnb.train']:.3f}",
        }
        for name in makers
    ]
    rows += [
        {"measured": "share of sdnb.train's step until its batch is there", "value": f"{statistics.median(waited):.2%}"},
        {"measured": "import sdnb, beside python alone", "value": f"{package - nothing:.3f} s more"},
    ]
    report.show([*rows, *levers()], arguments.json)


if __name__ == "__main__":
    main()
