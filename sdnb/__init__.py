"""sdnb: fit Stable Diffusion training on the GPU you have, by measuring.

The public names are imported when they are first used, so that `import sdnb` costs nothing.
"""

import logging
import sys
from importlib import import_module
from typing import TYPE_CHECKING

_AGAIN = "pip install --force-reinstall --no-deps, and the address or the wheel that it came from"
try:
    from .system.faces import MOVED, Moved
except ModuleNotFoundError as error:
    raise ImportError(f"this installation of sdnb is not whole, {error.name} is missing: {_AGAIN}") from error

__version__ = "0.2.0"

# where bitsandbytes is installed, diffusers imports it, and on a machine without a GPU that prints a warning about 4-bit layers
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_HOMES = {
    "Adafactor": "adafactor",
    "check": "course",
    "Pictures": "datasets",
    "pictures": "datasets",
    "diagnose": "doctor",
    "Diagnosis": "doctor",
    "load": "models",
    "StableDiffusion": "models",
    "explore": "planner",
    "fit": "planner",
    "guess": "course",
    "MemoryPlan": "planner",
    "plan": "planner",
    "timeline": "planner",
    "Recipe": "recipe",
    "train": "trainer",
    "Diverged": "training",
    "Step": "training",
    "training_step": "training",
    "Live": "watch",
    "live": "watch",
    "replay": "watch",
}
__all__ = sorted([*_HOMES, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]  # the names are those of the table

if TYPE_CHECKING:
    from .adafactor import Adafactor as Adafactor
    from .course.exercises import check as check
    from .course.guesses import guess as guess
    from .datasets.folders import Pictures as Pictures
    from .datasets.folders import pictures as pictures
    from .doctor.diagnosis import Diagnosis as Diagnosis
    from .doctor.diagnosis import diagnose as diagnose
    from .models.loading import load as load
    from .models.stable_diffusion import StableDiffusion as StableDiffusion
    from .planner.explorer import explore as explore
    from .planner.planning import plan as plan
    from .planner.report import MemoryPlan as MemoryPlan
    from .planner.search import fit as fit
    from .planner.timeline_page import timeline as timeline
    from .recipe import Recipe as Recipe
    from .trainer import train as train
    from .training import Diverged as Diverged
    from .training import Step as Step
    from .training import training_step as training_step
    from .watch.recordings import replay as replay
    from .watch.watching import Live as Live
    from .watch.watching import live as live

if not any(isinstance(finder, Moved) for finder in sys.meta_path):
    sys.meta_path.append(Moved())


def __getattr__(name: str):
    from importlib.util import find_spec

    try:
        if name in ("load", "plan", "fit", "explore", "timeline", "train"):
            import_module(".system.requirements", __name__).check()
        if name in _HOMES:
            return getattr(import_module(f".{_HOMES[name]}", __name__), name)
        if name in MOVED or (not name.startswith("_") and find_spec(f"{__name__}.{name}")):
            return import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("sdnb."):
            raise
        raise ImportError(f"this installation of sdnb is not whole, {error.name} is missing: {_AGAIN}") from error
    from .system import suggest

    raise AttributeError(f"module 'sdnb' has no attribute {name!r}{suggest(name, [*_HOMES, *_modules()])}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_modules()})


def _modules() -> list[str]:
    from pkgutil import iter_modules

    return [module.name for module in iter_modules(__path__) if not module.name.startswith("_")]
