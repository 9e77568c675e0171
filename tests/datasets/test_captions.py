"""Captions as sd-scripts' own functions make, read and weigh them, recorded by `benchmarks.record_captions`."""

import dataclasses
import json
import random
import warnings
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import sdnb
from benchmarks import record_captions as recording
from sdnb.datasets import captions
from sdnb.datasets.cache import Cache, check
from sdnb.models import TextEncoding, named, prompts

RECORDED = json.loads(recording.FACTS.read_text(encoding="utf-8"))


def test_every_caption_is_the_one_that_sd_scripts_shows():
    wrong, changed = [], 0
    for case in RECORDED["captions"]:
        recipe, chance = sdnb.Recipe(**case["settings"]), random.Random(case["seed"])
        rate, every = recipe.caption_dropout_rate, recipe.caption_dropout_every_n_epochs
        dropped = (rate > 0 and chance.random() < rate) or (every > 0 and case["epoch"] % every == 0)
        text = recording.CAPTIONS[case["text"]]
        shown = captions.changed(text, recipe, chance, dropped=dropped, step=case["step"], steps=case["steps"])
        wrong += [case] if shown != case["shown"] else []
        changed += shown not in ("", text)
    assert not wrong
    assert changed > 150


def test_lines_of_a_file_are_read_as_sd_scripts_does(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for case in RECORDED["lines"]:
        (tmp_path / "a.txt").write_bytes(case["text"].encode())
        (found,) = sdnb.pictures(tmp_path)
        recipe = sdnb.Recipe(enable_wildcard=case["enable_wildcard"])
        assert captions.as_read(found.caption, recipe) == case["caption"]


@pytest.mark.parametrize("pads_with_end", [True, False])
def test_tokens_and_weights_are_sd_scripts(pads_with_end):
    tokenizer = recording.tokenizer(pads_with_end)
    for row in RECORDED["tokens"]:
        if row["pads_with_end"] is not pads_with_end:
            continue
        length = TextEncoding.of(sdnb.Recipe(max_token_length=row["length"])).length or 75
        texts = [recording.WEIGHTED[row["text"]]]
        plain, (ids, places) = prompts.parts(tokenizer, texts, length), prompts.weighted_parts(tokenizer, texts, length)
        assert list(ids.shape[1:]) == row["shape"]
        assert recording.digest(plain) == row["plain"]
        assert recording.digest(ids) == row["ids"], row
        inner = places[:, 1:-1].reshape(-1, 75)
        assert recording.digest(torch.nn.functional.pad(inner, (1, 1), value=1.0)) == row["weights"]


class Model(SimpleNamespace):
    @property
    def encoders(self):
        return {name: value for name, value in vars(self).items() if name.startswith("text_encoder")}

    @property
    def tokenizers(self):
        return {name: value for name, value in vars(self).items() if name.startswith("tokenizer")}


def model(family):
    end = recording.tokenizer().eos_token_id
    first = {"text_encoder": recording.Counting(2, end), "tokenizer": recording.tokenizer(family != "sd2")}
    second = {"text_encoder_2": recording.Counting(3, end), "tokenizer_2": recording.tokenizer(pads_with_end=False)}
    return Model(**first, **(second if family == "sdxl" else {}))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_states_of_long_and_weighted_captions_are_sd_scripts(family):
    counting = model(family)
    for row in RECORDED["states"]:
        if row["family"] != family:
            continue
        encoding = TextEncoding(row["length"], weighted=row["weighted"])
        condition = named(family).condition(counting, [recording.WEIGHTED[row["text"]]], encoding)
        context, pooled = condition["context"][0], condition.get("pooled")
        found = [*context.split([2, 3], -1), pooled[0]] if family == "sdxl" else [context]
        assert [recording.digest(one.float()) for one in found] == row["digests"], row


# in a run


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 100, 200)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"fox {i}, red, blue, {{a|b}}\nsecond", encoding="utf-8")
    return tmp_path


def recipe(**settings):
    return sdnb.Recipe(train_batch_size=2, **settings)


def shown(sd, folder, numbers, **settings):
    batches = Cache(sd, sdnb.pictures(folder), recipe(**settings), embeds=False)
    return [text for number in numbers for text in batches.batch(number).captions]


def test_each_setting_changes_what_a_run_shows(tiny, folder):
    epochs = range(40)
    assert set(shown(tiny, folder, range(4))) == {f"fox {i}, red, blue, {{a|b}}" for i in range(4)}
    assert all(text.startswith("sks fox") for text in shown(tiny, folder, epochs, caption_prefix="sks"))
    wild = set(shown(tiny, folder, epochs, enable_wildcard=True, caption_suffix="end"))
    assert "second end" in wild
    assert {text[-1] for text in wild - {"second end"}} == {"a", "b"}
    # two batches are an epoch, so 2 and 3 are the second one
    assert shown(tiny, folder, range(8), caption_dropout_every_n_epochs=2)[4:8] == [""] * 4
    assert "" not in shown(tiny, folder, (0, 1, 4, 5), caption_dropout_every_n_epochs=2)
    halved = {"gradient_accumulation_steps": 2, "caption_dropout_every_n_epochs": 2}
    assert [text == "" for text in shown(tiny, folder, range(8), **halved)] == [False] * 4 + [True] * 4 + [False] * 4 + [True] * 4
    growing = shown(tiny, folder, (0, 4, 8, 12), token_warmup_step=0.1, max_train_steps=120)
    assert [text.count(",") for text in growing] == [0, 0, 1, 1, 2, 2, 3, 3]
    some = [part for text in shown(tiny, folder, epochs, caption_tag_dropout_rate=0.5) for part in text.split(", ") if part]
    assert 130 < len(some) < 190  # of 80 captions' 320 parts


def test_weights_and_lengths_reach_the_batches(tiny, folder):
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"a (red:{i + 1}) fox", encoding="utf-8")
    plain, weighted = (Cache(tiny, sdnb.pictures(folder), recipe(weighted_captions=on)) for on in (False, True))
    assert not torch.equal(plain.batch(0).context, weighted.batch(0).context)
    one = weighted.texts.condition(["a (red:1.0) fox", "a red fox"])["context"]
    assert torch.equal(*one)
    context = weighted.texts.condition(["a (red:3) fox", "a red fox"])["context"]
    ratio = context[0] / context[1]
    assert torch.allclose(ratio[[0, 1, 3, 4]], torch.ones(()), atol=1e-4)
    assert torch.allclose(ratio[2], torch.tensor(3.0), atol=1e-4)
    (folder / "0.txt").write_text("a (red:1.2.3) fox", encoding="utf-8")
    with pytest.raises(ValueError, match=r"1\.2\.3"):
        Cache(tiny, sdnb.pictures(folder), recipe(weighted_captions=True))
    long = Cache(tiny, sdnb.pictures(folder), recipe(max_token_length=255))
    assert long.batch(0).context.shape[1] == 227
    with pytest.raises(ValueError, match="75 or more"):
        recipe(max_token_length=74)


def test_captions_that_change_and_their_cache(tiny, folder):
    for settings in ({"caption_tag_dropout_rate": 0.1}, {"token_warmup_step": 3}, {"shuffle_caption": True}):
        with pytest.raises(ValueError, match=f"cached text encoder outputs with captions that change: .*{next(iter(settings))}"):
            check(recipe(cache_text_encoder_outputs=True, **settings))
    cached = {"cache_text_encoder_outputs": True, "weighted_captions": True}
    with pytest.raises(ValueError, match="weighted_captions is not supported when caching text encoder outputs"):
        check(recipe(**cached))
    check(recipe(network_dim=4, **cached))
    with pytest.warns(UserWarning, match="caption_prefix: with cache_text_encoder_outputs captions are encoded as they are read"):
        texts = shown(tiny, folder, range(2), cache_text_encoder_outputs=True, caption_prefix="sks")
    assert all(text.startswith("fox") for text in texts)


def test_the_older_spelling_of_the_ending_wins():
    assert sdnb.Recipe.parse("--caption_extention=.txt --caption_extension=.caption").caption_extension == ".txt"


def test_a_layer_that_the_model_does_not_choose_is_warned_of(tiny):
    large = dataclasses.replace(tiny, family="sdxl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert named("sdxl").text_encoding(large, recipe(clip_skip=2)) == TextEncoding()
    with pytest.warns(UserWarning, match="clip_skip=2 changes nothing"):
        captions.Captions(large, ["a fox"], recipe(clip_skip=2), embeds=False)
