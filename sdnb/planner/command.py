"""`sdnb plan` and `sdnb fit`: predict the memory of a run, and list the recipes that fit a card."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path


def add_plan(commands) -> None:
    """Add `sdnb plan` to the parsers of argparse."""
    command = commands.add_parser(
        "plan",
        help="say what a training run will need in memory, without a GPU",
        usage="sdnb plan MODEL [--resolution …] [--batch-size N] [--gpu CARD] [--json] [-- FLAGS… | FILE]",
        description="FLAGS after -- are those of sd-scripts. The status is 1 when the run does not fit, 2 when it cannot be planned.",
    )
    command.add_argument("model", help="tiny, sd15, sd21, sdxl, a folder in diffusers' format, or one .safetensors file")
    command.add_argument("--resolution", metavar="SIDE | WIDTHxHEIGHT", help="in pixels (default: what the model was made for)")
    command.add_argument("--batch-size", type=int, metavar="N", help="pictures in one forward pass (default: the recipe's)")
    command.add_argument("--gpu", metavar="CARD", help='a card, such as t4, "RTX 4070 Ti" or 12GB')
    command.add_argument("--json", action="store_true", help="print the plan as JSON")
    command.set_defaults(
        run=run_plan,
        way_out="flags of sd-scripts, or a file with settings, go after --, as in: sdnb plan MODEL -- {words}",
    )


def add_fit(commands) -> None:
    """Add `sdnb fit` to the parsers of argparse."""
    command = commands.add_parser(
        "fit",
        help="list the recipes that fit a card, fewest FLOPs first",
        usage="sdnb fit MODEL CARD [--resolution …] [--method full|lora] [--batch-size N] [--rank N] [--json]",
        description="The status is 1 when no recipe fits, 2 when there is something wrong with the question.",
    )
    command.add_argument("model", help="as for plan")
    command.add_argument("gpu", metavar="card", help='a card, such as t4, "RTX 4070 Ti" or 12GB')
    command.add_argument("--resolution", metavar="SIDE | WIDTHxHEIGHT", help="in pixels (default: what the model was made for)")
    command.add_argument("--method", default="full", help="full or lora (default: full)")
    command.add_argument("--batch-size", type=int, metavar="N", default=1, help="pictures in one forward pass (default: 1)")
    command.add_argument("--rank", type=int, metavar="N", default=16, help="of a LoRA (default: 16)")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run_fit, way_out="it tries recipes of its own; for settings of yours there is sdnb plan")


def run_plan(options: argparse.Namespace) -> int:
    """Print the plan of a run; the status is 1 when it does not fit the card."""
    from ..system import requirements

    requirements.check()  # before torch is imported
    from ..recipe import Recipe
    from .planning import plan

    _check_count("--batch-size", options.batch_size)
    words = options.flags
    one_file = len(words) == 1 and not words[0].startswith("-")
    recipe = (Recipe.parse(Path(words[0])) if one_file else Recipe.parse(shlex.join(words))) if words else Recipe()
    memory_plan = plan(options.model, recipe, resolution=_sides(options.resolution), batch_size=options.batch_size, gpu=options.gpu)
    print(json.dumps(memory_plan.as_dict(), indent=1) if options.json else memory_plan)
    return int(memory_plan.fits is False)


def run_fit(options: argparse.Namespace) -> int:
    """Print the recipes that fit; the status is 1 when none does."""
    from ..system import requirements

    requirements.check()  # before torch is imported
    from .search import fit

    _check_count("--batch-size", options.batch_size)
    _check_count("--rank", options.rank)
    sides = _sides(options.resolution)
    fits = fit(options.model, options.gpu, resolution=sides, method=options.method, batch_size=options.batch_size, rank=options.rank)
    print(json.dumps(fits.as_dict(), indent=1) if options.json else fits)
    return int(not fits)


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
