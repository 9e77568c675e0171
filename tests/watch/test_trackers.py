"""TensorBoard and W&B: the scalars that sd-scripts logs, under its names, at its steps; and the key that nobody sees."""

import copy
import dataclasses
import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sdnb
from sdnb import Recipe
from sdnb.jobs import Job
from sdnb.lora import Norms, metadata
from sdnb.sd_scripts import supported
from sdnb.watch import trackers

UPDATES = json.loads((Path(__file__).parents[1] / "recorded" / "updates_of_sd_scripts.json").read_text())
RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "loop_of_sd_scripts.json").read_text())
KEY = "0123456789abcdef" * 2
LORA = Recipe(network_dim=2, train_batch_size=2, optimizer_type="AdamW", optimizer_args=(), lr_scheduler="constant", lr_warmup_steps=0)


@pytest.mark.parametrize("row", RECORDED["logs"], ids=lambda row: f"{row['kind']}, {row['optimizer_type']}")
def test_the_rates_are_named_as_by_sd_scripts(row):
    """Recorded from its generate_step_logs by benchmarks/record_loop.py."""
    factor = 2.0 if row["optimizer_type"] != "AdamW" else None
    rows = [(name, rate, factor) for name, rate in zip(row["groups"], row["rates"], strict=True)]
    ours = trackers.rates(rows, is_lora=True, unet_only="textencoder" not in row["groups"])
    assert ours == {name: value for name, value in row["scalars"].items() if name.startswith("lr/")}


def test_norms_are_logged_where_they_are_limited():
    norms = Norms(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.5]))
    logged = trackers._norms(SimpleNamespace(norms=norms))
    assert logged == {"max_norm/keys_scaled": 1, "max_norm/max_key_norm": 3.0, "norm/avg_key_norm": 2.0}
    assert trackers._norms(SimpleNamespace(norms=None)) == {}


def test_the_average_is_that_of_sd_scripts():
    average = trackers.Average(epoch_steps=3)
    assert [average.add(place, 2.0**place) for place in range(9)] == RECORDED["averages"]


def test_parameter_groups_have_names():
    weights = {name: torch.nn.Parameter(torch.zeros(1)) for name in ("text_encoder.a.lora_A.w", "unet.a.lora_A.w", "unet.a.lora_B.w")}
    text, down, up = weights.values()
    both = torch.optim.SGD([{"params": [down, up, text]}], lr=0.1)
    assert [name for name, _ in trackers.groups(both, weights)] == ["textencoder", "unet"]
    plus = torch.optim.SGD([{"params": [down]}, {"params": [up], "lr": 0.2}, {"params": [text]}], lr=0.1)
    assert [(name, group["lr"]) for name, group in trackers.groups(plus, weights)] == [
        ("textencoder", 0.1),
        ("unet", 0.1),
        ("unet plus", 0.2),
    ]


@pytest.mark.parametrize(
    "row", UPDATES["names"], ids=lambda row: f"{'blocks' if row['block_lr'] else row['encoders']}, {row['optimizer_type']}"
)
def test_groups_of_whole_models_have_names(row):
    """Recorded from its append_block_lr_to_logs and append_lr_to_logs by benchmarks/record_updates.py."""
    blocks = row["block_lr"] or [1e-5]
    weights = [("unet.w", rate) for rate in blocks if rate] + [("text_encoder.w", 1e-6), ("text_encoder_2.w", 1e-6)][: row["encoders"]]
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for _, rate in weights]
    trained = {f"{name}{place}": group["params"][0] for place, ((name, _), group) in enumerate(zip(weights, groups, strict=True))}
    rows = trackers.groups_of_whole(torch.optim.SGD(groups, lr=1.0), trained, row["block_lr"] or ())
    factor = 2.0 if row["optimizer_type"] == "Prodigy" else None
    assert trackers.rates([(name, group["lr"], factor) for name, group in rows], is_lora=False, unet_only=False) == row["logs"]


def test_one_group_stands_for_each_of_sdxls_models():
    weights = {name: torch.nn.Parameter(torch.zeros(1)) for name in ("unet.w", "text_encoder.w", "text_encoder_2.w")}
    optimizer = torch.optim.SGD(weights.values(), lr=1.0)
    assert [name for name, _ in trackers.groups_of_whole(optimizer, weights)] == ["unet", "text_encoder1", "text_encoder2"]
    del weights["text_encoder_2.w"]
    optimizer = torch.optim.SGD(weights.values(), lr=1.0)
    assert [name for name, _ in trackers.groups_of_whole(optimizer, weights)] == ["unet"]


class Log:
    """A tracker that keeps what it is told."""

    name = "log"

    def __init__(self):
        self.rows = []

    def log(self, values, step=None):
        self.rows.append((step, values))

    def finish(self):
        self.rows.append("finished")


def logged(recipe, steps, epoch_steps, tmp_path):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    log = Log()
    accelerator = SimpleNamespace(trackers=[log], logging_dir=tmp_path / "logs", init_trackers=lambda *args, **kwargs: None)
    kept = trackers.Trackers(recipe, accelerator, optimizer, {"unet.w": weight}, epoch_steps)
    for step in steps:
        kept.add(step, SimpleNamespace(get_last_lr=lambda: [0.5]), is_step_validation=step.index == 1)
    kept.close()
    return log.rows


def test_what_is_logged_when(tmp_path):
    steps = [sdnb.Step(i, float(i), 0.5, 0.1, steps=5, validation_loss=7.0 if i in (1, 3) else None) for i in range(5)]
    rows = logged(LORA.replace(network_train_unet_only=True), steps, 4, tmp_path)
    rate = {"lr/unet": 0.5, "lr/group0": 0.5}
    assert rows == [
        (1, {"loss/current": 0.0, "loss/average": 0.0, **rate}),
        (2, {"loss/current": 1.0, "loss/average": 0.5, **rate}),
        (2, {"loss/validation/step_average": 7.0, "loss/validation/step_divergence": 6.5}),
        (3, {"loss/current": 2.0, "loss/average": 1.0, **rate}),
        (4, {"loss/current": 3.0, "loss/average": 1.5, **rate}),
        (1, {"loss/validation/epoch_average": 7.0, "loss/validation/epoch_divergence": 5.5}),
        (1, {"loss/epoch_average": 1.5}),
        (5, {"loss/current": 4.0, "loss/average": 2.5, **rate}),
        (2, {"loss/epoch_average": 2.5}),
        "finished",
    ]
    rows = logged(Recipe(), steps[:1], 1, tmp_path)
    assert rows == [(1, {"loss": 0.0, "lr/unet": 0.5}), (1, {"loss/epoch": 0.0}), "finished"]


def test_what_is_asked_for():
    assert trackers.kind(Recipe()) is None and trackers.kind(Recipe(logging_dir="logs")) in ("tensorboard", None)  # where it is missing
    place = trackers.folder(Recipe(logging_dir="logs", log_prefix="run-"))
    assert place.parent == Path("logs") and re.fullmatch(r"run-\d{14}", place.name)
    with pytest.raises(ValueError, match="log_with=all needs logging_dir"):
        trackers.check(Recipe(log_with="all"))
    with pytest.raises(ValueError, match=r"log_with='aim': it must be one of tensorboard, wandb, all"):
        Recipe(log_with="aim")


def test_a_package_that_is_missing(monkeypatch, tmp_path):
    """sd-scripts raises for W&B, and does without TensorBoard."""
    monkeypatch.setattr(supported, "is_missing", lambda package: True)
    monkeypatch.setattr(trackers, "is_missing", lambda package: True)
    with pytest.raises(ImportError, match="pip install wandb"):
        trackers.check(Recipe(log_with="wandb"))
    settings = {"pretrained_model_name_or_path": "tiny", "train_data_dir": "emoji-ink", "output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="pip install wandb"):
        Job(LORA.replace(**settings, log_with="wandb"))
    trackers.check(Recipe(logging_dir="logs"))
    told = "logging_dir: TensorBoard is not installed, so no log is written for it: pip install tensorboard"
    assert told in supported.differences(Recipe(logging_dir="logs"))


def test_wandb_is_offline_unless_the_environment_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    named = Recipe(log_with="wandb", wandb_run_name="one")
    assert trackers._init_arguments(named, tmp_path) == {"wandb": {"mode": "offline", "dir": str(tmp_path), "name": "one"}}
    file = tmp_path / "trackers.toml"
    file.write_text('[wandb]\nentity = "us"\n[tensorboard]\nmax_queue = 5\n')
    found = trackers._init_arguments(named.replace(log_tracker_config=str(file)), None)
    assert found == {"wandb": {"mode": "offline", "entity": "us"}, "tensorboard": {"max_queue": 5}}
    monkeypatch.setenv("WANDB_MODE", "online")
    assert trackers._init_arguments(Recipe(), None) == {"wandb": {}}
    with pytest.raises(ValueError, match=r"log_tracker_config='none\.toml' cannot be read"):
        trackers.check(Recipe(logging_dir="logs", log_tracker_config="none.toml"))


def test_the_key_is_never_shown(tiny, ink, tmp_path):
    recipe = LORA.replace(wandb_api_key=KEY, log_config=True, logging_dir=str(tmp_path / "logs"))
    for shown in (repr(recipe), str(recipe.others), repr(Recipe(others={"wandb_api_key": KEY})), json.dumps(trackers._shown(recipe))):
        assert KEY not in shown
    with pytest.raises(ValueError) as error:
        Recipe(wandb_api_key=KEY, others={"wandb_api_key": KEY[::-1]})
    assert KEY not in str(error.value) and KEY[::-1] not in str(error.value)
    assert recipe.wandb_api_key == KEY and f"--wandb_api_key={KEY}" in recipe.to_flags()  # the reader's own command
    assert Recipe.parse(recipe.to_flags()) == recipe and pickle.loads(pickle.dumps(recipe)) == recipe
    assert "wandb_api_key" not in metadata.settings_of(Recipe)
    sd = dataclasses.replace(tiny, **{part: copy.deepcopy(module) for part, module in tiny.parts.items()})
    list(sdnb.train(sd, ink[:2], recipe, steps=1, save_to=tmp_path / "saves"))
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_tensorboard_reads_it_and_a_run_that_goes_on_goes_on(tiny, ink, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = LORA.replace(logging_dir=str(tmp_path / "logs"), log_prefix="a-", validation_split=0.5, log_config=True)

    def scalars(steps):
        before = {*(tmp_path / "logs").glob("*")}
        sd = dataclasses.replace(tiny, **{part: copy.deepcopy(module) for part, module in tiny.parts.items()})
        run = sdnb.train(sd, ink[:4], recipe, steps=3, save_to=tmp_path / "saves", save_every=1)
        losses = [step.loss for _, step in zip(range(steps), run, strict=False)]
        run.close()
        (place,) = {*(tmp_path / "logs").glob("*")} - before
        events = EventAccumulator(str(place / "network_train")).Reload()
        return losses, {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    losses, first = scalars(2)
    assert first["loss/current"] == [(place + 1, pytest.approx(loss)) for place, loss in enumerate(losses[:2])]
    assert {"loss/average", "lr/unet", "lr/textencoder", "lr/group1", "loss/validation/epoch_average", "loss/epoch_average"} <= set(first)
    next((tmp_path / "logs").iterdir()).rename(tmp_path / "logs" / "first")  # two runs of one second
    _, rest = scalars(2)
    assert [step for step, _ in rest["loss/current"]] == [3] and [step for step, _ in rest["loss/epoch_average"]] == [3]


def test_wandb_offline(tiny, ink, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    sd = dataclasses.replace(tiny, **{part: copy.deepcopy(module) for part, module in tiny.parts.items()})
    recipe = LORA.replace(log_with="wandb", logging_dir=str(tmp_path), wandb_run_name="one", wandb_api_key=KEY)
    assert len(list(sdnb.train(sd, ink[:4], recipe, steps=2))) == 2
    (place,) = tmp_path.rglob("offline-run-*")
    assert list(place.glob("*.wandb"))
