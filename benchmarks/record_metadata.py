"""What sd-scripts writes into a LoRA's file about the pictures that it was trained on.

    python -m benchmarks.record_metadata CHECKOUT --python PYTHON

PYTHON is that of an environment with sd-scripts' requirements. Its train_network.py trains a step for each data set below, on a narrow
model, and the entries are taken from the file that comes out. Writes tests/recorded/metadata_of_sd_scripts.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from .beside_sd_scripts import ADAMW, CACHED, COMMON, LORA, ROOT, models

FILE = ROOT / "tests" / "recorded" / "metadata_of_sd_scripts.json"
TOLD = (
    "ss_datasets ss_tag_frequency ss_dataset_dirs ss_reg_dataset_dirs ss_bucket_info ss_num_train_images ss_num_reg_images "
    "ss_num_validation_images ss_num_batches_per_epoch ss_resolution ss_enable_bucket ss_min_bucket_reso ss_max_bucket_reso "
    "ss_bucket_no_upscale ss_batch_size_per_device ss_total_batch_size"
).split()
"""The entries that are taken."""
BUCKETS = "--enable_bucket --bucket_reso_steps=64 --min_bucket_reso=64 --max_bucket_reso=256"
FOLDERS = {
    "train/2_cat/a.png": ([128, 128], "cat, Mat, tail\nsecond line"), "train/2_cat/b.png": ([192, 128], "cat, tail, tail"),
    "train/2_cat/c.png": ([100, 200], "dog"), "train/3_a dog/d.png": ([320, 200], None), "train/3_a dog/e.png": ([150, 150], "a dog, MAT"),
}  # fmt: skip
REG = {f"reg/1_animal/{number}.png": ([128, 128 + 32 * number], "an animal" if number else None) for number in range(2)}
MANY = {f"reg/2_beast/{number}.png": ([128, 128], None) for number in range(9)}
META = {
    "tags.json": {
        "PLACE/train/2_cat/a.png": {"caption": "a cat", "tags": "cat, Mat"}, "PLACE/train/2_cat/b.png": {"caption": "b", "tags": "cat,mat"},
        "PLACE/train/2_cat/c.png": {"tags": "one"}, "PLACE/train/3_a dog/e.png": {"caption": "no tags"},
    }
}  # fmt: skip
FROM = "--train_data_dir=PLACE/train --resolution=128,128 --train_batch_size=2 --caption_extension=.txt"
TOML = """
[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1
[[datasets]]
resolution = 128
batch_size = 2
enable_bucket = true
bucket_reso_steps = 64
min_bucket_reso = 100
max_bucket_reso = 250
[[datasets.subsets]]
image_dir = "PLACE/train/2_cat"
num_repeats = 2
flip_aug = true
[[datasets.subsets]]
image_dir = "PLACE/train/3_a dog"
class_tokens = "a dog"
caption_prefix = "drawn, "
[[datasets.subsets]]
image_dir = "PLACE/reg/1_animal"
is_reg = true
[[datasets]]
resolution = [64, 128]
network_multiplier = 0.5
[[datasets.subsets]]
image_dir = "PLACE/train/2_cat"
keep_tokens = 2
num_repeats = 3
resize_interpolation = "area"
enable_wildcard = true
"""
TAGS = """
[[datasets]]
resolution = 128
enable_bucket = true
bucket_reso_steps = 64
min_bucket_reso = 64
max_bucket_reso = 256
batch_size = 3
[[datasets.subsets]]
metadata_file = "PLACE/tags.json"
image_dir = "PLACE/train"
num_repeats = 2
"""
CASES = {
    "folders, buckets": (f"{FROM} {BUCKETS}", FOLDERS, {}),
    "folders, regularization": (f"{FROM} {BUCKETS} --reg_data_dir=PLACE/reg", FOLDERS | REG, {}),
    "more regularization than is needed": (f"{FROM} --reg_data_dir=PLACE/reg --gradient_accumulation_steps=2", FOLDERS | REG | MANY, {}),
    "no buckets, held out": (f"{FROM} --validation_split=0.4 --validation_seed=3 --enable_wildcard", FOLDERS, {}),
    "fine-tuning metadata": (f"{FROM} {BUCKETS} --in_json=PLACE/tags.json", FOLDERS, META),
    "a dataset file": ("--dataset_config=PLACE/data.toml", FOLDERS | REG, {"data.toml": TOML}),
    "a dataset file of metadata": ("--dataset_config=PLACE/data.toml", FOLDERS, META | {"data.toml": TAGS}),
}
"""Flags; pictures with their sizes and captions; and other files."""


def write(place: Path, pictures: dict, files: dict) -> None:
    """Write a data set, whose files call its folder PLACE."""
    from PIL import Image

    for name, (size, caption) in pictures.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", tuple(size), (200, 90, 40)).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (place / name).write_text(text.replace("PLACE", place.as_posix()), encoding="utf-8")


def told(case: str, place: Path, model: Path, widths: dict, options: argparse.Namespace) -> dict[str, str]:
    """The entries of a file that sd-scripts trains. Raises `RuntimeError` with the end of what it printed."""
    from safetensors import safe_open

    flags, pictures, files = CASES[case]
    write(place, pictures, files)
    given = (
        f"{COMMON} {LORA} --network_train_unet_only {ADAMW} {CACHED} {flags} --output_name=last --max_train_steps=1 --save_precision=fp16"
    )
    words = [word.replace("PLACE", str(place)) for word in shlex.split(given)]
    words += [f"--pretrained_model_name_or_path={model}", f"--output_dir={place}", f"--tokenizer_cache_dir={model.parent / 'tokenizers'}"]
    job = place / "job.json"
    job.write_text(json.dumps({"script": "train_network", "flags": words, "record": str(place), "widths": widths}))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [options.python, "-m", "benchmarks.sd_scripts_steps", str(options.checkout.resolve()), str(job)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).strip().splitlines()[-25:]))
    with safe_open(place / "last.safetensors", framework="pt") as file:
        found = file.metadata()
    return {name: found[name] for name in TOLD if name in found}


def main() -> None:
    """Record, and say how many data sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--python", required=True)
    parser.add_argument("--commit", help="its commit, where it has no .git")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        widths = models("sd1", Path(folder))
        for case, (flags, pictures, files) in CASES.items():
            place = Path(folder) / str(len(rows))
            place.mkdir()
            found = told(case, place, Path(folder) / "model.safetensors", widths, options)
            rows.append({"case": case, "flags": flags, "pictures": pictures, "files": files, "told": found})
            print(case, flush=True)
    there = subprocess.run(["git", "rev-parse", "HEAD"], cwd=options.checkout, capture_output=True, text=True).stdout.strip()
    commit = options.commit or there or "unknown"
    source = {"repository": "kohya-ss/sd-scripts", "commit": commit, "made by": "python -m benchmarks.record_metadata"}
    lines = ",\n".join(map(json.dumps, rows))
    FILE.write_text(f'{{"source": {json.dumps(source)},\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
