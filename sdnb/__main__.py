"""The command line: `sdnb lab` opens the course, `sdnb doctor` looks at anybody's settings, `sdnb train` trains by them."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import __version__, disk, lessons
from . import editions as translations


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. What is wrong with what was typed ends in one line on the standard error, and 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a pipe on Windows may not know →
    parser = argparse.ArgumentParser(prog="sdnb", description="A course that teaches, by measuring, how to fit Stable Diffusion training.")
    parser.add_argument("--version", action="version", version=f"sdnb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("lab", help="open the course in JupyterLab")
    command.add_argument("--folder", type=Path, help="where your copy of the notebooks goes (default: sdnb-course, or a checkout's own)")
    command.add_argument("--language", choices=("en", *translations.LANGUAGES), default="en", help="of the course (default: en)")
    command.add_argument("--no-browser", action="store_true", help="print the address instead of opening it")
    command.set_defaults(run=lab)

    command = commands.add_parser(
        "course",
        help="execute every notebook and write pages for a browser, or copy the notebooks without the solutions, or publish them",
        description="Executes every notebook and writes the results as pages for a browser, which need no network; open index.html. "
        "The status is 1 when a cell raised.",
    )
    command.add_argument("--out", type=Path, metavar="FOLDER", help="where the pages go (default: build/course), or the copies")
    instead = command.add_mutually_exclusive_group()
    instead.add_argument(
        "--without-solutions",
        action="store_true",
        help="execute nothing, and copy the notebooks for students: no solutions, and no output of exercises",
    )
    instead.add_argument("--store", action="store_true", help="write no pages, but the outputs into the notebooks of this checkout")
    instead.add_argument(
        "--publish",
        metavar="ADDRESS",
        help="execute nothing, and write the repository's address, git+https://github.com/OWNER/REPO, into the notebooks of this checkout "
        "and into pyproject.toml",
    )
    command.add_argument("--overwrite", action="store_true", help="with --without-solutions: replace copies that differ")
    command.add_argument("--jobs", type=int, metavar="N", help="notebooks at a time (default: 2, where there are two cores)")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=course)

    command = commands.add_parser(
        "doctor",
        help="say what is wrong with settings for sd-scripts, or what a training log means",
        usage="sdnb doctor [--json] [--fix] [--script NAME] FLAGS… | FILE | -",
        description="FLAGS are those of sd-scripts, with or without `accelerate launch train_network.py` before them. FILE is a TOML "
        "file, a JSON file of the kohya_ss GUI, a file with a command, or a training log; - reads one from the standard input. Nothing in "
        "it is run, and no file it names is opened. The status is 1 when sd-scripts would stop with an error, 2 when there is nothing to "
        "look at, or, with --fix, when only you can mend it, else 0.",
    )
    command.add_argument("--json", action="store_true", help="print the findings as JSON")
    command.add_argument("--fix", action="store_true", help="print the mended settings, in the form they came in")
    command.add_argument("--script", metavar="NAME", help="the training script they are for, such as sdxl_train_network.py")
    command.set_defaults(run=doctor)

    _planning(commands)

    command = commands.add_parser(
        "train",
        help="train a model by sd-scripts' settings",
        usage="sdnb train [--config FILE] [--resume auto|yes|no] [--json] [-- FLAGS…]",
        description="FILE is a TOML file of sd-scripts, or another that doctor reads; FLAGS are sd-scripts', and win over it. What is not "
        "supported is named before anything is loaded. The result is in output_dir, with the saves from which an interrupted run goes on "
        "when it is started again. For several processes: accelerate launch -m sdnb train …",
    )
    command.add_argument("--config", type=Path, metavar="FILE", help="the file with the settings")
    command.add_argument(
        "--resume", choices=("auto", "yes", "no"), default="auto", help="go on from the last save if there is one, or insist, or start anew"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object a line")
    command.set_defaults(run=train)

    command = commands.add_parser("editions", help="in a checkout: make the translated notebooks anew from the English ones")
    command.set_defaults(run=editions)

    arguments, rest = list(sys.argv[1:] if arguments is None else arguments), []
    if arguments[:1] == ["doctor"]:
        arguments, rest = _own_options(arguments)
    if arguments[:1] in (["plan"], ["train"]) and "--" in arguments:
        arguments, rest = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands.choices:
        near = difflib.get_close_matches(arguments[0].lower(), commands.choices, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        parser.error(f"no command {arguments[0]!r}{hint}: there are {', '.join(commands.choices)}")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        way_out = _WAYS_OUT.get(options.command, "leave it out").format(words=shlex.join(unknown))
        commands.choices[options.command].error(f"unrecognized arguments: {shlex.join(unknown)}: {way_out}")
    options.flags = rest
    if options.command == "doctor":
        options.settings = rest
    try:
        if options.command in ("plan", "fit", "train"):
            from . import requirements

            requirements.check()
        status = options.run(options)
        sys.stdout.flush()
        return status
    except (OSError, ValueError, ImportError) as error:
        if _is_closed_pipe(error):  # its reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        print(f"sdnb: {_said(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sdnb: interrupted", file=sys.stderr)
        return 130


_WAYS_OUT = {
    "plan": "flags of sd-scripts, or a file with settings, go after --, as in: sdnb plan MODEL -- {words}",
    "train": "flags of sd-scripts go after --, a file with settings after --config",
    "fit": "it tries recipes of its own; for settings of yours there is sdnb plan",
}


def _is_closed_pipe(error: Exception) -> bool:
    """Windows has another error for it, without a file's name."""
    if isinstance(error, BrokenPipeError):
        return True
    return disk.WINDOWS and isinstance(error, OSError) and error.errno == errno.EINVAL and error.filename is None


def _said(error: Exception) -> str:
    """The error with a way out, where the operating system's own words have none."""
    name, number = getattr(error, "filename", None), getattr(error, "errno", None)
    if number and name is None and error.strerror != os.strerror(number):
        return error.strerror  # in words of our own
    if number in (errno.EEXIST, errno.ENOTDIR):
        return f"{name} cannot be a folder, as a file is there, or above it: give another place"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{name}: {os.strerror(number)}: give a place that you may use"
    if number == errno.ENOSPC:
        return f"{name or 'writing'}: {os.strerror(number)}: make room on the disk, or give another place"
    return str(error)


def lab(options: argparse.Namespace) -> int:
    """Start JupyterLab on the lessons: in place in a checkout, on a copy otherwise."""
    _need("jupyterlab")
    checkout = lessons.notebooks()[0].parent
    installed = checkout.parent == Path(__file__).resolve().parent
    folder = (options.folder or (Path("sdnb-course") if installed else checkout)).expanduser()
    if folder.resolve() != checkout:
        copies = lessons.unpack(folder, options.language)
        kept = [str(copy.relative_to(folder)) for copy in lessons.changed(folder, options.language)]
        print(f"{len(copies)} files in {folder}" + (f"; yours, left as they are: {', '.join(kept)}" if kept else ""))
    opened = lessons.notebooks(options.language)[0].relative_to(checkout).as_posix()
    first = f"/lab/tree/{opened}"  # also in the address that is printed where no browser opens
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder.resolve()}", f"--LabApp.default_url={first}"]
    command += ["--no-browser"] if options.no_browser else []
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root is who one is in a container
    return subprocess.call(command)


def course(options: argparse.Namespace) -> int:
    """Execute every notebook and write pages, copy them for students, or publish them; the status is 1 when a cell raised.

    Raises `ValueError` for options that exclude each other.
    """
    if options.publish is not None:
        return _publish(options)
    _need("nbconvert")
    from . import course as whole

    if options.overwrite and not options.without_solutions:
        raise ValueError("--overwrite belongs to --without-solutions")
    if options.without_solutions:
        if options.out is None:
            raise ValueError("--without-solutions needs a folder for the copies: --out FOLDER")
        copies = [str(copy) for copy in whole.without_solutions(options.out, options.overwrite)]
        print(json.dumps(copies, indent=1) if options.json else f"{len(copies)} notebooks without solutions in {options.out}")
        return 0
    if options.store and options.out:
        raise ValueError("--store writes into the notebooks themselves: leave out --out")
    folder = None if options.store else options.out or Path("build/course")
    whole.may_write(folder)  # said now, and not after minutes of work
    tell = (lambda lesson: None) if options.json else (lambda lesson: print(lesson, flush=True))
    start = time.perf_counter()
    try:
        done = whole.executed(options.jobs, tell)
    except KeyboardInterrupt:
        print("sdnb: interrupted; nothing was written", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - start
    index = whole.show(folder, done, seconds) if folder else whole.store(done)
    if options.json:
        print(json.dumps([lesson.as_dict() for lesson in done], indent=1))
    else:
        print(f"{sum(lesson.error is None for lesson in done)} of {len(done)} passed in {seconds:.0f} s" + (f": {index}" if index else ""))
    return int(any(lesson.error for lesson in done))


def _publish(options: argparse.Namespace) -> int:
    from .publishing import publish

    if options.out or options.overwrite:
        raise ValueError("--publish writes into this checkout: leave out --out and --overwrite")
    changed = [str(path) for path in publish(options.publish)]
    print(json.dumps(changed, indent=1) if options.json else f"{len(changed)} files now name {options.publish}: commit them")
    return 0


def editions(options: argparse.Namespace) -> int:
    """Write the translated notebooks; the status is 1 when a translation is behind its English, which is then left as it was.

    Raises `ValueError` outside a checkout.
    """
    folder, lines = lessons.notebooks()[0].parent, []
    if folder.parent == Path(__file__).resolve().parent:
        raise ValueError("editions are made in a checkout of the repository, not in an installed package")
    for language in translations.LANGUAGES:
        for lesson in lessons.notebooks():
            if translations.translation_of(lesson, language).exists():
                try:
                    built = translations.build(lesson, language)
                except ValueError as error:
                    lines.append(str(error))
                else:
                    (folder / language / lesson.name).write_text(built, encoding="utf-8", newline="\n")
        for english, page in translations.pages(folder, language).items():
            behind = translations.behind(translations.sections(english), translations.translated(page))
            lines += [f"{page}: {line}" for line in behind]
    print("\n".join(lines) or "every edition is up to date")
    return int(bool(lines))


def doctor(options: argparse.Namespace) -> int:
    """Print what is wrong with some settings; the status is 1 when sd-scripts would stop with an error.

    Raises `ValueError` when there is nothing to look at, or the options do not go together.
    """
    from .arguments import facts
    from .doctor import diagnose, wants_colour

    if options.script and options.script not in (scripts := facts()["scripts"]):
        raise ValueError(f"--script {options.script}: sd-scripts has {', '.join(scripts)}")
    if not options.settings:
        raise ValueError("nothing to look at: give flags, a file, or - for the standard input (sdnb doctor --help)")
    diagnosis = diagnose(_source(options.settings), script=options.script)
    if options.fix and options.json:
        raise ValueError("--fix prints settings and --json findings: ask for one of them")
    if options.fix:
        for line in diagnosis.changes():
            print(line, file=sys.stderr)
        print(diagnosis.fixed_text().rstrip("\n"))
        return 0
    if options.json:
        print(json.dumps(diagnosis.as_dict(), indent=1, default=str))
    else:
        width = min(110, max(40, shutil.get_terminal_size((100, 24)).columns))
        print(diagnosis.table(colour=wants_colour(sys.stdout), width=width))
    return 2 if diagnosis.settings.form == "none" else int(diagnosis.raises)


def _planning(commands) -> None:
    """The two commands that say beforehand what a run will need."""
    command = commands.add_parser(
        "plan",
        help="say what a training run will need in memory, without a GPU",
        usage="sdnb plan MODEL [--resolution …] [--batch-size N] [--gpu CARD] [--json] [-- FLAGS… | FILE]",
        description="FLAGS after -- are those of sd-scripts. The status is 1 when the run does not fit, 2 when it cannot be planned.",
    )
    command.add_argument("model", help="tiny, sd15, sd21, sdxl, a folder in diffusers' format, or one .safetensors file")
    command.add_argument("--resolution", metavar="SIDE | WIDTHxHEIGHT", help="in pixels (default: what the model was made for)")
    command.add_argument("--batch-size", type=int, metavar="N", help="pictures in one forward pass (default: the recipe's)")
    command.add_argument("--gpu", metavar="CARD", help="a card, such as t4 or rtx4090")
    command.add_argument("--json", action="store_true", help="print the plan as JSON")
    command.set_defaults(run=plan)

    command = commands.add_parser(
        "fit",
        help="list the recipes that fit a card, fastest first",
        usage="sdnb fit MODEL CARD [--resolution …] [--method full|lora] [--batch-size N] [--rank N] [--json]",
        description="The status is 1 when no recipe fits, 2 when there is something wrong with the question.",
    )
    command.add_argument("model", help="as for plan")
    command.add_argument("gpu", metavar="card", help="a card, such as t4 or rtx4090")
    command.add_argument("--resolution", metavar="SIDE | WIDTHxHEIGHT", help="in pixels (default: what the model was made for)")
    command.add_argument("--method", default="full", help="full or lora (default: full)")
    command.add_argument("--batch-size", type=int, metavar="N", default=1, help="pictures in one forward pass (default: 1)")
    command.add_argument("--rank", type=int, metavar="N", default=16, help="of a LoRA (default: 16)")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=fit)


def plan(options: argparse.Namespace) -> int:
    """Print what a run will need; the status is 1 when it does not fit the card."""
    from .planner import plan as make
    from .recipe import Recipe

    _few("--batch-size", options.batch_size)
    words = options.flags
    one_file = len(words) == 1 and not words[0].startswith("-")
    recipe = (Recipe.parse(Path(words[0])) if one_file else Recipe.parse(shlex.join(words))) if words else Recipe()
    made = make(options.model, recipe, resolution=_sides(options.resolution), batch_size=options.batch_size, gpu=options.gpu)
    print(json.dumps(made.as_dict(), indent=1) if options.json else made)
    return int(made.fits is False)


def fit(options: argparse.Namespace) -> int:
    """Print the recipes that fit; the status is 1 when none does."""
    from .fitting import fit as find

    _few("--batch-size", options.batch_size)
    _few("--rank", options.rank)
    sides = _sides(options.resolution)
    found = find(options.model, options.gpu, resolution=sides, method=options.method, batch_size=options.batch_size, rank=options.rank)
    print(json.dumps(found.as_dict(), indent=1) if options.json else found)
    return int(not found)


def train(options: argparse.Namespace) -> int:
    """Run a job; the status is 1 when it diverged, the card was full or the last save failed, 2 when it could not begin, 130 when
    it was interrupted.
    """
    from . import saves
    from .jobs import Job, parse
    from .supported import ignored

    job = Job(parse(options.config, options.flags))
    speaks = int(os.environ.get("RANK", 0)) == 0  # one of several processes
    tell = _as_json if options.json else _as_line
    if speaks:
        for line in ignored(job.recipe):
            tell("ignored", setting=line)
    started, trained = time.monotonic(), False
    try:
        steps = job.run(resume={"yes": True, "no": False}.get(options.resume, "auto"))
        if speaks:  # now that nothing is left to be refused
            tell("started", saves=str(job.saves), result=str(job.result))
        for step in steps:
            trained = True
            if speaks and (options.json or _is_told(step)):
                waited = {"waited_seconds": round(step.waited_seconds, 4)} if step.waited_seconds is not None else {}
                paths = {"saved": str(step.saved)} if step.saved else {}
                tell(
                    "step", step=step.index + 1, steps=step.steps, loss=step.loss, learning_rate=step.learning_rate,
                    seconds=round(step.seconds, 4), **waited, peak_bytes=step.peak_bytes, **paths,
                )  # fmt: skip
    except (RuntimeError, saves.SaveFailed) as error:
        if type(error).__module__.partition(".")[0] != "sdnb":
            raise
        print(f"sdnb: {_said(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = saves.found(job.saves)
        left = f"the same command goes on from {kept[-1]}" if kept else "nothing was saved yet, so the same command begins anew"
        print(f"sdnb: interrupted; {left}", file=sys.stderr)
        return 130
    if speaks:
        note = {} if trained else {"note": "all its steps were done before, nothing was trained"}
        tell("done", result=str(job.result), seconds=round(time.monotonic() - started, 1), **note)
    return 0


def _is_told(step) -> bool:
    """One line in a hundredth of the run, and where something happened."""
    every = max(1, step.steps // 100)
    return step.saved is not None or step.index == 0 or (step.index + 1) % every == 0


def _as_json(event: str, **values) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def _as_line(event: str, **values) -> None:
    if event == "step":
        saved = f"  saved {values['saved']}" if "saved" in values else ""
        peak = f"  {values['peak_bytes'] / 2**30:.2f} GiB" if values["peak_bytes"] else ""
        where = f"{values['step']:,}/{values['steps']:,}"
        print(f"{where}  loss {values['loss']:.4f}  lr {values['learning_rate']:.2e}  {values['seconds']:.2f} s{peak}{saved}", flush=True)
    else:
        print(
            f"{event}: " + ", ".join(f"{name} {value}" if name != "setting" else str(value) for name, value in values.items()), flush=True
        )


def _sides(text: str | None) -> int | tuple[int, int] | None:
    """`512`, `832x1216` or `832,1216` as numbers of pixels. Raises `ValueError` for anything else."""
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().replace(",", "x").split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1 or max(sides) > 100_000:
        raise ValueError(f"--resolution {text}: give a side in pixels, such as 512, or WIDTHxHEIGHT, such as 832x1216")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _few(flag: str, number: int | None) -> None:
    if number is not None and not 1 <= number <= 1_000_000:
        raise ValueError(f"{flag} {number}: give a whole number, 1 or more, and no more than a million")


def _own_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The doctor's own options, wherever they stand, and the words that are the patient's."""
    own, rest, words = arguments[:1], [], iter(arguments[1:])
    for word in words:
        if word in ("--json", "--fix", "--help", "-h") or word.startswith("--script="):
            own.append(word)
        elif word == "--script":
            own += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            rest.append(word)
    return own, rest


def _source(words: list[str]) -> str | Path | list[str]:
    """What the words of `sdnb doctor` stand for: the standard input, a file, a text in one word, or flags."""
    if words == ["-"]:
        return sys.stdin.buffer.read(50_000_000).decode("utf-8", errors="replace")
    if len(words) > 1 and not words[0].startswith("-") and Path(words[0]).is_file():
        raise ValueError(f"one thing at a time: give {words[0]}, or flags (in sd-scripts, flags win over a file)")
    if words == [""]:
        return ""
    if len(words) == 1 and words[0].startswith("-") and " --" in words[0]:
        return words[0]  # several flags in one pair of quotes
    if len(words) == 1 and not words[0].startswith("-"):
        return words[0] if any(letter.isspace() or letter == "=" for letter in words[0]) and not Path(words[0]).exists() else Path(words[0])
    return words


def _need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ImportError(f'this needs {module}: pip install "sdnb[lab]"')


if __name__ == "__main__":
    sys.exit(main())
