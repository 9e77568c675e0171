"""Any text read into settings: a command line, a TOML file, the GUI's JSON, a file that holds one of them, or a LoRA."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ..system import shown
from . import codepages, commandlines, configs, metadata, notebooks
from .findings import Finding
from .settings import Settings

LONGEST = 100_000
"""Characters. The settings of a run are a few thousand."""
END = 5_000_000
"""Bytes or characters at the beginning and at the end of a log; what lies between is not looked at."""
LEFT_OUT = re.compile(r"^\[The doctor left out ([\d,]+ (?:bytes|characters)) here\]$", re.MULTILINE)
MOST = 1_000_000_000
"""Bytes that are taken from a pipe."""
FILE_NAME = re.compile(r"\S+\.(toml|json|txt|log|sh|bat|ps1|cmd|yaml|yml|ipynb|safetensors)", re.IGNORECASE)


def read(source: str | Path | list[str], script: str | None = None) -> Settings:
    """Settings from a text, a file, or the words of a command line. Whatever it holds, nothing is raised, run or opened but that file.

    `script` is the training script they are for, where the text does not say.
    """
    encoding = "utf-8"
    if isinstance(source, Path) or (isinstance(source, str) and len(source) < 4096 and FILE_NAME.fullmatch(source.strip())):
        path = Path(str(source).strip())
        if path.suffix.lower() == ".safetensors":
            return metadata.from_file(path, script)
        contents = _contents(path)
        if isinstance(contents, Finding):
            return Settings("none", findings=(contents,))
        source, encoding = contents
    if not isinstance(source, str):
        return commandlines.from_list([str(word) for word in source], script)
    if (run := notebooks.run_in(source)) is not None:
        return replace(_read_text(run, encoding, script), notebook=source)
    return _read_text(source, encoding, script)


def _read_text(source: str, encoding: str, script: str | None) -> Settings:
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
    found = replace(found, original=text) if found.original is None else found
    return replace(found, encoding=encoding, findings=(*found.findings, *_of_encoding(encoding, found.form)))


def _of_encoding(encoding: str, form: str) -> Iterator[Finding]:
    if form == "none" or encoding.startswith("utf-8"):
        return
    if form == "toml":
        yield Finding(
            rule="toml-encoding", effect="raises", what="UnicodeDecodeError: this file is not UTF-8.",
            why="sd-scripts reads --config_file as UTF-8.", fix="Save the file as UTF-8.", source="library/train_util.py:4745", lesson="07",
        )  # fmt: skip
    elif not encoding:
        what = "Some letters of this file cannot be read: it is neither UTF-8 nor in a known code page."
        yield Finding(
            rule="encoding",
            effect="note",
            what=what,
            why="So the doctor cannot fix it without losing letters.",
            fix="Save the file as UTF-8.",
        )


def _is_list(text: str) -> bool:
    """Whether a text is a list in JSON; `[1]` alone would be a section of a TOML file, too."""
    try:
        return text.lstrip().startswith("[") and isinstance(json.loads(text), list)
    except (RecursionError, ValueError):
        return False


def _unquoted(text: str) -> str:
    """Text without the marks of a forum: the code between fences, and no `>` at the beginning of lines."""
    lines = text.splitlines()
    if len(lines) > 1 and all(line.startswith(">") for line in lines if line.strip()):
        text = "\n".join(line[1:].removeprefix(" ") for line in lines)
    fences = re.findall(r"^[ \t]*```[\w-]*[ \t]*\r?\n(.*?)^[ \t]*```", text, re.DOTALL | re.MULTILINE)
    return max(fences, key=lambda code: (code.count("--") + code.count("="), len(code))) if fences else text


def _contents(path: Path) -> tuple[str, str] | Finding:
    try:
        with path.open("rb") as file:
            return text_and_encoding(file)
    except (OSError, ValueError) as error:
        what = f"{shown(path, 200)} cannot be read: {getattr(error, 'strerror', None) or error}."
        return Finding(rule="file-not-read", effect="raises", what=what, why="", fix="Check the name, or paste the text.")


def text_of(file: BinaryIO) -> str:
    """Text in a binary file or pipe, without the middle of a long one."""
    return text_and_encoding(file)[0]


def text_and_encoding(file: BinaryIO) -> tuple[str, str]:
    """Text in a binary file or pipe, without the middle of a long one, and Python's name of its encoding; empty where none is sure."""
    head, tail = file.read(END), b""
    size = len(head)
    if file.seekable() and (whole := os.fstat(file.fileno()).st_size) > 2 * END:
        size = file.seek(whole - END)
    while size < MOST and (piece := file.read(END)):
        size += len(piece)
        tail = (tail + piece)[-END:]
    left_out = size - len(head) - len(tail)
    encoding = codepages.encoding_of(head if left_out else head + tail, cut=bool(left_out))
    if not left_out:
        return codepages.decoded(head + tail, encoding), encoding
    pieces = [head, tail[left_out % 2 :]]  # half a letter of UTF-16 would spoil all that follow
    return _joined(f"{left_out:,} bytes", *(codepages.decoded(piece, encoding) for piece in pieces)), encoding


def without_middle(text: str) -> str:
    """Text itself, or the two ends of a long one."""
    left_out = len(text) - 2 * END
    return text if left_out <= 0 else _joined(f"{left_out:,} characters", text[:END], text[-END:])


def _joined(left_out: str, head: str, tail: str) -> str:
    return f"{head}\n[The doctor left out {left_out} here]\n{tail}"
