"""Adafactor (Shazeer & Stern 2018): Adam's second moment of a matrix, stored as two vectors.

The running mean V of squared gradients of a matrix (n, m) is stored as the means of its rows R (n) and of its columns C (m), and rebuilt
as R C / mean(R). For V = [[1, 2], [3, 6]] these are R = (1.5, 4.5) and C = (2, 4), mean(R) = 3, and R C / 3 = [[1, 2], [3, 6]]: nothing is
lost where V is such a product. Any other V is replaced by the nearest one, by the divergence of the paper. n·m numbers become n + m.

The paper covers only matrices. A convolution [out, in, kh, kw] is a matrix too, of `out` rows and in·kh·kw columns. The Adafactors of
transformers, torch and others factor the last two dimensions instead, kh and kw: a 3×3 convolution then keeps two thirds of the numbers of
V, and a 1×1 convolution twice as many as V has. `factoring` selects one. The arithmetic comes first below, then the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.optim import Optimizer

FACTORINGS = ("matrix", "two-largest", "last-two")
ROUNDING_CHUNK = 2**24
"""Elements to round at a time: their random bits take four bytes each."""
META_DEVICE_TYPE: ContextVar[str] = ContextVar("META_DEVICE_TYPE", default="cuda")
"""Device type that the meta device stands for: a CPU sums squares in other steps than a GPU, with other temporaries."""
CACHE_CHUNK = 2**18
"""Elements to square and sum at a time on a CPU, so that they stay in its cache."""


@dataclass(frozen=True)
class Layout:
    """View of a parameter as matrices (groups, n, m), or as one vector (N)."""

    order: tuple[int, ...]
    """Dimensions of the parameter, in the order of the view."""
    shape: tuple[int, ...]
    """Shape of the view: (groups, n, m), where V is factored in each group, or (N)."""
    rows: tuple[int, ...] = ()
    """Shape of the row means in `state`; empty for a vector."""
    columns: tuple[int, ...] = ()
    """Shape of the column means in `state`; empty for a vector."""

    @property
    def in_order(self) -> bool:
        """Whether the view keeps the order of the dimensions."""
        return self.order == tuple(range(len(self.order)))

    def view(self, tensor: Tensor) -> Tensor:
        """View a tensor of the parameter's shape as `shape`, the layout's."""
        return (tensor if self.in_order else tensor.permute(self.order)).reshape(self.shape)

    def restore(self, stacked: Tensor, shape: Sequence[int]) -> Tensor:
        """Turn k stacked tensors of this layout, (k, *self.shape), into (k, *shape), where `shape` is the parameter's own."""
        permuted = stacked.view(-1, *(shape[dim] for dim in self.order))
        if self.in_order:
            return permuted
        return permuted.permute(0, *(1 + self.order.index(dim) for dim in range(len(self.order))))


def layout(shape: Sequence[int], factoring: str = "matrix") -> Layout:
    """Layout of a parameter of this shape: one matrix (`matrix`), or a matrix of two dimensions for each index of the others."""
    shape = tuple(shape)
    dims = tuple(range(len(shape)))
    if len(shape) < 2:
        return Layout(dims, (math.prod(shape),))
    if factoring == "matrix":
        rest = math.prod(shape[1:])
        return Layout(dims, (1, shape[0], rest), (shape[0],), (rest,))
    factored = dims[-2:] if factoring == "last-two" else tuple(sorted(sorted(dims, key=lambda dim: shape[dim])[-2:]))
    others = tuple(dim for dim in dims if dim not in factored)
    groups = tuple(shape[dim] for dim in others)
    n, m = (shape[dim] for dim in factored)
    return Layout((*others, *factored), (math.prod(groups), n, m), (*groups, n), (*groups, m))


def matrix_direction(
    gradient: Tensor,
    rows: Tensor,
    columns: Tensor,
    weight: float | Tensor,
    eps: Tensor,
    clip_threshold: float = 1.0,
    scale: Tensor | None = None,
) -> Tensor:
    """Update of k matrices before the learning rate: gradient / sqrt(V), clipped to a root mean square of `clip_threshold`.

    - `gradient` (k, groups, n, m): overwritten with the update and returned
    - `rows` (k, groups, n), `columns` (k, groups, m): running means of squares, moved towards this gradient's by `weight`
    - `weight`: 1 - beta2, a number or a tensor (k, 1, 1)
    - `eps`: scalar tensor, added to the mean squares
    - `scale` (k): factor for each matrix's update
    """
    rows.lerp_(_mean_squares(gradient, -1, eps), weight)
    columns.lerp_(_mean_squares(gradient, -2, eps), weight)
    r = (rows / rows.mean(-1, keepdim=True)).rsqrt_()
    gradient.mul_(columns.rsqrt().unsqueeze(-2))
    norms = _norms(gradient, -1).mul_(r)  # norms of the update's rows, still without the factor r
    rms = vector_norm(norms, dim=(-2, -1), keepdim=True).div_(math.sqrt(gradient[0].numel()) * clip_threshold)
    r.div_(rms.clamp_(min=1))
    if scale is not None:
        r.mul_(scale.view(-1, 1, 1))
    return gradient.mul_(r.unsqueeze(-1))


def vector_direction(
    gradient: Tensor, squares: Tensor, weight: float | Tensor, eps: Tensor, clip_threshold: float = 1.0, scale: Tensor | None = None
) -> Tensor:
    """Update of k vectors (k, N) as in `matrix_direction`, with their full second moment `squares` (k, N); `weight`: a number or (k, 1)."""
    squares.lerp_(torch.addcmul(eps, gradient, gradient), weight)
    gradient.mul_(squares.rsqrt())
    rms = vector_norm(gradient, dim=-1, keepdim=True).div_(math.sqrt(gradient[0].numel()) * clip_threshold)
    factor = rms.clamp_(min=1).reciprocal_()
    if scale is not None:
        factor.mul_(scale.view(-1, 1))
    return gradient.mul_(factor)


def round_stochastically(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Round fp32 `values` of any shape in place, each to one of its two neighbours in bf16, at random so that the mean is kept.

    `values` must be contiguous. Returns them, still in fp32.
    """
    bits = values.view(torch.int32).view(-1)
    for part in bits.split(ROUNDING_CHUNK):
        part.add_(torch.empty_like(part).random_(0, 1 << 16, generator=generator))
    bits.bitwise_and_(-1 << 16)  # bf16 is fp32 without its last 16 bits
    return values


def _mean_squares(tensor: Tensor, dim: int, eps: Tensor) -> Tensor:
    """Mean of squares along `dim`, plus eps."""
    size = tensor.shape[dim]
    on_cpu = (tensor.device.type if tensor.device.type != "meta" else META_DEVICE_TYPE.get()) == "cpu"
    if on_cpu and size < 16:  # a norm is slow for short rows
        return tensor.square().mean(dim).add_(eps)
    if on_cpu and dim == -2:  # a norm across rows takes torch ten times as long
        rows = max(1, CACHE_CHUNK * size // tensor.numel())
        sums = (part.square().sum(dim) for part in tensor.split(rows, dim))
        return reduce(torch.add, sums).div_(size).add_(eps)
    norms = _norms(tensor, dim)
    return torch.addcmul(eps, norms, norms, value=1 / size)


def _norms(tensor: Tensor, dim: int) -> Tensor:
    """2-norms along one dimension, which is dropped."""
    # torch up to 2.11 ignores keepdim=False on the meta device
    return vector_norm(tensor, dim=dim, keepdim=True).squeeze(dim)


NON_FINITE = ("skip", "raise")


class NonFiniteGradient(RuntimeError):
    """A gradient holds NaN or infinity; no parameter was changed."""


class Adafactor(Optimizer):
    """Adafactor with the arguments of transformers', and a small state for convolutions too.

    `factoring` selects the matrix: `matrix` (out, everything else), `two-largest` (the two largest dimensions, as in optax), or
    `last-two`, which reproduces `transformers.Adafactor`. Parameters of one shape are stepped together, and the host does not wait for the
    device.

    Parameters in bf16 are rounded stochastically unless `stochastic_rounding` is False: rounded to the nearest, a weight does not
    move when its step is below 1/512 of it. The random bits depend only on `seed`, the step and the parameter's index.

    A parameter whose gradient holds NaN or infinity is skipped, its moments untouched, and counted in `skipped`; with
    `non_finite="raise"` the step raises `NonFiniteGradient` before anything is changed, for which the host has to wait.

    Raises `ValueError` for arguments out of range or that exclude each other, a complex parameter, or one listed twice;
    `RuntimeError` for a sparse gradient.
    """

    checks_gradients = True
    """Whether `step` itself looks for non-finite gradients, so that the caller need not. Goes with `skipped` and `refusing`."""

    def __init__(
        self,
        params: Iterable,
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        *,
        factoring: str = "matrix",
        stochastic_rounding: bool = True,
        non_finite: str = "skip",
        seed: int = 0,
    ) -> None:
        if non_finite not in NON_FINITE:
            raise ValueError(f"non_finite={non_finite!r}: there are {', '.join(NON_FINITE)}")
        self._reset()
        defaults = dict(lr=lr, eps=eps, clip_threshold=clip_threshold, decay_rate=decay_rate, beta1=beta1, weight_decay=weight_decay)
        defaults |= dict(scale_parameter=scale_parameter, relative_step=relative_step, warmup_init=warmup_init, factoring=factoring)
        super().__init__(params, {**defaults, "stochastic_rounding": stochastic_rounding, "non_finite": non_finite, "seed": seed})

    def add_param_group(self, param_group: dict) -> None:
        """Add a group of parameters, or a single one, with settings of its own; missing ones are the optimizer's.

        Raises `ValueError` for a parameter that is listed twice or is complex, and for settings out of range.
        """
        params = param_group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        known = {id(p) for group in self.param_groups for p in group["params"]}
        for p in params:
            if isinstance(p, Tensor) and id(p) in known:
                raise ValueError(f"a parameter of shape {tuple(p.shape)} is listed twice, and would be stepped twice: list it once")
            if isinstance(p, Tensor) and p.is_complex():
                raise ValueError(f"a parameter of shape {tuple(p.shape)} is complex: train torch.view_as_real of it")
            known.add(id(p))
        _check({**self.defaults, **param_group})
        super().add_param_group({**param_group, "params": params})
        self._number()

    @property
    def skipped(self) -> int:
        """Number of parameter updates skipped so far because the gradient was not finite. Reading it waits for the device."""
        return sum(int(number) for number in self._skipped.values())

    def learning_rates(self) -> list[float | None]:
        """Last learning rate of each group's first parameter, with its scale; `lr` before the first step. Waits for the device."""
        rates = []
        for group in self.param_groups:
            first = group["params"][0]
            batch, index = self._batch_of.get(first, (None, 0))
            scale = 1.0 if batch is None or batch.scale is None else float(batch.scale[index])
            step = self.state[first]["step"] if batch else 0
            rates.append(scale * _rate(group, step) if step else group["lr"])
        return rates

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient. Returns the loss from `closure`, or None without one.

        Raises `NonFiniteGradient`, before anything is changed, with `non_finite="raise"`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts = [(group, part) for group in self.param_groups for part in self._parts(group)]
        masks = self._finite([part for _, part in parts])
        for (group, part), (bad, good) in zip(parts, masks, strict=True):
            self._step(group, part, bad, good)
        return loss

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Raise for non-finite gradients inside this context, as with `non_finite="raise"`."""
        before = self.defaults["non_finite"]
        self.defaults["non_finite"] = "raise"
        try:
            yield
        finally:
            self.defaults["non_finite"] = before

    def state_dict(self) -> dict:
        """State as from `torch.optim.Optimizer.state_dict`, but with copies of the tensors."""
        packed = super().state_dict()
        packed["state"] = {
            key: {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
            for key, state in packed["state"].items()
        }
        return packed

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state of this class or of transformers' Adafactor, bit for bit.

        Raises `ValueError`, before anything is changed, for a state that was factored otherwise.
        """
        groups = [{**group, **saved} for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False)]
        if len(groups) == len(state_dict["param_groups"]):  # else torch raises its own error
            state_dict = {**state_dict, "param_groups": groups}
        parameters = [p for group in self.param_groups for p in group["params"]]
        keys = [(key, group) for group in state_dict["param_groups"] for key in group["params"]]
        states = {}
        for p, (key, group) in zip(parameters, keys, strict=False):
            if state := state_dict["state"].get(key):
                shapes = _state_shapes(layout(p.shape, group["factoring"]), p.shape, group["beta1"])
                for name, shape in shapes.items():
                    if name not in state or tuple(state[name].shape) != shape:
                        saved = tuple(state[name].shape) if name in state else "nothing"
                        raise ValueError(
                            f"the state of a parameter {tuple(p.shape)} holds {saved} for {name}, and factoring={group['factoring']!r} "
                            f'needs {shape}: a state of transformers goes with factoring="last-two"'
                        )
                tensors = {name: state[name].to(p.device, _precision(p), copy=True) for name in shapes}
                states[p] = {"step": int(state["step"]), **tensors}
        super().load_state_dict({**state_dict, "state": {}})
        self._reset()
        self.state.update(states)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._reset()
        self._number()

    # parts of a step

    def _reset(self) -> None:
        self._batch_of: dict[Tensor, tuple[_Batch, int]] = {}
        """Batch of each parameter, and its index there."""
        self._skipped: dict[torch.device, Tensor] = {}
        """Number of skipped updates, a scalar on each device."""
        self._constants: dict[tuple, Tensor] = {}
        self._generators: dict[torch.device, torch.Generator] = {}

    def _number(self) -> None:
        """Number the parameters, for the seeds of their random bits."""
        self._indices = {p: index for index, p in enumerate(p for group in self.param_groups for p in group["params"])}

    def _parts(self, group: dict) -> Iterator[_Part]:
        """Yield whole batches where all parameters have a gradient and the same step, else their parameters one at a time."""
        parameters = [p for p in group["params"] if p.grad is not None and p.numel()]
        for p in parameters:
            if p.grad.is_sparse:
                raise RuntimeError(f"a gradient of shape {tuple(p.shape)} is sparse: make its layer with sparse=False")
        self._add_batches(group, [p for p in parameters if p not in self._batch_of or self._batch_of[p][0].device != p.device])
        members: dict[_Batch, list[int]] = {}
        for p in parameters:
            batch, index = self._batch_of[p]
            members.setdefault(batch, []).append(index)
        for batch, indices in members.items():
            steps = [self.state[batch.parameters[index]]["step"] for index in indices]
            if len(indices) == len(batch.parameters) and len(set(steps)) == 1:
                yield _Part(batch, slice(0, len(indices)), steps[0] + 1)
            else:
                yield from (_Part(batch, slice(index, index + 1), step + 1) for index, step in zip(indices, steps, strict=True))

    def _add_batches(self, group: dict, parameters: list[Tensor]) -> None:
        """Put new parameters into batches of one shape, with at most twice as many elements as the largest parameter has."""
        by_kind: dict[tuple, list[Tensor]] = {}
        for p in parameters:
            step = self.state[p].get("step", 0)
            by_kind.setdefault((p.shape, p.dtype, p.device, step), []).append(p)
        largest = max((p.numel() for any_group in self.param_groups for p in any_group["params"]), default=0)
        for (shape, *_), members in by_kind.items():
            size = max(1, 2 * largest // shape.numel())
            for start in range(0, len(members), size):
                chunk = members[start : start + size]
                states = [self.state[p] for p in chunk]
                batch = _Batch(chunk, layout(shape, group["factoring"]), states, group["beta1"], group["eps"][0])
                for index, (p, tensors) in enumerate(zip(chunk, batch.states(), strict=True)):
                    self._batch_of[p] = batch, index
                    self.state[p] = {"step": self.state[p].get("step", 0), **tensors}

    def _finite(self, parts: list[_Part]) -> list[tuple[Tensor | None, Tensor]]:
        """Per part: mask of non-finite gradients, (k), or None if there are none; and weights 1.0/0.0 for good/bad ones, (k)."""
        by_kind: dict[tuple, list[int]] = {}
        for index, part in enumerate(parts):
            by_kind.setdefault((part.batch.device, _precision(part.parameters[0])), []).append(index)
        masks: dict[int, tuple[Tensor | None, Tensor]] = {}
        for (device, precision), indices in by_kind.items():
            gradients = [gradient for index in indices for gradient in parts[index].gradients]
            good = torch.stack(torch._foreach_norm(gradients, 2, precision)).isfinite()
            refuses = self.defaults["non_finite"] == "raise" and device.type != "meta"
            # reading the mask makes the host wait for a GPU, so there any gradient may be bad
            may_be_bad = not good.all() if refuses or device.type == "cpu" else True
            if may_be_bad and refuses:
                shape = tuple(gradients[int(good.logical_not().nonzero()[0])].shape)
                raise NonFiniteGradient(f"a gradient of shape {shape} holds NaN or infinity; no parameter was changed")
            sizes = [len(parts[index].parameters) for index in indices]
            bad = good.logical_not().split(sizes) if may_be_bad else [None] * len(sizes)
            masks |= zip(indices, zip(bad, good.to(precision).split(sizes), strict=True), strict=True)
            if may_be_bad:
                self._skipped[device] = self._skipped.get(device, 0) + good.logical_not().sum()
        return [masks[index] for index in range(len(parts))]

    def _step(self, group: dict, part: _Part, bad: Tensor | None, good: Tensor) -> None:
        """Update the parameters of a part, except where the gradient is bad: `bad` and `good` as from `_finite`."""
        batch, members, parameters = part.batch, part.members, part.parameters
        rate = _rate(group, part.step)
        update = batch.gather(part.gradients)  # (k, groups, n, m) or (k, N)
        ones = [1] * (update.ndim - 1)
        if bad is not None:
            update.masked_fill_(bad.view(-1, *ones), 0)
        weight = good * part.step ** group["decay_rate"]  # 1 - beta2, and 0 where the gradient is bad
        scale = self._scale(group, batch, members) if group["scale_parameter"] else None
        eps = self._constant(update, group["eps"][0])
        moments = [moment[members] for moment in batch.moments]
        direction: Callable[..., Tensor] = matrix_direction if len(moments) == 2 else vector_direction
        direction(update, *moments, weight.view(-1, *ones[: moments[0].ndim - 1]), eps, group["clip_threshold"], scale)
        decay = good * (group["weight_decay"] * rate) if group["weight_decay"] else None
        if decay is not None and scale is not None:
            decay *= scale
        if batch.momentum is not None:
            weight = (good * (1 - group["beta1"])).view(-1, *ones)
            momentum = batch.momentum[members].lerp_(update.mul_(rate), weight)
            torch.mul(momentum, good.view(-1, *ones), out=update)
            rate = 1.0
        self._write(group, part, update, rate, decay)
        for p in parameters:
            self.state[p]["step"] = part.step

    def _write(self, group: dict, part: _Part, update: Tensor, rate: float, decay: Tensor | None) -> None:
        """Subtract from the parameters `rate` times their update, and `decay` (k) times themselves."""
        batch, parameters = part.batch, part.parameters
        if parameters[0].dtype == update.dtype:
            if decay is not None:
                torch._foreach_mul_(parameters, list((1 - decay).unbind()))
            torch._foreach_add_(parameters, batch.restore(update), alpha=-rate)
            return
        values = batch.stack(parameters)
        if decay is not None:
            values = values * (1 - decay).view(-1, *[1] * (update.ndim - 1))
        torch.add(values, update, alpha=-rate, out=update)
        if group["stochastic_rounding"] and parameters[0].dtype == torch.bfloat16:
            round_stochastically(update, self._generator(batch.device, part.step, self._indices[parameters[0]]))
        torch._foreach_copy_(parameters, batch.restore(update))

    def _scale(self, group: dict, batch: _Batch, members: slice) -> Tensor:
        """Root mean square of each parameter, at least eps[1], (k)."""
        norms = torch.stack(torch._foreach_norm(batch.parameters[members], 2, _precision(batch.parameters[0])))
        scale = norms.div_(math.sqrt(batch.parameters[0].numel())).clamp_(min=group["eps"][1])
        if batch.scale is None:
            batch.scale = torch.zeros(len(batch.parameters), dtype=scale.dtype, device=scale.device)
        batch.scale[members] = scale
        return scale

    def _constant(self, like: Tensor, value: float) -> Tensor:
        """Scalar tensor with the device and dtype of `like`, made once."""
        key = like.device, like.dtype, value
        if key not in self._constants:
            self._constants[key] = like.new_full((), value)
        return self._constants[key]

    def _generator(self, device: torch.device, step: int, index: int) -> torch.Generator | None:
        """Generator seeded for a step and a parameter; None on the meta device."""
        if device.type == "meta":
            return None
        generator = self._generators.setdefault(device, torch.Generator(device))
        return generator.manual_seed(((self.defaults["seed"] * 1_000_003 + step) * 1_000_003 + index) % 2**63)


class _Batch:
    """Parameters of one shape, with their moments stacked. Each parameter's entry in `Optimizer.state` is a view of these."""

    def __init__(self, parameters: list[Tensor], layout: Layout, states: list[dict], beta1: float | None, eps: float) -> None:
        self.parameters, self.layout = parameters, layout
        self.device = parameters[0].device
        self.scale: Tensor | None = None
        """Scale of each parameter's last update, (k)."""
        stacked = {}
        for name, shape in _state_shapes(layout, parameters[0].shape, beta1).items():
            if name in states[0]:
                stacked[name] = torch.stack([state[name].to(self.device) for state in states])
            else:  # second moments do not begin at zero: a skipped first gradient would divide by their root
                least = 0.0 if name == "exp_avg" else max(eps, 1e-30)
                stacked[name] = torch.full((len(states), *shape), least, dtype=_precision(parameters[0]), device=self.device)
        self._stacked, k = stacked, len(states)
        self.momentum = None
        if "exp_avg" in stacked:
            self.momentum = stacked["exp_avg"].view(k, *layout.shape)
        if "exp_avg_sq" in stacked:
            self.moments = [stacked["exp_avg_sq"].view(k, *layout.shape)]
        else:
            groups = layout.shape[0]
            self.moments = [stacked[name].view(k, groups, -1) for name in ("exp_avg_sq_row", "exp_avg_sq_col")]

    def states(self) -> list[dict[str, Tensor]]:
        """Tensors of each parameter's state, by name: views of the stacked ones."""
        rows = zip(*(tensor.unbind() for tensor in self._stacked.values()), strict=True)
        return [dict(zip(self._stacked, row, strict=True)) for row in rows]

    def stack(self, tensors: list[Tensor]) -> Tensor:
        """Stack k tensors of the parameters' shape -> (k, *layout.shape). A single one is not copied."""
        if len(tensors) == 1:
            return self.layout.view(tensors[0])[None]
        if self.layout.in_order and all(tensor.is_contiguous() for tensor in tensors):
            return torch.stack(tensors).view(-1, *self.layout.shape)
        return torch.stack([self.layout.view(tensor) for tensor in tensors])

    def gather(self, tensors: list[Tensor]) -> Tensor:
        """Stack k tensors like `stack`, in full precision and always as a copy."""
        precision = _precision(self.parameters[0])
        if tensors[0].dtype == precision and len(tensors) > 1:
            return self.stack(tensors)
        gathered = torch.empty((len(tensors), *self.layout.shape), dtype=precision, device=self.device)
        torch._foreach_copy_(self.restore(gathered), tensors)
        return gathered

    def restore(self, stacked: Tensor) -> list[Tensor]:
        """Split (k, *layout.shape) into k views of the parameters' shape."""
        return list(self.layout.restore(stacked, self.parameters[0].shape).unbind())


@dataclass(frozen=True)
class _Part:
    """Parameters to step at once: all of a batch, or a single one."""

    batch: _Batch
    members: slice
    """Indices of the parameters in the batch."""
    step: int
    """Number of the step, from 1."""

    @property
    def parameters(self) -> list[Tensor]:
        return self.batch.parameters[self.members]

    @property
    def gradients(self) -> list[Tensor]:
        """Gradients of the parameters: only parameters with one are stepped."""
        return [p.grad for p in self.parameters if p.grad is not None]


def _state_shapes(layout: Layout, shape: torch.Size, beta1: float | None) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor in a parameter's state, by its name in transformers."""
    second = {"exp_avg_sq_row": layout.rows, "exp_avg_sq_col": layout.columns} if layout.rows else {"exp_avg_sq": tuple(shape)}
    return second if beta1 is None else {"exp_avg": tuple(shape), **second}


def _precision(parameter: Tensor) -> torch.dtype:
    """Dtype of a parameter's state and arithmetic."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _rate(group: dict, step: int) -> float:
    """Learning rate of a step, counted from 1, before the parameter's scale."""
    if not group["relative_step"]:
        return group["lr"]
    return min(1e-6 * step if group["warmup_init"] else 1e-2, 1 / math.sqrt(step))


def _check(group: dict) -> None:
    lr = group["lr"]
    if group["relative_step"]:
        _require(lr is None, f"lr={lr!r} and relative_step=True exclude each other: add relative_step=False, or leave lr out")
    else:
        _require(lr is not None, "relative_step=False needs a learning rate: give lr, such as 1e-4")
        _require(lr >= 0 and math.isfinite(lr), f"lr={lr!r}: it must be a finite number, 0 or above")
        _require(not group["warmup_init"], "warmup_init=True belongs to relative_step=True: leave it out, or set relative_step=True")
    eps, beta1 = group["eps"], group["beta1"]
    _require(isinstance(eps, (tuple, list)) and len(eps) == 2 and min(eps) >= 0, f"eps={eps!r}: it must be two numbers, 0 or above")
    _require(group["clip_threshold"] > 0, f"clip_threshold={group['clip_threshold']!r}: it must be above 0")
    _require(group["decay_rate"] <= 0, f"decay_rate={group['decay_rate']!r}: it must be 0 or below, such as -0.8")
    _require(beta1 is None or 0 <= beta1 < 1, f"beta1={beta1!r}: it must be None, or from 0 to below 1")
    _require(group["weight_decay"] >= 0, f"weight_decay={group['weight_decay']!r}: it must be 0 or above")
    _require(group["factoring"] in FACTORINGS, f"factoring={group['factoring']!r}: there are {', '.join(FACTORINGS)}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
