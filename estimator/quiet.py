"""Keeping what the libraries say to themselves off the user's terminal: the only place that does.

torch, transformers, peft, bitsandbytes and what they bring warn, log, draw progress bars, print, and write from C. None
of it answers what a user asked. With ``-v`` all of it is heard, on standard error.

Three kinds of process call the libraries. The command line turns its standard output and standard error away while they
run. A process that lorabench starts keeps its standard error, which goes to a file and tells how it died. A program
that calls lorabench keeps both, since other threads may write there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SPEAK = "LORABENCH_VERBOSE"
"""Environment variable that lets the libraries speak, here and in every process that lorabench starts; ``-v`` sets
it to 1."""
NO_BARS = {"TQDM_DISABLE": "1"}
"""Environment in which tqdm draws no progress bars, nor do transformers and huggingface_hub; read on import."""


class _Process:
    """What this process is."""

    is_command_line = False


@contextmanager
def command_line() -> Iterator[None]:
    """Let `quiet_libraries` turn away standard output and standard error too, inside."""
    before, _Process.is_command_line = _Process.is_command_line, True
    try:
        yield
    finally:
        _Process.is_command_line = before


def own_stdout() -> int:
    """Return a descriptor that writes to standard output; what others print there goes to standard error from now on.

    For processes whose standard output another process reads.
    """
    own = os.dup(1)
    os.dup2(2, 1)
    return own


def libraries_speak() -> bool:
    """Tell whether the user asked to hear the libraries."""
    return os.environ.get(SPEAK, "") not in ("", "0")


def quiet_environment() -> dict[str, str]:
    """Return the variables that a process is to be started with, so that its libraries keep quiet if they are to."""
    return {} if libraries_speak() else NO_BARS


def pass_on(said: str) -> None:
    """Write what was ``said`` on the standard error of another process to this one's, if the user asked for it."""
    if said and libraries_speak():
        sys.stderr.write(said if said.endswith("\n") else f"{said}\n")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries, which are imported and called inside; or let them speak on standard error, if asked.

    What lorabench says inside must go to a stream of its own, such as that of `cli.tracing.progress`.
    """
    import logging
    import warnings

    speak = libraries_speak()
    saved = _turn_descriptors(speak) if _Process.is_command_line else {}
    disabled = logging.root.manager.disable
    try:
        if speak:
            yield
            return
        logging.disable()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        _turn_back(saved)


def _turn_descriptors(speak: bool) -> dict[int, int]:
    """Turn standard output to standard error or, with standard error, to nowhere; return copies of what they were.

    One that is closed stays closed.
    """
    _flush()
    saved: dict[int, int] = {}
    for descriptor in (1, 2):
        with suppress(OSError):
            saved[descriptor] = os.dup(descriptor)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in saved:
        os.dup2(saved.get(2, nowhere) if speak else nowhere, descriptor)
    os.close(nowhere)
    return saved


def _turn_back(saved: dict[int, int]) -> None:
    if saved:
        _flush()
    for descriptor, before in saved.items():
        os.dup2(before, descriptor)
        os.close(before)


def _flush() -> None:
    """Write out what Python and C hold in buffers, so that it goes where it was meant to."""
    import ctypes

    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()
    ctypes.CDLL(None).fflush(None)
