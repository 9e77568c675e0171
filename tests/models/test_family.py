"""A family is one file. Here is one more, made up, of which nothing else knows: a transformer that learns a flow."""

import copy
import dataclasses
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModel, CLIPTokenizer

import sdnb
from sdnb import Recipe, checkpointing, inputs, losses
from sdnb.models import Family, Model, Part, families, known_parts, register, unregister
from sdnb.training import Cache

from ..conftest import ROOT
from ..planner.test_planning import allocated


@dataclass
class Doodle(Model):
    """Its parts."""

    transformer: SD3Transformer2DModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    noise_scheduler: FlowMatchEulerDiscreteScheduler
    family: str = "doodle"


@dataclass(frozen=True)
class Flow(losses.DiffusionProcess):
    """Straight lines from pictures to noise (Liu et al. 2022): x_t = (1 - s) x_0 + s noise, and their direction is predicted."""

    levels: int
    prediction_type: str = "flow"

    def noises(self, recipe):
        return losses.Noises.of(recipe, levels=self.levels)

    def loss(self, recipe):
        return losses.Loss.of(recipe, self.prediction_type)

    def noised(self, x_0, noise, t):
        s = ((t + 1) / self.levels).view(-1, 1, 1, 1)
        return (1 - s) * x_0 + s * noise

    def target(self, x_0, noise, t):
        return noise - x_0


OTHERS = ("text_encoder_2", "text_encoder_3", "tokenizer_2", "tokenizer_3", "image_encoder", "feature_extractor")
"""What their pipeline has, too."""


class Doodles(Family):
    """Everything there is to say."""

    name, title, model, denoiser, version = "doodle", "Doodle", Doodle, "transformer", "doodle"
    parts: ClassVar = {
        "transformer": Part("SD3Transformer2DModel"),
        "vae": Part("AutoencoderKL"),
        "text_encoder": Part("CLIPTextModel", "transformers", "tokenizer"),
    }
    lora_blocks = ("JointTransformerBlock",)

    def scheduler(self, facts):
        return FlowMatchEulerDiscreteScheduler.from_config(facts["scheduler"])

    def sampler(self, model):
        return FlowMatchEulerDiscreteScheduler.from_config(model.noise_scheduler.config)

    def process(self, model):
        return Flow(model.noise_scheduler.config.num_train_timesteps)

    def multiple(self, model):
        return model.downscale * model.transformer.config.patch_size

    def encode_tokens(self, model, tokens, *, clip_skip=None):
        found = model.text_encoder(tokens[0].to(model.text_encoder.device))
        return {"context": found.last_hidden_state, "pooled": found.pooler_output}

    def example(self, model, batch, *, tokens=77):
        config = model.transformer.config
        shapes = {"context": (batch, tokens, config.joint_attention_dim), "pooled": (batch, config.pooled_projection_dim)}
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    def arguments(self, x_t, t, condition):
        context, pooled = condition["context"], condition["pooled"]
        return {"hidden_states": x_t, "timestep": t, "encoder_hidden_states": context, "pooled_projections": pooled}

    def prompts(self, model, texts, encoding):
        told = {}
        for prefix, condition in {"": self.condition(model, texts), "negative_": self.condition(model, [""] * len(texts))}.items():
            told |= {f"{prefix}prompt_embeds": condition["context"], f"{prefix}pooled_prompt_embeds": condition["pooled"]}
        return told

    def pipeline(self, scheduler, **parts):
        nothing = dict.fromkeys((*self.parts, *self.tokenizers, *OTHERS))
        return StableDiffusion3Pipeline(**{**nothing, **parts}, scheduler=scheduler)


@pytest.fixture(scope="module", autouse=True)
def family():
    before = families()
    yield register(Doodles())
    unregister("doodle")
    assert families() == before


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory, family):
    """A model with random weights in diffusers' format."""
    torch.manual_seed(0)
    width = tiny.text_encoder.config.hidden_size
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=width, pooled_projection_dim=width, caption_projection_dim=32, pos_embed_max_size=16,
    )  # fmt: skip
    parts = dict(transformer=transformer, vae=tiny.vae, text_encoder=tiny.text_encoder, tokenizer=tiny.tokenizer)
    path = tmp_path_factory.mktemp("models") / "doodle"
    family.pipeline(FlowMatchEulerDiscreteScheduler(), **parts).save_pretrained(path)
    return path


@pytest.fixture
def doodle(folder):
    return sdnb.load(folder, device="cpu")


PLAIN = Recipe(optimizer_type="AdamW", optimizer_args=(), lr_warmup_steps=0)
LORA = PLAIN.replace(network_module="networks.lora", network_dim=2, network_alpha=2.0, learning_rate=1e-2)


def run(model, pictures, recipe, **settings):
    return [step.loss for step in sdnb.train(model, pictures, recipe, steps=3, **settings)]


def test_nothing_else_asks_for_a_family():
    asked = re.compile(r"\.(unet|transformer|text_encoder_2)\b|family [!=]= ")
    code = {path: path.read_text(encoding="utf-8") for path in (ROOT / "sdnb").rglob("*.py")}
    found = {
        f"{path.parent.name}/{path.name}: {hit[0]}" for path, text in code.items() for hit in asked.finditer(re.sub(r'"[^"\n]*"', "", text))
    }
    assert {row for row in found if not row.startswith(("models/sd.py", "models/sdxl.py", "course/"))} == set()


def test_without_it_the_folder_is_refused(folder, family):
    unregister("doodle")
    try:
        with pytest.raises(ValueError, match="holds a transformer instead of a U-Net"):
            sdnb.plan(folder, PLAIN)
        with pytest.raises(ValueError, match="it lacks unet"):
            sdnb.load(folder, device="cpu")
    finally:
        register(family)


def test_it_is_loaded_part_by_part(folder, doodle):
    assert (type(doodle), doodle.family, list(doodle.parts)) == (Doodle, "doodle", ["transformer", "vae", "text_encoder"])
    theirs = SD3Transformer2DModel.from_pretrained(folder / "transformer").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in doodle.transformer.state_dict().items())
    assert [name for name, part in doodle.parts.items() if any(p.requires_grad for p in part.parameters())] == ["transformer"]
    assert (doodle.resolution, doodle.downscale, doodle.multiple) == (64, 4, 8)
    half = sdnb.load(folder, device="cpu", dtype={"transformer": torch.bfloat16})
    assert (half.dtype, half.vae.dtype) == (torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match=r"max_token_length=150: Doodle sees 75"):
        sdnb.plan(doodle, PLAIN.replace(max_token_length=150))
    with pytest.raises(ValueError, match="only at multiples of 8"):
        sdnb.plan(doodle, PLAIN, resolution=60)


@pytest.mark.parametrize("choice", ["none", "full"])
@pytest.mark.parametrize("recipe", [PLAIN, LORA], ids=["full", "lora"])
def test_it_is_planned(folder, doodle, recipe, choice):
    sdnb.prepare.make_trainable(doodle, recipe)
    predicted = sdnb.plan(folder, recipe, checkpointing=choice, device="cpu")
    assert predicted.peak_bytes == pytest.approx(allocated(doodle, recipe, choice, (64, 64)), rel=0.005)
    assert predicted.trained == sum(p.numel() for part in doodle.learners.values() for p in part.parameters() if p.requires_grad)


def test_it_trains_as_by_hand(doodle, ink):
    recipe = PLAIN.replace(cache_latents=True, cache_text_encoder_outputs=True)
    by_hand, optimizer = copy.deepcopy(doodle.transformer), None
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=recipe.learning_rate)
    batches, expected = Cache(doodle, ink, recipe), []
    for number in range(3):
        batch = batches.batch(number)
        tokens = doodle.tokenizer(list(batch.captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.no_grad():
            told = doodle.text_encoder(tokens.input_ids)
        s = ((batch.t + 1) / 1000)[:, None, None, None]
        x_t = torch.lerp(batch.latents, batch.noise, s)
        prediction = by_hand(x_t, told.last_hidden_state, told.pooler_output, batch.t, return_dict=False)[0]
        loss = F.mse_loss(prediction, batch.noise - batch.latents)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert run(doodle, ink, recipe) == pytest.approx(expected, rel=1e-4)


def test_it_recomputes(folder, doodle, ink):
    other = sdnb.load(folder, device="cpu")
    given = inputs.example(doodle.transformer, size=16)
    assert [block.name for block in checkpointing.blocks(doodle.transformer, given)] == [f"transformer_blocks.{i}" for i in range(3)]
    assert run(doodle, ink, PLAIN) == run(other, ink, PLAIN, checkpointing="full")
    assert sdnb.plan(folder, PLAIN, checkpointing="full").peak_bytes < sdnb.plan(folder, PLAIN).peak_bytes


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_it_takes_a_lora(folder, doodle, ink, tmp_path, form):
    before = run(doodle, ink, LORA)
    assert len(doodle.encoders_in_training) == 1
    assert before == run(sdnb.load(folder, device="cpu"), ink, LORA)
    path = sdnb.lora.save(doodle, tmp_path / "doodle.safetensors", form=form)
    again = sdnb.lora.load(sdnb.load(folder, device="cpu"), path)
    batch = Cache(doodle, ink, PLAIN).batch(0)
    with torch.no_grad():
        one, other = (sdnb.training.denoising_loss(model, batch, PLAIN) for model in (doodle, again))
        plain = sdnb.training.denoising_loss(sdnb.load(folder, device="cpu"), batch, PLAIN)
    assert torch.equal(one, other) and not torch.equal(one, plain)


def test_it_is_saved_and_loaded_again_and_draws(doodle, ink, tmp_path):
    run(doodle, ink, PLAIN, save_to=tmp_path / "saves")
    again = sdnb.load(doodle.save(tmp_path / "again"), device="cpu")
    for name, part in doodle.parts.items():
        theirs = again.parts[name].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in part.state_dict().items())
    theirs = StableDiffusion3Pipeline.from_pretrained(tmp_path / "again", **dict.fromkeys(OTHERS))
    assert theirs.transformer.config.num_layers == 3
    drawn = again.draw("a cat", steps=2)
    assert drawn.size == (64, 64)
    assert drawn.tobytes() == doodle.draw("a cat", steps=2).tobytes()
    with pytest.raises(ValueError, match="Doodle is saved as a folder"):
        doodle.save(tmp_path / "one.safetensors")
    resumed = dataclasses.replace(again, transformer=copy.deepcopy(again.transformer))
    with pytest.warns(UserWarning, match="nothing is left to train"):
        assert run(resumed, ink, PLAIN, save_to=tmp_path / "saves", resume=True) == []
    assert "transformer" in known_parts()
