"""Conditions of the rules about the model and the network that is trained on it. As in `conditions`, a dict or None is a rule's `when`."""

from __future__ import annotations

from ..sd_scripts import Outcome, arguments, families, versions
from ..system import quoted
from .conditions import Values, shown, values_if

SWAPPERS = tuple(
    "flux_train.py flux_train_network.py flux_train_control_net.py sd3_train_network.py anima_train.py anima_train_network.py".split()
)
"""The scripts that refuse blocks_to_swap and cpu_offload_checkpointing together."""
MANY_TEXT_RATES = ("networks.lora_flux", "networks.lora_sd3", "networks.lora_lumina", "networks.lora_anima")
"""Modules with a learning rate for each text encoder."""
ATTENTION = ("sdpa", "xformers", "mem_eff_attn")


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
    fix, is_set = (f"--v2{v}", "is not set") if generation == 2 else ("Leave --v2 out.", "is set")
    return {"model": name, "generation": generation, "is_set": is_set, "fix": fix}


def unused_text_rates(o: Outcome) -> Values | None:
    """Several rates for text encoders, where the network has one for all."""
    rates = o["text_encoder_lr"]
    if not isinstance(rates, (list, tuple)) or len(set(map(repr, rates))) < 2 or not own_network(o) or o.has("network_train_unet_only"):
        return None
    if o["network_module"] in MANY_TEXT_RATES or not all(isinstance(rate, (int, float)) for rate in rates):
        return None
    return {"rates": " ".join(map(str, rates)), "first": rates[0], "module": o["network_module"] or "The network"}


def own_network(o: Outcome) -> bool:
    """Whether the network is one of sd-scripts' own."""
    return str(o["network_module"] or "networks.").startswith("networks.")


def missing_network(o: Outcome) -> Values | None:
    """The module that the family's LoRA is in, where none was given."""
    missing = is_whole(o) and "network_module" in arguments.arguments(o.script) and not o["network_module"]
    missing = missing and o.script.endswith("train_network.py")
    return values_if(missing, script=o.script, module=families.NETWORKS[families.of_script(o.script)])


def known_modules(o: Outcome) -> list[str]:
    """The network modules of a version; of all versions where it is not known."""
    names, version = {*families.MODULES, *versions.table()["modules"]}, o.settings.version
    return sorted(name for name in names if not version or not versions.is_older(version, versions.module_since(name)))


def unknown_network(o: Outcome) -> Values | None:
    """The nearest module of sd-scripts to one that it does not have."""
    name = o["network_module"]
    if not isinstance(name, str) or "network_module" not in arguments.arguments(o.script) or name in known_modules(o):
        return None
    if not name.startswith("networks.") and f"networks.{name}" not in families.MODULES:
        return None
    own = families.NETWORKS[families.of_script(o.script)]
    fitting = [module for module in families.MODULES if module == own or module not in families.NETWORKS.values()]
    near = f"networks.{name}" if f"networks.{name}" in families.MODULES else arguments.closest(name, fitting) or own
    return {"module": name, "near": near, "version": o.settings.version or versions.recorded()}


def malformed_network_args(o: Outcome) -> Values | None:
    """The first of network_args without a =; of a text sd-scripts takes each letter for one."""
    texts = o["network_args"] if "network_args" in arguments.arguments(o.script) else None
    if isinstance(texts, str):
        return {"text": quoted(texts), "error": "ValueError", "why": "it is one text, which is read letter by letter"} if texts else None
    if not isinstance(texts, (list, tuple)):
        return None if texts in (None, False) else {"text": quoted(texts), "error": "TypeError", "why": "it is not a list"}
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


def launched_precision(o: Outcome) -> str:
    """The mixed_precision that `accelerate launch` was given."""
    return o.settings.launch.get("mixed_precision", "no")
