"""Report of a diagnosis: causes below one another, worst first, in a terminal or on a page, in the reader's language."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

from ..sd_scripts import EFFECTS, Finding
from ..system import printable
from .languages import Language

INDENT = " " * 9
SCREEN = 36
"""Lines of a report, unless the reasons of all findings are asked for."""
SAME = "The same change fixes:"
_WIDE = "\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60"
_PIECE = re.compile(rf"\s*[（《「『【“\[(]*(?:[{_WIDE}]|[^\s{_WIDE}]+|(?=\s|$))[，。；：！？、）》」』】”…\])]*")
"""A word or a wide letter, with the marks that may not begin or end a line."""


def count(findings: Sequence[Finding], language: Language) -> str:
    """Number of findings of each effect: `1 error, 2 warnings`."""
    words = [row.counted for effect, row in EFFECTS.items() for finding in findings if finding.effect == effect]
    counts = {word: words.count(word) for word in words}
    said = (language.text(f"{number:,} {word}{'s' * (number > 1)}") for word, number in counts.items() if number)
    return language.text(", ").join(said)


def table(findings: Iterable[Finding], language: Language, *, colour: bool, width: int, why: bool, room: int, ask: str) -> list[str]:
    """Lines of the causes, each with an empty line after it.

    - `why`: with all reasons and sources; else with the reason of the first cause alone
    - `room`: lines to fill; causes that no longer fit are counted
    - `ask`: how to ask for all of them
    """
    lines: list[str] = []
    causes = by_cause(findings)
    for place, cause in enumerate(causes):
        body = _cause(cause, language, colour=colour, width=width, reason=why or not place, source=why)
        if place and not why and len(lines) + len(body) > room:
            left = [finding for others in causes[place:] for finding in others]
            text = language.say("And {count}, which are shown with all reasons by:", count=count(left, language))
            lines += [*_with_command(text, ask, width), ""]
            break
        lines += [*body, ""]
    else:
        if not why and any(one.why for cause in causes[1:] for one in cause[:1]):
            lines += [*_with_command(language.say("All reasons, and where they were read:"), ask, width), ""]
    return lines


def _with_command(text: str, command: str, width: int) -> list[str]:
    """Lines of a text and a command to paste, which is never broken."""
    line = f"{text} {command}"
    return [line] if columns(line) <= width else [*wrapped(text, width, "", ""), f"  {command}"]


def _cause(cause: Sequence[Finding], language: Language, *, colour: bool, width: int, reason: bool, source: bool) -> list[str]:
    finding, *others = (language.finding(one) for one in cause)
    effect = EFFECTS[finding.effect]
    word = language.text(effect.word)
    head = word + " " * (len(INDENT) - columns(word))
    lesson = language.say(" (lesson {number})", number=finding.lesson) if finding.lesson else ""
    body = wrapped(finding.what + lesson, width, head)
    if colour:
        body[0] = f"\033[{effect.colour}m{head}\033[0m\033[1m{body[0].removeprefix(head)}\033[0m"
    if finding.fix:
        body += wrapped(f"→ {finding.fix}", width, INDENT, INDENT + "  ")
    if others:
        body += wrapped(language.text(SAME), width)
    for other in others:
        body += wrapped(f"· {_named(other, language)}", width, INDENT, INDENT + "  ")
        body += wrapped(other.why, width, INDENT + "  ", INDENT + "  ") if source and other.why else []
    if reason and finding.why:
        body += wrapped(finding.why, width)
    if source and finding.source:
        body += [f"\033[2m{line}\033[0m" if colour else line for line in wrapped(finding.source, width)]
    return body


def page(findings: Iterable[Finding], language: Language) -> str:
    """The causes as an HTML table, the reasons of all but the first folded."""
    rows = []
    for cause in by_cause(findings):
        finding, *others = (language.finding(one) for one in cause)
        effect = EFFECTS[finding.effect]
        what, why, fix, source = (html.escape(printable(text)) for text in (finding.what, finding.why, finding.fix, finding.source))
        lesson = language.say(" (lesson {number})", number=finding.lesson) if finding.lesson else ""
        cell = f"<b>{what}</b>{lesson}"
        cell += f"<br>→ <code>{fix}</code>" if fix else ""
        cell += f"<br>{language.text(SAME)}" if others else ""
        cell += "".join(f"<br>· {html.escape(printable(_named(other, language)))}" for other in others)
        source = f'<br><small style="opacity:.7">{source}</small>' if source else ""
        cell += f"<details{'' if rows else ' open'}><summary>{language.text('Why')}</summary>{why}{source}</details>" if why else source
        style = f"vertical-align:top;color:{effect.shade};font-weight:bold"
        title, word = language.text(effect.meaning), language.text(effect.word)
        rows.append(f'<tr><td style="{style}" title="{title}">{word}</td><td style="text-align:left">{cell}</td></tr>')
    return f"<table>{''.join(rows)}</table>"


def _named(finding: Finding, language: Language) -> str:
    return language.say("{what} ({effect})", what=finding.what, effect=language.text(EFFECTS[finding.effect].counted))


def by_cause(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings that one change mends, together; each group begins with the worst, which stands where it stood."""
    groups: list[list[Finding]] = []
    for finding in findings:
        group = next((group for group in groups if _is_one_cause(group[0], finding)), None)
        if group is None:
            groups.append([finding])
        else:
            group.append(finding)
    return groups


def _is_one_cause(first: Finding, other: Finding) -> bool:
    """Whether the same change mends both; a fix that names no value is no change."""
    return bool(first.repair and first.repair == other.repair) or ("=" in first.fix and other.fix.startswith(first.fix))


def columns(text: str) -> int:
    """Columns of a terminal that `text` takes: Chinese letters are two wide."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def wrapped(text: str, width: int, first: str = INDENT, rest: str = INDENT) -> list[str]:
    """Lines of at most `width` columns, broken at spaces and between Chinese letters; `first` and `rest` are put before them."""
    lines, line, empty = [], first, True
    for piece in _PIECE.findall(printable(text)):
        if not empty and columns(line) + columns(piece) > width:
            lines.append(line)
            line, empty = rest, True
        piece = piece.lstrip() if empty else piece
        while columns(line) + columns(piece) > width and len(piece) > 1:  # one word that is longer than a line
            end = max(1, (width - columns(line)) // 2 if columns(piece) > len(piece) else width - columns(line))
            lines.append(line + piece[:end])
            line, piece = rest, piece[end:]
        line, empty = line + piece, empty and not piece
    return [*lines, line.rstrip()]
