"""The command line: `sdnb lab` opens the course, `sdnb course` runs all of it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from . import __version__, lessons


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="sdnb", description="A course that teaches, by measuring, how to fit Stable Diffusion training.")
    parser.add_argument("--version", action="version", version=f"sdnb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("lab", help="open the course in JupyterLab")
    command.add_argument("--folder", type=Path, help="where your copy of the notebooks goes (default: sdnb-course, or a checkout's own)")
    command.add_argument("--no-browser", action="store_true", help="print the address instead of opening it")
    command.set_defaults(run=lab)

    command = commands.add_parser("course", help="execute every notebook")
    command.add_argument("--out", type=Path, default=Path("build/course"), help="where the executed copies go (default: build/course)")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=course)

    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (OSError, ValueError, ImportError) as error:
        print(f"sdnb: {error}", file=sys.stderr)
        return 2


def lab(options: argparse.Namespace) -> int:
    """Start JupyterLab on the lessons: in place in a checkout, on a copy otherwise."""
    _need("jupyterlab")
    checkout = lessons.notebooks()[0].parent
    installed = checkout.parent == Path(__file__).resolve().parent
    folder = options.folder or (Path("sdnb-course") if installed else checkout)
    if folder.resolve() != checkout:
        copies = lessons.unpack(folder)
        kept = [copy.name for copy in copies if lessons.changed(copy)]
        print(f"{len(copies)} notebooks in {folder}" + (f"; yours, left as they are: {', '.join(kept)}" if kept else ""))
    first = f"/lab/tree/{lessons.notebooks()[0].name}"  # also in the address that is printed where no browser opens
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder.resolve()}", f"--LabApp.default_url={first}"]
    command += ["--no-browser"] if options.no_browser else []
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root is who one is in a container
    return subprocess.call(command)


def course(options: argparse.Namespace) -> int:
    """Execute every notebook and leave the executed copies; the status is 1 when a cell raised."""
    _need("nbclient")
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for lesson in lessons.notebooks():
        notebook = nbformat.read(lesson, as_version=4)
        start, error = time.perf_counter(), None
        try:
            NotebookClient(
                notebook,
                timeout=1200,
                kernel_name="python3",
                resources={"metadata": {"path": str(Path.cwd())}},
                record_timing=False,
                coalesce_streams=True,
                extra_arguments=["--log-level=ERROR"],
            ).execute()
        except CellExecutionError as raised:
            error = f"{raised.ename}: {raised.evalue}"
        partial = options.out / f"{lesson.name}.partial"
        nbformat.write(notebook, partial)
        partial.replace(options.out / lesson.name)
        results.append({"notebook": lesson.name, "seconds": round(time.perf_counter() - start, 1), "error": error})
        if not options.json:
            print(f"{lesson.name}  {results[-1]['seconds']} s  {error or 'ok'}", flush=True)
    if options.json:
        print(json.dumps(results, indent=1))
    return int(any(result["error"] for result in results))


def _need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ImportError(f'this needs {module}: pip install "sdnb[lab]"')


if __name__ == "__main__":
    sys.exit(main())
