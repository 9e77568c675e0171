"""The README and the pages in docs/: their examples run, their commands are taken, their links and pictures are there."""

import ast
import importlib
import re
import shlex
import sys
import tomllib

import pytest
import yaml
from PIL import Image

import sdnb
from sdnb import __main__ as command_line
from sdnb import train_command
from sdnb.course import command

from .conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
SHORTER = {"steps=300": "steps=2", "steps=200": "steps=2", "save_every=100": "save_every=1"}
"""What makes an example's training short; everything else runs as it is written."""
FAMOUS = 'optimizer_type = "Adafactor"\nmax_grad_norm = 0\nlr_scheduler = "constant_with_warmup"\nlr_warmup_steps = 100\n'


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """Every line of its shell examples, without comments, and every `command` in its prose that begins with a program."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`((?:sdnb|make|python -m|python docs|pip|conda|[A-Z_]+=\w+ python)\s[^`]+)`", prose)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


ALL_COMMANDS = [words for text in TEXTS.values() for words in commands(text)]


def after(words, start):
    """What follows `start` in a command; nothing where it is not in it."""
    return words[words.index(start) + 1 :] if start in words else []


# examples


@pytest.mark.filterwarnings("ignore:the warmup takes 100 steps and the run has 2")
@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if blocks(text, "python")])
def test_the_examples_of_a_page_run_from_top_to_bottom(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    there = {}
    for number, block in enumerate(blocks(TEXTS[name], "python"), 1):
        for long, short in SHORTER.items():
            block = block.replace(long, short)
        training = [call for call in ast.walk(ast.parse(block)) if isinstance(call, ast.Call) and ast.unparse(call.func) == "sdnb.train"]
        assert all("steps=2" in ast.unparse(call) for call in training), f"example {number}: a run that SHORTER leaves long"
        exec(compile(block, f"{name}, example {number}", "exec"), there)
    if name == "README.md":
        assert sdnb.load("my-model").draw("a cat", steps=1).size == (64, 64)
        assert there["trace"].peak_bytes <= there["budget"].bytes + 16 * 2**20  # the budget has no optimizer's state in it
        assert there["plan"].fits
        assert there["diagnosis"].raises
        assert "ValueError" in capsys.readouterr().out


def test_what_shortens_examples_is_in_them():
    python = "".join(block for text in TEXTS.values() for block in blocks(text, "python"))
    assert [long for long in SHORTER if long not in python] == []


# commands


SDNB = list(dict.fromkeys(tuple(words) for command in ALL_COMMANDS if (words := after(command, "sdnb"))))


@pytest.mark.parametrize("words", SDNB, ids=" ".join)
def test_commands_of_sdnb_are_taken(words, tmp_path, monkeypatch, capsys):
    """doctor, plan, fit, explore and timeline run; of the others, which train or open a browser, the arguments are read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    for name in ("settings.toml", "recipe.toml", "logs/settings.toml"):
        (tmp_path / name).write_text(FAMOUS)
    monkeypatch.setattr(sys, "stdin", (tmp_path / "settings.toml").open())
    runs = words[0] in ("doctor", "plan", "fit", "explore", "timeline")
    if not runs:
        home = train_command if words[0] == "train" else command
        monkeypatch.setattr(home, f"run_{words[0]}", lambda options: 0)
    status = command_line.main(list(words))
    assert status in ((0, 1, 3) if runs else (0,))
    assert capsys.readouterr().out or not runs


def test_there_are_commands_of_every_kind():
    assert {words[0] for words in SDNB} >= {"lab", "course", "doctor", "plan", "fit", "train"}


BENCHMARKS = sorted({tuple(words[words.index("-m") + 1 :]) for words in ALL_COMMANDS if any(w.startswith("benchmarks.") for w in words)})


@pytest.mark.parametrize("words", BENCHMARKS, ids=" ".join)
def test_benchmarks_take_the_arguments_they_are_given(words, monkeypatch, capsys):
    module, *arguments = words
    monkeypatch.setattr(sys, "argv", [module, *arguments, "--help"])  # what stands before it is looked at first
    with pytest.raises(SystemExit) as left:
        importlib.import_module(module).main()
    assert left.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_make_has_the_targets():
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = {word for words in ALL_COMMANDS if words[0] == "make" for word in words[1:]}
    named |= {word for text in TEXTS.values() for word in re.findall(r"`make ([a-z-]+)`", text)}
    assert {"lab", "test"} <= named <= set(rules)


def test_files_that_commands_name_are_there():
    paths = [
        word for words in ALL_COMMANDS for word in words if re.fullmatch(r"(tests|docs|notebooks|benchmarks)/\S+|\w+\.(yml|txt)", word)
    ]
    assert "environment.yml" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
    selected = [(words, words[words.index("-k") + 1]) for words in ALL_COMMANDS if "-k" in words]
    for words, word in selected:
        (path,) = (ROOT / each for each in words if each.startswith("tests/"))
        assert re.search(rf"def test_\w*{word}", path.read_text(encoding="utf-8"))


def test_the_environments_have_the_names_they_are_called_by():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r'"\.\[(\w+)\]"', TEXTS["README.md"])) == {"lab"} <= set(extras)
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert re.findall(r"conda activate (\w+)", TEXTS["README.md"]) == [conda["name"]]
    pinned = re.findall(r"^torch==.*", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"torch==[\d.]+", TEXTS["README.md"]) == pinned


# links, pictures, tables


def anchors(text):
    """The names under which GitHub lets headings be linked to."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    for target in targets:
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            led = path.parent / file if file else path
            assert led.exists(), target
            assert not anchor or anchor in anchors(led.read_text(encoding="utf-8")), target


def test_pictures_are_there_and_described():
    pictures = [(path, alt, target) for path in PAGES for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", path.read_text("utf-8"))]
    assert len(pictures) >= 2
    for path, alt, target in pictures:
        with Image.open(path.parent / target) as picture:
            assert picture.width >= 600
        assert len(alt.split()) > 12, alt  # it says what is to be seen, and not what the file is called
    shown = {(path.parent / target).resolve() for path, _, target in pictures}
    assert {path.resolve() for path in (ROOT / "docs").glob("*.png")} == shown


def test_every_lesson_is_in_the_table():
    listed = re.findall(r"^\| \[(\w+)\]\(notebooks/(\w+)\.ipynb\)", TEXTS["README.md"], re.MULTILINE)
    assert listed == [(path.stem, path.stem) for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]


@pytest.mark.parametrize(("name", "title"), [("README.md", "Measured"), ("docs/measured.md", "All measurements")])
def test_every_measured_table_has_its_command(name, title):
    """Between a table and the table before it there is a command that prints it."""
    text = TEXTS[name].partition(f"# {title}\n")[2]
    text = text if name != "README.md" else re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
    above = re.split(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)[:-1]
    assert len(above) >= 4
    for words in above:
        assert re.search(r"`(\w+=\w+ )?python -m (benchmarks|pytest)", words), words


def test_the_first_screen_has_what_a_reader_looks_for():
    first = TEXTS["README.md"].partition("## The lessons")[0]
    for part in ("docs/before_after.png", "docs/live.png", "make lab", "make test", "Colab"):
        assert part in first
    assert len(first.splitlines()) < 40
