"""Conditions of the rules about optimizers and schedules, and repairs, where they are more than a row has room for.

A function that returns a dict or None is a rule's `when`: None where the rule does not apply, else the values for its texts.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from ..sd_scripts import HANDED, NETWORK, TEXTUAL_INVERSION, Malformed, Outcome, Refusal, arguments, mended
from ..system import quoted

RATES = ("learning_rate", "unet_lr", "text_encoder_lr")
FLAGS = ("relative_step", "scale_parameter", "warmup_init", "amsgrad", "decouple")
"""Arguments of optimizers that are True or False."""
STEPPING = tuple(
    "AdamW AdamW8bit PagedAdamW PagedAdamW8bit PagedAdamW32bit AdamWScheduleFree Adam Adamax NAdam Lion Lion8bit PagedLion8bit".split()
)
"""Optimizers whose first step moves each weight by the learning rate, whatever the gradient; Adafactor with a rate from outside, too."""
LORA_PLUS = ("networks.lora_flux",)
"""Modules of other families that know LoRA+."""
Values = dict[str, object]


def values_if(condition: object, **values: object) -> Values | None:
    """The values where the condition holds, else None."""
    return values if condition else None


def shown(o: Outcome) -> Outcome:
    """A copy of the outcome, to read values that a text shows but the rule does not depend on: they are not counted as asked for."""
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
    """Settings of Adafactor that keep the learning rate and the schedule that were asked for."""
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
    """Advice that makes the given learning rate count; empty where relative_step was asked for and no rate."""
    said = o.said(*RATES)
    if asks_for_automatic(o):
        return "" if o.argument("relative_step") else 'Set it explicitly: --optimizer_args "relative_step=True".'
    if not o.argument("relative_step"):
        return to_manual(o)
    return "Leave learning_rate, unet_lr and text_encoder_lr out, or set relative_step=False." if said else ""


def effect_of_ignored_rate(o: Outcome) -> Literal["overrides", "warns"]:
    """The effect of a learning rate that is not used: only a warning where the automatic rate was asked for."""
    return "warns" if asks_for_automatic(o) or (o.argument("relative_step") and not o.said(*RATES)) else "overrides"


def true_by_shape(o: Outcome) -> Values | None:
    """The first flag among the optimizer's arguments that is a tuple or a text."""
    parts = o.optimizer_args if isinstance(o.optimizer_args, dict) else {}
    slips = (f"{name}={quoted(value)}" for name, value in parts.items() if isinstance(value, (tuple, str)) and name in FLAGS)
    return next(({"argument": slip} for slip in slips), None)


def without_commas(o: Outcome) -> Values:
    """optimizer_args without the commas at their ends (`relative_step=False,`); empty where there are none."""
    given = list(o["optimizer_args"] or ())
    texts = [text.rstrip(",") if isinstance(text, str) else text for text in given]
    return {"optimizer_args": texts} if texts != given else {}


# learning rates and the optimizer's package


def one_rate(value: float) -> Values:
    """Settings with the same learning rate for every part."""
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


def is_unfit(o: Outcome) -> Values | None:
    """An optimizer of torch.optim whose constructor refuses the weights that the script trains, and the reason."""
    if o.optimizer == "LBFGS" and o.in_groups and len(o.groups) > 1:
        return {"optimizer": "LBFGS", "why": "It does not accept groups of weights, and the script passes several."}
    whole = o.script not in (*NETWORK, *TEXTUAL_INVERSION)
    convolutions = o.script == "train_network.py" and not o["v2"] and o["network_module"] in (None, "networks.lora")
    if o.optimizer == "Muon" and (whole or convolutions):
        return {"optimizer": "Muon", "why": "It accepts only matrices, and the model also has vectors or convolutions."}
    return None


def cannot_step(o: Outcome) -> Values | None:
    """An optimizer of torch.optim whose first step raises here, and the reason."""
    if o.optimizer == "SparseAdam":
        return {"optimizer": "SparseAdam", "error": "RuntimeError", "why": "It needs sparse gradients, and those of a model are dense."}
    return values_if(o.optimizer == "LBFGS", optimizer="LBFGS", error="TypeError", why="It needs a function that computes the loss again.")


def zero_norm(o: Outcome) -> str:
    """The reason for which a norm is 0 in the first step of DAdaptSGD; empty where it is not."""
    if warms_up(o) and o.warmup_steps > 0:
        return "A warmup begins with a learning rate of 0, and the norm leaves out weights with that rate."
    return "Its first steps are about 1e-6 long, which fp16 takes for 0." if o.has("full_fp16") else ""


def several_rates(o: Outcome) -> Values | None:
    """The causes of several learning rates, where the optimizer refuses them."""
    if not o.wants_equal_rates:
        return None
    rates = [rate for rate in o.groups.values() if rate != 0]
    endless = math.inf in rates[1:] and warms_up(o) and o.warmup_steps > 0  # times 0 it is NaN, which is never the same
    if endless or any(rate is not rates[0] and rate != rates[0] for rate in rates):
        return {"optimizer": o.optimizer, "cause": ", ".join(f"{name}: {quoted(rate)}" for name, rate in o.groups.items())}
    texts = o["network_args"] if isinstance(o["network_args"], (list, tuple)) else ()
    given = dict(text.split("=", 1) for text in texts if "=" in str(text))
    if rates and o["network_module"] == "networks.lora" and has_block_rates(given, "text encoder" in o.groups):
        return {"optimizer": o.optimizer, "cause": "weights of blocks such as down_lr_weight give each block its own"}
    if o.script in NETWORK or o["network_module"] not in (None, *LORA_PLUS):
        return None
    ratios = [o.loraplus(part) for part in ("U-Net", "text encoder")]
    return values_if(any(ratio not in (None, 1) for ratio in ratios), optimizer=o.optimizer, cause="LoRA+ gives lora_up another one")


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


def equal_rates(o: Outcome) -> Values:
    """Settings with one learning rate of 1 for all, and no LoRA+."""
    texts = o["network_args"] if isinstance(o["network_args"], (list, tuple)) else []
    kept = [text for text in texts if not re.match(r"loraplus_|(down|mid|up)_lr_weight=", str(text))]
    return {**one_rate(1.0), **({"network_args": kept or None} if len(kept) < len(texts) else {})}


def nothing_to_train(o: Outcome) -> Values | None:
    """The setting that leaves no weights to train, and one that does not."""
    rank = o.is_rank_0
    cause, fix = ("network_dim=0", "--network_dim=16") if rank else ("a learning rate of 0", "--learning_rate=1e-4")
    return values_if(rank or not o.groups, cause=cause, fix=fix)


def something_to_train(o: Outcome) -> Values:
    """Settings that leave weights to train."""
    return {"network_dim": None} if o.is_rank_0 else one_rate(1e-4)


# names and values that are not accepted


def malformed(parts: dict[str, object] | Malformed) -> Values | None:
    """The fault of `key=value` texts that cannot be taken apart."""
    if isinstance(parts, dict):
        return None
    return {"text": quoted(parts.text), "error": parts.error, "why": str(parts)}


def well_formed(o: Outcome, name: str, parts: Malformed) -> Values:
    """The setting with its texts mended, where they can be."""
    texts = mended(o[name], parts)
    return {name: texts} if texts else {}


def refused(refusal: Refusal | None) -> Values | None:
    """The parts of a refusal."""
    return {"what": refusal[0], "error": refusal[1]} if refusal else None


def refused_arguments(o: Outcome, refusal: Refusal | None) -> Values | None:
    """The refusal by an optimizer, and whether the commas between its arguments are to blame."""
    commas = refusal and bool(without_commas(o))
    comma = " The comma at the end of an argument makes its value a tuple." if commas else ""
    fix = "Separate the arguments by blanks, without commas." if commas else "See the optimizer's own arguments."
    return values_if(refusal, **(refused(refusal) or {}), comma=comma, fix=fix)


def known_arguments(o: Outcome) -> list[object] | None:
    """The texts of optimizer_args that the optimizer takes; None where it takes none."""
    known = o.row["keywords"] if o.row else ()
    return [text for text in o["optimizer_args"] or () if text.partition("=")[0] in known] or None


def unknown_optimizer(o: Outcome) -> Values | None:
    """The nearest optimizer to one that torch.optim does not have, and the exception."""
    if o.row is not None or "." in o.wanted or o.wanted.lower().startswith("dadapt"):
        return None
    facts = arguments.facts()["optimizers"]
    wanted = o.wanted.lower()
    # by another capital, at the end of a dotted path, or nearly so
    near = next((name for name in facts["classes"] if wanted in (name.lower(), name.lower().rpartition(".")[2])), None)
    near = near or arguments.closest(wanted, facts["classes"]) or "AdamW"
    return {"wanted": o.wanted, "near": near, "error": _lookup_error(o.wanted, facts)}


def unknown_scheduler(o: Outcome) -> Values | None:
    """The nearest schedule to an unknown lr_scheduler."""
    names, name = arguments.facts()["schedulers"]["names"], o.scheduler
    if o.is_schedule_free or o.relative_step or o["lr_scheduler_type"] or name in names or name.startswith("adafactor"):
        return None
    return {"scheduler": name, "near": arguments.closest(name, names) or "constant_with_warmup"}


def unknown_scheduler_class(o: Outcome) -> Values | None:
    """The nearest class to an unknown lr_scheduler_type, and the exception."""
    kind, facts = str(o["lr_scheduler_type"] or ""), arguments.facts()["schedulers"]
    if o.is_schedule_free or not kind or "." in kind or kind in facts["classes"] or kind == "LRScheduler":
        return None
    near = arguments.closest(kind, facts["classes"]) or "CosineAnnealingLR"
    return {"lr_scheduler_type": o["lr_scheduler_type"], "near": near, "error": _lookup_error(kind, facts)}


def _lookup_error(name: str, facts: dict) -> str:
    """The exception for a name that is no class: the module may have something else of that name."""
    return "TypeError" if name in facts["other_names"] else "AttributeError"


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
    """The warmup that was meant in steps and is taken as a share, because it has a decimal point."""
    value = o["lr_warmup_steps"]
    if not isinstance(value, float) or value < 1 or not math.isfinite(value) or o.is_schedule_free:
        return None
    steps = shown(o)
    return {"lr_warmup_steps": repr(value), "warmup_steps": f"{steps.warmup_steps:,}", "total_steps": f"{steps.total_steps:,}"}


def endless_warmup(o: Outcome) -> Values | None:
    """The lengths of the warmup and the run, where the warmup is as long as the run, or longer."""
    if not warms_up(o) or ratio_slip(o) or not o.warmup_steps >= o.total_steps > 0:
        return None
    return {"warmup_steps": f"{o.warmup_steps:,}", "total_steps": f"{o.total_steps:,}"}


def shortened_warmup(o: Outcome) -> Values | None:
    """The optimizer steps after which a warmup is over, when several processes move the schedule on."""
    steps = o["lr_warmup_steps"]
    if o.processes == 1 or not warms_up(o) or not isinstance(steps, int) or steps <= 0:
        return None
    return {"processes": o.processes, "lr_warmup_steps": steps, "optimizer_steps": math.ceil(steps / o.processes)}


def warmup_as_share(o: Outcome) -> Values:
    """Warmup as a share of the run, which counts for all processes."""
    steps, total = o["lr_warmup_steps"], o.number("max_train_steps")
    return {"lr_warmup_steps": round(steps / total, 6)} if steps < total else {}
