"""Where a run begins: initial_step, initial_epoch and resume, with a save of ours and with sd-scripts' own state."""

import json

import pytest
from safetensors.torch import load_file, save_file

import sdnb
from sdnb.saves import Timing, folders, states
from sdnb.sd_scripts import supported
from sdnb.sections import Saves

from ..tools import narrow
from .test_jobs import data as data
from .test_jobs import job, names
from .test_timing import RECORDED


@pytest.mark.parametrize("row", RECORDED["starts"], ids=lambda row: "-".join(map(str, row.values()))[:40])
def test_a_run_begins_where_sd_scripts_begins(row):
    settings = Saves(**{name: row[name] for name in ("initial_step", "initial_epoch", "skip_until_initial_step") if row[name] is not None})
    if row["raises"]:
        with pytest.raises(ValueError, match="would begin after step"):
            Timing.of(settings, row["steps"], row["per_epoch"])
        return
    when = Timing.of(settings, row["steps"], row["per_epoch"])
    epoch, number = row["epoch"], row["number"]
    assert (when.uncounted, when.number(when.first)) == (epoch * row["per_epoch"], number)
    # its loop ends with the last epoch, or where its own count reaches the steps of the run
    trained = min((when.epochs - epoch) * row["per_epoch"] - number, row["steps"] - number)
    assert when.steps - when.first == trained


def test_a_run_that_begins_later_has_later_pictures_and_sd_scripts_names(tmp_path, data):
    whole = list(job(tmp_path, "--max_train_epochs=3", out="whole").run())
    flags = ("--max_train_epochs=3", "--save_every_n_epochs=1", "--save_every_n_steps=2")
    steps = list(job(tmp_path, *flags, "--initial_epoch=2").run())
    assert [step.index for step in steps] == [3, 4, 5, 6, 7, 8]
    assert names(tmp_path / "out") == [
        *(f"at-step{number:08d}.safetensors" for number in (2, 4, 6)), "epoch-000002.safetensors", "last-saves", "last.safetensors",
    ]  # fmt: skip
    skipped = list(job(tmp_path, *flags, "--initial_step=4", "--skip_until_initial_step", out="skipped").run())
    assert [step.index for step in skipped] == [4, 5, 6, 7, 8]
    assert steps[0].loss != whole[0].loss


def test_a_save_of_ours_elsewhere_is_gone_on_from_exactly(tmp_path, data):
    whole = list(job(tmp_path, "--max_train_steps=4", "--save_every_n_steps=2", "--save_state", out="whole").run())
    saved = tmp_path / "whole" / "last-saves" / "step-00000002"
    rest = list(job(tmp_path, "--max_train_steps=4", f"--resume={saved}").run())
    assert [(step.index, step.loss) for step in rest] == [(step.index, step.loss) for step in whole[2:]]
    assert [path.name for path in folders.found(tmp_path / "out" / "last-saves")] == ["step-00000004"]
    assert len(list(job(tmp_path, "--max_train_steps=5", f"--resume={saved}").run())) == 1  # its own saves come first
    with pytest.raises(ValueError, match=r"another run: learning_rate was 0\.001 and is 0\.002"):
        job(tmp_path, "--learning_rate=2e-3", f"--resume={saved}", out="other").run()


def state(folder, tensors, step=None):
    """As accelerate saves it for sd-scripts; the pickles are no pickles, so that reading one fails."""
    folder.mkdir()
    for number, part in enumerate(tensors):
        save_file(part, folder / f"model{f'_{number}' if number else ''}.safetensors", {"format": "pt"})
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        (folder / name).write_bytes(b"never read")
    if step is not None:
        (folder / "train_state.json").write_text(json.dumps({"current_epoch": 1, "current_step": step}), encoding="utf-8")
    return folder


def test_a_state_of_sd_scripts_gives_a_lora_its_weights_and_step(tmp_path, data):
    list(job(tmp_path, "--max_train_steps=3", out="before").run())
    before = load_file(tmp_path / "before" / "last.safetensors")
    folder = state(tmp_path / "fox-000001-state", [before], step=3)
    going = job(tmp_path, "--max_train_epochs=2", f"--resume={folder}", "--learning_rate=1e-30")
    assert any("begin anew" in line for line in supported.differences(going.recipe))
    assert [step.index for step in going.run()] == [3, 4, 5]
    after = load_file(tmp_path / "out" / "last.safetensors")
    assert all(after[name].equal(before[name]) for name in before)
    # killed and started again, it goes on from its own saves
    assert not list(job(tmp_path, "--max_train_epochs=2", f"--resume={folder}", "--learning_rate=1e-30").run())


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_a_state_of_sd_scripts_gives_a_whole_model_its_weights(tmp_path, family):
    trained, fresh = (sdnb.load(narrow.make(family, tmp_path / f"{seed}", seed=seed), device="cpu") for seed in (1, 2))
    unet = {name: tensor.clone() for name, tensor in trained.unet.state_dict().items()}
    if family == "sdxl":  # its U-Net has the original names
        original = sdnb.models.named(family).to_original(trained)
        unet = {name.removeprefix(states.UNET): each for name, each in original.items() if name.startswith(states.UNET)}
    else:  # and that of SD 2 has convolutions of one pixel
        unet = {name: each[:, :, None, None] if name.endswith("proj_in.weight") else each for name, each in unet.items()}
    encoder = {f"text_model.{name.removeprefix('text_model.')}": each for name, each in trained.text_encoder.state_dict().items()}
    states.find(str(state(tmp_path / "state", [unet, encoder]))).put(fresh)
    for part in ("unet", "text_encoder"):
        theirs = getattr(trained, part).state_dict()
        assert all(tensor.equal(theirs[name]) for name, tensor in getattr(fresh, part).state_dict().items())
    assert not fresh.vae.decoder.conv_in.weight.equal(trained.vae.decoder.conv_in.weight)
    with pytest.raises(ValueError, match=r"model_1 in .* fits no part"):
        states.find(str(state(tmp_path / "bad", [unet, {"x": encoder.popitem()[1]}]))).put(fresh)


def test_what_is_no_state_is_named(tmp_path):
    (tmp_path / "x.safetensors").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_model.bin").touch()
    state(tmp_path / "odd", [], step="many")
    for place, said in {"none": "there is none", "x.safetensors": "belongs to network_weights", "empty": "it holds none"}.items():
        with pytest.raises(ValueError, match=said):
            states.find(str(tmp_path / place))
    with pytest.raises(ValueError, match="never loaded"):
        states.find(str(tmp_path / "old"))
    with pytest.raises(ValueError, match="current_step 'many'"):
        states.find(str(tmp_path / "odd"))
