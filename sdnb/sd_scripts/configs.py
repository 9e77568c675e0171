"""Configuration files read into settings: TOML, the GUI's JSON, and JSON with sd-scripts' own names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..system import BACKSLASHES, WINDOWS_PATH, quoted, shown
from . import arguments, shell
from .arguments import Argument
from .commandlines import from_text, from_words, words_in_list
from .findings import Finding
from .printing import as_toml
from .settings import Settings

if TYPE_CHECKING:
    from .gui import GuiSettings

MOST = 1000
"""Names in a file. sd-scripts has about 300 arguments, and the GUI as many fields."""
MANY = 8
"""Unknown names that may be slips; more of them are none."""
IS_SCRIPT = re.compile(r"""(?:^|[\s("'])--\w|^[ \t]*!?(?:accelerate|python3?)[ \t]""", re.MULTILINE)
"""Signs of a command, which can begin with A=1, too."""
DOTTED = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){30}""")
"""Name of more than 30 parts, which takes tomllib seconds and is no setting."""


def is_toml(text: str) -> bool:
    """Whether a text is meant as TOML, mistakes and all."""
    line = next((line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")), "")
    if re.fullmatch(r"\[\[?[^\](]*\]\]?\s*(#.*)?", line):
        return not re.search(r"""["']--\w""", line)  # words of a command in Python's brackets
    if not re.match(r"""(?:[A-Za-z_][\w.-]*|"[^"=]+"|'[^'=]+')\s*=""", line):
        return False
    try:
        _parsed(text)
    except (RecursionError, ValueError):
        return not IS_SCRIPT.search(text)
    return True


def _parsed(text: str) -> dict:
    import tomllib

    if DOTTED.search(text):
        raise ValueError("a name in it has more than 30 parts")
    return tomllib.loads(text)


def from_toml(text: str, script: str | None) -> Settings:
    """Settings of a file for `--config_file`."""
    if DOTTED.search(text):
        return _no_settings("TOML", "a name in it has more than 30 parts", text)
    try:
        data = _parsed(text)
    except (RecursionError, ValueError) as error:
        fix = 'Texts need quotes, lists brackets: lr_scheduler = "constant", optimizer_args = ["relative_step=False"].'
        if "\\" in str(error) or WINDOWS_PATH.search(text):
            fix = BACKSLASHES
        finding = Finding(
            rule="toml-syntax", effect="raises", what=f"This is not TOML: {shown(error, 200)}",
            why="sd-scripts stops with the same error.",
            fix=fix, source="library/train_util.py:4746", lesson="07",
        )  # fmt: skip
        return Settings("toml", findings=(finding,))
    if why := _oddity(data):
        return _no_settings("TOML", why, text)
    if "prompt" in data or isinstance(data.get("prompts"), list):
        return Settings.nothing("These are prompts for sample pictures.", "Give the command, or the file of --config_file.", text)
    if any(name.endswith("_args") and isinstance(value, dict) and "args" in value for name, value in data.items()):
        what = "This is a file of LoRA Easy Training Scripts, which has a form of its own."
        return Settings.nothing(what, "Give the configuration that it writes for sd-scripts.", text)
    if isinstance(data.get("datasets"), list):
        what = "This describes a data set, for --dataset_config; the settings of the training are in another file."
        return Settings.nothing(what, "Give the file of --config_file, or the command.", text)
    found = _from_table(data, "toml", script)
    names = [name for key, one in data.items() for name in (one if isinstance(one, dict) else [key])]
    if names and script is None and not (set(names) & set(arguments.facts()["arguments"]) or any(map(_is_any_slip, names[:MANY]))):
        return Settings.nothing("No name in this TOML file is a setting of sd-scripts.", "Give the file of --config_file.", text)
    return found


def _is_any_slip(name: str) -> bool:
    plain = name.replace("-", "_")
    near = arguments.closest(plain, arguments.facts()["arguments"])
    return bool(near and arguments.is_slip(plain, near))


def _oddity(data: object) -> str:
    """Reason why parsed data cannot be the settings of a run; empty where they can."""
    try:
        arguments.ordinary(data)
    except ValueError as error:
        return str(error)
    return f"it has {names:,} names" if (names := _names(data)) > MOST else ""


def _names(data: object) -> int:
    """Number of names at all levels."""
    if isinstance(data, dict):
        return len(data) + sum(map(_names, data.values()))
    return sum(map(_names, data)) if isinstance(data, list) else 0


def _no_settings(form: str, why: str, text: str) -> Settings:
    fix = "Give the settings alone, each a name and a plain value."
    return Settings.nothing(f"This {form} has no settings of a run: {why}.", fix, text)


def _from_table(data: dict, form: str, script: str | None) -> Settings:
    """Settings that sd-scripts takes from a parsed file: one level of sections is dissolved, names and types are not checked."""
    given, findings, renamed = {}, [], []

    def add(rule: str, what: str, why: str, fix: str, line: int = 4760) -> None:
        source = f"library/train_util.py:{line}"
        findings.append(Finding(rule=rule, effect="overrides", what=what, why=why, fix=fix, source=source, lesson="07"))

    for name, value in [pair for key, one in data.items() for pair in (one.items() if isinstance(one, dict) else [(key, one)])]:
        if name in given:
            what = f"{shown(name)} is given in two sections; the last one counts."
            add("toml-twice", what, "sd-scripts merges the sections into one list of settings.", "Keep one of them.", 4758)
        given[name] = value
    chosen = script or arguments.script_for(given, given.get("pretrained_model_name_or_path"))
    known = arguments.arguments(chosen)
    strange = {name: given.pop(name) for name in list(given) if name not in known}
    if "noise_offset_type" in strange:  # no other program writes it
        from .gui_fields import FIELDS, KEYS

        passed_on = {field.name for field in FIELDS if field.kind == "flag"}
        strange = {name: value for name, value in strange.items() if name not in KEYS or (value is True and name in passed_on)}
    if form == "gui":
        strange = {}  # the GUI adds names of its own, which sd-scripts ignores
    elif len(strange) > MANY:
        names = ", ".join(shown(name, 30) for name in list(strange)[:6])
        what = f"{len(strange)} names are silently ignored: {names}, …"
        add("toml-unknown", what, f"{chosen} has no such arguments.", "Is this a file for sd-scripts?")
        strange = {}
    for name, value in strange.items():
        plain = name.replace("-", "_")
        near = arguments.closest(plain, known) if not name.startswith("_") else None  # a remark
        if near and near not in given and arguments.is_slip(plain, near) and not _wrong_type(known[near], value):
            renamed.append((name, near, value))
        if isinstance(value, dict):
            why = "sd-scripts merges only one level of sections and never sees what is deeper."
            add("toml-nested", f"[{shown(name)}] is inside another section and is ignored.", why, "Move its settings up.", 4758)
            continue
        why, fix = arguments.unknown(plain, chosen)
        stays = f": {near} stays {known[near].default!r}." if near and not arguments.scripts_with(plain) else "."
        what = f"{shown(name)} is silently ignored{stays}"
        add("toml-unknown", what, f"{why} A TOML file is not checked for names.", fix.replace("--", ""))
    for name, value in given.items():
        argument = known[name]
        if (wrong := _wrong_type(argument, value)) and not _is_taken(argument, value, given):
            if (better := _as_meant(argument, value)) is not None:
                renamed.append((name, name, better))
            what = f"{shown(name)} = {quoted(value)} is {wrong}; it is used as it is."
            why = "Types and choices are checked on the command line only, not in a TOML file."
            add("toml-type", what, why, argument.wanted_in_toml)
    return Settings(form, chosen, script is not None, given, findings=tuple(findings), renamed=tuple(renamed))


def _wrong_type(argument: Argument, value: object) -> str:
    if argument.many:
        return "" if isinstance(value, list) else "not a list"
    if argument.type == "flag":
        return "" if isinstance(value, bool) else "neither true nor false"
    if argument.type == "str":
        if not isinstance(value, str):
            return "not a text"
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        return "not a number"
    elif argument.type == "int" and not isinstance(value, int):
        return "not a whole number"
    if argument.choices and value not in argument.choices:
        return "not one of its choices"
    return ""


def _is_taken(argument: Argument, value: object, given: Mapping[str, object]) -> bool:
    """Whether a value of another type does no harm, or has a rule of its own."""
    if argument.name == "text_encoder_lr":
        return not isinstance(value, bool)
    if argument.name == "max_token_length" and value == 75:
        return True  # the ordinary length
    if argument.name in (*arguments.CALCULATED, *arguments.DATASET, *arguments.USED):
        return isinstance(value, str)
    if argument.name in ("network_args", "base_weights", "loss_type"):
        return isinstance(value, str)
    if argument.name == "dynamo_backend":
        return not given.get("torch_compile")
    return value in ("", 0, 1 if argument.type == "flag" else 0) and argument.type in ("str", "flag")


def _as_meant(argument: Argument, value: object) -> object:
    """Value of the right type that a text reads like; None if it reads like none."""
    if argument.type == "flag":
        return {"true": True, "false": False}.get(str(value).lower())
    try:
        better = arguments.TYPES[argument.type](str(value))
    except (ValueError, OverflowError):
        return None
    return None if argument.many or _wrong_type(argument, better) or better in (math.inf, -math.inf) or better != better else better


def from_json(text: str, script: str | None) -> Settings:
    """Settings of a file of the kohya_ss GUI, or of JSON with sd-scripts' own names."""
    from . import gui  # its tables are for its own files only

    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Settings.nothing(f"This is not JSON: {shown(error, 160)}", "Save the GUI's settings again.", text)
    if why := _oddity(data):
        return _no_settings("JSON", why, text)
    if isinstance(data, list) and words_in_list(text):
        return from_text(text, script)
    if isinstance(data, dict) and gui.is_gui(data):
        return _from_gui(data, gui.translate(data), script)
    if isinstance(data, dict) and any(name in arguments.facts()["arguments"] for name in data):
        table = _from_table(data, "toml", script)
        finding = Finding(
            rule="json-settings", effect="note", what="sd-scripts itself does not read JSON; it parses --config_file as TOML.",
            why="The names in it are those of sd-scripts, so the doctor reads it as if it were TOML.",
            fix="Unless another program converts it, write it as TOML: one name = value per line.",
            source="library/train_util.py:4746", lesson="07",
        )  # fmt: skip
        return replace(table, findings=(finding, *table.findings), original=as_toml(data))
    what = "This JSON has neither settings of the kohya_ss GUI nor names of sd-scripts."
    return Settings.nothing(what, "Save the settings in the GUI, and give that file.", text)


def _from_gui(data: dict, found: GuiSettings, script: str | None) -> Settings:
    extra = shell.split(found.extra_flags)
    more = from_words(extra.commands[0], found.script) if extra.commands else Settings("none")
    table = _from_table(found.values, "gui", script or found.script)
    given = {**table.given, **more.given}
    findings, renamed = [], ()
    for problem in found.problems:
        why = "The doctor reads the file as the GUI would turn it into its own configuration."
        findings.append(Finding(rule="gui-value", effect="overrides", what=problem, why=why, lesson="07"))
    if data.get("max_grad_norm") in (0, "0") and data["max_grad_norm"] is not False and "max_grad_norm" not in given:
        findings.append(DROPPED_ZERO)
        renamed = (("max_grad_norm", "max_grad_norm", 0.0),)
    return replace(
        table,
        given=given,
        launch={"num_processes": str(found.num_processes)},
        findings=(*findings, *table.findings, *more.findings),
        original=data,
        renamed=renamed,
    )


DROPPED_ZERO = Finding(
    rule="gui-drops-zero",
    effect="overrides",
    what="max_grad_norm is 0 in the GUI, but sd-scripts will use 1.",
    why="The GUI's LoRA and textual inversion tabs leave out every 0, because it equals False.",
    fix="Write --max_grad_norm=0 into the GUI's additional parameters.",
    source="kohya_gui/lora_gui.py:2565",
    lesson="07",
)
"""No other setting that the GUI drops means something else when it is left out."""
