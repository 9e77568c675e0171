"""`Settings`: the settings of one run as somebody wrote them, and as sd-scripts would come to hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from . import arguments
from .findings import Finding


@dataclass(frozen=True)
class Settings:
    """The settings of one run, as sd-scripts would come to hold them."""

    form: str
    """Form they were written in: `flags`, `command`, `toml`, `gui` or `none`."""
    script: str = arguments.DEFAULT_SCRIPT
    script_named: bool = False
    """Whether the text says which script it is for; otherwise the first that knows all its arguments is taken."""
    given: Mapping[str, object] = field(default_factory=dict)
    """Values by name. Those of a command line have sd-scripts' types, those of a TOML file are as they stand there."""
    launch: Mapping[str, str] = field(default_factory=dict)
    """Flags of `accelerate launch`."""
    findings: tuple[Finding, ...] = ()
    """Findings made while reading."""
    original: object = None
    """Text, or the GUI's parsed JSON, that changes are printed into."""
    prefix: tuple[str, ...] = ()
    """The words of a command up to and including its script."""
    unread: tuple[str, ...] = ()
    """Words that hold shell variables; they are printed back as they were."""
    unknown: frozenset[str] = frozenset()
    """The names whose values stand elsewhere, in a variable; `*` for every name that was not said, as with a config_file."""
    as_written: Mapping[str, tuple[str, object]] = field(default_factory=dict)
    """Flags with variables that the text sets, as they were written, and their values."""
    launcher: tuple[str, ...] = ()
    """The words before the first flag as they were written."""
    in_lists: frozenset[str] = frozenset()
    """The names that a list of the shell says, which is kept as it stands."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Text in place of a value that is not known, such as `$LR`, by name."""
    whole: bool = True
    """Whether all of the text is understood and no other file has settings of the run."""
    unmendable: str = ""
    """Reason why the text cannot be mended; empty if it can."""
    encoding: str = "utf-8"
    """The encoding of the file that it was read from."""
    mark: str = "\\"
    """Mark at the end of a line that goes on; empty where the command is one line."""
    span: tuple[int, int] | None = None
    """Beginning and end of the command in `original`; the lines around it are kept."""
    notebook: str = ""
    """Jupyter notebook, as JSON, that the command stands in."""
    renamed: tuple[tuple[str, str, object], ...] = ()
    """Misspelt names, what they mean, and their values."""
    version: str = ""
    """The version of sd-scripts they are for, as `versions.chosen` names it; empty where it is not known."""
    repaired: Settings | None = None
    """Settings of the text with straight quotes and hyphens, where a word processor had put others."""

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

    @classmethod
    def nothing(cls, what: str, fix: str, original: object = None) -> Settings:
        """No settings, since the text holds none."""
        return cls("none", findings=(Finding(rule="no-settings", effect="raises", what=what, why="", fix=fix),), original=original)

    @property
    def processes(self) -> int:
        """Number of processes that `accelerate launch` was asked for."""
        try:
            return max(1, int(self.launch.get("num_processes", 1)))
        except ValueError:
            return 1

    def change(self, changes: Mapping[str, object]) -> Settings:
        """Settings with some values changed; None takes a setting back."""
        given = {name: value for name, value in {**self.given, **changes}.items() if value is not None}
        return replace(self, given=given)

    def spelt_right(self) -> Settings:
        """Settings with those misspelt names put right that can only mean one thing."""
        if self.repaired:
            return self.repaired.spelt_right()
        return self.change({name: value for old, name, value in self.renamed if old == name or name not in self.given})
