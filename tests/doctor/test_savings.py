"""A full GPU is answered for the settings that filled it."""

import pytest

from sdnb import diagnose

FULL = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"


def fix(*words: str, name: str = "gpu-out-of-memory") -> str:
    log = f"{FULL}subprocess.CalledProcessError: Command '{['python', *words]}' returned non-zero exit status 1."
    (finding,) = [finding for finding in diagnose(log).findings if finding.rule == name]
    return f"{finding.why} {finding.fix}"


def test_who_trains_lora_is_not_told_to():
    text = fix("sdxl_train_network.py", "--network_module=networks.lora", "--network_dim=128", "--train_batch_size=4", "--resolution=1024")
    assert "LoRA of rank 128 with batches of 4 at 1024" in text and "LoRA instead" not in text
    assert "--gradient_checkpointing" in text and "--network_dim=32 instead of 128" in text and "--fp8_base" in text
    assert "--train_batch_size=1 --gradient_accumulation_steps=4" in text


def test_who_trains_the_whole_model_is_told_to_fuse_the_backward_pass():
    text = fix("sdxl_train.py", "--train_batch_size=1", "--gradient_checkpointing", "--cache_latents", "--mixed_precision=bf16", "--sdpa")
    assert "the whole model" in text and "--fused_backward_pass" in text and "LoRA instead of all weights" in text
    for had in ("--gradient_checkpointing", "--cache_latents", "--sdpa", "--train_batch_size"):
        assert had not in text


def test_an_embedding_is_no_whole_model():
    text = fix("train_textual_inversion.py", "--token_string=x")
    assert "the whole model" not in text and "LoRA" not in text


def test_settings_in_a_file_are_not_guessed():
    text = fix("sdxl_train_network.py", "--config_file", "a.toml")
    assert "whatever that file does not set yet" in text and "--train_batch_size=1" in text and "LoRA instead" not in text


@pytest.mark.parametrize(
    "sign", ["import network module: networks.lora", "/sd/sdxl_train_network.py", "create LoRA network. base dim (rank): 8"]
)
def test_without_a_command_the_log_itself_says_lora(sign):
    assert "LoRA instead" not in diagnose(f"{sign}\n{FULL}").findings[0].fix
    assert "LoRA instead" in diagnose(FULL).findings[0].fix


@pytest.mark.parametrize(
    "words",
    ["HIP out of memory. Tried to allocate 2.00 GiB", "MPS backend out of memory", "cuda out of memory. tried to allocate 30.00 mib"],
)
def test_other_cards_and_other_spellings(words):
    assert diagnose(f"RuntimeError: {words}").findings[0].rule == "gpu-out-of-memory"
