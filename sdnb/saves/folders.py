"""`Save`: a training run on disk, complete or not there at all, from which it goes on bit for bit.

A save is a folder `step-00000100` with `weights.safetensors` (the trained parameters, in their own precision), `optimizer.safetensors`
(every tensor of the optimizer, the schedule, the gradient scaler and the random generators) and `state.json` (the rest of them, which
run it belongs to, and the checksums of all three files). There are no pickles in it. It is written under another name, flushed to the
disk, and renamed.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..models import weights
from ..system import PARTIAL, files, sync, untrusted
from . import packing

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
NAME = re.compile(r"step-(\d{8,})")
WEIGHTS, TENSORS, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
LEFT = re.compile(rf"{NAME.pattern}(-old)?{re.escape(PARTIAL)}")
"""Names of saves that are being written or deleted."""
UNCHECKED = {"format", "steps", "owner", "progress"}
"""All that `state.json` held before there were checksums."""
SEAL = re.compile(rb'(.*), "checksum": "([0-9a-f]{8})"}', re.DOTALL)
"""The end of `state.json` now, and what comes before it, of which that is the checksum."""
DAMAGE = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, StopIteration)
"""Errors that reading a damaged save may raise."""
SAMPLES = "samples"
"""The folder beside the saves for pictures drawn during a run."""


class SaveFailed(OSError):
    """A save could not be written. Those before it are as they were."""


@dataclass(frozen=True)
class Save:
    """One complete save."""

    path: Path
    state: dict
    """Content of `state.json`."""
    _checked: set[str] = field(default_factory=set, compare=False, repr=False)
    """The files whose checksums have been compared."""

    @property
    def has_checksums(self) -> bool:
        """Whether damage can be told for certain; saves of earlier versions have no checksums."""
        return "checksums" in self.state

    @property
    def steps(self) -> int:
        """Optimizer steps that the run had done."""
        return self.state["steps"]

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters by name, such as `unet.conv_in.weight`, on the CPU. Raises `ValueError` if their file is damaged."""
        return self._load(WEIGHTS)

    def progress(self) -> dict:
        """The states of the optimizer and what goes with it, as `write` was given them; tensors on the CPU.

        Raises `ValueError` if they are damaged.
        """
        tensors = self._load(TENSORS)
        if files.WINDOWS:  # an optimizer keeps what it is given, and a file that is mapped into memory cannot be deleted there
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            return packing.unpack(self.state["progress"], tensors)
        except DAMAGE as error:
            raise self.damaged(f"{STATE}, {error!r}") from error

    def check(self, trained: Mapping[str, Tensor]) -> None:
        """Raise `ValueError` if anything in it is damaged, or if its weights have other names, shapes or precisions than `trained`."""
        weights = self.weights()
        if weights.keys() != trained.keys():
            raise ValueError(f"{self.path} holds other weights than this run trains: start anew with resume=False")
        for name, tensor in weights.items():
            saved, now = (f"{tuple(each.shape)} in {str(each.dtype).removeprefix('torch.')}" for each in (tensor, trained[name]))
            if saved != now and self.has_checksums:
                raise ValueError(
                    f"{self.path} holds {name} as {saved}, and this run trains it as {now}: load the model as it was, or start anew with "
                    "resume=False"
                )
            if saved != now:
                raise self.damaged(f"{name} is {saved}, and this run trains it as {now}")
            if not self.has_checksums and not tensor.isfinite().all():
                raise self.damaged(f"{name} holds NaN or infinity")
        progress = self.progress()
        try:
            parts = progress["optimizer"]["state"], progress["optimizer"]["param_groups"], progress["schedule"], progress["random"][0]
        except DAMAGE as error:
            raise self.damaged(f"{STATE}, {error!r}") from error
        if [type(part) for part in parts] != [dict, list, dict, dict] or "scaler" not in progress:
            raise self.damaged(f"{STATE} holds no whole progress")

    def put(self, trained: Mapping[str, Tensor]) -> None:
        """Copy its weights to `trained`, of which there may be more. `check` first."""
        import torch

        with torch.no_grad():
            for name, tensor in self.weights().items():
                trained[name].copy_(tensor)

    def damaged(self, why: str) -> ValueError:
        """The error for a save that cannot be gone on from, with the way out."""
        return _damaged(self.path, why)

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            if self.has_checksums and name not in self._checked:
                if files.checksum(self.path / name) != self.state["checksums"][name]:
                    raise ValueError("it is not as it was written")
                self._checked.add(name)
            return _load(self.path / name)
        except DAMAGE as error:
            raise self.damaged(f"{name}: {error}") from error


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
        probe = files.unfinished(folder / "writable")
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
    """Delete what a run that was killed left unfinished, and nothing else; nobody else may be writing there."""
    for path in folder.iterdir():
        if LEFT.fullmatch(path.name) and path.is_dir() and all(_is_part(each.name) for each in path.iterdir()):
            files.remove(path)
    files.sweep(folder, "writable")
    files.sweep(folder / SAMPLES, rf"{NAME.pattern}-\d+\.png")


def _is_part(name: str) -> bool:
    """Whether a file of this name is in a save, maybe until it is complete: safetensors begins them as `.tmp…`."""
    return name in (WEIGHTS, TENSORS, STATE) or name.startswith(".tmp")


def _is_ours(path: Path) -> bool:
    """Whether something may lie beside saves: what is hidden, such as a lock, and what this package leaves there."""
    name = path.name
    return name.startswith(".") or (path.is_dir() and bool(NAME.fullmatch(name) or LEFT.fullmatch(name) or name == SAMPLES))


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
        raw = untrusted.read_bytes(path / STATE, 100_000_000)
        state = json.loads(raw)
        version = state["format"]
    except DAMAGE as error:
        raise _damaged(path, f"{STATE}, {error!r}") from error
    seal = SEAL.fullmatch(raw)
    whole = files.checksum(seal[1]) == seal[2].decode() if seal else state.keys() == UNCHECKED
    if type(version) is int and version > FORMAT:
        doubt = "" if whole else f". If no later version wrote it, it is damaged: {_way_out(path)}"
        raise ValueError(
            f"{path} is a save of format {version}, and this version of sdnb reads {FORMAT}: update sdnb, or start anew{doubt}"
        )
    if not whole:
        raise _damaged(path, f"{STATE} is not as it was written")
    steps, is_named = state["steps"], NAME.fullmatch(path.name)
    if version != FORMAT or type(steps) is not int or steps < 1 or (is_named and steps != _steps(path)):
        raise _damaged(path, f"{STATE} is of format {version!r} and step {steps!r}")
    if not isinstance(state["owner"], dict) or not isinstance(state["progress"], dict):
        raise _damaged(path, f"{STATE} holds no run")
    return Save(path, state)


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is a damaged save ({why}): {_way_out(path)}")


def _way_out(path: Path) -> str:
    before = [each for each in found(path.parent) if NAME.fullmatch(path.name) and _steps(each) < _steps(path)]
    return "delete that folder to " + (
        f"go on from the one before, {before[-1].name}" if before else "start anew, as there is none before it"
    )


def write(folder: Path, *, steps: int, weights: Mapping[str, Tensor], progress: Mapping, owner: Mapping) -> Path:
    """Write one save and return its folder. `progress` is any tree that `packing.pack` knows.

    Raises `SaveFailed` when the disk is full or gone; what was half written is removed, and earlier saves are not touched.
    """
    tensors: dict[str, Tensor] = {}
    packed = packing.pack(progress, "progress", tensors)
    final = folder / f"step-{steps:08d}"
    partial = folder / (final.name + PARTIAL)
    state = {"format": FORMAT, "steps": steps, "owner": dict(owner), "progress": packed}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        with files.system_errors(), ThreadPoolExecutor(1) as beside:  # checksums take next to no time of their own
            sums = {}
            for name, content in {WEIGHTS: weights, TENSORS: tensors}.items():
                _store(partial / name, content)
                sums[name] = beside.submit(files.checksum, partial / name)
            for name in sums:
                files.permit(partial / name)
                sync(partial / name)
            state["checksums"] = {name: future.result() for name, future in sums.items()}
        (partial / STATE).write_bytes(_sealed(state))
        for path in (partial / STATE, partial):
            sync(path)
        old = _aside(final) if final.exists() else None  # of an earlier attempt at the same step
        files.rename(partial, final)
        sync(folder)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        size = sum(tensor.numel() * tensor.element_size() for tensor in [*weights.values(), *tensors.values()])
        why = f"the disk is full; a save takes {size / 2**20:,.0f} MiB" if error.errno == errno.ENOSPC else str(error)
        kept = found(folder) if folder.is_dir() else []
        last = f"the last save is {kept[-1].name}" if kept else "there is no save before it"
        raise SaveFailed(error.errno or errno.EIO, f"step {steps} was not saved in {folder}: {why}. {last}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def prune(folder: Path, *, keep: int = 1, keeps: Callable[[int], bool] | None = None) -> None:
    """Delete all saves but the last `keep`, or those that `keeps` says of their step. The very last always stays."""
    paths = found(folder)
    for path in paths[: -max(1, keep)] if keeps is None else [path for path in paths[:-1] if not keeps(_steps(path))]:
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

    save_file(weights.on_cpu(tensors, copy=True), str(path))


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _sealed(state: dict) -> bytes:
    """`state` as JSON, with the checksum of all that comes before it at its end."""
    content = json.dumps(state, allow_nan=False)[:-1].encode()
    return content + f', "checksum": "{files.checksum(content)}"}}'.encode()
