"""Strangers' recipes in sd-scripts itself: does it train them, or where does it stop?

    python -m benchmarks.strangers_in_sd_scripts FOLDER CHECKOUT --python PYTHON [--part N/M] [--files 0001.sh …]

The recipes are those of benchmarks.strangers_recipes, with the same small pictures in place of their authors'; PYTHON is that of an
environment with sd-scripts' requirements. A first process reads the files and makes models, pictures and settings; a second one loads
sd-scripts once, and a fork of it runs each recipe, from the parser of its script to the second step and the file that it saves.
What comes out is written to strangers/sd_scripts.json: `trains`, or the kind of error and the function of sd-scripts that it came from.

benchmarks.sd_scripts_recipes says what stands in for a GPU. Pictures are all of the size that the recipe asks for, and flags that sdnb
does not know are passed on as they were written.

Takes about a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from sdnb.sd_scripts import Settings, read
from sdnb.sd_scripts.printing import flags
from tests.tools import narrow

from .beside_sd_scripts import models as narrow_models
from .strangers_recipes import LIST, PATHS, Stand, smaller

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_name("strangers") / "sd_scripts.json"
LEFTOVER = "error: unrecognized arguments: "
WIDTHS = {"channels": [16, 32, 48, 48], "norm_groups": 8, "unet": {}, "vae": {}, "text": [{}, {}]}
"""Of tests.tools.narrow's SD 2, which sd-scripts loads from diffusers' folder."""


class Sized(Stand):
    """Small data with all pictures of one size, since sd-scripts takes no other ones where it has no buckets."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        super().__init__(folder)
        self.size = size

    def model(self, settings: Settings) -> Path:
        return self.folder / "none"

    def pictures(self, name: str, ending: str) -> Path:
        folder = super().pictures(name, ending)
        for path in folder.rglob("*.png"):
            Image.new("RGB", self.size, path.stem).save(path)
        return folder


def untold(found: Settings) -> str:
    """Why a recipe cannot be run from its text alone; empty where it can."""
    if any(one.rule == "broken-line" and one.effect == "raises" for one in found.findings):
        return "not run: a shell ends its command before the flags"
    hidden = sorted(found.unknown - {*PATHS, "*", "max_train_steps"})
    return f"not run: {', '.join(hidden[:3])} stand in variables" if hidden else ""


def job(found: Settings, name: str, folder: Path) -> dict:
    """What the second process has to know of a recipe: its script, and its settings as TOML's values or as words."""
    sides = [int(side) for side in re.findall(r"\d+", str(smaller(found.given.get("resolution") or 512, 4, 128)))]
    size = (sides[0], sides[-1])
    stand = Sized(folder / f"{size[0]}x{size[1]}", size)
    leftover = [word for one in found.findings if LEFTOVER in one.what for word in shlex.split(one.what.partition(LEFTOVER)[2])]
    settings = stand.substituted(found, folder / "out")
    family = "sdxl" if settings.script.startswith("sdxl") else "sd2" if settings["v2"] else "sd1"
    model = folder / family / ("model" if family == "sd2" else "model.safetensors")
    changes: dict[str, Any] = {"pretrained_model_name_or_path": str(model), "tokenizer_cache_dir": str(folder / "sdxl" / "tokenizers")}
    changes |= {"output_name": "last", "min_bucket_reso": settings.given.get("min_bucket_reso") or 64}
    if family == "sd2":  # which would be saved as a folder, with a tokenizer from the net
        changes["save_model_as"] = settings.given.get("save_model_as") or "safetensors"
    if settings.given.get("vae"):
        changes["vae"] = str(folder / family / "model" / "vae")
    if settings.given.get("log_with") in ("wandb", "all"):
        changes |= {"log_with": None, "wandb_api_key": None}
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.change(changes).given.items()}
    if settings.form == "gui":  # numbers go through a browser, which knows no 64.0
        given = {name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in given.items()}
    words = [word for text in flags(given) for word in shlex.split(text)] + leftover
    toml = settings.form in ("toml", "gui")  # today's GUI writes a TOML file
    row = {"file": name, "script": settings.script.removesuffix(".py"), "family": family}
    return row | ({"given": given} if toml else {"words": words})


def models(folder: Path) -> dict[str, dict]:
    """A narrow model of each family, with the constants that sd-scripts has to know of it."""
    widths = {}
    for family in ("sd1", "sdxl"):
        (folder / family).mkdir()
        widths[family] = narrow_models(family, folder / family)
    narrow.make("sd2", folder / "sd2" / "model")
    tokenizers = folder / "sdxl" / "tokenizers"
    shutil.copytree(tokenizers / "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k", tokenizers / "stabilityai_stable-diffusion-2")
    return widths | {"sd2": WIDTHS}


def recorded() -> dict[str, str]:
    """Outcome of each file so far."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def put(file: str, outcome: str) -> None:
    """Record an outcome."""
    RECORD.write_text(json.dumps(dict(sorted((recorded() | {file: outcome}).items())), indent=0) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder that holds the recipes")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--python", required=True, help="Python of an environment with sd-scripts' requirements")
    parser.add_argument("--part", metavar="N/M", default="1/1", help="only every M-th recipe, from the N-th on")
    parser.add_argument("--files", nargs="*", help="only these")
    parser.add_argument("--keep", type=Path, help="a new folder for models, pictures and what sd-scripts printed; it is kept")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    entries = json.loads(LIST.read_text(encoding="utf-8"))[part - 1 :: parts]
    entries = [one for one in entries if not options.files or one["file"] in options.files]
    with tempfile.TemporaryDirectory() as made:
        folder = (options.keep or Path(made)).resolve()
        folder.mkdir(exist_ok=True)
        (folder / "widths.json").write_text(json.dumps(models(folder)))
        jobs = []
        for entry in entries:
            path = options.folder / entry["file"]
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]:
                found = read(path, entry.get("script"))
                if why := untold(found):
                    put(entry["file"], why)
                else:
                    jobs.append(job(found, entry["file"], folder))
        (folder / "jobs.json").write_text(json.dumps(jobs))
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        command = [options.python, "-m", "benchmarks.sd_scripts_recipes", str(folder), str(options.checkout.resolve())]
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as running:
            for line in running.stdout or ():
                row = json.loads(line)
                put(row["file"], row["outcome"])
                print(f"{row['file']}: {row['outcome']}, {row['seconds']} s", flush=True)
    counts = Counter(re.sub(r" in .*", "", recorded().get(one["file"], "not run")) for one in entries)
    for outcome, number in counts.most_common():
        print(f"{number:4} {outcome}")


if __name__ == "__main__":
    main()
