"""sd-scripts' dataset file: a valid one, damaged."""

import json

import pytest
from hypothesis import strategies as st
from PIL import Image

import sdnb
from sdnb.datasets import buckets
from sdnb.datasets.cache import check
from sdnb.datasets.config import KINDS

from .doors import fuzz, only
from .test_pictures import damaged

VALUES = [
    "true", "false", "0", "1", "2", "64", "-1", "1_000_000_000_000", "9223372036854775807", "0x" + "F" * 999, "1" * 5000, "1.5", "nan",
    "inf", "-inf", "1e999", '""', '"x"', '".txt"', '"/../a.txt"', '"\\u0000"', '"\\ud800"', '"' + "x" * 200_000 + '"',
    "'~nobody-of-that-name'", "[]", "[64, 32]", "[0, 64]", "[64]", "[64, 64.5]", "[1_000_000_000, 64]", "[true, 64]", "[" * 9999,
    "[" + "1," * 9999 + "]", "{}", "{a = 1}", "2024-01-01", "07:32:00",
]  # fmt: skip
NAMES = [*KINDS, "general", "datasets", "subsets", "image_dir.more", "more" + ".a" * 9999, '"\\u001b[2J"', "num_repeats", "x" * 9999]
PIECES = [b"[" * 9999, b"\n[[datasets]]\n", b'"', b"'''", b"\\", b"\0", b"\xff"]
HEADS = ["[general]", "[[datasets]]", "[[datasets.subsets]]", "[datasets]", "[[general]]", "[datasets.subsets]", "[a" + ".a" * 9999]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    return folder


def valid(folder):
    path = json.dumps(str(folder))
    return (
        "[general]\nresolution = 64\nenable_bucket = true\nmin_bucket_reso = 32\nmax_bucket_reso = 128\nbucket_reso_steps = 8\n"
        f"[[datasets]]\nbatch_size = 2\n[[datasets.subsets]]\nimage_dir = {path}\nnum_repeats = 2\nclass_tokens = 'cat'\n"
        f"[[datasets]]\nbatch_size = 2\n[[datasets.subsets]]\nimage_dir = {path}\ncaption_extension = '.txt'\nis_reg = true\n"
    )


def read(path):
    """Read a dataset file, and what it says about the run as far as the sizes."""
    with only(ValueError, FileNotFoundError):
        try:
            found = sdnb.pictures(path)
            recipe = found.recipe(sdnb.Recipe())
            check(recipe)
            _ = buckets.of(recipe, resolution=64, multiple=8).sizes
        except Exception as error:
            assert len(str(error)) < 5000
            assert str(error).isprintable()
            raise


@fuzz(content=st.data(), share=2)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_dataset_file(folder, content):
    path = folder / "dataset.toml"
    path.write_bytes(
        content.draw(damaged([valid(folder).encode()], [b"[" * 9999, b"\n[[datasets]]\n", b'"', b"'''", b"\\", b"\0", b"\xff"]))
    )
    read(path)


CHANGE = st.one_of(
    st.tuples(st.just("value"), st.sampled_from(VALUES)),
    st.tuples(st.just("name"), st.sampled_from(NAMES)),
    st.tuples(st.just("more"), st.builds("{} = {}".format, st.sampled_from(NAMES), st.sampled_from(VALUES))),
    st.tuples(st.just("more"), st.sampled_from(HEADS)),
    st.tuples(st.just("twice"), st.just("")),
    st.tuples(st.just("without"), st.just("")),
)


@fuzz(changes=st.lists(st.tuples(st.integers(0, 99), CHANGE), min_size=1, max_size=3), share=4)
@pytest.mark.filterwarnings("ignore")
def test_a_dataset_file_with_other_lines(folder, changes):
    lines = valid(folder).splitlines()
    for place, (kind, text) in changes:
        place %= len(lines) or 1
        name, _, value = lines[place].partition(" = ") if lines else ("", "", "")
        match kind:
            case "value":
                lines[place : place + 1] = [f"{name} = {text}"]
            case "name":
                lines[place : place + 1] = [f"{text} = {value}"]
            case "more":
                lines.insert(place, text)
            case "twice":
                lines[place:place] = lines[place : place + 1]
            case "without":
                del lines[place : place + 1]
    path = folder / "dataset.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    read(path)
