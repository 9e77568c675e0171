"""`python -m benchmarks.gpu` and `sdnb.planner.measurements`: they measure what is planned; one that is cut short keeps what it has."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import gpu, report
from sdnb import Recipe
from sdnb.checkpointing.choices import Budget
from sdnb.planner import measurements
from sdnb.planner import report as report_of_plans
from sdnb.planner.configurations import CONFIGURATIONS, Configuration, configuration
from sdnb.planner.measurements import judge
from sdnb.system import cards

from .conftest import ROOT

H100 = cards.CARDS["h100"]


# configurations


def test_the_configurations_cover_what_is_promised():
    assert len(set(CONFIGURATIONS)) == len(CONFIGURATIONS) >= 30
    recipes = [one.recipe for one in CONFIGURATIONS]
    assert {one.model for one in CONFIGURATIONS} == {"sd15", "sdxl"}
    assert {recipe.wants_lora for recipe in recipes} == {True, False}
    assert {recipe.mixed_precision for recipe in recipes} == {"no", "fp16", "bf16"}
    assert {one.dtype for one in CONFIGURATIONS} == {"fp32", "fp16", "bf16"}
    assert {recipe.optimizer_type for recipe in recipes} == {"AdamW", "Adafactor"}
    assert {recipe.fused_backward_pass for recipe in recipes} == {True, False}
    assert {one.recompute if isinstance(one.recompute, str) else "Budget" for one in CONFIGURATIONS} == {"none", "full", "CHEAP", "Budget"}
    assert {recipe.train_batch_size for recipe in recipes} == {1, 2, 3, 4}
    assert {side for one in CONFIGURATIONS for side in one.size} == {512, 768, 1024}
    assert {recipe.gradient_accumulation_steps for recipe in recipes} == {1, 2}
    assert {recipe.cache_latents for recipe in recipes} == {True, False}


def test_a_quarter_and_more_can_run_on_a_card_without_bf16():
    able = [one for one in CONFIGURATIONS if one.recipe.mixed_precision != "bf16" and one.dtype != "bf16"]
    assert len(able) >= 15
    assert len({one.recipe.mixed_precision for one in able[:4]}) == 2  # of both from the beginning


def test_a_configuration_is_written_and_read_back():
    for one in CONFIGURATIONS:
        assert Configuration.from_dict(json.loads(json.dumps(one.as_dict()))) == one
    budget = configuration("sd15", 512, 1, "whole", "bf16 weights", "fused", 2**30)
    assert budget.choice == Budget(2**30, fused_backward_pass=True)
    assert "recomputed for 1.00 GiB" in budget.name
    assert len({one.name for one in CONFIGURATIONS}) == len(CONFIGURATIONS)


# measuring


@pytest.mark.parametrize(
    "one",
    [
        configuration("tiny", 64, 2, "whole", "fp32", "AdamW", cached=False, gradient_accumulation_steps=2, max_grad_norm=1.0),
        pytest.param(configuration("tiny", 64, 1, "whole", "fp32", "fused", "full"), marks=pytest.mark.long),
        pytest.param(configuration("tiny", 64, 2, "lora", "fp32", "AdamW", "CHEAP"), marks=pytest.mark.long),
        configuration("tiny", 64, 2, "lora+text", "fp32", "AdamW", "full"),
        pytest.param(configuration("tiny", 64, 1, "whole", "bf16", "Adafactor", "full"), marks=pytest.mark.long),
    ],
    ids=lambda one: one.name,
)
def test_what_is_counted_is_what_is_planned(one):
    """Only so does a recording say anything about the planner."""
    row = measurements.attempt(one, device="cpu", steps=2)
    assert measurements.forecast(one, None)["allocated"] == pytest.approx(row["counted"]["allocated"], rel=0.005)


def test_a_choice_is_made_in_the_precision_of_the_weights():
    one = configuration("tiny", 64, 2, "whole", "bf16 weights", "fused", "CHEAP")
    assert measurements.Run.of(one, "cpu").recompute_plan


def test_what_cannot_be_measured_leaves_its_reason(monkeypatch):
    row = measurements.attempt(configuration("tiny", 64, 1, "lora", "fp16", "AdamW"), device="cpu")
    assert "needs a GPU" in row["skipped"]
    assert measurements.outcome(row) == f"skipped: {row['skipped']}"

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. 1.00 GiB is free.")

    monkeypatch.setattr(measurements.Run, "of", full)
    row = measurements.attempt(CONFIGURATIONS[0], device="cpu")
    assert row["skipped"] == "the card's memory is full: 2.00 GiB more were asked for, and 1.00 GiB were free"
    monkeypatch.setattr(measurements.Run, "of", lambda *args: [][1])
    assert measurements.attempt(CONFIGURATIONS[0], device="cpu")["failed"].startswith("IndexError")


# judging


def rows(*errors):
    """Rows whose plans are off by these shares, allocated and reserved."""
    made = []
    for number, (allocated, reserved) in enumerate(errors):
        planned = {"allocated": round(1e9 * (1 + allocated)), "reserved": round(2e9 * (1 + reserved))}
        made.append({**CONFIGURATIONS[number].as_dict(), "counted": {"allocated": 10**9, "reserved": 2 * 10**9}, "planned": planned})
    return made


@pytest.mark.parametrize(
    ("errors", "problem"),
    [
        ([(0.004, 0.03)] * 40, None),
        ([(0.004, 0.03)] * 39 + [(0.2, 0.2)], None),  # one of forty is above the 95th percentile
        ([(0.006, 0.03)] * 40, "allocated, median is 0.60%, more than 0.5%"),
        ([(0.004, 0.03)] * 36 + [(0.03, 0.03)] * 4, "allocated, 95th percentile is 3.00%, more than 1.0%"),
        ([(0.004, 0.06)] * 40, "reserved, 95th percentile is 6.00%, more than 5.0%"),
        ([(0.004, 0.03)] * 39 + [(-0.012, 0.03)], "allocated, most below is 1.20%, more than 1.0% (" + CONFIGURATIONS[39].name),
        ([(0.004, 0.03)] * 39 + [(0.004, -0.06)], "reserved, most below is 6.00%, more than 5.0% (" + CONFIGURATIONS[39].name),
    ],
)
def test_plans_are_judged(errors, problem):
    verdict = judge(rows(*errors))
    assert verdict.rows == 40
    assert [line for line in verdict.problems if problem is None or problem not in line] == []
    assert bool(verdict.problems) == (problem is not None)
    assert (problem or "Within all limits") in str(verdict)


def test_a_few_rows_are_not_judged():
    with pytest.raises(ValueError, match=r"9 rows were measured and planned.*record for longer"):
        judge([*rows(*[(0.0, 0.0)] * 9), {**CONFIGURATIONS[0].as_dict(), "skipped": "no bf16"}])


# recording


@pytest.fixture
def recorder(monkeypatch, tmp_path):
    """`record` on a made-up card whose measurements are made up, too; returns what it told and wrote."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(measurements.devices, "no_kernels", lambda device: "")
    monkeypatch.chdir(tmp_path)

    def main(card, **kwargs):
        monkeypatch.setattr(measurements.advice, "card", lambda device: card)
        told = []
        path = measurements.record(tell=told.append, **kwargs)
        return told, path, json.loads(path.read_text(encoding="utf-8"))

    plan = {"allocated": 10 * 2**30, "reserved": 11 * 2**30, "flops": 1}
    monkeypatch.setattr(measurements, "forecast", lambda one, card: plan if "bf16" not in one.name else {"refused": "no bf16 of its own"})
    monkeypatch.setattr(
        measurements, "attempt", lambda one: {**one.as_dict(), "counted": {"allocated": 10**10, "reserved": 11**10}, "ms": 9.0}
    )
    return main


def test_a_recording_holds_every_configuration_and_names_nobody(recorder):
    told, path, content = recorder(cards.CARDS["t4"])
    assert path.name == "gpu-tesla-t4.json"
    assert len(content["rows"]) == len(told) == len(CONFIGURATIONS)
    assert measurements.card_from_dict(content["card"]).capability == (7, 5)
    assert {"python", "torch", "diffusers"} <= content["versions"].keys()
    assert content["rows"][0]["skipped"] == "no bf16 of its own"
    assert "planned +7.4%" in told[1]
    assert "skipped or failed.\n" in measurements.summary(path)
    assert str(ROOT) not in path.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").count("\n") == len(CONFIGURATIONS) + 7  # a line each


def test_what_does_not_fit_is_not_tried(recorder):
    _, _, content = recorder(cards.card(8 * 2**30))
    assert content["rows"][1]["skipped"] == "predicted to need 10.00 GiB, and the card has 8.00"
    assert "counted" not in content["rows"][1]


def test_a_recording_ends_in_time(recorder):
    told, _, content = recorder(H100, minutes=0)
    assert len(content["rows"]) == 1  # what was begun is ended
    assert told[-1] == "The 0 minutes are over."


def test_a_gpu_without_kernels_is_not_recorded(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(measurements.devices, "no_kernels", lambda device: "it has 6.0, and this torch was built for 7.5")
    assert measurements.record() is None
    assert "this torch was built for 7.5." in capsys.readouterr().out
    assert measurements.summary(None) == "Nothing was recorded."


def test_without_a_gpu_there_is_nothing_to_record(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert measurements.record() is None
    assert capsys.readouterr().out.startswith("Nothing to record: torch finds no GPU here.")


# the recordings of real cards

RECORDINGS = measurements.recordings()
EVERY = 1 if os.environ.get("PLANNER_CASES") == "all" else 9
"""So many rows of a recording are planned anew by the test; the others keep the plans they were recorded with."""


@pytest.mark.slow
@pytest.mark.skipif(not RECORDINGS, reason="no card has been recorded yet: python -m benchmarks.gpu makes data/recorded/gpu-*.json")
@pytest.mark.parametrize("name", RECORDINGS)
def test_the_planner_keeps_to_what_real_cards_counted(name):
    content = json.loads(RECORDINGS[name].read_text(encoding="utf-8"))
    card = measurements.card_from_dict(content["card"])
    measured = [row for row in content["rows"] if row.get("counted")]
    for place in range(0, len(measured), EVERY):
        measured[place]["planned"] = measurements.forecast(Configuration.from_dict(measured[place]), card)
    assert judge(measured).problems == ()


@pytest.mark.skipif(not RECORDINGS, reason="no card has been recorded yet: python -m benchmarks.gpu makes data/recorded/gpu-*.json")
def test_what_every_plan_says_of_itself_is_what_was_recorded():
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in RECORDINGS.values()]
    assert {content["card"]["name"].removeprefix("NVIDIA ") for content in contents} == set(report_of_plans.MEASURED)
    (content,) = contents
    measured = [row for row in content["rows"] if row.get("counted")]
    errors = {count: [abs(row["planned"][count] / row["counted"][count] - 1) for row in measured] for count in ("allocated", "reserved")}
    assert f" {len(measured)} such predictions for an H200 " in report_of_plans.HOW_RIGHT
    said = [float(number) / 100 for number in re.findall(r"([\d.]+)% of what", report_of_plans.HOW_RIGHT)]
    assert 0.8 * said[0] < max(errors["allocated"]) <= said[0]
    assert 0.8 * said[1] < max(errors["reserved"]) <= said[1]


# the stages


def test_every_stage_is_known_and_in_the_page():
    from benchmarks import gpu_stages

    assert [stage.name for stage in gpu.STAGES] == [stage.name for stage in gpu.REHEARSED]
    assert {stage.name for stage in gpu.STAGES} == set(gpu_stages.STAGES)
    for stage in gpu.STAGES:
        line = next(line for line in gpu.__doc__.splitlines() if line.split()[:1] == [stage.name])
        assert line.endswith(f" {stage.seconds} s")
    groups = {stage.group: stage.seconds for stage in gpu.STAGES if not stage.beside}
    estimates = [int(line.split()[-4]) for line in gpu.__doc__.splitlines() if line.endswith(" s") and line.startswith("    ")]
    assert len(estimates) == len(gpu.STAGES)
    assert len(groups) == 7


def scripts(**sources):
    """Stages that are made-up programs, each in a group of its own, and how they are started."""
    head = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from benchmarks.gpu import append\n"
    head += "def row(number): append(Path('.'), sys.argv[1], {'number': number})\n"
    stages = tuple(gpu.Stage(name, 4, number, restarts=int(name == "restarted")) for number, name in enumerate(sources))
    return stages, lambda stage, part: [sys.executable, "-c", head.replace("Path('.')", "Path(sys.argv[2])") + sources[stage.name]]


def test_a_stage_that_raises_or_hangs_takes_no_other_and_keeps_its_rows(tmp_path, monkeypatch, capsys):
    stages, start = scripts(
        raises="row(1)\nraise OSError('no')",
        hangs="row(1)\nimport subprocess; subprocess.Popen(['sleep', '60']); print('here'); row(2)\ntime.sleep(60)",
        restarted="row(1)\nraise SystemExit(len((Path(sys.argv[2]) / 'rows.jsonl').read_text().splitlines()) < 8)",
        works="row(1)",
    )
    began = time.monotonic()
    gpu.conduct(stages, tmp_path, 60, lambda stage, part: [*start(stage, part), stage.name, str(tmp_path)])
    assert time.monotonic() - began < 40
    there = gpu.stored(tmp_path)
    ends = {row["stage"]: row["ended"] for row in there if "ended" in row}
    assert ends["raises"] == "status 1"
    assert ends["hangs"].startswith("killed after 4 s")
    assert ends["works"] == "done"
    assert next(row["ended"] for row in there if row["stage"] == "restarted" and "ended" in row) == "status 1, started again"
    assert [row["number"] for row in there if row["stage"] == "hangs" and "number" in row] == [1, 2]
    assert [row["number"] for row in there if row["stage"] == "raises" and "number" in row] == [1]
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "OSError: no" in log
    assert "hangs: killed" in capsys.readouterr().out


def test_when_the_time_is_over_nothing_is_begun(tmp_path):
    stages, start = scripts(first="row(1)\ntime.sleep(60)", second="row(1)")
    gpu.conduct(stages, tmp_path, 6, lambda stage, part: [*start(stage, part), stage.name, str(tmp_path)])
    ends = {row["stage"]: row["ended"] for row in gpu.stored(tmp_path) if "ended" in row}
    assert ends == {"first": "killed after 4 s", "second": "not begun: the time is over"}


def test_a_run_that_is_told_to_stop_stops_its_stages(tmp_path):
    code = (
        "import sys, signal; from pathlib import Path; from benchmarks import gpu\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('stop'))\n"
        "gpu.conduct((gpu.Stage('a', 60, 0),), Path(sys.argv[1]), 60, lambda s, p: [sys.executable, '-c', "
        "'import os, time; print(os.getpid(), flush=True); time.sleep(60)'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    log = tmp_path / "log.txt"
    for _ in range(200):
        if log.exists() and log.read_text(encoding="utf-8").strip():
            break
        time.sleep(0.1)
    process.terminate()
    process.wait(20)
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text(encoding="utf-8")), 0)


def test_rows_of_a_run_that_was_cut_short_make_a_recording(tmp_path):
    assert gpu.assemble(tmp_path) is None
    one, two = CONFIGURATIONS[:2]
    card = measurements.card_as_dict(H100)
    plan = {"allocated": 2**30, "reserved": 2**30, "flops": 1}
    for stage, row in [
        ("planner", {"versions": {"torch": "2.11"}, "card": card}),
        ("planner", {"begins": one.as_dict()}),
        ("planner", {**one.as_dict(), "counted": {"allocated": 2**30, "reserved": 2**31}, "ms": 5.0}),
        ("planner", {"begins": two.as_dict()}),
        ("plans", {"of": one.as_dict(), "planned": plan}),
        ("steps", {"by": "by hand", **one.as_dict(), "ms": 4.0}),
        ("tests", {"test": "a", "outcome": "failed", "why": "assert 1\n  == 2"}),
        ("lessons", {"lesson": "03", "cell": 1, "error": "ValueError: no\nreally not"}),
        ("tests", {"part": 0, "ended": "killed after 75 s", "seconds": 75.0}),
    ]:
        gpu.append(tmp_path, stage, row)
    with open(tmp_path / gpu.ROWS, "a", encoding="utf-8") as file:
        file.write('{"stage": "planner", "mod')  # the machine went away here
    path = gpu.assemble(tmp_path)
    assert path.name == "gpu-h100-80-gb.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert [row["planned"] for row in content["rows"]] == [plan]
    assert content["steps"][0]["planned"] == plan
    lines = gpu.summary(content)
    for line in ("tests: killed after 75 s", "tests: 1 failed", "  a:   == 2", "lessons: 1 cells, 1 with an error", "cell 1: really not"):
        assert any(line in one for one in lines), line
    assert report.markdown(gpu.table(content["rows"])).count("GiB") == 2


def test_tables_say_when_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(measurements, "recordings", dict)
    assert gpu.tables().startswith("No card has been recorded yet")
    made = rows(*[(0.001, 0.01)] * 12)
    content = {"command": "python -m benchmarks.gpu", "card": measurements.card_as_dict(H100), "versions": {"torch": "2.11"}, "rows": made}
    path = measurements.write(tmp_path / "gpu-x.json", content)
    monkeypatch.setattr(measurements, "recordings", lambda: {"x": path})
    text = gpu.tables()
    assert "**H100 80 GB**, torch 2.11; `python -m benchmarks.gpu`" in text
    assert "| 0.93 GiB | +0.1% | 1.86 GiB | +1.0% |" in text
    assert "Within all limits" in text


def test_times_and_optimizers_make_a_line_each():
    plain = CONFIGURATIONS[2].as_dict() | {"recompute": "none", "planned": {"flops": 20}}
    full = {**plain, "recompute": "full", "planned": {"flops": 26}}
    lines = gpu.times([{"by": "sdnb", "ms": 100.0, **plain}, {"by": "sdnb", "ms": 150.0, **full}, {"by": "by hand", "ms": 98.0, **plain}])
    assert [line["beside nothing recomputed"] for line in lines] == ["1.00x", "1.50x", "0.98x"]
    assert [line["FLOPs beside it"] for line in lines] == ["1.00x", "1.30x", "1.00x"]
    one = {"weights": "sd15", "dtype": "float32", "optimizer": "sdnb.Adafactor"}
    (line,) = gpu.optimizers([{**one, "ms": 3.14159, "waits": False}, {**one, "kernels": 1446}])
    assert list(line.values()) == ["sd15, float32", "sdnb.Adafactor", "3.14 ms", "1,446", "no"]


def test_without_a_gpu_it_says_what_to_do(monkeypatch, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="--rehearse runs every stage"):
        gpu.main()


def test_the_allocators_history_is_shortened():
    history = [
        {"action": "segment_alloc", "addr": 4096, "size": 2**21},
        {"action": "alloc", "addr": 4096, "size": 512},
        {"action": "free_requested", "addr": 4096, "size": 512},
        {"action": "free_completed", "addr": 4096, "size": 512},
        {"action": "alloc", "addr": 8192, "size": 1024},
    ]
    from benchmarks.gpu_stages import compact

    assert compact(history) == [["segment_alloc", 0, 2**21], ["+", 0, 512], ["-", 0, 512], ["+", 1, 1024]]


class _Cuda:
    """CUDA's counters and events, made up: 100 bytes with the model, and more in each phase."""

    def __init__(self, monkeypatch):
        self.now = 100
        for name in ("empty_cache", "synchronize", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, lambda *args: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *args: 7)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *args: 1000 + self.now)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *args: self.now)
        monkeypatch.setattr(torch.cuda, "memory_stats", lambda *args: {"num_alloc_retries": 0})
        event = type("Event", (), {"record": lambda self: None, "elapsed_time": lambda self, other: 5.0})
        monkeypatch.setattr(torch.cuda, "Event", lambda **kwargs: event())


def test_cudas_counters_are_read_phase_by_phase(monkeypatch):
    cuda = _Cuda(monkeypatch)

    def step(on_phase):
        for phase, size in (("forward", 300), ("backward", 500), ("optimizer", 400)):
            on_phase(phase)
            cuda.now = size

    with measurements.CudaMeter("cuda") as meter:
        for _ in range(3):
            meter.step(step)
    found = meter.result()
    phases = {"model": 100, "forward": 300, "backward": 500, "optimizer": 400}
    assert found["counted"] == {"allocated": 500, "reserved": 1400, "phases": phases}
    assert (found["ms"], found["before"], found["retries"]) == (5.0, 7, 0)


@pytest.mark.long
def test_every_stage_is_rehearsed(tmp_path):
    """So that nothing is tried for the first time on a GPU that is lent for minutes."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads((out / "gpu-rehearsal.json").read_text(encoding="utf-8"))
    log = (out / "log.txt").read_text(encoding="utf-8")
    assert {row["stage"]: row["ended"] for row in content["stages"]} == dict.fromkeys((stage.name for stage in gpu.STAGES), "done"), log
    measured = [row for row in content["rows"] if "counted" in row]
    assert {row["model"].rpartition("/")[2] for row in measured} == {"tiny", "narrow-sdxl"}
    for row in measured:
        assert row["planned"]["allocated"] == pytest.approx(row["counted"]["allocated"], rel=0.005), row
    assert [row["skipped"] for row in content["rows"] if "counted" not in row] == [
        'mixed_precision="fp16" needs a GPU: on a CPU use "no" or "bf16"'
    ]
    assert {row["by"] for row in content["steps"]} == {"sdnb", "by hand"}
    assert all(row["planned"]["flops"] > 0 and row["ms"] > 0 for row in content["steps"])
    assert len({row["optimizer"] for row in content["adafactor"]}) == 4
    assert all(row["ms"] > 0 if "ms" in row else row["operators"] > 0 for row in content["adafactor"])
    assert content["floors"][0]["planned"]["allocated"] > 0
    assert content["floors"][0]["ms"] > 0
    assert {row["outcome"] for row in content["tests"]} <= {"skipped", "passed"}
    assert len(content["tests"]) >= 7
    assert [row for row in content["lessons"] if row["error"]] == []
    run = json.loads((out / "run-rehearsal.json").read_text(encoding="utf-8"))
    assert len(run["rows"]) == 4
    assert Recipe.parse(run["recipe"])
    assert len([path for path in out.iterdir() if path.is_file()]) <= 8
