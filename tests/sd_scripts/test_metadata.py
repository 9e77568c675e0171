"""Settings in a LoRA's metadata are those that it was trained with, as sd-scripts and this package write them."""

import json
import struct

import pytest

import sdnb
from sdnb import train_command
from sdnb.sd_scripts import read, take_apart

from ..conftest import ROOT

FILES = json.loads((ROOT / "tests" / "recorded" / "lora_settings_of_sd_scripts.json").read_text(encoding="utf-8"))["files"]
BOTH = ("lora_unet_x", "lora_te_x")


def written(path, metadata, keys=BOTH):
    header = {f"{key}.alpha": {"dtype": "F32", "shape": [], "data_offsets": [0, 0]} for key in keys}
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


def values(recipe):
    return {name: value for name, value in vars(recipe).items() if name not in ("others", "optimizer_args")}


@pytest.mark.parametrize("row", FILES, ids=lambda row: row["command"].split()[0])
def test_settings_of_sd_scripts_own_metadata_are_those_of_its_command(row, tmp_path):
    parts = {"--network_train_unet_only": BOTH[:1], "--network_train_text_encoder_only": BOTH[1:]}
    keys = next((keys for flag, keys in parts.items() if flag in row["command"]), BOTH)
    settings, recipe = read(written(tmp_path / "fox.safetensors", row["metadata"], keys)), sdnb.Recipe.parse(row["command"])
    ours = sdnb.Recipe.from_settings(settings)
    assert settings.script == row["command"].split()[0]
    recipe = recipe.replace(output_name=recipe.output_name or "out", resolution=recipe.resolution or 512, vae=None, no_half_vae=False)
    assert values(ours) == values(recipe)
    assert take_apart(ours.optimizer_args) == take_apart(recipe.optimizer_args)
    assert ours.extras == recipe.extras
    assert settings.held.keys() == {"pretrained_model_name_or_path"} | ({"vae"} if "--vae" in row["command"] else set())


def test_what_the_file_does_not_keep_is_asked_for(tmp_path):
    path = written(tmp_path / "fox.safetensors", FILES[4]["metadata"])
    refused = " ".join(train_command.check(train_command.read(path, [])).refused)
    assert "pretrained_model_name_or_path: its value, model, is not in the text" in refused
    assert "vae: its value, other.safetensors, is not" in refused
    assert "train_data_dir is missing" in refused
    assert "output_dir is missing" in refused
    flags = [f"--{name}={tmp_path}" for name in ("train_data_dir", "output_dir")]
    found = train_command.check(train_command.read(path, [*flags, "--pretrained_model_name_or_path=sdxl", "--vae="]))
    assert found.refused == ()


def test_a_dataset_files_settings_count_where_they_agree(tmp_path):
    subset = {"num_repeats": 2, "shuffle_caption": True, "keep_tokens": 1, "caption_prefix": "fox, ", "class_tokens": None}
    dataset = {"batch_size_per_device": 3, "resolution": [512, 768], "enable_bucket": True, "min_bucket_reso": 256}
    metadata = {"ss_network_module": "networks.lora", "ss_datasets": json.dumps([{**dataset, "subsets": [subset, subset]}])}
    recipe = sdnb.Recipe.parse(written(tmp_path / "fox.safetensors", metadata))
    assert (recipe.train_batch_size, recipe.resolution, recipe.enable_bucket, recipe.min_bucket_reso) == (3, (512, 768), True, 256)
    assert (recipe.shuffle_caption, recipe.keep_tokens, recipe.caption_prefix) == (True, 1, "fox, ")
    metadata["ss_datasets"] = json.dumps([{**dataset, "subsets": [subset, {**subset, "keep_tokens": 2}]}])
    held = read(written(tmp_path / "fox.safetensors", metadata)).held
    assert held == {"dataset_config": "a dataset file with 1 datasets and 2 folders of different settings"}


@pytest.mark.parametrize(
    ("optimizer", "kind", "args"),
    [
        ("bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))", "AdamW8bit", ("weight_decay=0.1", "betas=(0.9,0.99)")),
        ("bitsandbytes.optim.Lion8bit", "Lion8bit", ()),
        ("torch.optim.sgd.SGD(momentum=0.9)", "SGDNesterov", ("momentum=0.9",)),
        ("torch.optim.sgd.SGD", "SGD", ()),
        ("prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree(use_speed=True)",
         "prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree", ("use_speed=True",)),
        ("mine.Optimizer(mode=fast)", "mine.Optimizer", ("mode='fast'",)),
        ("Adafactor(relative_step=False,scale_parameter=False)", "Adafactor", ("relative_step=False", "scale_parameter=False")),
    ],
)  # fmt: skip
def test_optimizers_are_named_as_in_a_command(optimizer, kind, args, tmp_path):
    recipe = sdnb.Recipe.parse(written(tmp_path / "a.safetensors", {"ss_network_module": "networks.lora", "ss_optimizer": optimizer}))
    assert (recipe.optimizer_type, recipe.optimizer_args) == (kind, args)


def test_a_damaged_value_is_asked_for_and_a_damaged_file_is_refused(tmp_path):
    metadata = {"ss_network_module": "networks.lora", "ss_learning_rate": "fast", "ss_full_fp16": "yes", "ss_network_args": "[1]"}
    held = read(written(tmp_path / "a.safetensors", metadata)).held
    assert held == {"learning_rate": "fast", "full_fp16": "yes", "network_args": "ss_network_args must be an object {…}, not a list […]"}
    assert read(written(tmp_path / "a.safetensors", {})).form == "none"
    for content in (b"", b"x" * 20, struct.pack("<Q", 2**60) + b"{", struct.pack("<Q", 3) + b"{1}"):
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read"):
            sdnb.Recipe.parse(tmp_path / "a.safetensors")
    assert read(tmp_path / "none.safetensors").form == "none"


def test_the_doctor_writes_them_as_a_file_of_settings(tmp_path):
    diagnosis = sdnb.diagnose(written(tmp_path / "fox.safetensors", FILES[0]["metadata"]))
    assert "metadata-gaps" in [finding.rule for finding in diagnosis.findings]
    assert sdnb.Recipe.parse(diagnosis.fixed_text()) == sdnb.Recipe.parse(tmp_path / "fox.safetensors")
