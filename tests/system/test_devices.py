"""Where a model may lie: GPUs that this torch has no kernels for, and devices that nothing has been tried on, are refused at once."""

import dataclasses
import warnings
from types import SimpleNamespace

import pytest
import torch

import sdnb
from sdnb import Recipe
from sdnb.models import hub, loading
from sdnb.planner import search
from sdnb.system import cards, devices, processes

CUDA_13 = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120".split()  # torch 2.11 to 2.14 on Linux
CUDA_12 = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90".split()  # the builds for CUDA 12.6
P100, V100, GTX1080, T4, RTX4090, RTX5090 = (6, 0), (7, 0), (6, 1), (7, 5), (8, 9), (12, 0)
QUICK = Recipe(train_batch_size=1, resolution=32, lr_scheduler="constant", lr_warmup_steps=0)


@pytest.fixture
def gpu(monkeypatch):
    """Let torch say that it has such a GPU, and such kernels; nothing is computed there."""

    def there(capability, built, *, cuda="13.0", count=1):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla P100-PCIE-16GB")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.delenv("LOCAL_RANK", raising=False)

    return there


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        (P100, CUDA_13, False),
        (V100, CUDA_13, False),
        (GTX1080, CUDA_13, False),
        (T4, CUDA_13, True),
        (RTX4090, CUDA_13, True),  # by the kernels of 8.6
        (RTX5090, CUDA_13, True),
        ((13, 0), CUDA_13, True),  # by the PTX of 12.0
        (P100, CUDA_12, True),
        (GTX1080, CUDA_12, True),  # by the kernels of 6.0
        (RTX5090, CUDA_12, False),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["compute_100f"], False),
        (P100, ["of_later_torch"], True),
    ],
)
def test_which_kernels_run_where(gpu, capability, built, runs):
    gpu(capability, built)
    assert (devices.no_kernels(torch.device("cuda")) == "") is runs


def test_an_old_gpu_is_refused_with_what_serves_it(gpu, tiny, monkeypatch):
    gpu(P100, CUDA_13)
    monkeypatch.setattr(hub, "find", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))  # what follows would believe in the GPU
    with pytest.raises(ValueError, match=r"P100.* 6\.0, .*built for 7\.5, 8\.0, .*12\.0: .*CUDA 12\.6.*Kaggle.*T4.*device=\"cpu\"$"):
        sdnb.load("tiny", device="cuda")
    with pytest.raises(ValueError, match=r"CUDA 12\.6"):
        sdnb.load("tiny", device={"vae": "cuda"})
    with pytest.warns(RuntimeWarning, match=r"CUDA 12\.6.*loaded on the CPU") as caught, pytest.raises(InterruptedError):
        sdnb.load("tiny")
    assert caught[0].filename == __file__
    with pytest.warns(RuntimeWarning):
        assert set(loading._devices(None).values()) == {torch.device("cpu")}
    moved = dataclasses.replace(tiny, unet=lying_on("cuda:0"))
    with pytest.raises(ValueError, match=r"CUDA 12\.6"):
        sdnb.train(moved, sdnb.pictures("emoji-ink"), QUICK)


def test_a_gpu_that_is_newer_than_torch(gpu):
    gpu(RTX5090, CUDA_12)
    with pytest.raises(ValueError, match=r"12\.0, .*install a newer torch"):
        devices.named("cuda")
    gpu((8, 0), ["sm_75", "sm_86"])
    with pytest.raises(ValueError, match=r"install a build of torch that has it"):
        devices.named("cuda")


def test_where_torch_does_not_say_what_it_was_built_for(gpu):
    for built, cuda in (([], "13.0"), (["gfx90a", "gfx1100"], None), (CUDA_13, None)):
        gpu(P100, built, cuda=cuda)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert devices.default() == devices.named("cuda") == torch.device("cuda")


def test_one_of_several_processes_is_refused_and_does_not_train_on_the_cpu(gpu, monkeypatch):
    gpu(T4, CUDA_13, count=2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert devices.default() == torch.device("cuda:1")
    gpu(P100, CUDA_13, count=2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match=r"CUDA 12\.6"):
        devices.default()


def test_a_gpu_that_is_not_there(gpu):
    gpu(T4, CUDA_13, count=2)
    assert devices.named("cuda:1").index == 1
    with pytest.raises(ValueError, match='last GPU here is "cuda:1"'):
        sdnb.load("tiny", device="cuda:2")


@pytest.mark.parametrize("device", ["graphics", "", "cuda:x", 1.5])
def test_a_name_that_is_no_device(device):
    with pytest.raises(ValueError, match='give "cuda"'):
        sdnb.load("tiny", device=device)


@pytest.mark.parametrize(
    ("device", "reason"), [("mps", "Apple"), ("meta", "sdnb.plan"), *((kind, "tried on no other") for kind in ("xpu", "hpu", "xla"))]
)
def test_other_devices_are_refused_with_the_reason(tiny, device, reason):
    for asked in (device, torch.device(device), {"vae": device}):
        with pytest.raises(ValueError, match=rf"{reason}.*"):
            sdnb.load("tiny", device=asked)
    for part in ("unet", "vae"):
        with pytest.raises(ValueError, match=reason):
            sdnb.train(dataclasses.replace(tiny, **{part: lying_on(device)}), sdnb.pictures("emoji-ink"), QUICK)


def test_a_mac_trains_on_the_cpu(tiny, monkeypatch):
    """Also after something else had accelerate choose, which prefers Apple's GPU."""
    state = pytest.importorskip("accelerate.state")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(state, "is_mps_available", lambda: True)
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "0")  # accelerate sets it
    if not torch.cuda.is_available():
        assert sdnb.load("tiny").device.type == "cpu"
    state.AcceleratorState._reset_state(reset_partial_state=True)
    assert state.PartialState().device.type == "mps"
    try:
        assert processes.accelerator(tiny, QUICK).device.type == "cpu"
    finally:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def test_a_plan_for_an_old_card_says_what_it_needs():
    found = search.fit("tiny", "p100")
    assert "P100 16 GB needs a torch built for CUDA 12.6" in str(found)
    assert "P100 16 GB needs a torch built for CUDA 12.6" in str(found[0])
    assert "CUDA 12.6" in found.as_dict()["needs"] and "CUDA 12.6" in found[0].as_dict()["gpu"]["needs"]
    assert [name for name, card in cards.CARDS.items() if card.needs] == ["p100", "v100-16", "v100-32"]
    plain = search.fit("tiny", "t4")
    assert "needs a torch" not in f"{plain}{plain[0]}"
    assert plain.as_dict()["needs"] is None
    assert "older than" in devices.needed_build((3, 7))


def lying_on(device):
    """A part as far as anyone asks where it lies."""
    return SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device(device))]))
