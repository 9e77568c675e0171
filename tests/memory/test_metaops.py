"""Operators answered from memory, against torch's own answers on the meta device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdnb.memory import metaops


def sharing(out, args):
    """Of each tensor that an operator was given, whether the result lies in its storage."""
    given = [value for value in tree_leaves(args) if isinstance(value, torch.Tensor)]
    return [value.untyped_storage()._cdata == out.untyped_storage()._cdata for value in given]


class Answered(TorchDispatchMode):
    """Every operator through `metaops.run`, twice, beside torch's own result."""

    def __init__(self):
        super().__init__()
        self.compared = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        expected = func(*args, **kwargs)
        for _ in range(2):
            found = metaops.run(func, args, kwargs)
            for one, other in zip(*(x if isinstance(x, (list, tuple)) else [x] for x in (found, expected)), strict=True):
                if isinstance(other, torch.Tensor):
                    self.compared.append(str(func))
                    assert (one.shape, one.stride(), one.dtype, one.device) == (other.shape, other.stride(), other.dtype, other.device), (
                        func
                    )
                    assert sharing(one, args) == sharing(other, args), func
        return found


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


SHAPES = [((3, 4), (3, 4)), ((3, 1), (1, 4)), ((2, 3, 4), (4,)), ((), (5,)), ((1,), (1, 1)), ((2, 5), ()), ((0, 3), (1, 3))]


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.int64, torch.float16)])
@pytest.mark.parametrize("shapes", SHAPES)
def test_what_is_computed_point_by_point(shapes, dtypes):
    x, y = (meta(*shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    with Answered() as answered:
        for value in (x + y, x * y, x / y, x - 2, x * 2.5, 1 - y, x > y, torch.where(y > 0, y, 1.0), y.rsqrt(), y.square(), y.isfinite()):
            value + 1
        torch.addcmul(y, y, y, value=0.5)
        y.clamp(min=1)
    assert len(answered.compared) > 20


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [-1, 0, (0, 2), (-2, -1), (0, 1, 2)])
def test_what_takes_dimensions_away(dim, keepdim):
    x = meta(2, 3, 4)
    with Answered() as answered:
        x.mean(dim, keepdim=keepdim), x.sum(dim, keepdim=keepdim), torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
        x.sum(dim, dtype=torch.float64), x.sum(), x.mean(), torch.linalg.vector_norm(x), meta(2, 3, 4, dtype=torch.int64).sum(dim)
    assert len(answered.compared) >= 8


def test_tensors_that_do_not_lie_in_order():
    x, y = meta(4, 3).T, meta(3, 4)
    pictures = meta(2, 3, 4, 5).to(memory_format=torch.channels_last)
    with Answered() as answered:
        x + y, x * x, x.square(), pictures * 2, pictures + pictures, pictures.mean((2, 3)), pictures.sum(1, keepdim=True), y[:, 1:] + 1
        torch.nn.functional.conv2d(pictures, meta(6, 3, 3, 3)), y @ x.T, torch.cat([x, y]), torch.stack([x, y])
    assert len(answered.compared) >= 12


def test_a_number_without_dimensions():
    x = meta()
    with Answered() as answered:
        x.sum(0), x.mean(-1), torch.linalg.vector_norm(x, dim=0), x + 1, x * x
        meta(0, 3).sum(0), meta(0, 3).mean(1)
    assert len(answered.compared) >= 7
    with Answered(), pytest.raises(IndexError, match="out of range"):
        meta(2, 3).sum(2)


def test_pictures_so_thin_that_they_lie_in_both_orders():
    thin = meta(2, 3, 1, 1).to(memory_format=torch.channels_last)
    grey = torch.empty_strided((2, 1, 4, 4), (16, 1, 4, 1), device="meta")
    with Answered() as answered:
        thin + 1, thin * thin, thin + meta(2, 3, 4, 4), thin.mean((2, 3), keepdim=True), grey + 1, grey + meta(2, 3, 4, 4)
    assert len(answered.compared) >= 6


def test_a_product_given_another_shape_is_no_second_tensor():
    with Answered() as answered:
        meta(2, 3, 4) @ meta(4, 5), torch.nn.functional.linear(meta(2, 3, 4), meta(5, 4))
    assert "aten._unsafe_view.default" in answered.compared


LISTS = {
    "alike": lambda x: torch._foreach_add([x, x], [x, x]),
    "a number": lambda x: torch._foreach_mul([x, x], 2.0),
    "numbers": lambda x: torch._foreach_div([x, x], [2.0, 3.0]),
    "a tensor": lambda x: torch._foreach_mul([x, x], meta()),
    "a wider dtype": lambda x: torch._foreach_add([x.to(torch.bfloat16)], [x]),
    "another shape": lambda x: torch._foreach_mul([meta(2, 1)], [meta(1, 3)]),
    "none of floats": lambda x: torch._foreach_sqrt([x, x.to(torch.int64)]),
    "a number first": lambda x: torch._foreach_pow(0.9, [meta(), meta()]),
    "out of order": lambda x: torch._foreach_add([meta(4, 2).T], [meta(2, 4)]),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_of_tensors(case):
    with Answered() as answered:
        LISTS[case](meta(2, 3))
    assert any("_foreach_" in name for name in answered.compared)


def test_what_is_changed_in_place_is_what_comes_back():
    x = meta(3, 4)
    with Answered():
        assert x.mul_(2) is x
        assert x.lerp_(x, 0.5) is x
        torch._foreach_mul_([x, meta(2)], 2.0)
    assert x.shape == (3, 4)


def test_real_tensors_are_computed():
    with Answered():
        assert (torch.ones(3) + torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
        assert torch.full((3,), 3.0).sum().item() == 9
