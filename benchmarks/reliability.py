"""What is left of a run that is killed, interrupted, robbed of its disk, or whose saves are damaged?

    python -m benchmarks.reliability

Runs of one process or two are killed at random moments, and at every event of the file system, and go on: each loss and the last save have
to be those of a run that nobody touched, bit for bit. Disks are full, read-only or gone while saves are written: each run has to reach its
last step. Interrupts, up to three in a row, come at random: weights, optimizer and schedule have to be those of one step. Saves are damaged
at random, a bit, a file, an entry: the next run has to refuse each. The fuzzers of `tests/fuzz` get more inputs than in the suite. And
3,000 steps with a live plot have to keep memory and speed. All but the two processes train tiny with a U-Net of one block.

A figure is a number of tries and of those that failed; the status is 1 where one did. Takes about ten minutes on two cores.
"""

import copy
import dataclasses
import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import psutil
import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import sdnb
from sdnb import optim
from sdnb.saves import SaveFailed, folders

from . import report

ROOT = Path(__file__).resolve().parents[1]
QUICK = sdnb.Recipe(train_batch_size=1, lr_warmup_steps=2, learning_rate=1e-3, resolution=32)
INTERRUPTED = {
    "plain": {},
    "fused": {"fused_backward_pass": True},
    "accumulated": {"gradient_accumulation_steps": 2},
    "schedule-free": {
        "optimizer_type": "AdamWScheduleFree",
        "optimizer_args": (),
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
    },
}
"""Kinds of runs that are interrupted, each with what it changes in `QUICK`."""
LORA = {"network_module": "networks.lora", "network_dim": 2, "network_alpha": 1.0, "network_train_unet_only": True, "network_dropout": 0.1}
KILLED = {
    "whole model": {},
    "LoRA with dropout": {"optimizer_type": "AdamW", "optimizer_args": (), "others": LORA},
    "accumulated, captions dropped": {"gradient_accumulation_steps": 2, "caption_dropout_rate": 0.5, "noise_offset": 0.1},
    "fused": {"fused_backward_pass": True},
}
"""Kinds of runs that are killed."""


def miniature(tiny: sdnb.StableDiffusion) -> sdnb.StableDiffusion:
    """The model with a U-Net of one block and few channels, so that a step takes hundredths of a second."""
    config = {name: value for name, value in tiny.unet.config.items() if not name.startswith("_")}
    config |= {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 2}
    config |= {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",), "mid_block_type": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dataclasses.replace(tiny, unet=type(tiny.unet)(**config).eval())


# interrupts


def state(sd: sdnb.StableDiffusion, optimizer, schedule) -> list:
    """Everything that a step changes, in a form that can be compared."""
    numbers = [p.detach().clone() for p in sd.unet.parameters()]
    for entries in optimizer.state.values():
        numbers += [copy.deepcopy(value) for value in entries.values()]
    groups = [{name: value for name, value in group.items() if name not in ("params", "train_mode")} for group in optimizer.param_groups]
    return [*numbers, schedule.state_dict(), groups]


def equal(a, b, tolerance: float = 0.0) -> bool:
    """Whether two states are the same: bit for bit, unless there is a `tolerance`."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and bool(((a - b).abs() <= tolerance).all())
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(equal(a[name], b[name], tolerance) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(one, other, tolerance) for one, other in zip(a, b, strict=True))
    return a == b


class Interrupted:
    """Runs of one kind, two steps each, that are interrupted at random moments."""

    def __init__(self, tiny: sdnb.StableDiffusion, kind: str, seed: int = 0) -> None:
        self.sd, self.pictures = miniature(tiny), sdnb.pictures("emoji-ink")[:2]
        self.tolerance = 1e-6 if kind == "schedule-free" else 0.0  # it goes to the weights it trains on and back, which rounds
        self.recipe, self.random = QUICK.replace(**INTERRUPTED[kind]), random.Random(seed)
        with self._run() as (sd, run, made):
            self.whole = [state(sd, *made)]
            start = time.perf_counter()
            for _ in run:
                self.whole.append(state(sd, *made))
            self.seconds = time.perf_counter() - start

    def once(self) -> int | None:
        """Interrupt a run one to three times in a row; returns the number of its steps, or None if it is left between two."""
        waits = [self.random.uniform(0, 1.2 * self.seconds), *(self.random.expovariate(500) for _ in range(self.random.randrange(3)))]
        armed = threading.Event()

        def raising(number, frame):
            if armed.is_set():
                raise KeyboardInterrupt

        def interrupt():
            for wait in waits:
                time.sleep(wait)
                os.kill(os.getpid(), signal.SIGINT)

        before, thread = signal.signal(signal.SIGINT, raising), threading.Thread(target=interrupt)
        try:
            with self._run() as (sd, run, made):
                try:
                    armed.set()
                    thread.start()
                    for _ in run:
                        pass
                    armed.clear()
                except KeyboardInterrupt:
                    armed.clear()
                thread.join()
                run.close()
                now = state(sd, *made)
                clean = all(p.grad is None for p in sd.unet.parameters()) and "forward" not in vars(sd.unet) and not sd.unet.training
        finally:
            signal.signal(signal.SIGINT, before)
        return next((steps for steps, whole in enumerate(self.whole) if clean and equal(now, whole, self.tolerance)), None)

    @contextmanager
    def _run(self):
        """A model of its own, a run that trains it, and the run's optimizer and schedule."""
        made, true = [], optim.schedule

        def schedule(recipe, optimizer, **named):
            made[:] = [optimizer, true(recipe, optimizer, **named)]
            return made[1]

        sd = dataclasses.replace(self.sd, unet=copy.deepcopy(self.sd.unet))
        with mock.patch.object(optim, "schedule", schedule), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield sd, sdnb.train(sd, self.pictures, self.recipe, steps=2), made


# damaged saves


class Damaged:
    """Saves of a run of two steps, each time with another damage."""

    def __init__(self, tiny: sdnb.StableDiffusion, folder: Path) -> None:
        self.sd, self.pictures, self.folder = miniature(tiny), sdnb.pictures("emoji-ink")[:2], folder
        for name, seed in {"whole": 0, "other": 1}.items():
            list(self._train(folder / name, seed=seed))

    def _train(self, folder: Path, seed: int = 0, steps: int = 3) -> Iterator[sdnb.Step]:
        sd = dataclasses.replace(self.sd, unet=copy.deepcopy(self.sd.unet))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sdnb.train(sd, self.pictures, QUICK.replace(seed=seed), steps=steps, save_to=folder, save_every=1)

    def once(self, chosen: random.Random, checksums: bool = True) -> str | None:
        """Damage the last save, without its checksums if asked; returns why the next run refused it, or None if that went on.

        What it raises that is no `ValueError` comes out.
        """
        folder = self.folder / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder / "whole", folder)
        save = folders.found(folder)[-1]
        if not checksums:
            state = json.loads((save / folders.STATE).read_text())
            (save / folders.STATE).write_text(json.dumps({name: state[name] for name in folders.UNCHECKED}))
        before = {path.name: path.read_bytes() for path in save.iterdir()}
        while {path.name: path.read_bytes() for path in save.iterdir()} == before:
            self.what = damage(save, self.folder / "other", chosen)
        run = None
        try:
            run = self._train(folder, steps=4)
            if not checksums:
                next(run)
        except ValueError as error:
            return str(error)
        finally:
            if run is not None:
                run.close()


def damage(save: Path, other: Path, chosen: random.Random) -> str:
    """Damage a save in one way; returns which. `other` holds the saves of another run."""
    kind = chosen.choice(["flip", "flip", "cut", "swap", "swap", "edit", "edit", "edit", "edit", "tensors", "text", "gone"])
    path = save / chosen.choice([folders.WEIGHTS, folders.TENSORS, folders.STATE])
    raw = bytearray(path.read_bytes())
    if kind == "flip":
        place = chosen.choice([chosen.randrange(len(raw)), chosen.randrange(min(len(raw), 400))])
        raw[place] ^= 1 << chosen.randrange(8)
        path.write_bytes(raw)
    elif kind == "cut":
        path.write_bytes(raw[: chosen.choice([0, 1, len(raw) - 1, chosen.randrange(len(raw))])])
    elif kind == "swap":
        shutil.copy(chosen.choice([*folders.found(save.parent)[:-1], *folders.found(other)]) / path.name, path)
    elif kind == "tensors":
        path = save / chosen.choice([folders.WEIGHTS, folders.TENSORS])
        tensors = load_file(path)
        name = chosen.choice(sorted(tensors))
        ways = [lambda t: t.half(), lambda t: t.double(), lambda t: t.reshape(-1)[:1], lambda t: t[None], lambda t: t.float() * math.nan]
        tensors[name] = chosen.choice(ways)(tensors[name]).contiguous()
        save_file(tensors, path)
    elif kind == "text":
        path = save / folders.STATE
        path.write_text(chosen.choice(["", "[]", "null", "{}", '"x"', "no JSON", "[" * 100_000, '{"format": 1, "steps": 3}', "NaN"]))
    elif kind == "gone":
        path.unlink()
    else:
        path = save / folders.STATE
        state = json.loads(path.read_text())
        name = edit(state, chosen)
        path.write_text(json.dumps(state))
        return f"edit of {name}"
    return f"{kind} of {path.name}"


def edit(tree, chosen: random.Random) -> str:
    """Change or remove one entry of a tree of JSON; returns where."""
    name = "state"
    while True:
        key = chosen.choice(sorted(tree, key=str) if isinstance(tree, dict) else range(len(tree)))
        name, value = f"{name}.{key}", tree[key]
        if isinstance(value, (dict, list)) and value and chosen.random() < 0.8:
            tree = value
            continue
        ways = [-1, 0, 3.5, "3", None, [], {}, [[[]]], {"x": {}}, "x" * 100, 10**30, True, {"tensor": "none"}, {"dict": [1]}]
        if chosen.random() < 0.2:
            del tree[key]
        elif isinstance(value, str) and value and chosen.random() < 0.5:
            place = chosen.randrange(len(value))
            tree[key] = value[:place] + chosen.choice("abc_.6") + value[place + 1 :]
        else:
            tree[key] = chosen.choice(ways)
        return name


# kills


def forked(work: Callable[[], None], quiet: bool = True) -> int:
    """Number of a process that does `work` and ends."""
    if child := os.fork():
        return child
    status = 1
    try:
        warnings.simplefilter("ignore")
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """The exit status of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Killed:
    """Runs of one kind in processes of their own, beside one that nobody touched."""

    def __init__(self, tiny: sdnb.StableDiffusion, kind: str, folder: Path, steps: int = 6) -> None:
        self.sd, self.pictures, self.recipe = miniature(tiny), sdnb.pictures("emoji-ink")[:4], QUICK.replace(**KILLED[kind])
        self.steps, self.folder, self.kills = steps, folder / kind.replace(" ", "-"), 0
        start = time.perf_counter()
        if ended(self._start("whole")):
            raise RuntimeError(f"the run that nobody touched failed: {kind}")
        self.seconds = time.perf_counter() - start

    def _start(self, name: str, before: Callable[[Path], None] = lambda folder: None) -> int:
        """Begin a run, or go on with it, in a process of its own; `before` is called first."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)

        def work():
            before(folder)
            with open(folder / "losses", "a") as losses:
                for step in sdnb.train(
                    self.sd, self.pictures, self.recipe, steps=self.steps, save_to=folder / "saves", save_every=1, keep=1
                ):
                    print(step.index, step.loss.hex(), file=losses, flush=True)

        return forked(work)

    def _is_whole(self, name: str) -> bool:
        """Whether a run has ended as the one that nobody touched: every loss it had on its way, and the last save."""
        run, whole = self.folder / name, self.folder / "whole"
        losses = [set((each / "losses").read_text().splitlines()) for each in (run, whole)]
        last = f"saves/step-{self.steps:08d}"
        files = [folders.WEIGHTS, folders.TENSORS]
        same = all((run / last / file).read_bytes() == (whole / last / file).read_bytes() for file in files)
        clean = not [path for path in (run / "saves").iterdir() if path.name.endswith(".partial")]
        return losses[0] <= losses[1] and same and clean

    def at_random(self, chosen: random.Random, most: int = 5) -> bool:
        """Kill a run at random moments, a few times, and let it go on to its end; returns whether that is the right one."""
        name = f"random-{self.kills}"
        for _ in range(most):
            child = self._start(name)
            time.sleep(chosen.uniform(0, self.seconds))
            os.kill(child, signal.SIGKILL)
            if (status := ended(child)) == 0:
                break
            self.kills += status == -signal.SIGKILL
            if status != -signal.SIGKILL:
                return False
        return ended(self._start(name)) == 0 and self._is_whole(name)

    def events(self) -> int:
        """How many events of the file system a whole run has in its folder."""
        counted = self.folder / "events"
        assert ended(self._start("counting", lambda folder: at_event(folder, lambda number: counted.write_text(str(number))))) == 0
        return int(counted.read_text())

    def at(self, event: int) -> bool:
        """Kill a run at this event, and let it go on to its end; returns whether that is the right one."""

        def deadly(number):
            if number == event:
                os.kill(os.getpid(), signal.SIGKILL)

        name = f"event-{event}"
        if ended(self._start(name, lambda folder: at_event(folder, deadly))) != -signal.SIGKILL:
            return False
        self.kills += 1
        return ended(self._start(name)) == 0 and self._is_whole(name)


EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}


def at_event(folder: Path, tell: Callable[[int], object]) -> None:
    """From now on in this process, call `tell` with the number of each event of the file system in the saves of `folder`, as it begins."""
    number, inside, place = 0, False, str(folder / "saves")

    def happened(*_):
        nonlocal number, inside
        if not inside:
            inside = True
            number += 1
            tell(number)
            inside = False

    def audited(event, arguments):
        if event in EVENTS and arguments and str(arguments[0]).startswith(place):
            happened()

    def around(function):
        def called(*arguments, **named):
            happened()
            result = function(*arguments, **named)
            happened()
            return result

        return called

    sys.addaudithook(audited)
    os.fsync, safetensors.torch.save_file = around(os.fsync), around(safetensors.torch.save_file)  # which tell nobody


TOML = """
pretrained_model_name_or_path = "tiny"
train_data_dir = "emoji-ink"
output_dir = {folder!r}
network_module = "networks.lora"
network_dim = 2
network_train_unet_only = true
resolution = "32,32"
train_batch_size = 1
max_train_steps = 6
save_every_n_steps = 1
optimizer_type = "AdamW"
learning_rate = 1e-3
seed = 7
"""


def two_processes(folder: Path, kills: int, chosen: random.Random) -> bool:
    """Kill a run of two processes so often, and let it go on; returns whether it has the losses and the file of one left alone."""
    losses = {}
    for name, times in {"whole": 0, "killed": kills}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "a.toml").write_text(TOML.format(folder=str(folder / name)))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
        command += ["-m", "sdnb", "train", "--config", str(folder / name / "a.toml"), "--json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        told = losses[name] = {}
        for attempt in range(times + 1):
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
                for line in run.stdout or ():
                    said = json.loads(line) if line.startswith("{") else {}
                    if said.get("event") == "step":
                        if told.setdefault(said["step"], said["loss"]) != said["loss"]:
                            return False
                        if attempt < times and said["step"] > attempt:
                            time.sleep(chosen.uniform(0, 0.3))
                            every = [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]
                            for process in chosen.sample(every, len(every)):
                                process.kill()
                            psutil.wait_procs(every)
                            break
            if attempt == times and run.returncode:
                return False
    files = [load_file(folder / name / "last.safetensors") for name in losses]
    return losses["killed"].items() <= losses["whole"].items() and equal(*files)  # what a killed run still printed is not read


# disks


def raising(code: int, after: Callable | None = None):
    """A function that fails as the system does, perhaps after half of its work."""

    def fail(*arguments, **named):
        if after is safetensors.torch.save_file:
            Path(arguments[1]).write_bytes(b"half")
            raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")
        raise OSError(code, os.strerror(code))

    return fail


PLACES = {
    "safetensors.torch.save_file": safetensors.torch.save_file,
    "os.fsync": None,
    "pathlib.Path.mkdir": None,
    "pathlib.Path.replace": None,
}
DISKS = {
    "full": lambda chosen: _failing(errno.ENOSPC, chosen),
    "read-only": lambda chosen: _failing(errno.EROFS, chosen),
    "failing": lambda chosen: _failing(errno.EIO, chosen),
    "with files limited in size": lambda chosen: _limited(chosen),
    "gone": lambda chosen: _gone,
}
"""What may happen to the disk: context managers for the time of a step, given the folder of the saves."""


def _failing(code: int, chosen: random.Random):
    place = chosen.choice(sorted(PLACES))
    return lambda folder: mock.patch(place, raising(code, PLACES[place]))


def _limited(chosen: random.Random):
    import resource  # not on Windows

    size = chosen.randrange(1, 60_000)

    @contextmanager
    def limit(folder):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@contextmanager
def _gone(folder):
    shutil.move(folder, f"{folder}-gone")
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(f"{folder}-gone", folder)


class Robbed:
    """Runs of four steps whose disk is in trouble during some of them."""

    def __init__(self, tiny: sdnb.StableDiffusion, folder: Path) -> None:
        self.sd, self.pictures, self.folder, self.tried = miniature(tiny), sdnb.pictures("emoji-ink")[:2], folder, 0

    def once(self, kind: str, chosen: random.Random) -> bool:
        """Whether a run came to its last step, with a save of it, or the error that there is none, and every save is whole."""
        self.tried += 1
        folder, trouble = self.folder / str(self.tried), DISKS[kind](chosen)
        sd = dataclasses.replace(self.sd, unet=copy.deepcopy(self.sd.unet))
        troubled = {number for number in range(1, 4) if chosen.random() < 0.6} or {2}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run = sdnb.train(sd, self.pictures, QUICK, steps=4, save_to=folder, save_every=1, keep=9)
            for number in range(4):
                with ExitStack() as stack:
                    if number in troubled:
                        stack.enter_context(trouble(folder))
                    try:
                        step = next(run)
                    except SaveFailed:
                        if number < 3 or 3 not in troubled:
                            return False
                        break
                if step.index != number or (step.saved is None) != (number in troubled):
                    return False
        failures = [warning for warning in told if "was not saved" in str(warning.message)]
        kept = [folders._steps(path) for path in folders.found(folder)]
        for path in folders.found(folder):
            folders.read(path).check(folders.read(path).weights())
        return kept == [number + 1 for number in range(4) if number not in troubled] and len(failures) == len(troubled - {3})


# a long run

LONG = """
import warnings, time, sys
warnings.simplefilter("ignore")
sys.path.insert(0, {root!r})
import psutil, sdnb, torch
from benchmarks import reliability
from sdnb.watch.frontends import Notebook
torch.set_num_threads(1)
sd, pictures = reliability.miniature(sdnb.load("tiny", device="cpu")), sdnb.pictures("emoji-ink")[:8]
run = sdnb.live(sdnb.train(sd, pictures, reliability.QUICK, steps={steps}))
run._front_end = Notebook()
sizes, times = [], []
for step in run:
    times.append(step.seconds)
    sizes.append(psutil.Process().memory_info().rss)
print("RESULT", __import__("json").dumps([sizes, times, run.frames]))
"""


def long_run(steps: int) -> list[dict]:
    """Rows about a run with a live plot: its memory and its steps, late beside early."""
    import statistics

    from .live_plot import Kernel

    with Kernel() as kernel:
        said = kernel.run(LONG.format(root=str(ROOT), steps=steps)).rpartition("RESULT ")[2]
    sizes, times, frames = json.loads(said)
    fifth = steps // 5
    grown = max(sizes[-fifth:]) - max(sizes[fifth : 2 * fifth])
    ratio = statistics.median(times[-fifth:]) / statistics.median(times[fifth : 2 * fifth])
    return [
        {"a long run": f"steps with a live plot of {frames} frames", "value": f"{len(times):,}"},
        {"a long run": "memory, the most of the last fifth beside that of the second", "value": f"{grown / 2**20:+.1f} MiB"},
        {"a long run": "time of a step, the same", "value": f"{ratio:.3f}"},
    ]


# fuzzers


def fuzzed(inputs: int, folder: Path) -> tuple[int, int, str]:
    """How many inputs all fuzzers got, how many fuzzers failed, and what was said last."""
    counts = folder / "fuzz"
    environment = {**os.environ, "FUZZ": str(inputs), "FUZZ_REPORT": str(counts)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "tests/fuzz"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = counts.read_text().splitlines() if counts.exists() else []
    failed = sum(line.startswith(("FAILED", "ERROR")) for line in run.stdout.splitlines())
    return sum(int(line.rpartition(" ")[2]) for line in lines), max(failed, int(run.returncode != 0)), run.stdout[-2000:]


PARTS = ("kills", "events", "processes", "disks", "interrupts", "damages", "fuzzers", "long")


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the tries, without two processes")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wanted, share = arguments.only or [part for part in PARTS if part != "processes" or not arguments.quick], 20 if arguments.quick else 1
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # forked processes have no more, and sums in another order have other last bits
    tiny, chosen, rows, notes = sdnb.load("tiny", device="cpu"), random.Random(arguments.seed), [], []

    def tally(what: str, tries: int, failed: int) -> None:
        rows.append({"what happened": what, "tries": tries, "failed": failed})
        print(f"{what}: {tries}, {failed} failed", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if "kills" in wanted:
            for kind in KILLED:
                runs, failed = Killed(tiny, kind, folder / "random"), 0
                while runs.kills < 28 // share + 1:
                    failed += not runs.at_random(chosen)
                tally(f"killed at random and gone on: {kind}", runs.kills, failed)
        if "events" in wanted:
            for kind in ("whole model", "LoRA with dropout"):
                runs = Killed(tiny, kind, folder / "events", steps=3)
                events = range(1, runs.events() + 1, share)
                failed = sum(not runs.at(event) for event in events)
                tally(f"killed at events of the file system and gone on: {kind}", runs.kills, failed)
        if "processes" in wanted:
            tally("killed at random and gone on: two processes", 4, 0 if two_processes(folder, 4, chosen) else 4)
        if "disks" in wanted:
            runs = Robbed(tiny, folder / "disks")
            for kind in DISKS:
                tries = 40 // share
                tally(f"to the last step, with a disk that was {kind}", tries, sum(not runs.once(kind, chosen) for _ in range(tries)))
        if "interrupts" in wanted:
            for kind in INTERRUPTED:
                runs, tries = Interrupted(tiny, kind, arguments.seed), 80 // share
                left = [runs.once() for _ in range(tries)]
                tally(f"interrupted one to three times in a row, and left between two steps: {kind}", tries, left.count(None))
        if "damages" in wanted:
            saves, tries = Damaged(tiny, folder / "damages"), 2000 // share
            tally("a damaged save refused", tries, sum(saves.once(chosen) is None for _ in range(tries)))
        if "fuzzers" in wanted:
            tries, failed, said = fuzzed(1000 // share, folder)
            tally("inputs of the fuzzers, and fuzzers that failed", tries, failed)
            notes += [said] if failed else []
    if "long" in wanted:
        rows += long_run(3000 // share)
    report.show(rows, arguments.json, **({"notes": notes} if notes else {}))
    sys.exit(int(any(row.get("failed") for row in rows)))


if __name__ == "__main__":
    main()
