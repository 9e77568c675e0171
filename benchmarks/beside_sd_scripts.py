"""sd-scripts' own training scripts beside sdnb: the same recipe, in both, on the same narrow model and the same few pictures.

    python -m benchmarks.beside_sd_scripts CHECKOUT --python PYTHON [--recipes "lora, plain" …] [--keep FOLDER]

PYTHON is that of an environment with sd-scripts' requirements. There each recipe runs for a few steps (see benchmarks.sd_scripts_steps) and
writes down its batches and updates. Then sdnb trains by the same flags from the same weights, fed with the same batches, noise and noise
levels, and this prints how far the two are apart: the pictures' latents, captions and sizes, the number of batches of an epoch, when the
optimizer steps, each group's learning rate, the losses, the norm of what is trained, and the file that comes out.

The models have the families' own blocks, but few channels: constants of sd-scripts say how wide its networks are, and are changed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .sd_scripts_steps import rate

ROOT = Path(__file__).resolve().parents[1]
SIDE = 128
LORA = "--network_module=networks.lora --network_dim=4 --network_alpha=2"
COMMON = "--sdpa --mixed_precision=no --max_data_loader_n_workers=0 --seed=7 --save_model_as=safetensors --save_precision=float"
ADAMW = "--optimizer_type=AdamW --learning_rate=1e-3"
FACTORED = "--optimizer_type=Adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False --max_grad_norm=0"
CACHED = "--cache_latents"


@dataclass(frozen=True)
class Case:
    """One recipe: the script, its flags, and the pictures."""

    script: str
    flags: str
    steps: int = 4
    pictures: str = "plain"
    family: str = "sd1"
    network: bool = True
    ours: Callable[[str], str] = field(default=lambda flags: flags)
    """Changes the flags for sdnb."""
    arguments: tuple[str, ...] = ()
    """More of `optimizer_args`, for sdnb alone."""


CASES = {
    "lora, plain": Case("train_network", f"{LORA} --network_train_unet_only {ADAMW} {CACHED} --train_batch_size=2"),
    "lora, text encoder": Case(
        "train_network",
        f"{LORA} {ADAMW} {CACHED} --unet_lr=1e-3 --text_encoder_lr=5e-4 --clip_skip=2 --shuffle_caption --keep_tokens=1 "
        "--train_batch_size=2 --lr_scheduler=cosine --lr_warmup_steps=2",
    ),
    "lora, convolutions": Case(
        "train_network",
        f"{LORA} --network_train_unet_only --network_args conv_dim=2 conv_alpha=1 {ADAMW} {CACHED} --loss_type=huber --huber_schedule=snr",
    ),
    "fine-tuning, metadata": Case(
        "fine_tune", f"{ADAMW} {CACHED} --train_batch_size=2 --in_json=PICTURES/meta.json", network=False, pictures="metadata",
    ),
    "dreambooth, regularization": Case(
        "train_db",
        f"{ADAMW} {CACHED} --train_batch_size=2 --reg_data_dir=REGULARIZATION --prior_loss_weight=0.5 --stop_text_encoder_training=-1",
        network=False, ours=lambda flags: flags.replace("--stop_text_encoder_training=-1", ""),
    ),
    "lora, buckets": Case(
        "train_network",
        f"{LORA} --network_train_unet_only {ADAMW} {CACHED} --enable_bucket --min_bucket_reso=64 --max_bucket_reso=256 --flip_aug "
        "--train_batch_size=2",
        pictures="mixed", steps=6,
    ),
    "lora, min-SNR and noise offset": Case(
        "train_network",
        f"{LORA} --network_train_unet_only {ADAMW} --min_snr_gamma=5 --noise_offset=0.1 --caption_dropout_rate=0.3 --train_batch_size=2",
    ),
    "lora, accumulation": Case(
        "train_network",
        f"{LORA} --network_train_unet_only {ADAMW} {CACHED} --gradient_accumulation_steps=2 --max_train_epochs=2 --lr_scheduler=linear",
        steps=0, pictures="five",
    ),
    "lora, short batches and steps": Case(
        "train_network",
        f"{LORA} --network_train_unet_only {ADAMW} {CACHED} --train_batch_size=2 --gradient_accumulation_steps=2 --max_train_epochs=3 "
        "--max_grad_norm=0.01 --lr_scheduler=linear",
        steps=0, pictures="five",
    ),
    "sdxl lora, cached texts": Case(
        "sdxl_train_network",
        f"{LORA} --network_train_unet_only {ADAMW} {CACHED} --cache_text_encoder_outputs --enable_bucket --min_bucket_reso=64 "
        "--max_bucket_reso=256 --bucket_reso_steps=64 --train_batch_size=1 --no_half_vae",
        family="sdxl", pictures="mixed",
    ),
    "lora, Adafactor": Case(
        "train_network",
        f"{LORA} --network_train_unet_only {FACTORED} {CACHED} --learning_rate=1e-3 --lr_warmup_steps=3 "
        "--train_batch_size=2 --lr_scheduler=constant_with_warmup",
    ),
    "lora, Adafactor by kernels": Case(
        "train_network",
        f"{LORA} --network_train_unet_only {FACTORED} {CACHED} --learning_rate=1e-3 --lr_warmup_steps=3 "
        "--train_batch_size=2 --lr_scheduler=constant_with_warmup",
        arguments=("factoring='last-two'",),
    ),
    "lora, Prodigy": Case(
        "train_network",
        f"{LORA} --network_train_unet_only --optimizer_type=Prodigy --learning_rate=1 {CACHED} --lr_scheduler=cosine_with_restarts "
        "--lr_scheduler_num_cycles=2 --optimizer_args decouple=True weight_decay=0.01 --train_batch_size=2",
        steps=6,
    ),
    "fine-tuning, Adafactor alone": Case(
        "fine_tune", f"--optimizer_type=Adafactor --learning_rate=1e-3 {CACHED} --train_batch_size=2 --in_json=PICTURES/meta.json",
        network=False, pictures="metadata", arguments=("factoring='last-two'",),
    ),
}  # fmt: skip


def models(family: str, folder: Path, width: int | None = None, side: int = SIDE) -> dict:
    """Write a model as a folder for sdnb and as one file for sd-scripts; returns the widths that sd-scripts has to know."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    import sdnb
    from sdnb.models import configurations
    from sdnb.system import files

    torch.manual_seed(0)
    facts = configurations.configurations({"sd1": "sd15", "sdxl": "sdxl"}[family])
    tokens = files.bundled("tiny-sd") / "tokenizer"
    config = json.loads((files.bundled("tiny-sd") / "text_encoder" / "config.json").read_text())
    words = {key: config[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    text = [dict(words, hidden_size=wide, intermediate_size=2 * wide, num_hidden_layers=3, num_attention_heads=4) for wide in (32, 48)]
    text = [dict(one, projection_dim=size, hidden_act=act) for one, size, act in zip(text, (32, 48), ("quick_gelu", "gelu"), strict=True)]
    if family == "sdxl":
        text[0] |= {"num_hidden_layers": 12}  # sd-scripts takes the eleventh's output
    if family == "sd1":
        first, groups = width or 32, 32 if width else 8
        channels = [first, 2 * first, 4 * first, 4 * first]
        shape = dict(block_out_channels=channels, cross_attention_dim=32, attention_head_dim=8 if width else 4, norm_num_groups=groups)
        unet_constants = dict(UNET_PARAMS_MODEL_CHANNELS=first, UNET_PARAMS_NUM_HEADS=8 if width else 4, UNET_PARAMS_CONTEXT_DIM=32)
    else:
        first, groups, unet_constants = 64, 32, {}
        channels = [64, 128, 256]
        shape = dict(block_out_channels=channels, cross_attention_dim=80, attention_head_dim=[1, 2, 4], addition_time_embed_dim=256)
        shape |= dict(projection_class_embeddings_input_dim=6 * 256 + 48)
    vae_shape = dict(block_out_channels=[16, 16, 32, 32], norm_num_groups=8)
    unet = UNet2DConditionModel.from_config({**facts["unet"], **shape, "sample_size": side // 8})
    for name, parameter in unet.named_parameters():  # a new convolution to noise is small; let all of it matter
        if name.startswith("conv_out"):
            torch.nn.init.normal_(parameter, std=0.05)
    vae = AutoencoderKL.from_config({**facts["vae"], **vae_shape, "sample_size": side})
    parts: dict[str, Any] = dict(unet=unet, vae=vae, tokenizer=CLIPTokenizer.from_pretrained(tokens))
    parts |= dict(text_encoder=CLIPTextModel(CLIPTextConfig(**text[0])), scheduler=DDPMScheduler.from_config(configurations.SCHEDULER))
    if family == "sdxl":
        second = CLIPTextModelWithProjection(CLIPTextConfig(**text[1]))
        parts |= dict(text_encoder_2=second, tokenizer_2=CLIPTokenizer.from_pretrained(tokens, pad_token="!"), add_watermarker=False)
        pipeline = StableDiffusionXLPipeline(**parts)
    else:
        pipeline = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    sdnb.load(folder / "model", device="cpu").save(folder / "model.safetensors")
    for place, name in enumerate(("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")):
        copy = Path(shutil.copytree(tokens, folder / "tokenizers" / name, dirs_exist_ok=True))
        for file in ("tokenizer_config.json", "special_tokens_map.json") if place else ():
            told = json.loads((copy / file).read_text()) if (copy / file).exists() else {}
            (copy / file).write_text(json.dumps(told | {"pad_token": "!"}))
    widths = dict(channels=channels, norm_groups=groups, unet=unet_constants, vae=vae_shape, text=text)
    return widths | (dict(adm=6 * 256 + 48, context=80) if family == "sdxl" else {})


def pictures(kind: str, folder: Path) -> None:
    """Write a few pictures with captions as `train_data_dir`, and some for regularization."""
    import numpy
    from PIL import Image

    generator = numpy.random.default_rng(0)
    sizes = {"mixed": [(128, 128), (192, 128), (100, 200), (320, 200), (256, 64), (150, 150)]}.get(kind, [(SIDE, SIDE)] * 5)

    def draw(path: Path, size: tuple[int, int], caption: str | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=numpy.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption)

    inner = folder / "train" / ("" if kind == "metadata" else "1_cat" if kind == "five" else "2_cat")
    for place, size in enumerate(sizes):
        draw(inner / f"{place}.png", size, f"cat, tail, number {place}, on a mat")
    for place in range(3):
        draw(folder / "reg" / "1_animal" / f"{place}.png", (SIDE, SIDE), None)
    rows = {str(inner / f"{place}.png"): {"caption": f"cat, tail, number {place}, on a mat"} for place in range(len(sizes))}
    (folder / "train" / "meta.json").write_text(json.dumps(rows))
    if kind != "metadata":
        (folder / "train" / "meta.json").unlink()


def flags_of(case: Case, folder: Path, model: Path) -> list[str]:
    """The recipe's flags, with folders filled in."""
    text = f"{COMMON} {case.flags} --resolution={SIDE},{SIDE} --caption_extension=.txt --output_name=last"
    text += f" --max_train_steps={case.steps}" if case.steps else ""
    text = text.replace("PICTURES", str(folder / "train")).replace("REGULARIZATION", str(folder / "reg"))
    return [*shlex.split(text), f"--pretrained_model_name_or_path={model}", f"--train_data_dir={folder / 'train'}"]


def theirs(case: Case, folder: Path, options, widths: dict | None) -> dict:
    """Run the script; returns its record. Raises `RuntimeError` with the end of what it printed."""
    record = folder / "theirs"
    if options.again and (record / "record.json").exists():
        return json.loads((record / "record.json").read_text())
    record.mkdir(exist_ok=True)
    model, tokenizers = folder / "model.safetensors", folder / "tokenizers"
    flags = [*flags_of(case, folder, model), f"--output_dir={record}", f"--tokenizer_cache_dir={tokenizers}"]
    job = folder / "job.json"
    job.write_text(json.dumps({"script": case.script, "flags": flags, "record": str(record), "widths": widths}))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [options.python, "-m", "benchmarks.sd_scripts_steps", str(options.checkout.resolve()), str(job)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).strip().splitlines()[-25:]))
    return json.loads((record / "record.json").read_text())


class Fed:
    """Feeds sdnb's run with the batches of a record, and compares them with its own."""

    def __init__(self, record: dict, folder: Path) -> None:
        from safetensors.torch import load_file

        self.record, self.tensors = record, load_file(folder / "theirs" / "batches.safetensors")
        self.found: dict[str, Any] = {"latents": 0.0, "captions": set(), "sizes": set(), "weights": set()}
        self.updates: list[dict] = []

    def batch(self, cache, number: int, process: int = 0, processes: int = 1):
        """The recorded batch, as the cache would deal it out."""
        import torch

        from sdnb.datasets import Batch

        row, own = self.record["items"][number], cache.pictures
        places = {str(picture.path.resolve()): place for place, picture in enumerate(own)}
        chosen = [places[str(Path(path).resolve())] for path in row["paths"]]
        latents = self.tensors[f"{number}.latents"]
        shown = [cache.encoded.of(i, flip, "", True) for i, flip in zip(chosen, row["flipped"], strict=True)]
        ours = torch.stack([mean for mean, _ in shown])
        same_shape = ours.shape == latents.shape
        apart = float((ours - latents).abs().max() / latents.abs().max()) if same_shape else math.inf
        self.found["latents"] = max(self.found["latents"], apart)
        for place, caption in zip(chosen, row["captions"], strict=True):
            if caption and sorted(part.strip() for part in caption.split(",")) != sorted(p.strip() for p in own[place].caption.split(",")):
                self.found["captions"].add((caption, own[place].caption))
        sizes = cache._sizes(chosen, [int(flip) for flip in row["flipped"]])
        if "time_ids" in sizes:
            wanted = [[*a, *b, *c] for a, b, c in zip(row["original_sizes_hw"], row["crop_top_lefts"], row["target_sizes_hw"], strict=True)]
            if wanted != sizes["time_ids"].int().tolist():
                self.found["sizes"].add(str((wanted, sizes["time_ids"].int().tolist())))
            sizes["time_ids"] = torch.tensor(wanted, dtype=sizes["time_ids"].dtype)
        weights = torch.tensor(row["loss_weights"])
        mine = torch.ones(len(chosen)) if cache.weights is None else cache.weights[chosen]
        if not torch.equal(weights, mine):
            self.found["weights"].add(str((weights.tolist(), mine.tolist())))
        condition = cache.texts.condition(row["captions"]) if cache.embeds else None
        return Batch(
            latents=latents, condition=condition and {name: one.float() for name, one in condition.items()},
            noise=self.tensors[f"{number}.noise"], t=self.tensors[f"{number}.t"], sizes=sizes, captions=tuple(row["captions"]),
            weights=None if bool((weights == 1).all()) else weights,
        )  # fmt: skip

    def before(self, optimizer, args, kwargs) -> None:
        self.updates.append({"rates": [rate(group["lr"]) for group in optimizer.param_groups]})

    def after(self, optimizer, args, kwargs) -> None:
        import torch

        squares = [p.detach().double().square().sum() for group in optimizer.param_groups for p in group["params"]]
        self.updates[-1]["norm"] = float(torch.stack(squares).sum().sqrt())


def ours(case: Case, folder: Path, record: dict) -> dict:
    """Train by the same recipe with the recorded batches; returns what differs."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    import sdnb
    from sdnb import lora
    from sdnb.datasets import Cache, cache

    flags = case.ours(shlex.join(flags_of(case, folder, folder / "model")))
    recipe = sdnb.Recipe.parse(flags)
    recipe = recipe.replace(optimizer_args=(*recipe.optimizer_args, *case.arguments))
    sd = sdnb.load(folder / "model", device="cpu")
    if case.family == "sdxl":  # sd-scripts reads the file's matrix as it stands, and it is the transpose of what transformers multiplies by
        weight = sd.parts["text_encoder_2"].text_projection.weight
        weight.data = weight.data.T.contiguous()
    found = sdnb.pictures(recipe.train_data_dir, recipe=recipe)
    if case.network:
        lora.load(sd, folder / "theirs" / "initial.safetensors")
    fed = Fed(record, folder)
    steps = cache.steps(sd, found, recipe)
    handles = [register_optimizer_step_pre_hook(fed.before), register_optimizer_step_post_hook(fed.after)]
    deal, losses = Cache.batch, []
    try:
        Cache.batch = lambda self, number, process=0, processes=1: fed.batch(self, number, process, processes)
        for step in sdnb.train(sd, found, recipe, steps=steps):
            losses.append(step.loss)
    except KeyError as error:
        fed.found["stopped"] = f"after {len(losses)} of {steps} steps, asking for batch {error}"
    except IndexError:
        fed.found["stopped"] = f"after {len(losses)} of {steps} steps: it wants more batches than the {len(record['items'])} of sd-scripts"
    finally:
        Cache.batch = deal
        for handle in handles:
            handle.remove()
    return compared(case, folder, record, fed, losses, steps, cache.batches(sd, found, recipe), sd)


def compared(case: Case, folder: Path, record: dict, fed: Fed, losses: list[float], steps: int, batches: int, sd) -> dict:
    """How far the two runs are apart."""
    from safetensors.torch import load_file

    from sdnb import lora

    row: dict[str, Any] = {"steps": f"{len(record['updates'])}/{steps}", "batches of an epoch": f"{record['epoch_batches']}/{batches}"}
    row["latents"] = f"{fed.found['latents']:.0e}"
    for name in ("captions", "sizes", "weights"):
        row[name] = "same" if not fed.found[name] else f"{len(fed.found[name])} differ, such as {next(iter(fed.found[name]))}"
    rates = [[sorted(one["rates"], key=str) for one in updates] for updates in (record["updates"][: len(fed.updates)], fed.updates)]
    chosen = all(rate is None for one in fed.updates for rate in one["rates"])  # transformers' Adafactor notes down what it chose
    row["rates"] = "chosen by the optimizer" if chosen else "same" if rates[0] == rates[1] else f"differ: {rates[0]} against {rates[1]}"
    done = [0, *(one["batches"] for one in record["updates"])]
    means = [statistics.fmean(record["losses"][a:b]) for a, b in itertools.pairwise(done)]
    row["losses"] = f"{max((abs(a - b) / abs(a) for a, b in zip(means, losses, strict=False)), default=math.inf):.0e}"
    norms = [abs(a["norm"] - b["norm"]) / a["norm"] for a, b in zip(record["updates"], fed.updates, strict=False)]
    row["norms"] = f"{max(norms, default=math.inf):.0e}"
    if "stopped" in fed.found:
        row["stopped"] = fed.found["stopped"]
    result = folder / "theirs" / "last.safetensors"
    if case.network and result.exists():
        lora.save(sd, folder / "ours.safetensors", form="kohya", dtype="float")
        mine, other = load_file(folder / "ours.safetensors"), load_file(result)
        row["file"] = _apart(mine, other) if mine.keys() == other.keys() else f"keys differ: {sorted(mine.keys() ^ other.keys())[:4]}"
    return row


def _apart(mine: dict, other: dict) -> str:
    """Distance of two files' tensors, as a share of the norm of the second."""
    squares = sum(float((mine[name].double() - other[name].double()).square().sum()) for name in other)
    return f"{math.sqrt(squares / sum(float(other[name].double().square().sum()) for name in other)):.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--python", required=True, help="Python of an environment with sd-scripts' requirements")
    parser.add_argument("--recipes", nargs="*", default=list(CASES), help="by the beginnings of their names")
    parser.add_argument("--keep", type=Path, help="folder for the models, pictures and records; it is kept")
    parser.add_argument("--again", action="store_true", help="take the records of sd-scripts' runs that are there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="beside-"))
    for name, case in CASES.items():
        if not any(name.startswith(one) for one in options.recipes):
            continue
        began = time.perf_counter()
        place = (folder / name.replace(", ", "-").replace(" ", "-")).resolve()
        place.mkdir(parents=True, exist_ok=True)
        if not (options.again and (place / "job.json").exists()):
            pictures(case.pictures, place)
            place.joinpath("widths.json").write_text(json.dumps(models(case.family, place)))
        widths = json.loads(place.joinpath("widths.json").read_text())
        try:
            row = ours(case, place, theirs(case, place, options, widths))
        except Exception as error:
            if options.keep:
                import traceback

                traceback.print_exc()
            row = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{name}, {time.perf_counter() - began:.0f} s", flush=True)
        for key, value in row.items():
            print(f"    {key:20s} {value}", flush=True)


if __name__ == "__main__":
    main()
