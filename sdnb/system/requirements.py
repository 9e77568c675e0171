"""Versions of Python and other packages that sdnb needs, from its own metadata, and how to install what is missing."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from urllib.parse import urlsplit
from urllib.request import url2pathname

from . import files


@functools.cache
def check() -> None:
    """Raise `ImportError`, with the command that helps, if Python or a package is missing or outside the range that sdnb needs.

    A pre-release counts as its release. An uninstalled checkout has no metadata, and is not checked.
    """
    try:
        own_metadata = metadata.metadata("sdnb")
    except metadata.PackageNotFoundError:
        return
    needed = [line for line in own_metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ImportError:  # transformers and accelerate depend on it
        raise ImportError(f"this needs packages that are not installed, packaging among them: {_pip(['packaging', *needed])}") from None
    python = ".".join(map(str, sys.version_info[:3]))
    if python not in SpecifierSet(own_metadata["Requires-Python"]):
        raise ImportError(f"this needs Python {own_metadata['Requires-Python']}, and runs on {python}: install it in a newer one")
    requirements = map(Requirement, needed)
    faults = {f"{needs.name}{needs.specifier}": fault for needs in requirements if (fault := _fault(needs))}
    if faults:
        raise ImportError(f"this needs {'; '.join(f'{name}, {fault}' for name, fault in faults.items())}: {_pip(faults)}")


def extra(name: str) -> str:
    """The command that installs what an extra of sdnb needs, such as `lab`.

    It names the checkout, the file or the address that sdnb came from. A bare `sdnb` would have pip look for it on a package index,
    where anybody may own that name; where nothing tells the source, the packages of the extra are named instead.
    """
    checkout = files.PACKAGE.parent
    if (checkout / "pyproject.toml").exists():
        return f'pip install "{checkout}[{name}]"'
    ours = metadata.distribution("sdnb")
    came = json.loads(ours.read_text("direct_url.json") or "{}")
    url, revision = came.get("url", ""), came.get("vcs_info", {})
    if url.startswith("file:") and not revision:
        return f'pip install "{url2pathname(urlsplit(url).path)}[{name}]"'
    if revision:
        url = f"{revision['vcs']}+{url}@{revision['commit_id']}"
    if url:
        return f'pip install "sdnb[{name}] @ {url}"'
    needed = [line.partition(";")[0].strip() for line in ours.requires or [] if re.search(rf"""extra == ['"]{name}['"]""", line)]
    return "pip install " + " ".join(f'"{package}"' for package in needed)


def _fault(requirement) -> str | None:
    """Fault of a `Requirement`'s installed version; None if it is in range, or not needed on this system."""
    from packaging.version import InvalidVersion, Version

    if requirement.marker and not requirement.marker.evaluate():
        return None
    try:
        installed = metadata.version(requirement.name)
        return None if Version(installed).base_version in requirement.specifier else f"but {installed} is installed"
    except (metadata.PackageNotFoundError, TypeError):  # TypeError: no version, as an interrupted pip leaves it
        return "which is not installed"
    except InvalidVersion:
        return None


def _pip(packages: Iterable[str]) -> str:
    """Command that installs packages."""
    return "pip install " + " ".join(f'"{package}"' for package in packages) + ", then restart Python"


def is_missing(package: str) -> bool:
    """Whether a package that this one can do without is not installed."""
    return importlib.util.find_spec(package) is None
