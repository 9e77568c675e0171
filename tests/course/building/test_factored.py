"""`adafactor_step(X, G, state, t, lr, …)`: what a reader may write, and what the grader says of it."""

import pytest
import torch
from transformers.optimization import Adafactor as TransformersAdafactor

import sdnb
from sdnb.course import exercises
from sdnb.course.building import grade
from sdnb.course.building.factored import Reference, _tensors


def rms(tensor):
    return tensor.square().mean().sqrt()


class Step:
    """A step written as a reader may write it, with one thing done otherwise."""

    def __init__(self, otherwise=""):
        self.otherwise = otherwise

    def __call__(self, X, G, state, t, lr, d=1.0, scale_parameter=False):
        beta2 = 0.999 if self.otherwise == "beta" else 1 - t**-0.8
        if self.otherwise == "forgets":
            state.clear()
        if self.otherwise == "clips the gradient":
            G = G / max(1, rms(G) / d)
        eps = 0 if self.otherwise == "no eps" else 1e-30
        M = G if G.ndim == 1 or self.otherwise == "last two" else G.reshape(len(G), -1)
        squares = M.square_() if self.otherwise == "in place" else M.square()
        sides = (
            {"V": squares + eps}
            if M.ndim == 1 or self.otherwise == "all of V"
            else {"R": squares.mean(-1) + eps, "C": squares.mean(-2) + eps}
        )
        for name, side in sides.items():
            old, new = (1 - beta2, beta2) if self.otherwise == "swapped" else (beta2, 1 - beta2)
            state[name] = old * state.get(name, 0) + new * side
        if self.otherwise == "keeps V":
            state["gradient"] = G.clone()
        if M.ndim == 1 or self.otherwise == "all of V":
            V = state["V"]
        else:
            R, C = state["R"], state["C"]
            V = R[..., :, None] * C[..., None, :]
            V = V if self.otherwise == "no mean" else V / R.mean(-1)[..., None, None]
            V = V.mT if self.otherwise == "columns as rows" else V
        U = G / (V if self.otherwise == "no root" else V.sqrt()).reshape(G.shape)
        if self.otherwise == "clamps":
            U = U.clamp(-d, d)
        elif self.otherwise not in ("no clip", "clips the gradient"):
            U = U / max(1, rms(U) / (1 if self.otherwise == "no d" else d))
        size = max(0 if self.otherwise == "zero" else 1e-3, rms(X)) if scale_parameter and self.otherwise != "no scale" else 1
        if self.otherwise == "a new tensor":
            return X - lr * size * U
        X -= lr * size * U * (-1 if self.otherwise == "uphill" else 1)
        return None


def as_in_the_lesson(X, G, state, t, lr, d=1.0, scale_parameter=False):
    """For matrices alone."""
    R, C = state.setdefault("R", torch.zeros(X.shape[0])), state.setdefault("C", torch.zeros(X.shape[1]))
    beta2 = 1 - t**-0.8
    R.copy_(beta2 * R + (1 - beta2) * (G**2 + 1e-30).mean(1))
    C.copy_(beta2 * C + (1 - beta2) * (G**2 + 1e-30).mean(0))
    U = G / (R[:, None] * C[None, :] / R.mean()).sqrt()
    X -= lr * U / max(1, rms(U) / d)


RIGHT = [Step()]


def test_a_right_one():
    assert grade("04.1", Step()) is None


WRONG = {
    "no root": (Step("no root"), "no_root", "root of V"),
    "no mean": (Step("no mean"), "no_mean", "mean of R"),
    "no clipping": (Step("no clip"), "no_clip", "was not scaled down"),
    "the gradient clipped": (Step("clips the gradient"), "gradient_clipped", "before it was divided"),
    "d ignored": (Step("no d"), "d_ignored", "d=0.5"),
    "beta2 fixed": (Step("beta"), "beta_fixed", "starts at 0"),
    "beta2 the wrong way round": (Step("swapped"), "not_finite", "multiplies the old means"),
    "forgets": (Step("forgets"), "state_lost", "from one step to the next"),
    "windows as matrices": (Step("last two"), "last_two", "last two dimensions"),
    "matrices alone": (as_in_the_lesson, "raised", "IndexError"),
    "a new tensor": (Step("a new tensor"), "not_in_place", "in place"),
    "the gradient squared in place": (Step("in place"), "gradient_changed", "changed the gradient"),
    "uphill": (Step("uphill"), "uphill", "subtract"),
    "no least size": (Step("zero"), "scale_unbounded", "0.001"),
    "scale_parameter ignored": (Step("no scale"), "scale_ignored", "scale_parameter"),
    "no eps": (Step("no eps"), "nan", "NaN"),
    "each number clipped": (Step("clamps"), "values_clipped", "each number of the update"),
    "V in full": (Step("all of V"), "not_factored", "kept in full"),
    "columns as rows": (Step("columns as rows"), "transposed", "are swapped"),
    "the gradient kept": (Step("keeps V"), "state_too_large", "18 numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_ones(name, told):
    answer, fault, text = WRONG[name]
    assert grade("04.1", answer).name == fault
    assert text in told("04.1", answer)


@pytest.mark.parametrize(
    ("otherwise", "hint"), [("no mean", "R and C now come from `state`"), ("no d", "argument d"), ("zero", "before this step")]
)
def test_hints_are_about_what_fails(otherwise, hint, told, monkeypatch):
    monkeypatch.setattr(exercises, "_tries", {})
    assert hint in told("04.1", Step(otherwise))
    assert hint not in told("04.1", Step(otherwise))


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (9,), (6, 4, 3, 3)])
def test_the_reference_is_adafactor(shape, scale):
    """As this package has it, and, where their factoring is the same, as transformers has it."""
    X, *gradients = _tensors(shape, 6)
    wanted = Reference(scale_parameter=scale).run(X, gradients)
    for kind in (sdnb.Adafactor, TransformersAdafactor):
        parameter = torch.nn.Parameter(X.clone())
        optimizer = kind([parameter], lr=1e-2, relative_step=False, scale_parameter=scale)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        if kind is sdnb.Adafactor or len(shape) < 4:
            torch.testing.assert_close(parameter.detach().double(), wanted, rtol=1e-4, atol=1e-6)
        else:
            theirs = Reference(scale_parameter=scale, factoring="last-two").run(X, gradients)
            torch.testing.assert_close(parameter.detach().double(), theirs, rtol=1e-4, atol=1e-6)
