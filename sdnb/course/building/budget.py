"""Grader of `choose(parts, budget)`: blocks to recompute within a budget, held to a search of every choice.

Memory is counted as in the lesson: a recomputed block keeps nothing, but is whole again while backward is in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from .grading import Fault

Choose = Callable[..., Any]


@dataclass(frozen=True)
class Part:
    """A block as `checkpointing.blocks` lists it, with only what the exercise needs."""

    name: str
    saved_bytes: int
    """Bytes that its forward leaves for backward."""
    recompute_flops: int
    """FLOPs of running it again."""


def peak(parts: Sequence[Part], recomputed: Iterable[str]) -> int:
    """Most bytes of activations alive at once, if the named blocks are recomputed. `parts` are in the order of forward.

    >>> a, b = Part("a", 3, 10), Part("b", 2, 10)
    >>> peak([a, b], []), peak([a, b], ["a"]), peak([a, b], ["b"])
    (5, 3, 5)
    """
    kept = most = 0
    for part in parts:
        most = max(most, kept + part.saved_bytes)
        kept += 0 if part.name in recomputed else part.saved_bytes
    return most


def answers_are_names(choose: Choose) -> None:
    """A list of names of blocks comes back, and the list that it was given is as before. Raises `Fault`."""
    parts = _parts(0)
    given = list(parts)
    chosen = choose(given, (_least(parts) + peak(parts, ())) // 2)
    if given != parts:
        raise Fault("list_changed")
    _names(parts, chosen)


def nothing_to_do(choose: Choose) -> None:
    """Where all activations fit, no block is chosen. Raises `Fault`."""
    parts = _parts(1)
    chosen = _names(parts, choose(list(parts), peak(parts, ())))
    if chosen:
        raise Fault("needless", number=len(chosen))


def too_small_a_budget(choose: Choose) -> None:
    """A budget below what recomputing every block needs raises ValueError. Raises `Fault`."""
    parts = _parts(2)
    try:
        chosen = choose(list(parts), _least(parts) - 1)
    except ValueError:
        return
    raise Fault("not_refused", chosen=_named(chosen))


def free_blocks(choose: Choose) -> None:
    """A block of next to no arithmetic counts as 0 FLOPs, and is the first to take. Raises `Fault`."""
    parts = [Part("first", 20, 60), Part("norm", 40, 0), Part("last", 30, 50)]
    chosen = _fitting(parts, choose(list(parts), 70), 70)
    if chosen != {"norm"}:
        raise Fault("free_block", chosen=_named(chosen))


def many_models(choose: Choose) -> None:
    """The choices fit, every block in them is needed, and together they cost little more than the cheapest ones. Raises `Fault`."""
    extra = []
    for seed in range(12):
        parts = _parts(seed)
        for share in (0.3, 0.6):
            budget = int(_least(parts) + share * (peak(parts, ()) - _least(parts)))
            chosen = _fitting(parts, choose(list(parts), budget), budget)
            for name in sorted(chosen):
                if peak(parts, chosen - {name}) <= budget:
                    raise Fault("superfluous", name=name, chosen=_named(chosen))
            extra.append(_flops(parts, chosen) / cheapest(parts, budget) - 1)
    if (mean := sum(extra) / len(extra)) > 0.25:
        raise Fault("expensive", percent=f"{100 * mean:.0f}")


CHECKS = (answers_are_names, nothing_to_do, many_models, free_blocks, too_small_a_budget)


def cheapest(parts: Sequence[Part], budget: int) -> int:
    """Fewest extra FLOPs with which `parts` fit the budget, of all choices. Raises `ValueError` where none fits."""
    names = [part.name for part in parts]
    choices = (set(chosen) for number in range(len(names) + 1) for chosen in combinations(names, number))
    return min(_flops(parts, chosen) for chosen in choices if peak(parts, chosen) <= budget)


def _parts(seed: int) -> list[Part]:
    """Nine blocks of different sizes; running one again costs between a quarter and four times what its bytes suggest."""
    generator = random.Random(seed)
    sizes = [generator.randrange(2, 40) for _ in range(9)]
    return [Part(f"blocks.{place}", size * 1024, int(size * 1000 * 4 ** generator.uniform(-1, 1))) for place, size in enumerate(sizes)]


def _least(parts: Sequence[Part]) -> int:
    return peak(parts, [part.name for part in parts])


def _flops(parts: Sequence[Part], chosen: Iterable[str]) -> int:
    return sum(part.recompute_flops for part in parts if part.name in chosen)


def _names(parts: Sequence[Part], chosen: Any) -> set[str]:
    """The answer as a set of names. Raises `Fault` for anything else."""
    if isinstance(chosen, str) or not isinstance(chosen, list | tuple | set | frozenset | dict):
        raise Fault("returns", kind=type(chosen).__name__)
    known = {part.name for part in parts}
    if wrong := [name for name in chosen if not isinstance(name, str) or name not in known]:
        raise Fault("no_name", name=repr(wrong[0])[:80])
    return set(chosen)


def _fitting(parts: Sequence[Part], chosen: Any, budget: int) -> set[str]:
    names = _names(parts, chosen)
    if (most := peak(parts, names)) > budget:
        raise Fault("too_much", most=f"{most:,}", budget=f"{budget:,}", chosen=_named(names))
    return names


def _named(chosen: Any) -> str:
    return ", ".join(sorted(map(str, chosen))) if isinstance(chosen, Iterable) and chosen else "[]"
