"""Code of readers is run without harm, and whatever comes of it is told: errors with their line, loops that never end, odd answers."""

import ast
import contextlib
import inspect
import json
import random
import re
import sys
import warnings
from importlib import import_module

import numpy as np
import pytest
import torch

import sdnb
from sdnb.course import building, languages
from sdnb.course.building import grade, grading

from ...conftest import ROOT

each_exercise = pytest.mark.parametrize("exercise", building.GRADERS)


def raising(error):
    def answer(*args, **settings):
        raise error

    return answer


def endless(*args, **settings):
    while True:
        with contextlib.suppress(Exception):
            pass


def grown(*args, **settings):
    return grown(*args, **settings)


def line_of(function, text):
    lines, first = inspect.getsourcelines(function)
    return next(first + place for place, line in enumerate(lines) if text in line)


@each_exercise
@pytest.mark.parametrize("error", [RuntimeError("no,\nreally"), SystemExit(3), AssertionError(), KeyError("x"), StopIteration()], ids=repr)
def test_an_error_is_told_with_its_line(exercise, error):
    fault = grade(exercise, raising(error))
    assert fault.name == "raised"
    assert fault.values["line"] == line_of(raising, "raise error")
    assert fault.values["code"] == "raise error"
    assert fault.values["error"].startswith(type(error).__name__)
    assert "\n" not in fault.values["error"]


@each_exercise
def test_other_arguments_than_the_cell_gave_it(exercise):
    for answer in (lambda: None, lambda one, *, two: None, type("Empty", (), {})):
        assert grade(exercise, answer).name in ("signature", "a_class")
        assert len(building.verdict(exercise, answer)) > 40


def test_an_error_in_what_torch_makes_of_the_result():
    """A wrong number of gradients is seen by torch, not by a line of the reader's."""

    class Short(torch.autograd.Function):
        @staticmethod
        def forward(ctx, block, *inputs):
            return block(*inputs).detach()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    fault = grade("03.3", lambda block, *inputs: Short.apply(block, *inputs))
    assert fault.name == "raised_elsewhere"
    assert "gradients" in fault.values["error"]


@each_exercise
def test_code_that_never_ends_is_stopped(exercise, monkeypatch):
    monkeypatch.setattr(grading, "SECONDS", 0.2)
    fault = grade(exercise, endless)
    assert fault.name == "too_slow"
    assert line_of(endless, "while") <= fault.values["line"] <= line_of(endless, "pass")


@each_exercise
def test_code_that_calls_itself_for_ever(exercise):
    assert grade(exercise, grown).values["error"].startswith("RecursionError")


def test_stop_still_stops():
    with pytest.raises(KeyboardInterrupt):
        grade("03.3", raising(KeyboardInterrupt()))


@each_exercise
@pytest.mark.parametrize("answer", [3, "choose", [], None, torch.ones(2)], ids=repr)
def test_what_is_no_code(exercise, answer):
    assert grade(exercise, answer).name == "not_callable"


ODD = {
    "nothing": lambda *args, **settings: None,
    "a number": lambda *args, **settings: 3,
    "what it is given": lambda *args, **settings: args[0],
    "a tensor": lambda *args, **settings: torch.ones(2, 3),
    "NaN": lambda *args, **settings: torch.full((3, 5, 6), torch.nan, requires_grad=True),
    "itself": lambda *args, **settings: ODD,
    "a class": dict,
    "no arguments": lambda: None,
    "a module": torch.nn.Identity,
}


@each_exercise
@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_has_a_fault_and_a_text(exercise, name):
    said = building.verdict(exercise, ODD[name])
    assert isinstance(said, str)
    assert len(said) > 20


@each_exercise
def test_code_that_is_not_written_yet(exercise, capsys):
    def answer(*args, **settings):
        raise NotImplementedError

    assert building.verdict(exercise, answer) is None
    sdnb.check(exercise, answer)
    assert capsys.readouterr().out == f"… {exercise} waits for your answer.\n"


def test_what_torch_has_not_implemented_is_an_error():
    def answer(*args, **settings):
        raise NotImplementedError("Could not run 'aten::empty'")

    assert grade("03.3", answer).values["error"].startswith("NotImplementedError: Could not run")


def test_state_is_as_before():
    """Also after code that changes all of it, and ends with an error."""

    def answer(*args, **settings):
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        warnings.simplefilter("error")
        sys.settrace(None)
        raise ValueError

    def state():
        generators = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        return generators, torch.get_default_dtype(), torch.is_grad_enabled(), list(warnings.filters), sys.gettrace()

    torch.rand(3)
    before = state()
    for exercise in building.GRADERS:
        for attempt in (answer, ODD["a tensor"]):
            grade(exercise, attempt)
            assert state() == before
    with torch.no_grad():
        grade("03.3", ODD["a tensor"])
        assert not torch.is_grad_enabled()


def test_a_default_dtype_of_the_reader_does_not_matter():
    from .test_low_rank import Lora

    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            assert grade("08.1", Lora) is None
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


# Texts


@each_exercise
def test_every_fault_has_a_text_and_every_text_a_fault(exercise):
    module = import_module(f"sdnb.course.building.{building.GRADERS[exercise]}")
    tree = ast.parse(inspect.getsource(module))
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    calls = [node.args[0] for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Fault"]
    literal = {call.value for call in calls if isinstance(call, ast.Constant)}
    choices = [part for call in calls if isinstance(call, ast.IfExp) for part in (call.body, call.orelse)]
    literal |= {part.value for part in choices if isinstance(part, ast.Constant)}
    says = languages.exercise(exercise)["says"]
    assert literal <= set(says)
    assert {f"during_{check.__name__}" for check in module.CHECKS} == {name for name in says if name.startswith("during_")}
    built = {f"{kind}_{end}" for kind in ("input", "parameter") for end in ("missing", "twice", "wrong")} if exercise == "03.3" else set()
    assert {name for name in says if not name.startswith("during_")} <= words | built


@each_exercise
def test_hints_name_checks_that_there_are(exercise):
    """Those without a name are for answers that no check was run on."""
    named = {check for hint in languages.exercise(exercise)["hints"] for check in hint.get("at", [])}
    checks = {check.__name__ for check in import_module(f"sdnb.course.building.{building.GRADERS[exercise]}").CHECKS}
    assert named in (set(), checks)
    assert any("at" not in hint for hint in languages.exercise(exercise)["hints"])


# Lessons


def written_cells():
    """Code cells of the lessons in which the reader writes code, by exercise."""
    cells = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if "raise NotImplementedError" in source and (match := re.search(r'^sdnb\.check\("(.*?)"', source, re.MULTILINE)):
                cells[match[1]] = source
    return cells


def test_each_is_asked_in_its_lesson():
    assert set(written_cells()) == set(building.GRADERS)


@each_exercise
def test_the_cell_as_it_stands_waits(exercise, capsys):
    exec(compile(written_cells()[exercise], f"<{exercise}>", "exec"), {"sdnb": sdnb, "torch": torch})
    assert capsys.readouterr().out == f"… {exercise} waits for your answer.\n"
