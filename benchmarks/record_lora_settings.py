"""Metadata that kohya-ss/sd-scripts writes into a LoRA, recorded by running its training scripts up to their loops.

    python -m benchmarks.record_lora_settings --sd-scripts FOLDER [--commit HASH]

Runs in an environment with sd-scripts' requirements. Models and data are those of `benchmarks.sd_scripts_run`. The facts go to
`tests/recorded/lora_settings_of_sd_scripts.json`, where tests read settings out of them. Nothing of its code is kept.
"""

from __future__ import annotations

import argparse
import json
import shlex
import traceback
from pathlib import Path

from .sd_scripts import Checkout, versions
from .sd_scripts_run import Reached, Run

FACTS = Path(__file__).resolve().parent.parent / "tests" / "recorded" / "lora_settings_of_sd_scripts.json"
COMMANDS = (
    "train_network.py --network_module=networks.lora --network_dim=8 --network_alpha=4 --learning_rate=1e-4 --seed=7 --max_train_steps=20 "
    "--output_name=fox --mixed_precision=no --cache_latents",
    "train_network.py --network_module=networks.lora --network_dim=16 --network_args conv_dim=4 conv_alpha=1 loraplus_lr_ratio=16 "
    "--unet_lr=1e-4 --text_encoder_lr 5e-5 --optimizer_type=AdamW --optimizer_args weight_decay=0.1 betas=(0.9,0.95) --seed=3 "
    "--max_train_steps=100 --train_batch_size=3 --lr_scheduler=cosine --lr_warmup_steps=10 --min_snr_gamma=5 --noise_offset=0.05 "
    "--adaptive_noise_scale=0.01 --shuffle_caption --keep_tokens=1 --enable_bucket --min_bucket_reso=256 --max_bucket_reso=1024 "
    "--bucket_no_upscale --resolution=512,768 --clip_skip=2 --max_token_length=150 --gradient_checkpointing --full_fp16 "
    "--mixed_precision=fp16 --max_grad_norm=0.5 --scale_weight_norms=1 --network_dropout=0.1 --caption_dropout_rate=0.1",
    "train_network.py --v2 --v_parameterization --network_module=networks.lora_fa --network_dim=4 --network_train_unet_only --seed=1 "
    "--optimizer_type=Prodigy --learning_rate=1 --optimizer_args decouple=True d_coef=2.0 betas=0.9,0.99 --max_train_steps=9 "
    "--random_crop --color_aug --flip_aug --face_crop_aug_range=2.0,4.0 --prior_loss_weight=0.5 --lr_warmup_steps=0.1 "
    "--lr_scheduler=constant_with_warmup --gradient_accumulation_steps=2 --zero_terminal_snr --training_comment=hello",
    "sdxl_train_network.py --network_module=networks.lora --network_dim=4 --network_train_unet_only --optimizer_type=Adafactor --seed=2 "
    "--optimizer_args relative_step=False scale_parameter=False warmup_init=False --learning_rate=1e-5 --max_train_steps=9 "
    "--lr_scheduler=constant --loss_type=huber --huber_c=0.2 --huber_schedule=exponential --debiased_estimation_loss "
    "--ip_noise_gamma=0.1 --multires_noise_iterations=6 --multires_noise_discount=0.2 --no_half_vae --resize_interpolation=area",
    "sdxl_train_network.py --network_module=networks.lora --network_dim=4 --network_train_text_encoder_only --seed=5 "
    "--vae=other.safetensors --optimizer_type=Lion --learning_rate=1e-5 --text_encoder_lr=1e-5 --max_train_steps=9 "
    "--caption_tag_dropout_rate=0.2 --caption_dropout_every_n_epochs=3 --validation_split=0.1 --validate_every_n_steps=5 "
    "--validation_seed=4 --fp8_base --mixed_precision=bf16",
)
"""Runs whose settings are to be found in their metadata."""


class Recorded(Run):
    """A run whose metadata is kept."""

    metadata: dict[str, str]

    @property
    def _train(self):
        train = super()._train

        def to_the_loop(args) -> None:
            try:
                train(args)
            except Reached as end:
                places = [frame.f_locals for frame, _ in traceback.walk_tb(end.__traceback__)]
                self.metadata = dict(next(names["metadata"] for names in places if "metadata" in names))
                raise

        return to_the_loop


def main() -> None:
    """Record, and say what was recorded."""
    parser = argparse.ArgumentParser(description="Record the metadata of sd-scripts.")
    parser.add_argument("--sd-scripts", type=Path, required=True, help="a checkout of sd-scripts")
    parser.add_argument("--commit", help="its commit, where the folder has no .git")
    arguments = parser.parse_args()
    checkout = Checkout(arguments.sd_scripts)
    facts = {
        "source": {
            "repository": "kohya-ss/sd-scripts",
            "commit": checkout.commit(arguments.commit),
            "made by": "python -m benchmarks.record_lora_settings",
            "versions": versions(),
        },
        "files": [of_command(checkout, command) for command in COMMANDS],
    }
    FACTS.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(facts['files'])} files")


def of_command(checkout: Checkout, command: str) -> dict:
    """Metadata of a run's file, without those of its time and place."""
    script, *words = shlex.split(command)
    args = checkout.parser(script).parse_args(words)
    run = Recorded(checkout.module(script), args)
    run.begin()
    told = checkout.train_util.get_sai_model_spec(None, args, script.startswith("sdxl"), True, False)
    metadata = run.metadata | {name: told[name] for name in ("modelspec.prediction_type", "modelspec.architecture")}
    passing = ("ss_session_id", "ss_training_started_at", "ss_sd_scripts_commit_hash")
    return {"command": command, "metadata": {name: value for name, value in metadata.items() if name not in passing}}


if __name__ == "__main__":
    main()
