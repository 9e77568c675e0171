"""`timeline`: a training step to drag through, with the U-Net's blocks beside the bytes that are alive, and its command.

It plays a `Playback`: of a trace that the reader has just measured, or of the steps in playbacks.json, which `python -m
benchmarks.record_steps` writes: those can be compared with and without gradient checkpointing, with either optimizer, and with or without
a fused backward. The page needs no network, no Python and no kernel.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from .. import plots
from ..recipe import Recipe
from ..system import GIB, MIB, sized, suggest
from .page import FOLDER, Page, check_language
from .playback import CATEGORIES, KINDS, LASTING, SHOWN, Names, Playback

if TYPE_CHECKING:
    from ..memory import MemoryTrace

FILE = FOLDER / "playbacks.json"
OPTIONS: dict[str, tuple] = {
    "model": ("sd15", "tiny"),
    "optimizer": ("AdamW", "Adafactor"),
    "checkpointing": (False, True),
    "fused": (False, True),
}
"""What can be chosen for each field of a `Variant`."""
PICTURES = {"sd15": 1, "tiny": 4}
"""Pictures in a step of each model."""


@dataclass(frozen=True)
class Variant:
    """One of the recorded steps: the whole U-Net is trained in fp32."""

    model: str = "sd15"
    optimizer: str = "AdamW"
    checkpointing: bool = False
    fused: bool = False
    """Whether the optimizer steps in backward, parameter by parameter."""

    @property
    def key(self) -> str:
        """Name in playbacks.json, such as `sd15/AdamW/checkpointing`."""
        words = [self.model, self.optimizer, *(name for name in ("checkpointing", "fused") if getattr(self, name))]
        return "/".join(words)

    def recipe(self) -> Recipe:
        """The recipe of this step."""
        adamw = {"optimizer_type": "AdamW", "optimizer_args": ()} if self.optimizer == "AdamW" else {}
        return Recipe(
            train_batch_size=PICTURES[self.model], gradient_checkpointing=self.checkpointing, fused_backward_pass=self.fused, **adamw
        )


@dataclass(frozen=True, repr=False)
class TimelinePage(Page):
    """The page: of a trace's playback, or of all recorded steps with one of them chosen."""

    variant: Variant
    own: Playback | None = None
    language: str | None = None
    name = "timeline_page"
    height = "56rem"

    @property
    def playback(self) -> Playback:
        """What it plays first."""
        return self.own or recorded(self.variant)

    def data(self) -> dict[str, Any]:
        own = self.own
        return {
            "kinds": KINDS,
            "categories": CATEGORIES,
            "lasting": LASTING,
            "shown": SHOWN,
            "options": {} if own else OPTIONS,
            "variant": None if own else {field.name: getattr(self.variant, field.name) for field in fields(Variant)},
            "pictures": PICTURES,
            **({"names": own.names.as_dict(), "steps": {"": own.as_dict()}} if own else _recorded()),
        }

    def chart(self) -> plots.Chart:
        """Curves of the recorded steps with the chosen model and optimizer; of a trace, what each block holds at the peak."""
        return _curves(self.variant) if self.own is None else _blocks(self.own)

    def __repr__(self) -> str:
        return str(self.chart())


def _curves(variant: Variant) -> plots.Chart:
    """Memory of the steps with the model and the optimizer of a variant, with each switch and with both."""
    made = {
        name: recorded(replace(variant, checkpointing=checkpointing, fused=fused))
        for name, checkpointing, fused in (
            ("no switch", False, False),
            ("gradient checkpointing", True, False),
            ("fused backward", False, True),
            ("both", True, True),
        )
    }
    plain, alone, fused, both = (played.peak_bytes for played in made.values())
    unit, scale = ("GiB", GIB) if plain > 2 * GIB else ("MiB", MIB)
    saved = [f"{size / scale:.1f} {unit}" if size > 1e-3 * plain else "nothing" for size in (plain - alone, fused - both)]
    return plots.curves(
        {f"{name}: peak in {_work(played)}": _layers(played) for name, played in made.items()},
        title=f"{variant.optimizer}: checkpointing saves {saved[0]} on its own, {saved[1]} beside a fused backward",
    )


def _layers(played: Playback) -> dict[str, list[int]]:
    """Bytes of each category in each frame."""
    return dict(zip(CATEGORIES, played.held.sum(axis=1).T.tolist(), strict=True))


def _work(played: Playback) -> str:
    """Kind of work at the peak, in words."""
    return played.peak_kind.replace("recompute", "recomputation").replace("optimizer", "the optimizer's step")


def _blocks(played: Playback) -> plots.Chart:
    """What each block of the models holds at the peak, without those that hold next to nothing."""
    held = played.by_block(played.peak)
    held.pop("", None)  # the optimizer's state, and what belongs to no block
    fullest = max((sum(sizes.values()) for sizes in held.values()), default=0)
    held = {name: sizes for name, sizes in held.items() if sum(sizes.values()) > 0.02 * fullest}
    if not held:
        raise ValueError("nothing to show: no block holds anything at the peak")
    by_activations = played.by_category(played.peak)["activations"] > 0.01 * played.peak_bytes
    sizes = {name: parts["activations"] if by_activations else sum(parts.values()) for name, parts in held.items()}
    most = max(sizes, key=lambda name: sizes[name])
    what = " activations" if by_activations else ""
    return plots.bars(held, title=f"At the peak, in {_work(played)}, {most} holds the most{what}: {sized(sizes[most])}")


def timeline(trace: MemoryTrace | None = None, *, language: str | None = None, **variant: Any) -> TimelinePage:
    """Show a training step to drag through: what is alive at every moment, where in the network, and which tensors are the largest.

        with MemoryTrace(network) as trace:
            training_step(sd, batch, recipe, optimizer)
        sdnb.timeline(trace)

    - `trace`: a step of your own. Default: recorded steps of Stable Diffusion 1.5 and `tiny`, to compare
    - `language`: `en` or `zh` (default: the browser's)
    - `variant`: which of the recorded steps comes first, by the fields of `Variant`, such as `checkpointing=True`

    Raises `ValueError` for an unknown language, field or option, for a variant beside a trace, and for a trace without operators.
    """
    check_language(language)
    if trace is not None and variant:
        raise ValueError(f"{', '.join(variant)}: a trace is one step, which cannot be changed afterwards")
    for name, value in variant.items():
        if name not in OPTIONS:
            raise ValueError(f"no setting {name!r}{suggest(name, OPTIONS, aside=True)}: there are {', '.join(OPTIONS)}")
        if value not in OPTIONS[name]:
            raise ValueError(f"{name}={value!r}: there are {', '.join(map(str, OPTIONS[name]))}")
    return TimelinePage(Variant(**variant), None if trace is None else Playback.of(trace), language)


def recorded(variant: Variant) -> Playback:
    """Playback of a recorded step."""
    stored = _recorded()
    return Playback(Names.of(stored["names"]), **stored["steps"][variant.key])


@functools.cache
def _recorded() -> dict[str, dict[str, Any]]:
    return json.loads(FILE.read_text(encoding="utf-8"))
