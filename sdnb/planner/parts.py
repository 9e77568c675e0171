"""Plans in parts: the memory of any run that the explorer offers, from a file of formulas, in a millisecond and without torch.

`plan` records a whole step to answer one question. But for one *structure* (a model, a trainer, a precision, …) the events of the step
are the same at every size, and each storage is proportional to a product of powers of the batch size b, the area a (of pictures of a × 64²
pixels) and the rank r. So the bytes that are alive after an event are a polynomial of b, a and r, two plans tell its coefficients, and
the peak is the largest of all these polynomials. Of some ten thousand only a handful is ever the largest. They are kept in parts.json:

    features     exponents of (b, a, r): [1, 2, 0] is b·a², the size of a whole matrix of attention. Buffers of reductions have two more
                 numbers: the most that the product counts for, and the least from which on it counts
    categories   of `memory.CATEGORIES`
    workspaces   bytes that are always there
    steps        by `step_key`: two lists of parts, for a batch of 1 and for larger ones
                   rows   rows of the matrix: bytes after an event of the training step, without the optimizer's state
                   mark   the row of the moment at which the optimizer is called
    optimizers   by `optimizer_key`
                   state  the row of its state
                   calls  rows of the most that its first and second step add to the mark, its state included
    refusals     by `optimizer_key`: why the combination does not exist, in the words of `plan`, and the nearest that does
    flops        by `step_key`: a row
    stops, ratios    see below

A row is a flat list of pairs, code and coefficient: the code is category × (number of features) + feature. So

    bytes of a row    sum of coefficient × b^i × a^j × r^k over its pairs; of one category: over those of this category
    peak              workspaces + max(max(rows) + state, mark + max(calls))

where + joins the pairs of rows, and the largest row tells the peak's categories. Where the optimizer steps in backward there is no mark,
and the state is among the rows: peak = workspaces + max(rows).

Bytes *reserved* are no such maximum, as they depend on the order of the requests. Their ratio to the peak depends mostly on b × a. So
`ratios` has by `reserved_key` what is reserved beyond the peak, in thousandths of it, for each of `stops`, values of b × a; between two of
them it is interpolated in log(b × a).

`python -m benchmarks.record_plans` writes the file, and compares it with plans.
"""

from __future__ import annotations

import functools
import json
from bisect import bisect_right
from dataclasses import dataclass, field, fields
from math import inf, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..recipe import Recipe

FILE = Path(__file__).with_suffix(".json")
CELL = 64
"""Side of the pictures whose area is 1, in pixels."""
FUSED = "Adafactor, fused backward"
"""Adafactor that steps in backward, where each gradient is freed at once."""
PRECISIONS = {
    "bf16": {"mixed_precision": "bf16"},
    "fp16": {"mixed_precision": "fp16"},
    "fp32": {"mixed_precision": "no"},
    "full bf16": {"mixed_precision": "bf16", "full_bf16": True},
}
OPTIONS: dict[str, tuple] = {
    "model": ("sd15", "sdxl"),
    "method": ("lora", "full"),
    "trainer": ("sdnb", "sd-scripts", "diffusers"),
    "optimizer": ("AdamW", "AdamW8bit", "Lion", "Prodigy", "Adafactor", FUSED),
    "precision": tuple(PRECISIONS),
    "attention": ("sdpa", "none"),
    "recompute": (False, True),
    "batch_size": (1, 2, 3, 4, 5, 6, 8, 10, 12, 16),
    "resolution": tuple(range(256, 1537, CELL)),
    "rank": (1, 2, 4, 8, 16, 32, 64, 128, 256),
}
"""What can be chosen for each field of a `Choice`. Between the smallest and the largest of the last three any number can be chosen, of
resolutions any multiple of 64."""
SIZES = ("batch_size", "resolution", "rank")


@dataclass(frozen=True)
class Choice:
    """A run, by a few choices of `OPTIONS`. Text encoders are not trained. Latents are cached, for SDXL also captions, but not by most of
    diffusers' scripts."""

    model: str = "sd15"
    method: str = "lora"
    trainer: str = "sdnb"
    optimizer: str = "AdamW"
    precision: str = "bf16"
    attention: str = "sdpa"
    """Flag for attention. Only sd-scripts computes whole matrices without any."""
    recompute: bool = False
    """gradient_checkpointing."""
    batch_size: int = 1
    resolution: int = 512
    rank: int = 16

    def recipe(self) -> Recipe:
        """The recipe of this run."""
        from ..recipe import Recipe

        settings: dict[str, Any] = {
            "train_batch_size": self.batch_size,
            "resolution": self.resolution,
            "cache_latents": True,
            "cache_text_encoder_outputs": self.model == "sdxl",
            "gradient_checkpointing": self.recompute,
            **PRECISIONS[self.precision],
        }
        if self.optimizer == FUSED:
            settings["fused_backward_pass"] = True
        elif self.optimizer != "Adafactor":
            settings |= {"optimizer_type": self.optimizer, "optimizer_args": ()}
        if self.optimizer == "Prodigy":  # which finds its step size itself, and multiplies it by this
            settings["learning_rate"] = 1.0
        if self.method == "lora":
            settings |= {
                "network_module": "networks.lora", "network_dim": self.rank, "network_alpha": float(self.rank),
                "network_train_unet_only": True,
            }  # fmt: skip
        recipe = Recipe(**settings, others={} if self.attention == "none" else {self.attention: True})
        if self.trainer != "diffusers":
            return recipe
        from ..models import skeletons
        from .trainers import OTHERS

        return OTHERS[self.trainer].asked(recipe, skeletons.configurations(self.model)["family"])


@dataclass(frozen=True)
class Estimate:
    """Memory of a `Choice`, for a card like those of `plan` without one."""

    choice: Choice
    refusal: str = ""
    """Why this combination does not exist, and the nearest that does; empty if it exists. All sizes are 0 then."""
    peak_bytes: int = 0
    reserved_bytes: int = 0
    flops: int = 0
    """FLOPs of forward and backward in one step."""
    categories: dict[str, int] = field(default_factory=dict)
    """Bytes at the peak, as `MemoryPlan.by_category`."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return self.choice.recipe()


def estimate(choice: Choice) -> Estimate:
    """Memory of a run. Raises `ValueError` for what is not among `OPTIONS`."""
    _check(choice)
    stored = _stored()
    if refused := stored["refusals"].get(optimizer_key(choice)):
        return Estimate(choice, refused)
    values = [_value(choice, *feature) for feature in stored["features"]]
    step = stored["steps"][step_key(choice)][choice.batch_size > 1]
    rows = step["rows"]
    if choice.optimizer != FUSED:
        optimizer = stored["optimizers"][optimizer_key(choice)]
        rows = [*(row + optimizer["state"] for row in rows), *(step["mark"] + row for row in optimizer["calls"])]
    moments = [_by_category(row, values, len(stored["categories"])) for row in rows]
    highest = max(moments, key=sum)
    categories = {name: round(size) for name, size in zip(stored["categories"], highest, strict=True)}
    categories["workspaces"] = stored["workspaces"]
    peak = sum(categories.values())
    flops = round(sum(_by_category(stored["flops"][step_key(choice)], values, 1)))
    return Estimate(choice, "", peak, round(peak * _ratio(choice)), flops, categories)


def step_key(choice: Choice) -> str:
    """Key of the parts of a training step: all but the sizes, and of the optimizer whether it steps in backward."""
    flag = choice.attention if choice.trainer == "sd-scripts" else "sdpa"
    words = [choice.model, choice.method, choice.trainer, choice.precision, flag, "recompute" if choice.recompute else "keep"]
    return "/".join(words + ["fused"] * (choice.optimizer == FUSED))


OPTIMIZER_FIELDS = ("model", "method", "trainer", "precision", "optimizer")


def optimizer_key(choice: Choice) -> str:
    """Key of the parts of an optimizer, and of a refusal."""
    return "/".join(getattr(choice, name) for name in OPTIMIZER_FIELDS)


def reserved_key(choice: Choice) -> str:
    """Key of the ratios of reserved bytes. A LoRA's optimizer is too small to have its own."""
    return step_key(choice) + ("" if choice.method == "lora" else f"/{choice.optimizer}")


@functools.cache
def _stored() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


def _check(choice: Choice) -> None:
    for name in (one.name for one in fields(choice)):
        value, options = getattr(choice, name), OPTIONS[name]
        if name not in SIZES and value not in options:
            raise ValueError(f"{name}={value!r}: there are {', '.join(map(str, options))}")
        if name in SIZES and not options[0] <= value <= options[-1]:
            raise ValueError(f"{name}={value!r}: give {options[0]} to {options[-1]}")
    if choice.resolution % CELL:
        raise ValueError(f"resolution={choice.resolution}: give a multiple of {CELL}")


def _value(choice: Choice, b: int, a: int, r: int, most: float = inf, least: float = 0) -> float:
    """Value of a feature."""
    product = choice.batch_size**b * (choice.resolution / CELL) ** (2 * a) * choice.rank**r
    return min(product, most) if product >= least else 0


def _by_category(row: list, values: list[float], count: int) -> list[float]:
    """Bytes of a row by category."""
    sizes = [0.0] * count
    for code, coefficient in zip(row[::2], row[1::2], strict=True):
        category, feature = divmod(code, len(values))
        sizes[category] += coefficient * values[feature]
    return sizes


def _ratio(choice: Choice) -> float:
    """Reserved bytes per byte of the peak, interpolated in the logarithm of batch × area."""
    stops, ratios = _stored()["stops"], _stored()["ratios"][reserved_key(choice)]
    size = choice.batch_size * (choice.resolution / CELL) ** 2
    after = min(bisect_right(stops, size), len(stops) - 1)
    share = log(size / stops[after - 1]) / log(stops[after] / stops[after - 1])
    return 1 + (ratios[after - 1] * (1 - share) + ratios[after] * share) / 1000
