"""Settings in every form, read and printed back."""

import json

import pytest

from sdnb import diagnose
from sdnb.sd_scripts.reading import read
from sdnb.system.words import number

GUI = {
    "LoRA_type": "Standard",
    "adaptive_noise_scale": 0,
    "additional_parameters": "",
    "cache_latents": True,
    "learning_rate": 0.0001,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup": 0,
    "lr_warmup_steps": 100,
    "max_grad_norm": 0,
    "max_train_steps": 1600,
    "network_dim": 8,
    "optimizer": "Adafactor",
    "optimizer_args": "",
    "pretrained_model_name_or_path": "model",
    "train_batch_size": 1,
    "unet_lr": 0.0001,
    "text_encoder_lr": 0.0001,
    "xformers": "xformers",
}


def rules(text, **kwargs):
    return [finding.rule for finding in read(text, **kwargs).findings]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('--output_name="x', "unclosed-quote"),
        ("--optimizer_type=“Adafactor”", "curly-quotes"),
        ("accelerate launch train_network.py --max_grad_norm=0 \\ \n --seed=1", "broken-line"),
        ("accelerate launch train_network.py --max_grad_norm=0\n--seed=1", "broken-line"),
        ("train_network.py --optimizer_args 'a=1' ^\n --seed=1", "single-quotes-in-cmd"),
        ("--max_grad_nrom=0", "unknown-argument"),
        ("—max_grad_norm=0", "hyphens"),
        ("--max-grad-norm=0", "hyphens"),
        ("--save_model_as=%FORMAT%", "variable"),
        ("[general]\n[[datasets]]\nresolution = 512", "no-settings"),
        ("[general_args.args]\nmax_grad_norm = 0", "no-settings"),
        ("masterpiece, 1girl --n low quality --w 768 --h 768", "no-settings"),
        ("import os\nos.system('accelerate launch train_network.py --seed=1')", "no-settings"),
        ("\n".join(f"key{number} = 1" for number in range(20)), "no-settings"),
        ("seed = 1\n" + "\n".join(f"key{number} = 1" for number in range(20)), "toml-unknown"),
        ("--max_grad=0", "abbreviated-argument"),
        ("--lr_scheduler_=cosine", "ambiguous-argument"),
        ("--seed=1 --seed=2", "duplicate-argument"),
        ("--seed=x", "bad-value"),
        ("--seed = 1", "spaces-around-equals"),
        ("--seed 1 2", "stray-words"),
        ("--gradient_checkpointing=true", "bad-value"),
        ("--learning_rate=$LR", "variable"),
        ("optimizer_args = [", "toml-syntax"),
        ("a = 1\na = 2", "toml-syntax"),
        ("max_grad_nrom = 0", "toml-unknown"),
        ("network_dim = 4\nblock_lr = '1'", "toml-unknown"),
        ("[a]\nseed = 1\n[b]\nseed = 2", "toml-twice"),
        ("[a]\nseed = 1\n[a.deep]\nmax_grad_norm = 0", "toml-nested"),
        ('gradient_checkpointing = "false"', "toml-type"),
        ('mixed_precision = "fp8"', "toml-type"),
        ("lr_scheduler_args = 'x=1'", "toml-type"),
        ('{"max_grad_norm": 0}', "json-settings"),
        ('{"colour": "red"}', "no-settings"),
        ("[1, 2]", "no-settings"),
        ("{", "no-settings"),
        ("", "no-settings"),
        ("\n\n  # only a comment\n", "no-settings"),
        ("What is a learning rate?", "no-settings"),
        ("job: extension\nconfig:\n  lr: 1e-4\n", "no-settings"),
        ("accelerate launch", "no-settings"),
        ("accelerate launch my_own.py --learning_rate=1", "no-settings"),
        ("missing/settings.toml", "file-not-read"),
        ("--max_grad_norm=0 " * 20_000, "no-settings"),
    ],
)
def test_a_slip_is_found(text, rule):
    found = rules(text)
    assert rule in found
    finding = next(one for one in read(text).findings if one.rule == rule)
    assert finding.what
    assert finding.fix


def test_values_are_never_run_and_no_file_they_name_is_opened(tmp_path, monkeypatch):
    import builtins
    import io

    def refuse(*_, **__):
        raise AssertionError("a file was opened")

    text = f'--config_file="{tmp_path}/x.toml" --optimizer_args "weight_decay=__import__(\'os\').getcwd()" --train_data_dir="{tmp_path}"'
    diagnose("--seed=1").findings  # noqa: B018 - its own tables are read once
    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(io, "open", refuse)
    diagnosis = diagnose(text)
    assert diagnosis.findings
    assert diagnosis.raises  # the value is no literal


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("It fails, why?\n```bash\naccelerate launch train_network.py --seed=1\n```\nIt doesn't work", "command"),
        ("accelerate launch train_network.py --seed=1\n\nIt doesn't work", "command"),
        ("```toml\nseed = 1\n```", "toml"),
        ("> --seed=1\n> --lr_scheduler=cosine", "flags"),
        ("source venv/bin/activate\ncd sd-scripts\naccelerate launch train_network.py --seed=1", "command"),
    ],
)
def test_the_settings_are_found_among_other_things(text, form):
    found = read(text)
    assert (found.form, found.given["seed"]) == (form, 1)
    assert found.findings == ()


def test_what_stands_elsewhere_is_not_judged():
    for text in (
        "accelerate launch --mixed_precision=fp16 sdxl_train_network.py --config_file=x.toml",
        "accelerate launch train_network.py --optimizer_type=Adafactor --optimizer_args $ARGS --lr_scheduler=cosine --lr_warmup_steps=100",
        "accelerate launch train_network.py --lr_scheduler=$S --lr_warmup_steps=100 --learning_rate=1e-4",
        'accelerate launch train_network.py --lr_warmup_steps=100 "${args[@]}"',
        'ext_args+=("--lr_scheduler=cosine")\naccelerate launch train_network.py --lr_warmup_steps=100 --learning_rate=1e-4',
        "accelerate launch train_network.py --log_with=tensorboard --logging_dir=$OUT/logs --learning_rate=1e-4",
    ):
        diagnosis = diagnose(text)
        assert [finding.rule for finding in diagnosis.findings if finding.effect != "note"] == []
        if "logging_dir" not in text:
            assert diagnosis.effective() == {}
            assert "depends on what is not in this text" in str(diagnosis)
        assert "--logging_dir=logs" not in diagnosis.fixed_text()


def test_variables_that_the_text_sets_are_filled_in_and_kept():
    for text in (
        'LR="1e-4" # fast\nexport WARM=100\naccelerate launch train_network.py --learning_rate=$LR --lr_warmup_steps ${WARM}',
        '$lr = "1e-4"\n$warm = 100\naccelerate launch train_network.py `\n --learning_rate=$lr --lr_warmup_steps $warm',
        'set LR=1e-4\nset "WARM=100"\naccelerate launch train_network.py ^\n --learning_rate="%LR%" --lr_warmup_steps %WARM%',
    ):
        diagnosis = diagnose(text)
        assert [finding.rule for finding in diagnosis.findings] == ["needless-warmup"]
        assert diagnosis.settings.given == {"learning_rate": 1e-4, "lr_warmup_steps": 100}
        fixed = diagnosis.fixed_text()
        assert fixed.startswith(text.partition("accelerate")[0])
        assert "1e-4" not in fixed.partition("launch")[2]
        assert not diagnose(fixed).findings


def test_a_blank_in_a_variable_of_cmd_is_kept():
    text = 'set "OUT=D:\\my pictures"\naccelerate launch train_network.py ^\n --learning_rate=1e-4 --output_dir="%OUT%"'
    assert read(text).given["output_dir"] == "D:\\my pictures"
    assert diagnose(text).fixed_text().endswith('--output_dir="%OUT%" ^\n  --learning_rate=1e-4')


def test_a_variable_is_no_second_value():
    """Behind a list it may hold more of its parts; behind a single value it holds other flags."""
    assert read("--learning_rate=1e-4 --lr_warmup_steps=100 $ARGS").unknown == {"*"}
    assert read("--learning_rate=1e-4 --optimizer_args a=1 $ARGS").unknown == {"*", "optimizer_args"}


def test_a_path_of_windows_in_toml_is_explained():
    (finding,) = read('output_dir = "C:\\models"').findings
    assert "single quotes" in finding.fix


def test_a_file_of_powershell_is_read(tmp_path):
    file = tmp_path / "command.txt"
    file.write_text("accelerate launch train_network.py --learning_rate=1e-4 --output_name=模型", encoding="utf-16")
    assert read(file).given == {"learning_rate": 1e-4, "output_name": "模型"}


def test_processes_that_are_no_number_are_one():
    assert read("accelerate launch --num_processes=two train_network.py --seed=1").processes == 1


def test_the_words_of_a_command_in_pythons_brackets_are_read():
    words = r"['C:\\venv\\python.exe', 'train_network.py', '--network_dim=4', '--resolution=512,512', '--xformers']"
    for text in (words, f"subprocess.CalledProcessError: Command '{words}' returned non-zero exit status 1."):
        assert read(text).given == {"network_dim": 4, "resolution": "512,512", "xformers": True}


def test_of_several_values_of_a_variable_the_last_counts_unless_a_condition_is_not_known():
    command = "accelerate launch train_network.py --learning_rate=$LR"
    assert diagnose(f"LR=1e-4\nLR=1e-5\n{command}").settings.given == {"learning_rate": 1e-5}
    assert diagnose(f"LR=1e-4\nif [ -f fast ]; then LR=1e-5; fi\n{command}").settings.unknown == {"learning_rate"}


def test_a_value_split_by_a_blank_is_joined():
    fixed = diagnose('--optimizer_type=AdamW --learning_rate=1e-4 --optimizer_args "betas=(0.9," "0.99)" weight_decay=0.1').fixed()
    assert fixed.optimizer_args == ("betas=(0.9,0.99)", "weight_decay=0.1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'accelerate launch train_network.py ^\n  --train_data_dir="C:\\my data" ^\n  --lr_warmup_steps=100 --learning_rate=1e-4',
            'accelerate launch train_network.py ^\n  --train_data_dir="C:\\my data" ^\n  --lr_warmup_steps=100 ^\n'
            "  --learning_rate=1e-4 ^\n  --lr_scheduler=constant_with_warmup",
        ),
        (
            "accelerate launch train_network.py `\n  --lr_warmup_steps=100 --learning_rate=1e-4 $ext",
            "accelerate launch train_network.py `\n  --lr_warmup_steps=100 `\n  --learning_rate=1e-4 `\n  $ext",
        ),
    ],
)
def test_a_command_for_windows_stays_one(text, expected):
    assert diagnose(text).fixed_text() == expected


def test_the_script_is_the_named_one_or_the_first_that_knows_all():
    assert read("accelerate launch sd-scripts/sdxl_train.py --seed=1").script == "sdxl_train.py"
    assert read("python .\\sdxl_train_network.py --seed=1").script == "sdxl_train_network.py"
    assert read("--seed=1").script == "train_network.py"
    assert read("--fused_optimizer_groups=2").script == "sdxl_train.py"
    assert read("--seed=1", script="fine_tune.py").script == "fine_tune.py"
    assert read("x=1\n", script="fine_tune.py").script == "fine_tune.py"


def test_a_toml_file_is_mended_in_place_with_its_comments():
    text = (
        '# mine\n[training]\noptimizer_type = "Adafactor"  # saves memory\nmax_grad_nrom = 0 # as copied\nlr_scheduler = "cosine"\n'
        "lr_warmup_steps = 100.0\n[model]\nv2 = false\n"
    )
    assert diagnose(text).fixed_text() == (
        '# mine\n[training]\noptimizer_type = "Adafactor"  # saves memory\nmax_grad_norm = 0 # as copied\nlr_scheduler = "cosine"\n'
        'lr_warmup_steps = 100\noptimizer_args = ["relative_step=False", "scale_parameter=False", "warmup_init=False"]\n'
        "learning_rate = 0.0001\n[model]\nv2 = false\n"
    )


def test_a_command_is_mended_with_its_launcher():
    text = (
        'accelerate launch --num_cpu_threads_per_process=8 "train_network.py" \\\n'
        ' --learning_rate=$LR --lr_warmup_steps=100 --train_data_dir="C:/my data"'
    )
    assert diagnose(text).fixed_text() == (
        'accelerate launch --num_cpu_threads_per_process=8 train_network.py \\\n  --learning_rate="$LR" \\\n  --lr_warmup_steps=100 \\\n'
        '  --train_data_dir="C:/my data" \\\n  --lr_scheduler=constant_with_warmup'
    )


def test_a_gui_file_is_mended_with_its_other_fields():
    text = json.dumps(GUI)
    diagnosis = diagnose(text)
    assert {"gui-drops-zero", "adafactor-refuses-warmup"} <= {finding.rule for finding in diagnosis.findings}
    fixed = json.loads(diagnosis.fixed_text())
    assert (
        fixed.items() >= {**GUI, "optimizer_args": fixed["optimizer_args"], "additional_parameters": fixed["additional_parameters"]}.items()
    )
    better = diagnose(json.dumps(fixed))
    assert not better.raises
    assert better.settings["max_grad_norm"] == 0
    assert better.settings["optimizer_args"] == ["relative_step=False", "scale_parameter=False", "warmup_init=False"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "1e-4"),
        (2e-6, "2e-6"),
        (0.0, "0"),
        (1.0, "1"),
        (0.05, "0.05"),
        (1.5e-5, "1.5e-5"),
        (1e20, "1e20"),
        (0.1 + 0.2, "0.30000000000000004"),
        (7, "7"),
    ],
)
def test_numbers_are_printed_as_one_would_type_them(value, text):
    assert number(value) == text
    assert float(number(value)) == value


def test_words_that_a_shell_has_split_are_read_and_printed_back():
    words = ["accelerate", "launch", "train_network.py", "--learning_rate=1e-4", "--output_name=“x”"]
    assert [finding.rule for finding in diagnose(words).findings] == ["curly-quotes"]
    assert diagnose(words).fixed_text() == "accelerate launch train_network.py \\\n  --learning_rate=1e-4 \\\n  --output_name=x"


def test_a_setting_that_a_toml_file_should_not_hold_is_taken_out():
    text = 'optimizer_type = "AdamW"\nlearning_rate = 1e-4\nfused_backward_pass = true\n'
    assert diagnose(text, script="train_network.py").fixed_text() == 'optimizer_type = "AdamW"\nlearning_rate = 1e-4\n'
