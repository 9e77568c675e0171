"""What optimizers and schedules refuse, in the words a reader gets; the exceptions were seen in sd-scripts' own libraries."""

import pytest

from sdnb import diagnose
from sdnb.sd_scripts.outcome import Outcome
from sdnb.sd_scripts.reading import read
from sdnb.sd_scripts.refusals import of_optimizer, of_schedule

RATE = "--learning_rate=1e-4 "


@pytest.mark.parametrize(
    ("flags", "what", "error"),
    [
        ("--optimizer_type=AdamW --optimizer_args lr=1", "lr is set by sd-scripts itself", "TypeError"),
        ("--optimizer_type=Adafactor --optimizer_args betas=(0.9,0.99)", "it has beta1", "TypeError"),
        ("--optimizer_type=AdamW --optimizer_args max_grad_norm=0", "a separate flag, --max_grad_norm", "TypeError"),
        ("--optimizer_type=AdamW --optimizer_args bogus=1", "AdamW takes no 'bogus'", "TypeError"),
        ("--optimizer_type=SGDNesterov8bit --optimizer_args momentum=0", "needs a momentum", "NotImplementedError"),
        ("--optimizer_type=SGDNesterov --optimizer_args momentum=0", "needs a momentum and no dampening", "ValueError"),
        ("--optimizer_type=SGDNesterov --optimizer_args dampening=0.1", "needs a momentum and no dampening", "ValueError"),
        ("--optimizer_type=AdamW --optimizer_args weight_decay=-1", "weight_decay=-1 is out of its range", "ValueError"),
        ("--optimizer_type=AdamW --optimizer_args betas=(0.9,1.5)", "betas=(0.9, 1.5) is out of its range", "ValueError"),
        ("--optimizer_type=AdamW --learning_rate=-1", "learning_rate=-1.0 is out of its range", "ValueError"),
    ],
)
def test_optimizers(flags, what, error):
    refusal = of_optimizer(Outcome(read(RATE + flags)))
    assert what in refusal[0]
    assert refusal[1] == error
    assert f"{error}: {refusal[0]}." in [finding.what for finding in diagnose(RATE + flags).findings]


@pytest.mark.parametrize(
    ("flags", "what", "error"),
    [
        ("--lr_scheduler=cosine --lr_scheduler_args num_warmup_steps=1", "set by sd-scripts itself", "TypeError"),
        ("--lr_scheduler=cosine --lr_scheduler_args bogus=1", "cosine takes no 'bogus'", "TypeError"),
        ("--lr_scheduler=cosine_with_min_lr", "needs lr_scheduler_min_lr_ratio", "ValueError"),
        ("--lr_scheduler=cosine_with_min_lr --lr_scheduler_min_lr_ratio=0.1 --lr_scheduler_args min_lr=1e-6", "exclude each", "ValueError"),
        ("--lr_scheduler=polynomial --lr_scheduler_args lr_end=1", "must be below learning_rate", "ValueError"),
        ("""--lr_scheduler=polynomial --lr_scheduler_args "lr_end='1e-6'" """, "lr_end='1e-6' is not a number", "TypeError"),
        ("--lr_scheduler=inverse_sqrt --lr_scheduler_timescale=0", "cannot divide", "ZeroDivisionError"),
        ("--lr_scheduler=inverse_sqrt --lr_warmup_steps=-5 --lr_scheduler_timescale=-10", "cannot divide", "ValueError"),
        ("--lr_scheduler=piecewise_constant", "needs step_rules", "TypeError"),
        ("--lr_scheduler=piecewise_constant --lr_scheduler_args step_rules=1", "step_rules reads like", "AttributeError"),
        ("""--lr_scheduler=piecewise_constant --lr_scheduler_args "step_rules='1:2:3,4'" """, "step_rules", "ValueError"),
        ("""--lr_scheduler=piecewise_constant --lr_scheduler_args "step_rules='1:10,0.1'" """, "", ""),
        ("--lr_scheduler_type=StepLR", "StepLR needs step_size", "TypeError"),
        ("--lr_scheduler_type=StepLR --lr_scheduler_args step_size=1 bogus=1", "StepLR takes no 'bogus'", "TypeError"),
        ("--lr_scheduler_type=torch.optim.lr_scheduler.StepLR", "", ""),
        ("--optimizer_type=AdamWScheduleFree --lr_scheduler=polynomial --lr_scheduler_args lr_end=1", "", ""),
    ],
)
def test_schedules(flags, what, error):
    flags = RATE + flags
    refusal = of_schedule(Outcome(read(flags)))
    assert bool(refusal) == bool(what)
    assert what in (refusal or [""])[0]
    assert error == (refusal or ["", ""])[1]
    assert not what or f"{error}: {refusal[0]}." in [finding.what for finding in diagnose(flags).findings]
