"""Command lines read into settings: a launcher, a script and its flags, as bash, cmd.exe or PowerShell would pass them on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, takewhile

from ..system import shown
from . import arguments, shell
from .findings import Finding
from .settings import Settings

STRAIGHT = str.maketrans({**dict.fromkeys("“”„‟″", '"'), **dict.fromkeys("‘’‛′", "'"), "—": "--", "–": "--", "\u00a0": " "})
BUILT = re.compile(r"^\$?\w+\s*(\+?=\(|\+=)|\.Add\(|\+=")
"""A line of a script that puts flags into a variable."""
PYTHON = re.compile(r"\b(os\.system|subprocess\.\w+)\s*\(|^[ \t]*(import|from) \w+", re.MULTILINE)
YAML = re.compile(r"^[A-Za-z_]\w*:[ \t]*\n[ \t]+(?:-[ \t]+)?\w+:(?:[ \t]|$)", re.MULTILINE)
"""A key, and an indented one below it."""
SAMPLE_PROMPT = re.compile(r"\s--(n|w|h|d|l|s|g|ss|cn|ctr|rcfg|fs|am)\s")
TRAINING = ("optimizer_type", "learning_rate", "network_", "lr_", "max_")
"""Beginnings of flags that no prompt has."""
LAUNCHERS = ("accelerate", "python", "python3", "uv", "torchrun")
DASHES = ("-", "—", "–")
MOST = 1000
"""Words behind a script. sd-scripts has about 300 arguments."""
FEW = 20
"""So many unknown names get a suggestion: it takes a while to find one."""


def from_text(text: str, script: str | None) -> Settings:
    """The settings of the training command in a text, or of the flags in it."""
    if PYTHON.search(text) and not text.lstrip().startswith(("!", "accelerate", "python")):
        return Settings.nothing("This is Python code.", "Give the command alone, as it would be typed into a terminal.", text)
    if YAML.search(text) and "--" not in text:
        return Settings.nothing(
            "This is YAML, which sd-scripts does not read.", "Give its command line, its TOML file or the GUI's JSON.", text
        )
    if SAMPLE_PROMPT.search(text) and not any(f"--{name}" in text for name in TRAINING):
        return Settings.nothing("This looks like prompts for sample pictures.", "Give the command, or the file of --config_file.", text)
    split = shell.split(text)
    if not split.commands:
        return Settings.nothing("Nothing but blanks and comments was given.", "Give a command line, a TOML file or the GUI's JSON.")
    command = max(split.commands, key=lambda one: (_script_position(one.words) is not None, sum(map(_is_flag, one.words))))
    command.assigned = shell.assignments(text)
    found = replace(from_words(command, script), mark=split.mark, span=(command.start, command.end), original=text)
    if any(BUILT.search(" ".join(one.words[:4])) for one in split.commands if one is not command):
        found = replace(found, unknown=found.unknown | {"*"})
    if split.typographic and (straight := text.translate(STRAIGHT)) != text:
        found = replace(found, repaired=from_text(straight, script))
    return replace(found, findings=(*_oddities(text, split, command, found.form), *found.findings))


def from_list(words: list[str], script: str | None) -> Settings:
    """The settings in the words that a shell has already split."""
    found = from_words(shell.Command(words), script)
    straight = [word.translate(STRAIGHT).replace('"', "") if shell.CURLY.search(word) else word for word in words]
    if straight == words:
        return found
    return replace(found, findings=(_curly_quotes(), *found.findings), repaired=from_list(straight, script))


def _oddities(text: str, split: shell.Split, command: shell.Command, form: str) -> Iterator[Finding]:
    """What is odd about how the text was written, apart from what it says."""
    if split.unclosed and (form == "flags" or command.start <= split.unclosed_at <= command.end):
        yield _oddity("unclosed-quote", f"The quote opened in line {split.unclosed} is never closed.", "Close it.")
    if split.typographic and shell.CURLY.search(text):
        yield _curly_quotes()
    if split.carets and split.single_quotes:
        yield _oddity("single-quotes-in-cmd", "cmd.exe takes single quotes as letters.", 'Use double quotes: ".')
    if command.trailing_space:
        what = f"The command ends after line {command.broken}: a space behind its last mark hides the line break."
        yield _oddity("broken-line", what, "Remove the space at its end.", "overrides")
    elif command.broken and form == "command":
        what = f"The command ends after line {command.broken}: without a mark at its end, what follows is another command."
        yield _oddity("broken-line", what, "End the line with a backslash (bash), ^ (cmd) or ` (PowerShell).", "overrides")


def _curly_quotes() -> Finding:
    return _oddity("curly-quotes", "There are curly quotes (“ ”), which a shell takes as letters.", 'Type straight ones: ".')


def _oddity(rule: str, what: str, fix: str, effect: str = "raises") -> Finding:
    why = "The shell passes other words to sd-scripts than the ones that were meant."
    return Finding(rule=rule, effect=effect, what=what, why=why, fix=fix, lesson="07")


def _is_flag(word: str) -> bool:
    return word.startswith("--")


def _script_position(words: list[str]) -> int | None:
    if words and words[0].startswith("-"):
        return None  # flags alone; a script's name further on is somebody's value
    scripts = arguments.facts()["scripts"]
    return next((place for place, word in enumerate(words) if not word.startswith("-") and _file_name(word) in scripts), None)


def _file_name(word: str) -> str:
    return re.split(r"[\\/]", word)[-1]


def from_words(command: shell.Command, script: str | None = None) -> Settings:
    """Settings from the words of one command, its launcher included if it is there."""
    words, position = command.words, _script_position(command.words)
    if position is None:
        first = next((place for place, word in enumerate(words) if word.startswith(DASHES)), None)
        if first is None:
            fix = "Flags look like --max_grad_norm=0, a TOML file like max_grad_norm = 0. Of a log give the lines around the error."
            return Settings.nothing("There is no flag in this text, and no message of a log that is known.", fix)
        position = first - 1
        if first and script is None and (words[0].lstrip("!%") in LAUNCHERS or words[first - 1].endswith(".py")):
            return Settings.nothing(
                f"This launches none of sd-scripts' training scripts that are known here: {shown(' '.join(words[: min(first, 6)]))}. "
                "Nothing was checked.",
                f"If it takes the arguments of one that is known, name that one: --script {arguments.DEFAULT_SCRIPT}.",
            )
    elif script is None:
        script = _file_name(words[position])
    if len(words) - position > MOST:
        what = f"{len(words) - position:,} words were given; the settings of a run are a few dozen."
        return Settings.nothing(what, "Give the settings alone.")
    prefix = tuple(words[: position + 1])
    is_command = bool(prefix) and prefix[-1].endswith(".py")
    variables = {index - position - 1 for index in command.variables}
    found = _Flags(words[position + 1 :], variables, script, command.assigned).read()
    if is_command:
        found = replace(found, form="command", launch=_launch(prefix), prefix=prefix)
    return replace(found, script_named=script is not None)


def _launch(prefix: tuple[str, ...]) -> dict[str, str]:
    """The flags between `accelerate launch` and the script."""
    launch = {}
    for word, following in pairwise((*prefix[:-1], "-")):  # the script is nobody's value
        if _is_flag(word):
            name, equals, value = word[2:].partition("=")
            launch[name.replace("-", "_")] = value if equals else "true" if following.startswith("-") else following
    return launch


class _Flags:
    """Reads the words behind a script with the script's own rules."""

    def __init__(self, words: list[str], variables: set[int], script: str | None, assigned: dict[str, str]) -> None:
        self.words, self.variables, self.assigned = words, variables, assigned
        self.script = script or arguments.script_for((word[2:].partition("=")[0] for word in words if _is_flag(word)), _model(words))
        self.findings: list[Finding] = []
        self.order: list[str] = []
        """The names that were said."""
        self.as_written: dict[str, str] = {}
        self.unread: list[str] = []
        self.unknown: set[str] = set()
        self.renamed: list[tuple[str, str, object]] = []

    def read(self) -> Settings:
        if self.variables:
            self._fill_variables()
        self._look_at_names()
        parser = arguments.parser(self.script)
        given, extra = None, []
        while given is None:
            try:
                given, extra = parser.read(self.words)
            except arguments.UsageError as error:
                dropped = self._drop(error.argument) if error.argument else []
                if not dropped:
                    self._add("usage", f"{self.script}: error: {shown(error, 160)}", "argparse leaves before anything is loaded.", "")
                    break
                self._bad_value(error, dropped)
        self._leftovers(extra)
        given = {name: given[name] for name in self.order if name in given} if given else {}
        return Settings(
            "flags",
            self.script,
            given=given,
            findings=tuple(self.findings),
            unread=tuple(self.unread),
            unknown=frozenset(self.unknown | ({"*"} if given.get("config_file") else set())),
            renamed=tuple(self.renamed),
            as_written={name: (text, given[name]) for name, text in self.as_written.items() if name in given},
        )

    def _add(self, rule: str, what: str, why: str, fix: str, effect: str = "raises") -> None:
        self.findings.append(Finding(rule=rule, effect=effect, what=what, why=why, fix=fix, lesson="07"))

    def _names(self, flag: str) -> tuple[str, ...]:
        """The arguments that a flag may stand for."""
        return arguments.full_name(flag[2:].partition("=")[0], self.script)

    def _fill_variables(self) -> None:
        """Fill in the variables that the text itself sets. What another will hold cannot be known: its flag is left out."""
        kept: list[str] = []
        for index, word in enumerate(self.words):
            if index not in self.variables:
                kept.append(word)
                continue
            before = kept[-1] if kept else ""
            flag = word if _is_flag(word) else before if _is_flag(before) and "=" not in before else ""
            names, typed = self._names(flag), _with_quotes(word) if flag == word else f'{flag} "{word}"' if flag else word
            if (value := shell.filled(word, self.assigned)) is not None:
                if len(names) == 1:
                    self.as_written[names[0]] = typed
                kept.append(value)
                continue
            if flag and flag != word:
                kept.pop()
            elif not flag:
                before = self._names(next(filter(_is_flag, reversed(kept)), ""))
                names = ("*", *(name for name in before if arguments.arguments(self.script)[name].many))  # the list it may belong to
            self.unread.append(typed)
            self.unknown.update(names)
            self._add(
                "variable", f"{shown(word)} holds a variable.", "Its value is not in the text.", "Write the value in its place.", "note"
            )
        self.words = kept

    def _look_at_names(self) -> None:
        seen: dict[str, str] = {}
        kept, skipping = [], False
        for word in self.words:
            if not _is_flag(word) or word == "--":
                if not skipping:
                    kept.append(word)
                continue
            name, _, value = word[2:].partition("=")
            meant = arguments.full_name(name, self.script)
            skipping = len(meant) > 1
            if skipping:
                what = f"--{shown(name)} could be {', '.join(f'--{one}' for one in meant[:4])}."
                fix = f"Write it out: --{arguments.NICKNAMES.get(name, meant[0])}."
                self._add("ambiguous-argument", what, "argparse completes a beginning only if it is unique.", fix)
                continue
            kept.append(word)
            if not meant:
                continue
            (full,) = meant
            if full != name:
                why = "argparse completes names. A later version with another argument of that beginning would refuse it."
                self._add("abbreviated-argument", f"--{shown(name)} is taken as --{full}.", why, f"Write --{full}.", "note")
            if seen.pop(full, value) != value:
                what = f"--{full} is given twice; the last one counts."
                self._add("duplicate-argument", what, "argparse keeps the last value without a word.", "Keep one of them.", "overrides")
            seen[full] = value
        self.words, self.order = kept, list(seen)

    def _drop(self, name: str) -> list[str]:
        """Take one flag and its values out, and return them."""
        kept, dropped, inside = [], [], False
        for word in self.words:
            if _is_flag(word):
                inside = self._names(word) == (name,)
            (dropped if inside else kept).append(word)
        self.words = kept
        return dropped

    def _bad_value(self, error: arguments.UsageError, dropped: list[str]) -> None:
        argument = arguments.arguments(self.script)[str(error.argument)]
        said = f"{self.script}: error: argument --{argument.name}: {shown(error, 160)}"
        if len(dropped) == 3 and dropped[1] == "=" and self._rename(dropped[0], argument.name, [f"--{argument.name}={dropped[2]}"]):
            fix = f"No spaces around =: --{argument.name}={shown(dropped[2])}"
            self._add("spaces-around-equals", said, "The = is a word of its own here.", fix)
        else:
            self._add("bad-value", said, "argparse leaves with status 2 before anything is loaded.", argument.wanted)

    def _rename(self, old: str, name: str, words: list[str]) -> bool:
        """Note what was meant, if sd-scripts would take it, and say whether it would."""
        try:
            given, extra = arguments.parser(self.script).read(words)
        except arguments.UsageError:
            return False
        if extra or name not in given:
            return False
        self.renamed.append((old, name, given[name]))
        return True

    def _leftovers(self, extra: list[str]) -> None:
        """What no argument has taken."""
        strange = 0
        for place, word in enumerate(extra):
            if not word.startswith(DASHES):
                continue
            what = f"{self.script}: error: unrecognized arguments: {shown(word)}"
            name, equals, value = word.lstrip("".join(DASHES)).partition("=")
            name, known = name.replace("-", "_"), arguments.arguments(self.script)
            if name in known:
                self._rename(word, name, [f"--{name}={value}"] if equals else [f"--{name}"])
                self._add("hyphens", what, "Names begin with two plain hyphens and have underscores inside.", f"Write --{name}.")
                continue
            strange += 1
            if strange > FEW:
                self._add("unknown-argument", what, f"{self.script} has no such argument.", "Leave it out.")
                continue
            if near := arguments.closest(name, known):
                values = list(takewhile(lambda one: not one.startswith("-"), extra[place + 1 :]))
                self._rename(word, near, [f"--{near}={value}"] if equals else [f"--{near}", *values])
            self._add("unknown-argument", what, *arguments.unknown(name, self.script))
        if extra and not any(word.startswith(DASHES) for word in extra):
            what = f"{self.script}: error: unrecognized arguments: {shown(' '.join(extra))}"
            fix = "Put quotes around values with spaces, and no spaces around =."
            self._add("stray-words", what, "These words belong to no flag.", fix)


def _model(words: list[str]) -> str:
    """The name of the model, before the flags are read."""
    flag = "--pretrained_model_name_or_path"
    pairs = (word.partition("=") if word.startswith(f"{flag}=") else (word, "", following) for word, following in pairwise((*words, "")))
    return next((value for name, _, value in pairs if name == flag), "")


def _with_quotes(word: str) -> str:
    """A word with a variable as it has to be typed: `--learning_rate="$LR"`."""
    name, equals, value = word.partition("=")
    return f'{name}="{value}"' if equals else f'"{word}"'
