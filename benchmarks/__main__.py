"""Run the benchmarks, one after the other, and write one table.

    python -m benchmarks                        # all: two hours on two cores, see --list
    python -m benchmarks planner doctor_speed   # these
    python -m benchmarks --quick                # all in a short form, whose figures say less
    python -m benchmarks --reuse                # go on after an interruption: what is in build/benchmarks/ is not measured again

Each runs in a process of its own, its numbers go to build/benchmarks/NAME.json, what it prints to NAME.log, and the table of all to
build/benchmarks.md, which is written anew after each. One that fails does not stop the others, but the status is 1 then.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import report

HERE = Path(__file__).resolve().parent
QUICK = {
    "doctor_speed": [],
    "compiling": ["--backends", "eager", "--steps", "6"],
    "planner": ["--only", "speed"],
    "live_plot": ["--rounds", "1", "--steps", "20"],
    "training_loop": ["--rounds", "2", "--block", "2"],
    "checkpointing": ["--only", "timed", "--rounds", "1"],
    "adafactor": ["--only", "state"],
    "tiny_sd": ["--only", "style", "--steps", "20"],
    "reliability": ["--quick"],
    "clipping": ["--seeds", "1", "--steps", "10"],
    "warmup": ["--seeds", "1", "--steps", "10"],
    "doctor_against_sd_scripts": ["--settings", "50"],
    "gpu": ["--only", "planner", "--only", "plans", "--minutes", "3"],
}
"""Every benchmark, the short ones first, and the options for its short form."""
GOES_ON = ("clipping", "warmup")
"""Those that keep each finished run, and go on there."""
NEEDS_CHECKOUT = "doctor_against_sd_scripts"
NEEDS_GPU = "gpu"
NO_BENCHMARKS = {
    *(
        "doctor_against_strangers",
        "doctor_cases",
        "fine_tune",
        "gpu_stages",
        "printed_commands",
        "report",
        "strangers_in_sd_scripts",
        "strangers_recipes",
    ),
    *("beside_sd_scripts", "sd_scripts", "sd_scripts_recipes", "sd_scripts_run", "sd_scripts_steps", "sd_scripts_versions"),
    *("speed_beside_sd_scripts", "turns"),
    *(path.stem for path in Path(__file__).parent.glob("record_*.py")),
}
"""What else lies here: what benchmarks share, what records for the tests and lessons, and what compares files that are not kept here."""


@dataclass(frozen=True)
class Outcome:
    """What came of one benchmark: the content of its JSON file, or why there is none."""

    name: str
    content: dict | None = None
    seconds: float | None = None
    why: str = ""
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.result()}" + (f", {_duration(self.seconds)}" if self.seconds is not None else "")

    def result(self) -> str:
        return "ok" if self.content else f"{'failed' if self.failed else 'not run'}: {self.why}"


def about(name: str) -> tuple[str, str]:
    """The question that a benchmark asks, and how long it takes, as its first lines say."""
    text = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8")))
    takes = re.search(r"Takes (about .+?|less than .+?) on (?:two cores|an H200)", " ".join(text.split()))
    if not takes:
        raise ValueError(f'benchmarks/{name}.py does not say how long it "Takes about … on two cores"')
    return text.splitlines()[0], takes[1]


def run(name: str, options: list[str], folder: Path, go_on: bool = False, python: str = sys.executable) -> Outcome:
    """One benchmark in a process of its own, by the interpreter `python`, anew or, if it can, from where an earlier one stopped."""
    path, log, progress = (folder / f"{name}.{kind}" for kind in ("json", "log", "jsonl"))
    folder.mkdir(parents=True, exist_ok=True)
    for old in (path, *(() if go_on else (progress,))):  # an old result is none
        old.unlink(missing_ok=True)
    if name in GOES_ON:
        options = [*options, "--progress", str(progress.resolve())]
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        command = [python, "-m", f"{__package__}.{name}", *options, "--json", str(path.resolve())]
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=HERE.parent, check=False).returncode
    seconds = time.perf_counter() - start
    kept = stored(name, folder)
    if status == 0 and kept.content:
        return kept
    said = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace"))  # without colours
    lines = [line for line in said.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "it printed nothing"
    return Outcome(name, None, seconds, f"status {status}, {last}" if status else "it wrote no result", failed=True)


def has_gpu() -> bool:
    """Whether torch finds one."""
    import torch

    return torch.cuda.is_available()


def stored(name: str, folder: Path) -> Outcome:
    """What an earlier run left."""
    try:
        content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Outcome(name, why="no result is stored")
    return Outcome(name, content, content.get("seconds"))


def table(outcomes: list[Outcome], note: str = "") -> str:
    """The results of all, as Markdown."""
    facts = Counter(fact for outcome in outcomes if outcome.content for fact in outcome.content["machine"].items())
    common = {name: value for (name, value), count in reversed(facts.most_common())}  # of two values, the more frequent one
    text = ["# Benchmarks", "", *([note, ""] if note else [])]
    if common:
        text += ["Measured with " + ", ".join(f"{name} {common[name]}" for name in dict.fromkeys(name for name, _ in facts)) + ".", ""]
    rows = [
        {
            "benchmark": f"[{outcome.name}](#{outcome.name})",
            "question": about(outcome.name)[0],
            "took": _duration(outcome.seconds),
            "result": outcome.result(),
        }
        for outcome in outcomes
    ]
    text += [report.markdown(rows), ""]
    for outcome in outcomes:
        text += [f"## {outcome.name}", "", about(outcome.name)[0], ""]
        if not outcome.content:
            text += [f"**{outcome.result()[0].upper()}{outcome.result()[1:]}**", ""]
            continue
        typed = re.sub(r" --(json|progress) \S+", "", outcome.content["command"])
        text += [f"`{typed}`" + (f", {_duration(outcome.seconds)}" if outcome.seconds is not None else ""), ""]
        if other := {name: value for name, value in outcome.content["machine"].items() if value != common.get(name)}:
            text += ["Here with " + ", ".join(f"{name} {value}" for name, value in other.items()) + ".", ""]
        text += [line for rows in report.tables(outcome.content["rows"]) for line in (report.markdown(rows), "")]
        text += [line for remark in outcome.content.get("notes", []) for line in (remark, "")]
    return "\n".join(text)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"these only: {', '.join(QUICK)}")
    parser.add_argument("--list", action="store_true", help="say what there is and how long it takes")
    parser.add_argument("--quick", action="store_true", help="a short form of each")
    parser.add_argument("--reuse", action="store_true", help="take the results that are stored, and measure the rest")
    parser.add_argument("--sd-scripts", type=Path, metavar="FOLDER", help=f"a checkout of sd-scripts, which {NEEDS_CHECKOUT} needs")
    parser.add_argument(
        "--sd-scripts-python",
        default=sys.executable,
        metavar="PYTHON",
        help="an interpreter that has what sd-scripts requires (default: this)",
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks.md"), help="the table (default: build/benchmarks.md)")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in QUICK]:
        parser.error(f"no benchmark {', '.join(unknown)}: there are {', '.join(QUICK)}")
    names = options.names or list(QUICK)
    if options.list:
        for name in names:
            print(f"{name:28}{about(name)[1]:24}{about(name)[0]}")
        return 0
    folder = options.out.with_suffix("")
    note = "Short forms (`--quick`), whose figures say less than those of the whole." if options.quick else ""
    outcomes: list[Outcome] = []
    for name in names:
        outcome = stored(name, folder) if options.reuse else None
        if not outcome or not outcome.content:
            more = QUICK[name] if options.quick else []
            if name == NEEDS_CHECKOUT and not options.sd_scripts:
                outcome = Outcome(name, why="it needs a checkout of sd-scripts, --sd-scripts FOLDER, and what that requires")
            elif name == NEEDS_GPU and not has_gpu():
                outcome = Outcome(name, why="torch finds no GPU here; its stages are rehearsed by python -m benchmarks.gpu --rehearse")
            else:
                print(f"{name}, {'in short' if options.quick else about(name)[1]} …", flush=True)
                own = name == NEEDS_CHECKOUT
                first, python = ([str(options.sd_scripts.resolve())], options.sd_scripts_python) if own else ([], sys.executable)
                outcome = run(name, [*first, *more], folder, options.reuse, python)
        outcomes.append(outcome)
        print(outcome, flush=True)
        report.write(options.out, table(outcomes, note))
    print(options.out)
    return int(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
