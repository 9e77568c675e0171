"""Savings of memory that some settings leave unused, in the order to try, for the messages about a full GPU."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..sd_scripts import SDXL, Finding, Settings, arguments
from ..system import shown

FULL = ("gpu-out-of-memory", "gpu-out-of-memory-in-driver")
"""Messages that are answered."""
FUSED = ("sdxl_train.py", "flux_train.py", "sd3_train.py", "lumina_train.py")
"""Scripts in which a fused backward pass saves something."""
LORA = re.compile(r"train_network\.py|networks\.(?:lora|oft|dylora)|lycoris\.kohya|create LoRA|Start training LoRA|LyCORIS", re.IGNORECASE)
FOR_LORA = (
    "In this order: --gradient_checkpointing, --train_batch_size=1, --cache_latents, bf16 or fp16, Adafactor or an 8-bit optimizer, "
    "a lower network_dim, a smaller resolution. Close other programs that use the GPU."
)
CLOSE = "Close other programs that use the GPU (nvidia-smi lists them)."


ONE = "The amount asked for is one tensor, not all that is missing."


def for_these(settings: Settings, found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Complete the findings about a full GPU with the savings that these very settings leave to try."""
    script = settings.script
    lora = "network" in script or bool(settings["network_module"])
    part = "an embedding" if "textual" in script else "a ControlNet" if "control" in script else "LoRA" if lora else "the whole model"
    steps = "; ".join(_steps(settings, part))
    if "*" in settings.unknown:
        why = f"{ONE} {script} trained {part}; its other settings stand in a file that is not looked at."
        fix = f"In this order, whatever that file does not set yet: {steps}. {CLOSE}"
    else:
        batch, size = shown(settings["train_batch_size"]), shown(settings["resolution"] or "the size of the data set's file")
        rank = f" of rank {shown(settings['network_dim'] or 4)}" if part == "LoRA" else ""
        why = f"{ONE} {script} trained {part}{rank} with batches of {batch} at {size}."
        fix = f"In this order: {steps}. {CLOSE}"
    return tuple(replace(one, why=why, fix=fix) if one.rule in FULL else one for one in found)


def for_log(text: str, found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Complete them for a log without a command: nobody who trains LoRA is told to."""
    if not LORA.search(text):
        return tuple(found)
    return tuple(replace(one, fix=FOR_LORA) if one.rule == FULL[0] else one for one in found)


def _steps(settings: Settings, part: str) -> Iterator[str]:
    known, lora, whole = arguments.arguments(settings.script), part == "LoRA", part == "the whole model"

    def has(name: str) -> bool:
        return bool(settings[name]) and settings[name] != "no"

    def lacks(name: str) -> bool:
        return name in known and not has(name)

    optimizer = str(settings["optimizer_type"] or "AdamW").lower()
    eight = "8bit" in optimizer or has("use_8bit_adam")
    large = settings.script in SDXL or settings.script.startswith(("flux", "sd3", "lumina", "hunyuan", "anima"))
    if lacks("gradient_checkpointing"):
        yield "--gradient_checkpointing"
    if "*" in settings.unknown:
        yield "--train_batch_size=1"
    elif (batch := settings["train_batch_size"]) not in (1, None):
        yield f"--train_batch_size=1 --gradient_accumulation_steps={shown(batch, 12)}, as many pictures for each update"
    if lacks("cache_latents") and not has("cache_latents_to_disk"):
        yield "--cache_latents"
    if lora and large and lacks("cache_text_encoder_outputs"):
        yield "--network_train_unet_only --cache_text_encoder_outputs"
    if not has("mixed_precision"):
        yield "--mixed_precision=bf16, or fp16 on an older card"
    if not any(map(has, ("xformers", "sdpa", "mem_eff_attn"))) and "sdpa" in known:
        yield "--sdpa"
    if lora and large and lacks("fp8_base"):
        yield "--fp8_base"
    if whole and not has("full_bf16") and "full_bf16" in known:
        yield "--full_bf16 with --mixed_precision=bf16"
    if whole and settings.script in FUSED and lacks("fused_backward_pass"):
        yield "--optimizer_type=Adafactor --fused_backward_pass"
    elif whole and optimizer != "adafactor" and not eight:
        yield "--optimizer_type=Adafactor or AdamW8bit"
    if lacks("blocks_to_swap"):
        yield "--blocks_to_swap=18"
    if lora and "*" in settings.unknown:
        yield "a lower network_dim"
    elif lora and isinstance(rank := settings["network_dim"], int) and rank > 16:
        yield f"--network_dim={16 if rank <= 64 else 32} instead of {rank}"
    yield "a smaller --resolution"
    if whole:
        yield f"LoRA instead of all weights ({settings.script.replace('train_db', 'train').replace('.py', '_network.py')})"
