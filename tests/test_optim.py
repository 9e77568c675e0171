"""The factories: what they build trains, and is what the libraries build and the definitions say; what they refuse, they explain."""

import copy
import dataclasses
import itertools
import json
import math
import sys
import tomllib
import warnings

import diffusers
import pytest
import torch
import transformers
from torch.nn import Linear, Parameter

import sdnb
from sdnb import Recipe, optim, schedules
from sdnb.adafactor import Adafactor

from .conftest import ROOT

MANUAL = Recipe().optimizer_args
AUTOMATIC = Recipe(optimizer_args=("relative_step=True",), lr_scheduler="adafactor", lr_warmup_steps=0)


def parameters():
    return [Parameter(torch.ones(3, 3))]


def plain(name, **changes):
    """A recipe with this optimizer alone."""
    given = {"optimizer_args": (), "lr_scheduler": "constant", "lr_warmup_steps": 0, **changes}
    return Recipe(optimizer_type=name, **given)


# optimizers


def toy_recipe(name):
    """A learning rate for the toy below; a run of real size wants others."""
    rate = 1.0 if optim.OPTIMIZERS[name].rates is optim.ADAPTIVE else 0.5 if "SGD" in name else 1e-2
    return plain(name, learning_rate=rate, optimizer_args=MANUAL if name == "Adafactor" else ())


def toy():
    """Weights, more than a block of 8-bit state, and a bias; and the loss of a linear regression."""
    generator = torch.Generator().manual_seed(0)
    inputs, target = torch.randn(256, 64, generator=generator), torch.randn(64, 64, generator=generator) / 8
    model = Linear(64, 64)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 16)
    return model, lambda: (model(inputs) - inputs @ target.T - 0.1).square().mean()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_row_trains(name):
    model, loss = toy()
    built = optim.optimizer(toy_recipe(name), model.parameters())
    losses = []
    for _ in range(150):
        value = loss()
        value.backward()
        built.step()
        built.zero_grad()
        losses.append(value.item())
    assert sum(losses[-10:]) / 10 < 0.4 * losses[0]


def measured_bytes(state):
    """Without single numbers, such as a count of steps, and without the code books that all parameters share."""
    tensors = [value for key, value in state.items() if torch.is_tensor(value) and value.ndim and not key.startswith("qmap")]
    return sum(value.numel() * value.element_size() for value in tensors)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_the_state_takes_the_bytes_that_the_row_says(name):
    sizes = [(64,), (4095,), (4096,), (65, 64), (100, 100)]  # below and from the size on that is kept in 8 bits, and broken blocks
    trained = [Parameter(torch.randn(size)) for size in sizes]
    built = optim.optimizer(toy_recipe(name), trained)
    for p in trained:
        p.grad = torch.randn(p.shape)
    built.step()
    for p in trained:
        expected = optim.OPTIMIZERS[name].state_bytes(p.numel())
        assert expected in (None, measured_bytes(built.state[p]))
    assert (expected is None) == (name == "Adafactor")


def test_eight_bits_are_a_quarter():
    rows = optim.OPTIMIZERS
    assert rows["AdamW"].state_bytes(10**6) == 8 * 10**6
    assert rows["AdamW8bit"].state_bytes(2**20) == 2 * 2**20 * (1 + 4 / 256)
    assert rows["AdamW8bit"].state_bytes(4095) == rows["AdamW"].state_bytes(4095)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_a_row_says_whether_parameters_can_be_stepped_alone(name):
    """All at once, or each on its own while the others have no gradient: the same, or not."""
    recipe = toy_recipe(name)
    if name == "DAdaptAdaGrad":
        recipe = recipe.replace(optimizer_args=("d0=0.01",))  # from its own 1e-6 the step size does not grow within 20 steps
    ends = []
    for alone in (False, True):
        model, loss = toy()
        built = optim.optimizer(recipe, model.parameters())
        for _ in range(20):
            loss().backward()
            if alone:
                gradients = [(p, p.grad) for p in model.parameters()]
                built.zero_grad()
                for p, p.grad in gradients:
                    built.step()
                    p.grad = None
            else:
                built.step()
                built.zero_grad()
        ends.append(model.weight.detach().clone())
    assert torch.equal(*ends) == optim.OPTIMIZERS[name].alone
    assert torch.allclose(*ends, atol=1e-4) == optim.OPTIMIZERS[name].alone


def test_rates_say_where_they_come_from():
    for row in optim.OPTIMIZERS.values():
        assert row.rates.source
        for rates in (row.rates.full, row.rates.lora):
            assert rates is None or 0 < rates[0] <= rates[1]


def test_the_packages_are_those_the_tests_run_with():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = {*project["dependencies"], *project["optional-dependencies"]["dev"]}
    assert {row.package for row in optim.OPTIMIZERS.values()} <= listed


def test_the_default_is_adafactor_at_a_fixed_rate():
    built = optim.optimizer(Recipe(), parameters())
    assert type(built) is Adafactor
    group = built.param_groups[0]
    assert (group["lr"], group["relative_step"], group["scale_parameter"], group["warmup_init"]) == (1e-4, False, False, False)
    built = optim.optimizer(Recipe(optimizer_args=(*MANUAL, "factoring='last-two'", "stochastic_rounding=False")), parameters())
    assert (built.param_groups[0]["factoring"], built.param_groups[0]["stochastic_rounding"]) == ("last-two", False)


def test_arguments_are_taken_and_defaults_give_way():
    built = optim.optimizer(plain("AdamW", optimizer_args=("weight_decay=0.5", "betas=(0.8, 0.9)")), parameters())
    assert type(built) is torch.optim.AdamW
    assert (built.param_groups[0]["weight_decay"], built.param_groups[0]["betas"]) == (0.5, (0.8, 0.9))
    group = optim.optimizer(plain("SGDNesterov"), parameters()).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, True)
    group = optim.optimizer(plain("SGDNesterov", optimizer_args=("momentum=0.5",)), parameters()).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.5, True)


def test_other_names_are_torchs_or_dotted_paths():
    assert type(optim.optimizer(plain("RAdam"), parameters())) is torch.optim.RAdam
    assert type(optim.optimizer(plain("torch.optim.NAdam"), parameters())) is torch.optim.NAdam
    built = optim.optimizer(plain("torch.optim.SGD"), parameters())
    assert built.param_groups[0]["momentum"] == 0  # the class itself, not what SGDNesterov makes of it
    built = optim.optimizer(plain("transformers.optimization.Adafactor", optimizer_args=("relative_step=False",)), parameters())
    assert type(built) is transformers.optimization.Adafactor
    built = optim.optimizer(plain("AdEMAMix8bit"), parameters())
    assert type(built).__name__ == "AdEMAMix8bit"
    assert optim.row("bitsandbytes.optim.AdEMAMix8bit").slots == 3
    assert optim.row("torch.optim.SGD") is None


def test_groups_keep_their_own_rates():
    first, second = Parameter(torch.ones(2)), Parameter(torch.ones(3))
    built = optim.optimizer(plain("AdamW"), ({"params": group} for group in ([first], iter([second]))))
    assert [group["params"] for group in built.param_groups] == [[first], [second]]
    built = optim.optimizer(plain("AdamW"), [{"params": first, "lr": 1.0}, {"params": [second]}])
    assert [group["lr"] for group in built.param_groups] == [1.0, 1e-4]
    with pytest.raises(ValueError, match=r"Prodigy finds one step size.*\[0.5, 1.0\]"):
        optim.optimizer(plain("Prodigy", learning_rate=1.0), [{"params": [first], "lr": 0.5}, {"params": [second]}])
    built = optim.optimizer(AUTOMATIC, [{"params": [first], "lr": 0.5}])
    assert built.param_groups[0]["lr"] is None  # it chooses its own


def test_a_small_rate_for_an_adaptive_optimizer_is_warned_of():
    with pytest.warns(UserWarning, match=r"Prodigy finds its own step size.*learning_rate=0.0001: 1.0 is usual"):
        optim.optimizer(plain("Prodigy"), parameters())


# what is refused


@pytest.mark.parametrize("arguments", [(), ("relative_step=True",), ("scale_parameter=False",)])
def test_an_adafactor_that_ignores_the_learning_rate_is_refused(arguments):
    with pytest.raises(ValueError, match=r"relative_step=False\" to optimizer_args, or set lr_warmup_steps=0 and leave"):
        optim.optimizer(Recipe(optimizer_args=arguments), parameters())


def test_warmup_init_makes_the_step_relative():
    arguments = ("relative_step=False", "warmup_init=True")
    with pytest.raises(ValueError, match=r'"relative_step=False" and "warmup_init=False" to optimizer_args'):
        optim.optimizer(Recipe(optimizer_args=arguments), parameters())
    group = optim.optimizer(AUTOMATIC.replace(optimizer_args=arguments), parameters()).param_groups[0]
    assert (group["lr"], group["relative_step"], group["warmup_init"]) == (None, True, True)


@pytest.mark.parametrize("changes", [{"lr_warmup_steps": 5}, {"others": {"lr_scheduler_type": "StepLR"}}])
def test_the_automatic_rate_goes_with_its_own_schedule_alone(changes):
    built = optim.optimizer(AUTOMATIC, parameters())
    for make in (lambda: optim.optimizer(AUTOMATIC.replace(**changes), parameters()), lambda: schedule_of(built, **changes)):
        with pytest.raises(ValueError, match="chooses its own learning rate"):
            make()


def test_the_automatic_rate_stands_in_for_any_schedule():
    """As in sd-scripts, which puts its own in the place of lr_scheduler."""
    built = optim.optimizer(AUTOMATIC.replace(lr_scheduler="cosine"), parameters())
    assert isinstance(schedule_of(built, lr_scheduler="cosine"), optim.RelativeStep)


def schedule_of(optimizer, **changes):
    return optim.schedule(AUTOMATIC.replace(**changes), optimizer, steps=10)


@pytest.mark.parametrize("argument", ["relative_step=false", "eps=", "eps=(1,", "eps=print(1)", "eps=1=2"])
def test_arguments_are_literals(argument):
    with pytest.raises(ValueError, match=r"is not a Python literal; write|exactly one = in each; write") as refused:
        optim.optimizer(Recipe(optimizer_args=(argument,)), parameters())
    assert argument in str(refused.value)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Adafactor", ("relative_step=False", "betas=(0.9, 0.99)"), r"optimizer_args=.*betas.*it has beta1"),
        ("Adafactor", ("relative_step=False", "factoring='rows'"), "factoring='rows'"),
        ("AdamW", ("lr=1.0",), "lr is set by the recipe itself"),
        ("AdamW", ("beta1=0.9",), "takes no 'beta1'"),
        ("AdamW", ("max_grad_norm=1.0",), "a setting of its own, max_grad_norm"),
        ("AdamW", ("betas=(0.9, 1.5)",), "refuses them: Invalid beta parameter"),
        ("SGDNesterov", ("nesterov=False",), "nesterov is set by the recipe itself"),
        ("SGDNesterov", ("momentum=0.0",), "Nesterov momentum requires a momentum"),
        ("torch.optim.NAdam", ("beta1=0.9",), "takes no 'beta1'"),
        ("transformers.optimization.Adafactor", ("relative_step=True",), "refuses them.*Cannot combine"),
    ],
)
def test_arguments_the_optimizer_does_not_take(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        optim.optimizer(plain(name, optimizer_args=arguments), parameters())


def test_a_constructor_that_leaves_the_process_is_refused(monkeypatch):
    """lion_pytorch calls exit() where triton is missing."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "lion_pytorch.triton", raising=False)
    with pytest.raises(ValueError, match="Lion refuses them: SystemExit"):
        optim.optimizer(plain("Lion", optimizer_args=("use_triton=True",)), parameters())


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no_such_package.Optimizer", ImportError, "No module named 'no_such_package'.*pip install"),
        ("prodigyplus.ProdigyPlusScheduleFree", ImportError, "pip install prodigy-plus-schedule-free"),
        ("torch.optim.AdmW", ValueError, "did you mean 'AdamW'"),
        ("torch.optim.Optimizer", ValueError, "has no Optimizer of that name"),
        ("torch.nn.Linear", ValueError, "torch.nn has no Optimizer of that name.*there are none"),
        ("torch.optim.adamw.", ValueError, "dotted path of a class"),
        (".AdamW", ValueError, "dotted path of a class"),
        ("LBFGS", ValueError, "several times in a step"),
        ("torch.optim.SparseAdam", ValueError, "sparse gradients only"),
    ],
)
def test_a_path_that_leads_to_no_optimizer(name, error, message):
    with pytest.raises(error, match=message):
        optim.optimizer(plain(name), parameters())


def test_unknown_names_show_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'AdamW8bit'"):
        Recipe(optimizer_type="Adam8bit")
    with pytest.raises(ValueError, match=r"did you mean 'inverse_sqrt'.*there are linear"):
        Recipe(lr_scheduler="invers_sqrt")


@pytest.mark.parametrize("name", [name for name, row in optim.OPTIMIZERS.items() if not row.package.startswith("torch")])
def test_a_missing_package_is_named(name, monkeypatch):
    row = optim.OPTIMIZERS[name]
    for module in [module for module in sys.modules if module.partition(".")[0] == row.path.partition(".")[0]]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, row.path.partition(".")[0], None)
    with pytest.raises(ImportError, match=rf'{name} needs {row.package}: pip install "{row.package}"'):
        optim.optimizer(plain(name, learning_rate=1.0), parameters())


def test_a_package_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.49.2")
    with pytest.raises(ImportError, match=r'pip install "bitsandbytes>=0.50" \(0.49.2 is installed\)'):
        optim.optimizer(plain("AdamW8bit"), parameters())


def test_parameters_are_looked_at():
    p = Parameter(torch.ones(3, 2))
    for empty in ([], iter(()), [{"params": []}]):
        with pytest.raises(ValueError, match="no parameters to train"):
            optim.optimizer(Recipe(), empty)
    for twice in ([p, p], [{"params": [p]}, {"params": [p]}]):
        with pytest.raises(ValueError, match=r"\(3, 2\) is listed twice"):
            optim.optimizer(Recipe(), twice)
    with pytest.raises(ValueError, match=r"tuple among the parameters: give model.parameters\(\)"):
        optim.optimizer(Recipe(), Linear(2, 2).named_parameters())


def test_an_old_flag_beside_the_name_is_refused():
    with pytest.raises(ValueError, match="exclude optimizer_type='Adafactor'"):
        optim.optimizer(Recipe(others={"use_8bit_adam": True}), parameters())


# schedules

N, W, LR = 40, 5, 1e-3
END = 1e-7 / LR
"""Where sd-scripts' polynomial ends."""


def down(i, start=W, end=N):
    return (i - start) / (end - start)


def wave(x):
    return 0.5 * (1 + math.cos(math.pi * x))


def warmed(after):
    return lambda i: i / W if i < W else after(i)


def stable(i):
    if i < W:
        return 0.1 + 0.9 * i / W
    return 1.0 if i < 30 else 0.1 + 0.9 * wave((i - 30) / 10)


CASES = {
    "constant": ({}, lambda i: 1.0),
    "constant_with_warmup": ({}, warmed(lambda i: 1.0)),
    "linear": ({}, warmed(lambda i: 1 - down(i))),
    "cosine": ({}, warmed(lambda i: wave(down(i)))),
    "cosine twice": ({"lr_scheduler_args": ["num_cycles=1.5"]}, warmed(lambda i: wave(3 * down(i)))),
    "cosine_with_restarts": ({"lr_scheduler_num_cycles": 3}, warmed(lambda i: wave(3 * down(i) % 1))),
    "cosine_with_min_lr": ({"lr_scheduler_min_lr_ratio": 0.1}, warmed(lambda i: 0.1 + 0.9 * wave(down(i)))),
    "cosine_with_min_lr twice": (
        {"lr_scheduler_min_lr_ratio": 0.2, "lr_scheduler_num_cycles": 3},
        warmed(lambda i: 0.2 + 0.8 * wave(3 * down(i))),
    ),
    "polynomial": ({}, warmed(lambda i: (1 - END) * (1 - down(i)) + END)),
    "polynomial squared": ({"lr_scheduler_power": 2.0}, warmed(lambda i: (1 - END) * (1 - down(i)) ** 2 + END)),
    "inverse_sqrt": ({}, warmed(lambda i: math.sqrt(W / i))),
    "inverse_sqrt of 20": ({"lr_scheduler_timescale": 20}, warmed(lambda i: math.sqrt(20 / (i + 20 - W)))),
    "warmup_stable_decay": ({"lr_decay_steps": 10, "lr_scheduler_min_lr_ratio": 0.1}, stable),
    "warmup_stable_decay by share": ({"lr_decay_steps": 0.25, "lr_scheduler_min_lr_ratio": 0.1}, stable),
    "piecewise_constant": (
        {"lr_scheduler_args": ["step_rules='1:10,0.5:30,0.1'"]},
        lambda i: 1.0 if i < 10 else 0.5 if i < 30 else 0.1,
    ),
}
"""Other settings, and the share of the learning rate at step i, by its definition."""


def case(text):
    name = text.split()[0]
    warmup = W if "num_warmup_steps" in schedules.HANDED[name] else 0
    return plain("AdamW", learning_rate=LR, lr_scheduler=name, lr_warmup_steps=warmup, others=CASES[text][0])


def series(schedule, steps=N):
    """The learning rate of each step."""
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return rates


def rates_of(recipe, steps=N):
    return series(optim.schedule(recipe, torch.optim.SGD(parameters(), lr=recipe.learning_rate), steps=steps), steps)


def test_every_schedule_has_its_definition_here():
    assert {text.split()[0] for text in CASES} == set(optim.SCHEDULES)


@pytest.mark.parametrize("text", CASES)
def test_schedules_are_what_their_definition_says(text):
    expected = [LR * CASES[text][1](i) for i in range(N)]
    assert rates_of(case(text)) == pytest.approx(expected, rel=1e-12, abs=1e-18)


SPECIFIC = {
    "cosine_with_restarts": {"num_cycles": 3},
    "cosine_with_min_lr": {"min_lr_rate": 0.1, "num_cycles": 0.5},
    "inverse_sqrt": {},
    "polynomial": {"power": 1},
    "warmup_stable_decay": {"num_stable_steps": 25, "num_decay_steps": 10, "min_lr_ratio": 0.1, "num_cycles": 0.5},
}


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_schedules_are_the_libraries(name):
    theirs = torch.optim.SGD(parameters(), lr=LR)
    if name == "piecewise_constant":
        built = diffusers.optimization.get_scheduler(name, theirs, step_rules="1:10,0.5:30,0.1")
    else:
        built = transformers.get_scheduler(name, theirs, W, N, SPECIFIC.get(name))
    assert rates_of(case(name)) == series(built)
    if name in [kind.value for kind in diffusers.optimization.SchedulerType] and name != "piecewise_constant":
        given = {"num_cycles": 3} if name == "cosine_with_restarts" else {}
        built = diffusers.optimization.get_scheduler(
            name, torch.optim.SGD(parameters(), lr=LR), num_warmup_steps=W, num_training_steps=N, **given
        )
        assert rates_of(case(name)) == pytest.approx(series(built), rel=1e-12)


UPDATES = json.loads((ROOT / "tests" / "recorded" / "updates_of_sd_scripts.json").read_text())


@pytest.mark.parametrize("name", dict.fromkeys(settings["lr_scheduler"] for settings, _ in UPDATES["schedules"]))
@pytest.mark.filterwarnings("ignore:.*warmup")
def test_schedules_are_sd_scripts_own(name):
    """Every name with every setting: taken or refused as by its get_scheduler_fix, with the same rates; by benchmarks/record_updates.py."""
    for settings, expected in UPDATES["schedules"]:
        if settings["lr_scheduler"] == name:
            rules = ("step_rules='1:3,0.1:6,0.01'",) if name == "piecewise_constant" else ()
            try:
                found = rates_of(plain("AdamW", learning_rate=1e-3, lr_scheduler_args=rules, **{"lr_warmup_steps": 0, **settings}), 8)
            except ValueError:
                found = None
            assert found == (None if isinstance(expected, str) else expected), settings


def test_piecewise_constant_says_that_it_has_no_warmup():
    recipe = plain("AdamW", lr_scheduler="piecewise_constant", lr_warmup_steps=3, lr_scheduler_args=("step_rules='1:3,0.1'",))
    with pytest.warns(UserWarning, match="lr_warmup_steps is ignored"):
        rates_of(recipe)


def test_a_class_of_torch_or_a_dotted_path():
    for kind in ("CosineAnnealingLR", "torch.optim.lr_scheduler.CosineAnnealingLR"):
        recipe = plain("AdamW", learning_rate=LR, others={"lr_scheduler_type": kind, "lr_scheduler_args": ["T_max=40", "eta_min=1e-4"]})
        assert rates_of(recipe) == pytest.approx([1e-4 + 9e-4 * wave(i / N) for i in range(N)])
    recipe = plain("AdamW", learning_rate=LR, others={"lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=10", "gamma=0.5"]})
    assert rates_of(recipe) == pytest.approx([LR * 0.5 ** (i // 10) for i in range(N)])


def test_a_warmup_is_steps_a_share_or_a_percentage():
    by_steps, by_share, by_percentage = (rates_of(Recipe(lr_warmup_steps=warmup), 20) for warmup in (5, 0.25, "25%"))
    assert by_steps == by_share == by_percentage
    assert by_steps[:7] == pytest.approx([0, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4, 1e-4])
    with pytest.warns(UserWarning, match="the warmup takes 20 steps"):  # 1.0, in a file, is the whole run, as in sd-scripts
        assert rates_of(Recipe(lr_warmup_steps=1.0), 20)[10] == pytest.approx(5e-5)


def test_groups_keep_their_proportions():
    trained = [{"params": [Parameter(torch.ones(2))], "lr": lr} for lr in (1e-3, 1e-4)]
    built = optim.schedule(case("cosine"), optimizer := torch.optim.SGD(trained, lr=1e-3), steps=N)
    for _ in range(20):
        optimizer.step()
        built.step()
    first, second = built.get_last_lr()
    assert first == pytest.approx(10 * second)
    assert 0 < first < 1e-3


def test_the_schedule_counts_optimizer_steps(tiny, ink):
    """Accumulated batches neither stretch the warmup nor shift the decay."""
    series = []
    for rounds in (1, 2):
        recipe = plain("AdamW", lr_scheduler="linear", lr_warmup_steps=2, train_batch_size=1, gradient_accumulation_steps=rounds)
        sd = dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet))
        series.append([step.learning_rate for step in sdnb.train(sd, ink[:2], recipe, steps=5)])
    assert series[0] == series[1]
    assert series[0] == pytest.approx([0, 5e-5, 1e-4, 1e-4 * 2 / 3, 1e-4 / 3])


@pytest.mark.parametrize("name", [name for name in optim.OPTIMIZERS if name.endswith("ScheduleFree")])
def test_a_schedule_free_optimizer_keeps_its_rate(name):
    recipe = plain(name, learning_rate=LR)
    built = optim.optimizer(recipe, parameters())
    assert built.param_groups[0]["train_mode"]
    assert series(optim.schedule(recipe, built, steps=N)) == [LR] * N
    with pytest.warns(UserWarning, match=f"{name} needs no schedule: lr_scheduler and lr_warmup_steps are ignored"):
        ignored = optim.schedule(recipe.replace(lr_scheduler="cosine", lr_warmup_steps=5), built, steps=N)
    assert series(ignored) == [LR] * N


# Adafactor's own rate


@pytest.mark.parametrize("arguments", [(), ("scale_parameter=False",), ("warmup_init=True",)])
def test_the_automatic_rate_is_reported(arguments):
    """min(0.01 or 1e-6 t, 1/√t), times the root mean square of the first parameter; and as transformers reports it."""
    recipe = AUTOMATIC.replace(optimizer_args=arguments)
    ours, theirs = (Parameter(torch.full((3, 2), 0.5)) for _ in range(2))
    built = optim.optimizer(recipe, [ours])
    schedule = optim.schedule(recipe, built, steps=5)
    given = {text.partition("=")[0]: text.endswith("True") for text in arguments}
    reference = transformers.optimization.Adafactor([theirs], **given)
    proxy = transformers.optimization.AdafactorSchedule(reference)
    assert math.isnan(schedule.get_last_lr()[0])
    for t in range(1, 6):
        size = 1.0 if "scale_parameter=False" in arguments else ours.detach().square().mean().sqrt().item()
        expected = size * min(1e-6 * t if arguments == ("warmup_init=True",) else 1e-2, 1 / math.sqrt(t))
        for p, optimizer, scheduler in ((ours, built, schedule), (theirs, reference, proxy)):
            p.grad = p.detach() + torch.arange(6.0).view(3, 2)
            optimizer.step()
            scheduler.step()
        assert schedule.get_last_lr() == pytest.approx([expected], rel=1e-5)
        assert schedule.get_last_lr() == pytest.approx([float(rate) for rate in proxy.get_last_lr()], rel=1e-5)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_number_behind_adafactor_is_the_rate():
    recipe = Recipe(lr_scheduler="adafactor:2e-3", lr_warmup_steps=0)
    built = optim.optimizer(recipe, parameters())
    assert series(optim.schedule(recipe, built, steps=5), 5) == [2e-3] * 5
    assert built.param_groups[0]["lr"] == 2e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_scheduler": "adafactor"}, "reports what relative_step=True chose"),
        ({"lr_scheduler": "adafactor:fast"}, 'write "adafactor:1e-4"'),
        ({"lr_scheduler": "adafactor:0"}, 'write "adafactor:1e-4"'),
        ({"lr_scheduler": "adafactor:1e-3", "optimizer_args": ("relative_step=False",)}, 'add "scale_parameter=False"'),
        ({"lr_scheduler": "adafactor", "optimizer_type": "AdamW", "optimizer_args": ()}, "AdamW goes with another"),
    ],
)
def test_an_adafactor_schedule_that_cannot_be(changes, message):
    recipe = Recipe(lr_warmup_steps=0, **changes)
    with pytest.raises(ValueError, match=message):
        optim.schedule(recipe, optim.optimizer(recipe, parameters()), steps=5)


# what is refused


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_scheduler": "constant"},
        {"lr_scheduler": "adafactor:1e-3"},
        {"others": {"lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=3"]}},
    ],
)
def test_a_warmup_that_would_be_ignored_is_refused(changes):
    with pytest.raises(ValueError, match="has no warmup: set lr_warmup_steps=0"):
        optim.schedule(Recipe(**changes), optim.optimizer(Recipe(), parameters()), steps=200)


@pytest.mark.parametrize(
    ("name", "others", "message"),
    [
        ("cosine_with_min_lr", {}, "One of min_lr or min_lr_rate should be set"),
        ("cosine", {"lr_scheduler_args": ["num_cycles=fast"]}, "lr_scheduler_args has 'num_cycles=fast'"),
        ("cosine", {"lr_scheduler_args": ["cycles=1"]}, "cosine takes no 'cycles'"),
        ("cosine_with_restarts", {"lr_scheduler_args": ["num_cycles=2"]}, "num_cycles is set by the recipe itself"),
        ("polynomial", {"lr_scheduler_args": ["lr_end=1.0"]}, "must be smaller than initial lr"),
        ("piecewise_constant", {}, "missing 1 required positional argument: 'step_rules'"),
        ("piecewise_constant", {"lr_scheduler_args": ["step_rules='1-100'"]}, "could not convert string to float: '1-100'"),
        ("warmup_stable_decay", {"lr_decay_steps": 100.0}, "lr_decay_steps=100.0: it must be"),
        ("warmup_stable_decay", {"lr_decay_steps": "10%"}, "lr_decay_steps='10%': it must be"),
        ("warmup_stable_decay", {"lr_decay_steps": -1}, "lr_decay_steps=-1: it must be"),
        ("reduce_lr_on_plateau", {}, "which it does not take"),
        ("inverse_sqrt", {"lr_scheduler_timescale": 0}, "ZeroDivisionError"),
        ("constant", {"lr_scheduler_type": "ReduceLROnPlateau"}, "wants metrics at each step"),
        ("constant", {"lr_scheduler_type": "CosineAnealingLR"}, "did you mean 'CosineAnnealingLR'"),
        ("constant", {"lr_scheduler_type": "CosineAnnealingLR"}, "missing 1 required positional argument: 'T_max'"),
        (
            "constant",
            {"lr_scheduler_type": "torch.optim.lr_scheduler.CosineAnnealingLR"},
            "missing 1 required positional argument: 'T_max'",
        ),
        ("constant", {"lr_scheduler_type": "LambdaLR", "lr_scheduler_args": ["lr_lambda=1"]}, "LambdaLR.*with"),
        ("constant", {"lr_scheduler_type": "torch.nn.Linear"}, "torch.nn has no LRScheduler of that name"),
    ],
)
def test_settings_the_schedule_does_not_take(name, others, message):
    with pytest.raises(ValueError, match=message):
        recipe = plain("AdamW", lr_scheduler=name, others=others)
        optim.schedule(recipe, optim.optimizer(recipe, parameters()), steps=200)


def test_a_missing_package_of_a_schedule_is_named():
    recipe = plain("AdamW", others={"lr_scheduler_type": "no_such_package.Schedule"})
    with pytest.raises(ImportError, match="No module named 'no_such_package'"):
        optim.schedule(recipe, optim.optimizer(recipe, parameters()), steps=5)


def test_a_warmup_beyond_the_run_is_warned_of():
    with pytest.warns(UserWarning, match=r"warmup takes 100 steps and the run has 20: the learning rate only reaches 19% of 0.0001"):
        rates = rates_of(Recipe(), 20)
    assert rates[-1] == pytest.approx(0.19e-4)
    with pytest.warns(UserWarning, match="reaches 95%"):
        rates_of(Recipe(lr_warmup_steps=20), 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rates_of(Recipe(lr_warmup_steps=19), 20)[-1] == 1e-4


def test_a_decay_that_overlaps_the_warmup_is_warned_of():
    recipe = case("warmup_stable_decay").replace(others={"lr_decay_steps": 38})
    with pytest.warns(UserWarning, match="take 43 steps and the run has 40: the learning rate jumps down"):
        rates = rates_of(recipe)
    assert max(rates[W:]) < LR


def test_a_polynomial_needs_steps_after_its_warmup():
    with pytest.raises(ValueError, match="set lr_warmup_steps below 20"):
        rates_of(plain("AdamW", lr_scheduler="polynomial", lr_warmup_steps=20), 20)


def test_a_run_goes_on_from_its_states():
    """Optimizer and schedule saved and loaded into new ones give the same rates."""
    recipe = case("cosine")
    whole = rates_of(recipe)
    built = torch.optim.SGD(parameters(), lr=LR)
    first = optim.schedule(recipe, built, steps=N)
    head = series(first, 15)
    again = torch.optim.SGD(parameters(), lr=LR)
    second = optim.schedule(recipe, again, steps=N)
    again.load_state_dict(built.state_dict())
    second.load_state_dict(first.state_dict())
    assert list(itertools.chain(head, series(second, 25))) == whole
