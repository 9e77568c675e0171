"""Gradient checkpointing by choice: which blocks recompute, and what they keep.

A *choice* is what the caller asks for, such as `"full"`, a `Keep` or a `Budget`. `resolve` turns it into a *plan*: for each block that
recomputes, the operators whose results it keeps, and those it skips. `apply` puts a choice into effect; `blocks` lists what there is to
choose from; `frontier` shows what the best plans cost. Recomputing is always torch's non-reentrant form. It works in training and eval
mode, so a text encoder in eval mode recomputes too, and it ignores the switches of diffusers and transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .. import inputs as shapes
from ..memory import MIB, operators
from ..system import nearest
from .recompute import BlockPlan, RecomputedForward, find_blocks, on_meta
from .survey import Block, Operator, Point, RecomputePlan, Survey, verify

__all__ = ["CHEAP", "Applied", "Block", "Budget", "Keep", "Operator", "Point", "apply", "blocks", "frontier", "price", "resolve", "solve"]


@dataclass(frozen=True, init=False)
class Keep:
    """Choice to keep the results of these kinds of operators and recompute all others: `"matmul"`, `"convolution"`, `"attention"`.

    Raises `ValueError` for another kind, or none.
    """

    kinds: frozenset[str]

    def __init__(self, *kinds: str) -> None:
        if unknown := sorted(set(kinds) - set(operators.KINDS)):
            raise ValueError(f"Keep({unknown[0]!r}): there are {', '.join(operators.KINDS)}")
        if not kinds:
            raise ValueError('Keep() keeps nothing: that choice is called "full"')
        object.__setattr__(self, "kinds", frozenset(kinds))


CHEAP = Keep(*operators.KINDS)
"""Choice to recompute only what costs next to nothing: norms, activations, gates, sums."""


@dataclass(frozen=True)
class Budget:
    """Choice to recompute as little as possible for a peak.

    - `bytes`: most bytes alive at once in one forward and backward, weights and gradients included, as `MemoryTrace(model).peak_bytes`
      measures them; the optimizer's state comes on top
    - `fused_backward_pass`: whether each gradient is freed as soon as it is complete
    - `operators`: False recomputes whole blocks or nothing, without any Python between operators

    Raises `ValueError` for a budget that is no positive number.
    """

    bytes: int
    fused_backward_pass: bool = False
    operators: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.bytes, (bool, str)) or not math.isfinite(self.bytes) or self.bytes <= 0:
            raise ValueError(f"Budget({self.bytes!r}): give a positive number of bytes, such as Budget(8 * 2**30)")


def blocks(model: Module, inputs: Mapping | None = None) -> list[Block]:
    """Blocks of `model` that can be recomputed, in the order in which they run, each with its saved bytes and its FLOPs.

    Measured on the meta device for `inputs`, the keyword arguments of one call; `sdnb.inputs.example(model)` unless given.
    Raises `ValueError` for a model without such blocks, or one that does not train.
    """
    return list(_survey(model, inputs).blocks)


def frontier(
    model: Module, inputs: Mapping | None = None, *, fused_backward_pass: bool = False, operators: bool = True, points: int | None = 12
) -> list[Point]:
    """Points from recomputing nothing to the smallest peak, about evenly spaced in bytes; all of the chain if `points` is None.

    Their peaks are computed from one trace; `solve` measures the one it returns. Raises like `blocks`.
    """
    chain = _survey(model, inputs, fused_backward_pass).chain(operators_too=operators)
    if points is None or len(chain) <= points:
        return chain
    top, low = chain[0].peak_bytes, chain[-1].peak_bytes
    peaks = [top - (top - low) * i / (points - 1) for i in range(points - 1)]
    indices = [next(i for i, point in enumerate(chain) if point.peak_bytes <= peak) for peak in peaks]
    return [chain[i] for i in dict.fromkeys([*indices, len(chain) - 1])]


def price(model: Module, choice, inputs: Mapping | None = None, *, fused_backward_pass: bool = False) -> Point:
    """Cost of a choice: one forward and backward traced on the meta device, beside one that recomputes nothing.

    Raises like `apply`, which takes the same choices, and like `blocks`.
    """
    inputs = _on_meta(model, inputs)
    plan = resolve(model, choice, inputs)  # first, since it takes no time to refuse one
    survey = _survey(model, inputs, fused_backward_pass)
    cost = verify(model, inputs, plan, fused_backward_pass=fused_backward_pass)
    return Point(plan, cost.peak_bytes, cost.saved_bytes, cost.flops / survey.flops)


def solve(model: Module, budget: Budget, inputs: Mapping | None = None) -> Point:
    """Point with the least recomputing whose peak, traced on the meta device, keeps to the budget.

    Raises `ValueError` naming the smallest peak there is when the budget is below it, and like `blocks`.
    """
    inputs = _on_meta(model, inputs)
    survey = _survey(model, inputs, budget.fused_backward_pass)
    chain = survey.chain(operators_too=budget.operators)
    limit = float(budget.bytes)
    for _ in range(6):
        index = next((i for i, point in enumerate(chain) if point.peak_bytes <= limit), len(chain) - 1)
        point = chain[index]
        cost = verify(model, inputs, point.choice, fused_backward_pass=budget.fused_backward_pass)
        if cost.peak_bytes <= budget.bytes:
            return Point(point.choice, cost.peak_bytes, cost.saved_bytes, cost.flops / survey.flops)
        if index == len(chain) - 1:
            break
        limit = min(limit, chain[index].peak_bytes) - max(1, cost.peak_bytes - budget.bytes)
    raise ValueError(
        f"Budget({budget.bytes}): the smallest peak of this {type(model).__name__} is {cost.peak_bytes} bytes "
        f"({cost.peak_bytes / MIB:,.1f} MiB), of which {_weights(model) / MIB:,.1f} MiB are weights. {_smaller(budget)}"
    )


def apply(
    model: Module,
    choice: str | Iterable[str] | Mapping[str, str | Keep] | Keep | Budget | Point,
    *,
    inputs: Mapping | None = None,
    use_reentrant: bool = False,
) -> Applied:
    """Recompute by `choice` from now on; as a context manager, until its end.

    Gradients equal those of plain training, to the bit on a CPU in fp32. The choices:

    - `"none"`, or `"full"` for every block
    - a list of names from `blocks(model)`: only these blocks
    - a `Keep`: every block, except the results that are kept
    - a mapping from names to `"none"`, `"full"` or a `Keep`
    - a `Budget`, which is solved, or a `Point` of the `frontier`

    `inputs` are the keyword arguments of one call, as in `blocks`; only their shapes are used. Raises `ValueError`, before anything is
    changed, for a model that already recomputes, an unknown name, a budget that is too small, and for `use_reentrant=True`.
    """
    _check_model(model)
    if use_reentrant:
        raise ValueError(_no_reentrant(model))
    return Applied(model, resolve(model, choice, inputs))


class Applied:
    """Blocks that recompute, as `apply` returns them, until `remove()` or the end of the context."""

    def __init__(self, model: Module, plan: RecomputePlan) -> None:
        self.blocks = tuple(plan)
        """Names of the blocks that recompute."""
        self._wrapped: list[tuple[Module, object]] = []
        for name, block_plan in plan.items():
            block = model.get_submodule(name)
            before = vars(block).get("forward")
            block.forward = RecomputedForward(block, block_plan)
            self._wrapped.append((block, before))

    def remove(self) -> None:
        """Put the original `forward` of every block back; a second call changes nothing."""
        for block, before in self._wrapped:
            vars(block).pop("forward", None)
            if before is not None:
                vars(block)["forward"] = before
        self._wrapped.clear()

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *error) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<{len(self.blocks)} blocks recompute>"


def resolve(model: Module, choice, inputs: Mapping | None = None) -> RecomputePlan:
    """Turn a choice into a plan: for every block that recomputes, the operators whose results it keeps, and those it skips.

    Changes nothing, and raises like `apply`.
    """
    _check_model(model)
    _refuse_twice(model)
    if isinstance(choice, str) and choice == "none":
        return {}
    if isinstance(choice, Budget):
        choice = solve(model, choice, inputs)
    if isinstance(choice, Point):
        missing = [name for name in choice.choice if name not in dict(model.named_modules())]
        if missing:
            raise ValueError(f"this point belongs to another model: {type(model).__name__} has no {missing[0]!r}")
        return dict(choice.choice)
    if isinstance(choice, Keep):
        return _survey(model, inputs).policy(choice.kinds)
    if not isinstance(choice, Iterable) or (isinstance(choice, str) and choice != "full"):
        raise ValueError(f'choice={choice!r}: there are "none", "full", a list of block names, Keep(...) and Budget(...)')
    names = _block_names(model, inputs)
    if choice == "full":
        return dict.fromkeys(names, BlockPlan())
    by_name = choice if isinstance(choice, Mapping) else dict.fromkeys(choice, "full")
    names_by_kinds: dict[frozenset[str], list[str]] = {}
    for name, block_choice in by_name.items():
        if name not in names:
            close = nearest(name, names, count=3, cutoff=0.3)
            raise ValueError(f"no block {name!r}: the nearest are {', '.join(close or names[:3])}. blocks(model) lists all {len(names)}")
        if block_choice not in ("none", "full") and not isinstance(block_choice, Keep):
            raise ValueError(f'{name}: {block_choice!r} is no choice for one block: there are "none", "full" and Keep(...)')
        if isinstance(block_choice, Keep):
            names_by_kinds.setdefault(block_choice.kinds, []).append(name)
    plan = {name: BlockPlan() for name, block_choice in by_name.items() if block_choice == "full"}
    if names_by_kinds:
        survey = _survey(model, inputs)
        for kinds, kept_names in names_by_kinds.items():
            policy = survey.policy(kinds)
            plan |= {name: policy[name] for name in kept_names}
    return plan


def encoder_layers(encoder: Module) -> RecomputePlan:
    """Plan that recomputes every layer of a text encoder of transformers, of which gradient checkpointing has only all or none."""
    names = (name for name, _ in encoder.named_modules())
    return {name: BlockPlan() for name in names if re.search(r"(^|\.)layers\.\d+$", name)}


def _block_names(model: Module, inputs) -> list[str]:
    on_meta_already = all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    blocks = find_blocks(model if on_meta_already else on_meta(model), _on_meta(model, inputs))
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no block that can be recomputed: neither diffusers nor transformers marks one in it")
    return list(blocks)


def _survey(model: Module, inputs: Mapping | None, fused_backward_pass: bool = False) -> Survey:
    _check_model(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"nothing in this {type(model).__name__} is trained, so nothing is saved for backward: requires_grad_(True) first")
    _refuse_twice(model)
    return Survey(model, _on_meta(model, inputs), fused_backward_pass=fused_backward_pass)


def _on_meta(model: Module, inputs: Mapping | None) -> dict:
    """Copy of `inputs` with tensors on the meta device; None: example inputs of the model."""
    if inputs is None:
        return shapes.example(model)

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty_like(value, device="meta", requires_grad=value.requires_grad)
        if isinstance(value, Mapping):
            return {key: move(part) for key, part in value.items()}
        return type(value)(map(move, value)) if isinstance(value, (list, tuple)) else value

    return move(inputs)


def _check_model(model: Module) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"a {type(model).__name__} is no torch module: give one of its parts, such as sd.unet")


def _refuse_twice(model: Module) -> None:
    for name, module in model.named_modules():
        if isinstance(vars(module).get("forward"), RecomputedForward):
            raise ValueError(f"{name} recomputes already: leave the context of the first apply, or call remove() on what it returned")
        if getattr(module, "gradient_checkpointing", False) is True:
            raise ValueError(
                f"{name or type(model).__name__} recomputes already, switched on by diffusers or transformers: recomputing inside "
                "recomputing would run it three times. Call disable_gradient_checkpointing() (gradient_checkpointing_disable() in "
                "transformers) first"
            )


def _no_reentrant(model: Module) -> str:
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    total = sum(1 for _ in model.parameters())
    why = "it refuses keyword arguments and torch.autograd.grad"
    if trained < total:
        why = (
            f"only {trained} of {total} parameters are trained here, and if no input of a block requires a gradient, those inside "
            "the block, such as adapters, get none, with a warning at best"
        )
    return f"use_reentrant=True is not offered: {why}. Leave it out: the non-reentrant version gives every gradient"


def _smaller(budget: Budget) -> str:
    ways = ["a smaller batch or resolution", "a coarser dtype"]
    if not budget.fused_backward_pass:
        ways.insert(0, "fused_backward_pass=True, which frees each gradient at once")
    if not budget.operators:
        ways.insert(0, "operators=True")
    return f"To get lower: {', '.join(ways)}"


def _weights(model: Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
