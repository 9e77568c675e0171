"""A cache of what operators return on the meta device: arguments with the same shapes give results with the same shapes.

On that device an operator computes only the form of its result (shape, strides, dtype), in Python and in a few hundred microseconds. A
U-Net needs the same few forms thousands of times. `run` computes each once, which makes a plan two to four times as fast, and a second
plan faster still.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CACHE_SIZE = 200_000
"""Most results to remember."""
_FIRST_ARGUMENT = object()
"""Form of a result that is the first argument itself."""
_forms: dict[tuple, object] = {}
_META = torch.device("meta")
_PLAIN = (Tensor, torch.nn.Parameter)
"""Tensor types whose results are cached."""


def run(func, args: tuple, kwargs: dict):
    """Return `func(*args, **kwargs)`, for an operator as a dispatch mode gets it; without the cache unless all tensors are on meta."""
    kind = _kind(func)
    if kind == "other":
        return func(*args, **kwargs)
    if kind == "in place" and type(args[0]) in _PLAIN and args[0].device.type == "meta":
        return args[0]
    if kind == "foreach in place" and _all_meta(args[0]):
        return None
    if kind == "foreach" and (out := _run_foreach(args)) is not None:
        return out
    if kind == "pointwise" and (out := _run_pointwise(func, args, kwargs)) is not None:
        return out
    if func in _REDUCTIONS and not kwargs and (out := _run_reduction(func, args)) is not None:
        return out
    try:
        key = (func, _argument_key(args), _argument_key(tuple(kwargs.items())) if kwargs else None)
        form = _forms.get(key)
    except (_NotCacheable, TypeError):  # TypeError: not hashable
        return func(*args, **kwargs)
    if form is None:
        out = func(*args, **kwargs)
        if (form := _result_form(args, out)) is not None:
            if len(_forms) >= CACHE_SIZE:
                _forms.clear()
            _forms[key] = form
        return out
    return args[0] if form is _FIRST_ARGUMENT else _build(form)


class Remembered(TorchDispatchMode):
    """Runs the operators of its context through `run`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as for a `MemoryTrace`

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _NotCacheable(Exception):
    """An argument on another device or of another type."""


@functools.cache
def _kind(func) -> str:
    """Kind of an operator, read from its schema: how to find the form of its result.

    - `in place`, such as `add_(x, y)`: returns x itself
    - `foreach in place`, such as `_foreach_add_(xs, ys)`: returns nothing
    - `foreach`, such as `_foreach_add(xs, ys)`: new tensors, each like the one in xs
    - `pointwise`, such as `add(x, y)`: one new tensor of the arguments' broadcast shape
    - `functional`, such as `mm(x, y)`: new tensors, computed once for arguments of this form and then remembered
    - `other`, such as `view(x)` and `item(x)`: always computed

    >>> _kind(torch.ops.aten.add_.Tensor), _kind(torch.ops.aten.add.Tensor), _kind(torch.ops.aten.mm.default)
    ('in place', 'pointwise', 'functional')
    """
    schema, tags = func._schema, set(func.tags)
    name = schema.name
    if "_foreach_" in name:
        if name.endswith("_") and not schema.returns:
            return "foreach in place"
        return "other" if any(word in name for word in ("norm", "max", "powsum", "copy")) else "foreach"
    depends_on_contents = tags & {torch.Tag.inplace_view, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    if depends_on_contents or not schema.returns or "resize" in name or "set_" in name:
        return "other"
    first, *rest = (argument.is_write for argument in schema.arguments)
    if first:
        itself = not any(rest) and len(schema.returns) == 1 and schema.returns[0].alias_info is not None
        return "in place" if itself else "other"
    if any(rest) or any(out.alias_info is not None for out in schema.returns):  # into `out=`, or a view
        return "other"
    alone = len(schema.returns) == 1 and isinstance(schema.returns[0].type, torch.TensorType)
    return "pointwise" if alone and torch.Tag.pointwise in tags else "functional"


_dtypes: dict[tuple, torch.dtype] = {}
_aten = torch.ops.aten
_REDUCTIONS = {_aten.linalg_vector_norm.default: 2, _aten.mean.dim: 1, _aten.sum.dim_IntList: 1}
"""Operators that reduce dimensions, each with the index of `dim` among its arguments; `keepdim` follows it."""


def _run_pointwise(func, args: tuple, kwargs: dict) -> Tensor | None:
    """Result for contiguous meta tensors, with their broadcast shape and a cached dtype; None for other arguments."""
    shapes, kinds = [], []
    for value in (*args, *kwargs.values()):
        kind = type(value)
        if kind in _PLAIN:
            if value.device.type != "meta" or not value.is_contiguous():
                return None
            if value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last):  # contiguous in both layouts
                return None
            shapes.append(value.shape)
            kinds.append((value.dtype, value.ndim == 0))
        elif kind in (int, float, bool, str, type(None)):
            kinds.append(kind)
        else:
            return None
    largest = max(shapes, key=len, default=None)
    if largest is None:
        return None
    key = (func, *kinds, *kwargs)
    dtype = _dtypes.get(key)
    if dtype is None:
        out = func(*args, **kwargs)
        if type(out) is Tensor and out.is_contiguous():
            _dtypes[key] = out.dtype
        return out
    return torch.empty(largest if all(shape == largest for shape in shapes) else torch.broadcast_shapes(*shapes), dtype=dtype, device=_META)


def _run_reduction(func, args: tuple) -> Tensor | None:
    """Result with the reduced dimensions dropped, or of size 1 with `keepdim`; None for arguments that are left to torch."""
    dim_index = _REDUCTIONS[func]
    x = args[0]
    dims = args[dim_index] if len(args) > dim_index else None
    if type(x) not in _PLAIN or x.device.type != "meta" or not x.dtype.is_floating_point or not x.is_contiguous() or not dims:
        return None
    if not all(-x.ndim <= dim < x.ndim for dim in dims):  # a scalar has no dimensions; the rest torch refuses itself
        return None
    keepdim = len(args) > dim_index + 1 and args[dim_index + 1]
    reduced = {dim % x.ndim for dim in dims}
    shape = [1 if dim in reduced else size for dim, size in enumerate(x.shape) if keepdim or dim not in reduced]
    return torch.empty(shape, dtype=x.dtype, device=_META)


def _run_foreach(args: tuple) -> list[Tensor] | None:
    """New tensors like those of the first list, if every other list has the same shapes and dtypes; else None."""
    first = args[0]
    if not isinstance(first, (list, tuple)) or not _all_meta(first) or not all(tensor.dtype.is_floating_point for tensor in first):
        return None
    for value in args[1:]:
        if isinstance(value, Tensor) and value.ndim:
            return None
        is_tensor_list = isinstance(value, (list, tuple)) and isinstance(value[0], Tensor)
        if is_tensor_list and any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(first, value, strict=True)):
            return None
    return [torch.empty_like(tensor) for tensor in first]


def _all_meta(tensors) -> bool:
    return bool(tensors) and all(type(tensor) in _PLAIN and tensor.device.type == "meta" for tensor in tensors)


def _argument_key(value):
    """Cache key of one argument: everything that the form of a result may depend on. Raises `_NotCacheable`."""
    kind = type(value)
    if kind in _PLAIN:
        if value.device.type != "meta":
            raise _NotCacheable
        return value.shape, value.stride(), value.dtype
    if kind is tuple or kind is list or kind is torch.Size:
        return tuple([_argument_key(part) for part in value])
    if isinstance(value, (Tensor, torch.Generator)):
        raise _NotCacheable
    return kind, value  # 1, 1.0 and True are not the same


def _result_form(args: tuple, out: object):
    """Form of a result; None unless it consists of new tensors, each with a storage of its own."""
    if isinstance(out, Tensor):
        if args and out is args[0]:
            return _FIRST_ARGUMENT
        storage = out.untyped_storage()._cdata  # `_unsafe_view` shares its argument's, which its schema does not say
        shared = any(isinstance(value, Tensor) and value.untyped_storage()._cdata == storage for value in args)
        return None if shared else _tensor_form(out)
    if isinstance(out, (tuple, list)):
        maybe_forms = [_tensor_form(part) if isinstance(part, Tensor) else ("value", part) for part in out]
        forms = [form for form in maybe_forms if form is not None]
        storages = {part.untyped_storage()._cdata for part in out if isinstance(part, Tensor)}
        unshared = len(storages) == sum(form[0] == "tensor" for form in forms)
        nested = any(isinstance(form[1], (list, tuple)) for form in forms if form[0] == "value")
        return (type(out), forms) if len(forms) == len(maybe_forms) and unshared and not nested else None
    return None


def _tensor_form(out: Tensor):
    """`("tensor", shape, strides, dtype)`; None for a tensor that is a view or of another type or device."""
    if type(out) not in _PLAIN or out.device.type != "meta" or out.storage_offset():
        return None
    form = ("tensor", out.shape, out.stride(), out.dtype)
    return form if _build(form).untyped_storage().nbytes() == out.untyped_storage().nbytes() else None


def _build(form):
    """New result of a form: a tensor, a value, or a list or tuple of them."""
    if form[0] == "tensor":
        return torch.empty_strided(form[1], form[2], dtype=form[3], device=_META)  # torch.ops.aten's takes five times as long
    if form[0] == "value":
        return form[1]
    return form[0]([_build(part) for part in form[1]])
