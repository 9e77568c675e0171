"""`cuda_scratch`: what CUDA's kernels hold inside an operator, beside what an H200's allocator was asked for."""

import pytest
import torch

from sdnb.memory import cuda_scratch
from sdnb.memory.cuda_scratch import Reduction, scratch
from sdnb.system import MIB, cards

aten = torch.ops.aten
H200 = cards.CARDS["h200"].resident_threads


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("func", "args", "asked"),
    [  # bytes that the allocator of an H200 was asked for, in the events of `python -m benchmarks.gpu`
        (aten.sum.dim_IntList, (meta(16384, 2560), [0], True), 138_936_320),
        (aten.convolution.default, (meta(4, 640, 64, 64), meta(640, 640, 3, 3), None, [1, 1], [1, 1], [1, 1], False), 98_632_192),
        (aten.convolution.default, (meta(4, 320, 64, 64), meta(320, 320, 1, 1), None, [1, 1], [0, 0], [1, 1], False), None),
    ],
)
def test_it_is_what_a_card_was_asked_for(func, args, asked):
    found = [size.scratch_bytes(H200) if isinstance(size, Reduction) else size for _, size in scratch(func, args)]
    assert found == ([] if asked is None else [pytest.approx(asked, rel=0.001)])


def backward(*mask, kernel=3, dtype=torch.float32):
    x, weight = meta(4, 640, 32, 32, dtype=dtype), meta(640, 640, kernel, kernel, dtype=dtype)
    return scratch(aten.convolution_backward.default, (x, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, list(mask)))


def test_a_convolutions_gradients_are_made_one_after_the_other():
    copies = round(34.0625 * MIB)  # 34.063 MiB asked for
    assert backward(True, True, True) == [(1, copies), (2, copies)]
    assert backward(True, False, False) == [(1, copies)]
    assert backward(False, True, True) == [(1, copies)]
    assert backward(True, True, True, kernel=1) == [(2, 4 * 640 * 640 * 4)]  # 6.25 MiB asked for
    assert backward(True, True, True, kernel=1, dtype=torch.bfloat16) == []


def test_only_a_reduction_across_rows_has_a_buffer():
    norm = aten.linalg_vector_norm.default
    assert scratch(norm, (meta(4096, 320), 2, [0], True)) == [(1, Reduction(320, 4096, 4))]
    assert scratch(norm, (meta(4096, 320), 2, [1], True)) == []
    assert scratch(norm, (meta(4096, 320), 2)) == []
    assert scratch(aten.sum.dim_IntList, (meta(4, 320, 64, 64), [0, 2, 3])) == []  # a convolution's bias
    assert scratch(aten.mean.dim, (meta(2, 64, 10, 7), [1])) == [(1, Reduction(140, 64, 2))]  # 70 numbers in a row
    assert scratch(aten.sum.dim_IntList, (meta(4096, 321), [0])) == [(1, Reduction(321, 4096, 1))]


def test_a_buffer_grows_with_the_card_and_never_beyond_a_number_a_thread():
    sizes = [Reduction(2560, 16384, 4).scratch_bytes(cards.CARDS[name].resident_threads) for name in ("t4", "rtx3060", "rtx4090", "h200")]
    assert sizes == sorted(sizes)
    assert sizes[0] == 20 * MIB
    assert sizes[-1] == 132.5 * MIB
    for outputs, values, vector in [(1, 10, 1), (320, 100, 4), (10_000_000, 100_000, 4), (3, 300, 1)]:
        assert Reduction(outputs, values, vector).scratch_bytes(H200) <= 2 * 512 * H200
    assert Reduction(320, 100, 4).scratch_bytes(H200) == 0
    assert Reduction(320, 10_000, 4).scratch_bytes(0) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@pytest.mark.parametrize("shape", [(16384, 2560), (4096, 640), (100_000, 12), (512, 321)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_allocator_counts_a_reduction(shape, dtype):
    from sdnb.planner import advice

    x = torch.zeros(shape, dtype=dtype, device="cuda")
    for func, args in ((aten.sum.dim_IntList, (x, [0])), (aten.linalg_vector_norm.default, (x, 2, [0]))):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = func(*args)
        counted = torch.cuda.max_memory_allocated() - before
        sizes = [size for _, size in cuda_scratch.scratch(func, args)]
        expected = sum(size.scratch_bytes(advice.card(x.device).resident_threads) for size in sizes if isinstance(size, Reduction))
        assert counted == pytest.approx(expected, rel=0.02, abs=2 * MIB)
        del out


def test_the_efficient_kernels_scratch_is_that_of_its_headers():
    """cutlassF.h: half precision above 128 goes through fp32; cutlassB.h: the queries' gradient goes through 64×64 tiles in fp32."""
    forward = aten._scaled_dot_product_efficient_attention.default
    backward = aten._scaled_dot_product_efficient_attention_backward.default
    wide, narrow = meta(1, 1, 4096, 512, dtype=torch.float16), meta(2, 8, 4096, 40, dtype=torch.float16)
    assert scratch(forward, (wide, wide, wide)) == [(2, 4 * 4096 * 512)]
    assert scratch(forward, (narrow, narrow, narrow)) == []
    assert scratch(forward, (wide.float(), wide.float(), wide.float())) == []
    assert scratch(backward, (narrow, narrow, narrow, narrow)) == [(3, 2 * 8 * 4096 * (64 + 1) * 4)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@pytest.mark.parametrize(("size", "dtype"), [(40, torch.float32), (64, torch.float32), (64, torch.float16), (512, torch.float16)])
def test_the_allocator_counts_the_efficient_kernel(size, dtype):
    q, k, v = (torch.zeros(1, 1024, 2, size, dtype=dtype, device="cuda").transpose(1, 2) for _ in range(3))

    def peak(func, *args):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = func(*args)
        return torch.cuda.max_memory_allocated() - before, out

    forward = aten._scaled_dot_product_efficient_attention
    counted, (result, rows, *seeds) = peak(forward, q, k, v, None, True)
    expected = sum(size for _, size in scratch(forward.default, (q, k, v)))
    assert counted == pytest.approx(result.nbytes + rows.nbytes + expected, rel=0.02, abs=8192)
    if size > 128:
        return
    backward = aten._scaled_dot_product_efficient_attention_backward
    arguments = (result, q, k, v, None, result, rows, *seeds, 0.0, [True, True, True, False])
    counted, gradients = peak(backward, *arguments)
    expected = sum(size for _, size in scratch(backward.default, arguments))
    assert counted == pytest.approx(sum(g.nbytes for g in gradients if g is not None) + expected, rel=0.02, abs=8192)
