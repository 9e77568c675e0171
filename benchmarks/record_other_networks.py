"""Layers, forward passes and gradients of sd-scripts' DyLoRA, OFT, LoHa and LoKr, recorded by running them.

    python -m benchmarks.record_other_networks --sd-scripts FOLDER --commit HASH

Run it in an environment with sd-scripts' own requirements; the checkout is of a commit that has `networks/loha.py`. Full-size models are
on the meta device. The facts go to `tests/recorded/other_networks_of_sd_scripts.json`, where `tests/lora/test_networks.py` compares ours
with them. Nothing of its code is kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import random
import sys
from pathlib import Path
from unittest import mock

from .record_networks import digest, model
from .sd_scripts import _stand_in

FACTS = Path(__file__).resolve().parent.parent / "tests" / "recorded" / "other_networks_of_sd_scripts.json"
ARGS = {
    "networks.loha": ({}, {"conv_dim": "4", "conv_alpha": "2"}, {"conv_dim": "4", "use_tucker": "True"}),
    "networks.lokr": ({}, {"conv_dim": "4", "factor": "8"}, {"conv_dim": "4", "use_tucker": "true", "factor": "4"}),
    "networks.dylora": ({}, {"conv_dim": "8"}, {"unit": "4"}),
    "networks.oft": ({}, {"enable_all_linear": "True"}, {"enable_conv": "True"}, {"enable_all_linear": "False", "enable_conv": "x"}),
}
KINDS = ("linear", "tokens", "pixel", "conv")
PRODUCTS = (
    ("LoHa", 2, {}),
    ("LoHa", 2, {"use_tucker": True}),
    ("LoKr", 1, {}),
    ("LoKr", 1, {"use_tucker": True, "factor": 2}),
    ("LoKr", 4, {}),
)
"""Class, rank, and more of its settings."""
DRAWN = ((1, 0), (1, 3), (2, 1), (2, 2), (4, 3))
"""DyLoRA's unit, and the number that is drawn."""


def main() -> None:
    """Record, and say what was recorded."""
    parser = argparse.ArgumentParser(description="Record DyLoRA and OFT of sd-scripts.")
    parser.add_argument("--sd-scripts", type=Path, required=True, help="a checkout of sd-scripts")
    parser.add_argument("--commit", required=True, help="its commit")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.sd_scripts))
    importlib.import_module("transformers").CLIPTextModel  # noqa: B018 - transformers looks for the real torchvision first
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        _stand_in(name)
        sys.modules[name].__file__ = None  # torch looks for the source of each module
    made_by = "python -m benchmarks.record_other_networks"
    facts = {
        "source": {"repository": "kohya-ss/sd-scripts", "commit": arguments.commit, "made by": made_by},
        "layers": [
            layers(name, module, args)
            for name in ("sd15", "sdxl")
            for module, rows in ARGS.items()
            for args in rows
            if name == "sdxl" or module not in ("networks.loha", "networks.lokr")
        ],
        "dylora": [dylora(kind, unit, drawn) for kind in KINDS for unit, drawn in DRAWN],
        "products": [product(kind, *row) for kind in KINDS for row in PRODUCTS],
        "oft": [oft(kind, alpha) for kind in KINDS for alpha in (1e-3, 1.0)],
    }
    lines = [f"{json.dumps(key)}: [\n " + ",\n ".join(map(json.dumps, rows)) + "\n]" for key, rows in facts.items() if key != "source"]
    FACTS.write_text("{\n" + ",\n".join([f'"source": {json.dumps(facts["source"])}', *lines]) + "\n}\n", encoding="utf-8")
    print({key: len(rows) for key, rows in facts.items()})


def layers(name: str, module: str, args: dict[str, str]) -> dict:
    """How many tensors a file has, and a digest of their names and shapes; of SDXL without its text encoders' in DyLoRA."""
    import torch

    networks = importlib.reload(importlib.import_module(module))  # asking for convolutions lengthens a list of its class for good
    with torch.device("meta"):
        text, unet = model(name)
        network = networks.create_network(1.0, 8, 4.0, None, text, unet, **args)
        network.apply_to(text, unet, name == "sd15" or module in ("networks.loha", "networks.lokr"), True)
    lines = [f"{key} {tuple(value.shape)}" for key, value in network.state_dict().items()]
    return {"model": name, "module": module, "args": args, "tensors": len(lines), "digest": digest(lines)}


def dylora(kind: str, unit: int, drawn: int) -> dict:
    """What DyLoRA's forward pass of rank 4 gives, and which of its parameters have gradients."""
    networks = importlib.import_module("networks.dylora")
    layer, x = example(kind)
    module = networks.DyLoRAModule("name", layer, 1.0, 4, 2.0, unit)
    shapes = [list(parameter.shape) for parameter in (module.lora_A[0], module.lora_B[0])]
    for place, parameter in enumerate([*module.lora_A, *module.lora_B]):
        parameter.data = waves(parameter.shape, place)
    module.apply_to()
    with mock.patch.object(random, "randint", lambda low, high: drawn):
        result = module(x)
    result.square().sum().backward()
    gradients = {
        name: rounded(parameter.grad) for name, parameter in module.named_parameters() if "lora_" in name and parameter.grad is not None
    }
    saved = {key.removeprefix("name."): list(value.shape) for key, value in module.state_dict(prefix="name.").items()}
    return {"kind": kind, "unit": unit, "drawn": drawn, "shapes": shapes, "result": rounded(result), "gradients": gradients, "saved": saved}


def oft(kind: str, alpha: float) -> dict:
    """What OFT's forward pass with 2 blocks gives, and its gradient."""
    networks = importlib.import_module("networks.oft")
    layer, x = example(kind)
    module = networks.OFTModule("name", layer, 1.0, 2, alpha)
    module.oft_blocks.data = waves(module.oft_blocks.shape, 1)
    module.apply_to()
    result = module(x)
    result.square().sum().backward()
    return {"kind": kind, "alpha": alpha, "result": rounded(result), "gradient": rounded(module.oft_blocks.grad)}


def product(kind: str, name: str, rank: int, settings: dict) -> dict:
    """What LoHa or LoKr gives with a small layer, the shapes of its parameters and their gradients."""
    networks = importlib.import_module(f"networks.{name.lower()}")
    layer, x = example(kind)
    module = getattr(networks, f"{name}Module")("name", layer, 1.0, rank, 2.0, **settings)
    shapes = {key: list(parameter.shape) for key, parameter in module.named_parameters() if not key.startswith("org_module")}
    for place, key in enumerate(sorted(shapes)):
        module.get_parameter(key).data = waves(shapes[key], place)
    module.apply_to()
    result = module(x)
    result.square().sum().backward()
    gradients = {key: rounded(module.get_parameter(key).grad) for key in shapes}
    row = {"kind": kind, "class": name, "rank": rank, "settings": settings, "alpha": float(module.alpha)}
    return {**row, "shapes": shapes, "result": rounded(result), "gradients": gradients}


def example(kind: str):
    """A small layer and an input, with values that are the same everywhere."""
    import torch

    kernel = 3 if kind == "conv" else 1
    layer = torch.nn.Linear(3, 4) if kind in ("linear", "tokens") else torch.nn.Conv2d(3, 4, kernel, padding=kernel // 2)
    layer.requires_grad_(False)
    for start, parameter in enumerate(layer.parameters(), start=5):
        parameter.data = waves(parameter.shape, start)
    return layer, waves({"linear": (2, 3), "tokens": (2, 3, 3)}.get(kind, (2, 3, 2, 2)), 7)


def waves(shape, start: float):
    """Numbers between -1 and 1."""
    import torch

    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float32) + start).reshape(shape)


def rounded(tensor) -> list[float]:
    """The numbers of a tensor, short."""
    return [round(value, 5) for value in tensor.flatten().tolist()]


if __name__ == "__main__":
    main()
