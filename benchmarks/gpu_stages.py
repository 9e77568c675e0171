"""What `python -m benchmarks.gpu` runs on a GPU, and in a rehearsal, small, on a CPU: a function for each stage.

Each runs in a process of its own and gives its rows away one by one, so that a process that is killed leaves what it had. What only a
GPU has (events, counters of kernels and of waits) is in `milliseconds`, `kernels` and `waits`; all else is the same code on both.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import gc
import gzip
import importlib.util
import io
import itertools
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sdnb
from sdnb.memory.trace import GIB, MIB

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Scale:
    """How large everything is: on a GPU, or in a rehearsal."""

    device: str
    configurations: tuple
    """What the planner is compared on."""
    families: tuple
    """What is timed: a configuration, whether by hand too, and what is recomputed."""
    optimizers: tuple[str, ...]
    """The models whose weights are stepped."""
    floors: tuple
    steps: int
    """Steps of each configuration; of which the first two set things up."""
    times: int
    """How often a step is timed."""
    run_steps: int
    lessons: tuple[str, ...]
    cells: int | None = None
    """The first so many cells of a lesson; None is all."""


def real() -> Scale:
    """On a GPU."""
    from sdnb.planner.configurations import CONFIGURATIONS, configuration

    families = (
        (configuration("sd15", 512, 4, "whole", "bf16", "AdamW"), True, ("none", "CHEAP", "full")),
        (configuration("sdxl", 1024, 1, "lora", "bf16", "AdamW"), True, ("none", "CHEAP", "full")),
        (configuration("sdxl", 1024, 1, "whole", "bf16 weights", "fused"), False, ("none", 7 * GIB, "CHEAP", "full")),
        (configuration("sd15", 512, 4, "whole", "bf16 weights", "fused"), False, ("none", 3 * GIB, "CHEAP", "full")),
        (configuration("sd15", 512, 1, "whole", "fp32", "Adafactor"), True, ("none",)),
    )
    floors = tuple(configuration(name, side, 1, "whole", "full bf16", "fused", "full") for name, side in (("sd15", 512), ("sdxl", 1024)))
    return Scale("cuda", CONFIGURATIONS, families, ("sd15", "sdxl"), floors, 6, 4, 300, ("02", "03", "08", "09"))


def rehearsal(folder: Path) -> Scale:
    """Small, on a CPU: tiny, and an SDXL that is narrow enough to be run, which is made in `folder` unless it is there."""
    from sdnb.planner.configurations import configuration

    narrow_xl = str(folder / "narrow-sdxl")
    if not Path(narrow_xl).exists():
        from tests.tools import narrow

        with contextlib.redirect_stderr(io.StringIO()):  # the progress of saving
            narrow.make("sdxl", Path(narrow_xl))
    configurations = (
        configuration("tiny", 64, 2, "whole", "fp32", "AdamW", "CHEAP", gradient_accumulation_steps=2, max_grad_norm=1.0, cached=False),
        configuration("tiny", 64, 1, "lora", "fp16", "AdamW"),  # which a CPU cannot do
        configuration(narrow_xl, 128, 1, "lora", "fp32", "AdamW", "full"),
    )
    families = ((configuration("tiny", 64, 1, "whole", "fp32", "AdamW"), True, ("none", 60 * MIB, "full")),)
    floors = (configuration(narrow_xl, 128, 1, "whole", "full bf16", "fused", "full"),)
    return Scale("cpu", configurations, families, ("tiny",), floors, 3, 1, 4, ("03",), 4)


@dataclass(frozen=True)
class Context:
    """What a stage is given."""

    scale: Scale
    row: Callable[[dict], None]
    """Gives a row away."""
    folder: Path
    done: tuple[dict, ...] = ()
    """The rows that this stage gave away before it was started again."""
    part: int = 0
    parts: int = 1

    def share(self, things) -> tuple:
        """Of what all parts of a stage do, what this one does."""
        return tuple(things)[self.part :: self.parts]


# what only a GPU has


def milliseconds(call: Callable[[], object], device: str, times: int) -> list[float]:
    """How long each of some calls took, by CUDA's events, which do not wait between calls, or by the clock."""
    import torch

    if device == "cpu":
        marks = [time.perf_counter()]
        for _ in range(times):
            call()
            marks.append(time.perf_counter())
        return [round(1000 * (end - begin), 3) for begin, end in itertools.pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [round(begin.elapsed_time(end), 3) for begin, end in itertools.pairwise(events)]


def kernels(call: Callable[[], object], device: str) -> int | None:
    """How many kernels a call launches, by CUDA's profiler; None on a CPU."""
    from torch.profiler import ProfilerActivity, profile

    if device == "cpu":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
    return sum("LaunchKernel" in event.name() for event in profiler.profiler.kineto_results.events())


def waits(call: Callable[[], object], device: str) -> bool | None:
    """Whether a call makes Python wait for the GPU; None on a CPU."""
    import torch

    if device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def card(device: str):
    """The card at hand; None on a CPU."""
    import torch

    return None if device == "cpu" else sdnb.planner.card(torch.device("cuda", torch.cuda.current_device()))


def fresh(device: str) -> None:
    """Forget what is not used any more, and the peak."""
    import torch

    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# the stages


def tests(context: Context) -> None:
    """The tests that need a GPU: how each came out."""
    import pytest

    class Outcomes:
        def pytest_runtest_logreport(self, report) -> None:
            if report.when == "call" or report.outcome != "passed":
                text = report.longreprtext if report.failed else ""
                why = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else text[-2000:]
                context.row({"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 1), "why": why})

    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "@pytest.mark.gpu" in path.read_text(encoding="utf-8")]
    options = ["-m", "gpu", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "--strict-markers", "--tb=short", f"--rootdir={ROOT}"]
    status = pytest.main([*options, *files], plugins=[Outcomes()])
    if status not in (0, 1):
        raise SystemExit(f"pytest ended with status {status}")


def plans(context: Context) -> None:
    """The plan of all that is measured. It needs no GPU, and goes on beside the other stages."""
    from sdnb.planner.measurements import forecast

    one = card(context.scale.device)
    for configuration in context.share(dict.fromkeys([*context.scale.configurations, *_timed(context.scale), *context.scale.floors])):
        context.row({"of": configuration.as_dict(), "planned": forecast(configuration, one)})


def _timed(scale: Scale) -> list:
    return [dataclasses.replace(first, recompute=how) for first, _, choices in scale.families for how in choices]


def planner(context: Context) -> None:
    """What the allocator counts for every configuration, a fresh cache for each."""
    from sdnb.planner import measurements

    scale, one = context.scale, card(context.scale.device)
    context.row({"versions": measurements.versions(), "card": one and measurements.card_as_dict(one)})
    begun = [row["begins"] for row in context.done if "begins" in row]
    for configuration in scale.configurations:
        if configuration.as_dict() in begun:  # the one that ended the process before this one among them
            continue
        context.row({"begins": configuration.as_dict()})
        start = time.perf_counter()
        row = measurements.attempt(configuration, device=scale.device, steps=scale.steps)
        context.row({**row, "seconds": round(time.perf_counter() - start, 1)})
        print(configuration.name, measurements.outcome(row), sep=": ", flush=True)
        if "CUDA error" in row.get("failed", ""):
            raise SystemExit("the GPU does nothing more for this process")


def steps(context: Context) -> None:
    """Milliseconds of a step, by the package and written by hand, and of each choice of what to recompute."""
    import torch

    from sdnb.planner.measurements import Run

    scale, cuda = context.scale, context.scale.device != "cpu"
    for first, hand, choices in scale.families:
        fresh(scale.device)
        run = Run.of(first, scale.device)
        inputs = sdnb.planner.unet_inputs(run.sd, sdnb.planner.example_batch(run.sd, first.recipe.train_batch_size, first.size))
        ways = {}
        for how in choices:
            one = dataclasses.replace(first, recompute=how)
            ways["sdnb", how] = dataclasses.replace(run, recompute_plan=sdnb.checkpointing.resolve(run.sd.unet, one.choice, inputs)).steps
        if hand:
            ways |= {("by hand", how): partial(by_hand, run, how) for how in choices if how in ("none", "full")}
        times, peaks = {way: [] for way in ways}, {}
        for _ in range(2):
            for way, begin in ways.items():
                fresh(scale.device)
                with begin() as step:
                    step()
                    times[way] += milliseconds(step, scale.device, scale.times)
                peaks[way] = torch.cuda.max_memory_allocated() if cuda else None
        for (who, how), values in times.items():
            row = dataclasses.replace(first, recompute=how).as_dict()
            context.row({"by": who, **row, "ms": sorted(values)[len(values) // 2], "all_ms": values, "allocated": peaks[who, how]})
        run = ways = begin = step = None  # before the next is made


@contextmanager
def by_hand(run, recompute: str) -> Iterator[Callable[[], None]]:
    """The same step as one would write it with torch and diffusers; `full` is diffusers' own gradient checkpointing."""
    import torch
    import torch.nn.functional as F

    unet, batch, optimizer, scheduler = run.sd.unet, run.batch, run.optimizer, run.sd.noise_scheduler
    weights = next(unet.parameters()).dtype
    added = batch.added and {"added_cond_kwargs": {name: value.to(weights) for name, value in batch.added.items()}}
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.recipe.mixed_precision)
    unet.train()
    if recompute == "full":
        unet.enable_gradient_checkpointing()

    def step() -> None:
        x_t = scheduler.add_noise(batch.latents, batch.noise, batch.t).to(weights)
        with torch.autocast(batch.latents.device.type, dtype=mixed, enabled=mixed is not None):
            prediction = unet(x_t, batch.t, encoder_hidden_states=batch.context.to(weights), **(added or {})).sample
        F.mse_loss(prediction.float(), batch.noise).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    try:
        yield step
    finally:
        unet.disable_gradient_checkpointing()


def adafactor(context: Context) -> None:
    """A step of the optimizer alone: ours, transformers' and torch's, on the weights of whole U-Nets."""
    import torch

    from . import adafactor as bench

    device, times = context.scale.device, 5 * context.scale.times
    makes = {
        "sdnb.Adafactor": bench.here,
        "transformers' Adafactor": bench.transformers,
        "torch's AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, fused=True),
        "torch's AdamW, foreach": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, foreach=True),
    }
    cases = [(name, dtype) for name in context.scale.optimizers for dtype in (torch.float32, torch.bfloat16)]
    for counting in (False, True):  # kernels last: the profiler may slow down what comes after it
        for name, dtype in cases:
            fresh(device)
            parameters = _with_gradients(name, dtype, device)
            what = {"weights": name, "dtype": str(dtype).removeprefix("torch.")}
            if device != "cpu" and not counting:
                context.row({**what, "optimizer": "floor: the bandwidth", "ms": round(1000 * bench.floor(parameters), 3)})
            for label, make in makes.items():
                fresh(device)
                optimizer, row = make(parameters), {**what, "optimizer": label}
                optimizer.step()  # which makes the state
                if counting:
                    context.row({**row, "operators": bench.launched(optimizer.step), "kernels": kernels(optimizer.step, device)})
                else:
                    values = milliseconds(optimizer.step, device, times)
                    row |= {"ms": sorted(values)[len(values) // 2], "waits": waits(optimizer.step, device)}
                    context.row({**row, "state_bytes": bench.state_bytes(optimizer)})
                del optimizer
            del parameters


def _with_gradients(name: str, dtype, device: str) -> list:
    """Random weights of a model's U-Net, and random gradients."""
    import torch

    parameters = []
    for shape in [p.shape for p in sdnb.models.skeleton_unet(name).parameters()]:
        parameters.append(torch.nn.Parameter((torch.randn(shape, device=device) * 0.02).to(dtype)))
        parameters[-1].grad = (torch.randn(shape, device=device) * 1e-3).to(dtype)
    return parameters


def floors(context: Context) -> None:
    """Full fine-tunes in as little memory as there is, by `sdnb.train` from pictures on."""
    import torch
    from transformers import CLIPTokenizer

    from sdnb.planner.measurements import random_model

    device = context.scale.device
    for one in context.scale.floors:
        fresh(device)
        start = time.perf_counter()
        sd = random_model(one, device, whole=True)
        own = Path(one.model) / "tokenizer"
        tokenizer = CLIPTokenizer.from_pretrained(own if own.exists() else sdnb.datasets.bundled("clip-tokenizer"))
        sd = dataclasses.replace(sd, tokenizer=tokenizer, tokenizer_2=sd.text_encoder_2 and tokenizer)
        recipe = one.recipe.replace(resolution=one.size[0], lr_warmup_steps=1)
        taken = list(sdnb.train(sd, list(sdnb.pictures("emoji-ink"))[:4], recipe, steps=2 + context.scale.steps, checkpointing=one.choice))
        counted = None
        if device != "cpu":
            counted = {"allocated": max(step.peak_bytes for step in taken), "reserved": max(step.reserved_bytes for step in taken)}
            torch.cuda.synchronize()
        ms = [1000 * step.seconds for step in taken[2:]]
        row = {"counted": counted, "ms": round(sum(ms) / len(ms), 2), "seconds": round(time.perf_counter() - start, 1)}
        context.row({**one.as_dict(), **row, "loss": taken[-1].loss})
        del sd, taken


def run(context: Context) -> None:
    """A run for `sdnb.replay`: everything that the live plot shows of it."""
    from . import record_run

    one = card(context.scale.device)
    name = re.sub(r"[^a-z0-9]+", "-", one.name.lower()) if one else "rehearsal"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows, facts = record_run.recorded("tiny", "emoji-ink", context.scale.run_steps, 4, save=f"{folder}/run.png")
    record_run.write(context.folder / f"run-{name}.json", "python -m benchmarks.gpu", rows, facts)
    context.row({"name": name, "steps": len(rows), "fields": sorted({field for row in rows for field in row})})


def lessons(context: Context) -> None:
    """Every code cell of some lessons, one after the other, without Jupyter: what went wrong in which."""
    for number in context.share(context.scale.lessons):
        path = next(path for path in sdnb.course.lessons.notebooks() if path.stem.startswith(number))
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [(place, "".join(cell["source"])) for place, cell in enumerate(cells) if cell["cell_type"] == "code"]
        there = {"__name__": "__main__", "display": _display}
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.chdir(folder):
            for place, source in code[: context.scale.cells]:
                start, error = time.perf_counter(), ""
                try:
                    _execute(source, f"lesson {number}, cell {place}", there)
                except (Exception, SystemExit) as raised:
                    error = f"{type(raised).__name__}: {raised}"[-1500:]
                context.row({"lesson": number, "cell": place, "seconds": round(time.perf_counter() - start, 1), "error": error})


def _execute(source: str, name: str, there: dict) -> None:
    """A cell: what it ends with is shown."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), there)
    if last is not None:
        _display(eval(compile(ast.Expression(last.value), name, "eval"), there))


def _display(value: object, display_id: bool = False) -> object:
    """What a notebook does with a value, as far as the value itself has a part in it."""
    for kind in ("_repr_mimebundle_", "_repr_html_", "_repr_png_", "__repr__"):
        if value is not None and hasattr(value, kind):
            getattr(value, kind)()
            break
    return _Handle() if display_id else None


class _Handle:
    def update(self, value: object) -> None:
        _display(value)


def events(context: Context) -> None:
    """Every request to the allocator in two steps of some configurations, in order, for whoever looks for an error of the planner's."""
    import torch

    from sdnb.planner.measurements import CudaMeter, Run

    if context.scale.device == "cpu":
        context.row({"skipped": "only CUDA's allocator keeps a history"})
        return
    for one in context.scale.configurations[:6]:
        with CudaMeter("cuda") as meter:
            torch.cuda.memory._record_memory_history(context=None, max_entries=400_000)
            try:
                made = Run.of(one, "cuda")
                with made.steps() as step:
                    for _ in range(2):
                        meter.step(step)
                history = torch.cuda.memory._snapshot()["device_traces"][0]
            finally:
                torch.cuda.memory._record_memory_history(enabled=None)
        with gzip.open(context.folder / "events.jsonl.gz", "at", encoding="utf-8") as file:
            file.write(json.dumps({**one.as_dict(), "counted": meter.result()["counted"], "events": compact(history)}) + "\n")
        context.row({**one.as_dict(), "events": len(history)})
        del made, step, meter, history


def compact(history: list[dict]) -> list[list]:
    """What the allocator did, as (what, number of the block, bytes); `+` and `-` are blocks, the others its own words."""
    short, numbers, rows = {"alloc": "+", "free_completed": "-"}, {}, []
    for entry in history:
        if entry["action"] not in ("free_requested", "snapshot"):
            rows.append([short.get(entry["action"], entry["action"]), numbers.setdefault(entry.get("addr"), len(numbers)), entry["size"]])
    return rows


STAGES = {stage.__name__: stage for stage in (tests, plans, planner, steps, adafactor, floors, run, lessons, events)}


def missing() -> list[str]:
    """Packages that the stages need and that are not here."""
    needed = ("diffusers", "transformers", "accelerate", "peft", "tomlkit", "matplotlib", "psutil", "pytest", "hypothesis", "safetensors")
    return [name for name in needed if name not in sys.modules and importlib.util.find_spec(name) is None]
