"""A folder's face: the names that it shows to the rest of the package, each imported on first use."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec

MOVED = {
    "adapters": "lora.adapters",
    "allocator": "planner.allocator",
    "arguments": "sd_scripts.arguments",
    "buckets": "datasets.buckets",
    "cache": "datasets.cache",
    "captions": "datasets.captions",
    "cards": "system.cards",
    "claims": "saves.claims",
    "commandlines": "sd_scripts.commandlines",
    "conditions": "doctor.conditions",
    "configs": "sd_scripts.configs",
    "data": "datasets.folders",
    "disk": "system.files",
    "editions": "course.editions",
    "exercises": "course.exercises",
    "factoring": "adafactor",
    "findings": "sd_scripts.findings",
    "fitting": "planner.search",
    "frontends": "watch.frontends",
    "frontier": "checkpointing.survey",
    "gauges": "memory.gauges",
    "gui": "sd_scripts.gui",
    "guifields": "sd_scripts.gui_fields",
    "headroom": "planner.advice",
    "history": "watch.history",
    "hub": "models.hub",
    "interrupts": "system.notebook",
    "keeping": "saves.keeper",
    "kernel": "system.notebook",
    "keywords": "sd_scripts.keywords",
    "launching": "system.processes",
    "lessons": "course.lessons",
    "links": "course.links",
    "loading": "models.loading",
    "logs": "doctor.logs",
    "lorakeys": "lora.names",
    "loranotes": "lora.metadata",
    "messages": "doctor.messages",
    "metaops": "memory.metaops",
    "noises": "losses",
    "operators": "memory.operators",
    "optimizer_steps": "planner.optimizer_tape",
    "outcome": "sd_scripts.outcome",
    "pacing": "watch.watching",
    "packing": "saves.packing",
    "pages": "course.pages",
    "panels": "watch.panels",
    "picture": "datasets.folders",
    "plans": "planner.report",
    "pretend": "planner.meta_step",
    "printing": "sd_scripts.printing",
    "reading": "sd_scripts.reading",
    "recompute": "checkpointing.recompute",
    "recordings": "watch.recordings",
    "refusals": "sd_scripts.refusals",
    "rules": "doctor.rules",
    "running": "trainer",
    "scratch": "memory.scratch",
    "settings": "sd_scripts.settings",
    "shapes": "models.configurations",
    "shell": "sd_scripts.shell",
    "singlefile": "models.singlefile",
    "skeletons": "models.skeletons",
    "stored": "datasets.store",
    "supported": "sd_scripts.supported",
    "tape": "planner.tape",
    "trained": "prepare",
    "watching": "watch.watching",
    "weights": "models.weights",
    "wording": "system.words",
}
"""Modules of version 0.1.0, with the modules that hold their names now. Older copies of the notebooks import the old ones."""


def face(package: str, *, modules: str = "", was: str = "", **names: str) -> tuple[Callable, Callable, list[str]]:
    """Make `__getattr__`, `__dir__` and `__all__` for the `__init__` of a folder.

    - `modules`: modules that others may use whole
    - `was`: module that had the folder's name in 0.1.0, whose other names still work, with a warning
    - `names`: for every other module, the names that it shows
    """
    module_of = {name: module for module, listed in names.items() for name in listed.split()}
    public = sorted([*module_of, *modules.split()])

    def get(name: str):
        if name in module_of:
            return getattr(import_module(f".{module_of[name]}", package), name)
        if name in modules.split():
            return import_module(f".{name}", package)
        if (
            was
            and not name.startswith("__")
            and not _is_module(package, name)
            and hasattr(old_module := import_module(f".{was}", package), name)
        ):
            _warn(f"{package}.{name}", f"{package}.{was}.{name}", 3)
            return getattr(old_module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: public, public


def _is_module(package: str, name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(f"{package}.{name}") is not None


def _warn(old: str, new: str, level: int) -> None:
    warnings.warn(f"{old} is {new} now; the old name goes in the version after this one", FutureWarning, stacklevel=level + 1)


class Moved(Loader):
    """Importer for the modules of `MOVED` by their old names, with a warning that has the new one."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        """Spec of a moved module; None for any other."""
        package, _, old = name.partition(".")
        return ModuleSpec(name, self) if package == "sdnb" and old in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Let importlib make an empty module, which `exec_module` replaces."""

    def exec_module(self, module) -> None:
        """Replace the empty module by the one with the new name, and warn."""
        new = f"sdnb.{MOVED[module.__name__.partition('.')[2]]}"
        _warn(module.__name__, new, 6)
        sys.modules[module.__name__] = import_module(new)
