"""The original layout: a whole Stable Diffusion in one safetensors file, as ComfyUI and A1111 read it.

Reading is left to diffusers' own converters. They cannot be run backwards, so the names for writing are spelled here, and the tests let
diffusers read what was written. In this layout blocks are numbered through, `input_blocks.7.1` and not `down_blocks.2.attentions.0`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from . import configurations, weights
from .family import config_of, family_of, named

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from .model import Model
    from .sd import UNetFamily

UNET = "model.diffusion_model."
VAE = "first_stage_model."
WHOLE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
AUTOENCODER = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
}
OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def unet_name(name: str, *, layers: int, attended: Callable[[int], bool] = lambda block: True) -> str:
    """The original name of a U-Net's module or parameter, from diffusers' `name`, without `model.diffusion_model.`.

    `layers` is the U-Net's `layers_per_block`; `attended` says whether up block `block` has attentions, which are then numbered before its
    upsampler. A name of neither kind is returned as it is.

    >>> unet_name("down_blocks.1.resnets.0.conv1.weight", layers=2)
    'input_blocks.4.0.in_layers.2.weight'
    """
    head, original = name, ""
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)", name):
        side, kind = found[1], found[3]
        block, number = int(found[2]), int(found[4])
        first = block * (layers + 1)
        inputs = f"input_blocks.{first + 1 + number}"
        outputs = f"output_blocks.{first + number}"
        head = found[0] + (".conv" if kind.endswith("samplers") else "")
        original = {
            ("down", "resnets"): f"{inputs}.0",
            ("down", "attentions"): f"{inputs}.1",
            ("down", "downsamplers"): f"input_blocks.{first + layers + 1}.0.op",
            ("up", "resnets"): f"{outputs}.0",
            ("up", "attentions"): f"{outputs}.1",
            ("up", "upsamplers"): f"output_blocks.{first + layers}.{2 if attended(block) else 1}.conv",
        }[side, kind]
    else:
        head = next((head for head in WHOLE if name == head or name.startswith(f"{head}.")), "")
        original = WHOLE.get(head, "")
    rest = name.removeprefix(head)
    if "resnets" in head:
        for part, theirs in RESNET.items():
            rest = re.sub(rf"^\.{part}\b", f".{theirs}", rest)
    return original + rest


def vae_name(name: str, *, blocks: int) -> str:
    """The original name of an autoencoder's parameter, without `first_stage_model.`; `blocks` is how many sizes it works at.

    >>> vae_name("decoder.up_blocks.0.resnets.1.conv1.weight", blocks=4)
    'decoder.up.3.block.1.conv1.weight'
    """
    name = re.sub(r"(?<=encoder\.)down_blocks\.", "down.", name)
    name = re.sub(r"(?<=decoder\.)up_blocks\.(\d+)", lambda found: f"up.{blocks - 1 - int(found[1])}", name)  # they count from the end
    for ours, theirs in AUTOENCODER.items():
        name = re.sub(rf"\b{re.escape(ours)}(?=\.)", theirs, name)
    return name


def open_clip(tensors: Mapping[str, Tensor], *, layers: int | None = None) -> dict[str, Tensor]:
    """A text encoder under OpenCLIP's names, without their beginning.

    Query, key and value of a layer, each (D, D), become one matrix (3·D, D); all others keep their shape, but for the projection, which is
    transposed. With `layers`, one more than there are, the last is added as a copy of the one before it, and a projection too: other
    programs look for them, and nothing reads them.
    """
    import torch

    original, width = {}, tensors["embeddings.token_embedding.weight"].shape[1]
    for name, tensor in tensors.items():
        if name == "embeddings.position_embedding.weight":
            original["positional_embedding"] = tensor
        elif name == "text_projection.weight":
            original["text_projection"] = tensor.T.contiguous()
        elif found := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            three = [tensors[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
            original[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[2]}"] = torch.cat(three)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            for ours, theirs in OPEN_CLIP.items():
                name = name.replace(ours, theirs)
            original[name] = tensor
    if layers is not None:
        like = original["ln_final.weight"]
        original.setdefault("text_projection", torch.eye(width, dtype=like.dtype, device=like.device))
        last = f"transformer.resblocks.{layers - 2}."
        for name in [name for name in original if name.startswith(last)]:
            original[name.replace(last, f"transformer.resblocks.{layers - 1}.")] = original[name].clone()
    return original | {"logit_scale": torch.tensor(4.6052)}  # the logarithm of 100, at which CLIP's training holds it


def to_original(parts: Mapping[str, Module], family: str) -> dict[str, Tensor]:
    """All weights of a model under their names in the original layout. `parts` are those of its family, by name.

    The autoencoder's attention gets (D, D, 1, 1) for diffusers' (D, D). Raises `ValueError` for a U-Net whose blocks differ in length.
    """
    unet, vae = parts["unet"], parts["vae"]
    layers = config_of(unet)["layers_per_block"]
    if not isinstance(layers, int):
        raise ValueError(f"the original layout numbers blocks of one length, and this U-Net's have {layers} layers: save a folder instead")

    def attended(block: int) -> bool:
        return hasattr(unet.get_submodule(f"up_blocks.{block}"), "attentions")

    original = {UNET + unet_name(name, layers=layers, attended=attended): tensor for name, tensor in unet.state_dict().items()}
    blocks = len(config_of(vae)["block_out_channels"])
    for name, tensor in vae.state_dict().items():
        theirs = VAE + vae_name(name, blocks=blocks)
        # where diffusers has linear layers in the attention, the original has convolutions of one pixel
        original[theirs] = tensor[:, :, None, None] if re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight", theirs) else tensor
    kind = cast("UNetFamily", named(family))  # no other has the original layout
    for name in kind.encoders:
        part = kind.parts[name]
        tensors = {key.removeprefix("text_model."): tensor for key, tensor in parts[name].state_dict().items()}
        if part.is_open_clip:
            tensors = {key: tensor.cpu() if tensor.is_cuda else tensor for key, tensor in tensors.items()}  # most are copied next
            joined = open_clip(tensors, layers=kind.open_clip_layers)
            original |= {part.original + key: tensor for key, tensor in joined.items()}
        else:
            original |= {f"{part.original}text_model.{key}": tensor for key, tensor in tensors.items()}
    return original


def from_original(part: str, tensors: Mapping[str, Tensor], facts: Mapping, module: Module) -> dict[str, Tensor]:
    """One part's weights under the names and in the shapes that `module` has, by diffusers' own converters.

    Works on the meta device too.
    """
    from diffusers.loaders import single_file_utils as theirs

    if part == "unet":
        return theirs.convert_ldm_unet_checkpoint(dict(tensors), module.config)
    if part == "vae":
        return theirs.convert_ldm_vae_checkpoint(dict(tensors), module.config)
    kind = named(facts["family"]).parts[part]
    prefix = kind.original
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if kind.is_open_clip:
        found = theirs.convert_open_clip_checkpoint(module, own, prefix=prefix)
    else:
        found = {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    # some files lack this beginning, and so has the class since transformers 5.6
    wrapped = "text_model." if hasattr(module, "text_model") else ""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in found.items()}
    return {name if name.startswith("text_projection") else wrapped + name: tensor for name, tensor in bare.items()}


def read(path: Path, facts: dict, *, device: Mapping[str, torch.device | str], dtype: Mapping[str, torch.dtype]) -> dict[str, Module]:
    """The parts of a file in the original layout, each in its place and precision. `facts` are `configurations.configurations`.

    Raises `ValueError`, before any weights are read, when a weight is missing or has another shape than the configurations say.
    """
    import torch
    from safetensors import safe_open

    header = weights.header(path)
    precisions = {name: getattr(torch, weights.FLOATS.get(precision, "int64")) for name, precision in header.precisions.items()}
    promised = {name: torch.empty(shape, dtype=precisions[name], device="meta") for name, shape in header.shapes.items()}
    family = named(facts["family"])
    modules = {part: configurations.build(facts, part, path.name) for part in family.parts}
    for part, module in modules.items():
        _compare(part, module, _converted(part, promised, facts, module, path), path)
    for part, module in modules.items():
        with safe_open(path, framework="pt") as file:  # the tensors of one part at a time, mapped and not copied
            own = (name for name in promised if name.startswith(family.parts[part].original))
            mapped = {name: file.get_tensor(name) for name in own if promised[name].is_floating_point()}
        found = family.from_original(part, mapped, facts, module)
        del mapped
        filled = {name: found.pop(name).to(device[part], dtype[part]).contiguous() for name in module.state_dict()}
        module.load_state_dict(filled, assign=True)
        module.to(device[part]).eval()  # its buffers
    return modules


def read_autoencoder(path: Path, module: Module, family: str, *, dtype: torch.dtype) -> None:
    """Fill `module`, an autoencoder on the meta device, from a file: one of it alone, by original or diffusers' names, or of a whole model.

    Raises `ValueError`, before any weights are read, like `read`.
    """
    import torch
    from safetensors import safe_open

    header = weights.header(path)
    precisions = {name: getattr(torch, weights.FLOATS.get(precision, "int64")) for name, precision in header.precisions.items()}
    whole = any(name.startswith(VAE) for name in header.shapes)
    names = [name for name in header.shapes if name.startswith(VAE) or not whole]

    def named_as_here(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if module.state_dict().keys() <= tensors.keys():
            return tensors
        return _converted("vae", tensors, {"family": family}, module, path)

    promised = {name: torch.empty(header.shapes[name], dtype=precisions[name], device="meta") for name in names}
    _compare("vae", module, named_as_here(promised), path)
    with safe_open(path, framework="pt") as file:
        found = named_as_here({name: file.get_tensor(name) for name in names if promised[name].is_floating_point()})
        filled = {name: found[name].to(dtype=dtype, copy=True).contiguous() for name in module.state_dict()}
    module.load_state_dict(filled, assign=True)


def write(path: Path, model: Model, facts: dict, *, dtype: torch.dtype | None = None) -> None:
    """Write all weights to `path`, in `dtype` or as they are, with what a reader has to know beside them in the metadata.

    `facts` are the configurations. Raises `ValueError` for a family of which there are no single files.
    """
    from safetensors.torch import save_file

    family, prediction = family_of(model), facts["prediction_type"]
    original = family.to_original(model)
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.notes(model)["modelspec.architecture"],
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": path.name.split(".")[0],
        "modelspec.resolution": f"{model.resolution}x{model.resolution}",
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else prediction,
        configurations.METADATA: json.dumps(facts),
    }
    save_file(weights.on_cpu(original, dtype), path, metadata=metadata)


def _converted(part: str, tensors: Mapping[str, Tensor], facts: dict, module: Module, path: Path) -> dict[str, Tensor]:
    try:
        return named(facts["family"]).from_original(part, tensors, facts, module)
    except Exception as error:  # a piece that the converter counts on is not there, or of another shape
        raise ValueError(f"{path.name} holds no whole {part}, or one of another shape: {error!r}. {_way_out(path)}") from error


def _compare(part: str, module: Module, found: Mapping[str, Tensor], path: Path) -> None:
    expected = module.state_dict()
    missing = [name for name in expected if found.get(name) is None]
    if missing:
        raise ValueError(
            f"{path.name} lacks {len(missing)} of {len(expected)} weights of the {part}, {missing[0]} among them. {_way_out(path)}"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            have, want = tuple(found[name].shape), tuple(tensor.shape)
            raise ValueError(f"{path.name}: {part}'s {name} is {have}, where its configuration says {want}. {_way_out(path)}")
        if not found[name].is_floating_point():
            raise ValueError(f"{path.name}: {part}'s {name} holds no floating-point numbers, and weights are such: fetch it again")


def _way_out(path: Path) -> str:
    return (
        "If it is whole, it is a model of other shapes than Stable Diffusion 1.5, 2.1 and XL: "
        f'give their configurations, load("{path.name}", config="a folder in diffusers\' format")'
    )
