"""The figures that the doctor shows for attention by whole matrices are the planner's."""

import pytest

from sdnb import Recipe, diagnose, plan
from sdnb.doctor import attention

GIB = 2**30


@pytest.mark.long
@pytest.mark.parametrize(("model", "lora", "recomputes"), attention.RESERVED)
def test_the_planner_says_the_same(model, lora, recomputes):
    settings = {
        "optimizer_type": "AdamW8bit",
        "optimizer_args": (),
        "train_batch_size": 1,
        "mixed_precision": "bf16",
        "cache_latents": True,
    }
    if lora:
        settings |= {"network_module": "networks.lora", "network_dim": 16, "network_train_unet_only": True}
        settings |= {"cache_text_encoder_outputs": model == "sdxl"}
    recipe = Recipe(**settings, gradient_checkpointing=recomputes, resolution=attention.SIDES[model])
    whole = plan(model, recipe, trainer="sd-scripts").reserved_bytes / GIB
    fused = plan(model, Recipe(**settings, gradient_checkpointing=recomputes, resolution=attention.SIDES[model], others={"sdpa": True}),
                 trainer="sd-scripts").reserved_bytes / GIB  # fmt: skip
    assert (whole, fused) == pytest.approx(attention.RESERVED[model, lora, recomputes], abs=0.06)


def test_a_command_without_a_flag_is_told_what_that_costs():
    command = "accelerate launch sdxl_train_network.py --pretrained_model_name_or_path=m --network_module=networks.lora"
    (found,) = [one for one in diagnose(command).findings if one.rule == "attention-unsaid"]
    whole, fused = attention.RESERVED["sdxl", True, False]
    assert f"LoRA of SDXL, {whole} GiB instead of {fused} for one picture of 1024 pixels" in found.what
    other = diagnose("accelerate launch train_textual_inversion.py --pretrained_model_name_or_path=m --token_string=x").findings
    assert next(one.what for one in other if one.rule == "attention-unsaid").endswith("builds its whole matrix.")
