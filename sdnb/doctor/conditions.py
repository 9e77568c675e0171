"""What a rule asks of an outcome and how it mends the settings, where that is more than a row has room for.

Those that return a dict or None are a rule's `when`: None where it does not apply, else the values for its texts.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from ..sd_scripts import HANDED, NETWORK, Malformed, Outcome, Refusal, arguments, families, mended
from ..system import quoted

STEPS = ("lr_warmup_steps", "lr_decay_steps")
RATES = ("learning_rate", "unet_lr", "text_encoder_lr")
FLAGS = ("relative_step", "scale_parameter", "warmup_init", "amsgrad", "decouple")
"""Arguments of optimizers that are True or False."""
CAPTION_RATES = ("caption_dropout_rate", "token_warmup_step", "caption_tag_dropout_rate")
"""Settings that give a picture other captions each time where they are above 0."""
STEPPING = tuple(
    "AdamW AdamW8bit PagedAdamW PagedAdamW8bit PagedAdamW32bit AdamWScheduleFree Adam Adamax NAdam Lion Lion8bit PagedLion8bit".split()
)
"""Optimizers whose first step moves each weight by the learning rate, whatever the gradient; Adafactor with a rate from outside, too."""
MANY_TEXT_RATES = ("networks.lora_flux", "networks.lora_sd3", "networks.lora_lumina", "networks.lora_anima")
"""Modules with a learning rate for each text encoder."""
LORA_PLUS = ("networks.lora", "networks.dylora", "networks.lora_flux")
"""The modules that know LoRA+."""
TEXT_CACHES = tuple(
    "sdxl_train_network.py sdxl_train.py sdxl_train_control_net.py sdxl_train_control_net_lllite.py flux_train_network.py flux_train.py "
    "flux_train_control_net.py sd3_train_network.py sd3_train.py lumina_train.py hunyuan_image_train_network.py anima_train_network.py "
    "anima_train.py".split()
)
"""The scripts that refuse captions which change where the text encoders' outputs are cached."""
SWAPPERS = tuple(
    "flux_train.py flux_train_network.py flux_train_control_net.py sd3_train_network.py anima_train.py anima_train_network.py".split()
)
"""The scripts that refuse blocks_to_swap and cpu_offload_checkpointing together."""
ATTENTION = ("sdpa", "xformers", "mem_eff_attn")
DIVISORS = {
    "save_every_n_epochs": "at the end of the first epoch",
    "save_every_n_steps": "after the first step",
    "gradient_accumulation_steps": "before the first step",
    "train_batch_size": "when the pictures are put into batches",
    "bucket_reso_steps": "when the buckets are made",
    "network_dim": "when the network is made",
    "validate_every_n_steps": "after the first step",
    "validate_every_n_epochs": "at the end of the first epoch",
}
"""Settings by which sd-scripts divides, and when."""
Values = dict[str, object]


def values_if(condition: object, **values: object) -> Values | None:
    """The values where the condition holds, else None."""
    return values if condition else None


def shown(o: Outcome) -> Outcome:
    """The same outcome, to read what a text shows but the rule does not depend on: it is not counted as asked for."""
    return Outcome(o.settings)


# how Adafactor is set


def is_manual(o: Outcome) -> bool:
    """Whether Adafactor takes its learning rate from outside."""
    return o.is_adafactor and not o.relative_step


def says(o: Outcome, name: str) -> bool:
    """Whether optimizer_args hold this argument."""
    return isinstance(o.optimizer_args, dict) and name in o.optimizer_args


def leaves_out(o: Outcome, name: str) -> bool:
    """Whether optimizer_args can be read and do not hold this argument."""
    return isinstance(o.optimizer_args, dict) and name not in o.optimizer_args


def with_arguments(o: Outcome, **changes: object) -> Values:
    """optimizer_args with some of them set."""
    kept = [text for text in o["optimizer_args"] or [] if text.partition("=")[0] not in changes]
    return {"optimizer_args": kept + [f"{name}={value}" for name, value in changes.items()]}


def made_manual(o: Outcome) -> Values:
    """Adafactor with the learning rate and the schedule that were asked for."""
    if o.argument("relative_step"):  # the automatic rate was asked for: then the schedule and the warmup are the slip
        return {"lr_scheduler": "adafactor", "lr_warmup_steps": None}
    if o.rate_is_placeholder:  # 1.0 as a real rate would destroy the model
        return {"lr_warmup_steps": None} if asks_for_automatic(o) else {}
    changes = with_arguments(o, relative_step=False, scale_parameter=False, warmup_init=False)
    return changes if o.said("learning_rate", "unet_lr") or o.script not in NETWORK else {**changes, "learning_rate": 1e-4}


def to_manual(o: Outcome) -> str:
    """The flags with which Adafactor takes its learning rate from outside; a LoRA that gives none then needs one as well."""
    rate = "" if shown(o).said(*RATES) or o.script not in NETWORK else " --learning_rate=1e-4"
    return f'--optimizer_args "relative_step=False" "scale_parameter=False" "warmup_init=False"{rate}'


def asks_for_automatic(o: Outcome) -> bool:
    """Whether Adafactor's own rate is what was meant: by its schedule, and by a rate that stands in for one."""
    return o["lr_scheduler"] == "adafactor" and not o["lr_scheduler_type"] and o.rate_is_placeholder


def own_rate(o: Outcome) -> str:
    """How the given learning rate comes to count; nothing to do where relative_step was asked for and no rate."""
    said = o.said(*RATES)
    if asks_for_automatic(o):
        return "" if o.argument("relative_step") else 'Say it: --optimizer_args "relative_step=True".'
    if not o.argument("relative_step"):
        return to_manual(o)
    return "Leave learning_rate, unet_lr and text_encoder_lr out, or say relative_step=False." if said else ""


def effect_of_ignored_rate(o: Outcome) -> Literal["overrides", "warns"]:
    """Only a warning where the automatic rate was asked for."""
    return "warns" if asks_for_automatic(o) or (o.argument("relative_step") and not o.said(*RATES)) else "overrides"


def true_by_shape(o: Outcome) -> Values | None:
    """The first flag among the optimizer's arguments that is a tuple or a text."""
    parts = o.optimizer_args if isinstance(o.optimizer_args, dict) else {}
    slips = (f"{name}={quoted(value)}" for name, value in parts.items() if isinstance(value, (tuple, str)) and name in FLAGS)
    return next(({"argument": slip} for slip in slips), None)


def without_commas(o: Outcome) -> Values:
    """`relative_step=False,` as it was meant: arguments with blanks between them; nothing where no comma is at an end."""
    given = list(o["optimizer_args"] or ())
    texts = [text.rstrip(",") if isinstance(text, str) else text for text in given]
    return {"optimizer_args": texts} if texts != given else {}


# learning rates and the optimizer's package


def one_rate(value: float) -> Values:
    """The same learning rate for every part."""
    return {"learning_rate": value, "unet_lr": None, "text_encoder_lr": None}


def huge_rate(o: Outcome) -> Values | None:
    """The largest learning rate, where the optimizer moves each weight by about that much in a step."""
    if o.is_adaptive or o.relative_step or (o.is_adafactor and o.argument("scale_parameter", True)) or o.schedule_rate is not None:
        return None
    rates = [rate for rate in o.groups.values() if isinstance(rate, (int, float)) and math.isfinite(rate)]
    huge = (o.is_adafactor or o.optimizer in STEPPING) and max(rates, default=0) >= 0.1
    return values_if(huge, rate=float(max(rates, default=0)), optimizer=o.optimizer, usual="1e-4" if o.script in NETWORK else "1e-5")


def low_adaptive_rate(o: Outcome) -> Values | None:
    """The first learning rate, where the optimizer estimates its own step size and wants a factor of about 1."""
    rate = next(iter(o.groups.values()), None)
    return values_if(o.is_adaptive and isinstance(rate, (int, float)) and rate <= 0.1, optimizer=o.optimizer, rate=str(rate))


def needed_package(o: Outcome) -> Values | None:
    """The optimizer's package, if sd-scripts does not need it anyway."""
    package = o.row["package"] if o.row else None
    return values_if(package in ("dadaptation", "bitsandbytes"), optimizer=o.optimizer, package=package)


# names and values that are not accepted


def malformed(parts: dict[str, object] | Malformed) -> Values | None:
    """What is wrong with `key=value` texts that cannot be taken apart."""
    if isinstance(parts, dict):
        return None
    return {"text": quoted(parts.text), "error": parts.error, "why": str(parts)}


def well_formed(o: Outcome, name: str, parts: Malformed) -> Values:
    """The setting with its texts mended, where they can be."""
    texts = mended(o[name], parts)
    return {name: texts} if texts else {}


def refused(refusal: Refusal | None) -> Values | None:
    """A refusal by its parts."""
    return {"what": refusal[0], "error": refusal[1]} if refusal else None


def refused_arguments(o: Outcome, refusal: Refusal | None) -> Values | None:
    """The refusal of an optimizer, and whether the commas between its arguments are to blame."""
    commas = refusal and bool(without_commas(o))
    comma = " The comma at the end of an argument makes its value a tuple." if commas else ""
    fix = "Separate the arguments by blanks, without commas." if commas else "See the optimizer's own arguments."
    return values_if(refusal, **(refused(refusal) or {}), comma=comma, fix=fix)


def known_arguments(o: Outcome) -> list[object] | None:
    """Those of optimizer_args that the optimizer takes."""
    known = o.row["keywords"] if o.row else ()
    return [text for text in o["optimizer_args"] or () if text.partition("=")[0] in known] or None


def unknown_optimizer(o: Outcome) -> Values | None:
    """The name nearest to one that torch.optim does not have, and how it fails."""
    if o.row is not None or "." in o.wanted or o.wanted.lower().startswith("dadapt"):
        return None
    facts = arguments.facts()["optimizers"]
    wanted = o.wanted.lower()
    # by another capital, at the end of a dotted path, or nearly so
    near = next((name for name in facts["classes"] if wanted in (name.lower(), name.lower().rpartition(".")[2])), None)
    near = near or arguments.closest(wanted, facts["classes"]) or "AdamW"
    return {"wanted": o.wanted, "near": near, "error": _lookup_error(o.wanted, facts)}


def unknown_scheduler(o: Outcome) -> Values | None:
    """The name nearest to an unknown lr_scheduler."""
    names, name = arguments.facts()["schedulers"]["names"], o.scheduler
    if o.is_schedule_free or o.relative_step or o["lr_scheduler_type"] or name in names or name.startswith("adafactor"):
        return None
    return {"scheduler": name, "near": arguments.closest(name, names) or "constant_with_warmup"}


def unknown_scheduler_class(o: Outcome) -> Values | None:
    """The class nearest to an unknown lr_scheduler_type, and how that fails."""
    kind, facts = str(o["lr_scheduler_type"] or ""), arguments.facts()["schedulers"]
    if o.is_schedule_free or not kind or "." in kind or kind in facts["classes"] or kind == "LRScheduler":
        return None
    near = arguments.closest(kind, facts["classes"]) or "CosineAnnealingLR"
    return {"lr_scheduler_type": o["lr_scheduler_type"], "near": near, "error": _lookup_error(kind, facts)}


def _lookup_error(name: str, facts: dict) -> str:
    """The exception for a class that is none: the module may have something else of that name."""
    return "TypeError" if name in facts["other_names"] else "AttributeError"


def unreadable_resolution(o: Outcome) -> Values | None:
    """What is wrong with `resolution`, which is read as `512` or `512,768`."""
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
    return next(({"name": name} for name in arguments.CALCULATED if isinstance(o[name], (str, list, dict))), None)


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
    """Those texts, and the exception of the first."""
    names = later_numbers(o)
    error = "MultipleInvalid" if any(name in arguments.DATASET for name in names) else "TypeError"
    texts = ", ".join(f"{name} = {quoted(shown(o)[name])}" for name in names)
    return values_if(names, texts=texts, error=error, are="are no numbers" if len(names) > 1 else "is no number")


def as_numbers(o: Outcome, names: list[str]) -> Values:
    """The texts that should be numbers, as numbers; nothing where one does not read like one."""
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
    """The same setting, taken back."""
    return {str((endless(o) or {})["name"]): None}


def endless_steps(o: Outcome) -> Values | None:
    """The first number of steps that is NaN or infinite, and the exception."""
    for name in () if o.is_schedule_free else STEPS:
        if isinstance(o[name], float) and not math.isfinite(o[name]):
            error = "ValueError" if math.isnan(o[name]) else "OverflowError"
            return {"name": name, "value": o[name], "error": error}
    return None


# the schedule


def is_adafactor_schedule(o: Outcome) -> bool:
    """Whether the schedule is the one that reports Adafactor's own learning rate, and was asked for by name."""
    return not o.is_schedule_free and not o["lr_scheduler_type"] and o.scheduler.startswith("adafactor")


def has_number(o: Outcome) -> bool:
    """Whether a number stands behind the colon of the schedule's name."""
    try:
        float(o.scheduler.split(":")[1])
    except ValueError:
        return False
    return True


def warms_up(o: Outcome) -> bool:
    """Whether the schedule takes a warmup."""
    return "num_warmup_steps" in HANDED.get(o.scheduler, ())


def needless_warmup(o: Outcome) -> Values | None:
    """The schedule that refuses the warmup it is given."""
    if o.is_schedule_free or not o.warmup_steps:
        return None
    name = o.scheduler
    refuses = o["lr_scheduler_type"] or name == "constant" or (name.startswith("adafactor") and not o.relative_step)
    return values_if(refuses, scheduler=name)


def ratio_slip(o: Outcome) -> Values | None:
    """A warmup that was meant in steps and is taken as a share, because it has a decimal point."""
    value = o["lr_warmup_steps"]
    if not isinstance(value, float) or value < 1 or not math.isfinite(value) or o.is_schedule_free:
        return None
    steps = shown(o)
    return {"lr_warmup_steps": repr(value), "warmup_steps": f"{steps.warmup_steps:,}", "total_steps": f"{steps.total_steps:,}"}


def endless_warmup(o: Outcome) -> Values | None:
    """A warmup that is as long as the run, or longer."""
    if not warms_up(o) or ratio_slip(o) or not o.warmup_steps >= o.total_steps > 0:
        return None
    return {"warmup_steps": f"{o.warmup_steps:,}", "total_steps": f"{o.total_steps:,}"}


def shortened_warmup(o: Outcome) -> Values | None:
    """After how many optimizer steps a warmup is over, when several processes move the schedule on."""
    steps = o["lr_warmup_steps"]
    if o.processes == 1 or not warms_up(o) or not isinstance(steps, int) or steps <= 0:
        return None
    return {"processes": o.processes, "lr_warmup_steps": steps, "optimizer_steps": math.ceil(steps / o.processes)}


def warmup_as_share(o: Outcome) -> Values:
    """The same warmup as a share of the run, which counts for all processes."""
    steps, total = o["lr_warmup_steps"], o.number("max_train_steps")
    return {"lr_warmup_steps": round(steps / total, 6)} if steps < total else {}


# the data, and what the launcher was told


def caches_text(o: Outcome) -> object:
    """Whether the text encoders' outputs are cached."""
    return o["cache_text_encoder_outputs"] or o["cache_text_encoder_outputs_to_disk"]


def changes_captions(o: Outcome) -> bool:
    """Whether a picture gets other captions each time."""
    names = CAPTION_RATES[1:] if o.script.startswith("anima_") else CAPTION_RATES  # Anima's cache can drop a caption
    return bool(o["shuffle_caption"]) or any(o.number(name) > 0 for name in names)


def bucket_unit(o: Outcome) -> Values | None:
    """What bucket_reso_steps has to be a multiple of, and is not."""
    unit = families.BUCKETS.get(o.script, 64)
    slips = o.has("enable_bucket") and not o["dataset_config"] and o.number("bucket_reso_steps") % unit > 0
    first = (
        ""
        if unit < 64 or o.script in (*arguments.STABLE_DIFFUSION, *arguments.CONTROL_NETS)
        else (f" {o.script} would be content with less, but runs train_network.py's check first, which wants 64.")
    )
    return values_if(slips, bucket_reso_steps=o["bucket_reso_steps"], unit=unit, first=first)


def zero(o: Outcome) -> Values | None:
    """The first setting by which sd-scripts divides although it is 0."""
    known = arguments.arguments(o.script)
    names = (name for name in DIVISORS if name in known and o[name] is not None and o[name] == 0)
    needed = {
        "save_every_n_epochs": lambda: not o.number("save_n_epoch_ratio") > 0,
        "bucket_reso_steps": lambda: o.has("enable_bucket") and not o["dataset_config"],
        "network_dim": lambda: own_network(o),
    }
    return next(({"name": name, "when": DIVISORS[name]} for name in names if needed.get(name, lambda: True)()), None)


def loader_without_workers(o: Outcome) -> bool:
    """Whether workers that do not exist are to be kept."""
    return bool(o["persistent_data_loader_workers"]) and o.number("max_data_loader_n_workers") == 0


def is_weights(value: object) -> bool:
    """Whether a text names a file of weights."""
    return isinstance(value, str) and value.lower().endswith((".safetensors", ".ckpt", ".pt", ".pth", ".bin"))


def samples(o: Outcome) -> bool:
    """Whether pictures are drawn while the run goes on."""
    return bool(o["sample_at_first"]) or any(o.number(name) > 0 for name in ("sample_every_n_steps", "sample_every_n_epochs"))


def no_prompt_file(value: object) -> bool:
    """Whether a text is given for sample_prompts that cannot be read as a file of prompts."""
    return isinstance(value, str) and value != "" and not value.endswith((".txt", ".toml", ".json"))


def reads_prompts_early(o: Outcome) -> bool:
    """Whether the prompts are read before the run, to encode them with a text encoder that is then put away."""
    return bool(caches_text(o)) and o.script.startswith(("flux_", "sd3_", "lumina_", "hunyuan_", "anima_"))


# the model, and the network that is trained on it


def is_whole(o: Outcome) -> bool:
    """Whether these are all settings of a run, since they name a model, and not a few of them."""
    return o.said("pretrained_model_name_or_path")


def other_family(o: Outcome) -> Values | None:
    """The family that the model's name speaks of, where the script trains another, and the script for it."""
    named, own = families.of_model(o["pretrained_model_name_or_path"]), families.of_script(o.script)
    if not o.settings.script_named or named in (None, own):
        return None
    name = shown(o)["pretrained_model_name_or_path"]
    right = families.script_of(named, o.script, arguments.facts()["scripts"])
    vae = ", and --no_half_vae" if named == "SDXL" and shown(o)["mixed_precision"] == "fp16" else ""
    return {"model": name, "family": named, "own": own, "script": o.script, "right": right, "vae": vae}


def other_generation(o: Outcome) -> Values | None:
    """The generation of Stable Diffusion that the model's name speaks of, where v2 says the other."""
    generation = families.generation(o["pretrained_model_name_or_path"])
    if generation is None or (generation == 2) == bool(o["v2"]):
        return None
    name = str(shown(o)["pretrained_model_name_or_path"])
    v = ", and --v_parameterization: its 768 models predict v" if "768" in name and not shown(o)["v_parameterization"] else ""
    fix, is_said = (f"--v2{v}", "is not said") if generation == 2 else ("Leave --v2 out.", "is said")
    return {"model": name, "generation": generation, "is_said": is_said, "fix": fix}


def unused_text_rates(o: Outcome) -> Values | None:
    """Several rates for text encoders, where the network has one for all."""
    rates = o["text_encoder_lr"]
    if not isinstance(rates, (list, tuple)) or len(set(map(repr, rates))) < 2 or not own_network(o) or o.has("network_train_unet_only"):
        return None
    if o["network_module"] in MANY_TEXT_RATES or not all(isinstance(rate, (int, float)) for rate in rates):
        return None
    return {"rates": " ".join(map(str, rates)), "first": rates[0], "module": o["network_module"] or "The network"}


def has_block_rates(texts: dict[str, str], trains_text: bool) -> bool:
    """Whether weights of blocks give parts of the U-Net different learning rates; a block of weight 0 is not trained."""
    names = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
    if not any(texts.get(name, "").strip() for name in names):
        return False
    parts = [part.strip() for name in names for part in (texts.get(name) or "1").split(",")]
    try:
        weights = {float(part) for part in parts} - {0.0}
    except ValueError:
        return True  # the name of a curve, such as cosine
    return len(weights | ({1.0} if trains_text else set())) > 1


def own_network(o: Outcome) -> bool:
    """Whether the network is one of sd-scripts' own."""
    return str(o["network_module"] or "networks.").startswith("networks.")


def missing_network(o: Outcome) -> Values | None:
    """The module that the family's LoRA is in, where none was given."""
    missing = is_whole(o) and "network_module" in arguments.arguments(o.script) and not o["network_module"]
    missing = missing and o.script.endswith("train_network.py")
    return values_if(missing, script=o.script, module=families.NETWORKS[families.of_script(o.script)])


def unknown_network(o: Outcome) -> Values | None:
    """The module of that name which sd-scripts has, where it does not have this one."""
    name = o["network_module"]
    if not isinstance(name, str) or "network_module" not in arguments.arguments(o.script) or name in families.MODULES:
        return None
    if not name.startswith("networks.") and f"networks.{name}" not in families.MODULES:
        return None
    own = families.NETWORKS[families.of_script(o.script)]
    near = f"networks.{name}" if f"networks.{name}" in families.MODULES else arguments.closest(name, families.MODULES) or own
    return {"module": name, "near": near}


def malformed_network_args(o: Outcome) -> Values | None:
    """What of network_args has no =; of a text sd-scripts takes each letter for one."""
    texts = o["network_args"] if "network_args" in arguments.arguments(o.script) else None
    if isinstance(texts, str):
        return {"text": quoted(texts), "error": "ValueError", "why": "it is one text, of which each letter is taken"} if texts else None
    if not isinstance(texts, (list, tuple)):
        return None if texts in (None, False) else {"text": quoted(texts), "error": "TypeError", "why": "it is no list"}
    for text in texts:
        if not isinstance(text, str) or "=" not in text:
            error = "ValueError" if isinstance(text, str) else "AttributeError"
            return {"text": quoted(text), "error": error, "why": "there has to be a = in each"}
    return None


def well_formed_network_args(o: Outcome) -> Values:
    """network_args as a list of `key=value`, where the texts are that but for blanks or commas between them."""
    texts = o["network_args"]
    words = " ".join([texts] if isinstance(texts, str) else map(str, texts if isinstance(texts, (list, tuple)) else ())).split()
    words = [word.rstrip(",") for word in words]
    return {"network_args": words} if words and all("=" in word.strip("=") for word in words) else {}


def several_rates(o: Outcome) -> Values | None:
    """Why the optimizer's groups have several learning rates, where it refuses that."""
    if not o.wants_equal_rates:
        return None
    rates = [rate for rate in o.groups.values() if rate != 0]
    if o.has_several_rates and len(rates) > 1:
        return {"optimizer": o.optimizer, "cause": ", ".join(f"{name}: {quoted(rate)}" for name, rate in o.groups.items())}
    if o["network_module"] not in (None, *LORA_PLUS) or not o.script.endswith("train_network.py"):
        return None
    texts = o["network_args"] if o.has("network_args") and not malformed_network_args(o) else ()
    ratios = dict(text.split("=", 1) for text in texts) if isinstance(texts, (list, tuple)) else {}
    parts = {"U-Net": "unet_", "text encoder": "text_encoder_"}
    parts = {name: parts[name] for name in o.groups if name in parts} or parts
    for part in parts.values():
        ratio = ratios.get(f"loraplus_{part}lr_ratio", ratios.get("loraplus_lr_ratio"))
        if rates and ratio is not None and ratio.strip() not in ("1", "1.0", "0", "0.0"):
            return {"optimizer": o.optimizer, "cause": "LoRA+ gives lora_up another one"}
    if rates and o["network_module"] == "networks.lora" and has_block_rates(ratios, "text encoder" in parts):
        return {"optimizer": o.optimizer, "cause": "weights of blocks such as down_lr_weight give each block its own"}
    return None


def equal_rates(o: Outcome) -> Values:
    """One learning rate of 1 for all, and no LoRA+."""
    texts = o["network_args"] if isinstance(o["network_args"], (list, tuple)) else []
    kept = [text for text in texts if not re.match(r"loraplus_|(down|mid|up)_lr_weight=", str(text))]
    return {**one_rate(1.0), **({"network_args": kept or None} if len(kept) < len(texts) else {})}


def launched_precision(o: Outcome) -> str:
    """The mixed_precision that `accelerate launch` was given."""
    return o.settings.launch.get("mixed_precision", "no")
