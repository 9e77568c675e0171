"""Noise levels and loss weights of kohya-ss/sd-scripts with `zero_terminal_snr`, recorded by calling its own functions.

    python -m benchmarks.record_noise --sd-scripts FOLDER --commit HASH

Runs in an environment with sd-scripts' requirements. The figures go to `tests/recorded/noise_of_sd_scripts.json`.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from .sd_scripts import Checkout

FIGURES = Path(__file__).resolve().parent.parent / "tests" / "recorded" / "noise_of_sd_scripts.json"
LEVELS = (0, 1, 10, 100, 250, 500, 750, 900, 990, 998, 999)
GAMMA, V_LIKE = 5.0, 0.3


def main() -> None:
    """Record, and say where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sd-scripts", type=Path, required=True, help="a checkout of sd-scripts")
    parser.add_argument("--commit", required=True, help="its commit")
    arguments = parser.parse_args()
    Checkout(arguments.sd_scripts)
    figures = {"source": {"repository": "kohya-ss/sd-scripts", "commit": arguments.commit, "made by": "python -m benchmarks.record_noise"}}
    figures |= {"levels": LEVELS, "gamma": GAMMA, "v_like": V_LIKE} | {kind: weights(kind == "zero") for kind in ("plain", "zero")}
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(FIGURES)


def weights(zero: bool) -> dict[str, list[float | str]]:
    """alphas_cumprod and the weight of a loss of 1 at each of `LEVELS`, by setting; an infinite or missing number as text."""
    import torch
    from diffusers import DDPMScheduler

    theirs = importlib.import_module("library.custom_train_functions")
    noise = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False
    )  # train_network.py:248
    theirs.prepare_scheduler_for_custom_training(noise, "cpu")
    if zero:
        theirs.fix_noise_scheduler_betas_for_zero_terminal_snr(noise)
    t, ones = torch.tensor(LEVELS), torch.ones(len(LEVELS))
    found = {
        "alphas_cumprod": noise.alphas_cumprod[t],
        "min_snr": theirs.apply_snr_weight(ones, t, noise, GAMMA, False),
        "min_snr_v": theirs.apply_snr_weight(ones, t, noise, GAMMA, True),
        "like_noise": theirs.scale_v_prediction_loss_like_noise_prediction(ones, t, noise),
        "v_like": theirs.add_v_prediction_like_loss(ones, t, noise, V_LIKE),
        "debiased": theirs.apply_debiased_estimation(ones, t, noise, False),
        "debiased_v": theirs.apply_debiased_estimation(ones, t, noise, True),
    }
    return {name: [value if abs(value) < 1e300 else str(value) for value in tensor.tolist()] for name, tensor in found.items()}


if __name__ == "__main__":
    main()
