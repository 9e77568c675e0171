"""When the next frame of a run may be drawn: drawing keeps to a share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager


class Throttle:
    """Says when the next frame may be drawn, so that frames take no more than `share` of the time, however long a frame or a step takes."""

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._share, self._clock = share, clock
        self._next = 0.0
        self.seconds, self.frames = 0.0, 0

    @contextmanager
    def frame(self):
        """Enter it around the drawing of one."""
        start = self._clock()
        try:
            yield
        finally:
            end = self._clock()
            self.seconds += end - start
            self.frames += 1
            self._next = end + (end - start) * (1 / self._share - 1)

    @property
    def due(self) -> bool:
        """Whether a frame may be drawn now."""
        return self._clock() >= self._next

    def start(self) -> None:
        """From here on the time counts; what was drawn before it was made ready for."""
        self.seconds, self.frames = 0.0, 0
        self._next = self._clock()
