"""`Samples`: prompts with their flags, drawn during a run, and where the pictures go.

A file of prompts has one a line, with flags after it, as sd-scripts has them:

    a red fox --n blurry --w 512 --h 768 --d 1 --l 7.5 --s 28 --ss euler_a

`--n` is the negative prompt, `--w` and `--h` are the size in pixels, `--d` the seed, `--l` the scale of guidance, `--s` the steps and
`--ss` the sampler. A TOML file has the same by name in `[prompt]` and `[[prompt.subset]]`, a JSON file a list of such lines or objects.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models import Drawing
from ..sd_scripts import supported
from ..system import quoted, untrusted

if TYPE_CHECKING:
    from ..sections import Saves

FLAGS = {
    "w": ("width", r"\d+", int),
    "h": ("height", r"\d+", int),
    "d": ("seed", r"\d+", int),
    "s": ("sample_steps", r"\d+", lambda text: max(1, min(1000, int(text)))),
    "l": ("scale", r"[\d\.]+", float),
    "g": ("guidance_scale", r"[\d\.]+", float),
    "n": ("negative_prompt", r".+", str),
    "ss": ("sample_sampler", r".+", str),
    "cn": ("controlnet_image", r".+", str),
    "ctr": ("cfg_trunc_ratio", r".+", float),
    "rcfg": ("renorm_cfg", r".+", float),
    "fs": ("flow_shift", r".+", str),
}
"""Flag -> name in a TOML or JSON file, the texts that it takes, and the value of one."""
KINDS = {
    "prompt": str,
    "negative_prompt": str,
    "width": int,
    "height": int,
    "seed": int,
    "sample_steps": int,
    "scale": (int, float),
    "sample_sampler": str,
}
"""What a prompt of Stable Diffusion may say, and the type of each value."""
LEAST, MULTIPLE = 64, 8
"""Pixels: sides are cut to a multiple, and not below the least."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt and how it is drawn. The defaults are sd-scripts'."""

    prompt: str = ""
    negative_prompt: str | None = None
    width: int = 512
    height: int = 512
    seed: int | None = None
    """None: another each time."""
    sample_steps: int = 30
    scale: float = 7.5
    sample_sampler: str | None = None
    """None: the run's."""

    def drawing(self, *, sampler: str, clip_skip: int | None = None) -> Drawing:
        """How it is drawn. `sampler` is the run's, and `clip_skip` that of its captions."""
        width, height = (max(LEAST, side - side % MULTIPLE) for side in (self.width, self.height))
        return Drawing(
            prompts=(self.prompt,),
            negative=self.negative_prompt or "",
            size=(width, height),
            seed=secrets.randbelow(2**32) if self.seed is None else self.seed,
            steps=self.sample_steps,
            guidance=self.scale,
            sampler=self.sample_sampler or sampler,
            clip_skip=clip_skip,
        )


@dataclass(frozen=True)
class Plain:
    """A prompt as `sd.draw` draws it unless told otherwise."""

    prompt: str
    seed = 0

    def drawing(self, *, sampler: str, clip_skip: int | None = None) -> Drawing:
        """How it is drawn: with DDIM, whatever the run's sampler."""
        return Drawing(prompts=(self.prompt,), clip_skip=clip_skip)


@dataclass(frozen=True)
class Samples:
    """What is drawn during a run, and under which names."""

    prompts: tuple[Prompt | Plain, ...]
    folder: Path
    name: str | None = None
    """`output_name` of a job, whose files are named as sd-scripts names them; None for `step-00000100-0.png`."""
    sampler: str = "ddim"

    def path(self, place: int, done: int, epoch: int | None) -> Path:
        """The file for a prompt, after step `done`; `epoch` where it ends one."""
        if self.name is None:
            return self.folder / f"step-{done:08d}-{place}.png"
        seed = self.prompts[place].seed
        when = time.strftime("%Y%m%d%H%M%S")
        return self.folder / (self._start(place, done, epoch) + when + ("" if seed is None else f"_{seed}") + ".png")

    def is_there(self, done: int, epoch: int | None) -> bool:
        """Whether each prompt has been drawn after step `done`."""
        if self.name is None:
            return all(self.path(place, done, epoch).exists() for place in range(len(self.prompts)))
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        starts = [self._start(place, done, epoch) for place in range(len(self.prompts))]
        return all(any(re.fullmatch(rf"{re.escape(start)}\d{{14}}(_\d+)?\.png", name) for name in names) for start in starts)

    def _start(self, place: int, done: int, epoch: int | None) -> str:
        return (f"{self.name}_" if self.name else "") + (f"{done:06d}" if epoch is None else f"e{epoch:06d}") + f"_{place:02d}_"


def of(settings: Saves, folder: Path, name: str | None = None) -> Samples | None:
    """The samples that a recipe asks for; None where it asks for none, or its file of prompts is not there.

    Raises `ValueError` like `read`.
    """
    if not supported.draws(settings) or not supported.is_file(settings.sample_prompts):
        return None
    return Samples(read(Path(settings.sample_prompts or "").expanduser()), folder, name, settings.sample_sampler)


def read(path: Path) -> tuple[Prompt, ...]:
    """The prompts in a file. Raises `ValueError`, with the place, for a file that cannot be read and for what is no prompt."""
    try:
        return tuple(_prompt(row, f"prompt {number} in it") for number, row in enumerate(_rows(path), 1))
    except OSError as error:
        raise ValueError(f"sample_prompts={str(path)!r} cannot be read ({error.strerror}): give a text file, a prompt a line") from error
    except ValueError as error:
        raise ValueError(f"sample_prompts={str(path)!r}: {error}") from error


def _rows(path: Path) -> list:
    kind = path.suffix.lower()
    if kind == ".json":
        return untrusted.read_json(path, list)
    if kind == ".toml":
        shared = untrusted.read_toml(path).get("prompt")
        subsets = shared.pop("subset", None) if isinstance(shared, dict) else None
        if not isinstance(shared, dict) or not isinstance(subsets, list) or not all(isinstance(subset, dict) for subset in subsets):
            raise ValueError("it must have [prompt], and [[prompt.subset]] for each prompt")
        return [{**shared, **subset} for subset in subsets]
    return [line.strip() for line in untrusted.read_text(path).split("\n") if line.strip() and not line.startswith("#")]


def _prompt(row: Any, which: str) -> Prompt:
    """One prompt out of a line or an object. Raises `ValueError` for values of a wrong type and for a ControlNet."""
    row = parse(row) if isinstance(row, str) else row
    if not isinstance(row, dict):
        raise ValueError(f"{which} is {quoted(row)}, where a text or an object belongs")
    if row.get("controlnet_image"):
        raise ValueError(f"{which} wants a ControlNet, which no run of these scripts has: take out --cn")
    values: dict[str, Any] = {name: row[name] for name in KINDS if row.get(name) is not None}
    for name, value in values.items():
        if not isinstance(value, KINDS[name]) or isinstance(value, bool) or (not isinstance(value, str) and not 0 <= value < 2**64):
            kind = "a text" if KINDS[name] is str else "a number, 0 or above"
            raise ValueError(f"{which} has {name}={quoted(value)}: it must be {kind}")
    return Prompt(**{**values, "sample_steps": max(1, min(1000, values.get("sample_steps", 30)))})


def parse(line: str) -> dict[str, Any]:
    """The prompt and flags of a line, by their names in TOML. A flag whose value is no number is passed over.

    >>> parse("a red fox --w 640 --l 7.5 --n blurry")
    {'prompt': 'a red fox', 'width': 640, 'scale': 7.5, 'negative_prompt': 'blurry'}
    """
    pieces = line.split(" --")
    found: dict[str, Any] = {"prompt": pieces[0]}
    for piece in pieces:  # the prompt too: sd-scripts takes one that begins like a flag for both
        for flag, (name, pattern, value) in FLAGS.items():
            if match := re.match(rf"{flag} ({pattern})", piece, re.IGNORECASE):
                with contextlib.suppress(ValueError):
                    found[name] = value(match[1])
                break
    return found
