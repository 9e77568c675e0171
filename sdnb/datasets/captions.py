"""Captions: what a picture is shown with in a step, and its embeddings, encoded once or anew when the caption changes.

`changed` makes the caption of one step as sd-scripts does: prefix and suffix, one line and one word of each wildcard, the parts between
separators shuffled, left out or not yet shown.
"""

from __future__ import annotations

import math
import random
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models import family_of, prompts
from .store import Stored, fingerprint, key

if TYPE_CHECKING:
    from ..models import Model
    from ..recipe import Recipe

CHANGING = "caption_prefix caption_suffix secondary_separator enable_wildcard caption_dropout_every_n_epochs".split()
"""Settings that change captions, and which sd-scripts leaves undone where it caches what the text encoders made."""


def changed(text: str, recipe: Recipe, chance: random.Random, *, dropped: bool = False, step: int = 0, steps: int = 0) -> str:
    """A caption as it is shown in optimizer step `step` of `steps`; the empty one if it is `dropped`.

    `chance` is asked in sd-scripts' order: for the line, for each wildcard, for the order of the parts, for each part that may be left out.
    """
    if dropped:
        return ""
    text = f"{recipe.caption_prefix} {text}" if recipe.caption_prefix else text
    text = f"{text} {recipe.caption_suffix}" if recipe.caption_suffix else text
    text = _without_wildcards(text, chance) if recipe.enable_wildcard else text.split("\n")[0]
    warmup = _warmup(recipe, steps)
    if recipe.shuffle_caption or warmup or recipe.caption_tag_dropout_rate:
        first, free, last = _parts(text, recipe)
        if step < warmup:
            free = free[: math.floor(step * ((len(free) - recipe.token_warmup_min) / warmup)) + recipe.token_warmup_min]
        if recipe.shuffle_caption:
            chance.shuffle(free)
        if rate := recipe.caption_tag_dropout_rate:
            free = [part for part in free if chance.random() >= rate]
        text = ", ".join(first + free + last)
    return text.replace(recipe.secondary_separator, recipe.caption_separator) if recipe.secondary_separator else text


def _without_wildcards(text: str, chance: random.Random) -> str:
    """One line of the text, and in it one word of each {red|blue}; {{ and }} are braces."""
    if "\n" in text:
        text = chance.choice(text.split("\n"))
    text = text.replace("{{", "\0<").replace("}}", "\0>")  # no caption has a zero byte
    text = re.sub(r"\{([^}]+)\}", lambda found: chance.choice(found[1].split("|")), text)
    return text.replace("\0<", "{").replace("\0>", "}")


def _warmup(recipe: Recipe, steps: int) -> float:
    """The step from which on all parts are shown."""
    step = recipe.token_warmup_step
    return math.floor(step * steps) if step < 1 else step


def _parts(text: str, recipe: Recipe) -> tuple[list[str], list[str], list[str]]:
    """The parts of a caption: those that stay in front, those that move, those that stay behind."""

    def split(text: str) -> list[str]:
        return [part.strip() for part in text.split(recipe.caption_separator)]

    mark = recipe.keep_tokens_separator
    if mark and mark in text:
        pieces = [[part for part in split(piece) if part] for piece in text.split(mark, 2)]
        return pieces[0], pieces[1], pieces[2] if len(pieces) > 2 else []
    parts = split(text.strip())
    return parts[: recipe.keep_tokens], parts[recipe.keep_tokens :], []


def as_read(text: str, recipe: Recipe) -> str:
    """A picture's caption as sd-scripts reads it: the first line, or with `enable_wildcard` all that are not empty."""
    lines = text.split("\n")
    return "\n".join(line for line in lines if line.strip()) if recipe.enable_wildcard else lines[0]


def varies(text: str, recipe: Recipe) -> bool:
    """Whether a caption is another in each step."""
    draws = recipe.enable_wildcard and ("\n" in text or "{" in f"{recipe.caption_prefix}{text}{recipe.caption_suffix}")
    return bool(recipe.shuffle_caption or recipe.token_warmup_step or recipe.caption_tag_dropout_rate or draws)


class Captions:
    """The captions of a set of pictures, and their embeddings.

    A caption that is too long is cut, or with `max_token_length` of 150 or 225 encoded in parts of 75 tokens whose embeddings are joined;
    the first that is still too long is named in one warning. Without `embeds` nothing is encoded. `own` are the pictures' recipes, where
    a dataset file makes them differ. Where what the text encoders make is cached, captions are encoded as they are read, as sd-scripts
    does: prefixes and wildcards then change nothing, which is warned of.

    Raises `ValueError` for what the model cannot read, and for a weight in brackets that is no number.
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
        self.sd, self.own = sd, list(own) or [recipe] * len(captions)
        self.captions = [as_read(text, each) for text, each in zip(captions, self.own, strict=True)]
        self.as_they_are = recipe.caches_texts
        self.fixed = [None if self._varies(i) else self._shown(i, "") for i in range(len(captions))]
        """The caption of each picture, None where it is another in each step."""
        self._warn(recipe)
        self.known: dict[str, dict[str, Tensor]] = {}
        """The condition of each text, without a batch dimension, on the CPU."""
        if embeds:
            self._encode(sorted({"", *(text for text in self.fixed if text is not None)}), stored)

    def of(
        self,
        pictures: Sequence[int],
        dropped: Sequence[bool],
        seeds: Sequence[str],
        *,
        step: int = 0,
        steps: int = 0,
        epoch: int = 1,
    ) -> list[str]:
        """Captions of these pictures in optimizer step `step` of `steps`, in this epoch, the first being 1.

        Whatever is random in a caption depends on its seed alone.
        """
        texts = []
        for i, drop, seed in zip(pictures, dropped, seeds, strict=True):
            every, known = 0 if self.as_they_are else self.own[i].caption_dropout_every_n_epochs, self.fixed[i]
            drop = drop or (every > 0 and epoch % every == 0)
            texts.append("" if drop else self._shown(i, seed, step, steps) if known is None else known)
        return texts

    def condition(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The condition of B captions, as in `Family.condition`: `context` (B, T, D), for SDXL also `pooled` (B, P).

        T is 77, or 2 more than `max_token_length`.
        """
        new = sorted({text for text in texts if text not in self.known})
        found = self.known | (dict(zip(new, self._conditioned(new), strict=True)) if new else {})
        return {name: torch.stack([found[text][name] for text in texts]) for name in found[texts[0]]}

    def _varies(self, picture: int) -> bool:
        return not self.as_they_are and varies(self.captions[picture], self.own[picture])

    def _shown(self, picture: int, seed: str, step: int = 0, steps: int = 0) -> str:
        text = self.captions[picture]
        return text if self.as_they_are else changed(text, self.own[picture], random.Random(seed), step=step, steps=steps)

    def _encode(self, texts: list[str], stored: Stored | None) -> None:
        names = {}
        if stored:
            model, encoding = fingerprint(*self.sd.encoders.values()), self.encoding
            how = [repr(encoding.length), *([f"clip_skip {encoding.clip_skip}"] if encoding.clip_skip else [])]
            how += ["weighted"] if encoding.weighted else []
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

    def _warn(self, recipe: Recipe) -> None:
        if recipe.clip_skip not in (None, 1) and self.encoding.clip_skip is None:
            warnings.warn(f"clip_skip={recipe.clip_skip} changes nothing: {self.family.title} has a layer of its own", stacklevel=4)
        idle = [name for name in CHANGING if any(getattr(own, name) for own in self.own)] if self.as_they_are else []
        if idle:
            name = "cache_text_encoder_outputs"
            warnings.warn(f"{', '.join(idle)}: with {name} captions are encoded as they are read, as in sd-scripts", stacklevel=4)
        if self.encoding.weighted:
            for text in dict.fromkeys(self.captions):
                prompts.weights(text)
        self._warn_of_long_ones()

    def _warn_of_long_ones(self) -> None:
        seen, longest = self.encoding.length or 75, self.family.longest_caption or 225
        unique = sorted({text if known is None else known for text, known in zip(self.captions, self.fixed, strict=True)})
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
                stacklevel=5,
            )
