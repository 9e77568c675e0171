"""`sdnb plan`, `fit`, `explore` and `timeline`: the memory of a run, the recipes that fit a card, and pages that show both."""

from __future__ import annotations

import argparse
import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..system import DOES_NOT_FIT, FITS, GIB, TIGHT, cards

if TYPE_CHECKING:
    from ..recipe import Recipe
    from .page import Page
    from .report import MemoryPlan


def add_plan(commands) -> None:
    """Add `sdnb plan` to the parsers of argparse."""
    command = commands.add_parser(
        "plan",
        help="predict how much memory a training run needs, without a GPU",
        usage="sdnb plan MODEL [--resolution …] [--batch-size N] [--gpu CARD] [--trainer NAME] "
        "[--whole-run] [--advise] [--compare SETTINGS [SETTINGS]] [--json] [-- FLAGS | FILE]",
        description="FLAGS after -- are those of sd-scripts. Status 1: it does not fit; 3: it is tight; 2: it cannot be planned.",
    )
    command.add_argument("model", help="tiny, sd15, sd21, sdxl, a folder in diffusers' format, or one .safetensors file")
    command.add_argument("--resolution", metavar="SIDE | WIDTHxHEIGHT", help="in pixels (default: what the model was made for)")
    command.add_argument("--batch-size", type=int, metavar="N", help="pictures in one forward pass (default: the recipe's)")
    command.add_argument("--gpu", metavar="CARD", help='a card, such as t4, "RTX 4070 Ti", 12GB or "rtx4060, 900MB used"')
    command.add_argument("--trainer", default="sdnb", metavar="NAME", help="whose run: sdnb, sd-scripts or diffusers (default: sdnb)")
    command.add_argument("--whole-run", action="store_true", help="also plan caching, previews and saves, which takes some seconds more")
    command.add_argument("--advise", action="store_true", help="also name the smallest changes that make it fit the card (half a minute)")
    command.add_argument(
        "--compare", nargs="+", metavar="SETTINGS",
        help="say where the bytes of two plans differ: give two files or quoted flags, or one to compare with those after --; each may "
        "begin with its trainer, as in sd-scripts:a.toml",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print the plan as JSON")
    command.set_defaults(
        run=run_plan,
        way_out="flags of sd-scripts, or a file with settings, go after --, as in: sdnb plan MODEL -- {words}",
    )


def add_fit(commands) -> None:
    """Add `sdnb fit` to the parsers of argparse."""
    command = commands.add_parser(
        "fit",
        help="find the recipes that fit a card, with a command for each trainer",
        usage="sdnb fit MODEL CARD [--resolution …] [--method full|lora] [--trainer NAME] [--batch-size N] [--rank N] [--all] [--json]",
        description="Status 1: no recipe fits; 3: some are tight; 2: something is wrong with the question.",
    )
    command.add_argument("model", help="as for plan")
    command.add_argument("gpu", metavar="card", help='a card, such as t4, "RTX 4070 Ti", 12GB or "rtx4060, 900MB used"')
    command.add_argument("--resolution", metavar="SIDE | WIDTHxHEIGHT", help="in pixels (default: what the model was made for)")
    command.add_argument("--method", help="full or lora (default: both, a LoRA first)")
    command.add_argument("--batch-size", type=int, metavar="N", default=1, help="pictures in one forward pass (default: 1)")
    command.add_argument("--rank", type=int, metavar="N", default=16, help="rank of a LoRA (default: 16)")
    command.add_argument("--trainer", metavar="NAME", help="sdnb, sd-scripts or diffusers (default: each of them)")
    command.add_argument("--all", action="store_true", help="also list all recipes for sdnb that fit")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run_fit, way_out="it tries recipes of its own; for settings of yours there is sdnb plan")


def add_explore(commands) -> None:
    """Add `sdnb explore` to the parsers of argparse."""
    command = _add_page(commands, "explore", "write a page for a browser that shows what fits which card, with commands", "[--gpu CARD]")
    command.add_argument(
        "--gpu", metavar="CARD", default="rtx4060", help="the card that the page shows first, as for plan (default: rtx4060)"
    )
    command.set_defaults(run=run_explore, way_out="everything else is chosen on the page")


def add_timeline(commands) -> None:
    """Add `sdnb timeline` to the parsers of argparse."""
    command = _add_page(commands, "timeline", "write a page for a browser: drag through a training step and its memory")
    command.set_defaults(run=run_timeline, way_out="everything else is chosen on the page")


def _add_page(commands, name: str, what: str, options: str = "") -> argparse.ArgumentParser:
    """Parser of a command that writes a page."""
    command = commands.add_parser(
        name,
        help=what,
        usage=" ".join(filter(None, [f"sdnb {name} --html [FILE]", options, "[--language LANGUAGE]"])),
        description=f"The page needs neither Python nor a network. In a notebook, sdnb.{name}() shows the same.",
    )
    file = Path("sdnb-explorer.html" if name == "explore" else f"sdnb-{name}.html")
    command.add_argument(
        "--html", type=Path, nargs="?", const=file, required=True, metavar="FILE", help=f"the file to write (default: {file})"
    )
    command.add_argument("--language", help="language of the page, en or zh (default: the browser's); the reader can switch")
    return command


def run_plan(options: argparse.Namespace) -> int:
    """Print the plan of a run; the status is 1 when it does not fit the card, 3 when it is tight.

    Raises `ValueError` for advice without a card.
    """
    from ..system import requirements

    requirements.check()  # before torch is imported
    from ..recipe import Recipe
    from .planning import plan

    _check_count("--batch-size", options.batch_size)
    if options.advise and not options.gpu:
        raise ValueError("--advise needs a card: --gpu t4, or its memory, such as --gpu 12GB")
    words = options.flags
    one_file = len(words) == 1 and not words[0].startswith("-")
    recipe = (Recipe.parse(Path(words[0])) if one_file else Recipe.parse(shlex.join(words))) if words else Recipe()
    card, trainer, sides = options.gpu, options.trainer, _sides(options.resolution)
    if options.compare:
        return _compare(options, [(trainer, recipe)] if words else [])
    memory_plan = plan(options.model, recipe, resolution=sides, batch_size=options.batch_size, gpu=card, trainer=trainer)
    whole = memory_plan.whole_run if options.whole_run else None
    advice = memory_plan.advice() if options.advise else None
    if options.json:
        parts = {name: part.as_dict() for name, part in (("whole_run", whole), ("advice", advice)) if part}
        print(json.dumps(memory_plan.as_dict() | parts, indent=1))
    else:
        print(memory_plan, *(f"\n{part}" for part in (whole, advice) if part), sep="\n")
    return _status([whole.verdict if whole else memory_plan.verdict])


def _compare(options: argparse.Namespace, given: list[tuple[str, Recipe]]) -> int:
    """Print a comparison of two plans; `given` is the trainer and the recipe of the flags after --, if there are any.

    Raises `ValueError` unless there are two.
    """
    from ..recipe import Recipe
    from .planning import plan
    from .trainers import NAMES

    for text in options.compare:
        name, colon, settings = text.partition(":")
        trainer, settings = (name, settings) if colon and name in NAMES else (options.trainer, text)
        given.append((trainer, Recipe.parse(settings if settings.startswith("-") else Path(settings))))
    if len(given) != 2:
        raise ValueError(f"--compare needs two, and there are {len(given)}: --compare a.toml b.toml, or --compare a.toml -- FLAGS")
    if options.advise or options.whole_run:
        raise ValueError("--compare compares two steps: leave --advise and --whole-run out")
    asked = {"resolution": _sides(options.resolution), "batch_size": options.batch_size, "gpu": options.gpu}
    first, second = (plan(options.model, recipe, trainer=trainer, **asked) for trainer, recipe in given)
    print(json.dumps(first.compare(second).as_dict(), indent=1) if options.json else first.compare(second))
    return _status([second.verdict])


def run_fit(options: argparse.Namespace) -> int:
    """Print the fastest recipe for each trainer with its command; the status is 1 when none fits, 3 when the best is tight.

    As JSON: one result, or without `--method` one for each of the methods.
    """
    from ..system import requirements

    requirements.check()  # before torch is imported
    from .report import HOW_RIGHT
    from .search import METHODS, fastest, fit
    from .trainers import NAMES

    _check_count("--batch-size", options.batch_size)
    _check_count("--rank", options.rank)
    asked = {"resolution": _sides(options.resolution), "batch_size": options.batch_size, "rank": options.rank}
    card, results, verdicts = cards.card(options.gpu), {}, []
    trainers = [options.trainer] if options.trainer else NAMES
    for method in [options.method] if options.method else reversed(METHODS):
        plans = [fastest(options.model, options.gpu, method=method, trainer=trainer, **asked) for trainer in trainers]
        table = fit(options.model, options.gpu, method=method, **asked) if options.all else None
        verdicts += [plan.verdict for plan in plans]
        if not options.json:
            needs = f"; it needs {card.needs}" if card.needs else ""
            lines = [] if results else [f"{plans[0].model} on {card.name}, {card.usable_bytes / GIB:.2f} GiB usable{needs}"]
            heading = f"A LoRA of rank {options.rank}" if method == "lora" else "The whole U-Net"
            lines += ["", heading, "=" * len(heading), _answers(plans)]
            print("\n".join([*lines, "", str(table)] if table else lines))
        results[method] = (table.as_dict() if table else {}) | {"trainers": {plan.trainer: _as_dict(plan) for plan in plans}}
    print(json.dumps(results[options.method] if options.method else results, indent=1) if options.json else f"\n{HOW_RIGHT}")
    return _status(verdicts)


def _status(verdicts: list[str | None]) -> int:
    """Exit status for the best of these verdicts; None, without a card, is as good as any."""
    return 0 if FITS in verdicts or None in verdicts else 3 if TIGHT in verdicts else 1


def run_explore(options: argparse.Namespace) -> int:
    """Write the explorer's page."""
    from ..system import requirements

    requirements.check()  # before torch is imported
    from .explorer import explore

    return _write(explore(options.gpu, language=options.language), options.html)


def run_timeline(options: argparse.Namespace) -> int:
    """Write the timeline's page."""
    from ..system import requirements

    requirements.check()  # before torch is imported
    from .timeline_page import timeline

    return _write(timeline(language=options.language), options.html)


def _write(page: Page, path: Path) -> int:
    from ..system import files

    print(f"{files.write(path.expanduser(), page.page())}: open it in a browser")
    return 0


def _as_dict(plan: MemoryPlan) -> dict:
    """A plan for JSON, with its command; None where it does not fit, or the trainer cannot be asked for it."""
    from .trainers import train_command

    command = None
    with suppress(ValueError):
        command = None if plan.verdict == DOES_NOT_FIT else train_command(plan)
    return plan.as_dict() | {"command": command}


def _answers(plans: list[MemoryPlan]) -> str:
    """Table with a row for each plan, which has its verdict and how it is trained, and then the commands of those that fit."""
    from .report import TIGHT_MEANS
    from .search import how
    from .trainers import OTHERS, train_command

    lines = [f"{'fastest with':14}{'':14}reserved  spare  GiB"]
    for plan in plans:
        sizes = f"{plan.reserved_bytes / GIB:8.2f}{(plan.spare_bytes or 0) / GIB:7.2f}"
        lines.append(f"  {plan.trainer:12}{plan.verdict:14}{sizes}  {how(plan)}")
    lines += ["", TIGHT_MEANS] if any(plan.verdict == TIGHT for plan in plans) else []
    lines += ["", *notes] if (notes := sorted({plan.note for plan in plans} - {""})) else []
    for plan in plans:
        if plan.verdict != DOES_NOT_FIT:
            where = f" ({OTHERS[plan.trainer].pictures})" if plan.trainer in OTHERS else ""
            try:
                lines += ["", f"with {plan.trainer}{where}:", train_command(plan)]
            except ValueError as error:
                lines += ["", f"with {plan.trainer}: {error}"]
    return "\n".join(lines)


def _sides(text: str | None) -> int | tuple[int, int] | None:
    """Parse `512`, `832x1216` or `832,1216` as sides in pixels. Raises `ValueError` for anything else."""
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().replace(",", "x").split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1 or max(sides) > 100_000:
        raise ValueError(f"--resolution {text}: give a side in pixels, such as 512, or WIDTHxHEIGHT, such as 832x1216")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _check_count(flag: str, number: int | None) -> None:
    if number is not None and not 1 <= number <= 1_000_000:
        raise ValueError(f"{flag} {number}: give a whole number, 1 or more, and no more than a million")
