"""Scratch memory of CUDA's kernels: what torch and cuDNN allocate inside one operator and free before it returns.

The rules for convolutions were read off the allocator's events of five configurations on an H200 (torch 2.11, CUDA 13.0); on other cards
cuDNN may choose other kernels. Those for reductions are torch's own, in ATen/native/cuda/Reduce.cuh. cuBLAS makes its workspaces once for
the process: see `planner.allocator.WORKSPACES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


class Reduction(NamedTuple):
    """A sum, mean or norm along strided dimensions of a tensor, such as a bias' gradient: many `values` for each of the `outputs`.

    torch gives each output to several blocks of threads, as many as the card runs at once, and they meet in scratch memory. The buffer
    has room for a number from each thread in a row of a block, so it is large: for the bias of a layer with 2,560 outputs and 16,384
    positions it is 132.5 MiB on an H200, whose 132 multiprocessors run 2,048 threads each, and 20 MiB on a T4 with 40 of 1,024.
    """

    outputs: int
    values: int
    vector: int
    """Outputs that a thread loads at once: 1, 2 or 4."""

    def scratch_bytes(self, resident_threads: int) -> int:
        """Bytes of the buffer on a card that runs `resident_threads` at once. 0: each output is summed by a single block."""
        most = 512 // self.vector
        columns, rows = (min(_power_of_two(size), most) for size in (self.outputs // self.vector, self.values))
        width = min(columns, 32)
        height = min(rows, most // width)
        width = min(columns, most // height)
        if self.values < min(16 * height, 256):
            return 0
        values = -(-self.values // height)
        columns_of_blocks = -(-(self.outputs // self.vector) // width)
        blocks_at_once = resident_threads // (width * height)
        if values < 256 or columns_of_blocks > blocks_at_once:
            return 0
        blocks = max(min(-(-blocks_at_once // columns_of_blocks), -(-values // 16)), -(-values // 256))
        return 4 * self.outputs * blocks * width * self.vector if blocks > 1 else 0


def _power_of_two(number: int) -> int:
    """Largest power of two up to `number`."""
    return 1 << (max(1, number).bit_length() - 1)


def scratch(func, args: tuple) -> list[tuple[int, int | Reduction]]:
    """Scratch memory of an operator, in order: how many of its results exist by then, and the bytes, or the `Reduction` that needs them."""
    rule = RULES.get(func)
    return [(results, size) for results, size in rule(args) if size] if rule else []


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_pointwise(weight: Tensor) -> bool:
    return prod(weight.shape[2:]) == 1


def _convolution(args: tuple) -> list:
    """Copies of all three tensors with channels last, which cuDNN makes unless the kernel is 1×1."""
    x, weight, _, stride, padding, dilation, transposed = args[:7]
    if transposed or x.ndim != 4 or _is_pointwise(weight):
        return []
    sides = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    area = prod((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in sides)
    return [(1, _bytes(x) + _bytes(weight) + x.shape[0] * weight.shape[0] * area * x.element_size())]


def _convolution_backward(args: tuple) -> list:
    """The same copies, once for each gradient; a 1×1 weight's gradient in fp32 is summed in four parts."""
    gradient, x, weight, mask = *args[:3], args[10]
    if x.ndim != 4:
        return []
    if _is_pointwise(weight):
        return [(1 + mask[0], 4 * _bytes(weight))] if mask[1] and x.dtype == torch.float32 else []
    copies = _bytes(gradient) + _bytes(x) + _bytes(weight)
    return [(results, copies) for results, wanted in ((1, mask[0]), (1 + mask[0], mask[1])) if wanted]


def _flash_backward(args: tuple) -> list:
    """The gradient of the queries, summed in fp32, and a number for each of their rows."""
    batch, heads, length, width = args[1].shape
    rows = -(-length // 128) * 128
    return [(3, batch * heads * rows * (-(-width // 32) * 32 + 1) * 4)]


def _efficient(args: tuple) -> list:
    """The result in fp32, where heads are too wide for registers and the result is in half precision (mem_eff_attention/kernel_forward.h,
    `kNeedsOutputAccumulatorBuffer`)."""
    query, value = args[0], args[2]
    wide = value.shape[-1] > 128 and query.element_size() < 4
    return [(2, 4 * prod(query.shape[:-1]) * value.shape[-1])] if wide else []


def _efficient_backward(args: tuple) -> list:
    """The gradient of the queries in fp32, in tiles of 64×64 numbers, and a number for each of their rows (kernel_backward.h, `Params`)."""
    batch, heads, length, width = args[1].shape
    return [(3, 4 * batch * heads * (-(-length // 64) * 64 * -(-width // 64) * 64 + length))]


def _reduced(x: Tensor, dims: Iterable[int]) -> list:
    """Reduction along `dims`, if the memory's fastest dimension is kept; else threads share their sums without a buffer worth counting."""
    reduced = {dim % x.ndim for dim in dims}
    sizes = [(stride, size, dim in reduced) for dim, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)) if size > 1]
    kept = sorted((stride, size) for stride, size, is_reduced in sizes if not is_reduced)
    strides = [stride for stride, _, is_reduced in sizes if is_reduced]
    if not kept or not strides or min(strides) < kept[0][0]:
        return []
    first, *others = kept
    while others and others[0][0] == first[0] * first[1]:  # the two are one dimension in memory
        first = first[0], first[1] * others.pop(0)[1]
    steps = [first[1], *strides, *(stride for stride, _ in others)]
    vector = next(count for count in (4, 2, 1) if all(step % count == 0 for step in steps)) if first[0] == 1 else 1
    outputs = prod(size for _, size in kept)
    return [(1, Reduction(outputs, x.numel() // outputs, vector))]


def _sum(args: tuple) -> list:
    return _reduced(args[0], args[1]) if len(args) > 1 and args[1] else []


def _norm(args: tuple) -> list:
    return _reduced(args[0], args[2]) if len(args) > 2 and args[2] else []


RULES = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_cudnn_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_efficient_attention.default: _efficient,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten.sum.dim_IntList: _sum,
    aten.mean.dim: _sum,
    aten.linalg_vector_norm.default: _norm,
}
