"""A run that is interrupted goes on as if it had not been, bit for bit; what a recipe asks for is what is trained."""

import copy
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch

import sdnb
from sdnb import Recipe, training
from sdnb.lora import files as lora
from sdnb.planner import advice
from sdnb.saves import folders
from sdnb.system import files
from sdnb.system.cards import Card

from .conftest import ROOT

QUICK = Recipe(train_batch_size=1, lr_warmup_steps=2, learning_rate=1e-3, resolution=32)
LORA = {"network_module": "networks.lora", "network_dim": 2, "network_alpha": 1.0}
ADAMW = {"optimizer_type": "AdamW", "optimizer_args": ()}
FREE = {"optimizer_args": (), "lr_scheduler": "constant", "lr_warmup_steps": 0}
KINDS = {
    "full": {},
    "fused": {"fused_backward_pass": True},
    "in groups": {"fused_optimizer_groups": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
    "accumulated": {"gradient_accumulation_steps": 2, "caption_dropout_rate": 0.5, "noise_offset": 0.1, "max_grad_norm": 1.0},
    "bf16 weights": {"others": {"full_bf16": True}},
    "cosine": {"lr_scheduler": "cosine", **ADAMW},
    "adapters": {"others": {**LORA, "network_train_unet_only": True}, **ADAMW},
    "adapters, encoders too": {"others": {**LORA, "unet_lr": 1e-3, "text_encoder_lr": 1e-2}, **ADAMW},
    "adapters held to a norm": {"others": {**LORA, "scale_weight_norms": 0.02, "network_args": ["conv_dim=2"]}, **ADAMW},
    "encoders whole": {"others": {"train_text_encoder": True, "learning_rate_te": 1e-4}, "gradient_checkpointing": True, **ADAMW},
    "encoders for one step": {"others": {"stop_text_encoder_training": 1}},
    "encoders for three steps": {"others": {"stop_text_encoder_training": 3}, "gradient_accumulation_steps": 2},
    "8 bits": {"optimizer_type": "AdamW8bit", "optimizer_args": ()},
    "schedule-free": {"optimizer_type": "AdamWScheduleFree", **FREE},
    "Prodigy": {"optimizer_type": "Prodigy", **FREE, "learning_rate": 1.0},
}


def twin(tiny):
    return dataclasses.replace(tiny, **{part: copy.deepcopy(module) for part, module in tiny.parts.items()})


def losses(run):
    return [(step.index, step.loss, step.learning_rate) for step in run]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*needs no schedule")
def test_an_interrupted_run_goes_on_bit_for_bit(tiny, ink, tmp_path, kind):
    recipe = QUICK.replace(**KINDS[kind])
    steps = list(sdnb.train(twin(tiny), ink[:4], recipe, steps=4, save_to=tmp_path, save_every=2))
    assert [step.saved and step.saved.name for step in steps] == [None, "step-00000002", None, "step-00000004"]
    folders.remove(tmp_path / "step-00000004")
    torch.rand(7)  # another process would have another generator
    rest = losses(sdnb.train(twin(tiny), ink[:4], recipe, steps=4, save_to=tmp_path, save_every=2))
    assert rest == losses(steps)[2:]
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in tmp_path.rglob("*"))


def test_a_run_that_is_closed_goes_on_from_its_last_save(tiny, ink, tmp_path):
    """As one that was never saved."""
    whole = losses(sdnb.train(twin(tiny), ink[:4], QUICK, steps=4))
    run = sdnb.train(twin(tiny), ink[:4], QUICK, steps=4, save_to=tmp_path, save_every=2)
    first = [next(run) for _ in range(3)]
    run.close()
    assert losses(first) == whole[:3]
    assert losses(sdnb.train(twin(tiny), ink[:4], QUICK, steps=4, save_to=tmp_path)) == whole[2:]


def test_dropout_is_the_same_after_a_resume(tiny, ink, tmp_path):
    def model():
        sd = twin(tiny)
        for module in sd.unet.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        return sd

    whole = losses(sdnb.train(model(), ink[:4], QUICK, steps=3))
    assert whole != losses(sdnb.train(twin(tiny), ink[:4], QUICK, steps=3))
    run = sdnb.train(model(), ink[:4], QUICK, steps=3, save_to=tmp_path, save_every=1)
    next(run)
    run.close()
    assert losses(sdnb.train(model(), ink[:4], QUICK, steps=3, save_to=tmp_path)) == whole[1:]


SCRIPT = """
import os, signal, sys, traceback, torch
torch.set_num_threads(1)
import sdnb
from sdnb.saves import folders as saves
sys.path.insert(0, {root!r})
from tests.test_trainer import QUICK
sd, pictures = sdnb.load("tiny", device="cpu"), sdnb.pictures("emoji-ink")[:4]

def run(folder, number, moment, log):
    if moment != "between":
        store, calls = getattr(saves, moment), []
        def deadly(*args, **kwargs):
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return store(*args, **kwargs)
        setattr(saves, moment, deadly)
    for done in sdnb.train(sd, pictures, QUICK, steps=6, save_to=folder, save_every=2, keep=1):
        print(done.index, done.loss.hex(), file=log, flush=True)
        if moment == "between" and done.index == number:
            os.kill(os.getpid(), signal.SIGKILL)

for case in sys.argv[2:]:  # a process each, but the libraries are read once
    moment, number = case.split(",")
    child = os.fork()
    if not child:
        try:
            with open(sys.argv[1] + "/" + moment + ".log", "w") as log:
                run(sys.argv[1] + "/" + moment + " \u00fc", int(number), moment, log)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
KILLED = {"between": random.Random(8).randrange(1, 5), "_store": 4, "sync": 8, "remove": 1}
"""Where, and at which call: the last three are in the second save, and after it."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder of runs, each killed by the system at another moment."""
    folder = tmp_path_factory.mktemp("killed")
    cases = [f"{moment},{number}" for moment, number in KILLED.items()]
    command = [sys.executable, "-c", SCRIPT.format(root=str(ROOT)), str(folder), *cases]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.stdout.split("\n")[:-1] == [f"{moment} {-signal.SIGKILL}" for moment in KILLED], result.stderr[-2000:]
    return folder


@pytest.fixture
def one_thread():
    """As in the killed processes: with another number of threads sums come in another order, and differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unbroken(tiny, ink, one_thread):
    return losses(sdnb.train(twin(tiny), ink[:4], QUICK, steps=6))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("moment", KILLED)
def test_a_run_that_is_killed_goes_on_bit_for_bit(tiny, ink, killed, unbroken, moment):
    folder = killed / f"{moment} ü"
    left = [path.name for path in folder.iterdir()]
    assert any(name.endswith(".partial") for name in left) == (moment in ("_store", "sync"))
    before = [float.fromhex(line.split()[1]) for line in (killed / f"{moment}.log").read_text().splitlines()]
    assert before == [loss for _, loss, _ in unbroken[: len(before)]]
    rest = losses(sdnb.train(twin(tiny), ink[:4], QUICK, steps=6, save_to=folder, resume=True))
    assert rest
    assert rest == unbroken[6 - len(rest) :]
    assert len(rest) <= 4
    assert not [path for path in folder.iterdir() if path.name.endswith(".partial")]


def test_the_last_saves_are_kept(fresh, ink, tmp_path, monkeypatch):
    def names():
        return [int(path.name[5:]) for path in folders.found(tmp_path)]

    for step in sdnb.train(fresh, ink[:2], QUICK, steps=5, save_to=tmp_path, save_every=1, keep=3):
        if step.index == 3:
            assert names() == [2, 3, 4]
    assert names() == [3, 4, 5]
    with monkeypatch.context() as patched:
        patched.setattr(training, "Cache", lambda *args, **kwargs: pytest.fail("the pictures were encoded for nothing"))
        with pytest.warns(UserWarning, match="step-00000005 is of the last step: nothing is left to train"):
            assert list(sdnb.train(fresh, ink[:2], QUICK, steps=5, save_to=tmp_path)) == []
    with pytest.raises(ValueError, match="step-00000005 is beyond the 4 steps asked for: ask for 5 or more"):
        sdnb.train(fresh, ink[:2], QUICK, steps=4, save_to=tmp_path)
    longer = QUICK.replace(others={"save_every_n_steps": 1, "save_last_n_steps": 3}, max_train_steps=7)
    assert [step.index for step in sdnb.train(fresh, ink[:2], longer, save_to=tmp_path)] == [5, 6]
    assert names() == [4, 5, 6, 7]  # sd-scripts counts steps, not saves


def test_another_run_is_refused_unless_asked(tiny, ink, tmp_path, monkeypatch):
    list(sdnb.train(twin(tiny), ink[:2], QUICK, steps=2, save_to=tmp_path / "runs", save_every=1))
    monkeypatch.setattr(training, "Cache", lambda *args: pytest.fail("the pictures were encoded first"))
    with pytest.raises(ValueError, match=r"learning_rate was 0\.001 and is 0\.01.*resume=False"):
        sdnb.train(twin(tiny), ink[:2], QUICK.replace(learning_rate=1e-2), steps=2, save_to=tmp_path / "runs")
    with pytest.raises(ValueError, match="pictures or captions are others"):
        sdnb.train(twin(tiny), ink[1:3], QUICK, steps=2, save_to=tmp_path / "runs")
    other = twin(tiny)
    with torch.no_grad():
        next(other.text_encoder.parameters()).add_(1)
    with pytest.raises(ValueError, match="the model is another"):
        sdnb.train(other, ink[:2], QUICK, steps=2, save_to=tmp_path / "runs")
    with pytest.raises(ValueError, match="no save to go on from"):
        sdnb.train(twin(tiny), ink[:2], QUICK, steps=2, save_to=tmp_path / "new", resume=True)
    with pytest.raises(ValueError, match="keep needs save_to"):
        sdnb.train(twin(tiny), ink[:2], QUICK, keep=2)
    monkeypatch.undo()
    run = sdnb.train(twin(tiny), ink[:2], QUICK.replace(learning_rate=1e-2), steps=2, save_to=tmp_path / "runs", save_every=1, resume=False)
    assert [path.name for path in folders.found(tmp_path / "runs")] == ["step-00000001", "step-00000002"]
    next(run)
    assert [path.name for path in folders.found(tmp_path / "runs")] == ["step-00000001"]


def test_a_seed_that_was_drawn_is_kept(tiny, ink, tmp_path):
    recipe = QUICK.replace(seed=None)
    run = sdnb.train(twin(tiny), ink[:4], recipe, steps=2, save_to=tmp_path / "a", save_every=1)
    next(run)
    run.close()
    rest = losses(sdnb.train(twin(tiny), ink[:4], recipe, steps=2, save_to=tmp_path / "a"))
    seed = folders.latest(tmp_path / "a").state["owner"]["settings"]["seed"]
    assert losses(sdnb.train(twin(tiny), ink[:4], recipe.replace(seed=seed), steps=2))[1:] == rest


def test_a_full_disk_leaves_the_save_before(tiny, ink, tmp_path, monkeypatch):
    true, calls = folders._store, []

    def store(path, tensors):
        calls.append(1)
        if len(calls) in failing:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        true(path, tensors)

    monkeypatch.setattr(folders, "_store", store)
    failing = (4,)  # the second file of the second save
    with pytest.warns(RuntimeWarning, match="step 2 was not saved.*the disk is full.*the last save is step-00000001"):
        steps = list(sdnb.train(twin(tiny), ink[:2], QUICK, steps=3, save_to=tmp_path, save_every=1))
    assert [step.saved and step.saved.name for step in steps] == ["step-00000001", None, "step-00000003"]
    calls.clear()
    failing = (1,)
    with pytest.raises(folders.SaveFailed, match="the last save is step-00000003"):
        list(sdnb.train(twin(tiny), ink[:2], QUICK, steps=4, save_to=tmp_path))
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["step-00000001", "step-00000003"]
    assert folders.latest(tmp_path).weights()


def test_folders_that_will_not_do_are_refused_at_once(fresh, ink, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "Cache", lambda *args: pytest.fail("the pictures were encoded first"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("")
    with pytest.raises(FileExistsError, match=r"other things \(thesis\.doc\)"):
        sdnb.train(fresh, ink[:2], QUICK, save_to=tmp_path / "mine")
    with pytest.raises(FileExistsError, match="is a file"):
        sdnb.train(fresh, ink[:2], QUICK, save_to=tmp_path / "mine" / "thesis.doc")
    with pytest.raises(OSError, match="nothing can be written"):
        sdnb.train(fresh, ink[:2], QUICK, save_to="/proc/sdnb")


def test_a_damaged_save_is_named(fresh, ink, tmp_path):
    list(sdnb.train(fresh, ink[:2], QUICK, steps=1, save_to=tmp_path))
    state = tmp_path / "step-00000001" / "state.json"
    whole = json.loads(state.read_text())
    state.write_text(json.dumps({**whole, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        sdnb.train(fresh, ink[:2], QUICK, steps=2, save_to=tmp_path)
    state.write_text(state.read_text()[:50])
    with pytest.raises(ValueError, match="damaged save"):
        sdnb.train(fresh, ink[:2], QUICK, steps=2, save_to=tmp_path)


def test_a_recipe_for_a_lora_trains_adapters(tiny, ink):
    unet_only, both = twin(tiny), twin(tiny)
    frozen = {name: p.clone() for name, p in both.unet.named_parameters()}
    assert len(losses(sdnb.train(unet_only, ink[:2], QUICK.replace(others={**LORA, "network_train_unet_only": True}), steps=2))) == 2
    assert not lora.is_added(unet_only.text_encoder)
    recipe = QUICK.replace(**ADAMW, others=LORA, lr_warmup_steps=0)
    losses(sdnb.train(both, ink[:2], recipe, steps=2))
    for part in (both.unet, both.text_encoder):
        moved = [name for name, p in part.named_parameters() if "lora_B" in name and p.abs().sum() > 0]
        assert moved
        assert all(".lora_" in name for name, p in part.named_parameters() if p.requires_grad)
    for name, p in both.unet.named_parameters():
        if name.replace(".base_layer", "") in frozen:
            assert torch.equal(p, frozen[name.replace(".base_layer", "")])
    assert not both.text_encoder.training
    assert "forward" not in vars(both.text_encoder)


def test_trained_encoders_read_what_frozen_ones_cache(tiny, ink):
    """Before its first update a text encoder with adapters says what it said without."""
    sd = twin(tiny)
    plain = losses(sdnb.train(twin(tiny), ink[:2], QUICK.replace(others={**LORA, "network_train_unet_only": True}), steps=1))
    both = losses(sdnb.train(sd, ink[:2], QUICK.replace(others=LORA), steps=1))
    assert both[0][1] == pytest.approx(plain[0][1], rel=1e-5)


def test_each_part_has_its_rate(tiny):
    recipe = QUICK.replace(others={**LORA, "unet_lr": 2e-4, "text_encoder_lr": 5e-5})
    sd = twin(tiny)
    rows = sdnb.prepare.groups(sd, recipe, sdnb.prepare.make_trainable(sd, recipe))
    assert [row["lr"] for row in rows] == [2e-4, 5e-5]
    assert [len(row["params"]) for row in rows] == [sum(p.requires_grad for p in m.parameters()) for m in (sd.unet, sd.text_encoder)]


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"full_fp16": True}, "full_fp16 needs mixed_precision=fp16"),
        ({**LORA, "fp8_base": True}, "fp8_base needs mixed_precision"),
        ({**LORA, "network_train_unet_only": True, "network_train_text_encoder_only": True}, "exclude each other"),
        ({**LORA, "cache_text_encoder_outputs": True}, "cannot be cached"),
        ({"scale_v_pred_loss_like_noise_pred": True}, "for models that predict v"),
        ({"loss_type": "huber", "huber_c": 0.0, "huber_schedule": "constant"}, "huber_c and huber_scale must be above 0"),
        ({"clip_skip": 3}, "this text encoder has 2 layers"),
        ({"prior_loss_weight": -1.0}, "prior_loss_weight=-1.0: it must be 0 or more"),
        ({"reg_data_dir": "x"}, "these pictures hold none of it"),
        ({"random_crop": True, "cache_latents": True}, "when caching latents"),
    ],
)
def test_what_cannot_be_trained_is_refused(tiny, ink, others, said):
    sd = twin(tiny)
    with pytest.raises(ValueError, match=said):
        sdnb.train(sd, ink, QUICK.replace(others=others))
    assert not lora.is_added(sd.unet)


def test_encoders_alone_are_trained_beside_a_model_in_bf16(tiny, ink):
    """Their adapters are in fp32, which is what has to be fine enough; recomputing the U-Net changes nothing."""
    recipe = QUICK.replace(**ADAMW, lr_warmup_steps=0, others={**LORA, "network_train_text_encoder_only": True})
    found = {}
    for recomputed in (False, True):
        sd = twin(tiny)
        for part in sd.parts.values():
            part.bfloat16()
        found[recomputed] = losses(sdnb.train(sd, ink[:2], recipe.replace(gradient_checkpointing=recomputed), steps=2))
        moved = {name for name, p in sd.text_encoder.named_parameters() if "lora_B" in name and p.abs().sum() > 0}
        assert moved
        assert not any(p.requires_grad for p in sd.unet.parameters())
        assert {p.dtype for p in sd.text_encoder.parameters() if p.requires_grad} == {torch.float32}
    assert [loss for _, loss, _ in found[True]] == pytest.approx([loss for _, loss, _ in found[False]], rel=1e-2)
    with pytest.raises(ValueError, match=r"weights to train are in torch\.bfloat16, too coarse"):
        sdnb.train(dataclasses.replace(sd, unet=copy.deepcopy(tiny.unet).bfloat16()), ink, QUICK.replace(**ADAMW, lr_warmup_steps=0))


def test_epochs_decide_how_long_a_run_is(fresh, ink):
    recipe = QUICK.replace(others={"max_train_epochs": 2})
    assert len(losses(sdnb.train(fresh, ink[:2], recipe))) == 4


def test_samples_are_drawn_and_change_nothing(tiny, ink, tmp_path):
    plain = losses(sdnb.train(twin(tiny), ink[:2], QUICK, steps=2))
    run = sdnb.train(twin(tiny), ink[:2], QUICK, steps=2, save_to=tmp_path, samples=["a cat", "a dog"], sample_every=2)
    steps = list(run)
    assert losses(steps) == plain
    assert [len(step.drawn) for step in steps] == [0, 2]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in steps[1].drawn)


def test_a_sample_that_cannot_be_written_stops_nothing(tiny, ink, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    with pytest.warns(RuntimeWarning, match="a sample of step 1 was not kept: .*No space left on device. Training goes on"):
        steps = list(sdnb.train(twin(tiny), ink[:2], QUICK, steps=2, save_to=tmp_path, samples=["a cat"], sample_every=1))
    assert [(step.drawn, bool(step.saved)) for step in steps] == [((), False), ((), True)]


def test_samples_without_memory_stop_nothing(tiny, ink, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(sdnb.StableDiffusion, "decode", full)
    with pytest.warns(RuntimeWarning, match="no memory for the samples of step 1: ask for fewer. Training goes on"):
        steps = list(sdnb.train(twin(tiny), ink[:2], QUICK, steps=2, save_to=tmp_path, samples=["a cat"], sample_every=1))
    assert [step.drawn for step in steps] == [(), ()]


def test_idle_parts_come_back_when_the_card_has_room_again(tiny, ink, monkeypatch):
    """Not while the error still holds what the step had made."""
    sd, alive, homecoming = twin(tiny), [], []

    def full(*args):
        made = torch.ones(1000)
        alive.append(weakref.ref(made))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def to(device):
        homecoming.append(bool(alive and alive[0]() is not None))
        return sd.vae

    monkeypatch.setattr(training, "denoising_loss", full)
    monkeypatch.setattr(advice, "advice", lambda *args, **named: [])
    vars(sd.vae)["to"] = to
    with pytest.warns(RuntimeWarning, match="Looking for what would fit"), pytest.raises(torch.OutOfMemoryError):
        list(sdnb.train(sd, ink[:2], QUICK.replace(others={"cache_latents": True}), steps=2))
    assert alive[0]() is None
    assert homecoming[-1:] == [False] and homecoming.count(True) == 0 and len(homecoming) >= 2


def test_a_model_beside_this_one_is_no_room(monkeypatch):
    """What torch holds may be given to the run; what is alive and not the run's own may not."""
    parameter = SimpleNamespace(numel=lambda: 2**30, element_size=lambda: 4)
    sd = SimpleNamespace(parts={"unet": SimpleNamespace(parameters=lambda: [parameter])}, device=torch.device("cuda"))
    monkeypatch.setattr(advice, "card", lambda device: Card("X", 16 * 2**30, (8, 0), context_bytes=0))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7 * 2**30)
    asked = []
    monkeypatch.setattr(advice, "foresee", lambda sd, recipe, gpu, **named: asked.append(gpu.usable_bytes))
    advice.warn_if_too_large(sd, QUICK)
    assert asked == [13 * 2**30]


def test_out_of_memory_says_what_would_fit(tiny, ink, tmp_path, monkeypatch):
    true, calls = training.denoising_loss, []

    def full(*args):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has 12.00 GiB of which 31.25 MiB is free.")
        return true(*args)

    monkeypatch.setattr(training, "denoising_loss", full)
    monkeypatch.setattr(advice, "usable_bytes", lambda device: 2**32)
    sd, recipe = twin(tiny), QUICK.replace(cache_latents=True, cache_text_encoder_outputs=True, gradient_checkpointing=True)
    said = r"1\.50 GiB more.*31\.25 MiB were free.*step-00000002; it is as it was"
    with (
        pytest.warns(RuntimeWarning, match=f"{said}. Looking"),
        pytest.raises(torch.OutOfMemoryError, match=f"{said}.*expected to fit: .*=True.*; as flags --") as caught,
    ):
        list(sdnb.train(sd, ink[:2], recipe, steps=5, save_to=tmp_path, save_every=1))
    flags = str(caught.value).partition("as flags ")[2].removesuffix(".")
    assert Recipe.parse(flags).cache_latents
    assert folders.latest(tmp_path).steps == 2
    assert all(p.grad is None for p in sd.unet.parameters())


def test_the_share_of_waiting_is_known(fresh, ink):
    for step in sdnb.train(fresh, ink[:2], QUICK, steps=2):
        assert 0 < step.waited_seconds < step.seconds
