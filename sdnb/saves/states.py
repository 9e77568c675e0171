"""`State`: the folder that the setting `resume` names, one of our saves or a state that sd-scripts saved with accelerate.

sd-scripts' state has the weights as safetensors, and optimizer, schedule and random generators as pickles. Those are never loaded: a run
that begins with it has its weights and its step, and all else anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..models import family_of
from ..system import quoted, untrusted
from . import folders

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from ..models import Model

WEIGHTS = re.compile(r"model(_\d+)?(-\d{5}-of-\d{5})?\.safetensors")
"""Names of accelerate's files of weights: of each model, maybe in pieces."""
STEP = "train_state.json"
"""sd-scripts' file with the step of a LoRA's training."""
UNET = "model.diffusion_model."


@dataclass(frozen=True)
class State:
    """A place to begin from."""

    path: Path
    """A save of ours, or the folder of sd-scripts' state."""
    is_ours: bool
    step: int = 0
    """Steps that its run had done, where sd-scripts says it."""

    @property
    def files(self) -> list[Path]:
        """sd-scripts' files of weights."""
        return sorted(path for path in self.path.iterdir() if WEIGHTS.fullmatch(path.name))

    def put(self, sd: Model) -> None:
        """Copy the weights of whole parts, as train_db.py and its like save them, into a model.

        Raises `ValueError` for files that do not fit it, before anything is changed.
        """
        import torch
        from safetensors.torch import load_file

        found: dict[str, dict[str, Tensor]] = {}
        for path in self.files:
            found.setdefault(re.split(r"[-.]", path.name)[0], {}).update(load_file(path))
        fitting = [self._fitted(sd, tensors, name) for name, tensors in found.items()]
        with torch.no_grad():
            for part, tensors in fitting:
                for name, parameter in part.state_dict().items():
                    if name in tensors:
                        parameter.copy_(tensors[name])

    def _fitted(self, sd: Model, tensors: Mapping[str, Tensor], name: str) -> tuple[Module, dict[str, Tensor]]:
        """The part that these weights are of, and they in its names and shapes."""
        original = {f"{UNET}{key}": tensor for key, tensor in tensors.items()}
        for part, module in sd.parts.items():
            ways = [tensors, {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}]
            if part == family_of(sd).denoiser and any(key.startswith("input_blocks.") for key in tensors):
                ways = [family_of(sd).from_original(part, original, {}, module)]
            here = {key: tensor for key, tensor in module.state_dict().items() if not key.endswith("position_ids")}
            for way in ways:
                # a convolution of one pixel and a linear layer hold the same
                if here.keys() <= way.keys() and all(way[key].squeeze().shape == here[key].squeeze().shape for key in here):
                    return module, {key: way[key].reshape(here[key].shape) for key in here}
        raise ValueError(f"resume: {name} in {self.path} fits no part of this model: give the state of a training of the same model")


def find(place: str) -> State:
    """The state at a place. Raises `ValueError` for one that is none, that has pickles alone, and for the file of a model."""
    folder = Path(place).expanduser()
    if not folder.is_dir():
        way = "a file of weights belongs to network_weights or pretrained_model_name_or_path" if folder.is_file() else "there is none"
        raise ValueError(f"resume={quoted(place)}: it must be the folder of a save or state; {way}")
    if (folder / folders.STATE).is_file():
        return State(folder, is_ours=True)
    if ours := folders.found(folder):
        return State(ours[-1], is_ours=True)
    state = State(folder, is_ours=False, step=_step(folder / STEP))
    if not state.files:
        pickles = any(path.suffix in (".bin", ".pt", ".pkl") for path in folder.iterdir())
        why = (
            "its weights are pickles, which are never loaded: save the state again with a newer accelerate" if pickles else "it holds none"
        )
        raise ValueError(f"resume={quoted(place)}: it must be the folder of a save or state; {why}")
    return state


def _step(path: Path) -> int:
    """The step in sd-scripts' file, 0 where there is none."""
    if not path.is_file():
        return 0
    step = untrusted.read_json(path).get("current_step")
    if type(step) is not int or not 0 <= step < 2**40:
        raise ValueError(f"{path} has the current_step {quoted(step)}: it must be a whole number")
    return step
