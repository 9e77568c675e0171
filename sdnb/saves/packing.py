"""The state of a run as plain JSON and tensors, without pickles; and the states of random generators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def pack(value: Any, name: str, tensors: dict[str, Tensor], seen: dict | None = None) -> Any:
    """`value` as plain JSON, its tensors put into `tensors` under names that begin with `name`.

    Knows None, booleans, numbers, text, tensors, arrays and dtypes, and dicts, lists and tuples of them; a tensor that is met twice is
    kept once. Raises `ValueError`, saying where, for anything else.
    """
    import numpy
    import torch

    seen = {} if seen is None else seen
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, torch.Tensor):
        same = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        known = seen.setdefault(same, name) if value.numel() else name
        if known == name:
            tensors[name] = value.detach()
        return {"tensor": known}
    if isinstance(value, numpy.ndarray):
        return {"array": pack(torch.from_numpy(value.astype(numpy.int64)), name, tensors), "dtype": str(value.dtype)}
    if isinstance(value, numpy.generic):
        return pack(value.item(), name, tensors, seen)
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"dict": [[pack(key, name, tensors), pack(each, f"{name}.{key}", tensors, seen)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        parts = [pack(each, f"{name}.{place}", tensors, seen) for place, each in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": parts}
    raise ValueError(f"{name} is a {type(value).__name__}, which a save cannot hold without a pickle: train without save_to")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `pack` was given, its tensors those of `tensors`."""
    import torch

    if not isinstance(value, dict):
        return value
    if "array" in value:
        return unpack(value["array"], tensors).numpy().astype(value["dtype"])
    kind, content = next(iter(value.items()))
    if kind == "float":
        return float(content)
    if kind == "tensor":
        return tensors[content]
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "dict":
        return {unpack(key, tensors): unpack(each, tensors) for key, each in content}
    parts = [unpack(each, tensors) for each in content]
    return tuple(parts) if kind == "tuple" else parts


# random generators


def random_states() -> dict:
    """States of the random generators of torch, on the CPU and every GPU, of Python and of numpy."""
    import random

    import numpy
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    legacy = numpy.random.get_state(legacy=False)  # noqa: NPY002  the one that all code shares
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate(), "numpy": legacy}


def set_random_states(states: Mapping) -> None:
    """Put back the states that `random_states` returned; those of GPUs that are not here are left out."""
    import random

    import numpy
    import torch

    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])  # noqa: NPY002
    if torch.cuda.is_available():
        for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
