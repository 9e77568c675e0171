"""Watching a run: its steps pass through unchanged, drawing never stops or slows it, and it can be ended at any time."""

import io
import math
import os
import queue
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

import sdnb
from sdnb import training
from sdnb.training import Step
from sdnb.watch import frontends, summary, watching
from sdnb.watch.history import History
from sdnb.watch.watching import Throttle

from ..conftest import ROOT
from .test_frames import unpacked


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Steps:
    """A run of made-up steps that notices when it is closed."""

    def __init__(self, count, *, fail_at=None, seconds=0.0, losses=None):
        self.count, self.fail_at, self.seconds, self.losses = count, fail_at, seconds, losses
        self.closed, self.made = False, 0

    def __iter__(self):
        try:
            for index in range(self.count):
                if index == self.fail_at:
                    raise ZeroDivisionError("half way")
                time.sleep(self.seconds)
                self.made += 1
                yield Step(index, self.losses[index] if self.losses else 1 / (index + 1), 1e-4, 0.01, steps=self.count)
        finally:
            self.closed = True


class Screen(frontends.FrontEnd):
    """A front end that keeps what it was given; `breaks` makes it raise."""

    moving = True

    def __init__(self, *, breaks=(), seconds=0.0):
        self.breaks, self.seconds = breaks, seconds
        self.words, self.places, self.left, self.opened = [], [], [], 0

    def open(self, live):
        self.opened += 1
        if "open" in self.breaks:
            raise OSError("no screen")

    def frame(self, live):
        time.sleep(self.seconds)
        self.words.append(live.status)
        if "frame" in self.breaks:
            raise OSError("no screen")

    def tick(self, live):
        self.places.append(live.progress_text)

    def close(self, live, chart):
        self.left.append(chart)
        if "close" in self.breaks:
            raise OSError("no screen")


def watch(source, screen=None, **options):
    live = sdnb.live(source, **options)
    live._front_end = screen or Screen()
    return live


def test_steps_pass_through():
    source, screen = Steps(30), Screen()
    live = watch(source, screen)
    passed = list(live)
    assert [step.index for step in passed] == list(range(30))
    assert source.closed
    assert screen.opened == 1
    assert screen.left == [live.chart]
    assert "Mean training loss" in live.chart.alt
    assert "30 steps" in live.chart.alt
    assert [row["loss"] for row in live.history] == [step.loss for step in passed]
    assert live.figure is live.chart.figure
    with pytest.raises(RuntimeError, match="watched already"):
        list(live)


def test_training_is_the_same_watched_or_not(fresh, ink, monkeypatch):
    monkeypatch.setattr(training, "TRACED_EVERY", 8)  # the second step is traced, in both
    recipe = sdnb.Recipe(lr_warmup_steps=2)
    plain = [step.loss for step in sdnb.train(fresh, ink[:4], recipe, steps=4)]
    again = sdnb.load("tiny", device="cpu")
    live = watch(sdnb.train(again, ink[:4], recipe, steps=4), preview=lambda: again.draw("a cat", steps=1), preview_every=2)
    assert [step.loss for step in live] == plain
    assert list(live.previews) == ["step 0", "step 2", "step 3"]
    record = live.history[1]
    assert record["forward_peak_bytes"] > sum(p.numel() * 4 for p in again.unet.parameters())
    assert live.history[2]["forward_peak_bytes"] is None
    assert record["process_bytes"] > 0
    assert "Memory peaks at" in live.chart.alt


def test_a_short_run_is_not_traced(fresh, ink):
    assert [step.peaks for step in sdnb.train(fresh, ink[:4], sdnb.Recipe(lr_warmup_steps=0), steps=3)] == [None] * 3


def test_tracing_changes_no_loss(fresh, ink, monkeypatch):
    recipe = sdnb.Recipe(lr_warmup_steps=0)
    plain = [step.loss for step in sdnb.train(fresh, ink[:4], recipe, steps=3)]
    monkeypatch.setattr(training, "TRACED_EVERY", 2)
    traced = list(sdnb.train(sdnb.load("tiny", device="cpu"), ink[:4], recipe, steps=3))
    assert [step.loss for step in traced] == plain
    assert [step.peaks is not None for step in traced] == [False, True, False]
    assert traced[1].peak_bytes == max(traced[1].peaks.values())


# how often it is drawn


@pytest.mark.parametrize("step_seconds", [0.0005, 0.02, 0.3, 10.0])
@pytest.mark.parametrize("frame_seconds", [0.002, 0.025, 0.5])
def test_drawing_keeps_to_its_share(step_seconds, frame_seconds):
    now = 0.0
    throttle = Throttle(watching.FRAME_SHARE, clock=lambda: now)
    throttle.start()
    for _ in range(int(max(200, 60 / step_seconds))):
        now += step_seconds
        if throttle.due:
            with throttle.frame():
                now += frame_seconds
    # the last frame may just have been drawn, and is paid for by the time after it
    assert throttle.seconds - frame_seconds <= watching.FRAME_SHARE * now
    assert throttle.frames >= 1
    if step_seconds > frame_seconds / watching.FRAME_SHARE:
        assert throttle.frames == 200  # nothing is held back that there is time for


def test_a_loss_is_looked_at_only_for_a_frame():
    looks = []

    class Late:
        def __init__(self, index):
            self.index = index

        def __float__(self):
            looks.append(self.index)
            return 0.5

    screen = Screen(seconds=0.02)  # so that the next frame is a second away
    live = watch(Steps(100, losses=[Late(i) for i in range(100)]), screen)
    seen = []
    for step in live:
        seen.append((step.index, len(looks)))
    assert len(screen.words) == 1
    assert len(screen.places) >= 2  # how far it is is said without a look
    assert " of 100 steps" in screen.places[-1]
    assert seen[0] == (0, 1)
    assert seen[-1] == (99, 1)
    assert len(looks) == 100  # all of them for the picture that stays


def test_where_nobody_watches_nothing_is_drawn_on_the_way():
    live = watch(Steps(50), frontends.Nowhere())
    list(live)
    assert live.frames == 0
    assert live.chart is not None


# how it ends


def test_stop_ends_it_after_the_step():
    source = Steps(100)
    live = watch(source)
    for step in live:
        if step.index == 7:
            live.stop()
    assert source.made == 8
    assert source.closed
    assert "Stopped on request after 8 of 100 steps." in live.chart.alt


def test_stop_from_another_thread():
    source = Steps(1000, seconds=0.005)
    live = watch(source)
    threading.Timer(0.1, live.stop).start()
    passed = list(live)
    assert 1 < len(passed) < 1000
    assert source.closed


def test_the_first_interrupt_ends_it_after_the_step_and_the_second_at_once():
    before = signal.getsignal(signal.SIGINT)
    source = Steps(100)
    live = watch(source)
    for step in live:
        if step.index == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    assert source.made == 4
    assert signal.getsignal(signal.SIGINT) is before

    source = Steps(100)
    live = watch(source)
    with pytest.raises(KeyboardInterrupt):
        for _ in live:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
    assert signal.getsignal(signal.SIGINT) is before
    assert source.closed


def test_break_ends_it_too():
    source, screen = Steps(100), Screen()
    live = watch(source, screen)
    for step in live:
        if step.index == 5:
            break
    assert source.closed
    assert screen.left == [live.chart]
    assert "after 6 of 100 steps" in live.chart.alt


def test_an_exception_passes_and_the_picture_stays():
    source, screen = Steps(100, fail_at=12), Screen()
    live = watch(source, screen)
    with pytest.raises(ZeroDivisionError, match="half way"):
        list(live)
    assert source.closed
    assert len(live.history) == 12
    assert screen.left == [live.chart]
    assert "Ended by ZeroDivisionError after 12 of 100 steps." in live.chart.alt


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_short_run(count):
    screen = Screen()
    live = watch(Steps(count), screen)
    assert len(list(live)) == count
    assert (live.chart is None) == (count == 0)
    assert screen.left == [live.chart]
    if count == 0:
        assert live.status == "Done: no step was made"
        assert live.history == []


def test_losses_that_are_no_numbers_are_named():
    live = watch(Steps(6, losses=[0.5, math.nan, 0.5, math.inf, 0.5, 0.4]))
    list(live)
    assert "The loss was no number in 2 steps, first in step 1." in live.chart.alt
    hopeless = watch(Steps(3, losses=[math.nan] * 3))
    list(hopeless)
    assert "no number in 3 steps" in hopeless.chart.alt


# what goes wrong with the drawing stays with the drawing


@pytest.mark.parametrize("where", ["open", "frame", "close"])
def test_a_broken_screen_is_reported_once(where):
    source = Steps(20)
    live = watch(source, Screen(breaks=(where,)))
    with pytest.warns(RuntimeWarning, match="no screen. The run goes on") as warned:
        assert len(list(live)) == 20
    assert len([w for w in warned if w.category is RuntimeWarning]) == 1
    assert live.chart is not None


def test_a_picture_that_cannot_be_drawn_is_reported(monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no ink")

    monkeypatch.setattr(summary, "history", fail)
    live = watch(Steps(3))
    with pytest.warns(RuntimeWarning, match="no ink"):
        list(live)
    assert live.chart is None
    assert len(live.history) == 3


def test_a_preview_that_fails_is_the_last_one():
    live = watch(Steps(40), preview=lambda: 1 / 0, preview_every=10)
    with pytest.warns(RuntimeWarning, match="no more previews: ZeroDivisionError") as warned:
        assert len(list(live)) == 40
    assert len(warned) == 1


def test_previews_come_in_time_and_stay():
    red = Image.new("RGB", (8, 8), "red")
    live = watch(Steps(25), preview=lambda: [red, red], preview_every=10)
    list(live)
    assert list(live.previews) == ["step 0", "step 10", "step 20", "step 24"]
    png = np.asarray(Image.open(io.BytesIO(live._repr_png_()[0])).convert("RGB"))
    assert (png == (255, 0, 0)).all(-1).sum() > 8 * 3000  # eight squares of nearly an inch


def test_gauges_that_fail_are_named(monkeypatch):
    live = watch(Steps(3))
    for _ in live:
        live._gauges.trouble = "the card's sensors stopped: GPU is lost"
        assert live.status.endswith("; the card's sensors stopped: GPU is lost")
    assert live.chart is not None


# several at once


def test_two_at_once():
    before = signal.getsignal(signal.SIGINT)
    one, two = watch(Steps(10)), watch(Steps(20))
    assert len(list(zip(one, two, strict=False))) == 10
    del one, two
    import gc

    gc.collect()
    assert signal.getsignal(signal.SIGINT) is before


def test_in_a_thread():
    found = []

    def work():
        live = watch(Steps(10))
        found.append((len(list(live)), live.chart.alt))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=30)
    assert found[0][0] == 10


def test_runs_that_are_over_and_runs_to_come():
    first = watch(Steps(10))
    list(first)
    live = watch(Steps(8), compare={"earlier": first, "by hand": [Step(0, 0.1, 1e-4, 0.1)], "later": Steps(5)})
    assert len(list(live)) == 13
    assert {name: len(run) for name, run in live.runs.items()} == {"this run": 8, "earlier": 10, "by hand": 1, "later": 5}
    assert live.figure.get_suptitle().startswith("Mean training loss over the last quarter: from 0.100, by hand, to ")
    assert [row["loss"] for row in live.history] == [1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5]  # of the last

    path = live.to_csv("runs.csv")
    assert len(path.read_text().splitlines()) == 1 + 8 + 10 + 1 + 5
    assert History.from_csv(path, "earlier").records() == first.history
    with pytest.raises(ValueError, match="this run, earlier, by hand, later: say run="):
        History.from_csv(path)

    only = sdnb.live(compare={"clip 0": Steps(4), "clip 1.0": Steps(6)})
    only._front_end = Screen()
    assert len(list(only)) == 10
    assert only.progress == 1.0
    finished = sdnb.live(compare={"a": first, "b": live})
    finished._front_end = Screen()
    assert list(finished) == []
    assert "a: Mean training loss" in finished.chart.alt


def test_stop_leaves_the_runs_that_have_not_begun():
    later = Steps(5)
    live = watch(Steps(9), compare={"later": later})
    for _ in live:
        live.stop()
    assert later.made == 0
    assert "this run" in live.runs
    assert len(live.history) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(steps=3), "3 is no run: give what sdnb.train returned"),
        (dict(), "nothing to watch"),
        (dict(steps=Steps(1), preview_every=0), "preview_every=0"),
        (dict(steps=Steps(1), compare={"this run": Steps(1)}), "two runs are called 'this run'"),
        (dict(compare={"a": sdnb.live(Steps(1))}), "watched already|watched"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sdnb.live(**arguments)


# where it is shown


def test_in_a_terminal_there_are_words_and_a_picture(capsys, tmp_path):
    for _ in range(2):
        live = sdnb.live(Steps(30))
        list(live)
    assert isinstance(live._front_end, frontends.Terminal)
    said = capsys.readouterr().out
    assert "1 of 30 steps" in said
    assert "Done, 30 of 30 steps: Mean training loss" in said
    pictures = sorted(tmp_path.glob("sdnb-*.png"))
    assert len(pictures) == 2  # the first is not written over
    assert live.saved.name in said
    assert Image.open(pictures[0]).width > 600


def test_the_picture_goes_where_it_is_asked_to(tmp_path, capsys):
    live = sdnb.live(Steps(5), save=tmp_path / "mine.svg")
    list(live)
    assert live.saved == tmp_path / "mine.svg"
    assert "<svg" in live.saved.read_text()
    assert list(tmp_path.glob("sdnb-*.png")) == []
    assert live.to_csv("run.csv").read_text().startswith("index,loss")


def test_only_the_first_of_several_processes_shows_anything(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert len(list(sdnb.live(Steps(5)))) == 5
    assert capsys.readouterr().out == ""


RUN = """
import sys, time
sys.path.insert(0, {root!r})
import sdnb
from sdnb.watch import History
from sdnb.training import Step
def steps(count, seconds):
    for index in range(count):
        time.sleep(seconds)
        yield Step(index, 1 / (index + 1), 1e-4, seconds, steps=count)
run = sdnb.live(steps({count}, {seconds}))
for step in run:
    pass
print("after", len(run.history), run.frames)
"""


@pytest.fixture(scope="module")
def kernel():
    manager = pytest.importorskip("jupyter_client.manager")
    running, client = manager.start_new_kernel(kernel_name="python3")
    yield running, client
    client.stop_channels()
    running.shutdown_kernel(now=True)


def execute(kernel, *, asked, count, seconds, interrupt_after=None):
    """What a cell sends out; `asked` as a front end with a person before it asks."""
    manager, client = kernel
    request = client.execute(RUN.format(root=str(ROOT), count=count, seconds=seconds), allow_stdin=asked)
    messages, start = [], time.monotonic()
    while time.monotonic() - start < 60:
        if interrupt_after is not None and any(m["header"]["msg_type"] == "display_data" for m in messages):
            time.sleep(interrupt_after)
            manager.interrupt_kernel()
            interrupt_after = None
        try:
            message = client.get_iopub_msg(timeout=1)
        except queue.Empty:
            continue
        if message["parent_header"].get("msg_id") == request:
            messages.append(message)
            if message["header"]["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return messages
    raise AssertionError("the cell did not end")


def kinds(messages):
    return [message["header"]["msg_type"] for message in messages]


def printed(messages):
    return "".join(m["content"]["text"] for m in messages if m["header"]["msg_type"] == "stream" and m["content"]["name"] == "stdout")


@pytest.mark.slow
def test_run_by_a_program_it_leaves_one_picture(kernel):
    messages = execute(kernel, asked=False, count=20, seconds=0.01)
    assert "error" not in kinds(messages)
    assert not {"comm_open", "update_display_data"} & set(kinds(messages))
    (shown,) = [m["content"] for m in messages if m["header"]["msg_type"] == "display_data"]
    assert "Mean training loss" in shown["metadata"]["image/png"]["alt"]
    assert "after 20 0" in printed(messages)


@pytest.mark.slow
def test_a_notebook_is_drawn_although_nobody_answers(kernel):
    """The frames are sent, the picture that stays takes the place of the widgets, and no front end is needed for any of it."""
    messages = execute(kernel, asked=True, count=60, seconds=0.05)
    assert "error" not in kinds(messages)
    begun = next(m for m in messages if m["header"]["msg_type"] == "display_data")
    assert "application/vnd.jupyter.widget-view+json" in begun["content"]["data"]
    (update,) = [m for m in messages if m["header"]["msg_type"] == "update_display_data"]
    assert "image/png" in update["content"]["data"]
    assert update["content"]["transient"] == begun["content"]["transient"]
    assert page_of(update).count("sdnb-live") >= 1
    frames = [state for state in states(messages) if "frame" in state]
    assert len(frames) >= 4
    assert kinds(messages).count("comm_close") == 0  # a page that is reloaded asks for the widget


def page_of(update):
    return update["content"]["data"]["text/html"]


def states(messages):
    """What the widget was told, message by message, with its binary parts in place."""
    for message in messages:
        if message["header"]["msg_type"] in ("comm_open", "comm_msg"):
            data = message["content"]["data"]
            state = data.get("state", {})
            for path, buffer in zip(data.get("buffer_paths", ()), message["buffers"], strict=True):
                state[path[0]] = bytes(buffer)
            yield state


@pytest.mark.slow
def test_words_and_curves_are_of_one_step(kernel):
    messages = execute(kernel, asked=True, count=60, seconds=0.05)
    seen = 0
    for state in states(messages):
        if (step := state.get("frame", {}).get("step")) is None:
            continue
        seen += 1
        frame, numbers = state["frame"], state["numbers"]
        drawn = unpacked(frame["panels"], numbers)
        assert frame["words"].startswith(f"Step {step}: loss ")
        assert all(x[-1] == step for (panel, name), (x, y) in drawn.items() if len(x) and panel != "Memory")
        _, smoothed = drawn["Loss", "smoothed"]
        assert f"loss {smoothed[-1]:.3f}" in frame["words"]
        assert state["progress"]["text"].startswith(f"{step + 1} of 60 steps")
    assert seen >= 3


@pytest.mark.slow
def test_the_run_before_is_the_ghost(kernel):
    first, second = (execute(kernel, asked=True, count=60, seconds=0.02) for _ in range(2))
    last = [state for state in states(first) if "frame" in state][-1]
    ghost = next(state for state in states(second) if state.get("ghost"))
    assert ghost["ghost"]["panels"] == last["frame"]["panels"]
    assert ghost["ghost_numbers"] == [state["numbers"] for state in states(first) if "numbers" in state][-1]
    assert kinds(second).count("comm_close") == 1  # the widget before, whose output is gone


@pytest.mark.slow
def test_of_a_run_without_steps_the_words_stay(kernel):
    messages = execute(kernel, asked=True, count=0, seconds=0)
    (update,) = [m for m in messages if m["header"]["msg_type"] == "update_display_data"]
    assert update["content"]["data"] == {"text/plain": "Done: no step was made"}


def test_without_anywidget_there_are_words_and_a_picture(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown = []

    class Handle:
        def update(self, what, **options):
            shown.append(what)

    monkeypatch.setattr(display, "display", lambda what, **options: shown.append(what) or Handle())
    monkeypatch.setattr(frontends.notebook, "running", lambda: object())
    monkeypatch.setattr(frontends.notebook, "attended", lambda: True)
    monkeypatch.setattr(frontends, "find_spec", lambda name: None)
    live = watch(Steps(3), frontends.find())
    list(live)
    assert shown[0] == {"text/plain": "Getting ready: the model and the pictures are prepared"}
    assert shown[1]["text/plain"].startswith("1 of 3 steps")
    assert shown[-1] is live.chart


def test_the_widgets_are_published_where_a_picture_can_take_their_place(monkeypatch):
    """By us, since those of ipywidgets 7, which Colab has, publish themselves, and without an id."""
    display = pytest.importorskip("IPython.display")
    shown = []
    monkeypatch.setattr(display, "display", lambda what, **options: shown.append((what, options)))
    screen = frontends.Notebook()
    screen.open(watch(Steps(1)))
    ((bundle, options),) = shown
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view == {"version_major": 2, "version_minor": 0, "model_id": screen._widget.model_id}
    assert bundle["text/plain"]
    assert options == {"raw": True, "display_id": True}


@pytest.mark.slow
def test_the_notebooks_interrupt_ends_it_cleanly(kernel):
    messages = execute(kernel, asked=True, count=2000, seconds=0.02, interrupt_after=0.5)
    assert "error" not in kinds(messages)
    (update,) = [m for m in messages if m["header"]["msg_type"] == "update_display_data"]
    assert "Stopped on request after" in update["content"]["metadata"]["image/png"]["alt"]
    assert 0 < int(printed(messages).split("after ")[1].split()[0]) < 2000
