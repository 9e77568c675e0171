"""LyCORIS beside a model: LoCon, LoHa, LoKr and its other kinds, made by the library `lycoris-lora` itself.

The library finds layers by the names and classes that they have in sd-scripts' models, and names its file's keys by them. Diffusers'
models have other ones, so it is shown a *mirror*: a tree of empty modules with sd-scripts' names and classes, whose leaves are the
model's own layers. Each adapter then replaces the `forward` of its layer. The adapters lie in the part as `lycoris`, where they are
trained, saved and moved like its other parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..models import family_of
from ..system import quoted
from . import names

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from ..models import Model

MODULES = ("lycoris.kohya",)
CONTAINER = "lycoris"
ALGOS = ("lora", "locon", "loha", "lokr", "dylora", "glora", "diag-oft", "boft")
BROKEN = {
    "full": "LyCORIS 3 takes the weights of a layer away and then asks for them, so sd-scripts stops as well: train all weights instead",
    "ia3": "LyCORIS 3 does not make it for sd-scripts, which stops with a KeyError: take another",
}
UNLIMITED = ("dylora", "glora")
"""Those that the library holds to no norm."""
CLASSES = {"Attention": "CrossAttention", "CLIPSdpaAttention": "CLIPAttention"}
"""Classes of diffusers -> those of sd-scripts, where they differ."""
ORIGINAL_CLASSES = {"TimestepEmbedding": "Sequential"}
"""The same in SDXL, which sd-scripts builds as the original model."""
STATE = tuple(
    "ENABLE_CONV UNET_TARGET_REPLACE_MODULE UNET_TARGET_REPLACE_NAME TEXT_ENCODER_TARGET_REPLACE_MODULE TEXT_ENCODER_TARGET_REPLACE_NAME "
    "MODULE_ALGO_MAP NAME_ALGO_MAP USE_FNMATCH TARGET_EXCLUDE_NAME".split()
)
"""What a preset leaves behind in the library's class."""


def check(args: Mapping[str, str], most_norm: float | None = None) -> None:
    """Raise `ValueError` without the library, for an `algo` that is not trained here, and for one that cannot be held to a norm."""
    algo = (args.get("algo") or "lora").lower()
    if algo in BROKEN:
        raise ValueError(f"network_args: algo={algo}: {BROKEN[algo]}")
    if algo not in ALGOS:
        raise ValueError(f"network_args: algo={quoted(algo)}: there are {', '.join(ALGOS)}")
    if most_norm and algo in UNLIMITED:
        raise ValueError(f"scale_weight_norms: LyCORIS limits no norm of algo={algo}, and would pass over it: leave it out")
    if find_spec("lycoris") is None:
        raise ValueError("network_module=lycoris.kohya needs LyCORIS: pip install 'lycoris-lora>=3.2,<4'")


def add(sd: Model, *, rank: int | None, alpha: float, dropout: float | None, args: Mapping[str, str], text_encoder: bool) -> None:
    """Freeze the denoiser and put LyCORIS' adapters beside its layers, and with `text_encoder` beside those of the text encoders.

    `args` are `network_args`. Raises `ValueError` for what the library refuses, and where it finds no layer.
    """
    mirrors = {part: mirror(sd, part) for part in (family_of(sd).denoiser, *sd.encoders)}
    unet, *encoders = mirrors.values()
    with _as_it_was() as kohya:
        try:
            network = kohya.create_network(
                1.0, rank, alpha, None, encoders if len(encoders) > 1 else encoders[0], unet,
                neuron_dropout=dropout, **({"dropout": dropout} | dict(args)),
            )  # fmt: skip
        except (ValueError, TypeError, AssertionError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"network_args={dict(args)!r}: LyCORIS refuses them: {error!r}") from error
    sd.denoiser.requires_grad_(False)
    chosen = [*network.unet_loras, *(network.text_encoder_loras if text_encoder else ())]
    if broken := {getattr(one, "name", "") for one in chosen} & BROKEN.keys():  # of a preset's own
        raise ValueError(f"network_args: algo={min(broken)}: {BROKEN[min(broken)]}")
    if not chosen:
        raise ValueError(f"network_args={dict(args)!r}: LyCORIS finds no layer of this model to train")
    prefixes = ["lora_unet_", *(f"lora_te{number + 1 if len(encoders) > 1 else ''}_" for number in range(len(encoders)))]
    for part, prefix in zip(mirrors, prefixes, strict=True):
        module = sd.denoiser if part == family_of(sd).denoiser else sd.encoders[part]
        if found := {one.lora_name: one for one in chosen if one.lora_name.startswith(prefix)}:
            put(module, found)


def put(part: Module, found: Mapping[str, Any]) -> None:
    """Put adapters into `part`, in fp32 and where its weights are, and let its layers use them."""
    import torch

    part.requires_grad_(False)
    device = next(part.parameters()).device
    for one in found.values():
        one.float().to(device).requires_grad_(True)
        one.apply_to()
    part.add_module(CONTAINER, torch.nn.ModuleDict(found).train(part.training))


def mirror(sd: Model, part: str) -> Module:
    """A tree of empty modules with the names and classes that a part has in sd-scripts; its leaves are the part's own layers."""
    import torch

    family = family_of(sd)
    original = part == family.denoiser and family.lora_names_are_original
    classes = CLASSES | (ORIGINAL_CLASSES if original else {})
    root, kinds = torch.nn.Module(), {}
    for path, module in {family.denoiser: sd.denoiser, **sd.encoders}[part].named_modules():
        is_layer = isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.GroupNorm | torch.nn.LayerNorm)
        if not path or not (is_layer or next(module.children(), None) is not None) or path.split(".")[0] == CONTAINER:
            continue
        name = _name(sd, part, path, is_layer) if original else path if part == family.denoiser else names.nested(family, part, path)
        node, *rest = root, *name.split(".")
        for step in rest[:-1]:
            if step not in node._modules:
                node.add_module(step, torch.nn.Module())
            node = node.get_submodule(step)
        if is_layer:
            node.add_module(rest[-1], module)
        else:
            kind = classes.get(type(module).__name__, type(module).__name__)
            if rest[-1] not in node._modules:
                node.add_module(rest[-1], torch.nn.Module())
            node.get_submodule(rest[-1]).__class__ = kinds.setdefault(kind, type(kind, (torch.nn.Module,), {}))
    return root


def _name(sd: Model, part: str, path: str, is_layer: bool) -> str:
    """Original name of a denoiser's module. A resizer has none of its own there: it is what its convolution is in."""
    family = family_of(sd)
    if not is_layer and path.split(".")[-2:-1] in (["downsamplers"], ["upsamplers"]):
        return family.original_name(sd, f"{path}.conv").rpartition(".")[0]
    return family.original_name(sd, path)


@contextmanager
def _as_it_was() -> Iterator[Any]:
    """The library's module for sd-scripts, quiet; what a preset sets in its class is put back."""
    from lycoris import kohya

    network, logger = kohya.LycorisNetworkKohya, logging.getLogger("LyCORIS")
    before, level = {name: getattr(network, name) for name in STATE if hasattr(network, name)}, logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield kohya
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(network, name, value)


def adapters(part: Module) -> dict[str, Any]:
    """LyCORIS' adapters of one part, or those of `networks`, by their names in a file."""
    return dict(part._modules[CONTAINER].items()) if CONTAINER in part._modules else {}  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]


def tensors(part: Module) -> dict[str, Tensor]:
    """What a file has of one part's adapters, by name."""
    return {
        f"{name}.{key}": value for name, one in adapters(part).items() for key, value in getattr(one, "saved", one.state_dict)().items()
    }


def fill(part: Module, found: Mapping[str, Tensor]) -> int:
    """Copy what a file has into one part's adapters; the number of those that were in it. Raises `ValueError` for other shapes."""
    filled = 0
    for name, one in adapters(part).items():
        rows = {key.removeprefix(f"{name}."): value for key, value in found.items() if key.startswith(f"{name}.")}
        try:
            if hasattr(one, "take"):
                one.take(rows)
            else:
                one.load_state_dict(rows, strict=False)
        except RuntimeError as error:
            raise ValueError(
                f"network_weights: {name} is of another size or kind there: set network_dim and network_args to those"
            ) from error
        filled += bool(rows)
    return filled


def take_out(part: Module) -> None:
    """Take the adapters of one part out, in place."""
    for one in adapters(part).values():
        one.restore()
        vars(one.org_module[0]).pop("forward", None)
    part._modules.pop(CONTAINER, None)


def limit_norms(part: Module, most: float) -> list[tuple[Tensor, Tensor]]:
    """Let the library scale down what adds more than the norm `most`; the norm of each adapter then, and whether it was scaled."""
    device = next(part.parameters()).device
    found = [one.apply_max_norm(most, device) for one in adapters(part).values()]
    return [(norm, was) for was, norm in found if was is not None]


def set_strength(part: Module, strength: float) -> None:
    """Multiply what the adapters of one part add."""
    for one in adapters(part).values():
        one.multiplier = strength
