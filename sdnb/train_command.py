"""`sdnb train`: reads settings, says what would come of them, and trains.

`read` joins a file and flags as sd-scripts does, `check` collects everything that a run refuses, ignores or does otherwise, and the command
prints it before anything is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from . import saves
from .doctor import Diagnosis
from .jobs import Job
from .recipe import PASSED_OVER, Recipe
from .sd_scripts import Finding, Settings, arguments, differences, ignored
from .sd_scripts import read as read_settings
from .system import errors, shown

ABLE = {
    "fused-needs-adafactor": "other optimizers step during backward as well",
    "text-encoder-stops": "the text encoder stops, and the U-Net trains on",
    "metadata-uncached": "metadata is read with and without a cache of latents",
    "v2-mismatch": "the kind of model is read from its files",
}
"""Rules of the doctor whose errors stop sd-scripts and no run here, each with the reason."""
LINES = 8
"""Lines of each kind that are printed, so that all of them fit on a screen."""


@dataclass(frozen=True)
class Check:
    """What a run of some settings would refuse, ignore and do otherwise than sd-scripts; a line for each reason."""

    refused: tuple[str, ...]
    ignored: tuple[str, ...]
    differs: tuple[str, ...]
    noted: tuple[str, ...]
    """What sd-scripts, too, would do otherwise than the settings say."""
    recipe: Recipe | None
    """None where the settings do not make one."""

    def lines(self) -> dict[str, tuple[str, ...]]:
        """Lines by their kind, in the order in which they are told."""
        return {"refused": self.refused, "ignored": self.ignored, "differs": self.differs, "noted": self.noted}


def read(config: str | Path | None, flags: list[str]) -> Settings:
    """The settings of a file, of flags, or of both, where flags win. Of a command, its `config_file` is read, too.

    Where neither names a script, both together say which one they are for.
    Raises `ValueError` where there is nothing to read.
    """
    if config is None and not flags:
        raise ValueError("nothing to train: give a FILE with settings, or sd-scripts' flags after --")
    if config is not None and Path(config).expanduser().is_dir():
        raise ValueError(f"{config} is a folder: give the file in it that has the settings")
    if config is not None and not Path(config).expanduser().is_file():
        raise ValueError(f"{config}: there is no such file")
    if config is None:
        return _with_config_file(read_settings(shlex.join(flags)), Path())
    path = Path(config).expanduser()
    settings = _with_config_file(read_settings(path), path.parent)
    if not flags:
        return settings
    more = _with_config_file(read_settings(shlex.join(flags)), path.parent)
    if not more.script_named:  # as all of the settings together say
        is_known = settings.script_named or settings.form == "gui"
        names = [*settings.given, *(word[2:].partition("=")[0] for word in flags if word.startswith("--"))]
        model = more.given.get("pretrained_model_name_or_path", settings.given.get("pretrained_model_name_or_path"))
        script = settings.script if is_known else arguments.script_for(dict.fromkeys(names), model)
        more = replace(_with_config_file(read_settings(shlex.join(flags), script), path.parent), script_named=False)
        if script != settings.script:
            settings = replace(_with_config_file(read_settings(path, script), path.parent), script_named=False)
    return _joined(settings, more)


def _joined(settings: Settings, more: Settings) -> Settings:
    """Settings with `more` of them, which win."""
    script = more if more.script_named or not settings.script_named else settings
    return replace(
        settings.change(more.given),
        script=script.script if script.script_named else settings.script,
        script_named=script.script_named,
        launch={**settings.launch, **more.launch},
        findings=(*settings.findings, *more.findings),
        unknown=(settings.unknown - more.given.keys()) | more.unknown,
        held={**settings.held, **more.held},
    )


def _with_config_file(settings: Settings, beside: Path) -> Settings:
    """Settings with those of the file that their `config_file` names; it may also lie beside the file that names it."""
    name = settings.given.get("config_file")
    if settings.form not in ("command", "flags") or not isinstance(name, str):
        return settings
    name = name if name.endswith(".toml") else f"{name}.toml"
    path = next((path for path in (Path(name).expanduser(), beside / name) if path.is_file()), None)
    own = replace(settings, unknown=settings.unknown - {"*"})
    if path is None:
        what = f"config_file={shown(name, 200)} does not exist."
        missing = Finding(rule="file-not-read", effect="raises", what=what, why="", fix="Give a file that does.")
        return replace(own, findings=(*own.findings, missing))
    return _joined(read_settings(path, settings.script if settings.script_named else None), own)


def parse(config: str | Path | None, flags: list[str]) -> Recipe:
    """The recipe of a file, of flags, or of both, where flags win. Raises `ValueError` with all that sd-scripts would refuse."""
    settings = read(config, flags)
    if wrong := _wrong(settings):
        raise ValueError("; ".join(wrong))
    return Recipe.from_settings(settings)


def check(settings: Settings, *, follow_links: bool = False, device: str | None = None) -> Check:
    """What a run of these settings on `device`, `cpu` or `cuda`, comes to. No model is loaded. Without a device, all are spoken of."""
    wrong, recipe = _wrong(settings), None
    if settings.form == "none":
        return Check(tuple(wrong), (), (), (), None)
    try:
        recipe = Recipe.from_settings(settings)
        Job(recipe, follow_links)
    except (ValueError, ImportError) as error:
        told = " ".join(wrong)
        wrong += [line for line in getattr(error, "reasons", [str(error)]) if not _is_named(line, told)]
    silent = [one for one in Diagnosis(settings).findings if one.effect in ("overrides", "ruins")]
    return Check(
        refused=tuple(wrong),
        ignored=(
            *(one.in_short for one in silent if one.rule in PASSED_OVER),
            *(ignored(recipe) if recipe else ()),
        ),
        differs=tuple(differences(recipe, device)) if recipe else (),
        noted=tuple(one.in_short for one in silent if one.rule not in PASSED_OVER),
        recipe=recipe,
    )


def _wrong(settings: Settings) -> list[str]:
    """What sd-scripts refuses of the settings, in the doctor's words, and what no run here can know or do."""
    diagnosis = Diagnosis(settings)
    able = ABLE if settings.script_named else (*ABLE, "network-missing")  # a whole model may be meant
    wrong = [one.in_short for one in diagnosis.findings if one.effect == "raises" and one.rule not in able]
    hidden = sorted({*settings.unknown - {"*"}, *(name for name in settings.held if not settings.said(name))})
    wrong += [f"{name}: its value, {settings.held.get(name, 'a variable')}, is not in the text: give it as a flag" for name in hidden]
    if settings.script_named and settings.script not in arguments.TRAINED:
        wrong.append(f"{settings.script} trains what no run here does: LoRAs and whole models of SD 1.x, 2.x and SDXL are trained")
    return wrong


def _is_named(line: str, told: str) -> bool:
    """Whether another line already says why the setting that this one begins with is refused."""
    name = line.partition(":")[0].partition("=")[0]
    return name.isidentifier() and re.search(rf"\b{name}\b", told) is not None


# the command


def add_train(commands) -> None:
    """Add `sdnb train` to the parsers of argparse."""
    command = commands.add_parser(
        "train",
        help="train a model with settings of sd-scripts",
        usage="sdnb train [FILE] [--check] [--resume auto|yes|no] [--follow-links] [--json] [-- FLAGS…]",
        description="FILE is a TOML file of sd-scripts, or another file that the doctor reads. FLAGS are those of sd-scripts, and win over "
        "the file. Before anything is loaded, the command names what is not supported. It writes the result and the saves to output_dir; "
        "started again, an interrupted run resumes from them. For several processes: accelerate launch -m sdnb train …",
    )
    where = command.add_mutually_exclusive_group()
    where.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the file with the settings")
    where.add_argument("--config", type=Path, metavar="FILE", help="the same")
    command.add_argument(
        "--check", action="store_true", help="train nothing; say what would be refused, ignored or done differently: status 0 or 2"
    )
    command.add_argument(
        "--resume", choices=("auto", "yes", "no"), default="auto", help="resume from the last save: if there is one, always, or never"
    )
    command.add_argument("--follow-links", action="store_true", help="follow links from the folder to pictures and captions elsewhere")
    command.add_argument("--json", action="store_true", help="print one JSON object per line")
    command.set_defaults(run=run_train, way_out="flags of sd-scripts go after --")


def run_train(options: argparse.Namespace) -> int:
    """Run a job; the status is 1 when it diverged, the card was full or the last save failed, 2 when it could not begin, 130 when
    it was interrupted. Raises `ValueError` for settings that no run here can have.
    """
    from .system import devices, requirements

    requirements.check()  # before torch is asked for
    settings = read(options.file or options.config, options.flags)
    tell = _as_json if options.json else _as_line
    if options.check:
        return _run_check(check(settings, follow_links=options.follow_links), options.json)
    found = check(settings, follow_links=options.follow_links, device=devices.default().type)
    if found.refused or found.recipe is None:
        raise ValueError("; ".join(found.refused))
    job = Job(found.recipe, options.follow_links)
    speaks = int(os.environ.get("RANK", 0)) == 0  # one of several processes
    if speaks:
        _print(found, options.json)
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


def _run_check(found: Check, as_json: bool) -> int:
    trains = not found.refused
    _print(found, as_json)
    if as_json:
        _as_json("checked", trains=trains)
    else:
        print("Nothing is refused: this would train." if trains else "This would not train.")
    return 0 if trains else 2


def _print(found: Check, as_json: bool) -> None:
    for kind, lines in found.lines().items():
        if as_json:
            for line in lines:
                _as_json(kind, setting=line)
            continue
        for line in lines[:LINES]:
            print(f"{kind}: {line}")
        if len(lines) > LINES:
            print(f"{kind}: and {len(lines) - LINES} more, which --json lists", flush=True)


def _values(step) -> dict[str, object]:
    waited = {"waited_seconds": round(step.waited_seconds, 4)} if step.waited_seconds is not None else {}
    saved = {"saved": str(step.saved)} if step.saved else {}
    tried = {"validation_loss": step.validation_loss} if step.validation_loss is not None else {}
    scaled = {"keys_scaled": step.norms.scaled} if step.norms else {}
    return {
        "step": step.index + 1,
        "steps": step.steps,
        "loss": step.loss,
        **tried,
        "learning_rate": step.learning_rate,
        "seconds": round(step.seconds, 4),
        **waited,
        "peak_bytes": step.peak_bytes,
        **scaled,
        **saved,
    }


def _is_told(step) -> bool:
    """One line in a hundredth of the run, and where something happened."""
    every = max(1, step.steps // 100)
    return step.saved is not None or step.validation_loss is not None or step.index == 0 or (step.index + 1) % every == 0


def _as_json(event: str, **values) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def _as_line(event: str, **values) -> None:
    if event == "step":
        saved = f"  saved {values['saved']}" if "saved" in values else ""
        peak = f"  {values['peak_bytes'] / 2**30:.2f} GiB" if values["peak_bytes"] else ""
        where = f"{values['step']:,}/{values['steps']:,}"
        tried = f"  validation {values['validation_loss']:.4f}" if "validation_loss" in values else ""
        scaled = f"  {values['keys_scaled']} keys scaled" if "keys_scaled" in values else ""
        print(
            f"{where}  loss {values['loss']:.4f}{tried}  lr {values['learning_rate']:.2e}  {values['seconds']:.2f} s{peak}{scaled}{saved}",
            flush=True,
        )
    else:
        print(
            f"{event}: " + ", ".join(f"{name} {value}" if name != "setting" else str(value) for name, value in values.items()), flush=True
        )
