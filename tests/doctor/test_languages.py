"""The doctor's Chinese: it says what the English says now, and nothing is left in English."""

import ast
import functools
import os
import re
import string
import tomllib
from pathlib import Path

import pytest

import sdnb.doctor
from sdnb import __main__, diagnose
from sdnb.course.editions import digest
from sdnb.doctor import languages, report
from sdnb.doctor.languages import LANGUAGES, PARTS, language, of_reader
from sdnb.doctor.messages import MESSAGES, filled
from sdnb.doctor.rules import RULES
from sdnb.sd_scripts.findings import EFFECTS, Finding, in_brief

from ..conftest import ROOT
from ..fuzz.doors import fuzz
from .test_diagnosis import FAMOUS, FLAGS, JSON, LOG, LONG, TOML, run
from .test_logs import SAMPLES
from .test_rules import CASES

FOLDER = Path(next(iter(sdnb.doctor.__path__)))
OTHERS = [code for code in LANGUAGES if code != "en"]
ROWS = {"rules": RULES, "messages": MESSAGES}
TABLES = [(code, name) for code in OTHERS for name in ROWS]
each_table = pytest.mark.parametrize(("code", "name"), TABLES)
each_language = pytest.mark.parametrize("code", OTHERS)


@functools.cache
def table(name, code):
    return tomllib.loads((FOLDER / f"{name}.{code}.toml").read_text(encoding="utf-8"))


def read_from(row):
    """Digest of the English of a rule or message, as its translator should have read it."""
    return digest(f"{row.what}\n{row.why}\n{row.fix}")


def fields(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def behind(rows, translations):
    """Faults of a translation, one line for each row that is missing or out of date."""
    lines = []
    for row in rows:
        if row.name not in translations:
            lines.append(f'{row.name} is not translated: it belongs under [{row.name}] with english = "{read_from(row)}"')
        elif translations[row.name]["english"] != read_from(row):
            lines.append(f'{row.name} was translated from another text: look at it again, then write english = "{read_from(row)}"')
    return lines + [
        f"{name} is not in the English any more: take it out" for name in sorted(translations.keys() - {row.name for row in rows})
    ]


# what the English says now


@each_table
def test_every_rule_and_message_is_translated_from_the_english_as_it_is(code, name):
    assert behind(ROWS[name], table(name, code)) == []


def test_the_gate_names_what_is_behind():
    one, other, *_ = MESSAGES
    good = {row.name: {"english": read_from(row)} for row in (one, other)}
    assert behind([one, other], good) == []
    assert behind([one, other], {one.name: good[one.name]}) == [
        f'{other.name} is not translated: it belongs under [{other.name}] with english = "{read_from(other)}"'
    ]
    assert "was translated from another text" in behind([one], {one.name: {"english": "00000000"}})[0]
    assert "take it out" in behind([one], good)[0]


@each_table
def test_placeholders_clauses_and_parts_are_those_of_the_english(code, name):
    between, end = LANGUAGES[code]
    for row in ROWS[name]:
        translation = table(name, code)[row.name]
        assert translation.keys() - {"english"} == {part for part in PARTS if getattr(row, part)}, row.name
        for part in PARTS:
            english, ours = getattr(row, part), translation.get(part, "")
            assert fields(ours) == fields(english), (row.name, part)
            if name == "messages":  # a clause falls away with its value, so each has the same ones
                clauses = [
                    [sorted(fields(clause)) for clause in text.split(mark) if fields(clause)]
                    for text, mark in ((english, "; "), (ours, between))
                ]
                assert clauses[0] == clauses[1], (row.name, part)
                assert part != "what" or ours.endswith(end), row.name


TOKENS = re.compile(r"--[a-z]\w+(?:=[\w.]*\w)?|\b[a-z]\w*_\w+|\b[\w.-]+\.(?:py|toml|json|safetensors|npz)\b|\d[\d.,]*\d|\d")


@each_table
def test_settings_files_and_numbers_are_those_of_the_english(code, name):
    for row in ROWS[name]:
        for part in PARTS:
            ours = table(name, code)[row.name].get(part, "")
            for token in TOKENS.findall(re.sub(r"\{\w+(![rs])?(:[,.\w]+)?\}", "", getattr(row, part))):
                assert token in ours or (row.name, token) in WORDED, (row.name, part, token)


WORDED = set()
"""Numbers that Chinese writes in letters."""


@each_language
def test_no_translation_is_in_english_or_has_spaces_around_its_marks(code):
    for name in ROWS:
        for key, translation in table(name, code).items():
            for part in PARTS:
                ours = translation.get(part, "")
                assert re.search(r"[\u4e00-\u9fff]", ours) or not is_prose(ours), (key, part)
                assert not re.search(r" [，。；：！？、）]|[，。；：！？、（] ", ours), (key, part)


# texts that the code makes


SOURCES = [
    *(path for path in sorted((ROOT / "sdnb" / "sd_scripts").glob("*.py")) if path.stem not in ("__init__", "supported")),
    *(path for path in sorted((ROOT / "sdnb" / "doctor").glob("*.py")) if path.stem not in ("__init__", "languages")),
]
QUOTED = re.compile(
    r"""
      error:[ ](?:argument[ ]--|unrecognized[ ]arguments:)                                 # what argparse prints
    | ^(?:model[ ]saved\.|Traceback[ ]|raise[ ]|noise_offset_type[ ]is|not[ ]sdxl|stable[ ]diffusion|pair[ ]beyond|dict\[)  # of programs
    | ^(?:Kohya[ ]Lo|Stable[ ]Diffusion|text[ ]encoder|sdnb[ ]doctor)                       # names
    | ^\[The[ ]doctor[ ]left[ ]out                                                        # written into a log, and read from it
    | ;[ ]not[ ]found[ ]in                                                               # of a source
    | too[ ]large[ ]to[ ]show                                                            # in place of a value
    | </?(?:br|small|tr|td)                                                              # of a page
    """,
    re.VERBOSE,
)
"""Texts that are not the doctor's own words."""


def is_prose(text):
    """Whether a text has two words of English beside each other, and is no command or quotation of a program."""
    text = re.sub(
        r"`[^`]*`|'[^']*'|\"[^\"]*\"|pip (?:un)?install [\w{}. -]+|(?:\w+Error|AssertionError)(?: in \w+)?: .*|--[\w=.-]+", "", text
    )
    return bool(re.search(r"[A-Za-z]{2,},? [a-z]{2,}", text))


def pieces(path):
    """Fixed pieces of the texts of a module, with their lines: no docstrings, patterns, tables of names or help of argparse."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        help_or_pattern = called.startswith("re.") or called.endswith((".add_argument", ".add_parser", ".split"))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        elif help_or_pattern:
            skipped |= {id(part) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            for piece, *_ in string.Formatter().parse(node.value) if "{" in node.value and "}" in node.value else [(node.value,)]:
                yield node.lineno, piece.strip()


@each_language
def test_every_text_of_the_code_has_a_translation(code):
    words = table("words", code)
    fixed = ["".join(piece) for text in words for piece, *_ in string.Formatter().parse(text)]
    missing = [
        f"{path.relative_to(ROOT)}:{line}: {piece!r} is in no English of words.{code}.toml"
        for path in SOURCES
        for line, piece in pieces(path)
        if is_said(piece) and not any(piece in text for text in fixed)
    ]
    assert missing == []


def is_said(piece):
    return is_prose(piece) and not QUOTED.search(piece)


@each_language
def test_every_translated_text_is_one_of_the_code(code):
    others = [ROOT / "sdnb" / "system" / "words.py", ROOT / "sdnb" / "planner" / "changes.py"]
    said = "\n".join(path.read_text(encoding="utf-8") for path in [*SOURCES, *others])
    said = re.sub(r'"\s*\n\s*f?"', "", said).replace('\\"', '"').replace("\\\\", "\\")
    for text in table("words", code):
        for piece, *_ in string.Formatter().parse(text):
            piece = piece.strip()
            assert is_made_of(piece, said) or is_made_of(piece[:1].lower() + piece[1:], said), text


def is_made_of(text, said, parts=4):
    """Whether the code says a text, be it in a few parts."""
    if text in said:
        return True
    end = next((end for end in range(len(text), 0, -1) if text[:end] in said), 0)
    return parts > 1 and end > 3 and is_made_of(text[end:], said, parts - 1)


@each_language
def test_the_words_have_the_placeholders_of_the_english(code):
    for english, ours in table("words", code).items():
        assert fields(ours) == fields(english), english
        assert not re.search(r" [，。；：！？、）]|[，。；：！？、（] ", ours), english


# nothing is left in English


def untranslated(findings, code):
    for finding in findings:
        translation = language(code).finding(finding)
        for part in PARTS:
            english, ours = getattr(finding, part), getattr(translation, part)
            if english == ours and is_said(english):
                yield f"{finding.rule}: {part}: {english}"


@each_language
@pytest.mark.parametrize(
    "texts", [CASES, SAMPLES, LONG, {"nothing": "", "famous": FAMOUS, "log": LOG}], ids=["rules", "logs", "long", "few"]
)
def test_all_that_is_said_of_known_texts_is_translated(code, texts):
    all_texts = [one for text in texts.values() for one in (text if isinstance(text, (list, tuple)) else [text])]
    assert [line for text in all_texts for line in untranslated(diagnose(text).findings, code)] == []


@fuzz(FLAGS | TOML | JSON, share=4)
def test_all_that_is_said_of_generated_settings_is_translated(text):
    for code in OTHERS:
        assert list(untranslated(diagnose(text).findings, code)) == []
        for ask in ("fixed_text", "changes"):
            try:
                getattr(diagnose(text, language=code), ask)()
            except ValueError as error:
                assert re.search(r"[\u4e00-\u9fff]", str(error)), error


def test_a_log_about_a_full_gpu_is_translated_whatever_ran():
    full = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    commands = [
        "sdxl_train_network.py --network_module=networks.lora --network_dim=128 --train_batch_size=4 --resolution=1024",
        "sdxl_train.py --train_batch_size=1",
        "train_textual_inversion.py --token_string=x",
        "train_controlnet.py",
        "flux_train_network.py --config_file a.toml",
        "train_network.py --network_dim=4",
    ]
    texts = [
        f"{full}subprocess.CalledProcessError: Command '{['python', *one.split()]}' returned non-zero exit status 1." for one in commands
    ]
    for text in [*texts, full, f"create LoRA network\n{full}"]:
        assert [line for code in OTHERS for line in untranslated(diagnose(text).findings, code)] == []
        said = diagnose(text, language="zh").findings[0]
        assert "爆显存" in language("zh").finding(said).what


def test_the_report_is_chinese_but_for_settings_and_errors():
    text = diagnose(FAMOUS, language="zh").table(why=True)
    for words in ("个错误", "改好了", "报错", "这样改还能一并解决", "[第 07 课]", "学习率由 Adafactor 自己定"):
        assert words in text
    for words in ("error,", "would not", "lesson", "Fixed", "difference", "raises"):
        assert words not in text
    page = diagnose(FAMOUS, language="zh")._repr_html_()
    assert "<summary>原因</summary>" in page and "lesson" not in page
    assert "没有发现问题" in diagnose("train_network.py --learning_rate=1e-4", language="zh").summary()
    assert diagnose(FAMOUS, language="zh").changes()[0].startswith("learning_rate: （没写） -> 1e-4")


def test_how_often_a_message_stands_is_said():
    log = "WARNING  learning rate is used as initial_lr\n" * 3
    (what,) = [language("zh").finding(one).what for one in diagnose(log).findings if one.rule == "adafactor-learning-rate-ignored"]
    assert what == "你设的 learning_rate 不起作用。（3 次）"


def test_a_clause_without_its_value_falls_away():
    assert filled("爆显存了；还要再申请 {wanted}；一共 {total}。", {"total": "8 GiB"}, "；", "。") == "爆显存了；一共 8 GiB。"
    assert filled("爆显存了；还要再申请 {wanted}。", {}, "；", "。") == "爆显存了。"


def test_findings_and_english_stay_as_they_are():
    diagnosis = diagnose(FAMOUS, language="zh")
    assert diagnosis.findings == diagnose(FAMOUS).findings
    assert diagnose(FAMOUS).table() == diagnose(FAMOUS, language="en").table()
    finding = Finding(rule="usage", effect="raises", what="{not} a template", why="", fix="")
    assert [language(code).finding(finding) for code in LANGUAGES] == [finding] * len(LANGUAGES)


def test_what_is_cut_is_cut_in_chinese():
    diagnosis = diagnose(" ".join(f"--flag{number}" for number in range(100)), language="zh")
    assert "还有 92 个同类的。" in str(diagnosis)
    assert diagnosis.summary().startswith("100 个错误")


def test_another_language_is_refused():
    with pytest.raises(ValueError, match="language 'fr': there are en, zh"):
        diagnose(FAMOUS, language="fr")


# the width of Chinese letters


@pytest.mark.parametrize("width", [40, 60, 100])
@pytest.mark.parametrize("code", LANGUAGES)
def test_no_line_is_too_wide_and_none_begins_with_a_mark(code, width):
    for text in (*CASES.values(), LOG, f"--optimizer_type={'宽' * 300} --output_name={'x' * 300}"):
        findings = diagnose(text).findings
        lines = report.table(findings, language(code), colour=False, width=width, why=True, room=99, ask="--why")
        for line in lines:
            assert report.columns(line) <= width, line
            assert not re.match(r"\s*[，。；：！？、）》」』】]", line), line
        words = "".join("".join(lines).split())
        assert all("".join(language(code).finding(one).what.split()) in words for one in findings)


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two three", 8, ["one two", "three"]),
        ("一二三四五", 4, ["一二", "三四", "五"]),
        ("一二，三", 4, ["一", "二，", "三"]),
        ("设为 --seed=1。", 10, ["设为", "--seed=1。"]),
        ("（一）", 40, ["（一）"]),
        ("aaaaaaaaaa", 4, ["aaaa", "aaaa", "aa"]),
        ("", 4, [""]),
    ],
)
def test_wrapping(text, width, lines):
    assert report.wrapped(text, width, "", "") == lines


# whose language it is


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "zh-Hans"}, "zh"),
        ({"LC_MESSAGES": "zh_CN.UTF-8", "LANG": "en_US.UTF-8"}, "zh"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "", "LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
    ],
)
def test_the_locale_says_which_language(environment, code):
    assert of_reader(environment) == code


@pytest.mark.parametrize(("menus", "code"), [("zh_CN", "zh"), ("en_US", "en"), ("fr_FR", "en")])
def test_on_windows_the_menus_say(menus, code, monkeypatch):
    monkeypatch.setattr(languages.sys, "platform", "win32")
    monkeypatch.setattr(languages, "_of_windows", lambda: menus)
    assert of_reader({}) == code
    assert of_reader({"LANG": "zh_CN.UTF-8"}) == "zh"


def test_the_command_takes_the_readers_language(capsys, monkeypatch):
    flags = FAMOUS.replace('"', "").split()
    for locale, options, words in [
        ("zh_CN.UTF-8", [], "个错误"),
        ("zh_CN.UTF-8", ["--language", "en"], "1 error"),
        ("en_US.UTF-8", ["--language=zh"], "个错误"),
        ("C.UTF-8", [], "1 error"),
    ]:
        monkeypatch.setenv("LC_ALL", locale)
        assert __main__.main(["doctor", *options, *flags]) == 1
        assert words in capsys.readouterr().out
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert __main__.main(["doctor", "--fix", "--learning_rate=x"]) == 2
    assert "这个只能由你决定" in capsys.readouterr().err
    assert "个错误" not in str(diagnose(FAMOUS))  # a program says which language it wants


def test_in_a_process_of_its_own_in_chinese():
    result = run("--language", "zh", *FAMOUS.replace('"', "").split(), env={**os.environ, "PYTHONIOENCODING": "utf-8"}, encoding="utf-8")
    assert result.returncode == 1
    assert "改好了，可以直接粘贴：" in result.stdout


def test_every_effect_is_named_in_each_language():
    for effect in EFFECTS.values():
        for code in OTHERS:
            assert all(language(code).text(word) != word for word in (effect.word, effect.counted, effect.meaning))
    brief = in_brief([Finding(rule=f"r{number}", effect="note", what="x", why="") for number in range(50)])
    assert language("zh").finding(brief[-1]).what == "还有 10 个，改好这些之后再显示。"
