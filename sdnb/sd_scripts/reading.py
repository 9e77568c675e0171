"""Any text read into settings: a command line, a TOML file, the GUI's JSON, or a file that holds one of them."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import replace
from pathlib import Path

from . import commandlines, configs
from .findings import Finding
from .settings import Settings

LONGEST = 200_000
"""Characters. The settings of a run are a few thousand."""
FILE_NAME = re.compile(r"\S+\.(toml|json|txt|log|sh|bat|ps1|cmd|yaml|yml)", re.IGNORECASE)


def read(source: str | Path | list[str], script: str | None = None) -> Settings:
    """Settings from a text, a file, or the words of a command line. Whatever it holds, nothing is raised, run or opened but that file.

    `script` is the training script they are for, where the text does not say.
    """
    if isinstance(source, Path) or (isinstance(source, str) and FILE_NAME.fullmatch(source.strip())):
        contents = _contents(Path(str(source).strip()))
        if isinstance(contents, Finding):
            return Settings("none", findings=(contents,))
        source = contents
    if not isinstance(source, str):
        return commandlines.from_list([str(word) for word in source], script)
    if len(source) > LONGEST:
        return Settings.nothing(
            f"{len(source):,} characters were given; the settings of a run are a few thousand.", "Give the settings alone.", source
        )
    text = _unquoted(source.lstrip("\ufeff").replace("\0", ""))
    if not text.strip():
        return Settings.nothing("The text is empty.", "Give a command line, a TOML file or the GUI's JSON.", source)
    if text.lstrip().startswith(("{", "[{")) or _is_list(text):
        found = configs.from_json(text, script)
    elif configs.is_toml(text):
        found = configs.from_toml(text, script)
    else:
        found = commandlines.from_text(text, script)
    return replace(found, original=text) if found.original is None else found


def _is_list(text: str) -> bool:
    """Whether a text is a list in JSON; `[1]` alone would be a section of a TOML file, too."""
    try:
        return text.lstrip().startswith("[") and isinstance(json.loads(text), list)
    except (RecursionError, ValueError):
        return False


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
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell writes what is sent to a file
    return data.decode("utf-16" if wide else "utf-8", errors="replace")
