"""The package as a whole: cheap to import, imports one way, described, pinned in one place, complete when installed."""

import ast
import importlib
import inspect
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import types
import zipfile

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import sdnb
from sdnb.system.faces import MOVED

from .conftest import ROOT

LAYERS = (
    "system",
    "memory inputs sections adafactor",
    "losses checkpointing sd_scripts plots",
    "models recipe",
    "datasets saves schedules fused",
    "training optim lora",
    "prepare watch",
    "planner",
    "doctor",
    "trainer",
    "course",
    "jobs",
    "train_command",
    "__main__",
)
"""The files and folders of the package. Each may import those of the layers above its own in this list."""
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
PLACES = {path: path.relative_to(ROOT / "sdnb").with_suffix("").parts for path in sorted((ROOT / "sdnb").rglob("*.py"))}
ROOMS = [".".join(parts) for parts in PLACES.values() if parts[-1] != "__init__"]
"""Every module, by its dotted name below `sdnb`."""
HEAVY = {"tomlkit", "torch", "diffusers", "transformers", "accelerate", "matplotlib", "numpy", "PIL"}


def run(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, **kwargs).stdout


def test_importing_is_cheap():
    code = "import sys, sdnb; sdnb.Recipe(); sdnb.pictures; sdnb.check; sdnb.load; sdnb.diagnose('--seed=1'); print(*sys.modules)"
    assert HEAVY & set(run(code).split()) == set()


def test_the_command_line_is_cheap():
    code = "import sys; from sdnb.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    assert HEAVY & set(run(code).split()) == set()


def test_the_package_looks_small():
    files, folders = {parts[0] for parts in PLACES.values() if len(parts) == 1}, {parts[0] for parts in PLACES.values() if len(parts) > 1}
    assert len(files) <= 16
    assert len(folders) <= 12
    assert (files | folders) - {"__init__"} == set(LEVELS)
    for folder in folders:
        assert len((ROOT / "sdnb" / folder / "__init__.py").read_text(encoding="utf-8").splitlines()) < 40


def imported(path):
    """What a module imports from the rest of the package: the file or folder, the names, and whether for the type checker alone."""
    tree, depth = ast.parse(path.read_text(encoding="utf-8")), len(PLACES[path])
    checked = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [alias.name for alias in node.names]
            for target, *taken in [node.module.split(".") + names] if node.module else [[name] for name in names]:
                yield target, taken, id(node) in checked


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(PLACES[path]))
def test_imports_point_one_way_and_through_faces(path):
    parts = PLACES[path]
    for target, names, for_the_checker in imported(path):
        if parts == ("__init__",) or target not in LEVELS or (parts[-1] == "__init__" and names == ["faces", "face"]):
            continue
        # a chart draws Steps that it is handed: the type checker may know their class, nothing else
        assert for_the_checker or LEVELS[target] < LEVELS[parts[0]], f"imports {target}"
        if (ROOT / "sdnb" / target).is_dir():
            assert set(names) <= set(importlib.import_module(f"sdnb.{target}").__all__), f"{target} does not show {names}"


def test_every_face_shows_what_there_is():
    for folder in {parts[0] for parts in PLACES.values() if len(parts) > 1}:
        face = importlib.import_module(f"sdnb.{folder}")
        for name in face.__all__:
            assert getattr(face, name) is not None, f"{folder}.{name}"
        with pytest.raises(AttributeError, match="no attribute 'xyzzy'"):
            _ = face.xyzzy


@pytest.mark.parametrize("old", MOVED)
def test_a_module_that_has_moved_is_found_by_its_old_name(old):
    sys.modules.pop(f"sdnb.{old}", None)
    with pytest.warns(FutureWarning, match=f"sdnb.{old} is sdnb.{MOVED[old]} now"):
        module = importlib.import_module(f"sdnb.{old}")
    assert module is importlib.import_module(f"sdnb.{MOVED[old]}")
    vars(sdnb).pop(old)
    sys.modules.pop(f"sdnb.{old}")


def test_what_a_module_held_that_is_a_folder_now_is_found():
    with pytest.warns(FutureWarning, match=r"sdnb\.planner\.DTYPES is sdnb\.planner\.planning\.DTYPES now"):
        _ = sdnb.planner.DTYPES


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
        name, specifier = re.match(r"([A-Za-z0-9_-]+)(\S*)", line).groups()
        found[name.lower().replace("_", "-").replace("pytorch", "torch")] = specifier
    return found


def test_the_three_lists_of_packages_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    course = requirements([*project["dependencies"], *extras["lab"]])

    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    named = requirements([line for line in conda if isinstance(line, str)])
    assert SpecifierSet(project["requires-python"]).contains(re.fullmatch(r"=(3\.\d+)", named.pop("python"))[1])
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


def tracked():
    """The files that git knows; none where this is not a checkout of it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return listed.stdout.splitlines() if listed.returncode == 0 else []


@pytest.mark.slow
def test_the_source_distribution_has_every_file_and_the_wheel_made_from_it_the_whole_course(tmp_path):
    build = [sys.executable, "-m", "build", "--installer", "uv", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert [name for name in tracked() if name not in packed and (ROOT / name).exists()] == []
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        archive.extractall(tmp_path / "site")
    code = f"""
import subprocess, sys
sys.path.insert(0, {str(tmp_path / "site")!r})
import sdnb
from importlib import metadata
from sdnb import __main__
from sdnb.course import lessons

print(sdnb.__file__, sdnb.datasets.bundled(), *lessons.notebooks(), *lessons.notebooks("zh"), sep="\\n")
assert metadata.distribution("sdnb").locate_file("").samefile({str(tmp_path / "site")!r})
assert metadata.metadata("sdnb")["Author"] == "sdnb maintainers"
assert "](docs/live.png)" in metadata.metadata("sdnb").get_payload() or metadata.metadata("sdnb").get_all("Project-URL")
assert sdnb.diagnose("--lr_warmup_steps=100").raises
assert sdnb.plan("tiny", gpu="t4").fits and sdnb.fit("tiny", "t4")
subprocess.call = lambda command: print(f"opens {{command[-1]}}") or 0
__main__.main(["lab", "--folder", "course", "--no-browser"])
print(sdnb.load("tiny").draw("a cat", steps=1).size, len(sdnb.pictures("emoji")), len(sdnb.pictures("emoji-ink")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *paths, copied, opened, last = done.stdout.splitlines()
    assert all(path.startswith(str(tmp_path / "site")) for path in paths)
    assert len(paths) == 2 + len([*(ROOT / "notebooks").glob("[0-9]*.ipynb"), *(ROOT / "notebooks").glob("zh/*.ipynb")])
    notebooks = [*(ROOT / "notebooks").glob("*.ipynb")]  # the lessons and the recorder; the glossary comes with them
    assert copied == f"{len(notebooks) + 1} files in course"
    assert opened.startswith("opens --")
    assert last == "(64, 64) 256 64"


@pytest.fixture
def readme_for_an_index(monkeypatch):
    """The README as Hatch puts it into the metadata, for the given urls; hatchling itself need not be installed."""
    interface = types.SimpleNamespace(MetadataHookInterface=object)
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))["Readme"]()
    hook.root = str(ROOT)

    def read(**urls):
        metadata = {"urls": urls}
        hook.update(metadata)
        assert metadata["readme"]["content-type"] == "text/markdown"
        return metadata["readme"]["text"]

    return read


def test_on_a_package_index_pictures_and_links_lead_to_the_repository(readme_for_an_index):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_for_an_index() == text
    made = readme_for_an_index(Repository="https://github.com/o/r")
    relative = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https:|#", target)]
    targets = re.findall(r"\]\(([^)\s]+)\)", made)
    assert len(relative) > 15
    assert [target for target in targets if not re.match(r"https:|#", target)] == []
    assert "](https://github.com/o/r/raw/HEAD/docs/live.png)" in made
    assert "](https://github.com/o/r/blob/HEAD/docs/contributing.md#a-lesson)" in made
    for target in targets:
        if inside := re.match(r"https://github\.com/o/r/(?:raw|blob)/HEAD/([^#]+)", target):
            assert (ROOT / inside[1]).exists()
    code = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    assert code.findall(made) == code.findall(text)


def test_the_project_names_no_machine():
    hosts = re.compile(r"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian|/(root|home/\w+)/")
    texts = {n: (ROOT / n).read_text(encoding="utf-8") for n in tracked() if n.endswith((".py", ".md", ".ipynb", ".yml", ".toml", ".txt"))}
    assert [name for name, text in texts.items() if hosts.search(text) and name != "tests/test_package.py"] == []
