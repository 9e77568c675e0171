"""Command lines as people paste them: split into words the way their shell would, and values quoted again."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field

from .shell_patterns import (
    BASH,
    BLOCKS,
    CMD,
    CURLY,
    INSIDE,
    LAUNCHERS,
    MARKS,
    NESTED,
    OF_CMD,
    PERCENT,
    PIECES,
    POWERSHELL,
    PYTHON_VARIABLE,
    SPELT,
    VARIABLE,
    WINDOWS,
    shell_of,
)

MANY = 20
"""Quotes without an end after which none is looked for any more."""
TRIES = 5
"""Substitutions without an end, after which none is looked for any more."""


@dataclass
class Command:
    """One command: its words, and oddities of how it was written."""

    words: list[str] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    """Words as they were written, quotes included; empty where that is not known."""
    variables: set[int] = field(default_factory=set)
    """Positions of the words whose value only a shell knows, such as `--learning_rate=$LR`."""
    substitutions: set[int] = field(default_factory=set)
    """Positions of the words that only a shell can work out, such as `$(date)`."""
    spelt: set[int] = field(default_factory=set)
    """Positions of the words that a shell may replace as they are written, such as `~/pictures`."""
    assigned: dict[str, str] = field(default_factory=dict)
    """Variables that the same text sets, once each, to plain values."""
    arrays: dict[str, list[str]] = field(default_factory=dict)
    """Words of the lists that the same text sets, by how they stand among the words, such as `${extArgs[@]}`."""
    start: int = 0
    end: int = 0
    """Where in the text its first word begins and its last one ends."""
    broken: int = 0
    """Line after which a shell would have ended the command, although flags follow; 0 if there is none."""
    broken_early: bool = False
    """Whether it ends before the script, so that nothing is trained."""
    trailing_space: bool = False
    """Whether a space behind the backslash ended it."""
    single_quotes: bool = False
    open_paths: int = 0
    """Texts that end in a backslash and a quote."""

    def extend(self, other: Command) -> None:
        """Append the words of the command that follows in the text."""
        for kind in ("variables", "substitutions", "spelt"):
            getattr(self, kind).update(place + len(self.words) for place in getattr(other, kind))
        self.words += other.words
        self.raw += other.raw
        self.end, self.broken = other.end, self.broken or other.broken
        self.single_quotes |= other.single_quotes
        self.open_paths += other.open_paths


@dataclass
class Split:
    """A text split into commands."""

    commands: list[Command]
    shell: str = BASH
    """`bash`, `cmd.exe`, `PowerShell`, or `Windows` for one of the latter."""
    unclosed: int = 0
    """Line of a quote that is never closed; 0 if all are."""
    unclosed_at: int = 0
    """Where that quote stands in the text."""
    single_quotes: bool = False
    in_notebook: bool = False
    """Whether it begins with the ! of a notebook, which fills in Python's variables, also between quotes."""
    typographic: bool = False
    """Whether quotes or dashes of a word processor stand where a shell's should."""
    code: str = ""
    """Text with blanks in place of its comments and here-documents."""
    blocks: list[tuple[int, str]] = field(default_factory=list)
    """Here-documents: the line that each begins in, and its text."""

    @property
    def mark(self) -> str:
        """Mark at the end of a line that goes on."""
        return MARKS[self.shell]


def split(text: str) -> Split:
    """Commands and words of a text, by the rules of its shell. Nothing is expanded."""
    found = Split([], shell=shell_of(text))
    found.in_notebook = bool(re.search(r"^[ \t]*!", text, re.MULTILINE))
    _Reader(found, text).read()
    return found


def quote(value: str, mark: str = "\\") -> str:
    """One word that a shell reads as `value`: the shell whose lines end in `mark`, or any shell of Windows for an empty mark."""
    if mark != "\\" and value.isprintable():
        if re.fullmatch(r"[A-Za-z0-9_+:./\\-]+" if mark == "`" else r"[A-Za-z0-9_@+:,./\\-]+", value):
            return value
        if mark == "`" and re.search('["$`]', value):
            return "'" + value.replace("'", "''") + "'"
        if mark == "`":
            return f'"{value}"'
        return '"' + value.replace('"', '\\"') + ("\\" if value.endswith("\\") else "") + '"'
    if PERCENT.search(value):
        return "'" + value.replace("'", "'\"'\"'") + "'"
    if re.fullmatch(r"[A-Za-z0-9_@%+:,./-]+", value):
        return value
    if not re.search(r'["\\$`!]', value) and value.isprintable():
        return f'"{value}"'
    return shlex.quote(value)


def closing(text: str, start: int, shell: str) -> int:
    """Position behind the `"`, `$(`, `${`, `(` or backtick that begins at `start`, whatever is nested in it; -1 if it has none."""
    ends = {'"': '"', "(": ")", "{": "}", "`": "`"}
    escape = "`" if shell == POWERSHELL else "\\"
    awaited: list[str] = []
    place = start
    while piece := INSIDE.search(text, place):
        token, place = piece[0], piece.end()
        if piece["escape"] and token[0] == escape:
            continue
        if piece["comment"] or piece["escape"]:
            if piece["comment"] and awaited[-1:] == [")"]:
                continue
            token, place = token[0], piece.start() + 1
        if awaited and token == awaited[-1]:
            awaited.pop()
        elif token == "'" and awaited[-1:] != ['"']:
            place = text.find("'", place) + 1
            if not place:
                return -1
        elif token[-1] in ends and (token[0] == "$" or token == "`" or awaited[-1:] != ['"']) and (token != "{" or not awaited):
            awaited.append(ends[token[-1]])
        if not awaited:
            return place
    return -1


class _Reader:
    def __init__(self, found: Split, text: str) -> None:
        self.found, self.text, self.line = found, text, 1
        self.command = Command()
        self.word: str | None = None
        self.variable = self.substitution = self.spelt = False
        self.first_of_line = True
        self.joined_at = self.begun_at = 0
        self.tries, self.open_quotes = TRIES, 0
        self.place = self.next_place = self.word_start = self.word_end = 0
        self.code: list[str] = []

    def read(self) -> None:
        pieces, text = PIECES[self.found.shell], self.text
        while self.next_place < len(text):
            self.place = self.next_place
            if (end := self._block_end()) > 0:
                self.next_place, kind = end, "block"
                self.found.blocks.append((self.line, text[self.place : end]))
                self.end_command()
            elif (end := self._substitution_end()) > 0:
                self.next_place, kind = end, "substitution"
                self.add(text[self.place : end])
                self.substitution = True
            elif self.open_quotes > MANY and text[self.place] in "\"'":  # looking for the end of each would take long
                self.next_place, kind = self.place + 1, "other"
                self._other(text[self.place])
            elif piece := pieces.match(text, self.place):
                self.next_place, kind = piece.end(), str(piece.lastgroup)
                getattr(self, f"_{kind}")(piece[0])
            taken = text[self.place : self.next_place]
            self.code.append(re.sub(r"[^\n]", " ", taken) if kind in ("comment", "block") else taken)
            self.line += taken.count("\n")
        self.end_command()
        self.found.code = "".join(self.code)

    def _block_end(self) -> int:
        """Position behind the end of a here-document or a comment of several lines that begins here; 0 if none does."""
        start = BLOCKS[self.found.shell].match(self.text, self.place) if self.found.shell in BLOCKS and self.tries > 0 else None
        if not start:
            return 0
        if self.found.shell == BASH:
            end = re.compile(rf"^[ \t]*+{start[2]}[ \t]*+\r?$", re.MULTILINE).search(self.text, start.end())
            place = end.end() if end else 0
        else:
            last = "#>" if start[0] == "<#" else f"\n{start[1]}@"
            place = self.text.find(last, start.end() - 1) + len(last)
            place = 0 if place < len(last) else place
        self.tries -= not place
        return place

    def _substitution_end(self) -> int:
        """Position behind the end of a substitution that begins here; 0 if none does."""
        text, place, shell = self.text, self.place, self.found.shell
        if shell not in (BASH, POWERSHELL) or self.tries <= 0 or text[place] not in '$`(@"':
            return 0
        two, of_powershell = text[place : place + 2], shell == POWERSHELL and self.word is None
        simple = NESTED[shell].match(text, place) if text[place] == '"' else None
        if (two in ("$(", "${") and not re.match(r"\$\{\w{1,80}+\}", text[place : place + 90])) or (two == "@(" and of_powershell):
            end = closing(text, place + 1, shell)
        elif (
            (simple and simple["nested"])
            or (two[0] == "(" and (of_powershell or (shell == BASH and re.fullmatch(r"\w+\+?=", self.word or ""))))
            or (two[0] == "`" and shell == BASH and not re.match(r"`[ \t]*+\r?+\n", text[place : place + 200]))
        ):
            end = closing(text, place, shell)
        else:
            return 0
        self.tries -= end < 0
        return max(end, 0)

    def add(self, text: str) -> None:
        if self.word is None:
            self.word_start = self.place
        self.word, self.word_end = (self.word or "") + text, self.next_place

    def end_word(self) -> None:
        if self.word is None:
            return
        if self.first_of_line and self.command.words == [] and self.found.commands and self.joined_at:
            before = self.found.commands[-1].words
            early = before[0].lstrip("!%") in LAUNCHERS and not any(word.endswith(".py") for word in before)
            if re.match(r"--?\w|[—–]", self.word) or (early and self.word.endswith(".py")):
                # a line of flags under a finished line belongs to it, although a shell would not think so
                self.command = self.found.commands.pop()
                self.command.broken = self.command.broken or self.joined_at
                self.command.broken_early |= early
        if self.substitution:
            self.command.substitutions.add(len(self.command.words))
        elif self.variable:
            self.command.variables.add(len(self.command.words))
        if self.spelt:
            self.command.spelt.add(len(self.command.words))
        if not self.command.words:
            self.command.start = self.word_start
            self.begun_at = self.joined_at if self.first_of_line else 0
        self.command.end = self.word_end
        self.command.words.append(self.word)
        self.command.raw.append(self.text[self.word_start : self.word_end])
        self.word, self.variable, self.substitution, self.spelt, self.first_of_line = None, False, False, False, False

    def end_command(self) -> None:
        self.end_word()
        if self._goes_on():
            self.found.commands[-1].extend(self.command)
        elif self.command.words:
            self.found.commands.append(self.command)
        self.command = Command()

    def _goes_on(self) -> bool:
        """Whether a line of values and flags goes on with the command of the line before, whose mark at the end was forgotten."""
        words, before = self.command.words, self.found.commands[-1].words if self.found.commands else []
        if not (self.begun_at and any(word.startswith("--") for word in before) and re.match(r"\w+=", words[0] if words else "")):
            return False
        launches = any(word in LAUNCHERS or word.endswith(".py") for word in words)
        if goes_on := any(word.startswith("--") for word in words) and not launches:
            self.command.broken = self.begun_at
        return goes_on

    def _space(self, text: str) -> None:
        self.end_word()

    def _comment(self, text: str) -> None:
        self.end_word()

    def _newline(self, text: str) -> None:
        self.end_command()
        self.first_of_line, self.joined_at = True, self.line

    def _continued(self, text: str) -> None:
        if text[0] == "\\" and self.found.shell != BASH and self.word is not None:  # the end of a path
            whole, self.next_place = self.next_place, self.place + 1
            self.add("\\")
            self.next_place = whole
            self._newline(text)
            return
        if text[1:2] in (" ", "\t"):  # the backslash escapes the space, and the line break ends the command
            self.end_word()
            self.command.broken = self.command.broken or self.line
            self.command.trailing_space = True

    def _operator(self, text: str) -> None:
        self.end_command()
        self.joined_at = 0

    def _double(self, text: str) -> None:
        inside, shell = text[1:-1], self.found.shell
        self.variable |= bool(shell != CMD and VARIABLE.search(inside)) or bool(shell in (CMD, WINDOWS) and OF_CMD.search(inside))
        self.variable |= self.found.in_notebook and bool(PYTHON_VARIABLE.search(inside))
        if shell == BASH:
            inside = re.sub(r'\\(["\\$`]|\r?\n)', lambda m: m[1].strip("\r\n"), inside)
        elif shell == POWERSHELL:
            inside = re.sub(r'`(.)|""', lambda m: m[1] or '"', inside, flags=re.DOTALL)
            self.command.open_paths += inside.endswith("\\") and " " in inside
        else:
            self.command.open_paths += bool(re.search(r"(?<!\\)\\$", inside))
            inside = re.sub(r"\\\\$", r"\\", inside).replace('\\"', '"')
        self.add(inside)

    def _single(self, text: str) -> None:
        self.found.single_quotes = self.command.single_quotes = True
        self.add(text[1:-1].replace("''", "'") if self.found.shell == POWERSHELL else text[1:-1])

    def _escape(self, text: str) -> None:
        self.add(text[1:])

    def _plain(self, text: str) -> None:
        variable = OF_CMD.search(text) if self.found.shell in (CMD, WINDOWS) else PERCENT.search(text)
        self.variable |= bool(variable or PYTHON_VARIABLE.search(text) or (self.found.shell != CMD and VARIABLE.search(text)))
        self.variable |= self.found.shell == POWERSHELL and self.word is None and bool(re.match(r"@\w", text))
        self.spelt |= self.found.shell == BASH and bool(SPELT.search(text) if self.word is None else SPELT.search(text, 1))
        self.found.typographic |= bool(CURLY.search(text)) or (self.word is None and text[0] in "—–")
        self.add(text)

    def _other(self, text: str) -> None:
        if text in "\"'" and not (text == "'" and self.found.shell == CMD):
            self.open_quotes += 1
            if not self.found.unclosed:
                self.found.unclosed, self.found.unclosed_at = self.line, self.place
        else:
            self.add(text)
