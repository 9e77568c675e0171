"""What code calls in the libraries below it, found by reading the code, and whether the libraries still take those calls.

A call is followed as far as imports, assignments and annotations tell whose it is: `sd = sdnb.load("tiny")` is a `StableDiffusion`
because `load` says so, `sd.unet` a `UNet2DConditionModel` because that class does, and so `sd.unet(x, t)` is a call of its `forward`.
What cannot be told is left out.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import re
import types
import typing
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ("accelerate", "diffusers", "peft", "torch", "transformers")
SAME_AS_ITS_ARGUMENT = {"copy.copy", "copy.deepcopy", "dataclasses.replace", "iter", "list", "reversed", "sorted", "tuple"}
SAME_AS_ITS_OWNER = {"bfloat16", "cpu", "cuda", "eval", "float", "half", "requires_grad_", "to", "train"}
BASES = {"LRScheduler", "Module", "Optimizer"}
"""Annotations that stand for any of their subclasses, which may have more."""
MARKS = {
    "/": inspect.Parameter.POSITIONAL_ONLY,
    "": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "*": inspect.Parameter.VAR_POSITIONAL,
    "-": inspect.Parameter.KEYWORD_ONLY,
    "**": inspect.Parameter.VAR_KEYWORD,
}


@dataclass(frozen=True)
class Use:
    """One place where a library is used. Without `positional` it is only named there."""

    where: str
    text: str
    path: str
    positional: int | None = None
    keywords: frozenset[str] = frozenset()
    more_positional: bool = False
    """There is a `*arguments` of unknown length."""
    more_keywords: bool = False
    bound: bool = False
    """The call is of a method of an instance, so `self` is given."""


# What a name may stand for, when it can be told; else None.


@dataclass(frozen=True)
class Named:
    """The object that a dotted path leads to."""

    path: str
    bound: bool = False


@dataclass(frozen=True)
class Made:
    """An instance of the class that a dotted path leads to."""

    path: str


@dataclass(frozen=True)
class Several:
    """Something to go over, with such elements."""

    of: Made


@dataclass(frozen=True)
class Keys:
    """A dictionary with these keys."""

    names: frozenset[str]


def in_code(units: Iterable[tuple[str, str]], module: str = "") -> list[Use]:
    """The uses in pieces of code that share their names, as the cells of a notebook do.

    `units` are pairs of where and code; where may hold `{line}`. `module` is the module's own name, when it is one.
    """
    reader = _Reader(module)
    for where, code in units:
        reader.unit(where, code)
    return reader.uses


def describe(path: str) -> inspect.Signature | None:
    """How the object at a path is called, as installed; None where it does not say. Raises `LookupError` if there is no such thing."""
    value, names = resolve(path), path.split(".")
    if value is _FIELD or not callable(value):
        return None
    try:
        return inspect.signature(value)
    except (ValueError, TypeError):
        return _operator(names[-1]) if names[0] == "torch" and not isinstance(value, type) else None


def written(signature: inspect.Signature | None) -> list[str] | None:
    """A signature as words: `a`, `a=` with a default, `/a` by position only, `-a` by name only, `*a` and `**a`."""
    marks = {kind: mark for mark, kind in MARKS.items()}
    if signature is None:
        return None
    return [marks[p.kind] + p.name + "=" * (p.default is not p.empty) for p in signature.parameters.values()]


def read(words: list[str] | None) -> inspect.Signature | None:
    """`written`, backwards."""
    if words is None:
        return None
    parts = [re.fullmatch(r"(/|-|\*{0,2})(\w+)(=?)", word).groups() for word in words]
    return inspect.Signature(
        [inspect.Parameter(name, MARKS[mark], default=0 if default else inspect.Parameter.empty) for mark, name, default in parts]
    )


def complaint(use: Use, signature: inspect.Signature | None) -> str | None:
    """Why a signature does not take this call; None where it does."""
    if signature is None or use.positional is None:
        return None
    parameters = list(signature.parameters.values())
    if use.bound and parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        signature = signature.replace(parameters=(parameters := parameters[1:]))
    kinds = {parameter.kind for parameter in parameters}
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if inspect.Parameter.VAR_KEYWORD not in kinds and (unknown := sorted(use.keywords - named)):
        return f"has no parameter {', '.join(unknown)}"
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if inspect.Parameter.VAR_POSITIONAL not in kinds and use.positional > len(by_position):
        return f"takes {len(by_position)} arguments by position, not {use.positional}"
    if use.more_positional or use.more_keywords:
        return None
    try:
        signature.bind(*range(use.positional), **dict.fromkeys(use.keywords))
    except TypeError as error:
        return str(error)
    return None


def resolve(path: str):
    """The object at a dotted path. Raises `LookupError` if there is no such thing."""
    value, names = None, path.split(".")
    for at, name in enumerate(names):
        value = _step(value, ".".join(names[: at + 1]), name)
    return value


_FIELD = object()  # stands for what only an instance has


def _step(owner, path: str, name: str):
    """The attribute of an object, or the module of that path."""
    if owner is None:
        return importlib.import_module(path)
    try:
        return getattr(owner, name)
    except AttributeError:
        if isinstance(owner, types.ModuleType):
            try:
                return importlib.import_module(path)
            except ImportError:
                pass
        if isinstance(owner, type) and _has_field(owner, name):
            return _FIELD
        raise LookupError(path) from None


@functools.cache
def _has_field(owner: type, name: str) -> bool:
    """Whether the class gives its instances an attribute of that name."""
    if issubclass(owner, Mapping) or name in inspect.signature(owner.__init__).parameters:
        return True  # a tokenizer's output has its keys as attributes, a model's configuration its arguments
    if "SPECIAL_TOKENS_ATTRIBUTES" in dir(owner) and name.removesuffix("_id") in owner.SPECIAL_TOKENS_ATTRIBUTES:
        return True
    for base in owner.__mro__[:-1]:
        if name in getattr(base, "__annotations__", {}):
            return True
        try:
            if re.search(rf"\bself\.{name}\b[^=\n(]*=[^=]|register_buffer\(\s*[\"']{name}\b", inspect.getsource(base)):
                return True
        except (OSError, TypeError):  # written in C
            continue
    return False


def _operator(name: str) -> inspect.Signature | None:
    """The names that any overload of torch's operator takes; how many may come by position is not told."""
    import torch

    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return None
    names = {argument.name for each in packet.overloads() for argument in getattr(packet, each)._schema.arguments}
    names |= {"out", "requires_grad", "size", "dim", "dtype", "device"}
    parameters = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=0) for n in sorted(names - {"self", "from"})]
    return inspect.Signature([inspect.Parameter("arguments", inspect.Parameter.VAR_POSITIONAL), *parameters])


def _is_library(path: str) -> bool:
    return path.partition(".")[0] in LIBRARIES


def _path(owner: type) -> str:
    """Where a class is to be had, by the shortest path that holds."""
    top = owner.__module__.partition(".")[0]
    short = getattr(importlib.import_module(top), owner.__name__, None) if top in (*LIBRARIES, "sdnb") else None
    return f"{top}.{owner.__name__}" if short is owner else f"{owner.__module__}.{owner.__qualname__}"


def _known(owner) -> Made | None:
    if isinstance(owner, type) and owner.__module__.partition(".")[0] in (*LIBRARIES, "sdnb"):
        return Made(_path(owner))
    return None


def _from_annotation(annotation, space: Mapping, owner: Made | None = None):
    """What an annotation promises: an instance, several of them, or None where it does not tell."""
    if isinstance(annotation, str):
        try:
            annotation = ast.parse(annotation, mode="eval").body
        except SyntaxError:
            return None
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _from_annotation(annotation.value, space, owner)
    if isinstance(annotation, ast.BinOp):
        return _first(_from_annotation(side, space, owner) for side in (annotation.left, annotation.right))
    if isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation.value).rpartition(".")[2]
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return _generic(name, [_from_annotation(each, space, owner) for each in inner])
    if isinstance(annotation, ast.Name | ast.Attribute):
        first, *rest = ast.unparse(annotation).split(".")
        if first == "Self":
            return owner
        found = space.get(first)
        try:
            found = resolve(".".join([found.path, *rest])) if isinstance(found, Named) else functools.reduce(getattr, rest, found)
        except (LookupError, AttributeError, ImportError):
            return None
        return owner if isinstance(found, typing.TypeVar) else _known(found)
    if isinstance(annotation, typing.TypeVar) or annotation is typing.Self:
        return owner
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _first(_from_annotation(each, space, owner) for each in typing.get_args(annotation))
    if origin := typing.get_origin(annotation):
        return _generic(getattr(origin, "__name__", ""), [_from_annotation(each, space, owner) for each in typing.get_args(annotation)])
    return _known(annotation)


def _first(values: Iterable):
    return next((value for value in values if value is not None), None)


def _generic(name: str, inner: list):
    if name in ("Optional", "Union"):
        return _first(inner)
    if name in ("Iterable", "Iterator", "Generator", "Sequence", "list", "List", "set") and isinstance(inner[0], Made):
        return Several(inner[0])
    return None


@functools.cache
def _space(module: str) -> dict:
    """The names of a module, with those that only its type checker imports."""
    found = importlib.import_module(module)
    space = dict(vars(found))
    if module.partition(".")[0] == "sdnb":
        for node in ast.walk(ast.parse(inspect.getsource(found))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                space |= dict(_imported(node, module))
    return space


def _imported(node: ast.Import | ast.ImportFrom, module: str) -> Iterator[tuple[str, Named]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield (alias.asname, Named(alias.name)) if alias.asname else (alias.name.partition(".")[0], Named(alias.name.partition(".")[0]))
        return
    above = module.split(".")[: -node.level] if node.level else []
    for alias in node.names:
        yield alias.asname or alias.name, Named(".".join([*above, *filter(None, [node.module]), alias.name]))


class _Reader:
    """Goes through code in the order in which it runs, and keeps what each name stands for."""

    def __init__(self, module: str):
        self.module, self.uses, self.names = module, [], ChainMap()
        self.where, self.later, self.classes = "", [], []

    def unit(self, where: str, code: str) -> None:
        self.where = where
        self.block(ast.parse(code).body)
        while self.later:  # a function runs when the names of its module are there
            names, node, owner = self.later.pop(0)
            self.function(names, node, owner)

    # statements

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name, value in _imported(node, self.module):
                self.names[name] = value
                self.use(node, value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for each in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
                self.value(each)
            self.names[node.name] = Named(f"{self.module}.{node.name}") if self.module and not self.classes and self.top else None
            self.later.append((self.names, node, self.classes[-1] if self.classes else None))
        elif isinstance(node, ast.ClassDef):
            for each in [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]:
                self.value(each)
            known = Named(f"{self.module}.{node.name}") if self.module and self.top else None
            self.names[node.name] = known
            self.classes.append(known)
            self.inside(lambda: self.block(node.body))
            self.classes.pop()
        elif isinstance(node, ast.If):
            self.value(node.test)
            self.branches(node.body, node.orelse)
        elif isinstance(node, ast.Assign):
            value = self.value(node.value)
            for target in node.targets:
                self.bind(target, value, node.value)
        elif isinstance(node, ast.AnnAssign):
            value = self.value(node.value) if node.value else None
            self.bind(node.target, value or _from_annotation(node.annotation, self.space()))
        elif isinstance(node, ast.For | ast.AsyncFor):
            value = self.value(node.iter)
            self.bind(node.target, value.of if isinstance(value, Several) else None)
            self.block([*node.body, *node.orelse])
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                value = self.value(item.context_expr)
                if item.optional_vars:
                    self.bind(item.optional_vars, value if isinstance(value, Made) else None)
            self.block(node.body)
        else:
            for child in ast.iter_child_nodes(node):
                self.child(child)

    @property
    def top(self) -> bool:
        return len(self.names.maps) == 1

    def child(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            self.statement(node)
        elif isinstance(node, ast.expr):
            self.value(node)
        else:  # a handler of an exception, a case of a match
            for child in ast.iter_child_nodes(node):
                self.child(child)

    def branches(self, *branches: list[ast.stmt]) -> None:
        """Each on its own; afterwards a name stands for something where all that go on agree."""
        ends, outer = [], self.names
        for branch in branches:
            self.names = outer.new_child()
            self.block(branch)
            if not (branch and isinstance(branch[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)):
                ends.append(self.names)
        self.names = outer
        for name in {name for end in ends for name in end.maps[0]}:
            values = [end.get(name) for end in ends]
            new = [value for end, value in zip(ends, values, strict=True) if name in end]
            outer[name] = new[0] if all(value == new[0] for value in new) else None

    def inside(self, work) -> None:
        self.names = self.names.new_child()
        work()
        self.names = self.names.parents

    def function(self, names: ChainMap, node, owner: Named | None) -> None:
        self.names, outer = names.new_child(), self.names
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in [*arguments, *filter(None, [node.args.vararg, node.args.kwarg])]:
            self.names[argument.arg] = _from_annotation(argument.annotation, self.space()) if argument in arguments else None
        decorators = {ast.unparse(each) for each in node.decorator_list}
        if owner and arguments and "staticmethod" not in decorators:
            self.names[arguments[0].arg] = owner if "classmethod" in decorators else Made(owner.path)
        classes, self.classes = self.classes, []
        self.block(node.body)
        self.names, self.classes = outer, classes

    def space(self) -> Mapping:
        return ChainMap(self.names, _space(self.module)) if self.module else self.names

    def bind(self, target: ast.expr, value, node: ast.expr | None = None) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            pairs = isinstance(node, ast.Tuple | ast.List) and len(node.elts) == len(target.elts)
            for at, each in enumerate(target.elts):
                self.bind(each, self.quietly(node.elts[at]) if pairs else None)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, None)
        elif isinstance(target, ast.Attribute | ast.Subscript):
            self.value(target.value)

    def quietly(self, node: ast.expr):
        """What an expression stands for that has been read before."""
        before = len(self.uses)
        value = self.value(node)
        del self.uses[before:]
        return value

    # expressions

    def value(self, node: ast.expr):
        """What an expression stands for; the uses in it are noted on the way."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.attribute(node, self.value(node.value))
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.NamedExpr):
            self.bind(node.target, value := self.value(node.value))
            return value
        if isinstance(node, ast.IfExp):
            _, one, other = (self.value(each) for each in (node.test, node.body, node.orelse))
            return one if one == other else None
        if isinstance(node, ast.Lambda):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            names = {argument.arg: None for argument in filter(None, arguments)}
            self.inside(lambda: (self.names.update(names), self.value(node.body)))
            return None
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            return self.comprehension(node)
        if isinstance(node, ast.Dict):
            values = [self.value(each) for each in [*filter(None, node.keys), *node.values]]
            given = all(isinstance(key, ast.Constant) for key in node.keys)
            return Keys(frozenset(key.value for key in node.keys)) if given and values else None
        if isinstance(node, ast.Subscript):
            value, _ = self.value(node.value), self.value(node.slice)
            return value.of if isinstance(value, Several) and not isinstance(node.slice, ast.Slice) else None
        for child in ast.iter_child_nodes(node):
            self.child(child)
        return None

    def comprehension(self, node):
        found = []

        def work():
            for part in node.generators:
                value = self.value(part.iter)
                self.bind(part.target, value.of if isinstance(value, Several) else None)
                for test in part.ifs:
                    self.value(test)
            for each in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
                found.append(self.value(each))

        self.inside(work)
        return Several(found[0]) if isinstance(found[0], Made) and not isinstance(node, ast.DictComp) else None

    def attribute(self, node: ast.Attribute, owner):
        if isinstance(owner, Named) and not owner.bound:
            return self.use(node, Named(f"{owner.path}.{node.attr}"))
        if not isinstance(owner, Made):
            return None
        path, cls = f"{owner.path}.{node.attr}", resolve(owner.path)
        static = inspect.getattr_static(cls, node.attr, None)
        if static is None and cls.__name__ in BASES and not _has_field(cls, node.attr):
            return None
        self.use(node, Named(path))
        if isinstance(static, property):
            return _from_annotation(*self.annotated(static.fget), owner)
        if isinstance(static, functools.cached_property):
            return _from_annotation(*self.annotated(static.func), owner)
        if static is not None and (callable(static) or isinstance(static, classmethod | staticmethod)):
            return Named(path, bound=not isinstance(static, classmethod | staticmethod))
        for base in getattr(cls, "__mro__", ())[:-1]:
            for said in (base, base.__init__):
                if node.attr in (hints := getattr(said, "__annotations__", {})):
                    return _from_annotation(hints[node.attr], _space(base.__module__), owner)
        return None

    def annotated(self, function) -> tuple:
        """What a function says it returns, and the names in which it says so."""
        function = inspect.unwrap(function)
        said = getattr(function, "__annotations__", {}).get("return")
        return said, _space(function.__module__) if said is not None else {}

    def call(self, node: ast.Call):
        function = self.value(node.func)
        values = [self.value(each) for each in node.args]
        given = [(keyword.arg, self.value(keyword.value)) for keyword in node.keywords]
        name = ast.unparse(node.func)
        if isinstance(function, Made):
            cls = resolve(function.path)
            function = Named(f"{function.path}.{'forward' if hasattr(cls, 'forward') else '__call__'}", bound=True)
        if name.rpartition(".")[2] == "patch" and node.args and isinstance(node.args[0], ast.Constant):
            self.use(node, Named(str(node.args[0].value)))
        if isinstance(function, Named) and function.path == "functools.partial" and isinstance(values[0], Named):
            self.note(node, values[0], node.args[1:], given, partial=True)
            return None
        if isinstance(function, Named):
            self.note(node, function, node.args, given)
            return self.result(function, values)
        if name == "dict" and not node.args and all(key for key, _ in given):
            return Keys(frozenset(key for key, _ in given))
        if name == "next" and values and isinstance(values[0], Several):
            return values[0].of
        return values[0] if name in SAME_AS_ITS_ARGUMENT and values else None

    def note(self, node: ast.Call, function: Named, arguments: list[ast.expr], given: list, partial: bool = False) -> None:
        if not _is_library(function.path):
            return
        keywords = {key for key, _ in given if key}
        spread = [value for key, value in given if key is None]
        keywords |= {name for value in spread if isinstance(value, Keys) for name in value.names}
        self.uses.append(
            Use(
                self.place(node),
                ast.unparse(node),
                function.path,
                positional=sum(not isinstance(each, ast.Starred) for each in arguments),
                keywords=frozenset(keywords),
                more_positional=partial or any(isinstance(each, ast.Starred) for each in arguments),
                more_keywords=partial or not all(isinstance(value, Keys) for value in spread),
                bound=function.bound,
            )
        )

    def result(self, function: Named, values: list):
        if function.path in SAME_AS_ITS_ARGUMENT:
            return values[0] if values else None
        above, _, last = function.path.rpartition(".")
        if function.path.partition(".")[0] not in (*LIBRARIES, "sdnb"):
            return None
        try:
            found = resolve(function.path)
            owner = resolve(above) if above else None
        except (LookupError, ImportError):
            return None
        if isinstance(found, type):
            return Made(_path(found) if not _is_library(function.path) else function.path)
        if isinstance(owner, type) and (last.startswith("from_") or (function.bound and last in SAME_AS_ITS_OWNER)):
            return Made(above)
        if not inspect.isroutine(found):
            return None
        return _from_annotation(*self.annotated(found), Made(above) if isinstance(owner, type) else None)

    def use(self, node: ast.AST, value: Named) -> Named:
        if _is_library(value.path):
            self.uses.append(Use(self.place(node), ast.unparse(node), value.path))
        return value

    def place(self, node: ast.AST) -> str:
        return self.where.replace("{line}", str(node.lineno))


def in_the_course(root: Path) -> list[Use]:
    """The uses in the code cells of the notebooks and in the package, of the checkout at `root`."""
    uses = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        uses += in_code((f"{path.name}, cell {cell['id']}", "".join(cell["source"])) for cell in cells)
    for path in sorted((root / "sdnb").rglob("[!_]*.py")):
        place = path.relative_to(root)
        uses += in_code([(f"{place.as_posix()}, line {{line}}", path.read_text(encoding="utf-8"))], ".".join(place.with_suffix("").parts))
    return uses
