"""Stand-ins for what a training step needs and the meta device lacks: values of tensors, autocast, and an accelerator.

Tensors on the meta device have shapes and no contents. A step that asks whether its loss is finite gets the answer yes; autocast, which
supports only real devices, is done here by its own tables; and gradients are accumulated and scaled as accelerate would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from torch.nn import Module

# torch/include/ATen/autocast_mode.h, as far as these models need it
LOWER_PRECISION = frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d linear matmul __matmul__ mm bmm addmm baddbmm addbmm einsum "
    "scaled_dot_product_attention prelu".split()
)
FP32 = {
    "cuda": frozenset(
        "group_norm layer_norm rms_norm interpolate upsample_nearest2d mse_loss l1_loss smooth_l1_loss huber_loss softmax log_softmax sum "
        "prod cumsum norm pow __pow__ rsqrt reciprocal exp log softplus cosine_similarity logsumexp".split()
    ),
    "cpu": frozenset("mse_loss l1_loss smooth_l1_loss huber_loss cosine_similarity prod".split()),
}


class Autocast(TorchFunctionMode):
    """Mixed precision on the meta device, wherever `torch.autocast("cpu", …)` is on. `kernels`: the device type whose tables apply.

    As in autocast, the cast of a trained weight is made once and kept until the outermost region ends.
    """

    def __init__(self, kernels: str) -> None:
        super().__init__()
        self.fp32 = FP32[kernels]
        self.names = LOWER_PRECISION | self.fp32
        self.casts: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in self.names and torch.is_autocast_enabled("cpu"):  # every look at a tensor's shape or dtype comes here as well
            dtype = torch.get_autocast_dtype("cpu") if name in LOWER_PRECISION else torch.float32
            args = [self._cast_in(value, dtype) for value in args]
            kwargs = {key: self._cast_in(value, dtype) for key, value in kwargs.items()} if kwargs else None
        return func(*args, **kwargs) if kwargs else func(*args)

    def _cast_in(self, value, dtype: torch.dtype):
        return tree_map(lambda one: self._cast(one, dtype), value) if isinstance(value, (list, tuple, dict)) else self._cast(value, dtype)

    def _cast(self, value, dtype: torch.dtype):
        if not isinstance(value, Tensor) or value.device.type != "meta" or not value.is_floating_point() or value.dtype == dtype:
            return value
        recomputing = torch._C._current_graph_task_id() != -1  # each block is a region of its own there, and uses a weight once
        if recomputing or not (value.dtype == torch.float32 and value.requires_grad and value.is_leaf):
            return value.to(dtype)
        if id(value) not in self.casts:
            self.casts[id(value)] = value, value.to(dtype)
        return self.casts[id(value)][1]

    def clear(self) -> None:
        """Forget the casts, at the end of the outermost region."""
        self.casts.clear()


class MetaAccelerator:
    """Part of accelerate's `Accelerator` that `training_step` uses.

    - `precision`: `no`, `bf16` or `fp16`
    - `rounds`: batches per optimizer step
    """

    def __init__(self, precision: str, rounds: int) -> None:
        self.precision, self.rounds = precision, rounds
        self.scaler = object() if precision == "fp16" else None  # training_step only asks whether there is one
        self.sync_gradients = True

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of `loss`, a scalar, divided by `rounds`."""
        loss = loss / self.rounds
        if self.scaler is not None:
            loss = loss * torch.ones((), device=loss.device)  # the scale
        # as loss.backward(), which would also switch `Autocast` off for recomputed blocks
        _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)

    def clip_grad_norm_(self, parameters, max_norm: float) -> Tensor:
        """Scale the gradients down to a 2-norm of `max_norm` over all of them. Returns the norm before, a scalar."""
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    @contextmanager
    def prepared(self, models: Sequence[Module], kernels: str) -> Iterator[None]:
        """Run `models` in `precision` inside this context, as accelerate prepares them."""
        if self.precision == "no":
            yield
            return
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        mode = Autocast(kernels)
        with ExitStack() as stack:
            for model in models:
                stack.enter_context(_casting(model, dtype, mode))
            stack.enter_context(mode)
            yield


@contextmanager
def _casting(model: Module, dtype: torch.dtype, mode: Autocast) -> Iterator[None]:
    """Run the forward of `model` under autocast inside this context; it returns fp32."""
    from accelerate.utils.operations import convert_outputs_to_fp32

    forward = model.forward
    before = vars(model).get("forward")
    plain = getattr(forward, "__func__", None)

    def cast(self, *args, **kwargs):
        try:
            with torch.autocast("cpu", dtype=dtype):
                return plain(self, *args, **kwargs) if plain else forward(*args, **kwargs)
        finally:
            mode.clear()

    model.forward = MethodType(convert_outputs_to_fp32(cast), model)
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if before is not None:
            model.forward = before


@contextmanager
def answers(last_operator) -> Iterator[None]:
    """Make `item()` of a meta tensor return, inside this context, what a step with finite numbers would get.

    `last_operator()` returns the name of the operator that ran last: after `any`, the answer is False, as no number is bad.
    """

    def answer(tensor: Tensor):
        if tensor.dtype == torch.bool:
            return not last_operator().startswith("aten.any")
        return 1.0 if tensor.dtype.is_floating_point else 0

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_local_scalar_dense", answer, "Meta", allow_override=True)  # torch has one there already
        yield
