"""The facts about sd-scripts: complete, and read as argparse reads."""

import pytest

from sdnb.recipe import Recipe
from sdnb.sd_scripts import arguments
from sdnb.sd_scripts.outcome import HANDED


def test_the_facts_name_their_source():
    source = arguments.facts()["source"]
    assert source["repository"] == "kohya-ss/sd-scripts"
    assert len(source["commit"]) == 40
    assert source["versions"]["transformers"] == "4.54.1"


def test_every_script_has_its_arguments():
    for script in arguments.facts()["scripts"]:
        known = arguments.arguments(script)
        assert len(known) > (90 if "leco" in script else 140)
        assert {"optimizer_type", "learning_rate", "max_grad_norm", "lr_scheduler", "mixed_precision"} <= known.keys()
    assert set(arguments.STABLE_DIFFUSION) <= set(arguments.facts()["scripts"])
    with pytest.raises(KeyError):
        arguments.arguments("train.py")


def test_defaults_types_and_choices():
    known = arguments.arguments("train_network.py")
    assert (known["learning_rate"].type, known["learning_rate"].default) == ("float", 2e-6)
    assert (known["max_grad_norm"].default, known["max_train_steps"].default, known["lr_scheduler"].default) == (1.0, 1600, "constant")
    assert known["gradient_checkpointing"].type == "flag"
    assert known["mixed_precision"].choices == ("no", "fp16", "bf16")
    assert known["optimizer_args"].many
    assert arguments.arguments("train_textual_inversion.py")["save_model_as"].default == "pt"
    assert known["save_model_as"].default == "safetensors"


def test_who_has_what():
    assert arguments.scripts_with("block_lr") == ("sdxl_train.py",)
    assert "train_network.py" in arguments.scripts_with("network_dim")
    assert arguments.scripts_with("no_such_thing") == ()


@pytest.mark.parametrize(("text", "value"), [("100", 100), ("0.1", 0.1), ("10%", 0.1), ("0", 0.0), ("-5", -5.0), ("200%", 2.0), ("1", 1)])
def test_steps_or_a_share(text, value):
    read = arguments.int_or_float(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("text", ["100.0", "1e2", "x", "x%", "inf", ""])
def test_what_is_neither(text):
    with pytest.raises(ValueError, match=r"invalid literal|could not convert"):
        arguments.int_or_float(text)


def test_names_are_completed_and_guessed():
    assert arguments.full_name("max_grad", "train_network.py") == ("max_grad_norm",)
    assert len(arguments.full_name("lr_scheduler_", "train_network.py")) > 3
    assert arguments.full_name("lr_scheduler", "train_network.py") == ("lr_scheduler",)
    assert arguments.full_name("", "train_network.py") == ()
    assert arguments.closest("max_grad_nrom", arguments.arguments("train_network.py")) == "max_grad_norm"
    assert arguments.closest("colour", arguments.arguments("train_network.py")) is None


def test_the_parser_says_what_argparse_would():
    given, extra = arguments.parser("train_network.py").read(["--seed=1", "--optimizer_args", "a=1", "b=2", "--foo"])
    assert given == {"seed": 1, "optimizer_args": ["a=1", "b=2"]}
    assert extra == ["--foo"]
    for words, message in [
        (["--seed=x"], "invalid int value"),
        (["--mixed_precision=x"], "invalid choice"),
        (["--seed"], "expected one argument"),
    ]:
        with pytest.raises(arguments.UsageError, match=message):
            arguments.parser("train_network.py").read(words)


def test_every_optimizer_and_schedule_is_known_to_the_recipe():
    facts = arguments.facts()
    for name in facts["optimizers"]["classes"]:
        assert Recipe(optimizer_type=name).optimizer_type == name
    for name in facts["schedulers"]["names"]:
        assert Recipe(lr_scheduler=name).lr_scheduler == name
    assert HANDED.keys() <= facts["schedulers"]["names"].keys()


def test_a_strange_name_is_explained():
    assert arguments.unknown("block_lr", "train_network.py")[1] == "Leave --block_lr out, or run sdxl_train.py."
    assert arguments.unknown("network_dimm", "train_network.py")[1] == "Did you mean --network_dim?"
    assert arguments.unknown("fused_optimizer_group", "train_network.py")[1].startswith("Did you mean --fused_optimizer_groups, of sd")
    assert arguments.unknown("colour", "train_network.py")[1] == "Leave it out."
    assert arguments.closest("batch_size", arguments.arguments("train_network.py")) == "train_batch_size"


def test_the_script_that_knows_most():
    assert arguments.script_for(["seed", "network_dim"]) == "train_network.py"
    assert arguments.script_for(["block_lr", "network_dim", "fused_optimizer_groups"]) == "sdxl_train.py"
