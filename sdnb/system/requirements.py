"""Versions of Python and other packages that sdnb needs, from its own metadata."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from importlib import metadata


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
