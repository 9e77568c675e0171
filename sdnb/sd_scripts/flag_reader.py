"""Flags behind a training script, read by the script's own rules: names, values, variables of a shell, and slips."""

from __future__ import annotations

from itertools import pairwise, takewhile

from ..system import shown
from . import arguments
from .findings import Finding
from .settings import Settings
from .shell import Command
from .shell_variables import filled

DASHES = ("-", "—", "–")
FEW = 20
"""Unknown names that get a suggestion; finding one takes a while."""
FORMER = {"use_dadaptation": "--optimizer_type=DAdaptation"}
"""Flags of earlier versions, and what says the same today."""


def is_flag(word: str) -> bool:
    """Whether a word is a flag, such as `--learning_rate=1e-4`."""
    return word.startswith("--")


class FlagReader:
    """Reader of the words behind a script, by the script's own rules."""

    def __init__(self, command: Command, start: int, listed: dict[int, str], script: str | None) -> None:
        self.command, self.start, self.listed = command, start, listed
        words = command.words[start:]
        self.words = words
        self.script = script or arguments.script_for((word[2:].partition("=")[0] for word in words if is_flag(word)), _model(words))
        self.findings: list[Finding] = []
        self.order: list[str] = []
        """Names that were given, in order."""
        self.as_written: dict[str, str] = {}
        self.in_lists: set[str] = set()
        self.held: dict[str, str] = {}
        self.unread: list[str] = []
        self.unknown: set[str] = set()
        self.renamed: list[tuple[str, str, object]] = []

    def read(self) -> Settings:
        """Settings that the words give, with what is to be said of the words themselves."""
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
                    self._add(
                        "usage", f"{self.script}: error: {shown(error, 160)}", "argparse stops the script before anything is loaded.", ""
                    )
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
            unknown=frozenset(self.unknown | ({"*"} if given.get("config_file") or "config_file" in self.unknown else set())),
            in_lists=frozenset(self.in_lists),
            held=self.held,
            renamed=tuple(self.renamed),
            as_written={name: (text, given[name]) for name, text in self.as_written.items() if name in given},
        )

    def _add(self, rule: str, what: str, why: str, fix: str, effect: str = "raises") -> None:
        self.findings.append(Finding(rule=rule, effect=effect, what=what, why=why, fix=fix, lesson="07"))

    def _names(self, flag: str) -> tuple[str, ...]:
        """Arguments that a flag may stand for."""
        return arguments.full_name(flag[2:].partition("=")[0], self.script)

    def _fill_variables(self) -> None:
        """Fill in the variables that the text itself sets; a flag with any other variable is left out."""
        kept: list[str] = []
        held: list[str] = []
        command = self.command
        for place, word in enumerate(self.words, self.start):
            raw = command.raw[place]
            before = kept[-1] if kept else ""
            flag = word if is_flag(word) else before if is_flag(before) and "=" not in before else ""
            names = self._names(flag)
            if place in self.listed:
                self.in_lists.update(names or self._names(next(filter(is_flag, reversed(kept)), "")))
                self.unread += [raw_list] if (raw_list := self.listed[place]) not in self.unread else []
            if place in command.spelt and len(names) == 1:
                self.as_written[names[0]] = raw if flag == word else f"{flag} {raw}"
            if place not in command.variables | command.substitutions:
                kept.append(word)
                continue
            several = any(arguments.arguments(self.script)[name].many for name in names)
            plain = raw == word and place in command.variables and not several
            typed = (_with_quotes(word) if plain else raw) if flag == word or not flag else f'{flag} "{word}"' if plain else f"{flag} {raw}"
            typed = raw if not flag else typed
            if place in command.variables and (value := filled(word, command.assigned)) is not None:
                if len(names) == 1:
                    self.as_written[names[0]] = typed
                kept.append(value)
                continue
            if flag and flag != word:
                kept.pop()
            elif not flag:
                before = self._names(next(filter(is_flag, reversed(kept)), ""))
                names = ("*", *(name for name in before if arguments.arguments(self.script)[name].many))  # the list it may belong to
            self.unread.append(typed)
            self.unknown.update(names)
            held.append(word)
            if flag and len(names) == 1:
                self.held[names[0]] = word.partition("=")[2] if flag == word else word
        if held:
            some = ", ".join(shown(word, 60) for word in held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
            what, why = (f"{some} hold variables.", "Their values are") if len(held) > 1 else (f"{some} holds a variable.", "Its value is")
            self._add("variable", what, f"{why} not in the text.", "Write the value in its place.", "note")
        self.words = kept

    def _look_at_names(self) -> None:
        seen: dict[str, str] = {}
        kept, skipping = [], False
        for word in self.words:
            if not is_flag(word) or word == "--":
                if not skipping:
                    kept.append(word)
                continue
            name, _, value = word[2:].partition("=")
            meant = arguments.full_name(name, self.script)
            skipping = len(meant) > 1
            if skipping:
                what = f"--{shown(name)} could be {', '.join(f'--{one}' for one in meant[:4])}."
                fix = f"Write it out: --{arguments.NICKNAMES.get(name, meant[0])}."
                self._add("ambiguous-argument", what, "argparse completes a shortened name only if it is unique.", fix)
                continue
            kept.append(word)
            if not meant:
                continue
            (full,) = meant
            if full != name:
                why = "argparse completes shortened names. A later version with another argument that begins the same would refuse it."
                self._add("abbreviated-argument", f"--{shown(name)} is taken as --{full}.", why, f"Write --{full}.", "note")
            if full in seen and arguments.arguments(self.script)[full].many:
                self._join(full)
                seen.pop(full)
            elif seen.pop(full, value) != value:
                what = f"--{full} is given twice; the last one counts."
                self._add("duplicate-argument", what, "argparse silently keeps the last value.", "Keep one of them.", "overrides")
            seen[full] = value
        self.words, self.order = kept, list(seen)

    def _join(self, name: str) -> None:
        """Note the values of a list that is given in several pieces, of which argparse keeps the last."""
        if any(old == name for old, *_ in self.renamed):
            return
        values: list[str] = []
        inside = False
        for word in self.words:
            if is_flag(word):
                inside = self._names(word) == (name,)
                values += [word.partition("=")[2]] if inside and "=" in word else []
            elif inside:
                values.append(word)
        what = f"--{name} is given several times; only the values after the last one count."
        self._add("duplicate-argument", what, "argparse silently keeps the last list.", f"One --{name} with all values.", "overrides")
        self._rename(name, name, [f"--{name}", *values])

    def _drop(self, name: str) -> list[str]:
        """Take one flag and its values out, and return them."""
        kept, dropped, inside = [], [], False
        for word in self.words:
            if is_flag(word):
                inside = self._names(word) == (name,)
            (dropped if inside else kept).append(word)
        self.words = kept
        return dropped

    def _bad_value(self, error: arguments.UsageError, dropped: list[str]) -> None:
        argument = arguments.arguments(self.script)[str(error.argument)]
        said = f"{self.script}: error: argument --{argument.name}: {shown(error, 160)}"
        if len(dropped) == 3 and dropped[1] == "=" and self._rename(dropped[0], argument.name, [f"--{argument.name}={dropped[2]}"]):
            fix = f"No spaces around =: --{argument.name}={shown(dropped[2])}"
            self._add("spaces-around-equals", said, "The shell passes this = on as a separate word.", fix)
        else:
            self._add("bad-value", said, "argparse stops the script with status 2 before anything is loaded.", argument.wanted)

    def _rename(self, old: str, name: str, words: list[str]) -> bool:
        """Note the flag that was meant, if sd-scripts would take it; returns whether it would."""
        try:
            given, extra = arguments.parser(self.script).read(words)
        except arguments.UsageError:
            return False
        if extra or name not in given:
            return False
        self.renamed.append((old, name, given[name]))
        return True

    def _leftovers(self, extra: list[str]) -> None:
        """Findings about words that no argument has taken."""
        strange = 0
        for place, word in enumerate(extra):
            if not word.startswith(DASHES):
                continue
            own = takewhile(lambda one: not one.startswith(DASHES), extra[place + 1 :])
            what = f"{self.script}: error: unrecognized arguments: {shown(' '.join([word, *own]))}"
            name, equals, value = word.lstrip("".join(DASHES)).partition("=")
            name, known = name.replace("-", "_"), arguments.arguments(self.script)
            if name in known:
                self._rename(word, name, [f"--{name}={value}"] if equals else [f"--{name}"])
                self._add("hyphens", what, "Names begin with two plain hyphens and have underscores inside.", f"Write --{name}.")
                continue
            if name in FORMER:
                flag = FORMER[name]
                self._rename(word, flag[2:].partition("=")[0], [flag])
                why = f"Earlier versions had it; {self.script} has {flag.partition('=')[0]} in its place."
                self._add("unknown-argument", what, why, f"Write {flag}.")
                continue
            strange += 1
            if strange > FEW:
                self._add("unknown-argument", what, f"{self.script} has no such argument.", "Leave it out.")
                continue
            if near := arguments.closest(name, known):
                values = list(takewhile(lambda one: not one.startswith("-"), extra[place + 1 :]))
                if near not in self.order and arguments.is_slip(name, near):
                    self._rename(word, near, [f"--{near}={value}"] if equals else [f"--{near}", *values])
            self._add("unknown-argument", what, *arguments.unknown(name, self.script))
        if stray := list(takewhile(lambda word: not word.startswith(DASHES), extra)):
            what = f"{self.script}: error: unrecognized arguments: {shown(' '.join(stray))}"
            fix = "Put quotes around values with spaces, and no spaces around =."
            self._add("stray-words", what, "These words belong to no flag.", fix)


def _model(words: list[str]) -> str:
    """Name of the model, before the flags are read."""
    flag = "--pretrained_model_name_or_path"
    pairs = (word.partition("=") if word.startswith(f"{flag}=") else (word, "", following) for word, following in pairwise((*words, "")))
    return next((value for name, _, value in pairs if name == flag), "")


def _with_quotes(word: str) -> str:
    """Word with a variable as it has to be typed: `--learning_rate="$LR"`."""
    name, equals, value = word.partition("=")
    return f'{name}="{value}"' if equals else f'"{word}"'
