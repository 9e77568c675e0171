"""What does recomputing save, and what does it cost?

    python -m benchmarks.checkpointing

Two tables. The first is traced on the meta device: the U-Nets of SD 1.5 at 512 pixels and of SDXL at 1024, in bf16, every gradient
freed at once; peaks and FLOPs of nothing recomputed, of everything (what diffusers switches on), and of the solver's choices.
The second is timed on the machine at hand: forward and backward of one U-Net under each choice, in turns, so that whatever
else the machine does meets all of them. On a CPU it is tiny-sd, or `--model sd15 --size 32`; on a GPU SD 1.5 and SDXL with random
weights, and the peak is the allocator's. torch's own selective checkpointing is timed beside ours with the same operators kept.

Takes about a minute on two cores.
"""

import functools
import statistics
import time

import torch
from diffusers import UNet2DConditionModel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import sdnb
from sdnb.checkpointing import survey as frontier
from sdnb.checkpointing.choices import CHEAP, apply
from sdnb.checkpointing.recompute import BlockPlan
from sdnb.inputs import example
from sdnb.memory import operators
from sdnb.memory.trace import MIB, MemoryTrace
from sdnb.models.skeletons import skeleton_unet

from . import report

PRICES = (1.005, 1.05, 1.08, 1.12)


def unet(name: str, device: str, dtype: torch.dtype) -> UNet2DConditionModel:
    if name == "tiny":
        return sdnb.load("tiny", device=device, dtype=dtype).unet.train()
    model = skeleton_unet(name, dtype=dtype)
    if device != "meta":
        model.to_empty(device=device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.02)
    return model.train()


def traced(name: str, batch: int) -> list[dict]:
    """The frontier of one U-Net on the meta device, each row traced."""
    model = unet(name, "meta", torch.bfloat16)
    inputs = example(model, batch=batch)
    start = time.perf_counter()
    survey = frontier.Survey(model, inputs, fused_backward_pass=True)
    chain = survey.chain()
    solved = time.perf_counter() - start
    everything = dict.fromkeys((block.name for block in survey.blocks), BlockPlan())
    choices = {"off": {}, "all, as diffusers": everything}
    choices |= {f"solver, at most {most:g}x": [p for p in chain if p.flops_ratio <= most][-1].choice for most in PRICES}
    choices["solver, smallest peak"] = chain[-1].choice
    traces = {label: frontier.verify(model, inputs, choice, fused_backward_pass=True) for label, choice in choices.items()}
    off, full = traces["off"], traces["all, as diffusers"]
    return [
        {
            "model": f"{name}, batch {batch}",
            "recomputed": label,
            "peak": f"{trace.peak_bytes / MIB:,.0f} MiB",
            "of all's saving": f"{(off.peak_bytes - trace.peak_bytes) / (off.peak_bytes - full.peak_bytes):.1%}",
            "after forward": f"{trace.saved_bytes / MIB:,.0f} MiB",
            "FLOPs": f"{trace.flops / off.flops:.3f}x",
            "solved in": f"{solved:.1f} s" if label.startswith("solver") else "",
        }
        for label, trace in traces.items()
    ]


def torchs_own(model: UNet2DConditionModel) -> None:
    """torch's selective checkpointing through diffusers' switch: matrix products, convolutions and attention are kept."""

    def policy(context, func, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if operators.kind(func) else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    model.enable_gradient_checkpointing(lambda block, *args: checkpoint(block, *args, use_reentrant=False, context_fn=contexts))


def timed(name: str, batch: int, size: int | None, device: str, rounds: int) -> list[dict]:
    """Seconds of forward and backward under each choice, the choices in turns."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = unet(name, device, dtype)
    shapes = example(model, batch=batch, size=size)
    inputs = {key: value if isinstance(value, dict) else filled(value, device) for key, value in shapes.items()}
    if "added_cond_kwargs" in inputs:
        inputs["added_cond_kwargs"] = {key: filled(value, device) for key, value in inputs["added_cond_kwargs"].items()}
    survey = frontier.Survey(model, shapes, fused_backward_pass=True)
    chain, whole = survey.chain(), survey.chain(operators_too=False)
    middle = next(p for p in chain if p.flops_ratio >= 1.05 or p is chain[-1])
    # whole blocks alone, down to the same peak
    coarse = next((p for p in whole if p.peak_bytes <= middle.peak_bytes), whole[-1])
    choices = {
        "off": "none",
        "all, as diffusers": None,
        "all": "full",
        "norms, activations, gates": CHEAP,
        "the same, by torch's own": torchs_own,
        f"solver, at {middle.flops_ratio:.3f}x FLOPs": middle,
        f"whole blocks to that peak, {coarse.flops_ratio:.3f}x": coarse,
        f"solver, smallest peak, {chain[-1].flops_ratio:.3f}x": chain[-1],
    }
    seconds, peaks = {label: [] for label in choices}, {}
    for round in range(rounds + 1):
        order = list(choices.items())
        for label, choice in order if round % 2 else reversed(order):
            peaks[label], took = one(model, inputs, shapes, choice, device, trace=round == 0)
            if round:  # the first warms up
                seconds[label].append(took)
    off = statistics.median(seconds["off"])
    return [
        {
            "model": f"{name}, batch {batch}" + (f", {size} latents" if size else ""),
            "recomputed": label,
            "peak": f"{peaks[label] / MIB:,.1f} MiB" if peaks[label] else "",
            "seconds": f"{statistics.median(times):.3f}",
            "time": f"{statistics.median(times) / off:.3f}x",
        }
        for label, times in seconds.items()
    ] + ([] if device == "cuda" else [cost_of_the_trace(model, inputs, off)])


def one(model, inputs, shapes, choice, device, *, trace: bool) -> tuple[int, float]:
    applied = None
    if choice is None:
        model.enable_gradient_checkpointing()
    elif callable(choice):
        choice(model)
    else:
        applied = apply(model, choice, inputs=shapes)
    try:
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        model(**inputs).sample.float().square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated(), time.perf_counter() - start
        took = time.perf_counter() - start
        return (ONCE.setdefault(id(choice), traced_peak(model, inputs)) if trace else ONCE[id(choice)]), took
    finally:
        model.zero_grad(set_to_none=True)
        if applied is None:
            model.disable_gradient_checkpointing()
        else:
            applied.remove()


ONCE: dict[int, int] = {}


def traced_peak(model, inputs) -> int:
    model.zero_grad(set_to_none=True)
    handles = [p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)) for p in model.parameters()]
    with MemoryTrace(model) as trace:
        model(**inputs).sample.float().square().mean().backward()
    for handle in handles:
        handle.remove()
    return trace.peak_bytes


def cost_of_the_trace(model, inputs, off: float) -> dict:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with MemoryTrace(model):
            model(**inputs).sample.float().square().mean().backward()
        times.append(time.perf_counter() - start)
        model.zero_grad(set_to_none=True)
    took = statistics.median(times)
    return {"model": "", "recomputed": "off, inside a MemoryTrace", "peak": "", "seconds": f"{took:.3f}", "time": f"{took / off:.3f}x"}


def filled(shape: torch.Tensor, device: str) -> torch.Tensor:
    if shape.dtype == torch.long:
        return torch.full(shape.shape, 500, device=device)
    return torch.randn(shape.shape, device=device).to(shape.dtype)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--model", choices=["tiny", "sd15", "sdxl"], action="append", help="what to time; may be given again")
    parser.add_argument("--size", type=int, help="latent positions a side, for the timing")
    parser.add_argument("--batch", type=int, default=4, help="for the timing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["traced", "timed"])
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    if arguments.only != "timed":
        for name in ("sd15", "sdxl"):
            for batch in (1, 4):
                rows += traced(name, batch)
    if arguments.only != "traced":
        for name in arguments.model or (["tiny"] if device == "cpu" else ["sd15", "sdxl"]):
            rows += timed(name, arguments.batch, arguments.size, device, arguments.rounds)
    report.show(rows, arguments.json)


if __name__ == "__main__":
    main()
