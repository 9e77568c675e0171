"""The fields of bmaltais' kohya_ss GUI: where each stands, what it may hold, and what sd-scripts calls it.

Read in the GUI's source at commit 45088f0 (10 July 2026, the version with Gradio 6): `train_model` in `kohya_gui/lora_gui.py`,
`dreambooth_gui.py`, `finetune_gui.py` and `textual_inversion_gui.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

FIELDS = """
ldft flag: async_upload bucket_no_upscale cache_latents cache_latents_to_disk color_aug dynamo_use_dynamic=- dynamo_use_fullgraph=-
    flip_aug full_fp16 gradient_checkpointing ip_noise_gamma_random_strength log_config mem_eff_attn multi_gpu=- random_crop save_state
    save_state_on_train_end save_state_to_huggingface scale_v_pred_loss_like_noise_pred shuffle_caption
    skip_cache_check v2 v_parameterization
ldft bit: persistent_data_loader_workers
ldf flag: debiased_estimation_loss fp8_base full_bf16 masked_loss train_inpainting weighted_captions flux1_checkbox=- sd3_checkbox=-
ldt flag: enable_bucket sdxl=-
lf flag: anima_checkbox=- lumina_checkbox=-
l flag: dim_from_weights highvram hunyuan_image_checkbox=-
df,sd flag: fused_backward_pass
dft flag: disable_mmap_load_safetensors noise_offset_random_strength
dt flag: no_token_padding
f flag: sdxl_checkbox=- train_text_encoder
l,Original_noise flag: noise_offset_random_strength
ldf,sdxl flag: sdxl_cache_text_encoder_outputs=cache_text_encoder_outputs sdxl_no_half_vae=no_half_vae
t flag: sdxl_no_half_vae=no_half_vae
ldft text: caption_extension dataset_config dynamo_backend dynamo_mode=- extra_accelerate_launch_args=- gpu_ids=- huber_schedule
    huggingface_path_in_repo huggingface_repo_id huggingface_repo_type huggingface_repo_visibility huggingface_token log_tracker_config
    log_tracker_name log_with logging_dir loss_type lr_scheduler lr_scheduler_type max_resolution=resolution metadata_author
    metadata_description metadata_license metadata_tags metadata_title mixed_precision noise_offset_type optimizer=optimizer_type
    output_dir output_name pretrained_model_name_or_path resume resume_from_huggingface sample_sampler save_model_as save_precision
    wandb_api_key wandb_run_name
ldt text: reg_data_dir train_data_dir
ldt,sd text: vae
f text: block_lr caption_metadata_filename=- image_folder=train_data_dir latent_metadata_filename=- train_dir=- use_latent_files=-
l text: network_weights training_comment
t text: init_word template=- token_string weights
ldft words: lr_scheduler_args optimizer_args
ldft whole: caption_dropout_every_n_epochs gradient_accumulation_steps keep_tokens lr_warmup=- lr_warmup_steps=- min_bucket_reso
    max_data_loader_n_workers num_processes=-
ldft,sd whole: max_token_length
ldt whole: epoch lr_scheduler_num_cycles
f whole: dataset_repeats max_bucket_reso
t whole: num_vectors_per_token
ldft whole0: max_train_epochs max_train_steps seed
df whole0: fused_optimizer_groups
ldft number: bucket_reso_steps huber_c huber_scale learning_rate train_batch_size
ldf number: caption_dropout_rate
ldt number: lr_scheduler_power max_bucket_reso prior_loss_weight
ld number: max_grad_norm
l number: network_alpha network_dim network_dropout scale_weight_norms t5xxl_lr=- text_encoder_lr=-
df,sd1 number: learning_rate_te
df,sdxl number: learning_rate_te1 learning_rate_te2
dft number: multires_noise_discount
l,Multires_noise number: multires_noise_discount
ldft number0: ip_noise_gamma max_timestep min_snr_gamma min_timestep sample_every_n_epochs sample_every_n_steps save_every_n_epochs
    save_every_n_steps save_last_n_epochs save_last_n_epochs_state save_last_n_steps save_last_n_steps_state v_pred_like_loss
    vae_batch_size
ldft,sd number0: clip_skip
l number0: unet_lr
d number0: stop_text_encoder_training
dft number0: adaptive_noise_scale multires_noise_iterations noise_offset
l,Original_noise number0: adaptive_noise_scale noise_offset
l,Multires_noise number0: multires_noise_iterations
"""
"""The tabs (l LoRA, d Dreambooth, f finetune, t textual inversion) that pass fields on, and when; their kind, with 0 where 0 says unset;
the GUI's keys, each with `=` and sd-scripts' name where that differs, `=-` where there is none."""

SILENT = """xformers LoRA_type additional_parameters model_list save_as_bool lowvram stop_text_encoder_training_pct use_8bit_adam use_wandb
lora_network_weights conv_dims conv_alphas batch_size full_path create_buckets create_caption generate_caption_database
generate_image_buckets main_process_port num_cpu_threads_per_process num_machines sample_prompts training_preset"""
"""Other keys of the GUI: read below, or of no matter to sd-scripts."""
OTHER_MODELS = {
    "flux1_checkbox": ("flux", "ldf"),
    "sd3_checkbox": ("sd3", "ldf"),
    "hunyuan_image_checkbox": ("hunyuan_image", "l"),
    "anima_checkbox": ("anima", "lf"),
    "lumina_checkbox": ("lumina", "lf"),
}
OTHER_KEYS = re.compile(
    r"(anima|flux1?|hunyuan|lumina|sd3)_\w+|(img|txt)_(attn|mlp|mod)_dim|single(_mod)?_dim|(single_|double_)?blocks_to_swap|ae|in_dims"
    r"|show_timesteps(_resolution)?|clip_[gl](_dropout_rate)?|t5xxl(_device|_dtype|_max_token_length)?|train_(t5xxl|lora_ggpo|blocks)"
    r"|train_(double|single)_block_indices|model_type|discrete_flow_shift|model_prediction_type|timestep_sampling|split_(mode|qkv)"
    r"|enable_all_linear|guidance_scale|mem_eff_save|apply_t5_attn_mask|fp8_base_unet|cpu_offload_checkpointing|ggpo_(beta|sigma)"
    r"|blockwise_fused_optimizers|logit_(mean|std)|mode_scale|pos_emb_random_crop_rate|save_(clip|t5xxl)|weighting_scheme"
)
"""Keys that only matter to models other than SD 1.5, 2 and XL."""
MARKS = """LoRA_type LyCORIS_preset additional_parameters epoch extra_accelerate_launch_args gpu_ids image_folder lr_warmup max_resolution
model_list multi_gpu num_cpu_threads_per_process num_processes optimizer save_as_bool sdxl sdxl_cache_text_encoder_outputs sdxl_checkbox
sdxl_no_half_vae stop_text_encoder_training_pct use_8bit_adam"""

BLOCKS = """?down_lr_weight ?mid_lr_weight ?up_lr_weight ?block_lr_zero_threshold ?block_dims ?block_alphas ?conv_block_dims
?conv_block_alphas"""
DROPOUTS = "?rank_dropout ?module_dropout"
PLUS = "?loraplus_lr_ratio ?loraplus_unet_lr_ratio ?loraplus_text_encoder_lr_ratio"
CONV = "preset<LyCORIS_preset conv_dim conv_alpha"
MOST = "use_tucker rank_dropout bypass_mode dora_wd module_dropout use_scalar rank_dropout_scale"
NETWORKS = {
    "Standard": f"networks.lora {BLOCKS} {DROPOUTS}",
    "Kohya LoCon": f"networks.lora conv_dim conv_alpha {BLOCKS} {DROPOUTS}",
    "LoRA-FA": f"networks.lora_fa {BLOCKS} {DROPOUTS}",
    "Kohya DyLoRA": f"networks.dylora ?conv_dim ?conv_alpha {BLOCKS} ?unit {DROPOUTS}",
    "Kohya LoHa": f"networks.loha ?conv_dim conv_alpha ?use_tucker {DROPOUTS}",
    "Kohya LoKr": f"networks.lokr ?conv_dim conv_alpha ?use_tucker factor {DROPOUTS}",
    "LyCORIS/BOFT": f"lycoris.kohya {CONV} module_dropout use_tucker rank_dropout rank_dropout_scale algo=boft train_norm",
    "LyCORIS/Diag-OFT": f"lycoris.kohya {CONV} module_dropout use_tucker rank_dropout rank_dropout_scale constraint<constrain rescaled"
    " algo=diag-oft train_norm",
    "LyCORIS/DyLoRA": f"lycoris.kohya {CONV} use_tucker block_size<unit rank_dropout module_dropout algo=dylora train_norm",
    "LyCORIS/GLoRA": f"lycoris.kohya {CONV} use_tucker rank_dropout module_dropout rank_dropout_scale algo=glora train_norm",
    "LyCORIS/iA3": f"lycoris.kohya {CONV} train_on_input algo=ia3",
    "LyCORIS/LoCon": f"lycoris.kohya {CONV} {MOST} algo=locon train_norm",
    "LyCORIS/LoHa": f"lycoris.kohya {CONV} {MOST} algo=loha train_norm",
    "LyCORIS/LoKr": f"lycoris.kohya {CONV} {MOST} factor use_cp decompose_both algo=lokr train_norm",
    "LyCORIS/Native Fine-Tuning": "lycoris.kohya preset<LyCORIS_preset rank_dropout module_dropout rank_dropout_scale algo=full train_norm",
}
"""Each LoRA type's module and `network_args`: `?` says a part only when it is set, `<` takes it from a key of another name."""

KINDS = {
    "flag": "neither true nor false: write one of the two",
    "bit": "neither true nor false: write one of the two",
    "text": "not a text: write one, in double quotes",
    "words": 'refused by the GUI: write key=value pairs with one space between and none inside, such as "relative_step=False"',
    "number": "not a number: write one such as 0.5",
    "whole": "not a whole number: write one such as 10",
}
"""What a value of each kind is when it is not of that kind."""

ZERO_DEFAULT = ("caption_dropout_every_n_epochs", "caption_dropout_rate", "keep_tokens", "lr_warmup_steps")
"""Settings that are 0 in sd-scripts when nothing is said."""
SAME_DEFAULT = """bucket_reso_steps gradient_accumulation_steps huber_c huber_scale lr_scheduler_num_cycles lr_scheduler_power max_grad_norm
min_bucket_reso multires_noise_discount prior_loss_weight train_batch_size"""
"""Fields that can be left out of a file, because the GUI's own default is that of sd-scripts."""


@dataclass(frozen=True)
class Row:
    """A field; see `FIELDS`."""

    tabs: str
    when: str
    kind: str
    key: str
    name: str


def _rows() -> Iterator[Row]:
    for line in FIELDS.replace("\n   ", "").strip().split("\n"):
        scope, kind, *fields = line.replace(":", "", 1).split()
        for key, _, name in (field.partition("=") for field in fields):
            tabs, _, when = scope.partition(",")
            yield Row(tabs, when, kind, key, name.strip("-") if name else key)


ROWS = tuple(_rows())
PARTS = {part.strip("?").rpartition("<")[2] for words in NETWORKS.values() for part in f"{words} {PLUS}".split()[1:] if "=" not in part}
KEYS = {row.key for row in ROWS} | set(SILENT.split()) | PARTS
RENAMED = {row.name: row.key for row in ROWS if row.name != row.key} | {"sdpa": "xformers"}
