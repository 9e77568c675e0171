"""How long does a step take beside sd-scripts' own, and how much memory?

    python -m benchmarks.speed_beside_sd_scripts CHECKOUT --python PYTHON [--recipes lora …] [--threads 2]

PYTHON is that of an environment with sd-scripts' requirements. Each recipe runs in sd-scripts' own script and in `sdnb.train`, each in a
process of its own, and they hold each other in turns, step by step (see benchmarks.turns): whatever else the machine does meets all. A
ratio is the median, over rounds, of that of two steps of one round, with an interval that holds the true median 95 times in 100. CPU
seconds are those of all threads of the process; they hardly depend on what else runs. The peak is that of the tensors of one step, weights
included, counted alike in all by torch.profiler's memory events; *resident* is the most memory of the whole process in the steps timed.

*Kernels* are the seconds inside the operators that do the arithmetic: products, convolutions, attention, norms. Nothing that a trainer
does around them can make a step shorter than that. One run is sd-scripts with the C library told to keep freed memory, as `sdnb.train`
tells it: what is then left between the two comes from elsewhere.

The models have the families' own blocks and random weights; but for `full` they are narrower, so that a step takes a second or two. A model
of full size needs 5 GiB of memory in each of three processes; `--runs` takes fewer.

Takes about 13 minutes on two cores, six of them for `full`.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import beside_sd_scripts, report
from .beside_sd_scripts import ADAMW, CACHED, COMMON, ROOT
from .turns import Runner, Turns

MIB = 2**20
KEEPING = {"MALLOC_MMAP_THRESHOLD_": "2147483647", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
"""Tells glibc what `sdnb.train` tells it."""
LORA = "--network_module=networks.lora --network_dim=8 --network_alpha=4 --network_train_unet_only"
FACTORED = "--optimizer_type=Adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False"
UNET_ALONE = "--stop_text_encoder_training=-1"
"""What train_db.py needs to hear for it."""
CHECKPOINTED = "--gradient_checkpointing"


@dataclass(frozen=True)
class Case:
    """One recipe: the script, its flags, and the model."""

    script: str
    flags: str
    family: str = "sd1"
    width: int | None = 128
    """Channels of the first blocks; None for the narrowest."""
    side: int = 256
    """Width and height of the pictures."""
    rounds: int = 8
    full: bool = False
    """Whether the model has the family's own width."""


CASES = {
    "lora": Case("train_network", f"{LORA} {ADAMW} {CACHED} --train_batch_size=2"),
    "lora, checkpointing": Case("train_network", f"{LORA} {ADAMW} {CACHED} --train_batch_size=2 {CHECKPOINTED}"),
    "fine-tuning, Adafactor": Case("train_db", f"{FACTORED} --learning_rate=1e-5 {CACHED} --train_batch_size=2 {UNET_ALONE}"),
    "sdxl lora": Case(
        "sdxl_train_network",
        f"{LORA} {ADAMW} {CACHED} --cache_text_encoder_outputs --no_half_vae --train_batch_size=1",
        family="sdxl", width=None, side=512,
    ),
    "full, lora": Case("train_network", f"{LORA} {ADAMW} {CACHED} --train_batch_size=1", rounds=4, full=True),
    "full, lora, checkpointing": Case(
        "train_network", f"{LORA} {ADAMW} {CACHED} --train_batch_size=1 {CHECKPOINTED}", rounds=4, full=True
    ),
}  # fmt: skip


def flags_of(case: Case, folder: Path, model: Path) -> list[str]:
    """The recipe's flags, with folders filled in. The run is longer than it is timed, and no step of it is saved."""
    text = (
        f"{COMMON} {case.flags} --resolution={case.side},{case.side} --caption_extension=.txt --output_name=last --max_train_steps=100000"
    )
    return [*shlex.split(text), f"--pretrained_model_name_or_path={model}", f"--train_data_dir={folder / 'train'}"]


def runners(case: Case, folder: Path, options) -> dict[str, Runner]:
    """Each run of a recipe, begun."""
    flags = [*flags_of(case, folder, folder / "model.safetensors"), f"--output_dir={folder}"]
    flags.append(f"--tokenizer_cache_dir={folder / 'tokenizers'}")
    widths = json.loads((folder / "widths.json").read_text())
    job = {"script": case.script, "flags": flags, "record": str(folder), "widths": widths, "threads": options.threads, "turns": True}
    (folder / "job.json").write_text(json.dumps(job))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    environment |= {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    script = [options.python, "-m", "benchmarks.sd_scripts_steps", str(options.checkout.resolve()), str(folder / "job.json")]
    own = [sys.executable, "-m", "benchmarks.speed_beside_sd_scripts", "--ours", str(folder)]
    found = {"sd-scripts": (script, {}), "sd-scripts, freed memory kept": (script, KEEPING), "sdnb": ([*own, "recipe"], {})}
    if CHECKPOINTED in case.flags:
        found["sdnb, CHEAP"] = [*own, "CHEAP"], {}
        if case.full:  # a fourth would not fit in memory
            del found["sd-scripts, freed memory kept"]
    begun = {}
    for name, (command, more) in found.items():  # one after the other: each needs most while it loads
        if name not in ("sd-scripts", *(options.runs or found)):
            continue
        begun[name] = Runner(command, environment | more, folder / f"{name}.log", ROOT)
        begun[name].read()
    return begun


def ours(folder: Path, checkpointing: str) -> None:
    """A run of `sdnb.train` that takes turns."""
    import torch

    import sdnb
    from sdnb.checkpointing import CHEAP

    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    flags = [flag for flag in job["flags"] if not flag.startswith(("--output_dir", "--tokenizer_cache_dir", UNET_ALONE))]
    recipe = sdnb.Recipe.parse(shlex.join(flags))
    sd = sdnb.load(folder / ("model" if job["widths"] else "model.safetensors"), device="cpu")
    Turns()
    for _ in sdnb.train(
        sd, sdnb.pictures(recipe.train_data_dir, recipe=recipe), recipe, checkpointing=CHEAP if checkpointing == "CHEAP" else None
    ):
        pass


def measured(case: Case, folder: Path, options) -> dict[str, dict]:
    """What each run's steps took, in rounds of one step each."""
    runs = runners(case, folder, options)
    try:
        for _ in range(2):  # the second step of `sdnb.train` counts its own memory
            for run in runs.values():
                run.turn()
        taken = {name: [] for name in runs}
        for number in range(options.rounds or case.rounds):
            for name in sorted(runs, reverse=bool(number % 2)):
                taken[name].append(runs[name].turn())
            steps = (f"{name} {rows[-1]['seconds']:.2f} s ({rows[-1]['cpu']:.2f} of CPUs)" for name, rows in taken.items())
            print(f"round {number + 1}:", ", ".join(steps), file=sys.stderr, flush=True)
        return {name: {"steps": taken[name], **run.profiled()} for name, run in runs.items()}
    finally:
        for run in runs.values():
            run.stop()


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and an interval between two of the values that holds the true median with a chance of 95%, or all of them."""
    ordered, n = sorted(values), len(values)
    cut, chance = 0, 0.0
    while (chance := chance + math.comb(n, cut) / 2**n) <= 0.025:
        cut += 1
    cut = max(0, cut - 1)
    return statistics.median(ordered), ordered[cut], ordered[n - 1 - cut]


def rows(name: str, runs: dict[str, dict]) -> list[dict]:
    """A table's rows: each run's step beside that of sd-scripts."""
    first = runs["sd-scripts"]
    made = []
    for run, found in runs.items():
        row = {name: run}
        for key, title in (("seconds", "seconds"), ("cpu", "CPU seconds")):
            row[title] = f"{statistics.median(step[key] for step in found['steps']):.2f}"
            ratios = [step[key] / other[key] for step, other in zip(found["steps"], first["steps"], strict=True)]
            row["of sd-scripts'" if key == "seconds" else "of its CPU"] = "{:.2f} ({:.2f} to {:.2f})".format(*interval(ratios))
        kinds = found["kernels"]
        row["its kernels"] = f"{sum(seconds for kind, seconds in kinds.items() if kind != 'all'):.2f}"
        row["all operators"] = f"{kinds['all']:.2f}"
        row["in the system"] = f"{statistics.median(step['kernel'] for step in found['steps']):.2f}"
        row["peak"] = f"{found['peak'] / MIB:,.0f} MiB"
        row["resident"] = f"{max(step['resident'] for step in found['steps']) / MIB:,.0f} MiB"
        made.append(row)
    return made


def full_size(folder: Path) -> None:
    """Write a model of SD 1.5's own size, with random weights, as one file of 4 GiB."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    import sdnb
    from sdnb.models import configurations
    from sdnb.system import files

    torch.manual_seed(0)
    facts, tokens = configurations.configurations("sd15"), files.bundled("tiny-sd") / "tokenizer"
    encoder = CLIPTextModel(CLIPTextConfig(**facts["text_encoder"]))
    unet, vae = UNet2DConditionModel.from_config(facts["unet"]), AutoencoderKL.from_config(facts["vae"])
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=CLIPTokenizer.from_pretrained(tokens), unet=unet,
        scheduler=DDPMScheduler.from_config(configurations.SCHEDULER), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    sdnb.load(folder / "model", device="cpu").save(folder / "model.safetensors")
    shutil.rmtree(folder / "model")
    shutil.copytree(tokens, folder / "tokenizers" / "openai_clip-vit-large-patch14", dirs_exist_ok=True)


def prepared(name: str, case: Case, folder: Path) -> Path:
    """The folder of a recipe, with its model and pictures."""
    place = (folder / ("full" if case.full else name.replace(", ", "-").replace(" ", "-"))).resolve()
    if not (place / "widths.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        beside_sd_scripts.pictures("plain", place)
        (place / "train" / "2_cat").rename(place / "train" / "500_cat")  # no epoch ends while it is timed
        widths = full_size(place) if case.full else beside_sd_scripts.models(case.family, place, case.width, case.side)
        (place / "widths.json").write_text(json.dumps(widths))
    return place


def main() -> None:
    if sys.argv[1:2] == ["--ours"]:
        ours(Path(sys.argv[2]), sys.argv[3])
        return
    parser = report.parser(__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--python", required=True, help="Python of an environment with sd-scripts' requirements")
    parser.add_argument("--recipes", nargs="*", default=list(CASES), help="by the beginnings of their names")
    parser.add_argument("--runs", nargs="*", help="beside sd-scripts', by their names in the table, where memory is short")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, help="steps of each run that are timed")
    parser.add_argument("--keep", type=Path, help="folder for the models and pictures; it is kept")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="speed-"))
    found, raw = [], {}
    for name, case in CASES.items():
        if any(name == one or name.startswith(f"{one}, ") for one in options.recipes):
            raw[name] = measured(case, prepared(name, case, folder), options)
            found += rows(name, raw[name])
            print(report.markdown(rows(name, raw[name])), flush=True)
    report.show(found, options.json, measured=[{"recipe": name, **runs} for name, runs in raw.items()])


if __name__ == "__main__":
    main()
