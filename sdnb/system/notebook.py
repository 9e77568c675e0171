"""The Jupyter kernel: whether somebody is watching, and interrupts that end a watched run after its step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import Any, Protocol


def running() -> object | None:
    """Jupyter kernel of this process; None outside of one."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None)


def attended() -> bool:
    """Whether somebody sees the running cell's output as it appears.

    Programs such as nbval, nbconvert and papermill run cells without `allow_stdin`, as they cannot answer a question.
    """
    get_parent = getattr(running(), "get_parent", None)
    request = get_parent("shell") if get_parent else {}
    return bool(request.get("content", {}).get("allow_stdin"))


PAGES = "SDNB_PAGES"
"""Name of the environment's variable that `sdnb course` sets while it executes the lessons for its pages."""


def plays() -> bool:
    """Whether the running cell's output comes into a browser that can play it: somebody sees it, or the course's pages are being made."""
    return attended() or PAGES in os.environ


class Stoppable(Protocol):
    """A run that can be asked to end after its current step."""

    stopped: bool

    def stop(self) -> None:
        """Ask the run to end."""


class Interrupts:
    """Interrupts of watched runs: the first ends them after their current step, the second at once, like any interrupt."""

    def __init__(self) -> None:
        self._watched: list[Stoppable] = []
        self._handler_before: Any = None  # from `signal.getsignal`

    @contextmanager
    def end(self, live: Stoppable):
        """Let interrupts end this run inside the context. Only in the main thread, as Python sets handlers nowhere else."""
        if self._handler_before is None and self._in_main_thread():
            self._handler_before = signal.getsignal(signal.SIGINT)
            if self._handler_before is not None:  # None: the handler was not set by Python
                signal.signal(signal.SIGINT, self._handle)
        self._watched.append(live)
        try:
            yield
        finally:
            self._watched.remove(live)
            if not self._watched and self._handler_before is not None and self._in_main_thread():
                signal.signal(signal.SIGINT, self._handler_before)
                self._handler_before = None

    def _handle(self, number, frame) -> None:
        running = [live for live in self._watched if not live.stopped]
        if not running:
            raise KeyboardInterrupt
        for live in running:
            live.stop()

    @staticmethod
    def _in_main_thread() -> bool:
        return threading.current_thread() is threading.main_thread()
