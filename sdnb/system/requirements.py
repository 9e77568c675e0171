"""The versions of Python and of other packages that sdnb needs, as its own metadata states them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from importlib import metadata


@functools.cache
def check() -> None:
    """Raise `ImportError`, with the command that helps, where Python or a package is missing or outside the range that sdnb needs.

    A pre-release counts as its release. A checkout that was never installed has no metadata, and is not checked.
    """
    try:
        ours = metadata.metadata("sdnb")
    except metadata.PackageNotFoundError:
        return
    needed = [line for line in ours.get_all("Requires-Dist", []) if "extra ==" not in line]
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ImportError:  # transformers and accelerate bring it
        raise ImportError(f"this needs packages that are not installed, packaging among them: {_pip(['packaging', *needed])}") from None
    python = ".".join(map(str, sys.version_info[:3]))
    if python not in SpecifierSet(ours["Requires-Python"]):
        raise ImportError(f"this needs Python {ours['Requires-Python']}, and runs on {python}: install it in a newer one")
    faults = {f"{wanted.name}{wanted.specifier}": fault for wanted in map(Requirement, needed) if (fault := _fault(wanted))}
    if faults:
        raise ImportError(f"this needs {'; '.join(f'{name}, {fault}' for name, fault in faults.items())}: {_pip(faults)}")


def _fault(wanted) -> str | None:
    """The fault of a `Requirement`'s installed version; None when it is in range, or not for this system."""
    from packaging.version import InvalidVersion, Version

    if wanted.marker and not wanted.marker.evaluate():
        return None
    try:
        installed = metadata.version(wanted.name)
        return None if Version(installed).base_version in wanted.specifier else f"but {installed} is installed"
    except (metadata.PackageNotFoundError, TypeError):  # no version: what an interrupted pip leaves
        return "which is not installed"
    except InvalidVersion:
        return None


def _pip(packages: Iterable[str]) -> str:
    return "pip install " + " ".join(f'"{package}"' for package in packages) + ", then restart Python"
