"""`key=value` texts, as optimizer_args and lr_scheduler_args hold them: taken apart as sd-scripts does it, and mended."""

from __future__ import annotations

import ast
from collections.abc import Iterable


class Malformed(Exception):
    """A `key=value` text that sd-scripts cannot take apart; `error` is the exception it raises."""

    def __init__(self, text: object, error: str, why: str) -> None:
        super().__init__(why)
        self.text, self.error = text, error


def take_apart(texts: object) -> dict[str, object] | Malformed:
    """`["key=value", …]` -> keywords, as sd-scripts does it: split at every =, the value read as a Python literal."""
    found = {}
    if isinstance(texts, str) and texts:
        return Malformed(texts, "ValueError", 'it is one text, which is taken letter by letter; TOML wants a list, ["a=1", "b=2"]')
    try:
        texts = list(texts) if texts else []  # pyright: ignore[reportArgumentType]  # of anything: a TypeError says that it is no list
    except TypeError:
        return Malformed(texts, "TypeError", "it is no list")
    for text in texts:
        if not isinstance(text, str):
            return Malformed(text, "AttributeError", "it is no text")
        parts = text.split("=")
        if len(parts) != 2:
            return Malformed(text, "ValueError", "there has to be exactly one = in each")
        try:
            found[parts[0]] = ast.literal_eval(parts[1])
        except ValueError:
            return Malformed(text, "ValueError", f"{parts[1]!r} is no Python literal")
        except SyntaxError:
            return Malformed(text, "SyntaxError", f"{parts[1]!r} is no Python literal")
        except (TypeError, MemoryError, RecursionError) as error:
            return Malformed(text, type(error).__name__, f"{parts[1]!r} is no Python literal")
    return found


def mended(texts: object, malformed: Malformed) -> list[object] | None:
    """The same texts with the usual slips mended in the one that cannot be taken apart; None where it is no usual slip."""
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
    joined: list[object] = []
    for text in texts:
        before = joined[-1] if joined and isinstance(joined[-1], str) else ""
        if isinstance(text, str) and sum(before.count(left) for left in "([{") > sum(before.count(right) for right in ")]}"):
            joined[-1] = before + text
        else:
            joined.append(text)
    return joined
