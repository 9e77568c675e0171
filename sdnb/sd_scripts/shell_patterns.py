"""Patterns of shells: how bash, cmd.exe and PowerShell quote, comment, continue a line and name a variable."""

from __future__ import annotations

import re

BASH, CMD, POWERSHELL, WINDOWS = "bash", "cmd.exe", "PowerShell", "Windows"
LAUNCHERS = ("accelerate", "python", "python3", "uv", "torchrun")
MARKS = {BASH: "\\", CMD: "^", POWERSHELL: "`", WINDOWS: ""}
"""Marks at the end of a line that goes on; none where only a path of Windows tells the shell."""
QUOTED = {
    BASH: r"""(?P<double> " (?: [^"\\] | \\. )*+ " ) | (?P<single> ' [^']*+ ' ) | (?P<escape> \\. )""",
    POWERSHELL: r"""(?P<double> " (?: [^"`] | `. | "" )*+ " ) | (?P<single> ' (?: [^'] | '' )*+ ' ) | (?P<escape> `. )""",
    # the programs that cmd.exe starts take \" for a quote; at the end of a word it was meant to close the text
    CMD: r"""(?P<double> " (?: [^"\\\n] | \\ (?! " ) | \\" (?! [\s^] | $ ) )*+ \\?+ " ) | (?P<single> (?<=[\s=]) ' [^'\n]*+ ' (?= \s | $ ) )
    | (?P<escape> \^. )""",
    # a path of Windows and nothing that tells cmd.exe from PowerShell
    WINDOWS: r"""(?P<double> " (?: [^"\\] | \\ (?! " ) | \\" (?! \s | $ ) )*+ \\?+ " ) | (?P<single> ' [^']*+ ' )""",
}
COMMENTS = {
    BASH: r"(?<![^\s;&|(]) \# [^\n]*+",
    POWERSHELL: r"(?<![^\s;&|({]) \# [^\n]*+",
    CMD: r"(?im: (?: ^ | (?<=&) ) [ \t]*+ @?+ (?: rem (?![\w-]) | :: ) [^\n]*+ ) | (?<![^\s;&|(]) \# [^\n]*+",
    WINDOWS: r"(?<![^\s;&|(]) \# [^\n]*+",
}
BLOCKS = {
    BASH: re.compile(r"""<<-?+[ \t]*+(["']?+)([A-Za-z_]\w*+)\1[^\n]*+\n"""),
    POWERSHELL: re.compile(r"""<\#|@(["'])[ \t]*+\r?+\n"""),
}
"""Beginnings of here-documents, here-strings and comments of several lines."""


def _pieces(shell: str) -> re.Pattern[str]:
    braces = r"(?<!\S) [{}] (?!\S) |" if shell == POWERSHELL else ""
    return re.compile(
        rf"""
      (?P<continued> [\\^`] [ \t]*+ (?: \r?+ \n | (?<= \s .) \r?+ \Z ) )
    | (?P<comment> {COMMENTS[shell]} )
    | (?P<newline> \r?+ \n )
    | (?P<space> [ \t\r\f\v]++ )
    | (?P<operator> {braces} (?<!\S) \d? [<>]{{1,2}} &? \d? | && | \|\| | [;|&<>] )
    | {QUOTED[shell]}
    | (?P<plain> (?: [^\s"'\\;|&<>^`$] | \$ (?! \( | \{{ (?! \w+ \}} ) ) )++ )
    | (?P<other> . )
    """,
        re.VERBOSE | re.DOTALL,
    )


PIECES = {shell: _pieces(shell) for shell in QUOTED}
DRIVE = re.compile(r"(?<![A-Za-z])[A-Za-z]:\\|(?:^|\s)\.{1,2}\\\w")
"""A path of Windows."""
GOES_ON = re.compile(r"(?<![\\\S])\\[ \t]*+\r?+\n|^(?![^\n]*[A-Za-z]:\\)[^\n]*\\[ \t]*+\r?+\n", re.MULTILINE)
"""A backslash at the end of a line, which does not end a path of Windows."""
IS_CMD = re.compile(
    r"""\^[ \t]*+\r?+\n
    | ^[ \t]*+ (?: @echo[ \t]++off | @?+rem[ \t] | :: | set[ \t]++(?:/[ap][ \t]++)?+"?+\w++= | @?+call[ \t] | chcp[ \t] )""",
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
IS_POWERSHELL = re.compile(
    r"""`[ \t]*+\r?+\n | ^[ \t]*+ (?: \$(?:env:)?\w++ [ \t]*+ \+?= | \$env: | Set-\w | param[ \t]*\( | \[void\] ) | <\#""",
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
VARIABLE = re.compile(r"(?<!\\)\$[\w{(@*#?]|(?<!\\)`")
OF_CMD = re.compile(r"%~?[A-Za-z_]\w*%?|%\*|%~?\w*\d|![A-Za-z_]\w*!")
PERCENT = re.compile(r"%[A-Za-z_]\w*%")
"""A variable of cmd.exe."""
CURLY = re.compile("[“”„‟″‘’‛′]")
NESTED = {
    BASH: re.compile(r'"(?:[^"\\$`]|\\.|\$(?!\(|\{(?!\w+\})))*+(?P<nested>[$`])?', re.DOTALL),
    POWERSHELL: re.compile(r'"(?:[^"$`]|`.|\$(?!\(|\{(?!\w+\})))*+(?P<nested>\$)?', re.DOTALL),
}
"""A text in quotes, up to the first thing in it that may hold quotes of its own."""
PYTHON_VARIABLE = re.compile(r"=?\{[A-Za-z_]\w*\}")
SPELT = re.compile(r"^~|[*?]|\{[^{}\s]*,[^{}\s]*\}")
"""Text that bash replaces where no quotes stand around it."""
INSIDE = re.compile(r"""(?P<escape> [\\`]. ) | (?P<comment> (?<=\s) \# [^\n]*+ ) | \$[({] | ["'(){}`]""", re.VERBOSE | re.DOTALL)


def shell_of(text: str) -> str:
    """Shell that a text is written for, by its line ends, comments and assignments; `bash` where nothing tells."""
    if GOES_ON.search(text) or text.startswith("#!"):
        return BASH
    if re.search(r"`[ \t]*+\r?+\n", text):
        return POWERSHELL
    if IS_CMD.search(text):
        return CMD
    if IS_POWERSHELL.search(text):
        return POWERSHELL
    return WINDOWS if DRIVE.search(text) else BASH
