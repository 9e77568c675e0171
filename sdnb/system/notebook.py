"""The Jupyter kernel: whether somebody is watching, and interrupts, which end a watched run after its step."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from typing import Any, Protocol


def running() -> object | None:
    """The kernel, or None outside of one."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None)


def attended() -> bool:
    """Whether somebody sees the running cell's output as it appears.

    A kernel that is asked not to wait for an answer (`allow_stdin`) is run by a program: nbval, nbconvert, papermill.
    """
    get_parent = getattr(running(), "get_parent", None)
    asked = get_parent("shell") if get_parent else {}
    return bool(asked.get("content", {}).get("allow_stdin"))


class Stoppable(Protocol):
    """A run that can be asked to end after its present step."""

    stopped: bool

    def stop(self) -> None:
        """Ask the run to end."""


class Interrupts:
    """Interrupts of watched runs: the first ends them after their step, the second at once, as any interrupt does."""

    def __init__(self) -> None:
        self._watched: list[Stoppable] = []
        self._before: Any = None  # what `signal.getsignal` gave

    @contextmanager
    def end(self, live: Stoppable):
        """Let interrupts end this run, inside the context. Python sets handlers in the main thread only: elsewhere nothing changes."""
        if self._before is None and self._main():
            self._before = signal.getsignal(signal.SIGINT)
            if self._before is not None:  # None: it was not Python that set it
                signal.signal(signal.SIGINT, self._interrupted)
        self._watched.append(live)
        try:
            yield
        finally:
            self._watched.remove(live)
            if not self._watched and self._before is not None and self._main():
                signal.signal(signal.SIGINT, self._before)
                self._before = None

    def _interrupted(self, number, frame) -> None:
        running = [live for live in self._watched if not live.stopped]
        if not running:
            raise KeyboardInterrupt
        for live in running:
            live.stop()

    @staticmethod
    def _main() -> bool:
        return threading.current_thread() is threading.main_thread()
