"""Rules about the learning-rate schedule, its warmup and the length of a run."""

from __future__ import annotations

from ...sd_scripts import NETWORK, of_schedule
from .. import conditions as c
from .. import datasets
from ..conditions import values_if
from .rule import Rule, ran

ERRORS = (
    Rule(
        name="warmup-not-finite",
        effect="raises",
        when=datasets.endless_steps,
        what="{error}: {name}={value} is not a number of steps.",
        why="NaN and infinity pass the command line's check.",
        fix="--lr_warmup_steps=100",
        changes=lambda o: {"lr_warmup_steps": 100 if o.scheduler == "constant_with_warmup" else None, "lr_decay_steps": None},
        source=ran("library/train_util.py:5276", lesson="06"),
    ),
    Rule(
        name="scheduler-args-malformed",
        effect="raises",
        when=lambda o: None if o.is_schedule_free else c.malformed(o.scheduler_args),
        what="{error}: lr_scheduler_args has {text}: {why}.",
        why="Each entry is split at =, and its value is read as a Python literal; a text needs its own quotes.",
        fix='--lr_scheduler_args "num_cycles=2"',
        changes=lambda o: c.well_formed(o, "lr_scheduler_args", o.scheduler_args),
        source=ran("library/train_util.py:5290", lesson="06"),
    ),
    Rule(
        name="scheduler-class-unknown",
        effect="raises",
        when=c.unknown_scheduler_class,
        what="{error}: torch.optim.lr_scheduler has no class {lr_scheduler_type!r}.",
        why="lr_scheduler_type names a class; the schedules' short names belong to lr_scheduler.",
        fix="--lr_scheduler_type={near}, or --lr_scheduler=… instead.",
        source=ran("library/train_util.py:5309", lesson="06"),
    ),
    Rule(
        name="adafactor-schedule-without-adafactor",
        effect="raises",
        when=lambda o: values_if(c.is_adafactor_schedule(o) and not o.is_adafactor, optimizer=o.optimizer),
        what="AssertionError: adafactor scheduler must be used with Adafactor optimizer.",
        why="That schedule reads the learning rates that Adafactor chose, and {optimizer} chooses none.",
        fix='--lr_scheduler="constant"',
        changes=lambda o: {"lr_scheduler": "constant_with_warmup" if o.warmup_steps else None},
        source=ran("library/train_util.py:5315", lesson="06"),
    ),
    Rule(
        name="adafactor-schedule-by-hand",
        effect="raises",
        when=lambda o: values_if(c.is_manual(o) and c.is_adafactor_schedule(o) and ":" not in o.scheduler),
        what="IndexError: list index out of range.",
        why="The schedule `adafactor` needs relative_step=True, with which sd-scripts writes the learning rate after its name.",
        fix='--lr_scheduler="constant_with_warmup" --lr_warmup_steps=100, or relative_step=True.',
        changes=lambda o: {"lr_scheduler": "constant_with_warmup"},
        source=ran("library/train_util.py:5317", lesson="06"),
    ),
    Rule(
        name="adafactor-schedule-number",
        effect="raises",
        when=lambda o: values_if(
            c.is_manual(o) and c.is_adafactor_schedule(o) and ":" in o.scheduler and not c.has_number(o), scheduler=o.scheduler
        ),
        what="ValueError: {scheduler!r} has no number after its colon.",
        why="The log reports this number as the learning rate.",
        fix='--lr_scheduler="constant_with_warmup"',
        changes=lambda o: {"lr_scheduler": "constant_with_warmup"},
        source=ran("library/train_util.py:5317", lesson="06"),
    ),
    Rule(
        name="scheduler-unknown",
        effect="raises",
        when=c.unknown_scheduler,
        what="ValueError: {scheduler!r} is not a valid SchedulerType.",
        why="sd-scripts looks up the name only here, after it has loaded the models.",
        fix='--lr_scheduler="{near}"',
        changes=lambda o: {"lr_scheduler": (c.unknown_scheduler(o) or {}).get("near")},
        source=ran("library/train_util.py:5326", lesson="06"),
    ),
    Rule(
        name="scheduler-refuses",
        effect="raises",
        when=lambda o: c.refused(of_schedule(o)),
        what="{error}: {what}.",
        why="sd-scripts passes lr_scheduler_args to the schedule together with arguments of its own.",
        fix="See the schedule's own arguments.",
        changes=lambda o: {"lr_scheduler_min_lr_ratio": 0.1} if "needs lr_scheduler_min_lr_ratio" in of_schedule(o)[0] else {},
        source=ran("library/train_util.py:5329", lesson="06"),
    ),
    Rule(
        name="adafactor-refuses-warmup",
        effect="raises",
        when=lambda o: values_if(
            o.relative_step and not o["lr_scheduler_type"] and o.warmup_steps,
            scheduler=c.shown(o).scheduler,
            lr_scheduler=c.shown(o)["lr_scheduler"],
            to_manual=c.to_manual(o),
        ),
        what="ValueError: {scheduler} does not require `num_warmup_steps`. Set None or 0.",
        why=(
            "Adafactor chooses its own learning rate (relative_step), so sd-scripts replaces {lr_scheduler} with Adafactor's own schedule, "
            "which has no warmup. The error comes only after the models are loaded and the latents cached."
        ),
        fix="{to_manual}",
        changes=c.made_manual,
        source=ran("library/train_util.py:5296", lesson="07"),
    ),
    Rule(
        name="needless-warmup",
        effect="raises",
        when=c.needless_warmup,
        what="ValueError: {scheduler} does not require `num_warmup_steps`. Set None or 0.",
        why="{scheduler} has no warmup, and sd-scripts refuses to ignore one.",
        fix="--lr_scheduler=constant_with_warmup, or --lr_warmup_steps=0",
        changes=lambda o: {"lr_scheduler": "constant_with_warmup"} if o.scheduler == "constant" else {"lr_warmup_steps": None},
        source=ran("library/train_util.py:5296", lesson="06"),
    ),
)
LENGTH_ERRORS = (
    Rule(
        name="starts-behind-the-end",
        effect="raises",
        scripts=NETWORK,
        when=lambda o: values_if(
            isinstance(o["initial_step"], int)
            and o["initial_step"] > 0
            and o["initial_step"] >= o.number("max_train_steps")
            and not o["max_train_epochs"],
            initial_step=o["initial_step"],
            max_train_steps=o["max_train_steps"],
        ),
        what="AssertionError: max_train_steps should be greater than initial step.",
        why="{initial_step} of {max_train_steps} steps are skipped, which leaves none.",
        fix="A larger max_train_steps.",
        source=ran("train_network.py:1254", lesson="08"),
    ),
)
DIFFERENCES = (
    Rule(
        name="adafactor-replaces-schedule",
        effect="overrides",
        when=lambda o: values_if(
            o.relative_step and not o["lr_scheduler_type"] and not str(o["lr_scheduler"]).startswith("adafactor"),
            lr_scheduler=o["lr_scheduler"],
            scheduler=c.shown(o).scheduler,
            to_manual=c.to_manual(o),
        ),
        what="lr_scheduler={lr_scheduler} is replaced by {scheduler}.",
        why="The schedule of a relative step only reports the rate.",
        fix='{to_manual}, or --lr_scheduler="adafactor".',
        source=ran("library/train_util.py:5079", lesson="07"),
    ),
    Rule(
        name="adafactor-schedule-decides",
        effect="overrides",
        when=lambda o: values_if(
            o.schedule_rate, rate=str(o.schedule_rate), scheduler=o.scheduler, learning_rate=c.shown(o)["learning_rate"]
        ),
        what="The learning rate is {rate}, the number in {scheduler}, not learning_rate={learning_rate}.",
        why=(
            "The schedule is made for reporting and sets its own number. With scale_parameter=True it is also scaled twice: on weights "
            "of size 0.1, 1e-3 became 1e-7."
        ),
        fix='--lr_scheduler="constant"',
        changes=lambda o: {"lr_scheduler": "constant"},
        source=ran("library/train_util.py:5317", lesson="06"),
    ),
    Rule(
        name="warmup-taken-as-ratio",
        effect="overrides",
        when=c.ratio_slip,
        what="lr_warmup_steps={lr_warmup_steps} is taken as a share: {warmup_steps} warmup steps of {total_steps}.",
        why="A number with a decimal point is a share of the run, and in a TOML file sd-scripts does not check that it is below 1.",
        fix="lr_warmup_steps = 100, without a point.",
        changes=lambda o: {"lr_warmup_steps": int(o["lr_warmup_steps"])},
        source=ran("library/train_util.py:5276", lesson="06"),
    ),
    Rule(
        name="warmup-never-ends",
        effect="overrides",
        when=c.endless_warmup,
        what="The run of {total_steps} steps ends before its warmup of {warmup_steps}: the learning rate is never reached.",
        why="It grows in a straight line from 0 over the warmup.",
        fix="A longer run, or a shorter warmup.",
        changes=lambda o: {"lr_warmup_steps": 0.05},
        source=ran("library/train_util.py:5274", lesson="06"),
    ),
    Rule(
        name="warmup-negative",
        effect="overrides",
        when=lambda o: values_if(
            not o.is_schedule_free and o.warmup_steps < 0, lr_warmup_steps=o["lr_warmup_steps"], warmup_steps=o.warmup_steps
        ),
        what="lr_warmup_steps={lr_warmup_steps} is {warmup_steps:,} steps: none.",
        why="A number below 1 is a ratio, negative ones too.",
        fix="--lr_warmup_steps=100",
        changes=lambda o: {"lr_warmup_steps": None},
        source=ran("library/train_util.py:3672", lesson="06"),
    ),
    Rule(
        name="no-warmup-in-constant-with-warmup",
        effect="overrides",
        when=lambda o: values_if(o.scheduler == "constant_with_warmup" and o.warmup_steps == 0),
        what="constant_with_warmup with 0 warmup steps is constant.",
        why="This schedule needs lr_warmup_steps as well.",
        fix="--lr_warmup_steps=100",
        changes=lambda o: {"lr_warmup_steps": 100} if o.total_steps > 100 else {},
        source=ran("library/train_util.py:5336", lesson="06"),
    ),
    Rule(
        name="warmup-shared-by-processes",
        effect="overrides",
        when=c.shortened_warmup,
        what="With {processes} processes, {lr_warmup_steps} warmup steps are over after {optimizer_steps} optimizer steps.",
        why=(
            "Every process moves the schedule on. The length of the run is multiplied to make up for it, a warmup in whole steps is not; "
            "a ratio is."
        ),
        fix="A ratio, such as --lr_warmup_steps=5%",
        changes=c.warmup_as_share,
        source=ran("library/train_util.py:5274", lesson="06"),
    ),
    Rule(
        name="warmup-ignored-piecewise",
        effect="overrides",
        when=lambda o: values_if(o.scheduler == "piecewise_constant" and o.warmup_steps, lr_warmup_steps=o["lr_warmup_steps"]),
        what="piecewise_constant ignores lr_warmup_steps={lr_warmup_steps}.",
        why="The other schedules without a warmup refuse one; this one does not.",
        fix="Put the warmup into step_rules, or take constant_with_warmup.",
        source=ran("library/train_util.py:5321", lesson="06"),
    ),
    Rule(
        name="schedule-free",
        effect="overrides",
        when=lambda o: values_if(
            o.is_schedule_free and (o["lr_scheduler"] != "constant" or o["lr_scheduler_type"] or o["lr_warmup_steps"]),
            wanted=c.shown(o).wanted,
        ),
        what="{wanted} uses no schedule: lr_scheduler and lr_warmup_steps are ignored.",
        why="sd-scripts gives it an empty schedule. Its own warmup is an argument of the optimizer.",
        fix='--optimizer_args "warmup_steps=100", and no --lr_scheduler or --lr_warmup_steps.',
        changes=lambda o: {"lr_scheduler": None, "lr_warmup_steps": None, "lr_scheduler_type": None},
        source=ran("library/train_util.py:5270", lesson="06"),
    ),
)
