"""First, do no harm: what the doctor mends says what was meant, and what it does not understand stays as it is."""

import json
import shutil
import subprocess
import sys

import pytest

from sdnb import diagnose

from ..conftest import ROOT
from ..sd_scripts.test_settings import GUI

FOLDERS = "--pretrained_model_name_or_path=m.safetensors --train_data_dir=d --output_dir=o --network_module=networks.lora"
SAID = f"{FOLDERS} --learning_rate=1e-4"
WARMUP = "--lr_scheduler=constant --lr_warmup_steps=100"
"""An error that has a repair: constant_with_warmup."""


def rules(text, *effects):
    return [finding.rule for finding in diagnose(text).findings if not effects or finding.effect in effects]


# shells

SCRIPTS = {
    "substitutions": f"accelerate launch train_network.py {SAID} "
    f'--output_name=run_$(echo a  b)"$(echo "c d")" --seed=$(( 3 * 10 )) {WARMUP}',
    "backticks": f"accelerate launch train_network.py {SAID} --output_name=`echo run` {WARMUP}",
    "nested variables": f'accelerate launch train_network.py {SAID} --output_name="${{A:-${{B:-it}}}} x" --seed=${{S:-1}} {WARMUP}',
    "positional": f'set -- 1e-4 7\naccelerate launch train_network.py {FOLDERS} --learning_rate=$1 --seed "$2" {WARMUP}',
    "a list": f'args=(\n  --learning_rate=1e-4 # fast\n  --output_name="my lora"\n)\nargs+=(--seed=1)\n'
    f'accelerate launch train_network.py "${{args[@]}}" --network_dim=4 {WARMUP}',
    "a variable that depends": f'LR=1e-4\nif [ -z "$X" ]; then\n  LR=1e-5\nfi\n'
    f"accelerate launch train_network.py {FOLDERS} --learning_rate=$LR {WARMUP}",
    "a loop": f"for lr in 1e-4 1e-5; do accelerate launch train_network.py {FOLDERS} --learning_rate=$lr {WARMUP}; done",
    "a function": f'train() {{\n  accelerate launch train_network.py {SAID} --seed="$1" {WARMUP}\n}}\ntrain 1; train 2',
    "a here-document": f"cat > /dev/null <<'EOF'\nit's --seed=5\nEOF\naccelerate launch train_network.py {SAID} {WARMUP}",
    "apostrophes in comments": f"# don't forget\naccelerate launch train_network.py {SAID} {WARMUP} # it's slow",
    "an old command in quotes": f": '\naccelerate launch train_network.py --seed=1 --x=2\n'\n"
    f"accelerate launch train_network.py {SAID} {WARMUP}",
    "a script in a variable": f"SCRIPT=sdxl_train_network.py\naccelerate launch ./$SCRIPT {SAID} {WARMUP}",
    "a home folder": f"accelerate launch train_network.py {SAID} --train_data_dir ~/pictures {WARMUP}",
    "several words in a variable": f'ARGS="a=1 b=2"\naccelerate launch train_network.py {SAID} --network_args $ARGS {WARMUP}',
    "a log": f"accelerate launch train_network.py {SAID} {WARMUP} 2>&1 | cat",
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_bash_hands_the_same_words_over_except_for_what_was_named(text):
    diagnosis = diagnose(text)
    assert [finding.rule for finding in diagnosis.findings if finding.effect == "raises"] == ["needless-warmup"]
    assert diagnosis.changes()[0] == "lr_scheduler: constant -> constant_with_warmup"
    fixed = diagnosis.fixed_text()
    before, after = words_of(text), words_of(fixed)
    assert before != after
    assert sorted(before) == sorted(word.replace("constant_with_warmup", "constant") for word in after)
    start = text.rpartition("accelerate launch")[0]
    assert fixed.startswith(start)


def words_of(script):
    """The words that each `accelerate` of a script is given, a value apart from its flag; of two values for a flag the last."""
    program = "accelerate() { printf '%s\\0' \"$@\" $'\\1'; }\n" + script
    said = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, env={"HOME": "/home/me"}).stdout
    runs = []
    for run in said.split("\1\0")[:-1]:
        flags, last = {}, "accelerate"
        for word in run.replace("=", "\0").split("\0")[:-1]:
            if word.startswith("--"):
                last = word
                flags[last] = []
            else:
                flags.setdefault(last, []).append(word)
        runs.append(str(sorted(flags.items())))
    return runs


def test_a_list_that_depends_on_a_condition_may_hold_anything():
    text = 'args=(--seed=1)\nif [ -z "$X" ]; then\n  args+=(--lr_scheduler=cosine)\nfi\naccelerate launch train_network.py "${args[@]}"'
    assert rules(text) == ["shell-left", "variable"]
    assert diagnose(text).fixed_text() == text


def test_a_value_in_a_list_is_named_and_left():
    text = f'args=(--learning_rate=1e-4 {WARMUP})\naccelerate launch train_network.py "${{args[@]}}"'
    assert rules(text) == ["needless-warmup"]
    with pytest.raises(ValueError, match="lr_scheduler is in an array of the shell"):
        diagnose(text).fixed_text()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (f"cat > run.sh <<EOF\naccelerate launch train_network.py {SAID} {WARMUP}\nEOF\nbash run.sh", "here-document of line 1"),
        (f"bash -c 'accelerate launch train_network.py {SAID} {WARMUP}'", "in quotes"),
    ],
)
def test_a_command_in_another_text_is_judged_and_left(text, where):
    assert rules(text, "raises") == ["needless-warmup"]
    with pytest.raises(ValueError, match=where):
        diagnose(text).fixed_text()


POWERSHELL = """$wide = 0
$file = "./config/a.toml"
$script = if ($wide) { "sdxl_train_network.py" } else { "train_network.py" }
<# don't
$file = "b" #>
python -m accelerate.commands.launch --num_cpu_threads_per_process=8 "./scripts/$script" `
  --config_file=$file `
  --sample_prompts="./config/p.txt"
"""


def test_an_if_of_powershell_is_left_and_the_command_is_read():
    diagnosis = diagnose(POWERSHELL)
    assert rules(POWERSHELL) == ["shell-left", "config-file"]
    assert "`if` in line 3" in str(diagnosis)
    assert "The rest depends on what is not in this text: the file ./config/a.toml" in diagnosis.summary()
    assert diagnosis.fixed_text() == POWERSHELL
    with_an_error = POWERSHELL.replace("--config_file=$file", f"--learning_rate=1e-4 {WARMUP}")
    assert diagnose(with_an_error).fixed_text() == with_an_error.partition("python")[0] + (
        'python -m accelerate.commands.launch --num_cpu_threads_per_process=8 "./scripts/$script" `\n'
        "  --learning_rate=1e-4 `\n  --lr_scheduler=constant_with_warmup `\n  --lr_warmup_steps=100 `\n  --sample_prompts=./config/p.txt\n"
    )


def test_a_backslash_before_a_quote_by_shell():
    powershell = (
        '$out = "D:\\out\\"\naccelerate launch train_network.py `\n --train_data_dir="D:\\img\\" `\n --output_dir=$out --learning_rate=1e-4'
    )
    found = diagnose(powershell)
    assert found.findings == ()
    assert found.settings.given == {"train_data_dir": "D:\\img\\", "output_dir": "D:\\out\\", "learning_rate": 1e-4}
    assert found.settings.prefix == ("accelerate", "launch", "train_network.py")
    cmd = 'accelerate launch train_network.py ^\n --train_data_dir="D:\\my img\\" ^\n --output_dir="D:\\out\\" --learning_rate=1e-4'
    assert rules(cmd) == ["backslash-before-quote"]
    assert diagnose(cmd).raises
    assert diagnose(cmd).fixed_text() == (
        'accelerate launch train_network.py ^\n  --train_data_dir="D:\\my img\\\\" ^\n  --output_dir=D:\\out\\ ^\n  --learning_rate=1e-4'
    )


def test_a_batch_file_keeps_its_comments_its_line_ends_and_its_last_backslash():
    text = (
        "@echo off\r\nREM don't forget\r\n:: it's old\r\nset OUT=D:\\out\\\r\n"
        'accelerate launch train_network.py ^\r\n  --output_dir="%OUT%" --seed=%1 '
        f"^\r\n --learning_rate=1e-4 {WARMUP}\r\necho Don't close\r\npause\r\n"
    )
    diagnosis = diagnose(text)
    assert rules(text) == ["needless-warmup", "variable"]
    assert diagnosis.settings.given["output_dir"] == "D:\\out\\"
    start, end = text.partition("accelerate")[0], text.partition("=100")[2]
    assert diagnosis.fixed_text() == (
        f'{start}accelerate launch train_network.py ^\r\n  --output_dir="%OUT%" ^\r\n  --seed="%1" ^\r\n  --learning_rate=1e-4 ^\r\n'
        f"  --lr_scheduler=constant_with_warmup ^\r\n  --lr_warmup_steps=100{end}"
    )
    calm = text.replace("constant ", "constant_with_warmup ")
    assert rules(calm) == ["variable"]


@pytest.mark.parametrize(
    "prompt",
    [
        "root@box-12:~/sd-scripts# ",
        "(venv) PS D:\\sd scripts> ",
        "(base) [me@host sd]$ ",
        "C:\\sd scripts>",
        "$ ",
        "(venv) ",
        "me@mac sd % ",
    ],
)
def test_the_prompt_of_a_terminal_is_no_part_of_a_command(prompt):
    fixed = diagnose(f"{prompt}accelerate launch train_network.py {SAID} {WARMUP}").fixed_text()
    assert fixed.startswith("accelerate launch train_network.py")


def test_line_breaks_before_the_script():
    text = ' accelerate launch \n --num_cpu_threads_per_process=2 \n "./sdxl_train_network.py" \n --seed=1 \n --learning_rate="0.0004"'
    (finding,) = diagnose(text).findings
    assert (finding.rule, finding.effect) == ("broken-line", "raises")
    assert "ends after line 1" in finding.what
    assert diagnose(text).fixed_text().lstrip() == (
        "accelerate launch --num_cpu_threads_per_process=2 ./sdxl_train_network.py \\\n  --seed=1 \\\n  --learning_rate=4e-4"
    )


def test_a_stray_word_may_be_the_rest_of_a_folder():
    for text in (f"--output_dir=D:\\my data {WARMUP}", f"--output_dir=D:\\my data --bogus {WARMUP}", f"--lr_scheduler_=cosine {WARMUP}"):
        with pytest.raises(ValueError, match="only you can decide"):
            diagnose(text).fixed_text()


# what stands elsewhere


@pytest.mark.parametrize("file", ['"$CFG"', "$1", "%CFG%", "{config}", "$(ls *.toml)", "$env:CFG", "a.toml"])
def test_nothing_is_said_of_what_a_file_may_hold(file):
    text = f"accelerate launch sdxl_train_network.py --config_file={file} --sample_prompts=p.txt"
    diagnosis = diagnose(text)
    assert not rules(text, "raises", "overrides", "warns")
    assert diagnosis.effective() == {}
    assert "depends on what is not in this text: the file" in diagnosis.summary()
    assert diagnosis.fixed_text() == text
    assert diagnosis.changes() == []


def test_a_rate_in_a_variable_is_shown_as_it_is_written():
    text = (
        "!accelerate launch sdxl_train_network.py --output_dir={out} --learning_rate={lr} --network_module=networks.lora \\\n"
        "  --optimizer_type=Adafactor --lr_scheduler=cosine --lr_warmup_steps=100"
    )
    diagnosis = diagnose(text)
    assert "adafactor:{lr} does not require" in str(diagnosis)
    assert "2e-06" not in str(diagnosis)
    assert rules(text, "note") == ["variable"]
    assert '--learning_rate="{lr}"' in diagnosis.fixed_text()


def test_a_rate_that_stands_in_for_an_automatic_one_is_never_made_real():
    rates = {"learning_rate": 1.0, "unet_lr": 1.0, "text_encoder_lr": 1.0}
    data = GUI | rates | {"lr_scheduler": "adafactor", "lr_warmup": 0, "lr_warmup_steps": 0, "max_grad_norm": 1}
    diagnosis = diagnose(json.dumps(data))
    assert not {"raises", "overrides"} & {one.effect for one in diagnosis.findings}
    assert diagnosis.effective()["learning_rates"] is None
    assert json.loads(diagnosis.fixed_text()) == data
    assert json.loads(diagnose(json.dumps(data | {"lr_warmup": 10})).fixed_text()) == data
    for text in ("--lr_scheduler=cosine", "--lr_scheduler=constant_with_warmup --lr_warmup_steps=100", "--unet_lr=1"):
        try:
            fixed = diagnose(f"--optimizer_type=Adafactor --learning_rate=1.0 --network_module=networks.lora {text}").fixed_text()
        except ValueError as error:
            assert "only you can decide" in str(error)
        else:
            assert "relative_step=False" not in fixed
    assert "relative_step=False" in diagnose("--optimizer_type=Adafactor --learning_rate=1e-4").fixed_text()


def test_a_file_that_the_gui_wrote_for_sd_scripts_is_known():
    text = 'epoch = 10\nlearning_rate = 0.0003\nnoise_offset_type = "Original"\n'
    assert rules(text) == []
    assert rules(text.replace("noise_offset_type", "noise_ofset_type")) == ["toml-unknown"] * 2
    assert rules("epoch = 10\nlearning_rate = 0.0003") == ["toml-unknown"]


# encodings


def fixed_file(path):
    return subprocess.run([sys.executable, "-m", "sdnb", "doctor", "--fix", str(path)], capture_output=True, check=True, cwd=ROOT).stdout


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("gb18030", "D:\\模型\\训练"),
        ("cp932", "D:\\素材\\表紙"),
        ("cp1252", "D:\\Müller\\Bücher"),
        ("utf-16", "D:\\模型"),
        ("utf-8-sig", "D:\\é"),
    ],
)
def test_a_file_comes_back_in_its_own_encoding(encoding, name, tmp_path):
    text = f'@echo off\r\naccelerate launch train_network.py ^\r\n  --output_dir="{name}" ^\r\n  --learning_rate=1e-4'
    text += " ^\r\n  --lr_scheduler=constant ^\r\n  --lr_warmup_steps=100\r\n"
    file = tmp_path / "run.bat"
    file.write_bytes(text.encode(encoding))
    assert diagnose(file).settings.given["output_dir"] == name
    assert fixed_file(file) == text.replace("constant", "constant_with_warmup").encode(encoding)


def test_letters_of_no_known_encoding_are_never_lost(tmp_path):
    file = tmp_path / "run.sh"
    file.write_bytes(b"accelerate launch train_network.py --output_dir=\xff\xfa\xf0\xff --learning_rate=1e-4 " + WARMUP.encode())
    assert [one.rule for one in diagnose(file).findings] == ["needless-warmup", "encoding"]
    with pytest.raises(ValueError, match="save it as UTF-8"):
        diagnose(file).fixed_text()
    toml = tmp_path / "a.toml"
    toml.write_bytes('output_dir = "训练"\nlearning_rate = 1e-4\n'.encode("gbk"))
    assert [one.rule for one in diagnose(toml).findings] == ["toml-encoding"]
    gui = tmp_path / "a.json"
    gui.write_bytes(json.dumps(GUI | {"output_dir": "D:\\训练"}, ensure_ascii=False).encode("gbk"))
    assert json.loads(diagnose(gui).fixed_text())["output_dir"] == "D:\\训练"
