"""Signals that end a command."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lorabench.bench.running.interrupts import SIGNALS

AGAIN_SECONDS = 0.02


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Make SIGTERM end the command like Ctrl-C. Neither signal gets lost."""
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt. Inside a ``__del__``, Python would ignore it: raise it a moment later."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt
