"""Code that foreign text keeps busy is ended, and nothing else is."""

from __future__ import annotations

import re
import signal
import threading
import time

import pytest

from lorabench.estimator.bounded_time import within
from lorabench.estimator.errors import UserError

SLOW = re.compile("(a+)+b")


def test_what_takes_too_long_is_refused() -> None:
    with pytest.raises(UserError, match="too long"), within(0.05, "too long"):
        SLOW.fullmatch("a" * 60)


def test_what_comes_after_is_not_bounded_and_finds_the_signal_as_it_was() -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    with within(0.05, "too long"):
        assert SLOW.fullmatch("aab")
    end = time.thread_time() + 0.2
    while time.thread_time() < end:
        pass
    assert signal.getsignal(signal.SIGVTALRM) == before


def test_other_threads_are_not_bounded() -> None:
    found: list[object] = []

    def match() -> None:
        with within(0.05, "too long"):
            found.append(SLOW.fullmatch("aab"))

    thread = threading.Thread(target=match)
    thread.start()
    thread.join()
    assert found
    assert found[0] is not None
