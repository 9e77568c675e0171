"""Languages of the doctor: the code speaks English, and `*.zh.toml` beside it has the Chinese.

- `messages.zh.toml` and `rules.zh.toml`: a table for each message and rule, by its name, with the digest of the English that the
  translator read
- `words.zh.toml`: every other text, by the English as the code writes it, with `{names}` for what differs

In a translation, the value of `{name:t}` is itself translated, and that of `{name:list}` piece by piece. Text that has no translation
stays English; `tests/doctor/test_languages.py` names it.
A language needs a row in `LANGUAGES` and three such files.
"""

from __future__ import annotations

import os
import re
import string
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ..sd_scripts import Finding, cut
from .messages import MESSAGES, filled
from .rules import RULES

LANGUAGES = {"en": ("; ", "."), "zh": ("；", "。")}
"""What stands between the clauses of a text and at its end, by language."""
PARTS = ("what", "why", "fix")
_TIMES = re.compile(r" \((\d+) times\)$")


@cache
def language(code: str) -> Language:
    """The language of a code such as `zh`. Raises `ValueError` for one that the doctor does not speak."""
    if code not in LANGUAGES:
        raise ValueError(f"language {code!r}: there are {', '.join(LANGUAGES)}")
    return Language(code)


def of_reader(environment: Mapping[str, str] | None = None) -> str:
    """Code of the reader's language: of `LC_ALL`, `LC_MESSAGES` or `LANG`, on Windows else that of its menus; else `en`."""
    environment = os.environ if environment is None else environment
    locale = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := environment.get(name))), None)
    if locale is None and sys.platform == "win32":
        locale = _of_windows()
    code = re.split(r"[_.@-]", (locale or "en").lower())[0]
    return code if code in LANGUAGES else "en"


def _of_windows() -> str:
    import ctypes
    import locale

    return locale.windows_locale.get(ctypes.windll.kernel32.GetUserDefaultUILanguage(), "en")  # type: ignore[attr-defined]


class Language:
    """English texts of the doctor in another language, or as they are."""

    def __init__(self, code: str) -> None:
        self.code = code

    def say(self, english: str, **values: object) -> str:
        """A text of the code with its `{values}`."""
        return _Formatter(self).vformat(self._words.get(english, english), (), values)

    def text(self, english: str) -> str:
        """A finished text: what it is filled with is found by the templates of `words.zh.toml`."""
        if english in self._words:
            return _Formatter(self).vformat(self._words[english], (), {})
        for literal, pattern, translation in self._patterns:
            if literal in english and (match := re.fullmatch(pattern, english, re.DOTALL)):
                return _Formatter(self).vformat(translation, (), match.groupdict())
        return english

    def listed(self, english: str) -> str:
        """The same for a text that may be a list of texts with `; ` between them."""
        translated = self.text(english)
        return LANGUAGES[self.code][0].join(map(self.text, english.split("; "))) if translated == english else translated

    def finding(self, finding: Finding) -> Finding:
        """The finding with its texts translated."""
        return finding if self.code == "en" else replace(finding, **{name: self._part(finding, name) for name in PARTS})

    def _part(self, finding: Finding, name: str) -> str:
        text = getattr(finding, name)
        times = _TIMES.search(text) if name == "what" else None
        plain = text[: times.start()] if times else text
        for english, translation in self._rows.get(finding.rule, ()):
            if text and cut(filled(english[name], finding.values)) in (text, plain):
                said = filled(translation[name], finding.values, *LANGUAGES[self.code], formatter=_Formatter(self))
                return said if text == cut(filled(english[name], finding.values)) or not times else said + self.text(times[0])
        return self.text(text)

    @cached_property
    def _words(self) -> dict[str, str]:
        return _table("words", self.code)

    @cached_property
    def _patterns(self) -> list[tuple[str, str, str]]:
        """The longest fixed part, the regular expression and the translation of each text with names, the most telling first."""
        patterns = []
        for english, translation in self._words.items():
            pieces = list(string.Formatter().parse(english))
            fixed = [literal for literal, *_ in pieces]
            if any(name is not None for _, name, *_ in pieces) and (longest := max(fixed, key=len)):
                patterns.append((len("".join(fixed)), longest, _pattern(pieces), translation))
        return [tuple(row[1:]) for row in sorted(patterns, key=lambda row: -row[0])]

    @cached_property
    def _rows(self) -> dict[str, list[tuple[dict[str, str], dict[str, str]]]]:
        """English and translation of each rule and message, by name; a message may be called like a rule."""
        found: dict[str, list[tuple[dict[str, str], dict[str, str]]]] = {}
        for rows, name in ((RULES, "rules"), (MESSAGES, "messages")):
            translations = _table(name, self.code)
            for row in rows:
                if row.name in translations:
                    english = {part: getattr(row, part) for part in PARTS}
                    found.setdefault(row.name, []).append((english, {**english, **translations[row.name]}))
        return found


class _Formatter(string.Formatter):
    """Formats as `str.format` does; `{name:t}` is translated."""

    def __init__(self, language: Language) -> None:
        self.language = language

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec == "list":
            return self.language.text(", ").join(map(self.language.text, str(value).split(", ")))
        return self.language.listed(str(value)) if format_spec == "t" else super().format_field(value, format_spec)


def _pattern(pieces: list[tuple]) -> str:
    parts, seen = [], set()
    for literal, name, *_ in pieces:
        parts.append(re.escape(literal))
        if name is not None:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>.*?)")
            seen.add(name)
    return "".join(parts)


def _table(name: str, code: str) -> dict[str, Any]:
    path = Path(__file__).with_name(f"{name}.{code}.toml")
    return tomllib.loads(path.read_text(encoding="utf-8")) if code != "en" else {}
