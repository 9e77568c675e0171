"""Scratch memory of a CPU's kernels: what torch allocates inside one operator and frees before it returns.

No tensor shows these bytes, but the allocator counts them. `cuda_scratch` has those of a GPU. The rules were read off the allocator's own
events for torch 2.13 with oneDNN on AVX-512 and on AVX2, which round channels to different multiples. Matrix products in bf16 are left
out: they need little.
"""

from __future__ import annotations

import functools
from math import prod

import torch
from torch import Tensor

aten = torch.ops.aten


def scratch_bytes(func, args: tuple, threads: int) -> int:
    """Most bytes that the CPU kernel of `func` holds beyond its inputs and outputs, on `threads` threads."""
    rule = RULES.get(func)
    return rule(args, threads) if rule else 0


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@functools.cache
def _channel_multiple() -> int:
    """Channels that oneDNN keeps together: as many fp32 numbers as a register of this CPU holds."""
    return 16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 8


def _pad_channels(channels: int) -> int:
    """Channels in oneDNN's own layout: rounded up to `_channel_multiple`."""
    return -(-channels // _channel_multiple()) * _channel_multiple()


def _is_onednn(x: Tensor, weight: Tensor, stride, dilation, groups: int, threads: int) -> bool:
    """Whether oneDNN computes a convolution: the condition in ATen/native/Convolution.cpp, as far as these models need it."""
    if x.dtype != torch.float32:
        return x.dtype == torch.bfloat16 and _has_bf16()
    kernel = weight.shape[2:]
    spread = any(s > 1 for s in stride) or any(d > 1 for d in dilation)
    big_enough = groups > 1 or all(k > 3 for k in kernel) or x.shape[0] > 1 or x.numel() > 20480
    return big_enough and (spread or x.shape[0] >= 16 or any(k != 1 for k in kernel) or threads > 1)


@functools.cache
def _has_bf16() -> bool:
    """Whether oneDNN computes in bf16 on this CPU, which takes AVX-512; elsewhere torch unfolds the input itself."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _convolution_sizes(x: Tensor, weight: Tensor, area_out: int) -> tuple[int, int, int]:
    """Bytes of (input, weight, output) in oneDNN's layout."""
    batch, size = x.shape[0], x.element_size()
    out_channels, in_channels, *kernel = weight.shape
    padded_in = in_channels if in_channels <= 4 else _pad_channels(in_channels)
    input_bytes = batch * _pad_channels(x.shape[1]) * prod(x.shape[2:]) * size
    weight_bytes = _pad_channels(out_channels) * padded_in * prod(kernel) * size
    output_bytes = batch * _pad_channels(out_channels) * area_out * size
    return input_bytes, weight_bytes, output_bytes


def _area_out(x: Tensor, weight: Tensor, stride, padding, dilation) -> int:
    """Positions of a convolution's output: height times width."""
    sides = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    return prod((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in sides)


def _columns(x: Tensor, weight: Tensor, area_out: int) -> int:
    """Bytes of the unfolded input in torch's plain kernel, which small convolutions use."""
    kernel = prod(weight.shape[2:])
    return 0 if kernel == 1 else x.shape[0] * x.shape[1] * kernel * area_out * x.element_size()


def _convolution(args: tuple, threads: int) -> int:
    x, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
    if transposed or x.ndim != 4:
        return 0
    area = _area_out(x, weight, stride, padding, dilation)
    if not _is_onednn(x, weight, stride, dilation, groups, threads):
        return _columns(x, weight, area)
    inside, weights, out = _convolution_sizes(x, weight, area)
    result = x.shape[0] * weight.shape[0] * area * x.element_size()
    copied = 0 if x.shape[1] <= 4 else inside
    if x.dtype == torch.bfloat16 and prod(weight.shape[2:]) == 1:
        copied += out
    return max(copied + weights + out, out + result) - result


def _convolution_backward(args: tuple, threads: int) -> int:
    gradient, x, weight, _, stride, _, dilation, transposed, _, groups, mask = args[:11]
    if transposed or x.ndim != 4:
        return 0
    area = prod(gradient.shape[2:])
    if not _is_onednn(x, weight, stride, dilation, groups, threads):
        return _columns(x, weight, area)
    inside, weights, out = _convolution_sizes(x, weight, area)
    of_input, of_weight = _bytes(x) if mask[0] else 0, _bytes(weight) if mask[1] else 0
    peaks = [0]
    if mask[0]:
        peaks.append(max(out + weights + inside, inside + of_input))
    if mask[1]:
        before = of_input + out + (0 if x.shape[1] <= 4 else inside) + weights
        peaks += [before + _sums(x, weight, inside, out, threads), of_input + of_weight + weights]
    return max(0, max(peaks) - of_input - of_weight)


def _sums(x: Tensor, weight: Tensor, inside: int, out: int, threads: int) -> int:
    """Bytes for summing a weight's gradient: fp32 sums for each thread, and for bf16 the inputs, transposed picture by picture."""
    sums = weight.numel() * 4
    several = threads > 1 and sums < (inside + out) * 4 // x.element_size() / 4
    if x.dtype == torch.float32:
        return sums if several else 0
    transposed = 0 if prod(weight.shape[2:]) == 1 or x.shape[1] <= 4 else (inside + out) // x.shape[0] * min(2, x.shape[0])
    return sums * (2 if several else 1) + transposed


def _attention(args: tuple, threads: int) -> int:
    query, key = args[:2]
    rows, columns = _attention_tile(query, key)
    tile = rows * columns + 2 * rows + rows * query.shape[-1]
    return threads * (tile * 4 + (rows * columns * 2 if query.dtype != torch.float32 else 0))


def _attention_backward(args: tuple, threads: int) -> int:
    _, query, key = args[:3]
    rows, columns = _attention_tile(query, key)
    return threads * rows * columns * (8 if query.dtype == torch.float32 else 12)


def _attention_tile(query: Tensor, key: Tensor) -> tuple[int, int]:
    length = query.shape[-2]
    rows = 256 if length >= 768 else 64 if length >= 192 else 32
    return min(rows, length), min(512, key.shape[-2])


def _layer_norm(args: tuple, threads: int) -> int:
    return 0 if args[0].is_contiguous() else _bytes(args[0])


def _layer_norm_backward(args: tuple, threads: int) -> int:
    gradient, x, shape = args[:3]
    copies = sum(_bytes(t) for t in (gradient, x) if not t.is_contiguous())
    return copies + threads * 2 * prod(shape) * 4


def _upsample(args: tuple, threads: int) -> int:
    x, (height, width) = args[:2]
    if not x.is_contiguous() or x.shape[1] < 4:
        return 0
    return _bytes(x) + x.shape[0] * x.shape[1] * height * width * x.element_size()


RULES = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.upsample_nearest2d.default: _upsample,
}
