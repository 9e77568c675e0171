"""`join`, on the example that the module opens with."""

import numpy as np

from sdnb.memory import CATEGORIES, PHASES
from sdnb.planner.tape import OptimizerSteps, Tape, join

KINDS = {"w": "weights", "a": "activations", "g": "gradients", "m": "optimizer state", "t": "temporaries"}


def tape(sizes, events, base="", marks=()):
    """A tape of storages by name; each event is such a name, with a minus where it is freed, or `kernel` for scratch."""
    names = list(sizes)
    storages, changes = [], []
    for event in events.split():
        name = event.lstrip("-")
        storages.append(names.index(name) if name in sizes else -1)
        changes.append(sizes.get(name, 1) * (-1 if event.startswith("-") else 1))
    return Tape(
        sizes=np.array(list(sizes.values())),
        categories=np.array([CATEGORIES.index(KINDS[name[0]]) for name in names]),
        owners=names,
        base=np.array([names.index(name) for name in base], dtype=int),
        storages=np.array(storages),
        changes=np.array(changes),
        phases=np.full(len(storages), PHASES.index("forward")),
        names=events.split(),
        marks=list(marks),
    )


def alive(timeline):
    there = timeline.tape.sizes[timeline.tape.base].sum()
    return (there + np.cumsum(timeline.tape.changes)).tolist()


MOMENTUM = OptimizerSteps(tape({"m": 8, "t": 8}, "m t -t"), 1)


def test_the_second_step_finds_the_state_there():
    step = tape({"w": 8, "a": 20, "g": 8}, "a g -a -g", base="w", marks=[(3, (0,))])
    timeline = join(step, [MOMENTUM])
    assert alive(timeline) == [28, 36, 16, 24, 16, 36, 44, 24, 32, 24, 16]
    assert timeline.second == 5
    assert timeline.tape.names == "a g -a m -g a g -a t -t -g".split()
    first, second = timeline.tape.storages[0], timeline.tape.storages[5]
    assert first != second
    assert [timeline.tape.owners[storage] for storage in (first, second)] == ["a", "a"]


def test_what_the_step_makes_for_good_is_made_once():
    step = tape({"w": 8, "a": 20, "wb": 5}, "wb a kernel -kernel -a", base="w", marks=[(5, (0,))])
    timeline = join(step, [MOMENTUM])
    assert timeline.tape.names == "wb a kernel -kernel -a m a kernel -kernel -a t -t".split()
    assert alive(timeline)[-1] == 8 + 5 + 8


def test_a_fused_backward_steps_each_parameter_at_its_own_mark():
    step = tape({"w": 8, "a": 20, "g1": 8, "g2": 8}, "a g1 -g1 g2 -g2 -a", base="w", marks=[(2, (0,)), (4, (1,)), (6, ())])
    timeline = join(step, [MOMENTUM, MOMENTUM])
    assert timeline.tape.names == "a g1 m -g1 g2 m -g2 -a a g1 t -t -g1 g2 t -t -g2 -a".split()
    states = [storage for storage, name in zip(timeline.tape.storages, timeline.tape.names, strict=True) if name == "m"]
    assert len(set(states)) == 2
    assert max(alive(timeline)) == 8 + 2 * 8 + 20 + 8 + 8
