"""Kinds and FLOPs of the counted operators, which do nearly all of the arithmetic: matrix products, convolutions, attention.

One multiplication and one addition are two FLOPs, as in torch's own counter. Other operators (norms, activations, gates, sums) count as
none: they take time, but little beside these.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_aten = torch.ops.aten
KINDS = ("matmul", "convolution", "attention")
_MATMULS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm")
_CONVOLUTIONS = ("convolution", "_convolution", "cudnn_convolution", "_slow_conv2d_forward", "mkldnn_convolution")
_ATTENTIONS = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_flash_attention_forward",
    "_efficient_attention_forward",
)
_KIND = {
    getattr(_aten, name): kind
    for kind, names in zip(KINDS, (_MATMULS, _CONVOLUTIONS, _ATTENTIONS), strict=True)
    for name in names
    if hasattr(_aten, name)  # some exist only in later versions of torch
}


def kind(func) -> str | None:
    """Kind of a counted operator, one of `KINDS`; None for the others, which are cheap to recompute."""
    return _KIND.get(func.overloadpacket)


def flops(func, args: tuple, kwargs: dict, out: object) -> int:
    """FLOPs of one call, forward or backward; 0 for an operator that is not counted."""
    packet = func.overloadpacket
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu:  # torch's table lacks these two
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    count = flop_registry.get(packet)
    if count is None:
        return 0
    formula = getattr(count, "__wrapped__", None)
    if formula is None:  # it looks at more than shapes
        return count(*args, **kwargs, out_val=out)
    # as torch's wrapper around it, which takes as long as the operator
    return formula(*map(_shape, args), **{name: _shape(value) for name, value in kwargs.items()}, out_shape=_shape(out))


def _shape(value):
    """Shape of a tensor, shapes of those in a sequence; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.shape
    return [_shape(part) for part in value] if isinstance(value, (list, tuple)) else value


def is_random(func, args: tuple, kwargs: dict) -> bool:
    """Whether this call draws random numbers. Fused attention does so only with dropout."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    if _KIND.get(func.overloadpacket) != "attention":
        return True
    names = [argument.name for argument in func._schema.arguments]
    arguments = dict(zip(names, args, strict=False)) | kwargs
    return bool(arguments.get("dropout_p", 0.0))
