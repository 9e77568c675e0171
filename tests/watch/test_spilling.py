"""Memory that spills from a full card: it is noticed once, with what to do, and nothing else is taken for it."""

import json
import warnings

import numpy as np
import pytest

import sdnb
from sdnb.memory.gauges import Gauges, Reading
from sdnb.planner import report
from sdnb.system import CARDS, SPILLS, card
from sdnb.training import Step
from sdnb.watch import frontends, recordings, spilling
from sdnb.watch.history import History
from sdnb.watch.watching import Live

GIB = 2**30
CARD = 8 * GIB


def steps(pace, *, reserved=6 * GIB, waited=0.0, pictures=4):
    """Steps that take `pace` seconds each; `reserved` and `waited` are one number or one for each."""
    count = len(pace)
    reserved, waited = np.broadcast_to(reserved, count), np.broadcast_to(waited, count)
    for index in range(count):
        bytes_now = int(reserved[index])
        yield Step(
            index, 0.5, 1e-4, float(pace[index]), allocated_bytes=bytes_now // 2, reserved_bytes=bytes_now, pictures=pictures, steps=count,
            waited_seconds=float(waited[index]),
        )  # fmt: skip


class Card(Gauges):
    """Gauges of a card with 8 GiB; `full` says whether all of it is in use."""

    def __init__(self, *, full=True, windows=True):
        super().__init__()
        self.capacity_bytes, self.may_spill = CARD, windows
        self.latest = Reading(gpu_bytes=CARD - 2**20 if full else CARD // 2)


def watched(run, gauges):
    """A run through the live plot, as in a notebook without a kernel's screen, and the warnings of it."""
    live = Live({"this run": run}, gauges=gauges, front_end=frontends.Nowhere())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(live)
    return live, [str(warning.message) for warning in caught if "spilled" in str(warning.message)]


STEADY = np.full(60, 0.5)
SLOWED = np.where(np.arange(60) < 31, 0.5, 4.0)


def test_more_reserved_than_the_card_has():
    reserved = np.where(np.arange(60) < 31, 7 * GIB, 9 * GIB)
    live, said = watched(steps(SLOWED, reserved=reserved), Card(windows=False))
    assert live.spill == spilling.Spill(31, 8.0, 9 * GIB)
    expected = "The card's memory spilled into the computer's from step 31 on: 9.00 GiB are reserved, and the card has 8.00 GiB"
    (warning,) = said
    assert warning == f"{expected}; steps take 8 times as long. {SPILLS}. `sdnb fit` names recipes that have room."
    assert f"{expected}; steps take 8 times as long." in live.chart.alt


def test_from_the_first_step_on_nothing_is_said_of_speed():
    live, said = watched(steps(STEADY, reserved=9 * GIB), Card())
    assert live.spill == spilling.Spill(0, None, 9 * GIB)
    assert "times as long" not in said[0]


def test_a_full_card_and_slow_steps_on_windows():
    live, said = watched(steps(SLOWED), Card())
    assert live.spill == spilling.Spill(31, 8.0)
    assert said[0].startswith("The card's memory spilled into the computer's from step 31 on; steps take 8 times as long. ")


ALTERNATING = np.where(np.arange(60) % 10 == 7, 9.0, 0.5)


@pytest.mark.parametrize(
    ("run", "gauges"),
    [
        (dict(pace=STEADY), Card()),  # full, as the allocator keeps what it reserved
        (dict(pace=SLOWED), Card(full=False)),  # slow for another reason
        (dict(pace=SLOWED), Card(windows=False)),  # Linux does not spill
        (dict(pace=ALTERNATING), Card()),  # a preview or a save now and then
        (dict(pace=SLOWED, waited=SLOWED - 0.5), Card()),  # waiting for pictures
        (dict(pace=np.where(np.arange(60) < 31, 0.5, 1.2)), Card()),  # larger pictures
        (dict(pace=np.r_[9.0, STEADY]), Card()),  # the first step sets things up
        (dict(pace=SLOWED[25:40]), Card()),  # too short to tell
    ],
)
def test_other_reasons_are_not_taken_for_it(run, gauges):
    live, said = watched(steps(**run), gauges)
    assert live.spill is None
    assert said == []
    assert "spilled" not in live.chart.alt


def test_on_a_cpu_nothing_spills():
    run = History(Step(i, 0.5, 1e-4, 0.5 if i < 31 else 9.0) for i in range(60))
    assert spilling.find(run, None, slow=True) is None
    assert spilling.find(run, CARD, slow=True) is None
    assert spilling.find(History(), CARD, slow=True) is None


class Screen(frontends.FrontEnd):
    """A screen that keeps every status."""

    moving = True

    def __init__(self):
        self.words = []

    def frame(self, live):
        live._frame_throttle._next = 0.0  # a frame for every step
        self.words.append(live.status)


def test_it_is_said_while_it_happens_and_once():
    screen = Screen()
    live = Live({"this run": steps(SLOWED)}, gauges=Card(), front_end=screen)
    with pytest.warns(RuntimeWarning, match="CUDA - Sysmem Fallback Policy") as caught:
        for step in live:
            live._frame_throttle._next = 0.0
            if step.index == 29:
                assert caught.list == []
    assert len(caught) == 1
    assert "the card's memory spills into the computer's: steps take 8 times as long" in screen.words[-1]
    assert sum("spills" in words for words in screen.words) == 60 - 40  # from the tenth slow step on


def test_a_recorded_run_says_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = ("index", "loss", "learning_rate", "seconds", "pictures", "reserved_bytes")
    rows = [{name: getattr(step, name) for name in fields} | {"gpu_bytes": CARD} for step in steps(SLOWED)]
    content = dict(command="-", machine=dict(gpu="RTX 3070", torch="2.13"), capacity_bytes=CARD, may_spill=True, rows=rows)
    (tmp_path / "run-small.json").write_text(json.dumps(content))
    monkeypatch.setattr(recordings, "recordings", lambda: {"small": tmp_path / "run-small.json"})
    live = sdnb.replay("small", seconds=0)
    with pytest.warns(RuntimeWarning, match="from step 31 on"):
        list(live)
    assert "spilled into the computer's from step 31 on" in live.chart.alt


def test_the_plan_speaks_of_windows_only_for_cards_that_people_have():
    assert "On Windows the driver spills" in report.WITHOUT_ROOM
    assert card(12).spills
    spilling_cards = {name for name, one in CARDS.items() if one.spills}
    assert spilling_cards == {name for name in CARDS if name.startswith("rtx")}
