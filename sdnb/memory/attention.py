"""Attention on a CUDA card: the kernel that torch's `scaled_dot_product_attention` chooses.

torch tries its kernels in this order and takes the first that may run:

    kernel     cards of compute capability       dtypes                        head sizes                        mask
    cudnn      9.0, 10.x, from torch 2.11 on     fp16, bf16                    multiples of 8, up to 128         any
    flash      8.0 to 12.1                       fp16, bf16                    up to 256; others are padded      none
    efficient  5.0 to 12.1                       fp16, fp32; bf16 from 8.0     multiples of `alignment`          any
    math       any                               any                           any                               any

So Stable Diffusion trains with `flash` in half precision and with `efficient` in fp32 or on a card before Ampere. The VAE's one head of
512 is too wide for `flash`. On an 8.6 to 8.9 or a 12.x `flash` has no backward for heads of 193 to 224.

All but `math` keep the queries, the keys, the values and the result for backward, and one fp32 number for each row of queries. `math`
keeps the whole matrix of weights, computed in fp32 also where the inputs are in half precision.

Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp of pytorch/pytorch (commit 001f694), in `priority_order`,
`check_prefer_cudnn_attention`, `can_use_*_attention`, `minimum_gemm_alignment` and
`check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120`. cuDNN comes first where its version is above 9.15.0: torch 2.10
asks, but 2.11 is the first whose wheels bring one (9.19). The default order, which ends in math and cuDNN, is in ATen/Context.h.
"""

from __future__ import annotations

import functools

import torch
from torch.torch_version import TorchVersion

KERNELS = ("cudnn", "flash", "efficient", "math")
"""Kernels, in the order in which they are tried."""
HALF = (torch.float16, torch.bfloat16)
CUDNN_FIRST = TorchVersion("2.11")
"""First version of torch that prefers cuDNN."""
DEFAULT = (8, 0)
"""Compute capability that is assumed where no card is named."""


def kernel(
    dtype: torch.dtype,
    head_size: int,
    *,
    capability: tuple[int, int] = DEFAULT,
    masked: bool = False,
    learns: bool = True,
    torch_version: str = torch.__version__,
) -> str:
    """Kernel that attention runs on a card: one of `KERNELS`.

    - `dtype`: of the queries, after autocast
    - `head_size`: numbers per head in a query, key or value
    - `masked`: whether a mask is given; `learns`: whether a gradient is needed
    - `torch_version`: version of torch, by default the installed one

    >>> kernel(torch.bfloat16, 64, capability=(8, 6)), kernel(torch.float32, 64, capability=(8, 6))
    ('flash', 'efficient')
    """
    half = dtype in HALF
    prefers_cudnn = capability[0] in (9, 10) and TorchVersion(torch_version) >= CUDNN_FIRST
    if prefers_cudnn and half and head_size <= 128 and head_size % 8 == 0:
        return "cudnn"
    no_backward = 192 < head_size <= 224 and ((8, 6) <= capability <= (8, 9) or capability[0] == 12)
    if half and (8, 0) <= capability <= (12, 1) and not masked and head_size <= 256 and not (learns and no_backward):
        return "flash"
    known = dtype in (torch.float16, torch.float32) or (dtype == torch.bfloat16 and capability >= (8, 0))
    if known and (5, 0) <= capability <= (12, 1) and head_size % alignment(dtype, capability) == 0:
        return "efficient"
    return "math"


def alignment(dtype: torch.dtype, capability: tuple[int, int]) -> int:
    """Numbers that a head's size must be a multiple of for the efficient kernel."""
    if dtype in HALF:
        return 8 if capability >= (7, 0) else 1
    return 4 if capability >= (8, 0) else 1


_SAMPLES = (6, 5), (7, 5), (8, 0), (8, 6), (9, 0)
_SIZES = 4, 5, 40, 64, 80, 160, 200, 512


@functools.cache
def alike(capability: tuple[int, int]) -> tuple[int, int]:
    """Compute capability that stands for all cards with the same kernels, so that a step is recorded once for them.

    >>> alike((8, 9)), alike((12, 0)), alike((7, 0))
    ((8, 6), (8, 6), (7, 5))
    """
    return next((sample for sample in _SAMPLES if _choices(sample) == _choices(capability)), capability)


def _choices(capability: tuple[int, int]) -> list[str]:
    """Kernels for heads of many sizes, in each dtype, with and without a mask and gradients."""
    kinds = [(dtype, size) for dtype in (torch.float32, *HALF) for size in _SIZES]
    yes_or_no = (False, True)
    return [kernel(*kind, capability=capability, masked=mask, learns=grad) for kind in kinds for mask in yes_or_no for grad in yes_or_no]
