"""A save that is damaged is refused before the first step, with the one before it as the way out; one without checksums is unchecked."""

import copy
import dataclasses
import errno
import json
import os
import shutil
import stat

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import sdnb
from benchmarks import reliability
from sdnb import training
from sdnb.saves import folders, owners
from sdnb.system import files

QUICK = reliability.QUICK


def run(sd, pictures, folder, steps=3, **changes):
    sd = dataclasses.replace(sd, unet=copy.deepcopy(sd.unet))
    return sdnb.train(sd, pictures, QUICK.replace(**changes), steps=steps, save_to=folder, save_every=1, keep=5)


@pytest.fixture(scope="module")
def mini(tiny):
    return reliability.miniature(tiny)


@pytest.fixture(scope="module")
def saved(mini, ink, tmp_path_factory):
    """Saves of a run, and of one that began otherwise."""
    folder = tmp_path_factory.mktemp("saved")
    for name, seed in {"run": 0, "other": 1}.items():
        list(run(mini, ink[:2], folder / name, seed=seed))
    return folder


@pytest.fixture
def last(saved, tmp_path):
    """The last save in a copy."""
    shutil.copytree(saved / "run", tmp_path / "run")
    return tmp_path / "run" / "step-00000003"


def unchecked(save, **changes):
    """Make a save as it was before there were checksums."""
    state = {name: value for name, value in json.loads((save / "state.json").read_text()).items() if name in folders.UNCHECKED}
    state["owner"] = {name: state["owner"][name] for name in ("settings", "model", "pictures", "processes", "shown_otherwise")}
    (save / "state.json").write_text(json.dumps(state | changes))


def flip(path, place):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 4
    path.write_bytes(raw)


def tensors(path, change):
    found = load_file(path)
    name = max(found, key=lambda name: found[name].numel())
    save_file({**found, name: change(found[name]).contiguous()}, path)


DAMAGE = {
    "a bit of a weight": lambda save, saved: flip(save / "weights.safetensors", -1),
    "a bit of the optimizer": lambda save, saved: flip(save / "optimizer.safetensors", -1),
    "a bit of the state": lambda save, saved: flip(save / "state.json", -1000),
    "weights of another step": lambda save, saved: shutil.copy(saved / "run/step-00000002/weights.safetensors", save),
    "weights of another run": lambda save, saved: shutil.copy(saved / "other/step-00000003/weights.safetensors", save),
    "optimizer of another step": lambda save, saved: shutil.copy(saved / "run/step-00000002/optimizer.safetensors", save),
    "state of another step": lambda save, saved: shutil.copy(saved / "run/step-00000002/state.json", save),
    "a whole save by another name": lambda save, saved: shutil.copytree(saved / "run/step-00000002", save, dirs_exist_ok=True),
    "another count of steps": lambda save, saved: (save / "state.json").write_text(
        json.dumps({**json.loads((save / "state.json").read_text()), "steps": -1})
    ),
    "a missing file": lambda save, saved: (save / "optimizer.safetensors").unlink(),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_save_is_refused_and_the_one_before_is_offered(mini, ink, saved, last, monkeypatch, what):
    monkeypatch.setattr(training, "Cache", lambda *args, **named: pytest.fail("the pictures were encoded first"))
    DAMAGE[what](last, saved)
    with pytest.raises(
        ValueError, match=r"step-00000003 is a damaged save .*delete that folder to go on from the one before, step-00000002"
    ):
        run(mini, ink[:2], last.parent, steps=4)
    monkeypatch.undo()
    shutil.rmtree(last)
    assert [step.index for step in run(mini, ink[:2], last.parent, steps=4)] == [2, 3]


UNCHECKED = {
    "no JSON": lambda save: (save / "state.json").write_text("steps = 3"),
    "another kind of JSON": lambda save: (save / "state.json").write_text("[]"),
    "deeply nested": lambda save: (save / "state.json").write_text("[" * 100_000),
    "without an owner": lambda save: unchecked(save, owner={}),
    "without progress": lambda save: unchecked(save, progress={}),
    "text for a number": lambda save: unchecked(save, steps="3"),
    "half a step": lambda save: unchecked(save, steps=3.5),
    "before the first step": lambda save: unchecked(save, steps=-1),
    "a tensor that is not there": lambda save: (save / "state.json").write_text(
        (save / "state.json").read_text().replace("exp_avg_sq", "exp_a6g_sq")
    ),
    "another precision": lambda save: tensors(save / "weights.safetensors", lambda tensor: tensor.half()),
    "a tensor cut to one row": lambda save: tensors(save / "weights.safetensors", lambda tensor: tensor[:1]),
    "no numbers": lambda save: tensors(save / "weights.safetensors", lambda tensor: tensor * torch.nan),
}
"""Damage that is told without checksums."""


@pytest.mark.parametrize("what", UNCHECKED)
def test_also_without_checksums(mini, ink, last, what):
    unchecked(last)
    UNCHECKED[what](last)
    with pytest.raises(ValueError, match=r"step-00000003 is a damaged save .*step-00000002"):
        run(mini, ink[:2], last.parent, steps=4)


def test_a_save_without_checksums_is_gone_on_from_and_said_to_be_unchecked(mini, ink, saved, last, tmp_path):
    shutil.copytree(saved / "run", tmp_path / "checked")
    whole = [(step.index, step.loss) for step in run(mini, ink[:2], tmp_path / "checked", steps=4)]
    unchecked(last)
    with pytest.warns(UserWarning, match="step-00000003 was written before saves had checksums"):
        rest = [(step.index, step.loss) for step in run(mini, ink[:2], last.parent, steps=4)]
    assert rest == whole == [(3, whole[0][1])]


def test_a_first_step_that_fails_without_checksums_names_the_save(mini, ink, last):
    unchecked(last)
    tensors(last / "weights.safetensors", lambda tensor: tensor * 1e38)  # as after a flipped bit of an exponent
    with pytest.warns(UserWarning, match="unchecked"), pytest.raises(ValueError, match=r"damaged save .*first step failed.*step-00000002"):
        list(run(mini, ink[:2], last.parent, steps=4))


def test_where_there_is_no_save_before_it_a_new_start_is_offered(mini, ink, last):
    for number in (1, 2):
        shutil.rmtree(last.with_name(f"step-0000000{number}"))
    flip(last / "weights.safetensors", 100)
    with pytest.raises(ValueError, match="delete that folder to start anew, as there is none before it"):
        run(mini, ink[:2], last.parent, steps=4)


def test_a_later_format_is_not_called_damaged_for_certain(last):
    state = json.loads((last / "state.json").read_text())
    (last / "state.json").write_bytes(folders._sealed({**state, "format": 2} | {"checksum": None}).replace(b', "checksum": null', b"", 1))
    with pytest.raises(ValueError, match="format 2, and this version of sdnb reads 1: update sdnb"):
        folders.read(last)


def test_the_configurations_belong_to_the_run(mini, ink, last, tmp_path):
    def scheduler(**changes):
        return type(mini.noise_scheduler).from_config({**mini.noise_scheduler.config, **changes})

    other = dataclasses.replace(mini, noise_scheduler=scheduler(prediction_type="v_prediction"))
    with pytest.raises(ValueError, match="another run: the scheduler's prediction_type was 'epsilon' and is 'v_prediction'"):
        run(other, ink[:2], last.parent, steps=4)
    other = dataclasses.replace(mini, noise_scheduler=scheduler(beta_end=0.02))
    with pytest.raises(ValueError, match=r"the scheduler's beta_end was 0\.012 and is 0\.02"):
        run(other, ink[:2], last.parent, steps=4)
    other = dataclasses.replace(mini, vae=copy.deepcopy(mini.vae))
    with torch.no_grad():
        weight = max(other.vae.parameters(), key=torch.numel).view(-1)
        weight[len(weight) // 2] += 1
    with pytest.raises(ValueError, match="another run: the model is another"):
        run(other, ink[:2], last.parent, steps=4)
    unchecked(last)  # of these an older save knows nothing
    with pytest.warns(UserWarning, match="unchecked"):
        next(run(other, ink[:2], last.parent, steps=4))


def test_a_save_of_an_earlier_version_that_showed_other_pixels_is_another_run(mini, ink, last):
    unchecked(last)
    state = json.loads((last / "state.json").read_text())
    assert state["owner"].pop("shown_otherwise") == 2  # they shrink
    (last / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="an earlier version wrote it, which showed 2 of its pictures otherwise: they are resized"):
        run(mini, ink[:2], last.parent, steps=4)
    now = {**state["owner"], "frozen": "", "are_whole": True, "shown_otherwise": 0}  # pictures that have their size already
    assert owners.differences(state["owner"], now) == []


def test_nothing_but_unfinished_saves_is_cleared(tmp_path):
    strangers = [".mine.partial", "step-1.partial", f".writable.{os.getpid()}.partial", ".other.99999999.partial", ".hidden"]
    for name in (*strangers, "step-00000004.partial", "step-00000002-old.partial", "step-00000005.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / ".writable.99999999.partial").touch()
    (tmp_path / "step-00000004.partial" / "weights.safetensors").touch()
    (tmp_path / "step-00000004.partial" / ".tmpX1y2Z3").touch()
    (tmp_path / "step-00000005.partial" / "thesis.doc").touch()
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / ".step-00000002-0.png.99999999.partial").touch()
    folders.clear(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.parent.name != "step-00000005.partial") == sorted(
        [*strangers, "samples", "step-00000005.partial"]
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_files_have_the_permissions_that_the_umask_gives(tmp_path, tiny):
    umask = os.umask(0o027)
    try:
        save = folders.write(tmp_path, steps=1, weights={"w": torch.ones(2)}, progress={"a": torch.ones(3)}, owner={})
        made = [*save.iterdir(), tiny.save(tmp_path / "one.safetensors"), files.write(tmp_path / "a.txt", "a")]
        made += [path for path in tiny.save(tmp_path / "whole").rglob("*") if path.is_file()]
    finally:
        os.umask(umask)
    assert len(made) > 8
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in made} == {"0o640"}


def test_a_full_disk_keeps_its_number(tmp_path, tiny, monkeypatch):
    def full(*args, **named):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(folders.SaveFailed, match="the disk is full; a save takes") as caught:
        folders.write(tmp_path, steps=1, weights={"w": torch.ones(2)}, progress={}, owner={})
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left") as caught:
        tiny.save(tmp_path / "one.safetensors")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
