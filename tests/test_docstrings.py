"""Docstrings: there is one wherever a reader may look, it names what is raised, and its examples are true."""

import ast
import doctest
import functools
import importlib
import inspect
import re
import textwrap

import pytest

from .conftest import ROOT
from .test_package import ROOMS

EXAMPLES = 9
"""How many there are at least, so that the run of examples is known to find them."""


def members(room):
    """The public functions and classes of a room, and their public methods and properties: the name, and what has the docstring."""
    module = importlib.import_module(f"sdnb.{room}")
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isroutine(value) or inspect.isclass(value):
            yield name, value
        if inspect.isclass(value):
            for part, member in vars(value).items():
                kind = property | functools.cached_property | classmethod | staticmethod
                if not part.startswith("_") and (inspect.isfunction(member) or isinstance(member, kind)):
                    yield f"{name}.{part}", inspect.getattr_static(value, part)


def described(owner, member, part):
    """The docstring, or that of the method which this one overrides."""
    said = inspect.getdoc(member)
    return said or next(
        (inspect.getdoc(vars(base)[part]) for base in owner.__mro__ if part in vars(base) and vars(base)[part].__doc__), None
    )


@pytest.mark.parametrize("room", ROOMS)
def test_whatever_is_public_has_a_docstring(room):
    module, bare = importlib.import_module(f"sdnb.{room}"), []
    for name, member in members(room):
        owner, _, part = name.rpartition(".")
        if not (described(getattr(module, owner), member, part) if owner else inspect.getdoc(member)):
            bare.append(name)
    assert bare == []


def raised(function):
    """The names of what the body of a function raises itself, in no function inside it."""
    names, parts = set(), list(function.body)
    while parts:
        part = parts.pop()
        if isinstance(part, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(part, ast.Raise) and part.exc is not None:
            error = part.exc.func if isinstance(part.exc, ast.Call) else part.exc
            names.add(ast.unparse(error).rpartition(".")[2])
        parts += ast.iter_child_nodes(part)
    return names


def silent(code):
    """The public functions and methods in some code that raise, and whose docstring does not say so."""
    found = []

    def look(node, above):
        for part in node.body:
            if isinstance(part, ast.ClassDef) and not part.name.startswith("_"):
                look(part, f"{above}{part.name}.")
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                said = ast.get_docstring(part) or ""
                unsaid = [name for name in sorted(raised(part)) if name not in said]
                if unsaid and not re.search(r"\b[Rr]aises?\b", said):
                    found.append((above + part.name, unsaid))

    look(ast.parse(code), "")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_raised_is_said(room):
    assert silent((ROOT / "sdnb" / f"{room.replace('.', '/')}.py").read_text(encoding="utf-8")) == []


def test_a_function_that_raises_unsaid_is_found():
    code = 'def f(x):\n    """{}"""\n    if x:\n        raise errors.Full("x")\n    def inner():\n        raise KeyError\n'
    assert silent(code.format("Do it.")) == [("f", ["Full"])]
    assert silent("class A:\n" + textwrap.indent(code.format("Do it."), "    ")) == [("A.f", ["Full"])]
    for enough in ("Raises when x.", "`Full` when x."):
        assert silent(code.format(enough)) == []


def test_the_examples_are_true():
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for room in ROOMS:
        for example in finder.find(importlib.import_module(f"sdnb.{room}"), f"sdnb.{room}"):
            assert runner.run(example).failed == 0, example.name
    assert runner.tries >= EXAMPLES
