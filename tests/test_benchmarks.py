"""`python -m benchmarks`: every benchmark is known and says how long it takes, one that fails stops no other, and all make one table."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as bench
from benchmarks import doctor_against_sd_scripts, report, warmup

from .conftest import ROOT

MACHINE = {"python": "3.11.7", "cpu": "some, 2 cores", "threads": "2", "torch": "2.13.0"}


def result(**more):
    return {
        "command": "python -m benchmarks.planner --only speed --json build/x.json",
        "machine": MACHINE,
        "seconds": 12.3,
        "rows": [{"a step": "here", "ratio": 1.0}, {"a step": "a | b", "ratio": "1.5x"}, {"measured": "import", "value": "0.1 s"}],
        **more,
    }


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run `python -m benchmarks` with benchmarks that do what they are told; returns status, table and what was run."""
    out, ran, interpreters = tmp_path / "benchmarks.md", [], []

    def main(*arguments, results):
        def process(command, stdout, **kwargs):
            assert kwargs["cwd"] == ROOT
            name = command[2].removeprefix("benchmarks.")
            ran.append((name, command[3 : command.index("--json")]))
            interpreters.append(command[0])
            status, content = results[name]
            if isinstance(content, dict):
                report.write(bench.Path(command[-1]), json.dumps(content))
            else:
                stdout.write(content)
            return SimpleNamespace(returncode=status)

        ran.clear()
        monkeypatch.setattr(subprocess, "run", process)
        status = bench.main([*arguments, "--out", str(out)])
        capsys.readouterr()
        return status, out.read_text(encoding="utf-8"), list(ran)

    main.interpreters = interpreters
    return main


def test_every_benchmark_is_known():
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if not path.stem.startswith("__")}
    assert set(bench.QUICK) | bench.NO_BENCHMARKS == files
    assert not set(bench.QUICK) & bench.NO_BENCHMARKS


@pytest.mark.parametrize("name", bench.QUICK)
def test_each_says_what_it_asks_and_how_long_it_takes(name):
    question, takes = bench.about(name)
    assert len(question) > 20
    assert takes.split()[-1].rstrip("s") in ("minute", "hour")


@pytest.mark.parametrize("name", bench.QUICK)
def test_the_options_of_the_short_form_exist(name):
    shown = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    assert [option for option in bench.QUICK[name] if option.startswith("--") and f'"{option}"' not in shown] == []


def test_one_table_of_all(run):
    status, text, ran = run("planner", "live_plot", results={"planner": (0, result()), "live_plot": (0, result(notes=["Without a peer."]))})
    assert status == 0
    assert ran == [("planner", []), ("live_plot", [])]
    assert text.count("Measured with") == text.count("torch 2.13.0") == 1
    assert "Measured with python 3.11.7, cpu some, 2 cores, threads 2, torch 2.13.0." in text
    assert "`python -m benchmarks.planner --only speed`, 12 s\n" in text
    assert (
        "| a step | ratio |\n|:--|--:|\n| here | 1.0 |\n| a \\| b | 1.5x |\n\n| measured | value |\n|:--|--:|\n| import | 0.1 s |" in text
    )
    assert text.count("Without a peer.") == 1
    assert f"| [planner](#planner) | {bench.about('planner')[0]} | 12 s | ok |" in text


def test_one_that_fails_stops_no_other(run):
    failing = {
        "planner": (1, "Traceback\n\x1b[31mMemoryError\x1b[39m: no room\n\n"),
        "live_plot": (0, "no file"),
        "adafactor": (0, result()),
    }
    status, text, ran = run(*failing, results=failing)
    assert status == 1
    assert [name for name, _ in ran] == list(failing)
    assert "**Failed: status 1, MemoryError: no room**" in text
    assert "**Failed: it wrote no result**" in text
    assert "| here | 1.0 |" in text


def test_an_old_result_does_not_stand_in_for_a_failure(run):
    run("planner", results={"planner": (0, result())})
    status, text, _ = run("planner", results={"planner": (1, "no")})
    assert status == 1
    assert "here" not in text


def test_stored_results_are_reused_when_asked(run):
    run("planner", results={"planner": (0, result())})
    status, text, ran = run("--reuse", "planner", "adafactor", results={"adafactor": (0, result())})
    assert status == 0
    assert [name for name, _ in ran] == ["adafactor"]
    assert text.count("| here | 1.0 |") == 2


def test_what_can_go_on_goes_on_only_when_asked(run, tmp_path):
    progress = tmp_path / "benchmarks" / "clipping.jsonl"
    options = ["--progress", str(progress)]
    for more, kept in (([], False), (["--reuse"], True)):
        (tmp_path / "benchmarks").mkdir(exist_ok=True)
        progress.write_text("{}")
        (tmp_path / "benchmarks" / "clipping.json").unlink(missing_ok=True)
        _, text, ran = run(
            "clipping", *more, results={"clipping": (0, result(command="python -m benchmarks.clipping --progress x --json y"))}
        )
        assert ran == [("clipping", options)]
        assert progress.exists() == kept
        assert "`python -m benchmarks.clipping`, 12 s" in text


def test_another_machine_is_named_where_it_differs(run):
    other = result(machine={**MACHINE, "threads": "1", "gpu": "H100"})
    results = {"planner": (0, result()), "clipping": (0, other), "adafactor": (0, result())}
    _, text, _ = run(*results, results=results)
    assert "threads 2" in text.split("## ")[0]
    assert "Here with threads 1." in text.partition("## clipping")[2].partition("## ")[0]
    assert text.count("Here with") == 1


def test_the_short_form_is_asked_for_and_said(run):
    _, text, ran = run("--quick", "planner", results={"planner": (0, result())})
    assert ran == [("planner", bench.QUICK["planner"])]
    assert "figures say less" in text


def test_what_needs_a_checkout_is_named_and_is_no_failure(run, tmp_path):
    name = "doctor_against_sd_scripts"
    status, text, ran = run(name, results={})
    assert (status, ran) == (0, [])
    assert "**Not run: it needs a checkout of sd-scripts, --sd-scripts FOLDER" in text
    status, _, ran = run(name, "--sd-scripts", str(tmp_path), results={name: (0, result())})
    assert (status, ran) == (0, [(name, [str(tmp_path)])])
    run(
        name,
        "planner",
        "--sd-scripts",
        str(tmp_path),
        "--sd-scripts-python",
        "other",
        results={name: (0, result()), "planner": (0, result())},
    )
    assert run.interpreters[-2:] == ["other", sys.executable]


def test_what_needs_a_gpu_is_named_and_is_no_failure(run, monkeypatch):
    monkeypatch.setattr(bench, "has_gpu", lambda: False)
    status, text, ran = run("gpu", results={})
    assert (status, ran) == (0, [])
    assert "**Not run: torch finds no GPU here" in text
    monkeypatch.setattr(bench, "has_gpu", lambda: True)
    assert run("gpu", results={"gpu": (0, result())})[2] == [("gpu", [])]


def test_an_unknown_name_lists_those_there_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(["planer"])
    assert "no benchmark planer: there are doctor_speed, compiling, planner," in capsys.readouterr().err


def test_the_list_runs_nothing(capsys):
    assert bench.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(bench.QUICK)


def test_a_result_holds_the_command_the_machine_and_the_seconds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/benchmarks/planner.py", "--only", "speed"])
    report.show([{"a": 1, "b": 2}], tmp_path / "made" / "x.json", notes=["So."])
    stored = json.loads((tmp_path / "made" / "x.json").read_text(encoding="utf-8"))
    assert stored["command"] == "python -m benchmarks.planner --only speed"
    assert stored["machine"]["torch"]
    assert stored["seconds"] > 0
    assert (stored["rows"], stored["notes"]) == ([{"a": 1, "b": 2}], ["So."])
    assert capsys.readouterr().out.endswith("So.\n")


def test_the_doctors_verdicts_are_counted_in_a_table(tmp_path, monkeypatch):
    """Beside a stand-in for sd-scripts that says what the doctor says, but for one warning."""
    compared = doctor_against_sd_scripts
    cases = compared.hand_picked()[:3]
    checkout = SimpleNamespace(commit=lambda given: "abc1234", folder=tmp_path)
    monkeypatch.setattr(compared.sd_scripts, "Checkout", lambda folder: checkout)
    monkeypatch.setattr(compared.sd_scripts, "versions", lambda: {"torch": "2"})
    monkeypatch.setattr(compared, "hand_picked", lambda: cases)
    monkeypatch.setattr(compared, "verdict", lambda checkout, case: {"raises": None, "warnings": []})
    monkeypatch.setattr(compared, "agree", lambda real, said: ["warnings"] if said is cases[0] else [])
    monkeypatch.setattr(compared, "opinion", lambda case: case)
    files = ["--json", str(tmp_path / "x.json"), "--record", str(tmp_path / "r.json")]
    monkeypatch.setattr(sys, "argv", ["x.py", str(tmp_path), "--settings", "0", *files])
    with pytest.raises(SystemExit):
        compared.main()
    stored = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert {row["doctor beside sd-scripts"]: row["disagreements"] for row in stored["rows"][:-1]}["warnings"] == 1
    assert "abc1234" in stored["notes"][0]
    assert len(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["cases"]) == 3


def test_the_interval_is_students():
    middle, low, high = report.interval([1.0, 2.0, 3.0, 4.0])
    assert middle == 2.5
    assert (low, high) == pytest.approx((0.446, 4.554), abs=1e-3)  # 2.5 ± 3.182 × 1.291 / 2
    assert report.interval([5.0] * 6) == (5, 5, 5)
    with pytest.raises(KeyError):
        report.interval([1.0])


def test_warmup_is_compared_in_pairs_of_one_seed():
    losses = {(1, 0): 1.0, (1, 50): 0.2, (2, 0): 0.5, (2, 50): 0.2, (3, 0): 0.3}  # seed 3 has no run with warmup yet
    runs = [
        {"start": "random", "learning_rate": 3e-3, "warmup": length, "seed": seed, "held_out": loss}
        for (seed, length), loss in losses.items()
    ]
    [row] = warmup.rows(runs)
    assert row["seeds"] == 2
    assert row["change by warmup, %"].startswith("-70.00 (")  # the mean of -80% and -60%
    assert row["learned nothing"] == "1 without, 0 with"
