"""Adapters as a run starts with them: those that its recipe asks for, with the weights of the files that it names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..models import family_of, refuse_pickle
from ..system import quoted
from . import adapters, files, lycoris
from .arguments import Asked, asked

if TYPE_CHECKING:
    from ..models import Model
    from ..recipe import Recipe


def check_files(recipe: Recipe) -> None:
    """Raise `ValueError` for a LoRA file that a recipe names and that is not there, or is a pickle."""
    if recipe.dim_from_weights and not recipe.network_weights:
        raise ValueError("dim_from_weights takes the ranks from network_weights: give that file, or leave it out")
    named = {"network_weights": [recipe.network_weights] if recipe.network_weights else [], "base_weights": recipe.base_weights}
    for setting, places in named.items() if recipe.wants_lora else ():
        for place in places:
            path = Path(place).expanduser()
            try:
                refuse_pickle(path)
            except ValueError as error:
                raise ValueError(
                    f"{setting}: {error}, or convert it where you trust it: load it there and write it with safetensors"
                ) from error
            if not path.is_file():
                raise ValueError(f"{setting}={quoted(place)} does not exist: give the .safetensors file of a LoRA")


def start(sd: Model, recipe: Recipe) -> None:
    """Put the adapters that a recipe asks for beside a model's layers, in place.

    `base_weights` are merged into the model before. With `network_weights` the adapters begin as that file has them; with
    `dim_from_weights` they also have its ranks and alphas. Adapters of parts that are not trained are left out, as in sd-scripts.

    Raises `ValueError` as `asked`, `check_files`, `add`, `load` and `fill` do; a file for another model is refused before anything is
    changed.
    """
    wanted = asked(recipe)
    if wanted is None:
        return
    check_files(recipe)
    for place in recipe.base_weights:
        files.check(sd, place)
    begun = Path(recipe.network_weights).expanduser() if recipe.network_weights else None
    rows = (files.of_lycoris(begun) if wanted.args is not None else files.read(sd, begun)) if begun else {}
    for number, place in enumerate(recipe.base_weights):
        multipliers = recipe.base_weights_multiplier
        files.load(sd, place, strength=multipliers[number] if number < len(multipliers) else 1.0)
        adapters.merge(sd)
    with adapters.put_back_on_error(sd):
        if recipe.dim_from_weights and begun:
            files.load(sd, begun)
            for part in adapters.parts(sd).values() if wanted.freeze_down else ():
                adapters.freeze_all_down(part)
        else:
            _add(sd, wanted, recipe)
            if begun:
                files.fill(sd, rows, begun)
        _take_out_untrained(sd, recipe)


def _add(sd: Model, wanted: Asked, recipe: Recipe) -> None:
    text_encoder = recipe.wants_lora_in_text_encoders
    if wanted.args is None:
        adapters.add(sd, **wanted.of_add, text_encoder=text_encoder)
        return
    asked_for = {"rank": wanted.rank, "alpha": recipe.network_alpha, "args": dict(wanted.args), "text_encoder": text_encoder}
    if recipe.network_module in lycoris.MODULES:
        lycoris.add(sd, **asked_for, dropout=wanted.dropout)
    else:
        from . import networks  # it needs torch

        networks.add(sd, **asked_for, module=str(recipe.network_module))


def _take_out_untrained(sd: Model, recipe: Recipe) -> None:
    denoiser = family_of(sd).denoiser
    for name, part in adapters.parts(sd).items():
        trained = not recipe.network_train_text_encoder_only if name == denoiser else recipe.wants_lora_in_text_encoders
        if not trained and adapters.is_added(part):
            adapters.take_out(part)
            if recipe.dim_from_weights and recipe.network_weights:
                warnings.warn(
                    f"network_weights: what {Path(recipe.network_weights).name} has for the {name} is left out, as it is not trained",
                    RuntimeWarning,
                    stacklevel=2,
                )
    if not adapters.has_adapters(sd):
        raise ValueError(f"network_weights={quoted(recipe.network_weights)} has nothing for the parts that are trained: give another file")
