"""Gauges of a device and a process while something runs: allocator peaks, process memory, the card's own sensors."""

from __future__ import annotations

import platform
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class PhasePeaks:
    """Peaks of the CUDA allocator in each phase of a step. Reading its counters does not wait for the GPU.

    On another device nothing is counted, and every answer is None.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._peaks: dict[str, int] = {}
        self._phase: str | None = None

    def begin_step(self) -> None:
        """Forget the previous step's peaks."""
        self._peaks, self._phase = {}, None

    def enter(self, phase: str) -> None:
        """Begin a phase, such as `"forward"`. If a phase comes more than once in a step, its highest peak counts."""
        if self._device is None:
            return
        import torch

        self._leave()
        self._phase = phase
        torch.cuda.reset_peak_memory_stats(self._device)

    def end_step(self) -> dict[str, int] | None:
        """Peak bytes by phase, or None on a device without such a counter."""
        if self._device is None:
            return None
        self._leave()
        self._phase = None
        return self._peaks

    def _leave(self) -> None:
        import torch

        if self._phase is not None:
            self._peaks[self._phase] = max(self._peaks.get(self._phase, 0), torch.cuda.max_memory_allocated(self._device))

    @property
    def allocated_bytes(self) -> int | None:
        """Bytes in use by tensors now, as the CUDA allocator counts them; None on another device."""
        import torch

        return None if self._device is None else torch.cuda.memory_allocated(self._device)

    @property
    def reserved_bytes(self) -> int | None:
        """Bytes that the CUDA allocator holds now, in use or not; None on another device."""
        import torch

        return None if self._device is None else torch.cuda.memory_reserved(self._device)


def room(device: torch.device) -> int | None:
    """Bytes that this process can still allocate on a GPU: free on the card, or reserved and unused. None on another device."""
    import torch

    if device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@dataclass(frozen=True, slots=True)
class Reading:
    """Values of the gauges at one moment; None where there is no such gauge."""

    process_bytes: int | None = None
    """RAM of this process, in bytes."""
    gpu_percent: float | None = None
    """Share of the last sampling period in which a kernel ran on the card."""
    gpu_bytes: int | None = None
    """Bytes in use on the card, by all processes."""
    power_percent: float | None = None
    """Percent of the power limit that is set for the card."""
    power_watts: float | None = None
    temperature: float | None = None
    """Degrees Celsius."""


NOTHING = Reading()
"""Reading without any gauge."""


class Gauges:
    """Reads the process's memory and, through NVML, the first visible card, from a thread of its own, `hertz` times a second.

        with Gauges() as gauges:
            ...
            gauges.latest.gpu_percent

    A gauge that is missing or fails is left out from then on; `trouble` then says why. Nothing here ever raises.
    """

    def __init__(self, hertz: float = 2.0) -> None:
        self._seconds = 1 / hertz
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._sensors: dict[str, Callable[[], float]] = {}
        self.latest = NOTHING
        self.trouble = ""
        self.name = ""
        """Name of the card as torch gives it; empty without one."""
        self.may_spill = sys.platform == "win32" or "microsoft" in platform.uname().release.lower()
        """Whether the driver moves memory off a full card: that of Windows does, also under WSL."""
        self.capacity_bytes: int | None = None
        """Bytes of memory on the card."""

    def __enter__(self) -> Gauges:
        self._open()
        self._read()
        self._thread = threading.Thread(target=self._poll, name="sdnb gauges", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def _open(self) -> None:
        torch = sys.modules.get("torch")  # a process that trains on CUDA has imported it
        if torch is None or not torch.cuda.is_available():
            return
        try:
            self.name = torch.cuda.get_device_name()
            self.capacity_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
            import pynvml

            pynvml.nvmlInit()
            # NVML ignores CUDA_VISIBLE_DEVICES, so the card is found by its UUID
            uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
            card = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
            self._sensors = _sensors(pynvml, card)
        except Exception as error:
            self.trouble = f"no utilisation, power and temperature: {type(error).__name__}: {error}"

    def _poll(self) -> None:
        while not self._stop.wait(self._seconds):
            self._read()

    def _read(self) -> None:
        card = {}
        for name, read in list(self._sensors.items()):
            try:
                card[name] = read()
            except Exception as error:
                del self._sensors[name]
                self.trouble = f"no {name.replace('_', ' ')} from now on: {type(error).__name__}: {error}"
        try:
            self.latest = Reading(process_bytes(), **card)
        except Exception as error:
            self.trouble = f"no process memory: {type(error).__name__}: {error}"
            self.latest = Reading(**card)


def _sensors(nvml, card) -> dict[str, Callable[[], float]]:
    """Functions that read a card's sensors, by field of `Reading`. A sensor that the card lacks raises when it is read."""

    def watts() -> float:
        return nvml.nvmlDeviceGetPowerUsage(card) / 1000

    return dict(
        gpu_percent=lambda: nvml.nvmlDeviceGetUtilizationRates(card).gpu,
        gpu_bytes=lambda: nvml.nvmlDeviceGetMemoryInfo(card).used,
        power_percent=lambda: 100 * watts() / (nvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1000),
        power_watts=watts,
        temperature=lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU),
    )


def process_bytes() -> int:
    """Bytes of RAM that this process holds."""
    import psutil

    return psutil.Process().memory_info().rss
