"""What a rule asks of an outcome and how it mends the settings, where that is more than a row has room for.

Those that return a dict or None are a rule's `when`: None where it does not apply, else the values for its texts.
"""

from __future__ import annotations

import math
from typing import Literal

from ..sd_scripts import HANDED, NETWORK, SDXL, Malformed, Outcome, Refusal, arguments, mended
from ..system import quoted

STEPS = ("lr_warmup_steps", "lr_decay_steps")
RATES = ("learning_rate", "unet_lr", "text_encoder_lr")
FLAGS = ("relative_step", "scale_parameter", "warmup_init", "amsgrad", "decouple")
"""Arguments of optimizers that are True or False."""
CAPTION_RATES = ("caption_dropout_rate", "token_warmup_step", "caption_tag_dropout_rate")
"""Settings that give a picture other captions each time where they are above 0."""
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


def without_comma(text: str) -> str:
    """`relative_step=False,` as it was meant."""
    return text.rstrip(",") if text.rstrip(",").endswith(("=True", "=False")) else text


# learning rates and the optimizer's package


def one_rate(value: float) -> Values:
    """The same learning rate for every part."""
    return {"learning_rate": value, "unet_lr": None, "text_encoder_lr": None}


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


def as_number(o: Outcome) -> Values:
    """The first text that should be a number, as one, if it reads like one."""
    name = str((no_number(o) or {})["name"])
    try:
        value = float(str(o[name]))
    except (TypeError, ValueError):
        return {}
    return {name: int(value) if value.is_integer() and name != "learning_rate" else value} if math.isfinite(value) else {}


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
    return bool(o["shuffle_caption"]) or any(o.number(name) > 0 for name in CAPTION_RATES)


def bucket_unit(o: Outcome) -> Values | None:
    """What bucket_reso_steps has to be a multiple of, and is not."""
    unit = 32 if o.script in SDXL else 64
    slips = o.has("enable_bucket") and not o["dataset_config"] and o.number("bucket_reso_steps") % unit
    return values_if(slips, bucket_reso_steps=o["bucket_reso_steps"], unit=unit)


def launched_precision(o: Outcome) -> str:
    """The mixed_precision that `accelerate launch` was given."""
    return o.settings.launch.get("mixed_precision", "no")
