"""Encoded pictures and captions on disk: safetensors files named by what they were made from, so that none is used for anything else."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system import files, untrusted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

FOLDER = ".sdnb-cache"
"""Name of the cache's folder, inside that of the pictures."""


class Stored:
    """A folder of encoded pictures and captions. Where it cannot be written, it warns once and keeps nothing more."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.writable = True
        self.read = self.written = 0
        files.sweep(self.folder, r"[0-9a-f]{64}\.safetensors", seconds=3600)

    def get(self, key: str, names: Sequence[str]) -> dict[str, Tensor] | None:
        """The tensors kept under `key`, in their shapes; None where there are none, others than `names`, or a damaged file."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            # all bytes at once: a file that is mapped into memory cannot be replaced on every system
            tensors = load(untrusted.read_bytes(self.folder / f"{key}.safetensors", 1_000_000_000))
        except (OSError, SafetensorError, ValueError, KeyError):
            return None
        if set(tensors) != set(names) or not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            return None
        self.read += 1
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep `tensors`, of any shapes, in a file that is whole or not there at all. A full disk is a warning, not an error."""
        if not self.writable:
            return
        from safetensors.torch import save

        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        try:
            files.write(self.folder / f"{key}.safetensors", content)
        except OSError as error:
            self.writable = False
            warnings.warn(
                f"nothing can be kept in {self.folder} ({error.strerror or error}): what is encoded stays in memory", stacklevel=2
            )
        else:
            self.written += 1


def key(*parts: str | bytes) -> str:
    """The name, in hexadecimal digits, of what is made from `parts`."""
    return files.digest(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in parts)


def fingerprint(*models: Module) -> str:
    """Hexadecimal digits for these models' configurations, weights and precision."""
    import torch

    digest = hashlib.sha256()
    for model in models:
        config: Any = getattr(model, "config", {})  # a dict of diffusers', or an object of transformers'
        config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        kept = {name: value for name, value in config.items() if not name.startswith("_")}  # those name folders and versions
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
