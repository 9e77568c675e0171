"""Files of weights from strangers, against what safetensors itself takes; and what is checked of a model's weights."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import sdnb
from sdnb.models import weights

from ..conftest import ROOT

TINY = ROOT / "data" / "tiny-sd"
UNET = "diffusion_pytorch_model.safetensors"


def written(path, header, data=b"1234", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def row(**changes):
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


@pytest.mark.parametrize("header", [
    row(shape=[-1]), row(shape="x"), row(shape=[1.5]), row(shape=None), row(shape=[[1]]), row(shape=[2]), row(shape=[2**62, 4]),
    row(shape=[2**62, 2**62, 0]), row(shape=[1] * 9), row(shape=5), row(dtype="F31"), row(dtype=5), row(dtype=None),
    row(data_offsets=[0, 8]), row(data_offsets=[4, 0]), row(data_offsets=[-4, 0]), row(data_offsets="x"), row(data_offsets=[0, 10**30]),
    row(data_offsets=[0]), {**row(), "b": row()["a"]}, {"a": 5}, {"a": None}, {"a": []}, [], 5, b"", b"\xff", b"[" * 100_000,
    b'{"a":' * 5000, {"__metadata__": [1], **row()}, {"__metadata__": {"a": 1}, **row()}, {"__metadata__": "x", **row()},
], ids=lambda value: str(value)[:60])  # fmt: skip
def test_a_damaged_header_is_one_error(header, tmp_path):
    path = written(tmp_path / "x.safetensors", header)
    with pytest.raises(ValueError, match=r"x\.safetensors.*fetch it again"):
        weights.header(path)


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**31, 2**63, 2**64 - 1])
def test_a_header_is_as_long_as_it_says(length, tmp_path):
    with pytest.raises(ValueError, match=r"x\.safetensors is no safetensors file"):
        weights.header(written(tmp_path / "x.safetensors", row(), length=length))
    with pytest.raises(ValueError, match="a header of 10,000,001 bytes, and at most 10,000,000 are read"):
        weights.header(written(tmp_path / "x.safetensors", b"{" + b" " * 9_999_999 + b"}", b""))


def test_what_a_header_says(tmp_path):
    tensors = {"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.tensor(1), "c": torch.empty(0, 5), "position_ids": torch.ones(1, 9)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"about": "this"})
    header = weights.header(tmp_path / "x.safetensors")
    assert header.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert header.precisions == {"a": "BF16", "b": "I64", "c": "F32", "position_ids": "F32"}
    assert (header.metadata, header.numbers) == ({"about": "this"}, 7)
    for name, precision in weights.FLOATS.items():
        save_file({"a": torch.ones(1).to(getattr(torch, precision))}, tmp_path / "x.safetensors")
        assert weights.header(tmp_path / "x.safetensors").precisions == {"a": name}


def folder_with(tmp_path, part, tensors):
    """Tiny's folder with other weights of one part; the other files are links to tiny's own."""
    folder = shutil.copytree(TINY, tmp_path / "model", copy_function=os.link)
    path = next((folder / part).glob("*.safetensors"))
    path.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return folder, path


def with_one(number, place):
    """Replaces one number of a tensor."""
    return lambda tensor: tensor.flatten().index_fill(0, torch.tensor([place]), number).view_as(tensor)


BROKEN = {
    "NaN": (with_one(torch.nan, 1000), "NaN or infinity"),
    "infinity": (with_one(-torch.inf, 0), "NaN or infinity"),
    "int8": (lambda tensor: tensor.to(torch.int8), "is in I8|no floating-point numbers"),
    "bool": (lambda tensor: tensor > 0, "is in BOOL|no floating-point numbers"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "is in C64|no floating-point numbers"),
    "another shape": (lambda tensor: torch.cat([tensor, tensor]), "where .* says"),
    "flat": (lambda tensor: tensor.flatten(), "where .* says"),
}  # fmt: skip


PLACES = {
    "unet": "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "vae": "decoder.conv_in.weight",
    "text_encoder": "encoder.layers.1.mlp.fc2.weight",
}


@pytest.mark.parametrize("part", PLACES)
@pytest.mark.parametrize("damage", BROKEN)
def test_weights_that_are_none_are_refused(damage, part, tmp_path, monkeypatch):
    (change, message), name = BROKEN[damage], PLACES[part]
    tensors = load_file(next((TINY / part).glob("*.safetensors")))
    key = next(key for key in tensors if key.endswith(name))
    folder, path = folder_with(tmp_path, part, {**tensors, key: change(tensors[key])})
    if "NaN" not in message:
        monkeypatch.setattr("sdnb.models.loading._load_part", None)  # nothing is read
    with pytest.raises(ValueError, match=message) as raised:
        sdnb.load(folder, device="cpu")
    assert str(path.parent) in str(raised.value)
    assert name in str(raised.value)


@pytest.mark.parametrize("damage", BROKEN)
def test_a_single_file_of_weights_that_are_none_is_refused(damage, tiny, tmp_path):
    path = tiny.save(tmp_path / "x.safetensors")
    metadata, tensors = weights.header(path).metadata, load_file(path)
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    change, message = BROKEN[damage]
    save_file({**tensors, key: change(tensors[key]).contiguous()}, path, metadata=metadata)
    with pytest.raises(ValueError, match=message) as raised:
        sdnb.load(path, device="cpu", tokenizer=TINY)
    assert "x.safetensors" in str(raised.value)
    # what is not read does not matter, whatever it is
    besides = {"model_ema.num_updates": torch.tensor(3), "model.diffusion_model.other": torch.ones(2, dtype=torch.complex64)}
    save_file({**tensors, **besides}, path, metadata=metadata)
    sdnb.load(path, device="cpu", tokenizer=TINY)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_large_numbers_are_finite(precision):
    """Their sum would not be."""
    layer = torch.nn.Linear(300, 300).to(precision)
    layer.weight.data.fill_(torch.finfo(torch.bfloat16 if precision == torch.float64 else precision).max)
    weights.check_finite(layer, "it")
    layer.weight.data[299, 299] = torch.inf
    with pytest.raises(ValueError, match="it: 1 of 2 weights hold NaN or infinity, weight among them"):
        weights.check_finite(layer, "it")


@pytest.mark.parametrize("index", [
    "[]", "{}", "[" * 100_000, '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": ["x"]}}',
    '{"weight_map": {"a": "../other.safetensors"}}', '{"weight_map": {"a": "/other.safetensors"}}', '{"weight_map": {"a": null, "b": "x"}}',
])  # fmt: skip
def test_an_index_that_is_none_is_refused(index, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model", copy_function=os.link)
    shutil.copy(folder / "unet" / UNET, tmp_path / "model" / "other.safetensors")
    (folder / "unet" / UNET).unlink()
    (folder / "unet" / f"{UNET}.index.json").write_text(index)
    with pytest.raises(ValueError, match=rf"{UNET}\.index\.json"):
        sdnb.load(folder, device="cpu")


@pytest.mark.parametrize("name, content", {
    "tokenizer_config.json": b"[" * 100_000, "vocab.json": b"[]", "tokenizer.json": b'{"model": 5}', "merges.txt": b"\xff\xfe",
}.items())  # fmt: skip
def test_a_damaged_tokenizer_is_one_error(name, content, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model", copy_function=os.link)
    (folder / "tokenizer" / name).unlink()
    (folder / "tokenizer" / name).write_bytes(content)
    try:
        sdnb.load(folder, device="cpu")
    except ValueError as error:
        assert str(folder / "tokenizer") in str(error)
