"""Optimizers, by name; `schedules` holds their learning-rate schedules."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from .schedules import SCHEDULES as SCHEDULES
from .schedules import RelativeStep as RelativeStep
from .schedules import find_class, has_relative_step, keywords, refuse_keywords, relative_step_refused
from .schedules import schedule as schedule

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from .recipe import Recipe

MIN_8BIT_ELEMENTS = 4096
"""Elements of the smallest parameter whose state bitsandbytes keeps in 8 bits; smaller ones have it in 32."""
SCALE_GROUP = 256
"""8-bit numbers that share a scale of 4 bytes; bitsandbytes calls them a block."""
REFUSED = {"LBFGS": "evaluates the loss several times in a step", "SparseAdam": "steps sparse gradients only"}
"""Optimizers of torch that an ordinary training loop cannot step, with the reason."""


@dataclass(frozen=True)
class Rates:
    """Usual learning rates, (lowest, highest), and their source."""

    full: tuple[float, float] | None
    """Rates for training all weights of a Stable Diffusion; None if no source names any."""
    lora: tuple[float, float] | None
    """Rates for a LoRA whose alpha is 1; None if no source names any."""
    source: str


# sd-scripts' documents, at the commit that `sd_scripts/facts.json` names; they mean AdamW and AdamW8bit where they name an optimizer
ADAM = Rates(
    (1e-6, 1e-5), (4e-5, 1e-3), "sd-scripts: docs/train_db_README-ja.md, fine_tune.md, train_network.md, train_network_advanced.md"
)
ADEMAMIX = Rates(ADAM.full, ADAM.lora, "AdamW's: none of its own found")
LION = Rates((1e-7, 3e-6), (4e-6, 3e-4), "a tenth to a third of AdamW's, as the paper (arXiv:2302.06675) advises in section 5")
ADAPTIVE = Rates((1.0, 1.0), (1.0, 1.0), "the READMEs of dadaptation and prodigyopt; sd-scripts warns at 0.1 and below")
FREE = Rates((1e-6, 1e-4), (4e-5, 1e-2), "one to ten times AdamW's: the README of schedulefree")
FACTORED = Rates((4e-7, 1e-5), (4e-5, 1e-3), "4e-7: sd-scripts, docs/train_SDXL-en.md; else AdamW's, whose updates are of the same size")
UNKNOWN = Rates(None, None, "none found for Stable Diffusion")


@dataclass(frozen=True)
class Row:
    """Known facts of one optimizer."""

    path: str
    """Dotted path of the class."""
    package: str
    """Requirement for pip, with the versions that were tried."""
    rates: Rates
    slots: int | None
    """Numbers of state for each trained number; None if that depends on the parameter's shape and has to be measured."""
    alone: bool = True
    """Whether a step treats each parameter separately, so that a fused backward can step one and free its gradient before the next."""
    eight_bit: bool = False
    """Whether the state of large parameters is kept in 8 bits."""
    always: Mapping[str, object] = field(default_factory=dict)
    """Default arguments of ours, which a recipe can override."""

    def state_bytes(self, elements: int) -> int | None:
        """Bytes of the state of one fp32 parameter, without the few that count steps; None if it has to be measured.

        8-bit numbers cost a byte each and a scale per `SCALE_GROUP`; their code books, 1 KiB each, are shared by all parameters.
        """
        if self.slots is None:
            return None
        if self.eight_bit and elements >= MIN_8BIT_ELEMENTS:
            return self.slots * (elements + 4 * math.ceil(elements / SCALE_GROUP))
        return self.slots * 4 * elements


def _bitsandbytes(name: str, slots: int, rates: Rates, eight_bit: bool = True, **always) -> Row:
    # from 0.50 on they run on a CPU too, where older ones fail at the first step; paged ones are not paged there
    return Row(f"bitsandbytes.optim.{name}", "bitsandbytes>=0.50", rates, slots, eight_bit=eight_bit, always=always)


def _adaptive(path: str, slots: int, package: str = "dadaptation>=3.2") -> Row:
    return Row(path, package, ADAPTIVE, slots, alone=False)  # one step size, from sums over all parameters


def _schedule_free(name: str, slots: int, rates: Rates = FREE) -> Row:
    return Row(f"schedulefree.{name}", "schedulefree>=1.4", rates, slots, alone=False)  # each step counts in the group's average


OPTIMIZERS = {
    "Adafactor": Row("sdnb.adafactor.Adafactor", "torch>=2.8", FACTORED, None),
    "AdamW": Row("torch.optim.AdamW", "torch>=2.8", ADAM, 2),
    "AdamW8bit": _bitsandbytes("AdamW8bit", 2, ADAM),
    "PagedAdamW": _bitsandbytes("PagedAdamW", 2, ADAM, eight_bit=False),
    "PagedAdamW8bit": _bitsandbytes("PagedAdamW8bit", 2, ADAM),
    "PagedAdamW32bit": _bitsandbytes("PagedAdamW32bit", 2, ADAM, eight_bit=False),
    "AdEMAMix8bit": _bitsandbytes("AdEMAMix8bit", 3, ADEMAMIX),
    "PagedAdEMAMix8bit": _bitsandbytes("PagedAdEMAMix8bit", 3, ADEMAMIX),
    "Lion": Row("lion_pytorch.Lion", "lion-pytorch>=0.2.3", LION, 1),
    "Lion8bit": _bitsandbytes("Lion8bit", 1, LION),
    "PagedLion8bit": _bitsandbytes("PagedLion8bit", 1, LION),
    "SGDNesterov": Row("torch.optim.SGD", "torch>=2.8", UNKNOWN, 1, always={"momentum": 0.9, "nesterov": True}),
    "SGDNesterov8bit": _bitsandbytes("SGD8bit", 1, UNKNOWN, momentum=0.9, nesterov=True),
    "Prodigy": _adaptive("prodigyopt.Prodigy", 4, "prodigyopt>=1.1.2"),  # three for a parameter that begins as zeros, as a lora_up
    "DAdaptation": _adaptive("dadaptation.experimental.DAdaptAdamPreprint", 3),
    "DAdaptAdamPreprint": _adaptive("dadaptation.experimental.DAdaptAdamPreprint", 3),
    "DAdaptAdaGrad": _adaptive("dadaptation.DAdaptAdaGrad", 3),
    "DAdaptAdam": _adaptive("dadaptation.DAdaptAdam", 3),
    "DAdaptAdan": _adaptive("dadaptation.DAdaptAdan", 5),
    "DAdaptAdanIP": _adaptive("dadaptation.experimental.DAdaptAdanIP", 5),
    "DAdaptLion": _adaptive("dadaptation.DAdaptLion", 2),
    "DAdaptSGD": _adaptive("dadaptation.DAdaptSGD", 3),
    "AdamWScheduleFree": _schedule_free("AdamWScheduleFree", 2),
    "RAdamScheduleFree": _schedule_free("RAdamScheduleFree", 2),
    "SGDScheduleFree": _schedule_free(
        "SGDScheduleFree", 1, Rates(None, None, "ten to fifty times SGD's (its README), for which none was found")
    ),
}
"""Rows by sd-scripts' names. A recipe may also name any class of torch.optim, or the dotted path of a class."""


def row(name: str) -> Row | None:
    """Row of the optimizer that `Recipe.optimizer_type` names; None for a class that is not in the table."""
    return OPTIMIZERS.get(name) or next((other for other in OPTIMIZERS.values() if other.path == name and not other.always), None)


class StandIn(torch.optim.Optimizer):
    """Replacement for an optimizer of bitsandbytes, for plans where that is not installed: a state of the row's size, no temporaries.

    The kernels of bitsandbytes update weights and state in place. Small parameters have their state in fp32, the others in 8 bits with
    scales.
    """

    def __init__(self, groups: Iterable[dict], lr: float, row: Row) -> None:
        super().__init__(groups, {"lr": lr})
        self.row = row
        self.slots = row.slots or 0

    def step(self, closure=None) -> None:
        """Make the state of parameters that have none; change no weight."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p] = self.state[p] or self._new_state(p)
                    self.state[p]["state1"].mul_(1)

    def _new_state(self, p: Parameter) -> dict:
        in_8_bits = self.row.eight_bit and p.numel() >= MIN_8BIT_ELEMENTS
        dtype = torch.uint8 if in_8_bits else torch.float32
        state = {f"state{slot}": torch.zeros_like(p, dtype=dtype) for slot in range(1, self.slots + 1)}
        if in_8_bits:
            scales = math.ceil(p.numel() / SCALE_GROUP)
            state |= {f"absmax{slot}": torch.zeros(scales, device=p.device) for slot in range(1, self.slots + 1)}
        return state


def missing(optimizer: Optimizer) -> str:
    """Sentence on the package that a `StandIn` stands for; empty for a real optimizer."""
    package = optimizer.row.package.partition(">")[0] if isinstance(optimizer, StandIn) else ""
    return package and f"{package} is not installed: its optimizers are planned from the known sizes of their state"


def optimizer(recipe: Recipe, parameters: Iterable[Parameter] | Iterable[dict], *, planned: bool = False) -> Optimizer:
    """Make the recipe's optimizer over `parameters`, or over groups of them, which may each have an `lr`.

    `planned`: where bitsandbytes is not installed, a `StandIn` replaces its optimizers.

    Raises `ImportError`, with the package to install, for a missing package; `ValueError` for an unknown class, malformed or refused
    arguments, parameters that are missing or listed twice, and an Adafactor that would choose its own learning rate while the recipe
    sets another.
    """
    facts = row(recipe.optimizer_type)
    arguments = keywords("optimizer_args", recipe.optimizer_args)
    if reason := relative_step_refused(recipe):
        raise ValueError(reason)
    groups, lr = _groups(parameters), recipe.learning_rate
    if has_relative_step(recipe):
        lr, arguments["relative_step"] = None, True
        groups = [{name: value for name, value in group.items() if name != "lr"} for group in groups]  # sd-scripts drops them, too
    _check_rates(recipe.optimizer_type, facts, groups, lr)
    try:
        kind = _class(recipe.optimizer_type, facts)
    except ImportError:
        if planned and facts and facts.path.startswith("bitsandbytes.") and "Paged" not in facts.path:  # a paged state may leave the card
            return StandIn(groups, recipe.learning_rate, facts)
        raise
    always = dict(facts.always) if facts else {}
    try:
        refuse_keywords(recipe.optimizer_type, kind, arguments, own=("lr", "params", *(key for key in always if always[key] is True)))
        built = kind(groups, lr=lr, **{**always, **arguments})
    except (Exception, SystemExit) as error:  # a recipe may name any class, which may raise anything
        why = error if type(error) is ValueError else repr(error)
        raise ValueError(f"optimizer_args={recipe.optimizer_args!r}: {recipe.optimizer_type} refuses them: {why}") from error
    if callable(getattr(built, "train", None)):
        built.train()  # a schedule-free optimizer keeps two sets of weights, and steps only in this mode
    return built


def _class(name: str, facts: Row | None) -> type:
    """Class of an optimizer, with its row if it has one. Raises like `optimizer`."""
    if facts is None:
        kind = find_class("optimizer_type", name, "torch.optim", torch.optim.Optimizer)
        if kind.__module__.startswith("torch.optim") and kind.__name__ in REFUSED:
            raise ValueError(f"optimizer_type={name!r} {REFUSED[kind.__name__]}: take another, such as AdamW")
        return kind
    from importlib.metadata import version

    from packaging.requirements import Requirement

    module, _, attribute = facts.path.rpartition(".")
    requirement = Requirement(facts.package)
    try:
        installed = version(requirement.name)
        if not requirement.specifier.contains(installed, prereleases=True):
            raise ImportError(f"{installed} is installed")
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(f'{name} needs {facts.package}: pip install "{facts.package}" ({error})') from error


def _groups(parameters: Iterable[Parameter] | Iterable[dict]) -> list[dict]:
    """Parameters or groups as groups with lists of parameters. Raises `ValueError` for none, for other types and for duplicates."""
    items: list[Any] = [parameters] if isinstance(parameters, torch.Tensor | dict) else list(parameters)
    groups = items if items and all(isinstance(item, dict) for item in items) else [{"params": items}]
    groups = [{**group, "params": [p] if isinstance(p := group["params"], torch.Tensor) else list(p)} for group in groups]
    all_parameters = [p for group in groups for p in group["params"]]
    if not all_parameters:
        raise ValueError("there are no parameters to train: an empty list, or a generator that was used up before")
    seen = set()
    for p in all_parameters:
        if not isinstance(p, torch.Tensor):
            raise ValueError(f"{type(p).__name__} among the parameters: give model.parameters(), or dicts with them as params")
        if id(p) in seen:
            raise ValueError(f"a parameter of shape {tuple(p.shape)} is listed twice, and would be stepped twice: list it once")
        seen.add(id(p))
    return groups


def _check_rates(name: str, facts: Row | None, groups: list[dict], lr: float | None) -> None:
    """Raise `ValueError` for learning rates of groups that the optimizer ignores or cannot have; warn of a rate far below the usual one."""
    if facts and facts.rates is ADAPTIVE:
        rates = {group.get("lr", lr) for group in groups}
        if len(rates - {0.0}) > 1:
            raise ValueError(
                f"{name} finds one step size for all parameters, and refuses several learning rates, here {sorted(rates)}: "
                "give learning_rate, unet_lr and text_encoder_lr the same value, or 0"
            )
        if max(rates) <= 0.1:
            warnings.warn(f"{name} finds its own step size and multiplies it by learning_rate={max(rates):g}: 1.0 is usual", stacklevel=3)
