"""The settings: right by default, refused early when wrong."""

import copy
import dataclasses
import pickle
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdnb import Recipe
from sdnb.sd_scripts import shell


def test_the_default_is_the_corrected_recipe():
    recipe = Recipe()
    assert recipe.optimizer_type == "Adafactor"
    assert recipe.optimizer_args == ("relative_step=False", "scale_parameter=False", "warmup_init=False")
    assert (recipe.max_grad_norm, recipe.lr_scheduler, recipe.lr_warmup_steps) == (0, "constant_with_warmup", 100)


def test_it_is_frozen_and_replaced():
    recipe = Recipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.learning_rate = 1.0
    assert recipe.replace(learning_rate=1e-3).learning_rate == 1e-3
    assert recipe.learning_rate == 1e-4


def test_lists_and_whole_numbers_are_taken():
    recipe = Recipe(optimizer_args=["a=1"], learning_rate=1, max_grad_norm=1)
    assert recipe.optimizer_args == ("a=1",)
    assert isinstance(recipe.learning_rate, float)
    assert hash(recipe) == hash(Recipe(optimizer_args=("a=1",), learning_rate=1.0, max_grad_norm=1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1e-4}, "0 or above"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"learning_rate": "1e-4"}, "a finite number, 0 or above"),
        ({"learning_rate": None}, "a finite number"),
        ({"max_grad_norm": -1}, "no clipping"),
        ({"max_grad_norm": float("inf")}, "finite"),
        ({"lr_warmup_steps": -1}, "0 or more"),
        ({"lr_warmup_steps": 100.0}, "share up to 1.0"),
        ({"lr_warmup_steps": float("nan")}, "a number"),
        ({"lr_warmup_steps": "100"}, 'such as "10%"'),
        ({"lr_warmup_steps": "ten%"}, 'such as "10%"'),
        ({"lr_warmup_steps": "-5%"}, 'such as "10%"'),
        ({"lr_warmup_steps": "100%"}, "below 100"),
        ({"lr_warmup_steps": ""}, "a number"),
        ({"lr_scheduler": "cosinus"}, "did you mean 'cosine'"),
        ({"optimizer_type": "Adafctor"}, "did you mean 'Adafactor'"),
        ({"seed": -1}, "from 0"),
        ({"max_train_steps": 0}, "1 or more"),
        ({"train_batch_size": True}, "whole number"),
        ({"gradient_accumulation_steps": 0}, "1 or more"),
        ({"gradient_checkpointing": "yes"}, "True or False"),
        ({"mixed_precision": "fp8"}, "one of no, fp16, bf16"),
        ({"resolution": 100}, "multiple of 8"),
        ({"caption_dropout_rate": 1.5}, "between 0 and 1"),
        ({"min_snr_gamma": -1}, "such as 5"),
        ({"noise_offset": -0.1}, "such as 0.05"),
        ({"optimizer_args": "relative_step=False"}, "is a list"),
        ({"optimizer_args": ("relative_step = False",)}, "without spaces"),
        ({"optimizer_args": ("relative_step",)}, "key=value"),
        ({"optimizer_args": (1,)}, "key=value"),
        ({"optimizer_type": 3}, "a text"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        Recipe(**settings)
    assert next(iter(settings)) in str(refused.value)


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), (" 2.5 % ", 0.025), ("0%", 0.0)])
def test_a_percentage_is_a_share(text, share):
    recipe = Recipe(lr_warmup_steps=text)
    assert recipe.lr_warmup_steps == share
    assert recipe == Recipe(lr_warmup_steps=share) == Recipe.parse(recipe.to_flags()) == Recipe.parse(recipe.to_toml())


def test_an_optimizer_that_only_the_help_knows_gets_the_path_that_works():
    for name in ("AdEMAMix8bit", "PagedAdEMAMix8bit"):
        recipe = Recipe(optimizer_type=name.lower())
        assert recipe.optimizer_type == f"bitsandbytes.optim.{name}"
        assert Recipe.parse(recipe.to_flags()) == recipe


def test_an_unknown_setting_is_refused():
    for make in (Recipe, Recipe().replace):
        with pytest.raises(TypeError, match="no setting 'max_grad_nrom': did you mean 'max_grad_norm'"):
            make(max_grad_nrom=0)
        with pytest.raises(TypeError, match=r"write others=\{'xformers': True\}"):
            make(xformers=True)
        with pytest.raises(TypeError, match=r"no setting 'zzz'$"):
            make(zzz=1)


def test_a_recipe_can_be_copied_and_pickled():
    recipe = Recipe(learning_rate=3e-4, others={"network_dim": 8})
    assert copy.deepcopy(recipe) == pickle.loads(pickle.dumps(recipe)) == recipe


# reading and printing

COMMAND = r"""
!accelerate launch --num_cpu_threads_per_process=1 "train_network.py" \
  --pretrained_model_name_or_path="C:/models/v1-5.safetensors" \
  --optimizer_type="Adafactor" --optimizer_args "relative_step=False" "scale_parameter=False" "warmup_init=False" \
  --learning_rate=1e-4 --max_grad_norm=0 --lr_scheduler="constant_with_warmup" --lr_warmup_steps=100 \
  --resolution=512,512 --network_dim 8 --gradient_checkpointing # the usual
"""
CARETS = COMMAND.replace("\\\n", "^\n").replace("!", "").replace(" # the usual", "")
TOML = """
[model]
pretrained_model_name_or_path = "C:/models/v1-5.safetensors"
[training]
optimizer_type = "Adafactor"
optimizer_args = ["relative_step=False", "scale_parameter=False", "warmup_init=False"]
learning_rate = 1e-4
max_grad_norm = 0
lr_scheduler = "constant_with_warmup"
lr_warmup_steps = 100
resolution = "512,512"
network_dim = 8
gradient_checkpointing = true
"""
EXPECTED = Recipe(
    train_batch_size=1,
    resolution=512,
    gradient_checkpointing=True,
    seed=None,
    others={"pretrained_model_name_or_path": "C:/models/v1-5.safetensors", "network_dim": 8},
)


@pytest.mark.parametrize("text", [COMMAND, CARETS, TOML, COMMAND.partition('train_network.py"')[2]], ids=["bash", "cmd", "toml", "flags"])
def test_the_same_settings_are_read_from_any_form(text):
    assert Recipe.parse(text) == EXPECTED


def test_a_file_is_read_by_its_name(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(TOML, encoding="utf-8")
    assert Recipe.parse(file) == Recipe.parse(str(file)) == EXPECTED


def test_what_is_not_said_has_sd_scripts_defaults():
    recipe = Recipe.parse("--network_dim=4")
    assert (recipe.optimizer_type, recipe.learning_rate, recipe.max_grad_norm) == ("AdamW", 2e-6, 1.0)
    assert (recipe.lr_scheduler, recipe.lr_warmup_steps, recipe.max_train_steps, recipe.train_batch_size) == ("constant", 0, 1600, 1)
    assert recipe.optimizer_args == ()
    assert recipe.seed is None


def test_the_old_flags_are_the_optimizers_they_stand_for():
    assert Recipe.parse("--use_8bit_adam").optimizer_type == "AdamW8bit"
    assert Recipe.parse("--use_lion_optimizer").optimizer_type == "Lion"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--max_grad_nrom=0", "Did you mean --max_grad_norm"),
        ("--block_lr=1 --network_dim=4 --unet_lr=1", "or run sdxl_train.py"),
        ("--learning_rate=fast", "Give a number"),
        ("--lr_warmup_steps=1e2", "whole steps"),
        ("lr_warmup_steps = 100.0", "share up to 1.0"),
        ('lr_warmup_steps = "10%"', "0.1 rather than"),
        ("--mixed_precision=fp8", "One of no, fp16, bf16"),
        ("--optimizer_args a", "key=value"),
        ("--learning_rate=-1", "0 or above"),
        ("--resolution=100", "multiple of 8"),
        ('--output_name="x', "never closed"),
        ("nothing of the kind", "no flag"),
        ("", "empty"),
        ("missing.toml", "cannot be read"),
        ('{"a": 1}', "neither settings of the kohya_ss GUI nor names of sd-scripts"),
    ],
)
def test_what_sd_scripts_would_refuse_or_ignore_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Recipe.parse(text)


def test_what_a_file_says_and_sd_scripts_ignores_is_warned_of():
    with pytest.warns(UserWarning, match="max_grad_norm stays 1.0. Did you mean max_grad_norm?"):
        assert Recipe.parse("max_grad_nrom = 0\nseed = 1").max_grad_norm == 1.0
    with pytest.warns(UserWarning, match="9 names are silently ignored"):
        Recipe.parse("seed = 1\n" + "\n".join(f"trainer_{number} = 1" for number in range(9)))


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("bucket_reso_steps = 64.0", "bucket_reso_steps", 64),
        ("cache_latents = 1", "cache_latents", True),
        ('cache_latents = "false"', "cache_latents", True),  # as every text that is not empty
        ('cache_latents = ""', "cache_latents", False),
        ("min_snr_gamma = 0", "min_snr_gamma", 0.0),
        ("sample_every_n_steps = 0", "sample_every_n_steps", 0),
        ("max_train_steps = 0\nmax_train_epochs = 2", "max_train_steps", 1600),
        ("network_dropout = 0", "network_dropout", 0.0),
        ("noise_offset = 0", "noise_offset", 0.0),
        ("noise_offset = false", "noise_offset", 0.0),
        ("max_token_length = 255", "max_token_length", 225),
        ("max_token_length = 75", "max_token_length", 75),
        ('output_name = ""', "output_name", None),
        ('network_args = ""', "network_args", ()),
        ("text_encoder_lr = 1e-5", "text_encoder_lr", (1e-5,)),
        ("learning_rate = 1", "learning_rate", 1.0),
    ],
)
def test_the_types_of_a_file_are_those_that_sd_scripts_takes(line, field, value):
    read = getattr(Recipe.parse(line), field)
    assert (read, type(read)) == (value, type(value))


def test_others_are_kept_sorted_and_checked():
    recipe = Recipe(others={"xformers": True, "lowram": True, "network_args": ["conv_dim=4"]})
    assert recipe.extras == (("lowram", True), ("xformers", True))
    assert recipe.network_args == ("conv_dim=4",)  # what has a field moves there
    assert recipe == Recipe(others=dict(recipe.others), network_args=("conv_dim=4",))
    assert Recipe(others={"xformers": False}) == Recipe()  # that is its default
    for others, message in [
        ({"xformer": True}, "did you mean 'xformers'"),
        ({"learning_rate": -1.0}, "0 or above"),
        ({"network_dim": float("nan")}, "finite number"),
        ({"network_args": ["a", "--b"]}, "for a flag"),
        ({"network_dim": {"a": 1}}, "must be text"),
    ]:
        with pytest.raises(ValueError, match=message):
            Recipe(others=others)


def test_a_command_is_for_one_of_sd_scripts_scripts():
    assert Recipe().to_command("sdxl_train.py").startswith("accelerate launch sdxl_train.py \\\n  --optimizer_type=Adafactor")
    with pytest.raises(ValueError, match="no training script"):
        Recipe().to_command("train.py")


def test_a_command_for_train_db_trains_the_same_parts():
    """train_db.py trains the text encoder unless it is told to stop."""
    alone, both = Recipe().to_command("train_db.py"), Recipe(train_text_encoder=True).to_command("train_db.py")
    assert "--stop_text_encoder_training=-1" in alone and "text_encoder" not in both
    for command, trained in ((alone, False), (both, True)):
        assert Recipe.parse(command).trains_text_encoders == trained


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20) | st.sampled_from(
    [
        "",
        " ",
        "a b",
        "it's",
        'say "x"',
        "$HOME",
        "`ls`",
        "back\\slash",
        "C:\\x",
        "{x}",
        "fine_tune.py",
        "!x",
        "--flag",
        "-1",
        "a=b",
        "^",
        "#",
        "“x”",
        "a;b",
        "%PATH%",
    ]
)
NUMBERS = st.floats(1e-12, 1e6, allow_nan=False) | st.sampled_from([1e-4, 1.0, 2e-6, 0.01, 123456.0])
RECIPES = st.builds(
    Recipe,
    optimizer_type=st.sampled_from(["AdamW", "Adafactor", "Prodigy", "some.path.Optimizer"]),
    optimizer_args=st.lists(st.builds("{}={}".format, st.sampled_from(["a", "weight_decay"]), WORDS), max_size=3).map(tuple),
    learning_rate=NUMBERS,
    max_grad_norm=NUMBERS | st.just(0),
    lr_scheduler=st.sampled_from(["constant", "cosine", "constant_with_warmup", "adafactor"]),
    lr_warmup_steps=st.integers(0, 5000) | st.floats(0, 1, exclude_max=True),
    max_train_steps=st.integers(1, 10**6),
    gradient_checkpointing=st.booleans(),
    mixed_precision=st.sampled_from(["no", "fp16", "bf16"]),
    resolution=st.none() | st.integers(1, 200).map(lambda number: number * 8),
    noise_offset=st.none() | NUMBERS,
    seed=st.none() | st.integers(0, 2**32 - 1),
    others=st.fixed_dictionaries(
        {},
        optional={
            "output_name": WORDS.filter(lambda word: word != "--"),  # which argparse, and so sd-scripts, drops
            "network_args": st.lists(WORDS.filter(lambda word: not word.startswith("-")), max_size=3),
            "network_dim": st.integers(-5, 512),
            "xformers": st.booleans(),
            "unet_lr": NUMBERS,
            "text_encoder_lr": st.lists(NUMBERS, max_size=2),
        },
    ),
)


@settings(max_examples=500, deadline=None)
@given(RECIPES)
def test_printing_and_reading_gives_the_same_recipe(recipe):
    assert Recipe.parse(recipe.to_flags()) == recipe
    assert Recipe.parse(recipe.to_toml()) == recipe
    assert Recipe.parse(recipe.to_command("sdxl_train_network.py")) == recipe


@settings(max_examples=500, deadline=None)
@given(RECIPES)
def test_a_real_shell_reads_the_flags_as_we_do(recipe):
    assert shell.split(recipe.to_flags()).commands[0].words == shlex.split(recipe.to_flags())
