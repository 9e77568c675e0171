"""Captions as token ids: in parts of 75 tokens, and with the weights that brackets give them (`max_token_length`, `weighted_captions`).

`(a fox)` weighs its words 1.1, `[a fox]` 1/1.1, `(a fox:1.5)` 1.5; brackets within brackets multiply, and a backslash makes a bracket a
letter. The rule is A1111's, as sd-scripts has it. Each part of a long caption is read by itself, between a beginning and an end of its
own, which are taken off where parts meet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPTokenizer

PART = 75
"""Tokens of a part, without beginning and end."""
_PIECE = re.compile(r"\\[()\[\]\\]?|[(\[\])]|:(?P<weight>[+-]?[.\d]+)\)|[^\\()\[\]:]+|:")


def weights(text: str) -> list[tuple[str, float]]:
    """The pieces of a caption and their weights. Raises `ValueError` for a weight that is no number, such as 1.2.3.

    >>> weights("a (red:1.5) [fox"), weights(r"a \\(red\\) fox")
    ([('a ', 1.0), ('red', 1.5), (' ', 1.0), ('fox', 0.9090909090909091)], [('a (red) fox', 1.0)])
    """
    pieces: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        start = opened[kind].pop()
        pieces[start:] = [(words, weight * factor) for words, weight in pieces[start:]]

    for found in _PIECE.finditer(text):
        mark, weight = found[0], found["weight"]
        if mark in opened:
            opened[mark].append(len(pieces))
        elif weight is not None and opened["("]:
            close("(", float(weight))
        elif mark == ")" and opened["("]:
            close("(", 1.1)
        elif mark == "]" and opened["["]:
            close("[", 1 / 1.1)
        else:
            pieces.append((mark.removeprefix("\\"), 1.0))
    for kind, factor in {"(": 1.1, "[": 1 / 1.1}.items():
        for start in opened[kind]:  # never closed: to the end
            pieces[start:] = [(words, weight * factor) for words, weight in pieces[start:]]
    joined = [("".join(words for words, _ in group), weight) for weight, group in groupby(pieces, key=lambda piece: piece[1])]
    return joined or [("", 1.0)]


def parts(tokenizer: CLIPTokenizer, texts: Sequence[str], length: int) -> Tensor:
    """B texts -> token ids (B, length / 75, 77), what is longer cut off."""
    ids = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length + 2, return_tensors="pt").input_ids
    return _split(tokenizer, ids)


def weighted_parts(tokenizer: CLIPTokenizer, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """B texts -> token ids (B, length / 75, 77) and the weight of each place (B, length + 2), 1 for beginning, end and padding."""
    import torch

    rows, places = [], []
    for text in texts:
        ids, factors = [], []
        for words, weight in weights(text):
            if len(ids) > length:
                break
            tokens = tokenizer(words, verbose=False).input_ids[1:-1]
            ids += tokens
            factors += [weight] * len(tokens)
        ids, factors = ids[:length], factors[:length]
        free = length - len(ids)
        rows.append([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * free])
        places.append([1.0, *factors, *[1.0] * (free + 1)])
    return _split(tokenizer, torch.tensor(rows)), torch.tensor(places)


def _split(tokenizer: CLIPTokenizer, ids: Tensor) -> Tensor:
    """Ids (B, 75 n + 2) -> (B, n, 77), each part between the beginning and the end of the whole."""
    import torch

    count = (ids.shape[1] - 2) // PART
    if count == 1:
        return ids.unsqueeze(1)
    middle = ids[:, 1:-1].reshape(len(ids), count, PART)
    edge = ids[:, :1, None].expand(-1, count, -1), ids[:, -1:, None].expand(-1, count, -1)
    chunks = torch.cat([edge[0], middle, edge[1]], 2)  # (B, n, 77)
    pad, end = cast("tuple[int, int]", (tokenizer.pad_token_id, tokenizer.eos_token_id))
    if pad != end:  # a part ends with its text's end, and an empty one has nothing else
        last, first = chunks[:, :, -2], chunks[:, :, 1]
        chunks[:, :, -1] = torch.where((last != end) & (last != pad), end, chunks[:, :, -1])
        chunks[:, :, 1] = torch.where(first == pad, end, first)
    return chunks


def joined(states: Tensor, count: int) -> Tensor:
    """The states of all parts (B n, 77, D) -> (B, 75 n + 2, D)."""
    import torch

    if count == 1:
        return states
    states = states.unflatten(0, (-1, count))
    return torch.cat([states[:, 0, :1], states[:, :, 1:-1].flatten(1, 2), states[:, -1, -1:]], 1)


def weighed(context: Tensor, places: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
    """A context (B, T, D) times the weights (B, T) of each encoder's tokens; `widths` are the encoders' shares of D."""
    import torch

    shares = zip(context.split(list(widths), -1), places, strict=True)
    return torch.cat([share * one.to(share.device).unsqueeze(-1) for share, one in shares], -1)
