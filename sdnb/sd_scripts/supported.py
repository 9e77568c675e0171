"""What a run does otherwise than sd-scripts: settings that change nothing here, settings that differ, and the reasons for refusals.

A setting that is no field of a `Recipe` has a line in `IGNORED` or `REFUSED`. Where a run comes to another result than sd-scripts would,
the setting has a row in `DIFFERS`. `sdnb train` prints what `ignored` and `differences` return before it starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..system import is_missing
from . import arguments, families, networks
from .keywords import Malformed, take_apart

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..sections import Saves


@dataclass(frozen=True)
class Difference:
    """A setting with which a run comes to another result than sd-scripts'."""

    name: str
    holds: Callable[[Recipe], bool]
    why: str
    """What is done here instead."""
    on: str = ""
    """The kind of device that it holds for, `cpu` or `cuda`; empty for both."""


def _has_relative_step(recipe: Recipe) -> bool:
    given = take_apart(recipe.optimizer_args)
    automatic = not isinstance(given, Malformed) and (given.get("relative_step", True) or given.get("warmup_init"))
    return recipe.optimizer_type == "Adafactor" and bool(automatic)


IN_8_BITS = "weights are rounded to 8 bits, as in sd-scripts, but kept in 16: the same numbers, and no memory saved"
OWN = "torch's own attention is always used, and computes the same"
DEEPSPEED = "it only acts with deepspeed"
UPLOADS = "nothing is uploaded: the files are in output_dir"
IGNORED = {
    "config_file": "it was read",
    "xformers": OWN,
    "sdpa": OWN,
    "mem_eff_attn": OWN,
    "diffusers_xformers": OWN,
    "save_state_on_train_end": "a job always saves its state",
    "use_safetensors": "there is no other form here",
    "max_data_loader_n_workers": "pictures are read before the first step",
    "persistent_data_loader_workers": "pictures are read before the first step",
    "vae_batch_size": "the batch in which pictures are encoded is chosen here",
    "conditioning_data_dir": "it only acts in a dataset file",
    "skip_cache_check": "a cache is always checked",
    "lowram": "it changes where the weights are loaded, not what is trained",
    "highvram": "it changes where the weights are loaded, not what is trained",
    "disable_mmap_load_safetensors": "it changes how a file is read, not what is trained",
    "tokenizer_cache_dir": "tokenizers come with the model",
    "v2": "the kind of model is read from its files",
    "huggingface_repo_id": UPLOADS,
    "huggingface_repo_type": UPLOADS,
    "huggingface_path_in_repo": UPLOADS,
    "huggingface_repo_visibility": UPLOADS,
    "save_state_to_huggingface": UPLOADS,
    "async_upload": UPLOADS,
    "no_token_padding": "captions are always padded, in sd-scripts, too",
    "cpu_offload_checkpointing": "what checkpointing keeps stays on the GPU, and the result is the same",
    "zero_stage": DEEPSPEED,
    "zero3_init_flag": DEEPSPEED,
    "zero3_save_16bit_model": DEEPSPEED,
    "offload_optimizer_device": DEEPSPEED,
    "offload_optimizer_nvme_path": DEEPSPEED,
    "offload_param_device": DEEPSPEED,
    "offload_param_nvme_path": DEEPSPEED,
    "fp16_master_weights_and_gradients": DEEPSPEED,
    "ddp_timeout": "accelerate's own is used",
    "ddp_gradient_as_bucket_view": "accelerate's own is used",
    "ddp_static_graph": "accelerate's own is used",
} | dict.fromkeys(
    "cache_info console_log_file console_log_level console_log_simple output_config".split(),
    "it concerns the log, and nothing that is trained",
)
"""Settings that change nothing here, each with the reason."""
REFUSED = {
    "resume_from_huggingface": "nothing is downloaded but models: download the folder of the state, and give resume that",
    "debug_dataset": "it shows the pictures instead of training: look at sdnb.pictures(folder)",
    "train_inpainting": "an inpainting model is also shown a mask and what is left of the picture, which nothing here prepares",
    "dataset_class": "it is code of its own, which is not run: give a folder or a dataset file",
    "deepspeed": "each process would have pieces of the weights, which no save here holds: launch with --multi_gpu",
}
"""Settings that are refused in words of their own; every other one that is not listed is refused as well."""
DIFFERS = (
    Difference("save_model_as", lambda recipe: recipe.save_model_as in ("ckpt", "pt"), "the file is safetensors, never a pickle"),
    Difference(
        "save_precision",
        lambda recipe: bool(recipe.save_precision) and not recipe.wants_lora and _is_folder(recipe),
        "a model that is saved as a folder keeps the precision of its weights",
    ),
    Difference(
        "no_metadata",
        lambda recipe: bool(recipe.no_metadata or recipe.of_model) and not recipe.wants_lora,
        "a whole model's file says what kind of model it is, and nothing else",
    ),
    Difference(
        "resume",
        lambda recipe: bool(recipe.resume) and any(Path(recipe.resume or "").expanduser().glob("model*.safetensors")),
        "the state's weights and step are taken; its optimizer, schedule and random numbers are pickles, which are never loaded, and begin "
        "anew",
    ),
    Difference(
        "skip_until_initial_step",
        lambda recipe: recipe.skip_until_initial_step and recipe.gradient_accumulation_steps > 1,
        "whole optimizer steps are skipped; sd-scripts takes their batches for steps when it looks for the epoch",
    ),
    Difference(
        "sample_prompts",
        lambda recipe: draws(recipe) and not is_file(recipe.sample_prompts),
        "there is no such file, so no samples are drawn",
    ),
    Difference(
        "sample_prompts",
        lambda recipe: draws(recipe) and is_file(recipe.sample_prompts),
        "samples are drawn from the first 75 tokens of a prompt, and brackets in it weigh nothing",
    ),
    Difference(
        "sample_sampler",
        lambda recipe: draws(recipe) and recipe.sample_sampler.endswith("lms") and is_missing("scipy"),
        "lms needs scipy, so samples are drawn with euler: pip install scipy",
    ),
    Difference(
        "logging_dir",
        lambda recipe: bool(recipe.logging_dir) and recipe.log_with != "wandb" and is_missing("tensorboard"),
        "TensorBoard is not installed, so no log is written for it: pip install tensorboard",
    ),
    Difference(
        "log_with",
        lambda recipe: recipe.log_with in ("wandb", "all") and "WANDB_MODE" not in os.environ,
        "W&B writes to the disk alone: send it with wandb sync, or set WANDB_MODE=online in the environment",
    ),
    Difference(
        "validate_every_n_steps",
        lambda recipe: bool(recipe.validation_split and recipe.validate_every_n_steps),
        "each validation loss is the mean of that validation alone; sd-scripts' mixes in earlier ones of the first epoch",
    ),
    Difference(
        "validation_split",
        lambda recipe: bool(recipe.validation_split) and recipe.validation_seed is None,
        "seed says which pictures are held out; sd-scripts without validation_seed may train on some of them",
    ),
    Difference(
        "flip_aug",
        lambda recipe: recipe.flip_aug and not (recipe.enable_bucket or recipe.caches_latents) and _is_sdxl(recipe),
        "SDXL is told that a mirrored picture begins at 0; sd-scripts, without buckets and cached latents, says its whole width",
    ),
    Difference(
        "pretrained_model_name_or_path",
        lambda recipe: families.of_model(recipe.pretrained_model_name_or_path) == "SDXL",
        "captions are pooled as SDXL does when it draws; sd-scripts takes a single file's text_projection without transposing it",
    ),
    Difference(
        "fused_optimizer_groups",
        lambda recipe: bool(recipe.fused_optimizer_groups) and recipe.gradient_accumulation_steps > 1,
        "each group is stepped once for each update; sd-scripts steps its first group after every batch",
    ),
    Difference(
        "fused_optimizer_groups",
        lambda recipe: bool(recipe.fused_optimizer_groups) and recipe.optimizer_type.lower().startswith(("prodigy", "dadapt")),
        "the optimizer finds a rate for each group, and sd-scripts' groups begin and end at other weights",
    ),
    Difference(
        "optimizer_type",
        lambda recipe: recipe.optimizer_type.lower() == "adafactor" and "factoring=" not in " ".join(recipe.optimizer_args),
        "Adafactor factors a convolution as one matrix, which needs far less memory; sd-scripts' factors each kernel",
    ),
    Difference("mixed_precision", lambda recipe: recipe.mixed_precision == "fp16", "fp16 is computed in fp32", on="cpu"),
    Difference(
        "full_fp16",
        lambda recipe: recipe.full_fp16,
        "the weights to train stay in fp32, where small updates are not lost; a whole model needs more memory than in sd-scripts",
    ),
    Difference("full_bf16", lambda recipe: recipe.full_bf16 and recipe.wants_lora, "adapters stay in fp32"),
    Difference(
        "full_bf16",
        lambda recipe: recipe.full_bf16 and not recipe.wants_lora,
        "the weights are in bf16, which fine_tune.py and train_db.py leave in fp32",
    ),
    Difference("fp8_base", lambda recipe: recipe.fp8_base and recipe.wants_lora, IN_8_BITS),
    Difference("fp8_base_unet", lambda recipe: recipe.fp8_base_unet and recipe.wants_lora, IN_8_BITS),
    Difference(
        "network_module",
        lambda recipe: recipe.network_module == "networks.dylora" and (draws(recipe) or bool(recipe.validation_split)),
        "samples and validation show the LoRA that its file holds; sd-scripts' are stronger by chance, as in training",
    ),
    Difference(
        "max_grad_norm",
        lambda recipe: recipe.max_grad_norm > 0 and recipe.network_module == "networks.lora_fa",
        "the norm is of B's gradients; sd-scripts also counts those of A, which it never trains and never clears",
    ),
    Difference(
        "max_grad_norm",
        lambda recipe: recipe.max_grad_norm > 0 and _has_part_at_rest(recipe),
        "a part whose rate is 0 has no gradient, where sd-scripts counts one in the norm",
    ),
)
"""Where a run differs; a row for each reason."""
FIRST_RATE_ALONE = ("DAdaptAdaGrad", "DAdaptAdan", "DAdaptAdanIP")
"""Optimizers that take the rate of the first group for all, where Prodigy and the others of D-Adaptation refuse different ones."""
ENCODER_RATES = "learning_rate_te learning_rate_te1 learning_rate_te2"


def _rows(names: str, holds: Callable[[Recipe], bool], why: str) -> tuple[Difference, ...]:
    return tuple(Difference(name, holds, why) for name in names.split())


def _keeps_parts(recipe: Recipe) -> bool:
    """Whether the parts of captions stay as they are, in all that the recipe itself says."""
    moves = recipe.shuffle_caption or recipe.caption_tag_dropout_rate or recipe.token_warmup_step
    return not moves and not recipe.dataset_config


IDLE = (
    *_rows(
        "scale_weight_norms network_dropout",
        lambda recipe: recipe.network_module in networks.OF_THEIR_OWN[1:],
        "of sd-scripts' modules only networks.lora and networks.lora_fa act on it",
    ),
    Difference("text_encoder_lr", lambda recipe: recipe.network_module == "networks.oft", "networks.oft is for the U-Net alone"),
    *_rows(
        "keep_tokens keep_tokens_separator",
        _keeps_parts,
        "it only acts with shuffle_caption, caption_tag_dropout_rate or token_warmup_step",
    ),
    *_rows(
        "train_data_dir reg_data_dir in_json", lambda recipe: bool(recipe.dataset_config), "the dataset file says which pictures there are"
    ),
    *_rows("noise_offset_random_strength adaptive_noise_scale", lambda recipe: not recipe.noise_offset, "it only acts with noise_offset"),
    Difference(
        "save_precision",
        lambda recipe: bool(recipe.save_precision) and (recipe.save_model_as or "").startswith("diffusers"),
        "a folder in diffusers' format keeps the precision of the weights",
    ),
    Difference("ip_noise_gamma_random_strength", lambda recipe: not recipe.ip_noise_gamma, "it only acts with ip_noise_gamma"),
    *_rows(
        "network_dim network_alpha network_dropout", lambda recipe: recipe.dim_from_weights, "network_weights and dim_from_weights say it"
    ),
    *_rows(
        f"train_text_encoder stop_text_encoder_training {ENCODER_RATES} block_lr",
        lambda recipe: recipe.wants_lora,
        "it is for training all weights, and adapters are trained",
    ),
    *_rows(
        "unet_lr text_encoder_lr scale_weight_norms network_train_unet_only network_train_text_encoder_only",
        lambda recipe: not recipe.wants_lora,
        "it is for adapters, and all weights are trained",
    ),
    *_rows(
        ENCODER_RATES,
        lambda recipe: not (recipe.wants_lora or recipe.trains_text_encoders),
        "the text encoders are not trained: train_text_encoder does that",
    ),
    Difference(
        "text_encoder_lr",
        lambda recipe: recipe.wants_lora and len(set(recipe.text_encoder_lr)) > 1 and recipe.network_module not in networks.SEVERAL_RATES,
        "of several rates only the first is used, for all text encoders",
    ),
    *_rows(
        f"unet_lr text_encoder_lr {ENCODER_RATES} block_lr",
        lambda recipe: recipe.optimizer_type in FIRST_RATE_ALONE,
        "of different rates this optimizer uses only the first for all weights, that of a text encoder's adapters or else the U-Net's",
    ),
    Difference("dynamo_backend", lambda recipe: not recipe.torch_compile, "it only acts with torch_compile"),
    Difference("torch_compile", lambda recipe: recipe.torch_compile and not recipe.compiles, "dynamo_backend=no turns it off"),
    Difference("fp8_base", lambda recipe: not recipe.wants_lora, "it only acts beside a network"),
    Difference("fp8_base_unet", lambda recipe: not recipe.wants_lora, "it only acts beside a network"),
    *_rows(
        f"learning_rate lr_scheduler unet_lr text_encoder_lr {ENCODER_RATES} block_lr",
        _has_relative_step,
        "Adafactor chooses its own rate with relative_step=True, its default",
    ),
    Difference(
        "face_crop_aug_range",
        lambda recipe: recipe.enable_bucket or recipe.caches_latents,
        "it only acts without enable_bucket and without cached latents",
    ),
    Difference(
        "masked_loss",
        lambda recipe: not recipe.dataset_config and not recipe.alpha_mask,
        "only alpha_mask, or conditioning_data_dir in a dataset file, gives pictures a mask",
    ),
    Difference("reg_data_dir", lambda recipe: bool(recipe.in_json), "with in_json there are no regularization pictures"),
)
"""Settings that change nothing, here and in sd-scripts, because of another."""


def draws(recipe: Saves) -> bool:
    """Whether samples are to be drawn."""
    return bool(recipe.sample_at_first or recipe.drawn_every_epochs or recipe.drawn_every_steps)


def is_file(path: str | None) -> bool:
    """Whether a setting names a file that is there."""
    try:
        return bool(path) and Path(path or "").expanduser().is_file()
    except (OSError, RuntimeError):  # a name too long, or the ~ of a user that is not there
        return False


def _is_sdxl(recipe: Recipe) -> bool:
    """Whether the model is SDXL, or may be."""
    return families.of_model(recipe.pretrained_model_name_or_path) in (None, "SDXL")


def _is_folder(recipe: Recipe) -> bool:
    """Whether a whole model is saved as a folder, as `Job.is_single` decides."""
    if recipe.save_model_as is None:
        return not str(recipe.pretrained_model_name_or_path).endswith(".safetensors")
    return recipe.save_model_as.startswith("diffusers")


def refusals(recipe: Recipe) -> list[str]:
    """The settings of a recipe that are not done here, each with the reason."""
    wrong = []
    for name, _ in recipe.extras:
        if name in IGNORED:
            continue
        if name in REFUSED:
            wrong.append(f"{name}: {REFUSED[name]}")
        elif not set(arguments.scripts_with(name)) & set(arguments.STABLE_DIFFUSION):
            wrong.append(f"{name}: it belongs to {arguments.scripts_with(name)[0]}, another kind of model")
        else:
            wrong.append(f"{name}: it is not supported; leave it out if the run can do without")
    return wrong


def ignored(recipe: Recipe) -> list[str]:
    """The settings of a recipe that change nothing here, one line for each reason."""
    found = [(name, IGNORED[name]) for name, _ in recipe.extras if name in IGNORED]
    found += [(row.name, row.why) for row in IDLE if row.name in recipe.settings().given and row.holds(recipe)]
    found += [(f"network_args {name}", f"{recipe.network_module} does not read it") for name in networks.unread(recipe)]
    return grouped(found + [(f"network_args {name}", f"it only acts with {wanted}") for name, wanted in networks.idle(recipe)])


def differences(recipe: Recipe, device: str | None = None) -> list[str]:
    """The settings of a recipe with which a run on `device`, `cpu` or `cuda`, comes to another result than sd-scripts would.

    Without a device, the lines name the one that they are for.
    """
    rows = [row for row in DIFFERS if row.holds(recipe) and (not row.on or device in (None, row.on))]
    places = {"cpu": "on a CPU, ", "cuda": "on a GPU, "}
    return grouped((row.name, ("" if device else places.get(row.on, "")) + row.why) for row in rows)


def grouped(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Lines `name, name: reason`, one for each reason.

    >>> grouped([("sdpa", "as ever"), ("v2", "it is read"), ("xformers", "as ever")])
    ['sdpa, xformers: as ever', 'v2: it is read']
    """
    names: dict[str, list[str]] = {}
    for name, reason in reasons:
        names.setdefault(reason, []).append(name)
    return [f"{', '.join(dict.fromkeys(each))}: {reason}" for reason, each in names.items()]


def _has_part_at_rest(recipe: Recipe) -> bool:
    """Whether a part has the rate 0, and sd-scripts computes its gradients nevertheless."""
    if recipe.wants_lora:
        text = () if recipe.network_train_unet_only else recipe.text_encoder_lr[:1] or (recipe.learning_rate,)
        unet = recipe.learning_rate if recipe.unet_lr is None else recipe.unet_lr
        return 0 in (*text, *(() if recipe.network_train_text_encoder_only else (unet,)))
    return 0 in (*recipe.block_rates, *((recipe.learning_rate_te,) if recipe.trains_text_encoders else ()))


def check(recipe: Recipe) -> None:
    """Raise a `ValueError` that names all settings which are not done here."""
    if wrong := refusals(recipe):
        raise ValueError("; ".join(wrong))
