"""The rules of sd-scripts that its users meet: one row each, in the order in which a run comes to them.

Line numbers are those of kohya-ss/sd-scripts at commit 48d368f (16 February 2026). `ran` says whether a rule was checked by running
sd-scripts' own code (`benchmarks/doctor_against_sd_scripts.py`) or read in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..sd_scripts import NETWORK, SDXL, TEXTUAL_INVERSION, Finding, Outcome, of_optimizer, of_schedule
from ..system import number
from . import conditions as c
from .conditions import TO_MANUAL

FULL = ("sdxl_train.py", "train_db.py", "fine_tune.py")
UTIL = "library/train_util.py"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row: when it holds, what then happens, and what to do."""

    name: str
    effect: str
    when: Callable[[Outcome], object]
    """Whether it holds; what it returns is `{it}` in the texts."""
    what: str
    why: str
    fix: str = ""
    changes: Callable[[Outcome], Mapping[str, object]] | None = None
    """The settings that mend it; None takes one back."""
    error: str = ""
    """The exception of a rule that raises."""
    log: str = ""
    """A piece of the warning that sd-scripts logs."""
    scripts: tuple[str, ...] = ()
    """Where it applies; everywhere if empty."""
    source: str
    lesson: str = "07"
    ran: bool = True

    def finding(self, outcome: Outcome, it: object) -> Finding:
        """The row with its values; `it` is what `when` returned, and may say another effect."""
        effect = it.get("effect", self.effect) if isinstance(it, dict) else self.effect
        shown, flag = _Shown(outcome), c.rate_flag(outcome)
        what, why, fix = (text.format(o=shown, it=it, rate_flag=flag) if "{" in text else text for text in (self.what, self.why, self.fix))
        return Finding(rule=self.name, effect=effect, what=what, why=why, fix=fix, source=self.source, lesson=self.lesson)


RULES = (
    # before anything is loaded
    Rule(
        name="values-are-texts", effect="raises", error="TypeError", when=c.no_number,
        what="{it} is no number, and sd-scripts calculates with it: TypeError.",
        why="A TOML file is not checked for types; the error comes where the value is first used.", fix="Write numbers without quotes.",
        source=f"{UTIL}:4760",
        changes=c.as_number,
    ),
    Rule(
        name="adaptive-noise-scale", effect="raises", error="ValueError",
        when=lambda o: o["adaptive_noise_scale"] is not None and o["noise_offset"] is None,
        what="ValueError: adaptive_noise_scale requires noise_offset.",
        why="It changes the noise offset picture by picture; without one there is nothing to change.",
        fix="--noise_offset=0.05, or leave adaptive_noise_scale out.", changes=lambda o: {"adaptive_noise_scale": None},
        source=f"{UTIL}:4443",
    ),
    Rule(
        name="scale-v-pred", effect="raises", error="ValueError",
        when=lambda o: o["scale_v_pred_loss_like_noise_pred"] and not o["v_parameterization"],
        what="ValueError: scale_v_pred_loss_like_noise_pred can be enabled only with v_parameterization.",
        why="It reweights the loss of v-prediction, and this run predicts noise.", fix="Leave it out.",
        changes=lambda o: {"scale_v_pred_loss_like_noise_pred": None}, source=f"{UTIL}:4446", lesson="01",
    ),
    Rule(
        name="v-pred-like-loss", effect="raises", error="ValueError", when=lambda o: o["v_pred_like_loss"] and o["v_parameterization"],
        what="ValueError: v_pred_like_loss cannot be enabled with v_parameterization.",
        why="It imitates the weights of v-prediction, which is on already.", fix="Leave v_pred_like_loss out.",
        changes=lambda o: {"v_pred_like_loss": None}, source=f"{UTIL}:4451", lesson="01",
    ),
    Rule(
        name="resolution", effect="raises", when=c.unreadable_resolution, what="{it[error]}: resolution={o[resolution]!r} cannot be read.",
        why="{it[why]}", fix="--resolution=512 or --resolution=512,768",
        changes=lambda o: {"resolution": re.sub(r"(?<=\d)\s*[xX*×]\s*(?=\d)", ",", str(o["resolution"]))}, source=f"{UTIL}:5410",
        lesson="",
    ),
    Rule(
        name="sdxl-is-not-v2", effect="raises", error="AssertionError", when=lambda o: o["v2"], scripts=SDXL,
        what="AssertionError: v2 cannot be enabled in SDXL training.", why="v2 stands for Stable Diffusion 2, another model.",
        fix="Leave --v2 out.", changes=lambda o: {"v2": None}, source="library/sdxl_train_util.py:349", lesson="",
    ),
    Rule(
        name="cached-text-weighted", effect="raises", error="AssertionError", ran=False, scripts=("sdxl_train.py",),
        when=lambda o: o["weighted_captions"] and c.caches_text(o),
        what="AssertionError: weighted_captions is not supported when caching text encoder outputs.",
        why="Weights in captions are worked out while the text is encoded, and the cache skips that.", fix="Leave one of the two out.",
        changes=lambda o: {"weighted_captions": None}, source="sdxl_train.py:106", lesson="02",
    ),
    Rule(
        name="cached-text-trained", effect="raises", error="AssertionError", ran=False, scripts=("sdxl_train.py",),
        when=lambda o: o["train_text_encoder"] and c.caches_text(o),
        what="AssertionError: cache_text_encoder_outputs is not supported when training text encoder.",
        why="A text encoder that is trained gives other outputs after each step.", fix="Leave one of the two out.",
        source="sdxl_train.py:109", lesson="02",
    ),
    # the data
    Rule(
        name="cached-latents-augmented", effect="raises", error="AssertionError", ran=False,
        when=lambda o: (o["cache_latents"] or o["cache_latents_to_disk"]) and (o["color_aug"] or o["random_crop"]),
        what="AssertionError: when caching latents, either color_aug or random_crop cannot be used.",
        why="Each picture is encoded once, so it cannot look different each time. flip_aug is fine: both sides are encoded.",
        fix="Leave color_aug and random_crop out, or do not cache.", changes=lambda o: {"color_aug": None, "random_crop": None},
        source="train_network.py:582", lesson="02",
    ),
    Rule(
        name="cached-text-changed", effect="raises", error="AssertionError", ran=False, scripts=("sdxl_train_network.py", "sdxl_train.py"),
        when=lambda o: c.caches_text(o) and c.changes_captions(o),
        what="AssertionError: cached text encoder outputs with captions that change.",
        why=(
            "caption_dropout_rate, shuffle_caption, token_warmup_step and caption_tag_dropout_rate give a picture other captions each "
            "time."
        ),
        fix="Leave those out, or do not cache the text encoders' outputs.",
        changes=lambda o: dict.fromkeys(
            ("caption_dropout_rate", "shuffle_caption", "token_warmup_step", "caption_tag_dropout_rate")
        ),
        source="sdxl_train_network.py:35", lesson="02",
    ),
    Rule(
        name="cached-text-network", effect="raises", error="AssertionError", ran=False, scripts=("sdxl_train_network.py",),
        when=lambda o: c.caches_text(o) and not o["network_train_unet_only"],
        what="AssertionError: network for Text Encoder cannot be trained with caching Text Encoder outputs.",
        why="A cached text encoder is not asked again, so nothing in it can learn.", fix="--network_train_unet_only",
        changes=lambda o: {"network_train_unet_only": True}, source="sdxl_train_network.py:39", lesson="02",
    ),
    Rule(
        name="bucket-steps", effect="raises", error="AssertionError", ran=False,
        when=c.bucket_unit,
        what="AssertionError: bucket_reso_steps is {o[bucket_reso_steps]}. It must be divisible by {it}.",
        why="The U-Net halves its latents three times in SD 1.5 and twice in SDXL.", fix="--bucket_reso_steps=64",
        changes=lambda o: {"bucket_reso_steps": 64}, source=f"{UTIL}:1093", lesson="",
    ),
    Rule(
        name="tensorboard-folder", effect="raises", error="ValueError", ran=False,
        when=lambda o: o["log_with"] in ("tensorboard", "all") and o["logging_dir"] is None,
        what="ValueError: logging_dir is required when log_with is tensorboard.", why="TensorBoard reads its curves from a folder.",
        fix="--logging_dir=logs", changes=lambda o: {"logging_dir": "logs"}, source=f"{UTIL}:5453", lesson="",
    ),
    Rule(
        name="precision-unknown", effect="raises", error="ValueError", ran=False,
        when=lambda o: o["mixed_precision"] not in ("no", "fp16", "bf16"),
        what="ValueError: accelerate knows no mixed_precision {o[mixed_precision]!r}.", why="A TOML file is not checked for choices.",
        fix='mixed_precision = "bf16", "fp16" or "no"', source=f"{UTIL}:5496", lesson="",
    ),
    Rule(
        name="offload-unsupported", effect="raises", error="TypeError", ran=False, scripts=NETWORK,
        when=lambda o: o.has("cpu_offload_checkpointing") and o["gradient_checkpointing"],
        what="TypeError: the U-Net's enable_gradient_checkpointing takes no cpu_offload.",
        why="Offloading checkpoints to the CPU is written for FLUX and later models.", fix="Leave cpu_offload_checkpointing out.",
        changes=lambda o: {"cpu_offload_checkpointing": None}, source="train_network.py:718", lesson="03",
    ),
    Rule(
        name="swap-and-offload", effect="raises", error="AssertionError", ran=False, scripts=("flux_train.py",),
        when=lambda o: o.has("blocks_to_swap") and o.has("cpu_offload_checkpointing"),
        what="AssertionError: blocks_to_swap is not supported with cpu_offload_checkpointing.",
        why="Both move a block's tensors between the devices.", fix="Leave one of the two out.", source="flux_train.py:81", lesson="03",
    ),
    # the optimizer
    Rule(
        name="two-old-flags", effect="raises", error="AssertionError", when=lambda o: o["use_8bit_adam"] and o["use_lion_optimizer"],
        what="AssertionError: both option use_8bit_adam and use_lion_optimizer are specified.", why="Each names an optimizer.",
        fix='--optimizer_type="AdamW8bit" or --optimizer_type="Lion" instead of both.', source=f"{UTIL}:4831", lesson="04",
    ),
    Rule(
        name="old-flag-and-type", effect="raises", error="AssertionError",
        when=lambda o: (o["use_8bit_adam"] or o["use_lion_optimizer"]) and o["optimizer_type"],
        what=(
            "AssertionError: both an old flag (use_8bit_adam, use_lion_optimizer) and optimizer_type={o[optimizer_type]!r} are "
            "specified."
        ),
        why="The old flags are from before optimizer_type; they are not overridden by it.", fix="Leave the old flag out.",
        changes=lambda o: {"use_8bit_adam": None, "use_lion_optimizer": None}, source=f"{UTIL}:4834", lesson="04",
    ),
    Rule(
        name="fused-needs-adafactor", effect="raises", error="AssertionError",
        when=lambda o: o["fused_backward_pass"] and not o.is_adafactor,
        what="AssertionError: fused_backward_pass currently only works with optimizer_type Adafactor.",
        why="Only Adafactor got a step for one parameter at a time.", fix='Leave it out, or --optimizer_type="Adafactor".',
        changes=lambda o: {"fused_backward_pass": None}, source=f"{UTIL}:4850", lesson="05",
    ),
    Rule(
        name="fused-accumulation", effect="raises", error="AssertionError",
        when=lambda o: o["fused_backward_pass"] and o["gradient_accumulation_steps"] != 1,
        what="AssertionError: fused_backward_pass does not work with gradient_accumulation_steps > 1.",
        why="It frees each gradient as soon as its parameter is updated, so there is nothing left to add the next batch to.",
        fix="--gradient_accumulation_steps=1", changes=lambda o: {"gradient_accumulation_steps": 1}, source=f"{UTIL}:4853", lesson="05",
    ),
    Rule(
        name="optimizer-args-malformed", effect="raises", when=lambda o: c.malformed(o.optimizer_args),
        what="{it[error]}: optimizer_args has {it[text]!r}: {it[why]}.",
        why="Each text is split at = and its value read as a Python literal: False and True have capitals, each argument its own quotes.",
        fix='Write each as "key=value", without spaces inside: "betas=(0.9,0.99)" "weight_decay=0.01".',
        changes=lambda o: c.well_formed(o, "optimizer_args", o.optimizer_args), source=f"{UTIL}:4860",
        lesson="04",
    ),
    Rule(
        name="no-parameter-groups", effect="raises", error="IndexError",
        when=lambda o: not o.groups and (o.relative_step or o.is_adaptive),
        what="IndexError: a learning rate of 0 leaves nothing to train.",
        why="Parts whose learning rate is 0 are left out, and this optimizer looks at the first one.", fix="--learning_rate=1e-4",
        changes=lambda o: c.one_rate(1e-4), source=f"{UTIL}:5065", lesson="04",
    ),
    Rule(
        name="dadaptation-unknown", effect="raises", error="ValueError",
        when=lambda o: o.wanted.lower().startswith("dadapt") and o.row is None, what="ValueError: Unknown optimizer type: {o.wanted}.",
        why="It begins like a D-Adaptation optimizer and is none of them.",
        fix="One of DAdaptation, DAdaptAdam, DAdaptAdaGrad, DAdaptAdan, DAdaptAdanIP, DAdaptLion or DAdaptSGD.", source=f"{UTIL}:5032",
        lesson="04",
    ),
    Rule(
        name="optimizer-unknown", effect="raises", when=c.unknown_optimizer, what="{it[error]}: torch.optim has no optimizer {o.wanted!r}.",
        why="Names it does not know itself are looked up in torch.optim, capitals and all.", fix='--optimizer_type="{it[near]}"',
        source=f"{UTIL}:5133", lesson="04",
    ),
    Rule(
        name="optimizer-refuses", effect="raises", when=lambda o: c.refused(of_optimizer(o)), what="{it[error]}: {it[what]}.",
        why="optimizer_args are handed to the optimizer's constructor as they are.",
        fix="See the optimizer's own arguments.", source=f"{UTIL}:5093", lesson="04",
        changes=lambda o: (
            {"optimizer_args": [t for t in o["optimizer_args"] if t.partition("=")[0] in o.row["keywords"]] or None}
            if any(words in of_optimizer(o)[0] for words in ("takes no", "itself"))
            else {}
        ),
    ),
    Rule(
        name="no-parameters", effect="raises", error="ValueError", when=lambda o: not o.groups,
        what="ValueError: a learning rate of 0 leaves nothing to train.", why="Parts whose learning rate is 0 are left out.",
        fix="--learning_rate=1e-4", changes=lambda o: c.one_rate(1e-4),
        source="networks/lora.py:1188", lesson="04",
    ),
    # the schedule
    Rule(
        name="warmup-not-finite", effect="raises",
        when=c.endless_steps,
        what="{it[error]}: {it[name]}={o[lr_warmup_steps]} is no number of steps.", why="NaN and infinity pass the command line's check.",
        fix="--lr_warmup_steps=100",
        changes=lambda o: {"lr_warmup_steps": 100 if o.scheduler == "constant_with_warmup" else None, "lr_decay_steps": None},
        source=f"{UTIL}:5276", lesson="06",
    ),
    Rule(
        name="scheduler-args-malformed", effect="raises", when=lambda o: None if o.is_schedule_free else c.malformed(o.scheduler_args),
        what="{it[error]}: lr_scheduler_args has {it[text]!r}: {it[why]}.",
        why="Each text is split at = and its value read as a Python literal; a text needs quotes of its own.",
        fix='--lr_scheduler_args "num_cycles=2"', source=f"{UTIL}:5290", lesson="06",
        changes=lambda o: c.well_formed(o, "lr_scheduler_args", o.scheduler_args),
    ),
    Rule(
        name="scheduler-class-unknown", effect="raises", when=c.unknown_scheduler_class,
        what="{it[error]}: torch.optim.lr_scheduler has no class {o[lr_scheduler_type]!r}.",
        why="lr_scheduler_type names a class; the schedules' short names belong to lr_scheduler.",
        fix="--lr_scheduler_type={it[near]}, or --lr_scheduler=… instead.", source=f"{UTIL}:5309", lesson="06",
    ),
    Rule(
        name="adafactor-schedule-without-adafactor", effect="raises", error="AssertionError",
        when=lambda o: c.is_adafactors(o) and not o.is_adafactor,
        what="AssertionError: adafactor scheduler must be used with Adafactor optimizer.",
        why="It reads the learning rates that Adafactor chose, and {o.optimizer} chooses none.", fix='--lr_scheduler="constant"',
        changes=lambda o: {"lr_scheduler": "constant_with_warmup" if o.warmup_steps else None}, source=f"{UTIL}:5315", lesson="06",
    ),
    Rule(
        name="adafactor-schedule-by-hand", effect="raises", error="IndexError",
        when=lambda o: c.is_manual(o) and c.is_adafactors(o) and ":" not in o.scheduler,
        what="IndexError: list index out of range.",
        why="The schedule `adafactor` needs relative_step=True, which writes the learning rate behind its name.",
        fix='--lr_scheduler="constant_with_warmup" --lr_warmup_steps=100, or relative_step=True.',
        changes=lambda o: {"lr_scheduler": "constant_with_warmup"}, source=f"{UTIL}:5317", lesson="06",
    ),
    Rule(
        name="adafactor-schedule-number", effect="raises", error="ValueError",
        when=lambda o: c.is_manual(o) and c.is_adafactors(o) and ":" in o.scheduler and not c.has_number(o),
        what="ValueError: {o.scheduler!r} has no number behind its colon.",
        why="The number there is what the log calls the learning rate.", fix='--lr_scheduler="constant_with_warmup"',
        changes=lambda o: {"lr_scheduler": "constant_with_warmup"}, source=f"{UTIL}:5317", lesson="06",
    ),
    Rule(
        name="scheduler-unknown", effect="raises", when=c.unknown_scheduler,
        what="ValueError: {o.scheduler!r} is not a valid SchedulerType.",
        why="The name is looked up only now, after the models are loaded.", fix='--lr_scheduler="{it[near]}"',
        changes=lambda o: {"lr_scheduler": it["near"]} if (it := c.unknown_scheduler(o)) else {}, source=f"{UTIL}:5326", lesson="06",
    ),
    Rule(
        name="scheduler-refuses", effect="raises", when=lambda o: c.refused(of_schedule(o)),
        what="{it[error]}: {it[what]}.", why="lr_scheduler_args are handed to the schedule beside what sd-scripts hands to it itself.",
        fix="See the schedule's own arguments.",
        changes=lambda o: {"lr_scheduler_min_lr_ratio": 0.1} if "needs lr_scheduler_min_lr_ratio" in of_schedule(o)[0] else {},
        source=f"{UTIL}:5329", lesson="06",
    ),
    Rule(
        name="adafactor-refuses-warmup", effect="raises", error="ValueError",
        when=lambda o: o.relative_step and not o["lr_scheduler_type"] and o.warmup_steps,
        what="ValueError: {o.scheduler} does not require `num_warmup_steps`. Set None or 0.",
        why=(
            "Adafactor chooses its own learning rate (relative_step), so {o[lr_scheduler]} was replaced by a schedule of its own, and "
            "that one has no warmup. It is said only after the models are loaded and the latents cached."
        ),
        fix=TO_MANUAL, changes=c.made_manual, source=f"{UTIL}:5296", lesson="07",
    ),
    Rule(
        name="needless-warmup", effect="raises", error="ValueError", when=c.needless_warmup,
        what="ValueError: {it} does not require `num_warmup_steps`. Set None or 0.",
        why="{it} has no warmup, and sd-scripts refuses to ignore one.", fix="--lr_scheduler=constant_with_warmup, or --lr_warmup_steps=0",
        source=f"{UTIL}:5296", lesson="06",
        changes=lambda o: {"lr_scheduler": "constant_with_warmup"} if o.scheduler == "constant" else {"lr_warmup_steps": None},
    ),
    # precision
    Rule(
        name="full-fp16", effect="raises", error="AssertionError", ran=False, scripts=(*NETWORK, *FULL),
        when=lambda o: o["full_fp16"] and o["mixed_precision"] != "fp16",
        what="AssertionError: full_fp16 requires mixed precision='fp16'.",
        why="Weights and gradients are kept in the precision that mixed_precision names.", fix="--mixed_precision=fp16",
        changes=lambda o: {"mixed_precision": "fp16"}, source="train_network.py:815", lesson="02",
    ),
    Rule(
        name="full-bf16", effect="raises", error="AssertionError", ran=False, scripts=(*NETWORK, "sdxl_train.py"),
        when=lambda o: o["full_bf16"] and not o["full_fp16"] and o["mixed_precision"] != "bf16",
        what="AssertionError: full_bf16 requires mixed precision='bf16'.",
        why="Weights and gradients are kept in the precision that mixed_precision names.", fix="--mixed_precision=bf16",
        changes=lambda o: {"mixed_precision": "bf16"}, source="train_network.py:821", lesson="02",
    ),
    Rule(
        name="fp8-base", effect="raises", error="AssertionError", ran=False, scripts=NETWORK,
        when=lambda o: (o["fp8_base"] or o["fp8_base_unet"]) and o["mixed_precision"] == "no",
        what="AssertionError: fp8_base requires mixed precision='fp16' or 'bf16'.",
        why="fp8 only stores the frozen weights; the arithmetic needs another precision. torch 2.1 or newer is needed too.",
        fix="--mixed_precision=bf16", changes=lambda o: {"mixed_precision": "bf16"}, source="train_network.py:831", lesson="02",
    ),
    Rule(
        name="fused-clips-fp16", effect="raises", error="RuntimeError", ran=False, scripts=("sdxl_train.py",),
        when=lambda o: (
            (o["fused_backward_pass"] or o.has("fused_optimizer_groups")) and o["mixed_precision"] == "fp16" and o["max_grad_norm"] != 0
        ),
        what="RuntimeError in the first step: unscale_() has already been called.",
        why="Each parameter is clipped on its own, and fp16's scaler can be unscaled once a step.", fix="--max_grad_norm=0, or bf16",
        changes=lambda o: {"max_grad_norm": 0.0}, source="sdxl_train.py:533", lesson="05",
    ),
    Rule(
        name="starts-behind-the-end", effect="raises", error="AssertionError", ran=False, scripts=NETWORK,
        when=lambda o: (
            isinstance(o["initial_step"], int)
            and o["initial_step"] > 0
            and o["initial_step"] >= o.number("max_train_steps")
            and not o["max_train_epochs"]
        ),
        what="AssertionError: max_train_steps should be greater than initial step.",
        why="{o[initial_step]} of {o[max_train_steps]} steps are skipped, which leaves none.", fix="A larger max_train_steps.",
        source="train_network.py:1254", lesson="08",
    ),
    # another value is used without a word, or with one that says something else
    Rule(
        name="relative-step-unsaid", effect="overrides",
        when=lambda o: (
            o.is_adafactor
            and isinstance(o.optimizer_args, dict)
            and "relative_step" not in o.optimizer_args
            and (o.said("learning_rate", "unet_lr") or o["lr_scheduler"] != "adafactor")
        ),
        what="relative_step is not said, so it is True: Adafactor chooses its own learning rate.",
        why="It is 0.01, and from step 10,000 on 1/√step, times the size of each weight. Your learning rate and schedule are put aside.",
        fix=TO_MANUAL, changes=c.made_manual, source=f"{UTIL}:5049", lesson="07",
    ),
    Rule(
        name="warmup-init-wins", effect="overrides",
        when=lambda o: o.relative_step and c.says(o, "relative_step") and not o.argument("relative_step"),
        what="relative_step=False becomes True, because warmup_init is True.",
        why="warmup_init is a slower start of the learning rate that Adafactor chooses itself.", fix='"warmup_init=False"',
        changes=lambda o: c.with_arguments(o, warmup_init=False), source=f"{UTIL}:5051", lesson="07",
    ),
    Rule(
        name="true-by-shape", effect="overrides",
        when=c.true_by_shape,
        what="{it} counts as true.",
        why="A comma at the end makes a tuple, quotes make a text, and both are true in Python, whatever is in them.",
        fix="Write False or True alone.",
        changes=lambda o: {"optimizer_args": [c.without_comma(text) for text in o["optimizer_args"]]},
        source=f"{UTIL}:4861", lesson="07",
    ),
    Rule(
        name="adafactor-ignores-learning-rate", effect="overrides", log="learning rate is used as initial_lr",
        when=lambda o: o.relative_step and not of_optimizer(o) and o["learning_rate"] != 0 and c.unless_automatic(o),
        what="learning_rate={o[learning_rate]} is not used.",
        why='The log says it "is used as initial_lr", but that number is only shown: 1e-8, 1e-4 and 1.0 give the same first update.',
        fix="{it[fix]}", source=f"{UTIL}:5061", lesson="07",
    ),
    Rule(
        name="adafactor-drops-group-rates", effect="warns", log="unet_lr and text_encoder_lr are ignored",
        when=lambda o: (
            o.relative_step and not of_optimizer(o) and o.in_groups and o.groups and {**c.unless_automatic(o), "effect": "warns"}
        ),
        what="The learning rates of the parts (unet_lr, text_encoder_lr) are dropped.",
        why="With relative_step every weight has the rate that Adafactor chooses.", fix="{it[fix]}", source=f"{UTIL}:5073", lesson="07",
    ),
    Rule(
        name="adafactor-replaces-schedule", effect="overrides",
        when=lambda o: o.relative_step and not o["lr_scheduler_type"] and not str(o["lr_scheduler"]).startswith("adafactor"),
        what="lr_scheduler={o[lr_scheduler]} is replaced by {o.scheduler}.", why="The schedule of a relative step only reports the rate.",
        fix=TO_MANUAL + ', or --lr_scheduler="adafactor".', source=f"{UTIL}:5079", lesson="07",
    ),
    Rule(
        name="adafactor-scales-by-weights", effect="overrides",
        when=lambda o: c.is_manual(o) and isinstance(o.optimizer_args, dict) and o.argument("scale_parameter", True),
        what="scale_parameter is True, so each weight learns at learning_rate times its own size.",
        why=(
            "A LoRA's lora_up starts at zero and then learns at a thousandth of the rate: in a toy run of 400 steps the loss did not "
            "move (.1659 to .1658, against .1363)."
        ),
        fix='"scale_parameter=False"',
        changes=lambda o: {} if c.says(o, "scale_parameter") else c.with_arguments(o, scale_parameter=False),
        source="transformers/optimization.py:812", lesson="07",
    ),
    Rule(
        name="adafactor-schedule-decides", effect="overrides", when=lambda o: o.schedule_rate,
        what="The learning rate is {it}, the number behind {o.scheduler}, not learning_rate={o[learning_rate]}.",
        why=(
            "The schedule is made for reporting and sets its own number. With scale_parameter=True it is also scaled twice: on weights "
            "of size 0.1, 1e-3 became 1e-7."
        ),
        fix='--lr_scheduler="constant"', changes=lambda o: {"lr_scheduler": "constant"}, source=f"{UTIL}:5317", lesson="06",
    ),
    Rule(
        name="warmup-taken-as-ratio", effect="overrides", when=c.ratio_slip,
        what="lr_warmup_steps={it} is taken as a share: {o.warmup_steps:,} warmup steps of {o.total_steps:,}.",
        why="A number with a decimal point is a ratio of the run, and a TOML file is not checked for its size.",
        fix="lr_warmup_steps = 100, without a point.", changes=lambda o: {"lr_warmup_steps": int(o["lr_warmup_steps"])},
        source=f"{UTIL}:5276", lesson="06",
    ),
    Rule(
        name="warmup-never-ends", effect="overrides",
        when=lambda o: c.warms_up(o) and not c.ratio_slip(o) and o.warmup_steps >= o.total_steps > 0,
        what="The run of {o.total_steps:,} steps ends before its warmup of {o.warmup_steps:,}: the learning rate is never reached.",
        why="It grows in a straight line from 0 over the warmup.", fix="A longer run, or a shorter warmup.",
        changes=lambda o: {"lr_warmup_steps": 0.05}, source=f"{UTIL}:5274", lesson="06",
    ),
    Rule(
        name="warmup-negative", effect="overrides", when=lambda o: not o.is_schedule_free and o.warmup_steps < 0,
        what="lr_warmup_steps={o[lr_warmup_steps]} is {o.warmup_steps:,} steps: none.",
        why="A number below 1 is a ratio, negative ones too.", fix="--lr_warmup_steps=100", changes=lambda o: {"lr_warmup_steps": None},
        source=f"{UTIL}:3672", lesson="06",
    ),
    Rule(
        name="no-warmup-in-constant-with-warmup", effect="overrides",
        when=lambda o: o.scheduler == "constant_with_warmup" and o.warmup_steps == 0,
        what="constant_with_warmup with 0 warmup steps is constant.", why="lr_warmup_steps has to be said as well.",
        fix="--lr_warmup_steps=100", source=f"{UTIL}:5336", lesson="06",
        changes=lambda o: {"lr_warmup_steps": 100} if o.total_steps > 100 else {},
    ),
    Rule(
        name="warmup-shared-by-processes", effect="overrides",
        when=c.shortened_warmup,
        what="With {o.processes} processes, {o[lr_warmup_steps]} warmup steps are over after {it} optimizer steps.",
        why=(
            "Every process moves the schedule on. The length of the run is multiplied to make up for it, a warmup in whole steps is "
            "not; a ratio is."
        ),
        fix="A ratio, such as --lr_warmup_steps=5%",
        changes=c.warmup_as_share,
        source=f"{UTIL}:5274", lesson="06",
    ),
    Rule(
        name="warmup-ignored-piecewise", effect="overrides", when=lambda o: o.scheduler == "piecewise_constant" and o.warmup_steps,
        what="piecewise_constant ignores lr_warmup_steps={o[lr_warmup_steps]}.",
        why="It is the one schedule without a warmup that does not refuse one.",
        fix="Put the warmup into step_rules, or take constant_with_warmup.", source=f"{UTIL}:5321", lesson="06",
    ),
    Rule(
        name="schedule-free", effect="overrides",
        when=lambda o: (
            o.is_schedule_free and (o["lr_scheduler"] != "constant" or o["lr_scheduler_type"] or o["lr_warmup_steps"])
        ),
        what="{o.wanted} takes no schedule: lr_scheduler and lr_warmup_steps are ignored.",
        why="A dummy schedule is made for it. Its own warmup is an argument of the optimizer.",
        fix='--optimizer_args "warmup_steps=100", and no --lr_scheduler or --lr_warmup_steps.',
        changes=lambda o: {"lr_scheduler": None, "lr_warmup_steps": None, "lr_scheduler_type": None}, source=f"{UTIL}:5270", lesson="06",
    ),
    Rule(
        name="optimizer-args-twice", effect="overrides",
        when=lambda o: isinstance(o.optimizer_args, dict) and len(o["optimizer_args"] or ()) > len(o.optimizer_args),
        what="An optimizer argument is given twice; the last one counts.", why="They become the keys of one dictionary.",
        fix="Keep one of them.", source=f"{UTIL}:4874", lesson="04",
        changes=lambda o: {"optimizer_args": [f"{k}={v!r}" for k, v in o.optimizer_args.items()]},
    ),
    Rule(
        name="fused-not-here", effect="overrides", scripts=(*NETWORK, "train_db.py", "fine_tune.py", *TEXTUAL_INVERSION), ran=False,
        when=lambda o: o["fused_backward_pass"], what="fused_backward_pass does nothing in {o.script}.",
        why=(
            "Its conditions are checked, but the script never hooks the optimizer into the backward pass. sdxl_train.py, and those of "
            "SD 3 and FLUX, do."
        ),
        fix="Leave it out.", changes=lambda o: {"fused_backward_pass": None}, source=f"{UTIL}:4848", lesson="05",
    ),
    Rule(
        name="fused-clips-each", effect="overrides", scripts=("sdxl_train.py",), ran=False,
        when=lambda o: (
            (o["fused_backward_pass"] or o.has("fused_optimizer_groups")) and o["max_grad_norm"] != 0 and o["mixed_precision"] != "fp16"
        ),
        what="max_grad_norm={o[max_grad_norm]} clips every parameter on its own, not all together.",
        why="A fused backward never has all gradients at once, so a norm over all of them cannot be known.", fix="--max_grad_norm=0",
        changes=lambda o: {"max_grad_norm": 0.0}, source="sdxl_train.py:533", lesson="05",
    ),
    Rule(
        name="fused-both", effect="overrides", scripts=("sdxl_train.py",), ran=False,
        when=lambda o: o["fused_backward_pass"] and o.has("fused_optimizer_groups"),
        what="Only the first of the {o[fused_optimizer_groups]} optimizer groups is ever updated.",
        why="fused_backward_pass hooks one optimizer, and the groups have one each.", fix="Leave fused_optimizer_groups out.",
        changes=lambda o: {"fused_optimizer_groups": None}, source="sdxl_train.py:523", lesson="05",
    ),
    Rule(
        name="offload-without-checkpointing", effect="overrides", ran=False, scripts=NETWORK,
        when=lambda o: o.has("cpu_offload_checkpointing") and not o["gradient_checkpointing"],
        what="cpu_offload_checkpointing does nothing without gradient_checkpointing.", why="It moves the checkpoints, and there are none.",
        fix="Leave it out (with gradient_checkpointing, {o.script} raises).", changes=lambda o: {"cpu_offload_checkpointing": None},
        source="train_network.py:716", lesson="03",
    ),
    Rule(
        name="full-bf16-ignored", effect="overrides", ran=False, scripts=("train_db.py", "fine_tune.py"), when=lambda o: o["full_bf16"],
        what="full_bf16 does nothing in {o.script}.", why="Only full_fp16 is looked at there.", fix="Leave it out.",
        changes=lambda o: {"full_bf16": None}, source="train_db.py:237", lesson="02",
    ),
    Rule(
        name="precision-of-the-launcher", effect="overrides", ran=False,
        when=lambda o: o.settings.launch.get("mixed_precision", "no") not in ("no", o["mixed_precision"]),
        what=(
            "accelerate launch has mixed_precision={o.settings.launch[mixed_precision]}, but the script runs with "
            '"{o[mixed_precision]}".'
        ),
        why=(
            "The script's own setting, also its default, goes to the Accelerator and wins over the launcher and accelerate's "
            "configuration."
        ),
        fix="Say --mixed_precision behind the script's name.",
        changes=lambda o: (
            {"mixed_precision": o.settings.launch["mixed_precision"]}
            if not o.said("mixed_precision") and o.settings.launch["mixed_precision"] in ("fp16", "bf16")
            else {}
        ),
        source=f"{UTIL}:5496", lesson="02",
    ),
    Rule(
        name="attention-order", effect="overrides", ran=False,
        when=lambda o: sum(o.has(name) for name in ("mem_eff_attn", "xformers", "sdpa")) > 1,
        what="Of mem_eff_attn, xformers and sdpa only the first one here counts.", why="They are looked at in this order.",
        fix="--sdpa alone.", changes=lambda o: {"mem_eff_attn": None, "xformers": None, "sdpa": True}, source=f"{UTIL}:3362", lesson="02",
    ),
    Rule(
        name="not-finite", effect="overrides", when=c.endless, what="{it[name]}={it[value]} is no number to train with.",
        why="It passes every check. A learning rate of NaN, for one, leaves nothing but NaN in the weights.", fix="Write a finite number.",
        changes=lambda o: {c.endless(o)["name"]: None}, source=f"{UTIL}:3701", lesson="",
    ),
    Rule(
        name="epochs-win", effect="overrides", ran=False, when=lambda o: o["max_train_epochs"] is not None and o.said("max_train_steps"),
        what="max_train_steps={o[max_train_steps]} is replaced by the steps of max_train_epochs={o[max_train_epochs]}.",
        why="The number of steps is worked out anew once the pictures are counted.", fix="Keep one of the two.",
        changes=lambda o: {"max_train_steps": None}, source="train_network.py:800", lesson="",
    ),
    Rule(
        name="resume-keeps-its-schedule", effect="overrides", ran=False, when=lambda o: o["resume"] and o.said("learning_rate", "unet_lr"),
        what="After --resume the saved schedule's learning rate counts, not learning_rate={o[learning_rate]}.",
        why="The state holds optimizer and schedule. Without skip_until_initial_step the steps are counted from 0 again, too.",
        fix="Leave --resume out and start from the saved weights, to change the rate.", source="train_network.py:1234", lesson="08",
    ),
    # a warning in the log
    Rule(
        name="adafactor-clips", effect="warns", log="clip_grad_norm is enabled",
        when=lambda o: c.is_manual(o) and o["max_grad_norm"] != 0,
        what="sd-scripts advises max_grad_norm=0 with Adafactor; you have {o[max_grad_norm]}.",
        why=(
            "Adafactor limits each update itself (clip_threshold), and scaling all gradients alike changes nothing in it. Nobody has "
            "shown that clipping harms; it costs a norm over all gradients."
        ),
        fix="--max_grad_norm=0 silences it.", source=f"{UTIL}:5083", lesson="05",
    ),
    Rule(
        name="adafactor-schedule-hint", effect="warns", log="constant_with_warmup will be good",
        when=lambda o: c.is_manual(o) and o["lr_scheduler"] != "constant_with_warmup",
        what="sd-scripts advises constant_with_warmup with Adafactor; you have {o[lr_scheduler]}.",
        why="A hint, not a finding: the other schedules work.", source=f"{UTIL}:5087", lesson="06",
    ),
    Rule(
        name="adafactor-threshold", effect="warns", log="clip_threshold=1.0 will be good",
        when=lambda o: c.is_manual(o) and (value := o.argument("clip_threshold", 1.0)) != 1.0 and {"value": value},
        what="sd-scripts advises clip_threshold=1.0; you have {it[value]}.", why="It bounds the size of an update, not of the gradient.",
        source=f"{UTIL}:5089", lesson="05",
    ),
    Rule(
        name="adaptive-needs-one", effect="warns", log="learning rate is too low",
        when=lambda o: (
            o.is_adaptive
            and o.groups
            and isinstance(first := next(iter(o.groups.values())), (int, float))
            and first <= 0.1
            and {"rate": first}
        ),
        what="{o.optimizer} with a learning rate of {it[rate]}: too low.",
        why="It estimates the step size itself and multiplies it by the learning rate, which should be 1.", fix="--learning_rate=1.0",
        changes=lambda o: c.one_rate(1.0), source=f"{UTIL}:4992", lesson="04",
    ),
    Rule(
        name="adaptive-wants-one-rate", effect="warns", log="only the first one will take effect",
        when=lambda o: o.is_adaptive and len(set(o.groups.values())) > 1,
        what="{o.optimizer} with several learning rates: only the first takes effect.", why="It estimates one step size for all.",
        fix="--learning_rate=1.0 alone.", changes=lambda o: c.one_rate(1.0),
        source=f"{UTIL}:4997", lesson="04",
    ),
    Rule(
        name="sgd8bit-momentum", effect="warns", log="must be with momentum",
        when=lambda o: (
            o.optimizer == "SGDNesterov8bit" and isinstance(o.optimizer_args, dict) and "momentum" not in o.optimizer_args
        ),
        what="SGDNesterov8bit without momentum: 0.9 is taken.", why="Nesterov's method needs one.", fix='--optimizer_args "momentum=0.9"',
        source=f"{UTIL}:4905", lesson="04",
    ),
    Rule(
        name="v2-clip-skip", effect="warns", log="v2 with clip_skip", when=lambda o: o["v2"] and o["clip_skip"] is not None,
        what="v2 with clip_skip: not what SD 2 was trained with.", why="SD 2 takes its text encoder's last layer but one already.",
        fix="Leave clip_skip out.", changes=lambda o: {"clip_skip": None}, source=f"{UTIL}:4422", lesson="",
    ),
    Rule(
        name="latents-to-disk", effect="warns", log="cache_latents is also enabled",
        when=lambda o: o["cache_latents_to_disk"] and not o["cache_latents"], what="cache_latents_to_disk turns cache_latents on.",
        why="Harmless.", fix="--cache_latents silences it.", source=f"{UTIL}:4427", lesson="02",
    ),
    Rule(
        name="zero-terminal-snr", effect="warns", log="training will be unexpected",
        when=lambda o: o["zero_terminal_snr"] and not o["v_parameterization"],
        what="zero_terminal_snr without v_parameterization: training will be unexpected.",
        why="At zero signal the noise is the input itself, so a model that predicts noise learns nothing there; v can still be learned.",
        fix="Leave it out, or train a v-prediction model with --v_parameterization.", changes=lambda o: {"zero_terminal_snr": None},
        source=f"{UTIL}:4458", lesson="01",
    ),
    Rule(
        name="sample-never", effect="warns", log="less than or equal to 0",
        when=lambda o: any(o[name] is not None and o.number(name) <= 0 for name in ("sample_every_n_epochs", "sample_every_n_steps")),
        what="sample_every_n_… of 0 or less: no samples are made.", why="It is switched off.", source=f"{UTIL}:4464", lesson="",
    ),
    Rule(
        name="sdxl-clip-skip", effect="warns", log="SDXL学習ではclip_skipは動作しません", scripts=SDXL,
        when=lambda o: o["clip_skip"] is not None,
        what="clip_skip does nothing in SDXL training.", why="Its layers are fixed.", fix="Leave it out.",
        changes=lambda o: {"clip_skip": None}, source="library/sdxl_train_util.py:352", lesson="",
    ),
    Rule(
        name="text-to-disk", effect="warns", log="cache_text_encoder_outputs is enabled because",
        scripts=("sdxl_train_network.py", "sdxl_train.py"),
        when=lambda o: o["cache_text_encoder_outputs_to_disk"] and not o["cache_text_encoder_outputs"],
        what="cache_text_encoder_outputs_to_disk turns cache_text_encoder_outputs on.", why="Harmless.",
        fix="--cache_text_encoder_outputs silences it.", source="library/sdxl_train_util.py:372", lesson="02",
    ),
    Rule(
        name="accumulates-two-models", effect="warns", ran=False, scripts=("train_db.py",),
        when=lambda o: o.number("gradient_accumulation_steps") > 1,
        what=(
            "gradient_accumulation_steps={o[gradient_accumulation_steps]} while U-Net and text encoder are trained: something might be "
            "wrong."
        ),
        why="accelerate accumulates for one model.", fix="--stop_text_encoder_training=-1 trains the U-Net alone.",
        source="train_db.py:120", lesson="02",
    ),
    # worth knowing
    Rule(
        name="learning-rate-unsaid", effect="note", scripts=NETWORK,
        when=lambda o: (
            o.is_readable and not o.relative_step and not o.is_adaptive and not o.said("learning_rate", "unet_lr", "text_encoder_lr")
        ),
        what="learning_rate is not said, so it is 2e-6.",
        why="That default is for a whole model; a LoRA usually takes 1e-4, fifty times as much.", fix="--learning_rate=1e-4",
        changes=lambda o: {"learning_rate": 1e-4}, source=f"{UTIL}:3701", lesson="07",
    ),
    Rule(
        name="package", effect="note", ran=False,
        when=lambda o: o.row["package"] if o.row and o.row["package"] in ("dadaptation", "bitsandbytes") else None,
        what="{o.optimizer} needs the package {it}; without it the run ends with an ImportError.",
        why="It is imported only after the models are loaded. sd-scripts' requirements have bitsandbytes, but not dadaptation.",
        fix="pip install {it}", source=f"{UTIL}:4883", lesson="04",
    ),
    Rule(
        name="optimizer-elsewhere", effect="note", ran=False, when=lambda o: o.row is None and "." in o.wanted,
        what="{o.wanted} is imported by its path; what it takes is not known here.",
        why="Any class of that path will be called with the parameters, lr and optimizer_args.", source=f"{UTIL}:5129", lesson="04",
    ),
    Rule(
        name="fp16-vae", effect="note", ran=False, scripts=SDXL,
        when=lambda o: o["mixed_precision"] == "fp16" and not o.has("no_half_vae"),
        what="SDXL's VAE overflows in fp16: latents can become NaN.",
        why="When they are cached, that raises; when not, they are silently replaced by zeros.", fix="--no_half_vae",
        changes=lambda o: {"no_half_vae": True}, source="sdxl_train.py:216", lesson="02",
    ),
    Rule(
        name="bf16-rounding", effect="note", ran=False, scripts=("sdxl_train.py", *NETWORK),
        when=lambda o: (
            o["full_bf16"]
            and o["mixed_precision"] == "bf16"
            and o.is_adafactor
            and not (o["fused_backward_pass"] and o.script == "sdxl_train.py")
        ),
        what="bf16 weights without stochastic rounding: small updates vanish.",
        why=(
            "A bf16 weight has eight bits; an update below half of the last one changes nothing. Only the fused backward pass rounds "
            "at random."
        ),
        fix="--fused_backward_pass in sdxl_train.py, or no full_bf16.", source="library/adafactor_fused.py:5", lesson="04",
    ),
    Rule(
        name="config-file", effect="note", ran=False, when=lambda o: o["config_file"],
        what="The settings in {o[config_file]} are not looked at here.",
        why="No file that settings name is opened. The command line wins over it.", fix="Give that file to the doctor as well.",
        source=f"{UTIL}:4700", lesson="",
    ),
    Rule(
        name="other-models", effect="note", ran=False, when=lambda o: o.script not in (*NETWORK, *FULL, *TEXTUAL_INVERSION),
        what="{o.script} trains another kind of model: its own rules are not known here.",
        why="The optimizer, the schedule and the arguments are the same.", source="", lesson="",
    ),
)  # fmt: skip


class _Shown:
    """An outcome as the texts see it: its numbers format themselves as one would type them."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def __getattr__(self, name: str) -> object:
        return getattr(self._outcome, name)

    def __getitem__(self, name: str) -> object:
        value = self._outcome[name]
        return number(value) if isinstance(value, float) else value
