"""Changes of a run's settings that save memory: the one list that the planner, `train`'s messages and the doctor read.

Each topic, such as the optimizer, offers a few options, the least saving first. Each option says what it alters: nothing (the result is
the same but for the order of sums), rounding, or the training itself. This module needs no torch, so that the doctor can read it anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ..sd_scripts import Settings, arguments, flags

ALTERS = NOTHING, ROUNDING, TRAINING = "nothing", "rounding", "the training itself"
ATTENTION = ("mem_eff_attn", "xformers", "sdpa")
"""Flags for attention."""
FUSED = ("sdxl_train.py", "flux_train.py", "sd3_train.py", "lumina_train.py")
"""Scripts in which a fused backward saves something."""
LARGE = ("sdxl", "flux", "sd3", "lumina", "hunyuan", "anima")
"""Beginnings of the names of scripts for models whose captions' states can be cached."""
EIGHT_BIT = {"AdamW": "AdamW8bit", "Lion": "Lion8bit", "SGDNesterov": "SGDNesterov8bit"}
CONSTANT_RATE = ["relative_step=False", "scale_parameter=False", "warmup_init=False"]
"""Arguments with which Adafactor keeps to the given learning rate."""
USUAL_RANK = 16
LEAST_SIDE, MULTIPLE = 256, 64
"""Least side of pictures that are made smaller, and what their sides are multiples of, in pixels."""
LARGE_CHANGE = 50
"""Size from which a change is made only where the smaller ones together do not do."""


@dataclass(frozen=True)
class Change:
    """One change of the settings."""

    settings: Mapping[str, object]
    """New values by name; None takes a setting back."""
    alters: str
    """`NOTHING`, `ROUNDING` or `TRAINING`."""
    size: int
    """How far it leads from the run that was asked for; sizes of several changes add up."""
    note: str
    """What happens with it, in a few words."""
    words: str = ""
    """Words in place of the flags, where they do not say it."""
    planned: bool = True
    """Whether the planner knows what it saves."""
    of_whole: bool = False
    """Whether only a run that trains a whole model can have it."""

    @property
    def flags(self) -> str:
        """Flags to add or change, then those to leave out, for sd-scripts and `sdnb train`."""
        return flags_of(self.settings)

    @property
    def text(self) -> str:
        """The change as it is named in a list."""
        return self.words or self.flags

    @property
    def code(self) -> str:
        """The change as arguments of `Recipe.replace`."""
        if {"dtype", "network_module"} & self.settings.keys():
            return self.words
        quoted = {name: f'"{value}"' if isinstance(value, str) else value for name, value in self.settings.items()}
        return ", ".join(f"{name}={value}" for name, value in quoted.items() if name != "optimizer_args")


@dataclass(frozen=True)
class Run:
    """The settings of a run, and what decides which changes there are."""

    settings: Settings
    trainer: str = "sd-scripts"
    half: str = "bf16"
    """Half precision that the card computes in."""
    part: str = "the whole model"
    """What is trained: `LoRA`, `the whole model`, or anything else."""
    side: tuple[int, int] | None = None
    """(width, height) of the pictures in pixels; None where it is not known."""
    fp32: bool = False
    """Whether the model is loaded in fp32."""
    trains_encoders: bool = False
    """Whether the text encoders are trained."""
    fixed: frozenset[str] = field(default_factory=frozenset)
    """Settings that have no effect in this run, as its caller decided otherwise."""

    @property
    def lora(self) -> bool:
        """Whether adapters are trained."""
        return self.part == "LoRA"

    @property
    def whole(self) -> bool:
        """Whether all weights are trained."""
        return self.part == "the whole model"

    @property
    def large(self) -> bool:
        """Whether the trainer can cache what the text encoders return."""
        return self.trainer == "sdnb" or (self.trainer == "sd-scripts" and self.settings.script.startswith(LARGE))

    @property
    def is_read(self) -> bool:
        """Whether all settings are known, and none is in a file elsewhere."""
        return "*" not in self.settings.unknown

    def has(self, name: str) -> bool:
        """Whether a setting is switched on."""
        return bool(self.settings[name]) and self.settings[name] != "no"

    def lacks(self, name: str) -> bool:
        """Whether a setting is off and the trainer would take it."""
        takes = self.trainer != "sd-scripts" or name in arguments.arguments(self.settings.script)
        return takes and name not in self.fixed and not self.has(name)

    @property
    def alters_captions(self) -> bool:
        """Whether a caption may be another one each time."""
        names = "shuffle_caption caption_dropout_rate caption_tag_dropout_rate token_warmup_step weighted_captions"
        return any(map(self.has, names.split()))


def flags_of(settings: Mapping[str, object]) -> str:
    """Flags to add or change, then those to leave out.

    >>> flags_of({"sdpa": True, "full_bf16": False, "dtype": "bf16"})
    '--sdpa (without --full_bf16)'
    """
    words = {name: value for name, value in settings.items() if name != "dtype"}
    gone = [name for name, value in words.items() if value is None or value is False]
    return " ".join([*flags(words), *(f"(without --{name})" for name in gone)])


def topics(run: Run) -> list[tuple[Change, ...]]:
    """Topics with their options, the least invasive topics first."""
    offered = (tuple(topic(run)) for topic in TOPICS)
    return sorted(filter(None, offered), key=lambda options: options[0].size)


def _attention(run: Run) -> Iterator[Change]:
    if run.trainer == "sd-scripts" and run.lacks("sdpa") and not any(map(run.has, ATTENTION)):
        yield Change({"sdpa": True}, ROUNDING, 10, "attention without whole matrices")


def _latents(run: Run) -> Iterator[Change]:
    varies = any(map(run.has, ("color_aug", "random_crop", "face_crop_aug_range", "train_inpainting", "cache_latents_to_disk")))
    if run.lacks("cache_latents") and not varies and run.trainer != "diffusers":
        yield Change({"cache_latents": True}, NOTHING, 10, "each picture is encoded once, before the training")


def _captions(run: Run) -> Iterator[Change]:
    cached = run.has("cache_text_encoder_outputs_to_disk")
    caches = run.large and run.lacks("cache_text_encoder_outputs") and not (run.alters_captions or cached)
    cache = {"cache_text_encoder_outputs": True} if caches else {}
    if run.trains_encoders and run.trainer != "diffusers":
        alone: dict[str, object] = {"train_text_encoder": False}
        if run.lora:
            alone = {"network_train_unet_only": True}
        elif run.settings.script == "train_db.py" and run.trainer == "sd-scripts":
            alone = {"stop_text_encoder_training": -1}
        words = "leave --train_text_encoder out" if "train_text_encoder" in alone else ""
        yield Change(alone | cache, TRAINING, 100, "the text encoders stay as they are", words)
    elif caches:
        yield Change(cache, NOTHING, 10, "each caption is encoded once, before the training")


def _recomputation(run: Run) -> Iterator[Change]:
    if run.lacks("gradient_checkpointing"):
        yield Change({"gradient_checkpointing": True}, NOTHING, 15, "activations are computed again in the backward pass")


def _batch(run: Run) -> Iterator[Change]:
    batch, rounds = run.settings["train_batch_size"], run.settings["gradient_accumulation_steps"] or 1
    if not run.is_read and "train_batch_size" not in run.settings.given:
        yield Change({"train_batch_size": 1}, TRAINING, 11, "one picture at a time")
    if not isinstance(batch, int) or not isinstance(rounds, int) or batch < 2:
        return
    smaller = [size for size in range(batch // 2, 0, -1) if batch % size == 0]
    for place, size in enumerate(smaller):
        settings = {"train_batch_size": size, "gradient_accumulation_steps": rounds * batch // size}
        note = "as many pictures for each update; with buckets, one update mixes sizes"
        yield Change(settings, NOTHING, 11 + place, note, f"{' '.join(flags(settings))}, as many pictures for each update")
    if rounds == 1:
        yield Change({"train_batch_size": 1}, TRAINING, 100, "fewer pictures for each update")


def _precision(run: Run) -> Iterator[Change]:
    if run.lacks("mixed_precision"):
        words = "" if run.side else "--mixed_precision=bf16, or fp16 on an older card"
        yield Change({"mixed_precision": run.half}, ROUNDING, 20, f"the model computes in {run.half}", words)


def _loaded_dtype(run: Run) -> Iterator[Change]:
    if run.fp32 and run.lora:
        name = {"bf16": "bfloat16", "fp16": "float16"}[run.half]
        words = f"the model loaded with dtype=torch.{name}"
        yield Change({"dtype": run.half}, ROUNDING, 20, "frozen weights in half precision", words)


def _optimizer(run: Run) -> Iterator[Change]:
    name = str(run.settings["optimizer_type"] or ("AdamW8bit" if run.has("use_8bit_adam") else "AdamW"))
    if not run.is_read and "optimizer_type" not in run.settings.given:
        yield Change({}, ROUNDING, 20, "", "--optimizer_type=Adafactor or AdamW8bit", planned=False)
        return
    if eight := EIGHT_BIT.get(name):
        yield Change({"optimizer_type": eight}, ROUNDING, 20, "the optimizer's state in 8 bits")
    if run.whole and name.lower() != "adafactor" and run.trainer != "diffusers":
        settings = {"optimizer_type": "Adafactor", "optimizer_args": CONSTANT_RATE}
        yield Change(settings, TRAINING, 100, "another optimizer: sums of rows and columns in place of a state", of_whole=True)


def _fused(run: Run) -> Iterator[Change]:
    saves = run.trainer == "sdnb" or (run.trainer == "sd-scripts" and run.settings.script in FUSED)
    if saves and run.whole and run.lacks("fused_backward_pass") and not run.has("fused_optimizer_groups"):
        clips = run.has("max_grad_norm")
        note = "each gradient is used as soon as it is there" + (", and clipped by itself" if clips else "")
        words = "" if run.trainer == "sdnb" else "--optimizer_type=Adafactor --fused_backward_pass"
        yield Change({"fused_backward_pass": True}, TRAINING if clips else NOTHING, 50 if clips else 12, note, words, of_whole=True)


def _weights(run: Run) -> Iterator[Change]:
    if run.whole and run.lacks("full_bf16") and run.half == "bf16" and run.trainer != "diffusers":
        if run.trainer == "sdnb":
            note, size = "weights in bf16, rounded stochastically", 60
        else:
            note, size = "weights in bf16: at a small learning rate most of each update is lost, but in a fused backward", 170
        words = "" if run.side else "--full_bf16 with --mixed_precision=bf16"
        yield Change({"full_bf16": True, "mixed_precision": "bf16"}, ROUNDING, size, note, words, of_whole=True)


def _not_planned(run: Run) -> Iterator[Change]:
    if run.lora and run.large and run.lacks("fp8_base"):
        yield Change({"fp8_base": True}, ROUNDING, 60, "frozen weights in 8 bits", planned=False)


def _swapped(run: Run) -> Iterator[Change]:
    if run.trainer == "sd-scripts" and run.lacks("blocks_to_swap"):
        yield Change({"blocks_to_swap": 18}, NOTHING, 60, "blocks wait in the computer's memory", planned=False)


def _rank(run: Run) -> Iterator[Change]:
    rank = run.settings["network_dim"]
    if run.lora and not run.is_read and rank is None:
        yield Change({}, TRAINING, 100, "", "a lower network_dim", planned=False)
    elif run.lora and isinstance(rank, int) and rank > USUAL_RANK:
        new = USUAL_RANK if rank <= 4 * USUAL_RANK else 2 * USUAL_RANK
        yield Change({"network_dim": new}, TRAINING, 100, f"a rank of {new} instead of {rank}", f"--network_dim={new} instead of {rank}")


def _resolution(run: Run) -> Iterator[Change]:
    if run.side is None:
        yield Change({}, TRAINING, 150, "smaller pictures", "a smaller --resolution", planned=False)
        return
    for share, size in ((0.75, 150), (0.5, 200)):
        width, height = (max(1, round(side * share / MULTIPLE)) * MULTIPLE for side in run.side)
        if LEAST_SIDE <= min(width, height) < min(run.side):
            settings = {"resolution": width if width == height else (width, height)}
            yield Change(settings, TRAINING, size, f"pictures of {width}×{height}")


def _method(run: Run) -> Iterator[Change]:
    if run.whole:
        script = run.settings.script.replace("train_db", "train").replace(".py", "_network.py")
        words = f"LoRA instead of all weights ({script})" if run.trainer == "sd-scripts" else "a LoRA"
        settings = {
            "network_module": "networks.lora",
            "network_dim": USUAL_RANK,
            "network_alpha": USUAL_RANK,
            "network_train_unet_only": True,
        }
        given = {"train_text_encoder": False, "stop_text_encoder_training": None, "full_bf16": False}
        given |= {"fused_backward_pass": False, "fused_optimizer_groups": None}
        gone = {name: value for name, value in given.items() if run.settings.given.get(name)}
        yield Change(settings | gone, TRAINING, 400, "a LoRA instead of all weights", words)


TOPICS: tuple[Callable[[Run], Iterator[Change]], ...] = (
    _attention, _latents, _captions, _recomputation, _batch, _precision, _loaded_dtype, _optimizer, _fused, _weights, _not_planned,
    _swapped, _rank, _resolution, _method,
)  # fmt: skip
