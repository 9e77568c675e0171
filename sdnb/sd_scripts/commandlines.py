"""Command lines read into settings: a launcher, a script and its flags, as bash, cmd.exe or PowerShell would pass them on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from ..system import shown
from . import arguments, shell, shell_flow, shell_patterns, shell_variables
from .findings import Finding
from .flag_reader import DASHES, FlagReader, is_flag
from .settings import Settings

STRAIGHT = str.maketrans({**dict.fromkeys("“”„‟″", '"'), **dict.fromkeys("‘’‛′", "'"), "—": "--", "–": "--", "\u00a0": " "})
BUILT = re.compile(r"^\$?\w+\s*(\+?=\(|\+=)|\.Add\(|\+=")
"""A line of a script that puts flags into a variable."""
PYTHON = re.compile(r"\b(os\.system|subprocess\.\w+)\s*\(|^[ \t]*(import|from) \w+", re.MULTILINE)
SHEBANG = re.compile(r"#![^\n]*\b\w*sh\b")
"""The first line of a shell's script, which may have Python in a here-document."""
YAML = re.compile(r"^[A-Za-z_]\w*:[ \t]*\n[ \t]+(?:-[ \t]+)?\w+:(?:[ \t]|$)", re.MULTILINE)
"""A key, and an indented one below it."""
SAMPLE_PROMPT = re.compile(r"\s--(n|w|h|d|l|s|g|ss|cn|ctr|rcfg|fs|am)\s")
TRAINING = ("optimizer_type", "learning_rate", "network_", "lr_", "max_")
"""Beginnings of flags that no prompt has."""
PROMPT = re.compile(
    r"""^[ \t]*+ (?: (?: \([\w.-]{1,40}\) [ \t]++ )?+ (?:
      PS [ ]+ [A-Za-z]:[^>\n]{0,200}> [ \t]*+ | [A-Za-z]:\\ (?: (?! [ ]- | \.(?:exe|py|bat)\b ) [^>\n"] ){0,200} > [ \t]*+
      | \[[^\]\n]{1,100}\] [#$%] [ \t]++ | [\w.-]{1,40}@[\w.-]{1,80} [: ] [^#$%\n"'=]{0,200} [#$%] [ \t]++ | [$%] [ \t]++ )
    | \([\w.-]{1,40}\) [ \t]++ ) (?= [\w.$&/"'\\] ) | ^ >{1,2} [ \t]++ (?= -- )""",
    re.VERBOSE | re.MULTILINE,
)
"""Prompt of a terminal before a command."""
TOOLS = ("sed", "wget", "curl", "cp", "mv", "rm", "cat", "chmod", "git", "ls", "nano", "vim", "pip", "grep")
"""Commands that do other things with a script than start it."""
START_PROCESS = re.compile(
    r"""\bStart-Process [ \t]++ (?:-FilePath[ \t]++)? ["']?([\w./\\:-]{1,200})["']? [ \t]++ -ArgumentList [ \t]++ @?\(?
    ((?: ["'][^"'\n]*["'] [ \t]*+ ,?+ \s*+ )+)""",
    re.VERBOSE | re.IGNORECASE,
)
"""A program and the list of its words, as PowerShell starts it."""
LIST = re.compile(r"""\[ \s*+ (?: (?: "[^"\n]*+" | '[^'\n]*+' ) \s*+ ,?+ \s*+ )++ \]""", re.VERBOSE)
"""A list of words in quotes."""
QUOTED = re.compile(r"""["'][^"'\n]*["']""")
WHOLE_ARRAY = re.compile(r"""["']?\$\{(\w+)\[[@*]\]\}["']?""")
SPLATTED = re.compile(r"[$@](\w+)")
"""A list of PowerShell among the words of a command."""
MANY = 100
"""Words in which a flag of sd-scripts is looked for."""
MOST = 1000
"""Words behind a script. sd-scripts has about 300 arguments."""


def from_text(text: str, script: str | None) -> Settings:
    """Settings of the training command in a text, or of the flags in it."""
    if words := words_in_list(text):
        why = "the command is in a list of words"
        return replace(from_list(words, script), original=text, whole=False, unmendable=why, span=None)
    if PYTHON.search(text) and not SHEBANG.match(text) and not text.lstrip().startswith(("!", "accelerate", "python")):
        return Settings.nothing("This is Python code.", "Give the command alone, as it would be typed into a terminal.", text)
    if YAML.search(text) and "--" not in text:
        return Settings.nothing(
            "This is YAML, which sd-scripts does not read.", "Give its command line, its TOML file or the GUI's JSON.", text
        )
    if SAMPLE_PROMPT.search(text) and not any(f"--{name}" in text for name in TRAINING):
        return Settings.nothing("This looks like prompts for sample pictures.", "Give the command, or the file of --config_file.", text)
    text = PROMPT.sub("", text)
    split = shell.split(text)
    if not split.commands:
        return Settings.nothing("The text is nothing but blanks and comments.", "Give a command line, a TOML file or the GUI's JSON.")
    command = max(split.commands, key=lambda one: (_starts_a_script(one), sum(map(is_flag, one.words))))
    if (not _starts_a_script(command) or "-ArgumentList" in command.words) and (inside := _command_inside(split, script)):
        return replace(inside, original=text)
    before = split.code[: command.start]
    followed = shell_flow.follow(before, split.shell)
    lists = _set_before(command, before, split.shell, followed)
    left = _left_as_it_is(split, bool(followed and followed.sure))
    found = replace(from_words(command, script), mark=split.mark, span=(command.start, command.end), original=text)
    understood = not (command.substitutions or left or _script_in_a_variable(command))
    found = replace(found, whole=understood and not found.said("config_file"))
    if followed and not followed.begun:
        found = replace(found, unknown=found.unknown | {"*"})
    built = [] if followed else [BUILT.search(" ".join(one.words[:4])) for one in split.commands if one is not command]
    if any(one and re.split(r"\W", one[0].lstrip("$"))[0] not in lists for one in built):
        found = replace(found, unknown=found.unknown | {"*"})
    if split.typographic and (straight := text.translate(STRAIGHT)) != text:
        found = replace(found, repaired=from_text(straight, script))
    return replace(found, findings=(*_oddities(text, split, command, found.form, left), *found.findings))


def _set_before(command: shell.Command, before: str, kind: str, followed: shell_flow.Followed | None) -> set[str]:
    """Tell a command what the lines before it set; returns the names of lists."""
    bash = kind == shell_patterns.BASH
    if followed:
        texts, lists = followed.texts, followed.lists
        spelt = () if bash else re.findall(r"\$\{?(\w+)", " ".join(command.words))  # in any capitals
        command.assigned = texts | {name: texts[name.lower()] for name in spelt if name.lower() in texts}
    else:
        command.assigned, lists = shell_variables.assignments(before), shell_variables.arrays(before) if bash else {}
    for raw in command.raw:
        match = (WHOLE_ARRAY if bash else SPLATTED).fullmatch(raw)
        words = lists.get(match[1] if bash else match[1].lower()) if match else None
        if words is not None:  # bash splits the words where no quotes stand around the list
            command.arrays[raw] = [part for word in words for part in word.split()] if bash and raw[0] == "$" else words
    return set(lists)


def words_in_list(text: str) -> list[str]:
    """Words of a training command in a list of Python, JSON or a Dockerfile; none where there is no such list."""
    for match in LIST.finditer(text):
        words = [word[1:-1].replace("\\\\", "\\") for word in QUOTED.findall(match[0])]
        if _script_position(words) is not None and any(map(is_flag, words)):
            return words
    return []


def _command_inside(split: shell.Split, script: str | None) -> Settings | None:
    """Settings of a training command in a here-document, a list or quotes, where it is not mended."""
    if listed := START_PROCESS.search(split.code):
        text = " ".join([listed[1], *QUOTED.findall(listed[2])])
        return replace(from_text(text, script), whole=False, unmendable="the command is in a list of Start-Process")
    texts = {f"the here-document of line {line}": "\n".join(block.splitlines()[1:-1]) for line, block in split.blocks}
    quoted = next((word for one in split.commands for word in one.words if ".py" in word and " --" in word), "")
    for where, text in {**texts, "quotes": quoted}.items():
        if any(_starts_a_script(one) for one in shell.split(text).commands):
            return replace(from_text(text, script), whole=False, unmendable=f"the command is in {where}")
    return None


def from_list(words: list[str], script: str | None) -> Settings:
    """Settings in words that a shell has already split."""
    found = from_words(shell.Command(words, [shell.quote(word) for word in words]), script)
    straight = [word.translate(STRAIGHT).replace('"', "") if shell_patterns.CURLY.search(word) else word for word in words]
    if straight == words:
        return found
    return replace(found, findings=(_curly_quotes(), *found.findings), repaired=from_list(straight, script))


def _oddities(text: str, split: shell.Split, command: shell.Command, form: str, left: str) -> Iterator[Finding]:
    """Findings about how the text was written, apart from the settings in it."""
    if split.unclosed and (form == "flags" or command.start <= split.unclosed_at <= command.end):
        yield _oddity("unclosed-quote", f"The quote opened in line {split.unclosed} is never closed.", "Close it.")
    if split.typographic and shell_patterns.CURLY.search(text):
        yield _curly_quotes()
    if command.open_paths and split.shell == shell_patterns.CMD:
        what = (
            'A backslash before a closing quote, as in "D:\\out\\", makes the quote a plain character: the text goes on to the next quote.'
        )
        yield _oddity("backslash-before-quote", what, 'Leave the last backslash out: "D:\\out".')
    elif command.open_paths:
        what = 'A path that ends in a backslash and a quote, as in "D:\\out\\", is misread by cmd.exe and by older PowerShell.'
        yield _oddity("backslash-before-quote", what, 'Leave the last backslash out: "D:\\out".', "note")
    if left:
        why = "Only running it would show what it does. The doctor checked the rest."
        yield Finding(rule="shell-left", effect="note", what=f"{left}: left as it stands.", why=why)
    if split.shell == shell_patterns.CMD and command.single_quotes:
        yield _oddity("single-quotes-in-cmd", "cmd.exe treats single quotes as ordinary characters.", 'Use double quotes: ".')
    effect = "raises" if command.broken_early else "overrides"
    what = f"The command ends after line {command.broken}: "
    untrained = " Nothing is trained." if command.broken_early else ""
    if command.trailing_space:
        what += f"a space after its continuation mark hides the line break.{untrained}"
        yield _oddity("broken-line", what, "Remove the space at its end.", effect)
    elif command.broken and form == "command":
        what += f"without a continuation mark at its end, the next line is another command.{untrained}"
        yield _oddity("broken-line", what, "End the line with a backslash (bash), ^ (cmd) or ` (PowerShell).", effect)


def _left_as_it_is(split: shell.Split, followed: bool) -> str:
    """Lines that are not understood: here-documents and, unless they were followed, conditions, loops and functions."""
    lines = {line: "a here-document" for line, block in split.blocks if not block.startswith("<#")}
    for match in () if followed else shell_variables.CONTROL.finditer(split.code):
        lines.setdefault(split.code.count("\n", 0, match.end() - 1) + 1, f"`{match['word']}`" if match["word"] else "a function")
        if len(lines) > shell_variables.MOST:
            break
    said = [f"{what} in line {line}" for line, what in sorted(lines.items())[:3]]
    said += [f"{len(lines) - 3} more"] if len(lines) > 3 else []
    text = ", ".join(said)
    return text[:1].upper() + text[1:]


def _curly_quotes() -> Finding:
    return _oddity("curly-quotes", "There are curly quotes (“ ”), which a shell treats as ordinary characters.", 'Type straight ones: ".')


def _oddity(rule: str, what: str, fix: str, effect: str = "raises") -> Finding:
    why = "The shell does not pass to sd-scripts the words that you meant."
    return Finding(rule=rule, effect=effect, what=what, why=why, fix=fix, lesson="07")


def _foreign_script(words: list[str]) -> int | None:
    """The place of a Python script that is none of sd-scripts', started directly or by a launcher; None if there is none."""
    place = next((place for place, word in enumerate(words) if word.lower().endswith(".py")), None)
    if place is None or words[0].startswith("-"):
        return None
    before = [_file_name(word.lstrip("!%&")).lower().removesuffix(".exe") for word in words[:place]]
    return place if any(word in shell_patterns.LAUNCHERS for word in before) or not any(map(is_flag, words[:place])) else None


def _may_be_flag(word: str) -> bool:
    """Whether a word is a flag, or was one before a word processor or a slip changed its hyphens."""
    return word.startswith(("--", "—", "–")) or _is_known_flag(word)


def _is_known_flag(word: str) -> bool:
    """Whether a word is a flag of sd-scripts, whatever its hyphens, or a slip of one."""
    name, known = word.lstrip("".join(DASHES)).partition("=")[0].replace("-", "_"), arguments.facts()["arguments"]
    near = arguments.closest(name, known) if word.startswith(DASHES) and name not in known else None
    return word.startswith(DASHES) and (name in known or bool(near and arguments.is_slip(name, near)))


def _script_position(words: list[str]) -> int | None:
    if words and (words[0].startswith("-") or words[0].lstrip("!%&") in TOOLS):
        return None  # flags alone, or a script that is edited or copied; a script's name further on is somebody's value
    scripts = arguments.facts()["scripts"]
    place = next((place for place, word in enumerate(words) if not word.startswith("-") and _file_name(word) in scripts), None)
    is_started = not place or any(map(_may_launch, words[:place])) or any(map(is_flag, words[place:]))
    return place if is_started else None


def _may_launch(word: str) -> bool:
    """Whether a word is a launcher such as `.venv/bin/python`, or a variable that may hold one."""
    return _file_name(word.lstrip("!&")).lower().removesuffix(".exe") in shell_patterns.LAUNCHERS or word.startswith(("$", "%", "{"))


def _script_in_a_variable(command: shell.Command) -> int | None:
    """Place of a launcher's script that stands in a variable, before the flags of training; None if there is none."""
    words, known = command.words, arguments.facts()["arguments"]
    if not words or words[0].lstrip("!%&") not in shell_patterns.LAUNCHERS:
        return None
    for place in sorted(command.variables | command.substitutions):
        following = words[place + 1][2:].partition("=")[0] if place + 1 < len(words) else ""
        if place and not words[place].startswith("-") and following in known:
            return place
    return None


def _starts_a_script(command: shell.Command) -> bool:
    """Whether a command starts a training script, be its name known or in a variable."""
    return _script_position(command.words) is not None or _script_in_a_variable(command) is not None


def _file_name(word: str) -> str:
    return re.split(r"[\\/]", word)[-1]


def from_words(command: shell.Command, script: str | None = None) -> Settings:
    """Settings from the words of one command, its launcher included if it is there."""
    command, listed = _with_arrays(command)
    words = [
        shell_variables.filled(word, command.assigned) or word if place in command.variables else word
        for place, word in enumerate(command.words)
    ]
    position, named = _script_position(words), True
    if position is None:
        position, named, words = _script_in_a_variable(command), False, command.words
    foreign = _foreign_script(words) if position is None else None
    if position is None:
        first = next((place for place, word in enumerate(words) if word.startswith(DASHES)), None)
        may_be_flag = _may_be_flag if first == 0 or foreign is not None else _is_known_flag
        if first is None or not any(map(may_be_flag, words[first : first + MANY])):
            fix = "Flags look like --max_grad_norm=0, a TOML file like max_grad_norm = 0. From a log, give the lines around the error."
            return Settings.nothing("This text has no flag, and no log message that the doctor knows.", fix)
        position = first - 1 if foreign is None else foreign
        launched = foreign is not None or (first and words[0].lstrip("!%&") in shell_patterns.LAUNCHERS)
        if launched and script is None:
            return Settings.nothing(
                f"This starts no training script of sd-scripts that the doctor knows: {shown(' '.join(words[: position + 1][:6]))}. "
                "Nothing was checked.",
                f"If it takes the same arguments as one that the doctor knows, name that one: --script {arguments.DEFAULT_SCRIPT}.",
            )
        named = first == 0
    elif script is None and named:
        script = _file_name(words[position])
    if len(words) - position > MOST:
        what = f"{len(words) - position:,} words were given; the settings of a run are a few dozen."
        return Settings.nothing(what, "Give the settings alone.")
    prefix = tuple(words[: position + 1])
    is_command = bool(prefix) and (prefix[-1].endswith(".py") or (not named and position in command.variables | command.substitutions))
    found = FlagReader(command, position + 1, listed, script).read()
    found = replace(found, launcher=tuple(command.raw[: position + 1]))
    if is_command:
        found = replace(found, form="command", launch=_launch(prefix), prefix=prefix)
    return replace(found, script_named=script is not None)


def _with_arrays(command: shell.Command) -> tuple[shell.Command, dict[int, str]]:
    """Command with the words of the lists that the text sets, and the places of those, each with how its list was written."""
    full = replace(command, words=[], raw=[], variables=set(), substitutions=set(), spelt=set())
    listed: dict[int, str] = {}
    for place, word in enumerate(command.words):
        raw = command.raw[place] if command.raw else word
        new = command.arrays.get(raw)
        for kind in ("variables", "substitutions", "spelt"):
            if new is None and place in getattr(command, kind):
                getattr(full, kind).add(len(full.words))
        if new is not None:
            listed |= {len(full.words) + number: raw for number in range(len(new))}
        full.words += [word] if new is None else new
        full.raw += [raw] if new is None else new
    return full, listed


def _launch(prefix: tuple[str, ...]) -> dict[str, str]:
    """Flags between `accelerate launch` and the script."""
    launch = {}
    for word, following in pairwise((*prefix[:-1], "-")):  # the script is nobody's value
        if is_flag(word):
            name, equals, value = word[2:].partition("=")
            launch[name.replace("-", "_")] = value if equals else "true" if following.startswith("-") else following
    return launch
