"""`Certificate`: a page with the scores of the capstone, complete in one HTML file, for a screen and for A4 paper."""

from __future__ import annotations

import datetime
import html
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__
from ..system import files
from .tries import PARTS, UNITS, WORDS

PASSED = 60
"""Points from which the page says that the capstone was passed."""
TITLES = {
    "diagnose": "Read the log",
    "plan": "Planned a run that fits",
    "choose": "Knew what each lever does",
    "train": "Trained a LoRA",
    "export": "Made a file that loads elsewhere",
    "defend": "Explained the result",
}
SIMULATED = (
    "Memory and arithmetic for SDXL are predictions; no card ran it. The run that was measured trained tiny, a model of 8 million "
    "parameters, on a CPU. The scores were computed on the reader's own machine, and nobody has checked them. Made with"
)
STYLE = """
.sdnb-certificate { box-sizing: border-box; max-width: 46rem; margin: 1rem auto; padding: 2rem 2.4rem; border: 3px double #0072B2;
  font: 1rem/1.5 Georgia, "Noto Serif", serif; background: #ffffff; color: #1a1a1a; }
.sdnb-certificate h1 { font-size: 1.7rem; margin: 0 0 .2rem; color: inherit; }
.sdnb-certificate .who { font-size: 1.5rem; margin: .4rem 0; overflow-wrap: anywhere; }
.sdnb-certificate table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: .95rem; color: inherit; background: none; }
.sdnb-certificate th, .sdnb-certificate td { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid #b8b8b8; color: inherit;
  background: none; }
.sdnb-certificate .number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.sdnb-certificate pre { font: .68rem/1.4 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 .8rem;
  padding: .5rem; border: 1px solid #b8b8b8; background: none; color: inherit; }
.sdnb-certificate small { display: block; color: #555555; }
@media screen and (prefers-color-scheme: dark) {
  .sdnb-certificate { background: #1c1f23; color: #eceff1; border-color: #56B4E9; }
  .sdnb-certificate small { color: #b0b8bf; }
}
@page { size: A4; margin: 14mm; }
@media print {
  .sdnb-certificate { margin: 0; max-width: none; padding: 1rem 1.4rem; border-color: #0072B2; background: #ffffff; color: #1a1a1a;
    font-size: 10.5pt; }
  .sdnb-certificate table { margin: .5rem 0; font-size: 10pt; }
}
"""


@dataclass(frozen=True, repr=False)
class Certificate:
    """The page, as HTML; or what it waits for. Displayed when it is the last value of a notebook cell."""

    body: str = ""
    """HTML of the certificate alone."""
    summary: str = ""
    waits: str = ""
    path: Path | None = None
    """File that it was written to, if it was."""

    def html(self) -> str:
        """The whole page, which needs no other file."""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
            '<meta name="color-scheme" content="light dark">\n<title>Capstone of the sdnb course</title>\n'
            f"<style>{STYLE}body {{ margin: 0; }}</style>\n</head>\n<body>\n{self.body}\n</body>\n</html>\n"
        )

    def written(self, path: Path) -> Certificate:
        """Write the page to `path` and return the certificate that knows it. Raises `OSError` where nothing can be written."""
        files.write(path, self.html())
        return Certificate(self.body, f"{self.summary} Written to {path.name}; open it in a browser to print it.", path=path)

    def _repr_html_(self) -> str | None:
        if self.waits:
            return None
        return f"<style>{STYLE}</style>{self.body}<p>{html.escape(self.summary)}</p>"

    def __repr__(self) -> str:
        return f"… the certificate waits: {self.waits}" if self.waits else self.summary


def page(name: str, best: Mapping[str, Mapping], reference: Mapping[str, float]) -> Certificate:
    """Certificate for `name` of the best try of each part, as `tries.best` returns them."""
    total = sum(best[part]["points"] for part in PARTS)
    day = datetime.date.today().isoformat()
    verdict = "has passed the capstone of the course" if total >= PASSED else "has worked through the capstone of the course"
    rows = "".join(
        f'<tr><td>{TITLES[part]}</td><td class="number">{best[part]["points"]:g}</td><td class="number">of {of}</td></tr>'
        for part, of in PARTS.items()
    )
    rows += f'<tr><th>Together</th><th class="number">{total:g}</th><th class="number">of {sum(PARTS.values())}</th></tr>'
    measured = "".join(
        f'<tr><td>{WORDS[measure]}</td><td class="number">{value:.4g} {UNITS[measure]}</td>'
        f'<td class="number">{reference[measure]:.4g} {UNITS[measure]}</td></tr>'
        for part in ("plan", "train")
        for measure, value in best[part]["measures"].items()
        if measure in WORDS
    )
    body = (
        '<div class="sdnb-certificate">\n<small>sdnb: diffusion training on the GPU you have</small>\n<h1>Capstone</h1>\n'
        f'<p class="who">{html.escape(name)}</p>\n'
        f"<p>{verdict}, with <strong>{total:g} of {sum(PARTS.values())} points</strong>, on {day}.</p>\n"
        f"<table>{rows}</table>\n"
        '<table><tr><th>Measure</th><th class="number">here</th><th class="number">reference</th></tr>'
        f"{measured}</table>\n"
        f"<p>The command that was planned:</p><pre>{html.escape(best['plan']['settings'])}</pre>\n"
        f"<p>The run on tiny:</p><pre>{html.escape(best['train']['settings'])}</pre>\n"
        f"<small>{html.escape(SIMULATED)} {html.escape(_versions())}.</small>\n</div>"
    )
    return Certificate(body, f"{name}: {total:g} of {sum(PARTS.values())} points, {day}.")


def _versions() -> str:
    found = [f"sdnb {__version__}", f"Python {platform.python_version()}"]
    for package in ("torch", "diffusers", "peft"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
