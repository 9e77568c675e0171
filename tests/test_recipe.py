"""The settings: right by default, refused early when wrong."""

import dataclasses

import pytest

from sdnb import Recipe


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
        ({"learning_rate": 0}, "above 0"),
        ({"learning_rate": -1e-4}, "above 0"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"learning_rate": "1e-4"}, "a number"),
        ({"learning_rate": None}, "a number"),
        ({"max_grad_norm": -1}, "no clipping"),
        ({"max_grad_norm": float("inf")}, "finite"),
        ({"lr_warmup_steps": -1}, "0 or more"),
        ({"lr_warmup_steps": 0.1}, "whole number"),
        ({"max_train_steps": 0}, "1 or more"),
        ({"train_batch_size": True}, "whole number"),
        ({"gradient_accumulation_steps": 0}, "1 or more"),
        ({"gradient_checkpointing": "yes"}, "True or False"),
        ({"mixed_precision": "fp8"}, "one of no, fp16, bf16"),
        ({"resolution": 100}, "multiple of 8"),
        ({"caption_dropout_rate": 1.5}, "between 0 and 1"),
        ({"min_snr_gamma": 0}, "such as 5"),
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


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="max_grad_nrom"):
        Recipe(max_grad_nrom=0)
