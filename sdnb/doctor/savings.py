"""Savings of memory for the messages about a full GPU: in the order to try, or planned for the run that filled it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..planner import changes
from ..recipe import Recipe
from ..sd_scripts import Finding, Settings, families
from ..system import GIB, MIB, Card, cards, shown

if TYPE_CHECKING:
    from ..planner import Advice

FULL = ("gpu-out-of-memory", "gpu-out-of-memory-in-driver")
"""Messages that are answered."""
LORA = re.compile(r"train_network\.py|networks\.(?:lora|oft|dylora)|lycoris\.kohya|create LoRA|Start training LoRA|LyCORIS", re.IGNORECASE)
FOR_LORA = (
    "In this order: --gradient_checkpointing, --train_batch_size=1, --cache_latents, bf16 or fp16, Adafactor or an 8-bit optimizer, "
    "a lower network_dim, a smaller resolution. Close other programs that use the GPU."
)
CLOSE = "Close other programs that use the GPU (nvidia-smi lists them)."
ONE = "The amount asked for is the size of one tensor, not all that is missing."
PLANNED = ("sdxl_train.py", "sdxl_train_network.py", "train_network.py", "train_db.py", "fine_tune.py")
"""Scripts whose runs the planner knows."""
SIZE = re.compile(r"([\d.]+)\s*([KMGT])")
UNITS = {"K": 1024, "M": MIB, "G": GIB, "T": 1024 * GIB}
SAME_CARD = 0.01
"""How far the memory of a card may lie from the one in an error, as a share, for it to be that card."""


def for_these(settings: Settings, found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Complete the findings about a full GPU with the savings that these very settings leave to try."""
    script, run = settings.script, _run(settings)
    steps = "; ".join(map(_step, changes.topics(run)))
    if not run.is_read:
        why = f"{ONE} {script} trained {run.part}; its other settings are in a file that the doctor has not read."
        fix = f"In this order, whatever that file does not set yet: {steps}. {CLOSE}"
    else:
        batch, size = shown(settings["train_batch_size"]), shown(settings["resolution"] or "the size of the data set's file")
        rank = f" of rank {shown(settings['network_dim'] or 4)}" if run.lora else ""
        why = f"{ONE} {script} trained {run.part}{rank} with batches of {batch} at {size}."
        fix = f"In this order: {steps}. {CLOSE}"
    return tuple(replace(one, why=why, fix=fix) if one.rule in FULL else one for one in found)


def for_log(text: str, found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Complete them for a log without a command: nobody who trains LoRA is told to."""
    if not LORA.search(text):
        return tuple(found)
    return tuple(replace(one, fix=FOR_LORA) if one.rule == FULL[0] else one for one in found)


def planned(settings: Settings, found: Iterable[Finding], *, seconds: float) -> tuple[Finding, ...]:
    """Complete them with the smallest changes that the planner finds for this run and its GPU, as far as it can be planned.

    `seconds`: time after which the search stops. A plan on the way is finished first, so it may take some seconds more.
    """
    found = tuple(found)
    full = next((one for one in found if can_be_planned(settings, one)), None)
    if full is None:
        return found
    try:
        fix = _in_words(_advice(settings, full, seconds))
    except (ImportError, ValueError, NotImplementedError):  # no torch, a network that is not planned, or no bf16 on such a card
        return found
    return tuple(replace(one, fix=f"{fix} {CLOSE}") if one is full else one for one in found)


def can_be_planned(settings: Settings, finding: Finding) -> bool:
    """Whether a finding is about a full GPU of known size, and the settings say all that a plan needs."""
    sized = finding.rule in FULL and "total" in finding.values
    written = settings.form != "log" and not settings.unknown and not settings["dataset_config"]
    return bool(sized and written and settings.script in PLANNED and settings["resolution"])


def _advice(settings: Settings, full: Finding, seconds: float) -> Advice:
    """The planner's advice for a run that filled its GPU."""
    from ..planner import plan

    recipe = Recipe.from_settings(settings)
    model = "sdxl" if families.of_script(settings.script) == "SDXL" else "sd21" if settings["v2"] else "sd15"
    card = _card(full, needs_bf16=recipe.mixed_precision == "bf16" or recipe.full_bf16)
    return plan(model, recipe, gpu=card, trainer="sd-scripts").advice(seconds=seconds, is_full=True)


def _card(full: Finding, *, needs_bf16: bool) -> Card:
    """The GPU in an error: its memory less what other programs used of it, where the error says that."""
    total, free, own = (_bytes(full.values.get(name)) for name in ("total", "free", "own"))
    known = [card for card in cards.CARDS.values() if abs(card.total_bytes - total) < SAME_CARD * total]
    capability = min((card.capability for card in known), default=(8, 0))
    others = max(0, total - free - own) if own else 0
    return Card(str(full.values["total"]), total - others, max(capability, (8, 0)) if needs_bf16 else capability)


def _bytes(text: object) -> int:
    """Bytes of a size as torch writes it, such as `7.76 GiB`; 0 for none."""
    match = SIZE.search(str(text or ""))
    return int(float(match[1]) * UNITS[match[2]]) if match else 0


def _in_words(advice: Advice) -> str:
    """The advice as a sentence."""
    room = f"{advice.plan.gpu.usable_bytes / GIB:.2f} GiB" if advice.plan.gpu else ""
    ways = [(one.flags, f"{one.plan.reserved_bytes / GIB:.2f} GiB", one.alters) for one in advice.variants]
    if len(ways) == 2:
        (first, need, alters), (second, other_need, other_alters) = ways
        return (
            f"Planned for this GPU: {first} needs {need} of {room} and alters {alters}; or {second} needs {other_need} and alters "
            f"{other_alters}."
        )
    if ways:
        return f"Planned for this GPU: {ways[0][0]} needs {ways[0][1]} of {room} and alters {ways[0][2]}."
    if advice.closest is None:
        return f"Planned for this GPU: no setting is left that would save memory in {room}; take a smaller model."
    need = f"{advice.closest.plan.reserved_bytes / GIB:.2f} GiB"
    return f"Planned for this GPU: not even {advice.closest.flags} fits, which needs {need} of {room}."


def _run(settings: Settings) -> changes.Run:
    """What the list of changes has to know of a run."""
    script = settings.script
    lora = "network" in script or bool(settings["network_module"])
    part = "an embedding" if "textual" in script else "a ControlNet" if "control" in script else "LoRA" if lora else "the whole model"
    by_script = script == "train_db.py" and settings["stop_text_encoder_training"] in (None, 0)
    trains_encoders = not settings["network_train_unet_only"] if lora else bool(settings["train_text_encoder"]) or by_script
    return changes.Run(settings, part=part, trains_encoders=part in ("LoRA", "the whole model") and trains_encoders)


def _step(options: tuple[changes.Change, ...]) -> str:
    """The option of a topic that is named: the first, but the smallest batch whose gradients are summed."""
    summed = [option for option in options if "gradient_accumulation_steps" in option.settings]
    return (summed or options[:1])[-1].text
