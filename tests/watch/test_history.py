"""The history of a run: nothing is read before it is needed, nothing is lost, and what is said of it is right."""

import csv
import math

import numpy as np
import pytest
import torch

from sdnb.memory.gauges import Reading
from sdnb.training import Step
from sdnb.watch.history import FIELDS, History, thinned


def steps(losses, **more):
    return [Step(i, float(loss), 1e-4, 0.1, **more) for i, loss in enumerate(losses)]


class Watched:
    """A number that notices when it is looked at, as a tensor on a GPU would make Python wait."""

    looks = 0

    def __float__(self):
        type(self).looks += 1
        return 0.5


def test_losses_are_read_only_when_the_history_is():
    Watched.looks = 0
    history = History(Step(i, Watched(), 1e-4, 0.1) for i in range(200))
    assert len(history) == 200
    assert Watched.looks == 0
    assert history["loss"].tolist() == [0.5] * 200
    history.records()
    assert Watched.looks == 200  # once each
    for i in range(256):  # a run that is never drawn does not pile tensors up
        history.add(Step(i, Watched(), 1e-4, 0.1))
    assert Watched.looks == 456


def test_a_loss_may_be_a_tensor_and_is_a_number_when_it_is_read():
    late, early = Step(0, torch.tensor(0.25), 1e-4, 0.1), Step(0, 0.25, 1e-4, 0.1)
    assert isinstance(late.loss, float)
    assert late == early
    with pytest.raises(TypeError, match="loss"):
        Step(0)


def test_records_come_back_as_they_went_in(tmp_path):
    history = History()
    peaks = {"forward": 5 * 2**30, "backward": 7 * 2**30 + 1}
    for step in steps([1.0, math.nan, math.inf, 0.5], peaks=peaks, pictures=4, steps=9):
        history.add(step, Reading(process_bytes=123, gpu_percent=97.5))
    records = history.records()
    assert list(records[0]) == list(FIELDS)
    assert records[3]["backward_peak_bytes"] == 7 * 2**30 + 1
    assert records[3]["optimizer_peak_bytes"] is None
    assert math.isnan(records[1]["loss"])
    assert records[2]["loss"] == math.inf
    assert history.planned == 9
    again = History.from_records(records)
    assert np.array_equal(again["smoothed"], history["smoothed"], equal_nan=True)
    assert [row | {"loss": 0} for row in again.records()] == [row | {"loss": 0} for row in records]

    path = history.to_csv(tmp_path / "run.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert rows[3]["loss"] == "0.5"
    assert rows[3]["backward_peak_bytes"] == str(7 * 2**30 + 1)
    assert rows[3]["temperature"] == ""
    assert rows[1]["loss"] == "nan"
    assert [file.name for file in tmp_path.iterdir()] == ["run.csv"]
    read = History.from_csv(path)
    assert [row | {"loss": 0} for row in read.records()] == [row | {"loss": 0} for row in records]
    assert read.not_finite == [1, 2]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="holds no steps"):
        History.from_csv(tmp_path / "other.csv")


def test_what_is_said_of_it():
    history = History(steps([1.0] * 50 + [math.nan, -math.inf] + [0.25] * 50))
    assert history.quarters() == pytest.approx((1.0, 0.25))
    assert history.not_finite == [50, 51]
    assert history.peak is None
    history.add(Step(102, 0.25, 1e-4, 0.1, peaks={"forward": 10, "backward": 30, "optimizer": 20}))
    assert history.peak == (30, "backward", 102)


def test_a_trend_is_named_only_beyond_the_noise():
    assert History(steps([1.0])).trend == ""
    assert History(steps(range(29))).trend == ""
    assert History(steps([0.5] * 60)).trend == "no clear trend"
    assert History(steps(range(1, 41))).trend == "rising"
    assert History(steps([2.0] * 34 + [1.0] * 33 + [0.5] * 33)).trend == "falling"
    rng = np.random.default_rng(0)
    noise = rng.lognormal(-1, 0.5, (100, 200))  # the loss of a step depends much on its noise level
    said = [History(steps(losses[:until])).trend for losses in noise for until in range(40, 201, 10)]
    assert said.count("falling") + said.count("rising") < 0.005 * len(said)
    falls = [History(steps(np.sqrt(losses) * np.geomspace(4, 1, 200))).trend for losses in noise]
    assert falls.count("falling") > 90
    assert "rising" not in falls


def test_smoothing_starts_unbiased_and_looks_back_over_a_tenth():
    assert History(steps([2.0] * 5))["smoothed"].tolist() == pytest.approx([2.0] * 5)
    assert History(steps([1.0, 3.0]))["smoothed"].tolist() == pytest.approx([1.0, 2.0])
    noisy = np.random.default_rng(0).normal(1.0, 0.5, 20_000)
    smooth = History(steps(noisy))["smoothed"]
    assert abs(smooth[-1] - 1.0) < 0.05
    assert smooth[-2000:].std() < 0.1 * smooth[20:200].std()
    falling = History(steps([2.0] * 20 + [1.0] * 20))["smoothed"]
    assert falling[-1] < 1.1  # a short run forgets its beginning


def test_thinning_keeps_every_spike_and_every_gap():
    x, y = np.arange(100_000.0), np.zeros(100_000)
    y[12_345], y[67_890] = 9.0, -9.0
    y[40_000:42_000] = np.nan
    thin_x, thin_y = thinned(x, y, 500, "range")
    assert len(thin_x) == len(thin_y) <= 500
    assert np.nanmax(thin_y) == 9.0
    assert np.nanmin(thin_y) == -9.0
    gap = thin_x[np.isnan(thin_y)]
    assert 40_000 <= gap.min() < 40_500
    assert 41_000 < gap.max() < 42_000
    for how, expected in (("max", 9.0), ("last", 0.0)):
        thin_x, thin_y = thinned(x, y, 500, how)
        assert len(thin_x) <= 500
        assert np.nanmax(thin_y) == expected
    assert np.nanmean(thinned(x, x, 500, "mean")[1]) == pytest.approx(x.mean(), rel=0.01)
    assert thinned(x[:500], y[:500], 500, "range")[1] is not None
    assert len(thinned(x[:500], y[:500], 500, "max")[0]) == 500


def test_a_growing_curve_does_not_wander():
    """What was drawn stays where it was until the groups double."""
    y = np.random.default_rng(0).normal(size=3000)
    x = np.arange(3000.0)
    small, large = thinned(x[:2500], y[:2500], 500, "max"), thinned(x[:2999], y[:2999], 500, "max")
    assert np.array_equal(small[1][:300], large[1][:300])
