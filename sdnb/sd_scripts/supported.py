"""Which settings of sd-scripts are acted on, which change nothing here, and which are refused: one table for `train` and for jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import arguments

if TYPE_CHECKING:
    from ..recipe import Recipe

USED = frozenset(
    "adaptive_noise_scale bucket_no_upscale bucket_reso_steps cache_latents cache_latents_to_disk cache_text_encoder_outputs "
    "cache_text_encoder_outputs_to_disk clip_skip debiased_estimation_loss enable_bucket flip_aug full_bf16 huber_c huber_scale "
    "huber_schedule ip_noise_gamma ip_noise_gamma_random_strength keep_tokens loss_type lr_decay_steps lr_scheduler_args "
    "lr_scheduler_min_lr_ratio lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_timescale lr_scheduler_type max_bucket_reso "
    "max_timestep max_token_length max_train_epochs min_bucket_reso min_timestep multires_noise_discount multires_noise_iterations "
    "network_alpha network_args network_dim network_dropout network_module network_train_text_encoder_only network_train_unet_only "
    "noise_offset_random_strength prior_loss_weight resolution sample_every_n_steps sample_prompts save_every_n_steps save_last_n_steps "
    "save_last_n_steps_state scale_v_pred_loss_like_noise_pred shuffle_caption text_encoder_lr unet_lr v_parameterization "
    "v_pred_like_loss".split()
)
"""Settings besides the fields of `Recipe` that `train` acts on; those that begin with `save_` or `sample_` if it has a `save_to`."""
FILES = frozenset(
    "caption_extension config_file dataset_config output_dir output_name pretrained_model_name_or_path reg_data_dir save_model_as "
    "save_precision train_data_dir training_comment".split()
)
"""Settings that say what a job reads and writes; from Python the caller does that himself."""
OWN = "torch's own attention is always used, and computes the same"
IGNORED = {
    "xformers": OWN,
    "sdpa": OWN,
    "mem_eff_attn": OWN,
    "diffusers_xformers": OWN,
    "save_state": "a job always saves its state",
    "save_state_on_train_end": "a job always saves its state",
    "use_safetensors": "there is no other form here",
    "max_data_loader_n_workers": "pictures are encoded once, before the first step",
    "persistent_data_loader_workers": "pictures are encoded once, before the first step",
    "vae_batch_size": "the batch in which pictures are encoded is chosen here",
    "skip_cache_check": "a cache is always checked",
    "lowram": "it changes where the weights are loaded, not what is trained",
    "highvram": "it changes where the weights are loaded, not what is trained",
    "disable_mmap_load_safetensors": "it changes how a file is read, not what is trained",
    "tokenizer_cache_dir": "tokenizers come with the model",
    "v2": "the kind of model is read from its files",
    "no_half_vae": "the autoencoder has the precision in which it does not overflow",
    "no_metadata": "a file says how it was trained",
    "async_upload": "nothing is uploaded",
    "ddp_timeout": "accelerate's own is used",
    "ddp_gradient_as_bucket_view": "accelerate's own is used",
    "ddp_static_graph": "accelerate's own is used",
} | dict.fromkeys(
    "cache_info console_log_file console_log_level console_log_simple log_config log_prefix log_tracker_config log_tracker_name log_with "
    "logging_dir output_config wandb_run_name".split(),
    "it concerns the log, and nothing that is trained",
)
"""Settings that change nothing here, each with the reason."""
REFUSED = {
    "in_json": "fine-tuning metadata is not read: captions in .txt files or metadata.jsonl are",
    "train_text_encoder": "all weights of a text encoder are not trained, adapters are: use network_module=networks.lora",
    "network_weights": "to go on with a LoRA of another run: sdnb.lora.load, then sdnb.train",
    "vae": "another autoencoder is loaded with the model: put it into the model's folder",
    "zero_terminal_snr": "the noise levels are those of the model's scheduler's configuration",
    "resume": "a job goes on from its own saves in output_dir by itself",
    "deepspeed": "each process would have pieces of the weights, which no save here holds: launch with --multi_gpu",
    "full_fp16": "fp16 is too coarse for the weights: mixed_precision=fp16, or full_bf16 with Adafactor",
    "save_every_n_epochs": "say it in steps: save_every_n_steps",
    "save_n_epoch_ratio": "say it in steps: save_every_n_steps",
    "save_last_n_epochs": "say it in steps: save_last_n_steps",
    "save_last_n_epochs_state": "say it in steps: save_last_n_steps_state",
    "sample_every_n_epochs": "say it in steps: sample_every_n_steps",
    "sample_at_first": "the model is as it was before the first step: draw with sd.draw",
    "masked_loss": "masks are not read: every part of a picture counts alike",
    "alpha_mask": "masks are not read: transparency is laid on white",
    "weighted_captions": "captions are read as they are, brackets and all",
    "random_crop": "latents are encoded once, so a picture has one cut: its middle",
    "color_aug": "latents are encoded once, so a picture has one set of colours",
    "huggingface_repo_id": "nothing is uploaded: take the file from output_dir",
}
"""Settings that are refused in words of their own; every other one that is not listed is refused as well."""


def refusals(recipe: Recipe) -> list[str]:
    """What of a recipe is not done here, each with the reason."""
    wrong = []
    for name, _ in recipe.others:
        if name in USED or name in FILES or name in IGNORED:
            continue
        if name in REFUSED:
            wrong.append(f"{name}: {REFUSED[name]}")
        elif not set(arguments.scripts_with(name)) & set(arguments.STABLE_DIFFUSION):
            wrong.append(f"{name}: it belongs to {arguments.scripts_with(name)[0]}, another kind of model")
        else:
            wrong.append(f"{name}: it is not supported; leave it out if the run can do without")
    return wrong


def ignored(recipe: Recipe) -> list[str]:
    """What is said and changes nothing here, each with the reason."""
    return [f"{name}: {IGNORED[name]}" for name, _ in recipe.others if name in IGNORED]


def check(recipe: Recipe) -> None:
    """Raises `ValueError` that names everything which is not done here."""
    if wrong := refusals(recipe):
        raise ValueError("; ".join(wrong))
