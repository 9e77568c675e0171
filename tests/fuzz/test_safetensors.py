"""The header of a safetensors file, and what is decided by it alone."""

import math

import safetensors.torch
import torch

from sdnb.models import weights

from . import damages
from .doors import fuzz, only

WHOLE = safetensors.torch.save(
    {"a.weight": torch.ones(2, 3), "b.bias": torch.ones(4, dtype=torch.float16), "c": torch.tensor(1), "d": torch.empty(0, 5)},
    {"format": "pt", "about": "a file"},
)


@fuzz(damage=damages.safetensors_files(WHOLE))
def test_headers(tmp_path, damage):
    path, content = tmp_path / "x.safetensors", damage.of(WHOLE)
    path.write_bytes(content)
    with only(ValueError):
        header = weights.header(path)
        assert header.shapes.keys() == header.precisions.keys()
        assert all(isinstance(size, int) and size >= 0 for shape in header.shapes.values() for size in shape)
        assert sum(map(math.prod, header.shapes.values())) <= 8 * len(content)
        assert all(isinstance(text, str) for pair in header.metadata.items() for text in pair)
