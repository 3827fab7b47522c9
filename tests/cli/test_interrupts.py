"""SIGINT and SIGTERM end a command, wherever it is."""

from __future__ import annotations

import os
import signal
import time

import pytest

from lorabench.cli.interrupts import terminated_as_interrupted


class Interrupted:
    """Gets a signal while it is deleted, where Python ignores exceptions."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


def be_interrupted_while_deleting(number: int) -> None:
    with terminated_as_interrupted():
        held = Interrupted(number)
        del held
        time.sleep(5)


def be_interrupted(number: int) -> None:
    with terminated_as_interrupted():
        os.kill(os.getpid(), number)
        time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_an_object_is_deleted_is_not_lost(number: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        be_interrupted_while_deleting(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_handlers_are_as_before_afterwards(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        be_interrupted(number)
    assert signal.getsignal(number) == before
