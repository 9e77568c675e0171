"""Does tiny-sd really draw, and does it learn a style?

    python -m benchmarks.tiny_sd                 # everything
    python -m benchmarks.tiny_sd --only draw     # without the fine-tune

Draws every caption of `emoji` and asks which training picture is nearest in pixel distance; measures the autoencoder; then
fine-tunes on `emoji-ink/train` with the default recipe and draws the held-out subjects, which the model never saw in ink. Writes
contact sheets under `build/`.

Takes about four minutes on two cores.
"""

import statistics
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import sdnb

from . import report

BATCH = 32
SEEDS = (0, 1)
GUIDANCE = 3.0
FINE_TUNE_STEPS = 300
SHOWN = ("a bicycle", "a cat", "a crab", "a ghost", "a hedgehog", "a monkey", "a rabbit", "a turtle", "a violin", "a zebra")


def pixels(images: list[Image.Image]) -> Tensor:
    """N pictures -> (N, 3, H, W) in [0, 1]."""
    import numpy

    return torch.from_numpy(numpy.stack([numpy.array(image.convert("RGB")) for image in images])).permute(0, 3, 1, 2) / 255


def drawn(sd: sdnb.StableDiffusion, prompts: list[str], seed: int) -> list[Image.Image]:
    images = []
    for start in range(0, len(prompts), BATCH):
        images += sd.draw(prompts[start : start + BATCH], seed=seed + start, guidance=GUIDANCE)
    return images


def nearest(drawings: Tensor, originals: Tensor) -> Tensor:
    """The index of the original nearest to each drawing, by root mean square distance: (N, …), (M, …) -> (N,)."""
    return torch.cdist(drawings.flatten(1), originals.flatten(1)).argmin(1)


def silhouettes(images: list[Image.Image]) -> Tensor:
    """The shape of each picture, (N, H, W): 1 wherever the white page cannot be reached from the border, else 0."""
    shapes = []
    for image in images:
        page = Image.new("L", (image.width + 2, image.height + 2), 255)
        page.paste(image.convert("L").point(lambda value: 255 if value > 215 else 0), (1, 1))
        ImageDraw.floodfill(page, (0, 0), 128)
        shapes.append(pixels([page.crop((1, 1, image.width + 1, image.height + 1)).point(lambda value: 0 if value == 128 else 255)])[0, 0])
    return torch.stack(shapes)


def saturation(images: Tensor) -> float:
    """Mean of (max - min) over the colour channels, the chroma: (N, 3, H, W) in [0, 1] -> 0 (grey) to 1."""
    return (images.amax(1) - images.amin(1)).mean().item()


def sheet(columns: list[list[Image.Image]], path: Path, across: int = 8) -> None:
    """Save pictures side by side, one from each column, `across` groups a row."""
    size, groups = columns[0][0].width, len(columns[0])
    wide = size * len(columns) + 8
    page = Image.new("RGB", (wide * across, (size + 4) * -(-groups // across)), "white")
    for i, group in enumerate(zip(*columns, strict=True)):
        for j, image in enumerate(group):
            page.paste(image, (i % across * wide + j * size, i // across * (size + 4)))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def measure_drawing(sd: sdnb.StableDiffusion, folder: Path) -> list[dict]:
    pictures = sdnb.pictures("emoji")
    originals = [picture.open() for picture in pictures]
    truth = torch.arange(len(originals))
    right = []
    for seed in SEEDS:
        drawings = drawn(sd, pictures.captions, seed * 1000)
        right.append((nearest(pixels(drawings), pixels(originals)) == truth).float().mean().item())
        if seed == SEEDS[0]:
            sheet([drawings, originals], folder / "tiny_sd_drawn_beside_original.png")
    x = pixels(originals)
    y = torch.cat([sd.decode(sd.encode(part * 2 - 1)) for part in x.split(BATCH)]) / 2 + 0.5
    psnr = -10 * (y - x).square().mean((1, 2, 3)).log10()
    seconds = []
    for i in range(5):
        start = time.perf_counter()
        sd.draw(pictures.captions[i], seed=i)
        seconds.append(time.perf_counter() - start)
    return [
        {"measured": "prompt accuracy", "value": f"{statistics.mean(right):.1%}", "target": "at least 90%"},
        {"measured": "reconstruction, mean PSNR", "value": f"{psnr.mean():.1f} dB", "target": "at least 25 dB"},
        {"measured": "reconstruction, worst PSNR", "value": f"{psnr.min():.1f} dB", "target": ""},
        {"measured": "seconds per picture", "value": f"{statistics.median(seconds):.2f}", "target": "at most 2"},
    ]


def measure_style(sd: sdnb.StableDiffusion, folder: Path, steps: int) -> list[dict]:
    held_out = sdnb.pictures("emoji-ink/held_out")
    known = sdnb.pictures("emoji")
    originals = silhouettes([picture.open() for picture in known])
    names = [picture.path.name for picture in known]
    truth = torch.tensor([names.index(picture.path.name) for picture in held_out])

    before = drawn(sd, held_out.captions, 0)
    start = time.perf_counter()
    for _ in sdnb.train(sd, sdnb.pictures("emoji-ink/train"), sdnb.Recipe(), steps=steps):
        pass
    seconds = time.perf_counter() - start
    after = drawn(sd, held_out.captions, 0)
    artist = [picture.open() for picture in held_out]
    sheet([before, after, artist], folder / "tiny_sd_held_out_before_after_original.png", across=4)
    rows = {"before": before, "after": after, "the artist": artist}
    subjects = [caption.partition(",")[0] for caption in held_out.captions]
    shown = [subjects.index(subject) for subject in SHOWN]
    sdnb.plots.grid({name: [images[i] for i in shown] for name, images in rows.items()}, titles=SHOWN).save(folder / "before_after.png")

    colour = [saturation(pixels(images)) for images in (before, after)]
    shape = [(nearest(silhouettes(images), originals) == truth).float().mean().item() for images in (before, after)]
    return [
        {"measured": f"fine-tune, {steps} steps", "value": f"{seconds:.0f} s", "target": "at most 180 s"},
        {"measured": "held-out saturation, after / before", "value": f"{colour[1] / colour[0]:.2f}", "target": "at most 0.50"},
        {"measured": "held-out right by shape, before", "value": f"{shape[0]:.0%}", "target": ""},
        {"measured": "held-out right by shape, after", "value": f"{shape[1]:.0%}", "target": "most"},
    ]


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--model", default="tiny", help="a name or a folder that sdnb.load takes")
    parser.add_argument("--only", choices=("draw", "style"), help="measure one half")
    parser.add_argument("--steps", type=int, default=FINE_TUNE_STEPS, help="of the fine-tune")
    parser.add_argument("--sheets", type=Path, default=Path("build"), help="where the contact sheets go")
    arguments = parser.parse_args()
    sd = sdnb.load(arguments.model)
    rows = []
    if arguments.only != "style":
        rows += measure_drawing(sd, arguments.sheets)
    if arguments.only != "draw":
        rows += measure_style(sd, arguments.sheets, arguments.steps)
    report.show(rows, arguments.json)


if __name__ == "__main__":
    main()
