"""Command lines, as bash, cmd and PowerShell users paste them."""

import shlex
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdnb.sd_scripts.shell import quote, split


def words(text):
    return [command.words for command in split(text).commands]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--a=\"b c\" 'd e' f\\ g", [["--a=b c", "d e", "f g"]]),
        ("--a=1 \\\n  --b=2", [["--a=1", "--b=2"]]),
        ("--a=1\\\n--b=2", [["--a=1--b=2"]]),  # without a blank the lines grow together, in bash as well
        ("--a=1 ^\r\n  --b=2", [["--a=1", "--b=2"]]),
        ("--a=1 `\n  --b=2", [["--a=1", "--b=2"]]),
        ('--dir="C:\\data\\x" --b', [["--dir=C:\\data\\x", "--b"]]),
        ("cd x && python y.py --a; ls | wc", [["cd", "x"], ["python", "y.py", "--a"], ["ls"], ["wc"]]),
        ("--a=1 # a note --b=2\n--c=3", [["--a=1", "--c=3"]]),
        ("--a=x#y", [["--a=x#y"]]),
        ('--a="" --b', [["--a=", "--b"]]),
        ('--a="say \\"hi\\" \\$5"', [['--a=say "hi" $5']]),
        ("", []),
        ("   \n\t", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "shell", "expected"),
    [
        (
            '$a = 1\nx "D:\\a b\\" `"q`" "say ""hi""" \'it\'\'s\' # it\'s\n<# don\'t\nx #>',
            "PowerShell",
            ["x", "D:\\a b\\", '"q"', 'say "hi"', "it's"],
        ),
        ("@echo off\nREM don't\n:: it's\nx \"D:\\a b\\\" ^\"q it's 'a b'", "cmd.exe", ["x", "D:\\a b\\", '"q', "it's", "a b"]),
        ("# don't\nx 'D;\\a' \"b\\\"c\" d\\ e # it's", "bash", ["x", "D;\\a", 'b"c', "d e"]),
        ("set A=D:\\out\\\r\nx %A%", "cmd.exe", ["x", "%A%"]),
        ('x "D:\\a b\\" --b', "Windows", ["x", "D:\\a b\\", "--b"]),
    ],
)
def test_each_shell_has_its_own_quotes_and_comments(text, shell, expected):
    found = split(text)
    assert found.shell == shell
    assert expected in [command.words for command in found.commands]


@pytest.mark.parametrize("mark", ["\\", "^", "`", ""])
def test_windows_paths_are_quoted_for_each_shell(mark):
    before = {"\\": "", "^": "@echo off\n", "`": "$a = 1\n", "": "D:\\x "}[mark]
    for value in ("D:\\out\\", "D:\\my out\\", "a b", "512,512", "it's", "50%"):
        assert split(f"{before}x --y={quote(value, mark)} --z").commands[-1].words[-2:] == [f"--y={value}", "--z"]


def test_what_is_odd_is_noted():
    assert split('--a="x\n--b').unclosed == 1
    assert split("x\n--a='y").unclosed == 2
    assert split("a --b \\ \n --c").commands[0].trailing_space
    assert split("a --b \\ \n --c").commands[0].broken == 1
    assert split("a --b\n--c").commands[0].broken == 1
    assert split("--a=$LR --b='$LR' --c={x} --d=`ls`").commands[0].variables == {0, 2}
    assert split('!x --a="{lr}"').commands[0].variables == {1}
    assert split("--a=“x”").typographic
    assert not split('--a="“x”"').typographic
    assert split("--a='x' ^\n--b").single_quotes


@settings(max_examples=2000, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=12), max_size=5))
def test_quoted_words_come_back_here_and_in_bash(given_words):
    line = " ".join(quote(word) for word in given_words)
    assert shlex.split(line) == given_words
    assert [word for command in words(line) for word in command] == given_words


@pytest.mark.parametrize(
    "text",
    [
        *('a "b' * 40_000, '"' + "\\a" * 100_000, "'" * 200_001, "\\" * 200_000, "a\n--b " * 30_000, "^\n" * 100_000),
        *("$(" * 50_000, '"$(' * 30_000, "<<A\n" * 25_000, "`" * 99_999, "a=(" * 30_000, "$x = 1\n" + "(<#" * 30_000),
        *('@echo off\n"' + '\\"' * 50_000, 'D:\\ "' + '\\"a' * 50_000),
    ],
)
def test_no_text_takes_long(text):
    start = time.perf_counter()
    split(text)
    assert time.perf_counter() - start < 10
