"""A file is whole or not there at all, whatever happens while it is written."""

import errno
import os

import pytest

from sdnb.system import files


def test_a_file_is_written_with_its_folder(tmp_path):
    path = files.write(tmp_path / "new" / "folder" / "a.txt", "ü")
    assert path.read_bytes() == "ü".encode()
    assert files.write(path, b"\x00") == path
    assert path.read_bytes() == b"\x00"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_what_fails_leaves_the_old_file(tmp_path, monkeypatch, stage):
    path = files.write(tmp_path / "a.txt", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full) if stage == "fsync" else monkeypatch.setattr(type(path), "replace", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows opens no folders")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_drive_that_syncs_no_folders_will_do(tmp_path, monkeypatch, number):
    path = files.write(tmp_path / "a.txt", "a")

    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    files.sync(tmp_path)
    with pytest.raises(OSError, match=os.strerror(number)):
        files.sync(path)


def test_removing_takes_files_folders_and_what_is_not_there(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name in ("folder", "file", "nothing"):
        files.remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_dead_processes_left_is_swept_and_nothing_else(tmp_path, tiny):
    kept = [f".a.txt.{os.getpid()}.partial", ".a.txt.partial", ".b.txt.99999999.partial", "a.txt.99999999.partial", ".mine.partial"]
    for name in [*kept, ".a.txt.99999999.partial"]:
        (tmp_path / name).touch()
    files.sweep(tmp_path, r"a\.txt", seconds=3600)
    assert len(list(tmp_path.iterdir())) == 6
    files.sweep(tmp_path, r"a\.txt")
    files.sweep(tmp_path / "not there", "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    (tmp_path / ".whole.99999999.partial" / "whole").mkdir(parents=True)  # of a save that was killed
    (tmp_path / "whole.partial").mkdir()  # a stranger's
    tiny.save(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "whole", "whole.partial"])


def test_a_checksum_is_of_every_bit(tmp_path):
    (tmp_path / "a").write_bytes(b"123456789")
    assert files.checksum(tmp_path / "a") == files.checksum(b"123456789") == "cbf43926"
    assert files.checksum(b"123456788") != "cbf43926"
