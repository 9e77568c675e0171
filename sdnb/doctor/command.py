"""Command line of the doctor: `sdnb doctor`."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

WITH_VALUE = ("--script", "--sd-scripts-version", "--language")
"""Options that take a value."""
KINDS = (".toml", ".json", ".txt", ".log", ".sh", ".bat", ".ps1", ".ipynb")
"""Endings of the files that are looked for in a folder."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl")
"""Endings of pictures: a text file of the same name is a caption."""
OTHER_TEXTS = re.compile(
    r"(?i)requirements|readme|licen[sc]e|changelog|prompt|caption|^meta_|^tags\b|package(-lock)?\.json$|pyproject\.toml$"
)
"""Names of files that hold neither settings nor a log."""


def add(commands) -> None:
    """Add the command to the parsers of argparse."""
    from .languages import LANGUAGES

    command = commands.add_parser(
        "doctor",
        help="say what is wrong with settings for sd-scripts, or what a training log means",
        usage="sdnb doctor [--why | --json | --fix] [--no-plan] [--script NAME] [--sd-scripts-version VERSION] "
        "[--language LANGUAGE] [FLAGS… | FILE | FOLDER | -]",
        description="FLAGS are those of sd-scripts, with or without `accelerate launch train_network.py` before them. FILE is a TOML "
        "file, a JSON file of the kohya_ss GUI, a file with a command, a training log, or a LoRA. In a FOLDER the doctor reads the newest "
        "such file. With -, or with nothing, it reads the standard input. It runs nothing in the text and opens no file that the text "
        "names. Status 1: sd-scripts would stop with an error, or train and ruin the model (a learning rate of 1 without Prodigy or "
        "D-Adaptation); 2: there is nothing to look at, or with --fix: only you can decide; 0: neither.",
    )
    command.add_argument("--why", action="store_true", help="print every reason, and its place in sd-scripts")
    command.add_argument("--json", action="store_true", help="print the findings as JSON (docs/package.md describes it)")
    command.add_argument("--fix", action="store_true", help="print the corrected settings, in the form they came in")
    command.add_argument(
        "--no-plan", action="store_true", help="with the log of a full GPU: do not plan which changes would fit (half a minute)"
    )
    command.add_argument("--script", metavar="NAME", help="the training script that the settings are for, such as sdxl_train_network.py")
    command.add_argument("--sd-scripts-version", metavar="VERSION", default="", help="the version of sd-scripts, such as 0.9.1 or 0.11")
    command.add_argument(
        "--language", choices=LANGUAGES, help="language of the report (default: yours, by LC_ALL, LC_MESSAGES or LANG; JSON: en)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what is wrong with some settings; the status is 1 when sd-scripts would stop with an error, or ruin the model.

    Raises `ValueError` when the options do not go together, and when a folder has no file to look at.
    """
    from ..sd_scripts import facts, text_and_encoding
    from .diagnosis import diagnose, wants_colour
    from .languages import language, of_reader

    code = options.language or ("en" if options.json else of_reader())
    say = language(code).say
    if options.script and options.script not in (scripts := facts()["scripts"]):
        raise ValueError(say("--script {script}: sd-scripts has {scripts}", script=options.script, scripts=", ".join(scripts)))
    if options.json + options.fix + options.why > 1:
        raise ValueError(say("--why prints reasons, --fix settings and --json findings: ask for one of them"))
    source, encoding = _source(options.flags, say), None
    if isinstance(source, Path) and _exists(str(source)) and source.is_dir():
        source = newest(source, say)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(source.stat().st_mtime))
        print(say("The newest file here is {file}, of {time}.", file=source, time=when), file=sys.stderr)
    name = str(source) if isinstance(source, Path) else "-" if source == "-" else "…"
    if source == "-":
        if sys.stdin.isatty():
            print(say(PROMPT[sys.platform == "win32"]), file=sys.stderr)
        source, encoding = text_and_encoding(sys.stdin.buffer)
    diagnosis = diagnose(source, script=options.script, version=options.sd_scripts_version, language=code)
    diagnosis = replace(diagnosis, name=name)
    if encoding is not None:
        diagnosis = replace(diagnosis, settings=replace(diagnosis.settings, encoding=encoding))
    if options.fix:
        text = diagnosis.fixed_text()
        for line in diagnosis.changes():
            print(line, file=sys.stderr)
        _print(text, diagnosis.settings.encoding)
        return 0
    if diagnosis.can_be_planned and not options.no_plan:
        print(say("Planning which changes would fit this GPU (--no-plan leaves that out) …"), file=sys.stderr, flush=True)
        diagnosis = diagnosis.planned()
    if options.json:
        print(json.dumps(diagnosis.as_dict(), indent=1, default=str))
    else:
        width = min(110, max(40, shutil.get_terminal_size((100, 24)).columns))
        print(diagnosis.table(colour=wants_colour(sys.stdout), width=width, why=options.why))
    return 2 if diagnosis.settings.form == "none" else int(diagnosis.fails)


PROMPT = (
    "Paste the settings, the command or the log here. Then press Enter and Ctrl-D.",
    "Paste the settings, the command or the log here. Then press Enter, Ctrl-Z and Enter.",
)
"""Prompt on a terminal, and on one of Windows."""


def newest(folder: Path, say) -> Path:
    """Newest file in `folder` that may hold settings or a log, by its name, size and date; captions of pictures are none.

    Raises `ValueError` where there is none.
    """
    files = [path for path in folder.iterdir() if path.is_file()]
    pictures = {path.stem for path in files if path.suffix.lower() in PICTURES}
    texts = [path for path in files if path.suffix.lower() in KINDS and not OTHER_TEXTS.search(path.name)]
    texts = [path for path in texts if path.stat().st_size and not (path.suffix == ".txt" and path.stem in pictures)]
    if not texts:
        kinds = ", ".join(KINDS)
        raise ValueError(say("{folder} has no settings and no log ({kinds}): give the file itself", folder=folder, kinds=kinds))
    return max(texts, key=lambda path: (path.stat().st_mtime, path.name))


def _print(text: str, encoding: str) -> None:
    """Print corrected settings: on a terminal as text, into a file or a pipe in the encoding and with the line ends that they came in."""
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
    """Split the words after `doctor` into the doctor's own options, wherever they stand, and the words for sd-scripts."""
    own, rest, left = [], [], iter(words)
    for word in left:
        if word in ("--why", "--json", "--fix", "--no-plan", "--help", "-h") or word.startswith(
            tuple(f"{option}=" for option in WITH_VALUE)
        ):
            own.append(word)
        elif word in WITH_VALUE:
            own += [word, *([value] if (value := next(left, None)) is not None else [])]
        else:
            rest.append(word)
    return own, rest


def _source(words: list[str], say) -> str | Path | list[str]:
    """Meaning of the words: `-` or none for the standard input, a file or folder, a text in one word, or flags."""
    if words in ([], ["-"]):
        return "-"
    if len(words) > 1 and not words[0].startswith("-") and _exists(words[0]) and Path(words[0]).is_file():
        raise ValueError(say("one thing at a time: give {file}, or flags (in sd-scripts, flags win over a file)", file=words[0]))
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
