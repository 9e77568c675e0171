"""`sdnb train`: runs a job, and prints how it goes line by line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from .system import errors


def add(commands) -> None:
    """Add the command to the parsers of argparse."""
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
    command.set_defaults(run=run, way_out="flags of sd-scripts go after --, a file with settings after --config")


def run(options: argparse.Namespace) -> int:
    """Run a job; the status is 1 when it diverged, the card was full or the last save failed, 2 when it could not begin, 130 when
    it was interrupted.
    """
    from .system import requirements

    requirements.check()  # before torch is asked for
    from . import saves
    from .jobs import Job, parse
    from .sd_scripts import ignored

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
                tell("step", **_values(step))
    except (RuntimeError, saves.SaveFailed) as error:
        if type(error).__module__.partition(".")[0] != "sdnb":
            raise
        print(f"sdnb: {errors.explained(error)}", file=sys.stderr)
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


def _values(step) -> dict[str, object]:
    waited = {"waited_seconds": round(step.waited_seconds, 4)} if step.waited_seconds is not None else {}
    saved = {"saved": str(step.saved)} if step.saved else {}
    return {
        "step": step.index + 1,
        "steps": step.steps,
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "seconds": round(step.seconds, 4),
        **waited,
        "peak_bytes": step.peak_bytes,
        **saved,
    }


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
