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
pytestmark = pytest.mark.usefixtures("tiny")  # the libraries are imported before a time is taken
CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
OTHERS = ("tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "tokenizer/tokenizer.json", "model_index.json")


def damaged(folder, name, damage):
    """Tiny's folder with damage to one file; the others are links to tiny's own."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(TINY, folder, copy_function=os.link)
    (folder / name).unlink()
    (folder / name).write_bytes(damage.of((TINY / name).read_bytes()) if isinstance(damage, damages.Damage) else damage)
    return folder


def texts(name):
    """The file's name, and another text for it."""
    document = json.loads((TINY / name).read_text(encoding="utf-8"))
    return st.tuples(st.just(name), damages.texts(document).map(lambda text: text.encode("utf-8", "surrogatepass")))


def files(name):
    """The file's name, and damage to it."""
    content = (TINY / name).read_bytes()
    some = damages.safetensors_files(content) if name in WEIGHTS else damages.wrong_bytes(len(content))
    return st.tuples(st.just(name), some)


configs = st.one_of(*map(texts, CONFIGS))
whole = st.one_of(configs, *map(files, WEIGHTS), *map(files, OTHERS), *map(texts, OTHERS))


@fuzz(damage=configs)
def test_configurations(tmp_path, damage):
    folder = damaged(tmp_path / "model", *damage)
    with only(ValueError):
        facts = models.skeletons.configurations(folder)
        assert facts["family"] in {family.name for family in models.families()}


@fuzz(damage=configs, share=0.5)
def test_skeletons(tmp_path, damage):
    folder = damaged(tmp_path / "model", *damage)
    with only(ValueError):
        try:
            sd = skeletons.skeleton(folder)
        except ValueError as error:
            assert str(folder) in str(error)
            raise
        assert sd.resolution > 0 and sd.multiple > 0


@fuzz(damage=whole, share=0.1)
def test_folders(tmp_path, damage):
    folder = damaged(tmp_path / "model", *damage)
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
    header, _ = damages.header_of(single)
    if data.draw(st.booleans()):
        facts = json.loads(header["__metadata__"][configurations.METADATA])
        header["__metadata__"][configurations.METADATA] = data.draw(damages.texts(facts))
        damage = damages.Damage(header=json.dumps(header))
    else:
        damage = data.draw(damages.safetensors_files(single))
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(damage.of(single))
    with only(ValueError):
        try:
            sdnb.load(path, device="cpu", tokenizer=TINY / "tokenizer")
        except ValueError as error:
            assert "tiny.safetensors" in str(error)
            raise
