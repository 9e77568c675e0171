"""Adafactor (Shazeer & Stern 2018): Adam's second moment of a matrix, remembered as two vectors.

The running mean V of squared gradients of a matrix (n, m) is kept as the means of its rows R (n) and of its columns C (m), and rebuilt as
R C / mean(R). For V = [[1, 2], [3, 6]] these are R = (1.5, 4.5) and C = (2, 4), mean(R) = 3, and R C / 3 = [[1, 2], [3, 6]]: nothing is
lost where V is a product, and in between it is the best such product by the divergence of the paper. n·m numbers become n + m.

The paper knows matrices only. A convolution [out, in, kh, kw] is a matrix too, of `out` rows and in·kh·kw columns. The Adafactors of
transformers, torch and others factor the last two dimensions instead: of a 3×3 convolution, kh and kw, so that two thirds of V stay, and
a 1×1 convolution keeps twice as much as V has. `factoring` says which; the arithmetic comes first below, then the optimizer.
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
ROUNDED_AT_ONCE = 2**24
"""Elements rounded at a time: the random bits take four bytes for each."""
STANDS_FOR: ContextVar[str] = ContextVar("STANDS_FOR", default="cuda")
"""Device type whose arithmetic a tensor on meta follows: a CPU sums squares in other steps than a GPU, with other temporaries."""
CACHED = 2**18
"""Elements squared and summed at a time on a CPU: so many stay in its cache."""


@dataclass(frozen=True)
class Layout:
    """A parameter's view as matrices (groups, n, m), or as one vector (N)."""

    order: tuple[int, ...]
    """The parameter's dimensions, in the order of the view."""
    shape: tuple[int, ...]
    """(groups, n, m): V is factored in each group; or (N)."""
    rows: tuple[int, ...] = ()
    """Shape of the row means in `state`; empty for a vector."""
    columns: tuple[int, ...] = ()
    """Shape of the column means in `state`; empty for a vector."""

    @property
    def in_order(self) -> bool:
        """Whether the view leaves the dimensions in their order."""
        return self.order == tuple(range(len(self.order)))

    def view(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape -> `shape`."""
        return (tensor if self.in_order else tensor.permute(self.order)).reshape(self.shape)

    def restore(self, stacked: Tensor, shape: Sequence[int]) -> Tensor:
        """k stacked tensors of this layout, (k, …) -> (k, *shape), where `shape` is the parameter's own."""
        permuted = stacked.view(-1, *(shape[dim] for dim in self.order))
        if self.in_order:
            return permuted
        return permuted.permute(0, *(1 + self.order.index(dim) for dim in range(len(self.order))))


def layout(shape: Sequence[int], factoring: str = "matrix") -> Layout:
    """The layout of a parameter of this shape: one matrix (`matrix`), or a matrix of two of its dimensions for each index of the others."""
    shape = tuple(shape)
    dims = tuple(range(len(shape)))
    if len(shape) < 2:
        return Layout(dims, (math.prod(shape),))
    if factoring == "matrix":
        rest = math.prod(shape[1:])
        return Layout(dims, (1, shape[0], rest), (shape[0],), (rest,))
    chosen = dims[-2:] if factoring == "last-two" else tuple(sorted(sorted(dims, key=lambda dim: shape[dim])[-2:]))
    others = tuple(dim for dim in dims if dim not in chosen)
    groups, (n, m) = tuple(shape[dim] for dim in others), (shape[dim] for dim in chosen)
    return Layout((*others, *chosen), (math.prod(groups), n, m), (*groups, n), (*groups, m))


def matrix_direction(
    gradient: Tensor,
    rows: Tensor,
    columns: Tensor,
    weight: float | Tensor,
    eps: Tensor,
    clip_threshold: float = 1.0,
    scale: Tensor | None = None,
) -> Tensor:
    """The update of k matrices before the learning rate: the gradient over the root of V, held to a root mean square of `clip_threshold`.

    - `gradient` (k, groups, n, m): overwritten with the update and returned
    - `rows` (k, groups, n), `columns` (k, groups, m): the running means of squares, moved towards this gradient's by `weight`
    - `weight`: 1 - beta2, a number or a tensor (k, 1, 1)
    - `eps`: scalar tensor, added to the mean squares
    - `scale` (k): a factor for each matrix's update
    """
    rows.lerp_(_mean_squares(gradient, -1, eps), weight)
    columns.lerp_(_mean_squares(gradient, -2, eps), weight)
    r = (rows / rows.mean(-1, keepdim=True)).rsqrt_()
    gradient.mul_(columns.rsqrt().unsqueeze(-2))
    norms = _norms(gradient, -1).mul_(r)  # those of the update's rows, before it is finished
    rms = vector_norm(norms, dim=(-2, -1), keepdim=True).div_(math.sqrt(gradient[0].numel()) * clip_threshold)
    r.div_(rms.clamp_(min=1))
    if scale is not None:
        r.mul_(scale.view(-1, 1, 1))
    return gradient.mul_(r.unsqueeze(-1))


def vector_direction(
    gradient: Tensor, squares: Tensor, weight: float | Tensor, eps: Tensor, clip_threshold: float = 1.0, scale: Tensor | None = None
) -> Tensor:
    """`matrix_direction` for k vectors (k, N), whose second moment `squares` (k, N) is kept in full; `weight` is a number or (k, 1)."""
    squares.lerp_(torch.addcmul(eps, gradient, gradient), weight)
    gradient.mul_(squares.rsqrt())
    rms = vector_norm(gradient, dim=-1, keepdim=True).div_(math.sqrt(gradient[0].numel()) * clip_threshold)
    factor = rms.clamp_(min=1).reciprocal_()
    if scale is not None:
        factor.mul_(scale.view(-1, 1))
    return gradient.mul_(factor)


def round_stochastically(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Round fp32 `values` of any shape in place, each to one of its two neighbours in bf16, with chances that keep the mean.

    `values` must be contiguous; they are returned, still in fp32.
    """
    bits = values.view(torch.int32).view(-1)
    for part in bits.split(ROUNDED_AT_ONCE):
        part.add_(torch.empty_like(part).random_(0, 1 << 16, generator=generator))
    bits.bitwise_and_(-1 << 16)  # bf16 is fp32 without its last 16 bits
    return values


def _mean_squares(tensor: Tensor, dim: int, eps: Tensor) -> Tensor:
    """The mean of squares along `dim`, plus eps."""
    size = tensor.shape[dim]
    on_cpu = (tensor.device.type if tensor.device.type != "meta" else STANDS_FOR.get()) == "cpu"
    if on_cpu and size < 16:  # nor is it made for short rows
        return tensor.square().mean(dim).add_(eps)
    if on_cpu and dim == -2:  # there torch takes ten times as long for a norm across rows
        rows = max(1, CACHED * size // tensor.numel())
        return reduce(torch.add, (part.square().sum(dim) for part in tensor.split(rows, dim))).div_(size).add_(eps)
    norms = _norms(tensor, dim)
    return torch.addcmul(eps, norms, norms, value=1 / size)


def _norms(tensor: Tensor, dim: int) -> Tensor:
    """2-norms along one dimension, which is dropped. With `keepdim=False`, torch up to 2.11 keeps one of size 1 on the meta device."""
    return vector_norm(tensor, dim=dim, keepdim=True).squeeze(dim)


NON_FINITE = ("skip", "raise")


class NonFiniteGradient(RuntimeError):
    """A gradient holds NaN or infinity. Nothing has been changed."""


class Adafactor(Optimizer):
    """Adafactor with transformers' arguments and meanings, whose state is small for convolutions as well.

    `factoring` says what is a matrix: `matrix` (out, everything else), `two-largest` (the two largest dimensions, as in optax), or
    `last-two`, which reproduces `transformers.Adafactor`. Parameters of one shape are stepped together, and the host does not wait for the
    device.

    Parameters in bf16 are rounded stochastically unless `stochastic_rounding` is False: rounded to the nearest, a weight does not
    move when its step is below 1/512 of it. The random bits depend on `seed`, the step and the parameter's place alone.

    A parameter whose gradient holds NaN or infinity is skipped, its moments untouched, and counted in `skipped`; with
    `non_finite="raise"` the step raises `NonFiniteGradient` before anything is changed, for which the host has to wait.

    Raises `ValueError` for arguments out of range or that exclude each other, a complex parameter, or one listed twice;
    `RuntimeError` for a sparse gradient.
    """

    checks_gradients = True
    """A step looks for gradients that are not finite by itself, with `skipped` and `refusing`: who calls it need not."""

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
        """Add a group of parameters, or one, with settings of its own; what it leaves out is as the optimizer's.

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
        """Updates of a parameter left out so far because its gradient was not finite. Reading this waits for the device."""
        return sum(int(number) for number in self._skipped.values())

    def learning_rates(self) -> list[float | None]:
        """Last learning rate of each group's first parameter, its scale included; `lr` before a step. Reading it waits for the device."""
        rates = []
        for group in self.param_groups:
            batch, index = self._homes.get(group["params"][0], (None, 0))
            scale = 1.0 if batch is None or batch.scale is None else float(batch.scale[index])
            step = self.state[group["params"][0]]["step"] if batch else 0
            rates.append(scale * _rate(group, step) if step else group["lr"])
        return rates

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step of every parameter that has a gradient. Returns what `closure` does, the loss, or None without one.

        With `non_finite="raise"` it raises `NonFiniteGradient` before anything is changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts = [(group, part) for group in self.param_groups for part in self._parts(group)]
        for (group, part), finite in zip(parts, self._finite([part for _, part in parts]), strict=True):
            self._step(group, part, *finite)
        return loss

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Step as with `non_finite="raise"` inside this context, whatever the optimizer was made with."""
        before = self.defaults["non_finite"]
        self.defaults["non_finite"] = "raise"
        try:
            yield
        finally:
            self.defaults["non_finite"] = before

    def state_dict(self) -> dict:
        """The state as `torch.optim.Optimizer.state_dict` gives it, but with copies of the tensors."""
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
        saved = [{**group, **given} for group, given in zip(self.param_groups, state_dict["param_groups"], strict=False)]
        if len(saved) == len(state_dict["param_groups"]):  # else torch says what does not fit
            state_dict = {**state_dict, "param_groups": saved}
        parameters = [p for group in self.param_groups for p in group["params"]]
        keys = [(key, group) for group in state_dict["param_groups"] for key in group["params"]]
        states = {}
        for p, (key, group) in zip(parameters, keys, strict=False):
            if state := state_dict["state"].get(key):
                kept = _Batch.names(layout(p.shape, group["factoring"]), p.shape, group["beta1"])
                for name, shape in kept.items():
                    if name not in state or tuple(state[name].shape) != shape:
                        held = tuple(state[name].shape) if name in state else "nothing"
                        raise ValueError(
                            f"the state of a parameter {tuple(p.shape)} holds {held} for {name}, and factoring={group['factoring']!r} "
                            f'needs {shape}: a state of transformers goes with factoring="last-two"'
                        )
                tensors = {name: state[name].to(p.device, _precision(p), copy=True) for name in kept}
                states[p] = {"step": int(state["step"]), **tensors}
        super().load_state_dict({**state_dict, "state": {}})
        self._reset()
        self.state.update(states)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._reset()
        self._number()

    # what a step is made of

    def _reset(self) -> None:
        self._homes: dict[Tensor, tuple[_Batch, int]] = {}
        self._skipped: dict[torch.device, Tensor] = {}
        self._constants: dict[tuple, Tensor] = {}
        self._generators: dict[torch.device, torch.Generator] = {}

    def _number(self) -> None:
        self._places = {p: place for place, p in enumerate(p for group in self.param_groups for p in group["params"])}

    def _parts(self, group: dict) -> Iterator[_Part]:
        """What is stepped at once: whole batches where all their parameters have a gradient, else one parameter at a time."""
        parameters = [p for p in group["params"] if p.grad is not None and p.numel()]
        for p in parameters:
            if p.grad.is_sparse:
                raise RuntimeError(f"a gradient of shape {tuple(p.shape)} is sparse: make its layer with sparse=False")
        self._settle(group, [p for p in parameters if p not in self._homes or self._homes[p][0].device != p.device])
        members: dict[_Batch, list[int]] = {}
        for p in parameters:
            batch, index = self._homes[p]
            members.setdefault(batch, []).append(index)
        for batch, indices in members.items():
            steps = [self.state[batch.parameters[index]]["step"] for index in indices]
            if len(indices) == len(batch.parameters) and len(set(steps)) == 1:
                yield _Part(batch, slice(0, len(indices)), steps[0] + 1)
            else:
                yield from (_Part(batch, slice(index, index + 1), step + 1) for index, step in zip(indices, steps, strict=True))

    def _settle(self, group: dict, parameters: list[Tensor]) -> None:
        """Put new parameters into batches of one shape, of at most twice as many elements as the largest parameter has."""
        alike: dict[tuple, list[Tensor]] = {}
        for p in parameters:
            step = self.state[p].get("step", 0)
            alike.setdefault((p.shape, p.dtype, p.device, step), []).append(p)
        largest = max((p.numel() for every in self.param_groups for p in every["params"]), default=0)
        for (shape, *_), members in alike.items():
            size = max(1, 2 * largest // shape.numel())
            for start in range(0, len(members), size):
                some = members[start : start + size]
                batch = _Batch(some, layout(shape, group["factoring"]), [self.state[p] for p in some], group["beta1"], group["eps"][0])
                for index, (p, kept) in enumerate(zip(some, batch.states(), strict=True)):
                    self._homes[p] = batch, index
                    self.state[p] = {"step": self.state[p].get("step", 0), **kept}

    def _finite(self, parts: list[_Part]) -> list[tuple[Tensor | None, Tensor]]:
        """For each part, which of its gradients (k) are not finite, or None if all are known to be, and 1 (k) for those that are."""
        alike: dict[tuple, list[int]] = {}
        for number, part in enumerate(parts):
            alike.setdefault((part.batch.device, _precision(part.parameters[0])), []).append(number)
        finite: dict[int, tuple[Tensor | None, Tensor]] = {}
        for (device, precision), numbers in alike.items():
            gradients = [gradient for number in numbers for gradient in parts[number].gradients]
            good = torch.stack(torch._foreach_norm(gradients, 2, precision)).isfinite()
            refuses = self.defaults["non_finite"] == "raise" and device.type != "meta"
            some = not good.all() if refuses or device.type == "cpu" else True  # looking there waits for nothing
            if some and refuses:
                shape = tuple(gradients[int(good.logical_not().nonzero()[0])].shape)
                raise NonFiniteGradient(f"a gradient of shape {shape} holds NaN or infinity; no parameter was changed")
            sizes = [len(parts[number].parameters) for number in numbers]
            bad = good.logical_not().split(sizes) if some else [None] * len(sizes)
            finite |= zip(numbers, zip(bad, good.to(precision).split(sizes), strict=True), strict=True)
            if some:
                self._skipped[device] = self._skipped.get(device, 0) + good.logical_not().sum()
        return [finite[number] for number in range(len(parts))]

    def _step(self, group: dict, part: _Part, bad: Tensor | None, good: Tensor) -> None:
        batch, members, parameters = part.batch, part.members, part.parameters
        rate = _rate(group, part.step)
        update = batch.gather(part.gradients)  # (k, groups, n, m) or (k, N)
        ones = [1] * (update.ndim - 1)
        if bad is not None:
            update.masked_fill_(bad.view(-1, *ones), 0)
        weight = good * part.step ** group["decay_rate"]  # 1 - beta2, and 0 where the gradient is of no use
        scale = self._scale(group, batch, members) if group["scale_parameter"] else None
        eps = self._constant(update, group["eps"][0])
        moments = [moment[members] for moment in batch.moments]
        rule: Callable[..., Tensor] = matrix_direction if len(moments) == 2 else vector_direction
        rule(update, *moments, weight.view(-1, *ones[: moments[0].ndim - 1]), eps, group["clip_threshold"], scale)
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
        """Parameters less `rate` times their update, and less `decay` (k) times themselves."""
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
            round_stochastically(update, self._generator(batch.device, part.step, self._places[parameters[0]]))
        torch._foreach_copy_(parameters, batch.restore(update))

    def _scale(self, group: dict, batch: _Batch, members: slice) -> Tensor:
        """Each parameter's root mean square (k), and at least eps[1]."""
        norms = torch.stack(torch._foreach_norm(batch.parameters[members], 2, _precision(batch.parameters[0])))
        scale = norms.div_(math.sqrt(batch.parameters[0].numel())).clamp_(min=group["eps"][1])
        if batch.scale is None:
            batch.scale = torch.zeros(len(batch.parameters), dtype=scale.dtype, device=scale.device)
        batch.scale[members] = scale
        return scale

    def _constant(self, like: Tensor, value: float) -> Tensor:
        key = like.device, like.dtype, value
        if key not in self._constants:
            self._constants[key] = like.new_full((), value)
        return self._constants[key]

    def _generator(self, device: torch.device, step: int, place: int) -> torch.Generator | None:
        if device.type == "meta":
            return None
        generator = self._generators.setdefault(device, torch.Generator(device))
        return generator.manual_seed(((self.defaults["seed"] * 1_000_003 + step) * 1_000_003 + place) % 2**63)


class _Batch:
    """Parameters of one shape, their moments stacked. What `Optimizer.state` shows of each is a view of these."""

    def __init__(self, parameters: list[Tensor], layout: Layout, states: list[dict], beta1: float | None, eps: float) -> None:
        self.parameters, self.layout, self.device = parameters, layout, parameters[0].device
        self.scale: Tensor | None = None
        self._names = self.names(layout, parameters[0].shape, beta1)
        stacked = {}
        for name, shape in self._names.items():
            if name in states[0]:
                stacked[name] = torch.stack([state[name].to(self.device) for state in states])
            else:  # not zero, whose root would be divided by if the first gradient has to be skipped
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

    @staticmethod
    def names(layout: Layout, shape: torch.Size, beta1: float | None) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor in a parameter's state, by its name in transformers."""
        kept = {"exp_avg_sq_row": layout.rows, "exp_avg_sq_col": layout.columns} if layout.rows else {"exp_avg_sq": tuple(shape)}
        return kept if beta1 is None else {"exp_avg": tuple(shape), **kept}

    def states(self) -> list[dict[str, Tensor]]:
        """The tensors in each parameter's state, by name."""
        kept = [tensor.unbind() for tensor in self._stacked.values()]
        return [dict(zip(self._stacked, each, strict=True)) for each in zip(*kept, strict=True)]

    def stack(self, tensors: list[Tensor]) -> Tensor:
        """Tensors of the parameters' shape -> (k, *layout.shape). A single one is not copied."""
        if len(tensors) == 1:
            return self.layout.view(tensors[0])[None]
        if self.layout.in_order and all(tensor.is_contiguous() for tensor in tensors):
            return torch.stack(tensors).view(-1, *self.layout.shape)
        return torch.stack([self.layout.view(tensor) for tensor in tensors])

    def gather(self, tensors: list[Tensor]) -> Tensor:
        """`stack` in full precision, and always a copy."""
        precision = _precision(self.parameters[0])
        if tensors[0].dtype == precision and len(tensors) > 1:
            return self.stack(tensors)
        gathered = torch.empty((len(tensors), *self.layout.shape), dtype=precision, device=self.device)
        torch._foreach_copy_(self.restore(gathered), tensors)
        return gathered

    def restore(self, stacked: Tensor) -> list[Tensor]:
        """(k, *layout.shape) -> k views of the parameters' shape."""
        return list(self.layout.restore(stacked, self.parameters[0].shape).unbind())


@dataclass(frozen=True)
class _Part:
    """Parameters stepped at once: some of a batch, for the `step`-th time."""

    batch: _Batch
    members: slice
    step: int

    @property
    def parameters(self) -> list[Tensor]:
        return self.batch.parameters[self.members]

    @property
    def gradients(self) -> list[Tensor]:
        """One of each parameter: only those that have one are stepped."""
        return [p.grad for p in self.parameters if p.grad is not None]


def _precision(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _rate(group: dict, step: int) -> float:
    """The learning rate of a step, counted from 1, before the parameter's scale."""
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


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
