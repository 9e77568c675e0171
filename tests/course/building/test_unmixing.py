"""The clean latents from a velocity: what a reader may write, and what the grader says of it."""

import pytest

from sdnb.course.building import grade


def right(x_t, v, alpha_t, sigma_t):
    return alpha_t * x_t - sigma_t * v


@pytest.mark.parametrize("answer", [right, lambda x, v, a, s: (a * x - s * v) / (a**2 + s**2)])
def test_a_right_function_passes(answer):
    assert grade("01.3", answer) is None


WRONG = {
    "the_noise": lambda x, v, a, s: s * x + a * v,
    "as_from_noise": lambda x, v, a, s: (x - s * v) / a,
    "plus": lambda x, v, a, s: a * x + s * v,
    "negative": lambda x, v, a, s: s * v - a * x,
    "not_finite": lambda x, v, a, s: (x - s * (s * x + a * v)) / a,
    "other": lambda x, v, a, s: x,
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_named(told, fault):
    assert grade("01.3", WRONG[fault]).name == fault
    assert len(told("01.3", WRONG[fault]).splitlines()) >= 2


@pytest.mark.parametrize("answer", [lambda x, v, a, s: None, lambda x, v, a, s: x[0]])
def test_a_result_of_another_shape_is_described(told, answer):
    assert "should be a tensor of shape [2, 4, 3, 5]" in told("01.3", answer)
