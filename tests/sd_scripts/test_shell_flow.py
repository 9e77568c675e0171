"""Scripts whose flags stand in variables and lists under conditions, held to what bash itself passes on."""

import shutil
import subprocess
import time

import pytest

from sdnb.doctor import diagnose
from sdnb.sd_scripts import read
from sdnb.sd_scripts.shell_flow import follow

SCRIPT = """
seed={seed}
noise="{noise}"
kind="{kind}"
weights=""
extArgs=()
if [[ $multi == 1 ]]; then extArgs+=("--lowram"); fi
if [[ $seed -ne 0 ]]; then extArgs+=("--seed $seed"); fi
if [ $weights ]; then extArgs+=("--network_weights=$weights"); fi
if [[ $noise != "0" ]]; then
  extArgs+=("--noise_offset=$noise")
else
  extArgs+=('--multires_noise_iterations=6')
fi
if [[ $kind == "Lion" ]] || [[ $kind == "Lion8bit" ]]; then
  extArgs+=("--optimizer_type=$kind" "--optimizer_args weight_decay=0.01 betas=.95,.98")
elif [[ -n "$kind" && $kind != "Prodigy" ]]; then
  extArgs+=("--optimizer_type=$kind")
elif [ "$kind" = Prodigy ]; then
  noise=1  # too late for the list
  extArgs+=("--optimizer_type=$kind"); extArgs+=("--optimizer_args decouple=True")
fi
[[ -z $weights ]] && extArgs+=("--shuffle_caption")
for i in 1 2; do later=$i; done
accelerate launch train_network.py --network_module=networks.lora --keep_tokens=$seed ${{extArgs[@]}}
"""
CHOICES = [(0, "0", "Lion8bit"), (1, "0.1", "Prodigy"), (5, "0.0", "AdamW"), (7, "0", "")]


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(("seed", "noise", "kind"), CHOICES)
def test_a_script_gives_the_words_that_bash_gives(seed, noise, kind):
    text = SCRIPT.format(seed=seed, noise=noise, kind=kind)
    stub = 'accelerate() { printf "%s\\n" "$@"; }\n'
    passed = subprocess.run(["bash", "-c", stub + text], capture_output=True, text=True, check=True).stdout.split("\n")[2:-1]
    found, wanted = read(text), read(passed, "train_network.py")
    assert found.given == wanted.given and not found.unknown and len(wanted.given) >= 5


POWERSHELL = """
$kind = "{kind}"
$noise = {noise}
$rate = 1e-4 * $batch
$batch = 2
$unet = 1e-4 * $batch
$trainer = "./scripts/train_network.py"
$ext_args = [System.Collections.ArrayList]::new()
$launch_args = @()
foreach ($one in $paths) {{ if (Test-Path $one) {{ & $one; break }} }}
if ($kind -ieq "lion") {{
  [void]$ext_args.Add("--optimizer_type=" + $kind)
}}
elseif ($kind -eq "Prodigy" -and !$other) {{
  [void]$ext_args.Add("--optimizer_args"); [void]$ext_args.Add("decouple=True")
}}
else {{ $ext_args += "--lowram" }}
if ($noise) {{ [void]$ext_args.Add("--noise_offset=$noise") }}
python -m accelerate.commands.launch $launch_args $trainer `
  --unet_lr=$unet --learning_rate=$rate $ext_args
"""


@pytest.mark.parametrize(
    ("kind", "noise", "given"),
    [
        ("Lion", "0", {"optimizer_type": "Lion"}),
        ("prodigy", "0.1", {"optimizer_args": ["decouple=True"], "noise_offset": 0.1}),
        ("", "$null", {"lowram": True}),
    ],
)
def test_a_script_of_powershell_is_followed(kind, noise, given):
    found = read(POWERSHELL.format(kind=kind, noise=noise))
    assert found.script == "train_network.py" and found.given == {"unet_lr": 0.0002, **given}
    assert found.unknown == {"learning_rate"}  # its product comes before the number that it is of


@pytest.mark.parametrize(
    ("lines", "texts", "lists"),
    [
        ("a=1\nif [ -f x ]; then a=2; b=3; fi\nc=4", {"c": "4"}, {}),
        ("a=(1)\nwhile true; do a+=(2); done\nb=(3)", {}, {"b": ["3"]}),
        ("a=1\nif [ $a == 2 ]; then\n  while true; do a=3; done\nfi", {"a": "1"}, {}),
        ('a=$(date)\nb="$a"\nc="$HOME/x"\nd=e', {"d": "e"}, {}),
        ('a=$1\nb="$2.x"\nc=("$@")\nd=${4:-e}\nf=g', {"f": "g"}, {}),
        ("a=1\nread a\nexport b=2; c=3", {"b": "2", "c": "3"}, {}),
        ("a=1\neval $x", None, None),
        ("set_it() { a=1; }\nset_it", None, None),
        ("a='x", None, None),
    ],
)
def test_what_cannot_be_told_is_forgotten(lines, texts, lists):
    found = follow(lines, "bash")
    assert (found and (found.texts, found.lists)) == (None if texts is None else (texts, lists))


def test_a_script_that_is_understood_is_judged_without_doubt():
    text = SCRIPT.format(seed=1, noise="0", kind="Prodigy").replace("for i in 1 2; do later=$i; done", "lr=1")
    assert "shell-left" not in [finding.rule for finding in diagnose(text).findings]


def test_flags_of_a_notebook_take_the_values_of_its_python():
    import json

    cells = [
        "rate = 1e-4 #@param {type:'number'}\nname = 'fox'\nfolder = name + '1'\nif folder:\n  steps = 3",
        "!pip install x\nbatch = 2\n!accelerate launch train_network.py --learning_rate={rate} --train_batch_size=$batch \\\n"
        '  --output_name="{name}" --max_train_steps={steps} --output_dir={folder}',
    ]
    notebook = {"cells": [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]}
    found = read(json.dumps(notebook))
    assert found.given == {"learning_rate": 1e-4, "train_batch_size": 2, "output_name": "fox"}
    assert found.unknown == {"max_train_steps", "output_dir"}


@pytest.mark.parametrize(
    "text",
    [
        'a="xx"\n' + 'a="$a$a"\n' * 60,
        "$a = 'xx'\n" + "$a = $a + $a\n" * 60,
        "$a = 'x', 'y'\n" + "$a += $a\n" * 60,
        "$a = 99\n" + "$a = $a * $a\n" * 60,
        "if [" + " " * 50_000 + "; then a=1; fi",
        "if ($a" + " " * 50_000 + "-eq 1) { $a = 1 }",
        "then " * 5_000,
        "$a = " + "(" * 5_000 + "1" + ")" * 5_000,
        "a=" + "(" * 20_000,
        "$a = " + "9" * 6_000,
    ],
    ids=["text", "sum", "list", "product", "blanks", "blanks of PowerShell", "nested", "brackets", "open brackets", "digits"],
)
def test_nothing_that_grows_takes_long(text):
    began = time.perf_counter()
    for shell in ("bash", "PowerShell"):
        found = follow(text, shell)
        assert found is None or all(len(value) < 20_000 for value in found.texts.values())
    assert time.perf_counter() - began < 2
