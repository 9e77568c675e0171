"""What batches are made of: buckets shared by processes, encodings kept on disk, captions of any length."""

import collections
import dataclasses
import json
import os

import pytest
import torch
from PIL import Image

import sdnb
from sdnb.datasets.buckets import margins
from sdnb.datasets.cache import Cache, check
from sdnb.datasets.store import FOLDER
from sdnb.models import register, unregister
from sdnb.models.sd import StableDiffusion1
from sdnb.models.sdxl import StableDiffusionXL

BUCKETED = {"enable_bucket": True}


@pytest.fixture
def folder(tmp_path):
    for i, size in enumerate([(64, 64), (70, 70), (64, 64), (128, 64), (120, 60), (60, 130), (90, 90)]):
        Image.new("RGB", size, (30 * i, 100, 200 - 20 * i)).save(tmp_path / f"bild {i} é.png")
        (tmp_path / f"bild {i} é.txt").write_text(f"猫 number {i}, red, blue", encoding="utf-8")
    return tmp_path


def recipe(**settings):
    return sdnb.Recipe(train_batch_size=2, **settings)


def test_buckets_show_every_picture_and_processes_share_a_batch(tiny, folder):
    cache = Cache(tiny, sdnb.pictures(folder), recipe(**BUCKETED))
    assert len(cache.members) > 1
    shown = collections.Counter()
    for number in range(20 * cache.epochs().batches):
        batch = cache.batch(number)
        shown.update(batch.captions)
        assert torch.equal(batch.latents, cache.batch(number).latents)
    assert len(shown) == 7
    assert set(shown.values()) == {20}
    alike = [*sdnb.pictures(folder)[:1]] * 4
    whole, shared = Cache(tiny, alike, sdnb.Recipe(train_batch_size=4, seed=1)), Cache(tiny, alike, recipe(seed=1))
    for number in range(3):
        parts = [shared.batch(number, process, 2) for process in (0, 1)]
        assert torch.equal(torch.cat([part.noise for part in parts]), whole.batch(number).noise)
    assert cache.waited_seconds > 0


def test_kept_encodings_are_used_only_for_what_they_were_made_from(tiny, folder):
    asked = recipe(cache_latents_to_disk=True, cache_text_encoder_outputs_to_disk=True, flip_aug=True)
    first = Cache(tiny, sdnb.pictures(folder), asked)
    kept = sorted((folder / FOLDER).glob("*.safetensors"))
    assert len(kept) == 7 * 2 + 8
    again = Cache(tiny, sdnb.pictures(folder), asked)
    assert again.stored.written == 0
    assert torch.equal(first.batch(3).latents, again.batch(3).latents)
    kept[0].write_bytes(kept[0].read_bytes()[:50])
    kept[1].write_bytes(b"")
    Image.new("RGB", (64, 64), "black").save(folder / "bild 0 é.png")
    changed = Cache(tiny, sdnb.pictures(folder), asked)
    assert 2 + 1 <= changed.stored.written <= 2 + 2
    assert not torch.equal(changed.latents[0], first.latents[0])
    assert not list((folder / FOLDER).glob("*.partial"))


def test_a_folder_that_cannot_be_written_is_warned_of(tiny, folder):
    (folder / "file").write_text("no folder", encoding="utf-8")
    with pytest.warns(UserWarning, match="stays in memory"):
        cache = Cache(tiny, sdnb.pictures(folder), recipe(cache_latents_to_disk=True), folder=folder / "file" / "cache")
    assert cache.batch(0).latents.isfinite().all()


def test_latents_that_are_no_numbers_are_refused(tiny, folder, monkeypatch):
    encode = tiny.vae.encode

    def poisoned(pixels):
        out = encode(pixels)
        out.latent_dist.mean[:] = float("nan")
        return out

    monkeypatch.setattr(tiny.vae, "encode", poisoned)
    with pytest.raises(ValueError, match="no_half_vae"):
        Cache(tiny, sdnb.pictures(folder), recipe())


def test_long_captions_are_cut_or_encoded_in_parts(tiny, folder):
    (folder / "bild 0 é.txt").write_text("a red apple " * 40, encoding="utf-8")
    with pytest.warns(UserWarning, match="1 captions have more than 75 tokens"):
        cut = Cache(tiny, sdnb.pictures(folder), recipe())
    assert cut.batch(0).context.shape[1] == 77
    parts = Cache(tiny, sdnb.pictures(folder), recipe(max_token_length=150))
    assert parts.batch(0).context.shape[1] == 152
    # a caption that fits is told the same, up to the first part's end, by the encoder that looks back only
    short = parts.texts.condition(["a red apple"])["context"]
    assert torch.allclose(short[:, :76], cut.texts.condition(["a red apple"])["context"][:, :76], atol=1e-5)
    with pytest.warns(UserWarning, match="1 captions have more than 75 tokens"):
        whole = Cache(tiny, sdnb.pictures(folder), recipe(max_token_length=100))  # whole parts alone are read, as in sd-scripts
    assert torch.equal(whole.batch(0).context, cut.batch(0).context)


class Large(StableDiffusionXL):
    """A stand-in for SDXL, with one text encoder: what it is told of size and caption can be read from its batches."""

    name = "large"
    parts = StableDiffusion1.parts

    def encode_tokens(self, model, tokens, *, clip_skip=None):
        return {"context": model.text_encoder(tokens[0]).last_hidden_state, "pooled": torch.ones(len(tokens[0]), 5)}


@pytest.fixture
def large(tiny):
    yield dataclasses.replace(tiny, family=register(Large()).name)
    unregister("large")


def test_a_large_model_is_told_sizes_and_crops(large, folder):
    cache = Cache(large, sdnb.pictures(folder), recipe(flip_aug=True, **BUCKETED))
    for number in range(10):
        batch = cache.batch(number)
        assert batch.added["text_embeds"].shape == (len(batch.t), 5)
        for row, text, latents in zip(batch.added["time_ids"].tolist(), batch.captions, batch.latents, strict=True):
            place = cache.places[int(text.split()[2].rstrip(","))]
            assert row[4:] == [place.size[1], place.size[0]] == [4 * side for side in latents.shape[1:]]
            size = sdnb.pictures(folder)[int(text.split()[2].rstrip(","))].size
            assert row[2:4] in [[*margins(size, place.size, flipped)] for flipped in (False, True)]
            assert row[:2] == [*sdnb.pictures(folder)[int(text.split()[2].rstrip(","))].size[::-1]]


def test_shuffled_captions_keep_their_first_parts(tiny, folder):
    cache = Cache(tiny, sdnb.pictures(folder), recipe(shuffle_caption=True, keep_tokens=1))
    seen = {text for number in range(20) for text in cache.batch(number).captions}
    assert len(seen) > 7
    assert all(text.startswith("猫 number") for text in seen)
    assert cache.batch(5).captions == cache.batch(5).captions
    with pytest.raises(ValueError, match="captions that change: leave out cache_text_encoder_outputs, or shuffle_caption"):
        check(recipe(shuffle_caption=True, cache_text_encoder_outputs=True))


def test_folders_with_repeats_and_the_dataset_file(tmp_path):
    inner = tmp_path / "3_a red fox"
    inner.mkdir()
    Image.new("RGB", (20, 20)).save(inner / "a.png")
    found = sdnb.pictures(tmp_path)
    assert (found.captions, found[0].repeats) == (["a red fox"], 3)
    text = "[general]\nenable_bucket = true\n[[datasets]]\nresolution = 64\nbatch_size = 3\n"
    text += f"[[datasets.subsets]]\nimage_dir = {json.dumps(str(inner))}\n"
    path = tmp_path / "dataset.toml"
    path.write_text(text + 'num_repeats = 4\nclass_tokens = "fox"\n', encoding="utf-8")
    found = sdnb.pictures(path)
    assert (found.captions, found[0].repeats) == (["fox"], 4)
    asked = found.recipe(sdnb.Recipe())
    assert (asked.resolution, asked.train_batch_size, asked.enable_bucket) == (64, 3, True)
    path.write_text(text + "is_reg = 1\ncolor_aug = true\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"is_reg = 1 in subsets"):
        sdnb.pictures(path)


def test_pictures_of_every_kind_open(tmp_path):
    Image.new("CMYK", (9, 7), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("P", (9, 7)).save(tmp_path / "palette.png")
    Image.new("I;16", (9, 7), 32896).save(tmp_path / "deep.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    Image.new("RGB", (9, 7), "red").save(tmp_path / "moving.webp", save_all=True, append_images=[Image.new("RGB", (9, 7), "blue")])
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (9, 7)).save(tmp_path / "turned.jpg", exif=exif)
    found = {picture.path.stem: picture for picture in sdnb.pictures(tmp_path)}
    assert found["turned"].size == found["turned"].open().size == (7, 9)
    assert found["deep"].open().getpixel((0, 0)) == (128,) * 3
    assert found["cmyk"].open().getpixel((0, 0)) == (255,) * 3
    assert found["moving"].open().getpixel((0, 0))[0] > 200
    assert found["tiny"].pixels(64).shape == (3, 64, 64)


def test_a_picture_of_too_many_pixels_and_shared_captions(tmp_path, monkeypatch):
    for ending in ("png", "jpg"):
        Image.new("RGB", (40, 40)).save(tmp_path / f"a.{ending}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit has no part in it
    with pytest.warns(UserWarning, match="share a caption file: a"):
        sdnb.pictures(tmp_path)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(ValueError, match=r"40 × 40 are 1,600 pixels, and at most 100 are decoded: .*max_pixels"):
        sdnb.pictures(tmp_path, max_pixels=100)


def test_encodings_are_kept_in_the_folder_that_was_given(tiny, tmp_path):
    for name in ("own", "outside"):
        (tmp_path / name / "sub").mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / name / "sub" / "a.png")
    asked, metadata = recipe(cache_latents_to_disk=True), tmp_path / "own" / "metadata.jsonl"
    metadata.write_text('{"file_name": "sub/a.png", "text": ""}')
    Cache(tiny, sdnb.pictures(tmp_path / "own"), asked)
    assert (tmp_path / "own" / "sub" / FOLDER).is_dir()
    metadata.write_text('{"file_name": "../outside/sub/a.png", "text": ""}')
    Cache(tiny, sdnb.pictures(tmp_path / "own", follow_links=True), asked)
    assert (tmp_path / "own" / FOLDER).is_dir()
    assert not (tmp_path / "outside" / "sub" / FOLDER).exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows asks for a right to make links")
def test_nothing_is_kept_where_a_link_leads_out(tiny, tmp_path):
    (tmp_path / "own").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "own" / "a.png")
    (tmp_path / "own" / FOLDER).symlink_to("../outside")
    with pytest.raises(ValueError, match=r"leads out of its dataset's folder .*follow_links=True"):
        Cache(tiny, sdnb.pictures(tmp_path / "own"), recipe(cache_latents_to_disk=True))
    assert not (tmp_path / "outside").exists()


def test_a_picture_that_would_become_huge_is_refused_by_name(tiny, tmp_path):
    Image.new("RGB", (20_000, 1)).save(tmp_path / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    asked = recipe(enable_bucket=True, resolution=1024, min_bucket_reso=256)
    with pytest.raises(ValueError, match=r"a\.png: a picture of 20000 × 1 would be resized to 5120000 × 256"):
        Cache(tiny, sdnb.pictures(tmp_path), asked)
    assert Cache(tiny, sdnb.pictures(tmp_path)[:1], recipe()).batch(0).latents.isfinite().all()
    with pytest.raises(ValueError, match="train_batch_size=1000000000000"):
        check(recipe().replace(train_batch_size=10**12))
