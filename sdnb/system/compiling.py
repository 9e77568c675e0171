"""torch.compile for the repeated blocks of a model: the transformer blocks and the residual blocks, each a region of its own.

Compiling a whole U-Net takes minutes for each size of picture. Its blocks are copies of a few classes, and blocks of one class and one
shape share what was compiled, so that seconds are enough. What lies around them, such as the recomputing of a block, stays Python.
"""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch.nn import Module

REPEATED = ("BasicTransformerBlock", "ResnetBlock2D")
"""Classes of the blocks that are compiled."""
MOST_SHAPES = 1024
"""Compiled variants of one class; torch's own limit of 8 is less than a U-Net has shapes, and beyond it nothing more is compiled."""


def check(backend: str, device: torch.device | None = None) -> None:
    """Raise `ValueError`, with the way out, for a backend that this torch does not have, or that cannot compile for `device`."""
    import torch._dynamo

    known = torch._dynamo.list_backends(exclude_tags=("debug", "experimental"))
    name = backend.lower()
    if name not in (*known, "eager", "aot_eager"):
        raise ValueError(f"dynamo_backend={backend!r}: torch {torch.__version__} has {', '.join(sorted({*known, 'eager', 'aot_eager'}))}")
    if name != "inductor" or device is None:
        return
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (7, 0):
            raise ValueError("torch_compile: inductor has no kernels for a GPU older than Volta (7.0): leave torch_compile out")
        if importlib.util.find_spec("triton") is None:
            raise ValueError("torch_compile: inductor needs triton, which is not installed: pip install triton, or leave torch_compile out")
    elif device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:
            raise ValueError("torch_compile: inductor needs a C++ compiler on a CPU: install g++, or leave torch_compile out") from error


class Compiled:
    """Context in which the repeated blocks of a model are compiled with `backend`; afterwards the model is as it was.

    Blocks are compiled when they first run. Random numbers are drawn as without compiling, so that dropout is the same.
    """

    def __init__(self, model: Module, backend: str = "inductor") -> None:
        self.blocks = [block for block in model.modules() if type(block).__name__ in REPEATED]
        """The blocks that are compiled."""
        self.backend = backend.lower()
        self._opened = ExitStack()

    def __enter__(self) -> Compiled:
        import torch._dynamo
        import torch._inductor.config

        with ExitStack() as opened:
            opened.enter_context(torch._dynamo.config.patch(recompile_limit=MOST_SHAPES, accumulated_recompile_limit=MOST_SHAPES))
            opened.enter_context(torch._inductor.config.patch(fallback_random=True))
            for block in self.blocks:
                opened.callback(_put_back, block, vars(block).get("forward"))
                block.forward = torch.compile(block.forward, backend=self.backend, dynamic=False)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._opened.close()


def _put_back(block: Module, forward: object) -> None:
    vars(block).pop("forward", None)
    if forward is not None:
        vars(block)["forward"] = forward
