"""Picture files: valid ones of many formats, damaged."""

import io
import subprocess

import numpy
import pytest
from hypothesis import strategies as st
from PIL import Image

import sdnb
from sdnb.datasets.folders import Picture

from .doors import fuzz, only


def seeds():
    """Small files of the formats that are read, in several kinds each, and of some that are not."""
    Image.init()
    noise = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype="uint8"))
    exif = Image.Exif()
    exif[274] = 6
    rows = [
        ("PNG", "RGB", {}), ("PNG", "P", {"transparency": 0}), ("PNG", "I;16", {}), ("PNG", "LA", {}), ("PNG", "1", {}),
        ("PNG", "RGBA", {}), ("PNG", "RGB", {"save_all": True, "append_images": [noise]}), ("PNG", "RGB", {"exif": exif}),
        ("JPEG", "RGB", {"exif": exif}), ("JPEG", "CMYK", {}), ("JPEG", "L", {"progressive": True}),
        ("MPO", "RGB", {"save_all": True, "append_images": [noise]}),
        ("WEBP", "RGB", {"exif": exif}), ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"save_all": True, "append_images": [noise]}),
        ("BMP", "RGB", {}), ("BMP", "P", {}), ("GIF", "P", {}), ("GIF", "P", {"save_all": True, "append_images": [noise]}),
        ("TIFF", "RGB", {}), ("TIFF", "RGB", {"compression": "jpeg"}), ("TIFF", "I;16", {"compression": "tiff_lzw"}), ("TIFF", "F", {}),
        ("TIFF", "CMYK", {"compression": "tiff_adobe_deflate"}), ("TIFF", "1", {"compression": "group4"}),
        ("AVIF", "RGB", {"exif": exif}), ("AVIF", "RGBA", {}), ("AVIF", "RGB", {"save_all": True, "append_images": [noise]}),
        ("DDS", "RGBA", {"pixel_format": "DXT5"}), ("EPS", "RGB", {}), ("ICO", "RGBA", {}), ("JPEG2000", "RGB", {}), ("PPM", "RGB", {}),
    ]  # fmt: skip
    for format, mode, options in rows:
        if format in Image.SAVE:
            content = io.BytesIO()
            image = noise.convert("I").convert(mode) if mode == "I;16" else noise.convert(mode)
            image.save(content, format, **options)
            yield content.getvalue()


SEEDS = list(seeds())
NUMBERS = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80", b"\x01\0\0\0", b"\0\0\0\x01"]
"""Numbers at the ends of their ranges, in both orders of bytes."""


@st.composite
def damaged(draw, seeds, pieces=NUMBERS):
    """One of some files with bytes changed, cut off, put in, taken out or said twice."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(content)) | st.integers(0, min(64, len(content))))  # headers are where it matters
        match draw(st.sampled_from(("flip", "piece", "insert", "cut", "drop", "twice", "splice", "random"))):
            case "flip" if place < len(content):
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "piece":
                piece = draw(st.sampled_from(pieces))
                content[place : place + len(piece)] = piece
            case "insert":
                content[place:place] = draw(st.sampled_from(pieces))
            case "cut":
                del content[place:]
            case "drop":
                del content[place : place + draw(st.integers(1, 40))]
            case "twice":
                content[place:place] = content[place : place + draw(st.integers(1, 200))]
            case "splice":
                content[place:] = draw(st.sampled_from(seeds))[place:]
            case "random":
                more = draw(st.binary(max_size=12))
                content[place : place + len(more)] = more
    return bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    """The programs that are started for a picture: none."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args) or 1 / 0)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    yield
    assert started == []


@fuzz(content=damaged(SEEDS), ending=st.sampled_from(["png", "jpg", "webp", "bmp", "tif", "eps", "avif"]), share=10)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_picture(folder, content, ending):
    path = folder / f"a.{ending}"
    path.write_bytes(content)
    picture = Picture(path, "", max_pixels=1_000_000)
    with only(ValueError):
        assert picture.size == picture.open().size
    with only(ValueError):
        picture.pixels(8)


@fuzz(content=damaged(SEEDS))
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_picture_is_skipped(folder, content):
    inner = folder / "two"
    inner.mkdir(exist_ok=True)
    (inner / "a.png").write_bytes(content)
    (inner / "b.png").write_bytes(SEEDS[0])
    with only():
        assert len(sdnb.pictures(inner, on_bad="skip", max_pixels=1_000_000)) in (1, 2)
