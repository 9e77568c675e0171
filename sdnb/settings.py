"""`Settings`: what somebody typed for sd-scripts, read from a command line, a TOML file or the GUI's JSON, and printed back."""

from __future__ import annotations

import contextlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import arguments, gui, shell
from .arguments import Argument
from .findings import Finding
from .wording import number, shown

CALCULATED = ("learning_rate", "max_train_steps", "lr_warmup_steps", "lr_decay_steps", "gradient_accumulation_steps", "max_grad_norm")
"""Numbers that sd-scripts calculates with as soon as it makes the optimizer and the schedule."""
MANY = 8
"""So many unknown names are no slips."""
LONGEST = 200_000
"""Characters. The settings of a run are a few thousand."""
PLAIN = re.compile(r"[\w@%+=:,./!-]+", re.ASCII)
STRAIGHT = str.maketrans({**dict.fromkeys("“”„‟″", '"'), **dict.fromkeys("‘’‛′", "'"), "—": "--", "–": "--", "\u00a0": " "})
BUILT = re.compile(r"^\$?\w+\s*(\+?=\(|\+=)|\.Add\(|\+=")
"""A line of a script that puts flags into a variable."""
PYTHON = re.compile(r"\b(os\.system|subprocess\.\w+)\s*\(|^\s*(import|from) \w+", re.MULTILINE)
SAMPLE_PROMPT = re.compile(r"\s--(n|w|h|d|l|s|g|ss|cn|ctr|rcfg|fs|am)\s")
FILE_NAME = re.compile(r"\S+\.(toml|json|txt|log|sh|bat|ps1|cmd|yaml|yml)", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """The settings of one run, as sd-scripts would come to hold them."""

    form: str
    """`flags`, `command`, `toml`, `gui` or `none`: how they were written."""
    script: str = arguments.DEFAULT_SCRIPT
    script_named: bool = False
    """Whether the text says which script it is for; otherwise the first that knows all its arguments is taken."""
    given: Mapping[str, object] = field(default_factory=dict)
    """What was said: the values of a command line have sd-scripts' types, those of a TOML file are as they stand there."""
    launch: Mapping[str, str] = field(default_factory=dict)
    """What `accelerate launch` was given."""
    findings: tuple[Finding, ...] = ()
    """What was noticed while reading."""
    original: object = None
    """The text, or the GUI's parsed JSON, to print changes into."""
    prefix: tuple[str, ...] = ()
    """The words of a command up to and including its script."""
    unread: tuple[str, ...] = ()
    """Words that hold shell variables; they are printed back as they were."""
    unknown: frozenset[str] = frozenset()
    """The names whose values stand elsewhere, in a variable; `*` for every name that was not said, as with a config_file."""
    as_written: Mapping[str, tuple[str, object]] = field(default_factory=dict)
    """Flags with variables that the text sets, as they were written, and their values."""
    mark: str = "\\"
    """What ends a line of the command that goes on."""
    span: tuple[int, int] | None = None
    """Where in `original` the command stands; the lines around it are kept."""
    renamed: tuple[tuple[str, str, object], ...] = ()
    """Misspelt names, what they mean, and their values."""
    repaired: Settings | None = None
    """The same text with straight quotes and hyphens, where a word processor had put others."""

    def __getitem__(self, name: str) -> object:
        """The value sd-scripts uses: the given one, or its default."""
        if name in self.given:
            return self.given[name]
        known = arguments.arguments(self.script).get(name)
        return known.default if known else arguments.default(name)

    def said(self, name: str) -> bool:
        """Whether a value was given, be it in a shell variable."""
        return name in self.given or name in self.unknown

    def is_unknown(self, name: str) -> bool:
        """Whether the value stands somewhere that is not looked at."""
        return name in self.unknown or ("*" in self.unknown and name not in self.given)

    @property
    def processes(self) -> int:
        """How many processes `accelerate launch` was asked for."""
        try:
            return max(1, int(self.launch.get("num_processes", 1)))
        except ValueError:
            return 1

    def change(self, changes: Mapping[str, object]) -> Settings:
        """The same with some values changed; None takes a setting back."""
        given = {name: value for name, value in {**self.given, **changes}.items() if value is not None}
        return replace(self, given=given)

    def spelt_right(self) -> Settings:
        """The same with the misspelt names that can only mean one thing."""
        if self.repaired:
            return self.repaired.spelt_right()
        return self.change({name: value for old, name, value in self.renamed if old == name or name not in self.given})


def read(source: str | Path | list[str], script: str | None = None) -> Settings:
    """Settings from a text, a file, or the words of a command line. Whatever it holds, nothing is raised, run or opened but that file.

    `script` is the training script they are for, where the text does not say.
    """
    if isinstance(source, Path) or (isinstance(source, str) and FILE_NAME.fullmatch(source.strip())):
        source = _contents(Path(str(source).strip()))
        if isinstance(source, Finding):
            return Settings("none", findings=(source,))
    if isinstance(source, list):
        return _from_list([str(word) for word in source], script)
    if len(source) > LONGEST:
        return _nothing(
            f"{len(source):,} characters were given; the settings of a run are a few thousand.", "Give the settings alone.", source
        )
    text = source.lstrip("\ufeff").replace("\0", "")
    text = _unquoted(text)
    if not text.strip():
        return _nothing("The text is empty.", "Give a command line, a TOML file or the GUI's JSON.", source)
    if text.lstrip().startswith(("{", "[{", "[]")):
        found = _from_json(text, script)
    elif _looks_like_toml(text):
        found = _from_toml(text, script)
    else:
        found = _from_shell(text, script)
    return replace(found, original=text) if found.original is None else found


def flags(given: Mapping[str, object], mark: str = "\\") -> list[str]:
    """The words of a command line that say `given`, each quoted for the shell whose lines end in `mark`. Lists come last."""
    words, lists = [], []
    for name, value in given.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, (list, tuple)):
            lists.append(" ".join([f"--{name}", *(shell.quote(_word(part), mark) for part in value)]))
        elif value is not None and value is not False:
            words.append(f"--{name}={shell.quote(_word(value), mark)}")
    return words + lists


def to_text(settings: Settings) -> str:
    """The settings in the form they came in: a TOML file keeps its comments, a command its launcher, a GUI file its other fields."""
    if settings.form == "toml":
        return _toml_with(str(settings.original), settings)
    if settings.form == "gui":
        known = arguments.arguments(settings.script)
        before = {name: value for name, value in gui.translate(settings.original).values.items() if name in known}
        changes = {name: settings.given.get(name) for name in {*before, *settings.given} if before.get(name) != settings.given.get(name)}
        return json.dumps(gui.rewrite(settings.original, changes), indent=2)
    same = {name: text for name, (text, value) in settings.as_written.items() if repr(settings.given.get(name)) == repr(value)}
    attached = [*same.values(), *(word for word in settings.unread if word.startswith("--"))]
    rest = flags({name: value for name, value in settings.given.items() if name not in same}, settings.mark)
    words = [*attached, *rest, *(word for word in settings.unread if word not in attached)]
    if settings.form == "command":
        launcher = " ".join(word if PLAIN.fullmatch(word) else shell.quote(word, settings.mark) for word in settings.prefix)
        command = f" {settings.mark}\n  ".join([launcher, *words])
        if settings.span is None:
            return command
        start, end = settings.span
        return str(settings.original)[:start] + command + str(settings.original)[end:]
    return " ".join(words)


def _word(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _unquoted(text: str) -> str:
    """The text without the marks of a forum: the code between fences, and no `>` at the beginning of lines."""
    lines = text.splitlines()
    if len(lines) > 1 and all(line.startswith(">") for line in lines if line.strip()):
        text = "\n".join(line[1:].removeprefix(" ") for line in lines)
    fences = re.findall(r"^[ \t]*```[\w-]*[ \t]*\n(.*?)^[ \t]*```", text, re.DOTALL | re.MULTILINE)
    return max(fences, key=lambda code: (code.count("--") + code.count("="), len(code))) if fences else text


def _contents(path: Path) -> str | Finding:
    try:
        with path.open("rb") as file:
            data = file.read(50_000_000)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return Finding(
            rule="file-not-read", effect="raises", what=f"{path} cannot be read: {why}.", why="", fix="Check the name, or paste the text."
        )
    return data.decode("utf-8", errors="replace")


def _nothing(what: str, fix: str, original: object = None) -> Settings:
    return Settings("none", findings=(Finding(rule="no-settings", effect="raises", what=what, why="", fix=fix),), original=original)


def _choose_script(names: list[str], script: str | None) -> str:
    """The named script, or the first that knows the most of `names`."""
    if script is not None:
        return script
    known = [(sum(name in arguments.arguments(one) for name in names), one) for one in arguments.facts()["scripts"]]
    return max(known, key=lambda pair: pair[0])[1]


def _from_shell(text: str, script: str | None) -> Settings:
    if PYTHON.search(text) and not text.lstrip().startswith(("!", "accelerate", "python")):
        return _nothing("This is Python code.", "Give the command alone, as it would be typed into a terminal.", text)
    if SAMPLE_PROMPT.search(text) and not any(
        f"--{name}" in text for name in ("optimizer_type", "learning_rate", "network_", "lr_", "max_")
    ):
        return _nothing("This looks like prompts for sample pictures.", "Give the command, or the file of --config_file.", text)
    split = shell.split(text)
    if not split.commands:
        return _nothing("Nothing but blanks and comments was given.", "Give a command line, a TOML file or the GUI's JSON.")
    command = max(
        split.commands, key=lambda one: (_script_position(one.words) is not None, sum(word.startswith("--") for word in one.words))
    )
    command.assigned = shell.assignments(text)
    found = replace(from_words(command, script), mark=split.mark, span=(command.start, command.end), original=text)
    if any(BUILT.search(" ".join(one.words[:4])) for one in split.commands if one is not command):
        found = replace(found, unknown=found.unknown | {"*"})
    odd = []
    if split.unclosed and (found.form == "flags" or command.start <= split.unclosed_at <= command.end):
        odd.append(_shell_finding("unclosed-quote", f"The quote opened in line {split.unclosed} is never closed.", "Close it.", "raises"))
    if split.typographic and (straight := text.translate(STRAIGHT)) != text:
        found = replace(found, repaired=_from_shell(straight, script))
    if split.typographic and shell.CURLY.search(text):
        odd.append(
            _shell_finding("curly-quotes", "There are curly quotes (“ ”), which a shell takes as letters.", 'Type straight ones: ".')
        )
    if split.carets and split.single_quotes:
        odd.append(_shell_finding("single-quotes-in-cmd", "cmd.exe takes single quotes as letters.", 'Use double quotes: ".'))
    if command.broken:
        what = (
            "a space behind its last mark hides the line break"
            if command.trailing_space
            else "without a mark at its end, what follows is another command"
        )
        fix = (
            "Remove the space at its end." if command.trailing_space else "End the line with a backslash (bash), ^ (cmd) or ` (PowerShell)."
        )
        if command.trailing_space or found.form == "command":
            odd.append(_shell_finding("broken-line", f"The command ends after line {command.broken}: {what}.", fix, "overrides"))
    return replace(found, findings=(*odd, *found.findings))


def _from_list(words: list[str], script: str | None) -> Settings:
    """The words that a shell has already split."""
    found = from_words(shell.Command(words), script)
    straight = [word.translate(STRAIGHT).replace('"', "") if shell.CURLY.search(word) else word for word in words]
    if straight == words:
        return found
    curly = _shell_finding("curly-quotes", "There are curly quotes (“ ”), which a shell takes as letters.", 'Type straight ones: ".')
    return replace(found, findings=(curly, *found.findings), repaired=_from_list(straight, script))


def _shell_finding(rule: str, what: str, fix: str, effect: str = "raises") -> Finding:
    why = "The shell passes other words to sd-scripts than the ones that were meant."
    return Finding(rule=rule, effect=effect, what=what, why=why, fix=fix, lesson="07")


def _script_position(words: list[str]) -> int | None:
    if words and words[0].startswith("-"):
        return None  # flags alone; a script's name further on is somebody's value
    for position, word in enumerate(words):
        if word.endswith(".py") and not word.startswith("-") and re.split(r"[\\/]", word)[-1] in arguments.facts()["scripts"]:
            return position
    return None


def from_words(command: shell.Command, script: str | None = None) -> Settings:
    """Settings from the words of one command, its launcher included if it is there."""
    words, position = command.words, _script_position(command.words)
    prefix = tuple(words[: position + 1]) if position is not None else ()
    if position is None:
        first = next((i for i, word in enumerate(words) if word.startswith("-") or word[:1] in "—–"), None)
        if first is None:
            return _nothing("There is no flag in it.", "Flags look like --max_grad_norm=0; a TOML file like max_grad_norm = 0.")
        prefix = tuple(words[:first])
        if prefix and prefix[0].lstrip("!%") in ("accelerate", "python", "python3", "uv", "torchrun"):
            return _nothing(
                f"This launches none of sd-scripts' training scripts: {shown(' '.join(prefix[:6]))}",
                f"Give the command of a training script, such as {arguments.DEFAULT_SCRIPT}.",
            )
        position = first - 1
    elif script is None:
        script = re.split(r"[\\/]", prefix[-1])[-1]
    variables = {index - position - 1 for index in command.variables}
    found = _Flags(words[position + 1 :], variables, script, command.assigned).read()
    is_command = bool(prefix) and prefix[-1].endswith(".py")
    return replace(
        found,
        form="command" if is_command else "flags",
        script_named=script is not None,
        launch=_launch(prefix) if is_command else {},
        prefix=prefix if is_command else (),
    )


def _launch(prefix: tuple[str, ...]) -> dict[str, str]:
    """The flags between `accelerate launch` and the script."""
    launch, words = {}, list(prefix[:-1])
    for index, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = words[index + 1] if index + 1 < len(words) and not words[index + 1].startswith("-") else "true"
            launch[name.replace("-", "_")] = value if equals else following
    return launch


class _Flags:
    """Reads the words behind a script with the script's own rules."""

    def __init__(self, words: list[str], variables: set[int], script: str | None, assigned: dict[str, str]) -> None:
        self.words, self.variables, self.findings, self.assigned = words, variables, [], assigned
        self.as_written: dict[str, str] = {}
        self.unread, self.renamed, self.unknown = [], [], set()
        names = [word[2:].partition("=")[0] for word in words if word.startswith("--")]
        self.script = _choose_script(names, script)

    def read(self) -> Settings:
        self._drop_variables()
        self._look_at_names()
        parser = arguments.parser(self.script)
        namespace, extra = None, []
        while namespace is None:
            try:
                namespace, extra = parser.read(self.words)
            except arguments.UsageError as error:
                dropped = self._drop(error.argument) if error.argument else []
                if not dropped:
                    self._add("usage", f"{self.script}: error: {error}", "argparse leaves before anything is loaded.", "")
                    break
                self._bad_value(error, dropped)
        self._leftovers(extra)
        given = vars(namespace) if namespace else {}
        order = {name: place for place, name in enumerate(self.order)}
        given = dict(sorted(given.items(), key=lambda item: order.get(item[0], len(order))))
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

    def _add(self, rule: str, what: str, why: str, fix: str, effect: str = "raises", source: str = "") -> None:
        self.findings.append(Finding(rule=rule, effect=effect, what=what, why=why, fix=fix, source=source, lesson="07"))

    def _drop_variables(self) -> None:
        """Fill in the variables that the text itself sets. What another will hold cannot be known: its flag is left out."""
        kept, dropped = [], bool(self.variables)
        for index, word in enumerate(self.words):
            if index in self.variables and (value := shell.filled(word, self.assigned)) is not None:
                flag = word if word.startswith("--") else kept[-1] if kept and kept[-1].startswith("--") else ""
                names = arguments.full_name(flag[2:].partition("=")[0], self.script) if flag else ()
                if len(names) == 1:
                    self.as_written[names[0]] = _flag_with(word) if flag == word else f'{flag} "{word}"'
                kept.append(value)
            elif index in self.variables:
                name = kept.pop() if not word.startswith("--") and kept and kept[-1].startswith("--") and "=" not in kept[-1] else ""
                self.unread.append(f'{name} "{word}"' if name else _flag_with(word) if word.startswith("--") else word)
                flag = name or (word if word.startswith("--") else "")
                self.unknown.update(arguments.full_name(flag[2:].partition("=")[0], self.script) if flag else ("*",))
                inside = next((one for one in reversed(kept) if one.startswith("--")), "")  # the list it may belong to
                self.unknown.update(arguments.full_name(inside[2:].partition("=")[0], self.script) if not flag and inside else ())
                self._add(
                    "variable",
                    f"{shown(word)} holds a variable.",
                    "Its value is not in the text.",
                    "Write the value in its place.",
                    "note",
                )
            else:
                kept.append(word)
        if dropped:
            self.words = kept

    def _look_at_names(self) -> None:
        seen: dict[str, str] = {}
        kept, skipping, self.order = [], False, []
        for word in self.words:
            if not word.startswith("--") or word == "--":
                if not skipping:
                    kept.append(word)
                continue
            name, _, value = word[2:].partition("=")
            meant = arguments.full_name(name, self.script)
            skipping = len(meant) > 1
            if skipping:
                some = ", ".join(f"--{one}" for one in meant[:4])
                self._add(
                    "ambiguous-argument",
                    f"--{name} could be {some}.",
                    "argparse completes a beginning only if it is unique.",
                    f"Write it out: --{arguments.NICKNAMES.get(name, meant[0])}.",
                )
                continue
            kept.append(word)
            if len(meant) == 1 and meant[0] != name:
                why = "argparse completes names. A later version with another argument of that beginning would refuse it."
                self._add("abbreviated-argument", f"--{name} is taken as --{meant[0]}.", why, f"Write --{meant[0]}.", "note")
            if len(meant) == 1:
                self.order.append(meant[0])
                if meant[0] in seen and seen[meant[0]] != value:
                    what = f"--{meant[0]} is given twice; the last one counts."
                    self._add("duplicate-argument", what, "argparse keeps the last value without a word.", "Keep one of them.", "overrides")
                seen[meant[0]] = value
        self.words = kept

    def _drop(self, name: str) -> list[str]:
        """Take one flag and its values out, and return them."""
        kept, dropped, inside = [], [], False
        for word in self.words:
            if word.startswith("--"):
                inside = arguments.full_name(word[2:].partition("=")[0], self.script) == (name,)
            (dropped if inside else kept).append(word)
        self.words = kept
        return dropped

    def _bad_value(self, error: arguments.UsageError, dropped: list[str]) -> None:
        argument = arguments.arguments(self.script)[error.argument]
        if len(dropped) == 3 and dropped[1] == "=" and self._rename(dropped[0], argument.name, [f"--{argument.name}={dropped[2]}"]):
            fix = f"No spaces around =: --{argument.name}={dropped[2]}"
            self._add(
                "spaces-around-equals",
                f"{self.script}: error: argument --{argument.name}: {error}",
                "The = is a word of its own here.",
                fix,
            )
            return
        self._add(
            "bad-value",
            f"{self.script}: error: argument --{argument.name}: {shown(str(error), 160)}",
            "argparse leaves with status 2 before anything is loaded.",
            _wanted(argument),
        )

    def _rename(self, old: str, name: str, words: list[str]) -> bool:
        """Note what was meant, if sd-scripts would take it, and say whether it would."""
        try:
            namespace, extra = arguments.parser(self.script).read(words)
        except arguments.UsageError:
            return False
        if extra or name not in vars(namespace):
            return False
        self.renamed.append((old, name, vars(namespace)[name]))
        return True

    def _leftovers(self, extra: list[str]) -> None:
        stray = [word for word in extra if not word.startswith("-") and word[:1] not in "—–"]
        for word in extra:
            if word in stray:
                continue
            name, equals, value = word.lstrip("-—–").partition("=")
            name = name.replace("-", "_")
            if name in arguments.arguments(self.script):
                self._rename(word, name, [f"--{name}={value}"] if equals else [f"--{name}"])
                what = f"{self.script}: error: unrecognized arguments: {shown(word)}"
                self._add("hyphens", what, "Names begin with two plain hyphens and have underscores inside.", f"Write --{name}.")
                continue
            if near := arguments.closest(name, arguments.arguments(self.script)):
                following = extra[extra.index(word) + 1 :]
                words = (
                    [f"--{near}={value}"]
                    if equals
                    else [f"--{near}", *following[: next((i for i, w in enumerate(following) if w[:1] == "-"), None)]]
                )
                self._rename(word, near, words)
            self._add("unknown-argument", f"{self.script}: error: unrecognized arguments: {shown(word)}", *_unknown(name, self.script))
        if stray and len(stray) == len(extra):
            what = f"{self.script}: error: unrecognized arguments: {shown(' '.join(stray))}"
            self._add(
                "stray-words", what, "These words belong to no flag.", "Put quotes around values with spaces, and no spaces around =."
            )


def _wanted(argument: arguments.Argument) -> str:
    if argument.choices:
        return f"One of {', '.join(str(choice) for choice in argument.choices if choice is not None)}."
    return {
        "flag": f"Give --{argument.name} alone, without a value.",
        "int": "Give a whole number, such as 100.",
        "float": "Give a number, such as 1e-4.",
        "int_or_float": "Give whole steps (100), a ratio below 1 (0.05), or a percentage (5%).",
    }.get(argument.type, f"Give a value: --{argument.name}=….")


def _unknown(name: str, script: str) -> tuple[str, str]:
    """Why a name is not known to a script, and what to type instead."""
    others = arguments.scripts_with(name)
    if others:
        return f"It is an argument of {', '.join(others[:3])}, not of {script}.", f"Leave --{name} out, or run {others[0]}."
    near = arguments.closest(name, arguments.arguments(script))
    if near:
        return f"{script} has no such argument.", f"Did you mean --{near}?"
    everywhere = arguments.closest(name, arguments.facts()["arguments"])
    if everywhere:
        return f"{script} has no such argument.", f"Did you mean --{everywhere}, of {arguments.scripts_with(everywhere)[0]}?"
    return "None of sd-scripts' training scripts has such an argument.", "Leave it out."


def _looks_like_toml(text: str) -> bool:
    line = next((line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")), "")
    if re.fullmatch(r"\[\[?[^\]]*\]\]?\s*(#.*)?", line):
        return True
    if not re.match(r"""(?:[A-Za-z_][\w.-]*|"[^"=]+"|'[^'=]+')\s*=""", line):
        return False
    try:
        tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return not re.search(r"(^|\s)--\w", text)  # a command can begin with A=1, too
    return True


def _from_toml(text: str, script: str | None) -> Settings:
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        fix = 'Texts need quotes, lists brackets: lr_scheduler = "constant", optimizer_args = ["relative_step=False"].'
        finding = Finding(
            rule="toml-syntax", effect="raises", what=f"This is no TOML: {shown(str(error), 200)}",
            why="sd-scripts stops with the same complaint.",
            fix=fix, source="library/train_util.py:4746", lesson="07",
        )  # fmt: skip
        return Settings("toml", findings=(finding,))
    if "prompt" in data or isinstance(data.get("prompts"), list):
        return _nothing("These are prompts for sample pictures.", "Give the command, or the file of --config_file.", text)
    if any(name.endswith("_args") and isinstance(value, dict) and "args" in value for name, value in data.items()):
        what = "This is a file of LoRA Easy Training Scripts, which has a form of its own."
        return _nothing(what, "Give the configuration that it writes for sd-scripts.", text)
    if isinstance(data.get("datasets"), list):
        what = "This describes a data set, for --dataset_config; the settings of the training stand elsewhere."
        return _nothing(what, "Give the file of --config_file, or the command.", text)
    return _from_table(data, "toml", script)


def _from_table(data: dict, form: str, script: str | None) -> Settings:
    """What sd-scripts makes of a parsed configuration: one level of sections is dissolved, names and types are not looked at."""
    given, findings = {}, []

    def add(rule: str, effect: str, what: str, why: str, fix: str, line: int) -> None:
        source = f"library/train_util.py:{line}"
        findings.append(Finding(rule=rule, effect=effect, what=what, why=why, fix=fix, source=source, lesson="07"))

    for name, value in data.items():
        inside = value.items() if isinstance(value, dict) else [(name, value)]
        for key, one in inside:
            if key in given:
                why = "Sections are dissolved into one list of settings."
                add(
                    "toml-twice",
                    "overrides",
                    f"{shown(key)} is given in two sections; the last one counts.",
                    why,
                    "Keep one of them.",
                    4758,
                )
            given[key] = one
    chosen = _choose_script(list(given), script)
    known, renamed = arguments.arguments(chosen), []
    strange = [name for name in given if name not in known]
    if len(strange) > MANY and form != "gui":
        names = ", ".join(shown(name, 30) for name in strange[:6])
        what = f"{len(strange)} names are ignored without a word: {names}, …"
        add("toml-unknown", "overrides", what, f"{chosen} has no such arguments.", "Is this a file for sd-scripts?", 4760)
        for name in strange:
            del given[name]
    for name in [name for name in given if name not in known]:
        value = given.pop(name)
        if form == "gui":
            continue  # the GUI adds names of its own, which sd-scripts ignores
        near = arguments.closest(name.replace("-", "_"), known)
        if near and not _wrong_type(known[near], value):
            renamed.append((name, near, value))
        if isinstance(value, dict):
            why = "Only one level of sections is dissolved; what lies deeper is never seen."
            add(
                "toml-nested",
                "overrides",
                f"[{shown(name)}] lies inside another section and is ignored.",
                why,
                "Move its settings up.",
                4758,
            )
            continue
        why, fix = _unknown(name.replace("-", "_"), chosen)
        what = f"{shown(name)} is ignored without a word" + (f": {_short_default(fix, chosen)}" if "Did you mean" in fix else ".")
        add("toml-unknown", "overrides", what, f"{why} A TOML file is not checked for names.", fix.replace("--", ""), 4760)
    for name, value in given.items():
        argument = known[name]
        if (wrong := _wrong_type(argument, value)) and not _is_taken(argument, value, given):
            if (better := _as_meant(argument, value)) is not None:
                renamed.append((name, name, better))
            what = f"{name} = {shown(repr(value))} is {wrong}; it is taken as it stands."
            why = "Types and choices are checked on the command line only, not in a TOML file."
            add("toml-type", "overrides", what, why, _wanted_in_toml(argument), 4760)
    return Settings(form, chosen, script is not None, given, findings=tuple(findings), renamed=tuple(renamed))


def _short_default(fix: str, script: str) -> str:
    name = fix.partition("--")[2].partition("?")[0].partition(",")[0]
    argument = arguments.arguments(script).get(name)
    return f"{name} stays {argument.default!r}." if argument else "nothing is set."


def _wrong_type(argument: arguments.Argument, value: object) -> str:
    if argument.many:
        return "" if isinstance(value, list) else "no list"
    if argument.type == "flag":
        return "" if isinstance(value, bool) else "neither true nor false"
    if argument.type == "str":
        if not isinstance(value, str):
            return "no text"
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        return "no number"
    elif argument.type == "int" and not isinstance(value, int):
        return "no whole number"
    if argument.choices and value not in argument.choices:
        return "none of its choices"
    return ""


def _is_taken(argument: Argument, value: object, given: Mapping[str, object]) -> bool:
    """Whether a value of another type does no harm, or has a rule of its own."""
    if argument.name in CALCULATED:
        return isinstance(value, str)
    if argument.name == "text_encoder_lr":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if argument.name == "max_token_length":
        return value == 75  # the ordinary length
    if argument.name == "dynamo_backend":
        return not given.get("torch_compile")
    return value in ("", 0, False) and argument.type in ("str", "flag")


def _as_meant(argument: Argument, value: object) -> object:
    """A text that reads like a value of the right type, as that value; None if it does not."""
    if argument.type == "flag":
        return {"true": True, "false": False}.get(str(value).lower())
    try:
        better = arguments.TYPES[argument.type](str(value))
    except (ValueError, OverflowError):
        return None
    return None if argument.many or _wrong_type(argument, better) or better in (math.inf, -math.inf) or better != better else better


def _wanted_in_toml(argument: arguments.Argument) -> str:
    if argument.many:
        return f'{argument.name} = ["…", "…"]'
    if argument.type == "flag":
        return f"{argument.name} = true"
    if argument.type == "str" and not argument.choices:
        return f'{argument.name} = "…"'
    return _wanted(argument)


def _from_json(text: str, script: str | None) -> Settings:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        return replace(_nothing(f"This is no JSON: {shown(str(error), 160)}", "Save the GUI's settings again."), original=text)
    if gui.is_gui(data):
        found = gui.translate(data)
        extra = shell.split(found.extra_flags[:LONGEST])
        more = from_words(extra.commands[0], found.script) if extra.commands else Settings("none")
        odd = tuple(
            Finding(
                rule="gui-value", effect="overrides", what=problem, why="Read as the GUI would write its own configuration.", lesson="07"
            )
            for problem in found.problems
        )
        table = _from_table(found.values, "gui", script or found.script)
        dropped = _dropped_zeros(data, {**table.given, **more.given})
        odd += tuple(_dropped_zero(name) for name in dropped)
        return replace(
            table,
            given={**table.given, **more.given},
            launch={"num_processes": str(found.num_processes)},
            findings=(*odd, *table.findings, *more.findings),
            original=data,
            renamed=tuple((name, name, type(arguments.default(name))(0)) for name in dropped),
        )
    names = arguments.facts()["arguments"]
    if isinstance(data, dict) and any(name in names for name in data):
        table = _from_table(data, "toml", script)
        finding = Finding(
            rule="json-settings", effect="raises", what="sd-scripts reads no JSON; --config_file is parsed as TOML.",
            why="The names in it are sd-scripts' own, so it is looked at as if it were TOML.",
            fix="Write it as TOML: name = value, one a line.", source="library/train_util.py:4746", lesson="07",
        )  # fmt: skip
        return replace(table, findings=(finding, *table.findings), original=_as_toml(table.given))
    return replace(
        _nothing(
            "This JSON holds no settings of the kohya_ss GUI, nor names of sd-scripts' own.",
            "Save the settings in the GUI, and give that file.",
        ),
        original=text,
    )


def _as_toml(given: Mapping[str, object]) -> str:
    """The text of a TOML file; what TOML has no form for, such as null, is left out."""
    import tomlkit

    document = tomlkit.document()
    for name, value in given.items():
        with contextlib.suppress(tomlkit.exceptions.TOMLKitError, ValueError):
            document[name] = tomlkit.item(value)
    return tomlkit.dumps(document)


def _dropped_zeros(data: dict, values: Mapping[str, object]) -> list[str]:
    """Settings that are 0 in a GUI file but not on their way to sd-scripts, where leaving them out means something else."""
    value = data.get("max_grad_norm")
    return ["max_grad_norm"] if "max_grad_norm" not in values and value in (0, "0") and value is not False else []


def _dropped_zero(name: str) -> Finding:
    return Finding(
        rule="gui-drops-zero",
        effect="overrides",
        what=f"{name} is 0 in the GUI, but sd-scripts will use {number(arguments.default(name))}.",
        why="The GUI's LoRA and textual inversion tabs leave out every 0, because it equals False.",
        fix=f"Write --{name}=0 into the GUI's additional parameters.",
        source="kohya_gui/lora_gui.py:2565",
        lesson="07",
    )


def _toml_with(text: str, settings: Settings) -> str:
    """`text` with its values changed to the settings'; comments, order and everything else stay."""
    import tomlkit

    given = settings.given

    try:
        document = tomlkit.parse(text)
    except tomlkit.exceptions.TOMLKitError:
        return text
    tables = [document, *(part for part in document.values() if isinstance(part, dict))]
    known = arguments.facts()["arguments"]
    for table in tables:
        for old, name, _ in settings.renamed:
            if old in table and name in given:
                _rename_key(table, old, name)
        for name in [name for name in table if name in known and not isinstance(table[name], dict)]:
            if name not in given:
                del table[name]
            elif repr(_plain(table[name])) != repr(_toml_value(given[name])):  # repr: 100 is not 100.0
                table[name] = _toml_value(given[name])
    for name, value in given.items():
        if not any(name in table for table in tables):
            holder = next((table for table in tables[1:] if "optimizer_type" in table), tables[0] if len(tables) == 1 else tables[1])
            holder[name] = _toml_value(value)
    return tomlkit.dumps(document)


def _rename_key(table, old: str, name: str) -> None:
    """Give a value another name in its place, unless it has that name already elsewhere in the table."""
    items = list(table.items())
    for key, _ in items:
        del table[key]
    for key, value in items:
        if key != old:
            table[key] = value
        elif name not in dict(items):
            table[name] = value


def _plain(value: object) -> object:
    return value.unwrap() if hasattr(value, "unwrap") else value


def _toml_value(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _flag_with(word: str) -> str:
    name, equals, value = word.partition("=")
    return f'{name}="{value}"' if equals else f'"{word}"'
