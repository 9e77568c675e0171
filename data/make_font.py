"""Write font/chinese.ttf, which matplotlib needs for Chinese in figures: the 3,755 characters of GB 2312's first level, and punctuation.

Run once, with Droid Sans Fallback (Debian's package fonts-droid-fallback): `python data/make_font.py DroidSansFallbackFull.ttf`. It needs
fontTools, which matplotlib brings.
"""

import sys
from pathlib import Path

from fontTools import subset

PUNCTUATION = "，。、；：？！“”‘’（）《》〈〉【】—…·％×÷±≤≥→←↑↓"


def common() -> str:
    """The 3,755 characters of GB 2312's first level, by how often they are used."""
    rows = (bytes([row, place]) for row in range(0xB0, 0xD8) for place in range(0xA1, 0xFF))
    return "".join(code.decode("gb2312") for code in rows if code < b"\xd7\xfa")


def main(source: Path, target: Path) -> None:
    options = subset.Options(hinting=False, layout_features=[], name_IDs=[0, 1, 2, 3, 4, 5, 6, 13, 14])
    font = subset.load_font(source, options)
    chosen = subset.Subsetter(options)
    chosen.populate(text=common() + PUNCTUATION)
    chosen.subset(font)
    target.parent.mkdir(exist_ok=True)
    subset.save_font(font, target, options)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).resolve().parent / "font" / "chinese.ttf")
