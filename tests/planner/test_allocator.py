"""The model of CUDA's caching allocator, against cases worked out by hand from its rules."""

import re

import pytest

from sdnb.planner import allocator
from sdnb.planner.allocator import MIB, Allocator, replay
from sdnb.system import cards


@pytest.mark.parametrize(("asked", "counted"), [(1, 512), (512, 512), (513, 1024), (MIB, MIB), (MIB + 1, MIB + 512)])
def test_requests_are_rounded_up_to_512_bytes(asked, counted):
    one = Allocator()
    one.malloc(asked)
    assert one.allocated == counted


@pytest.mark.parametrize(
    ("asked", "segment"),
    [(1, 2), (MIB, 2), (MIB + 1, 20), (10 * MIB - 512, 20), (10 * MIB, 10), (11 * MIB, 12), (100 * MIB + 1, 102)],
)
def test_a_segment_depends_on_the_size(asked, segment):
    one = Allocator()
    one.malloc(asked)
    assert one.reserved == segment * MIB


def test_small_requests_share_a_segment_and_large_ones_another():
    one = Allocator()
    for _ in range(4):
        one.malloc(512 * 1024)
    assert one.reserved == 2 * MIB
    one.malloc(512)  # the first is full
    assert one.reserved == 4 * MIB
    one.malloc(4 * MIB)
    one.malloc(4 * MIB)
    assert one.reserved == 24 * MIB


def test_what_is_left_of_a_large_block_is_kept_whole_up_to_a_mebibyte():
    one = Allocator()
    one.malloc(11 * MIB)  # of 12: 1 MiB is not worth a block
    assert one.allocated == 12 * MIB
    one = Allocator()
    one.malloc(11 * MIB - 512)
    assert one.allocated == 11 * MIB - 512


def test_the_smallest_block_that_is_large_enough_is_taken():
    one = Allocator()
    large, small, wall = one.malloc(40 * MIB), one.malloc(16 * MIB), one.malloc(30 * MIB)
    one.free(large)
    one.free(small)
    again = one.malloc(14 * MIB)
    assert again.address == small.address
    assert one.reserved == 86 * MIB
    assert wall.size == 30 * MIB


def test_freed_neighbours_grow_together():
    one = Allocator()
    parts = [one.malloc(5 * MIB) for _ in range(4)]  # one segment of 20
    assert one.reserved == 20 * MIB
    for number in (0, 2, 1):
        one.free(parts[number])
    assert one.malloc(15 * MIB).address == parts[0].address
    assert one.reserved == 20 * MIB


def test_pieces_that_do_not_touch_do_not_help():
    one = Allocator()
    parts = [one.malloc(5 * MIB) for _ in range(4)]
    one.free(parts[0])
    one.free(parts[2])
    one.malloc(10 * MIB)
    assert one.reserved == 30 * MIB
    assert one.allocated == 20 * MIB


def test_a_replay_counts_its_peaks():
    played = replay([20 * MIB], [(1, 30 * MIB), (-1, 10 * MIB), (-1, -10 * MIB), (1, -30 * MIB), (2, 2 * MIB), (0, -20 * MIB)])
    assert played.peak_allocated == 60 * MIB
    assert played.reserved == 60 * MIB  # the last is cut from the freed 30
    assert played.allocated == 2 * MIB


def test_nothing_is_lost_over_many_turns():
    one, held, state = Allocator(), [], 12345
    for _ in range(3000):
        state = (state * 1103515245 + 12345) % 2**31
        if state % 3 and held:
            one.free(held.pop(state % len(held)))
        else:
            held.append(one.malloc(1 + state % (30 * MIB if state % 5 == 0 else 3 * MIB)))
        assert one.allocated == sum(block.size for block in held)
        assert one.allocated <= one.reserved
    for block in held:
        one.free(block)
    assert one.allocated == 0
    assert all(block.before is block.after is None for pool in one._free for *_, block in pool)  # every segment is whole again


def test_cards_are_found_by_any_of_their_names():
    names = ("T4", "tesla t4", "4090", "RTX 4090", "NVIDIA GeForce RTX 4090", "h100", "3080", "NVIDIA GeForce RTX 4070 Ti SUPER", "5090")
    of_nvidia_smi = ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA H100 80GB HBM3", "Tesla V100-SXM2-16GB", "NVIDIA RTX A6000")
    for name in (*names, *of_nvidia_smi, "RTX 3060 12GB", "Tesla P100-PCIE-16GB"):
        assert cards.card(name) in cards.CARDS.values(), name
    assert cards.card("NVIDIA A100-SXM4-80GB") is cards.CARDS["a100-80"]
    assert cards.card(8 * 2**30).usable_bytes == 8 * 2**30
    used = cards.card("RTX 4060, 0.5GB used")
    assert used.name == "RTX 4060 8 GB, 512.0 MiB used"
    assert used.usable_bytes == cards.CARDS["rtx4060"].usable_bytes - 2**29
    assert cards.card("12GB, 900MiB used").spills
    with pytest.raises(ValueError, match=r"RTX 4060 8 GB has 7\.27 GiB for a run"):
        cards.card("rtx4060, 8GB used")
    assert all(0 < card.context_bytes < card.total_bytes for card in cards.CARDS.values())
    assert not cards.card("t4").has_bf16
    assert cards.card("l4").has_bf16
    for card in cards.CARDS.values():  # what is reported is a little less than the name says
        if said := re.search(r"(\d+) GB$", card.name):
            assert 0.93 < card.total_bytes / (int(said[1]) * 2**30) < 1
    assert cards.card("4070 Ti") != cards.card("4070 Ti Super")
    with pytest.raises(ValueError, match="did you mean 'rtx5060ti-16'"):
        cards.card("5060 Ti")  # there is one with 8 GB as well
    with pytest.raises(ValueError, match="did you mean 'h100'"):
        cards.card("h1000")
    with pytest.raises(ValueError, match="give its memory, such as 12GB"):
        cards.card("NVIDIA GeForce RTX 3060 Laptop GPU")  # 6 GB, where the other has 12


def test_a_card_of_a_size_has_a_little_less_than_it_is_sold_with():
    for given in (12, "12", "12GB", "12 GiB", " 12g ", 12.0):
        assert cards.card(given) == cards.card("12gb")
    shares = [card.total_bytes / (int(said[1]) * 2**30) for card in cards.CARDS.values() if (said := re.search(r"(\d+) GB$", card.name))]
    assert min(shares) - 0.05 < cards.card(8).total_bytes / (8 * 2**30) < max(shares)
    for wrong in (0, -4, 0.5, True, "0GB", "1.2.3", 5000, "2000GB", float("nan"), float("inf"), 2**60):
        with pytest.raises(ValueError, match=r"no card|such as 12GB"):
            cards.card(wrong)
    assert allocator.rounded(0) == 512
