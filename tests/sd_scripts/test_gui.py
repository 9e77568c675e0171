"""Settings files of the GUI: what reaches sd-scripts, and the way back.

The dicts called SAID_… are the TOML files that the GUI's own `train_model` writes for these files, at commit 45088f0.
"""

import json
import math
import random

import pytest

from sdnb.sd_scripts.gui import is_gui, rewrite, translate
from sdnb.sd_scripts.gui_fields import FAULTS, FIELDS, KEYS, MARKS, NETWORKS, OTHER_MODELS, RENAMED, TABS

# fmt: off
COMMON = dict(
    adaptive_noise_scale=0, additional_parameters="", async_upload=False, bucket_no_upscale=True, bucket_reso_steps=64,
    cache_latents=True, cache_latents_to_disk=False, caption_dropout_every_n_epochs=0, caption_dropout_rate=0, caption_extension=".txt",
    clip_skip=1, color_aug=False, dataset_config="", dynamo_backend="no", dynamo_mode="default", dynamo_use_dynamic=False,
    dynamo_use_fullgraph=False, epoch=10, extra_accelerate_launch_args="", flip_aug=False, full_fp16=False, gpu_ids="",
    gradient_accumulation_steps=1, gradient_checkpointing=False, huber_c=0.1, huber_scale=1, huber_schedule="snr",
    huggingface_path_in_repo="", huggingface_repo_id="", huggingface_repo_type="", huggingface_repo_visibility="", huggingface_token="",
    ip_noise_gamma=0, ip_noise_gamma_random_strength=False, keep_tokens=0, learning_rate=0.0001, log_config=False, log_tracker_config="",
    log_tracker_name="", log_with="", logging_dir="logs", loss_type="l2", lr_scheduler="cosine", lr_scheduler_args="",
    lr_scheduler_type="", lr_warmup=10, lr_warmup_steps=0, main_process_port=0, max_bucket_reso=2048, max_data_loader_n_workers=0,
    max_resolution="512,512", max_timestep=1000, max_token_length=75, max_train_epochs=0, max_train_steps=1600, mem_eff_attn=False,
    metadata_author="", metadata_description="", metadata_license="", metadata_tags="", metadata_title="", min_bucket_reso=256,
    min_snr_gamma=0, min_timestep=0, mixed_precision="fp16", model_list="custom", multi_gpu=False, multires_noise_discount=0.3,
    multires_noise_iterations=0, noise_offset=0, noise_offset_random_strength=False, noise_offset_type="Original",
    num_cpu_threads_per_process=2, num_machines=1, num_processes=1, optimizer="AdamW8bit", optimizer_args="", output_dir="out",
    output_name="cat", persistent_data_loader_workers=False, pretrained_model_name_or_path="runwayml/stable-diffusion-v1-5",
    random_crop=False, resume="", resume_from_huggingface="", sample_every_n_epochs=0, sample_every_n_steps=0, sample_prompts="",
    sample_sampler="euler_a", save_as_bool=False, save_every_n_epochs=1, save_every_n_steps=0, save_last_n_epochs=0,
    save_last_n_epochs_state=0, save_last_n_steps=0, save_last_n_steps_state=0, save_model_as="safetensors", save_precision="fp16",
    save_state=False, save_state_on_train_end=False, save_state_to_huggingface=False, scale_v_pred_loss_like_noise_pred=False,
    sdxl_no_half_vae=False, seed=0, shuffle_caption=False, skip_cache_check=False, train_batch_size=1, v2=False, v_parameterization=False,
    v_pred_like_loss=0, vae_batch_size=0, wandb_api_key="", wandb_run_name="", xformers="xformers",
)

FOLDERS = dict(
    debiased_estimation_loss=False, enable_bucket=True, flux1_checkbox=False, fp8_base=False, full_bf16=False, lr_scheduler_num_cycles=1,
    lr_scheduler_power=1, masked_loss=False, max_grad_norm=1, prior_loss_weight=1, reg_data_dir="", sd3_checkbox=False, sdxl=False,
    sdxl_cache_text_encoder_outputs=False, stop_text_encoder_training=0, train_data_dir="img", train_inpainting=False, vae="",
    weighted_captions=False,
)

LORA = dict(
    anima_checkbox=False, block_alphas="", block_dims="", block_lr_zero_threshold="", bypass_mode=False, constrain=0, conv_alpha=1,
    conv_block_alphas="", conv_block_dims="", conv_dim=1, decompose_both=False, dim_from_weights=False, dora_wd=False, down_lr_weight="",
    factor=-1, fp8_base_unet=False, highvram=False, hunyuan_image_checkbox=False, LoRA_type="Standard", loraplus_lr_ratio=0,
    loraplus_text_encoder_lr_ratio=0, loraplus_unet_lr_ratio=0, lowvram=False, lumina_checkbox=False, LyCORIS_preset="full",
    mid_lr_weight="", module_dropout=0, network_alpha=1, network_dim=8, network_dropout=0, network_weights="", rank_dropout=0,
    rank_dropout_scale=False, rescaled=False, scale_weight_norms=0, t5xxl_lr=0, text_encoder_lr=0.0001, train_norm=False,
    train_on_input=True, training_comment="", unet_lr=0.0001, unit=1, up_lr_weight="", use_cp=False, use_scalar=False, use_tucker=False,
)

LORA_SD15 = COMMON | FOLDERS | LORA | dict(
    caption_dropout_rate=0.1, gradient_checkpointing=True, lr_warmup=5, max_grad_norm=0, max_train_steps=1200,
    multires_noise_iterations=6, network_alpha=8, network_dim=16, noise_offset=0.05, num_processes=2, optimizer="Adafactor",
    optimizer_args="relative_step=False scale_parameter=False warmup_init=False", sample_every_n_steps=100, sample_prompts="a cat",
    sdxl_no_half_vae=True, seed=42, text_encoder_lr=5e-05, xformers="sdpa",
)

LORA_SDXL = COMMON | FOLDERS | LORA | dict(
    additional_parameters="--blocks_to_swap 4", cache_latents_to_disk=True, conv_dim=4, full_bf16=True, gradient_accumulation_steps=4,
    LoRA_type="LyCORIS/LoHa", loraplus_unet_lr_ratio=16, lr_warmup_steps=50, max_data_loader_n_workers=2, max_resolution="1024,1024",
    max_train_epochs=5, min_snr_gamma=5, mixed_precision="bf16", multires_noise_iterations=6, noise_offset=0.05,
    noise_offset_type="Multires", persistent_data_loader_workers=True, save_precision="bf16", sdxl=True,
    sdxl_cache_text_encoder_outputs=True, sdxl_no_half_vae=True, text_encoder_lr=0, train_batch_size=2,
)

DREAMBOOTH = COMMON | FOLDERS | dict(
    clip_skip=2, disable_mmap_load_safetensors=False, full_bf16=True, fused_backward_pass=False, fused_optimizer_groups=0,
    learning_rate=1e-05, learning_rate_te=0, learning_rate_te1=1e-05, learning_rate_te2=0, max_grad_norm=0, mixed_precision="bf16",
    no_token_padding=False, reg_data_dir="reg", stop_text_encoder_training=30, xformers="none",
)

FINETUNE = COMMON | dict(
    anima_checkbox=False, batch_size="1", block_lr="", caption_metadata_filename="meta_cap.json", dataset_repeats=40,
    debiased_estimation_loss=False, disable_mmap_load_safetensors=False, flip_aug=True, flux1_checkbox=False, fp8_base=False,
    full_bf16=True, full_path=True, fused_backward_pass=True, fused_optimizer_groups=0, generate_caption_database=False,
    generate_image_buckets=False, image_folder="img", latent_metadata_filename="meta_lat.json", learning_rate_te=0, learning_rate_te1=0,
    learning_rate_te2=0, lr_warmup=0, lumina_checkbox=False, masked_loss=False, max_bucket_reso="1024", max_train_steps=2001,
    min_bucket_reso="256", mixed_precision="bf16", optimizer="Adafactor", sd3_checkbox=False, sdxl_cache_text_encoder_outputs=False,
    sdxl_checkbox=True, train_dir="meta", train_inpainting=False, train_text_encoder=False, use_latent_files="No", weighted_captions=False,
)

SAID_SD15 = dict(
    bucket_no_upscale=True, bucket_reso_steps=64, cache_latents=True, caption_dropout_rate=0.1, caption_extension=".txt", clip_skip=1,
    dynamo_backend="no", enable_bucket=True, epoch=10, gradient_accumulation_steps=1, gradient_checkpointing=True, huber_c=0.1,
    huber_scale=1, huber_schedule="snr", learning_rate=0.0001, logging_dir="logs", loss_type="l2", lr_scheduler="cosine",
    lr_scheduler_num_cycles=1, lr_scheduler_power=1, lr_warmup_steps=0.05, max_bucket_reso=2048, max_data_loader_n_workers=0,
    max_timestep=1000, max_token_length=75, max_train_steps=1200, min_bucket_reso=256, mixed_precision="fp16", network_alpha=8,
    network_dim=16, network_module="networks.lora", noise_offset=0.05, noise_offset_type="Original",
    optimizer_args=["relative_step=False", "scale_parameter=False", "warmup_init=False"], optimizer_type="Adafactor", output_dir="out",
    output_name="cat", pretrained_model_name_or_path="runwayml/stable-diffusion-v1-5", prior_loss_weight=1, resolution="512,512",
    sample_every_n_steps=100, sample_prompts="out/sample/prompt.txt", sample_sampler="euler_a", save_every_n_epochs=1,
    save_model_as="safetensors", save_precision="fp16", sdpa=True, seed=42, text_encoder_lr=[5e-05, 5e-05], train_batch_size=1,
    train_data_dir="img", unet_lr=0.0001, wandb_run_name="cat",
)

SAID_SDXL = dict(
    bucket_no_upscale=True, bucket_reso_steps=64, cache_latents=True, cache_latents_to_disk=True, cache_text_encoder_outputs=True,
    caption_extension=".txt", clip_skip=1, dynamo_backend="no", enable_bucket=True, epoch=10, full_bf16=True,
    gradient_accumulation_steps=4, huber_c=0.1, huber_scale=1, huber_schedule="snr", learning_rate=0.0001, logging_dir="logs",
    loss_type="l2", lr_scheduler="cosine", lr_scheduler_num_cycles=1, lr_scheduler_power=1, lr_warmup_steps=50, max_bucket_reso=2048,
    max_data_loader_n_workers=2, max_grad_norm=1, max_timestep=1000, max_token_length=75, max_train_epochs=5, max_train_steps=1600,
    min_bucket_reso=256, min_snr_gamma=5, mixed_precision="bf16", multires_noise_discount=0.3, multires_noise_iterations=6,
    network_alpha=1,
    network_args=["preset=full", "conv_dim=4", "conv_alpha=1", "use_tucker=False", "rank_dropout=0", "bypass_mode=False", "dora_wd=False",
                  "module_dropout=0", "use_scalar=False", "rank_dropout_scale=False", "algo=loha", "train_norm=False",
                  "loraplus_unet_lr_ratio=16"],
    network_dim=8, network_module="lycoris.kohya", network_train_unet_only=True, no_half_vae=True, noise_offset_type="Multires",
    optimizer_type="AdamW8bit", output_dir="out", output_name="cat", persistent_data_loader_workers=1,
    pretrained_model_name_or_path="runwayml/stable-diffusion-v1-5", prior_loss_weight=1, resolution="1024,1024",
    sample_prompts="out/sample/prompt.txt", sample_sampler="euler_a", save_every_n_epochs=1, save_model_as="safetensors",
    save_precision="bf16", train_batch_size=2, train_data_dir="img", unet_lr=0.0001, wandb_run_name="cat", xformers=True,
)

SAID_DREAMBOOTH = dict(
    bucket_no_upscale=True, bucket_reso_steps=64, cache_latents=True, caption_dropout_every_n_epochs=0, caption_dropout_rate=0,
    caption_extension=".txt", clip_skip=2, dynamo_backend="no", enable_bucket=True, epoch=10, full_bf16=True,
    gradient_accumulation_steps=1, huber_c=0.1, huber_scale=1, huber_schedule="snr", keep_tokens=0, learning_rate=1e-05,
    learning_rate_te=0, logging_dir="logs", loss_type="l2", lr_scheduler="cosine", lr_scheduler_num_cycles=1, lr_scheduler_power=1,
    lr_warmup_steps=0.1, max_bucket_reso=2048, max_data_loader_n_workers=0, max_grad_norm=0, max_timestep=1000, max_token_length=75,
    max_train_steps=1600, min_bucket_reso=256, mixed_precision="bf16", multires_noise_discount=0.3, noise_offset_type="Original",
    optimizer_type="AdamW8bit", output_dir="out", output_name="cat", persistent_data_loader_workers=0,
    pretrained_model_name_or_path="runwayml/stable-diffusion-v1-5", prior_loss_weight=1, reg_data_dir="reg", resolution="512,512",
    sample_prompts="out/sample/prompt.txt", sample_sampler="euler_a", save_every_n_epochs=1, save_model_as="safetensors",
    save_precision="fp16", stop_text_encoder_training=30, train_batch_size=1, train_data_dir="img", wandb_run_name="cat",
)

SAID_FINETUNE = dict(
    bucket_no_upscale=True, bucket_reso_steps=64, cache_latents=True, caption_dropout_every_n_epochs=0, caption_dropout_rate=0,
    caption_extension=".txt", clip_skip=1, dataset_repeats=40, dynamo_backend="no", enable_bucket=True, flip_aug=True, full_bf16=True,
    fused_backward_pass=True, gradient_accumulation_steps=1, huber_c=0.1, huber_scale=1, huber_schedule="snr",
    in_json="meta/meta_cap.json", keep_tokens=0, learning_rate=0.0001, learning_rate_te1=0, learning_rate_te2=0, logging_dir="logs",
    loss_type="l2", lr_scheduler="cosine", lr_warmup_steps=0, max_bucket_reso=1024, max_data_loader_n_workers=0, max_timestep=1000,
    max_token_length=75, max_train_steps=1001, min_bucket_reso=256, mixed_precision="bf16", multires_noise_discount=0.3,
    noise_offset_type="Original", optimizer_type="Adafactor", output_dir="out", output_name="cat", persistent_data_loader_workers=0,
    pretrained_model_name_or_path="runwayml/stable-diffusion-v1-5", resolution="512,512", sample_prompts="out/sample/prompt.txt",
    sample_sampler="euler_a", save_every_n_epochs=1, save_model_as="safetensors", save_precision="fp16", train_batch_size=1,
    train_data_dir="img", wandb_run_name="cat", xformers=True,
)
# fmt: on

FILES = {
    "LoRA, SD 1.5": (LORA_SD15, SAID_SD15, "train_network.py", 2),
    "LoRA, SDXL": (LORA_SDXL, SAID_SDXL, "sdxl_train_network.py", 1),
    "Dreambooth": (DREAMBOOTH, SAID_DREAMBOOTH, "train_db.py", 1),
    "finetune, SDXL": (FINETUNE, SAID_FINETUNE, "sdxl_train.py", 1),
}
TAB_FILES = {"lora": LORA_SD15, "dreambooth": DREAMBOOTH, "finetune": FINETUNE}


def settings(data: dict) -> dict[str, object]:
    """What sd-scripts ends up with: the values of the TOML file, and over them the command line."""
    read = translate(data)
    values, words = dict(read.values), read.extra_flags.split()
    starts = [place for place, word in enumerate(words) if word.startswith("--")]
    for start, end in zip(starts, [*starts, len(words)][1:], strict=True):
        values[words[start][2:]] = words[start + 1 : end] or True
    return values


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_says_what_the_gui_writes_for_it(name):
    data, said, script, processes = FILES[name]
    read = translate(json.loads(json.dumps(data)))
    assert {key: repr(value) for key, value in read.values.items()} == {key: repr(value) for key, value in said.items()}
    assert (read.script, read.num_processes, read.problems) == (script, processes, ())
    assert read.extra_flags == data["additional_parameters"]


def test_a_file_is_told_from_sd_scripts_own_names():
    assert all(is_gui(data) for data, *_ in FILES.values())
    assert not any(is_gui(said) for _, said, *_ in FILES.values())
    assert is_gui({"optimizer": "Lion", "lr_warmup": 10, "max_resolution": "512,512"})
    assert not is_gui({"optimizer": "Lion", "lr_warmup": 10})
    assert not any(is_gui(data) for data in (None, [], "optimizer", {}, {"optimizer_type": "AdamW", "epoch": 3}))


@pytest.mark.parametrize(
    ("fields", "script"),
    [
        ({"LoRA_type": "Standard", "sdxl": True}, "sdxl_train_network.py"),
        ({"LoRA_type": "Flux1", "flux1_checkbox": True}, "flux_train_network.py"),
        ({"unet_lr": 0.0001}, "train_network.py"),
        ({"no_token_padding": False}, "train_db.py"),
        ({"no_token_padding": False, "sdxl": True}, "sdxl_train.py"),
        ({"sd3_checkbox": True}, "sd3_train.py"),
        ({"sdxl_checkbox": False}, "fine_tune.py"),
        ({"image_folder": "img", "lumina_checkbox": True}, "lumina_train.py"),
        ({"token_string": "cat"}, "train_textual_inversion.py"),
        ({"token_string": "cat", "sdxl": True}, "sdxl_train_textual_inversion.py"),
    ],
)
def test_the_script_follows_from_the_keys(fields, script):
    assert translate(fields).script == script


def test_zero_means_default_in_one_tab_and_zero_in_another():
    # no clipping in Dreambooth; in the LoRA tab the 0 is dropped and sd-scripts clips at 1.0
    assert "max_grad_norm" not in translate(LORA_SD15 | {"max_grad_norm": 0}).values
    assert translate(DREAMBOOTH | {"max_grad_norm": 0}).values["max_grad_norm"] == 0
    # the finetune and textual inversion tabs have no such field at all
    assert "max_grad_norm" not in translate(FINETUNE | {"max_grad_norm": 0.5}).values
    assert "max_grad_norm" not in translate({"token_string": "cat", "max_grad_norm": 0.5}).values


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"lr_warmup": 10, "lr_warmup_steps": 0}, 0.1),  # a share: sd-scripts multiplies a float by the steps of the run
        ({"lr_warmup": 100, "lr_warmup_steps": 0}, 1.0),
        ({"lr_warmup": 10, "lr_warmup_steps": 50}, 50),  # steps win
        ({"lr_warmup": 0, "lr_warmup_steps": 50}, 50),
        ({"lr_warmup": 7, "lr_warmup_steps": 0, "dataset_config": "a.toml", "max_train_steps": 333}, 23),  # 23.31, rounded
        ({"lr_warmup": 7, "lr_warmup_steps": 0, "dataset_config": "a.toml", "max_train_steps": 0}, 0.07),
        ({"lr_warmup": 1, "lr_warmup_steps": 0, "dataset_config": "a.toml", "max_train_steps": 40}, None),  # 0.4, rounded
        ({"lr_warmup": 0, "lr_warmup_steps": 0}, None),
    ],
)
def test_warmup_in_steps_wins_over_percent(fields, steps):
    value = translate(LORA_SD15 | fields).values.get("lr_warmup_steps")
    assert (value, type(value)) == (steps, type(steps))


def test_the_length_of_the_run():
    assert translate(FINETUNE | {"flip_aug": False}).values["max_train_steps"] == 2001
    assert translate(FINETUNE | {"dataset_config": "a.toml"}).values["max_train_steps"] == 2001  # halved for flip_aug otherwise
    counted = translate(DREAMBOOTH | {"max_train_steps": 0})
    assert "max_train_steps" not in counted.values
    assert "max_train_steps" in counted.problems[0]
    assert not translate(DREAMBOOTH | {"max_train_steps": 0, "max_train_epochs": 3}).problems


def test_the_text_encoder_is_trained_when_it_has_a_rate():
    rates = {"text_encoder_lr": 5e-5, "t5xxl_lr": 0, "unet_lr": 1e-4}
    assert translate(LORA_SD15 | rates).values["text_encoder_lr"] == [5e-5, 5e-5]
    assert translate(LORA_SD15 | rates | {"t5xxl_lr": 1e-6}).values["text_encoder_lr"] == [5e-5, 1e-6]
    unet_only = translate(LORA_SD15 | rates | {"text_encoder_lr": 0}).values
    assert unet_only["network_train_unet_only"] is True
    assert "text_encoder_lr" not in unet_only
    assert translate(LORA_SD15 | rates | {"unet_lr": 0}).values["network_train_text_encoder_only"] is True
    assert "refused" in translate(LORA_SD15 | rates | {"text_encoder_lr": 0, "t5xxl_lr": 1e-6}).problems[0]
    assert translate(DREAMBOOTH | {"sdxl": True}).values["train_text_encoder"] is True  # learning_rate_te1 is above 0


@pytest.mark.parametrize(
    ("fields", "module", "arguments"),
    [
        ({"LoRA_type": "Standard", "rank_dropout": 0.1}, "networks.lora", "rank_dropout=0.1"),
        ({"LoRA_type": "Kohya LoCon", "conv_dim": 4}, "networks.lora", "conv_dim=4 conv_alpha=1"),
        ({"LoRA_type": "LoRA-FA", "block_dims": "2,2"}, "networks.lora_fa", "block_dims=2,2"),
        ({"LoRA_type": "Kohya DyLoRA", "unit": 4, "conv_dim": 1}, "networks.dylora", "conv_dim=1 conv_alpha=1 unit=4"),
        ({"LoRA_type": "Kohya LoKr", "conv_dim": 0, "factor": 8}, "networks.lokr", "factor=8"),
        ({"LoRA_type": "LyCORIS/iA3"}, "lycoris.kohya", "preset=full conv_dim=4 conv_alpha=1 train_on_input=True algo=ia3"),
        ({"LoRA_type": "Standard", "loraplus_lr_ratio": 4}, "networks.lora", "loraplus_lr_ratio=4"),
    ],
)
def test_the_lora_type_becomes_a_module_and_its_arguments(fields, module, arguments):
    values = translate(LORA_SDXL | {"loraplus_unet_lr_ratio": 0} | fields).values
    assert (values["network_module"], values["network_args"]) == (module, arguments.split())


def test_noise_inpainting_and_training_words():
    both = {"noise_offset": 0.05, "multires_noise_iterations": 6}
    assert "noise_offset" not in translate(LORA_SD15 | both | {"noise_offset_type": "Multires"}).values
    assert "multires_noise_iterations" not in translate(LORA_SD15 | both).values
    assert {"noise_offset", "multires_noise_iterations"} <= translate(DREAMBOOTH | both).values.keys()  # this tab asks for no type
    assert "cache_latents" not in translate(LORA_SD15 | {"train_inpainting": True}).values
    assert "vae" not in translate(FINETUNE | {"vae": "vae.safetensors"}).values
    assert translate({"token_string": "cat", "template": "style template"}).values["use_style_template"] is True


def test_files_of_2023_are_brought_up_to_date():
    old = {"LoRA_type": "LoCon", "use_8bit_adam": True, "xformers": True, "use_wandb": "True", "lora_network_weights": "a.safetensors"}
    old |= {
        "epoch": "8",
        "learning_rate": "1e-4",
        "max_train_epochs": "",
        "keep_tokens": "2",
        "conv_dims": "",
        "save_model_as": "diffusers",
    }
    old |= {"stop_text_encoder_training_pct": 0, "lr_warmup": "10"}
    read = translate(old)
    assert not read.problems
    expected = {"optimizer_type": "AdamW8bit", "xformers": True, "log_with": "wandb", "network_weights": "a.safetensors", "epoch": 8}
    expected |= {"learning_rate": 1e-4, "keep_tokens": 2, "network_module": "lycoris.kohya", "save_model_as": "safetensors"}
    assert read.values == expected | {"lr_warmup_steps": 0.1, "network_args": ["algo=locon"]}
    assert translate({"lr_warmup": 10}).values["optimizer_type"] == "AdamW"
    assert translate({"xformers": False}).values.keys().isdisjoint({"xformers", "sdpa"})


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("lr_warmup", "ten", "10"),
        ("lr_warmup", 12.5, "whole number"),
        ("train_batch_size", True, "a number"),
        ("learning_rate", math.nan, "a number"),
        ("learning_rate", 10**400, "a number"),
        ("learning_rate", "1e999", "a number"),
        ("gradient_checkpointing", "yes", "true nor false"),
        ("optimizer", 3, "double quotes"),
        ("optimizer_args", "betas=(0.9, 0.99)", "key=value"),
        ("optimizer_args", "weight_decay = 0", "key=value"),
        ("xformers", "flash", "sdpa"),
        ("LoRA_type", "LoRA", "Standard"),
        ("conv_dim", [4], "a number"),
        ("additional_parameters", 5, "text"),
        ("optimizer_type", "Lion", 'write "optimizer"'),
        ("sdpa", True, 'write "xformers"'),
        ("gradient_checkpoint", True, 'write "gradient_checkpointing"'),
        ("qqq", {"a": [None]}, "remove it"),
    ],
)
def test_what_cannot_be_understood_is_named_and_left_out(key, value, fix):
    read = translate(LORA_SDXL | {key: value})
    (problem,) = read.problems
    assert problem.startswith(f'"{key}": ')
    assert fix in problem
    assert problem.endswith(".")
    assert (
        read.values.items() <= translate(LORA_SDXL).values.items()
        if key != "conv_dim"
        else "conv_dim=[4]" not in read.values["network_args"]
    )


def test_quotes_around_a_word_are_passed_on():
    read = translate(LORA_SD15 | {"additional_parameters": '--log_prefix "cat"  --optimizer_args betas=(0.9,0.99)'})
    assert read.extra_flags == "--log_prefix cat --optimizer_args betas=(0.9,0.99)"
    assert "quotes" in read.problems[0]


CHANGES = [
    {"optimizer_type": "AdamW", "learning_rate": 3e-4, "train_batch_size": 4, "gradient_accumulation_steps": 2},
    {"optimizer_args": ["weight_decay=0.01", "betas=(0.9,0.99)"], "lr_scheduler": "constant_with_warmup"},
    {"optimizer_args": None, "resolution": "768,768", "cache_latents": False, "gradient_checkpointing": True},
    {"lr_warmup_steps": 100},
    {"lr_warmup_steps": 0.07, "max_train_steps": 900},
    {"lr_warmup_steps": None, "min_snr_gamma": 5, "seed": None, "max_train_epochs": None},
    {"xformers": None, "sdpa": True},
    {"sdpa": None, "xformers": True},
    {"max_grad_norm": 1.0, "full_bf16": True, "mixed_precision": "bf16", "vae_batch_size": 4},
    {"max_grad_norm": None, "max_train_steps": 123},
    {"masked_loss": True, "fused_backward_pass": True, "clip_skip": None},
]


@pytest.mark.parametrize("tab", TAB_FILES)
@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: " ".join(changes))
def test_the_way_back_changes_what_it_should_and_nothing_else(tab, changes):
    data = TAB_FILES[tab]
    kept = json.dumps(data)
    new = rewrite(data, changes)
    assert json.dumps(data) == kept
    assert is_gui(json.loads(json.dumps(new)))
    before, after = settings(data), settings(new)
    for name, value in changes.items():
        wanted = (None, False, 0) if value in (None, False) else (value, [str(value)])
        assert after.get(name) in wanted, name
    assert {name: value for name, value in after.items() if name not in changes} == {
        name: value for name, value in before.items() if name not in changes
    }


DECIDING = ("noise_offset_type", "output_dir", "output_name", "save_model_as", "unet_lr", "wandb_run_name")
"""Unsetting one of these would change other settings too, so it is refused."""


NAMED = [field for field in FIELDS if field.name]


@pytest.mark.parametrize("field", NAMED, ids=lambda field: f"{field.key} {' '.join(field.tabs)}")
def test_every_field_is_set_and_unset_again(field):
    value = {"flag": True, "bit": True, "text": "a", "words": ["a=1"], "number": 0.5, "whole": 3}[field.kind]
    for tab, data in {"lora": LORA_SDXL, "dreambooth": DREAMBOOTH | {"sdxl": field.when == "sdxl"}, "finetune": FINETUNE}.items():
        if tab not in field.tabs or (field.when == "not sdxl" and tab == "finetune"):
            continue
        data = data | {"noise_offset_type": field.when.removeprefix("noise_offset_type is ") if "noise" in field.when else "Multires"}
        new = rewrite(data, {field.name: value})
        assert settings(new)[field.name] in (value, [str(value)], True)
        if (field.kind in ("flag", "text", "words") or field.zero_is_unset) and field.name not in DECIDING:
            assert settings(rewrite(new, {field.name: None})).get(field.name) is None


def test_the_table_of_fields_holds_together():
    cases = {"always", "stable diffusion", "sdxl", "not sdxl", "noise_offset_type is Original", "noise_offset_type is Multires"}
    for field in FIELDS:
        assert field.kind in FAULTS
        assert field.when in cases
        assert set(field.tabs) <= set(TABS)
    for tab in TABS:
        keys = [field.key for field in FIELDS if tab in field.tabs]
        assert len(keys) == len(set(keys)), "one row for a field in a tab"
    for network in NETWORKS.values():
        assert set(network.always) <= set(network.args)
        assert ("algo" in network.args) == bool(network.algo) == (network.module == "lycoris.kohya")
    assert set(MARKS) <= KEYS
    assert set(OTHER_MODELS) <= {field.key for field in FIELDS}


def test_what_has_no_field_goes_to_the_command_line():
    new = rewrite(LORA_SD15, {"max_grad_norm": 0, "alpha_mask": True, "lr_warmup_steps": 0.125})
    assert new["additional_parameters"] == "--max_grad_norm 0 --alpha_mask --lr_warmup_steps 0.125"
    assert rewrite(DREAMBOOTH | {"max_grad_norm": 1}, {"max_grad_norm": 0})["max_grad_norm"] == 0
    again = rewrite(new | {"lr_scheduler": "linear"}, {"max_grad_norm": 1.0, "alpha_mask": None})
    assert (again["additional_parameters"], again["max_grad_norm"]) == ("--lr_warmup_steps 0.125", 1.0)
    assert rewrite({"additional_parameters": "--lr_warmup_steps=-1 --a -1 -2 --b"}, {"a": None, "lr_warmup_steps": 5}) == {
        "additional_parameters": "--b", "lr_warmup": 0, "lr_warmup_steps": 5,
    }  # fmt: skip


def test_settings_that_depend_on_each_other_are_changed_together():
    changes = {"network_train_unet_only": None, "text_encoder_lr": 1e-5}
    new = rewrite(LORA_SDXL, changes)
    assert new["text_encoder_lr"] == 1e-5
    assert "network_train_unet_only" not in translate(new).values
    back = rewrite(new, {"network_train_unet_only": True, "text_encoder_lr": None})
    assert (back["text_encoder_lr"], translate(back).values) == (0, translate(LORA_SDXL).values)
    assert rewrite(FINETUNE, {"max_train_steps": 800})["max_train_steps"] == 1600  # the GUI halves it
    unflipped = rewrite(FINETUNE, {"flip_aug": False})
    assert (unflipped["flip_aug"], unflipped["max_train_steps"]) == (False, 1001)


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (LORA_SDXL, {"network_train_unet_only": None}),  # it follows from the text encoder's rate
        (FINETUNE, {"enable_bucket": False}),
        (LORA_SD15, {"max_data_loader_n_workers": None}),  # the GUI says 0 where sd-scripts' default is 8
        (LORA_SD15, {"unheard_of": "two words"}),
        (LORA_SD15, {"optimizer_args": ["betas=(0.9, 0.99)"]}),
    ],
)
def test_what_the_gui_cannot_say_is_refused(data, changes):
    with pytest.raises(ValueError, match="cannot express this"):
        rewrite(data, changes)


ODD = [None, True, False, 0, 1, -1, 2.5, 10**5000, -(10**400), math.nan, math.inf, "", " ", "ten", "1e-4", "9" * 5000, "=", "a=1", "\ud800"]
ODD += [[], ["a=1"], [[[]]], {}, {"a": {"b": None}}, "Multires", "sdxl", "x\ny", "--a '", "LyCORIS/LoCon", "Kohya LoKr"]


def test_nothing_makes_it_raise():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    keys = [*KEYS, *OTHER_MODELS, *RENAMED, "", "\ud800", "é", "x" * 1000, 3, None]
    rng = random.Random(0)
    for _ in range(400):
        data = {key: rng.choice([*ODD, deep]) for key in rng.sample(keys, rng.randint(0, 60))}
        read = translate(data)
        assert all(isinstance(problem, str) and len(problem) < 400 for problem in read.problems)
        assert all(isinstance(name, str) and name for name in read.values)
        assert all(math.isfinite(value) for value in read.values.values() if isinstance(value, float))
        assert read.num_processes >= 1
        is_gui(data)
    for key in keys:
        for value in ODD:
            translate({key: value})
            translate({key: value, "LoRA_type": "Kohya LoKr"})
