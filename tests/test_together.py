"""Whole runs of small models of every family, from pictures of several shapes to the losses, beside loops written by hand."""

import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import sdnb
from sdnb import Recipe, training
from sdnb.lora import files

from .tools import narrow

QUICK = Recipe(
    train_batch_size=2,
    optimizer_type="AdamW",
    optimizer_args=("eps=1e-4",),  # with the usual one, gradients of next to nothing decide where a weight goes
    lr_scheduler="constant",
    lr_warmup_steps=0,
    learning_rate=1e-3,
)
LORA = {"network_module": "networks.lora", "network_dim": 2, "network_alpha": 1.0}
SIZES = {"red": (64, 64), "green": (70, 70), "blue": (128, 32), "grey": (144, 40), "pink": (64, 64)}
STEPS = 4


def twin(sd):
    return dataclasses.replace(sd, **{part: copy.deepcopy(module) for part, module in sd.parts.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two shapes, whose captions name them."""
    folder = tmp_path_factory.mktemp("pictures")
    for colour, size in SIZES.items():
        Image.new("RGB", size, colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"{colour}, a wall, of paint", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Family -> a model of it; not to be changed."""
    root = tmp_path_factory.mktemp("models")
    return {family: sdnb.load(narrow.make(family, root / family), device="cpu") for family in ("sd2", "sdxl")}


def dataset(folder, path, *, settings="", subset=""):
    path.write_text(
        f"[general]\ncaption_extension = '.txt'\n{settings}\n[[datasets]]\n[[datasets.subsets]]\n"
        f"image_dir = {json.dumps(str(folder))}\n{subset}\n",
        encoding="utf-8",
    )
    return sdnb.pictures(path)


def conditioned(sd, captions):
    """Context and pooled embeddings, asked of the text encoders themselves."""
    ids = sd.tokenizer(list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    if sd.family != "sdxl":
        return sd.text_encoder(ids).last_hidden_state, None
    second = sd.tokenizer_2(list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    wide = sd.text_encoder_2(second, output_hidden_states=True)
    return torch.cat([sd.text_encoder(ids, output_hidden_states=True).hidden_states[-2], wide.hidden_states[-2]], -1), wide.text_embeds


def time_ids(captions, latents):
    """Height and width before, the empty space above and on the left were it fitted in whole, height and width in training."""
    rows = []
    for caption in captions:
        width, height = SIZES[caption.partition(",")[0]]
        target = [8 * side for side in latents.shape[2:]]
        ratio = min(target[1] / width, target[0] / height)
        rows.append([height, width, (target[0] - height * ratio) // 2, (target[1] - width * ratio) // 2, *target])
    return torch.tensor(rows).float()


def by_hand(sd, pictures, recipe, *, encoders=(), gamma=None):
    """The loop without any of ours but the batches' pictures, noise and levels."""
    batches = training.Cache(sd, pictures, recipe)
    parts = [sd.unet, *(getattr(sd, name) for name in encoders)]
    optimizer = torch.optim.AdamW([p for part in parts for p in part.parameters() if p.requires_grad], lr=recipe.learning_rate, eps=1e-4)
    scheduler, found = sd.noise_scheduler, []
    for part in parts:
        part.train()
    for number in range(STEPS):
        batch = batches.batch(number)
        with torch.set_grad_enabled(bool(encoders)):
            context, pooled = conditioned(sd, batch.captions)
        noisy = scheduler.add_noise(batch.latents, batch.noise, batch.t)
        added = {} if pooled is None else {"text_embeds": pooled, "time_ids": time_ids(batch.captions, batch.latents)}
        prediction = sd.unet(noisy, batch.t, context, added_cond_kwargs=added).sample
        v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(batch.latents, batch.noise, batch.t) if v else batch.noise
        each = F.mse_loss(prediction, target, reduction="none").mean((1, 2, 3))
        if gamma is not None:
            snr = scheduler.alphas_cumprod[batch.t] / (1 - scheduler.alphas_cumprod[batch.t])
            each = each * snr.clamp(max=gamma) / (snr + 1 if v else snr)
        loss = each.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found, {tuple(batches.batch(number).latents.shape[2:]) for number in range(STEPS)}


def losses(run):
    return [step.loss for step in run]


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "LoRA"])
def test_sdxl_trains_as_by_hand(families, folder, adapters):
    """Two shapes, a cut in the size conditioning, cached captions, and losses weighted by the noise."""
    others = {"enable_bucket": True, "cache_latents": True, "cache_text_encoder_outputs": True}
    others |= {**LORA, "network_train_unet_only": True} if adapters else {}
    recipe, pictures = QUICK.replace(min_snr_gamma=5.0, others=others), sdnb.pictures(folder)
    ours, theirs = twin(families["sdxl"]), twin(families["sdxl"])
    for sd in (ours, theirs):
        if adapters:
            torch.manual_seed(1)
            files.add(sd, rank=2, alpha=1.0)
        else:
            sd.unet.requires_grad_(True)
    found = losses(sdnb.train(ours, pictures, recipe, steps=STEPS))
    expected, shapes = by_hand(theirs, pictures, recipe, gamma=5.0)
    assert len(shapes) == 2
    assert found == pytest.approx(expected, rel=1e-5)
    for (name, one), other in zip(ours.unet.named_parameters(), theirs.unet.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_v_prediction_trains_as_by_hand(families, folder, gamma):
    assert families["sd2"].noise_scheduler.config.prediction_type == "v_prediction"
    ours, theirs = twin(families["sd2"]), twin(families["sd2"])
    theirs.unet.requires_grad_(True)
    recipe, pictures = QUICK.replace(min_snr_gamma=gamma), sdnb.pictures(folder)
    assert losses(sdnb.train(ours, pictures, recipe, steps=STEPS)) == pytest.approx(
        by_hand(theirs, pictures, recipe, gamma=gamma)[0], rel=1e-5
    )


@pytest.mark.parametrize("family", ["tiny", "sdxl"])
def test_trained_encoders_get_the_gradients_of_a_loop_by_hand(tiny, families, folder, family):
    """All encoders' adapters move, as by hand, with captions that are shuffled and left out."""
    original = tiny if family == "tiny" else families[family]
    names = ("text_encoder", "text_encoder_2")[: 1 if family == "tiny" else 2]
    recipe = QUICK.replace(caption_dropout_rate=0.3, others={**LORA, "shuffle_caption": True, "keep_tokens": 1})
    ours, theirs = twin(original), twin(original)
    pictures = sdnb.pictures(folder)[:2] if family == "sdxl" else sdnb.pictures(folder)
    for sd in (ours, theirs):
        torch.manual_seed(1)
        files.add(sd, rank=2, alpha=1.0, text_encoder=True)
    # SDXL's sizes are told by captions, which some of these have lost
    if family == "sdxl":
        recipe = recipe.replace(caption_dropout_rate=0.0)
    found = losses(sdnb.train(ours, pictures, recipe, steps=STEPS))
    expected, _ = by_hand(theirs, pictures, recipe, encoders=names)
    assert found == pytest.approx(expected, rel=1e-5)
    for part in ("unet", *names):
        moved = 0
        for (name, one), other in zip(getattr(ours, part).named_parameters(), getattr(theirs, part).parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3, msg=f"{part} {name}")
            moved += ".lora_B" in name and bool(one.abs().sum() > 0)
        assert moved
    # the layers that only the pooled embedding sees
    if family == "sdxl":
        last = [p for name, p in ours.text_encoder_2.named_parameters() if f"layers.{narrow.LAYERS[1] - 1}." in name and ".lora_B" in name]
        assert all(p.abs().sum() > 0 for p in last)


def test_trained_encoders_read_long_captions_whole(tiny, folder, tmp_path):
    """What a frozen encoder's cache says of captions in parts, an untrained adapter says too; the end of a caption counts."""
    for name, end in (("a", "cat"), ("b", "dog")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), "red").save(tmp_path / name / "x.png")
        (tmp_path / name / "x.txt").write_text("red " * 90 + end, encoding="utf-8")
    recipe = QUICK.replace(train_batch_size=1, others={**LORA, "max_token_length": 150})
    frozen = recipe.replace(others={**dict(recipe.others), "network_train_unet_only": True})
    first = {name: losses(sdnb.train(twin(tiny), sdnb.pictures(tmp_path / name), recipe, steps=1)) for name in "ab"}
    assert first["a"] != first["b"]
    assert first["a"] == pytest.approx(losses(sdnb.train(twin(tiny), sdnb.pictures(tmp_path / "a"), frozen, steps=1)), rel=1e-5)


def test_a_dataset_file_decides_before_the_recipe(tiny, folder, tmp_path, monkeypatch):
    pictures = dataset(folder, tmp_path / "dataset.toml", settings="batch_size = 3\nresolution = 32", subset="num_repeats = 2")
    shapes = []
    true = training.denoising_loss
    monkeypatch.setattr(training, "denoising_loss", lambda sd, batch, recipe: shapes.append(batch.latents.shape) or true(sd, batch, recipe))
    steps = list(sdnb.train(twin(tiny), pictures, QUICK.replace(train_batch_size=1, resolution=72), steps=1))  # 72 would be refused
    assert [step.pictures for step in steps] == [3]
    assert shapes == [(3, 4, 8, 8)]
    oblong = dataset(folder, tmp_path / "oblong.toml", settings="resolution = [64, 32]")
    list(sdnb.train(twin(tiny), oblong, QUICK.replace(resolution=64), steps=1, checkpointing="full"))
    assert shapes[-1] == (2, 4, 8, 16)
    list(sdnb.train(twin(tiny), sdnb.pictures(folder), QUICK.replace(others={"resolution": "32,64"}), steps=1))
    assert shapes[-1] == (2, 4, 16, 8)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("resolution = [64, 60]", "multiples of"),
        ("enable_bucket = true\nbucket_reso_steps = 12", "bucket_reso_steps=12"),
        ("enable_bucket = true\nmin_bucket_reso = 96", "min_bucket_reso"),
    ],
)
def test_sizes_of_a_dataset_file_are_refused_at_once(tiny, folder, tmp_path, monkeypatch, settings, said):
    monkeypatch.setattr(training, "Cache", lambda *args, **kwargs: pytest.fail("the pictures were encoded first"))
    sd, pictures = twin(tiny), dataset(folder, tmp_path / "dataset.toml", settings=settings)
    with pytest.raises(ValueError, match=said):
        sdnb.train(sd, pictures, QUICK.replace(others=LORA), save_to=tmp_path / "saves")
    assert not (tmp_path / "saves").exists()
    assert not files.is_added(sd.unet)
    for wrong in ({"deepspeed": True}, {"max_token_length": 74}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            sdnb.train(sd, sdnb.pictures(folder), QUICK.replace(others=wrong))


def test_other_repeats_are_another_run(tiny, folder, tmp_path):
    once, often = (dataset(folder, tmp_path / f"{n}.toml", subset=f"num_repeats = {n}") for n in (1, 2))
    run = sdnb.train(twin(tiny), once, QUICK, steps=2, save_to=tmp_path / "saves", save_every=1)
    next(run)
    run.close()
    with pytest.raises(ValueError, match="pictures or captions are others"):
        sdnb.train(twin(tiny), often, QUICK, steps=2, save_to=tmp_path / "saves")


def test_memory_is_counted_for_the_largest_bucket(tiny, folder, monkeypatch):
    asked = []
    true = sdnb.trainer.recomputing.resolve
    monkeypatch.setattr(
        sdnb.trainer.recomputing, "resolve", lambda unet, choice, inputs: asked.append(inputs) or true(unet, choice, inputs)
    )
    wide = [one for one in sdnb.pictures(folder) if one.size[0] > 100]
    recipe = QUICK.replace(others={"enable_bucket": True})
    assert len(losses(sdnb.train(twin(tiny), wide, recipe, steps=1, checkpointing="full"))) == 1
    assert asked[0]["sample"].shape == (1, 4, 8, 32)  # there is one of that size


def test_regularization_pictures_weigh_what_is_asked(tiny, folder, tmp_path, monkeypatch):
    """Each batch's loss, against the same picture by picture."""
    (tmp_path / "reg").mkdir()
    for colour in ("white", "black"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "reg" / f"{colour}.png")
    pictures = sdnb.pictures(folder, reg_data_dir=tmp_path / "reg")
    batches, true = [], training.denoising_loss
    monkeypatch.setattr(training, "denoising_loss", lambda sd, batch, recipe: batches.append(batch) or true(sd, batch, recipe))
    recipe = QUICK.replace(train_batch_size=5, learning_rate=1e-9, resolution=32, others={"prior_loss_weight": 0.25})
    sd = twin(tiny)
    found, expected = losses(sdnb.train(sd, pictures, recipe, steps=2)), []
    for batch in batches:
        weights = [0.25 if text == "" else 1.0 for text in batch.captions]  # those for regularization have no caption
        assert batch.weights.tolist() == weights
        with torch.no_grad():
            noisy = sd.noise_scheduler.add_noise(batch.latents, batch.noise, batch.t)
            each = F.mse_loss(sd.unet(noisy, batch.t, batch.context).sample, batch.noise, reduction="none").mean((1, 2, 3))
        expected.append((each * torch.tensor(weights)).mean().item())
    assert sum(text == "" for batch in batches for text in batch.captions) == 5
    assert found == pytest.approx(expected, rel=1e-4)
    assert training.Cache(tiny, pictures, recipe.replace(prior_loss_weight=1.0)).batch(0).weights is None  # 1 is sd-scripts' default


@pytest.mark.parametrize("family", ["tiny", "sd2"])
def test_the_layer_that_is_read_is_the_last_of_a_shorter_encoder(tiny, families, family):
    sd = tiny if family == "tiny" else families[family]
    cut = twin(sd)
    layers = cut.text_encoder.encoder.layers if hasattr(cut.text_encoder, "encoder") else cut.text_encoder.text_model.encoder.layers
    del layers[-1]
    text = "a red apple"
    for clip_skip, expected in ((1, sd.conditioning([text])[0]), (2, cut.conditioning([text])[0])):
        torch.testing.assert_close(sd.conditioning([text], clip_skip=clip_skip)[0], expected)
        for length in (75, 150):
            recipe = Recipe(others={"clip_skip": clip_skip, "max_token_length": length})
            found = sdnb.datasets.captions.Captions(sd, [text], recipe).condition([text])["context"]
            torch.testing.assert_close(found[:, :6], expected[:, :6], rtol=1e-4, atol=1e-5)
    one, other = (sd.draw(text, steps=1, size=64, clip_skip=clip_skip) for clip_skip in (None, 2))
    assert one.tobytes() != other.tobytes()
    assert other.tobytes() == cut.draw(text, steps=1, size=64).tobytes()


def test_layers_that_are_not_read_are_not_trained(tiny, folder, families):
    recipe = QUICK.replace(resolution=32, others={**LORA, "clip_skip": 2})
    sd = twin(tiny)
    losses(sdnb.train(sd, sdnb.pictures(folder)[:2], recipe, steps=1))
    moved = {name.split("layers.")[1][0] for name, p in sd.text_encoder.named_parameters() if ".lora_B" in name and p.abs().sum() > 0}
    assert moved == {"0"}  # of two layers
    with pytest.warns(UserWarning, match="clip_skip=2 changes nothing: Stable Diffusion XL has a layer of its own"):
        sdnb.datasets.captions.Captions(families["sdxl"], ["a fox"], recipe, embeds=False)
