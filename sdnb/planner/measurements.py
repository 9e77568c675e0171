"""Measurements of real training steps on the GPU at hand, in bytes and milliseconds, beside the plan.

    sdnb.planner.measurements.record("my-gpu.json", minutes=10)

Each `Configuration` is a model with random weights (the values do not matter, and nothing is downloaded), a recipe and a choice of what
to recompute. `measure` trains it for a few steps by the package's own `training_step` and reads the allocator's counters; `planned` asks
the planner for the same configuration. `judge` compares the two, and `LIMITS` says how far apart they may be. Recordings of cards lie in
`data/recorded/gpu-*.json`, where the tests hold the planner to them.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from .. import checkpointing, prepare, training
from ..datasets import Batch
from ..memory import GIB, PhasePeaks
from ..models import skeletons
from ..recipe import Recipe
from ..system import Card, devices, files, processes
from . import advice, planning
from .configurations import CONFIGURATIONS, Configuration

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from ..checkpointing import RecomputePlan
    from ..models import Model
    from .report import MemoryPlan

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft")


# a run, ready for its steps


def random_model(configuration: Configuration, device: str | torch.device, *, whole: bool = False) -> Model:
    """Make a configuration's model with random weights on `device`, without tokenizers.

    Only the parts that stay there in training are on `device`, or all if `whole`; the others are on the meta device.
    """
    sd = skeletons.skeleton(configuration.model)
    stays = sd.parts if whole else prepare.resident(sd, configuration.recipe)
    for name, module in sd.parts.items():
        for parameter in module.parameters():
            parameter.data = parameter.data.to(planning.DTYPES[configuration.dtype])
        if name in stays:
            module.to_empty(device=device)
    with torch.no_grad():
        for name in stays:
            for parameter in getattr(sd, name).parameters():
                parameter.normal_(std=0.02)
            for buffer in getattr(sd, name).buffers():
                buffer.zero_()
    return sd


def random_batch(sd: Model, configuration: Configuration) -> Batch:
    """Batch of random numbers on the denoiser's device, with empty captions where text encoders train."""
    device, batch = sd.device, configuration.recipe.train_batch_size
    shapes = Batch.example(sd, batch, configuration.size, trains_encoders=bool(sd.encoders_in_training))

    def real(tensor):
        return torch.randn(tensor.shape, device=device) if tensor.is_floating_point() else torch.full(tensor.shape, 500, device=device)

    condition = shapes.condition and {name: real(value) for name, value in shapes.condition.items()}
    sizes = {name: real(value) for name, value in shapes.sizes.items()}
    return Batch(real(shapes.latents), condition, real(shapes.noise), real(shapes.t), sizes, shapes.captions)


def _tokens(texts: Sequence[str], *, max_length: int, **_) -> SimpleNamespace:
    return SimpleNamespace(input_ids=torch.zeros(len(texts), max_length, dtype=torch.long))


_tokens.model_max_length = 77


@dataclass
class Run:
    """A model, its optimizer and a batch, ready for `steps`."""

    sd: Model
    batch: Batch
    recipe: Recipe
    optimizer: Optimizer
    recompute_plan: RecomputePlan

    @classmethod
    def of(cls, configuration: Configuration, device: str | torch.device) -> Run:
        """Prepare a run as `sdnb.train` does. Raises `ValueError` for a run that `train` refuses."""
        recipe, sd = configuration.recipe, random_model(configuration, device)
        ready = prepare.prepare(sd, recipe, size=configuration.size, checkpointing=configuration.choice)
        sd = dataclasses.replace(sd, **dict.fromkeys(sd.tokenizers, _tokens))
        return cls(sd, random_batch(sd, configuration), recipe, ready.optimizer, ready.recomputed)

    @contextmanager
    def steps(self) -> Iterator[Callable[..., None]]:
        """Yield a function that makes one optimizer step by the package's own `training_step`; its argument is an `on_phase`."""
        sd, recipe = self.sd, self.recipe
        accelerator = processes.accelerator(sd, recipe, trains_encoders=bool(sd.encoders_in_training))
        if accelerator.scaler is not None:  # random weights would overflow at first, and such a step makes no optimizer state
            accelerator.scaler.load_state_dict({**accelerator.scaler.state_dict(), "scale": 1.0})
        with (
            checkpointing.Applied(sd.denoiser, self.recompute_plan),
            prepare.recomputed_encoders(sd, recipe),
            training.training_mode(sd, accelerator, self.optimizer) as (prepared, optimizer),
        ):
            models = [getattr(prepared, name) for name in sd.learners]

            def step(on_phase: Callable[[str], None] | None = None) -> None:
                for _ in range(recipe.gradient_accumulation_steps):
                    with accelerator.accumulate(*models):
                        training.training_step(prepared, self.batch, recipe, optimizer, accelerator=accelerator, on_phase=on_phase)

            yield step


# meters


class CudaMeter:
    """Measures the bytes that CUDA's allocator hands out and reserves, and the time of each step.

    It starts like a new process, with an empty cache and without cuBLAS' workspaces.
    """

    def __init__(self, device: str | torch.device) -> None:
        self._device = torch.device(device)
        self._timers: list[tuple] = []
        self._phases = PhasePeaks(self._device)
        self._peaks: dict[str, int] = {}
        self._reserved: list[int] = []

    def __enter__(self) -> CudaMeter:
        gc.collect()
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear is not None:
            clear()
        torch.cuda.empty_cache()
        self.before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(self, *error) -> None:
        pass

    def step(self, step: Callable[[Callable[[str], None]], None]) -> None:
        """Make a step and measure it, phase by phase."""
        if not self._peaks:
            self._peaks["model"] = torch.cuda.max_memory_allocated(self._device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._phases.begin_step()
        begin.record()
        step(self._phases.enter)
        end.record()
        self._timers.append((begin, end))
        for phase, size in self._phases.end_step().items():
            self._peaks[phase] = max(size, self._peaks.get(phase, 0))
        self._reserved.append(torch.cuda.memory_reserved(self._device))  # grows only, unless the card is full

    def result(self) -> dict:
        """Measurements for a row. `before`: bytes in use earlier, which the counts include; `retries`: how often the card was full."""
        torch.cuda.synchronize(self._device)
        ms = [round(begin.elapsed_time(end), 2) for begin, end in self._timers]
        counted = {"allocated": max(self._peaks.values()), "reserved": max(self._reserved), "phases": self._peaks}
        counters = {"before": self.before, "retries": torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0)}
        return {"counted": counted, **_median_ms(ms), **counters, "by_step": {"reserved": self._reserved, "ms": ms}}


class CpuMeter:
    """`CudaMeter` for a CPU: allocated bytes are counted by the profiler's memory events, and reserved bytes are None."""

    def __enter__(self) -> CpuMeter:
        from torch.profiler import ProfilerActivity, profile

        gc.collect()
        self._ms: list[float] = []
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._profile.__exit__(*error)

    def step(self, step: Callable[[], None]) -> None:
        """Make a step and time it."""
        start = time.perf_counter()
        step()
        self._ms.append(round(1000 * (time.perf_counter() - start), 2))

    def result(self) -> dict:
        """Measurements for a row, after the end of the context."""
        live = peak = 0
        profiler: Any = self._profile.profiler
        events = (event for event in profiler.kineto_results.events() if event.name() == "[memory]")
        for event in sorted(events, key=lambda event: event.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        return {"counted": {"allocated": peak, "reserved": None}, **_median_ms(self._ms)}


def _median_ms(ms: list[float]) -> dict:
    """Median milliseconds of a step, without the first two, which set things up; empty if there are no more."""
    return {"ms": statistics.median(ms[2:])} if len(ms) > 2 else {}


def measure(configuration: Configuration, *, device: str | torch.device = "cuda", steps: int = 6) -> dict:
    """Measure bytes and milliseconds of a few real steps: `counted`, `ms` and more.

    Raises `ValueError` for runs that `train` refuses, and for fp16 on a CPU, where it would be fp32.
    """
    if torch.device(device).type == "cpu" and configuration.recipe.mixed_precision == "fp16":
        raise ValueError('mixed_precision="fp16" needs a GPU: a CPU would compute in fp32')
    meter = CudaMeter(device) if torch.device(device).type == "cuda" else CpuMeter()
    with meter:
        run = Run.of(configuration, device)
        with run.steps() as step:
            for _ in range(steps):
                meter.step(step)
    return meter.result()


def attempt(configuration: Configuration, *, device: str | torch.device = "cuda", steps: int = 6) -> dict:
    """Row of a recording: the configuration and its measurements, or the reason why there are none."""
    try:
        result = measure(configuration, device=device, steps=steps)
    except torch.OutOfMemoryError as error:
        result = {"skipped": advice.what_happened(str(error))}
    except ValueError as error:
        result = {"skipped": str(error).partition("\n")[0]}
    except Exception as error:
        result = {"failed": _short(error)}
    return {**configuration.as_dict(), **result}


def planned(configuration: Configuration, card: Card | None) -> MemoryPlan:
    """Plan a configuration for a card, or without one for the kernels of a CPU. Raises `ValueError` like `plan`."""
    return planning.plan(
        configuration.model, configuration.recipe, resolution=configuration.size, gpu=card, checkpointing=configuration.choice,
        dtype=configuration.dtype, device="cpu" if card is None else "cuda",
    )  # fmt: skip


def forecast(configuration: Configuration, card: Card | None) -> dict:
    """Figures of the plan for a row, or the reason why there are none."""
    try:
        plan = planned(configuration, card)
        return {"allocated": plan.allocated_bytes, "reserved": plan.reserved_bytes, "phases": plan.peaks, "flops": plan.flops}
    except ValueError as error:
        return {"refused": str(error).partition("\n")[0]}
    except Exception as error:
        return {"failed": _short(error)}


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


# recordings


def card_as_dict(card: Card) -> dict:
    """Dictionary of a card, for a JSON file."""
    kept = {"name": card.name, "usable_bytes": card.usable_bytes, "capability": list(card.capability)}
    return {**kept, "multiprocessors": card.multiprocessors}


def card_from_dict(facts: Mapping) -> Card:
    """Card from the result of `card_as_dict`."""
    return Card(facts["name"], facts["usable_bytes"], tuple(facts["capability"]), facts.get("multiprocessors", 0), context_bytes=0)


def versions() -> dict[str, str]:
    """Versions of Python, CUDA and the libraries that a measurement depends on."""
    import platform

    facts = {"python": platform.python_version(), **({"cuda": torch.version.cuda} if torch.version.cuda else {})}
    for library in LIBRARIES:
        try:
            facts[library] = version(library)
        except PackageNotFoundError:
            continue
    return facts


def file_name(card: str) -> str:
    """File name for a card's recording: `NVIDIA H100 80GB HBM3` -> `gpu-nvidia-h100-80gb-hbm3.json`."""
    return f"gpu-{'-'.join(''.join(c if c.isalnum() else ' ' for c in card.lower()).split())}.json"


def write(path: Path, content: Mapping) -> Path:
    """Write a recording as JSON, with a line for each item of its lists."""
    parts = []
    for name, value in content.items():
        rows = ",\n".join(f"  {json.dumps(item)}" for item in value) if isinstance(value, list) else ""
        parts.append(f" {json.dumps(name)}: " + (f"[\n{rows}\n ]" if rows else json.dumps(value)))
    return files.write(path, "{\n" + ",\n".join(parts) + "\n}\n")


def record(path: str | Path | None = None, *, minutes: float = 10.0, tell: Callable[[str], None] = print) -> Path | None:
    """Measure as many `CONFIGURATIONS` as `minutes` allow on the GPU at hand, and write them beside their plans to a JSON file.

    The file is written anew after each, so that an interrupted recording keeps its rows. Configurations that the card cannot run, or that
    are predicted not to fit, are skipped with the reason.

    - `path`: file to write. Default: named after the card
    - `tell`: function that gets a line of text for each configuration

    Returns `path`; None, after telling why, without a GPU that torch has kernels for.
    """
    if not torch.cuda.is_available():
        tell("Nothing to record: torch finds no GPU here. In Colab: Runtime, Change runtime type, T4 GPU; then run all cells again.")
        return None
    if problem := devices.no_kernels(torch.device("cuda")):
        tell(f"Nothing to record: {problem}.")
        return None
    card = advice.card(torch.device("cuda", torch.cuda.current_device()))
    content = {"command": "sdnb.planner.measurements.record()", "card": card_as_dict(card), "versions": versions(), "rows": []}
    path = Path(path or file_name(card.name))
    deadline, longest = time.monotonic() + 60 * minutes, 0.0
    for number, configuration in enumerate(CONFIGURATIONS, 1):
        start = time.monotonic()
        if content["rows"] and start + longest > deadline:
            tell(f"The {minutes:g} minutes are over.")
            break
        try:
            content["rows"].append(_row(configuration, card))
        except KeyboardInterrupt:
            tell("Stopped.")
            break
        write(path, content)
        tell(f"{number}/{len(CONFIGURATIONS)} {configuration.name}: {outcome(content['rows'][-1])}")
        longest = max(longest, time.monotonic() - start)
    return path if content["rows"] else None


def _row(configuration: Configuration, card: Card) -> dict:
    plan = forecast(configuration, card)
    if "refused" in plan:
        return {**configuration.as_dict(), "skipped": plan["refused"]}
    if plan.get("allocated", 0) > card.usable_bytes:
        needs = f"predicted to need {plan['allocated'] / GIB:.2f} GiB, and the card has {card.usable_bytes / GIB:.2f}"
        return {**configuration.as_dict(), "planned": plan, "skipped": needs}
    return {**attempt(configuration), "planned": plan}


def outcome(row: Mapping) -> str:
    """Summary of a row, in a line: `measured 5.62 GiB, planned +0.4%; reserved 5.80, +1.0%; 412 ms a step`."""
    counted, plan = row.get("counted"), row.get("planned") or {}
    if not counted:
        return f"skipped: {row['skipped']}" if "skipped" in row else f"failed: {row.get('failed', 'no result')}"

    def part(count: str) -> str:
        comparison = f", planned {plan[count] / counted[count] - 1:+.1%}" if plan.get(count) else ""
        return f"{counted[count] / GIB:.2f} GiB{comparison}"

    reserved = f"; reserved {part('reserved')}" if counted["reserved"] else ""
    return f"measured {part('allocated')}{reserved}" + (f"; {row['ms']:.0f} ms a step" if "ms" in row else "")


def summary(path: str | Path | None) -> str:
    """Summary of a recording, in a few lines. `path` is None where nothing was recorded."""
    if path is None:
        return "Nothing was recorded."
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    measured = sum("counted" in row for row in content["rows"])
    lines = [f"{content['card']['name']}: {measured} configurations measured, {len(content['rows']) - measured} skipped or failed."]
    try:
        lines.append(str(judge(content["rows"])))
    except ValueError as error:
        lines.append(f"Not judged: {error}.")
    return "\n".join(lines)


def recordings() -> dict[str, Path]:
    """Files of the recorded cards, by name, such as `nvidia-h100-80gb-hbm3`."""
    return {path.stem.removeprefix("gpu-"): path for path in sorted(files.bundled("recorded").glob("gpu-*.json"))}


LIMITS = {
    "allocated, median": 0.005,
    "allocated, 95th percentile": 0.01,
    "allocated, most below": 0.01,
    "reserved, 95th percentile": 0.05,
    "reserved, most below": 0.05,
}
"""Largest allowed errors of plans, relative to the measurement. `most below` is the worst row: a plan that is too low promises a run that
does not fit. Reserved memory is known less well, since it depends on the addresses that the driver gives: five recorded sequences of
requests of an H200, played into `allocator.Allocator`, reserved between 0.3% less and 1.5% more than the card had."""
MIN_ROWS = 10
"""Fewest rows that `judge` accepts."""


@dataclass(frozen=True)
class Verdict:
    """Errors of the plans of some rows, relative to the measurements."""

    rows: int
    errors: dict[str, float]
    """Errors by the names of `LIMITS`."""
    problems: tuple[str, ...]
    """Exceeded limits, each with the worst row; empty when the plans are good enough."""

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value:.2%}" for name, value in self.errors.items())
        return f"{self.rows} configurations: {figures}. " + ("; ".join(self.problems) or "Within all limits") + "."


def judge(rows: Iterable[Mapping]) -> Verdict:
    """Compare `planned` with `counted` in the rows that have both. Raises `ValueError` for fewer than `MIN_ROWS`."""
    both = [row for row in rows if row.get("counted") and (row.get("planned") or {}).get("allocated")]
    if len(both) < MIN_ROWS:
        raise ValueError(f"{len(both)} rows were measured and planned, and fewer than {MIN_ROWS} say nothing: record for longer")

    def relative_errors(count: str) -> list[float]:
        return [row["planned"][count] / row["counted"][count] - 1 for row in both if row["counted"][count]]

    def percentile_95(values: list[float]) -> float:
        return sorted(map(abs, values))[int(0.95 * len(values))]

    allocated, reserved = relative_errors("allocated"), relative_errors("reserved")
    errors = {"allocated, median": statistics.median(map(abs, allocated))}
    for count, values in (("allocated", allocated), ("reserved", reserved)):
        if values:
            errors |= {f"{count}, 95th percentile": percentile_95(values), f"{count}, most below": max(0.0, -min(values))}
    problems = [f"{name} is {value:.2%}, more than {LIMITS[name]:.1%}" for name, value in errors.items() if value > LIMITS[name]]
    for place, problem in enumerate(problems):
        count, _, figure = problem.partition(", ")
        if figure.startswith("most below"):
            worst = min(both, key=lambda row: row["planned"][count] / row["counted"][count] if row["counted"][count] else 1)
            problems[place] += f" ({Configuration.from_dict(worst).name})"
    return Verdict(len(both), errors, tuple(problems))
