"""Signals that wait, so that an interrupt never falls into the middle of what has to be whole.

    with held():               # Ctrl-C, a notebook's Stop, a timer, a cluster's warning: they wait …
        with welcome():        # … except here, where they may act at once
            loss.backward()
        optimizer.step()

Once one has raised an exception, the others wait for the end of `held`: what is put back after an interrupt is not interrupted again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGBREAK")
"""Signals whose handlers may raise exceptions, as far as the system has them; the interrupt first."""


class _Gate:
    """Handlers in place of those that were there, which act only while the gate is open."""

    def __init__(self) -> None:
        handlers = {number: signal.getsignal(number) for name in NAMES if (number := getattr(signal, name, None)) is not None}
        self.before: dict[int, Callable[..., Any]] = {number: handler for number, handler in handlers.items() if callable(handler)}
        self.waiting: list[int] = []
        self.is_open = False

    def arrived(self, number: int, frame: Any) -> None:
        if not self.is_open:
            self.waiting.append(number)
            return
        self.is_open = False
        self.before[number](number, frame)  # which usually raises
        self.is_open = True

    def deliver(self) -> None:
        while self.waiting:
            signal.raise_signal(self.waiting.pop(0))


_gate: _Gate | None = None
"""Gate of the outermost `held` that is entered; None outside."""


@contextmanager
def held():
    """Let signals wait until the block ends. Python handles them in the main thread only: in others this changes nothing."""
    global _gate
    if threading.current_thread() is not threading.main_thread():
        yield
    elif (gate := _gate) is not None:
        was_open, gate.is_open = gate.is_open, False
        try:
            yield
        finally:
            gate.is_open = was_open
            if was_open:
                gate.deliver()
    else:
        gate = _gate = _Gate()
        try:
            for number in gate.before:
                signal.signal(number, gate.arrived)
            yield
        finally:
            _gate = None
            for number, handler in reversed(gate.before.items()):  # the interrupt last: from then on it may raise
                signal.signal(number, handler)
            gate.deliver()


@contextmanager
def welcome():
    """Within `held`, let signals act in this block, first those that have been waiting."""
    gate = _gate
    if gate is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    was_open, gate.is_open = gate.is_open, True
    try:
        gate.deliver()
        yield
    finally:
        gate.is_open = was_open
