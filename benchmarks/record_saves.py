"""When kohya-ss/sd-scripts saves, deletes and draws, recorded by calling its own functions, and how it reads prompts and makes samplers.

    python -m benchmarks.record_saves --sd-scripts FOLDER [--commit HASH]

Runs in an environment with sd-scripts' requirements, and scipy, which the sampler lms wants. The loops of its training scripts are walked
through without a model: what they would write is an empty file. The facts go to `tests/recorded/saves_of_sd_scripts.json`, where tests
compare ours with them. Nothing of its code is kept.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import math
import random
import tempfile
from pathlib import Path

from .sd_scripts import Checkout, versions

FACTS = Path(__file__).resolve().parent.parent / "tests" / "recorded" / "saves_of_sd_scripts.json"
RUNS = 220
SETTINGS = {
    "save_every_n_epochs": (None, None, 1, 2, 3),
    "save_every_n_steps": (None, None, 1, 2, 3, 5),
    "save_n_epoch_ratio": (None, None, None, 0, -1, 1, 2, 3, 9),
    "save_last_n_epochs": (None, None, 0, 1, 2, -1),
    "save_last_n_steps": (None, None, 0, 1, 3, 6, -1),
    "save_last_n_epochs_state": (None, None, 0, 1, 3),
    "save_last_n_steps_state": (None, None, 0, 1, 4),
    "save_state": (False, True),
    "save_model_as": ("safetensors", "diffusers"),
    "output_name": ("fox", None),
    "sample_every_n_epochs": (None, None, 0, -1, 1, 2),
    "sample_every_n_steps": (None, None, 0, -1, 1, 3),
    "sample_at_first": (False, True),
}
"""Values of each setting, from which runs are drawn; repeated ones come more often."""
SAMPLERS = (
    "ddim ddpm pndm lms euler euler_a heun dpm_2 dpm_2_a dpmsolver dpmsolver++ dpmsingle k_lms k_euler k_euler_a k_dpm_2 k_dpm_2_a "
    "k_heun unipc".split()
)
LINES = (
    "a red fox",
    "a red fox --n blurry, low quality --w 512 --h 768 --d 1 --l 7.5 --s 28",
    "a fox --ss euler_a --d 42",
    "a fox --ss k_dpm_2",
    "a fox --W 640 --H 384 --L 3",
    "a fox --s 0 --w 0",
    "a fox --s 5000",
    "a fox --l 1.2.3 --d 7",
    "a fox --l . --w 64",
    "a fox --g 3.5 --fs 3 --ctr 0.3 --rcfg 1",
    "a fox --ctr many",
    "a fox --cn edges.png",
    "a fox --w x --h 12.5",
    "a fox --w -5 --d -1",
    "a fox --n",
    "a fox --n ",
    "a fox --nothing here --q 3",
    "a fox--w 512",
    "a fox  --w  512",
    "--w 512 --h 512",
    "w 512 is no size",
    "d 7 dwarfs",
    "n a prompt that begins like a flag --n another",
    "S 3 trains --w 128",
    "ss euler",
    "a fox --w 512 --w 640",
    "a fox --w 512px --d 12abc",
    "",
    " --d 3",
    "狐狸 --n 模糊 --w ６４ --h 64",
    "a -- fox --d 3",
    "a fox -- d 3",
)


def main() -> None:
    """Record, and say what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sd-scripts", type=Path, required=True, help="a checkout of sd-scripts")
    parser.add_argument("--commit", help="its commit, where the folder has no .git")
    arguments = parser.parse_args()
    checkout = Checkout(arguments.sd_scripts)
    util = checkout.train_util
    facts = {
        "source": {
            "repository": "kohya-ss/sd-scripts",
            "commit": checkout.commit(arguments.commit),
            "made by": "python -m benchmarks.record_saves",
            "versions": versions(),
            "runs": "settings that are not at their defaults; steps and steps of an epoch; in each step from 0 what was saved, deleted and "
            "drawn (the epoch, or -1 for a step); what is left at the end",
        },
        "runs": [run(util, row) for row in drawn()],
        "starts": starts(arguments.sd_scripts),
        "samplers": {f"{name} {v}": sampler(util, name, v) for name, v in itertools.product(SAMPLERS, (False, True))},
        "prompts": {line: util.line_to_prompt_dict(line) for line in LINES},
    }
    write(facts, FACTS)
    print(f"{len(facts['runs'])} runs, {len(facts['samplers'])} samplers, {len(facts['prompts'])} prompts")


def drawn() -> list[dict]:
    """Settings and lengths of the runs."""
    chance = random.Random(0)
    rows = []
    for _ in range(RUNS):
        row = {name: chance.choice(values) for name, values in SETTINGS.items()}
        row |= {"steps": chance.randint(1, 14), "per_epoch": chance.randint(1, 6)}
        rows.append(row)
    return rows


class Accelerator:
    """As much of accelerate's as saving asks for: a state is an empty folder."""

    def save_state(self, folder: str) -> None:
        """Make the folder."""
        Path(folder).mkdir()


def run(util, row: dict) -> dict:
    """What a run of a training script with these settings saves, deletes and draws."""
    steps, per_epoch = row["steps"], row["per_epoch"]
    with tempfile.TemporaryDirectory() as folder:
        args = argparse.Namespace(**row, output_dir=folder, huggingface_repo_id=None, save_state_to_huggingface=False)
        args.sample_prompts = f"{folder}.txt"
        for name in ("sample_every_n_epochs", "sample_every_n_steps"):  # as verify_training_args has it
            if getattr(args, name) is not None and getattr(args, name) <= 0:
                setattr(args, name, None)
        epochs = -(-steps // per_epoch)
        if args.save_n_epoch_ratio is not None and args.save_n_epoch_ratio > 0:  # inline in each script
            args.save_every_n_epochs = epochs // args.save_n_epoch_ratio or 1
        done, log = 0, [[[], [], samples(util, args, 0, 0)]]
        for epoch in range(epochs):
            for _ in range(per_epoch):
                done += 1
                before, drawn_now = listed(folder), samples(util, args, None, done)
                if args.save_every_n_steps is not None and done % args.save_every_n_steps == 0:
                    saved = save(util, args, False, epoch, epochs, done)
                else:
                    saved = []
                log.append([saved, sorted(before - listed(folder)), drawn_now])
                if done >= steps:
                    break
            before = listed(folder)
            if args.save_every_n_epochs is not None:
                log[-1][0] += save(util, args, True, epoch, epochs, done)
            log[-1][1] += sorted(before - listed(folder))
            log[-1][2] += samples(util, args, epoch + 1, done)
        given = {name: value for name, value in row.items() if value is not None and value is not False}
        return {**given, "log": log, "left": sorted(listed(folder))}


class Log:
    """A logger that keeps nothing."""

    def info(self, *_) -> None:
        """Nothing."""

    warning = info


def starts(folder: Path) -> list[dict]:
    """Where runs begin that do not begin at the beginning: the epoch, and the number of the step, in train_network.py's own statements."""
    tree = ast.parse((folder / "train_network.py").read_text(encoding="utf-8"))
    train = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "train")
    lines = [ast.unparse(node) for node in train.body]
    first = lines.index("initial_step = 0")
    skip = next(place for place, line in enumerate(lines) if line.startswith("if initial_step > 0:") and "skip_epoch" in line)
    body = [*train.body[first : lines.index("global_step = 0") + 1], train.body[skip]]
    code = compile(ast.Module(body, []), "train_network.py", "exec")
    chance, rows = random.Random(0), []
    for _ in range(80):
        row = {"steps": chance.randint(1, 30), "per_epoch": chance.randint(1, 8), "initial_step": chance.choice([None, 0, 1, 3, 7, 12, 20])}
        row |= {"initial_epoch": chance.choice([None, 1, 2, 4]), "skip_until_initial_step": chance.choice([False, True])}
        args = argparse.Namespace(**row, max_train_steps=row["steps"], gradient_accumulation_steps=1, resume=None)
        space = {"args": args, "math": math, "logger": Log(), "steps_from_state": None, "train_dataloader": range(row["per_epoch"])}
        space["accelerator"] = argparse.Namespace(num_processes=1)
        try:
            exec(code, space)
        except AssertionError:
            rows.append({**row, "raises": True})
        else:
            rows.append({**row, "raises": False, "epoch": space["epoch_to_start"], "number": space["global_step"]})
    return rows


def listed(folder: str) -> set[str]:
    """The names in a folder."""
    return {path.name for path in Path(folder).iterdir()}


def save(util, args: argparse.Namespace, at_epoch: bool, epoch: int, epochs: int, done: int) -> list[str]:
    """Save by sd-scripts' own function; returns the names of the models that it wrote."""
    wrote: list[str] = []

    def saver(path: str, *_) -> None:
        wrote.append(Path(path).name)
        Path(path).touch()

    def folder_saver(path: str) -> None:
        wrote.append(Path(path).name)
        Path(path).mkdir()

    single = args.save_model_as == "safetensors"
    util.save_sd_model_on_epoch_end_or_stepwise_common(
        args, at_epoch, Accelerator(), single, True, epoch, epochs, done, saver, folder_saver
    )
    return wrote


def samples(util, args: argparse.Namespace, epoch: int | None, done: int) -> list[int]:
    """The epoch whose samples sd-scripts would draw, or -1 for those of a step, in a list; an empty one where it draws none."""
    asked = []
    true, util.os.path.isfile = util.os.path.isfile, lambda path: asked.append(path)  # falsy: it draws nothing
    try:
        util.sample_images_common(None, None, args, epoch, done, None, None, None, None, None)
    finally:
        util.os.path.isfile = true
    return [-1 if epoch is None else epoch] if asked else []


def sampler(util, name: str, v: bool) -> dict:
    """Class and configuration of a sampler, or the error that making it raises with these versions."""
    try:
        made = util.get_my_scheduler(sample_sampler=name, v_parameterization=v)
    except ValueError as error:
        return {"raises": str(error)}
    config = {key: value for key, value in made.config.items() if not key.startswith("_")}
    return {"class": type(made).__name__, **json.loads(json.dumps(config))}


def write(facts: dict, path: Path) -> None:
    """One fact a line, so that a change of sd-scripts shows as changed lines."""
    parts = [f'"source": {json.dumps(facts["source"])}']
    parts.append('"runs": [\n' + ",\n".join(f" {json.dumps(row, separators=(',', ':'))}" for row in facts["runs"]) + "\n]")
    parts.append('"starts": [\n' + ",\n".join(f" {json.dumps(row)}" for row in facts["starts"]) + "\n]")
    for name in ("samplers", "prompts"):
        rows = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in facts[name].items())
        parts.append(f'"{name}": {{\n' + ",\n".join(rows) + "\n}")
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    json.loads(text)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    main()
