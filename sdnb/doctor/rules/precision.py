"""Rules about precision and memory: mixed precision, attention, checkpointing, accumulation and the fused backward pass."""

from __future__ import annotations

from ...sd_scripts import NETWORK, SDXL, TEXTUAL_INVERSION, arguments
from .. import attention, networks
from ..conditions import values_if
from .rule import FULL, Rule, ran, read

SWAP_ERRORS = (
    Rule(
        name="swap-and-offload",
        effect="raises",
        scripts=networks.SWAPPERS,
        when=lambda o: values_if(o.has("blocks_to_swap") and o.has("cpu_offload_checkpointing")),
        what="AssertionError: blocks_to_swap is not supported with cpu_offload_checkpointing.",
        why="Both move a block's tensors between the devices.",
        fix="Leave one of the two out.",
        source=ran("flux_train.py:81", lesson="03"),
    ),
)
MODEL_ERRORS = (
    Rule(
        name="precision-unknown",
        effect="raises",
        when=lambda o: values_if(o["mixed_precision"] not in ("no", "fp16", "bf16"), mixed_precision=o["mixed_precision"]),
        what="ValueError: accelerate does not know mixed_precision {mixed_precision!r}.",
        why="A TOML file is not checked for choices.",
        fix='mixed_precision = "bf16", "fp16" or "no"',
        source=ran("library/train_util.py:5496"),
    ),
    Rule(
        name="offload-unsupported",
        effect="raises",
        scripts=(*NETWORK, "sd3_train_network.py"),
        when=lambda o: values_if(o.has("cpu_offload_checkpointing") and o["gradient_checkpointing"]),
        what="TypeError: the model's enable_gradient_checkpointing takes no cpu_offload.",
        why="Only FLUX, Lumina, HunyuanImage and Anima can offload checkpoints to the CPU.",
        fix="Leave cpu_offload_checkpointing out.",
        changes=lambda o: {"cpu_offload_checkpointing": None},
        source=ran("train_network.py:718", lesson="03"),
    ),
)
FUSED_ERRORS = (
    Rule(
        name="fused-needs-adafactor",
        effect="raises",
        when=lambda o: values_if(o["fused_backward_pass"] and not o.is_adafactor),
        what="AssertionError: fused_backward_pass currently only works with optimizer_type Adafactor.",
        why="sd-scripts can step one parameter at a time only with Adafactor.",
        fix='Leave it out, or --optimizer_type="Adafactor".',
        changes=lambda o: {"fused_backward_pass": None},
        source=ran("library/train_util.py:4850", lesson="05"),
    ),
    Rule(
        name="fused-accumulation",
        effect="raises",
        when=lambda o: values_if(o["fused_backward_pass"] and o["gradient_accumulation_steps"] != 1),
        what="AssertionError: fused_backward_pass does not work with gradient_accumulation_steps > 1.",
        why="It frees each gradient as soon as its parameter is updated, so there is nothing left to add the next batch to.",
        fix="--gradient_accumulation_steps=1",
        changes=lambda o: {"gradient_accumulation_steps": 1},
        source=ran("library/train_util.py:4853", lesson="05"),
    ),
)
ERRORS = (
    Rule(
        name="full-fp16-alone",
        effect="raises",
        scripts=TEXTUAL_INVERSION,
        when=lambda o: values_if(o["full_fp16"] and o["mixed_precision"] != "fp16"),
        what="AttributeError: full_fp16 without mixed_precision=fp16: there are no scaled gradients to unscale.",
        why="The script does not check this, and patches a gradient scaler that accelerate makes only for fp16.",
        fix="--mixed_precision=fp16",
        changes=lambda o: {"mixed_precision": "fp16"},
        source=ran("library/train_util.py:5600", lesson="02"),
    ),
    Rule(
        name="full-fp16",
        effect="raises",
        scripts=(*NETWORK, *FULL),
        when=lambda o: values_if(o["full_fp16"] and o["mixed_precision"] != "fp16"),
        what="AssertionError: full_fp16 requires mixed precision='fp16'.",
        why="Weights and gradients are kept in the precision that mixed_precision names.",
        fix="--mixed_precision=fp16",
        changes=lambda o: {"mixed_precision": "fp16"},
        source=ran("train_network.py:815", lesson="02"),
    ),
    Rule(
        name="full-bf16",
        effect="raises",
        scripts=(*NETWORK, "sdxl_train.py"),
        when=lambda o: values_if(o["full_bf16"] and not o["full_fp16"] and o["mixed_precision"] != "bf16"),
        what="AssertionError: full_bf16 requires mixed precision='bf16'.",
        why="Weights and gradients are kept in the precision that mixed_precision names.",
        fix="--mixed_precision=bf16",
        changes=lambda o: {"mixed_precision": "bf16"},
        source=ran("train_network.py:821", lesson="02"),
    ),
    Rule(
        name="fp8-base",
        effect="raises",
        scripts=NETWORK,
        when=lambda o: values_if((o["fp8_base"] or o["fp8_base_unet"]) and o["mixed_precision"] == "no"),
        what="AssertionError: fp8_base requires mixed precision='fp16' or 'bf16'.",
        why="fp8 only stores the frozen weights; the arithmetic needs another precision. torch 2.1 or newer is needed too.",
        fix="--mixed_precision=bf16",
        changes=lambda o: {"mixed_precision": "bf16"},
        source=ran("train_network.py:831", lesson="02"),
    ),
    Rule(
        name="fused-clips-fp16",
        effect="raises",
        scripts=("sdxl_train.py",),
        when=lambda o: values_if(
            (o["fused_backward_pass"] or o.has("fused_optimizer_groups")) and o["mixed_precision"] == "fp16" and o["max_grad_norm"] != 0
        ),
        what="RuntimeError in the first step: unscale_() has already been called.",
        why="Each parameter is clipped on its own, but the fp16 scaler can unscale only once per step.",
        fix="--max_grad_norm=0, or bf16",
        changes=lambda o: {"max_grad_norm": 0.0},
        source=read("sdxl_train.py:533", lesson="05"),
    ),
)
DIFFERENCES = (
    Rule(
        name="fused-not-here",
        effect="overrides",
        scripts=(*NETWORK, "train_db.py", "fine_tune.py", *TEXTUAL_INVERSION),
        when=lambda o: values_if(o["fused_backward_pass"], script=o.script),
        what="fused_backward_pass does nothing in {script}.",
        why=(
            "Its conditions are checked, but the script never hooks the optimizer into the backward pass. sdxl_train.py, and those of SD "
            "3 and FLUX, do."
        ),
        fix="Leave it out.",
        changes=lambda o: {"fused_backward_pass": None},
        source=read("library/train_util.py:4848", lesson="05"),
    ),
    Rule(
        name="fused-clips-each",
        effect="overrides",
        scripts=("sdxl_train.py",),
        when=lambda o: values_if(
            (o["fused_backward_pass"] or o.has("fused_optimizer_groups")) and o["max_grad_norm"] != 0 and o["mixed_precision"] != "fp16",
            max_grad_norm=o["max_grad_norm"],
        ),
        what="max_grad_norm={max_grad_norm} clips every parameter on its own, not all together.",
        why="A fused backward never has all gradients at once, so a norm over all of them cannot be known.",
        fix="--max_grad_norm=0",
        changes=lambda o: {"max_grad_norm": 0.0},
        source=read("sdxl_train.py:533", lesson="05"),
    ),
    Rule(
        name="fused-both",
        effect="overrides",
        scripts=("sdxl_train.py",),
        when=lambda o: values_if(
            o["fused_backward_pass"] and o.has("fused_optimizer_groups"), fused_optimizer_groups=o["fused_optimizer_groups"]
        ),
        what="Only the first of the {fused_optimizer_groups} optimizer groups is ever updated.",
        why="fused_backward_pass hooks one optimizer, and the groups have one each.",
        fix="Leave fused_optimizer_groups out.",
        changes=lambda o: {"fused_optimizer_groups": None},
        source=read("sdxl_train.py:523", lesson="05"),
    ),
    Rule(
        name="swap-unused",
        effect="overrides",
        scripts=("lumina_train.py",),
        when=lambda o: values_if(o.number("blocks_to_swap") > 0, blocks=o["blocks_to_swap"]),
        what="blocks_to_swap={blocks} does nothing in lumina_train.py: all blocks stay on the GPU.",
        why="The lines that would switch it on are commented out there. lumina_train_network.py does swap blocks.",
        fix="Leave it out, and do not count on saving memory.",
        changes=lambda o: {"blocks_to_swap": None},
        source=read("lumina_train.py:334", lesson="03"),
    ),
    Rule(
        name="offload-without-checkpointing",
        effect="overrides",
        scripts=NETWORK,
        when=lambda o: values_if(o.has("cpu_offload_checkpointing") and not o["gradient_checkpointing"], script=o.script),
        what="cpu_offload_checkpointing does nothing without gradient_checkpointing.",
        why="It moves the checkpoints, and there are none.",
        fix="Leave it out (with gradient_checkpointing, {script} raises).",
        changes=lambda o: {"cpu_offload_checkpointing": None},
        source=read("train_network.py:716", lesson="03"),
    ),
    Rule(
        name="full-bf16-ignored",
        effect="overrides",
        scripts=("train_db.py", "fine_tune.py"),
        when=lambda o: values_if(o["full_bf16"], script=o.script),
        what="full_bf16 does nothing in {script}.",
        why="That script reads only full_fp16.",
        fix="Leave it out.",
        changes=lambda o: {"full_bf16": None},
        source=read("train_db.py:237", lesson="02"),
    ),
    Rule(
        name="precision-of-the-launcher",
        effect="overrides",
        when=lambda o: values_if(
            networks.launched_precision(o) not in ("no", o["mixed_precision"]),
            launched=networks.launched_precision(o),
            mixed_precision=o["mixed_precision"],
        ),
        what='accelerate launch has mixed_precision={launched}, but the script runs with "{mixed_precision}".',
        why=(
            "The script's own setting, also its default, goes to the Accelerator and wins over the launcher and accelerate's configuration."
        ),
        fix="Give --mixed_precision after the script's name.",
        changes=lambda o: (
            {"mixed_precision": networks.launched_precision(o)}
            if not o.said("mixed_precision") and networks.launched_precision(o) in ("fp16", "bf16")
            else {}
        ),
        source=read("library/train_util.py:5496", lesson="02"),
    ),
    Rule(
        name="attention-order",
        effect="overrides",
        when=lambda o: values_if(sum(o.has(name) for name in ("mem_eff_attn", "xformers", "sdpa")) > 1),
        what="Only the first of mem_eff_attn, xformers and sdpa that is set counts.",
        why="sd-scripts checks them in this order.",
        fix="--sdpa alone.",
        changes=lambda o: {"mem_eff_attn": None, "xformers": None, "sdpa": True},
        source=read("library/train_util.py:3362", lesson="02"),
    ),
)
WARNINGS = (
    Rule(
        name="accumulates-two-models",
        effect="warns",
        log="accelerate does not support gradient_accumulation_steps",
        scripts=("train_db.py",),
        when=lambda o: values_if(o.number("gradient_accumulation_steps") > 1, gradient_accumulation_steps=o["gradient_accumulation_steps"]),
        what=(
            "gradient_accumulation_steps={gradient_accumulation_steps} while U-Net and text encoder are trained: something might be wrong."
        ),
        why="accelerate accumulates for one model.",
        fix="--stop_text_encoder_training=-1 trains the U-Net alone.",
        source=ran("train_db.py:120", lesson="02"),
    ),
)
NOTES = (
    Rule(
        name="attention-unsaid",
        effect="note",
        scripts=(*arguments.STABLE_DIFFUSION, *arguments.CONTROL_NETS),
        when=lambda o: values_if(
            networks.is_whole(o) and o.is_readable and not any(o.has(name) for name in networks.ATTENTION), cost=attention.cost(o)
        ),
        what="Without --sdpa, --xformers or --mem_eff_attn each attention layer builds its whole matrix{cost}.",
        why=(
            "At 1024 pixels (SDXL) or 512 (SD 1.5) such a matrix has 4,096 x 4,096 numbers for each head and picture: the largest "
            "avoidable cost on a small card. PyTorch's own attention computes the same result without it."
        ),
        fix="--sdpa",
        source=read("library/train_util.py:3362", lesson="02"),
    ),
    Rule(
        name="fp16-vae",
        effect="note",
        scripts=SDXL,
        when=lambda o: values_if(o["mixed_precision"] == "fp16" and not o.has("no_half_vae")),
        what="SDXL's VAE overflows in fp16: latents can become NaN.",
        why="When they are cached, that raises; when not, they are silently replaced by zeros.",
        fix="--no_half_vae",
        changes=lambda o: {"no_half_vae": True},
        source=read("sdxl_train.py:216", lesson="02"),
    ),
    Rule(
        name="bf16-rounding",
        effect="note",
        scripts=("sdxl_train.py", *NETWORK),
        when=lambda o: values_if(
            o["full_bf16"]
            and o["mixed_precision"] == "bf16"
            and o.is_adafactor
            and not (o["fused_backward_pass"] and o.script == "sdxl_train.py")
        ),
        what="bf16 weights without stochastic rounding: small updates vanish.",
        why=(
            "A bf16 weight has eight significant bits; an update below half of the last bit changes nothing. Only the fused backward pass "
            "rounds at random."
        ),
        fix="--fused_backward_pass in sdxl_train.py, or no full_bf16.",
        source=read("library/adafactor_fused.py:5", lesson="04"),
    ),
)
