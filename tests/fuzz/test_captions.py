"""Captions and `metadata.jsonl`: valid ones, damaged; nothing comes from outside the folder, and a caption is a text."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st
from PIL import Image

import sdnb

from .doors import fuzz, only
from .test_pictures import damaged

SECRET = "root:x:0:0:secret"
TEXTS = [
    "a cat", "", "猫, 🐈", "x" * 200_000, "\0", "\ud800", "\x1b[2J", "a\u2028b", ["x"], {"a": 1}, None, True, 0, 1e999,
    float("nan"), 10**400,
]  # fmt: skip
NAMES = [
    "a.png", "sub/b.png", "./a.png", "sub/../a.png", "../outside/p.png", "sub/../../outside/p.png", "{folder}/a.png",
    "{folder}/../outside/p.png", "/etc/passwd", "link.png", "linked/p.png", "pipe.png", "loop.png", "broken.png", "bad.png", "sub", "", ".",
    "..", "a\0.png", "x" * 5000, "é.png", "\ud800.png", "CON", "a.png/", "a.png/b.png", "metadata.jsonl", None, 3, ["a.png"], "\x1b[2J.png",
]  # fmt: skip
PIECES = [
    b'{"', b'"}', b'{"text":' * 99_999, b"\\ud800", b"\n", b"\n" + b"[" * 99_999, b"\0", b"\xff", b"\xef\xbb\xbf", b"NaN", b"9" * 5000,
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The folder of a dataset, and one beside it that is no part of it."""
    root = tmp_path_factory.mktemp("places")
    for name in ("own/sub", "outside"):
        (root / name).mkdir(parents=True)
    for name in ("own/a.png", "own/sub/b.png", "outside/p.png"):
        Image.new("RGB", (4, 4)).save(root / name)
    (root / "outside" / "p.txt").write_text(SECRET)
    (root / "own" / "bad.png").write_bytes(b"no picture")
    if os.name != "nt":
        (root / "own" / "link.png").symlink_to("../outside/p.png")
        (root / "own" / "linked").symlink_to("../outside")
        (root / "own" / "loop.png").symlink_to("loop.png")
        (root / "own" / "broken.png").symlink_to("nowhere")
        os.mkfifo(root / "own" / "pipe.png")
    return root


def check(folder, **settings):
    """Read a folder: only the promised errors come, short and printable, and what is read is a text from inside."""
    try:
        with only():
            found = sdnb.pictures(folder, **settings)
    except (ValueError, FileNotFoundError) as error:
        assert str(error).strip()
        assert len(str(error)) < 5000
        assert SECRET not in str(error)
        str(error).encode()
        return
    for picture in found:
        assert isinstance(picture.caption, str)
        assert SECRET not in picture.caption
        picture.caption.encode()
        assert Path(os.path.realpath(picture.path)).is_relative_to(os.path.realpath(folder))


def lines(folder, rows):
    return "\n".join(json.dumps(row) for row in rows).replace("{folder}", str(folder)).encode()


ROWS = st.lists(st.fixed_dictionaries({"file_name": st.sampled_from(NAMES)}, optional={"text": st.sampled_from(TEXTS)}), max_size=5)


@fuzz(rows=ROWS, way=st.sampled_from(["raise", "skip"]), share=2)
@pytest.mark.filterwarnings("ignore")
def test_rows_of_metadata(places, rows, way):
    (places / "own" / "metadata.jsonl").write_bytes(lines(places / "own", rows))
    check(places / "own", on_bad=way)


VALID = lines(
    Path(), [{"file_name": "a.png", "text": "a cat"}, {"file_name": "sub/b.png", "text": "a dog \ud83d\ude00"}, {"file_name": "a.png"}]
)


@fuzz(content=damaged([VALID, VALID.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + VALID], PIECES), share=2)
@pytest.mark.filterwarnings("ignore")
def test_damaged_metadata(places, content):
    (places / "own" / "metadata.jsonl").write_bytes(content)
    check(places / "own")


FOLDERS = ["", "3_cat", "0_cat", "999999999999_cat", "٣_cat", "1_" + "x" * 250, "1_\udcff", "_", "1_a\nb"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither such files nor such names")
@fuzz(
    content=damaged([b"a cat, sitting", "猫".encode(), b"\xef\xbb\xbfone\r\ntwo"], [b"\0", b"\xff", b"\xed\xa0\x80", b"x" * 200_000]),
    kind=st.sampled_from(["file", "file", "link out", "link in", "loop", "pipe", "folder", "device", "huge"]),
    inner=st.sampled_from(FOLDERS),
    ending=st.sampled_from(["txt", "caption"]),
    way=st.sampled_from(["raise", "skip"]),
    share=3,
)
@pytest.mark.filterwarnings("ignore")
def test_captions_beside_pictures(places, content, kind, inner, ending, way):
    root = places / "beside"
    shutil.rmtree(root, ignore_errors=True)
    (root / inner).mkdir(parents=True)
    shutil.copy(places / "own" / "a.png", root / inner / "a.png")
    caption = root / inner / f"a.{ending}"
    match kind:
        case "file":
            caption.write_bytes(content)
        case "link out":
            caption.symlink_to(places / "outside" / "p.txt")
        case "link in":
            (root / "words").write_bytes(content)
            caption.symlink_to(root / "words")
        case "loop":
            caption.symlink_to(caption.name)
        case "pipe":
            os.mkfifo(caption)
        case "folder":
            caption.mkdir()
        case "device":
            caption.symlink_to("/dev/zero")
        case "huge":
            caption.write_bytes(content)
            os.truncate(caption, 10**10)
    check(root, on_bad=way)
