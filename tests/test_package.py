"""The package as a whole: cheap to import, imports one way, described, pinned in one place, complete when installed."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml

import sdnb

from .conftest import ROOT

# The rooms in reading order: each may import those above it.
ROOMS = (
    "wording disk kernel findings arguments shell messages logs guifields gui settings printing commandlines configs reading keywords "
    "outcome refusals conditions recipe supported losses noises factoring adafactor fused scratch metaops memory gauges "
    "operators inputs recompute frontier checkpointing buckets datasets picture data weights shapes hub singlefile models devices loading "
    "adapters lorakeys loranotes lora schedules optim stored captions cache packing claims saves trained launching keeping training "
    "history panels plots skeletons cards allocator pretend tape optimizer_steps plans planner fitting headroom measurements running jobs "
    "pacing interrupts frontends watching recordings rules doctor editions lessons exercises links pages course __main__"
).split()
HEAVY = {"tomlkit", "torch", "diffusers", "transformers", "accelerate", "matplotlib", "numpy", "PIL"}


def run(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, **kwargs).stdout


def test_importing_is_cheap():
    code = "import sys, sdnb; sdnb.Recipe(); sdnb.pictures; sdnb.check; sdnb.load; sdnb.diagnose('--seed=1'); print(*sys.modules)"
    assert HEAVY & set(run(code).split()) == set()


def test_the_command_line_is_cheap():
    code = "import sys; from sdnb.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    assert HEAVY & set(run(code).split()) == set()


def test_the_rooms_are_all_listed():
    assert sorted(ROOMS) == sorted(path.stem for path in (ROOT / "sdnb").glob("*.py") if path.stem != "__init__")
    assert set(sdnb._ROOMS) == set(ROOMS) - {"__main__"}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    tree = ast.parse((ROOT / "sdnb" / f"{room}.py").read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            imported |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    later = ROOMS[ROOMS.index(room) :]
    # a chart draws Steps that it is handed: the type checker may know their class, nothing else
    assert imported & set(later) == set()


def test_public_names_resolve_and_are_described():
    assert set(sdnb.__all__) <= set(dir(sdnb))
    for name in sdnb.__all__:
        value = getattr(sdnb, name)
        assert name == "__version__" or inspect.getdoc(value), name
    with pytest.raises(AttributeError, match=r"no attribute 'lod': did you mean 'load'\?$"):
        _ = sdnb.lod
    with pytest.raises(AttributeError, match=r"no attribute 'xyzzy'$"):
        _ = sdnb.xyzzy


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "__main__"])
def test_public_functions_are_described(room):
    module = importlib.import_module(f"sdnb.{room}")
    assert module.__doc__
    for name, value in vars(module).items():
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and inspect.isroutine(value):
            assert inspect.getdoc(value), f"{room}.{name}"


def requirements(lines):
    found = {}
    for line in lines:
        name, specifier = re.match(r"([A-Za-z0-9_-]+)(.*)", line).groups()
        found[name.lower().replace("_", "-").replace("pytorch", "torch")] = specifier
    return found


def test_the_three_lists_of_packages_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    course = requirements([*project["dependencies"], *extras["lab"]])

    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    named = requirements([line for line in conda if isinstance(line, str)])
    assert named.pop("python") == project["requires-python"]
    named.pop("pip")
    assert named == course
    assert {"jupyterlab", "torch", "diffusers", "transformers", "accelerate", "ipywidgets", "matplotlib"} <= set(named)

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = requirements([line for line in lines if line and not line.startswith("#")])
    assert pins["torch"] == "==2.13.0"
    assert [name for name in [*course, *requirements([*extras["dev"], *extras["bench"]])] if not pins.get(name, "").startswith("==")] == []
    for name, floor in {**course, **requirements(extras["dev"])}.items():
        lowest, pinned = (tuple(map(int, re.findall(r"\d+", text))) for text in (floor, pins[name]))
        assert lowest <= pinned, name


@pytest.mark.slow
def test_the_wheel_holds_the_whole_course(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import sdnb; from sdnb import lessons\n"
        "print(sdnb.__file__, sdnb.data.bundled(), *lessons.notebooks(), *lessons.notebooks('zh'), sep='\\n')\n"
        "assert sdnb.diagnose('--lr_warmup_steps=100').raises\n"
        "print(sdnb.load('tiny').draw('a cat', steps=1).size, len(sdnb.pictures('emoji')), len(sdnb.pictures('emoji-ink')))"
    )
    *paths, last = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout.splitlines()
    assert all(path.startswith(str(tmp_path / "site")) for path in paths)
    assert len(paths) == 2 + len([*(ROOT / "notebooks").glob("[0-9]*.ipynb"), *(ROOT / "notebooks").glob("zh/*.ipynb")])
    assert last == "(64, 64) 256 64"


def test_the_project_names_no_machine():
    hosts = re.compile(r"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian|/(root|home/\w+)/")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() if listed.returncode == 0 else []
    texts = {n: (ROOT / n).read_text(encoding="utf-8") for n in names if n.endswith((".py", ".md", ".ipynb", ".yml", ".toml", ".txt"))}
    assert [name for name, text in texts.items() if hosts.search(text) and name != "tests/test_package.py"] == []
