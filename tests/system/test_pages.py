"""`sdnb.system.pages`: freed memory serves again, and is given back at the end."""

import resource
import sys

import pytest
import torch

from sdnb.system import pages

SIDE = 5000
"""Of a tensor of 100 MB, which glibc by itself gives back as soon as it is freed."""
PAGES = 4 * SIDE**2 // resource.getpagesize() if sys.platform == "linux" else 0


def faults(times: int = 3) -> int:
    """Pages that the system hands out while a large tensor is made and freed a few times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(SIDE, SIDE)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.fixture
def glibc(monkeypatch):
    for name in ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    if pages._glibc() is None:
        pytest.skip("only glibc can be told to keep memory")


def test_freed_memory_serves_again(glibc):
    with pages.kept() as able:
        assert able
        faults(4)  # until there is a place that fits
        assert faults() < PAGES / 4


def test_it_is_given_back_at_the_end(glibc):
    before = resident()
    with pages.kept():
        faults(1)
        assert resident() > before + 2 * SIDE**2
    assert resident() < before + 2 * SIDE**2


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_the_environment_stand(glibc, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pages.kept() as able:
        assert not able


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(pages, "_glibc", lambda: None)
    with pages.kept() as able:
        assert not able
