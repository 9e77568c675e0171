"""A LoRA's file: it is loaded, or refused and the model is as it was."""

import copy
import dataclasses
import json

import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st

from sdnb import lora
from sdnb.lora import adapters

from ..lora.test_files import state
from . import damages
from .doors import fuzz, only


@pytest.fixture(scope="module")
def model(tiny):
    return dataclasses.replace(tiny, **{name: copy.deepcopy(part) for name, part in adapters.parts(tiny).items()})


LAYER, OTHER = "lora_unet_mid_block_attentions_0_proj_in", "unet.mid_block.attentions.0.proj_out"
TENSORS = {
    f"{LAYER}.lora_down.weight": torch.ones(2, 192, 1, 1),
    f"{LAYER}.lora_up.weight": torch.ones(192, 2, dtype=torch.float16),
    f"{LAYER}.alpha": torch.tensor(1.0),
    f"{OTHER}.lora_A.weight": torch.ones(3, 192),
    f"{OTHER}.lora_B.weight": torch.ones(192, 3),
}
NOTES = {
    "unet.r": 2,
    "unet.lora_alpha": 4,
    "unet.alpha_pattern": {"proj_out": 2, "mid_block.attentions.0.proj_out": 3},
    "unet.rank_pattern": {"proj_out": 3},
}
WHOLE = safetensors.torch.save(TENSORS, {"ss_base_model_version": "sd_v1", "lora_adapter_metadata": json.dumps(NOTES)})
DTYPES = [torch.float64, torch.bfloat16, torch.float8_e5m2, torch.int8, torch.int64, torch.uint8, torch.bool, torch.complex64]


@st.composite
def other_tensors(draw):
    """Some of the tensors in another precision, of another shape, with other values, under another name, or left out."""
    tensors = dict(TENSORS)
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(TENSORS)))
        tensor = tensors.pop(key, TENSORS[key])
        action = draw(st.sampled_from(["precision", "values", "shape", "rank", "name", "remove"]))
        if action == "precision":
            tensor = tensor.to(draw(st.sampled_from(DTYPES)))
        elif action == "values":
            tensor = tensor.float() * draw(st.floats())
        elif action == "shape":
            tensor = draw(
                st.sampled_from(
                    [
                        tensor[None],
                        tensor[..., None],
                        tensor.flatten(),
                        tensor.flatten()[:1],
                        tensor.sum(),
                        tensor[:0] if tensor.ndim else tensor[None][:0],
                    ]
                )
            )
        elif action == "rank":
            tensor = torch.ones(draw(st.lists(st.sampled_from([0, 1, 2, 3, 192, 1500]), max_size=2)))
        elif action == "name":
            key = key.replace(
                *draw(
                    st.sampled_from(
                        [
                            ("lora_", "hada_"),
                            ("A", "A.default"),
                            ("mid_block", "mid_blocks"),
                            ("weight", ""),
                            ("lora_unet_", "unet."),
                            ("up", "down"),
                        ]
                    )
                )
            )
        if action != "remove":
            tensors[key] = tensor.contiguous().clone()
    return safetensors.torch.save(tensors, {"lora_adapter_metadata": json.dumps(NOTES)})


notes = damages.texts(NOTES) | damages.documents({"unet.alpha_pattern": {"(a+)+X|((([a-z_0-9.]+)+)+)+X": 2}}).map(json.dumps)
with_notes = notes.map(
    lambda text: safetensors.torch.save(
        {key: value for key, value in TENSORS.items() if "alpha" not in key}, {"lora_adapter_metadata": text}
    )
)


@fuzz(content=damages.safetensors_files(WHOLE).map(lambda damage: damage.of(WHOLE)) | other_tensors() | with_notes)
def test_loras(model, tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    before = state(model)
    with only(ValueError):
        try:
            lora.load(model, path)
        except ValueError as error:
            assert str(error).startswith(("x.safetensors", str(path)))
            assert state(model) == before
            raise
        trained = [parameter for part in adapters.parts(model).values() for parameter in part.parameters() if parameter.requires_grad]
        assert trained and all(parameter.isfinite().all() and parameter.dtype == torch.float32 for parameter in trained)
        lora.remove(model)
