"""sdnb: fit Stable Diffusion training on the GPU you have, by measuring.

The public names are imported when they are first used, so that `import sdnb` costs nothing.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# where bitsandbytes is installed, diffusers imports it, and on a machine without a GPU that prints a warning about 4-bit layers
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_HOMES = {
    "Adafactor": "adafactor",
    "Recipe": "recipe",
    "StableDiffusion": "models",
    "load": "loading",
    "Pictures": "data",
    "pictures": "data",
    "check": "exercises",
    "diagnose": "doctor",
    "Diagnosis": "doctor",
    "Diverged": "training",
    "Live": "watching",
    "live": "watching",
    "replay": "recordings",
    "Step": "training",
    "MemoryPlan": "plans",
    "plan": "planner",
    "fit": "fitting",
    "train": "running",
    "training_step": "training",
}
_ROOMS = (
    "adafactor",
    "adapters",
    "allocator",
    "arguments",
    "buckets",
    "cache",
    "captions",
    "cards",
    "checkpointing",
    "claims",
    "commandlines",
    "conditions",
    "configs",
    "course",
    "data",
    "datasets",
    "devices",
    "disk",
    "doctor",
    "editions",
    "exercises",
    "factoring",
    "findings",
    "fitting",
    "frontends",
    "frontier",
    "fused",
    "gauges",
    "gui",
    "guifields",
    "headroom",
    "history",
    "hub",
    "inputs",
    "interrupts",
    "jobs",
    "keeping",
    "kernel",
    "keywords",
    "trained",
    "launching",
    "lessons",
    "links",
    "loading",
    "logs",
    "lora",
    "lorakeys",
    "loranotes",
    "losses",
    "measurements",
    "memory",
    "messages",
    "metaops",
    "models",
    "noises",
    "operators",
    "optim",
    "optimizer_steps",
    "outcome",
    "pacing",
    "packing",
    "pages",
    "panels",
    "picture",
    "planner",
    "plans",
    "plots",
    "pretend",
    "printing",
    "publishing",
    "reading",
    "recipe",
    "recompute",
    "recordings",
    "refusals",
    "requirements",
    "rules",
    "running",
    "saves",
    "schedules",
    "scratch",
    "settings",
    "shapes",
    "shell",
    "singlefile",
    "skeletons",
    "stored",
    "supported",
    "tape",
    "training",
    "watching",
    "weights",
    "wording",
)
__all__ = [
    "Adafactor",
    "Diagnosis",
    "Diverged",
    "Live",
    "MemoryPlan",
    "Pictures",
    "Recipe",
    "StableDiffusion",
    "Step",
    "__version__",
    "check",
    "diagnose",
    "fit",
    "live",
    "load",
    "pictures",
    "plan",
    "replay",
    "train",
    "training_step",
]

if TYPE_CHECKING:
    from .adafactor import Adafactor
    from .data import Pictures, pictures
    from .doctor import Diagnosis, diagnose
    from .exercises import check
    from .fitting import fit
    from .loading import load
    from .models import StableDiffusion
    from .planner import plan
    from .plans import MemoryPlan
    from .recipe import Recipe
    from .recordings import replay
    from .running import train
    from .training import Diverged, Step, training_step
    from .watching import Live, live


def __getattr__(name: str):
    try:
        if name in ("load", "plan", "fit", "train"):
            import_module(".requirements", __name__).check()
        if name in _HOMES:
            return getattr(import_module(f".{_HOMES[name]}", __name__), name)
        if name in _ROOMS:
            return import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("sdnb."):
            raise
        again = "pip install --force-reinstall --no-deps, and the address or the wheel that it came from"
        raise ImportError(f"this installation of sdnb is not whole, {error.name} is missing: {again}") from error
    import difflib

    close = difflib.get_close_matches(name, {*_HOMES, *_ROOMS}, n=1)
    raise AttributeError(f"module 'sdnb' has no attribute {name!r}" + (f": did you mean {close[0]!r}?" if close else ""))


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
