"""The doctor's verdicts beside those of sd-scripts itself, over hand-picked and generated settings.

    python -m benchmarks.doctor_against_sd_scripts PATH-TO-A-CHECKOUT [--settings 12000] [--record FILE] [--facts]

Runs the training script itself on a model of a few weights up to its second optimizer step (see `sd_scripts_run`) and compares: does
it raise and what, which warnings does it log, and which optimizer, schedule, learning rates and warmup come out. Settings that the
doctor mends are run again. To be run in an environment with sd-scripts' requirements.txt, from this folder. `--record` keeps the
verdicts, which are facts and no code, for the tests, which replay them all and want fewer (`--settings 600`); `--facts` takes the
table of arguments anew.

Takes about twenty minutes on two cores.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from sdnb.doctor.diagnosis import diagnose
from sdnb.doctor.rules import RULES
from sdnb.sd_scripts import versions
from sdnb.sd_scripts.commandlines import from_words
from sdnb.sd_scripts.reading import read
from sdnb.sd_scripts.settings import Settings
from sdnb.sd_scripts.shell import Command, split

from . import sd_scripts
from .doctor_cases import generated, hand_picked
from .report import parser as command_line
from .report import show, write
from .sd_scripts_run import Run

HERE = Path(__file__).resolve().parent.parent
LOGS = {rule.log: rule.name for rule in RULES if rule.log}
COMPARED = {"raises": "raises, and one of the errors named", "first": "raises the error named first"}
LATER = (
    *("after the first step", "at the end of the first epoch", "at the first sample"),
    *(f"TypeError: {name} =" for name in "min_snr_gamma noise_offset ip_noise_gamma save_every_n_steps save_every_n_epochs".split()),
)
"""Words of errors that come later than a run of the benchmark goes: at a save, or where the loss is computed."""


def verdict(checkout: sd_scripts.Checkout, case: dict) -> dict:
    """The exception of sd-scripts for one case as `raises`, its `warnings`, and the optimizer and schedule that come out."""
    result: dict[str, object] = {"raises": None, "warnings": []}
    with sd_scripts.listening() as heard:
        try:
            run = Run(checkout.module(case["script"]), _parse(checkout, case), case["processes"])
            run.begin()
            if run.optimizer is not None:
                result |= _came_out(run.args, run.optimizer, run.scheduler)
                run.step()
        except SystemExit:
            result["raises"] = "SystemExit"
        except Exception as error:
            result |= {"raises": type(error).__name__, "message": str(error)[:160]}
    result["warnings"] = sorted({name for line in heard for part, name in LOGS.items() if part in line})
    return result


class Verdicts:
    """The verdicts on many cases, kept in a file of one JSON list a line, so that a change of the doctor runs no case twice."""

    def __init__(self, checkout: sd_scripts.Checkout, file: Path | None) -> None:
        self.checkout, self.file = checkout, file
        lines = file.read_text(encoding="utf-8").splitlines() if file and file.exists() else ()
        self.known = dict(json.loads(line) for line in lines)

    def of(self, case: dict) -> dict:
        """The verdict on one case."""
        if (key := json.dumps(case)) not in self.known:
            self.known[key] = verdict(self.checkout, case)
            if self.file:
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, self.known[key]]) + "\n")
        return dict(self.known[key])


def opinion(case: dict) -> dict:
    """The doctor's answer to the same case."""
    diagnosis = diagnose(settings_of(case))
    first = next((finding for finding in diagnosis.settings.findings if finding.effect == "raises"), None)
    ran = [rule.name for rule, _ in diagnosis.matches if rule.source.ran]
    raised = [finding for finding in diagnosis.findings if finding.effect == "raises" and finding.rule in ran]
    raised = [finding for finding in raised if not any(word in finding.what for word in LATER)]
    errors = [re.findall(r"\w+(?:Error|Invalid|Exit)\b", finding.what) for finding in raised]
    errors = [["SystemExit"]] if first else errors or [[None]]
    read_only = any(rule.effect == "raises" and not rule.source.ran for rule, _ in diagnosis.matches)
    result = {
        "raises": [error for some in errors for error in some],
        "first": errors[0],
        "warnings": sorted(rule.name for rule, _ in diagnosis.matches if rule.log),
    }
    if errors == [[None]] and not read_only and (effective := diagnosis.effective()):
        rates = effective["learning_rates"]
        result |= {
            "optimizer": effective["optimizer"],
            "scheduler": effective["scheduler"],
            "learning_rates": rates and list(rates.values()),
            "warmup_steps": effective["warmup_steps"],
        }
    return result


def mended(case: dict) -> dict | None:
    """The case as the doctor mends it; None where it says that only the reader can decide."""
    try:
        text = diagnose(settings_of(case)).fixed_text()
    except ValueError:
        return None
    if case["form"] == "toml":
        return {**case, "text": text}
    words = split(text).commands[0].words
    return {**case, "words": words[words.index(case["script"]) + 1 :]}


def settings_of(case: dict) -> Settings:
    """The case as the doctor reads it."""
    if case["form"] == "toml":
        found = read(case["text"], case["script"])
        launch = {"num_processes": str(case["processes"])}
        return replace(found, launch=launch, version=versions.recorded())
    words = ["accelerate", "launch", f"--num_processes={case['processes']}", case["script"], *case["words"]]
    return replace(from_words(Command(words)), version=versions.recorded())


def agree(real: dict, said: dict) -> list[str]:
    """The parts in which the two differ."""
    if real["raises"] not in said["raises"]:
        return ["raises"]
    different = ["first"] if real["raises"] not in said["first"] else []
    if real["raises"] is None:
        different += ["warnings"] if real["warnings"] != said["warnings"] else []
        for name in ("optimizer", "scheduler", "learning_rates"):
            different += [name] if name in said and name in real and repr(real[name]) != repr(said[name]) else []  # repr: NaN is NaN
        if said.get("warmup_steps") is not None and real.get("warmup_steps") is not None and real["warmup_steps"] != said["warmup_steps"]:
            different.append("warmup_steps")
    return different


def _parse(checkout: sd_scripts.Checkout, case: dict):
    parser, before = checkout.parser(case["script"]), sys.argv
    with tempfile.TemporaryDirectory() as folder:
        if case["form"] == "toml":
            file = Path(folder) / "settings.toml"
            file.write_text(case["text"], encoding="utf-8")
            words = [f"--config_file={file}"]
        else:
            words = case["words"]
        sys.argv = [case["script"], *words]
        try:
            return checkout.train_util.read_config_from_file(parser.parse_args(), parser)
        finally:
            sys.argv = before


def _came_out(args, optimizer, scheduler) -> dict:
    kind = type(optimizer)
    dummy = type(scheduler).__name__ == "DummyScheduler"
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    if kind.__name__ == "Adafactor" and optimizer.param_groups[0].get("relative_step"):
        rates = None
    warmup = None
    if getattr(scheduler, "lr_lambdas", None):
        warmup = getattr(scheduler.lr_lambdas[0], "keywords", {}).get("num_warmup_steps")
    return {
        "optimizer": f"{kind.__module__}.{kind.__name__}",
        "scheduler": "none" if dummy else args.lr_scheduler_type or args.lr_scheduler,
        "learning_rates": rates,
        "warmup_steps": warmup,
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("checkout", type=Path, help="a clone of kohya-ss/sd-scripts")
    parser.add_argument("--settings", type=int, default=12_000, help="how many to generate (default: 12000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", help="the checkout's commit, where it has no .git")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep sd-scripts' verdicts here, for the tests")
    parser.add_argument("--verdicts", type=Path, metavar="FILE", help="take sd-scripts' verdicts from here, and add those that are missing")
    parser.add_argument("--facts", action="store_true", help="take sdnb/sd_scripts/facts.json anew first")
    options = parser.parse_args()
    checkout = sd_scripts.Checkout(options.checkout.resolve())
    commit = checkout.commit(options.commit)
    if options.facts:
        sd_scripts.write_facts(checkout, HERE / "sdnb" / "sd_scripts" / "facts.json", commit)
    for rule in RULES:
        file, _, line = rule.source.place.rpartition(":")
        if (checkout.folder / file).is_file() and not (checkout.folder / file).read_text(encoding="utf-8").splitlines()[
            int(line) - 1
        ].strip():
            raise SystemExit(f"{rule.name} names an empty line: {rule.source.place}")
    cases = hand_picked() + generated(options.settings, options.seed)
    verdicts = Verdicts(checkout, options.verdicts)
    rows, counts = [], dict.fromkeys(("raises", "first", "warnings", "optimizer", "scheduler", "learning_rates", "warmup_steps"), 0)
    raising = repaired = still = 0
    for case in cases:
        real, said = verdicts.of(case), opinion(case)
        message = real.pop("message", "")
        rows.append({**case, "verdict": real})
        for name in agree(real, said):
            counts[name] += 1
            print(f"{name}: sd-scripts {real.get(name, real['raises'])!r} {message}, doctor {said.get(name)!r}: {case}")
        if real["raises"]:
            raising += 1
            if better := mended(case):
                repaired += 1
                again = verdicts.of(better)
                if again["raises"]:
                    still += 1
                    print(f"mended, but {again['raises']} {again.get('message')}: {case} -> {better}")
    if options.record:
        lines = ",\n".join(json.dumps(row) for row in rows)
        source = json.dumps({"commit": commit, "versions": sd_scripts.versions()})
        write(options.record, f'{{"source": {source}, "disagreements": {json.dumps(counts)}, "cases": [\n{lines}\n]}}\n')
    table = [
        {"doctor beside sd-scripts": COMPARED.get(name, name.replace("_", " ")), "settings": f"{len(cases):,}", "disagreements": number}
        for name, number in counts.items()
    ]
    table.append({"mended": "settings that raise", "settings": raising, "the doctor mended": repaired, "which still raise": still})
    show(table, options.json, notes=[f"sd-scripts {commit}, with {sd_scripts.versions()}."])
    sys.exit(any(counts.values()) or still > 0)


if __name__ == "__main__":
    main()
