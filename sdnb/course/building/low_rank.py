"""Grader of a LoRA layer, a class of `(frozen, rank, alpha)`, held to plain matrices in double precision.

The two matrices are found by their shapes, whatever their names are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .grading import Fault

Layer = Callable[..., Any]
WIDE, NARROW, RANK = 10, 6, 3


def at_first(layer: Layer) -> None:
    """A module that computes what the frozen layer computes, and has two small matrices to train. Raises `Fault`."""
    lora, frozen = _made(layer)
    x = torch.randn(2, 5, WIDE)
    result = lora(x)
    if not isinstance(result, Tensor) or result.shape != (2, 5, NARROW):
        raise Fault("shape", got=_described(result), wanted=f"float32 [2, 5, {NARROW}]")
    if any(parameter.requires_grad for parameter in frozen.parameters()):
        raise Fault("not_frozen")
    A, B = _matrices(lora)
    if not torch.allclose(result, frozen(x), atol=1e-6):
        raise Fault("not_zero_at_first" if B.any() else "first_result")
    if not A.any():
        raise Fault("both_zero")
    if B.any():
        raise Fault("not_zero_at_first")


def memory(layer: Layer) -> None:
    """The frozen weights are not copied. Raises `Fault`."""
    lora, frozen = _made(layer)
    ours = {parameter.data_ptr() for parameter in (*lora.parameters(), *lora.buffers())}
    if frozen.weight.data_ptr() not in ours:
        raise Fault("copied")


def adds_up(layer: Layer) -> None:
    """Once B is no longer zero, the layer adds alpha / rank times B A x, for several ranks and alphas. Raises `Fault`."""
    for rank, alpha in ((RANK, 2 * RANK), (RANK, 1), (2, 5)):
        lora, frozen = _made(layer, rank, alpha)
        A, B = _trained(lora, rank)
        x = torch.randn(4, WIDE)
        added, wanted = lora(x) - frozen(x), x @ A.T @ B.T
        if _close(added, wanted * alpha / rank):
            continue
        slips = {1.0: "unscaled", float(alpha): "times_alpha", rank / alpha: "upside_down", 1 / rank: "over_rank_alone"}
        name = next((name for factor, name in slips.items() if _close(added, wanted * factor)), "")
        if not name:
            name = "nothing_added" if not added.any() else "added_wrong"
        raise Fault(name, rank=rank, alpha=alpha)


def gradients(layer: Layer) -> None:
    """Both matrices and the input get their gradients, the frozen layer none. Raises `Fault`."""
    lora, frozen = _made(layer)
    A, B = _trained(lora, RANK)
    x = torch.randn(4, WIDE, requires_grad=True)
    lora(x).sum().backward()
    if frozen.weight.grad is not None:
        raise Fault("not_frozen")
    for name, parameter in (("A", A), ("B", B)):
        if parameter.grad is None:
            raise Fault("no_gradient", name=name)
    scale = 2.0  # alpha / rank of `_made`
    wanted = (frozen.weight + scale * B @ A).sum(0).expand(4, -1)
    if x.grad is None or not _close(x.grad, wanted):
        raise Fault("no_way_back")


def merged(layer: Layer) -> None:
    """`merged()` gives an ordinary Linear that computes the same, and changes nothing. Raises `Fault`."""
    for bias in (True, False):
        lora, frozen = _made(layer, bias=bias)
        _trained(lora, RANK)
        x, before = torch.randn(4, WIDE), frozen.weight.detach().clone()
        wanted = lora(x)
        plain = lora.merged()  # pyright: ignore[reportCallIssue]  # what the reader's class has
        if isinstance(plain, nn.Linear) and (plain.bias is None) == bias:
            raise Fault("merged_bias")
        if not isinstance(plain, nn.Linear) or len([*plain.parameters()]) != 1 + bias:
            raise Fault("merged_kind", kind=type(plain).__name__)
        if not torch.equal(frozen.weight, before) or not _close(lora(x), wanted):
            raise Fault("merged_in_place")
        if not _close(plain(x), wanted):
            raise Fault("merged_bias" if bias and _close(plain(x) - plain.bias, wanted - frozen.bias) else "merged_wrong")
        if bias and plain.bias.data_ptr() == frozen.bias.data_ptr():
            raise Fault("merged_shares")


def half_precision(layer: Layer) -> None:
    """Beside a layer in bf16, the result is in bf16 too, also for a layer that makes more numbers than it takes. Raises `Fault`."""
    frozen = nn.Linear(NARROW, WIDE).to(torch.bfloat16)
    result = layer(frozen, RANK, 1)(torch.randn(3, NARROW).to(torch.bfloat16))
    if result.dtype != torch.bfloat16:
        raise Fault("shape", got=_described(result), wanted=f"bfloat16 [3, {WIDE}]")


CHECKS = (at_first, memory, adds_up, gradients, merged, half_precision)


def _made(layer: Layer, rank: int = RANK, alpha: float = 2 * RANK, bias: bool = True) -> tuple[nn.Module, nn.Linear]:
    """The reader's module beside a linear layer of 10 numbers to 6, which is handed over as torch makes it."""
    torch.default_generator.manual_seed(5)
    frozen = nn.Linear(WIDE, NARROW, bias=bias)
    lora = layer(frozen, rank, alpha)
    if not isinstance(lora, nn.Module):
        raise Fault("no_module", kind=type(lora).__name__)
    return lora, frozen


def _matrices(lora: nn.Module, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank), the module's trained parameters. Raises `Fault` for any others."""
    trained = [parameter for parameter in lora.parameters() if parameter.requires_grad]
    shapes = {tuple(parameter.shape): parameter for parameter in trained}
    A, B = shapes.get((rank, WIDE)), shapes.get((NARROW, rank))
    if A is None or B is None or len(trained) > 2:
        # a matrix may also lie the other way round, as in x @ A
        A, B = shapes.get((WIDE, rank), A), shapes.get((rank, NARROW), B)
        found = ", ".join(str([*parameter.shape]) for parameter in trained) or "none"
        raise Fault("lies_across" if A is not None and B is not None and len(trained) == 2 else "matrices", found=found)
    return A, B


def _trained(lora: nn.Module, rank: int) -> tuple[Tensor, Tensor]:
    """The two matrices, filled as if they had been trained."""
    A, B = _matrices(lora, rank)
    with torch.no_grad():
        for matrix in (A, B):
            matrix.normal_()
    return A, B


def _described(result: Any) -> str:
    return f"{str(result.dtype).removeprefix('torch.')} {[*result.shape]}" if isinstance(result, Tensor) else type(result).__name__


def _close(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=1e-4, atol=1e-5)
