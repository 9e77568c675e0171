"""A full GPU is answered for the settings that filled it."""

import dataclasses

import pytest

from sdnb import Recipe, diagnose
from sdnb.__main__ import main
from sdnb.doctor import savings
from sdnb.planner import changes, planning, smallest
from sdnb.system import GIB

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


NEW = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.76 GiB of which 18.44 MiB is free."
MINE = " Process 4711 has 1.00 GiB memory in use. Including non-PyTorch memory, this process has 6.70 GiB memory in use."
OLD = "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 8.00 GiB total capacity; 7.04 GiB already allocated; 0 bytes free; 7 GiB res"
COMMAND = "accelerate launch sdxl_train_network.py --network_module=networks.lora --network_dim=32 --resolution=1024 --mixed_precision=bf16"


def log(error, command=COMMAND):
    return f"{command} --pretrained_model_name_or_path=x.safetensors\ntorch.OutOfMemoryError: {error}\n"


@pytest.mark.parametrize(("error", "total", "usable"), [(NEW, 7.76, 7.76), (NEW + MINE, 7.76, 6.72), (OLD, 8.0, 8.0)])
def test_the_card_is_that_of_the_error(error, total, usable):
    diagnosis = diagnose(log(error))
    (full,) = [one for one in diagnosis.settings.findings if one.rule == "gpu-out-of-memory"]
    card = savings._card(full, needs_bf16=True)
    assert diagnosis.can_be_planned
    assert f"{total:.2f} GiB" in card.name
    assert card.total_bytes / GIB == pytest.approx(usable, abs=0.01)


def test_a_card_without_bf16_is_known_by_its_memory():
    (full,) = [one for one in diagnose(log(NEW.replace("7.76", "14.74"))).settings.findings if one.rule == "gpu-out-of-memory"]
    assert savings._card(full, needs_bf16=False).has_bf16 is False


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        log("CUDA out of memory. Tried to allocate 20.00 MiB"),  # of a size that is not known
        log(NEW, "accelerate launch flux_train.py --resolution=1024"),
        log(NEW, "accelerate launch sdxl_train.py --dataset_config=a.toml"),
        log(NEW, COMMAND.replace("--resolution=1024", "")),
    ],
)
def test_what_cannot_be_planned_is_answered_as_before(text):
    diagnosis = diagnose(text)
    assert not diagnosis.can_be_planned and diagnosis.planned() is diagnosis


@pytest.fixture
def advised(monkeypatch):
    """Advice of two variants for any log; the plan is one of the tiny model."""
    asked = []

    def advice(settings, full, seconds):
        asked.append((settings, full))
        made = planning.plan("tiny", Recipe.parse("--network_dim=4 --network_module=networks.lora --train_batch_size=2"), gpu="t4")
        chosen = [smallest.Variant((options[0],), made, made) for options in changes.topics(smallest.run_of(made))[:2]]
        return smallest.Advice(made, tuple(chosen), None)

    monkeypatch.setattr(savings, "_advice", advice)
    return asked


@pytest.mark.parametrize(("language", "word"), [("en", "Planned for this GPU: --cache_latents"), ("zh", "按这块显卡规划：--cache_latents")])
def test_a_full_card_is_answered_with_what_was_planned(tmp_path, capsys, advised, language, word):
    (tmp_path / "a.log").write_text(log(NEW), encoding="utf-8")
    assert main(["doctor", "--language", language, str(tmp_path / "a.log")]) == 1
    told = capsys.readouterr()
    assert word in told.out.replace("\n           ", " ") and "--no-plan" in told.err and len(advised) == 1
    assert main(["doctor", "--no-plan", str(tmp_path / "a.log")]) == 1
    assert len(advised) == 1


def test_without_torch_the_order_is_told(monkeypatch):
    def missing(*_):
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(savings, "_advice", missing)
    diagnosis = diagnose(log(NEW))
    assert diagnosis.planned().findings == diagnosis.findings
    assert "In this order: " in diagnosis.findings[0].fix


def test_the_answer_is_the_planners(monkeypatch):
    """The recipe, the card and the trainer that are planned are those of the log; the model is told by the script."""
    asked, tiny = [], planning.plan

    def plan(model, recipe, *, gpu, trainer):
        asked.append((model, recipe, gpu, trainer))
        return tiny("tiny", dataclasses.replace(recipe, resolution=64), gpu=gpu, trainer=trainer)

    monkeypatch.setattr("sdnb.planner.plan", plan, raising=False)
    monkeypatch.setattr(smallest, "advice", lambda plan, **named: smallest.Advice(plan, (), None))
    (finding,) = [one for one in diagnose(log(NEW)).planned().findings if one.rule == "gpu-out-of-memory"]
    ((model, recipe, gpu, trainer),) = asked
    assert (model, recipe.network_dim, recipe.resolution, trainer) == ("sdxl", 32, 1024, "sd-scripts")
    assert gpu.name == "7.76 GiB"
    assert finding.fix.startswith("Planned for this GPU: no setting is left")
