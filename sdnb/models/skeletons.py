"""Models without weights: every shape, on the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from . import configurations as files
from . import hub, weights
from .configurations import architectures
from .family import named

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel

    from .stable_diffusion import StableDiffusion

__all__ = ["architectures", "configurations", "skeleton", "skeleton_unet"]


def configurations(name: str | Path) -> dict:
    """As `configurations.configurations`, and of a repository of the Hub, `owner/name`, if the local cache has its configurations.

    The network is not asked: of a repository that is not there raises `ValueError`, unless it holds one of the `architectures()`.
    """
    text, path = str(name), Path(name).expanduser()
    weights.refuse_pickle(path)
    is_file = path.exists() or path.suffix.lower() in (".safetensors", *weights.PICKLES)
    if is_file or not hub.HUB_ID.fullmatch(text):
        return files.configurations(name)
    folder = hub.cached(text)
    if folder is not None and any((folder / part).is_dir() for part in files.DENOISERS):
        return files.configurations(folder)
    known = next((known for known, places in hub.repositories().items() if text in [repository for repository, _ in places]), None)
    if known is not None:
        return files.configurations(known)
    raise ValueError(
        f"{text!r} is neither a folder here nor in the local cache of the Hub, and no network is asked for shapes: fetch it once with "
        f"sdnb.load({text!r}), or give a model of the same kind: {', '.join(architectures())}"
    )


def skeleton(name: str | Path, *, dtype: torch.dtype | None = None) -> StableDiffusion:
    """A whole model on the meta device, of any that `configurations` takes.

    Only configurations and headers are read. `dtype` is that of the denoiser, fp32 unless given; the frozen parts are in fp32. There
    are no tokenizers. Raises like `configurations`, and `ValueError` for a configuration that no part can be made of.
    """
    facts = configurations(name)
    family = named(facts["family"])
    parts = {part: files.build(facts, part, str(name)).to("meta") for part in family.parts}
    _cast(parts[family.denoiser].train(), dtype)
    for part, module in parts.items():
        if part != family.denoiser:
            module.requires_grad_(False).eval()
    nothing = dict.fromkeys(family.tokenizers)
    model = family.model(**parts, **nothing, noise_scheduler=files.scheduler(facts, str(name)), family=family.name)
    return cast("StableDiffusion", model)


def skeleton_unet(name: str | Path, *, dtype: torch.dtype | None = None) -> UNet2DConditionModel:
    """The U-Net, or whatever denoiser it has, of any model that `skeleton` takes, alone: on the meta device, in training mode; fp32 by
    default.
    """
    facts = configurations(name)
    denoiser = files.build(facts, named(facts["family"]).denoiser, str(name))
    return cast("UNet2DConditionModel", _cast(denoiser.train(), dtype))


def _cast(denoiser, dtype):
    import torch

    for parameter in denoiser.parameters():
        parameter.data = parameter.data.to(dtype or torch.float32)
    return denoiser
