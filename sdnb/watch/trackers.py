"""`Trackers`: a run's numbers for TensorBoard and Weights & Biases, through accelerate, under the names that sd-scripts logs them by.

Each run writes to a folder of its own, named by the time it began, as sd-scripts' runs do; one that goes on from a save begins at the
step after it. W&B writes to that folder too, and reaches for no network unless the environment says `WANDB_MODE=online`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system import is_missing, untrusted

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.nn import Parameter
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from ..recipe import Recipe
    from ..training import Step

TRACKS_SIZE = ("dadapt", "prodigy")
"""Beginnings of the optimizers that find a factor of the learning rate by themselves; it is logged as well."""
HIDDEN = (
    "wandb_api_key huggingface_token pretrained_model_name_or_path vae tokenizer_cache_dir train_data_dir conditioning_data_dir "
    "reg_data_dir output_dir logging_dir"
).split()
"""Settings that no tracker is shown, because they are secret or tell about the machine."""


def kind(recipe: Recipe) -> str | None:
    """The trackers that a recipe asks for and that are there: `tensorboard`, `wandb` or `all`; None for none.

    A `logging_dir` alone means TensorBoard.
    """
    asked = recipe.log_with or ("tensorboard" if recipe.logging_dir else None)
    return None if asked == "tensorboard" and is_missing("tensorboard") else asked


def check(recipe: Recipe) -> None:
    """Raise `ValueError` for trackers without a `logging_dir` and a bad `log_tracker_config`, `ImportError` where W&B is not installed.

    TensorBoard may be missing, as in sd-scripts: nothing is logged then, and `sd_scripts.supported` says so.
    """
    if recipe.log_with in ("tensorboard", "all") and not recipe.logging_dir:
        raise ValueError(f"log_with={recipe.log_with} needs logging_dir, the folder for the logs")
    if recipe.log_with in ("wandb", "all") and is_missing("wandb"):
        raise ImportError(f"log_with={recipe.log_with} needs the package wandb, which is not installed: pip install wandb")
    if recipe.log_tracker_config:
        _init_arguments(recipe, None)


def folder(recipe: Recipe) -> Path | None:
    """Folder of a run's logs that begins now; None without `logging_dir`."""
    if not recipe.logging_dir:
        return None
    return Path(recipe.logging_dir).expanduser() / f"{recipe.log_prefix or ''}{time.strftime('%Y%m%d%H%M%S')}"


def _init_arguments(recipe: Recipe, place: Path | None) -> dict[str, dict[str, Any]]:
    """Arguments of each tracker: those of the file `log_tracker_config`, or else W&B's name of the run."""
    theirs: dict[str, Any] = {"wandb": {"name": recipe.wandb_run_name}} if recipe.wandb_run_name else {}
    if recipe.log_tracker_config:
        try:
            theirs = untrusted.read_toml(Path(recipe.log_tracker_config).expanduser())
        except OSError as error:
            raise ValueError(f"log_tracker_config={recipe.log_tracker_config!r} cannot be read: {error.strerror}") from error
        if not all(isinstance(table, dict) for table in theirs.values()):
            raise ValueError(f"log_tracker_config={recipe.log_tracker_config!r}: it must have a table for each tracker, such as [wandb]")
    ours = {} if "WANDB_MODE" in os.environ else {"mode": "offline"}
    if place is not None:
        ours["dir"] = str(place)
    return {**theirs, "wandb": {**ours, **theirs.get("wandb", {})}}


class Average:
    """sd-scripts' average of the loss: over the last epoch, of which each step replaces the same step of the epoch before."""

    def __init__(self, epoch_steps: int) -> None:
        self._steps = epoch_steps
        self._losses: dict[int, float] = {}

    def add(self, index: int, loss: float) -> float:
        """Add the loss of a step, counted from 0 over the whole run; returns the average."""
        self._losses[index % self._steps] = loss
        return self.value

    @property
    def value(self) -> float:
        """The average; NaN before the first step."""
        return sum(self._losses.values()) / len(self._losses) if self._losses else math.nan


def groups(optimizer: Optimizer, trained: Mapping[str, Parameter]) -> list[tuple[str, dict]]:
    """The optimizer's parameter groups by sd-scripts' names, `textencoder` before `unet`. One with several parts stands for each.

    Where a part has several, those with `lora_up` alone are called `plus`, and the others are numbered as blocks.
    """
    of = {id(parameter): name for name, parameter in trained.items()}
    found = []
    for group in optimizer.param_groups:
        names = [of.get(id(parameter), "") for parameter in group["params"]]
        parts = dict.fromkeys("textencoder" if name.startswith("text_encoder") else "unet" for name in names)
        ups = bool(names) and all(".lora_B." in name for name in names)
        found += [(part, ups, group) for part in parts]
    found.sort(key=lambda row: row[0])
    blocks = [group for part, ups, group in found if part == "unet" and not ups]
    rows = []
    for part, ups, group in found:
        number = next((place for place, one in enumerate(blocks) if one is group), 0)
        name = f"unet_block{number}" if part == "unet" and not ups and len(blocks) > 1 else part
        rows.append((f"{name} plus" if ups else name, group))
    return rows


def groups_of_whole(optimizer: Optimizer, trained: Mapping[str, Parameter], block_rates: Sequence[float] = ()) -> list[tuple[str, dict]]:
    """The parameter groups of whole models by sd-scripts' names: `unet`, `text_encoder1` and so on, and with `block_lr` each `block`.

    sd-scripts has a group for each of SDXL's models; where they share one here, it stands for each.
    """
    names = {"text_encoder": "text_encoder1", "text_encoder_2": "text_encoder2"}
    of = {id(parameter): name.partition(".")[0] for name, parameter in trained.items()}
    blocks, rows = [number for number, rate in enumerate(block_rates) if rate > 0], []
    for group in optimizer.param_groups:
        parts = {of.get(id(parameter), "unet") for parameter in group["params"]}
        if "unet" in parts and "text_encoder_2" not in parts:
            parts = {"unet"}
        for part in sorted(parts, key=lambda part: names.get(part, "")):
            name = f"block{blocks.pop(0)}" if blocks and part not in names else names.get(part, "unet")
            rows.append((name, group))
    return rows


def rates(rows: Sequence[tuple[str, float, float | None]], *, is_lora: bool, unet_only: bool) -> dict[str, float]:
    """The scalars of the learning rates: (name, rate, the optimizer's own factor or None) of each group.

    train_network.py logs all but the text encoder's twice, by name and by number.
    """
    scalars: dict[str, float] = {}
    for name, rate, factor in rows:
        scalars[f"lr/{name}"] = rate
        if factor is not None:
            scalars[f"lr/d*lr/{name}"] = factor * rate
    if not is_lora:
        return scalars
    if not unet_only and rows:
        scalars["lr/textencoder"] = rows[0][1]
    for number, (_, rate, factor) in enumerate(rows):
        if unet_only or number:
            scalars[f"lr/group{number}"] = rate
            if factor is not None:
                scalars[f"lr/d*lr/group{number}"] = factor * rate
    return scalars


class Trackers:
    """The trackers of a run, in its first process. A step is logged when the next one is, so that its loss need not be waited for."""

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, optimizer: Optimizer, trained: Mapping[str, Parameter], epoch_steps: int
    ) -> None:
        self._accelerator, self._epoch_steps, self._is_lora = accelerator, epoch_steps, recipe.wants_lora
        self._unet_only = recipe.wants_lora and not recipe.wants_lora_in_text_encoders
        if recipe.wants_lora:
            self._groups = groups(optimizer, trained)
        else:
            self._groups = groups_of_whole(optimizer, trained, recipe.block_rates)
        if recipe.fused_optimizer_groups:  # there each has an optimizer of its own, and the first one's rate is logged
            self._groups = self._groups[:1]
        self._tracks_factor = recipe.optimizer_type.lower().startswith(TRACKS_SIZE)
        self._average = Average(epoch_steps)
        self._pending: tuple[Step, dict[str, float], bool] | None = None
        place = accelerator.logging_dir
        arguments = _init_arguments(recipe, None if place is None else Path(place))
        if place is not None:
            Path(place).mkdir(parents=True, exist_ok=True)
        if recipe.wandb_api_key and kind(recipe) in ("wandb", "all") and os.environ.get("WANDB_MODE", "offline") == "online":
            import wandb  # pyright: ignore[reportMissingImports]  # optional

            wandb.login(key=str(recipe.wandb_api_key))
        default = "network_train" if recipe.wants_lora else "finetuning"
        config = _shown(recipe) if recipe.log_config else None
        accelerator.init_trackers(recipe.log_tracker_name or default, config=config, init_kwargs=arguments)
        for tracker in accelerator.trackers:
            if tracker.name == "wandb":
                for name in ("epoch", "val_step", "global_step"):
                    tracker.tracker.define_metric(name, hidden=True)

    def add(self, step: Step, schedule: LRScheduler, *, is_step_validation: bool = False) -> None:
        """Log the step before, and keep this one. `is_step_validation`: whether its validation was due by steps, not only by epochs."""
        self._log_pending()
        rows = []
        for name, group in self._groups:
            factor = float(group["d"]) if self._tracks_factor and "d" in group else None
            rows.append((name, float(group["lr"] if group["lr"] is not None else schedule.get_last_lr()[0]), factor))
        self._pending = step, rates(rows, is_lora=self._is_lora, unet_only=self._unet_only), is_step_validation

    def close(self) -> None:
        """Log the last step, and end the trackers."""
        self._log_pending()
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def _log_pending(self) -> None:
        if self._pending is None:
            return
        (step, learning_rates, is_step_validation), self._pending = self._pending, None
        average, done = self._average.add(step.index, step.loss), step.index + 1
        epoch = step.index // self._epoch_steps + 1
        losses = {"loss/current": step.loss, "loss/average": average} if self._is_lora else {"loss": step.loss}
        self._log(losses | _norms(step) | learning_rates, done, done, epoch)
        ends = done % self._epoch_steps == 0 or done == step.steps
        tried = step.validation_loss
        if tried is not None and is_step_validation:
            values = {"loss/validation/step_average": tried, "loss/validation/step_divergence": tried - average}
            self._log(values, done, done, epoch)
        if tried is not None and ends:
            values = {"loss/validation/epoch_average": tried, "loss/validation/epoch_divergence": tried - average}
            self._log(values, epoch, done, epoch)
        if ends:
            self._log({"loss/epoch_average" if self._is_lora else "loss/epoch": average}, epoch, done, epoch)

    def _log(self, values: dict[str, float], place: int, done: int, epoch: int) -> None:
        """Log scalars at `place`; W&B, whose steps may only grow, has them by `global_step` and `epoch`."""
        for tracker in self._accelerator.trackers:
            if tracker.name == "wandb":
                tracker.log({**values, "global_step": done, "epoch": epoch})
            else:
                tracker.log(values, step=place)


def _norms(step: Step) -> dict[str, float]:
    """The scalars of the adapters' norms, where they are limited."""
    if step.norms is None:
        return {}
    scalars = {"max_norm/keys_scaled": step.norms.scaled, "max_norm/max_key_norm": step.norms.largest}
    return {**scalars, "norm/avg_key_norm": step.norms.mean}


def _shown(recipe: Recipe) -> dict[str, Any]:
    """The recipe's settings as a tracker may show them."""
    given = {name: value for name, value in recipe.settings().given.items() if name not in HIDDEN}
    return {name: value if isinstance(value, bool | str | float | int) else str(value) for name, value in given.items()}
