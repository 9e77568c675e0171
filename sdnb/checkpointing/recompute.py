"""Recomputing a block in backward: torch's non-reentrant checkpointing, with a say in which operators run again.

A block keeps every tensor that its backward needs until backward gets there. Checkpointing keeps the block's inputs alone, and runs the
block once more when backward arrives. `torch.utils.checkpoint` does so for a block as a whole. Here the results of some operators can be
kept, and then these operators do not run again.

Take the feed-forward part of a transformer, `Linear(256, 1024)`, GELU, `Linear(1024, 256)`, for 1,024 tokens. Its input is 1 MiB, the
results of the first layer and of the GELU 4 MiB each:

    choice                    keeps for backward        runs again
    plain                     1 + 4 + 4 = 9 MiB         nothing
    Again(keep={0})           1 + 4     = 5 MiB         the GELU
    Again()                   1         = 1 MiB         the first layer and the GELU

Operators are counted as they run, and only those that `operators.kind` knows: products of matrices, convolutions, attention. Here the
first layer is number 0 and the second number 1. The GELU has no number, as it is cheap and always runs again. The second layer never
does: recomputing stops once the last tensor that backward needs is there, which is the GELU's result.

    >>> from sdnb.memory import MIB, MemoryTrace
    >>> def saved(again):
    ...     block = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256))
    ...     if again is not None:
    ...         block.forward = Recomputed(block, again)
    ...     with MemoryTrace(block) as trace:
    ...         block(torch.zeros(1024, 256)).sum().backward()
    ...     return trace.saved_bytes // MIB
    >>> saved(None), saved(Again(keep=frozenset({0}))), saved(Again())
    (9, 5, 1)

`skip` is for a gap in torch's rule. A residual block with a shortcut ends in `conv2(h) + shortcut(x)`. The shortcut's backward needs x,
which is saved last, so conv2 runs again although nothing needs its result. A skipped operator returns memory that was never written.

It works by two dispatch modes, which see every operator: `_Keep` puts results aside in forward, and `_Reuse` hands them out in the
second run, when it comes to the same number. These cases are handled:

- The block changes a kept result in place: it is not kept, and its operator runs again.
- The model changes a kept result in place after the block: its version has moved on, and `_Reuse` raises `RuntimeError`.
- An operator took random numbers: it runs again, from the same state of the generator, so that those after it get theirs.
- Other operators run, or more is trained, than when `skip` was found: nothing is skipped.
- A skipped result is needed after all: whatever is made from unwritten memory is followed, and saving it for backward raises
  `RuntimeError`.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from ..memory import operators

if TYPE_CHECKING:
    from torch.nn import Module


@dataclass(frozen=True)
class Again:
    """Plan for running one block again. The default is plain checkpointing: all of it, from its inputs."""

    keep: frozenset[int] = frozenset()
    """Numbers of the operators whose results are kept, counted among those of the block that `operators.kind` knows."""
    skip: frozenset[int] = frozenset()
    """Numbers of those that need not run again, because nothing that backward needs is made from their results."""
    kinds: tuple[str, ...] = ()
    """Kinds of the operators that were counted. When others run, nothing is skipped."""
    gradients: tuple[bool, ...] = ()
    """What required a gradient when `skip` was found: see `requires`. Where more does, nothing is skipped."""


def requires(block: Module, args: tuple, kwargs: dict) -> tuple[bool, ...]:
    """Whether each of a block's parameters and inputs requires a gradient: what its backward needs depends on that."""
    given = (value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
    return tuple(tensor.requires_grad for tensor in (*block.parameters(), *given))


class Recomputed:
    """Replacement for a block's `forward` that is recomputed in backward."""

    def __init__(self, block: Module, again: Again) -> None:
        self.block, self.again = block, again
        self.forward = block.forward

    def __call__(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        contexts = {}
        if self.again.keep or self.again.skip:
            same = bool(self.again.skip) and requires(self.block, args, kwargs) == self.again.gradients
            contexts = {"context_fn": partial(self._contexts, same)}
        return checkpoint(self.forward, *args, use_reentrant=False, **contexts, **kwargs)

    def _contexts(self, same: bool) -> tuple[TorchDispatchMode, TorchDispatchMode]:
        forward = _Keep(self.again, same)
        return forward, _Reuse(forward)


class _Keep(TorchDispatchMode):
    """Mode for forward: puts the chosen results aside, and the shapes of those to be skipped."""

    def __init__(self, again: Again, skipping: bool) -> None:
        super().__init__()
        self.again, self.skipping, self.place = again, skipping, 0
        self.kept: dict[int, object] = {}
        self.places: dict[int, int] = {}  # storage -> the place whose result lies there
        self.seen: dict[int, list[_Aside]] = {}  # place -> what else was made of that storage

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.places:
            self._look_after(func, args, kwargs or {}, out)
        kind = operators.kind(func)
        if kind is not None:
            place, self.place = self.place, self.place + 1
            if self.skipping and self.again.kinds[place : place + 1] != (kind,):
                self.skipping = False  # another operator than was counted: the places mean nothing
            if place in self.again.keep:
                # a result that took random numbers is not kept: run again, it takes the same ones, and so does what follows it
                if not operators.is_random(func, args, kwargs or {}):
                    self.kept[place] = _aside(out)
                    self.places |= dict.fromkeys(_storages(out), place)
            elif self.skipping and place in self.again.skip and isinstance(out, Tensor):
                self.kept[place] = partial(torch.empty_strided, out.shape, out.stride(), dtype=out.dtype, device=out.device)
        return out

    def _look_after(self, func, args, kwargs, out) -> None:
        """Drop kept results that the block itself changes in place, and note the versions of all tensors that share memory with one.

        `_unsafe_view`, by which `matmul` gives its result another shape, shares memory without sharing the counter of changes.
        """
        if func._schema.is_mutable:
            given = {**dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)), **kwargs}
            written = [argument.name for argument in func._schema.arguments if argument.alias_info and argument.alias_info.is_write]
            for storage in _storages([given.get(name) for name in written]):
                if (place := self.places.get(storage)) is not None:
                    self.places = {key: other for key, other in self.places.items() if other != place}
                    self.kept.pop(place, None)
                    self.seen.pop(place, None)
        elif isinstance(out, Tensor) and (place := self.places.get(out.untyped_storage()._cdata)) is not None:
            self.seen.setdefault(place, []).append(_aside(out))


class _Reuse(TorchDispatchMode):
    """Mode for backward: hands out what was put aside, and runs all else. A second backward runs everything.

    A skipped result is memory that was never written. The survey found that backward needs nothing that is made from it. That is checked
    here once more: whatever is made from such memory is followed, and must not be saved for backward.
    """

    def __init__(self, forward: _Keep) -> None:
        super().__init__()
        self.first, self.place = forward, 0
        self.unwritten: dict[int, weakref.ref] = {}
        self.hooks: list[saved_tensors_hooks] = []

    def __enter__(self):
        self.place = 0
        if not (self.first.skipping and self.first.place == len(self.first.again.kinds)):
            self.first.kept = {place: kept for place, kept in self.first.kept.items() if not isinstance(kept, partial)}
        elif any(isinstance(kept, partial) for kept in self.first.kept.values()):
            pack, unpack = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]  # private
            self.hooks.append(saved_tensors_hooks(partial(self._packed, pack), unpack))
            self.hooks[-1].__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        out = super().__exit__(*error)
        while self.hooks:
            self.hooks.pop().__exit__(*error)
        self.unwritten.clear()
        return out

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind = operators.kind(func)
        if kind is not None:
            place, self.place = self.place, self.place + 1
            if place in self.first.kept:
                kept = self.first.kept.pop(place)
                if not isinstance(kept, partial):
                    for aside in self.first.seen.pop(place, []):
                        _taken(aside)
                    return _taken(kept)
                out = kept()
                self._mark(out)
                return out
        out = func(*args, **(kwargs or {}))
        if self.unwritten and any(self._is_unwritten(value) for value in tree_leaves((args, kwargs))):
            for value in tree_leaves(out):
                self._mark(value)
        return out

    def _mark(self, value) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            key = storage._cdata
            self.unwritten[key] = weakref.ref(storage, lambda _: self.unwritten.pop(key, None))

    def _is_unwritten(self, value) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self.unwritten

    def _packed(self, pack, tensor: Tensor):
        if self._is_unwritten(tensor):
            raise RuntimeError(
                "backward needs more of this block than when it was measured: what is trained, or how the block computes, has changed "
                "since. Apply the choice again"
            )
        return pack(tensor)


def _storages(values) -> list[int]:
    return [value.untyped_storage()._cdata for value in tree_leaves(values) if isinstance(value, Tensor)]


def _aside(out):
    """Results as tensors outside of any graph, each with its version."""
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
    if not isinstance(aside, _Aside):
        return tuple(_taken(part) if isinstance(part, _Aside) else part for part in aside)
    if aside.tensor._version != aside.version:
        raise RuntimeError("a kept result was changed in place after it was made: recompute this block without keeping it")
    return aside.tensor


def units(model: Module, inputs: dict) -> dict[str, Module]:
    """Blocks that diffusers and transformers mark as worth recomputing, by name, in the order in which they run.

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
    """Block behind what a marked module hands to its checkpointing function."""
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
    """Twin of `model` on the meta device: the same modules, hooks and modes, no weights. Nothing large is copied."""
    memo = {}
    for tensor in (*model.parameters(), *model.buffers()):
        twin = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = torch.nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else twin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model, memo)
