"""Grader of `recompute(block, *inputs)`: gradient checkpointing by hand, held to a plain forward and backward."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .grading import Fault


class _Gated(nn.Module):
    """Block of two inputs, (B, T, 6) and (B, 6) or class indices (B)."""

    def __init__(self, dropout: float = 0.0, classes: int = 0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 6)
        self.norm, self.dropout = nn.LayerNorm(6), nn.Dropout(dropout)
        self.embed = nn.Embedding(classes, 6) if classes else None
        self.calls = 0

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        self.calls += 1
        gate = self.embed(scale) if self.embed else scale
        return x + self.second(self.dropout(nn.functional.gelu(self.first(self.norm(x)))) * gate.mean(-1)[:, None, None])


Recompute = Callable[..., Any]


def _block(**settings: Any) -> tuple[_Gated, Tensor, Tensor]:
    """Block in double precision, the same each time, and two inputs (3, 5, 6) and (3, 6) that require gradients."""
    torch.default_generator.manual_seed(11)
    block = _Gated(**settings)
    x, scale = torch.randn(3, 5, 6), torch.randn(3, 6) + 1
    return block.double(), x.double().requires_grad_(), scale.double().requires_grad_()


def in_single_precision(recompute: Recompute) -> None:
    """Two inputs that require gradients, and float32. Raises `Fault`."""
    if isinstance(recompute, type):
        raise Fault("a_class", name=recompute.__name__)
    _agrees(recompute, torch.float32)


def in_double_precision(recompute: Recompute) -> None:
    """The same in float64. Raises `Fault`."""
    _agrees(recompute, torch.float64)


def _agrees(recompute: Recompute, dtype: torch.dtype) -> None:
    block, x, scale = _block()
    block, inputs = block.to(dtype), [part.detach().to(dtype).requires_grad_() for part in (x, scale)]
    wanted, theirs = block(*inputs), recompute(block, *inputs)
    if not isinstance(theirs, Tensor):
        raise Fault("returns", kind=type(theirs).__name__)
    if theirs.shape != wanted.shape or theirs.dtype != wanted.dtype:
        raise Fault("shape", got=_described(theirs), wanted=_described(wanted))
    if not torch.allclose(theirs, wanted, rtol=1e-5, atol=1e-6):
        raise Fault("values")
    if not theirs.requires_grad:
        raise Fault("no_graph")
    _compare(block, inputs, _gradients(block, inputs, wanted), _gradients(block, inputs, theirs))


def memory(recompute: Recompute) -> None:
    """Nothing computed inside the block is kept, and backward runs the block once. Raises `Fault`."""
    block, x, scale = _block()
    inner: list[weakref.ref] = []
    hooks = [
        module.register_forward_hook(lambda _, __, result: inner.append(weakref.ref(result)))
        for module in (block.norm, block.first, block.dropout, block.second)
    ]
    result = recompute(block, x, scale)
    if block.calls != 1:
        raise Fault("runs_in_forward", times=block.calls)
    if sum(reference() is not None for reference in inner) or _bytes_kept_inside(recompute, block, x, scale):
        raise Fault("kept")
    for hook in hooks:
        hook.remove()
    block.calls = 0
    result.sum().backward()
    if block.calls != 1:
        raise Fault("runs_in_backward", times=block.calls)


def _bytes_kept_inside(recompute: Recompute, block: _Gated, *inputs: Tensor) -> int:
    """Bytes that forward saved for backward, apart from inputs, parameters, the result and states of random generators."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.uint8:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = recompute(block, *inputs)
    outside = {part.untyped_storage().data_ptr() for part in (*inputs, *block.parameters(), result)}
    return sum(size for pointer, size in saved.items() if pointer not in outside)


def dropout(recompute: Recompute) -> None:
    """The second run drops what the first did, and draws nothing from the generator that the rest of training uses. Raises `Fault`."""
    block, *inputs = _block(dropout=0.5)
    state = torch.get_rng_state()
    wanted = _gradients(block, inputs, block(*inputs))
    torch.set_rng_state(state)
    result = recompute(block, *inputs)
    torch.rand(7)  # what other blocks draw before backward comes back
    between = torch.get_rng_state()
    theirs = _gradients(block, inputs, result)
    if not _same(theirs[0], wanted[0]):
        raise Fault("dropout")
    _compare(block, inputs, wanted, theirs)
    if not torch.equal(torch.get_rng_state(), between):
        raise Fault("stream")


def inputs_without_gradients(recompute: Recompute) -> None:
    """An input of floats that needs no gradient, and one of class indices, which cannot have one. Raises `Fault`."""
    plain, x, scale = _block()
    for block, inputs in ((plain, [x, scale.detach()]), (_block(classes=4)[0], [x, torch.tensor([3, 0, 3])])):
        theirs = _gradients(block, inputs, recompute(block, *inputs))
        if inputs[1].requires_grad:
            raise Fault("marked")
        _compare(block, inputs, _gradients(block, inputs, block(*inputs)), theirs)


def frozen(recompute: Recompute) -> None:
    """The first block of a LoRA: no input requires a gradient, and only some of the parameters do. Raises `Fault`."""
    block, x, scale = _block()
    block.first.requires_grad_(False)
    inputs = [x.detach(), scale.detach()]
    result = recompute(block, *inputs)
    if not result.requires_grad:
        raise Fault("frozen")
    _compare(block, inputs, _gradients(block, inputs, block(*inputs)), _gradients(block, inputs, result))


def two_uses(recompute: Recompute) -> None:
    """One block used twice in a row: both uses add to the gradients of its parameters. Raises `Fault`."""
    block, x, scale = _block()
    theirs = _gradients(block, [x, scale], recompute(block, recompute(block, x, scale), scale))
    _compare(block, [x, scale], _gradients(block, [x, scale], block(block(x, scale), scale)), theirs)


CHECKS = (in_single_precision, memory, dropout, inputs_without_gradients, frozen, two_uses, in_double_precision)


def _gradients(block: nn.Module, inputs: list[Tensor], result: Tensor) -> list[Tensor | None]:
    """Gradients of inputs and parameters, where each number of the result has a weight of its own; None for no gradient."""
    parts = [*inputs, *block.parameters()]
    for part in parts:
        part.grad = None
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).view_as(result)
    (result * weights).sum().backward()
    found = [None if part.grad is None else part.grad.clone() for part in parts]
    for part in parts:
        part.grad = None
    return found


def _compare(block: nn.Module, inputs: list[Tensor], wanted: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    """Raise `Fault` for the first gradient that is missing or wrong."""
    names = [*range(1, len(inputs) + 1), *(name for name, _ in block.named_parameters())]
    for name, right, given in zip(names, wanted, theirs, strict=True):
        kind, value = ("input", {"number": name}) if isinstance(name, int) else ("parameter", {"name": name})
        if right is None or (given is not None and _same(given, right)):
            continue
        if given is None:
            raise Fault(f"{kind}_missing", **value)
        raise Fault(f"{kind}_twice" if _same(given, 2 * right) else f"{kind}_wrong", **value)


def _same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    return ours is not None and theirs is not None and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {[*tensor.shape]}"
