"""What sd-scripts makes of its schedules' settings, how it divides parameters for `fused_optimizer_groups`, and what it calls their rates.

    python -m benchmarks.record_updates CHECKOUT [--commit COMMIT]

Runs in an environment with sd-scripts' own requirements, and writes tests/recorded/updates_of_sd_scripts.json.
"""

from __future__ import annotations

import argparse
import json
import types
from pathlib import Path
from unittest import mock

from .sd_scripts import Checkout
from .sd_scripts_run import Run

FILE = Path(__file__).parents[1] / "tests" / "recorded" / "updates_of_sd_scripts.json"
STEPS = 8
NAMES = (
    "linear cosine cosine_with_restarts polynomial constant constant_with_warmup inverse_sqrt reduce_lr_on_plateau cosine_with_min_lr "
    "cosine_warmup_with_min_lr warmup_stable_decay piecewise_constant"
).split()
PLAIN = {
    "lr_warmup_steps": 0, "lr_decay_steps": 0, "lr_scheduler_num_cycles": 1, "lr_scheduler_power": 1.0, "lr_scheduler_timescale": None,
    "lr_scheduler_min_lr_ratio": None,
}  # fmt: skip
OTHERS = {
    "lr_warmup_steps": (3, 0.25, 8, 12), "lr_decay_steps": (3, 0.25), "lr_scheduler_num_cycles": (3,), "lr_scheduler_power": (2.0,),
    "lr_scheduler_timescale": (5,), "lr_scheduler_min_lr_ratio": (0.1,),
}  # fmt: skip
ARGUMENTS = {"piecewise_constant": ["step_rules='1:3,0.1:6,0.01'"]}
GROUPS = ("--fused_optimizer_groups=3", "--fused_optimizer_groups=5", "--fused_optimizer_groups=100")
RATES = ("", "--train_text_encoder", "--train_text_encoder --learning_rate_te1=1e-6 --learning_rate_te2=1e-6")


def schedules(checkout: Checkout) -> list[list]:
    """Each schedule with plain settings and with one or two others: the rate of each step, or the kind of error."""
    import torch

    rows = []
    for name in NAMES:
        cases = [{}, *({key: value} for key, values in OTHERS.items() for value in values)]
        cases += [{"lr_warmup_steps": 3, "lr_scheduler_min_lr_ratio": 0.1, "lr_decay_steps": 3}]
        for case in cases:
            args = argparse.Namespace(**PLAIN | case, lr_scheduler=name, lr_scheduler_type="", lr_scheduler_args=ARGUMENTS.get(name, []))
            args.max_train_steps, args.optimizer_type = STEPS, "AdamW"
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1e-3)
            found: list[float] | str = []
            try:
                schedule = checkout.train_util.get_scheduler_fix(args, optimizer, 1)
                for _ in range(STEPS):
                    found.append(schedule.get_last_lr()[0])
                    optimizer.step()
                    schedule.step()
            except Exception as error:
                found = type(error).__name__
            rows.append([{"lr_scheduler": name, **case}, found])
    return rows


def divisions(checkout: Checkout) -> list[dict]:
    """The parameters and the rate of each group before and after they are divided."""
    rows = []
    for number in GROUPS:
        for rates in RATES:
            before, after, util = [], [], checkout.train_util
            flags = f"--optimizer_type=AdamW --learning_rate=1e-5 --cache_latents --max_train_steps=4 {rates}".split()
            for more, found in (([], before), ([number], after)):
                made = util.get_optimizer

                def get(args, trainable_params, found=found, made=made):
                    found += [[len(group["params"]), group["lr"]] for group in trainable_params]
                    return made(args, trainable_params)

                with mock.patch.object(util, "get_optimizer", get):
                    Run(checkout.module("sdxl_train"), checkout.parser("sdxl_train").parse_args([*flags, *more])).begin()
            rows.append({"number": int(number.partition("=")[2]), "before": before, "after": after})
    return rows


def names(checkout: Checkout) -> list[dict]:
    """What sdxl_train.py and fine_tune.py call the rates of their groups."""
    rows, module = [], checkout.module("sdxl_train")
    for blocks, encoders in (([1e-5] * 23, 0), ([0.0, 1e-5, *[0.0] * 19, 2e-5, 1e-6], 2), (None, 0), (None, 1), (None, 2)):
        for optimizer_type in ("AdamW", "Prodigy"):
            found = [rate for rate in blocks or [1e-5] if rate] + [1e-6] * encoders
            optimizer = types.SimpleNamespace(param_groups=[{"d": 2.0, "lr": rate} for rate in found])
            schedule, logs = types.SimpleNamespace(get_last_lr=lambda found=found: found, optimizers=[optimizer]), {}
            if blocks:
                module.append_block_lr_to_logs(blocks, logs, schedule, optimizer_type)
            else:
                checkout.train_util.append_lr_to_logs(logs, schedule, optimizer_type)
            rows.append({"block_lr": blocks, "encoders": encoders, "optimizer_type": optimizer_type, "logs": logs})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--commit", help="where the checkout has no .git")
    options = parser.parse_args()
    checkout = Checkout(options.checkout.resolve())
    parts = {
        "commit": checkout.commit(options.commit), "schedules": schedules(checkout), "divisions": divisions(checkout),
        "names": names(checkout),
    }  # fmt: skip
    lines = []
    for name, part in parts.items():
        rows = "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in part) + "\n ]" if isinstance(part, list) else json.dumps(part)
        lines.append(f"{json.dumps(name)}: {rows}")
    FILE.write_text("{\n " + ",\n ".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
