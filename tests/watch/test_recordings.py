"""Recorded runs: every one says where it is from, and plays as it was."""

import json

import pytest

import sdnb
from sdnb.watch import recordings
from sdnb.watch.history import History


def test_every_recording_says_where_it_is_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a terminal leaves a picture
    assert "tiny-cpu" in recordings.recordings()
    for name, path in recordings.recordings().items():
        content = json.loads(path.read_text(encoding="utf-8"))
        assert content["command"].startswith(("python -m benchmarks.record_run", "python -m benchmarks.gpu")), name
        live = sdnb.replay(name, seconds=0)
        passed = list(live)
        assert len(passed) == len(content["rows"]) > 50
        assert [row["loss"] for row in live.history] == [row["loss"] for row in content["rows"]]
        label = next(text.get_text() for text in live.figure.texts if "Recording" in text.get_text())
        assert (content["machine"].get("gpu") or content["machine"]["cpu"]) in label
        assert content["machine"]["torch"] in live.chart.alt
        assert History.from_records(content["rows"]).peak[0] > 0


def test_an_unknown_recording():
    with pytest.raises(ValueError, match=r"no recording 'tpu': there are .*tiny-cpu"):
        sdnb.replay("tpu")
