"""Training logs and tracebacks: known messages in them, however a terminal has broken their lines."""

from __future__ import annotations

import functools
import itertools
import re
from bisect import bisect_right

from ..sd_scripts import Finding, facts, worst_first
from ..system import on_one_line, shown
from . import tracebacks
from .messages import MESSAGES, Message, filled

LOOKED_AT = 100_000
"""Characters at each end of a long log that are searched for a command and for the last error."""
ERROR_LENGTH = 600
"""Length of a quoted error, in characters."""

_COMMAND = re.compile(
    r"""
    (?<! [^\s"'!%] ) (?: [^\s"']{0,200} [\\/] )?
    (?: accelerate (?:\.exe)? ["']? [ \t]+ launch\b
      | python[\d.]{0,5} (?:\.exe)? ["']? [ \t]+ (?: -\w+ [ \t]+ )? ["']? [^\s"']{0,200}? \w{0,40} (?: train\w{0,40} | fine_tune ) \.py\b
    ) [^\n]* (?: \n (?: [ \t]{8,} | [ \t]*-- ) [^\n]* )*
    """,
    re.IGNORECASE | re.VERBOSE,
)

_SETTING_LINE = re.compile(
    r"""
    ^ [ \t]*+ (?! 'accelerate'[ ](?:is|n'est|no|não|[^\x00-\x7f]) ) (?:
        \#                                                                      # a comment
      | --?\w                                                                   # an option
      | ["'{}\]] | \[ [ \t]* (?: ["'\[{\]] | $ )                                # JSON, or a list in TOML
      | \[{1,2} [\w."' -]{1,80} \]{1,2} [ \t]* (?: \# | $ )                     # the head of a TOML table
      | [A-Za-z0-9_."'-]{1,80} [ \t]* = [ \t]* (?: true | false | ["'\[{] | [-+.\d][\w.+:-]{0,40} [ \t]* (?: \# | $ ) )
      | [!%$]? [ \t]* (?: accelerate | python[\d.]* | cd | call | source | (?: set | export ) [ \t]{1,4} \w{1,80} = ) [ \t"']   # a command
    ) [^\n]* $
    """,
    re.VERBOSE | re.MULTILINE,
)

_LOG_SIGN = re.compile(
    r"""
      Traceback[ ]\(most[ ]recent[ ]call[ ]last\)
    | ^ [ \t]*+ File[ ]"[^"\n]{1,300}",[ ]line[ ]\d
    | ^ [ \t]*+ [\w.]{0,80} (?: Error | Exception | Warning | Interrupt ) (?: : | $ )
    | ^ [ \t]*+ ❱ [ \t]*+ \d{1,6} \b                                             # the current line of code in a frame of rich
    | ^ usage:[ ]
    | \.py:[ ]error:
    | ^ (?: \[? \d[\d/:, -]{6,30} \]? )? [ \t]*+ (?: DEBUG | INFO | WARNING | ERROR | CRITICAL ) [ \t:]
    | \.py:\d{1,6} (?: [ \t]*+ $ | :[ ]\w{0,40}Warning )                        # rich's right column; a warning of Python
    | \d%\| | \d/\d{1,9}[ ]\[\d\d:\d\d | \d(?: it/s | s/it )                    # a progress bar
    | ^ epoch[ ]\d
    | [\w.)][ ]/[ ][\u3040-\u30ff\u4e00-\u9fff]                                 # English / Japanese
    """,
    re.VERBOSE | re.MULTILINE,
)

_TERMINAL_LINK = re.compile(r"\x1b\][^\x07\x1b\n]{0,2000}(?:\x07|\x1b\\)?")
_TERMINAL_CODE = re.compile(r"\x1b\[[0-?]{0,40}[ -/]{0,4}[@-~]|\x1b")
_COLOUR_WITHOUT_ESCAPE = re.compile(r"\[\d[\d;]{0,15}m")  # what is left of one when a page or an editor drops the escape character
# rich draws a frame around a traceback; a forum or a scanned picture has other quotes
_FRAME = str.maketrans(
    {**dict.fromkeys("│╭╮╰╯─┃", " "), **dict.fromkeys("“”„‟″", '"'), **dict.fromkeys("‘’‛′", "'"), "：": ":", "\u00a0": " "}
)

# A traceback and a warning also show the line of code that holds the message: not to be counted, and its {values} are not values.
_CODE_LINE = re.compile(r"^[ \t]++(?:❱?[ \t]*\d{1,6}[ \t]+)?(?:raise |assert |warnings\.warn\(|logger\.\w)[^\n]*", re.MULTILINE)
# rich writes the name of the file at the right end of a message's first line, in the middle of the message where that is wrapped.
_FILE_COLUMN = re.compile(r"(?<=[ \t])[\w.-]{1,80}\.py:\d{1,6}[ \t]*+$", re.MULTILINE)
# Other programs put a mark before each line: the rank of a process, its service, a time.
_PROCESS = re.compile(
    r"""
    ^ (?: \[rank\d{1,4}\]: [ ]?
      | \[\d{1,4},\d{1,4}\]<std(?:out|err)>:
      | [\w.-]{1,40}-\d{1,3} [ ]{1,9} \| [ ]?
      | \[\d{4}-\d\d-\d\d[ T][\d:.,]{8,15}\] [ ] \[[A-Z]{4,8}\] [ ]?
      | \d{4}-\d\d-\d\dT[\d:.]{8,18}Z? [ ]?
      | [A-Z][a-z]{2} [ ]{1,2} \d{1,2} [ ] [\d:]{8} [ ] [\w.-]{1,60} [ ] [\w./-]{1,60} (?: \[\d{1,9}\] )? : [ ]
      | \[ (?: TRAIN | train | trainer | kohya | stdout | stderr ) \] [ ]?
      | > [ ]
    )
    """,
    re.VERBOSE | re.MULTILINE,
)
# ComfyUI reports an error as a list in Markdown, and on its console without the class.
_COMFYUI = (
    (re.compile(r"\*\*Exception Type:\*\*[ `]*([\w.]{1,100})`?\s{0,9}[-*]? ?\*\*Exception Message:\*\*"), r"\n\1:"),
    (re.compile(r"!!! Exception during processing ?!!!"), "\nException:"),
)

_WRAPPED = " " * 8  # rich indents the rest of a wrapped line at least this far


def read(text: str) -> tuple[Finding, ...]:
    """Known messages in `text`, worst first, then in order of appearance; each once, its number of times in `what`."""
    log = _Log(text)
    found = [match for message in MESSAGES if (match := _find(message, log))]
    return worst_first(finding for _, finding in sorted(found, key=lambda pair: pair[0]))


_ASSIGNED = re.compile(r"""^[ \t]*\$?[A-Za-z_][A-Za-z0-9_]{0,80}[ \t]*=[ \t]*(?:"[^"\n]*"|'[^'\n]*')[ \t]*(?:#.*)?$""", re.MULTILINE)
"""A line of a script that gives a variable a text."""


def looks_like_log(text: str) -> bool:
    """Whether a pasted text is a log or traceback rather than settings (a command line, TOML or JSON).

    A command followed by its log counts as a log. Of a long text only the two ends are read.
    """
    if len(text) > 2 * LOOKED_AT:
        text = f"{text[:LOOKED_AT]}\n{text[-LOOKED_AT:]}"
    rest = _ASSIGNED.sub("", _SETTING_LINE.sub("", _plain(text)))
    return bool(_LOG_SIGN.search(rest) or read(rest))


def unknown_error(text: str) -> Finding | None:
    """The error that stopped the script, in full, if no message explains it; None if one does or there is no error."""
    plain = _plain(text[-LOOKED_AT:])
    for error in itertools.islice(tracebacks.errors(plain), 20):
        if error.of_launcher or "model saved." in error.after:
            continue
        effects = {finding.effect for finding in read(error.traceback)} or {finding.effect for finding in read(str(error))}
        if effects and effects <= {"note", "warns", "overrides"}:
            continue  # it was caught, or the run was interrupted
        if "raises" in effects:
            return None
        what = shown(f"The run stopped with {error}", ERROR_LENGTH)
        return Finding(rule="log-unknown-error", effect="raises", what=what, why="The doctor does not know this error.", fix=_SEARCH)
    return None


_SEARCH = "Look for its words among the issues of kohya-ss/sd-scripts and of your GUI, open ones and closed."


def explained(text: str) -> tuple[Finding, ...]:
    """Known messages, led by the error that stopped the script if no message explains it, or by the note that the paste lacks it.

    The launcher's report that the script failed is left out if the reason is known.
    """
    found = read(text)
    if error := unknown_error(text):
        found = (error, *found)
    if any(finding.effect == "raises" for finding in found):
        return tuple(finding for finding in found if finding.rule != "launcher-reports-failure")
    rules = {finding.rule for finding in found}
    if "interrupted" not in rules and ("launcher-reports-failure" in rules or _lacks_its_error(text)):
        return (_NOT_SHOWN, *found)
    return found


def _lacks_its_error(text: str) -> bool:
    """Whether a log shows that the script stopped, but not why: it holds only the launcher's error, or half a traceback."""
    plain = _plain(text[-LOOKED_AT:])
    return tracebacks.is_cut_off(plain) or any(error.of_launcher for error in itertools.islice(tracebacks.errors(plain), 20))


_NOT_SHOWN = Finding(
    rule="log-error-not-shown",
    effect="raises",
    what="The script stopped with an error that is not in this text.",
    why="This text has only the launcher's report, or a traceback without its last line.",
    fix="Paste the script's whole traceback: the lines above the launcher's, down to the line that names the error.",
)


def command_in(text: str) -> str | list[str]:
    """The last training command in a log: its words as the launcher lists them, else its lines joined; empty if there is none."""
    ends = (text[:LOOKED_AT], text[-LOOKED_AT:]) if len(text) > 2 * LOOKED_AT else (text,)
    plain = [_plain(end) for end in ends]
    if words := tracebacks.launched(plain[-1]):
        return words
    matches = (match.group() for end in plain for match in _COMMAND.finditer(end))
    found = [command for command in matches if any(script in command for script in facts()["scripts"])]
    if not found:
        return ""
    lines = [_FILE_COLUMN.sub("", line).rstrip() for line in found[-1].splitlines()]
    command = " ".join(line.strip().rstrip("\\^`").strip() for line in lines)
    return _without_half_an_option(command) if plain[-1].rstrip().endswith(found[-1].rstrip()) else command


def _without_half_an_option(command: str) -> str:
    """The command that ends a paste, without a last option whose name or value was cut off."""
    rest, _, name = command.rpartition(" --")
    is_flag = any(row["type"] == "flag" for row in facts()["arguments"].get(name, ()))
    return command if is_flag or not re.fullmatch(r"\w{0,60}", name) else rest


def _plain(text: str) -> str:
    """The text without colours, frames and marks before its lines, with straight quotes and errors as Python prints them."""
    text = _PROCESS.sub("", _without_colours(text).translate(_FRAME))
    for report, error in _COMFYUI:
        text = report.sub(error, text)
    return text


def _without_colours(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\x1b" in text:
        text = _TERMINAL_CODE.sub("", _TERMINAL_LINK.sub("", text))
    if "[0m" in text:
        text = _COLOUR_WITHOUT_ESCAPE.sub("", text)
    return text


class _Log:
    """A pasted text in two forms: `solid` has no white space and is searched; values are quoted from `lines`."""

    def __init__(self, text: str) -> None:
        text = _plain(text)
        for noise in (_CODE_LINE, _FILE_COLUMN):
            text = noise.sub("", text)
        self._text = text
        self.solid = "".join(text.split())

    @functools.cached_property
    def lines(self) -> list[str]:
        """Lines that are not empty; long ones in pieces."""
        lines = (line for line in self._text.splitlines() if line and not line.isspace())
        return [line[start : start + 2000] for line in lines for start in range(0, len(line), 2000)]

    @functools.cached_property
    def ends(self) -> list[int]:
        """Index in `solid` at which each line ends."""
        return list(itertools.accumulate(len("".join(line.split())) for line in self.lines))

    @functools.cached_property
    def width(self) -> int:
        """Length of the lines that a narrow console has broken; 0 if it broke none."""
        longest = max(map(len, self.lines), default=0)
        return longest if sum(len(line) == longest for line in self.lines) > 2 else 0

    def goes_on(self, number: int) -> bool:
        """Whether a line continues the one before."""
        before = self.lines[number - 1]
        return self.lines[number].startswith(_WRAPPED) or (len(before) == self.width and not before[-1].isspace())

    def quote(self, start: int, stop: int) -> str:
        """The original text of `solid[start:stop]`, up to the end of its line, or of the lines it was wrapped into."""
        first = bisect_right(self.ends, start)
        parts = []
        for number in range(first, min(first + 10, len(self.lines))):
            line, before = self.lines[number], self.ends[number - 1] if number else 0
            if before >= stop or (number > first and not self.goes_on(number)):
                break
            places = [place for place, character in enumerate(line) if not character.isspace()][max(start - before, 0) : stop - before]
            if places:
                parts.append(line[places[0] : places[-1] + 1])
        return shown(on_one_line(" ".join(parts)))


@functools.cache
def _alternatives(pattern: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Alternatives of a pattern, each with the fixed text it begins with, so that a plain search can rule it out first."""
    parts = []
    for part in pattern.split(" | "):
        found = re.match(r"(?:[^\\.^$*+?{}\[\]|()]|\\\W)*", "".join(part.split()))
        fixed = found[0] if found else ""
        if re.match(r"[*+?{]", "".join(part.split())[len(fixed) :]):
            fixed = fixed[:-1]  # the last character may be absent
        parts.append((re.sub(r"\\(\W)", r"\1", fixed), re.compile(part, re.VERBOSE)))
    return tuple(parts)


def _find(message: Message, log: _Log) -> tuple[int, Finding] | None:
    """Position of `message` in the log and the finding it makes; None if it is absent."""
    alternatives = [list(expression.finditer(log.solid)) for fixed, expression in _alternatives(message.pattern) if fixed in log.solid]
    found = [matches for matches in alternatives if matches]
    if not found:
        return None
    times = max(map(len, found))  # one message may say the same in English and in Japanese: the more frequent half counts
    best = max((matches[0] for matches in found), key=lambda match: len(_values(match)))
    values = {name: log.quote(*best.span(name)) for name in _values(best)}
    finding = Finding(
        rule=message.name,
        effect=message.effect,
        what=filled(message.what, values) + (f" ({times} times)" if times > 1 else ""),
        why=filled(message.why, values),
        fix=filled(message.fix, values),
        source=message.source,
        lesson=message.lesson,
        values=values,
    )
    return min(matches[0].start() for matches in found), finding


def _values(match: re.Match[str]) -> list[str]:
    """Names of the values that were found."""
    return [name for name, value in match.groupdict().items() if value]
