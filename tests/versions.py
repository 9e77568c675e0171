"""The package and its lessons on the versions that readers have, each in an environment of its own without extras.

    python -m tests.versions                  # all three sets; what `make versions` runs
    python -m tests.versions colab            # one of them

`colab` has the versions of Colab's image (constraints-colab.txt), `lowest` the lowest that pyproject.toml allows, `newest` the newest of
everything. Each environment, in build/versions/, gets the wheel of this tree, so nothing of the checkout itself is found. In it run
tests/journey.py, the README's examples and commands, and every cell of every notebook, one after the other as a reader would. Outputs are
not compared: they are those of constraints.txt.

Environments are made by uv and kept; one is made anew when what it is made from has changed. The last lines say what each part took.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from .test_readme import FAMOUS, SHORTER, after, blocks, commands

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "build" / "versions"
KERNEL = "ipykernel>=6.17"


@dataclass(frozen=True)
class Versions:
    """One set of versions."""

    python: str
    install: tuple[str, ...]
    """Arguments of `uv pip install`, beside the dependencies of pyproject.toml."""
    fixed: bool = True
    """Whether the same arguments give the same versions, as far as the package names them."""


SETS = {
    # torchao, torchvision and scipy are not needed; they are there, and diffusers, transformers and peft look at them
    "colab": Versions("3.13", ("--constraint", "constraints-colab.txt", "ipykernel", "ipython", "torchao", "torchvision", "scipy")),
    "lowest": Versions("3.11", ("--resolution", "lowest-direct", KERNEL)),
    "newest": Versions("3.13", ("--upgrade", "ipykernel"), fixed=False),
}


def uv(*words: str, **kwargs) -> subprocess.CompletedProcess:
    """Run uv, which comes with the `dev` extra; raises `CalledProcessError` where it fails."""
    return subprocess.run([sys.executable, "-m", "uv", *words], check=True, cwd=ROOT, **kwargs)


def interpreter(version: str) -> str:
    """An interpreter of that version, or this one, with a line that says so, where there is none."""
    places = [f"python{version}", *sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))]
    for place in places:
        found = shutil.which(place)
        if found and subprocess.run([found, "--version"], capture_output=True).returncode == 0:  # a shim may lead nowhere
            return found
    print(f"no Python {version} here: {sys.version.split()[0]} instead", flush=True)
    return sys.executable


def environment(name: str, wheel: Path) -> Path:
    """The interpreter of the environment, made if need be, with this tree's wheel in it."""
    chosen, folder = SETS[name], HOME / name
    sources = [ROOT / word for word in chosen.install if word.endswith(".txt")]
    told = json.dumps([chosen.python, chosen.install, *(path.read_text() for path in (ROOT / "pyproject.toml", *sources))])
    stamp, digest = folder / ".made", hashlib.sha256(told.encode()).hexdigest()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not chosen.fixed or not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        uv("venv", "--quiet", "--python", interpreter(chosen.python), str(folder))
        uv("pip", "install", "--quiet", "--python", str(python), "--requirements", "pyproject.toml", *chosen.install)
        stamp.write_text(digest)
    uv("pip", "install", "--quiet", "--python", str(python), "--no-deps", "--reinstall", str(wheel))
    return python


def surroundings(python: Path, folder: Path) -> dict[str, str]:
    """Environment variables for what runs there: its programs first, no network, one thread for each of two things at a time."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    path = os.pathsep.join([str(python.parent), kept.get("PATH", "")])
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    return {"OMP_NUM_THREADS": threads, **kept, "PATH": path, "HF_HUB_OFFLINE": "1", "JUPYTER_PATH": str(folder)}


def journey(python: Path, variables: dict[str, str], folder: Path) -> list[str]:
    """Failures of tests/journey.py."""
    script = shutil.copy(ROOT / "tests" / "journey.py", folder)  # beside the tests lies the package's source
    done = subprocess.run([python, script], cwd=folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(done.stdout, flush=True)
    return [f"journey: status {done.returncode}"] if done.returncode else []


def readme(python: Path, variables: dict[str, str], folder: Path) -> list[str]:
    """Failures of the README's examples, run as one program, and of those of its commands that train nothing and open nothing."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    program = "\n".join(blocks(text, "python"))
    for long, short in SHORTER.items():
        program = program.replace(long, short)
    (folder / "recipe.toml").write_text(FAMOUS)
    runs = [[str(python), "-c", program]]
    runs += [["sdnb", *words] for line in commands(text) if (words := after(line, "sdnb")) and words[0] in ("doctor", "plan", "fit")]
    failures = []
    for words in runs:
        # `sdnb doctor` alone reads what a pipe brings
        done = subprocess.run(words, cwd=folder, env=variables, text=True, input=FAMOUS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode not in (0, 1 if words[0] == "sdnb" else 0):
            shown = shlex.join(words) if words[0] == "sdnb" else "the README's examples"
            failures.append(f"{shown}: status {done.returncode}\n{done.stdout}")
    return failures


def lesson(path: Path, python: Path, variables: dict[str, str]) -> tuple[list[str], float]:
    """Errors of the cells of a notebook, all of which are run, and the seconds that took."""
    notebook, start = nbformat.read(path, as_version=4), time.perf_counter()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        client = NotebookClient(notebook, timeout=1200, kernel_name="python3", allow_errors=True, coalesce_streams=True)
        try:
            client.execute(env=variables, cwd=folder)
        except DeadKernelError:
            return [f"{path.name}: the kernel died"], time.perf_counter() - start
    errors = [
        f"{path.name}[{place}] {output.ename}: {output.evalue}"
        for place, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    return errors, time.perf_counter() - start


def lessons(python: Path, variables: dict[str, str], jobs: int = 2) -> list[str]:
    """Errors of all notebooks, two at a time."""
    paths, failures = sorted((ROOT / "notebooks").glob("*.ipynb")), []
    with ThreadPoolExecutor(jobs) as pool:
        for path, (errors, seconds) in zip(paths, pool.map(lambda path: lesson(path, python, variables), paths), strict=True):
            print(f"{path.stem}: {f'{len(errors)} cells in error' if errors else 'passed'} in {seconds:.0f} s", flush=True)
            failures += errors
    return failures


def run(name: str, wheel: Path) -> tuple[list[str], dict[str, float]]:
    """What failed on one set of versions, and the seconds each part took."""
    seconds, failures, start = {}, [], time.perf_counter()
    python = environment(name, wheel)
    seconds["install"] = time.perf_counter() - start
    listing = "import platform; from importlib.metadata import version as v\n"
    names = "torch diffusers transformers accelerate peft ipywidgets ipykernel numpy matplotlib".split()
    listing += f"print('Python', platform.python_version(), *[f'{{n}} {{v(n)}}' for n in {names}], sep=', ')"
    print(f"{name}: {subprocess.run([python, '-c', listing], capture_output=True, text=True, check=True).stdout.strip()}", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place)
        kernel = folder / "kernels" / "python3" / "kernel.json"
        kernel.parent.mkdir(parents=True)
        command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        kernel.write_text(json.dumps({"argv": command, "display_name": name, "language": "python"}))
        variables = surroundings(python, folder)
        os.environ["JUPYTER_PATH"] = str(folder)  # for nbclient, which looks for the kernel here
        for part in (journey, readme):
            start = time.perf_counter()
            failures += part(python, variables, folder)
            seconds[part.__name__] = time.perf_counter() - start
        start = time.perf_counter()
        failures += lessons(python, variables)
        seconds["lessons"] = time.perf_counter() - start
    return failures, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; all unless named")
    chosen = parser.parse_args().sets or list(SETS)
    if unknown := [name for name in chosen if name not in SETS]:
        parser.error(f"no set {', '.join(unknown)}: there are {', '.join(SETS)}")
    HOME.mkdir(parents=True, exist_ok=True)
    lines, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        uv("build", "--quiet", "--wheel", "--out-dir", folder)
        (wheel,) = Path(folder).glob("*.whl")
        for name in chosen:
            failures, seconds = run(name, wheel)
            took = ", ".join(f"{part} {value:.0f} s" for part, value in seconds.items())
            lines.append(f"{name}: {f'{len(failures)} FAILED' if failures else 'passed'}: {took}")
            failed += len(failures)
            print("\n".join(failures), flush=True)
    print("\n".join(lines))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
