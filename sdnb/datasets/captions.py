"""Captions as embeddings: encoded once, or anew when they are shuffled; the long ones cut or encoded in parts."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .store import Stored, fingerprint, key

if TYPE_CHECKING:
    from ..models import StableDiffusion
    from ..recipe import Recipe


class Captions:
    """The captions of a set of pictures, and their embeddings.

    A caption that is too long is cut, or with `max_token_length` of 150 or 225 encoded in parts of 75 tokens whose embeddings are joined;
    the first that is still too long is named in one warning. With `shuffle_caption` the parts between commas change places, all but the
    first `keep_tokens`. Without `embeds` nothing is encoded. Raises `ValueError` for a length that does not exist, or parts with two text
    encoders.
    """

    def __init__(
        self,
        sd: StableDiffusion,
        captions: Sequence[str],
        recipe: Recipe,
        *,
        stored: Stored | None = None,
        embeds: bool = True,
    ) -> None:
        self.length, self.clip_skip = length(sd, recipe), skip(sd, recipe)
        self.sd, self.captions, self.shuffles = sd, list(captions), recipe.shuffle_caption
        self.kept = recipe.keep_tokens
        self._warn_of_long_ones()
        self.known: dict[str, tuple[Tensor, Tensor | None]] = {}
        if embeds:
            self._encode(sorted({"", *(() if self.shuffles else captions)}), stored)

    def of(self, pictures: Sequence[int], dropped: Sequence[bool], seeds: Sequence[str]) -> list[str]:
        """What is said about these pictures this time; a shuffled caption depends on its seed alone."""
        texts = ["" if drop else self.captions[i] for i, drop in zip(pictures, dropped, strict=True)]
        return [self._shuffled(*one) for one in zip(texts, seeds, strict=True)] if self.shuffles else texts

    def embedded(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """B captions -> (B, T, D), and for SDXL (B, P); T is 77, or 2 more than `max_token_length`."""
        new = sorted({text for text in texts if text not in self.known})
        found = self.known | (dict(zip(new, self._conditioned(new), strict=True)) if new else {})
        context, pooled = zip(*(found[text] for text in texts), strict=True)
        return torch.stack(context), None if pooled[0] is None else torch.stack(pooled)

    def _shuffled(self, text: str, seed: str) -> str:
        parts = [part.strip() for part in text.split(",")]
        fixed, free = parts[: self.kept], parts[self.kept :]
        random.Random(seed).shuffle(free)
        return ", ".join(fixed + free)

    def _encode(self, texts: list[str], stored: Stored | None) -> None:
        names = {}
        if stored:
            encoders = [part for part in (self.sd.text_encoder, self.sd.text_encoder_2) if part is not None]
            model = fingerprint(*encoders)
            how = [repr(self.length), *([f"clip_skip {self.clip_skip}"] if self.clip_skip else [])]
            names = {text: key(text, *how, model) for text in texts}
            for text, name in names.items():
                found = stored.get(name, ("context", "pooled")[: len(encoders)])
                if found:
                    self.known[text] = (found["context"], found.get("pooled"))
            texts = [text for text in texts if text not in self.known]
        each = 1 if stored else 32  # alone, the bits do not depend on the company
        for start in range(0, len(texts), each):
            some = texts[start : start + each]
            for text, (context, pooled) in zip(some, self._conditioned(some), strict=True):
                self.known[text] = (context, pooled)
                if stored:
                    stored.put(names[text], {"context": context} | ({} if pooled is None else {"pooled": pooled}))

    def _conditioned(self, texts: list[str]) -> list[tuple[Tensor, Tensor | None]]:
        with torch.no_grad():
            context, pooled = read(self.sd, texts, length=self.length, clip_skip=self.clip_skip)
        return list(zip(context.cpu(), [None] * len(texts) if pooled is None else pooled.cpu(), strict=True))

    def _warn_of_long_ones(self) -> None:
        seen, unique = self.length or 75, sorted(set(self.captions))
        # that many characters are needed for that many tokens, and asking the tokenizer takes time
        maybe = [text for text in unique if len(text.encode("utf-8", "replace")) > seen]
        ids = self.sd.tokenizer(maybe, truncation=False, verbose=False).input_ids if maybe else []
        long = [(text, len(row) - 2) for text, row in zip(maybe, ids, strict=True) if len(row) - 2 > seen]
        if long:
            text, tokens = long[0]
            warnings.warn(
                f"{len(long)} captions have more than {seen} tokens and are cut, the first from {tokens}: {text[:60]!r}…"
                + ("; max_token_length=225 sees more" if seen < 225 and self.sd.text_encoder_2 is None else ""),
                stacklevel=4,
            )


def length(sd: StableDiffusion, recipe: Recipe) -> int | None:
    """How many tokens of a caption are seen, None for 75. Raises `ValueError` for a number that `sd` cannot read."""
    asked = recipe.max_token_length
    if (asked or 75) > 75 and sd.text_encoder_2 is not None:
        raise ValueError(f"max_token_length={asked}: captions in parts are not supported for two text encoders; leave it out")
    return asked


def skip(sd: StableDiffusion, recipe: Recipe) -> int | None:
    """Which layer from the back of the text encoder is read, as sd-scripts counts them; None for the last, which is 1.

    Raises `ValueError` for a layer that does not exist, and for SDXL, which reads the one before the last in any case.
    """
    asked = recipe.clip_skip
    if asked in (None, 1):
        return None
    if sd.text_encoder_2 is not None:
        raise ValueError(f"clip_skip={asked}: SDXL always reads the layer before the last; leave it out")
    layers = getattr(sd.text_encoder, "module", sd.text_encoder).config.num_hidden_layers  # of several processes' wrapper
    if not 1 <= asked <= layers:
        raise ValueError(f"clip_skip={asked}: this text encoder has {layers} layers; 1 is the last, 2 the one before it")
    return asked


def read(
    sd: StableDiffusion, texts: Sequence[str], *, length: int | None = None, clip_skip: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """B captions -> what the text encoders make of them, (B, T, D) and for SDXL (B, P), with gradients where the caller allows them."""
    if (length or 75) > 75:
        return _in_parts(sd, texts, length, clip_skip), None
    return sd.read(sd.tokens(texts), clip_skip=clip_skip)


def _in_parts(sd: StableDiffusion, texts: Sequence[str], length: int, clip_skip: int | None) -> Tensor:
    """(B, length + 2, D): each 75 tokens between a beginning and an end of their own, which are taken off where parts meet."""
    tokenizer, parts = sd.tokenizer, length // 75
    ids = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length + 2, return_tensors="pt").input_ids
    middle = ids[:, 1:-1].reshape(len(texts), parts, 75)
    edge = ids[:, :1, None].expand(-1, parts, -1), ids[:, -1:, None].expand(-1, parts, -1)
    chunks = torch.cat([edge[0], middle, edge[1]], 2)  # (B, parts, 77)
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad != end:  # a part ends with its text's end, and an empty one has nothing else
        last, first = chunks[:, :, -2], chunks[:, :, 1]
        chunks[:, :, -1] = torch.where((last != end) & (last != pad), end, chunks[:, :, -1])
        chunks[:, :, 1] = torch.where(first == pad, end, first)
    states, _ = sd.read((chunks.reshape(-1, 77),), clip_skip=clip_skip)
    states = states.unflatten(0, (len(texts), parts))
    return torch.cat([states[:, 0, :1], states[:, :, 1:-1].flatten(1, 2), states[:, -1, -1:]], 1)
