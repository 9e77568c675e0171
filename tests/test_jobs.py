"""`sdnb train`: a job by sd-scripts' settings, in one process and in two, from the refusal to the file."""

import errno
import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import sdnb
from sdnb import sections, train_command
from sdnb.__main__ import main
from sdnb.datasets import cache
from sdnb.jobs import Job
from sdnb.saves import folders
from sdnb.sd_scripts import supported

from .conftest import ROOT

TOML = """
pretrained_model_name_or_path = "tiny"
train_data_dir = "emoji-ink"
output_dir = {folder!r}
output_name = "inky"
network_module = "networks.lora"
network_dim = 2
network_alpha = 1
network_train_unet_only = true
resolution = "32,32"
train_batch_size = {batch}
max_train_steps = 4
save_every_n_steps = 2
optimizer_type = "AdamW"
learning_rate = 1e-3
lr_scheduler = "constant_with_warmup"
lr_warmup_steps = 2
seed = 7
sdpa = true
"""


def config(tmp_path, batch=2, more=""):
    path = tmp_path / "a recipe.toml"
    path.write_text(TOML.format(folder=str(tmp_path / "out"), batch=batch) + more, encoding="utf-8")
    return path


def steps(printed):
    return [line for line in map(json.loads, printed.splitlines()) if line["event"] == "step"]


def test_a_toml_file_becomes_a_lora(tmp_path, capsys):
    path = config(tmp_path, more='save_model_as = "ckpt"\n')
    assert main(["train", "--config", str(path), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["ignored", "differs", "started", *["step"] * 4, "done"]
    assert lines[0]["setting"].startswith("sdpa")
    result = tmp_path / "out" / "inky.safetensors"
    assert lines[-1]["result"] == str(result)
    tensors = load_file(result)
    assert all(name.startswith("lora_unet_") for name in tensors)
    assert any("lora_up" in name and tensor.abs().sum() > 0 for name, tensor in tensors.items())
    assert (tmp_path / "out" / "inky-step00000002.safetensors").exists()
    assert [one.name for one in folders.found(tmp_path / "out" / "inky-saves")] == ["step-00000002", "step-00000004"]
    # the same run without the command line
    recipe = sdnb.Recipe.parse(path)
    expected = [step.loss for step in sdnb.train(sdnb.load("tiny", device="cpu"), sdnb.pictures("emoji-ink"), recipe)]
    assert [line["loss"] for line in lines[3:-1]] == expected
    # flags win over the file, and a longer run goes on
    assert main(["train", "--config", str(path), "--json", "--", "--max_train_steps=5"]) == 0
    assert [line["step"] for line in steps(capsys.readouterr().out)] == [5]


def test_a_whole_model_is_saved_as_a_folder(tmp_path, capsys):
    flags = f"--pretrained_model_name_or_path=tiny --train_data_dir=emoji-ink --output_dir={tmp_path} --max_train_steps=1 --resolution=32"
    assert main(["train", "--", *flags.split(), "--optimizer_type=AdamW", "--train_batch_size=1"]) == 0
    assert "1/1  loss" in capsys.readouterr().out
    assert sdnb.load(tmp_path / "last", device="cpu").unet
    saved = (tmp_path / "last" / "unet" / "config.json").stat()
    again = ["train", "--", *flags.split(), "--optimizer_type=AdamW"]
    assert main(again) == 0
    assert "all its steps were done before, nothing was trained" in capsys.readouterr().out
    assert (tmp_path / "last" / "unet" / "config.json").stat() == saved
    assert main([*again, "--max_train_steps=2"]) == 2
    assert "last exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("resume = 'nowhere'", "resume='nowhere': it must be the folder of a save or state; there is none"),
        ("loss_type = 'huber'\nhuber_schedule = 'constant'\nhuber_c = 0.0", "huber_c and huber_scale must be above 0"),
        ("reg_data_dir = 'nowhere'", "reg_data_dir='nowhere' does not exist"),
        ("save_model_as = 'zip'", "save_model_as"),
        ("min_timestep = 900\nmax_timestep = 100", "between 0 and 1000, in order"),
        ("validation_split = 1.5", "validation_split=1.5: it must be 0 or above"),
        ("network_args = ['conv_dim=big']", "conv_dim must be a whole number"),
        ("network_dropout = 1.5", "dropout=1.5: it is a share"),
        ("sample_sampler = 'unipc'", "sample_sampler"),
        ("save_every_n_epochs = 0", "save_every_n_epochs is 0"),
        ("optimizer_args = ['bogus=1']", "optimizer_args=('bogus=1',)"),
        ("lr_scheduler_args = ['bogus=1']", "lr_scheduler"),
    ],
)
def test_what_is_not_supported_is_named_before_anything_is_loaded(tmp_path, capsys, monkeypatch, more, said):
    monkeypatch.setattr(Job, "load", lambda job: pytest.fail("the model was loaded first"))
    assert main(["train", "--config", str(config(tmp_path, more=more))]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_and_flags_are_judged_together(tmp_path):
    """Flags of one script alone, beside a file that decides for it, are no mistake; and the other way round."""
    path = tmp_path / "a recipe.toml"
    for more, flags in (("network_dim = 2", []), ("", ["--network_dim=2"])):
        path.write_text(f'output_dir = "out"\nlearning_rate = 1e-4\n{more}\n')
        settings = train_command.read(path, ["--scale_weight_norms=1", "--pretrained_model_name_or_path=m", *flags])
        assert settings.script == "train_network.py" and not settings.script_named
        assert not [one for one in settings.findings if one.effect == "raises"]
    settings = train_command.read(path, ["fine_tune.py", "--network_dim=2"])
    assert settings.script == "fine_tune.py" and [one for one in settings.findings if one.effect == "raises"]


def test_nothing_is_started_that_is_refused(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    assert main(["train", "--config", str(config(tmp_path)), "--", "--train_data_dir", str(folder)]) == 2
    printed = capsys.readouterr()
    assert "does not open as a picture" in printed.err
    assert "started" not in printed.out


@pytest.mark.skipif(os.name == "nt", reason="Windows asks for a right to make links")
def test_links_out_of_a_folder_are_followed_where_the_command_says_so(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (folder / "a.png").symlink_to("../a.png")
    flags = ["--", f"--train_data_dir={folder}", "--max_train_steps=1"]
    assert main(["train", "--config", str(config(tmp_path)), *flags]) == 2
    assert "sdnb train --follow-links" in capsys.readouterr().err
    assert main(["train", "--config", str(config(tmp_path)), "--follow-links", *flags]) == 0
    for name in ("x" * 5000, "~nobody-of-that-name/x"):
        assert main(["train", "--config", str(config(tmp_path)), "--", f"--train_data_dir={name}"]) == 2
        assert "does not exist: give a folder" in capsys.readouterr().err


def test_a_last_save_that_fails_is_said_in_its_own_words(tmp_path, capsys, monkeypatch):
    def full(folder, **what):
        raise folders.SaveFailed(errno.ENOSPC, "step 4 was not saved: the disk is full. The last save is none")

    monkeypatch.setattr(folders, "write", full)
    with pytest.warns(RuntimeWarning, match="step 4 was not saved"):
        assert main(["train", "--config", str(config(tmp_path))]) == 1
    assert capsys.readouterr().err == "sdnb: step 4 was not saved: the disk is full. The last save is none\n"


def test_what_is_missing_is_named(tmp_path, capsys):
    assert main(["train"]) == 2
    assert "give a FILE with settings" in capsys.readouterr().err
    assert main(["train", "--", "--learning_rate=1e-4"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("pretrained_model_name_or_path", "output_dir", "train_data_dir"))
    assert main(["train", "--config", str(tmp_path / "none.toml")]) == 2


def test_every_setting_of_sd_scripts_has_one_place():
    """A field of the recipe, or a line among those that change nothing or are refused; with sd-scripts' name, type and default."""
    known, fields = sdnb.sd_scripts.facts()["arguments"], sections.named(sdnb.Recipe)
    places = [fields.keys() - {"others"}, supported.IGNORED.keys(), supported.REFUSED.keys()]
    assert set().union(*places) <= known.keys()
    assert sum(map(len, places)) == len(set().union(*places))
    own = {"lr_scheduler", "lr_warmup_steps", *vars(sdnb.Recipe)["__annotations__"]}  # this course's recipe
    ours = {"caption_extension", "save_model_as", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps"}  # None: it depends
    for name in fields.keys() - own:
        default = sdnb.sd_scripts.arguments.default(name)
        assert fields[name].default == default or fields[name].default == () or name in ours, name
        kinds = {"flag": bool, "int": int, "float": float, "str": str, "int_or_float": float}
        wanted = kinds[known[name][0]["type"]]
        assert (tuple[wanted, ...] if known[name][0].get("many") else wanted) in sections.types_of(sdnb.Recipe)[name], name


def test_what_is_ignored_and_what_differs_is_said_once_for_each_reason():
    recipe = sdnb.Recipe(
        mixed_precision="fp16", optimizer_type="AdamW8bit", train_batch_size=1, others={"sdpa": True, "xformers": True, "v2": True}
    )
    assert supported.ignored(recipe) == [f"sdpa, xformers: {supported.OWN}", f"v2: {supported.IGNORED['v2']}"]
    assert supported.differences(recipe, "cuda") == []
    on_cpu, any_device = supported.differences(recipe, "cpu"), supported.differences(recipe)
    assert [line.partition(":")[0] for line in on_cpu] == ["mixed_precision"]
    assert any_device == [line.replace(": ", ": on a CPU, ", 1) for line in on_cpu]
    assert supported.differences(sdnb.Recipe(train_batch_size=1, optimizer_type="AdamW", optimizer_args=())) == []
    idle = sdnb.Recipe(others={"noise_offset_random_strength": True, "adaptive_noise_scale": 0.1, "dynamo_backend": "no"})
    assert supported.ignored(idle) == [
        "noise_offset_random_strength, adaptive_noise_scale: it only acts with noise_offset",
        "dynamo_backend: it only acts with torch_compile",
    ]
    assert supported.ignored(idle.replace(others={"noise_offset_random_strength": True, "noise_offset": 0.1})) == []
    names = {row.name for row in (*supported.DIFFERS, *supported.IDLE)}
    assert names <= sdnb.sd_scripts.facts()["arguments"].keys()
    assert {row.on for row in supported.DIFFERS} <= {"", "cpu", "cuda"}


def test_epochs_are_counted_in_optimizer_steps(tiny, tmp_path):
    recipe = train_command.parse(config(tmp_path), ["--max_train_epochs=3", "--gradient_accumulation_steps=2", "--train_batch_size=10"])
    assert cache.steps(tiny, sdnb.pictures("emoji-ink"), recipe) == 3 * 4  # 64 pictures in 7 batches, two of them a step
    assert cache.steps(tiny, sdnb.pictures("emoji-ink"), recipe, processes=2) == 3 * 2


def test_repeats_and_buckets_count_and_the_file_says_so(tiny, tmp_path, capsys):
    """Folders named N_words, as sd-scripts has them: each bucket has batches of its own."""
    for folder, colours, size in (("3_a fox", ["red", "brown"], (64, 64)), ("2_ink", ["black"], (128, 32)), ("notes", ["blue"], (64, 64))):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for colour in colours:
            Image.new("RGB", size, colour).save(tmp_path / "data" / folder / f"{colour}.png")
    (tmp_path / "data" / "3_a fox" / "red.tags").write_text("Red, Fox", encoding="utf-8")
    path = tmp_path / "recipe.toml"
    text = TOML.format(folder=str(tmp_path / "out"), batch=4).replace('"emoji-ink"', repr(str(tmp_path / "data"))).replace("32,32", "64")
    more = "max_train_epochs = 1\nenable_bucket = true\ncaption_extension = '.tags'\ntraining_comment = 'mine'\nnetwork_dropout = 0.1\n"
    path.write_text(text + more, encoding="utf-8")
    job = Job(train_command.parse(path, []))
    found = sdnb.pictures(tmp_path / "data", caption_extension=".tags")
    assert sorted((one.caption, one.repeats) for one in found) == [("Red, Fox", 3), ("a fox", 3), ("ink", 2)]
    assert cache.steps(tiny, found, job.recipe) == 2 + 1  # six squares in two batches of four, two wide ones in another
    assert main(["train", "--config", str(path), "--json"]) == 0
    assert [line["steps"] for line in steps(capsys.readouterr().out)] == [3] * 3
    with safe_open(tmp_path / "out" / "inky.safetensors", framework="pt") as file:
        told = file.metadata()
    expected = {
        "ss_learning_rate": "0.001", "ss_lr_scheduler": "constant_with_warmup", "ss_lr_warmup_steps": "2", "ss_seed": "7",
        "ss_optimizer": "AdamW", "ss_max_train_steps": "3", "ss_steps": "3", "ss_epoch": "1", "ss_num_epochs": "1",
        "ss_num_train_images": "8", "ss_num_batches_per_epoch": "3", "ss_network_dropout": "0.1", "ss_network_dim": "2",
        "ss_resolution": "(64, 64)", "ss_batch_size_per_device": "4", "ss_total_batch_size": "4", "ss_enable_bucket": "True",
        "ss_training_comment": "mine", "ss_sd_model_name": "tiny", "ss_unet_lr": "None", "modelspec.resolution": "64x64",
    }  # fmt: skip
    assert {name: told.get(name) for name in expected} == expected
    assert json.loads(told["ss_dataset_dirs"]) == {"2_ink": {"n_repeats": 2, "img_count": 1}, "3_a fox": {"n_repeats": 3, "img_count": 2}}
    assert json.loads(told["ss_tag_frequency"])["3_a fox"] == {"red": 1, "fox": 1, "a fox": 1}
    assert float(told["ss_training_started_at"]) < float(told["ss_training_finished_at"])
    kept = sdnb.Recipe.parse(tmp_path / "out" / "inky.safetensors")  # the settings, out of the file
    lost = dict.fromkeys(("pretrained_model_name_or_path", "train_data_dir", "output_dir", "save_every_n_steps", "caption_extension"))
    lost |= dict.fromkeys(("min_bucket_reso", "max_bucket_reso"))
    counted = {"max_train_epochs": None, "max_train_steps": 3}
    assert vars(kept.replace(**lost)) | {"others": ()} == vars(job.recipe.replace(**lost, **counted)) | {"others": ()}  # but for sdpa


def test_a_dataset_file_wins_over_folders_and_its_datasets_are_told(tmp_path, capsys):
    for name, colours in {"a": ["red", "blue"], "b": ["grey"]}.items():
        (tmp_path / name).mkdir()
        for colour in colours:
            Image.new("RGB", (64, 64), colour).save(tmp_path / name / f"{colour}.png")
    subsets = [f"[[datasets.subsets]]\nimage_dir = {str(tmp_path / name)!r}\n" for name in "ab"]
    text = f"[[datasets]]\nresolution = 64\n{subsets[0]}flip_aug = true\n[[datasets]]\nresolution = 32\nbatch_size = 3\n{subsets[1]}"
    (tmp_path / "data.toml").write_text(text, encoding="utf-8")
    path = config(tmp_path, more=f"dataset_config = {str(tmp_path / 'data.toml')!r}\nreg_data_dir = 'nowhere'\nmax_train_epochs = 1\n")
    assert main(["train", "--config", str(path), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"event": "ignored", "setting": "train_data_dir, reg_data_dir: the dataset file says which pictures there are"} in lines
    with safe_open(tmp_path / "out" / "inky.safetensors", framework="pt") as file:
        told = file.metadata()
    first, second = json.loads(told["ss_datasets"])
    assert (first["resolution"], first["num_train_images"], first["batch_size_per_device"]) == ([64, 64], 2, 2)
    assert (second["resolution"], second["num_train_images"], second["batch_size_per_device"]) == ([32, 32], 1, 3)
    assert (first["subsets"][0]["image_dir"], first["subsets"][0]["flip_aug"], first["subsets"][0]["img_count"]) == ("a", True, 2)
    assert "ss_resolution" not in told
    assert told["ss_num_batches_per_epoch"] == "2"


def test_a_job_with_regularization_pictures(tmp_path, capsys):
    for folder, colours in {"own/3_a fox": ["red"], "reg/1_fox": ["brown", "grey"]}.items():
        (tmp_path / folder).mkdir(parents=True)
        for colour in colours:
            Image.new("RGB", (32, 32), colour).save(tmp_path / folder / f"{colour}.png")
    path = config(tmp_path, more=f"reg_data_dir = {str(tmp_path / 'reg')!r}\nprior_loss_weight = 0.5\nmax_train_epochs = 1\n")
    path.write_text(path.read_text(encoding="utf-8").replace('"emoji-ink"', repr(str(tmp_path / "own"))), encoding="utf-8")
    assert main(["train", "--config", str(path), "--json"]) == 0
    assert len(steps(capsys.readouterr().out)) == 3  # three times the fox and three times another
    with safe_open(tmp_path / "out" / "inky.safetensors", framework="pt") as file:
        told = file.metadata()
    # regularization pictures as they were found, as sd-scripts counts them
    assert (told["ss_num_train_images"], told["ss_num_reg_images"], told["ss_prior_loss_weight"]) == ("3", "2", "0.5")
    assert json.loads(told["ss_reg_dataset_dirs"]) == {"1_fox": {"n_repeats": 1, "img_count": 2}}
    # once more: it is done
    assert main(["train", "--config", str(path), "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["note"] == "all its steps were done before, nothing was trained"


@pytest.mark.long
def test_two_processes_are_one_run(tmp_path, capsys, monkeypatch):
    """The same global batch gives the same losses and rates, and one set of files; interrupted and started again as well."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # before CUDA is first asked for, or the single run has a GPU that the two have not
    assert main(["train", "--config", str(config(tmp_path, batch=2)), "--json"]) == 0
    single = steps(capsys.readouterr().out)
    (tmp_path / "two").mkdir()
    path = config(tmp_path / "two", batch=1)
    # --multi_gpu is what makes it start processes at all; without a GPU they talk through gloo
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "-m",
        "sdnb",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def launched(*more):
        command = [*launch, "train", "--config", str(path), "--json", *more]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert result.returncode == 0, result.stderr[-3000:]
        return steps("\n".join(line for line in result.stdout.splitlines() if line.startswith("{")))

    first = launched("--", "--max_train_steps=2")
    second = launched()
    both = first + second
    assert [line["step"] for line in both] == [1, 2, 3, 4]
    assert [line["loss"] for line in both] == pytest.approx([line["loss"] for line in single], rel=1e-4)
    assert [line["learning_rate"] for line in both] == [line["learning_rate"] for line in single]
    out = tmp_path / "two" / "out"
    assert sorted(one.name for one in out.iterdir()) == [
        "inky-saves",
        "inky-step00000002.safetensors",
        "inky-step00000004.safetensors",
        "inky.safetensors",
    ]
    assert [one.name for one in folders.found(out / "inky-saves")] == ["step-00000002", "step-00000004"]
    assert len(list((out / "inky-saves").glob("[!.]*"))) == 2


@pytest.mark.parametrize("name", ["inky.safetensors", "inky-step00000002.safetensors", "inky-000001.safetensors"])
def test_a_lora_of_another_program_is_not_written_over(name, tmp_path, capsys):
    """A job with saves of its own may be started again; a file without any may be somebody's only one."""
    path, file = config(tmp_path), tmp_path / "out" / name
    file.parent.mkdir()
    file.write_bytes(b"mine")
    assert main(["train", "--config", str(path), "--check"]) == 2
    assert f"{name} exists, and no save of this job lies beside it" in capsys.readouterr().out
    assert file.read_bytes() == b"mine"
    Job(train_command.parse(path, ["--output_name=ink"]))


def test_a_file_that_a_killed_job_did_not_write_is_written_when_it_goes_on(tmp_path, monkeypatch):
    path, out = config(tmp_path), tmp_path / "out"
    whole = list(Job(train_command.parse(path, [f"--output_dir={tmp_path / 'whole'}"])).run())

    def killed(*args):
        raise SystemExit

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Job, "_store", killed)
        list(Job(train_command.parse(path, [])).run())
    assert [one.name for one in folders.found(out / "inky-saves")] == ["step-00000002"]
    for name in (".inky-step00000002.safetensors.99999999.partial", ".inky.99999999.partial", ".mine.99999999.partial", ".mine.partial"):
        (out / name).touch()
    rest = list(Job(train_command.parse(path, [])).run())
    assert [(step.index, step.loss) for step in rest] == [(step.index, step.loss) for step in whole[2:]]
    files = ["inky-step00000002.safetensors", "inky-step00000004.safetensors", "inky.safetensors"]
    assert sorted(one.name for one in out.iterdir()) == [
        ".inky.99999999.partial",
        ".mine.99999999.partial",
        ".mine.partial",
        "inky-saves",
        *files,
    ]
    for name in files:
        mine, theirs = load_file(out / name), load_file(tmp_path / "whole" / name)
        assert mine.keys() == theirs.keys() and all(mine[key].equal(theirs[key]) for key in mine)
    # a run that ended there and is made longer misses nothing
    (out / "inky-step00000002.safetensors").unlink()
    list(Job(train_command.parse(path, ["--max_train_steps=6"])).run())
    assert sorted(one.name for one in out.glob("inky-step*")) == ["inky-step00000004.safetensors", "inky-step00000006.safetensors"]
