"""What the tests share: tiny-sd loaded once, a fresh copy for those that train it."""

import copy
import dataclasses
import os
import signal
from pathlib import Path

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # before torch is imported: the workers share the cores, their kernels too
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // int(workers))))

os.environ["LC_ALL"] = "C.UTF-8"  # the commands speak the language of the locale

import hypothesis
import pytest

import sdnb

ROOT = Path(__file__).resolve().parent.parent
LESSONS = ("", *(path.name[:2] for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))))
"""The numbers of the lessons, and none."""
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job in the background; the tests interrupt themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The same inputs each time, so that a class sees the same result twice; HYPOTHESIS_PROFILE=random looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None)
hypothesis.settings.register_profile("random", derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


LONGEST = ("notebooks/06", "notebooks/05", "notebooks", "tests/watch/test_browser", "tests/planner/test_planning")
"""Where the longest tests are. They come first, so that no process is left alone with one."""


def pytest_collection_modifyitems(items):
    import torch

    items.sort(key=lambda item: next((place for place, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def tiny():
    """tiny-sd; not to be changed."""
    return sdnb.load("tiny", device="cpu")


@pytest.fixture
def fresh(tiny):
    """tiny-sd with every part of its own: adapters may come beside its text encoder, too."""
    return dataclasses.replace(tiny, **{name: copy.deepcopy(part) for name, part in tiny.parts.items()})


@pytest.fixture(scope="session")
def ink():
    return sdnb.pictures("emoji-ink")


def switch_checkpointing(model, on=True):
    """transformers' own switch, which had another name before 5.23."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_{'enable' if on else 'disable'}")()
