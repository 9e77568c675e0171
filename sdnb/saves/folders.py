"""`Save`: a training run on disk, complete or not there at all, from which it goes on bit for bit.

A save is a folder `step-00000100` with `weights.safetensors` (the trained parameters, in their own precision), `optimizer.safetensors`
(every tensor of the optimizer, the schedule, the gradient scaler and the random generators) and `state.json` (the rest of them, and which
run it belongs to). There are no pickles in it. It is written under another name, flushed to the disk, and renamed.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..system import PARTIAL, digest, files, sync
from . import packing

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

    from ..recipe import Recipe

FORMAT = 1
NAME = re.compile(r"step-(\d{8,})")
WEIGHTS, TENSORS, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
SAMPLES = "samples"
"""The folder beside the saves for pictures drawn during a run."""
FREE = ("max_train_steps", "max_train_epochs", "output_dir", "output_name", "logging_dir", "log_prefix", "resume", "config_file")
"""Settings that may differ between a run and its continuation, like those that begin with `save_` or `sample_`."""


class SaveFailed(OSError):
    """A save could not be written. Those before it are as they were."""


@dataclass(frozen=True)
class Save:
    """One complete save."""

    path: Path
    state: dict
    """Content of `state.json`."""

    @property
    def steps(self) -> int:
        """Optimizer steps that the run had done."""
        return self.state["steps"]

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters by name, such as `unet.conv_in.weight`, on the CPU."""
        return _load(self.path / WEIGHTS)

    def progress(self) -> dict:
        """The states of the optimizer and what goes with it, as `write` was given them; tensors on the CPU."""
        tensors = _load(self.path / TENSORS)
        if files.WINDOWS:  # an optimizer keeps what it is given, and a file that is mapped into memory cannot be deleted there
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        return packing.unpack(self.state["progress"], tensors)


# which run it belongs to


def owner(recipe: Recipe, parts: Mapping[str, Module], trained: Mapping[str, Parameter], pictures: Sequence, *, processes: int = 1) -> dict:
    """The identity of a run, which its continuation must share: settings, model, pictures and the number of processes.

    Of frozen weights the first and last numbers of each are compared, of trained ones only names and shapes; of a picture its name,
    caption, repeats, size in bytes and first 64 KiB.
    """
    given = dict(recipe.settings().given)
    settings = {name: value for name, value in sorted(given.items()) if name not in FREE and not name.startswith(("save_", "sample_"))}
    settings |= {"seed": recipe.seed}
    return {
        "settings": json.loads(json.dumps(settings)),
        "model": digest(_model_bytes(parts, trained)),
        "pictures": digest(_picture_bytes(pictures)),
        "processes": processes,
    }


def differences(saved: Mapping, now: Mapping) -> list[str]:
    """Differences between two owners, in words; a seed that was drawn agrees with None."""
    lines = []
    before, after = saved["settings"], now["settings"]
    for name in sorted({*before, *after}):
        if _plain(before.get(name)) != _plain(after.get(name)) and not (name == "seed" and after.get(name) is None):
            lines.append(f"{name} was {before.get(name)!r} and is {after.get(name)!r}")
    lines += ["the model is another"] if saved["model"] != now["model"] else []
    lines += ["the pictures or captions are others"] if saved["pictures"] != now["pictures"] else []
    if saved["processes"] != now["processes"]:
        lines.append(f"it ran in {saved['processes']} processes and now in {now['processes']}")
    return lines


def _plain(value: object) -> object:
    """A list of one value as that value: older saves have a single learning rate of the text encoder so."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _model_bytes(parts: Mapping[str, Module], trained: Mapping[str, Parameter]) -> Iterable[bytes]:
    import torch

    for part, module in parts.items():
        for name, parameter in module.named_parameters():
            yield f"{part}.{name} {tuple(parameter.shape)} {f'{part}.{name}' in trained}".encode()
            if f"{part}.{name}" not in trained and parameter.device.type != "meta" and parameter.numel():
                flat = parameter.detach().reshape(-1)
                ends = torch.cat([flat[:16], flat[-16:]]).float().cpu()
                yield ends.numpy().tobytes()


def _picture_bytes(pictures: Sequence) -> Iterable[bytes]:
    for picture in pictures:
        yield picture.caption.encode("utf-8", errors="surrogatepass")
        if (repeats := getattr(picture, "repeats", 1)) != 1:
            yield f"shown {repeats} times".encode()
        if getattr(picture, "is_reg", False):
            yield b"for regularization"
        path = getattr(picture, "path", None)
        if path is not None and Path(path).is_file():
            yield f"{Path(path).name} {Path(path).stat().st_size}".encode("utf-8", errors="surrogatepass")
            with open(path, "rb") as file:
                yield file.read(65_536)


# the folder


def prepare(folder: str | Path) -> Path:
    """The folder for a run's saves, made if it is not there.

    Raises `FileExistsError` if it holds anything but saves, `OSError` if nothing can be written there.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: give a folder for the saves")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable{PARTIAL}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, f"nothing can be written to {folder} ({error.strerror}): give another folder for save_to") from error
    strangers = [path.name for path in sorted(folder.iterdir()) if not _is_ours(path)]
    if strangers:
        names = ", ".join(strangers[:3]) + (", …" if len(strangers) > 3 else "")
        raise FileExistsError(f"{folder} holds other things ({names}): give save_to a new folder, or an empty one")
    return folder


def clear(folder: Path) -> None:
    """Delete the saves that were never finished; nobody else may be writing there."""
    for path in folder.iterdir():
        if path.name.endswith(PARTIAL):
            files.remove(path)


def _is_ours(path: Path) -> bool:
    stem = path.name.removesuffix(PARTIAL).removesuffix("-old")
    return path.name.startswith(".") or (path.is_dir() and (NAME.fullmatch(stem) is not None or path.name == SAMPLES))


def found(folder: str | Path) -> list[Path]:
    """The complete saves in a folder, the earliest first."""
    folder = Path(folder).expanduser()
    return sorted((path for path in (folder.iterdir() if folder.is_dir() else ()) if NAME.fullmatch(path.name)), key=_steps)


def _steps(path: Path) -> int:
    """The number of optimizer steps in a save's name."""
    return int(path.name.removeprefix("step-"))


def latest(folder: str | Path) -> Save | None:
    """The last complete save in a folder. Raises `ValueError` if its files are damaged."""
    paths = found(folder)
    return read(paths[-1]) if paths else None


def read(path: str | Path) -> Save:
    """One save. Raises `ValueError` if it is damaged or of a later format."""
    path = Path(path)
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        version, _ = state["format"], state["steps"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is a damaged save ({error!r}): delete it to go on from the one before") from error
    if version != FORMAT:
        raise ValueError(f"{path} is a save of format {version}, and this version of sdnb reads {FORMAT}: update sdnb, or start anew")
    return Save(path, state)


def write(folder: Path, *, steps: int, weights: Mapping[str, Tensor], progress: Mapping, owner: Mapping) -> Path:
    """Write one save and return its folder. `progress` is any tree that `packing.pack` knows.

    Raises `SaveFailed` when the disk is full or gone; what was half written is removed, and earlier saves are not touched.
    """
    from safetensors import SafetensorError

    tensors: dict[str, Tensor] = {}
    packed = packing.pack(progress, "progress", tensors)
    final = folder / f"step-{steps:08d}"
    partial = folder / (final.name + PARTIAL)
    state = {"format": FORMAT, "steps": steps, "owner": dict(owner), "progress": packed}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _store(partial / WEIGHTS, weights)
        _store(partial / TENSORS, tensors)
        (partial / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        for path in (partial / WEIGHTS, partial / TENSORS, partial / STATE, partial):
            sync(path)
        old = _aside(final) if final.exists() else None  # of an earlier attempt at the same step
        files.rename(partial, final)
        sync(folder)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        size = sum(tensor.numel() * tensor.element_size() for tensor in [*weights.values(), *tensors.values()])
        why = f"the disk is full; a save takes {size / 2**20:,.0f} MiB" if full else str(error)
        kept = found(folder) if folder.is_dir() else []
        last = f"the last save is {kept[-1].name}" if kept else "there is no save before it"
        raise SaveFailed(getattr(error, "errno", None) or errno.EIO, f"step {steps} was not saved in {folder}: {why}. {last}") from error
    return final


def prune(folder: Path, *, keep: int | None = None, keep_steps: int | None = None) -> None:
    """Delete all saves but the last `keep`, or, as sd-scripts does, those more than `keep_steps` steps before the last."""
    paths = found(folder)
    if keep_steps is not None and paths:
        least = _steps(paths[-1]) - keep_steps
        old = [path for path in paths[:-1] if _steps(path) < least]
    else:
        old = paths[: -max(1, keep or 1)]
    for path in old:
        remove(path)


def remove(path: Path) -> None:
    """Delete a save, of which no half counts as one if that is interrupted. One that cannot be deleted stays, with a warning."""
    try:
        gone = _aside(path)
    except OSError as error:
        warnings.warn(f"an old save was not deleted: {error.strerror}", RuntimeWarning, stacklevel=3)
    else:
        shutil.rmtree(gone, ignore_errors=True)


def _aside(path: Path) -> Path:
    """Rename a save, so that it no longer counts as one; returns its path."""
    gone = path.with_name(f"{path.name}-old{PARTIAL}")
    shutil.rmtree(gone, ignore_errors=True)
    return files.rename(path, gone)


def _store(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}, str(path))


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete its folder to go on from the save before") from error
