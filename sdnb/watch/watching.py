"""A run watched while it runs: its steps pass through, and now and then a picture of them is drawn."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..memory import Gauges
from ..system import Interrupts, short, sized
from . import summary
from .frontends import FrontEnd, find
from .history import FIELDS, History, write_csv
from .panels import Scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from ..plots import Chart
    from ..training import Step


class Throttle:
    """A clock for frames: they take no more than `share` of the time, however long a frame or a step takes."""

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._share, self._clock = share, clock
        self._next = 0.0
        self.seconds, self.frames = 0.0, 0

    @contextmanager
    def frame(self):
        """Measure one frame, which is drawn inside this context."""
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
        """Begin to measure: what was drawn before was preparation."""
        self.seconds, self.frames = 0.0, 0
        self._next = self._clock()


SHARE = 0.017
"""Share of the time that may go into drawing frames."""
TICKS = 0.003
"""Share of the time that may go into showing the progress between frames."""


class Live:
    """A run that is drawn as it is iterated over. Made by `live` and `replay`.

    The picture that stays is drawn when the run ends, in whatever way: its last step, `break`, `stop`, Ctrl-C, the notebook's interrupt,
    or an exception, which is passed on. The generator that made the steps is closed then. What a run leaves:

    - `chart`, the picture with its text alternative, None where there was no step; `saved`, where it was written
    - `history` and `to_csv`, its numbers; `runs`, a `History` for each run by name
    - `previews`, what was drawn on the way, by the name of the step
    """

    def __init__(
        self,
        runs: Mapping[str, Iterable[Step] | History],
        *,
        preview: Callable[[], Image.Image | Sequence[Image.Image]] | None = None,
        preview_every: int = 50,
        predicted_bytes: int | None = None,
        title: str | None = None,
        note: str = "",
        save: str | Path | None = None,
        gauges: Gauges | None = None,
        front_end: FrontEnd | None = None,
    ) -> None:
        self.runs = {name: run if isinstance(run, History) else History() for name, run in runs.items()}
        self._to_run = {name: run for name, run in runs.items() if not isinstance(run, History)}
        self._preview, self._preview_every = preview, preview_every
        self._predicted_bytes, self._title, self._note = predicted_bytes, title, note
        self._save_to = None if save is None else Path(save)
        self._gauges, self._reads_gauges = gauges or Gauges(), gauges is None
        self._front_end = front_end
        self._stop = threading.Event()
        self._throttle, self._ticks = Throttle(SHARE), Throttle(TICKS)
        self._began = False
        self._run = next(iter(self._to_run), None) or next(iter(self.runs))
        self._start, self._progress_then = 0.0, 0.0
        self._state = "Getting ready: the model and the pictures are prepared"
        self._broken = False
        self.previews: dict[str, list[Image.Image]] = {}
        """Pictures drawn on the way, by the name of the step."""
        self.chart: Chart | None = None
        """The picture that stays, with its text alternative; None until the run has ended, and where there was no step."""
        self.saved: Path | None = None
        """Path of that picture; None where it was not written."""

    # for the reader

    @property
    def figure(self) -> Figure | None:
        """The matplotlib figure of the picture that stays."""
        return self.chart and self.chart.figure

    @property
    def history(self) -> list[dict[str, float | int | None]]:
        """A record for each step, by `history.FIELDS`; in a comparison those of the last run. `runs["its name"].records()` has any."""
        return self.runs[self._run].records()

    def to_csv(self, path: str | Path) -> Path:
        """Write a line for each step, in a comparison with a first column for the run's name; returns the path.

        `sdnb.watch.History.from_csv(path)` reads it, for `compare` on another day.
        """
        if len(self.runs) == 1:
            return self.runs[self._run].to_csv(path)
        return write_csv(path, ("run", *FIELDS), ({"run": name, **record} for name, run in self.runs.items() for record in run.records()))

    def stop(self) -> None:
        """End the run after the step it is in; runs that have not begun are left out. May be called from any thread."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    @property
    def frames(self) -> int:
        """Number of times the panels were drawn during the run."""
        return self._throttle.frames

    @property
    def drawing_seconds(self) -> float:
        """Seconds spent on drawing, and on showing the progress between."""
        return self._throttle.seconds + self._ticks.seconds

    def __repr__(self) -> str:
        return self.chart.alt if self.chart else f"<a run of {len(self.runs[self._run])} steps so far>"

    def _repr_png_(self):
        return self.chart._repr_png_() if self.chart else None

    # for the front end

    def scene(self) -> Scene:
        """The runs so far, with the lines that do not move."""
        drawn = {name: run for name, run in self.runs.items() if len(run) or name == self._run}
        on_card = any(run.has("reserved_bytes") for run in drawn.values())
        return Scene(drawn, self._gauges.capacity_bytes if on_card else None, self._predicted_bytes)

    @property
    def progress(self) -> float:
        """Share of all runs that is done, from 0 to 1; 0 while their length is not known."""
        done = sum(len(self.runs[name]) for name in self._to_run)
        planned = [self.runs[name].planned for name in self._to_run]
        known = [steps for steps in planned if steps]
        return min(1.0, done / (sum(known) / len(known) * len(planned))) if known else 0.0

    @property
    def words(self) -> str:
        """The state of the run in one line: step, loss, learning rate, memory."""
        run = self.runs[self._run]
        if self._state or not len(run):
            return self._state
        parts = []
        smoothed, rate = run["smoothed"][-1], run["learning_rate"][-1]
        parts.append(f"loss {smoothed:.3f}, {trend}" if (trend := run.trend) else f"loss {smoothed:.3f}")
        before = run["learning_rate"][-6:][0]
        parts.append(f"learning rate {short(rate)}" + (", warming up" if rate > before else ", falling" if rate < before else ""))
        if run.peak:
            parts.append(f"memory peaks at {sized(run.peak[0])}, in {run.peak[1]}")
        if bad := run.not_finite:
            parts.append(f"the loss was no number in {len(bad)} steps, first in step {bad[0]}")
        if self._gauges.trouble:
            parts.append(self._gauges.trouble)
        return f"{self.place}: {'; '.join(parts)}"

    @property
    def place(self) -> str:
        """The progress in words, such as `Step 40 of 200, 12 s left`. No loss is read for it."""
        run = self.runs[self._run]
        name = f"{self._run}, step" if len(self._to_run) > 1 else "Step"
        return f"{name} {len(run)}" + (f" of {run.planned}" if run.planned else "") + self._time_left()

    def _time_left(self) -> str:
        done, first = self.progress, self._progress_then
        if done <= first:
            return ""
        left = (time.perf_counter() - self._start) / (done - first) * (1 - done)
        minutes, seconds = divmod(round(left), 60)
        return f", {minutes} min {seconds} s left" if minutes else f", {seconds} s left"

    # the run

    def __iter__(self) -> Iterator[Step]:
        """The steps, once. A second time there are none left to run: raises `RuntimeError`."""
        if self._began:
            raise RuntimeError("this run has been watched already: make a new one, or look at its .chart and .history")
        self._began = True
        return self._watch()

    def _watch(self) -> Iterator[Step]:
        front_end = self._front_end = self._front_end or find()
        with ExitStack() as stack:
            if self._reads_gauges:
                stack.enter_context(self._gauges)
            stack.enter_context(_interrupts.end(self))
            try:
                self._careful(front_end.open, self)
                self._throttle.start()
                self._ticks.start()
                yield from self._steps(front_end)
            except GeneratorExit:
                self._end(front_end, "Left by the loop around it")
                raise
            except BaseException as error:
                self._end(front_end, f"Ended by {type(error).__name__}")
                raise
            else:
                self._end(front_end, "Stopped on request" if self.stopped else "Done")

    def _steps(self, front_end: FrontEnd) -> Iterator[Step]:
        for name, source in self._to_run.items():
            run, steps = self.runs[name], iter(source)
            try:
                while not self._stop.is_set():
                    self._run = name
                    step = next(steps, None)
                    if step is None:
                        break
                    run.add(step, self._gauges.latest)
                    if self._state:  # the time left is counted from here: the first step sets things up
                        self._state, self._start, self._progress_then = "", time.perf_counter(), self.progress
                    self._draw_preview(step)
                    if front_end.moving and not self._broken:
                        for throttle, show in ((self._throttle, front_end.frame), (self._ticks, front_end.tick)):
                            if throttle.due:
                                with throttle.frame():
                                    self._careful(show, self)
                    yield step
            finally:
                if close := getattr(steps, "close", None):
                    close()

    def _draw_preview(self, step: Step) -> None:
        last = step.index + 1 == getattr(step, "steps", None)
        if self._preview is None or (step.index % self._preview_every and not last):
            return
        try:
            drawn = self._preview()
        except Exception as error:
            self._preview = None
            warnings.warn(f"no more previews: {type(error).__name__}: {error}. The run goes on.", RuntimeWarning, stacklevel=4)
            return
        self.previews[f"step {step.index}"] = list(drawn) if isinstance(drawn, Sequence) else [drawn]

    def _careful(self, draw: Callable, *arguments) -> object:
        """Drawing never stops a run: what goes wrong is said once, and nothing more is drawn while it runs."""
        if self._broken:
            return None
        try:
            return draw(*arguments)
        except Exception as error:
            self._broken = True
            warnings.warn(f"nothing more is drawn: {type(error).__name__}: {error}. The run goes on.", RuntimeWarning, stacklevel=4)
            return None

    def _end(self, front_end: FrontEnd, how: str) -> None:
        steps = sum(len(self.runs[name]) for name in self._to_run)
        planned = self.runs[self._run].planned
        if not steps and not any(map(len, self.runs.values())):
            self._state = f"{how}: no step was made"
        else:
            early = how != "Done"
            of = f" of {planned}" if planned and len(self._to_run) == 1 else ""
            note = ". ".join(filter(None, (self._note, f"{how} after {steps}{of} steps" if early else ""))) + ("." if early else "")
            # also after a frame failed: the picture that stays is another one
            try:
                scene = self.scene()
                self.chart = summary.history(
                    {name: run for name, run in scene.runs.items() if len(run)},
                    title=self._title,
                    note=note,
                    previews=self.previews,
                    capacity_bytes=scene.capacity_bytes,
                    predicted_bytes=scene.predicted_bytes,
                )
                if self._save_to is not None:
                    self.saved = self.chart.save(self._save_to)
            except Exception as error:
                warnings.warn(f"the picture could not be drawn: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=4)
            self._state = f"{how}, {steps}{of} steps" + (f": {self.chart.alt}" if self.chart else "")
        self._broken = False
        self._careful(front_end.close, self, self.chart)


_interrupts = Interrupts()


def live(
    steps: Iterable[Step] | None = None,
    *,
    compare: Mapping[str, Iterable[Step] | Live | History] | None = None,
    preview: Callable[[], Image.Image | Sequence[Image.Image]] | None = None,
    preview_every: int = 50,
    predicted_bytes: int | None = None,
    title: str | None = None,
    save: str | Path | None = None,
) -> Live:
    """Watch a run: pass its steps through and draw them.

        for step in sdnb.live(sdnb.train(sd, pictures, recipe)):
            pass

    In a notebook loss, learning rate, memory and speed draw themselves; in a terminal there is a line of words and, at the end, a
    PNG; run by nbval, nbconvert or papermill, one picture. Drawing takes at most 2% of the time. The first interrupt (or the Stop
    button) ends the run after its step, with everything kept.

    `compare` overlays runs by name; give each a model of its own, since `train` changes the one it is given. Those that are over (a
    `Live`, a `History`, a list of steps) are drawn beside `steps`; those still to run (generators) run one after the other, in their
    order, and after `steps`. Runs called alike but for their seed (`"clip 0, seed 1"`) look alike.

    `preview` is called at step 0, every `preview_every` steps and at the last one, and returns one picture or several:
    `lambda: sd.draw("a cat", seed=1)`. `predicted_bytes` is drawn as a line over the memory. `save` is where the last picture goes.

    Returns a `Live`: after the loop it has `.chart`, `.figure`, `.history` (a list of records), `.to_csv(path)` and `.runs`.
    Raises `TypeError` for what is not a run, `ValueError` without any run and for `preview_every` below 1.
    """
    runs: dict[str, Iterable[Step] | History] = {}
    if steps is not None:
        runs["this run"] = iter(steps) if isinstance(steps, (list, tuple)) else _source(steps)
    for name, run in (compare or {}).items():
        if name in runs:
            raise ValueError(f"two runs are called {name!r}: give them names of their own")
        runs[str(name)] = _source(run)
    if not runs:
        raise ValueError("nothing to watch: give it steps, such as sdnb.train(…), or compare={name: run}")
    if preview_every < 1:
        raise ValueError(f"preview_every={preview_every}: it must be 1 or more")
    return Live(runs, preview=preview, preview_every=preview_every, predicted_bytes=predicted_bytes, title=title, save=save)


def _source(run: Any) -> Iterable[Step] | History:
    if isinstance(run, Live):
        if not run._began:
            raise TypeError("a run that is watched already cannot be watched again: give what sdnb.train returned")
        return run.runs[run._run]
    if isinstance(run, (list, tuple)):
        return History(run)
    if isinstance(run, History) or hasattr(run, "__iter__"):
        return run
    raise TypeError(f"{run!r} is no run: give what sdnb.train returned, or any iterable of its steps")
