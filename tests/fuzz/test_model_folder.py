"""A model's folder: its configurations, and the whole of it."""

import json
import os
import shutil

import pytest
from hypothesis import strategies as st

import sdnb
from sdnb import models
from sdnb.models import configurations, skeletons

from ..conftest import ROOT
from . import damages
from .doors import fuzz, only

TINY = ROOT / "data" / "tiny-sd"
CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
OTHERS = ("tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "tokenizer/tokenizer.json", "model_index.json")
documents = {name: json.loads((TINY / name).read_text(encoding="utf-8")) for name in CONFIGS}


def replaced(folder, name, content):
    """Tiny's folder with another content of one file; the others are links to tiny's own."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(TINY, folder, copy_function=os.link)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    return folder


def encoded(text):
    return text.encode("utf-8", "surrogatepass")


configs = st.one_of(*(st.tuples(st.just(name), damages.texts(document).map(encoded)) for name, document in documents.items()))


def damaged_weights(name):
    """A file of weights with another header, which may be as long as the old one, or with wrong bytes; made when it is drawn."""
    return st.tuples(st.just(name), st.deferred(lambda: damages.safetensors_files((TINY / name).read_bytes())))


others = st.sampled_from(OTHERS).flatmap(
    lambda name: st.tuples(
        st.just(name),
        damages.wrong_bytes((TINY / name).read_bytes())
        | st.deferred(lambda: damages.texts(json.loads((TINY / name).read_bytes()))).map(encoded),
    )
)
whole = configs | st.sampled_from(WEIGHTS).flatmap(damaged_weights) | others


@fuzz(damage=configs)
def test_configurations(tmp_path, damage):
    name, content = damage
    folder = replaced(tmp_path / "model", name, content)
    with only(ValueError):
        facts = models.skeletons.configurations(folder)
        assert facts["family"] in {family.name for family in models.families()}


@fuzz(damage=configs, share=0.5)
def test_skeletons(tmp_path, damage):
    name, content = damage
    folder = replaced(tmp_path / "model", name, content)
    with only(ValueError):
        try:
            sd = skeletons.skeleton(folder)
        except ValueError as error:
            assert str(folder) in str(error)
            raise
        assert sd.resolution > 0 and sd.multiple > 0


@fuzz(damage=whole, share=0.1)
def test_folders(tmp_path, damage):
    name, content = damage
    folder = replaced(tmp_path / "model", name, content)
    with only(ValueError):
        try:
            sd = sdnb.load(folder, device="cpu")
        except ValueError as error:
            assert str(folder) in str(error)
            raise
        assert all(parameter.isfinite().all() for part in sd.parts.values() for parameter in part.parameters())


@pytest.fixture(scope="module")
def single(tiny, tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("single") / "tiny.safetensors").read_bytes()


@fuzz(data=st.data(), share=0.1)
def test_single_files(single, tmp_path, data):
    header, rest = damages.header_of(single)
    facts = json.loads(header["__metadata__"][configurations.METADATA])
    if data.draw(st.booleans()):
        header["__metadata__"][configurations.METADATA] = data.draw(damages.texts(facts))
        content = damages.with_header(json.dumps(header), rest)
    else:
        content = data.draw(damages.safetensors_files(single))
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(content)
    with only(ValueError):
        try:
            sdnb.load(path, device="cpu", tokenizer=TINY / "tokenizer")
        except ValueError as error:
            assert "tiny.safetensors" in str(error)
            raise
