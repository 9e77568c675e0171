"""`key=value` texts, as optimizer_args and lr_scheduler_args hold them: taken apart as sd-scripts does it, and mended."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from ..system import quoted
from .arguments import ordinary


class Malformed(Exception):
    """A `key=value` text that sd-scripts cannot take apart; `error` is the exception it raises."""

    def __init__(self, text: object, error: str, why: str) -> None:
        super().__init__(why)
        self.text, self.error = text, error


def take_apart(texts: object) -> dict[str, object] | Malformed:
    """Keywords from `["key=value", …]`, as sd-scripts reads them: split at every =, the value read as a Python literal."""
    found = {}
    if isinstance(texts, str) and texts:
        return Malformed(texts, "ValueError", 'it is one text, which is read letter by letter; TOML needs a list, ["a=1", "b=2"]')
    try:
        texts = list(texts) if texts else []  # pyright: ignore[reportArgumentType]  # of anything: a TypeError says that it is not a list
    except TypeError:
        return Malformed(texts, "TypeError", "it is not a list")
    for text in texts:
        if not isinstance(text, str):
            return Malformed(text, "AttributeError", "it is not a text")
        parts = text.split("=")
        if len(parts) != 2:
            return Malformed(text, "ValueError", "there has to be exactly one = in each")
        try:
            found[parts[0]] = ordinary(ast.literal_eval(parts[1]))
        except ValueError:
            return Malformed(text, "ValueError", f"{quoted(parts[1])} is not a Python literal")
        except SyntaxError:
            return Malformed(text, "SyntaxError", f"{quoted(parts[1])} is not a Python literal")
        except (TypeError, MemoryError, RecursionError) as error:
            return Malformed(text, type(error).__name__, f"{quoted(parts[1])} is not a Python literal")
    return found


def mended(texts: object, malformed: Malformed) -> list[object] | None:
    """The texts with the usual slips mended in the one that cannot be taken apart; None where it is no usual slip."""
    if isinstance(texts, str):
        return [*texts.split()]
    if not isinstance(texts, (list, tuple)):
        return None
    if (joined := _rejoined(texts)) != list(texts):
        return joined
    found: list[object] = []
    for text in texts:
        if text is not malformed.text or not isinstance(text, str):
            found.append(text)
            continue
        for part in text.replace(" =", "=").replace("= ", "=").split():
            key, equals, value = part.partition("=")
            if not equals or not key.isidentifier() or "=" in value:
                return None
            found.append(f"{key}={value.capitalize()}" if value.lower() in ("true", "false", "none") else part)
    return found if found != list(texts) else None


def _rejoined(texts: Iterable[object]) -> list[object]:
    """The texts with those joined that a blank inside brackets has split: `betas=(0.9,` and `0.99)`."""
    joined: list[list[Any]] = []
    pieces, depth = [], 0
    for text in texts:
        if depth > 0 and isinstance(text, str):
            pieces.append(text)
        else:
            pieces, depth = [text], 0
            joined.append(pieces)
        if isinstance(text, str):
            depth += sum(text.count(left) for left in "([{") - sum(text.count(right) for right in ")]}")
    return ["".join(pieces) if len(pieces) > 1 else pieces[0] for pieces in joined]
