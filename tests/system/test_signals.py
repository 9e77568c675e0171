"""Signals wait where something has to be whole, act where they are welcome, and never spoil what is put back after one of them."""

import signal
import threading

import pytest

from sdnb.system.signals import held, welcome


def interrupt(number=signal.SIGINT):
    signal.raise_signal(number)


def test_an_interrupt_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), held():
        for number in range(3):
            interrupt()
            done.append(number)
    assert done == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_acts_at_once_where_it_is_welcome_also_when_it_came_before():
    done = []
    with pytest.raises(KeyboardInterrupt), held(), welcome():
        interrupt()
        done.append("after")
    with pytest.raises(KeyboardInterrupt), held():
        interrupt()
        done.append("held")
        with welcome():
            done.append("welcome")
    assert done == ["held"]


def test_what_has_to_be_whole_may_lie_in_what_has_not():
    done = []
    with pytest.raises(KeyboardInterrupt), held(), welcome():
        with held():
            interrupt()
            done.append("whole")
        done.append("after")
    assert done == ["whole"]


def test_what_cleans_up_after_an_interrupt_is_not_interrupted_again():
    done = []
    with pytest.raises(KeyboardInterrupt), held():
        try:
            with welcome():
                interrupt()
        finally:
            interrupt()
            interrupt()
            done.append("clean")
    assert done == ["clean"]
    interrupted = False
    try:
        with held():
            pass
    except KeyboardInterrupt:
        interrupted = True
    assert not interrupted  # none is left over


def test_other_handlers_act_in_their_own_way():
    """One that raises nothing, as that of a live plot, and those of timers and clusters."""
    told = []
    before = signal.signal(signal.SIGINT, lambda number, frame: told.append(number))
    try:
        with held(), welcome():
            interrupt()
            interrupt()
            assert len(told) == 2
    finally:
        signal.signal(signal.SIGINT, before)

    def stop(number, frame):
        raise SystemExit(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(SystemExit), held():
            interrupt(signal.SIGTERM)
            told.append("whole")
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told[-1] == "whole"


def test_an_error_in_the_block_stays_and_so_does_the_handler():
    with pytest.raises(ValueError, match="mine"), held():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_change_nothing():
    def work():
        with held(), welcome():
            handlers.append(signal.getsignal(signal.SIGINT))

    handlers = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
