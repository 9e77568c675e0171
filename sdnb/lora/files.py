"""LoRA as a file: adapters written and read as sd-scripts' and diffusers' programs have them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..models import family_of, weights
from ..system import files, shown
from . import adapters, lycoris, names
from . import metadata as header
from .adapters import NAME, add, beside_any_torchao, is_added, merge, remove, set_strength, strength
from .arguments import Asked, asked, settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from ..models import Model

__all__ = [
    "Asked", "add", "asked", "beside_any_torchao", "is_added", "load", "merge", "remove", "save", "set_strength", "settings", "strength",
]  # fmt: skip
FORMS = ("kohya", "diffusers")
DTYPES = {"float": "float32", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""sd-scripts' words for a file's precision -> torch's."""
NO_ALPHA = ("BOOL", "C64", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0")
"""Dtypes of safetensors that an alpha cannot have; sd-scripts' may be a whole number."""


def save(
    sd: Model,
    path: str | Path,
    *,
    form: str = "kohya",
    dtype: torch.dtype | str | None = None,
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Write the adapters to one .safetensors file, in place of an older one of that name, which stays until the new one is complete.

    `"kohya"` has the names, shapes, alphas and metadata of sd-scripts, which ComfyUI, A1111 and diffusers load; `"diffusers"` those of
    diffusers, which keeps alpha in the metadata. `dtype` is fp32 unless given. `metadata` is added as text and wins over ours, so
    `ss_…` of the training can be told. The strength that `load` or `strength` set is not part of the file.

    Raises `ValueError` for a model without adapters, a name that does not end in .safetensors, and values that `dtype` cannot hold.
    """
    import safetensors.torch
    import torch

    path = Path(path).expanduser()
    if form not in FORMS:
        raise ValueError(f"form={form!r}: there are {', '.join(FORMS)}")
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path.name}: a LoRA is saved as safetensors, so its name ends in .safetensors")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file in it")
    layers = {part: adapters.layers(module) for part, module in adapters.parts(sd).items()}
    others = {key: value for module in adapters.parts(sd).values() for key, value in lycoris.tensors(module).items()}
    if not any(layers.values()) and not others:
        raise ValueError("this model has no adapters to save: lora.add or lora.load first")
    precision = getattr(torch, DTYPES.get(dtype, "?"), None) if isinstance(dtype, str) else dtype or torch.float32
    if precision is None or not precision.is_floating_point:
        raise ValueError(f"this dtype is none: there are {', '.join(DTYPES)}")

    if others and form != "kohya":
        raise ValueError("adapters of this kind have one form of file: leave form out")
    tensors, scales = {}, {}
    for key, value in others.items():
        tensors[key] = value.detach().to("cpu", precision).contiguous()
        if not tensors[key].isfinite().all():
            raise ValueError(f"{key} is not finite in {precision}: " + _why_not_finite(value))
    for part, found in layers.items():
        for where, layer in found.items():
            if form == "kohya":
                name = names.kohya(sd, part, where)
                keys = [f"{name}.lora_down.weight", f"{name}.lora_up.weight"]
                scales[f"{name}.alpha"] = torch.tensor(float(layer.lora_alpha[NAME]), dtype=precision)
            else:
                name = names.diffusers(sd, part, where)
                keys = [f"{name}.lora_A.weight", f"{name}.lora_B.weight"]
            for key, matrix in zip(keys, adapters.matrices(layer), strict=True):
                tensors[key] = matrix.detach().to("cpu", precision).contiguous()
                if not tensors[key].isfinite().all():
                    raise ValueError(f"{key} is not finite in {precision}: " + _why_not_finite(matrix))
    tensors |= scales
    notes = header.kohya(sd, layers, path.stem) if form == "kohya" else header.diffusers(layers)
    notes |= {key: value if isinstance(value, str) else str(value) for key, value in (metadata or {}).items()}
    if form == "kohya":
        notes |= header.hashes(tensors, notes)
    return files.write(path, safetensors.torch.save(tensors, notes))


def load(sd: Model, path: str | Path, *, strength: float = 1.0) -> Model:
    """Add the adapters of a .safetensors file in sd-scripts' or diffusers' form, each with its own rank and alpha, in place.

    A file without alphas means alpha = rank, as in ComfyUI and diffusers. They can be trained on. `strength` multiplies them.

    Raises `ValueError` for a pickle, a damaged file, values that are no finite floating-point numbers, a rank that `adapters.check_rank`
    refuses, adapters of another kind (LyCORIS, DoRA), a LoRA for another model, and for a model that has adapters; `FileNotFoundError`
    for a missing file. The model is then as it was.
    """
    import torch

    path = Path(path).expanduser()
    adapters.refuse_added(sd)
    if not math.isfinite(strength):
        raise ValueError(f"strength={strength!r}: it must be a finite number; 1 is as trained")
    found = read(sd, path)
    with adapters.put_back_on_error(sd), torch.no_grad():
        sd.denoiser.requires_grad_(False)
        for part, module in adapters.parts(sd).items():
            rows = {where: row for (owner, where), row in found.items() if owner == part}
            if not rows:
                continue
            adapters.put(module, {where: (len(row["down"]), row["alpha"]) for where, row in rows.items()})
            for where, layer in adapters.layers(module).items():
                for matrix, kind in zip(adapters.matrices(layer), ("down", "up"), strict=True):
                    matrix.copy_(rows[where][kind])
        set_strength(sd, strength)
    return sd


def check(sd: Model, path: str | Path) -> None:
    """Raise `ValueError` for a file that `load` would refuse by its header, `FileNotFoundError` for one that is missing."""
    path = Path(path).expanduser()
    _matched(sd, path, weights.header(path))


def fill(sd: Model, found: Mapping, path: Path) -> None:
    """Copy what `read`, or `of_lycoris`, found in a file into the adapters that a model has; those of other layers are as before.

    Raises `ValueError` for a file of other ranks or alphas, and for one that has nothing for these adapters.
    """
    import torch

    filled = sum(lycoris.fill(module, cast("dict", found)) for module in adapters.parts(sd).values())
    with torch.no_grad():
        for part, module in adapters.parts(sd).items():
            for where, layer in adapters.layers(module).items():
                row = found.get((part, where))
                if row is None:
                    continue
                filled += 1
                rank, alpha, name = len(row["down"]), row["alpha"], names.kohya(sd, part, where)
                if rank != layer.r[NAME]:
                    raise ValueError(
                        f"{path.name} has rank {rank} at {name}, and the recipe {layer.r[NAME]}: set network_dim (or conv_dim) to that "
                        "rank, or add dim_from_weights"
                    )
                if not math.isclose(alpha, layer.lora_alpha[NAME], rel_tol=0.01):  # half precision may have rounded it
                    raise ValueError(
                        f"{path.name} was trained with alpha {alpha:g} at {name}, and the recipe says {layer.lora_alpha[NAME]:g}, with "
                        "which it would begin at another strength: set network_alpha (or conv_alpha) to that, or add dim_from_weights"
                    )
                for matrix, kind in zip(adapters.matrices(layer), ("down", "up"), strict=True):
                    matrix.copy_(row[kind])
    if not filled:
        raise ValueError(f"{path.name} has nothing for the layers that this recipe trains: give another file, or add dim_from_weights")


def of_lycoris(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by name. Raises `ValueError` for a damaged one."""
    from safetensors.torch import load_file

    weights.header(path)
    return load_file(path)


def read(sd: Model, path: Path) -> dict[tuple[str, str], dict]:
    """Part and path of each layer -> its `down` and `up`, in the layer's shapes in fp32, and `alpha`; `sd` has no adapters.

    All that the header shows is checked before any tensor is read. Raises like `load`.
    """
    from safetensors import safe_open

    file_header = weights.header(path)
    rows = _matched(sd, path, file_header)
    try:
        told = header.alphas(file_header.metadata)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    found = {}
    with safe_open(path, framework="pt") as file:
        for (part, where), row in rows.items():
            shapes = _shapes(adapters.parts(sd)[part].get_submodule(where), file_header.shapes[row["down"]][0])
            tensors = {kind: file.get_tensor(row[kind]).float().reshape(shape) for kind, shape in shapes.items()}
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise ValueError(
                    f"{path.name}: {row['name']} holds values that are not finite: its training diverged, take an earlier save"
                )
            alpha = float(file.get_tensor(row["alpha"])) if "alpha" in row else told(part, where, len(tensors["down"]))
            if not 0 < alpha < math.inf:
                raise ValueError(f"{path.name}: {row['name']} has the alpha {alpha}: it must be one number above 0")
            found[part, where] = {**tensors, "alpha": alpha}
    return found


def _matched(sd: Model, path: Path, file_header: weights.Header) -> dict[tuple[str, str], dict[str, str]]:
    """Part and path of each layer -> the keys of its `down`, `up` and `alpha`, if it has one, and its `name` in the file."""
    shapes = file_header.shapes
    if kind := names.foreign(shapes):
        raise ValueError(f"{path.name} is {kind}, and only LoRAs are read here: ask for a LoRA, or use it in ComfyUI")
    known = names.spellings(sd)
    rows: dict[tuple[str, str], dict[str, str]] = {}
    strangers = []
    for key in shapes:
        name, kind = names.split(key) or (key, "")
        if not kind or name not in known:
            strangers.append(key)
            continue
        row = rows.setdefault(known[name], {"name": name})
        if kind in row or row["name"] != name:
            raise ValueError(f"{path.name} has the layer {name} twice: it is damaged, or two files were put together")
        row[kind] = key
    told, here = names.base(shapes, file_header.metadata), family_of(sd).title
    elsewhere = f"it is for {told}" if told else "it is a LoRA for another model, or none"
    if strangers or not rows:
        what = (
            f"{len(strangers)} of its {len(shapes)} keys, {shown(strangers[0])} first, name no layer of this model"
            if strangers
            else "it is empty"
        )
        raise ValueError(f"{path.name} does not fit this model ({here}): {what}; {elsewhere}. Load it with the base it was trained on")
    for (part, where), row in rows.items():
        name, layer = row["name"], adapters.parts(sd)[part].get_submodule(where)
        if missing := [kind for kind in ("down", "up") if kind not in row]:
            raise ValueError(f"{path.name}: {name} has no {missing[0]} matrix: the file is damaged, fetch it again")
        rank = (shapes[row["down"]] or (0,))[0]
        for kind, shape in _shapes(layer, rank).items():
            given, precision = shapes[row[kind]], file_header.precisions[row[kind]]
            if _bare(given) != _bare(shape):  # a 1×1 convolution and a Linear hold the same
                raise ValueError(
                    f"{path.name} does not fit this model ({here}): {name} has a {kind} matrix of {given} where {shape} belongs; "
                    f"{elsewhere}. Load it with the base it was trained on"
                )
            if precision not in weights.FLOATS:
                raise ValueError(f"{path.name}: {name} has a {kind} matrix in {precision}, and adapters are floating-point numbers")
        alpha = row.get("alpha", "")
        if math.prod(shapes.get(alpha, ())) != 1 or file_header.precisions.get(alpha) in NO_ALPHA:
            raise ValueError(
                f"{path.name}: {name} has the alpha {file_header.precisions[alpha]} {shapes[alpha]}: it must be one number above 0"
            )
        try:
            adapters.check_rank(layer, name, rank)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
    return rows


def _shapes(layer: Module, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the matrices of an adapter beside this layer."""
    out, *inner = layer.get_parameter("weight").shape
    return {"down": (rank, *inner), "up": (out, rank, *(1 for _ in inner[1:]))}


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape


def _why_not_finite(matrix: Tensor) -> str:
    if matrix.isfinite().all():
        return "save it in bf16 or fp32, which have the range"
    return "the training has diverged; take an earlier save"
