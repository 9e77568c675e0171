"""What sd-scripts' training loop does beside training: which pictures it holds out for validation, and the scalars that it logs.

    python -m benchmarks.record_loop CHECKOUT [--commit COMMIT]

Runs in an environment with sd-scripts' own requirements, and writes tests/recorded/loop_of_sd_scripts.json.
"""

from __future__ import annotations

import argparse
import json
import random
import types
from pathlib import Path

from .sd_scripts import Checkout

FILE = Path(__file__).parents[1] / "tests" / "recorded" / "loop_of_sd_scripts.json"
COUNTS = (1, 2, 3, 5, 8, 20, 33)
SHARES = (0.05, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.9)
SEEDS = (0, 1, 42, 4294967295)
GROUPS = {
    "U-Net alone": (["unet"], True),
    "both": (["textencoder", "unet"], False),
    "U-Net alone, LoRA+": (["unet", "unet plus"], True),
    "two text encoders": (["textencoder", "textencoder", "unet"], False),
    "blocks": (["textencoder", "unet_block0", "unet_block3"], False),
}
"""Parameter groups as networks.lora describes them, and whether the U-Net alone is trained."""
OPTIMIZERS = ("AdamW", "Prodigy", "DAdaptAdam")


def splits(checkout: Checkout) -> list[dict]:
    """Which of so many pictures are trained on, and which are held out."""
    rows = []
    for count in COUNTS:
        for share in SHARES:
            for seed in SEEDS:
                names = list(range(count))
                halves = [checkout.train_util.split_train_val(names, [None] * count, first, share, seed)[0] for first in (True, False)]
                rows.append({"count": count, "share": share, "seed": seed, "trained": halves[0], "held_out": halves[1]})
    return rows


def logs(checkout: Checkout) -> list[dict]:
    """The scalars of a step, for several parameter groups and optimizers."""
    trainer, rows = checkout.module("train_network").NetworkTrainer(), []
    for kind, (descriptions, unet_only) in GROUPS.items():
        for optimizer_type in OPTIMIZERS:
            rates = [random.Random(place).random() for place in range(len(descriptions))]
            groups = [{"d": 2.0, "lr": rate} for rate in rates]
            optimizer = types.SimpleNamespace(param_groups=groups)
            schedule = types.SimpleNamespace(get_last_lr=lambda rates=rates: rates, optimizers=[optimizer])
            args = argparse.Namespace(optimizer_type=optimizer_type, network_train_unet_only=unet_only)
            scalars = trainer.generate_step_logs(args, 0.5, 0.25, schedule, descriptions, optimizer)
            rows.append({"kind": kind, "optimizer_type": optimizer_type, "groups": descriptions, "rates": rates, "scalars": scalars})
    return rows


def averages(checkout: Checkout) -> list[float]:
    """The average after each of the losses 1, 2, 4, … of three epochs of three steps."""
    recorder, found = checkout.train_util.LossRecorder(), []
    for place in range(9):
        recorder.add(epoch=place // 3, step=place % 3, loss=2.0**place)
        found.append(recorder.moving_average)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--commit", help="where the checkout has no .git")
    options = parser.parse_args()
    checkout = Checkout(options.checkout.resolve())
    parts = {"commit": checkout.commit(options.commit), "averages": averages(checkout), "splits": splits(checkout), "logs": logs(checkout)}
    lines = []
    for name, part in parts.items():
        many = isinstance(part, list) and isinstance(part[0], dict)
        lines.append(
            f"{json.dumps(name)}: " + ("[\n" + ",\n".join(f"  {json.dumps(row)}" for row in part) + "\n ]" if many else json.dumps(part))
        )
    FILE.write_text("{\n " + ",\n ".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(parts['splits'])} splits, {len(parts['logs'])} steps of logs: {FILE}")


if __name__ == "__main__":
    main()
