"""The files of a job: models at epochs and steps, older ones deleted, samples, and all of them after a kill at any moment."""

import json

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from sdnb import jobs, train_command
from sdnb.jobs import Job
from sdnb.saves import folders
from sdnb.sd_scripts import supported

FLAGS = (
    "--pretrained_model_name_or_path=tiny --resolution=32 --train_batch_size=2 --max_train_steps=7 --optimizer_type=AdamW "
    "--learning_rate=1e-3 --seed=3 --lr_scheduler=constant"
)
LORA = "--network_module=networks.lora --network_dim=2 --network_train_unet_only"


@pytest.fixture
def data(tmp_path):
    """Five pictures: three batches of two are an epoch."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, colour in enumerate(["red", "blue", "green", "black", "white"]):
        Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
    return folder


def job(tmp_path, *flags, kind=LORA, out="out"):
    return Job(
        train_command.parse(
            None, [*FLAGS.split(), *kind.split(), f"--train_data_dir={tmp_path / 'data'}", f"--output_dir={tmp_path / out}", *flags]
        )
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_lora_is_saved_at_epochs_and_steps_by_sd_scripts_names(tmp_path, data):
    steps = list(job(tmp_path, "--save_every_n_epochs=1", "--save_every_n_steps=5").run())
    out = tmp_path / "out"
    assert names(out) == [
        "at-step00000005.safetensors",
        "epoch-000001.safetensors",
        "epoch-000002.safetensors",
        "last-saves",
        "last.safetensors",
    ]
    assert [step.index + 1 for step in steps if step.saved] == [3, 5, 6, 7]
    for name, epoch, done in (("at-step00000005", "1", "5"), ("epoch-000002", "2", "6"), ("last", "3", "7")):
        with safe_open(out / f"{name}.safetensors", framework="pt") as file:
            notes = file.metadata()
        assert (notes["ss_epoch"], notes["ss_steps"], notes["ss_num_epochs"]) == (epoch, done, "3")
    first, second = load_file(out / "epoch-000001.safetensors"), load_file(out / "epoch-000002.safetensors")
    assert any(not first[name].equal(second[name]) for name in first)


def test_older_files_go_and_saves_of_the_run_with_them(tmp_path, data):
    flags = ("--output_name=fox", "--save_every_n_epochs=1", "--save_last_n_epochs=1", "--save_state", "--max_train_epochs=4")
    list(job(tmp_path, *flags).run())
    assert names(tmp_path / "out") == ["fox-000003.safetensors", "fox-saves", "fox.safetensors"]
    assert [path.name for path in folders.found(tmp_path / "out" / "fox-saves")] == ["step-00000009", "step-00000012"]
    list(job(tmp_path, *flags[:2], "--save_state", "--max_train_epochs=3", out="all").run())
    assert len(folders.found(tmp_path / "all" / "fox-saves")) == 3


def weights(path):
    return load_file(path / "unet" / "diffusion_pytorch_model.safetensors" if path.is_dir() else path)


@pytest.mark.parametrize(("form", "ending"), [("safetensors", ".safetensors"), ("diffusers", "")])
def test_a_whole_model_is_saved_at_epochs_and_steps(tmp_path, data, form, ending):
    flags = ("--output_name=fox", f"--save_model_as={form}", "--save_every_n_epochs=1", "--save_every_n_steps=2", "--save_last_n_steps=1")
    list(job(tmp_path, *flags, "--max_train_steps=4", kind="").run())
    out = tmp_path / "out"
    assert names(out) == sorted([f"fox-000001{ending}", f"fox-step00000004{ending}", f"fox{ending}", "fox-saves"])
    epoch, end = (weights(out / f"{name}{ending}") for name in ("fox-000001", "fox"))
    assert epoch.keys() == end.keys() and any(not epoch[name].equal(end[name]) for name in end)
    # a longer run would write fox, which is there; one that begins anew would write fox-000001
    with pytest.raises(ValueError, match=r"fox.* exists"):
        job(tmp_path, *flags, "--max_train_steps=9", kind="")
    (out / f"fox{ending}").rename(out / "mine")
    with pytest.raises(ValueError, match=r"fox-000001.* exists"):
        job(tmp_path, *flags, "--max_train_steps=4", kind="").run(resume=False)
    assert len(list(job(tmp_path, *flags, "--max_train_steps=5", kind="").run())) == 1


class Killed(BaseException):
    """As the operating system ends a process."""


@pytest.mark.parametrize(
    ("kind", "moment"), [(LORA, "before the model"), (LORA, "before the deletion"), ("", "in the model")], ids=lambda value: value[:12]
)
def test_a_job_that_was_killed_loses_and_doubles_nothing(tmp_path, data, monkeypatch, kind, moment):
    flags = ("--output_name=fox", "--save_model_as=safetensors", "--save_every_n_epochs=1", "--save_last_n_epochs=1", "--max_train_steps=8")
    whole = list(job(tmp_path, *flags, kind=kind, out="whole").run())
    store, delete = Job._store, jobs._delete

    def stored(self, sd, path, notes):
        if path.name.startswith("fox-000002") and moment != "before the deletion":
            if moment == "in the model":
                path.with_name(f".{path.name}.99999999.partial").touch()
            raise Killed
        return store(self, sd, path, notes)

    def deleted(path):
        if moment == "before the deletion" and path.name.startswith("fox-000001"):
            raise Killed
        return delete(path)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Job, "_store", stored)
        patched.setattr(jobs, "_delete", deleted)
        list(job(tmp_path, *flags, kind=kind).run())
    assert (tmp_path / "out" / "fox-000001.safetensors").exists()
    rest = list(job(tmp_path, *flags, kind=kind).run())
    assert [step.loss for step in rest] == [step.loss for step in whole[6:]]
    assert (
        sorted(path.name for path in (tmp_path / "out").iterdir())
        == names(tmp_path / "whole")
        == [
            "fox-000002.safetensors",
            "fox-saves",
            "fox.safetensors",
        ]
    )
    for name in ("fox-000002", "fox"):
        mine, theirs = (load_file(tmp_path / out / f"{name}.safetensors") for out in ("out", "whole"))
        assert all(mine[key].equal(theirs[key]) for key in theirs)


def test_samples_go_where_sd_scripts_puts_them_and_change_nothing(tmp_path, data, monkeypatch):
    (tmp_path / "p.txt").write_text("a fox --w 64 --h 64 --s 2 --d 5\na cat --s 1 --w 64 --h 80\n", encoding="utf-8")
    asked = (f"--sample_prompts={tmp_path / 'p.txt'}", "--sample_sampler=euler_a", "--sample_at_first")
    plain = list(job(tmp_path, out="plain").run())
    steps = list(job(tmp_path, "--output_name=fox", *asked, "--sample_every_n_epochs=1").run())
    assert [step.loss for step in steps] == [step.loss for step in plain]
    assert [len(step.drawn) for step in steps] == [2, 0, 2, 0, 0, 2, 2]
    drawn = [path.name for step in steps for path in step.drawn]
    shapes = [f"fox_e{epoch:06d}_{place:02d}_" for epoch in range(4) for place in range(2)]
    assert all(name.startswith(shape) for name, shape in zip(drawn, shapes, strict=True))
    assert [name.endswith("_5.png") for name in drawn] == [True, False] * 4
    assert Image.open(tmp_path / "out" / "sample" / drawn[1]).size == (64, 80)
    # a sample that a killed job did not draw is drawn when it goes on, and no other
    for name in drawn[-2:]:
        (tmp_path / "out" / "sample" / name).unlink()
    assert not list(job(tmp_path, "--output_name=fox", *asked, "--sample_every_n_epochs=1").run())
    assert len(names(tmp_path / "out" / "sample")) == 8
    # by steps, without a name
    steps = list(job(tmp_path, asked[0], "--sample_every_n_steps=3", "--max_train_steps=3", out="steps").run())
    assert [path.name[:10] for path in steps[2].drawn] == ["000003_00_", "000003_01_"]


def test_samples_are_drawn_with_parts_that_are_away(tmp_path, data):
    (tmp_path / "p.json").write_text(json.dumps([{"prompt": "a fox", "width": 64, "height": 64, "sample_steps": 1}]), encoding="utf-8")
    flags = ("--cache_latents", "--cache_text_encoder_outputs", f"--sample_prompts={tmp_path / 'p.json'}", "--sample_every_n_steps=1")
    assert [len(step.drawn) for step in job(tmp_path, *flags, "--max_train_steps=1").run()] == [1]


def notes(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_file_says_what_the_recipe_wants_it_to_say(tmp_path, data):
    list(job(tmp_path, "--metadata_title=A fox", "--metadata_license=CC0", "--max_train_steps=1").run())
    told = notes(tmp_path / "out" / "last.safetensors")
    assert (told["modelspec.title"], told["modelspec.license"], told["ss_learning_rate"]) == ("A fox", "CC0", "0.001")
    list(job(tmp_path, "--no_metadata", "--max_train_steps=1", out="bare").run())
    bare = notes(tmp_path / "bare" / "last.safetensors")
    assert bare["ss_network_dim"] == "2" and not {"ss_learning_rate", "ss_tag_frequency", "ss_dataset_dirs"} & bare.keys()


def test_what_a_job_does_otherwise_is_said(tmp_path, data):
    whole = job(tmp_path, "--save_model_as=ckpt", "--save_precision=fp16", "--huggingface_repo_id=me/fox", kind="")
    assert whole.result.name == "last.safetensors"
    assert any("never a pickle" in line for line in supported.differences(whole.recipe))
    assert supported.ignored(whole.recipe) == ["huggingface_repo_id: nothing is uploaded: the files are in output_dir"]
    folder = job(tmp_path, "--save_model_as=diffusers", "--save_precision=fp16", kind="").recipe
    assert any("keeps the precision" in line for line in supported.differences(folder))
    (tmp_path / "p.txt").write_text("a fox", encoding="utf-8")
    for name, said in {"p.txt": "first 75 tokens", "none.txt": "no such file"}.items():
        asked = job(tmp_path, f"--sample_prompts={tmp_path / name}", "--sample_at_first").recipe
        assert any(said in line for line in supported.differences(asked))


def test_no_token_is_saved_or_shown(tmp_path, data):
    told = job(tmp_path, "--huggingface_token=hf_secret", "--max_train_steps=1")
    list(told.run())
    assert "hf_secret" not in repr(told.recipe)
    assert not any(b"hf_secret" in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
