"""Write clip-tokenizer/ from CLIP's list of merges. Run once: `python data/make_clip_tokenizer.py bpe_simple_vocab_16e6.txt.gz`."""

import gzip
import json
import sys
from pathlib import Path

MERGES = 49152 - 256 - 2  # CLIP uses the beginning of a longer list
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def letters() -> list[str]:
    """A printable character for each of the 256 bytes, as GPT-2's tokenizer orders them: first those that are printable as they are."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(256 - len(printable))]


def main(source: Path, folder: Path) -> None:
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 1 + MERGES]  # the first line names the list
    tokens = [*letters(), *(letter + "</w>" for letter in letters()), *(merge.replace(" ", "") for merge in merges), *SPECIAL]
    folder.mkdir(exist_ok=True)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    start, end = SPECIAL
    settings = dict(tokenizer_class="CLIPTokenizer", model_max_length=77, bos_token=start, eos_token=end, unk_token=end, pad_token=end)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).resolve().parent / "clip-tokenizer")
