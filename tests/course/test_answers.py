"""Numbers as people write them, and arithmetic in texts."""

import pytest
import torch

from sdnb.course.answers import calculated, number


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("12.8 GiB", 12.8),
        ("1,024", 1024),
        ("3/4", 0.75),
        ("5e-5", 5e-5),
        ("-2", -2),
        ("about 60 steps", 60),
        ("~ 3", 3),
        ("１２％", 12),
        ("约 60 步", 60),
        (torch.tensor(4.0), 4),
        (7, 7),
    ],
)
def test_numbers_as_people_write_them(written, read):
    assert number(written) == read


@pytest.mark.parametrize("written", ["", "a lot", "3 or 4", "0,00005", "1.2.3", "4/0"])
def test_other_text_is_no_number(written):
    with pytest.raises((ValueError, ArithmeticError)):
        number(written)


@pytest.mark.parametrize(("written", "read"), [("12 GB", 12), ("12 g", 12), ("12GiB", 12), ("12 of them", None), ("500 MiB", None)])
def test_memory_is_taken_in_the_unit_that_was_asked_for(written, read):
    if read is None:
        with pytest.raises(ValueError, match=r"not in GiB|no number"):
            number(written, unit="GiB")
    else:
        assert number(written, unit="GiB") == read


def test_arithmetic():
    assert calculated("-(4 + 2) * 2 ** 3 / 16") == -3
    assert calculated(2e-4) == 2e-4
    assert calculated("859.5e6 * 16 / 2**30") == 859.5e6 * 16 / 2**30


@pytest.mark.parametrize("text", ["print(1)", "a", "'1'", "1 < 2", "[1]", "True", "1 if 1 else 2"])
def test_nothing_but_arithmetic_is_calculated(text):
    with pytest.raises(ValueError, match="no arithmetic"):
        calculated(text)
