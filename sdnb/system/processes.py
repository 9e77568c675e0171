"""Processes of `accelerate launch`: their number, the first one, and the configurations that a run refuses.

Several processes, on one machine or on several, share each batch and average their gradients. The recipe's `mixed_precision` and
`gradient_accumulation_steps` override the ones in accelerate's configuration.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import devices

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

    from ..models import Model
    from ..recipe import Recipe

SHARDED = (
    "leaves each process with pieces of the weights, from which no save, LoRA file or drawn picture is made here: launch with --multi_gpu. "
    "What needs less memory on each GPU is a LoRA, gradient_checkpointing, fused_backward_pass with Adafactor, or an 8-bit optimizer"
)
REFUSED = {
    "ACCELERATE_USE_FSDP": f"FSDP {SHARDED}",
    "ACCELERATE_USE_DEEPSPEED": f"DeepSpeed {SHARDED}",
    "ACCELERATE_USE_MEGATRON_LM": f"Megatron-LM {SHARDED}",
    "ACCELERATE_USE_PARALLELISM_CONFIG": f"accelerate's parallelism_config {SHARDED}",
    "ACCELERATE_DYNAMO_BACKEND": "torch.compile is a setting of the recipe, as in sd-scripts, which passes over accelerate's: launch with "
    "--dynamo_backend no, and say torch_compile and dynamo_backend in the recipe",
}
"""Environment variables that accelerate sets for configurations that a run refuses, with the reasons."""


def processes() -> int:
    """Number of processes, from the environment, also before accelerate starts."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this is the first process, which writes files and prints."""
    return int(os.environ.get("RANK", 0)) == 0


def check() -> None:
    """Raise `ValueError`, with the way out, for a configuration of accelerate that a run refuses."""
    for name, reason in REFUSED.items():
        if os.environ.get(name, "no").lower() not in ("no", "false", "0", ""):
            raise ValueError(reason)


def accelerator(
    sd: Model, recipe: Recipe, *, trains_encoders: bool = False, log_with: str | None = None, logging_dir: Path | None = None
) -> Accelerator:
    """Make the `Accelerator` for a recipe. `trains_encoders`: whether text encoders are trained too.

    `log_with`, `logging_dir`: its trackers, and the folder for what they write.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

    precision = devices.computes_in(recipe.mixed_precision, sd.device)
    leaves_out = any(text.startswith("module_dropout=") for text in recipe.network_args)
    if processes() == 1 and sd.device.index is not None:
        torch.cuda.set_device(sd.device)  # accelerate takes the current device
    # accelerate keeps the first precision and device of a process; in a notebook a later run may have others
    state, partial = AcceleratorState._shared_state, PartialState._shared_state  # a notebook may have made the second alone
    other_precision = bool(state) and state.get("_mixed_precision") != precision
    other_device = bool(partial) and partial["device"].type != sd.device.type
    if other_precision or other_device:
        AcceleratorState._reset_state(reset_partial_state=partial.get("num_processes", 1) == 1)
    return Accelerator(
        mixed_precision=precision,
        # accelerate's own configuration would override a plain number
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=recipe.gradient_accumulation_steps),
        cpu=sd.device.type == "cpu",
        # with clip_skip a text encoder's last layer is unused, with module_dropout some adapters
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=trains_encoders or leaves_out)],
        step_scheduler_with_optimizer=False,
        log_with=log_with,
        project_dir=logging_dir,
    )
