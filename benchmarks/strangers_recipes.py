"""Strangers' recipes, trained for two steps each.

    python -m benchmarks.strangers_recipes FOLDER [--json FILE]

strangers/recipes.json lists settings files and commands that people published for sd-scripts' scripts of SD 1.x, 2.x and SDXL, each with
its source, its SHA-256, and what is expected of it: that it trains, or that it is refused and for which setting. sd_scripts.json beside
it says what sd-scripts itself did with each (benchmarks.strangers_in_sd_scripts). A recipe whose optimizer's package is not installed is
counted apart. FOLDER holds the files themselves, which are their authors' and not kept here; a file that is missing or differs is named
and left out.

Each file is read and checked as `sdnb train --config` does it, and then trained. Its own settings stay, but for these, which name what only
the author has, or are made for models a thousand times larger:

- the model is a small random one of the recipe's family, and pictures, captions, regularization pictures, masks, metadata, dataset files,
  prompts and autoencoders are small ones in the form that the recipe asks for; results and logs go into a folder that is deleted; a
  preset of LyCORIS in a file is `attn-mlp`
- `resolution`, `min_bucket_reso` and `max_bucket_reso` are a quarter, in multiples of 64, and the first and the last 128 or more;
  `bucket_reso_steps` is at most 64
- `train_batch_size` and `gradient_accumulation_steps` are at most 2, `max_train_steps` is 2 and `max_train_epochs` is left out
- weights to go on from (`network_weights`, `base_weights`, `resume`) and the step of an earlier run (`initial_step`) are left out
- Weights & Biases is offline, and left out where it is not installed

Takes about eleven minutes on one core.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from sdnb import train_command
from sdnb.jobs import Job
from sdnb.sd_scripts import Settings, read

from .report import parser, show

LIST = Path(__file__).with_name("strangers") / "recipes.json"
SD_SCRIPTS = LIST.with_name("sd_scripts.json")
"""What sd-scripts itself did with each, recorded by benchmarks.strangers_in_sd_scripts."""
NO_PACKAGE = re.compile(r"No module named '\w+")
COLOURS = ("red", "orange", "green", "blue")
LEFT_OUT = ("max_train_epochs", "network_weights", "base_weights", "dim_from_weights", "resume", "initial_step", "skip_until_initial_step")
PATHS = ("pretrained_model_name_or_path", "train_data_dir", "reg_data_dir", "conditioning_data_dir", "dataset_config", "in_json", "vae")
PATHS = (*PATHS, "sample_prompts", "output_dir", "output_name", "logging_dir", "tokenizer_cache_dir", *LEFT_OUT)
"""Settings that are replaced, so that their values may stand in variables."""


class Stand:
    """Small models and data in a folder, each made on first use."""

    def __init__(self, folder: Path, share: int = 4) -> None:
        self.folder = folder
        self.share = share
        """Of a recipe's sides, one of so many parts is left."""

    def model(self, settings: Settings) -> Path:
        """A random model of the family that the settings train, with the prediction that they say."""
        from tests.tools import narrow

        family = "sdxl" if settings.script.startswith("sdxl") else "sd2" if settings["v2"] else "sd1"
        kind = "v_prediction" if settings["v_parameterization"] else "epsilon"
        folder = self.folder / f"{family}-{kind}"
        return folder if folder.exists() else narrow.make(family, folder, prediction_type=kind)

    def pictures(self, name: str, ending: str) -> Path:
        """A folder of sd-scripts' form: `2_fox` with four pictures and captions."""
        folder = self.folder / name
        (folder / "2_fox").mkdir(parents=True, exist_ok=True)
        for number, colour in enumerate(COLOURS):
            path = folder / "2_fox" / f"{colour}.png"
            if not path.exists():
                Image.new("RGB", (256, 256 if number else 192), colour).save(path)
            path.with_suffix(ending or ".caption").write_text(f"a {colour} fox, sitting, in the snow", encoding="utf-8")
        return folder

    def metadata(self, pictures: Path) -> Path:
        """Fine-tuning metadata of these pictures."""
        path = self.folder / "metadata.json"
        rows = {str(path): {"caption": f"a {path.stem} fox", "tags": f"{path.stem}, fox"} for path in sorted(pictures.rglob("*.png"))}
        path.write_text(json.dumps(rows), encoding="utf-8")
        return path

    def dataset(self, settings: Settings, pictures: Path) -> Path:
        """A dataset file, of metadata for the scripts that take nothing else."""
        path = self.folder / f"dataset-{settings.script}-{settings['masked_loss']}.toml"
        subset = {"image_dir": str(pictures / "2_fox"), "num_repeats": 2, "caption_extension": ".txt"}
        if settings["masked_loss"]:
            subset["conditioning_data_dir"] = str(self.pictures("masks", ".txt") / "2_fox")
        if settings.script == "fine_tune.py":
            subset = {"image_dir": str(pictures), "metadata_file": str(self.metadata(pictures))}
        lines = [f"{name} = {json.dumps(value)}" for name, value in subset.items()]
        buckets = ["enable_bucket = true", "min_bucket_reso = 64", "max_bucket_reso = 256", "bucket_reso_steps = 64"]
        text = "\n".join(["[[datasets]]", "resolution = 128", "batch_size = 1", *buckets, "[[datasets.subsets]]", *lines])
        path.write_text(text + "\n", encoding="utf-8")
        return path

    def prompts(self, name: str) -> Path:
        """A prompt to draw after, in a file with the ending of `name`."""
        path = self.folder / f"prompts{Path(name).suffix if name.endswith(('.toml', '.json')) else '.txt'}"
        row = {"prompt": "a fox", "width": 64, "height": 64, "sample_steps": 1}
        subset = "\n".join(f"{key} = {json.dumps(value)}" for key, value in row.items())
        texts = {".json": json.dumps([row]), ".toml": f"[prompt]\n[[prompt.subset]]\n{subset}\n", ".txt": "a fox --w 64 --h 64 --s 1\n"}
        path.write_text(texts[path.suffix], encoding="utf-8")
        return path

    def substituted(self, settings: Settings, out: Path) -> Settings:
        """Settings with these in place of the author's own, and sizes for a small model."""
        given, name = settings.given, lambda key: str(settings.given.get(key) or "")
        has = {key for key in PATHS if given.get(key) or key in settings.unknown}
        ending = name("caption_extension") or (".caption" if settings.form == "none" else ".txt")
        pictures = self.pictures("data" + ending.replace(".", "-"), ending)
        changes: dict[str, Any] = {
            "pretrained_model_name_or_path": str(self.model(settings)),
            "output_dir": str(out),
            "max_train_steps": 2,
            **{key: _least(given[key]) for key in ("train_batch_size", "gradient_accumulation_steps") if key in given},
            **dict.fromkeys(LEFT_OUT),
        }
        if "dataset_config" in has:
            changes["dataset_config"] = str(self.dataset(settings, pictures))
        else:
            changes["train_data_dir"] = str(pictures)
            if settings.script == "fine_tune.py" or "in_json" in has:
                changes["in_json"] = str(self.metadata(pictures))
        for key, made in {
            "reg_data_dir": lambda: self.pictures("reg", ending),
            "conditioning_data_dir": lambda: self.pictures("masks", ending) / "2_fox",
            "logging_dir": lambda: out / "logs",
            "vae": lambda: self.model(settings) / "vae",
            "sample_prompts": lambda: self.prompts(name("sample_prompts")),
        }.items():
            if key in has:
                changes[key] = str(made())
        if "train_data_dir" in has and "dataset_config" in has:
            changes["train_data_dir"] = str(pictures)
        for key in ("resolution", "min_bucket_reso", "max_bucket_reso"):
            if key in given:
                changes[key] = smaller(given[key], self.share, 64 if key == "min_bucket_reso" else 128)
        if isinstance(arguments := given.get("network_args"), list | tuple):
            changes["network_args"] = [re.sub(r"^preset=.*\.toml$", "preset=attn-mlp", str(argument)) for argument in arguments]
        if isinstance(steps := given.get("bucket_reso_steps"), int | float) and steps > 64:
            changes["bucket_reso_steps"] = 64
        if not given.get("resolution") and "dataset_config" not in has:
            changes["resolution"] = "128"
        if name("log_with") in ("wandb", "all") and find_spec("wandb") is None:
            changes["log_with"] = None
        changed = settings.change({key: value for key, value in changes.items() if key not in given or value != given[key]})
        unknown = settings.unknown - changes.keys() - set(PATHS) - {"*"}
        return replace(changed, unknown=unknown, held={name: text for name, text in settings.held.items() if name in unknown})


def _least(value: Any) -> Any:
    return min(value, 2) if isinstance(value, int | float) and not isinstance(value, bool) else value


def smaller(value: Any, share: int, least: int) -> Any:
    """A side, or text of sides, divided by `share` in multiples of 64 from `least` on; what is no number stays."""
    if isinstance(value, int | float):
        return max(least, round(value / share / 64) * 64) if value else value
    sides = re.findall(r"\d+", str(value))
    return ",".join(str(smaller(int(side), share, least)) for side in sides) if sides else value


def outcome(path: Path, entry: Mapping[str, Any], stand: Stand, *, train: bool = True) -> tuple[str, ...]:
    """Why a recipe does not train; nothing where it does."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = stand.substituted(read(path, entry.get("script")), Path(folder) / "out")
        found = train_command.check(settings)
        if found.refused or found.recipe is None or not train:
            return found.refused
        try:
            steps = list(Job(found.recipe).run())
        except Exception as error:  # whatever stops a run is a reason
            return (f"{type(error).__name__}: {error}",)
        return () if len(steps) == 2 and all(step.loss == step.loss for step in steps) else (f"it trained {len(steps)} steps",)


def judged(entry: Mapping[str, Any], reasons: tuple[str, ...]) -> bool:
    """Whether a recipe did what was expected of it."""
    if entry["expected"] == "trains":
        return not reasons
    return any(entry["reason"] in reason for reason in reasons)


def kind(reason: str) -> str:
    """A reason without its values, to be counted."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|=\S+|/\S+|\d+(\.\d+)?", "…", reason)[:110]


def agrees(entry: Mapping[str, Any], outcomes: Mapping[str, str]) -> bool:
    """Whether sd-scripts, too, did what is expected, in a run that benchmarks.strangers_in_sd_scripts recorded."""
    outcome = outcomes.get(entry["file"], "not run")
    return not outcome.startswith("not run") and (outcome == "trains") == (entry["expected"] == "trains")


def main() -> None:
    """Train every recipe that is in the folder."""
    command = parser(__doc__ or "")
    command.add_argument("folder", type=Path, help="the folder that holds the files")
    command.add_argument("--part", metavar="N/M", default="1/1", help="only every M-th recipe, from the N-th on")
    command.add_argument("--check", action="store_true", help="do not train")
    options = command.parse_args()
    os.environ.setdefault("WANDB_MODE", "offline")
    part, parts = map(int, options.part.split("/"))
    outcomes = json.loads(SD_SCRIPTS.read_text(encoding="utf-8")) if SD_SCRIPTS.exists() else {}
    counts, why = {"trains": Counter(), "refused": Counter()}, Counter()
    with tempfile.TemporaryDirectory() as folder:
        stand = Stand(Path(folder))
        for entry in json.loads(LIST.read_text(encoding="utf-8"))[part - 1 :: parts]:
            path, count = options.folder / entry["file"], counts[entry["expected"]]
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                count["missing"] += 1
                print(f"{entry['file']}: not in the folder as it was judged")
                continue
            reasons = outcome(path, entry, stand, train=not options.check)
            right = judged(entry, reasons)
            lacks = not right and any(NO_PACKAGE.search(reason) for reason in reasons)
            count.update({"files": 1, "as expected": right, "without a package": lacks, "so does sd-scripts": agrees(entry, outcomes)})
            why.update({kind(reason) for reason in reasons} if entry["expected"] == "trains" else ())
            if not right:
                told = " | ".join(reason[:300] for reason in reasons) or "it trained"
                print(f"{entry['file']} ({entry['expected']} expected): {told}", flush=True)
    for reason, number in why.most_common():
        print(f"{number:4} {reason}")
    columns = ("files", "as expected", "without a package", "so does sd-scripts", "missing")
    show([{"expected": expected} | {name: count[name] for name in columns} for expected, count in counts.items()], options.json)
    sys.exit(any(count["files"] > count["as expected"] + count["without a package"] for count in counts.values()))


if __name__ == "__main__":
    main()
