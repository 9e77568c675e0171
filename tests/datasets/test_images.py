"""Picture files from strangers: opened by the formats that are named, or refused with one error, before anything large is decoded."""

import os
import re
import struct
import tracemalloc
import warnings
from pathlib import Path

import pytest
from PIL import Image, ImageOps

import sdnb
from sdnb.datasets import images
from sdnb.datasets.folders import Picture

from ..conftest import ROOT

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EndProlog\nshowpage\n%%EOF\n"


def bmp(width, height):
    """The header of a BMP file of that size."""
    return struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\n: > '{tmp_path}/started'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    for name in ("cat.png", "cat.eps"):
        (tmp_path / name).write_bytes(EPS)
        with pytest.raises(ValueError, match=rf"{name} does not open as a picture \(it is none of PNG, JPEG"):
            Picture(tmp_path / name, "").open()
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("name", images.FORMATS)
def test_the_formats_that_are_named_open_under_any_name(tmp_path, name):
    Image.init()
    if name not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {name}")
    Image.new("RGB", (32, 16), "white").save(tmp_path / "a.png", name)
    picture = Picture(tmp_path / "a.png", "")
    assert picture.size == picture.open().size == (32, 16)
    assert picture.open().getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["DDS", "PPM", "ICO", "TGA", "PCX", "JPEG2000"])
def test_other_formats_are_refused(tmp_path, name):
    Image.new("RGB", (32, 16), "white").save(tmp_path / "a.png", name)
    with pytest.raises(ValueError, match=r"a\.png does not open as a picture"):
        Picture(tmp_path / "a.png", "").open()


@pytest.mark.parametrize(
    "error",
    [NotImplementedError, RuntimeError("bad"), SyntaxError("bad"), struct.error("bad"), MemoryError, EOFError, KeyError("x"), OSError],
)
def test_whatever_a_decoder_raises_is_one_error(tmp_path, monkeypatch, error):
    for name in ("good", "bad"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    transpose = ImageOps.exif_transpose

    def broken(file):
        if Path(file.filename).stem == "bad":
            raise error
        return transpose(file)

    monkeypatch.setattr(ImageOps, "exif_transpose", broken)
    with pytest.warns(UserWarning, match=r"1 of 2 pictures skipped: .*bad\.png does not open"):
        assert len(sdnb.pictures(tmp_path, on_bad="skip")) == 1


def test_the_size_is_looked_at_before_anything_is_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(bmp(13_000, 13_000))
    picture = Picture(tmp_path / "a.png", "")
    tracemalloc.start()
    try:
        for _ in range(2):
            with warnings.catch_warnings(), pytest.raises(ValueError, match=r"a\.png .*13000 × 13000 are 169,000,000 pixels.*100,000,000"):
                warnings.simplefilter("error")
                picture.open()
        with pytest.raises(ValueError, match="169,000,000 pixels"):
            _ = picture.size
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert Picture(tmp_path / "a.png", "", max_pixels=170_000_000).size == (13_000, 13_000)


def test_a_size_above_that_of_pillow_is_allowed_where_it_is_said(tmp_path):
    (tmp_path / "a.png").write_bytes(bmp(20_000, 20_000))  # Pillow itself refuses it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Picture(tmp_path / "a.png", "", max_pixels=400_000_000).size == (20_000, 20_000)
    limit = Image.MAX_IMAGE_PIXELS
    (tmp_path / "a.png").write_bytes(bmp(9_700, 9_700))  # of this one it warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Picture(tmp_path / "a.png", "").size == (9_700, 9_700)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_jpeg_of_endless_scans_is_not_decoded(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (64, 64), "red").save(path, progressive=True)
    assert Picture(path, "").open().size == (64, 64)
    content = path.read_bytes()
    last = content.rindex(b"\xff\xda")
    path.write_bytes(content[:-2] + content[last:-2] * 1000 + content[-2:])
    with pytest.raises(ValueError, match=r"a\.jpg .*its pixels come in 1,\d+ scans, and at most 100"):
        Picture(path, "").open()


def test_a_huge_file_is_not_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"RIFF\0\0\0\0WEBPVP8 ")
    os.truncate(tmp_path / "a.png", 10_000_000_000)
    with pytest.raises(ValueError, match=r"a\.png .*it has 10,000,000,000 bytes"):
        Picture(tmp_path / "a.png", "").open()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files in folders")
def test_what_is_no_file_is_no_picture_and_is_not_waited_for(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("nowhere.png")
    (tmp_path / "c.png").symlink_to("c.png")
    (tmp_path / "d.png").touch()
    with pytest.warns(UserWarning, match=r"4 of 5 pictures skipped: .*a\.png .*no regular file.*b\.png .*c\.png .*d\.png"):
        assert len(sdnb.pictures(tmp_path, on_bad="skip")) == 1


def test_pictures_of_the_reader_are_opened_in_one_place():
    """Elsewhere only pictures that the package has drawn itself, in memory."""
    opens = re.compile(r"Image\.open\((?!png\)|io\.BytesIO\()|imread\(")
    callers = [path for path in (ROOT / "sdnb").rglob("*.py") if opens.search(path.read_text(encoding="utf-8"))]
    assert [path.name for path in callers] == ["images.py"]
