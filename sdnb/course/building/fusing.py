"""Grader of `fuse(model, update, max_norm)`: hooks that update each weight during backward, held to a plain backward."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, nn

from .grading import Fault

Fuse = Callable[..., Any]


class _Model(nn.Module):
    """Network with a layer that is used twice, a frozen one and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.frozen, self.unused = nn.Linear(6, 6), nn.Linear(3, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.shared(torch.tanh(self.frozen(self.shared(torch.tanh(self.first(x))))))
        return self.last(h)


class _Updates:
    """The function that a fused backward calls: it notes what it is shown, and moves the weight."""

    def __init__(self, model: nn.Module, with_gradients: Container[str]) -> None:
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self.with_gradients = with_gradients
        self.calls: list[str] = []
        self.seen: dict[str, Tensor] = {}
        """Gradient with which each parameter was updated, by name."""
        self.most = 0
        """Most gradients alive at any update."""

    def __call__(self, parameter: Any) -> None:
        if not isinstance(parameter, Tensor) or parameter not in self.names:
            raise Fault("not_the_parameter", kind=type(parameter).__name__)
        name = self.names[parameter]
        if name not in self.with_gradients:
            raise Fault("without_gradient", name=name)
        if parameter.grad is None:
            raise Fault("no_gradient_yet", name=name)
        if name in self.calls:
            raise Fault("updated_twice", name=name)
        self.calls.append(name)
        self.seen[name] = parameter.grad.detach().clone()
        self.most = max(self.most, sum(other.grad is not None for other in self.names))
        parameter.data.sub_(0.1 * parameter.grad)


def one_backward(fuse: Fuse) -> None:
    """Every trained weight is updated once, with its whole gradient, which is freed before the next one comes. Raises `Fault`."""
    model, x, wanted = _prepared()
    updates = _Updates(model, wanted)
    fuse(model, updates)
    if updates.calls:
        raise Fault("too_early")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _loss(model, x).backward()
    if not updates.calls:
        raise Fault("never")
    if missing := [name for name in wanted if name not in updates.calls]:
        raise Fault("never_updated", name=missing[0], number=len(missing))
    for name, gradient in wanted.items():
        if not _close(updates.seen[name], gradient):
            raise Fault("part_of_the_gradient", name=name)
    if updates.most > 2:
        raise Fault("together", number=updates.most)
    if held := [name for name, parameter in model.named_parameters() if parameter.grad is not None]:
        raise Fault("held", name=held[0], number=len(held))
    for name, parameter in model.named_parameters():
        if not _close(parameter.detach(), before[name] - 0.1 * wanted.get(name, torch.zeros(()))):
            raise Fault("moved", name=name)


def second_batch(fuse: Fuse) -> None:
    """The hooks work for every backward, not only for the first. Raises `Fault`."""
    model, x, wanted = _prepared()
    updates = _Updates(model, wanted)
    fuse(model, updates)
    _loss(model, x).backward()
    updates.calls.clear()
    _loss(model, 2 * x).backward()
    if not updates.calls:
        raise Fault("only_once")


def clipped(fuse: Fuse) -> None:
    """Each gradient is scaled down to `max_norm` by itself, and a smaller one is left alone. Raises `Fault`."""
    model, x, wanted = _prepared()
    norms = sorted(gradient.norm().item() for gradient in wanted.values())
    limit = norms[len(norms) // 2]
    updates = _Updates(model, wanted)
    fuse(model, updates, max_norm=limit)
    _loss(model, x).backward()
    for name, gradient in wanted.items():
        norm, given = gradient.norm().item(), updates.seen[name]
        if not _close(given, gradient * min(1.0, limit / norm)):
            raise Fault(
                "clipped_wrong",
                name=name,
                norm=f"{norm:.3f}",
                limit=f"{limit:.3f}",
                given=f"{given.norm():.3f}",
                right=f"{min(norm, limit):.3f}",
            )


def removed(fuse: Fuse) -> None:
    """The handles that come back end it. Raises `Fault`."""
    model, x, wanted = _prepared()
    updates = _Updates(model, wanted)
    handles = fuse(model, updates)
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    if not isinstance(handles, list | tuple) or not all(hasattr(handle, "remove") for handle in handles):
        raise Fault("no_handles", kind=type(handles).__name__)
    for handle in handles:
        handle.remove()
    _loss(model, x).backward()
    if updates.calls:
        raise Fault("still_there", number=len(updates.calls), handles=len(handles), trained=trained)


CHECKS = (one_backward, second_batch, clipped, removed)


def _prepared() -> tuple[_Model, Tensor, dict[str, Tensor]]:
    """Model, inputs (5, 4), and the gradients of a plain backward by parameter name."""
    torch.default_generator.manual_seed(3)
    model, x = _Model(), torch.randn(5, 4)
    _loss(model, x).backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return model, x, wanted


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


def _close(theirs: Tensor, ours: Tensor) -> bool:
    return torch.allclose(theirs, ours, rtol=1e-4, atol=1e-6)
