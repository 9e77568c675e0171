"""One run of one of sd-scripts' training scripts, for real, that also writes down what each of its batches and updates was.

    python -m benchmarks.sd_scripts_steps CHECKOUT JOB.json

Runs in an environment with sd-scripts' own requirements; benchmarks.beside_sd_scripts calls it. The job names the script, its flags, a
folder for the record and, for a narrow model, the constants that say how wide the script's networks are. Patched are: those constants, the
sampling of latents (their mean instead, so that they can be compared), and functions that only look on. All else, models, data sets,
Accelerator, optimizer, schedule and loop, is sd-scripts' own. With `turns` the run is timed instead (see benchmarks.turns): then only those
constants are patched.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import resource
import sys
import time
from pathlib import Path

from .sd_scripts import Checkout
from .turns import Turns


def rate(value) -> float | None:
    """A group's learning rate as a number; None where the optimizer has yet to choose it."""
    return None if value is None else float(value)


class Record:
    """What the run's batches and updates were."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.items, self.losses, self.updates, self.times = folder, [], [], [], []
        self.tensors, self.network, self.epoch_batches, self.began = {}, None, None, 0.0

    def write(self) -> None:
        from safetensors.torch import save_file

        save_file(self.tensors, self.folder / "batches.safetensors")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rows = {
            "items": self.items[: len(self.losses)], "losses": self.losses, "updates": self.updates, "seconds": self.times,
            "peak_bytes": peak, "epoch_batches": self.epoch_batches,
        }  # fmt: skip
        (self.folder / "record.json").write_text(json.dumps(rows), encoding="utf-8")


def narrow(checkout: Checkout, widths: dict) -> None:
    """Give the script's networks the widths of a narrow model."""
    model_util = checkout.train_util.model_util
    original, sdxl = importlib.import_module("library.original_unet"), importlib.import_module("library.sdxl_original_unet")
    vae = model_util.create_vae_diffusers_config()
    model_util.create_vae_diffusers_config = lambda: {**vae, **widths["vae"]}
    first = widths["channels"][0]
    for name, value in widths["unet"].items():
        setattr(model_util, name, value)
    original.BLOCK_OUT_CHANNELS, original.TIMESTEP_INPUT_DIM, original.TIME_EMBED_DIM = tuple(widths["channels"]), first, 4 * first
    original.NORM_GROUPS = original.TRANSFORMER_NORM_NUM_GROUPS = widths["norm_groups"]
    sdxl.MODEL_CHANNELS, sdxl.TIME_EMBED_DIM = first, 4 * first
    if "adm" in widths:
        sdxl.ADM_IN_CHANNELS = widths["adm"]
        made = sdxl.Transformer2DModel.__init__
        wide = {"cross_attention_dim": widths["context"]}  # said in each call as a number
        sdxl.Transformer2DModel.__init__ = lambda self, *args, **given: made(self, *args, **{**given, **wide})
    for module in (model_util, importlib.import_module("library.sdxl_model_util")):
        plain = module.CLIPTextConfig
        module.CLIPTextConfig = lambda plain=plain, **given: plain(**{**given, **widths["text"][given["hidden_size"] == 1280]})


def stand_in_for_transforms(checkout: Checkout) -> None:
    """Do what torchvision's ToTensor and Normalize do, in the same arithmetic, where it is not installed."""
    import torch

    if not callable(checkout.train_util.IMAGE_TRANSFORMS):
        checkout.train_util.IMAGE_TRANSFORMS = lambda image: (
            torch.from_numpy(image.copy()).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)
        )


def look_on(checkout: Checkout, record: Record) -> None:
    """Note what comes by."""
    import torch
    from accelerate import Accelerator
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    train_util = checkout.train_util
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()

    getitem = train_util.BaseDataset.__getitem__

    def item(self, index):
        example = getitem(self, index)
        if self.caching_mode is None:
            one = self.buckets_indices[index]
            start = one.batch_index * one.bucket_batch_size
            keys = self.bucket_manager.buckets[one.bucket_index][start : start + one.bucket_batch_size]
            sizes = {name: example[name].tolist() for name in ("original_sizes_hw", "crop_top_lefts", "target_sizes_hw")}
            paths = [self.image_data[key].absolute_path for key in keys]
            rows = {"captions": list(example["captions"]), "flipped": [bool(one) for one in example["flippeds"]]}
            record.items.append({"paths": paths, "loss_weights": example["loss_weights"].tolist(), **sizes, **rows})
        return example

    train_util.BaseDataset.__getitem__ = item

    collator = train_util.collator_class.__init__

    def collated(self, epoch, step, dataset):
        record.epoch_batches = len(dataset)
        collator(self, epoch, step, dataset)

    train_util.collator_class.__init__ = collated

    noised = train_util.get_noise_noisy_latents_and_timesteps

    def noises(args, scheduler, latents):
        from safetensors.torch import save_file

        if record.network is not None and not record.losses:
            weights = {name: tensor.detach().clone().contiguous() for name, tensor in record.network.state_dict().items()}
            save_file(weights, record.folder / "initial.safetensors")
        noise, noisy, timesteps = noised(args, scheduler, latents)
        number = len(record.losses)
        for name, tensor in {"latents": latents, "noise": noise, "t": timesteps}.items():
            record.tensors[f"{number}.{name}"] = tensor.detach().clone().contiguous()
        return noise, noisy, timesteps

    train_util.get_noise_noisy_latents_and_timesteps = noises

    backward = Accelerator.backward

    def back(self, loss, **kwargs):
        record.losses.append(float(loss))
        return backward(self, loss, **kwargs)

    Accelerator.backward = back

    def before(optimizer, args, kwargs):
        record.updates.append({"batches": len(record.losses), "rates": [rate(group["lr"]) for group in optimizer.param_groups]})

    def after(optimizer, args, kwargs):
        squares = [p.detach().double().square().sum() for group in optimizer.param_groups for p in group["params"]]
        record.updates[-1]["norm"] = float(torch.stack(squares).sum().sqrt())
        now = time.perf_counter()
        record.times.append(now - record.began)
        record.began = now

    register_optimizer_step_pre_hook(before)
    register_optimizer_step_post_hook(after)
    for name in ("networks.lora",):
        module = importlib.import_module(name)
        create = module.create_network

        def created(*args, create=create, **kwargs):
            record.network = create(*args, **kwargs)
            return record.network

        module.create_network = functools.wraps(create)(created)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("job", type=Path)
    options = parser.parse_args()
    job = json.loads(options.job.read_text(encoding="utf-8"))
    checkout = Checkout(options.checkout.resolve())
    import torch

    torch.set_num_threads(job.get("threads", 1))
    record = Record(Path(job["record"]))
    if job.get("widths"):
        narrow(checkout, job["widths"])
    script = checkout.module(job["script"])
    stand_in_for_transforms(checkout)
    if job.get("turns"):  # it is timed beside others, and nothing of it is noted down
        Turns()
    else:
        look_on(checkout, record)
    sys.argv = [f"{job['script']}.py", *job["flags"]]
    given = checkout.parser(job["script"])
    args = given.parse_args(job["flags"])
    checkout.train_util.verify_command_line_training_args(args)
    args = checkout.train_util.read_config_from_file(args, given)
    record.began = time.perf_counter()
    kinds = {"train_network": "NetworkTrainer", "sdxl_train_network": "SdxlNetworkTrainer"}
    if job["script"] in kinds:
        getattr(script, kinds[job["script"]])().train(args)
    else:
        script.train(args)
    record.write()


if __name__ == "__main__":
    main()
