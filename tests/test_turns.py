"""`benchmarks.turns`: a run waits for its turn and says what a step took; `benchmarks.speed_beside_sd_scripts` makes medians of that."""

import os
import sys

import pytest

from benchmarks.speed_beside_sd_scripts import interval
from benchmarks.turns import Runner

from .conftest import ROOT

SIDE = 256
RUN = f"""
import torch
from benchmarks.turns import Turns

layer = torch.nn.Linear({SIDE}, {SIDE}, bias=False)
optimizer = torch.optim.SGD(layer.parameters(), momentum=0.9)
Turns()
while True:
    print("what a script prints")
    layer(torch.ones({SIDE}, {SIDE})).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.fixture
def runner(tmp_path):
    made = Runner([sys.executable, "-c", RUN], os.environ | {"PYTHONPATH": str(ROOT)}, tmp_path / "log", tmp_path)
    yield made
    made.stop()


def test_a_run_steps_when_it_is_told(runner):
    first = runner.read()
    assert set(first) == {"resident"}
    took = [runner.turn() for _ in range(2)]
    assert all(set(row) == {"seconds", "cpu", "kernel", "faults", "resident"} and row["seconds"] > 0 for row in took)
    found = runner.profiled()
    # weight, momentum, gradient, input, output and the gradient of the output
    one = 4 * SIDE**2
    assert 5 * one <= found["peak"] <= 7 * one
    assert 0 < found["kernels"]["products"] < found["kernels"]["all"]
    assert runner.turn()["cpu"] >= 0
    runner.stop()
    assert runner.process.returncode == 0


def test_a_run_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="no such optimizer"):
        Runner([sys.executable, "-c", "raise SystemExit('no such optimizer')"], os.environ, tmp_path / "log", tmp_path).read()


@pytest.mark.parametrize(("count", "low", "high"), [(4, 0, 3), (10, 1, 8), (20, 5, 14)])
def test_the_interval_of_a_median(count, low, high):
    assert interval([float(value) for value in reversed(range(count))]) == ((count - 1) / 2, low, high)
