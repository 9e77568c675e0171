"""What a recipe makes of pictures each time they are shown: cuts, colours, masks, metadata; in batches, on disk and in the plan."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sdnb
from benchmarks.record_pictures import picture
from sdnb import losses, planner, prepare
from sdnb.datasets import cache, store, views
from sdnb.datasets.cache import Cache

from .test_recorded_pictures import RECORDED, pixels

SIZES = [(64, 64), (96, 80), (80, 120), (150, 70), (64, 64)]


@pytest.fixture
def folder(tmp_path):
    for i, size in enumerate(SIZES):
        Image.fromarray(picture(*size)).save(tmp_path / f"p{i}.png")
        (tmp_path / f"p{i}.txt").write_text(f"number {i}", encoding="utf-8")
    return tmp_path


def recipe(**settings):
    return sdnb.Recipe(train_batch_size=2, seed=3, **settings)


def batches(tiny, found, asked, count=6):
    made = Cache(tiny, found, asked)
    return made, [made.batch(number) for number in range(count)]


@pytest.mark.parametrize(
    "settings",
    [{"random_crop": True, "enable_bucket": True}, {"random_crop": True}, {"color_aug": True}, {"color_aug": True, "flip_aug": True}],
    ids=str,
)
def test_pictures_that_vary_are_encoded_for_each_batch(tiny, folder, settings):
    plain = {name: value for name, value in settings.items() if name not in ("random_crop", "color_aug")}
    _, same = batches(tiny, sdnb.pictures(folder), recipe(**plain))
    made, varied = batches(tiny, sdnb.pictures(folder), recipe(**settings))
    assert made.encoded.wholes
    assert any(not torch.equal(a.latents, b.latents) for a, b in zip(same, varied, strict=True))
    for a, b in zip(same, varied, strict=True):  # what else is random stays as it was
        assert torch.equal(a.noise, b.noise) and torch.equal(a.t, b.t) and a.captions == b.captions
    # the same again, as a run needs that goes on, and on two processes
    again = Cache(tiny, sdnb.pictures(folder), recipe(**settings))
    assert torch.equal(again.batch(4).latents, varied[4].latents)
    alike = [*sdnb.pictures(folder)[3:4]] * 2
    whole, shared = (Cache(tiny, alike, recipe(**settings).replace(train_batch_size=each)) for each in (2, 1))
    parts = [shared.batch(4, process, 2).latents for process in (0, 1)]
    assert torch.equal(torch.cat(parts), whole.batch(4).latents)


def test_a_picture_is_another_one_each_time(tiny, folder):
    found = sdnb.pictures(folder)[3:4]
    made = Cache(
        tiny, found, recipe(random_crop=True, enable_bucket=True, bucket_no_upscale=True, bucket_reso_steps=16).replace(train_batch_size=1)
    )
    assert made.views[0].varies and made.places[0].resized != made.places[0].size
    assert len({made.batch(number).latents.sum().item() for number in range(8)}) == 8
    place = views.View(found[0], recipe(random_crop=True), made.buckets[0])
    assert place.place.corner is None  # without chance it is the middle


def test_cuts_and_faces_without_buckets(tiny, folder):
    Image.fromarray(picture(40, 90)).save(folder / "small.png")
    with pytest.raises(ValueError, match=r"small.png has 40 × 90 pixels, too few for a cut of 64 × 64"):
        Cache(tiny, sdnb.pictures(folder), recipe(random_crop=True))
    (folder / "small.png").unlink()
    for path in (folder / "p3.png", folder / "p3.txt"):
        path.unlink()
    Image.fromarray(picture(200, 160)).save(folder / "face_90_80_40_50.png")
    (folder / "face.txt").write_text("a face", encoding="utf-8")
    found = sdnb.pictures(folder)
    assert "a face" in found.captions
    made = Cache(tiny, found, recipe(face_crop_aug_range="1.0,3.0"))
    assert [view.varies for view in made.views] == [view.face is not None for view in made.views]
    assert list(made.encoded.wholes) == [0]
    shown = {made.encoded.of(0, False, str(seed))[0].sum().item() for seed in range(5)}
    assert len(shown) == 5
    # with buckets it changes nothing, as in sd-scripts
    plain, faced = (batches(tiny, found, recipe(enable_bucket=True, **more))[1] for more in ({}, {"face_crop_aug_range": "1.0,3.0"}))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(plain, faced, strict=True))
    assert sdnb.Recipe(face_crop_aug_range=[2.0, 4.0]).face_range == sdnb.Recipe.parse("--face_crop_aug_range=2.0,4.0").face_range == (2, 4)
    with pytest.raises(ValueError, match="two numbers above 0"):
        sdnb.Recipe(face_crop_aug_range="4.0,2.0")


def test_cached_pictures_that_vary_are_refused_in_the_doctors_words():
    for wrong in ({"color_aug": True}, {"random_crop": True}):
        for cached in ("cache_latents", "cache_latents_to_disk"):
            with pytest.raises(ValueError, match="when caching latents, either color_aug or random_crop cannot be used"):
                cache.check(recipe(**wrong, **{cached: True}))


@pytest.mark.parametrize("how", ["area", "nearest", "lanczos"])
def test_a_filter_changes_the_latents_and_has_files_of_its_own(tiny, folder, how):
    settings = {"enable_bucket": True, "cache_latents_to_disk": True}
    plain, named = (Cache(tiny, sdnb.pictures(folder), recipe(**settings, **more)) for more in ({}, {"resize_interpolation": how}))
    same = [torch.equal(a, b) for a, b in zip(plain.latents, named.latents, strict=True)]
    assert all(same) == (how == "area")
    assert (named.stored.written, named.stored.read) == (len(SIZES) - 1, 1)  # two pictures are alike


def test_latents_that_an_earlier_version_kept_of_resized_pictures_are_not_used(tiny, folder):
    settings = {"enable_bucket": True, "cache_latents_to_disk": True}
    made = Cache(tiny, sdnb.pictures(folder), recipe(**settings))
    model = store.fingerprint(tiny.vae)
    for view, latents in zip(made.views, made.latents, strict=True):
        parts = view.picture.path.read_bytes(), repr(view.place), "True", "False", model  # its name before
        made.stored.put(store.key(*parts), {"mean": latents[0, 0] + 1, "deviation": latents[0, 1]})
    again = Cache(tiny, sdnb.pictures(folder), recipe(**settings))
    assert [torch.equal(a, b) for a, b in zip(made.latents, again.latents, strict=True)] == [
        view.place.resized != (64, 64) for view in made.views
    ]


def masked(tiny, folder, **settings):
    for i, size in enumerate(SIZES):
        image = Image.fromarray(picture(*size)).convert("RGBA")
        alpha = np.zeros(size[::-1], np.uint8)
        alpha[:, : size[0] // 2] = 255
        image.putalpha(Image.fromarray(alpha))
        image.save(folder / f"p{i}.png")
    return Cache(tiny, sdnb.pictures(folder), recipe(enable_bucket=True, **settings))


def test_transparency_is_a_mask_that_follows_cut_and_mirror(tiny, folder):
    fixed, flipped, cut = (masked(tiny, folder, alpha_mask=True, **more) for more in ({}, {"flip_aug": True}, {"random_crop": True}))
    for number in range(6):
        batch = fixed.batch(number)
        assert batch.mask.shape == (len(batch.t), 1, *batch.latents.shape[2:])
        assert bool((batch.mask[..., 0] == 1).all()) and bool((batch.mask[..., -1] == 0).all())
    assert {bool(mask[..., 0].mean() > 0.9) for number in range(6) for mask in flipped.batch(number).mask} == {True, False}
    assert len({mask.mean().item() for number in range(9) for mask in cut.batch(number).mask}) > 3
    assert masked(tiny, folder).batch(0).mask is None
    # the colours under what cannot be seen are trained on, not white
    assert not torch.equal(fixed.latents[0], masked(tiny, folder).latents[0])


def test_masks_are_those_of_sd_scripts(folder):
    for row in RECORDED["masks"]:
        width, height = row["picture"]
        mask = views.mask_of(picture(width, height)[..., 0], (height // 8, width // 8))
        loss = losses.Loss()(
            torch.zeros(1, 4, *mask.shape[1:]),
            torch.ones(1, 4, *mask.shape[1:]),
            torch.zeros(1).long(),
            losses.DDPM(torch.ones(1)),
            mask=mask[None],
        )
        assert torch.allclose(mask[0].double(), torch.tensor(row["loss"], dtype=torch.float64), atol=2e-6)
        assert loss.item() == pytest.approx(np.mean(row["loss"]), abs=1e-5)
    for row in RECORDED["mask_pictures"]:
        size = tuple(row["size"])
        Image.fromarray(picture(*row["picture"])).save(folder / "mask.png")
        one = sdnb.datasets.Picture(folder / "mask.png", "")
        one = sdnb.datasets.Picture(folder / "mask.png", "", mask=one)
        view = views.View(
            one,
            recipe(enable_bucket=True, masked_loss=True),
            sdnb.datasets.Buckets(resolution=size, enabled=True, min_side=8, step=8, max_side=64),
        )
        object.__setattr__(view, "place", sdnb.datasets.buckets.Place(size, size))
        red = view.mask(view.whole())
        theirs = pixels(row["red"], size[1], size[0])
        assert np.abs((red[:, ::-1] if row["flipped"] else red).astype(int) - theirs).max() <= 1


def test_masks_from_a_folder(tiny, folder, tmp_path_factory):
    masks = tmp_path_factory.mktemp("masks")
    for i, size in enumerate(SIZES):
        Image.new("L", size, 51 * i).save(masks / f"p{i}.png")
    path = folder / "set.toml"
    text = f"[[datasets]]\nenable_bucket = true\n[[datasets.subsets]]\nimage_dir = {json.dumps(str(folder))}\ncaption_extension = '.txt'\n"
    path.write_text(text + f"conditioning_data_dir = {json.dumps(str(masks))}\n", encoding="utf-8")
    asked = recipe(masked_loss=True)
    made = Cache(tiny, sdnb.pictures(path, recipe=asked), asked)
    for number in range(4):
        batch = made.batch(number)
        for mask, text_ in zip(batch.mask, batch.captions, strict=True):
            assert torch.allclose(mask, torch.tensor(int(text_.split()[1]) / 5))
    with pytest.raises(ValueError, match="only masked_loss uses"):
        sdnb.pictures(path)
    with pytest.raises(ValueError, match="random_crop does not go with conditioning_data_dir"):
        Cache(tiny, sdnb.pictures(path, recipe=asked), asked.replace(random_crop=True))
    Image.new("L", (9, 9)).save(masks / "p1.png")
    with pytest.raises(ValueError, match=r"p1\.png has another size than its picture"):
        Cache(tiny, sdnb.pictures(path, recipe=asked), asked)
    (masks / "p1.png").unlink()
    with pytest.raises(ValueError, match=r"needs one of the same name in conditioning_data_dir.*these 1 are alone: p1"):
        sdnb.pictures(path, recipe=asked)


def test_a_masked_loss_trains(tiny, folder):
    from sdnb.training import denoising_loss

    batch = masked(tiny, folder, alpha_mask=True).batch(0)
    with torch.no_grad():
        whole, part = (denoising_loss(tiny, one, recipe()) for one in (sdnb.training.Batch(**{**vars(batch), "mask": None}), batch))
    assert 0 < part < whole


def test_metadata_names_pictures_and_captions(folder, tmp_path):
    file = folder / "meta.json"
    rows = {"p0.png": {"caption": "a fox", "tags": "red"}, str(folder / "p1.png"): {"caption": "whole"}, "p2": {"tags": "old"}}
    file.write_text(json.dumps(rows), encoding="utf-8")
    asked = recipe(in_json=str(file), train_data_dir=str(folder), dataset_repeats=3)
    found = sdnb.pictures(folder, recipe=asked)
    assert [(one.path.name, one.caption, one.repeats) for one in found] == [
        ("p0.png", "a fox,red", 3),
        ("p1.png", "whole", 3),
        ("p2.png", "old", 3),
    ]
    path = folder / "set.toml"
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = {json.dumps(str(folder))}\nmetadata_file = {json.dumps(str(file))}\n"
    path.write_text(text + "num_repeats = 2\nflip_aug = true\n", encoding="utf-8")
    found = sdnb.pictures(path)
    assert (found[0].caption, found[0].repeats, dict(found[0].settings)) == ("a fox,red", 2, {"flip_aug": True})
    with pytest.raises(ValueError, match="no whole path: give its folder"):
        sdnb.pictures(file, recipe=asked)
    for wrong, why in (
        ({"gone.png": {"caption": "x"}}, "names 1 pictures that are not there: gone.png"),
        ({"p0.png": "text"}, "must be an object"),
        ({"p0.png": {"tags": ["a"]}}, "must be texts"),
        ({"../x.png": {}}, "not there"),
        ({}, "names no pictures"),
    ):
        file.write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(ValueError, match=why):
            sdnb.pictures(folder, recipe=asked)
    outside = tmp_path.parent / "outside.png"
    Image.new("RGB", (9, 9)).save(outside)
    file.write_text(json.dumps({str(outside): {}}), encoding="utf-8")
    with pytest.raises(ValueError, match="follow_links"):
        sdnb.pictures(folder, recipe=asked)
    assert len(sdnb.pictures(folder, recipe=asked, follow_links=True)) == 1


def test_folders_of_repeats_win_over_pictures_beside_them(folder):
    (folder / "3_fox").mkdir()
    Image.fromarray(picture(20, 20)).save(folder / "3_fox" / "a.png")
    assert [(one.path.name, one.repeats) for one in sdnb.pictures(folder)] == [("a.png", 3)]


def test_a_picture_of_jpeg_xl_needs_its_plugin(tmp_path):
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a")
    with pytest.raises(ValueError, match=r"pip install pillow-jxl-plugin|does not open as a picture"):
        sdnb.pictures(tmp_path)


def test_the_plan_counts_the_encoding_of_each_batch(tiny):
    plain, varied, cached = (
        planner.plan(tiny, recipe(resolution=64, optimizer_type="AdamW", optimizer_args=(), **more), device="cpu")
        for more in ({}, {"color_aug": True}, {"cache_latents": True})
    )
    assert varied.peak_bytes >= plain.peak_bytes > cached.peak_bytes
    ready = prepare.prepare(tiny, recipe(random_crop=True, alpha_mask=True), size=(64, 64), planned=True)
    assert (ready.key.encodes, ready.key.masked, "vae" in ready.key.resident) == (True, True, True)


def test_what_changes_nothing_is_said():
    from sdnb.sd_scripts import supported

    asked = sdnb.Recipe.parse("--masked_loss --conditioning_data_dir=masks --face_crop_aug_range=2.0,4.0 --enable_bucket --random_crop")
    lines = "\n".join(supported.ignored(asked))
    for name in ("masked_loss", "conditioning_data_dir", "face_crop_aug_range"):
        assert name in lines
    assert "random_crop" not in lines


def test_what_differs_from_sd_scripts_in_these_pictures_is_said(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "same.png")
    Image.new("RGBA", (64, 64)).save(tmp_path / "clear.png")
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(tmp_path / "deep.png")
    turned = Image.new("RGB", (64, 64)).getexif()
    turned[274] = 6
    Image.new("RGB", (64, 64)).save(tmp_path / "turned.jpg", exif=turned)
    found = sdnb.pictures(tmp_path)
    lines = cache.differences(found, recipe())
    assert len(lines) == 3
    assert all(line.startswith("1 of 4 pictures: each is ") for line in lines)
    assert len(cache.differences(found, recipe(alpha_mask=True))) == 2
