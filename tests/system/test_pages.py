"""`sdnb.system.pages`: freed memory serves again, and is given back at the end."""

import subprocess
import sys

import pytest

from sdnb.system import pages

from ..conftest import ROOT

RUN = """
import resource
from sdnb.system import pages

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"x" * 100_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

rows = [faults(3), resident()]
with pages.kept() as able:
    faults(2)
    rows += [faults(3), resident()]
print(able, *rows, resident())
"""


def run(**environment: str) -> tuple[bool, list[int]]:
    """In a process of its own, whose memory nothing else has shaped: whether memory could be kept, and what was measured."""
    made = subprocess.run([sys.executable, "-c", RUN], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    able, *rows = made.stdout.split()
    return able == "True", [int(row) for row in rows]


@pytest.mark.skipif(pages._glibc() is None, reason="only glibc can be told to keep memory")
def test_freed_memory_serves_again_and_is_given_back_at_the_end():
    able, (faults, resident, faults_kept, resident_kept, resident_after) = run()
    assert able
    assert faults_kept < faults / 4
    assert resident_kept > resident + 50_000_000 > resident_after


@pytest.mark.skipif(pages._glibc() is None, reason="only glibc can be told to keep memory")
@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_settings_of_the_environment_stand(name):
    assert not run(**{name: "1"})[0]


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(pages, "_glibc", lambda: None)
    with pages.kept() as able:
        assert not able
