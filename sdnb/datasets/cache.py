"""Pictures and captions as a model trains on them: encoded once, and dealt out in batches."""

from __future__ import annotations

import math
import secrets
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, wraps
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models import family_of, room
from ..sd_scripts import supported
from . import buckets, captions
from .epochs import Epochs
from .folders import check_inside, is_inside
from .latents import Latents, together
from .store import FOLDER, Stored
from .views import View, place_of

if TYPE_CHECKING:
    from ..models import Model
    from ..recipe import Recipe
    from .folders import Picture


@dataclass(frozen=True)
class Batch:
    """The B pictures that a step trains on, with noise and captions. `Cache` makes them; so can you."""

    latents: Tensor
    """Scaled latents x_0 (B, C, h, w)."""
    condition: dict[str, Tensor] | None
    """The encoded captions by name (see `Family.condition`): `context` (B, 77, D), for SDXL also `pooled` (B, P). None where the text
    encoders are trained: they then encode `captions` in every step."""
    noise: Tensor
    """(B, C, h, w)"""
    t: Tensor
    """Noise levels (B,), from 0, almost clean, to 999, almost pure noise."""
    sizes: dict[str, Tensor] = field(default_factory=dict)
    """The pictures' sizes as the denoiser takes them: for SDXL `time_ids` (B, 6)."""
    captions: tuple[str, ...] | None = None
    """Captions of this batch, shuffled or dropped as the recipe says; None in a batch made by hand."""
    perturbed: Tensor | None = None
    """Noise added to the latents with `ip_noise_gamma`, (B, C, h, w); `noise` stays the target."""
    weights: Tensor | None = None
    """Loss weight of each picture (B,), where `prior_loss_weight` makes them differ."""
    mask: Tensor | None = None
    """Loss weight of each place (B, 1, h, w), with `alpha_mask` or `masked_loss`."""

    def __getitem__(self, part: slice) -> Batch:
        """The batch of some of its pictures."""
        return self._each(lambda value: value[part])

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return self._each(lambda value: value.to(device) if isinstance(value, Tensor) else value)

    def _each(self, change: Callable[[Any], Any]) -> Batch:
        """The batch with `change` applied to each field, and to each tensor of a condition."""

        def changed(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: change(tensor) for name, tensor in value.items()}
            return None if value is None else change(value)

        return Batch(**{name: changed(value) for name, value in vars(self).items()})

    @property
    def context(self) -> Tensor | None:
        """Text embeddings (B, 77, D), if there is a condition."""
        return None if self.condition is None else self.condition.get("context")

    @property
    def added(self) -> dict[str, Tensor] | None:
        """SDXL's `added_cond_kwargs`, under diffusers' names: `text_embeds`, if there is a condition, and `time_ids`."""
        names = {"text_embeds": "pooled", "time_ids": "time_ids"}
        told = (self.condition or {}) | self.sizes
        return {theirs: told[name] for theirs, name in names.items() if name in told} or None

    def inputs(self, sd: Model) -> dict:
        """Keyword arguments of the denoiser, in the precision of its weights. The batch must have a condition."""
        return family_of(sd).inputs(sd, self.latents, self.t, (self.condition or {}) | self.sizes)

    @classmethod
    def example(
        cls, sd: Model, pictures: int, size: tuple[int, int], *, tokens: int = 77, trains_encoders: bool = False, masked: bool = False
    ) -> Batch:
        """A batch of `pictures` pictures on the meta device; `size` is (width, height) in pixels.

        With `trains_encoders` it has (empty) captions instead of a condition, since the text encoders then run in every step; if
        `masked`, a mask.
        """
        family, (width, height) = family_of(sd), (side // sd.downscale for side in size)
        latents, noise = (torch.empty(pictures, family.channels(sd), height, width, device="meta") for _ in range(2))
        condition = None if trains_encoders else family.example(sd, pictures, tokens=tokens)
        t = torch.empty(pictures, dtype=torch.long, device="meta")
        sizes = {name: one.new_empty((pictures, *one.shape), device="meta") for name, one in family.sizes((0, 0), (0, 0), (0, 0)).items()}
        mask = torch.empty(pictures, 1, height, width, device="meta") if masked else None
        return cls(latents, condition, noise, t, sizes, ("",) * pictures if trains_encoders else None, mask=mask)


def _older_names(init: Callable[..., None]) -> Callable[..., None]:
    """`Batch(context=…, added=…)`, as lessons that were copied earlier have it, is `Batch(condition=…, sizes=…)` now."""

    @wraps(init)
    def made(self, *args, context: Tensor | None = None, added: dict[str, Tensor] | None = None, **kwargs) -> None:
        if context is not None:
            warnings.warn('Batch(context=…) is Batch(condition={"context": …}) now', FutureWarning, stacklevel=2)
            kwargs["condition"] = {"context": context} | ({"pooled": added["text_embeds"]} if added else {})
            kwargs["sizes"] = {"time_ids": added["time_ids"]} if added else {}
        init(self, *args, **kwargs)

    return made


Batch.__init__ = _older_names(Batch.__init__)
MOST = 100_000
"""Pictures of the largest batch."""


CHANGING = ("shuffle_caption", "token_warmup_step", "caption_tag_dropout_rate")
"""Settings that give a picture other captions each time."""


def check(recipe: Recipe) -> None:
    """Raise `ValueError` for settings that are not supported (see `sd_scripts.supported`) or exclude each other."""
    supported.check(recipe)
    if recipe.train_batch_size > MOST:
        raise ValueError(f"train_batch_size={recipe.train_batch_size}: a batch has at most {MOST:,} pictures here")
    if recipe.caches_latents and (recipe.color_aug or recipe.random_crop):
        raise ValueError(
            "when caching latents, either color_aug or random_crop cannot be used: each picture is encoded once, so it cannot look "
            "different each time. Leave color_aug and random_crop out, or do not cache"
        )
    if not recipe.caches_texts:
        return
    kept = "cache_text_encoder_outputs" if recipe.cache_text_encoder_outputs else "cache_text_encoder_outputs_to_disk"
    if changing := [name for name in CHANGING if getattr(recipe, name)]:
        raise ValueError(f"cached text encoder outputs with captions that change: leave out {kept}, or {' and '.join(changing)}")
    if recipe.weighted_captions and not recipe.wants_lora:  # sd-scripts weighs a LoRA's captions before it caches them
        raise ValueError(f"weighted_captions is not supported when caching text encoder outputs: leave out {kept}, or the weights")


def with_dataset_settings(pictures: Sequence[Picture], recipe: Recipe) -> Recipe:
    """The recipe with what the pictures' dataset file says about all of them, which wins, as in sd-scripts.

    Where the file says other things about some, the recipe keeps its own; `recipe_of` has a picture's. Raises `ValueError` like `check`.
    """
    common = getattr(pictures, "recipe", None)
    recipe = recipe if common is None else common(recipe)
    for own in recipes(pictures, recipe):
        if own != recipe:
            check(own)
    return recipe


def recipe_of(picture: Picture, recipe: Recipe) -> Recipe:
    """The recipe with a dataset file's settings of one picture."""
    return _with(recipe, getattr(picture, "settings", ()))


@lru_cache(maxsize=256)
def _with(recipe: Recipe, settings: tuple[tuple[str, Any], ...]) -> Recipe:
    return recipe.replace(**dict(settings)) if settings else recipe


def recipes(pictures: Sequence[Picture], recipe: Recipe) -> dict[Recipe, list[Picture]]:
    """The pictures by the recipe that holds for them; without a dataset file all are in one list."""
    found: dict[Recipe, list[Picture]] = {}
    for picture in pictures:
        found.setdefault(recipe_of(picture, recipe), []).append(picture)
    return found


def check_regularization(pictures: Sequence[Picture], recipe: Recipe) -> None:
    """Raise `ValueError` where a recipe has regularization pictures and these have none."""
    if recipe.reg_data_dir and not (recipe.in_json or recipe.dataset_config) and not any(getattr(one, "is_reg", False) for one in pictures):
        raise ValueError("reg_data_dir: these pictures hold none of it; read them with sdnb.pictures(folder, reg_data_dir=…)")


def sizes_of(sd: Model, recipe: Recipe) -> buckets.Buckets:
    """The sizes that a recipe trains `sd` at. Raises `ValueError` for sizes that the model cannot halve."""
    return buckets.of(recipe, resolution=sd.resolution, multiple=sd.multiple)


def datasets(sd: Model, pictures: Sequence[Picture], recipe: Recipe) -> dict[int, tuple[Recipe, buckets.Buckets]]:
    """The recipe and the sizes of each of a dataset file's datasets, by its index; without a file there is one."""
    owns = {_dataset_of(picture): recipe_of(picture, recipe) for picture in pictures}
    return {number: (own, sizes_of(sd, own)) for number, own in sorted(owns.items())}


def largest(sd: Model, pictures: Sequence[Picture], recipe: Recipe) -> tuple[tuple[int, int], int]:
    """The run's largest batch: (width, height) of its pictures in pixels, and how many they are.

    Raises `ValueError` for a size that the model cannot halve.
    """
    members = _members(pictures, _places(sd, pictures, recipe))
    shown = _epochs(pictures, recipe, members)
    found = [(size, min(each, len(some))) for (_, size), each, some in zip(members, shown.sizes, shown.buckets, strict=True)]
    return max(found, key=lambda batch: math.prod(batch[0]) * batch[1])


def _folder_of(picture: Picture) -> Path:
    """Where what is encoded is kept: beside the picture, or in its dataset's folder where that was reached by a link that leads out.

    Raises `ValueError` where it would lead out of that folder itself.
    """
    folder, given = picture.path.parent / FOLDER, getattr(picture, "folder", None)
    if given is None:
        return folder
    if not is_inside(picture.path.parent, given):
        folder = given / FOLDER
    if not picture.follow_links:
        check_inside(folder, given)
    return folder


def epochs(sd: Model, pictures: Sequence[Picture], recipe: Recipe, processes: int = 1) -> Epochs:
    """The epochs of a run: each shows a picture `repeats` times, and each size of each dataset in batches of its own."""
    return _epochs(pictures, recipe, _members(pictures, _places(sd, pictures, recipe)), processes=processes)


def _places(sd: Model, pictures: Sequence[Picture], recipe: Recipe) -> list[buckets.Place]:
    """Where each picture goes."""
    sizes = {own: sizes_of(sd, own) for own in recipes(pictures, recipe)}
    return [place_of(picture, sizes[recipe_of(picture, recipe)]) for picture in pictures]


def _members(pictures: Sequence[Picture], places: Sequence[buckets.Place]) -> dict[tuple[int, buckets.Size], list[int]]:
    """The pictures of each bucket, by dataset and size."""
    found: dict[tuple[int, buckets.Size], list[int]] = {}
    for i, (picture, place) in enumerate(zip(pictures, places, strict=True)):
        found.setdefault((_dataset_of(picture), place.size), []).append(i)
    return dict(sorted(found.items()))


def _epochs(
    pictures: Sequence[Picture], recipe: Recipe, members: dict[tuple[int, buckets.Size], list[int]], *, seed: int = 0, processes: int = 1
) -> Epochs:
    shown = [[i for i in some for _ in range(pictures[i].repeats)] for some in members.values()]
    sizes = [recipe_of(pictures[some[0]], recipe).train_batch_size for some in members.values()]
    return Epochs(shown, sizes, seed, processes, recipe.gradient_accumulation_steps)


def batches(sd: Model, pictures: Sequence[Picture], recipe: Recipe) -> int:
    """Number of batches in one epoch, of all processes."""
    return epochs(sd, pictures, recipe).batches


def differences(pictures: Sequence[Picture], recipe: Recipe) -> list[str]:
    """What is done otherwise than in sd-scripts to the pictures of a run, each with how many it concerns."""
    found: Counter[str] = Counter()
    for own, some in recipes(pictures, recipe).items():
        for picture in some:
            found.update(picture.marks - ({"transparent"} if own.alpha_mask else set()))
    words = {
        "transparent": "shown with white where it is transparent; sd-scripts shows the colours underneath",
        "turned": "turned as its EXIF data says; sd-scripts does not look there",
        "deep": "of 16 bits and keeps its shades; sd-scripts makes it white",
    }
    return [f"{found[name]} of {len(pictures)} pictures: each is {what}" for name, what in words.items() if found[name]]


def shown_otherwise(sd: Model, pictures: Sequence[Picture], recipe: Recipe) -> int:
    """Number of pictures of which earlier versions showed other pixels, or told SDXL another corner. Raises as `View` does."""
    each = ((own, some, sizes_of(sd, own)) for own, some in recipes(pictures, recipe).items())
    views = [View(picture, own, sizes) for own, some, sizes in each for picture in some]
    is_told = bool(family_of(sd).sizes((0, 0), (0, 0), (0, 0)))
    return sum(view.was_otherwise or (is_told and (view.cuts_whole or view.place.resized != view.size)) for view in views)


def _dataset_of(picture: Picture) -> int:
    return getattr(picture, "dataset", 0)


def epoch_steps(sd: Model, pictures: Sequence[Picture], recipe: Recipe, processes: int = 1) -> int:
    """Number of optimizer steps in an epoch."""
    return epochs(sd, pictures, recipe, processes).steps


def steps(sd: Model, pictures: Sequence[Picture], recipe: Recipe, processes: int = 1) -> int:
    """Number of optimizer steps in a run. `max_train_epochs` wins over `max_train_steps`, as in sd-scripts."""
    if recipe.max_train_epochs is None:
        return recipe.max_train_steps
    return recipe.max_train_epochs * epoch_steps(sd, pictures, recipe, processes)


@dataclass(frozen=True)
class _Draw:
    """One batch of B pictures of one size, for all processes that have this size, before each takes its share."""

    number: int
    """Which batch of the run it is."""
    first: int
    """Pictures of processes before this one, where it draws for itself."""
    pictures: list[int]
    """Their places in the dataset."""
    flipped: Tensor
    """1 for a mirrored picture (B,)."""
    dropped: Tensor
    """True for a picture whose caption is left out (B,)."""
    seeds: list[str]
    """What decides how each picture that varies is shown."""
    t: Tensor
    latents: Tensor
    noise: Tensor
    perturbed: Tensor | None


class Cache:
    """The pictures as latent distributions and the captions as embeddings, both computed once: the parts that make them are frozen.

    What a dataset file says (`Picture.settings`) wins over `recipe`; a batch has pictures of one of its datasets. They are kept in memory,
    the CPU's, and with `cache_latents_to_disk` and `cache_text_encoder_outputs_to_disk` also in `folder`, by default `.sdnb-cache` beside
    the first picture; whatever changed since, picture, caption, size or model, is encoded again. Captions that change
    are encoded as they are asked for; without `embeds` none is, and batches have captions alone. `steps` are the run's, which
    `token_warmup_step` counts; by default the recipe's. `on_progress` is called with how many pictures are encoded and how many there
    are; without it a terminal shows a bar.

    Raises `ValueError` for a setting that is not supported, a size the model cannot halve, a picture that does not open, or latents that
    are not finite.
    """

    def __init__(
        self,
        sd: Model,
        pictures: Sequence[Picture],
        recipe: Recipe,
        *,
        folder: str | Path | None = None,
        embeds: bool = True,
        steps: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.recipe = recipe = with_dataset_settings(pictures, recipe)
        check(recipe)
        if not len(pictures):
            raise ValueError("no pictures to train on")
        self.pictures = pictures
        self.waited_seconds = 0.0
        """Spent in `batch` so far."""
        self.family = family_of(sd)
        self.noises = self.family.process(sd).noises(recipe)
        self.device = sd.device
        self._steps = steps
        self._drawn_seed = secrets.randbelow(2**32)
        stored = Stored(folder or _folder_of(pictures[0]))
        self.stored = stored if recipe.cache_latents_to_disk else None
        """Where latents are kept."""
        texts = stored if recipe.cache_text_encoder_outputs_to_disk else None
        own = [self.recipe_of(i) for i in range(len(pictures))]
        with room.on_card(sd, sd.encoders if embeds else ()):
            self.texts = captions.Captions(sd, [one.caption for one in pictures], recipe, own=own, stored=texts, embeds=embeds)
        self.embeds = embeds
        weights = torch.tensor([recipe.prior_loss_weight if getattr(one, "is_reg", False) else 1.0 for one in pictures])
        self.weights = None if bool((weights == 1).all()) else weights
        self._place(sd, pictures)
        with room.on_card(sd, ["vae"], work=lambda: self._encode_bytes(sd)):
            self.encoded = Latents(sd, self.views, stored=self.stored, on_progress=on_progress)

    def _place(self, sd: Model, pictures: Sequence[Picture]) -> None:
        buckets_of = {own: sizes_of(sd, own) for own in recipes(pictures, self.recipe)}
        self.buckets = [buckets_of[self.recipe_of(i)] for i in range(len(pictures))]
        """The sizes that each picture's dataset has."""
        self.views = [View(pictures[i], self.recipe_of(i), self.buckets[i]) for i in range(len(pictures))]
        self.places = [view.place for view in self.views]
        self.members = _members(pictures, self.places)
        """The pictures of each bucket, by dataset and size."""
        self._epochs = _epochs(pictures, self.recipe, self.members, seed=self.seed)

    def _encode_bytes(self, sd: Model) -> int:
        """Bytes that the autoencoder needs for the largest pictures."""
        size = max((view.size for view in self.views), key=math.prod)
        return room.encode_bytes(sd, together(size, alone=self.stored is not None), size)

    @property
    def latents(self) -> list[Tensor]:
        """Mean and standard deviation of each picture's latents (F, 2, C, h, w), as it is and mirrored; empty for one that varies."""
        return self.encoded.known

    def recipe_of(self, picture: int) -> Recipe:
        """The recipe with a dataset file's settings of the picture at this place."""
        return recipe_of(self.pictures[picture], self.recipe)

    @property
    def seed(self) -> int:
        """The recipe's seed, or a random one drawn for this cache."""
        return self._drawn_seed if self.recipe.seed is None else self.recipe.seed

    def batch(self, number: int, process: int = 0, processes: int = 1) -> Batch:
        """Batch `number` of the run, or one process's share of it, as `epochs` deals them out.

        The same number gives the same batch, and so does a whole one that several processes share. All pictures of a batch have one size
        and are of one dataset, which says how many they are.
        """
        began = time.perf_counter()
        epochs = self.epochs(processes)
        shares = epochs.shares(number)
        first, own = sum(map(len, shares[:process])), len(shares[process])
        if len({self.encoded.shape(some[0]) for some in shares}) == 1:  # all is drawn for all, so that it does not depend on their number
            pictures, share, first = list(chain(*shares)), slice(first, first + own), 0
        else:
            pictures, share = shares[process], slice(0, own)
        batch = self._share(self._drawn(number, pictures, share, first), share, epochs)
        self.waited_seconds += time.perf_counter() - began
        return batch

    def epochs(self, processes: int = 1) -> Epochs:
        """Which pictures are in which batch, for so many processes."""
        return replace(self._epochs, processes=processes)

    def of(self, pictures: Sequence[int], number: int = 0) -> Batch:
        """The batch of some pictures of one size, by their places in the dataset; `number` says what is drawn for it."""
        share = slice(0, len(pictures))
        return self._share(self._drawn(number, list(pictures), share), share, self.epochs())

    def _drawn(self, number: int, chosen: list[int], share: slice, first: int = 0) -> _Draw:
        """The batch of the B pictures at these places of the dataset: all that is random in it, in one order.

        Pictures that vary are encoded for one process's `share` alone, unless its noise depends on the others.
        """
        pictures = len(chosen)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number + first * 15_485_863)
        shape = (pictures, *self.encoded.shape(chosen[0]))
        t = self.noises.t(pictures, generator)
        noise = torch.randn(shape, generator=generator)
        jitter = torch.randn(shape, generator=generator)
        offsets = self.noises.offsets(shape, generator)
        own = [self.recipe_of(i) for i in chosen]
        dropped, flipped = torch.zeros(pictures, dtype=torch.bool), torch.zeros(pictures, dtype=torch.long)
        if any(one.caption_dropout_rate for one in own):
            dropped = torch.rand(pictures, generator=generator) < torch.tensor([one.caption_dropout_rate for one in own])
        if any(one.flip_aug for one in own):
            flipped = torch.randint(2, (pictures,), generator=generator) * torch.tensor([one.flip_aug for one in own])
        seeds = [f"{self.seed} {number} {place} picture" for place in range(first, first + pictures)]
        needed = range(pictures) if self.noises.adaptive_noise_scale else range(share.start, share.stop)
        latents = torch.stack([self.encoded.of(i, bool(flipped[b]), seeds[b], b in needed) for b, i in enumerate(chosen)])
        latents = latents[:, 0] + latents[:, 1] * jitter  # (B, 2, C, h, w) -> (B, C, h, w)
        noise, perturbed = self.noises.finished(noise, offsets, latents, generator)
        return _Draw(number, first, chosen, flipped, dropped, seeds, t, latents, noise, perturbed)

    def _share(self, drawn: _Draw, share: slice, epochs: Epochs) -> Batch:
        """One process's part of a batch, with what is said about its pictures, on the device."""
        mine, flipped = drawn.pictures[share], drawn.flipped[share]
        seeds = [f"{self.seed} {drawn.number} {drawn.first + place}" for place in range(share.start, share.stop)]
        recipe, epoch = self.recipe, drawn.number // epochs.batches + 1
        steps = self._steps or (recipe.max_train_epochs * epochs.steps if recipe.max_train_epochs else recipe.max_train_steps)
        step = epochs.step(drawn.number)
        texts = self.texts.of(mine, drawn.dropped[share].tolist(), seeds, step=step, steps=steps, epoch=epoch)
        condition = self.texts.condition(texts) if self.embeds else None
        batch = Batch(
            latents=drawn.latents[share],
            condition=condition and {name: tensor.float() for name, tensor in condition.items()},
            noise=drawn.noise[share],
            t=drawn.t[share],
            sizes=self._sizes(mine, flipped.tolist()),
            captions=tuple(texts),
            perturbed=None if drawn.perturbed is None else drawn.perturbed[share],
            weights=None if self.weights is None else self.weights[mine],
            mask=self._masks(mine, flipped.tolist(), drawn.seeds[share]),
        )
        return batch.to(self.device)

    def _sizes(self, pictures: list[int], flipped: list[int]) -> dict[str, Tensor]:
        """What the denoiser is told of each picture's sizes, (B, …) by name."""
        rows = [self.family.sizes(*self.views[i].told(bool(flip))) for i, flip in zip(pictures, flipped, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _masks(self, pictures: list[int], flipped: list[int], seeds: list[str]) -> Tensor | None:
        """Loss weight of each place (B, 1, h, w); None where no picture has a mask."""
        if not self.encoded.masked:
            return None
        return torch.stack([self.encoded.mask(i, bool(flip), seed) for i, flip, seed in zip(pictures, flipped, seeds, strict=True)])
