"""`live`: pass the steps of a run through, and draw them as they come."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..memory import Gauges
from ..system import SPILLS, Interrupts, short, sized
from . import spilling, summary
from .frontends import FrontEnd, find
from .history import FIELDS, History, write_csv
from .panels import Scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from ..plots import Chart
    from ..training import Step


class Throttle:
    """Limits drawing to a `share` of the time, however long a frame or a step takes."""

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._share, self._clock = share, clock
        self._next = 0.0
        self.seconds = 0.0
        """Seconds spent on frames."""
        self.frames = 0
        """Number of frames."""

    @contextmanager
    def frame(self):
        """Measure one frame, drawn inside this context."""
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
        """Reset the measurements: earlier frames were preparation."""
        self.seconds, self.frames = 0.0, 0
        self._next = self._clock()


FRAME_SHARE = 0.017
"""Share of the time that may go into drawing frames."""
TICK_SHARE = 0.003
"""Share of the time that may go into showing the progress between frames."""


class Live:
    """A run that is drawn while you iterate over its steps. Made by `live` and `replay`.

    The final picture is drawn when the run ends, in whatever way: its last step, `break`, `stop`, Ctrl-C, the notebook's interrupt, or an
    exception, which is passed on. The generator that makes the steps is then closed. After the run:

    - `chart`: the final picture with its text alternative; None if there was no step. `saved`: the path it was written to
    - `history` and `to_csv`: the numbers. `runs`: a `History` for each run, by name
    - `previews`: pictures drawn during the run, by the name of the step
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
        self._sources = {name: run for name, run in runs.items() if not isinstance(run, History)}
        self._preview, self._preview_every = preview, preview_every
        self._predicted_bytes, self._title, self._note = predicted_bytes, title, note
        self._save_to = None if save is None else Path(save)
        self._gauges = gauges or Gauges()
        self._opens_gauges = gauges is None
        self._front_end = front_end
        self._stop = threading.Event()
        self._frame_throttle = Throttle(FRAME_SHARE)
        self._tick_throttle = Throttle(TICK_SHARE)
        self._began = False
        self._current = next(iter(self._sources), None) or next(iter(self.runs))
        self._timed_from = 0.0
        self._timed_progress = 0.0
        """Progress at the time `_timed_from`, after the first step."""
        self._state = "Getting ready: the model and the pictures are prepared"
        self._drawing_failed = False
        self.spill: spilling.Spill | None = None
        """Where the card's memory began to spill into the computer's; None if nothing shows it."""
        self.previews: dict[str, list[Image.Image]] = {}
        """Pictures drawn during the run, by the name of the step."""
        self.chart: Chart | None = None
        """Final picture, with its text alternative; None until the run has ended, and if there was no step."""
        self.saved: Path | None = None
        """Path of the final picture; None if it was not written."""

    # for the reader

    @property
    def figure(self) -> Figure | None:
        """Matplotlib figure of the final picture."""
        return self.chart and self.chart.figure

    @property
    def history(self) -> list[dict[str, float | int | None]]:
        """One record per step, by `history.FIELDS`; in a comparison for the last run. `runs["its name"].records()` has the others."""
        return self.runs[self._current].records()

    def to_csv(self, path: str | Path) -> Path:
        """Write one line per step; a comparison gets a first column with the run's name. Returns the path.

        `sdnb.watch.History.from_csv(path)` reads the file, for a later `compare`.
        """
        if len(self.runs) == 1:
            return self.runs[self._current].to_csv(path)
        return write_csv(path, ("run", *FIELDS), ({"run": name, **record} for name, run in self.runs.items() for record in run.records()))

    def stop(self) -> None:
        """End the run after its current step; later runs do not begin. May be called from any thread."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    @property
    def frames(self) -> int:
        """Number of times the panels were drawn during the run."""
        return self._frame_throttle.frames

    @property
    def drawing_seconds(self) -> float:
        """Seconds spent on drawing, and on showing the progress between frames."""
        return self._frame_throttle.seconds + self._tick_throttle.seconds

    def __repr__(self) -> str:
        return self.chart.alt if self.chart else f"<a run of {len(self.runs[self._current])} steps so far>"

    def _repr_png_(self):
        return self.chart._repr_png_() if self.chart else None

    # for the front end

    def scene(self) -> Scene:
        """Runs so far, with the lines for the card's memory and the predicted peak."""
        drawn = {name: run for name, run in self.runs.items() if len(run) or name == self._current}
        on_card = any(run.has("reserved_bytes") for run in drawn.values())
        return Scene(drawn, self._gauges.capacity_bytes if on_card else None, self._predicted_bytes)

    @property
    def progress(self) -> float:
        """Finished share of all runs, from 0 to 1; 0 while their length is unknown."""
        done = sum(len(self.runs[name]) for name in self._sources)
        planned = [self.runs[name].planned for name in self._sources]
        known = [steps for steps in planned if steps]
        return min(1.0, done / (sum(known) / len(known) * len(planned))) if known else 0.0

    @property
    def status(self) -> str:
        """State of the run in one line: step, loss, learning rate, memory."""
        return self._state or f"{self.progress_text}: {self.words}"

    @property
    def words(self) -> str:
        """What the last step says: loss, learning rate, memory; before the first step and after the last one the state of the run."""
        run = self.runs[self._current]
        if self._state or not len(run):
            return self._state
        parts = []
        smoothed, rate = run["smoothed"][-1], run["learning_rate"][-1]
        parts.append(f"loss {smoothed:.3f}, {trend}" if (trend := run.trend) else f"loss {smoothed:.3f}")
        if len(losses := run.validations[1]):
            parts.append(f"validation loss {losses[-1]:.3f}")
        earlier_rate = run["learning_rate"][-2:][0]
        change = ", warming up" if rate > earlier_rate else ", falling" if rate < earlier_rate else ""
        parts.append(f"learning rate {short(rate)}{change}")
        if run.peak:
            parts.append(f"memory peaks at {sized(run.peak[0])}, in {run.peak[1]}")
        if bad := run.not_finite:
            parts.append(f"the loss was no number in {len(bad)} steps, first in step {bad[0]}")
        if self.spill:
            slower = f": steps take {self.spill.slower:.0f} times as long" if self.spill.slower else ""
            parts.append(f"the card's memory spills into the computer's{slower}")
        if self._gauges.trouble:
            parts.append(self._gauges.trouble)
        return "; ".join(parts)

    @property
    def step(self) -> int | None:
        """Index of the last step of the run that is going on; None before the first step and after the last run."""
        run = self.runs[self._current]
        return None if self._state or not len(run) else int(run["index"][-1])

    @property
    def place(self) -> str:
        """Name of that step, such as `Step 39`, in a comparison with the run's name; empty without one."""
        if self.step is None:
            return ""
        return f"{self._current}, step {self.step}" if len(self._sources) > 1 else f"Step {self.step}"

    @property
    def progress_text(self) -> str:
        """Progress as text, such as `40 of 200 steps, 12 s left`. It reads no loss."""
        run = self.runs[self._current]
        name = f"{self._current}: " if len(self._sources) > 1 else ""
        return f"{name}{len(run)}" + (f" of {run.planned}" if run.planned else "") + f" steps{self._time_left()}"

    def _time_left(self) -> str:
        done = self.progress
        timed_share = done - self._timed_progress
        if timed_share <= 0:
            return ""
        seconds_left = (time.perf_counter() - self._timed_from) / timed_share * (1 - done)
        minutes, seconds = divmod(round(seconds_left), 60)
        return f", {minutes} min {seconds} s left" if minutes else f", {seconds} s left"

    # the run

    def __iter__(self) -> Iterator[Step]:
        """Run and yield the steps. Raises `RuntimeError` the second time, when no steps are left."""
        if self._began:
            raise RuntimeError("this run has been watched already: make a new one, or look at its .chart and .history")
        self._began = True
        return self._watch()

    def _watch(self) -> Iterator[Step]:
        front_end = self._front_end = self._front_end or find()
        with ExitStack() as stack:
            if self._opens_gauges:
                stack.enter_context(self._gauges)
            stack.enter_context(_interrupts.end(self))
            try:
                self._try_to_draw(front_end.open, self)
                self._frame_throttle.start()
                self._tick_throttle.start()
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
        for name, source in self._sources.items():
            run, steps = self.runs[name], iter(source)
            try:
                while not self._stop.is_set():
                    self._current = name
                    step = next(steps, None)
                    if step is None:
                        break
                    run.add(step, self._gauges.latest)
                    if self._state:  # the first step sets things up, so the time left is computed from here on
                        self._state = ""
                        self._timed_from = time.perf_counter()
                        self._timed_progress = self.progress
                    self._draw_preview(step)
                    if front_end.moving and not self._drawing_failed:
                        if self._frame_throttle.due:
                            self._look_for_spilling()
                        for throttle, show in ((self._frame_throttle, front_end.frame), (self._tick_throttle, front_end.tick)):
                            if throttle.due:
                                with throttle.frame():
                                    self._try_to_draw(show, self)
                    yield step
            finally:
                if close := getattr(steps, "close", None):
                    close()

    def _look_for_spilling(self) -> None:
        """Warn once when the card's memory spills into the computer's."""
        if self.spill or not self._gauges.capacity_bytes:
            return
        self.spill = spilling.find(self.runs[self._current], self._gauges.capacity_bytes, slow=self._gauges.may_spill)
        if self.spill:
            found = self.spill.words(self._gauges.capacity_bytes)
            warnings.warn(f"{found}. {SPILLS}. `sdnb fit` names recipes that have room.", RuntimeWarning, stacklevel=4)

    def _draw_preview(self, step: Step) -> None:
        last = step.index + 1 == getattr(step, "steps", None)
        if self._preview is None or (step.index % self._preview_every and not last):
            return
        try:
            pictures = self._preview()
        except Exception as error:
            self._preview = None
            warnings.warn(f"no more previews: {type(error).__name__}: {error}. The run goes on.", RuntimeWarning, stacklevel=4)
            return
        self.previews[f"step {step.index}"] = list(pictures) if isinstance(pictures, Sequence) else [pictures]

    def _try_to_draw(self, draw: Callable, *arguments) -> object:
        """Call `draw`. An error becomes a warning, and ends the drawing but not the run."""
        if self._drawing_failed:
            return None
        try:
            return draw(*arguments)
        except Exception as error:
            self._drawing_failed = True
            warnings.warn(f"nothing more is drawn: {type(error).__name__}: {error}. The run goes on.", RuntimeWarning, stacklevel=4)
            return None

    def _end(self, front_end: FrontEnd, how: str) -> None:
        """Draw and save the final picture; `how` says how the run ended, such as `Done`."""
        steps = sum(len(self.runs[name]) for name in self._sources)
        planned = self.runs[self._current].planned
        if not steps and not any(map(len, self.runs.values())):
            self._state = f"{how}: no step was made"
        else:
            early = how != "Done"
            of = f" of {planned}" if planned and len(self._sources) == 1 else ""
            self._look_for_spilling()
            spilled = self.spill.words(self._gauges.capacity_bytes or 0) if self.spill else ""
            ended = f"{how} after {steps}{of} steps" if early else ""
            remarks = [self._note, spilled, ended]
            note = ". ".join(filter(None, remarks)) + ("." if early or spilled else "")
            # also after a frame failed, as this is another picture
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
            self._state = f"{how}, {steps}{of} steps" + (f": {self.chart.alt.removesuffix(f' {ended}.')}" if self.chart else "")
        self._drawing_failed = False
        self._try_to_draw(front_end.close, self, self.chart)


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

    In a notebook, panels show loss, learning rate, memory and speed as they change; a terminal gets a line of text and, at the end, a PNG;
    nbval, nbconvert and papermill get one picture. Drawing takes at most 2% of the time. The first interrupt (or the Stop button) ends the
    run after its current step, with all results kept.

    - `steps`: the run, from `train` or any iterable of steps
    - `compare`: more runs, by name, drawn over `steps`. Finished ones (a `Live`, a `History`, a list of steps) are only drawn; generators
      run one after the other, after `steps`. Give each a model of its own, since `train` changes its model. Runs whose names differ only
      in the seed (`"clip 0, seed 1"`) look alike
    - `preview`: function that returns one picture or several, such as `lambda: sd.draw("a cat", seed=1)`; called at step 0, every
      `preview_every` steps and at the last one
    - `predicted_bytes`: drawn as a line over the memory
    - `title`: above the final picture; by default its finding
    - `save`: path for the final picture

    Returns a `Live`: after the loop it has `.chart`, `.figure`, `.history` (a list of records), `.to_csv(path)` and `.runs`.
    Raises `TypeError` for anything that is not a run, `ValueError` without any run and for `preview_every` below 1.
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
    """Steps still to run, or the history of a finished run. Raises `TypeError` for anything else."""
    if isinstance(run, Live):
        if not run._began:
            raise TypeError("a run that is watched already cannot be watched again: give what sdnb.train returned")
        return run.runs[run._current]
    if isinstance(run, (list, tuple)):
        return History(run)
    if isinstance(run, History) or hasattr(run, "__iter__"):
        return run
    raise TypeError(f"{run!r} is no run: give what sdnb.train returned, or any iterable of its steps")
