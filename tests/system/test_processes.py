"""What of accelerate's configuration a run goes along with, and what it refuses."""

import os
import subprocess
import sys

import pytest

import sdnb
from sdnb import Recipe
from sdnb.system import processes

from ..conftest import ROOT

QUICK = Recipe(train_batch_size=1, lr_scheduler="constant", lr_warmup_steps=0, learning_rate=1e-3, resolution=32)
FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: NO_WRAP, fsdp_reshard_after_forward: true}
num_machines: 1
num_processes: 2
machine_rank: 0
main_process_port: 0
mixed_precision: bf16
use_cpu: false
"""


@pytest.mark.parametrize("name", processes.REFUSED)
def test_what_splits_weights_is_refused_with_the_way_out(tiny, ink, monkeypatch, name):
    monkeypatch.setenv(name, "INDUCTOR" if "DYNAMO" in name else "true")
    with pytest.raises(ValueError, match="launch with --") as caught:
        sdnb.train(tiny, ink, QUICK)
    assert str(caught.value) == processes.REFUSED[name]
    monkeypatch.setenv(name, "NO" if "DYNAMO" in name else "false")
    sdnb.train(tiny, ink, QUICK)


def test_the_recipe_wins_over_what_accelerate_was_told(fresh, ink, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = processes.accelerator(fresh, QUICK)
    assert (accelerator.gradient_accumulation_steps, accelerator.mixed_precision) == (1, "no")
    before = fresh.unet.conv_in.weight.clone()
    next(sdnb.train(fresh, ink[:1], QUICK, steps=1))
    assert not before.equal(fresh.unet.conv_in.weight)  # the first of three batches would have been kept for later


def test_what_accelerates_launcher_tells_its_processes_is_refused(tmp_path, monkeypatch):
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_multi_gpu_env

    (tmp_path / "fsdp.yaml").write_text(FSDP, encoding="utf-8")
    words = ["--config_file", str(tmp_path / "fsdp.yaml"), "-m", "sdnb"]
    arguments, *_ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    told = prepare_multi_gpu_env(arguments)
    for name in processes.REFUSED:
        monkeypatch.setenv(name, told.get(name, "no"))
    with pytest.raises(ValueError, match="FSDP leaves each process with pieces"):
        processes.check()


@pytest.mark.long  # the same with its processes
def test_accelerates_own_launcher_is_refused_in_both_processes(tmp_path):
    (tmp_path / "fsdp.yaml").write_text(FSDP, encoding="utf-8")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "fsdp.yaml"), "-m", "sdnb", "train", "--"]
    flags = ["--pretrained_model_name_or_path=tiny", "--train_data_dir=emoji-ink", f"--output_dir={tmp_path / 'out'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*launch, *flags], env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode != 0
    assert "sdnb: FSDP leaves each process with pieces" in result.stderr
    assert not (tmp_path / "out").exists()
