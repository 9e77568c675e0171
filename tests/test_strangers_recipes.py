"""What `sdnb train --check` says of strangers' settings, and a hundred of their recipes."""

from __future__ import annotations

import json

import pytest

from sdnb.__main__ import main

TOML = """
pretrained_model_name_or_path = "tiny"
train_data_dir = "emoji-ink"
output_dir = {folder!r}
network_module = "networks.lora"
network_dim = 2
resolution = "32,32"
xformers = true
sdpa = true
"""


@pytest.fixture
def checked(tmp_path, capsys, monkeypatch):
    """Runs `sdnb train --check` on a file with more lines; returns the status and the events."""
    monkeypatch.setattr("sdnb.jobs.Job.load", lambda job: pytest.fail("a model was loaded"))

    def run(more="", *flags, toml=TOML):
        path = tmp_path / "recipe.toml"
        path.write_text(toml.format(folder=str(tmp_path / "out")) + more, encoding="utf-8")
        status = main(["train", "--check", "--config", str(path), "--json", *(["--", *flags] if flags else [])])
        assert not (tmp_path / "out").exists()
        return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def told(events, kind):
    return [event["setting"] for event in events if event["event"] == kind]


def test_a_check_says_what_is_ignored_and_that_it_would_train(checked):
    status, events = checked()
    assert (status, events[-1]) == (0, {"event": "checked", "trains": True})
    assert [line.partition(":")[0] for line in told(events, "ignored")] == ["sdpa, xformers"]
    assert told(events, "refused") == []


def test_a_check_says_all_that_is_refused_at_once_in_the_doctors_words(checked):
    status, events = checked("lr_warmup_steps = 10\ndeepspeed = true\nadaptive_noise_scale = 0.1\ntrain_data_di = 'x'\n")
    refused = told(events, "refused")
    assert status == 2 and events[-1]["trains"] is False
    assert any("does not require `num_warmup_steps`" in line for line in refused)
    assert any(line.startswith("ValueError: adaptive_noise_scale requires noise_offset") for line in refused)
    assert any(line.startswith("deepspeed:") for line in refused)
    assert any("train_data_di is ignored" in line for line in told(events, "ignored"))


def test_another_kind_of_model_is_refused(checked):
    status, events = checked('t5xxl = "t5.safetensors"\nguidance_scale = 3.5\nae = "ae.safetensors"\ndiscrete_flow_shift = 3\n')
    assert status == 2
    assert any("LoRAs and whole models of SD" in line or "another kind of model" in line for line in told(events, "refused"))


def test_a_check_fits_on_a_screen(checked, tmp_path, capsys):
    checked("")
    path = tmp_path / "recipe.toml"
    assert main(["train", "--check", "--config", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Nothing is refused: this would train." and len(lines) < 24


def test_the_config_file_of_a_command_is_read(checked, tmp_path, capsys):
    checked("")
    script = tmp_path / "train.sh"
    script.write_text("accelerate launch train_network.py --config_file recipe --network_dim=4 --seed=7\n", encoding="utf-8")
    assert main(["train", "--check", "--config", str(script)]) == 0
    script.write_text("accelerate launch train_network.py --config_file elsewhere --seed=7\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["train", "--check", "--config", str(script)]) == 2
    assert "elsewhere.toml does not exist" in capsys.readouterr().out
