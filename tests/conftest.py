"""What the tests share: tiny-sd loaded once, a fresh copy for those that train it."""

import copy
import dataclasses
from pathlib import Path

import pytest

import sdnb

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def tiny():
    """tiny-sd; not to be changed."""
    return sdnb.load("tiny", device="cpu")


@pytest.fixture
def fresh(tiny):
    """tiny-sd with a U-Net of its own."""
    return dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet))


@pytest.fixture(scope="session")
def ink():
    return sdnb.pictures("emoji-ink")
