"""What a recipe asks of its adapters: `network_module`, `network_dim`, `network_args` and the like, in sd-scripts' words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..models import family_of
from ..sd_scripts import BLOCK_RATES, LORA_PLUS, OF_THEIR_OWN, READ, pairs
from ..system import quoted
from . import adapters, lycoris
from .blocks import Blocks

if TYPE_CHECKING:
    from torch.nn import Parameter

    from ..models import Model
    from ..recipe import Recipe


PLUS = {"networks.loha": "hada_w2_a", "networks.lokr": "lokr_w1"}
"""Part of the names of what LoRA+ gives another rate; in all other modules it is B."""


@dataclass(frozen=True)
class Asked:
    """The adapters that a recipe asks for."""

    rank: int
    alpha: float
    conv_dim: int | None = None
    conv_alpha: float | None = None
    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    blocks: Blocks | None = None
    freeze_down: bool = False
    args: tuple[tuple[str, str], ...] | None = None
    """The `network_args` of a module that makes the adapters by itself: LyCORIS', DyLoRA's or OFT's."""

    def __post_init__(self) -> None:
        adapters.check(**self.of_add)

    @property
    def of_add(self) -> dict[str, Any]:
        """What `add` takes, unless another module makes the adapters."""
        return {name: value for name, value in vars(self).items() if name != "args"}


def asked(recipe: Recipe) -> Asked | None:
    """The adapters that a recipe asks for in sd-scripts' words, or None if it trains all weights.

    It asks for a LoRA with `network_module` or `network_dim`; sd-scripts' defaults are a rank of 4 and an alpha of 1, and an alpha of 0
    is the rank. Raises `ValueError` for another module, and for values that mean nothing.
    """
    if not recipe.wants_lora:
        return None
    if recipe.network_module not in (None, *READ):
        raise ValueError(f"network_module={recipe.network_module!r}: only {', '.join(READ)} are known here")
    if recipe.network_module in OF_THEIR_OWN:
        return _of_its_own(recipe, pairs(recipe))
    args = _read(recipe)
    conv = int(_number(args, "conv_dim", int)) if "conv_dim" in args else None
    conv_alpha = (_number(args, "conv_alpha") if "conv_alpha" in args else 1.0) if conv is not None else None
    rank = 4 if recipe.network_dim is None else recipe.network_dim
    blocks = Blocks.of(args)
    if blocks and not recipe.network_alpha and blocks.dims and not blocks.alphas:
        blocks = replace(blocks, alphas=(0.0,) * len(blocks.dims))
    if blocks and conv_alpha == 0 and blocks.conv_dims and not blocks.conv_alphas:
        blocks = replace(blocks, conv_alphas=(0.0,) * len(blocks.conv_dims))
    _ratios(args)
    return Asked(
        rank=rank,
        alpha=recipe.network_alpha or float(rank),
        conv_dim=conv,
        conv_alpha=conv_alpha or conv,
        dropout=recipe.network_dropout or 0.0,
        rank_dropout=_number(args, "rank_dropout"),
        module_dropout=_number(args, "module_dropout"),
        blocks=blocks,
        freeze_down=recipe.network_module == "networks.lora_fa",
    )


def _of_its_own(recipe: Recipe, args: Mapping[str, str]) -> Asked:
    """The adapters of a module that reads its arguments itself."""
    if recipe.network_module in lycoris.MODULES:
        lycoris.check(args, recipe.scale_weight_norms)
    elif recipe.network_module == "networks.oft" and recipe.network_train_text_encoder_only:
        raise ValueError("network_train_text_encoder_only: networks.oft is for the U-Net alone: leave it out")
    _ratios(_read(recipe))
    if recipe.dim_from_weights or recipe.base_weights:
        raise ValueError(
            "dim_from_weights and base_weights are read for networks.lora alone: merge the file into the model, or leave them out"
        )
    rank = 4 if recipe.network_dim is None else recipe.network_dim
    return Asked(rank, recipe.network_alpha or float(rank), dropout=recipe.network_dropout or 0.0, args=tuple(args.items()))


def settings(recipe: Recipe) -> tuple[int, float] | None:
    """The rank and alpha of the adapters that a recipe asks for, or None; `asked` has all of it."""
    found = asked(recipe)
    return None if found is None else (found.rank, found.alpha)


def groups(sd: Model, recipe: Recipe, part: str, parameters: Mapping[str, Parameter], lr: float) -> list[dict]:
    """Parameter groups of the adapters of one part, with their learning rates; `lr` is that of the part.

    They are one, unless `network_args` gives the B matrices another rate (LoRA+, Hayou et al. 2024) or the U-Net's blocks theirs. Names
    in `parameters` begin with the part's.
    """
    args, family = _read(recipe), family_of(sd)
    in_unet = part == family.denoiser
    ratio = None if recipe.dim_from_weights else _ratios(args)[0 if in_unet else 1]
    blocks = Blocks.of(args) if in_unet else None
    counted = adapters.layout(family) if blocks else None
    rates = blocks.rates(counted) if blocks and counted else None
    if recipe.network_module in PLUS and not in_unet and recipe.text_encoder_lr:  # of these, each text encoder has its own
        place = family.encoders.index(part)
        lr = recipe.text_encoder_lr[place if place < len(recipe.text_encoder_lr) else 0]
    plus_names = (PLUS[str(recipe.network_module)],) if recipe.network_module in PLUS else (".lora_B.", "lora_up")
    found: dict[tuple[int, bool], list[Parameter]] = {}
    for name, parameter in parameters.items():
        block = counted.index(name.removeprefix(f"{part}.")) if rates and counted else 0
        found.setdefault((block, False), [])
        found.setdefault((block, ratio is not None and any(mark in name for mark in plus_names)), []).append(parameter)
    return [
        {"params": some, "lr": lr * (rates[block] if rates else 1.0) * (ratio if plus and ratio is not None else 1.0)}
        for (block, plus), some in found.items()
        if some
    ]


def has_rates(recipe: Recipe) -> bool:
    """Whether `network_args` gives some adapters learning rates of their own."""
    args = _read(recipe)
    return any(name in args for name in (*LORA_PLUS, *BLOCK_RATES[:3]))


def _read(recipe: Recipe) -> dict[str, str]:
    """Those of `network_args` that the module looks for."""
    known = READ.get(recipe.network_module or "networks.lora", ()) if recipe.wants_lora else ()
    return {name: value for name, value in pairs(recipe).items() if name in known}


def _ratios(args: Mapping[str, str]) -> tuple[float | None, float | None]:
    """LoRA+'s factors on the learning rate of B, in the U-Net and in the text encoders; None for none."""
    both, unet, text = (_number(args, name) if name in args else None for name in LORA_PLUS)
    return unet or both, text or both


def _number(args: Mapping[str, str], name: str, kind: type = float) -> float:
    """A number among `network_args`, 0 where it is left out."""
    text = args.get(name, "0")
    try:
        return kind(text)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"network_args: {name}={quoted(text)}: {name} must be {what}") from error
