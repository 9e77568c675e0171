"""Attention's kernels: a table of facts about torch's choice, and torch's own forms of what each keeps."""

import pytest
import torch

from sdnb.memory import MemoryTrace, attention
from sdnb.planner import report
from sdnb.system import CARDS

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
FACTS = [  # (compute capability, dtype, head size, other conditions), the kernel, and the check of sdp_utils.cpp that says so
    ((7, 5), FP16, 64, {}, "efficient", "check_flash_attention_hardware_support: 8.0 to 12.1"),
    ((7, 5), BF16, 64, {}, "math", "can_use_mem_efficient_attention: fp16 and fp32 below 8.0"),
    ((6, 0), FP16, 40, {}, "efficient", "check_mem_efficient_hardware_support: 5.0 to 12.1"),
    ((6, 0), FP16, 5, {}, "efficient", "minimum_gemm_alignment: 1 without tensor cores"),
    ((7, 5), FP16, 5, {}, "math", "minimum_gemm_alignment: 8 halves with tensor cores"),
    ((8, 6), FP16, 40, {}, "flash", "can_use_flash_attention, the first in the order of ATen/Context.h"),
    ((8, 6), BF16, 160, {}, "flash", "check_head_dim_size_flash: up to 256"),
    ((8, 6), BF16, 5, {}, "flash", "check_head_dim_size_flash has no multiple; attention.cpp pads to 8"),
    ((8, 6), BF16, 512, {}, "efficient", "check_head_dim_size_flash: up to 256"),
    ((8, 6), FP32, 64, {}, "efficient", "check_dtypes_low_precision: fp16 and bf16"),
    ((8, 6), FP32, 5, {}, "math", "minimum_gemm_alignment: 4 from 8.0 on"),
    ((8, 6), BF16, 64, {"masked": True}, "efficient", "check_for_attn_mask"),
    ((8, 0), BF16, 224, {}, "flash", "check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120: not on 8.0"),
    ((8, 9), BF16, 224, {}, "efficient", "the same, 8.6 to 8.9"),
    ((8, 9), BF16, 256, {}, "flash", "the same, without dropout"),
    ((8, 9), BF16, 224, {"learns": False}, "flash", "the same, without gradients"),
    ((12, 0), BF16, 224, {}, "efficient", "the same, 12.0 and 12.1"),
    ((12, 0), BF16, 64, {}, "flash", "check_prefer_cudnn_attention: 9 and 10 alone"),
    ((9, 0), BF16, 64, {"torch_version": "2.13.0+cu130"}, "cudnn", "check_prefer_cudnn_attention: a cuDNN above 9.15.0"),
    (
        (9, 0),
        BF16,
        64,
        {"torch_version": "2.10.0"},
        "flash",
        "the same: its wheels bring an older cuDNN (transformers' pull request 48163)",
    ),
    ((9, 0), BF16, 64, {"torch_version": "2.8.0"}, "flash", "ATen/Context.h: cuDNN comes after math"),
    ((10, 0), FP16, 80, {"torch_version": "2.11.0"}, "cudnn", "check_prefer_cudnn_attention"),
    ((9, 0), BF16, 64, {"torch_version": "2.11.0", "masked": True}, "cudnn", "can_use_cudnn_attention: check_attn_mask_shape"),
    ((9, 0), BF16, 160, {"torch_version": "2.11.0"}, "flash", "check_cudnn_tensor_shapes: up to 128"),
    ((9, 0), FP32, 64, {"torch_version": "2.11.0"}, "efficient", "check_dtypes_low_precision"),
]


@pytest.mark.parametrize(("capability", "dtype", "size", "others", "expected", "source"), FACTS)
def test_the_kernel_is_torchs_choice(capability, dtype, size, others, expected, source):
    assert attention.kernel(dtype, size, capability=capability, **others) == expected, source


def test_one_recording_stands_for_cards_that_choose_alike():
    for capability in {card.capability for card in CARDS.values()}:
        sample = attention.alike(capability)
        assert attention.alike(sample) == sample
        for dtype in (FP32, FP16, BF16):
            for size in (40, 64, 80, 160, 512):
                kernels = [attention.kernel(dtype, size, capability=one) for one in (capability, sample)]
                assert kernels[0] == kernels[1]
    assert len({attention.alike(card.capability) for card in CARDS.values()}) < 6


@pytest.mark.gpu
def test_it_is_what_torch_chooses_on_this_card():
    capability = torch.cuda.get_device_capability()
    for dtype in (FP32, FP16, BF16):
        for size in (5, 40, 64, 80, 160, 224, 512):
            for learns in (False, True):
                heads = torch.zeros(1, 2, 64, size, dtype=dtype, device="cuda", requires_grad=learns)
                chosen = torch.nn.attention.SDPBackend(torch._fused_sdp_choice(heads, heads, heads))  # pyright: ignore[reportCallIssue]
                name = chosen.name.removesuffix("_ATTENTION").lower()
                assert attention.kernel(dtype, size, capability=capability, learns=learns) == name, (dtype, size, learns)


class Attention(torch.nn.Module):
    """One call of attention on projections of its input: (B, L, H·d) -> (B, H, L, d)."""

    def __init__(self, heads, size, dtype):
        super().__init__()
        self.heads, self.project = heads, torch.nn.Linear(heads * size, heads * size, dtype=dtype, device="meta")

    def forward(self, x):
        heads = self.project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)


def saved(dtype, size, *, path="auto", capability=(8, 6), length=50):
    """Bytes that attention on one projection keeps for backward, and its operators."""
    layer, x = Attention(2, size, dtype), torch.empty(1, length, 2 * size, dtype=dtype, device="meta")
    with MemoryTrace(layer, kernels="cuda", attention=path, capability=capability) as trace:
        out = layer(x)
        out.sum().backward()
    return trace.saved_bytes, {moment.operator for moment in trace.timeline}


@pytest.mark.parametrize(
    ("dtype", "size", "capability", "operator", "rows"),
    [
        (BF16, 64, (8, 6), "_scaled_dot_product_flash_attention", 50),
        (BF16, 64, (7, 5), "_safe_softmax", None),
        (FP16, 64, (7, 5), "_scaled_dot_product_efficient_attention", 64),
        (FP32, 64, (8, 6), "_scaled_dot_product_efficient_attention", 64),
    ],
)
def test_what_each_keeps_for_backward(dtype, size, capability, operator, rows):
    kept, operators = saved(dtype, size, capability=capability)
    assert f"aten.{operator}" in operators
    tensor = 2 * 50 * size * dtype.itemsize
    if rows:  # the projection, the result, and a number for each row: `efficient` rounds their count to a multiple of 32
        assert kept == pytest.approx(2 * tensor + 2 * rows * 4, abs=64)
    else:  # queries, keys and values in fp32, and the matrix
        assert kept > 3 * 2 * tensor + 2 * 50 * 50 * 4


def test_flash_pads_heads_to_a_multiple_of_eight():
    kept, operators = saved(BF16, 5)
    assert "aten.constant_pad_nd" in operators
    assert kept == pytest.approx(4 * (2 * 50 * 8 * 2) + 2 * 50 * 4, abs=64)  # three padded copies, the padded result, the rows


def test_every_kernel_has_a_name_in_the_plan():
    assert {report.KERNELS.get(f"aten._scaled_dot_product_{kernel}_attention", kernel) for kernel in attention.KERNELS} == set(
        attention.KERNELS
    )
