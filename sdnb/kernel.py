"""The Jupyter kernel that runs this, and whether somebody is watching it."""

from __future__ import annotations

import sys


def running() -> object | None:
    """The kernel, or None outside of one."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None)


def attended() -> bool:
    """Whether somebody sees what the running cell shows, as it is shown.

    A kernel that is asked not to wait for an answer (`allow_stdin`) is run by a program: nbval, nbconvert, papermill.
    """
    kernel = running()
    asked = kernel.get_parent("shell") if hasattr(kernel, "get_parent") else {}
    return bool(asked.get("content", {}).get("allow_stdin"))
