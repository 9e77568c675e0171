"""Peak memory of the training steps of diffusers' example scripts, recorded by running them on the meta device.

    python -m benchmarks.record_diffusers [--only WORD]

Its own classes, peft's adapters and torch's or bitsandbytes' optimizers run two steps in the order of the scripts, on tensors without
contents; every storage is counted as `sdnb.planner` counts its own step. The bytes go to `tests/recorded/memory_of_diffusers.json`, to
which `tests/planner/test_trainers.py` holds `plan(…, trainer="diffusers")`. Nothing of the scripts' code is kept.

What is done as in which line, at commit 58eb52c:

                            text_to_image  _lora      _sdxl      _lora_sdxl  train_dreambooth
    precision of the parts  885, 886       540-542    726-728    670-677     1158, 1161
    adapters                               532, 545              701, 710
    adapters in fp32                       546, with fp16        826, the same
    recomputed blocks       699            566        792        811         1003
    optimizer               725            592        818        847         1045
    pictures encoded        968            866        once       1107-1115   1242
    captions encoded        993            887        once       538, 1149   1277
    loss                    1023           905        1149       1179        1302-1332
    clipping                1048           931        1175       1206        1341

Takes about two minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import LoraConfig
from torch.nn import functional as F

from sdnb.models import skeletons
from sdnb.planner import tape
from sdnb.planner.meta_step import MetaAccelerator

from .record_memory import _peaks

FACTS = Path(__file__).resolve().parent.parent / "tests" / "recorded" / "memory_of_diffusers.json"
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
COMMIT = "58eb52c0803ea9af3abec60841c2a093bdf1f951"
SIDES = {"sd15": 512, "sdxl": 1024}
SDXL = ("train_text_to_image_sdxl", "train_text_to_image_lora_sdxl")


def grid() -> list[dict]:
    """Rows to record: script, model, pictures in a batch, precision, recomputed or not, optimizer, prior preservation."""
    names = "script", "model", "batch", "mixed_precision", "gradient_checkpointing", "optimizer", "prior"
    rows = []
    for script, (mixed, recomputed) in itertools.product(
        ("train_text_to_image", "train_text_to_image_lora"), itertools.product(DTYPES, (False, True))
    ):
        rows.append((script, "sd15", 1, mixed, recomputed, "AdamW", False))
    rows += [
        ("train_text_to_image", "sd15", 2, "bf16", True, "AdamW8bit", False),
        ("train_text_to_image_lora", "sd15", 4, "bf16", True, "AdamW", False),
        ("train_dreambooth", "sd15", 1, "fp16", True, "AdamW8bit", True),
        ("train_dreambooth", "sd15", 1, "bf16", False, "AdamW", True),
        ("train_text_to_image_sdxl", "sdxl", 1, "bf16", True, "AdamW8bit", False),
        ("train_text_to_image_sdxl", "sdxl", 1, "fp16", False, "AdamW", False),
        ("train_text_to_image_lora_sdxl", "sdxl", 1, "bf16", True, "AdamW", False),
        ("train_text_to_image_lora_sdxl", "sdxl", 1, "fp16", True, "AdamW8bit", False),
        ("train_text_to_image_lora_sdxl", "sdxl", 1, "bf16", False, "AdamW", False),
    ]
    return [dict(zip(names, row, strict=True)) for row in rows]


def record(row: dict) -> dict:
    """Peaks of two steps of a script, in bytes as CUDA's allocator rounds them, without the workspaces of cuBLAS."""
    low, sd, sdxl = DTYPES[row["mixed_precision"]], skeletons.skeleton(row["model"]), row["script"] in SDXL
    unet, vae, encoders = sd.denoiser, sd.vae, list(sd.encoders.values())
    for part in (vae, *encoders):
        part.requires_grad_(False).to(low)
    if sdxl:
        vae.to(torch.float32)
    if "lora" in row["script"]:
        unet.requires_grad_(False).to(low)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
        if row["mixed_precision"] == "fp16":
            for p in unet.parameters():
                p.data = p.data.float() if p.requires_grad else p.data
    unet.train()
    if row["gradient_checkpointing"]:
        unet.enable_gradient_checkpointing()
    trained = [p for p in unet.parameters() if p.requires_grad]
    kind = __import__("bitsandbytes").optim.AdamW8bit if row["optimizer"] == "AdamW8bit" else torch.optim.AdamW
    optimizer = kind(trained, lr=1e-4)
    for group in optimizer.param_groups:
        if group.get("foreach", 0) is None:
            group["foreach"] = True  # as torch does on CUDA, but not on meta
    cached = row["script"] == "train_text_to_image_sdxl"
    parts = {"unet": unet} if cached else {"unet": unet, "vae": vae, **{f"text_encoder{n}": one for n, one in enumerate(encoders)}}
    recorder = tape.Recorder(parts, kernels="cuda", attention="flash")
    accelerator = MetaAccelerator(row["mixed_precision"], 1)
    inputs, second = _inputs(row, sd, low, cached), 0
    with accelerator.prepared([unet], "cuda"), recorder.recording():
        for step in range(2):
            second = len(recorder.ledger.events) if step else 0
            # the names live on into the next step, as those of the scripts do
            latents = inputs.latents
            if not cached:
                latents = vae.encode(inputs.pixels.to(vae.dtype)).latent_dist.sample()
                latents = latents * vae.config.scaling_factor
                latents = latents.to(low) if sdxl else latents
            noise = torch.randn_like(latents)
            noisy = sd.noise_scheduler.add_noise(latents, noise, inputs.timesteps)
            if cached:
                noisy, context = noisy.to(low), inputs.context
            elif sdxl:
                states = [encoder(inputs.ids, output_hidden_states=True, return_dict=False) for encoder in encoders]
                context = torch.concat([state[-1][-2] for state in states], dim=-1)
            else:
                context = encoders[0](inputs.ids, return_dict=False)[0]
            more = {"added_cond_kwargs": {"time_ids": inputs.time_ids, "text_embeds": inputs.pooled}} if sdxl else {}
            prediction = unet(noisy, inputs.timesteps, context, return_dict=False, **more)[0]
            if row["prior"]:
                (prediction, prior), (target, prior_target) = torch.chunk(prediction, 2), torch.chunk(noise, 2)
                prior_loss = F.mse_loss(prior.float(), prior_target.float(), reduction="mean")
                loss = F.mse_loss(prediction.float(), target.float(), reduction="mean") + prior_loss
            else:
                loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return _peaks(recorder.tape(), second) | {"trained": sum(p.numel() for p in trained)}


def _inputs(row: dict, sd, low: torch.dtype, cached: bool) -> SimpleNamespace:
    """What a step gets from outside, on the meta device; prior preservation adds a picture of the class to each."""
    pictures, side = row["batch"] * (1 + row["prior"]), SIDES[row["model"]]
    with torch.device("meta"):
        return SimpleNamespace(
            pixels=torch.empty(pictures, 3, side, side),
            latents=torch.empty(pictures, 4, side // 8, side // 8) if cached else None,
            timesteps=torch.empty(pictures, dtype=torch.long),
            ids=torch.empty(pictures, 77, dtype=torch.long),
            context=torch.empty(pictures, 77, 2048, dtype=low) if cached else None,
            pooled=torch.empty(pictures, 1280, dtype=low),
            time_ids=torch.empty(pictures, 6, dtype=low),
        )


def main() -> None:
    """Record the rows, and keep those of the file that are not recorded anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="record only rows that have this word")
    arguments = parser.parse_args()
    made_with = {name: version(name) for name in ("torch", "diffusers", "peft", "transformers")} | {"commit": COMMIT}
    recorded = json.loads(FACTS.read_text(encoding="utf-8"))["rows"] if FACTS.exists() else []
    rows = []
    for row in grid():
        known = next((one for one in recorded if one.items() >= row.items()), None)
        if arguments.only in json.dumps(row) or known is None:
            start = time.perf_counter()
            known = row | record(row)
            print(f"{known['peak'] / 2**30:7.2f} GiB {time.perf_counter() - start:5.1f} s  {row}", flush=True)
        rows.append(known)
        FACTS.write_text(json.dumps({"made_with": made_with, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
