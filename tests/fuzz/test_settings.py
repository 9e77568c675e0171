"""Settings in every form, damaged: the doctor answers each text soon and shortly, and a recipe raises nothing but `ValueError`."""

import json

from hypothesis import strategies as st

from sdnb import Recipe, diagnose

from ..doctor.test_diagnosis import FAMOUS
from ..sd_scripts.test_settings import GUI
from .doors import fuzz, only

TOML = Recipe(noise_offset=0.05, network_dim=8).to_toml()
VALID = [
    FAMOUS,
    "accelerate launch --mixed_precision=fp16 train_network.py \\\n  --seed=1 \\\n"
    "  --optimizer_args 'betas=(0.9,0.99)' a=1 \\\n  --lr_scheduler=cosine",
    'set "A=1"\nset B=x\npython .\\train_db.py --seed=%A% ^\n  --output_dir="C:\\x\\%B%" ^\n --max-grad-norm 0',
    "$a = 'x'\naccelerate launch sdxl_train.py `\n  --output_name=$a `\n  --learning_rate=“1e-4” —seed=3",
    "```bash\nLR=1e-4\n!accelerate launch train_network.py --learning_rate=$LR --text_encoder_lr 1 2\n```\nWhy?",
    TOML,
    f"[general]\n{TOML}\n[other]\nseed = 3\nlearning_rte = '1e-4' # mine\n[other.deep]\na.b = {{c = [1, {{d = 2}}]}}",
    json.dumps(GUI),
    json.dumps(GUI | {"optimizer": "AdaFactor", "lr_warmup": 10, "additional_parameters": "--seed=1", "learning_rat": 3}, indent=2),
    json.dumps({"learning_rate": "x", "optimizer_args": ["a=1", "b = 2"]}),
    "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: fp16\n",
]
ODD = [
    *"= -- - — \n \\ ` ^ \" ' “ { } [ ] ( # $A ${A} %A% . , : ; & | < \0 \ufeff \ud800 学 \x1b[ \r".split(" "),
    *'nan inf 1e999 --seed=1 --x= a. [[a]] [a] {a= """ \'\' 0x'.split(),
    "\\\n",
    "^\n",
    " --optimizer_args a=",
    "9" * 400,
    "0x" + "f" * 4000,
    "a" * 2000,
]
EDITS = st.tuples(
    st.sampled_from(["insert", "repeat", "cut", "end", "replace"]),
    st.floats(0, 1),
    st.integers(0, 60),
    st.sampled_from(ODD) | st.text(max_size=4),
    st.sampled_from([1, 1, 2, 30, 1000, 20_000]),
)


def damaged(text, edits):
    """The text after each edit: something odd put in, a piece of it said again and again or taken out, or an end cut off."""
    for kind, share, length, odd, times in edits:
        start = int(share * len(text))
        head, piece, tail = text[:start], text[start : start + length], text[start + length :]
        middle = {"insert": odd * times + piece, "repeat": piece * times, "cut": "", "end": "", "replace": odd * times}[kind]
        text = (head + middle + ("" if kind == "end" else tail))[:300_000]
    return text


def text_of(*parts):
    return st.builds(damaged, st.sampled_from(parts), st.lists(EDITS, min_size=1, max_size=4))


def answers(text, longest=20_000):
    """Every question that may be asked of a diagnosis is answered, shortly."""
    diagnosis = diagnose(text)
    assert len(diagnosis.table()) < longest
    assert len(diagnosis._repr_html_()) < 2 * longest
    assert len(json.dumps(diagnosis.as_dict())) < 2 * longest
    for ask in (diagnosis.fixed_text, diagnosis.changes, lambda: Recipe.parse(text)):
        try:
            ask()
        except ValueError as error:
            assert 0 < len(str(error)) < longest


@fuzz(text_of(*VALID), share=3)
def test_settings(text):
    with only(seconds=6):  # five questions
        answers(text)


NAMES = st.sampled_from(["noise_offset", "noise_ofset", "seed", "xformers", "others", "resolution", "optimizer_args", "lr_warmup_steps"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**4000)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["a" * 10_000, "10%"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@fuzz(st.dictionaries(NAMES, VALUES, max_size=4), VALUES | st.dictionaries(NAMES, VALUES, max_size=4))
def test_recipes(given, others):
    with only(TypeError, ValueError):
        try:
            recipe = Recipe(**{name: value for name, value in given.items() if name != "others"}, others=others)
        except TypeError as error:
            assert "a recipe" in str(error)
            raise
        except ValueError as error:
            assert len(str(error)) < 3000
            raise
        answers(recipe.to_flags())
        assert Recipe.parse(recipe.to_toml()).to_toml() == recipe.to_toml()
