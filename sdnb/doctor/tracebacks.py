"""Tracebacks in pasted logs: the errors they end with, and the command that `accelerate launch` ran.

The launcher ends every failed run with an error of its own, `CalledProcessError`, so the last error of a log is rarely the one that
matters. The text of an error may run over several lines, or begin on the next one. A paste may stop before the error.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..system import on_one_line

LINES = 12
"""Lines of one error that are read: a state_dict that does not fit lists hundreds."""

_NAME = r"[A-Za-z_]\w{0,80}+(?:\.[A-Za-z_]\w{0,80}+){0,8}+"
_HEAD = re.compile(rf"({_NAME})(?::(?=\s|$)|$)[ \t]*(.{{0,2000}})")
_KIND = re.compile(r"(?:\w(?:Error|Exception)|^Exception|Interrupt|Exit|Invalid|Failure|Expired|Timeout|NotFound|BadZipFile|\.[eE]rror)$")
_FRAME = re.compile(r'[ \t]*+(?:File "|\S.{0,300}\.py:\d{1,6} in )')
_START = "Traceback (most recent call last)"
_AROUND = " \t`"  # Markdown puts code between backticks
_OTHER = re.compile(
    r"""
    [ \t]*+ (?:
        Traceback[ ]\( | During[ ]handling[ ] | The[ ]above[ ]exception | File[ ]" | usage:[ ] | epoch[ ]\d | model[ ]saved
      | [\[(]? \d{1,4} [-/:] \d\d [-/:] \d\d                                   # a date or a time
      | (?: DEBUG | INFO | WARNING | ERROR | CRITICAL ) \b
      | [^\s"']{1,300} \.py:\d{1,6}: | \S{0,40} [ ]?\d{1,3}%\| | steps:[ ]
      | Failed[ ]to[ ]train[ ]because | wandb: | -{20} | ={20} | ``` | \#{1,6}[ ]
    )
    """,
    re.VERBOSE,
)
_LIST = re.compile(r"Command [\"']\[(?=['\"])")
_WORD = re.compile(r"""'((?:[^'\\]|\\.)*+)'|"((?:[^"\\]|\\.)*+)\"""", re.DOTALL)


@dataclass(frozen=True)
class Raised:
    """One error at the end of a traceback."""

    kind: str
    """Class of the error as Python prints it, such as `safetensors_rust.SafetensorError`."""
    message: str
    """Text of the error, on one line."""
    traceback: str
    """Lines from the head of the traceback to the end of the error."""
    after: str
    """The rest of the log."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind

    @property
    def of_launcher(self) -> bool:
        """Whether this only reports that another process has failed: the script, or a worker that loads pictures."""
        if re.match(r"Caught \w{1,80} in DataLoader worker process", self.message):
            return True
        name = self.kind.rpartition(".")[2]
        return name in ("ChildFailedError", "SystemExit") or (name == "CalledProcessError" and bool(_LIST.match(self.message)))


def errors(text: str) -> Iterator[Raised]:
    """Errors in `text`, the last one first."""
    if text.count("\n\n") * 2.2 > text.count("\n") > 6:  # some pages add an empty line to each
        text = text.replace("\n\n", "\n")
    lines = text.split("\n")
    heads = [place for place, found in enumerate(_heads(lines)) if found]
    for head in reversed(heads):
        end = _end(lines, head)
        begin = max((place for place in range(max(0, head - 400), head) if _START in lines[place]), default=head)
        found = _HEAD.match(lines[head].strip(_AROUND))
        assert found
        # two processes write each line twice
        parts = [found[2], *(lines[place] for place in range(head + 1, end) if lines[place] != lines[place - 1])]
        message = on_one_line(" ".join(parts))
        yield Raised(found[1], message, "\n".join(lines[begin:end]), "\n".join(lines[end:]))


def _heads(lines: list[str]) -> Iterator[bool]:
    """For each line, whether an error begins there.

    Its name tells, or its place: the first line after the indented ones of a traceback, or a class written with its module.
    """
    inside = frames = behind = False
    for line in lines:
        if _START in line:
            inside, frames, behind = True, False, False
        elif inside and _FRAME.match(line):
            frames = True
        found = _HEAD.match(line.strip(_AROUND)) if line and not line.isspace() else None
        is_head = found is not None and bool(_KIND.search(found[1]))
        if found and inside and frames and not is_head:
            module, _, name = found[1].rpartition(".")
            at_margin = not line[0].isspace() and not behind
            is_head = name[0].isupper() and (at_margin or bool(module and found[2]))
        behind = behind or (frames and line[:1].strip() != "" and not _FRAME.match(line))
        inside = inside and not is_head
        yield is_head


def _end(lines: list[str], head: int) -> int:
    """Index of the line after the error that begins at `head`."""
    end, blank = head + 1, False
    for place in range(head + 1, min(head + LINES, len(lines))):
        line = lines[place]
        if not line.strip():
            blank = True
            continue
        found = _HEAD.match(line.strip(_AROUND))
        if (blank and not line[0].isspace()) or _OTHER.match(line) or (found and _KIND.search(found[1])):
            break
        end, blank = place + 1, False
    return end


def is_cut_off(text: str) -> bool:
    """Whether the paste ends inside a traceback, before the error, and the run did not go on."""
    lines = text.rstrip().split("\n")
    if (last := lines[-1].strip()).startswith("Traceback (") and _START.startswith(last):
        return True
    frames = [place for place, line in enumerate(lines) if _START in line or _FRAME.match(line)]
    if not frames or any(itertools.islice(_heads(lines), frames[-1], None)):
        return False
    return not any("model saved." in line for line in lines[frames[-1] :])


def launched(text: str) -> list[str]:
    """Words of the command that the launcher reports as failed, however its line is wrapped; empty where there is none.

    Of a list that was cut off, the last option is left out if it lacks its value.
    """
    starts = [found.end() for found in _LIST.finditer(text)]
    if not starts:
        return []
    listed = "".join(line.strip() for line in text[starts[-1] : starts[-1] + 20_000].split("\n"))
    words, place = [], 0
    while word := _WORD.match(listed, place):
        words.append(re.sub(r"\\([\\'\"])", r"\1", word[1] if word[1] is not None else word[2]))
        place = word.end()
        if not (separator := re.compile(r"\s*,\s*").match(listed, place)):
            break
        place = separator.end()
    if words and not listed.startswith("]", place) and words[-1].startswith("--") and "=" not in words[-1]:
        words.pop()
    return words if any(word.endswith(".py") for word in words[:4]) else []
