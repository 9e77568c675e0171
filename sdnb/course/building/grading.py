"""`grade`: what is wrong with code that a reader wrote, found without harm to the notebook that it was written in."""

from __future__ import annotations

import os
import random
import re
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from .. import languages

GRADERS = {
    "01.3": "unmixing",
    "02.3": "moments",
    "03.2": "budget",
    "03.3": "recomputing",
    "04.1": "factored",
    "04.2": "fusing",
    "08.1": "low_rank",
}
"""Module of each exercise's grader. Its `CHECKS` are functions that take the answer, in the order in which they are run."""
COMMON = ("not_callable", "raised", "raised_elsewhere", "signature", "too_slow")
"""Faults of every exercise, whose texts all lessons share."""
SIGNATURE = re.compile(r"\(\) (missing|takes|got an? )")
"""What Python says where a function is called with arguments that it does not take."""
SECONDS = 2.0
"""CPU time after which an answer is stopped. The slowest good ones take a tenth of it."""
NOT_THE_READERS = (
    *(f"{folder}{os.sep}" for folder in (Path(__file__).parents[2], *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))),
    "<frozen",
    "<string>",
)
"""How the names of files begin that hold no code of the reader's: this package's, Python's own, and those of installed packages."""


class Fault(Exception):
    """A property that the reader's code lacks: its name in the lesson's texts, and the values that its text mentions.

    Those in `COMMON` exist for every exercise. All but `not_callable` have a value `during`: the name of the check that called the code.
    """

    def __init__(self, name: str, /, **values: object) -> None:
        super().__init__(name, values)
        self.name, self.values, self.check = name, values, ""


class Remark(str):
    """What is wrong with an answer, in the course's language."""

    check = ""
    """Name of the grader's check that the answer fails at; empty if none was run."""


class Unwritten(Exception):
    """The reader has not written the code yet: it raises NotImplementedError."""


class _OutOfTime(BaseException):
    """Raised inside code that takes too long. Not an `Exception`, so that code which catches those ends too."""


def grade(exercise: str, answer: Any) -> Fault | None:
    """First fault of an answer, or None for a right one. Raises `Unwritten` for code that only raises NotImplementedError.

    Whatever the reader's code raises becomes a fault that has its line, and so does code that does not end within `SECONDS`. Random
    generators, torch's default dtype and gradient mode are afterwards as they were.
    """
    if not callable(answer):
        return Fault("not_callable", kind=type(answer).__name__)
    check = None
    try:
        with _kept_state(), _limited_time():
            for check in import_module(f".{GRADERS[exercise]}", __package__).CHECKS:
                check(answer)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except Fault as fault:
        fault.check = check.__name__ if check else ""
        return fault
    except _OutOfTime as error:
        return Fault("too_slow", seconds=f"{SECONDS:.0f}", during=check.__name__ if check else "", **_place(error))
    except BaseException as error:  # the reader's code may raise anything, SystemExit too
        place = _place(error)
        if type(error) is NotImplementedError and place and not str(error):
            raise Unwritten from None
        name = "raised" if place else "signature" if SIGNATURE.search(str(error)) else "raised_elsewhere"
        return Fault(name, error=_first_line(error), during=check.__name__ if check else "", **place)
    return None


@contextmanager
def _kept_state() -> Iterator[None]:
    """Context that starts from a fixed state of torch, and puts back what the reader's was."""
    import numpy as np
    import torch
    import torch.utils.checkpoint  # an answer may use it, and the clock is running by then

    dtype, python, numpys = torch.get_default_dtype(), random.getstate(), np.random.get_state()  # noqa: NPY002 - a reader may use it
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices), torch.enable_grad(), torch.device("cpu"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.set_default_dtype(torch.float32)
            torch.default_generator.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(dtype)
        random.setstate(python)
        np.random.set_state(numpys)  # noqa: NPY002


@contextmanager
def _limited_time() -> Iterator[None]:
    """Context that raises `_OutOfTime` in code of the reader's that runs after `SECONDS` of this thread's CPU time are over."""
    deadline, before = time.thread_time() + SECONDS, sys.gettrace()

    def look(frame: FrameType, event: str, _: object):
        if time.thread_time() > deadline:
            raise _OutOfTime
        return look

    def called(frame: FrameType, event: str, _: object):
        return None if frame.f_code.co_filename.startswith(NOT_THE_READERS) else look(frame, event, _)

    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)


def _first_line(error: BaseException) -> str:
    """Kind of an error and what it says, in one line."""
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _place(error: BaseException) -> dict[str, object]:
    """Number and code of the reader's last line in the traceback of an error; empty if none of its lines is the reader's."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(NOT_THE_READERS)]
    return {"line": frames[-1].lineno, "code": frames[-1].line or "…"} if frames else {}


def verdict(exercise: str, answer: Any) -> bool | Remark | None:
    """True for a right answer, what is wrong with a wrong one, None where nothing is written yet."""
    try:
        fault = grade(exercise, answer)
    except Unwritten:
        return None
    if fault is None:
        return True
    remark = Remark(_text(exercise, fault))
    remark.check = fault.check or str(fault.values.get("during", ""))
    return remark


def _text(exercise: str, fault: Fault) -> str:
    """What a fault says to the reader."""
    if fault.name not in COMMON:
        return languages.reply(exercise, fault.name, **fault.values)
    values = fault.values
    if check := values.get("during"):
        values = {**values, "during": languages.reply(exercise, f"during_{check}")}
    return languages.say(fault.name, exercise=exercise, **values)
