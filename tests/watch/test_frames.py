"""Frames for the browser: their numbers are those of the curves, and their words say what they show."""

import numpy as np

from sdnb.watch.frames import packed
from sdnb.watch.history import History
from sdnb.watch.panels import Scene, shown

from .test_panels import run


def unpacked(panels, numbers):
    """Curves of a frame as the browser takes them apart: {(panel, name): (x, y)}."""
    values, place, found = np.frombuffer(numbers, "<f4"), 0, {}
    for panel in panels:
        for curve in panel["curves"]:
            x, y = values[place : place + curve["points"]], values[place + curve["points"] : place + 2 * curve["points"]]
            found[panel["title"], curve["name"]] = x, y
            place += 2 * curve["points"]
    assert place == len(values)
    return found


def test_the_numbers_are_those_of_the_curves():
    scene = Scene({"run": run(120, gpu=True, planned=200)}, 16 * 2**30, 7 * 2**30)
    panels, numbers = packed(scene)
    assert [panel["title"] for panel in panels] == [panel.title for panel in shown(scene)]
    assert {panel["end"] for panel in panels} == {199}
    drawn = unpacked(panels, numbers)
    for panel in shown(scene):
        for curve in panel.curves(scene):
            x, y = drawn[panel.title, curve.name]
            np.testing.assert_array_equal(x, curve.x)
            np.testing.assert_allclose(y, curve.y, rtol=1e-6)


def test_a_run_that_has_not_begun_has_panels_without_numbers():
    panels, numbers = packed(Scene({"run": History()}))
    assert [panel["alt"] for panel in panels] == ["Loss: no step yet.", "Learning rate: no step yet."]
    assert numbers == b""


def test_a_long_run_is_sent_no_larger():
    assert len(packed(Scene({"run": run(20_000)}))[1]) < 60_000


def test_a_panel_says_what_it_shows():
    panels, _ = packed(Scene({"run": run(101, loss=lambda i: 1 - i / 200)}))
    texts = {panel["title"]: panel["alt"] for panel in panels}
    assert texts["Loss"].startswith("Loss: each step 0.5, between 0.5 and 1; smoothed ")
    assert texts["Learning rate"] == "Learning rate: 1e-4, between 0 and 1e-4."
    assert "backward 60" in texts["Memory"]
