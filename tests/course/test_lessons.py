"""The reader's copies, where runs go, and sliders."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from sdnb import plots
from sdnb.course import lessons
from sdnb.watch import frontends


def test_copies_are_the_readers(tmp_path):
    copies = lessons.unpack(tmp_path / "course")
    assert [copy.name for copy in copies] == [*(lesson.name for lesson in lessons.notebooks()), "glossary.md", "record_your_gpu.ipynb"]
    assert lessons.changed(tmp_path / "course") == []
    copies[0].write_text("my work", encoding="utf-8")
    copies[1].unlink()
    assert lessons.unpack(tmp_path / "course") == copies
    assert copies[0].read_text(encoding="utf-8") == "my work"
    assert lessons.changed(tmp_path / "course") == copies[:1]


def test_a_run_goes_to_drive_where_that_is_mounted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lessons.run_folder("tiny", "emoji-ink") == Path("runs/tiny-emoji-ink")
    assert lessons.run_folder("owner/a-model", tmp_path / "my pictures") == Path("runs/a-model-my pictures")
    assert lessons.run_folder(".") == Path("runs") / tmp_path.name
    monkeypatch.setattr(lessons, "DRIVE", tmp_path / "MyDrive")
    assert lessons.run_folder("tiny") == Path("runs/tiny")  # not mounted
    lessons.DRIVE.mkdir()
    assert lessons.run_folder("tiny", "emoji-ink/") == tmp_path / "MyDrive" / "sdnb-runs" / "tiny-emoji-ink"
    assert list(lessons.DRIVE.iterdir()) == []  # a place, made by whoever writes there


@pytest.mark.parametrize("names", [(), ("tiny", "/")])
def test_a_run_without_a_name_is_refused(names):
    with pytest.raises(ValueError, match="give each a name"):
        lessons.run_folder(*names)


def test_exploring_without_a_notebook_draws_the_first_choices():
    drawn = []
    assert lessons.explore(lambda **chosen: drawn.append(chosen) or "chart", batch=(1, 2), precision=("fp32", "bf16")) == "chart"
    assert drawn == [{"batch": 1, "precision": "fp32"}]


def test_exploring_in_a_notebook_redraws_what_was_chosen_and_keeps_it(monkeypatch):
    drawn = []

    def draw(batch):
        drawn.append(batch)
        return plots.grid({"a": [Image.new("RGB", (8, 8), "red")]}, title=f"batch {batch}")

    monkeypatch.setattr(frontends, "find", frontends.Notebook)
    controls, view = lessons.explore(draw, batch=(1, 2)).children
    before = view.value
    for value in (2, 1, 2):
        controls.children[0].value = value
    assert view.value != before
    assert drawn == [1, 2]


def test_what_is_explored_has_a_text_alternative(monkeypatch):
    def draw(batch):
        return plots.grid({"a": [Image.new("RGB", (8, 8), "red")]}, title=f'batch {batch}, "quoted" & <marked>')

    monkeypatch.setattr(frontends, "find", frontends.Notebook)
    controls, view = lessons.explore(draw, batch=(1, 2)).children
    for value in (2, 1):
        controls.children[0].value = value
        (image,) = ElementTree.fromstring(view.value.replace('100%">', '100%"/>')).iter("img")
        assert image.get("alt") == draw(value).alt
        assert image.get("src").startswith("data:image/png;base64,")
