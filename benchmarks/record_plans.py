"""The explorer's plans in parts: sdnb/planner/parts.json, and how far what it says is from plans.

    python -m benchmarks.record_plans [--progress FILE]     # write the file; goes on after an interruption
    python -m benchmarks.record_plans --compare 60          # plan 60 seeded choices anew, and show the errors

Takes about 32 minutes on two cores, the comparison 3.

A structure's plan is made at two sizes, for a batch of 1 and for larger ones, whose events differ: with one picture some tensors need no
copy. From the two come formulas of every storage (`Formula`), and from these the rows described in `sdnb.planner.parts`. The formulas say
what `plan` says to the byte (but for `PADDED`), reserved bytes included, so nothing else has to be recorded.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdnb.memory import CATEGORIES, SCRATCH
from sdnb.memory.cuda_scratch import Reduction
from sdnb.models import skeletons
from sdnb.planner import allocator, plan, tape, trainers
from sdnb.planner.parts import CELL, FILE, FUSED, OPTIMIZER_FIELDS, OPTIONS, Choice, estimate, optimizer_key, reserved_key, step_key
from sdnb.planner.report import MemoryPlan
from sdnb.system import cards

EXPONENTS = tuple(itertools.product((0, 1), (0, 1, 2), (0, 1)))
"""Of batch, area and rank: what the size of a storage can be proportional to."""
RECORDED = {True: ((1, 1024, 48), (1, 3072, 16)), False: ((2, 1024, 16), (3, 2048, 48))}
"""Batch, side and rank of the two plans that formulas are read from, for a batch of 1 and for more: each of `EXPONENTS` grows by another
factor between them, and no kernel rounds up what it keeps."""
THREADS = cards.CARDS["rtx3090"].resident_threads
"""Threads that run at once on the card that `plan` supposes without one."""
COMPUTED = [EXPONENTS.index(powers) for powers in ((1, 0, 0), (1, 1, 0), (1, 2, 0), (1, 1, 1))]
"""What FLOPs are proportional to; those of a LoRA for the captions are too few to count."""
PER_PICTURE = EXPONENTS.index((1, 1, 0))
"""What scratch memory grows with, beside a constant."""
STATE, TEMPORARIES = CATEGORIES.index("optimizer state"), CATEGORIES.index("temporaries")
BATCHES, SIDES, RANKS = (2, 5, 16), range(256, 1537, 128), (1, 16, 256)
"""Where the rows of a structure are looked for."""
STOPS = tuple(round(16 * 2 ** (step / 1.5)) for step in range(15))
"""Batch × area for which there is a ratio of reserved bytes: 16, one picture of 256 pixels, to beyond 16 of 1536."""
PADDED = 6e-3
"""How far growth may be from a power: the autoencoder pads what it encodes by a pixel, which only counts where diffusers caches nothing."""
ASKED = 24
"""Sizes at which the allocator is asked what it reserves."""


def powers(batch: int, side: int, rank: int) -> np.ndarray:
    """Value of each of `EXPONENTS`."""
    area = side**2 / CELL**2
    return np.array([batch**i * area**j * rank**k for i, j, k in EXPONENTS])


def rounded(sizes: np.ndarray) -> np.ndarray:
    """Bytes as the allocator rounds them."""
    return np.ceil(np.round(sizes, 3) / 512) * 512


@dataclass
class Formula:
    """A plan whose sizes are formulas of batch, area and rank. m events, n storages, E exponents, C categories."""

    plan: MemoryPlan
    flops: tuple[int, ...]
    """FLOPs at both sizes that are recorded."""
    kinds: np.ndarray
    """Index in `EXPONENTS` of each storage's, (n)."""
    factors: np.ndarray
    """Bytes of each storage per unit of that, (n)."""
    scratch: np.ndarray
    """Bytes of each event's scratch memory: constant, and per picture and area, (m, 2); 0 for storages."""
    reductions: dict[_Reduction, tuple[np.ndarray, np.ndarray]]
    """Events of each reduction, and their signs: 1 makes its buffer, -1 frees it."""

    @classmethod
    def of(cls, make: Callable[[int, int, int], MemoryPlan], *, one: bool) -> Formula:
        """Formulas of what `make` plans for a batch, a side and a rank; `one`: for a batch of 1, else for any larger one.

        Raises `ValueError` if the plans at both sizes do not have the same events, or sizes that are no product of powers.
        """
        points = RECORDED[one]
        plans = [make(*point) for point in points]
        first, second = (made._timeline.tape for made in plans)
        numbers = np.maximum(first.storages, SCRATCH)
        if first.names != second.names or not np.array_equal(numbers, np.maximum(second.storages, SCRATCH)):
            raise ValueError(f"not the same events at both of {points}")
        values = np.stack([powers(*point) for point in points])
        kinds, factors = _fitted(np.stack([first.sizes, second.sizes]), values)
        changes = np.stack([first.changes, second.changes]).astype(float)
        slope = (changes[1] - changes[0]) / (values[1] - values[0])[PER_PICTURE]
        scratch = np.stack([changes[0] - slope * values[0][PER_PICTURE], slope], 1) * (numbers < 0)[:, None]
        known = list(tape.REDUCTIONS)
        events: dict[_Reduction, list[tuple[int, int]]] = {}
        for event in np.flatnonzero(first.storages < SCRATCH).tolist():
            scratch[event] = 0
            if changes[:, event].any():
                pair = [known[SCRATCH - 1 - made.storages[event]] for made in (first, second)]
                reduction = _Reduction(_one(pair, "outputs", values), _one(pair, "values", values), pair[0].vector)
                events.setdefault(reduction, []).append((event, int(np.sign(changes[:, event].sum()))))
        reductions = {reduction: tuple(np.array(pairs).T) for reduction, pairs in events.items()}
        return cls(plans[0], tuple(made.flops for made in plans), kinds, factors, scratch, reductions)

    def at(self, batch: int, side: int, rank: int) -> MemoryPlan:
        """The plan at a size."""
        value = powers(batch, side, rank)
        made = self.plan._timeline.tape
        sizes = np.round(self.factors * value[self.kinds]).astype(np.int64)
        signs = np.sign(made.changes)
        changes = np.where(made.storages >= 0, signs * sizes[made.storages], 0)
        changes += np.round(self.scratch @ value[[0, PER_PICTURE]]).astype(np.int64)
        for reduction, (events, sign) in self.reductions.items():
            changes[events] = sign * reduction.scratch_bytes(value)
        timeline = dataclasses.replace(self.plan._timeline, tape=dataclasses.replace(made, sizes=sizes, changes=changes))
        return dataclasses.replace(self.plan, _timeline=timeline)

    def row(self, event: int, batch: int, side: int, rank: int) -> Row:
        """Bytes alive after an event. Buffers of reductions grow as they do around this size."""
        made, value = self.plan._timeline.tape, powers(batch, side, rank)
        alive = np.zeros(len(made.sizes))
        alive[made.base] = 1
        numbers, signs = made.storages[: event + 1], np.sign(made.changes[: event + 1])
        np.add.at(alive, numbers[numbers >= 0], signs[numbers >= 0])
        sums = np.zeros((len(CATEGORIES), len(EXPONENTS)))
        factors = np.where(self.kinds == 0, rounded(self.factors), self.factors)
        np.add.at(sums, (made.categories, self.kinds), alive * factors)
        sums[TEMPORARIES, [0, PER_PICTURE]] += self.scratch[: event + 1].sum(0)
        row = Row({(category, *EXPONENTS[kind]): sums[category, kind] for category, kind in zip(*np.nonzero(sums), strict=True)})
        for reduction, (events, sign) in self.reductions.items():
            if sign[events <= event].sum():
                row += reduction.row(value)
        return row


class Row(dict):
    """Bytes by category and feature, as in parts.json."""

    def __add__(self, other: Row) -> Row:
        return Row({entry: self.get(entry, 0) + other.get(entry, 0) for entry in self | other})

    def __sub__(self, other: Row) -> Row:
        return self + Row({entry: -size for entry, size in other.items()})

    def only(self, category: int) -> Row:
        """The part of one category."""
        return Row({entry: size for entry, size in self.items() if entry[0] == category})

    def pairs(self) -> list:
        """Pairs of category and feature, and bytes, for JSON."""
        return [[[int(number) for number in entry], round(size)] for entry, size in self.items() if round(size)]


class _Reduction(NamedTuple):
    """A `cuda_scratch.Reduction` whose sizes are formulas: pairs of a kind and a factor."""

    outputs: tuple[int, float]
    values: tuple[int, float]
    vector: int

    def scratch_bytes(self, powers: np.ndarray, more: float = 1) -> int:
        """Bytes of its buffer at a size, there with `more` times as many values."""
        outputs, values = (round(factor * powers[kind]) for kind, factor in (self.outputs, self.values))
        return Reduction(outputs, round(more * values), self.vector).scratch_bytes(THREADS)

    def row(self, powers: np.ndarray) -> Row:
        """Bytes as they grow around a size: none for few values, then with the values up to a limit, and far beyond it with them again."""
        size, kind = self.scratch_bytes(powers), self.values[0]
        if self.outputs[0]:  # grows with the rank
            return Row({(TEMPORARIES, *EXPONENTS[self.outputs[0]]): size / powers[self.outputs[0]]})
        steps = [2.0 ** (step / 8) for step in range(-96, 97)]
        sizes = [self.scratch_bytes(powers, more) for more in steps]
        limit = next((last for first, last in zip(sizes, sizes[8:], strict=False) if 0 < last < 1.5 * first), inf)
        if size > 1.5 * limit:
            return Row({(TEMPORARIES, *EXPONENTS[kind]): size / powers[kind]})
        least, first = next((more * powers[kind], bytes_) for more, bytes_ in zip(steps, sizes, strict=True) if bytes_)
        feature = (*EXPONENTS[kind], round(least * limit / first), round(least))
        return Row({(TEMPORARIES, *feature): first / least})


def _one(pair: list[Reduction], name: str, values: np.ndarray) -> tuple[int, float]:
    """Kind and factor of a field of the same reduction at both sizes."""
    (kind,), (factor,) = _fitted(np.array([[getattr(reduction, name)] for reduction in pair]), values)
    return int(kind), float(factor)


def _fitted(sizes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index in `EXPONENTS`, (n), and factor, (n), of sizes at two points, (2, n). `values`: of `EXPONENTS` at both, (2, E)."""
    growth = np.where(sizes[0] > 0, sizes[1] / np.maximum(sizes[0], 1), 1.0)
    ratios = values[1] / values[0]
    kinds = np.abs(np.log(growth[:, None] / ratios)).argmin(1)
    off = np.abs(growth / ratios[kinds] - 1)
    if off.max(initial=0) > PADDED:
        bad = off > PADDED
        raise ValueError(f"sizes that grow as none of EXPONENTS: {set(zip(sizes[0][bad].tolist(), sizes[1][bad].tolist(), strict=True))}")
    return kinds, sizes[1] / values[1][kinds]


def rows_of(formula: Formula, events: np.ndarray, ranks: Sequence[int], *, one: bool) -> list[Row]:
    """Rows of those among `events` at which the most bytes are alive somewhere on the grid."""
    found: dict[str, Row] = {}
    if not len(events):
        return []
    for batch, side, rank in itertools.product((1,) if one else BATCHES, SIDES, ranks):
        totals = formula.at(batch, side, rank)._totals[events]
        row = formula.row(int(events[totals.argmax()]), batch, side, rank)
        found.setdefault(str(row.pairs()), row)
    return list(found.values())


def step_parts(formula: Formula, ranks: Sequence[int], *, one: bool) -> dict:
    """Parts of a training step: `rows` and `mark`. Where the optimizer steps in backward its state is among the rows."""
    timeline = formula.plan._timeline
    events = np.arange(len(timeline.tape.storages))
    if len(timeline.calls) > 2:
        return {"rows": [row.pairs() for row in rows_of(formula, events, ranks, one=one)]}
    (_, _), (start, stop) = timeline.calls
    mark = formula.row(start - 1, *RECORDED[one][0])
    events = events[(events >= timeline.second) & ((events < start) | (events >= stop))]  # the first step has no more
    rows = rows_of(formula, events, ranks, one=one)
    return {"rows": [(row - row.only(STATE)).pairs() for row in rows], "mark": (mark - mark.only(STATE)).pairs()}


def optimizer_parts(formula: Formula, ranks: Sequence[int]) -> dict:
    """Parts of an optimizer: `state`, and `calls`, what its steps add to the mark."""
    calls, state = [], Row()
    for start, stop in formula.plan._timeline.calls:
        mark = formula.row(start - 1, *RECORDED[True][0])
        state = mark.only(STATE)
        calls += [row - (mark - state) for row in rows_of(formula, np.arange(start, stop), ranks, one=True)]
    return {"state": state.pairs(), "calls": [row.pairs() for row in calls]}


def flops(one: Formula, more: Formula) -> list:
    """FLOPs of a step as a row."""
    points = [powers(*point) for point in RECORDED[True] + RECORDED[False]]
    scale = np.max(points, axis=0)[COMPUTED]
    matrix = np.array([point[COMPUTED] / scale for point in points])  # for numbers of like size
    solved = np.linalg.lstsq(matrix, np.array(one.flops + more.flops, dtype=float), rcond=None)[0] / scale
    return Row({(0, *EXPONENTS[kind]): float(size) for kind, size in zip(COMPUTED, solved, strict=True)}).pairs()


def ratios(one: Formula, more: Formula, ranks: Sequence[int]) -> list[int]:
    """Reserved bytes beyond the peak, in thousandths of it, at `STOPS`: the straight pieces between them that fit the sizes asked best."""
    rng = random.Random(0)
    sizes = [(batch, side) for batch in OPTIONS["batch_size"] for side in OPTIONS["resolution"]]
    places = np.log([batch * (side / CELL) ** 2 for batch, side in sizes])
    weights, wanted = [], []
    for place in np.linspace(places.min(), places.max(), ASKED):
        near = np.argsort(abs(places - place), kind="stable")[:4]
        (batch, side), rank = sizes[rng.choice(near.tolist())], rng.choice(ranks)
        made = (one if batch == 1 else more).at(batch, side, rank)
        weights.append(hats(batch, side))
        wanted.append(1000 * (made.reserved_bytes / made.peak_bytes - 1))
    smooth = 0.3 * np.diff(np.eye(len(STOPS)), 2, axis=0)
    solved = np.linalg.lstsq(np.vstack([weights, smooth]), np.append(wanted, np.zeros(len(smooth))), rcond=None)[0]
    return [max(0, round(ratio)) for ratio in solved]


def hats(batch: int, side: int) -> np.ndarray:
    """Weight of each of `STOPS` for a size: 1 at one of them, and between two in logarithms, (S)."""
    place = np.log(batch * (side / CELL) ** 2)
    return np.array([np.interp(place, np.log(STOPS), row) for row in np.eye(len(STOPS))])


@dataclass(frozen=True)
class Structure:
    """Everything of a choice but the sizes and the optimizer."""

    model: str
    method: str
    trainer: str
    precision: str
    attention: str
    recompute: bool

    def choice(self, optimizer: str, batch_size: int = 2, resolution: int = 512, rank: int = 16) -> Choice:
        """A run of this structure."""
        return Choice(**dataclasses.asdict(self), optimizer=optimizer, batch_size=batch_size, resolution=resolution, rank=rank)

    def planned(self, optimizer: str, batch: int, side: int, rank: int) -> MemoryPlan:
        """The plan of such a run."""
        return plan(self.model, self.choice(optimizer, batch, side, rank).recipe(), resolution=side, trainer=self.trainer)

    def refusal(self, optimizer: str) -> str:
        """Why there is no such run, in the words of `plan`; empty if there is."""
        recipe = self.choice(optimizer).recipe()
        other = trainers.OTHERS.get(self.trainer)
        if other and (notes := other.adopt(recipe, skeletons.configurations(self.model)["family"])[1]):
            return ". ".join(notes)
        try:
            self.planned(optimizer, *RECORDED[True][0])
        except ValueError as error:
            return str(error)
        return ""


def structures(models: Sequence[str]) -> Iterator[Structure]:
    """All structures, those of one planned model after each other."""
    options = (OPTIONS[name] for name in ("method", "trainer"))
    for precision, model, method, trainer in itertools.product(OPTIONS["precision"], models, *options):
        for attention in OPTIONS["attention"] if trainer == "sd-scripts" else ("sdpa",):
            for recompute in OPTIONS["recompute"]:
                yield Structure(model, method, trainer, precision, attention, recompute)


def record(structure: Structure) -> dict:
    """What parts.json needs of one structure, with each optimizer."""
    is_lora = structure.method == "lora"
    ranks = RANKS if is_lora else RANKS[1:2]
    made: dict = {"refusals": {}, "steps": {}, "optimizers": {}, "flops": {}, "ratios": {}}
    for optimizer in OPTIONS["optimizer"]:
        choice = structure.choice(optimizer)
        if words := structure.refusal(optimizer):
            made["refusals"][optimizer_key(choice)] = words
            continue
        one, more = (Formula.of(partial(structure.planned, optimizer), one=one) for one in (True, False))
        if step_key(choice) not in made["steps"]:
            made["steps"][step_key(choice)] = [step_parts(one, ranks, one=True), step_parts(more, ranks, one=False)]
            made["flops"][step_key(choice)] = flops(one, more)
        if optimizer != FUSED:
            made["optimizers"][optimizer_key(choice)] = optimizer_parts(one, ranks)
        if reserved_key(choice) not in made["ratios"]:
            made["ratios"][reserved_key(choice)] = ratios(one, more, ranks)
    return made


def write(rows: Sequence[dict]) -> None:
    """Put the recorded structures together in parts.json."""
    tables: dict[str, dict] = {name: {} for name in ("refusals", "steps", "optimizers", "flops", "ratios")}
    for row, (name, table) in itertools.product(rows, tables.items()):
        for entry, value in row[name].items():
            table.setdefault(entry, value)
    everywhere = [*tables["flops"].values()]
    for part in itertools.chain(*tables["steps"].values(), tables["optimizers"].values()):
        everywhere += [row for name in ("rows", "calls") for row in part.get(name, ())] + [
            part[name] for name in ("mark", "state") if name in part
        ]
    features = {feature: number for number, feature in enumerate(sorted({tuple(entry[1:]) for row in everywhere for entry, _ in row}))}
    for row in everywhere:
        row[:] = [n for (category, *feature), size in row for n in (category * len(features) + features[tuple(feature)], size)]
    stored = {
        "features": list(features),
        "categories": CATEGORIES,
        "workspaces": allocator.WORKSPACES["other"],
        "refusals": {entry: f"{words}. {nearest(entry, tables['refusals'])}" for entry, words in tables["refusals"].items()},
        "steps": tables["steps"],
        "optimizers": tables["optimizers"],
        "flops": tables["flops"],
        "stops": STOPS,
        "ratios": tables["ratios"],
    }
    lines = [json.dumps(name) + ": " + _by_line(value) for name, value in stored.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _by_line(value: object) -> str:
    """JSON with a line for each entry of a table."""
    short = partial(json.dumps, separators=(",", ":"))
    if not isinstance(value, dict):
        return short(value)
    return "{\n" + ",\n".join(f" {short(name)}: {short(entry)}" for name, entry in value.items()) + "\n}"


def nearest(entry: str, refused: dict) -> str:
    """The combination that exists and is nearest to one that is refused, in words."""
    names = OPTIMIZER_FIELDS
    words = dict(zip(names, entry.split("/"), strict=True))
    for name in ("optimizer", "precision", "trainer", "method"):
        for value in sorted(OPTIONS[name], key=lambda value: value != "Adafactor"):
            other = words | {name: value}
            if "/".join(other[name] for name in names) not in refused:
                return f"Nearest that runs: {name} {value}"
    return ""


def compare(count: int, seed: int = 0) -> list[dict]:
    """Seeded choices, planned and estimated: a row for each."""
    rng, rows = random.Random(seed), []
    while len(rows) < count:
        choice = Choice(**{name: rng.choice(options) for name, options in OPTIONS.items()})
        estimated = estimate(choice)
        if estimated.refusal:
            continue
        planned = plan(choice.model, choice.recipe(), resolution=choice.resolution, trainer=choice.trainer)
        categories = max(abs(planned.by_category[name] - estimated.categories[name]) for name in planned.by_category)
        rows.append({
            "choice": "/".join(str(value) for value in dataclasses.astuple(choice)),
            "peak": planned.peak_bytes,
            "error": estimated.peak_bytes / planned.peak_bytes - 1,
            "category": categories / planned.peak_bytes,
            "reserved": estimated.reserved_bytes / planned.reserved_bytes - 1,
            "flops": estimated.flops / planned.flops - 1,
        })  # fmt: skip
        print(f"{rows[-1]['error']:9.3%}{rows[-1]['category']:9.3%}{rows[-1]['reserved']:9.2%}  {rows[-1]['choice']}", flush=True)
    return rows


def main() -> None:
    """Record, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--progress", type=Path, default=Path("build/parts.jsonl"), help="what is recorded already")
    parser.add_argument("--models", nargs="+", default=OPTIONS["model"])
    parser.add_argument("--compare", type=int, metavar="N", help="plan N choices anew and show how far the file is from them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.compare:
        rows = compare(options.compare, options.seed)
        for name in ("error", "category", "reserved", "flops"):
            sizes = sorted(abs(row[name]) for row in rows)
            print(f"{name}: median {sizes[len(sizes) // 2]:.4%}, of 90% {sizes[len(sizes) * 9 // 10]:.4%}, most {sizes[-1]:.4%}")
        return
    options.progress.parent.mkdir(exist_ok=True)
    options.progress.touch()
    done = dict(json.loads(line) for line in options.progress.read_text().splitlines())
    for structure in structures(options.models):
        name = "/".join(map(str, dataclasses.astuple(structure)))
        if name not in done:
            start = time.process_time()
            done[name] = record(structure)
            print(f"{name}: {time.process_time() - start:.1f} s", flush=True)
            with options.progress.open("a") as file:
                file.write(json.dumps([name, done[name]]) + "\n")
    write(list(done.values()))
    print(f"{FILE}: {FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
