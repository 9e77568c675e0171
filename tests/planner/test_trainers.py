"""Plans for other trainers, held to what their own code was recorded to need (`benchmarks.record_memory`)."""

import json

import pytest

from benchmarks.printed_commands import commands, recorded
from sdnb import Recipe
from sdnb.planner import least_bytes, plan, train_command, trainers
from sdnb.planner.search import fastest

from ..conftest import ROOT

RECORDED = json.loads((ROOT / "tests/recorded/memory_of_sd_scripts.json").read_text(encoding="utf-8"))["rows"]
TELLING = (
    ("train_network", 1, "--mixed_precision=bf16 --optimizer_type=AdamW --sdpa --gradient_checkpointing"),
    ("train_network", 1, "--mixed_precision=no --optimizer_type=AdamW"),
    ("sdxl_train", 1, "--full_bf16 --optimizer_type=Adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False"
     " --max_grad_norm=0 --fused_backward_pass --cache_text_encoder_outputs --sdpa --gradient_checkpointing"),
)  # fmt: skip
"""Rows that the suite plans; `python -m benchmarks.planner --only sd-scripts` plans all."""


LORA = "--network_module=networks.lora --network_dim=4 --network_train_unet_only --cache_latents --sdpa"


def row_of(script, batch, ending):
    rows = (row for row in RECORDED if row["script"] == script and row["batch"] == batch)
    return next(row for row in rows if row["flags"].endswith(ending))


@pytest.mark.parametrize("telling", TELLING, ids=lambda telling: telling[0])
def test_sd_scripts_needs_what_it_was_recorded_to_need(telling):
    row = row_of(*telling)
    recipe = Recipe.parse(f"--cache_latents --train_batch_size={row['batch']} {row['flags']}")
    made = plan(row["model"], recipe, resolution=row["side"], trainer="sd-scripts", attention="flash")
    assert made.trained == row["trained"]
    assert made.peak_bytes - made.by_category["workspaces"] == pytest.approx(row["peak"], rel=0.01)
    peaks = dict(made.peaks)
    if recipe.fused_backward_pass:  # recorded is what ran in backward, the optimizer's steps included
        peaks["backward"] = max(peaks["backward"], peaks["optimizer"])
    for phase, size in row["phases"].items():
        assert peaks[phase] - made.by_category["workspaces"] == pytest.approx(size, rel=0.01), phase
    assert made.trainer == made.as_dict()["trainer"] == "sd-scripts"


@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor"])
@pytest.mark.parametrize("method", ["", LORA])
def test_a_lower_bound_is_below_the_plan(optimizer, method):
    arguments = "--optimizer_args relative_step=False scale_parameter=False warmup_init=False" if optimizer == "Adafactor" else ""
    recipe = Recipe.parse(f"--optimizer_type={optimizer} --train_batch_size=1 --sdpa {arguments} {method}")
    least, made = least_bytes("tiny", recipe, trainer="sd-scripts"), plan("tiny", recipe, resolution=64, trainer="sd-scripts")
    assert 0 < least < made.peak_bytes


def sizes(trainer, flags, **changes):
    recipe = Recipe.parse(f"--train_batch_size=2 --optimizer_type=AdamW --mixed_precision=bf16 {flags}").replace(**changes)
    return plan("tiny", recipe, resolution=64, trainer=trainer)


def test_settings_without_effect_there_are_planned_without_and_told():
    plain = sizes("sd-scripts", LORA + " --max_grad_norm=0")
    fused = sizes("sd-scripts", LORA + " --max_grad_norm=0 --fused_backward_pass")
    assert fused.peak_bytes == plain.peak_bytes and not plain.note
    assert "train_network.py takes fused_backward_pass and does nothing with it" in fused.note
    cached = sizes("sd-scripts", LORA + " --max_grad_norm=0 --cache_text_encoder_outputs")
    assert cached.peak_bytes == plain.peak_bytes and "the text encoder stays on the card" in cached.note
    whole = sizes("sd-scripts", "--full_bf16 --cache_latents")
    assert whole.dtype == "fp32" and "full_bf16" in whole.note


def test_without_a_flag_for_attention_sd_scripts_computes_whole_matrices():
    flags = LORA.replace(" --sdpa", "")
    whole, chunked, fused = (sizes("sd-scripts", flags + more).peak_bytes for more in ("", " --mem_eff_attn", " --sdpa"))
    assert whole > chunked and whole > fused
    assert sizes("diffusers", flags).peak_bytes == sizes("diffusers", LORA).peak_bytes  # torch's attention by itself


def test_the_frozen_parts_are_in_the_mixed_precision():
    low, high = (
        sizes("sd-scripts", f"{LORA} --mixed_precision={mixed}".replace("--mixed_precision=bf16 ", "")) for mixed in ("bf16", "no")
    )
    assert (low.dtype, high.dtype) == ("bf16", "fp32")
    assert low.by_category["weights"] < 0.6 * high.by_category["weights"]


def test_diffusers_scripts_train_the_attention_projections_alone():
    ours, theirs = (sizes(trainer, LORA) for trainer in ("sdnb", "diffusers"))
    assert theirs.trained < ours.trained


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(trainer="sd_scripts"), "there are sdnb, sd-scripts, diffusers"),
        (dict(trainer="sd-scripts", checkpointing="full"), "gradient_checkpointing=True alone"),
        (dict(trainer="sd-scripts", dtype="bf16"), "leave dtype= out"),
    ],
)
def test_what_a_trainer_does_not_have_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan("tiny", Recipe(), **changes)


def test_every_trainer_has_a_kernel_for_every_flag():
    for trainer in trainers.OTHERS.values():
        assert set(trainer.kernels) == {*trainers.ATTENTION, ""}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_command_for_sd_scripts_asks_for_what_was_planned(method):
    planned = fastest("tiny", "t4", method=method, trainer="sd-scripts", rank=4)
    command = train_command(planned)
    assert command.startswith(f"accelerate launch {planned.script}") and planned.fits
    assert "--sdpa" in command and "--resolution=64" in command
    assert planned.script == ("train_network.py" if method == "lora" else "train_db.py")
    again = plan("tiny", Recipe.parse(command), gpu="t4", trainer="sd-scripts")
    assert (again.peak_bytes, again.note) == (planned.peak_bytes, planned.note)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_command_for_diffusers_clips_and_caches_nothing(method):
    planned = fastest("tiny", "t4", method=method, trainer="diffusers", rank=4)
    command = train_command(planned)
    assert command.startswith(f"accelerate launch {planned.script} ") and planned.fits and not planned.note
    assert "--max_grad_norm=1 " in command and ("--rank=4" in command) == (method == "lora")
    assert not planned.recipe.caches_latents and planned.by_module["vae.encoder"] > 0
    with pytest.raises(ValueError, match="0 too"):
        train_command(plan("tiny", planned.recipe.replace(max_grad_norm=0.0), trainer="diffusers"))


def test_where_nothing_fits_the_fastest_is_the_closest():
    closest = fastest("tiny", 2**20, trainer="diffusers")
    assert closest.verdict == "does not fit" and closest.recipe.gradient_checkpointing


@pytest.mark.parametrize("trainer", trainers.OTHERS)
def test_every_command_that_fit_may_print_was_run_by_its_trainer(trainer):
    outcomes = recorded()[trainer]
    printed = set(commands(trainer))
    assert printed and printed <= outcomes.keys(), "run python -m benchmarks.printed_commands"
    assert {outcomes[command] for command in printed} == {"trains" if trainer == "sd-scripts" else "parsed"}


DIFFUSERS = json.loads((ROOT / "tests/recorded/memory_of_diffusers.json").read_text(encoding="utf-8"))["rows"]
PARTS = {"train_text_to_image_sdxl": "--cache_latents --cache_text_encoder_outputs", "train_text_to_image_lora_sdxl": "--no_half_vae"}


@pytest.mark.parametrize(
    "row", [one for one in DIFFUSERS if one["batch"] * (1 + one["prior"]) in (2, 4)][::2], ids=lambda row: row["script"]
)
def test_diffusers_scripts_need_what_they_were_recorded_to_need(row):
    pictures, flags = row["batch"] * (1 + row["prior"]), [PARTS.get(row["script"], ""), "--max_grad_norm=1"]
    flags += ["--network_module=networks.lora --network_dim=4 --network_alpha=4 --network_train_unet_only"] * ("lora" in row["script"])
    flags += ["--gradient_checkpointing"] * row["gradient_checkpointing"] + [f"--optimizer_type={row['optimizer']}"]
    recipe = Recipe.parse(" ".join([*flags, f"--mixed_precision={row['mixed_precision']} --train_batch_size={pictures}"]))
    made = plan(row["model"], recipe, trainer="diffusers", attention="flash")
    assert made.trained == row["trained"]
    assert made.peak_bytes - made.by_category["workspaces"] == pytest.approx(row["peak"], rel=0.005)
    for phase, size in row["phases"].items():
        assert made.peaks[phase] - made.by_category["workspaces"] == pytest.approx(size, rel=0.005), phase
