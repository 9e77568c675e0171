"""`choose(parts, budget)`: what a reader may write, and what the grader says of it."""

from itertools import combinations

import pytest

from sdnb.course.building import grade
from sdnb.course.building.budget import Part, cheapest, peak


def greedy(parts, budget, key, drop=True):
    """Take blocks in the order of `key` until they fit, then leave out those that turned out not to be needed."""
    chosen = []
    for part in sorted(parts, key=key):
        if peak(parts, chosen) > budget:
            chosen.append(part.name)
    if peak(parts, chosen) > budget:
        raise ValueError("no choice fits")
    for name in list(chosen) if drop else ():
        fewer = [other for other in chosen if other != name]
        if peak(parts, fewer) <= budget:
            chosen = fewer
    return chosen


def flops_per_byte(part):
    return part.recompute_flops / part.saved_bytes


# Right ones


def by_price(parts, budget):
    return greedy(parts, budget, flops_per_byte)


def by_what_it_brings(parts, budget):
    """Take each time the block that lowers the peak most for its FLOPs."""
    chosen = []
    while (now := peak(parts, chosen)) > budget:
        left = [part for part in parts if part.name not in chosen]
        if not left:
            raise ValueError("no choice fits")
        best = max(left, key=lambda part: (now - peak(parts, [*chosen, part.name])) / max(part.recompute_flops, 1e-9))
        chosen.append(best.name)
    for name in list(chosen):
        fewer = [other for other in chosen if other != name]
        chosen = fewer if peak(parts, fewer) <= budget else chosen
    return chosen


def every_choice(parts, budget):
    """Search all of them, as a set of names."""
    every = (set(names) for number in range(len(parts) + 1) for names in combinations([part.name for part in parts], number))
    fitting = [names for names in every if peak(parts, names) <= budget]
    if not fitting:
        raise ValueError
    return min(fitting, key=lambda names: (sum(part.recompute_flops for part in parts if part.name in names), len(names)))


RIGHT = [by_price, by_what_it_brings, every_choice]


@pytest.mark.parametrize("answer", RIGHT)
def test_right_ones(answer):
    assert grade("03.2", answer) is None


# Wrong ones


def largest_first(parts, budget):
    return greedy(parts, budget, lambda part: -part.saved_bytes)


def nothing_dropped(parts, budget):
    return greedy(parts, budget, flops_per_byte, drop=False)


def everything(parts, budget):
    return [part.name for part in parts]


def nothing(parts, budget):
    return []


def blocks_instead_of_names(parts, budget):
    return [part for part in parts if part.name in by_price(parts, budget)]


def one_name(parts, budget):
    return parts[0].name


def sum_alone(parts, budget):
    """Count what forward leaves, and forget that a recomputed block is whole again in backward."""
    chosen, kept = [], sum(part.saved_bytes for part in parts)
    for part in sorted(parts, key=flops_per_byte):
        if kept > budget:
            chosen.append(part.name)
            kept -= part.saved_bytes
    if kept > budget:
        raise ValueError
    return chosen


def never_gives_up(parts, budget):
    chosen = []
    while peak(parts, chosen) > budget:
        left = [part for part in parts if part.name not in chosen]
        if left:
            chosen.append(min(left, key=flops_per_byte).name)
    return by_price(parts, budget)


def gives_all_it_has(parts, budget):
    try:
        return by_price(parts, budget)
    except ValueError:
        return [part.name for part in parts]


def sorts_in_place(parts, budget):
    parts.sort(key=flops_per_byte)
    return by_price(parts, budget)


def bytes_per_flop(parts, budget):
    return greedy(parts, budget, lambda part: -part.saved_bytes / part.recompute_flops)


def without_free_ones(parts, budget):
    return [] if peak(parts, []) <= budget else greedy(parts, budget, lambda part: flops_per_byte(part) or 1e9)


WRONG = {
    "largest first": (largest_first, "expensive", "more extra FLOPs than the cheapest choices"),
    "nothing dropped": (nothing_dropped, "superfluous", "also fits without"),
    "everything": (everything, "needless", "fits as it is"),
    "nothing": (nothing, "too_much", "over a budget of"),
    "blocks": (blocks_instead_of_names, "no_name", "name of a block"),
    "one name": (one_name, "returns", "returned a str"),
    "the sum alone": (sum_alone, "too_much", "over a budget of"),
    "never gives up": (never_gives_up, "too_slow", "did not end"),
    "gives all it has": (gives_all_it_has, "not_refused", "raise ValueError"),
    "sorts in place": (sorts_in_place, "list_changed", "sorted(parts"),
    "divides by FLOPs": (bytes_per_flop, "raised", "ZeroDivisionError"),
    "takes free ones last": (without_free_ones, "free_block", "costs 0 FLOPs"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_ones(name, told):
    answer, fault, text = WRONG[name]
    assert grade("03.2", answer).name == fault
    assert text in told("03.2", answer)


def test_the_cheapest_of_all_choices():
    parts = [Part("a", 3, 10), Part("b", 2, 1), Part("c", 2, 5)]
    assert [cheapest(parts, budget) for budget in (7, 5, 4, 3)] == [0, 1, 10, 11]
    with pytest.raises(ValueError, match="empty"):
        cheapest(parts, 2)
