"""The commands that `sdnb fit` prints, run by the trainers that they are for.

    python -m benchmarks.printed_commands --sd-scripts FOLDER --python PYTHON [--missing]
    python -m benchmarks.printed_commands --diffusers FOLDER

The first runs every command for sd-scripts in its own scripts, from their parsers to the second step and the file that they save, as
`benchmarks.strangers_in_sd_scripts` runs strangers' recipes: on narrow models and small pictures, with what stands in for a GPU in
`benchmarks.sd_scripts_recipes`. PYTHON is that of an environment with sd-scripts' requirements. The second gives every command for
diffusers' example scripts to the parser of its script, and compares what it read with the recipe. FOLDER is a checkout of each.

The outcomes go to `tests/recorded/printed_commands.json`, and `tests/planner/test_trainers.py` holds today's commands to them: whatever
`fit` may print for these models and cards has been run.

Takes about eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.machinery
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from sdnb.models import skeletons
from sdnb.planner import search, trainers
from sdnb.sd_scripts import read

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "recorded" / "printed_commands.json"
MODELS = ("sd15", "sd21", "sdxl")
CARDS = ("t4", "rtx4090")
"""One card without bf16 and one with it: the recipes that `fit` tries depend on nothing else of a card."""


def commands(trainer: str) -> Iterator[str]:
    """Every command that `sdnb fit` may print for a trainer, for any model and method, with the default rank and batch."""
    other = trainers.OTHERS[trainer]
    for model in MODELS:
        facts = skeletons.configurations(model)
        side = 8 * facts["unet"]["sample_size"]
        for method in search.METHODS:
            for card in CARDS:
                _, family, prediction, recipes = search._question(model, card, None, method, 1, 16)
                for recipe in (other.asked(recipe, family, prediction) for recipe in recipes):
                    if not other.adopt(recipe, family)[1]:
                        yield trainers._wrapped(other.command(recipe, other.script(recipe, family), (side, side)))


def recorded() -> dict[str, dict[str, str]]:
    """Outcome of each command so far, by trainer."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def put(trainer: str, outcomes: dict[str, str]) -> None:
    """Record the outcomes of a trainer's commands."""
    RECORD.write_text(json.dumps(recorded() | {trainer: outcomes}, indent=1) + "\n", encoding="utf-8")


def in_sd_scripts(checkout: Path, python: str, known: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Run the commands for sd-scripts that are not known to train; yields each with `trains`, or where it stopped."""
    from .strangers_in_sd_scripts import job, models

    texts = [text for text in dict.fromkeys(commands("sd-scripts")) if text not in known]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        (folder / "widths.json").write_text(json.dumps(models(folder)))
        (folder / "jobs.json").write_text(json.dumps([job(read(text), str(index), folder) for index, text in enumerate(texts)]))
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        command = [python, "-m", "benchmarks.sd_scripts_recipes", str(folder), str(checkout.resolve())]
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as running:
            for line in running.stdout or ():
                row = json.loads(line)
                yield texts[int(row["file"])], row["outcome"]


def in_diffusers(checkout: Path) -> Iterator[tuple[str, str]]:
    """Give the commands for diffusers to its scripts' parsers; yields each with `parsed`, or what went wrong."""
    diffusers, transformers = importlib.import_module("diffusers"), importlib.import_module("transformers")
    for kind in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "UNet2DConditionModel"):
        getattr(diffusers, kind)  # which look for the real torchvision
    transformers.CLIPTextModel  # noqa: B018 - the same
    for name in ("datasets", "torchvision", "torchvision.transforms", "torchvision.transforms.functional"):  # which only read pictures
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
            continue
        sys.modules[name] = mock.MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None), __file__="none")
    sys.path.insert(0, str(checkout / "examples" / "text_to_image"))
    for text in dict.fromkeys(commands("diffusers")):
        _, _, script, *words = shlex.split(text.replace("\\\n", " "))
        module = importlib.import_module(script.removesuffix(".py"))
        try:
            with mock.patch.object(sys, "argv", [script, *words]), contextlib.redirect_stderr(None):
                args = module.parse_args()
        except SystemExit as left:
            yield text, f"its parser leaves with status {left.code}"
            continue
        given = {word[2:].partition("=")[0]: word.partition("=")[2] or "True" for word in words}
        other = [name for name, value in given.items() if str(getattr(args, name)) != str(type(getattr(args, name))(value))]
        yield text, f"read otherwise: {', '.join(other)}" if other else "parsed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd-scripts", type=Path, help="a checkout of sd-scripts")
    parser.add_argument("--python", help="Python of an environment with sd-scripts' requirements")
    parser.add_argument("--missing", action="store_true", help="run only what is not known to train")
    parser.add_argument("--diffusers", type=Path, help="a checkout of diffusers")
    options = parser.parse_args()
    if options.sd_scripts:
        before = recorded().get("sd-scripts", {}) if options.missing else {}
        outcomes = {command: before[command] for command in commands("sd-scripts") if before.get(command) == "trains"}
        for command, outcome in in_sd_scripts(options.sd_scripts, options.python, outcomes):
            outcomes[command] = outcome
            print(f"{outcome}: {' '.join(command.split())}", flush=True)
        put("sd-scripts", outcomes)
    if options.diffusers:
        outcomes = dict(in_diffusers(options.diffusers))
        print("\n".join(f"{outcome}: {' '.join(command.split())}" for command, outcome in outcomes.items()))
        put("diffusers", outcomes)


if __name__ == "__main__":
    main()
