"""Command lines as people paste them: split into words the way a shell would, and joined again."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field

PIECES = re.compile(
    r"""
      (?P<continued> [\\^`] [ \t]*+ \r?+ \n )
    | (?P<newline> \r?+ \n )
    | (?P<space> [ \t\r\f\v]++ )
    | (?P<operator> && | \|\| | [;|&<>] )
    | (?P<double> " (?: [^"\\] | \\. )*+ " )
    | (?P<single> ' [^']*+ ' )
    | (?P<escape> \\. )
    | (?P<plain> [^\s"'\\;|&<>^`]++ )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
WINDOWS = re.compile(r"[\^`][ \t]*+\r?+\n|(?<![A-Za-z])[A-Za-z]:\\|(?:^|\s)\.{1,2}\\\w")
VARIABLE = re.compile(r"(?<!\\)\$[A-Za-z_{(@]|(?<!\\)`")
REFERENCE = re.compile(r"\$(\w+)|\$\{(\w+)\}|%(\w+)%")
PERCENT = re.compile(r"%[A-Za-z_]\w*%")
"""A variable of cmd.exe."""
CURLY = re.compile("[“”„‟″‘’‛′]")
ASSIGNMENT = re.compile(
    r"""^[ \t]*+ (?: export[ \t]++ | set[ \t]++(")? | \$(?:env:)? )? ([A-Za-z_]\w{0,80}+) [ \t]*+ = [ \t]*+
    (?: "([^"\n$`%]{0,500}+)" | '([^'\n]{0,500}+)' | (?(1) ([^"\n$`%]{1,500}+) | ([^\s"'\#$`%;&|()]{1,500}+) ) ) "?
    [ \t]*+ (?: \#[^\n]* | ; )? \r?$""",
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
"""A line that sets a variable in bash, cmd.exe or PowerShell."""
MOST = 20
"""Variables in one word that are filled in."""
PYTHON_VARIABLE = re.compile(r"=?\{[A-Za-z_]\w*\}")


@dataclass
class Command:
    """One command: its words, and what is odd about how it was written."""

    words: list[str] = field(default_factory=list)
    variables: set[int] = field(default_factory=set)
    """Positions of the words whose value only a shell knows, such as `--learning_rate=$LR`."""
    assigned: dict[str, str] = field(default_factory=dict)
    """The variables that the same text sets, once each, to plain values."""
    start: int = 0
    end: int = 0
    """Where in the text its first word begins and its last one ends."""
    broken: int = 0
    """The line after which a shell would have ended the command, although flags follow; 0 if there is none."""
    trailing_space: bool = False
    """Whether it was a space behind the backslash that ended it."""


@dataclass
class Split:
    """A text split into commands."""

    commands: list[Command]
    unclosed: int = 0
    """The line of a quote that is never closed; 0 if all are."""
    unclosed_at: int = 0
    """Where that quote stands in the text."""
    windows: bool = False
    carets: bool = False
    """Written for cmd.exe, where single quotes are no quotes."""
    single_quotes: bool = False
    in_notebook: bool = False
    """Whether it begins with the ! of a notebook, which fills in Python's variables, also between quotes."""
    mark: str = "\\"
    """What ends a line that goes on: a backslash, ^ for cmd.exe or ` for PowerShell."""
    typographic: bool = False
    """Whether quotes or dashes of a word processor stand where a shell's should."""


def split(text: str) -> Split:
    """Split `text` into commands and words. Backslashes are kept where the text is written for Windows; nothing is expanded."""
    windows = bool(WINDOWS.search(text)) and not re.search(r"\\[ \t]*+\r?+\n", text)
    found = Split([], windows=windows, carets=bool(re.search(r"\^[ \t]*+\r?+\n", text)))
    if windows and not found.carets and re.search(r"`[ \t]*+\r?+\n", text):
        found.mark = "`"
    found.mark = "^" if found.carets else found.mark
    found.in_notebook = bool(re.search(r"^[ \t]*!", text, re.MULTILINE))
    reader = _Reader(found)
    for piece in PIECES.finditer(text):
        reader.place, reader.next_place = piece.span()
        reader.take(str(piece.lastgroup), piece.group())
    reader.end_command()
    return found


def assignments(text: str) -> dict[str, str]:
    """The variables that a text sets to plain values. One that is set to several stays out: only running it would tell which counts."""
    found: dict[str, set[str]] = {}
    for _, name, *values in ASSIGNMENT.findall(text):
        found.setdefault(name, set()).add(next((value for value in values if value), ""))
    once = {name: values.pop() for name, values in found.items() if len(values) == 1}
    return {name.lower(): value for name, value in once.items()} | once


def filled(word: str, assigned: dict[str, str]) -> str | None:
    """A word with its variables' values; None if one of them is not known, or they are too many."""
    names = [next(name for name in match if name) for match in REFERENCE.findall(word)]
    if not 0 < len(names) <= MOST or not all(name in assigned for name in names):
        return None
    word = REFERENCE.sub(lambda match: assigned[next(name for name in match.groups() if name)], word)
    return None if VARIABLE.search(word) else word


def quote(value: str, mark: str = "\\") -> str:
    """`value` as one word that the shell whose lines end in `mark` gives back unchanged."""
    if mark != "\\" and '"' not in value and not value.endswith("\\") and value.isprintable():
        return value if re.fullmatch(r"[A-Za-z0-9_@+:,./\\-]+", value) else f'"{value}"'
    if PERCENT.search(value):
        return "'" + value.replace("'", "'\"'\"'") + "'"
    if re.fullmatch(r"[A-Za-z0-9_@%+:,./-]+", value):
        return value
    if not re.search(r'["\\$`!]', value) and value.isprintable():
        return f'"{value}"'
    return shlex.quote(value)


class _Reader:
    def __init__(self, found: Split) -> None:
        self.found, self.line = found, 1
        self.command, self.word, self.variable = Command(), None, False
        self.comment = False
        self.first_of_line = True
        self.joined_at = 0
        self.place = self.next_place = self.word_start = self.word_end = 0

    def take(self, kind: str, text: str) -> None:
        if self.comment and kind not in ("newline", "continued"):
            self.line += text.count("\n")
            self.comment = "\n" not in text
            return
        handle = getattr(self, f"_{kind}")
        handle(text)
        self.line += text.count("\n")

    def add(self, text: str) -> None:
        if self.word is None:
            self.word_start = self.place
        self.word, self.word_end = (self.word or "") + text, self.next_place

    def end_word(self) -> None:
        if self.word is None:
            return
        if self.first_of_line and self.command.words == [] and self.word.startswith("-") and self.found.commands and self.joined_at:
            # a line of flags under a finished line belongs to it, although a shell would not think so
            self.command = self.found.commands.pop()
            self.command.broken = self.command.broken or self.joined_at
        if self.variable:
            self.command.variables.add(len(self.command.words))
        if not self.command.words:
            self.command.start = self.word_start
        self.command.end = self.word_end
        self.command.words.append(self.word)
        self.word, self.variable, self.first_of_line = None, False, False

    def end_command(self) -> None:
        self.end_word()
        if self.command.words:
            self.found.commands.append(self.command)
        self.command = Command()

    def _space(self, text: str) -> None:
        self.end_word()

    def _newline(self, text: str) -> None:
        self.comment = False
        self.end_command()
        self.first_of_line, self.joined_at = True, self.line

    def _continued(self, text: str) -> None:
        if self.comment or (text[0] == "\\" and self.found.windows):
            self._newline(text)
            return
        if text[1] in " \t":  # the backslash escapes the space, and the line break ends the command
            self.end_word()
            self.command.broken = self.command.broken or self.line
            self.command.trailing_space = True

    def _operator(self, text: str) -> None:
        self.end_command()
        self.joined_at = 0

    def _double(self, text: str) -> None:
        inside = text[1:-1]
        self.variable |= bool(VARIABLE.search(inside) or (self.found.windows and PERCENT.search(inside)))
        self.variable |= self.found.in_notebook and bool(PYTHON_VARIABLE.search(inside))
        self.add(inside if self.found.windows else re.sub(r'\\(["\\$`]|\r?\n)', lambda m: m[1].strip("\r\n"), inside))

    def _single(self, text: str) -> None:
        self.found.single_quotes = True
        self.add(text[1:-1])

    def _escape(self, text: str) -> None:
        self.add(text if self.found.windows else text[1:])

    def _plain(self, text: str) -> None:
        if text.startswith("#") and self.word is None:
            self.comment = True
            return
        self.variable |= bool(VARIABLE.search(text) or PERCENT.search(text) or PYTHON_VARIABLE.search(text))
        self.found.typographic |= bool(CURLY.search(text)) or (self.word is None and text[0] in "—–")
        self.add(text)

    def _other(self, text: str) -> None:
        if text in "\"'" and not self.found.unclosed:
            self.found.unclosed, self.found.unclosed_at = self.line, self.place
        elif text == "\\" or text in "^`":
            self.add(text)
