"""Steps of a training run that wait for their turn, and what each took: seconds, CPU seconds, page faults, peaks, kernels.

A run that is told to take turns stops right after each optimizer step, says on its standard output what the step took, and reads from its
standard input how to go on: `go` for one more step, `profile` for one whose tensors and operators are counted, `stop`. So several runs,
each in a process of its own, hold each other in turns, and whatever else the machine does meets all of them.

Works in an environment with torch and without this package's other requirements, such as that of sd-scripts.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

KERNELS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "_addmm_activation", "mkl_linear", "linear"),
    "convolutions": (
        "mkldnn_convolution", "mkldnn_convolution_backward", "convolution_backward", "_slow_conv2d_forward", "_slow_conv2d_backward",
        "thnn_conv2d", "_convolution", "convolution",
    ),
    "attention": (
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward", "_softmax",
        "_softmax_backward_data",
    ),
    "norms": ("native_group_norm", "native_group_norm_backward", "native_layer_norm", "native_layer_norm_backward"),
}  # fmt: skip
"""Operators that do a step's arithmetic."""


class Turns:
    """In the run's own process: waits after each optimizer step. Standard output is then this conversation's alone."""

    def __init__(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.began: dict[str, float] | None = None
        self._after = self._wait
        register_optimizer_step_post_hook(lambda *given: self._after(*given))

    def _wait(self, optimizer, args, kwargs) -> None:
        took: dict[str, object] = {}
        if self.began is not None:
            took = {name: value - self.began[name] for name, value in _now().items()}
        took["resident"] = _resident()
        self._say(took)
        word = sys.stdin.readline().strip()
        if word == "profile":
            self._profile(optimizer)
        elif word == "go":
            self._reset_resident()
            self.began = _now()
        else:
            os._exit(0)

    def _say(self, row: dict) -> None:
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()

    def _profile(self, optimizer) -> None:
        """Count two steps, of which the second is told: then the gradients of the step before are freed under the profiler's eyes."""
        from torch.profiler import ProfilerActivity, profile

        gradients = {_key(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
        alive = sum(_alive(gradients).values())
        profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        profiler.start()
        steps = 0

        def after(optimizer, args, kwargs) -> None:
            nonlocal steps
            steps += 1
            if steps < 2:
                return
            profiler.stop()
            self._after = self._wait
            self._say({"alive": alive, "peak": alive + _most(profiler), "kernels": _kernels(profiler, steps)})
            self.began = None
            self._wait(optimizer, args, kwargs)

        self._after = after

    @staticmethod
    def _reset_resident() -> None:
        """Let the kernel count the most resident memory anew, where it can."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return


def _now() -> dict[str, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": time.perf_counter(), "cpu": used.ru_utime + used.ru_stime, "kernel": used.ru_stime, "faults": used.ru_minflt}


def _resident() -> int:
    """The most bytes of this process that were in memory at once, since `_reset_resident`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _key(tensor) -> int:
    return tensor.untyped_storage()._cdata


def _alive(apart: set[int]) -> dict[int, int]:
    """Bytes of each storage that Python knows a tensor of, but for those `apart`."""
    import torch

    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if (
            issubclass(type(thing), torch.Tensor)
            and thing.layout == torch.strided
            and thing.device.type == "cpu"
            and _key(thing) not in apart
        ):
            found[_key(thing)] = thing.untyped_storage().nbytes()
    return found


def _most(profiler) -> int:
    """The most bytes that the CPU allocator had handed out since the profiler began."""
    live = most = 0
    events = (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def _kernels(profiler, steps: int) -> dict[str, float]:
    """Seconds a step inside each kind of operator, and in all of them."""
    kinds = {f"aten::{name}": kind for kind, names in KERNELS.items() for name in names}
    seconds = dict.fromkeys([*KERNELS, "all"], 0.0)
    for row in profiler.key_averages():
        if row.key.startswith("aten::"):
            seconds["all"] += row.self_cpu_time_total / 1e6 / steps
            if kind := kinds.get(row.key):
                seconds[kind] += row.self_cpu_time_total / 1e6 / steps
    return seconds


class Runner:
    """In the process that measures: a run in a process of its own, and its turns."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path, folder: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, cwd=folder, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def turn(self, word: str = "go") -> dict:
        """Say how to go on and wait for what it took. Raises `RuntimeError` with the end of what the run printed."""
        assert self.process.stdin
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict:
        """The run's next line."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("\n".join(self.log.read_text(errors="replace").strip().splitlines()[-25:]))
        return json.loads(line)

    def profiled(self) -> dict:
        """The peak and the kernels of one step."""
        found = self.turn("profile")
        self.read()
        return found

    def stop(self) -> None:
        """End the run."""
        if self.process.poll() is None and self.process.stdin:
            self.process.stdin.close()  # it reads an empty line
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
