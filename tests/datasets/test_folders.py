"""Image-caption folders: the bundled ones, and what readers bring."""

import errno
import json
import os

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


# folders from strangers


@pytest.fixture
def outside(tmp_path):
    """A folder beside the dataset's, with a picture and a text that are no part of it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("root:x:0:0", encoding="utf-8")
    picture(tmp_path / "outside" / "p.png")
    (tmp_path / "own").mkdir()
    return tmp_path / "outside"


@pytest.fixture
def own(outside):
    picture(outside.parent / "own" / "a.png")
    return outside.parent / "own"


def link(path, target, **kwargs):
    try:
        path.symlink_to(target, **kwargs)
    except OSError:
        pytest.skip("this system makes no symbolic links")


def test_no_caption_comes_from_outside(own, outside):
    link(own / "a.txt", outside / "secret.txt")
    for way in ("raise", "skip"):
        with pytest.raises(ValueError, match=r"a\.txt leads out of its dataset's folder .*follow_links=True"):
            sdnb.pictures(own, on_bad=way)
    assert sdnb.pictures(own, follow_links=True).captions == ["root:x:0:0"]
    link(own / "metadata.jsonl", outside / "secret.txt")
    with pytest.raises(ValueError, match=r"metadata\.jsonl leads out") as caught:
        sdnb.pictures(own)
    assert "root:" not in str(caught.value)


@pytest.mark.parametrize("name", ["../outside/p.png", "sub/../../outside/p.png", "{outside}/p.png", "link.png", "linked/p.png"])
def test_no_picture_comes_from_outside(own, outside, name):
    (own / "sub").mkdir()
    if name.startswith("link"):
        link(own / "link.png", "../outside/p.png")
        link(own / "linked", outside, target_is_directory=True)
    describe(own, [{"file_name": "a.png", "text": "a"}, {"file_name": name.format(outside=outside), "text": "p"}])
    with pytest.raises(ValueError, match=r"leads out of its dataset's folder .*follow_links=True"):
        sdnb.pictures(own)
    with pytest.warns(UserWarning, match=r"1 of 2 pictures skipped: .*leads out"):
        assert sdnb.pictures(own, on_bad="skip").captions == ["a"]
    assert sdnb.pictures(own, follow_links=True).captions == ["a", "p"]


def test_no_folder_is_listed_outside(own, outside):
    (own / "a.png").unlink()
    link(own / "3_cat", outside, target_is_directory=True)
    with pytest.raises(ValueError, match=r"3_cat leads out"):
        sdnb.pictures(own)
    assert [one.repeats for one in sdnb.pictures(own, follow_links=True)] == [3]
    link(own / "train", outside, target_is_directory=True)
    describe(outside, [{"file_name": "p.png", "text": "p"}])
    with pytest.raises(ValueError, match="leads out"):
        sdnb.pictures(own)


def test_links_inside_a_folder_and_to_it_are_followed(own):
    (own / "sub").mkdir()
    (own / "a.png").rename(own / "sub" / "b.png")
    (own / "sub" / "words").write_text("inside", encoding="utf-8")
    link(own / "a.png", "sub/b.png")
    link(own / "a.txt", own / "sub" / "words")
    link(own.parent / "linked", own, target_is_directory=True)
    for folder in (own, own.parent / "linked"):
        assert sdnb.pictures(folder).captions == ["inside"]
    describe(own, [{"file_name": "sub/../sub/b.png", "text": "x"}, {"file_name": str(own / "a.png"), "text": "y"}])
    assert sdnb.pictures(own.parent / "linked").captions == ["x", "y"]


def test_a_dataset_file_names_its_folders_and_they_keep_what_is_in_them(own, outside):
    path = own / "dataset.toml"
    path.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = {json.dumps(str(outside))}", encoding="utf-8")
    assert len(sdnb.pictures(path)) == 1
    link(outside / "p.caption", own / "dataset.toml")
    with pytest.raises(ValueError, match=r"p\.caption leads out"):
        sdnb.pictures(path)


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ('{"file_name": "a.png", "text": ["x"]}', "both are texts"),
        ('{"file_name": "a.png", "text": NaN}', "both are texts"),
        ('{"file_name": "a.png", "text": 0}', "both are texts"),
        ('{"file_name": 3, "text": "x"}', "both are texts"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "lone surrogate"),
        ('{"file_name": "a.png", "text": "x", "text": "y"}', "stands there twice"),
        ('{"file_name": "a.png", "more": ' + "[" * 99_999 + "]" * 99_999 + "}", "nested too deeply"),
        ('{"file_name": "a.png", "more": ' + "9" * 5000 + "}", "is no JSON"),
    ],
    ids=range(8),
)
def test_a_row_of_metadata_that_is_refused(tmp_path, row, wrong):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n' + row, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"metadata\.jsonl, line 2: it must read .*{wrong}"):
        sdnb.pictures(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "a\0.png", "\x1b[2J" * 999])
def test_a_name_in_metadata_that_is_no_name(tmp_path, name):
    describe(tmp_path, [{"file_name": name, "text": ""}])
    with pytest.raises(ValueError, match=r"metadata\.jsonl names 1 pictures that are not there: ") as caught:
        sdnb.pictures(tmp_path)
    assert len(str(caught.value)) < 800
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "wrong"),
    [(b"a\0b\0", "zero byte"), (b"\xff\xfea\0", "not UTF-8"), (b"x" * 100_001, "100,001 letters"), (None, "directory")],
)
def test_a_caption_that_is_no_text(tmp_path, content, wrong):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").mkdir() if content is None else (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?i)a\.(txt|png).*{wrong if os.name != 'nt' else ''}"):
        sdnb.pictures(tmp_path)


def test_an_endless_caption_is_not_read(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").touch()
    os.truncate(tmp_path / "a.txt", 10_000_000_000)
    with pytest.raises(ValueError, match=r"a\.txt: it has 10,000,000,000 bytes, and at most"):
        sdnb.pictures(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files in folders")
def test_a_caption_that_is_a_pipe_is_not_waited_for(tmp_path):
    picture(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"a\.txt: it is no regular file"):
        sdnb.pictures(tmp_path)


def test_a_caption_that_is_a_link_to_nothing(own):
    link(own / "a.txt", "nothing.txt")
    with pytest.raises(ValueError, match=r"a\.txt is a link to a file that is not there"):
        sdnb.pictures(own)


def test_captions_are_refused_when_a_picture_is_made():
    for caption in ("\ud800", ["x"], float("nan"), None):
        with pytest.raises(ValueError, match=r"a\.png has a caption"):
            data.Picture(ROOT / "a.png", caption)


def test_absurd_repeats_are_refused_with_their_number(tmp_path):
    (tmp_path / "999999999999_cat").mkdir()
    picture(tmp_path / "999999999999_cat" / "a.png")
    with pytest.raises(ValueError, match=r"999999999999_cat.a\.png: .*999,999,999,999 times, and at most 10,000,000"):
        sdnb.pictures(tmp_path)
    subset = f"[[datasets.subsets]]\nimage_dir = {json.dumps(str(tmp_path / '999999999999_cat'))}\nnum_repeats = "
    path = tmp_path / "dataset.toml"
    path.write_text(f"[[datasets]]\n{subset}1_000_000_000_000", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.png: .*1,000,000,000,000 times.*num_repeats"):
        sdnb.pictures(path)
    path.write_text(f"[[datasets]]\n{subset}9_000_000\n[[datasets]]\n{subset}9_000_000", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dataset\.toml: an epoch would show 18,000,000 pictures"):
        sdnb.pictures(path)


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ("num_repeats = 2\nnum_repeats = 3", "is no TOML"),
        ("more = " + "[" * 99_999, "nested too deeply"),
        ("more" + ".a" * 20_000 + " = 1", "line 4 has more than 32 dots"),
        ("num_repeats = 0x" + "F" * 9999, "more than 100 digits"),
        ("class_tokens = " + '"x"' * 2, "is no TOML"),
        ("class_tokens = [" + "'x'," * 9999 + "]", "class_tokens = "),
        ("caption_dropout_rate = nan", "caption_dropout_rate=nan"),
        ("keep_tokens = -1", "keep_tokens=-1"),
        ("caption_extension = '/../../secret.txt'", "caption_extension="),
        ("\n".join(f"k{i} = 1" for i in range(9999)), "k0 in subsets"),
    ],
    ids=range(10),
)
def test_a_dataset_file_that_is_refused(own, more, wrong):
    path = own / "dataset.toml"
    path.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = {json.dumps(str(own))}\n{more}", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"(dataset\.toml.*)?{wrong}") as caught:
        sdnb.pictures(path)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".toml", "~nobody-of-that-name/x", "a\0b", "a\0b.toml"])
def test_a_name_that_is_no_folder(name):
    for arguments in ({"name_or_folder": name}, {"name_or_folder": "emoji-ink", "reg_data_dir": name}):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            sdnb.pictures(**arguments)
        assert 0 < len(str(caught.value)) < 600


def test_a_folder_that_may_not_be_read(own, monkeypatch):
    def denied(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(type(own), "iterdir", denied)
    with pytest.raises(ValueError, match="own cannot be read: Permission denied"):
        sdnb.pictures(own)
