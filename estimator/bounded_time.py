"""Bound the time of code that foreign text may keep busy for ever, such as a regular expression."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lorabench.estimator.errors import UserError


@contextmanager
def within(seconds: float, refusal: str) -> Iterator[None]:
    """Return a context that raises `UserError` with ``refusal`` after so much of the processor's time.

    Only the main thread of a program can be interrupted so, and only on Unix: elsewhere there is no bound.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ended(number: int, frame: FrameType | None) -> None:
        raise UserError(refusal)

    before = signal.signal(signal.SIGVTALRM, ended)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
