"""DyLoRA, OFT, LoHa and LoKr as sd-scripts' own modules have them: adapters that take over their layers' forward.

DyLoRA (Valipour et al. 2022) is a LoRA of which each forward pass trains a few ranks, drawn by chance, so that each of its first ranks is
of use by itself. Each rank is a parameter of its own: those that are not drawn have no gradient, and an optimizer leaves them alone. Its
file is that of a LoRA. OFT (Qiu et al. 2023) turns the rows of a weight, in blocks: W becomes R·W with R = (I + Q)(I - Q)⁻¹ and Q skew.
LoHa and LoKr, of sd-scripts 0.10.2 and for SDXL, add (A₁B₁) ∘ (A₂B₂) (Hyeon-Woo et al. 2022) and the Kronecker product of a small matrix
with AB to a weight. LyCORIS has them too, beside more layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import Conv2d, Module, Parameter, ParameterList
from torch.nn.functional import conv2d, linear

from ..models import family_of
from ..system import quoted
from . import adapters, lycoris, names

if TYPE_CHECKING:
    from ..models import Model

DYLORA, LOHA, LOKR = "networks.dylora", "networks.loha", "networks.lokr"
PATTERNS = ("network_reg_lrs", "network_reg_dims", "exclude_patterns", "include_patterns")
"""Arguments of LoHa and LoKr that are regular expressions."""


def add(sd: Model, *, module: str, rank: int, alpha: float, args: Mapping[str, str], text_encoder: bool) -> None:
    """Freeze the denoiser and give its layers the adapters of `module`, with `text_encoder` those of a text encoder, too.

    `args` are `network_args`. Raises `ValueError` for what sd-scripts' module refuses or cannot save.
    """
    device = next(sd.denoiser.parameters()).device
    with torch.device("meta") if device.type == "meta" else nullcontext():  # elsewhere they begin as the CPU's generator says
        if module in (LOHA, LOKR):
            found = _products(sd, module, rank, alpha, args, text_encoder)
        else:
            found = _dylora(sd, rank, alpha, args, text_encoder) if module == DYLORA else _oft(sd, rank, alpha, args)
    sd.denoiser.requires_grad_(False)
    for part, chosen in found.items():
        if chosen:
            lycoris.put(adapters.parts(sd)[part], {one.lora_name: one for one in chosen})


def _dylora(sd: Model, rank: int, alpha: float, args: Mapping[str, str], text_encoder: bool) -> dict[str, list[Replacing]]:
    family, unit, conv = family_of(sd), _whole(args, "unit", 1), _whole(args, "conv_dim", rank)
    if rank % unit:
        raise ValueError(f"network_args: unit={unit}: network_dim={rank} must be a multiple of it")
    if conv != rank:
        raise ValueError(f"network_args: conv_dim={conv}: networks.dylora wants it to be network_dim, {rank}")
    if text_encoder and len(sd.encoders) > 1:
        raise ValueError("networks.dylora gives both text encoders the same names, and saves one of them: add network_train_unet_only")
    size = [(rank, alpha or float(rank))]
    sizes = adapters.Sizes(size, size if "conv_dim" in args else None)
    found: dict[str, list[Replacing]] = {}
    for part, root in adapters.parts(sd).items():
        classes = adapters.classes_of(family, sizes) if part == family.denoiser else adapters.TEXT_BLOCKS if text_encoder else ()
        paths = adapters.chosen(root, classes, "sd-scripts", sizes)
        found[part] = [DyLora(names.kohya(sd, part, path), root.get_submodule(path), *size[0], unit) for path in paths]
    return found


def _oft(sd: Model, blocks: int, alpha: float, args: Mapping[str, str]) -> dict[str, list[Replacing]]:
    family, wide = family_of(sd), bool(args.get("enable_conv"))  # any text is a yes, as in sd-scripts
    classes = family.lora_blocks if args.get("enable_all_linear") else ("Attention",)
    size = [(blocks, alpha)]
    classes = (*classes, *(family.lora_conv_blocks if wide else ()))
    paths = adapters.chosen(sd.denoiser, classes, "sd-scripts", adapters.Sizes(size, size if wide else None))
    named = {names.kohya(sd, family.denoiser, path).replace("lora_", "oft_", 1): path for path in paths}
    return {family.denoiser: [Oft(name, sd.denoiser.get_submodule(path), blocks, alpha) for name, path in named.items()]}


def _products(sd: Model, module: str, rank: int, alpha: float, args: Mapping[str, str], text_encoder: bool) -> dict[str, list[Replacing]]:
    family, kind = family_of(sd), module.rpartition(".")[2]
    if not family.lora_names_are_original:
        raise ValueError(
            f"{module} is for SDXL alone, in sd-scripts as well: take network_module=lycoris.kohya with network_args algo={kind}"
        )
    if given := [name for name in PATTERNS if name in args]:
        raise ValueError(f"network_args: {given[0]} is a regular expression, and a recipe's are not run: leave it out")
    wide = [(_whole(args, "conv_dim", 1), _number(args, "conv_alpha", 1.0))] if "conv_dim" in args else None
    sizes = adapters.Sizes([(rank, alpha)], wide)
    shares = [_number(args, name, 0.0) for name in ("rank_dropout", "module_dropout")]
    if not all(0 <= share < 1 for share in shares):
        raise ValueError(f"network_args: rank_dropout and module_dropout are shares, from 0 to below 1, and {shares} are not")
    if module == LOHA and args.get("use_tucker", "").lower() == "true":
        raise ValueError("network_args: use_tucker: the gradients of sd-scripts' LoHa are not those of its product then: leave it out")
    tucker, factor = args.get("use_tucker", "").lower() == "true", int(_number(args, "factor", -1))
    found: dict[str, list[Replacing]] = {}
    for part, root in adapters.parts(sd).items():
        classes = adapters.classes_of(family, sizes) if part == family.denoiser else adapters.TEXT_BLOCKS if text_encoder else ()
        found[part] = []
        for path, (dim, scale) in adapters.chosen(root, classes, "sd-scripts", sizes).items():
            own = names.kohya(sd, part, path), root.get_submodule(path), dim, scale or float(dim), *shares, tucker
            found[part].append(LoHa(*own) if module == LOHA else LoKr(*own, factor=factor))
    return found


def _whole(args: Mapping[str, str], name: str, usual: int) -> int:
    """A whole number above 0 among `network_args`."""
    text = args.get(name, str(usual))
    if not text.isdecimal() or not int(text):
        raise ValueError(f"network_args: {name}={quoted(text)}: it must be a whole number, 1 or more")
    return int(text)


def _number(args: Mapping[str, str], name: str, usual: float) -> float:
    """A number among `network_args`."""
    try:
        number = float(args.get(name, usual))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"network_args: {name}={quoted(args[name])}: it must be a number")
    return number


class Replacing(Module):
    """An adapter whose `forward` stands in for its layer's, with the methods of LyCORIS' adapters that `lycoris` uses."""

    alpha: Tensor

    def __init__(self, name: str, layer: Module, alpha: float) -> None:
        super().__init__()
        self.lora_name, self.org_module, self.multiplier = name, [layer], 1.0  # in a list, the layer is no part of it
        self.register_buffer("alpha", torch.tensor(alpha))

    @property
    def layer(self) -> Module:
        """The linear layer or convolution."""
        return self.org_module[0]

    def apply_to(self) -> None:
        """Take the layer's forward over."""
        self.org_forward = self.layer.forward
        self.layer.forward = self.forward

    def restore(self) -> None:
        """Give it back."""
        self.layer.forward = self.org_forward

    def apply_max_norm(self, most: float, device: torch.device) -> tuple[None, None]:
        """sd-scripts holds them to no norm."""
        return None, None


class DyLora(Replacing):
    """DyLoRA beside one layer. In evaluation it is the LoRA of all ranks that its file holds."""

    def __init__(self, name: str, layer: Module, rank: int, alpha: float, unit: int) -> None:
        super().__init__(name, layer, alpha)
        out, *inner = layer.get_parameter("weight").shape
        self.scale, self.unit = alpha / rank, unit
        self.shapes = (rank, *inner), (out, rank, *(1 for _ in inner[1:]))  # of A and B
        own = inner if math.prod(inner[1:]) > 1 else inner[:1]  # those of a 1×1 convolution are rows and columns, too
        self.lora_A = ParameterList([torch.empty(1, *own) for _ in range(rank)])
        self.lora_B = ParameterList([torch.zeros(out, 1, *(1 for _ in own[1:])) for _ in range(rank)])
        for row in self.lora_A:
            torch.nn.init.kaiming_uniform_(row, a=math.sqrt(5))

    def forward(self, x: Tensor, *args) -> Tensor:
        """What the layer gives, and what all ranks add, of which those drawn are trained and their number scales the sum."""
        rank = len(self.lora_A)
        drawn = int(torch.randint(rank, (), device="cpu")) if self.training else rank - 1
        first = drawn - drawn % self.unit
        down, up = (
            torch.cat([row if first <= place < first + self.unit else row.detach() for place, row in enumerate(rows)], dim).reshape(shape)
            for dim, (rows, shape) in enumerate(zip((self.lora_A, self.lora_B), self.shapes, strict=True))
        )
        result, inner = self.org_forward(x, *args), x.to(down.dtype)
        if isinstance(layer := self.layer, Conv2d):
            added = conv2d(conv2d(inner, down, stride=layer.stride, padding=layer.padding), up)
        else:
            added = linear(linear(inner, down), up)
        factor = self.multiplier * self.scale * math.sqrt(rank / (first + self.unit))
        return result + (added * factor).to(result.dtype)

    def saved(self) -> dict[str, Tensor]:
        """The adapter as a LoRA's file has it."""
        down, up = torch.cat(list(self.lora_A), 0), torch.cat(list(self.lora_B), 1)
        return {"alpha": self.alpha, "lora_down.weight": down.reshape(self.shapes[0]), "lora_up.weight": up.reshape(self.shapes[1])}

    def take(self, rows: Mapping[str, Tensor]) -> None:
        """Begin with a LoRA's matrices. Raises `RuntimeError` for those of another size."""
        with torch.no_grad():
            for key, parameters, dim in (("lora_down.weight", self.lora_A, 0), ("lora_up.weight", self.lora_B, 1)):
                if key in rows and rows[key].shape[dim] != len(parameters):
                    raise RuntimeError(f"{key} is of rank {rows[key].shape[dim]}")
                for parameter, row in zip(parameters, rows[key].split(1, dim) if key in rows else (), strict=False):
                    parameter.copy_(row.reshape(parameter.shape))


class Oft(Replacing):
    """OFT beside one layer of the U-Net."""

    def __init__(self, name: str, layer: Module, blocks: int, alpha: float) -> None:
        super().__init__(name, layer, alpha)
        out = len(layer.get_parameter("weight"))
        if out % blocks:
            raise ValueError(
                f"network_dim={blocks}: networks.oft makes so many blocks of the {out} rows of {name}: give a divisor of {out}"
            )
        self.most = alpha * out
        self.oft_blocks = Parameter(torch.zeros(blocks, out // blocks, out // blocks))

    def rotation(self) -> Tensor:
        """R of each block (blocks, n, n)."""
        skew = self.oft_blocks - self.oft_blocks.transpose(1, 2)
        norm = torch.norm(skew.flatten())
        skew = skew * ((norm.clamp(max=self.most) + 1e-8) / (norm + 1e-8))
        one = torch.eye(skew.shape[-1], device=skew.device)
        return self.multiplier * (torch.matmul(one + skew, (one - skew).float().inverse()) - one) + one

    def forward(self, x: Tensor, *args) -> Tensor:
        """What the layer gives with its weight turned."""
        layer = self.layer
        weight = layer.get_parameter("weight").float()
        turns = self.rotation().float()
        turned = torch.einsum("knm,knp->kmp", turns, weight.reshape(*turns.shape[:2], -1)).reshape(weight.shape).to(x.dtype)
        if isinstance(layer, Conv2d):
            return conv2d(x, turned, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        return linear(x, turned, cast("Tensor | None", layer.bias))


class Product(Replacing):
    """An adapter that adds a product of small matrices to its layer's weight."""

    def __init__(self, name: str, layer: Module, rank: int, alpha: float, rank_dropout: float, module_dropout: float, tucker: bool) -> None:
        super().__init__(name, layer, alpha)
        self.scale, self.rank_dropout, self.module_dropout = alpha / rank, rank_dropout, module_dropout
        self.shape = layer.get_parameter("weight").shape
        self.tucker = tucker and math.prod(self.shape[2:]) > 1

    def delta(self) -> Tensor:
        """What is added to the weight, before `scale`. Raises `NotImplementedError` for a product that does not say."""
        raise NotImplementedError

    def forward(self, x: Tensor, *args) -> Tensor:
        """What the layer gives, and what the product adds."""
        result = self.org_forward(x, *args)
        if self.training and self.module_dropout and not x.is_meta and torch.rand(1, device="cpu").item() < self.module_dropout:
            return result
        delta, factor = (self.delta() * self.scale).reshape(self.shape), self.multiplier
        if self.training and self.rank_dropout:
            kept = torch.rand(len(delta), device=delta.device) > self.rank_dropout
            delta, factor = delta * kept.reshape(-1, *(1 for _ in self.shape[1:])), factor / (1 - self.rank_dropout)
        layer, inner = self.layer, x.to(delta.dtype)
        if isinstance(layer, Conv2d):
            added = conv2d(inner, delta, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        else:
            added = linear(inner, delta)
        return result + (added * factor).to(result.dtype)


class LoHa(Product):
    """LoHa beside one layer: the product, number by number, of two matrices of low rank."""

    hada_w1_a: Parameter
    hada_w1_b: Parameter
    hada_t1: Parameter
    hada_w2_a: Parameter
    hada_w2_b: Parameter
    hada_t2: Parameter

    def __init__(self, name: str, layer: Module, rank: int, *rest) -> None:
        super().__init__(name, layer, rank, *rest)
        out, inner, *kernel = self.shape
        if self.tucker:
            shapes, still = {"t{}": (rank, rank, *kernel), "w{}_a": (rank, out), "w{}_b": (rank, inner)}, "hada_w1_a"
        else:
            shapes, still = {"w{}_a": (out, rank), "w{}_b": (rank, math.prod(self.shape[1:]))}, "hada_w2_a"
        for number in (1, 2):
            for key, shape in shapes.items():
                own = f"hada_{key.format(number)}"
                deviation = 0.0 if own == still else 1.0 if own.endswith("_b") else 0.1
                setattr(self, own, Parameter(torch.empty(shape).normal_(std=deviation)))

    def delta(self) -> Tensor:
        """(A₁B₁) ∘ (A₂B₂)."""
        if not self.tucker:
            return (self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b)
        one, other = (
            torch.einsum("ij...,jr,ip->pr...", kernel, inner, out)
            for kernel, inner, out in (
                (self.hada_t1, self.hada_w1_b, self.hada_w1_a),
                (self.hada_t2, self.hada_w2_b, self.hada_w2_a),
            )
        )
        return one * other


class LoKr(Product):
    """LoKr beside one layer: the Kronecker product of a small matrix with a larger one, which may be of low rank."""

    def __init__(self, name: str, layer: Module, rank: int, alpha: float, *rest, factor: int) -> None:
        super().__init__(name, layer, rank, alpha, *rest)
        out, inner, *kernel = self.shape
        (few_in, many_in), (few_out, many_out) = factors(inner, factor), factors(out, factor)
        kernel = kernel if math.prod(kernel) > 1 else []
        self.lokr_w1 = _uniform(few_out, few_in)
        if self.is_whole(rank, many_out, many_in):
            self.lokr_w2 = Parameter(torch.zeros(many_out, many_in, *kernel))
            self.scale = 1.0
            self.alpha.fill_(rank)
        elif self.tucker:
            self.lokr_t2, self.lokr_w2_a = _uniform(rank, rank, *kernel), _uniform(rank, many_out)
            self.lokr_w2_b = Parameter(torch.zeros(rank, many_in))
        else:
            self.lokr_w2_a = _uniform(many_out, rank)
            self.lokr_w2_b = Parameter(torch.zeros(rank, many_in * math.prod(kernel)))

    @staticmethod
    def is_whole(rank: int, out: int, inner: int) -> bool:
        """Whether a matrix of these sides is trained as it is, since the rank would hardly make it smaller."""
        return rank >= max(out, inner) / 2

    def delta(self) -> Tensor:
        """The Kronecker product."""
        small, large = self.lokr_w1, getattr(self, "lokr_w2", None)
        if large is None and self.tucker:
            large = torch.einsum("ij...,ip,jr->pr...", self.lokr_t2, self.lokr_w2_a, self.lokr_w2_b)
        elif large is None:
            large = self.lokr_w2_a @ self.lokr_w2_b
        return torch.kron(small.reshape(*small.shape, *(1 for _ in large.shape[2:])), large.contiguous())


def _uniform(*shape: int) -> Parameter:
    parameter = Parameter(torch.empty(shape))
    torch.nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
    return parameter


def factors(size: int, wanted: int) -> tuple[int, int]:
    """Two factors of a size, the smaller one first: `wanted`, or the largest that is not above it; -1 for two that are nearly equal.

    >>> factors(128, -1), factors(128, 4), factors(320, 7)
    ((8, 16), (4, 32), (5, 64))
    """
    if wanted > 0 and size % wanted == 0:
        return min(wanted, size // wanted), max(wanted, size // wanted)
    most = size if wanted < 0 else max(wanted, 1)
    small = max(one for one in range(1, math.isqrt(size) + 1) if size % one == 0 and one <= most)
    return small, size // small
