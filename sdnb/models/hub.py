"""Where a model's files are: bundled, on this disk, or on the Hugging Face Hub, from which they are fetched once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..system import files, suggest
from . import configurations, weights
from .family import families, known_parts

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
AUTOENCODER = ("config.json", "diffusion_pytorch_model.safetensors")
"""The files of an autoencoder in diffusers' format."""


def repositories() -> dict[str, tuple[tuple[str, str | None], ...]]:
    """Models known by name -> the repositories that have them, as `Family.repositories`."""
    return {family.base: family.repositories for family in families() if family.base and family.repositories}


def find(name: str | Path, *, revision: str | None = None, half: Mapping[str, bool] | None = None) -> Path:
    """The folder in diffusers' format, or the one safetensors file, of a model.

    `name` is `tiny`, one of `repositories()`, a folder or file, or a repository of the Hub, `owner/name`. Of a repository only
    configurations, tokenizers and one variant of each part's safetensors are fetched, with progress bars, and only if the local cache
    lacks any. `half` says of which parts the fp16 variant is preferred. `revision` is a commit, branch or tag.

    Raises `ValueError` for a name that is none of these and for a pickle, `FileNotFoundError` for a file that is not there,
    `ConnectionError` when no repository can be had: it tells what was tried and what works without a network.
    """
    path = Path(name).expanduser()
    weights.refuse_pickle(path)
    if path.is_dir():
        return path
    if path.suffix.lower() == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: give an existing .safetensors file")
        return path
    name = str(name)
    if name in configurations.NAMES:
        return files.bundled(configurations.NAMES[name])
    if name in (pinned_names := repositories()):
        places = [(repository, revision or pinned) for repository, pinned in pinned_names[name]]
    elif HUB_ID.fullmatch(name):
        places = [(name, revision)]
    else:
        known = [*configurations.NAMES, *repositories()]
        hint = suggest(name, known, aside=True, key=str.lower)
        raise ValueError(
            f"no model {name!r}{hint}: known by name are {', '.join(known)}; otherwise give a folder in diffusers' format, "
            'one .safetensors file, or a repository of the Hub, "owner/name"'
        )
    return _fetch(name, places, half or {})


def find_autoencoder(name: str | Path) -> Path:
    """An autoencoder alone: its folder in diffusers' format, or its one safetensors file.

    `name` is a folder, a file, or a repository of the Hub, which may have it at the top or in `vae/`. Raises like `find`.
    """
    path, asked = Path(name).expanduser(), f"vae={str(name)!r}"
    weights.refuse_pickle(path)
    if path.is_file() or path.suffix.lower() == ".safetensors":
        if not path.is_file() or path.suffix.lower() != ".safetensors":
            raise FileNotFoundError(f"{asked}: there is no such .safetensors file")
        return path
    if not path.is_dir() and not HUB_ID.fullmatch(str(name)):
        raise ValueError(f'{asked}: give a folder, one .safetensors file, or a repository of the Hub, "owner/name"')
    found = _autoencoder_in(path) if path.is_dir() else _fetch_autoencoder(str(name))
    if found is None:
        raise FileNotFoundError(f"{asked} holds no config.json and {AUTOENCODER[1]}: give an autoencoder in diffusers' format")
    return found


def _autoencoder_in(folder: Path) -> Path | None:
    return next((place for place in (folder, folder / "vae") if all((place / file).is_file() for file in AUTOENCODER)), None)


def _fetch_autoencoder(repository: str) -> Path | None:
    """From the local cache if it lies there, else from the Hub."""
    from huggingface_hub import snapshot_download

    patterns = [f"{folder}{file}" for folder in ("", "vae/") for file in AUTOENCODER]
    try:
        found = _autoencoder_in(Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=True)))
    except Exception:  # not there: each version of the library says it in another way
        found = None
    if found is not None:
        return found
    try:
        _ask(repository, None)
        return _autoencoder_in(Path(snapshot_download(repository, allow_patterns=patterns)))
    except Exception as error:
        tried = f"{type(error).__name__}: {_first_line(error)}"
        raise ConnectionError(f"vae={repository!r} could not be had ({tried}): give a folder or a file that you bring here") from error


def cached(name: str) -> Path | None:
    """Folder of a repository `owner/name` in the local cache, complete or not; None if there is none. Does not use the network."""
    revisions = [revision for places in repositories().values() for repository, revision in places if repository == name]
    for revision in [*revisions, None]:
        try:
            return _snapshot(name, revision, {}, local=True)
        except Exception:  # not there: each version of the library says it in another way
            continue
    return None


def parts(folder: Path) -> list[str]:
    """Which parts with weights a folder in diffusers' format has or should have: its family's, and text encoders that have a folder or a
    tokenizer there.
    """
    family = configurations.family_in(folder)
    asked = [name for name, part in known_parts().items() if part.tokenizer and any((folder / n).is_dir() for n in (name, part.tokenizer))]
    return list(dict.fromkeys([*family.parts, *asked]))


def _fetch(name: str, places: list[tuple[str, str | None]], half: Mapping[str, bool]) -> Path:
    """From the local cache if one of the places lies there whole, else from the first that answers."""
    tried = []
    for local in (True, False):
        for repository, revision in places:
            place = f"{repository}@{revision[:10]}" if revision else repository
            try:
                if not local:
                    _ask(repository, revision)
                folder = _snapshot(repository, revision, half, local)
            except Exception as error:  # no network, no repository, no permission, no room: whichever library it comes from
                if not local:
                    tried.append(f"{place} ({type(error).__name__}: {_first_line(error)})")
                continue
            lacking = _lacking(folder)
            if not lacking:
                return folder
            if not local:
                tried.append(f"{place} (it has no safetensors of {', '.join(lacking)})")
    here = "" if name in repositories() else f" There is no folder {name!r} here either."
    raise ConnectionError(
        f"{name!r} could not be had. Tried: the local cache ({_cache()}), {'; '.join(tried)}.{here} What works without the Hub: a folder "
        'in diffusers\' format or one .safetensors file that you bring here, load("path/to/model.safetensors"); a cache that has the '
        'model, with the environment variable HF_HOME; and load("tiny"), which is bundled. HF_ENDPOINT names another server with the '
        "Hub's files"
    )


def _ask(repository: str, revision: str | None) -> None:
    """Raise at once if a repository cannot be reached: `snapshot_download` would ask for a pinned one for half a minute."""
    from huggingface_hub import HfApi

    HfApi().repo_info(repository, revision=revision, timeout=15)


def _snapshot(repository: str, revision: str | None, half: Mapping[str, bool], local: bool) -> Path:
    """A repository's folder in the local cache, after fetching what it lacks unless `local`."""
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=local))

    known = known_parts()
    tokenizers = [f"{part.tokenizer}/*" for part in known.values() if part.tokenizer]
    described = ["model_index.json", "scheduler/*.json", *tokenizers, *(f"{part}/config.json" for part in known)]
    preferred = {part: weights.HALF if half.get(part) else None for part in known}
    folder = fetch([*described, *(pattern for part, variant in preferred.items() for pattern in _patterns(part, variant))])
    if lacking := _lacking(folder):  # not every repository has both variants
        other = {part: None if preferred[part] else weights.HALF for part in lacking}
        folder = fetch([*described, *(pattern for part, variant in other.items() for pattern in _patterns(part, variant))])
    return folder


def _patterns(part: str, variant: str | None) -> Iterator[str]:
    """The one file of a variant, or its index and pieces."""
    stem, dot = f"{part}/{known_parts()[part].stem}", f".{variant}" if variant else ""
    yield f"{stem}{dot}.safetensors"
    yield f"{stem}.safetensors.index{dot}.json"
    yield f"{stem}{dot}-*-of-*.safetensors"


def _lacking(folder: Path) -> list[str]:
    """The parts of which a folder lacks the weights."""
    return [part for part in parts(folder) if next(weights.variants(folder, part), None) is None]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else "no reason given"


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
