"""Peak memory of the training steps of kohya-ss/sd-scripts, recorded by running them on the meta device.

    python -m benchmarks.record_memory --sd-scripts FOLDER --commit HASH [--only WORD]

Run it in an environment with sd-scripts' own requirements. Its U-Nets, its LoRA modules, its parsers and its optimizers run two steps, in
the order of its scripts, on tensors without contents; every storage is counted as `sdnb.planner` counts its own step. The bytes go to
`tests/recorded/memory_of_sd_scripts.json`, to which `tests/planner/test_sd_scripts.py` and `python -m benchmarks.planner --only
sd-scripts` hold `plan(…, trainer="sd-scripts")`. Nothing of its code is kept. `--only` records the rows whose name has the word.

About five minutes on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from sdnb.memory import PHASES
from sdnb.planner import allocator, tape
from sdnb.planner.meta_step import MetaAccelerator

from .sd_scripts import Checkout, versions

FACTS = Path(__file__).resolve().parent.parent / "tests" / "recorded" / "memory_of_sd_scripts.json"
RANK = "--network_module=networks.lora --network_dim=16 --network_alpha=16 --network_train_unet_only"
ADAFACTOR = "--optimizer_type=Adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False"
BF16, FULL = "--mixed_precision=bf16", "--mixed_precision=bf16 --full_bf16"
NO, CHECKPOINTING = "--mixed_precision=no", "--gradient_checkpointing"
CAPTIONS = "--cache_text_encoder_outputs"


def grid() -> list[tuple[str, str, int, int, str]]:
    """Rows to record: script, model, side in pixels, batch, flags beside --cache_latents."""
    lora15, loraxl = ("train_network", "sd15", 512), ("sdxl_train_network", "sdxl", 1024)
    whole15, wholexl = ("fine_tune", "sd15", 512), ("sdxl_train", "sdxl", 1024)
    rows = []
    for attention, checkpointing, precision in itertools.product(("--sdpa", ""), ("", CHECKPOINTING), (NO, BF16)):
        rows.append((*lora15, 1, f"{RANK} {precision} --optimizer_type=AdamW {attention} {checkpointing}"))
        rows.append((*whole15, 1, f"{precision} --optimizer_type=AdamW {attention} {checkpointing}"))
    rows += [
        (*lora15, 4, f"{RANK} {BF16} {ADAFACTOR} --sdpa {CHECKPOINTING}"),
        (*lora15, 2, f"{RANK} {FULL} --optimizer_type=AdamW --sdpa {CHECKPOINTING}"),
        (*lora15, 2, f"{RANK} {BF16} --optimizer_type=AdamW --mem_eff_attn {CHECKPOINTING}"),
        ("train_network", "sd15", 768, 1, f"{RANK} {BF16} --optimizer_type=AdamW {CHECKPOINTING}"),
        (*whole15, 1, f"{BF16} {ADAFACTOR} --max_grad_norm=0 --sdpa {CHECKPOINTING}"),
        (*whole15, 4, f"{BF16} {ADAFACTOR} --sdpa"),
        (*whole15, 2, f"{BF16} --optimizer_type=AdamW --sdpa --gradient_accumulation_steps=2 {CHECKPOINTING}"),
    ]
    for attention, checkpointing in itertools.product(("--sdpa", ""), ("", CHECKPOINTING)):
        rows.append((*loraxl, 1, f"{RANK} {BF16} --optimizer_type=AdamW {CAPTIONS} {attention} {checkpointing}"))
    rows += [
        (*loraxl, 1, f"{RANK} {NO} --optimizer_type=AdamW {CAPTIONS} --sdpa {CHECKPOINTING}"),
        (*loraxl, 2, f"{RANK} {FULL} {ADAFACTOR} {CAPTIONS} --sdpa {CHECKPOINTING}"),
        (*loraxl, 1, f"{RANK} {BF16} --optimizer_type=AdamW --sdpa {CHECKPOINTING}"),
        (*wholexl, 1, f"{FULL} {ADAFACTOR} --max_grad_norm=0 --fused_backward_pass {CAPTIONS} --sdpa {CHECKPOINTING}"),
        (*wholexl, 1, f"{NO} {ADAFACTOR} --max_grad_norm=0 --fused_backward_pass {CAPTIONS} --sdpa {CHECKPOINTING}"),
        (*wholexl, 1, f"{BF16} {ADAFACTOR} --max_grad_norm=0 --fused_backward_pass {CAPTIONS} --sdpa {CHECKPOINTING}"),
        (*wholexl, 1, f"{FULL} {ADAFACTOR} --max_grad_norm=0 --fused_backward_pass {CAPTIONS} --sdpa"),
        (*wholexl, 4, f"{FULL} {ADAFACTOR} --fused_backward_pass --sdpa {CHECKPOINTING}"),
        (*wholexl, 1, f"{BF16} {ADAFACTOR} --max_grad_norm=0 {CAPTIONS} --sdpa {CHECKPOINTING}"),
        (*wholexl, 1, f"{FULL} --optimizer_type=AdamW {CAPTIONS} {CHECKPOINTING}"),
        (*wholexl, 1, f"{BF16} --optimizer_type=AdamW {CAPTIONS} --sdpa"),
    ]
    return [(script, model, side, batch, " ".join(flags.split())) for script, model, side, batch, flags in rows]


def models(checkout: Checkout, model: str) -> SimpleNamespace:
    """The U-Net and the text encoders of `sd15` or `sdxl`, on the meta device, in fp32."""
    transformers = importlib.import_module("transformers")
    clip_l = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408)
    with torch.device("meta"):
        encoders = [transformers.CLIPTextModel(transformers.CLIPTextConfig(**clip_l))]
        if model == "sd15":
            library = importlib.import_module("library.model_util")
            unet = importlib.import_module("library.original_unet").UNet2DConditionModel(**library.create_unet_diffusers_config(False))
        else:
            unet = importlib.import_module("library.sdxl_original_unet").SdxlUNet2DConditionModel()
            bigger = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, vocab_size=49408)
            config = transformers.CLIPTextConfig(**bigger, projection_dim=1280)
            encoders.append(transformers.CLIPTextModelWithProjection(config))
    return SimpleNamespace(unet=unet, encoders=encoders)


def record(checkout: Checkout, script: str, model: str, side: int, batch: int, flags: str) -> dict:
    """Peaks of two steps of a script, in bytes as CUDA's allocator rounds them, without the workspaces of cuBLAS."""
    args = checkout.parser(script).parse_args(f"--pretrained_model_name_or_path=x --cache_latents {flags}".split())
    weight_dtype, _ = checkout.train_util.prepare_dtype(args)
    made = models(checkout, model)
    unet, encoders = made.unet, made.encoders
    checkout.train_util.replace_unet_modules(unet, args.mem_eff_attn, args.xformers, args.sdpa)
    trains_adapters = script.endswith("train_network")
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    for part in (unet, *encoders):
        part.requires_grad_(False)
    for encoder in encoders:
        encoder.to(weight_dtype)
    network = None
    if trains_adapters:  # train_network.py: the base in the precision of the computation, the adapters in fp32
        unet.to(weight_dtype).train(args.gradient_checkpointing)
        encoders_there = encoders if len(encoders) > 1 else encoders[0]
        with torch.device("meta"):
            network = importlib.import_module("networks.lora").create_network(
                1.0, args.network_dim, args.network_alpha, None, encoders_there, unet, neuron_dropout=None
            )
        network.apply_to(encoders_there, unet, False, True)
        if args.full_bf16:
            network.to(weight_dtype)
        network.requires_grad_(True)
        groups = network.prepare_optimizer_params(None, None, args.learning_rate)
        groups = groups[0] if isinstance(groups, tuple) else groups
    else:
        unet.train().requires_grad_(True)
        if script == "sdxl_train" and args.full_bf16:
            unet.to(weight_dtype)
        groups = [{"params": list(unet.parameters()), "lr": args.learning_rate}]
    *_, optimizer = checkout.train_util.get_optimizer(args, groups)
    for group in optimizer.param_groups:
        if group.get("foreach", 0) is None:
            group["foreach"] = True  # as torch does on CUDA, but not on meta
    parts = {"unet": unet} | ({"network": network} if network is not None else {})
    if not getattr(args, "cache_text_encoder_outputs", False):
        parts |= {f"text_encoder{number}": encoder for number, encoder in enumerate(encoders)}
    attention = "flash" if args.sdpa else "math"
    recorder = tape.Recorder(parts, kernels="cuda", attention=attention)
    accelerator = MetaAccelerator(args.mixed_precision, args.gradient_accumulation_steps)
    fused = script == "sdxl_train" and args.fused_backward_pass
    if fused:
        _step_in_backward(optimizer, accelerator, args.max_grad_norm)
    inputs = _inputs(model, side, batch, weight_dtype, args.gradient_checkpointing and trains_adapters)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    second = 0
    with accelerator.prepared([unet], "cuda"), recorder.recording():
        for step in range(2):
            second = len(recorder.ledger.events) if step else 0
            for last in range(args.gradient_accumulation_steps):
                # the names live on into the next step, as those of the scripts do
                noise = torch.randn_like(inputs.latents)
                noisy = (0.5 * inputs.latents + 0.5 * noise).to(weight_dtype)
                noisy.requires_grad_(trains_adapters)
                if model == "sd15":
                    noise_pred = unet(noisy, inputs.timesteps, inputs.context).sample
                else:
                    noise_pred = unet(noisy, inputs.timesteps, inputs.context, inputs.pooled)
                loss = torch.nn.functional.mse_loss(noise_pred.float(), noise.float(), reduction="none").mean((1, 2, 3)).mean()
                accelerator.backward(loss)
                if not fused and last == args.gradient_accumulation_steps - 1:
                    if args.max_grad_norm != 0.0:
                        accelerator.clip_grad_norm_(trained, args.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
    return _peaks(recorder.tape(), second) | {"trained": sum(p.numel() for p in trained)}


def _step_in_backward(optimizer, accelerator: MetaAccelerator, max_grad_norm: float) -> None:
    """Step each parameter as soon as its gradient is complete, as sdxl_train.py does."""
    importlib.import_module("library.adafactor_fused").patch_adafactor_fused(optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:

            def step(tensor, group=group) -> None:
                if max_grad_norm != 0.0:
                    accelerator.clip_grad_norm_(tensor, max_grad_norm)
                optimizer.step_param(tensor, group)
                tensor.grad = None

            parameter.register_post_accumulate_grad_hook(step)


def _inputs(model: str, side: int, batch: int, dtype: torch.dtype, context_learns: bool) -> SimpleNamespace:
    """What a step gets from outside, on the meta device."""
    with torch.device("meta"):
        return SimpleNamespace(
            latents=torch.empty(batch, 4, side // 8, side // 8, dtype=dtype),
            timesteps=torch.empty(batch, dtype=torch.long),
            context=torch.empty(batch, 77, 768 if model == "sd15" else 2048, dtype=dtype, requires_grad=context_learns),
            pooled=torch.empty(batch, 2816, dtype=dtype),
        )


def _peaks(recorded: tape.Tape, second: int) -> dict:
    """Peak in all and by phase, what is left between the steps, and what the allocator would reserve."""
    unit = allocator.REQUEST_MULTIPLE
    timeline = tape.on_card(tape.Timeline(recorded, second), 82 * 1536)
    changes = timeline.tape.changes
    start = int((-(-recorded.sizes[recorded.base] // unit) * unit).sum())
    totals = start + np.cumsum(np.sign(changes) * (-(-np.abs(changes) // unit) * unit))
    bases = recorded.base.tolist()
    numbers = {number: index for index, number in enumerate(bases)}
    storages = [numbers.get(n, n + len(bases)) if n >= 0 else -1 for n in timeline.tape.storages.tolist()]
    replayed = allocator.replay(recorded.sizes[recorded.base].tolist(), zip(storages, changes.tolist(), strict=True))
    phases = recorded.phases.copy()
    for step in (slice(0, second), slice(second, None)):  # clipping belongs to the optimizer's part of a step
        after = step.start + int(np.flatnonzero(phases[step] == PHASES.index("backward"))[-1]) + 1
        phases[after : step.stop] = PHASES.index("optimizer")
    by_phase = {name: int(totals[phases == n].max()) for n, name in enumerate(PHASES) if (phases == n).any()}
    return {"peak": int(totals.max()), "phases": by_phase, "static": int(totals[second - 1]), "reserved": replayed.reserved}


def main() -> None:
    """Record the rows, and keep those of the file that are not recorded anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd-scripts", type=Path, required=True, help="a checkout of sd-scripts")
    parser.add_argument("--commit", required=True, help="its commit")
    parser.add_argument("--only", default="", help="record only rows that have this word")
    parser.add_argument("--missing", action="store_true", help="record only rows that the file lacks")
    arguments = parser.parse_args()
    checkout = Checkout(arguments.sd_scripts)
    recorded = json.loads(FACTS.read_text(encoding="utf-8"))["rows"] if FACTS.exists() else []
    rows = {(row["script"], row["side"], row["batch"], row["flags"]): row for row in recorded}
    for script, model, side, batch, flags in grid():
        key = script, side, batch, flags
        if arguments.only not in f"{script} {model} {flags}" or (arguments.missing and key in rows):
            continue
        start = time.perf_counter()
        with contextlib.redirect_stdout(None):
            row = record(checkout, script, model, side, batch, flags)
        rows[key] = {"script": script, "model": model, "side": side, "batch": batch, "flags": flags, **row}
        print(f"{row['peak'] / 2**30:7.2f} GiB {time.perf_counter() - start:5.1f} s  {script} {side} {batch} {flags}", flush=True)
        ordered = [rows[known] for known in ((s, d, b, f) for s, _, d, b, f in grid()) if known in rows]
        made_with = versions() | {"commit": arguments.commit}
        FACTS.write_text(json.dumps({"made_with": made_with, "rows": ordered}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
