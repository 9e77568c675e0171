"""`peak(weights, activations)`: what a reader may write, and what the grader says of it."""

import pytest

from sdnb.course.building import grade
from sdnb.course.building.moments import TEMPTING


def as_in_the_solution(weights, activations):
    state, gradients, temporaries = 2 * weights, weights, weights
    return max(weights + state + activations, weights + state + gradients + temporaries)


def shorter(weights, activations):
    return 3 * weights + max(activations, 2 * weights)


@pytest.mark.parametrize("answer", [as_in_the_solution, shorter])
def test_right_ones(answer):
    assert grade("02.3", answer) is None


@pytest.mark.parametrize(("name", "answer"), TEMPTING.items())
def test_tempting_ones_are_told_apart(name, answer):
    assert grade("02.3", answer).name == name


def test_another_one_is_told_where_it_differs():
    fault = grade("02.3", lambda weights, activations: max(4 * weights, 3 * weights + activations))
    assert (fault.name, fault.values) == ("differs", {"weights": "1", "activations": "0.25", "found": "4"})
    assert grade("02.3", lambda weights: weights).name == "signature"
    assert grade("02.3", 16.8).name == "not_callable"
