"""What attention without --sdpa, --xformers or --mem_eff_attn costs, planned ahead: a diagnosis has no time to plan.

Each row was planned by `plan(…, trainer="sd-scripts")` for one picture of the size that the model was made for, in bf16, with AdamW8bit and
cached latents; a LoRA of rank 16 beside the U-Net alone, SDXL's with cached captions. `tests/doctor/test_attention.py` plans them again.
"""

from __future__ import annotations

from ..sd_scripts import Outcome, families
from .conditions import shown
from .savings import PLANNED

SIDES = {"sd15": 512, "sd21": 768, "sdxl": 1024}
"""Pixels of the planned pictures."""
NAMES = {"sd15": "SD 1.5", "sd21": "SD 2.1", "sdxl": "SDXL"}
RESERVED = {
    ("sd15", True, True): (4.0, 2.2),
    ("sd15", True, False): (8.1, 3.3),
    ("sd15", False, True): (10.0, 8.7),
    ("sd15", False, False): (13.2, 9.2),
    ("sd21", True, True): (8.8, 2.9),
    ("sd21", True, False): (22.0, 5.2),
    ("sd21", False, True): (15.3, 9.3),
    ("sd21", False, False): (27.6, 10.8),
    ("sdxl", True, True): (8.7, 6.5),
    ("sdxl", True, False): (31.5, 13.7),
    ("sdxl", False, True): (28.6, 27.2),
    ("sdxl", False, False): (48.1, 31.8),
}
"""GiB reserved with whole matrices and with --sdpa, by model, whether a LoRA is trained, and whether blocks are recomputed."""


def cost(outcome: Outcome) -> str:
    """What whole matrices cost for such a model and method, in words; empty for a run that was not planned."""
    o = shown(outcome)
    if o.script not in PLANNED:
        return ""
    model = "sdxl" if families.of_script(o.script) == "SDXL" else "sd21" if o["v2"] else "sd15"
    lora = "network" in o.script
    whole, fused = RESERVED[model, lora, bool(o["gradient_checkpointing"])]
    return (
        f": planned for {'LoRA' if lora else 'all weights'} of {NAMES[model]}, {whole} GiB instead of {fused} for one picture of "
        f"{SIDES[model]} pixels, and more for each further one"
    )
