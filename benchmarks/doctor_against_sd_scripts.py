"""The doctor's verdicts beside those of sd-scripts itself, over hand-picked and generated settings.

    python -m benchmarks.doctor_against_sd_scripts PATH-TO-A-CHECKOUT [--settings 12000] [--record FILE] [--facts]

Runs sd-scripts' own argument parser, configuration reader, checks, get_optimizer and get_scheduler_fix, with small parameters in
the groups that its scripts would hand over, and compares: does it raise and what, which warnings does it log, and which optimizer,
schedule, learning rates and warmup come out. What the doctor mends is run again. To be run in an environment with sd-scripts'
requirements.txt, from this folder. `--record` keeps the verdicts, which are facts and no code, for the tests, which replay them all
and want fewer (`--settings 600`); `--facts` takes the table of arguments anew.

Takes about five minutes on two cores.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
from pathlib import Path

from sdnb.doctor.diagnosis import diagnose
from sdnb.doctor.rules import RULES
from sdnb.sd_scripts.arguments import STABLE_DIFFUSION, arguments
from sdnb.sd_scripts.commandlines import from_words
from sdnb.sd_scripts.reading import read
from sdnb.sd_scripts.settings import Settings
from sdnb.sd_scripts.shell import Command, split

from . import sd_scripts
from .report import parser as command_line
from .report import show, write

HERE = Path(__file__).resolve().parent.parent
NETWORK = ("train_network.py", "sdxl_train_network.py")
FAMOUS = ["--optimizer_type=Adafactor", "--max_grad_norm=0", "--lr_scheduler=constant_with_warmup", "--lr_warmup_steps=100"]
MANUAL = ["--optimizer_args", "relative_step=False", "scale_parameter=False", "warmup_init=False"]
AUTOMATIC = ["--optimizer_args", "relative_step=True", "scale_parameter=True", "warmup_init=True"]
LOGS = {rule.log: rule.name for rule in RULES if rule.log}


def verdict(checkout: sd_scripts.Checkout, case: dict) -> dict:
    """What sd-scripts does with one case: `raises`, `warnings`, and what comes out."""
    util, script = checkout.train_util, case["script"]
    result: dict[str, object] = {"raises": None, "warnings": []}
    with sd_scripts.listening() as heard:
        try:
            args = _parse(checkout, case)
            util.verify_training_args(args)
            util.prepare_dataset_args(args, script != "train_db.py")
            if script.startswith("sdxl"):
                checkout.sdxl_train_util.verify_sdxl_training_args(args, "textual_inversion" not in script)
            _, _, optimizer = util.get_optimizer(args, _groups(script, args))
            scheduler = util.get_scheduler_fix(args, optimizer, case["processes"])
            result |= _came_out(args, optimizer, scheduler)
        except SystemExit:
            result["raises"] = "SystemExit"
        except Exception as error:
            result["raises"] = type(error).__name__
    result["warnings"] = sorted({name for line in heard for part, name in LOGS.items() if part in line})
    return result


def opinion(case: dict) -> dict:
    """What the doctor says of the same case."""
    diagnosis = diagnose(settings_of(case))
    first = next((finding for finding in diagnosis.settings.findings if finding.effect == "raises"), None)
    ran = [rule.name for rule, _ in diagnosis.matches if rule.source.ran]
    raised = [finding for finding in diagnosis.findings if finding.effect == "raises" and finding.rule in ran]
    error = "SystemExit" if first else re.search(r"\w+Error\b", raised[0].what)[0] if raised else None
    read_only = any(rule.effect == "raises" and not rule.source.ran for rule, _ in diagnosis.matches)
    result = {"raises": error, "warnings": sorted(rule.name for rule, _ in diagnosis.matches if rule.log)}
    if not error and not read_only:
        effective = diagnosis.effective()
        rates = effective["learning_rates"]
        result |= {
            "optimizer": effective["optimizer"],
            "scheduler": effective["scheduler"],
            "learning_rates": rates and list(rates.values()),
            "warmup_steps": effective["warmup_steps"],
        }
    return result


def mended(case: dict) -> dict | None:
    """The case as the doctor mends it; None where it says that only the reader can decide."""
    try:
        text = diagnose(settings_of(case)).fixed_text()
    except ValueError:
        return None
    if case["form"] == "toml":
        return {**case, "text": text}
    words = split(text).commands[0].words
    return {**case, "words": words[words.index(case["script"]) + 1 :]}


def settings_of(case: dict) -> Settings:
    """The case as the doctor reads it."""
    if case["form"] == "toml":
        found = read(case["text"], case["script"])
        launch = {"num_processes": str(case["processes"])}
        return Settings(**{**vars(found), "launch": launch})
    words = ["accelerate", "launch", f"--num_processes={case['processes']}", case["script"], *case["words"]]
    return from_words(Command(words))


def agree(real: dict, said: dict) -> list[str]:
    """Where the two differ."""
    different = ["raises"] if real["raises"] != said["raises"] else []
    if real["raises"] is None and said["raises"] is None:
        different += ["warnings"] if real["warnings"] != said["warnings"] else []
        for name in ("optimizer", "scheduler", "learning_rates"):
            different += [name] if name in said and repr(real[name]) != repr(said[name]) else []  # repr: NaN is NaN
        if "warmup_steps" in said and real["warmup_steps"] is not None and real["warmup_steps"] != said["warmup_steps"]:
            different.append("warmup_steps")
    return different


def _parse(checkout: sd_scripts.Checkout, case: dict):
    parser, before = checkout.parser(case["script"]), sys.argv
    with tempfile.TemporaryDirectory() as folder:
        if case["form"] == "toml":
            file = Path(folder) / "settings.toml"
            file.write_text(case["text"], encoding="utf-8")
            words = [f"--config_file={file}"]
        else:
            words = case["words"]
        sys.argv = [case["script"], *words]
        try:
            return checkout.train_util.read_config_from_file(parser.parse_args(), parser)
        finally:
            sys.argv = before


def _groups(script: str, args):
    """Parameters in the groups that the script hands to get_optimizer (as read in it and in networks/lora.py)."""
    import torch

    def weights() -> list:
        return [torch.nn.Parameter(torch.zeros(4, 4))]

    lr = args.learning_rate
    if script in NETWORK:
        text = args.text_encoder_lr
        text = (text[0] if text else None) if isinstance(text, list) else text
        rates = [] if args.network_train_unet_only else [lr if text is None else text]
        rates += [] if args.network_train_text_encoder_only else [lr if args.unet_lr is None else args.unet_lr]
        return [{"params": weights(), "lr": rate} for rate in rates if rate is not None and rate != 0]
    if script == "sdxl_train.py":
        groups = [{"params": weights(), "lr": lr}] if lr != 0 else []
        for own in (args.learning_rate_te1, args.learning_rate_te2) if args.train_text_encoder else ():
            if (lr if own is None else own) != 0:
                groups.append({"params": weights(), "lr": own or lr})
        return groups
    if script == "train_db.py":
        trains = args.stop_text_encoder_training is None or args.stop_text_encoder_training >= 0
        if not trains:
            return iter(weights())
        if args.learning_rate_te is None:
            return weights() + weights()
        return [{"params": weights(), "lr": lr}, {"params": weights(), "lr": args.learning_rate_te}]
    if script == "fine_tune.py" and args.train_text_encoder and args.learning_rate_te is not None:
        return [{"params": weights(), "lr": lr}, {"params": weights(), "lr": args.learning_rate_te}]
    return weights()


def _came_out(args, optimizer, scheduler) -> dict:
    kind = type(optimizer)
    dummy = type(scheduler).__name__ == "DummyScheduler"
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    if kind.__name__ == "Adafactor" and optimizer.param_groups[0].get("relative_step"):
        rates = None
    warmup = None
    if getattr(scheduler, "lr_lambdas", None):
        warmup = getattr(scheduler.lr_lambdas[0], "keywords", {}).get("num_warmup_steps")
    return {
        "optimizer": f"{kind.__module__}.{kind.__name__}",
        "scheduler": "none" if dummy else args.lr_scheduler_type or args.lr_scheduler,
        "learning_rates": rates,
        "warmup_steps": warmup,
    }


# the cases


def hand_picked() -> list[dict]:
    """One case for every rule that can be run, and for every trap known of."""
    flags = [
        FAMOUS,
        [*FAMOUS, "--learning_rate=1e-4", *MANUAL],
        [*FAMOUS, "--learning_rate=1e-4", "--max_grad_norm=1.0", *MANUAL],
        ["--optimizer_type=Adafactor", "--lr_scheduler=adafactor", *AUTOMATIC],
        ["--optimizer_type=adafactor", "--optimizer_args", "relative_step=False", "warmup_init=True"],
        ["--optimizer_type=Adafactor", "--lr_scheduler=adafactor", "--optimizer_args", "relative_step=False"],
        ["--optimizer_type=Adafactor", "--lr_scheduler=adafactor:1e-3", "--optimizer_args", "relative_step=False"],
        ["--optimizer_type=Adafactor", "--lr_scheduler=adafactor:x", "--optimizer_args", "relative_step=False"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "relative_step=False", "betas=(0.9,0.99)"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "relative_step=false"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "relative_step=False,"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "relative_step = False"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "relative_step", "=", "False"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "relative_step=False scale_parameter=False"],
        ["--optimizer_type=Adafactor", "--optimizer_args", "clip_threshold=2.0", "relative_step=False"],
        ["--optimizer_type=Adafactor", "--learning_rate=0"],
        ["--optimizer_type=Adafactor", "--learning_rate=0", "--unet_lr=1e-4"],
        ["--lr_scheduler=adafactor"],
        ["--lr_warmup_steps=100"],
        ["--lr_warmup_steps=0.1", "--lr_scheduler=constant_with_warmup"],
        ["--lr_warmup_steps=10%", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=200%", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=100.0", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=1e2", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=-5", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=nan", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=inf", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=-inf", "--lr_scheduler=cosine"],
        ["--lr_warmup_steps=5000", "--lr_scheduler=constant_with_warmup"],
        ["--lr_scheduler=constant_with_warmup"],
        ["--lr_scheduler=cosine_with_min_lr"],
        ["--lr_scheduler=cosine_with_min_lr", "--lr_scheduler_min_lr_ratio=0.1"],
        ["--lr_scheduler=cosine_with_min_lr", "--lr_scheduler_args", "min_lr=1e-6"],
        ["--lr_scheduler=piecewise_constant"],
        ["--lr_scheduler=piecewise_constant", "--lr_scheduler_args", "step_rules='1:10,0.1:20,0.01'"],
        ["--lr_scheduler=piecewise_constant", "--lr_warmup_steps=10", "--lr_scheduler_args", "step_rules='1:10,0.1'"],
        ["--lr_scheduler=piecewise_constant", "--lr_scheduler_args", "step_rules='1-10'"],
        ["--lr_scheduler=cosinus"],
        ["--lr_scheduler=reduce_lr_on_plateau"],
        ["--lr_scheduler=warmup_stable_decay", "--lr_warmup_steps=10", "--lr_decay_steps=0.2"],
        ["--lr_scheduler=inverse_sqrt", "--lr_warmup_steps=10", "--lr_scheduler_timescale=100"],
        ["--lr_scheduler=polynomial", "--learning_rate=1e-8"],
        ["--lr_scheduler_type=CosineAnnealingLR"],
        ["--lr_scheduler_type=CosineAnnealingLR", "--lr_scheduler_args", "T_max=100"],
        ["--lr_scheduler_type=CosineAnnealingLR", "--lr_warmup_steps=10", "--lr_scheduler_args", "T_max=100"],
        ["--lr_scheduler_type=cosine"],
        ["--use_8bit_adam", "--optimizer_type=AdamW"],
        ["--use_8bit_adam"],
        ["--use_lion_optimizer"],
        ["--use_8bit_adam", "--use_lion_optimizer"],
        ["--optimizer_type=Prodigy", "--learning_rate=1e-4"],
        ["--optimizer_type=Prodigy", "--learning_rate=1"],
        ["--optimizer_type=Prodigy", "--learning_rate=1", "--unet_lr=0.5"],
        ["--optimizer_type=DAdaptAdam", "--learning_rate=1", "--optimizer_args", "decouple=True", "weight_decay=0.01"],
        ["--optimizer_type=DAdaptFoo"],
        ["--optimizer_type=adam"],
        ["--optimizer_type=Adam8bit"],
        ["--optimizer_type=AdamW2"],
        ["--optimizer_type=RAdam"],
        ["--optimizer_type=AdamWScheduleFree", "--lr_scheduler=cosine", "--lr_warmup_steps=100"],
        ["--optimizer_type=SGDNesterov8bit", "--learning_rate=0.1"],
        ["--optimizer_type=bitsandbytes.optim.AdEMAMix8bit"],
        ["--optimizer_type=torch.optim.AdamW"],
        ["--fused_backward_pass"],
        ["--fused_backward_pass", *FAMOUS, *MANUAL, "--gradient_accumulation_steps=2"],
        ["--fused_backward_pass", *FAMOUS, *MANUAL],
        ["--adaptive_noise_scale=0.1"],
        ["--scale_v_pred_loss_like_noise_pred"],
        ["--v_pred_like_loss=1", "--v_parameterization"],
        ["--zero_terminal_snr"],
        ["--v2", "--clip_skip=2"],
        ["--cache_latents_to_disk"],
        ["--resolution=512x512"],
        ["--resolution=512,512,512"],
        ["--sample_every_n_steps=0"],
        ["--max_grad_nrom=0"],
        ["--max_grad=0"],
        ["--lr_sch=cosine"],
        ["--mixed_precision=fp8"],
        ["--learning_rate=abc"],
        ["--learning_rate=-1e-4"],
        ["--learning_rate=nan"],
        ["--learning_rate=inf"],
        ["--learning_rate", "=", "1e-4"],
        ["--optimizer_args"],
        ["--optimizer_args", "weight_decay=0.01", "weight_decay=0.1"],
        ["--optimizer_args", "lr=1e-3"],
        ["--optimizer_args", "weight_decay=-1"],
        ["--optimizer_args", "weight_decay='x'"],
        ["--optimizer_args", "eps=__import__('os').getcwd()"],
        ["--network_dim=4", "--network_alpha=1"],
        ["--text_encoder_lr", "5e-5", "1e-5", "--unet_lr=1e-4"],
    ]  # fmt: skip
    scripts = ("train_network.py", "sdxl_train_network.py", "sdxl_train.py", "train_db.py", "fine_tune.py", "train_textual_inversion.py")
    cases = [{"script": script, "form": "flags", "words": words, "processes": 1} for words in flags for script in scripts[:3]]
    cases += [{"script": scripts[i % 6], "form": "flags", "words": words, "processes": 4} for i, words in enumerate(flags)]
    toml = [
        'optimizer_type = "Adafactor"\nlr_scheduler = "constant_with_warmup"\nlr_warmup_steps = 100',
        'lr_scheduler = "constant_with_warmup"\nlr_warmup_steps = 100.0',
        'lr_scheduler = "constant_with_warmup"\nlr_warmup_steps = 0.05',
        "max_grad_nrom = 0",
        '[training]\nlearning_rate = 1e-4\n[training.deep]\nmax_grad_norm = 0',
        'optimizer_type = "AdamW"\noptimizer_args = "weight_decay=0.01"',
        'optimizer_type = "AdamW"\noptimizer_args = ["weight_decay=0.01"]',
        'optimizer_type = "AdamW"\noptimizer_args = [1]',
        'learning_rate = "1e-4"',
        'max_train_steps = "1600"',
        'lr_warmup_steps = "100"\nlr_scheduler = "cosine"',
        "max_train_steps = 1600.0",
        'mixed_precision = "fp8"',
        "fused_backward_pass = true",
        'optimizer_type = "Prodigy"\nlearning_rate = 1',
        "lr_warmup_steps = inf\nlr_scheduler = \"cosine\"",
        "resolution = 512",
        'resolution = "512"',
        "text_encoder_lr = 1e-5\nunet_lr = 1e-4",
        "text_encoder_lr = [1e-5, 2e-5]",
        "zero_terminal_snr = true",
    ]  # fmt: skip
    return cases + [
        {"script": script, "form": "toml", "text": text, "processes": n}
        for text in toml
        for script, n in zip(scripts[:3], (1, 1, 2), strict=True)
    ]


def generated(count: int, seed: int = 0) -> list[dict]:
    """Settings put together at random from values that people use, and, one in eight, from values that they should not."""
    dice = random.Random(seed)
    return [_case(dice) for _ in range(count)]


GOOD = {
    "optimizer_type": [*sd_scripts.NAMES, *["Adafactor"] * 16, *["AdamW", "AdamW8bit", "Prodigy", "Lion"] * 2, "adafactor", "SGD", "NAdam"],
    "lr_scheduler": [*["constant", "constant_with_warmup", "cosine"] * 3, "linear", "cosine_with_restarts", "polynomial", "inverse_sqrt"],
    "learning_rate": "1e-4 1e-4 1 1.0 4e-7 0.05".split(),
    "lr_warmup_steps": "0 100 100 0.1 10% 0.05".split(),
}
BAD = {
    "optimizer_type": "ADAMW sgd Muon8bit Foo DAdaptX adam lr_scheduler AdamW2".split(),
    "lr_scheduler": (
        "adafactor piecewise_constant reduce_lr_on_plateau cosine_warmup_with_min_lr Constant adafactor:1e-3 foo "
        "cosine_with_min_lr warmup_stable_decay"
    ).split(),
    "learning_rate": "0 -1 nan inf x 1e-8".split(),
    "lr_warmup_steps": "1 1.5 2000 -1 nan 1e2 x% 0.0 inf".split(),
}
SETS = [
    texts.split()
    for texts in (
        "relative_step=False",
        "relative_step=False scale_parameter=False warmup_init=False",
        "relative_step=True scale_parameter=True warmup_init=True",
        "clip_threshold=2.0 relative_step=False",
        "weight_decay=0.01",
        "decouple=True",
        "betas=(0.9,0.99)",
    )
]
KEYS = (
    "relative_step scale_parameter warmup_init clip_threshold weight_decay betas eps decouple momentum beta1 d_coef amsgrad lr foo"
).split()
VALUES = [*"False True false 0 1 0.5 -1 None 'x' (0.9,0.99) (0.9,0.999,0.9999) (1.5,0.9) 1e-6 False, [0.9,0.99] nan {}".split(), ""]
ODD = (
    "--max_grad_norm=0 --max_grad_norm=1 --gradient_accumulation_steps=2 --max_train_steps=50 --fused_backward_pass "
    "--gradient_checkpointing --mixed_precision=bf16 --zero_terminal_snr --v_parameterization --v2 --clip_skip=2 --cache_latents_to_disk "
    "--noise_offset=0.05 --adaptive_noise_scale=0.01 --unet_lr=1e-4 --text_encoder_lr=1e-5 --network_train_unet_only --network_dim=8 "
    "--train_text_encoder --learning_rate_te=1e-6 --learning_rate_te1=1e-6 --use_8bit_adam --use_lion_optimizer --lr_decay_steps=10 "
    "--lr_scheduler_num_cycles=3 --lr_scheduler_min_lr_ratio=0.1 --lr_scheduler_power=2 --resolution=512,512 --resolution=512x "
    "--weighted_captions --block_lr=1 --xformer --seed=1 --lr_w=5"
).split()
SCRIPTS = STABLE_DIFFUSION


def _case(dice: random.Random) -> dict:
    script = dice.choice(SCRIPTS)
    said = {name: dice.choice((BAD if dice.random() < 1 / 8 else GOOD)[name]) for name in GOOD if dice.random() < 0.75}
    if said.get("lr_scheduler", "constant") == "constant" and dice.random() < 0.8:
        said.pop("lr_warmup_steps", None)
    words = [f"--{name}={value}" for name, value in said.items()]
    if dice.random() < 0.5:
        known = arguments(script)
        odd = [word for word in ODD if word[2:].partition("=")[0] in known] if dice.random() < 0.9 else ODD
        words += dice.sample(odd, dice.choice([1, 1, 2]))
    if dice.random() < 0.06:
        words.append(f"--lr_scheduler_type={dice.choice(['CosineAnnealingLR', 'StepLR', 'cosine', 'ConstantLR', 'LinearLR', 'Foo'])}")
    if dice.random() < 0.08:
        some = ["T_max=10", "step_size=3", "num_cycles=2", "last_epoch=-1", "min_lr=1e-6", "step_rules='1:10,0.1'", "x"]
        words += ["--lr_scheduler_args", *dice.sample(some, dice.choice([1, 2]))]
    if dice.random() < 0.6:
        own = dice.choice(SETS)
        if "relative_step" in own[0] or said.get("optimizer_type", "").lower() == "adafactor":
            own = dice.choice([one for one in SETS if "relative_step=" in " ".join(one)]) if dice.random() < 0.9 else own
        if dice.random() < 1 / 8:
            own = [f"{dice.choice(KEYS)}={dice.choice(VALUES)}" for _ in range(dice.choice([1, 1, 2]))]
        words += ["--optimizer_args", *own]
    case = {"script": script, "form": "flags", "words": words, "processes": dice.choice([1, 1, 1, 2, 4])}
    toml = {"script": script, "form": "toml", "processes": case["processes"]}
    return {**toml, "text": text} if dice.random() < 0.2 and (text := _as_toml(words)) else case


def _as_toml(words: list[str]) -> str | None:
    """The same as a TOML file; None where a word has no place in one."""
    lines, values, name = [], {}, ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values[name] = value if equals else True
        else:
            values[name] = [*(values[name] if isinstance(values[name], list) else []), word]
    for name, value in values.items():
        if (
            value is True
            or isinstance(value, list)
            or name in ("optimizer_type", "lr_scheduler", "lr_scheduler_type", "mixed_precision", "resolution")
        ):
            lines.append(f"{name} = {json.dumps(value)}")
        else:
            try:
                json.loads(value)
            except ValueError:
                return None
            lines.append(f"{name} = {value}")
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("checkout", type=Path, help="a clone of kohya-ss/sd-scripts")
    parser.add_argument("--settings", type=int, default=12_000, help="how many to generate (default: 12000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", help="the checkout's commit, where it has no .git")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep sd-scripts' verdicts here, for the tests")
    parser.add_argument("--facts", action="store_true", help="take sdnb/sd_scripts/facts.json anew first")
    options = parser.parse_args()
    checkout = sd_scripts.Checkout(options.checkout.resolve())
    commit = checkout.commit(options.commit)
    if options.facts:
        sd_scripts.write_facts(checkout, HERE / "sdnb" / "sd_scripts" / "facts.json", commit)
    for rule in RULES:
        file, _, line = rule.source.place.rpartition(":")
        if (checkout.folder / file).is_file() and not (checkout.folder / file).read_text(encoding="utf-8").splitlines()[
            int(line) - 1
        ].strip():
            raise SystemExit(f"{rule.name} names an empty line: {rule.source.place}")
    cases = hand_picked() + generated(options.settings, options.seed)
    rows, counts = [], dict.fromkeys(("raises", "warnings", "optimizer", "scheduler", "learning_rates", "warmup_steps"), 0)
    raising = repaired = still = 0
    for case in cases:
        real, said = verdict(checkout, case), opinion(case)
        rows.append({**case, "verdict": real})
        for name in agree(real, said):
            counts[name] += 1
            print(f"{name}: sd-scripts {real.get(name)!r}, doctor {said.get(name)!r}: {case}")
        if real["raises"]:
            raising += 1
            if better := mended(case):
                repaired += 1
                if error := verdict(checkout, better)["raises"]:
                    still += 1
                    print(f"mended, but {error}: {case} -> {better}")
    if options.record:
        lines = ",\n".join(json.dumps(row) for row in rows)
        source = json.dumps({"commit": commit, "versions": sd_scripts.versions()})
        write(options.record, f'{{"source": {source}, "disagreements": {json.dumps(counts)}, "cases": [\n{lines}\n]}}\n')
    table = [
        {"doctor beside sd-scripts": name.replace("_", " "), "settings": f"{len(cases):,}", "disagreements": number}
        for name, number in counts.items()
    ]
    table.append({"mended": "settings that raise", "settings": raising, "the doctor mended": repaired, "which still raise": still})
    show(table, options.json, notes=[f"sd-scripts {commit}, with {sd_scripts.versions()}."])
    sys.exit(any(counts.values()) or still > 0)


if __name__ == "__main__":
    main()
