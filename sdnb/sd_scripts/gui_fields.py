"""The fields of bmaltais' kohya_ss GUI, read from `gui_fields.toml`: where each stands, what it may hold, and what sd-scripts calls it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

TABS = ("lora", "dreambooth", "finetune", "textual_inversion")


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field that the GUI passes on; one that does so differently from tab to tab has several rows."""

    key: str
    """The GUI's name for it."""
    kind: str
    """`flag`, `bit` (a flag that is passed on as 0 or 1), `text`, `words` (key=value pairs), `whole` or `number`."""
    name: str
    """sd-scripts' name; the key where it is left out of the file, and empty where `gui` works something else out from the field."""
    tabs: Collection[str] = TABS
    """The tabs that pass it on."""
    when: str = "always"
    """The case in which they do: `gui` compares it with those that hold for a file. `stable diffusion` is SD 1.5, 2 or XL."""
    zero_is_unset: bool = False
    """Whether the GUI leaves out a 0."""
    same_default: bool = False
    """Whether the key can be left out of a file, because the GUI's own default is that of sd-scripts."""

    def take(self, value: object) -> object:
        """A value from a file as the GUI takes it; None where it says nothing. Raises `ValueError` with what one of another kind is."""
        if value == "" and self.kind == "whole" and self.zero_is_unset:
            return 0
        if value is None or (value == "" and self.kind not in ("text", "words")) or (value == [] and self.kind == "words"):
            return None
        match self.kind:
            case "flag" | "bit" if isinstance(value, int | float) and value in (0, 1):
                return bool(value) if self.kind == "flag" else int(value)
            case "text" if isinstance(value, str):
                return value
            case "words" if isinstance(value, str) and (not value or all(map(_is_pair, value.split(" ")))):
                return value.replace('"', "").split()
            case "number" if (number := _number(value)) is not None:
                return number
            case "whole" if (number := _whole(value)) is not None:
                return number
        raise ValueError(FAULTS[self.kind])


@dataclass(frozen=True, kw_only=True)
class Network:
    """A type of LoRA."""

    type: str
    module: str
    args: Collection[str]
    """The `network_args`, in the GUI's order."""
    always: Collection[str] = ()
    """Arguments that are passed on even when they are 0, false or empty; in LyCORIS, all of them."""
    algo: str = ""
    """LyCORIS' name for the type, the value of the argument `algo`."""


FAULTS = {
    "flag": "neither true nor false: write one of the two",
    "bit": "neither true nor false: write one of the two",
    "text": "not a text: write one, in double quotes",
    "words": 'refused by the GUI: write key=value pairs with one space between and none inside, such as "relative_step=False"',
    "number": "not a number: write one such as 0.5",
    "whole": "not a whole number: write one such as 10",
}
"""Complaints about a value that is not of a kind."""


def _is_pair(word: str) -> bool:
    return "=" in word[1:-1] and word.split() == [word]


def _number(value: object) -> int | float | None:
    """The number, be it written as a text; None for what is none or has no place in 64 bits. To the GUI, false is 0."""
    if isinstance(value, str):
        try:
            value = int(value) if re.fullmatch(r"\s*[+-]?\d+\s*", value) else float(value)
        except ValueError:
            return None
    if value is False:
        return 0
    return value if isinstance(value, int | float) and value is not True and abs(value) < 2**63 else None


def _whole(value: object) -> int | None:
    """The whole number; None for any other value. 10.0 is one, the text "10.0" is none."""
    number = _number(value)
    if number is None or (isinstance(number, float) and (isinstance(value, str) or not number.is_integer())):
        return None
    return int(number)


_tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

FIELDS = tuple(Field(**{"name": row["key"], **row}) for row in _tables["fields"])
NETWORKS = {row["type"]: Network(**{"always": row["args"] if "algo" in row else (), **row}) for row in _tables["network"]}
ARG_KEYS: dict[str, str] = _tables["arg_keys"]
LORAPLUS_ARGS: list[str] = _tables["loraplus_args"]
OTHER_MODELS: dict[str, str] = _tables["other_models"]
OTHER_MODEL_KEYS = re.compile("|".join(_tables["other_model_keys"]))
MARKS: list[str] = _tables["marks"]
ZERO_BY_DEFAULT: list[str] = _tables["zero_by_default"]

_args = {name for network in NETWORKS.values() for name in network.args} - {"algo"} | {*LORAPLUS_ARGS}
KEYS = {field.key for field in FIELDS} | {*_tables["other_keys"]} | {ARG_KEYS.get(name, name) for name in _args}
"""All keys that the GUI reads for SD 1.5, 2 and XL."""
RENAMED = {field.name: field.key for field in FIELDS if field.name != field.key} | {"sdpa": "xformers"}
"""sd-scripts' names -> the GUI's, where they differ."""
