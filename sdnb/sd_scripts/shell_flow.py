"""Variables and lists that a script of bash or PowerShell has set when its command begins, its plain conditions followed.

Scripts such as lora-scripts' keep their settings in variables, and put a flag into a list under a condition:

    if [[ $min_snr_gamma -ne 0 ]]; then extArgs+=("--min_snr_gamma $min_snr_gamma"); fi

Here such lines are read in their order, and nothing is run. What a loop, a function or a condition that is not understood might set, such
as a test of a file, is forgotten.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .shell import BASH, POWERSHELL
from .shell_variables import SETS

Value = str | float | bool | list | None
MOST = 2000
"""Statements of a script, letters of a condition, and words of a list; with more, nothing is told."""
LONGEST = 10_000
"""Letters of a value."""
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le,
    "==": operator.eq, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip
WORD = re.compile(r"""(?: "[^"]*" | '[^']*' | [^\s"'()] )+""", re.VERBOSE)
PART = re.compile(r"""" (?P<double>[^"]*) " | ' (?P<single>[^']*) ' | (?P<bare>[^"']+)""", re.VERBOSE)
REFERENCE = re.compile(r"\$(?:env:)?(?:(\w+)|\{(\w+)\})", re.IGNORECASE)
TEST = re.compile(r"(\[\[?)\s+(.*?)\s+\]\]?")
OF_BASH = re.compile(r"(?:export\s+|declare\s+|local\s+|readonly\s+)?([A-Za-z_]\w*)(\+?=)(.*)", re.DOTALL)
OF_POWERSHELL = re.compile(
    r"\$(?P<name>\w+)\s*(?P<sign>\+?=)\s*(?P<value>.+)|(?:\[void\])?\s*\$(?P<list>\w+)\.Add\((?P<added>.*)\).*", re.DOTALL
)
NEW_LIST = re.compile(r"@\(\s*\)|(?:\[[\w.\[\]]+\]::new|New-Object\s+[\w.\[\]]+)\s*(?:\(\s*\))?", re.IGNORECASE)
SETS_ANYTHING = re.compile(r"(?:eval|case|select|mapfile|getopts)\b|\w+\s*\(\s*\)|(?:source|\.)\s(?!.*activate)|function\s")
"""The beginning of a statement of bash that may set anything."""


class _NotUnderstood(Exception):
    """Text whose value cannot be told."""


@dataclass(frozen=True)
class Followed:
    """What the lines before a command have set."""

    texts: dict[str, str]
    lists: dict[str, list[str]]
    sure: bool
    """Whether all of the lines were understood."""
    begun: bool
    """Whether every list begins in these lines."""


def follow(code: str, shell: str) -> Followed | None:
    """Variables and lists after the lines of `code`; None where nothing can be told of them."""
    script = {BASH: _Bash, POWERSHELL: _PowerShell}.get(shell)
    if script is None:
        return None
    run = script()
    try:
        run.read(code)
    except (_NotUnderstood, RecursionError):
        return None
    texts = {name: run.text(value) for name, value in run.values.items() if not isinstance(value, list)}
    lists = {name: [run.text(one) for one in value] for name, value in run.values.items() if isinstance(value, list)}
    return Followed(texts, lists, not (run.doubted or run.blocks), run.begun)


@dataclass
class _Block:
    """A branch of a condition, or a loop."""

    done: bool
    """Whether a branch of this condition was taken."""
    active: bool
    doubtful: bool = False
    """Whether it is not known if its lines run."""


class _Script:
    """Values so far, and the conditions that the current line stands under."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.unknown: set[str] = set()
        self.doubted, self.begun = False, True
        self.blocks: list[_Block] = []
        """The conditions and loops around the current line."""

    @property
    def active(self) -> bool:
        return all(block.active for block in self.blocks)

    @property
    def doubtful(self) -> bool:
        return any(block.doubtful for block in self.blocks)

    def open(self, condition: Callable[[], bool] | None) -> None:
        """Begin a condition, or, with None, a loop."""
        self.blocks.append(_Block(False, False))
        self.otherwise(condition)

    def otherwise(self, condition: Callable[[], bool] | None) -> None:
        """Begin the next branch of a condition."""
        if not self.blocks:
            raise _NotUnderstood
        block = self.blocks.pop()
        if block.done or not self.active:
            self.blocks.append(_Block(block.done, False))
            return
        try:
            if condition is None:
                raise _NotUnderstood
            taken, doubtful = condition(), block.doubtful
        except _NotUnderstood:
            taken = doubtful = self.doubted = True
        self.blocks.append(_Block(taken and not doubtful, taken, doubtful))

    def close(self) -> None:
        if not self.blocks:
            raise _NotUnderstood
        self.blocks.pop()

    def set(self, name: str, value: Callable[[], Value]) -> None:
        """Give a name a value; one that cannot be told is forgotten."""
        self.unknown.discard(name)
        try:
            if self.doubtful:
                raise _NotUnderstood
            self.values[name] = given = value()
            if isinstance(given, str) and len(given) > LONGEST:
                raise _NotUnderstood
        except _NotUnderstood:
            self.forget(name)

    def add(self, name: str, more: Callable[[], list[str]]) -> None:
        def longer() -> list[str]:
            before = self.value(name)
            if not isinstance(before, list):
                raise _NotUnderstood
            words = [*before, *more()]
            if len(words) > MOST:
                raise _NotUnderstood
            return words

        self.begun &= name in self.values or name in self.unknown
        if name not in self.unknown:
            self.set(name, longer)

    def forget(self, name: str) -> None:
        self.values.pop(name, None)
        self.unknown.add(name)

    def value(self, name: str) -> Value:
        """Value of a name; one in capitals that was not set may come from outside, as a script's own arguments do."""
        if name in self.unknown or (name not in self.values and (name.isupper() or name.isdigit())):
            raise _NotUnderstood
        return self.values.get(name)

    def filled(self, text: str) -> str:
        """Text with the values of its variables."""
        text = REFERENCE.sub(lambda match: self.text(self.value(self.named(match[1] or match[2]))), text)
        if re.search(r"\$[({@*#?!$-]|`", text) or len(text) > LONGEST:
            raise _NotUnderstood
        return text

    def named(self, name: str) -> str:
        return name

    def text(self, value: Value) -> str:
        if isinstance(value, list):
            raise _NotUnderstood
        return "" if value is None else str(value)

    def word(self, text: str) -> str:
        """A word without its quotes, with values in place of variables."""
        parts = PART.finditer(text)
        return "".join(self.filled(part["double"] or part["bare"] or "") if part["single"] is None else part["single"] for part in parts)

    def other(self, statement: str) -> None:
        """Forget what a statement of another kind may set."""
        for names in SETS.findall(statement):
            self.forget(self.named(names[0] or names[1]))


class _Bash(_Script):
    """A script of bash."""

    def read(self, code: str) -> None:
        statements = list(_pieces(code.replace("\\\n", " "), "\n;", ""))
        if len(statements) > MOST:
            raise _NotUnderstood
        for statement, _ in statements:
            self.statement(statement.strip())

    def statement(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        rest = rest.strip()
        if word == "if":
            self.open(lambda: self.condition(rest))
        elif word == "elif":
            self.otherwise(lambda: self.condition(rest))
        elif word == "else":
            self.otherwise(lambda: True)
            self.statement(rest)
        elif word == "then":
            self.statement(rest)
        elif word in ("for", "while", "until"):
            self.other(text)
            self.open(None)
        elif word == "do":
            self.statement(rest)
        elif word in ("fi", "done"):
            self.close()
        elif SETS_ANYTHING.match(text):
            raise _NotUnderstood
        elif not text or not self.active:
            return
        elif text[0] == "[" and len(text) < MOST and (match := re.fullmatch(r"(\[\[? .* \]\]?)\s*&&\s*(.*)", text)):
            self.open(lambda: self.condition(match[1]))
            self.statement(match[2])
            self.close()
        elif match := OF_BASH.fullmatch(text):
            self.assign(*match.groups())
        else:
            self.other(text)

    def assign(self, name: str, sign: str, value: str) -> None:
        value = value.strip()
        if value.startswith("(") and value.endswith(")"):
            put = self.add if sign == "+=" else self.set
            put(name, lambda: [self.word(word) for word in WORD.findall(value[1:-1])])
        elif sign == "+=" or (value and not WORD.fullmatch(value)):
            self.forget(name)
            self.other(value)
        else:
            self.set(name, lambda: self.word(value))

    def condition(self, text: str) -> bool:
        """Whether tests such as `[[ $x == 1 ]] || [ $y ]` hold."""
        if len(text) > MOST:
            raise _NotUnderstood
        tests = TEST.findall(text)
        between = TEST.sub("", text).split()
        signs = {*between, *re.findall(r"\|\||&&", " ".join(inside for _, inside in tests))}
        if not tests or len(signs) > 1 or not signs <= {"||", "&&"}:
            raise _NotUnderstood
        found = [self.test(part, bracket == "[") for bracket, inside in tests for part in re.split(r"\s*(?:\|\||&&)\s*", inside)]
        return any(found) if signs == {"||"} else all(found)

    def test(self, text: str, single: bool) -> bool:
        raw = WORD.findall(text)
        words = [self.word(word) for word in raw]
        if words[:1] == ["!"]:
            return not self.test(text.partition("!")[2].strip(), single)
        if single and any(word == "" and '"' not in written and "'" not in written for word, written in zip(words, raw, strict=True)):
            return False  # the empty word is not there, and the test is none
        if len(words) == 1:
            return bool(words[0])
        if len(words) == 2 and words[0] in ("-n", "-z"):
            return bool(words[1]) == (words[0] == "-n")
        if len(words) != 3 or (words[1] in ("==", "!=", "=") and re.search(r"[*?\[]", raw[2])):
            raise _NotUnderstood
        sign = words[1]
        if sign in ("==", "=", "!="):
            return COMPARISONS[sign](words[0], words[2])
        if sign.lstrip("-") not in COMPARISONS or not sign.startswith("-"):
            raise _NotUnderstood
        try:
            return COMPARISONS[sign[1:]](int(words[0] or "0"), int(words[2] or "0"))
        except ValueError:
            return False  # bash has no fractions: it complains, and goes on


class _PowerShell(_Script):
    """A script of PowerShell."""

    def named(self, name: str) -> str:
        return name.lower()

    def read(self, code: str) -> None:
        closed: _Block | None = None
        statements = list(_pieces(re.sub(r"`[ \t]*\r?\n", " ", code), "\n;", "{}"))
        if len(statements) > MOST:
            raise _NotUnderstood
        for statement, end in statements:
            text = statement.strip()
            if end == "{":
                head = re.fullmatch(r"(if|elseif|else)\s*(.*)", text, re.IGNORECASE | re.DOTALL)
                if head is None:
                    self.other(text)
                    self.open(None)
                elif head[1].lower() == "if":
                    self.open(lambda head=head: self.condition(head[2]))
                elif closed is None:
                    raise _NotUnderstood
                else:
                    self.blocks.append(closed)
                    self.otherwise(lambda head=head: not head[2] or self.condition(head[2]))
                closed = None
                continue
            if text:
                closed = None
                if self.active:
                    self.statement(text)
            if end == "}":
                if not self.blocks:
                    raise _NotUnderstood
                closed = self.blocks.pop()

    def statement(self, text: str) -> None:
        match = OF_POWERSHELL.fullmatch(text)
        if match is None:
            return None if re.match(r"\$env:", text, re.IGNORECASE) else self.other(text)
        if match["list"]:
            return self.add(match["list"].lower(), lambda: self.elements(match["added"]))
        name, value = match["name"].lower(), match["value"].strip()
        if match["sign"] == "+=":
            return self.add(name, lambda: self.elements(value))
        return self.set(name, lambda: [] if NEW_LIST.fullmatch(value) else self.expression(value))

    def elements(self, text: str) -> list[str]:
        value = self.expression(text)
        return [self.text(one) for one in value] if isinstance(value, list) else [self.text(value)]

    def expression(self, text: str) -> Value:
        """Value of texts, numbers and variables, of their sums and products, and of lists of them."""
        text = text.strip()
        if match := re.fullmatch(r"@?\((.*)\)", text, re.DOTALL):
            inside = self.expression(match[1])
            return inside if isinstance(inside, list) or text[0] != "@" else [inside]
        for sign in ",+*":
            parts = [part.strip() for part, _ in _pieces(text, sign, "")]
            if len(parts) > 1:
                return self.joined(sign, [self.expression(part) for part in parts])
        if text[:1] in "\"'" and PART.fullmatch(text):
            return self.word(text)
        if match := re.fullmatch(r"\$(\w+)", text):
            name = match[1].lower()
            return {"true": True, "false": False, "null": None}[name] if name in ("true", "false", "null") else self.value(name)
        with suppress(ValueError):
            return int(text)
        with suppress(ValueError):
            return float(text)
        raise _NotUnderstood

    def joined(self, sign: str, values: list[Value]) -> Value:
        if sign == ",":
            return values
        if sign == "+" and isinstance(values[0], str):
            return "".join(map(self.text, values))
        if sign == "*" and all(isinstance(value, int | float) for value in values):
            product: Any = 1
            for value in values:
                product *= value
            if abs(product) < 1e15:
                return product
        raise _NotUnderstood

    def condition(self, text: str) -> bool:
        text = text.strip()
        if len(text) > MOST:
            raise _NotUnderstood
        while re.fullmatch(r"\([^()]*\)", text):
            text = text[1:-1].strip()
        for sign, join in (("or", any), ("and", all)):
            parts = re.split(rf"\s+-{sign}\s+", text, flags=re.IGNORECASE)
            if len(parts) > 1:
                return join(self.condition(re.sub(r"^\((.*)\)$", r"\1", part)) for part in parts)
        if match := re.fullmatch(r"(?:!|-not\s)\s*(.*)", text, re.IGNORECASE):
            return not self.condition(match[1])
        if match := re.fullmatch(r"(.+?)\s+-[ic]?(eq|ne|gt|ge|lt|le)\s+(.+)", text, re.IGNORECASE):
            return self.compared(self.expression(match[1]), match[2].lower(), self.expression(match[3]))
        return bool(self.expression(text))

    def compared(self, left: Value, sign: str, right: Value) -> bool:
        if left is None or right is None:
            same = left is right
            return same if sign == "eq" else not same
        with suppress(TypeError, ValueError):
            if not isinstance(left, str):
                return COMPARISONS[sign](float(self.text(left)), float(self.text(right)))
        return COMPARISONS[sign](self.text(left).lower(), self.text(right).lower())


def _pieces(text: str, ends: str, alone: str) -> Iterator[tuple[str, str]]:
    """Text cut at the letters of `ends` and `alone` that stand in no quotes and no round brackets, with the letter of each cut."""
    quote, depth, start = "", 0, 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        elif depth == 0 and (letter in ends or (letter in alone and text[place - 1 : place] not in ("$", "@"))):
            yield text[start:place], letter
            start = place + 1
    if quote or depth:
        raise _NotUnderstood
    yield text[start:], ""
