"""Captions as embeddings: encoded once, or anew when they are shuffled; the long ones cut or encoded in parts."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models import family_of
from .store import Stored, fingerprint, key

if TYPE_CHECKING:
    from ..models import Model
    from ..recipe import Recipe


class Captions:
    """The captions of a set of pictures, and their embeddings.

    A caption that is too long is cut, or with `max_token_length` of 150 or 225 encoded in parts of 75 tokens whose embeddings are joined;
    the first that is still too long is named in one warning. With `shuffle_caption` the parts between commas change places, all but the
    first `keep_tokens`. Without `embeds` nothing is encoded. Raises `ValueError` for a length that does not exist, or parts with two text
    encoders. `own` are the pictures' recipes, where a dataset file makes them differ.
    """

    def __init__(
        self,
        sd: Model,
        captions: Sequence[str],
        recipe: Recipe,
        *,
        own: Sequence[Recipe] = (),
        stored: Stored | None = None,
        embeds: bool = True,
    ) -> None:
        self.family = family_of(sd)
        self.encoding = self.family.text_encoding(sd, recipe)
        self.sd, self.captions, self.own = sd, list(captions), list(own) or [recipe] * len(captions)
        self._warn_of_long_ones()
        self.known: dict[str, dict[str, Tensor]] = {}
        """The condition of each text, without a batch dimension, on the CPU."""
        if embeds:
            same = (text for text, each in zip(self.captions, self.own, strict=True) if not each.shuffle_caption)
            self._encode(sorted({"", *same}), stored)

    def of(self, pictures: Sequence[int], dropped: Sequence[bool], seeds: Sequence[str]) -> list[str]:
        """Captions of these pictures, shuffled or not; a shuffled caption depends on its seed alone."""
        return ["" if drop else self._shown(i, seed) for i, drop, seed in zip(pictures, dropped, seeds, strict=True)]

    def condition(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The condition of B captions, as in `Family.condition`: `context` (B, T, D), for SDXL also `pooled` (B, P).

        T is 77, or 2 more than `max_token_length`.
        """
        new = sorted({text for text in texts if text not in self.known})
        found = self.known | (dict(zip(new, self._conditioned(new), strict=True)) if new else {})
        return {name: torch.stack([found[text][name] for text in texts]) for name in found[texts[0]]}

    def _shown(self, picture: int, seed: str) -> str:
        text, recipe = self.captions[picture], self.own[picture]
        if not recipe.shuffle_caption:
            return text
        parts = [part.strip() for part in text.split(",")]
        fixed, free = parts[: recipe.keep_tokens], parts[recipe.keep_tokens :]
        random.Random(seed).shuffle(free)
        return ", ".join(fixed + free)

    def _encode(self, texts: list[str], stored: Stored | None) -> None:
        names = {}
        if stored:
            model, encoding = fingerprint(*self.sd.encoders.values()), self.encoding
            how = [repr(encoding.length), *([f"clip_skip {encoding.clip_skip}"] if encoding.clip_skip else [])]
            names = {text: key(text, *how, model) for text in texts}
            tensors = tuple(self.family.example(self.sd, batch=1))
            self.known = {text: found for text, name in names.items() if (found := stored.get(name, tensors))}
            texts = [text for text in texts if text not in self.known]
        each = 1 if stored else 32  # alone, the bits do not depend on the company
        for start in range(0, len(texts), each):
            some = texts[start : start + each]
            for text, condition in zip(some, self._conditioned(some), strict=True):
                self.known[text] = condition
                if stored:
                    stored.put(names[text], condition)

    def _conditioned(self, texts: list[str]) -> list[dict[str, Tensor]]:
        with torch.no_grad():
            condition = {name: tensor.cpu() for name, tensor in self.family.condition(self.sd, texts, self.encoding).items()}
        return [{name: tensor[i] for name, tensor in condition.items()} for i in range(len(texts))]

    def _warn_of_long_ones(self) -> None:
        seen, longest, unique = self.encoding.length or 75, self.family.longest_caption, sorted(set(self.captions))
        # that many characters are needed for that many tokens, and asking the tokenizer takes time
        maybe = [text for text in unique if len(text.encode("utf-8", "replace")) > seen]
        tokenizer = next(iter(self.sd.tokenizers.values()))
        ids = tokenizer(maybe, truncation=False, verbose=False).input_ids if maybe else []
        long = [(text, len(row) - 2) for text, row in zip(maybe, ids, strict=True) if len(row) - 2 > seen]
        if long:
            text, tokens = long[0]
            warnings.warn(
                f"{len(long)} captions have more than {seen} tokens and are cut, the first from {tokens}: {text[:60]!r}…"
                + (f"; max_token_length={longest} sees more" if seen < longest else ""),
                stacklevel=4,
            )
