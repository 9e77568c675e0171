"""Answers as people write them, and arithmetic as the texts of the course write it."""

from __future__ import annotations

import ast
import operator
import re
import unicodedata
from fractions import Fraction
from typing import Any

NUMBER = re.compile(r"(?:~|≈|about|约|大约)?\s*([-+]?\d[\d.,]*(?:/\d+|e[-+]?\d+)?)\s*([^\W\d_]*|%)", re.IGNORECASE)
"""Number or fraction, with or without a unit after it."""
BYTES = re.compile(r"([kmgt])i?b?", re.IGNORECASE)
"""Unit of an amount of memory. Most people write GB for GiB."""
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}


def number(answer: Any, unit: str = "") -> float:
    """Read a number as people write it: 0.75, "3/4", "1,024", "12.8 GiB", "about 60", or from a tensor.

    Raises `ValueError` for other text, and for an amount of memory in another unit than `unit`, such as MiB for GiB.

    >>> number("1,024 steps"), number("3/4"), number("12 GB", unit="GiB")
    (1024.0, 0.75, 12.0)
    """
    if isinstance(answer, str):
        if not (match := NUMBER.fullmatch(unicodedata.normalize("NFKC", answer).strip())):
            raise ValueError(f"{answer!r} is no number")
        theirs, ours = BYTES.fullmatch(match[2]), BYTES.fullmatch(unit)
        if theirs and ours and theirs[1].lower() != ours[1].lower():
            raise ValueError(f"{answer!r} is not in {unit}")
        return float(Fraction(re.sub(r",(?=\d{3}\b)", "", match[1])))
    if isinstance(answer, bool):
        raise TypeError("True is no number")
    return float(answer.item() if hasattr(answer, "item") else answer)


def calculated(text: str | float) -> float:
    """Value of a number, or of arithmetic such as `"3 * 64 * 64"`. Raises `ValueError` for anything else in the text.

    >>> calculated("3 * 64 * 64")
    12288.0
    """
    return float(_value(ast.parse(str(text), mode="eval").body, str(text)))


def _value(node: ast.expr, text: str) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # pyright: ignore[reportReturnType]  # the line above says that it is a number
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.operand, text))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left, text), _value(node.right, text))
    raise ValueError(f"{text!r} is no arithmetic: use numbers, + - * / ** and parentheses")
