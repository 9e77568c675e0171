"""The names and shapes of a LoRA as kohya-ss/sd-scripts makes it, recorded by running its own `networks/lora.py`.

    python -m benchmarks.record_lora_keys --sd-scripts FOLDER --commit HASH

Every model is on the meta device: the U-Nets are sd-scripts' own classes in full size, the text encoders are transformers'. torch,
diffusers and transformers are enough; what sd-scripts imports beside them (torchvision, cv2, einops) only has to be importable.
The facts go to `tests/recorded/lora_of_sd_scripts.json`, where tests compare our files with them. Nothing of its code is kept.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import io
import json
import sys
from pathlib import Path

from sdnb.models import skeletons

from .sd_scripts import _stand_in

FACTS = Path(__file__).resolve().parent.parent / "tests" / "recorded" / "lora_of_sd_scripts.json"
RANK, ALPHA, CONV_RANK, CONV_ALPHA = 8, 4.0, 2, 1.0
HASHED = "ss_network_dim"


def main() -> None:
    """Record, and say what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sd-scripts", type=Path, required=True, help="a checkout of sd-scripts")
    parser.add_argument("--commit", required=True, help="its commit")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.sd_scripts))
    skeletons.skeleton("sd15")  # diffusers and transformers look for the real torchvision first
    for name in ("torchvision", "cv2", "einops"):
        _stand_in(name)
        sys.modules[name].__file__ = None  # torch looks for the source of each module
    facts = {
        "source": {
            "repository": "kohya-ss/sd-scripts", "commit": arguments.commit, "made by": "python -m benchmarks.record_lora_keys",
            "rank": RANK, "alpha": ALPHA, "conv_dim": CONV_RANK, "conv_alpha": CONV_ALPHA,
            "rows": "module: [shape of lora_down, shape of lora_up], each of `modules` by default, those of `conv` with conv_dim too",
        },
        "models": {name: modules(name) for name in ("sd15", "sd21", "sdxl")},
        "modelspec": {name: modelspec(name) for name in ("sd15", "sd21", "sdxl")},
        "hashes": hashes(arguments.sd_scripts),
    }  # fmt: skip
    write(facts, FACTS)
    for name, rows in facts["models"].items():
        print(f"{name}: {len(rows['modules'])} modules, {len(rows['conv'])} more with conv_dim")


def modules(name: str) -> dict:
    """Every adapter that sd-scripts makes for one model, with and without 3×3 convolutions."""
    import torch

    lora = importlib.import_module("networks.lora")
    sd = skeletons.skeleton(name)
    with torch.device("meta"):
        if name == "sdxl":
            unet = importlib.import_module("library.sdxl_original_unet").SdxlUNet2DConditionModel()
        else:
            config = skeletons.configurations(name)["unet"]
            names = ("sample_size", "attention_head_dim", "cross_attention_dim", "use_linear_projection")
            unet = importlib.import_module("library.original_unet").UNet2DConditionModel(
                **{key: config[key] for key in names if key in config}
            )
        text_encoders = [nested(part) for part in (sd.text_encoder, sd.text_encoder_2) if part is not None]
        text_encoder = text_encoders if name == "sdxl" else text_encoders[0]
        found = []
        for conv in ({}, {"conv_dim": str(CONV_RANK), "conv_alpha": str(CONV_ALPHA)}):
            importlib.reload(lora)  # asking for convolutions lengthens a list of its class for good
            network = lora.create_network(1.0, RANK, ALPHA, None, text_encoder, unet, **conv)
            network.apply_to(text_encoder, unet)
            found.append({key: list(value.shape) for key, value in network.state_dict().items()})
    kinds = {key.partition(".")[2] for key in found[1]}
    assert kinds == {"alpha", "lora_down.weight", "lora_up.weight"}, kinds
    names = [[key.partition(".")[0] for key in keys if key.endswith(".alpha")] for keys in found]
    rows = [
        {module: [keys[f"{module}.lora_down.weight"], keys[f"{module}.lora_up.weight"]] for module in part}
        for keys, part in zip(found, names, strict=True)
    ]
    assert all(rows[1][key] == row for key, row in rows[0].items())
    return {"modules": rows[0], "conv": {key: row for key, row in rows[1].items() if key not in rows[0]}}


def nested(text_encoder):
    """The text encoder with the `text_model.` that transformers had in its names before version 5.6."""
    import torch

    if hasattr(text_encoder, "text_model"):
        return text_encoder
    outer = torch.nn.Module()
    outer.text_model = text_encoder
    return outer


def modelspec(name: str) -> dict:
    """What sd-scripts writes under `modelspec.` for a LoRA of this model, trained as the model was."""
    spec = importlib.import_module("library.sai_model_spec")
    v = skeletons.configurations(name)["prediction_type"] == "v_prediction"
    rows = spec.build_metadata(
        None,
        name == "sd21",
        v,
        name == "sdxl",
        True,
        False,
        0.0,
        title="title",
        reso=None,
        optional_metadata={"implementation_version": "-"},
    )
    return {key: value for key, value in rows.items() if key not in ("modelspec.date", "modelspec.implementation_version")}


def hashes(folder: Path) -> dict:
    """The two hashes of a file of two made-up tensors, by sd-scripts' own functions, which need none of its other imports."""
    import safetensors.torch
    import torch

    names = ("precalculate_safetensors_hashes", "addnet_hash_legacy", "addnet_hash_safetensors")
    tree = ast.parse((folder / "library" / "train_util.py").read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    space = {"hashlib": hashlib, "BytesIO": io.BytesIO, "safetensors": safetensors}
    exec(compile(tree, "train_util.py", "exec"), space)
    tensors = {"b": torch.arange(400_000, dtype=torch.float32), "a": torch.arange(6, dtype=torch.float32).reshape(2, 3)}
    metadata = {HASHED: "2", "modelspec.title": "not hashed"}
    model, legacy = space["precalculate_safetensors_hashes"](tensors, metadata)
    return {"sshs_model_hash": model, "sshs_legacy_hash": legacy}


def write(facts: dict, path: Path) -> None:
    """One module a line, so that a change of sd-scripts shows as changed lines."""
    models = []
    for name, parts in facts["models"].items():
        rows = []
        for kind, part in parts.items():
            lines = (f"   {json.dumps(module)}: {json.dumps(shapes, separators=(',', ':'))}" for module, shapes in part.items())
            rows.append(f'  "{kind}": {{\n' + ",\n".join(lines) + "\n  }")
        models.append(f' "{name}": {{\n' + ",\n".join(rows) + "\n }")
    others = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items() if key != "models"]
    text = "{\n" + ",\n".join([*others, '"models": {\n' + ",\n".join(models) + "\n}"]) + "\n}\n"
    json.loads(text)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    main()
