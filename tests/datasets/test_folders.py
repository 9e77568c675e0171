"""Image-caption folders: the bundled ones, and what readers bring."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sdnb
from sdnb.datasets import folders as data

from ..conftest import ROOT


def picture(path, colour="red", mode="RGB", size=(20, 10)):
    Image.new(mode, size, colour).save(path)
    return path


def describe(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_bundled_pictures_keep_their_promises():
    emoji, train, held_out = (sdnb.pictures(name) for name in ("emoji", "emoji-ink", "emoji-ink/held_out"))
    assert len(emoji) >= 256
    assert len(train) >= 32
    assert len(held_out) >= 16
    assert len(set(emoji.captions)) == len(emoji)
    assert "a red apple" in emoji.captions
    assert all(image.open().size == (64, 64) for image in emoji)
    assert all(caption.endswith(", ink drawing") for caption in [*train.captions, *held_out.captions])
    assert not set(train.captions) & set(held_out.captions)
    known = {image.path.name: image.caption for image in emoji}
    for image in [*train, *held_out]:
        assert image.caption == f"{known[image.path.name]}, ink drawing"


def test_the_second_style_has_no_colour():
    pixels = np.stack([np.asarray(image.open()) for image in sdnb.pictures("emoji-ink")])
    assert int((pixels.max(-1) - pixels.min(-1)).max()) == 0


def test_every_bundled_folder_has_its_origin_and_licence():
    sources = (ROOT / "data" / "SOURCES.md").read_text(encoding="utf-8")
    folders = [path.name for path in (ROOT / "data").iterdir() if path.is_dir() and not path.name.startswith(("_", "."))]
    assert folders
    assert [name for name in folders if f"`{name}/`" not in sources] == []


def test_all_data_stays_small():
    bytes_of_data = sum(path.stat().st_size for path in (ROOT / "data").rglob("*") if path.is_file())
    assert bytes_of_data <= 45e6


def test_a_folder_with_metadata(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b c é.png")
    describe(tmp_path, [{"file_name": "a.png", "text": "eins"}, {"file_name": "b c é.png"}])
    found = sdnb.pictures(tmp_path)
    assert found.captions == ["eins", ""]
    assert found.empty_captions == 1
    assert "1 without a caption" in repr(found)


def test_a_folder_with_captions_beside_the_pictures(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("one\n", encoding="utf-8")
    (tmp_path / "b.caption").write_text("two", encoding="utf-8")
    assert sdnb.pictures(tmp_path).captions == ["one", "two", ""]


def test_slices_are_pictures(ink):
    assert isinstance(ink[:3], sdnb.Pictures)
    assert ink[:3].captions == ink.captions[:3]


def test_pixels_are_the_middle_square_in_range(tmp_path):
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (10, 0, 30, 20))
    image.save(tmp_path / "a.png")
    pixels = sdnb.pictures(tmp_path)[0].pixels(16)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.float32
    assert (pixels[:, :, 1:-1] == 1).all()
    assert (pixels > 0.9).all()  # the filter looks one pixel beyond the cut


@pytest.mark.parametrize(
    ("mode", "colour", "expected"), [("RGBA", (255, 0, 0, 0), 255), ("L", 128, 128), ("LA", (0, 255), 0), ("1", 1, 255)]
)
def test_transparency_is_white_and_grey_is_rgb(tmp_path, mode, colour, expected):
    opened = data.Picture(picture(tmp_path / "a.png", colour, mode), "").open()
    assert opened.mode == "RGB"
    assert opened.getpixel((0, 0)) == (expected,) * 3


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="emoji-ink/held_out"):
        sdnb.pictures(tmp_path / "nowhere")


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no pictures"):
        sdnb.pictures(tmp_path)


def test_a_picture_that_does_not_open(tmp_path):
    picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png does not open.*on_bad"):
        sdnb.pictures(tmp_path)
    with pytest.warns(UserWarning, match=r"1 of 2 pictures skipped: .*bad\.png"):
        found = sdnb.pictures(tmp_path, on_bad="skip")
    assert len(found) == 1
    assert "bad.png" in found.skipped[0]


def test_a_cut_off_picture(tmp_path):
    whole = picture(tmp_path / "a.png", size=(200, 200)).read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.png does not open"):
        sdnb.pictures(tmp_path)


def test_only_bad_pictures(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none of the 1 pictures"):
        sdnb.pictures(tmp_path, on_bad="skip")


def test_captions_of_missing_pictures(tmp_path):
    picture(tmp_path / "a.png")
    describe(tmp_path, [{"file_name": "a.png", "text": ""}, *({"file_name": f"{i}.png", "text": "x"} for i in range(7))])
    with pytest.raises(ValueError, match=r"names 7 pictures that are not there: 0\.png, .*…"):
        sdnb.pictures(tmp_path)


def test_a_caption_may_hold_any_letter(tmp_path):
    """Some of these end a line elsewhere."""
    rows = [{"file_name": f"{place}.png", "text": text} for place, text in enumerate(("one\u2028two", "\x85", "a\tb"))]
    for row in rows:
        picture(tmp_path / row["file_name"], "red", "RGB")
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert sdnb.pictures(tmp_path).captions == [row["text"] for row in rows]


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "no name"}', "3"])
def test_metadata_that_is_none(tmp_path, line):
    (tmp_path / "metadata.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: it must read"):
        sdnb.pictures(tmp_path)


def test_an_unknown_way_with_bad_pictures():
    with pytest.raises(ValueError, match='"raise" or "skip"'):
        sdnb.pictures("emoji", on_bad="ignore")


# regularization pictures


def repeats_of_sd_scripts(own, regular):
    """The loop of DreamBoothDataset in its train_util.py: name -> how often an epoch shows it."""
    n, wanted, shown, first_loop = 0, sum(own.values()), {}, True
    while regular and n < wanted:
        for name, repeats in regular.items():
            if first_loop:
                shown[name] = repeats
                n += repeats
            else:
                shown[name] += 1
                n += 1
            if n >= wanted:
                break
        first_loop = False
    return shown


@pytest.mark.filterwarnings("ignore:.*regularization pictures are not needed")
@pytest.mark.parametrize("own", [{"a": 1}, {"a": 3, "b": 2}, {"a": 10, "b": 10, "c": 1}])
@pytest.mark.parametrize("regular", [{}, {"x": 1}, {"x": 1, "y": 1, "z": 1}, {"x": 4, "y": 2, "z": 7}, dict.fromkeys("stuvwxyz", 1)])
def test_regularization_pictures_are_balanced_as_in_sd_scripts(own, regular):
    found = [data.Picture(ROOT / name, name, repeats, name in regular) for name, repeats in {**regular, **own}.items()]
    balanced = data.balanced(found)
    assert {one.caption: one.repeats for one in balanced if not one.is_reg} == own
    assert {one.caption: one.repeats for one in balanced if one.is_reg} == repeats_of_sd_scripts(own, regular)


@pytest.fixture
def both(tmp_path):
    """A folder of pictures and one for regularization, as sd-scripts names them."""
    for folder, names in {"own/2_sks fox": "ab", "reg/1_fox": "xyz"}.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            picture(tmp_path / folder / f"{name}.png")
    return tmp_path


def test_a_folder_of_regularization_pictures(both):
    found = sdnb.pictures(both / "own", reg_data_dir=both / "reg")
    assert [(one.path.stem, one.caption, one.repeats, one.is_reg) for one in found] == [
        ("a", "sks fox", 2, False), ("b", "sks fox", 2, False), ("x", "fox", 2, True), ("y", "fox", 1, True), ("z", "fox", 1, True),
    ]  # fmt: skip
    assert "3 of them for regularization" in repr(found)
    with pytest.raises(FileNotFoundError):
        sdnb.pictures(both / "own", reg_data_dir=both / "nowhere")


def test_subsets_for_regularization_are_balanced_in_each_dataset(both):
    (both / "reg" / "1_fox" / "x.png").write_bytes(b"broken")
    path = both / "dataset.toml"

    def subset(folder, more):
        return f"[[datasets.subsets]]\nimage_dir = {json.dumps(str(both / folder))}\n{more}\n"

    own, regular = subset("own/2_sks fox", "num_repeats = 2"), subset("reg/1_fox", "is_reg = true\nclass_tokens = 'fox'")
    path.write_text(f"[general]\nresolution = 64\n[[datasets]]\n{own}[[datasets]]\n{own.replace('= 2', '= 3')}{regular}", encoding="utf-8")
    with pytest.warns(UserWarning, match="1 of 7 pictures skipped"):
        found = sdnb.pictures(path, on_bad="skip")
    assert [one.repeats for one in found if not one.is_reg] == [2, 2, 3, 3]
    assert [(one.path.stem, one.repeats) for one in found if one.is_reg] == [("y", 3), ("z", 3)]
    path.write_text(f"[[datasets]]\nresolution = 64\n{regular}", encoding="utf-8")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match="regularization pictures alone"):
        sdnb.pictures(path, on_bad="skip")
    with pytest.raises(ValueError, match="is_reg = true there"):
        sdnb.pictures(path, reg_data_dir=both / "reg")
