"""A LoRA layer: what a reader may write, and what the grader says of it."""

import copy

import peft
import pytest
import torch
from torch import nn

from sdnb.course.building import grade


class Lora(nn.Module):
    """A right one, whose parts can be replaced below."""

    scale = staticmethod(lambda alpha, rank: alpha / rank)

    def __init__(self, frozen, rank, alpha):
        super().__init__()
        self.frozen = self.keep(frozen)
        like = dict(bias=False, dtype=frozen.weight.dtype, device=frozen.weight.device)
        self.down = nn.Linear(frozen.in_features, rank, **like)
        self.up = nn.Linear(rank, frozen.out_features, **like)
        self.begin()
        self.scaling = self.scale(alpha, rank)

    def keep(self, frozen):
        return frozen.requires_grad_(False)

    def begin(self):
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.frozen(x) + self.scaling * self.up(self.down(x))

    def merged(self):
        merged = copy.deepcopy(self.frozen)
        merged.weight += self.scaling * self.up.weight.detach() @ self.down.weight.detach()
        return merged


class Matrices(nn.Module):
    """Another right one, with parameters instead of layers."""

    def __init__(self, frozen, rank, alpha):
        super().__init__()
        self.base, self.ratio = frozen, alpha / rank
        for parameter in frozen.parameters():
            parameter.requires_grad = False
        self.A = nn.Parameter(torch.randn(rank, frozen.in_features).to(frozen.weight) / rank)
        self.B = nn.Parameter(torch.zeros(frozen.out_features, rank).to(frozen.weight))

    def forward(self, x):
        return self.base(x) + x @ self.A.T @ self.B.T * self.ratio

    def merged(self):
        rows, columns = self.base.weight.shape
        merged = nn.Linear(columns, rows, bias=self.base.bias is not None)
        with torch.no_grad():
            merged.weight.copy_(self.base.weight + self.B @ self.A * self.ratio)
            if self.base.bias is not None:
                merged.bias.copy_(self.base.bias)
        return merged


class Pefts(nn.Module):
    """peft's own layer."""

    def __init__(self, frozen, rank, alpha):
        super().__init__()
        self.layer = peft.tuners.lora.Linear(
            frozen.requires_grad_(False), "default", config=peft.LoraConfig(r=rank, lora_alpha=alpha), r=rank, lora_alpha=alpha
        )
        self.layer.lora_A.to(frozen.weight.dtype)
        self.layer.lora_B.to(frozen.weight.dtype)

    def forward(self, x):
        return self.layer(x)

    def merged(self):
        layer = copy.deepcopy(self.layer)
        layer.merge()
        return layer.base_layer


RIGHT = [Lora, Matrices, Pefts]


@pytest.mark.parametrize("answer", RIGHT)
def test_right_ones(answer):
    assert grade("08.1", answer) is None


class NotFrozen(Lora):
    def keep(self, frozen):
        return frozen


class Copied(Lora):
    def keep(self, frozen):
        return copy.deepcopy(frozen.requires_grad_(False))


class RandomAtFirst(Lora):
    def begin(self):
        pass


class BothZero(Lora):
    def begin(self):
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.down.weight)


class TheOtherZero(Lora):
    def begin(self):
        nn.init.zeros_(self.down.weight)


class Unscaled(Lora):
    scale = staticmethod(lambda alpha, rank: 1)


class AlphaAlone(Lora):
    scale = staticmethod(lambda alpha, rank: alpha)


class UpsideDown(Lora):
    scale = staticmethod(lambda alpha, rank: rank / alpha)


class WithoutTheFrozenOne(Lora):
    def forward(self, x):
        return self.scaling * self.up(self.down(x))


class WithBiases(Lora):
    def begin(self):
        super().begin()
        self.up.bias = nn.Parameter(torch.zeros_like(self.frozen.bias)) if self.frozen.bias is not None else None


class AcrossTheRank(Lora):
    def begin(self):
        self.up, self.down = nn.Linear(1, 1), nn.Linear(1, 1)
        self.up.weight = nn.Parameter(torch.zeros(self.frozen.out_features, self.frozen.in_features))
        self.up.bias, self.down = None, nn.Identity()


class MergedIntoTheFrozenOne(Lora):
    def merged(self):
        self.frozen.weight += self.scaling * self.up.weight.detach() @ self.down.weight.detach()
        return self.frozen


class MergedWithoutBias(Lora):
    def merged(self):
        merged = super().merged()
        plain = nn.Linear(merged.in_features, merged.out_features, bias=merged.bias is not None)
        plain.weight = merged.weight
        return plain


class MergedWithNoBiasAtAll(Lora):
    def merged(self):
        merged = super().merged()
        merged.bias = None
        return merged


class MergedWithTheFrozenBias(Lora):
    def merged(self):
        merged = super().merged()
        merged.bias = self.frozen.bias
        return merged


class MergedUnscaled(Lora):
    def merged(self):
        merged = copy.deepcopy(self.frozen)
        merged.weight += self.up.weight.detach() @ self.down.weight.detach()
        return merged


class MergedAsItself(Lora):
    def merged(self):
        return self


class InFloat(Lora):
    def begin(self):
        super().begin()
        self.up.float()
        self.down.float()


class Detached(Lora):
    def forward(self, x):
        with torch.no_grad():
            base = self.frozen(x)
        return base + self.scaling * self.up(self.down(x))


WRONG = {
    "not frozen": (NotFrozen, "not_frozen", "requires_grad_(False)"),
    "copied": (Copied, "copied", "copy"),
    "B random": (RandomAtFirst, "not_zero_at_first", "B has to start as zeros"),
    "A and B zero": (BothZero, "both_zero", "can never change"),
    "A zero": (TheOtherZero, "both_zero", "A"),
    "no scale": (Unscaled, "unscaled", "alpha / rank"),
    "alpha alone": (AlphaAlone, "times_alpha", "divide"),
    "upside down": (UpsideDown, "upside_down", "rank / alpha"),
    "without the frozen layer": (WithoutTheFrozenOne, "first_result", "frozen layer"),
    "a bias": (WithBiases, "matrices", "[6, 3]"),
    "one large matrix": (AcrossTheRank, "matrices", "[6, 10]"),
    "merged into the frozen layer": (MergedIntoTheFrozenOne, "merged_in_place", "changed"),
    "merged without the bias": (MergedWithoutBias, "merged_bias", "bias"),
    "merged with no bias at all": (MergedWithNoBiasAtAll, "merged_bias", "bias"),
    "merged with the frozen layer's own bias": (MergedWithTheFrozenBias, "merged_shares", "copy"),
    "merged without the scale": (MergedUnscaled, "merged_wrong", "merged"),
    "merged as itself": (MergedAsItself, "merged_kind", "nn.Linear"),
    "in fp32": (InFloat, "raised", "bf16"),
    "a way cut off": (Detached, "no_way_back", "gradient of the input"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_ones(name, told):
    answer, fault, text = WRONG[name]
    assert grade("08.1", answer).name == fault
    assert text in told("08.1", answer)
