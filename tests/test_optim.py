"""The factories: what they build equals what the libraries build; what they refuse, they explain."""

import pytest
import torch
from diffusers.optimization import get_scheduler
from transformers.optimization import Adafactor

from sdnb import Recipe, optim


def parameters():
    return [torch.nn.Parameter(torch.ones(3, 3))]


def test_the_default_is_transformers_adafactor_at_a_fixed_rate():
    built = optim.optimizer(Recipe(), parameters())
    assert type(built) is Adafactor
    group = built.param_groups[0]
    assert (group["lr"], group["relative_step"], group["scale_parameter"], group["warmup_init"]) == (1e-4, False, False, False)


def test_adamw_takes_its_arguments():
    built = optim.optimizer(Recipe(optimizer_type="AdamW", optimizer_args=("weight_decay=0.5", "betas=(0.8, 0.9)")), parameters())
    assert type(built) is torch.optim.AdamW
    assert (built.param_groups[0]["weight_decay"], built.param_groups[0]["betas"]) == (0.5, (0.8, 0.9))


@pytest.mark.parametrize("arguments", [(), ("relative_step=True",), ("scale_parameter=False",)])
def test_an_adafactor_that_ignores_the_learning_rate_is_refused(arguments):
    with pytest.raises(ValueError, match=r"relative_step=False.*to optimizer_args"):
        optim.optimizer(Recipe(optimizer_args=arguments), parameters())


@pytest.mark.parametrize("argument", ["relative_step=false", "eps=", "eps=(1,", "eps=print(1)"])
def test_arguments_are_literals(argument):
    with pytest.raises(ValueError, match="is no literal"):
        optim.optimizer(Recipe(optimizer_args=(argument,)), parameters())


def test_an_argument_the_optimizer_does_not_have():
    with pytest.raises(ValueError, match=r"optimizer_args=.*betas"):
        optim.optimizer(Recipe(optimizer_args=("relative_step=False", "betas=(0.9, 0.99)")), parameters())


def test_unknown_names_show_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'AdamW'"):
        optim.optimizer(Recipe(optimizer_type="RAdam"), parameters())
    with pytest.raises(ValueError, match=r"'inverse_sqrt' is not known.*there are constant"):
        optim.schedule(Recipe(lr_scheduler="inverse_sqrt"), optim.optimizer(Recipe(), parameters()), steps=10)


def test_a_warmup_below_one_is_a_share_of_the_run():
    schedules = []
    for warmup in (5, 0.25):
        optimizer = torch.optim.SGD(parameters(), lr=1.0)
        schedules.append((optimizer, optim.schedule(Recipe(lr_warmup_steps=warmup), optimizer, steps=20)))
    for _ in range(20):
        assert schedules[0][1].get_last_lr() == schedules[1][1].get_last_lr()
        for optimizer, schedule in schedules:
            optimizer.step()
            schedule.step()


def test_a_warmup_that_would_be_ignored_is_refused():
    with pytest.raises(ValueError, match="lr_warmup_steps=0"):
        optim.schedule(Recipe(lr_scheduler="constant"), optim.optimizer(Recipe(), parameters()), steps=10)


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_schedules_are_diffusers(name):
    recipe = Recipe(lr_scheduler=name, lr_warmup_steps=0 if name == "constant" else 5)
    ours, theirs = (torch.optim.SGD(parameters(), lr=recipe.learning_rate) for _ in range(2))
    schedules = (
        optim.schedule(recipe, ours, steps=20),
        get_scheduler(name, theirs, num_warmup_steps=recipe.lr_warmup_steps, num_training_steps=20),
    )
    for _ in range(20):
        assert schedules[0].get_last_lr() == schedules[1].get_last_lr()
        for optimizer, schedule in zip((ours, theirs), schedules, strict=True):
            optimizer.step()
            schedule.step()
