"""Limits of time and memory for code that reads hostile input."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MIB = 2**20


class TookTooLongError(BaseException):
    """The code took more of the processor's time than allowed; nothing that handles errors handles it."""


@contextmanager
def limited(*, cpu_seconds: float, mib: int) -> Iterator[None]:
    """Let the code inside take so much of the processor's time, and so much memory beyond what the process has.

    Time that the machine spends on others does not count.
    """

    def ended(number: int, frame: FrameType | None) -> None:
        raise TookTooLongError(f"more than {cpu_seconds:g} s of the processor")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = signal.signal(signal.SIGPROF, ended)
    resource.setrlimit(resource.RLIMIT_AS, (taken + mib * MIB, hard))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
