"""Recomputing a block in backward: torch's non-reentrant checkpointing, with a say in which operators run again.

A block keeps every tensor that its backward needs until backward gets there. Checkpointing keeps only the block's inputs, and runs the
block a second time when backward arrives. `torch.utils.checkpoint` does so for a block as a whole. Here a `BlockPlan` can keep the results
of some operators, and then these operators do not run again.

Take the feed-forward part of a transformer, `Linear(256, 1024)`, GELU, `Linear(1024, 256)`, for 1,024 tokens. Its input is 1 MiB, the
results of the first layer and of the GELU 4 MiB each:

    plan                      keeps for backward        runs again
    no checkpointing          1 + 4 + 4 = 9 MiB         nothing
    BlockPlan(keep={0})       1 + 4     = 5 MiB         the GELU
    BlockPlan()               1         = 1 MiB         the first layer and the GELU

Plans name operators by their index, in the order in which they run. Only *counted* operators have one, those that `operators.kind` knows:
matrix products, convolutions, attention. Here the first layer has index 0 and the second index 1. The GELU has none, as it is cheap and
always runs again. The second layer never does: recomputing stops at the last tensor that backward needs, which is the GELU's result.

    >>> from sdnb.memory import MIB, MemoryTrace
    >>> def saved(plan):
    ...     block = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256))
    ...     if plan is not None:
    ...         block.forward = RecomputedForward(block, plan)
    ...     with MemoryTrace(block) as trace:
    ...         block(torch.zeros(1024, 256)).sum().backward()
    ...     return trace.saved_bytes // MIB
    >>> saved(None), saved(BlockPlan(keep=frozenset({0}))), saved(BlockPlan())
    (9, 5, 1)

`skip` saves work that torch's rule would do for nothing. A residual block with a shortcut ends in `conv2(h) + shortcut(x)`. The
shortcut's backward needs x, which is saved last, so conv2 runs again although nothing needs its result. A skipped operator returns memory
that was never written.

Two dispatch modes, which see every operator, do the work: `_ForwardMode` keeps results in forward, and `_RecomputeMode` returns them in
the second run, when it reaches the same index. These cases are handled:

- The block changes a kept result in place: it is not kept, and its operator runs again.
- The model changes a kept result in place after the block: its version has moved on, and `_RecomputeMode` raises `RuntimeError`.
- An operator drew random numbers: it runs again, from the same state of the generator, so that later operators draw what they drew before.
- Other operators run, or more is trained, than when `skip` was found: nothing is skipped.
- A skipped result is needed after all: whatever is made from unwritten memory is tracked, and saving it for backward raises
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

from ..memory import Remembered, operators

if TYPE_CHECKING:
    from torch.nn import Module


@dataclass(frozen=True)
class BlockPlan:
    """Plan for recomputing one block. The default is plain checkpointing: run all of it again, from its inputs."""

    keep: frozenset[int] = frozenset()
    """Indices of the counted operators whose results are kept."""
    skip: frozenset[int] = frozenset()
    """Indices of the counted operators that need not run again, because backward needs nothing made from their results."""
    kinds: tuple[str, ...] = ()
    """Kind of each counted operator when `skip` was found. When others run, nothing is skipped."""
    requires_grad: tuple[bool, ...] = ()
    """Result of `requires_grad` when `skip` was found. When it differs, nothing is skipped."""


def requires_grad(block: Module, args: tuple, kwargs: dict) -> tuple[bool, ...]:
    """Whether each of a block's parameters and inputs requires a gradient, which decides what its backward needs."""
    inputs = (value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
    return tuple(tensor.requires_grad for tensor in (*block.parameters(), *inputs))


class RecomputedForward:
    """Replacement for a block's `forward` that is recomputed in backward, by `plan`."""

    def __init__(self, block: Module, plan: BlockPlan) -> None:
        self.block, self.plan = block, plan
        self.forward = block.forward

    def __call__(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        contexts = {}
        if self.plan.keep or self.plan.skip:
            may_skip = bool(self.plan.skip) and requires_grad(self.block, args, kwargs) == self.plan.requires_grad
            contexts = {"context_fn": partial(self._contexts, may_skip)}
        return checkpoint(self.forward, *args, use_reentrant=False, **contexts, **kwargs)

    def _contexts(self, may_skip: bool) -> tuple[TorchDispatchMode, TorchDispatchMode]:
        forward = _ForwardMode(self.plan, may_skip)
        return forward, _RecomputeMode(forward)


class _ForwardMode(TorchDispatchMode):
    """Dispatch mode of the first run: keeps the results in `plan.keep`, and the shapes of those in `plan.skip`."""

    def __init__(self, plan: BlockPlan, may_skip: bool) -> None:
        super().__init__()
        self.plan = plan
        self.may_skip = may_skip
        self.count = 0
        """Counted operators so far."""
        self.results: dict[int, object] = {}
        """Kept result of each operator, by its index; of a skipped operator a `partial` that makes unwritten memory."""
        self.index_of: dict[int, int] = {}
        """Operator index of each storage that holds a kept result."""
        self.aliases: dict[int, list[_Versioned]] = {}
        """Other tensors that share memory with a kept result, by its operator's index."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.index_of:
            self._check_aliases(func, args, kwargs or {}, out)
        kind = operators.kind(func)
        if kind is not None:
            index = self.count
            self.count += 1
            if self.may_skip and self.plan.kinds[index : index + 1] != (kind,):
                self.may_skip = False  # not the operators that were planned for: the indices mean nothing
            if index in self.plan.keep:
                # a random result is not kept: its operator runs again and draws the same numbers, and so do those after it
                if not operators.is_random(func, args, kwargs or {}):
                    self.results[index] = _with_version(out)
                    self.index_of |= dict.fromkeys(_storages(out), index)
            elif self.may_skip and index in self.plan.skip and isinstance(out, Tensor):
                self.results[index] = partial(torch.empty_strided, out.shape, out.stride(), dtype=out.dtype, device=out.device)
        return out

    def _check_aliases(self, func, args, kwargs, out) -> None:
        """Drop kept results that the block itself changes in place, and note the versions of all tensors that share memory with one.

        `_unsafe_view`, by which `matmul` gives its result another shape, shares memory but not the version counter.
        """
        if func._schema.is_mutable:
            names = [argument.name for argument in func._schema.arguments]
            values = {**dict(zip(names, args, strict=False)), **kwargs}
            written = [argument.name for argument in func._schema.arguments if argument.alias_info and argument.alias_info.is_write]
            for storage in _storages([values.get(name) for name in written]):
                if (index := self.index_of.get(storage)) is not None:
                    self.index_of = {key: other for key, other in self.index_of.items() if other != index}
                    self.results.pop(index, None)
                    self.aliases.pop(index, None)
        elif isinstance(out, Tensor) and (index := self.index_of.get(out.untyped_storage()._cdata)) is not None:
            self.aliases.setdefault(index, []).append(_with_version(out))


class _RecomputeMode(TorchDispatchMode):
    """Dispatch mode of the second run: returns the kept results, and runs all other operators. A second backward runs everything.

    A skipped result is memory that was never written. The survey found that backward needs nothing made from it. This mode checks that
    once more: it tracks whatever is made from such memory, and refuses to have it saved for backward.
    """

    def __init__(self, forward: _ForwardMode) -> None:
        super().__init__()
        self.first_run = forward
        self.count = 0
        self.unwritten: dict[int, weakref.ref] = {}
        """Storages that hold unwritten memory, or results made from it."""
        self.hooks: list[saved_tensors_hooks] = []

    def __enter__(self):
        self.count = 0
        results = self.first_run.results
        if not (self.first_run.may_skip and self.first_run.count == len(self.first_run.plan.kinds)):
            self.first_run.results = {index: result for index, result in results.items() if not isinstance(result, partial)}
        elif any(isinstance(result, partial) for result in results.values()):
            pack, unpack = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]  # private
            self.hooks.append(saved_tensors_hooks(partial(self._pack, pack), unpack))
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
            index = self.count
            self.count += 1
            if index in self.first_run.results:
                result = self.first_run.results.pop(index)
                if not isinstance(result, partial):
                    for alias in self.first_run.aliases.pop(index, []):
                        _checked(alias)
                    return _checked(result)
                out = result()
                self._track(out)
                return out
        out = func(*args, **(kwargs or {}))
        if self.unwritten and any(self._is_unwritten(value) for value in tree_leaves((args, kwargs))):
            for value in tree_leaves(out):
                self._track(value)
        return out

    def _track(self, value) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            key = storage._cdata
            self.unwritten[key] = weakref.ref(storage, lambda _: self.unwritten.pop(key, None))

    def _is_unwritten(self, value) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self.unwritten

    def _pack(self, pack, tensor: Tensor):
        if self._is_unwritten(tensor):
            raise RuntimeError(
                "backward needs more of this block than when it was measured: what is trained, or how the block computes, has changed "
                "since. Apply the choice again"
            )
        return pack(tensor)


def _storages(values) -> list[int]:
    """Address of the storage of each tensor in `values`."""
    return [value.untyped_storage()._cdata for value in tree_leaves(values) if isinstance(value, Tensor)]


class _Versioned(NamedTuple):
    """A tensor outside of any graph, with its version: the count of changes in place."""

    tensor: Tensor
    version: int


def _with_version(out):
    """Turn an operator's result, a tensor or several, into `_Versioned` ones."""
    if not isinstance(out, Tensor):
        return tuple(_with_version(value) if isinstance(value, Tensor) else value for value in out)
    # the detached tensor shares the version counter only if this key, off beneath autograd, is on
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        out = out.detach()
    return _Versioned(out, out._version)


def _checked(kept):
    """Turn the result of `_with_version` back into tensors. Raises `RuntimeError` if one was changed in place since."""
    if not isinstance(kept, _Versioned):
        return tuple(_checked(part) if isinstance(part, _Versioned) else part for part in kept)
    if kept.tensor._version != kept.version:
        raise RuntimeError("a kept result was changed in place after it was made: recompute this block without keeping it")
    return kept.tensor


def find_blocks(model: Module, inputs: dict) -> dict[str, Module]:
    """Blocks that diffusers and transformers mark as worth recomputing, by name, in the order in which they run.

    Calls `model`, which must be on the meta device, with `inputs` to find them. A marked stage of an autoencoder counts as the blocks it
    is made of: recomputing one of them at a time takes less memory than all of them at once.
    """
    names = {module: name for name, module in model.named_modules()}
    blocks: dict[str, Module] = {}

    def note_block(function, *args, **kwargs):
        for part in _parts(_owner(function)):
            blocks.setdefault(names[part], part)
        return function(*args, **kwargs)

    marked = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    recomputes = _attributes(marked, gradient_checkpointing=True, _gradient_checkpointing_func=note_block, training=True)
    with recomputes, Remembered(), torch.enable_grad():
        model(**inputs)
    return {name: block for name, block in blocks.items() if not any(name.startswith(f"{other}.") for other in blocks)}


def _owner(function) -> Module:
    """Block behind the function that a marked module passes to its checkpointing function."""
    if isinstance(function, torch.nn.Module):
        return function
    if isinstance(function, partial):  # transformers binds the keyword arguments
        return function.args[0] if function.args else _owner(function.func)
    return function.__self__


def _parts(block: Module) -> list[Module]:
    """Blocks that a stage of an autoencoder is made of; any other block alone."""
    lists = [getattr(block, name, None) for name in ("resnets", "attentions", "downsamplers", "upsamplers")]
    return [part for parts in lists if parts is not None for part in parts if part is not None] or [block]


@contextmanager
def _attributes(modules: list[Module], **values) -> Iterator[None]:
    """Set attributes of modules inside the context, and restore the old ones after it."""
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
    """Copy of `model` on the meta device: its modules, hooks and modes, without weights. Nothing large is copied."""
    memo = {}
    for tensor in (*model.parameters(), *model.buffers()):
        twin = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = torch.nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else twin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model, memo)
