"""The messages of training logs: what each means, and whether anything has to be done.

Read in kohya-ss/sd-scripts at commit 48d368f and in the versions it pins (transformers 4.54.1, diffusers 0.32.1, accelerate
1.6.0); torch is 2.13. A source without a package name is a file of sd-scripts.
"""

from __future__ import annotations

import functools
import itertools
import re
import string
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from .findings import EFFECTS, Finding

QUOTED_CHARACTERS = 80
"""A value taken from a log is cut to this length."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message a log may hold."""

    name: str
    pattern: str
    """Regular expressions in verbose form, separated by ` | `: one per language or wording, each beginning with fixed text.

    They are searched in the text *without any white space*, because a terminal breaks a line anywhere, in Japanese even inside a
    name. White space in a pattern means nothing for the same reason. Every gap has a bound, so that no text can make it slow.
    Named groups are values; several alternatives may have the same one.
    """
    effect: str
    """One of `findings.EFFECTS`."""
    what: str
    """What happened, with `{values}`. Clauses are separated by `; `, and one whose value the text lacks is left out."""
    why: str
    fix: str = ""
    """What to do; empty where nothing has to be done."""
    source: str
    lesson: str = ""


# What sd-scripts says when an import fails, what pip calls it, and where it says so.
_PACKAGES = (
    ("lion_pytorch", "lion-pytorch", "library/train_util.py:4885"),
    ("bitsandbytes", "bitsandbytes", "library/train_util.py:4894"),
    ("dadaptation", "dadaptation", "library/train_util.py:5007"),
    ("Prodigy", "prodigyopt", "library/train_util.py:5041"),
    ("schedulefree", "schedulefree", "library/train_util.py:5104"),
    ("xformers", "xformers", "library/train_util.py:3371"),
    ("wandb", "wandb", "library/train_util.py:5459"),
)

MESSAGES: tuple[Message, ...] = (
    # Gradient checkpointing.
    Message(
        name="checkpoint-use-reentrant-missing",
        pattern=r"torch\.utils\.checkpoint: the use_reentrant parameter should be passed explicitly"
        r" | torch\.utils\.checkpoint\.checkpoint_sequential: the use_reentrant parameter should"
        r" | torch\.utils\.checkpoint: please pass in use_reentrant=True or use_reentrant=False",
        effect="warns",
        what="Gradient checkpointing was called without saying which of its two variants to use.",
        why="torch then takes the older, reentrant one. That one gives no gradients when none of a block's inputs needs one, "
        "as with LoRA on a frozen U-Net. If the log does not also say so, training is right.",
        fix="In your own code pass use_reentrant=False. In a library, update it; nothing in your settings changes this.",
        source="torch/utils/checkpoint.py:487",
        lesson="03",
    ),
    Message(
        name="checkpoint-no-input-needs-grad",
        pattern=r"None of the inputs have requires_grad=True",
        effect="warns",
        what="A checkpointed block got no input that needs a gradient, so the weights inside it get none.",
        why="This is the reentrant variant of checkpointing. It sees only the inputs of a block, not the LoRA inside it. "
        "Python shows the line once, however many blocks it concerns: perhaps only the first, perhaps all.",
        fix="Use use_reentrant=False, or a newer sd-scripts, whose U-Net does. Then check that the weights change after a step.",
        source="torch/utils/checkpoint.py:91",
        lesson="03",
    ),
    Message(
        name="gradient-checkpointing-enable-deprecated",
        pattern=r"`gradient_checkpointing_enable` is deprecated",
        effect="note",
        what="transformers has renamed the call that switches checkpointing on.",
        why="The old name still does the same. This is harmless.",
        source="transformers 5.23: transformers/modeling_utils.py:3196",
        lesson="03",
    ),
    Message(
        name="checkpoint-refuses-keywords",
        pattern=r"ValueError: Unexpected keyword arguments: (?P<names>[\w,]{1,80})",
        effect="raises",
        what="Reentrant checkpointing refused keyword arguments; it was given {names}.",
        why="The reentrant variant passes on positional arguments only.",
        fix="Pass use_reentrant=False, or hand the arguments over by position.",
        source="torch/utils/checkpoint.py:502",
        lesson="03",
    ),
    Message(
        name="checkpoint-refuses-grad",
        pattern=r"When use_reentrant=True, torch\.utils\.checkpoint is incompatible",
        effect="raises",
        what="Reentrant checkpointing met autograd.grad, or a backward with named inputs.",
        why="The reentrant variant runs a backward of its own inside yours, and that works only for a plain backward().",
        fix="Pass use_reentrant=False.",
        source="torch/utils/checkpoint.py:281",
        lesson="03",
    ),
    Message(
        name="checkpoint-output-without-grad",
        pattern=r"none of output has requires_grad=True",
        effect="raises",
        what="A checkpointed block has no output that needs a gradient.",
        why="There is nothing to recompute for: everything in the block is frozen, or it ran under no_grad.",
        fix="Do not checkpoint this block, or make what should be trained require gradients.",
        source="torch/utils/checkpoint.py:328",
        lesson="03",
    ),
    Message(
        name="checkpoint-recomputed-differently",
        pattern=r"torch\.utils\.checkpoint: A different number of tensors was saved"
        r" | torch\.utils\.checkpoint: Recomputed values for the following tensors have different metadata",
        effect="raises",
        what="A checkpointed block did something else when it was computed again.",
        why="Checkpointing needs the second forward pass to repeat the first. A changed switch, an autocast that is on only once, "
        "or offloaded weights between the two break that.",
        fix="Look for what changes between forward and backward: train() and eval(), autocast, hooks, compiled parts.",
        source="torch/utils/checkpoint.py:880",
        lesson="03",
    ),
    Message(
        name="checkpointing-unsupported",
        pattern=r"does not support gradient checkpointing",
        effect="raises",
        what="This model has no gradient checkpointing.",
        why="The model's class says that none of its blocks can be recomputed.",
        fix="Leave gradient_checkpointing off for this model.",
        source="diffusers/models/modeling_utils.py:188",
        lesson="03",
    ),
    Message(
        name="cpu-offload-unsupported",
        pattern=r"enable_gradient_checkpointing\(\) got an unexpected keyword argument 'cpu_offload'",
        effect="raises",
        what="cpu_offload_checkpointing does not exist for this model.",
        why="The option is accepted for every model, but the U-Nets of Stable Diffusion 1, 2 and SDXL cannot offload.",
        fix="Remove --cpu_offload_checkpointing. Keep --gradient_checkpointing.",
        source="train_network.py:718",
        lesson="03",
    ),
    Message(
        name="cpu-offload-turns-checkpointing-on",
        pattern=r"cpu_offload_checkpointing is enabled, so gradient_checkpointing is also enabled"
        r" | cpu_offload_checkpointingが有効になっているため、gradient_checkpointingも有効になります",
        effect="note",
        what="cpu_offload_checkpointing has switched gradient checkpointing on as well.",
        why="Offloading is a part of checkpointing. This is harmless.",
        source="flux_train.py:77",
        lesson="03",
    ),
    Message(
        name="block-swap-with-cpu-offload",
        pattern=r"blocks_to_swap is not supported with cpu_offload_checkpointing"
        r" | blocks_to_swapはcpu_offload_checkpointingと併用できません",
        effect="raises",
        what="blocks_to_swap and cpu_offload_checkpointing were set together.",
        why="Both move parts of the model between the GPU and the computer's memory, and they would get in each other's way.",
        fix="Remove one of the two.",
        source="flux_train.py:84",
        lesson="03",
    ),
    # Adafactor.
    Message(
        name="adafactor-in-use",
        pattern=r"use Adafactor optimizer \| \{(?P<arguments>[^{}]{1,300})\}",
        effect="note",
        what="Adafactor was made; its arguments are {arguments}.",
        why="These are the arguments after sd-scripts has changed them. 'relative_step': True means that Adafactor chooses the "
        "learning rate itself.",
        source="library/train_util.py:5056",
        lesson="04",
    ),
    Message(
        name="adafactor-relative-step-forced",
        pattern=r"set relative_step to True because warmup_init is True | warmup_initがTrueのためrelative_stepをTrueにします",
        effect="overrides",
        what="Your relative_step=False was turned into True, because warmup_init is True.",
        why="Adafactor's own warmup works only with its own learning rate. Yours is now ignored, and your scheduler too.",
        fix='Say both: --optimizer_args "relative_step=False" "warmup_init=False" "scale_parameter=False".',
        source="library/train_util.py:5053",
        lesson="04",
    ),
    Message(
        name="adafactor-relative-step-on",
        pattern=r"relative_step is true | relative_stepがtrueです",
        effect="note",
        what="Adafactor chooses the learning rate itself.",
        why="This is what sd-scripts does unless relative_step=False is said. It is fine if you wanted it.",
        fix='To set the learning rate yourself: --optimizer_args "relative_step=False" "scale_parameter=False" "warmup_init=False".',
        source="library/train_util.py:5059",
        lesson="04",
    ),
    Message(
        name="adafactor-learning-rate-ignored",
        pattern=r"learning rate is used as initial_lr | 指定したlearning rateはinitial_lrとして使用されます",
        effect="overrides",
        what="Your learning_rate has no effect.",
        why="The message says it becomes the first learning rate, but it only shows up in the log before the first step. With "
        "relative_step=True every update is computed from the step number: 1e-8 and 1.0 give the same one.",
        fix='To use it: --optimizer_args "relative_step=False" "scale_parameter=False" "warmup_init=False".',
        source="library/train_util.py:5061",
        lesson="04",
    ),
    Message(
        name="adafactor-group-rates-ignored",
        pattern=r"unet_lr and text_encoder_lr are ignored | unet_lrとtext_encoder_lrは無視されます",
        effect="overrides",
        what="unet_lr and text_encoder_lr have no effect.",
        why="With relative_step=True Adafactor chooses one learning rate for everything.",
        fix='To use them: --optimizer_args "relative_step=False" "scale_parameter=False" "warmup_init=False".',
        source="library/train_util.py:5073",
        lesson="04",
    ),
    Message(
        name="adafactor-scheduler-replaced",
        pattern=r"use adafactor_scheduler | スケジューラにadafactor_schedulerを使用します",
        effect="overrides",
        what="Your lr_scheduler was replaced by the one that only reports Adafactor's own learning rate.",
        why="With relative_step=True a schedule of yours would have nothing to act on. A warmup then stops training with an error.",
        fix="Set lr_warmup_steps to 0, or take over the learning rate with relative_step=False.",
        source="library/train_util.py:5078",
        lesson="04",
    ),
    Message(
        name="adafactor-clipping-on",
        pattern=r"because max_grad_norm is set, clip_grad_norm is enabled | max_grad_normが設定されているためclip_grad_normが有効に",
        effect="warns",
        what="Gradients are clipped as well as Adafactor's own updates.",
        why="max_grad_norm is 1.0 unless you set it. Adafactor limits its updates itself, so clipping is mostly redundant; "
        "no measurement we know of shows that it harms.",
        fix="--max_grad_norm=0 turns it off and silences the message. Leaving it is fine.",
        source="library/train_util.py:5085",
        lesson="05",
    ),
    Message(
        name="adafactor-wants-constant-with-warmup",
        pattern=r"constant_with_warmup will be good | スケジューラはconstant_with_warmupが良いかもしれません",
        effect="warns",
        what="sd-scripts suggests the constant_with_warmup scheduler for Adafactor with a fixed learning rate.",
        why="It is a suggestion. Other schedules work too; what matters is that the first steps are small.",
        fix="--lr_scheduler=constant_with_warmup --lr_warmup_steps=100, or keep a schedule that warms up.",
        source="library/train_util.py:5088",
        lesson="06",
    ),
    Message(
        name="adafactor-clip-threshold",
        pattern=r"clip_threshold=1\.0 will be good | clip_thresholdは1\.0が良いかもしれません",
        effect="warns",
        what="clip_threshold is not 1.0.",
        why="It limits the size of Adafactor's updates, and 1.0 is the value of the paper. It is not the clipping of gradients.",
        fix="Leave clip_threshold out of optimizer_args unless you mean it.",
        source="library/train_util.py:5090",
        lesson="05",
    ),
    Message(
        name="adafactor-two-learning-rates",
        pattern=r"Cannot combine manual `lr` and `relative_step=True` options",
        effect="raises",
        what="Adafactor got a learning rate and was also told to choose one.",
        why="transformers' Adafactor refuses both at once. In sd-scripts the learning rate is taken away first; your own code must.",
        fix="Pass relative_step=False with a learning rate, or lr=None without one.",
        source="transformers/optimization.py:787",
        lesson="04",
    ),
    Message(
        name="adafactor-warmup-init-alone",
        pattern=r"`warmup_init=True` requires `relative_step=True`",
        effect="raises",
        what="warmup_init=True was used with a fixed learning rate.",
        why="Adafactor's own warmup is a part of its own learning rate.",
        fix="Set warmup_init=False and warm up with the scheduler.",
        source="transformers/optimization.py:789",
        lesson="04",
    ),
    Message(
        name="adafactor-scheduler-without-adafactor",
        pattern=r"adafactor scheduler must be used with Adafactor optimizer"
        r" | adafactor schedulerはAdafactorオプティマイザと同時に使ってください",
        effect="raises",
        what="lr_scheduler is adafactor, but the optimizer is another one.",
        why="That scheduler asks the optimizer for its learning rate, and only Adafactor can answer.",
        fix="Choose another lr_scheduler, such as constant_with_warmup, or optimizer_type=Adafactor.",
        source="library/train_util.py:5316",
        lesson="04",
    ),
    Message(
        name="adafactor-scheduler-without-relative-step",
        pattern=r'initial_lr = float\(name\.split\(":"\)\[1\]\) .{0,150}? IndexError',
        effect="raises",
        what="lr_scheduler=adafactor was combined with relative_step=False.",
        why="sd-scripts expects a number behind a colon in the scheduler's name and adds it only when relative_step is True.",
        fix="With relative_step=False use --lr_scheduler=constant_with_warmup.",
        source="library/train_util.py:5317",
        lesson="04",
    ),
    # Optimizers and their packages.
    *(
        Message(
            name=f"{package}-not-installed",
            pattern=rf"ImportError: No {said} | {said}がインストールされていないようです",
            effect="raises",
            what=f"{said} is not installed.",
            why="sd-scripts imports it only when your settings ask for it.",
            fix=f"pip install {package}, in the same environment that runs sd-scripts.",
            source=source,
            lesson="07",
        )
        for said, package, source in _PACKAGES
    ),
    Message(
        name="module-not-found",
        pattern=r"ModuleNotFoundError: No module named '(?!triton)(?P<module>[\w.]{1,80})'",
        effect="raises",
        what="Python did not find a module; it is {module}.",
        why="The package is missing in the environment that ran, which is often not the one you installed into.",
        fix="Activate sd-scripts' environment and install its requirements.txt, then the package itself.",
        source="CPython: importlib/_bootstrap.py",
        lesson="07",
    ),
    Message(
        name="bitsandbytes-too-old",
        pattern=r"The version of bitsandbytes installed seems to be old"
        r" | インストールされているbitsandbytesのバージョンが古いようです",
        effect="raises",
        what="The installed bitsandbytes does not have this optimizer yet.",
        why="Its paged and Lion variants came with later versions.",
        fix="pip install -U bitsandbytes",
        source="library/train_util.py:4918",
        lesson="07",
    ),
    Message(
        name="bitsandbytes-without-gpu-code",
        pattern=r"bitsandbytes library load error | Native code method attempted to call: lib\."
        r" | not available in CPU-only version of bitsandbytes",
        effect="raises",
        what="bitsandbytes has no working GPU code here.",
        why="Its library for your CUDA version was not found or could not be loaded, so 8-bit optimizers cannot run.",
        fix="pip install -U bitsandbytes, or use Adafactor, which needs no extra package.",
        source="bitsandbytes/cextension.py:400",
        lesson="07",
    ),
    Message(
        name="optimizer-unknown",
        pattern=r"AttributeError: module 'torch\.optim' has no attribute '(?P<name>\w{1,60})' | Unknown optimizer type: (?P<name>.{1,60})",
        effect="raises",
        what="There is no optimizer of this name; the name was {name}.",
        why="A name that sd-scripts does not know is looked up in torch.optim, where upper and lower case matter.",
        fix="Correct optimizer_type. For an optimizer of another package write its full path, such as package.ClassName.",
        source="library/train_util.py:5133",
        lesson="07",
    ),
    Message(
        name="optimizer-refuses-argument",
        pattern=r"TypeError: (?P<function>[\w.]{1,80}?)\(\) got an unexpected keyword argument '(?!cpu_offload')(?P<argument>\w{1,60})'",
        effect="raises",
        what="An argument was refused; {function} does not know {argument}.",
        why="optimizer_args and lr_scheduler_args go to the optimizer and scheduler as they are. Adafactor has beta1, not betas.",
        fix="Remove the argument, or use the name that this optimizer or scheduler gives it.",
        source="library/train_util.py:5093",
        lesson="07",
    ),
    Message(
        name="automatic-rate-too-low",
        pattern=r"learning rate is too low\. If using D-Adaptation or Prodigy | 学習率が低すぎるようです。D-AdaptationまたはProdigy"
        r" | recommend option: lr=1\.0 | 推奨は1\.0です",
        effect="warns",
        what="The learning rate is 0.1 or less with D-Adaptation or Prodigy.",
        why="These optimizers find the learning rate themselves and multiply it by yours. With 1e-4 almost nothing is learned.",
        fix="--learning_rate=1.0",
        source="library/train_util.py:4992",
        lesson="07",
    ),
    Message(
        name="automatic-rate-only-one",
        pattern=r"when multiple learning rates are specified with dadaptation"
        r" | D-AdaptationまたはProdigyで複数の学習率を指定した場合",
        effect="overrides",
        what="Only the first of your learning rates has an effect.",
        why="D-Adaptation and Prodigy find one learning rate for everything.",
        fix="Give learning_rate, unet_lr and text_encoder_lr the same value.",
        source="library/train_util.py:4997",
        lesson="07",
    ),
    Message(
        name="automatic-rate-refuses-several",
        pattern=r"Setting different lr values in different parameter groups is only supported for values of 0",
        effect="raises",
        what="The optimizer refused several learning rates.",
        why="Prodigy and D-Adaptation accept one learning rate; a group may only be switched off with 0.",
        fix="Give learning_rate, unet_lr and text_encoder_lr the same value, or 0.",
        source="prodigyopt/prodigy.py:152",
        lesson="07",
    ),
    Message(
        name="optimizer-said-twice",
        pattern=r"both option use_\w{1,20} and \w{1,40} are specified | の両方のオプションが指定されています",
        effect="raises",
        what="The optimizer was chosen by two options at once.",
        why="use_8bit_adam and use_lion_optimizer are older spellings of optimizer_type.",
        fix="Keep only optimizer_type.",
        source="library/train_util.py:4832",
        lesson="07",
    ),
    Message(
        name="sgd-momentum-set",
        pattern=r"SGD with Nesterov must be with momentum | SGD with Nesterovはmomentum指定が必須のため",
        effect="overrides",
        what="momentum was set to 0.9.",
        why="Nesterov's method cannot do without momentum, and none was given.",
        fix='Say it yourself: --optimizer_args "momentum=0.9".',
        source="library/train_util.py:4972",
        lesson="07",
    ),
    Message(
        name="schedulefree-not-in-train-mode",
        pattern=r"Optimizer was not in train mode when step is called",
        effect="raises",
        what="A schedule-free optimizer was stepped in eval mode.",
        why="It keeps two sets of weights and must be told which one is in use.",
        fix="Call optimizer.train() before training and after every sampling. sd-scripts does so itself.",
        source="schedulefree/adamw_schedulefree.py:112",
        lesson="07",
    ),
    # key=value arguments.
    Message(
        name="argument-not-a-literal",
        pattern=r"malformed node or string",
        effect="raises",
        what="A value in optimizer_args or lr_scheduler_args is not a Python value.",
        why="Values are read as Python writes them: True and False with a capital, texts in quotes.",
        fix='Write "relative_step=False", not "relative_step=false".',
        source="library/train_util.py:4861",
        lesson="07",
    ),
    Message(
        name="argument-not-python",
        pattern=r'File "<unknown>", line \d{1,4} .{0,150}? SyntaxError',
        effect="raises",
        what="A value in optimizer_args or lr_scheduler_args cannot be read.",
        why="It is empty, or holds a space, a missing bracket, or a unit.",
        fix='Write each as "key=value" without spaces, such as "betas=(0.9,0.99)".',
        source="library/train_util.py:4861",
        lesson="07",
    ),
    Message(
        name="argument-without-equals",
        pattern=r'key, value = \w{1,20}\.split\("="\) .{0,150}? not enough values to unpack',
        effect="raises",
        what='One of the "key=value" arguments has no equals sign.',
        why="A space around the equals sign splits it into several arguments, and a plain text in a TOML file is read letter by letter.",
        fix='On the command line "key=value" "key=value"; in TOML a list: optimizer_args = ["key=value", "key=value"].',
        source="library/train_util.py:4860",
        lesson="07",
    ),
    Message(
        name="argument-with-two-equals",
        pattern=r'key, value = \w{1,20}\.split\("="\) .{0,150}? too many values to unpack',
        effect="raises",
        what='One of the "key=value" arguments has more than one equals sign.',
        why="Two arguments stand inside one pair of quotes.",
        fix='Quote each one by itself: "relative_step=False" "scale_parameter=False".',
        source="library/train_util.py:4860",
        lesson="07",
    ),
    # Learning-rate schedules.
    Message(
        name="adafactor-refuses-warmup",
        pattern=r"adafactor:(?P<rate>[\w.+-]{1,24}?) does not require `num_warmup_steps`",
        effect="raises",
        what="Adafactor's own scheduler refuses a warmup.",
        why="relative_step is True, also when you did not say so. Then your scheduler is replaced by adafactor:{rate}, "
        "which accepts no warmup. Whatever you chose was put aside before.",
        fix='--optimizer_args "relative_step=False" "scale_parameter=False" "warmup_init=False"; or --lr_warmup_steps=0.',
        source="library/train_util.py:5296",
        lesson="07",
    ),
    Message(
        name="scheduler-refuses-warmup",
        pattern=r"SchedulerType\.(?P<scheduler>\w{1,40}?) does not require `num_warmup_steps`"
        r" | ValueError: (?!adafactor:|SchedulerType)(?P<scheduler>\w{1,40}?) does not require `num_warmup_steps`",
        effect="raises",
        what="This scheduler accepts no warmup; it is {scheduler}.",
        why="constant is sd-scripts' default and starts at the full learning rate. A class given with lr_scheduler_type is "
        "not warmed up either.",
        fix="--lr_scheduler=constant_with_warmup, or --lr_warmup_steps=0.",
        source="library/train_util.py:5296",
        lesson="06",
    ),
    Message(
        name="scheduler-needs-steps",
        pattern=r"requires `num_(?P<kind>warmup|training|decay)_steps`, please provide",
        effect="raises",
        what="The scheduler was not told a number of steps; it needs the number of {kind} steps.",
        why="Without it the shape of the schedule is not known.",
        fix="Set lr_warmup_steps, max_train_steps or lr_decay_steps.",
        source="library/train_util.py:5334",
        lesson="06",
    ),
    Message(
        name="scheduler-unknown",
        pattern=r"ValueError: '?(?P<scheduler>[^':]{1,60}?)'? is not a valid SchedulerType | is not a valid SchedulerType",
        effect="raises",
        what="There is no lr_scheduler of this name; the name was {scheduler}.",
        why="A TOML file is not checked when it is read, so a misspelt name comes up only here, after the models were loaded.",
        fix="Use linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup or another of the names listed.",
        source="transformers/utils/generic.py:522",
        lesson="06",
    ),
    Message(
        name="scheduler-class-unknown",
        pattern=r"module 'torch\.optim\.lr_scheduler' has no attribute '(?P<name>\w{1,60})'",
        effect="raises",
        what="torch has no scheduler class of this name; the name was {name}.",
        why="lr_scheduler_type wants the name of a class, such as CosineAnnealingLR. Names such as cosine belong to lr_scheduler.",
        fix="Use --lr_scheduler instead of --lr_scheduler_type, or the name of a class.",
        source="library/train_util.py:5309",
        lesson="06",
    ),
    Message(
        name="scheduler-needs-min-lr",
        pattern=r"One of min_lr or min_lr_rate should be set",
        effect="raises",
        what="cosine_with_min_lr was not told where to end.",
        why="It falls to a share of the learning rate, and that share has no default.",
        fix="--lr_scheduler_min_lr_ratio=0.1",
        source="transformers/optimization.py:375",
        lesson="06",
    ),
    Message(
        name="scheduler-before-optimizer",
        pattern=r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`",
        effect="warns",
        what="The schedule moved on before the first optimizer step.",
        why="In fp16 the scaler skips its first steps while it looks for a scale, and then this is harmless. Otherwise the "
        "two calls are in the wrong order and the first learning rate is lost.",
        fix="In your own loop: optimizer.step(), then lr_scheduler.step().",
        source="torch/optim/lr_scheduler.py:269",
        lesson="06",
    ),
    Message(
        name="scheduler-epoch-deprecated",
        pattern=r"The epoch parameter in `scheduler\.step\(\)` was not necessary",
        effect="note",
        what="A library steps the schedule in an older way.",
        why="The learning rate is the same. This is harmless.",
        source="torch/optim/lr_scheduler.py:45",
        lesson="06",
    ),
    # The fused backward pass, clipping and the loss scaler.
    Message(
        name="fused-backward-needs-adafactor",
        pattern=r"fused_backward_pass currently only works with optimizer_type Adafactor"
        r" | fused_backward_passは現在optimizer_type Adafactorでのみ機能します",
        effect="raises",
        what="fused_backward_pass was used with another optimizer than Adafactor.",
        why="Each parameter is stepped as soon as its gradient exists, and sd-scripts has written that for Adafactor only.",
        fix="--optimizer_type=Adafactor, or remove --fused_backward_pass.",
        source="library/train_util.py:4851",
        lesson="04",
    ),
    Message(
        name="fused-backward-refuses-accumulation",
        pattern=r"fused_backward_pass does not work with gradient_accumulation_steps"
        r" | fused_backward_passはgradient_accumulation_steps>1では機能しません",
        effect="raises",
        what="fused_backward_pass was used with gradient accumulation.",
        why="It frees every gradient at once, so there is nothing left to add the next one to.",
        fix="--gradient_accumulation_steps=1, or remove --fused_backward_pass.",
        source="library/train_util.py:4854",
        lesson="04",
    ),
    Message(
        name="unscaled-twice",
        pattern=r"unscale_\(\) has already been called on this optimizer",
        effect="raises",
        what="The gradients were unscaled twice before one step.",
        why="Clipping has to unscale fp16 gradients first. fused_backward_pass clips one tensor after another, and the second "
        "one is refused.",
        fix="--max_grad_norm=0, or bf16 instead of fp16.",
        source="torch/amp/grad_scaler.py:343",
        lesson="05",
    ),
    Message(
        name="scaler-saw-no-gradient",
        pattern=r"No inf checks were recorded for this optimizer",
        effect="raises",
        what="No trained weight got a gradient.",
        why="The fp16 scaler looks through all gradients and found none. The network is not connected to the loss, or "
        "reentrant checkpointing cut it off.",
        fix="Check that something is trained at all, and use non-reentrant checkpointing.",
        source="torch/amp/grad_scaler.py:476",
        lesson="03",
    ),
    Message(
        name="trained-weights-in-fp16",
        pattern=r"Attempting to unscale FP16 gradients",
        effect="raises",
        what="The trained weights are in fp16.",
        why="The scaler of mixed precision needs them in fp32; only the forward pass runs in fp16.",
        fix="Load or cast what is trained to fp32. In sd-scripts remove --full_fp16, or use bf16 with --full_bf16.",
        source="torch/amp/grad_scaler.py:275",
        lesson="09",
    ),
    # Precision.
    Message(
        name="full-precision-mismatch",
        pattern=r"full_(?P<kind>fp16|bf16) requires mixed precision= | full_(?P<kind>fp16|bf16)を使う場合はmixed_precision=",
        effect="raises",
        what="full_{kind} was used without the matching mixed_precision.",
        why="mixed_precision is no unless sd-scripts itself is told otherwise; accelerate's own configuration does not count.",
        fix="--mixed_precision={kind}",
        source="train_network.py:817",
        lesson="09",
    ),
    Message(
        name="fp8-needs-mixed-precision",
        pattern=r"fp8_base requires mixed precision= | fp8を使う場合はmixed_precision=",
        effect="raises",
        what="fp8_base was used without mixed precision.",
        why="fp8 is only for storing the frozen model. It still has to compute in fp16 or bf16.",
        fix="--mixed_precision=bf16, or fp16 on a GPU without bf16.",
        source="train_network.py:833",
        lesson="09",
    ),
    Message(
        name="fp8-needs-newer-torch",
        pattern=r"fp8_base requires torch>= | fp8を使う場合はtorch>=",
        effect="raises",
        what="torch is too old for fp8.",
        why="The fp8 number types came with torch 2.1.",
        fix="Update torch, or remove --fp8_base.",
        source="train_network.py:830",
        lesson="09",
    ),
    Message(
        name="fp16-needs-a-gpu",
        pattern=r"fp16 mixed precision requires a (?:GPU|device in)",
        effect="raises",
        what="fp16 was asked for, but no GPU was found.",
        why="torch sees no GPU: the notebook has none, or this torch was built without CUDA.",
        fix="Switch the GPU on (on Colab: Runtime, Change runtime type), or install torch with CUDA.",
        source="accelerate/accelerator.py:555",
        lesson="09",
    ),
    Message(
        name="bf16-unsupported",
        pattern=r"bf16 mixed precision requires PyTorch",
        effect="raises",
        what="This GPU or this torch has no bf16.",
        why="bf16 needs an NVIDIA card of the 30 series or later. A T4 has none.",
        fix="--mixed_precision=fp16",
        source="accelerate/accelerator.py:573",
        lesson="09",
    ),
    Message(
        name="nan-in-latents",
        pattern=r"NaN detected in latents: (?P<picture>.{1,200}) | NaN detected in latents",
        effect="raises",
        what="The autoencoder returned numbers that are not numbers; the picture was {picture}.",
        why="SDXL's autoencoder overflows in fp16. More rarely the picture file is broken. Only cached latents are checked like this.",
        fix="--no_half_vae, or an autoencoder repaired for fp16. If it is one picture only, remove that picture.",
        source="library/train_util.py:3098",
        lesson="09",
    ),
    Message(
        name="nan-in-latents-replaced",
        pattern=r"NaN found in latents, replacing with zeros",
        effect="overrides",
        what="Broken latents were replaced with zeros.",
        why="The model is now trained on an empty picture under your caption. SDXL's autoencoder overflows in fp16.",
        fix="--no_half_vae",
        source="train_network.py:411",
        lesson="09",
    ),
    Message(
        name="nan-in-text-encoder",
        pattern=r"NaN detected in text encoder outputs",
        effect="raises",
        what="A text encoder returned numbers that are not numbers.",
        why="It overflowed in fp16, or its weights are broken.",
        fix="Use bf16 or fp32, and check the model file.",
        source="library/train_util.py:3170",
        lesson="09",
    ),
    Message(
        name="loss-is-nan",
        pattern=r"avr_loss=nan | loss=nan",
        effect="warns",
        what="The loss shown is not a number any more.",
        why="Usual causes are overflow in fp16 and a learning rate that is too high. The number shown is an average that never "
        "recovers from one bad step, so the weights may still be good: in fp16 such a step is skipped. In bf16 and fp32 they are lost.",
        fix="Look at a sample picture. If it is broken, go back to the last good file and use bf16, --no_half_vae with fp16, a "
        "lower learning rate or a longer warmup.",
        source="library/train_util.py:6688",
        lesson="09",
    ),
    # Caching.
    Message(
        name="latent-cache-refuses-augmentation",
        pattern=r"when caching latents, either color_aug or random_crop cannot be used"
        r" | latentをキャッシュするときはcolor_augとrandom_cropは使えません",
        effect="raises",
        what="cache_latents was used together with color_aug or random_crop.",
        why="Cached latents are computed once, and those two change the picture every time. flip_aug is fine.",
        fix="Remove color_aug and random_crop, or do not cache.",
        source="train_network.py:584",
        lesson="02",
    ),
    Message(
        name="latent-cache-switched-on",
        pattern=r"cache_latents_to_disk is enabled, so cache_latents is also enabled"
        r" | cache_latents_to_diskが有効なため、cache_latentsを有効にします",
        effect="note",
        what="cache_latents_to_disk has switched cache_latents on.",
        why="One needs the other. This is harmless.",
        source="library/train_util.py:4427",
        lesson="02",
    ),
    Message(
        name="text-cache-refuses-caption-changes",
        pattern=r"either caption_dropout_rate, shuffle_caption, token_warmup_step or caption_tag_dropout_rate cannot be used"
        r" | caption_dropout_rate, shuffle_caption, token_warmup_step, caption_tag_dropout_rateは使えません",
        effect="raises",
        what="Text encoder outputs were to be cached although captions change during training.",
        why="A cached output belongs to one fixed caption.",
        fix="Remove caption dropout, shuffling and token warmup, or do not cache text encoder outputs.",
        source="sdxl_train_network.py:37",
        lesson="02",
    ),
    Message(
        name="text-cache-refuses-weighted-captions",
        pattern=r"weighted_captions is not supported when caching text encoder outputs"
        r" | cache_text_encoder_outputsを使うときはweighted_captionsはサポートされていません",
        effect="raises",
        what="weighted_captions was used together with cached text encoder outputs.",
        why="The cache holds unweighted outputs.",
        fix="Remove one of the two.",
        source="sdxl_train.py:108",
        lesson="02",
    ),
    Message(
        name="text-cache-refuses-training",
        pattern=r"cache_text_encoder_outputs is not supported when training text encoder"
        r" | text encoderを学習するときはcache_text_encoder_outputsはサポートされていません"
        r" | network for Text Encoder cannot be trained with caching Text Encoder outputs"
        r" | Text Encoderの出力をキャッシュしながらText Encoderのネットワークを学習することはできません",
        effect="raises",
        what="The text encoder was to be trained and its outputs to be cached.",
        why="A trained text encoder changes its outputs at every step, so none can be kept.",
        fix="--network_train_unet_only for LoRA; otherwise remove --train_text_encoder or the caching.",
        source="sdxl_train_network.py:41",
        lesson="02",
    ),
    Message(
        name="text-cache-switched-on",
        pattern=r"cache_text_encoder_outputs is enabled because cache_text_encoder_outputs_to_disk is enabled"
        r" | cache_text_encoder_outputs_to_diskが有効になっているためcache_text_encoder_outputsが有効になりました",
        effect="note",
        what="cache_text_encoder_outputs_to_disk has switched cache_text_encoder_outputs on.",
        why="One needs the other. This is harmless.",
        source="library/sdxl_train_util.py:375",
        lesson="02",
    ),
    Message(
        name="latent-files-ignored",
        pattern=r"latents in npz is ignored when color_aug or random_crop is True"
        r" | color_augまたはrandom_cropを有効にした場合、npzファイルのlatentsは無視されます",
        effect="overrides",
        what="The latents saved beside your pictures are not used.",
        why="color_aug and random_crop change the pictures every time, so saved latents do not fit.",
        fix="Remove color_aug and random_crop to use the saved latents.",
        source="library/train_util.py:5428",
        lesson="02",
    ),
    # Memory.
    Message(
        name="gpu-out-of-memory",
        pattern=r"CUDA out of memory\. Tried to allocate (?P<wanted>[\d.]{1,12}[KMGT]?i?B(?:ytes)?)\. GPU \d{1,3} has a total capaci?ty"
        r" of (?P<total>[\d.]{1,12}[KMGT]?i?B(?:ytes)?) of which (?P<free>[\d.]{1,12}(?:[KMGT]?iB|bytes)) is free"
        r" | CUDA out of memory\. Tried to allocate (?P<wanted>[\d.]{1,12}[KMGT]?i?B(?:ytes)?) \(GPU \d{1,3};"
        r" (?P<total>[\d.]{1,12}[KMGT]?i?B(?:ytes)?) total capacity; .{0,60}? allocated; (?P<free>[\d.]{1,12}(?:[KMGT]?iB|bytes)) free"
        r" | CUDA out of memory\. Tried to allocate (?P<wanted>[\d.]{1,12}[KMGT]?i?B(?:ytes)?)"
        r" | CUDA out of memory",
        effect="raises",
        what="The GPU's memory is full; {wanted} more were asked for; of {total} there were {free} free.",
        why="The amount asked for is one tensor, not what is missing in all. Weights, gradients, optimizer state and activations "
        "share the memory, and activations grow with batch and resolution.",
        fix="In this order: --gradient_checkpointing, --train_batch_size=1, --cache_latents, bf16 or fp16, Adafactor or an 8-bit "
        "optimizer, LoRA instead of all weights, a smaller resolution. Close other programs that use the GPU.",
        source="torch: c10/cuda/CUDACachingAllocator.cpp",
        lesson="02",
    ),
    Message(
        name="gpu-out-of-memory-in-driver",
        pattern=r"CUDA error: out of memory | CUBLAS_STATUS_ALLOC_FAILED",
        effect="raises",
        what="The driver or a CUDA library could not get memory.",
        why="The GPU is full before torch's own allocator notices: another program holds memory, or torch left no room for workspaces.",
        fix="Close other programs that use the GPU (nvidia-smi lists them), then save memory as for any full GPU.",
        source="torch: c10/cuda/CUDAException.cpp",
        lesson="02",
    ),
    Message(
        name="process-killed",
        pattern=r"died with <Signals\.SIGKILL",
        effect="raises",
        what="The system killed the training process.",
        why="Most often the computer's own memory was full, not the GPU's: loading a model needs several GiB of it, and caching "
        "latents in memory adds to that.",
        fix="--cache_latents_to_disk, fewer max_data_loader_n_workers, a model file in safetensors, or a runtime with more memory.",
        source="CPython: subprocess.py",
        lesson="02",
    ),
    Message(
        name="launcher-reports-failure",
        pattern=r"returned non-zero exit status (?P<status>\d{1,4})",
        effect="note",
        what="accelerate reports that the training script failed.",
        why="This line and the traceback above it come from the launcher. The reason stands further up, in the script's own traceback.",
        source="accelerate/commands/launch.py:795",
    ),
    # Pictures and captions.
    Message(
        name="accumulation-with-two-models",
        pattern=r"gradient_accumulation_steps is (?P<steps>\d{1,6})\. accelerate does not support gradient_accumulation_steps when"
        r" | gradient_accumulation_stepsが(?P<steps>\d{1,6})に設定されています。accelerateは複数モデル",
        effect="warns",
        what="Gradients are accumulated while U-Net and text encoder are trained together; over {steps} batches.",
        why="accelerate was made to accumulate for one model at a time. sd-scripts does not promise that the result is right.",
        fix="Train the U-Net alone, or use a larger batch instead of accumulation.",
        source="train_db.py:122",
        lesson="02",
    ),
    Message(
        name="no-pictures",
        pattern=r"No data found\. Please verify | 画像がありません。引数指定を確認してください"
        r" | 画像がありません。メタデータおよびtrain_data_dirオプションを確認してください",
        effect="raises",
        what="No pictures were found, so nothing is trained.",
        why="train_data_dir is the folder around your folders of pictures, and each of those is named <repeats>_<words>, "
        "such as 10_sks cat.",
        fix="Put the pictures one folder deeper and give train_data_dir the outer folder. With in_json check its paths.",
        source="train_network.py:577",
        lesson="08",
    ),
    Message(
        name="folder-without-repeats",
        pattern=r"ignore directory without repeats | 繰り返し回数のないディレクトリを無視します: (?P<folder>.{1,200})",
        effect="overrides",
        what="A folder of pictures was left out; its name is {folder}.",
        why="The name of a folder must begin with the number of repeats and an underscore.",
        fix="Rename it, for example to 10_name.",
        source="library/config_util.py:613",
        lesson="08",
    ),
    Message(
        name="not-a-folder",
        pattern=r"not directory: (?P<folder>.{1,200})",
        effect="overrides",
        what="A folder of pictures does not exist and was left out; it is {folder}.",
        why="The path is misspelt, or relative to another folder than you think.",
        fix="Correct the path.",
        source="library/train_util.py:1974",
        lesson="08",
    ),
    Message(
        name="captions-missing",
        pattern=r"No caption file found for (?P<count>\d{1,9}) images"
        r" | 枚の画像にキャプションファイルが見つかりませんでした | neither caption file nor class tokens are found"
        r" | キャプションファイルもclass tokenも見つかりませんでした",
        effect="warns",
        what="Some pictures have no caption; there are {count} of them.",
        why="They are trained with the words of the folder's name, or with an empty caption where there are none.",
        fix="Put a text file beside each picture, and set --caption_extension=.txt if it is not .caption.",
        source="library/train_util.py:2091",
        lesson="08",
    ),
    Message(
        name="no-regularization-pictures",
        pattern=r"no regularization images | 正則化画像が見つかりませんでした",
        effect="note",
        what="There are no regularization pictures.",
        why="They are optional: pictures of the same class that keep the model from forgetting it. This is harmless.",
        source="library/train_util.py:2167",
        lesson="08",
    ),
    # Model families and what predicts what.
    Message(
        name="clip-skip-with-v2",
        pattern=r"v2 with clip_skip will be unexpected | v2でclip_skipを使用することは想定されていません",
        effect="warns",
        what="clip_skip was used with a Stable Diffusion 2 model.",
        why="Version 2 was trained on the last layer but one already. Skipping more gives it a text it has not learned.",
        fix="Remove --clip_skip.",
        source="library/train_util.py:4422",
        lesson="07",
    ),
    Message(
        name="clip-skip-with-sdxl",
        pattern=r"clip_skip will be unexpected (?<!v2withclip_skipwillbeunexpected) | SDXL学習ではclip_skipは動作しません",
        effect="overrides",
        what="clip_skip has no effect on SDXL.",
        why="SDXL always uses the last layer but one.",
        fix="Remove --clip_skip.",
        source="library/sdxl_train_util.py:352",
        lesson="07",
    ),
    Message(
        name="v2-with-sdxl",
        pattern=r"v2 cannot be enabled in SDXL training | SDXL学習ではv2を有効にすることはできません",
        effect="raises",
        what="v2 was used with an SDXL script.",
        why="v2 stands for Stable Diffusion 2, which has another text encoder.",
        fix="Remove --v2, or use the script without sdxl_ in its name.",
        source="library/sdxl_train_util.py:349",
        lesson="07",
    ),
    Message(
        name="zero-terminal-snr-without-v",
        pattern=r"zero_terminal_snr is enabled, but v_parameterization is not enabled"
        r" | zero_terminal_snrが有効ですが、v_parameterizationが有効ではありません",
        effect="warns",
        what="zero_terminal_snr was used with a model that predicts noise.",
        why="At the last time step only noise is left, and predicting it says nothing about the picture. It needs a model that predicts v.",
        fix="Remove --zero_terminal_snr, or add --v_parameterization if the model predicts v.",
        source="library/train_util.py:4458",
        lesson="07",
    ),
    Message(
        name="scale-v-without-v",
        pattern=r"scale_v_pred_loss_like_noise_pred can be enabled only with v_parameterization"
        r" | scale_v_pred_loss_like_noise_predはv_parameterizationが有効なときのみ",
        effect="raises",
        what="scale_v_pred_loss_like_noise_pred was used without v_parameterization.",
        why="It rescales the loss of a model that predicts v, and this one predicts noise.",
        fix="Remove it, or add --v_parameterization if the model predicts v.",
        source="library/train_util.py:4448",
        lesson="07",
    ),
    Message(
        name="v-like-loss-with-v",
        pattern=r"v_pred_like_loss cannot be enabled with v_parameterization"
        r" | v_pred_like_lossはv_parameterizationが有効なときには有効にできません",
        effect="raises",
        what="v_pred_like_loss was used together with v_parameterization.",
        why="It imitates the loss of a v model on a model that predicts noise. A v model has that loss already.",
        fix="Remove --v_pred_like_loss.",
        source="library/train_util.py:4453",
        lesson="07",
    ),
    Message(
        name="adaptive-noise-without-offset",
        pattern=r"adaptive_noise_scale requires noise_offset | adaptive_noise_scaleを使用するにはnoise_offsetが必要です",
        effect="raises",
        what="adaptive_noise_scale was used without noise_offset.",
        why="It is added to noise_offset, so there must be one.",
        fix="Add --noise_offset, such as 0.05, or remove --adaptive_noise_scale.",
        source="library/train_util.py:4444",
        lesson="07",
    ),
    # The command line.
    Message(
        name="option-unknown",
        pattern=r"error: unrecognized arguments: (?P<arguments>.{1,200})",
        effect="raises",
        what="The script does not know part of the command line; it is {arguments}.",
        why="The option is misspelt, belongs to another script, or a line broke without a backslash before it.",
        fix="Correct or remove it. The script with --help lists all options.",
        source="CPython: argparse.py",
        lesson="07",
    ),
    Message(
        name="option-invalid-choice",
        pattern=r"error: argument (?P<option>[\w/-]{1,60}): invalid choice: '(?P<value>.{0,60}?)' \(choose from",
        effect="raises",
        what="{option} does not accept this value; it was given {value}.",
        why="Only the listed values are allowed.",
        fix="Use one of the values in the message.",
        source="CPython: argparse.py",
        lesson="07",
    ),
    Message(
        name="option-without-value",
        pattern=r"error: argument (?P<option>[\w/-]{1,60}): expected (?:one|at least one|\d{1,3}) argument",
        effect="raises",
        what="{option} has no value.",
        why="Its value is missing, begins with a dash, or is an empty variable of a notebook or a batch file.",
        fix="Write it as --option=value.",
        source="CPython: argparse.py",
        lesson="07",
    ),
    Message(
        name="option-wrong-type",
        pattern=r"error: argument (?P<option>[\w/-]{1,60}): invalid (?P<kind>[a-z]\w{1,20}?) value: '(?P<value>.{0,60}?)'",
        effect="raises",
        what="{option} wants another kind of value; {value} is not of the kind {kind}.",
        why="A comma, a quote or a letter stands where only a number may be.",
        fix="Correct the value.",
        source="CPython: argparse.py",
        lesson="07",
    ),
    Message(
        name="option-neither-steps-nor-ratio",
        pattern=r"error: argument (?P<option>[\w/-]{1,60}): '(?P<value>.{0,60}?)' is not an int or float"
        r" | error: argument (?P<option>[\w/-]{1,60}): Value '(?P<value>.{0,60}?)' is not a valid percentage",
        effect="raises",
        what="{option} is neither a number of steps nor a share; it was given {value}.",
        why="From 1 on it must be a whole number, so 100.0 and 1e2 are refused. Below 1 it is a share of all steps.",
        fix="Write 100 for steps; 0.1 or 10% for a share.",
        source="library/train_util.py:3676",
        lesson="06",
    ),
    Message(
        name="option-required",
        pattern=r"error: the following arguments are required: (?P<options>.{1,200})",
        effect="raises",
        what="The command line is not complete; it lacks {options}.",
        why="The script cannot choose these for you. After a broken line everything below it is lost.",
        fix="Add them, and check that each line but the last ends with a backslash (on Windows a caret).",
        source="CPython: argparse.py",
        lesson="07",
    ),
    # Models that are not there, attention, and files.
    Message(
        name="model-deleted",
        pattern=r"OSError: (?P<model>runwayml/[\w.-]{1,60}?|stabilityai/stable-diffusion-2[\w.-]{0,60}?) is not a local folder"
        r" | Repository Not Found for url: https://huggingface\.co/(?:api/models/)?"
        r"(?P<model>runwayml/[\w-]{1,60}(?:\.\d)?[\w-]{0,20}|stabilityai/stable-diffusion-2[\w-]{0,60}(?:\.\d)?[\w-]{0,20})",
        effect="raises",
        what="{model} has been deleted from Hugging Face.",
        why="Both runwayml's Stable Diffusion 1.5 and stabilityai's 2.x are gone. Many guides still name them.",
        fix="Use stable-diffusion-v1-5/stable-diffusion-v1-5, or the same names under sd2-community.",
        source="huggingface_hub/utils/_http.py:453",
        lesson="08",
    ),
    Message(
        name="model-not-found",
        pattern=r"is not a local folder and is not a valid model identifier | Repository Not Found for url:"
        r" | model is not found as a file or in Hugging Face"
        r" | 指定したモデル名のファイル、またはHugging Faceのモデルが見つかりません",
        effect="raises",
        what="The model was not found, neither as a file nor on Hugging Face.",
        why="The path is misspelt, the model was deleted, or it is private and you are not logged in.",
        fix="Check pretrained_model_name_or_path letter by letter. For a gated model accept its terms and log in.",
        source="library/train_util.py:5541",
        lesson="08",
    ),
    Message(
        name="xformers-cannot-compute",
        pattern=r"No operator found for `memory_efficient_attention",
        effect="raises",
        what="xformers has no attention for this GPU, precision or size.",
        why="It was built for other versions of torch or CUDA, has no code for your GPU, or was given fp32.",
        fix="Use --sdpa instead of --xformers. torch brings it along.",
        source="xformers: xformers/ops/fmha/dispatch.py",
        lesson="09",
    ),
    Message(
        name="weights-only-refused",
        pattern=r"Weights only load failed",
        effect="raises",
        what="torch refused to open a file that holds more than weights.",
        why="Such a file can run code when it is opened. Since torch 2.6 only plain weights are loaded.",
        fix="Use the same model as safetensors. Only a file you trust should be converted.",
        source="torch/serialization.py:1455",
        lesson="08",
    ),
    Message(
        name="gpu-not-in-use",
        pattern=r"torch\.cuda\.amp\.GradScaler is enabled, but CUDA is not available"
        r" | User provided device_type of 'cuda', but CUDA is not available"
        r" | CUDA is not available or torch_xla is imported",
        effect="warns",
        what="torch found no GPU and goes on without.",
        why="Training on the processor gives the same result, but takes far too long.",
        fix="Switch the GPU on (on Colab: Runtime, Change runtime type), or install torch with CUDA.",
        source="torch/amp/grad_scaler.py:137",
        lesson="09",
    ),
    # Noise: people ask about these, and nothing has to be done.
    Message(
        name="triton-missing",
        pattern=r"A matching Triton is not available | No module named 'triton | triton not available",
        effect="note",
        what="Triton is not installed.",
        why="It makes a few operations of xformers and bitsandbytes faster and hardly exists on Windows. This is harmless; only "
        "torch.compile needs it.",
        source="xformers: xformers/__init__.py",
    ),
    Message(
        name="tensorflow-registers-twice",
        pattern=r"Unable to register cu(?:DNN|BLAS|FFT) factory | All log messages before absl::InitializeLog\(\) is called",
        effect="note",
        what="TensorFlow talks about itself while it is being imported.",
        why="Another package has loaded the same CUDA libraries before. TensorFlow takes no part in the training. This is harmless.",
        source="tensorflow: xla/stream_executor/cuda/cuda_dnn.cc",
    ),
    Message(
        name="torch-load-weights-only",
        pattern=r"You are using `torch\.load` with `weights_only=False`",
        effect="note",
        what="A library opens a file in torch's older, less careful way.",
        why="torch 2.4 and 2.5 announced that this would change. It is harmless with files you trust.",
        source="torch 2.5: torch/serialization.py",
    ),
    Message(
        name="amp-renamed",
        pattern=r"`torch\.cuda\.amp\.(?:autocast|GradScaler|custom_fwd|custom_bwd)\(args\.\.\.\)` is deprecated",
        effect="note",
        what="A library uses the older name of torch's mixed precision.",
        why="Old and new name do the same. This is harmless.",
        source="torch/cuda/amp/autocast_mode.py:14",
    ),
    Message(
        name="torch-dtype-renamed",
        pattern=r"`torch_dtype` is deprecated! Use `dtype` instead",
        effect="note",
        what="transformers has renamed torch_dtype to dtype.",
        why="Old and new name do the same. This is harmless.",
        source="transformers 5.23: transformers/modeling_utils.py:1404",
    ),
    Message(
        name="resume-download-deprecated",
        pattern=r"`resume_download` is deprecated and will be removed",
        effect="note",
        what="A download option no longer does anything.",
        why="Downloads are always resumed now. This is harmless.",
        source="huggingface_hub/file_download.py:946",
    ),
    Message(
        name="accelerate-uses-defaults",
        pattern=r"The following values were not passed to `accelerate launch`",
        effect="note",
        what="accelerate was never configured and takes its defaults.",
        why="One process on one GPU is what you want. The precision that counts is sd-scripts' own mixed_precision. This is harmless.",
        source="accelerate/commands/launch.py:1179",
    ),
    Message(
        name="prompt-longer-than-77-tokens",
        pattern=r"Token indices sequence length is longer than the specified maximum",
        effect="note",
        what="A caption is longer than 77 tokens.",
        why="sd-scripts cuts it, or splits it if max_token_length is 150 or 225. The words at the end may not be learned.",
        fix="--max_token_length=150 if your captions are that long on purpose.",
        source="transformers/tokenization_utils_base.py:3926",
        lesson="08",
    ),
    Message(
        name="checkpoint-weights-not-used",
        pattern=r"Some weights of the model checkpoint at .{1,200}? were not used when",
        effect="note",
        what="Part of a model file was not needed.",
        why="A CLIP file holds a picture encoder too, and only the text half is loaded. This is harmless.",
        source="transformers/modeling_utils.py:5532",
    ),
)


def read(text: str) -> tuple[Finding, ...]:
    """Every known message in `text`, worst first, then in order of appearance; each once, with how often in `what`."""
    log = _Log(text)
    found = [(where, finding) for message in MESSAGES for where, finding in _find(message, log)]
    found.sort(key=lambda pair: (EFFECTS.index(pair[1].effect), pair[0]))
    return tuple(finding for _, finding in found)


def looks_like_log(text: str) -> bool:
    """Whether a pasted text is a log or traceback rather than settings (a command line, TOML or JSON).

    A command with the log it wrote is a log. Only the beginning and the end of a long text are looked at.
    """
    if len(text) > 2 * _LOOKED_AT:
        text = f"{text[:_LOOKED_AT]}\n{text[-_LOOKED_AT:]}"
    rest = _SETTING_LINE.sub("", _without_colours(text))
    return bool(_LOG_SIGN.search(rest) or read(rest))


def stopped_by(text: str) -> str:
    """The last line of the last traceback, such as `KeyError: 'step'`; empty where there is no traceback."""
    rest = _without_colours(text[-_LOOKED_AT:]).rpartition("Traceback (most recent call last)")
    errors = _ERROR_LINE.findall(rest[2]) if rest[1] else []
    return " ".join("".join(c if c.isprintable() else " " for c in errors[-1]).split())[:200] if errors else ""


def command_in(text: str) -> str:
    """The command of a training run that a log begins with, its wrapped lines joined; empty where there is none."""
    match = _COMMAND.search(_without_colours(text[:_LOOKED_AT]))
    if match is None or ".py" not in match.group():
        return ""
    lines = [_FILE_COLUMN.sub("", line).rstrip() for line in match.group().splitlines()]
    return " ".join(line.strip().rstrip("\\^`").strip() for line in lines)


_LOOKED_AT = 100_000

_ERROR_LINE = re.compile(r"^[ \t│]*([A-Za-z_][\w.]{0,80}(?:Error|Exception|Interrupt|Warning|Exit)(?:: [^\n]{0,300})?)", re.MULTILINE)
_COMMAND = re.compile(
    r"(?:\S{0,200}[\\/])?accelerate(?:\.exe)?[\"']?[ \t]+launch\b[^\n]*(?:\n(?:[ \t]{8,}|[ \t]*--)[^\n]*)*", re.IGNORECASE
)

_SETTING_LINE = re.compile(
    r"""
    ^ [ \t]*+ (?:
        \#                                                                      # a comment
      | --?\w                                                                   # an option
      | ["'{}\]] | \[ [ \t]* (?: ["'\[{\]] | $ )                                # JSON, or a list in TOML
      | \[{1,2} [\w."' -]{1,80} \]{1,2} [ \t]* (?: \# | $ )                     # the head of a TOML table
      | [A-Za-z0-9_."'-]{1,80} [ \t]* = [ \t]* (?: true | false | ["'\[{] | [-+.\d][\w.+:-]{0,40} [ \t]* (?: \# | $ ) )
      | [!%$]? [ \t]* (?: accelerate | python[\d.]* | cd | call | source | (?: set | export ) [ \t]{1,4} \w{1,80} = ) [ \t"']   # a command
    ) [^\n]* $
    """,
    re.VERBOSE | re.MULTILINE,
)

_LOG_SIGN = re.compile(
    r"""
      Traceback[ ]\(most[ ]recent[ ]call[ ]last\)
    | ^ [ \t]*+ File[ ]"[^"\n]{1,300}",[ ]line[ ]\d
    | ^ [ \t]*+ [\w.]{0,80} (?: Error | Exception | Warning | Interrupt ) (?: : | $ )
    | ^ usage:[ ]
    | \.py:[ ]error:
    | ^ (?: \[? \d[\d/:, -]{6,30} \]? )? [ \t]*+ (?: DEBUG | INFO | WARNING | ERROR | CRITICAL ) [ \t:]
    | \.py:\d{1,6} (?: [ \t]*+ $ | :[ ]\w{0,40}Warning )                        # rich's right column; a warning of Python
    | \d%\| | \d/\d{1,9}[ ]\[\d\d:\d\d | \d(?: it/s | s/it )                    # a progress bar
    | ^ epoch[ ]\d
    | [\w.)][ ]/[ ][\u3040-\u30ff\u4e00-\u9fff]                                 # English / Japanese
    """,
    re.VERBOSE | re.MULTILINE,
)

_TERMINAL_LINK = re.compile(r"\x1b\][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)?")
_TERMINAL_CODE = re.compile(r"\x1b\[[0-?]{0,40}[ -/]{0,4}[@-~]|\x1b")
_COLOUR_WITHOUT_ESCAPE = re.compile(r"\[\d[\d;]{0,15}m")  # what is left of one when a page or an editor drops the escape character
_FRAME = str.maketrans(dict.fromkeys("│╭╮╰╯─┃", " "))  # rich draws one around a traceback

# A traceback and a warning also show the line of code that holds the message: not to be counted, and its {values} are not values.
_CODE_LINE = re.compile(r"^[ \t]++(?:❱?[ \t]*\d{1,6}[ \t]+)?(?:raise |assert |warnings\.warn\(|logger\.\w)[^\n]*", re.MULTILINE)
# rich writes the name of the file at the right end of a message's first line, in the middle of the message where that is wrapped.
_FILE_COLUMN = re.compile(r"(?<=[ \t])[\w.-]{1,80}\.py:\d{1,6}[ \t]*+$", re.MULTILINE)
_PROCESS = re.compile(r"^\[rank\d{1,4}\]:", re.MULTILINE)

_WRAPPED = " " * 8  # rich indents the rest of a wrapped line at least so far


def _without_colours(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\x1b" in text:
        text = _TERMINAL_CODE.sub("", _TERMINAL_LINK.sub("", text))
    if "[0m" in text:
        text = _COLOUR_WITHOUT_ESCAPE.sub("", text)
    return text


class _Log:
    """A pasted text in two forms: `solid`, without white space, to search in; `lines` to quote values from."""

    def __init__(self, text: str) -> None:
        text = _without_colours(text)
        if not text.isascii():
            text = text.translate(_FRAME)
        text = _CODE_LINE.sub("", text)
        text = _FILE_COLUMN.sub("", text)
        self._text = _PROCESS.sub("", text)
        self.solid = "".join(self._text.split())

    @functools.cached_property
    def lines(self) -> list[str]:
        """The lines that are not empty, long ones in pieces."""
        lines = (line for line in self._text.splitlines() if line and not line.isspace())
        return [line[start : start + 2000] for line in lines for start in range(0, len(line), 2000)]

    @functools.cached_property
    def ends(self) -> list[int]:
        """Where in `solid` each line ends."""
        return list(itertools.accumulate(len("".join(line.split())) for line in self.lines))

    def quote(self, start: int, stop: int) -> str:
        """What stands at `solid[start:stop]`, as it was written, up to the end of its line or of the lines it was wrapped into."""
        first = bisect_right(self.ends, start)
        parts = []
        for number in range(first, min(first + 10, len(self.lines))):
            line, before = self.lines[number], self.ends[number - 1] if number else 0
            if before >= stop or (number > first and not line.startswith(_WRAPPED)):
                break
            places = [place for place, character in enumerate(line) if not character.isspace()][max(start - before, 0) : stop - before]
            if places:
                parts.append(line[places[0] : places[-1] + 1])
        quoted = " ".join("".join(c if c.isprintable() else " " for c in " ".join(parts)).split())
        return quoted if len(quoted) <= QUOTED_CHARACTERS else quoted[: QUOTED_CHARACTERS - 1] + "…"


@functools.cache
def _alternatives(pattern: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Each alternative with the fixed text it begins with, so that a plain search can rule it out first."""
    parts = []
    for part in pattern.split(" | "):
        fixed = re.match(r"(?:[^\\.^$*+?{}\[\]|()]|\\\W)*", "".join(part.split())).group()
        if re.match(r"[*+?{]", "".join(part.split())[len(fixed) :]):
            fixed = fixed[:-1]  # the last character may be absent
        parts.append((re.sub(r"\\(\W)", r"\1", fixed), re.compile(part, re.VERBOSE)))
    return tuple(parts)


def _find(message: Message, log: _Log) -> Iterator[tuple[int, Finding]]:
    """Where `message` first stands in the log and what it says there; nothing where it does not."""
    where, times, best = len(log.solid), 0, None
    for fixed, expression in _alternatives(message.pattern):
        if fixed not in log.solid:
            continue
        matches = expression.finditer(log.solid)
        first = next(matches, None)
        if first is None:
            continue
        # One message may say the same in English and in Japanese: the more frequent half counts.
        times = max(times, 1 + sum(1 for _ in matches))
        where = min(where, first.start())
        if best is None or _values_in(first) > _values_in(best):
            best = first
    if best is None:
        return
    values = {name: log.quote(*best.span(name)) for name, value in best.groupdict().items() if value}
    what = _filled(message.what, values) + (f" ({times} times)" if times > 1 else "")
    why, fix = _filled(message.why, values), _filled(message.fix, values)
    yield (
        where,
        Finding(rule=message.name, effect=message.effect, what=what, why=why, fix=fix, source=message.source, lesson=message.lesson),
    )


def _values_in(match: re.Match[str]) -> int:
    return sum(value is not None for value in match.groupdict().values())


def _filled(template: str, values: dict[str, str]) -> str:
    """`template` with its values, without the clauses that need one the log does not have."""
    clauses = [clause for clause in template.split("; ") if _needs(clause) <= values.keys()]
    filled = "; ".join(clauses).format_map(values)
    return filled if filled.endswith(".") or not template.endswith(".") else filled + "."


def _needs(clause: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(clause) if field}
