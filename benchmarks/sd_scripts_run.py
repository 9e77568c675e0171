"""A run of one of sd-scripts' training scripts, from its first check to the second optimizer step, on models of a few weights.

The script's own `train` runs, and everything that it calls: its checks, the dataset of one picture, the LoRA, the parameter groups,
the optimizer, the schedule, the data loader. Only these are put in place of the real ones: tokenizers, models (small ones of the same
classes), the caching of latents and texts, and the Accelerator, which counts as many processes as it is told and ends the run where
the training loop would begin. Two steps of the optimizer and of the schedule follow, with gradients of one.

fp16 needs a GPU, so the Accelerator gets no mixed precision instead. The scripts of other families (FLUX, SD 3, …) and of ControlNets
run up to their Accelerator, before they load models.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from sdnb.sd_scripts.arguments import STABLE_DIFFUSION

STEPS = 2
"""With a warmup all learning rates are 0 in the first step, so that some errors come only with the second."""


PATCHED = ("train_util", "sdxl_train_util", "strategy_base", "strategy_sd")


class Reached(BaseException):
    """The place where a run is ended."""


@dataclass
class Run:
    """One run: the script's own settings, and what it has made of them."""

    script: Any
    """The module of the training script."""
    args: Any
    processes: int = 1
    optimizer: Any = None
    scheduler: Any = None
    is_part: bool = False
    """Whether the settings name no model and no pictures, so that they are some of a run's settings."""

    def begin(self) -> None:
        """Run the script up to its loop. Raises whatever sd-scripts or a library raises."""
        with contextlib.ExitStack() as stack:
            self._fill(_folder())
            for patch in self._patches():
                stack.enter_context(patch)
            with contextlib.suppress(Reached):
                self._train(self.args)

    @property
    def _train(self):
        own = [kind for name, kind in vars(self.script).items() if name.endswith("Trainer") and kind.__module__ == self.script.__name__]
        return own[0]().train if own else self.script.train

    def _fill(self, folder: Path) -> None:
        """Say what every run needs and a few settings do not: a model, pictures, and, where no model is named, a network."""
        pictures, metadata = folder / "pictures" / "100_x", folder / "metadata.json"
        names_no_model = self.args.pretrained_model_name_or_path is None
        self.is_part = names_no_model and not getattr(self.args, "in_json", None)
        rest = {
            "pretrained_model_name_or_path": "model",
            "train_data_dir": str(pictures if "control_net" in self.script.__name__ else pictures.parent),
            "output_dir": str(folder),
            "output_name": "out",
            "resolution": "512",
            "token_string": "token",
            "in_json": str(metadata) if self.script.__name__ == "fine_tune" else None,
            "network_module": "networks.lora" if names_no_model else None,
            "conditioning_data_dir": str(pictures),
            "sample_prompts": str(folder / "none.txt") if self.is_part else None,
        }
        if not self._is_stable_diffusion:
            rest |= {name: name for name in ("clip_l", "t5xxl", "ae", "qwen3", "vae", "gemma2")}
        if getattr(self.args, "dataset_repeats", None) == 1:
            self.args.dataset_repeats = 100  # for epochs of some length, as those of the other scripts
        if getattr(self.args, "in_json", None):
            self.args.in_json = str(metadata)
        if getattr(self.args, "network_weights", None):
            self.args.network_weights = None  # the LoRA that it goes on from counts as loaded
        for name, value in rest.items():
            if value is not None and getattr(self.args, name, value) is None:
                setattr(self.args, name, value)

    @property
    def _is_stable_diffusion(self) -> bool:
        return f"{self.script.__name__}.py" in STABLE_DIFFUSION

    def _patches(self):
        util, sdxl, base, sd = (importlib.import_module(f"library.{name}") for name in PATCHED)
        for kind in (base.TokenizeStrategy, base.TextEncodingStrategy, base.TextEncoderOutputsCachingStrategy):
            yield mock.patch.object(kind, "_strategy", None)
        # a few settings of a fine-tuning run say nothing of a cache, without which it cannot begin
        cache = sd.SdSdxlLatentsCachingStrategy(False, False, None, False) if self._lacks_cache else None
        yield mock.patch.object(base.LatentsCachingStrategy, "_strategy", cache)
        yield mock.patch.object(base.TokenizeStrategy, "_load_tokenizer", lambda *_, **__: Tokenizer())
        yield mock.patch.object(gc, "collect", lambda: 0)  # half a second each time
        yield mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in ("xformers", "xformers.ops")})
        for name in ("new_cache_latents", "new_cache_text_encoder_outputs"):
            yield mock.patch.object(util.DatasetGroup, name, lambda *_: None)
        for name in {self.script.__name__, "train_network", "train_textual_inversion"}:
            module = importlib.import_module(name)
            if hasattr(module, "setup_logging"):
                yield mock.patch.object(module, "setup_logging", lambda *_, **__: None)
            yield mock.patch.object(module, "tqdm", mock.Mock(side_effect=Reached), create=True)
        if self._is_stable_diffusion:
            yield mock.patch.object(util, "load_target_model", lambda *_, **__: (*stable_diffusion(self.args.v2), True))
            yield mock.patch.object(sdxl, "load_target_model", lambda *_, **__: (True, *stable_diffusion_xl(), None, None))
            yield mock.patch.object(util, "Accelerator", self._accelerator)
        else:
            yield mock.patch.object(
                importlib.import_module("library.flux_utils"), "analyze_checkpoint_state", lambda _: (False, False, (0, 0), [])
            )
            yield mock.patch.object(importlib.import_module("transformers").AutoTokenizer, "from_pretrained", lambda *_, **__: Tokenizer())
            yield mock.patch.object(util, "Accelerator", mock.Mock(side_effect=Reached))

    @property
    def _lacks_cache(self) -> bool:
        return self.is_part and self.script.__name__ == "fine_tune" and not (self.args.cache_latents or self.args.cache_latents_to_disk)

    @property
    def _accelerator(self):
        """An Accelerator of this run."""
        import accelerate
        import torch

        run = self

        class Accelerator(accelerate.Accelerator):
            def __init__(self, *, mixed_precision, **options) -> None:
                accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
                super().__init__(mixed_precision="no" if mixed_precision == "fp16" else mixed_precision, **options)
                if mixed_precision == "fp16":
                    self.scaler = torch.amp.GradScaler("cpu")

            @property
            def num_processes(self) -> int:
                return run.processes

            def prepare(self, *parts, **_):
                if found := [part for part in parts if isinstance(part, torch.optim.Optimizer)]:
                    run.optimizer = found[0]
                    run.scheduler = parts[-1]
                return parts[0] if len(parts) == 1 else parts

            def init_trackers(self, *_, **__) -> None:
                pass

            def load_state(self, folder, **options) -> None:
                if Path(folder).suffix:  # a folder counts as loaded
                    super().load_state(folder, **options)

        return Accelerator

    def step(self) -> None:
        """Two steps of the optimizer and the schedule."""
        if self.optimizer is None:
            return
        util = importlib.import_module("library.train_util")
        import torch

        train, _ = util.get_optimizer_train_eval_fn(self.optimizer, self.args)
        train()
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for _ in range(STEPS):
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            if self.args.max_grad_norm != 0.0:
                torch.nn.utils.clip_grad_norm_(weights, self.args.max_grad_norm)
            self.optimizer.step()
            for _ in range(self.processes):
                self.scheduler.step()
            self.optimizer.zero_grad()


@functools.cache
def _folder() -> Path:
    """A folder with a picture, its caption, and metadata; it is left to the system to clean up."""
    from PIL import Image

    folder = Path(tempfile.mkdtemp(prefix="sd-scripts-run-"))
    pictures = folder / "pictures" / "100_x"
    pictures.mkdir(parents=True)
    Image.new("RGB", (512, 512)).save(pictures / "a.png")
    (pictures / "a.txt").write_text("a picture", encoding="utf-8")
    metadata = json.dumps({str(pictures / "a.png"): {"caption": "a picture"}})
    (folder / "metadata.json").write_text(metadata, encoding="utf-8")
    return folder


class Tokenizer:
    """A tokenizer of three words that learns more."""

    model_max_length, pad_token = 77, "a"

    def __init__(self) -> None:
        self.words = ["a", "b", "c"]

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str, **_) -> list[int]:
        return [0]

    def add_tokens(self, words: list[str]) -> int:
        new = [word for word in words if word not in self.words]
        self.words += new
        return len(new)

    def convert_tokens_to_ids(self, words: list[str]) -> list[int]:
        return [self.words.index(word) for word in words]


def stable_diffusion(v2: bool):
    """Text encoder, autoencoder and U-Net of a few weights, of the classes that sd-scripts loads."""
    unet = importlib.import_module("library.original_unet").UNet2DConditionModel
    return _text_encoder(), _autoencoder(), _unet(unet, ("down_blocks", "up_blocks"), "mid_block", convolution=not v2)


def stable_diffusion_xl():
    """Two text encoders, autoencoder and U-Net of a few weights."""
    unet = importlib.import_module("library.sdxl_original_unet").SdxlUNet2DConditionModel
    blocks = ("input_blocks", "output_blocks")
    return _text_encoder(), _text_encoder(), _autoencoder(), _unet(unet, blocks, "middle_block", convolution=False)


def _text_encoder():
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=3, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=4
    )
    return transformers.CLIPTextModel(config)


def _autoencoder():
    import torch

    class Autoencoder(torch.nn.Linear):
        dtype, device = torch.float32, torch.device("cpu")

        def set_use_memory_efficient_attention_xformers(self, valid) -> None:
            pass

    return Autoencoder(2, 2)


def _unet(kind: type, lists: tuple[str, ...], middle: str, *, convolution: bool):
    """A U-Net of one block, with the methods of the real one; Stable Diffusion 1 projects with a convolution, the others with a matrix."""
    import torch

    class Transformer2DModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gradient_checkpointing = False
            self.proj_in = torch.nn.Conv2d(4, 4, 1) if convolution else torch.nn.Linear(4, 4)
            self.proj_out = torch.nn.Linear(4, 4)

        def set_use_memory_efficient_attention(self, xformers, mem_eff) -> None:
            pass

        def set_use_sdpa(self, sdpa) -> None:
            pass

    class Small(kind):
        device = torch.device("cpu")

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            for name in lists:
                setattr(self, name, torch.nn.ModuleList())
            block = Transformer2DModel()
            setattr(self, middle, torch.nn.ModuleList([block]) if middle == "middle_block" else block)

    return Small()
