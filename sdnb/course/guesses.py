"""Guesses: the reader's prediction before an experiment, and its comparison with what the experiment measured.

    guess = sdnb.guess("02.a")  # below the question, in a cell of its own
    ...
    guess.reveal(peak / 2**30)  # at the end of the experiment's cell

Where somebody sits at the notebook, `guess` shows widgets, and `reveal` the comparison; it waits for the answer if there is none yet.
Anywhere else, such as in nbval, on a page or in a terminal, both print text that is the same everywhere. `questions` has the kinds of
guesses.
"""

from __future__ import annotations

from typing import Any

from ..system import attended
from . import progress
from .guess_widgets import Board, Place, Waiting
from .languages import say
from .questions import Question, question

_guesses: dict[str, Guess] = {}


def guess(name: str) -> Guess:
    """Ask for the reader's prediction `name`, such as `"02.a"`: show its widgets, or print what to write down.

    Raises `ValueError` for a name that no lesson has.
    """
    asked = _guesses.get(name)
    if asked is None:
        asked = _guesses[name] = Guess(name)
    asked.ask()
    return asked


class Guess:
    """A prediction of the reader. `answer` is None until there is one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.question: Question = question(name)
        self.answer: Any = None
        self._board: Board | None = None
        self._waiting: list[tuple[Place, Any]] = []

    def __repr__(self) -> str:
        return f"<Guess {self.name}>"

    def ask(self) -> None:
        """Show the widgets, with an earlier answer, or print what to write down."""
        self.question = question(self.name)  # anew: the language may have changed
        if not attended():
            print(self.question.prompt)
            return
        self._restore()
        self._board = Board(self.name, self.question, self.answer, self._fix)

    def reveal(self, measured: Any) -> None:
        """Show the prediction beside the measurement; where there are no widgets, print the measurement and what it says of each choice.

        - `measured`: a number, the name of the right choice, or a list of heights, as the kind of the guess asks

        Raises `ValueError` for what is none of these, such as a choice that does not exist.
        """
        measured = self.question.measured(measured)
        if self._board is None or not attended():
            print(self.question.outcome(measured))
        elif self.answer is None:
            self._waiting.append((Waiting(say("waiting_for_guess", name=self.name)), measured))
        else:
            self._board.settle(self.answer)
            Place.still(self._comparison(measured), self.question.outcome(measured))

    def _restore(self) -> None:
        """Take up the answer of an earlier session, if it still is one."""
        if self.answer is None and (saved := progress.load().guesses.get(self.name)) is not None:
            try:
                self.answer = self.question.answer(saved)
            except (TypeError, ValueError):
                self.answer = None

    def _fix(self, answer: Any) -> None:
        """Keep an answer, also for later sessions, and show the comparisons that waited for it."""
        self.answer = answer
        progress.record(progress.Progress(guesses={self.name: answer}))
        for place, measured in self._waiting:
            place.settle(self._comparison(measured), self.question.outcome(measured))
        if self._waiting and self._board:
            self._board.settle(answer)
        self._waiting.clear()

    def _comparison(self, measured: Any) -> str:
        return self.question.comparison(self.answer, measured)
