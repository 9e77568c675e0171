"""Conditions of the rules about values of the wrong kind, the data set, its caches and its loader.

As in `conditions`, a dict or None is a rule's `when`.
"""

from __future__ import annotations

import math
from typing import Literal

from ..sd_scripts import Outcome, arguments, families, versions
from ..system import quoted
from .conditions import Values, shown, values_if
from .networks import is_whole, own_network

STEPS = ("lr_warmup_steps", "lr_decay_steps")
CAPTION_RATES = ("caption_dropout_rate", "token_warmup_step", "caption_tag_dropout_rate")
"""Settings that give a picture other captions each time where they are above 0."""
TEXT_CACHES = tuple(
    "sdxl_train_network.py sdxl_train.py flux_train_network.py flux_train.py sd3_train_network.py sd3_train.py lumina_train.py "
    "hunyuan_image_train_network.py anima_train_network.py "
    "anima_train.py".split()
)
"""The scripts that refuse captions which change where the text encoders' outputs are cached. Those of ControlNets ask their data set,
too, which does not look at its own pictures."""
METADATA = tuple("fine_tune.py sdxl_train.py flux_train.py sd3_train.py lumina_train.py anima_train.py".split())
"""The scripts that read fine-tuning metadata only where latents are cached."""
BLOCKS = 23
"""Learning rates that sdxl_train.py's block_lr takes."""
DATA_DIVISORS = {
    "train_batch_size": "when the pictures are put into batches",
    "bucket_reso_steps": "when the buckets are made",
}
"""Settings by which the data set divides, and when."""
DIVISORS = {
    "gradient_accumulation_steps": "before the first step",
    "save_every_n_epochs": "at the end of the first epoch",
    "save_every_n_steps": "after the first step",
    "validate_every_n_steps": "after the first step",
    "validate_every_n_epochs": "at the end of the first epoch",
}
"""Settings by which a run divides later, and when."""


def too_new(o: Outcome) -> list[str]:
    """The given arguments that the version of sd-scripts does not have yet; where it is not known, those newer than the recorded one."""
    version = o.settings.version or versions.recorded()
    return [name for name in o.settings.given if versions.is_older(version, versions.since(o.script, name))]


def lacks_script(o: Outcome) -> bool:
    """Whether the version of sd-scripts does not have the script yet."""
    return versions.is_older(o.settings.version or versions.recorded(), versions.since(o.script))


def another_version(o: Outcome) -> Values | None:
    """The arguments, the script or the module that another version of sd-scripts brought, and which version."""
    version, names = o.settings.version, too_new(o)
    if lacks_script(o):
        things, came, error = o.script, versions.since(o.script), "FileNotFoundError"
    elif names:
        came = max((versions.since(o.script, name) for name in names), key=list(versions.table()["versions"]).index)
        things, error = ", ".join(f"--{name}" for name in names), "SystemExit"
    elif not version and (module := str(o["network_module"])) in versions.table()["modules"] and o.script.endswith("train_network.py"):
        things, came, error = module, versions.module_since(module), ""
        if not versions.is_older(versions.recorded(), came):
            return None
    else:
        return None
    if not version:
        what, why = f"{things}: this needs sd-scripts {came} or newer.", "Tell the doctor which version you have: --sd-scripts-version."
    elif o.settings.form == "toml" and error == "SystemExit":
        what, why = f"{things}: sd-scripts {version} does not know this, and ignores it.", f"It came with {came}."
    else:
        what, why = f"{error}: sd-scripts {version} has no {things}.", f"That came with {came}."
    return {"what": what, "why": why, "fix": f"Update sd-scripts to {came} or newer." if version else ""}


def effect_of_version(o: Outcome) -> Literal["raises", "overrides", "note"]:
    """The effect of settings for another version: an error where the version is known, but a TOML file's names are ignored."""
    if not o.settings.version:
        return "note"
    return "overrides" if o.settings.form == "toml" and not lacks_script(o) else "raises"


def unreadable_resolution(o: Outcome) -> Values | None:
    """The fault of a `resolution` that does not read like `512` or `512,768`."""
    value = o["resolution"]
    if value is None:
        return None
    if not isinstance(value, str):
        return {"resolution": value, "error": "AttributeError", "why": "It has to be a text."}
    try:
        sides = [int(side) for side in value.split(",")]
    except ValueError:
        return {"resolution": value, "error": "ValueError", "why": "Only whole numbers and one comma are understood."}
    return values_if(len(sides) > 2, resolution=value, error="AssertionError", why="It has one side or two.")


def no_number(o: Outcome) -> Values | None:
    """The first setting that sd-scripts calculates with although it is a text or a list."""
    name = next((name for name in arguments.CALCULATED if isinstance(o[name], (str, list, dict)) and not _is_norm(o, name)), None)
    broken = name == "gradient_accumulation_steps" and not str(o[name]).isdigit()  # accelerate reads it before anybody calculates
    return values_if(name, name=name, error="ValueError" if broken else "TypeError")


def _is_norm(o: Outcome, name: str) -> bool:
    """Whether this is a max_grad_norm that torch reads as a number, although it is a text."""
    try:
        return name == "max_grad_norm" and isinstance(o[name], str) and float(str(o[name])) > 0
    except ValueError:
        return False


def later_numbers(o: Outcome) -> list[str]:
    """The texts that sd-scripts would calculate with later, before the first step or in it."""
    known = arguments.arguments(o.script)
    names = [name for name in (*arguments.DATASET, *arguments.USED) if name in known]
    names = [name for name in names if not name.startswith("network_") or own_network(o)]
    values = {name: o[name] for name in names}
    rates = values.get("text_encoder_lr")
    listed = ["text_encoder_lr"] if isinstance(rates, list) and any(isinstance(one, str) for one in rates) else []
    return [name for name, value in values.items() if isinstance(value, str)] + listed


def texts_for_numbers(o: Outcome) -> Values | None:
    """The texts that sd-scripts would calculate with later, and the exception."""
    names = later_numbers(o)
    checked = any(name in arguments.DATASET for name in names)  # by the data set, but the tokenizer is made before it
    error = "MultipleInvalid" if checked and not ("max_token_length" in names and o.script in arguments.STABLE_DIFFUSION) else "TypeError"
    texts = ", ".join(f"{name} = {quoted(shown(o)[name])}" for name in names)
    return values_if(names, texts=texts, error=error, are="are not numbers" if len(names) > 1 else "is not a number")


def as_numbers(o: Outcome, names: list[str]) -> Values:
    """Numbers in place of the texts that should be numbers; empty where one does not read like one."""
    changes: Values = {}
    for name in names:
        texts, whole = o[name], arguments.type_of(name) != "float"
        try:
            numbers = [float(str(text)) for text in (texts if isinstance(texts, list) else [texts])]
        except (TypeError, ValueError):
            return {}
        if not all(map(math.isfinite, numbers)) or (isinstance(texts, list) and name != "text_encoder_lr"):
            return {}
        numbers = [int(number) if number.is_integer() and whole else number for number in numbers]
        changes[name] = numbers if isinstance(texts, list) else numbers[0]
    return changes


def endless(o: Outcome) -> Values | None:
    """The first setting that is NaN or infinite, of those that the optimizer and the schedule do not refuse anyway."""
    numbers = ((name, value) for name, value in o.settings.given.items() if isinstance(value, float) and name not in STEPS)
    return next(({"name": name, "value": value} for name, value in numbers if not math.isfinite(value)), None)


def without_endless(o: Outcome) -> Values:
    """The first setting that is NaN or infinite, taken back."""
    return {str((endless(o) or {})["name"]): None}


def endless_steps(o: Outcome) -> Values | None:
    """The first number of steps that is NaN or infinite, and the exception."""
    for name in () if o.is_schedule_free else STEPS:
        if isinstance(o[name], float) and not math.isfinite(o[name]):
            error = "ValueError" if math.isnan(o[name]) else "OverflowError"
            return {"name": name, "value": o[name], "error": error}
    return None


def caches_text(o: Outcome) -> object:
    """Whether the text encoders' outputs are cached."""
    return o["cache_text_encoder_outputs"] or o["cache_text_encoder_outputs_to_disk"]


def changes_captions(o: Outcome) -> bool:
    """Whether a picture gets other captions each time."""
    names = CAPTION_RATES[1:] if o.script.startswith("anima_") else CAPTION_RATES  # Anima's cache can drop a caption
    return bool(o["shuffle_caption"]) or any(o.number(name) > 0 for name in names)


def bucket_unit(o: Outcome) -> Values | None:
    """The unit of which bucket_reso_steps has to be a multiple, and is not."""
    if "control_net" in o.script:  # their data set keeps the number to itself
        return None
    unit = families.BUCKETS.get(o.script, 64)
    slips = o.has("enable_bucket") and not o["dataset_config"] and o.number("bucket_reso_steps") % unit > 0
    inherits = unit == 64 and o.script not in arguments.STABLE_DIFFUSION
    first = f" {o.script} itself would accept less, but it runs train_network.py's check first, which requires 64." if inherits else ""
    return values_if(slips, bucket_reso_steps=o["bucket_reso_steps"], unit=unit, first=first)


def zero(o: Outcome, divisors: dict[str, str]) -> Values | None:
    """The first of `divisors`, by which sd-scripts divides, that is 0, and when."""
    known = arguments.arguments(o.script)
    names = (name for name in divisors if name in known and o[name] is not None and o[name] == 0)
    needed = {
        "save_every_n_epochs": lambda: not o.number("save_n_epoch_ratio") > 0,
        "bucket_reso_steps": lambda: o.has("enable_bucket") and not o["dataset_config"],
    }
    return next(({"name": name, "when": divisors[name]} for name in names if needed.get(name, lambda: True)()), None)


def loader_without_workers(o: Outcome) -> bool:
    """Whether workers that do not exist are to be kept."""
    return bool(o["persistent_data_loader_workers"]) and o.number("max_data_loader_n_workers") == 0


def is_weights(value: object) -> bool:
    """Whether a text names a file of weights."""
    return isinstance(value, str) and value.lower().endswith((".safetensors", ".ckpt", ".pt", ".pth", ".bin"))


def samples(o: Outcome) -> bool:
    """Whether pictures are drawn while the run goes on."""
    return bool(o["sample_at_first"]) or any(o.number(name) > 0 for name in ("sample_every_n_steps", "sample_every_n_epochs"))


def promptless_samples(o: Outcome) -> Values | None:
    """The time of the first sample, where there are no prompts for it."""
    missing = is_whole(o) and samples(o) and o["sample_prompts"] is None
    return values_if(missing, when="before the first step" if o["sample_at_first"] else "at the first sample")


def no_prompt_file(value: object) -> bool:
    """Whether a text is given for sample_prompts that cannot be read as a file of prompts."""
    return isinstance(value, str) and value != "" and not value.endswith((".txt", ".toml", ".json"))


def reads_prompts_early(o: Outcome) -> bool:
    """Whether the prompts are read before the run, to encode them with a text encoder that is then put away."""
    return bool(caches_text(o)) and o.script.startswith(("flux_", "sd3_", "lumina_", "hunyuan_", "anima_"))


def broken_block_lr(o: Outcome) -> Values | None:
    """The exception for a `block_lr` that is not one number for each block."""
    value, error = o["block_lr"], "AttributeError"
    if not value:
        return None
    if isinstance(value, str):
        try:
            error = "" if len([float(rate) for rate in value.split(",")]) == BLOCKS else "AssertionError"
        except ValueError:
            error = "ValueError"
    return values_if(error, error=error, block_lr=shown(o)["block_lr"], blocks=BLOCKS)


def uncached_metadata(o: Outcome) -> bool:
    """Whether fine-tuning metadata is to be read and latents are not cached."""
    cached = o["cache_latents"] or o["cache_latents_to_disk"]
    reads = o.said("in_json") or (o.script == "fine_tune.py" and is_whole(o))
    return reads and not cached and not o["dataset_config"] and not o["dataset_class"]


def broken_steps(o: Outcome) -> Values | None:
    """The number of steps or epochs that has a decimal point."""
    name = "max_train_epochs" if o["max_train_epochs"] is not None else "max_train_steps"
    value = o[name]
    return values_if(isinstance(value, float) and math.isfinite(value), name=name, value=repr(value))
