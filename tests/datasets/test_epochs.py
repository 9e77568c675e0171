"""Which pictures are in which batch and which step of an epoch: as sd-scripts and accelerate have it, short ones too."""

import collections
import copy
import dataclasses
import json

import pytest
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_pre_hook

import sdnb
from sdnb import Recipe, training
from sdnb.datasets import Cache, Epochs, cache
from sdnb.saves import folders, owners

from ..conftest import ROOT

FACTS = json.loads((ROOT / "tests" / "recorded" / "parts_of_sd_scripts.json").read_text())
SIDES = ((64, 64), (64, 64), (96, 64), (64, 96), (64, 96), (128, 64), (64, 64))
SHORT = Recipe(
    train_batch_size=2, gradient_accumulation_steps=2, resolution=32, learning_rate=1e-3, lr_scheduler="constant", lr_warmup_steps=0,
    optimizer_type="AdamW", optimizer_args=(), seed=1, others={"network_dim": 2, "network_train_unet_only": True},
)  # fmt: skip
"""With 5 pictures an epoch has a step of two batches and one of one, and one of the batches has one picture."""


def twin(tiny):
    return dataclasses.replace(tiny, **{part: copy.deepcopy(module) for part, module in tiny.parts.items()})


@pytest.mark.parametrize("row", FACTS["epochs"], ids=lambda row: "-".join(map(str, list(row.values())[:4])))
def test_epochs_have_the_batches_of_sd_scripts(tiny, tmp_path, row):
    for folder, count in ((f"{row['repeats']}_pictures", len(SIDES)), ("1_reg", row["reg"])):
        where = tmp_path / folder.partition("_")[2] / folder
        where.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", SIDES[number]).save(where / f"{number}.png")
    reg = tmp_path / "reg" if row["reg"] else None
    pictures = sdnb.pictures(tmp_path / "pictures", reg_data_dir=reg)
    bucketed = (
        {"enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 256, "bucket_reso_steps": 32} if row["enable_bucket"] else {}
    )
    recipe = Recipe(resolution=64, train_batch_size=row["train_batch_size"], others=bucketed)
    epochs = cache.epochs(tiny, pictures, recipe)
    places = cache._places(tiny, pictures, recipe)
    assert epochs.batches == cache.batches(tiny, pictures, recipe) == row["batches"]

    def told(batches):
        """How many batches there are of each size of picture and number, and how often each picture is shown."""
        return collections.Counter((tuple(size), len(some)) for size, some in batches), collections.Counter(
            name for _, some in batches for name in some
        )

    for number, dealt in enumerate(row["dealt"]):
        own = [epochs.shares(number * epochs.batches + place)[0] for place in range(epochs.batches)]
        for some in own:
            assert len({places[i].size for i in some}) == 1
        names = [("r" if one.is_reg else "") + one.path.stem for one in pictures]
        assert told([(places[some[0]].size, [names[i] for i in some]) for some in own]) == told(dealt)
    for number, processes, rounds in ((1, 1, 1), (3, 2, 1), (2, 1, 4), (5, 3, 2)):
        counted = recipe.replace(gradient_accumulation_steps=rounds, others={**bucketed, "max_train_epochs": number})
        each = -(-row["batches"] // (processes * rounds))  # ceil(batches / processes / rounds)
        assert cache.steps(tiny, pictures, counted, processes) == number * each
    assert cache.steps(tiny, pictures, recipe) == recipe.max_train_steps == 1600


def test_steps_have_the_batches_that_accelerate_gives_sd_scripts():
    for row in FACTS["updates"]:
        epochs = Epochs([range(row["batches"])], [1], rounds=row["gradient_accumulation_steps"])
        steps = [list(epochs.numbers(step)) for step in range(2 * epochs.steps)]
        assert [len(numbers) for numbers in steps] == [count for count, _ in row["updates"]]
        assert [number for numbers in steps for number in numbers] == list(range(2 * row["batches"]))
        assert all(epochs.step(number) == step for step, numbers in enumerate(steps) for number in numbers)
        assert epochs.are_whole == (row["batches"] % epochs.rounds == 0)
        for count, gradient in row["updates"]:
            assert gradient == pytest.approx(count / epochs.rounds)


def test_processes_share_an_epoch_as_accelerate_has_them_share_it():
    for row in FACTS["shares"]:
        alone = Epochs([range(row["batches"])], [1], seed=3)
        order = [alone.shares(place) for place in range(row["batches"])]
        together = dataclasses.replace(alone, processes=row["processes"])
        found = [together.shares(number) for number in range(together.batches)]
        for process, places in enumerate(row["shares"]):
            assert [shares[process] for shares in found] == [order[place][0] for place in places]
        assert together.are_whole == (row["batches"] % row["processes"] == 0)


def test_the_smaller_batch_comes_anywhere():
    places = collections.Counter()
    for seed in range(60):
        epochs = Epochs([range(10)], [4], seed=seed)
        lengths = [len(epochs.shares(number)[0]) for number in range(3)]
        assert sorted(lengths) == [2, 4, 4]
        places[lengths.index(2)] += 1
    assert min(places[place] for place in range(3)) > 8


def test_processes_that_have_different_sizes_draw_for_themselves(tiny, tmp_path):
    for number, size in enumerate(SIDES):
        Image.new("RGB", size, (30 * number, 90, 0)).save(tmp_path / f"{number}.png")
    bucketed = {"enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 32}
    made = Cache(tiny, sdnb.pictures(tmp_path), SHORT.replace(resolution=64, others=bucketed))
    mixed = next(number for number in range(40) if len({made.encoded.shape(some[0]) for some in made.epochs(2).shares(number)}) == 2)
    first, second = (made.batch(mixed, process, 2) for process in range(2))
    assert first.latents.shape[2:] != second.latents.shape[2:]
    assert first.t[0] != second.t[0]
    alike = next(number for number in range(40) if sorted(map(len, made.epochs(2).shares(number))) == [1, 2] and number != mixed)
    parts = [made.batch(alike, process, 2) for process in range(2)]
    assert sorted(len(part.t) for part in parts) == [1, 2]


def test_a_short_step_learns_from_fewer_batches_and_divides_by_as_many(tiny, ink):
    """Its gradients, against those of its batches one by one; what it tells; the step that is counted; and the size of the memory plan."""
    sd, gradients = twin(tiny), []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, args, kwargs: gradients.append([p.grad.clone() for p in optimizer.param_groups[0]["params"]])
    )
    try:
        recipe = SHORT.replace(learning_rate=0.0, unet_lr=1e-30)
        steps = list(sdnb.train(sd, ink[:5], recipe, steps=4))
    finally:
        hook.remove()
    made = Cache(sd, ink[:5], recipe)
    assert [made.epochs().numbers(step) for step in range(4)] == [range(2), range(2, 3), range(3, 5), range(5, 6)]
    parameters = [p for p in sd.unet.parameters() if p.requires_grad]
    sd.unet.train()
    for step, found in zip(steps, gradients, strict=True):
        batches = [made.batch(number) for number in made.epochs().numbers(step.index)]
        losses = [training.denoising_loss(sd, batch, recipe) for batch in batches]
        assert step.loss == pytest.approx(float(sum(losses).detach()) / len(losses), rel=1e-5)
        assert step.pictures == sum(len(batch.t) for batch in batches)
        for mine, theirs in zip(torch.autograd.grad(sum(losses) / 2, parameters), found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-8)
    assert sum(step.pictures for step in steps[:2]) == sum(step.pictures for step in steps[2:]) == 5
    assert cache.largest(tiny, ink[:5], recipe) == ((32, 32), 2)
    assert cache.largest(tiny, ink[:5], recipe.replace(train_batch_size=8)) == ((32, 32), 5)


def test_a_run_goes_on_inside_an_epoch_that_ends_short(tiny, ink, tmp_path, monkeypatch):
    def run(**more):
        return [
            (step.loss, step.pictures)
            for step in sdnb.train(twin(tiny), ink[:5], SHORT.replace(**more), steps=4, save_to=tmp_path, save_every=1, keep=9)
        ]

    whole = run()
    for left in (3, 2, 1):
        for save in folders.found(tmp_path)[left:]:
            folders.remove(save)
        assert run() == whole[left:]
    # saves of a time when such batches were filled up
    before = owners.owner

    def of_then(*args, **kwargs):
        return {name: value for name, value in before(*args, **kwargs).items() if name != "are_whole"}

    for more, goes_on in (({}, False), ({"train_batch_size": 5, "gradient_accumulation_steps": 1}, True)):
        monkeypatch.setattr(owners, "owner", of_then)
        for save in folders.found(tmp_path):
            folders.remove(save)
        list(sdnb.train(twin(tiny), ink[:5], SHORT.replace(**more), steps=2, save_to=tmp_path))
        monkeypatch.setattr(owners, "owner", before)
        if goes_on:
            assert len(run(**more)) == 2
        else:
            with pytest.raises(ValueError, match=r"older sdnb filled up the last batches of its epochs.*resume=False"):
                run(**more)
