"""`key=value` texts, as sd-scripts takes them apart and as they were meant."""

import pytest

from sdnb.sd_scripts.keywords import Malformed, mended, take_apart


@pytest.mark.parametrize(
    ("texts", "found"),
    [(None, {}), ("", {}), ([], {}), (["a=1", "b=(0.9,0.99)"], {"a": 1, "b": (0.9, 0.99)}), (("a=1", "a='x'"), {"a": "x"})],
)
def test_texts_are_taken_apart(texts, found):
    assert take_apart(texts) == found


@pytest.mark.parametrize(
    ("texts", "error", "meant"),
    [
        ("a=1 b=2", "ValueError", ["a=1", "b=2"]),
        (5, "TypeError", None),
        ([5], "AttributeError", None),
        (["a"], "ValueError", None),
        (["a=1=2"], "ValueError", None),
        (["a=false"], "ValueError", ["a=False"]),
        (["a=1 b=true"], "ValueError", ["a=1", "b=True"]),
        (["a=(0.9,", "0.99)"], "SyntaxError", ["a=(0.9,0.99)"]),
        (["a=["], "SyntaxError", None),
        (["a={[]: 1}"], "TypeError", None),
    ],
)
def test_what_cannot_be_taken_apart_is_mended_where_the_slip_is_usual(texts, error, meant):
    found = take_apart(texts)
    assert isinstance(found, Malformed)
    assert found.error == error
    assert str(found)
    assert mended(texts, found) == meant
