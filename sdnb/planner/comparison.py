"""`Comparison`: where the bytes of two plans differ, by category and by module, and by which settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..memory import GIB

if TYPE_CHECKING:
    from .report import MemoryPlan

MODULES = 8
"""Most modules that are printed."""


@dataclass(frozen=True)
class Comparison:
    """Two plans beside each other, largest difference first. Prints as a table."""

    first: MemoryPlan
    second: MemoryPlan

    @property
    def settings(self) -> dict[str, tuple[object, object]]:
        """Settings that differ, in the first plan and in the second; None where one does not have it."""
        both = [
            {"trainer": plan.trainer, "model": plan.model, "size": "×".join(map(str, plan.size)), "weights": plan.dtype}
            | dict(plan.recipe.settings().given)
            for plan in (self.first, self.second)
        ]
        names = dict.fromkeys([*both[0], *both[1]])
        return {name: pair for name in names if (pair := (both[0].get(name), both[1].get(name)))[0] != pair[1]}

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Bytes reserved, those of them that no tensor uses at the peak, and bytes alive at the peak."""
        return {
            "reserved": (self.first.reserved_bytes, self.second.reserved_bytes),
            "reserved and unused": (_unused(self.first), _unused(self.second)),
            "at the peak": (self.first.peak_bytes, self.second.peak_bytes),
        }

    @property
    def categories(self) -> dict[str, tuple[int, int]]:
        """Bytes alive at each plan's own peak by category, the largest difference first."""
        return _beside(self.first.by_category, self.second.by_category)

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Bytes alive at each plan's own peak by module, the largest difference first."""
        return _beside(self.first.by_module, self.second.by_module)

    def as_dict(self) -> dict:
        """The comparison for JSON, and both plans. All sizes are in bytes."""
        tables = {"sizes": self.sizes, "categories": self.categories, "modules": self.modules}
        return {
            "settings": {name: list(pair) for name, pair in self.settings.items()},
            **{name: {row: list(pair) for row, pair in table.items()} for name, table in tables.items()},
            "plans": [self.first.as_dict(), self.second.as_dict()],
        }

    def __str__(self) -> str:
        moments = [f"{plan.peak.phase} of step {plan.peak_step}" for plan in (self.first, self.second)]
        lines = [f"{'GiB':26}{'first':>9}{'second':>9}{'more':>9}", *(_row(name, pair) for name, pair in self.sizes.items())]
        lines += ["", f"by category, each at its own peak: in {moments[0]}, and in {moments[1]}"]
        lines += [_row(name, pair) for name, pair in self.categories.items() if any(pair)]
        changed = {name: pair for name, pair in self.modules.items() if pair[0] != pair[1]}
        lines += ["", "by module" if changed else "every module holds the same"]
        lines += [_row(name, pair) for name, pair in list(changed.items())[:MODULES]]
        if rest := list(changed.values())[MODULES:]:
            lines.append(_row(f"{len(rest)} others", (sum(pair[0] for pair in rest), sum(pair[1] for pair in rest))))
        lines += ["", "settings that differ" if self.settings else "no setting differs"]
        lines += [f"  {name}: {_said(before)} → {_said(after)}" for name, (before, after) in self.settings.items()]
        return "\n".join(lines)


def _unused(plan: MemoryPlan) -> int:
    return plan.reserved_bytes - plan.allocated_bytes


def _beside(first: dict[str, int], second: dict[str, int]) -> dict[str, tuple[int, int]]:
    pairs = {name: (first.get(name, 0), second.get(name, 0)) for name in dict.fromkeys([*first, *second])}
    return dict(sorted(pairs.items(), key=lambda item: -abs(item[1][1] - item[1][0])))


def _row(name: str, pair: tuple[int, int]) -> str:
    before, after = pair
    return f"  {name:24}{before / GIB:9.3f}{after / GIB:9.3f}{(after - before) / GIB:+9.3f}"


def _said(value: object) -> str:
    """A setting's value as its flag would have it."""
    return "not given" if value is None else " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
