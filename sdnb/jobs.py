"""`Job`: a whole training run as sd-scripts' settings describe it, from the model's name to the file it leaves."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import arguments
from .reading import read
from .recipe import Recipe

if TYPE_CHECKING:
    from .data import Pictures
    from .models import StableDiffusion
    from .training import Step

USED = frozenset(
    "bucket_no_upscale bucket_reso_steps cache_latents cache_latents_to_disk cache_text_encoder_outputs "
    "cache_text_encoder_outputs_to_disk caption_extension config_file dataset_config enable_bucket flip_aug full_bf16 "
    "keep_tokens lr_decay_steps lr_scheduler_args lr_scheduler_min_lr_ratio lr_scheduler_num_cycles lr_scheduler_power "
    "lr_scheduler_timescale lr_scheduler_type max_bucket_reso max_token_length max_train_epochs min_bucket_reso network_alpha network_args "
    "network_dim network_dropout network_module network_train_text_encoder_only network_train_unet_only output_dir "
    "output_name pretrained_model_name_or_path resolution sample_every_n_steps sample_prompts save_every_n_steps "
    "save_last_n_steps save_last_n_steps_state save_model_as save_precision shuffle_caption text_encoder_lr train_data_dir "
    "training_comment unet_lr v_parameterization".split()
)
"""Settings of sd-scripts besides the fields of `Recipe` that a job acts on."""
OWN = "torch's own attention is always used, and computes the same"
IGNORED = {
    "xformers": OWN,
    "sdpa": OWN,
    "mem_eff_attn": OWN,
    "diffusers_xformers": OWN,
    "save_state": "a job always saves its state",
    "save_state_on_train_end": "a job always saves its state",
    "use_safetensors": "there is no other form here",
    "max_data_loader_n_workers": "pictures are encoded once, before the first step",
    "persistent_data_loader_workers": "pictures are encoded once, before the first step",
    "vae_batch_size": "the batch in which pictures are encoded is chosen here",
    "skip_cache_check": "a cache is always checked",
    "lowram": "it changes where the weights are loaded, not what is trained",
    "highvram": "it changes where the weights are loaded, not what is trained",
    "disable_mmap_load_safetensors": "it changes how a file is read, not what is trained",
    "tokenizer_cache_dir": "tokenizers come with the model",
    "v2": "the kind of model is read from its files",
    "no_half_vae": "the autoencoder has the precision in which it does not overflow",
    "prior_loss_weight": "it weighs regularization pictures, and there are none",
    "no_metadata": "a file says how it was trained",
    "async_upload": "nothing is uploaded",
    "ddp_timeout": "accelerate's own is used",
    "ddp_gradient_as_bucket_view": "accelerate's own is used",
    "ddp_static_graph": "accelerate's own is used",
} | dict.fromkeys(
    "cache_info console_log_file console_log_level console_log_simple log_config log_prefix log_tracker_config log_tracker_name log_with "
    "logging_dir output_config wandb_run_name".split(),
    "it concerns the log, and nothing that is trained",
)
"""Settings that change nothing here, each with the reason."""
REFUSED = {
    "reg_data_dir": "regularization pictures are not supported",
    "in_json": "fine-tuning metadata is not read: captions in .txt files or metadata.jsonl are",
    "train_text_encoder": "all weights of a text encoder are not trained, adapters are: use network_module=networks.lora",
    "network_weights": "to go on with a LoRA of another run: sdnb.lora.load, then sdnb.train",
    "vae": "another autoencoder is loaded with the model: put it into the model's folder",
    "zero_terminal_snr": "the noise levels are those of the model's scheduler's configuration",
    "resume": "a job goes on from its own saves in output_dir by itself",
    "deepspeed": "configure DeepSpeed with accelerate config",
    "full_fp16": "fp16 is too coarse for the weights: mixed_precision=fp16, or full_bf16 with Adafactor",
    "save_every_n_epochs": "say it in steps: save_every_n_steps",
    "save_n_epoch_ratio": "say it in steps: save_every_n_steps",
    "save_last_n_epochs": "say it in steps: save_last_n_steps",
    "save_last_n_epochs_state": "say it in steps: save_last_n_steps_state",
    "sample_every_n_epochs": "say it in steps: sample_every_n_steps",
    "huggingface_repo_id": "nothing is uploaded: take the file from output_dir",
}
"""Settings that are refused in words of their own; every other one that is not listed is refused as well."""
FORMS = {"safetensors": "safetensors", "diffusers": "diffusers", "diffusers_safetensors": "diffusers"}


@dataclass(frozen=True)
class Job:
    """One run. Raises `ValueError` at construction for whatever it does not support, all of it at once."""

    recipe: Recipe

    def __post_init__(self) -> None:
        wrong = unsupported(self.recipe)
        for name, what in {
            "pretrained_model_name_or_path": "the model to start from, such as sd15, or a file",
            "output_dir": "the folder for the result",
        }.items():
            if not self[name]:
                wrong.append(f"{name} is missing: {what}")
        if not self["train_data_dir"] and not self["dataset_config"]:
            wrong.append("train_data_dir is missing: the folder of pictures, or dataset_config, a dataset file")
        if self["train_data_dir"] and self["dataset_config"]:
            wrong.append("train_data_dir and dataset_config exclude each other: leave one of them out")
        if wrong:
            raise ValueError("; ".join(wrong))
        for name in ("train_data_dir", "dataset_config"):
            if self[name] and not Path(self[name]).expanduser().exists() and self[name] not in _bundled():
                raise ValueError(f"{name}={self[name]!r} does not exist: give a folder or file that does")
        if not self.is_lora and self.result.exists():
            raise ValueError(f"{self.result} exists: give another output_name, or move the old one away")

    def __getitem__(self, name: str):
        return dict(self.recipe.others).get(name)

    @property
    def is_lora(self) -> bool:
        """Whether adapters are trained."""
        return bool(self["network_module"] or self["network_dim"])

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return Path(self["output_dir"]).expanduser()

    @property
    def name(self) -> str:
        """Of the result, without its ending."""
        return self["output_name"] or "last"  # sd-scripts' own word for it

    @property
    def saves(self) -> Path:
        """The folder from which an interrupted job goes on."""
        return self.folder / f"{self.name}-saves"

    @property
    def result(self) -> Path:
        """What the run leaves: a LoRA's file, or the whole model as a folder or one file."""
        form = FORMS.get(self["save_model_as"] or "")
        single = (
            self.is_lora or form == "safetensors" or (form is None and str(self["pretrained_model_name_or_path"]).endswith(".safetensors"))
        )
        return self.folder / (f"{self.name}.safetensors" if single else self.name)

    def ignored(self) -> list[str]:
        """What is said and changes nothing here, each with the reason."""
        return [f"{name}: {IGNORED[name]}" for name, _ in self.recipe.others if name in IGNORED]

    def load(self) -> tuple[StableDiffusion, Pictures, Recipe]:
        """The model, the pictures, and the recipe as the dataset file changes it. Raises `ValueError` where they do not go together."""
        import torch

        from . import cache
        from .data import pictures
        from .loading import load

        found = pictures(self["dataset_config"] or self["train_data_dir"], caption_extension=self["caption_extension"])
        recipe = cache.folded(found, self.recipe)
        cache.check(recipe)
        dtype = torch.float32
        if self["full_bf16"] or (self.is_lora and recipe.mixed_precision == "bf16"):
            dtype = torch.bfloat16  # frozen weights need no more than what they are computed with
        elif self.is_lora and recipe.mixed_precision == "fp16":
            dtype = torch.float16
        sd = load(self["pretrained_model_name_or_path"], dtype=dtype)
        predicts = sd.noise_scheduler.config.prediction_type
        if self["v_parameterization"] and predicts != "v_prediction":
            raise ValueError(f"v_parameterization: this model's files say that it predicts {predicts}; leave it out, or correct the files")
        return sd, found, recipe

    def steps(self, sd: StableDiffusion, pictures: Pictures, processes: int = 1) -> int:
        """Optimizer steps of the run; epochs, where they are said, win over steps, as in sd-scripts.

        There each bucket has batches of its own in an epoch, the last of which may not be full.
        """
        from . import cache

        recipe, epochs = cache.folded(pictures, self.recipe), self["max_train_epochs"]
        if not epochs:
            return recipe.max_train_steps
        return int(epochs) * math.ceil(batches(sd, pictures, recipe) / processes / recipe.gradient_accumulation_steps)

    def run(self, *, resume: bool | str = "auto") -> Iterator[Step]:
        """Load, train, and write `result`, yielding each step. `resume` is that of `sdnb.train`."""
        from . import cache, loranotes
        from .running import train

        self.folder.mkdir(parents=True, exist_ok=True)
        sd, pictures, recipe = self.load()
        processes = int(os.environ.get("WORLD_SIZE", 1))
        steps, started = self.steps(sd, pictures, processes), time.time()

        def notes(done: int) -> dict[str, object]:
            sizes, each = cache.sizes_of(sd, recipe), batches(sd, pictures, recipe)
            return loranotes.of_training(
                recipe, pictures, sizes=sizes, batches=each, processes=processes, steps=steps, done=done, started=started
            )

        for step in train(sd, pictures, recipe, steps=steps, save_to=self.saves, resume=resume, samples=self._prompts()):
            if step.saved is not None and self.is_lora and step.index + 1 < steps:
                self._store(sd, self.folder / f"{self.name}-step{step.index + 1:08d}.safetensors", notes(step.index + 1))
                self._prune(step.index + 1)
            yield step
        if int(os.environ.get("RANK", 0)) == 0:
            self._store(sd, self.result, notes(steps))

    def _store(self, sd: StableDiffusion, path: Path, notes: dict[str, object]) -> None:
        from . import lora

        if self.is_lora:
            lora.save(sd, path, form="kohya", dtype=self["save_precision"], metadata=notes)
        elif not path.exists():
            sd.save(path)

    def _prune(self, done: int) -> None:
        """Delete the files of earlier steps that `save_last_n_steps` does not keep."""
        last = self["save_last_n_steps"]
        for path in self.folder.glob(f"{self.name}-step*.safetensors") if last else ():
            number = path.stem.rpartition("-step")[2]
            if number.isdigit() and int(number) < done - last:
                path.unlink()

    def _prompts(self) -> list[str]:
        if not self["sample_prompts"]:
            return []
        path = Path(self["sample_prompts"]).expanduser()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ValueError(
                f"sample_prompts={str(path)!r} cannot be read ({error.strerror}): give a text file, a prompt a line"
            ) from error
        return [line.partition(" --")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def batches(sd: StableDiffusion, pictures: Pictures, recipe: Recipe) -> int:
    """Batches of one epoch, as sd-scripts counts them: a picture as often as its `repeats`, and each bucket by itself."""
    from . import cache

    sizes = cache.sizes_of(sd, recipe)
    shown: Counter[tuple[int, int]] = Counter()
    for picture in pictures:
        shown[sizes.place(*picture.size).size] += picture.repeats
    return sum(math.ceil(many / recipe.train_batch_size) for many in shown.values())


def unsupported(recipe: Recipe) -> list[str]:
    """What of a recipe a job does not do, each with the reason."""
    wrong = []
    for name, value in recipe.others:
        if name in USED or name in IGNORED:
            continue
        if name in REFUSED:
            wrong.append(f"{name}: {REFUSED[name]}")
        elif not set(arguments.scripts_with(name)) & set(arguments.STABLE_DIFFUSION):
            wrong.append(f"{name}: it belongs to {arguments.scripts_with(name)[0]}, another kind of model")
        elif not (name == "clip_skip" and value == 1):
            wrong.append(f"{name}: it is not supported; leave it out if the run can do without")
    form = dict(recipe.others).get("save_model_as")
    if form is not None and form not in FORMS:
        wrong.append(f"save_model_as={form}: only safetensors are written, never pickles: leave it out")
    return wrong


def parse(config: str | Path | None, flags: list[str]) -> Recipe:
    """The recipe of a file, of flags, or of both, where flags win. Raises `ValueError` as `Recipe.parse` does."""
    if config is None and not flags:
        raise ValueError("nothing to train: give --config FILE, or sd-scripts' flags after --")
    if config is not None and not Path(config).expanduser().is_file():
        raise ValueError(f"--config {config}: there is no such file")
    texts = ([Path(config).expanduser()] if config is not None else []) + ([shlex.join(flags)] if flags else [])
    found = None
    for text in texts:
        Recipe.parse(text)  # refuses what is wrong with it
        settings = read(text)
        found = settings if found is None else found.change(settings.given)
    return Recipe.from_settings(found)


def _bundled() -> tuple[str, ...]:
    from .data import BUNDLED

    return BUNDLED
