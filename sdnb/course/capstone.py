"""The capstone: one job in six parts, each scored against a reference solution and the reader's own earlier tries.

A client sends a command for sd-scripts that failed on a card of 8 GB, and its log. The reader finds the faults in the log (`diagnose`),
writes a command that fits (`plan`), says what each lever saves (`choose`), trains a small stand-in (`train`), makes a file of it
(`export`) and answers questions about the result (`defend`). Each function returns a `Result`, which prints the points and why any were
lost; called with None it waits. `certificate` makes a page of the best tries.

What cannot earn points: a plan for an easier job, a run that does not lower the held-out loss, and a file that is not the run's. An answer
that is right after a wrong one earns half.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .. import doctor, planner
from ..memory import GIB
from ..recipe import Recipe
from ..system import card as card_of
from ..system import suggest
from . import progress, tries
from .certificate import Certificate, page
from .tries import PARTS, Item, Result, share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models import Model
    from ..planner import MemoryPlan

SCRIPT = "sdxl_train_network.py"
RATE, SIDE, LEAST_RANK, PICTURES, EACH_UPDATE = 1e-4, 1024, 16, 4000, 4
"""What the client asks for: the learning rate, the pictures' side, the least rank, pictures in all, and pictures for each update."""
SIZES = {"fits": 8, "bytes": 5, "FLOPs": 5}
"""Points of the second part for memory and arithmetic. The other twelve are for its faults."""
BUDGET = 900.0
"""GFLOPs that the run on tiny may take."""
LEVERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "gradient_checkpointing": ({"gradient_checkpointing": True}, {"gradient_checkpointing": False}, "nothing"),
    "cache_text_encoder_outputs": (
        {"cache_text_encoder_outputs": True, "network_train_unet_only": True},
        {"cache_text_encoder_outputs": False, "network_train_unet_only": True},
        "nothing",
    ),
    "mixed_precision": ({"mixed_precision": "bf16"}, {"mixed_precision": "no"}, "rounding"),
    "train_batch_size": (
        {"train_batch_size": 1, "gradient_accumulation_steps": EACH_UPDATE},
        {"train_batch_size": EACH_UPDATE, "gradient_accumulation_steps": 1},
        "nothing",
    ),
}
"""Levers of the third part: their settings when pulled and when not, and what they alter."""
ALTERS = ("nothing", "rounding", "training")
R = TypeVar("R", bound=Result)
_NO_OTHERS = ("network_weights", "base_weights", "resume", "validation_split")
"""Settings that would bring weights or pictures from elsewhere into the run on tiny."""


@functools.cache
def _case() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("capstone.toml").read_text(encoding="utf-8"))


def command() -> str:
    """The client's command, as it came."""
    return _case()["command"].strip()


def log() -> str:
    """The client's log, each line with its number."""
    lines = _case()["log"].strip().splitlines()
    return "\n".join(f"{number:2}  {line}" for number, line in enumerate(lines, 1))


def _folder() -> Path:
    return progress.path().parent


def _scored(result: R) -> R:
    """Print a result's comparison with the reference and with earlier tries, record it, and return it."""
    compared = tries.comparison(result, _case()["reference"], _folder())
    tries.record(result, _folder())
    print(result if not compared else f"{result}\n{compared}")
    return result


def _waiting(part: str, text: str) -> Result:
    result = Result(part, waits=text)
    print(result)
    return result


def _known(answers: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    """Raise `ValueError` for an answer to no question."""
    for name in answers:
        if name not in names:
            raise ValueError(f"no question {name!r}" + (suggest(str(name), names) or f": there are {', '.join(names)}"))


# Part 1: diagnose


def diagnose(lines: Mapping[str, int | None]) -> Result:
    """Score the numbers of the log's lines that tell each fault; 0 stands for a fault that no line tells.

    Waits until one is answered. Raises `ValueError` for an unknown fault.
    """
    questions = _case()["diagnose"]
    _known(lines, questions)
    if all(lines.get(name) is None for name in questions):
        return _waiting("diagnose", "put the number of a line beside each fault")
    each = PARTS["diagnose"] / len(questions)
    items = []
    for name, question in questions.items():
        answer = lines.get(name)
        is_right = not isinstance(answer, bool) and answer in question["right"]
        text = question["praise"] if is_right else f"{question['asks']} {_about_line(answer)}"
        wrong = _wrong_before("diagnose", name, question["right"])
        items.append(_answered(each, is_right, wrong, f"{name}: {text}"))
    return _scored(Result("diagnose", tuple(items), answers=dict(lines)))


def _wrong_before(part: str, name: str, right: Sequence[object]) -> int:
    """Number of different wrong answers to a question in earlier tries."""
    given = [one["answers"].get(name) for one in tries.read(_folder()) if one["part"] == part]
    return len({str(answer) for answer in given if answer is not None and answer not in right})


def _answered(of: float, is_right: bool, wrong_before: int, text: str) -> Item:
    """Points for an answer: half of them after one wrong answer, a quarter after two."""
    less = f" (after {wrong_before} wrong: {0.5**wrong_before:.0%} of the points)" if is_right and wrong_before else ""
    return Item(of * is_right * 0.5**wrong_before, of, text + less)


def _about_line(answer: object) -> str:
    if answer is None:
        return "Not answered yet."
    last = len(_case()["lines"]) - 1
    return _case()["lines"].get(str(answer), f"The answer is the number of a line, 1 to {last}, or 0 for none.")


# Part 2: plan


@dataclass(frozen=True, repr=False)
class Planned(Result):
    """Points for a plan, and the plan itself; None where there is none."""

    plan: MemoryPlan | None = None


def plan(settings: str | Path | Recipe | None) -> Planned:
    """Score a corrected command: whether its faults are mended, whether it fits the card, and how few bytes and FLOPs it takes.

    `settings` is a command, flags, TOML, a file of these, or a recipe. Memory earns points only if the job is the one that the client
    asked for. Waits for None.
    """
    if settings is None:
        print(waiting := Planned("plan", waits="write the corrected command as SETTINGS"))
        return waiting
    read = doctor.diagnose(settings)
    if not read.settings.script_named:
        read = doctor.diagnose(settings, script=SCRIPT)
    text = settings.to_flags() if isinstance(settings, Recipe) else str(settings).strip()
    stops = next((finding for finding in read.findings if finding.effect == "raises"), None)
    if stops or read.is_log:
        why = f"sd-scripts would stop: {stops.what} {stops.why}" if stops and not read.is_log else "this is a log; write a command"
        return _scored(Planned("plan", (Item(0, PARTS["plan"], why),), settings=text))
    try:
        recipe = Recipe.from_settings(read.settings)
        reasons = _another_job(read, recipe)
        made = None if reasons else _planned(recipe)
    except ValueError as error:
        return _scored(Planned("plan", (Item(0, PARTS["plan"], f"cannot be planned: {error}"),), settings=text))
    sizes = _sizes(made, recipe) if made else (Item(0, of, f"{name}: {'; '.join(reasons)}") for name, of in SIZES.items())
    items = [*_repairs(read, recipe), *sizes]
    measures = _measures(made, recipe) if made and made.fits else {}
    return _scored(Planned("plan", tuple(items), measures=measures, settings=text, plan=made))


def _another_job(read: doctor.Diagnosis, recipe: Recipe) -> list[str]:
    """Reasons why a plan is not for the client's job, which is a larger one."""
    batch, rounds, steps = recipe.train_batch_size, recipe.gradient_accumulation_steps, recipe.max_train_steps
    checks = {
        f"the script is {read.settings.script}, not {SCRIPT}": read.settings.script == SCRIPT,
        "the client wants a LoRA: network_module=networks.lora": recipe.network_module == "networks.lora",
        f"the client wants {SIDE} pixels a side": recipe.resolution in (SIDE, (SIDE, SIDE)),
        f"the client wants a rank of {LEAST_RANK} or more": (recipe.network_dim or 4) >= LEAST_RANK,
        f"the client wants {EACH_UPDATE} pictures for each update, and here there are {batch * rounds}": batch * rounds == EACH_UPDATE,
        f"the client wants {PICTURES:,} pictures in all, and here there are {steps * batch * rounds:,}": steps * batch * rounds >= PICTURES,
        "give the steps as max_train_steps, not as epochs": not recipe.max_train_epochs,
    }
    return [reason for reason, holds in checks.items() if not holds]


def _repairs(read: doctor.Diagnosis, recipe: Recipe) -> Iterator[Item]:
    """Points for the faults that fill no card: each is mended or not."""
    effective = read.effective()
    rates = effective.get("learning_rates") or {}
    is_fixed = bool(rates) and all(abs(rate / RATE - 1) < 1e-6 for rate in rates.values())
    found = f"the U-Net would train at {rates.get('U-Net')}" if rates else "Adafactor still chooses the rate"
    yield _mended("rate", is_fixed, "it trains at 1e-4, with the schedule that is written there", f"{found}, not 1e-4")
    has_captions = recipe.caption_extension == ".txt"
    yield _mended("captions", has_captions, "the .txt files are read", "the captions are in .txt files; see caption_extension")
    is_safe = recipe.mixed_precision != "fp16" or bool(read.settings["no_half_vae"])
    yield _mended("latents", is_safe, "the VAE does not overflow", "SDXL's VAE still computes in fp16: see no_half_vae, or use bf16")
    alpha, rank = recipe.network_alpha, recipe.network_dim or 4
    strong = alpha >= rank / 2
    yield _mended("strength", strong, f"alpha over rank is {alpha / rank:g}", f"alpha over rank is {alpha:g}/{rank}; at least a half")


def _mended(name: str, is_mended: bool, praise: str, why: str) -> Item:
    return Item(3.0 * is_mended, 3, f"{name}: {praise if is_mended else why}")


def _sizes(made: MemoryPlan, recipe: Recipe) -> Iterator[Item]:
    """Points for whether it fits, for bytes and for FLOPs."""
    reference, usable = _case()["reference"], card_of(_case()["card"]).usable_bytes / GIB
    measures = _measures(made, recipe)
    reserved, flops = measures["reserved"], measures["flops_per_picture"]
    part = max(made.by_category, key=made.by_category.__getitem__)
    largest = f"at the peak, in {made.peak.phase}, {part} take {made.by_category[part] / GIB:.2f} GiB"
    points = {"fits": 8, "tight": 4}.get(made.verdict or "", 0)
    yield Item(points, SIZES["fits"], f"fits: {reserved:.2f} GiB reserved of {usable:.2f}: {made.verdict}; {largest}")
    if not points:
        yield Item(0, 5, "bytes: counted once it fits")
        yield Item(0, 5, "FLOPs: counted once it fits")
        return
    bytes_share = share(reserved, reference["reserved"] + 0.01, usable)
    yield Item(5 * bytes_share, 5, f"bytes: {reserved:.2f} GiB, the reference {reference['reserved']:.2f}")
    flops_share = share(flops, 1.01 * reference["flops_per_picture"], 1.5 * reference["flops_per_picture"])
    yield Item(5 * flops_share, 5, f"FLOPs: {flops:.1f} T a picture, the reference {reference['flops_per_picture']:.1f}")


def _measures(made: MemoryPlan, recipe: Recipe) -> dict[str, float]:
    pictures = recipe.train_batch_size * recipe.gradient_accumulation_steps
    return {"reserved": made.reserved_bytes / GIB, "flops_per_picture": made.flops / pictures / 1e12}


@functools.lru_cache(maxsize=32)
def _planned(recipe: Recipe, gpu: str = "") -> MemoryPlan:
    return planner.plan("sdxl", recipe, gpu=gpu or _case()["card"], trainer="sd-scripts")


# Part 3: choose


def choose(planned: Planned, levers: Mapping[str, tuple[str, str] | None]) -> Result:
    """Score, for each lever, the part of memory that it takes most from in the reader's own plan, and what it alters.

    `levers` maps each of `LEVERS` to (part, alters): a part such as "weights" or "activations", and one of `ALTERS`. Plans the recipe with
    and without each lever. Waits for a plan and for an answer. Raises `ValueError` for an unknown lever.
    """
    _known(levers, LEVERS)
    if planned.plan is None:
        return _waiting("choose", "it needs a plan that can be made, above")
    if all(levers.get(name) is None for name in LEVERS):
        return _waiting("choose", 'put ("part of memory", "what it alters") beside each lever')
    items, answers = [], {}
    for name in LEVERS:
        answer = levers.get(name)
        part, alters = answer if isinstance(answer, (tuple, list)) and len(answer) == 2 else (None, None)
        answers |= {f"{name}, part": part, f"{name}, alters": alters}
        items += _lever_items(name, planned.plan.recipe, part, alters)
    return _scored(Result("choose", tuple(items), answers=answers))


def _lever_items(name: str, recipe: Recipe, part: object, alters: object) -> Iterator[Item]:
    saved = saved_by(name, recipe)
    most = max(saved, key=saved.__getitem__)
    sizes = f"in your plan it takes {saved[most] / GIB:.2f} GiB off the {most}"
    wrong = f"you said {part}: {saved[str(part)] / GIB:.2f} GiB" if part in saved else f"name one of {', '.join(saved)}"
    text = f"{name}: {sizes}" + ("" if part == most else f"; {wrong}")
    yield _answered(1.5, part == most, _wrong_before("choose", f"{name}, part", [most]), text)
    right = LEVERS[name][2]
    because = {
        "nothing": "the result is the same but for the order of sums",
        "rounding": "the same formulas, in coarser numbers",
    }[right]
    said = f"you said {alters!r}; " if alters in ALTERS else f"name one of {', '.join(ALTERS)}; "
    text = f"{name}: {'' if alters == right else said}it alters {right}: {because}"
    yield _answered(1.5, alters == right, _wrong_before("choose", f"{name}, alters", [right]), text)


def saved_by(lever: str, recipe: Recipe) -> dict[str, int]:
    """Bytes that a lever takes off each part of memory at the peak, with everything else as in `recipe`."""
    on, off, _ = LEVERS[lever]
    with_it, without = (_planned(recipe.replace(**settings)).by_category for settings in (on, off))
    parts = ("weights", "optimizer state", "gradients", "activations", "temporaries")
    return {part: without[part] - with_it[part] for part in parts}


# Part 4: train


@dataclass(frozen=True, repr=False)
class Trained(Result):
    """Points for the run on tiny, its model and its held-out loss; no model where it did not run."""

    model: Model | None = None
    recipe: Recipe | None = None
    held_out: float = float("inf")


def train(recipe: Recipe | None, steps: int | None) -> Trained:
    """Train a LoRA for tiny on the ink drawings, drawing the run, and score its held-out loss and its FLOPs.

    Weights, pictures, seed and the held-out pictures are always the same, so only the recipe counts. What would exceed `BUDGET` is not
    run. Waits for None.
    """
    if recipe is None or steps is None:
        print(waiting := Trained("train", waits="write a recipe as TINY and a number of steps as STEPS"))
        return waiting
    if not isinstance(recipe, Recipe):
        recipe = Recipe.parse(recipe)
    settings = f"{recipe.to_flags()}, {steps} steps"
    recipe = recipe.replace(seed=0)
    try:
        refused = _refused(recipe, steps)
        flops = 0.0 if refused else _tiny_flops(recipe) * steps / 1e9
        if flops > BUDGET:
            refused = f"{flops:.0f} GFLOPs are over the budget of {BUDGET:.0f}: fewer steps, smaller batches, or less recomputed"
        result = Trained("train", (Item(0, PARTS["train"], refused),), settings=settings) if refused else None
        if result is None:
            model, held_out = _trained(recipe, steps)
            items = tuple(_learned(held_out, flops))
            result = Trained("train", items, settings=settings, model=model, recipe=recipe, held_out=held_out)
            if held_out < _case()["reference"]["untrained"]:
                result = replace(result, measures={"held_out": held_out, "flops": flops})
    except (ValueError, ArithmeticError) as error:
        result = Trained("train", (Item(0, PARTS["train"], f"it did not train: {error}"),), settings=settings)
    return _scored(result)


def _refused(recipe: Recipe, steps: int) -> str:
    """Why a run is not started; empty if it is."""
    if not isinstance(steps, int) or steps < 1:
        return f"steps={steps}: nothing would be trained"
    if not recipe.wants_lora or recipe.network_module != "networks.lora":
        return "the client wants a LoRA: set network_module, network_dim and network_alpha"
    if brought := [name for name in _NO_OTHERS if getattr(recipe, name, None)]:
        return f"{', '.join(brought)}: the run starts from tiny's own weights and trains on the ink drawings only"
    return ""


def _tiny_flops(recipe: Recipe) -> float:
    return planner.plan("tiny", recipe, device="cpu").flops


def _trained(recipe: Recipe, steps: int) -> tuple[Model, float]:
    from ..datasets import pictures
    from ..models import load
    from ..trainer import train as run
    from ..watch import live

    model = load("tiny", device="cpu")
    for _ in live(run(model, pictures("emoji-ink"), recipe, steps=steps, resume=False)):
        pass
    return model, held_out_loss(model)


def held_out_loss(model: Model) -> float:
    """Mean loss on the held-out ink drawings, always with the same noise."""
    import torch

    from ..datasets import Cache, pictures
    from ..training import denoising_loss

    judge = Recipe(train_batch_size=32, seed=99)
    cache = Cache(model, pictures("emoji-ink/held_out"), judge)
    with torch.no_grad():
        return sum(denoising_loss(model, cache.batch(index), judge).item() for index in range(4)) / 4


def _learned(held_out: float, flops: float) -> Iterator[Item]:
    reference = _case()["reference"]
    learned = share(held_out, reference["held_out"] + 0.002, reference["untrained"])
    text = f"held-out loss: {held_out:.3f}, untrained {reference['untrained']:.3f}, the reference {reference['held_out']:.3f}"
    hint = (
        "" if learned > 0.9 else "; did the rate reach the weights? Look at its panel" if learned > 0.05 else "; it learned next to nothing"
    )
    yield Item(16 * learned, 16, text + hint)
    frugal = min(1.0, 1.01 * reference["flops"] / flops)
    enough = learned >= 0.5
    why = "" if enough else "; they count once half of the reference's progress is made"
    yield Item(4 * frugal * enough, 4, f"FLOPs: {flops:.0f} G, the reference {reference['flops']:.0f}{why}")


# Part 5: export


def export(trained: Trained, file: str | Path | None) -> Result:
    """Score a LoRA file: diffusers loads it into a fresh model, which then has the held-out loss of the run.

    Waits for a run and a file.
    """
    if trained.model is None:
        return _waiting("export", "it needs a run that trained, above")
    if file is None:
        return _waiting("export", "save the LoRA of run.model and give its path as FILE")
    path = Path(file).expanduser()
    try:
        loss = _loss_in_diffusers(path)
    except Exception as error:  # diffusers raises whatever the file makes it raise
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return _scored(Result("export", (Item(0, PARTS["export"], f"diffusers does not load {path.name}: {why}"),), settings=path.name))
    untrained = _case()["reference"]["untrained"]
    same = abs(loss - trained.held_out) <= 1e-3
    text = f"its held-out loss there is {loss:.3f}, that of your run {trained.held_out:.3f}"
    hint = "" if same else "; that is the untrained model's" if abs(loss - untrained) < 2e-3 else "; it is not the file of this run"
    items = (Item(4, 4, f"diffusers loads {path.name} into a fresh model"), Item(4.0 * same, 4, text + hint))
    return _scored(Result("export", items, settings=path.name))


def _loss_in_diffusers(path: Path) -> float:
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from diffusers.utils import logging

    from .. import lora
    from ..models import load

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    logging.set_verbosity_error()
    fresh = load("tiny", device="cpu")
    rest = dict[str, Any](scheduler=DDIMScheduler.from_config(fresh.noise_scheduler.config), tokenizer=fresh.tokenizer)
    none = dict[str, Any](safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline = StableDiffusionPipeline(**fresh.parts, **rest, **none)
    with lora.beside_any_torchao():
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    return held_out_loss(fresh)  # its parts are the pipeline's


# Part 6: defend


def defend(planned: Planned, trained: Trained, answers: Mapping[str, str | None]) -> Result:
    """Score the reader's choices; what is right follows from their own plan and run. Waits for both, and for an answer.

    Raises `ValueError` for an unknown question.
    """
    questions = _case()["defend"]
    _known(answers, questions)
    if planned.plan is None or trained.recipe is None:
        return _waiting("defend", "the answers follow from your own plan and your own run, above")
    if all(answers.get(name) is None for name in questions):
        return _waiting("defend", "choose an answer to each question")
    each = PARTS["defend"] / len(questions)
    facts = _facts(planned.plan.recipe, trained)
    items = []
    for name, question in questions.items():
        answer, choices, (right, evidence) = answers.get(name), question["choices"], facts[name]
        chosen = choices.get(str(answer))
        why = chosen["why"] if chosen else f"Choose one of {', '.join(choices)}."
        text = f"{name}: {why} {evidence}"
        items.append(_answered(each, answer == right, _wrong_before("defend", name, [right]), text))
    return _scored(Result("defend", tuple(items), answers=dict(answers)))


def questions() -> str:
    """The questions of the last part, with their choices."""
    lines = []
    for name, question in _case()["defend"].items():
        lines += [f"{name}: {question['asks']}", *(f"    {key!r}: {choice['text']}" for key, choice in question["choices"].items())]
    return "\n".join(lines)


def _facts(recipe: Recipe, trained: Trained) -> dict[str, tuple[str, str]]:
    """The right choice of each question, and the reader's numbers that show it."""
    rank = recipe.network_dim or 4
    whole = _planned(recipe).reserved_bytes
    half = _planned(recipe.replace(network_dim=rank // 2, network_alpha=recipe.network_alpha / 2)).reserved_bytes
    fall = 1 - half / whole
    larger = _planned(recipe.replace(gradient_checkpointing=False), "rtx3060")
    fitting = {"fits": "yes", "tight": "tight"}.get(larger.verdict or "", "no")
    reference = _case()["reference"]
    assert trained.recipe is not None
    off, on = (_tiny_flops(trained.recipe.replace(gradient_checkpointing=value)) for value in (False, True))
    return {
        "rank": (
            "half" if fall > 0.4 else "fifth" if fall > 0.1 else "little",
            f"Yours falls from {whole / GIB:.2f} GiB at rank {rank} to {half / GIB:.2f} at {rank // 2}, by {fall:.0%}.",
        ),
        "larger": (
            fitting,
            f"Yours would reserve {larger.reserved_bytes / GIB:.2f} GiB of {card_of('rtx3060').usable_bytes / GIB:.2f}: {larger.verdict}.",
        ),
        "silent": (
            "nothing",
            f"On tiny such a run ends at a held-out loss of {reference['silent']:.3f}, untrained it is {reference['untrained']:.3f}, "
            f"and yours is {trained.held_out:.3f}.",
        ),
        "checkpointing": ("flops", f"Yours takes {off / 1e9:.1f} GFLOPs a step without it, and {on / 1e9:.1f} with it."),
    }


# The certificate


def certificate(name: str | None) -> Certificate:
    """Page of the reader's best tries, also written to `capstone.html` in the reader's folder. Waits for a name and for all six parts."""
    found = tries.best(_folder())
    missing = [part for part in PARTS if part not in found]
    if name is None or not str(name).strip():
        return Certificate(waits="put your name into NAME")
    if missing:
        return Certificate(waits=f"not tried yet: {', '.join(missing)}")
    made = page(str(name).strip(), found, _case()["reference"])
    try:
        return made.written(_folder() / "capstone.html")
    except OSError as error:  # such as a folder that is read-only
        return replace(made, summary=f"{made.summary} It could not be written: {error}")
