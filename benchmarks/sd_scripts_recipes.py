"""Recipes run one after another by sd-scripts' own scripts: `trains`, or the kind of error and the function that it came from.

    python -m benchmarks.sd_scripts_recipes FOLDER CHECKOUT

Runs in an environment with sd-scripts' own requirements; benchmarks.strangers_in_sd_scripts calls it. FOLDER holds jobs.json, a script and
settings each, and widths.json, the constants of each family's narrow model. sd-scripts is loaded once, and a fork runs each recipe, from
the parser of its script to the second step and the file that it saves. An outcome a line comes out on standard output.

All is sd-scripts' own but for this, since there is no GPU: the Accelerator gets no mixed precision and no compiler, and weights are loaded
in fp32; xformers' attention is PyTorch's; an 8-bit optimizer steps plainly; fp8 weights are not made. Sample pictures are not drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path
from typing import Any

from .sd_scripts import Checkout
from .sd_scripts_steps import narrow

LONGEST = 120
"""Seconds that one recipe may take."""


def on_a_cpu(checkout) -> None:
    """Replace what needs a GPU."""
    import torch
    from diffusers.models.attention_processor import Attention
    from diffusers.models.modeling_utils import ModelMixin

    train_util = checkout.train_util
    made, dtypes = train_util.Accelerator, train_util.prepare_dtype

    def accelerator(*, mixed_precision=None, dynamo_backend=None, **given):
        return made(mixed_precision="no", **given)

    def attention(q, k, v, attn_bias=None, p=0.0, scale=None):
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    train_util.Accelerator = accelerator
    train_util.prepare_dtype = lambda args: (torch.float32, dtypes(args)[1])
    sdxl: Any = importlib.import_module("library.sdxl_train_util")
    matched = sdxl.match_mixed_precision
    sdxl.match_mixed_precision = lambda args, dtype: matched(args, dtypes(args)[0]) and dtype
    train_util.patch_accelerator_for_fp16_training = lambda _: None
    train_util.sample_images_common = lambda *_, **__: None
    xformers: Any = types.ModuleType("xformers")
    attentions: Any = types.ModuleType("xformers.ops")
    xformers.ops = attentions
    attentions.memory_efficient_attention = attention
    sys.modules |= {"xformers": xformers, "xformers.ops": xformers.ops}
    for kind in (ModelMixin, Attention):
        kind.set_use_memory_efficient_attention_xformers = lambda *_, **__: None
    if not callable(train_util.IMAGE_TRANSFORMS):
        train_util.IMAGE_TRANSFORMS = lambda image: torch.from_numpy(image.copy()).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)


def eight_bits() -> None:
    """Let bitsandbytes' optimizers step by the plain gradient: their own kernels are a GPU's."""
    import torch

    bits: Any = importlib.import_module("bitsandbytes.optim.optimizer")

    @torch.no_grad()
    def update_step(optimizer, group, weight, group_number, number):
        weight.sub_(weight.grad, alpha=float(group["lr"]))

    bits.Optimizer2State.update_step = bits.Optimizer1State.update_step = update_step


def run(checkout, job: dict, folder: Path, widths: dict) -> str:
    """Run a recipe; returns `trains`, or where it stopped."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = []
    register_optimizer_step_post_hook(lambda *_: steps.append(1))
    fused: Any = importlib.import_module("library.adafactor_fused")
    own, first = fused.adafactor_step_param, []

    def step_param(optimizer, parameter, group) -> None:  # a fused backward steps each parameter by itself
        first[:] = first or [parameter]
        steps.extend([1] * (parameter is first[0]))
        own(optimizer, parameter, group)

    fused.adafactor_step_param = step_param
    try:
        narrow(checkout, widths[job["family"]])
        script = checkout.module(job["script"])
        parser = checkout.parser(job["script"])
        words = job.get("words") or ["--config_file", str(as_toml(job["given"], folder))]
        sys.argv = [f"{job['script']}.py", *words]
        try:
            args = parser.parse_args(words)
        except SystemExit as left:
            return f"its parser leaves with status {left.code}"
        checkout.train_util.verify_command_line_training_args(args)
        args = checkout.train_util.read_config_from_file(args, parser)
        if getattr(args, "fp8_base", False):
            args.fp8_base = args.fp8_base_unet = False
        kinds = {"train_network": "NetworkTrainer", "sdxl_train_network": "SdxlNetworkTrainer"}
        train = getattr(script, kinds[job["script"]])().train if job["script"] in kinds else script.train
        train(args)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return where(error, checkout.folder)
    return "trains" if len(steps) >= 2 else f"it trained {len(steps)} steps"


def where(error: BaseException, folder: Path) -> str:
    """The kind of an error and the last function of sd-scripts that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(folder)]
    kind = f"ModuleNotFoundError {error.name}" if isinstance(error, ModuleNotFoundError) else type(error).__name__
    return f"{kind} in {frames[-1].name}" if frames else kind


def as_toml(given: dict, folder: Path) -> Path:
    """A settings file."""
    import toml

    path = folder / "recipe.toml"
    path.write_text(toml.dumps(given), encoding="utf-8")
    return path


def forked(checkout, job: dict, folder: Path, widths: dict) -> str:
    """The outcome of a recipe that runs in a fork of this process."""
    with tempfile.TemporaryDirectory() as own:
        told, log = Path(own) / "outcome", folder / f"{job['file']}.log"
        child = os.fork()
        if child == 0:
            signal.alarm(LONGEST)
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                with contextlib.suppress(BaseException):
                    told.write_text(run(checkout, job, Path(own), widths))
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(0)
        os.waitpid(child, 0)
        for cached in folder.rglob("*.npz"):
            cached.unlink()
        return told.read_text() if told.exists() else f"longer than {LONGEST} s"


def main() -> None:
    """Run the jobs of a folder."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkout", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkout, folder = Checkout(options.checkout.resolve()), options.folder
    on_a_cpu(checkout)
    eight_bits()
    jobs, widths = json.loads((folder / "jobs.json").read_text()), json.loads((folder / "widths.json").read_text())
    for script in sorted({one["script"] for one in jobs}):
        checkout.parser(script)
    importlib.import_module("networks.lora")
    for one in jobs:
        began = time.perf_counter()
        outcome = forked(checkout, one, folder, widths)
        print(json.dumps({"file": one["file"], "outcome": outcome, "seconds": round(time.perf_counter() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
