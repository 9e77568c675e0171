"""Translations of the course: prose is translated cell by cell, and so are the words that the code shows.

The set-up cell has a line more, by which guesses and exercises speak the language. Where the code is not translated, what they have said
in the stored outputs is (`replies`).

`notebooks/zh/00_start_here.md` holds the Chinese of `notebooks/00_start_here.ipynb`, one section for each markdown cell. A line above
each section names the cell, and has a digest of the English text that the translator read:

    <!-- 205dba9e, English 1f3a9c2b -->

So a test finds a translation that is out of date, whoever changed the English. Authors who cannot translate leave the English there.

The section `strings` translates what stands in quotes in the code, such as the titles of figures: a line of English as in the source, and
below it an arrow and the translation, for the whole notebook. What is not listed stays English. Its digest is that of all the notebook's
quotes of more than one word.

    <!-- strings, English 5a0c11de -->
    drawn at {step} steps
    → 画于第 {step} 步

A notebook with such a section is executed in its language (`sdnb editions --execute`). One without shows the English code and outputs.

The README and the glossary are translated in the same way, section by section, and are read as they are. A new language needs a row in
`LANGUAGES` and a folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

from . import replies
from .languages import LANGUAGES

STRINGS = "strings"
"""Name of the section that translates the code's quotes."""
EXECUTED = "sdnb_executed_beside"
"""Metadata of a notebook that was executed in its language: the digest of the English one."""
SET_UP = "import sdnb"
"""Line of the cell that a translated notebook's set-up adds a line to: which language the guesses and exercises speak."""
_HEAD = re.compile(r"^<!-- (.+), English ([0-9a-f]{8}) -->$", re.MULTILINE)
_QUOTE = re.compile(r'(?<!\\)"((?:[^"\\\n]|\\.)*)"')
"""What stands in double quotes on a line of code. Quotes of three are found as an empty one and a start: ruff keeps them to docstrings."""
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s]+)\)")


def digest(text: str) -> str:
    """Digest of the words of `text`, without regard to line breaks: eight hexadecimal digits."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:8]


def prose(notebook: Path) -> dict[str, str]:
    """Markdown cells of a notebook, by id."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"}


def english(lesson: Path) -> dict[str, str]:
    """All that can be translated in a notebook, by id: its markdown cells, and the quotes of more than one word in its code."""
    found = {quote for source in _sources(json.loads(lesson.read_text(encoding="utf-8"))) for quote in _QUOTE.findall(source)}
    return {**prose(lesson), STRINGS: "\n".join(sorted(quote for quote in found if " " in quote.strip()))}


def _sources(notebook: dict) -> list[str]:
    """Code cells of a notebook, without the set-up, which is folded."""
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "code" and not cell["metadata"].get("jupyter"))
    return ["".join(cell["source"]) for cell in cells]


def quotes(section: str) -> dict[str, str]:
    """Translations in a section `strings`, by the English. Raises `ValueError` for a line without its translation below it."""
    lines = [line for line in section.splitlines() if line.strip()]
    pairs = list(zip_longest(lines[::2], lines[1::2], fillvalue=""))
    for text, arrow in pairs:
        if text.startswith("→") or not arrow.startswith("→"):
            raise ValueError(f"strings are pairs of lines, English above `→ translation`: {text or arrow!r} has no other half")
    return {text: arrow.removeprefix("→").removeprefix(" ") for text, arrow in pairs}


def sections(page: Path) -> dict[str, str]:
    """Sections of a Markdown page down to its second level, by heading."""
    texts, heading, fenced = {}, "", False
    for line in page.read_text(encoding="utf-8").splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if not fenced and (match := re.match(r"##? (.+)", line)):
            heading = match[1].strip()
        texts[heading] = texts.get(heading, "") + line
    return texts


def translated(page: Path) -> dict[str, tuple[str, str]]:
    """Cells or sections of a translation, by id: (digest of the English, text).

    Raises `ValueError` for text above the first id, and for an id that occurs twice.
    """
    before, *parts = _HEAD.split(page.read_text(encoding="utf-8"))
    if before.strip() or len(parts) % 3:
        raise ValueError(f"{page} begins with text of no cell: put <!-- ID, English DIGEST --> above it")
    rows = list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))
    if len({key for key, _, _ in rows}) < len(rows):
        raise ValueError(f"{page} translates something twice: {', '.join(sorted(key for key, _, _ in rows))}")
    return {key: (english, text.strip("\n")) for key, english, text in rows}


def behind(english: Mapping[str, str], translation: Mapping[str, tuple[str, str]]) -> list[str]:
    """Faults of a translation of `english`, one line for each cell or section that is missing or out of date. `strings` may be missing."""
    lines = []
    for key, text in english.items():
        if key == STRINGS and key not in translation:
            continue
        if key not in translation:
            lines.append(f"{key} is not translated: it belongs under <!-- {key}, English {digest(text)} -->")
        elif translation[key][0] != digest(text):
            lines.append(f"{key} was translated from another text: look at it again, then write {digest(text)} above it")
    return lines + [f"{key} is not in the English any more: take it out" for key in translation if key not in english]


def translation_of(lesson: Path, language: str) -> Path:
    """Path of an English notebook's translation, which need not exist."""
    return lesson.parent / language / f"{lesson.stem}.md"


def pages(folder: Path, language: str) -> dict[Path, Path]:
    """Markdown pages of a language, by the English ones; `folder` holds the English notebooks."""
    pairs = {
        folder.parent / "README.md": folder.parent / f"README.{language}.md",
        folder / "glossary.md": folder / language / "glossary.md",
    }
    return {english: page for english, page in pairs.items() if page.exists()}


def build(lesson: Path, language: str) -> str:
    """Content of a translated lesson's notebook file. Raises `ValueError` where the translation is out of date.

    Where the code's quotes are translated, outputs are those that the notebook's file has for the same code, and no others.
    """
    page = translation_of(lesson, language)
    texts = translated(page)
    if lines := behind(english(lesson), texts):
        raise ValueError("\n".join(f"{page}: {line}" for line in lines))
    notebook = json.loads(lesson.read_text(encoding="utf-8"))
    first = notebook["cells"][0]["id"]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = _LINK.sub(lambda link: f"]({_link_from_translation(link[1], lesson, language)})", texts[cell["id"]][1])
            if cell["id"] == first:
                text += "\n\n" + LANGUAGES[language].format(english=f"../{lesson.name}")
            cell["source"] = text.splitlines(keepends=True)
        elif SET_UP in map(str.strip, cell["source"]):
            cell["source"] = ("".join(cell["source"]) + f'\nsdnb.course.speak("{language}")').splitlines(keepends=True)
        elif replies.CALL.search("".join(cell["source"])):
            for output in cell["outputs"]:
                if "text" in output:
                    said = replies.translated("".join(output["text"]), lesson.stem[:2], language)
                    output["text"] = said.splitlines(keepends=True)
    if STRINGS in texts:
        _translate_code(notebook, quotes(texts[STRINGS][1]), page.with_suffix(".ipynb"))
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _translate_code(notebook: dict, words: Mapping[str, str], file: Path) -> None:
    """Replace the quotes in the code, and the outputs by those that `file` has for the same code."""
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"cells": [], "metadata": {}}
    outputs = {(cell["id"], "".join(cell["source"])): cell for cell in stored["cells"] if cell["cell_type"] == "code"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = _QUOTE.sub(lambda quote: f'"{words.get(quote[1], quote[1])}"', "".join(cell["source"]))
            cell["source"] = source.splitlines(keepends=True)
            executed = outputs.get((cell["id"], source), {"execution_count": None, "outputs": []})
            cell |= {name: executed[name] for name in ("execution_count", "outputs")}
    if EXECUTED in stored["metadata"]:
        notebook["metadata"][EXECUTED] = stored["metadata"][EXECUTED]


def unexecuted(lesson: Path, language: str) -> bool:
    """Whether a translated lesson shows no outputs of its own yet, or those beside another state of the English notebook."""
    page = translation_of(lesson, language)
    if STRINGS not in translated(page):
        return False
    notebook = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))
    return notebook["metadata"].get(EXECUTED) != state(lesson)


def state(lesson: Path) -> str:
    """Digest of an English notebook's code and of the outputs that are the same on every machine."""
    notebook = json.loads(lesson.read_text(encoding="utf-8"))
    compared = [cell["outputs"] for cell in notebook["cells"] if "nbval-check-output" in cell["metadata"].get("tags", ())]
    texts = [output.get("text") or output.get("data", {}).get("text/plain") for outputs in compared for output in outputs]
    return digest(json.dumps([_sources(notebook), texts]))


def _link_from_translation(target: str, lesson: Path, language: str) -> str:
    """Target of an English notebook's link, from the folder of the translation: the translated lesson where there is one."""
    return target if translation_of(lesson.parent / target, language).exists() else f"../{target}"
