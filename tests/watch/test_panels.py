"""The panels: what a frame shows is what a full drawing would show, and a frame costs no more as the run grows."""

import io
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sdnb.memory.gauges import Reading
from sdnb.system import words
from sdnb.training import Step
from sdnb.watch import panels
from sdnb.watch.history import History
from sdnb.watch.panels import Drawing, Scene, encoded, shown

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


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)


def curves(scene, title):
    return {curve.name: curve for panel in shown(scene) if panel.title == title for curve in panel.curves(scene)}


def test_panels_appear_with_their_data():
    assert titles(Scene({"run": History()})) == ["Loss", "Learning rate"]
    assert titles(Scene({"run": run(5)})) == ["Loss", "Learning rate", "Memory", "Speed"]
    assert titles(Scene({"run": run(5, gpu=True)})) == ["Loss", "Learning rate", "Memory", "Speed", "Card"]
    bare = History([Step(0, 0.5, 1e-4, 0.1)])
    assert titles(Scene({"run": bare})) == ["Loss", "Learning rate", "Speed"]


def test_an_encoded_picture_is_the_picture():
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 4), dtype=np.uint8)
    image = Image.open(io.BytesIO(encoded(noise)))
    image.load()  # checks the sums
    assert np.array_equal(np.asarray(image), noise)


@pytest.mark.parametrize("gpu", [False, True])
def test_a_frame_is_what_a_full_drawing_would_show(gpu):
    scene = Scene({"run": History()}, 16 * 2**30 if gpu else None, 7 * 2**30 if gpu else None)
    drawings = {}
    whole = run(160, gpu=gpu, planned=160)
    rows = whole.records()
    for until in (0, 3, 40, 90, 91, 160):
        scene.runs = {"run": History.from_records(rows[:until])}
        scene.runs["run"].planned = 160
        for panel in shown(scene):
            drawing = drawings.setdefault(panel.title, Drawing(panel))
            frame = pixels(drawing.png(scene))
            drawing._background = None
            assert np.array_equal(frame, pixels(drawing.png(scene))), (panel.title, until)
    assert len(drawings) == (5 if gpu else 4)
    colours = {tuple(colour) for colour in pixels(drawings["Loss"].png(scene)).reshape(-1, 3)}
    assert (0x00, 0x72, 0xB2) in colours  # the smoothed loss


def test_a_run_looks_the_same_before_its_first_step():
    """Panels are made ready on an empty run, and keep their looks."""
    for panel in panels.PANELS[:2]:
        before, after = (list(panel.curves(Scene({"run": run(length)}))) for length in (0, 5))
        assert [(c.name, c.colour, c.style) for c in before] == [(c.name, c.colour, c.style) for c in after]


def test_scales_seldom_move():
    """Drawing a panel from scratch takes ten times as long as moving its lines."""
    scene = Scene({"run": History()})
    rows = run(1000, planned=1000).records()
    views, anew = {}, 0
    for until in range(0, 1000, 10):
        scene.runs = {"run": History.from_records(rows[:until])}
        scene.runs["run"].planned = 1000
        for panel in shown(scene):
            view = views.setdefault(panel.title, panels.View(panel, Figure().subplots(), moving=True))
            anew += view.update(scene)
    assert anew < 40  # of 400


def test_everything_stays_in_view():
    for length in (1, 2, 7, 300):
        scene = Scene({"run": run(length, gpu=True)}, 80 * 2**30, 12 * 2**30)
        for panel in shown(scene):
            view = panels.View(panel, Figure().subplots(), moving=True)
            view.update(scene)
            top, right = view.axes.get_ylim()[1], view.axes.get_xlim()[1]
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
    Drawing(shown(scene)[0]).png(scene)
    all_bad = Scene({"run": run(5, loss=lambda i: math.nan)})
    for panel in shown(all_bad):
        Drawing(panel).png(all_bad)


def test_runs_over_each_other_differ_in_colour_and_line():
    scene = Scene({"clip 0": run(30), "clip 1.0": run(20)})
    drawn = curves(scene, "Loss")
    assert list(drawn) == ["clip 0", "clip 1.0"]
    assert drawn["clip 0"].colour != drawn["clip 1.0"].colour
    assert drawn["clip 0"].style != drawn["clip 1.0"].style
    named = [panel.title for panel in shown(scene) if any(curve.name for curve in panel.curves(scene))]
    assert named == ["Loss"]  # once is enough
    for panel in shown(scene):
        view = panels.View(panel, Figure().subplots(), moving=False)
        view.update(scene)
        assert (view.axes.get_legend() is None) == (panel.title != "Loss")
    scene = Scene({f"{clip}, seed {seed}": run(5 + seed) for clip in ("clip 0", "clip 1.0") for seed in range(3)})
    looks = [(curve.name, curve.colour, curve.style) for curve in shown(scene)[0].curves(scene)]
    assert len(looks) == 6
    assert len(set(looks)) == 2
    view = panels.View(shown(scene)[0], Figure().subplots(), moving=True)
    view.update(scene)
    assert [text.get_text() for text in view.axes.get_legend().get_texts()] == ["clip 0", "clip 1.0"]


def test_where_few_steps_were_counted_only_those_are_marked():
    drawn = curves(Scene({"run": run(150)}), "Memory")["backward"]
    assert drawn.x.tolist() == [1, 101, 149]
    assert drawn.y.tolist() == [60, 60, 60]
    assert drawn.marked == 2


@pytest.mark.parametrize(("rate", "text"), [(1e-4, "1e-4"), (1.25e-3, "1.25e-3"), (2.04e-5, "2.04e-5"), (0, "0"), (1.0, "1e0")])
def test_rates_as_people_write_them(rate, text):
    assert words.short(rate) == text
