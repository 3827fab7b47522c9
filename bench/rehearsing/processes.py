"""Start a rehearsed program, wait for it, and end all processes that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

WAIT_SECONDS = 0.2
"""Time between two calls of ``waiting``."""
EXECUTION_SECONDS = 0.1
"""Longest time in which the kernel replaces a process's program."""
SIGNALS = ((signal.SIGINT, 5.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0))
"""Signals that end processes, and seconds to wait after each. The first is an interrupt, so programs can clean up."""


def run_program(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    *,
    timeout_seconds: float,
    waiting: Callable[[], None] = lambda: None,
) -> int | None:
    """Run ``command``, and return its exit code; None if it was ended after ``timeout_seconds``.

    Its standard output goes to standard error. When it ends, takes too long, or this process is interrupted, all
    processes that it started are ended too.

    Args:
        environment: all variables of the program. ``NULL_GPU_NOTES`` must be ``folder``: it identifies the program's
            processes.
        waiting: called several times a second until it ends.
    """
    until = time.monotonic() + timeout_seconds
    try:
        with _interrupts_allowed():
            started = subprocess.Popen(command, env=environment, stdout=sys.stderr.fileno())
        with started as program:
            try:
                while time.monotonic() < until:
                    with suppress(subprocess.TimeoutExpired):
                        return program.wait(WAIT_SECONDS)
                    waiting()
                return None
            finally:
                if program.returncode is None:
                    _end(folder, program)
    finally:
        _end(folder)


@contextmanager
def _interrupts_allowed() -> Iterator[None]:
    """Let programs that start in this context get interrupts, even if this process ignores them.

    Background jobs of a shell script, and what they start, ignore interrupts. `_end` begins with one.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end(folder: Path, program: subprocess.Popen[bytes] | None = None) -> None:
    """End the processes of the rehearsal in ``folder``, by ever stronger signals. ``program`` is the direct child."""
    for number, seconds in SIGNALS:
        until = time.monotonic() + seconds
        for process in _processes_of(folder):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        while (program is not None and program.poll() is None) or _are_left(folder):
            if time.monotonic() >= until:
                break
            time.sleep(0.05)
        else:
            return


def _are_left(folder: Path) -> bool:
    """Return whether processes of the rehearsal in ``folder`` are alive.

    It looks twice, since a process has no environment for a moment while it executes a new program.
    """
    if any(_processes_of(folder)):
        return True
    time.sleep(EXECUTION_SECONDS)
    return any(_processes_of(folder))


def _processes_of(folder: Path) -> Iterator[int]:
    """Yield the processes whose environment names ``folder``. Ended processes have no environment."""
    variable = f"NULL_GPU_NOTES={folder.absolute()}".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if variable in entry.read_bytes().split(b"\0"):
                yield int(entry.parent.name)
