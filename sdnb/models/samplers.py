"""Samplers, by sd-scripts' names: diffusers' schedulers with the noise levels of Stable Diffusion."""

from __future__ import annotations

from typing import Any

from ..system import is_missing

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    # diffusers refuses dpmsolver with its own default, so sd-scripts stops where it would draw with it
    "dpmsolver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {}),
}
"""Name -> class and arguments of its own."""
WITH_K = ("lms", "euler", "euler_a", "dpm_2", "dpm_2_a")
"""Names that may also be written with `k_` before them."""
NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sampler(name: str, prediction_type: str) -> Any:
    """The scheduler of this name; DDIM for a name that is not known, as in sd-scripts, and Euler for lms where scipy is missing.

    `prediction_type`: what the model predicts, `epsilon` or `v_prediction`.
    """
    import diffusers

    plain = name.removeprefix("k_")
    plain = plain if plain in WITH_K else name
    cls, arguments = SAMPLERS.get("euler" if lacks_scipy(plain) else plain, SAMPLERS["ddim"])
    return getattr(diffusers, cls)(**NOISE, **arguments, prediction_type=prediction_type)


def lacks_scipy(name: str) -> bool:
    """Whether a sampler needs scipy, which no other does, and it is not installed."""
    return name in ("lms", "k_lms") and is_missing("scipy")
