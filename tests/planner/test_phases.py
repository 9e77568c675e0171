"""The phases of a whole run: as planned, and as a real run of tiny had them."""

import pytest

import sdnb
from sdnb import Recipe
from sdnb.datasets import captions
from sdnb.datasets import latents as encoding
from sdnb.memory import MIB, MemoryTrace
from sdnb.models import room
from sdnb.planner.planning import plan
from sdnb.saves import Samples, folders, keeper
from sdnb.saves.samples import Prompt

LORA = Recipe(
    seed=1, network_dim=4, network_train_unet_only=True, optimizer_type="AdamW", optimizer_args=(), lr_warmup_steps=0,
    train_batch_size=2, validation_split=0.5, lr_scheduler="constant",
)  # fmt: skip
CLOSE = MIB // 4
"""Bytes that a real run may differ by: token ids, a sampler's noise levels, sums of what is finite."""


@pytest.fixture(scope="module")
def traced(ink, tmp_path_factory):
    """Peak of each phase of a real run of one step on the CPU, what it was planned to need, and the bytes of the optimizer's state."""
    sd, peaks = sdnb.load("tiny"), {}
    planned = plan(sd, LORA, device="cpu").whole_run  # before the run adds adapters of its own

    def traces(name, function):
        def run(*args, **named):
            with MemoryTrace(*sd.parts.values()) as trace:
                result = function(*args, **named)
                result = result if result is None or hasattr(result, "keys") else list(result)
            peaks[name] = max(peaks.get(name, 0), trace.peak_bytes)
            return result

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "encoded", traces("caching latents", lambda *args: [ENCODED(*args)]))
        patch.setattr(encoding.Latents, "_checked", lambda self, pixels, some: encoding.encoded(self.vae, pixels)[0])
        patch.setattr(captions.Captions, "_conditioned", traces("caching captions", captions.Captions._conditioned))
        patch.setattr(keeper, "previews", traces("preview", keeper.previews))
        patch.setattr(folders, "_store", traces("save", folders._store))
        folder = tmp_path_factory.mktemp("run")
        cat = Samples((Prompt(prompt="a cat", width=64, height=64, sample_steps=1, seed=1),), folder / "samples")
        steps = sdnb.train(sd, ink[:8], LORA.replace(validation_split=0.0), steps=1, save_to=folder, samples=cat, sample_every=1)
        assert [len(step.drawn) for step in steps] == [1]
    adapters = [p for part in sd.learners.values() for p in part.parameters() if p.requires_grad]
    return peaks, planned, sum(2 * 4 * p.numel() for p in adapters)


ENCODED = encoding.encoded


@pytest.mark.parametrize("name", ["caching latents", "preview", "save"])
def test_a_real_run_needs_what_was_planned(traced, name):
    peaks, planned, state = traced
    unseen = state if name == "preview" else 0  # a trace counts what is touched inside it, and a preview touches no optimizer
    assert peaks[name] + unseen == pytest.approx(planned[name].peak_bytes, abs=CLOSE)


def test_few_captions_need_no_more_than_was_planned_for_many(traced):
    peaks, planned, _ = traced
    assert peaks["caching captions"] <= planned["caching captions"].peak_bytes


def test_the_step_is_the_largest_where_parts_take_turns(traced):
    _, planned, _ = traced
    assert planned.largest.name in ("first step", "later steps")
    assert "the largest: " in str(planned)
    names = ["loading", "caching captions", "caching latents", "first step", "later steps", "preview", "validation", "save"]
    assert [phase.name for phase in planned.phases] == names
    assert all(phase.least_bytes <= phase.peak_bytes for phase in planned.phases)


def test_what_sd_scripts_has_on_the_card(tiny, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox --w 64 --h 64\na fox --w 256 --h 128", encoding="utf-8")
    recipe = LORA.replace(
        others=dict(LORA.others) | {"cache_latents": True, "sdpa": True, "vae_batch_size": 3, "sample_prompts": str(prompts)}
    )
    run = plan("tiny", recipe, trainer="sd-scripts", device="cpu").whole_run
    vae = room.weight_bytes(tiny.vae)
    assert [phase.name for phase in run.phases] == ["caching latents", "first step", "later steps", "preview", "save"]
    with MemoryTrace(tiny.vae) as trace:
        ENCODED(tiny.vae, tiny.vae.encoder.conv_in.weight.new_zeros(3, 3, 64, 64))
    assert run["caching latents"].peak_bytes == pytest.approx(trace.peak_bytes, abs=CLOSE)
    assert run["caching latents"].peak_bytes > vae
    assert "256×128" in run["preview"].what
    assert all(phase.least_bytes == phase.peak_bytes for phase in run.phases)  # it has no tiles, and its parts take no turns


def test_what_is_not_known_is_not_said():
    run = plan("tiny", trainer="diffusers", gpu="12GB").whole_run
    assert [phase.name for phase in run.phases] == ["first step", "later steps"]
    assert "diffusers' scripts are not planned" in str(run) and run.verdict == "fits"
    assert run.as_dict()["largest"] == run.largest.name
    with pytest.raises(KeyError):
        _ = run["preview"]
