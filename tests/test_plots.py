"""The figures: drawn, described, and refused when there is nothing to draw."""

import io
from types import SimpleNamespace

import pytest
from PIL import Image

from sdnb import plots
from sdnb.training import Step


def test_a_grid_shows_itself_with_its_alternative():
    white, red = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "red")
    chart = plots.grid({"before": [white, red], "after": [red]}, titles=["a", "b"], title="Red wins")
    png, metadata = chart._repr_png_()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    assert image.width > 200
    assert (255, 0, 0) in {colour for _, colour in image.getcolors(1 << 24)}
    assert metadata == {"alt": repr(chart)} == {"alt": "Red wins. Rows: before, after. Columns: a, b."}


def test_a_history_states_its_finding(tmp_path):
    steps = [Step(index=i, loss=1.0 if i < 50 else 0.25, learning_rate=min(i, 10) * 1e-5, seconds=0.1) for i in range(100)]
    chart = plots.history(steps)
    assert "0.250 over the last, 100 steps" in chart.alt
    assert "reaches 0.0001" in chart.alt
    chart.save(tmp_path / "history.svg")
    assert "learning rate" in (tmp_path / "history.svg").read_text() or (tmp_path / "history.svg").stat().st_size > 1000


def test_one_step_is_enough_and_none_is_refused():
    plots.history([Step(0, 0.5, 1e-4, 0.1)])._repr_png_()
    with pytest.raises(ValueError, match="no steps"):
        plots.history([])
    with pytest.raises(ValueError, match="no pictures"):
        plots.grid({"none": []})


def test_smoothing_starts_unbiased():
    assert plots.smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    assert plots.smoothed([]) == []


def test_charts_need_only_the_fields_they_draw():
    plots.history([SimpleNamespace(index=0, loss=1.0, learning_rate=0.0)])
