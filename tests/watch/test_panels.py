"""The panels: what each shows, and that its curves hold no more points as the run grows."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from sdnb.memory.gauges import Reading
from sdnb.system import words
from sdnb.training import Step
from sdnb.watch import panels
from sdnb.watch.history import History
from sdnb.watch.panels import Scene, shown

GPU = dict(allocated_bytes=4 * 2**30, reserved_bytes=9 * 2**30)


def run(length, *, gpu=False, planned=None, loss=lambda i: 1 / (1 + i / 50)):
    history = History()
    for i in range(length):
        peaks = {"forward": 5 * 2**30, "backward": 7 * 2**30, "optimizer": 6 * 2**30} if gpu else None
        if not gpu and i % 100 == 1:
            peaks = {"forward": 50 * 2**20, "backward": 60 * 2**20, "optimizer": 55 * 2**20}
        reading = Reading(700 * 2**20 + i * 2**16, *((97.0, 9 * 2**30, 80.0, 300.0, 61.0) if gpu else ()))
        step = Step(i, loss(i), 1e-4 * min(i, 100) / 100, 0.1, peaks=peaks, pictures=4, steps=planned, **(GPU if gpu else {}))
        history.add(step, reading)
    return history


def titles(scene):
    return [panel.title for panel in shown(scene)]


def curves(scene, title):
    return {curve.name: curve for panel in shown(scene) if panel.title == title for curve in panel.curves(scene)}


def test_panels_appear_with_their_data():
    assert titles(Scene({"run": History()})) == ["Loss", "Learning rate"]
    assert titles(Scene({"run": run(5)})) == ["Loss", "Learning rate", "Memory", "Speed", "Computer's memory"]
    whole = Scene({"run": run(5, gpu=True)})
    assert titles(whole) == ["Loss", "Learning rate", "Memory", "Speed", "Card", "Computer's memory"]
    assert [panel.title for panel in shown(whole) if not panel.more] == ["Loss", "Learning rate", "Memory", "Speed"]
    bare = History([Step(0, 0.5, 1e-4, 0.1)])
    assert titles(Scene({"run": bare})) == ["Loss", "Learning rate", "Speed"]


def test_a_run_looks_the_same_before_its_first_step():
    """Panels are made ready on an empty run, and keep their looks."""
    for panel in panels.PANELS[:2]:
        before, after = (list(panel.curves(Scene({"run": run(length)}))) for length in (0, 5))
        assert [(c.name, c.colour, c.style) for c in before] == [(c.name, c.colour, c.style) for c in after]


def test_everything_stays_in_view():
    for length in (1, 2, 7, 300):
        scene = Scene({"run": run(length, gpu=True)}, 80 * 2**30, 12 * 2**30)
        for panel in shown(scene):
            axes = Figure().subplots()
            panels.draw(panel, scene, axes)
            top, right = axes.get_ylim()[1], axes.get_xlim()[1]
            for curve in panel.curves(scene):
                if curve.counts and len(curve.y):
                    assert np.nanmax(curve.y) <= top, (panel.title, curve.name)
                    assert curve.x.max() <= right
    assert top < 1000


def test_a_card_many_times_too_large_does_not_flatten_the_rest():
    near = curves(Scene({"run": run(5, gpu=True)}, 16 * 2**30), "Memory")
    far = curves(Scene({"run": run(5, gpu=True)}, 140 * 2**30), "Memory")
    assert near["the card"].counts
    assert list(far) == [name for name in near if name != "the card"]  # a name without a line to see would be a riddle


def test_lines_do_not_grow_with_the_run():
    scene = Scene({"run": run(20_000, gpu=True)}, 16 * 2**30, 7 * 2**30)
    for panel in shown(scene):
        for curve in panel.curves(scene):
            assert len(curve.x) == len(curve.y) <= panels.POINTS, (panel.title, curve.name)


def test_losses_that_are_no_numbers_are_gaps_with_a_mark():
    scene = Scene({"run": run(50, loss=lambda i: {20: math.nan, 30: math.inf}.get(i, 0.5))})
    drawn = curves(scene, "Loss")
    assert np.flatnonzero(np.isnan(drawn["each step"].y)).tolist() == [20, 30]
    assert drawn["no number"].x.tolist() == [20, 30]
    assert np.isnan(drawn["smoothed"].y[20])
    all_bad = Scene({"run": run(5, loss=lambda i: math.nan)})
    for panel in shown(all_bad):
        panels.draw(panel, all_bad, Figure().subplots())


def test_runs_over_each_other_differ_in_colour_and_line():
    scene = Scene({"clip 0": run(30), "clip 1.0": run(20)})
    drawn = curves(scene, "Loss")
    assert list(drawn) == ["clip 0", "clip 1.0"]
    assert drawn["clip 0"].colour != drawn["clip 1.0"].colour
    assert drawn["clip 0"].style != drawn["clip 1.0"].style
    named = [panel.title for panel in shown(scene) if any(curve.name for curve in panel.curves(scene))]
    assert named == ["Loss"]  # once is enough
    for panel in shown(scene):
        axes = Figure().subplots()
        panels.draw(panel, scene, axes)
        assert (axes.get_legend() is None) == (panel.title != "Loss")
    scene = Scene({f"{clip}, seed {seed}": run(5 + seed) for clip in ("clip 0", "clip 1.0") for seed in range(3)})
    looks = [(curve.name, curve.colour, curve.style) for curve in shown(scene)[0].curves(scene)]
    assert len(looks) == 6
    assert len(set(looks)) == 2
    axes = Figure().subplots()
    panels.draw(shown(scene)[0], scene, axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["clip 0", "clip 1.0"]


def test_where_few_steps_were_counted_only_those_are_marked():
    drawn = curves(Scene({"run": run(150)}), "Memory")["backward"]
    assert drawn.x.tolist() == [1, 101, 149]
    assert drawn.y.tolist() == [60, 60, 60]
    assert drawn.marked == 2


@pytest.mark.parametrize(("rate", "text"), [(1e-4, "1e-4"), (1.25e-3, "1.25e-3"), (2.04e-5, "2.04e-5"), (0, "0"), (1.0, "1e0")])
def test_rates_as_people_write_them(rate, text):
    assert words.short(rate) == text
