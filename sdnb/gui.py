"""The settings files of bmaltais' kohya_ss GUI: their JSON in sd-scripts' own words.

Read in the GUI's source at commit 45088f0 (10 July 2026, the version with Gradio 6): `train_model` in `kohya_gui/lora_gui.py`,
`dreambooth_gui.py`, `finetune_gui.py` and `textual_inversion_gui.py`, and `update_my_data` in `common_gui.py` for the keys of 2023.

The GUI writes a TOML file for sd-scripts' `--config_file`; `additional_parameters` follow on the command line and win over it.
What a file leaves unsaid is left out here, though the GUI would pass whatever its screen shows at that moment.
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
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


@dataclass(frozen=True)
class GuiSettings:
    """What the GUI would start with the settings of a file."""

    script: str
    """The script of sd-scripts, such as `sdxl_train_network.py`."""
    values: dict[str, object]
    """What the TOML file says, under sd-scripts' names; empty lists are left out."""
    extra_flags: str
    """`additional_parameters` as the GUI takes them: without double quotes, one space between."""
    num_processes: int
    """How many processes `accelerate launch` is asked for."""
    problems: tuple[str, ...]
    """What cannot be understood, what the GUI refuses and what only it can work out: a sentence each."""


def is_gui(data: object) -> bool:
    """Whether parsed JSON is a settings file of the GUI: it has at least three keys that only the GUI uses."""
    return isinstance(data, dict) and sum(mark in data for mark in MARKS.split()) >= 3


def translate(data: dict) -> GuiSettings:
    """What the GUI passes to sd-scripts for this file. Takes any dict, opens no path; what it cannot take is in `problems`."""
    problems: list[str] = []
    data = _renewed(data)
    tab = _tab(data)
    sdxl = data.get("sdxl_checkbox" if tab == "f" else "sdxl") is True
    other = "" if sdxl else next((model for key, (model, tabs) in OTHER_MODELS.items() if tab in tabs and data.get(key) is True), "")
    rows = [row for row in ROWS if tab in row.tabs]
    read = {row.key: _read(row.key, row.kind, data.get(row.key), problems) for row in {row.key: row for row in rows}.values()}
    read = {key: value for key, value in read.items() if value is not None}
    cases = {"", "" if other else "sd", "sdxl" if sdxl else "sd1", f"{read.get('noise_offset_type', 'Original')}_noise"}
    values = {
        row.name: read[row.key]
        for row in rows
        if row.name and row.when in cases and row.key in read and not (row.kind.endswith("0") and read[row.key] == 0)
    }
    values |= _attention(data, problems) | _steps(tab, read, problems) | _by_tab(tab, read, sdxl, problems)
    values["wandb_run_name"] = read.get("wandb_run_name") or read.get("output_name", "")
    if "output_dir" in read:
        values["sample_prompts"] = f"{read['output_dir']}/sample/prompt.txt"  # the GUI writes sample_prompts there, even none
    if tab == "l" and not other:
        values |= _network(data, problems)
    if values.get("train_inpainting") and other:
        del values["train_inpainting"]
    elif values.get("train_inpainting"):
        values |= {"cache_latents": False, "cache_latents_to_disk": False}
    if tab in "lt":  # these two tabs drop what equals False, and 0 == False: sd-scripts' default holds
        values = {name: value for name, value in values.items() if value != 0 or name == "max_data_loader_n_workers"}
    values = {name: value for name, value in values.items() if value is not False and value not in ("", [])}
    if other:
        problems.append(f"The file is for {other}, and what only that model has is not read: choose a file for SD 1.5, 2 or XL.")
    problems += _unknown(data)
    return GuiSettings(
        _script(tab, sdxl, other), values, _extra_flags(data, problems), max(read.get("num_processes", 1), 1), tuple(problems)
    )


def rewrite(data: dict, changes: dict[str, object]) -> dict:
    """A copy of a GUI file in which these sd-scripts settings hold (None or False: unset), and all others are as they were.

    What the GUI has no field for goes into `additional_parameters`. Raises `ValueError` for what the GUI cannot be made to say.
    """
    changes = {name: _plain(name, value) for name, value in changes.items()}
    out = dict(data)
    if _without(_text(out), changes) != _text(out).split():
        out["additional_parameters"] = " ".join(_without(_text(out), changes))
    pending = set(changes)
    for name, value in sorted(changes.items(), key=lambda change: change[1] is None):  # values first: they may unset another
        pending.remove(name)
        before = translate(out).values
        for fields in _edits(out, name, value):
            new = {key: old for key, old in {**out, **fields}.items() if key not in fields or old is not None}
            after = translate(new).values
            moved = {other for other in before | after if before.get(other) != after.get(other)}
            if _plain(name, after.get(name)) == value and moved <= pending | {name}:
                out = new
                break
        else:
            flag = [f"--{name}", *([] if value is True else map(str, value if isinstance(value, list) else [value]))]
            if value is None or any(shlex.quote(word) != word for word in flag):
                raise ValueError(f"{name}={_show(value)}: the GUI has no way to say this while its other settings stay: change it by hand")
            out["additional_parameters"] = " ".join([*_text(out).split(), *flag])
    return out


def _edits(data: dict, name: str, value: object) -> Iterator[dict[str, object]]:
    """Fields that may make the setting hold, the plainest first; None takes a key away."""
    if value is not None:
        yield {}
    tab = _tab(data)
    if name in ("xformers", "sdpa"):
        yield {"xformers": name if value else "none"}
    elif name == "lr_warmup_steps" and (value is None or isinstance(value, int | float)):
        percent = round(100 * value) if isinstance(value, float) and math.isfinite(value) else 0
        yield {"lr_warmup": percent, "lr_warmup_steps": 0 if percent else value or 0}
    elif name == "text_encoder_lr" and isinstance(value, list) and len(value) == 2:
        yield {"text_encoder_lr": value[0], "t5xxl_lr": 0 if value[0] == value[1] else value[1]}
    elif name == "flip_aug" and tab == "f" and (steps := translate(data).values.get("max_train_steps")):
        yield {"flip_aug": bool(value), "max_train_steps": 2 * steps if value else steps}  # it halves the run in this tab
    elif name == "network_train_unet_only":
        yield {"text_encoder_lr": 0, "t5xxl_lr": 0}
    elif name == "network_train_text_encoder_only":
        yield {"unet_lr": 0}
    for row in ROWS:
        if tab in row.tabs and row.name == name:
            if value is None:
                yield {row.key: {"flag": False, "text": "", "words": ""}.get(row.kind, 0)}
                if name in SAME_DEFAULT.split():
                    yield {row.key: None}
            else:
                yield {row.key: " ".join(map(str, value)) if row.kind == "words" and isinstance(value, list) else value}
            if name == "max_train_steps" and isinstance(value, int):
                yield {row.key: 2 * value}  # the finetune tab halves it when flip_aug is on
    yield {}  # to unset comes last: what a file leaves unsaid is what the GUI's screen happens to show


def _plain(name: str, value: object) -> object:
    """None for every way to say unset, lists for tuples, and a text encoder's one rate as the two that the GUI says."""
    if value is False or value == [] or (value == 0 and name in ZERO_DEFAULT):
        return None
    value = list(value) if isinstance(value, tuple) else value
    if name == "text_encoder_lr" and value is not None:
        rates = value if isinstance(value, list) else [value]
        return rates * 2 if len(rates) == 1 else rates
    return value


def _renewed(data: dict) -> dict:
    """A copy with the keys and values of older files as the GUI updates them on opening."""
    new = {"optimizer": "AdamW8bit" if data.get("use_8bit_adam") else "AdamW"} | data
    if new.get("LoRA_type") == "LoCon":
        new["LoRA_type"] = "LyCORIS/LoCon"
    if (new.get("LoRA_type") or new.get("num_vectors_per_token")) and new.get("save_model_as", "ckpt") not in ("ckpt", "safetensors"):
        new["save_model_as"] = "safetensors"
    if isinstance(new.get("xformers"), bool):
        new["xformers"] = "xformers" if new["xformers"] else "none"
    if new.get("use_wandb") == "True":
        new["log_with"] = "wandb"
    if new.get("lora_network_weights") is not None:
        new["network_weights"] = new["lora_network_weights"]
    return new


def _tab(data: dict) -> str:
    marks = {"l": ("LoRA_type", "network_dim", "unet_lr"), "t": ("token_string", "init_word", "num_vectors_per_token")}
    marks["f"] = ("sdxl_checkbox", "image_folder", "train_dir", "caption_metadata_filename", "dataset_repeats")
    return next((tab for tab, keys in marks.items() if any(key in data for key in keys)), "d")


def _script(tab: str, sdxl: bool, other: str) -> str:
    model = "sdxl" if sdxl else other
    plain = {"l": "train_network.py", "t": "train_textual_inversion.py", "d": "train_db.py", "f": "fine_tune.py"}[tab]
    return plain if not model else f"{model}_{plain if tab in 'lt' else 'train.py'}"


def _attention(data: dict, problems: list[str]) -> dict[str, object]:
    choice = data.get("xformers")
    if choice is not None and choice not in ("none", "sdpa", "xformers"):
        problems.append(f'"xformers": {_show(choice)} is passed on as none: write "xformers", "sdpa" or "none".')
    return {"xformers": choice == "xformers", "sdpa": choice == "sdpa"}


def _steps(tab: str, read: dict, problems: list[str]) -> dict[str, object]:
    """The length of the run and of its warmup: steps win over percent, and percent are passed on as a share, a float."""
    values: dict[str, object] = {}
    total, percent, steps = read.get("max_train_steps"), read.get("lr_warmup"), read.get("lr_warmup_steps") or 0
    dataset = read.get("dataset_config")
    if dataset and tab == "t" and total == 0:
        steps = 0
    elif dataset and tab == "l" and total and total > 0 >= steps:
        percent, steps = 0, round((percent or 0) * total / 100)
    if percent is not None or "lr_warmup_steps" in read:
        values["lr_warmup_steps"] = steps if steps > 0 else percent / 100 if percent else 0
    if total == 0 and not dataset and not read.get("max_train_epochs"):
        problems.append('"max_train_steps": 0 lets the GUI count pictures, repeats and epoch itself: write the number of steps it reports.')
    elif total and tab == "f" and not dataset and read.get("flip_aug"):
        values["max_train_steps"] = -(-total // 2)
    return values


def _by_tab(tab: str, read: dict, sdxl: bool, problems: list[str]) -> dict[str, object]:
    """What a tab works out from several fields."""
    values: dict[str, object] = {}
    if tab == "l" and "text_encoder_lr" in read:
        text, t5, unet = (read.get(key, 0) for key in ("text_encoder_lr", "t5xxl_lr", "unet_lr"))
        if text == 0 < t5 or text == unet == read.get("learning_rate") == 0:
            problems.append(
                f'"text_encoder_lr": {_show(text)} is refused beside the other learning rates of the file: write a rate above 0.'
            )
        if text > 0:
            values["text_encoder_lr"] = [float(text), float(t5 if t5 > 0 else text)]
        if "unet_lr" in read:
            values |= {"network_train_unet_only": text == 0 != unet, "network_train_text_encoder_only": unet == 0 != text}
    elif tab == "d" and sdxl:
        values["train_text_encoder"] = any(read.get(f"learning_rate_te{number}", 0) > 0 for number in (1, 2))
    elif tab == "f":
        values["enable_bucket"] = True  # it has no such field
        name = "latent_metadata_filename" if read.get("use_latent_files") == "Yes" else "caption_metadata_filename"
        if {"train_dir", "use_latent_files", name} <= read.keys():
            values["in_json"] = f"{read['train_dir']}/{read[name]}"
    elif tab == "t":
        values |= {f"use_{kind}_template": read.get("template") == f"{kind} template" for kind in ("object", "style")}
    return values


def _network(data: dict, problems: list[str]) -> dict[str, object]:
    kind = data.get("LoRA_type")
    if kind is None:
        return {}
    if not isinstance(kind, str) or kind not in NETWORKS:
        problems.append(f'"LoRA_type": {_show(kind)} is no type for SD 1.5, 2 or XL: write one such as "Standard".')
        return {}
    module, *parts = f"{NETWORKS[kind]} {PLUS}".split()
    said = {}
    for part in parts:
        name, _, key = part.strip("?").partition("<")
        value = data.get(key or name)
        if "=" in part:
            said[name.partition("=")[0]] = name.partition("=")[2]
        elif value is not None and not isinstance(value, str | bool) and _read(key or name, "number", value, problems) is None:
            continue
        elif value is not None and (value or not part.startswith("?")):
            said[name] = value
    if kind in ("Kohya LoHa", "Kohya LoKr"):
        said = {name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in said.items()}
        unsaid = {("factor", -1), ("conv_alpha", None if "conv_dim" in said else said.get("conv_alpha"))}
        said = {name: value for name, value in said.items() if (name, value) not in unsaid}
    return {"network_module": module, "network_args": " ".join(f"{name}={value}" for name, value in said.items()).replace('"', "").split()}


def _read(key: str, kind: str, value: object, problems: list[str]) -> object:
    """The value as the GUI takes it, or None where it is unsaid or, with a problem noted, cannot be understood."""
    if kind == "whole0" and value == "":
        return 0
    kind = kind.rstrip("0")
    if value is False and kind in ("number", "whole"):
        return 0
    if value is None or (value == "" and kind not in ("text", "words")) or (value == [] and kind == "words"):
        return None
    if kind == "text" and isinstance(value, str):
        return value
    if kind in ("flag", "bit") and isinstance(value, int | float) and value in (0, 1):
        return bool(value) if kind == "flag" else int(value)
    if (
        kind == "words"
        and isinstance(value, str)
        and all("=" in pair[1:-1] and pair.split() == [pair] for pair in value.split(" ") if value)
    ):
        return value.replace('"', "").split()
    if kind in ("number", "whole") and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = value if not isinstance(value, str) else int(value) if re.fullmatch(r"\s*[+-]?\d+\s*", value) else float(value)
            if abs(number) < 2**63 and (kind == "number" or (number == int(number) and (isinstance(number, int) or value is number))):
                return number if kind == "number" else int(number)
        except (ValueError, OverflowError):
            pass
    problems.append(f'"{key}": {_show(value)} is {KINDS[kind]}.')
    return None


def _text(data: dict) -> str:
    """`additional_parameters`, without what the GUI takes out of them."""
    text = data.get("additional_parameters")
    return text.replace('"', "") if isinstance(text, str) else ""


def _without(text: str, names: dict[str, object]) -> list[str]:
    """The words of a command line without these options and their values."""
    kept, skip = [], False
    for word in text.split():
        if word.startswith("--"):
            skip = word[2:].partition("=")[0] in names
        if not skip:
            kept.append(word)
    return kept


def _extra_flags(data: dict, problems: list[str]) -> str:
    said = data.get("additional_parameters")
    if said is not None and not isinstance(said, str):
        problems.append(f'"additional_parameters": {_show(said)} is not a text: write one, such as "--noise_offset 0.05".')
    for word in _text(data).split():
        if shlex.quote(word) != word:
            problems.append(
                f'"additional_parameters": {_show(word)} reaches sd-scripts with quotes around it: use a field of the GUI instead.'
            )
    return " ".join(_text(data).split())


def _unknown(data: dict) -> Iterator[str]:
    for key, value in data.items():
        if isinstance(key, str) and (key in KEYS or OTHER_KEYS.fullmatch(key)):
            continue
        near = [RENAMED[key]] if key in RENAMED else difflib.get_close_matches(str(key)[:60], KEYS, 1) if isinstance(key, str) else []
        fix = f'write "{near[0]}"' if near else "remove it, or give an option of sd-scripts in additional_parameters"
        yield f"{_show(key)}: {_show(value)} is not read by the GUI: {fix}."


def _show(value: object) -> str:
    try:
        text = f'"{value}"' if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."
