"""What sd-scripts trains and at which rates, how it holds adapters to a norm, and which batches and updates an epoch has.

    python -m benchmarks.record_parts CHECKOUT [--commit COMMIT]

Runs in an environment with sd-scripts' own requirements, and writes tests/recorded/parts_of_sd_scripts.json.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import tempfile
import types
from pathlib import Path

from .sd_scripts import Checkout

FILE = Path(__file__).parents[1] / "tests" / "recorded" / "parts_of_sd_scripts.json"
RATES = (None, 0.0, 2e-4)
"""Of the U-Net and of the text encoder, with each default rate."""
SHAPES = {"linear": ((2, 6), (5, 2)), "1x1": ((2, 4, 1, 1), (3, 2, 1, 1)), "3x3": ((3, 2, 3, 3), (4, 3, 1, 1))}
"""Of down and up."""
SIDES = ((64, 64), (64, 64), (96, 64), (64, 96), (64, 96), (128, 64), (64, 64))
COUNTS = ((1, 1, 0), (2, 1, 0), (2, 3, 0), (3, 2, 0), (4, 5, 0), (2, 1, 2), (3, 2, 5), (2, 4, 3), (9, 1, 0), (10, 1, 4))
"""Batch size, repeats, and regularization pictures, of which each is shown once."""


def groups() -> list[dict]:
    """The parameter groups of a LoRA: what each trains, and its learning rate."""
    import torch

    lora, rows = importlib.import_module("networks.lora"), []
    for default, unet_lr, text_lr in itertools.product((0.0, 1e-4), RATES, RATES):
        adapters = {}
        for part in ("unet", "text_encoder"):
            adapters[part] = torch.nn.Module()
            adapters[part].lora_name = part
            adapters[part].lora_down = torch.nn.Linear(2, 2, bias=False)
        network = types.SimpleNamespace(
            text_encoder_loras=[adapters["text_encoder"]], unet_loras=[adapters["unet"]], block_lr=False, requires_grad_=lambda flag: None,
            loraplus_lr_ratio=None, loraplus_unet_lr_ratio=None, loraplus_text_encoder_lr_ratio=None,
        )  # fmt: skip
        made, names = lora.LoRANetwork.prepare_optimizer_params(network, text_lr, unet_lr, default)
        found = [[name, group["lr"]] for name, group in zip(names, made, strict=True)]
        rows.append({"learning_rate": default, "unet_lr": unet_lr, "text_encoder_lr": text_lr, "groups": found})
    return rows


def blocks(checkout: Checkout) -> list[list[int]]:
    """Of each block of SDXL's U-Net that `block_lr` tells apart: how many parameters it has, and how many numbers these hold."""
    import torch

    with torch.device("meta"):
        unet = importlib.import_module("library.sdxl_original_unet").SdxlUNet2DConditionModel()
    made = checkout.module("sdxl_train").get_block_params_to_optimize(unet, [float(1 + place) for place in range(23)])
    return [[len(group["params"]), sum(p.numel() for p in group["params"])] for group in made]


def norms() -> list[dict]:
    """Adapters before and after they were held to a norm, with what the log says of it."""
    import torch

    lora, rows = importlib.import_module("networks.lora"), []
    generator = torch.Generator().manual_seed(0)
    for most in (0.5, 2.0, 10.0):
        state, kept = {}, {}
        for place, (kind, (down, up)) in enumerate(SHAPES.items()):
            for strength in (0.05, 1.0):
                name = f"lora_unet_{kind}_{strength}"
                matrices = [(torch.randn(shape, generator=generator) * strength).mul(64).round().div(64) for shape in (down, up)]
                state |= {f"{name}.lora_down.weight": matrices[0], f"{name}.lora_up.weight": matrices[1]}
                state[f"{name}.alpha"] = torch.tensor(1.0 + place)
                kept[name] = {"alpha": 1.0 + place, "down": matrices[0].tolist(), "up": matrices[1].tolist()}
        network = types.SimpleNamespace(state_dict=lambda state=state: state)
        scaled, mean, largest = lora.LoRANetwork.apply_max_norm_regularization(network, most, "cpu")
        for name, row in kept.items():
            row |= {"down_after": state[f"{name}.lora_down.weight"].tolist(), "up_after": state[f"{name}.lora_up.weight"].tolist()}
        rows.append({"scale_weight_norms": most, "adapters": list(kept.values()), "scaled": scaled, "mean": mean, "largest": largest})
    return rows


def epochs(checkout: Checkout) -> list[dict]:
    """How many batches an epoch has, of pictures with these sides, and the size and the pictures of each batch in two epochs."""
    from PIL import Image

    util, rows = checkout.train_util, []
    for (size, repeats, regularizing), enabled in itertools.product(COUNTS, (False, True)):
        with tempfile.TemporaryDirectory() as place:
            subsets = []
            for name, count in (("pictures", len(SIDES)), ("reg", regularizing)):
                folder = Path(place) / name
                folder.mkdir()
                for number in range(count):
                    Image.new("RGB", SIDES[number]).save(folder / f"{number}.png")
                if count:
                    subsets.append(_subset(util, folder, repeats if name == "pictures" else 1, name == "reg"))
            dataset = util.DreamBoothDataset(
                subsets, is_training_dataset=True, batch_size=size, resolution=(64, 64), network_multiplier=1.0, enable_bucket=enabled,
                min_bucket_reso=32, max_bucket_reso=256, bucket_reso_steps=32, bucket_no_upscale=False, prior_loss_weight=1.0,
                debug_dataset=False, validation_split=0.0, validation_seed=None, resize_interpolation=None,
            )  # fmt: skip
            dataset.make_buckets()
            dataset.set_caching_mode("none of the known")  # so that an item is names and sizes
            dealt = []
            for epoch in (1, 2):
                dataset.set_current_epoch(epoch)
                items = [dataset[number] for number in range(len(dataset))]
                dealt.append([[item["bucket_reso"], list(map(_short, item["absolute_paths"]))] for item in items])
            row = {"train_batch_size": size, "repeats": repeats, "reg": regularizing, "enable_bucket": enabled, "batches": len(dataset)}
            rows.append(row | {"dealt": dealt})
    return rows


def _short(path: str) -> str:
    """A picture's number, after an r for those of regularization."""
    return ("r" if Path(path).parent.name == "reg" else "") + Path(path).stem


def updates() -> list[dict]:
    """How many batches each update of two epochs learns from, and the sum of their gradients, each of which would be 1 alone."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    rows = []
    for batches, rounds in itertools.product((1, 2, 3, 5, 8), (1, 2, 3, 4)):
        AcceleratorState._reset_state(True)
        accelerator = Accelerator(gradient_accumulation_steps=rounds, cpu=True)
        weight = torch.nn.Linear(1, 1, bias=False)
        model, optimizer = accelerator.prepare(weight, torch.optim.SGD(weight.parameters(), lr=0.0))
        loader = accelerator.prepare(torch.utils.data.DataLoader(torch.ones(batches, 1), batch_size=1, shuffle=True))
        found, count = [], 0
        for _ in range(2):
            for batch in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(model(batch).mean())
                    count += 1
                    if accelerator.sync_gradients:
                        found.append([count, float(weight.weight.grad)])
                        count = 0
                    optimizer.step()
                    optimizer.zero_grad()
        rows.append({"batches": batches, "gradient_accumulation_steps": rounds, "updates": found})
    return rows


def shares() -> list[dict]:
    """Which batches of an epoch, by their places, each of several processes has."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    rows = []
    for batches, processes in itertools.product((1, 2, 3, 5, 8), (2, 3, 4)):
        whole = BatchSampler(range(batches), 1, drop_last=False)
        each = [[place for (place,) in BatchSamplerShard(whole, processes, process)] for process in range(processes)]
        rows.append({"batches": batches, "processes": processes, "shares": each})
    return rows


def _subset(util: types.ModuleType, folder: Path, repeats: int, is_reg: bool):
    return util.DreamBoothSubset(
        image_dir=str(folder), is_reg=is_reg, class_tokens="a", caption_extension=".txt", cache_info=False, alpha_mask=False,
        num_repeats=repeats, shuffle_caption=False, caption_separator=",", keep_tokens=0, keep_tokens_separator="",
        secondary_separator=None, enable_wildcard=False, color_aug=False, flip_aug=False, face_crop_aug_range=None, random_crop=False,
        caption_dropout_rate=0.0, caption_dropout_every_n_epochs=0, caption_tag_dropout_rate=0.0, caption_prefix=None,
        caption_suffix=None, token_warmup_min=1, token_warmup_step=0,
    )  # fmt: skip


def main() -> None:
    """Record, and say what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of sd-scripts")
    parser.add_argument("--commit", help="its commit, where it has no .git")
    options = parser.parse_args()
    checkout = Checkout(options.checkout)
    facts = {"groups": groups(), "blocks": blocks(checkout), "norms": norms(), "epochs": epochs(checkout)}
    facts |= {"updates": updates(), "shares": shares()}
    source = {
        "repository": "kohya-ss/sd-scripts",
        "commit": checkout.commit(options.commit),
        "made by": "python -m benchmarks.record_parts",
    }
    lines = [f"{json.dumps(key)}: [\n " + ",\n ".join(map(json.dumps, rows)) + "\n]" for key, rows in facts.items()]
    FILE.write_text("{\n" + ",\n".join([f'"source": {json.dumps(source)}', *lines]) + "\n}\n", encoding="utf-8")
    print({key: len(rows) for key, rows in facts.items()})


if __name__ == "__main__":
    main()
