"""What a rule asks of an outcome and how it mends the settings, where that is more than a row has room for."""

from __future__ import annotations

import math

from ..sd_scripts import HANDED, NETWORK, SDXL, Malformed, Outcome, Refusal, arguments, mended

STEPS = ("lr_warmup_steps", "lr_decay_steps")
FLAGS = ("relative_step", "scale_parameter", "warmup_init", "amsgrad", "decouple")
"""Arguments of optimizers that are True or False."""
TO_MANUAL = '--optimizer_args "relative_step=False" "scale_parameter=False" "warmup_init=False"{rate_flag}'


def rate_flag(o: Outcome) -> str:
    """The flag that a LoRA needs as well once its learning rate counts."""
    said = o.said("learning_rate", "unet_lr", "text_encoder_lr")
    return "" if said or o.script not in NETWORK else " --learning_rate=1e-4"


# how Adafactor is set


def is_manual(o: Outcome) -> bool:
    """Whether Adafactor takes its learning rate from outside."""
    return o.is_adafactor and not o.relative_step


def says(o: Outcome, name: str) -> bool:
    """Whether optimizer_args hold this argument."""
    return isinstance(o.optimizer_args, dict) and name in o.optimizer_args


def with_arguments(o: Outcome, **changes: object) -> dict[str, object]:
    """optimizer_args with some of them set."""
    kept = [text for text in o["optimizer_args"] or [] if text.partition("=")[0] not in changes]
    return {"optimizer_args": kept + [f"{name}={value}" for name, value in changes.items()]}


def made_manual(o: Outcome) -> dict[str, object]:
    """Adafactor with the learning rate and the schedule that were asked for."""
    if o.argument("relative_step"):  # the automatic rate was asked for: then the schedule and the warmup are the slip
        return {"lr_scheduler": "adafactor", "lr_warmup_steps": None}
    changes = with_arguments(o, relative_step=False, scale_parameter=False, warmup_init=False)
    return changes if o.said("learning_rate", "unet_lr") or o.script not in NETWORK else {**changes, "learning_rate": 1e-4}


def unless_automatic(o: Outcome) -> dict[str, str]:
    """How much it matters that Adafactor chooses the rate itself: less if that was said and nothing else was."""
    asked, said = bool(o.argument("relative_step")), o.said("learning_rate", "unet_lr", "text_encoder_lr")
    fix = "Leave learning_rate, unet_lr and text_encoder_lr out, or say relative_step=False." if said else ""
    return {"effect": "overrides" if said or not asked else "warns", "fix": fix if asked else TO_MANUAL.format(rate_flag=rate_flag(o))}


def true_by_shape(o: Outcome) -> str | None:
    """The first flag among the optimizer's arguments that is a tuple or a text."""
    parts = o.optimizer_args if isinstance(o.optimizer_args, dict) else {}
    return next((f"{name}={value!r}" for name, value in parts.items() if isinstance(value, (tuple, str)) and name in FLAGS), None)


def without_comma(text: str) -> str:
    """`relative_step=False,` as it was meant."""
    return text.rstrip(",") if text.rstrip(",").endswith(("=True", "=False")) else text


def one_rate(value: float) -> dict[str, object]:
    """The same learning rate for every part."""
    return {"learning_rate": value, "unet_lr": None, "text_encoder_lr": None}


# names and values that are not accepted


def malformed(parts: dict | Malformed) -> dict[str, object] | None:
    """What is wrong with `key=value` texts that cannot be taken apart."""
    return {"text": parts.text, "error": parts.error, "why": parts} if isinstance(parts, Malformed) else None


def well_formed(o: Outcome, name: str, parts: Malformed) -> dict[str, object]:
    """The setting with its texts mended, where they can be."""
    texts = mended(o[name], parts)
    return {name: texts} if texts else {}


def refused(refusal: Refusal | None) -> dict[str, str] | None:
    """A refusal by its parts."""
    return {"what": refusal[0], "error": refusal[1]} if refusal else None


def unknown_optimizer(o: Outcome) -> dict[str, str] | None:
    """The name nearest to one that torch.optim does not have, and how it fails."""
    if o.row is not None or "." in o.wanted or o.wanted.lower().startswith("dadapt"):
        return None
    facts = arguments.facts()["optimizers"]
    wanted = o.wanted.lower()
    # by another capital, at the end of a dotted path, or nearly so
    near = next((name for name in facts["classes"] if wanted in (name.lower(), name.lower().rpartition(".")[2])), None)
    near = near or arguments.closest(wanted, facts["classes"]) or "AdamW"
    return {"near": near, "error": "TypeError" if o.wanted in facts["other_names"] else "AttributeError"}


def unknown_scheduler(o: Outcome) -> dict[str, str] | None:
    """The name nearest to an unknown lr_scheduler."""
    names, name = arguments.facts()["schedulers"]["names"], o.scheduler
    if o.is_schedule_free or o.relative_step or o["lr_scheduler_type"] or name in names or name.startswith("adafactor"):
        return None
    return {"near": arguments.closest(name, names) or "constant_with_warmup", "error": "ValueError"}


def unknown_scheduler_class(o: Outcome) -> dict[str, str] | None:
    """The class nearest to an unknown lr_scheduler_type, and how that fails."""
    kind, facts = str(o["lr_scheduler_type"] or ""), arguments.facts()["schedulers"]
    if o.is_schedule_free or not kind or "." in kind or kind in facts["classes"] or kind == "LRScheduler":
        return None
    near = arguments.closest(kind, facts["classes"]) or "CosineAnnealingLR"
    return {"near": near, "error": "TypeError" if kind in facts["other_names"] else "AttributeError"}


def unreadable_resolution(o: Outcome) -> dict[str, str] | None:
    """What is wrong with `resolution`, which is read as `512` or `512,768`."""
    value = o["resolution"]
    if value is None:
        return None
    if not isinstance(value, str):
        return {"error": "AttributeError", "why": "It has to be a text."}
    try:
        sides = [int(side) for side in value.split(",")]
    except ValueError:
        return {"error": "ValueError", "why": "Only whole numbers and one comma are understood."}
    return {"error": "AssertionError", "why": "It has one side or two."} if len(sides) > 2 else None


def no_number(o: Outcome) -> str | None:
    """The first setting that sd-scripts calculates with although it is a text or a list."""
    return next((name for name in arguments.CALCULATED if isinstance(o[name], (str, list, dict))), None)


def as_number(o: Outcome) -> dict[str, object]:
    """The first text that should be a number, as one, if it reads like one."""
    name = no_number(o)
    try:
        value = float(o[name])
    except (TypeError, ValueError):
        return {}
    return {name: int(value) if value.is_integer() and name != "learning_rate" else value} if math.isfinite(value) else {}


def endless(o: Outcome) -> dict[str, object] | None:
    """The first setting that is NaN or infinite, of those that the optimizer and the schedule do not refuse anyway."""
    found = ((name, value) for name, value in o.settings.given.items() if isinstance(value, float) and not math.isfinite(value))
    return next(({"name": name, "value": value} for name, value in found if name not in STEPS), None)


def endless_steps(o: Outcome) -> dict[str, str] | None:
    """The first number of steps that is NaN or infinite, and the exception."""
    if o.is_schedule_free:
        return None
    found = ((name, o[name]) for name in STEPS if isinstance(o[name], float) and not math.isfinite(o[name]))
    return next(({"name": name, "error": "ValueError" if math.isnan(value) else "OverflowError"} for name, value in found), None)


# the schedule


def is_adafactors(o: Outcome) -> bool:
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


def needless_warmup(o: Outcome) -> str | None:
    """The schedule that refuses the warmup it is given."""
    if o.is_schedule_free or not o.warmup_steps:
        return None
    name = o.scheduler
    return name if o["lr_scheduler_type"] or name == "constant" or (name.startswith("adafactor") and not o.relative_step) else None


def ratio_slip(o: Outcome) -> str | None:
    """A warmup that was meant in steps and is taken as a share, because it has a decimal point."""
    value = o["lr_warmup_steps"]
    return repr(value) if isinstance(value, float) and value >= 1 and math.isfinite(value) and not o.is_schedule_free else None


def shortened_warmup(o: Outcome) -> int | None:
    """After how many optimizer steps a warmup is over, when several processes move the schedule on."""
    steps = o["lr_warmup_steps"]
    return math.ceil(steps / o.processes) if o.processes > 1 and warms_up(o) and isinstance(steps, int) and steps > 0 else None


def warmup_as_share(o: Outcome) -> dict[str, object]:
    """The same warmup as a share of the run, which counts for all processes."""
    steps, total = o["lr_warmup_steps"], o.number("max_train_steps")
    return {"lr_warmup_steps": round(steps / total, 6)} if steps < total else {}


# the data


def caches_text(o: Outcome) -> object:
    """Whether the text encoders' outputs are cached."""
    return o["cache_text_encoder_outputs"] or o["cache_text_encoder_outputs_to_disk"]


def changes_captions(o: Outcome) -> bool:
    """Whether a picture gets other captions each time."""
    rates = ("caption_dropout_rate", "token_warmup_step", "caption_tag_dropout_rate")
    return bool(o["shuffle_caption"]) or any(o.number(name) > 0 for name in rates)


def bucket_unit(o: Outcome) -> int | None:
    """What bucket_reso_steps has to be a multiple of, and is not."""
    unit = 32 if o.script in SDXL else 64
    return unit if o.has("enable_bucket") and not o["dataset_config"] and o.number("bucket_reso_steps") % unit else None
