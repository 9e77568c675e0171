"""Adapters: LoRA's small trained matrices beside a model's frozen ones. peft puts them there.

A layer with the weight W then gives (W + alpha / rank · B·A) x, where A has `rank` rows. A begins as noise and B as zeros.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

from ..models import family_of
from . import lycoris
from .blocks import Blocks, Layout

if TYPE_CHECKING:
    from peft.tuners.lora import Linear, LoraLayer
    from torch import Tensor
    from torch.nn import Module, Parameter

    from ..models import Family, Model

NAME = "default"
LOADED = "_hf_peft_config_loaded"
"""The attribute by which diffusers and transformers know that there are adapters."""
TEXT_BLOCKS = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")
"""Every Linear in these has an adapter in sd-scripts; what the denoiser's are says its family, `lora_blocks`."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The attention's projections, which is what diffusers' own LoRA scripts train."""
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TARGETS = ("sd-scripts", "attention")
MOST_RANK = 1024
"""The largest rank that is put beside any layer, also a small one, whose own weight has less."""


def add(
    sd: Model,
    *,
    rank: int,
    alpha: float,
    text_encoder: bool = False,
    targets: str = "sd-scripts",
    conv_dim: int | None = None,
    conv_alpha: float | None = None,
    dropout: float = 0.0,
    rank_dropout: float = 0.0,
    module_dropout: float = 0.0,
    blocks: Blocks | None = None,
    freeze_down: bool = False,
) -> Model:
    """Freeze the denoiser and put adapters of this rank beside its layers, in place; only they train from now on.

    `targets="sd-scripts"` takes the layers that sd-scripts trains: every Linear and 1×1 convolution of the attention blocks with
    their feed-forward layers and projections, and with `conv_dim` the ResNet blocks and resizers too, whose 3×3 convolutions have
    that rank and `conv_alpha` (1 unless given). `"attention"` takes the projections to q, k, v and out alone, as diffusers' scripts do.
    A `conv_dim` of 0 takes those blocks without their 3×3 convolutions. `blocks` has ranks and alphas for single blocks of the denoiser;
    a rank of 0 leaves a layer out. With `text_encoder` the text encoders get some too.

    In training, `dropout` drops that share of the rank's values, `rank_dropout` of the ranks, for each picture, and `module_dropout` of
    the adapters, in each forward pass.

    `freeze_down` is LoRA-FA (Zhang et al. 2023): A stays as it began, from a seed of its own, and B alone is trained.

    The adapters are in fp32, whatever precision the frozen weights have. Works on the meta device. Raises `ValueError` for a rank
    below 1 or one that `check_rank` refuses, `blocks` that do not fit the model, an alpha that is not above 0 or a model that has
    adapters, `ImportError` without peft; the model is then as it was.
    """
    if targets not in TARGETS:
        raise ValueError(f"targets={targets!r}: there are {', '.join(TARGETS)}")
    if targets == "attention" and conv_dim is not None:
        raise ValueError('conv_dim is of the layers that targets="sd-scripts" takes: leave one of the two out')
    dropouts = Dropouts(dropout, rank_dropout, module_dropout)
    check(rank=rank, alpha=alpha, conv_dim=conv_dim, conv_alpha=conv_alpha, **vars(dropouts))
    refuse_added(sd)
    family = family_of(sd)
    if freeze_down and blocks and family.lora_names_are_original:
        raise ValueError(
            f"network_args: networks.lora_fa does not know the blocks of {family.title}, and would give all of them the last rank: leave "
            "block_dims and the lr weights out, or take networks.lora"
        )
    conv = (conv_dim, 1.0 if conv_alpha is None else float(conv_alpha)) if conv_dim is not None else None
    sizes = Sizes([(rank, float(alpha))], [conv] if conv else None)
    of_denoiser = sizes_of(family, sizes, blocks)
    with put_back_on_error(sd):
        sd.denoiser.requires_grad_(False)
        for name, part in parts(sd).items():
            if name == family.denoiser:
                put(part, chosen(part, classes_of(family, of_denoiser), targets, of_denoiser), dropouts)
            elif text_encoder:
                put(part, chosen(part, TEXT_BLOCKS, targets, sizes), dropouts)
            if freeze_down:
                draw_down(part)
                freeze_all_down(part)
        if not has_adapters(sd):
            raise ValueError("no layer has a rank above 0 and a learning rate: there is nothing to train")
    return sd


@dataclass(frozen=True)
class Dropouts:
    """Shares that are left out in training; see `add`."""

    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0


Size: TypeAlias = tuple[int, float]
"""(rank, alpha)"""


def _first(path: str) -> int:
    """The place of the only size."""
    return 0


@dataclass(frozen=True)
class Sizes:
    """The rank and alpha of each layer: of a block, if the denoiser's blocks have theirs."""

    own: Sequence[Size]
    """Of Linear layers and 1×1 convolutions."""
    wide: Sequence[Size] | None = None
    """Of other convolutions. None: they and their blocks have no adapters."""
    index: Callable[[str], int] = _first
    """The place in these lists of a layer, by its path."""

    def of(self, path: str, layer: Module) -> Size | None:
        """Size of the adapter of a layer, a Linear or a convolution; None for no adapter."""
        sizes = self.own if not hasattr(layer, "kernel_size") or layer.kernel_size == (1, 1) else self.wide
        size = sizes[self.index(path)] if sizes else None
        return size if size and size[0] else None


def sizes_of(family: Family, usual: Sizes, blocks: Blocks | None) -> Sizes:
    """Sizes in a family's denoiser: the usual ones, or those of its blocks. Raises `ValueError` as `layout` and `Blocks.sizes` do."""
    if blocks is None:
        return usual
    counted = layout(family)
    return Sizes(*blocks.sizes(counted, usual.own[0], usual.wide[0] if usual.wide else None), counted.index)


def classes_of(family: Family, sizes: Sizes) -> tuple[str, ...]:
    """Classes of the denoiser's modules whose layers get adapters."""
    return (*family.lora_blocks, *(family.lora_conv_blocks if sizes.wide is not None else ()))


def layout(family: Family) -> Layout:
    """How the blocks of a family's denoiser are counted. Raises `ValueError` for a family whose blocks are not."""
    if family.lora_layout is None:
        raise ValueError(f"network_args: blocks of {family.title} have no numbers, so leave block_dims and the lr weights out")
    return Layout(*family.lora_layout)


def check(
    *,
    rank: int,
    alpha: float,
    conv_dim: int | None = None,
    conv_alpha: float | None = None,
    blocks: Blocks | None = None,
    freeze_down: bool = False,
    **dropouts: float,
) -> None:
    """Raise `ValueError` for sizes of adapters that mean nothing, and for dropouts that are no shares."""
    if conv_alpha is not None and conv_dim is None:
        raise ValueError("conv_alpha needs conv_dim: give both or neither")
    for name, value, least in (("rank", rank, 1), ("conv_dim", conv_dim, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name}={value!r}: it must be a whole number, {least} or more")
    for name, value in {"alpha": alpha, "conv_alpha": conv_alpha}.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r}: it must be above 0; rank is a usual value")
    for name, share in dropouts.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}={share!r}: it is a share, from 0 to below 1")


def check_rank(layer: Module, where: str, rank: int) -> None:
    """Raise `ValueError` for a rank that no adapter of this layer can have, or that is above `MOST_RANK` and can add nothing.

    A product of two matrices has at most the rank of the layer's own weight.
    """
    weight = layer.get_parameter("weight")
    most = max(MOST_RANK, min(len(weight), weight[0].numel()))
    if not 1 <= rank <= most:
        raise ValueError(f"{where} has adapters of rank {rank:,}: from 1 to {most:,} can be used for a layer of {tuple(weight.shape)}")


def parts(sd: Model) -> dict[str, Module]:
    """The parts that can have adapters, by the names that diffusers gives them."""
    return {family_of(sd).denoiser: sd.denoiser, **sd.encoders}


def refuse_added(sd: Model) -> None:
    """Raise `ValueError` if a part of this model has adapters."""
    for name, part in parts(sd).items():
        if is_added(part):
            raise ValueError(f"this model's {name} has adapters already: lora.merge(sd) or lora.remove(sd) first")


def chosen(part: Module, classes: Collection[str], targets: str, sizes: Sizes) -> dict[str, Size]:
    """The layers in modules of these classes that get adapters, by their paths in `part`, each with a rank and an alpha."""
    import torch

    found = {}
    for outer, block in part.named_modules():
        if type(block).__name__ not in classes:
            continue
        for inner, layer in block.named_modules(prefix=outer):
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and (size := sizes.of(inner, layer)):
                found[inner] = size
    if targets == "attention":
        ends = tuple(f".{end}" for end in (*ATTENTION, *TEXT_ATTENTION))
        found = {path: size for path, size in found.items() if path.endswith(ends)}
    return found


def put(part: Module, sizes: Mapping[str, Size], dropouts: Dropouts = Dropouts()) -> None:
    """Freeze `part` and give each of these layers an adapter in fp32 of its own (rank, alpha).

    `sizes` are by the layer's path in `part`; without any, the part is left as it is. Raises `ValueError` as `check_rank` does, and
    `ImportError` for weights that torchao quantized where peft does not work with that torchao: it belongs into `put_back_on_error`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if not sizes:
        return
    for where, size in sizes.items():
        check_rank(part.get_submodule(where), where, size[0])
    rank, alpha = Counter(sizes.values()).most_common(1)[0][0]
    # one pattern for all layers of a rank: peft tries each pattern, a regular expression, on each layer
    ranks, alphas = ({}, {})
    for pattern, position, usual in ((ranks, 0, rank), (alphas, 1, alpha)):
        for value in sorted({size[position] for size in sizes.values()} - {usual}):
            paths = (re.escape(path) for path, size in sizes.items() if size[position] == value)
            pattern["|".join(paths)] = value
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # peft calls it an int and divides it by the rank
        rank_pattern=ranks,
        target_modules=list(sizes),
        init_lora_weights=True,
    )
    try:
        with beside_any_torchao():
            # not `part.add_adapter`: that of transformers 5.24 wants a peft that is not released yet
            inject_adapter_in_model(config, part, NAME)
    except ImportError as error:
        if "torchao" in str(error):
            raise ImportError(f"peft does not work with the torchao that quantized these weights: {error}") from error
        raise
    setattr(part, LOADED, True)
    part.requires_grad_(False)
    config.alpha_pattern = alphas  # for those who read it; peft would try the pattern of each alpha on every layer
    for where, layer in layers(part).items():
        layer.lora_alpha[NAME] = sizes[where][1]
        layer.scaling[NAME] = sizes[where][1] / sizes[where][0]
        if dropouts.dropout:
            layer.lora_A[NAME].register_forward_hook(_Dropout(dropouts.dropout))
        if dropouts.rank_dropout:
            layer.lora_A[NAME].register_forward_hook(_RankDropout(dropouts.rank_dropout))
        if dropouts.module_dropout:
            cast("Linear", layer).register_forward_pre_hook(_ModuleDropout(dropouts.module_dropout))
        for matrix in matrices(layer):
            matrix.data = matrix.data.float()
            matrix.requires_grad_(True)


def draw_down(part: Module) -> None:
    """Draw all A anew, with the deviations that they have in sd-scripts' LoRA-FA. A run that goes on draws the same."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for layer in layers(part).values():
        down, _ = matrices(layer)
        drawn = torch.randn(down.shape, generator=generator, device="cpu") * math.sqrt(2 / (down.shape[1] + len(down)))
        down.data.copy_(drawn)


def freeze_all_down(part: Module) -> None:
    """Leave all A as they are from now on, and train B alone."""
    for layer in layers(part).values():
        matrices(layer)[0].requires_grad_(False)


@contextmanager
def put_back_on_error(sd: Model) -> Iterator[None]:
    """Leave a model without adapters as it is when anything is raised inside: its modules, attributes and what is trained.

    Raises `ImportError` without peft.
    """
    try:
        from peft import LoraConfig  # noqa: F401
    except ImportError as error:
        raise ImportError('LoRA needs peft: pip install "peft>=0.18"') from error
    marks = ("peft_config", LOADED)
    before = [(part, {mark: part.__dict__[mark] for mark in marks if mark in part.__dict__}) for part in parts(sd).values()]
    trained = [(parameter, parameter.requires_grad) for part, _ in before for parameter in part.parameters()]
    try:
        yield
    except BaseException:
        for part, attributes in before:
            take_out(part)
            for mark in marks:
                part.__dict__.pop(mark, None)
            part.__dict__.update(attributes)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
        raise


_torchao = threading.RLock()


@contextmanager
def beside_any_torchao() -> Iterator[None]:
    """Let peft put adapters beside ordinary weights whatever torchao is installed, such as the 0.10 of Colab and Kaggle.

    peft asks of each layer whether torchao quantized it, and asks torchao itself: a version that is too old, or too new, is an error
    although nothing here uses it. Inside, peft asks torchao only about weights that come from it. Put around diffusers'
    `load_lora_weights`, it does the same there.
    """
    from peft.tuners.lora import model as injecting

    with _torchao:  # another thread would put ours back for theirs
        theirs = getattr(injecting, "dispatch_torchao", None)
        if theirs is None:  # another peft, which does not ask here
            yield
            return

        def dispatch(target: Module, *args, **kwargs) -> Module | None:
            weight = getattr(getattr(target, "base_layer", target), "weight", None)
            quantized = any(kind.__module__.partition(".")[0] == "torchao" for kind in type(weight).__mro__)
            return theirs(target, *args, **kwargs) if quantized else None

        try:
            injecting.dispatch_torchao = dispatch
            yield
        finally:
            injecting.dispatch_torchao = theirs


class _Dropout:
    """Between the two matrices, where sd-scripts has it; peft's own is before both. A class, so that a model can be copied."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, module: Module, inputs: tuple, output: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.dropout(output, self.share, training=module.training)


class _RankDropout:
    """Leaves out a share of the ranks, the same ones at every position of a picture, and makes the others larger by as much."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, module: Module, inputs: tuple, output: Tensor) -> Tensor:
        import torch

        if not module.training:
            return output
        dim = 1 if hasattr(module, "kernel_size") else -1  # (B, r, h, w) or (B, …, r)
        shape = [1] * output.ndim
        shape[0], shape[dim] = output.shape[0], output.shape[dim]
        kept = torch.rand((output.shape[0], output.shape[dim]), device=output.device) > self.share
        return output * kept.reshape(shape) / (1 - self.share)


class _ModuleDropout:
    """Leaves out a layer's whole adapter in a share of its forward passes: its matrices then have no gradient, and are not stepped."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, layer: Module, inputs: tuple) -> None:
        import torch

        drops = layer.training and not inputs[0].is_meta and torch.rand(1, device="cpu").item() < self.share
        layer._disable_adapters = drops  # pyright: ignore[reportArgumentType]  # peft's own switch


def is_added(model: Module) -> bool:
    """Whether `model` has adapters."""
    return bool(getattr(model, "peft_config", None) or lycoris.adapters(model))


def is_of_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter. `name` is that in its part."""
    return ".lora_" in name or name.startswith(f"{lycoris.CONTAINER}.")


def has_adapters(sd: Model) -> bool:
    """Whether any part of this model has adapters."""
    return any(is_added(part) for part in parts(sd).values())


def layers(part: Module) -> dict[str, LoraLayer]:
    """The layers of one part that have adapters, by their paths; peft's own, with `lora_A`, `lora_B` and `base_layer`."""
    if not getattr(part, "peft_config", None):
        return {}
    from peft.tuners.lora import LoraLayer

    return {path: layer for path, layer in part.named_modules() if isinstance(layer, LoraLayer) and NAME in layer.lora_A}


def matrices(layer: LoraLayer) -> tuple[Parameter, Parameter]:
    """A layer's A and B, (rank, in) and (out, rank); a convolution's have its kernel's dimensions after these."""
    return layer.lora_A[NAME].get_parameter("weight"), layer.lora_B[NAME].get_parameter("weight")


def remove(sd: Model) -> Model:
    """Take all adapters out, in place: the model is then what it was before `add` or `load`, and its denoiser trains again."""
    for part in parts(sd).values():
        if is_added(part):
            take_out(part)
    sd.denoiser.requires_grad_(True)
    return sd


def take_out(part: Module) -> None:
    """Take the adapters of one part out, also what peft had put there before it failed. Nothing of the part is trained then."""
    if lycoris.adapters(part):
        lycoris.take_out(part)
        return
    from peft.tuners.lora import LoraLayer

    for path, layer in [(path, layer) for path, layer in part.named_modules() if isinstance(layer, LoraLayer)]:
        parent, _, name = path.rpartition(".")
        setattr(part.get_submodule(parent), name, layer.base_layer)
    part.__dict__.pop("peft_config", None)
    setattr(part, LOADED, False)  # diffusers and transformers set it before they try


def merge(sd: Model) -> Model:
    """Add the adapters, at their present strength, into the weights and take them out, in place: `sd.save` then writes a whole model.

    The sum is made in fp32 and rounded once; weights in fp16 or bf16 lose what is smaller than their last digit. Raises `ValueError` when
    there are no adapters.
    """

    if not has_adapters(sd):
        raise ValueError("this model has no adapters to merge: lora.add or lora.load first")
    if any(lycoris.adapters(part) for part in parts(sd).values()):
        raise ValueError("adapters of this kind are not merged here: save them, and merge the file with LyCORIS' or sd-scripts' tools")
    for part in parts(sd).values():
        for layer in layers(part).values():
            merge_layer(layer)
    return remove(sd)


def merge_layer(layer: LoraLayer) -> None:
    """Add what an adapter adds to its layer's weight; the adapter stays."""
    import torch

    with torch.no_grad():
        weight = layer.base_layer.get_parameter("weight")
        delta = cast("Linear", layer).get_delta_weight(NAME).to(weight.device, torch.float32)  # convolutions have it too
        weight.copy_(weight.float() + delta)


def set_strength(sd: Model, strength: float) -> None:
    """Multiply what all adapters add by `strength`: 1 as trained, 0 nothing, negative the opposite.

    Raises `ValueError` when it is no finite number.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength={strength!r}: it must be a finite number; 1 is as trained")
    for part in parts(sd).values():
        for layer in layers(part).values():
            layer.set_scale(NAME, strength)
        lycoris.set_strength(part, strength)


@contextmanager
def strength(sd: Model, strength: float) -> Iterator[Model]:
    """`with lora.strength(sd, 0.5): sd.draw(…)` draws with the adapters at half of what was trained, and puts it back.

    Raises `ValueError` when there are no adapters.
    """
    if not has_adapters(sd):
        raise ValueError("this model has no adapters: lora.add or lora.load first")
    before = [(layer, layer.scaling[NAME]) for part in parts(sd).values() for layer in layers(part).values()]
    others = [(one, one.multiplier) for part in parts(sd).values() for one in lycoris.adapters(part).values()]
    set_strength(sd, strength)
    try:
        yield sd
    finally:
        for layer, scaling in before:
            layer.scaling[NAME] = scaling
        for one, multiplier in others:
            one.multiplier = multiplier
