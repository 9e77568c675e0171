"""What is read of the machine, and that nothing which is missing or breaks is in the way."""

import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from sdnb.memory import gauges
from sdnb.memory.gauges import Gauges, PhasePeaks


def test_the_process_is_read_on_its_own(monkeypatch):
    sizes = iter(range(1000, 10**9, 1000))
    monkeypatch.setattr(gauges, "process_bytes", lambda: next(sizes))
    with Gauges(hertz=50) as read:
        assert read.latest.process_bytes == 1000  # at once
        deadline = time.monotonic() + 5
        while read.latest.process_bytes < 4000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert read.latest.process_bytes >= 4000
    assert not read._thread.is_alive()


def test_the_process_is_as_large_as_the_system_says():
    assert gauges.process_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert gauges.process_bytes() > 50 * 2**20


@pytest.fixture
def card(monkeypatch):
    """A card that NVML knows; `fails` makes it stop answering."""
    state = SimpleNamespace(fails=False, asked=0)

    def answer(value):
        def ask(*_):
            state.asked += 1
            if state.fails:
                raise RuntimeError("GPU is lost")
            return value

        return ask

    nvml = SimpleNamespace(
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetPowerUsage=answer(200_000),
        nvmlDeviceGetEnforcedPowerLimit=answer(400_000),
        nvmlDeviceGetUtilizationRates=answer(SimpleNamespace(gpu=98)),
        nvmlDeviceGetMemoryInfo=answer(SimpleNamespace(used=9 * 2**30)),
        nvmlDeviceGetTemperature=answer(61),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16 * 2**30, uuid="123"))
    return state


def test_a_card_is_read(card):
    with Gauges() as read:
        assert (read.name, read.capacity_bytes, read.trouble) == ("Card", 16 * 2**30, "")
        now = read.latest
        assert (now.gpu_percent, now.gpu_bytes, now.power_watts, now.power_percent, now.temperature) == (98, 9 * 2**30, 200, 50, 61)


def test_a_card_that_fails_on_the_way_is_left_out(card):
    with Gauges(hertz=100) as read:
        card.fails = True
        deadline = time.monotonic() + 5
        while read.latest.gpu_percent is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert read.latest.gpu_percent is None
        assert read.latest.process_bytes > 0
        assert "GPU is lost" in read.trouble
        asked = card.asked
        time.sleep(0.1)
        assert card.asked == asked


def test_a_sensor_that_a_card_has_not_is_left_out_alone(card):
    def unsupported(*_):
        raise RuntimeError("Not Supported")

    sys.modules["pynvml"].nvmlDeviceGetEnforcedPowerLimit = unsupported
    with Gauges() as read:
        now = read.latest
        assert (now.gpu_percent, now.power_watts, now.temperature) == (98, 200, 61)
        assert now.power_percent is None
        assert read.trouble == "no power percent from now on: RuntimeError: Not Supported"


def test_without_nvml_there_is_only_the_process(card, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Gauges() as read:
        assert read.latest.gpu_percent is None
        assert read.latest.process_bytes > 0
        assert read.capacity_bytes == 16 * 2**30  # torch knows that
        assert "ModuleNotFoundError" in read.trouble or "ImportError" in read.trouble


def test_the_peaks_of_a_step_by_phase(monkeypatch):
    """With the allocator's counters replaced: each phase has the highest peak of its own stretches."""
    peak = iter([100, 700, 300, 900, 400])
    resets = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(peak))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1000)
    phases = PhasePeaks(torch.device("cuda"))
    phases.begin_step()
    for phase in ("forward", "backward", "forward", "backward", "optimizer"):  # two accumulated batches
        phases.enter(phase)
    assert phases.end_step() == {"forward": 300, "backward": 900, "optimizer": 400}
    assert len(resets) == 5
    assert (phases.allocated_bytes, phases.reserved_bytes) == (50, 1000)


def test_on_a_cpu_there_are_no_counters():
    phases = PhasePeaks(torch.device("cpu"))
    phases.begin_step()
    phases.enter("forward")
    assert phases.end_step() is phases.allocated_bytes is phases.reserved_bytes is None


@pytest.mark.gpu
def test_on_a_gpu_the_peaks_are_the_allocators():
    phases = PhasePeaks(torch.device("cuda"))
    phases.begin_step()
    phases.enter("forward")
    kept = torch.ones(2**20, device="cuda")
    phases.enter("backward")
    other = torch.ones(2**22, device="cuda")
    del other
    phases.enter("optimizer")
    peaks = phases.end_step()
    assert peaks["backward"] - peaks["forward"] == 2**24
    assert peaks["optimizer"] == peaks["forward"]
    del kept
    assert gauges.process_bytes() > 0
