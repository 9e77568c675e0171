"""tiny-sd: a whole Stable Diffusion, trained from scratch on the bundled pictures.

    python data/train_tiny_sd.py                 # hours on two CPU cores, minutes on a GPU
    python data/train_tiny_sd.py --unet-steps 500 --state build/quick --out build/quick/tiny-sd

Three stages: a CLIP tokenizer of the captions' words, a KL autoencoder, and a U-Net together with its CLIP text encoder. Progress is
saved every minute under `--state`; started again after a kill, the run goes on from there. The result is written to
`data/tiny-sd/` in diffusers' own format, in half precision.

The parts are Stable Diffusion 1.5's, only smaller: the same classes, block types and module names. What differs stands in
`AUTOENCODER`, `TEXT_ENCODER` and `UNET`: narrower, three levels instead of four, one layer per block instead of two, and an
autoencoder that shrinks a picture four times instead of eight, because 64 pixels are few.
"""

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = Path(__file__).resolve().parent
SEED = 0

AUTOENCODER = dict(
    sample_size=64,
    block_out_channels=(16, 32, 64),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=1,
    norm_num_groups=8,
    latent_channels=4,
    scaling_factor=0.18215,
)
AUTOENCODER_RUN = dict(steps=3200, batch_size=8, learning_rate=2e-3)

TEXT_ENCODER = dict(
    hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, projection_dim=128, hidden_act="quick_gelu"
)
UNET = dict(
    sample_size=16,
    block_out_channels=(48, 96, 192),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    norm_num_groups=16,
    attention_head_dim=3,  # as in SD 1.5 this is the number of heads, whatever its name says
    cross_attention_dim=128,
)
UNET_RUN = dict(steps=4000, batch_size=32, learning_rate=1e-3)
SCHEDULER = dict(  # Stable Diffusion 1.5's numbers
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
CAPTION_DROPOUT = 0.1  # without a caption, so that guidance has something to lead away from
CAPTION_NOISE = 0.2  # with words that mean nothing yet, so that a new word does not upset the picture

KL_WEIGHT = 3e-4  # enough to keep neighbouring latents alike, too little to blur


def pictures(folder: Path) -> tuple[Tensor, list[str]]:
    """Every picture of an image folder, (N, 3, 64, 64) in [-1, 1], and its caption."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    images = [np.array(Image.open(folder / row["file_name"]).convert("RGB")) for row in rows]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, [row["text"] for row in rows]


def fit(
    state: Path,
    module: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    ema: float,
    save_every: float = 60.0,
) -> None:
    """Minimise `loss` over the parameters of `module` with AdamW; leave their moving average in `module`.

    Saves to the safetensors file `state` every `save_every` seconds and goes on from it. Every random number of a step comes from the
    generator that `loss` is given, seeded with the step, so that an interrupted run ends where an uninterrupted one does.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in named.items()}
    optimizer = torch.optim.AdamW(named.values(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    first = 0
    if state.exists():
        saved = load_file(state)
        first = int(saved["step"])
        for name, p in named.items():
            p.data.copy_(saved["weights." + name])
            average[name].copy_(saved["average." + name])
            moments = {key: saved[f"{key}.{name}"].to(p.device) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.tensor(float(first)), **moments}

    def save(step: int) -> None:
        tensors = {"step": torch.tensor(step)}
        for name, p in named.items():
            tensors["weights." + name], tensors["average." + name] = p.data, average[name]
            tensors |= {f"{key}.{name}": optimizer.state[p][key] for key in ("exp_avg", "exp_avg_sq")}
        save_atomically(tensors, state)

    last_save = time.monotonic()
    progress = tqdm(range(first, steps), initial=first, total=steps, desc=state.stem, mininterval=5)
    for step in progress:
        warmup = min(1.0, (step + 1) / 100)
        decay = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warmup * max(decay, 0.02)
        value = loss(torch.Generator().manual_seed(SEED * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(named.values(), 1.0)
        optimizer.step()
        with torch.no_grad():
            rate = min(ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.values()), list(named.values()), 1 - rate)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{value.item():.4f}")
        if time.monotonic() - last_save > save_every or step + 1 == steps:
            save(step + 1)
            last_save = time.monotonic()
    for name, p in named.items():
        p.data.copy_(average[name])


def save_atomically(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def varied(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures turned, mirrored, shifted and recoloured, half of them left as they are.

    The autoencoder has to serve pictures it never saw (a reader's own, the second style), and a few hundred are few.
    """
    out = []
    for picture in pixels:
        choice = torch.randint(0, 1 << 16, (8,), generator=generator).tolist()
        if choice[0] % 2:
            picture = torch.rot90(picture, choice[1] % 4, (1, 2))
            picture = picture.flip(2) if choice[2] % 2 else picture
            picture = torch.roll(picture, (choice[3] % 16 - 8, choice[4] % 16 - 8), (1, 2))
            picture = picture[torch.randperm(3, generator=generator)]
            if choice[5] % 4 == 0:
                picture = -picture
            if choice[6] % 4 == 0:
                picture = picture.mean(0, keepdim=True).expand(3, -1, -1)
            picture = picture * (0.6 + 0.4 * torch.rand(3, 1, 1, generator=generator)) if choice[7] % 2 else picture
        out.append(picture)
    return torch.stack(out)


def train_autoencoder(state: Path, device: torch.device, steps: int) -> AutoencoderKL:
    torch.manual_seed(SEED)
    vae = AutoencoderKL(**AUTOENCODER).to(device)
    pixels = torch.cat([pictures(HERE / "emoji")[0], pictures(HERE / "emoji-ink" / "train")[0]])

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(pixels), (AUTOENCODER_RUN["batch_size"],), generator=generator)
        x = varied(pixels[chosen], generator).to(device)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        return F.l1_loss(y, x) + F.mse_loss(y, x) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()

    fit(state, vae, loss, steps=steps, learning_rate=AUTOENCODER_RUN["learning_rate"], ema=0.998)
    return vae


@torch.no_grad()
def standardise(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Fold a shift and a scale per channel into the two 1x1 convolutions around the latents.

    Afterwards `scaling_factor * latents` of `pixels` have mean 0 and variance 1 in every channel, which is what the noise schedule
    assumes, while `decode(encode(x))` is unchanged.
    """
    latents = torch.cat([vae.encode(batch.to(vae.device)).latent_dist.mean for batch in pixels.split(64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    scale = 1 / (std * vae.config.scaling_factor)
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    post.bias += (post.weight[:, :, 0, 0] @ mean).to(post.bias)
    post.weight /= scale[None, :, None, None]
    quant.weight[:channels] *= scale[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) * scale
    quant.bias[channels:] += 2 * scale.log()


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer (byte pairs, lower case, 77 tokens) for which every word of `captions` is one token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    last_letters = [letter + "</w>" for letter in letters]
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    # the trainer breaks ties by token number, and numbers the last letters as it meets them, in any order, unless they are given
    trainer = trainers.BpeTrainer(
        vocab_size=1 << 16, min_frequency=1, end_of_word_suffix="</w>", special_tokens=last_letters, show_progress=False
    )
    trained.train_from_iterator((caption.lower() for caption in captions), trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    tokens = [*letters, *last_letters, *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, merges, model_max_length=77)


def text_encoder_for(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    config = CLIPTextConfig(vocab_size=len(tokenizer), bos_token_id=bos, eos_token_id=eos, pad_token_id=eos, **TEXT_ENCODER)
    return CLIPTextModel(config)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """(N, 3, 64, 64) -> scaled latents (N, 4, 16, 16)."""
    latents = [vae.encode(batch.to(vae.device)).latent_dist.mean for batch in pixels.split(64)]
    return torch.cat(latents) * vae.config.scaling_factor


def train_unet(
    state: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, device: torch.device, steps: int
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    torch.manual_seed(SEED)
    unet = UNet2DConditionModel(**UNET).to(device, memory_format=torch.channels_last)
    text_encoder = text_encoder_for(tokenizer).to(device)
    pixels, captions = pictures(HERE / "emoji")
    x_0 = encode(vae, pixels)
    ids = tokenizer([*captions, ""], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    lengths = [len(tokenizer(caption).input_ids) - 2 for caption in captions]
    used = set(ids.flatten().tolist())
    free = torch.tensor([i for i in range(len(tokenizer)) if i not in used])
    alpha_bar = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(device)
    snr = alpha_bar / (1 - alpha_bar)
    # Min-SNR weighting (Hang et al. 2023) for the fine end, and for the coarse end, where the caption decides everything and the
    # error in the noise says little, up to five times more.
    weights = (1 + 1 / snr).clamp(max=5) * snr.clamp(max=5) / snr

    def prompts(chosen: list[int], generator: torch.Generator) -> Tensor:
        """Token ids (B, 77) of the captions: some of them empty, some with a few unknown words behind."""
        rows = []
        for i in chosen:
            luck = torch.rand((), generator=generator).item()
            if luck < CAPTION_DROPOUT:
                rows.append(ids[-1])
                continue
            row = ids[i].clone()
            if luck < CAPTION_DROPOUT + CAPTION_NOISE:
                words = free[torch.randint(len(free), (1 + i % 4,), generator=generator)]
                row[1 + lengths[i] : 1 + lengths[i] + len(words)] = words
            rows.append(row)
        return torch.stack(rows).to(device)

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(captions), generator=generator)[: UNET_RUN["batch_size"]]
        t = torch.randint(len(snr), (len(chosen),), generator=generator).to(device)
        noise = torch.randn((len(chosen), *x_0.shape[1:]), generator=generator).to(device)
        signal = alpha_bar[t].view(-1, 1, 1, 1)
        x_t = signal.sqrt() * x_0[chosen.to(device)] + (1 - signal).sqrt() * noise
        context = text_encoder(prompts(chosen.tolist(), generator)).last_hidden_state
        predicted = unet(x_t.contiguous(memory_format=torch.channels_last), t, context).sample
        return (weights[t] * (predicted - noise).square().mean((1, 2, 3))).mean()

    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    fit(state, both, loss, steps=steps, learning_rate=UNET_RUN["learning_rate"], ema=0.999)
    return unet, text_encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=HERE.parent / "build" / "tiny-sd", help="where progress is saved")
    parser.add_argument("--out", type=Path, default=HERE / "tiny-sd", help="where the finished model goes")
    parser.add_argument("--autoencoder-steps", type=int, default=AUTOENCODER_RUN["steps"])
    parser.add_argument("--unet-steps", type=int, default=UNET_RUN["steps"])
    arguments = parser.parse_args()
    arguments.state.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    vae = train_autoencoder(arguments.state / "autoencoder.safetensors", device, arguments.autoencoder_steps)
    standardise(vae, pictures(HERE / "emoji")[0])
    captions = [caption for folder in ("emoji", "emoji-ink/train") for caption in pictures(HERE / folder)[1]]
    tokenizer = make_tokenizer(captions)
    unet, text_encoder = train_unet(arguments.state / "unet.safetensors", vae, tokenizer, device, arguments.unet_steps)
    write(arguments.out, vae, tokenizer, text_encoder, unet)


def write(folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
    """The finished model, complete or not there at all."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to("cpu")
    for part in (unet, vae):  # not the text encoder: transformers would load it in the precision it was saved in
        part.half()
    pipeline.save_pretrained(partial, safe_serialization=True)
    weights = partial / "text_encoder" / "model.safetensors"
    # under Stable Diffusion 1.5's names, which every version of transformers reads; version 5 writes shorter ones
    named = {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})
    tokenizer.backend_tokenizer.model.save(str(partial / "tokenizer"))  # vocab.json and merges.txt, which older readers want
    for path in partial.rglob("*.safetensors"):
        path.chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


if __name__ == "__main__":
    main()
