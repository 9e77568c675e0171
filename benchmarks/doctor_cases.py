"""Settings for a comparison of the doctor with sd-scripts: hand-picked ones, and ones put together at random."""

from __future__ import annotations

import json
import random

from sdnb.sd_scripts.arguments import STABLE_DIFFUSION, arguments

from . import sd_scripts

FAMOUS = ["--optimizer_type=Adafactor", "--max_grad_norm=0", "--lr_scheduler=constant_with_warmup", "--lr_warmup_steps=100"]
MANUAL = ["--optimizer_args", "relative_step=False", "scale_parameter=False", "warmup_init=False"]
AUTOMATIC = ["--optimizer_args", "relative_step=True", "scale_parameter=True", "warmup_init=True"]


def hand_picked() -> list[dict]:
    """One case for every rule that can be run, and for every trap known of."""
    flags = [
        FAMOUS,
        [*FAMOUS, "--learning_rate=1e-4", *MANUAL],
        [*FAMOUS, "--learning_rate=1e-4", "--max_grad_norm=1.0", *MANUAL],
        ["--optimizer_type=Adafactor", "--lr_scheduler=adafactor", *AUTOMATIC],
        ["--optimizer_type=adafactor", "--optimizer_args", "relative_step=False", "warmup_init=True"],
        ["--optimizer_type=Adafactor", "--lr_scheduler=adafactor", "--optimizer_args", "relative_step=False"],
        ["--optimizer_type=Adafactor", "--lr_scheduler=adafactor:1e-3", "--optimizer_args", "relative_step=False"],
        ["--optimizer_type=Adafactor", "--lr_scheduler=adafactor:x", "--optimizer_args", "relative_step=False"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "relative_step=False", "betas=(0.9,0.99)"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "relative_step=false"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "relative_step=False,"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "relative_step = False"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "relative_step", "=", "False"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "relative_step=False scale_parameter=False"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "clip_threshold=2.0", "relative_step=False"],
        ["--optimizer_type=Adafactor", "--learning_rate=0"],
        ["--optimizer_type=Adafactor", "--learning_rate=0", "--unet_lr=1e-4"],
        ["--lr_scheduler=adafactor"],
        ["--lr_warmup_steps=100"],
        ["--lr_warmup_steps=0.1", "--lr_scheduler=constant_with_warmup"],
        ["--lr_warmup_steps=10%", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=200%", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=100.0", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=1e2", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=-5", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=nan", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=inf", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=-inf", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=5000", "--lr_scheduler=constant_with_warmup"],
        ["--lr_scheduler=constant_with_warmup"],
        ["--lr_scheduler=cosine_with_min_lr"],
        ["--lr_scheduler=cosine_with_min_lr", "--lr_scheduler_min_lr_ratio=0.1"],
        ["--lr_scheduler=cosine_with_min_lr", "--lr_scheduler_args", "min_lr=1e-6"],
        ["--lr_scheduler=piecewise_constant"],
        ["--lr_scheduler=piecewise_constant", "--lr_scheduler_args", "step_rules='1:10,0.1:20,0.01'"],
        ["--lr_scheduler=piecewise_constant", "--lr_warmup_steps=10", "--lr_scheduler_args", "step_rules='1:10,0.1'"],
        ["--lr_scheduler=piecewise_constant", "--lr_scheduler_args", "step_rules='1-10'"],
        ["--lr_scheduler=cosinus"],
        ["--lr_scheduler=reduce_lr_on_plateau"],
        ["--lr_scheduler=warmup_stable_decay", "--lr_warmup_steps=10", "--lr_decay_steps=0.2"],
        ["--lr_scheduler=inverse_sqrt", "--lr_warmup_steps=10", "--lr_scheduler_timescale=100"],
        ["--lr_scheduler=polynomial", "--learning_rate=1e-8"],
        ["--lr_scheduler_type=CosineAnnealingLR"],
        ["--lr_scheduler_type=CosineAnnealingLR", "--lr_scheduler_args", "T_max=100"],
        ["--lr_scheduler_type=CosineAnnealingLR", "--lr_warmup_steps=10", "--lr_scheduler_args", "T_max=100"],
        ["--lr_scheduler_type=cosine"],
        ["--use_8bit_adam", "--optimizer_type=AdamW"],
        ["--use_8bit_adam"],
        ["--use_lion_optimizer"],
        ["--use_8bit_adam", "--use_lion_optimizer"],
        ["--optimizer_type=Prodigy", "--learning_rate=1e-4"],
        ["--optimizer_type=Prodigy", "--learning_rate=1"],
        ["--optimizer_type=Prodigy", "--learning_rate=1", "--unet_lr=0.5"],
        ["--optimizer_type=DAdaptAdam", "--learning_rate=1", "--optimizer_args", "decouple=True", "weight_decay=0.01"],
        ["--optimizer_type=DAdaptFoo"],
        ["--optimizer_type=adam"],
        ["--optimizer_type=Adam8bit"],
        ["--optimizer_type=AdamW2"],
        ["--optimizer_type=RAdam"],
        ["--optimizer_type=AdamWScheduleFree", "--lr_scheduler=cosine", "--lr_warmup_steps=100"],
        ["--optimizer_type=SGDNesterov8bit", "--learning_rate=0.1"],
        ["--optimizer_type=bitsandbytes.optim.AdEMAMix8bit"],
        ["--optimizer_type=torch.optim.AdamW"],
        ["--fused_backward_pass"],
        ["--fused_backward_pass", *FAMOUS, *MANUAL, "--gradient_accumulation_steps=2"],
        ["--fused_backward_pass", *FAMOUS, *MANUAL],
        ["--adaptive_noise_scale=0.1"],
        ["--scale_v_pred_loss_like_noise_pred"],
        ["--v_pred_like_loss=1", "--v_parameterization"],
        ["--zero_terminal_snr"],
        ["--v2", "--clip_skip=2"],
        ["--cache_latents_to_disk"],
        ["--resolution=512x512"],
        ["--resolution=512,512,512"],
        ["--sample_every_n_steps=0"],
        ["--max_grad_nrom=0"],
        ["--max_grad=0"],
        ["--lr_sch=cosine"],
        ["--mixed_precision=fp8"],
        ["--learning_rate=abc"],
        ["--learning_rate=-1e-4"],
        ["--learning_rate=nan"],
        ["--learning_rate=inf"],
        ["--learning_rate", "=", "1e-4"],
        ["--optimizer_args"],
        ["--optimizer_args", "weight_decay=0.01", "weight_decay=0.1"],
        ["--optimizer_args", "lr=1e-3"],
        ["--optimizer_args", "weight_decay=-1"],
        ["--optimizer_args", "weight_decay='x'"],
        ["--optimizer_args", "eps=__import__('os').getcwd()"],
        ["--network_dim=4", "--network_alpha=1"],
        ["--text_encoder_lr", "5e-5", "1e-5", "--unet_lr=1e-4"],
        ["--optimizer_type=SparseAdam"],
        ["--optimizer_type=LBFGS"],
        ["--optimizer_type=Muon"],
        ["--optimizer_type=Prodigy", "--learning_rate=1", "--network_args", "loraplus_lr_ratio=16"],
        ["--optimizer_type=DAdaptAdan", "--learning_rate=1", "--network_args", "loraplus_unet_lr_ratio=4"],
        ["--learning_rate=1e-4", "--network_args", "loraplus_lr_ratio=16"],
        ["--persistent_data_loader_workers", "--max_data_loader_n_workers=0"],
        ["--save_every_n_epochs=0"],
        ["--network_dim=0"],
        ["--train_batch_size=0"],
        ["--gradient_accumulation_steps=0"],
        ["--enable_bucket", "--bucket_reso_steps=0"],
        ["--enable_bucket", "--bucket_reso_steps=32"],
        ["--enable_bucket", "--bucket_reso_steps=48"],
        ["--bucket_reso_steps=48"],
        ["--cache_latents", "--color_aug"],
        ["--cache_latents_to_disk", "--random_crop"],
        ["--cache_text_encoder_outputs", "--shuffle_caption"],
        ["--cache_text_encoder_outputs", "--network_train_unet_only"],
        ["--cache_text_encoder_outputs"],
        ["--cache_text_encoder_outputs", "--train_text_encoder"],
        ["--cache_text_encoder_outputs", "--weighted_captions"],
        ["--full_fp16"],
        ["--full_bf16"],
        ["--full_bf16", "--mixed_precision=bf16"],
        ["--fp8_base"],
        ["--gradient_checkpointing", "--cpu_offload_checkpointing"],
        ["--log_with=tensorboard"],
        ["--resume=lora.safetensors"],
        ["--initial_step=2000"],
        ["--network_module=networks.lora_sdxl"],
        ["--network_module=lora"],
        ["--network_module=networks.dylora", "--network_dim=0"],
        ["--optimizer_type=Prodigy", "--learning_rate=1", "--network_dim=0"],
        ["--optimizer_type=DAdaptSGD", "--learning_rate=1", "--lr_scheduler=cosine", "--lr_warmup_steps=10"],
        ["--in_json=metadata.json"],
        ["--in_json=metadata.json", "--cache_latents"],
        ["--network_module=networks.dylora"],
        ["--network_module=networks.loha"],
        ["--network_args", "conv_dim=8", "conv_alpha"],
        ["--network_args", "conv_dim=8"],
        ["--pretrained_model_name_or_path=m"],
        ["--pretrained_model_name_or_path=m", "--network_module=networks.lora", "--sdpa"],
    ]  # fmt: skip
    scripts = ("train_network.py", "sdxl_train_network.py", "sdxl_train.py", "train_db.py", "fine_tune.py", "train_textual_inversion.py")
    cases = [{"script": script, "form": "flags", "words": words, "processes": 1} for words in flags for script in scripts[:3]]
    cases += [{"script": scripts[i % 6], "form": "flags", "words": words, "processes": 4} for i, words in enumerate(flags)]
    toml = [
        'optimizer_type = "Adafactor"\nlr_scheduler = "constant_with_warmup"\nlr_warmup_steps = 100',
        'lr_scheduler = "constant_with_warmup"\nlr_warmup_steps = 100.0',
        'lr_scheduler = "constant_with_warmup"\nlr_warmup_steps = 0.05',
        "max_grad_nrom = 0",
        '[training]\nlearning_rate = 1e-4\n[training.deep]\nmax_grad_norm = 0',
        'optimizer_type = "AdamW"\noptimizer_args = "weight_decay=0.01"',
        'optimizer_type = "AdamW"\noptimizer_args = ["weight_decay=0.01"]',
        'optimizer_type = "AdamW"\noptimizer_args = [1]',
        'learning_rate = "1e-4"',
        'max_train_steps = "1600"',
        'lr_warmup_steps = "100"\nlr_scheduler = "cosine"',
        "max_train_steps = 1600.0",
        'mixed_precision = "fp8"',
        "fused_backward_pass = true",
        'optimizer_type = "Prodigy"\nlearning_rate = 1',
        "lr_warmup_steps = inf\nlr_scheduler = \"cosine\"",
        "resolution = 512",
        'resolution = "512"',
        "text_encoder_lr = 1e-5\nunet_lr = 1e-4",
        "text_encoder_lr = [1e-5, 2e-5]",
        "zero_terminal_snr = true",
        'train_batch_size = "2"',
        'network_dim = "8"',
        'network_alpha = "8"',
        'max_data_loader_n_workers = "0"',
        'seed = "1"',
        'unet_lr = "1e-4"',
        'text_encoder_lr = "1e-4"',
        'text_encoder_lr = ["1e-4"]',
        'max_train_epochs = "2"',
        'min_snr_gamma = "5"',
        'noise_offset = "0.1"',
        'save_every_n_steps = "100"',
        'network_args = "conv_dim=8 conv_alpha=4"',
        "network_args = [1]",
        "save_every_n_epochs = 0",
        'keep_tokens = "1"',
        'max_token_length = "225"',
        'caption_dropout_rate = "0.1"',
        "max_train_epochs = 2.0",
        'in_json = "metadata.json"',
    ]  # fmt: skip
    others = [{"script": script, "form": "flags", "words": words, "processes": 1} for script in OTHERS for words in OTHER_FLAGS]
    return (
        cases
        + others
        + [
            {"script": script, "form": "toml", "text": text, "processes": n}
            for text in toml
            for script, n in zip(scripts[:3], (1, 1, 2), strict=True)
        ]
    )


OTHERS = tuple(script for script in (f"{name}.py" for name in sd_scripts.SCRIPTS) if script not in STABLE_DIFFUSION)
"""The scripts that only run up to their models."""
OTHER_FLAGS = (
    *(["--enable_bucket", f"--bucket_reso_steps={steps}"] for steps in (8, 16, 24, 32, 48, 64)),
    ["--cache_latents", "--color_aug"],
    ["--cache_latents", "--random_crop"],
    ["--cache_latents"],
    ["--cache_text_encoder_outputs", "--shuffle_caption"],
    ["--cache_text_encoder_outputs", "--caption_dropout_rate=0.1"],
    ["--cache_text_encoder_outputs", "--network_train_unet_only"],
    ["--blocks_to_swap=4", "--cpu_offload_checkpointing"],
    ["--blocks_to_swap=4", "--cpu_offload_checkpointing", "--gradient_checkpointing"],
    ["--log_with=tensorboard"],
    ["--train_batch_size=0"],
    ["--resolution=512x512"],
)


def generated(count: int, seed: int = 0) -> list[dict]:
    """Settings put together at random from values that people use, and, one in eight, from values that they should not."""
    dice = random.Random(seed)
    return [_case(dice) for _ in range(count)]


GOOD = {
    "optimizer_type": [*sd_scripts.NAMES, *["Adafactor"] * 16, *["AdamW", "AdamW8bit", "Prodigy", "Lion"] * 2, "adafactor", "SGD", "NAdam"],
    "lr_scheduler": [*["constant", "constant_with_warmup", "cosine"] * 3, "linear", "cosine_with_restarts", "polynomial", "inverse_sqrt"],
    "learning_rate": "1e-4 1e-4 1 1.0 4e-7 0.05".split(),
    "lr_warmup_steps": "0 100 100 0.1 10% 0.05".split(),
}
BAD = {
    "optimizer_type": "ADAMW sgd Muon8bit Foo DAdaptX adam lr_scheduler AdamW2".split(),
    "lr_scheduler": (
        "adafactor piecewise_constant reduce_lr_on_plateau cosine_warmup_with_min_lr Constant adafactor:1e-3 foo "
        "cosine_with_min_lr warmup_stable_decay"
    ).split(),
    "learning_rate": "0 -1 nan inf x 1e-8".split(),
    "lr_warmup_steps": "1 1.5 2000 -1 nan 1e2 x% 0.0 inf".split(),
}
SETS = [
    texts.split()
    for texts in (
        "relative_step=False",
        "relative_step=False scale_parameter=False warmup_init=False",
        "relative_step=True scale_parameter=True warmup_init=True",
        "clip_threshold=2.0 relative_step=False",
        "weight_decay=0.01",
        "decouple=True",
        "betas=(0.9,0.99)",
    )
]
KEYS = (
    "relative_step scale_parameter warmup_init clip_threshold weight_decay betas eps decouple momentum beta1 d_coef amsgrad lr foo"
).split()
VALUES = [*"False True false 0 1 0.5 -1 None 'x' (0.9,0.99) (0.9,0.999,0.9999) (1.5,0.9) 1e-6 False, [0.9,0.99] nan {}".split(), ""]
ODD = (
    "--max_grad_norm=0 --max_grad_norm=1 --gradient_accumulation_steps=2 --max_train_steps=50 --fused_backward_pass "
    "--gradient_checkpointing --mixed_precision=bf16 --zero_terminal_snr --v_parameterization --v2 --clip_skip=2 --cache_latents_to_disk "
    "--noise_offset=0.05 --adaptive_noise_scale=0.01 --unet_lr=1e-4 --text_encoder_lr=1e-5 --network_train_unet_only --network_dim=8 "
    "--train_text_encoder --learning_rate_te=1e-6 --learning_rate_te1=1e-6 --use_8bit_adam --use_lion_optimizer --lr_decay_steps=10 "
    "--lr_scheduler_num_cycles=3 --lr_scheduler_min_lr_ratio=0.1 --lr_scheduler_power=2 --resolution=512,512 --resolution=512x "
    "--weighted_captions --block_lr=1 --xformer --seed=1 --lr_w=5 "
    "--persistent_data_loader_workers --max_data_loader_n_workers=0 --save_every_n_epochs=0 --network_dim=0 --train_batch_size=0 "
    "--enable_bucket --bucket_reso_steps=32 --bucket_reso_steps=48 --cache_latents --color_aug --random_crop --flip_aug --shuffle_caption "
    "--cache_text_encoder_outputs --cache_text_encoder_outputs_to_disk --caption_dropout_rate=0.1 --full_fp16 --full_bf16 --fp8_base "
    "--fp8_base_unet --mixed_precision=fp16 --cpu_offload_checkpointing --log_with=tensorboard --logging_dir=logs "
    "--resume=lora.safetensors --resume=state --initial_step=10 --initial_step=2000 --network_module=networks.lora "
    "--network_module=networks.lora_fa --network_module=networks.dylora --network_module=networks.loha --network_module=lora "
    "--pretrained_model_name_or_path=m --sdpa --mem_eff_attn --fused_optimizer_groups=2 --max_train_epochs=2 --save_n_epoch_ratio=2 "
    "--network_train_text_encoder_only --stop_text_encoder_training=-1 --gradient_accumulation_steps=0 --no_half_vae "
    "--in_json=metadata.json "
    "--network_dropout=0.1 --scale_weight_norms=1 --masked_loss --sample_at_first --token_warmup_step=0.1 --max_token_length=225"
).split()
LORA_ARGS = (
    ["loraplus_lr_ratio=16"],
    ["loraplus_unet_lr_ratio=4"],
    ["loraplus_text_encoder_lr_ratio=4"],
    ["loraplus_lr_ratio=1"],
    ["conv_dim=8", "conv_alpha=4"],
    ["conv_dim", "8"],
    ["rank_dropout=0.1"],
)
TEXTS = (
    "train_batch_size network_dim network_alpha max_data_loader_n_workers seed unet_lr text_encoder_lr max_train_epochs min_snr_gamma "
    "noise_offset save_every_n_steps save_every_n_epochs keep_tokens caption_dropout_rate learning_rate max_train_steps max_grad_norm "
    "gradient_accumulation_steps bucket_reso_steps min_bucket_reso network_dropout ip_noise_gamma sample_every_n_steps prior_loss_weight"
).split()
"""Numbers that a TOML file may hold as texts."""


def _case(dice: random.Random) -> dict:
    script = dice.choice(STABLE_DIFFUSION)
    said = {name: dice.choice((BAD if dice.random() < 1 / 8 else GOOD)[name]) for name in GOOD if dice.random() < 0.75}
    if said.get("lr_scheduler", "constant") == "constant" and dice.random() < 0.8:
        said.pop("lr_warmup_steps", None)
    words = [f"--{name}={value}" for name, value in said.items()]
    if dice.random() < 0.5:
        known = arguments(script)
        odd = [word for word in ODD if word[2:].partition("=")[0] in known] if dice.random() < 0.9 else ODD
        words += dice.sample(odd, dice.choice([1, 1, 2, 3]))
    if dice.random() < 0.06:
        words.append(f"--lr_scheduler_type={dice.choice(['CosineAnnealingLR', 'StepLR', 'cosine', 'ConstantLR', 'LinearLR', 'Foo'])}")
    if dice.random() < 0.08:
        some = ["T_max=10", "step_size=3", "num_cycles=2", "last_epoch=-1", "min_lr=1e-6", "step_rules='1:10,0.1'", "x"]
        words += ["--lr_scheduler_args", *dice.sample(some, dice.choice([1, 2]))]
    if dice.random() < 0.6:
        own = dice.choice(SETS)
        if "relative_step" in own[0] or said.get("optimizer_type", "").lower() == "adafactor":
            own = dice.choice([one for one in SETS if "relative_step=" in " ".join(one)]) if dice.random() < 0.9 else own
        if dice.random() < 1 / 8:
            own = [f"{dice.choice(KEYS)}={dice.choice(VALUES)}" for _ in range(dice.choice([1, 1, 2]))]
        words += ["--optimizer_args", *own]
    if any(word.startswith("--max_train_epochs") for word in words):  # how many steps that makes is a matter of the pictures
        words = [word for word in words if not word.startswith("--initial_step")]
    if "network_args" in arguments(script) and dice.random() < 0.15:
        words += ["--network_args", *dice.choice(LORA_ARGS)]
    case = {"script": script, "form": "flags", "words": words, "processes": dice.choice([1, 1, 1, 2, 4])}
    toml = {"script": script, "form": "toml", "processes": case["processes"]}
    if dice.random() >= 0.2 or not (text := _as_toml(words)):
        return case
    if dice.random() < 0.05 and "max_train_" not in text:
        text += dice.choice(["\nmax_train_steps = 800.0", "\nmax_train_epochs = 2.0"])
    if dice.random() < 0.15:
        name = dice.choice(TEXTS)
        if name in arguments(script) and f"{name} =" not in text:
            text += f'\n{name} = "{dice.choice([1, 2, 0.1])}"'
    return {**toml, "text": text}


def _as_toml(words: list[str]) -> str | None:
    """A TOML file of these words; None where a word has no place in one."""
    lines, values, name = [], {}, ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values[name] = value if equals else True
        else:
            values[name] = [*(values[name] if isinstance(values[name], list) else []), word]
    for name, value in values.items():
        if (
            value is True
            or isinstance(value, list)
            or name in ("optimizer_type", "lr_scheduler", "lr_scheduler_type", "mixed_precision", "resolution")
        ):
            lines.append(f"{name} = {json.dumps(value)}")
        else:
            try:
                json.loads(value)
            except ValueError:
                return None
            lines.append(f"{name} = {value}")
    return "\n".join(lines)
