"""The settings files of bmaltais' kohya_ss GUI: their JSON in sd-scripts' own words, and changes written back into it.

Read in the GUI's source at commit 45088f0, as `gui_fields` says, and in `update_my_data` of `common_gui.py` for the keys of 2023.

The GUI writes a TOML file for sd-scripts' `--config_file`; `additional_parameters` follow on the command line and win over it.
What a file leaves unsaid is left out here, though the GUI would pass whatever its screen shows at that moment.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..system import nearest
from . import families
from .gui_fields import (
    ARG_KEYS,
    FIELDS,
    KEYS,
    LORAPLUS_ARGS,
    MARKS,
    NETWORKS,
    OTHER_MODEL_KEYS,
    OTHER_MODELS,
    RENAMED,
    ZERO_BY_DEFAULT,
    Field,
    Network,
)

FEW = 20
"""Unknown keys that get a suggestion; finding one takes a while."""


@dataclass(frozen=True)
class GuiSettings:
    """Run that the GUI would start with the settings of a file."""

    script: str
    """The script of sd-scripts, such as `sdxl_train_network.py`."""
    values: dict[str, Any]
    """Settings of the GUI's TOML file, under sd-scripts' names; empty lists are left out."""
    extra_flags: str
    """`additional_parameters` as the GUI takes them: without double quotes, one space between."""
    num_processes: int
    """Number of processes that `accelerate launch` is asked for."""
    problems: tuple[str, ...]
    """Sentences about values that cannot be understood, that the GUI refuses, or that only it can work out."""


def is_gui(data: object) -> bool:
    """Whether parsed JSON is a settings file of the GUI: it has at least three keys that only the GUI uses."""
    return isinstance(data, dict) and sum(mark in data for mark in MARKS) >= 3


def translate(data: dict) -> GuiSettings:
    """Run that the GUI starts for this file. Takes any dict and opens no path; values it cannot take are named in `problems`."""
    problems: list[str] = []
    data = _renewed(data)
    tab = _tab(data)
    fields = [field for field in FIELDS if tab in field.tabs]
    read: dict[str, Any] = {field.key: _read(field, data.get(field.key), problems) for field in fields}
    read = {key: value for key, value in read.items() if value is not None}
    model = _model(tab, data, read)
    other, cases = model in OTHER_MODELS.values(), _cases(model, read)
    values = {
        field.name: read[field.key]
        for field in fields
        if field.name and field.when in cases and field.key in read and not (field.zero_is_unset and read[field.key] == 0)
    }
    values |= _attention(data, problems) | _steps(tab, read, problems) | _by_tab(tab, read, model == "sdxl", problems)
    values["wandb_run_name"] = read.get("wandb_run_name") or read.get("output_name", "")
    if "output_dir" in read:
        values["sample_prompts"] = f"{read['output_dir']}/sample/prompt.txt"  # the GUI writes sample_prompts there, even none
    if tab == "lora" and other:
        chosen = data.get("LoRA_type")
        kind = NETWORKS.get(chosen) if isinstance(chosen, str) else None
        values["network_module"] = kind.module if kind else families.NETWORKS[families.of_script(_script(tab, model))]
    elif tab == "lora":
        values |= _network(data, problems)
    if values.get("train_inpainting"):
        values |= {"train_inpainting": False} if other else {"cache_latents": False, "cache_latents_to_disk": False}
    if tab in ("lora", "textual_inversion"):  # these two drop what equals False, and 0 == False: sd-scripts' default holds
        values = {name: value for name, value in values.items() if value != 0 or name == "max_data_loader_n_workers"}
    values = {name: value for name, value in values.items() if value is not False and value not in ("", [])}
    if other:
        problems.append(f"The file is for {model}, and settings that only that model has are not read: choose a file for SD 1.5, 2 or XL.")
    problems += _unknown(data)
    flags = _extra_flags(data, problems)
    return GuiSettings(_script(tab, model), values, flags, max(read.get("num_processes", 1), 1), tuple(problems))


def rewrite(data: dict, changes: dict[str, object]) -> dict:
    """Copy of a GUI file in which these sd-scripts settings hold (None or False: unset), and all others are as they were.

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
                raise ValueError(f"{name}={_show(value)}: the GUI cannot express this without changing other settings: change it by hand")
            out["additional_parameters"] = " ".join([*_text(out).split(), *flag])
    return out


def _edits(data: dict, name: str, value: object) -> Iterator[dict[str, object]]:
    """Fields that may make the setting hold, the plainest first; None takes a key away."""
    tab = _tab(data)
    if value is not None:
        yield {}
    yield from _edits_of_several(data, tab, name, value)
    for field in FIELDS:
        if tab in field.tabs and field.name == name:
            yield from _edits_of(field, value)
    yield {}  # to unset comes last: what a file leaves unsaid is what the GUI's screen happens to show


def _edits_of(field: Field, value: object) -> Iterator[dict[str, object]]:
    if value is None:
        yield {field.key: {"flag": False, "text": "", "words": ""}.get(field.kind, 0)}
        if field.same_default:
            yield {field.key: None}
    else:
        yield {field.key: " ".join(map(str, value)) if field.kind == "words" and isinstance(value, list) else value}
    if field.name == "max_train_steps" and isinstance(value, int):
        yield {field.key: 2 * value}  # the finetune tab halves it when flip_aug is on


def _edits_of_several(data: dict, tab: str, name: str, value: object) -> Iterator[dict[str, object]]:
    """Edits for a setting that the GUI works out from fields of other names, or from several."""
    if name in ("xformers", "sdpa"):
        yield {"xformers": name if value else "none"}
    elif name == "lr_warmup_steps" and (value is None or isinstance(value, int | float)):
        percent = round(100 * value) if isinstance(value, float) and math.isfinite(value) else 0
        yield {"lr_warmup": percent, "lr_warmup_steps": 0 if percent else value or 0}
    elif name == "text_encoder_lr" and isinstance(value, list) and len(value) == 2:
        yield {"text_encoder_lr": value[0], "t5xxl_lr": 0 if value[0] == value[1] else value[1]}
    elif name == "flip_aug" and tab == "finetune" and (steps := translate(data).values.get("max_train_steps")):
        yield {"flip_aug": bool(value), "max_train_steps": 2 * steps if value else steps}  # it halves the run in this tab
    elif name == "network_train_unet_only":
        yield {"text_encoder_lr": 0, "t5xxl_lr": 0}
    elif name == "network_train_text_encoder_only":
        yield {"unet_lr": 0}


def _plain(name: str, value: object) -> object:
    """None for every way to say unset, lists for tuples, and a text encoder's one rate as the two that the GUI says."""
    if value is False or value == [] or (value == 0 and name in ZERO_BY_DEFAULT):
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
    marks = {
        "lora": ("LoRA_type", "network_dim", "unet_lr"),
        "textual_inversion": ("token_string", "init_word", "num_vectors_per_token"),
        "finetune": ("sdxl_checkbox", "image_folder", "train_dir", "caption_metadata_filename", "dataset_repeats"),
    }
    return next((tab for tab, keys in marks.items() if any(key in data for key in keys)), "dreambooth")


def _model(tab: str, data: dict, read: dict) -> str:
    """`sdxl`, one of the values of `OTHER_MODELS`, or empty for SD 1.5 and 2."""
    if data.get("sdxl_checkbox" if tab == "finetune" else "sdxl") is True:
        return "sdxl"
    return next((model for key, model in OTHER_MODELS.items() if key in read and data[key] is True), "")


def _cases(model: str, read: dict) -> set[str]:
    """The cases of `Field.when` that hold."""
    cases = {"always", "sdxl" if model == "sdxl" else "not sdxl", f"noise_offset_type is {read.get('noise_offset_type', 'Original')}"}
    return cases if model in OTHER_MODELS.values() else cases | {"stable diffusion"}


def _script(tab: str, model: str) -> str:
    network = {"lora": "train_network.py", "textual_inversion": "train_textual_inversion.py"}
    if tab in network:
        return f"{model}_{network[tab]}" if model else network[tab]
    return f"{model}_train.py" if model else {"dreambooth": "train_db.py", "finetune": "fine_tune.py"}[tab]


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
    if dataset and tab == "textual_inversion" and total == 0:
        steps = 0
    elif dataset and tab == "lora" and total and total > 0 >= steps:
        percent, steps = 0, round((percent or 0) * total / 100)
    if percent is not None or "lr_warmup_steps" in read:
        values["lr_warmup_steps"] = steps if steps > 0 else percent / 100 if percent else 0
    if total == 0 and not dataset and not read.get("max_train_epochs"):
        problems.append('"max_train_steps": 0 lets the GUI count pictures, repeats and epoch itself: write the number of steps it reports.')
    elif total and tab == "finetune" and not dataset and read.get("flip_aug"):
        values["max_train_steps"] = -(-total // 2)
    return values


def _by_tab(tab: str, read: dict, sdxl: bool, problems: list[str]) -> dict[str, object]:
    """Settings that a tab works out from several fields."""
    values: dict[str, object] = {}
    if tab == "lora" and "text_encoder_lr" in read:
        text, t5, unet = (read.get(key, 0) for key in ("text_encoder_lr", "t5xxl_lr", "unet_lr"))
        if text == 0 < t5 or text == unet == read.get("learning_rate") == 0:
            problems.append(
                f'"text_encoder_lr": {_show(text)} is refused together with the other learning rates of the file: write a rate above 0.'
            )
        if text > 0:
            values["text_encoder_lr"] = [float(text), float(t5 if t5 > 0 else text)]
        if "unet_lr" in read:
            values |= {"network_train_unet_only": text == 0 != unet, "network_train_text_encoder_only": unet == 0 != text}
    elif tab == "dreambooth" and sdxl:
        values["train_text_encoder"] = any(read.get(f"learning_rate_te{number}", 0) > 0 for number in (1, 2))
    elif tab == "finetune":
        values["enable_bucket"] = True  # it has no such field
        name = "latent_metadata_filename" if read.get("use_latent_files") == "Yes" else "caption_metadata_filename"
        if {"train_dir", "use_latent_files", name} <= read.keys():
            values["in_json"] = f"{read['train_dir']}/{read[name]}"
    elif tab == "textual_inversion":
        values |= {f"use_{kind}_template": read.get("template") == f"{kind} template" for kind in ("object", "style")}
    return values


def _network(data: dict, problems: list[str]) -> dict[str, object]:
    kind = data.get("LoRA_type")
    if kind is None:
        return {}
    if not isinstance(kind, str) or kind not in NETWORKS:
        problems.append(f'"LoRA_type": {_show(kind)} is no type for SD 1.5, 2 or XL: write one such as "Standard".')
        return {}
    network = NETWORKS[kind]
    args = _network_args(network, data, problems)
    if kind in ("Kohya LoHa", "Kohya LoKr"):
        args = {name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in args.items()}
        unsaid = {("factor", -1), ("conv_alpha", None if "conv_dim" in args else args.get("conv_alpha"))}
        args = {name: value for name, value in args.items() if (name, value) not in unsaid}
    words = " ".join(f"{name}={value}" for name, value in args.items()).replace('"', "").split()
    return {"network_module": network.module, "network_args": words}


def _network_args(network: Network, data: dict, problems: list[str]) -> dict[str, object]:
    args: dict[str, object] = {}
    for name in (*network.args, *LORAPLUS_ARGS):
        key = ARG_KEYS.get(name, name)
        value = network.algo if name == "algo" else data.get(key)
        if not isinstance(value, str | bool) and _read(Field(key=key, name=name, kind="number"), value, problems) is None:
            continue
        if value or name in network.always:
            args[name] = value
    return args


def _read(field: Field, value: object, problems: list[str]) -> object:
    """The value as the GUI takes it, or None where it is unsaid or, with a problem noted, cannot be understood."""
    try:
        return field.take(value)
    except ValueError as fault:
        problems.append(f'"{field.key}": {_show(value)} is {fault}.')
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
    unread = [key for key in data if not (isinstance(key, str) and (key in KEYS or OTHER_MODEL_KEYS.fullmatch(key)))]
    for number, key in enumerate(unread):
        near = [RENAMED[key]] if key in RENAMED else nearest(key, KEYS, cutoff=0.75) if isinstance(key, str) and number < FEW else []
        fix = f'write "{near[0]}"' if near else "remove it, or give an option of sd-scripts in additional_parameters"
        yield f"{_show(key)}: {_show(data[key])} is not read by the GUI: {fix}."


def _show(value: object) -> str:
    try:
        text = f'"{value}"' if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."
