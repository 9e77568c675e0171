"""The reader's copies, and where runs go."""

from dataclasses import replace
from pathlib import Path

import pytest

from sdnb.course import lessons


def test_copies_are_the_readers(tmp_path):
    copies = lessons.unpack(tmp_path / "course")
    names = [copy.name for copy in copies.pages]
    assert names == [*(lesson.name for lesson in lessons.notebooks()), "glossary.md", "record_your_gpu.ipynb"]
    assert copies.renewed == copies.yours == copies.behind == []
    copies.pages[0].write_text("my work", encoding="utf-8")
    copies.pages[1].unlink()
    again = lessons.unpack(tmp_path / "course")
    assert again == replace(copies, yours=copies.pages[:1])
    assert copies.pages[0].read_text(encoding="utf-8") == "my work"
    assert copies.pages[1].read_bytes() == lessons.notebooks()[1].read_bytes()


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of three pages, whose text a test may change."""
    pages = [tmp_path / "notebooks" / name for name in ("00_a.ipynb", "01_b.ipynb", "glossary.md")]
    pages[0].parent.mkdir()
    for page in pages:
        page.write_text("old", encoding="utf-8")
    monkeypatch.setattr(lessons, "notebooks", lambda language="en": pages[:2])
    monkeypatch.setattr(lessons, "pages", lambda language="en": pages)
    return pages


@pytest.mark.parametrize("record", [None, "", "[]", "[" * 99999])
def test_newer_pages_replace_only_what_nobody_changed(course, tmp_path, record):
    first, second, glossary = lessons.unpack(tmp_path / "mine").pages
    second.write_text("my work", encoding="utf-8")
    for page in course[:2]:
        page.write_text("new", encoding="utf-8")
    if record is not None:  # lost, or from before there was one: then nothing is known to be unchanged
        (tmp_path / "mine" / lessons.RECORD).write_text(record, encoding="utf-8")
    copies = lessons.unpack(tmp_path / "mine")
    assert (copies.renewed, copies.yours, copies.behind) == (([first], [second], [second]) if record is None else ([], [first, second], []))
    assert [copy.read_text(encoding="utf-8") for copy in (first, second, glossary)] == [
        "new" if record is None else "old", "my work", "old",
    ]  # fmt: skip
    second.rename(second.with_name("01_mine.ipynb"))
    assert lessons.unpack(tmp_path / "mine").yours == ([] if record is None else [first])
    assert second.read_text(encoding="utf-8") == "new"


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
