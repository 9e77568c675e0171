"""What sd-scripts' own functions make of captions, recorded by running them: the caption of a step, its tokens, weights and states.

    python -m benchmarks.record_captions FOLDER

FOLDER is a checkout of sd-scripts, whose libraries the environment has; `benchmarks.sd_scripts` says which. The tokenizer is that of
tiny-sd, and the text encoders count instead of computing (`Counting`), so that a test has the same. The figures go to
`tests/recorded/captions.json`. Nothing of its code is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .sd_scripts import Checkout

ROOT = Path(__file__).resolve().parent.parent
FACTS = ROOT / "tests" / "recorded" / "captions.json"
CASES = 500
CAPTIONS = (
    "",
    "a fox",
    "1girl, red hair, , blue eyes ,smile",
    "sks ||| red, blue, green ||| best quality, film",
    "one ||| a, b, c",
    "||| a, b",
    "a red;;;blue scarf, snow;;; ice, night",
    "{red|blue|green} fox, {snow|ice}",
    "{{literal}} {a|b} {{{c|d}}} {} {|e}",
    "first line, x\nsecond {u|v} line, y\nthird",
    "⦅a⦆ ⦅⦅b⦆⦆ {{c}} {d|e⦆}",
    "tag one. tag two. tag three. tag four",
    "a, b, c, d, e, f, g, h, i, j, k, l",
    "\nsecond line alone",
)
SETTINGS: dict[str, tuple] = {
    "shuffle_caption": (True,),
    "caption_separator": (".", ";;;", ", "),
    "keep_tokens": (1, 2, 5, 20),
    "keep_tokens_separator": ("|||", ";;;"),
    "secondary_separator": (";;;", " "),
    "enable_wildcard": (True,),
    "caption_prefix": ("best quality,", "{old|new}"),
    "caption_suffix": (", film", "{day|night}\nend"),
    "caption_dropout_rate": (0.3, 1.0),
    "caption_dropout_every_n_epochs": (1, 2, 3),
    "caption_tag_dropout_rate": (0.3, 0.9, 1.0),
    "token_warmup_min": (0, 2, 5),
    "token_warmup_step": (0.5, 0.25, 7, 10.5),
}
NEUTRAL = {
    "caption_separator": ",",
    "keep_tokens_separator": "",
    "secondary_separator": None,
    "caption_prefix": None,
    "token_warmup_min": 1,
}
"""Values of what a case leaves out; all others are 0."""
WEIGHTED = (
    "a normal caption, of words",
    "an (important) word",
    "(unbalanced fox",
    "[less [and less",
    r"\(literal\] \\ \x",
    "(one)(two)",
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
    "closed) first] :1.2) (then:-1.5) (none:0) (x:.5) (y:+2)",
    "",
    "()[]",
    "a (red [and (blue:0.7)] or green:1.4) fox: small",
    "(a red fox in the snow, " * 30 + "end",
    "a [cat] on (a:1.2) mat, " * 40,
)
LENGTHS = (None, 75, 100, 150, 225, 255)


class Counting(torch.nn.Module):
    """A text encoder whose states are small whole numbers of ids and places: (B, 77) -> (B, 77, width)."""

    device = torch.device("cpu")

    def __init__(self, width: int, end: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=width, num_hidden_layers=12)
        self.end = end
        self.text_model = SimpleNamespace(final_layer_norm=Scaled())
        self.text_projection = Scaled()

    def forward(self, ids, output_hidden_states: bool = False, return_dict: bool = True):
        """States of 13 layers, each one more than the layer before."""
        first = (ids % 89 + torch.arange(ids.shape[1])).unsqueeze(-1) + torch.arange(self.config.hidden_size) * 100.0
        layers = [first + layer for layer in range(13)]
        pooled = layers[-1][torch.arange(len(ids)), (ids == self.end).int().argmax(1)]
        return Output(last_hidden_state=layers[-1], hidden_states=layers, text_embeds=pooled * 2)


class Output(dict):
    """An output by name, as an attribute, or the first of it."""

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __getitem__(self, name: Any) -> Any:
        return next(iter(self.values())) if name == 0 else super().__getitem__(name)


class Scaled(torch.nn.Module):
    """Twice its input, as a norm or a projection."""

    weight = torch.ones(1)

    def forward(self, states):
        """2 x."""
        return states * 2


def main() -> None:
    """Record, and say where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a checkout of sd-scripts")
    parser.add_argument("--commit", help="its commit, where there is no .git")
    arguments = parser.parse_args()
    checkout = Checkout(arguments.folder)
    facts = {
        "source": {"repository": "kohya-ss/sd-scripts", "commit": checkout.commit(arguments.commit)},
        "captions": [caption(checkout.train_util, case) for case in cases()],
        "tokens": [row for pads_with_end in (True, False) for row in tokens(pads_with_end)],
        "states": [row for family in ("sd1", "sd2", "sdxl") for row in states(family)],
        "lines": lines(checkout.train_util),
    }
    source, comma = json.dumps(facts.pop("source")), ",\n"
    parts = [f' "source": {source}', *(f" {json.dumps(name)}: [\n{comma.join(map(json.dumps, rows))}\n ]" for name, rows in facts.items())]
    FACTS.write_text(f"{{\n{comma.join(parts)}\n}}\n", encoding="utf-8")
    print(f"{FACTS}: {FACTS.stat().st_size:,} bytes")


def cases() -> list[dict]:
    """Captions with a few settings each, at some step of some epoch."""
    chance = random.Random(3)
    rows: list[dict] = [
        {"text": place, "seed": place, "epoch": 1, "step": 0, "steps": 100, "settings": {}} for place in range(len(CAPTIONS))
    ]
    while len(rows) < CASES:
        names = chance.sample(sorted(SETTINGS), chance.choice((1, 2, 3, 5)))
        rows.append(
            {
                "text": chance.randrange(len(CAPTIONS)),
                "seed": chance.randrange(1000),
                "epoch": chance.randrange(1, 7),
                "step": chance.choice((0, 1, 3, 6, 9, 20, 49, 50)),
                "steps": chance.choice((10, 100)),
                "settings": {name: chance.choice(SETTINGS[name]) for name in names},
            }
        )
    return rows


def caption(util: Any, case: dict) -> dict:
    """The case with the caption that it gets."""
    data = object.__new__(util.BaseDataset)
    data.replacements, data.current_epoch, data.current_step = {}, case["epoch"], case["step"]
    data.max_train_steps = case["steps"]
    subset = SimpleNamespace(**{name: NEUTRAL.get(name, 0) for name in SETTINGS} | case["settings"])
    random.seed(case["seed"])
    return case | {"shown": data.process_caption(subset, CAPTIONS[case["text"]])}


def tokenizer(pads_with_end: bool = True) -> Any:
    """tiny-sd's tokenizer, which pads with the end of a text, or with `!`, id 0, as SD 2 and SDXL's second do."""
    from transformers import CLIPTokenizer

    more = {} if pads_with_end else {"pad_token": "!"}
    return CLIPTokenizer.from_pretrained(ROOT / "data" / "tiny-sd" / "tokenizer", **more)


def digest(values: Any) -> str:
    """Digest of numbers as they are in a tensor."""
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()[:16]


def tokens(pads_with_end: bool) -> list[dict]:
    """Ids and weights of each caption at each length; None is the tokenizer's own."""
    strategy = importlib.import_module("library.strategy_base").TokenizeStrategy()
    words, rows = tokenizer(pads_with_end), []
    for length in LENGTHS:
        whole = words.model_max_length if length is None else length + 2
        for place, text in enumerate(WEIGHTED):
            plain = strategy._get_input_ids(words, text, whole)
            ids, weights = strategy._get_input_ids(words, text, whole, weighted=True)
            row = {"pads_with_end": pads_with_end, "length": length, "text": place, "shape": list(ids.shape)}
            rows.append(row | {"plain": digest(plain.long()), "ids": digest(ids.long()), "weights": digest(weights.float())})
    return rows


def states(family: str) -> list[dict]:
    """The states of each caption, plain and weighted, of text encoders that count."""
    rows = []
    for length in (None, 150, 225):
        for weighted in (False, True):
            for place, text in enumerate(WEIGHTED):
                found = encoded(family, text, length, weighted)
                rows.append(
                    {"family": family, "length": length, "weighted": weighted, "text": place, "digests": [digest(one) for one in found]}
                )
    return rows


def encoded(family: str, text: str, length: int | None, weighted: bool) -> list[Any]:
    """The states (T, D) of each encoder, and of SDXL the pooled ones."""
    kind = importlib.import_module("library.strategy_sdxl" if family == "sdxl" else "library.strategy_sd")
    if family == "sdxl":
        strategy, encoding = object.__new__(kind.SdxlTokenizeStrategy), kind.SdxlTextEncodingStrategy()
        strategy.tokenizer1, strategy.tokenizer2 = tokenizer(), tokenizer(pads_with_end=False)
        models = [Counting(2, strategy.tokenizer1.eos_token_id), Counting(3, strategy.tokenizer1.eos_token_id)]
    else:
        strategy, encoding = object.__new__(kind.SdTokenizeStrategy), kind.SdTextEncodingStrategy()
        strategy.tokenizer = tokenizer(family == "sd1")
        models = [Counting(2, strategy.tokenizer.eos_token_id)]
    strategy.max_length = 77 if length is None else length + 2
    if weighted:
        ids, weights = strategy.tokenize_with_weights(text)
        found = encoding.encode_tokens_with_weights(strategy, models, ids, weights)
    else:
        found = encoding.encode_tokens(strategy, models, strategy.tokenize(text))
    return [one[0].float() for one in found]


def lines(util: Any) -> list[dict]:
    """Which caption a data set reads from a file of several lines."""
    import tempfile

    import numpy
    from PIL import Image

    rows = []
    for text in ("one", " one \ntwo\n\n", "\n two\n three", "one\r\ntwo\rthree", "a, b\n\n\nc\n"):
        for wildcard in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                Image.fromarray(numpy.zeros((64, 64, 3), "uint8")).save(Path(folder) / "a.png")
                (Path(folder) / "a.txt").write_bytes(text.encode())
                given = {"image_dir": folder, "is_reg": False, "class_tokens": None, "caption_extension": "txt", "cache_info": False}
                none = dict.fromkeys("alpha_mask color_aug flip_aug random_crop shuffle_caption keep_tokens".split(), 0)
                none |= dict.fromkeys("caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate".split(), 0)
                none |= dict.fromkeys("keep_tokens_separator secondary_separator face_crop_aug_range caption_prefix caption_suffix".split())
                subset = util.DreamBoothSubset(
                    **given, **none, num_repeats=1, caption_separator=",", enable_wildcard=wildcard, token_warmup_min=1, token_warmup_step=0
                )
                sides = {"resolution": (64, 64), "min_bucket_reso": 64, "max_bucket_reso": 64, "bucket_reso_steps": 64}
                data = util.DreamBoothDataset(
                    [subset], True, 1, network_multiplier=1.0, enable_bucket=False, bucket_no_upscale=False, prior_loss_weight=1.0,
                    debug_dataset=False, validation_split=0.0, validation_seed=None, resize_interpolation=None, **sides,
                )  # fmt: skip
                (info,) = data.image_data.values()
                rows.append({"text": text, "enable_wildcard": wildcard, "caption": info.caption})
    return rows


if __name__ == "__main__":
    main()
