"""Prompts with their flags and samplers by name, as sd-scripts' own functions read and made them."""

import importlib.util
import json

import pytest

from sdnb import Recipe
from sdnb.models import samplers
from sdnb.saves import samples
from sdnb.sections import SAMPLERS

from .test_timing import RECORDED


@pytest.mark.parametrize("line", RECORDED["prompts"])
def test_a_line_is_read_as_by_sd_scripts(line):
    assert samples.parse(line) == RECORDED["prompts"][line]


@pytest.mark.parametrize("name", RECORDED["samplers"])
def test_a_sampler_is_that_of_sd_scripts(name):
    expected = RECORDED["samplers"][name]
    name, v = name.split()
    if samplers.lacks_scipy(name):
        assert type(samplers.sampler(name, "epsilon")).__name__ == "EulerDiscreteScheduler"
        return
    made = samplers.sampler(name, "v_prediction" if v == "True" else "epsilon")
    if "raises" in expected:  # where it stops, we draw
        assert made.config.algorithm_type == "dpmsolver"
        return
    assert type(made).__name__ == expected.pop("class")
    assert {key: made.config[key] for key in expected if key in made.config} == {
        key: expected[key] for key in expected if key in made.config
    }
    assert len(set(expected) & set(made.config)) >= 5


def test_every_sampler_that_may_be_asked_for_is_known():
    assert set(SAMPLERS) == set(samplers.SAMPLERS) - {"ddpm"} | {f"k_{name}" for name in samplers.WITH_K}


@pytest.mark.parametrize("name", [name for name in SAMPLERS if not name.startswith("k_")])
def test_every_sampler_draws(tiny, name):
    first, again, other = (
        tiny.draw("a cat", steps=4, size=(64, 32), negative="a dog", guidance=4, seed=seed, sampler=name) for seed in (1, 1, 2)
    )
    assert first.size == (64, 32)
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_a_negative_prompt_counts(tiny):
    plain, empty, other = (tiny.draw("a cat", steps=2, size=32, negative=negative) for negative in (None, "", "a dog"))
    assert plain.tobytes() == empty.tobytes() != other.tobytes()


def test_the_three_kinds_of_file_say_the_same(tmp_path):
    lines, toml, data = (tmp_path / f"prompts.{kind}" for kind in ("txt", "toml", "json"))
    lines.write_text("# a comment\n\na fox --w 100 --h 30 --d 3 --s 2 --l 2.5 --n dull --ss euler\r\na cat --w 100\n", encoding="utf-8")
    toml.write_text(
        "[prompt]\nwidth = 100\n[[prompt.subset]]\nprompt = 'a fox'\nheight = 30\nseed = 3\nsample_steps = 2\nscale = 2.5\n"
        "negative_prompt = 'dull'\nsample_sampler = 'euler'\n[[prompt.subset]]\nprompt = 'a cat'\n",
        encoding="utf-8",
    )
    fox = {"prompt": "a fox", "width": 100, "height": 30, "seed": 3, "sample_steps": 2, "scale": 2.5, "negative_prompt": "dull"}
    data.write_text(json.dumps([{**fox, "sample_sampler": "euler"}, "a cat --w 100"]), encoding="utf-8")
    expected = (samples.Prompt(**fox, sample_sampler="euler"), samples.Prompt(prompt="a cat", width=100))
    assert samples.read(lines) == samples.read(toml) == samples.read(data) == expected


def test_sizes_are_cut_to_whole_latents():
    first = samples.Prompt(prompt="a fox", width=100, height=30).drawing(sampler="heun", clip_skip=2)
    assert (first.size, first.sampler, first.clip_skip, first.negative) == ((96, 64), "heun", 2, "")
    assert (first.steps, first.guidance) == (30, 7.5)
    second = samples.Prompt(prompt="a fox", sample_sampler="lms").drawing(sampler="heun")
    assert second.seed != first.seed and second.sampler == "lms" and second.size == (512, 512)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "a fox --cn edges.png", "wants a ControlNet"),
        ("p.json", '{"prompt": "a fox"}', "must be a list"),
        ("p.json", "[3]", "prompt 1 in it is 3"),
        ("p.json", '[{"prompt": "a fox", "width": "wide"}]', "width='wide': it must be a number"),
        ("p.json", '[{"prompt": 3}]', "it must be a text"),
        ("p.toml", "prompt = 'a fox'", r"\[\[prompt.subset\]\]"),
        ("p.toml", "[prompt", "is no TOML"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"sample_prompts='.*{name}': .*{said}"):
        samples.read(tmp_path / name)


def test_without_a_file_nothing_is_drawn(tmp_path):
    recipe = Recipe(sample_at_first=True, sample_prompts=str(tmp_path / "p.txt"))
    assert samples.of(recipe, tmp_path) is None
    (tmp_path / "p.txt").write_text("a fox", encoding="utf-8")
    assert samples.of(recipe, tmp_path).prompts == (samples.Prompt(prompt="a fox"),)
    assert samples.of(recipe.replace(sample_at_first=False, sample_every_n_steps=0, sample_every_n_epochs=-1), tmp_path) is None


@pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="lms needs scipy")
def test_lms_is_itself_with_scipy():
    assert type(samplers.sampler("k_lms", "epsilon")).__name__ == "LMSDiscreteScheduler"
