"""Layers, ranks, learning rates and forward passes of the networks of kohya-ss/sd-scripts, recorded by running them.

    python -m benchmarks.record_networks --sd-scripts FOLDER --commit HASH

Run it in an environment with sd-scripts' own requirements. Full-size models are on the meta device. The facts go to
`tests/recorded/networks_of_sd_scripts.json`, where `tests/lora/test_arguments.py` compares ours with them. Nothing of its code is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import sys
from pathlib import Path

from .sd_scripts import _stand_in

FACTS = Path(__file__).resolve().parent.parent / "tests" / "recorded" / "networks_of_sd_scripts.json"
NUMBERS = {"sd15": ",".join(str(1 + n % 4) for n in range(25)), "sdxl": ",".join(str(1 + n % 4) for n in range(23))}
HALVES = {"sd15": ",".join(str(n / 2) for n in range(25)), "sdxl": ",".join(str(n / 2) for n in range(23))}
RATES = (
    {"down_lr_weight": "cosine", "mid_lr_weight": "0.5", "up_lr_weight": "sine+.25"},
    {"down_lr_weight": "linear+0.1", "up_lr_weight": "reverse_linear", "block_lr_zero_threshold": "0.3"},
    {"down_lr_weight": "zeros+0.4", "up_lr_weight": "zeros"},
    {"down_lr_weight": "0.1,,0.3", "up_lr_weight": "1,2,3,4,5,6,7,8,9,10,11,12,13,14"},
    {"mid_lr_weight": "0"},
    {"mid_lr_weight": "0.2,0.4,0.6", "block_lr_zero_threshold": "0.2"},
    {"block_lr_zero_threshold": "0.2"},
)
SIZES = (
    {},
    {"conv_dim": "4"},
    {"conv_dim": "0"},
    {"conv_dim": "4", "conv_alpha": "0"},
    {"block_dims": "numbers"},
    {"block_dims": "numbers", "block_alphas": "halves"},
    {"block_dims": "numbers", "conv_dim": "3", "conv_alpha": "2"},
    {"block_dims": "numbers", "conv_block_dims": "numbers", "conv_block_alphas": "halves"},
    {"conv_block_dims": "numbers", "up_lr_weight": "linear"},
    {"conv_block_dims": "numbers", "block_alphas": "halves"},
    {"down_lr_weight": "sine", "mid_lr_weight": "0", "conv_dim": "2"},
)
"""`network_args`; of a list, `numbers` and `halves` stand for those above."""
GROUPS = (
    ({}, None, None),
    ({"loraplus_lr_ratio": "4"}, None, None),
    ({"loraplus_unet_lr_ratio": "16"}, 5e-5, 2e-4),
    ({"loraplus_text_encoder_lr_ratio": "2.5", "loraplus_lr_ratio": "3"}, 5e-5, None),
    ({"down_lr_weight": "linear+.1", "loraplus_unet_lr_ratio": "3"}, None, 3e-4),
    ({"mid_lr_weight": "0", "conv_dim": "2", "up_lr_weight": "cosine"}, 1e-5, None),
)
"""`network_args`, `text_encoder_lr`, `unet_lr`, beside a learning_rate of 1e-4."""

LYCORIS = (
    {"algo": "lora"},
    {"algo": "locon", "conv_dim": "4", "conv_alpha": "1", "preset": "full"},
    {"algo": "loha", "conv_dim": "4", "use_tucker": "True"},
    {"algo": "lokr", "factor": "8", "preset": "attn-mlp"},
    {"algo": "lokr", "preset": "full-lin", "decompose_both": "True"},
    {"algo": "locon", "preset": "attn-only", "train_norm": "True"},
    {"algo": "locon", "preset": "unet-transformer-only", "train_norm": "True"},
    {"algo": "ia3", "preset": "ia3"},
    {"algo": "diag-oft", "preset": "unet-convblock-only"},
)
"""`network_args` for lycoris.kohya."""
DROPOUTS = ({"dropout": 0.3}, {"rank_dropout": 0.4}, {"module_dropout": 0.5}, {"dropout": 0.3, "rank_dropout": 0.4, "module_dropout": 0.3})


def main() -> None:
    """Record, and say what was recorded."""
    parser = argparse.ArgumentParser(description="Record the networks of sd-scripts.")
    parser.add_argument("--sd-scripts", type=Path, required=True, help="a checkout of sd-scripts")
    parser.add_argument("--commit", required=True, help="its commit")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.sd_scripts))
    importlib.import_module("transformers").CLIPTextModel  # noqa: B018 - transformers looks for the real torchvision first
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        _stand_in(name)
        sys.modules[name].__file__ = None  # torch looks for the source of each module
    facts = {
        "source": {"repository": "kohya-ss/sd-scripts", "commit": arguments.commit, "made by": "python -m benchmarks.record_networks"},
        "rates": [row for name in NUMBERS for row in rates(name)],
        "sizes": [row for name in NUMBERS for row in sizes(name)],
        "groups": [row for name in NUMBERS for row in groups(name)],
        "forward": [forward(kind, dropouts) for kind in ("linear", "tokens", "conv") for dropouts in DROPOUTS],
        "lycoris": [row for name in NUMBERS for row in of_lycoris(name)],
        "merged": [merged(kind, dtype) for kind in ("linear", "pixel", "conv") for dtype in ("float32", "bfloat16")],
    }
    lines = [f"{json.dumps(key)}: [\n " + ",\n ".join(map(json.dumps, rows)) + "\n]" for key, rows in facts.items() if key != "source"]
    FACTS.write_text("{\n" + ",\n".join([f'"source": {json.dumps(facts["source"])}', *lines]) + "\n}\n", encoding="utf-8")
    print({key: len(rows) for key, rows in facts.items()})


def rates(name: str) -> list[dict]:
    """Factors on the learning rates of a model's blocks."""
    lora = importlib.import_module("networks.lora")
    return [{"model": name, "args": args, "factors": lora.parse_block_lr_kwargs(name == "sdxl", dict(args))} for args in RATES]


def sizes(name: str) -> list[dict]:
    """How many layers have each rank and alpha, and a digest of all names with theirs."""
    rows = []
    for args in SIZES:
        given = {key: {"numbers": NUMBERS, "halves": HALVES}[value][name] if value in ("numbers", "halves") else value
                 for key, value in args.items()}  # fmt: skip
        network, _, _ = created(name, given)
        modules = network.text_encoder_loras + network.unet_loras
        lines = [f"{module.lora_name} {module.lora_dim} {module.scale * module.lora_dim:g}" for module in modules]
        rows.append({"model": name, "args": given, "layers": len(lines), "digest": digest(lines)})
    return rows


def groups(name: str) -> list[dict]:
    """Each learning rate that its optimizer is given, with the number of matrices that have it and a digest of their names."""
    rows = []
    for args, text_rate, unet_rate in GROUPS:
        network, text_encoders, unet = created(name, args)
        network.apply_to(text_encoders, unet)
        names = {id(parameter): key for key, parameter in network.named_parameters()}
        found, _ = network.prepare_optimizer_params(text_rate, unet_rate, 1e-4)
        told: dict[float, list[str]] = {}
        for group in found:
            told.setdefault(group["lr"], []).extend(names[id(parameter)] for parameter in group["params"])
        rows.append(
            {"model": name, "args": args, "text_encoder_lr": text_rate, "unet_lr": unet_rate,
             "rates": [[rate, len(keys), digest(keys)] for rate, keys in sorted(told.items())]}
        )  # fmt: skip
    return rows


def created(name: str, args: dict[str, str]):
    """A network of rank 8 and alpha 4 for a full-size model on the meta device, and that model."""
    import torch

    lora = importlib.reload(importlib.import_module("networks.lora"))  # asking for convolutions lengthens a list of its class for good
    with torch.device("meta"):
        text, unet = model(name)
        return lora.create_network(1.0, 8, 4.0, None, text, unet, **args), text, unet


def of_lycoris(name: str) -> list[dict]:
    """How many tensors a file of LyCORIS has, and a digest of their names and shapes."""
    kohya, rows = importlib.import_module("lycoris.kohya"), []
    network = kohya.LycorisNetworkKohya
    before = {key: value for key, value in vars(network).items() if key.isupper()}
    for args in LYCORIS:
        import torch

        with torch.device("meta"):
            text, unet = model(name)
        made = kohya.create_network(1.0, 8, 4.0, None, text, unet, dropout=None, **args)
        made.apply_to(text, unet, True, True)
        lines = [f"{key} {tuple(value.shape)}" for key, value in made.state_dict().items()]
        rows.append({"model": name, "args": args, "tensors": len(lines), "digest": digest(lines)})
        for key, value in before.items():  # a preset would stay for good
            setattr(network, key, value)
    return rows


def forward(kind: str, dropouts: dict[str, float]) -> dict:
    """What an adapter adds to its layer's result in three passes of its training, for weights and inputs made from a seed."""
    import torch

    lora = importlib.import_module("networks.lora")
    layer, x = example(kind)
    module = lora.LoRAModule("name", layer, 1.0, 4, 2.0, **dropouts)
    with torch.no_grad():
        for matrix in (module.lora_down.weight, module.lora_up.weight):
            matrix.copy_(torch.sin(torch.arange(matrix.numel(), dtype=torch.float32)).reshape(matrix.shape))
    module.apply_to()
    torch.manual_seed(7)
    added = [(module.train()(x) - module.org_forward(x)).flatten() for _ in range(3)]
    return {"kind": kind, "dropouts": dropouts, "added": [[round(value, 5) for value in row.tolist()] for row in added]}


def merged(kind: str, dtype: str) -> dict:
    """A layer's weight after an adapter was merged into it."""
    import torch

    lora = importlib.import_module("networks.lora")
    layer, down, up, alpha, multiplier = merged_example(kind, dtype)
    module = lora.LoRAInfModule("name", layer, multiplier, len(down), alpha)
    module.merge_to({"lora_down.weight": down, "lora_up.weight": up}, getattr(torch, dtype), "cpu")
    return {"kind": kind, "dtype": dtype, "weight": [round(value, 7) for value in layer.weight.float().flatten().tolist()]}


def merged_example(kind: str, dtype: str):
    """A small layer in `dtype`, the two matrices of an adapter of rank 2, its alpha, and how strong it is merged."""
    import torch

    layer = torch.nn.Linear(4, 3) if kind == "linear" else torch.nn.Conv2d(4, 3, 3 if kind == "conv" else 1)
    layer.weight.data = torch.cos(torch.arange(layer.weight.numel(), dtype=torch.float32)).reshape(layer.weight.shape)
    inner = layer.weight.shape[1:]
    down = torch.sin(torch.arange(2 * math.prod(inner), dtype=torch.float32)).reshape(2, *inner)
    up = torch.sin(torch.arange(6, dtype=torch.float32) + 3).reshape(3, 2, *(1 for _ in inner[1:]))
    return layer.to(getattr(torch, dtype)), down, up, 1.5, 0.7


def example(kind: str):
    """A small layer, with weights and an input that are the same everywhere."""
    import torch

    layer = torch.nn.Conv2d(2, 3, 3, padding=1) if kind == "conv" else torch.nn.Linear(4, 3)
    shape = {"linear": (2, 4), "tokens": (2, 3, 4), "conv": (2, 2, 2, 2)}[kind]
    return layer, torch.cos(torch.arange(math.prod(shape), dtype=torch.float32)).reshape(shape)


def model(name: str):
    """Text encoders, a list for SDXL, and U-Net of sd-scripts' own class, with random weights on the device of the context."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    width = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    wide = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    text = CLIPTextModel(CLIPTextConfig(**width))
    if name == "sdxl":
        unet = importlib.import_module("library.sdxl_original_unet").SdxlUNet2DConditionModel()
        return [text, CLIPTextModelWithProjection(CLIPTextConfig(**wide))], unet
    return text, importlib.import_module("library.original_unet").UNet2DConditionModel(64, 8, 768, False)


def digest(lines: list[str]) -> str:
    """The beginning of the SHA-256 of these lines in alphabetical order."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
