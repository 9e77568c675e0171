"""Rules about the optimizer, its arguments and its learning rate."""

from __future__ import annotations

from ...sd_scripts import NETWORK, of_optimizer, of_step
from .. import conditions as c
from ..conditions import values_if
from .rule import Rule, ran, read

FLAG_ERRORS = (
    Rule(
        name="two-old-flags",
        effect="raises",
        when=lambda o: values_if(o["use_8bit_adam"] and o["use_lion_optimizer"]),
        what="AssertionError: both option use_8bit_adam and use_lion_optimizer are specified.",
        why="Each names an optimizer.",
        fix='--optimizer_type="AdamW8bit" or --optimizer_type="Lion" instead of both.',
        source=ran("library/train_util.py:4831", lesson="04"),
    ),
    Rule(
        name="old-flag-and-type",
        effect="raises",
        when=lambda o: values_if(
            (o["use_8bit_adam"] or o["use_lion_optimizer"]) and o["optimizer_type"], optimizer_type=o["optimizer_type"]
        ),
        what="AssertionError: both an old flag (use_8bit_adam, use_lion_optimizer) and optimizer_type={optimizer_type!r} are specified.",
        why="The old flags are older than optimizer_type, which does not override them.",
        fix="Leave the old flag out.",
        changes=lambda o: {"use_8bit_adam": None, "use_lion_optimizer": None},
        source=ran("library/train_util.py:4834", lesson="04"),
    ),
)
ERRORS = (
    Rule(
        name="optimizer-args-malformed",
        effect="raises",
        when=lambda o: c.malformed(o.optimizer_args),
        what="{error}: optimizer_args has {text}: {why}.",
        why="Each is split at = and its value read as Python: write True and False with capitals, and each argument in its own quotes.",
        fix='Write each as "key=value", without spaces inside: "betas=(0.9,0.99)" "weight_decay=0.01".',
        changes=lambda o: c.well_formed(o, "optimizer_args", o.optimizer_args),
        source=ran("library/train_util.py:4860", lesson="04"),
    ),
    Rule(
        name="no-parameter-groups",
        effect="raises",
        when=lambda o: c.nothing_to_train(o) if o.relative_step or o.is_adaptive or o.has("fused_optimizer_groups") else None,
        what="IndexError: {cause} leaves nothing to train.",
        why="Parts whose learning rate or rank is 0 are left out, and this optimizer looks at the first part that remains.",
        fix="{fix}",
        changes=c.something_to_train,
        source=ran("library/train_util.py:5065", lesson="04"),
    ),
    Rule(
        name="dadaptation-unknown",
        effect="raises",
        when=lambda o: values_if(o.wanted.lower().startswith("dadapt") and o.row is None, wanted=o.wanted),
        what="ValueError: Unknown optimizer type: {wanted}.",
        why="The name begins like that of a D-Adaptation optimizer, but there is none of this name.",
        fix="One of DAdaptation, DAdaptAdam, DAdaptAdaGrad, DAdaptAdan, DAdaptAdanIP, DAdaptLion or DAdaptSGD.",
        source=ran("library/train_util.py:5032", lesson="04"),
    ),
    Rule(
        name="optimizer-unknown",
        effect="raises",
        when=c.unknown_optimizer,
        what="{error}: torch.optim has no optimizer {wanted!r}.",
        why="sd-scripts looks up a name that it does not know in torch.optim, where upper and lower case matter.",
        fix='--optimizer_type="{near}"',
        source=ran("library/train_util.py:5133", lesson="04"),
    ),
    Rule(
        name="optimizer-refuses",
        effect="raises",
        when=lambda o: c.refused_arguments(o, of_optimizer(o)),
        what="{error}: {what}.",
        why="sd-scripts passes optimizer_args to the optimizer's constructor unchanged.{comma}",
        fix="{fix}",
        changes=lambda o: (
            c.without_commas(o)
            or ({"optimizer_args": c.known_arguments(o)} if any(word in of_optimizer(o)[0] for word in ("takes no", "itself")) else {})
        ),
        source=ran("library/train_util.py:5093", lesson="04"),
    ),
    Rule(
        name="no-parameters",
        effect="raises",
        when=c.nothing_to_train,
        what="ValueError: {cause} leaves nothing to train.",
        why="Parts whose learning rate or rank is 0 are left out.",
        fix="{fix}",
        changes=c.something_to_train,
        source=ran("networks/lora.py:1188", lesson="04"),
    ),
    Rule(
        name="optimizer-made-twice",
        effect="raises",
        scripts=("train_db.py",),
        when=lambda o: values_if(
            o.optimizer in ("AdamW8bit", "SGDNesterov8bit") and o.number("stop_text_encoder_training") < 0, optimizer=o.optimizer
        ),
        what="ValueError: optimizer got an empty parameter list.",
        why="sd-scripts builds {optimizer} twice. When only the U-Net is trained, nothing is left to list for the second one.",
        fix="--optimizer_type=PagedAdamW8bit",
        changes=lambda o: {"optimizer_type": "PagedAdamW8bit", "use_8bit_adam": None, "optimizer_args": None},
        source=ran("library/train_util.py:4942", lesson="04"),
    ),
    Rule(
        name="optimizer-unfit",
        effect="raises",
        when=c.is_unfit,
        what="ValueError: {optimizer} cannot train this.",
        why="{why}",
        fix='--optimizer_type="AdamW"',
        changes=lambda o: {"optimizer_type": "AdamW", "optimizer_args": None},
        source=ran("library/train_util.py:5134", lesson="04"),
    ),
)
STEP_ERRORS = (
    Rule(
        name="optimizer-cannot-step",
        effect="raises",
        when=c.cannot_step,
        what="{error} in the first step: sd-scripts cannot use {optimizer}.",
        why="{why}",
        fix='--optimizer_type="AdamW"',
        changes=lambda o: {"optimizer_type": "AdamW", "optimizer_args": None},
        source=ran("library/train_util.py:5134", lesson="04"),
    ),
    Rule(
        name="optimizer-fails",
        effect="raises",
        when=lambda o: c.refused_arguments(o, of_step(o)),
        what="{error} in the first steps: {what}.",
        why="The optimizer's constructor accepts it, but the first two steps fail.{comma}",
        fix="{fix}",
        changes=lambda o: c.without_commas(o) or {"optimizer_args": None},
        source=ran("library/train_util.py:5134", lesson="04"),
    ),
    Rule(
        name="dadaptsgd-divides",
        effect="raises",
        when=lambda o: values_if(o.optimizer == "DAdaptSGD" and c.zero_norm(o), why=c.zero_norm(o)),
        what="ZeroDivisionError in the first step: DAdaptSGD divides by a norm that is 0.",
        why="{why}",
        fix="--optimizer_type=Prodigy",
        changes=lambda o: {"lr_warmup_steps": None, "full_fp16": None},
        source=ran("dadaptation/dadapt_sgd.py:126", lesson="04"),
    ),
    Rule(
        name="adaptive-refuses-several",
        effect="raises",
        when=c.several_rates,
        what="RuntimeError in the first step: {optimizer} refuses groups with different learning rates ({cause}).",
        why="It estimates one step size for all groups. With a warmup the error comes with the second step.",
        fix="--learning_rate=1.0 alone, without unet_lr, text_encoder_lr, LoRA+ and weights of blocks",
        changes=c.equal_rates,
        source=ran("prodigyopt/prodigy.py:152", lesson="04"),
    ),
)
ADAFACTOR_DIFFERENCES = (
    Rule(
        name="relative-step-unsaid",
        effect="overrides",
        when=lambda o: values_if(
            o.is_adafactor
            and c.leaves_out(o, "relative_step")
            and not c.asks_for_automatic(o)
            and (o.said("learning_rate", "unet_lr") or o["lr_scheduler"] != "adafactor"),
            to_manual=c.to_manual(o),
        ),
        what="relative_step is not set, so it is True: Adafactor chooses its own learning rate.",
        why="That rate is 0.01, and 1/√step from step 10,000 on, times the size of each weight. Your rate and schedule are ignored.",
        fix="{to_manual}",
        changes=c.made_manual,
        source=ran("library/train_util.py:5049", lesson="07"),
    ),
    Rule(
        name="warmup-init-wins",
        effect="overrides",
        when=lambda o: values_if(o.relative_step and c.says(o, "relative_step") and not o.argument("relative_step")),
        what="relative_step=False becomes True, because warmup_init is True.",
        why="warmup_init is a slower start for the learning rate that Adafactor chooses itself.",
        fix='"warmup_init=False"',
        changes=lambda o: c.with_arguments(o, warmup_init=False),
        source=ran("library/train_util.py:5051", lesson="07"),
    ),
    Rule(
        name="true-by-shape",
        effect="overrides",
        when=c.true_by_shape,
        what="{argument} counts as true.",
        why="A comma at the end makes it a tuple, quotes make it a text, and Python counts both as true, whatever they contain.",
        fix="Write False or True alone.",
        changes=c.without_commas,
        source=ran("library/train_util.py:4861", lesson="07"),
    ),
    Rule(
        name="adafactor-ignores-learning-rate",
        effect=c.effect_of_ignored_rate,
        log="learning rate is used as initial_lr",
        when=lambda o: values_if(
            o.relative_step and not of_optimizer(o) and o["learning_rate"] != 0, learning_rate=o["learning_rate"], fix=c.own_rate(o)
        ),
        what="learning_rate={learning_rate} is not used.",
        why='The log says it "is used as initial_lr", but that number is only shown: 1e-8, 1e-4 and 1.0 give the same first update.',
        fix="{fix}",
        source=ran("library/train_util.py:5061", lesson="07"),
    ),
    Rule(
        name="adafactor-scales-by-weights",
        effect="overrides",
        when=lambda o: values_if(c.is_manual(o) and isinstance(o.optimizer_args, dict) and o.argument("scale_parameter", True)),
        what="scale_parameter is True, so each weight learns at learning_rate times its own size.",
        why=(
            "A LoRA's lora_up starts at zero and then learns at a thousandth of the rate: in a toy run of 400 steps the loss did not "
            "move (.1659 to .1658, against .1363)."
        ),
        fix='"scale_parameter=False"',
        changes=lambda o: {} if c.says(o, "scale_parameter") else c.with_arguments(o, scale_parameter=False),
        source=ran("transformers/optimization.py:812", lesson="07"),
    ),
)
RUINS = (
    Rule(
        name="rate-of-one",
        effect="ruins",
        when=c.huge_rate,
        what="Learning rate {rate} with {optimizer} ruins the model: its first step moves every weight by about {rate}.",
        why=(
            "sd-scripts does not stop. Most weights are smaller than 0.1, so one such step destroys them. A rate of 1 is right for "
            "Prodigy and D-Adaptation, which multiply it by a rate of their own."
        ),
        fix="--learning_rate={usual}, or --optimizer_type=Prodigy",
        changes=lambda o: c.one_rate(float(str((c.huge_rate(o) or {})["usual"]))),
        source=read("library/train_util.py:5098", lesson="04"),
    ),
)
DIFFERENCES = (
    Rule(
        name="optimizer-args-twice",
        effect="overrides",
        when=lambda o: values_if(isinstance(o.optimizer_args, dict) and len(o["optimizer_args"] or ()) > len(o.optimizer_args)),
        what="An optimizer argument is given twice; the last one counts.",
        why="They become the keys of one dictionary.",
        fix="Keep one of them.",
        changes=lambda o: {"optimizer_args": [f"{k}={v!r}" for k, v in o.optimizer_args.items()]},
        source=ran("library/train_util.py:4874", lesson="04"),
    ),
)
WARNINGS = (
    Rule(
        name="adafactor-drops-group-rates",
        effect="warns",
        log="unet_lr and text_encoder_lr are ignored",
        when=lambda o: values_if(o.relative_step and not of_optimizer(o) and o.names_rates, fix=c.own_rate(o)),
        what="The learning rates of the parts (unet_lr, text_encoder_lr) are dropped.",
        why="With relative_step every weight has the rate that Adafactor chooses.",
        fix="{fix}",
        source=ran("library/train_util.py:5073", lesson="07"),
    ),
    Rule(
        name="adafactor-clips",
        effect="warns",
        log="clip_grad_norm is enabled",
        when=lambda o: values_if(c.is_manual(o) and o["max_grad_norm"] != 0, max_grad_norm=o["max_grad_norm"]),
        what="sd-scripts advises max_grad_norm=0 with Adafactor; you have {max_grad_norm}.",
        why=(
            "Adafactor limits each update itself (clip_threshold), and scaling all gradients alike hardly changes its updates. Nobody has "
            "shown that clipping harms; it costs a norm over all gradients."
        ),
        fix="--max_grad_norm=0 silences it.",
        source=ran("library/train_util.py:5083", lesson="05"),
    ),
    Rule(
        name="adafactor-schedule-hint",
        effect="warns",
        log="constant_with_warmup will be good",
        when=lambda o: values_if(c.is_manual(o) and o["lr_scheduler"] != "constant_with_warmup", lr_scheduler=o["lr_scheduler"]),
        what="sd-scripts advises constant_with_warmup with Adafactor; you have {lr_scheduler}.",
        why="This is only advice: the other schedules work too.",
        source=ran("library/train_util.py:5087", lesson="06"),
    ),
    Rule(
        name="adafactor-threshold",
        effect="warns",
        log="clip_threshold=1.0 will be good",
        when=lambda o: values_if(
            c.is_manual(o) and o.argument("clip_threshold", 1.0) != 1.0, clip_threshold=str(o.argument("clip_threshold"))
        ),
        what="sd-scripts advises clip_threshold=1.0; you have {clip_threshold}.",
        why="It bounds the size of an update, not of the gradient.",
        source=ran("library/train_util.py:5089", lesson="05"),
    ),
    Rule(
        name="adaptive-needs-one",
        effect="warns",
        log="learning rate is too low",
        when=c.low_adaptive_rate,
        what="{optimizer} with a learning rate of {rate}: too low.",
        why="It estimates the step size itself and multiplies it by the learning rate, which should be 1.",
        fix="--learning_rate=1.0",
        changes=lambda o: c.one_rate(1.0),
        source=ran("library/train_util.py:4992", lesson="04"),
    ),
    Rule(
        name="adaptive-wants-one-rate",
        effect="warns",
        log="only the first one will take effect",
        when=lambda o: values_if(o.is_adaptive and o.has_several_rates, optimizer=o.optimizer),
        what="{optimizer} with several learning rates: only the first takes effect.",
        why="It estimates one step size for all.",
        fix="--learning_rate=1.0 alone.",
        changes=lambda o: c.one_rate(1.0),
        source=ran("library/train_util.py:4997", lesson="04"),
    ),
    Rule(
        name="sgd8bit-momentum",
        effect="warns",
        log="must be with momentum",
        when=lambda o: values_if(o.optimizer == "SGDNesterov8bit" and c.leaves_out(o, "momentum")),
        what="SGDNesterov8bit without momentum: 0.9 is taken.",
        why="Nesterov's method needs one.",
        fix='--optimizer_args "momentum=0.9"',
        source=ran("library/train_util.py:4905", lesson="04"),
    ),
)
NOTES = (
    Rule(
        name="learning-rate-unsaid",
        effect="note",
        scripts=NETWORK,
        when=lambda o: values_if(o.is_readable and not o.relative_step and not o.is_adaptive and not o.said(*c.RATES)),
        what="learning_rate is not set, so it is 2e-6.",
        why="That default is for a whole model; a LoRA usually takes 1e-4, fifty times as much.",
        fix="--learning_rate=1e-4",
        changes=lambda o: {"learning_rate": 1e-4},
        source=ran("library/train_util.py:3701", lesson="07"),
    ),
    Rule(
        name="package",
        effect="note",
        when=c.needed_package,
        what="{optimizer} needs the package {package}; without it the run ends with an ImportError.",
        why="It is imported only after the models are loaded. sd-scripts' requirements have bitsandbytes, but not dadaptation.",
        fix="pip install {package}",
        source=read("library/train_util.py:4883", lesson="04"),
    ),
    Rule(
        name="optimizer-elsewhere",
        effect="note",
        when=lambda o: values_if(o.row is None and "." in o.wanted, wanted=o.wanted),
        what="{wanted} is imported by its path; the doctor does not know its arguments.",
        why="sd-scripts calls the class with the parameters, lr and optimizer_args.",
        source=read("library/train_util.py:5129", lesson="04"),
    ),
)
