"""Adafactor here beside transformers' and torch's: state, kernels, room, time, and whether it learns as well.

    python -m benchmarks.adafactor
    python -m benchmarks.adafactor --only learning --json data/recorded/adafactor-tiny.json

`state` and `launches` are counted on the meta device for the U-Nets of SD 1.5 and SDXL: bytes that stay between steps, operators
dispatched in a step (without those that compute nothing), and the most that a step holds at once beside weights, gradients and
state. `time` steps the weights of SD 1.5's U-Net, random numbers in their real shapes; the optimizers take turns, and the
ratio is that of the medians. On a GPU the floor is the time its memory takes to read weights and gradients and to write the
weights, measured by copying as many bytes. `learning` fine-tunes tiny from the same weights with convolutions factored in three ways,
and compares the loss on pictures that were not trained on.

Takes about twenty minutes on two cores.
"""

import statistics
import time
from collections.abc import Callable
from importlib import import_module

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sdnb
from sdnb.adafactor import FACTORINGS, Adafactor
from sdnb.memory.trace import MIB, MemoryTrace
from sdnb.models.skeletons import skeleton_unet

from . import report

PARTS = ("state", "launches", "time", "learning")
FREE = ("aten.empty", "aten.detach", "profiler.", "aten.lift_fresh", "aten.alias")
"""Operators that compute nothing."""


def here(parameters, **settings):
    return Adafactor(parameters, lr=1e-4, relative_step=False, scale_parameter=False, **settings)


def transformers(parameters):
    kind = import_module("transformers.optimization").Adafactor
    return kind(parameters, lr=1e-4, relative_step=False, scale_parameter=False)


def torchs(parameters):
    return torch.optim.Adafactor(parameters, lr=1e-4)


class _Count(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += not func.is_view and not str(func).startswith(FREE)
        return func(*args, **kwargs or {})


def launched(call: Callable[[], object]) -> int:
    """How many operators a call dispatches that compute something."""
    with torch.no_grad(), _Count() as mode:
        call()
    return mode.number


def stepped(make, parameters):
    """An optimizer that has made its first step."""
    optimizer = make(parameters)
    for p in parameters:
        p.grad = torch.empty_like(p)
    optimizer.step()
    return optimizer


def state_bytes(optimizer) -> int:
    return sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor))


def state() -> list[dict]:
    table = []
    for name in ("tiny", "sd15", "sdxl"):
        parameters = list(skeleton_unet(name).parameters())
        theirs = state_bytes(stepped(transformers, parameters))
        for label, make in {
            "AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-4),
            "transformers": transformers,
            "here, last-two": lambda ps: here(ps, factoring="last-two"),
            "here, two-largest": lambda ps: here(ps, factoring="two-largest"),
            "here, matrix": here,
        }.items():
            size = state_bytes(stepped(make, parameters))
            table.append({"state": name, "optimizer": label, "MiB": f"{size / MIB:,.2f}", "transformers' is": f"{theirs / size:.1f}x"})
    return table


def launches() -> list[dict]:
    table = []
    for name in ("sd15", "sdxl"):
        for dtype in (torch.float32, torch.bfloat16):
            parameters = list(skeleton_unet(name, dtype=dtype).parameters())
            largest = max(p.numel() * p.element_size() for p in parameters)
            counted = {}
            for label, make in {"transformers": transformers, "here": here}.items():
                optimizer = stepped(make, parameters)
                counted[label] = launched(optimizer.step)
                with MemoryTrace() as trace:
                    optimizer.step()
                room = max(moment.bytes["temporaries"] for moment in trace.timeline)
                table.append(
                    {
                        "step": f"{name}, {str(dtype).removeprefix('torch.')}",
                        "optimizer": label,
                        "launches": f"{counted[label]:,}",
                        "ratio": f"1/{counted['transformers'] / counted[label]:.1f}",
                        "room": f"{room / MIB:.0f} MiB",
                        "of the largest parameter": f"{room / largest:.1f}x",
                    }
                )
    return table


def timing(device: str, dtype: torch.dtype, rounds: int) -> list[dict]:
    def numbers(size: float):
        return [torch.randn(p.shape, device=device).to(dtype) * size for p in skeleton_unet("sd15").parameters()]

    parameters = [torch.nn.Parameter(tensor) for tensor in numbers(0.02)]
    for p, gradient in zip(parameters, numbers(1e-3), strict=True):
        p.grad = gradient
    makes = {"transformers": transformers, "torch": torchs, "here": here}
    optimizers = {label: make(parameters) for label, make in makes.items()}
    times: dict[str, list[float]] = {label: [] for label in optimizers}
    for round in range(rounds + 1):
        for label, optimizer in optimizers.items():
            wait(device)
            start = time.perf_counter()
            optimizer.step()
            wait(device)
            if round:  # the first makes the state
                times[label].append(time.perf_counter() - start)
    medians = {label: statistics.median(values) for label, values in times.items()}
    if device == "cuda":
        medians["floor: the bandwidth"] = floor(parameters)
    return [
        {
            "time": f"sd15, {str(dtype).removeprefix('torch.')}, {device}",
            "optimizer": label,
            "seconds": f"{value:.4f}",
            "of transformers'": f"{value / medians['transformers']:.3f}x",
        }
        for label, value in medians.items()
    ]


def floor(parameters: list[torch.nn.Parameter]) -> float:
    """Seconds to read every weight and gradient and write every weight, at the speed of copying."""
    total = sum(3 * p.numel() * p.element_size() for p in parameters)
    source = torch.empty(2**28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    wait("cuda")
    start = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    wait("cuda")
    return (time.perf_counter() - start) / 10 * total / (2 * source.nbytes)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def learning(seeds: int, steps: int) -> tuple[list[dict], list[dict]]:
    from .fine_tune import Bench

    bench, runs = Bench(), []
    for seed in range(seeds):
        for factoring in FACTORINGS:
            args = (*sdnb.Recipe().optimizer_args, f"factoring={factoring!r}")
            recipe = sdnb.Recipe(optimizer_args=args, learning_rate=3e-4, lr_warmup_steps=50, max_train_steps=steps, seed=seed)
            run = {"factoring": factoring, "seed": seed, "steps": steps, "held_out": bench.run(recipe).held_out}
            runs.append(run)
            print(run, flush=True)
    by = {factoring: [run["held_out"] for run in runs if run["factoring"] == factoring] for factoring in FACTORINGS}
    table = []
    for factoring, losses in by.items():
        change = [100 * (loss / other - 1) for loss, other in zip(losses, by["last-two"], strict=True)]
        table.append(
            {
                "learning": "tiny, held-out loss",
                "factoring": factoring,
                "mean": f"{statistics.mean(losses):.4f}",
                "against last-two, %": f"{100 * (statistics.mean(losses) / statistics.mean(by['last-two']) - 1):+.2f}",
                "by seed, %": ", ".join(f"{value:+.2f}" for value in change),
            }
        )
    return table, runs


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be given again")
    parser.add_argument("--rounds", type=int, default=5, help="steps to time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    parts = arguments.only or PARTS
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, more = [], {}
    if "state" in parts:
        rows += state()
    if "launches" in parts:
        rows += launches()
    if "time" in parts:
        for dtype in (torch.float32, torch.bfloat16):
            rows += timing(device, dtype, arguments.rounds)
    if "learning" in parts:
        table, more["runs"] = learning(arguments.seeds, arguments.steps)
        rows += table
    report.show(rows, arguments.json, **more)


if __name__ == "__main__":
    main()
