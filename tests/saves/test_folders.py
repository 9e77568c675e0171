"""A save holds any optimizer's state without pickles, and is complete or not there."""

import math

import numpy
import pytest
import torch

from sdnb import Recipe, optim
from sdnb.saves import folders, packing


def test_a_tree_comes_back_as_it_was():
    shared = torch.arange(4.0)
    tree = {
        "a": [1, 2.5, None, True, "täxt", math.inf, (1, (2, shared))],
        3: {"nested": shared, "half": torch.ones(2, 3, dtype=torch.bfloat16), "bytes": torch.arange(5, dtype=torch.uint8)},
        "numpy": numpy.array([1, 2**32 - 1], dtype=numpy.uint32),
        "type": torch.bfloat16,
        "number": numpy.float64(0.1),
    }
    tensors = {}
    packed = packing.pack(tree, "state", tensors)
    assert len(tensors) == 4  # the shared one once
    back = packing.unpack(packed, {name: tensor.clone() for name, tensor in tensors.items()})
    assert list(back) == ["a", 3, "numpy", "type", "number"]
    assert back["a"][:6] == tree["a"][:6]
    assert isinstance(back["a"][6], tuple)
    assert torch.equal(back[3]["nested"], shared)
    assert back[3]["nested"] is back["a"][6][1][1]
    assert back[3]["half"].dtype == torch.bfloat16
    assert back["numpy"].dtype == numpy.uint32
    assert back["numpy"].tolist() == [1, 2**32 - 1]
    assert (back["type"], back["number"]) == (torch.bfloat16, 0.1)
    assert math.isnan(packing.unpack(packing.pack(math.nan, "x", {}), {}))
    with pytest.raises(ValueError, match=r"state\.f is a function"):
        packing.pack({"f": lambda: 0}, "state", {})


@pytest.mark.parametrize("kind", [name for name in optim.OPTIMIZERS if not name.startswith("Paged")])
@pytest.mark.filterwarnings("ignore")
def test_every_optimizer_goes_on_as_if_it_had_not_stopped(kind, tmp_path):
    def made():
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(80, 80)), torch.nn.Parameter(torch.randn(80))]
        arguments = Recipe().optimizer_args if kind == "Adafactor" else ()
        return parameters, optim.optimizer(Recipe(optimizer_type=kind, optimizer_args=arguments, learning_rate=1e-2), parameters)

    def step(parameters, optimizer, number):
        generator = torch.Generator().manual_seed(number)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()

    try:
        parameters, optimizer = made()
    except ImportError as error:
        pytest.skip(str(error))
    for number in range(2):
        step(parameters, optimizer, number)
    weights = {str(place): p for place, p in enumerate(parameters)}
    folders.write(tmp_path, steps=2, weights=weights, progress={"optimizer": optimizer.state_dict()}, owner={})
    others, another = made()
    save = folders.latest(tmp_path)
    with torch.no_grad():
        for place, p in enumerate(others):
            p.copy_(save.weights()[str(place)])
    another.load_state_dict(save.progress()["optimizer"])
    for number in range(2, 5):
        step(parameters, optimizer, number)
        step(others, another, number)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(others, parameters, strict=True))


def test_random_generators_go_on():
    states = packing.random_states()
    tensors = {}
    packed = packing.pack(states, "random", tensors)

    def draws():
        import random

        return torch.rand(2).tolist(), random.random(), numpy.random.rand()  # noqa: NPY002

    first = draws()
    draws()
    packing.set_random_states(packing.unpack(packed, {name: tensor.clone() for name, tensor in tensors.items()}))
    assert draws() == first


def test_unfinished_saves_are_cleared_and_do_not_count(tmp_path):
    for steps in (1, 2, 30):
        folders.write(tmp_path, steps=steps, weights={"w": torch.ones(1)}, progress={}, owner={})
    (tmp_path / "step-00000040.partial").mkdir()
    (tmp_path / "step-00000030-old.partial").mkdir()
    assert folders.latest(tmp_path).steps == 30
    folders.clear(folders.prepare(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002", "step-00000030"]
    folders.write(tmp_path, steps=30, weights={"w": torch.zeros(1)}, progress={}, owner={})  # again
    assert folders.latest(tmp_path).weights()["w"] == 0
    folders.prune(tmp_path, keeps=lambda step: step == 2)
    assert [path.name for path in folders.found(tmp_path)] == ["step-00000002", "step-00000030"]
