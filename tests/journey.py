"""What a new user does, one thing after the other, in any environment that has the package: `python journey.py`.

Needs nothing but the package, not even pytest, so that it can run beside Colab's versions or the oldest ones (`tests/versions.py` does
that). Each leg prints a line; the exit status is 1 if one failed.
"""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

import sdnb
from sdnb.lora import files

FAMOUS = '--optimizer_type="Adafactor" --max_grad_norm=0 --lr_scheduler="constant_with_warmup" --lr_warmup_steps=100'
QUICK = sdnb.Recipe(train_batch_size=2, learning_rate=1e-3, lr_warmup_steps=2)
LORA = {"network_dim": 4, "network_alpha": 2.0}


def command(*words: str) -> str:
    """Run `sdnb` with these words and return what it printed; raises `RuntimeError` where it fails."""
    done = subprocess.run([sys.executable, "-m", "sdnb", *words], capture_output=True, text=True)
    if done.returncode > (words[0] == "doctor"):  # whose 1 says that sd-scripts would stop
        raise RuntimeError(f"sdnb {' '.join(words)}: status {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def draws() -> None:
    sd = sdnb.load("tiny", device="cpu")
    assert sd.draw("a red apple", seed=1, steps=2).size == (64, 64)
    sd.save("tiny-folder")
    sd.save("tiny-file.safetensors")
    for copy in ("tiny-folder", "tiny-file.safetensors"):
        config = {"config": "tiny", "tokenizer": "tiny-folder"} if copy.endswith(".safetensors") else {}
        again = sdnb.load(copy, device="cpu", **config)
        assert all(torch.equal(a, b) for a, b in zip(sd.unet.parameters(), again.unet.parameters(), strict=True))


def plans() -> None:
    frugal = sdnb.Recipe(train_batch_size=1, mixed_precision="bf16", fused_backward_pass=True, gradient_checkpointing=True)
    for name in ("sd15", "sdxl"):
        made = sdnb.plan(name, frugal, gpu="rtx4090")
        assert made.fits
        assert made.reserved_bytes >= made.allocated_bytes >= made.peak_bytes > 0
    last_two = sdnb.Recipe(train_batch_size=1, optimizer_args=(*sdnb.Recipe().optimizer_args, "factoring='last-two'"))
    assert sdnb.plan("sd15", last_two).peak_bytes > sdnb.plan("sd15", sdnb.Recipe(train_batch_size=1)).peak_bytes
    draws()  # which it would not, if a plan left something behind


def fits() -> None:
    whole, adapters = sdnb.fit("sd15", "rtx3060"), sdnb.fit("sd15", "t4", method="lora")
    assert "AdamW8bit" in {one.recipe.optimizer_type for one in adapters}
    assert whole and adapters
    assert "sdnb train" in str(whole)


def trains_and_resumes() -> None:
    pictures = sdnb.pictures("emoji-ink")[:8]
    recipe = QUICK.replace(gradient_checkpointing=True)
    losses = [step.loss for step in sdnb.train(sdnb.load("tiny", device="cpu"), pictures, recipe, steps=6)]
    run = sdnb.train(sdnb.load("tiny", device="cpu"), pictures, recipe, steps=6, save_to="run", save_every=2)
    begun = [next(run).loss for _ in range(3)]
    run.close()
    resumed = list(sdnb.train(sdnb.load("tiny", device="cpu"), pictures, recipe, steps=6, save_to="run", save_every=2))
    assert [step.index for step in resumed] == [2, 3, 4, 5]
    assert begun + [step.loss for step in resumed[1:]] == losses


def watches() -> None:
    pictures = sdnb.pictures("emoji-ink")[:4]
    with contextlib.redirect_stdout(io.StringIO()):
        run = sdnb.live(sdnb.train(sdnb.load("tiny", device="cpu"), pictures, QUICK, steps=3), save="run.png")
        assert len(list(run)) == 3
    assert Path("run.png").stat().st_size > 1000
    assert len(Path(run.to_csv("run.csv")).read_text(encoding="utf-8").splitlines()) == 4


def makes_a_lora() -> None:
    sd = sdnb.load("tiny", device="cpu")
    for _ in sdnb.train(sd, sdnb.pictures("emoji-ink")[:4], QUICK.replace(learning_rate=1e-2, others=LORA), steps=2):
        pass
    taught = sd.draw("a cat", seed=3, steps=2).tobytes()
    for form in ("kohya", "diffusers"):
        files.save(sd, f"ink-{form}.safetensors", form=form)
        fresh = sdnb.load("tiny", device="cpu")
        assert fresh.draw("a cat", seed=3, steps=2).tobytes() != taught
        files.load(fresh, f"ink-{form}.safetensors")
        assert fresh.draw("a cat", seed=3, steps=2).tobytes() == taught, form


def asks_the_doctor() -> None:
    diagnosis = sdnb.diagnose(FAMOUS)
    assert diagnosis.raises
    assert not sdnb.diagnose(diagnosis.fixed().to_command()).raises
    assert json.loads(command("doctor", "--json", *FAMOUS.replace('"', "").split()))


def types_commands() -> None:
    pictures = Path("pictures")
    pictures.mkdir()
    for picture in sdnb.pictures("emoji-ink")[:2]:
        picture.open().save(pictures / f"{picture.caption.replace(' ', '-')}.png")
        (pictures / f"{picture.caption.replace(' ', '-')}.txt").write_text(picture.caption)
    settings = [f"train_data_dir = '{pictures}'", "pretrained_model_name_or_path = 'tiny'", "output_dir = 'result'", "max_train_steps = 2"]
    settings += ["network_module = 'networks.lora'", "network_dim = 4", "cache_latents = true", "train_batch_size = 1", "resolution = '64'"]
    settings += ["optimizer_type = 'AdamW'", "learning_rate = 1e-4", "caption_extension = '.txt'", "output_name = 'ink'"]
    Path("recipe.toml").write_text("\n".join(settings) + "\n", encoding="utf-8")
    command("train", "--config", "recipe.toml")
    assert list(Path("result").glob("*.safetensors"))
    assert "GiB" in command("plan", "sd15", "--gpu", "t4", "--", "--optimizer_type=AdamW8bit", "--mixed_precision=fp16")


LEGS = (draws, plans, fits, trains_and_resumes, watches, makes_a_lora, asks_the_doctor, types_commands)


def main() -> int:
    failed = 0
    for leg in LEGS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.chdir(folder):
            try:
                leg()
            except Exception:
                failed += 1
                print(f"FAILED {leg.__name__}\n{traceback.format_exc()}", flush=True)
            else:
                print(f"passed {leg.__name__} in {time.perf_counter() - start:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
