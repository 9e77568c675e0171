"""What do real training steps take on a GPU, beside what is predicted?

    python -m benchmarks.gpu                   # on a GPU, all stages; --minutes 8 unless given
    python -m benchmarks.gpu --rehearse        # the same stages on a CPU, small
    python -m benchmarks.gpu --pack FOLDER     # wheels for a GPU machine without network, and the command to run there
    python -m benchmarks.gpu --assemble FOLDER # of a run that was cut short, the recording
    python -m benchmarks.gpu --table           # the recordings in data/recorded/, measured beside predicted, as Markdown

A GPU is often lent for minutes, so everything that waits for one is here, in stages. Each stage is a process of its own with a limit of
its own: a crash, a hang or a full card ends that stage and no other. Every row goes to `rows.jsonl` the moment it is there, and after
each stage all rows together to `gpu-CARD.json`; `run-CARD.json` is a run for `sdnb.replay`, and `log.txt` is all that was printed. The
two JSON files belong into `data/recorded/`, where the tests hold the planner to them.

    stage       what                                                           took on an H200   limit
    tests       `pytest -m gpu`                                                           47 s     75 s
    lessons     the cells of lessons 02, 03, 08 and 09, a process each, beside the rest  103 s    240 s
    plans       what the planner says to all that is measured, beside the rest            88 s    400 s
    planner     44 configurations of SD 1.5 and SDXL: peaks, milliseconds                390 s    240 s
    steps       milliseconds by the package, by hand, and by what is recomputed          110 s    110 s
    adafactor   the optimizer's step alone                                                60 s     60 s
    floors      whole fine-tunes in the least memory, from pictures on                    53 s     60 s
    run         a run for `sdnb.replay`                                                   45 s     60 s
    events      all requests to the allocator in six configurations: `events.jsonl.gz`    45 s     45 s

In 390 seconds `planner` measured 36 of its configurations, `steps` in 110 one model of three, `events` in 45 five of six: there Python was
the limit, not the card. `planner` and `steps` begin with what tells most.

Takes about 8 minutes on an H200.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import report

ROOT = Path(__file__).resolve().parent.parent
ROWS, LOG = "rows.jsonl", "log.txt"
WHEELS = ("diffusers", "filelock", "importlib_metadata", "tomlkit")
"""What a GPU machine may lack of what the stages import; other requirements (torch, transformers, accelerate, peft, …) are its own."""
MOST_BYTES = 12 * 2**20
"""Of the wheels together."""


@dataclass(frozen=True)
class Stage:
    """One process, or some that share the work."""

    name: str
    seconds: float
    """It is killed after."""
    group: int
    """The groups run one after the other, what is in one at the same time."""
    parts: int = 1
    beside: bool = False
    """Whether the next group need not wait for it: it keeps off the GPU, or soon has done with it."""
    restarts: int = 0
    """How often it is started again after it failed, to go on where it stopped."""


STAGES = (
    Stage("tests", 75, 0),
    Stage("lessons", 240, 0, parts=4, beside=True),
    Stage("plans", 400, 0, parts=4, beside=True),
    Stage("planner", 240, 1, restarts=2),
    Stage("steps", 110, 2),
    Stage("adafactor", 60, 3),
    Stage("floors", 60, 4),
    Stage("run", 60, 5),
    Stage("events", 45, 6),
)
REHEARSED = tuple(Stage(stage.name, 240, number // 2, restarts=stage.restarts) for number, stage in enumerate(STAGES))
"""On a CPU no time counts, and two at a time are what two cores take."""


def command(stage: Stage, part: int, folder: Path, rehearse: bool) -> list[str]:
    """How a part of a stage is started."""
    more = ["--rehearse"] if rehearse else []
    return [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--stage",
        stage.name,
        "--part",
        str(part),
        str(stage.parts),
        "--out",
        str(folder),
        *more,
    ]


# rows


def append(folder: Path, stage: str, row: dict) -> None:
    """Put a row on the disk, in one piece, whichever process is killed next."""
    line = json.dumps({"stage": stage, **row}) + "\n"
    with open(folder / ROWS, "ab", buffering=0) as file:
        file.write(line.encode())
        os.fsync(file.fileno())


def stored(folder: Path) -> list[dict]:
    """All rows there are. A last line that was cut short is left out."""
    rows = []
    path = folder / ROWS
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def assemble(folder: Path, typed: str = "python -m benchmarks.gpu") -> Path | None:
    """Write the recording that the rows in `folder` make; None where the card has not said its name yet."""
    from sdnb.planner import measurements

    rows = stored(folder)
    facts = next((row for row in rows if row["stage"] == "planner" and "versions" in row), None)
    if facts is None:
        return None
    plans = {_key(row["of"]): row["planned"] for row in rows if row["stage"] == "plans" and "of" in row}

    def of(stage: str) -> list[dict]:
        mine = [row for row in rows if row["stage"] == stage and not row.keys() & {"begins", "versions", "ended"}]
        bare = [{name: value for name, value in row.items() if name != "stage"} for row in mine]
        return [{**row, "planned": plans[_key(row)]} if "recompute" in row and _key(row) in plans else row for row in bare]

    ends = [{name: row[name] for name in ("stage", "part", "ended", "seconds")} for row in rows if "ended" in row]
    content = {"command": typed, "card": facts["card"], "versions": facts["versions"], "rows": of("planner"), "stages": ends}
    content |= {name: of(name) for name in ("steps", "adafactor", "floors")}
    content["tests"] = [{**row, "why": _last(row["why"])} for row in of("tests")]
    content["lessons"] = [{**row, "error": _last(row["error"])} for row in of("lessons")]
    card = facts["card"]["name"] if facts["card"] else "rehearsal"
    return measurements.write(folder / measurements.file_name(card), content)


def _last(text: str) -> str:
    """The line that says what happened; all of it is in the rows."""
    return text.strip().splitlines()[-1] if text.strip() else ""


def _key(row: dict) -> str:
    return json.dumps([row[name] for name in ("model", "size", "dtype", "recompute", "settings")], sort_keys=True)


# running them


class _Process:
    """A part of a stage, at work."""

    def __init__(self, stage: Stage, part: int, argv: list[str], folder: Path, seconds: float, cores: int) -> None:
        self.stage, self.part, self.argv, self.folder, self.seconds = stage, part, argv, folder, seconds
        self.start, self.restarts = time.monotonic(), stage.restarts
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // 8))
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {
            **os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        self._begin()

    def _begin(self) -> None:
        with open(self.folder / LOG, "ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=self.environment,
                start_new_session=True,
            )

    def over(self) -> bool:
        """Whether it has come to its end, one way or another, which is noted as a row."""
        status, took = self.process.poll(), time.monotonic() - self.start
        if status is None and took < self.seconds:
            return False
        if status is None:
            self.kill()
            ended = f"killed after {took:.0f} s"
        elif status and self.restarts:
            self.restarts -= 1
            self._note(f"status {status}, started again", took)
            self._begin()
            return False
        else:
            ended = f"status {status}" if status else "done"
        self._note(ended, took)
        return True

    def _note(self, ended: str, took: float) -> None:
        append(self.folder, self.stage.name, {"part": self.part, "ended": ended, "seconds": round(took, 1)})
        print(f"{self.stage.name}{f' {self.part + 1}' if self.stage.parts > 1 else ''}: {ended}, {took:.0f} s", flush=True)

    def kill(self) -> None:
        """End it, and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def conduct(stages: tuple[Stage, ...], folder: Path, seconds: float, start: Callable[[Stage, int], list[str]]) -> None:
    """Run the stages, group by group, in `seconds` at most, and assemble what they left after each group.

    `start` says the command of a part of a stage. Whatever ends this ends the stages, too.
    """
    deadline, cores = time.monotonic() + seconds, os.cpu_count() or 1
    at_work: list[_Process] = []

    def wait(mine: Callable[[Stage], bool]) -> None:
        while any(mine(process.stage) for process in at_work):
            at_work[:] = [process for process in at_work if not process.over()]
            time.sleep(0.1)

    try:
        for group in sorted({stage.group for stage in stages}):
            for stage in (stage for stage in stages if stage.group == group):
                left = deadline - time.monotonic()
                if left < 5:
                    append(folder, stage.name, {"part": 0, "ended": "not begun: the time is over", "seconds": 0})
                    continue
                limit = min(stage.seconds, left)
                at_work += [_Process(stage, part, start(stage, part), folder, limit, cores) for part in range(stage.parts)]
            wait(lambda stage, group=group: stage.group == group and not stage.beside)
            assemble(folder)
        wait(lambda stage: True)
        assemble(folder)
    finally:
        for process in at_work:
            process.kill()


def work(name: str, part: int, parts: int, folder: Path, rehearse: bool) -> None:
    """One part of a stage, in this process."""
    from . import gpu_stages

    scale = gpu_stages.rehearsal(folder) if rehearse else gpu_stages.real()
    done = tuple(row for row in stored(folder) if row["stage"] == name)
    gpu_stages.STAGES[name](gpu_stages.Context(scale, lambda row: append(folder, name, row), folder, done, part, parts))


# what comes of it


def summary(content: dict) -> list[str]:
    """What a recording says, in lines: whatever failed by name, and how good the plans were."""
    from sdnb.planner import configurations, measurements

    lines = [f"{row['stage']}: {row['ended']}" for row in content["stages"] if row["ended"] != "done"]
    tests = [row["outcome"] for row in content["tests"]]
    lines.append("tests: " + (", ".join(f"{tests.count(one)} {one}" for one in sorted(set(tests))) or "none"))
    lines += [f"  {row['test']}: {row['why']}" for row in content["tests"] if row["outcome"] == "failed"]
    wrong = [row for row in content["lessons"] if row["error"]]
    lines.append(f"lessons: {len(content['lessons'])} cells, {len(wrong)} with an error")
    lines += [f"  lesson {row['lesson']}, cell {row['cell']}: {row['error']}" for row in wrong]
    lines += [f"  {configurations.Configuration.from_dict(row).name}: {row['failed']}" for row in content["rows"] if "failed" in row]
    try:
        lines.append(f"planner: {measurements.judge(content['rows'])}")
    except ValueError as error:
        lines.append(f"planner: {error}")
    return lines


def table(rows: list[dict]) -> list[dict]:
    """Measured beside predicted, a line for each configuration that was measured."""
    from sdnb.memory import GIB
    from sdnb.planner.configurations import Configuration

    def share(row: dict, what: str) -> str:
        planned = (row.get("planned") or {}).get(what)
        return f"{planned / row['counted'][what] - 1:+.1%}" if planned and row["counted"].get(what) else ""

    return [
        {
            "configuration": Configuration.from_dict(row).name,
            "allocated": f"{row['counted']['allocated'] / GIB:.2f} GiB",
            "predicted": share(row, "allocated"),
            "reserved": f"{row['counted']['reserved'] / GIB:.2f} GiB" if row["counted"]["reserved"] else "",
            "reserved, predicted": share(row, "reserved"),
            "a step": f"{row['ms']:.0f} ms" if "ms" in row else "",
        }
        for row in rows
        if row.get("counted")
    ]


def times(rows: list[dict]) -> list[dict]:
    """Milliseconds and FLOPs of a step, beside those of the package's step that recomputes nothing."""
    from sdnb.planner.measurements import Configuration

    def family(row: dict) -> str:
        return _key({**row, "recompute": "none"})

    plain = {family(row): row for row in rows if (row["by"], row["recompute"]) == ("sdnb", "none")}
    lines = []
    for row in rows:
        first = plain.get(family(row))
        line = {"a step": Configuration.from_dict(row).name, "by": row["by"], "time": f"{row['ms']:.0f} ms"}
        line["beside nothing recomputed"] = f"{row['ms'] / first['ms']:.2f}x" if first else ""
        flops = [(one or {}).get("planned", {}).get("flops") for one in (row, first)]
        lines.append({**line, "FLOPs beside it": f"{flops[0] / flops[1]:.2f}x" if all(flops) else ""})
    return lines


def optimizers(rows: list[dict]) -> list[dict]:
    """The optimizers' steps, what was timed and what was counted in one line."""
    joined: dict[tuple, dict] = {}
    for row in rows:
        joined.setdefault((row["weights"], row["dtype"], row["optimizer"]), {}).update(row)
    return [
        {
            "optimizer's step": f"{weights}, {dtype}",
            "optimizer": label,
            "time": f"{row['ms']:.2f} ms" if "ms" in row else "",
            "kernels": f"{row['kernels']:,}" if row.get("kernels") else "",
            "waits for the GPU": {True: "yes", False: "no"}.get(row.get("waits"), ""),
        }
        for (weights, dtype, label), row in joined.items()
    ]


def tables() -> str:
    """Every recording as Markdown, or a line that says that there is none."""
    from sdnb.planner import measurements

    parts = []
    for path in measurements.recordings().values():
        content = json.loads(path.read_text(encoding="utf-8"))
        named = ", ".join(f"{name} {value}" for name, value in content["versions"].items())
        parts += [f"**{content['card']['name']}**, {named}; `{content['command']}`:", report.markdown(table(content["rows"]))]
        more = [(table, "floors"), (times, "steps"), (optimizers, "adafactor")]  # a reader's recording has none of them
        parts += [report.markdown(show(content[section])) for show, section in more if content.get(section)]
        parts.append(measurements.summary(path).replace("\n", " "))
    return "\n\n".join(parts) or "No card has been recorded yet: every figure for CUDA is predicted."


def pack(folder: Path, out: str) -> str:
    """Download the wheels that a GPU machine may lack to `folder`; returns the command to run there, in a copy of this checkout.

    Raises `ValueError` where they are larger together than may travel.
    """
    from importlib.metadata import version

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    named = [f"{name}=={version(name)}" for name in WHEELS]
    options = ["--no-deps", "--only-binary=:all:", "--implementation=py", "--abi=none", "--platform=any", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), *named], check=True)
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    if size > MOST_BYTES:
        raise ValueError(f"{size / 2**20:.1f} MiB of wheels, more than {MOST_BYTES / 2**20:.0f}: take a name off WHEELS")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = sum((ROOT / name).stat().st_size for name in listed.split("\0") if name and (ROOT / name).exists())
    install = "python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site"
    run = f"python3 -m benchmarks.gpu --minutes 8 --out {out}"
    line = f"{install} {shlex.quote(folder.name)}/*.whl && export PYTHONPATH=/tmp/site && {run}"
    return (
        f"Carry {folder} ({size / 2**20:.1f} MiB) with the tracked files ({tracked / 2**20:.1f} MiB), and run in the checkout, "
        f"with a time limit of 9.5 minutes:\n\n{line}"
    )


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), metavar="FOLDER", help="where the results go (default: build/gpu)")
    parser.add_argument("--minutes", type=float, default=8.0, help="what all stages may take together (default: 8)")
    parser.add_argument("--only", action="append", choices=[stage.name for stage in STAGES], help="this stage; may be given again")
    parser.add_argument("--rehearse", action="store_true", help="run every stage on a CPU, small")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="fetch the wheels to be carried, and print the command")
    parser.add_argument("--assemble", type=Path, metavar="FOLDER", help="make the recording of the rows there")
    parser.add_argument("--table", action="store_true", help="print the recordings in data/recorded/ as Markdown")
    parser.add_argument("--stage", help="(for itself) run this stage in this process")
    parser.add_argument("--part", type=int, nargs=2, default=[0, 1], metavar=("N", "OF"), help="(for itself) the share of it")
    arguments = parser.parse_args()
    if arguments.stage:
        work(arguments.stage, *arguments.part, arguments.out, arguments.rehearse)
        return
    if arguments.pack:
        print(pack(arguments.pack, str(arguments.out)))
        return
    if arguments.table:
        print(tables())
        return
    folder = (arguments.assemble or arguments.out).resolve()
    if not arguments.assemble:
        perform(folder, 60 * arguments.minutes, arguments.rehearse, arguments.only)
    path = assemble(folder)
    if path is None:
        raise SystemExit(f"nothing was measured: see {folder / LOG}")
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [*table(content["rows"]), *times(content["steps"]), *optimizers(content["adafactor"])]
    report.show(rows, arguments.json, notes=summary(content))
    print(path)


def perform(folder: Path, seconds: float, rehearse: bool, only: list[str] | None) -> None:
    """All stages, or some, into an empty `folder`. Leaves with a message where something that they need is missing."""
    import torch

    from .gpu_stages import missing, rehearsal

    if not rehearse and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here: --rehearse runs every stage on a CPU, small")
    if lacking := missing():
        raise SystemExit(f"{', '.join(lacking)} missing: install them, or carry them as --pack says")
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / ROWS, folder / LOG, *folder.glob("gpu-*.json"), *folder.glob("run-*.json"), *folder.glob("events*")):
        old.unlink(missing_ok=True)
    if rehearse:
        rehearsal(folder)  # makes its model, once for all stages
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    stages = tuple(stage for stage in (REHEARSED if rehearse else STAGES) if not only or stage.name in only)
    conduct(stages, folder, seconds, lambda stage, part: command(stage, part, folder, rehearse))


if __name__ == "__main__":
    main()
