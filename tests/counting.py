"""How many kernels a call would launch, counted as the operators it dispatches."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FREE = ("aten.empty", "aten.detach", "profiler.", "aten.lift_fresh", "aten.alias", "aten._local_scalar_dense")
"""Operators that compute nothing."""


class _Count(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and not str(func).startswith(FREE)
        return func(*args, **kwargs or {})


def launches(call) -> int:
    with torch.no_grad(), _Count() as mode:
        call()
    return mode.count
