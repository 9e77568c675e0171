"""The command line: `sdnb lab` opens the course, `sdnb doctor` looks at anybody's settings, `sdnb train` trains by them.

Each command stands in the folder of its tool, in `command.py`: a function adds it to the parsers, and another runs it.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys

from . import __version__, train_command
from .course import command as course
from .doctor import command as doctor
from .planner import command as planner
from .system import errors, nearest

ADD = (
    course.add_lab,
    course.add_course,
    course.add_grade,
    doctor.add,
    planner.add_plan,
    planner.add_fit,
    planner.add_explore,
    planner.add_timeline,
    train_command.add_train,
    course.add_editions,
)
"""The commands, in the order of the help."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. What is wrong with what was typed ends in one line on the standard error, and 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a pipe on Windows may not know →
    options = _parsed(sys.argv[1:] if arguments is None else arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except (OSError, ValueError, ImportError) as error:
        if errors.is_closed_pipe(error):  # its reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        print(f"sdnb: {errors.explained(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sdnb: interrupted", file=sys.stderr)
        return 130


def split_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words for sdnb, and those for sd-scripts: after `--` in `plan` and `train`, and all but the doctor's own options in `doctor`."""
    if arguments[:1] == ["doctor"]:
        own, flags = doctor.own_options(arguments[1:])
        return ["doctor", *own], flags
    if arguments[:1] in (["plan"], ["train"]) and "--" in arguments:
        place = arguments.index("--")
        return arguments[:place], arguments[place + 1 :]
    return arguments, []


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command, with its function as `run` and the words for sd-scripts as `flags`. Ends the process for what it lacks."""
    parser = argparse.ArgumentParser(prog="sdnb", description="A course that teaches, by measuring, how to fit Stable Diffusion training.")
    parser.add_argument("--version", action="version", version=f"sdnb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in ADD:
        add(commands)

    words, flags = split_at_dashes(list(arguments))
    if words and not words[0].startswith("-") and words[0] not in commands.choices:
        near = nearest(words[0], commands.choices, key=str.lower)
        hint = f" (did you mean {near[0]}?)" if near else ""
        parser.error(f"no command {words[0]!r}{hint}: there are {', '.join(commands.choices)}")
    options, unknown = parser.parse_known_args(words)
    if unknown:
        typed, command = shlex.join(unknown), commands.choices[options.command]
        way_out = (command.get_default("way_out") or "leave it out").format(words=typed)
        command.error(f"unrecognized arguments: {typed}: {way_out}")
    options.flags = flags
    return options


if __name__ == "__main__":
    sys.exit(main())
