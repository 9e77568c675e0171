"""Devices that a model may be on, and whether the installed torch has kernels for the GPU.

A build of torch has kernels for some generations of GPUs. Kernels for compute capability 8.0 run on 8.0, 8.6 and 8.9, but not on 7.5 or
9.0. A build may also have code that the driver translates for any later GPU (PTX). Without either, loading works and the first kernel
fails: "no kernel image is available".
"""

from __future__ import annotations

import os
import re
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..models import Model

Capability = tuple[int, int]

CUDA_13 = (7, 5)
"""Lowest compute capability of torch's builds for CUDA 13, and of its builds for CUDA 12.8 from release 2.11 on."""
CUDA_12 = (5, 0)
"""Lowest compute capability of torch's builds for CUDA 12.6. Source of both: RELEASE.md of pytorch/pytorch, releases 2.9 to 2.14."""
OLDER_BUILD = "a torch built for CUDA 12.6, as PyTorch has for every release up to 2.14"


def default() -> torch.device:
    """Choose the GPU if this torch has kernels for it, else the CPU.

    Each process of `accelerate launch` has a GPU of its own. Warns of a GPU without kernels; with several processes raises `ValueError`.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        check(device)
        return device
    if problem := no_kernels(torch.device("cuda")):
        warnings.warn(f"{problem}. Until then the model is loaded on the CPU, which is slow", RuntimeWarning, stacklevel=4)
        return torch.device("cpu")
    return torch.device("cuda")


def named(name: str | torch.device) -> torch.device:
    """Device with this name. Raises `ValueError` for an unknown name, and like `check`."""
    import torch

    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device={name!r} is no device: give "cuda", "cuda:1" for the second GPU, or "cpu"') from error
    check(device)
    return device


def check(device: torch.device) -> None:
    """Raise `ValueError`, with the way out, for a device that sdnb does not train on, or that this machine lacks."""
    import torch

    if device.type == "mps":
        raise ValueError(
            'device="mps": sdnb has not been tried on Apple\'s GPUs, and can neither measure their memory nor repeat a run there: '
            'give device="cpu", which load takes by itself on a Mac'
        )
    if device.type == "meta":
        raise ValueError('device="meta" has shapes and no weights: give device="cpu"; to predict memory, sdnb.plan needs no weights')
    if device.type not in ("cuda", "cpu"):
        raise ValueError(
            f'device="{device.type}": sdnb trains on "cuda" and "cpu", and has been tried on no other device: give one of them'
        )
    if device.type == "cpu":
        return
    if not torch.cuda.is_available():
        raise ValueError('device="cuda", but torch finds no GPU here: leave device out, or install a torch build with CUDA')
    if device.index is not None and device.index >= (count := torch.cuda.device_count()):
        raise ValueError(f'device="{device}", but the last GPU here is "cuda:{count - 1}": they are counted from 0')
    if problem := no_kernels(device):
        raise ValueError(f'{problem}; or give device="cpu"')


def check_model(sd: Model) -> None:
    """Check the device of each part of the model. Raises like `check`."""
    for device in {next(part.parameters()).device for part in sd.parts.values()}:
        check(device)


def computes_in(mixed_precision: str, device: torch.device) -> str:
    """The mixed precision that a device computes in: the one asked for, but `no` for `fp16` on a CPU, where accelerate has no fp16."""
    return "no" if mixed_precision == "fp16" and device.type == "cpu" else mixed_precision


def gpus(device: torch.device) -> list[int]:
    """Numbers of the GPUs whose random generators a run on this device uses; none on a CPU."""
    import torch

    return [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else []


def no_kernels(device: torch.device) -> str:
    """Problem and way out for a GPU without kernels in this torch; empty if there are kernels, or torch does not say."""
    import torch

    architectures = torch.cuda.get_arch_list()
    if torch.version.cuda is None or not architectures:  # ROCm has other names
        return ""
    capability = torch.cuda.get_device_capability(device)
    if any(_runs(name, capability) for name in architectures):
        return ""
    kernels = sorted({(int(match[1]), int(match[2])) for name in architectures if (match := ARCHITECTURE.fullmatch(name))})
    return (
        f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, and this torch "
        f"({torch.__version__}) was built for {', '.join(f'{major}.{minor}' for major, minor in kernels)}: "
        f"{_way_out(capability, kernels[-1])}"
    )


ARCHITECTURE = re.compile(r"(?:sm|compute)_(\d+)(\d)[af]?")


def _runs(architecture: str, capability: Capability) -> bool:
    """Whether kernels of an architecture, such as `sm_86` or `compute_90`, run on a GPU of this capability."""
    if (match := ARCHITECTURE.fullmatch(architecture)) is None:
        return True  # a name that only later versions of torch know
    built = int(match[1]), int(match[2])
    if architecture.endswith("a"):  # for this GPU and no later one
        return capability == built
    if architecture.startswith("compute") and not architecture.endswith("f"):  # PTX
        return capability >= built
    return capability[0] == built[0] and capability[1] >= built[1]


def _way_out(capability: Capability, newest: Capability) -> str:
    """Advice for a GPU without kernels; `newest` is the highest capability that the build has."""
    if capability > newest:
        return "install a newer torch"
    if CUDA_12 <= capability < CUDA_13:
        return f'install {OLDER_BUILD} (pytorch.org, "Get Started"); on Kaggle, choose the accelerator T4'
    return 'install a build of torch that has it (pytorch.org, "Get Started")'


def needed_build(capability: Capability) -> str:
    """Build of torch that a GPU of this capability needs, if pip's build has no kernels for it; else empty."""
    if capability >= CUDA_13:
        return ""
    return f"{OLDER_BUILD}: the newest builds have no kernels for it" if capability >= CUDA_12 else "a torch older than sdnb works with"
