"""Dataset files whose subsets and datasets differ."""

import json
from collections import Counter

import pytest
import torch
from PIL import Image

import sdnb
from sdnb.datasets import cache
from sdnb.datasets.cache import Cache
from sdnb.prepare import prepare
from sdnb.saves.owners import owner


@pytest.fixture
def folders(tmp_path):
    """Two folders of four pictures each, `a` and `b`."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (64, 64 if i % 2 else 32), (50 * i, 100, 90 if name == "a" else 200)).save(tmp_path / name / f"{i}.png")
            (tmp_path / name / f"{i}.txt").write_text(f"{name}{i}, red, blue, green", encoding="utf-8")
    return tmp_path


def file(folders, general="", a="", b="", *, dataset_a="", dataset_b=None, ending=".toml"):
    """A dataset file of both folders, in one dataset, or in two with `dataset_b`."""
    tables = {"general": table(general) | {"caption_extension": "txt"}, "datasets": [table(dataset_a)]}
    if dataset_b is not None:
        tables["datasets"].append(table(dataset_b))
    for name, settings, dataset in (("a", a, tables["datasets"][0]), ("b", b, tables["datasets"][-1])):
        dataset.setdefault("subsets", []).append(table(settings) | {"image_dir": str(folders / name)})
    path = folders / f"dataset{ending}"
    if ending == ".json":
        path.write_text(json.dumps(tables), encoding="utf-8")
        return path
    lines = ["[general]", *lines_of(tables["general"])]
    for dataset in tables["datasets"]:
        lines += ["[[datasets]]", *lines_of(dataset)]
        for subset in dataset["subsets"]:
            lines += ["[[datasets.subsets]]", *lines_of(subset)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def table(settings):
    return dict(settings or {})


def lines_of(settings):
    def written(value):
        return f"{{{', '.join(lines_of(value))}}}" if isinstance(value, dict) else json.dumps(value)

    return [f"{name} = {written(value)}" for name, value in settings.items() if name != "subsets"]


def test_subsets_have_settings_of_their_own(tiny, folders):
    path = file(
        folders, {"shuffle_caption": True}, {"flip_aug": True, "keep_tokens": 2}, {"caption_dropout_rate": 1.0}, dataset_a={"batch_size": 3}
    )
    found = sdnb.pictures(path)
    assert dict(found.settings) == {"shuffle_caption": True, "train_batch_size": 3}
    assert dict(found[0].settings) == {"shuffle_caption": True, "train_batch_size": 3, "flip_aug": True, "keep_tokens": 2}
    batches = Cache(tiny, found, sdnb.Recipe(keep_tokens=1))
    assert [len(latents) for latents in batches.latents] == [2] * 4 + [1] * 4
    texts = {text for number in range(40) for text in batches.batch(number).captions}
    assert sorted(len(batches.batch(number).captions) for number in range(3)) == [2, 3, 3]
    assert "" in texts  # of b, always
    assert {text[:7] for text in texts if text} == {f"a{i}, red" for i in range(4)}
    assert {text[9:] for text in texts if text} == {"blue, green", "green, blue"}


def test_a_batch_has_pictures_of_one_dataset_and_as_many_as_that_says(tiny, fresh, folders):
    path = file(
        folders, dataset_a={"resolution": 64, "batch_size": 2, "enable_bucket": True}, dataset_b={"resolution": [64, 32], "batch_size": 3}
    )
    found, recipe = sdnb.pictures(path), sdnb.Recipe(train_batch_size=7)
    assert found.settings == ()
    batches = Cache(tiny, found, recipe)
    shown, kinds = Counter(), set()
    each = cache.batches(tiny, found, recipe)
    assert each == 1 + 1 + 2  # two buckets of two pictures, and four pictures in batches of three
    for number in range(3 * each):
        batch = batches.batch(number)
        (name,) = {text[0] for text in batch.captions}
        kinds.add((name, len(batch.captions), tuple(batch.latents.shape[2:])))
        shown.update(batch.captions)
        halves = [batches.batch(number, process, 2) for process in (0, 1)]
        assert all(len(half.captions) in {"a": (2,), "b": (3, 1)}[half.captions[0][0]] for half in halves)
    wide = batches.places[0].size
    assert wide[0] > wide[1]
    assert kinds == {("a", 2, (16, 16)), ("a", 2, (wide[1] // 4, wide[0] // 4)), ("b", 3, (8, 16)), ("b", 1, (8, 16))}
    assert set(shown.values()) == {3}
    assert cache.largest(tiny, found, recipe) == ((64, 64), 2)
    ready = prepare(fresh, recipe, size=(64, 64), pictures=2)
    assert ready.key.pictures == 2
    steps = list(sdnb.train(fresh, found, recipe, steps=each))
    assert sorted(step.pictures for step in steps) == [1, 2, 2, 3]
    assert cache.steps(tiny, found, recipe.replace(max_train_epochs=2)) == 2 * each


def test_settings_that_are_not_in_the_file_are_the_recipes(tiny, folders):
    path, recipe = file(folders, b={"num_repeats": 3}), sdnb.Recipe(dataset_repeats=2, caption_extension="none")
    assert [one.repeats for one in sdnb.pictures(path, recipe=recipe)] == [2] * 4 + [3] * 4
    assert sdnb.pictures(path, recipe=recipe).captions[0] == "a0, red, blue, green"  # the file's ending wins
    path.write_text(path.read_text().replace('caption_extension = "txt"', ""))
    assert set(sdnb.pictures(path, recipe=recipe).captions) == {""}
    assert sdnb.pictures(path, recipe=sdnb.Recipe(caption_extension="txt")).captions[0] == "a0, red, blue, green"


def test_a_json_file_is_the_same(folders):
    settings = {"dataset_a": {"batch_size": 2}, "dataset_b": {"batch_size": 3}, "a": {"is_reg": False}, "b": {"class_tokens": None}}
    path = file(folders, **settings, ending=".json")
    found = sdnb.pictures(path)
    assert [(one.caption, one.settings, one.dataset) for one in found][3:5] == [
        ("a3, red, blue, green", (("train_batch_size", 2),), 0), ("b0, red, blue, green", (("train_batch_size", 3),), 1),
    ]  # fmt: skip
    path.write_text('{"datasets": 3}')
    with pytest.raises(ValueError, match=r"dataset\.json: it must have"):
        sdnb.pictures(path)


def test_other_settings_of_some_pictures_are_another_run(tiny, folders):
    def pictures_of(tokens):
        found = sdnb.pictures(file(folders, a={"keep_tokens": tokens}))
        return owner(found.recipe(sdnb.Recipe()), tiny, {}, found)["pictures"]

    assert pictures_of(1) == pictures_of(1) != pictures_of(2)


@pytest.mark.parametrize(
    ("where", "settings", "wrong"),
    [
        ("a", {"conditioning_data_dir": "x"}, "some subsets have a conditioning_data_dir"),
        ("a", {"resolution": 64}, "resolution in subsets"),
        ("general", {"image_dir": "x"}, "image_dir in general"),
        ("a", {"metadata_file": "x"}, "some subsets have a metadata_file"),
        ("general", {"network_multiplier": "half"}, "network_multiplier = 'half' in general"),
        ("a", {"custom_attributes": {"diff_output_preservation": True}}, "custom_attributes with diff_output_preservation"),
        ("a", {"keep_tokens": -1}, "keep_tokens=-1"),
        ("dataset_a", {"batch_size": 0}, "train_batch_size=0"),
    ],
)  # fmt: skip
def test_what_a_dataset_file_may_not_say(folders, where, settings, wrong):
    with pytest.raises(ValueError, match=wrong):
        sdnb.pictures(file(folders, **{where: settings}))


def test_idle_settings_and_repeated_folders(folders):
    path = file(folders, {"cache_info": True, "network_multiplier": 1.0, "custom_attributes": {}}, a={"random_crop": False})
    assert len(sdnb.pictures(path)) == 8
    with pytest.warns(UserWarning, match="network_multiplier changes nothing, as in sd-scripts"):
        assert sdnb.pictures(file(folders, {"network_multiplier": 0.5})).settings == sdnb.pictures(file(folders, {})).settings
    path = file(folders, {"cache_info": True, "network_multiplier": 1.0, "custom_attributes": {}}, a={"random_crop": False})
    text = path.read_text().replace("custom_attributes = {}", "")
    again = f"\n[[datasets.subsets]]\nimage_dir = {json.dumps(str(folders / 'a'))}\n"
    path.write_text(text + again, encoding="utf-8")
    with pytest.warns(UserWarning, match="stands twice in one dataset: only the first counts"):
        assert len(sdnb.pictures(path)) == 8
    path.write_text(text + "\n[[datasets]]" + again, encoding="utf-8")
    assert len(sdnb.pictures(path)) == 12


def test_settings_of_a_subset_are_checked_as_a_recipes_are(tiny, folders):
    found = sdnb.pictures(file(folders, a={"shuffle_caption": True}))
    with pytest.raises(ValueError, match="shuffle_caption"):
        Cache(tiny, found, sdnb.Recipe(cache_text_encoder_outputs=True))
    with pytest.raises(ValueError, match="multiples of"):
        sdnb.train(tiny, sdnb.pictures(file(folders, dataset_a={"resolution": [64, 60]}, dataset_b={})), sdnb.Recipe())
    assert torch.equal(*(Cache(tiny, found, sdnb.Recipe()).batch(1).t for _ in range(2)))
