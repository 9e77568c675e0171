"""kohya-ss/sd-scripts itself, from a checkout: its parsers, its optimizer and its scheduler factory, run for real.

Runs in an environment with sd-scripts' own requirements (its requirements.txt; torchvision, which only loads pictures, may be
missing). Nothing of its code is kept here: what comes out are facts, such as names, defaults, exceptions and log records.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import io
import json
import logging
import subprocess
import sys
import types
from pathlib import Path

SCRIPTS = (
    "train_network sdxl_train_network sdxl_train train_db fine_tune train_textual_inversion sdxl_train_textual_inversion "
    "train_control_net sdxl_train_control_net sdxl_train_control_net_lllite "
    "flux_train flux_train_network flux_train_control_net sd3_train sd3_train_network lumina_train lumina_train_network "
    "hunyuan_image_train_network anima_train anima_train_network"
).split()
NAMES = (
    "AdamW AdamW8bit PagedAdamW PagedAdamW8bit PagedAdamW32bit Lion Lion8bit PagedLion8bit SGDNesterov SGDNesterov8bit "
    "DAdaptation DAdaptAdamPreprint DAdaptAdaGrad DAdaptAdam DAdaptAdan DAdaptAdanIP DAdaptLion DAdaptSGD Prodigy Adafactor "
    "AdamWScheduleFree RAdamScheduleFree SGDScheduleFree"
).split()
"""Optimizers that its get_optimizer knows by name, in any capitals."""
REQUIRED = (
    "torch transformers diffusers accelerate bitsandbytes lion-pytorch schedulefree prodigyopt prodigy-plus-schedule-free dadaptation"
).split()
PROBES = {
    "negative": -0.5,
    "zero": 0,
    "fraction": 0.5,
    "one": 1,
    "many": 3,
    "nan": float("nan"),
    "inf": float("inf"),
    "true": True,
    "none": None,
    "text": "text",
    "pair": (0.9, 0.99),
    "pair beyond": (1.5, -0.5),
    "single": (0.9,),
    "triple": (0.9, 0.99, 0.999),
    "mapping": {},
}
"""A value of each kind that an optimizer's argument may be given."""


class Checkout:
    """The modules of one checkout."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "library" / "train_util.py").is_file():
            raise SystemExit(f"{folder} is no checkout of sd-scripts: git clone https://github.com/kohya-ss/sd-scripts")
        if missing := [name for name in REQUIRED if not _installed(name)]:
            raise SystemExit(f"run this in an environment with sd-scripts' requirements; missing: {', '.join(missing)}")
        self.folder = folder
        sys.path.insert(0, str(folder))
        importlib.import_module("bitsandbytes")  # before diffusers, which would import it half
        importlib.import_module("transformers").CLIPTextModel  # noqa: B018 - transformers looks for the real torchvision first
        if importlib.util.find_spec("torchvision") is None:
            for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
                _stand_in(name)
        self.train_util = importlib.import_module("library.train_util")
        root = logging.getLogger()
        root.setLevel(logging.WARNING)
        root.handlers.clear()

    def commit(self, given: str | None) -> str:
        """The commit of the checkout, or what the caller says where there is no .git."""
        if given:
            return given
        return subprocess.run(["git", "rev-parse", "HEAD"], cwd=self.folder, capture_output=True, text=True).stdout.strip() or "unknown"

    @functools.cache  # noqa: B019 - one checkout a process
    def parser(self, script: str) -> argparse.ArgumentParser:
        """The script's own parser."""
        return self.module(script).setup_parser()

    def module(self, script: str) -> types.ModuleType:
        """The script as a module."""
        return importlib.import_module(script.removesuffix(".py"))


def versions() -> dict[str, str]:
    """The libraries that the facts were taken with."""
    return {name: importlib.metadata.version(name) for name in REQUIRED}


def argument_facts(checkout: Checkout) -> dict:
    """Every argument of every script: type, default, choices, whether it takes a list, and which scripts have it."""
    rows: dict[str, list[dict]] = {}
    for number, script in enumerate(SCRIPTS):
        for action in checkout.parser(script)._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            row = argument(action)
            variants = rows.setdefault(row.pop("name"), [])
            same = next((variant for variant in variants if {k: v for k, v in variant.items() if k != "scripts"} == row), None)
            if same:
                same["scripts"].append(number)
            else:
                variants.append({**row, "scripts": [number]})
    return dict(sorted(rows.items()))


def argument(action: argparse.Action) -> dict:
    """One argument of a parser: its name and type, and where it has them its default, its choices, and whether it takes a list."""
    kind = "flag" if isinstance(action, argparse._StoreTrueAction) else getattr(action.type, "__name__", "str")
    row: dict[str, object] = {"name": action.dest, "type": "str" if kind == "Path" else kind}
    if kind != "flag" and action.default is not None:
        row["default"] = action.default
    if action.choices:
        row["choices"] = list(action.choices)
    if action.nargs == "*":
        row["many"] = True
    return row


def optimizer_facts(checkout: Checkout) -> dict:
    """Each optimizer that can be named: its class, its package, and the arguments that its constructor takes and refuses."""
    import torch

    facts = {}
    for name in NAMES:
        facts[name] = {"named": True, **_class_facts(_class_of(checkout, name))}
    for module, prefix in ((torch.optim, ""), (importlib.import_module("bitsandbytes.optim"), "bitsandbytes.optim.")):
        for name, kind in vars(module).items():
            if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)) or kind is torch.optim.Optimizer:
                continue
            if prefix + name not in facts and (not prefix or "AdEMAMix" in name):  # the others have names of their own
                facts[prefix + name] = _class_facts(kind)
    for path in ("prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree", "prodigyplus.ProdigyPlusScheduleFree"):
        module, _, name = path.rpartition(".")
        facts[path] = _class_facts(getattr(importlib.import_module(module), name))
    refusals: list[dict] = []
    for row in facts.values():  # many classes refuse the same: each pattern is kept once
        for table in (row["refused"], row["failing"]):
            for keyword, errors in list(table.items()):
                if errors not in refusals:
                    refusals.append(errors)
                table[keyword] = refusals.index(errors)
    others = [name for name, value in vars(torch.optim).items() if not name.startswith("_") and name not in facts]
    return {"classes": facts, "other_names": sorted(others), "refusals": refusals}


def scheduler_facts() -> dict:
    """The schedules by name, and torch's scheduler classes, each with the arguments it takes and those it must be given."""
    import torch
    from diffusers.optimization import TYPE_TO_SCHEDULER_FUNCTION as PIECEWISE
    from diffusers.optimization import SchedulerType
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    functions = {kind.value: function for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()}
    functions["piecewise_constant"] = PIECEWISE[SchedulerType.PIECEWISE_CONSTANT]
    classes = {
        name: kind
        for name, kind in vars(torch.optim.lr_scheduler).items()
        if inspect.isclass(kind)
        and issubclass(kind, torch.optim.lr_scheduler.LRScheduler)
        and kind is not torch.optim.lr_scheduler.LRScheduler
    }
    return {
        "names": {name: _signature(function) for name, function in functions.items()},
        "classes": {name: {**_signature(kind), **_multiplies(kind)} for name, kind in classes.items()},
        "other_names": sorted(name for name in vars(torch.optim.lr_scheduler) if not name.startswith("_") and name not in classes),
    }


@contextlib.contextmanager
def listening():
    """Collect the warnings that sd-scripts logs."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                heard.append(record.getMessage())

    listener, root = Listener(), logging.getLogger()
    root.addHandler(listener)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield heard
    finally:
        root.removeHandler(listener)


def _class_of(checkout: Checkout, name: str) -> type:
    import torch

    arguments = argparse.Namespace(
        optimizer_type=name, use_8bit_adam=False, use_lion_optimizer=False, fused_backward_pass=False, gradient_accumulation_steps=1,
        optimizer_args=None, learning_rate=1.0, max_grad_norm=0.0, lr_scheduler="constant",
    )  # fmt: skip
    with listening():
        return type(checkout.train_util.get_optimizer(arguments, [torch.nn.Parameter(torch.zeros(2, 2))])[2])


def _class_facts(kind: type) -> dict:
    import torch

    signature = inspect.signature(kind.__init__)
    keywords = [name for name in signature.parameters if name not in ("self", "params", "lr", "kwargs", "args_", "options")]
    refused, failing = {}, {}
    for keyword in ["lr", *keywords]:
        errors, later = {}, {}
        for probe, value in PROBES.items():
            given = {"lr": 1e-3, keyword: value}
            if "momentum" in keywords and (keyword == "nesterov" or kind.__name__.startswith("SGD")):
                given.setdefault("momentum", 0.9)
            if kind.__name__ == "Adafactor" and "relative_step" in keywords:
                given.setdefault("relative_step", False)
                if given["relative_step"]:
                    given["lr"] = None
            if "lr" not in signature.parameters:
                given.pop("lr")
            try:
                with listening():
                    optimizer = kind([torch.nn.Parameter(torch.zeros(2, 2))], **given)
            except (Exception, SystemExit) as error:  # lion_pytorch leaves the process where triton is missing
                errors[probe] = type(error).__name__
            else:
                if error := _step_error(optimizer):
                    later[probe] = error
        if errors:
            refused[keyword] = errors
        if later and len(later) < len(PROBES) - len(errors):  # else it is no matter of this argument
            failing[keyword] = later
    row = {"class": f"{kind.__module__}.{kind.__name__}", "package": kind.__module__.partition(".")[0], "keywords": keywords}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
        row["any"] = True
    return {**row, "refused": refused, "failing": failing}


def _step_error(optimizer) -> str | None:
    """The exception of the first two steps."""
    import torch

    try:
        with listening():
            if hasattr(optimizer, "train"):
                optimizer.train()
            for _ in range(2):
                for group in optimizer.param_groups:
                    for weight in group["params"]:
                        weight.grad = torch.ones_like(weight)
                optimizer.step()
    except (Exception, SystemExit) as error:
        return type(error).__name__
    return None


def _signature(function) -> dict:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    row = {
        "keywords": [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD],
        "required": [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind is not inspect.Parameter.VAR_KEYWORD],
    }
    return {**row, "any": True} if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters) else row


def _multiplies(kind: type) -> dict:
    """Whether a scheduler class cannot be made for an optimizer whose learning rate is None, as that of a relative step is."""
    import torch

    needed = {
        "step_size": 1,
        "gamma": 0.9,
        "T_max": 9,
        "T_0": 9,
        "milestones": [3],
        "base_lr": 0.1,
        "max_lr": 0.2,
        "total_steps": 9,
        "lr_lambda": abs,
    }
    wanted = {name: needed[name] for name in _signature(kind)["required"] if name in needed}
    wanted |= {"total_steps": 9} if kind.__name__ == "OneCycleLR" else {}
    group = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.1, momentum=0.9)
    group.param_groups[0]["lr"] = None
    try:
        kind(group, **wanted)
    except TypeError as error:
        return {} if "argument" in str(error) else {"multiplies": True}
    except Exception:
        return {}
    return {}


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _stand_in(name: str) -> None:
    class AnyAttribute(type):
        def __getattr__(cls, attribute: str):
            return Anything

    class Anything(metaclass=AnyAttribute):
        def __init__(self, *_, **__) -> None:
            pass

    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    module.__getattr__ = lambda attribute: Anything
    sys.modules[name] = module


def write_facts(checkout: Checkout, path: Path, commit: str) -> None:
    """All facts in one file, one row a line, so that a change of sd-scripts shows as changed lines."""
    facts = {
        "source": {"repository": "kohya-ss/sd-scripts", "commit": commit, "versions": versions()},
        "scripts": [f"{script}.py" for script in SCRIPTS],
        "arguments": argument_facts(checkout),
        "optimizers": optimizer_facts(checkout),
        "schedulers": scheduler_facts(),
    }
    parts = []
    for name, part in facts.items():
        if isinstance(part, dict) and name != "source":
            rows = [f"  {json.dumps(key)}: {_lines(value)}" for key, value in part.items()]
            parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n }")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(part)}")
    partial = path.with_name(path.name + ".partial")
    partial.write_text("{\n " + ",\n ".join(parts) + "\n}\n", encoding="utf-8")
    partial.replace(path)


def _lines(value) -> str:
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        return "{\n" + ",\n".join(f"   {json.dumps(key)}: {json.dumps(row)}" for key, row in value.items()) + "\n  }"
    return json.dumps(value)
