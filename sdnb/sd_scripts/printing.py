"""Settings printed back: as flags, as TOML, and in the form they came in."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any, cast

from ..system import number
from . import arguments, notebooks, shell
from .settings import Settings

PLAIN = re.compile(r"[\w@%+=:,./!-]+", re.ASCII)
"""Word of a launcher that needs no quotes."""


def flags(given: Mapping[str, object], mark: str = "\\") -> list[str]:
    """Words of a command line for `given`, each quoted for the shell whose lines end in `mark`. Lists come last."""
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
    """Settings in the form they came in: a TOML file keeps its comments, a command its launcher, a GUI file and a notebook all else.

    All keep their line ends. Raises `ValueError` where the command does not stand in just one cell of its notebook.
    """
    text, original = _to_text(settings), settings.original
    if settings.notebook:
        start, end = settings.span or (0, len(str(original)))
        old = str(original)[start:end]
        return notebooks.with_command(settings.notebook, old, text[start : len(text) - len(str(original)) + end])
    ends = "\r\n" if isinstance(original, str) and 0 < original.count("\n") == original.count("\r\n") else "\n"
    return text if ends == "\n" else re.sub(r"\r?\n", ends, text)


def _to_text(settings: Settings) -> str:
    if settings.form == "toml":
        return _toml_with(str(settings.original), settings)
    if settings.form == "gui":
        from . import gui

        known, original = arguments.arguments(settings.script), cast("dict[str, Any]", settings.original)
        before = {name: value for name, value in gui.translate(original).values.items() if name in known}
        changes = {name: settings.given.get(name) for name in {*before, *settings.given} if before.get(name) != settings.given.get(name)}
        text = json.dumps(gui.rewrite(original, changes), indent=2, ensure_ascii=False)
        return text if _can_say(text, settings.encoding) else json.dumps(json.loads(text), indent=2)
    same = {name: text for name, (text, value) in settings.as_written.items() if repr(settings.given.get(name)) == repr(value)}
    attached = [*same.values(), *(word for word in settings.unread if word.startswith("--"))]
    rest = flags({name: value for name, value in settings.given.items() if name not in {*same, *settings.in_lists}}, settings.mark)
    words = [*attached, *rest, *(word for word in settings.unread if word not in attached)]
    if settings.form == "command":
        pairs = zip(settings.prefix, settings.launcher, strict=True)
        launcher = " ".join(word if PLAIN.fullmatch(word) and written.strip("\"'") == word else written for word, written in pairs)
        command = (f" {settings.mark}\n  " if settings.mark else " ").join([launcher, *words])
    else:
        command = " ".join([*settings.launcher, *words])
    if settings.span is None:
        return command
    start, end = settings.span
    return str(settings.original)[:start] + command + str(settings.original)[end:]


def _can_say(text: str, encoding: str) -> bool:
    try:
        return bool(text.encode(encoding or "ascii"))
    except UnicodeEncodeError:
        return False


def as_toml(given: Mapping[str, object]) -> str:
    """Text of a TOML file; values that TOML has no form for, such as null, are left out."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    document = tomlkit.document()
    for name, value in given.items():
        with contextlib.suppress(TOMLKitError, ValueError):
            document[name] = tomlkit.item(value)
    return tomlkit.dumps(document)


def _word(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _toml_with(text: str, settings: Settings) -> str:
    """TOML text with its values changed to those of the settings; comments, order and everything else stay."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    given = settings.given
    try:
        document = tomlkit.parse(text)
    except TOMLKitError:
        return text
    tables = [document, *(part for part in document.values() if isinstance(part, dict))]
    known = arguments.arguments(settings.script)
    for place, table in enumerate(tables):
        for old, name, _ in settings.renamed:
            if old in table and name in given and not any(name in other for other in tables):
                _rename_key(table, old, name)
        for name in [name for name in table if name in known and not isinstance(table[name], dict)]:
            if any(name in later for later in tables[place + 1 :]):
                continue  # the last one counts
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


def _plain(value: Any) -> object:
    return value.unwrap() if hasattr(value, "unwrap") else value


def _toml_value(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
