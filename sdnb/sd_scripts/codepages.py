"""Encoding of a text file, by its bytes: UTF-8, UTF-16, or the code page of an older program on Windows.

Three code pages are told apart, which the files of strangers are in: Chinese, Japanese and Western European. General detectors need a
page of text and misjudge the few letters of a path, so the letters that come out are looked at instead: nearly all of them have to be
everyday ones. An encoding counts only if it gives the same bytes back.
"""

from __future__ import annotations

import codecs
import re

BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
"""Beginnings of files of Windows; PowerShell writes output that is sent to a file as UTF-16."""
SURE = 0.85
"""The share of a file's other letters than English that must be everyday ones."""
WESTERN = {**dict.fromkeys("ÄÖÜäöüßÀÂÇÈÉÊËÎÏÔÙÛàâçèéêëîïôùûœæÁÍÓÚÑáíóúñìòãõÅØåøÆ", 1.0), **dict.fromkeys("–—“”‘’„…€°", 0.85)}


def encoding_of(data: bytes, *, cut: bool = False) -> str:
    """Python's name of the encoding of a text; empty where none is sure. `cut`: the data may end inside a letter."""
    for bom, encoding in BOMS.items():
        if data.startswith(bom):
            return encoding
    if _decodes(data, "utf-8", cut):
        return "utf-8"
    if cut or b"\0" in data:
        return ""
    score, encoding = max((_everyday(data, encoding), encoding) for encoding in ("cp1252", "cp932", "gb18030"))
    return encoding if score >= SURE else ""


def decoded(data: bytes, encoding: str) -> str:
    """The text; what cannot be read in an encoding that is not sure becomes `\\ufffd`."""
    return data.decode(encoding or "utf-8", errors="strict" if encoding in ("gb18030", "cp932", "cp1252") else "replace").removeprefix(
        "\ufeff"
    )


def encoded(text: str, encoding: str) -> bytes:
    """The bytes of a file, with the mark at its beginning that its encoding has. Raises `ValueError` for letters that it does not have."""
    bom = next((bom for bom, name in BOMS.items() if name == encoding and name.startswith("utf-16")), b"")
    return bom + text.encode(encoding, errors="surrogateescape" if encoding == "utf-8" else "strict")


def _decodes(data: bytes, encoding: str, cut: bool) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(data, final=not cut)
    except UnicodeDecodeError:
        return False
    return True


def _everyday(data: bytes, encoding: str) -> float:
    """The share of everyday letters among those that are not ASCII; 0 where the data is not in that encoding."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return 0.0
    if text.encode(encoding, errors="replace") != data:
        return 0.0
    if encoding == "cp1252" and re.search(r"[^\x00-\x7f]{3}", text):  # such letters stand alone or in pairs
        return 0.0
    letters = [letter for letter in text if not letter.isascii()]
    return sum(_weight(letter, encoding) for letter in letters) / len(letters)


def _weight(letter: str, encoding: str) -> float:
    if encoding == "cp1252":
        return WESTERN.get(letter, 0.0)
    code = letter.encode(encoding)
    if encoding == "gb18030":  # the 3,755 commonest characters, and punctuation
        return float((len(code) == 2 and 0xB0 <= code[0] <= 0xD7 and code[1] >= 0xA1) or letter in "，。、：；！？（）“”《》【】·—…")
    if "\u3041" <= letter <= "\u30ff" or letter in "、。「」（）：！？・":
        return 1.0
    if "\uff61" <= letter <= "\uff9f":  # narrow kana, which two bytes of Chinese look like
        return 0.4
    return 0.9 * (0x88 <= code[0] <= 0x97)  # the commoner half
