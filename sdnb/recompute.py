"""Recomputing a block in backward: what torch's non-reentrant checkpointing does, with a say in which operators run again.

A block is wrapped by putting a `Recomputed` in the place of its `forward`. Forward then keeps the block's inputs alone, and the
results of the operators that were chosen to be kept; backward runs the block again, and where it meets a kept result it takes
that instead of running the operator.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from . import operators

if TYPE_CHECKING:
    from torch.nn import Module


class Recomputed:
    """A block's `forward` that is recomputed in backward.

    `keep` are the places of the operators whose results are kept, counted among those of the block that `operators.kind` knows.
    `skip` are the places of those that need not run again, because nothing that backward needs is made from their results.
    Nothing kept and nothing skipped is plain checkpointing.
    """

    def __init__(self, forward, keep: frozenset[int] = frozenset(), skip: frozenset[int] = frozenset()) -> None:
        self.forward = forward
        self.keep = keep
        self.skip = skip

    def __call__(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        contexts = {"context_fn": self._contexts} if self.keep or self.skip else {}
        return checkpoint(self.forward, *args, use_reentrant=False, **contexts, **kwargs)

    def _contexts(self) -> tuple[TorchDispatchMode, TorchDispatchMode]:
        kept: dict[int, tuple] = {}
        return _Keep(self.keep, self.skip, kept), _Reuse(kept)


class _Keep(TorchDispatchMode):
    """In forward: put the chosen results aside, and of those to be skipped the shapes."""

    def __init__(self, keep: frozenset[int], skip: frozenset[int], kept: dict[int, object]) -> None:
        super().__init__()
        self.keep, self.skip, self.kept, self.place = keep, skip, kept, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if operators.kind(func) is not None:
            place, self.place = self.place, self.place + 1
            if place in self.keep:
                # a result that took random numbers is not kept: run again, it takes the same ones, and so does what follows it
                if not operators.is_random(func, args, kwargs or {}):
                    self.kept[place] = _aside(out)
            elif place in self.skip and isinstance(out, Tensor):
                self.kept[place] = partial(torch.empty_strided, out.shape, out.stride(), dtype=out.dtype, device=out.device)
        return out


class _Reuse(TorchDispatchMode):
    """In backward: take what was put aside, run all else. A second backward runs everything."""

    def __init__(self, kept: dict[int, object]) -> None:
        super().__init__()
        self.kept, self.place = kept, 0

    def __enter__(self):
        self.place = 0
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if operators.kind(func) is not None:
            place, self.place = self.place, self.place + 1
            if place in self.kept:
                return _taken(self.kept.pop(place))
        return func(*args, **(kwargs or {}))


def _aside(out):
    """The results as tensors that no graph knows, each with its version."""
    if not isinstance(out, Tensor):
        return tuple(_aside(value) if isinstance(value, Tensor) else value for value in out)
    # the copy shares the counter of changes in place only if this key, off beneath autograd, is on
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        out = out.detach()
    return _Aside(out, out._version)


class _Aside(NamedTuple):
    tensor: Tensor
    version: int


def _taken(aside):
    if isinstance(aside, partial):
        return aside()
    if not isinstance(aside, _Aside):
        return tuple(_taken(part) if isinstance(part, _Aside) else part for part in aside)
    if aside.tensor._version != aside.version:
        raise RuntimeError("a kept result was changed in place after it was made: recompute this block without keeping it")
    return aside.tensor


def units(model: Module, inputs: dict) -> dict[str, Module]:
    """The blocks that diffusers and transformers mark as worth recomputing, by name, in the order in which they run.

    Found by calling `model`, which must be on the meta device, with `inputs`. A marked stage of an autoencoder counts as the
    blocks it is made of: recomputing one of them at a time takes less room than all of them at once.
    """
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, Module] = {}

    def seen(function, *args, **kwargs):
        block = _owner(function)
        for part in _parts(block):
            found.setdefault(names[part], part)
        return function(*args, **kwargs)

    marked = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    with _attributes(marked, gradient_checkpointing=True, _gradient_checkpointing_func=seen, training=True), torch.enable_grad():
        model(**inputs)
    return {name: block for name, block in found.items() if not any(name.startswith(f"{other}.") for other in found)}


def _owner(function) -> Module:
    """The block behind what a marked module hands to its checkpointing function."""
    if isinstance(function, torch.nn.Module):
        return function
    if isinstance(function, partial):  # transformers binds the keyword arguments
        return function.args[0] if function.args else _owner(function.func)
    return function.__self__


def _parts(block: Module) -> list[Module]:
    lists = [getattr(block, name, None) for name in ("resnets", "attentions", "downsamplers", "upsamplers")]
    return [part for parts in lists if parts is not None for part in parts if part is not None] or [block]


@contextmanager
def _attributes(modules: list[Module], **values) -> Iterator[None]:
    """Set attributes of modules, and put back what was there."""
    absent = object()
    before = [{name: vars(module).get(name, absent) for name in values} for module in modules]
    try:
        for module in modules:
            vars(module).update(values)
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            for name, value in old.items():
                if value is absent:
                    vars(module).pop(name, None)
                else:
                    vars(module)[name] = value


def on_meta(model: Module) -> Module:
    """A twin of `model` on the meta device: the same modules, hooks and modes, no weights. Nothing large is copied."""
    memo = {}
    for tensor in (*model.parameters(), *model.buffers()):
        twin = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = torch.nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else twin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model, memo)
