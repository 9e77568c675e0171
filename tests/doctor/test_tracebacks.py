"""The script's own error is found, in full, however a log was pasted, and so is the command that its launcher names."""

import textwrap

import pytest

from sdnb import diagnose
from sdnb.doctor.tracebacks import errors, launched

COMMAND = ["/venv/bin/python", "train_network.py", "--network_module=networks.lora", "--pretrained_model_name_or_path=m"]
COMMAND += ["--train_data_dir=d", "--output_dir=o", "--output_name=n", "--lr_scheduler=constant", "--lr_warmup_steps=500"]


START = "Traceback (most recent call last)"


def ended(status: str = "returned non-zero exit status 1") -> str:
    """What `accelerate launch` adds to every failed run."""
    return (
        'Traceback (most recent call last):\n  File "/venv/bin/accelerate", line 8, in <module>\n    sys.exit(main())\n'
        '  File "/venv/lib/accelerate/commands/launch.py", line 637, in simple_launcher\n'
        "    raise subprocess.CalledProcessError(returncode=process.returncode, cmd=cmd)\n"
        f"subprocess.CalledProcessError: Command '{COMMAND}' {status}.\n"
    )


def raised(error: str) -> str:
    return (
        'Traceback (most recent call last):\n  File "/sd/train_network.py", line 9, in <module>\n    trainer.train(args)\n'
        f'  File "/sd/library/train_util.py", line 99, in load\n    raise Odd(text)\n{error}\n'
    )


def each_line(text: str, before: str) -> str:
    return "".join(before + line for line in text.splitlines(keepends=True))


def broken(text: str, width: int) -> str:
    return "\n".join(line[start : start + width] for line in text.splitlines() for start in range(0, max(len(line), 1), width))


BAR = "steps:   3%|▎   | 63/2175 [03:19<1:51:31,  3.17s/it, avr_loss=0.1]"
CAUGHT = raised("ModuleNotFoundError: No module named 'triton'")

PASTED = {
    "as it is": lambda log: log + ended(),
    "Windows' line ends": lambda log: (log + ended()).replace("\n", "\r\n"),
    "a bar that is drawn anew": lambda log: (BAR + "\r") * 50 + log + ended(),
    "a bar in the line": lambda log: BAR + log + BAR + "\n" + ended(),
    "warnings behind it": lambda log: log + "/venv/x.py:12: FutureWarning: old\n  warnings.warn(\nUserWarning: leaked\n" + ended(),
    "more of the log behind it": lambda log: log + "18:34:23-901554 INFO     Training has ended.\n" + ended(),
    "two processes": lambda log: "".join(line * 2 for line in log.splitlines(keepends=True)) + ended(),
    "two ranks": lambda log: each_line(log, "[rank0]: ") + each_line(log, "[rank1]: ") + ended(),
    "colours": lambda log: (log + ended()).replace("Error", "\x1b[1;31mError\x1b[0m"),
    "a frame": lambda log: (
        f"╭── {START} ──╮\n│ C:\\sd\\train.py:9 in <module>  │\n│ ❱ 9 │   f()  │\n╰──────╯\n{log.splitlines()[-1]}\n{ended()}"
    ),
    "80 columns": lambda log: broken(log + ended(), 80),
    "a forum's quotes": lambda log: (log + ended()).replace('"', "”").replace("'", "’"),
    "quoted": lambda log: each_line(log + ended(), "> "),
    "between fences": lambda log: f"It fails:\n```\n{log}{ended()}```\n",
    "indented": lambda log: textwrap.indent(log + ended(), "    "),
    "without indentation": lambda log: "\n".join(line.strip() for line in (log + ended()).splitlines()),
    "docker compose": lambda log: each_line(log + ended(), "trainer-1  | "),
    "a time before each line": lambda log: each_line(log + ended(), "2026-12-14T02:09:19.389303805Z "),
    "a time and a level": lambda log: each_line(log + ended(), "[2026-01-06 13:20:03] [INFO] "),
    "the journal": lambda log: each_line(log + ended(), "Aug 12 10:38:34 box trainer[407]: "),
    "a trainer's mark before each line": lambda log: each_line(log + ended(), "[TRAIN] "),
    "fences around the error alone": lambda log: f"```\n{log}```\nI start it so:\n```\n{ended()}```\n",
    "an empty line after each": lambda log: (log + ended()).replace("\n", "\n\n"),
    "a harmless one before it": lambda log: CAUGHT + log + ended(),
    "a harmless one behind it": lambda log: log + CAUGHT + ended(),
}
ERRORS = ["KeyError: 'a_key'", "my.package.Odd: it went wrong", "AssertionError", "cv2.error: OpenCV(4.7) resize.cpp:4062: (-215)"]


@pytest.mark.parametrize("paste", PASTED.values(), ids=PASTED)
@pytest.mark.parametrize("error", ERRORS)
def test_the_scripts_error_and_the_launchers_command(error, paste):
    diagnosis = diagnose(paste(raised(error)))
    first, *others = diagnosis.findings
    assert (first.rule, first.what) == ("log-unknown-error", f"The run stopped with {error}")
    assert diagnosis.raises and any(finding.rule == "needless-warmup" for finding in others)
    assert diagnosis.settings.given["output_name"] == "n"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            "RuntimeError: \n        Something odd. Please run:\n\n        python -m odd",
            "RuntimeError: Something odd. Please run: python -m odd",
        ),
        ("ValueError: one\ntwo\n\tthree\n\nfour", "ValueError: one two three"),
        ("RuntimeError: no\n" + "\tmismatch\n" * 500, "RuntimeError: no mismatch"),
        ("ValueError: " + "long " * 500, "ValueError: long long"),
    ],
)
def test_an_error_of_several_lines_is_shown_in_full_up_to_a_length(error, shown):
    what = diagnose(raised(error) + ended()).findings[0].what
    assert what.startswith(f"The run stopped with {shown}") and len(what) <= 600


def test_the_last_of_a_chain_counts():
    chain = (
        raised("TypeError: first") + "\nDuring handling of the above exception, another exception occurred:\n\n" + raised("OSError: last")
    )
    assert [str(error) for error in errors(chain)] == ["OSError: last", "TypeError: first"]


def test_a_worker_repeats_what_stopped_it():
    text = f'RuntimeError: Caught OddError in worker process 4.\nOriginal {START}:\n  File "x"\nOddError: x'
    assert "OddError: x" in diagnose(raised(text) + ended()).findings[0].what


def test_a_wrappers_report_is_no_part_of_the_error():
    report = f"Failed to train because of error:\nCommand '{COMMAND}' returned non-zero exit status 1."
    text = raised("IndexError: list index out of range") + report
    assert diagnose(text).findings[0].what == "The run stopped with IndexError: list index out of range"


def test_a_known_error_is_not_called_unknown():
    rules = [finding.rule for finding in diagnose(raised("ValueError: persistent_workers option needs num_workers > 0") + ended()).findings]
    assert rules[0] == "persistent-workers-of-none" and "log-unknown-error" not in rules


def test_an_unknown_error_behind_a_known_message_is_shown_too():
    rules = [finding.rule for finding in diagnose("bitsandbytes library load error: x\n" + raised("KeyError: 'a'") + ended()).findings]
    assert rules[0] == "log-unknown-error" and "bitsandbytes-without-gpu-code" in rules


def test_a_run_that_went_on_was_not_stopped():
    assert not diagnose(raised("KeyError: 'a'") + BAR + "\nsaving checkpoint: o.safetensors\nmodel saved.\n").raises


def test_the_launchers_report_alone():
    first = diagnose(ended()).findings[0]
    assert first.rule == "log-error-not-shown" and "lines above" in first.fix


HALF = raised("KeyError: 'a'").rpartition("    raise")[0]
FRAMED = f"{BAR}╭── {START} ──╮\n│ C:\\sd\\train_db.py:480 in <module>  │\n│ ❱ 480 │   train(args)  │\n│   481"
CUT_OFF = {
    "behind a frame": HALF,
    "inside a word": HALF[:-4],
    "without indentation": "\n".join(line.strip() for line in HALF.splitlines()),
    "in a drawn frame": FRAMED,
    "the launcher's": ended()[:150],
    "the launcher's command": ended()[:-200],
    "without its head": HALF.split("\n", 1)[1],
    "the head's words": START[:-12],
    "a worker's": raised(f"RuntimeError: Caught KeyError in DataLoader worker process 0.\nOriginal {START}:") + HALF[:90],
    "what passes on a worker's": raised("RuntimeError: Caught KeyError in DataLoader worker process 0."),
    "two, woven": "".join(line * 2 for line in HALF.splitlines(keepends=True)),
}


@pytest.mark.parametrize("end", CUT_OFF.values(), ids=CUT_OFF)
def test_a_paste_that_ends_before_the_error_says_that_the_run_stopped(end):
    diagnosis = diagnose(f"2026-11-23 22:02:48 INFO     loading vae\n{end}")
    assert diagnosis.raises and diagnosis.findings[0].rule == "log-error-not-shown"
    assert not any(finding.rule in ("log-unknown-error", "bad-value") for finding in diagnosis.findings)


def test_half_a_traceback_behind_an_interruption_or_before_a_save_stops_nothing():
    assert not diagnose(raised("KeyboardInterrupt") + HALF).raises
    assert not diagnose(HALF + f"\n{BAR}\nmodel saved.\n").raises


@pytest.mark.parametrize("quotes", ["", "`"])
@pytest.mark.parametrize("kind", ["AttributeError", "torch.OutOfMemoryError"])
def test_an_error_report_of_comfyui(kind, quotes):
    text = f"# ComfyUI Error Report\n## Error Details\n- **Node ID:** 192\n- **Exception Type:** {quotes}{kind}{quotes}\n"
    text += "- **Exception Message:** it has no part\n## Stack Trace\n```\n" + HALF.split("\n", 1)[1]
    assert diagnose(text).findings[0].what == f"The run stopped with {kind}: it has no part"


def test_the_console_of_comfyui():
    first = diagnose("2026-11-23 22:02:48 INFO     x\n!!! Exception during processing !!! it has no part\nPrompt executed\n").findings[0]
    assert first.what.startswith("The run stopped with Exception: it has no part")


def test_a_command_that_is_cut_off_with_its_log_lacks_no_value():
    text = raised("KeyError: 'a'") + "accelerate launch train_network.py --network_module=networks.lora --learning_rate 1e-4 "
    for end in ("--network_dim", "--network_d", "--network_dim 8 --", "--network_dim\n"):
        assert [finding.rule for finding in diagnose(text + end).findings if finding.effect == "raises"] == ["log-unknown-error"], end
    assert diagnose(text + "--gradient_checkpointing").settings["gradient_checkpointing"]


@pytest.mark.parametrize(
    ("status", "rule", "raises"),
    [
        ("returned non-zero exit status 3221225477", "access-violation", True),
        ("returned non-zero exit status 3221226505", "stopped-by-windows", True),
        ("died with <Signals.SIGKILL: 9>", "process-killed", True),
        ("died with <Signals.SIGSEGV: 11>", "crashed-in-a-library", True),
        ("died with <Signals.SIGINT: 2>", "interrupted", False),
    ],
)
def test_how_the_process_ended(status, rule, raises):
    found = {finding.rule: finding for finding in diagnose(ended(status).replace("constant", "linear")).findings}
    assert rule in found and "log-error-not-shown" not in found
    assert (found[rule].effect == "raises") == raises


@pytest.mark.parametrize("end", ["", "(venv) $ ", "accelerate launch x"])
def test_killed_by_the_system(end):
    assert diagnose(f"{BAR}\nKilled\n{end}").findings[0].rule == "process-killed"


def test_an_interrupted_run_has_no_error():
    diagnosis = diagnose(raised("KeyboardInterrupt"))
    assert [finding.rule for finding in diagnosis.findings] == ["interrupted"] and not diagnosis.raises


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Command '['a', 'train_network.py', '--x']' died", ["a", "train_network.py", "--x"]),
        (r"Command '['C:\\a b\\python.exe', 'x.py', '--o=D:\\é']' r", [r"C:\a b\python.exe", "x.py", r"--o=D:\é"]),
        ("Command '['a',\n'x.py', '--lear\nning_rate=1']'", ["a", "x.py", "--learning_rate=1"]),
        ("Command '['a', 'x.py', \"--o=it's\", '--cut", ["a", "x.py", "--o=it's"]),
        ("Command '['old', 'x.py']' d\nCommand '['new', 'y.py']' d", ["new", "y.py"]),
        ("Command '['git', 'submodule', 'update']' returned", []),
        ("Command 'ninja' returned", []),
        ("Command '['", []),
        ("Command '['a', 'x.py', '--sdpa', '--network_dim', '", ["a", "x.py", "--sdpa"]),
    ],
)
def test_the_words_of_a_command(text, words):
    assert launched(text) == words
