"""`sdnb doctor`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path


def add(commands) -> None:
    """Add the command to the parsers of argparse."""
    command = commands.add_parser(
        "doctor",
        help="say what is wrong with settings for sd-scripts, or what a training log means",
        usage="sdnb doctor [--json] [--fix] [--script NAME] [--sd-scripts-version VERSION] FLAGS… | FILE | -",
        description="FLAGS are those of sd-scripts, with or without `accelerate launch train_network.py` before them. FILE is a TOML "
        "file, a JSON file of the kohya_ss GUI, a file with a command, or a training log; - reads one from the standard input. Nothing in "
        "it is run, and no file it names is opened. The status is 1 when sd-scripts would stop with an error, or train and ruin the "
        "model (a learning rate of 1 without Prodigy or D-Adaptation), 2 when there is nothing to look at, or, with --fix, when only you "
        "can mend it, else 0.",
    )
    command.add_argument("--json", action="store_true", help="print the findings as JSON")
    command.add_argument("--fix", action="store_true", help="print the mended settings, in the form they came in")
    command.add_argument("--script", metavar="NAME", help="the training script they are for, such as sdxl_train_network.py")
    command.add_argument("--sd-scripts-version", metavar="VERSION", default="", help="the version of sd-scripts, such as 0.9.1 or 0.11")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what is wrong with some settings; the status is 1 when sd-scripts would stop with an error, or ruin the model.

    Raises `ValueError` when there is nothing to look at, or the options do not go together.
    """
    from ..sd_scripts import facts, text_and_encoding
    from .diagnosis import Diagnosis, diagnose, wants_colour

    if options.script and options.script not in (scripts := facts()["scripts"]):
        raise ValueError(f"--script {options.script}: sd-scripts has {', '.join(scripts)}")
    if not options.flags:
        raise ValueError("nothing to look at: give flags, a file, or - for the standard input (sdnb doctor --help)")
    source, encoding = _source(options.flags), None
    if source == "-":
        source, encoding = text_and_encoding(sys.stdin.buffer)
    diagnosis = diagnose(source, script=options.script, version=options.sd_scripts_version)
    if encoding is not None:
        diagnosis = Diagnosis(replace(diagnosis.settings, encoding=encoding))
    if options.fix and options.json:
        raise ValueError("--fix prints settings and --json findings: ask for one of them")
    if options.fix:
        text = diagnosis.fixed_text()
        for line in diagnosis.changes():
            print(line, file=sys.stderr)
        _print(text, diagnosis.settings.encoding)
        return 0
    if options.json:
        print(json.dumps(diagnosis.as_dict(), indent=1, default=str))
    else:
        width = min(110, max(40, shutil.get_terminal_size((100, 24)).columns))
        print(diagnosis.table(colour=wants_colour(sys.stdout), width=width))
    return 2 if diagnosis.settings.form == "none" else int(diagnosis.fails)


def _print(text: str, encoding: str) -> None:
    """Print mended settings: on a terminal as text, into a file or a pipe in the encoding and with the line ends that they came in."""
    from ..sd_scripts import encoded

    text = text.rstrip("\r\n") + ("\r\n" if "\r\n" in text else "\n")
    file = getattr(sys.stdout, "buffer", None)
    if file is None or sys.stdout.isatty():
        print(text, end="")
        return
    sys.stdout.flush()
    file.write(encoded(text, encoding))
    file.flush()


def own_options(words: list[str]) -> tuple[list[str], list[str]]:
    """The doctor's own options, wherever they stand after `doctor`, and the words that are the patient's."""
    own, rest, left = [], [], iter(words)
    for word in left:
        if word in ("--json", "--fix", "--help", "-h") or word.startswith(("--script=", "--sd-scripts-version=")):
            own.append(word)
        elif word in ("--script", "--sd-scripts-version"):
            own += [word, *([value] if (value := next(left, None)) is not None else [])]
        else:
            rest.append(word)
    return own, rest


def _source(words: list[str]) -> str | Path | list[str]:
    """What the patient's words stand for: `-` for the standard input, a file, a text in one word, or flags."""
    if words == ["-"]:
        return "-"
    if len(words) > 1 and not words[0].startswith("-") and _exists(words[0]) and Path(words[0]).is_file():
        raise ValueError(f"one thing at a time: give {words[0]}, or flags (in sd-scripts, flags win over a file)")
    if words == [""]:
        return ""
    if len(words) == 1 and words[0].startswith("-") and " --" in words[0]:
        return words[0]  # several flags in one pair of quotes
    if len(words) == 1 and not words[0].startswith("-"):
        return words[0] if any(letter.isspace() or letter == "=" for letter in words[0]) and not _exists(words[0]) else Path(words[0])
    return words


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # too long for a name: a whole command in one pair of quotes
        return False
