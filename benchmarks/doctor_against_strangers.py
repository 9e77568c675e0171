"""The doctor's verdicts beside hand-written ones, over settings and logs of strangers.

    python -m benchmarks.doctor_against_strangers FOLDER [--json FILE]

strangers/settings.json and strangers/logs.json list files that people published, each with its source, its SHA-256 and a verdict that
was written before the doctor saw the file. FOLDER holds the files themselves, which are their authors' and not kept here; a file that is
missing or differs is named and left out. Counted are settings judged rightly (the status of `sdnb doctor`, every finding that matters,
none that would be wrong, and whether `--fix` mends them), logs recognised with the right error quoted, and repairs that lose or change
something they do not name: by the doctor's own second reading, and by a comparison of keys and words here. An entry whose verdict
turned out wrong says so under `corrected` and keeps the first one as `first`, so that both counts can be
made. Entries of round 2 were judged by hand after the doctor had learnt from those of round 1, and before it saw them.

Takes about a minute on two cores.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path

from sdnb.doctor.diagnosis import Diagnosis, diagnose

from .report import parser, show

LISTS = Path(__file__).with_name("strangers")
KINDS = ("settings", "logs")
GUI_NAMES = {"lr_warmup": "lr_warmup_steps", "optimizer": "optimizer_type", "max_resolution": "resolution"}
"""Names of the kohya_ss GUI that differ from those that the doctor's lines have."""
ENCODINGS = ("utf-8-sig", "gb18030", "cp932")


def entries(kind: str, lists: Path = LISTS) -> list[dict]:
    """The entries of `settings.json` or `logs.json`; none where there is no such list."""
    path = lists / f"{kind}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def missing(entry: dict, folder: Path) -> str:
    """Why the file of an entry cannot be judged; empty where it is there as it was."""
    path = folder / entry["file"]
    if not path.is_file():
        return "not in the folder"
    return "" if hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"] else "not the file that was judged"


def wrong(diagnosis: Diagnosis, verdict: dict, kind: str) -> list[str]:
    """What differs from the verdict, as `expected, said`."""
    rules = {one.rule for one in diagnosis.findings}
    status = 2 if diagnosis.settings.form == "none" else int(diagnosis.fails)
    faults = []
    if verdict.get("status") not in (None, status):
        faults.append(f"status {verdict['status']} expected, said {status}")
    faults += [f"{rule} expected, not said" for rule in verdict.get("rules", ()) if rule not in rules]
    faults += [f"{rule} said, which is wrong" for rule in verdict.get("never", ()) if rule in rules]
    if verdict.get("repair") is not None and (mends := repaired(diagnosis) is not None) != verdict["repair"]:
        faults.append(f"repair {verdict['repair']} expected, said {mends}")
    if kind == "logs":
        told = " ".join(" ".join((one.what, one.why)) for one in diagnosis.findings)
        if verdict.get("error") and _plain(verdict["error"]) not in _plain(told):
            faults.append(f"the error {verdict['error']!r} expected, not quoted")
    return faults


def repaired(diagnosis: Diagnosis) -> str | None:
    """The mended text; None where the doctor leaves it to the reader."""
    try:
        return diagnosis.fixed_text()
    except ValueError:
        return None


def harm(diagnosis: Diagnosis, before: str) -> list[str]:
    """What a repair loses or changes without naming it; none where there is no repair."""
    after = repaired(diagnosis)
    if after is None or not diagnosis.settings.original:
        return []
    named = diagnosis.changes()
    again = diagnose(after, script=diagnosis.settings.script if diagnosis.settings.script_named else None)
    faults = ["an error is left"] if again.fails else []
    is_json = before.lstrip().startswith("{")
    if diagnosis.settings.notebook:
        return faults + _words_changed(_code(before), _code(after), named)
    if not is_json and diagnosis.settings.form != "toml":
        return faults + _words_changed(before, after, named)
    try:
        old = _tables(json.loads(before) if is_json else tomllib.loads(before))
        new = _tables(json.loads(after) if after.lstrip().startswith("{") else tomllib.loads(after))  # sd-scripts reads no JSON
    except ValueError as error:
        return [*faults, f"it cannot be read: {error}"]
    changed = [name for name in {*old, *new} if old.get(name) != new.get(name)]
    return faults + [f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in changed if not _is_named(name, old, new, named)]


def _is_named(name: str, old: dict, new: dict, named: list[str]) -> bool:
    """Whether a line of the doctor's names the key, or shows both of its values (the GUI has names of its own)."""
    last = GUI_NAMES.get(name, name.rpartition(".")[2])
    values = [str(table[name]) for table in (old, new) if name in table and table[name] not in ("", None)]
    return any(re.search(rf"(?<!\w){re.escape(last)}(?!\w)", line) or (values and all(value in line for value in values)) for line in named)


def _code(notebook: str) -> str:
    """All cells of a notebook, its remarks included."""
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(notebook)["cells"])


def _words_changed(before: str, after: str, named: list[str]) -> list[str]:
    """The words that are lost or new and stand in no line of the doctor's.

    Quotes, marks at the ends of lines, a terminal's prompt, prose around fences, a log before the command and the spelling of a number
    (1.0 and 1) do not count, nor does a word that is written a second time.
    """
    if fenced := re.findall(r"(?ms)^```\w*\n(.*?)^```", before):
        before = max(fenced, key=len)
    before = re.sub(r"(?m)^[^\n>\"']*>(?=\s*(?:accelerate|python))", "", before)
    before = re.sub(r"(?s)^.*\d+:\d+:\d+[-,\d]* INFO\s+(?=accelerate)", "", before)  # the log of the GUI
    old, new, said = ({_word(word): word for word in re.findall(r"[^\s\"'`^\\,=“”‘’]+", text)} for text in (before, after, " ".join(named)))
    text = " ".join(named)
    strange = [("lost", word) for key, word in old.items() if key not in new] + [
        ("new", word) for key, word in new.items() if key not in old
    ]
    return [f"{kind} {word}" for kind, word in strange if _word(word) not in said and word.strip("-") not in text]


def _word(word: str) -> str | float:
    try:
        return float(word)
    except ValueError:
        return word


def _tables(data: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in data.items():
        flat |= _tables(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def text_of(path: Path) -> str:
    """The text of a file in the first encoding that fits it."""
    data = path.read_bytes()
    for encoding in ENCODINGS:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def judged(kind: str, number: int, folder: Path) -> tuple[dict, bool]:
    """The row of one list and round, and whether something is wrong; each wrong entry is printed."""
    counts, faults = Counter(), False
    for entry in entries(kind):
        if entry.get("round", 1) != number:
            continue
        if why := missing(entry, folder):
            counts["missing"] += 1
            print(f"{entry['file']}: {why}")
            continue
        diagnosis = diagnose(folder / entry["file"])
        found = wrong(diagnosis, entry["verdict"], kind)
        harmful = harm(diagnosis, text_of(folder / entry["file"])) if kind == "settings" else []
        if found:
            print(f"{entry['file']}: {'; '.join(found)}\n    {entry['why']}\n    {diagnosis.summary()}")
        if harmful:
            print(f"{entry['file']}: a repair that does harm: {'; '.join(harmful[:5])}")
        counts["judged"] += 1
        counts["right"] += not found
        counts["as first written"] += not wrong(diagnosis, entry.get("first", entry["verdict"]), kind)
        counts["repairs"] += kind == "settings" and repaired(diagnosis) is not None
        counts["harmful"] += bool(harmful)
        faults = faults or bool(found or harmful)
    row = {
        "strangers'": kind,
        "round": number,
        "judged": counts["judged"],
        "right": counts["right"],
        "right by the verdicts as first written": counts["as first written"],
        "repaired": counts["repairs"],
        "repairs that do harm": counts["harmful"],
        "missing": counts["missing"],
    }
    return row, faults


def main() -> None:
    command = parser(__doc__)
    command.add_argument("folder", type=Path, help="the folder that holds settings/ and logs/")
    options = command.parse_args()
    rounds = sorted({(KINDS.index(kind), entry.get("round", 1)) for kind in KINDS for entry in entries(kind)})
    found = [judged(KINDS[place], number, options.folder) for place, number in rounds]
    show([row for row, _ in found], options.json)
    sys.exit(any(faults for _, faults in found))


if __name__ == "__main__":
    main()
