"""The doctor: what it says, how it looks, and that no text can shake it."""

import html
import io
import json
import os
import random
import re
import subprocess
import sys
import time

import pytest
from hypothesis import strategies as st

import sdnb
from sdnb import Recipe, __main__, diagnose
from sdnb.doctor import command, report
from sdnb.doctor.languages import LANGUAGES
from sdnb.sd_scripts import arguments, text_of
from sdnb.sd_scripts.findings import EFFECTS

from ..conftest import ROOT
from ..doctor.test_rules import CASES
from ..fuzz.doors import fuzz
from ..sd_scripts.test_settings import GUI

FAMOUS = '--optimizer_type="Adafactor" --max_grad_norm=0 --lr_scheduler="constant_with_warmup" --lr_warmup_steps=100'
LOG = """
Traceback (most recent call last):
  File "train_network.py", line 1913, in <module>
    trainer.train(args)
ValueError: adafactor:0.0001 does not require `num_warmup_steps`. Set None or 0.
"""


# what it says


def test_the_famous_recipe_raises_and_three_settings_are_put_aside():
    diagnosis = diagnose(FAMOUS)
    assert diagnosis.raises
    assert diagnosis.findings[0].rule == "adafactor-refuses-warmup"
    assert "adafactor:2e-06 does not require `num_warmup_steps`" in diagnosis.findings[0].what
    different = {finding.rule for finding in diagnosis.findings if finding.effect == "overrides"}
    assert different == {"relative-step-unsaid", "adafactor-ignores-learning-rate", "adafactor-replaces-schedule"}
    assert diagnosis.effective() == {}


def test_mended_it_is_the_recipe_of_this_course():
    fixed = diagnose(FAMOUS).fixed()
    assert fixed.replace(train_batch_size=2, seed=0) == Recipe()
    assert not diagnose(fixed).findings


def test_the_courses_own_recipe_has_nothing_wrong():
    diagnosis = diagnose(Recipe())
    assert diagnosis.findings == ()
    assert diagnosis.effective() == {
        "optimizer": "transformers.optimization.Adafactor",
        "scheduler": "constant_with_warmup",
        "learning_rates": {"text encoder": 1e-4, "U-Net": 1e-4},
        "warmup_steps": 100,
        "total_steps": 1600,
    }
    assert "would train with Adafactor, learning rate 1e-4, constant_with_warmup, 100 warmup steps" in str(diagnosis)


def test_findings_come_worst_first():
    for text in CASES.values():
        effects = [list(EFFECTS).index(finding.effect) for finding in diagnose(text).findings]
        assert effects == sorted(effects)


def test_what_only_the_reader_can_decide_is_not_decided():
    for text in ("--learning_rate=fast", '--output_name="x', "optimizer_args = [", "no settings at all", "--optimizer_type=Foo"):
        with pytest.raises(ValueError, match=r"only you can decide|no flag"):
            diagnose(text).fixed()


def test_what_was_changed_is_said():
    assert diagnose(FAMOUS + " --bogus").changes() == [
        "learning_rate: (not set) -> 1e-4",
        "optimizer_args: (not set) -> relative_step=False scale_parameter=False warmup_init=False",
        "left out: --bogus",
    ]


def test_the_automatic_rate_may_be_meant():
    text = "--optimizer_type=Adafactor --lr_scheduler=adafactor --optimizer_args relative_step=True scale_parameter=True warmup_init=True"
    assert {finding.effect for finding in diagnose(text).findings} == {"warns"}  # what sd-scripts logs; nothing was asked for in vain
    assert diagnose(text).changes() == []
    both = diagnose(text + " --lr_warmup_steps=100 --learning_rate=1e-4")
    assert both.raises
    assert both.changes() == ["lr_warmup_steps: 100 -> (not set)"]


def test_typographic_quotes_and_spaces_are_mended():
    assert (
        diagnose("—optimizer_type=“AdamW” —learning_rate = 1e-4").fixed() == diagnose("--optimizer_type=AdamW --learning_rate=1e-4").fixed()
    )


def test_a_script_can_be_named():
    assert "fused-not-here" in {one.rule for one in diagnose("--fused_backward_pass " + FAMOUS, script="train_db.py").findings}
    assert "fused-not-here" not in {one.rule for one in diagnose("--fused_backward_pass " + FAMOUS, script="sdxl_train.py").findings}


@pytest.mark.parametrize(
    "text",
    [FAMOUS, LOG, json.dumps(GUI), 'optimizer_type = "Adafactor"', "", Recipe()],
    ids=["flags", "log", "gui", "toml", "nothing", "recipe"],
)
def test_every_form_shows_itself_as_text_html_and_json(text):
    diagnosis = diagnose(text)
    assert diagnosis.summary() in str(diagnosis)
    page = diagnosis._repr_html_()
    assert html.escape(diagnosis.summary()) in page
    found = json.loads(json.dumps(diagnosis.as_dict(), default=str))
    assert found["raises"] == diagnosis.raises
    assert len(found["findings"]) == len(diagnosis.findings)
    for finding in diagnosis.findings:
        assert html.escape(finding.what) in page
        assert finding.what.split()[0] in str(diagnosis)


def test_html_and_terminal_are_safe_from_what_was_typed():
    diagnosis = diagnose('--output_name="<script>alert(1)</script>" --foo="\033[31m<b>" --bar')
    assert "<script>" not in diagnosis._repr_html_()
    assert "<b>--" not in diagnosis._repr_html_()
    assert "\033" not in str(diagnosis)


def test_colour_is_for_terminals():
    diagnosis = diagnose(FAMOUS)
    assert "\033[31;1mraises" in diagnosis.table(colour=True)
    assert "\033" not in diagnosis.table()
    assert all(len(line) <= 60 for line in diagnosis.table(width=60).splitlines()[4:])  # below what is to be pasted


# logs


def test_a_log_is_explained():
    diagnosis = diagnose(LOG)
    assert diagnosis.is_log
    assert diagnosis.raises
    assert diagnosis.as_dict()["script"] is None
    assert any("warmup" in finding.what for finding in diagnosis.findings)
    with pytest.raises(ValueError, match="has no settings"):
        diagnose(LOG).fixed()


def test_the_command_in_a_log_is_looked_at_too():
    log = f"""12:00:01-123 INFO     Start training LoRA Standard ...
12:00:01-456 INFO     accelerate launch --num_cpu_threads_per_process=2 "./train_network.py"
                         {FAMOUS}
12:00:09-789 ERROR    killed"""
    rules = [finding.rule for finding in diagnose(log).findings]
    assert "adafactor-refuses-warmup" in rules


def test_an_unknown_error_is_quoted():
    diagnosis = diagnose("Traceback (most recent call last):\n  File 'x.py', line 1\nKeyError: 'moon'\n")
    assert diagnosis.raises
    assert diagnosis.findings[0].what == "The run stopped with KeyError: 'moon'"


def test_a_log_without_a_known_message_says_so():
    found = diagnose("12:00:01 INFO     all is well\nsteps:   1%|  | 16/1600 [00:21<35:12,  1.33s/it]").findings
    assert [finding.rule for finding in found] == ["log-unknown"]


# no text can shake it

ODD = st.sampled_from(
    [
        "=",
        "--",
        "-",
        " ",
        "\n",
        "\\\n",
        "^\n",
        '"',
        "'",
        "“",
        "{",
        "}",
        "[",
        "]",
        "#",
        "$",
        "`",
        "\0",
        "\ufeff",
        "nan",
        "inf",
        "1e999",
        "9" * 400,
        "\ud83d\ude00",
    ]
)
NAMES = st.sampled_from(sorted(arguments.facts()["arguments"]))
VALUES = st.sampled_from(
    [
        "",
        "a b",
        *"0 1 -1 0.5 100.0 nan inf True false x AdamW Adafactor prodigy cosine adafactor adafactor: adafactor:1:2 None".split(),
        *"relative_step=False a=b=c a=((( 512,512 [1] 1e-4 10% DAdaptX torch.optim.SGD . ...".split(),
    ]
)
FLAGS = st.lists(
    st.builds("--{}{}{}".format, NAMES, st.sampled_from(["=", " ", "", " = "]), VALUES) | ODD | st.sampled_from(list(CASES.values())),
    max_size=8,
).map(" ".join)
SCALARS = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | VALUES
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | VALUES, inner, max_size=3), max_leaves=8)
JSON = st.dictionaries(NAMES | st.sampled_from(sorted(GUI)), TREES, max_size=6).map(
    lambda tree: json.dumps({**dict(list(GUI.items())[:9]), **tree})
)


def toml(tree):
    lines = []
    for name, value in tree.items():
        lines.append(f"{name} = {json.dumps(value)}" if not isinstance(value, float) else f"{name} = {value!r}")
    return "\n".join(lines)


TOML = st.dictionaries(
    NAMES, st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | VALUES | st.lists(VALUES | st.integers(), max_size=3), max_size=7
).map(toml)


def withstands(text):
    """Every question a reader may ask of a diagnosis."""
    diagnosis = diagnose(text)
    for language in LANGUAGES:
        said = diagnose(text, language=language)
        for why in (False, True):
            said.table(colour=True, width=50, why=why)
        said._repr_html_()
    json.dumps(diagnosis.as_dict(), default=str)
    try:
        fixed = diagnosis.fixed_text()
    except ValueError:
        fixed = None
    if fixed and fixed.strip():
        assert not diagnose(fixed, script=diagnosis.settings.script).raises, fixed
        if diagnosis.settings.form != "gui":
            try:
                diagnosis.fixed()
            except ValueError as error:
                assert any(words in str(error) for words in ("must be", "not known", "setting", "for a flag", "is a list")), error


@fuzz(st.binary(max_size=300).map(lambda data: data.decode("utf-8", errors="replace")) | st.text(max_size=200), share=8)
def test_any_bytes(text):
    withstands(text)


@fuzz(FLAGS, share=8)
def test_any_flags(text):
    withstands(text)


@fuzz(TOML, share=8)
def test_any_toml(text):
    withstands(text)


@fuzz(JSON | TREES.map(json.dumps), share=8)
def test_any_json(text):
    withstands(text)


LONG = {
    "unknown flags": " ".join(f"--flag{number}" for number in range(12_000)),
    "unknown flags with values": " ".join(f"--flag{number}=1" for number in range(990)),
    "flags again and again": "--seed=1 " * 9_000,
    "hyphens": "--network-dim=1 " * 6_000,
    "short flags": "-x " * 30_000,
    "variables": "\n".join(f"X{number}=1" for number in range(4_000)) + "".join(f" --seed=$X{number}" for number in range(4_000)),
    "variables in one word": f"A={'x' * 400}\n--output_dir={'$A' * 40_000}",
    "a variable of blanks": 'set "a=' + " " * 90_000 + "%",
    "empty lines": "--seed=1" + "\n" * 90_000 + "x",
    "a dotted key": "a." * 20_000 + "a = 1",
    "dotted keys": "\n".join("a." * 28 + f"b{number} = 1" for number in range(1_600)),
    "a dotted table": "[" + "'a' . " * 15_000 + "a]\nseed = 1",
    "unknown keys of the GUI": json.dumps(GUI | {f"learning_rat{number}": 1 for number in range(4_000)}),
    "fewer of them": json.dumps(GUI | {f"learning_rat{number}": 1 for number in range(900)}),
    "a list that is never closed": "optimizer_args = [" + "'a=(', " * 14_000 + "]",
    "a long value": f"--optimizer_type={'A' * 90_000} --lr_scheduler={'b' * 5_000}",
    "a malformed argument": f"optimizer_args = ['betas={'(0.9,' * 18_000}']",
    "a list for a text": f"resolution = [{'1,' * 40_000}]",
    "a large number": "learning_rate = 0x" + "f" * 5_000,
    "a file name": "a" * 90_000 + ".toml",
    "every setting wrong": "\n".join(f"{name} = {{}}" for name in arguments.arguments("train_network.py")),
    "a log": "Traceback (most recent call last)\n" + "a.py:1 \\ \x1b[1;" * 50_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_every_answer_comes_soon_and_is_short(text):
    began = time.process_time()  # whatever else the machine does
    diagnosis = diagnose(text)
    assert diagnosis.findings
    assert len(str(diagnosis)) < 12_000
    assert len(diagnosis._repr_html_()) < 20_000
    assert len(json.dumps(diagnosis.as_dict())) < 20_000
    for ask in (diagnosis.fixed_text, diagnosis.changes, lambda: Recipe.parse(text)):
        try:
            answer = ask()
        except ValueError as error:
            answer = str(error)
            assert len(answer) < 12_000
        assert ask != diagnosis.changes or len("".join(answer)) < 12_000
    assert time.process_time() - began < 4


def test_what_is_cut_is_counted():
    unknown = diagnose(" ".join(f"--flag{number}" for number in range(100)))
    assert unknown.summary().startswith("100 errors")
    assert [finding.what for finding in unknown.findings][-1] == "And 92 more of this kind."
    assert "And 92 more of this kind" in str(unknown)
    many = diagnose("\n".join(f"{name} = {{}}" for name in arguments.arguments("train_network.py")))
    assert len(many.findings) <= 41
    value = diagnose(f"--optimizer_type={'A' * 5_000}").findings[0].what
    assert value.startswith("AttributeError: torch.optim has no optimizer 'AAAA")
    assert value.endswith("…'.")
    with pytest.raises(ValueError, match=r"(?s)^.{10,3000}And 92 more of this kind.$"):
        Recipe.parse(" ".join(f"--flag{number}" for number in range(100)).replace("--", "—"))


@pytest.mark.parametrize("wide", [False, True])
def test_a_long_log_is_looked_at_from_both_ends(wide, tmp_path):
    end = "Traceback (most recent call last):\nKeyError: 'step'\n"
    text = "accelerate launch train_network.py --max_grad_norm=0\n" + "steps: 1%| | 5/1600 [00:01<00:05]\r" * 500_000 + end
    file = tmp_path / "long.log"
    file.write_bytes(text.encode("utf-16") if wide else text.encode())
    for source in (text, file):
        diagnosis = diagnose(source)
        assert diagnosis.findings[0].what == "The run stopped with KeyError: 'step'"
        assert diagnosis.settings.given == {"max_grad_norm": 0}
        (cut,) = [finding.what for finding in diagnosis.findings if finding.rule == "log-cut"]
        assert re.fullmatch(r"[\d,]{9,10} (bytes|characters) in the middle of this log were not read\.", cut)
    with file.open("rb") as pipe:
        assert text_of(io.BufferedReader(Pipe(pipe))) == text_of(file.open("rb"))


class Pipe(io.RawIOBase):
    """A file that cannot be searched."""

    def __init__(self, file):
        self.file = file

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.file.readinto(buffer)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000_000,
        "--a=1 " * 1_700_000,
        '"' * 10_000_000,
        "a = 1\n" * 1_700_000,
        "[" * 10_000_000,
        '{"a":' * 2_000_000,
        "steps: 1%| 5/1600 [00:01<00:05, loss=nan]\r" * 250_000,
        "\0" * 10_000_000,
    ],
    ids=["letters", "flags", "quotes", "toml", "brackets", "json", "log", "zeros"],
)
def test_ten_megabytes_are_answered_in_time(text):
    start = time.process_time()  # whatever else the machine does
    diagnosis = diagnose(text)
    assert diagnosis.findings
    str(diagnosis)
    assert time.process_time() - start < 20


def test_a_file_of_any_bytes(tmp_path):
    dice = random.Random(0)
    for number, suffix in enumerate((".toml", ".json", ".txt", ".log", "")):
        file = tmp_path / f"settings{number}{suffix}"
        file.write_bytes(dice.randbytes(5000))
        assert diagnose(file).findings
    assert diagnose(tmp_path).findings[0].rule == "file-not-read"


# the command line


def run(*words, **kwargs):
    return subprocess.run([sys.executable, "-m", "sdnb", "doctor", *words], capture_output=True, text=True, cwd=ROOT, **kwargs)


def test_the_command_line_in_a_process_of_its_own(tmp_path):
    flags = ["--optimizer_type=Adafactor", "--max_grad_norm=0", "--lr_scheduler=constant_with_warmup", "--lr_warmup_steps=100"]
    result = run(*flags)
    assert result.returncode == 1
    verdict, empty, heading, fixed, space, first = result.stdout.splitlines()[:6]
    assert verdict == "1 error, 3 differences, 1 warning. train_network.py (no script was named) would not train with this."
    assert (empty, heading, space) == ("", "Fixed, to paste:", "")
    assert not diagnose(fixed).findings
    assert first.startswith("raises   ValueError: adafactor:2e-06 does not require")
    assert "\033" not in result.stdout
    whole = run(*flags, "--fix")
    assert whole.returncode == 0
    assert whole.stdout.strip() == fixed
    again = run(input=whole.stdout)
    assert again.returncode == 0
    assert "No problems found" in again.stdout
    file = tmp_path / "settings.toml"
    file.write_text('optimizer_type = "Adafactor"  # mine\n', encoding="utf-8")
    found = json.loads(run("--json", str(file)).stdout)
    assert found["form"] == "toml"
    assert file.read_text(encoding="utf-8") == 'optimizer_type = "Adafactor"  # mine\n'


def test_the_doctor_needs_no_torch():
    code = "import sys, sdnb; str(sdnb.diagnose(sdnb.Recipe())); sdnb.Recipe.parse('--seed=1').to_toml(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert {"torch", "numpy", "diffusers", "transformers"} & set(modules) == set()


@pytest.mark.parametrize(
    ("words", "status", "words_out"),
    [
        (["--learning_rate=1e-4", "--network_dim=4"], 0, "No problems found"),
        (["--learning_rate", "1e-4", "--optimizer_args", "a b"], 1, "exactly one ="),
        ([FAMOUS], 1, "relative_step"),
        ([f"accelerate launch train_network.py {FAMOUS} --output_name={'x' * 5000}"], 1, "relative_step"),
        (["x" * 5000], 2, "x… cannot be read: File name too long"),
        (["missing.toml"], 2, "cannot be read"),
        (["--fix", "missing.toml"], 2, "cannot be read"),
        (["--fix", "--json", "--seed=1"], 2, "ask for one"),
        (["--why", "--fix", "--seed=1"], 2, "ask for one"),
        (["pyproject.toml", "--seed=1"], 2, "one thing at a time"),
        (["--script", "sdxl_train.py", "--fused_backward_pass", "--optimizer_type=Adafactor"], 0, "sdxl_train.py would train"),
        (["--fix", "--learning_rate=x"], 2, "only you can decide"),
        (["--script=foo.py", "--seed=1"], 2, "sd-scripts has train_network.py"),
    ],
)
def test_the_command_line(words, status, words_out, capsys):
    assert __main__.main(["doctor", *words]) == status
    said = capsys.readouterr()
    assert words_out in re.sub(r"\s+", " ", said.out + said.err)


def test_help_names_the_forms(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["doctor", "--help"])
    assert "FLAGS… | FILE | FOLDER | -" in capsys.readouterr().out


class Terminal(io.TextIOWrapper):
    """A standard input on which somebody types."""

    def isatty(self):
        return True


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_on_a_terminal_it_asks_and_says_how_to_end(system, tmp_path, capsys, monkeypatch):
    (tmp_path / "typed").write_text(FAMOUS, encoding="utf-8")
    monkeypatch.setattr(command.sys, "platform", system)
    monkeypatch.setattr(sys, "stdin", Terminal((tmp_path / "typed").open("rb")))
    assert __main__.main(["doctor"]) == 1
    said = capsys.readouterr()
    assert "Paste the settings, the command or the log here." in said.err
    assert ("Ctrl-Z" in said.err) == (system == "win32") != ("Ctrl-D" in said.err)
    assert said.out.startswith("1 error")


def test_from_a_pipe_it_asks_nothing(tmp_path, capsys, monkeypatch):
    for text, status, words in [(FAMOUS, 1, "relative_step"), ("", 2, "The text is empty"), (LOG, 1, "scheduler")]:
        (tmp_path / "piped").write_text(text, encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", (tmp_path / "piped").open(encoding="utf-8"))
        assert __main__.main(["doctor"]) == status
        said = capsys.readouterr()
        assert words in said.out
        assert not said.err


def test_of_a_folder_the_newest_file_is_taken(tmp_path, capsys):
    contents = {"old.toml": 'optimizer_type = "Adafactor"', "run.log": LOG, "new.toml": "learning_rate = 1e-4"}
    contents |= {"a cat.txt": "a cat", "a cat.png": "", "requirements.txt": "torch", "empty.log": "", "model.safetensors": "x"}
    for age, (name, text) in enumerate(contents.items()):
        (tmp_path / name).write_text(text, encoding="utf-8")
        os.utime(tmp_path / name, (1_700_000_000 + age, 1_700_000_000 + age))
    (tmp_path / "sub.toml").mkdir()
    assert __main__.main(["doctor", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert f"The newest file here is {tmp_path / 'new.toml'}, of 2023-11-1" in said.err
    assert "learning rate 1e-4" in said.out
    os.utime(tmp_path / "run.log")
    assert __main__.main(["doctor", "--json", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "run.log" in said.err
    assert json.loads(said.out)["form"] == "log"
    for name in ("old.toml", "run.log", "new.toml"):
        (tmp_path / name).unlink()
    assert __main__.main(["doctor", str(tmp_path)]) == 2
    assert "has no settings and no log (.toml, .json" in capsys.readouterr().err


# how long it is


def test_usual_reports_fit_a_screen_and_the_rest_is_counted():
    for text in (FAMOUS, LOG, *CASES.values()):
        diagnosis = diagnose(text)
        lines, all_lines = diagnosis.table().splitlines(), diagnosis.table(why=True).splitlines()
        assert len(lines) <= 40
        assert lines[0] == all_lines[0] == diagnosis.summary()
        assert all(one.why.split()[0] in " ".join(all_lines) for one in diagnosis.findings if one.why)
        assert all(one.source in " ".join(" ".join(all_lines).split()) for one in diagnosis.findings[:1])
    many = diagnose("\n".join(f"{name} = [1]" for name in arguments.arguments("train_network.py")))
    lines = many.table().splitlines()
    assert len(lines) <= 40
    causes, words = report.by_cause(many.findings), tuple(effect.word for effect in EFFECTS.values())
    shown = sum(line.startswith(words) for line in lines)
    left = re.search(r"And (\d[^:]*), which are shown with all reasons by: +table\(why=True\)$", " ".join(lines))
    assert left and sum(map(int, re.findall(r"\d+", left[1]))) == sum(map(len, causes[shown:]))
    assert sum(line.startswith(words) for line in many.table(why=True).splitlines()) == len(causes)


def test_how_to_ask_for_more_is_said(tmp_path, capsys):
    settings = tmp_path / "my settings.toml"
    settings.write_text('network_dim = "32"\nclip_skip = 2\nv2 = true\nlearning_rate = 1e-4', encoding="utf-8")
    __main__.main(["doctor", str(settings)])
    said = capsys.readouterr().out
    assert f"Fixed: sdnb doctor --fix '{settings}'" in said
    assert f"All reasons, and where they were read: sdnb doctor --why '{settings}'" in said.replace(":\n ", ":")
    __main__.main(["doctor", "--why", str(settings)])
    said = capsys.readouterr().out
    assert "All reasons" not in said
    assert "library/train_util.py:4422" in said
    assert "Fixed: fixed_text()" in str(diagnose(settings.read_text(encoding="utf-8")))


def test_a_fixed_command_is_shown_where_it_is_short_and_the_doctor_may_change_it():
    long = f"accelerate launch train_network.py {FAMOUS} " + " \\\n".join(f"--save_n_epoch_ratio={number}" for number in range(40))
    assert "Fixed: fixed_text()" in str(diagnose(long + " --output_name=" + "x" * report.SCREEN * 50))
    for text in (LOG, "--learning_rate=fast", "train_network.py --learning_rate=1e-4", ""):
        assert "Fixed" not in str(diagnose(text))


def test_an_error_of_a_log_that_a_rule_foretells_is_told_once():
    log = f"12:00:01 INFO accelerate launch train_network.py {FAMOUS}\n{LOG}learning rate is used as initial_lr\n"
    rules = [one.rule for one in diagnose(log).findings]
    assert rules.count("adafactor-refuses-warmup") == 1
    assert "adafactor-learning-rate-ignored" not in rules and "adafactor-ignores-learning-rate" in rules
    other = diagnose(f"12:00:01 INFO accelerate launch train_network.py --learning_rate=1e-4\n{LOG}")
    assert "adafactor-refuses-warmup" in [one.rule for one in other.findings]  # other settings ran than the ones shown


def test_the_names_are_public():
    assert sdnb.diagnose is diagnose
    assert "diagnose" in sdnb.__all__
