"""The reader's copies, and where runs go."""

from pathlib import Path

import pytest

from sdnb.course import lessons


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
