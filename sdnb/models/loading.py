"""Loading a model: by name, from a folder, from one file, each part in its place and precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..system import bundled, devices, shown
from . import configurations, hub, singlefile, weights
from .drawing import quietly
from .family import Part, known_parts, named

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL
    from torch.nn import Module

    from .model import Model
    from .stable_diffusion import StableDiffusion

CLIP_WORDS = 49408
"""How many tokens CLIP has, whose tokenizer is bundled: all of Stable Diffusion 1, 2 and XL read with it."""


def load(
    name: str | Path,
    *,
    device: str | torch.device | Mapping[str, str | torch.device] | None = None,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    revision: str | None = None,
    config: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> StableDiffusion:
    """Load a model with its parts: a `StableDiffusion`, or the class of another family.

    - `name`: `"tiny"`, which is bundled; `"sd15"`, `"sd21"`, `"sdxl"` or a repository of the Hugging Face Hub, `"owner/name"`, downloaded
      once; a folder in diffusers' format; or one `.safetensors` file in the original layout, which needs no network, because
      configurations and CLIP's tokenizer are bundled
    - `device`: `"cuda"` or `"cpu"`; by default the GPU, if there is one that this torch has kernels for, else the CPU
    - `dtype`: fp32 by default, as training needs. This and `device` may be given per part, `{"unet": torch.float32, "vae":
      torch.float16}`; other text encoders follow `text_encoder` unless you name them. With fp16 for all parts, SDXL's autoencoder stays in
      fp32, because its numbers overflow in fp16
    - `revision`: a commit, branch or tag of the repository
    - `config`: for a file of other shapes, a folder with its configurations, or a name
    - `tokenizer`: a folder with a tokenizer, in place of the model's own

    Raises, before it reads any weights, `ValueError` for a name that is none of these, a folder or file that is not a Stable Diffusion
    model, a damaged file, a pickle, or a device that is missing or not supported; `FileNotFoundError` for a missing file;
    `ConnectionError` when it cannot download, naming what works without a network. Raises `ValueError` also for weights that are NaN or
    infinite.
    """
    import torch

    places, dtypes = _devices(device), _each(dtype, torch.float32, "dtype")
    half = {part: each in (torch.float16, torch.bfloat16) for part, each in dtypes.items()}
    path = hub.find(name, revision=revision, half=half)
    if path.is_dir():
        if config is not None:
            raise ValueError(f"config={str(config)!r} is for single files: {path} has its own configurations")
        facts = _check_folder(path, half)
    else:
        facts = _facts_of_file(path, config)
    family = named(facts["family"])
    noise_scheduler = configurations.scheduler(facts, str(path))
    if dtype == torch.float16:
        dtypes |= dict.fromkeys(family.full_precision, torch.float32)
    tokenizers = _load_tokenizers(path, facts, config, tokenizer)
    if path.is_dir():
        parts = {name: _load_part(path, name, part, half[name], dtypes[name]).to(places[name]) for name, part in family.parts.items()}
    else:
        parts = singlefile.read(path, facts, device=places, dtype=dtypes)
    for part, module in parts.items():
        weights.check_finite(module, f"{path / part if path.is_dir() else path}: the {part}")
        if part != family.denoiser:
            module.requires_grad_(False).eval()
    # a family with other parts has a class of its own
    return cast("StableDiffusion", family.model(**parts, **tokenizers, noise_scheduler=noise_scheduler, family=family.name))


def _load_part(folder: Path, name: str, part: Part, half: bool, dtype: torch.dtype) -> Module:
    """One part of a folder. The libraries map the file and fill a model without weights, so that nothing is held twice."""
    variant, _ = next(weights.variants(folder, name, half=half))
    return _from_pretrained(folder / name, part, dtype, name, variant=variant)


def _from_pretrained(folder: Path, part: Part, dtype: torch.dtype, name: str, **more: Any) -> Module:
    kwargs: dict[str, Any] = dict(use_safetensors=True, local_files_only=True, output_loading_info=True, **more)
    kwargs["dtype" if part.library == "transformers" else "torch_dtype"] = dtype
    with quietly(), _explained(f"{folder} cannot be loaded"):
        module, report = getattr(import_module(part.library), part.cls).from_pretrained(folder, **kwargs)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights of the {name}, {missing[0]} among them: fetch it again")
    return module


def autoencoder(name: str | Path, model: Model, *, dtype: torch.dtype) -> AutoencoderKL:
    """Load an autoencoder that takes the place of `model.vae`: a folder, a repository of the Hub, or one file.

    As in sd-scripts, its latents are scaled by the model's own factor, and a file has the model's own configuration. Raises `ValueError`
    for latents of another shape, and like `load`.
    """
    own, path = model.vae, hub.find_autoencoder(name)
    config = {key: value for key, value in own.config.items() if not key.startswith("_")}
    if path.is_dir():
        config = configurations.of_part(path / "config.json")
    module = cast("AutoencoderKL", configurations.build({"vae": config, "family": model.family}, "vae", str(path)))
    (channels, sizes), given = ((each.config["latent_channels"], len(each.config["block_out_channels"])) for each in (own, module))
    if given != (channels, sizes):
        raise ValueError(
            f"vae={str(name)!r} makes latents of {given[0]} channels in {given[1]} stages, this model's own of {channels} in {sizes}: "
            "give one of the same kind"
        )
    if path.is_dir():
        weights.header(path / hub.AUTOENCODER[1])
        module = cast("AutoencoderKL", _from_pretrained(path, named(model.family).parts["vae"], dtype, "vae"))
    else:
        singlefile.read_autoencoder(path, module, model.family, dtype=dtype)
    weights.check_finite(module, f"{path}: the vae")
    module.register_to_config(scaling_factor=own.config["scaling_factor"])
    cast("Module", module).to(own.device)
    return module.requires_grad_(False).eval()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever a library says of a file into one `ValueError`; a memory or a disk that fails is not the file's fault."""
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{what} ({type(error).__name__}: {shown(error, 300)}): fetch it again") from error


def _load_tokenizers(path: Path, facts: dict, config: str | Path | None, tokenizer: str | Path | None) -> dict:
    import transformers

    loaded = {}
    for name, part in named(facts["family"]).parts.items():
        if not part.tokenizer:
            continue
        words = facts[name].get("vocab_size", CLIP_WORDS)
        asked = Path(tokenizer).expanduser() if tokenizer else None
        places = [asked] if asked else [path, Path(config)] if config else [path]
        found = (folder for place in places for folder in (place / part.tokenizer, place) if (folder / "tokenizer_config.json").is_file())
        folder = next(found, None)
        if folder is None and asked is None and path.is_file() and part.is_clip and words == CLIP_WORDS:
            folder = bundled("clip-tokenizer")
        if folder is None:
            where = asked or (path if path.is_dir() else "a single file")
            raise FileNotFoundError(
                f"no {part.tokenizer} for {path.name}: there is none in {where}, and the bundled one, CLIP's, has {CLIP_WORDS:,} tokens "
                f"where this model knows {words:,}. Give tokenizer=, a folder with its tokenizer_config.json"
            )
        with _explained(f"{folder} holds no tokenizer that can be read"):
            found = loaded[part.tokenizer] = getattr(transformers, part.tokenizer_cls).from_pretrained(folder, local_files_only=True)
        if folder == bundled("clip-tokenizer") and part.is_open_clip:
            found.pad_token = "!"  # token 0, with which OpenCLIP pads
        if len(found) > words:
            raise ValueError(f"{folder} has {len(found):,} tokens and the model knows {words:,}: give tokenizer=, the folder of its own")
    return loaded


def _facts_of_file(path: Path, config: str | Path | None) -> dict:
    facts = configurations.configurations(config if config is not None else path)
    missing = [part for part in named(facts["family"]).encoders if part not in facts]
    if missing:
        raise ValueError(f"config={str(config)!r} has no configuration of {', '.join(missing)}")
    return facts


def _check_folder(folder: Path, half: Mapping[str, bool]) -> dict:
    """The folder's configurations, after a look at each file but not at its weights."""
    missing = [name for name in configurations.family_in(folder).folders if not (folder / name).is_dir()]
    if missing:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        pickles = [path.name for path in files if path.suffix.lower() in weights.PICKLES]
        singles = [path.name for path in files if path.suffix.lower() == ".safetensors"]
        hint = f" (it holds the pickle {pickles[0]}, which is not loaded)" if pickles else ""
        hint = f" (it holds {singles[0]}: give that file itself)" if singles else hint
        raise ValueError(f"{folder} is no Stable Diffusion in diffusers' format{hint}: it lacks {', '.join(missing)}")
    facts = configurations.configurations(folder)
    for part in hub.parts(folder):
        if part not in facts:
            raise FileNotFoundError(f"{folder / part / 'config.json'} is missing: get the whole model")
        weights.check_part(folder, part, configurations.build(facts, part, str(folder)), half=half[part])
    return facts


def _each(given, default, what: str) -> dict:
    """`given`, one value or some by part, for each part that a model may have."""
    known = known_parts()
    if not isinstance(given, Mapping):
        return dict.fromkeys(known, default if given is None else given)
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise ValueError(f"{what} of {', '.join(unknown)}: the parts of a model are {', '.join(known)}")
    like_first = given.get("text_encoder", default)
    return {name: given.get(name, like_first if part.tokenizer else default) for name, part in known.items()}


def _devices(given) -> dict[str, torch.device]:
    """A device for each part. Raises `ValueError` for one that is none, or that nothing is trained on."""
    asked = _each(given, None, "device")
    found = {part: devices.named(each) for part, each in asked.items() if each is not None}
    return found if len(found) == len(asked) else dict.fromkeys(asked, devices.default()) | found
